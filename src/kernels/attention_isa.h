/* Attention for one instruction set, included by attention.c once for each with
 *   ISA      suffix of the functions made here
 *   TARGET   function attribute that selects the instructions
 *   VBYTES   bytes in a vector register
 *   VL       reals in it
 *   MR       most rows of a register tile; even where NATIVE
 *   NATIVE   1: products of bf16 pairs by vdpbf16ps; 0: of reals
 *
 * All products put queries or channels into the lanes. Scores are S^T = K Q^T, a row a
 * key and a lane a query, so that the softmax runs down the columns: no sums across lanes,
 * and the weights come out as the next product needs them. A product is
 * C[rows, W] (+)= A[rows, k] B[k, W]; B is a panel W wide. A is a strip (one row of STEP for
 * each k) or a square of weights (a row of W queries for each key).
 * The unit of k is a cell: a real, or the pair of bf16 at k and k + 1. */

#define FN(name) PL_CAT(name, ISA)
#define ALONE TARGET static __attribute__((noinline)) /* one copy, visible in a profile */
#define V FN(v)
#define VI FN(vi)
#define CELL FN(cell)
#define LANES VL
#define W (2 * LANES)                     /* queries in a block */
#define STEP ((MR + LANES - 1) / LANES * LANES) /* cells in a row of a strip, up to MR count */
#define PAIR (1 + NATIVE)
#define KB ((112 + MR - 1) / MR * MR)     /* keys in a block */
#define ACROSS (W / PAIR)                 /* cells in a row of a square of weights */

typedef real V __attribute__((vector_size(VBYTES)));
typedef real_bits VI __attribute__((vector_size(VBYTES)));
#if NATIVE
typedef uint32_t CELL;
typedef pl_bf16 FN(weight); /* in a square of weights */
#else
typedef real CELL;
typedef real FN(weight);
#endif
#define WEIGHT FN(weight)

PL_INLINE V FN(ld)(const void *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

PL_INLINE void FN(st)(void *p, V v) {
  memcpy(p, &v, sizeof v);
}

/* ---- products ---------------------------------------------------------------------- */

/* One tile of mr rows and nv vectors; A[i, k] lies at a[i * si + k * sk]. */
TARGET PL_INLINE void FN(tile)(const int mr, const int nv, const int si, const int sk, int64_t kc,
                               const CELL *a, const CELL *b, real *c, int64_t ldc, bool add) {
  V acc[MR][2];
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    acc[i][0] = add ? FN(ld)(c + i * ldc) : (V){0};
    acc[i][1] = add && nv > 1 ? FN(ld)(c + i * ldc + LANES) : (V){0};
  }
  for (int64_t k = 0; k < kc; k++) {
#if NATIVE
    const __m512bh b0 = (__m512bh)FN(ld)(b);
    const __m512bh b1 = nv > 1 ? (__m512bh)FN(ld)(b + LANES) : b0;
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * si]);
      acc[i][0] = (V)_mm512_dpbf16_ps((__m512)acc[i][0], b0, x);
      if (nv > 1) {
        acc[i][1] = (V)_mm512_dpbf16_ps((__m512)acc[i][1], b1, x);
      }
    }
#else
    const V b0 = FN(ld)(b);
    const V b1 = nv > 1 ? FN(ld)(b + LANES) : b0;
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      acc[i][0] += b0 * a[i * si];
      if (nv > 1) {
        acc[i][1] += b1 * a[i * si];
      }
    }
#endif
    a += sk;
    b += W;
  }
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    FN(st)(c + i * ldc, acc[i][0]);
    if (nv > 1) {
      FN(st)(c + i * ldc + LANES, acc[i][1]);
    }
  }
}

#define CASE(mr)                                        \
  case mr:                                              \
    FN(tile)(mr, nv, si, sk, kc, a, b, c, ldc, add); \
    break;

