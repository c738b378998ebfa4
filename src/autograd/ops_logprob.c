/* The row token_logprob: hidden states, the output weight and targets in,
 * log-probabilities out. The arithmetic is in kernels/logprob.c. Under autocast the
 * products take bf16, and what is kept for backward is bf16: softmax's numerators. */
#include "autograd/oplm.h"
#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/ref.h"

static pl_status head_check(pl_ctx *c, pl_tensor *const *in) {
  PL_TRY(want_float(c, "h", in[0], 2));
  PL_TRY(want_float(c, "w", in[1], 2));
  PL_TRY(want_ints(c, "rows", in[2]));
  PL_TRY(want_ints(c, "ids", in[3]));
  if (in[0]->shape[1] != in[1]->shape[1] || in[1]->shape[0] < 1) {
    return mismatch(c, "h [N, C] and w [V, C]", in[0], in[1]);
  }
  if (in[2]->ndim != 1 || !pl_same_shape(in[2], in[3])) {
    return mismatch(c, "rows [M] and ids [M]", in[2], in[3]);
  }
  return PL_OK;
}

/* What is kept for backward, which would otherwise compute the logits again: a sixth of
 * a small model's step. Up to this much memory, which is returned when backward is done. */
enum { KEEP_BYTES = 1 << 30 };

static pl_status head_keep(pl_ctx *c, pl_call *k, pl_dtype act, int64_t M, int64_t V) {
  if (!k->needs_grad || M > KEEP_BYTES / (V * (int64_t)pl_dtypes[act].size)) {
    return PL_OK;
  }
  return pl_tensor_new(c, act, 2, PL_SHAPE(M, V), &k->saved[1]);
}

/* Calls f_f64, f_bf16 or f_f32: RUN is a macro of (type, type of what is kept, suffix). */
#define EACH(d, half)           \
  if ((d) == PL_F64) {          \
    RUN(double, double, f64);   \
  } else if (half) {            \
    RUN(float, pl_bf16, bf16);  \
  } else {                      \
    RUN(float, float, f32);     \
  }

static pl_status head_scratch(pl_ctx *c, pl_dtype d, int64_t M, int64_t C, int64_t V,
                              int blocks, void **out) {
  size_t bytes;
  PL_TRY(pl_size_mul(c, (size_t)pl_token_logprob_scratch_f64(M, C, V, blocks), pl_dtypes[d].size,
                     &bytes));
  *out = pl_alloc(c, bytes);
  return *out ? PL_OK : PL_ENOMEM;
}

static pl_status head_forward(pl_ctx *c, pl_call *k) {
  PL_TRY(head_check(c, k->in));
  const pl_dtype d = compute_dtype(k->in, 2);
  const bool half = c->bf16 && d == PL_F32;
  pl_tensor *t[4];
  void *scratch = NULL;
  PL_TRY(dense(c, k->in, 4, d, t));
  const int64_t M = t[3]->shape[0];
  const int64_t C = t[1]->shape[1];
  const int64_t V = t[1]->shape[0];
  const int64_t stats = pl_token_logprob_stats_f64(M, V);
  k->args.i[0] = half; /* for backward */
  k->n_out = 1;
  pl_status st = want_range(c, "rows", t[2], t[0]->shape[0]);
  st = st == PL_OK ? want_range(c, "ids", t[3], V) : st;
  st = st == PL_OK ? pl_tensor_new(c, d, 1, &M, &k->out[0]) : st;
  st = st == PL_OK ? pl_tensor_new(c, d, 1, &stats, &k->saved[0]) : st;
  st = st == PL_OK ? head_keep(c, k, half ? PL_BF16 : d, M, V) : st;
  st = st == PL_OK ? head_scratch(c, d, M, C, V, 1, &scratch) : st;
  if (st == PL_OK) {
    k->saved[2] = pl_tensor_ref(k->out[0]);
#define RUN(T, A, S)                                                                              \
  pl_token_logprob_##S(M, C, V, P(T, t[0]), pl_i32(t[2]), P(T, t[1]), pl_i32(t[3]),               \
                       P(T, k->out[0]), P(T, k->saved[0]), P(A, k->saved[1]), (T *)scratch)
    EACH(d, half)
#undef RUN
    pl_profile_work(c, 2.0 * (double)M * (double)(C * V), 0);
  }
  pl_free(c, scratch);
  drop(t, 4);
  return st;
}

