/* Kernels of generation beside the products (kernels/packed.h) and attention (attend.h): rows,
 * each one token.
 *
 * Each row's result is a function of that row and its text alone, so a text does not
 * change with its neighbours in a batch, nor with the number of threads.
 * On the calling thread; pointers and sizes only: no allocation, no failure. */
#ifndef PL_LM_ROWMATH_H
#define PL_LM_ROWMATH_H
#include <stdint.h>

/* y = x / sqrt(mean x^2 + eps) * w, [C] */
void pl_row_norm(int64_t C, const float *x, const float *w, double eps, float *y);

/* y = (x - mean) / sqrt(variance + eps) * w + b, [C] */
void pl_row_layer_norm(int64_t C, const float *x, const float *w, const float *b, double eps,
                       float *y);

/* h = gelu(u) in the tanh form, [n] */
void pl_row_gelu(int64_t n, const float *u, float *h);

/* h[i] = silu(gate[i]) * up[i] for n panels, each 16 gates and then 16 ups in gu; h [16 n] */
void pl_row_silu_mul(int64_t n, const float *gu, float *h);

/* Rotates H heads of one row in place; cs [D/2] cosines then [D/2] sines of its position. */
void pl_row_rope(int64_t H, int64_t D, float *x, const float *cs);

#endif
