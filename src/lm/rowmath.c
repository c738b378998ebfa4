/* Row kernels: see rowmath.h. */
#define PL_REAL float
#define PL_SUFFIX f32
#include "lm/rowmath.h"

#include <math.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/isa.h"
#include "kernels/vmath.h"

enum { LANES_16 = 16 };

typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));

PL_INLINE v16 load16(const float *p) {
  v16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

PL_INLINE void store16(float *p, v16 v) {
  memcpy(p, &v, sizeof v);
}

/* ---- element-wise ---- */

PL_VARIANTS(void, norm_one, (int64_t C, const float *x, const float *w, double eps, float *y),
            (C, x, w, eps, y)) {
  v16 s = {0};
  int64_t i = 0;
  for (; i + LANES_16 <= C; i += LANES_16) {
    const v16 v = load16(x + i);
    s += v * v;
  }
  double sum = 0;
  for (; i < C; i++) {
    sum += (double)x[i] * x[i];
  }
  for (int l = 0; l < LANES_16; l++) {
    sum += s[l];
  }
  const float r = (float)(1 / sqrt(sum / (double)C + eps));
  for (i = 0; i < C; i++) {
    y[i] = x[i] * r * w[i];
  }
}

void pl_row_norm(int64_t C, const float *x, const float *w, double eps, float *y) {
  norm_one(C, x, w, eps, y);
}

PL_VARIANTS(void, silu_mul, (int64_t n, const float *gu, float *h), (n, gu, h)) {
  for (int64_t p = 0; p < n; p++) {
    for (int i = 0; i < LANES_16; i++) {
      const float a = gu[2 * LANES_16 * p + i];
      h[LANES_16 * p + i] = a * k_sigmoid(a) * gu[2 * LANES_16 * p + LANES_16 + i];
    }
  }
}

void pl_row_silu_mul(int64_t n, const float *gu, float *h) {
  silu_mul(n, gu, h);
}

PL_VARIANTS(void, rope, (int64_t H, int64_t D, float *x, const float *cs), (H, D, x, cs)) {
  const int64_t half = D / 2;
  for (int64_t h = 0; h < H; h++) {
    float *p = x + h * D;
    for (int64_t i = 0; i < half; i++) {
      const float a = p[i];
      const float b = p[half + i];
      p[i] = a * cs[i] - b * cs[half + i];
      p[half + i] = b * cs[i] + a * cs[half + i];
    }
  }
}

void pl_row_rope(int64_t H, int64_t D, float *x, const float *cs) {
  rope(H, D, x, cs);
}

/* ---- the cache ---- */

/* To the nearest, ties to even; without branches, so that it becomes vectors. */
PL_VARIANTS(void, round_half, (int64_t n, const float *x, pl_bf16 *y), (n, x, y)) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, x + i, sizeof u);
    const uint32_t nan = (u & 0x7fffffffU) > 0x7f800000U;
    y[i] = (pl_bf16)((nan ? u | 0x400000U : u + 0x7fffU + (u >> 16 & 1)) >> 16);
  }
}

/* n numbers, the first at y[0] and each other one 2 further on, as values lie; or as pairs
 * 2 PL_KV_BLOCK apart, as keys do. */
