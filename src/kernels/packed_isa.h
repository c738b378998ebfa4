/* The product with packed weights for one instruction set, included by packed_once.c with
 *   ISA       suffix of the functions made here
 *   TARGET    function attribute that selects the instructions
 *   VL        floats in a vector register
 *   MR        most rows of a register tile
 *   WIDE4, WIDE2  up to how many rows a tile is 4 and 2 panels wide
 *   PAIRS     1: bf16 numbers are multiplied by pairs (vdpbf16ps), bytes by fours (vpdpbusd);
 *             0: all are widened to floats */

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

/* acc[mr][np panels] += the whole depth; the sizes are constants at every call. */
INL void FN(depth)(const pl_pack_kind kind, const int mr, const int np, int64_t K, const char *x,
                   int64_t ldx, const char *w, int64_t panel, V acc[MR][4 * PV]) {
  /* what comes after these panels, or a little further down them where they are long */
  const int64_t ahead = np * panel <= 1 << 16 ? np * panel : 1 << 11;
#if PAIRS
  if (kind == PL_PACK_BF16) {
    for (int64_t k = 0; k < (K + 1) / 2; k++) {
      __m512bh b[4];
#pragma GCC unroll 4
      for (int j = 0; j < np; j++) {
        b[j] = (__m512bh)_mm512_loadu_si512(w + j * panel);
        __builtin_prefetch(w + j * panel + ahead, 0, 2);
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
      w += 64;
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
      } else {
        const VI both = FN(ldi)(p + j % PV * 4 * VL);
        b[j] = (V)(both << 16);
        odd[j] = (V)(both & (int32_t)0xffff0000);
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
    w += 64;
  }
}

/* The same for weights of 8 bits. */
INL void FN(depth8)(const int mr, const int np, const pl_operand *in, const char *x, int64_t ldx,
                    const char *w, int64_t panel, V acc[MR][4 * PV]) {
  const int64_t K = depth_of(in);
  const int64_t ahead = np * panel <= 1 << 16 ? np * panel : 1 << 11;
#if PAIRS
  const int64_t piece = fours(in->piece);
  const char *scales = x + K;
  for (int64_t k0 = 0; k0 < K; k0 += piece) { /* integers within a piece, floats beyond */
    const int64_t k1 = k0 + piece < K ? k0 + piece : K;
    __m512i sum[MR][4];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 4
      for (int j = 0; j < np; j++) {
        sum[i][j] = _mm512_set1_epi32(scale_at(scales + i * ldx)->minus);
      }
    }
    for (int64_t k = k0; k < k1; k += 4) {
      __m512i b[4];
#pragma GCC unroll 4
      for (int j = 0; j < np; j++) {
        b[j] = _mm512_loadu_si512(w + j * panel);
        __builtin_prefetch(w + j * panel + ahead, 0, 2);
      }
#pragma GCC unroll 16
      for (int i = 0; i < mr; i++) {
        int32_t four;
        memcpy(&four, x + i * ldx + k, sizeof four);
        const __m512i a = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int j = 0; j < np; j++) {
          /* as an intrinsic the compiler copies every sum to and fro */
          __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[i][j]) : "v"(b[j]), "v"(a));
        }
      }
      w += 64;
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      const float scale = scale_at(scales + i * ldx)->scale;
#pragma GCC unroll 4
      for (int j = 0; j < np; j++) {
        acc[i][j] += (V)_mm512_cvtepi32_ps(sum[i][j]) * scale;
      }
    }
    scales += sizeof(byte_scale);
  }
#else
  for (int64_t k = 0; k < K; k += 4, w += 64) {
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
      V b[4 * PV];
#pragma GCC unroll 16
      for (int j = 0; j < np * PV; j++) {
        const char *p = w + j / PV * panel;
        const VI byte = FN(ldi)(p + j % PV * 4 * VL) >> 8 * t & 255;
        b[j] = __builtin_convertvector(byte, V) - BYTE_ZERO;
        if (j % PV == 0 && t == 0) {
          __builtin_prefetch(p + ahead, 0, 2);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < mr; i++) {
        float a;
        memcpy(&a, x + i * ldx + 4 * (k + t), sizeof a);
#pragma GCC unroll 16
        for (int j = 0; j < np * PV; j++) {
          acc[i][j] += b[j] * a;
        }
      }
    }
  }
#endif
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
  const char *w = q->data + p * q->panel;
  if (kind == PL_PACK_INT8) {
    FN(depth8)(mr, np, &q->in, x, ldx, w, q->panel, acc);
  } else {
    FN(depth)(kind, mr, np, q->in.K, x, ldx, w, q->panel, acc);
  }
  const int64_t n0 = p * PL_PACKED_COLS;
  const int64_t N = q->N;
  const float *scales = q->scale;
  const float *biases = q->bias;
