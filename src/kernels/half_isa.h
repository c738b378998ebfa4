/* Products of bf16 numbers where the processor multiplies them itself (vdpbf16ps: two
 * products a lane and their sum in f32). Included by half_once.c only, which has the
 * slower way for everybody else. Must not allocate.
 *
 * The unit of copying and multiplying is a pair: the numbers at k and k + 1 of one row or
 * column, in 32 bits. B is copied as panels of 32 columns, pair by pair, a block of which
 * stays in the L2 cache. A is copied as strips of up to 14 rows that stay in the L1 cache,
 * in the order of its memory, for a transposition would cost more than it saves: row
 * behind row, or pair behind pair where A is transposed already. Floats are rounded on
 * the way. Intrinsics, because vector extensions know neither vdpbf16ps nor the rounding. */
#include <immintrin.h>

#define NATIVE PL_TARGET_AVX512BF16
#define NATIVE_INLINE NATIVE static inline __attribute__((always_inline))
#define NATIVE_ALONE NATIVE static __attribute__((noinline)) /* one copy, visible in a profile */

enum {
  LANES = 16,
  MR = 14,        /* rows of a tile: 28 sums, two vectors of B and one of A fill the registers */
  NR = 2 * LANES, /* columns of it */
  DEPTH = 384,    /* most pairs in a strip or panel */
  NB = 512,       /* columns of a block of panels */
  TOGETHER = 8,   /* strips of a transposed A that are copied at once */
  NEAR = 4 * NR,  /* columns up to which a product is small */
  FAR = 64,       /* pairs from which the sums take long enough to ask for C early */
  AHEAD = 16      /* rows that are asked for before they are copied */
};

/* The first n of 32 lanes. */
NATIVE_INLINE __mmask32 first(int64_t n) {
  return n >= 32 ? ~(__mmask32)0 : n <= 0 ? 0 : ((__mmask32)1 << n) - 1;
}

/* Where op(X)[r, c] lies. */
NATIVE_INLINE const void *place(const pl_mat *m, int64_t r, int64_t c) {
  const int64_t i = r * m->ld + c;
  return m->half ? (const void *)((const pl_bf16 *)m->data + i)
                 : (const void *)((const float *)m->data + i);
}

/* 16 pairs along a row: 32 numbers from p on, those beyond `left` are 0. */
NATIVE_INLINE __m512i along(const void *p, bool half, int64_t left) {
  const __mmask32 m = first(left);
  if (half) {
    return _mm512_maskz_loadu_epi16(m, p);
  }
  const float *x = p;
  __m512 lo = _mm512_maskz_loadu_ps((__mmask16)m, x);
  __m512 hi = _mm512_maskz_loadu_ps((__mmask16)(m >> 16), x + LANES);
  return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}

/* 16 pairs across two rows: p and the row below it, which may not be there. */
NATIVE_INLINE __m512i across(const void *p, const void *below, bool half, __mmask16 m) {
  const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __mmask16 m2 = below ? m : 0;
  __m512i v;
  if (half) {
    v = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(m, p)),
                           _mm256_maskz_loadu_epi16(m2, below), 1);
  } else {
    v = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(m2, below), _mm512_maskz_loadu_ps(m, p));
  }
  return _mm512_permutexvar_epi16(zip, v);
}

/* 8 pairs along a row: 16 numbers. */
NATIVE_INLINE __m256i along_half(const void *p, bool half, int64_t left) {
  const __mmask16 m = (__mmask16)first(left);
  return half ? _mm256_maskz_loadu_epi16(m, p)
              : (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(m, p));
}

/* 4 x 4 squares of pairs transposed, one in each quarter of the registers. */
NATIVE_INLINE void transpose_quarters(__m512i *r) {
  __m512i a = _mm512_unpacklo_epi32(r[0], r[1]);
  __m512i b = _mm512_unpackhi_epi32(r[0], r[1]);
  __m512i c = _mm512_unpacklo_epi32(r[2], r[3]);
  __m512i d = _mm512_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm512_unpacklo_epi64(a, c);
  r[1] = _mm512_unpackhi_epi64(a, c);
  r[2] = _mm512_unpacklo_epi64(b, d);
  r[3] = _mm512_unpackhi_epi64(b, d);
}

/* mr rows of A from (m0, k0) on: row behind row, `step` pairs apart. */
NATIVE_ALONE void pack_rows(int mr, int64_t kc, const pl_mat *A, int64_t m0, int64_t k0,
                            int64_t step, uint32_t *out) {
  const int size = A->half ? sizeof(pl_bf16) : sizeof(float);
  for (int i = 0; i < mr; i++) {
    const char *p = place(A, m0 + i, k0);
    uint32_t *to = out + i * step;
    int64_t k = 0;
    for (; k + NR <= kc; k += NR) {
      _mm512_storeu_si512(to + k / 2, along(p + k * size, A->half, NR));
    }
    if (k < kc) {
      _mm512_storeu_si512(to + k / 2, along(p + k * size, A->half, kc - k));
    }
  }
}

