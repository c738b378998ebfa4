/* Gemini's generateContent and streamGenerateContent, and its list of models. */
#include "mock.h"

static const char *finish_of(const answer *a) {
  return a->refused ? "SAFETY" : a->cut ? "MAX_TOKENS" : "STOP";
}

static void candidate_token(buf *b, span word, double logprob) {
  buf_str(b, "{\"token\":");
  buf_json(b, word.at, word.len);
  buf_fmt(b, ",\"tokenId\":%u,\"logProbability\":%.6f}",
          (unsigned)(hash_bytes(0, word.at, word.len) % 50000), logprob);
}

static void logprobs_of(buf *b, const call *c, const answer *a) {
  span word;
  double sum = 0;
  buf_str(b, ",\"logprobsResult\":{\"chosenCandidates\":[");
  for (int i = 0; i < a->word_n; i++) {
    double p = answer_logprob(a, i, 0, &word);
    sum += p;
    if (i) buf_str(b, ",");
    candidate_token(b, word, p);
  }
  buf_str(b, "],\"topCandidates\":[");
  for (int i = 0; i < a->word_n && c->top > 0; i++) {
    buf_str(b, i ? ",{\"candidates\":[" : "{\"candidates\":[");
    for (int k = 0; k < c->top; k++) {
      double p = answer_logprob(a, i, k, &word);
      if (k) buf_str(b, ",");
      candidate_token(b, word, p);
    }
    buf_str(b, "]}");
  }
  buf_fmt(b, "]},\"avgLogprobs\":%.6f", a->word_n ? sum / a->word_n : 0);
}

/* One candidate; finish NULL: more is to come. */
static void candidate(buf *b, const call *c, const answer *a, int index, span text,
                      const char *finish, bool whole) {
  buf_str(b, "{");
  if (!whole || !a->refused) {
    buf_str(b, "\"content\":{\"parts\":[{\"text\":");
    buf_json(b, text.at, text.len);
    buf_str(b, "}],\"role\":\"model\"},");
  }
  if (finish) buf_fmt(b, "\"finishReason\":\"%s\",", finish);
  buf_fmt(b, "\"index\":%d", index);
  if (whole && c->logprobs) logprobs_of(b, c, a);
  buf_str(b, "}");
}

static void tail_of(buf *b, const call *c, long words) {
  buf_fmt(b, "],\"usageMetadata\":{\"promptTokenCount\":%ld,\"candidatesTokenCount\":%ld,"
             "\"totalTokenCount\":%ld},\"modelVersion\":", c->prompt_tokens, words,
          c->prompt_tokens + words);
  buf_json(b, c->model, strlen(c->model));
  buf_fmt(b, ",\"responseId\":\"%016llx\"}", (unsigned long long)c->hash);
}

static bool read_call(mock *m, const cJSON *body, call *c, reply *r) {
  m->scratch.len = 0;
  const cJSON *g = cJSON_GetObjectItemCaseSensitive(body, "generationConfig");
  c->max_tokens = (long)json_number(g, "maxOutputTokens", -1);
  c->n = (int)json_number(g, "candidateCount", 1);
  c->stop = cJSON_GetObjectItemCaseSensitive(g, "stopSequences");
  c->logprobs = json_true(g, "responseLogprobs");
  c->top = (int)json_number(g, "logprobs", 0);
  c->schema = cJSON_GetObjectItemCaseSensitive(g, "responseSchema");
  if (!c->schema) {
    c->schema = cJSON_GetObjectItemCaseSensitive(g, "responseJsonSchema");
  }
  c->hash = hash_mix((uint64_t)json_number(g, "seed", 0));
  const cJSON *system = cJSON_GetObjectItemCaseSensitive(body, "systemInstruction");
  if (!system) {
    system = cJSON_GetObjectItemCaseSensitive(body, "system_instruction");
  }
  if (system) call_message(c, "system", system);
  const cJSON *one;
  cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(body, "contents")) {
    const char *role = json_text(one, "role");
    call_message(c, role ? role : "user", one);
  }
  bool fits = c->n >= 1 && c->n <= 8 && c->top >= 0 && c->top <= TOP_MAX;
  if (strncmp(c->model, "no-such", 7) == 0) {
    error_reply(m, r, 404, "The model is not found for API version v1beta.");
  } else if (!call_finish(c) || !fits) {
    error_reply(m, r, 400, "contents must not be empty, candidateCount 1 to 8, logprobs to 20");
  } else {
    return true;
  }
  return false;
}

void gemini_generate(mock *m, const cJSON *body, span model, bool stream, reply *r) {
  char name[MODEL_MAX];
  snprintf(name, sizeof name, "%.*s", (int)(model.len < MODEL_MAX ? model.len : 0), model.at);
  call c = {.api = API_GEMINI, .text = &m->scratch, .model = name, .stream = stream};
  if (!read_call(m, body, &c, r)) return;
  buf *b = r->body;
  long words = 0;
  if (stream) {
    r->sse = true;
    r->type = "text/event-stream";
  } else {
    buf_str(b, "{\"candidates\":[");
  }
  for (int i = 0; i < c.n; i++) {
    answer a;
    answer_make(m, &c, i, &a);
    if (!stream) {
      if (i) buf_str(b, ",");
      candidate(b, &c, &a, i, (span){a.text.data, a.text.len}, finish_of(&a), true);
    }
    for (int k = 0; stream && k < a.word_n; k++) {
      buf_str(b, "data: {\"candidates\":[");
      candidate(b, &c, &a, i, a.words[k], k + 1 == a.word_n ? finish_of(&a) : NULL, false);
      tail_of(b, &c, words + k + 1);
      buf_str(b, "\n\n");
    }
    words += a.word_n;
    answer_free(&a);
  }
  if (!stream) tail_of(b, &c, words);
  r->tokens_in = c.prompt_tokens;
  r->tokens_out = words;
}

void gemini_models(reply *r) {
  const char *const names[] = {"mock", "gemini-2.0-flash"};
  buf_str(r->body, "{\"models\":[");
  for (int i = 0; i < 2; i++) {
    buf_fmt(r->body, "%s{\"name\":\"models/%s\",\"version\":\"001\",\"inputTokenLimit\":1048576,"
            "\"outputTokenLimit\":8192,\"supportedGenerationMethods\":[\"generateContent\"]}",
            i ? "," : "", names[i]);
  }
  buf_str(r->body, "]}");
}
