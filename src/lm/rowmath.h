/* Kernels of generation: few rows, one new token each.
 *
 * Why not kernels/gemm: there a row's rounding depends on how many rows are in
 * the batch. Here each row's result is a function of that row alone, so a text
 * does not change with its neighbours in a batch, nor with the number of
 * threads; and 1 to 64 rows are where BLAS libraries are slowest.
 * Pointers and sizes only: no allocation, no failure. */
#ifndef PL_LM_ROWMATH_H
#define PL_LM_ROWMATH_H
#include <stdbool.h>
#include <stdint.h>

#define PL_KV_BLOCK 32 /* positions in one block of the key-value cache */

/* One product y[M,N] (ldy) = x[M,K] w[N,K]^T, added to y where `add`. */
typedef struct pl_row_job {
  const float *x; /* [M,K] */
  const float *w; /* [N,K] */
  float *y;       /* [M,ldy] */
  int64_t N, K, ldy;
  bool add;
} pl_row_job;

/* Runs all jobs (at most 3) on the same M rows in one parallel region. */
void pl_row_matmul(int64_t M, const pl_row_job *job, int n_jobs);

/* y[n,:] = x[n,:] / sqrt(mean x^2 + eps) * w */
void pl_row_norm(int64_t M, int64_t C, const float *x, const float *w, double eps, float *y);

/* a[n,:] = silu(a[n,:]) * b[n,:] */
void pl_row_silu_mul(int64_t M, int64_t F, float *a, const float *b);

/* Rotates H heads of one row in place; cs [D/2] cosines then [D/2] sines of its position. */
void pl_row_rope(int64_t H, int64_t D, float *x, const float *cs);

/* A cache block of one layer: keys [K][D][PL_KV_BLOCK], then values [K][PL_KV_BLOCK][D]. */
static inline int64_t pl_kv_layer_floats(int64_t K, int64_t D) { return 2 * K * D * PL_KV_BLOCK; }
/* Writes one position's keys and values [K*D] into place `at` of a block. */
void pl_kv_write(int64_t K, int64_t D, const float *k, const float *v, int64_t at, float *block);

/* Attention of one row, q [H*D] (scaled by the callee) over two runs of blocks: n0
 * positions in b0, then n1 in b1 (pointers to the layer's part of each block).
 * scratch: ((n0 + n1) rounded up by 2 blocks) floats. y [H*D]. */
void pl_row_attention(int64_t H, int64_t K, int64_t D, const float *q, float *const *b0, int64_t n0,
                      float *const *b1, int64_t n1, int64_t layer_offset, float *scratch, float *y);

#endif
