/* The HTTP server: see server.h. An exchange is one request and its answer; it
 * is born and dies in libmicrohttpd's thread, always under the lock. That thread
 * is the only one that touches a connection that is not suspended. */
#define _GNU_SOURCE
#include "net/server.h"

#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "net/listen.h"

#define READER_BLOCK 16384 /* streamed bytes handed over at a time */
#define POOL_BYTES 32768   /* of a connection: request line and headers must fit */
#define LOOK_EVERY 0.1     /* seconds between looks at suspended connections */
#define WAIT_SLICE 0.05    /* an interrupt is noticed after so long */
#define DISCARD 8          /* bodies up to so many times the limit are read and thrown away */
#define TOKEN_MAX 1024

typedef enum stage {
  READING,  /* the request comes in */
  QUEUED,   /* complete, not taken yet */
  TAKEN,    /* the program works on it */
  ANSWERED, /* a whole reply is ready or on its way */
  STREAMED, /* a streamed reply is on its way */
  LEFT      /* the client went away; waits in the list of those */
} stage;

typedef struct refusal {
  int status;
  const char *header, *value; /* or NULL */
  const char *body;
} refusal;

typedef struct exchange {
  pl_server *server;
  struct MHD_Connection *conn;
  int fd;
  int64_t id;
  stage stage;
  double began;
  const refusal *refused;
  size_t discarded;
  char method[16];
  pl_buf path, query, headers, body;
  struct MHD_Response *reply;
  int status;
  pl_buf out; /* streamed bytes from out_at on are not sent yet */
  size_t out_at;
  bool finished, given_up, suspended;
  struct exchange *next, *prev; /* all that are alive, newest first */
  struct exchange *later;       /* in the queue, or the list of those that left */
} exchange;

struct pl_server {
  pl_ctx own; /* memory of exchanges; under the lock */
  pthread_mutex_t lock;
  pthread_cond_t arrived;
  struct MHD_Daemon *daemon;
  int port;
  bool closing;
  int64_t last_id;
  exchange *alive, *queue, *queue_last, *left;
  struct pollfd *looked; /* [max_connections] */
  exchange **looked_at;
  int max_connections;
  double last_look;
  size_t max_body;
  double request_s;
  char *open_path;
  size_t token_len;
  char token[TOKEN_MAX];
};

#define ERROR_BODY(message, type, code) \
  "{\"error\":{\"message\":\"" message "\",\"type\":\"" type "\",\"param\":null,\"code\":" code "}}"

static const refusal no_token = {
    401, "WWW-Authenticate", "Bearer",
    ERROR_BODY("wrong or missing API key: send this server's token as Authorization: Bearer TOKEN",
               "invalid_request_error", "\"invalid_api_key\"")};
static const refusal too_large = {
    413, NULL, NULL,
    ERROR_BODY("the request body is larger than this server takes", "invalid_request_error",
               "\"request_too_large\"")};
static const refusal no_memory = {
    503, "Retry-After", "1",
    ERROR_BODY("too many large requests are waiting: try again later", "server_error",
               "\"overloaded\"")};

/* ---- exchanges; all of this under the lock ---- */

static void suspend(exchange *e) {
  e->suspended = true;
  MHD_suspend_connection(e->conn);
}

static void wake(exchange *e) {
  if (e->suspended) {
    e->suspended = false;
    MHD_resume_connection(e->conn);
  }
}

static exchange *exchange_new(pl_server *s, struct MHD_Connection *conn, const char *method) {
  exchange *e = pl_alloc_zero(&s->own, sizeof *e);
  if (e == NULL) {
    return NULL;
  }
  const union MHD_ConnectionInfo *info =
      MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
  e->server = s;
  e->conn = conn;
  e->fd = info == NULL ? -1 : info->connect_fd;
  e->began = pl_now();
  const size_t n = strnlen(method, sizeof e->method - 1);
  memcpy(e->method, method, n);
  pl_buf_init(&e->path, POOL_BYTES);
  pl_buf_init(&e->query, 2 * POOL_BYTES);
  pl_buf_init(&e->headers, 2 * POOL_BYTES);
  pl_buf_init(&e->body, s->max_body);
  pl_buf_init(&e->out, PL_SERVER_OUT_MAX);
  e->next = s->alive;
  if (s->alive != NULL) {
    s->alive->prev = e;
  }
  s->alive = e;
  return e;
}

