/* Row: matmul, with PyTorch's rules for one, two and more dims. Transposed
 * views go to the product as flags, without a copy. */
#include <limits.h>
#include <string.h>

#include "autograd/opkit.h"
#include "base/par.h"
#include "base/profile.h"
#include "kernels/kernels.h"

/* below this many multiplications a matrix of a batch is done by one thread */
enum { SMALL = 64 * 64 * 64 };

/* One operand as gemm sees it: matrices [rows, cols] at ptr + offset. */
typedef struct matrix {
  pl_tensor *t; /* owned */
  bool trans;
  int64_t ld;
} matrix;

/* Finds flag and leading dimension, copying where neither way fits. */
static pl_status as_matrix(pl_ctx *c, const pl_tensor *t, pl_dtype d, matrix *m) {
  PL_TRY(pl_as_dtype(c, t, d, &m->t));
  for (int attempt = 0; attempt < 2; attempt++) {
    const pl_tensor *x = m->t;
    int64_t rows = x->shape[x->ndim - 2];
    int64_t cols = x->shape[x->ndim - 1];
    int64_t sr = x->stride[x->ndim - 2];
    int64_t sc = x->stride[x->ndim - 1];
    if ((sc == 1 || cols <= 1) && (rows <= 1 || sr >= cols)) {
      m->trans = false;
      m->ld = rows <= 1 || sr < 1 ? (cols > 0 ? cols : 1) : sr;
    } else if ((sr == 1 || rows <= 1) && (cols <= 1 || sc >= rows)) {
      m->trans = true;
      m->ld = cols <= 1 || sc < 1 ? (rows > 0 ? rows : 1) : sc;
    } else {
      pl_tensor *dense;
      PL_TRY(pl_tensor_cast(c, x, d, &dense));
      pl_tensor_unref(m->t);
      m->t = dense;
      continue;
    }
    break;
  }
  return m->ld > INT_MAX ? pl_fail(c, PL_EINVAL, "a matrix row is longer than 2^31 elements")
                         : PL_OK;
}

typedef struct batch {
  const matrix *a, *b;
  pl_tensor *y; /* contiguous [..., M, N] */
  int64_t M, N, K;
  bool serial;
} batch;

/* element offset of matrix number i of the result's batch dims in x */
static int64_t matrix_offset(const batch *w, const pl_tensor *x, int64_t i) {
  int64_t at = 0;
  for (int d = w->y->ndim - 3; d >= 0; d--) {
    int64_t k = i % w->y->shape[d];
    i /= w->y->shape[d];
    int own = d - (w->y->ndim - x->ndim);
    if (own >= 0 && x->shape[own] != 1) {
      at += k * x->stride[own];
    }
  }
  return at;
}

#define PRODUCT(T, S)                                                                         \
  do {                                                                                        \
    const T *a = (const T *)pl_data(w->a->t) + matrix_offset(w, w->a->t, i);                  \
    const T *b = (const T *)pl_data(w->b->t) + matrix_offset(w, w->b->t, i);                  \
    T *y = (T *)pl_data(w->y) + i * w->M * w->N;                                              \
    if (w->serial) {                                                                          \
      pl_gemm_small_##S(w->a->trans, w->b->trans, w->M, w->N, w->K, 1, a, w->a->ld, b,        \
                        w->b->ld, 0, y, w->N);                                                \
    } else {                                                                                  \
      pl_gemm_##S(w->a->trans, w->b->trans, w->M, w->N, w->K, 1, a, w->a->ld, b, w->b->ld, 0, \
                  y, w->N);                                                                   \
    }                                                                                         \
  } while (0)

static void one_product(void *arg, int64_t i) {
  const batch *w = arg;
  if (w->y->dtype == PL_F64) {
    PRODUCT(double, f64);
  } else {
    PRODUCT(float, f32);
  }
}

static pl_status check_sizes(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, const char *ta,
                             const char *tb) {
  int64_t ka = a->shape[a->ndim - 1];
  int64_t kb = b->shape[b->ndim - 2];
  if (ka != kb) {
    return pl_fail(c, PL_EINVAL, "%s and %s: inner sizes %lld and %lld differ%s", ta, tb,
                   (long long)ka, (long long)kb,
                   ka == b->shape[b->ndim - 1] ? " (did you mean b:transpose(-1, -2)?)" : "");
  }
  for (int d = 3; d <= a->ndim && d <= b->ndim; d++) {
    int64_t sa = a->shape[a->ndim - d];
    int64_t sb = b->shape[b->ndim - d];
    if (sa != sb && sa != 1 && sb != 1) {
      return pl_fail(c, PL_EINVAL, "%s and %s: batch sizes %lld and %lld do not broadcast", ta, tb,
                     (long long)sa, (long long)sb);
    }
  }
  return PL_OK;
}