TARGET PL_INLINE void FN(rows)(int mr, const int nv, const int si, const int sk, int64_t kc,
                               const CELL *a, const CELL *b, real *c, int64_t ldc, bool add) {
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

/* A is a strip; nv vectors of B and C from `off` on. */
ALONE void FN(by_strip)(int mr, int nv, int off, int64_t kc, const CELL *a, const CELL *b, real *c,
                        bool add) {
  if (nv > 1) {
    FN(rows)(mr, 2, 1, STEP, kc, a, b, c, W, add);
  } else {
    FN(rows)(mr, 1, 1, STEP, kc, a, b + off, c + off, W, add);
  }
}

/* A is a square of weights, B has `cols` columns (1 to W) and is kc cells deep. */
ALONE void FN(by_square)(int mr, int64_t cols, int64_t kc, const CELL *a, const CELL *b, real *c,
                         int64_t ldc) {
  if (cols > LANES) {
    FN(rows)(mr, 2, ACROSS, 1, kc, a, b, c, ldc, true);
  } else {
    FN(rows)(mr, 1, ACROSS, 1, kc, a, b, c, ldc, true);
  }
}

/* ---- copying ----------------------------------------------------------------------- */

/* LANES activations of a row as reals, 0 beyond the n that are left. */
TARGET PL_INLINE V FN(reals)(const act *x, int64_t n) {
#if PL_IS_HALF && VBYTES == 64
  const __mmask16 m = n >= LANES ? 0xffff : (__mmask16)((1U << (n > 0 ? n : 0)) - 1);
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x)), 16);
#elif PL_IS_HALF
  real t[LANES] = {0};
  for (int i = 0; i < LANES && i < n; i++) {
    t[i] = act_real(x[i]);
  }
  return FN(ld)(t);
#else
  if (n >= LANES) {
    return FN(ld)(x);
  }
#if VBYTES == 64 && PL_IS_FLOAT
  return (V)_mm512_maskz_loadu_ps((__mmask16)((1U << (n > 0 ? n : 0)) - 1), x);
#else
  V v = {0};
  if (n > 0) {
    memcpy(&v, x, (size_t)n * sizeof *x);
  }
  return v;
#endif
#endif
}

/* LANES cells along a row. */
TARGET PL_INLINE V FN(along)(const act *x, int64_t n) {
#if NATIVE
  const __mmask32 m = n >= 2 * LANES ? ~0U : (1U << (n > 0 ? n : 0)) - 1;
  return (V)_mm512_maskz_loadu_epi16(m, x);
#else
  return FN(reals)(x, n);
#endif
}

/* The first n of LANES reals. */
TARGET PL_INLINE void FN(put_reals)(act *to, V v, int64_t n) {
#if NATIVE
  _mm256_mask_storeu_epi16(to, n >= LANES ? 0xffff : (__mmask16)((1U << n) - 1),
                           (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  act row[LANES];
  real wide[LANES];
  FN(st)(wide, v);
  for (int c = 0; c < LANES; c++) {
    row[c] = act_of(wide[c]);
  }
  if (n >= LANES) {
    memcpy(to, row, sizeof row);
  } else {
    memcpy(to, row, (size_t)n * sizeof *row);
  }
#endif
}

TARGET PL_INLINE void FN(transpose)(V *r) {
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

/* Rows x[0..n) of D activations turned: cell c of row i to out[c * step + i], i < step. */
ALONE void FN(turn)(int64_t n, int64_t D, const act *const *x, int64_t step, CELL *out) {
  for (int64_t c = 0; c < D; c += LANES * PAIR) {
    for (int64_t i0 = 0; i0 < step; i0 += LANES) {
      V r[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        r[i] = i0 + i < n ? FN(along)(x[i0 + i] + c, D - c) : (V){0};
      }
      FN(transpose)(r);
      CELL *to = out + c / PAIR * step + i0;
      const int64_t cells = (D - c + PAIR - 1) / PAIR;
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        if (i < cells) {
          FN(st)(to + i * step, r[i]);
        }
      }
    }
  }
}

#if NATIVE
/* Halves of LANES columns, a row behind the other, as a row of cells. */
TARGET PL_INLINE V FN(pairs)(__m512i v) {
  return (V)_mm512_permutexvar_epi16(
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0), v);
}
#endif

/* The cells of LANES columns of a row (two rows, the second may be NULL), 0 beyond the n that
 * are left. */
TARGET PL_INLINE V FN(zip)(const act *x, const act *x2, int64_t n) {
#if NATIVE
  const __mmask16 m = n >= LANES ? 0xffff : (__mmask16)((1U << (n > 0 ? n : 0)) - 1);
  const __m512i first = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(m, x));
  return FN(pairs)(_mm512_inserti64x4(first, _mm256_maskz_loadu_epi16(x2 ? m : 0, x2), 1));
#else
  (void)x2;
  return FN(reals)(x, n);
#endif
}

