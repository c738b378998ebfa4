/* Tensors: storage, geometry, conversion. What it must not do: arithmetic,
 * gradients, printing (print.c). */
#include "tensor/tensor.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tensor/iter.h"

const pl_dtype_info pl_dtypes[PL_N_DTYPES] = {
    [PL_BOOL] = {"bool", "BOOL", 1, false}, [PL_I32] = {"i32", "I32", 4, false},
    [PL_I64] = {"i64", "I64", 8, false},    [PL_BF16] = {"bf16", "BF16", 2, true},
    [PL_F32] = {"f32", "F32", 4, true},     [PL_F64] = {"f64", "F64", 8, true},
};

/* Storage and values share one block up to here: one allocation less for the
 * small tensors that losses are made of. */
enum { INLINE_BYTES = 8192, HEADER = 64 };

pl_status pl_dtype_find(pl_ctx *c, const char *name, pl_dtype *out) {
  static const struct {
    const char *said;
    pl_dtype meant;
  } other[] = {{"float32", PL_F32}, {"float", PL_F32},    {"fp32", PL_F32},  {"float64", PL_F64},
               {"double", PL_F64},  {"bfloat16", PL_BF16}, {"int32", PL_I32}, {"int", PL_I64},
               {"int64", PL_I64},   {"long", PL_I64},      {"boolean", PL_BOOL}};
  for (int d = 0; d < PL_N_DTYPES; d++) {
    if (strcmp(name, pl_dtypes[d].name) == 0) {
      *out = (pl_dtype)d;
      return PL_OK;
    }
  }
  for (size_t k = 0; k < sizeof other / sizeof other[0]; k++) {
    if (strcmp(name, other[k].said) == 0) {
      return pl_fail(c, PL_EINVAL, "unknown dtype \"%s\" (did you mean \"%s\"?)", name,
                     pl_dtypes[other[k].meant].name);
    }
  }
  return pl_fail(c, PL_EINVAL, "unknown dtype \"%.40s\": use bool, i32, i64, bf16, f32 or f64",
                 name);
}

pl_dtype pl_promote(pl_dtype a, pl_dtype b) {
  return a > b ? a : b; /* the enum is in promotion order */
}

/* ---- life ---------------------------------------------------------------- */

static pl_status storage_new(pl_ctx *c, size_t bytes, pl_storage **out) {
  bool joined = bytes <= INLINE_BYTES;
  pl_storage *s = pl_alloc(c, joined ? HEADER + bytes : sizeof *s);
  if (s == NULL) {
    return PL_ENOMEM;
  }
  s->ref = 1;
  s->version = 0;
  s->bytes = bytes;
  s->ctx = c;
  s->data = joined ? (char *)s + HEADER : pl_alloc(c, bytes);
  if (s->data == NULL) {
    pl_free(c, s);
    return PL_ENOMEM;
  }
  *out = s;
  return PL_OK;
}

static void storage_unref(pl_storage *s) {
  if (--s->ref > 0) {
    return;
  }
  if (s->data != (char *)s + HEADER) {
    pl_free(s->ctx, s->data);
  }
  pl_free(s->ctx, s);
}

static pl_status handle_new(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape,
                            pl_tensor **out) {
  pl_tensor *t = pl_alloc_zero(c, sizeof *t);
  if (t == NULL) {
    return PL_ENOMEM;
  }
  t->ref = 1;
  t->dtype = d;
  t->ndim = ndim;
  int64_t step = 1;
  for (int k = ndim - 1; k >= 0; k--) {
    t->shape[k] = shape[k];
    t->stride[k] = step;
    step *= shape[k] > 1 ? shape[k] : 1;
  }
  *out = t;
  return PL_OK;
}

pl_status pl_tensor_new(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, pl_tensor **out) {
  *out = NULL;
  if (ndim < 0 || ndim > PL_MAX_DIMS) {
    return pl_fail(c, PL_EINVAL, "a tensor has at most %d dims, not %d", PL_MAX_DIMS, ndim);
  }
  size_t bytes = pl_dtypes[d].size;
  bool empty = false;
  for (int k = 0; k < ndim; k++) {
    if (shape[k] < 0) {
      return pl_fail(c, PL_EINVAL, "size %lld of dim %d is negative", (long long)shape[k], k + 1);
    }
    empty = empty || shape[k] == 0;
    /* the product over the non-zero sizes bounds every stride */
    PL_TRY(pl_size_mul(c, bytes, shape[k] == 0 ? 1 : (size_t)shape[k], &bytes));
  }
  pl_storage *s;
  PL_TRY(storage_new(c, empty ? 0 : bytes, &s));
  pl_tensor *t;
  pl_status st = handle_new(c, d, ndim, shape, &t);
  if (st != PL_OK) {
    storage_unref(s);
    return st;
  }
  t->storage = s;
  *out = t;
  return PL_OK;
}

