/* The client of http.h: one libcurl multi handle driven by epoll, so that a byte for one request
 * costs nothing for the others in flight; a pool of easy handles; and the queue of what is ready.
 * It must not know what a request is for, nor retry one. */
#define _GNU_SOURCE
#include "net/http.h"

#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "net/transfer.h"

#define SLICE 0.1 /* seconds between looks at Ctrl-C and at the limits of time */
#define EVENTS 64

struct pl_http {
  pl_ctx *ctx;
  const pl_secrets *secrets;
  char *user_agent;
  char *ca; /* file of certificate authorities from the environment, or NULL */
  CURLM *multi;
  int epoll;
  double now;     /* read once a turn */
  double timer;   /* when libcurl wants to be called; below 0: not */
  double tick;    /* seconds between looks at idle and total limits */
  double checked; /* the last such look */
  pl_transfer *active, *pool;
  size_t active_n;
  pl_transfer *ready, **ready_end;
  size_t ready_n;
  pl_transfer *taken; /* its result was handed out last and is still borrowed */
};

/* ---- memory of libcurl: wiped when freed, for it holds the header with the key ---- */

static void wiping_free(void *p) {
  if (p) {
    explicit_bzero(p, malloc_usable_size(p));
    free(p);
  }
}

static void *wiping_realloc(void *p, size_t n) {
  if (!p) {
    return malloc(n);
  }
  void *q = malloc(n);
  if (q) {
    size_t had = malloc_usable_size(p);
    memcpy(q, p, had < n ? had : n);
    wiping_free(p);
  }
  return q;
}

/* ---- what libcurl calls ---- */

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known) {
  pl_http *h = arg;
  (void)easy;
  if (what == CURL_POLL_REMOVE) {
    epoll_ctl(h->epoll, EPOLL_CTL_DEL, fd, NULL);
    curl_multi_assign(h->multi, fd, NULL);
    return 0;
  }
  struct epoll_event e = {.events = (what & CURL_POLL_IN ? EPOLLIN : 0U) |
                                    (what & CURL_POLL_OUT ? EPOLLOUT : 0U),
                          .data.fd = fd};
  int failed = epoll_ctl(h->epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e);
  if (failed && (errno == EEXIST || errno == ENOENT)) {
    failed = epoll_ctl(h->epoll, errno == EEXIST ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e);
  }
  curl_multi_assign(h->multi, fd, h); /* any pointer but NULL: it is known now */
  return failed ? -1 : 0;
}

static int on_timer(CURLM *multi, long ms, void *arg) {
  pl_http *h = arg;
  (void)multi;
  h->timer = ms < 0 ? -1 : h->now + (double)ms * 1e-3;
  return 0;
}

/* ---- lists ---- */

static void add_active(pl_http *h, pl_transfer *t) {
  t->prev = NULL;
  t->next = h->active;
  if (t->next) {
    t->next->prev = t;
  }
  h->active = t;
  h->active_n++;
}

static void remove_active(pl_http *h, pl_transfer *t) {
  if (t->prev) {
    t->prev->next = t->next;
  } else {
    h->active = t->next;
  }
  if (t->next) {
    t->next->prev = t->prev;
  }
  h->active_n--;
}

void pl_http_mark_ready(pl_transfer *t) {
  pl_http *h = t->client;
  if (!t->ready) {
    t->ready = true;
    t->next_ready = NULL;
    *h->ready_end = t;
    h->ready_end = &t->next_ready;
    h->ready_n++;
  }
}

static void remove_ready(pl_http *h, pl_transfer *t) {
  pl_transfer **at = &h->ready;
  while (*at && *at != t) {
    at = &(*at)->next_ready;
  }
  if (*at) {
    *at = t->next_ready;
    if (h->ready_end == &t->next_ready) {
      h->ready_end = at;
    }
    t->ready = false;
    h->ready_n--;
  }
}

static void to_pool(pl_http *h, pl_transfer *t) {
  pl_transfer_clear(h->ctx, t);
  t->next = h->pool;
  h->pool = t;
}

static void give_back_taken(pl_http *h) {
  if (h->taken) {
    to_pool(h, h->taken);
    h->taken = NULL;
  }
}

/* ---- life ---- */

static pl_status multi_failed(pl_ctx *c, CURLMcode code) {
  return pl_fail(c, code == CURLM_OUT_OF_MEMORY ? PL_ENOMEM : PL_EINVAL, "libcurl: %s",
                 curl_multi_strerror(code));
}

