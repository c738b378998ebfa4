/* Rows: sum, mean, var, std, norm, max, min, argmax, argmin, any, all. Sums
 * run in double in an order that depends on the sizes alone. */
#include <math.h>
#include <string.h>

#include "autograd/opkit.h"
#include "kernels/reduce.h"

#define ARGS(...)                                                                        \
  (pl_args) {                                                                            \
    .i = {__VA_ARGS__}, .n_i = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)) \
  }

/* ---- shared ------------------------------------------------------------------ */

/* g (the reduced shape) repeated to x's shape, as a view */
static pl_status spread(pl_ctx *c, const pl_tensor *g, const pl_tensor *x, const pl_dims *d,
                        pl_tensor **out) {
  int64_t stride[PL_MAX_DIMS];
  int64_t step = 1;
  for (int k = x->ndim - 1; k >= 0; k--) {
    stride[k] = d->in[k] ? 0 : step;
    step *= d->in[k] ? 1 : x->shape[k];
  }
  return pl_tensor_view(c, g, x->ndim, x->shape, stride, g->offset, out);
}

/* Samples of everything of the form (x, flags..., dims): `flags` integers stand
 * before the dims. keep: which of them is keepdim. */
static pl_status sample_dims(pl_ctx *c, int which, pl_dtype d, pl_call *k, int flags, int keep) {
  static const struct {
    int ndim;
    int64_t shape[3];
    bool gaps, keepdim;
    int n;
    int64_t dims[3];
  } all[] = {{2, {2, 3}, false, false, 0, {0}},   {2, {2, 3}, false, false, 1, {0}},
             {2, {3, 4}, true, false, 1, {-1}},   {3, {2, 3, 4}, true, true, 1, {1}},
             {3, {2, 3, 4}, false, false, 2, {0, -1}}, {1, {5}, false, true, 1, {0}},
             {0, {0}, false, false, 0, {0}},      {3, {3, 2, 70}, false, false, 2, {0, 1}}};
  if (which >= (int)(sizeof all / sizeof all[0])) {
    return pl_no_more(c);
  }
  k->n_in = 1;
  k->args = (pl_args){.n_i = flags + all[which].n};
  for (int f = 0; f < flags; f++) {
    k->args.i[f] = f == keep ? all[which].keepdim : which % 2;
  }
  memcpy(k->args.i + flags, all[which].dims, (size_t)all[which].n * sizeof(int64_t));
  return pl_sample(c, d, 60 + which, -2, 2, all[which].gaps, all[which].ndim, all[which].shape,
                   &k->in[0]);
}

/* The twins: fold every element of the reduced dims, in index order. */
typedef struct fold {
  double sum, sq, best, lo;
  int64_t n, at;
  bool nan;
} fold;

typedef double (*finish_fn)(const pl_call *k, const fold *f);

static pl_status twin_dims(pl_ctx *c, pl_call *k, int skip, bool keepdim, pl_dtype d,
                           finish_fn finish) {
  const pl_tensor *x = k->in[0];
  pl_dims m;
  PL_TRY(pl_dims_of(c, x, &k->args, skip, keepdim, &m));
  PL_TRY(pl_tensor_new(c, d, m.ndim, m.shape, &k->out[0]));
  k->n_out = 1;
  int64_t o[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) == 0) {
    return PL_OK;
  }
  do {
    fold f = {0, 0, -INFINITY, INFINITY, 0, 0, false};
    double mean = 0;
    for (int pass = 0; pass < 2; pass++) { /* the second for squared distances */
      int64_t i[PL_MAX_DIMS] = {0};
      bool more = pl_numel(x) > 0;
      for (; more; more = pl_next(x, i)) {
        bool mine = true;
        for (int q = 0, w = 0; q < x->ndim; q++) {
          if (!m.in[q]) {
            mine = mine && i[q] == o[w];
          }
          w += !m.in[q] || keepdim;
        }
        if (!mine) {
          continue;
        }
        double v = pl_get(x, i);
        if (pass == 1) {
          f.sq += (v - mean) * (v - mean);
          continue;
        }
        f.sum += v;
        f.best = v > f.best ? v : f.best;
        f.lo = v < f.lo ? v : f.lo;
        f.n++;
      }
      mean = f.sum / (double)f.n;
    }
    pl_set(k->out[0], o, finish(k, &f));
  } while (pl_next(k->out[0], o));
  return PL_OK;
}

