/* A growable byte buffer with a maximum: passing it is an error, not a
 * surprise. Zero-initialise with pl_buf_init; free with pl_buf_free. */
#ifndef PL_BASE_BUF_H
#define PL_BASE_BUF_H
#include "base/status.h"

typedef struct pl_buf {
  char *data; /* always NUL-terminated once something was added; NULL before */
  size_t len, cap, max;
} pl_buf;

void pl_buf_init(pl_buf *b, size_t max);
void pl_buf_free(pl_ctx *c, pl_buf *b);
void pl_buf_reset(pl_buf *b); /* keep the memory, forget the contents */
pl_status pl_buf_add(pl_ctx *c, pl_buf *b, const void *bytes, size_t n);
pl_status pl_buf_puts(pl_ctx *c, pl_buf *b, const char *s);
pl_status pl_buf_printf(pl_ctx *c, pl_buf *b, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
