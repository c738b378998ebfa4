/* The row attention. Sequences lie one after the other in N rows; there is no
 * padding. The arithmetic is in kernels/attention.c, the twin in kernels/ref.h. */
#include "autograd/oplm.h"
#include "kernels/kernels.h"
#include "kernels/ref.h"

/* ---- attention ------------------------------------------------------------- */

typedef struct heads {
  int64_t S, H, K, D, window;
} heads;

static pl_status attention_check(pl_ctx *c, pl_tensor *const *in, const pl_args *a, heads *h) {
  char s[128];
  PL_TRY(want_float(c, "q", in[0], 2));
  PL_TRY(want_float(c, "k", in[1], 2));
  PL_TRY(want_float(c, "v", in[2], 2));
  PL_TRY(want_ints(c, "seq", in[3]));
  h->H = a->i[0];
  h->K = a->i[1];
  h->window = a->i[2];
  if (h->H < 1 || h->K < 1 || h->H % h->K != 0) {
    return pl_fail(c, PL_EINVAL, "%lld heads and %lld kv_heads: wanted kv_heads to divide heads",
                   (long long)h->H, (long long)h->K);
  }
  if (h->window < 0) {
    return pl_fail(c, PL_EINVAL, "window %lld: wanted how many keys a query sees, or 0 for all",
                   (long long)h->window);
  }
  if (in[0]->shape[1] % h->H != 0 || in[0]->shape[1] == 0) {
    return pl_fail(c, PL_EINVAL, "q is %s, which %lld heads do not divide",
                   pl_shape_str(in[0], s), (long long)h->H);
  }
  h->D = in[0]->shape[1] / h->H;
  if (in[1]->shape[0] != in[0]->shape[0] || in[1]->shape[1] != h->K * h->D) {
    return mismatch(c, "q [N, heads*D] and k [N, kv_heads*D]", in[0], in[1]);
  }
  if (!pl_same_shape(in[1], in[2])) {
    return mismatch(c, "k and v of one shape", in[1], in[2]);
  }
  if (in[3]->ndim != 1 || in[3]->shape[0] < 1) {
    return pl_fail(c, PL_EINVAL, "seq is %s, wanted [S+1]: where each sequence begins, then N",
                   pl_shape_str(in[3], s));
  }
  h->S = in[3]->shape[0] - 1;
  return PL_OK;
}

/* Of q k^T and of weights times v, causal: half the square of each sequence, less what lies
 * before the window. */
static double attention_flop(const heads *h, const int32_t *seq) {
  double pairs = 0;
  for (int64_t s = 0; s < h->S; s++) {
    const double n = seq[s + 1] - seq[s];
    const double hidden = h->window > 0 && n > (double)h->window ? n - (double)h->window : 0;
    pairs += (n * (n + 1) - hidden * (hidden + 1)) / 2;
  }
  return 4 * pairs * (double)(h->H * h->D);
}

static pl_status attention_forward(pl_ctx *c, pl_call *k) {
  heads h;
  PL_TRY(attention_check(c, k->in, &k->args, &h));
  pl_dtype d = compute_dtype(k->in, 3);
  pl_tensor *t[4];
  PL_TRY(dense(c, k->in, 4, d, t));
  int64_t N = t[0]->shape[0];
  k->n_out = 1;
  pl_status st = want_seq(c, t[3], h.S, N);
  if (st == PL_OK) {
    st = pl_tensor_like(c, t[0], &k->out[0]);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, d, 2, PL_SHAPE(N, h.H), &k->saved[1]);
  }
  const pl_sequences q = {.S = h.S, .seq = pl_i32(t[3]), .window = h.window};
  void *scratch = NULL;
  if (st == PL_OK) {
    st = attention_scratch(c, &q, h.D, false, d, &scratch);
  }
  if (st == PL_OK) {
    k->saved[0] = pl_tensor_ref(k->out[0]);
#define RUN(T, S_)                                                                               \
  pl_attention_##S_(&q, h.H, h.K, h.D, P(T, t[0]), h.H *h.D, P(T, t[1]), h.K *h.D, P(T, t[2]),   \
                    h.K *h.D, P(T, k->out[0]), P(T, k->saved[1]), (T *)scratch)
    BOTH(d)
#undef RUN
    pl_profile_work(c, attention_flop(&h, pl_i32(t[3])), 0);
  }
  pl_free(c, scratch);
  drop(t, 4);
  return st;
}

