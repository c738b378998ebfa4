/* The head with activations in bf16: against the f64 kernel on inputs that bf16 holds
 * exactly, with and without what is kept, and the same bits on any number of threads. */
#include "each_isa.h"
#include "harness.h"

#include "base/par.h"
#include "base/rng.h"
#include "kernels/kernels.h"

enum { M = 70, N = 50, C = 24, V = 1031 };

typedef struct head {
  float h[N * C], w[V * C], g[M], out[M], gh[N * C], gw[V * C];
  double hd[N * C], wd[V * C], gd[M], outd[M], ghd[N * C], gwd[V * C];
  int32_t rows[M], ids[M];
} head;

static void *memory(size_t bytes) {
  void *p = pl_alloc_zero(&harness.ctx, bytes);
  if (!p) {
    abort();
  }
  return p;
}

static void fill(int64_t n, int what, double scale, float *x, double *wide) {
  for (int64_t i = 0; i < n; i++) {
    double v = scale * (2 * pl_uniform(3, (uint64_t)what, (uint64_t)i) - 1);
    x[i] = pl_bf16_float(pl_bf16_of((float)v));
    wide[i] = (double)x[i];
  }
}

static head *made(void) {
  head *t = memory(sizeof *t);
  fill(N * C, 1, 2, t->h, t->hd);
  fill(V * C, 2, 1, t->w, t->wd);
  fill(M, 3, 1, t->g, t->gd);
  for (int i = 0; i < M; i++) {
    t->rows[i] = i * 3 % N;
    t->ids[i] = i * 97 % V;
  }
  return t;
}

static void half(head *t, bool keep) {
  float *stats = memory((size_t)pl_token_logprob_stats_bf16(M, V) * sizeof *stats);
  float *scratch = memory((size_t)pl_token_logprob_scratch_bf16(M, C, V) * sizeof *scratch);
  pl_bf16 *kept = keep ? memory(sizeof *kept * M * V) : NULL;
  memset(t->gh, 0, sizeof t->gh);
  pl_token_logprob_bf16(M, C, V, t->h, t->rows, t->w, t->ids, t->out, stats, kept, scratch);
  pl_token_logprob_back_bf16(M, C, V, t->h, t->rows, t->w, t->ids, t->out, stats, t->g, t->gh,
                             t->gw, kept, scratch);
  pl_free(&harness.ctx, stats);
  pl_free(&harness.ctx, scratch);
  pl_free(&harness.ctx, kept);
}

static void exact(head *t) {
  double *stats = memory((size_t)pl_token_logprob_stats_f64(M, V) * sizeof *stats);
  double *scratch = memory((size_t)pl_token_logprob_scratch_f64(M, C, V) * sizeof *scratch);
  pl_token_logprob_f64(M, C, V, t->hd, t->rows, t->wd, t->ids, t->outd, stats, NULL, scratch);
  pl_token_logprob_back_f64(M, C, V, t->hd, t->rows, t->wd, t->ids, t->outd, stats, t->gd, t->ghd,
                            t->gwd, NULL, scratch);
  pl_free(&harness.ctx, stats);
  pl_free(&harness.ctx, scratch);
}

/* Largest error against the largest value. */
static double off(int64_t n, const float *got, const double *want) {
  double worst = 0;
  double scale = 0;
  for (int64_t i = 0; i < n; i++) {
    double e = fabs((double)got[i] - want[i]);
    worst = e > worst || isnan(e) ? e : worst;
    scale = fmax(scale, fabs(want[i]));
  }
  return worst / scale;
}

TEST_EACH_ISA(half_head_is_near_the_exact_one) {
  head *t = made();
  exact(t);
  for (int keep = 0; keep < 2; keep++) {
    half(t, keep != 0);
    /* the products are exact and summed in f32; only the gradient's softmax is rounded */
    CHECK(off(M, t->out, t->outd) < 2e-6);
    CHECK(off(N * C, t->gh, t->ghd) < 4e-3);
    CHECK(off(V * C, t->gw, t->gwd) < 4e-3);
  }
  pl_free(&harness.ctx, t);
}

TEST(half_head_has_the_same_bits_on_any_number_of_threads) {
  int before = pl_threads();
  static const int counts[] = {2, 3, 7};
  head *one = made();
  head *more = made();
  pl_set_threads(1);
  half(one, true);
  for (int i = 0; i < 3; i++) {
    pl_set_threads(counts[i]);
    half(more, true);
    CHECK(memcmp(one->out, more->out, sizeof one->out) == 0);
    CHECK(memcmp(one->gh, more->gh, sizeof one->gh) == 0);
    CHECK(memcmp(one->gw, more->gw, sizeof one->gw) == 0);
  }
  pl_set_threads(before);
  pl_free(&harness.ctx, one);
  pl_free(&harness.ctx, more);
}
