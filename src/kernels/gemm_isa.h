/* The matrix product for one instruction set, included by gemm.c once for
 * each with
 *   ISA      suffix of the functions made here
 *   TARGET   function attribute that selects the instructions
 *   VBYTES   bytes in a vector register
 *   MR       most rows of a register tile; 2 vectors wide
 * A panel of B (KC x 2 vectors) is copied into a buffer that stays in the L1
 * cache, and the rows of A stream past it MR at a time. Every element of C is
 * the sum over k in increasing order within chunks of KC. */

#define FN(name) PL_CAT(name, ISA)
#define V FN(v)
#define LANES ((int)(VBYTES / sizeof(real)))
#define NR (2 * LANES)

typedef real V __attribute__((vector_size(VBYTES)));

PL_INLINE V FN(ld)(const real *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

PL_INLINE void FN(st)(real *p, V v) {
  memcpy(p, &v, sizeof v);
}

/* C[mr, nv vectors] = alpha * A B + beta * C; a(i,k) at i*lda + k, or at
 * k*lda + i where `across`. nc: columns of C that exist. mr, nv, across are
 * constants at every call, so the accumulators live in registers. */
PL_INLINE void FN(tile)(const int mr, const int nv, const bool across, int64_t kc, const real *a,
                        int64_t lda, const real *b, real alpha, real beta, real *c, int64_t ldc,
                        int nc) {
  V acc[MR][2];
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    acc[i][0] = (V){0};
    acc[i][1] = (V){0};
  }
  for (int64_t k = 0; k < kc; k++) {
    V b0 = FN(ld)(b);
    V b1 = nv > 1 ? FN(ld)(b + LANES) : (V){0};
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      real x = across ? a[i] : a[i * lda];
      acc[i][0] += b0 * x;
      if (nv > 1) {
        acc[i][1] += b1 * x;
      }
    }
    a += across ? lda : 1;
    b += NR;
  }
  if (nc == nv * LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < nv; j++) {
        real *p = c + i * ldc + j * LANES;
        V r = acc[i][j] * alpha;
        if (beta != 0) {
          r += FN(ld)(p) * beta;
        }
        FN(st)(p, r);
      }
    }
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    real t[NR];
    FN(st)(t, acc[i][0]);
    FN(st)(t + LANES, acc[i][1]);
    real *p = c + i * ldc;
    for (int j = 0; j < nc; j++) {
      p[j] = beta != 0 ? alpha * t[j] + beta * p[j] : alpha * t[j];
    }
  }
}

#define CASE(mr)                                                        \
  case mr:                                                              \
    FN(tile)(mr, nv, across, kc, a, lda, b, alpha, beta, c, ldc, nc);   \
    break;

PL_INLINE void FN(rows)(int mr, const int nv, const bool across, int64_t kc, const real *a,
                        int64_t lda, const real *b, real alpha, real beta, real *c, int64_t ldc,
                        int nc) {
  switch (mr) {
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
#if MR > 4
    CASE(5)
    CASE(6)
#endif
#if MR > 6
    CASE(7)
    CASE(8)
    CASE(9)
    CASE(10)
    CASE(11)
    CASE(12)
    CASE(13)
    CASE(14)
#endif
  default:
    break;
  }
}
#undef CASE

/* One panel against all rows of a block, the rows shared out evenly over the
 * fewest tiles. Out of line: one copy of the tiles for each (nv, across). */
#define STRIPS(name, nv, across)                                                               \
  TARGET static void FN(name)(int64_t m, int64_t kc, const real *a, int64_t lda, const real *b, \
                              real alpha, real beta, real *c, int64_t ldc, int nc) {           \
    int64_t n = ceil_div(m, MR);                                                               \
    for (int64_t i = 0; i < n; i++) {                                                          \
      int64_t m0 = i * m / n;                                                                  \
      int mr = (int)((i + 1) * m / n - m0);                                                    \
      FN(rows)(mr, nv, across, kc, across ? a + m0 : a + m0 * lda, lda, b, alpha, beta,        \
               c + m0 * ldc, ldc, nc);                                                         \
    }                                                                                          \
  }
STRIPS(strips_1, 1, false)
STRIPS(strips_2, 2, false)
STRIPS(strips_1t, 1, true)
STRIPS(strips_2t, 2, true)
#undef STRIPS

/* One panel of op(B): rows k0.., columns n0..n0+nc, zero-filled to NR. */
TARGET static void FN(pack_b)(bool tb, int64_t kc, const real *b, int64_t ldb, int nc, real *out) {
  if (!tb) {
    if (nc == NR) {
      for (int64_t k = 0; k < kc; k++) {
        FN(st)(out, FN(ld)(b));
        FN(st)(out + LANES, FN(ld)(b + LANES));
        out += NR;
        b += ldb;
      }
      return;
    }
    for (int64_t k = 0; k < kc; k++) {
      for (int j = 0; j < NR; j++) {
        out[j] = j < nc ? b[j] : 0;
      }
      out += NR;
      b += ldb;
    }
    return;
  }
  int64_t k = 0;
  if (nc == NR) {
    /* Four k at a time: the reads stay in a line, the writes in a few. */
    for (; k + 4 <= kc; k += 4) {
      for (int j = 0; j < NR; j++) {
        const real *p = b + j * ldb + k;
        real x0 = p[0];
        real x1 = p[1];
        real x2 = p[2];
        real x3 = p[3];
        out[j] = x0;
        out[NR + j] = x1;
        out[2 * NR + j] = x2;
        out[3 * NR + j] = x3;
      }
      out += 4 * NR;
    }
  }
  for (; k < kc; k++) {
    for (int j = 0; j < NR; j++) {
      out[j] = j < nc ? b[j * ldb + k] : 0;
    }
    out += NR;
  }
}

/* The whole product of one block on one thread. */
TARGET static void FN(product)(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, real alpha,
                               const real *A, int64_t lda, const real *B, int64_t ldb, real beta,
                               real *C, int64_t ldc) {
  _Alignas(64) real panel[KC * NR];
  int64_t chunks = imax(1, ceil_div(Kn, KC));
  for (int64_t h = 0; h < chunks; h++) {
    int64_t k0 = h * Kn / chunks;
    int64_t kc = (h + 1) * Kn / chunks - k0;
    real beta_h = h == 0 ? beta : 1;
    for (int64_t m0 = 0; m0 < M; m0 += MC) {
      int64_t mc = imin(MC, M - m0);
      const real *a = ta ? A + k0 * lda + m0 : A + m0 * lda + k0;
      for (int64_t n0 = 0; n0 < N; n0 += NR) {
        int nc = (int)imin(NR, N - n0);
        FN(pack_b)(tb, kc, tb ? B + n0 * ldb + k0 : B + k0 * ldb + n0, ldb, nc, panel);
        real *c = C + m0 * ldc + n0;
        if (ta) {
          (nc > LANES ? FN(strips_2t) : FN(strips_1t))(mc, kc, a, lda, panel, alpha, beta_h, c, ldc,
                                                       nc);
        } else {
          (nc > LANES ? FN(strips_2) : FN(strips_1))(mc, kc, a, lda, panel, alpha, beta_h, c, ldc,
                                                     nc);
        }
      }
    }
  }
}

#undef FN
#undef V
#undef LANES
#undef NR
#undef ISA
#undef TARGET
#undef VBYTES
#undef MR
