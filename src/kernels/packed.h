/* Products with weights that stay the same while activations come and go, as in
 * generation: y[M,N] (+)= x[M,K] w[N,K]^T + bias for M = 1 up to any number of rows.
 *
 * The weights are packed once, as panels of 16 columns (outputs) side by side, k by k,
 * in one of three formats: f32; bf16; int8 with a scale for each output. For the last
 * two, activations are rounded to bf16 and sums are f32: a weight of 8 bits is exact as
 * a bf16 number, so that both go the same way.
 *
 * Each element of y is one sum over increasing k (by pairs where the processor multiplies
 * bf16 pairs), whatever M, the rows beside it and the panels asked for are. The instruction
 * set may change the rounding, so it must not change between put and product.
 *
 * Use: memory = zeroed, pl_packed_bytes(kind, N, K, has_bias);
 *      pl_packed_init(&p, kind, N, K, has_bias, memory); pl_packed_fill(&p, 0, N, w, bias);
 *      ld = pl_operand_ld(kind, K); for each row m: pl_operand_put(kind, x_m, 0, K, rows + m * ld);
 *      pl_packed_product(&p, M, rows, ld, false, y, ldy, 0, pl_packed_panels(&p)); */
#ifndef PL_KERNELS_PACKED_H
#define PL_KERNELS_PACKED_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PL_PACKED_COLS 16 /* columns of a panel */

typedef enum pl_pack_kind { PL_PACK_F32, PL_PACK_BF16, PL_PACK_INT8 } pl_pack_kind;

typedef struct pl_packed {
  pl_pack_kind kind;
  int64_t N, K;
  int64_t panel; /* bytes from panel to panel */
  char *data;    /* panels: f32 [K][16], bf16 [K/2][16][2], int8 [K][16]; K up to the next even */
  float *scale;  /* [N up to whole panels] int8 only, else NULL */
  float *bias;   /* [the same] or NULL */
} pl_packed;

size_t pl_packed_bytes(pl_pack_kind kind, int64_t N, int64_t K, bool has_bias);
/* memory: 64-byte aligned, all zero, the caller's; the columns are zero until they are filled */
void pl_packed_init(pl_packed *p, pl_pack_kind kind, int64_t N, int64_t K, bool has_bias,
                    void *memory);
/* Columns n0..n0+n-1 from w [n,K] and bias [n] (NULL: zero). Uses all threads. */
void pl_packed_fill(pl_packed *p, int64_t n0, int64_t n, const float *w, const float *bias);
static inline int64_t pl_packed_panels(const pl_packed *p) {
  return (p->N + PL_PACKED_COLS - 1) / PL_PACKED_COLS;
}

/* Bytes from row to row of the activations of a product, at most 4 K + 128. Rows must be
 * 64-byte aligned and zero where nothing was put. */
int64_t pl_operand_ld(pl_pack_kind kind, int64_t K);
/* Columns k0..k0+n-1 of one row from x [n]. */
void pl_operand_put(pl_pack_kind kind, const float *x, int64_t k0, int64_t n, void *row);

/* Panels p0..p1-1 of y [M,N] (rows ldy apart; y is column 0), on the calling thread alone.
 * add: to what is in y. */
void pl_packed_product(const pl_packed *p, int64_t M, const void *x, int64_t ldx, bool add,
                       float *y, int64_t ldy, int64_t p0, int64_t p1);

#endif
