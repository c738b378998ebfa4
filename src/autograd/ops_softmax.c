/* Rows: softmax, log_softmax, logsumexp, cumsum. Stable: the largest element
 * is taken out first; sums run in double. */
#include <math.h>
#include <string.h>

#include "autograd/opkit.h"
#include "kernels/reduce.h"

/* x as rows along one dim, in its float dtype */
static pl_status float_rows(pl_ctx *c, const pl_tensor *x, const pl_dims *d, pl_tensor **out) {
  pl_tensor *in;
  PL_TRY(pl_as_dtype(c, x, pl_float_of(x->dtype), &in));
  pl_status st = pl_rows_of(c, in, d, out);
  pl_tensor_unref(in);
  return st;
}

/* rows (owned) in x's layout, contiguous: a result must be so */
static pl_status settle(pl_ctx *c, pl_tensor *rows, const pl_tensor *x, const pl_dims *d,
                        pl_tensor **out) {
  pl_tensor *v;
  pl_status st = pl_rows_back(c, rows, x, d, &v);
  pl_tensor_unref(rows);
  PL_TRY(st);
  st = pl_tensor_contiguous(c, v, out);
  pl_tensor_unref(v);
  return st;
}

static pl_status along(pl_ctx *c, const pl_tensor *x, const pl_args *a, pl_dims *d) {
  int dim = 0;
  PL_TRY(pl_norm_dim(c, x, a->i[0], &dim));
  pl_dims_one(x, dim, false, d);
  return PL_OK;
}

/* ---- softmax, log_softmax ------------------------------------------------------- */

static pl_status family_forward(pl_ctx *c, pl_call *k, bool log_of) {
  const pl_tensor *x = k->in[0];
  pl_dims d;
  PL_TRY(along(c, x, &k->args, &d));
  pl_tensor *rows;
  PL_TRY(float_rows(c, x, &d, &rows));
  pl_tensor *y;
  pl_status st = pl_tensor_like(c, rows, &y);
  if (st == PL_OK && y->dtype == PL_F64) {
    pl_softmax_rows_f64(rows->shape[0], d.count, pl_data(rows), log_of, pl_data(y));
  } else if (st == PL_OK) {
    pl_softmax_rows_f32(rows->shape[0], d.count, pl_data(rows), log_of, pl_data(y));
  }
  pl_tensor_unref(rows);
  PL_TRY(st);
  PL_TRY(settle(c, y, x, &d, &k->out[0]));
  k->n_out = 1;
  k->saved[0] = k->needs_grad ? pl_tensor_ref(k->out[0]) : NULL;
  return PL_OK;
}

static pl_status family_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                              pl_tensor **gin, bool log_of) {
  const pl_tensor *x = n->in[0];
  pl_dims d;
  PL_TRY(along(c, x, &n->args, &d));
  pl_tensor *y = NULL;
  pl_tensor *g = NULL;
  pl_tensor *gx = NULL;
  pl_status st = pl_rows_of(c, n->saved[0], &d, &y);
  if (st == PL_OK) {
    st = pl_rows_of(c, gout[0], &d, &g);
  }
  if (st == PL_OK) {
    st = pl_tensor_like(c, g, &gx);
  }
  if (st == PL_OK && g->dtype == PL_F64) {
    pl_softmax_back_rows_f64(g->shape[0], d.count, pl_data(y), pl_data(g), log_of, pl_data(gx));
  } else if (st == PL_OK) {
    pl_softmax_back_rows_f32(g->shape[0], d.count, pl_data(y), pl_data(g), log_of, pl_data(gx));
  }
  if (st == PL_OK) {
    st = pl_rows_back(c, gx, x, &d, &gin[0]);
  }
  pl_tensor_unref(y);
  pl_tensor_unref(g);
  pl_tensor_unref(gx);
  return st;
}

static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  k->n_in = 1;
  static const int64_t dims[6] = {-1, 0, 1, 0, 1, -1};
  if (which < 6) {
    k->args = (pl_args){.i = {dims[which]}, .n_i = 1};
  }
  switch (which) {
    case 0: return pl_sample(c, d, 1, -3, 3, false, 2, PL_SHAPE(2, 5), &k->in[0]);
    case 1: return pl_sample(c, d, 2, -3, 3, true, 2, PL_SHAPE(4, 3), &k->in[0]);
    case 2: return pl_sample(c, d, 3, -3, 3, true, 3, PL_SHAPE(2, 3, 4), &k->in[0]);
    case 3: return pl_sample(c, d, 4, -30, 30, false, 1, PL_SHAPE(70), &k->in[0]);
    case 4: return pl_sample(c, d, 5, -3, 3, false, 2, PL_SHAPE(0, 3), &k->in[0]);
    case 5: return pl_sample(c, d, 6, -3, 3, false, 2, PL_SHAPE(2, 601), &k->in[0]);
    default: return pl_no_more(c);
  }
}

