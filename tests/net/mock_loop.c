/* Sockets and timers of the mock: one thread, epoll, a heap of due times. It decides when a reply
 * goes out and how much of it; what it says is made in mock_route.c. It must never block on a
 * client, and sends nothing before its latency is over. */
#include "mock.h" /* first: it asks for the GNU names */

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, READ_STEP = 32 << 10, KEEP_BYTES = 1 << 20, PIPELINE_MAX = 16 << 20 };

typedef enum {
  READING, /* a request */
  WAITING, /* for the latency, or for the next event of a stream */
  WRITING,
  HOLDING, /* a stall: nothing more is ever sent */
  RESETTING, /* the bytes are on their way; a reset follows */
  LINGERING, /* closed for writing; the client may still be sending */
  CLOSED
} conn_state;

typedef enum { THEN_NEXT, THEN_CLOSE, THEN_RESET, THEN_HOLD } then;

typedef struct conn {
  int fd;
  conn_state state;
  then then;
  uint32_t events;
  buf in, out;
  size_t start;         /* of the present request in `in` */
  size_t sent, release; /* of `out`: written, allowed to be written */
  size_t limit;         /* of `out`: where the reply ends, before its end for some faults */
  bool paced;
  framing framing;
  uint64_t due;
  int heap_at; /* -1: no timer */
  uint64_t number; /* of the request, 0: not counted */
  int status;
  const char *how;
  long tokens_in, tokens_out;
  struct conn *next, *prev;
} conn;

struct loop {
  mock *mock;
  int epoll, listener, signals;
  conn **heap;
  int heap_n, heap_cap;
  conn *live, *dead, *spare; /* open; closed in this turn; ready for use */
};

static uint64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- timers: a heap by due time ---- */
static void heap_set(loop *l, int i, conn *c) {
  l->heap[i] = c;
  c->heap_at = i;
}

static void heap_sift(loop *l, int i) {
  conn *c = l->heap[i];
  while (i > 0 && l->heap[(i - 1) / 2]->due > c->due) {
    heap_set(l, i, l->heap[(i - 1) / 2]);
    i = (i - 1) / 2;
  }
  for (;;) {
    int kid = 2 * i + 1;
    if (kid >= l->heap_n) break;
    if (kid + 1 < l->heap_n && l->heap[kid + 1]->due < l->heap[kid]->due) kid++;
    if (l->heap[kid]->due >= c->due) break;
    heap_set(l, i, l->heap[kid]);
    i = kid;
  }
  heap_set(l, i, c);
}

static void timer_off(loop *l, conn *c) {
  int i = c->heap_at;
  if (i < 0) return;
  c->heap_at = -1;
  l->heap_n--;
  if (i < l->heap_n) {
    heap_set(l, i, l->heap[l->heap_n]);
    heap_sift(l, i);
  }
}

static void timer_on(loop *l, conn *c, double ms) {
  timer_off(l, c);
  if (l->heap_n == l->heap_cap) {
    l->heap_cap = l->heap_cap ? l->heap_cap * 2 : 256;
    l->heap = realloc(l->heap, (size_t)l->heap_cap * sizeof *l->heap);
    if (!l->heap) exit(1);
  }
  c->due = l->mock->now + (uint64_t)(ms * 1e6);
  heap_set(l, l->heap_n, c);
  l->heap_n++;
  heap_sift(l, c->heap_at);
}

/* ---- connections ---- */
static void conn_watch(loop *l, conn *c, uint32_t events) {
  if (c->events == events) return;
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(l->epoll, EPOLL_CTL_MOD, c->fd, &e);
  c->events = events;
}

/* The request of this connection is over. */
static void conn_end(loop *l, conn *c, const char *how) {
  if (!c->number) return;
  stats *s = &l->mock->stats;
  stats_end(l->mock, c->number, how ? 0 : c->status, how ? how : c->how);
  if (!how && !c->how && c->status == 200) {
    s->tokens_in += (uint64_t)c->tokens_in;
    s->tokens_out += (uint64_t)c->tokens_out;
  }
  c->number = 0;
}

static void conn_close(loop *l, conn *c) {
  if (c->state == CLOSED) return;
  conn_end(l, c, c->state == HOLDING ? "stall" : "gone");
  timer_off(l, c);
  close(c->fd);
  c->state = CLOSED;
  if (c->prev) {
    c->prev->next = c->next;
  } else {
    l->live = c->next;
  }
  if (c->next) {
    c->next->prev = c->prev;
  }
  c->next = l->dead;
  l->dead = c;
}

static void conn_reset(loop *l, conn *c) {
  struct linger hard = {1, 0};
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  conn_end(l, c, c->how ? c->how : "reset");
  conn_close(l, c);
}

static void conn_linger(loop *l, conn *c) {
  shutdown(c->fd, SHUT_WR);
  c->state = LINGERING;
  conn_watch(l, c, EPOLLIN);
  timer_on(l, c, 2000);
}

