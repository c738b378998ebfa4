/* The key-value cache and attention over it: see attend.h. */
#define PL_REAL float
#define PL_SUFFIX f32
#include "lm/attend.h"

#include <math.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels/half.h"
#include "kernels/isa.h"
#include "kernels/vmath.h"
#include "lm/v16.h"

enum { TILE = 4 /* queries in a tile of registers */ };

typedef uint32_t u16v __attribute__((vector_size(64)));

/* ---- the cache ---- */

/* One head's n numbers: pairs PL_KV_BLOCK pairs apart, as keys lie; or each 2 further on, as
 * values do. */
static void scatter_half(int64_t n, const float *x, bool keys, pl_bf16 *y) {
  enum { PIECE = 64 };
  pl_bf16 h[PIECE];
  for (int64_t i = 0; i < n; i += PIECE) {
    const int64_t m = n - i < PIECE ? n - i : PIECE;
    pl_bf16_row(m, x + i, h);
    if (m % 2 == 1) {
      h[m] = 0; /* m < PIECE */
    }
    for (int64_t j = 0; j < m && keys; j += 2) {
      memcpy(y + (i + j) * PL_KV_BLOCK, h + j, 2 * sizeof *h);
    }
    for (int64_t j = 0; j < m && !keys; j++) {
      y[2 * (i + j)] = h[j];
    }
  }
}

void pl_kv_write(int64_t K, int64_t D, bool half, const float *k, const float *v, int64_t at,
                 char *block) {
  const int64_t depth = pl_kv_depth(D);
  const int64_t width = pl_kv_width(D);
  for (int64_t h = 0; h < K; h++, k += D, v += D) {
    if (half) {
      pl_bf16 *keys = (pl_bf16 *)(void *)block + h * depth * PL_KV_BLOCK;
      pl_bf16 *values = (pl_bf16 *)(void *)block + (K * depth + h * width) * PL_KV_BLOCK;
      scatter_half(D, k, true, keys + 2 * at);
      scatter_half(D, v, false, values + at / 2 * 2 * width + at % 2);
    } else {
      float *keys = (float *)(void *)block + h * depth * PL_KV_BLOCK;
      float *values = (float *)(void *)block + (K * depth + h * width) * PL_KV_BLOCK;
      for (int64_t i = 0; i < D; i++) {
        keys[i * PL_KV_BLOCK + at] = k[i];
      }
      memcpy(values + at * width, v, (size_t)D * sizeof *v);
    }
  }
}

/* ---- scores and mixes of floats ---- */

/* 16 numbers at a and the 16 that follow in the other dimension, b bytes behind (half: in the
 * other halves of the pairs). */
PL_INLINE void two_rows(const bool half, const char *p, int64_t b, v16 *x, v16 *y) {
  if (half) {
    u16v both;
    memcpy(&both, p, sizeof both);
    *x = (v16)(both << 16);
    *y = (v16)(both & 0xffff0000U);
  } else {
    *x = load16((const float *)(const void *)p);
    *y = load16((const float *)(const void *)(p + b));
  }
}

/* s[i][0..32) = scale * q[i] . keys of one block and head. Even and odd dimensions are
 * summed apart, for two sums each would leave the units waiting. */
PL_INLINE void scores_n(const bool half, const int n, int64_t D, const pl_query *query,
                        const char *keys, float scale, float *s, int64_t lds) {
  v16 acc[TILE][4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      acc[i][j] = (v16){0};
    }
  }
  for (int64_t d = 0; d < D; d += 2) { /* an odd D has zeros for keys behind it */
    const char *p = keys + d * PL_KV_BLOCK * (half ? 2 : 4);
    v16 k[4];
    two_rows(half, p, 4 * PL_KV_BLOCK, &k[0], &k[2]);
    two_rows(half, p + 64, 4 * PL_KV_BLOCK, &k[1], &k[3]);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
      acc[i][0] += k[0] * query[i].q[d];
      acc[i][1] += k[1] * query[i].q[d];
      acc[i][2] += k[2] * query[i].q[d + 1];
      acc[i][3] += k[3] * query[i].q[d + 1];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
    store16(s + i * lds, (acc[i][0] + acc[i][2]) * scale);
    store16(s + i * lds + LANES_16, (acc[i][1] + acc[i][3]) * scale);
  }
}

