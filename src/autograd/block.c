/* Kernels on whole tensors for the blocks of a decoder layer: see block.h. */
#include "autograd/block.h"

#include "base/profile.h"
#include "kernels/kernels.h"

mat pl_whole(const pl_tensor *t) {
  return (mat){t, 0, width(t)};
}

mat pl_columns(const pl_tensor *t, int64_t from, int64_t cols) {
  return (mat){t, from, cols};
}

static void *at(mat m) {
  return (char *)pl_data(m.t) + (size_t)m.from * pl_dtypes[m.t->dtype].size;
}

/* ---- products ---------------------------------------------------------------- */

static pl_mat half_mat(mat m) {
  return (pl_mat){at(m), width(m.t), m.t->dtype == PL_BF16};
}

/* How many terms a sum has: the rows of a transposed a, else its columns. */
static int64_t terms(bool ta, mat a) {
  return ta ? rows_of(a.t) : a.cols;
}

/* For the profile, which is the context's, which a tensor knows: the parts of a block. */
static void told(const pl_tensor *t, double flop) {
  pl_profile_work(t->storage->ctx, flop, 0);
}

static void begin(const pl_tensor *t, const char *part) {
  pl_profile_enter(t->storage->ctx, part, false);
}

static void end(const pl_tensor *t) {
  pl_profile_leave(t->storage->ctx, (pl_work){0});
}

void pl_product_half(bool ta, bool tb, mat a, mat b, int how, mat y) {
  begin(y.t, "products");
  told(y.t, 2.0 * (double)rows_of(y.t) * (double)(y.cols * terms(ta, a)));
  pl_gemm_bf16(ta, tb, rows_of(y.t), y.cols, terms(ta, a), 1, half_mat(a), half_mat(b), (float)how,
               half_mat(y));
  end(y.t);
}

void pl_product(bool ta, bool tb, mat a, mat b, int how, mat y) {
  if (a.t->dtype == PL_BF16 || b.t->dtype == PL_BF16 || y.t->dtype == PL_BF16) {
    pl_product_half(ta, tb, a, b, how, y);
    return;
  }
  begin(y.t, "products");
  told(y.t, 2.0 * (double)rows_of(y.t) * (double)(y.cols * terms(ta, a)));
#define RUN(T, S)                                                                              \
  pl_gemm_##S(ta, tb, rows_of(y.t), y.cols, terms(ta, a), 1, at(a), width(a.t), at(b),         \
              width(b.t), (T)how, at(y), width(y.t))
  BOTH(y.t->dtype)
#undef RUN
  end(y.t);
}

/* ---- biases ------------------------------------------------------------------- */

/* Calls the kernel for real numbers (double or float) and the storage of activations. */
#define EACH(act_dtype, RUN)                       \
  switch (act_dtype) {                             \
    case PL_F64: RUN(double, double, f64); break;  \
    case PL_BF16: RUN(float, pl_bf16, bf16); break; \
    default: RUN(float, float, f32); break;        \
  }

void pl_bias(const pl_tensor *b, mat y) {
  if (b == NULL) {
    return;
  }
#define RUN(T, A, S) \
  pl_bias_##S(rows_of(y.t), y.cols, width(y.t), (const T *)pl_data(b), (A *)at(y))
  EACH(y.t->dtype, RUN)
#undef RUN
}

void pl_residual(const pl_tensor *x, const pl_tensor *b, pl_tensor *y) {
#define RUN(T, S) pl_residual_##S(rows_of(x), width(x), P(T, x), P(T, b), P(T, y))
  BOTH(x->dtype)
#undef RUN
}

void pl_bias_back(mat g, pl_tensor *gb) {
#define RUN(T, A, S) \
  pl_bias_back_##S(rows_of(g.t), g.cols, width(g.t), (const A *)at(g), (T *)pl_data(gb))
  EACH(g.t->dtype, RUN)
#undef RUN
}

/* ---- norms -------------------------------------------------------------------- */