/* Puts the reply into c->out and says how much of it may leave. */
static void conn_frame(mock *m, conn *c, const reply *r, bool keep_alive) {
  frame f = {.keep_alive = keep_alive, .broken = m->fault.kind == FAULT_SHORT, .cut = SIZE_MAX};
  if (r->sse && m->script.sse_cut >= 0) {
    f.cut = (size_t)m->script.sse_cut;
    m->script.sse_cut = -1;
    if (f.cut < r->body->len) {
      c->how = "cut";
    }
  }
  c->out.len = 0;
  c->sent = 0;
  size_t head = http_write(&c->out, r, &f);
  c->then = f.keep_alive && !f.broken ? THEN_NEXT : THEN_CLOSE;
  c->limit = c->out.len;
  if (m->fault.kind == FAULT_RESET_BODY || m->fault.kind == FAULT_STALL_BODY) {
    c->limit = head + (c->out.len - head) / 2;
    c->then = m->fault.kind == FAULT_RESET_BODY ? THEN_RESET : THEN_HOLD;
  }
  c->paced = r->sse && m->stream_ms > 0;
  c->release = c->limit;
}

/* With a paced stream: lets one more event go. */
static void conn_pace(conn *c) {
  span rest = {c->out.data + c->sent, c->limit - c->sent};
  span tail = span_find(rest, "\n\n");
  size_t n = tail.at ? rest.len - tail.len + 2 : rest.len;
  c->release = c->sent + n;
  if (c->limit - c->release <= 16) { /* the end mark alone is no event */
    c->release = c->limit;
  }
}

static void conn_serve(loop *l, conn *c, request *q) {
  mock *m = l->mock;
  reply r = {API_OPENAI, 200, "application/json", false, &m->head, &m->body, 0, 0};
  m->body.len = m->head.len = 0;
  uint64_t before = m->stats.base + m->stats.requests;
  m->fault = (fault){FAULT_OK, 0};
  route(m, q, &r);
  uint64_t after = m->stats.base + m->stats.requests;
  c->number = after > before ? after : 0;
  c->status = r.status;
  c->how = NULL;
  c->tokens_in = r.tokens_in;
  c->tokens_out = r.tokens_out;
  if (m->fault.kind > FAULT_STATUS && r.status == 200 && m->fault.kind != FAULT_REFUSAL) {
    c->how = fault_name(m->fault);
  }
  if (m->fault.kind == FAULT_RESET) {
    conn_reset(l, c);
    return;
  }
  if (m->fault.kind == FAULT_STALL) {
    c->state = HOLDING;
    stats_stall(m, c->number);
    return;
  }
  conn_frame(m, c, &r, q->keep_alive);
  c->state = WAITING;
  timer_on(l, c, c->number ? m->latency_ms : 0);
}

static void conn_refuse(loop *l, conn *c, int status) {
  mock *m = l->mock;
  reply r = {API_OPENAI, status, "application/json", false, &m->head, &m->body, 0, 0};
  m->body.len = m->head.len = 0;
  m->fault = (fault){FAULT_OK, 0};
  error_reply(m, &r, status, "The request was not understood as HTTP/1.1.");
  conn_frame(m, c, &r, false);
  c->number = 0;
  c->state = WAITING;
  timer_on(l, c, 0);
}

/* Takes the next request out of what was read, if it is whole. */
static void conn_advance(loop *l, conn *c) {
  if (c->start == c->in.len) {
    c->start = c->in.len = 0;
    return;
  }
  request q;
  size_t used = 0;
  int status = http_read(&c->framing, c->in.data + c->start, c->in.len - c->start, &q, &used);
  if (status == HTTP_CONTINUE) {
    const char go[] = "HTTP/1.1 100 Continue\r\n\r\n";
    if (send(c->fd, go, sizeof go - 1, MSG_NOSIGNAL) < 0) conn_close(l, c);
  } else if (status == HTTP_WHOLE) {
    l->mock->request = &q;
    conn_serve(l, c, &q);
    l->mock->request = NULL;
    c->framing = (framing){0};
    c->start += used;
    if (c->start == c->in.len) {
      c->start = c->in.len = 0;
    }
  } else if (status >= 400) {
    conn_refuse(l, c, status);
  }
}

static void conn_read(loop *l, conn *c) {
  for (;;) {
    if (c->start > KEEP_BYTES) {
      memmove(c->in.data, c->in.data + c->start, c->in.len - c->start);
      c->in.len -= c->start;
      c->start = 0;
    }
    buf_need(&c->in, READ_STEP);
    size_t room = c->in.cap - c->in.len - 1;
    ssize_t n = recv(c->fd, c->in.data + c->in.len, room, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) {
      conn_close(l, c);
      return;
    }
    c->in.len += (size_t)n;
    if (c->state == HOLDING || c->state == LINGERING) {
      c->in.len = c->start = 0;
    }
    if (c->state != READING && c->in.len - c->start > PIPELINE_MAX) {
      conn_close(l, c);
      return;
    }
    if ((size_t)n < room) break;
  }
  if (c->state == READING) conn_advance(l, c);
}