/* Rows x[0..n) as panels of W columns: cell (k, d) at out[d / W * depth * W + k * W + d % W]. */
ALONE void FN(panels)(int64_t n, int64_t D, const act *const *x, int64_t depth, CELL *out) {
  for (int64_t k = 0; k < depth; k++) {
    const act *x1 = k * PAIR < n ? x[k * PAIR] : x[0];
    const act *x2 = k * PAIR + PAIR - 1 < n ? x[k * PAIR + PAIR - 1] : NULL;
    for (int64_t d = 0; d < D; d += LANES) {
      CELL *to = out + d / W * depth * W + k * W + d % W;
      FN(st)(to, FN(zip)(x1 + d, x2 ? x2 + d : NULL, k * PAIR < n ? D - d : 0));
    }
  }
}

/* Rows x[0..n) as strips of channels: strip s holds channels s D / strips and on, its row k
 * (keys k PAIR and on) at out[(s * depth + k) * STEP]. */
ALONE void FN(strips)(int64_t n, int64_t D, const act *const *x, int64_t depth, CELL *out) {
  const int64_t count = ceil_div(D, MR);
  for (int64_t s = 0; s < count; s++) {
    const int64_t d0 = s * D / count;
    for (int64_t k = 0; k * PAIR < n; k++) {
      const act *x2 = k * PAIR + PAIR - 1 < n ? x[k * PAIR + PAIR - 1] : NULL;
      for (int64_t i = 0; i < STEP; i += LANES) { /* a few too many: they do not count */
        const int64_t d = d0 + i < D ? d0 + i : D;
        FN(st)(out + (s * depth + k) * STEP + i,
               FN(zip)(x[k * PAIR] + d, x2 ? x2 + d : NULL, D - d));
      }
    }
  }
}

/* y[i, :] of n queries from t[D, W], a column a query, times f[i]. */
ALONE void FN(put_queries)(int64_t n, int64_t D, const real *t, const real *f, act *y, int64_t ld) {
  for (int64_t i0 = 0; i0 < n; i0 += LANES) {
    const V by = FN(ld)(f + i0);
    for (int64_t d = 0; d < D; d += LANES) {
      V r[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        r[i] = d + i < D ? FN(ld)(t + (d + i) * W + i0) * by : (V){0};
      }
      FN(transpose)(r);
      for (int i = 0; i < LANES && i0 + i < n; i++) {
        FN(put_reals)(y + (i0 + i) * ld + d, r[i], D - d);
      }
    }
  }
}

/* ---- a family of sequences ----------------------------------------------------------- */

/* Keys i0..i1 of the sequence s, those of its parent counted first, made ready. i0 is a
 * multiple of MR. Strips of keys hold K (and V, for the gradient), strips of channels V (K). */
ALONE void FN(ready)(const att_job *j, const att_view *s, int64_t kh, int64_t i0, att_room *r) {
  const int64_t depth = r->keys / PAIR;
  const int64_t D = j->D;
  const int64_t cells = ceil_div(D, PAIR) * STEP; /* in a strip of keys */
  for (int64_t i = i0; i < s->keys; i += MR) {
    const act *k[MR];
    const act *v[MR];
    const int64_t n = imin(MR, s->keys - i);
    for (int64_t m = 0; m < n; m++) {
      const int64_t row = key_row(s, i + m);
      k[m] = j->k + row * j->ldk + kh * D;
      v[m] = j->v + row * j->ldv + kh * D;
    }
    FN(turn)(n, D, k, STEP, (CELL *)r->key_rows + i / MR * cells);
    if (r->value_rows) {
      FN(turn)(n, D, v, STEP, (CELL *)r->value_rows + i / MR * cells);
      FN(strips)(n, D, k, depth, (CELL *)r->channels + i / PAIR * STEP);
    } else {
      FN(strips)(n, D, v, depth, (CELL *)r->channels + i / PAIR * STEP);
    }
  }
}

/* How a block of queries and one of keys meet. Queries lie in one vector of lanes or two. The
 * first vector sees the first `seen` of the block's `keys`; the second, if there, all. */