PL_INLINE void scores_of(const bool half, int n, int64_t D, const pl_query *query, const char *keys,
                         float scale, float *s, int64_t lds) {
  int i = 0;
  for (; i + TILE <= n; i += TILE) {
    scores_n(half, TILE, D, query + i, keys, scale, s + i * lds, lds);
  }
  for (; i < n; i++) {
    scores_n(half, 1, D, query + i, keys, scale, s + i * lds, lds);
  }
}

PL_VARIANTS(void, scores,
            (bool half, int n, int64_t D, const pl_query *query, const char *keys,
             float scale, float *s, int64_t lds),
            (half, n, D, query, keys, scale, s, lds)) {
  if (half) {
    scores_of(true, n, D, query, keys, scale, s, lds);
  } else {
    scores_of(false, n, D, query, keys, scale, s, lds);
  }
}

/* y[i][at..at + 16 nv) += sum over m positions p[i][t] * values[t]; by twos: one more than m
 * has p = 0 where m is odd. */
PL_INLINE void mix_n(const bool half, const int n, const int nv, int64_t m, int64_t width,
                     const float *p, int64_t ldp, const char *values, const pl_query *query,
                     int64_t at) {
  v16 acc[TILE][4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      acc[i][j] = load16(query[i].y + at + j * LANES_16);
    }
  }
  for (int64_t t = 0; t < m; t += 2) {
    v16 v[4];
    v16 next[4];
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      two_rows(half, values + (t * width + (at + j * LANES_16) * (half ? 2 : 1)) * (half ? 2 : 4),
               4 * width, &v[j], &next[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
      for (int j = 0; j < nv; j++) {
        acc[i][j] += v[j] * p[i * ldp + t];
        acc[i][j] += next[j] * p[i * ldp + t + 1];
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      store16(query[i].y + at + j * LANES_16, acc[i][j]);
    }
  }
}

PL_INLINE void mix_wide(const bool half, const int n, int64_t m, int64_t width, const float *p,
                        int64_t ldp, const char *values, const pl_query *query) {
  int64_t at = 0;
  while (at < width) {
    const int64_t left = (width - at) / LANES_16;
    if (left == 3) {
      mix_n(half, n, 3, m, width, p, ldp, values, query, at);
      at += 3 * LANES_16;
    } else if (left >= 4) {
      mix_n(half, n, 4, m, width, p, ldp, values, query, at);
      at += 4 * LANES_16;
    } else if (left == 2) {
      mix_n(half, n, 2, m, width, p, ldp, values, query, at);
      at += 2 * LANES_16;
    } else {
      mix_n(half, n, 1, m, width, p, ldp, values, query, at);
      at += LANES_16;
    }
  }
}

PL_INLINE void mix_of(const bool half, int n, int64_t m, int64_t width, const float *p, int64_t ldp,
                      const char *values, const pl_query *query) {
  int i = 0;
  for (; i + TILE <= n; i += TILE) {
    mix_wide(half, TILE, m, width, p + i * ldp, ldp, values, query + i);
  }
  for (; i < n; i++) {
    mix_wide(half, 1, m, width, p + i * ldp, ldp, values, query + i);
  }
}

PL_VARIANTS(void, mix,
            (bool half, int n, int64_t m, int64_t width, const float *p, int64_t ldp,
             const char *values, const pl_query *query),
            (half, n, m, width, p, ldp, values, query)) {
  if (half) {
    mix_of(true, n, m, width, p, ldp, values, query);
  } else {
    mix_of(false, n, m, width, p, ldp, values, query);
  }
}

/* Turns the scores 0..n0-1 and from..n-1 into probabilities; what lies between them, and from
 * n on up to `all` (the end of a vector at least), into zeros. */
PL_VARIANTS(void, softmax, (int64_t n0, int64_t from, int64_t n, int64_t all, float *s),
            (n0, from, n, all, s)) {
  const int64_t whole = (n + LANES_16 - 1) / LANES_16 * LANES_16;
  for (int64_t i = n0; i < from; i++) {
    s[i] = -INFINITY;
  }
  for (int64_t i = n; i < whole; i++) {
    s[i] = -INFINITY;
  }
  for (int64_t i = whole; i < all; i++) {
    s[i] = 0;
  }
  float most[LANES_16];
  memcpy(most, s, sizeof most);
  for (int64_t i = LANES_16; i < whole; i += LANES_16) {
    for (int l = 0; l < LANES_16; l++) {
      most[l] = s[i + l] > most[l] ? s[i + l] : most[l];
    }
  }
  float m = most[0];
  for (int l = 1; l < LANES_16; l++) {
    m = most[l] > m ? most[l] : m;
  }
  for (int64_t i = 0; i < whole; i++) {
    s[i] = s[i] > -INFINITY ? k_exp_below(s[i] - m) : 0;
  }
  v16 sum = {0};
  for (int64_t i = 0; i < whole; i += LANES_16) {
    sum += load16(s + i);
  }
  double total = 0;
  for (int l = 0; l < LANES_16; l++) {
    total += sum[l];
  }
  const float r = (float)(1 / total);
  for (int64_t i = 0; i < whole; i += LANES_16) {
    store16(s + i, load16(s + i) * r);
  }
}

/* ---- the same of pairs, where the processor multiplies them ---- */

#ifdef __x86_64__
/* q: [n][depth / 2] pairs. Summed in two parts, for one query alone would leave the units
 * waiting. */
PL_TARGET_AVX512BF16 PL_INLINE void score_pairs_n(const int n, int64_t depth, const int32_t *q,
                                                  const char *keys, float scale,
                                                  float *s, int64_t lds) {
  __m512 acc[TILE][2][2];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
    acc[i][0][0] = acc[i][0][1] = acc[i][1][0] = acc[i][1][1] = _mm512_setzero_ps();
  }
  for (int64_t d = 0; d < depth / 2; d += 2) {
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) {
      if (d + part == depth / 2) {
        break;
      }
      const char *p = keys + (d + part) * PL_KV_BLOCK * 4;
      const __m512bh k0 = (__m512bh)_mm512_loadu_si512(p);
      const __m512bh k1 = (__m512bh)_mm512_loadu_si512(p + 64);
#pragma GCC unroll 4
      for (int i = 0; i < n; i++) {
        const __m512bh a = (__m512bh)_mm512_set1_epi32(q[i * (depth / 2) + d + part]);
        acc[i][part][0] = _mm512_dpbf16_ps(acc[i][part][0], k0, a);
        acc[i][part][1] = _mm512_dpbf16_ps(acc[i][part][1], k1, a);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
    _mm512_storeu_ps(s + i * lds, (acc[i][0][0] + acc[i][1][0]) * scale);
    _mm512_storeu_ps(s + i * lds + LANES_16, (acc[i][0][1] + acc[i][1][1]) * scale);
  }
}

PL_TARGET_AVX512BF16 static void score_pairs(int n, int64_t depth, const int32_t *q,
                                             const char *keys, float scale, float *s,
                                             int64_t lds) {
  int i = 0;
  for (; i + TILE <= n; i += TILE) {
    score_pairs_n(TILE, depth, q + i * (depth / 2), keys, scale, s + i * lds, lds);
  }
  for (; i < n; i++) {
    score_pairs_n(1, depth, q + i * (depth / 2), keys, scale, s + i * lds, lds);
  }
}

/* y[i][at..at + 16 nv) += sum over m positions p[i][t] * values[t], p in pairs; in two parts */
PL_TARGET_AVX512BF16 PL_INLINE void mix_pairs_n(const int n, const int nv, int64_t m, int64_t width,
                                                const char *p, int64_t ldp, const char *values,
                                                const pl_query *query, int64_t at) {
  __m512 acc[TILE][2][4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      acc[i][0][j] = _mm512_loadu_ps(query[i].y + at + j * LANES_16);
      acc[i][1][j] = _mm512_setzero_ps();
    }
  }
  for (int64_t t = 0; t < m; t += 4) {
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) { /* beyond m there are zeros in p */
      const char *row = values + ((t / 2 + part) * width + at) * 4;
      __m512bh v[4];
#pragma GCC unroll 4
      for (int j = 0; j < nv; j++) {
        v[j] = (__m512bh)_mm512_loadu_si512(row + j * LANES_16 * 4);
      }
#pragma GCC unroll 4
      for (int i = 0; i < n; i++) {
        int32_t pair;
        memcpy(&pair, p + i * ldp + 2 * t + 4 * part, sizeof pair);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
          acc[i][part][j] = _mm512_dpbf16_ps(acc[i][part][j], v[j], a);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      _mm512_storeu_ps(query[i].y + at + j * LANES_16, acc[i][0][j] + acc[i][1][j]);
    }
  }
}

