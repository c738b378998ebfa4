/* Kernels of generation beside the products (kernels/packed.h): rows, each one token.
 *
 * Each row's result is a function of that row and its text alone, so a text does not
 * change with its neighbours in a batch, nor with the number of threads.
 * On the calling thread; pointers and sizes only: no allocation, no failure. */
#ifndef PL_LM_ROWMATH_H
#define PL_LM_ROWMATH_H
#include <stdbool.h>
#include <stdint.h>

#define PL_KV_BLOCK 32     /* positions in one block of the key-value cache */
#define PL_ATTEND_TOGETHER 4 /* queries that read keys and values together */

/* y = x / sqrt(mean x^2 + eps) * w, [C] */
void pl_row_norm(int64_t C, const float *x, const float *w, double eps, float *y);

/* h[i] = silu(gate[i]) * up[i] for n panels, each 16 gates and then 16 ups in gu; h [16 n] */
void pl_row_silu_mul(int64_t n, const float *gu, float *h);

/* Rotates H heads of one row in place; cs [D/2] cosines then [D/2] sines of its position. */
void pl_row_rope(int64_t H, int64_t D, float *x, const float *cs);

/* The cache, in blocks of PL_KV_BLOCK positions; in each, for each layer, the keys and then
 * the values of every key-value head. Floats: keys [D][PL_KV_BLOCK], values
 * [PL_KV_BLOCK][width], width = D in whole vectors. bf16 (half): the same in pairs, keys
 * [D/2][PL_KV_BLOCK][2], values [PL_KV_BLOCK/2][width][2]. */
static inline int64_t pl_kv_width(int64_t D) { return (D + 15) / 16 * 16; }
static inline int64_t pl_kv_layer_bytes(int64_t K, int64_t D, bool half) {
  return K * (D + pl_kv_width(D)) * PL_KV_BLOCK * (half ? 2 : 4);
}
/* Writes one position's keys and values [K*D] into place `at` of a block. */
void pl_kv_write(int64_t K, int64_t D, bool half, const float *k, const float *v, int64_t at,
                 char *block);

/* One head of one row: it sees n0 positions of a prefix and then n1 of the text of its own. */
typedef struct pl_query {
  const float *q; /* [D] */
  float *y;       /* [width] */
  char *const *own;
  int64_t n1;
} pl_query;

typedef struct pl_attend {
  int64_t K, D, head; /* of the cache; the key-value head */
  bool half;
  int64_t layer; /* where the layer begins in a block */
  char *const *prefix;
  int64_t n0;
} pl_attend;

/* Asks for the keys that such a query will read, so that they are near when it comes. */
void pl_kv_ask(const pl_attend *a, const pl_query *query);
/* Attention of n queries (at most PL_ATTEND_TOGETHER) that share head and prefix; those of one
 * text lie side by side. scratch: PL_ATTEND_TOGETHER * pl_attend_floats(longest n0 + n1). */
void pl_row_attention(const pl_attend *a, const pl_query *query, int n, float *scratch);
static inline int64_t pl_attend_floats(int64_t positions) {
  return (positions + 3 * PL_KV_BLOCK) / 16 * 16;
}

#endif
