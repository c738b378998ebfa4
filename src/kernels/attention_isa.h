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

/* A is a strip. */
ALONE void FN(by_strip)(int mr, int64_t kc, const CELL *a, const CELL *b, real *c, bool add) {
  FN(rows)(mr, 2, 1, STEP, kc, a, b, c, W, add);
}

/* A is a square of weights, B has `cols` columns (1 to W) and is W/PAIR cells deep. */
ALONE void FN(by_square)(int mr, int64_t cols, const CELL *a, const CELL *b, real *c, int64_t ldc) {
  if (cols > LANES) {
    FN(rows)(mr, 2, ACROSS, 1, ACROSS, a, b, c, ldc, true);
  } else {
    FN(rows)(mr, 1, ACROSS, 1, ACROSS, a, b, c, ldc, true);
  }
}

/* ---- copying ----------------------------------------------------------------------- */

/* LANES cells along a row of activations, 0 beyond the n that are left. */
TARGET PL_INLINE V FN(along)(const act *x, int64_t n) {
#if PL_IS_HALF && !NATIVE
  real t[LANES] = {0};
  for (int i = 0; i < LANES && i < n; i++) {
    t[i] = act_real(x[i]);
  }
  return FN(ld)(t);
#else
  if (n >= LANES * PAIR) {
    return FN(ld)(x);
  }
  V v = {0};
  if (n > 0) {
    memcpy(&v, x, (size_t)n * sizeof *x);
  }
  return v;
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

/* One cell for each of D columns from a row (two rows, the second may be NULL). */
TARGET PL_INLINE void FN(zip)(int64_t D, const act *x, const act *x2, CELL *out) {
#if NATIVE
  if (x2) {
    for (int64_t d = 0; d < D; d++) {
      out[d] = (uint32_t)x[d] | (uint32_t)x2[d] << 16;
    }
  } else {
    for (int64_t d = 0; d < D; d++) {
      out[d] = x[d];
    }
  }
#else
  (void)x2;
  for (int64_t d = 0; d < D; d++) {
    out[d] = act_real(x[d]);
  }
#endif
}

/* Rows x[0..n) as panels of W columns: cell (k, d) at out[d / W * depth * W + k * W + d % W]. */
ALONE void FN(panels)(int64_t n, int64_t D, const act *const *x, int64_t depth, CELL *out) {
  for (int64_t d0 = 0; d0 < D; d0 += W) {
    const int64_t cols = imin(W, D - d0);
    CELL *to = out + d0 * depth;
    memset(to, 0, (size_t)(depth * W) * sizeof *to);
    for (int64_t k = 0; k * PAIR < n; k++) {
      FN(zip)(cols, x[k * PAIR] + d0, k * PAIR + PAIR - 1 < n ? x[k * PAIR + PAIR - 1] + d0 : NULL,
              to + k * W);
    }
  }
}

/* Rows x[0..n) as strips of channels: strip s holds channels s D / strips and on, its row k
 * (keys k PAIR and on) at out[(s * depth + k) * STEP]. line: room for D + STEP cells. */
ALONE void FN(strips)(int64_t n, int64_t D, const act *const *x, int64_t depth, CELL *line,
                      CELL *out) {
  const int64_t count = ceil_div(D, MR);
  for (int64_t k = 0; k * PAIR < n; k++) {
    FN(zip)(D, x[k * PAIR], k * PAIR + PAIR - 1 < n ? x[k * PAIR + PAIR - 1] : NULL, line);
    for (int64_t s = 0; s < count; s++) {
      const CELL *from = line + s * D / count;
      CELL *to = out + (s * depth + k) * STEP;
      for (int i = 0; i < STEP; i += LANES) { /* a few too many: they do not count */
        FN(st)(to + i, FN(ld)(from + i));
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
      const int64_t left = imin(LANES, D - d);
      for (int i = 0; i < LANES && i0 + i < n; i++) {
        act *to = y + (i0 + i) * ld + d;
        act row[LANES];
        real wide[LANES];
        FN(st)(wide, r[i]);
        for (int c = 0; c < LANES; c++) {
          row[c] = act_of(wide[c]);
        }
        if (left == LANES) {
          memcpy(to, row, sizeof row);
        } else {
          memcpy(to, row, (size_t)left * sizeof *row);
        }
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
      FN(strips)(n, D, k, depth, (CELL *)r->line, (CELL *)r->channels + i / PAIR * STEP);
    } else {
      FN(strips)(n, D, v, depth, (CELL *)r->line, (CELL *)r->channels + i / PAIR * STEP);
    }
  }
}

/* S^T of n keys from key k0 (a multiple of MR) against a panel of queries. */
TARGET PL_INLINE void FN(scores)(const att_job *j, int64_t k0, int64_t n, const void *rows,
                                 const CELL *panel, real *s) {
  const int64_t cells = ceil_div(j->D, PAIR);
  for (int64_t i = 0; i < n; i += MR) {
    FN(by_strip)(MR, cells, (const CELL *)rows + (k0 + i) / MR * cells * STEP, panel, s + i * W,
                 false);
  }
}

/* t[D, W] (+)= channels[D, keys k0..k0+n) weights[n, W] */
TARGET PL_INLINE void FN(gather)(const att_job *j, const att_room *r, int64_t k0, int64_t n,
                                 const CELL *weights, real *t, bool add) {
  const int64_t depth = r->keys / PAIR;
  const int64_t count = ceil_div(j->D, MR);
  for (int64_t s = 0; s < count; s++) {
    const int64_t d0 = s * j->D / count;
    FN(by_strip)((int)((s + 1) * j->D / count - d0), ceil_div(n, PAIR),
                 (const CELL *)r->channels + (s * depth + k0 / PAIR) * STEP, weights, t + d0 * W,
                 add);
  }
}

/* Two rows of weights (of keys 2k and 2k + 1; or one, of key k) as a row of a panel. Halves are
 * rounded up, which differs from rounding to even at ties only and costs half as much. */
TARGET PL_INLINE void FN(put_weights)(const real *p, CELL *to) {
#if NATIVE
  uint32_t u[2 * W];
  memcpy(u, p, sizeof u);
  for (int l = 0; l < W; l++) {
    to[l] = (u[l] + 0x8000U) >> 16 | ((u[W + l] + 0x8000U) & 0xffff0000U);
  }
#else
  memcpy(to, p, W * sizeof *to);
#endif
}

TARGET PL_INLINE void FN(put_square)(const real *p, WEIGHT *to) {
#if NATIVE
  uint32_t u[W];
  memcpy(u, p, sizeof u);
  for (int l = 0; l < W; l++) {
    to[l] = (pl_bf16)((u[l] + 0x8000U) >> 16);
  }
#else
  memcpy(to, p, W * sizeof *to);
#endif
}

/* Does every query from q (counted like keys) see all keys k0..k0+n? */
PL_INLINE bool FN(all_seen)(const att_job *j, int64_t q, int64_t k0, int64_t n) {
  return k0 + n - 1 <= q && (j->window == 0 || q + W - 1 - k0 < j->window);
}

/* Scores that query q + l must not see become NONE. */
TARGET PL_INLINE void FN(hide)(const att_job *j, int64_t q, int64_t k0, int64_t n, real *s) {
  const int32_t window = j->window == 0 ? INT32_MAX : (int32_t)imin(j->window, INT32_MAX);
  for (int64_t i = 0; i < n; i++) {
    const int32_t ahead = (int32_t)(q - k0 - i); /* of query lane 0 */
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

/* The softmax so far of W queries: their scores of n keys become weights. */
TARGET PL_INLINE void FN(soften)(int64_t n, real scale, bool first, real *s, real *top, real *sum,
                                 real *shrink) {
  real best[W];
  for (int l = 0; l < W; l++) {
    best[l] = s[l];
  }
  for (int64_t i = 1; i < n; i++) {
    for (int l = 0; l < W; l++) {
      best[l] = s[i * W + l] > best[l] ? s[i * W + l] : best[l];
    }
  }
  for (int l = 0; l < W; l++) {
    real m = best[l] > NONE ? best[l] * scale : NONE;
    m = !first && top[l] > m ? top[l] : m;
    shrink[l] = first ? 0 : k_exp(top[l] - m);
    sum[l] = first ? 0 : sum[l] * shrink[l];
    top[l] = m;
  }
  for (int64_t i = 0; i < n; i++) {
    for (int l = 0; l < W; l++) {
      real x = s[i * W + l];
      real e = k_exp(x * scale - top[l]);
      e = x == NONE ? 0 : e;
      s[i * W + l] = e;
      sum[l] += e;
    }
  }
}

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
  const int64_t from = FN(first_block)(j, q);
  for (int64_t k0 = from; k0 < q + n; k0 += KB) {
    const int64_t kb = imin(KB, q + n - k0);
    const int64_t even = (kb + PAIR - 1) / PAIR * PAIR;
    FN(scores)(j, k0, even, r->key_rows, (CELL *)r->queries, r->s);
    if (!FN(all_seen)(j, q, k0, even)) {
      FN(hide)(j, q, k0, even, r->s);
    }
    FN(soften)(even, j->scale, k0 == from, r->s, top, sum, shrink);
    for (int64_t i = 0; i < even; i += PAIR) {
      FN(put_weights)(r->s + i * W, (CELL *)r->weights + i / PAIR * W);
    }
    if (k0 > from) {
      for (int64_t d = 0; d < D; d++) {
        for (int l = 0; l < W; l++) {
          r->t[d * W + l] *= shrink[l];
        }
      }
    }
    FN(gather)(j, r, k0, even, (CELL *)r->weights, r->t, k0 > from);
  }
  for (int64_t i = 0; i < n; i++) {
    j->lse[(row + i) * j->H + h] = top[i] + (real)log((double)sum[i]);
  }
  for (int l = 0; l < W; l++) {
    sum[l] = 1 / sum[l];
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

/* With P the weights and A = sum_d gy y (one number a query):
 *   gv = P^T gy,  dS = P (gy v^T - A) scale,  gq = dS k,  gk = dS^T q. */
ALONE void FN(backward_queries)(const att_job *j, const att_view *s, int64_t h, int64_t i0,
                                int64_t n, att_room *r) {
  const int64_t D = j->D;
  const int64_t row = s->begin + i0;
  const int64_t q = s->before + i0;
  const act *x[W];
  const act *g[W];
  _Alignas(64) real lse[W], a[W], one[W];
  for (int64_t i = 0; i < W; i++) {
    lse[i] = -NONE; /* no weight for who is not there */
    a[i] = 0;
    one[i] = 1;
  }
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = (row + i) * j->H * D + h * D;
    x[i] = j->q + (row + i) * j->ldq + h * D;
    g[i] = j->gy + at;
    lse[i] = j->lse_in[(row + i) * j->H + h];
    real sum = 0;
    for (int64_t d = 0; d < D; d++) {
      sum += act_real(g[i][d]) * act_real(j->y_in[at + d]);
    }
    a[i] = sum;
  }
  FN(turn)(n, D, x, W, (CELL *)r->queries);
  FN(turn)(n, D, g, W, (CELL *)r->grads);
  FN(panels)(n, D, x, ACROSS, (CELL *)r->query_panels);
  FN(panels)(n, D, g, ACROSS, (CELL *)r->grad_panels);
  const int64_t from = FN(first_block)(j, q);
  for (int64_t k0 = from; k0 < q + n; k0 += KB) {
    const int64_t kb = imin(KB, q + n - k0);
    const int64_t even = (kb + PAIR - 1) / PAIR * PAIR;
    FN(scores)(j, k0, even, r->key_rows, (CELL *)r->queries, r->s);
    FN(scores)(j, k0, even, r->value_rows, (CELL *)r->grads, r->ds);
    if (!FN(all_seen)(j, q, k0, even)) {
      FN(hide)(j, q, k0, even, r->s);
    }
    for (int64_t i = 0; i < even * W; i += W) {
      for (int l = 0; l < W; l++) {
        real e = k_exp(r->s[i + l] * j->scale - lse[l]);
        e = r->s[i + l] == NONE ? 0 : e;
        r->s[i + l] = e;
        r->ds[i + l] = e * (r->ds[i + l] - a[l]) * j->scale;
      }
    }
    for (int64_t i = 0; i < even; i++) {
      FN(put_square)(r->s + i * W, (WEIGHT *)r->p_square + i * W);
      FN(put_square)(r->ds + i * W, (WEIGHT *)r->ds_square + i * W);
      if (i % PAIR == 0) {
        FN(put_weights)(r->ds + i * W, (CELL *)r->weights + i / PAIR * W);
      }
    }
    FN(gather)(j, r, k0, even, (CELL *)r->weights, r->t, k0 > from);
    for (int64_t i = 0; i < kb; i += MR) {
      const int mr = (int)imin(MR, kb - i);
      for (int64_t d = 0; d < D; d += W) {
        const int64_t to = (k0 + i) * r->ld + d;
        FN(by_square)(mr, imin(W, r->ld - d), (CELL *)r->p_square + i * ACROSS,
                      (CELL *)r->grad_panels + d * ACROSS, r->gv + to, r->ld);
        FN(by_square)(mr, imin(W, r->ld - d), (CELL *)r->ds_square + i * ACROSS,
                      (CELL *)r->query_panels + d * ACROSS, r->gk + to, r->ld);
      }
    }
  }
  FN(put_queries)(n, D, r->t, one, j->gq + row * j->ldgq + h * D, j->ldgq);
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
    put_keys(j, &s, kh, &r);
  }
}

#undef FN
#undef ALONE
#undef V
#undef VI
#undef CELL
#undef WEIGHT
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
