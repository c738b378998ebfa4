/* Counted memory. Every allocation of the core goes through here, so that
 * the host can show it, limit it and hint Lua's collector. */
#ifndef PL_BASE_MEM_H
#define PL_BASE_MEM_H
#include "base/status.h"

/* 64-byte aligned, contents undefined; NULL with ctx->err set on failure.
 * bytes = 0 gives a valid pointer. Blocks of 32 KiB and more are kept on free
 * and reused, big ones also in parts (first touch of fresh pages is 10x slower
 * than the work done on them); pl_mem_trim gives them back. */
void *pl_alloc(pl_ctx *c, size_t bytes);
void *pl_alloc_zero(pl_ctx *c, size_t bytes);
/* realloc; NULL on failure, then p is still valid. */
void *pl_realloc(pl_ctx *c, void *p, size_t bytes);
void pl_free(pl_ctx *c, void *p); /* p may be NULL */
char *pl_strdup(pl_ctx *c, const char *s);
void pl_mem_trim(pl_ctx *c);
/* The limit of a program at its start: setting, which is the text of PL_MEMORY ("6000000000", "8G";
 * "0": none), else, where it is NULL or "", from the group's own limit in bytes (0: none).
 * PL_EINVAL: it is no size. */
pl_status pl_mem_start_limit(pl_ctx *c, const char *setting, int64_t group);
/* a*b into *out; PL_EINVAL on overflow of size_t or above PTRDIFF_MAX. */
pl_status pl_size_mul(pl_ctx *c, size_t a, size_t b, size_t *out);

#endif
