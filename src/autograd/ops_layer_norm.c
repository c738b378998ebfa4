/* LayerNorm as a row of its own: what follows the last layer of a GPT-2. Inside
 * the layers it is part of the blocks. Must not: know models. */
#include <math.h>

#include "autograd/block.h"

enum { X, W, B, N_IN };
enum { MEAN, RSTD }; /* saved */

static pl_status check(pl_ctx *c, pl_tensor *const *in) {
  PL_TRY(want_float(c, "x", in[X], 0));
  PL_TRY(pl_want_shape(c, "w", in[W], width(in[X]), 0));
  return pl_want_shape(c, "b", in[B], width(in[X]), 0);
}

static pl_status forward(pl_ctx *c, pl_call *k) {
  PL_TRY(check(c, k->in));
  const pl_dtype d = compute_dtype(k->in, N_IN);
  pl_tensor *t[N_IN];
  PL_TRY(dense(c, k->in, N_IN, d, t));
  const int64_t N = rows_of(t[X]);
  k->n_out = 1;
  k->drop_in = 1U << B;
  pl_status st = pl_tensor_new(c, d, t[X]->ndim, t[X]->shape, &k->out[0]);
  for (int j = MEAN; j <= RSTD && st == PL_OK; j++) {
    st = pl_tensor_new(c, d, 1, &N, &k->saved[j]);
  }
  if (st == PL_OK) {
    pl_norm(t[X], t[W], t[B], k->args.f[0], k->out[0], k->saved[MEAN], k->saved[RSTD]);
  }
  drop(t, N_IN);
  return st;
}

static pl_status backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  const pl_dtype d = gout[0]->dtype;
  pl_tensor *t[N_IN] = {NULL};
  PL_TRY(dense(c, n->in, B, d, t));
  pl_status st = PL_OK;
  if (pl_node_needs(n, X)) {
    st = pl_tensor_zeros(c, d, n->in[X]->ndim, n->in[X]->shape, &gin[X]);
  }
  for (int j = W; j <= B && st == PL_OK; j++) {
    st = pl_gradient_new(c, n, j, d, gin);
  }
  if (st == PL_OK) {
    st = pl_norm_back(c, t[X], t[W], n->saved[MEAN], n->saved[RSTD], gout[0], gin[X], gin[W],
                      gin[B]);
  }
  drop(t, B);
  return st;
}

static pl_status twin(pl_ctx *c, pl_call *k) {
  PL_TRY(check(c, k->in));
  pl_tensor *t[N_IN];
  PL_TRY(dense(c, k->in, N_IN, PL_F64, t));
  const int64_t C = width(t[X]);
  pl_tensor *y;
  pl_status st = pl_tensor_like(c, t[X], &y);
  for (int64_t n = 0; n < rows_of(t[X]) && st == PL_OK; n++) {
    const double *x = (const double *)pl_data(t[X]) + n * C;
    double mean = 0;
    double variance = 0;
    for (int64_t i = 0; i < C; i++) {
      mean += x[i] / (double)C;
    }
    for (int64_t i = 0; i < C; i++) {
      variance += (x[i] - mean) * (x[i] - mean) / (double)C;
    }
    for (int64_t i = 0; i < C; i++) {
      const double b = t[B] != NULL ? ((const double *)pl_data(t[B]))[i] : 0;
      ((double *)pl_data(y))[n * C + i] =
          (x[i] - mean) / sqrt(variance + k->args.f[0]) * ((const double *)pl_data(t[W]))[i] + b;
    }
  }
  if (st == PL_OK) {
    st = twin_out(c, k, y, compute_dtype(k->in, N_IN));
  }
  drop(t, N_IN);
  return st;
}

static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const struct { int64_t N, C; bool gaps, bias; } rows[] = {
      {3, 5, false, true}, {4, 33, true, true}, {130, 6, false, false}, {0, 2, false, true}};
  if (which >= (int)(sizeof rows / sizeof *rows)) {
    return pl_no_more(c);
  }
  const int64_t C = rows[which].C;
  k->n_in = N_IN;
  k->args = (pl_args){.f = {which == 0 ? 0.1 : 1e-5}, .n_f = 1};
  PL_TRY(pl_sample(c, d, 3 * which, -2, 2, rows[which].gaps, 2, PL_SHAPE(rows[which].N, C),
                   &k->in[X]));
  PL_TRY(pl_sample(c, d, 3 * which + 1, 0.5, 1.5, false, 1, PL_SHAPE(C), &k->in[W]));
  return rows[which].bias
             ? pl_sample(c, d, 3 * which + 2, -1, 1, false, 1, PL_SHAPE(C), &k->in[B])
             : PL_OK;
}

const pl_op pl_op_layer_norm = {
    .name = "layer_norm",
    .params = "x: tensor, w: tensor, b: tensor?, eps: num = 1e-5",
    .ret = "Tensor",
    .doc = "(x - mean) / sqrt(variance + eps) * w + b over the last dim: x [..., C], w and b [C] "
           "(Ba et al. 2016).",
    .forward = forward,
    .backward = backward,
    .sample = sample,
    .twin = twin};