/* ---- sum, mean ------------------------------------------------------------------ */

static pl_status sum_forward(pl_ctx *c, pl_call *k) {
  pl_dims d;
  PL_TRY(pl_dims_of(c, k->in[0], &k->args, 1, k->args.i[0] != 0, &d));
  k->n_out = 1;
  return pl_raw_sum(c, k->in[0], &d, &k->out[0]);
}

static pl_status sum_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  pl_dims d;
  PL_TRY(pl_dims_of(c, n->in[0], &n->args, 1, false, &d));
  return spread(c, gout[0], n->in[0], &d, &gin[0]);
}

static pl_status dims_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  if (which == 8) { /* nothing to add up is 0 */
    k->n_in = 1;
    k->args = ARGS(0, 0);
    return pl_sample(c, d, 1, -1, 1, false, 2, PL_SHAPE(0, 3), &k->in[0]);
  }
  return sample_dims(c, which, d, k, 1, 0);
}

static double finish_sum(const pl_call *k, const fold *f) {
  (void)k;
  return f->sum;
}

static pl_status sum_twin(pl_ctx *c, pl_call *k) {
  return twin_dims(c, k, 1, k->args.i[0] != 0, k->in[0]->dtype, finish_sum);
}

const pl_op pl_op_sum = {
    "sum", "x: tensor, dims: dims, keepdim: bool = false", "Tensor",
    "Sum over the given dims, or over all. Integers give i64.",
    PL_OP_METHOD | PL_OP_SHAPES_ONLY, sum_forward, sum_back, dims_sample, sum_twin};

static pl_status scaled(pl_ctx *c, pl_tensor *t, double by, pl_tensor **out) {
  pl_status st = pl_raw_scale(c, t, by, out);
  pl_tensor_unref(t);
  return st;
}

static pl_status mean_forward(pl_ctx *c, pl_call *k) {
  pl_dims d;
  PL_TRY(pl_dims_of(c, k->in[0], &k->args, 1, k->args.i[0] != 0, &d));
  pl_tensor *x;
  pl_tensor *sum;
  bool whole = !pl_dtypes[k->in[0]->dtype].is_float; /* f32 would round large ones */
  PL_TRY(pl_as_dtype(c, k->in[0], whole ? PL_F64 : k->in[0]->dtype, &x));
  pl_status st = pl_raw_sum(c, x, &d, &sum);
  pl_tensor_unref(x);
  PL_TRY(st);
  k->n_out = 1;
  pl_tensor *y;
  PL_TRY(scaled(c, sum, 1.0 / (double)d.count, &y)); /* of nothing: 0 * inf = NaN */
  st = pl_as_dtype(c, y, whole ? PL_F32 : y->dtype, &k->out[0]);
  pl_tensor_unref(y);
  return st;
}

static pl_status mean_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                           pl_tensor **gin) {
  pl_dims d;
  PL_TRY(pl_dims_of(c, n->in[0], &n->args, 1, false, &d));
  pl_tensor *part;
  PL_TRY(pl_raw_scale(c, gout[0], 1.0 / (double)d.count, &part));
  pl_status st = spread(c, part, n->in[0], &d, &gin[0]);
  pl_tensor_unref(part);
  return st;
}

static double finish_mean(const pl_call *k, const fold *f) {
  (void)k;
  return f->sum / (double)f->n;
}

static pl_status mean_twin(pl_ctx *c, pl_call *k) {
  return twin_dims(c, k, 1, k->args.i[0] != 0, k->in[0]->dtype, finish_mean);
}

static const pl_op op_mean = {
    "mean", "x: tensor, dims: dims, keepdim: bool = false", "Tensor",
    "Mean over the given dims, or over all; NaN of nothing. Integers give f32.",
    PL_OP_METHOD | PL_OP_SHAPES_ONLY, mean_forward, mean_back, dims_sample, mean_twin};

/* ---- var, std ------------------------------------------------------------------- */
/* i0 = unbiased, i1 = keepdim */

