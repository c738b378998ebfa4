/* Products of bf16 numbers with sums in f32. Must not allocate.
 *
 * A processor that multiplies bf16 runs half_isa.h; for any other, blocks of A and B are
 * rounded, spread out as floats and given to the product of floats. */
#include "kernels/half.h"

#include "base/par.h"
#include "kernels/isa.h"
#include "kernels/kernels.h"

#pragma GCC diagnostic ignored "-Wpsabi"

enum {
  ONE_SUM = 768,             /* depth up to which every product keeps its sums in registers */
  SIDE = 256,                /* of a block of sums, for C in bf16 and deeper than that */
  WIDE_M = 128, WIDE_N = 256 /* sides of the blocks that are spread out as floats */
};

PL_INLINE int64_t imin(int64_t a, int64_t b) {
  return a < b ? a : b;
}

PL_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

#ifdef __x86_64__
#include "kernels/half_isa.h"
_Static_assert(ONE_SUM <= 2 * DEPTH, "bf16 is stored once, when the sum is whole");
#endif

/* ---- conversions ---- */

/* As pl_bf16_of, without branches. */
PL_INLINE pl_bf16 rounded(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  const uint32_t nan = (u & 0x7fffffffU) > 0x7f800000U;
  return (pl_bf16)((nan ? u | 0x400000U : u + 0x7fffU + (u >> 16 & 1)) >> 16);
}

/* By pieces, for x and y may begin at one place. */
PL_VARIANTS(void, narrow, (int64_t n, const float *x, pl_bf16 *y), (n, x, y)) {
  enum { PIECE = 64 };
  for (int64_t i = 0; i < n; i += PIECE) {
    pl_bf16 h[PIECE];
    const int64_t m = imin(PIECE, n - i);
    for (int64_t j = 0; j < m; j++) {
      h[j] = rounded(x[i + j]);
    }
    memcpy(y + i, h, (size_t)m * sizeof *h);
  }
}

PL_VARIANTS(void, widen, (int64_t n, const pl_bf16 *restrict x, float *restrict y), (n, x, y)) {
  for (int64_t i = 0; i < n; i++) {
    y[i] = pl_bf16_float(x[i]);
  }
}

PL_VARIANTS(void, round_off, (int64_t n, const float *x, float *y), (n, x, y)) {
  for (int64_t i = 0; i < n; i++) {
    y[i] = pl_bf16_float(rounded(x[i]));
  }
}

void pl_bf16_round(int64_t n, const float *x, float *y) {
  round_off(n, x, y);
}

static bool has_native(void) {
  return pl_isa_used() == PL_ISA_AVX512BF16;
}

void pl_bf16_row(int64_t n, const float *x, pl_bf16 *y) {
#ifdef __x86_64__
  if (has_native()) {
    narrow_native(n, x, y);
    return;
  }
#endif
  narrow(n, x, y);
}

/* ---- products ---- */

/* op(m) from row r and column c on, t: op transposes */
static pl_mat part_of(const pl_mat *m, bool t, int64_t r, int64_t c) {
  const int64_t i = t ? c * m->ld + r : r * m->ld + c;
  pl_mat p = *m;
  p.data = m->half ? (void *)((pl_bf16 *)m->data + i) : (void *)((float *)m->data + i);
  return p;
}

/* rows x cols of memory as floats that bf16 can hold */
static void spread(const pl_mat *m, int64_t rows, int64_t cols, float *out) {
  for (int64_t r = 0; r < rows; r++) {
    if (m->half) {
      widen(cols, (const pl_bf16 *)m->data + r * m->ld, out + r * cols);
    } else {
      pl_bf16_round(cols, (const float *)m->data + r * m->ld, out + r * cols);
    }
  }
}

/* The product of floats, for processors that do not multiply bf16. */
static void widened(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, float alpha,
                    const pl_mat *A, const pl_mat *B, float beta, const pl_mat *C) {
  float a[WIDE_M * WIDE_N];
  float b[WIDE_N * WIDE_N];
  for (int64_t n = 0; n < N; n += WIDE_N) {
    const int64_t nb = imin(WIDE_N, N - n);
    int64_t k = 0;
    do { /* K = 0 is a product too */
      const int64_t kb = imin(WIDE_N, Kn - k);
      const pl_mat from = part_of(B, tb, k, n);
      spread(&from, tb ? nb : kb, tb ? kb : nb, b);
      for (int64_t m = 0; m < M; m += WIDE_M) {
        const int64_t mb = imin(WIDE_M, M - m);
        const pl_mat rows = part_of(A, ta, m, k);
        const pl_mat to = part_of(C, false, m, n);
        spread(&rows, ta ? kb : mb, ta ? mb : kb, a);
        pl_gemm_small_f32(ta, tb, mb, nb, kb, alpha, a, ta ? mb : kb, b, tb ? kb : nb,
                          k == 0 ? beta : 1, to.data, to.ld);
      }
      k += WIDE_N;
    } while (k < Kn);
  }
}

