/* Biases: added to rows, their gradient summed over rows; and the residual stream's
 * copy, which takes a bias along. */
#include "kernels/impl.h"

enum {
  GRAIN = 16384, /* elements in a block */
  COLS = 64      /* columns summed by one thread: two cache lines or more a row */
};

typedef struct bias_job {
  int64_t N, C, ld, rows;
  const real *x, *b;
  const act *g;
  act *y;
  real *out;
} bias_job;

PL_VARIANTS(void, add_block, (void *arg, int64_t block), (arg, block)) {
  const bias_job *j = arg;
  const int64_t end = imin(j->N, (block + 1) * j->rows);
  for (int64_t n = block * j->rows; n < end; n++) {
    act *restrict y = j->y + n * j->ld;
    for (int64_t c = 0; c < j->C; c++) {
      y[c] = act_of(act_real(y[c]) + j->b[c]);
    }
  }
}

void K(bias)(int64_t N, int64_t C, int64_t ld, const real *b, act *y) {
  bias_job j = {.N = N, .C = C, .ld = ld, .rows = imax(1, GRAIN / imax(1, C)), .b = b, .y = y};
  pl_parallel(ceil_div(N, j.rows), add_block, &j);
}

PL_VARIANTS(void, sum_block, (void *arg, int64_t block), (arg, block)) {
  const bias_job *j = arg;
  const int64_t c0 = block * COLS;
  const int64_t w = imin(COLS, j->C - c0);
  real sum[COLS] = {0};
  for (int64_t n = 0; n < j->N; n++) {
    const act *g = j->g + n * j->ld + c0;
    for (int64_t c = 0; c < w; c++) {
      sum[c] += act_real(g[c]);
    }
  }
  memcpy(j->out + c0, sum, (size_t)w * sizeof *sum);
}

void K(bias_back)(int64_t N, int64_t C, int64_t ld, const act *g, real *gb) {
  bias_job j = {.N = N, .C = C, .ld = ld, .g = g, .out = gb};
  pl_parallel(ceil_div(C, COLS), sum_block, &j);
}

PL_VARIANTS(void, residual_block, (void *arg, int64_t block), (arg, block)) {
  const bias_job *j = arg;
  const int64_t end = imin(j->N, (block + 1) * j->rows);
  for (int64_t n = block * j->rows; n < end; n++) {
    const real *restrict x = j->x + n * j->C;
    real *restrict y = j->out + n * j->C;
    if (j->b == NULL) {
      memcpy(y, x, (size_t)j->C * sizeof *x);
      continue;
    }
    for (int64_t c = 0; c < j->C; c++) {
      y[c] = x[c] + j->b[c];
    }
  }
}

void K(residual)(int64_t N, int64_t C, const real *x, const real *b, real *y) {
  bias_job j = {.N = N, .C = C, .rows = imax(1, GRAIN / imax(1, C)), .x = x, .b = b, .out = y};
  pl_parallel(ceil_div(N, j.rows), residual_block, &j);
}
