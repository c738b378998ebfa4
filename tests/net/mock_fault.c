/* Faults of the mock: their names, when they come, and what error replies look like with each
 * service. Which fault meets a request depends on the seed and its number alone. */
#include "mock.h" /* first: it asks for the GNU names */

#include <ctype.h>
#include <time.h>

static const char *const fault_names[FAULT_KINDS] = {
  [FAULT_OK] = "ok",
  [FAULT_STATUS] = "",
  [FAULT_QUOTA] = "quota",               /* 429 that is final */
  [FAULT_RESET] = "reset",               /* no byte, RST */
  [FAULT_RESET_BODY] = "reset_body",     /* RST after half of the body */
  [FAULT_STALL] = "stall",               /* no byte, ever */
  [FAULT_STALL_BODY] = "stall_body",     /* half of the body and no more */
  [FAULT_MALFORMED] = "malformed",       /* 200, broken JSON */
  [FAULT_EMPTY] = "empty",               /* 200, no choices */
  [FAULT_ERROR200] = "error200",         /* 200, an error object */
  [FAULT_SHORT] = "short",               /* fewer bytes than content-length says */
  [FAULT_UTF8] = "invalid_utf8",         /* 200, bytes that are no UTF-8 in the text */
  [FAULT_HTML502] = "html502",           /* a proxy's page */
  [FAULT_REFUSAL] = "refusal",           /* a whole answer that the service's filter stopped */
  [FAULT_STREAM_ERROR] = "stream_error", /* an error event in the middle; else error200 */
  [FAULT_NO_DONE] = "no_done",           /* a stream that ends well, without its end mark */
};

const char *fault_name(fault f) {
  return fault_names[f.kind];
}

bool fault_parse(const char *name, fault *out) {
  if (strlen(name) == 3 && isdigit((unsigned char)name[0])) {
    int status = (int)strtol(name, NULL, 10);
    *out = (fault){FAULT_STATUS, status};
    return status >= 300 && status < 600;
  }
  if (strcmp(name, "safety") == 0) {
    name = "refusal";
  }
  for (int i = 0; i < FAULT_KINDS; i++) {
    if (i != FAULT_STATUS && strcmp(name, fault_names[i]) == 0) {
      *out = (fault){(fault_kind)i, 0};
      return true;
    }
  }
  return false;
}

static bool rate_add(script *s, const char *name, double rate) {
  fault f;
  if (s->rate_n == RATES_MAX || !(rate >= 0 && rate <= 1) || !fault_parse(name, &f)) return false;
  s->rates[s->rate_n].fault = f;
  s->rates[s->rate_n].rate = rate;
  s->rate_n++;
  return true;
}

bool fault_rates(mock *m, const char *list) {
  m->script.rate_n = 0;
  while (*list) {
    char name[32];
    const char *equals = strchr(list, '=');
    if (!equals || equals - list >= (long)sizeof name) return false;
    memcpy(name, list, (size_t)(equals - list));
    name[equals - list] = 0;
    char *end;
    double rate = strtod(equals + 1, &end);
    if (end == equals + 1 || (*end && *end != ',')) return false;
    if (!rate_add(&m->script, name, rate)) return false;
    list = *end ? end + 1 : end;
  }
  return true;
}

fault fault_draw(const mock *m, uint64_t number) {
  double u = hash_unit(hash_mix(m->seed) ^ number);
  for (int i = 0; i < m->script.rate_n; i++) {
    if (u < m->script.rates[i].rate) return m->script.rates[i].fault;
    u -= m->script.rates[i].rate;
  }
  return (fault){FAULT_OK, 0};
}

fault fault_next(mock *m) {
  script *s = &m->script;
  if (s->next_at < s->next_n) return s->next[s->next_at++];
  return fault_draw(m, m->stats.requests);
}

