/* Files and batches of the mock. A batch is done after --batch-polls looks at it; its results
 * come in another order than its requests, and the rates of the faults decide which of them
 * fail: a stall is an expired request, any other fault an error. Lists do not count as looks. */
#include "mock.h" /* first: it asks for the GNU names */

#include <time.h>

void batches_free(mock *m) {
  for (size_t i = 0; i < m->batch_n; i++) {
    free(m->batches[i].metadata.data);
    free(m->batches[i].results.data);
    cJSON_Delete(m->batches[i].requests);
  }
  free(m->batches);
}

/* ---- the requests of a batch ---- */
static int by_hash(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/* Both services refuse a custom_id that comes twice. */
static bool ids_differ(const cJSON *requests) {
  int n = cJSON_GetArraySize(requests), i = 0;
  uint64_t *hashes = calloc((size_t)n + 1, sizeof *hashes);
  if (!hashes) exit(1);
  const cJSON *one;
  cJSON_ArrayForEach(one, requests) {
    const char *id = json_text(one, "custom_id");
    hashes[i++] = hash_bytes(0, id, strlen(id));
  }
  qsort(hashes, (size_t)n, sizeof *hashes, by_hash);
  bool differ = true;
  for (i = 1; i < n; i++) {
    if (hashes[i] == hashes[i - 1]) {
      differ = false;
    }
  }
  free(hashes);
  return differ;
}

/* Fills b->requests from the JSON lines of the file; what is wrong goes to b->problem. */
static void read_lines(batch *b, const buf *file) {
  b->requests = cJSON_CreateArray();
  size_t at = 0;
  int line = 0;
  while (at < file->len && !b->problem[0]) {
    const char *eol = memchr(file->data + at, '\n', file->len - at);
    size_t len = eol ? (size_t)(eol - file->data) - at : file->len - at;
    line++;
    cJSON *one = cJSON_ParseWithLength(file->data + at, len);
    const char *url = json_text(one, "url"), *method = json_text(one, "method");
    bool fits = json_text(one, "custom_id") && url && strcmp(url, b->endpoint) == 0 && method &&
                strcmp(method, "POST") == 0 &&
                cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(one, "body"));
    if (fits) {
      cJSON_AddItemToArray(b->requests, one);
      b->total++;
    } else {
      cJSON_Delete(one);
      snprintf(b->problem, sizeof b->problem, "Line %d is no request for %s.", line, b->endpoint);
    }
    at += len + 1;
  }
  if (b->problem[0]) return;
  if (b->total == 0) {
    snprintf(b->problem, sizeof b->problem, "The file is empty.");
  } else if (!ids_differ(b->requests)) {
    snprintf(b->problem, sizeof b->problem, "A custom_id comes twice.");
  }
}

/* ---- results ---- */
typedef enum { LINE_GOOD, LINE_BAD, LINE_EXPIRED } line_end;

/* The reply to one request of a batch; `one` is empty before. */
static line_end answer_line(mock *m, batch *b, const cJSON *body, reply *one) {
  fault before = m->fault, f = fault_draw(m, ((uint64_t)1 << 40) + m->batch_lines);
  m->batch_lines++;
  m->stats.batch_requests++;
  if (f.kind == FAULT_STALL || f.kind == FAULT_STALL_BODY) return LINE_EXPIRED;
  bool whole = f.kind == FAULT_OK || f.kind == FAULT_UTF8 || f.kind == FAULT_REFUSAL;
  m->fault = f;
  if (!whole) {
    int status = f.kind == FAULT_STATUS ? f.status : f.kind == FAULT_QUOTA ? 429 : 500;
    error_reply(m, one, status, NULL);
  } else if (json_true(body, "stream")) {
    error_reply(m, one, 400, "stream: not in a batch");
  } else if (b->api == API_ANTHROPIC) {
    anthropic_messages(m, body, one);
  } else if (strcmp(b->endpoint, "/v1/completions") == 0) {
    openai_completions(m, body, one);
  } else {
    openai_chat(m, body, one);
  }
  m->fault = before;
  m->stats.tokens_in += (uint64_t)one->tokens_in;
  m->stats.tokens_out += (uint64_t)one->tokens_out;
  return one->status == 200 ? LINE_GOOD : LINE_BAD;
}

