/* Parallel loops over fixed blocks. The number of blocks must never depend on
 * the number of threads: that is what makes results the same on any number.
 * Nested calls run serially. OpenMP underneath. */
#ifndef PL_BASE_PAR_H
#define PL_BASE_PAR_H
#include <stdint.h>

typedef void (*pl_block_fn)(void *arg, int64_t block);
void pl_parallel(int64_t nblocks, pl_block_fn fn, void *arg);
/* In use: PL_THREADS at the first call, else as many as this process may have. A value that is no
 * number is passed over, see pl_threads_complaint. */
int pl_threads(void);
/* Cores that this process may use, whatever the quota and PL_THREADS say. */
int pl_cores(void);
/* What is wrong with PL_THREADS, in words (kept in out), or NULL: an error for who has a user. */
const char *pl_threads_complaint(char out[160]);
void pl_set_threads(int n);    /* clamped to 1..256 */
int pl_thread_id(void);        /* 0 .. pl_threads()-1 inside a block */

/* All threads at once in one function, which they go through together: for work in many
 * short steps, where starting a parallel loop for each would cost more than the step.
 * Members must all come to the same meetings. Shares are cut by rank and size; what is
 * computed must not depend on them. Called inside a parallel loop: a team of one. */
typedef struct pl_team pl_team;
typedef struct pl_member {
  int rank, size;
  pl_team *team;
} pl_member;
typedef void (*pl_team_fn)(void *arg, const pl_member *me);
void pl_team_run(pl_team_fn fn, void *arg);
void pl_team_meet(const pl_member *me); /* waits for the others; what they wrote is seen */
/* 0, 1, 2, ...: what is next of the items that the members take in turn, each when it is free.
 * Counted from the last meeting on, of which all members must have come back. */
int64_t pl_team_take(const pl_member *me);
/* This member's part first..last-1 of n items in order. */
static inline void pl_team_share(const pl_member *me, int64_t n, int64_t *first, int64_t *last) {
  *first = n * me->rank / me->size;
  *last = n * (me->rank + 1) / me->size;
}

#endif
