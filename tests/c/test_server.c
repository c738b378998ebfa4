/* The HTTP server: replies whole and streamed, clients that are slow, silent or gone, and that
 * closing it never hangs. The clients are sockets of this program's own. */
#define _GNU_SOURCE
#include "harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "net/server.h"

static const pl_server_options usual = {.address = "127.0.0.1", .max_body = 4096,
                                        .max_connections = 64, .idle_s = 60, .request_s = 60};

static int dial(const pl_server *s) {
  const struct sockaddr_in at = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)pl_server_port(s)),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  return connect(fd, (const struct sockaddr *)&at, sizeof at) == 0 ? fd : -1;
}

static int ask(const pl_server *s, const char *request) {
  const int fd = dial(s);
  const size_t n = strlen(request);
  return send(fd, request, n, MSG_NOSIGNAL) == (ssize_t)n ? fd : -1;
}

/* What comes until the text `end` has come, the other side closes, or 5 s pass. */
static size_t hear(int fd, char *to, size_t room, const char *end) {
  size_t n = 0;
  to[0] = '\0';
  while (n + 1 < room && (end == NULL || strstr(to, end) == NULL)) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, 5000) <= 0) {
      break;
    }
    const ssize_t k = recv(fd, to + n, room - n - 1, 0);
    if (k <= 0) {
      break;
    }
    n += (size_t)k;
    to[n] = '\0';
  }
  return n;
}

/* The id of the next request; 0: none within 5 s. */
static int64_t take(pl_server *s) {
  pl_server_request r = {0};
  CHECK_OK(pl_server_take(ctx(), s, 5, &r));
  const int64_t id = r.id;
  pl_server_request_free(ctx(), &r);
  return id;
}

/* Waits for a client to be noticed as gone. */
static int64_t gone(pl_server *s) {
  const double end = pl_now() + 5;
  int64_t id = 0;
  while (id == 0 && pl_now() < end) {
    id = pl_server_gone(s);
    usleep(1000);
  }
  return id;
}

#define GET "GET /x%20y?a=1&b=%26 HTTP/1.1\r\nHost: h\r\nX-Some: Thing\r\n\r\n"
#define POST "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"

TEST(server_answers) {
  pl_server *s = NULL;
  char text[4096];
  bool live = false;
  REQUIRE(pl_server_listen(ctx(), &usual, &s) == PL_OK);
  const int fd = ask(s, GET POST); /* two at once on one connection: one after the other */
  pl_server_request r = {0};
  CHECK_OK(pl_server_take(ctx(), s, 5, &r));
  CHECK(r.id > 0 && strcmp(r.method, "GET") == 0 && strcmp(r.path.data, "/x y") == 0);
  CHECK(r.query.len == 8 && memcmp(r.query.data, "a\0001\0b\0&", 8) == 0);
  CHECK(memmem(r.headers.data, r.headers.len, "x-some\0Thing", 13) != NULL);
  CHECK(r.body.len == 0);
  const pl_server_header h = {"X-Reply", "yes"};
  CHECK_OK(pl_server_respond(ctx(), s, r.id, 201, &h, 1, "first", 5, &live));
  CHECK(live);
  CHECK_OK(pl_server_respond(ctx(), s, r.id, 201, &h, 1, "again", 5, &live));
  CHECK(!live);
  pl_server_request_free(ctx(), &r);
  memset(&r, 0, sizeof r);
  CHECK_OK(pl_server_take(ctx(), s, 5, &r));
  CHECK(strcmp(r.method, "POST") == 0 && r.body.len == 5 && memcmp(r.body.data, "hello", 5) == 0);
  CHECK_OK(pl_server_begin(ctx(), s, r.id, 200, NULL, 0, &live));
  CHECK(live && pl_server_write(s, r.id, "one ", 4));
  hear(fd, text, sizeof text, "one ");
  CHECK(strncmp(text, "HTTP/1.1 201 ", 13) == 0 && strstr(text, "X-Reply: yes") != NULL);
  CHECK(strstr(text, "first") != NULL && strstr(text, "one ") != NULL);
  CHECK(pl_server_write(s, r.id, "two", 3));
  pl_server_finish(s, r.id);
  CHECK(!pl_server_write(s, r.id, "three", 5));
  hear(fd, text, sizeof text, "0\r\n\r\n");
  CHECK(strstr(text, "two") != NULL && strstr(text, "three") == NULL);
  pl_server_request_free(ctx(), &r);
  CHECK(pl_server_gone(s) == 0);
  CHECK(!pl_server_write(s, 12345, "x", 1));
  close(fd);
  pl_server_close(ctx(), s);
}

TEST(server_notices_clients_that_leave) {
  pl_server *s = NULL;
  bool live = false;
  REQUIRE(pl_server_listen(ctx(), &usual, &s) == PL_OK);
  int fd = ask(s, POST); /* while its answer is made */
  const int64_t first = take(s);
  close(fd);
  CHECK(gone(s) == first);
  CHECK_OK(pl_server_respond(ctx(), s, first, 200, NULL, 0, "", 0, &live));
  CHECK(!live);
  fd = ask(s, POST); /* in the middle of a stream */
  const int64_t second = take(s);
  CHECK_OK(pl_server_begin(ctx(), s, second, 200, NULL, 0, &live));
  CHECK(live && pl_server_write(s, second, "some", 4));
  close(fd);
  CHECK(gone(s) == second);
  CHECK(!pl_server_write(s, second, "more", 4));
  close(ask(s, POST)); /* perhaps before it was taken */
  pl_server_close(ctx(), s);
}