pl_status pl_tensor_zeros(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, d, ndim, shape, out));
  memset((*out)->storage->data, 0, (*out)->storage->bytes);
  return PL_OK;
}

pl_status pl_tensor_like(pl_ctx *c, const pl_tensor *t, pl_tensor **out) {
  return pl_tensor_new(c, t->dtype, t->ndim, t->shape, out);
}

pl_status pl_tensor_scalar(pl_ctx *c, pl_dtype d, double v, pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, d, 0, NULL, out));
  pl_set(*out, NULL, v);
  return PL_OK;
}

pl_tensor *pl_tensor_ref(pl_tensor *t) {
  if (t != NULL) {
    t->ref++;
  }
  return t;
}

struct pl_node *pl_tensor_destroy(pl_ctx *c, pl_tensor *t) {
  struct pl_node *n = t->node;
  if (t->storage != NULL) {
    storage_unref(t->storage);
  }
  pl_tensor_unref(t->grad); /* a gradient has no history: one level deep */
  pl_free(c, t);
  return n;
}

void pl_tensor_unref(pl_tensor *t) {
  if (t == NULL || --t->ref > 0) {
    return;
  }
  assert(t->storage != NULL); /* ghosts die with their node */
  struct pl_node *n = pl_tensor_destroy(t->storage->ctx, t);
  if (n != NULL) {
    pl_node_unref(n);
  }
}

pl_status pl_tensor_view(pl_ctx *c, const pl_tensor *t, int ndim, const int64_t *shape,
                         const int64_t *stride, int64_t offset, pl_tensor **out) {
  *out = NULL;
  if (ndim > PL_MAX_DIMS) {
    return pl_fail(c, PL_EINVAL, "a tensor has at most %d dims, not %d", PL_MAX_DIMS, ndim);
  }
  pl_tensor *v;
  PL_TRY(handle_new(c, t->dtype, ndim, shape, &v));
  if (ndim > 0) {
    memcpy(v->stride, stride, (size_t)ndim * sizeof *stride);
  }
  v->offset = offset;
  v->storage = t->storage;
  v->storage->ref++;
  *out = v;
  return PL_OK;
}

pl_status pl_tensor_alias(pl_ctx *c, const pl_tensor *t, pl_tensor **out) {
  return pl_tensor_view(c, t, t->ndim, t->shape, t->stride, t->offset, out);
}

pl_status pl_tensor_ghost(pl_ctx *c, const pl_tensor *t, pl_tensor **out) {
  pl_tensor *g;
  PL_TRY(handle_new(c, t->dtype, t->ndim, t->shape, &g));
  g->requires_grad = t->requires_grad;
  g->node = t->node;
  g->node_out = t->node_out;
  *out = g;
  return PL_OK;
}

/* ---- geometry ------------------------------------------------------------ */

int64_t pl_numel(const pl_tensor *t) {
  int64_t n = 1;
  for (int d = 0; d < t->ndim; d++) {
    n *= t->shape[d];
  }
  return n;
}

bool pl_contiguous(const pl_tensor *t) {
  int64_t step = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    if (t->shape[d] == 0) {
      return true;
    }
    if (t->shape[d] != 1 && t->stride[d] != step) {
      return false;
    }
    step *= t->shape[d];
  }
  return true;
}

void *pl_data(const pl_tensor *t) {
  return t->storage->data + t->offset * (int64_t)pl_dtypes[t->dtype].size;
}

bool pl_same_shape(const pl_tensor *a, const pl_tensor *b) {
  if (a->ndim != b->ndim) {
    return false;
  }
  for (int d = 0; d < a->ndim; d++) {
    if (a->shape[d] != b->shape[d]) {
      return false;
    }
  }
  return true;
}

const char *pl_shape_str(const pl_tensor *t, char out[128]) {
  size_t at = 0;
  out[at++] = '[';
  for (int d = 0; d < t->ndim; d++) {
    int w = snprintf(out + at, 128 - at, d > 0 ? ", %lld" : "%lld", (long long)t->shape[d]);
    if (w < 0 || (size_t)w >= 124 - at) {
      memcpy(out + at, "...", 3); /* eight huge sizes: the text is cut */
      at += 3;
      break;
    }
    at += (size_t)w;
  }
  out[at++] = ']';
  out[at] = '\0';
  return out;
}