typedef struct FN(meeting) {
  int64_t k0, keys, seen;
  int nv;
} FN(meeting);
#define MEETING FN(meeting)

/* keys and seen are whole cells. */
PL_INLINE MEETING FN(meet)(int64_t q, int64_t n, int64_t k0) {
  MEETING m = {.k0 = k0, .nv = n > LANES ? 2 : 1};
  m.keys = (imin(KB, q + n - k0) + PAIR - 1) / PAIR * PAIR;
  m.seen = m.nv == 1 ? m.keys : imin(m.keys, imax(0, (q + LANES - k0 + PAIR - 1) / PAIR * PAIR));
  return m;
}

/* S^T of the keys (k0 is a multiple of MR) against a panel of queries. */
TARGET PL_INLINE void FN(scores)(const att_job *j, const MEETING *m, const void *rows,
                                 const CELL *panel, real *s) {
  const int64_t cells = ceil_div(j->D, PAIR);
  for (int64_t i = 0; i < m->keys; i += MR) {
    const bool later = i >= m->seen;
    FN(by_strip)(MR, later ? 1 : m->nv, later ? LANES : 0, cells,
                 (const CELL *)rows + (m->k0 + i) / MR * cells * STEP, panel, s + i * W, false);
  }
}

/* t[D, W] (+)= channels[D, keys] weights[keys, W] */
TARGET PL_INLINE void FN(gather)(const att_job *j, const att_room *r, const MEETING *m,
                                 const CELL *weights, real *t, bool add) {
  const int64_t depth = r->keys / PAIR;
  const int64_t count = ceil_div(j->D, MR);
  const int64_t seen = m->seen / PAIR;
  const int64_t more = m->keys / PAIR - seen;
  for (int64_t s = 0; s < count; s++) {
    const int64_t d0 = s * j->D / count;
    const int mr = (int)((s + 1) * j->D / count - d0);
    const CELL *a = (const CELL *)r->channels + (s * depth + m->k0 / PAIR) * STEP;
    FN(by_strip)(mr, m->nv, 0, seen, a, weights, t + d0 * W, add);
    if (more > 0) {
      FN(by_strip)(mr, 1, LANES, more, a + seen * STEP, weights + seen * W, t + d0 * W, true);
    }
  }
}

/* c[keys, D] += square[keys, queries] panels[queries, D] */
TARGET PL_INLINE void FN(scatter)(const att_job *j, const MEETING *m, const void *square,
                                  const CELL *panels, real *c, int64_t ld) {
  for (int64_t i = 0; i < m->keys;) {
    const bool later = i >= m->seen;
    const int mr = (int)imin(MR, (later ? m->keys : m->seen) - i);
    const int64_t off = later ? ACROSS / 2 : 0;
    const int64_t kc = later || m->nv == 1 ? ACROSS / 2 : ACROSS;
    for (int64_t d = 0; d < j->D; d += W) {
      FN(by_square)(mr, imin(W, ld - d), kc, (const CELL *)square + i * ACROSS + off,
                    panels + d * ACROSS + off * W, c + (m->k0 + i) * ld + d, ld);
    }
    i += mr;
  }
}

/* Does every query from q (counted like keys) see all keys? */
PL_INLINE bool FN(all_seen)(const att_job *j, int64_t q, const MEETING *m) {
  return m->k0 + m->keys - 1 <= q && (j->window == 0 || q + W - 1 - m->k0 < j->window);
}

/* Scores that query q + l must not see become NONE. */
TARGET PL_INLINE void FN(hide)(const att_job *j, int64_t q, const MEETING *m, real *s) {
  const int32_t window = j->window == 0 ? INT32_MAX : (int32_t)imin(j->window, INT32_MAX);
  for (int64_t i = j->window == 0 ? imax(0, q + 1 - m->k0) : 0; i < m->keys; i++) {
    const int32_t ahead = (int32_t)(q - m->k0 - i); /* of query lane 0 */
    for (int32_t l = 0; l < W; l++) {
      s[i * W + l] = ahead + l < 0 || ahead + l >= window ? NONE : s[i * W + l];
    }
  }
}

/* First key block that query q sees something of. */
PL_INLINE int64_t FN(first_block)(const att_job *j, int64_t q) {
  const int64_t first = j->window == 0 ? 0 : imax(0, q - j->window + 1);
  return first / KB * KB;
}

