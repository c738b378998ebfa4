/* Sixteen floats at a time for the row kernels of generation: one register of AVX-512, which the
 * compiler splits where registers are shorter. Included where PL_REAL is float. */
#ifndef PL_LM_V16_H
#define PL_LM_V16_H
#include <string.h>

#include "kernels/isa.h"
#include "kernels/vmath.h"

enum { LANES_16 = 16 };

typedef float v16 __attribute__((vector_size(64)));

PL_INLINE v16 load16(const float *p) {
  v16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

PL_INLINE void store16(float *p, v16 v) {
  memcpy(p, &v, sizeof v);
}

#endif