/* a [..., M, K], b [..., K, N] -> [..., M, N], at least 2 dims each, sizes checked */
static pl_status product(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, pl_dtype d,
                         pl_tensor **out) {
  int ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
  int64_t shape[PL_MAX_DIMS];
  for (int k = 3; k <= ndim; k++) {
    int64_t sa = k <= a->ndim ? a->shape[a->ndim - k] : 1;
    int64_t sb = k <= b->ndim ? b->shape[b->ndim - k] : 1;
    shape[ndim - k] = sa == 1 ? sb : sa;
  }
  shape[ndim - 2] = a->shape[a->ndim - 2];
  shape[ndim - 1] = b->shape[b->ndim - 1];
  matrix ma = {NULL, false, 1};
  matrix mb = {NULL, false, 1};
  *out = NULL;
  pl_status st = as_matrix(c, a, d, &ma);
  if (st == PL_OK) {
    st = as_matrix(c, b, d, &mb);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, d, ndim, shape, out);
  }
  if (st == PL_OK && pl_numel(*out) > 0) {
    batch w = {&ma, &mb, *out, shape[ndim - 2], shape[ndim - 1], a->shape[a->ndim - 1], false};
    int64_t count = pl_numel(*out) / (w.M * w.N);
    pl_profile_work(c, 2.0 * (double)pl_numel(*out) * (double)w.K, 0);
    if (w.K == 0) {
      memset(pl_data(*out), 0, (*out)->storage->bytes);
    } else if (count > 1 && w.M * w.N * w.K <= SMALL) {
      w.serial = true;
      pl_parallel(count, one_product, &w);
    } else {
      for (int64_t i = 0; i < count; i++) {
        one_product(&w, i);
      }
    }
  }
  pl_tensor_unref(ma.t);
  pl_tensor_unref(mb.t);
  return st;
}

/* [..., M, K] with one matrix on the other side: rows are all that matters. */
static pl_status flat_rows(pl_ctx *c, const pl_tensor *t, pl_tensor **out) {
  pl_tensor *dense;
  PL_TRY(pl_tensor_contiguous(c, t, &dense));
  int64_t cols = t->shape[t->ndim - 1];
  int64_t rows = 1;
  for (int d = 0; d < t->ndim - 1; d++) {
    rows *= t->shape[d];
  }
  pl_status st = pl_reshaped(c, dense, 2, PL_SHAPE(rows, cols), out);
  pl_tensor_unref(dense);
  return st;
}

/* Vectors as matrices: [K] is a row on the left and a column on the right. */
static pl_status lift(pl_ctx *c, const pl_tensor *t, bool left, pl_tensor **out) {
  if (t->ndim >= 2) {
    return pl_tensor_alias(c, t, out);
  }
  const int64_t row[2] = {1, t->shape[0]};
  const int64_t col[2] = {t->shape[0], 1};
  const int64_t row_stride[2] = {t->shape[0] * t->stride[0], t->stride[0]};
  const int64_t col_stride[2] = {t->stride[0], 1};
  return pl_tensor_view(c, t, 2, left ? row : col, left ? row_stride : col_stride, t->offset, out);
}

static pl_status matmul_lifted(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, pl_dtype d,
                               pl_tensor **out) {
  if (a->ndim == 2 || b->ndim > 2) {
    return product(c, a, b, d, out);
  }
  pl_tensor *rows;
  PL_TRY(flat_rows(c, a, &rows));
  pl_tensor *y = NULL;
  pl_status st = product(c, rows, b, d, &y);
  if (st == PL_OK) {
    int64_t shape[PL_MAX_DIMS];
    memcpy(shape, a->shape, sizeof shape);
    shape[a->ndim - 1] = b->shape[1];
    st = pl_reshaped(c, y, a->ndim, shape, out);
  }
  pl_tensor_unref(rows);
  pl_tensor_unref(y);
  return st;
}