/* ---- weights --------------------------------------------------------------------------- */

/* a > b ? a : b, which is b where one of them is not a number */
TARGET PL_INLINE V FN(most)(V a, V b) {
#if VBYTES == 64 && PL_IS_FLOAT
  return (V)_mm512_max_ps((__m512)a, (__m512)b);
#else
  const VI m = a > b;
  return (V)(((VI)a & m) | ((VI)b & ~m));
#endif
}

/* 2^x for x up to about 0: within 2e-7 of it, and 0 from -127 down. */
TARGET PL_INLINE V FN(power)(V x) {
#if PL_IS_FLOAT
  x = FN(most)((V){0} - 127.0F, x);
  const V shifted = x + (12582912.0F + 127.0F); /* rounds; the exponent's bits come to lie last */
  const V r = x - (shifted - (12582912.0F + 127.0F));
  V p = r * 1.3264810006e-3F + 9.6715120386e-3F;
  p = p * r + 5.5507334888e-2F;
  p = p * r + 2.4022242107e-1F;
  p = p * r + 6.9314697773e-1F;
  p = p * r + 1.0F;
  return p * (V)((VI)shifted << 23);
#else
  real t[LANES];
  FN(st)(t, x);
  for (int l = 0; l < LANES; l++) {
    t[l] = exp2(t[l]);
  }
  return FN(ld)(t);
#endif
}

#if NATIVE
/* What two rows of reals are in bf16, one behind the other. */
TARGET PL_INLINE __m512i FN(halves)(V a, V b) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
}
#endif

/* The softmax so far of LANES queries, top being scaled: their scores of n keys, in s, become
 * weights, in cells. shrink: what the weights of earlier blocks are worth now. */
TARGET PL_INLINE void FN(soften)(int64_t n, real scale, bool first, real *s, real *top, real *sum,
                                 real *shrink, CELL *cells) {
  V best = (V){0} + NONE;
  for (int64_t i = 0; i < n; i++) {
    best = FN(most)(best, FN(ld)(s + i * W));
  }
  const V before = first ? (V){0} + LEAST : FN(ld)(top);
  const V m = FN(most)(before, best * scale);
  const V f = FN(power)(before - m);
  V total[PAIR] = {{0}};
  for (int64_t i = 0; i < n; i += PAIR) {
    V e[PAIR];
    for (int p = 0; p < PAIR; p++) {
      e[p] = FN(power)(FN(ld)(s + (i + p) * W) * scale - m);
      total[p] += e[p];
    }
#if NATIVE
    FN(st)(cells + i / PAIR * W, FN(pairs)(FN(halves)(e[0], e[1])));
#else
    FN(st)(cells + i * W, e[0]);
#endif
  }
  V all = total[0];
#if NATIVE
  all += total[1];
#endif
  FN(st)(sum, first ? all : FN(ld)(sum) * f + all);
  FN(st)(shrink, f);
  FN(st)(top, m);
}

/* Scores and the weights' gradients dp of LANES queries become weights and the scores' gradients
 * (but for the scale): squares of both, cells of the latter. */
TARGET PL_INLINE void FN(differ)(int64_t n, real scale, V lse, V a, real *s, real *dp,
                                 WEIGHT *p_square, WEIGHT *ds_square, CELL *cells) {
  for (int64_t i = 0; i < n; i += PAIR) {
    V e[PAIR];
    V d[PAIR];
    for (int p = 0; p < PAIR; p++) {
      e[p] = FN(power)(FN(ld)(s + (i + p) * W) * scale - lse);
      d[p] = e[p] * (FN(ld)(dp + (i + p) * W) - a);
    }
#if NATIVE
    const __m512i eh = FN(halves)(e[0], e[1]);
    const __m512i dh = FN(halves)(d[0], d[1]);
    _mm256_storeu_si256((__m256i *)(p_square + i * W), _mm512_castsi512_si256(eh));
    _mm256_storeu_si256((__m256i *)(p_square + (i + 1) * W), _mm512_extracti64x4_epi64(eh, 1));
    _mm256_storeu_si256((__m256i *)(ds_square + i * W), _mm512_castsi512_si256(dh));
    _mm256_storeu_si256((__m256i *)(ds_square + (i + 1) * W), _mm512_extracti64x4_epi64(dh, 1));
    FN(st)(cells + i / PAIR * W, FN(pairs)(dh));
#else
    (void)cells;
    FN(st)(p_square + i * W, e[0]);
    FN(st)(ds_square + i * W, d[0]);
#endif
  }
}

