/* Rows of a table by index, and the sum of gradients into them. */
#include "kernels/impl.h"

enum { GRAIN = 16384 }; /* elements in a block: about 10 microseconds of work */

typedef struct embed_job {
  int64_t N, C, rows;
  const real *w, *gy;
  const int32_t *ids;
  real *y, *gw;
} embed_job;

static void embed_block(void *arg, int64_t block) {
  const embed_job *j = arg;
  int64_t end = imin(j->N, (block + 1) * j->rows);
  for (int64_t n = block * j->rows; n < end; n++) {
    memcpy(j->y + n * j->C, j->w + (int64_t)j->ids[n] * j->C, (size_t)j->C * sizeof(real));
  }
}

void K(embedding)(int64_t N, int64_t C, const real *w, const int32_t *ids, real *y) {
  embed_job j = {.N = N, .C = C, .rows = imax(1, GRAIN / imax(1, C)), .w = w, .ids = ids, .y = y};
  pl_parallel(ceil_div(N, j.rows), embed_block, &j);
}

/* A block owns a range of columns and walks all rows in order. */
PL_VARIANTS(void, embed_back_block, (void *arg, int64_t block), (arg, block)) {
  const embed_job *j = arg;
  int64_t c0 = block * j->rows;
  int64_t c1 = imin(j->C, c0 + j->rows);
  for (int64_t n = 0; n < j->N; n++) {
    real *restrict to = j->gw + (int64_t)j->ids[n] * j->C;
    const real *restrict from = j->gy + n * j->C;
    for (int64_t c = c0; c < c1; c++) {
      to[c] += from[c];
    }
  }
}

void K(embedding_back)(int64_t N, int64_t C, int64_t V, const int32_t *ids, const real *gy,
                       real *gw) {
  (void)V;
  embed_job j = {.N = N, .C = C, .rows = 64, .ids = ids, .gy = gy, .gw = gw};
  pl_parallel(ceil_div(C, j.rows), embed_back_block, &j);
}
