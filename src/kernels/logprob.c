/* The token log-probability: log softmax(h[rows] w^T)[ids], by blocks of the vocabulary.
 * A block's logits for all rows stay in the caches: its maximum and sum of exponentials
 * join those of the blocks before (Milakov & Gimelshein 2018), and what the gradient
 * will want, exp(logit - the row's maximum in the block), is kept where the caller gives
 * room for it, as `act`. Without room the gradient computes the logits again.
 * Each block of w is read once forward and once backward. */
#include <math.h>

#include "kernels/impl.h"
#include "kernels/vmath.h"

enum {
  BLOCK_LOGITS = 1 << 18, /* logits in a block: 1 MiB of floats */
  BLOCK_MIN = 256,        /* columns */
  ROWS = 16               /* rows in a task */
};

/* Columns of a block: fixed by the sizes, all blocks but the last equal. */
static int64_t block_width(int64_t M, int64_t V) {
  int64_t most = imax(BLOCK_MIN, BLOCK_LOGITS / imax(1, M));
  return V <= most ? V : imin(V, ceil_div(ceil_div(V, ceil_div(V, most)), 64) * 64);
}

static int64_t n_blocks(int64_t M, int64_t V) {
  return ceil_div(V, block_width(M, V));
}

int64_t K(token_logprob_stats)(int64_t M, int64_t V) {
  return M * (1 + n_blocks(M, V));
}

/* x [M,C] and its gradient, the running maximum and sum, logits, and their gradient */
int64_t K(token_logprob_scratch)(int64_t M, int64_t C, int64_t V) {
  return 2 * M * C + 4 * M + 2 * M * block_width(M, V);
}

typedef struct head_job {
  int64_t M, C, V, nb, n0; /* this block: nb columns from n0 */
  const real *h;
  const int32_t *rows, *ids;
  act *x;        /* [M,C] */
  real *z;       /* [M,nb] logits */
  act *e;        /* [M,nb] kept, or the gradient of the logits */
  real *out;     /* [M] */
  real *lse;     /* [M] */
  real *top;     /* [M] of this block */
  real *run_top; /* [M] */
  double *sum;   /* [M] */
  const real *out_in, *lse_in, *top_in, *gout;
} head_job;

PL_VARIANTS(void, gather_block, (void *arg, int64_t b), (arg, b)) {
  const head_job *j = arg;
  for (int64_t i = b * ROWS; i < imin(j->M, (b + 1) * ROWS); i++) {
    const real *from = j->h + (j->rows ? j->rows[i] : i) * j->C;
    act *to = j->x + i * j->C;
    for (int64_t c = 0; c < j->C; c++) {
      to[c] = act_of(from[c]);
    }
  }
}

/* Rows of one block: z -> maximum, sum, the target's logit, and e where it is kept. */
PL_INLINE void forward_row(const head_job *j, int64_t i, bool first) {
  const real *restrict z = j->z + i * j->nb;
  const int64_t n = j->nb;
  real lane[16];
  for (int k = 0; k < 16; k++) {
    lane[k] = z[0];
  }
  int64_t v = 0;
  for (; v + 16 <= n; v += 16) {
    for (int k = 0; k < 16; k++) {
      lane[k] = z[v + k] > lane[k] ? z[v + k] : lane[k];
    }
  }
  real top = lane[0];
  for (int k = 1; k < 16; k++) {
    top = lane[k] > top ? lane[k] : top;
  }
  for (; v < n; v++) {
    top = z[v] > top ? z[v] : top;
  }
  real sum[16] = {0};
  real s = 0;
  if (j->e) {
    act *restrict e = j->e + i * n;
    for (v = 0; v + 16 <= n; v += 16) {
      for (int k = 0; k < 16; k++) {
        real p = k_exp_below(z[v + k] - top);
        sum[k] += p;
        e[v + k] = act_of(p);
      }
    }
    for (; v < n; v++) {
      real p = k_exp_below(z[v] - top);
      s += p;
      e[v] = act_of(p);
    }
  } else {
    for (v = 0; v + 16 <= n; v += 16) {
      for (int k = 0; k < 16; k++) {
        sum[k] += k_exp_below(z[v + k] - top);
      }
    }
    for (; v < n; v++) {
      s += k_exp_below(z[v] - top);
    }
  }
  for (int w = 8; w > 0; w /= 2) {
    for (int k = 0; k < w; k++) {
      sum[k] += sum[k + w];
    }
  }
  s += sum[0];
  j->top[i] = top;
  if (first) {
    j->run_top[i] = top;
    j->sum[i] = (double)s;
  } else if (top > j->run_top[i]) {
    j->sum[i] = j->sum[i] * (double)k_exp(j->run_top[i] - top) + (double)s;
    j->run_top[i] = top;
  } else {
    j->sum[i] += (double)(s * k_exp(top - j->run_top[i]));
  }
  int64_t at = j->ids[i] - j->n0;
  if (at >= 0 && at < n) {
    j->out[i] = z[at];
  }
}

PL_VARIANTS(void, forward_rows, (void *arg, int64_t b), (arg, b)) {
  const head_job *j = arg;
  for (int64_t i = b * ROWS; i < imin(j->M, (b + 1) * ROWS); i++) {
    forward_row(j, i, j->n0 == 0);
  }
}

