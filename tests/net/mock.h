/* The parts of the mock of AI services, shared between its files; mock.c says what it does.
 * One thread, one `mock` object. Memory that runs out ends the program: it is a test tool,
 * and nothing outside tests/net may include this. */
#ifndef PL_TESTS_MOCK_H
#define PL_TESTS_MOCK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bytes (mock_http.c) ---- */
typedef struct {
  char *data;
  size_t len, cap;
} buf;

typedef struct {
  const char *at;
  size_t len;
} span;

void buf_need(buf *b, size_t more);
void buf_put(buf *b, const void *at, size_t len);
void buf_str(buf *b, const char *text);
void buf_fmt(buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_json(buf *b, const char *at, size_t len); /* as a JSON string with its quotes */
void buf_copy(buf *b, const char *text);           /* replaces what was there */

static inline bool span_is(span s, const char *text) {
  return s.len == strlen(text) && memcmp(s.at, text, s.len) == 0;
}
static inline bool span_starts(span s, const char *text) {
  return s.len >= strlen(text) && memcmp(s.at, text, strlen(text)) == 0;
}
span span_find(span text, const char *what); /* from the first match to the end, or empty */

uint64_t hash_mix(uint64_t x);
uint64_t hash_bytes(uint64_t h, const void *at, size_t len);
double hash_unit(uint64_t h); /* [0, 1) */

/* ---- HTTP (mock_http.c) ---- */
enum { HEADERS_MAX = 64, HEAD_MAX = 64 << 10, BODY_MAX = 8 << 20, UPLOAD_MAX = 256 << 20 };

typedef struct {
  span method, path, query;
  struct {
    span name, value;
  } headers[HEADERS_MAX];
  int header_n;
  span body;
  bool keep_alive;
} request;

span http_header(const request *q, const char *name); /* at = NULL: not there */
span http_query(const request *q, const char *name);

/* Where one message stands in a growing buffer. */
typedef struct {
  size_t scanned, body_at, body_len, body_want;
  bool has_head, chunked, expect;
  size_t chunk_left; /* of the present chunk, with its CRLF; 0: a size line comes */
} framing;

enum { HTTP_MORE = 0, HTTP_WHOLE = 1, HTTP_CONTINUE = 2 }; /* a status >= 400: refused */
/* Looks at in[0..len); on HTTP_WHOLE fills q and *used. A chunked body is joined in place. */
int http_read(framing *f, char *in, size_t len, request *q, size_t *used);

typedef enum { API_OPENAI, API_ANTHROPIC, API_GEMINI } api;

typedef struct {
  api api;
  int status;
  const char *type; /* content type */
  bool sse;
  buf *head;        /* further header lines, each with its CRLF */
  buf *body;
  long tokens_in, tokens_out;
} reply;

typedef struct {
  bool keep_alive; /* becomes false where the end of the reply is the end of the connection */
  bool broken;     /* less than the head promises */
  size_t cut;      /* of a stream: so many bytes, then a clean end; SIZE_MAX: all */
} frame;

/* Appends head and body; returns the length of the head. A chunk of a stream is an event. */
size_t http_write(buf *out, const reply *r, frame *f);

/* ---- faults (mock_fault.c) ---- */
typedef enum {
  FAULT_OK,
  FAULT_STATUS,
  FAULT_QUOTA,
  FAULT_RESET,
  FAULT_RESET_BODY,
  FAULT_STALL,
  FAULT_STALL_BODY,
  FAULT_MALFORMED,
  FAULT_EMPTY,
  FAULT_ERROR200,
  FAULT_SHORT,
  FAULT_UTF8,
  FAULT_HTML502,
  FAULT_REFUSAL,
  FAULT_STREAM_ERROR,
  FAULT_NO_DONE,
  FAULT_KINDS
} fault_kind;

typedef struct {
  fault_kind kind;
  int status; /* of FAULT_STATUS */
} fault;

enum { RATES_MAX = 32, MODEL_MAX = 128 };

typedef struct {
  struct {
    fault fault;
    double rate;
  } rates[RATES_MAX];
  int rate_n;
  fault *next; /* queue for the very next requests */
  size_t next_n, next_at;
  buf retry_after, fixed, extra; /* extra: header lines of every reply */
  bool has_fixed, echo;
  long sse_cut; /* -1: none */
} script;

/* A bucket that holds `limit` and refills in a minute. limit 0: no limit. */
typedef struct {
  double limit, left;
  uint64_t at; /* ns */
} bucket;

/* ---- counting (mock_stats.c) ---- */
typedef struct {
  size_t id_at;
  uint32_t id_len;
  int status;      /* of the reply; 0: none */
  const char *how; /* fault name, "gone", "open"; NULL: the status says it */
} record;

typedef struct {
  uint64_t base; /* numbers given before the last clearing */
  uint64_t requests, answered, resets, stalls, malformed, connections, limited, gone;
  uint64_t tokens_in, tokens_out, batch_requests, repeats;
  uint64_t in_flight, max_in_flight;
  uint64_t by_status[600];
  record *records;
  size_t record_cap;
  buf ids;
  uint64_t *seen; /* hashes of ids, open addressing */
  size_t seen_n, seen_cap;
} stats;

/* ---- files and batches ---- */
typedef struct {
  char id[32];
  char purpose[24];
  buf name, data;
} stored;

typedef struct {
  char id[40];
  api api;
  int polls, total, good, bad, expired, cancelled_n;
  bool cancelled, done, failed;
  time_t created;
  char host[80], input[32], output[32], errors[32], endpoint[40];
  buf metadata; /* JSON */
  cJSON *requests; /* a list of {custom_id, body} batch; OpenAI's `body` is Anthropic's `params` */
  buf results;     /* Anthropic's */
  char problem[160];
} batch;

typedef struct mock {
  uint64_t now, started;  /* ns */
  uint64_t seed;
  double latency_ms, stream_ms;
  int port, batch_polls;
  bool stay;
  const char *key;
  FILE *log;
  script script;
  bucket rpm, tpm;
  stats stats;
  fault fault; /* of the request being answered */
  const request *request;
  buf body, head, scratch, text; /* reused by every reply */
  stored *files;
  batch *batches;
  size_t file_n, batch_n;
  uint64_t batch_lines;
} mock;

bool fault_parse(const char *name, fault *out);
const char *fault_name(fault f);
bool fault_rates(mock *m, const char *list); /* "429=0.05,reset=0.01" */
fault fault_draw(const mock *m, uint64_t number);
fault fault_next(mock *m); /* the queue first, then by the rates */
bool script_apply(mock *m, span body, buf *message);
void script_free(mock *m);

void error_reply(mock *m, reply *r, int status, const char *message);
void error_object(mock *m, buf *out, api api, int status, const char *code, const char *message);
void fault_reply(mock *m, reply *r, fault f);  /* FAULT_STATUS, _QUOTA, _HTML502 */
void fault_body(mock *m, reply *r);            /* the 200 replies that are no answer */
bool limits_take(mock *m, reply *r);           /* false: r is a 429 now */
void limits_charge(mock *m, long tokens);
void limits_headers(mock *m, reply *r);

void stats_request(mock *m, const request *q); /* counts it, notes its id */
void stats_stall(mock *m, uint64_t number); /* it stays in flight until the client leaves */
void stats_end(mock *m, uint64_t number, int status, const char *how);
void stats_write(const mock *m, buf *out);
void stats_ids(const mock *m, buf *out);
void stats_clear(mock *m);

/* ---- answers (mock_answer.c) ---- */
enum { TOP_MAX = 20, WORDS_MAX = 4096 };

typedef struct {
  api api;
  const char *model;
  buf *text;               /* every message, one after the other; '\n' between */
  size_t user_at, user_len; /* the last user message in it */
  long messages, prompt_tokens, max_tokens; /* max_tokens -1: not said */
  int n, top;
  bool logprobs, stream, include_usage;
  const cJSON *stop, *schema;
  uint64_t hash;
} call;

typedef struct {
  buf text;
  span *words; /* each with the white space before it; together they are the text */
  int word_n, word_cap;
  const char *stop;    /* the stop sequence that ended it */
  bool cut, refused;   /* at max_tokens; by the fault "refusal" */
  double first_other;  /* > 0: the first word is m or M, and this is the other's probability */
  uint64_t hash;
} answer;

void call_message(call *c, const char *role, const cJSON *content);
bool call_finish(call *c); /* hash and tokens; false: no user message */
void answer_make(mock *m, const call *c, int index, answer *out);
void answer_free(answer *a);
/* The k-th likely word (0: the word itself) at place i. */
double answer_logprob(const answer *a, int i, int k, span *word);
long count_words(const char *at, size_t len);

/* ---- routes ---- */
void route(mock *m, const request *q, reply *r); /* mock_route.c */
void openai_chat(mock *m, const cJSON *body, reply *r);
void openai_completions(mock *m, const cJSON *body, reply *r);
void openai_models(reply *r);
void anthropic_models(reply *r);
void anthropic_messages(mock *m, const cJSON *body, reply *r);
void gemini_generate(mock *m, const cJSON *body, span model, bool stream, reply *r);
void gemini_models(reply *r);
/* rest: the path behind /v1/batches, /v1/files, /v1/messages/batches */
void batch_route(mock *m, const request *q, span rest, reply *r);
void files_route(mock *m, const request *q, span rest, reply *r);
void message_batch_route(mock *m, const request *q, span rest, reply *r);
void batches_free(mock *m);
void files_free(mock *m);

enum { CREATED = 1704067200 }; /* seconds; the mock's only date */
stored *file_add(mock *m, const char *purpose);
stored *file_find(mock *m, span id); /* or NULL */

/* ---- sockets and timers (mock_loop.c) ---- */
typedef struct loop loop;
loop *loop_open(mock *m); /* NULL: errno says why */
void loop_run(loop *l);   /* until SIGTERM or SIGINT */
void loop_close(loop *l);

const char *json_text(const cJSON *object, const char *key); /* NULL: no string */
double json_number(const cJSON *object, const char *key, double otherwise);
bool json_true(const cJSON *object, const char *key);

#endif