static void conn_written(loop *l, conn *c) {
  if (c->then == THEN_RESET) { /* the bytes get a moment to arrive before the reset */
    c->state = RESETTING;
    timer_on(l, c, 5);
    return;
  }
  if (c->then == THEN_HOLD) {
    c->state = HOLDING;
    stats_stall(l->mock, c->number);
    conn_watch(l, c, EPOLLIN);
    return;
  }
  conn_end(l, c, NULL);
  if (c->out.cap > KEEP_BYTES) {
    free(c->out.data);
    c->out = (buf){0};
  }
  if (c->then == THEN_CLOSE) {
    conn_linger(l, c);
    return;
  }
  c->state = READING;
  conn_watch(l, c, EPOLLIN);
  conn_advance(l, c); /* a request that came early; its reply waits for its timer */
}

static void conn_write(loop *l, conn *c) {
  c->state = WRITING;
  while (c->sent < c->release) {
    ssize_t n = send(c->fd, c->out.data + c->sent, c->release - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      conn_watch(l, c, EPOLLIN | EPOLLOUT);
      return;
    }
    if (n < 0) {
      conn_close(l, c);
      return;
    }
    c->sent += (size_t)n;
  }
  if (c->sent < c->limit) {
    c->state = WAITING;
    conn_watch(l, c, EPOLLIN);
    timer_on(l, c, l->mock->stream_ms);
    return;
  }
  conn_written(l, c);
}

static void conn_due(loop *l, conn *c) {
  timer_off(l, c);
  if (c->state == WAITING) {
    if (c->paced) conn_pace(c);
    conn_write(l, c);
  } else if (c->state == RESETTING) {
    conn_reset(l, c);
  } else {
    conn_close(l, c);
  }
}

static void watch(loop *l, int fd, void *who) {
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = who};
  epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e);
}

static void conn_accept(loop *l) {
  for (;;) {
    int fd = accept4(l->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return;
    }
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conn *c = l->spare;
    if (c) {
      l->spare = c->next;
    } else {
      c = malloc(sizeof *c);
      if (!c) exit(1);
      c->in = c->out = (buf){0};
    }
    buf in = c->in, out = c->out;
    in.len = out.len = 0;
    *c = (conn){.fd = fd, .in = in, .out = out, .heap_at = -1, .events = EPOLLIN};
    c->next = l->live;
    if (c->next) {
      c->next->prev = c;
    }
    l->live = c;
    watch(l, fd, c);
    l->mock->stats.connections++;
  }
}

/* Only now: events of this turn may still have pointed at them. */
static void conn_recycle(loop *l) {
  while (l->dead) {
    conn *c = l->dead;
    l->dead = c->next;
    if (c->in.cap > KEEP_BYTES) {
      free(c->in.data);
      c->in = (buf){0};
    }
    c->next = l->spare;
    l->spare = c;
  }
}

void loop_run(loop *l) {
  struct epoll_event events[EVENTS];
  for (;;) {
    int wait = -1;
    if (l->heap_n) {
      uint64_t due = l->heap[0]->due, now = clock_ns();
      uint64_t ms = due > now ? (due - now + 999999) / 1000000 : 0;
      wait = ms > INT_MAX ? INT_MAX : (int)ms;
    }
    int n = epoll_wait(l->epoll, events, EVENTS, wait);
    l->mock->now = clock_ns();
    for (int i = 0; i < n; i++) {
      void *who = events[i].data.ptr;
      if (who == &l->signals) return;
      if (who == &l->listener) {
        conn_accept(l);
        continue;
      }
      conn *c = who;
      if (c->state != CLOSED && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        conn_read(l, c);
      }
      if (c->state == WRITING && (events[i].events & EPOLLOUT)) conn_write(l, c);
    }
    while (l->heap_n && l->heap[0]->due <= l->mock->now) conn_due(l, l->heap[0]);
    conn_recycle(l);
    if (l->mock->log) fflush(l->mock->log);
  }
}

static bool listen_on(loop *l, uint16_t port) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  int one = 1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  socklen_t len = sizeof a;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  l->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(l->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(l->listener, (struct sockaddr *)&a, len) != 0 || listen(l->listener, 1024) != 0 ||
      getsockname(l->listener, (struct sockaddr *)&a, &len) != 0) {
    return false;
  }
  l->mock->port = ntohs(a.sin_port);
  return true;
}

loop *loop_open(mock *m) {
  loop *l = calloc(1, sizeof *l);
  if (!l) return NULL;
  l->mock = m;
  if (!listen_on(l, (uint16_t)m->port)) {
    free(l);
    return NULL;
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, NULL);
  l->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  l->epoll = epoll_create1(EPOLL_CLOEXEC);
  watch(l, l->listener, &l->listener);
  watch(l, l->signals, &l->signals);
  m->started = m->now = clock_ns();
  return l;
}

void loop_close(loop *l) {
  while (l->live) conn_close(l, l->live);
  conn_recycle(l);
  while (l->spare) {
    conn *c = l->spare;
    l->spare = c->next;
    free(c->in.data);
    free(c->out.data);
    free(c);
  }
  close(l->listener);
  close(l->signals);
  close(l->epoll);
  free(l->heap);
  free(l);
}