PL_TARGET_AVX512BF16 PL_INLINE void mix_pairs_wide(const int n, int64_t m, int64_t width,
                                                   const char *p, int64_t ldp, const char *values,
                                                   const pl_query *query) {
  int64_t at = 0;
  while (at < width) {
    const int64_t left = (width - at) / LANES_16;
    if (n == 1 && left == 3) {
      mix_pairs_n(n, 3, m, width, p, ldp, values, query, at);
      at += 3 * LANES_16;
    } else if (n == 1 && left >= 4) {
      mix_pairs_n(n, 4, m, width, p, ldp, values, query, at);
      at += 4 * LANES_16;
    } else if (left >= 2) { /* of many queries as many sums as there are registers */
      mix_pairs_n(n, 2, m, width, p, ldp, values, query, at);
      at += 2 * LANES_16;
    } else {
      mix_pairs_n(n, 1, m, width, p, ldp, values, query, at);
      at += LANES_16;
    }
  }
}

PL_TARGET_AVX512BF16 static void mix_pairs(int n, int64_t m, int64_t width, const char *p,
                                           int64_t ldp, const char *values, const pl_query *query) {
  int i = 0;
  for (; i + TILE <= n; i += TILE) {
    mix_pairs_wide(TILE, m, width, p + i * ldp, ldp, values, query + i);
  }
  for (; i < n; i++) {
    mix_pairs_wide(1, m, width, p + i * ldp, ldp, values, query + i);
  }
}
#endif