static void free_buffers(exchange *e) {
  pl_buf *all[] = {&e->path, &e->query, &e->headers, &e->body, &e->out};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    pl_buf_free(&e->server->own, all[i]);
  }
}

static void exchange_free(exchange *e) {
  free_buffers(e);
  if (e->reply != NULL) {
    MHD_destroy_response(e->reply);
  }
  pl_free(&e->server->own, e);
}

static exchange *find(pl_server *s, int64_t id) {
  exchange *e = s->alive;
  while (e != NULL && e->id != id) {
    e = e->next;
  }
  return id > 0 ? e : NULL;
}

static void unqueue(pl_server *s, exchange *e) {
  exchange *before = NULL;
  exchange *x = s->queue;
  while (x != e) {
    before = x;
    x = x->later;
  }
  if (before == NULL) {
    s->queue = e->later;
  } else {
    before->later = e->later;
  }
  if (s->queue_last == e) {
    s->queue_last = before;
  }
  e->later = NULL;
}

/* ---- libmicrohttpd's thread ---- */

/* Does the request carry the token? Takes as long for a wrong one as for a right one. */
static bool authorised(const pl_server *s, struct MHD_Connection *conn) {
  static const char scheme[] = "bearer ";
  const char *given = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Authorization");
  if (given == NULL || strncasecmp(given, scheme, sizeof scheme - 1) != 0) {
    return false;
  }
  given += sizeof scheme - 1;
  const size_t n = strlen(given);
  unsigned differs = n != s->token_len;
  for (size_t i = 0; i < s->token_len; i++) {
    const char g = n == 0 ? 0 : given[i % n];
    differs |= (unsigned char)(g ^ s->token[i]);
  }
  return differs == 0;
}

static void begin_exchange(pl_server *s, exchange *e, const char *url) {
  const bool open = s->open_path != NULL && strcmp(url, s->open_path) == 0;
  if (s->token_len > 0 && !open && !authorised(s, e->conn)) {
    e->refused = &no_token;
  }
  const char *length = MHD_lookup_connection_value(e->conn, MHD_HEADER_KIND, "Content-Length");
  const unsigned long long declared = length == NULL ? 0 : strtoull(length, NULL, 10);
  if (declared > s->max_body) {
    e->refused = &too_large;
    e->discarded = declared / DISCARD > s->max_body ? SIZE_MAX : 0;
  }
  if (pl_buf_puts(&s->own, &e->path, url) != PL_OK) {
    e->refused = &no_memory;
  }
}

/* False: too much came even to be thrown away. */
static bool take_body(pl_server *s, exchange *e, const char *data, size_t n) {
  if (e->refused == NULL && n > s->max_body - e->body.len) {
    e->refused = &too_large;
  } else if (e->refused == NULL && pl_buf_add(&s->own, &e->body, data, n) != PL_OK) {
    e->refused = &no_memory;
  }
  if (e->refused != NULL) {
    pl_buf_free(&s->own, &e->body);
    e->discarded += n;
  }
  return e->discarded / DISCARD <= s->max_body && pl_now() - e->began <= s->request_s;
}

typedef struct pairs {
  pl_ctx *c;
  pl_buf *out;
  bool lower;
  pl_status st;
} pairs;

static enum MHD_Result add_pair(void *arg, enum MHD_ValueKind kind, const char *key,
                                const char *value) {
  (void)kind;
  pairs *p = arg;
  const size_t at = p->out->len;
  if (p->st == PL_OK) {
    p->st = pl_buf_add(p->c, p->out, key, strlen(key) + 1);
  }
  for (size_t i = at; i < p->out->len && p->lower; i++) {
    const char ch = p->out->data[i];
    p->out->data[i] = ch >= 'A' && ch <= 'Z' ? (char)(ch + 32) : ch;
  }
  if (p->st == PL_OK) {
    value = value == NULL ? "" : value;
    p->st = pl_buf_add(p->c, p->out, value, strlen(value) + 1);
  }
  return MHD_YES;
}

