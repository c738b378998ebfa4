/* TEST_EACH_ISA(name) { ... } is a TEST for every instruction set that the kernels are
 * compiled for: name_baseline, name_avx2 and so on. What the processor lacks is skipped. */
#ifndef PL_TESTS_EACH_ISA_H
#define PL_TESTS_EACH_ISA_H
#include "harness.h"

#include "kernels/isa.h"

static void with_isa(pl_isa isa, void (*body)(void)) {
  pl_isa before = pl_isa_used();
  if (!pl_isa_use(isa)) {
    SKIP("this processor lacks the instructions");
  }
  body();
  pl_isa_use(before);
}

#define TEST_EACH_ISA(title)                                             \
  static void each_##title(void);                                       \
  TEST(title##_baseline) { with_isa(PL_ISA_BASELINE, each_##title); }   \
  TEST(title##_avx2) { with_isa(PL_ISA_AVX2, each_##title); }           \
  TEST(title##_avx512) { with_isa(PL_ISA_AVX512, each_##title); }       \
  TEST(title##_avx512bf16) { with_isa(PL_ISA_AVX512BF16, each_##title); } \
  static void each_##title(void)

#endif