pl_status pl_broadcast(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, int *ndim,
                       int64_t *shape) {
  int n = a->ndim > b->ndim ? a->ndim : b->ndim;
  for (int d = 0; d < n; d++) {
    int da = d - (n - a->ndim);
    int db = d - (n - b->ndim);
    int64_t sa = da >= 0 ? a->shape[da] : 1;
    int64_t sb = db >= 0 ? b->shape[db] : 1;
    if (sa != sb && sa != 1 && sb != 1) {
      char ta[128];
      char tb[128];
      return pl_fail(c, PL_EINVAL,
                     "%s and %s do not broadcast: sizes %lld and %lld in dim %d from the end "
                     "must be equal or 1",
                     pl_shape_str(a, ta), pl_shape_str(b, tb), (long long)sa, (long long)sb, n - d);
    }
    shape[d] = sa == 1 ? sb : sa;
  }
  *ndim = n;
  return PL_OK;
}

/* ---- values -------------------------------------------------------------- */

static inline float from_bf16(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static inline uint16_t to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) {
    return (uint16_t)((u >> 16) | 0x40); /* keep a NaN a NaN */
  }
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16); /* to nearest, ties to even */
}

/* double to integer without the undefined cases: saturating, NaN is 0. */
static inline int64_t to_i64(double v) {
  if (!(v > -9223372036854775808.0)) {
    return v != v ? 0 : INT64_MIN;
  }
  return v >= 9223372036854775808.0 ? INT64_MAX : (int64_t)v;
}

static inline int32_t to_i32(double v) {
  if (!(v > -2147483648.0)) {
    return v != v ? 0 : INT32_MIN;
  }
  return v >= 2147483647.0 ? INT32_MAX : (int32_t)v;
}

static char *element(const pl_tensor *t, const int64_t *index) {
  int64_t at = t->offset;
  for (int d = 0; d < t->ndim; d++) {
    at += index[d] * t->stride[d];
  }
  return t->storage->data + at * (int64_t)pl_dtypes[t->dtype].size;
}

double pl_get(const pl_tensor *t, const int64_t *index) {
  const char *p = element(t, index);
  switch (t->dtype) {
    case PL_BOOL: return *(const uint8_t *)p;
    case PL_I32: return *(const int32_t *)p;
    case PL_I64: return (double)*(const int64_t *)p;
    case PL_BF16: return from_bf16(*(const uint16_t *)p);
    case PL_F32: return *(const float *)p;
    default: return *(const double *)p;
  }
}

void pl_set(pl_tensor *t, const int64_t *index, double v) {
  char *p = element(t, index);
  switch (t->dtype) {
    case PL_BOOL: *(uint8_t *)p = v != 0; break;
    case PL_I32: *(int32_t *)p = to_i32(v); break;
    case PL_I64: *(int64_t *)p = to_i64(v); break;
    case PL_BF16: *(uint16_t *)p = to_bf16((float)v); break;
    case PL_F32: *(float *)p = (float)v; break;
    default: *(double *)p = v; break;
  }
}

/* ---- copying and converting ---------------------------------------------- */

/* One loop for each pair of dtypes. LOAD gives the widest type that holds the
 * source without loss, so that i64 to i64 is exact. */
#define CAST_LOOP(TD, TS, EXPR)                       \
  do {                                                \
    TD *y = (TD *)ptr[0];                             \
    const TS *x = (const TS *)ptr[1];                 \
    if (s[0] == 1 && s[1] == 1) {                     \
      for (int64_t k = 0; k < n; k++) {               \
        TS v = x[k];                                  \
        y[k] = (TD)(EXPR);                            \
      }                                               \
    } else {                                          \
      for (int64_t k = 0; k < n; k++) {               \
        TS v = x[k * s[1]];                           \
        y[k * s[0]] = (TD)(EXPR);                     \
      }                                               \
    }                                                 \
  } while (0)

/* from a source of type TS, whose value as a number is NUM (may be float) */
#define CAST_ROW(TS, NUM, INTEGER)                                                     \
  switch (to) {                                                                        \
    case PL_BOOL: CAST_LOOP(uint8_t, TS, (NUM) != 0); break;                           \
    case PL_I32: CAST_LOOP(int32_t, TS, to_i32((double)(NUM))); break;                 \
    case PL_I64: CAST_LOOP(int64_t, TS, (INTEGER) ? (int64_t)(NUM) : to_i64(NUM)); break; \
    case PL_BF16: CAST_LOOP(uint16_t, TS, to_bf16((float)(NUM))); break;               \
    case PL_F32: CAST_LOOP(float, TS, NUM); break;                                     \
    default: CAST_LOOP(double, TS, NUM); break;                                        \
  }

