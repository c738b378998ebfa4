/* Making tensors: constants, ranges, random numbers. Random ones are pure
 * functions of (seed, stream, element index), the same on any thread count. */
#ifndef PL_TENSOR_CREATE_H
#define PL_TENSOR_CREATE_H
#include "tensor/tensor.h"

pl_status pl_make_full(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, double v,
                       pl_tensor **out);
/* start, start + step, ... below stop (above, where step < 0). [n] */
pl_status pl_make_arange(pl_ctx *c, pl_dtype d, double start, double stop, double step,
                         pl_tensor **out);
/* n numbers from start to stop, both included. [n] */
pl_status pl_make_linspace(pl_ctx *c, pl_dtype d, double start, double stop, int64_t n,
                           pl_tensor **out);
pl_status pl_make_eye(pl_ctx *c, pl_dtype d, int64_t rows, int64_t cols, pl_tensor **out);
/* Uniform in [lo, hi). */
pl_status pl_make_rand(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, double lo, double hi,
                       uint64_t seed, uint64_t stream, pl_tensor **out);
/* Normal with the given mean and standard deviation. */
pl_status pl_make_randn(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, double mean,
                        double std, uint64_t seed, uint64_t stream, pl_tensor **out);
/* Whole numbers lo <= v < hi. */
pl_status pl_make_randint(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, int64_t lo,
                          int64_t hi, uint64_t seed, uint64_t stream, pl_tensor **out);
/* A permutation of 0 .. n-1, i64 [n]: 0-based positions. */
pl_status pl_make_randperm(pl_ctx *c, int64_t n, uint64_t seed, uint64_t stream, pl_tensor **out);
/* k draws from weights w [n] or [R, n] (not negative, need not sum to 1): 0-based positions,
 * i64 [k] or [R, k]. Without replacement: Efraimidis & Spirakis 2006. */
pl_status pl_make_multinomial(pl_ctx *c, const pl_tensor *w, int64_t k, bool replacement,
                              uint64_t seed, uint64_t stream, pl_tensor **out);

#endif
