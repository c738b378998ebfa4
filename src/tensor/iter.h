/* Walking up to PL_ITER_OPS tensors of one (broadcast) shape together.
 *
 * Dims that lie behind each other in every operand are merged first, so that
 * contiguous work arrives as one long run. Big work is cut into blocks of
 * fixed size and spread over the threads; the function must treat elements
 * independently of each other.
 *
 *   pl_iter it;
 *   pl_iter_init(&it, ndim, shape);
 *   pl_iter_add(&it, out); pl_iter_add(&it, a);
 *   pl_iter_run(&it, fn, arg);   fn(arg, n, ptr, stride) for each run
 */
#ifndef PL_TENSOR_ITER_H
#define PL_TENSOR_ITER_H
#include "tensor/tensor.h"

#define PL_ITER_OPS 6

typedef struct pl_iter {
  int nop, ndim;
  int64_t n; /* elements in all */
  int64_t shape[PL_MAX_DIMS];
  char *ptr[PL_ITER_OPS];
  size_t esize[PL_ITER_OPS];
  int64_t stride[PL_ITER_OPS][PL_MAX_DIMS]; /* elements */
} pl_iter;

/* n elements starting at ptr[k], stride[k] elements apart. */
typedef void (*pl_iter_fn)(void *arg, int64_t n, char *const *ptr, const int64_t *stride);

void pl_iter_init(pl_iter *it, int ndim, const int64_t *shape);
void pl_iter_add(pl_iter *it, const pl_tensor *t); /* t must broadcast to the shape */
void pl_iter_run(pl_iter *it, pl_iter_fn fn, void *arg);

#endif
