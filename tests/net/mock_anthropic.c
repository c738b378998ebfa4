/* Anthropic's messages, whole and as the full sequence of events with pings. Unknown fields
 * (seed, n, logprobs) are refused and max_tokens and anthropic-version required, as there. */
#include "mock.h"

static const char *const known[] = {"model", "max_tokens", "messages", "system", "stop_sequences",
  "stream", "temperature", "top_p", "top_k", "metadata", "tools", "tool_choice", "thinking",
  "service_tier", "output_config", "output_format", "container", "context_management",
  "cache_control"};

static const char *problem_of(const cJSON *body, char *text, size_t size) {
  const cJSON *one;
  cJSON_ArrayForEach(one, body) {
    size_t i = 0;
    while (i < sizeof known / sizeof *known && strcmp(known[i], one->string) != 0) i++;
    if (i < sizeof known / sizeof *known) continue;
    snprintf(text, size, "%.60s: Extra inputs are not permitted", one->string);
    return text;
  }
  if (!json_text(body, "model")) return "model: Field required";
  if (json_number(body, "max_tokens", 0) < 1) return "max_tokens: Field required, at least 1";
  if (!cJSON_IsArray(cJSON_GetObjectItemCaseSensitive(body, "messages"))) {
    return "messages: Field required";
  }
  double t = json_number(body, "temperature", 1);
  return t < 0 || t > 1 ? "temperature: range: 0..1" : NULL;
}

static void head_of(buf *b, const call *c) {
  buf_fmt(b, "{\"id\":\"msg_%016llx\",\"type\":\"message\",\"role\":\"assistant\",\"model\":",
          (unsigned long long)c->hash);
  buf_json(b, c->model, strlen(c->model));
}

static const char *stop_of(const answer *a) {
  return a->refused ? "refusal" : a->cut ? "max_tokens" : a->stop ? "stop_sequence" : "end_turn";
}

static void stop_fields(buf *b, const answer *a) {
  buf_fmt(b, "\"stop_reason\":\"%s\",\"stop_sequence\":", stop_of(a));
  if (a->stop) {
    buf_json(b, a->stop, strlen(a->stop));
  } else {
    buf_str(b, "null");
  }
}

static void usage_of(buf *b, const call *c, long words) {
  buf_fmt(b, "\"usage\":{\"input_tokens\":%ld,\"cache_creation_input_tokens\":0,"
             "\"cache_read_input_tokens\":0,\"output_tokens\":%ld}", c->prompt_tokens, words);
}

static void stream_of(buf *b, const call *c, const answer *a) {
  static const char ping[] = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
  buf_str(b, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":");
  head_of(b, c);
  buf_str(b, ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,");
  usage_of(b, c, 1);
  buf_str(b, "}}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\","
             "\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
  buf_str(b, ping);
  for (int i = 0; i < a->word_n; i++) {
    buf_str(b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
               "\"delta\":{\"type\":\"text_delta\",\"text\":");
    buf_json(b, a->words[i].at, a->words[i].len);
    buf_str(b, "}}\n\n");
    if (i == a->word_n / 2) buf_str(b, ping);
  }
  buf_str(b, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
             "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
  stop_fields(b, a);
  buf_fmt(b, "},\"usage\":{\"output_tokens\":%d}}\n\n", a->word_n);
  buf_str(b, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

void anthropic_messages(mock *m, const cJSON *body, reply *r) {
  char text[128];
  const char *problem = problem_of(body, text, sizeof text);
  if (!problem && !http_header(m->request, "anthropic-version").at) {
    problem = "anthropic-version: header is required";
  }
  if (problem) {
    error_reply(m, r, 400, problem);
    return;
  }
  call c = {.api = API_ANTHROPIC, .text = &m->scratch, .n = 1};
  m->scratch.len = 0;
  c.model = json_text(body, "model");
  if (strncmp(c.model, "no-such", 7) == 0) {
    error_reply(m, r, 404, "model: no such model");
    return;
  }
  c.max_tokens = (long)json_number(body, "max_tokens", 1);
  c.stream = json_true(body, "stream");
  c.stop = cJSON_GetObjectItemCaseSensitive(body, "stop_sequences");
  const cJSON *config = cJSON_GetObjectItemCaseSensitive(body, "output_config");
  const cJSON *format = cJSON_GetObjectItemCaseSensitive(config, "format");
  c.schema = cJSON_GetObjectItemCaseSensitive(format, "schema");
  const cJSON *system = cJSON_GetObjectItemCaseSensitive(body, "system");
  if (system) call_message(&c, "system", system);
  const cJSON *one;
  cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(body, "messages")) {
    const char *role = json_text(one, "role");
    if (role) call_message(&c, role, cJSON_GetObjectItemCaseSensitive(one, "content"));
  }
  if (!call_finish(&c)) {
    error_reply(m, r, 400, "messages: at least one message is required");
    return;
  }
  answer a;
  answer_make(m, &c, 0, &a);
  buf *b = r->body;
  if (c.stream) {
    r->sse = true;
    r->type = "text/event-stream; charset=utf-8";
    stream_of(b, &c, &a);
  } else {
    head_of(b, &c);
    buf_str(b, ",\"content\":[{\"type\":\"text\",\"text\":");
    buf_json(b, a.text.data, a.text.len);
    buf_str(b, "}],");
    stop_fields(b, &a);
    buf_str(b, ",");
    usage_of(b, &c, a.word_n);
    buf_str(b, "}");
  }
  r->tokens_in = c.prompt_tokens;
  r->tokens_out = a.word_n;
  answer_free(&a);
}

void anthropic_models(reply *r) {
  buf_str(r->body, "{\"data\":[{\"type\":\"model\",\"id\":\"mock\",\"display_name\":\"Mock\","
                   "\"created_at\":\"2024-01-01T00:00:00Z\",\"lifecycle\":\"active\"}],"
                   "\"has_more\":false,"
                   "\"first_id\":\"mock\",\"last_id\":\"mock\"}");
}