static void openai_line(batch *b, const char *id, line_end end, const reply *one, buf *out) {
  buf_fmt(out, "{\"id\":\"batch_req_%d\",\"custom_id\":", b->good + b->bad + b->expired);
  buf_json(out, id, strlen(id));
  if (end == LINE_EXPIRED) {
    buf_str(out, ",\"response\":null,\"error\":{\"code\":\"batch_expired\",\"message\":\"This "
                 "request could not be executed before the completion window expired.\"}}\n");
    return;
  }
  buf_fmt(out, ",\"response\":{\"status_code\":%d,\"request_id\":\"req_%s_%d\",\"body\":",
          one->status, b->id, b->good + b->bad);
  buf_put(out, one->body->data, one->body->len);
  buf_str(out, "},\"error\":null}\n");
}

static void anthropic_line(const char *id, line_end end, const reply *one, buf *out) {
  buf_str(out, "{\"custom_id\":");
  buf_json(out, id, strlen(id));
  if (end == LINE_EXPIRED) {
    buf_str(out, ",\"result\":{\"type\":\"expired\"}}\n");
    return;
  }
  buf_str(out, end == LINE_GOOD ? ",\"result\":{\"type\":\"succeeded\",\"message\":"
                                : ",\"result\":{\"type\":\"errored\",\"error\":");
  buf_put(out, one->body->data, one->body->len);
  buf_str(out, "}}\n");
}

/* Answers the requests in an order drawn from the batch; a cancelled batch, half of them. */
static void batch_finish(mock *m, batch *b) {
  int n = b->total, answered = b->cancelled ? n / 2 : n;
  const cJSON **order = calloc((size_t)n + 1, sizeof(const cJSON *));
  if (!order) exit(1);
  int i = 0;
  const cJSON *each;
  cJSON_ArrayForEach(each, b->requests) order[i++] = each;
  for (i = n - 1; i > 0; i--) {
    int j = (int)(hash_mix((uint64_t)i ^ m->seed) % (uint64_t)(i + 1));
    const cJSON *held = order[i];
    order[i] = order[j];
    order[j] = held;
  }
  buf good = {0}, bad = {0}, body = {0}, head = {0};
  for (i = 0; i < n; i++) {
    const char *id = json_text(order[i], "custom_id");
    const char *key = b->api == API_ANTHROPIC ? "params" : "body";
    if (i >= answered) {
      b->cancelled_n++;
      if (b->api != API_ANTHROPIC) continue;
      buf_str(&good, "{\"custom_id\":");
      buf_json(&good, id, strlen(id));
      buf_str(&good, ",\"result\":{\"type\":\"canceled\"}}\n");
      continue;
    }
    body.len = 0;
    reply one = {b->api, 200, "", false, &head, &body, 0, 0};
    line_end end = answer_line(m, b, cJSON_GetObjectItemCaseSensitive(order[i], key), &one);
    b->good += end == LINE_GOOD;
    b->bad += end == LINE_BAD;
    b->expired += end == LINE_EXPIRED;
    if (b->api == API_ANTHROPIC) {
      anthropic_line(id, end, &one, &good);
    } else {
      openai_line(b, id, end, &one, end == LINE_GOOD ? &good : &bad);
    }
  }
  if (b->api == API_ANTHROPIC) {
    b->results = good;
    good = (buf){0};
  }
  buf *made[2] = {&good, &bad};
  char *ids[2] = {b->output, b->errors};
  for (int k = 0; k < 2; k++) {
    if (!made[k]->len) continue;
    stored *f = file_add(m, "batch_output");
    snprintf(ids[k], sizeof b->output, "%s", f->id);
    free(f->data.data);
    f->data = *made[k];
    *made[k] = (buf){0};
  }
  free(good.data);
  free(bad.data);
  free(body.data);
  free(head.data);
  free(order);
  b->done = true;
}

static void batch_poll(mock *m, batch *b) {
  if (b->done || b->failed) return;
  b->polls++;
  if (b->problem[0]) {
    b->failed = true;
  } else if (b->cancelled || b->polls >= m->batch_polls) {
    batch_finish(m, b);
  }
}

static batch *batch_add(mock *m, api which) {
  m->batches = realloc(m->batches, (m->batch_n + 1) * sizeof *m->batches);
  if (!m->batches) exit(1);
  batch *b = &m->batches[m->batch_n++];
  *b = (batch){.api = which, .created = time(NULL)};
  snprintf(b->id, sizeof b->id, which == API_ANTHROPIC ? "msgbatch_%zu" : "batch_%zu", m->batch_n);
  return b;
}

