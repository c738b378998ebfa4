/* Which path leads where, and the order of things that can go wrong with a request: key, fault,
 * limits, then the service's own checks. */
#include "mock.h"

const char *json_text(const cJSON *object, const char *key) {
  return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

double json_number(const cJSON *object, const char *key, double otherwise) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
  return cJSON_IsNumber(v) ? v->valuedouble : otherwise;
}

bool json_true(const cJSON *object, const char *key) {
  return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, key));
}

/* The paths of the tests' own; false: a path of a service. */
static bool route_own(mock *m, const request *q, reply *r) {
  bool get = span_is(q->method, "GET");
  if (span_is(q->path, "/health") && get) {
    buf_str(r->body, "{\"status\": \"ok\"}\n");
  } else if (span_is(q->path, "/stats") && get) {
    stats_write(m, r->body);
  } else if (span_is(q->path, "/ids") && get) {
    r->type = "text/plain";
    stats_ids(m, r->body);
  } else if (span_is(q->path, "/script") && !get) {
    buf *message = &m->scratch;
    if (script_apply(m, q->body, message)) {
      buf_str(r->body, "{\"ok\": true}\n");
    } else {
      error_reply(m, r, 400, message->data);
    }
  } else {
    return false;
  }
  return true;
}

static bool key_fits(const mock *m, const request *q) {
  if (!m->key) return true;
  span bearer = http_header(q, "authorization");
  if (span_starts(bearer, "Bearer ")) {
    bearer.at += 7;
    bearer.len -= 7;
    if (span_is(bearer, m->key)) return true;
  }
  return span_is(http_header(q, "x-api-key"), m->key) ||
         span_is(http_header(q, "x-goog-api-key"), m->key) || span_is(http_query(q, "key"), m->key);
}

static span after(span path, const char *prefix) {
  return (span){path.at + strlen(prefix), path.len - strlen(prefix)};
}

/* The routes that take a JSON object. */
static void route_json(mock *m, const request *q, reply *r) {
  cJSON *body = cJSON_ParseWithLength(q->body.at, q->body.len);
  span path = q->path;
  span gemini = span_starts(path, "/v1beta/models/") ? after(path, "/v1beta/models/") : (span){0};
  span action = span_find(gemini, ":");
  span model = {gemini.at, gemini.len - action.len};
  if (!cJSON_IsObject(body)) {
    error_reply(m, r, 400, "We could not parse the JSON body of your request.");
  } else if (span_is(path, "/v1/chat/completions")) {
    openai_chat(m, body, r);
  } else if (span_is(path, "/v1/completions")) {
    openai_completions(m, body, r);
  } else if (span_is(path, "/v1/messages")) {
    anthropic_messages(m, body, r);
  } else if (span_is(action, ":generateContent")) {
    gemini_generate(m, body, model, false, r);
  } else if (span_is(action, ":streamGenerateContent") && span_is(http_query(q, "alt"), "sse")) {
    gemini_generate(m, body, model, true, r);
  } else {
    error_reply(m, r, 404, "Unknown request URL.");
  }
  cJSON_Delete(body);
}

static void route_service(mock *m, const request *q, reply *r) {
  span path = q->path;
  bool get = span_is(q->method, "GET"), post = span_is(q->method, "POST");
  if (!get && !post) {
    error_reply(m, r, 405, "This method is not allowed here.");
  } else if (get && span_is(path, "/v1/models")) {
    if (r->api == API_ANTHROPIC) {
      anthropic_models(r);
    } else {
      openai_models(r);
    }
  } else if (get && span_is(path, "/v1beta/models")) {
    gemini_models(r);
  } else if (span_starts(path, "/v1/files")) {
    files_route(m, q, after(path, "/v1/files"), r);
  } else if (span_starts(path, "/v1/batches")) {
    batch_route(m, q, after(path, "/v1/batches"), r);
  } else if (span_starts(path, "/v1/messages/batches")) {
    message_batch_route(m, q, after(path, "/v1/messages/batches"), r);
  } else if (post) {
    route_json(m, q, r);
  } else {
    error_reply(m, r, 404, "Unknown request URL.");
  }
}

void route(mock *m, const request *q, reply *r) {
  if (span_starts(q->path, "/v1/messages")) {
    r->api = API_ANTHROPIC;
  }
  if (span_starts(q->path, "/v1beta/")) {
    r->api = API_GEMINI;
  }
  if (span_is(q->path, "/v1/models") && http_header(q, "anthropic-version").at) {
    r->api = API_ANTHROPIC;
  }
  if (route_own(m, q, r)) return;
  stats_request(m, q);
  buf_fmt(r->head, "%s: req_%06llu\r\n", r->api == API_ANTHROPIC ? "request-id" : "x-request-id",
          (unsigned long long)m->stats.requests);
  if (m->script.extra.len) buf_put(r->head, m->script.extra.data, m->script.extra.len);
  if (!key_fits(m, q)) {
    error_reply(m, r, 401, NULL);
    return;
  }
  m->fault = fault_next(m);
  if (m->fault.kind == FAULT_RESET || m->fault.kind == FAULT_STALL) return;
  if (m->fault.kind == FAULT_STATUS || m->fault.kind == FAULT_QUOTA ||
      m->fault.kind == FAULT_HTML502) {
    fault_reply(m, r, m->fault);
  } else if (limits_take(m, r)) {
    route_service(m, q, r);
    if (r->status == 200) {
      limits_charge(m, r->tokens_in + r->tokens_out);
      fault_body(m, r);
    }
  }
  limits_headers(m, r);
}