/* n strips of a transposed A, the first rows of which are m0[]: pair behind pair, 16 rows each
 * of which up to 14 count. Several at once, for each row of memory is a page of its own. */
NATIVE_ALONE void pack_columns(int n, const int64_t *m0, int64_t M, int64_t kc, const pl_mat *A,
                               int64_t k0, uint32_t *out) {
  const int64_t row = A->ld * (A->half ? 2 : 4);
  const char *p[TOGETHER];
  __mmask16 m[TOGETHER];
  for (int s = 0; s < n; s++) {
    p[s] = place(A, k0, m0[s]);
    m[s] = (__mmask16)first(M - m0[s]);
  }
  for (int64_t k = 0; k < kc; k += 2) {
    const bool both = k + 1 < kc;
    for (int s = 0; s < n; s++) {
      if (k + AHEAD < kc) {
        __builtin_prefetch(p[s] + AHEAD * row);
        __builtin_prefetch(p[s] + (AHEAD + 1) * row);
      }
      _mm512_storeu_si512(out + s * LANES * DEPTH + k / 2 * LANES,
                          across(p[s], both ? p[s] + row : NULL, A->half, m[s]));
      p[s] += 2 * row;
    }
  }
}

/* nb columns of B from (k0, n0) on as panels, `step` from one to the next. Wide blocks along
 * the rows of memory, which come from far and are asked for early; narrow ones are near. */
NATIVE_ALONE void pack_panels(int64_t kc, int64_t nb, const pl_mat *B, int64_t k0, int64_t n0,
                              int64_t step, uint32_t *out) {
  const int64_t right = LANES * (B->half ? sizeof(pl_bf16) : sizeof(float));
  const int64_t row = B->ld * (B->half ? 2 : 4);
  const bool wide = nb > NEAR;
  const int64_t rows = wide ? 2 : NR;
  for (int64_t k = 0; k < kc; k += rows) {
    const int64_t end = imin(kc, k + rows);
    for (int64_t n = 0; n < nb; n += NR) {
      uint32_t *to = out + n / NR * step + k * LANES;
      const __mmask32 m = first(nb - n);
      const char *p = place(B, k0 + k, n0 + n);
      for (int64_t i = k; i < end; i += 2) {
        const char *below = i + 1 < kc ? p + row : NULL;
        if (wide) {
          __builtin_prefetch(p + AHEAD * row, 0, 2);
          __builtin_prefetch(p + (AHEAD + 1) * row, 0, 2);
          if (!B->half) {
            __builtin_prefetch(p + AHEAD * row + right, 0, 2);
            __builtin_prefetch(p + (AHEAD + 1) * row + right, 0, 2);
          }
        }
        _mm512_storeu_si512(to, across(p, below, B->half, (__mmask16)m));
        _mm512_storeu_si512(to + LANES, across(p + right, below ? below + right : NULL, B->half,
                                               (__mmask16)(m >> 16)));
        p += 2 * row;
        to += NR;
      }
    }
  }
}

/* 16 rows of memory, 8 pairs of each, as 8 rows of half a panel. */
NATIVE_INLINE void turn(const char *const *row, int64_t at, bool half, int64_t left, uint32_t *to) {
  __m512i r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) { /* rows 0 to 3 beside 4 to 7, then 8 to 11 beside 12 to 15 */
    const int j = i < 4 ? i : i + 4;
    r[i] = _mm512_inserti64x4(_mm512_castsi256_si512(along_half(row[j] + at, half, left)),
                              along_half(row[j + 4] + at, half, left), 1);
  }
  transpose_quarters(r);
  transpose_quarters(r + 4);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(to + i * NR, _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88));
    _mm512_storeu_si512(to + (i + 4) * NR, _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd));
  }
}

/* The same where B is transposed: a row of its memory is a column of the panel. */
NATIVE_INLINE void turn_all(bool half, int64_t kc, int64_t nb, const pl_mat *B, int64_t k0,
                            int64_t n0, int64_t step, uint32_t *out) {
  const int64_t size = half ? sizeof(pl_bf16) : sizeof(float);
  for (int64_t n = 0; n < nb; n += LANES) {
    uint32_t *to = out + n / NR * step + n % NR;
    const char *row[LANES];
    for (int64_t j = 0; j < LANES; j++) { /* past the end: any will do */
      row[j] = place(B, n0 + imin(n + j, nb - 1), k0);
    }
    int64_t k = 0;
    for (; k + LANES <= kc; k += LANES) {
      turn(row, k * size, half, LANES, to + k * LANES);
    }
    if (k < kc) {
      turn(row, k * size, half, kc - k, to + k * LANES);
    }
  }
}