void pl_norm(const pl_tensor *x, const pl_tensor *w, const pl_tensor *b, double eps, pl_tensor *y,
             pl_tensor *mean, pl_tensor *rstd) {
  const int64_t N = rows_of(x);
  const int64_t C = width(x);
#define LAYER(T, A, S)                                                                     \
  pl_layer_norm_##S(N, C, P(T, x), P(T, w), P(T, b), (T)eps, P(A, y), P(T, mean), P(T, rstd))
#define RMS(T, A, S) pl_rms_norm_##S(N, C, P(T, x), P(T, w), (T)eps, P(A, y), P(T, rstd))
  begin(y, "norm");
  if (mean != NULL) {
    EACH(y->dtype, LAYER)
  } else {
    EACH(y->dtype, RMS)
  }
  end(y);
#undef LAYER
#undef RMS
}

pl_status pl_norm_back(pl_ctx *c, const pl_tensor *x, const pl_tensor *w, const pl_tensor *mean,
                       const pl_tensor *rstd, const pl_tensor *gy, pl_tensor *gx, pl_tensor *gw,
                       pl_tensor *gb) {
  const int64_t N = rows_of(x);
  const int64_t C = width(x);
  void *scratch = NULL;
  if (gw != NULL || gb != NULL) {
    scratch = pl_alloc(c, (size_t)pl_norm_back_scratch_f64(N, C) * pl_dtypes[x->dtype].size);
    if (scratch == NULL) {
      return PL_ENOMEM;
    }
  }
  pl_status st = gw != NULL ? pl_fill(gw, 0) : PL_OK;
  if (st == PL_OK && gb != NULL) {
    st = pl_fill(gb, 0);
  }
#define LAYER(T, S)                                                                             \
  pl_layer_norm_back_##S(N, C, P(T, x), P(T, w), P(T, mean), P(T, rstd), P(T, gy), true,        \
                         P(T, gx), P(T, gw), P(T, gb), (T *)scratch)
#define RMS(T, S)                                                                               \
  pl_rms_norm_back_##S(N, C, P(T, x), P(T, w), P(T, rstd), P(T, gy), true, P(T, gx), P(T, gw), \
                       (T *)scratch)
#define RUN(T, S)    \
  if (mean != NULL) { \
    LAYER(T, S);     \
  } else {           \
    RMS(T, S);       \
  }
  if (st == PL_OK) {
    begin(x, "norm");
    BOTH(x->dtype)
    end(x);
  }
#undef LAYER
#undef RMS
#undef RUN
  pl_free(c, scratch);
  return st;
}

pl_status pl_norm_new(pl_ctx *c, pl_tensor *const *in, double eps, bool layer, pl_dtype act,
                      pl_tensor **y, pl_tensor **mean, pl_tensor **rstd) {
  const pl_tensor *x = in[0];
  if (layer && *mean == NULL) {
    PL_TRY(pl_tensor_new(c, x->dtype, 1, x->shape, mean));
  }
  if (*rstd == NULL) {
    PL_TRY(pl_tensor_new(c, x->dtype, 1, x->shape, rstd));
  }
  PL_TRY(pl_tensor_new(c, act, 2, x->shape, y));
  pl_norm(x, in[1], in[2], eps, *y, *mean, *rstd);
  return PL_OK;
}

/* g itself where nobody else holds it, else a copy. */
static pl_status take(pl_ctx *c, pl_tensor *g, pl_tensor **out) {
  if (g->ref == 1 && g->storage->ref == 1) {
    *out = pl_tensor_ref(g);
    return PL_OK;
  }
  return pl_tensor_cast(c, g, g->dtype, out);
}

pl_status pl_input_back(pl_ctx *c, const pl_node *n, pl_tensor *const *in, const pl_tensor *mean,
                        const pl_tensor *rstd, const pl_tensor *gnorm, pl_tensor *gy,
                        pl_tensor **gin) {
  PL_TRY(pl_gradient_new(c, n, 1, in[0]->dtype, gin));
  PL_TRY(pl_gradient_new(c, n, 2, in[0]->dtype, gin));
  if (pl_node_needs(n, 0)) {
    PL_TRY(take(c, gy, &gin[0]));
  }
  return pl_norm_back(c, in[0], in[1], mean, rstd, gnorm, gin[0], gin[1], gin[2]);
}

