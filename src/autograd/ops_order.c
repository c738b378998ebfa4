/* Rows: cat and stack, sort and topk. */
#include <math.h>
#include <string.h>

#include "autograd/opkit.h"
#include "kernels/reduce.h"

#define ARGS(...)                                                                        \
  (pl_args) {                                                                            \
    .i = {__VA_ARGS__}, .n_i = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)) \
  }

/* ---- cat, stack -------------------------------------------------------------------- */
/* One walk for both: stack is a cat of tensors with a new dim of size 1. */

/* dim, result shape and dtype of the join */
static pl_status join_shape(pl_ctx *c, const pl_call *k, bool stack, int *dim, int *ndim,
                            int64_t *shape, pl_dtype *d) {
  if (k->n_in == 0) {
    return pl_fail(c, PL_EINVAL, "an empty list has no shape");
  }
  const pl_tensor *x = k->in[0];
  *ndim = x->ndim + (stack ? 1 : 0);
  if (*ndim > PL_MAX_DIMS) {
    return pl_fail(c, PL_EINVAL, "a tensor has at most %d dims", PL_MAX_DIMS);
  }
  pl_tensor like = {.ndim = *ndim};
  int64_t at = k->args.i[0] < 0 ? k->args.i[0] + *ndim : k->args.i[0];
  for (int q = 0; q < *ndim; q++) {
    like.shape[q] = stack && q == at ? 1 : x->shape[stack && q > at ? q - 1 : q];
  }
  PL_TRY(pl_norm_dim(c, &like, k->args.i[0], dim));
  memcpy(shape, like.shape, sizeof like.shape);
  shape[*dim] = 0;
  *d = x->dtype;
  for (int j = 0; j < k->n_in; j++) {
    const pl_tensor *t = k->in[j];
    bool fits = t->ndim == x->ndim;
    for (int q = 0; fits && q < x->ndim; q++) {
      fits = t->shape[q] == x->shape[q] || (!stack && q == *dim);
    }
    if (!fits) {
      char tx[128];
      char tt[128];
      return pl_fail(c, PL_EINVAL, "%s and %s (number %d) do not join along dim %d",
                     pl_shape_str(x, tx), pl_shape_str(t, tt), j + 1, *dim + 1);
    }
    shape[*dim] += stack ? 1 : t->shape[*dim];
    *d = pl_promote(*d, t->dtype);
  }
  return PL_OK;
}

/* the part of y that holds input t, in t's shape: a view; *at moves on */
static pl_status join_part(pl_ctx *c, const pl_tensor *y, const pl_tensor *t, bool stack, int dim,
                           int64_t *at, pl_tensor **out) {
  int64_t stride[PL_MAX_DIMS] = {0};
  for (int q = 0; q < t->ndim; q++) {
    stride[q] = y->stride[stack && q >= dim ? q + 1 : q];
  }
  int64_t offset = y->offset + *at * y->stride[dim];
  *at += stack ? 1 : t->shape[dim];
  return pl_tensor_view(c, y, t->ndim, t->shape, stride, offset, out);
}

