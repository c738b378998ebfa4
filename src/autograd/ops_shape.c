/* Rows: views and copies. A view shares its input's storage; its gradient is
 * the view the other way round, or zeros with the part filled in. */
#include <string.h>

#include "autograd/opkit.h"
#include "tensor/iter.h"

/* ---- shared ------------------------------------------------------------------ */

/* g (contiguous, the output's values in order) with the input's shape */
static pl_status back_reshape(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                              pl_tensor **gin) {
  return pl_reshaped(c, gout[0], n->in[0]->ndim, n->in[0]->shape, &gin[0]);
}

static pl_status sample_one(pl_ctx *c, pl_dtype d, pl_call *k, int seed, bool gaps, int ndim,
                            const int64_t *shape) {
  k->n_in = 1;
  return pl_sample(c, d, seed, -2, 2, gaps, ndim, shape, &k->in[0]);
}

#define ARGS(...)                                                                  \
  (pl_args) {                                                                      \
    .i = {__VA_ARGS__}, .n_i = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)) \
  }

/* Fills out (new, x's dtype, given shape) with x at source(index). */
typedef void (*source_fn)(const pl_call *k, const int64_t *index, int64_t *from);

static pl_status pick(pl_ctx *c, pl_call *k, int ndim, const int64_t *shape, source_fn source) {
  PL_TRY(pl_tensor_new(c, k->in[0]->dtype, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  int64_t from[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) > 0) {
    do {
      source(k, i, from);
      pl_set(k->out[0], i, pl_get(k->in[0], from));
    } while (pl_next(k->out[0], i));
  }
  return PL_OK;
}

/* the same values in row-major order: the twin of all that only reshapes */
static pl_status in_order(pl_ctx *c, pl_call *k, int ndim, const int64_t *shape) {
  PL_TRY(pl_tensor_new(c, k->in[0]->dtype, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  int64_t from[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) > 0) {
    do {
      pl_set(k->out[0], i, pl_get(k->in[0], from));
      pl_next(k->in[0], from);
    } while (pl_next(k->out[0], i));
  }
  return PL_OK;
}

/* ---- reshape, flatten ---------------------------------------------------------- */

static pl_status wanted_shape(pl_ctx *c, const pl_tensor *x, const pl_args *a, int64_t *shape) {
  char text[128];
  if (a->n_i > PL_MAX_DIMS) {
    return pl_fail(c, PL_EINVAL, "a tensor has at most %d dims, not %d", PL_MAX_DIMS, a->n_i);
  }
  int64_t known = 1;
  int open = -1;
  for (int d = 0; d < a->n_i; d++) {
    shape[d] = a->i[d];
    if (shape[d] == -1 && open < 0) {
      open = d;
    } else if (shape[d] < 0) {
      return pl_fail(c, PL_EINVAL, "size %lld of dim %d: sizes are 0 or more, and one may be -1",
                     (long long)shape[d], d + 1);
    } else if (__builtin_mul_overflow(known, shape[d], &known)) {
      return pl_fail(c, PL_EINVAL, "the sizes asked for overflow");
    }
  }
  int64_t n = pl_numel(x);
  if (open >= 0) {
    shape[open] = known > 0 ? n / known : 0;
    known = known > 0 ? known * shape[open] : n == 0 ? 0 : -1;
  }
  if (known != n) {
    pl_tensor asked = {.ndim = a->n_i};
    memcpy(asked.shape, a->i, (size_t)a->n_i * sizeof *a->i);
    char text2[128];
    return pl_fail(c, PL_EINVAL, "%s has %lld elements and does not fit %s",
                   pl_shape_str(x, text), (long long)n, pl_shape_str(&asked, text2));
  }
  return PL_OK;
}

static pl_status as_shape(pl_ctx *c, pl_call *k, int ndim, const int64_t *shape) {
  pl_tensor *dense;
  PL_TRY(pl_tensor_contiguous(c, k->in[0], &dense));
  pl_status st = pl_reshaped(c, dense, ndim, shape, &k->out[0]);
  pl_tensor_unref(dense);
  k->n_out = 1;
  return st;
}

static pl_status reshape_forward(pl_ctx *c, pl_call *k) {
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(wanted_shape(c, k->in[0], &k->args, shape));
  return as_shape(c, k, k->args.n_i, shape);
}

static pl_status reshape_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(3, 2); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(2, 3));
    case 1: k->args = ARGS(-1); return sample_one(c, d, k, 2, true, 2, PL_SHAPE(3, 4));
    case 2: k->args = ARGS(2, -1, 2); return sample_one(c, d, k, 3, true, 3, PL_SHAPE(2, 3, 4));
    case 3: k->args = ARGS(3, 0); return sample_one(c, d, k, 4, false, 2, PL_SHAPE(0, 2));
    case 4: k->args.n_i = 0; return sample_one(c, d, k, 5, false, 2, PL_SHAPE(1, 1));
    default: return pl_no_more(c);
  }
}