/* ---- attention ---------------------------------------------------------------- */

mat pl_queries(const pl_heads *h, const pl_tensor *qkv) {
  return pl_columns(qkv, 0, h->H * h->D);
}

mat pl_keys(const pl_heads *h, const pl_tensor *qkv) {
  return pl_columns(qkv, h->H * h->D, h->K * h->D);
}

mat pl_values(const pl_heads *h, const pl_tensor *qkv) {
  return pl_columns(qkv, (h->H + h->K) * h->D, h->K * h->D);
}

void pl_rotate(const pl_heads *h, bool inverse, pl_tensor *qkv) {
  if (h->theta == 0) {
    return;
  }
  begin(qkv, "rope");
#define RUN(T, A, S)                                                                            \
  pl_rope_##S(rows_of(qkv), h->H + h->K, h->D, width(qkv), P(A, qkv), pl_i32(h->pos), (T)h->theta, \
              inverse, P(A, qkv))
  EACH(qkv->dtype, RUN)
#undef RUN
  end(qkv);
}

/* Of q k^T and of weights times v: half the square of each sequence, all of its parent. */
static double attention_flop(const pl_heads *h) {
  const int32_t *seq = pl_i32(h->seq);
  const int32_t *parent = h->parent != NULL ? pl_i32(h->parent) : NULL;
  double pairs = 0;
  for (int64_t s = 0; s + 1 < h->seq->shape[0]; s++) {
    const double n = seq[s + 1] - seq[s];
    const int32_t p = parent != NULL ? parent[s] : -1;
    const double before = p >= 0 ? seq[p + 1] - seq[p] : 0;
    pairs += n * (before + (n + 1) / 2);
  }
  return 4 * pairs * (double)(h->H * h->D);
}

static pl_sequences sequences(const pl_heads *h) {
  return (pl_sequences){.S = h->seq->shape[0] - 1, .seq = pl_i32(h->seq),
                        .parent = h->parent != NULL ? pl_i32(h->parent) : NULL,
                        .window = h->window};
}

/* Where m begins, and how far its rows are apart. */
#define M(A, m) P(A, (m).t) + (m).from, width((m).t)

pl_status pl_attend(pl_ctx *c, const pl_heads *h, const pl_tensor *qkv, pl_tensor *y,
                    pl_tensor *lse) {
  told(y, attention_flop(h));
  const pl_sequences s = sequences(h);
  void *scratch;
  PL_TRY(attention_scratch(c, &s, h->D, false, lse->dtype, &scratch));
#define RUN(T, A, S)                                                                            \
  pl_attention_##S(&s, h->H, h->K, h->D, M(A, pl_queries(h, qkv)), M(A, pl_keys(h, qkv)),        \
                   M(A, pl_values(h, qkv)), P(A, y), P(T, lse), (T *)scratch)
  EACH(qkv->dtype, RUN)
#undef RUN
  pl_free(c, scratch);
  return PL_OK;
}

pl_status pl_attend_back(pl_ctx *c, const pl_heads *h, const pl_tensor *qkv, const pl_tensor *y,
                         const pl_tensor *lse, const pl_tensor *gy, pl_tensor *gqkv) {
  told(y, 2 * attention_flop(h));
  const pl_sequences s = sequences(h);
  void *scratch;
  PL_TRY(attention_scratch(c, &s, h->D, true, lse->dtype, &scratch));
#define RUN(T, A, S)                                                                             \
  pl_attention_back_##S(&s, h->H, h->K, h->D, M(A, pl_queries(h, qkv)), M(A, pl_keys(h, qkv)),    \
                        M(A, pl_values(h, qkv)), P(A, y), P(T, lse), P(A, gy),                    \
                        M(A, pl_queries(h, gqkv)), M(A, pl_keys(h, gqkv)),                        \
                        M(A, pl_values(h, gqkv)), (T *)scratch)
  EACH(qkv->dtype, RUN)
