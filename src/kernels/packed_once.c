/* Packed weights and their products: see packed.h. */
#include "kernels/packed.h"

#include <math.h>
#include <string.h>

#include "base/par.h"
#include "kernels/half.h"
#include "kernels/isa.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"

#define PL_CAT_(a, b) a##_##b
#define PL_CAT(a, b) PL_CAT_(a, b)

enum {
  COLS = PL_PACKED_COLS,
  ROWS_CACHE = 1 << 19 /* bytes of activations that should stay in the L2 cache */
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/* ---- bytes ---- */

#define BYTE_ZERO 128 /* what a weight of 8 bits is stored above */

static int64_t fours(int64_t n) {
  return (n + 3) / 4 * 4;
}

/* Columns of the rows and panels of bytes: each piece is whole fours. */
static int64_t depth_of(const pl_operand *in) {
  return in->K / in->piece * fours(in->piece) + fours(in->K % in->piece);
}

static int64_t place_of(const pl_operand *in, int64_t k) {
  return k / in->piece * fours(in->piece) + k % in->piece;
}

/* Behind a row of bytes, for each piece. */
typedef struct byte_scale {
  float scale;
  int32_t minus; /* what BYTE_ZERO adds to each sum, below zero */
} byte_scale;

static inline const byte_scale *scale_at(const char *p) {
  return (const byte_scale *)(const void *)p;
}

/* The last columns, where fewer than a vector's are left (none: left <= 0). */
static __attribute__((noinline)) void edge(int left, const float *s, bool add, float *y) {
  for (int j = 0; j < left; j++) {
    y[j] = add ? y[j] + s[j] : s[j];
  }
}

/* ---- the products ---- */

#define ISA baseline
#define TARGET
#define VL 4
#define MR 2
#define WIDE4 0
#define WIDE2 0
#define PAIRS 0
#include "kernels/packed_isa.h"

#ifdef __x86_64__
#define ISA avx2
#define TARGET PL_TARGET_AVX2
#define VL 8
#define MR 6
#define WIDE4 0
#define WIDE2 3
#define PAIRS 0
#include "kernels/packed_isa.h"

#define ISA avx512
#define TARGET PL_TARGET_AVX512
#define VL 16
#define MR 12
#define WIDE4 6
#define WIDE2 12
#define PAIRS 0
#include "kernels/packed_isa.h"

#define ISA avx512bf16
#define TARGET PL_TARGET_AVX512BF16
#define VL 16
#define MR 12
#define WIDE4 6
#define WIDE2 12
#define PAIRS 1
#include "kernels/packed_isa.h"
#endif

void pl_packed_product(const pl_packed *p, int64_t M, const void *x, int64_t ldx, bool add,
                       float *y, int64_t ldy, int64_t p0, int64_t p1) {
  if (M <= 0) {
    return;
  }
  switch (pl_isa_used()) {
#ifdef __x86_64__
    case PL_ISA_AVX512BF16: product_avx512bf16(p, M, x, ldx, add, y, ldy, p0, p1); return;
    case PL_ISA_AVX512: product_avx512(p, M, x, ldx, add, y, ldy, p0, p1); return;
    case PL_ISA_AVX2: product_avx2(p, M, x, ldx, add, y, ldy, p0, p1); return;
#endif
    default: product_baseline(p, M, x, ldx, add, y, ldy, p0, p1); return;
  }
}

/* ---- activations ---- */

/* Are activations kept in the format of the weights (else as floats that it can hold)? */
static bool narrow(pl_pack_kind kind) {
  return kind != PL_PACK_F32 && pl_isa_used() == PL_ISA_AVX512BF16;
}

int64_t pl_operand_ld(const pl_operand *in) {
  const bool bytes = in->kind == PL_PACK_INT8;
  const int64_t depth = bytes ? depth_of(in) : (in->K + 1) / 2 * 2;
  int64_t row = depth * 4;
  if (narrow(in->kind)) {
    row = bytes ? depth + ceil_div(in->K, in->piece) * (int64_t)sizeof(byte_scale) : depth * 2;
  }
  /* an odd number of cache lines, so that rows do not fall on the same places of the cache */
  return (ceil_div(row, 64) | 1) * 64;
}

/* The scale of numbers of which |x| is at most `most` (NaN and infinities too), and what to
 * multiply them with. */
static float scale_of(float most, float *inverse) {
  const float scale = isfinite(most) ? most / 127 : NAN; /* what is damaged stays visible */
  *inverse = scale > 0 && isfinite(1 / scale) ? 1 / scale : 0;
  return scale;
}

/* The largest |x|; a NaN wins, for its bits lie above those of infinity. */
PL_VARIANTS(float, most_of, (int64_t n, const float *x), (n, x)) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, x + i, sizeof u);
    u &= 0x7fffffffU;
    most = u > most ? u : most;
  }
  float f;
  memcpy(&f, &most, sizeof f);
  return f;
}

