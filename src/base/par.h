/* Parallel loops over fixed blocks. The number of blocks must never depend on
 * the number of threads: that is what makes results the same on any number.
 * Nested calls run serially. OpenMP underneath. */
#ifndef PL_BASE_PAR_H
#define PL_BASE_PAR_H
#include <stdint.h>

typedef void (*pl_block_fn)(void *arg, int64_t block);
void pl_parallel(int64_t nblocks, pl_block_fn fn, void *arg);
int pl_threads(void);          /* in use */
void pl_set_threads(int n);    /* clamped to 1..256 */
int pl_thread_id(void);        /* 0 .. pl_threads()-1 inside a block */

#endif
