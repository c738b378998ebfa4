/* Tensors: a dtype, a shape with strides, and a counted storage that views share.
 *
 * Ownership: every function that makes a tensor gives the caller one
 * reference, released with pl_tensor_unref. Dims and positions are 0-based
 * here; bind/ converts. This module knows storage, shape and views; arithmetic
 * and gradients live in autograd/. */
#ifndef PL_TENSOR_TENSOR_H
#define PL_TENSOR_TENSOR_H
#include "base/buf.h"
#include "base/mem.h"

#define PL_MAX_DIMS 8

typedef enum pl_dtype { PL_BOOL, PL_I32, PL_I64, PL_BF16, PL_F32, PL_F64, PL_N_DTYPES } pl_dtype;

typedef struct pl_dtype_info { /* one row a dtype; order = promotion order */
  const char *name;            /* "bool" "i32" "i64" "bf16" "f32" "f64" */
  const char *st_name;         /* safetensors: BOOL I32 I64 BF16 F32 F64 */
  size_t size;
  bool is_float;
} pl_dtype_info;
extern const pl_dtype_info pl_dtypes[PL_N_DTYPES];
pl_status pl_dtype_find(pl_ctx *c, const char *name, pl_dtype *out); /* suggests on a miss */

typedef struct pl_storage {
  int32_t ref;
  uint32_t version;  /* +1 for each in-place change; saved values check it */
  size_t bytes;
  char *data;
  pl_ctx *ctx;
} pl_storage;

struct pl_node;
void pl_node_unref(struct pl_node *n); /* defined by the tape (autograd/tape.c) */

typedef struct pl_tensor {
  int32_t ref;
  pl_dtype dtype;
  int32_t ndim;
  bool requires_grad; /* set on leaves by the user, on results by the tape */
  int64_t shape[PL_MAX_DIMS];
  int64_t stride[PL_MAX_DIMS]; /* in elements; 0 where broadcast */
  int64_t offset;              /* in elements */
  pl_storage *storage;
  struct pl_tensor *grad; /* of a leaf, same shape and dtype; NULL until backward */
  struct pl_node *node;   /* what made it; NULL for leaves */
  int32_t node_out;       /* which output of node */
} pl_tensor;

/* Contiguous, contents undefined / zero. Refuses negative sizes and overflow. */
pl_status pl_tensor_new(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, pl_tensor **out);
pl_status pl_tensor_zeros(pl_ctx *c, pl_dtype d, int ndim, const int64_t *shape, pl_tensor **out);
pl_status pl_tensor_like(pl_ctx *c, const pl_tensor *t, pl_tensor **out); /* same shape, dtype */
pl_tensor *pl_tensor_ref(pl_tensor *t);
void pl_tensor_unref(pl_tensor *t); /* NULL is fine; frees storage and node when last */

/* A view: same storage, new geometry. The node is not copied (see autograd). */
pl_status pl_tensor_view(pl_ctx *c, const pl_tensor *t, int ndim, const int64_t *shape,
                         const int64_t *stride, int64_t offset, pl_tensor **out);

int64_t pl_numel(const pl_tensor *t);
bool pl_contiguous(const pl_tensor *t);
/* Pointer to the first element, typed by the caller. */
void *pl_data(const pl_tensor *t);
static inline float *pl_f32(const pl_tensor *t) { return (float *)pl_data(t); }
static inline int32_t *pl_i32(const pl_tensor *t) { return (int32_t *)pl_data(t); }
static inline int64_t *pl_i64(const pl_tensor *t) { return (int64_t *)pl_data(t); }

/* Element by index as double (any dtype) / back, converting. */
double pl_get(const pl_tensor *t, const int64_t *index);
void pl_set(pl_tensor *t, const int64_t *index, double v);

/* dst (its own shape, dtype) <- src, broadcasting and converting; bumps dst's version. */
pl_status pl_tensor_copy(pl_ctx *c, pl_tensor *dst, const pl_tensor *src);
/* A contiguous tensor with the same values and dtype: t itself (new reference) where it is so. */
pl_status pl_tensor_contiguous(pl_ctx *c, const pl_tensor *t, pl_tensor **out);
/* A new, contiguous tensor of dtype d with t's values. */
pl_status pl_tensor_cast(pl_ctx *c, const pl_tensor *t, pl_dtype d, pl_tensor **out);

/* Another handle on the same values, without history (detach). */
pl_status pl_tensor_alias(pl_ctx *c, const pl_tensor *t, pl_tensor **out);
/* A 0-dim tensor holding v. */
pl_status pl_tensor_scalar(pl_ctx *c, pl_dtype d, double v, pl_tensor **out);
/* For the tape: same geometry, dtype and history, no storage. Only shapes may be read. */
pl_status pl_tensor_ghost(pl_ctx *c, const pl_tensor *t, pl_tensor **out);
/* For the tape: gives up everything but the node, which is returned (NULL if none). */
struct pl_node *pl_tensor_destroy(pl_ctx *c, pl_tensor *t);
/* The shape that a and b broadcast to (NumPy's rule); PL_EINVAL names both shapes. */
pl_status pl_broadcast(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, int *ndim,
                       int64_t *shape);
/* The wider of two dtypes (a float always wins over an integer). */
pl_dtype pl_promote(pl_dtype a, pl_dtype b);

/* Every element <- v, converted; bumps the version. */
pl_status pl_fill(pl_tensor *t, double v);

bool pl_same_shape(const pl_tensor *a, const pl_tensor *b);
/* "[2, 3]" into out, for error texts. */
const char *pl_shape_str(const pl_tensor *t, char out[128]);
/* Printing as in the REPL: elided past 6 entries an edge; dtype, shape footer,
 * for large ones mean, std, min, max and a NaN count. */
pl_status pl_tensor_print(pl_ctx *c, const pl_tensor *t, pl_buf *out);

#endif
