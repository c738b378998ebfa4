/* Arithmetic on tensors without recording, see opkit.h. */
#include "autograd/opkit.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/reduce.h"
#include "tensor/iter.h"

pl_dtype pl_float_of(pl_dtype d) {
  return d == PL_F64 ? PL_F64 : PL_F32;
}

pl_status pl_as_dtype(pl_ctx *c, const pl_tensor *t, pl_dtype d, pl_tensor **out) {
  if (t->dtype == d) {
    *out = pl_tensor_ref((pl_tensor *)t);
    return PL_OK;
  }
  return pl_tensor_cast(c, t, d, out);
}

pl_status pl_dense(pl_ctx *c, const pl_tensor *t, pl_dtype d, pl_tensor **out) {
  if (t->dtype == d) {
    return pl_tensor_contiguous(c, t, out);
  }
  return pl_tensor_cast(c, t, d, out);
}

/* ---- unary --------------------------------------------------------------- */

static void unary_run_f32(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_unary_f32(*(pl_unary_code *)arg, n, (float *)ptr[1], s[1], (float *)ptr[0]);
}

static void unary_run_f64(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_unary_f64(*(pl_unary_code *)arg, n, (double *)ptr[1], s[1], (double *)ptr[0]);
}

/* the few ops under which integers stay integers */
static void unary_run_i64(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_unary_code op = *(pl_unary_code *)arg;
  const int64_t *x = (const int64_t *)ptr[1];
  int64_t *y = (int64_t *)ptr[0];
  for (int64_t k = 0; k < n; k++) {
    int64_t v = x[k * s[1]];
    uint64_t u = (uint64_t)v; /* wraps where int64 overflows */
    switch (op) {
      case PL_U_NEG: y[k] = (int64_t)(0 - u); break;
      case PL_U_ABS: y[k] = v < 0 ? (int64_t)(0 - u) : v; break;
      case PL_U_SIGN: y[k] = (v > 0) - (v < 0); break;
      case PL_U_SQUARE: y[k] = (int64_t)(u * u); break;
      default: y[k] = op == PL_U_RELU && v < 0 ? 0 : v; break;
    }
  }
}

static bool stays_integer(pl_unary_code op) {
  return op == PL_U_NEG || op == PL_U_ABS || op == PL_U_SIGN || op == PL_U_SQUARE ||
         op == PL_U_RELU || op == PL_U_FLOOR || op == PL_U_ROUND;
}

pl_status pl_raw_unary(pl_ctx *c, pl_unary_code op, const pl_tensor *x, pl_tensor **out) {
  bool whole = !pl_dtypes[x->dtype].is_float && stays_integer(op);
  pl_dtype d = whole ? PL_I64 : pl_float_of(x->dtype);
  pl_tensor *y = NULL;
  pl_tensor *in = NULL;
  pl_status st = pl_as_dtype(c, x, d, &in);
  if (st == PL_OK) {
    st = pl_tensor_new(c, d, x->ndim, x->shape, &y);
  }
  if (st == PL_OK) {
    pl_iter it;
    pl_iter_init(&it, y->ndim, y->shape);
    pl_iter_add(&it, y);
    pl_iter_add(&it, in);
    pl_iter_run(&it, whole ? unary_run_i64 : d == PL_F64 ? unary_run_f64 : unary_run_f32, &op);
  }
  if (st == PL_OK && whole && x->dtype == PL_I32) {
    pl_tensor *narrow;
    st = pl_tensor_cast(c, y, PL_I32, &narrow);
    pl_tensor_unref(y);
    y = st == PL_OK ? narrow : NULL;
  }
  pl_tensor_unref(in);
  *out = y;
  return st;
}

/* ---- binary -------------------------------------------------------------- */

static void binary_run_f32(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_binary_f32(*(pl_binary_code *)arg, n, (float *)ptr[1], s[1], (float *)ptr[2], s[2],
                (float *)ptr[0], s[0]);
}

static void binary_run_f64(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_binary_f64(*(pl_binary_code *)arg, n, (double *)ptr[1], s[1], (double *)ptr[2], s[2],
                (double *)ptr[0], s[0]);
}

