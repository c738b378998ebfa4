/* The row-wise rows of a decoder: linear, embedding, rms_norm, rope, silu_mul.
 * Checks of shapes and ids are here; the arithmetic is in kernels/, and the
 * twins call kernels/ref.h. Attention and the head are in ops_attention.c and ops_logprob.c. */
#include "autograd/block.h"
#include "kernels/kernels.h"
#include "kernels/ref.h"

/* ---- linear ---------------------------------------------------------------- */

static pl_status linear_check(pl_ctx *c, pl_tensor *const *in) {
  PL_TRY(want_float(c, "x", in[0], 0));
  PL_TRY(want_float(c, "w", in[1], 2));
  if (width(in[0]) != in[1]->shape[1]) {
    return mismatch(c, "x [..., in] and w [out, in]", in[0], in[1]);
  }
  return PL_OK;
}

/* Under autocast products of f32 take bf16; f64 is left alone. Recorded in i[0]. */
static void linear_product(bool half, bool ta, bool tb, const pl_tensor *a, const pl_tensor *b,
                           pl_tensor *y) {
  const mat to = pl_whole(y);
  if (half) {
    pl_product_half(ta, tb, pl_whole(a), pl_whole(b), PL_SET, to);
  } else {
    pl_product(ta, tb, pl_whole(a), pl_whole(b), PL_SET, to);
  }
}

static pl_status linear_forward(pl_ctx *c, pl_call *k) {
  PL_TRY(linear_check(c, k->in));
  pl_dtype d = compute_dtype(k->in, 2);
  pl_tensor *t[2];
  PL_TRY(dense(c, k->in, 2, d, t));
  int64_t shape[PL_MAX_DIMS];
  memcpy(shape, t[0]->shape, sizeof shape);
  shape[t[0]->ndim - 1] = t[1]->shape[0];
  k->args.i[0] = c->bf16 && d == PL_F32;
  k->n_out = 1;
  pl_status st = pl_tensor_new(c, d, t[0]->ndim, shape, &k->out[0]);
  if (st == PL_OK) {
    linear_product(k->args.i[0], false, true, t[0], t[1], k->out[0]);
  }
  /* each input is kept only for the other's gradient */
  k->drop_in = (k->in[1]->requires_grad ? 0U : 1U) | (k->in[0]->requires_grad ? 0U : 2U);
  drop(t, 2);
  return st;
}

static pl_status linear_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                 pl_tensor **gin) {
  pl_dtype d = gout[0]->dtype;
  pl_tensor *t[2];
  PL_TRY(dense(c, n->in, 2, d, t));
  pl_status st = PL_OK;
  if (pl_node_needs(n, 0)) {
    st = pl_tensor_new(c, d, n->in[0]->ndim, n->in[0]->shape, &gin[0]);
    if (st == PL_OK) {
      linear_product(n->args.i[0], false, false, gout[0], t[1], gin[0]);
    }
  }
  if (st == PL_OK && pl_node_needs(n, 1)) {
    st = pl_tensor_new(c, d, 2, n->in[1]->shape, &gin[1]);
    if (st == PL_OK) {
      linear_product(n->args.i[0], true, false, gout[0], t[0], gin[1]);
    }
  }
  drop(t, 2);
  return st;
}

static pl_status linear_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *t[2];
  pl_tensor *y;
  PL_TRY(linear_check(c, k->in));
  PL_TRY(dense(c, k->in, 2, PL_F64, t));
  int64_t shape[PL_MAX_DIMS];
  memcpy(shape, t[0]->shape, sizeof shape);
  shape[t[0]->ndim - 1] = t[1]->shape[0];
  pl_status st = pl_tensor_new(c, PL_F64, t[0]->ndim, shape, &y);
  if (st == PL_OK) {
    pl_ref_gemm(false, true, rows_of(t[0]), t[1]->shape[0], t[1]->shape[1], 1, pl_data(t[0]),
                t[1]->shape[1], pl_data(t[1]), t[1]->shape[1], 0, pl_data(y), t[1]->shape[0]);
    st = twin_out(c, k, y, compute_dtype(k->in, 2));
  }
  drop(t, 2);
  return st;
}

