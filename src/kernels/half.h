/* bf16: the upper half of a float. A way to store and to multiply, never to add:
 * products of two bf16 numbers are exact in f32, and sums are f32 throughout. */
#ifndef PL_KERNELS_HALF_H
#define PL_KERNELS_HALF_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t pl_bf16;

/* Rounds to nearest, ties to even; a NaN stays one. */
static inline pl_bf16 pl_bf16_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  u += x == x ? 0x7fffU + (u >> 16 & 1) : 0;
  u |= x == x ? 0 : 0x400000U;
  return (pl_bf16)(u >> 16);
}

static inline float pl_bf16_float(pl_bf16 h) {
  const uint32_t u = (uint32_t)h << 16;
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

/* [n], on the calling thread; y may begin where x does. */
void pl_bf16_row(int64_t n, const float *x, pl_bf16 *y);
/* The same as floats; y may be x. */
void pl_bf16_round(int64_t n, const float *x, float *y);

/* A row-major matrix in memory: floats, or bf16 where half says so. */
typedef struct pl_mat {
  void *data;
  int64_t ld; /* elements from row to row */
  bool half;
} pl_mat;

/* C[M,N] = alpha * op(A) op(B) + beta * C with A and B rounded to bf16 where they are
 * floats, summed in f32. op = transpose where the flag says. C in bf16 wants beta = 0.
 * Fixed tiles of C, one thread a tile: the result does not depend on the number of threads. */
void pl_gemm_bf16(bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha, pl_mat A,
                  pl_mat B, float beta, pl_mat C);
/* the same, serial: products inside a block of the caller */
void pl_gemm_small_bf16(bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha, pl_mat A,
                        pl_mat B, float beta, pl_mat C);

#endif