TEST(server_gives_up_clients_that_do_not_read) {
  pl_server *s = NULL;
  bool live = false;
  char text[4096];
  static const char block[65536];
  REQUIRE(pl_server_listen(ctx(), &usual, &s) == PL_OK);
  const int fd = ask(s, POST);
  const int64_t id = take(s);
  CHECK_OK(pl_server_begin(ctx(), s, id, 200, NULL, 0, &live));
  int64_t sent = 0;
  while (live && sent < (int64_t)64 << 20) {
    live = pl_server_write(s, id, block, sizeof block);
    sent += sizeof block;
  }
  CHECK(!live && sent >= (int64_t)PL_SERVER_OUT_MAX);
  const int other = ask(s, GET); /* others do not notice */
  const int64_t next = take(s);
  CHECK_OK(pl_server_respond(ctx(), s, next, 200, NULL, 0, "fine", 4, &live));
  hear(other, text, sizeof text, "fine");
  CHECK(live && strstr(text, "fine") != NULL);
  close(other);
  pl_server_close(ctx(), s); /* with a full buffer */
  close(fd);
}

TEST(server_refuses) {
  static const char large[] = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n";
  pl_server *s = NULL;
  char text[4096];
  pl_server_options o = usual;
  o.request_s = 0.2;
  o.token_env = "PL_TEST_SERVER_TOKEN";
  o.token_optional = true;
  o.open_path = "/open";
  setenv("PL_TEST_SERVER_TOKEN", "abc", 1);
  REQUIRE(pl_server_listen(ctx(), &o, &s) == PL_OK);
  CHECK(getenv("PL_TEST_SERVER_TOKEN") == NULL);
  int fd = ask(s, POST);
  hear(fd, text, sizeof text, "}}");
  CHECK(strstr(text, " 401 ") != NULL && strstr(text, "\"code\":\"invalid_api_key\"") != NULL);
  close(fd);
  fd = ask(s, large);
  hear(fd, text, sizeof text, "}}");
  CHECK(strstr(text, " 413 ") != NULL);
  close(fd);
  fd = ask(s, "GET /open HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer abcd\r\n\r\n");
  CHECK(take(s) > 0);
  close(fd);
  fd = ask(s, "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer abc\r\n\r\n");
  CHECK(take(s) > 0);
  close(fd);
  fd = ask(s, "POST /open HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe"); /* too slow */
  usleep(300000);
  CHECK(send(fd, "llo", 3, MSG_NOSIGNAL) == 3);
  hear(fd, text, sizeof text, NULL);
  CHECK(text[0] == '\0');
  close(fd);
  pl_server *more = NULL;
  pl_server_options p = usual;
  p.port = pl_server_port(s);
  CHECK(pl_server_listen(ctx(), &p, &more) == PL_EIO);
  CHECK(strstr(ctx()->err, "in use") != NULL);
  p.port = 0;
  p.address = "0.0.0.0";
  CHECK(pl_server_listen(ctx(), &p, &more) == PL_EINVAL);
  CHECK(strstr(ctx()->err, "other machines") != NULL);
  pl_server_close(ctx(), s);
}

TEST(server_work_may_take_longer_than_idling) {
  pl_server *s = NULL;
  bool live = false;
  char text[4096];
  pl_server_options o = usual;
  o.idle_s = 1;
  REQUIRE(pl_server_listen(ctx(), &o, &s) == PL_OK);
  const int idle = dial(s);
  const int whole = ask(s, POST);
  const int64_t first = take(s);
  const int streamed = ask(s, POST);
  const int64_t second = take(s);
  CHECK_OK(pl_server_begin(ctx(), s, second, 200, NULL, 0, &live));
  CHECK(pl_server_write(s, second, "one", 3));
  usleep(2300000);
  CHECK(pl_server_gone(s) == 0);
  CHECK_OK(pl_server_respond(ctx(), s, first, 200, NULL, 0, "late", 4, &live));
  CHECK(live && pl_server_write(s, second, "two", 3));
  pl_server_finish(s, second);
  hear(whole, text, sizeof text, "late");
  CHECK(strstr(text, "late") != NULL);
  hear(streamed, text, sizeof text, "0\r\n\r\n");
  CHECK(strstr(text, "two") != NULL && strstr(text, "0\r\n\r\n") != NULL);
  CHECK(hear(idle, text, sizeof text, NULL) == 0); /* closed long ago */
  close(idle);
  close(whole);
  close(streamed);
  pl_server_close(ctx(), s);
}

TEST(server_closes_whatever_is_open) {
  pl_server *s = NULL;
  bool live = false;
  int fds[24];
  REQUIRE(pl_server_listen(ctx(), &usual, &s) == PL_OK);
  for (int i = 0; i < 24; i++) { /* silent, half a request, waiting, taken, streamed, answered */
    fds[i] = ask(s, i % 6 == 0 ? "" : i % 6 == 1 ? "POST / HTT" : POST);
  }
  for (int i = 0; i < 12; i++) {
    const int64_t id = take(s);
    if (i % 3 == 1) {
      CHECK_OK(pl_server_begin(ctx(), s, id, 200, NULL, 0, &live));
      CHECK(pl_server_write(s, id, "x", 1));
    } else if (i % 3 == 2) {
      CHECK_OK(pl_server_respond(ctx(), s, id, 200, NULL, 0, "x", 1, &live));
    }
  }
  const double began = pl_now();
  pl_server_close(ctx(), s);
  CHECK(pl_now() - began < 2);
  for (int i = 0; i < 24; i++) {
    close(fds[i]);
  }
  pl_status st = PL_ENOMEM; /* every allocation fails once */
  for (int64_t n = 1; st == PL_ENOMEM && n < 20; n++) {
    ctx()->mem.fail_at = n;
    st = pl_server_listen(ctx(), &usual, &s);
  }
  ctx()->mem.fail_at = 0;
  CHECK(st == PL_OK);
  pl_server_close(ctx(), s);
}