static double divisor(const pl_args *a, int64_t n) {
  double rest = (double)(n - (a->i[0] != 0));
  return rest > 0 ? rest : NAN;
}

/* saved: mean with kept dims */
static pl_status moments_forward(pl_ctx *c, pl_call *k, bool root) {
  const pl_tensor *x = k->in[0];
  pl_dtype dt = pl_float_of(x->dtype);
  pl_dims d;
  PL_TRY(pl_dims_of(c, x, &k->args, 2, k->args.i[1] != 0, &d));
  pl_tensor *in = NULL;
  pl_tensor *rows = NULL;
  pl_tensor *mean = NULL;
  pl_tensor *m2 = NULL;
  pl_status st = pl_as_dtype(c, x, dt, &in);
  if (st == PL_OK) {
    st = pl_rows_of(c, in, &d, &rows);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, dt, x->ndim, d.kept, &mean);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, dt, d.ndim, d.shape, &m2);
  }
  if (st == PL_OK && d.count > 0 && dt == PL_F64) {
    pl_moments_rows_f64(rows->shape[0], d.count, pl_data(rows), pl_data(mean), pl_data(m2));
  } else if (st == PL_OK && d.count > 0) {
    pl_moments_rows_f32(rows->shape[0], d.count, pl_data(rows), pl_data(mean), pl_data(m2));
  }
  if (st == PL_OK) {
    st = pl_raw_scale(c, m2, 1 / divisor(&k->args, d.count), &k->out[0]);
    k->n_out = 1;
  }
  if (st == PL_OK && root) {
    pl_tensor *y;
    st = pl_raw_unary(c, PL_U_SQRT, k->out[0], &y);
    if (st == PL_OK) {
      pl_tensor_unref(k->out[0]);
      k->out[0] = y;
      k->saved[1] = k->needs_grad ? pl_tensor_ref(y) : NULL;
    }
  }
  if (st == PL_OK && k->needs_grad) {
    k->saved[0] = pl_tensor_ref(mean);
  }
  pl_tensor_unref(in);
  pl_tensor_unref(rows);
  pl_tensor_unref(mean);
  pl_tensor_unref(m2);
  return st;
}

/* var: g * 2 (x - mean) / (n - 1); std: g (x - mean) / (std (n - 1)), 0 where std is 0 */
static pl_status moments_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin,
                          bool root) {
  const pl_tensor *x = n->in[0];
  pl_dims d;
  PL_TRY(pl_dims_of(c, x, &n->args, 2, false, &d));
  pl_tensor *off = NULL;
  pl_tensor *scale = NULL;
  pl_tensor *wide = NULL;
  pl_status st = pl_raw_binary(c, PL_B_SUB, x, n->saved[0], &off);
  if (st == PL_OK) {
    st = pl_raw_scale(c, gout[0], (root ? 1 : 2) / divisor(&n->args, d.count), &scale);
  }
  if (st == PL_OK && root) {
    int64_t i[PL_MAX_DIMS] = {0};
    bool more = pl_numel(scale) > 0;
    for (; more; more = pl_next(scale, i)) {
      double s = pl_get(n->saved[1], i);
      pl_set(scale, i, s == 0 ? 0 : pl_get(scale, i) / s);
    }
  }
  if (st == PL_OK) {
    st = spread(c, scale, x, &d, &wide);
  }
  if (st == PL_OK) {
    st = pl_raw_binary(c, PL_B_MUL, off, wide, &gin[0]);
  }
  pl_tensor_unref(off);
  pl_tensor_unref(scale);
  pl_tensor_unref(wide);
  return st;
}

static double finish_var(const pl_call *k, const fold *f) {
  return f->sq / divisor(&k->args, f->n);
}

static double finish_std(const pl_call *k, const fold *f) {
  return sqrt(finish_var(k, f));
}

/* samples 5 and 6 of the shared list would reduce a single element in one case */
static pl_status var_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  return which < 6 ? sample_dims(c, which, d, k, 2, 1) : pl_no_more(c);
}

