/* Row kernels: see rowmath.h. */
#include "lm/rowmath.h"

#include <math.h>
#include <string.h>

#include "base/par.h"
#include "kernels/isa.h"
#include "kernels/kernels.h"

#if defined(__x86_64__) && !defined(PL_SANITIZE)
#include <immintrin.h>
#define HAVE_X86 1
#endif

/* ---- dot products in tiles of R rows by 4 columns ----
 * Every (row, column) sums its K products in 8 lanes, then the lanes in one
 * fixed tree, whatever the tile: that is what makes rows independent. */

enum { LANES = 8, TILE_N = 4, ROWS_BLOCK = 24, COLS_BLOCK = 64 };

typedef struct tile {
  const float *x; /* first row */
  const float *w; /* first column's weights */
  float *y;
  int64_t K, ldy;
  int cols; /* 1..4 valid columns */
  bool add;
} tile;

static void tile_store(const tile *t, int row, const float s[TILE_N]) {
  float *y = t->y + row * t->ldy;
  for (int j = 0; j < t->cols; j++) {
    y[j] = t->add ? y[j] + s[j] : s[j];
  }
}

static void tile_plain(const tile *t, int rows) {
  for (int i = 0; i < rows; i++) {
    float s[TILE_N] = {0};
    for (int j = 0; j < t->cols; j++) {
      const float *x = t->x + i * t->K;
      const float *w = t->w + j * t->K;
      float a[LANES] = {0};
      int64_t k = 0;
      for (; k + LANES <= t->K; k += LANES) {
        for (int l = 0; l < LANES; l++) {
          a[l] += x[k + l] * w[k + l];
        }
      }
      for (int l = 0; k + l < t->K; l++) {
        a[l] += x[k + l] * w[k + l];
      }
      s[j] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    }
    tile_store(t, i, s);
  }
}

#ifdef HAVE_X86
#define FMA_FN static inline __attribute__((always_inline, target("avx2,fma")))

/* four accumulators to their four sums */
FMA_FN __m128 sum4(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 b4 = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 c4 = _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
  const __m128 d4 = _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a4, b4), _mm_unpackhi_ps(a4, b4));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c4, d4), _mm_unpackhi_ps(c4, d4));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

FMA_FN void tile_fma_n(const tile *t, const int rows) {
  __m256 acc[3][TILE_N];
  const float *w[TILE_N];
  const float *x[3];
  for (int j = 0; j < TILE_N; j++) {
    w[j] = t->w + (j < t->cols ? j : 0) * t->K; /* absent columns repeat the first */
  }
  for (int i = 0; i < rows; i++) {
    x[i] = t->x + i * t->K;
    for (int j = 0; j < TILE_N; j++) {
      acc[i][j] = _mm256_setzero_ps();
    }
  }
  int64_t k = 0;
  for (; k + LANES <= t->K; k += LANES) {
    __m256 xv[3]; /* 12 sums, 3 rows, 1 weight: the 16 registers there are */
    for (int i = 0; i < rows; i++) {
      xv[i] = _mm256_loadu_ps(x[i] + k);
    }
    for (int j = 0; j < TILE_N; j++) {
      const __m256 wv = _mm256_loadu_ps(w[j] + k);
      for (int i = 0; i < rows; i++) {
        acc[i][j] = _mm256_fmadd_ps(xv[i], wv, acc[i][j]);
      }
    }
  }
  if (k < t->K) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(t->K - k)), lane);
    for (int i = 0; i < rows; i++) {
      const __m256 xv = _mm256_maskload_ps(x[i] + k, mask);
      for (int j = 0; j < TILE_N; j++) {
        acc[i][j] = _mm256_fmadd_ps(xv, _mm256_maskload_ps(w[j] + k, mask), acc[i][j]);
      }
    }
  }
  for (int i = 0; i < rows; i++) {
    __m128 s = sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    if (t->cols == TILE_N) {
      float *y = t->y + i * t->ldy;
      if (t->add) {
        s = _mm_add_ps(_mm_loadu_ps(y), s);
      }
      _mm_storeu_ps(y, s);
    } else {
      float part[TILE_N];
      _mm_storeu_ps(part, s);
      tile_store(t, i, part);
    }
  }
}

