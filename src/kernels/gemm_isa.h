/* The matrix product for one instruction set, included by gemm.c once for
 * each with
 *   ISA      suffix of the functions made here
 *   TARGET   function attribute that selects the instructions
 *   VBYTES   bytes in a vector register
 *   VL       reals in it
 *   MR       most rows of a register tile, which is 2 vectors wide
 *   KC, NB   depth and width of the block of B that is copied and stays in the L2 cache
 * Both operands are copied, so that the innermost loop reads two streams without
 * gaps: the block of B as panels of 2 vectors, A as a strip of up to MR rows, which
 * stays in the L1 cache while all panels pass it. Every element of C is the sum
 * over k in increasing order within chunks of KC. */

#define FN(name) PL_CAT(name, ISA)
#define ALONE TARGET static __attribute__((noinline)) /* one copy, visible in a profile */
#define V FN(v)
#define LANES VL
#define NR (2 * LANES)
#define GROUPS ((MR + LANES - 1) / LANES) /* vectors in a row of a strip: 1 or 2 */
#define STEP (GROUPS * LANES)             /* reals in it, of which up to MR count */
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

/* C[mr, nv vectors] = alpha * A B + beta * C; a: a strip, rows of STEP; b: a
 * panel, rows ldb apart. nc: columns of C that exist. mr and nv are constants at every
 * call, so the accumulators live in registers. */
PL_INLINE void FN(tile)(const int mr, const int nv, int64_t kc, const real *a, const real *b,
                        int64_t ldb, real alpha, real beta, real *c, int64_t ldc, int nc) {
  V acc[MR][2];
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    acc[i][0] = (V){0};
    acc[i][1] = (V){0};
    if (nc == nv * LANES) { /* needed when the sums are ready: on their way until then */
      __builtin_prefetch(c + i * ldc, 1);
      __builtin_prefetch(c + i * ldc + nc - 1, 1);
    }
  }
  for (int64_t k = 0; k < kc; k++) {
    V b0 = FN(ld)(b);
    V b1 = nv > 1 ? FN(ld)(b + LANES) : (V){0};
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      acc[i][0] += b0 * a[i];
      if (nv > 1) {
        acc[i][1] += b1 * a[i];
      }
    }
    a += STEP;
    b += ldb;
  }
  if (alpha != 1) {
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      acc[i][0] *= alpha;
      acc[i][1] *= alpha;
    }
  }
  if (nc == nv * LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < nv; j++) {
        real *p = c + i * ldc + j * LANES;
        V r = acc[i][j];
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
  edge(mr, nc, t, NR, beta, c, ldc);
}

#define CASE(mr)                                              \
  case mr:                                                    \
    FN(tile)(mr, nv, kc, a, b, ldb, alpha, beta, c, ldc, nc); \
    break;