/* ---- attention ---- */

/* Blocks that some queries read together, the same ones of every head. */
typedef struct run {
  char *const *block;
  int first, count; /* the queries */
  int64_t n;        /* positions */
  int64_t at;       /* of the first one among a query's scores */
} run;

typedef struct frame {
  const pl_attend *a;
  const pl_query *query; /* [heads][n] */
  int n;
  float *s;       /* [heads][n][lds] scores, then probabilities: floats, or bf16 with pairs */
  int32_t *pairs; /* [heads][n][depth / 2] queries, where pairs are multiplied; or NULL */
  int64_t depth, width, lds;
  int64_t keys, values; /* bytes of one head in a block */
  int64_t keys_at, values_at;
  float scale;
  run runs[PL_ATTEND_ROWS + 1]; /* the prefix, if any, then the texts */
  int n_runs;
} frame;

static void find_runs(frame *f) {
  const pl_attend *a = f->a;
  if (a->n0 > 0) {
    f->runs[f->n_runs++] = (run){a->prefix, 0, f->n, a->n0, 0};
  }
  const int64_t from = (a->n0 + PL_KV_BLOCK - 1) / PL_KV_BLOCK * PL_KV_BLOCK;
  for (int i = 0; i < f->n;) {
    run r = {f->query[i].own, i, 0, 0, from};
    for (; i < f->n && f->query[i].own == r.block; i++, r.count++) {
      r.n = f->query[i].n1 > r.n ? f->query[i].n1 : r.n;
    }
    f->runs[f->n_runs++] = r;
  }
}

/* Blocks lie far apart: what begins the next one is asked for while this one is read. */
static void ask(const char *p) {
  enum { BEGINNING = 2048 };
  for (int64_t i = 0; i < BEGINNING; i += 64) {
    __builtin_prefetch(p + i, 0, 2);
  }
}

void pl_kv_ask(const pl_attend *a, const pl_query *query) {
  const int64_t bytes = pl_kv_depth(a->D) * PL_KV_BLOCK * (a->half ? 2 : 4);
  ask((a->n0 > 0 ? a->prefix[0] : query->own[0]) + a->layer + a->head * bytes);
}

/* Where the reading goes on after the block at position t of run r. */
static const char *next_block(const frame *f, int r, int64_t t) {
  const run *now = &f->runs[r];
  return t + PL_KV_BLOCK < now->n ? now->block[t / PL_KV_BLOCK + 1]
         : r + 1 < f->n_runs      ? now[1].block[0]
                                  : NULL;
}

/* Scores of the queries of a run and head h with one block, from position t on. */
static void score(const frame *f, const run *r, int64_t h, const char *block, int64_t t) {
  const int64_t q = h * f->n + r->first;
  const char *keys = block + f->keys_at + h * f->keys;
  float *s = f->s + q * f->lds + r->at + t;
#ifdef __x86_64__
  if (f->pairs != NULL) {
    score_pairs(r->count, f->depth, f->pairs + q * (f->depth / 2), keys, f->scale, s, f->lds);
    return;
  }
#endif
  scores(f->a->half, r->count, f->a->D, f->query + q, keys, f->scale, s, f->lds);
}