static __attribute__((target("avx2,fma"))) void tile_fma(const tile *t, int rows) {
  switch (rows) {
    case 3: tile_fma_n(t, 3); break;
    case 2: tile_fma_n(t, 2); break;
    default: tile_fma_n(t, 1); break;
  }
}
#endif

static void (*pick_tile(void))(const tile *, int) {
#ifdef HAVE_X86
  if (pl_isa_used() != PL_ISA_BASELINE) {
    return tile_fma;
  }
#endif
  return tile_plain;
}

typedef struct matmul_arg {
  const pl_row_job *job;
  int n_jobs;
  int64_t M;
  int64_t row_blocks;
  int64_t first_block[4]; /* of each job */
  void (*tile)(const tile *, int);
} matmul_arg;

static void matmul_block(void *arg, int64_t block) {
  const matmul_arg *a = arg;
  int which = a->n_jobs - 1;
  while (block < a->first_block[which]) {
    which--;
  }
  const pl_row_job *j = &a->job[which];
  block -= a->first_block[which];
  const int64_t m0 = block % a->row_blocks * ROWS_BLOCK;
  const int64_t n0 = block / a->row_blocks * COLS_BLOCK;
  const int64_t m1 = m0 + ROWS_BLOCK < a->M ? m0 + ROWS_BLOCK : a->M;
  const int64_t n1 = n0 + COLS_BLOCK < j->N ? n0 + COLS_BLOCK : j->N;
  for (int64_t n = n0; n < n1; n += TILE_N) {
    for (int64_t m = m0; m < m1; m += 3) {
      const tile t = {j->x + m * j->K, j->w + n * j->K, j->y + m * j->ldy + n,
                      j->K,            j->ldy,          n1 - n < TILE_N ? (int)(n1 - n) : TILE_N,
                      j->add};
      a->tile(&t, m1 - m < 3 ? (int)(m1 - m) : 3);
    }
  }
}

void pl_row_matmul(int64_t M, const pl_row_job *job, int n_jobs) {
  matmul_arg a = {.job = job, .n_jobs = n_jobs, .M = M, .tile = pick_tile()};
  a.row_blocks = (M + ROWS_BLOCK - 1) / ROWS_BLOCK;
  int64_t n = 0;
  for (int i = 0; i < n_jobs; i++) {
    a.first_block[i] = n;
    n += a.row_blocks * ((job[i].N + COLS_BLOCK - 1) / COLS_BLOCK);
  }
  pl_parallel(n, matmul_block, &a);
}

/* ---- element-wise, row by row ---- */

typedef struct rows_arg {
  int64_t M, C;
  const float *x, *w;
  double eps;
  float *y;
} rows_arg;

enum { ROWS_A_TASK = 8 };

PL_VARIANTS(void, norm_one, (int64_t C, const float *x, const float *w, double eps, float *y),
            (C, x, w, eps, y)) {
  float lane[16] = {0};
  int64_t i = 0;
  for (; i + 16 <= C; i += 16) {
    for (int l = 0; l < 16; l++) {
      lane[l] += x[i + l] * x[i + l];
    }
  }
  double sum = 0;
  for (; i < C; i++) {
    sum += (double)x[i] * x[i];
  }
  for (int l = 0; l < 16; l++) {
    sum += lane[l];
  }
  const float r = (float)(1 / sqrt(sum / (double)C + eps));
  for (i = 0; i < C; i++) {
    y[i] = x[i] * r * w[i];
  }
}

static void norm_block(void *arg, int64_t block) {
  const rows_arg *a = arg;
  for (int64_t m = block * ROWS_A_TASK; m < a->M && m < (block + 1) * ROWS_A_TASK; m++) {
    norm_one(a->C, a->x + m * a->C, a->w, a->eps, a->y + m * a->C);
  }
}

void pl_row_norm(int64_t M, int64_t C, const float *x, const float *w, double eps, float *y) {
  rows_arg a = {.M = M, .C = C, .x = x, .w = w, .eps = eps, .y = y};
  pl_parallel((M + ROWS_A_TASK - 1) / ROWS_A_TASK, norm_block, &a);
}

static void silu_block(void *arg, int64_t block) {
  const rows_arg *a = arg;
  for (int64_t m = block * ROWS_A_TASK; m < a->M && m < (block + 1) * ROWS_A_TASK; m++) {
    pl_silu_mul_f32(a->C, a->y + m * a->C, a->x + m * a->C, a->y + m * a->C);
  }
}