#pragma GCC unroll 16
  for (int j = 0; j < np * PV; j++) {
    const int64_t n = n0 + j * VL;
    V scale = {0};
    V bias = {0};
    if (kind == PL_PACK_INT8) {
      scale = FN(ld)(scales + n);
    }
    if (biases != NULL) {
      bias = FN(ld)(biases + n);
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
      /* one rounding in every tile: nothing that could be fused here and there */
      V s = kind == PL_PACK_INT8 ? acc[i][j] * scale + bias : acc[i][j] + bias;
      float *to = y + i * ldy + n;
      if (n + VL <= N) {
        if (add) {
          s += FN(ld)(to);
        }
        memcpy(to, &s, sizeof s);
      } else {
        edge((int)(N - n), (const float *)&s, add, to);
      }
    }
  }
}

#define CASE(mr, np)                                     \
  case mr:                                               \
    FN(tile)(kind, mr, np, q, x, ldx, add, y, ldy, p);   \
    break;
#define CASES0(np)
#define CASES2(np) CASE(1, np) CASE(2, np)
#define CASES3(np) CASES2(np) CASE(3, np)
#define CASES6(np) CASES3(np) CASE(4, np) CASE(5, np) CASE(6, np)
#define CASES12(np) \
  CASES6(np) CASE(7, np) CASE(8, np) CASE(9, np) CASE(10, np) CASE(11, np) CASE(12, np)

/* np panels for mr rows; at most so many rows at 4, 2 and 1 panels. Out of line: every tile
 * exists once for a format. */
#define TILES(name, kind_, most4, most2, most1)                                                \
  TARGET static __attribute__((noinline)) void FN(name)(                                       \
      int mr, int np, const pl_packed *q, const char *x, int64_t ldx, bool add, float *y,      \
      int64_t ldy, int64_t p) {                                                                \
    const pl_pack_kind kind = kind_;                                                           \
    if (np == 4) {                                                                             \
      switch (mr) { CASES##most4(4) default: break; }                                          \
    } else if (np == 2) {                                                                      \
      switch (mr) { CASES##most2(2) default: break; }                                          \
    } else {                                                                                   \
      switch (mr) { CASES##most1(1) default: break; }                                          \
    }                                                                                          \
  }
#define TILES_(name, kind, sizes) TILES(name, kind, sizes)
#if MR == 12
#define SIZES 6, 12, 12
#elif MR == 6
#define SIZES 0, 3, 6
#else
#define SIZES 0, 0, 2
#endif

TILES_(tiles_f32, PL_PACK_F32, SIZES)
TILES_(tiles_bf16, PL_PACK_BF16, SIZES)
#if PAIRS
TILES(tiles_int8, PL_PACK_INT8, 3, 6, 6) /* two sums each, integers and floats */
#else
TILES_(tiles_int8, PL_PACK_INT8, SIZES)
#endif

static void FN(product)(const pl_packed *q, int64_t M, const char *x, int64_t ldx, bool add,
                        float *y, int64_t ldy, int64_t p0, int64_t p1) {
  void (*const tiles)(int, int, const pl_packed *, const char *, int64_t, bool, float *, int64_t,
                      int64_t) = q->in.kind == PL_PACK_F32    ? FN(tiles_f32)
                                 : q->in.kind == PL_PACK_BF16 ? FN(tiles_bf16)
                                                           : FN(tiles_int8);
  const int half = PAIRS && q->in.kind == PL_PACK_INT8 ? 2 : 1; /* the tiles are that much lower */
  const int most_rows = MR / half;
  /* rows that stay in the L2 cache while all panels pass; within them, equal strips */
  const int64_t fit = ROWS_CACHE / ldx;
  const int64_t blocks = ceil_div(M, fit > most_rows ? fit : most_rows);
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t m0 = b * M / blocks;
    const int64_t m1 = (b + 1) * M / blocks;
    const int64_t strips = ceil_div(m1 - m0, most_rows);
    const int64_t most = ceil_div(m1 - m0, strips);
    const int wide = most <= WIDE4 / half ? 4 : most <= WIDE2 / half ? 2 : 1;
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
#undef TILES_
#undef SIZES
#undef CASES0
#undef CASES2
#undef CASES3
#undef CASES6
#undef CASES12
#undef ISA
#undef TARGET
#undef VL
#undef MR
#undef WIDE4
#undef WIDE2
#undef PAIRS
