/* Rows: parts of a tensor (narrow, select), copies and conversions (clone,
 * contiguous, to, detach) and triangles. */
#include <string.h>

#include "autograd/opkit.h"

static pl_status back_same(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                           pl_tensor **gin) {
  (void)c;
  (void)n;
  gin[0] = pl_tensor_ref(gout[0]); /* the tape converts the dtype where it must */
  return PL_OK;
}

static pl_status sample_one(pl_ctx *c, pl_dtype d, pl_call *k, int seed, bool gaps, int ndim,
                            const int64_t *shape) {
  k->n_in = 1;
  return pl_sample(c, d, seed, -2, 2, gaps, ndim, shape, &k->in[0]);
}

#define ARGS(...)                                                                        \
  (pl_args) {                                                                            \
    .i = {__VA_ARGS__}, .n_i = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)) \
  }

/* ---- narrow, select -------------------------------------------------------------- */

/* dim and first position, checked; select is a narrow of length 1 */
static pl_status part_of(pl_ctx *c, const pl_tensor *x, const pl_args *a, int64_t length, int *dim,
                         int64_t *start) {
  PL_TRY(pl_norm_dim(c, x, a->i[0], dim));
  int64_t size = x->shape[*dim];
  *start = a->i[1] < 0 ? a->i[1] + size : a->i[1];
  bool whole_empty = length == 0 && *start >= 0 && *start <= size;
  if (!whole_empty && (*start < 0 || *start >= size)) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "position %lld is outside dim %d of %s (1 to %lld)",
                   (long long)(a->i[1] < 0 ? a->i[1] : a->i[1] + 1), *dim + 1,
                   pl_shape_str(x, text), (long long)size);
  }
  if (length < 0 || length > size - *start) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "%lld elements from position %lld do not fit in dim %d of %s",
                   (long long)length, (long long)(*start + 1), *dim + 1, pl_shape_str(x, text));
  }
  return PL_OK;
}

static pl_status part_view(pl_ctx *c, const pl_tensor *x, int dim, int64_t start, int64_t length,
                           pl_tensor **out) {
  PL_TRY(pl_tensor_alias(c, x, out));
  (*out)->shape[dim] = length;
  (*out)->offset += start * x->stride[dim];
  return PL_OK;
}

/* zeros of x's shape with g in the part */
static pl_status part_back(pl_ctx *c, const pl_tensor *x, const pl_tensor *g, int dim,
                           int64_t start, int64_t length, pl_tensor **gin) {
  PL_TRY(pl_tensor_zeros(c, g->dtype, x->ndim, x->shape, gin));
  pl_tensor *part = NULL;
  pl_tensor *shaped = NULL;
  pl_status st = part_view(c, *gin, dim, start, length, &part);
  if (st == PL_OK) {
    st = pl_reshaped(c, g, part->ndim, part->shape, &shaped);
  }
  if (st == PL_OK) {
    st = pl_tensor_copy(c, part, shaped);
  }
  pl_tensor_unref(part);
  pl_tensor_unref(shaped);
  return st;
}

static pl_status narrow_forward(pl_ctx *c, pl_call *k) {
  int dim;
  int64_t start;
  PL_TRY(part_of(c, k->in[0], &k->args, k->args.i[2], &dim, &start));
  k->n_out = 1;
  return part_view(c, k->in[0], dim, start, k->args.i[2], &k->out[0]);
}

static pl_status narrow_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                             pl_tensor **gin) {
  int dim;
  int64_t start;
  PL_TRY(part_of(c, n->in[0], &n->args, n->args.i[2], &dim, &start));
  return part_back(c, n->in[0], gout[0], dim, start, n->args.i[2], &gin[0]);
}

static pl_status narrow_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(0, 1, 2); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(4, 3));
    case 1: k->args = ARGS(-1, -2, 2); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: k->args = ARGS(0, 2, 0); return sample_one(c, d, k, 3, false, 1, PL_SHAPE(2));
    default: return pl_no_more(c);
  }
}

