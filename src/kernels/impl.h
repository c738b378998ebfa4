/* What the kernel files share: the names of the twice-compiled functions and a
 * few helpers on vectors. Included by the kernel files only.
 *
 * The Makefile compiles each kernel file with -DPL_REAL=float -DPL_SUFFIX=f32
 * and with double, f64; K(name) is pl_name_f32 or pl_name_f64. Those that read or
 * write activations are compiled once more with float, bf16. */
#ifndef PL_KERNELS_IMPL_H
#define PL_KERNELS_IMPL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/par.h"
#include "kernels/isa.h"
#include "kernels/kernels.h"

#define PL_CAT_(a, b) a##_##b
#define PL_CAT(a, b) PL_CAT_(a, b)
#define K(name) PL_CAT(pl_##name, PL_SUFFIX)

#define PL_FLOAT_f32 1
#define PL_FLOAT_f64 0
#define PL_FLOAT_bf16 1
#define PL_IS_FLOAT PL_CAT(PL_FLOAT, PL_SUFFIX) /* 1 where reals are floats, for #if */
#define PL_HALF_f32 0
#define PL_HALF_f64 0
#define PL_HALF_bf16 1
#define PL_IS_HALF PL_CAT(PL_HALF, PL_SUFFIX) /* 1 where activations are bf16 */

/* Vectors are passed between inlined functions only, so the note that their
 * calling convention depends on the instruction set does not matter here. */
#pragma GCC diagnostic ignored "-Wpsabi"

typedef PL_REAL real; /* arithmetic, parameters, statistics */
#if PL_IS_HALF
typedef pl_bf16 act; /* activations in memory */

PL_INLINE act act_of(real x) {
  return pl_bf16_of(x);
}

PL_INLINE real act_real(act x) {
  return pl_bf16_float(x);
}
#else
typedef real act;

PL_INLINE act act_of(real x) {
  return x;
}

PL_INLINE real act_real(act x) {
  return x;
}
#endif
#if PL_IS_FLOAT
#define PL_SQRT __builtin_sqrtf
#else
#define PL_SQRT __builtin_sqrt
#endif

#define PL_LANES ((int)(32 / sizeof(real))) /* reals in one vec */
typedef real vec __attribute__((vector_size(32)));

PL_INLINE vec vload(const real *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

PL_INLINE void vstore(real *p, vec v) {
  memcpy(p, &v, sizeof v);
}

PL_INLINE vec vsplat(real x) {
  return x - (vec){0};
}

/* Sum of the lanes, always in the same order. */
PL_INLINE real vsum(vec v) {
  real s[PL_LANES];
  memcpy(s, &v, sizeof s);
  real t = 0;
  for (int i = 0; i < PL_LANES; i++) {
    t += s[i];
  }
  return t;
}

PL_INLINE int64_t imin(int64_t a, int64_t b) {
  return a < b ? a : b;
}

PL_INLINE int64_t imax(int64_t a, int64_t b) {
  return a > b ? a : b;
}

PL_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/* Dot product in a fixed order: four vectors of partial sums. */
PL_INLINE real vdot(int64_t n, const real *a, const real *b) {
  vec s0 = {0};
  vec s1 = {0};
  vec s2 = {0};
  vec s3 = {0};
  int64_t i = 0;
  for (; i + 4 * PL_LANES <= n; i += 4 * PL_LANES) {
    s0 += vload(a + i) * vload(b + i);
    s1 += vload(a + i + PL_LANES) * vload(b + i + PL_LANES);
    s2 += vload(a + i + 2 * PL_LANES) * vload(b + i + 2 * PL_LANES);
    s3 += vload(a + i + 3 * PL_LANES) * vload(b + i + 3 * PL_LANES);
  }
  for (; i + PL_LANES <= n; i += PL_LANES) {
    s0 += vload(a + i) * vload(b + i);
  }
  real s = vsum((s0 + s1) + (s2 + s3));
  for (; i < n; i++) {
    s += a[i] * b[i];
  }
  return s;
}

#endif
