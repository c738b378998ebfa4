/* What may be asked of whom: addresses and header lines are checked here, before a byte is sent. */
#ifndef PL_NET_URL_H
#define PL_NET_URL_H
#include "base/status.h"

typedef struct pl_url {
  char host[300]; /* host, or host:port where the address names one: for messages */
  bool loopback;  /* localhost, 127.0.0.0/8 or [::1] */
} pl_url;

/* https, or http to this machine; http elsewhere only with insecure. PL_EINVAL says why not.
 * Messages never hold more of the address than its host, for a path or query may hold a key. */
pl_status pl_url_check(pl_ctx *c, const char *url, size_t n, bool insecure, pl_url *out);
/* "Name: value" with a proper name and no line end or NUL, which would begin another header. */
pl_status pl_header_check(pl_ctx *c, const char *line, size_t n);
bool pl_method_ok(const char *method); /* capital letters */

#endif
