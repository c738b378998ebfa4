/* Address, socket and token of a server: see listen.h. */
#define _GNU_SOURCE
#include "net/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define BACKLOG 512

static bool is_loopback(const struct sockaddr_storage *a) {
  if (a->ss_family == AF_INET) {
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
    return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
  }
  const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
  return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

pl_status pl_listen_resolve(pl_ctx *c, const char *address, int port, pl_listen_at *out) {
  if (port < 0 || port > 65535) {
    return pl_fail(c, PL_EINVAL, "serve: port %d; wanted 0 (any) to 65535", port);
  }
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                 .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
  struct addrinfo *list = NULL;
  const int bad = getaddrinfo(address, service, &hints, &list);
  if (bad != 0) {
    return pl_fail(c, PL_EINVAL, "serve: address \"%.100s\": %s; wanted one of this machine's, "
                   "such as 127.0.0.1 or 0.0.0.0", address, gai_strerror(bad));
  }
  memset(out, 0, sizeof *out);
  memcpy(&out->addr, list->ai_addr, list->ai_addrlen);
  out->len = list->ai_addrlen;
  out->loopback = is_loopback(&out->addr);
  freeaddrinfo(list);
  return PL_OK;
}

static int port_of(const struct sockaddr_storage *a) {
  return ntohs(a->ss_family == AF_INET ? ((const struct sockaddr_in *)a)->sin_port
                                       : ((const struct sockaddr_in6 *)a)->sin6_port);
}

pl_status pl_listen_open(pl_ctx *c, const pl_listen_at *at, const char *address, int *fd,
                         int *port) {
  struct sockaddr_storage got;
  socklen_t len = sizeof got;
  const int on = 1;
  const int s = socket(at->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (s < 0) {
    return pl_fail(c, PL_EIO, "serve: no socket: %s", strerror(errno));
  }
  (void)setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(s, (const struct sockaddr *)&at->addr, at->len) != 0 || listen(s, BACKLOG) != 0 ||
      getsockname(s, (struct sockaddr *)&got, &len) != 0) {
    const int why = errno;
    close(s);
    return pl_fail(c, PL_EIO, "serve: cannot listen on %.100s port %d: %s%s", address,
                   port_of(&at->addr), strerror(why),
                   why == EADDRINUSE ? " (another port: port=8081; any free one: port=0)" : "");
  }
  *fd = s;
  *port = port_of(&got);
  return PL_OK;
}

pl_status pl_listen_token(pl_ctx *c, const char *env, bool optional, char *token, size_t room,
                          size_t *len) {
  *len = 0;
  char *value = env == NULL ? NULL : getenv(env);
  if (value == NULL) {
    return env == NULL || optional
               ? PL_OK
               : pl_fail(c, PL_EINVAL, "serve: the environment variable %.100s, which should hold "
                         "the token that clients must send, is not set", env);
  }
  const size_t n = strlen(value);
  for (size_t i = 0; i < n; i++) {
    if (value[i] <= ' ' || value[i] > '~') {
      return pl_fail(c, PL_EINVAL, "serve: the token in %.100s has a blank, a line end or a "
                     "character that is not ASCII", env);
    }
  }
  if (n == 0 || n >= room) {
    return pl_fail(c, PL_EINVAL, "serve: the token in %.100s has %zu characters; wanted 1 to %zu",
                   env, n, room - 1);
  }
  const struct rlimit no_core = {0, 0}; /* a core file would hold the token */
  (void)setrlimit(RLIMIT_CORE, &no_core);
  memcpy(token, value, n);
  *len = n;
  explicit_bzero(value, n);
  unsetenv(env);
  return PL_OK;
}
