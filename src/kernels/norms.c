/* RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016), with their gradients.
 * Each row is computed by one thread in one order. */
#include "kernels/impl.h"

enum {
  GRAIN = 16384,   /* elements in a block: about 10 microseconds of work */
  NORM_BLOCKS = 64 /* at most this many partial sums of gw and gb */
};

static int64_t rows_per_block(int64_t C) {
  return imax(1, GRAIN / imax(1, C));
}

typedef struct norm_job {
  int64_t N, C, rows;
  const real *x, *w, *b, *gy;
  const real *mean_in, *rstd_in;
  real eps;
  act *y;
  real *mean, *rstd, *gx, *part; /* part: partial sums of gw, then of gb where there is a mean */
  bool add;
} norm_job;

PL_VARIANTS(void, rms_block, (void *arg, int64_t b), (arg, b)) {
  const norm_job *j = arg;
  const int64_t C = j->C;
  const int64_t end = imin(j->N, (b + 1) * j->rows);
  for (int64_t n = b * j->rows; n < end; n++) {
    const real *restrict x = j->x + n * C;
    act *restrict y = j->y + n * C;
    const real *restrict w = j->w;
    const real r = 1 / PL_SQRT(vdot(C, x, x) / (real)C + j->eps);
    j->rstd[n] = r;
    for (int64_t c = 0; c < C; c++) {
      y[c] = act_of(x[c] * r * w[c]);
    }
  }
}

void K(rms_norm)(int64_t N, int64_t C, const real *x, const real *w, real eps, act *y, real *rstd) {
  norm_job j = {.N = N, .C = C, .rows = rows_per_block(C), .x = x, .w = w, .eps = eps, .y = y,
                .rstd = rstd};
  pl_parallel(ceil_div(N, j.rows), rms_block, &j);
}

PL_INLINE real spread(int64_t C, const real *x, real m) {
  vec s0 = {0};
  vec s1 = {0};
  int64_t c = 0;
  for (; c + 2 * PL_LANES <= C; c += 2 * PL_LANES) {
    const vec a = vload(x + c) - m;
    const vec b = vload(x + c + PL_LANES) - m;
    s0 += a * a;
    s1 += b * b;
  }
  real s = vsum(s0 + s1);
  for (; c < C; c++) {
    s += (x[c] - m) * (x[c] - m);
  }
  return s;
}

PL_INLINE real total(int64_t C, const real *x) {
  vec s0 = {0};
  vec s1 = {0};
  int64_t c = 0;
  for (; c + 2 * PL_LANES <= C; c += 2 * PL_LANES) {
    s0 += vload(x + c);
    s1 += vload(x + c + PL_LANES);
  }
  real s = vsum(s0 + s1);
  for (; c < C; c++) {
    s += x[c];
  }
  return s;
}

PL_VARIANTS(void, layer_block, (void *arg, int64_t b), (arg, b)) {
  const norm_job *j = arg;
  const int64_t C = j->C;
  const int64_t end = imin(j->N, (b + 1) * j->rows);
  for (int64_t n = b * j->rows; n < end; n++) {
    const real *restrict x = j->x + n * C;
    act *restrict y = j->y + n * C;
    const real *restrict w = j->w;
    const real m = total(C, x) / (real)C;
    const real r = 1 / PL_SQRT(spread(C, x, m) / (real)C + j->eps);
    j->mean[n] = m;
    j->rstd[n] = r;
    for (int64_t c = 0; j->b != NULL && c < C; c++) {
      y[c] = act_of((x[c] - m) * r * w[c] + j->b[c]);
    }
    for (int64_t c = 0; j->b == NULL && c < C; c++) {
      y[c] = act_of((x[c] - m) * r * w[c]);
    }
  }
}

void K(layer_norm)(int64_t N, int64_t C, const real *x, const real *w, const real *b, real eps,
                   act *y, real *mean, real *rstd) {
  norm_job j = {.N = N, .C = C, .rows = rows_per_block(C), .x = x, .w = w, .b = b, .eps = eps,
                .y = y, .mean = mean, .rstd = rstd};
  pl_parallel(ceil_div(N, j.rows), layer_block, &j);
}