static bool collect(exchange *e) {
  pl_ctx *own = &e->server->own;
  pairs headers = {own, &e->headers, true, PL_OK};
  pairs query = {own, &e->query, false, PL_OK};
  (void)MHD_get_connection_values(e->conn, MHD_HEADER_KIND, add_pair, &headers);
  (void)MHD_get_connection_values(e->conn, MHD_GET_ARGUMENT_KIND, add_pair, &query);
  return headers.st == PL_OK && query.st == PL_OK;
}

static enum MHD_Result refuse(exchange *e) {
  const refusal *r = e->refused;
  struct MHD_Response *reply = MHD_create_response_from_buffer(strlen(r->body), (void *)r->body,
                                                               MHD_RESPMEM_PERSISTENT);
  if (reply == NULL) {
    return MHD_NO;
  }
  (void)MHD_add_response_header(reply, "Content-Type", "application/json");
  if (r->header != NULL) {
    (void)MHD_add_response_header(reply, r->header, r->value);
  }
  const enum MHD_Result ok = MHD_queue_response(e->conn, (unsigned)r->status, reply);
  MHD_destroy_response(reply);
  return ok;
}

/* The request is complete, or the program woke the connection; *reply: to be queued. */
static enum MHD_Result go_on(pl_server *s, exchange *e, struct MHD_Response **reply) {
  if (s->closing || e->given_up) {
    return MHD_NO;
  }
  if (e->stage == READING && e->refused == NULL && !collect(e)) {
    e->refused = &no_memory;
  }
  if (e->stage == READING && e->refused != NULL) {
    return refuse(e);
  }
  if (e->stage == READING) {
    e->stage = QUEUED;
    e->id = ++s->last_id;
    if (s->queue_last == NULL) {
      s->queue = e;
    } else {
      s->queue_last->later = e;
    }
    s->queue_last = e;
    pthread_cond_signal(&s->arrived);
  }
  if (e->reply == NULL) {
    suspend(e);
    return MHD_YES;
  }
  *reply = e->reply;
  e->reply = NULL;
  return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **con_cls) {
  (void)version;
  pl_server *s = cls;
  enum MHD_Result ok = MHD_YES;
  struct MHD_Response *reply = NULL;
  int status = 0;
  pthread_mutex_lock(&s->lock);
  exchange *e = *con_cls;
  if (e == NULL) {
    e = exchange_new(s, conn, method);
    *con_cls = e;
    if (e == NULL) {
      ok = MHD_NO;
    } else {
      begin_exchange(s, e, url);
      if (e->discarded == SIZE_MAX) { /* not worth reading */
        ok = refuse(e);
      }
    }
  } else if (*size > 0) {
    ok = take_body(s, e, data, *size) ? MHD_YES : MHD_NO;
    *size = 0;
  } else {
    ok = go_on(s, e, &reply);
    status = e->status;
  }
  pthread_mutex_unlock(&s->lock);
  if (reply != NULL) { /* not under the lock: a reply has one too, held while on_read takes ours */
    ok = MHD_queue_response(conn, (unsigned)status, reply);
    MHD_destroy_response(reply);
  }
  return ok;
}

/* More of a streamed reply. With nothing to send the connection sleeps until there is. */
static ssize_t on_read(void *cls, uint64_t pos, char *to, size_t max) {
  (void)pos;
  exchange *e = cls;
  pl_server *s = e->server;
  ssize_t n = 0;
  pthread_mutex_lock(&s->lock);
  const size_t there = e->out.len - e->out_at;
  if (s->closing || e->given_up) {
    n = MHD_CONTENT_READER_END_WITH_ERROR;
  } else if (there > 0) {
    n = (ssize_t)(there < max ? there : max);
    memcpy(to, e->out.data + e->out_at, (size_t)n);
    e->out_at += (size_t)n;
    if (e->out_at == e->out.len) {
      pl_buf_reset(&e->out);
      e->out_at = 0;
    }
  } else if (e->finished) {
    n = MHD_CONTENT_READER_END_OF_STREAM;
  } else {
    suspend(e);
  }
  pthread_mutex_unlock(&s->lock);
  return n;
}