#undef RUN
  pl_free(c, scratch);
  return PL_OK;
}

/* ---- the activation function --------------------------------------------------- */

void pl_activate(const pl_tensor *gate, const pl_tensor *up, pl_tensor *y) {
#define GELU(T, A, S) pl_gelu_##S(pl_numel(up), P(A, up), P(A, y))
#define SILU(T, A, S) pl_silu_mul_##S(pl_numel(up), P(A, gate), P(A, up), P(A, y))
  begin(up, "activation");
  if (gate == NULL) {
    EACH(up->dtype, GELU)
  } else {
    EACH(up->dtype, SILU)
  }
  end(up);
#undef GELU
#undef SILU
}

void pl_activate_back(const pl_tensor *gate, const pl_tensor *up, const pl_tensor *gy,
                      pl_tensor *ggate, pl_tensor *gup, pl_tensor *y) {
#define GELU(T, A, S) pl_gelu_back_##S(pl_numel(up), P(A, up), P(A, gy), P(A, gup), P(A, y))
#define SILU(T, A, S)                                                                          \
  pl_silu_mul_back_##S(pl_numel(up), P(A, gate), P(A, up), P(A, gy), P(A, ggate), P(A, gup), \
                       P(A, y))
  begin(up, "activation");
  if (gate == NULL) {
    EACH(up->dtype, GELU)
  } else {
    EACH(up->dtype, SILU)
  }
  end(up);
#undef GELU
#undef SILU
}

/* ---- tensors ------------------------------------------------------------------- */

pl_dtype pl_activation_dtype(const pl_ctx *c, pl_dtype real) {
  return c->bf16 && real == PL_F32 ? PL_BF16 : real;
}

bool pl_needs_any(const pl_node *n, int from, int to) {
  bool any = false;
  for (int j = from; j <= to; j++) {
    any = any || pl_node_needs(n, j);
  }
  return any;
}

pl_status pl_gradient_new(pl_ctx *c, const pl_node *n, int j, pl_dtype d, pl_tensor **gin) {
  if (!pl_node_needs(n, j)) {
    return PL_OK;
  }
  return pl_tensor_new(c, d, n->in[j]->ndim, n->in[j]->shape, &gin[j]);
}

static pl_dtype real_of(const pl_tensor *t) {
  return t->dtype == PL_F64 ? PL_F64 : PL_F32;
}

pl_status pl_weight_back(pl_ctx *c, const pl_node *n, int j, mat g, const pl_tensor *a,
                         pl_tensor **gin) {
  PL_TRY(pl_gradient_new(c, n, j, real_of(g.t), gin));
  if (gin[j] != NULL) {
    pl_product(true, false, g, pl_whole(a), PL_SET, pl_whole(gin[j]));
  }
  return PL_OK;
}

pl_status pl_row_back(pl_ctx *c, const pl_node *n, int j, mat g, pl_tensor **gin) {
  PL_TRY(pl_gradient_new(c, n, j, real_of(g.t), gin));
  if (gin[j] != NULL) {
    pl_bias_back(g, gin[j]);
  }
  return PL_OK;
}

pl_status pl_matrix(pl_ctx *c, pl_dtype d, int64_t rows, int64_t cols, pl_tensor **out) {
  return pl_tensor_new(c, d, cols == 0 ? 1 : 2, PL_SHAPE(rows, cols), out);
}

void pl_drop(pl_tensor **t) {
  pl_tensor_unref(*t);
  *t = NULL;
}

pl_status pl_want_shape(pl_ctx *c, const char *what, const pl_tensor *t, int64_t rows,
                        int64_t cols) {
  if (t == NULL) {
    return PL_OK;
  }
  PL_TRY(want_float(c, what, t, cols == 0 ? 1 : 2));
  if (t->shape[0] != rows || (cols != 0 && t->shape[1] != cols)) {
    char got[128];
    return pl_fail(c, PL_EINVAL, "%s is %s, wanted [%lld%s%.0lld]", what, pl_shape_str(t, got),
                   (long long)rows, cols != 0 ? ", " : "", (long long)cols);
  }
  return PL_OK;
}