static pl_status reshape_twin(pl_ctx *c, pl_call *k) {
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(wanted_shape(c, k->in[0], &k->args, shape));
  return in_order(c, k, k->args.n_i, shape);
}

static const pl_op op_reshape = {
    "reshape", "x: tensor, sizes: shape", "Tensor",
    "The same elements in the same order with other sizes; one size may be -1. Shares storage "
    "where x is contiguous.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, reshape_forward, back_reshape, reshape_sample,
    reshape_twin};

static pl_status flat_shape(pl_ctx *c, const pl_call *k, int *ndim, int64_t *shape) {
  const pl_tensor *x = k->in[0];
  if (x->ndim == 0) {
    *ndim = 1;
    shape[0] = 1;
    return PL_OK;
  }
  int from;
  int to;
  PL_TRY(pl_norm_dim(c, x, k->args.i[0], &from));
  PL_TRY(pl_norm_dim(c, x, k->args.i[1], &to));
  if (from > to) {
    return pl_fail(c, PL_EINVAL, "the first dim (%d) is behind the last (%d)", from + 1, to + 1);
  }
  *ndim = 0;
  for (int d = 0; d < x->ndim; d++) {
    if (d > from && d <= to) {
      shape[*ndim - 1] *= x->shape[d];
    } else {
      shape[(*ndim)++] = x->shape[d];
    }
  }
  return PL_OK;
}

static pl_status flatten_forward(pl_ctx *c, pl_call *k) {
  int ndim = 0;
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(flat_shape(c, k, &ndim, shape));
  return as_shape(c, k, ndim, shape);
}

static pl_status flatten_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(0, -1); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(2, 3));
    case 1: k->args = ARGS(1, -1); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: k->args = ARGS(-3, 1); return sample_one(c, d, k, 3, true, 3, PL_SHAPE(2, 3, 4));
    case 3: k->args = ARGS(0, -1); return sample_one(c, d, k, 4, false, 0, NULL);
    default: return pl_no_more(c);
  }
}

static pl_status flatten_twin(pl_ctx *c, pl_call *k) {
  int ndim = 0;
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(flat_shape(c, k, &ndim, shape));
  return in_order(c, k, ndim, shape);
}

static const pl_op op_flatten = {
    "flatten", "x: tensor, from: dim = 1, to: dim = -1", "Tensor",
    "Merges the dims from `from` to `to` into one.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, flatten_forward, back_reshape, flatten_sample,
    flatten_twin};

/* ---- squeeze, unsqueeze -------------------------------------------------------- */

static pl_status squeeze_mark(pl_ctx *c, const pl_call *k, bool *gone) {
  const pl_tensor *x = k->in[0];
  int only = -1;
  if (k->args.i[0] != PL_ABSENT) {
    PL_TRY(pl_norm_dim(c, x, k->args.i[0], &only));
  }
  for (int d = 0; d < x->ndim; d++) {
    gone[d] = x->shape[d] == 1 && (only < 0 || only == d);
  }
  return PL_OK;
}

static pl_status squeeze_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  bool gone[PL_MAX_DIMS];
  PL_TRY(squeeze_mark(c, k, gone));
  int64_t shape[PL_MAX_DIMS] = {0};
  int64_t stride[PL_MAX_DIMS] = {0};
  int w = 0;
  for (int d = 0; d < x->ndim; d++) {
    if (!gone[d]) {
      shape[w] = x->shape[d];
      stride[w++] = x->stride[d];
    }
  }
  k->n_out = 1;
  return pl_tensor_view(c, x, w, shape, stride, x->offset, &k->out[0]);
}

static pl_status squeeze_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(PL_ABSENT); return sample_one(c, d, k, 1, true, 3, PL_SHAPE(2, 1, 3));
    case 1: k->args = ARGS(-1); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(1, 2, 1));
    case 2: k->args = ARGS(0); return sample_one(c, d, k, 3, false, 2, PL_SHAPE(2, 2));
    default: return pl_no_more(c);
  }
}

