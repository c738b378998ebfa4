/* bf16: the conversions, and products on every instruction set against the slow twin in
 * f64, over shapes that are odd on purpose, every way to store A, B and C, and any number
 * of threads. */
#include "each_isa.h"
#include "harness.h"

#include "base/par.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref.h"

static void *memory(size_t bytes) {
  void *p = pl_alloc(&harness.ctx, bytes ? bytes : 1);
  if (!p) {
    abort();
  }
  return p;
}

static void release(void *p) {
  pl_free(&harness.ctx, p);
}

/* A matrix with gaps between its rows, and what it holds once rounded. In the gaps of A and
 * B are NaNs: who reads there, even to multiply by 0, is found out. */
typedef struct matrix {
  pl_mat m;
  int64_t n; /* elements in memory */
  double *wide;
} matrix;

enum { A_WHAT = 1, B_WHAT, C_WHAT };

static matrix matrix_new(int64_t rows, int64_t cols, int64_t gap, bool half, bool rounded,
                         int what) {
  matrix x = {.m = {.ld = cols + gap, .half = half}};
  x.n = rows * x.m.ld;
  x.m.data = memory((size_t)x.n * (half ? 2 : 4));
  x.wide = memory((size_t)x.n * sizeof *x.wide);
  for (int64_t i = 0; i < x.n; i++) {
    const bool trap = what != C_WHAT && i % x.m.ld >= cols;
    const float v = trap ? NAN : (float)(2 * pl_uniform(7, (uint64_t)what, (uint64_t)i) - 1);
    x.wide[i] = (double)(rounded ? pl_bf16_float(pl_bf16_of(v)) : v);
    if (half) {
      ((pl_bf16 *)x.m.data)[i] = pl_bf16_of(v);
    } else {
      ((float *)x.m.data)[i] = v;
    }
  }
  return x;
}

static void matrix_free(matrix *x) {
  release(x->m.data);
  release(x->wide);
}

static float element(const pl_mat *m, int64_t i) {
  return m->half ? pl_bf16_float(((const pl_bf16 *)m->data)[i]) : ((const float *)m->data)[i];
}

enum { TA = 1, TB = 2, HALF_A = 4, HALF_B = 8, HALF_C = 16, SCALED = 32, KINDS = 64 };

static bool agrees(const char *which, int kind, int64_t M, int64_t N, int64_t K, const matrix *c) {
  const double slack = 4e-6 * (1 + sqrt((double)K));
  for (int64_t i = 0; i < c->n; i++) {
    const bool gap = i % c->m.ld >= N; /* must be as it was */
    const double e = fabs((double)element(&c->m, i) - c->wide[i]);
    const double allowed = (gap ? 0 : slack) + (c->m.half ? fabs(c->wide[i]) / 256 : 0);
    if (!(e <= allowed)) {
      FAIL("%s, kind %d, %lld x %lld x %lld: [%lld, %lld] is %g, wanted %g", which, kind,
           (long long)M, (long long)N, (long long)K, (long long)(i / c->m.ld),
           (long long)(i % c->m.ld), (double)element(&c->m, i), c->wide[i]);
      return false;
    }
  }
  return true;
}

static bool check_product(int kind, int64_t M, int64_t N, int64_t K) {
  const bool ta = kind & TA;
  const bool tb = kind & TB;
  const bool half_c = kind & HALF_C;
  const double alpha = kind & SCALED ? 0.5 : 1;
  const double beta = kind & SCALED && !half_c ? -2 : 0;
  matrix a = matrix_new(ta ? K : M, ta ? M : K, 3, kind & HALF_A, true, A_WHAT);
  matrix b = matrix_new(tb ? N : K, tb ? K : N, 1, kind & HALF_B, true, B_WHAT);
  matrix c = matrix_new(M, N, 2, half_c, half_c, C_WHAT);
  matrix d = matrix_new(M, N, 2, half_c, half_c, C_WHAT);
  pl_ref_gemm(ta, tb, M, N, K, alpha, a.wide, a.m.ld, b.wide, b.m.ld, beta, c.wide, c.m.ld);
  memcpy(d.wide, c.wide, (size_t)c.n * sizeof *c.wide);
  if (beta == 0 && M > 0 && N > 0 && !half_c) {
    ((float *)c.m.data)[0] = NAN; /* beta = 0 must not read C */
    ((float *)d.m.data)[0] = NAN;
  }
  pl_gemm_bf16(ta, tb, M, N, K, (float)alpha, a.m, b.m, (float)beta, c.m);
  pl_gemm_small_bf16(ta, tb, M, N, K, (float)alpha, a.m, b.m, (float)beta, d.m);
  const bool ok = agrees("gemm", kind, M, N, K, &c) && agrees("gemm_small", kind, M, N, K, &d);
  matrix_free(&a), matrix_free(&b), matrix_free(&c), matrix_free(&d);
  return ok;
}

