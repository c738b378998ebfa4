/* The product with packed weights for one instruction set, included by packed_once.c with
 *   ISA       suffix of the functions made here
 *   TARGET    function attribute that selects the instructions
 *   VL        floats in a vector register
 *   MR        most rows of a register tile
 *   WIDE4, WIDE2  up to how many rows a tile is 4 and 2 panels wide
 *   PAIRS     1: bf16 numbers are multiplied by pairs (vdpbf16ps), activations are bf16;
 *             0: both are widened to floats */

#define FN(name) PL_CAT(name, ISA)
#define INL TARGET static inline __attribute__((always_inline))
#define V FN(v)
#define VI FN(vi)
#define PV (PL_PACKED_COLS / VL) /* vectors in a row of a panel */

typedef float V __attribute__((vector_size(4 * VL)));
typedef int32_t VI __attribute__((vector_size(4 * VL)));

INL V FN(ld)(const void *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

INL VI FN(ldi)(const void *p) {
  VI v;
  memcpy(&v, p, sizeof v);
  return v;
}

/* VL weights of 8 bits as floats */
INL V FN(from8)(const void *p) {
#if VL == 16
  return (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
#elif VL == 8
  return (V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
#else
  const int8_t *q = p;
  return (V){q[0], q[1], q[2], q[3]};
#endif
}

/* acc[mr][np panels] += the whole depth; the sizes are constants at every call. */
INL void FN(depth)(const pl_pack_kind kind, const int mr, const int np, int64_t K, const char *x,
                   int64_t ldx, const char *w, int64_t panel, V acc[MR][4 * PV]) {
  /* what comes after these panels, or a little further down them where they are long */
  const int64_t ahead = np * panel <= 1 << 16 ? np * panel : 1 << 11;
  const int64_t step = kind == PL_PACK_F32 ? 64 : kind == PL_PACK_BF16 ? 64 : 16;
#if PAIRS
  if (kind != PL_PACK_F32) {
    const __m512i zip = _mm512_set_epi16(63, 31, 61, 29, 59, 27, 57, 25, 55, 23, 53, 21, 51, 19, 49,
                                         17, 47, 15, 45, 13, 43, 11, 41, 9, 39, 7, 37, 5, 35, 3, 33,
                                         1); /* the upper halves of two vectors, as pairs */
    for (int64_t k = 0; k < (K + 1) / 2; k++) {
      __m512bh b[4];
#pragma GCC unroll 4
      for (int j = 0; j < np; j++) {
        const char *p = w + j * panel;
        if (kind == PL_PACK_BF16) {
          b[j] = (__m512bh)_mm512_loadu_si512(p);
        } else {
          const __m512i even = (__m512i)FN(from8)(p);
          b[j] = (__m512bh)_mm512_permutex2var_epi16(even, zip, (__m512i)FN(from8)(p + 16));
        }
        __builtin_prefetch(p + ahead, 0, 2);
      }
#pragma GCC unroll 16
      for (int i = 0; i < mr; i++) {
        int32_t pair;
        memcpy(&pair, x + i * ldx + 4 * k, sizeof pair);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int j = 0; j < np; j++) {
          acc[i][j] = (V)_mm512_dpbf16_ps((__m512)acc[i][j], a, b[j]);
        }
      }
      w += kind == PL_PACK_BF16 ? 64 : 32;
    }
    return;
  }
#endif
  for (int64_t k = 0; k < K; k += kind == PL_PACK_BF16 ? 2 : 1) {
    V b[4 * PV];
    V odd[4 * PV]; /* of bf16, at k + 1 */
#pragma GCC unroll 16
    for (int j = 0; j < np * PV; j++) {
      const char *p = w + j / PV * panel;
      if (kind == PL_PACK_F32) {
        b[j] = FN(ld)(p + j % PV * 4 * VL);
      } else if (kind == PL_PACK_BF16) {
        const VI both = FN(ldi)(p + j % PV * 4 * VL);
        b[j] = (V)(both << 16);
        odd[j] = (V)(both & (int32_t)0xffff0000);
      } else {
        b[j] = FN(from8)(p + j % PV * VL);
      }
      if (j % PV == 0) {
        __builtin_prefetch(p + ahead, 0, 2);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      float a[2];
      memcpy(a, x + i * ldx + 4 * k, kind == PL_PACK_BF16 ? 8 : 4);
#pragma GCC unroll 16
      for (int j = 0; j < np * PV; j++) {
        acc[i][j] += b[j] * a[0];
        if (kind == PL_PACK_BF16) {
          acc[i][j] += odd[j] * a[1];
        }
      }
    }
    w += step;
  }
}

/* One tile: mr rows, np panels from p on. */
INL void FN(tile)(const pl_pack_kind kind, const int mr, const int np, const pl_packed *q,
                  const char *x, int64_t ldx, bool add, float *y, int64_t ldy, int64_t p) {
  V acc[MR][4 * PV];
#pragma GCC unroll 16
  for (int i = 0; i < mr; i++) {
#pragma GCC unroll 16
    for (int j = 0; j < np * PV; j++) {
      acc[i][j] = (V){0};
    }
#pragma GCC unroll 4
    for (int j = 0; j < np; j++) { /* needed when the sums are ready: on its way until then */
      __builtin_prefetch(y + i * ldy + (p + j) * PL_PACKED_COLS, 1);
    }
  }
  FN(depth)(kind, mr, np, q->K, x, ldx, q->data + p * q->panel, q->panel, acc);
  const int64_t n0 = p * PL_PACKED_COLS;
#pragma GCC unroll 16
  for (int j = 0; j < np * PV; j++) {
    const int64_t n = n0 + j * VL;
    V scale = {0};
    V bias = {0};
    if (kind == PL_PACK_INT8) {
      scale = FN(ld)(q->scale + n);
    }
    if (q->bias != NULL) {
      bias = FN(ld)(q->bias + n);
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      V s = acc[i][j];
      if (kind == PL_PACK_INT8) {
        s *= scale;
      }
      if (q->bias != NULL) {
        s += bias;
      }
      float *to = y + i * ldy + n;
      if (n + VL <= q->N) {
        if (add) {
          s += FN(ld)(to);
        }
        memcpy(to, &s, sizeof s);
      } else {
        edge((int)(q->N - n), (const float *)&s, add, to);
      }
    }
  }
}

#define CASE(mr, np)                                     \
  case mr:                                               \
    FN(tile)(kind, mr, np, q, x, ldx, add, y, ldy, p);   \
    break;

/* np panels for mr rows. Out of line: every tile exists once for a format. */
#define TILES(name, kind_)                                                                     \
  TARGET static __attribute__((noinline)) void FN(name)(                                       \
      int mr, int np, const pl_packed *q, const char *x, int64_t ldx, bool add, float *y,      \
      int64_t ldy, int64_t p) {                                                                \
    const pl_pack_kind kind = kind_;                                                           \
    if (np == 4) {                                                                             \
      switch (mr) { CASES4 }                                                                   \
    } else if (np == 2) {                                                                      \
      switch (mr) { CASES2 }                                                                   \
    } else {                                                                                   \
      switch (mr) { CASES1 }                                                                   \
    }                                                                                          \
  }

#if MR == 12
#define CASES4 CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) CASE(5, 4) CASE(6, 4) default: break;
#define CASES2                                                                           \
  CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 2) CASE(8, 2) \
  CASE(9, 2) CASE(10, 2) CASE(11, 2) CASE(12, 2) default: break;
#define CASES1                                                                           \
  CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1) CASE(8, 1) \
  CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1) default: break;
