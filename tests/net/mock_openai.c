/* OpenAI's shapes: chat completions and completions, whole and streamed, and the list of models.
 * Models named o1..., o3..., o4..., gpt-5... refuse sampling fields, as the real ones do. */
#include "mock.h"

static const char *const reasoning[] = {"o1", "o3", "o4", "gpt-5"};

static bool is_reasoning(const char *model) {
  for (size_t i = 0; i < sizeof reasoning / sizeof *reasoning; i++) {
    if (strncmp(model, reasoning[i], strlen(reasoning[i])) == 0) return true;
  }
  return false;
}

/* False: r is an error now. */
static bool read_common(mock *m, const cJSON *body, call *c, reply *r) {
  *c = (call){.api = API_OPENAI, .text = &m->scratch, .n = (int)json_number(body, "n", 1)};
  m->scratch.len = 0;
  c->model = json_text(body, "model");
  c->stream = json_true(body, "stream");
  const cJSON *options = cJSON_GetObjectItemCaseSensitive(body, "stream_options");
  c->include_usage = json_true(options, "include_usage");
  c->stop = cJSON_GetObjectItemCaseSensitive(body, "stop");
  c->hash = hash_mix((uint64_t)json_number(body, "seed", 0));
  if (!c->model) {
    error_reply(m, r, 400, "You must provide a model parameter.");
  } else if (strncmp(c->model, "no-such", 7) == 0) {
    error_reply(m, r, 404, "The model does not exist or you do not have access to it.");
  } else if (c->n < 1 || c->n > 128) {
    error_reply(m, r, 400, "Invalid value for 'n': it must be 1 to 128.");
  } else {
    return true;
  }
  return false;
}

static void logprob_entry(buf *b, span word, double logprob) {
  buf_str(b, "{\"token\":");
  buf_json(b, word.at, word.len);
  buf_fmt(b, ",\"logprob\":%.6f,\"bytes\":[", logprob);
  for (size_t i = 0; i < word.len; i++) buf_fmt(b, "%s%u", i ? "," : "", (unsigned char)word.at[i]);
  buf_str(b, "]");
}

static void logprobs_of(buf *b, const call *c, const answer *a, int first, int last) {
  if (!c->logprobs) {
    buf_str(b, "null");
    return;
  }
  buf_str(b, "{\"content\":[");
  for (int i = first; i < last; i++) {
    span word;
    double p = answer_logprob(a, i, 0, &word);
    if (i > first) buf_str(b, ",");
    logprob_entry(b, word, p);
    buf_str(b, ",\"top_logprobs\":[");
    for (int k = 0; k < c->top; k++) {
      if (k) buf_str(b, ",");
      p = answer_logprob(a, i, k, &word);
      logprob_entry(b, word, p);
      buf_str(b, "}");
    }
    buf_str(b, "]}");
  }
  buf_str(b, "],\"refusal\":null}");
}

static const char *finish_of(const answer *a) {
  return a->refused ? "content_filter" : a->cut ? "length" : "stop";
}

static void head_of(buf *b, const call *c, const char *id, const char *object) {
  buf_fmt(b, "{\"id\":\"%s-%016llx\",\"object\":\"%s\",\"created\":1700000000,\"model\":", id,
          (unsigned long long)c->hash, object);
  buf_json(b, c->model, strlen(c->model));
  buf_fmt(b, ",\"system_fingerprint\":\"fp_%08x\"",
          (unsigned)hash_bytes(0, c->model, strlen(c->model)));
}

static void usage_of(buf *b, const call *c, long words) {
  buf_fmt(b, "{\"prompt_tokens\":%ld,\"completion_tokens\":%ld,\"total_tokens\":%ld,"
             "\"prompt_tokens_details\":{\"cached_tokens\":0},"
             "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
          c->prompt_tokens, words, c->prompt_tokens + words);
}

