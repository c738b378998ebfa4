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

/* Are activations kept as bf16 (else as floats that bf16 can hold)? */
static bool by_pairs(pl_pack_kind kind) {
  return kind != PL_PACK_F32 && pl_isa_used() == PL_ISA_AVX512BF16;
}

int64_t pl_operand_ld(pl_pack_kind kind, int64_t K) {
  /* an odd number of cache lines, so that rows do not fall on the same places of the cache */
  const int64_t lines = ceil_div((K + 1) / 2 * (by_pairs(kind) ? 4 : 8), 64);
  return (lines | 1) * 64;
}

#ifdef __x86_64__
PL_TARGET_AVX512BF16 static void put_half(int64_t n, const float *x, pl_bf16 *y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1U << (n - i)) - 1);
    const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
    _mm256_mask_storeu_epi16(y + i, m, (__m256i)_mm512_cvtneps_pbh(v));
  }
}
#endif

PL_VARIANTS(void, put_rounded, (int64_t n, const float *x, float *y), (n, x, y)) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, x + i, sizeof u);
    const uint32_t nan = (u & 0x7fffffffU) > 0x7f800000U;
    u = (nan ? u | 0x400000U : u + 0x7fffU + (u >> 16 & 1)) & 0xffff0000U;
    memcpy(y + i, &u, sizeof u);
  }
}

void pl_operand_put(pl_pack_kind kind, const float *x, int64_t k0, int64_t n, void *row) {
  if (kind == PL_PACK_F32) {
    memcpy((float *)row + k0, x, (size_t)n * sizeof *x);
#ifdef __x86_64__
  } else if (by_pairs(kind)) {
    put_half(n, x, (pl_bf16 *)row + k0);
#endif
  } else {
    put_rounded(n, x, (float *)row + k0);
  }
}

/* ---- packing ---- */

static int64_t even(int64_t K) {
  return (K + 1) / 2 * 2;
}

static int64_t panel_bytes(pl_pack_kind kind, int64_t K) {
  const int64_t width = kind == PL_PACK_F32 ? 4 : kind == PL_PACK_BF16 ? 2 : 1;
  return ceil_div(even(K) * COLS * width, 64) * 64;
}

size_t pl_packed_bytes(pl_pack_kind kind, int64_t N, int64_t K, bool has_bias) {
  const int64_t each = panel_bytes(kind, K) + (kind == PL_PACK_INT8 ? COLS * 4 : 0) +
                       (has_bias ? COLS * 4 : 0);
  return (size_t)(ceil_div(N, COLS) * each);
}

void pl_packed_init(pl_packed *p, pl_pack_kind kind, int64_t N, int64_t K, bool has_bias,
                    void *memory) {
  const int64_t panels = ceil_div(N, COLS);
  *p = (pl_packed){.kind = kind, .N = N, .K = K, .panel = panel_bytes(kind, K), .data = memory};
  float *tail = (float *)(p->data + panels * p->panel);
  if (kind == PL_PACK_INT8) {
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

/* To the nearest integer, ties to even, |x| < 2^22. */
static int32_t nearest(float x) {
  const float shifted = x + 12582912.0F; /* 1.5 * 2^23 */
  int32_t i;
  memcpy(&i, &shifted, sizeof i);
  return i - 0x4b400000;
}

/* One number into its place. */
static void place(pl_packed *p, int64_t n, int64_t k, float w, float inverse) {
  char *panel = p->data + n / COLS * p->panel;
  const int64_t c = n % COLS;
  if (p->kind == PL_PACK_F32) {
    ((float *)panel)[k * COLS + c] = w;
  } else if (p->kind == PL_PACK_BF16) {
    ((pl_bf16 *)panel)[(k / 2 * COLS + c) * 2 + k % 2] = pl_bf16_of(w);
  } else {
    ((int8_t *)panel)[k * COLS + c] = (int8_t)nearest(w * inverse);
  }
}

/* The scale of one column, in s, and what to multiply its weights with. */
static float scale_of(int64_t K, const float *w, float *s) {
  float most = 0;
  for (int64_t k = 0; k < K; k++) {
    const float a = fabsf(w[k]);
    most = a > most || a != a ? a : most; /* a NaN wins, and stays */
    if (most != most) {
      break;
    }
  }
  *s = isfinite(most) ? most / 127 : NAN; /* the products are NaN then, as they must be */
  return *s > 0 && isfinite(1 / *s) ? 1 / *s : 0;
}

static void fill_block(void *arg, int64_t block) {
  const fill_arg *a = arg;
  pl_packed *p = a->p;
  const int64_t K = p->K;
  const int64_t first = block * COLS;
  const int64_t last = first + COLS < a->n ? first + COLS : a->n;
  float inverse[COLS] = {0};
  for (int64_t i = first; i < last && p->kind == PL_PACK_INT8; i++) {
    inverse[i - first] = scale_of(K, a->w + i * K, &p->scale[a->n0 + i]);
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
