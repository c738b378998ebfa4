/* Op rows and the tape.
 *
 * One row declares an op: from it come its Lua function, its help, its stub,
 * its gradient check (f64 finite differences) and its parity test against the
 * slow twin. Hand-written forward and backward pairs are the ops; the tape is
 * the glue. A node is owned by the tensors computed from it, so a graph nobody
 * holds is freed with all it saved; backward frees it at once.
 *
 * Use from C:
 *   pl_tensor *y;
 *   PL_TRY(pl_apply(c, &pl_op_rms_norm, (pl_tensor *[]){x, w}, 2, &(pl_args){.f = {eps}}, &y));
 *   ...
 *   PL_TRY(pl_backward(c, loss, NULL));     gradients add into leaf->grad
 */
#ifndef PL_AUTOGRAD_OP_H
#define PL_AUTOGRAD_OP_H
#include "tensor/tensor.h"

#define PL_OP_MAX_OUT 3
#define PL_OP_MAX_SAVED 6
#define PL_OP_MAX_INT 12

#define PL_ABSENT INT64_MIN /* an optional "dim?" or "int?" that was not given */

/* All that is not a tensor, filled by bind/ from the row's params string (its
 * vocabulary stands at pl_op.params). Numbers go to f[] in their order. The
 * single integers (dim, index, int, bool, dtype) go to i[] in their order;
 * after them, in i[k..n_i), the values of the one list parameter (dims or
 * shape), if the row has one. Example: sum(x, dims, keepdim) has keepdim in
 * i[0] and the dims in i[1..n_i). Negative dims and indices are the row's
 * business (pl_norm_dim). */
typedef struct pl_args {
  int64_t i[PL_OP_MAX_INT];
  int n_i;
  double f[4];
  int n_f;
} pl_args;

struct pl_op;

typedef struct pl_call {
  const struct pl_op *op;
  pl_tensor **in; /* borrowed */
  int n_in;
  pl_args args;
  pl_tensor *out[PL_OP_MAX_OUT]; /* made by forward, owned by the call */
  int n_out;
  pl_tensor *saved[PL_OP_MAX_SAVED]; /* made by forward for backward: owned references */
  bool needs_grad; /* forward may skip what only backward needs */
  /* Bit j, set by forward: backward reads only shape and dtype of in[j], so
   * its values need not be kept. Inputs from 64 on are always kept. */
  uint64_t drop_in;
} pl_call;

typedef struct pl_node {
  int32_t ref;
  pl_ctx *ctx;
  uint64_t seq;
  const struct pl_op *op;
  int n_in, n_out;
  pl_tensor **in;            /* owned references */
  uint32_t *in_version;      /* of each input's storage when recorded */
  bool *needed;              /* did the input require a gradient then? What is marked later joins
                              * no graph that is there: what its gradient reads was not kept. */
  pl_args args;
  pl_tensor *saved[PL_OP_MAX_SAVED];
  /* shapes of the outputs, so that a missing gradient can be made as zeros */
  int out_ndim[PL_OP_MAX_OUT];
  int64_t out_shape[PL_OP_MAX_OUT][PL_MAX_DIMS];
  pl_dtype out_dtype[PL_OP_MAX_OUT];
  bool freed;                /* backward has run and released what was saved */
  /* the tape's own */
  uint32_t saved_version[PL_OP_MAX_SAVED];
  uint64_t drop_in;              /* these in[] are ghosts or need no version check */
  pl_tensor *gout[PL_OP_MAX_OUT]; /* gradient gathered so far while backward runs */
  uint64_t mark;                 /* the backward run that has seen it */
  struct pl_node *next;          /* work list of the iterative free */
} pl_node;

enum {
  PL_OP_METHOD = 1,   /* also x:NAME(...) */
  PL_OP_HIDDEN = 2,   /* no Lua function: used from C only */
  PL_OP_VIEW = 4,     /* the output shares the input's storage */
  PL_OP_NO_F64 = 8,   /* nothing to gradient-check (integer or comparison results) */
  PL_OP_ANY_DTYPE = 16,  /* takes bf16 as it is; other rows get it cast to f32 by the tape */
  PL_OP_SHAPES_ONLY = 32 /* backward reads no values of the inputs: they are not kept */
};

typedef struct pl_op {
  const char *name;
  /* The Lua signature: "x: tensor, dim: dim = -1, keepdim: bool = false", in the words of the
   * user: counted from 1. Types:
   *   tensor   a tensor, or a number (pl_scalar_like the first tensor operand)
   *   tensor?  the same or absent: in[k] = NULL
   *   tensors  a list of tensors: fills in[] and n_in
   *   ids      integer tensor or list of integers, 0-based data (token ids): in[k], i32
   *   pos      integer tensor or list of positions counted from 1: bind makes in[k] 0-based
   *            i32 (negative ones count from the end and are passed on unchanged)
   *   mask     bool tensor (or anything that is not 0)
   *   dim      one dim, 1-based or negative -> i (d > 0 ? d - 1 : d)
   *   dim?     the same or absent: PL_ABSENT
   *   dims     one dim, a list, several arguments (only where it is last) or absent = none
   *   index    one position, 1-based or negative -> i, converted like dim
   *   shape    sizes as a list or as several arguments, unconverted
   *   int, int?, num, bool, dtype (a name; i = pl_dtype)
   * Defaults after " = " are Lua words too: -1, 1, true, "f32", inf, -inf. */
  const char *params;
  /* "Tensor", "Positions" (an integer tensor: bind adds 1), "Tensor, Positions", or with a part
   * that only some arguments bring: "Tensor[, Positions]". The outs array given to pl_apply,
   * zeroed before, tells how many came. */
  const char *ret;
  const char *doc; /* one to three sentences: what, shapes, source of the formula */
  unsigned flags;
  pl_status (*forward)(pl_ctx *c, pl_call *k);
  /* gin[j]: leave NULL where in[j] needs none, else a new tensor of in[j]'s
   * shape. gout[j] is never NULL, contiguous. NULL function: not differentiable. */
  pl_status (*backward)(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin);
  /* Test inputs number `which` (0, 1, ...) in dtype d: fills k->in (owned by the
   * tester) and k->args; PL_ENOENT when there are no more. in has 16 slots. */
  pl_status (*sample)(pl_ctx *c, int which, pl_dtype d, pl_call *k);
  /* The slow obvious twin: loops over pl_get/pl_set in double. Fills k->out. */
  pl_status (*twin)(pl_ctx *c, pl_call *k);
} pl_op;