static pl_status join_forward(pl_ctx *c, pl_call *k, bool stack) {
  int dim = 0;
  int ndim = 0;
  int64_t shape[PL_MAX_DIMS] = {0};
  pl_dtype d;
  PL_TRY(join_shape(c, k, stack, &dim, &ndim, shape, &d));
  PL_TRY(pl_tensor_new(c, d, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t at = 0;
  for (int j = 0; j < k->n_in; j++) {
    pl_tensor *part;
    PL_TRY(join_part(c, k->out[0], k->in[j], stack, dim, &at, &part));
    pl_status st = pl_tensor_copy(c, part, k->in[j]);
    pl_tensor_unref(part);
    PL_TRY(st);
  }
  return PL_OK;
}

static pl_status join_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin,
                           bool stack) {
  int dim = 0;
  PL_TRY(pl_norm_dim(c, gout[0], n->args.i[0], &dim));
  int64_t at = 0;
  for (int j = 0; j < n->n_in; j++) {
    pl_tensor *part;
    PL_TRY(join_part(c, gout[0], n->in[j], stack, dim, &at, &part));
    if (pl_node_needs(n, j)) {
      gin[j] = part;
    } else {
      pl_tensor_unref(part);
    }
  }
  return PL_OK;
}

static pl_status join_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k, bool stack) {
  static const struct {
    int n, ndim;
    int64_t shape[3][3], dim;
    bool gaps;
  } all[] = {{2, 2, {{2, 3}, {4, 3}}, 0, false},
             {3, 2, {{2, 3}, {2, 1}, {2, 0}}, -1, false},
             {2, 3, {{2, 3, 4}, {2, 2, 4}}, 1, true},
             {1, 1, {{3}}, 0, false}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->n_in = all[which].n;
  k->args = ARGS(all[which].dim);
  for (int j = 0; j < k->n_in; j++) {
    PL_TRY(pl_sample(c, d, 10 * which + j, -2, 2, all[which].gaps, all[which].ndim,
                     all[which].shape[stack ? 0 : j], &k->in[j]));
  }
  return PL_OK;
}

/* walks the result and finds the input each index falls into */
static pl_status join_twin(pl_ctx *c, pl_call *k, bool stack) {
  int dim = 0;
  int ndim = 0;
  int64_t shape[PL_MAX_DIMS] = {0};
  pl_dtype d;
  PL_TRY(join_shape(c, k, stack, &dim, &ndim, shape, &d));
  PL_TRY(pl_tensor_new(c, d, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(k->out[0]) > 0;
  for (; more; more = pl_next(k->out[0], i)) {
    int64_t left = i[dim];
    int j = 0;
    while (left >= (stack ? 1 : k->in[j]->shape[dim])) {
      left -= stack ? 1 : k->in[j]->shape[dim];
      j++;
    }
    int64_t from[PL_MAX_DIMS] = {0};
    for (int q = 0, w = 0; q < ndim; q++) {
      if (q != dim) {
        from[w++] = i[q];
      } else if (!stack) {
        from[w++] = left;
      }
    }
    pl_set(k->out[0], i, pl_get(k->in[j], from));
  }
  return PL_OK;
}

#define JOIN(ID, STACK, DOC)                                                                  \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                      \
    return join_forward(c, k, STACK);                                                         \
  }                                                                                           \
  static pl_status ID##_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,             \
                             pl_tensor **gin) {                                               \
    return join_back(c, n, gout, gin, STACK);                                                 \
  }                                                                                           \
  static pl_status ID##_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {                \
    return join_sample(c, which, d, k, STACK);                                                \
  }                                                                                           \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                         \
    return join_twin(c, k, STACK);                                                            \
  }                                                                                           \
  static const pl_op op_##ID = {#ID,                                                          \
                                "list: tensors, dim: dim = 1",                                \
                                "Tensor",                                                     \
                                DOC,                                                          \
                                PL_OP_ANY_DTYPE | PL_OP_SHAPES_ONLY,                          \
                                ID##_forward,                                                 \
                                ID##_back,                                                    \
                                ID##_sample,                                                  \
                                ID##_twin};

JOIN(cat, false, "The tensors of a list one after the other along a dim; other sizes must agree.")
JOIN(stack, true, "Tensors of one shape side by side along a new dim.")

/* ---- sort, topk -------------------------------------------------------------------- */
/* sort: i0 = dim, i1 = descending; topk: i0 = k, i1 = dim, i2 = largest */

typedef struct order {
  pl_dims d;
  int64_t keep; /* of each row */
  bool descending;
} order;

static pl_status sort_order(pl_ctx *c, const pl_tensor *x, const pl_args *a, order *o) {
  int dim = 0;
  PL_TRY(pl_norm_dim(c, x, a->i[0], &dim));
  pl_dims_one(x, dim, false, &o->d);
  o->keep = o->d.count;
  o->descending = a->i[1] != 0;
  return PL_OK;
}

static pl_status topk_order(pl_ctx *c, const pl_tensor *x, const pl_args *a, order *o) {
  int dim = 0;
  PL_TRY(pl_norm_dim(c, x, a->i[1], &dim));
  pl_dims_one(x, dim, false, &o->d);
  o->keep = a->i[0];
  o->descending = a->i[2] != 0;
  if (o->keep < 0 || o->keep > o->d.count) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "k = %lld of dim %d of %s: 0 to %lld are possible",
                   (long long)o->keep, dim + 1, pl_shape_str(x, text), (long long)o->d.count);
  }
  return PL_OK;
}