/* both: shift the index in one dim */
static pl_status part_twin(pl_ctx *c, pl_call *k, int64_t length, bool drop) {
  const pl_tensor *x = k->in[0];
  int dim = (int)(k->args.i[0] < 0 ? k->args.i[0] + x->ndim : k->args.i[0]);
  int64_t start = k->args.i[1] < 0 ? k->args.i[1] + x->shape[dim] : k->args.i[1];
  int64_t shape[PL_MAX_DIMS] = {0};
  int w = 0;
  for (int d = 0; d < x->ndim; d++) {
    if (d != dim || !drop) {
      shape[w++] = d == dim ? length : x->shape[d];
    }
  }
  PL_TRY(pl_tensor_new(c, x->dtype, w, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  int64_t from[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) > 0) {
    do {
      for (int d = 0, at = 0; d < x->ndim; d++) {
        from[d] = d == dim && drop ? start : i[at++] + (d == dim ? start : 0);
      }
      pl_set(k->out[0], i, pl_get(x, from));
    } while (pl_next(k->out[0], i));
  }
  return PL_OK;
}

static pl_status narrow_twin(pl_ctx *c, pl_call *k) {
  return part_twin(c, k, k->args.i[2], false);
}

static const pl_op op_narrow = {
    "narrow", "x: tensor, dim: dim, start: index, length: int", "Tensor",
    "`length` positions of one dim, from `start` on. A view.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, narrow_forward, narrow_back, narrow_sample,
    narrow_twin};

static pl_status select_forward(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  int dim;
  int64_t at;
  PL_TRY(part_of(c, x, &k->args, 1, &dim, &at));
  int64_t shape[PL_MAX_DIMS] = {0};
  int64_t stride[PL_MAX_DIMS] = {0};
  int w = 0;
  for (int d = 0; d < x->ndim; d++) {
    if (d != dim) {
      shape[w] = x->shape[d];
      stride[w++] = x->stride[d];
    }
  }
  k->n_out = 1;
  return pl_tensor_view(c, x, w, shape, stride, x->offset + at * x->stride[dim], &k->out[0]);
}

static pl_status select_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                             pl_tensor **gin) {
  int dim;
  int64_t at;
  PL_TRY(part_of(c, n->in[0], &n->args, 1, &dim, &at));
  return part_back(c, n->in[0], gout[0], dim, at, 1, &gin[0]);
}

static pl_status select_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(0, 1); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(2, 3));
    case 1: k->args = ARGS(1, -1); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: k->args = ARGS(-1, 0); return sample_one(c, d, k, 3, false, 1, PL_SHAPE(5));
    default: return pl_no_more(c);
  }
}

static pl_status select_twin(pl_ctx *c, pl_call *k) {
  return part_twin(c, k, 1, true);
}

static const pl_op op_select = {
    "select", "x: tensor, dim: dim, at: index", "Tensor",
    "One position of one dim; that dim is gone from the result. x[k] is select(1, k). A view.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY, select_forward, select_back, select_sample,
    select_twin};

/* ---- copies and conversions ------------------------------------------------------- */

static pl_status twin_same(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  PL_TRY(pl_tensor_like(c, x, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(x) > 0) {
    do {
      pl_set(k->out[0], i, pl_get(x, i));
    } while (pl_next(x, i));
  }
  return PL_OK;
}

static pl_status sample_same(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: return sample_one(c, d, k, 1, false, 2, PL_SHAPE(2, 3));
    case 1: return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: return sample_one(c, d, k, 3, false, 0, NULL);
    case 3: return sample_one(c, d, k, 4, true, 2, PL_SHAPE(3, 0));
    default: return pl_no_more(c);
  }
}

static pl_status clone_forward(pl_ctx *c, pl_call *k) {
  k->n_out = 1;
  return pl_tensor_cast(c, k->in[0], k->in[0]->dtype, &k->out[0]);
}

static const pl_op op_clone = {"clone", "x: tensor", "Tensor", "A copy with storage of its own.",
                               PL_OP_METHOD | PL_OP_ANY_DTYPE | PL_OP_SHAPES_ONLY,
                               clone_forward, back_same, sample_same, twin_same};

static pl_status contiguous_forward(pl_ctx *c, pl_call *k) {
  k->n_out = 1;
  if (pl_contiguous(k->in[0])) {
    return pl_tensor_alias(c, k->in[0], &k->out[0]);
  }
  return clone_forward(c, k);
}

static const pl_op op_contiguous = {
    "contiguous", "x: tensor", "Tensor",
    "The same values in row-major order: shares storage where x is so already.",
    PL_OP_METHOD | PL_OP_VIEW | PL_OP_SHAPES_ONLY,
    contiguous_forward, back_same, sample_same, twin_same};

static pl_status detach_forward(pl_ctx *c, pl_call *k) {
  k->n_out = 1;
  return pl_tensor_alias(c, k->in[0], &k->out[0]);
}

static const pl_op op_detach = {
    "detach", "x: tensor", "Tensor",
    "The same values without history: no gradient flows through it. Shares storage.",
    PL_OP_METHOD | PL_OP_VIEW, detach_forward, NULL, sample_same, twin_same};

static pl_status to_forward(pl_ctx *c, pl_call *k) {
  pl_dtype d = (pl_dtype)k->args.i[0];
  k->n_out = 1;
  if (k->in[0]->dtype == d) {
    return pl_tensor_alias(c, k->in[0], &k->out[0]);
  }
  return pl_tensor_cast(c, k->in[0], d, &k->out[0]);
}

