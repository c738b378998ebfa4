/* What the processor can do at most: chains of multiply-adds that stay in
 * registers, on all threads, so that speeds can be given as a share of it. */
#include "base/par.h"
#include "kernels/isa.h"
#include "kernels/kernels.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"

enum { CHAINS = 12 }; /* enough to hide the latency of two units of four cycles */

typedef struct probe {
  int64_t rounds;
  float sink[256]; /* so that nothing is optimised away; one per thread */
} probe;

#define PROBE(isa, bytes, target)                                             \
  typedef float lanes_##isa __attribute__((vector_size(bytes)));              \
  target static void probe_##isa(void *arg, int64_t block) {                  \
    probe *p = arg;                                                           \
    lanes_##isa a[CHAINS];                                                    \
    lanes_##isa x = 0.999F - (lanes_##isa){0};                                \
    lanes_##isa y = 0.001F - (lanes_##isa){0};                                \
    for (int i = 0; i < CHAINS; i++) {                                        \
      a[i] = (float)(i + 2) - (lanes_##isa){0}; /* 1 would stay 1: not computed */ \
    }                                                                         \
    for (int64_t k = 0; k < p->rounds; k++) {                                 \
      _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {             \
        a[i] = a[i] * x + y;                                                  \
      }                                                                       \
      __asm__ volatile(""); /* one round is one round */                      \
    }                                                                         \
    for (int i = 0; i < CHAINS; i++) {                                        \
      p->sink[block % 256] += a[i][0];                                        \
    }                                                                         \
  }

PROBE(baseline, 16, )
#ifdef __x86_64__
PROBE(avx2, 32, PL_TARGET_AVX2)
PROBE(avx512, 64, PL_TARGET_AVX512)
#endif

#ifdef __x86_64__
/* The same for an instruction that multiplies pairs or fours: its register of sums, 16 bits of
 * what it multiplies, a step of chain i, and how to read a sum. */
#define NATIVE_PROBE(name, reg, ones, step, lane)                           \
  PL_TARGET_AVX512BF16 static void probe_##name(void *arg, int64_t block) { \
    probe *p = arg;                                                         \
    reg a[CHAINS];                                                          \
    __m512i x = _mm512_set1_epi16(ones);                                    \
    _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {             \
      a[i] = (reg)_mm512_set1_epi32(i);                                     \
    }                                                                       \
    for (int64_t k = 0; k < p->rounds; k++) {                               \
      _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {           \
        step;                                                               \
      }                                                                     \
      __asm__ volatile("" : "+v"(x)); /* one round is one round */          \
    }                                                                       \
    _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {             \
      p->sink[block % 256] += (float)lane(a[i]);                            \
    }                                                                       \
  }

NATIVE_PROBE(bf16, __m512, 0x3f40 /* 0.75 */,
             a[i] = _mm512_dpbf16_ps(a[i], (__m512bh)x, (__m512bh)x), _mm512_cvtss_f32)
/* as an intrinsic the compiler copies every sum to and fro */
NATIVE_PROBE(int8, __m512i, 0x0101, __asm__("vpdpbusd %1, %1, %0" : "+v"(a[i]) : "v"(x)),
             _mm512_cvtsi512_si32)
#endif

static double native_probe(int64_t rounds, pl_block_fn fn, int products) {
  if (fn == NULL || pl_isa_used() != PL_ISA_AVX512BF16) {
    return 0;
  }
  probe p = {.rounds = rounds};
  const int blocks = pl_threads();
  pl_parallel(blocks, fn, &p);
  return 2.0 * CHAINS * products * (double)rounds * blocks;
}

double pl_bf16_probe(int64_t rounds) {
#ifdef __x86_64__
  return native_probe(rounds, probe_bf16, 32);
#else
  return native_probe(rounds, NULL, 0);
#endif
}

double pl_int8_probe(int64_t rounds) {
#ifdef __x86_64__
  return native_probe(rounds, probe_int8, 64);
#else
  return native_probe(rounds, NULL, 0);
#endif
}

double pl_fma_probe(int64_t rounds) {
  probe p = {.rounds = rounds};
  pl_block_fn fn = probe_baseline;
  int lanes = 4;
#ifdef __x86_64__
  pl_isa isa = pl_isa_used();
  fn = isa >= PL_ISA_AVX512 ? probe_avx512 : isa == PL_ISA_AVX2 ? probe_avx2 : probe_baseline;
  lanes = isa >= PL_ISA_AVX512 ? 16 : isa == PL_ISA_AVX2 ? 8 : 4;
#endif
  int blocks = pl_threads();
  pl_parallel(blocks, fn, &p);
  return 2.0 * CHAINS * lanes * (double)rounds * blocks;
}

/* ---- reading memory ---- */

enum { PIECE = 1 << 18 }; /* bytes of a block: long enough for the prefetchers */

typedef struct reading {
  const char *p;
  int64_t bytes;
  float sink[256];
} reading;

#define READ(isa, width, target)                                                        \
  target static void read_##isa(void *arg, int64_t block) {                             \
    typedef float v __attribute__((vector_size(width)));                                \
    reading *r = arg;                                                                   \
    const char *p = r->p + block * PIECE;                                               \
    const int64_t n = r->bytes - block * PIECE < PIECE ? r->bytes - block * PIECE : PIECE; \
    v s[4] = {{0}};                                                                     \
    for (int64_t i = 0; i + 256 <= n; i += 256) {                                       \
      _Pragma("GCC unroll 16") for (int j = 0; j < 256 / width; j++) {                  \
        s[j % 4] += *(const v *)(const void *)(p + i + j * width);                      \
      }                                                                                 \
    }                                                                                   \
    r->sink[block % 256] = (s[0] + s[1] + s[2] + s[3])[0];                              \
  }

READ(baseline, 16, )
#ifdef __x86_64__
READ(avx2, 32, PL_TARGET_AVX2)
READ(avx512, 64, PL_TARGET_AVX512)
#endif

void pl_read_probe(int64_t bytes, const void *memory) {
  reading r = {.p = memory, .bytes = bytes};
  pl_block_fn fn = read_baseline;
#ifdef __x86_64__
  pl_isa isa = pl_isa_used();
  fn = isa >= PL_ISA_AVX512 ? read_avx512 : isa == PL_ISA_AVX2 ? read_avx2 : read_baseline;
#endif
  pl_parallel((bytes + PIECE - 1) / PIECE, fn, &r);
}