static pl_status linear_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const int64_t sizes[][3] = {{5, 3, 4}, {1, 1, 1}, {17, 9, 8}, {2, 5, 7}, {0, 3, 2}};
  if (which >= 6) {
    return pl_no_more(c);
  }
  const int64_t *s = sizes[which % 5];
  k->n_in = 2;
  if (which == 5) { /* leading dims, with gaps */
    PL_TRY(pl_sample(c, d, 1, -1, 1, true, 3, PL_SHAPE(2, 3, 4), &k->in[0]));
    return pl_sample(c, d, 2, -1, 1, true, 2, PL_SHAPE(5, 4), &k->in[1]);
  }
  PL_TRY(pl_sample(c, d, 2 * which, -1, 1, which == 3, 2, PL_SHAPE(s[0], s[2]), &k->in[0]));
  return pl_sample(c, d, 2 * which + 1, -1, 1, false, 2, PL_SHAPE(s[1], s[2]), &k->in[1]);
}

const pl_op pl_op_linear = {
    .name = "linear",
    .params = "x: tensor, w: tensor",
    .ret = "Tensor",
    .doc = "x w^T: x [..., in], w [out, in] give [..., out], the layout of a checkpoint's linear "
           "weights. There is no bias.",
    .forward = linear_forward,
    .backward = linear_backward,
    .sample = linear_sample,
    .twin = linear_twin};

/* ---- embedding ------------------------------------------------------------- */

static pl_status embedding_check(pl_ctx *c, pl_tensor *const *in) {
  PL_TRY(want_float(c, "w", in[0], 2));
  PL_TRY(want_ints(c, "ids", in[1]));
  if (in[1]->ndim + 1 > PL_MAX_DIMS) {
    return mismatch(c, "ids of fewer dims", in[0], in[1]);
  }
  return PL_OK;
}

static pl_status embedding_new(pl_ctx *c, pl_tensor *const *t, pl_dtype d, pl_tensor **y) {
  int64_t shape[PL_MAX_DIMS];
  memcpy(shape, t[1]->shape, sizeof shape);
  shape[t[1]->ndim] = t[0]->shape[1];
  PL_TRY(want_range(c, "ids", t[1], t[0]->shape[0]));
  return pl_tensor_new(c, d, t[1]->ndim + 1, shape, y);
}

static pl_status embedding_forward(pl_ctx *c, pl_call *k) {
  PL_TRY(embedding_check(c, k->in));
  pl_dtype d = compute_dtype(k->in, 1);
  pl_tensor *t[2];
  PL_TRY(dense(c, k->in, 2, d, t));
  k->n_out = 1;
  k->drop_in = 1; /* the table's values do not matter to its gradient */
  pl_status st = embedding_new(c, t, d, &k->out[0]);
  if (st == PL_OK) {
#define RUN(T, S) \
  pl_embedding_##S(pl_numel(t[1]), t[0]->shape[1], P(T, t[0]), pl_i32(t[1]), P(T, k->out[0]))
    BOTH(d)
#undef RUN
  }
  drop(t, 2);
  return st;
}

static pl_status embedding_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                    pl_tensor **gin) {
  pl_dtype d = gout[0]->dtype;
  pl_tensor *ids;
  PL_TRY(pl_dense(c, n->in[1], PL_I32, &ids));
  /* a tied weight has the head's gradient already: few of its rows change */
  pl_tensor *to = pl_node_gathered(n, 0, d);
  pl_status st = PL_OK;
  if (to == NULL) {
    st = pl_tensor_zeros(c, d, 2, n->in[0]->shape, &gin[0]);
    to = gin[0];
  }
  if (st == PL_OK) {
#define RUN(T, S)                                                                    \
  pl_embedding_back_##S(pl_numel(ids), n->in[0]->shape[1], n->in[0]->shape[0], \
                        pl_i32(ids), P(T, gout[0]), P(T, to))
    BOTH(d)
#undef RUN
  }
  pl_tensor_unref(ids);
  return st;
}

static pl_status embedding_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *t[2];
  pl_tensor *y;
  PL_TRY(embedding_check(c, k->in));
  PL_TRY(dense(c, k->in, 2, PL_F64, t));
  pl_status st = embedding_new(c, t, PL_F64, &y);
  if (st == PL_OK) {
    pl_ref_embedding(pl_numel(t[1]), t[0]->shape[1], pl_data(t[0]), pl_i32(t[1]), pl_data(y));
    st = twin_out(c, k, y, compute_dtype(k->in, 1));
  }
  drop(t, 2);
  return st;
}

static pl_status embedding_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  k->n_in = 2;
  switch (which) {
  case 0:
    PL_TRY(pl_sample(c, d, 1, -1, 1, false, 2, PL_SHAPE(7, 5), &k->in[0]));
    return ints(c, INTS(3, 0, 6, 3, 3, 1), &k->in[1]); /* repeats add up */
  case 1:
    PL_TRY(pl_sample(c, d, 2, -1, 1, true, 2, PL_SHAPE(3, 70), &k->in[0]));
    return pl_sample_int(c, PL_I64, 3, 3, 2, PL_SHAPE(2, 3), &k->in[1]);
  default:
    return pl_no_more(c);
  }
}