static void on_end(void *cls, struct MHD_Connection *conn, void **con_cls,
                   enum MHD_RequestTerminationCode why) {
  (void)conn;
  (void)why;
  pl_server *s = cls;
  exchange *e = *con_cls;
  if (e == NULL) {
    return;
  }
  *con_cls = NULL;
  pthread_mutex_lock(&s->lock);
  if (e->prev == NULL) {
    s->alive = e->next;
  } else {
    e->prev->next = e->next;
  }
  if (e->next != NULL) {
    e->next->prev = e->prev;
  }
  if (e->stage == QUEUED) {
    unqueue(s, e);
  }
  if (e->stage == TAKEN || (e->stage == STREAMED && !e->finished)) {
    free_buffers(e);
    e->stage = LEFT;
    e->later = s->left;
    s->left = e;
  } else {
    exchange_free(e);
  }
  pthread_mutex_unlock(&s->lock);
}

/* ---- the program's thread ---- */

static pl_status start(pl_ctx *c, pl_server *s, const pl_server_options *o, int listener) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all); /* signals are the business of the program's own thread */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  s->daemon = MHD_start_daemon(
      MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, s,
      MHD_OPTION_LISTEN_SOCKET, listener, MHD_OPTION_NOTIFY_COMPLETED, on_end, s,
      MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
      (unsigned)o->idle_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES, MHD_OPTION_END);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (s->daemon == NULL) {
    return pl_fail(c, PL_EIO, "serve: the HTTP server does not start: %s", strerror(errno));
  }
  return PL_OK;
}

static pl_status set_up(pl_ctx *c, pl_server *s, const pl_server_options *o) {
  s->max_body = o->max_body;
  s->request_s = o->request_s;
  s->max_connections = o->max_connections;
  s->looked = pl_alloc(c, sizeof *s->looked * (size_t)o->max_connections);
  s->looked_at = pl_alloc(c, sizeof *s->looked_at * (size_t)o->max_connections);
  s->open_path = o->open_path == NULL ? NULL : pl_strdup(c, o->open_path);
  if (s->looked == NULL || s->looked_at == NULL || (o->open_path != NULL && s->open_path == NULL)) {
    return PL_ENOMEM;
  }
  pl_listen_at at;
  PL_TRY(pl_listen_resolve(c, o->address, o->port, &at));
  PL_TRY(pl_listen_token(c, o->token_env, o->token_optional, s->token, sizeof s->token,
                         &s->token_len));
  if (!at.loopback && s->token_len == 0) {
    return pl_fail(c, PL_EINVAL, "serve: %.100s can be reached from other machines, so clients "
                   "must send a token: set it in the environment variable %.100s, or serve "
                   "127.0.0.1", o->address, o->token_env == NULL ? "(token_env)" : o->token_env);
  }
  int fd = -1;
  PL_TRY(pl_listen_open(c, &at, o->address, &fd, &s->port));
  return start(c, s, o, fd);
}

pl_status pl_server_listen(pl_ctx *c, const pl_server_options *o, pl_server **out) {
  if (o->max_connections < 1 || o->max_body < 1 || !(o->idle_s >= 1) || !(o->request_s > 0)) {
    return pl_fail(c, PL_EINVAL, "serve: max_connections, max_body, idle_s and request_s must be "
                   "at least 1");
  }
  pl_server *s = pl_alloc_zero(c, sizeof *s);
  if (s == NULL) {
    return PL_ENOMEM;
  }
  s->own.mem.limit = PL_SERVER_MEMORY; /* and no cache: what is freed goes back at once */
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->arrived, &attr);
  pthread_condattr_destroy(&attr);
  const pl_status st = set_up(c, s, o);
  if (st != PL_OK) {
    pl_server_close(c, s);
    return st;
  }
  *out = s;
  return PL_OK;
}