/* values and positions of the first `keep` of each row, as rows [R, keep] */
static pl_status sort_rows(pl_ctx *c, const pl_tensor *rows, const order *o, pl_tensor *value,
                           pl_tensor *at) {
  int64_t n = o->d.count;
  int64_t *work = pl_alloc(c, (size_t)(2 * n) * sizeof *work);
  if (work == NULL) {
    return PL_ENOMEM;
  }
  pl_status st = PL_OK;
  for (int64_t r = 0; r < rows->shape[0] && st == PL_OK; r++) {
    int64_t *p = (int64_t *)pl_data(at) + r * o->keep;
    if (rows->dtype == PL_F32) {
      const float *x = (const float *)pl_data(rows) + r * n;
      pl_argsort_f32(n, x, o->descending, work, work + n);
      for (int64_t k = 0; k < o->keep; k++) {
        ((float *)pl_data(value))[r * o->keep + k] = x[work[k]];
      }
    } else {
      const double *x = (const double *)pl_data(rows) + r * n;
      pl_argsort_f64(n, x, o->descending, work, work + n);
      for (int64_t k = 0; k < o->keep; k++) {
        ((double *)pl_data(value))[r * o->keep + k] = x[work[k]];
      }
    }
    memcpy(p, work, (size_t)o->keep * sizeof *p);
    st = pl_check_interrupt(c);
  }
  pl_free(c, work);
  return st;
}

/* rows [R, keep] -> x's layout with dim of size keep, contiguous, dtype d */
static pl_status unrow(pl_ctx *c, const pl_tensor *rows, const pl_tensor *x, const order *o,
                       pl_dtype d, pl_tensor **out) {
  pl_tensor like = {.ndim = x->ndim};
  for (int q = 0; q < x->ndim; q++) {
    like.shape[q] = o->d.in[q] ? o->keep : x->shape[q];
  }
  pl_tensor *v;
  PL_TRY(pl_rows_back(c, rows, &like, &o->d, &v));
  pl_status st = pl_dense(c, v, d, out);
  pl_tensor_unref(v);
  return st;
}

static pl_status order_forward(pl_ctx *c, pl_call *k, const order *o) {
  const pl_tensor *x = k->in[0];
  pl_tensor *in = NULL;
  pl_tensor *rows = NULL;
  pl_tensor *value = NULL;
  pl_tensor *at = NULL;
  pl_status st = pl_as_dtype(c, x, x->dtype == PL_F32 ? PL_F32 : PL_F64, &in);
  if (st == PL_OK) {
    st = pl_rows_of(c, in, &o->d, &rows);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, in->dtype, 2, PL_SHAPE(rows->shape[0], o->keep), &value);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, PL_I64, 2, PL_SHAPE(rows->shape[0], o->keep), &at);
  }
  if (st == PL_OK) {
    st = sort_rows(c, rows, o, value, at);
  }
  if (st == PL_OK) {
    st = unrow(c, value, x, o, x->dtype, &k->out[0]);
  }
  if (st == PL_OK) {
    st = unrow(c, at, x, o, PL_I64, &k->out[1]);
    k->n_out = 2;
  }
  if (st == PL_OK && k->needs_grad) {
    /* a copy: the positions handed out may be changed in place */
    st = pl_tensor_cast(c, at, PL_I64, &k->saved[0]);
  }
  pl_tensor_unref(in);
  pl_tensor_unref(rows);
  pl_tensor_unref(value);
  pl_tensor_unref(at);
  return st;
}

static pl_status order_back(pl_ctx *c, const pl_node *n, pl_tensor *g, const order *o,
                            pl_tensor **gin) {
  const pl_tensor *x = n->in[0];
  pl_tensor *grows;
  pl_dims part = o->d;
  part.count = o->keep; /* the rows of g are this long, those of x longer */
  PL_TRY(pl_rows_of(c, g, &part, &grows));
  int64_t R = n->saved[0]->shape[0];
  const int64_t *p = pl_data(n->saved[0]);
  pl_tensor *rows = NULL;
  pl_status st = pl_tensor_zeros(c, g->dtype, 2, PL_SHAPE(R, o->d.count), &rows);
  size_t size = pl_dtypes[g->dtype].size;
  for (int64_t k = 0; st == PL_OK && k < R * o->keep; k++) {
    int64_t r = k / o->keep;
    memcpy((char *)pl_data(rows) + (size_t)(r * o->d.count + p[k]) * size,
           (const char *)pl_data(grows) + (size_t)k * size, size);
  }
  if (st == PL_OK) {
    st = pl_rows_back(c, rows, x, &o->d, gin);
  }
  pl_tensor_unref(grows);
  pl_tensor_unref(rows);
  return st;
}

