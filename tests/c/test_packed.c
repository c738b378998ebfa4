/* Products with packed weights: every format at every instruction set against a plain
 * product in doubles, and that a row's bits depend on that row alone. */
#include "each_isa.h"

#include "base/par.h"
#include "base/rng.h"
#include "kernels/half.h"
#include "kernels/packed.h"

static void fill(float *x, int64_t n, uint64_t stream) {
  for (int64_t i = 0; i < n; i++) {
    x[i] = (float)pl_normal(11, stream, (uint64_t)i);
  }
}

/* Activations share a scale by pieces of so many. */
enum { PIECE = 10 };

typedef struct product {
  pl_packed w;
  void *memory;
  char *x; /* [M] rows of ldx bytes */
  int64_t ldx;
} product;

static void *need(size_t bytes) {
  return pl_alloc_zero(ctx(), bytes);
}

/* Columns 0..n0-1 and the others in two pieces, as query, key and value come. */
static product make(pl_pack_kind kind, int64_t M, int64_t N, int64_t K, const float *x,
                    const float *w, const float *bias) {
  product p;
  const int64_t n0 = N / 3;
  const int64_t k0 = K / 2 / PIECE * PIECE;
  const pl_operand in = {kind, K, PIECE};
  p.memory = need(pl_packed_bytes(&in, N, bias != NULL));
  pl_packed_init(&p.w, &in, N, bias != NULL, p.memory);
  pl_packed_fill(&p.w, 0, n0, w, bias);
  pl_packed_fill(&p.w, n0, N - n0, w + n0 * K, bias == NULL ? NULL : bias + n0);
  p.ldx = pl_operand_ld(&in);
  CHECK(p.ldx % 64 == 0);
  p.x = need((size_t)(M * p.ldx));
  for (int64_t m = 0; m < M; m++) { /* in two pieces too */
    pl_operand_put(&in, x + m * K, 0, k0, p.x + m * p.ldx);
    pl_operand_put(&in, x + m * K + k0, k0, K - k0, p.x + m * p.ldx);
  }
  return p;
}

static void drop(product *p) {
  pl_free(ctx(), p->memory);
  pl_free(ctx(), p->x);
}

/* x[k] in 8 bits, with one scale for the n numbers from first on. */
static double eight(const float *x, int64_t first, int64_t n, int64_t k) {
  float most = 0;
  for (int64_t i = first; i < first + n; i++) {
    most = fmaxf(most, fabsf(x[i]));
  }
  const float scale = most / 127;
  return scale == 0 ? 0 : (double)scale * nearbyint(x[k] * (1 / scale));
}

/* What the format makes of a weight, whose row has one scale, and of an activation. */
static double kept_weight(pl_pack_kind kind, int64_t K, const float *row, int64_t k) {
  return kind == PL_PACK_INT8   ? eight(row, 0, K, k)
         : kind == PL_PACK_BF16 ? pl_bf16_float(pl_bf16_of(row[k]))
                                : row[k];
}

static double kept_input(pl_pack_kind kind, int64_t K, const float *row, int64_t k) {
  const int64_t first = k / PIECE * PIECE;
  return kind == PL_PACK_INT8   ? eight(row, first, K - first < PIECE ? K - first : PIECE, k)
         : kind == PL_PACK_BF16 ? pl_bf16_float(pl_bf16_of(row[k]))
                                : row[k];
}

static void against_plain(pl_pack_kind kind, int64_t M, int64_t N, int64_t K, bool with_bias,
                          bool add) {
  float *x = need((size_t)(M * K) * 4);
  float *w = need((size_t)(N * K) * 4);
  float *bias = need((size_t)N * 4);
  float *y = need((size_t)(M * (N + 3)) * 4);
  float *was = need((size_t)(M * (N + 3)) * 4);
  fill(x, M * K, 1);
  fill(w, N * K, 2);
  fill(bias, N, 3);
  fill(y, M * (N + 3), 4);
  memset(w + (N - 1) * K, 0, (size_t)K * 4); /* a column of zeros has no scale */
  memcpy(was, y, (size_t)(M * (N + 3)) * 4);
  product p = make(kind, M, N, K, x, w, with_bias ? bias : NULL);
  pl_packed_product(&p.w, M, p.x, p.ldx, add, y, N + 3, 0, pl_packed_panels(&p.w));
  double worst = 0;
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N + 3; n++) {
      double want = n < N && !add ? 0 : was[m * (N + 3) + n];
      for (int64_t k = 0; n < N && k < K; k++) {
        want += kept_input(kind, K, x + m * K, k) * kept_weight(kind, K, w + n * K, k);
      }
      want += with_bias && n < N ? bias[n] : 0;
      worst = fmax(worst, fabs(want - y[m * (N + 3) + n]));
    }
  }
  CHECK(worst < 3e-6 * sqrt((double)K) * 8);
  drop(&p);
  pl_free(ctx(), x);
  pl_free(ctx(), w);
  pl_free(ctx(), bias);
  pl_free(ctx(), y);
  pl_free(ctx(), was);
}

