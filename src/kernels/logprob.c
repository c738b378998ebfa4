/* The token log-probability: log softmax(h[rows] w^T)[ids] with logits for one
 * chunk of rows at a time. The gradient takes the logits that the caller kept, or
 * computes the chunk's again where they would cost too much memory. */
#include <math.h>

#include "kernels/impl.h"
#include "kernels/vmath.h"

enum {
  CHUNK_MAX = 1024,          /* rows */
  CHUNK_MIN = 32,
  CHUNK_LOGITS = 8 << 20     /* logits in a chunk: 32 MiB of floats */
};

static int64_t chunk_rows(int64_t M, int64_t V, bool keep) {
  if (keep) { /* the memory is spent: all rows at once copy the weights least often */
    return imax(1, M);
  }
  int64_t r = CHUNK_LOGITS / imax(1, V);
  r = imax(CHUNK_MIN, imin(CHUNK_MAX, r));
  /* equal chunks: 1100 rows are two of 550, not 1024 and 76 */
  return M <= r ? imax(1, M) : ceil_div(M, ceil_div(M, r));
}

int64_t K(token_logprob_scratch)(int64_t M, int64_t C, int64_t V, bool keep) {
  return chunk_rows(M, V, keep) * ((keep ? 0 : V) + 2 * C);
}

typedef struct head_job {
  int64_t r, C, V; /* rows of this chunk */
  const real *h;
  const int32_t *rows, *ids;
  real *hc, *logits; /* [r,C], [r,V] */
  real *out, *lse;
  const real *lse_in, *gout;
} head_job;

static void gather_row(void *arg, int64_t i) {
  const head_job *j = arg;
  memcpy(j->hc + i * j->C, j->h + (int64_t)j->rows[i] * j->C, (size_t)j->C * sizeof(real));
}

PL_VARIANTS(void, forward_row, (void *arg, int64_t i), (arg, i)) {
  const head_job *j = arg;
  const real *restrict l = j->logits + i * j->V;
  int64_t V = j->V;
  real lane[16];
  for (int k = 0; k < 16; k++) {
    lane[k] = l[0];
  }
  int64_t v = 0;
  for (; v + 16 <= V; v += 16) {
    for (int k = 0; k < 16; k++) {
      lane[k] = l[v + k] > lane[k] ? l[v + k] : lane[k];
    }
  }
  real top = lane[0];
  for (int k = 1; k < 16; k++) {
    top = lane[k] > top ? lane[k] : top;
  }
  for (; v < V; v++) {
    top = l[v] > top ? l[v] : top;
  }
  real sum[16] = {0};
  for (v = 0; v + 16 <= V; v += 16) {
    for (int k = 0; k < 16; k++) {
      sum[k] += k_exp(l[v + k] - top);
    }
  }
  real s = 0;
  for (; v < V; v++) {
    s += k_exp(l[v] - top);
  }
  for (int w = 8; w > 0; w /= 2) {
    for (int k = 0; k < w; k++) {
      sum[k] += sum[k + w];
    }
  }
  real lse = top + (real)log((double)(s + sum[0]));
  j->lse[i] = lse;
  j->out[i] = l[j->ids[i]] - lse;
}

/* Logits become their gradient: gout * (onehot - softmax). */
PL_VARIANTS(void, backward_row, (void *arg, int64_t i), (arg, i)) {
  const head_job *j = arg;
  real *restrict l = j->logits + i * j->V;
  real g = j->gout[i];
  real lse = j->lse_in[i];
  for (int64_t v = 0; v < j->V; v++) {
    l[v] = -g * k_exp(l[v] - lse);
  }
  l[j->ids[i]] += g;
}

/* The chunk's rows of h, gathered where they are picked. */
static const real *chunk_rows_of_h(const head_job *j) {
  if (!j->rows) {
    return j->h;
  }
  pl_parallel(j->r, gather_row, (void *)j);
  return j->hc;
}

static void chunk_logits(const head_job *j, const real *x, const real *w) {
  K(gemm)(false, true, j->r, j->V, j->C, 1, x, j->C, w, j->C, 0, j->logits, j->V);
}

void K(token_logprob)(int64_t M, int64_t C, int64_t V, const real *h, const int32_t *rows,
                      const real *w, const int32_t *ids, real *out, real *lse, real *kept,
                      real *scratch) {
  int64_t R = chunk_rows(M, V, kept != NULL);
  for (int64_t m = 0; m < M; m += R) {
    head_job j = {.r = imin(R, M - m), .C = C, .V = V, .h = rows ? h : h + m * C,
                  .rows = rows ? rows + m : NULL, .ids = ids + m,
                  .logits = kept ? kept + m * V : scratch, .hc = kept ? scratch : scratch + R * V,
                  .out = out + m, .lse = lse + m};
    chunk_logits(&j, chunk_rows_of_h(&j), w);
    pl_parallel(j.r, forward_row, &j);
  }
}

typedef struct scatter_job {
  int64_t r, C, cols;
  const int32_t *rows;
  const real *from;
  real *to;
} scatter_job;

/* A block owns a range of columns: rows may repeat and are added in order. */
static void scatter_block(void *arg, int64_t b) {
  const scatter_job *j = arg;
  int64_t c0 = b * j->cols;
  int64_t c1 = imin(j->C, c0 + j->cols);
  for (int64_t i = 0; i < j->r; i++) {
    real *restrict to = j->to + (int64_t)j->rows[i] * j->C;
    const real *restrict from = j->from + i * j->C;
    for (int64_t c = c0; c < c1; c++) {
      to[c] += from[c];
    }
  }
}

void K(token_logprob_back)(int64_t M, int64_t C, int64_t V, const real *h, const int32_t *rows,
                           const real *w, const int32_t *ids, const real *lse, const real *gout,
                           real *gh, real *gw, real *kept, real *scratch) {
  int64_t R = chunk_rows(M, V, kept != NULL);
  for (int64_t m = 0; m < M; m += R) {
    head_job j = {.r = imin(R, M - m), .C = C, .V = V, .h = rows ? h : h + m * C,
                  .rows = rows ? rows + m : NULL, .ids = ids + m,
                  .logits = kept ? kept + m * V : scratch, .hc = kept ? scratch : scratch + R * V,
                  .lse_in = lse + m, .gout = gout + m};
    const real *x = chunk_rows_of_h(&j);
    if (!kept) {
      chunk_logits(&j, x, w);
    }
    pl_parallel(j.r, backward_row, &j);
    if (gw) {
      K(gemm)(true, false, V, C, j.r, 1, j.logits, V, x, C, 1, gw, C);
    }
    if (gh && rows) {
      real *gx = j.hc + R * C;
      K(gemm)(false, false, j.r, C, V, 1, j.logits, V, w, C, 0, gx, C);
      scatter_job s = {j.r, C, 64, j.rows, gx, gh};
      pl_parallel(ceil_div(C, s.cols), scatter_block, &s);
    } else if (gh) {
      K(gemm)(false, false, j.r, C, V, 1, j.logits, V, w, C, 1, gh + m * C, C);
    }
  }
}
