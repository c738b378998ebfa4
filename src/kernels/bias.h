/* Biases of matrices whose rows may lie ld apart (a range of columns). */
#ifndef PL_KERNELS_BIAS_H
#define PL_KERNELS_BIAS_H
#include <stdint.h>

#include "kernels/half.h"

#define PL_DECLARE_BIAS(T, A, S)                                                        \
  /* y[n,:] += b, y [N,C] rows ld apart */                                              \
  void pl_bias_##S(int64_t N, int64_t C, int64_t ld, const T *b, A *y);                 \
  /* sets gb[c] = sum_n g[n,c], rows in order */                                        \
  void pl_bias_back_##S(int64_t N, int64_t C, int64_t ld, const A *g, T *gb);           \
  /* y = x + b to each row; b may be NULL */                                            \
  void pl_residual_##S(int64_t N, int64_t C, const T *x, const T *b, T *y);

PL_DECLARE_BIAS(float, float, f32)
PL_DECLARE_BIAS(double, double, f64)
PL_DECLARE_BIAS(float, pl_bf16, bf16)

#endif