static pl_status attention_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                    pl_tensor **gin) {
  heads h;
  PL_TRY(attention_check(c, n->in, &n->args, &h));
  pl_dtype d = gout[0]->dtype;
  pl_tensor *t[4];
  PL_TRY(dense(c, n->in, 4, d, t));
  pl_status st = PL_OK;
  for (int j = 0; j < 3 && st == PL_OK; j++) {
    st = pl_tensor_new(c, d, 2, n->in[j]->shape, &gin[j]);
  }
  const pl_sequences q = {.S = h.S, .seq = pl_i32(t[3]), .window = h.window};
  void *scratch = NULL;
  if (st == PL_OK) {
    st = attention_scratch(c, &q, h.D, true, d, &scratch);
  }
  if (st == PL_OK) {
#define RUN(T, S_)                                                                              \
  pl_attention_back_##S_(&q, h.H, h.K, h.D, P(T, t[0]), h.H *h.D, P(T, t[1]), h.K *h.D,         \
                         P(T, t[2]), h.K *h.D, P(T, n->saved[0]), P(T, n->saved[1]),            \
                         P(T, gout[0]), P(T, gin[0]), h.H *h.D, P(T, gin[1]), h.K *h.D,         \
                         P(T, gin[2]), h.K *h.D, (T *)scratch)
    BOTH(d)
#undef RUN
    pl_profile_work(c, 2 * attention_flop(&h, pl_i32(t[3])), 0);
  }
  pl_free(c, scratch);
  drop(t, 4);
  return st;
}

static pl_status attention_twin(pl_ctx *c, pl_call *k) {
  heads h;
  pl_tensor *t[4];
  pl_tensor *y;
  PL_TRY(attention_check(c, k->in, &k->args, &h));
  PL_TRY(dense(c, k->in, 4, PL_F64, t));
  pl_status st = pl_tensor_like(c, t[0], &y);
  if (st == PL_OK) {
    pl_ref_attention(h.S, pl_i32(t[3]), h.window, h.H, h.K, h.D, pl_data(t[0]), pl_data(t[1]),
                     pl_data(t[2]), pl_data(y));
    st = twin_out(c, k, y, compute_dtype(k->in, 3));
  }
  drop(t, 4);
  return st;
}

static pl_status attention_inputs(pl_ctx *c, pl_dtype d, int seed, int64_t N, int64_t H, int64_t K,
                                  int64_t D, bool gaps, pl_call *k) {
  k->n_in = 4;
  k->args = (pl_args){.i = {H, K, 0}, .n_i = 3};
  PL_TRY(pl_sample(c, d, seed, -2, 2, gaps, 2, PL_SHAPE(N, H * D), &k->in[0]));
  PL_TRY(pl_sample(c, d, seed + 1, -2, 2, gaps, 2, PL_SHAPE(N, K * D), &k->in[1]));
  return pl_sample(c, d, seed + 2, -1, 1, false, 2, PL_SHAPE(N, K * D), &k->in[2]);
}

static pl_status attention_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
  case 0: /* ragged, one sequence of length 1, one empty */
    PL_TRY(attention_inputs(c, d, 1, 9, 2, 2, 4, false, k));
    return ints(c, INTS(0, 5, 6, 6, 9), &k->in[3]);
  case 1: /* grouped heads */
    PL_TRY(attention_inputs(c, d, 4, 7, 4, 2, 2, true, k));
    return ints(c, INTS(0, 3, 7), &k->in[3]);
  case 2: /* one key head for all; longer than a block of queries */
    PL_TRY(attention_inputs(c, d, 7, 37, 2, 1, 2, false, k));
    return ints(c, INTS(0, 37), &k->in[3]);
  case 3: /* a window, in one sequence longer than it and one shorter */
    PL_TRY(attention_inputs(c, d, 13, 13, 2, 2, 3, false, k));
    k->args.i[2] = 4;
    return ints(c, INTS(0, 10, 13), &k->in[3]);
  case 4: /* longer than a block of keys: checked in value, too slow to difference */
    if (d == PL_F64) {
      return pl_no_more(c);
    }
    PL_TRY(attention_inputs(c, d, 10, 150, 1, 1, 3, false, k));
    return ints(c, INTS(0, 11, 150), &k->in[3]);
  default:
    return pl_no_more(c);
  }
}

const pl_op pl_op_attention = {
    .name = "attention",
    .params = "q: tensor, k: tensor, v: tensor, seq: ids, heads: int, kv_heads: int, "
              "window: int = 0",
    .ret = "Tensor",
    .doc = "Causal softmax(q k^T / sqrt(D)) v inside each of the packed sequences seq[s]..seq[s+1] "
           "(seq [S+1], from 0 to N): q [N, heads*D], k, v [N, kv_heads*D]; query heads share keys "
           "in groups (Ainslie et al. 2023). A query sees the last `window` keys "
           "up to its own, or all (0).",
    .forward = attention_forward,
    .backward = attention_backward,
    .sample = attention_sample,
    .twin = attention_twin};