static int64_t whole_power(int64_t base, int64_t exp) {
  if (exp < 0) { /* the true value is a fraction, or +-1 */
    return base == 1 ? 1 : base == -1 ? (exp % 2 != 0 ? -1 : 1) : 0;
  }
  uint64_t r = 1;
  uint64_t b = (uint64_t)base;
  for (; exp > 0; exp >>= 1) {
    r = (exp & 1) != 0 ? r * b : r;
    b *= b;
  }
  return (int64_t)r;
}

static void binary_run_i64(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_binary_code op = *(pl_binary_code *)arg;
  const int64_t *a = (const int64_t *)ptr[1];
  const int64_t *b = (const int64_t *)ptr[2];
  int64_t *y = (int64_t *)ptr[0];
  for (int64_t k = 0; k < n; k++) {
    int64_t u = a[k * s[1]];
    int64_t v = b[k * s[2]];
    int64_t r = 0;
    switch (op) { /* unsigned inside: overflow wraps, as in Lua */
      case PL_B_ADD: r = (int64_t)((uint64_t)u + (uint64_t)v); break;
      case PL_B_SUB: r = (int64_t)((uint64_t)u - (uint64_t)v); break;
      case PL_B_MUL: r = (int64_t)((uint64_t)u * (uint64_t)v); break;
      case PL_B_MAX: r = u > v ? u : v; break;
      case PL_B_MIN: r = u < v ? u : v; break;
      default: r = whole_power(u, v); break;
    }
    y[k * s[0]] = r;
  }
}

static pl_iter_fn binary_loop(pl_dtype d) {
  return d == PL_F64 ? binary_run_f64 : d == PL_F32 ? binary_run_f32 : binary_run_i64;
}

pl_status pl_raw_binary(pl_ctx *c, pl_binary_code op, const pl_tensor *a, const pl_tensor *b,
                        pl_tensor **out) {
  *out = NULL;
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  PL_TRY(pl_broadcast(c, a, b, &ndim, shape));
  pl_dtype want = pl_promote(a->dtype, b->dtype);
  bool whole = !pl_dtypes[want].is_float && op != PL_B_DIV;
  pl_dtype d = whole ? PL_I64 : pl_float_of(want);
  pl_tensor *ta = NULL;
  pl_tensor *tb = NULL;
  pl_tensor *y = NULL;
  pl_status st = pl_as_dtype(c, a, d, &ta);
  if (st == PL_OK) {
    st = pl_as_dtype(c, b, d, &tb);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, d, ndim, shape, &y);
  }
  if (st == PL_OK) {
    pl_iter it;
    pl_iter_init(&it, ndim, shape);
    pl_iter_add(&it, y);
    pl_iter_add(&it, ta);
    pl_iter_add(&it, tb);
    pl_iter_run(&it, binary_loop(d), &op);
  }
  if (st == PL_OK && whole && want == PL_I32) {
    pl_tensor *narrow;
    st = pl_tensor_cast(c, y, want, &narrow);
    pl_tensor_unref(y);
    y = st == PL_OK ? narrow : NULL;
  }
  pl_tensor_unref(ta);
  pl_tensor_unref(tb);
  *out = y;
  return st;
}

pl_status pl_raw_add(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, pl_tensor **out) {
  return pl_raw_binary(c, PL_B_ADD, a, b, out);
}

pl_status pl_raw_binary_into(pl_ctx *c, pl_binary_code op, pl_tensor *dst, const pl_tensor *b) {
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  PL_TRY(pl_broadcast(c, dst, b, &ndim, shape));
  bool fits = ndim == dst->ndim;
  for (int d = 0; fits && d < ndim; d++) {
    fits = shape[d] == dst->shape[d];
  }
  if (!fits) {
    char td[128];
    char tb[128];
    return pl_fail(c, PL_EINVAL, "%s cannot be changed in place by %s: the result would be larger",
                   pl_shape_str(dst, td), pl_shape_str(b, tb));
  }
  bool direct = dst->dtype == PL_F32 || dst->dtype == PL_F64 || dst->dtype == PL_I64;
  bool whole = !pl_dtypes[dst->dtype].is_float;
  if (!direct || (whole && (op == PL_B_DIV || pl_dtypes[b->dtype].is_float))) {
    pl_tensor *y; /* by way of the full operation: bf16, i32, bool, integer division */
    PL_TRY(pl_raw_binary(c, op, dst, b, &y));
    pl_status st = pl_tensor_copy(c, dst, y);
    pl_tensor_unref(y);
    return st;
  }
  pl_tensor *tb = NULL;
  if (b->storage == dst->storage) {
    PL_TRY(pl_tensor_cast(c, b, dst->dtype, &tb)); /* may overlap */
  } else {
    PL_TRY(pl_as_dtype(c, b, dst->dtype, &tb));
  }
  pl_iter it;
  pl_iter_init(&it, ndim, shape);
  pl_iter_add(&it, dst);
  pl_iter_add(&it, dst);
  pl_iter_add(&it, tb);
  pl_iter_run(&it, binary_loop(dst->dtype), &op);
  dst->storage->version++;
  pl_tensor_unref(tb);
  return PL_OK;
}