/* sum of exp(x - shift) over the line through index along dim */
static double line_sum(const pl_tensor *x, int dim, const int64_t *index, double shift) {
  int64_t i[PL_MAX_DIMS];
  memcpy(i, index, sizeof i);
  double sum = 0;
  for (i[dim] = 0; i[dim] < x->shape[dim]; i[dim]++) {
    sum += exp(pl_get(x, i) - shift);
  }
  return sum;
}

static pl_status family_twin(pl_ctx *c, pl_call *k, bool log_of) {
  const pl_tensor *x = k->in[0];
  int dim = 0;
  PL_TRY(pl_norm_dim(c, x, k->args.i[0], &dim));
  PL_TRY(pl_tensor_like(c, x, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(x) > 0;
  for (; more; more = pl_next(x, i)) { /* 1 / sum exp(x_j - x_i): no maximum needed */
    double sum = line_sum(x, dim, i, pl_get(x, i));
    pl_set(k->out[0], i, log_of ? -log(sum) : 1 / sum);
  }
  return PL_OK;
}

#define SOFTMAX(ID, LOG, DOC)                                                                   \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                        \
    return family_forward(c, k, LOG);                                                          \
  }                                                                                             \
  static pl_status ID##_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,               \
                             pl_tensor **gin) {                                                 \
    return family_back(c, n, gout, gin, LOG);                                                  \
  }                                                                                             \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                           \
    return family_twin(c, k, LOG);                                                             \
  }                                                                                             \
  static const pl_op op_##ID = {#ID,                                                            \
                                "x: tensor, dim: dim = -1",                                     \
                                "Tensor",                                                       \
                                DOC,                                                            \
                                PL_OP_METHOD | PL_OP_SHAPES_ONLY,                               \
                                ID##_forward,                                                   \
                                ID##_back,                                                      \
                                sample,                                                         \
                                ID##_twin};

SOFTMAX(softmax, false, "exp(x) / sum exp(x) along a dim, stable.")
SOFTMAX(log_softmax, true, "x - logsumexp(x) along a dim: the logarithm of softmax, stable.")

/* ---- logsumexp ------------------------------------------------------------------- */
/* i0 = keepdim, then dims */

static pl_status lse_forward(pl_ctx *c, pl_call *k) {
  pl_dims d;
  PL_TRY(pl_dims_of(c, k->in[0], &k->args, 1, k->args.i[0] != 0, &d));
  pl_tensor *rows;
  PL_TRY(float_rows(c, k->in[0], &d, &rows));
  pl_status st = pl_tensor_new(c, rows->dtype, d.ndim, d.shape, &k->out[0]);
  k->n_out = 1;
  if (st == PL_OK && rows->dtype == PL_F64) {
    pl_lse_rows_f64(rows->shape[0], d.count, pl_data(rows), pl_data(k->out[0]));
  } else if (st == PL_OK) {
    pl_lse_rows_f32(rows->shape[0], d.count, pl_data(rows), pl_data(k->out[0]));
  }
  if (st == PL_OK && k->needs_grad) {
    k->saved[0] = pl_tensor_ref(k->out[0]);
  }
  pl_tensor_unref(rows);
  return st;
}

/* gx = g * softmax(x) over the reduced dims */
static pl_status lse_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  const pl_tensor *x = n->in[0];
  pl_dims d;
  PL_TRY(pl_dims_of(c, x, &n->args, 1, false, &d));
  pl_tensor *rows = NULL;
  pl_tensor *p = NULL;
  pl_tensor *g = NULL;
  pl_tensor *gx = NULL;
  pl_status st = pl_rows_of(c, x, &d, &rows);
  if (st == PL_OK) {
    st = pl_tensor_like(c, rows, &p);
  }
  if (st == PL_OK && p->dtype == PL_F64) {
    pl_softmax_rows_f64(rows->shape[0], d.count, pl_data(rows), false, pl_data(p));
  } else if (st == PL_OK) {
    pl_softmax_rows_f32(rows->shape[0], d.count, pl_data(rows), false, pl_data(p));
  }
  if (st == PL_OK) {
    st = pl_reshaped(c, gout[0], 2, PL_SHAPE(rows->shape[0], 1), &g);
  }
  if (st == PL_OK) {
    st = pl_raw_binary(c, PL_B_MUL, p, g, &gx);
  }
  if (st == PL_OK) {
    st = pl_rows_back(c, gx, x, &d, &gin[0]);
  }
  pl_tensor_unref(rows);
  pl_tensor_unref(p);
  pl_tensor_unref(g);
  pl_tensor_unref(gx);
  return st;
}