/* ---- a block of queries ------------------------------------------------------------------ */

/* Queries i0..i0+n of the sequence, head h. */
ALONE void FN(forward_queries)(const att_job *j, const att_view *s, int64_t h, int64_t i0,
                               int64_t n, att_room *r) {
  const int64_t D = j->D;
  const int64_t row = s->begin + i0;
  const int64_t q = s->before + i0; /* counted like keys */
  const act *x[W];
  _Alignas(64) real top[W], sum[W], shrink[W];
  for (int64_t i = 0; i < n; i++) {
    x[i] = j->q + (row + i) * j->ldq + h * D;
  }
  FN(turn)(n, D, x, W, (CELL *)r->queries);
  const real scale = j->scale * LOG2E;
  const int64_t from = FN(first_block)(j, q);
  for (int64_t k0 = from; k0 < q + n; k0 += KB) {
    const MEETING m = FN(meet)(q, n, k0);
    FN(scores)(j, &m, r->key_rows, (CELL *)r->queries, r->s);
    if (!FN(all_seen)(j, q, &m)) {
      FN(hide)(j, q, &m, r->s);
    }
    for (int l = 0; l < m.nv * LANES; l += LANES) {
      FN(soften)(l == 0 ? m.seen : m.keys, scale, k0 == from, r->s + l, top + l, sum + l,
                 shrink + l, (CELL *)r->weights + l);
    }
    if (k0 > from) {
      for (int64_t d = 0; d < D; d++) {
        for (int l = 0; l < m.nv * LANES; l += LANES) {
          FN(st)(r->t + d * W + l, FN(ld)(r->t + d * W + l) * FN(ld)(shrink + l));
        }
      }
    }
    FN(gather)(j, r, &m, (CELL *)r->weights, r->t, k0 > from);
  }
  for (int64_t i = 0; i < n; i++) {
    j->lse[(row + i) * j->H + h] = top[i] * LN2 + (real)log((double)sum[i]);
  }
  for (int64_t i = 0; i < n; i++) {
    sum[i] = 1 / sum[i];
  }
  FN(put_queries)(n, D, r->t, sum, j->y + row * j->H * D + h * D, j->H * D);
}

TARGET static void FN(forward_unit)(const att_job *j, int64_t unit, real *memory) {
  const int64_t h = unit % j->H;
  att_view s;
  att_room r;
  room_for(j, memory, false, &r);
  for (view_first(j, unit / j->H, &s); view_here(j, unit / j->H, &s); view_next(j, &s)) {
    /* a child's keys lie behind its parent's, which are ready */
    FN(ready)(j, &s, h / (j->H / j->K), s.before / MR * MR, &r);
    for (int64_t i = 0; i < s.length; i += W) {
      FN(forward_queries)(j, &s, h, i, imin(W, s.length - i), &r);
    }
  }
}

/* a[i] = sum_d x[i, d] y[i, d] of n rows, y's rows ld apart. */
TARGET PL_INLINE void FN(inner)(int64_t n, int64_t D, const act *const *x, const act *y, int64_t ld,
                                real *a) {
  for (int64_t i0 = 0; i0 < n; i0 += LANES) {
    V r[LANES];
    for (int i = 0; i < LANES; i++) {
      V s = {0};
      for (int64_t d = 0; i0 + i < n && d < D; d += LANES) {
        s += FN(reals)(x[i0 + i] + d, D - d) * FN(reals)(y + (i0 + i) * ld + d, D - d);
      }
      r[i] = s;
    }
    FN(transpose)(r);
    V s = r[0];
    for (int i = 1; i < LANES; i++) {
      s += r[i];
    }
    FN(st)(a + i0, s);
  }
}

/* With P the weights and A = sum_d gy y (one number a query):
 *   gv = P^T gy,  dS = P (gy v^T - A) scale,  gq = dS k,  gk = dS^T q.
 * The scale of dS is left to the very end. */
