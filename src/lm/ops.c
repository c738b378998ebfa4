/* Two small ops that turn a flat vector of token log-probabilities into what
 * users see: sums a row, or a padded table. They are op rows like any other
 * (used from C only), so that gradients flow; the shapes are decoder.h's. */
#include "autograd/op.h"
#include "lm/decoder.h"

static pl_status index_check(pl_ctx *c, const pl_tensor *x, const pl_tensor *at, int64_t n) {
  if (x->ndim != 1 || at->ndim != 1 || at->dtype != PL_I32 || x->shape[0] != at->shape[0] ||
      (x->dtype != PL_F32 && x->dtype != PL_F64) || !pl_contiguous(x) || !pl_contiguous(at)) {
    char a[128];
    char b[128];
    return pl_fail(c, PL_EINVAL, "wanted a float vector and an i32 vector of one length; got %s "
                   "and %s", pl_shape_str(x, a), pl_shape_str(at, b));
  }
  for (int64_t i = 0; i < at->shape[0]; i++) {
    if (pl_i32(at)[i] < 0 || pl_i32(at)[i] >= n) {
      return pl_fail(c, PL_EINVAL, "index %d is outside 0..%lld", pl_i32(at)[i], (long long)n - 1);
    }
  }
  return PL_OK;
}

/* out[at[i]] += x[i], in order */
static void add_at(const pl_tensor *x, const pl_tensor *at, pl_tensor *out) {
  const int64_t n = x->shape[0];
  const int32_t *p = pl_i32(at);
  if (x->dtype == PL_F64) {
    double *y = pl_data(out);
    const double *v = pl_data(x);
    for (int64_t i = 0; i < n; i++) {
      y[p[i]] += v[i];
    }
    return;
  }
  float *y = pl_f32(out);
  const float *v = pl_f32(x);
  for (int64_t i = 0; i < n; i++) {
    y[p[i]] += v[i];
  }
}

static pl_status sum_forward(pl_ctx *c, pl_call *k) {
  const int64_t n = k->args.i[0];
  PL_TRY(index_check(c, k->in[0], k->in[1], n));
  PL_TRY(pl_tensor_zeros(c, k->in[0]->dtype, 1, &n, &k->out[0]));
  k->n_out = 1;
  add_at(k->in[0], k->in[1], k->out[0]);
  return PL_OK;
}

static pl_status place_forward(pl_ctx *c, pl_call *k) {
  const int64_t shape[2] = {k->args.i[0], k->args.i[1]};
  PL_TRY(index_check(c, k->in[0], k->in[1], shape[0] * shape[1]));
  PL_TRY(pl_tensor_zeros(c, k->in[0]->dtype, 2, shape, &k->out[0]));
  k->n_out = 1;
  add_at(k->in[0], k->in[1], k->out[0]);
  return PL_OK;
}

/* Of both: gx[i] = gout[at[i]] */
static pl_status take_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                               pl_tensor **gin) {
  if (!pl_node_needs(n, 0)) {
    return PL_OK;
  }
  const pl_tensor *x = n->in[0];
  const int32_t *at = pl_i32(n->in[1]);
  PL_TRY(pl_tensor_new(c, x->dtype, 1, x->shape, &gin[0]));
  for (int64_t i = 0; i < x->shape[0]; i++) {
    if (x->dtype == PL_F64) {
      ((double *)pl_data(gin[0]))[i] = ((const double *)pl_data(gout[0]))[at[i]];
    } else {
      pl_f32(gin[0])[i] = pl_f32(gout[0])[at[i]];
    }
  }
  return PL_OK;
}

static const pl_op op_group_sum = {
    .name = "group_sum",
    .params = "x: tensor, group: ids, n: int",
    .ret = "Tensor",
    .doc = "Sums the entries of x [M] by group [M] (0-based): [n].",
    .flags = PL_OP_HIDDEN,
    .forward = sum_forward,
    .backward = take_backward};

static const pl_op op_place = {
    .name = "place",
    .params = "x: tensor, at: ids, rows: int, cols: int",
    .ret = "Tensor",
    .doc = "Puts x [M] at distinct places of a [rows, cols] table of zeros.",
    .flags = PL_OP_HIDDEN,
    .forward = place_forward,
    .backward = take_backward};

pl_status pl_group_sum(pl_ctx *c, pl_tensor *x, pl_tensor *group, int64_t n, pl_tensor **out) {
  const pl_args a = {.i = {n}, .n_i = 1};
  return pl_apply(c, &op_group_sum, (pl_tensor *[]){x, group}, 2, &a, out);
}

pl_status pl_place(pl_ctx *c, pl_tensor *x, pl_tensor *at, int64_t rows, int64_t cols,
                   pl_tensor **out) {
  const pl_args a = {.i = {rows, cols}, .n_i = 2};
  return pl_apply(c, &op_place, (pl_tensor *[]){x, at}, 2, &a, out);
}