static pl_status set_up(pl_ctx *c, pl_http *h, const pl_http_options *o) {
  const char *ca = getenv("SSL_CERT_FILE");
  ca = ca && *ca ? ca : getenv("CURL_CA_BUNDLE");
  h->user_agent = pl_strdup(c, o->user_agent);
  h->ca = ca && *ca ? pl_strdup(c, ca) : NULL;
  if (!h->user_agent || (ca && *ca && !h->ca)) {
    return PL_ENOMEM;
  }
  h->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (h->epoll < 0) {
    return pl_fail(c, PL_EIO, "the HTTP client cannot wait for connections: %s",
                   strerror(errno));
  }
  h->multi = curl_multi_init();
  if (!h->multi) {
    return pl_fail(c, PL_ENOMEM, "out of memory for the HTTP client");
  }
  curl_multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
  curl_multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h);
  curl_multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, on_timer);
  curl_multi_setopt(h->multi, CURLMOPT_TIMERDATA, h);
  curl_multi_setopt(h->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_MULTIPLEX);
  curl_multi_setopt(h->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)o->connections);
  curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, 2L * o->connections); /* kept open */
  return PL_OK;
}

pl_status pl_http_open(pl_ctx *c, const pl_http_options *o, pl_http **out) {
  if (o->connections < 1 || o->connections > 4096) {
    return pl_fail(c, PL_EINVAL, "connections must be 1 to 4096, got %d", o->connections);
  }
  if (strpbrk(o->user_agent, "\r\n")) {
    return pl_fail(c, PL_EINVAL, "user_agent must not hold a line end");
  }
  if (curl_global_init_mem(CURL_GLOBAL_DEFAULT, malloc, wiping_free, wiping_realloc, strdup,
                           calloc) != CURLE_OK) {
    return pl_fail(c, PL_EINVAL, "libcurl %s does not start",
                   curl_version_info(CURLVERSION_NOW)->version);
  }
  pl_http *h = pl_alloc_zero(c, sizeof *h);
  if (!h) {
    curl_global_cleanup();
    return PL_ENOMEM;
  }
  h->ctx = c;
  h->secrets = o->secrets;
  h->epoll = -1;
  h->timer = -1;
  h->tick = SLICE;
  h->ready_end = &h->ready;
  pl_status st = set_up(c, h, o);
  if (st != PL_OK) {
    pl_http_close(c, h);
    return st;
  }
  *out = h;
  return PL_OK;
}

void pl_http_close(pl_ctx *c, pl_http *h) {
  if (!h) {
    return;
  }
  give_back_taken(h);
  while (h->active) {
    pl_transfer *t = h->active;
    curl_multi_remove_handle(h->multi, t->easy);
    remove_active(h, t);
    remove_ready(h, t);
    pl_transfer_free(c, t);
  }
  while (h->ready) {
    pl_transfer *t = h->ready;
    remove_ready(h, t);
    pl_transfer_free(c, t);
  }
  while (h->pool) {
    pl_transfer *t = h->pool;
    h->pool = t->next;
    pl_transfer_free(c, t);
  }
  if (h->multi) {
    curl_multi_cleanup(h->multi);
  }
  if (h->epoll >= 0) {
    close(h->epoll);
  }
  pl_free(c, h->user_agent);
  pl_free(c, h->ca);
  pl_free(c, h);
  curl_global_cleanup();
}

/* ---- driving ---- */

static pl_status drive(pl_ctx *c, pl_http *h, curl_socket_t fd, int what) {
  int running = 0;
  CURLMcode code = curl_multi_socket_action(h->multi, fd, what, &running);
  return code == CURLM_OK ? PL_OK : multi_failed(c, code);
}

static void finish(pl_http *h, pl_transfer *t, CURLcode code) {
  remove_active(h, t);
  pl_transfer_end(t, code, h->secrets); /* before libcurl forgets */
  curl_multi_remove_handle(h->multi, t->easy);
  t->done = true;
  pl_http_mark_ready(t);
}

static void collect(pl_http *h) {
  int left = 0;
  CURLMsg *m = curl_multi_info_read(h->multi, &left);
  while (m) {
    if (m->msg == CURLMSG_DONE) {
      char *t = NULL;
      CURLcode code = m->data.result;
      curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
      finish(h, (pl_transfer *)(void *)t, code);
    }
    m = curl_multi_info_read(h->multi, &left);
  }
}

/* libcurl's own total limit does not see requests that wait for a connection. */
static void check_limits(pl_http *h) {
  pl_transfer *t = h->active;
  h->checked = h->now;
  while (t) {
    pl_transfer *next = t->next;
    if (t->asks > 0 && h->now - t->last > t->idle_s) {
      t->failure = PL_HTTP_IDLE;
      finish(h, t, CURLE_OPERATION_TIMEDOUT);
    } else if (h->now - t->started > t->total_s + h->tick) {
      finish(h, t, CURLE_OPERATION_TIMEDOUT);
    }
    t = next;
  }
}

/* How long nothing needs to be done, in ms for epoll; rounded up, for a timer that is asked too
 * early is asked again and again. */
