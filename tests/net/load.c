/* A light HTTP client for tests and figures of the server: one thread, raw sockets, a poll
 * loop, no library but libc. It must not know more of HTTP than the server speaks.
 *
 *   load bench PORT PATH FILE STREAMS REQUESTS   one JSON body a line of FILE, STREAMS at a time,
 *                                     each a stream that tells its usage; prints one JSON object
 *   load ask PORT PATH [-X METHOD] [-d FILE] [-H LINE]... [--chunked] [--hangup BYTES]
 *                                     prints the status, the headers, a blank line, the body
 *   load idle PORT N SECONDS          N connections that send nothing, or half a request
 *   load raw PORT FILE                sends the bytes, prints what comes back within 2 s */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 60000, TAIL = 512, READ_SIZE = 65536 };

static _Noreturn void die(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *more(void *p, size_t n) {
  p = realloc(p, n);
  if (p == NULL) {
    die("memory");
  }
  return p;
}

static int dial(const char *port) {
  struct sockaddr_in at = {.sin_family = AF_INET,
                           .sin_port = htons((uint16_t)strtol(port, NULL, 10)),
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  const int on = 1;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
    die("connect");
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

/* False: the other side closed. */
static bool send_all(int fd, const char *s, size_t n) {
  while (n > 0) {
    const ssize_t k = send(fd, s, n, MSG_NOSIGNAL);
    if (k < 0) {
      return false;
    }
    s += k;
    n -= (size_t)k;
  }
  return true;
}

static char *read_file(const char *path, size_t *n) {
  FILE *f = fopen(path, "rb");
  if (f == NULL) {
    die(path);
  }
  char *s = NULL;
  size_t k = 0;
  *n = 0;
  do {
    s = more(s, *n + READ_SIZE + 1);
    k = fread(s + *n, 1, READ_SIZE, f);
    *n += k;
  } while (k > 0);
  fclose(f);
  s[*n] = '\0';
  return s;
}

/* ---- many streams ---- */

typedef struct line {
  int fd;
  bool busy;
  size_t n_tail;
  char tail[TAIL + READ_SIZE + 1]; /* the end of what came, and what comes now */
} line;

typedef struct bench {
  const char *path;
  char **bodies;
  int n_bodies;
  int64_t asked, wanted, done, failed, tokens;
} bench;

static void ask_next(bench *b, line *l) {
  l->busy = b->asked < b->wanted;
  if (!l->busy) {
    return;
  }
  const char *body = b->bodies[b->asked % b->n_bodies];
  char head[512];
  const int n = snprintf(head, sizeof head,
                         "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         "Content-Length: %zu\r\n\r\n", b->path, strlen(body));
  b->asked++;
  l->n_tail = 0;
  if (!send_all(l->fd, head, (size_t)n) || !send_all(l->fd, body, strlen(body))) {
    die("send");
  }
}

/* More of a stream: is it over? Its usage and its end are in the last few hundred bytes. */
static void hear(bench *b, line *l) {
  static const char usage[] = "\"completion_tokens\":";
  const ssize_t n = recv(l->fd, l->tail + l->n_tail, READ_SIZE, 0);
  if (n <= 0) {
    die("the server closed a stream");
  }
  l->n_tail += (size_t)n;
  l->tail[l->n_tail] = '\0';
  if (l->n_tail >= 5 && memcmp(l->tail + l->n_tail - 5, "0\r\n\r\n", 5) == 0) {
    const char *at = strstr(l->tail, usage);
    b->tokens += at == NULL ? 0 : strtoll(at + sizeof usage - 1, NULL, 10);
    b->failed += at == NULL;
    b->done++;
    ask_next(b, l);
    return;
  }
  if (l->n_tail > TAIL) {
    memmove(l->tail, l->tail + l->n_tail - TAIL, TAIL);
    l->n_tail = TAIL;
  }
}

static double cpu_seconds(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static int run_bench(char **arg) {
  size_t n = 0;
  char *text = read_file(arg[2], &n);
  const int streams = (int)strtol(arg[3], NULL, 10);
  bench b = {.path = arg[1], .wanted = strtol(arg[4], NULL, 10)};
  for (char *at = text; *at != '\0';) {
    char *end = strchrnul(at, '\n');
    const bool last = *end == '\0';
    *end = '\0';
    b.bodies = more(b.bodies, sizeof *b.bodies * (size_t)(b.n_bodies + 1));
    b.bodies[b.n_bodies++] = at;
    at = last ? end : end + 1;
  }
  line *l = more(NULL, sizeof *l * (size_t)streams);
  struct pollfd *p = more(NULL, sizeof *p * (size_t)streams);
  const double start = now();
  for (int i = 0; i < streams; i++) {
    l[i].fd = dial(arg[0]);
    p[i] = (struct pollfd){.fd = l[i].fd, .events = POLLIN};
    ask_next(&b, &l[i]);
  }
  while (b.done < b.wanted) {
    if (poll(p, (nfds_t)streams, PATIENCE_MS) <= 0) {
      die("nothing comes");
    }
    for (int i = 0; i < streams; i++) {
      if (p[i].revents != 0) {
        hear(&b, &l[i]);
      }
    }
  }
  const double seconds = now() - start;
  printf("{\"requests\":%lld,\"failed\":%lld,\"tokens\":%lld,\"seconds\":%.3f,"
         "\"tokens_per_s\":%.1f,\"client_cpu\":%.4f}\n",
         (long long)b.done, (long long)b.failed, (long long)b.tokens, seconds,
         (double)b.tokens / seconds, cpu_seconds() / seconds);
  free(l);
  free(p);
  free(b.bodies);
  free(text);
  return b.failed == 0 ? 0 : 1;
}

/* ---- one request ---- */

/* Takes the chunk marks out of body[0..n); returns its length. */
static size_t unchunk(char *body, size_t n) {
  size_t from = 0;
  size_t to = 0;
  while (from < n) {
    char *end = NULL;
    const size_t size = strtoul(body + from, &end, 16);
    from = (size_t)(end - body) + 2;
    if (size == 0 || from + size > n) {
      break;
    }
    memmove(body + to, body + from, size);
    to += size;
    from += size + 2;
  }
  return to;
}

/* Reads until the other side closes, `most` bytes came or nothing comes for `patience` ms. */
static char *read_reply(int fd, size_t most, int patience, size_t *n) {
  char *s = more(NULL, READ_SIZE + 1);
  *n = 0;
  while (*n < most) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, patience) <= 0) {
      break;
    }
    s = more(s, *n + READ_SIZE + 1);
    const ssize_t k = recv(fd, s + *n, READ_SIZE, 0);
    if (k <= 0) {
      break;
    }
    *n += (size_t)k;
  }
  s[*n] = '\0';
  return s;
}

static void send_body(int fd, const char *body, size_t n, bool chunked) {
  static const size_t piece = 5000;
  if (!chunked) {
    (void)send_all(fd, body, n);
    return;
  }
  for (size_t i = 0; i < n; i += piece) {
    const size_t k = n - i < piece ? n - i : piece;
    char mark[32];
    const int m = snprintf(mark, sizeof mark, "%zx\r\n", k);
    if (!send_all(fd, mark, (size_t)m) || !send_all(fd, body + i, k) || !send_all(fd, "\r\n", 2)) {
      return; /* refused before the end: the reply says why */
    }
  }
  (void)send_all(fd, "0\r\n\r\n", 5);
}

static int run_ask(int argc, char **arg) {
  const char *method = NULL;
  char *body = NULL;
  size_t n_body = 0;
  size_t hangup = SIZE_MAX;
  bool chunked = false;
  char lines[4096] = "";
  size_t used = 0;
  for (int i = 2; i < argc; i++) {
    const char *option = arg[i];
    if (strcmp(option, "--chunked") == 0) {
      chunked = true;
      continue;
    }
    const char *value = i + 1 < argc ? arg[++i] : "";
    if (strcmp(option, "-X") == 0) {
      method = value;
    } else if (strcmp(option, "-d") == 0) {
      body = read_file(value, &n_body);
    } else if (strcmp(option, "-H") == 0) {
      used += (size_t)snprintf(lines + used, sizeof lines - used, "%s\r\n", value);
    } else if (strcmp(option, "--hangup") == 0) {
      hangup = strtoul(value, NULL, 10);
    }
  }
  method = method != NULL ? method : body != NULL ? "POST" : "GET";
  char head[8192];
  char length[64] = "Transfer-Encoding: chunked\r\n";
  if (!chunked) {
    snprintf(length, sizeof length, "Content-Length: %zu\r\n", n_body);
  }
  const int n = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: localhost\r\n"
                         "Connection: close\r\n%s%s\r\n", method, arg[1],
                         body == NULL ? "" : length, lines);
  const int fd = dial(arg[0]);
  if (send_all(fd, head, (size_t)n) && body != NULL) {
    send_body(fd, body, n_body, chunked);
  }
  size_t got = 0;
  char *reply = read_reply(fd, hangup, PATIENCE_MS, &got);
  close(fd);
  char *split = strstr(reply, "\r\n\r\n");
  if (split == NULL) {
    printf("000\n\n%s", reply);
    return hangup == SIZE_MAX;
  }
  *split = '\0';
  size_t rest = got - (size_t)(split + 4 - reply);
  if (strcasestr(reply, "\r\ntransfer-encoding: chunked") != NULL) {
    rest = unchunk(split + 4, rest);
  }
  printf("%.3s\n", reply + strcspn(reply, " ") + 1);
  for (char *at = strstr(reply, "\r\n"); at != NULL;) {
    char *next = strstr(at + 2, "\r\n");
    printf("%.*s\n", next == NULL ? (int)strlen(at + 2) : (int)(next - at - 2), at + 2);
    at = next;
  }
  printf("\n");
  fwrite(split + 4, 1, rest, stdout);
  free(reply);
  free(body);
  return 0;
}

static int run_idle(char **arg) {
  static const char half[] = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                             "Content-Length: 100\r\n\r\n{";
  const int n = (int)strtol(arg[1], NULL, 10);
  for (int i = 0; i < n; i++) {
    const int fd = dial(arg[0]);
    if (i % 2 == 1) {
      (void)send_all(fd, half, sizeof half - 1);
    }
  }
  printf("open\n");
  fflush(stdout);
  sleep((unsigned)strtoul(arg[2], NULL, 10));
  return 0;
}

static int run_raw(char **arg) {
  size_t n = 0;
  char *bytes = read_file(arg[1], &n);
  const int fd = dial(arg[0]);
  (void)send_all(fd, bytes, n);
  size_t got = 0;
  char *reply = read_reply(fd, SIZE_MAX, 2000, &got);
  fwrite(reply, 1, got, stdout);
  free(reply);
  free(bytes);
  return 0;
}

int main(int argc, char **argv) {
  const char *job = argc > 1 ? argv[1] : "";
  signal(SIGPIPE, SIG_IGN);
  if (strcmp(job, "bench") == 0 && argc == 7) {
    return run_bench(argv + 2);
  }
  if (strcmp(job, "ask") == 0 && argc >= 4) {
    return run_ask(argc - 2, argv + 2);
  }
  if (strcmp(job, "idle") == 0 && argc == 5) {
    return run_idle(argv + 2);
  }
  if (strcmp(job, "raw") == 0 && argc == 4) {
    return run_raw(argv + 2);
  }
  fprintf(stderr, "usage: load bench|ask|idle|raw PORT ...  (see the head of load.c)\n");
  return 2;
}
