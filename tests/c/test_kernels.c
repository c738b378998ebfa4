/* Every kernel, float and double, against its slow twin over shapes that are
 * odd on purpose, for every instruction set that the processor has; the same bits
 * on any number of threads; exp, tanh and log at the edges of their range. The
 * checks are written once (test_kernels_body.h) and included for both types. */
#include "each_isa.h"
#include "harness.h"

#include <float.h>

#include "base/par.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref.h"

/* Uniform in [-1, 1), a function of what and i. */
static double value(int what, int64_t i) {
  return 2 * pl_uniform(7, (uint64_t)what, (uint64_t)i) - 1;
}

static void *memory(size_t bytes) {
  void *p = pl_alloc(&harness.ctx, bytes ? bytes : 1);
  if (!p) {
    abort();
  }
  return p;
}

static void release(void *p) {
  pl_free(&harness.ctx, p);
}

static double *doubles(int64_t n, int what) {
  double *x = memory((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) {
    x[i] = value(what, i);
  }
  return x;
}

/* expands its argument before TEST_EACH_ISA pastes it */
#define TEST_OF(title) TEST_EACH_ISA(title)

#define T float
#define N(name) name##_f32
#define TOL 2e-5
#include "test_kernels_body.h"
#undef T
#undef N
#undef TOL

#define T double
#define N(name) name##_f64
#define TOL 1e-12
#include "test_kernels_body.h"
#undef T
#undef N
#undef TOL

/* Distance in units in the last place; two NaNs agree, and signs must. */
static double ulps(float got, double want) {
  if (isnan(want)) {
    return isnan(got) ? 0 : 1e9;
  }
  float w = (float)want;
  if (isinf(w) || w == 0 || isinf(got)) {
    return got == w && signbit(got) == signbit(w) ? 0 : fabs((double)got - want) / 1.4e-45;
  }
  double unit = fmax(nextafterf(fabsf(w), INFINITY) - (double)fabsf(w), 1.4e-45);
  return fabs((double)got - want) / unit;
}

typedef void (*map_fn)(int64_t n, const float *x, float *y);

/* Worst over floats from lo to hi, by bit pattern. */
static double worst_ulps(map_fn f, double (*truth)(double), float lo, float hi, float *at) {
  enum { COUNT = 200000 };
  float *x = memory(COUNT * sizeof *x);
  float *y = memory(COUNT * sizeof *y);
  for (int i = 0; i < COUNT; i++) {
    x[i] = lo + (hi - lo) * (float)pl_uniform(1, 2, (uint64_t)i);
  }
  f(COUNT, x, y);
  double worst = 0;
  for (int i = 0; i < COUNT; i++) {
    double u = ulps(y[i], truth((double)x[i]));
    if (u > worst) {
      worst = u;
      *at = x[i];
    }
  }
  release(x);
  release(y);
  return worst;
}

#define CHECK_ULPS(f, truth, lo, hi, most)                                            \
  do {                                                                                \
    float at = 0;                                                                     \
    double u = worst_ulps(f, truth, lo, hi, &at);                                     \
    if (!(u <= (most))) {                                                             \
      FAIL("%s on [%g, %g]: %.2f ulp at %.9g", #f, (double)(lo), (double)(hi), u, (double)at); \
    }                                                                                 \
  } while (0)

TEST_EACH_ISA(exp_is_within_two_ulp) {
  CHECK_ULPS(pl_exp_f32, exp, -1, 1, 2);
  CHECK_ULPS(pl_exp_f32, exp, -87, 88.7F, 2);
  CHECK_ULPS(pl_exp_f32, exp, -104, -87, 1.01); /* subnormal results */
}

TEST_EACH_ISA(tanh_is_within_two_ulp) {
  CHECK_ULPS(pl_tanh_f32, tanh, -1, 1, 2);
  CHECK_ULPS(pl_tanh_f32, tanh, -0.01F, 0.01F, 2);
  CHECK_ULPS(pl_tanh_f32, tanh, -20, 20, 2);
}

TEST_EACH_ISA(log_is_within_two_ulp) {
  CHECK_ULPS(pl_log_f32, log, 0.5F, 2, 2);
  CHECK_ULPS(pl_log_f32, log, 0, 1e-38F, 2);
  CHECK_ULPS(pl_log_f32, log, 0, 1e30F, 2);
}

TEST_EACH_ISA(functions_at_the_edges) {
  /* 20 of each, so that vector and tail code both see them */
  const float x[] = {0.0F, -0.0F, INFINITY, -INFINITY, NAN, 88.9F, 1000, -103.9F, -104.1F, -1e30F,
                     FLT_MAX, -FLT_MAX, FLT_MIN, 1e-45F, -1e-45F, 1, -1, 1e-20F, -1e-20F};
  enum { COUNT = 20 };
  for (size_t k = 0; k < sizeof x / sizeof *x; k++) {
    float in[COUNT];
    float out[3][COUNT];
    for (int i = 0; i < COUNT; i++) {
      in[i] = x[k];
    }
    pl_exp_f32(COUNT, in, out[0]);
    pl_tanh_f32(COUNT, in, out[1]);
    pl_log_f32(COUNT, in, out[2]);
    for (int i = 0; i < COUNT; i += COUNT - 1) {
      double u[3] = {ulps(out[0][i], exp((double)x[k])), ulps(out[1][i], tanh((double)x[k])),
                     ulps(out[2][i], log((double)x[k]))};
      for (int f = 0; f < 3; f++) {
        if (!(u[f] <= 2)) {
          FAIL("function %d at %g: got %g", f, (double)x[k], (double)out[f][i]);
        }
      }
    }
  }
}

TEST_EACH_ISA(rope_is_accurate_at_far_positions) {
  enum { D = 64, COUNT = 64 };
  float x[COUNT * D];
  float y[COUNT * D];
  double xd[COUNT * D];
  double yd[COUNT * D];
  int32_t pos[COUNT];
  for (int i = 0; i < COUNT; i++) {
    pos[i] = i < 8 ? 100000 + i : (int32_t)(1e5 * (value(3, i) + 1) / 2);
  }
  for (int i = 0; i < COUNT * D; i++) {
    x[i] = (float)value(1, i);
    xd[i] = (double)x[i];
  }
  pl_rope_f32(COUNT, 1, D, D, x, pos, 10000, false, y);
  pl_ref_rope(COUNT, 1, D, xd, pos, 10000, false, yd);
  for (int i = 0; i < COUNT * D; i++) {
    if (!(fabs((double)y[i] - yd[i]) < 3e-7)) {
      FAIL("row %d: %.9g, wanted %.9g", i / D, (double)y[i], yd[i]);
    }
  }
}
