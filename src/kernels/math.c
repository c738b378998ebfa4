/* Vectorised exp, tanh, log; sums up a fixed tree; optimizer updates in one
 * pass over the weights. */
#include <math.h>

#include "kernels/impl.h"
#include "kernels/vmath.h"

enum {
  GRAIN = 16384,
  SUM_BLOCKS = 256 /* leaves of the tree at most */
};

typedef struct map_job {
  int64_t n;
  const real *x;
  real *y;
} map_job;

#define MAP(name, f)                                             \
  PL_VARIANTS(void, name##_block, (void *arg, int64_t block), (arg, block)) { \
    const map_job *j = arg;                                      \
    int64_t i0 = block * GRAIN;                                  \
    int64_t n = imin(GRAIN, j->n - i0);                          \
    const real *x = j->x + i0;                                   \
    real *y = j->y + i0;                                         \
    for (int64_t i = 0; i < n; i++) {                            \
      y[i] = f(x[i]);                                            \
    }                                                            \
  }                                                              \
  void K(name)(int64_t n, const real *x, real *y) {              \
    map_job j = {n, x, y};                                       \
    pl_parallel(ceil_div(n, GRAIN), name##_block, &j);           \
  }

MAP(exp, k_exp)
MAP(tanh, k_tanh)
MAP(log, k_log)

typedef struct sum_job {
  int64_t n, each;
  const real *x;
  bool square;
  double part[SUM_BLOCKS];
} sum_job;

PL_VARIANTS(void, sum_block, (void *arg, int64_t block), (arg, block)) {
  sum_job *j = arg;
  int64_t i0 = block * j->each;
  int64_t n = imin(j->each, j->n - i0);
  const real *x = j->x + i0;
  double s[16] = {0};
  int64_t i = 0;
  if (j->square) {
    for (; i + 16 <= n; i += 16) {
      for (int l = 0; l < 16; l++) {
        s[l] += (double)x[i + l] * (double)x[i + l];
      }
    }
  } else {
    for (; i + 16 <= n; i += 16) {
      for (int l = 0; l < 16; l++) {
        s[l] += (double)x[i + l];
      }
    }
  }
  for (int w = 8; w > 0; w /= 2) {
    for (int l = 0; l < w; l++) {
      s[l] += s[l + w];
    }
  }
  for (; i < n; i++) {
    s[0] += j->square ? (double)x[i] * (double)x[i] : (double)x[i];
  }
  j->part[block] = s[0];
}

static double sum(int64_t n, const real *x, bool square) {
  sum_job j = {.n = n, .each = imax(GRAIN, ceil_div(n, SUM_BLOCKS)), .x = x, .square = square};
  int64_t blocks = ceil_div(n, j.each);
  pl_parallel(blocks, sum_block, &j);
  double s = 0;
  for (int64_t b = 0; b < blocks; b++) {
    s += j.part[b];
  }
  return s;
}

double K(sum)(int64_t n, const real *x) {
  return sum(n, x, false);
}

double K(sumsq)(int64_t n, const real *x) {
  return sum(n, x, true);
}

/* One struct for the three optimizers: constants already in the working precision. */
typedef struct opt_job {
  int64_t n;
  real *w, *s1, *s2, *s3;
  const real *g;
  real gscale, lr, wd, a, b, eps, c1, c2;
  bool nesterov, first;
} opt_job;

/* w -= lr wd w;  m += (g - m)(1 - b1);  v = b2 v + (1 - b2) g^2;
 * w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps) */
PL_VARIANTS(void, adamw_block, (void *arg, int64_t block), (arg, block)) {
  const opt_job *j = arg;
  int64_t i0 = block * GRAIN;
  int64_t n = imin(GRAIN, j->n - i0);
  real *restrict w = j->w + i0;
  real *restrict m = j->s1 + i0;
  real *restrict v = j->s2 + i0;
  const real *restrict gr = j->g + i0;
  const real gscale = j->gscale;
  const real keep = 1 - j->wd;
  const real a = j->a;
  const real b = j->b;
  const real b_keep = j->lr; /* b2 */
  const real step = j->c1;
  const real root = j->c2;
  const real eps = j->eps;
  for (int64_t i = 0; i < n; i++) {
    real g = gr[i] * gscale;
    real mi = m[i] + (g - m[i]) * a;
    real vi = v[i] * b_keep + g * g * b;
    m[i] = mi;
    v[i] = vi;
    w[i] = w[i] * keep - step * mi / (PL_SQRT(vi) / root + eps);
  }
}

void K(adamw)(int64_t n, real *w, const real *g, real *m, real *v, double gscale, double lr,
              double b1, double b2, double eps, double wd, int64_t t) {
  opt_job j = {.n = n, .w = w, .g = g, .s1 = m, .s2 = v, .gscale = (real)gscale,
               .wd = (real)(lr * wd), .a = (real)(1 - b1), .b = (real)(1 - b2), .lr = (real)b2,
               .eps = (real)eps, .c1 = (real)(lr / (1 - pow(b1, (double)t))),
               .c2 = (real)sqrt(1 - pow(b2, (double)t))};
  pl_parallel(ceil_div(n, GRAIN), adamw_block, &j);
}

/* g += wd w;  sq = alpha sq + (1 - alpha) g^2;  d = sqrt(sq [- gavg^2]) + eps;
 * w -= lr g / d, through a momentum buffer where there is one */
PL_VARIANTS(void, rmsprop_block, (void *arg, int64_t block), (arg, block)) {
  const opt_job *j = arg;
  int64_t i0 = block * GRAIN;
  int64_t n = imin(GRAIN, j->n - i0);
  real *restrict w = j->w + i0;
  real *restrict sq = j->s1 + i0;
  real *restrict gavg = j->s2 ? j->s2 + i0 : NULL;
  real *restrict mom = j->s3 ? j->s3 + i0 : NULL;
  const real *restrict gr = j->g + i0;
  for (int64_t i = 0; i < n; i++) {
    real g = gr[i] * j->gscale + j->wd * w[i];
    real s = sq[i] * j->a + g * g * (1 - j->a);
    sq[i] = s;
    if (gavg) {
      real mean = gavg[i] + (g - gavg[i]) * (1 - j->a);
      gavg[i] = mean;
      s -= mean * mean;
    }
    real step = g / (PL_SQRT(s) + j->eps);
    if (mom) {
      step = mom[i] * j->b + step;
      mom[i] = step;
    }
    w[i] -= j->lr * step;
  }
}

void K(rmsprop)(int64_t n, real *w, const real *g, real *sq, real *gavg, real *mom, double gscale,
                double lr, double alpha, double eps, double wd, double momentum) {
  opt_job j = {.n = n, .w = w, .g = g, .s1 = sq, .s2 = gavg, .s3 = mom, .gscale = (real)gscale,
               .lr = (real)lr, .a = (real)alpha, .b = (real)momentum, .eps = (real)eps,
               .wd = (real)wd};
  pl_parallel(ceil_div(n, GRAIN), rmsprop_block, &j);
}

/* g += wd w;  buf = momentum buf + (1 - dampening) g (the first time buf = g);
 * g = nesterov ? g + momentum buf : buf;  w -= lr g */
PL_VARIANTS(void, sgd_block, (void *arg, int64_t block), (arg, block)) {
  const opt_job *j = arg;
  int64_t i0 = block * GRAIN;
  int64_t n = imin(GRAIN, j->n - i0);
  real *restrict w = j->w + i0;
  real *restrict mom = j->s1 ? j->s1 + i0 : NULL;
  const real *restrict gr = j->g + i0;
  for (int64_t i = 0; i < n; i++) {
    real g = gr[i] * j->gscale + j->wd * w[i];
    if (mom) {
      real buf = j->first ? g : mom[i] * j->a + g * j->b;
      mom[i] = buf;
      g = j->nesterov ? g + j->a * buf : buf;
    }
    w[i] -= j->lr * g;
  }
}

void K(sgd)(int64_t n, real *w, const real *g, real *mom, double gscale, double lr,
            double momentum, double dampening, double wd, bool nesterov, bool first) {
  opt_job j = {.n = n, .w = w, .g = g, .s1 = mom, .gscale = (real)gscale, .lr = (real)lr,
               .a = (real)momentum, .b = (real)(1 - dampening), .wd = (real)wd,
               .nesterov = nesterov, .first = first};
  pl_parallel(ceil_div(n, GRAIN), sgd_block, &j);
}
