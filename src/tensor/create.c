/* Making tensors, see create.h. */
#include "tensor/create.h"

#include <math.h>
#include <string.h>

#include "base/par.h"
#include "base/rng.h"

enum { BLOCK = 16384 };

typedef enum maker_kind { RANGE, UNIFORM, NORMAL, WHOLE } maker_kind;

typedef struct maker {
  maker_kind kind;
  pl_tensor *t;
  int64_t n;
  double a, b;
  int64_t lo, span;
  uint64_t seed, stream;
} maker;

static double value(const maker *m, int64_t k) {
  switch (m->kind) {
    case RANGE: return m->a + (double)k * m->b;
    case UNIFORM: return m->a + (m->b - m->a) * pl_uniform(m->seed, m->stream, (uint64_t)k);
    case NORMAL: return m->a + m->b * pl_normal(m->seed, m->stream, (uint64_t)k);
    case WHOLE: {
      double u = floor(pl_uniform(m->seed, m->stream, (uint64_t)k) * (double)m->span);
      return (double)m->lo + (u < (double)m->span ? u : (double)(m->span - 1));
    }
  }
  return 0;
}

static void make_block(void *arg, int64_t b) {
  const maker *m = arg;
  int64_t end = (b + 1) * BLOCK < m->n ? (b + 1) * BLOCK : m->n;
  pl_tensor flat = *m->t; /* one dim, for pl_set */
  flat.ndim = 1;
  flat.stride[0] = 1;
  if (m->t->dtype == PL_F32) {
    float *y = pl_f32(m->t);
    for (int64_t k = b * BLOCK; k < end; k++) {
      y[k] = (float)value(m, k);
    }
  } else {
    for (int64_t k = b * BLOCK; k < end; k++) {
      pl_set(&flat, &k, value(m, k));
    }
  }
}

static pl_status make(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, maker *m,
                      pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, d, ndim, shape, out));
  m->t = *out;
  m->n = pl_numel(*out);
  int64_t blocks = (m->n + BLOCK - 1) / BLOCK;
  if (blocks == 1) {
    make_block(m, 0);
  } else if (blocks > 1) {
    pl_parallel(blocks, make_block, m);
  }
  return PL_OK;
}

pl_status pl_make_full(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, double v,
                       pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, d, ndim, shape, out));
  return pl_fill(*out, v);
}

pl_status pl_make_arange(pl_ctx *c, pl_dtype d, double start, double stop, double step,
                         pl_tensor **out) {
  *out = NULL;
  double n = ceil((stop - start) / step);
  if (step == 0 || !isfinite(n)) {
    return pl_fail(c, PL_EINVAL, "arange: no such range: from %g to %g by steps of %g", start,
                   stop, step);
  }
  if (n > 1e15) {
    return pl_fail(c, PL_EINVAL, "arange: %.0f elements are too many", n);
  }
  int64_t size = n > 0 ? (int64_t)n : 0;
  return make(c, d, 1, &size, &(maker){.kind = RANGE, .a = start, .b = step}, out);
}

pl_status pl_make_linspace(pl_ctx *c, pl_dtype d, double start, double stop, int64_t n,
                           pl_tensor **out) {
  double step = n > 1 ? (stop - start) / (double)(n - 1) : 0;
  PL_TRY(make(c, d, 1, &n, &(maker){.kind = RANGE, .a = start, .b = step}, out));
  if (n > 1) {
    int64_t last = n - 1;
    pl_set(*out, &last, stop); /* exactly, not by n - 1 rounded steps */
  }
  return PL_OK;
}

pl_status pl_make_eye(pl_ctx *c, pl_dtype d, int64_t rows, int64_t cols, pl_tensor **out) {
  const int64_t shape[2] = {rows, cols};
  PL_TRY(pl_tensor_zeros(c, d, 2, shape, out));
  for (int64_t k = 0; k < rows && k < cols; k++) {
    const int64_t at[2] = {k, k};
    pl_set(*out, at, 1);
  }
  return PL_OK;
}

pl_status pl_make_rand(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, double lo, double hi,
                       uint64_t seed, uint64_t stream, pl_tensor **out) {
  maker m = {.kind = UNIFORM, .a = lo, .b = hi, .seed = seed, .stream = stream};
  return make(c, d, ndim, shape, &m, out);
}

pl_status pl_make_randn(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, double mean,
                        double std, uint64_t seed, uint64_t stream, pl_tensor **out) {
  maker m = {.kind = NORMAL, .a = mean, .b = std, .seed = seed, .stream = stream};
  return make(c, d, ndim, shape, &m, out);
}