static int may_sleep(const pl_http *h, double end) {
  double s = h->ready_n > 0 ? 0 : fmin(end - h->now, SLICE);
  if (h->timer >= 0) {
    s = fmin(s, h->timer - h->now);
  }
  if (h->active) {
    s = fmin(s, h->checked + h->tick - h->now);
  }
  return s > 0 ? (int)ceil(s * 1000) : 0;
}

static pl_status turn(pl_ctx *c, pl_http *h, double end) {
  struct epoll_event e[EVENTS];
  int n = epoll_wait(h->epoll, e, EVENTS, may_sleep(h, end));
  if (n < 0 && errno != EINTR) {
    return pl_fail(c, PL_EIO, "waiting for replies failed: %s", strerror(errno));
  }
  h->now = pl_now();
  for (int i = 0; i < n; i++) {
    int what = (e[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
               (e[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0);
    PL_TRY(drive(c, h, e[i].data.fd, what)); /* 0, a hang-up: libcurl looks for itself */
  }
  if (h->timer >= 0 && h->timer <= h->now) {
    h->timer = -1;
    PL_TRY(drive(c, h, CURL_SOCKET_TIMEOUT, 0));
  }
  collect(h);
  if (h->now - h->checked >= h->tick) {
    check_limits(h);
  }
  return PL_OK;
}

pl_status pl_http_poll(pl_ctx *c, pl_http *h, double seconds, size_t *ready) {
  give_back_taken(h);
  h->now = pl_now();
  double end = h->now + seconds;
  do {
    PL_TRY(pl_check_interrupt(c));
    PL_TRY(turn(c, h, end));
  } while (h->ready_n == 0 && h->now < end);
  *ready = h->ready_n;
  return PL_OK;
}

/* ---- requests ---- */

pl_status pl_http_send(pl_ctx *c, pl_http *h, const pl_http_request *r) {
  give_back_taken(h);
  h->now = pl_now();
  pl_transfer *t = h->pool;
  if (t) {
    h->pool = t->next;
    t->next = NULL;
  } else {
    PL_TRY(pl_transfer_new(c, h, &h->now, h->user_agent, h->ca, &t));
  }
  pl_status st = pl_transfer_arm(c, t, r);
  if (st == PL_EINVAL) {
    snprintf(t->message, sizeof t->message, "%.600s", c->err);
    t->failure = PL_HTTP_REFUSED;
    pl_transfer_end(t, CURLE_OK, h->secrets);
    t->done = true;
    pl_http_mark_ready(t);
    return PL_OK;
  }
  if (st != PL_OK) {
    to_pool(h, t);
    return st;
  }
  CURLMcode code = curl_multi_add_handle(h->multi, t->easy);
  if (code != CURLM_OK) {
    to_pool(h, t);
    return multi_failed(c, code);
  }
  add_active(h, t);
  h->tick = fmin(h->tick, fmax(fmin(r->idle_s, r->total_s) / 4, 0.01));
  return drive(c, h, CURL_SOCKET_TIMEOUT, 0); /* on its way before the caller goes on */
}

static void fill(pl_http_result *out, const pl_transfer *t) {
  out->status = t->status;
  out->head = t->head.data ? t->head.data : "";
  out->head_n = t->head.len;
  out->body = t->body.data ? t->body.data : "";
  out->body_n = t->body.len;
  out->seconds = t->seconds;
  out->first_s = t->first_s;
  out->failure = t->failure;
  out->message = t->message;
  out->sent = t->sent;
}

pl_status pl_http_next(pl_ctx *c, pl_http *h, pl_http_result *out, bool *found) {
  give_back_taken(h);
  memset(out, 0, sizeof *out);
  *found = false;
  while (h->ready) {
    pl_transfer *t = h->ready;
    out->id = t->id;
    if (t->events) {
      PL_TRY(pl_sse_next(c, &t->sse, &out->event, &out->is_event));
      if (out->is_event) {
        *found = true;
        return PL_OK;
      }
    }
    remove_ready(h, t);
    if (t->done) {
      fill(out, t);
      h->taken = t;
      *found = true;
      return PL_OK;
    }
  }
  return PL_OK;
}

size_t pl_http_cancel(pl_ctx *c, pl_http *h, int64_t id) {
  (void)c;
  size_t n = 0;
  pl_transfer *t = h->active;
  while (t) {
    pl_transfer *next = t->next;
    if (t->id == id) {
      curl_multi_remove_handle(h->multi, t->easy);
      remove_active(h, t);
      remove_ready(h, t);
      to_pool(h, t);
      n++;
    }
    t = next;
  }
  t = h->ready;
  while (t) {
    pl_transfer *next = t->next_ready;
    if (t->id == id) {
      remove_ready(h, t);
      to_pool(h, t);
      n++;
    }
    t = next;
  }
  return n;
}

size_t pl_http_active(const pl_http *h) {
  return h->active_n;
}
