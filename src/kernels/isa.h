/* Instruction sets: which ones the kernels are compiled for, which one runs,
 * and how a function gets its variants. The one place of dispatch.
 *
 * A variant is chosen when a function is called, by pl_isa_used(), and not by the
 * loader (target_clones): a resolver runs before the environment can be read,
 * and tests must be able to run every variant in one process. */
#ifndef PL_KERNELS_ISA_H
#define PL_KERNELS_ISA_H
#include <stdbool.h>

/* In the order of their worth: each includes what the ones before it have. */
typedef enum pl_isa {
  PL_ISA_BASELINE,
  PL_ISA_AVX2,
  PL_ISA_AVX512,
  PL_ISA_AVX512BF16, /* AVX-512 for all but products and roundings of bf16 and bytes */
  PL_ISA_COUNT
} pl_isa;

/* Does this processor (and its system) have what the variant needs? */
bool pl_isa_has(pl_isa isa);
/* PERILUNE_ISA=baseline|avx2|avx512|avx512bf16 at the first call, else the best there is.
 * What the processor lacks or nobody knows is never used, see pl_isa_complaint. */
pl_isa pl_isa_used(void);
/* Changes it, between kernels. false: the processor lacks the instructions, nothing changed. */
bool pl_isa_use(pl_isa isa);
const char *pl_isa_key(pl_isa isa);   /* "baseline", "avx2" ...: as in PERILUNE_ISA */
const char *pl_isa_title(pl_isa isa); /* for people */
/* What is wrong with PERILUNE_ISA, in words (kept in out), or NULL: an error for who has a user. */
const char *pl_isa_complaint(char out[160]);

/* A helper must be inlined into the variant that calls it: that is how it gets
 * the variant's instruction set. */
#define PL_INLINE static inline __attribute__((always_inline))

#ifdef __x86_64__
#define PL_TARGET_AVX2 __attribute__((target("arch=x86-64-v3")))
#define PL_TARGET_AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define PL_TARGET_AVX512BF16 \
  __attribute__((target("arch=x86-64-v4,avx512bf16,avx512vnni,prefer-vector-width=512")))

/* PL_VARIANTS(void, f, (int64_t n, real *x), (n, x)) { body } defines the static
 * function f, compiled for each instruction set; arithmetic on bf16 gains nothing by
 * being compiled once more for AVX512BF16. */
#define PL_VARIANTS(type, name, params, args)                  \
  PL_INLINE type name##_body params;                           \
  PL_TARGET_AVX2 static type name##_avx2 params {              \
    return name##_body args;                                   \
  }                                                            \
  PL_TARGET_AVX512 static type name##_avx512 params {          \
    return name##_body args;                                   \
  }                                                            \
  static type name##_baseline params {                         \
    return name##_body args;                                   \
  }                                                            \
  static type name params {                                    \
    switch (pl_isa_used()) {                                   \
      case PL_ISA_AVX512BF16:                                  \
      case PL_ISA_AVX512: return name##_avx512 args;           \
      case PL_ISA_AVX2: return name##_avx2 args;               \
      default: return name##_baseline args;                    \
    }                                                          \
  }                                                            \
  PL_INLINE type name##_body params
#else
#define PL_VARIANTS(type, name, params, args) static type name params
#endif

#endif
