/* Rows: gather, index_select, scatter_add, where, masked_fill, cat, stack.
 * Positions are 0-based here (i32 or i64); negative ones count from the end. */
#include <string.h>

#include "autograd/opkit.h"
#include "base/par.h"
#include "tensor/iter.h"

#define ARGS(...)                                                                        \
  (pl_args) {                                                                            \
    .i = {__VA_ARGS__}, .n_i = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)) \
  }

/* ---- positions ------------------------------------------------------------------- */

/* A contiguous i64 copy of positions, checked against size and made >= 0. */
static pl_status positions(pl_ctx *c, const pl_tensor *p, const pl_tensor *x, int dim,
                           pl_tensor **out) {
  if (pl_dtypes[p->dtype].is_float || p->dtype == PL_BOOL) {
    return pl_fail(c, PL_EINVAL, "positions must be i32 or i64, not %s", pl_dtypes[p->dtype].name);
  }
  PL_TRY(pl_tensor_cast(c, p, PL_I64, out));
  int64_t *at = pl_data(*out);
  int64_t n = pl_numel(*out);
  int64_t size = x->shape[dim];
  for (int64_t k = 0; k < n; k++) {
    int64_t v = at[k] < 0 ? at[k] + size : at[k];
    if (v < 0 || v >= size) {
      char text[128];
      pl_status st = pl_fail(c, PL_EINVAL, "position %lld is outside dim %d of %s (1 to %lld)",
                             (long long)(at[k] < 0 ? at[k] : at[k] + 1), dim + 1,
                             pl_shape_str(x, text), (long long)size);
      pl_tensor_unref(*out);
      *out = NULL;
      return st;
    }
    at[k] = v;
  }
  return PL_OK;
}

/* x as [A, n, C] around dim */
static void around(const pl_tensor *x, int dim, int64_t *A, int64_t *n, int64_t *C) {
  *A = *C = 1;
  for (int d = 0; d < dim; d++) {
    *A *= x->shape[d];
  }
  *n = x->shape[dim];
  for (int d = dim + 1; d < x->ndim; d++) {
    *C *= x->shape[d];
  }
}

/* ---- index_select ---------------------------------------------------------------- */

static pl_status select_setup(pl_ctx *c, const pl_tensor *x, const pl_tensor *p,
                              const pl_args *a, int *dim, pl_tensor **at) {
  PL_TRY(pl_norm_dim(c, x, a->i[0], dim));
  if (p->ndim > 1) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "positions must have 1 dim, not %s (gather takes more)",
                   pl_shape_str(p, text));
  }
  return positions(c, p, x, *dim, at);
}

static pl_status index_select_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int dim = 0;
  pl_tensor *at = NULL;
  pl_tensor *in = NULL;
  PL_TRY(select_setup(c, x, k->in[1], &k->args, &dim, &at));
  int64_t m = pl_numel(at);
  int64_t shape[PL_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = m;
  pl_status st = pl_tensor_contiguous(c, x, &in);
  if (st == PL_OK) {
    st = pl_tensor_new(c, x->dtype, x->ndim, shape, &k->out[0]);
    k->n_out = 1;
  }
  if (st == PL_OK) {
    int64_t A;
    int64_t n;
    int64_t C;
    around(x, dim, &A, &n, &C);
    size_t run = (size_t)C * pl_dtypes[x->dtype].size;
    const int64_t *p = pl_data(at);
    char *y = pl_data(k->out[0]);
    const char *from = pl_data(in);
    for (int64_t a = 0; a < A; a++) {
      for (int64_t j = 0; j < m; j++) {
        memcpy(y + (size_t)(a * m + j) * run, from + (size_t)(a * n + p[j]) * run, run);
      }
    }
  }
  if (st == PL_OK && k->needs_grad) {
    k->saved[0] = pl_tensor_ref(at);
  }
  pl_tensor_unref(at);
  pl_tensor_unref(in);
  return st;
}

