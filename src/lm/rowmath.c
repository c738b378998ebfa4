/* Row kernels: see rowmath.h. */
#define PL_REAL float
#define PL_SUFFIX f32
#include "lm/rowmath.h"

#include <math.h>
#include <string.h>

#include "kernels/isa.h"
#include "kernels/vmath.h"

enum { LANES_16 = 16 };

typedef float v16 __attribute__((vector_size(64)));

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

void pl_kv_write(int64_t K, int64_t D, const float *k, const float *v, int64_t at, float *block) {
  const int64_t width = pl_kv_value_width(D);
  float *values = block + K * D * PL_KV_BLOCK;
  for (int64_t i = 0; i < K * D; i++) {
    block[i * PL_KV_BLOCK + at] = k[i];
  }
  for (int64_t h = 0; h < K; h++) {
    memcpy(values + (h * PL_KV_BLOCK + at) * width, v + h * D, (size_t)D * sizeof *v);
  }
}

/* ---- attention ---- */

/* s[i][0..32) = scale * q[i] . keys of one block and head (keys [D][32]). Even and odd
 * dimensions are summed apart, for two sums each would leave the units waiting. */
PL_INLINE void scores_n(const int n, int64_t D, const pl_query *query, const float *keys,
                        float scale, float *s, int64_t lds) {
  v16 acc[PL_ATTEND_TOGETHER][4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      acc[i][j] = (v16){0};
    }
  }
  for (int64_t d = 0; d < D; d += 2) { /* D is even */
    v16 k[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      k[j] = load16(keys + d * PL_KV_BLOCK + j * LANES_16);
    }
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

PL_VARIANTS(void, scores,
            (int n, int64_t D, const pl_query *query, const float *keys, float scale, float *s,
             int64_t lds),
            (n, D, query, keys, scale, s, lds)) {
  if (n == PL_ATTEND_TOGETHER) {
    scores_n(PL_ATTEND_TOGETHER, D, query, keys, scale, s, lds);
    return;
  }
  for (int i = 0; i < n; i++) {
    scores_n(1, D, query + i, keys, scale, s + i * lds, lds);
  }
}

/* y[i][0..16 nv) += sum over m positions p[i][t] * values[t] (values rows `width` apart) */
PL_INLINE void mix_n(const int n, const int nv, int64_t m, int64_t width, const float *p,
                     int64_t ldp, const float *values, const pl_query *query, int64_t at) {
  v16 acc[PL_ATTEND_TOGETHER][4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      acc[i][j] = load16(query[i].y + at + j * LANES_16);
    }
  }
  for (int64_t t = 0; t < m; t++) {
    v16 v[4];
#pragma GCC unroll 4
    for (int j = 0; j < nv; j++) {
      v[j] = load16(values + t * width + at + j * LANES_16);
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
#pragma GCC unroll 4
      for (int j = 0; j < nv; j++) {
        acc[i][j] += v[j] * p[i * ldp + t];
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

PL_INLINE void mix_wide(const int n, int64_t m, int64_t width, const float *p, int64_t ldp,
                        const float *values, const pl_query *query) {
  int64_t at = 0;
  while (at < width) {
    const int64_t left = (width - at) / LANES_16;
    if (left == 3) {
      mix_n(n, 3, m, width, p, ldp, values, query, at);
      at += 3 * LANES_16;
    } else if (left >= 4) {
      mix_n(n, 4, m, width, p, ldp, values, query, at);
      at += 4 * LANES_16;
    } else if (left == 2) {
      mix_n(n, 2, m, width, p, ldp, values, query, at);
      at += 2 * LANES_16;
    } else {
      mix_n(n, 1, m, width, p, ldp, values, query, at);
      at += LANES_16;
    }
  }
}

PL_VARIANTS(void, mix,
            (int n, int64_t m, int64_t width, const float *p, int64_t ldp, const float *values,
             const pl_query *query),
            (n, m, width, p, ldp, values, query)) {
  if (n == PL_ATTEND_TOGETHER) {
    mix_wide(PL_ATTEND_TOGETHER, m, width, p, ldp, values, query);
    return;
  }
  for (int i = 0; i < n; i++) {
    mix_wide(1, m, width, p + i * ldp, ldp, values, query + i);
  }
}

/* Turns n scores into probabilities, and what follows them up to `all` (the end of a
 * vector at least) into zeros. */
PL_VARIANTS(void, softmax, (int64_t n, int64_t all, float *s), (n, all, s)) {
  for (int64_t i = n; i < all; i++) {
    s[i] = -INFINITY;
  }
  const int64_t whole = (n + LANES_16 - 1) / LANES_16 * LANES_16;
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
  v16 sum = {0};
  for (int64_t i = 0; i < whole; i += LANES_16) {
    for (int l = 0; l < LANES_16; l++) {
      s[i + l] = k_exp(s[i + l] - m);
    }
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
  for (int64_t i = whole; i < all; i++) {
    s[i] = 0;
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
  const int64_t width = pl_kv_value_width(D);
  const float scale = (float)(1 / sqrt((double)D));
  const int64_t keys_at = a->layer + a->head * D * PL_KV_BLOCK;
  const int64_t values_at = a->layer + a->K * D * PL_KV_BLOCK + a->head * width * PL_KV_BLOCK;
  const int64_t lds = pl_attend_floats(a->n0 + longest(query, n));
  float *own = scratch + a->n0; /* the scores of both runs lie one after the other */
  for (int64_t t = 0; t < a->n0; t += PL_KV_BLOCK) {
    scores(n, D, query, a->prefix[t / PL_KV_BLOCK] + keys_at, scale, scratch + t, lds);
  }
  for (int i = 0; i < n;) {
    const int k = same_text(query, n, i);
    const int64_t n1 = longest(query + i, k);
    for (int64_t t = 0; t < n1; t += PL_KV_BLOCK) {
      scores(k, D, query + i, query[i].own[t / PL_KV_BLOCK] + keys_at, scale, own + i * lds + t,
             lds);
    }
    i += k;
  }
  for (int i = 0; i < n; i++) {
    softmax(a->n0 + query[i].n1, lds, scratch + i * lds);
    memset(query[i].y, 0, (size_t)width * sizeof(float));
  }
  for (int64_t t = 0; t < a->n0; t += PL_KV_BLOCK) {
    const int64_t m = a->n0 - t < PL_KV_BLOCK ? a->n0 - t : PL_KV_BLOCK;
    mix(n, m, width, scratch + t, lds, a->prefix[t / PL_KV_BLOCK] + values_at, query);
  }
  for (int i = 0; i < n;) { /* what a query does not see yet has probability 0 */
    const int k = same_text(query, n, i);
    const int64_t n1 = longest(query + i, k);
    for (int64_t t = 0; t < n1; t += PL_KV_BLOCK) {
      const int64_t m = n1 - t < PL_KV_BLOCK ? n1 - t : PL_KV_BLOCK;
      mix(k, m, width, own + i * lds + t, lds, query[i].own[t / PL_KV_BLOCK] + values_at,
          query + i);
    }
    i += k;
  }
}
