/* What the op files share: arithmetic on tensors without recording, shape
 * work for broadcasting and reductions, and the makers of test inputs.
 * Not for use outside autograd/ (and its tests). */
#ifndef PL_AUTOGRAD_OPKIT_H
#define PL_AUTOGRAD_OPKIT_H
#include "autograd/op.h"
#include "kernels/elementwise.h"

extern const pl_op pl_op_to;

/* ---- arithmetic without recording: new contiguous tensors ------------------ */
pl_status pl_raw_unary(pl_ctx *c, pl_unary_code op, const pl_tensor *x, pl_tensor **out);
pl_status pl_raw_binary(pl_ctx *c, pl_binary_code op, const pl_tensor *a, const pl_tensor *b,
                        pl_tensor **out);
pl_status pl_raw_add(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, pl_tensor **out);
/* dst <- dst op b, b broadcast to dst's shape and converted to its dtype; bumps the version. */
pl_status pl_raw_binary_into(pl_ctx *c, pl_binary_code op, pl_tensor *dst, const pl_tensor *b);
pl_status pl_raw_add_into(pl_ctx *c, pl_tensor *dst, const pl_tensor *b);
pl_status pl_raw_scale(pl_ctx *c, const pl_tensor *x, double by, pl_tensor **out);
pl_status pl_raw_clamp(pl_ctx *c, const pl_tensor *x, double lo, double hi, pl_tensor **out);

/* t itself (new reference) where it has dtype d already, else converted. */
pl_status pl_as_dtype(pl_ctx *c, const pl_tensor *t, pl_dtype d, pl_tensor **out);
/* The dtype in which a float op computes: f64 stays, all others are f32. */
pl_dtype pl_float_of(pl_dtype d);
/* Contiguous and of dtype d. */
pl_status pl_dense(pl_ctx *c, const pl_tensor *t, pl_dtype d, pl_tensor **out);

/* Sums g down to the shape that was broadcast to g's. New tensor, or g again. */
pl_status pl_sum_to(pl_ctx *c, pl_tensor *g, int ndim, const int64_t *shape, pl_tensor **out);

/* Which dims a reduction takes: from args i[skip..n_i); none given = all. */
typedef struct pl_dims {
  bool in[PL_MAX_DIMS];
  int64_t count;                /* elements reduced into one */
  int ndim;                     /* of the result */
  int64_t shape[PL_MAX_DIMS];   /* of the result */
  int64_t kept[PL_MAX_DIMS];    /* of the result with keepdim */
} pl_dims;
pl_status pl_dims_of(pl_ctx *c, const pl_tensor *x, const pl_args *a, int skip, bool keepdim,
                     pl_dims *d);
/* Sum over the marked dims, shape as d says; f32 and f64 stay, integers give i64. */
pl_status pl_raw_sum(pl_ctx *c, const pl_tensor *x, const pl_dims *d, pl_tensor **out);
/* x with the marked dims moved to the end, contiguous, as [R, n] (dtype as given). */
pl_status pl_rows_of(pl_ctx *c, const pl_tensor *x, const pl_dims *d, pl_tensor **out);
/* The other way: rows [R, n] (contiguous) back into x's layout, as a view. */
pl_status pl_rows_back(pl_ctx *c, const pl_tensor *rows, const pl_tensor *x, const pl_dims *d,
                       pl_tensor **out);
/* One dim as pl_dims. */
void pl_dims_one(const pl_tensor *x, int dim, bool keepdim, pl_dims *d);

/* View of t in its own memory order with another shape (t contiguous, same count). */
pl_status pl_reshaped(pl_ctx *c, const pl_tensor *t, int ndim, const int64_t *shape,
                      pl_tensor **out);
/* View with two dims exchanged. */
pl_status pl_swapped(pl_ctx *c, const pl_tensor *t, int a, int b, pl_tensor **out);

/* ---- test inputs ------------------------------------------------------------ */
/* Uniform in [lo, hi), a function of seed; laid out with gaps and swapped
 * strides (not contiguous) where `gaps`. */
pl_status pl_sample(pl_ctx *c, pl_dtype d, int seed, double lo, double hi, bool gaps, int ndim,
                    const int64_t *shape, pl_tensor **out);
/* Integers in [0, below). */
pl_status pl_sample_int(pl_ctx *c, pl_dtype d, int seed, int64_t below, int ndim,
                        const int64_t *shape, pl_tensor **out);
#define PL_SHAPE(...) (const int64_t[]){__VA_ARGS__}
/* Next index in row-major order; false after the last. Start from all zeros;
 * an empty tensor has no first index: check pl_numel. */
bool pl_next(const pl_tensor *t, int64_t *index);
/* PL_ENOENT, the end of a sample list. */
pl_status pl_no_more(pl_ctx *c);
/* index into a tensor that broadcasts to one of ndim dims: sizes 1 give 0. */
double pl_get_broadcast(const pl_tensor *t, int ndim, const int64_t *index);

#endif