/* The logits' gradient: gout * (onehot - softmax). The target's entry comes from its own
 * log-probability, for 1 - softmax would lose all digits where softmax is near 1. */
PL_VARIANTS(void, backward_rows, (void *arg, int64_t b), (arg, b)) {
  const head_job *j = arg;
  const int64_t n = j->nb;
  for (int64_t i = b * ROWS; i < imin(j->M, (b + 1) * ROWS); i++) {
    act *restrict e = j->e + i * n;
    real g = j->gout[i];
    if (j->z) {
      const real *restrict z = j->z + i * n;
      real lse = j->lse_in[i];
      for (int64_t v = 0; v < n; v++) {
        e[v] = act_of(-g * k_exp_below(z[v] - lse));
      }
    } else {
      real f = -g * k_exp(j->top_in[i] - j->lse_in[i]);
      for (int64_t v = 0; v < n; v++) {
        e[v] = act_of(f * act_real(e[v]));
      }
    }
    int64_t at = j->ids[i] - j->n0;
    if (at >= 0 && at < n) {
      e[at] = act_of(g * (1 - k_exp(j->out_in[i])));
    }
  }
}

/* The products, of activations or logits' gradients (act) with weights (real). */
#if PL_IS_HALF
#define ACTS(p, ld) ((pl_mat){p, ld, true})
#define REALS(p, ld) ((pl_mat){(void *)(p), ld, false})
#define PRODUCT pl_gemm_bf16
#else
#define ACTS(p, ld) p, ld
#define REALS(p, ld) p, ld
#define PRODUCT K(gemm)
#endif

static void block_logits(const head_job *j, const real *w) {
  PRODUCT(false, true, j->M, j->nb, j->C, 1, ACTS(j->x, j->C), REALS(w + j->n0 * j->C, j->C), 0,
          REALS(j->z, j->nb));
}

void K(token_logprob)(int64_t M, int64_t C, int64_t V, const real *h, const int32_t *rows,
                      const real *w, const int32_t *ids, real *out, real *stats, act *kept,
                      real *scratch) {
  const int64_t width = block_width(M, V);
  head_job j = {.M = M, .C = C, .V = V, .h = h, .rows = rows, .ids = ids, .out = out, .lse = stats};
  j.sum = (double *)scratch;
  j.run_top = scratch + 2 * M;
  j.x = (act *)(scratch + 4 * M);
  j.z = scratch + 4 * M + M * C;
  pl_parallel(ceil_div(M, ROWS), gather_block, &j);
  for (int64_t b = 0; b < ceil_div(V, width); b++) {
    j.n0 = b * width;
    j.nb = imin(width, V - j.n0);
    j.top = stats + (1 + b) * M;
    j.e = kept ? kept + M * j.n0 : NULL;
    block_logits(&j, w);
    pl_parallel(ceil_div(M, ROWS), forward_rows, &j);
  }
  for (int64_t i = 0; i < M; i++) {
    j.lse[i] = j.run_top[i] + (real)log(j.sum[i]);
    out[i] -= j.lse[i];
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
    real *restrict to = j->to + (j->rows ? j->rows[i] : i) * j->C;
    const real *restrict from = j->from + i * j->C;
    for (int64_t c = c0; c < c1; c++) {
      to[c] += from[c];
    }
  }
}

void K(token_logprob_back)(int64_t M, int64_t C, int64_t V, const real *h, const int32_t *rows,
                           const real *w, const int32_t *ids, const real *out, const real *stats,
                           const real *gout, real *gh, real *gw, act *kept, real *scratch) {
  const int64_t width = block_width(M, V);
  head_job j = {.M = M, .C = C, .V = V, .h = h, .rows = rows, .ids = ids, .out_in = out,
                .lse_in = stats, .gout = gout};
  j.x = (act *)(scratch + 4 * M);
  real *gx = scratch + 4 * M + M * C;
  real *z = gx + M * C;
  if (gw || !kept) {
    pl_parallel(ceil_div(M, ROWS), gather_block, &j);
  }
  for (int64_t b = 0; b < ceil_div(V, width); b++) {
    j.n0 = b * width;
    j.nb = imin(width, V - j.n0);
    j.top_in = stats + (1 + b) * M;
    if (kept) {
      j.e = kept + M * j.n0;
    } else {
      j.z = z;
      j.e = (act *)(z + M * width);
      block_logits(&j, w);
    }
    pl_parallel(ceil_div(M, ROWS), backward_rows, &j);
    if (gw) {
      PRODUCT(true, false, j.nb, C, M, 1, ACTS(j.e, j.nb), ACTS(j.x, C), 0,
              REALS(gw + j.n0 * C, C));
    }
    if (gh) {
      PRODUCT(false, false, M, C, j.nb, 1, ACTS(j.e, j.nb), REALS(w + j.n0 * C, C), b == 0 ? 0 : 1,
              REALS(gx, C));
    }
  }
  if (gh) {
    scatter_job s = {M, C, 64, rows, gx, gh};
    pl_parallel(ceil_div(C, s.cols), scatter_block, &s);
  }
}
