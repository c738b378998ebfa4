/* One span of addresses for all big blocks of a context, cut and joined as they come and go.
 * For mem.c alone; everyone else uses mem.h. */
#ifndef PL_BASE_ARENA_H
#define PL_BASE_ARENA_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pl_arena pl_arena;
typedef struct pl_piece pl_piece; /* a block or a hole */

pl_arena *pl_arena_new(void); /* NULL: no memory. It holds no pages yet. */
void pl_arena_close(pl_arena *a); /* a may be NULL; does nothing while there are blocks */

/* A block of at least `bytes` at a multiple of 64; NULL: the system has no more. *fresh: some of
 * it was never used, or was given back since. */
pl_piece *pl_arena_take(pl_arena *a, size_t bytes, bool *fresh);
void pl_arena_give(pl_arena *a, pl_piece *p);
void *pl_piece_at(const pl_piece *p);
size_t pl_piece_bytes(const pl_piece *p);

int64_t pl_arena_kept(const pl_arena *a); /* bytes held of the system beyond those of blocks */
/* Gives back the pages of the hole that was made longest ago; false: there is none. */
bool pl_arena_drop_oldest(pl_arena *a);
void pl_arena_trim(pl_arena *a); /* gives back all that is in no block */

#endif