/* ---- POST /script ---- */
static bool script_next(script *s, const cJSON *list) {
  int n = cJSON_GetArraySize(list);
  if (!cJSON_IsArray(list)) return false;
  if (n == 0) {
    s->next_n = s->next_at = 0;
  }
  if (s->next_at) {
    s->next_n -= s->next_at;
    memmove(s->next, s->next + s->next_at, s->next_n * sizeof *s->next);
    s->next_at = 0;
  }
  fault *next = realloc(s->next, (s->next_n + (size_t)n + 1) * sizeof *next);
  if (!next) exit(1);
  s->next = next;
  const cJSON *one;
  cJSON_ArrayForEach(one, list) {
    const char *name = cJSON_GetStringValue(one);
    if (!name || !fault_parse(name, &s->next[s->next_n])) return false;
    s->next_n++;
  }
  return true;
}

static bool script_rates(script *s, const cJSON *rates) {
  s->rate_n = 0;
  const cJSON *one;
  cJSON_ArrayForEach(one, rates) {
    if (!cJSON_IsNumber(one) || !rate_add(s, one->string, one->valuedouble)) return false;
  }
  return cJSON_IsObject(rates) || cJSON_IsNull(rates);
}

static bool script_headers(script *s, const cJSON *list) {
  s->extra.len = 0;
  const cJSON *one;
  cJSON_ArrayForEach(one, list) {
    const char *line = cJSON_GetStringValue(one);
    if (!line) return false;
    buf_fmt(&s->extra, "%s\r\n", line);
  }
  return cJSON_IsArray(list) || cJSON_IsNull(list);
}

static bool script_text(buf *b, const cJSON *text) {
  b->len = 0;
  if (cJSON_IsString(text)) buf_copy(b, text->valuestring);
  return cJSON_IsString(text) || cJSON_IsNull(text);
}

static bool script_one(mock *m, const cJSON *one) {
  script *s = &m->script;
  const char *name = one->string;
  if (strcmp(name, "next") == 0) return script_next(s, one);
  if (strcmp(name, "faults") == 0) return script_rates(s, one);
  if (strcmp(name, "headers") == 0) return script_headers(s, one);
  if (strcmp(name, "retry_after") == 0) return script_text(&s->retry_after, one);
  if (strcmp(name, "reply") == 0) {
    s->has_fixed = cJSON_IsString(one);
    return script_text(&s->fixed, one);
  }
  if (strcmp(name, "echo_headers") == 0) {
    s->echo = cJSON_IsTrue(one);
    return cJSON_IsBool(one);
  }
  if (strcmp(name, "clear") == 0) return cJSON_IsBool(one);
  if (!cJSON_IsNumber(one) || one->valuedouble < 0) return false;
  double x = one->valuedouble;
  if (strcmp(name, "latency_ms") == 0) {
    m->latency_ms = x;
  } else if (strcmp(name, "stream_ms") == 0) {
    m->stream_ms = x;
  } else if (strcmp(name, "sse_cut") == 0) {
    s->sse_cut = (long)x;
  } else if (strcmp(name, "batch_polls") == 0) {
    m->batch_polls = (int)x;
  } else if (strcmp(name, "rpm") == 0) {
    m->rpm = (bucket){x, x, m->now};
  } else if (strcmp(name, "tpm") == 0) {
    m->tpm = (bucket){x, x, m->now};
  } else {
    return false;
  }
  return true;
}

void script_free(mock *m) {
  script *s = &m->script;
  free(s->next);
  free(s->retry_after.data);
  free(s->fixed.data);
  free(s->extra.data);
  *s = (script){.sse_cut = -1};
}

bool script_apply(mock *m, span body, buf *message) {
  cJSON *root = cJSON_ParseWithLength(body.at, body.len);
  bool ok = cJSON_IsObject(root);
  if (!ok) buf_copy(message, "a script is a JSON object");
  if (ok && cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(root, "clear"))) {
    script_free(m);
    stats_clear(m);
  }
  const cJSON *one;
  cJSON_ArrayForEach(one, root) {
    if (!ok) break;
    ok = script_one(m, one);
    if (!ok) {
      message->len = 0;
      buf_fmt(message, "script: unknown name, or a value that does not fit: %s", one->string);
    }
  }
  cJSON_Delete(root);
  return ok;
}