#define SPREAD_ROW(ID, ROOT, DOC)                                                             \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                      \
    return moments_forward(c, k, ROOT);                                                           \
  }                                                                                           \
  static pl_status ID##_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,             \
                             pl_tensor **gin) {                                               \
    return moments_back(c, n, gout, gin, ROOT);                                                   \
  }                                                                                           \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                         \
    return twin_dims(c, k, 2, k->args.i[1] != 0, k->in[0]->dtype, finish_##ID);               \
  }                                                                                           \
  static const pl_op op_##ID = {#ID,                                                          \
                                "x: tensor, dims: dims, unbiased: bool = true, "              \
                                "keepdim: bool = false",                                      \
                                "Tensor",                                                     \
                                DOC,                                                          \
                                PL_OP_METHOD,                                                 \
                                ID##_forward,                                                 \
                                ID##_back,                                                    \
                                var_sample,                                                   \
                                ID##_twin};

SPREAD_ROW(var, false,
           "Variance over the given dims, or over all: squared distances from the mean, divided by "
           "n - 1, or by n where unbiased is false. NaN where nothing is left to divide by.")
SPREAD_ROW(std, true,
           "Standard deviation: the square root of var. Its gradient is 0 where it is 0.")

/* ---- norm ----------------------------------------------------------------------- */

static pl_status norm_forward(pl_ctx *c, pl_call *k) {
  double p = k->args.f[0];
  if (p != 1 && p != 2) {
    return pl_fail(c, PL_EINVAL, "p = %g: 1 and 2 are known; the infinity norm is x:abs():max()",
                   p);
  }
  pl_dims d;
  PL_TRY(pl_dims_of(c, k->in[0], &k->args, 1, k->args.i[0] != 0, &d));
  pl_tensor *x = NULL;
  pl_tensor *part = NULL;
  pl_tensor *sum = NULL;
  pl_status st = pl_as_dtype(c, k->in[0], pl_float_of(k->in[0]->dtype), &x);
  if (st == PL_OK) {
    st = pl_raw_unary(c, p == 1 ? PL_U_ABS : PL_U_SQUARE, x, &part);
  }
  if (st == PL_OK) {
    st = pl_raw_sum(c, part, &d, &sum);
  }
  if (st == PL_OK && p == 2) {
    st = pl_raw_unary(c, PL_U_SQRT, sum, &k->out[0]);
  } else if (st == PL_OK) {
    k->out[0] = pl_tensor_ref(sum);
  }
  k->n_out = 1;
  if (st == PL_OK && k->needs_grad) {
    k->saved[0] = pl_tensor_ref(k->out[0]);
  }
  pl_tensor_unref(x);
  pl_tensor_unref(part);
  pl_tensor_unref(sum);
  return st;
}

/* p = 2: g x / y, 0 where y is 0; p = 1: g sign(x) */
static pl_status norm_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                           pl_tensor **gin) {
  const pl_tensor *x = n->in[0];
  pl_dims d;
  PL_TRY(pl_dims_of(c, x, &n->args, 1, false, &d));
  pl_tensor *scale = NULL;
  pl_tensor *wide = NULL;
  pl_tensor *dir = NULL;
  pl_status st = pl_tensor_cast(c, gout[0], gout[0]->dtype, &scale);
  if (st == PL_OK && n->args.f[0] == 2) {
    int64_t i[PL_MAX_DIMS] = {0};
    bool more = pl_numel(scale) > 0;
    for (; more; more = pl_next(scale, i)) {
      double y = pl_get(n->saved[0], i);
      pl_set(scale, i, y == 0 ? 0 : pl_get(scale, i) / y);
    }
    dir = pl_tensor_ref((pl_tensor *)x);
  } else if (st == PL_OK) {
    st = pl_raw_unary(c, PL_U_SIGN, x, &dir);
  }
  if (st == PL_OK) {
    st = spread(c, scale, x, &d, &wide);
  }
  if (st == PL_OK) {
    st = pl_raw_binary(c, PL_B_MUL, dir, wide, &gin[0]);
  }
  pl_tensor_unref(scale);
  pl_tensor_unref(wide);
  pl_tensor_unref(dir);
  return st;
}

static pl_status norm_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  PL_TRY(sample_dims(c, which, d, k, 1, 0));
  k->args.f[0] = which % 3 == 2 ? 1 : 2;
  k->args.n_f = 1;
  return PL_OK;
}