TEST_EACH_ISA(packed_products) {
  static const int64_t sizes[][3] = {{1, 1, 1},    {1, 16, 2},  {1, 67, 33},  {2, 5, 7},
                                     {3, 64, 8},   {7, 130, 31}, {12, 48, 288}, {13, 33, 40},
                                     {25, 100, 65}, {64, 31, 17}, {50, 130, 172}};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    for (int kind = PL_PACK_F32; kind <= PL_PACK_INT8; kind++) {
      for (int more = 0; more < 4; more++) {
        against_plain((pl_pack_kind)kind, sizes[s][0], sizes[s][1], sizes[s][2], more & 1,
                      more >> 1);
      }
    }
  }
}

/* Every number of rows, any cut of the panels: the bits of each row stay. */
TEST_EACH_ISA(packed_rows_are_independent) {
  enum { MOST = 40, N = 150, K = 77 };
  static float x[MOST * K], w[N * K], all[MOST * N], some[MOST * N];
  fill(x, MOST * K, 1);
  fill(w, N * K, 2);
  for (int kind = PL_PACK_F32; kind <= PL_PACK_INT8; kind++) {
    product p = make((pl_pack_kind)kind, MOST, N, K, x, w, w);
    const int64_t panels = pl_packed_panels(&p.w);
    memset(all, 0, sizeof all);
    for (int64_t m = 0; m < MOST; m++) { /* alone, panel by panel */
      for (int64_t n = 0; n < panels; n++) {
        pl_packed_product(&p.w, 1, p.x + m * p.ldx, p.ldx, true, all + m * N, N, n, n + 1);
      }
    }
    for (int64_t M = 1; M <= MOST; M++) {
      const int64_t first = (MOST - M) / 2;
      const int64_t cut = M % (panels + 1);
      memset(some, 0, sizeof some);
      pl_packed_product(&p.w, M, p.x + first * p.ldx, p.ldx, true, some, N, 0, cut);
      pl_packed_product(&p.w, M, p.x + first * p.ldx, p.ldx, true, some, N, cut, panels);
      CHECK(memcmp(some, all + first * N, (size_t)(M * N) * sizeof *some) == 0);
    }
    drop(&p);
  }
}

/* Packing by any number of threads gives the same bytes; damaged weights stay visible. */
TEST(packed_bytes_and_damage) {
  enum { N = 70, K = 50 };
  static float w[N * K], x[K], y[N];
  fill(w, N * K, 2);
  fill(x, K, 1);
  const int threads = pl_threads();
  for (int kind = PL_PACK_F32; kind <= PL_PACK_INT8; kind++) {
    pl_set_threads(1);
    product a = make((pl_pack_kind)kind, 1, N, K, x, w, NULL);
    pl_set_threads(3);
    product b = make((pl_pack_kind)kind, 1, N, K, x, w, NULL);
    CHECK(memcmp(a.memory, b.memory, pl_packed_bytes(&a.w.in, N, false)) == 0);
    drop(&a);
    drop(&b);
    const float was = w[33 * K + 7];
    const float broken[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
      w[33 * K + 7] = broken[i];
      product c = make((pl_pack_kind)kind, 1, N, K, x, w, NULL);
      pl_packed_product(&c.w, 1, c.x, c.ldx, false, y, N, 0, pl_packed_panels(&c.w));
      CHECK(!isfinite(y[33]) && isfinite(y[32]) && isfinite(y[34]));
      drop(&c);
    }
    w[33 * K + 7] = was;
    const float kept = x[7];
    for (int i = 0; i < 3; i++) { /* and damaged activations */
      x[7] = broken[i];
      product c = make((pl_pack_kind)kind, 1, N, K, x, w, NULL);
      pl_packed_product(&c.w, 1, c.x, c.ldx, false, y, N, 0, pl_packed_panels(&c.w));
      for (int n = 0; n < N; n++) {
        CHECK(!isfinite(y[n]));
      }
      drop(&c);
    }
    x[7] = kept;
  }
  pl_set_threads(threads);
}
