/* One request in flight, shared by http.c (the client) and transfer.c (what a request is made of
 * and what its end means). For these two alone. */
#ifndef PL_NET_TRANSFER_H
#define PL_NET_TRANSFER_H
#include <curl/curl.h>

#include "net/http.h"
#include "net/url.h"

#define PL_HEAD_MAX ((size_t)256 << 10)

typedef struct pl_transfer {
  pl_ctx *ctx;
  pl_http *client;
  const double *now; /* the client's clock */
  CURL *easy;
  struct pl_transfer *next, *prev; /* in the list of those in flight */
  struct pl_transfer *next_ready;
  bool ready, done;
  /* the request */
  int64_t id;
  pl_url where;
  struct curl_slist *headers;
  pl_buf out; /* its body; libcurl keeps a pointer */
  bool stream;
  double connect_s, total_s, idle_s;
  /* how it goes */
  double started, last; /* begun; when the last byte moved */
  curl_off_t up, down;
  int asks;    /* how often libcurl was about to send it */
  bool resend; /* it wanted to send it again */
  bool head_done, events, typed;
  pl_buf head, body;
  pl_sse sse;
  char error[CURL_ERROR_SIZE];
  /* how it ended */
  pl_http_failure failure;
  long status;
  double seconds, first_s;
  bool sent;
  char message[640];
} pl_transfer;

/* easy handle with all that never changes; NULL user_agent and ca are left out */
pl_status pl_transfer_new(pl_ctx *c, pl_http *client, const double *now, const char *user_agent,
                          const char *ca, pl_transfer **out);
/* Ready to be added to the multi handle. PL_EINVAL: refused by the rules, the text says why. */
pl_status pl_transfer_arm(pl_ctx *c, pl_transfer *t, const pl_http_request *r);
/* The end: fills what is under "how it ended". t->failure is kept where it was set before. */
void pl_transfer_end(pl_transfer *t, CURLcode code, const pl_secrets *secrets);
/* Nothing of the request stays, but memory for the next one. */
void pl_transfer_clear(pl_ctx *c, pl_transfer *t);
void pl_transfer_free(pl_ctx *c, pl_transfer *t);

/* In http.c: t has an event to give. Called while libcurl runs. */
void pl_http_mark_ready(pl_transfer *t);

#endif
