/* What the processor can do at most: chains of multiply-adds that stay in
 * registers, on all threads, so that speeds can be given as a share of it. */
#include "base/par.h"
#include "kernels/kernels.h"

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
      a[i] = (float)i - (lanes_##isa){0};                                     \
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

PROBE(any, 16, )
#ifdef __x86_64__
PROBE(v3, 32, __attribute__((target("arch=x86-64-v3"))))
PROBE(v4, 64, __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))))
#endif

double pl_fma_probe(int64_t rounds) {
  probe p = {.rounds = rounds};
  pl_block_fn fn = probe_any;
  int lanes = 4;
#ifdef __x86_64__
  pl_isa isa = pl_isa_found();
  fn = isa == PL_ISA_V4 ? probe_v4 : isa == PL_ISA_V3 ? probe_v3 : probe_any;
  lanes = isa == PL_ISA_V4 ? 16 : isa == PL_ISA_V3 ? 8 : 4;
#endif
  int blocks = pl_threads();
  pl_parallel(blocks, fn, &p);
  return 2.0 * CHAINS * lanes * (double)rounds * blocks;
}

pl_isa pl_isa_found(void) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
    return PL_ISA_V4;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return PL_ISA_V3;
  }
#endif
  return PL_ISA_ANY;
}

const char *pl_isa_name(void) {
  static const char *const names[] = {"plain C", "AVX2 and FMA (x86-64-v3)", "AVX-512 (x86-64-v4)"};
  return names[pl_isa_found()];
}