static pl_status forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *a = k->in[0];
  const pl_tensor *b = k->in[1];
  char ta[128];
  char tb[128];
  pl_shape_str(a, ta);
  pl_shape_str(b, tb);
  if (a->ndim == 0 || b->ndim == 0) {
    return pl_fail(c, PL_EINVAL, "%s and %s: both need at least 1 dim; use * to scale", ta, tb);
  }
  pl_dtype want = pl_promote(a->dtype, b->dtype);
  bool whole = !pl_dtypes[want].is_float;
  pl_tensor *la = NULL;
  pl_tensor *lb = NULL;
  pl_tensor *y = NULL;
  pl_status st = lift(c, a, true, &la);
  if (st == PL_OK) {
    st = lift(c, b, false, &lb);
  }
  if (st == PL_OK) {
    st = check_sizes(c, la, lb, ta, tb);
  }
  if (st == PL_OK) { /* integers: exact in f64 up to 2^53 */
    st = matmul_lifted(c, la, lb, whole ? PL_F64 : pl_float_of(want), &y);
  }
  if (st == PL_OK && whole) {
    pl_tensor *back;
    st = pl_tensor_cast(c, y, want == PL_BOOL ? PL_I64 : want, &back);
    pl_tensor_unref(y);
    y = st == PL_OK ? back : NULL;
  }
  if (st == PL_OK) {
    int64_t shape[PL_MAX_DIMS];
    int n = 0;
    for (int d = 0; d < y->ndim; d++) {
      bool gone = (d == y->ndim - 2 && a->ndim == 1) || (d == y->ndim - 1 && b->ndim == 1);
      if (!gone) {
        shape[n++] = y->shape[d];
      }
    }
    st = pl_reshaped(c, y, n, shape, &k->out[0]);
    k->n_out = 1;
  }
  pl_tensor_unref(la);
  pl_tensor_unref(lb);
  pl_tensor_unref(y);
  k->drop_in = (b->requires_grad ? 0 : 1) | (a->requires_grad ? 0 : 2);
  return st;
}

/* x^T on the last two dims, as a view */
static pl_status flip(pl_ctx *c, const pl_tensor *x, pl_tensor **out) {
  return pl_swapped(c, x, x->ndim - 2, x->ndim - 1, out);
}

/* g to x's shape: batch dims that were broadcast are summed, lifts undone */
static pl_status settle(pl_ctx *c, pl_tensor *full, const pl_tensor *lifted, const pl_tensor *x,
                        pl_tensor **gin) {
  pl_tensor *sum;
  PL_TRY(pl_sum_to(c, full, lifted->ndim, lifted->shape, &sum));
  pl_status st = pl_reshaped(c, sum, x->ndim, x->shape, gin);
  pl_tensor_unref(sum);
  return st;
}

/* gy = ga b^T: like the forward product, so one gemm where b is one matrix */
static pl_status back_a(pl_ctx *c, const pl_node *n, const pl_tensor *g, pl_tensor **gin) {
  pl_tensor *lb = NULL;
  pl_tensor *bt = NULL;
  pl_tensor *full = NULL;
  pl_status st = lift(c, n->in[1], false, &lb);
  if (st == PL_OK) {
    st = flip(c, lb, &bt);
  }
  if (st == PL_OK) {
    st = matmul_lifted(c, g, bt, g->dtype, &full);
  }
  if (st == PL_OK) {
    pl_tensor shape_only = *n->in[0]; /* its lifted shape */
    if (shape_only.ndim == 1) {
      shape_only.shape[1] = shape_only.shape[0];
      shape_only.shape[0] = 1;
      shape_only.ndim = 2;
    }
    st = settle(c, full, &shape_only, n->in[0], gin);
  }
  pl_tensor_unref(lb);
  pl_tensor_unref(bt);
  pl_tensor_unref(full);
  return st;
}

/* gb = a^T g, over all rows at once where b is one matrix */
static pl_status back_b(pl_ctx *c, const pl_node *n, const pl_tensor *g, pl_tensor **gin) {
  pl_tensor *la = NULL;
  pl_tensor *at = NULL;
  pl_tensor *gr = NULL;
  pl_tensor *full = NULL;
  pl_tensor shape_only = *n->in[1];
  if (shape_only.ndim == 1) {
    shape_only.shape[1] = 1;
    shape_only.ndim = 2;
  }
  pl_status st = lift(c, n->in[0], true, &la);
  if (st == PL_OK && shape_only.ndim == 2 && la->ndim > 2) {
    pl_tensor *rows;
    st = flat_rows(c, la, &rows);
    if (st == PL_OK) {
      pl_tensor_unref(la);
      la = rows;
      st = flat_rows(c, g, &gr);
    }
  } else if (st == PL_OK) {
    st = pl_tensor_alias(c, g, &gr);
  }
  if (st == PL_OK) {
    st = flip(c, la, &at);
  }
  if (st == PL_OK) {
    st = product(c, at, gr, g->dtype, &full);
  }
  if (st == PL_OK) {
    st = settle(c, full, &shape_only, n->in[1], gin);
  }
  pl_tensor_unref(la);
  pl_tensor_unref(at);
  pl_tensor_unref(gr);
  pl_tensor_unref(full);
  return st;
}