/* All scores, block by block, for the keys of all heads lie side by side there. */
static void score_all(const frame *f) {
  for (int i = 0; i < f->n_runs; i++) {
    const run *r = &f->runs[i];
    for (int64_t t = 0; t < r->n; t += PL_KV_BLOCK) {
      const char *next = next_block(f, i, t);
      ask(next != NULL ? next + f->keys_at : f->runs[0].block[0] + f->values_at);
      for (int64_t h = 0; h < f->a->heads; h++) {
        score(f, r, h, r->block[t / PL_KV_BLOCK], t);
      }
    }
  }
}

/* Adds m positions of one block to the outputs of the queries of a run and head h. */
static void blend(const frame *f, const run *r, int64_t h, const char *block, int64_t t,
                  int64_t m) {
  const int64_t q = h * f->n + r->first;
  const char *values = block + f->values_at + h * f->values;
  const float *p = f->s + q * f->lds;
#ifdef __x86_64__
  if (f->pairs != NULL) {
    const char *half = (const char *)p + 2 * (r->at + t);
    mix_pairs(r->count, m, f->width, half, 4 * f->lds, values, f->query + q);
    return;
  }
#endif
  mix(f->a->half, r->count, m, f->width, p + r->at + t, f->lds, values, f->query + q);
}

/* What a query does not see yet has probability 0. */
static void blend_all(const frame *f) {
  for (int i = 0; i < f->n_runs; i++) {
    const run *r = &f->runs[i];
    for (int64_t t = 0; t < r->n; t += PL_KV_BLOCK) {
      const char *next = next_block(f, i, t);
      if (next != NULL) {
        ask(next + f->values_at);
      }
      const int64_t m = r->n - t < PL_KV_BLOCK ? r->n - t : PL_KV_BLOCK;
      for (int64_t h = 0; h < f->a->heads; h++) {
        blend(f, r, h, r->block[t / PL_KV_BLOCK], t, m);
      }
    }
  }
}

/* The scores of query q as probabilities; its output is zero. */
static void weigh(const frame *f, int64_t q) {
  const int64_t n0 = f->a->n0;
  const int64_t from = f->runs[f->n_runs - 1].at;
  const pl_query *query = &f->query[q];
  float *s = f->s + q * f->lds;
  for (int64_t t = 0; t < query->past; t++) {
    s[t < n0 ? t : from + t - n0] = -INFINITY;
  }
  softmax(n0, from, from + query->n1, f->lds, s);
  if (f->pairs != NULL) {
    pl_bf16_row(f->lds, s, (pl_bf16 *)(void *)s);
  }
  memset(query->y, 0, (size_t)f->width * sizeof(float));
}

static int64_t score_floats(int64_t positions) {
  return (positions + 3 * PL_KV_BLOCK) / LANES_16 * LANES_16;
}

int64_t pl_attend_floats(int64_t positions, int64_t D) {
  return score_floats(positions) + pl_kv_depth(D) / 2;
}

void pl_row_attention(const pl_attend *a, const pl_query *query, int n, float *scratch) {
  const int64_t D = a->D;
  const int64_t each = PL_KV_BLOCK * (a->half ? 2 : 4);
  const int64_t all = a->heads * n;
  frame f = {.a = a,
             .query = query,
             .n = n,
             .s = scratch,
             .depth = pl_kv_depth(D),
             .width = pl_kv_width(D),
             .scale = (float)(1 / sqrt((double)D))};
  f.keys = f.depth * each;
  f.values = f.width * each;
  f.keys_at = a->layer + a->head * f.keys;
  f.values_at = a->layer + a->K * f.keys + a->head * f.values;
  find_runs(&f);
  for (int i = a->n0 > 0; i < f.n_runs; i++) {
    const int64_t lds = score_floats(a->n0 + f.runs[i].n);
    f.lds = lds > f.lds ? lds : f.lds;
  }
#ifdef __x86_64__
  if (a->half && pl_isa_used() == PL_ISA_AVX512BF16) {
    f.pairs = (int32_t *)(void *)(scratch + all * f.lds);
    for (int64_t q = 0; q < all; q++) {
      pl_bf16 *pairs = (pl_bf16 *)(void *)(f.pairs + q * (f.depth / 2));
      pairs[f.depth - 1] = 0; /* of an odd D */
      pl_bf16_row(D, query[q].q, pairs);
    }
  }
#endif
  score_all(&f);
  for (int64_t q = 0; q < all; q++) {
    weigh(&f, q);
  }
  blend_all(&f);
}