/* The two sums over a row that the gradient wants: of w gy, and of w gy (x - m). */
PL_INLINE void sums(int64_t C, const real *x, const real *w, const real *gy, real m, real *u,
                    real *ux) {
  vec s = {0};
  vec t = {0};
  int64_t c = 0;
  for (; c + PL_LANES <= C; c += PL_LANES) {
    const vec g = vload(w + c) * vload(gy + c);
    s += g;
    t += g * (vload(x + c) - m);
  }
  *u = vsum(s);
  *ux = vsum(t);
  for (; c < C; c++) {
    *u += w[c] * gy[c];
    *ux += w[c] * gy[c] * (x[c] - m);
  }
}

/* With u = w gy and h = x - mean (mean 0 for RMSNorm):
 *   gx = r u - h r^3/C sum(u h) [- r/C sum(u)],  gw = sum_n gy h r,  gb = sum_n gy. */
PL_VARIANTS(void, back_block, (void *arg, int64_t b), (arg, b)) {
  const norm_job *j = arg;
  const int64_t C = j->C;
  const bool layer = j->mean_in != NULL;
  const real *restrict w = j->w;
  real *restrict part = j->part != NULL ? j->part + b * (layer ? 2 * C : C) : NULL;
  if (part != NULL) {
    memset(part, 0, (size_t)(layer ? 2 * C : C) * sizeof(real));
  }
  const int64_t end = imin(j->N, (b + 1) * j->rows);
  for (int64_t n = b * j->rows; n < end; n++) {
    const real *restrict x = j->x + n * C;
    const real *restrict gy = j->gy + n * C;
    const real m = layer ? j->mean_in[n] : 0;
    const real r = j->rstd_in[n];
    if (j->gx != NULL) {
      real *restrict gx = j->gx + n * C;
      real u;
      real ux;
      sums(C, x, w, gy, m, &u, &ux);
      const real f = ux * r * r * r / (real)C;
      const real e = layer ? u * r / (real)C : 0;
      for (int64_t c = 0; !j->add && c < C; c++) {
        gx[c] = r * w[c] * gy[c] - f * (x[c] - m) - e;
      }
      for (int64_t c = 0; j->add && c < C; c++) {
        gx[c] += r * w[c] * gy[c] - f * (x[c] - m) - e;
      }
    }
    for (int64_t c = 0; part != NULL && c < C; c++) {
      part[c] += gy[c] * (x[c] - m) * r;
    }
    for (int64_t c = 0; part != NULL && layer && c < C; c++) {
      part[C + c] += gy[c];
    }
  }
}

static int64_t back_rows(int64_t N, int64_t C) {
  return imax(rows_per_block(C), ceil_div(N, NORM_BLOCKS));
}

int64_t K(norm_back_scratch)(int64_t N, int64_t C) {
  return ceil_div(N, back_rows(N, C)) * 2 * C;
}

static void back(norm_job *j, real *gw, real *gb) {
  const int64_t C = j->C;
  const int64_t blocks = ceil_div(j->N, j->rows);
  const int64_t width = j->mean_in != NULL ? 2 * C : C;
  pl_parallel(blocks, back_block, j);
  for (int64_t b = 0; b < blocks && j->part != NULL; b++) {
    const real *part = j->part + b * width;
    for (int64_t c = 0; gw != NULL && c < C; c++) {
      gw[c] += part[c];
    }
    for (int64_t c = 0; gb != NULL && c < C; c++) {
      gb[c] += part[C + c];
    }
  }
}

void K(rms_norm_back)(int64_t N, int64_t C, const real *x, const real *w, const real *rstd,
                      const real *gy, bool add, real *gx, real *gw, real *scratch) {
  norm_job j = {.N = N, .C = C, .rows = back_rows(N, C), .x = x, .w = w, .gy = gy,
                .rstd_in = rstd, .gx = gx, .add = add, .part = gw != NULL ? scratch : NULL};
  back(&j, gw, NULL);
}

void K(layer_norm_back)(int64_t N, int64_t C, const real *x, const real *w, const real *mean,
                        const real *rstd, const real *gy, bool add, real *gx, real *gw, real *gb,
                        real *scratch) {
  norm_job j = {.N = N, .C = C, .rows = back_rows(N, C), .x = x, .w = w, .gy = gy,
                .mean_in = mean, .rstd_in = rstd, .gx = gx, .add = add,
                .part = gw != NULL || gb != NULL ? scratch : NULL};
  back(&j, gw, gb);
}
