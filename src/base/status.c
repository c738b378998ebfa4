/* Error text, the context's life, and the interrupt flag (the one mutable
 * global of the core, because a signal handler must reach it). Must not print. */
#include "base/status.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/mem_cache.h"
#include "base/profile.h"

static atomic_bool interrupted; /* lock-free on every target, so async-signal-safe */

pl_status pl_ctx_init(pl_ctx *c) {
  memset(c, 0, sizeof *c);
  c->grad_enabled = true;
  return pl_block_cache_new(c);
}

void pl_ctx_close(pl_ctx *c) {
  pl_profile_stop(c);
  pl_block_cache_free(c);
}

pl_status pl_fail(pl_ctx *c, pl_status st, const char *fmt, ...) {
  char text[PL_ERR_MAX]; /* an argument may point into c->err */
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  memcpy(c->err, text, sizeof text);
  return st;
}

pl_status pl_fail_in(pl_ctx *c, pl_status st, const char *fmt, ...) {
  char text[2 * PL_ERR_MAX + 4];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, PL_ERR_MAX, fmt, ap);
  va_end(ap);
  size_t used = strlen(text);
  snprintf(text + used, sizeof text - used, ": %s", c->err);
  text[PL_ERR_MAX - 1] = 0;
  memcpy(c->err, text, PL_ERR_MAX);
  return st;
}

void pl_interrupt_set(void) {
  atomic_store(&interrupted, true);
}

void pl_interrupt_clear(void) {
  atomic_store(&interrupted, false);
}

bool pl_interrupt_pending(void) {
  return atomic_load(&interrupted);
}

pl_status pl_check_interrupt(pl_ctx *c) {
  return pl_interrupt_pending() ? pl_fail(c, PL_EINTR, "interrupted") : PL_OK;
}
