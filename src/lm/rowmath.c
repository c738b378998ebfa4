/* Row kernels: see rowmath.h. */
#define PL_REAL float
#define PL_SUFFIX f32
#include "lm/rowmath.h"

#include <math.h>
#include <string.h>

#include "kernels/isa.h"
#include "kernels/vmath.h"
#include "lm/v16.h"

PL_VARIANTS(void, norm_one, (int64_t C, const float *x, const float *w, double eps, float *y),
            (C, x, w, eps, y)) {
  v16 s = {0};
  int64_t i = 0;
  for (; i + LANES_16 <= C; i += LANES_16) {
    const v16 v = load16(x + i);
    s += v * v;
  }
  double sum = 0;
  for (; i < C; i++) {
    sum += (double)x[i] * x[i];
  }
  for (int l = 0; l < LANES_16; l++) {
    sum += s[l];
  }
  const float r = (float)(1 / sqrt(sum / (double)C + eps));
  for (i = 0; i < C; i++) {
    y[i] = x[i] * r * w[i];
  }
}

void pl_row_norm(int64_t C, const float *x, const float *w, double eps, float *y) {
  norm_one(C, x, w, eps, y);
}

PL_VARIANTS(void, layer_norm,
            (int64_t C, const float *x, const float *w, const float *b, double eps, float *y),
            (C, x, w, b, eps, y)) {
  double lane[LANES_16] = {0};
  for (int64_t i = 0; i < C; i++) {
    lane[i % LANES_16] += x[i];
  }
  double mean = 0;
  for (int l = 0; l < LANES_16; l++) {
    mean += lane[l] / (double)C;
    lane[l] = 0;
  }
  for (int64_t i = 0; i < C; i++) {
    const double d = x[i] - mean;
    lane[i % LANES_16] += d * d;
  }
  double sum = 0;
  for (int l = 0; l < LANES_16; l++) {
    sum += lane[l];
  }
  const float r = (float)(1 / sqrt(sum / (double)C + eps));
  const float m = (float)mean;
  for (int64_t i = 0; i < C; i++) {
    y[i] = (x[i] - m) * r * w[i] + b[i];
  }
}

void pl_row_layer_norm(int64_t C, const float *x, const float *w, const float *b, double eps,
                       float *y) {
  layer_norm(C, x, w, b, eps, y);
}

PL_VARIANTS(void, gelu, (int64_t n, const float *u, float *h), (n, u, h)) {
  for (int64_t i = 0; i < n; i++) { /* (1 + tanh z) / 2 is the sigmoid of 2 z */
    const float x = u[i];
    h[i] = x * k_sigmoid(1.5957691216F * (x + 0.044715F * x * x * x));
  }
}

void pl_row_gelu(int64_t n, const float *u, float *h) {
  gelu(n, u, h);
}

PL_VARIANTS(void, silu_mul, (int64_t n, const float *gu, float *h), (n, gu, h)) {
  for (int64_t p = 0; p < n; p++) {
    for (int i = 0; i < LANES_16; i++) {
      const float a = gu[2 * LANES_16 * p + i];
      h[LANES_16 * p + i] = a * k_sigmoid(a) * gu[2 * LANES_16 * p + LANES_16 + i];
    }
  }
}

void pl_row_silu_mul(int64_t n, const float *gu, float *h) {
  silu_mul(n, gu, h);
}

PL_VARIANTS(void, rope, (int64_t H, int64_t D, float *x, const float *cs), (H, D, x, cs)) {
  const int64_t half = D / 2;
  for (int64_t h = 0; h < H; h++) {
    float *p = x + h * D;
    for (int64_t i = 0; i < half; i++) {
      const float a = p[i];
      const float b = p[half + i];
      p[i] = a * cs[i] - b * cs[half + i];
      p[half + i] = b * cs[i] + a * cs[half + i];
    }
  }
}

void pl_row_rope(int64_t H, int64_t D, float *x, const float *cs) {
  rope(H, D, x, cs);
}