static pl_status norm_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *mine;
  PL_TRY(pl_tensor_like(c, k->in[0], &mine));
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(mine) > 0;
  for (; more; more = pl_next(mine, i)) {
    pl_set(mine, i, pow(fabs(pl_get(k->in[0], i)), k->args.f[0]));
  }
  pl_tensor *was = k->in[0];
  k->in[0] = mine;
  pl_status st = twin_dims(c, k, 1, k->args.i[0] != 0, was->dtype, finish_sum);
  k->in[0] = was;
  pl_tensor_unref(mine);
  PL_TRY(st);
  int64_t o[PL_MAX_DIMS] = {0};
  more = pl_numel(k->out[0]) > 0;
  for (; more; more = pl_next(k->out[0], o)) {
    pl_set(k->out[0], o, pow(pl_get(k->out[0], o), 1 / k->args.f[0]));
  }
  return PL_OK;
}

static const pl_op op_norm = {
    "norm", "x: tensor, dims: dims, p: num = 2, keepdim: bool = false", "Tensor",
    "(sum |x|^p)^(1/p) over the given dims, or over all; p is 1 or 2. The gradient at 0 is 0.",
    PL_OP_METHOD, norm_forward, norm_back, norm_sample, norm_twin};

/* ---- max, min, argmax, argmin ----------------------------------------------------- */
/* i0 = dim or PL_ABSENT, i1 = keepdim */

static pl_status one_or_all(pl_ctx *c, const pl_tensor *x, const pl_args *a, pl_dims *d) {
  pl_args sub = {.n_i = a->i[0] == PL_ABSENT ? 0 : 1, .i = {a->i[0]}};
  PL_TRY(pl_dims_of(c, x, &sub, 0, a->i[1] != 0, d));
  if (d->count == 0) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "%s has nothing to choose from", pl_shape_str(x, text));
  }
  return PL_OK;
}

/* values in x's dtype (may be NULL) and 0-based positions, both in d's shape */
static pl_status extremes(pl_ctx *c, const pl_tensor *x, const pl_dims *d, bool smallest,
                          pl_tensor **value, pl_tensor **at) {
  bool f32 = x->dtype == PL_F32;
  pl_tensor *in = NULL;
  pl_tensor *rows = NULL;
  pl_tensor *best = NULL;
  pl_status st = pl_as_dtype(c, x, f32 ? PL_F32 : PL_F64, &in);
  if (st == PL_OK) {
    st = pl_rows_of(c, in, d, &rows);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, PL_I64, d->ndim, d->shape, at);
  }
  if (st == PL_OK && value != NULL) {
    st = pl_tensor_new(c, in->dtype, d->ndim, d->shape, &best);
  }
  if (st == PL_OK && f32) {
    pl_max_rows_f32(rows->shape[0], d->count, pl_data(rows), smallest,
                    best != NULL ? pl_data(best) : NULL, pl_data(*at));
  } else if (st == PL_OK) {
    pl_max_rows_f64(rows->shape[0], d->count, pl_data(rows), smallest,
                    best != NULL ? pl_data(best) : NULL, pl_data(*at));
  }
  if (st == PL_OK && value != NULL) {
    st = pl_as_dtype(c, best, x->dtype, value);
  }
  pl_tensor_unref(in);
  pl_tensor_unref(rows);
  pl_tensor_unref(best);
  return st;
}

static pl_status extreme_forward(pl_ctx *c, pl_call *k, bool smallest) {
  pl_dims d;
  PL_TRY(one_or_all(c, k->in[0], &k->args, &d));
  bool by_dim = k->args.i[0] != PL_ABSENT;
  pl_tensor *at = NULL;
  pl_status st = extremes(c, k->in[0], &d, smallest, &k->out[0], &at);
  k->n_out = by_dim ? 2 : 1;
  if (st == PL_OK && by_dim) {
    k->out[1] = pl_tensor_ref(at);
  }
  if (st == PL_OK && k->needs_grad) {
    /* a copy: the positions handed out may be changed in place */
    st = pl_tensor_cast(c, at, PL_I64, &k->saved[0]);
  }
  pl_tensor_unref(at);
  return st;
}