pl_status pl_make_randint(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, int64_t lo,
                          int64_t hi, uint64_t seed, uint64_t stream, pl_tensor **out) {
  *out = NULL;
  int64_t span;
  if (lo >= hi || __builtin_sub_overflow(hi, lo, &span)) {
    return pl_fail(c, PL_EINVAL, "randint: no whole number from %lld on below %lld", (long long)lo,
                   (long long)hi);
  }
  maker m = {.kind = WHOLE, .lo = lo, .span = span, .seed = seed, .stream = stream};
  return make(c, d, ndim, shape, &m, out);
}

pl_status pl_make_randperm(pl_ctx *c, int64_t n, uint64_t seed, uint64_t stream, pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, PL_I64, 1, &n, out));
  pl_permutation(seed, stream, n, pl_i64(*out));
  return PL_OK;
}

/* first position whose running sum is above u */
static int64_t draw(const double *sum, int64_t n, double u) {
  int64_t lo = 0;
  int64_t hi = n - 1;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (sum[mid] > u) {
      hi = mid;
    } else {
      lo = mid + 1;
    }
  }
  return lo;
}

static void draw_with(const double *w, int64_t n, int64_t k, double *sum, uint64_t seed,
                      uint64_t stream, uint64_t from, int64_t *out) {
  double total = 0;
  int64_t last = 0; /* rounding must not reach a weight of 0 behind it */
  for (int64_t i = 0; i < n; i++) {
    total += w[i];
    sum[i] = total;
    last = w[i] > 0 ? i : last;
  }
  for (int64_t j = 0; j < k; j++) {
    int64_t at = draw(sum, n, total * pl_uniform(seed, stream, from + (uint64_t)j));
    out[j] = at > last ? last : at;
  }
}

/* the k largest of log(u)/w */
static void draw_without(const double *w, int64_t n, int64_t k, double *key, uint64_t seed,
                         uint64_t stream, uint64_t from, int64_t *out) {
  for (int64_t i = 0; i < n; i++) {
    double u = 1 - pl_uniform(seed, stream, from + (uint64_t)i); /* (0, 1] */
    key[i] = w[i] > 0 ? log(u) / w[i] : -INFINITY;
  }
  for (int64_t j = 0; j < k; j++) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) {
      best = key[i] > key[best] ? i : best;
    }
    out[j] = best;
    key[best] = -INFINITY;
  }
}

static pl_status check_weights(pl_ctx *c, const double *w, int64_t n, int64_t k,
                               bool replacement) {
  double total = 0;
  int64_t positive = 0;
  for (int64_t i = 0; i < n; i++) {
    if (!(w[i] >= 0) || isinf(w[i])) {
      return pl_fail(c, PL_EINVAL, "multinomial: weight %g at position %lld: weights are 0 or more",
                     w[i], (long long)(i + 1));
    }
    total += w[i];
    positive += w[i] > 0;
  }
  if (k > 0 && !(total > 0)) {
    return pl_fail(c, PL_EINVAL, "multinomial: all weights are 0");
  }
  if (!replacement && k > positive) {
    return pl_fail(c, PL_EINVAL, "multinomial: %lld draws without replacement from %lld weights "
                   "above 0", (long long)k, (long long)positive);
  }
  return PL_OK;
}

pl_status pl_make_multinomial(pl_ctx *c, const pl_tensor *w, int64_t k, bool replacement,
                              uint64_t seed, uint64_t stream, pl_tensor **out) {
  *out = NULL;
  if (w->ndim != 1 && w->ndim != 2) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "multinomial: weights must have 1 or 2 dims, not %s",
                   pl_shape_str(w, text));
  }
  int64_t R = w->ndim == 2 ? w->shape[0] : 1;
  int64_t n = w->shape[w->ndim - 1];
  const int64_t shape[2] = {R, k};
  pl_tensor *p = NULL;
  PL_TRY(pl_tensor_cast(c, w, PL_F64, &p));
  double *work = pl_alloc(c, (size_t)(n > 0 ? n : 1) * sizeof *work);
  pl_status st = work != NULL ? PL_OK : PL_ENOMEM;
  if (st == PL_OK) {
    st = pl_tensor_new(c, PL_I64, w->ndim, w->ndim == 2 ? shape : shape + 1, out);
  }
  for (int64_t r = 0; r < R && st == PL_OK; r++) {
    const double *row = (const double *)pl_data(p) + r * n;
    st = check_weights(c, row, n, k, replacement);
    if (st == PL_OK && replacement) {
      draw_with(row, n, k, work, seed, stream, (uint64_t)(r * k), pl_i64(*out) + r * k);
    } else if (st == PL_OK) {
      draw_without(row, n, k, work, seed, stream, (uint64_t)(r * n), pl_i64(*out) + r * k);
    }
  }
  if (st != PL_OK) {
    pl_tensor_unref(*out);
    *out = NULL;
  }
  pl_free(c, work);
  pl_tensor_unref(p);
  return st;
}