#define ADD_RUNS(T)                                                              \
  do {                                                                           \
    T *to = (T *)pl_data(*gin);                                                  \
    const T *g = (const T *)pl_data(grad);                                       \
    for (int64_t a = 0; a < A; a++) {                                            \
      for (int64_t j = 0; j < m; j++) {                                          \
        T *dst = to + (a * size + p[j]) * C;                                     \
        const T *src = g + (a * m + j) * C;                                      \
        for (int64_t i = 0; i < C; i++) {                                        \
          dst[i] += src[i];                                                      \
        }                                                                        \
      }                                                                          \
    }                                                                            \
  } while (0)

/* grad: f32 or f64 */
static pl_status add_selected(pl_ctx *c, const pl_node *n, const pl_tensor *grad,
                              pl_tensor **gin) {
  const pl_tensor *x = n->in[0];
  int dim = 0;
  PL_TRY(pl_norm_dim(c, x, n->args.i[0], &dim));
  PL_TRY(pl_tensor_zeros(c, grad->dtype, x->ndim, x->shape, gin));
  int64_t A;
  int64_t size;
  int64_t C;
  around(x, dim, &A, &size, &C);
  const int64_t *p = pl_data(n->saved[0]);
  int64_t m = pl_numel(n->saved[0]);
  if (grad->dtype == PL_F64) {
    ADD_RUNS(double);
  } else {
    ADD_RUNS(float);
  }
  return PL_OK;
}

/* bf16 gradients are summed in f32 */
static pl_status index_select_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                   pl_tensor **gin) {
  pl_tensor *grad;
  PL_TRY(pl_as_dtype(c, gout[0], pl_float_of(gout[0]->dtype), &grad));
  pl_status st = add_selected(c, n, grad, &gin[0]);
  pl_tensor_unref(grad);
  return st;
}

static pl_status index_select_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const struct {
    int ndim;
    int64_t shape[3];
    bool gaps;
    int64_t dim, m;
  } all[] = {{2, {4, 3}, false, 0, 3},   {2, {3, 5}, true, -1, 7}, {3, {2, 3, 4}, true, 1, 2},
             {1, {6}, false, 0, 4},      {2, {3, 2}, false, 0, 0}, {2, {40, 2}, false, 0, 90}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->n_in = 2;
  k->args = ARGS(all[which].dim);
  PL_TRY(pl_sample(c, d, which, -2, 2, all[which].gaps, all[which].ndim, all[which].shape,
                   &k->in[0]));
  int dim = 0;
  PL_TRY(pl_norm_dim(c, k->in[0], all[which].dim, &dim));
  return pl_sample_int(c, which % 2 == 0 ? PL_I32 : PL_I64, 7 + which, k->in[0]->shape[dim], 1,
                       PL_SHAPE(all[which].m), &k->in[1]);
}

