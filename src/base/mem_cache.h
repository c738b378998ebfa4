/* Life of the block cache, for status.c alone; everyone else uses mem.h. */
#ifndef PL_BASE_MEM_CACHE_H
#define PL_BASE_MEM_CACHE_H
#include "base/status.h"

pl_status pl_block_cache_new(pl_ctx *c);
void pl_block_cache_free(pl_ctx *c); /* gives back all cached blocks; idempotent */
int64_t pl_block_cache_bytes(const pl_ctx *c); /* held, not handed out */

#endif