const pl_op pl_op_embedding = {
    .name = "embedding",
    .params = "w: tensor, ids: ids",
    .ret = "Tensor",
    .doc = "Rows of w [V, C] by token id (0-based): ids [...] give [..., C]. The gradient of rows "
           "picked more than once adds up, in order.",
    .forward = embedding_forward,
    .backward = embedding_backward,
    .sample = embedding_sample,
    .twin = embedding_twin};

/* ---- rms_norm -------------------------------------------------------------- */

static pl_status rms_norm_check(pl_ctx *c, pl_tensor *const *in) {
  PL_TRY(want_float(c, "x", in[0], 0));
  PL_TRY(want_float(c, "w", in[1], 1));
  if (width(in[0]) != in[1]->shape[0]) {
    return mismatch(c, "x [..., C] and w [C]", in[0], in[1]);
  }
  return PL_OK;
}

static pl_status rms_norm_forward(pl_ctx *c, pl_call *k) {
  PL_TRY(rms_norm_check(c, k->in));
  pl_dtype d = compute_dtype(k->in, 2);
  pl_tensor *t[2];
  PL_TRY(dense(c, k->in, 2, d, t));
  int64_t N = rows_of(t[0]);
  k->n_out = 1;
  pl_status st = pl_tensor_new(c, d, t[0]->ndim, t[0]->shape, &k->out[0]);
  if (st == PL_OK) {
    st = pl_tensor_new(c, d, 1, &N, &k->saved[0]);
  }
  if (st == PL_OK) {
#define RUN(T, S)                                                                              \
  pl_rms_norm_##S(N, width(t[0]), P(T, t[0]), P(T, t[1]), (T)k->args.f[0], P(T, k->out[0]), \
                  P(T, k->saved[0]))
    BOTH(d)
#undef RUN
  }
  drop(t, 2);
  return st;
}

static pl_status rms_norm_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                   pl_tensor **gin) {
  pl_dtype d = gout[0]->dtype;
  int64_t N = rows_of(n->in[0]);
  int64_t C = width(n->in[0]);
  pl_tensor *t[2];
  PL_TRY(dense(c, n->in, 2, d, t));
  pl_status st = PL_OK;
  void *scratch = NULL;
  if (pl_node_needs(n, 0)) {
    st = pl_tensor_new(c, d, n->in[0]->ndim, n->in[0]->shape, &gin[0]);
  }
  if (st == PL_OK && pl_node_needs(n, 1)) {
    st = pl_tensor_zeros(c, d, 1, n->in[1]->shape, &gin[1]);
    scratch = pl_alloc(c, (size_t)pl_norm_back_scratch_f64(N, C) * pl_dtypes[d].size);
    st = st == PL_OK && scratch == NULL ? PL_ENOMEM : st;
  }
  if (st == PL_OK) {
#define RUN(T, S)                                                                                \
  pl_rms_norm_back_##S(N, C, P(T, t[0]), P(T, t[1]), P(T, n->saved[0]), P(T, gout[0]), \
                       false, P(T, gin[0]), P(T, gin[1]), (T *)scratch)
    BOTH(d)
#undef RUN
  }
  pl_free(c, scratch);
  drop(t, 2);
  return st;
}

static pl_status rms_norm_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *t[2];
  pl_tensor *y;
  PL_TRY(rms_norm_check(c, k->in));
  PL_TRY(dense(c, k->in, 2, PL_F64, t));
  pl_status st = pl_tensor_like(c, t[0], &y);
  if (st == PL_OK) {
    pl_ref_rms_norm(rows_of(t[0]), width(t[0]), pl_data(t[0]), pl_data(t[1]), k->args.f[0],
                    pl_data(y));
    st = twin_out(c, k, y, compute_dtype(k->in, 2));
  }
  drop(t, 2);
  return st;
}

static pl_status rms_norm_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const int64_t sizes[][2] = {{3, 5}, {1, 1}, {4, 33}, {130, 6}};
  if (which >= 4) {
    return pl_no_more(c);
  }
  const int64_t *s = sizes[which];
  k->n_in = 2;
  k->args = (pl_args){.f = {which == 0 ? 0.1 : 1e-5}, .n_f = 1};
  PL_TRY(pl_sample(c, d, 2 * which, -2, 2, which == 2, 2, PL_SHAPE(s[0], s[1]), &k->in[0]));
  return pl_sample(c, d, 2 * which + 1, 0.5, 1.5, false, 1, PL_SHAPE(s[1]), &k->in[1]);
}