static void scatter_half(int64_t n, const float *x, bool keys, pl_bf16 *y) {
  enum { PIECE = 64 };
  pl_bf16 h[PIECE];
  for (int64_t i = 0; i < n; i += PIECE) {
    const int64_t m = n - i < PIECE ? n - i : PIECE;
    round_half(m, x + i, h);
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
  const int64_t width = pl_kv_width(D);
  if (half) {
    pl_bf16 *to = (pl_bf16 *)(void *)block;
    scatter_half(K * D, k, true, to + 2 * at); /* D is even */
    to += K * D * PL_KV_BLOCK + at / 2 * 2 * width + at % 2;
    for (int64_t h = 0; h < K; h++) {
      scatter_half(D, v + h * D, false, to + h * PL_KV_BLOCK * width);
    }
    return;
  }
  float *keys = (float *)(void *)block;
  float *values = keys + K * D * PL_KV_BLOCK;
  for (int64_t i = 0; i < K * D; i++) {
    keys[i * PL_KV_BLOCK + at] = k[i];
  }
  for (int64_t h = 0; h < K; h++) {
    memcpy(values + (h * PL_KV_BLOCK + at) * width, v + h * D, (size_t)D * sizeof *v);
  }
}

/* ---- attention ---- */

/* 16 numbers at a and the 16 that follow in the other dimension, b bytes behind (half: in the
 * other halves of the pairs). Asks for the same place `ahead` bytes on. */
PL_INLINE void two_rows(const bool half, const char *p, int64_t b, int64_t ahead, v16 *x, v16 *y) {
  if (ahead != 0) {
    __builtin_prefetch(p + ahead);
    if (!half) {
      __builtin_prefetch(p + b + ahead);
    }
  }
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
                        const char *keys, int64_t ahead, float scale, float *s, int64_t lds) {
  v16 acc[PL_ATTEND_TOGETHER][4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      acc[i][j] = (v16){0};
    }
  }
  for (int64_t d = 0; d < D; d += 2) { /* D is even */
    const char *p = keys + d * PL_KV_BLOCK * (half ? 2 : 4);
    v16 k[4];
    two_rows(half, p, 4 * PL_KV_BLOCK, ahead, &k[0], &k[2]);
    two_rows(half, p + 64, 4 * PL_KV_BLOCK, ahead, &k[1], &k[3]);
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
                         int64_t ahead, float scale, float *s, int64_t lds) {
  if (n == PL_ATTEND_TOGETHER) {
    scores_n(half, PL_ATTEND_TOGETHER, D, query, keys, ahead, scale, s, lds);
    return;
  }
  for (int i = 0; i < n; i++) {
    scores_n(half, 1, D, query + i, keys, ahead, scale, s + i * lds, lds);
  }
}

PL_VARIANTS(void, scores,
            (bool half, int n, int64_t D, const pl_query *query, const char *keys, int64_t ahead,
             float scale, float *s, int64_t lds),
            (half, n, D, query, keys, ahead, scale, s, lds)) {
  if (half) {
    scores_of(true, n, D, query, keys, ahead, scale, s, lds);
  } else {
    scores_of(false, n, D, query, keys, ahead, scale, s, lds);
  }
}

/* y[i][at..at + 16 nv) += sum over m positions p[i][t] * values[t]; by twos: one more than m
 * has p = 0 where m is odd. */
PL_INLINE void mix_n(const bool half, const int n, const int nv, int64_t m, int64_t width,
                     const float *p, int64_t ldp, const char *values, const pl_query *query,
                     int64_t at) {
  v16 acc[PL_ATTEND_TOGETHER][4];
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
               4 * width, 0, &v[j], &next[j]);
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
  if (n == PL_ATTEND_TOGETHER) {
    mix_wide(half, PL_ATTEND_TOGETHER, m, width, p, ldp, values, query);
    return;
  }
  for (int i = 0; i < n; i++) {
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
    s[i] = k_exp(s[i] - m);
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

static void ask(const char *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(p + i);
  }
}

void pl_kv_ask(const pl_attend *a, const pl_query *query) {
  const int64_t bytes = a->D * PL_KV_BLOCK * (a->half ? 2 : 4);
  const int64_t at = a->layer + a->head * bytes;
  for (int64_t t = 0; t < a->n0; t += PL_KV_BLOCK) {
    ask(a->prefix[t / PL_KV_BLOCK] + at, bytes);
  }
  for (int64_t t = 0; t < query->n1; t += PL_KV_BLOCK) {
    ask(query->own[t / PL_KV_BLOCK] + at, bytes);
  }
}

/* How many queries from i on have one text of their own. */
static int same_text(const pl_query *query, int n, int i) {
  int k = i + 1;
  while (k < n && query[k].own == query[i].own) {
    k++;
  }
  return k - i;
}

static int64_t longest(const pl_query *query, int n) {
  int64_t most = 0;
  for (int i = 0; i < n; i++) {
    most = query[i].n1 > most ? query[i].n1 : most;
  }
  return most;
}

void pl_row_attention(const pl_attend *a, const pl_query *query, int n, float *scratch) {
  const int64_t D = a->D;
  const int64_t width = pl_kv_width(D);
  const bool half = a->half;
  const int64_t each = PL_KV_BLOCK * (half ? 2 : 4);
  const float scale = (float)(1 / sqrt((double)D));
  const int64_t keys_at = a->layer + a->head * D * each;
  const int64_t values_at = a->layer + (a->K * D + a->head * width) * each;
  const int64_t to_values = values_at - keys_at; /* what the scores ask for */
  const int64_t from = (a->n0 + PL_KV_BLOCK - 1) / PL_KV_BLOCK * PL_KV_BLOCK;
  const int64_t lds = pl_attend_floats(a->n0 + longest(query, n));
  float *own = scratch + from; /* the scores of both runs lie one after the other */
  for (int64_t t = 0; t < a->n0; t += PL_KV_BLOCK) {
    scores(half, n, D, query, a->prefix[t / PL_KV_BLOCK] + keys_at, to_values, scale, scratch + t,
           lds);
  }
  for (int i = 0; i < n;) {
    const int k = same_text(query, n, i);
    const int64_t n1 = longest(query + i, k);
    for (int64_t t = 0; t < n1; t += PL_KV_BLOCK) {
      scores(half, k, D, query + i, query[i].own[t / PL_KV_BLOCK] + keys_at, to_values, scale,
             own + i * lds + t, lds);
    }
    i += k;
  }
  for (int i = 0; i < n; i++) {
    softmax(a->n0, from, from + query[i].n1, lds, scratch + i * lds);
    memset(query[i].y, 0, (size_t)width * sizeof(float));
  }
  for (int64_t t = 0; t < a->n0; t += PL_KV_BLOCK) {
    const int64_t m = a->n0 - t < PL_KV_BLOCK ? a->n0 - t : PL_KV_BLOCK;
    mix(half, n, m, width, scratch + t, lds, a->prefix[t / PL_KV_BLOCK] + values_at, query);
  }
  for (int i = 0; i < n;) { /* what a query does not see yet has probability 0 */
    const int k = same_text(query, n, i);
    const int64_t n1 = longest(query + i, k);
    for (int64_t t = 0; t < n1; t += PL_KV_BLOCK) {
      const int64_t m = n1 - t < PL_KV_BLOCK ? n1 - t : PL_KV_BLOCK;
      mix(half, k, m, width, own + i * lds + t, lds, query[i].own[t / PL_KV_BLOCK] + values_at,
          query + i);
    }
    i += k;
  }
}
