/* The token log-probability: log softmax(h[rows] w^T)[ids], by parts of the rows and blocks
 * of the vocabulary. A block's logits for the rows of a part stay in the caches: its maximum
 * and sum of exponentials join those of the blocks before (Milakov & Gimelshein 2018), and
 * what the gradient will want, exp(logit - the row's maximum in the block), is kept where the
 * caller gives room for it, as `act`. Without room the gradient computes the logits again.
 * For each part a block of w is read once forward and once backward. */
#include <math.h>

#include "kernels/corner.h"
#include "kernels/impl.h"
#include "kernels/vmath.h"

enum {
  BLOCK_LOGITS = 1 << 19, /* logits in a block, 2 MiB of floats, where that is not narrower than */
  BLOCK_MIN = 1024,       /* columns */
  PART_MOST = 2048,       /* rows whose gradient stays in the caches too */
  ROWS = 16,              /* rows in a task */
  PIECE = 256             /* exponentials on the way to their sum */
};

/* Rows of a part: fixed by the sizes, all parts but the last equal. */
static int64_t part_rows(int64_t M) {
  return ceil_div(M, imax(1, ceil_div(M, PART_MOST)));
}

/* The same for columns of a block. */
static int64_t block_width(int64_t M, int64_t V) {
  int64_t most = imax(BLOCK_MIN, BLOCK_LOGITS / imax(1, part_rows(M)));
  return V <= most ? V : imin(V, ceil_div(ceil_div(V, ceil_div(V, most)), 64) * 64);
}

static int64_t n_blocks(int64_t M, int64_t V) {
  return ceil_div(V, block_width(M, V));
}

int64_t K(token_logprob_stats)(int64_t M, int64_t V) {
  return M * (1 + n_blocks(M, V));
}

/* x [m,C] and its gradient, the running maximum and sum, logits, and their gradient */
int64_t K(token_logprob_scratch)(int64_t M, int64_t C, int64_t V, int blocks) {
  const int64_t m = part_rows(M);
  return 2 * m * C + 4 * m + blocks * m * block_width(M, V);
}

typedef real_bits vec_bits __attribute__((vector_size(32)));