/* the gradient goes to the first of equal ones */
static pl_status extreme_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                              pl_tensor **gin) {
  const pl_tensor *x = n->in[0];
  pl_dims d;
  PL_TRY(one_or_all(c, x, &n->args, &d));
  int64_t R = pl_numel(gout[0]);
  pl_tensor *rows;
  PL_TRY(pl_tensor_zeros(c, gout[0]->dtype, 2, PL_SHAPE(R, d.count), &rows));
  const int64_t *at = pl_data(n->saved[0]);
  size_t size = pl_dtypes[rows->dtype].size;
  for (int64_t r = 0; r < R; r++) {
    memcpy((char *)pl_data(rows) + (size_t)(r * d.count + at[r]) * size,
           (const char *)pl_data(gout[0]) + (size_t)r * size, size);
  }
  pl_status st = pl_rows_back(c, rows, x, &d, &gin[0]);
  pl_tensor_unref(rows);
  return st;
}

static pl_status extreme_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  PL_TRY(sample_dims(c, which, d, k, 0, -1));
  int64_t dim = k->args.n_i == 1 ? k->args.i[0] : PL_ABSENT;
  k->args = ARGS(dim, which == 3);
  return PL_OK;
}

/* positions by a search of its own: for each output, walk the reduced dims */
static pl_status extreme_twin(pl_ctx *c, pl_call *k, double sign, bool values) {
  const pl_tensor *x = k->in[0];
  bool by_dim = k->args.i[0] != PL_ABSENT;
  pl_dims d;
  PL_TRY(one_or_all(c, x, &k->args, &d));
  pl_tensor *v;
  pl_tensor *p;
  PL_TRY(pl_tensor_new(c, x->dtype, d.ndim, d.shape, &v));
  pl_status st = pl_tensor_new(c, PL_I64, d.ndim, d.shape, &p);
  if (st != PL_OK) {
    pl_tensor_unref(v);
    return st;
  }
  int64_t o[PL_MAX_DIMS] = {0};
  do {
    double best = -INFINITY;
    int64_t place = 0;
    int64_t seen = 0;
    int64_t i[PL_MAX_DIMS] = {0};
    do {
      bool mine = true;
      for (int q = 0, w = 0; q < x->ndim; q++) {
        mine = mine && (d.in[q] || i[q] == o[w]);
        w += !d.in[q] || k->args.i[1] != 0;
      }
      if (!mine) {
        continue;
      }
      if (sign * pl_get(x, i) > best) {
        best = sign * pl_get(x, i);
        place = seen;
      }
      seen++;
    } while (pl_next(x, i));
    pl_set(v, o, sign * best);
    pl_set(p, o, (double)place);
  } while (pl_next(v, o));
  if (!values) {
    k->out[0] = p;
    k->n_out = 1;
    pl_tensor_unref(v);
    return PL_OK;
  }
  k->out[0] = v;
  k->n_out = by_dim ? 2 : 1;
  if (by_dim) {
    k->out[1] = p;
  } else {
    pl_tensor_unref(p);
  }
  return PL_OK;
}

static pl_status arg_forward(pl_ctx *c, pl_call *k, bool smallest) {
  pl_dims d;
  PL_TRY(one_or_all(c, k->in[0], &k->args, &d));
  k->n_out = 1;
  return extremes(c, k->in[0], &d, smallest, NULL, &k->out[0]);
}

#define EXTREME(ID, SMALLEST, SIGN, DOC, ARG_DOC)                                                  \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                           \
    return extreme_forward(c, k, SMALLEST);                                                        \
  }                                                                                                \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                              \
    return extreme_twin(c, k, SIGN, true);                                                         \
  }                                                                                                \
  static const pl_op op_##ID = {#ID,                                                               \
                                "x: tensor, dim: dim?, keepdim: bool = false",                     \
                                "Tensor[, Positions]",                                             \
                                DOC,                                                               \
                                PL_OP_METHOD | PL_OP_SHAPES_ONLY,                                  \
                                ID##_forward,                                                      \
                                extreme_back,                                                      \
                                extreme_sample,                                                    \
                                ID##_twin};                                                        \
  static pl_status arg##ID##_forward(pl_ctx *c, pl_call *k) {                                      \
    return arg_forward(c, k, SMALLEST);                                                            \
  }                                                                                                \
  static pl_status arg##ID##_twin(pl_ctx *c, pl_call *k) {                                         \
    return extreme_twin(c, k, SIGN, false);                                                        \
  }                                                                                                \
  static const pl_op op_arg##ID = {"arg" #ID,                                                      \
                                   "x: tensor, dim: dim?, keepdim: bool = false",                  \
                                   "Positions",                                                    \
                                   ARG_DOC,                                                        \
                                   PL_OP_METHOD | PL_OP_NO_F64,                                    \
                                   arg##ID##_forward,                                              \
                                   NULL,                                                           \
                                   extreme_sample,                                                 \
                                   arg##ID##_twin};

