/* The matrix product for one instruction set, included by gemm.c once for
 * each with
 *   ISA      suffix of the functions made here
 *   TARGET   function attribute that selects the instructions
 *   VBYTES   bytes in a vector register
 *   VL       reals in it
 *   MR       most rows of a register tile; 2 vectors wide
 *   KC       depth of a panel of B, which is 2 vectors wide and stays in the L1 cache
 * A panel of B is copied into a buffer and the rows of A stream past it MR at
 * a time. Every element of C is
 * the sum over k in increasing order within chunks of KC. */

#define FN(name) PL_CAT(name, ISA)
#define V FN(v)
#define LANES VL
#define NR (2 * LANES)
#define VI FN(vi)

typedef real V __attribute__((vector_size(VBYTES)));
typedef real_bits VI __attribute__((vector_size(VBYTES)));

PL_INLINE V FN(ld)(const real *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

PL_INLINE void FN(st)(real *p, V v) {
  memcpy(p, &v, sizeof v);
}

/* C[mr, nv vectors] = alpha * A B + beta * C; a(i,k) at i*lda + k, or at
 * k*lda + i where `across`; rows of B ldb apart. nc: columns of C that exist.
 * mr, nv, across are constants at every call, so the accumulators live in registers. */
PL_INLINE void FN(tile)(const int mr, const int nv, const bool across, int64_t kc, const real *a,
                        int64_t lda, const real *b, int64_t ldb, real alpha, real beta, real *c,
                        int64_t ldc, int nc) {
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
    b += ldb;
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
  real t[MR * NR];
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    FN(st)(t + i * NR, acc[i][0]);
    FN(st)(t + i * NR + LANES, acc[i][1]);
  }
  edge(mr, nc, t, NR, alpha, beta, c, ldc);
}

#define CASE(mr)                                                        \
  case mr:                                                              \
    FN(tile)(mr, nv, across, kc, a, lda, b, ldb, alpha, beta, c, ldc, nc); \
    break;

PL_INLINE void FN(rows)(int mr, const int nv, const bool across, int64_t kc, const real *a,
                        int64_t lda, const real *b, int64_t ldb, real alpha, real beta, real *c,
                        int64_t ldc, int nc) {
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
 * fewest tiles. Out of line: one copy of the tiles for each (nv, across).
 * packed: A lies as pack_a left it. */
#define STRIPS(name, nv, across)                                                                  \
  TARGET static void FN(name)(bool packed, int64_t m, int64_t kc, const real *a, int64_t lda,     \
                              const real *b, int64_t ldb, real alpha, real beta, real *c,         \
                              int64_t ldc, int nc) {                                              \
    int64_t n = ceil_div(m, MR);                                                                  \
    for (int64_t i = 0; i < n; i++) {                                                             \
      int64_t m0 = i * m / n;                                                                     \
      int mr = (int)((i + 1) * m / n - m0);                                                       \
      const real *at = packed ? a + m0 * kc : across ? a + m0 : a + m0 * lda;                     \
      FN(rows)(mr, nv, across, kc, at, packed ? mr : lda, b, ldb, alpha, beta, c + m0 * ldc, ldc, \
               nc);                                                                               \
    }                                                                                             \
  }
STRIPS(strips_1, 1, false)
STRIPS(strips_2, 2, false)
STRIPS(strips_1t, 1, true)
STRIPS(strips_2t, 2, true)
#undef STRIPS

/* A transposed block (kc x m, rows lda apart) as strips of kc x mr without
 * gaps: reading it in place would hit the same few cache sets again and again.
 * Whole vectors are copied; what is too much is overwritten by the next row,
 * and the last row, whose surplus may not exist, goes one by one. Needs m >= 2 LANES,
 * so that the surplus of the row before lies inside the last. */
TARGET static void FN(pack_a)(int64_t m, int64_t kc, const real *a, int64_t lda, real *out) {
  int64_t n = ceil_div(m, MR);
  for (int64_t i = 0; i < n; i++) {
    int64_t m0 = i * m / n;
    int64_t mr = (i + 1) * m / n - m0;
    real *to = out + m0 * kc;
    const real *from = a + m0;
    for (int64_t k = 0; k + 1 < kc; k++) {
      FN(st)(to, FN(ld)(from));
      if (MR > LANES) {
        FN(st)(to + LANES, FN(ld)(from + LANES));
      }
      to += mr;
      from += lda;
    }
    for (int64_t j = 0; j < mr && kc > 0; j++) {
      to[j] = from[j];
    }
  }
}

/* A square of registers transposed by exchanging ever smaller corners. */
#define EXCHANGE(s)                                                            \
  for (int i = 0; i < LANES; i++) {                                            \
    if ((i & (s)) == 0) {                                                      \
      V lo = __builtin_shuffle(r[i], r[i + (s)], (VI){CORNER(VL, s, LO)});     \
      V hi = __builtin_shuffle(r[i], r[i + (s)], (VI){CORNER(VL, s, HI)});     \
      r[i] = lo;                                                               \
      r[i + (s)] = hi;                                                         \
    }                                                                          \
  }

PL_INLINE void FN(transpose)(V *r) {
#if VL > 8
#pragma GCC unroll 16
  EXCHANGE(8)
#endif
#if VL > 4
#pragma GCC unroll 16
  EXCHANGE(4)
#endif
#if VL > 2
#pragma GCC unroll 16
  EXCHANGE(2)
#endif
#pragma GCC unroll 16
  EXCHANGE(1)
}
#undef EXCHANGE

/* One panel of op(B): kc rows, nc columns, zero-filled to NR. */
TARGET static void FN(pack_b)(bool tb, int64_t kc, const real *b, int64_t ldb, int nc, real *out) {
  int64_t k = 0;
  if (!tb && nc == NR) {
    for (; k < kc; k++) {
      FN(st)(out + k * NR, FN(ld)(b + k * ldb));
      FN(st)(out + k * NR + LANES, FN(ld)(b + k * ldb + LANES));
    }
    return;
  }
  for (; tb && k + LANES <= kc; k += LANES) {
    for (int j0 = 0; j0 < NR; j0 += LANES) {
      V r[LANES];
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) {
        r[j] = j0 + j < nc ? FN(ld)(b + (j0 + j) * ldb + k) : (V){0};
      }
      FN(transpose)(r);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        FN(st)(out + (k + i) * NR + j0, r[i]);
      }
    }
  }
  for (; k < kc; k++) {
    for (int j = 0; j < NR; j++) {
      out[k * NR + j] = j < nc ? b[tb ? j * ldb + k : k * ldb + j] : 0;
    }
  }
}