/* One part; M counts its rows. */
typedef struct head_job {
  int64_t M, C, V, width, nb, n0; /* this block: nb columns from n0 */
  const real *h, *w;
  const int32_t *rows, *ids;
  act *kept;     /* [V / nb, M, nb] or NULL */
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

/* a > b ? a : b */
PL_INLINE vec most(vec a, vec b) {
  const vec_bits m = a > b;
  return (vec)(((vec_bits)a & m) | ((vec_bits)b & ~m));
}

PL_INLINE real largest(int64_t n, const real *z) {
  vec best[4] = {vsplat(z[0]), vsplat(z[0]), vsplat(z[0]), vsplat(z[0])};
  int64_t v = 0;
  for (; v + 4 * PL_LANES <= n; v += 4 * PL_LANES) {
    for (int k = 0; k < 4; k++) {
      best[k] = most(vload(z + v + k * PL_LANES), best[k]);
    }
  }
  real lane[PL_LANES];
  vstore(lane, most(most(best[0], best[1]), most(best[2], best[3])));
  real top = lane[0];
  for (int k = 1; k < PL_LANES; k++) {
    top = lane[k] > top ? lane[k] : top;
  }
  for (; v < n; v++) {
    top = z[v] > top ? z[v] : top;
  }
  return top;
}

/* The sum of exp(z - top), and each of them in e where it is kept. By pieces that stay in the L1
 * cache, so that every loop is a simple one. */
PL_INLINE real numerators(int64_t n, const real *z, real top, act *e) {
  real p[PIECE];
  vec sum[4] = {{0}};
  real s = 0;
  for (int64_t i = 0; i < n; i += PIECE) {
    const int64_t m = imin(PIECE, n - i);
    for (int64_t k = 0; k < m; k++) {
      p[k] = k_exp_below(z[i + k] - top);
    }
    int64_t k = 0;
    for (; k + 4 * PL_LANES <= m; k += 4 * PL_LANES) {
      for (int l = 0; l < 4; l++) {
        sum[l] += vload(p + k + l * PL_LANES);
      }
    }
    for (; k < m; k++) {
      s += p[k];
    }
    if (e) {
#if PL_IS_HALF
      pl_bf16_row(m, p, e + i); /* in one instruction where the processor has it */
#else
      memcpy(e + i, p, (size_t)m * sizeof *p);
#endif
    }
  }
  real lane[PL_LANES];
  vstore(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (int k = 0; k < PL_LANES; k++) {
    s += lane[k];
  }
  return s;
}

/* Rows of one block: z -> maximum, sum, the target's logit, and e where it is kept. */
PL_INLINE void forward_row(const head_job *j, int64_t i, bool first) {
  const real *z = j->z + i * j->nb;
  const int64_t n = j->nb;
  const real top = largest(n, z);
  const real s = numerators(n, z, top, j->e ? j->e + i * n : NULL);
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

static void block_logits(const head_job *j) {
  PRODUCT(false, true, j->M, j->nb, j->C, 1, ACTS(j->x, j->C), REALS(j->w + j->n0 * j->C, j->C), 0,
          REALS(j->z, j->nb));
}

static void forward_part(head_job *j, real *stats, real *scratch) {
  const int64_t M = j->M;
  j->lse = stats;
  j->sum = (double *)scratch;
  j->run_top = scratch + 2 * M;
  j->x = (act *)(scratch + 4 * M);
  j->z = scratch + 4 * M + M * j->C;
  pl_parallel(ceil_div(M, ROWS), gather_block, j);
  for (j->n0 = 0; j->n0 < j->V; j->n0 += j->width) {
    j->nb = imin(j->width, j->V - j->n0);
    j->top = stats + (1 + j->n0 / j->width) * M;
    j->e = j->kept ? j->kept + M * j->n0 : NULL;
    block_logits(j);
    pl_parallel(ceil_div(M, ROWS), forward_rows, j);
  }
  for (int64_t i = 0; i < M; i++) {
    j->lse[i] = j->run_top[i] + (real)log(j->sum[i]);
    j->out[i] -= j->lse[i];
  }
}

/* The part from row i0 on. */
static head_job part_at(int64_t M, int64_t C, int64_t V, int64_t i0, const real *h,
                        const int32_t *rows, const real *w, const int32_t *ids, act *kept) {
  return (head_job){.M = imin(part_rows(M), M - i0), .C = C, .V = V, .width = block_width(M, V),
                    .h = rows ? h : h + i0 * C, .w = w, .rows = rows ? rows + i0 : NULL,
                    .ids = ids + i0, .kept = kept ? kept + i0 * V : NULL};
}

void K(token_logprob)(int64_t M, int64_t C, int64_t V, const real *h, const int32_t *rows,
                      const real *w, const int32_t *ids, real *out, real *stats, act *kept,
                      real *scratch) {
  for (int64_t i0 = 0; i0 < M; i0 += part_rows(M)) {
    head_job j = part_at(M, C, V, i0, h, rows, w, ids, kept);
    j.out = out + i0;
    forward_part(&j, stats + i0 * (1 + n_blocks(M, V)), scratch);
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

/* gw is set by the first part and added to by the others. */
static void backward_part(head_job *j, bool first, const real *stats, real *gh, real *gw,
                          real *scratch) {
  const int64_t M = j->M;
  const int64_t C = j->C;
  real *gx = scratch + 4 * M + M * C;
  real *z = gx + M * C;
  j->lse_in = stats;
  j->x = (act *)(scratch + 4 * M);
  if (gw || !j->kept) {
    pl_parallel(ceil_div(M, ROWS), gather_block, j);
  }
  for (j->n0 = 0; j->n0 < j->V; j->n0 += j->width) {
    const int64_t nb = imin(j->width, j->V - j->n0);
    j->nb = nb;
    j->top_in = stats + (1 + j->n0 / j->width) * M;
    if (j->kept) {
      j->e = j->kept + M * j->n0;
    } else {
      j->z = z;
      j->e = (act *)(z + M * j->width);
      block_logits(j);
    }
    pl_parallel(ceil_div(M, ROWS), backward_rows, j);
    if (gw) {
      PRODUCT(true, false, nb, C, M, 1, ACTS(j->e, nb), ACTS(j->x, C), first ? 0 : 1,
              REALS(gw + j->n0 * C, C));
    }
    if (gh) {
      PRODUCT(false, false, M, C, nb, 1, ACTS(j->e, nb), REALS(j->w + j->n0 * C, C),
              j->n0 == 0 ? 0 : 1, REALS(gx, C));
    }
  }
  if (gh) {
    scatter_job s = {M, C, 64, j->rows, gx, gh};
    pl_parallel(ceil_div(C, s.cols), scatter_block, &s);
  }
}

void K(token_logprob_back)(int64_t M, int64_t C, int64_t V, const real *h, const int32_t *rows,
                           const real *w, const int32_t *ids, const real *out, const real *stats,
                           const real *gout, real *gh, real *gw, act *kept, real *scratch) {
  int64_t i0 = 0;
  do { /* without a row gw is set too */
    head_job j = part_at(M, C, V, i0, h, rows, w, ids, kept);
    j.out_in = out + i0;
    j.gout = gout + i0;
    backward_part(&j, i0 == 0, stats + i0 * (1 + n_blocks(M, V)), rows || !gh ? gh : gh + i0 * C,
                  gw, scratch);
    i0 += part_rows(M);
  } while (i0 < M);
}