void pl_server_close(pl_ctx *c, pl_server *s) {
  if (s == NULL) {
    return;
  }
  pthread_mutex_lock(&s->lock);
  s->closing = true; /* nothing is suspended from here on */
  for (exchange *e = s->alive; e != NULL; e = e->next) {
    wake(e);
  }
  pthread_mutex_unlock(&s->lock);
  if (s->daemon != NULL) {
    MHD_stop_daemon(s->daemon);
  }
  while (s->left != NULL) {
    exchange *later = s->left->later;
    exchange_free(s->left);
    s->left = later;
  }
  pthread_cond_destroy(&s->arrived);
  pthread_mutex_destroy(&s->lock);
  explicit_bzero(s->token, sizeof s->token);
  pl_free(c, s->looked);
  pl_free(c, s->looked_at);
  pl_free(c, s->open_path);
  pl_free(c, s);
}

int pl_server_port(const pl_server *s) {
  return s->port;
}

void pl_server_request_free(pl_ctx *c, pl_server_request *r) {
  pl_buf *all[] = {&r->path, &r->query, &r->headers, &r->body};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    pl_buf_free(c, all[i]);
  }
}

static pl_status copy(pl_ctx *c, const pl_buf *from, pl_buf *to) {
  pl_buf_init(to, from->len + 1);
  return pl_buf_add(c, to, from->len == 0 ? "" : from->data, from->len);
}

/* The queue's first into r; its copy here is given back. */
static pl_status hand_over(pl_ctx *c, pl_server *s, pl_server_request *r) {
  exchange *e = s->queue;
  unqueue(s, e);
  e->stage = TAKEN;
  r->id = e->id;
  memcpy(r->method, e->method, sizeof r->method);
  pl_status st = copy(c, &e->path, &r->path);
  if (st == PL_OK) {
    st = copy(c, &e->query, &r->query);
  }
  if (st == PL_OK) {
    st = copy(c, &e->headers, &r->headers);
  }
  if (st == PL_OK) {
    st = copy(c, &e->body, &r->body);
  }
  free_buffers(e);
  return st;
}

static void wait_slice(pl_server *s, double seconds) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_nsec += (long)(seconds * 1e9);
  until.tv_sec += until.tv_nsec / 1000000000;
  until.tv_nsec %= 1000000000;
  pthread_cond_timedwait(&s->arrived, &s->lock, &until);
}

pl_status pl_server_take(pl_ctx *c, pl_server *s, double seconds, pl_server_request *r) {
  const double end = pl_now() + seconds;
  pl_status st = pl_check_interrupt(c);
  pthread_mutex_lock(&s->lock);
  while (st == PL_OK && s->queue == NULL) {
    const double left = end - pl_now();
    if (!(left > 0)) {
      break;
    }
    wait_slice(s, left < WAIT_SLICE ? left : WAIT_SLICE);
    st = pl_check_interrupt(c);
  }
  if (st == PL_OK && s->queue != NULL) {
    st = hand_over(c, s, r);
  }
  pthread_mutex_unlock(&s->lock);
  return st;
}

static pl_status add_headers(pl_ctx *c, struct MHD_Response *reply, const pl_server_header *h,
                             int n) {
  for (int i = 0; i < n; i++) {
    if (MHD_add_response_header(reply, h[i].name, h[i].value) != MHD_YES) {
      MHD_destroy_response(reply);
      return pl_fail(c, PL_EINVAL, "serve: \"%.60s\" cannot be a header of a reply", h[i].name);
    }
  }
  return PL_OK;
}

/* Gives a taken exchange its reply (taken over) and lets it go on. */
static void answer(exchange *e, struct MHD_Response *reply, int status, stage next) {
  e->reply = reply;
  e->status = status;
  e->stage = next;
  wake(e);
}