const pl_op pl_op_rms_norm = {
    .name = "rms_norm",
    .params = "x: tensor, w: tensor, eps: num = 1e-5",
    .ret = "Tensor",
    .doc = "x / sqrt(mean(x^2) + eps) * w over the last dim: x [..., C], w [C] (Zhang and Sennrich "
           "2019).",
    .forward = rms_norm_forward,
    .backward = rms_norm_backward,
    .sample = rms_norm_sample,
    .twin = rms_norm_twin};

/* ---- rope ------------------------------------------------------------------ */

static pl_status rope_check(pl_ctx *c, pl_tensor *const *in, const pl_args *a) {
  PL_TRY(want_float(c, "x", in[0], 2));
  PL_TRY(want_ints(c, "pos", in[1]));
  char s[128];
  int64_t heads = a->i[0];
  if (in[1]->ndim != 1 || in[0]->shape[0] != in[1]->shape[0]) {
    return mismatch(c, "x [N, heads*D] and pos [N]", in[0], in[1]);
  }
  if (heads < 1 || in[0]->shape[1] % (2 * heads) != 0) {
    return pl_fail(c, PL_EINVAL, "x is %s, which %lld heads do not cut into even parts",
                   pl_shape_str(in[0], s), (long long)heads);
  }
  if (!(a->f[0] > 0)) {
    return pl_fail(c, PL_EINVAL, "theta is %g, wanted a positive number", a->f[0]);
  }
  return PL_OK;
}

static pl_status rope_run(pl_ctx *c, const pl_tensor *from, const pl_tensor *pos, const pl_args *a,
                          bool inverse, pl_tensor **y) {
  pl_dtype d = from->dtype;
  int64_t H = a->i[0];
  PL_TRY(pl_tensor_like(c, from, y));
#define RUN(T, S)                                                                      \
  pl_rope_##S(from->shape[0], H, from->shape[1] / H, from->shape[1], P(T, from),       \
              pl_i32(pos), (T)a->f[0], inverse, P(T, *y))
  BOTH(d)
#undef RUN
  return PL_OK;
}

static pl_status rope_forward(pl_ctx *c, pl_call *k) {
  PL_TRY(rope_check(c, k->in, &k->args));
  pl_tensor *t[2];
  PL_TRY(dense(c, k->in, 2, compute_dtype(k->in, 1), t));
  k->n_out = 1;
  k->drop_in = 1;
  pl_status st = rope_run(c, t[0], t[1], &k->args, false, &k->out[0]);
  drop(t, 2);
  return st;
}

static pl_status rope_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                               pl_tensor **gin) {
  pl_tensor *pos;
  PL_TRY(pl_dense(c, n->in[1], PL_I32, &pos));
  pl_status st = rope_run(c, gout[0], pos, &n->args, true, &gin[0]);
  pl_tensor_unref(pos);
  return st;
}

static pl_status rope_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *t[2];
  pl_tensor *y;
  PL_TRY(rope_check(c, k->in, &k->args));
  PL_TRY(dense(c, k->in, 2, PL_F64, t));
  pl_status st = pl_tensor_like(c, t[0], &y);
  if (st == PL_OK) {
    int64_t H = k->args.i[0];
    pl_ref_rope(t[0]->shape[0], H, t[0]->shape[1] / H, pl_data(t[0]), pl_i32(t[1]), k->args.f[0],
                false, pl_data(y));
    st = twin_out(c, k, y, compute_dtype(k->in, 1));
  }
  drop(t, 2);
  return st;
}

static pl_status rope_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  k->n_in = 2;
  k->args = (pl_args){.i = {2}, .n_i = 1, .f = {10000}, .n_f = 1};
  switch (which) {
  case 0:
    PL_TRY(pl_sample(c, d, 1, -1, 1, false, 2, PL_SHAPE(4, 8), &k->in[0]));
    return ints(c, INTS(0, 1, 2, 7), &k->in[1]);
  case 1: /* far positions, long heads, gaps */
    k->args.i[0] = 3;
    PL_TRY(pl_sample(c, d, 2, -1, 1, true, 2, PL_SHAPE(3, 54), &k->in[0]));
    return ints(c, INTS(99999, 0, 31), &k->in[1]);
  case 2:
    k->args.i[0] = 1;
    k->args.f[0] = 500000;
    PL_TRY(pl_sample(c, d, 3, -1, 1, false, 2, PL_SHAPE(2, 300), &k->in[0]));
    return ints(c, INTS(5, 2048), &k->in[1]);
  default:
    return pl_no_more(c);
  }
}