/* ---- error replies ---- */
static const struct {
  int status;
  const char *openai, *code, *anthropic, *gemini, *message;
} shapes[] = {
  {400, "invalid_request_error", NULL, "invalid_request_error", "INVALID_ARGUMENT",
   "The request is not valid."},
  {401, "invalid_request_error", "invalid_api_key", "authentication_error", "UNAUTHENTICATED",
   "Incorrect API key provided."},
  {402, "billing_error", NULL, "billing_error", "FAILED_PRECONDITION",
   "There is a problem with your billing."},
  {403, "permission_error", NULL, "permission_error", "PERMISSION_DENIED",
   "Your key does not have access to this resource."},
  {404, "invalid_request_error", "model_not_found", "not_found_error", "NOT_FOUND",
   "The resource was not found."},
  {408, "timeout", NULL, "timeout_error", "DEADLINE_EXCEEDED", "The request took too long."},
  {409, "conflict", NULL, "invalid_request_error", "ABORTED", "A conflict; try again."},
  {413, "invalid_request_error", NULL, "request_too_large", "INVALID_ARGUMENT",
   "The request is too large."},
  {429, "requests", "rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED",
   "Rate limit reached; try again later."},
  {500, "server_error", NULL, "api_error", "INTERNAL", "The server had an error."},
  {503, "server_error", "server_is_overloaded", "overloaded_error", "UNAVAILABLE",
   "The service is overloaded."},
  {504, "timeout", NULL, "timeout_error", "DEADLINE_EXCEEDED", "The gateway waited too long."},
  {529, "server_error", "server_is_overloaded", "overloaded_error", "UNAVAILABLE", "Overloaded"},
  {0, "api_error", NULL, "api_error", "UNKNOWN", "An error."},
};

void error_object(mock *m, buf *out, api which, int status, const char *code, const char *message) {
  size_t i = 0;
  while (shapes[i].status && shapes[i].status != status) i++;
  buf *text = &m->text;
  buf_copy(text, message ? message : shapes[i].message);
  const request *q = m->request;
  for (int h = 0; m->script.echo && q && h < q->header_n; h++) {
    buf_fmt(text, "\n%.*s: %.*s", (int)q->headers[h].name.len, q->headers[h].name.at,
            (int)q->headers[h].value.len, q->headers[h].value.at);
  }
  if (which == API_ANTHROPIC) {
    buf_fmt(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":",
            shapes[i].anthropic);
    buf_json(out, text->data, text->len);
    buf_fmt(out, "},\"request_id\":\"req_%06llu\"}", (unsigned long long)m->stats.requests);
  } else if (which == API_GEMINI) {
    buf_fmt(out, "{\"error\":{\"code\":%d,\"message\":", status);
    buf_json(out, text->data, text->len);
    buf_fmt(out, ",\"status\":\"%s\"", shapes[i].gemini);
    if (status == 429 && !code) {
      buf_str(out, ",\"details\":[{\"@type\":\"type.googleapis.com/google.rpc.RetryInfo\","
                   "\"retryDelay\":\"0.050s\"}]");
    }
    buf_str(out, "}}");
  } else {
    if (!code) {
      code = shapes[i].code;
    }
    const char *type = code && strcmp(code, "insufficient_quota") == 0 ? code : shapes[i].openai;
    buf_str(out, "{\"error\":{\"message\":");
    buf_json(out, text->data, text->len);
    buf_fmt(out, ",\"type\":\"%s\",\"param\":null,\"code\":", type);
    if (code) {
      buf_json(out, code, strlen(code));
    } else {
      buf_str(out, "null");
    }
    buf_str(out, "}}");
  }
}

static void error_start(reply *r, int status) {
  r->status = status;
  r->sse = false;
  r->type = "application/json";
  r->body->len = 0;
  r->tokens_in = r->tokens_out = 0;
}

void error_reply(mock *m, reply *r, int status, const char *message) {
  error_start(r, status);
  error_object(m, r->body, r->api, status, NULL, message);
}