static pl_status lse_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  if (which == 6) {
    k->n_in = 1;
    k->args = (pl_args){.i = {0}, .n_i = 1};
    return pl_sample(c, d, 7, -3, 3, true, 2, PL_SHAPE(3, 4), &k->in[0]);
  }
  PL_TRY(sample(c, which, d, k));
  k->args = (pl_args){.i = {which == 2, k->args.i[0]}, .n_i = 2};
  return PL_OK;
}

static pl_status lse_twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  pl_dims d;
  PL_TRY(pl_dims_of(c, x, &k->args, 1, k->args.i[0] != 0, &d));
  PL_TRY(pl_tensor_new(c, x->dtype, d.ndim, d.shape, &k->out[0]));
  k->n_out = 1;
  bool keep = k->args.i[0] != 0;
  int64_t o[PL_MAX_DIMS] = {0};
  bool more_out = pl_numel(k->out[0]) > 0;
  for (; more_out; more_out = pl_next(k->out[0], o)) {
    double sum = 0;
    int64_t i[PL_MAX_DIMS] = {0};
    bool more = pl_numel(x) > 0;
    for (; more; more = pl_next(x, i)) {
      bool mine = true;
      for (int q = 0, w = 0; q < x->ndim; q++) {
        mine = mine && (d.in[q] || i[q] == o[w]);
        w += !d.in[q] || keep;
      }
      sum += mine ? exp(pl_get(x, i)) : 0;
    }
    pl_set(k->out[0], o, log(sum));
  }
  return PL_OK;
}

static const pl_op op_logsumexp = {
    "logsumexp", "x: tensor, dims: dims, keepdim: bool = false", "Tensor",
    "log(sum exp(x)) over the given dims, or over all, without overflow; -inf of nothing.",
    PL_OP_METHOD, lse_forward, lse_back, lse_sample, lse_twin};

/* ---- cumsum ---------------------------------------------------------------------- */

static pl_status scan(pl_ctx *c, const pl_tensor *x, const pl_dims *d, bool reverse,
                      pl_tensor **out) {
  pl_tensor *rows;
  PL_TRY(pl_rows_of(c, x, d, &rows));
  pl_tensor *y;
  pl_status st = pl_tensor_like(c, rows, &y);
  if (st == PL_OK && y->dtype == PL_F64) {
    pl_cumsum_rows_f64(rows->shape[0], d->count, pl_data(rows), reverse, pl_data(y));
  } else if (st == PL_OK) {
    pl_cumsum_rows_f32(rows->shape[0], d->count, pl_data(rows), reverse, pl_data(y));
  }
  pl_tensor_unref(rows);
  PL_TRY(st);
  return settle(c, y, x, d, out);
}

static pl_status cumsum_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  bool whole = !pl_dtypes[x->dtype].is_float;
  pl_dims d;
  PL_TRY(along(c, x, &k->args, &d));
  pl_tensor *in;
  PL_TRY(pl_as_dtype(c, x, whole ? PL_F64 : x->dtype, &in)); /* exact up to 2^53 */
  pl_tensor *y = NULL;
  pl_status st = scan(c, in, &d, false, &y);
  k->n_out = 1;
  if (st == PL_OK) {
    st = pl_as_dtype(c, y, whole ? PL_I64 : x->dtype, &k->out[0]);
  }
  pl_tensor_unref(in);
  pl_tensor_unref(y);
  return st;
}

static pl_status cumsum_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                             pl_tensor **gin) {
  pl_dims d;
  PL_TRY(along(c, n->in[0], &n->args, &d));
  return scan(c, gout[0], &d, true, &gin[0]);
}

static pl_status cumsum_twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int dim = 0;
  PL_TRY(pl_norm_dim(c, x, k->args.i[0], &dim));
  PL_TRY(pl_tensor_like(c, x, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(x) > 0;
  for (; more; more = pl_next(x, i)) {
    int64_t from[PL_MAX_DIMS];
    memcpy(from, i, sizeof from);
    double sum = 0;
    for (from[dim] = 0; from[dim] <= i[dim]; from[dim]++) {
      sum += pl_get(x, from);
    }
    pl_set(k->out[0], i, sum);
  }
  return PL_OK;
}

static const pl_op op_cumsum = {
    "cumsum", "x: tensor, dim: dim", "Tensor",
    "Running sums along a dim: position k holds the sum of 1 .. k. Integers give i64.",
    PL_OP_METHOD | PL_OP_SHAPES_ONLY, cumsum_forward, cumsum_back, sample, cumsum_twin};

const pl_op *const pl_ops_softmax[] = {&op_softmax, &op_log_softmax, &op_logsumexp, &op_cumsum,
                                       NULL};