static pl_status squeeze_twin(pl_ctx *c, pl_call *k) {
  bool gone[PL_MAX_DIMS];
  PL_TRY(squeeze_mark(c, k, gone));
  int64_t shape[PL_MAX_DIMS] = {0};
  int w = 0;
  for (int d = 0; d < k->in[0]->ndim; d++) {
    if (!gone[d]) {
      shape[w++] = k->in[0]->shape[d];
    }
  }
  return in_order(c, k, w, shape);
}

static const pl_op op_squeeze = {
    "squeeze", "x: tensor, dim: dim?", "Tensor",
    "Without the dims of size 1, or without `dim` where that has size 1. A view.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, squeeze_forward, back_reshape, squeeze_sample,
    squeeze_twin};

static pl_status unsqueeze_dim(pl_ctx *c, const pl_tensor *x, int64_t dim, int *out) {
  int64_t d = dim < 0 ? dim + x->ndim + 1 : dim;
  if (d < 0 || d > x->ndim) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "no new dim can stand at %lld in %s: 1 to %d, or negative",
                   (long long)(dim < 0 ? dim : dim + 1), pl_shape_str(x, text), x->ndim + 1);
  }
  *out = (int)d;
  return PL_OK;
}

static pl_status unsqueeze_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int at = 0;
  PL_TRY(unsqueeze_dim(c, x, k->args.i[0], &at));
  int64_t shape[PL_MAX_DIMS + 1] = {0};
  int64_t stride[PL_MAX_DIMS + 1] = {0};
  for (int d = 0; d <= x->ndim; d++) {
    int from = d < at ? d : d - 1;
    shape[d] = d == at ? 1 : x->shape[from];
    stride[d] = d == at ? 1 : x->stride[from];
  }
  k->n_out = 1;
  return pl_tensor_view(c, x, x->ndim + 1, shape, stride, x->offset, &k->out[0]);
}

static pl_status unsqueeze_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(0); return sample_one(c, d, k, 1, true, 2, PL_SHAPE(2, 3));
    case 1: k->args = ARGS(-1); return sample_one(c, d, k, 2, true, 2, PL_SHAPE(2, 3));
    case 2: k->args = ARGS(1); return sample_one(c, d, k, 3, false, 2, PL_SHAPE(2, 3));
    case 3: k->args = ARGS(0); return sample_one(c, d, k, 4, false, 0, NULL);
    default: return pl_no_more(c);
  }
}

static pl_status unsqueeze_twin(pl_ctx *c, pl_call *k) {
  int at = 0;
  PL_TRY(unsqueeze_dim(c, k->in[0], k->args.i[0], &at));
  int64_t shape[PL_MAX_DIMS] = {0};
  for (int d = 0; d <= k->in[0]->ndim; d++) {
    shape[d] = d == at ? 1 : k->in[0]->shape[d < at ? d : d - 1];
  }
  return in_order(c, k, k->in[0]->ndim + 1, shape);
}

static const pl_op op_unsqueeze = {
    "unsqueeze", "x: tensor, dim: dim", "Tensor",
    "With a new dim of size 1 standing at `dim`. A view.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, unsqueeze_forward, back_reshape,
    unsqueeze_sample, unsqueeze_twin};

/* ---- transpose, t, permute ------------------------------------------------------ */

static pl_status two_dims(pl_ctx *c, const pl_tensor *x, const pl_args *a, int *p, int *q) {
  PL_TRY(pl_norm_dim(c, x, a->i[0], p));
  return pl_norm_dim(c, x, a->i[1], q);
}

static pl_status transpose_forward(pl_ctx *c, pl_call *k) {
  int p;
  int q;
  PL_TRY(two_dims(c, k->in[0], &k->args, &p, &q));
  k->n_out = 1;
  return pl_swapped(c, k->in[0], p, q, &k->out[0]);
}

static pl_status transpose_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                pl_tensor **gin) {
  int p;
  int q;
  PL_TRY(two_dims(c, n->in[0], &n->args, &p, &q));
  return pl_swapped(c, gout[0], p, q, &gin[0]);
}

static pl_status transpose_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(0, 1); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(2, 3));
    case 1: k->args = ARGS(-1, 0); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: k->args = ARGS(1, 2); return sample_one(c, d, k, 3, false, 4, PL_SHAPE(2, 3, 2, 2));
    case 3: k->args = ARGS(0, 0); return sample_one(c, d, k, 4, false, 2, PL_SHAPE(0, 3));
    default: return pl_no_more(c);
  }
}