static pl_status index_select_twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int dim = (int)(k->args.i[0] < 0 ? k->args.i[0] + x->ndim : k->args.i[0]);
  int64_t shape[PL_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = k->in[1]->shape[0];
  PL_TRY(pl_tensor_new(c, x->dtype, x->ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(k->out[0]) > 0;
  for (; more; more = pl_next(k->out[0], i)) {
    int64_t from[PL_MAX_DIMS];
    memcpy(from, i, sizeof from);
    from[dim] = (int64_t)pl_get(k->in[1], &i[dim]);
    pl_set(k->out[0], i, pl_get(x, from));
  }
  return PL_OK;
}

const pl_op pl_op_index_select = {
    "index_select", "x: tensor, dim: dim, at: pos", "Tensor",
    "The given positions of one dim, in the given order; positions may repeat, gradients add.",
    PL_OP_METHOD | PL_OP_ANY_DTYPE | PL_OP_SHAPES_ONLY, index_select_forward, index_select_back,
    index_select_sample, index_select_twin};

/* ---- gather, scatter_add ----------------------------------------------------------- */

static pl_status gather_setup(pl_ctx *c, const pl_tensor *x, const pl_tensor *p, const pl_args *a,
                              int *dim, pl_tensor **at) {
  PL_TRY(pl_norm_dim(c, x, a->i[0], dim));
  bool fits = p->ndim == x->ndim;
  for (int d = 0; fits && d < x->ndim; d++) {
    fits = d == *dim || p->shape[d] <= x->shape[d];
  }
  if (!fits) {
    char tx[128];
    char tp[128];
    return pl_fail(c, PL_EINVAL,
                   "positions %s must have as many dims as %s and be no longer in any but dim %d",
                   pl_shape_str(p, tp), pl_shape_str(x, tx), *dim + 1);
  }
  return positions(c, p, x, *dim, at);
}

/* Element offset in x (contiguous) of element `index` of the positions. */
static int64_t place_of(const pl_tensor *x, const pl_tensor *at, int dim, const int64_t *index,
                        int64_t k) {
  int64_t o = 0;
  int64_t step = 1;
  for (int d = x->ndim - 1; d >= 0; d--) {
    o += step * (d == dim ? ((const int64_t *)pl_data(at))[k] : index[d]);
    step *= x->shape[d];
  }
  return o;
}

/* y[k] = x[place of k], or with add: x[place of k] += y[k]; y and at contiguous */
static void move_values(pl_tensor *x, const pl_tensor *at, int dim, pl_tensor *y, bool add) {
  int64_t i[PL_MAX_DIMS] = {0};
  int64_t n = pl_numel(at);
  size_t size = pl_dtypes[x->dtype].size;
  char *px = pl_data(x);
  char *py = pl_data(y);
  for (int64_t k = 0; k < n; k++) {
    int64_t o = place_of(x, at, dim, i, k);
    if (!add) {
      memcpy(py + (size_t)k * size, px + (size_t)o * size, size);
    } else if (x->dtype == PL_F64) {
      ((double *)px)[o] += ((double *)py)[k];
    } else {
      ((float *)px)[o] += ((float *)py)[k];
    }
    pl_next(at, i);
  }
}

static pl_status gather_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int dim = 0;
  pl_tensor *at = NULL;
  pl_tensor *in = NULL;
  PL_TRY(gather_setup(c, x, k->in[1], &k->args, &dim, &at));
  pl_status st = pl_tensor_contiguous(c, x, &in);
  if (st == PL_OK) {
    st = pl_tensor_new(c, x->dtype, at->ndim, at->shape, &k->out[0]);
    k->n_out = 1;
  }
  if (st == PL_OK) {
    move_values(in, at, dim, k->out[0], false);
    k->saved[0] = k->needs_grad ? pl_tensor_ref(at) : NULL;
  }
  pl_tensor_unref(at);
  pl_tensor_unref(in);
  return st;
}

static pl_status gather_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                             pl_tensor **gin) {
  int dim = 0;
  PL_TRY(pl_norm_dim(c, n->in[0], n->args.i[0], &dim));
  pl_tensor *grad;
  PL_TRY(pl_as_dtype(c, gout[0], pl_float_of(gout[0]->dtype), &grad));
  pl_status st = pl_tensor_zeros(c, grad->dtype, n->in[0]->ndim, n->in[0]->shape, &gin[0]);
  if (st == PL_OK) {
    move_values(gin[0], n->saved[0], dim, grad, true);
  }
  pl_tensor_unref(grad);
  return st;
}

static pl_status gather_inputs(pl_ctx *c, int which, pl_dtype d, pl_call *k, int at_slot) {
  static const struct {
    int ndim;
    int64_t shape[3], at[3];
    bool gaps;
    int64_t dim;
  } all[] = {{2, {3, 4}, {3, 2}, false, 1},  {2, {3, 4}, {5, 4}, true, 0},
             {3, {2, 3, 4}, {1, 3, 6}, true, -1}, {1, {5}, {3}, false, 0},
             {2, {3, 4}, {0, 4}, false, 0}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->args = ARGS(all[which].dim);
  PL_TRY(pl_sample(c, d, which, -2, 2, all[which].gaps, all[which].ndim, all[which].shape,
                   &k->in[0]));
  int dim = 0;
  PL_TRY(pl_norm_dim(c, k->in[0], all[which].dim, &dim));
  return pl_sample_int(c, which % 2 == 0 ? PL_I32 : PL_I64, 9 + which, k->in[0]->shape[dim],
                       all[which].ndim, all[which].at, &k->in[at_slot]);
}

static pl_status gather_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  k->n_in = 2;
  return gather_inputs(c, which, d, k, 1);
}

