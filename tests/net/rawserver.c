/* A server that misbehaves on request: the path chooses how. For the tests of the HTTP client; it
 * speaks raw sockets, uses libc alone, listens on 127.0.0.1 and ends with the program that started
 * it. Usage: rawserver, which prints "port N".
 *
 * It must not be clever: each case below is a few bytes and an end. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNS 1024
#define IN_MAX ((size_t)16 << 20)
#define PATHS 64
#define PATH_MAX_LEN 64
#define BOMB_BYTES ((size_t)1 << 20) /* about 160 MB unpacked */

enum ending { KEEP, FIN, RST, HANG };

typedef struct text {
  char *data;
  size_t len, cap;
} text;

typedef struct conn {
  int fd; /* -1: free */
  text in, out;
  size_t sent;
  int served; /* requests on this connection */
  enum ending ending;
  double due;   /* not before this moment is anything written */
  double pace;  /* seconds between single bytes of the body, or 0 */
  double hup;   /* close at this moment, or 0 */
  bool endless; /* the output begins again and again */
  bool busy;    /* a reply is on its way; the next request waits */
} conn;

typedef struct server {
  conn conns[CONNS];
  struct {
    char path[PATH_MAX_LEN];
    int n;
  } counts[PATHS];
  int connections;
  double started;
} server;