static void transpose_source(const pl_call *k, const int64_t *index, int64_t *from) {
  int n = k->in[0]->ndim;
  int p = (int)((k->args.i[0] + n) % n);
  int q = (int)((k->args.i[1] + n) % n);
  memcpy(from, index, PL_MAX_DIMS * sizeof *from);
  from[p] = index[q];
  from[q] = index[p];
}

static pl_status transpose_twin(pl_ctx *c, pl_call *k) {
  int p;
  int q;
  PL_TRY(two_dims(c, k->in[0], &k->args, &p, &q));
  int64_t shape[PL_MAX_DIMS];
  memcpy(shape, k->in[0]->shape, sizeof shape);
  shape[p] = k->in[0]->shape[q];
  shape[q] = k->in[0]->shape[p];
  return pick(c, k, k->in[0]->ndim, shape, transpose_source);
}

static const pl_op op_transpose = {
    "transpose", "x: tensor, dim1: dim, dim2: dim", "Tensor", "With two dims exchanged. A view.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, transpose_forward, transpose_back,
    transpose_sample, transpose_twin};

static pl_status t_forward(pl_ctx *c, pl_call *k) {
  if (k->in[0]->ndim != 2) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "wants 2 dims and got %s; use transpose(dim1, dim2)",
                   pl_shape_str(k->in[0], text));
  }
  k->n_out = 1;
  return pl_swapped(c, k->in[0], 0, 1, &k->out[0]);
}

static pl_status t_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  (void)n;
  return pl_swapped(c, gout[0], 0, 1, &gin[0]);
}

static pl_status t_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  return which < 2 ? sample_one(c, d, k, which, which == 1, 2, PL_SHAPE(2, 3)) : pl_no_more(c);
}

static void t_source(const pl_call *k, const int64_t *index, int64_t *from) {
  (void)k;
  from[0] = index[1];
  from[1] = index[0];
}

static pl_status t_twin(pl_ctx *c, pl_call *k) {
  return pick(c, k, 2, PL_SHAPE(k->in[0]->shape[1], k->in[0]->shape[0]), t_source);
}

static const pl_op op_t = {"t", "x: tensor", "Tensor", "The transpose of a matrix. A view.",
                           PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY,
                           t_forward, t_back, t_sample, t_twin};

static pl_status order_of(pl_ctx *c, const pl_tensor *x, const pl_args *a, int *order) {
  char text[128];
  bool seen[PL_MAX_DIMS] = {false};
  if (a->n_i != x->ndim) {
    return pl_fail(c, PL_EINVAL, "%s has %d dims and the order names %d", pl_shape_str(x, text),
                   x->ndim, a->n_i);
  }
  for (int d = 0; d < a->n_i; d++) {
    PL_TRY(pl_norm_dim(c, x, a->i[d], &order[d]));
    if (seen[order[d]]) {
      return pl_fail(c, PL_EINVAL, "dim %d is given twice", order[d] + 1);
    }
    seen[order[d]] = true;
  }
  return PL_OK;
}

static pl_status permute_forward(pl_ctx *c, pl_call *k) {
  int order[PL_MAX_DIMS];
  PL_TRY(order_of(c, k->in[0], &k->args, order));
  PL_TRY(pl_tensor_alias(c, k->in[0], &k->out[0]));
  k->n_out = 1;
  for (int d = 0; d < k->in[0]->ndim; d++) {
    k->out[0]->shape[d] = k->in[0]->shape[order[d]];
    k->out[0]->stride[d] = k->in[0]->stride[order[d]];
  }
  return PL_OK;
}

static pl_status permute_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                              pl_tensor **gin) {
  int order[PL_MAX_DIMS];
  PL_TRY(order_of(c, n->in[0], &n->args, order));
  PL_TRY(pl_tensor_alias(c, gout[0], &gin[0]));
  for (int d = 0; d < n->in[0]->ndim; d++) {
    gin[0]->shape[order[d]] = gout[0]->shape[d];
    gin[0]->stride[order[d]] = gout[0]->stride[d];
  }
  return PL_OK;
}

static pl_status permute_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(1, 0); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(2, 3));
    case 1: k->args = ARGS(2, 0, -2); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: k->args = ARGS(-1, 1, 0); return sample_one(c, d, k, 3, false, 3, PL_SHAPE(2, 0, 4));
    default: return pl_no_more(c);
  }
}