static pl_status gather_twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  const pl_tensor *p = k->in[1];
  int dim = (int)(k->args.i[0] < 0 ? k->args.i[0] + x->ndim : k->args.i[0]);
  PL_TRY(pl_tensor_new(c, x->dtype, p->ndim, p->shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(p) > 0;
  for (; more; more = pl_next(p, i)) {
    int64_t from[PL_MAX_DIMS];
    memcpy(from, i, sizeof from);
    from[dim] = (int64_t)pl_get(p, i);
    pl_set(k->out[0], i, pl_get(x, from));
  }
  return PL_OK;
}

static const pl_op op_gather = {
    "gather", "x: tensor, dim: dim, at: pos", "Tensor",
    "y has the shape of `at`; along the dim, y[i] = x[at[i]], the other indices being the same.",
    PL_OP_METHOD | PL_OP_ANY_DTYPE | PL_OP_SHAPES_ONLY, gather_forward, gather_back, gather_sample,
    gather_twin};

static pl_status scatter_add_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  pl_tensor *values = k->in[2];
  int dim = 0;
  pl_tensor *at = NULL;
  pl_tensor *src = NULL;
  PL_TRY(gather_setup(c, x, k->in[1], &k->args, &dim, &at));
  pl_status st = PL_OK;
  if (!pl_same_shape(values, at)) {
    char tv[128];
    char ta[128];
    st = pl_fail(c, PL_EINVAL, "values %s and positions %s must have the same shape",
                 pl_shape_str(values, tv), pl_shape_str(at, ta));
  }
  if (st == PL_OK) {
    st = pl_tensor_cast(c, x, pl_float_of(pl_promote(x->dtype, values->dtype)), &k->out[0]);
    k->n_out = 1;
  }
  if (st == PL_OK) {
    st = pl_dense(c, values, k->out[0]->dtype, &src);
  }
  if (st == PL_OK) {
    move_values(k->out[0], at, dim, src, true);
    k->saved[0] = k->needs_grad ? pl_tensor_ref(at) : NULL;
  }
  pl_tensor_unref(at);
  pl_tensor_unref(src);
  return st;
}

static pl_status scatter_add_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                  pl_tensor **gin) {
  int dim = 0;
  PL_TRY(pl_norm_dim(c, n->in[0], n->args.i[0], &dim));
  if (pl_node_needs(n, 0)) {
    gin[0] = pl_tensor_ref(gout[0]);
  }
  if (pl_node_needs(n, 2)) {
    const pl_tensor *at = n->saved[0];
    PL_TRY(pl_tensor_new(c, gout[0]->dtype, at->ndim, at->shape, &gin[2]));
    move_values(gout[0], at, dim, gin[2], false);
  }
  return PL_OK;
}

static pl_status scatter_add_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  k->n_in = 3;
  PL_TRY(gather_inputs(c, which, d, k, 1));
  return pl_sample(c, d, 20 + which, -2, 2, which == 1, k->in[1]->ndim, k->in[1]->shape,
                   &k->in[2]);
}

static pl_status scatter_add_twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *p = k->in[1];
  int dim = (int)(k->args.i[0] < 0 ? k->args.i[0] + k->in[0]->ndim : k->args.i[0]);
  PL_TRY(pl_tensor_cast(c, k->in[0], k->in[0]->dtype, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(p) > 0;
  for (; more; more = pl_next(p, i)) {
    int64_t to[PL_MAX_DIMS];
    memcpy(to, i, sizeof to);
    to[dim] = (int64_t)pl_get(p, i);
    pl_set(k->out[0], to, pl_get(k->out[0], to) + pl_get(k->in[2], i));
  }
  return PL_OK;
}

static const pl_op op_scatter_add = {
    "scatter_add", "x: tensor, dim: dim, at: pos, values: tensor", "Tensor",
    "x with values[i] added at position at[i] along the dim: the reverse of gather.",
    PL_OP_METHOD | PL_OP_SHAPES_ONLY, scatter_add_forward, scatter_add_back, scatter_add_sample,
    scatter_add_twin};

/* ---- where, masked_fill ------------------------------------------------------------ */

static void where_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  size_t size = *(size_t *)arg;
  const uint8_t *m = (const uint8_t *)ptr[1];
#define CHOOSE(T)                                                                            \
  for (int64_t k = 0; k < n; k++) {                                                          \
    ((T *)ptr[0])[k * s[0]] =                                                                \
        m[k * s[1]] != 0 ? ((const T *)ptr[2])[k * s[2]] : ((const T *)ptr[3])[k * s[3]];    \
  }
  switch (size) {
    case 1: CHOOSE(uint8_t) break;
    case 2: CHOOSE(uint16_t) break;
    case 4: CHOOSE(uint32_t) break;
    default: CHOOSE(uint64_t) break;
  }
#undef CHOOSE
}