static void fail(const char *what) {
  fprintf(stderr, "rawserver: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void add(text *t, const void *bytes, size_t n) {
  if (t->len + n + 1 > t->cap) {
    t->cap = (t->len + n + 1) * 2;
    t->data = realloc(t->data, t->cap);
    if (!t->data) {
      fail("memory");
    }
  }
  memcpy(t->data + t->len, bytes, n);
  t->len += n;
  t->data[t->len] = 0;
}

static void put(text *t, const char *s) {
  add(t, s, strlen(s));
}

/* ---- replies ---- */

static void whole(conn *k, const char *status, const char *headers, const char *body, size_t n) {
  char head[4096];
  snprintf(head, sizeof head, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n", status, headers, n);
  put(&k->out, head);
  add(&k->out, body, n);
}

static void ok(conn *k) {
  static const char body[] = "{\"ok\":true}";
  whole(k, "200 OK", "Content-Type: application/json\r\n", body, sizeof body - 1);
}

static void announced(conn *k, const char *length, size_t n) {
  put(&k->out, "HTTP/1.1 200 OK\r\nContent-Length: ");
  put(&k->out, length);
  put(&k->out, "\r\n\r\n");
  for (size_t i = 0; i < n; i++) {
    put(&k->out, "x");
  }
}

static void chunked(conn *k, const char *headers) {
  put(&k->out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n");
  put(&k->out, headers);
  put(&k->out, "\r\n");
}

static void chunk(conn *k, const char *bytes) {
  char size[32];
  snprintf(size, sizeof size, "%zx\r\n", strlen(bytes));
  put(&k->out, size);
  put(&k->out, bytes);
  put(&k->out, "\r\n");
}

typedef struct bits {
  text *out;
  unsigned held;
  int n;
} bits;

static void put_bit(bits *b, unsigned bit) {
  b->held |= bit << b->n++;
  if (b->n == 8) {
    unsigned char byte = (unsigned char)b->held;
    add(b->out, &byte, 1);
    b->held = 0;
    b->n = 0;
  }
}

/* A Huffman code: most significant bit first (RFC 1951, 3.1.1). */
static void put_code(bits *b, unsigned code, int n) {
  for (int i = n - 1; i >= 0; i--) {
    put_bit(b, code >> i & 1);
  }
}

/* gzip of zeros without end: one block with fixed codes (RFC 1951, 3.2.6): a zero, then again and
 * again "258 bytes from 1 byte ago" in 13 bits. */
static void bomb(text *out) {
  static const unsigned char head[10] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3};
  bits b = {.out = out};
  add(out, head, sizeof head);
  put_bit(&b, 1);       /* the last block */
  put_bit(&b, 1);       /* fixed codes, */
  put_bit(&b, 0);       /* type 01 */
  put_code(&b, 0x30, 8); /* literal 0 */
  while (out->len < BOMB_BYTES) {
    put_code(&b, 0xc5, 8); /* length 258, symbol 285 */
    put_code(&b, 0, 5);    /* distance 1 */
  }
}

static uint32_t crc32(const char *s, size_t n) {
  uint32_t crc = 0xffffffff;
  for (size_t i = 0; i < n; i++) {
    crc ^= (unsigned char)s[i];
    for (int k = 0; k < 8; k++) {
      crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
  }
  return ~crc;
}

/* gzip with one stored block */
static void gzip(text *out, const char *s) {
  static const unsigned char head[10] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3};
  size_t n = strlen(s);
  uint32_t crc = crc32(s, n);
  unsigned char block[5] = {1, (unsigned char)n, (unsigned char)(n >> 8), (unsigned char)~n,
                            (unsigned char)(~n >> 8)};
  unsigned char tail[8] = {(unsigned char)crc, (unsigned char)(crc >> 8),
                           (unsigned char)(crc >> 16), (unsigned char)(crc >> 24),
                           (unsigned char)n, (unsigned char)(n >> 8), 0, 0};
  add(out, head, sizeof head);
  add(out, block, sizeof block);
  add(out, s, n);
  add(out, tail, sizeof tail);
}

static void counts(server *s, conn *k) {
  text body = {0};
  char line[128];
  snprintf(line, sizeof line, "{\"connections\":%d", s->connections);
  put(&body, line);
  for (int i = 0; i < PATHS && s->counts[i].path[0]; i++) {
    snprintf(line, sizeof line, ",\"%s\":%d", s->counts[i].path, s->counts[i].n);
    put(&body, line);
  }
  put(&body, "}");
  whole(k, "200 OK", "", body.data, body.len);
  free(body.data);
}

static const char events[] =
    ": hello\r\n\r\nevent: first\r\ndata: one\r\ndata:two\r\n\r\n"
    "id: 7\r\ndata: caf\xc3\xa9\r\n\r\ndata: [DONE]\r\n\r\n";

static void fill_headers(conn *k, int lines, size_t width) {
  put(&k->out, "HTTP/1.1 200 OK\r\n");
  for (int i = 0; i < lines; i++) {
    char name[32];
    snprintf(name, sizeof name, "X-Filler-%d: ", i);
    put(&k->out, name);
    for (size_t w = 0; w < width; w++) {
      put(&k->out, "y");
    }
    put(&k->out, "\r\n");
  }
  put(&k->out, "Content-Length: 2\r\n\r\nok");
}

static bool is(const char *path, const char *name) {
  return strcmp(path, name) == 0;
}

/* What the path asks for. `request` is the whole request, `ms` and `code` are from the query. */
static void reply(server *s, conn *k, const char *path, const text *request, double ms, int code) {
  k->ending = KEEP;
  if (is(path, "/ok")) {
    ok(k);
  } else if (is(path, "/echo")) {
    whole(k, "200 OK", "Content-Type: text/plain\r\n", request->data, request->len);
  } else if (is(path, "/count")) {
    counts(s, k);
  } else if (is(path, "/quit")) {
    exit(0);
  } else if (is(path, "/status")) {
    char status[32];
    snprintf(status, sizeof status, "%d Whatever", code);
    whole(k, status, "Retry-After: 3\r\n", "{\"error\":{}}", 12);
  } else if (is(path, "/slow")) {
    ok(k);
    k->due = now() + ms / 1000;
  } else if (is(path, "/reset-before")) {
    k->ending = RST;
  } else if (is(path, "/reset-reused")) { /* fine at first, read and broken when used again */
    if (k->served > 1) {
      k->ending = RST;
    } else {
      ok(k);
    }
  } else if (is(path, "/close-before")) {
    k->ending = FIN;
  } else if (is(path, "/reset-header")) {
    put(&k->out, "HTTP/1.1 200 OK\r\nContent-Le");
    k->ending = RST;
  } else if (is(path, "/close-header")) {
    put(&k->out, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n");
    k->ending = FIN;
  } else if (is(path, "/reset-body")) {
    announced(k, "1000", 100);
    k->ending = RST;
  } else if (is(path, "/short")) {
    announced(k, "1000", 100);
    k->ending = FIN;
  } else if (is(path, "/short-chunked")) {
    chunked(k, "");
    chunk(k, "one");
    k->ending = FIN;
  } else if (is(path, "/long-length")) {
    announced(k, "1099511627776", 100);
    k->ending = HANG;
  } else if (is(path, "/bad-length")) {
    announced(k, "many", 4);
    k->ending = FIN;
  } else if (is(path, "/no-length")) {
    put(&k->out, "HTTP/1.0 200 OK\r\n\r\nuntil the end");
    k->ending = FIN;
  } else if (is(path, "/endless")) {
    put(&k->out, "HTTP/1.1 200 OK\r\n\r\n");
    for (int i = 0; i < 4096; i++) {
      put(&k->out, "for ever and ev ");
    }
    k->endless = true;
  } else if (is(path, "/stall")) {
    announced(k, "1000", 100);
    k->ending = HANG;
  } else if (is(path, "/silent")) {
    k->ending = HANG;
  } else if (is(path, "/drip")) {
    announced(k, "1000", 1000);
    k->pace = ms > 0 ? ms / 1000 : 1;
  } else if (is(path, "/gzip")) {
    text packed = {0};
    gzip(&packed, "unpacked text");
    whole(k, "200 OK", "Content-Encoding: gzip\r\n", packed.data, packed.len);
    free(packed.data);
  } else if (is(path, "/gzip-bomb")) {
    text packed = {0};
    bomb(&packed);
    whole(k, "200 OK", "Content-Encoding: gzip\r\n", packed.data, packed.len);
    free(packed.data);
  } else if (is(path, "/bad-gzip")) {
    whole(k, "200 OK", "Content-Encoding: gzip\r\n", "this is no gzip", 15);
  } else if (is(path, "/redirect-file")) {
    whole(k, "302 Found", "Location: file:///etc/passwd\r\n", "", 0);
  } else if (is(path, "/redirect-host")) {
    whole(k, "302 Found", "Location: http://elsewhere.example/\r\n", "", 0);
  } else if (is(path, "/bad-http")) {
    put(&k->out, "SSH-2.0-nothing you wanted\r\n\r\n");
    k->ending = FIN;
  } else if (is(path, "/bad-chunk")) {
    chunked(k, "");
    put(&k->out, "3\r\none\r\nzz\r\ntwo\r\n");
    k->ending = FIN;
  } else if (is(path, "/big-headers")) {
    fill_headers(k, 1000, 1000);
  } else if (is(path, "/long-header")) {
    fill_headers(k, 1, 300000);
  } else if (is(path, "/headers")) {
    whole(k, "200 OK", "X-Request-Id: abc \r\nX-Twice: 1\r\nx-twice: 2\r\nX-Empty:\r\n", "ok", 2);
  } else if (is(path, "/early-hints")) {
    put(&k->out, "HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n");
    ok(k);
  } else if (is(path, "/sse")) {
    whole(k, "200 OK", "Content-Type: text/event-stream; charset=utf-8\r\n", events,
          sizeof events - 1);
    k->pace = ms / 1000;
  } else if (is(path, "/sse-open")) { /* events, then silence */
    chunked(k, "Content-Type: text/event-stream\r\n");
    chunk(k, "data: one\n\ndata: two\n\n");
    k->ending = HANG;
  } else if (is(path, "/sse-cut")) { /* no blank line behind the last event */
    chunked(k, "Content-Type: text/event-stream\r\n");
    chunk(k, "data: one\n\ndata: two\n");
    put(&k->out, "0\r\n\r\n");
  } else if (is(path, "/sse-reset")) {
    chunked(k, "Content-Type: text/event-stream\r\n");
    chunk(k, "data: one\n\ndata: two\n");
    k->ending = RST;
  } else if (is(path, "/close-idle")) {
    ok(k);
    k->hup = now() + ms / 1000;
  } else {
    whole(k, "404 Not Found", "", "no such case", 12);
  }
}

/* ---- connections ---- */

static void end(conn *k, bool reset) {
  if (reset) {
    struct linger hard = {.l_onoff = 1, .l_linger = 0};
    setsockopt(k->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  }
  close(k->fd);
  free(k->in.data);
  free(k->out.data);
  memset(k, 0, sizeof *k);
  k->fd = -1;
}

static void count(server *s, const char *path) {
  for (int i = 0; i < PATHS; i++) {
    if (!s->counts[i].path[0]) {
      snprintf(s->counts[i].path, PATH_MAX_LEN, "%s", path);
    }
    if (strcmp(s->counts[i].path, path) == 0) {
      s->counts[i].n++;
      return;
    }
  }
}

static double query_number(const char *query, const char *name, double usual) {
  const char *at = query ? strstr(query, name) : NULL;
  return at ? strtod(at + strlen(name), NULL) : usual;
}

/* Takes one whole request from the input, if there is one. */
static void take_request(server *s, conn *k) {
  char *end_of_head = k->in.len > 0 ? memmem(k->in.data, k->in.len, "\r\n\r\n", 4) : NULL;
  if (!end_of_head) {
    return;
  }
  size_t head = (size_t)(end_of_head - k->in.data) + 4;
  const char *length = strcasestr(k->in.data, "\r\nContent-Length:");
  size_t body = length && length < end_of_head ? strtoul(length + 17, NULL, 10) : 0;
  if (k->in.len < head + body) {
    return;
  }
  text request = {0};
  add(&request, k->in.data, head + body);
  memmove(k->in.data, k->in.data + head + body, k->in.len - head - body);
  k->in.len -= head + body;
  char path[PATH_MAX_LEN] = "";
  char query[PATH_MAX_LEN] = "";
  sscanf(request.data, "%*s %63[^? ]?%63[^ ]", path, query);
  count(s, path);
  k->served++;
  k->busy = true;
  k->sent = 0;
  k->out.len = 0;
  reply(s, k, path, &request, query_number(query, "ms=", 0),
        (int)query_number(query, "code=", 200));
  free(request.data);
}

static void receive(server *s, conn *k) {
  static char piece[65536];
  ssize_t n = recv(k->fd, piece, sizeof piece, MSG_DONTWAIT);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || k->in.len > IN_MAX) {
    end(k, false);
    return;
  }
  if (n > 0) {
    add(&k->in, piece, (size_t)n);
    if (!k->busy) {
      take_request(s, k);
    }
  }
}

/* The reply is out: what the case wants next. */
static void finished(server *s, conn *k) {
  if (k->ending == FIN || k->ending == RST) {
    end(k, k->ending == RST);
  } else if (k->ending == KEEP) {
    k->busy = false;
    k->pace = 0;
    take_request(s, k);
  }
}

static void transmit(server *s, conn *k) {
  size_t left = k->out.len - k->sent;
  size_t want = left;
  if (k->pace > 0 && left > 0) {
    const char *body = strstr(k->out.data, "\r\n\r\n") + 4;
    size_t head = (size_t)(body - k->out.data);
    want = k->sent < head ? head - k->sent : 1;
  }
  ssize_t n = want > 0 ? send(k->fd, k->out.data + k->sent, want, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
  if (n < 0) {
    if (errno != EAGAIN && errno != EINTR) {
      end(k, false);
    }
    return;
  }
  k->sent += (size_t)n;
  if (k->pace > 0) {
    k->due = now() + k->pace;
  }
  if (k->sent == k->out.len) {
    if (k->endless) {
      k->sent = 0;
    } else {
      if (k->ending == RST) { /* what was written must arrive before the reset overtakes it */
        usleep(20000);
      }
      finished(s, k);
    }
  }
}

static bool wants_to_send(const conn *k) {
  return k->busy && (k->sent < k->out.len || k->ending == RST || k->ending == FIN);
}

static void accept_all(server *s, int listener) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      return;
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    s->connections++;
    int i = 0;
    while (i < CONNS && s->conns[i].fd >= 0) {
      i++;
    }
    if (i < CONNS) {
      s->conns[i].fd = fd;
    } else {
      close(fd);
    }
  }
}

static void serve(server *s, int listener) {
  static struct pollfd p[CONNS + 1];
  static conn *of[CONNS + 1];
  for (;;) {
    double t = now();
    double wake = t + 1;
    nfds_t n = 1;
    p[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (int i = 0; i < CONNS; i++) {
      conn *k = &s->conns[i];
      if (k->fd >= 0 && k->hup > 0 && k->hup <= t) {
        end(k, false);
      }
      if (k->fd < 0) {
        continue;
      }
      bool send_now = wants_to_send(k) && k->due <= t;
      wake = wants_to_send(k) && k->due > t && k->due < wake ? k->due : wake;
      wake = k->hup > 0 && k->hup < wake ? k->hup : wake;
      of[n] = k;
      p[n++] = (struct pollfd){.fd = k->fd, .events = (short)(POLLIN | (send_now ? POLLOUT : 0))};
    }
    poll(p, n, (int)((wake - t) * 1000) + 1);
    if (p[0].revents) {
      accept_all(s, listener);
    }
    for (nfds_t i = 1; i < n; i++) {
      if (p[i].revents & (POLLIN | POLLERR | POLLHUP)) {
        receive(s, of[i]);
      }
      if (of[i]->fd == p[i].fd && p[i].revents & POLLOUT) {
        transmit(s, of[i]);
      }
    }
  }
}

int main(void) {
  static server s;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGPIPE, SIG_IGN);
  alarm(300);
  for (int i = 0; i < CONNS; i++) {
    s.conns[i].fd = -1;
  }
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof a;
  if (listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) != 0 ||
      listen(listener, 1024) != 0 || getsockname(listener, (struct sockaddr *)&a, &size) != 0) {
    fail("cannot listen");
  }
  printf("port %d\n", ntohs(a.sin_port));
  fflush(stdout);
  serve(&s, listener);
}
