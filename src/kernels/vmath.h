/* exp, tanh, log, sigmoid as straight-line code that the compiler turns into
 * vector loops: no branches, no tables, no calls. Cody and Waite's reduction
 * with Cephes' polynomials (Moshier 1989). float: within 2 ulp, right at zeros,
 * infinities, NaN and subnormals. double: libm's, for it serves the checks. */
#ifndef PL_KERNELS_VMATH_H
#define PL_KERNELS_VMATH_H
#include <math.h>

#include "kernels/impl.h"

#if PL_IS_FLOAT

PL_INLINE float from_bits(int32_t i) {
  float f;
  memcpy(&f, &i, sizeof f);
  return f;
}

PL_INLINE int32_t to_bits(float f) {
  int32_t i;
  memcpy(&i, &f, sizeof i);
  return i;
}

/* 2^n for a normal result; any n gives some number (for NaN it is garbage that is not used) */
PL_INLINE float power_of_two(int32_t n) {
  return from_bits((int32_t)((uint32_t)(n + 127) << 23));
}

PL_INLINE float k_exp(float x0) {
  /* Beyond these the result is inf or 0 in any case; NaN passes through. */
  float x = x0 > 89.0F ? 89.0F : x0;
  x = x < -104.0F ? -104.0F : x;
  const float magic = 12582912.0F; /* 1.5 * 2^23: adding it rounds to an integer */
  float shifted = x * 1.44269504088896341F + magic;
  int32_t n = to_bits(shifted) - to_bits(magic);
  float fn = shifted - magic;
  float r = x - fn * 0.693359375F;
  r = r - fn * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  /* 2^n in two factors, so that subnormal results come out right */
  int32_t h = n >> 1;
  return p * power_of_two(h) * power_of_two(n - h);
}

/* exp of what is not above 0, half as many steps: within 3 ulp; below -87 about 1e-38. */
PL_INLINE float k_exp_below(float x0) {
  const float x = x0 < -87.0F ? -87.0F : x0;
  const float magic = 12582912.0F;
  const float shifted = x * 1.44269504088896341F + magic;
  const float r = x * 1.44269504088896341F - (shifted - magic); /* one rounding where it is fused */
  float p = 1.535336188319500e-4F;
  p = p * r + 1.339887440266574e-3F;
  p = p * r + 9.618437357674640e-3F;
  p = p * r + 5.550332471162809e-2F;
  p = p * r + 2.402264791363012e-1F;
  p = p * r + 6.931472028550421e-1F;
  p = p * r + 1.0F;
  return p * power_of_two(to_bits(shifted) - to_bits(magic));
}

PL_INLINE float k_tanh(float x) {
  float a = x < 0.0F ? -x : x;
  float e = k_exp(a > 20.0F ? 40.0F : 2.0F * a);
  float big = 1.0F - 2.0F / (e + 1.0F);
  big = x < 0.0F ? -big : big;
  float z = x * x;
  float p = -5.70498872745e-3F;
  p = p * z + 2.06390887954e-2F;
  p = p * z - 5.37397155531e-2F;
  p = p * z + 1.33314422036e-1F;
  p = p * z - 3.33332819422e-1F;
  float small = p * z * x + x;
  float y = a > 0.625F ? big : small;
  return x != x ? x : y;
}

PL_INLINE float k_log(float x) {
  bool tiny = x < 1.17549435e-38F; /* subnormal: scale into the normal range */
  float s = tiny ? x * 8388608.0F : x;
  int32_t i = to_bits(s);
  int32_t e = ((i >> 23) & 255) - 126 - (tiny ? 23 : 0);
  float m = from_bits((i & 0x007fffff) | 0x3f000000); /* [0.5, 1) */
  bool low = m < 0.707106781186547524F;
  float fe = (float)(low ? e - 1 : e);
  m = (low ? m + m : m) - 1.0F;
  float z = m * m;
  float p = 7.0376836292e-2F;
  p = p * m - 1.1514610310e-1F;
  p = p * m + 1.1676998740e-1F;
  p = p * m - 1.2420140846e-1F;
  p = p * m + 1.4249322787e-1F;
  p = p * m - 1.6668057665e-1F;
  p = p * m + 2.0000714765e-1F;
  p = p * m - 2.4999993993e-1F;
  p = p * m + 3.3333331174e-1F;
  float y = m * z * p;
  y = y - 2.12194440e-4F * fe;
  y = y - 0.5F * z;
  float r = m + y + 0.693359375F * fe;
  r = x > 3.4e38F && x - x != 0.0F ? x : r;  /* inf */
  r = x == 0.0F ? -INFINITY : r;
  r = x < 0.0F ? NAN : r;
  return x != x ? x : r;
}

#else

PL_INLINE double k_exp(double x) {
  return exp(x);
}

PL_INLINE double k_exp_below(double x) {
  return exp(x);
}

PL_INLINE double k_tanh(double x) {
  return tanh(x);
}

PL_INLINE double k_log(double x) {
  return log(x);
}

#endif

PL_INLINE real k_sigmoid(real x) {
  return 1 / (1 + k_exp(-x));
}

#endif