static void html_reply(mock *m, reply *r, int status, const char *title) {
  error_start(r, status);
  r->type = "text/html";
  buf_fmt(r->body, "<html>\r\n<head><title>%d %s</title></head>\r\n", status, title);
  buf_fmt(r->body, "<body>\r\n<h1>%s</h1>\r\n", title);
  const request *q = m->request;
  for (int h = 0; m->script.echo && q && h < q->header_n; h++) {
    buf_put(r->body, q->headers[h].name.at, q->headers[h].name.len);
    buf_str(r->body, ": ");
    buf_put(r->body, q->headers[h].value.at, q->headers[h].value.len);
    buf_str(r->body, "<br>\r\n");
  }
  buf_str(r->body, "</body>\r\n</html>\r\n");
}

static void rfc3339(buf *b, double in_ms) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  uint64_t ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000 + (uint64_t)in_ms;
  time_t seconds = (time_t)(ms / 1000);
  struct tm parts;
  char text[32];
  gmtime_r(&seconds, &parts);
  strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  buf_fmt(b, "%s.%03dZ", text, (int)(ms % 1000));
}

/* A duration as the OpenAI headers have it: 12ms, 1.5s, 6m0s. */
static void go_duration(buf *b, double ms) {
  if (ms < 1000) {
    buf_fmt(b, "%.0fms", ms);
  } else if (ms < 60000) {
    buf_fmt(b, "%.3gs", ms / 1000);
  } else {
    buf_fmt(b, "%dm%ds", (int)(ms / 60000), (int)(ms / 1000) % 60);
  }
}

static void limit_lines(reply *r, const char *unit, double limit, double left, double reset_ms) {
  buf *h = r->head;
  const char *prefix = r->api == API_ANTHROPIC ? "anthropic-ratelimit-" : "x-ratelimit-";
  const char *parts[3] = {"limit", "remaining", "reset"};
  for (int i = 0; i < 3; i++) {
    if (r->api == API_ANTHROPIC) {
      buf_fmt(h, "%s%s-%s: ", prefix, unit, parts[i]);
    } else {
      buf_fmt(h, "%s%s-%s: ", prefix, parts[i], unit);
    }
    if (i < 2) {
      buf_fmt(h, "%.0f", i == 0 ? limit : left);
    } else if (r->api == API_ANTHROPIC) {
      rfc3339(h, reset_ms);
    } else {
      go_duration(h, reset_ms);
    }
    buf_str(h, "\r\n");
  }
}

static void retry_lines(mock *m, reply *r, double ms, bool in_ms) {
  if (m->script.retry_after.len) {
    buf_fmt(r->head, "retry-after: %s\r\n", m->script.retry_after.data);
  } else if (in_ms && r->api != API_GEMINI) {
    buf_fmt(r->head, "retry-after-ms: %.0f\r\n", ms);
  } else {
    buf_fmt(r->head, "retry-after: %.3f\r\n", ms / 1000);
  }
}

void fault_reply(mock *m, reply *r, fault f) {
  uint64_t h = hash_mix(m->seed ^ (m->stats.requests << 20));
  double ms = 20 + (double)(h % 40);
  if (f.kind == FAULT_HTML502) {
    html_reply(m, r, 502, "Bad Gateway");
  } else if (f.kind == FAULT_QUOTA) {
    error_start(r, 429);
    const char *message = r->api == API_ANTHROPIC
      ? "This request would exceed your organization's monthly spend limit."
      : "You exceeded your current quota, please check your plan and billing details.";
    error_object(m, r->body, r->api, 429, "insufficient_quota", message);
  } else if (f.status == 500) {
    html_reply(m, r, 500, "Internal Server Error");
  } else {
    error_start(r, f.status);
    error_object(m, r->body, r->api, f.status, NULL, NULL);
    if (f.status == 429) {
      retry_lines(m, r, ms, h & 64);
      if (m->rpm.limit <= 0) limit_lines(r, "requests", 1000000, 0, ms);
    } else if (m->script.retry_after.len) {
      retry_lines(m, r, ms, false);
    }
    if (f.status / 100 == 3) buf_str(r->head, "location: http://127.0.0.1:9/elsewhere\r\n");
  }
}

