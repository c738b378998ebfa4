/* The growable buffer of buf.h: doubles up to its maximum, keeps a NUL behind
 * the contents so that text can be used as it stands. */
#include "base/buf.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

void pl_buf_init(pl_buf *b, size_t max) {
  memset(b, 0, sizeof *b);
  b->max = max;
}

void pl_buf_free(pl_ctx *c, pl_buf *b) {
  pl_free(c, b->data);
  b->data = NULL;
  b->len = 0;
  b->cap = 0;
}

void pl_buf_reset(pl_buf *b) {
  b->len = 0;
  if (b->data) {
    b->data[0] = 0;
  }
}

/* Makes room for n more bytes and the NUL. */
static pl_status reserve(pl_ctx *c, pl_buf *b, size_t n) {
  if (n > b->max || b->len > b->max - n) {
    return pl_fail(c, PL_EINVAL, "buffer full: %zu + %zu bytes are over its maximum of %zu",
                   b->len, n, b->max);
  }
  size_t need = b->len + n + 1;
  if (need <= b->cap) {
    return PL_OK;
  }
  size_t cap = b->cap < 64 ? 64 : b->cap;
  while (cap < need) {
    cap = cap > SIZE_MAX / 2 ? need : cap * 2;
  }
  if (cap > b->max + 1 && b->max < SIZE_MAX) {
    cap = b->max + 1;
  }
  char *p = pl_realloc(c, b->data, cap);
  if (!p) {
    return PL_ENOMEM;
  }
  b->data = p;
  b->cap = cap;
  return PL_OK;
}

pl_status pl_buf_add(pl_ctx *c, pl_buf *b, const void *bytes, size_t n) {
  PL_TRY(reserve(c, b, n));
  if (n > 0) {
    memcpy(b->data + b->len, bytes, n);
  }
  b->len += n;
  b->data[b->len] = 0;
  return PL_OK;
}

pl_status pl_buf_puts(pl_ctx *c, pl_buf *b, const char *s) {
  return pl_buf_add(c, b, s, strlen(s));
}

pl_status pl_buf_printf(pl_ctx *c, pl_buf *b, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(NULL, 0, fmt, ap);
  va_end(ap);
  if (n < 0) {
    return pl_fail(c, PL_EINVAL, "cannot format the text \"%s\"", fmt);
  }
  PL_TRY(reserve(c, b, (size_t)n));
  va_start(ap, fmt);
  vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
  va_end(ap);
  b->len += (size_t)n;
  return PL_OK;
}