EXTREME(max, false, 1,
        "The largest element of all; with a dim, the largest along it and their positions. NaN "
        "wins; the gradient goes to the first of equal ones.",
        "Position of the largest element along a dim, or in the flattened tensor; the first of "
        "equal ones.")
EXTREME(min, true, -1,
        "The smallest element of all; with a dim, the smallest along it and their positions. NaN "
        "wins; the gradient goes to the first of equal ones.",
        "Position of the smallest element along a dim, or in the flattened tensor; the first of "
        "equal ones.")

/* ---- any, all --------------------------------------------------------------------- */

static pl_status truth_forward(pl_ctx *c, pl_call *k, bool all) {
  pl_dims d;
  PL_TRY(pl_dims_of(c, k->in[0], &k->args, 1, k->args.i[0] != 0, &d));
  pl_tensor *truth = NULL;
  pl_tensor *rows = NULL;
  pl_status st = pl_as_dtype(c, k->in[0], PL_BOOL, &truth);
  if (st == PL_OK) {
    st = pl_rows_of(c, truth, &d, &rows);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, PL_BOOL, d.ndim, d.shape, &k->out[0]);
    k->n_out = 1;
  }
  for (int64_t r = 0; st == PL_OK && r < rows->shape[0]; r++) {
    const uint8_t *x = (const uint8_t *)pl_data(rows) + r * d.count;
    bool found = memchr(x, all ? 0 : 1, (size_t)d.count) != NULL;
    ((uint8_t *)pl_data(k->out[0]))[r] = found != all;
  }
  pl_tensor_unref(truth);
  pl_tensor_unref(rows);
  return st;
}

static double finish_any(const pl_call *k, const fold *f) {
  (void)k;
  return f->best > 0 || f->lo < 0;
}

static double finish_all(const pl_call *k, const fold *f) {
  (void)k;
  return f->n == 0 || f->lo > 0; /* the samples are 0 or 1 */
}

static pl_status truth_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  PL_TRY(dims_sample(c, which, d, k));
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(k->in[0]) > 0;
  for (; more; more = pl_next(k->in[0], i)) {
    pl_set(k->in[0], i, pl_get(k->in[0], i) > (which % 2 == 0 ? -1 : 1));
  }
  return PL_OK;
}

#define TRUTH(ID, ALL, DOC)                                                                  \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                     \
    return truth_forward(c, k, ALL);                                                         \
  }                                                                                          \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                        \
    return twin_dims(c, k, 1, k->args.i[0] != 0, PL_BOOL, finish_##ID);                      \
  }                                                                                          \
  static const pl_op op_##ID = {#ID,                                                         \
                                "x: tensor, dims: dims, keepdim: bool = false",              \
                                "Tensor",                                                    \
                                DOC,                                                         \
                                PL_OP_METHOD | PL_OP_NO_F64,                                 \
                                ID##_forward,                                                \
                                NULL,                                                        \
                                truth_sample,                                                \
                                ID##_twin};

TRUTH(any, false, "true where some element of the given dims, or of all, is not 0 (bool).")
TRUTH(all, true, "true where no element of the given dims, or of all, is 0 (bool).")

const pl_op *const pl_ops_reduce[] = {&pl_op_sum, &op_mean, &op_var,    &op_std,    &op_norm,
                                      &op_max,    &op_min,  &op_argmax, &op_argmin, &op_any,
                                      &op_all,    NULL};