static pl_status back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  const pl_tensor *g = gout[0];
  const pl_tensor *a = n->in[0];
  const pl_tensor *b = n->in[1];
  int64_t shape[PL_MAX_DIMS] = {0};
  int w = 0;
  int batch_dims = g->ndim - (a->ndim > 1) - (b->ndim > 1);
  for (int d = 0; d < batch_dims; d++) {
    shape[w++] = g->shape[d];
  }
  shape[w++] = a->ndim > 1 ? a->shape[a->ndim - 2] : 1;
  shape[w++] = b->ndim > 1 ? b->shape[b->ndim - 1] : 1;
  pl_tensor *lifted;
  PL_TRY(pl_reshaped(c, g, w, shape, &lifted));
  pl_status st = PL_OK;
  if (pl_node_needs(n, 0)) {
    st = back_a(c, n, lifted, &gin[0]);
  }
  if (st == PL_OK && pl_node_needs(n, 1)) {
    st = back_b(c, n, lifted, &gin[1]);
  }
  pl_tensor_unref(lifted);
  return st;
}

typedef struct pair_shape {
  int na, nb;
  int64_t a[4], b[4];
  bool gaps;
} pair_shape;

static const pair_shape pairs[] = {
    {2, 2, {2, 3}, {3, 4}, false},           {2, 2, {3, 2}, {2, 5}, true},
    {1, 1, {4}, {4}, false},                 {2, 1, {2, 3}, {3}, false},
    {1, 2, {3}, {3, 2}, true},               {3, 2, {2, 3, 4}, {4, 2}, false},
    {3, 3, {2, 3, 4}, {2, 4, 2}, true},      {4, 3, {2, 1, 3, 2}, {3, 2, 2}, false},
    {3, 1, {2, 3, 4}, {4}, false},           {2, 3, {3, 4}, {2, 4, 2}, false},
    {2, 2, {0, 3}, {3, 2}, false},           {2, 2, {2, 0}, {0, 3}, false},
    {1, 3, {3}, {2, 3, 2}, false},           {2, 2, {1, 1}, {1, 1}, false},
};

static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  if (which >= (int)(sizeof pairs / sizeof pairs[0])) {
    return pl_no_more(c);
  }
  const pair_shape *p = &pairs[which];
  k->n_in = 2;
  PL_TRY(pl_sample(c, d, which, -2, 2, p->gaps, p->na, p->a, &k->in[0]));
  return pl_sample(c, d, 50 + which, -2, 2, p->gaps, p->nb, p->b, &k->in[1]);
}

/* one dot product an element, found by index arithmetic alone */
static pl_status twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *a = k->in[0];
  const pl_tensor *b = k->in[1];
  int64_t shape[PL_MAX_DIMS] = {0};
  int n = 0;
  int na = a->ndim > 2 ? a->ndim - 2 : 0;
  int nb = b->ndim > 2 ? b->ndim - 2 : 0;
  int nl = na > nb ? na : nb;
  for (int d = 0; d < nl; d++) {
    int64_t sa = d >= nl - na ? a->shape[d - (nl - na)] : 1;
    int64_t sb = d >= nl - nb ? b->shape[d - (nl - nb)] : 1;
    shape[n++] = sa > sb ? sa : sb;
  }
  if (a->ndim > 1) {
    shape[n++] = a->shape[a->ndim - 2];
  }
  if (b->ndim > 1) {
    shape[n++] = b->shape[b->ndim - 1];
  }
  PL_TRY(pl_tensor_new(c, a->dtype, n, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) == 0) {
    return PL_OK;
  }
  do {
    int64_t ia[PL_MAX_DIMS] = {0};
    int64_t ib[PL_MAX_DIMS] = {0};
    for (int d = 0; d < nl; d++) {
      if (d >= nl - na) {
        ia[d - (nl - na)] = a->shape[d - (nl - na)] == 1 ? 0 : i[d];
      }
      if (d >= nl - nb) {
        ib[d - (nl - nb)] = b->shape[d - (nl - nb)] == 1 ? 0 : i[d];
      }
    }
    if (a->ndim > 1) {
      ia[a->ndim - 2] = i[nl];
    }
    if (b->ndim > 1) {
      ib[b->ndim - 1] = i[n - 1];
    }
    double sum = 0;
    for (int64_t r = 0; r < a->shape[a->ndim - 1]; r++) {
      ia[a->ndim - 1] = r;
      ib[b->ndim > 1 ? b->ndim - 2 : 0] = r;
      sum += pl_get(a, ia) * pl_get(b, ib);
    }
    pl_set(k->out[0], i, sum);
  } while (pl_next(k->out[0], i));
  return PL_OK;
}

const pl_op pl_op_matmul = {
    "matmul", "a: tensor, b: tensor", "Tensor",
    "Matrix product: [.., M, K] and [.., K, N] give [.., M, N], batch dims broadcast; a vector "
    "on the left is a row, on the right a column, and that dim is gone from the result.",
    PL_OP_METHOD, forward, back, sample, twin};

const pl_op *const pl_ops_linalg[] = {&pl_op_matmul, NULL};
