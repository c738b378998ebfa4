/* An HTTP server for a program that answers from one thread of its own.
 *
 * libmicrohttpd runs in its own polling thread. Complete requests wait in a
 * queue until pl_server_take; their connections are suspended meanwhile and
 * cost nothing. Answers are whole (respond) or streamed (begin, write ...,
 * finish). No call waits for a client: what it does not read in time is kept
 * up to PL_SERVER_OUT_MAX bytes, and beyond that the client is given up.
 *
 * Wrong tokens, bodies that are too large and requests that come too slowly are
 * dealt with here; errors have the shape of OpenAI's services:
 * {"error": {"message", "type", "param", "code"}}.
 *
 * All calls come from one thread, the owner of c. What both threads touch lives
 * in a context of the server's own, used under its lock.
 * Must not know what is asked or answered. */
#ifndef PL_NET_SERVER_H
#define PL_NET_SERVER_H
#include "base/buf.h"

#define PL_SERVER_OUT_MAX ((size_t)4 << 20)   /* streamed bytes that wait for one client */
#define PL_SERVER_MEMORY ((int64_t)512 << 20) /* of all bodies and waiting bytes together */

typedef struct pl_server pl_server;

typedef struct pl_server_options {
  const char *address;   /* a name or a number */
  int port;              /* 0: any */
  const char *token_env; /* variable with the token that clients must send, or NULL. Its value
                            is copied, wiped from the environment and unset */
  bool token_optional;   /* an unset variable is no error, on a loopback address */
  const char *open_path; /* answered without a token, or NULL */
  size_t max_body;       /* bytes of one request's body */
  int max_connections;   /* more wait in the kernel */
  double idle_s;         /* a connection on which nothing moves for so long is closed */
  double request_s;      /* a request's body must be complete after so long */
} pl_server_options;

/* Headers and query arguments are pairs "name\0value\0"; header names in lower case. */
typedef struct pl_server_request {
  int64_t id;
  char method[16];
  pl_buf path, query, headers, body;
} pl_server_request;

typedef struct pl_server_header {
  const char *name, *value;
} pl_server_header;

/* Fails for a bad or taken address, and beyond loopback without a token. */
pl_status pl_server_listen(pl_ctx *c, const pl_server_options *o, pl_server **out);
void pl_server_close(pl_ctx *c, pl_server *s); /* cuts open connections; NULL is fine */
int pl_server_port(const pl_server *s);

/* Waits up to `seconds` for a request into *r (zero-initialised by the caller); r->id is 0 if
 * none came. Its buffers are c's: free them in every case. Polls the interrupt flag. */
pl_status pl_server_take(pl_ctx *c, pl_server *s, double seconds, pl_server_request *r);
void pl_server_request_free(pl_ctx *c, pl_server_request *r);

/* *live false: the client is gone, or was given up, or has its answer already. */
pl_status pl_server_respond(pl_ctx *c, pl_server *s, int64_t id, int status,
                            const pl_server_header *h, int n_h, const void *body, size_t n,
                            bool *live);
pl_status pl_server_begin(pl_ctx *c, pl_server *s, int64_t id, int status,
                          const pl_server_header *h, int n_h, bool *live);
bool pl_server_write(pl_server *s, int64_t id, const void *bytes, size_t n); /* live? */
void pl_server_finish(pl_server *s, int64_t id);
/* The next request that was taken and whose client went away before its answer was complete;
 * 0: none. Looks at suspended connections now and then, so call it regularly. */
int64_t pl_server_gone(pl_server *s);

#endif
