/* Reductions. Sums run in double, in an order fixed by the sizes alone.
 * Rows are contiguous: x [R, n]. Compiled for float and double. */
#ifndef PL_KERNELS_REDUCE_H
#define PL_KERNELS_REDUCE_H
#include <stdbool.h>
#include <stdint.h>

#define PL_DECLARE_REDUCE(T, S)                                                                  \
  /* y[a,c] = sum over k of x[a,k,c]; x [A,n,C] */                                               \
  void pl_sum_axis_##S(int64_t A, int64_t n, int64_t C, const T *x, T *y);                       \
  /* y[r] = largest (smallest) of row r, at[r] its first place; a NaN wins. n > 0. y or at        \
   * may be NULL */                                                                               \
  void pl_max_rows_##S(int64_t R, int64_t n, const T *x, bool smallest, T *y, int64_t *at);      \
  /* mean[r] and m2[r] = sum of squared distances from it (two passes). n > 0 */                 \
  void pl_moments_rows_##S(int64_t R, int64_t n, const T *x, T *mean, T *m2);                    \
  /* y[r] = log sum exp of row r, stable; -inf for rows of -inf and empty rows */                \
  void pl_lse_rows_##S(int64_t R, int64_t n, const T *x, T *y);                                  \
  /* y [R,n] = softmax of each row (log of it where asked); x == y allowed */                    \
  void pl_softmax_rows_##S(int64_t R, int64_t n, const T *x, bool log_of, T *y);                 \
  /* sets gx [R,n] from y = the result and its gradient g; gx == g allowed */                    \
  void pl_softmax_back_rows_##S(int64_t R, int64_t n, const T *y, const T *g, bool log_of,       \
                                T *gx);                                                          \
  /* y[r,k] = sum of x[r,0..k]; from the end where reverse */                                    \
  void pl_cumsum_rows_##S(int64_t R, int64_t n, const T *x, bool reverse, T *y);                 \
  /* at [n] = the stable order of x [n], NaN last (first where descending); scratch [n] */       \
  void pl_argsort_##S(int64_t n, const T *x, bool descending, int64_t *at, int64_t *scratch);

PL_DECLARE_REDUCE(float, f32)
PL_DECLARE_REDUCE(double, f64)

#endif
