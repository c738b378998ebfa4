/* Attention in all three builds against dense softmax in double, gradients included, for
 * every instruction set: packed sequences (empty ones, single tokens), shared prompts,
 * windows, grouped heads, odd head sizes, rows with gaps, more keys than a block. */
#include "each_isa.h"
#include "harness.h"

#include "base/par.h"
#include "base/rng.h"
#include "kernels/kernels.h"

enum { GAP = 3, MOST_S = 8 };

typedef struct shape {
  int64_t S, H, K, D, window;
  int32_t seq[MOST_S + 1];
  int32_t parent[MOST_S];
  bool family;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 4, 0, {0, 1}, {0}, false},
    {4, 2, 2, 4, 0, {0, 5, 6, 6, 9}, {0}, false},
    {2, 4, 2, 7, 0, {0, 40, 107}, {0}, false},
    {1, 2, 1, 48, 0, {0, 131}, {0}, false},
    {1, 1, 1, 33, 0, {0, 300}, {0}, false},
    {1, 2, 1, 16, 5, {0, 150}, {0}, false},
    {2, 1, 1, 8, 1, {0, 40, 45}, {0}, false},
    {3, 2, 1, 32, 0, {0, 128, 200, 300}, {-1, 0, 0}, true},
    {7, 4, 2, 5, 0, {0, 13, 20, 33, 33, 34, 71, 72}, {-1, 0, 0, -1, -1, 4, 4}, true},
    {3, 1, 1, 12, 9, {0, 30, 41, 77}, {-1, 0, 0}, true},
    {3, 1, 1, 64, 0, {0, 111, 112, 250}, {-1, 0, 0}, true},
};

static void *memory(size_t bytes) {
  void *p = pl_alloc_zero(&harness.ctx, bytes + 1);
  if (!p) {
    abort();
  }
  return p;
}

/* Query i of sequence s sees key row n of sequence t. */
static bool sees(const shape *z, int s, int64_t i, int t, int64_t n) {
  const bool child = z->family && z->parent[s] >= 0;
  const int64_t before = child ? z->seq[z->parent[s] + 1] - z->seq[z->parent[s]] : 0;
  if (t != s && (!child || z->parent[s] != t)) {
    return false;
  }
  const int64_t q = before + i - z->seq[s];
  const int64_t k = t == s ? before + n - z->seq[s] : n - z->seq[t];
  return k <= q && (z->window == 0 || k > q - z->window);
}

typedef struct dense {
  double *q, *k, *v, *gy, *y, *lse, *gq, *gk, *gv; /* rows dense */
} dense;

static void twin(const shape *z, dense *d) {
  const int64_t N = z->seq[z->S];
  const int64_t D = z->D;
  const double scale = 1 / sqrt((double)D);
  double *p = memory((size_t)N * sizeof *p);
  for (int s = 0; s < z->S; s++) {
    for (int64_t i = z->seq[s]; i < z->seq[s + 1]; i++) {
      for (int64_t h = 0; h < z->H; h++) {
        const int64_t kh = h / (z->H / z->K);
        const double *q = d->q + (i * z->H + h) * D;
        const double *gy = d->gy + (i * z->H + h) * D;
        double *y = d->y + (i * z->H + h) * D;
        double sum = 0;
        double a = 0;
        for (int64_t n = 0; n < N; n++) {
          p[n] = 0;
        }
        for (int t = 0; t <= s; t++) {
          for (int64_t n = z->seq[t]; n < z->seq[t + 1]; n++) {
            if (sees(z, s, i, t, n)) {
              double dot = 0;
              for (int64_t c = 0; c < D; c++) {
                dot += q[c] * d->k[(n * z->K + kh) * D + c];
              }
              p[n] = exp(dot * scale);
              sum += p[n];
            }
          }
        }
        d->lse[i * z->H + h] = log(sum);
        for (int64_t n = 0; n < N; n++) {
          p[n] /= sum;
          for (int64_t c = 0; c < D; c++) {
            y[c] += p[n] * d->v[(n * z->K + kh) * D + c];
          }
        }
        for (int64_t c = 0; c < D; c++) {
          a += gy[c] * y[c];
        }
        for (int64_t n = 0; n < N; n++) {
          double dp = 0;
          for (int64_t c = 0; c < D; c++) {
            dp += gy[c] * d->v[(n * z->K + kh) * D + c];
            d->gv[(n * z->K + kh) * D + c] += p[n] * gy[c];
          }
          const double ds = p[n] * (dp - a) * scale;
          for (int64_t c = 0; c < D; c++) {
            d->gq[(i * z->H + h) * D + c] += ds * d->k[(n * z->K + kh) * D + c];
            d->gk[(n * z->K + kh) * D + c] += ds * q[c];
          }
        }
      }
    }
  }
  pl_free(&harness.ctx, p);
}

static double value(int what, int64_t i) {
  return 3 * pl_uniform(11, (uint64_t)what, (uint64_t)i) - 1.5;
}

#define T float
#define A float
#define N(name) name##_f32
#define OF(x) (x)
#define BACK(x) ((double)(x))
#define TOL 2e-5
#include "test_attention_body.h"

#define T double
#define A double
#define N(name) name##_f64
#define OF(x) (x)
#define BACK(x) (x)
#define TOL 1e-12
#include "test_attention_body.h"

/* what bf16 cannot hold is rounded: weights, their gradients, and the results */
#define T float
#define A pl_bf16
#define N(name) name##_bf16
#define OF(x) pl_bf16_of((float)(x))
#define BACK(x) ((double)pl_bf16_float(x))
#define TOL 1.2e-2
#include "test_attention_body.h"
