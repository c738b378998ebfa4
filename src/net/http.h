/* The HTTP client: many requests at once on the caller's thread, over libcurl's multi interface.
 * Legal order:
 *
 *   pl_http_open(c, &options, &h)
 *   pl_http_send(c, h, &request)        any number; each gives one result, also when refused
 *   pl_http_poll(c, h, 0.5, &ready)     drives what is in flight
 *   pl_http_next(c, h, &result, &found) until found is false
 *   pl_http_close(c, h)
 *
 * What it holds to: certificates are verified, redirects are results and not followed, no request
 * is ever sent twice, bodies are counted after decompression, proxies come from the environment
 * except for this machine, and no message holds a key. One request costs about 50 us. */
#ifndef PL_NET_HTTP_H
#define PL_NET_HTTP_H
#include "net/secret.h"
#include "net/sse.h"

typedef struct pl_http pl_http;

typedef struct pl_http_options {
  int connections;        /* most connections to one host, 1 to 4096 */
  const char *user_agent;
  const pl_secrets *secrets; /* kept out of messages; must outlive the client; may be NULL */
} pl_http_options;

typedef struct pl_http_text { /* n bytes and a NUL behind them; text = NULL: none */
  const char *text;
  size_t n;
} pl_http_text;

typedef struct pl_http_request {
  int64_t id; /* the caller's own, given back with the result */
  const char *method;
  pl_http_text url, body;
  const pl_http_text *headers; /* [header_n], "Name: value" */
  size_t header_n;
  pl_http_text secret_header; /* "Authorization: Bearer ", to which the key is appended */
  const pl_secret *secret;    /* NULL: no key */
  bool stream;   /* events of a text/event-stream reply are given out as they come */
  bool insecure; /* http beyond this machine is allowed */
  /* seconds; connect_s with the TLS handshake; idle_s without a byte of a body in either direction
   * or a whole header line */
  double connect_s, total_s, idle_s;
  size_t max_body;
} pl_http_request;

typedef enum pl_http_failure {
  PL_HTTP_DONE,      /* a whole reply of any status */
  PL_HTTP_REFUSED,   /* by the rules here */
  PL_HTTP_RESOLVE,   /* no such host */
  PL_HTTP_CONNECT,   /* no connection, or not in time */
  PL_HTTP_TLS,       /* certificate or handshake */
  PL_HTTP_RESET,     /* the connection ended before the body began or with an error */
  PL_HTTP_TIMEOUT,   /* total_s is over */
  PL_HTTP_IDLE,      /* idle_s without a byte */
  PL_HTTP_SHORT,     /* the body ended before its announced length */
  PL_HTTP_TOO_LARGE, /* header or body over the limit */
  PL_HTTP_PROTOCOL   /* not HTTP, or broken inside */
} pl_http_failure;

/* "reset" and so on; NULL for PL_HTTP_DONE */
const char *pl_http_failure_name(pl_http_failure f);

/* Borrowed from the client until its next call of any kind. */
typedef struct pl_http_result {
  int64_t id;
  bool is_event; /* then only id and event hold; the end of the request is still to come */
  pl_sse_event event;
  long status; /* 0: none came */
  const char *head; /* the header lines of the final reply; see pl_http_header */
  size_t head_n;
  const char *body; /* raw bytes, decompressed; what came of it after a failure */
  size_t body_n;
  double seconds, first_s; /* in all; to the first byte of the reply, 0: none came */
  pl_http_failure failure;
  const char *message; /* of a failure: names the host and what to do */
  bool sent; /* may any byte of the request have reached the server? */
} pl_http_result;

pl_status pl_http_open(pl_ctx *c, const pl_http_options *o, pl_http **out);
pl_status pl_http_send(pl_ctx *c, pl_http *h, const pl_http_request *r);
/* Returns when a result or an event is ready or the time is over; *ready: how many requests have
 * something to give. PL_EINTR after Ctrl-C, what is in flight stays so. */
pl_status pl_http_poll(pl_ctx *c, pl_http *h, double seconds, size_t *ready);
pl_status pl_http_next(pl_ctx *c, pl_http *h, pl_http_result *out, bool *found);
/* Ends the requests of that id without a result; how many there were. */
size_t pl_http_cancel(pl_ctx *c, pl_http *h, int64_t id);
size_t pl_http_active(const pl_http *h);
void pl_http_close(pl_ctx *c, pl_http *h); /* NULL is fine */

/* Iterates over header lines: start with *at = 0; false at the end. */
typedef struct pl_http_field {
  const char *name, *value;
  size_t name_n, value_n;
} pl_http_field;
bool pl_http_header(const char *head, size_t head_n, size_t *at, pl_http_field *out);

#endif
