/* Transposition of a square of registers by exchanging ever smaller corners: what the
 * *_isa.h files share. They define VL, LANES, V and VI for their instruction set. */
#ifndef PL_KERNELS_CORNER_H
#define PL_KERNELS_CORNER_H
#include "kernels/impl.h"

/* Lanes of a register, and what selects among them. */
#if PL_IS_FLOAT
typedef int32_t real_bits;
#define PER_16 4
#define PER_32 8
#define PER_64 16
#else
typedef int64_t real_bits;
#define PER_16 2
#define PER_32 4
#define PER_64 8
#endif

/* Which lanes of two registers of l lanes make the new ones when corners of
 * size s are exchanged: lane i < l of the first, l + i of the second. */
#define CORNER_(l, s, half) CORNER_##l##_##s##_##half
#define CORNER(l, s, half) CORNER_(l, s, half)
#define CORNER_2_1_LO 0, 2
#define CORNER_2_1_HI 1, 3
#define CORNER_4_2_LO 0, 1, 4, 5
#define CORNER_4_2_HI 2, 3, 6, 7
#define CORNER_4_1_LO 0, 4, 2, 6
#define CORNER_4_1_HI 1, 5, 3, 7
#define CORNER_8_4_LO 0, 1, 2, 3, 8, 9, 10, 11
#define CORNER_8_4_HI 4, 5, 6, 7, 12, 13, 14, 15
#define CORNER_8_2_LO 0, 1, 8, 9, 4, 5, 12, 13
#define CORNER_8_2_HI 2, 3, 10, 11, 6, 7, 14, 15
#define CORNER_8_1_LO 0, 8, 2, 10, 4, 12, 6, 14
#define CORNER_8_1_HI 1, 9, 3, 11, 5, 13, 7, 15
#define CORNER_16_8_LO 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define CORNER_16_8_HI 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define CORNER_16_4_LO 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define CORNER_16_4_HI 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define CORNER_16_2_LO 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define CORNER_16_2_HI 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define CORNER_16_1_LO 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define CORNER_16_1_HI 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31

#define EXCHANGE(s)                                                            \
  for (int i = 0; i < LANES; i++) {                                            \
    if ((i & (s)) == 0) {                                                      \
      V lo = __builtin_shuffle(r[i], r[i + (s)], (VI){CORNER(VL, s, LO)});     \
      V hi = __builtin_shuffle(r[i], r[i + (s)], (VI){CORNER(VL, s, HI)});     \
      r[i] = lo;                                                               \
      r[i + (s)] = hi;                                                         \
    }                                                                          \
  }

#endif