pl_status pl_raw_add_into(pl_ctx *c, pl_tensor *dst, const pl_tensor *b) {
  return pl_raw_binary_into(c, PL_B_ADD, dst, b);
}

pl_status pl_raw_scale(pl_ctx *c, const pl_tensor *x, double by, pl_tensor **out) {
  pl_tensor *s;
  PL_TRY(pl_tensor_scalar(c, pl_float_of(x->dtype), by, &s));
  pl_status st = pl_raw_binary(c, PL_B_MUL, x, s, out);
  pl_tensor_unref(s);
  return st;
}

/* ---- views --------------------------------------------------------------- */

pl_status pl_reshaped(pl_ctx *c, const pl_tensor *t, int ndim, const int64_t *shape,
                      pl_tensor **out) {
  int64_t stride[PL_MAX_DIMS];
  int64_t step = 1;
  for (int d = ndim - 1; d >= 0; d--) {
    stride[d] = step;
    step *= shape[d] > 1 ? shape[d] : 1;
  }
  return pl_tensor_view(c, t, ndim, shape, stride, t->offset, out);
}

pl_status pl_swapped(pl_ctx *c, const pl_tensor *t, int a, int b, pl_tensor **out) {
  PL_TRY(pl_tensor_alias(c, t, out));
  pl_tensor *v = *out;
  v->shape[a] = t->shape[b];
  v->shape[b] = t->shape[a];
  v->stride[a] = t->stride[b];
  v->stride[b] = t->stride[a];
  return PL_OK;
}

/* ---- reductions ----------------------------------------------------------- */

pl_status pl_norm_dim(pl_ctx *c, const pl_tensor *t, int64_t dim, int *out) {
  int64_t d = dim < 0 ? dim + t->ndim : dim;
  if (d < 0 || d >= t->ndim) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "dim %lld is not a dim of %s (it has %d)",
                   (long long)(dim < 0 ? dim : dim + 1), pl_shape_str(t, text), t->ndim);
  }
  *out = (int)d;
  return PL_OK;
}

static void dims_finish(const pl_tensor *x, bool keepdim, pl_dims *d) {
  d->count = 1;
  d->ndim = 0;
  for (int k = 0; k < x->ndim; k++) {
    d->kept[k] = d->in[k] ? 1 : x->shape[k];
    if (d->in[k]) {
      d->count *= x->shape[k];
    }
    if (!d->in[k] || keepdim) {
      d->shape[d->ndim++] = d->kept[k];
    }
  }
}

pl_status pl_dims_of(pl_ctx *c, const pl_tensor *x, const pl_args *a, int skip, bool keepdim,
                     pl_dims *d) {
  memset(d, 0, sizeof *d);
  bool all = a->n_i <= skip;
  for (int k = 0; all && k < x->ndim; k++) {
    d->in[k] = true;
  }
  for (int k = skip; k < a->n_i; k++) {
    int dim = 0;
    PL_TRY(pl_norm_dim(c, x, a->i[k], &dim));
    if (d->in[dim]) {
      return pl_fail(c, PL_EINVAL, "dim %d is given twice", dim + 1);
    }
    d->in[dim] = true;
  }
  dims_finish(x, keepdim, d);
  return PL_OK;
}

void pl_dims_one(const pl_tensor *x, int dim, bool keepdim, pl_dims *d) {
  memset(d, 0, sizeof *d);
  d->in[dim] = true;
  dims_finish(x, keepdim, d);
}