static exchange *find_taken(pl_server *s, int64_t id) {
  exchange *e = find(s, id);
  return e != NULL && e->stage == TAKEN && !e->given_up ? e : NULL;
}

pl_status pl_server_respond(pl_ctx *c, pl_server *s, int64_t id, int status,
                            const pl_server_header *h, int n_h, const void *body, size_t n,
                            bool *live) {
  struct MHD_Response *reply =
      MHD_create_response_from_buffer(n, (void *)body, MHD_RESPMEM_MUST_COPY);
  if (reply == NULL) {
    return pl_fail(c, PL_ENOMEM, "serve: no memory for a reply of %zu bytes", n);
  }
  PL_TRY(add_headers(c, reply, h, n_h));
  pthread_mutex_lock(&s->lock);
  exchange *e = find_taken(s, id);
  *live = e != NULL;
  if (e != NULL) {
    answer(e, reply, status, ANSWERED);
  } else {
    MHD_destroy_response(reply);
  }
  pthread_mutex_unlock(&s->lock);
  return PL_OK;
}

pl_status pl_server_begin(pl_ctx *c, pl_server *s, int64_t id, int status,
                          const pl_server_header *h, int n_h, bool *live) {
  pl_status st = PL_OK;
  pthread_mutex_lock(&s->lock);
  exchange *e = find_taken(s, id);
  *live = e != NULL;
  if (e != NULL) {
    struct MHD_Response *reply =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, READER_BLOCK, on_read, e, NULL);
    st = reply == NULL ? pl_fail(c, PL_ENOMEM, "serve: no memory for a reply")
                       : add_headers(c, reply, h, n_h);
    if (st == PL_OK) {
      answer(e, reply, status, STREAMED);
    }
  }
  pthread_mutex_unlock(&s->lock);
  return st;
}

bool pl_server_write(pl_server *s, int64_t id, const void *bytes, size_t n) {
  pthread_mutex_lock(&s->lock);
  exchange *e = find(s, id);
  const bool live = e != NULL && e->stage == STREAMED && !e->finished && !e->given_up;
  if (live) {
    if (e->out_at > 0 && e->out.len + n > PL_SERVER_OUT_MAX) {
      e->out.len -= e->out_at;
      memmove(e->out.data, e->out.data + e->out_at, e->out.len);
      e->out_at = 0;
    }
    e->given_up = pl_buf_add(&s->own, &e->out, bytes, n) != PL_OK;
    wake(e);
  }
  const bool still = live && !e->given_up;
  pthread_mutex_unlock(&s->lock);
  return still;
}

void pl_server_finish(pl_server *s, int64_t id) {
  pthread_mutex_lock(&s->lock);
  exchange *e = find(s, id);
  if (e != NULL && e->stage == STREAMED) {
    e->finished = true;
    wake(e);
  }
  pthread_mutex_unlock(&s->lock);
}

/* A suspended connection is not polled by libmicrohttpd: one that was closed by its client is
 * found here, and woken so that it can end. */
static void look_at_suspended(pl_server *s) {
  int n = 0;
  for (exchange *e = s->alive; e != NULL && n < s->max_connections; e = e->next) {
    if (e->suspended && e->fd >= 0) {
      s->looked[n] = (struct pollfd){.fd = e->fd, .events = POLLRDHUP};
      s->looked_at[n++] = e;
    }
  }
  if (n == 0 || poll(s->looked, (nfds_t)n, 0) <= 0) {
    return;
  }
  for (int i = 0; i < n; i++) {
    if (s->looked[i].revents != 0) {
      s->looked_at[i]->given_up = true;
      wake(s->looked_at[i]);
    }
  }
}

int64_t pl_server_gone(pl_server *s) {
  int64_t id = 0;
  pthread_mutex_lock(&s->lock);
  const double now = pl_now();
  if (now - s->last_look > LOOK_EVERY) {
    s->last_look = now;
    look_at_suspended(s);
  }
  exchange *e = s->left;
  if (e != NULL) {
    s->left = e->later;
    id = e->id;
    exchange_free(e);
  }
  pthread_mutex_unlock(&s->lock);
  return id;
}