#elif MR == 6
#define CASES4 default: break;
#define CASES2 CASE(1, 2) CASE(2, 2) CASE(3, 2) default: break;
#define CASES1 CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) default: break;
#else
#define CASES4 default: break;
#define CASES2 default: break;
#define CASES1 CASE(1, 1) CASE(2, 1) default: break;
#endif

TILES(tiles_f32, PL_PACK_F32)
TILES(tiles_bf16, PL_PACK_BF16)
TILES(tiles_int8, PL_PACK_INT8)

static void FN(product)(const pl_packed *q, int64_t M, const char *x, int64_t ldx, bool add,
                        float *y, int64_t ldy, int64_t p0, int64_t p1) {
  void (*const tiles)(int, int, const pl_packed *, const char *, int64_t, bool, float *, int64_t,
                      int64_t) = q->kind == PL_PACK_F32    ? FN(tiles_f32)
                                 : q->kind == PL_PACK_BF16 ? FN(tiles_bf16)
                                                           : FN(tiles_int8);
  /* rows that stay in the L2 cache while all panels pass; within them, equal strips */
  const int64_t fit = ROWS_CACHE / ldx;
  const int64_t blocks = ceil_div(M, fit > MR ? fit : MR);
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t m0 = b * M / blocks;
    const int64_t m1 = (b + 1) * M / blocks;
    const int64_t strips = ceil_div(m1 - m0, MR);
    const int64_t most = ceil_div(m1 - m0, strips);
    const int wide = most <= WIDE4 ? 4 : most <= WIDE2 ? 2 : 1;
    for (int64_t p = p0; p < p1;) {
      const int np = p1 - p >= wide ? wide : p1 - p >= 2 && wide > 1 ? 2 : 1;
      for (int64_t s = 0; s < strips; s++) {
        const int64_t i = m0 + s * (m1 - m0) / strips;
        const int64_t end = m0 + (s + 1) * (m1 - m0) / strips;
        tiles((int)(end - i), np, q, x + i * ldx, ldx, add, y + i * ldy, ldy, p);
      }
      p += np;
    }
  }
}

#undef FN
#undef INL
#undef V
#undef VI
#undef PV
#undef CASE
#undef TILES
#undef CASES4
#undef CASES2
#undef CASES1
#undef ISA
#undef TARGET
#undef VL
#undef MR
#undef WIDE4
#undef WIDE2
#undef PAIRS
