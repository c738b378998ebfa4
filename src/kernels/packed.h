/* Products with weights that stay the same while activations come and go, as in
 * generation: y[M,N] (+)= x[M,K] w[N,K]^T + bias for M = 1 up to any number of rows.
 *
 * The weights are packed once, as panels of 16 columns (outputs) side by side, in one of
 * three formats: f32; bf16; int8 with a scale for each output. Activations are rounded to
 * the same format: to bf16, or to 8 bits with a scale for each piece of a row (absmax / 127,
 * to the nearest even, as weights are), so that the products of a piece are a sum of integers
 * where the processor has them. Sums of pieces and of bf16 products are f32.
 *
 * Each element of y is one sum over increasing k (by pairs or fours where the processor
 * multiplies so), whatever M, the rows beside it and the panels asked for are. The instruction
 * set may change the rounding, so it must not change between put and product.
 *
 * Use: pl_operand in = {kind, K, piece}; memory = zeroed, pl_packed_bytes(&in, N, has_bias);
 *      pl_packed_init(&p, &in, N, has_bias, memory); pl_packed_fill(&p, 0, N, w, bias);
 *      ld = pl_operand_ld(&in); for each row m: pl_operand_put(&in, x_m, 0, K, rows + m * ld);
 *      pl_packed_product(&p, M, rows, ld, false, y, ldy, 0, pl_packed_panels(&p)); */
#ifndef PL_KERNELS_PACKED_H
#define PL_KERNELS_PACKED_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PL_PACKED_COLS 16   /* columns of a panel */
#define PL_PACKED_PIECE 128 /* a piece at most, where nothing else makes one */

typedef enum pl_pack_kind { PL_PACK_F32, PL_PACK_BF16, PL_PACK_INT8 } pl_pack_kind;

/* The rows that a product reads. */
typedef struct pl_operand {
  pl_pack_kind kind;
  int64_t K;
  int64_t piece; /* columns 0.., piece.., 2 piece..: each is put at once and has a scale (int8) */
} pl_operand;

/* K columns in equal pieces, of whole panels. */
static inline int64_t pl_packed_piece(int64_t K) {
  const int64_t n = (K + PL_PACKED_PIECE - 1) / PL_PACKED_PIECE;
  return (K + n * PL_PACKED_COLS - 1) / (n * PL_PACKED_COLS) * PL_PACKED_COLS;
}

typedef struct pl_packed {
  pl_operand in;
  int64_t N;
  int64_t panel; /* bytes from panel to panel */
  /* panels: f32 [K][16], bf16 [K/2][16][2], int8 [K/4][16][4], 128 added to each; K up to the
   * next even, or with each piece up to the next multiple of four */
  char *data;
  float *scale; /* [N up to whole panels] int8 only, else NULL */
  float *bias;  /* [the same] or NULL */
} pl_packed;

size_t pl_packed_bytes(const pl_operand *in, int64_t N, bool has_bias);
/* memory: 64-byte aligned, all zero, the caller's; the columns are zero until they are filled */
void pl_packed_init(pl_packed *p, const pl_operand *in, int64_t N, bool has_bias, void *memory);
/* Columns n0..n0+n-1 from w [n,K] and bias [n] (NULL: zero). Uses all threads. */
void pl_packed_fill(pl_packed *p, int64_t n0, int64_t n, const float *w, const float *bias);
static inline int64_t pl_packed_panels(const pl_packed *p) {
  return (p->N + PL_PACKED_COLS - 1) / PL_PACKED_COLS;
}

/* Bytes from row to row of the activations of a product. Rows must be 64-byte aligned and zero
 * where nothing was put. */
int64_t pl_operand_ld(const pl_operand *in);
/* Columns k0..k0+n-1 of one row from x [n]; int8: whole pieces, the last one up to K. */
void pl_operand_put(const pl_operand *in, const float *x, int64_t k0, int64_t n, void *row);

/* Panels p0..p1-1 of y [M,N] (rows ldy apart; y is column 0), on the calling thread alone.
 * add: to what is in y. */
void pl_packed_product(const pl_packed *p, int64_t M, const void *x, int64_t ldx, bool add,
                       float *y, int64_t ldy, int64_t p0, int64_t p1);

#endif