/* x with the marked dims last, as a view; perm: where each dim went */
static pl_status marked_last(pl_ctx *c, const pl_tensor *x, const pl_dims *d, pl_tensor **out) {
  int64_t shape[PL_MAX_DIMS] = {0};
  int64_t stride[PL_MAX_DIMS] = {0};
  int w = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (int k = 0; k < x->ndim; k++) {
      if (d->in[k] == (pass == 1)) {
        shape[w] = x->shape[k];
        stride[w++] = x->stride[k];
      }
    }
  }
  return pl_tensor_view(c, x, x->ndim, shape, stride, x->offset, out);
}

pl_status pl_rows_of(pl_ctx *c, const pl_tensor *x, const pl_dims *d, pl_tensor **out) {
  pl_tensor *v;
  PL_TRY(marked_last(c, x, d, &v));
  pl_tensor *dense;
  pl_status st = pl_tensor_contiguous(c, v, &dense);
  pl_tensor_unref(v);
  PL_TRY(st);
  int64_t R = 1;
  for (int k = 0; k < x->ndim; k++) {
    R *= d->in[k] ? 1 : x->shape[k];
  }
  st = pl_reshaped(c, dense, 2, PL_SHAPE(R, d->count), out);
  pl_tensor_unref(dense);
  return st;
}

pl_status pl_rows_back(pl_ctx *c, const pl_tensor *rows, const pl_tensor *x, const pl_dims *d,
                       pl_tensor **out) {
  int64_t shape[PL_MAX_DIMS] = {0};
  int64_t stride[PL_MAX_DIMS] = {0};
  int64_t step = 1;
  for (int pass = 1; pass >= 0; pass--) {
    for (int k = x->ndim - 1; k >= 0; k--) {
      if (d->in[k] == (pass == 1)) {
        shape[k] = x->shape[k];
        stride[k] = step;
        step *= x->shape[k];
      }
    }
  }
  return pl_tensor_view(c, rows, x->ndim, shape, stride, rows->offset, out);
}

/* Are the marked dims neighbours? Then x (contiguous) is [A, n, C]. */
static bool one_run(const pl_tensor *x, const pl_dims *d, int64_t *A, int64_t *n, int64_t *C) {
  *A = *n = *C = 1;
  int at = 0;
  for (; at < x->ndim && !d->in[at]; at++) {
    *A *= x->shape[at];
  }
  for (; at < x->ndim && d->in[at]; at++) {
    *n *= x->shape[at];
  }
  for (; at < x->ndim && !d->in[at]; at++) {
    *C *= x->shape[at];
  }
  return at == x->ndim;
}

static void sum_i64(int64_t R, int64_t n, const int64_t *x, int64_t *y) {
  for (int64_t r = 0; r < R; r++) {
    uint64_t sum = 0;
    for (int64_t k = 0; k < n; k++) {
      sum += (uint64_t)x[r * n + k];
    }
    y[r] = (int64_t)sum;
  }
}

pl_status pl_raw_sum(pl_ctx *c, const pl_tensor *x, const pl_dims *d, pl_tensor **out) {
  bool whole = !pl_dtypes[x->dtype].is_float;
  pl_dtype dt = whole ? PL_I64 : pl_float_of(x->dtype);
  int64_t A;
  int64_t n;
  int64_t C;
  pl_tensor *in = NULL;
  pl_tensor *dense = NULL;
  pl_tensor *y = NULL;
  pl_status st = pl_as_dtype(c, x, dt, &in);
  if (st == PL_OK && one_run(in, d, &A, &n, &C) && !whole) {
    st = pl_tensor_contiguous(c, in, &dense);
  } else if (st == PL_OK) {
    st = pl_rows_of(c, in, d, &dense);
    A = st == PL_OK ? dense->shape[0] : 0;
    n = d->count;
    C = 1;
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, dt, d->ndim, d->shape, &y);
  }
  if (st == PL_OK && whole) {
    sum_i64(A, n, pl_data(dense), pl_data(y));
  } else if (st == PL_OK && dt == PL_F64) {
    pl_sum_axis_f64(A, n, C, pl_data(dense), pl_data(y));
  } else if (st == PL_OK) {
    pl_sum_axis_f32(A, n, C, pl_data(dense), pl_data(y));
  }
  pl_tensor_unref(in);
  pl_tensor_unref(dense);
  *out = y;
  return st;
}

