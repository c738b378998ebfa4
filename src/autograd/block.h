/* What the two blocks of a decoder layer are written in: products, norms, biases
 * and attention of whole tensors. Each function looks at the dtypes of what it is
 * given and runs the kernel for them: f64, f32, or bf16 activations beside f32
 * weights. Nothing here allocates what it returns; nothing is recorded.
 * Not for use outside autograd/. */
#ifndef PL_AUTOGRAD_BLOCK_H
#define PL_AUTOGRAD_BLOCK_H
#include "autograd/oplm.h"

/* A matrix inside a tensor: all of it, or a range of its columns. */
typedef struct mat {
  const pl_tensor *t;
  int64_t from, cols;
} mat;

mat pl_whole(const pl_tensor *t); /* [N,C]; a vector is one row */
mat pl_columns(const pl_tensor *t, int64_t from, int64_t cols);

/* y = op(a) op(b), or y += op(a) op(b); op = transpose where the flag says. With bf16
 * among them all are taken as bf16 and summed in f32; a bf16 y cannot be added to. */
enum { PL_SET, PL_ADD };
void pl_product(bool ta, bool tb, mat a, mat b, int how, mat y);
/* the same, in bf16 whatever they are (f64 excepted) */
void pl_product_half(bool ta, bool tb, mat a, mat b, int how, mat y);

/* y += b, to each row; b may be NULL */
void pl_bias(const pl_tensor *b, mat y);
/* y = x + b, all real; b may be NULL */
void pl_residual(const pl_tensor *x, const pl_tensor *b, pl_tensor *y);
/* gb = sum of g's rows */
void pl_bias_back(mat g, pl_tensor *gb);

/* RMSNorm, or LayerNorm where mean is not NULL (then with a bias b, which may be NULL):
 * y (activation) from x, w; mean, rstd [N] are set. */
void pl_norm(const pl_tensor *x, const pl_tensor *w, const pl_tensor *b, double eps, pl_tensor *y,
             pl_tensor *mean, pl_tensor *rstd);
/* Adds to gx; sets gw, gb. Each may be NULL. gy and all others are real. */
pl_status pl_norm_back(pl_ctx *c, const pl_tensor *x, const pl_tensor *w, const pl_tensor *mean,
                       const pl_tensor *rstd, const pl_tensor *gy, pl_tensor *gx, pl_tensor *gw,
                       pl_tensor *gb);
/* Of both blocks the first inputs are x, the norm's weight and its bias. These two make the
 * norm's output (mean and rstd too where they are NULL), and all three gradients: of x, gnorm's
 * comes on top of gy, which is used up. */
pl_status pl_norm_new(pl_ctx *c, pl_tensor *const *in, double eps, bool layer, pl_dtype act,
                      pl_tensor **y, pl_tensor **mean, pl_tensor **rstd);
pl_status pl_input_back(pl_ctx *c, const pl_node *n, pl_tensor *const *in, const pl_tensor *mean,
                        const pl_tensor *rstd, const pl_tensor *gnorm, pl_tensor *gy,
                        pl_tensor **gin);

/* How queries, keys and values lie in one matrix [N, H*D + 2*K*D]. */
typedef struct pl_heads {
  int64_t H, K, D;
  int64_t window;      /* 0 = none */
  double theta;        /* 0 = no rotation */
  const pl_tensor *pos, *seq, *parent; /* i32 [N], [S+1], [S] or NULL */
} pl_heads;

mat pl_queries(const pl_heads *h, const pl_tensor *qkv);
mat pl_keys(const pl_heads *h, const pl_tensor *qkv);
mat pl_values(const pl_heads *h, const pl_tensor *qkv);
/* Turns queries and keys in place; inverse turns a gradient back. */
void pl_rotate(const pl_heads *h, bool inverse, pl_tensor *qkv);
pl_status pl_attend(pl_ctx *c, const pl_heads *h, const pl_tensor *qkv, pl_tensor *y,
                    pl_tensor *lse);
/* Sets gqkv. */
pl_status pl_attend_back(pl_ctx *c, const pl_heads *h, const pl_tensor *qkv, const pl_tensor *y,
                         const pl_tensor *lse, const pl_tensor *gy, pl_tensor *gqkv);

/* y = silu(gate) up, or gelu(up) where gate is NULL: all activations */
void pl_activate(const pl_tensor *gate, const pl_tensor *up, pl_tensor *y);
/* Sets ggate, gup, and y once more. */
void pl_activate_back(const pl_tensor *gate, const pl_tensor *up, const pl_tensor *gy,
                      pl_tensor *ggate, pl_tensor *gup, pl_tensor *y);

/* How activations are stored: bf16 under autocast, else as the numbers themselves. */
pl_dtype pl_activation_dtype(const pl_ctx *c, pl_dtype real);
/* Gradients of weight and bias number j of y = a w^T + b from g = y's, where n needs them. */
pl_status pl_weight_back(pl_ctx *c, const pl_node *n, int j, mat g, const pl_tensor *a,
                         pl_tensor **gin);
pl_status pl_row_back(pl_ctx *c, const pl_node *n, int j, mat g, pl_tensor **gin);
bool pl_needs_any(const pl_node *n, int from, int to); /* of inputs from..to */
/* Room for the gradient of input j where n needs it, of dtype d; else NULL. */
pl_status pl_gradient_new(pl_ctx *c, const pl_node *n, int j, pl_dtype d, pl_tensor **gin);
/* [rows, cols] of dtype d into *out (cols = 0: a vector) */
pl_status pl_matrix(pl_ctx *c, pl_dtype d, int64_t rows, int64_t cols, pl_tensor **out);
void pl_drop(pl_tensor **t); /* and *t = NULL */
/* wanted: t of this shape (cols = 0: a vector), a float; NULL t is fine */
pl_status pl_want_shape(pl_ctx *c, const char *what, const pl_tensor *t, int64_t rows,
                        int64_t cols);

/* The slow twins (ops_block_twin.c). */
pl_status pl_attention_block_twin(pl_ctx *c, pl_call *k);
pl_status pl_ffn_block_twin(pl_ctx *c, pl_call *k);

#endif