/* m rows of A against 4 rows of B^T at a time, along k: for so few rows of A
 * copying B costs more than the product. */
TARGET static void FN(dots)(int64_t M, int64_t N, int64_t Kn, real alpha, const real *A,
                            int64_t lda, const real *B, int64_t ldb, real beta, real *C,
                            int64_t ldc) {
  for (int64_t n0 = 0; n0 < N; n0 += 4) {
    const real *b[4];
    for (int64_t j = 0; j < 4; j++) {
      b[j] = B + imin(n0 + j, N - 1) * ldb; /* past the end: the last row once more */
    }
    for (int64_t m = 0; m < M; m++) {
      const real *a = A + m * lda;
      V s[4][2] = {{{0}}};
      int64_t k = 0;
      for (; k + 2 * LANES <= Kn; k += 2 * LANES) {
        V a0 = FN(ld)(a + k);
        V a1 = FN(ld)(a + k + LANES);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          s[j][0] += a0 * FN(ld)(b[j] + k);
          s[j][1] += a1 * FN(ld)(b[j] + k + LANES);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        real part[LANES];
        FN(st)(part, s[j][0] + s[j][1]);
        real sum = 0;
        for (int i = 0; i < LANES; i++) {
          sum += part[i];
        }
        for (int64_t i = k; i < Kn; i++) {
          sum += a[i] * b[j][i];
        }
        if (n0 + j < N) {
          real *c = C + m * ldc + n0 + j;
          *c = beta != 0 ? alpha * sum + beta * *c : alpha * sum;
        }
      }
    }
  }
}

/* The whole product of one block on one thread. */
TARGET static void FN(product)(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, real alpha,
                               const real *A, int64_t lda, const real *B, int64_t ldb, real beta,
                               real *C, int64_t ldc) {
  if (tb && !ta && M <= 3) {
    FN(dots)(M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
  _Alignas(64) real panel[KC * NR];
  _Alignas(64) real strips[MC_TURNED * KC + 2 * LANES];
  const int64_t mc_most = ta ? MC_TURNED : MC;
  const int64_t chunks = imax(1, ceil_div(Kn, KC));
  for (int64_t h = 0; h < chunks; h++) {
    int64_t k0 = h * Kn / chunks;
    int64_t kc = (h + 1) * Kn / chunks - k0;
    real beta_h = h == 0 ? beta : 1;
    for (int64_t m0 = 0; m0 < M; m0 += mc_most) {
      int64_t mc = imin(mc_most, M - m0);
      const real *a = ta ? A + k0 * lda + m0 : A + m0 * lda + k0;
      bool packed = ta && N > 2 * NR && kc > 64 && mc >= 2 * LANES;
      if (packed) {
        FN(pack_a)(mc, kc, a, lda, strips);
        a = strips;
      }
      for (int64_t n0 = 0; n0 < N; n0 += NR) {
        int nc = (int)imin(NR, N - n0);
        const real *b = tb ? B + n0 * ldb + k0 : B + k0 * ldb + n0;
        int64_t b_step = ldb;
        if (tb || nc < NR || mc > 2 * MR) {
          FN(pack_b)(tb, kc, b, ldb, nc, panel);
          b = panel;
          b_step = NR;
        }
        real *c = C + m0 * ldc + n0;
        if (ta) {
          (nc > LANES ? FN(strips_2t) : FN(strips_1t))(packed, mc, kc, a, lda, b, b_step, alpha,
                                                       beta_h, c, ldc, nc);
        } else {
          (nc > LANES ? FN(strips_2) : FN(strips_1))(packed, mc, kc, a, lda, b, b_step, alpha,
                                                     beta_h, c, ldc, nc);
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
#undef VL
#undef VI
#undef MR
#undef KC