/* What follows the prefix: "/ID" or "/ID/action". */
static batch *batch_find(mock *m, api which, span rest, span *action) {
  if (rest.len == 0) return NULL;
  span id = {rest.at + 1, rest.len - 1};
  *action = span_find(id, "/");
  id.len -= action->len;
  for (size_t i = 0; i < m->batch_n; i++) {
    if (m->batches[i].api == which && span_is(id, m->batches[i].id)) return &m->batches[i];
  }
  return NULL;
}

/* ---- OpenAI ---- */
static void text_or_null(buf *out, const char *key, const char *text) {
  buf_fmt(out, text[0] ? ",\"%s\":\"%s\"" : ",\"%s\":null", key, text);
}

static const char *openai_state(const batch *b) {
  if (b->failed) return "failed";
  if (b->done) return b->cancelled ? "cancelled" : "completed";
  if (b->cancelled) return "cancelling";
  return b->polls ? "in_progress" : "validating";
}

static void openai_object(const batch *b, buf *out) {
  bool completed = b->done && !b->cancelled;
  buf_fmt(out, "{\"id\":\"%s\",\"object\":\"batch\",\"endpoint\":\"%s\",\"errors\":", b->id,
          b->endpoint);
  if (b->failed) {
    buf_str(out, "{\"object\":\"list\",\"data\":[{\"code\":\"invalid_json_line\",\"message\":");
    buf_json(out, b->problem, strlen(b->problem));
    buf_str(out, ",\"param\":null,\"line\":null}]}");
  } else {
    buf_str(out, "null");
  }
  buf_fmt(out, ",\"input_file_id\":\"%s\",\"completion_window\":\"24h\",\"status\":\"%s\"",
          b->input, openai_state(b));
  text_or_null(out, "output_file_id", b->output);
  text_or_null(out, "error_file_id", b->errors);
  buf_fmt(out, ",\"created_at\":%d,\"expires_at\":%d,\"completed_at\":", CREATED, CREATED + 86400);
  buf_str(out, completed ? "1704067260" : "null");
  buf_fmt(out, ",\"request_counts\":{\"total\":%d,\"completed\":%d,\"failed\":%d},\"metadata\":",
          b->total, b->good, b->bad + b->expired);
  buf_put(out, b->metadata.data, b->metadata.len);
  buf_str(out, "}");
}

static void openai_create(mock *m, const request *q, reply *r) {
  cJSON *body = cJSON_ParseWithLength(q->body.at, q->body.len);
  const char *input = json_text(body, "input_file_id"), *endpoint = json_text(body, "endpoint");
  const char *window = json_text(body, "completion_window");
  const stored *f = input ? file_find(m, (span){input, strlen(input)}) : NULL;
  bool known = endpoint && (strcmp(endpoint, "/v1/chat/completions") == 0 ||
                            strcmp(endpoint, "/v1/completions") == 0);
  if (!f || !known || !window || strcmp(window, "24h") != 0) {
    error_reply(m, r, 400, "A batch needs input_file_id, endpoint and completion_window 24h.");
  } else {
    batch *b = batch_add(m, API_OPENAI);
    snprintf(b->input, sizeof b->input, "%s", f->id);
    snprintf(b->endpoint, sizeof b->endpoint, "%s", endpoint);
    const cJSON *data = cJSON_GetObjectItemCaseSensitive(body, "metadata");
    char *metadata = cJSON_IsObject(data) ? cJSON_PrintUnformatted(data) : NULL;
    buf_str(&b->metadata, metadata ? metadata : "null");
    free(metadata);
    read_lines(b, &f->data);
    openai_object(b, r->body);
  }
  cJSON_Delete(body);
}

/* ---- Anthropic ---- */
static void message_batch_object(const batch *b, buf *out) {
  char created[32];
  struct tm at;
  strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&b->created, &at));
  bool done = b->done;
  buf_fmt(out, "{\"id\":\"%s\",\"type\":\"message_batch\",\"processing_status\":\"%s\"", b->id,
          done ? "ended" : b->cancelled ? "canceling" : "in_progress");
  buf_fmt(out, ",\"request_counts\":{\"processing\":%d,\"succeeded\":%d,\"errored\":%d,"
               "\"canceled\":%d,\"expired\":%d}", done ? 0 : b->total, b->good, b->bad,
          b->cancelled_n, b->expired);
  text_or_null(out, "created_at", created);
  text_or_null(out, "expires_at", "2024-01-02T00:00:00Z");
  text_or_null(out, "ended_at", done ? "2024-01-01T00:01:00Z" : "");
  text_or_null(out, "archived_at", "");
  text_or_null(out, "cancel_initiated_at", b->cancelled ? created : "");
  buf_str(out, ",\"results_url\":");
  if (done) {
    buf_fmt(out, "\"http://%s/v1/messages/batches/%s/results\"}", b->host, b->id);
  } else {
    buf_str(out, "null}");
  }
}

