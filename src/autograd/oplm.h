/* What ops_lm.c, ops_attention.c and ops_logprob.c share: inputs made ready for the kernels, checks
 * with their texts, and both precisions from one line. Not for use elsewhere. */
#ifndef PL_AUTOGRAD_OPLM_H
#define PL_AUTOGRAD_OPLM_H
#include <string.h>

#include "autograd/opkit.h"
#include "kernels/kernels.h"
#include "base/profile.h"

/* Calls f_f32 or f_f64: RUN is a macro of (type, suffix) defined around it. */
#define BOTH(d)        \
  if ((d) == PL_F64) { \
    RUN(double, f64);  \
  } else {             \
    RUN(float, f32);   \
  }
#define P(T, t) ((t) ? (T *)pl_data(t) : NULL)

static inline void drop(pl_tensor **t, int n) {
  for (int j = 0; j < n; j++) {
    pl_tensor_unref(t[j]);
  }
}

/* Inputs as the kernels want them: contiguous, floats in one dtype d, integers i32. One that is
 * absent, or of which backward needs only the shape, stays NULL. */
static inline pl_status dense(pl_ctx *c, pl_tensor *const *in, int n, pl_dtype d, pl_tensor **out) {
  for (int j = 0; j < n; j++) {
    out[j] = NULL;
  }
  for (int j = 0; j < n; j++) {
    if (in[j] == NULL || in[j]->storage == NULL) {
      continue;
    }
    pl_dtype want = pl_dtypes[in[j]->dtype].is_float ? d : PL_I32;
    pl_status st = pl_dense(c, in[j], want, &out[j]);
    if (st != PL_OK) {
      drop(out, n);
      memset(out, 0, (size_t)n * sizeof *out);
      return st;
    }
  }
  return PL_OK;
}

/* f64 if any float among them is, else f32. */
static inline pl_dtype compute_dtype(pl_tensor *const *in, int n) {
  for (int j = 0; j < n; j++) {
    if (in[j] != NULL && in[j]->dtype == PL_F64) {
      return PL_F64;
    }
  }
  return PL_F32;
}

static inline int64_t width(const pl_tensor *t) {
  return t->ndim > 0 ? t->shape[t->ndim - 1] : 1;
}

/* Rows of a tensor seen as [rows, width]. */
static inline int64_t rows_of(const pl_tensor *t) {
  int64_t n = 1;
  for (int d = 0; d + 1 < t->ndim; d++) {
    n *= t->shape[d];
  }
  return n;
}

static inline pl_status mismatch(pl_ctx *c, const char *wanted, const pl_tensor *a,
                                 const pl_tensor *b) {
  char sa[128];
  char sb[128];
  return pl_fail(c, PL_EINVAL, "got %s and %s, wanted %s", pl_shape_str(a, sa), pl_shape_str(b, sb),
                 wanted);
}

static inline pl_status want_float(pl_ctx *c, const char *what, const pl_tensor *t, int ndim) {
  char s[128];
  if (!pl_dtypes[t->dtype].is_float) {
    return pl_fail(c, PL_EINVAL, "%s is %s, wanted a float tensor (f32 or f64)", what,
                   pl_dtypes[t->dtype].name);
  }
  if (ndim > 0 && t->ndim != ndim) {
    return pl_fail(c, PL_EINVAL, "%s is %s, wanted %d dims", what, pl_shape_str(t, s), ndim);
  }
  if (t->ndim < 1) {
    return pl_fail(c, PL_EINVAL, "%s is a single number, wanted at least one dim", what);
  }
  return PL_OK;
}

static inline pl_status want_ints(pl_ctx *c, const char *what, const pl_tensor *t) {
  if (t->dtype != PL_I32 && t->dtype != PL_I64) {
    return pl_fail(c, PL_EINVAL, "%s is %s, wanted integers (i32)", what, pl_dtypes[t->dtype].name);
  }
  return PL_OK;
}

/* Every entry of an i32 tensor in 0..below-1. */
static inline pl_status want_range(pl_ctx *c, const char *what, const pl_tensor *t, int64_t below) {
  const int32_t *v = pl_i32(t);
  for (int64_t i = 0; i < pl_numel(t); i++) {
    if (v[i] < 0 || v[i] >= below) {
      return pl_fail(c, PL_EINVAL, "%s: entry %lld is %d, wanted 0 to %lld", what,
                     (long long)(i + 1), v[i], (long long)below - 1);
    }
  }
  return PL_OK;
}

/* seq (i32) runs from 0 to N without going back. */
static inline pl_status want_seq(pl_ctx *c, const pl_tensor *seq, int64_t S, int64_t N) {
  const int32_t *v = pl_i32(seq);
  bool ok = v[0] == 0 && v[S] == N;
  for (int64_t s = 0; s < S; s++) {
    ok = ok && v[s] <= v[s + 1];
  }
  if (!ok) {
    return pl_fail(c, PL_EINVAL,
                   "seq runs from %d to %d, wanted 0 to N = %lld without going back: where each "
                   "sequence begins, then N",
                   v[0], v[S], (long long)N);
  }
  return PL_OK;
}

/* A twin's result, computed in double, in the dtype of the row's own. */
static inline pl_status twin_out(pl_ctx *c, pl_call *k, pl_tensor *y, pl_dtype d) {
  pl_status st = pl_tensor_cast(c, y, d, &k->out[0]);
  pl_tensor_unref(y);
  k->n_out = 1;
  return st;
}

/* What the attention kernels want beside their tensors, all threads together. */
static inline pl_status attention_scratch(pl_ctx *c, const pl_sequences *q, int64_t D, bool back,
                                          pl_dtype real, void **out) {
  size_t bytes;
  PL_TRY(pl_size_mul(c, (size_t)pl_attention_scratch_f64(q, D, back), pl_dtypes[real].size,
                     &bytes));
  *out = pl_alloc(c, bytes);
  return *out ? PL_OK : PL_ENOMEM;
}

static inline pl_status ints(pl_ctx *c, int64_t n, const int32_t *v, pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, PL_I32, 1, &n, out));
  memcpy(pl_data(*out), v, (size_t)n * sizeof *v);
  return PL_OK;
}
/* A list of i32 as two arguments: how many, and where. */
#define INTS(...) \
  (int64_t)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)), ((int32_t[]){__VA_ARGS__})

#endif
