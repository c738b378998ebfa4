/* What a server needs before it serves: its address, its socket and its token.
 * Must not know HTTP. */
#ifndef PL_NET_LISTEN_H
#define PL_NET_LISTEN_H
#include <sys/socket.h>

#include "base/status.h"

typedef struct pl_listen_at {
  struct sockaddr_storage addr;
  socklen_t len;
  bool loopback; /* cannot be reached from other machines */
} pl_listen_at;

/* address: a name or a number, IPv4 or IPv6. */
pl_status pl_listen_resolve(pl_ctx *c, const char *address, int port, pl_listen_at *out);
/* A listening socket; *port: the one it got. */
pl_status pl_listen_open(pl_ctx *c, const pl_listen_at *at, const char *address, int *fd,
                         int *port);
/* The value of the variable env (NULL: none) into token[0..*len), then wiped from the
 * environment and unset. An unset one is an error unless optional. */
pl_status pl_listen_token(pl_ctx *c, const char *env, bool optional, char *token, size_t room,
                          size_t *len);

#endif