/* ---- what a 200 can be instead of an answer ---- */
static void error_event(mock *m, reply *r, buf *out) {
  buf_str(out, r->api == API_ANTHROPIC ? "event: error\ndata: " : "data: ");
  int status = r->api == API_ANTHROPIC ? 529 : 500;
  error_object(m, out, r->api, status, NULL, NULL);
  buf_str(out, "\n\n");
}

static size_t event_border(const buf *b, size_t from) {
  span tail = span_find((span){b->data + from, b->len - from}, "\n\n");
  return tail.at ? (size_t)(tail.at - b->data) + 2 : b->len;
}

void fault_body(mock *m, reply *r) {
  buf *b = r->body;
  switch (m->fault.kind) {
    case FAULT_MALFORMED:
      b->len = r->sse ? event_border(b, b->len / 2) : b->len / 2;
      buf_str(b, r->sse ? "data: {malformed: <<<\n\n" : "<<<malformed");
      break;
    case FAULT_EMPTY:
      b->len = 0;
      if (r->sse) {
        buf_str(b, r->api == API_OPENAI ? "data: [DONE]\n\n" : ": nothing\n\n");
      } else if (r->api == API_OPENAI) {
        buf_str(b, "{\"id\":\"chatcmpl-empty\",\"object\":\"chat.completion\","
                   "\"created\":1700000000,\"model\":\"mock\",\"choices\":null,\"usage\":null}");
      } else if (r->api == API_ANTHROPIC) {
        buf_str(b, "{\"id\":\"msg_empty\",\"type\":\"message\",\"role\":\"assistant\","
                   "\"model\":\"mock\",\"content\":[],\"stop_reason\":\"end_turn\","
                   "\"stop_sequence\":null,\"usage\":{\"input_tokens\":1,\"output_tokens\":0}}");
      } else {
        buf_str(b, "{\"usageMetadata\":{\"promptTokenCount\":1,\"totalTokenCount\":1}}");
      }
      break;
    case FAULT_ERROR200:
      b->len = 0;
      if (r->sse) {
        error_event(m, r, b);
      } else {
        error_object(m, b, r->api, 500, NULL, NULL);
      }
      break;
    case FAULT_STREAM_ERROR:
      b->len = r->sse ? event_border(b, b->len / 2) : 0;
      if (r->sse) {
        error_event(m, r, b);
      } else {
        error_object(m, b, r->api, 500, NULL, NULL);
      }
      break;
    case FAULT_NO_DONE: {
      if (!r->sse) {
        m->fault.kind = FAULT_OK;
        break;
      }
      size_t at = 0, last = 0;
      while (at < b->len) {
        last = at;
        at = event_border(b, at);
      }
      b->len = last;
      break;
    }
    default:
      break;
  }
}

/* ---- limits ---- */
static void bucket_fill(bucket *b, uint64_t now) {
  if (b->at) {
    b->left += (double)(now - b->at) * b->limit / 60e9;
  }
  if (b->left > b->limit) {
    b->left = b->limit;
  }
  b->at = now;
}

static double bucket_ms(const bucket *b, double wanted) {
  return b->limit > 0 && b->left < wanted ? (wanted - b->left) / b->limit * 60000 : 0;
}

void limits_headers(mock *m, reply *r) {
  const bucket *q = &m->rpm, *t = &m->tpm;
  if (q->limit > 0) {
    limit_lines(r, "requests", q->limit, q->left > 0 ? q->left : 0, bucket_ms(q, q->limit));
  }
  if (t->limit > 0) {
    limit_lines(r, "tokens", t->limit, t->left > 0 ? t->left : 0, bucket_ms(t, t->limit));
  }
}

bool limits_take(mock *m, reply *r) {
  bucket_fill(&m->rpm, m->now);
  bucket_fill(&m->tpm, m->now);
  double a = bucket_ms(&m->rpm, 1), b = bucket_ms(&m->tpm, 0);
  if (a <= 0 && b <= 0) {
    m->rpm.left -= 1;
    return true;
  }
  m->stats.limited++;
  error_reply(m, r, 429, NULL);
  retry_lines(m, r, a > b ? a : b, false);
  return false;
}

void limits_charge(mock *m, long tokens) {
  m->tpm.left -= (double)tokens;
}