NATIVE_ALONE void pack_panels_t(int64_t kc, int64_t nb, const pl_mat *B, int64_t k0, int64_t n0,
                                int64_t step, uint32_t *out) {
  if (B->half) {
    turn_all(true, kc, nb, B, k0, n0, step, out);
  } else {
    turn_all(false, kc, nb, B, k0, n0, step, out);
  }
}

/* Where the tiles of a strip go and how; and the rows of A that come next, or NULL. */
typedef struct target {
  float *c; /* or pl_bf16, where half */
  int64_t ld;
  float alpha, beta;
  bool half;
  const char *next;
  int64_t next_row, next_bytes;
} target;

/* The tile at the right edge of C, of which nc columns exist. */
NATIVE_ALONE void edge(int mr, int nc, const float *t, const target *to, int64_t n) {
  for (int i = 0; i < mr; i++) {
    for (int j = 0; j < nc; j += LANES) {
      const __mmask16 m = (__mmask16)first(nc - j);
      __m512 r = _mm512_loadu_ps(t + i * NR + j);
      if (to->half) {
        _mm256_mask_storeu_epi16((pl_bf16 *)to->c + i * to->ld + n + j, m,
                                 (__m256i)_mm512_cvtneps_pbh(r));
        continue;
      }
      float *p = to->c + i * to->ld + n + j;
      if (to->beta != 0) {
        r += _mm512_maskz_loadu_ps(m, p) * to->beta;
      }
      _mm512_mask_storeu_ps(p, m, r);
    }
  }
}

/* mr rows and nv vectors of C from column n on. a: a strip, rows rs bytes and pairs ks
 * bytes apart; b: a panel. mr, nv and ks are constants at every call. */
NATIVE_INLINE void tile(const int mr, const int nv, int64_t kp, const char *a, int64_t rs,
                        const int64_t ks, const uint32_t *b, const target *to, int64_t n, int nc) {
  __m512 acc[MR][2];
  const bool whole = nc == nv * LANES;
  const bool far = whole && !to->half && kp >= FAR;
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
    acc[i][0] = _mm512_setzero_ps();
    acc[i][1] = _mm512_setzero_ps();
    if (far) { /* needed when the sums are ready: on their way until then */
      __builtin_prefetch(to->c + i * to->ld + n, 1);
      __builtin_prefetch(to->c + i * to->ld + n + nc - 1, 1);
    }
  }
  for (int64_t k = 0; k < kp; k++) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b);
    const __m512bh b1 = nv > 1 ? (__m512bh)_mm512_loadu_si512(b + LANES) : b0;
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      int pair;
      memcpy(&pair, a + i * rs, sizeof pair);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, b0);
      if (nv > 1) {
        acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, b1);
      }
    }
    a += ks;
    b += NR;
  }
  if (to->alpha != 1) {
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      acc[i][0] *= to->alpha;
      acc[i][1] *= to->alpha;
    }
  }
  if (whole && to->half) {
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < nv; j++) {
        _mm256_storeu_si256((__m256i *)((pl_bf16 *)to->c + i * to->ld + n + j * LANES),
                            (__m256i)_mm512_cvtneps_pbh(acc[i][j]));
      }
    }
  } else if (whole) {
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < nv; j++) {
        float *p = to->c + i * to->ld + n + j * LANES;
        __m512 r = acc[i][j];
        if (to->beta != 0) {
          r += _mm512_loadu_ps(p) * to->beta;
        }
        _mm512_storeu_ps(p, r);
      }
    }
  } else {
    float t[MR * NR];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      _mm512_storeu_ps(t + i * NR, acc[i][0]);
      _mm512_storeu_ps(t + i * NR + LANES, acc[i][1]);
    }
    edge(mr, nc, t, to, n);
  }
}

#define CASE(mr)                                  \
  case mr:                                        \
    tile(mr, nv, kp, a, rs, ks, b, to, n, nc);    \
    break;

NATIVE_INLINE void some_rows(int mr, const int nv, int64_t kp, const char *a, int64_t rs,
                             const int64_t ks, const uint32_t *b, const target *to, int64_t n,
                             int nc) {
  switch (mr) {
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
    CASE(5)
    CASE(6)
    CASE(7)
    CASE(8)
    CASE(9)
    CASE(10)
    CASE(11)
    CASE(12)
    CASE(13)
    CASE(14)
  default:
    break;
  }
}
#undef CASE