static pl_status head_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                               pl_tensor **gin) {
  const pl_dtype d = gout[0]->dtype;
  const bool half = n->args.i[0] != 0;
  pl_tensor *t[4];
  void *scratch = NULL;
  PL_TRY(dense(c, n->in, 4, d, t));
  const int64_t M = t[3]->shape[0];
  const int64_t C = t[1]->shape[1];
  const int64_t V = t[1]->shape[0];
  pl_status st = head_scratch(c, d, M, C, V, n->saved[1] != NULL ? 0 : 2, &scratch);
  if (st == PL_OK && pl_node_needs(n, 0)) {
    st = pl_tensor_zeros(c, d, 2, n->in[0]->shape, &gin[0]);
  }
  if (st == PL_OK && pl_node_needs(n, 1)) {
    st = pl_tensor_new(c, d, 2, n->in[1]->shape, &gin[1]);
  }
  if (st == PL_OK) {
#define RUN(T, A, S)                                                                              \
  pl_token_logprob_back_##S(M, C, V, P(T, t[0]), pl_i32(t[2]), P(T, t[1]), pl_i32(t[3]),          \
                            P(T, n->saved[2]), P(T, n->saved[0]), P(T, gout[0]), P(T, gin[0]),    \
                            P(T, gin[1]), P(A, n->saved[1]), (T *)scratch)
    EACH(d, half)
#undef RUN
    const int products = (gin[0] != NULL) + (gin[1] != NULL); /* recomputing does not count */
    pl_profile_work(c, 2.0 * products * (double)M * (double)(C * V), 0);
  }
  pl_free(c, scratch);
  drop(t, 4);
  return st;
}

static pl_status head_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *t[4];
  pl_tensor *y;
  PL_TRY(head_check(c, k->in));
  PL_TRY(dense(c, k->in, 4, PL_F64, t));
  int64_t M = t[3]->shape[0];
  pl_status st = pl_tensor_new(c, PL_F64, 1, &M, &y);
  if (st == PL_OK) {
    pl_ref_token_logprob(M, t[0]->shape[1], t[1]->shape[0], pl_data(t[0]), pl_i32(t[2]),
                         pl_data(t[1]), pl_i32(t[3]), pl_data(y));
    st = twin_out(c, k, y, compute_dtype(k->in, 2));
  }
  drop(t, 4);
  return st;
}

static pl_status head_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  k->n_in = 4;
  switch (which) {
  case 0: /* rows left out, taken twice and out of order; a repeated id */
    PL_TRY(pl_sample(c, d, 1, -1, 1, false, 2, PL_SHAPE(6, 5), &k->in[0]));
    PL_TRY(pl_sample(c, d, 2, -1, 1, false, 2, PL_SHAPE(11, 5), &k->in[1]));
    PL_TRY(ints(c, INTS(4, 1, 1, 5), &k->in[2]));
    return ints(c, INTS(10, 0, 3, 0), &k->in[3]);
  case 1: /* a vocabulary past one vector, with gaps */
    PL_TRY(pl_sample(c, d, 3, -2, 2, true, 2, PL_SHAPE(2, 3), &k->in[0]));
    PL_TRY(pl_sample(c, d, 4, -2, 2, true, 2, PL_SHAPE(37, 3), &k->in[1]));
    PL_TRY(ints(c, INTS(0, 1), &k->in[2]));
    return ints(c, INTS(36, 7), &k->in[3]);
  case 2: /* one word only: log-probability 0 */
    PL_TRY(pl_sample(c, d, 5, -1, 1, false, 2, PL_SHAPE(2, 3), &k->in[0]));
    PL_TRY(pl_sample(c, d, 6, -1, 1, false, 2, PL_SHAPE(1, 3), &k->in[1]));
    PL_TRY(ints(c, INTS(1), &k->in[2]));
    return ints(c, INTS(0), &k->in[3]);
  default:
    return pl_no_more(c);
  }
}

const pl_op pl_op_token_logprob = {
    .name = "token_logprob",
    .params = "h: tensor, w: tensor, rows: pos, ids: ids",
    .ret = "Tensor",
    .doc = "log softmax(h[rows] w^T)[ids]: h [N, C], w [V, C], rows [M] positions in h, ids [M] "
           "token ids (0-based) give [M]. Softmax's numerators are kept for backward up to "
           "1 GiB; beyond, and without backward, logits exist for a block of the vocabulary "
           "at a time.",
    .forward = head_forward,
    .backward = head_backward,
    .sample = head_sample,
    .twin = head_twin};