void pl_row_silu_mul(int64_t M, int64_t F, float *a, const float *b) {
  rows_arg r = {.M = M, .C = F, .x = b, .y = a};
  pl_parallel((M + ROWS_A_TASK - 1) / ROWS_A_TASK, silu_block, &r);
}

void pl_row_rope(int64_t H, int64_t D, float *x, const float *cs) {
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

/* ---- the cache ---- */

void pl_kv_write(int64_t K, int64_t D, const float *k, const float *v, int64_t at, float *block) {
  float *keys = block;
  float *values = block + K * D * PL_KV_BLOCK;
  for (int64_t i = 0; i < K * D; i++) {
    keys[i * PL_KV_BLOCK + at] = k[i];
  }
  for (int64_t h = 0; h < K; h++) {
    memcpy(values + (h * PL_KV_BLOCK + at) * D, v + h * D, (size_t)D * sizeof *v);
  }
}

/* s[0..32) = scale * q . keys of one block and head (keys [D][32]) */
PL_VARIANTS(void, kv_scores,
            (int64_t D, const float *q, const float *keys, float scale, float *s),
            (D, q, keys, scale, s)) {
  float acc[PL_KV_BLOCK] = {0};
  for (int64_t d = 0; d < D; d++) {
    for (int t = 0; t < PL_KV_BLOCK; t++) {
      acc[t] += q[d] * keys[d * PL_KV_BLOCK + t];
    }
  }
  for (int t = 0; t < PL_KV_BLOCK; t++) {
    s[t] = acc[t] * scale;
  }
}

/* y += sum over n positions p[t] * values[t] (values [32][D]) */
PL_VARIANTS(void, kv_mix, (int64_t n, int64_t D, const float *p, const float *values, float *y),
            (n, D, p, values, y)) {
  for (int64_t t = 0; t < n; t++) {
    for (int64_t d = 0; d < D; d++) {
      y[d] += p[t] * values[t * D + d];
    }
  }
}

/* Turns n scores (packed) into probabilities. */
static void softmax(int64_t n, float *s) {
  float m = s[0];
  for (int64_t i = 1; i < n; i++) {
    m = s[i] > m ? s[i] : m;
  }
  for (int64_t i = 0; i < n; i++) {
    s[i] -= m;
  }
  pl_exp_f32(n, s, s);
  double sum = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += s[i];
  }
  const float r = (float)(1 / sum);
  for (int64_t i = 0; i < n; i++) {
    s[i] *= r;
  }
}

void pl_row_attention(int64_t H, int64_t K, int64_t D, const float *q, float *const *b0, int64_t n0,
                      float *const *b1, int64_t n1, int64_t layer_offset, float *scratch,
                      float *y) {
  const float scale = (float)(1 / sqrt((double)D));
  const int64_t group = H / K;
  for (int64_t h = 0; h < H; h++) {
    const int64_t keys_at = layer_offset + h / group * D * PL_KV_BLOCK;
    const int64_t values_at = keys_at + K * D * PL_KV_BLOCK;
    /* scores of both runs packed one after the other: a block writes 32, the
     * next begins where the valid ones end */
    for (int64_t t = 0; t < n0; t += PL_KV_BLOCK) {
      kv_scores(D, q + h * D, b0[t / PL_KV_BLOCK] + keys_at, scale, scratch + t);
    }
    for (int64_t t = 0; t < n1; t += PL_KV_BLOCK) {
      kv_scores(D, q + h * D, b1[t / PL_KV_BLOCK] + keys_at, scale, scratch + n0 + t);
    }
    softmax(n0 + n1, scratch);
    float *out = y + h * D;
    memset(out, 0, (size_t)D * sizeof *out);
    for (int64_t t = 0; t < n0; t += PL_KV_BLOCK) {
      const int64_t n = n0 - t < PL_KV_BLOCK ? n0 - t : PL_KV_BLOCK;
      kv_mix(n, D, scratch + t, b0[t / PL_KV_BLOCK] + values_at, out);
    }
    for (int64_t t = 0; t < n1; t += PL_KV_BLOCK) {
      const int64_t n = n1 - t < PL_KV_BLOCK ? n1 - t : PL_KV_BLOCK;
      kv_mix(n, D, scratch + n0 + t, b1[t / PL_KV_BLOCK] + values_at, out);
    }
  }
}