NATIVE_INLINE void sweep(int mr, int64_t kp, const char *a, int64_t rs, const int64_t ks,
                         int64_t nb, const uint32_t *b, int64_t step, const target *to) {
  const int64_t panels = ceil_div(nb, NR);
  for (int64_t n = 0; n < nb; n += NR) {
    for (int64_t i = n / NR; to->next && i < mr; i += panels) { /* a share of it with each panel */
      for (int64_t x = 0; x < to->next_bytes; x += 64) {
        __builtin_prefetch(to->next + i * to->next_row + x, 0, 2);
      }
    }
    const int nc = nb - n < NR ? (int)(nb - n) : NR;
    if (nc > LANES) {
      some_rows(mr, 2, kp, a, rs, ks, b, to, n, nc);
    } else {
      some_rows(mr, 1, kp, a, rs, ks, b, to, n, nc);
    }
    b += step;
  }
}

/* One strip against all panels, for both orders of a strip. */
NATIVE_ALONE void sweep_rows(int mr, int64_t kp, const void *a, int64_t rs, int64_t nb,
                             const uint32_t *b, int64_t step, const target *to) {
  sweep(mr, kp, a, rs, sizeof(uint32_t), nb, b, step, to);
}

NATIVE_ALONE void sweep_columns(int mr, int64_t kp, const void *a, int64_t nb, const uint32_t *b,
                                int64_t step, const target *to) {
  sweep(mr, kp, a, sizeof(uint32_t), LANES * sizeof(uint32_t), nb, b, step, to);
}

/* The whole product of one block on one thread. C in bf16 wants K <= 2 DEPTH: one sum. */
NATIVE static void native(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, float alpha,
                          const pl_mat *A, const pl_mat *B, float beta, const pl_mat *C) {
  _Alignas(64) uint32_t panels[DEPTH * NB];
  _Alignas(64) uint32_t strip[DEPTH * LANES * TOGETHER];
  const int64_t pairs = ceil_div(Kn, 2);
  const int64_t chunks = pairs > DEPTH ? ceil_div(pairs, DEPTH) : 1;
  const int64_t strips = ceil_div(M, MR); /* the rows shared out evenly */
  const int64_t together = ta ? TOGETHER : 1;
  const int64_t size_a = A->half ? sizeof(pl_bf16) : sizeof(float);
  for (int64_t h = 0; h < chunks; h++) {
    const int64_t k0 = h * pairs / chunks * 2;
    const int64_t kc = imin(Kn, (h + 1) * pairs / chunks * 2) - k0;
    const int64_t kp = ceil_div(kc, 2);
    const int64_t deep = ceil_div(kp, LANES) * LANES; /* whole vectors are copied */
    for (int64_t n0 = 0; n0 < N; n0 += NB) {
      const int64_t nb = imin(NB, N - n0);
      (tb ? pack_panels_t : pack_panels)(kc, nb, B, k0, n0, deep * NR, panels);
      for (int64_t g = 0; g < strips; g += together) {
        const int64_t end = imin(strips, g + together);
        if (ta) {
          int64_t first_row[TOGETHER];
          for (int64_t s = g; s < end; s++) {
            first_row[s - g] = s * M / strips;
          }
          pack_columns((int)(end - g), first_row, M, kc, A, k0, strip);
        }
        for (int64_t s = g; s < end; s++) {
          const int64_t m0 = s * M / strips;
          const int mr = (int)((s + 1) * M / strips - m0);
          target to = {.c = (float *)place(C, m0, n0), .ld = C->ld, .alpha = alpha,
                       .beta = h == 0 ? beta : 1, .half = C->half};
          if (ta) {
            sweep_columns(mr, kp, strip + (s - g) * LANES * DEPTH, nb, panels, deep * NR, &to);
          } else if (A->half && kc % 2 == 0 && nb <= NEAR) { /* not worth a copy */
            sweep_rows(mr, kp, place(A, m0, k0), A->ld * size_a, nb, panels, deep * NR, &to);
          } else {
            pack_rows(mr, kc, A, m0, k0, deep, strip);
            if (nb > NEAR && s + 1 < strips) {
              to.next = place(A, m0 + mr, k0);
              to.next_row = A->ld * size_a;
              to.next_bytes = kc * size_a;
            }
            sweep_rows(mr, kp, strip, deep * (int64_t)sizeof(uint32_t), nb, panels, deep * NR, &to);
          }
        }
      }
    }
  }
}

NATIVE static void narrow_native(int64_t n, const float *x, pl_bf16 *y) {
  for (int64_t i = 0; i < n; i += NR) {
    _mm512_mask_storeu_epi16(y + i, first(n - i), along(x + i, false, n - i));
  }
}