/* Runs a row on inputs; records a node if recording is on and an input needs a
 * gradient. outs: as many as the op makes. Polls the interrupt flag. On failure
 * nothing is left behind and the error text starts with the op's name. */
pl_status pl_apply(pl_ctx *c, const pl_op *op, pl_tensor **in, int n_in, const pl_args *args,
                   pl_tensor **outs);
/* The gradients of leaves that a failed run has touched are not defined.
 * grad: of t's shape, or NULL when t has one element. Adds into the leaves' grad. */
pl_status pl_backward(pl_ctx *c, pl_tensor *t, const pl_tensor *grad);
/* Marks a leaf as wanting a gradient (or not). Only float leaves can. */
pl_status pl_set_requires_grad(pl_ctx *c, pl_tensor *t, bool on);
/* Asks before an in-place change of t: PL_EINVAL where a recorded gradient would be wrong
 * (t requires grad while recording) or where t is an expanded view. */
pl_status pl_inplace_check(pl_ctx *c, const char *name, const pl_tensor *t);
void pl_node_ref(pl_node *n);
void pl_node_unref(pl_node *n); /* iterative: a chain of 10^6 nodes is fine */
bool pl_node_needs(const pl_node *n, int in); /* does input number `in` need a gradient? */
/* For a backward whose gradient of a large input is mostly zeros: what was gathered so far for
 * the leaf n->in[in], contiguous and of dtype d, to add into while gin[in] stays NULL. NULL
 * where there is no such thing; then gin[in] is made as ever. */
pl_tensor *pl_node_gathered(const pl_node *n, int in, pl_dtype d);

/* dim in [-ndim, ndim) to [0, ndim); PL_EINVAL with the shape in the text. */
pl_status pl_norm_dim(pl_ctx *c, const pl_tensor *t, int64_t dim, int *out);

/* The tables, each defined in its ops_*.c and ended by a NULL: all of them: */
extern const pl_op *const *const pl_op_tables[]; /* NULL-ended */
const pl_op *pl_op_find(const char *name);

/* A Lua number as 0-dim operand beside `other`: other's dtype; f32 where other is an integer
 * and v is none (or was a float in Lua: is_int false); bool takes i64 for whole numbers. */
pl_status pl_scalar_like(pl_ctx *c, const pl_tensor *other, double v, bool is_int, pl_tensor **out);

/* Rows other C code names directly (others are reached by pl_op_find). */
extern const pl_op pl_op_add, pl_op_sub, pl_op_mul, pl_op_sum, pl_op_index_select, pl_op_matmul;
extern const pl_op pl_op_linear;        /* x [N,in], w [out,in] -> [N,out] */
extern const pl_op pl_op_embedding;     /* w [V,C], ids i32 [N] -> [N,C] */
extern const pl_op pl_op_rms_norm;      /* x [N,C], w [C]; f0 = eps */
extern const pl_op pl_op_layer_norm;    /* x [N,C], w [C], b [C]?; f0 = eps */
/* x [N,H*D], pos i32 [N]; i0 = H heads, f0 = theta; rotate-half */
extern const pl_op pl_op_rope;
/* q [N,H*D], k [N,K*D], v [N,K*D], seq i32 [S+1]; i0 = H, i1 = K; causal in each sequence */
extern const pl_op pl_op_attention;
extern const pl_op pl_op_silu_mul;      /* silu(a) * b */
/* h [N,C], w [V,C], rows i32 [M], ids i32 [M] -> [M]: log softmax(h[rows] w^T)[ids]; logits
 * never held whole */
extern const pl_op pl_op_token_logprob;

/* The two halves of a decoder layer, hidden rows. "?" may be NULL. [N,C] -> [N,C]:
 *   x + o(attention(q(h), k(h), v(h))), h = norm(x)
 *     in: x, norm_w, norm_b?, q [H*D,C], k, v [K*D,C], o [C,H*D], their biases q_b?, k_b?, v_b?,
 *         o_b?, pos i32 [N]?, seq i32 [S+1], parent i32 [S]?
 *     i: H, K, window (0 = none), LayerNorm instead of RMSNorm, checkpoint;  f: eps, theta (0 = no
 *     rotation). A sequence with a parent (-1 = none) also sees all tokens of that one. */
extern const pl_op pl_op_attention_block;
/*   x + down(silu(gate(h)) * up(h)), or without a gate x + down(gelu(up(h)))
 *     in: x, norm_w, norm_b?, gate? [F,C], up [F,C], down [C,F], gate_b?, up_b?, down_b?
 *     i: LayerNorm, checkpoint;  f: eps
 * checkpoint: keep only x, and compute the block again when its gradient is asked for. */
extern const pl_op pl_op_ffn_block;

#endif