static void permute_source(const pl_call *k, const int64_t *index, int64_t *from) {
  int n = k->in[0]->ndim;
  for (int d = 0; d < n; d++) {
    from[(k->args.i[d] + n) % n] = index[d];
  }
}

static pl_status permute_twin(pl_ctx *c, pl_call *k) {
  int order[PL_MAX_DIMS];
  PL_TRY(order_of(c, k->in[0], &k->args, order));
  int64_t shape[PL_MAX_DIMS] = {0};
  for (int d = 0; d < k->in[0]->ndim; d++) {
    shape[d] = k->in[0]->shape[order[d]];
  }
  return pick(c, k, k->in[0]->ndim, shape, permute_source);
}

static const pl_op op_permute = {
    "permute", "x: tensor, order: dims", "Tensor",
    "With the dims in another order: dim number k of the result is dim order[k] of x. A view.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, permute_forward, permute_back, permute_sample,
    permute_twin};

/* ---- expand ---------------------------------------------------------------------- */

static pl_status expand_shape(pl_ctx *c, const pl_tensor *x, const pl_args *a, int64_t *shape) {
  int lead = a->n_i - x->ndim;
  bool fits = lead >= 0 && a->n_i <= PL_MAX_DIMS;
  for (int d = 0; fits && d < a->n_i; d++) {
    int64_t own = d < lead ? 1 : x->shape[d - lead];
    shape[d] = a->i[d] == -1 && d >= lead ? own : a->i[d];
    fits = shape[d] >= 0 && (own == 1 || own == shape[d]);
  }
  if (!fits) {
    pl_tensor asked = {.ndim = a->n_i < PL_MAX_DIMS ? a->n_i : PL_MAX_DIMS};
    memcpy(asked.shape, a->i, (size_t)asked.ndim * sizeof *a->i);
    char text[128];
    char text2[128];
    return pl_fail(c, PL_EINVAL,
                   "%s does not expand to %s: only sizes 1 can grow, new dims stand in front "
                   "(-1 keeps a size)",
                   pl_shape_str(x, text), pl_shape_str(&asked, text2));
  }
  return PL_OK;
}

static pl_status expand_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int64_t shape[PL_MAX_DIMS] = {0};
  int64_t stride[PL_MAX_DIMS] = {0};
  PL_TRY(expand_shape(c, x, &k->args, shape));
  int lead = k->args.n_i - x->ndim;
  for (int d = lead; d < k->args.n_i; d++) {
    stride[d] = x->shape[d - lead] == shape[d] ? x->stride[d - lead] : 0;
  }
  k->n_out = 1;
  return pl_tensor_view(c, x, k->args.n_i, shape, stride, x->offset, &k->out[0]);
}

static pl_status expand_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                             pl_tensor **gin) {
  return pl_sum_to(c, gout[0], n->in[0]->ndim, n->in[0]->shape, &gin[0]);
}

static pl_status expand_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(2, 3); return sample_one(c, d, k, 1, false, 1, PL_SHAPE(3));
    case 1: k->args = ARGS(4, -1, 2); return sample_one(c, d, k, 2, true, 2, PL_SHAPE(3, 1));
    case 2: k->args = ARGS(2, 2); return sample_one(c, d, k, 3, false, 0, NULL);
    case 3: k->args = ARGS(0, 3); return sample_one(c, d, k, 4, false, 2, PL_SHAPE(1, 3));
    default: return pl_no_more(c);
  }
}

static void expand_source(const pl_call *k, const int64_t *index, int64_t *from) {
  int lead = k->args.n_i - k->in[0]->ndim;
  for (int d = 0; d < k->in[0]->ndim; d++) {
    from[d] = k->in[0]->shape[d] == 1 ? 0 : index[lead + d];
  }
}

static pl_status expand_twin(pl_ctx *c, pl_call *k) {
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(expand_shape(c, k->in[0], &k->args, shape));
  return pick(c, k, k->args.n_i, shape, expand_source);
}

static const pl_op op_expand = {
    "expand", "x: tensor, sizes: shape", "Tensor",
    "Dims of size 1 repeated to the given sizes without copying; -1 keeps a size. A view that "
    "cannot be written to.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, expand_forward, expand_back, expand_sample,
    expand_twin};

const pl_op *const pl_ops_shape[] = {&op_reshape,   &op_flatten, &op_squeeze, &op_unsqueeze,
                                     &op_transpose, &op_t,       &op_permute, &op_expand,
                                     NULL};