static void chunk(buf *b, const call *c, int index, const char *delta, span text, const answer *a,
                  int word, const char *finish) {
  buf_str(b, "data: ");
  head_of(b, c, "chatcmpl", "chat.completion.chunk");
  buf_fmt(b, ",\"choices\":[{\"index\":%d,\"delta\":{%s", index, delta);
  if (text.at) buf_json(b, text.at, text.len);
  buf_str(b, "},\"logprobs\":");
  if (word >= 0) {
    logprobs_of(b, c, a, word, word + 1);
  } else {
    buf_str(b, "null");
  }
  buf_fmt(b, ",\"finish_reason\":%s%s%s}]", finish ? "\"" : "", finish ? finish : "null",
          finish ? "\"" : "");
  buf_str(b, c->include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

static void usage_chunk(buf *b, const call *c, const char *id, const char *object, long words) {
  if (c->include_usage) {
    buf_str(b, "data: ");
    head_of(b, c, id, object);
    buf_str(b, ",\"choices\":[],\"usage\":");
    usage_of(b, c, words);
    buf_str(b, "}\n\n");
  }
  buf_str(b, "data: [DONE]\n\n");
}

static void start_stream(reply *r) {
  r->sse = true;
  r->type = "text/event-stream; charset=utf-8";
}

static void chat_answer(mock *m, const call *c, reply *r) {
  buf *b = r->body;
  long words = 0;
  if (c->stream) {
    start_stream(r);
  } else {
    head_of(b, c, "chatcmpl", "chat.completion");
    buf_str(b, ",\"choices\":[");
  }
  for (int i = 0; i < c->n; i++) {
    answer a;
    answer_make(m, c, i, &a);
    words += a.word_n;
    if (c->stream) {
      chunk(b, c, i, "\"role\":\"assistant\",\"content\":\"\"", (span){0}, &a, -1, NULL);
      for (int k = 0; k < a.word_n; k++) chunk(b, c, i, "\"content\":", a.words[k], &a, k, NULL);
      chunk(b, c, i, "", (span){0}, &a, -1, finish_of(&a));
    } else {
      buf_fmt(b, "%s{\"index\":%d,\"message\":{", i ? "," : "", i);
      buf_str(b, "\"role\":\"assistant\",\"content\":");
      buf_json(b, a.text.data, a.text.len);
      buf_str(b, ",\"refusal\":null},\"logprobs\":");
      logprobs_of(b, c, &a, 0, a.word_n);
      buf_fmt(b, ",\"finish_reason\":\"%s\"}", finish_of(&a));
    }
    answer_free(&a);
  }
  if (c->stream) {
    usage_chunk(b, c, "chatcmpl", "chat.completion.chunk", words);
  } else {
    buf_str(b, "],\"usage\":");
    usage_of(b, c, words);
    buf_str(b, "}");
  }
  r->tokens_in = c->prompt_tokens;
  r->tokens_out = words;
}

/* NULL, or what is wrong with fields that depend on the model. */
static const char *field_problem(const cJSON *body, const call *c) {
  bool newer = is_reasoning(c->model);
  if (newer && json_number(body, "temperature", 1) != 1) {
    return "Unsupported value: 'temperature' does not support this value with this model.";
  }
  if (newer && (cJSON_HasObjectItem(body, "top_p") || cJSON_HasObjectItem(body, "stop") ||
                c->logprobs)) {
    return "Unsupported parameter: top_p, stop and logprobs are not supported with this model.";
  }
  if (newer && cJSON_HasObjectItem(body, "max_tokens")) {
    return "Unsupported parameter: 'max_tokens' is not supported with this model. "
           "Use 'max_completion_tokens' instead.";
  }
  double t = json_number(body, "temperature", 1);
  if (t < 0 || t > 2) return "Invalid 'temperature': it must be 0 to 2.";
  if (c->top < 0 || c->top > TOP_MAX) return "Invalid 'top_logprobs': it must be 0 to 20.";
  if (c->top && !c->logprobs) return "'top_logprobs' needs 'logprobs' to be true.";
  return NULL;
}

void openai_chat(mock *m, const cJSON *body, reply *r) {
  call c;
  if (!read_common(m, body, &c, r)) return;
  double most = json_number(body, "max_tokens", -1);
  c.max_tokens = (long)json_number(body, "max_completion_tokens", most);
  c.logprobs = json_true(body, "logprobs");
  c.top = (int)json_number(body, "top_logprobs", 0);
  const cJSON *format = cJSON_GetObjectItemCaseSensitive(body, "response_format");
  const cJSON *named = cJSON_GetObjectItemCaseSensitive(format, "json_schema");
  c.schema = cJSON_GetObjectItemCaseSensitive(named, "schema");
  const cJSON *one;
  const cJSON *messages = cJSON_GetObjectItemCaseSensitive(body, "messages");
  cJSON_ArrayForEach(one, messages) {
    const char *role = json_text(one, "role");
    if (role) call_message(&c, role, cJSON_GetObjectItemCaseSensitive(one, "content"));
  }
  const char *problem = field_problem(body, &c);
  if (!cJSON_IsArray(messages) || !call_finish(&c)) {
    problem = "'messages' must be a list of messages.";
  }
  if (problem) {
    error_reply(m, r, 400, problem);
  } else {
    chat_answer(m, &c, r);
  }
}

static void completion_logprobs(buf *b, const call *c, const answer *a) {
  span word;
  buf_str(b, "{\"tokens\":[");
  for (int i = 0; i < a->word_n; i++) {
    if (i) buf_str(b, ",");
    buf_json(b, a->words[i].at, a->words[i].len);
  }
  buf_str(b, "],\"token_logprobs\":[");
  for (int i = 0; i < a->word_n; i++) {
    buf_fmt(b, "%s%.6f", i ? "," : "", answer_logprob(a, i, 0, &word));
  }
  buf_str(b, "],\"top_logprobs\":[");
  for (int i = 0; i < a->word_n; i++) {
    buf_str(b, i ? ",{" : "{");
    for (int k = 0; k < c->top; k++) {
      double p = answer_logprob(a, i, k, &word);
      if (k) buf_str(b, ",");
      buf_json(b, word.at, word.len);
      buf_fmt(b, ":%.6f", p);
    }
    buf_str(b, "}");
  }
  buf_str(b, "],\"text_offset\":[");
  for (int i = 0; i < a->word_n; i++) {
    buf_fmt(b, "%s%zu", i ? "," : "", (size_t)(a->words[i].at - a->text.data));
  }
  buf_str(b, "]}");
}

static void completion_choice(buf *b, const call *c, int index, span text, const answer *a,
                              const char *finish) {
  buf_str(b, "{\"text\":");
  buf_json(b, text.at, text.len);
  buf_fmt(b, ",\"index\":%d,\"logprobs\":", index);
  if (c->logprobs && !c->stream) {
    completion_logprobs(b, c, a);
  } else {
    buf_str(b, "null");
  }
  buf_fmt(b, ",\"finish_reason\":%s%s%s}", finish ? "\"" : "", finish ? finish : "null",
          finish ? "\"" : "");
}

void openai_completions(mock *m, const cJSON *body, reply *r) {
  call c;
  if (!read_common(m, body, &c, r)) return;
  c.max_tokens = (long)json_number(body, "max_tokens", 16);
  c.top = (int)json_number(body, "logprobs", -1);
  c.logprobs = c.top >= 0;
  call_message(&c, "user", cJSON_GetObjectItemCaseSensitive(body, "prompt"));
  c.messages = 0; /* a bare prompt has no wrapping */
  call_finish(&c);
  if (c.top > TOP_MAX || !json_text(body, "prompt")) {
    error_reply(m, r, 400, "'prompt' must be a text, 'logprobs' at most 20.");
    return;
  }
  buf *b = r->body;
  long words = 0;
  if (c.stream) {
    start_stream(r);
  } else {
    head_of(b, &c, "cmpl", "text_completion");
    buf_str(b, ",\"choices\":[");
  }
  for (int i = 0; i < c.n; i++) {
    answer a;
    answer_make(m, &c, i, &a);
    words += a.word_n;
    for (int k = 0; c.stream && k <= a.word_n; k++) {
      bool end = k == a.word_n;
      buf_str(b, "data: ");
      head_of(b, &c, "cmpl", "text_completion");
      buf_str(b, ",\"choices\":[");
      completion_choice(b, &c, i, end ? (span){"", 0} : a.words[k], &a, end ? finish_of(&a) : NULL);
      buf_str(b, "]}\n\n");
    }
    if (!c.stream) {
      if (i) buf_str(b, ",");
      completion_choice(b, &c, i, (span){a.text.data, a.text.len}, &a, finish_of(&a));
    }
    answer_free(&a);
  }
  if (c.stream) {
    usage_chunk(b, &c, "cmpl", "text_completion", words);
  } else {
    buf_str(b, "],\"usage\":");
    usage_of(b, &c, words);
    buf_str(b, "}");
  }
  r->tokens_in = c.prompt_tokens;
  r->tokens_out = words;
}

void openai_models(reply *r) {
  const char *const names[] = {"mock", "gpt-4o-mini", "gpt-4-1106-preview"};
  buf_str(r->body, "{\"object\":\"list\",\"data\":[");
  for (int i = 0; i < 3; i++) {
    buf_fmt(r->body, "%s{\"id\":\"%s\",\"object\":\"model\",\"created\":1700000000,"
            "\"owned_by\":\"mock\"}", i ? "," : "", names[i]);
  }
  buf_str(r->body, "]}");
}
