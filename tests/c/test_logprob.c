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
  float *scratch = memory((size_t)pl_token_logprob_scratch_bf16(M, C, V, 2) * sizeof *scratch);
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
  double *scratch = memory((size_t)pl_token_logprob_scratch_f64(M, C, V, 2) * sizeof *scratch);
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

enum { MANY = 4100, FEW = 1000, MC = 6, MV = 40 }; /* MANY: more parts than one */

typedef struct many {
  double h[MANY * MC], w[MV * MC], g[MANY], out[MANY], gh[MANY * MC], gw[MV * MC], part[MV * MC];
  double stats[2 * MANY], kept[MANY * MV];
  int32_t rows[MANY], ids[MANY];
} many;

/* Rows i0..i0+n in one call. */
static void some(many *t, int i0, int n, bool listed, bool keep, double *gw) {
  REQUIRE(pl_token_logprob_stats_f64(n, MV) <= 2 * MANY);
  double *scratch = memory((size_t)pl_token_logprob_scratch_f64(n, MC, MV, 2) * sizeof *scratch);
  const int32_t *rows = listed ? t->rows + i0 : NULL;
  const double *h = listed ? t->h : t->h + i0 * MC;
  double *gh = listed ? t->gh : t->gh + i0 * MC;
  double *kept = keep ? t->kept : NULL;
  pl_token_logprob_f64(n, MC, MV, h, rows, t->w, t->ids + i0, t->out + i0, t->stats, kept, scratch);
  pl_token_logprob_back_f64(n, MC, MV, h, rows, t->w, t->ids + i0, t->out + i0, t->stats, t->g + i0,
                            gh, gw, kept, scratch);
  pl_free(&harness.ctx, scratch);
}

TEST(parts_of_many_rows_add_up) {
  many *t = memory(sizeof *t);
  many *whole = memory(sizeof *whole);
  for (int i = 0; i < MANY * MC; i++) {
    t->h[i] = pl_uniform(5, 0, (uint64_t)i) - 0.5;
  }
  for (int i = 0; i < MV * MC; i++) {
    t->w[i] = 4 * pl_uniform(5, 1, (uint64_t)i) - 2;
  }
  for (int i = 0; i < MANY; i++) {
    t->g[i] = pl_uniform(5, 2, (uint64_t)i) - 0.5;
    t->rows[i] = (int32_t)((int64_t)i * 7919 % MANY);
    t->ids[i] = i * 97 % MV;
  }
  for (int how = 0; how < 4; how++) {
    memset(t->gh, 0, sizeof t->gh);
    memset(t->gw, 0, sizeof t->gw);
    *whole = *t;
    some(whole, 0, MANY, how & 1, how & 2, whole->gw);
    for (int i = 0; i < MANY; i += FEW) {
      some(t, i, i + FEW < MANY ? FEW : MANY - i, how & 1, how & 2, t->part);
      for (int k = 0; k < MV * MC; k++) {
        t->gw[k] += t->part[k];
      }
    }
    for (int i = 0; i < MANY; i++) {
      CHECK_NEAR(whole->out[i], t->out[i], 1e-12);
    }
    for (int i = 0; i < MANY * MC; i++) {
      CHECK_NEAR(whole->gh[i], t->gh[i], 1e-12);
    }
    for (int k = 0; k < MV * MC; k++) {
      CHECK_NEAR(whole->gw[k], t->gw[k], 1e-10);
    }
  }
  pl_free(&harness.ctx, t);
  pl_free(&harness.ctx, whole);
}