static pl_status to_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  PL_TRY(sample_same(c, which, d, k));
  k->args = ARGS(which % 2 == 0 ? PL_F64 : d);
  return PL_OK;
}

static pl_status to_twin(pl_ctx *c, pl_call *k) {
  PL_TRY(twin_same(c, k));
  pl_tensor *y;
  PL_TRY(pl_tensor_new(c, (pl_dtype)k->args.i[0], k->in[0]->ndim, k->in[0]->shape, &y));
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(y) > 0) {
    do {
      pl_set(y, i, pl_get(k->out[0], i));
    } while (pl_next(y, i));
  }
  pl_tensor_unref(k->out[0]);
  k->out[0] = y;
  return PL_OK;
}

const pl_op pl_op_to = {
    "to", "x: tensor, dtype: dtype", "Tensor",
    "Converted to another dtype; shares storage where it has it already. The gradient comes "
    "back in x's own dtype.",
    PL_OP_METHOD | PL_OP_ANY_DTYPE | PL_OP_SHAPES_ONLY, to_forward, back_same, to_sample,
    to_twin};

/* ---- triangles -------------------------------------------------------------------- */

static bool kept(bool lower, int64_t diagonal, int64_t row, int64_t col) {
  return lower ? col - row <= diagonal : col - row >= diagonal;
}

/* y = x with the other triangle of each matrix set to 0 */
static pl_status triangle(pl_ctx *c, const pl_tensor *x, int64_t diagonal, bool lower,
                          pl_tensor **out) {
  if (x->ndim < 2) {
    char text[128];
    return pl_fail(c, PL_EINVAL, "wants at least 2 dims and got %s", pl_shape_str(x, text));
  }
  PL_TRY(pl_tensor_cast(c, x, x->dtype, out));
  size_t size = pl_dtypes[x->dtype].size;
  int64_t cols = x->shape[x->ndim - 1];
  int64_t rows = x->shape[x->ndim - 2];
  char *p = pl_data(*out);
  int64_t lines = cols > 0 ? pl_numel(x) / cols : 0;
  for (int64_t line = 0; line < lines; line++) {
    int64_t row = line % rows;
    for (int64_t col = 0; col < cols; col++) {
      if (!kept(lower, diagonal, row, col)) {
        memset(p + (size_t)(line * cols + col) * size, 0, size);
      }
    }
  }
  return PL_OK;
}

static pl_status triangle_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: k->args = ARGS(0); return sample_one(c, d, k, 1, false, 2, PL_SHAPE(3, 3));
    case 1: k->args = ARGS(1); return sample_one(c, d, k, 2, true, 3, PL_SHAPE(2, 3, 4));
    case 2: k->args = ARGS(-1); return sample_one(c, d, k, 3, false, 2, PL_SHAPE(4, 2));
    case 3: k->args = ARGS(0); return sample_one(c, d, k, 4, false, 2, PL_SHAPE(0, 2));
    default: return pl_no_more(c);
  }
}

static pl_status triangle_twin(pl_ctx *c, pl_call *k, bool lower) {
  PL_TRY(twin_same(c, k));
  pl_tensor *y = k->out[0];
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(y) > 0) {
    do {
      int64_t over = i[y->ndim - 1] - i[y->ndim - 2] - k->args.i[0];
      if (lower ? over > 0 : over < 0) {
        pl_set(y, i, 0);
      }
    } while (pl_next(y, i));
  }
  return PL_OK;
}

#define TRIANGLE(ID, LOWER, DOC)                                                                \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                        \
    k->n_out = 1;                                                                               \
    return triangle(c, k->in[0], k->args.i[0], LOWER, &k->out[0]);                              \
  }                                                                                             \
  static pl_status ID##_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,               \
                             pl_tensor **gin) {                                                 \
    return triangle(c, gout[0], n->args.i[0], LOWER, &gin[0]);                                  \
  }                                                                                             \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                           \
    return triangle_twin(c, k, LOWER);                                                          \
  }                                                                                             \
  static const pl_op op_##ID = {#ID,                                                            \
                                "x: tensor, diagonal: int = 0",                                 \
                                "Tensor",                                                       \
                                DOC,                                                            \
                                PL_OP_METHOD | PL_OP_ANY_DTYPE | PL_OP_SHAPES_ONLY,             \
                                ID##_forward,                                                   \
                                ID##_back,                                                      \
                                triangle_sample,                                                \
                                ID##_twin};

TRIANGLE(tril, true,
         "The lower triangle of each matrix, up to the given diagonal (0 = the main one); 0 above.")
TRIANGLE(triu, false,
         "The upper triangle of each matrix, from the given diagonal (0 = the main one); 0 below.")

const pl_op *const pl_ops_copy[] = {&op_narrow, &op_select, &op_clone, &op_contiguous, &op_detach,
                                    &pl_op_to,  &op_tril,   &op_triu,  NULL};
