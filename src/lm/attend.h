/* The key-value cache of generation, and attention of single tokens over it.
 *
 * Each query's result is a function of that query and its text alone, so a text does not
 * change with its neighbours in a batch, nor with the number of threads.
 * On the calling thread; pointers and sizes only: no allocation, no failure. */
#ifndef PL_LM_ATTEND_H
#define PL_LM_ATTEND_H
#include <stdbool.h>
#include <stdint.h>

#define PL_KV_BLOCK 32   /* positions in one block of the key-value cache */
#define PL_ATTEND_ROWS 4 /* rows that read keys and values together, at most */

/* The cache, in blocks of PL_KV_BLOCK positions; in each, for each layer, the keys and then
 * the values of every key-value head. Floats: keys [depth][PL_KV_BLOCK], depth = D up to the
 * next even, values [PL_KV_BLOCK][width], width = D in whole vectors. bf16 (half): the same in
 * pairs, keys [depth/2][PL_KV_BLOCK][2], values [PL_KV_BLOCK/2][width][2]. Zero where nothing
 * was written. */
static inline int64_t pl_kv_depth(int64_t D) { return (D + 1) / 2 * 2; }
static inline int64_t pl_kv_width(int64_t D) { return (D + 15) / 16 * 16; }
static inline int64_t pl_kv_layer_bytes(int64_t K, int64_t D, bool half) {
  return K * (pl_kv_depth(D) + pl_kv_width(D)) * PL_KV_BLOCK * (half ? 2 : 4);
}
/* Writes one position's keys and values [K*D] into place `at` of a block. */
void pl_kv_write(int64_t K, int64_t D, bool half, const float *k, const float *v, int64_t at,
                 char *block);

/* One head of one row: it sees n0 positions of a prefix and then n1 of the text of its own. */
typedef struct pl_query {
  const float *q; /* [D], and one more number that can be read where D is odd */
  float *y;       /* [width] */
  char *const *own;
  int64_t n1;
  int64_t past; /* the first positions that it does not see any more */
} pl_query;

typedef struct pl_attend {
  int64_t K, D;        /* of the cache */
  int64_t head, heads; /* the first key-value head, and how many */
  bool half;
  int64_t layer; /* where the layer begins in a block */
  char *const *prefix;
  int64_t n0;
} pl_attend;

/* Asks for what such a query reads first, so that it is near when it comes. */
void pl_kv_ask(const pl_attend *a, const pl_query *query);
/* Attention of n queries in each of the key-value heads, query [heads][n], that share a prefix;
 * those of one text lie side by side, the same ones in every head, of at most
 * PL_ATTEND_ROWS texts. Where the processor multiplies pairs of bf16, queries and
 * probabilities are rounded to bf16 as well, with a cache of that kind.
 * scratch: heads * n * pl_attend_floats(longest n0 + n1, D). */
void pl_row_attention(const pl_attend *a, const pl_query *query, int n, float *scratch);
int64_t pl_attend_floats(int64_t positions, int64_t D);

#endif