ALONE void FN(backward_queries)(const att_job *j, const att_view *s, int64_t h, int64_t i0,
                                int64_t n, att_room *r) {
  const int64_t D = j->D;
  const int64_t row = s->begin + i0;
  const int64_t q = s->before + i0;
  const act *x[W];
  const act *g[W];
  _Alignas(64) real lse[W], a[W], end[W];
  for (int64_t i = 0; i < W; i++) {
    lse[i] = -NONE; /* no weight for who is not there */
    end[i] = j->scale;
  }
  for (int64_t i = 0; i < n; i++) {
    x[i] = j->q + (row + i) * j->ldq + h * D;
    g[i] = j->gy + ((row + i) * j->H + h) * D;
    lse[i] = j->lse_in[(row + i) * j->H + h] * LOG2E;
  }
  FN(inner)(n, D, g, j->y_in + (row * j->H + h) * D, j->H * D, a);
  FN(turn)(n, D, x, W, (CELL *)r->queries);
  FN(turn)(n, D, g, W, (CELL *)r->grads);
  FN(panels)(n, D, x, ACROSS, (CELL *)r->query_panels);
  FN(panels)(n, D, g, ACROSS, (CELL *)r->grad_panels);
  const int64_t from = FN(first_block)(j, q);
  for (int64_t k0 = from; k0 < q + n; k0 += KB) {
    const MEETING m = FN(meet)(q, n, k0);
    FN(scores)(j, &m, r->key_rows, (CELL *)r->queries, r->s);
    FN(scores)(j, &m, r->value_rows, (CELL *)r->grads, r->ds);
    if (!FN(all_seen)(j, q, &m)) {
      FN(hide)(j, q, &m, r->s);
    }
    for (int l = 0; l < m.nv * LANES; l += LANES) {
      FN(differ)(l == 0 ? m.seen : m.keys, j->scale * LOG2E, FN(ld)(lse + l), FN(ld)(a + l),
                 r->s + l, r->ds + l, (WEIGHT *)r->p_square + l, (WEIGHT *)r->ds_square + l,
                 (CELL *)r->weights + l);
    }
    FN(gather)(j, r, &m, (CELL *)(NATIVE ? r->weights : r->ds_square), r->t, k0 > from);
    FN(scatter)(j, &m, r->p_square, (CELL *)r->grad_panels, r->gv, r->ld);
    FN(scatter)(j, &m, r->ds_square, (CELL *)r->query_panels, r->gk, r->ld);
  }
  FN(put_queries)(n, D, r->t, end, j->gq + row * j->ldgq + h * D, j->ldgq);
}

/* The gradient of all keys and values that s sees: its parent's are written once more by each
 * child. */
ALONE void FN(put_keys)(const att_job *j, const att_view *s, int64_t kh, const att_room *r) {
  for (int64_t i = 0; i < s->keys; i++) {
    const int64_t row = key_row(s, i);
    for (int64_t d = 0; d < j->D; d += LANES) {
      FN(put_reals)(j->gk + row * j->ldgk + kh * j->D + d,
                    FN(ld)(r->gk + i * r->ld + d) * j->scale, j->D - d);
      FN(put_reals)(j->gv + row * j->ldgv + kh * j->D + d, FN(ld)(r->gv + i * r->ld + d), j->D - d);
    }
  }
}

TARGET static void FN(backward_unit)(const att_job *j, int64_t unit, real *memory) {
  const int64_t kh = unit % j->K;
  const int64_t group = j->H / j->K;
  att_view s;
  att_room r;
  room_for(j, memory, true, &r);
  for (view_first(j, unit / j->K, &s); view_here(j, unit / j->K, &s); view_next(j, &s)) {
    FN(ready)(j, &s, kh, s.before / MR * MR, &r);
    zero_keys(j, &s, &r);
    for (int64_t h = kh * group; h < (kh + 1) * group; h++) {
      for (int64_t i = 0; i < s.length; i += W) {
        FN(backward_queries)(j, &s, h, i, imin(W, s.length - i), &r);
      }
    }
    FN(put_keys)(j, &s, kh, &r);
  }
}

#undef FN
#undef ALONE
#undef V
#undef VI
#undef CELL
#undef WEIGHT
#undef MEETING
#undef LANES
#undef W
#undef STEP
#undef PAIR
#undef KB
#undef ACROSS
#undef ISA
#undef TARGET
#undef VBYTES
#undef VL
#undef MR
#undef NATIVE