TEST_EACH_ISA(products_of_awkward_shapes_match_twin) {
  static const int64_t shapes[][3] = {{0, 3, 4},    {3, 0, 4},     {3, 4, 0},   {1, 1, 1},
                                      {1, 17, 5},   {2, 3, 301},   {5, 16, 7},  {14, 32, 2},
                                      {15, 33, 31}, {28, 31, 33},  {7, 48, 64}, {64, 48, 1},
                                      {32, 128, 48}, {13, 15, 130}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    for (int kind = 0; kind < KINDS; kind++) {
      if (!check_product(kind, shapes[s][0], shapes[s][1], shapes[s][2])) {
        return;
      }
    }
  }
}

/* deeper and wider than one block of every kind */
TEST_EACH_ISA(products_beyond_a_block_match_twin) {
  static const int64_t shapes[][3] = {
      {17, 33, 1601}, {3, 1061, 50}, {290, 270, 771}, {1, 600, 900}};
  for (int s = 0; s < (int)(sizeof shapes / sizeof *shapes); s++) {
    for (int i = 0; i < 8; i++) {
      if (!check_product((s + 9 * i) % KINDS, shapes[s][0], shapes[s][1], shapes[s][2])) {
        return;
      }
    }
  }
}

TEST_EACH_ISA(products_of_random_shapes_match_twin) {
  static const int most[3] = {90, 150, 900};
  for (int s = 0; s < 96; s++) {
    int64_t size[3];
    for (int d = 0; d < 3; d++) {
      const double u = pl_uniform(11, (uint64_t)s, (uint64_t)d);
      size[d] = 1 + (int64_t)(u * u * most[d]);
    }
    if (!check_product(s % KINDS, size[0], size[1], size[2])) {
      return;
    }
  }
}

TEST_EACH_ISA(products_pass_nan_and_infinity) {
  for (int kind = 0; kind < KINDS; kind++) {
    const int64_t M = 20;
    const int64_t N = 37;
    const int64_t K = 51;
    matrix a = matrix_new(kind & TA ? K : M, kind & TA ? M : K, 0, kind & HALF_A, true, A_WHAT);
    matrix b = matrix_new(kind & TB ? N : K, kind & TB ? K : N, 0, kind & HALF_B, true, B_WHAT);
    matrix c = matrix_new(M, N, 0, kind & HALF_C, true, C_WHAT);
    const float odd[2] = {NAN, INFINITY};
    for (int row = 0; row < 2; row++) { /* NaN in row 0 of op(A), infinity in row 1: last k */
      const int64_t i = kind & TA ? (K - 1) * a.m.ld + row : row * a.m.ld + K - 1;
      if (a.m.half) {
        ((pl_bf16 *)a.m.data)[i] = pl_bf16_of(odd[row]);
      } else {
        ((float *)a.m.data)[i] = odd[row];
      }
    }
    pl_gemm_bf16(kind & TA, kind & TB, M, N, K, 1, a.m, b.m, 0, c.m);
    for (int64_t n = 0; n < N; n++) {
      CHECK(isnan(element(&c.m, n)));
      CHECK(isinf(element(&c.m, c.m.ld + n)));
      CHECK(isfinite(element(&c.m, 2 * c.m.ld + n)));
    }
    matrix_free(&a), matrix_free(&b), matrix_free(&c);
  }
}

TEST_EACH_ISA(products_are_the_same_on_any_number_of_threads) {
  static const int64_t shapes[][3] = {{301, 210, 97}, {64, 1100, 130}, {700, 64, 900}};
  static const int counts[] = {1, 2, 3, 7};
  const int before = pl_threads();
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    for (int kind = (int)s; kind < SCALED; kind += 5) {
      const int64_t M = shapes[s][0];
      const int64_t N = shapes[s][1];
      const int64_t K = shapes[s][2];
      matrix a = matrix_new(kind & TA ? K : M, kind & TA ? M : K, 1, kind & HALF_A, true, A_WHAT);
      matrix b = matrix_new(kind & TB ? N : K, kind & TB ? K : N, 0, kind & HALF_B, true, B_WHAT);
      void *first = NULL;
      for (size_t t = 0; t < sizeof counts / sizeof *counts; t++) {
        matrix c = matrix_new(M, N, 0, kind & HALF_C, true, C_WHAT);
        const size_t bytes = (size_t)c.n * (c.m.half ? 2 : 4);
        pl_set_threads(counts[t]);
        pl_gemm_bf16(kind & TA, kind & TB, M, N, K, 1, a.m, b.m, 0, c.m);
        if (t == 0) {
          first = memory(bytes);
          memcpy(first, c.m.data, bytes);
        }
        CHECK(memcmp(first, c.m.data, bytes) == 0);
        matrix_free(&c);
      }
      release(first);
      matrix_free(&a), matrix_free(&b);
    }
  }
  pl_set_threads(before);
}
