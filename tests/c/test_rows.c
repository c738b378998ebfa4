/* The row kernels of a decoder in all three builds (norms, rotation, activation functions,
 * biases) against plain loops in double, for every instruction set: random shapes and rows
 * with gaps, gradients added and set, parts that are not wanted; the same bits on any number
 * of threads. */
#include "each_isa.h"
#include "harness.h"

#include "base/par.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref.h"

enum { GAP = 3 };

static const double EPS = 1e-5;

static void *memory(size_t bytes) {
  void *p = pl_alloc_zero(&harness.ctx, bytes + 1);
  if (!p) {
    abort();
  }
  return p;
}

static void release(void *p) {
  pl_free(&harness.ctx, p);
}

static double value(int what, int64_t i) {
  return 4 * pl_uniform(5, (uint64_t)what, (uint64_t)i) - 2;
}

/* 1..most, small ones more often */
static int64_t size_of(int round, int what, int64_t most) {
  const double u = pl_uniform(6, (uint64_t)round, (uint64_t)what);
  return 1 + (int64_t)(u * u * (double)most);
}

/* LayerNorm of one row, RMSNorm where b is NULL and mean is 0 by request; and the gradients. */
typedef struct norm_row {
  double mean, rstd;
} norm_row;

static norm_row norm_of(bool layer, int64_t C, const double *x) {
  norm_row r = {0, 0};
  for (int64_t c = 0; c < C && layer; c++) {
    r.mean += x[c] / (double)C;
  }
  double s = 0;
  for (int64_t c = 0; c < C; c++) {
    s += (x[c] - r.mean) * (x[c] - r.mean);
  }
  r.rstd = 1 / sqrt(s / (double)C + EPS);
  return r;
}

/* y = h w + b with h = (x - mean) rstd; gh = gy w; gx = rstd (gh - mean(gh) - h mean(gh h)) */
static void norm_twin(bool layer, int64_t N, int64_t C, const double *x, const double *w,
                      const double *b, const double *gy, double *y, double *gx, double *gw,
                      double *gb) {
  for (int64_t n = 0; n < N; n++) {
    const norm_row r = norm_of(layer, C, x + n * C);
    double m = 0;
    double mh = 0;
    for (int64_t c = 0; c < C; c++) {
      const int64_t i = n * C + c;
      const double h = (x[i] - r.mean) * r.rstd;
      y[i] = h * w[c] + (b ? b[c] : 0);
      gw[c] += gy[i] * h;
      gb[c] += gy[i];
      m += layer ? gy[i] * w[c] / (double)C : 0;
      mh += gy[i] * w[c] * h / (double)C;
    }
    for (int64_t c = 0; c < C; c++) {
      const int64_t i = n * C + c;
      gx[i] += r.rstd * (gy[i] * w[c] - m - (x[i] - r.mean) * r.rstd * mh);
    }
  }
}

static double gelu(double x) {
  return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x) {
  const double root = sqrt(2 / acos(-1));
  const double t = tanh(root * (x + 0.044715 * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x);
}

#define TEST_OF(title) TEST_EACH_ISA(title) /* expands its argument first */
#define TEST_ONE(title) TEST(title)

#define T float
#define A float
#define N_(name) name##_f32
#define OF(x) ((float)(x))
#define BACK(x) ((double)(x))
#define TOL 2e-6
#define REAL_TOL 2e-6
#include "test_rows_body.h"

#define T double
#define A double
#define N_(name) name##_f64
#define OF(x) (x)
#define BACK(x) (x)
#define TOL 1e-13
#define REAL_TOL 1e-13
#include "test_rows_body.h"

/* activations are rounded once: half of the last of 8 bits, which is up to 1 in 256 */
#define T float
#define A pl_bf16
#define N_(name) name##_bf16
#define OF(x) pl_bf16_of((float)(x))
#define BACK(x) ((double)pl_bf16_float(x))
#define TOL 0.004
#define REAL_TOL 2e-6
#include "test_rows_body.h"