static void message_batch_create(mock *m, const request *q, reply *r) {
  cJSON *body = cJSON_ParseWithLength(q->body.at, q->body.len);
  cJSON *list = cJSON_DetachItemFromObjectCaseSensitive(body, "requests");
  const char *problem = cJSON_GetArraySize(list) ? NULL : "requests: Field required";
  const cJSON *one;
  cJSON_ArrayForEach(one, list) {
    bool fits = json_text(one, "custom_id") &&
                cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(one, "params"));
    if (!fits) {
      problem = "requests: each needs custom_id and params";
    }
  }
  if (!problem && !ids_differ(list)) {
    problem = "requests: a custom_id comes twice";
  }
  if (problem) {
    error_reply(m, r, 400, problem);
    cJSON_Delete(list);
  } else {
    batch *b = batch_add(m, API_ANTHROPIC);
    span host = http_header(q, "host");
    snprintf(b->host, sizeof b->host, "%.*s", (int)host.len, host.at ? host.at : "");
    b->requests = list;
    b->total = cJSON_GetArraySize(list);
    message_batch_object(b, r->body);
  }
  cJSON_Delete(body);
}

/* ---- both ---- */
/* The newest first. */
static void batch_list(mock *m, api which, const request *q, reply *r) {
  span limit = http_query(q, "limit"), after = http_query(q, "after");
  if (!after.at) {
    after = http_query(q, "after_id");
  }
  long most = limit.at ? strtol(limit.at, NULL, 10) : 20, n = 0;
  bool more = false, on = !after.at;
  const char *first = "", *last = "";
  buf_str(r->body, "{\"object\":\"list\",\"data\":[");
  for (size_t i = m->batch_n; i-- > 0;) {
    const batch *b = &m->batches[i];
    if (b->api != which) continue;
    if (!on) {
      on = span_is(after, b->id);
      continue;
    }
    more = n == most;
    if (more) break;
    if (n++) buf_str(r->body, ",");
    if (which == API_ANTHROPIC) {
      message_batch_object(b, r->body);
    } else {
      openai_object(b, r->body);
    }
    if (!first[0]) {
      first = b->id;
    }
    last = b->id;
  }
  buf_str(r->body, "]");
  text_or_null(r->body, "first_id", first);
  text_or_null(r->body, "last_id", last);
  buf_fmt(r->body, ",\"has_more\":%s}", more ? "true" : "false");
}

void batch_route(mock *m, const request *q, span rest, reply *r) {
  bool get = span_is(q->method, "GET");
  span action = {0};
  batch *b = batch_find(m, API_OPENAI, rest, &action);
  if (rest.len == 0 && get) {
    batch_list(m, API_OPENAI, q, r);
  } else if (rest.len == 0) {
    openai_create(m, q, r);
  } else if (b && get && action.len == 0) {
    batch_poll(m, b);
    openai_object(b, r->body);
  } else if (b && !get && span_is(action, "/cancel")) {
    b->cancelled = b->cancelled || (!b->done && !b->failed);
    openai_object(b, r->body);
  } else {
    error_reply(m, r, 404, "No batch found with this id.");
  }
}

void message_batch_route(mock *m, const request *q, span rest, reply *r) {
  bool get = span_is(q->method, "GET");
  span action = {0};
  batch *b = batch_find(m, API_ANTHROPIC, rest, &action);
  if (rest.len == 0 && get) {
    batch_list(m, API_ANTHROPIC, q, r);
  } else if (rest.len == 0) {
    message_batch_create(m, q, r);
  } else if (b && get && action.len == 0) {
    batch_poll(m, b);
    message_batch_object(b, r->body);
  } else if (b && get && b->done && span_is(action, "/results")) {
    r->type = "application/x-jsonl";
    buf_put(r->body, b->results.data, b->results.len);
  } else if (b && !get && span_is(action, "/cancel")) {
    b->cancelled = b->cancelled || !b->done;
    message_batch_object(b, r->body);
  } else {
    error_reply(m, r, 404, "No such batch, or it has no results yet.");
  }
}