pl_status pl_sum_to(pl_ctx *c, pl_tensor *g, int ndim, const int64_t *shape, pl_tensor **out) {
  pl_dims d = {.count = 1};
  int lead = g->ndim - ndim;
  bool any = lead > 0;
  for (int k = 0; k < g->ndim; k++) {
    d.in[k] = k < lead || (shape[k - lead] == 1 && g->shape[k] != 1);
    any = any || d.in[k];
  }
  if (!any) {
    *out = pl_tensor_ref(g);
    return PL_OK;
  }
  for (int k = 0; k < g->ndim; k++) {
    d.count *= d.in[k] ? g->shape[k] : 1;
  }
  d.ndim = ndim;
  if (ndim > 0) {
    memcpy(d.shape, shape, (size_t)ndim * sizeof *shape);
  }
  return pl_raw_sum(c, g, &d, out);
}

/* ---- test inputs ---------------------------------------------------------- */

bool pl_next(const pl_tensor *t, int64_t *index) {
  for (int d = t->ndim - 1; d >= 0; d--) {
    if (++index[d] < t->shape[d]) {
      return true;
    }
    index[d] = 0;
  }
  return false;
}

pl_status pl_no_more(pl_ctx *c) {
  return pl_fail(c, PL_ENOENT, "no more samples");
}

double pl_get_broadcast(const pl_tensor *t, int ndim, const int64_t *index) {
  int64_t own[PL_MAX_DIMS] = {0};
  for (int d = 0; d < t->ndim; d++) {
    own[d] = t->shape[d] == 1 ? 0 : index[ndim - t->ndim + d];
  }
  return pl_get(t, own);
}

pl_status pl_sample(pl_ctx *c, pl_dtype d, int seed, double lo, double hi, bool gaps, int ndim,
                    const int64_t *shape, pl_tensor **out) {
  pl_tensor *t;
  if (gaps) { /* every dim but the last twice too long, order of dims reversed */
    int64_t big[PL_MAX_DIMS] = {0};
    for (int k = 0; k < ndim; k++) {
      big[ndim - 1 - k] = k == 0 ? shape[k] : 2 * shape[k];
    }
    pl_tensor *base;
    PL_TRY(pl_tensor_zeros(c, d, ndim, big, &base));
    int64_t stride[PL_MAX_DIMS];
    for (int k = 0; k < ndim; k++) {
      stride[k] = base->stride[ndim - 1 - k] * (k == 0 ? 1 : 2);
    }
    pl_status st = pl_tensor_view(c, base, ndim, shape, stride, 0, &t);
    pl_tensor_unref(base);
    PL_TRY(st);
  } else {
    PL_TRY(pl_tensor_new(c, d, ndim, shape, &t));
  }
  int64_t index[PL_MAX_DIMS] = {0};
  uint64_t at = 0;
  if (pl_numel(t) > 0) {
    do {
      double v = lo + (hi - lo) * pl_uniform((uint64_t)seed, 77, at++);
      pl_set(t, index, (float)v); /* the same values in f32 and f64 */
    } while (pl_next(t, index));
  }
  *out = t;
  return PL_OK;
}

pl_status pl_sample_int(pl_ctx *c, pl_dtype d, int seed, int64_t below, int ndim,
                        const int64_t *shape, pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, d, ndim, shape, out));
  int64_t index[PL_MAX_DIMS] = {0};
  uint64_t at = 0;
  if (pl_numel(*out) > 0) {
    do {
      pl_set(*out, index, floor((double)below * pl_uniform((uint64_t)seed, 78, at++)));
    } while (pl_next(*out, index));
  }
  return PL_OK;
}

pl_status pl_scalar_like(pl_ctx *c, const pl_tensor *other, double v, bool is_int,
                         pl_tensor **out) {
  pl_dtype d = other->dtype;
  if (!pl_dtypes[d].is_float) {
    d = is_int ? (d == PL_BOOL ? PL_I64 : d) : PL_F32;
  }
  return pl_tensor_scalar(c, d == PL_BF16 ? PL_F32 : d, v, out);
}
