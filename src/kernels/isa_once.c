/* What the processor has and which variant of the kernels runs. The choice is
 * made once, at the first question, and kept in one atomic number. */
#include "kernels/isa.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = PL_ISA_COUNT, NOT_YET = -1 };

/* What the compiler makes of the vector types where no variant is asked for. */
#ifdef __ARM_NEON
#define BASELINE "NEON (AArch64)"
#else
#define BASELINE "plain C"
#endif

static const struct {
  const char *key, *title;
} names[COUNT] = {{"baseline", BASELINE},
                   {"avx2", "AVX2 and FMA (x86-64-v3)"},
                   {"avx512", "AVX-512 (x86-64-v4)"},
                   {"avx512bf16", "AVX-512 with bf16 (x86-64-v4, avx512bf16)"}};

bool pl_isa_has(pl_isa isa) {
#ifdef __x86_64__
  /* the levels of the x86-64 psABI, which are the targets of the variants */
  switch (isa) {
    case PL_ISA_BASELINE: return true;
    case PL_ISA_AVX2: return __builtin_cpu_supports("x86-64-v3") != 0;
    case PL_ISA_AVX512: return __builtin_cpu_supports("x86-64-v4") != 0;
    case PL_ISA_AVX512BF16:
      return pl_isa_has(PL_ISA_AVX512) && __builtin_cpu_supports("avx512bf16") != 0 &&
             __builtin_cpu_supports("avx512vnni") != 0; /* no processor has the one alone */
    default: return false;
  }
#else
  return isa == PL_ISA_BASELINE;
#endif
}

static pl_isa best(void) {
  int isa = COUNT - 1;
  while (!pl_isa_has((pl_isa)isa)) {
    isa--;
  }
  return (pl_isa)isa;
}

/* COUNT: no such name */
static int by_key(const char *key) {
  int isa = 0;
  while (isa < COUNT && strcmp(key, names[isa].key) != 0) {
    isa++;
  }
  return isa;
}

static const char *wanted(void) {
  const char *key = getenv("PERILUNE_ISA");
  return key && *key ? key : NULL;
}

static _Atomic int used = NOT_YET;

pl_isa pl_isa_used(void) {
  int isa = atomic_load_explicit(&used, memory_order_relaxed);
  if (isa == NOT_YET) {
    const char *key = wanted();
    isa = key ? by_key(key) : COUNT;
    if (isa == COUNT || !pl_isa_has((pl_isa)isa)) {
      isa = best();
    }
    atomic_store(&used, isa);
  }
  return (pl_isa)isa;
}

bool pl_isa_use(pl_isa isa) {
  bool has = pl_isa_has(isa);
  if (has) {
    atomic_store(&used, isa);
  }
  return has;
}

const char *pl_isa_key(pl_isa isa) {
  return names[isa].key;
}

const char *pl_isa_title(pl_isa isa) {
  return names[isa].title;
}

const char *pl_isa_complaint(char out[160]) {
  const char *key = wanted();
  if (!key) {
    return NULL;
  }
  int isa = by_key(key);
  if (isa == COUNT) {
    snprintf(out, 160, "PERILUNE_ISA is \"%.40s\", wanted baseline, avx2, avx512 or avx512bf16",
             key);
    return out;
  }
  if (!pl_isa_has((pl_isa)isa)) {
    snprintf(out, 160, "PERILUNE_ISA is %s, which this processor lacks; its best is %s", key,
             names[best()].key);
    return out;
  }
  return NULL;
}