/* To the nearest integer, ties to even, |x| < 2^22. */
PL_INLINE int32_t nearest(float x) {
  const float shifted = x + 12582912.0F; /* 1.5 * 2^23 */
  int32_t i;
  memcpy(&i, &shifted, sizeof i);
  return i - 0x4b400000;
}

PL_VARIANTS(void, put_eight, (int64_t n, const float *x, float scale, float inverse, float *y),
            (n, x, scale, inverse, y)) {
  for (int64_t i = 0; i < n; i++) {
    y[i] = (float)nearest(x[i] * inverse) * scale;
  }
}

#ifdef __x86_64__
/* The first n of 16. */
static inline __mmask16 first_of(int64_t n) {
  return n >= 16 ? 0xffff : (__mmask16)((1U << n) - 1);
}

PL_TARGET_AVX512BF16 static void put_bytes(int64_t n, const float *x, int8_t *y, byte_scale *of) {
  __m512i most = _mm512_setzero_si512(); /* as in most_of */
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i v = _mm512_castps_si512(_mm512_maskz_loadu_ps(first_of(n - i), x + i));
    most = _mm512_max_epi32(most, _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff)));
  }
  const int32_t top = _mm512_reduce_max_epi32(most);
  float largest;
  float inverse;
  memcpy(&largest, &top, sizeof top);
  of->scale = scale_of(largest, &inverse);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_of(n - i), x + i) * inverse;
    const __m512i q = _mm512_cvtps_epi32(v); /* to the nearest even */
    sum = _mm512_add_epi32(sum, q);
    _mm_mask_storeu_epi8(y + i, first_of(n - i), _mm512_cvtsepi32_epi8(q));
  }
  of->minus = (int32_t)(-(uint32_t)BYTE_ZERO * (uint32_t)_mm512_reduce_add_epi32(sum));
}
#endif

/* One piece, the last one of a row perhaps shorter. */
static void put_piece(const pl_operand *in, const float *x, int64_t k0, int64_t n, char *row) {
  const int64_t at = place_of(in, k0);
#ifdef __x86_64__
  if (narrow(in->kind)) {
    byte_scale *of = (byte_scale *)(void *)(row + depth_of(in)) + k0 / in->piece;
    put_bytes(n, x, (int8_t *)row + at, of);
    return;
  }
#endif
  float inverse;
  const float scale = scale_of(most_of(n, x), &inverse);
  put_eight(n, x, scale, inverse, (float *)(void *)row + at);
}

void pl_operand_put(const pl_operand *in, const float *x, int64_t k0, int64_t n, void *row) {
  if (in->kind == PL_PACK_INT8) {
    for (int64_t i = 0; i < n; i += in->piece) {
      put_piece(in, x + i, k0 + i, n - i < in->piece ? n - i : in->piece, row);
    }
  } else if (in->kind == PL_PACK_F32) {
    memcpy((float *)row + k0, x, (size_t)n * sizeof *x);
  } else if (narrow(in->kind)) {
    pl_bf16_row(n, x, (pl_bf16 *)row + k0);
  } else {
    pl_bf16_round(n, x, (float *)row + k0);
  }
}