static void product(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, float alpha,
                    const pl_mat *A, const pl_mat *B, float beta, const pl_mat *C) {
#ifdef __x86_64__
  if (has_native()) {
    native(ta, tb, M, N, Kn, alpha, A, B, beta, C);
    return;
  }
#endif
  widened(ta, tb, M, N, Kn, alpha, A, B, beta, C);
}

/* C in bf16 by way of sums in f32, a block at a time. */
static __attribute__((noinline)) void by_sums(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn,
                                              float alpha, const pl_mat *A, const pl_mat *B,
                                              const pl_mat *C) {
  float sums[SIDE * SIDE];
  const pl_mat to = {.data = sums, .ld = SIDE};
  for (int64_t m = 0; m < M; m += SIDE) {
    for (int64_t n = 0; n < N; n += SIDE) {
      const int64_t mb = imin(SIDE, M - m);
      const int64_t nb = imin(SIDE, N - n);
      const pl_mat a = part_of(A, ta, m, 0);
      const pl_mat b = part_of(B, tb, 0, n);
      product(ta, tb, mb, nb, Kn, alpha, &a, &b, 0, &to);
      for (int64_t i = 0; i < mb; i++) {
        pl_bf16_row(nb, sums + i * SIDE, (pl_bf16 *)C->data + (m + i) * C->ld + n);
      }
    }
  }
}

void pl_gemm_small_bf16(bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha, pl_mat A,
                        pl_mat B, float beta, pl_mat C) {
  if (C.half && (K > ONE_SUM || !has_native())) {
    by_sums(ta, tb, M, N, K, alpha, &A, &B, &C);
  } else {
    product(ta, tb, M, N, K, alpha, &A, &B, beta, &C);
  }
}

typedef struct job {
  bool ta, tb;
  int64_t M, N, K;
  float alpha, beta;
  pl_mat A, B, C;
  int64_t across, mb, nb; /* tiles across C, rows and columns of one */
} job;

static void run_tile(void *arg, int64_t t) {
  const job *j = arg;
  const int64_t m = t / j->across * j->mb;
  const int64_t n = t % j->across * j->nb;
  pl_gemm_small_bf16(j->ta, j->tb, imin(j->mb, j->M - m), imin(j->nb, j->N - n), j->K, j->alpha,
                     part_of(&j->A, j->ta, m, 0), part_of(&j->B, j->tb, 0, n), j->beta,
                     part_of(&j->C, false, m, n));
}

/* x cut into equal parts of at most `most`, each a multiple of `unit`. */
static int64_t cut(int64_t x, int64_t most, int64_t unit) {
  const int64_t parts = ceil_div(x, most);
  return ceil_div(ceil_div(x, parts), unit) * unit;
}

void pl_gemm_bf16(bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha, pl_mat A,
                  pl_mat B, float beta, pl_mat C) {
  const double work = (double)M * (double)N * (double)K;
  if (work < 64 * 64 * 32) {
    pl_gemm_small_bf16(ta, tb, M, N, K, alpha, A, B, beta, C);
    return;
  }
  /* As for floats: start from the tile that copies least, halve its longer side to four
   * tiles wherever one is worth handing over, further only while tiles stay large. */
  int64_t mb = cut(M, 1024, 14);
  int64_t nb = cut(N, 512, 32);
  for (;;) {
    const int64_t tiles = ceil_div(M, mb) * ceil_div(N, nb);
    const double each = (double)mb * (double)nb * (double)K;
    const int64_t longer = mb > nb ? mb : nb;
    const bool more = tiles < 4 ? each > 2e6 && longer > 32
                                : tiles < 16 && each > 6e7 && longer >= 1024;
    if (!more) {
      break;
    }
    if (mb >= nb) {
      mb = cut(M, ceil_div(mb, 2), 14);
    } else {
      nb = cut(N, ceil_div(nb, 2), 32);
    }
  }
  job j = {ta, tb, M, N, K, alpha, beta, A, B, C, ceil_div(N, nb), mb, nb};
  pl_parallel(ceil_div(M, mb) * j.across, run_tile, &j);
}
