/* What the mock counted: the figures a client's ledger is held against. Every counted request
 * has one record: its client request id and how it ended. */
#include "mock.h"

enum { ID_BYTES_MAX = 200 };

/* True when this id came before. */
static bool seen_before(stats *s, uint64_t h) {
  if (s->seen_n * 2 >= s->seen_cap) {
    size_t cap = s->seen_cap ? s->seen_cap * 2 : 1024;
    uint64_t *table = calloc(cap, sizeof *table);
    if (!table) exit(1);
    for (size_t i = 0; i < s->seen_cap; i++) {
      if (!s->seen[i]) continue;
      size_t at = s->seen[i] & (cap - 1);
      while (table[at]) {
        at = (at + 1) & (cap - 1);
      }
      table[at] = s->seen[i];
    }
    free(s->seen);
    s->seen = table;
    s->seen_cap = cap;
  }
  if (!h) {
    h = 1;
  }
  size_t at = h & (s->seen_cap - 1);
  while (s->seen[at] && s->seen[at] != h) {
    at = (at + 1) & (s->seen_cap - 1);
  }
  if (s->seen[at]) return true;
  s->seen[at] = h;
  s->seen_n++;
  return false;
}

void stats_request(mock *m, const request *q) {
  stats *s = &m->stats;
  if (s->requests == s->record_cap) {
    s->record_cap = s->record_cap ? s->record_cap * 2 : 1024;
    s->records = realloc(s->records, s->record_cap * sizeof *s->records);
    if (!s->records) exit(1);
  }
  span id = http_header(q, "x-client-request-id");
  if (!id.len) {
    id = http_header(q, "idempotency-key");
  }
  if (id.len > ID_BYTES_MAX) {
    id.len = ID_BYTES_MAX;
  }
  s->records[s->requests] = (record){s->ids.len, (uint32_t)id.len, 0, "open"};
  buf_put(&s->ids, id.at, id.len);
  s->requests++;
  s->in_flight++;
  if (s->in_flight > s->max_in_flight) {
    s->max_in_flight = s->in_flight;
  }
  if (id.len && seen_before(s, hash_bytes(0, id.at, id.len))) s->repeats++;
  if (m->log) {
    fprintf(m->log, "%.3f %llu %.*s %.*s\n", (double)(m->now - m->started) / 1e6,
            (unsigned long long)s->requests, (int)q->method.len, q->method.at, (int)q->path.len,
            q->path.at);
  }
}

void stats_stall(mock *m, uint64_t number) {
  m->stats.records[number - m->stats.base - 1].how = "stall";
  m->stats.stalls++;
}

void stats_end(mock *m, uint64_t number, int status, const char *how) {
  stats *s = &m->stats;
  if (number <= s->base) return; /* counted before the counters were cleared */
  record *r = &s->records[number - s->base - 1];
  r->status = status;
  r->how = how;
  if (s->in_flight) s->in_flight--;
  if (status > 0 && status < 600) s->by_status[status]++;
  if (!how && status == 200) s->answered++;
  if (how && strncmp(how, "reset", 5) == 0) s->resets++;
  if (how && strcmp(how, "gone") == 0) s->gone++;
  if (how && strcmp(how, "malformed") == 0) s->malformed++;
  if (m->log) {
    fprintf(m->log, "%.3f %llu ", (double)(m->now - m->started) / 1e6, (unsigned long long)number);
    if (how) {
      fprintf(m->log, "%s\n", how);
    } else {
      fprintf(m->log, "%d\n", status);
    }
  }
}

void stats_write(const mock *m, buf *out) {
  const stats *s = &m->stats;
  const struct {
    const char *name;
    uint64_t n;
  } rows[] = {
    {"requests", s->requests}, {"answered", s->answered}, {"resets", s->resets},
    {"stalls", s->stalls}, {"malformed", s->malformed}, {"gone", s->gone}, {"limited", s->limited},
    {"connections", s->connections}, {"in_flight", s->in_flight},
    {"max_in_flight", s->max_in_flight}, {"tokens_in", s->tokens_in},
    {"tokens_out", s->tokens_out}, {"batch_requests", s->batch_requests},
    {"by_id_repeats", s->repeats},
  };
  buf_str(out, "{");
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    buf_fmt(out, "\"%s\": %llu, ", rows[i].name, (unsigned long long)rows[i].n);
  }
  buf_str(out, "\"by_status\": {");
  const char *comma = "";
  for (int i = 0; i < 600; i++) {
    if (!s->by_status[i]) continue;
    buf_fmt(out, "%s\"%d\": %llu", comma, i, (unsigned long long)s->by_status[i]);
    comma = ", ";
  }
  buf_str(out, "}}\n");
}

void stats_ids(const mock *m, buf *out) {
  const stats *s = &m->stats;
  for (uint64_t i = 0; i < s->requests; i++) {
    const record *r = &s->records[i];
    buf_put(out, r->id_len ? s->ids.data + r->id_at : "-", r->id_len ? r->id_len : 1);
    if (r->how) {
      buf_fmt(out, " %s\n", r->how);
    } else {
      buf_fmt(out, " %d\n", r->status);
    }
  }
}

void stats_clear(mock *m) {
  stats *s = &m->stats;
  free(s->records);
  free(s->seen);
  free(s->ids.data);
  *s = (stats){.connections = s->connections, .base = s->base + s->requests};
}