/* new tensor of the given shape: mask ? a : b, in dtype d */
static pl_status choose(pl_ctx *c, const pl_tensor *mask, const pl_tensor *a, const pl_tensor *b,
                        pl_dtype d, int ndim, const int64_t *shape, pl_tensor **out) {
  pl_tensor *m = NULL;
  pl_tensor *ta = NULL;
  pl_tensor *tb = NULL;
  pl_status st = pl_as_dtype(c, mask, PL_BOOL, &m);
  if (st == PL_OK) {
    st = pl_as_dtype(c, a, d, &ta);
  }
  if (st == PL_OK) {
    st = pl_as_dtype(c, b, d, &tb);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, d, ndim, shape, out);
  }
  if (st == PL_OK) {
    size_t size = pl_dtypes[d].size;
    pl_iter it;
    pl_iter_init(&it, ndim, shape);
    pl_iter_add(&it, *out);
    pl_iter_add(&it, m);
    pl_iter_add(&it, ta);
    pl_iter_add(&it, tb);
    pl_iter_run(&it, where_run, &size);
  }
  pl_tensor_unref(m);
  pl_tensor_unref(ta);
  pl_tensor_unref(tb);
  return st;
}

static pl_status where_forward(pl_ctx *c, pl_call *k) {
  int ndim;
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(pl_broadcast(c, k->in[1], k->in[2], &ndim, shape));
  pl_tensor both = {.ndim = ndim};
  memcpy(both.shape, shape, sizeof shape);
  PL_TRY(pl_broadcast(c, k->in[0], &both, &ndim, shape));
  pl_dtype d = pl_promote(k->in[1]->dtype, k->in[2]->dtype);
  k->n_out = 1;
  k->drop_in = 6;
  return choose(c, k->in[0], k->in[1], k->in[2], d, ndim, shape, &k->out[0]);
}

static pl_status where_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                            pl_tensor **gin) {
  pl_tensor *g = gout[0];
  pl_tensor *zero;
  PL_TRY(pl_tensor_scalar(c, g->dtype, 0, &zero));
  pl_status st = PL_OK;
  for (int j = 1; j <= 2 && st == PL_OK; j++) {
    if (!pl_node_needs(n, j)) {
      continue;
    }
    pl_tensor *full = NULL;
    st = choose(c, n->in[0], j == 1 ? g : zero, j == 1 ? zero : g, g->dtype, g->ndim, g->shape,
                &full);
    if (st == PL_OK) {
      st = pl_sum_to(c, full, n->in[j]->ndim, n->in[j]->shape, &gin[j]);
    }
    pl_tensor_unref(full);
  }
  pl_tensor_unref(zero);
  return st;
}

static pl_status where_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const struct {
    int nm, na, nb;
    int64_t m[3], a[3], b[3];
    bool gaps;
  } all[] = {{2, 2, 2, {2, 3}, {2, 3}, {2, 3}, false}, {2, 1, 0, {2, 3}, {3}, {0}, false},
             {1, 2, 2, {4}, {3, 1}, {3, 4}, true},     {2, 2, 2, {0, 3}, {0, 3}, {1, 3}, false},
             {0, 1, 1, {0}, {3}, {3}, false}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->n_in = 3;
  PL_TRY(pl_sample_int(c, PL_BOOL, which, 2, all[which].nm, all[which].m, &k->in[0]));
  PL_TRY(pl_sample(c, d, 3, -2, 2, all[which].gaps, all[which].na, all[which].a, &k->in[1]));
  return pl_sample(c, d, 4, -2, 2, all[which].gaps, all[which].nb, all[which].b, &k->in[2]);
}