typedef struct cast_arg {
  pl_dtype to, from;
} cast_arg;

static void cast_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  const cast_arg *a = arg;
  pl_dtype to = a->to;
  if (a->to == a->from && s[0] == 1 && s[1] == 1) {
    memcpy(ptr[0], ptr[1], (size_t)n * pl_dtypes[to].size);
    return;
  }
  if (a->to == a->from) { /* same bits, only the places differ */
    switch (pl_dtypes[to].size) {
      case 1: CAST_LOOP(uint8_t, uint8_t, v); break;
      case 2: CAST_LOOP(uint16_t, uint16_t, v); break;
      case 4: CAST_LOOP(uint32_t, uint32_t, v); break;
      default: CAST_LOOP(uint64_t, uint64_t, v); break;
    }
    return;
  }
  switch (a->from) {
    case PL_BOOL: CAST_ROW(uint8_t, v, true); break;
    case PL_I32: CAST_ROW(int32_t, v, true); break;
    case PL_I64: CAST_ROW(int64_t, v, true); break;
    case PL_BF16: CAST_ROW(uint16_t, from_bf16(v), false); break;
    case PL_F32: CAST_ROW(float, v, false); break;
    default: CAST_ROW(double, v, false); break;
  }
}

static void copy_values(pl_tensor *dst, const pl_tensor *src) {
  pl_iter it;
  pl_iter_init(&it, dst->ndim, dst->shape);
  pl_iter_add(&it, dst);
  pl_iter_add(&it, src);
  pl_iter_run(&it, cast_run, &(cast_arg){dst->dtype, src->dtype});
}

pl_status pl_tensor_copy(pl_ctx *c, pl_tensor *dst, const pl_tensor *src) {
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  PL_TRY(pl_broadcast(c, dst, src, &ndim, shape));
  bool fits = ndim == dst->ndim;
  for (int d = 0; fits && d < ndim; d++) {
    fits = shape[d] == dst->shape[d];
  }
  if (!fits) {
    char td[128];
    char ts[128];
    return pl_fail(c, PL_EINVAL, "values of shape %s do not fit into %s", pl_shape_str(src, ts),
                   pl_shape_str(dst, td));
  }
  pl_tensor *own = NULL;
  if (dst->storage == src->storage) { /* may overlap: take the values out first */
    PL_TRY(pl_tensor_cast(c, src, src->dtype, &own));
    src = own;
  }
  copy_values(dst, src);
  dst->storage->version++;
  pl_tensor_unref(own);
  return PL_OK;
}

pl_status pl_tensor_cast(pl_ctx *c, const pl_tensor *t, pl_dtype d, pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, d, t->ndim, t->shape, out));
  copy_values(*out, t);
  return PL_OK;
}

pl_status pl_tensor_contiguous(pl_ctx *c, const pl_tensor *t, pl_tensor **out) {
  if (pl_contiguous(t)) {
    *out = pl_tensor_ref((pl_tensor *)t);
    return PL_OK;
  }
  return pl_tensor_cast(c, t, t->dtype, out);
}

/* ---- filling --------------------------------------------------------------- */

typedef struct fill_arg {
  size_t size;
  union {
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    char bytes[8];
  } v;
} fill_arg;

#define FILL_LOOP(T, FIELD)                \
  do {                                     \
    T *y = (T *)ptr[0];                    \
    T v = f->v.FIELD;                      \
    if (s[0] == 1) {                       \
      for (int64_t k = 0; k < n; k++) {    \
        y[k] = v;                          \
      }                                    \
    } else {                               \
      for (int64_t k = 0; k < n; k++) {    \
        y[k * s[0]] = v;                   \
      }                                    \
    }                                      \
  } while (0)

static void fill_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  const fill_arg *f = arg;
  switch (f->size) {
    case 1: FILL_LOOP(uint8_t, u8); break;
    case 2: FILL_LOOP(uint16_t, u16); break;
    case 4: FILL_LOOP(uint32_t, u32); break;
    default: FILL_LOOP(uint64_t, u64); break;
  }
}

pl_status pl_fill(pl_tensor *t, double v) {
  if (pl_numel(t) == 0) {
    return PL_OK;
  }
  const int64_t zero[PL_MAX_DIMS] = {0};
  pl_set(t, zero, v); /* the conversion, once */
  fill_arg f = {.size = pl_dtypes[t->dtype].size};
  memcpy(f.v.bytes, pl_data(t), f.size);
  pl_iter it;
  pl_iter_init(&it, t->ndim, t->shape);
  pl_iter_add(&it, t);
  pl_iter_run(&it, fill_run, &f);
  t->storage->version++;
  return PL_OK;
}
