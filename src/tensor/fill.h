/* Filling fresh tensors: constants, ranges and counter-based random numbers.
 * t must be contiguous and not yet shared. Element i depends on (seed, stream,
 * i) alone, so the values are the same on any number of threads. */
#ifndef PL_TENSOR_FILL_H
#define PL_TENSOR_FILL_H
#include "tensor/tensor.h"

void pl_fill_value(pl_tensor *t, double v);
void pl_fill_range(pl_tensor *t, double from, double step);           /* from + i * step */
void pl_fill_normal(pl_tensor *t, uint64_t seed, uint64_t stream);    /* mean 0, deviation 1 */
void pl_fill_uniform(pl_tensor *t, uint64_t seed, uint64_t stream);   /* [0, 1) */
/* Whole numbers low, ..., low + n - 1; n > 0. */
void pl_fill_integers(pl_tensor *t, uint64_t seed, uint64_t stream, int64_t low, uint64_t n);
void pl_fill_eye(pl_tensor *t);                                       /* 1 where row = column */

#endif
