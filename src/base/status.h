/* Status codes, the error text and the context every core call takes first.
 *
 * The core returns a status and fills ctx->err; it never prints, exits or
 * aborts. Only src/bind raises Lua errors. The one mutable global of the
 * program is the interrupt flag, because a signal handler must reach it. */
#ifndef PL_BASE_STATUS_H
#define PL_BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum pl_status {
  PL_OK = 0,
  PL_EINVAL,  /* the caller asked for something impossible (shape, option) */
  PL_ENOMEM,  /* out of memory or over the limit set by the user */
  PL_EIO,     /* the operating system refused: errno's text is in the message */
  PL_EFORMAT, /* a file or text is malformed: the message names it and where */
  PL_ENOENT,  /* no such file, name or further item */
  PL_EINTR    /* Ctrl-C */
} pl_status;

#define PL_ERR_MAX 1024

typedef struct pl_block_cache pl_block_cache; /* freed big blocks, kept warm: mem.c */
typedef struct pl_profile pl_profile;         /* profile.h */

/* Who set the limit on memory: what can be changed about it. */
typedef enum pl_limit_by {
  PL_LIMIT_CALLER,
  PL_LIMIT_SETTING, /* PL_MEMORY */
  PL_LIMIT_GROUP    /* the control group */
} pl_limit_by;

typedef struct pl_mem {
  int64_t live;      /* bytes handed out now */
  int64_t peak;      /* highest value of live */
  int64_t fresh;     /* large blocks that had to be asked of the system, ever */
  int64_t limit;     /* 0 = none; an allocation that would pass it fails */
  pl_limit_by limit_by;
  int64_t fail_at;   /* tests: fail the n-th allocation from now; 0 = never */
  pl_block_cache *cache;
} pl_mem;

/* One per Lua state. No locking: used from the thread that owns the state. */
typedef struct pl_ctx {
  char err[PL_ERR_MAX]; /* text of the last failure, "" if none */
  pl_mem mem;
  bool grad_enabled; /* record operations for backward() */
  bool bf16; /* autocast: a model's matrix products take bf16 and sum in f32 */
  uint64_t node_seq; /* order in which tape nodes were made */
  pl_profile *profile; /* time by op while it is counted, else NULL */
} pl_ctx;

pl_status pl_ctx_init(pl_ctx *c);  /* grad on, no limit */
void pl_ctx_close(pl_ctx *c);      /* frees the block cache; idempotent */

/* Fills the error text (truncated to PL_ERR_MAX) and returns st. */
pl_status pl_fail(pl_ctx *c, pl_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " in front of the present error text; returns st. */
pl_status pl_fail_in(pl_ctx *c, pl_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define PL_TRY(expr)             \
  do {                           \
    pl_status try_st_ = (expr);  \
    if (try_st_ != PL_OK) {      \
      return try_st_;            \
    }                            \
  } while (0)

/* The interrupt flag. Set by the signal handler, polled by long loops. */
void pl_interrupt_set(void); /* async-signal-safe */
void pl_interrupt_clear(void);
bool pl_interrupt_pending(void);
pl_status pl_check_interrupt(pl_ctx *c); /* PL_EINTR "interrupted" or PL_OK */

#endif