const pl_op pl_op_rope = {
    .name = "rope",
    .params = "x: tensor, pos: ids, heads: int, theta: num = 10000",
    .ret = "Tensor",
    .doc = "Rotary position embedding of x [N, heads*D] at positions pos [N] (from 0), pairs "
           "(j, j + D/2) turned by pos * theta^(-2j/D) (Su et al. 2021, rotate-half form).",
    .forward = rope_forward,
    .backward = rope_backward,
    .sample = rope_sample,
    .twin = rope_twin};

/* ---- silu_mul -------------------------------------------------------------- */

static pl_status silu_mul_check(pl_ctx *c, pl_tensor *const *in) {
  PL_TRY(want_float(c, "a", in[0], 0));
  PL_TRY(want_float(c, "b", in[1], 0));
  if (!pl_same_shape(in[0], in[1])) {
    return mismatch(c, "equal shapes", in[0], in[1]);
  }
  return PL_OK;
}

static pl_status silu_mul_forward(pl_ctx *c, pl_call *k) {
  PL_TRY(silu_mul_check(c, k->in));
  pl_dtype d = compute_dtype(k->in, 2);
  pl_tensor *t[2];
  PL_TRY(dense(c, k->in, 2, d, t));
  k->n_out = 1;
  pl_status st = pl_tensor_new(c, d, t[0]->ndim, t[0]->shape, &k->out[0]);
  if (st == PL_OK) {
#define RUN(T, S) pl_silu_mul_##S(pl_numel(t[0]), P(T, t[0]), P(T, t[1]), P(T, k->out[0]))
    BOTH(d)
#undef RUN
  }
  drop(t, 2);
  return st;
}

static pl_status silu_mul_backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                                   pl_tensor **gin) {
  pl_dtype d = gout[0]->dtype;
  pl_tensor *t[2];
  pl_tensor *y = NULL;
  PL_TRY(dense(c, n->in, 2, d, t));
  pl_status st = pl_tensor_like(c, t[0], &y);
  for (int j = 0; j < 2 && st == PL_OK; j++) {
    st = pl_tensor_like(c, t[0], &gin[j]);
  }
  if (st == PL_OK) {
    pl_activate_back(t[0], t[1], gout[0], gin[0], gin[1], y);
  }
  pl_tensor_unref(y);
  drop(t, 2);
  return st;
}

static pl_status silu_mul_twin(pl_ctx *c, pl_call *k) {
  pl_tensor *t[2];
  pl_tensor *y;
  PL_TRY(silu_mul_check(c, k->in));
  PL_TRY(dense(c, k->in, 2, PL_F64, t));
  pl_status st = pl_tensor_like(c, t[0], &y);
  if (st == PL_OK) {
    pl_ref_silu_mul(pl_numel(t[0]), pl_data(t[0]), pl_data(t[1]), pl_data(y));
    st = twin_out(c, k, y, compute_dtype(k->in, 2));
  }
  drop(t, 2);
  return st;
}

static pl_status silu_mul_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const int64_t sizes[][2] = {{3, 5}, {1, 1}, {7, 19}};
  if (which >= 3) {
    return pl_no_more(c);
  }
  const int64_t *s = sizes[which];
  k->n_in = 2;
  PL_TRY(pl_sample(c, d, 2 * which, -6, 6, which == 2, 2, PL_SHAPE(s[0], s[1]), &k->in[0]));
  return pl_sample(c, d, 2 * which + 1, -2, 2, false, 2, PL_SHAPE(s[0], s[1]), &k->in[1]);
}

const pl_op pl_op_silu_mul = {
    .name = "silu_mul",
    .params = "a: tensor, b: tensor",
    .ret = "Tensor",
    .doc = "a * sigmoid(a) * b, the gate of a SwiGLU layer (Shazeer 2020); equal shapes.",
    .forward = silu_mul_forward,
    .backward = silu_mul_backward,
    .sample = silu_mul_sample,
    .twin = silu_mul_twin};

const pl_op *const pl_ops_lm[] = {
    &pl_op_linear,   &pl_op_embedding, &pl_op_rms_norm, &pl_op_rope, &pl_op_attention,
    &pl_op_silu_mul, &pl_op_token_logprob, NULL};