static pl_status where_twin(pl_ctx *c, pl_call *k) {
  int ndim;
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(pl_broadcast(c, k->in[1], k->in[2], &ndim, shape));
  pl_tensor both = {.ndim = ndim};
  memcpy(both.shape, shape, sizeof shape);
  PL_TRY(pl_broadcast(c, k->in[0], &both, &ndim, shape));
  PL_TRY(pl_tensor_new(c, k->in[1]->dtype, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(k->out[0]) > 0;
  for (; more; more = pl_next(k->out[0], i)) {
    bool m = pl_get_broadcast(k->in[0], ndim, i) != 0;
    pl_set(k->out[0], i, pl_get_broadcast(k->in[m ? 1 : 2], ndim, i));
  }
  return PL_OK;
}

static const pl_op op_where = {
    "where", "mask: mask, a: tensor, b: tensor", "Tensor",
    "a where the mask is true, else b, with broadcasting.", PL_OP_ANY_DTYPE,
    where_forward, where_back, where_sample, where_twin};

static pl_status fill_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int ndim;
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(pl_broadcast(c, x, k->in[1], &ndim, shape));
  pl_tensor *v;
  PL_TRY(pl_tensor_scalar(c, x->dtype, k->args.f[0], &v));
  pl_status st = choose(c, k->in[1], v, x, x->dtype, ndim, shape, &k->out[0]);
  pl_tensor_unref(v);
  k->n_out = 1;
  k->drop_in = 1;
  return st;
}

static pl_status fill_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  pl_tensor *g = gout[0];
  pl_tensor *zero;
  pl_tensor *full = NULL;
  PL_TRY(pl_tensor_scalar(c, g->dtype, 0, &zero));
  pl_status st = choose(c, n->in[1], zero, g, g->dtype, g->ndim, g->shape, &full);
  if (st == PL_OK) {
    st = pl_sum_to(c, full, n->in[0]->ndim, n->in[0]->shape, &gin[0]);
  }
  pl_tensor_unref(zero);
  pl_tensor_unref(full);
  return st;
}

static pl_status fill_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const struct {
    int nx, nm;
    int64_t x[3], m[3];
    bool gaps;
  } all[] = {{2, 2, {2, 3}, {2, 3}, false}, {2, 1, {4, 3}, {3}, true},
             {1, 2, {3}, {2, 3}, false},    {2, 2, {0, 3}, {0, 3}, false}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->n_in = 2;
  k->args = (pl_args){.f = {-7.5}, .n_f = 1};
  PL_TRY(pl_sample(c, d, 3, -2, 2, all[which].gaps, all[which].nx, all[which].x, &k->in[0]));
  return pl_sample_int(c, PL_BOOL, which, 2, all[which].nm, all[which].m, &k->in[1]);
}

static pl_status fill_twin(pl_ctx *c, pl_call *k) {
  int ndim;
  int64_t shape[PL_MAX_DIMS] = {0};
  PL_TRY(pl_broadcast(c, k->in[0], k->in[1], &ndim, shape));
  PL_TRY(pl_tensor_new(c, k->in[0]->dtype, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(k->out[0]) > 0;
  for (; more; more = pl_next(k->out[0], i)) {
    bool m = pl_get_broadcast(k->in[1], ndim, i) != 0;
    pl_set(k->out[0], i, m ? k->args.f[0] : pl_get_broadcast(k->in[0], ndim, i));
  }
  return PL_OK;
}

static const pl_op op_masked_fill = {
    "masked_fill", "x: tensor, mask: mask, value: num", "Tensor",
    "x with `value` where the mask is true, with broadcasting.",
    PL_OP_METHOD | PL_OP_ANY_DTYPE, fill_forward, fill_back, fill_sample, fill_twin};

const pl_op *const pl_ops_index[] = {&pl_op_index_select, &op_gather,      &op_scatter_add,
                                     &op_where,           &op_masked_fill, NULL};