PL_INLINE void FN(strip)(int mr, const int nv, int64_t kc, const real *a, const real *b,
                         int64_t ldb, real alpha, real beta, real *c, int64_t ldc, int nc) {
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

/* One strip against all panels. Out of line: the tiles exist once. */
ALONE void FN(sweep)(int mr, int64_t kc, const real *a, int64_t nb, const real *b, int64_t ldb,
                     int64_t b_step, real alpha, real beta, real *c, int64_t ldc) {
  for (int64_t n = 0; n < nb; n += NR) {
    int nc = (int)imin(NR, nb - n);
    if (nc > LANES) {
      FN(strip)(mr, 2, kc, a, b, ldb, alpha, beta, c + n, ldc, nc);
    } else {
      FN(strip)(mr, 1, kc, a, b, ldb, alpha, beta, c + n, ldc, nc);
    }
    b += b_step;
  }
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

/* mr rows of A (lda apart) as a strip: kc rows of STEP, of which mr count. */
ALONE void FN(pack_a)(int mr, int64_t kc, const real *a, int64_t lda, real *out) {
  int64_t k = 0;
  for (; k + LANES <= kc; k += LANES) {
    for (int g = 0; g < GROUPS; g++) {
      V r[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        int row = g * LANES + i < mr ? g * LANES + i : mr - 1; /* one too many: any will do */
        r[i] = FN(ld)(a + row * lda + k);
        __builtin_prefetch(a + (row + mr) * lda + k, 0, 2); /* the next strip, into L2 */
      }
      FN(transpose)(r);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        FN(st)(out + (k + i) * STEP + g * LANES, r[i]);
      }
    }
  }
  for (; k < kc; k++) {
    for (int i = 0; i < mr; i++) {
      out[k * STEP + i] = a[i * lda + k];
    }
  }
}

/* The same where A is transposed: kc rows of mr reals, `left` to the end of each. The
 * next strip's part of the cache lines is asked for early, for no prefetcher sees it. */
ALONE void FN(pack_at)(int mr, int64_t kc, const real *a, int64_t lda, int64_t left, real *out) {
  int64_t k = 0;
  for (; left >= STEP && k < kc; k++) {
    __builtin_prefetch(a + k * lda + mr + STEP);
    for (int g = 0; g < GROUPS; g++) {
      FN(st)(out + k * STEP + g * LANES, FN(ld)(a + k * lda + g * LANES));
    }
  }
  for (; k < kc; k++) {
    for (int i = 0; i < mr; i++) {
      out[k * STEP + i] = a[k * lda + i];
    }
  }
}

/* nb columns of op(B) as panels kc x NR, the last one filled up with zeros. */
ALONE void FN(pack_b)(bool tb, int64_t kc, int64_t nb, const real *b, int64_t ldb, real *out) {
  int64_t whole = tb ? 0 : nb / NR * NR;
  for (int64_t k0 = 0; k0 < kc && whole > 0; k0 += AHEAD) {
    int64_t k1 = imin(kc, k0 + AHEAD);
    for (int64_t n = 0; n < whole; n += NR) {
      for (int64_t k = k0; k < k1; k++) { /* a few rows at a time, and the next few asked for */
        const real *from = b + k * ldb + n;
        __builtin_prefetch(from + AHEAD * ldb);
        __builtin_prefetch(from + AHEAD * ldb + NR - 1);
        FN(st)(out + n * kc + k * NR, FN(ld)(from));
        FN(st)(out + n * kc + k * NR + LANES, FN(ld)(from + LANES));
      }
    }
  }
  for (int64_t n = whole; n < nb; n += NR) {
    real *to = out + n * kc;
    int64_t k = 0;
    for (; tb && k + LANES <= kc; k += LANES) {
      for (int j0 = 0; j0 < NR; j0 += LANES) {
        V r[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) {
          r[j] = n + j0 + j < nb ? FN(ld)(b + (n + j0 + j) * ldb + k) : (V){0};
        }
        FN(transpose)(r);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
          FN(st)(to + (k + i) * NR + j0, r[i]);
        }
      }
    }
    int64_t used = ceil_div(imin(NR, nb - n), LANES) * LANES; /* no more are multiplied */
    for (; k < kc; k++) {
      int64_t j = 0;
      for (; !tb && j < used && n + j + LANES <= nb; j += LANES) {
        FN(st)(to + k * NR + j, FN(ld)(b + k * ldb + n + j));
      }
      for (; j < used; j++) {
        to[k * NR + j] = n + j < nb ? b[tb ? (n + j) * ldb + k : k * ldb + n + j] : 0;
      }
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
  _Alignas(64) real panels[KC * NB];
  _Alignas(64) real strip[STEP * KC];
  const int64_t chunks = imax(1, ceil_div(Kn, KC));
  const int64_t strips = ceil_div(M, MR); /* the rows shared out evenly */
  for (int64_t h = 0; h < chunks; h++) {
    int64_t k0 = h * Kn / chunks;
    int64_t kc = (h + 1) * Kn / chunks - k0;
    for (int64_t n0 = 0; n0 < N; n0 += NB) {
      int64_t nb = imin(NB, N - n0);
      const real *b = tb ? B + n0 * ldb + k0 : B + k0 * ldb + n0;
      /* few rows pass: copying would cost more than gaps do */
      bool in_place = !tb && M <= (nb <= 4 * NR ? 5 : 2) * MR && nb % LANES == 0;
      if (!in_place) {
        FN(pack_b)(tb, kc, nb, b, ldb, panels);
      }
      for (int64_t i = 0; i < strips; i++) {
        int64_t m0 = i * M / strips;
        int mr = (int)((i + 1) * M / strips - m0);
        if (ta) {
          FN(pack_at)(mr, kc, A + k0 * lda + m0, lda, M - m0, strip);
        } else {
          FN(pack_a)(mr, kc, A + m0 * lda + k0, lda, strip);
        }
        FN(sweep)(mr, kc, strip, nb, in_place ? b : panels, in_place ? ldb : NR,
                  in_place ? NR : kc * NR, alpha, h == 0 ? beta : 1, C + m0 * ldc + n0, ldc);
      }
    }
  }
}

#undef FN
#undef ALONE
#undef V
#undef LANES
#undef NR
#undef GROUPS
#undef STEP
#undef ISA
#undef TARGET
#undef VBYTES
#undef VL
#undef VI
#undef MR
#undef KC
#undef NB