/* ---- packing ---- */

static int64_t panel_bytes(const pl_operand *in) {
  const int64_t even = (in->K + 1) / 2 * 2;
  const int64_t column = in->kind == PL_PACK_F32    ? even * 4
                         : in->kind == PL_PACK_BF16 ? even * 2
                                                    : depth_of(in);
  return ceil_div(column * COLS, 64) * 64;
}

size_t pl_packed_bytes(const pl_operand *in, int64_t N, bool has_bias) {
  const int64_t each =
      panel_bytes(in) + (in->kind == PL_PACK_INT8 ? COLS * 4 : 0) + (has_bias ? COLS * 4 : 0);
  return (size_t)(ceil_div(N, COLS) * each);
}

void pl_packed_init(pl_packed *p, const pl_operand *in, int64_t N, bool has_bias, void *memory) {
  const int64_t panels = ceil_div(N, COLS);
  *p = (pl_packed){.in = *in, .N = N, .panel = panel_bytes(in), .data = memory};
  float *tail = (float *)(p->data + panels * p->panel);
  if (in->kind == PL_PACK_INT8) {
    p->scale = tail;
    tail += panels * COLS;
  }
  p->bias = has_bias ? tail : NULL;
}

typedef struct fill_arg {
  pl_packed *p;
  int64_t n0, n;
  const float *w;
} fill_arg;

/* One number into its place. */
static void place(pl_packed *p, int64_t n, int64_t k, float w, float inverse) {
  char *panel = p->data + n / COLS * p->panel;
  const int64_t c = n % COLS;
  if (p->in.kind == PL_PACK_F32) {
    ((float *)panel)[k * COLS + c] = w;
  } else if (p->in.kind == PL_PACK_BF16) {
    ((pl_bf16 *)panel)[(k / 2 * COLS + c) * 2 + k % 2] = pl_bf16_of(w);
  } else {
    const int64_t at = place_of(&p->in, k);
    uint8_t *to = (uint8_t *)panel + (at / 4 * COLS + c) * 4 + at % 4;
    *to = (uint8_t)(nearest(w * inverse) + BYTE_ZERO);
  }
}

static void fill_block(void *arg, int64_t block) {
  const fill_arg *a = arg;
  pl_packed *p = a->p;
  const int64_t K = p->in.K;
  const int64_t first = block * COLS;
  const int64_t last = first + COLS < a->n ? first + COLS : a->n;
  float inverse[COLS] = {0};
  for (int64_t i = first; i < last && p->in.kind == PL_PACK_INT8; i++) {
    p->scale[a->n0 + i] = scale_of(most_of(K, a->w + i * K), &inverse[i - first]);
  }
  for (int64_t k0 = 0; k0 < K; k0 += COLS) { /* squares: rows in, rows of panels out */
    const int64_t k1 = k0 + COLS < K ? k0 + COLS : K;
    float t[COLS][COLS];
    for (int64_t i = first; i < last; i++) {
      memcpy(t[i - first], a->w + i * K + k0, (size_t)(k1 - k0) * sizeof(float));
    }
    for (int64_t k = k0; k < k1; k++) {
      for (int64_t i = first; i < last; i++) {
        place(p, a->n0 + i, k, t[i - first][k - k0], inverse[i - first]);
      }
    }
  }
}

void pl_packed_fill(pl_packed *p, int64_t n0, int64_t n, const float *w, const float *bias) {
  fill_arg a = {p, n0, n, w};
  pl_parallel(ceil_div(n, COLS), fill_block, &a);
  if (bias != NULL) {
    memcpy(p->bias + n0, bias, (size_t)n * sizeof *bias);
  }
}