static pl_status sort_forward(pl_ctx *c, pl_call *k) {
  order o;
  PL_TRY(sort_order(c, k->in[0], &k->args, &o));
  return order_forward(c, k, &o);
}

static pl_status sort_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  order o;
  PL_TRY(sort_order(c, n->in[0], &n->args, &o));
  return order_back(c, n, gout[0], &o, &gin[0]);
}

static pl_status topk_forward(pl_ctx *c, pl_call *k) {
  order o;
  PL_TRY(topk_order(c, k->in[0], &k->args, &o));
  return order_forward(c, k, &o);
}

static pl_status topk_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  order o;
  PL_TRY(topk_order(c, n->in[0], &n->args, &o));
  return order_back(c, n, gout[0], &o, &gin[0]);
}

static pl_status order_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k, int64_t *dim) {
  static const struct {
    int ndim;
    int64_t shape[3], dim;
    bool gaps;
  } all[] = {{1, {7}, 0, false},          {2, {3, 5}, -1, true}, {2, {4, 2}, 0, false},
             {3, {2, 3, 4}, 1, true},     {2, {0, 3}, 1, false}, {1, {130}, 0, false}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->n_in = 1;
  *dim = all[which].dim;
  return pl_sample(c, d, which, -2, 2, all[which].gaps, all[which].ndim, all[which].shape,
                   &k->in[0]);
}

static pl_status sort_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  int64_t dim = 0;
  PL_TRY(order_sample(c, which, d, k, &dim));
  k->args = ARGS(dim, which % 2);
  return PL_OK;
}

static pl_status topk_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  int64_t dim = 0;
  PL_TRY(order_sample(c, which, d, k, &dim));
  k->args = ARGS(which == 3 ? 3 : 2, dim, which % 2 == 0);
  return PL_OK;
}

/* place number r of each line: the element with r others before it */
static pl_status order_twin(pl_ctx *c, pl_call *k, const order *o) {
  const pl_tensor *x = k->in[0];
  int64_t shape[PL_MAX_DIMS] = {0};
  int dim = 0;
  for (int q = 0; q < x->ndim; q++) {
    dim = o->d.in[q] ? q : dim;
    shape[q] = o->d.in[q] ? o->keep : x->shape[q];
  }
  k->n_out = 2;
  PL_TRY(pl_tensor_new(c, x->dtype, x->ndim, shape, &k->out[0]));
  PL_TRY(pl_tensor_new(c, PL_I64, x->ndim, shape, &k->out[1]));
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(x) > 0;
  for (; more; more = pl_next(x, i)) {
    double v = pl_get(x, i);
    int64_t j[PL_MAX_DIMS];
    memcpy(j, i, sizeof j);
    int64_t rank = 0;
    for (j[dim] = 0; j[dim] < x->shape[dim]; j[dim]++) {
      double u = pl_get(x, j);
      rank += (o->descending ? u > v : u < v) || (u == v && j[dim] < i[dim]);
    }
    if (rank < o->keep) {
      j[dim] = rank;
      pl_set(k->out[0], j, v);
      pl_set(k->out[1], j, (double)i[dim]);
    }
  }
  return PL_OK;
}

static pl_status sort_twin(pl_ctx *c, pl_call *k) {
  order o;
  PL_TRY(sort_order(c, k->in[0], &k->args, &o));
  return order_twin(c, k, &o);
}

static pl_status topk_twin(pl_ctx *c, pl_call *k) {
  order o;
  PL_TRY(topk_order(c, k->in[0], &k->args, &o));
  return order_twin(c, k, &o);
}

static const pl_op op_sort = {
    "sort", "x: tensor, dim: dim = -1, descending: bool = false", "Tensor, Positions",
    "The elements along a dim in order, and where they stood. Equal ones keep their order; NaN "
    "counts as largest.",
    PL_OP_METHOD | PL_OP_SHAPES_ONLY, sort_forward, sort_back, sort_sample, sort_twin};

static const pl_op op_topk = {
    "topk", "x: tensor, k: int, dim: dim = -1, largest: bool = true", "Tensor, Positions",
    "The k largest (or smallest) elements along a dim in order, and where they stood.",
    PL_OP_METHOD | PL_OP_SHAPES_ONLY, topk_forward, topk_back, topk_sample, topk_twin};

const pl_op *const pl_ops_order[] = {&op_cat, &op_stack, &op_sort, &op_topk, NULL};
