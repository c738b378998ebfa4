/* The first half of a decoder layer as one row:
 *
 *   h = norm(x);  q, k, v = h W^T + b, turned by position
 *   y = x + attention(q, k, v) W_o^T + b_o
 *
 * Kept for backward: the norm's statistics, q|k|v side by side in one matrix,
 * attention's output and its log-sum-exp. The norm's output is computed again;
 * with `checkpoint` everything is, and only x is kept. */
#include "autograd/block.h"

enum {
  X, NORM_W, NORM_B, Q_W, K_W, V_W, O_W, Q_B, K_B, V_B, O_B, POS, SEQ, PARENT, N_IN
};
enum { HEADS, KV_HEADS, WINDOW, LAYER_NORM, CHECKPOINT, STORAGE }; /* args.i */
enum { EPS, THETA };                                               /* args.f */
enum { MEAN, RSTD, QKV, MIXED, LSE, N_KEPT };                      /* saved */

typedef struct work {
  pl_tensor *in[N_IN];     /* dense; NULL where absent */
  pl_tensor *kept[N_KEPT];
  pl_tensor *norm;         /* the norm's output, while it is needed */
  pl_heads h;
  double eps;
  bool layer_norm;
  int64_t N, C;
  pl_dtype real, act; /* of numbers, and of how activations are stored */
} work;

static void close_work(work *w) {
  drop(w->in, N_IN);
  drop(w->kept, N_KEPT);
  pl_tensor_unref(w->norm);
}

/* ---- checks --------------------------------------------------------------------- */

static pl_status parent_check(pl_ctx *c, const pl_tensor *parent, int64_t S) {
  const int32_t *p = pl_i32(parent);
  if (parent->ndim != 1 || parent->shape[0] != S) {
    char s[128];
    return pl_fail(c, PL_EINVAL, "parent is %s, wanted [%lld], one entry a sequence",
                   pl_shape_str(parent, s), (long long)S);
  }
  int64_t root = -1;
  for (int64_t s = 0; s < S; s++) {
    root = p[s] == -1 ? s : root;
    if (p[s] != -1 && p[s] != root) {
      return pl_fail(c, PL_EINVAL, "parent of sequence %lld is %d; wanted -1, or the nearest "
                     "sequence before it that has none: %lld", (long long)s + 1, p[s],
                     (long long)root);
    }
  }
  return PL_OK;
}

static pl_status sequences_check(pl_ctx *c, const work *w) {
  const pl_tensor *seq = w->h.seq;
  if (seq->ndim != 1 || seq->shape[0] < 1) {
    char s[128];
    return pl_fail(c, PL_EINVAL, "seq is %s, wanted [S+1]: where each sequence begins, then N",
                   pl_shape_str(seq, s));
  }
  PL_TRY(want_seq(c, seq, seq->shape[0] - 1, w->N));
  if (w->h.theta != 0 && (w->h.pos == NULL || w->h.pos->ndim != 1 || w->h.pos->shape[0] != w->N)) {
    return pl_fail(c, PL_EINVAL, "wanted one position for each of %lld rows", (long long)w->N);
  }
  return w->h.parent == NULL ? PL_OK : parent_check(c, w->h.parent, seq->shape[0] - 1);
}

static pl_status shapes_check(pl_ctx *c, pl_tensor *const *in, const pl_args *a) {
  PL_TRY(want_float(c, "x", in[X], 2));
  PL_TRY(want_float(c, "q", in[Q_W], 2));
  PL_TRY(want_ints(c, "seq", in[SEQ]));
  const int64_t C = in[X]->shape[1];
  const int64_t Q = in[Q_W]->shape[0];
  const int64_t H = a->i[HEADS];
  const int64_t K = a->i[KV_HEADS];
  if (H < 1 || K < 1 || H % K != 0 || Q % H != 0 || (a->f[THETA] != 0 && Q / H % 2 != 0)) {
    return pl_fail(c, PL_EINVAL, "%lld heads and %lld kv_heads do not fit %lld rows of q",
                   (long long)H, (long long)K, (long long)Q);
  }
  if (a->i[WINDOW] < 0 || !(a->f[THETA] >= 0)) {
    return pl_fail(c, PL_EINVAL, "window is %lld and theta %g, wanted 0 (none) or more",
                   (long long)a->i[WINDOW], a->f[THETA]);
  }
  const int64_t kv = Q / H * K;
  PL_TRY(pl_want_shape(c, "norm_w", in[NORM_W], C, 0));
  PL_TRY(pl_want_shape(c, "norm_b", in[NORM_B], C, 0));
  PL_TRY(pl_want_shape(c, "q", in[Q_W], Q, C));
  PL_TRY(pl_want_shape(c, "k", in[K_W], kv, C));
  PL_TRY(pl_want_shape(c, "v", in[V_W], kv, C));
  PL_TRY(pl_want_shape(c, "o", in[O_W], C, Q));
  PL_TRY(pl_want_shape(c, "q_b", in[Q_B], Q, 0));
  PL_TRY(pl_want_shape(c, "k_b", in[K_B], kv, 0));
  PL_TRY(pl_want_shape(c, "v_b", in[V_B], kv, 0));
  return pl_want_shape(c, "o_b", in[O_B], C, 0);
}

static pl_status open_work(pl_ctx *c, pl_tensor *const *in, const pl_args *a, work *w) {
  PL_TRY(shapes_check(c, in, a));
  w->real = compute_dtype(in, N_IN);
  w->N = in[X]->shape[0];
  w->C = in[X]->shape[1];
  w->eps = a->f[EPS];
  w->layer_norm = a->i[LAYER_NORM] != 0;
  PL_TRY(dense(c, in, N_IN, w->real, w->in));
  w->h = (pl_heads){.H = a->i[HEADS], .K = a->i[KV_HEADS], .D = in[Q_W]->shape[0] / a->i[HEADS],
                    .window = a->i[WINDOW], .theta = a->f[THETA],
                    .pos = w->in[POS], .seq = w->in[SEQ], .parent = w->in[PARENT]};
  return sequences_check(c, w);
}

/* ---- forward -------------------------------------------------------------------- */

/* Queries (0), keys (1) or values (2) of all heads. */
static mat part(const work *w, const pl_tensor *qkv, int j) {
  const int64_t Q = w->h.H * w->h.D;
  const int64_t KV = w->h.K * w->h.D;
  return j == 0 ? pl_columns(qkv, 0, Q) : pl_columns(qkv, Q + (j - 1) * KV, KV);
}

static pl_status qkv_new(pl_ctx *c, const work *w, pl_tensor **out) {
  return pl_matrix(c, w->act, w->N, (w->h.H + 2 * w->h.K) * w->h.D, out);
}

static pl_status normed(pl_ctx *c, work *w) {
  return pl_norm_new(c, w->in, w->eps, w->layer_norm, w->act, &w->norm, &w->kept[MEAN],
                     &w->kept[RSTD]);
}

static pl_status mix(pl_ctx *c, work *w) {
  PL_TRY(normed(c, w));
  PL_TRY(qkv_new(c, w, &w->kept[QKV]));
  for (int j = 0; j < 3; j++) {
    const mat y = part(w, w->kept[QKV], j);
    pl_product(false, true, pl_whole(w->norm), pl_whole(w->in[Q_W + j]), PL_SET, y);
    pl_bias(w->in[Q_B + j], y);
  }
  pl_drop(&w->norm);
  pl_rotate(&w->h, false, w->kept[QKV]);
  PL_TRY(pl_matrix(c, w->act, w->N, w->h.H * w->h.D, &w->kept[MIXED]));
  PL_TRY(pl_matrix(c, w->real, w->N, w->h.H, &w->kept[LSE]));
  pl_profile_enter(c, "attention", false);
  const pl_status st = pl_attend(c, &w->h, w->kept[QKV], w->kept[MIXED], w->kept[LSE]);
  pl_profile_leave(c, (pl_work){0});
  return st;
}

static pl_status forward_in(pl_ctx *c, pl_call *k, work *w) {
  PL_TRY(open_work(c, k->in, &k->args, w));
  w->act = pl_activation_dtype(c, w->real);
  k->args.i[STORAGE] = w->act;
  PL_TRY(mix(c, w));
  if (k->needs_grad && k->args.i[CHECKPOINT] == 0) {
    for (int j = 0; j < N_KEPT; j++) {
      k->saved[j] = w->kept[j] != NULL ? pl_tensor_ref(w->kept[j]) : NULL;
    }
    k->drop_in = 1U << Q_B | 1U << K_B | 1U << V_B | 1U << O_B;
  } else {
    pl_drop(&w->kept[QKV]);
  }
  k->n_out = 1;
  PL_TRY(pl_matrix(c, w->real, w->N, w->C, &k->out[0]));
  pl_residual(w->in[X], w->in[O_B], k->out[0]);
  pl_product(false, true, pl_whole(w->kept[MIXED]), pl_whole(w->in[O_W]), PL_ADD,
             pl_whole(k->out[0]));
  return PL_OK;
}

static pl_status forward(pl_ctx *c, pl_call *k) {
  work w = {.N = 0};
  const pl_status st = forward_in(c, k, &w);
  close_work(&w);
  return st;
}

/* ---- backward ------------------------------------------------------------------- */

/* The gradient of q|k|v before rotation from g = that of y. */
static pl_status mix_back(pl_ctx *c, const work *w, const pl_tensor *g, pl_tensor *gqkv) {
  pl_tensor *gmixed;
  PL_TRY(pl_tensor_like(c, w->kept[MIXED], &gmixed));
  pl_product(false, false, pl_whole(g), pl_whole(w->in[O_W]), PL_SET, pl_whole(gmixed));
  pl_profile_enter(c, "attention", true);
  const pl_status st =
      pl_attend_back(c, &w->h, w->kept[QKV], w->kept[MIXED], w->kept[LSE], gmixed, gqkv);
  pl_profile_leave(c, (pl_work){0});
  pl_tensor_unref(gmixed);
  pl_rotate(&w->h, true, gqkv);
  return st;
}

static pl_status parts_back(pl_ctx *c, const pl_node *n, work *w, const pl_tensor *gqkv,
                            pl_tensor **gin) {
  if (pl_needs_any(n, Q_W, V_W)) {
    PL_TRY(normed(c, w));
  }
  for (int j = 0; j < 3; j++) {
    const mat g = part(w, gqkv, j);
    PL_TRY(pl_weight_back(c, n, Q_W + j, g, w->norm, gin));
    PL_TRY(pl_row_back(c, n, Q_B + j, g, gin));
  }
  pl_drop(&w->norm);
  return PL_OK;
}

/* The norm and what is before it: gnorm = sum of g W over q, k, v. */
static pl_status norm_back(pl_ctx *c, const pl_node *n, const work *w, pl_tensor **gqkv,
                           pl_tensor *gy, pl_tensor **gin) {
  pl_tensor *gnorm;
  PL_TRY(pl_matrix(c, w->real, w->N, w->C, &gnorm));
  for (int j = 0; j < 3; j++) {
    pl_product(false, false, part(w, *gqkv, j), pl_whole(w->in[Q_W + j]), j == 0 ? PL_SET : PL_ADD,
               pl_whole(gnorm));
  }
  pl_drop(gqkv);
  const pl_status st = pl_input_back(c, n, w->in, w->kept[MEAN], w->kept[RSTD], gnorm, gy, gin);
  pl_tensor_unref(gnorm);
  return st;
}

static pl_status backward_in(pl_ctx *c, const pl_node *n, work *w, pl_tensor **gqkv,
                             pl_tensor *gy, pl_tensor **gin) {
  PL_TRY(open_work(c, n->in, &n->args, w));
  w->act = (pl_dtype)n->args.i[STORAGE];
  if (n->args.i[CHECKPOINT] != 0) {
    PL_TRY(mix(c, w));
  } else {
    for (int j = 0; j < N_KEPT; j++) {
      w->kept[j] = n->saved[j] != NULL ? pl_tensor_ref(n->saved[j]) : NULL;
    }
  }
  PL_TRY(pl_weight_back(c, n, O_W, pl_whole(gy), w->kept[MIXED], gin));
  PL_TRY(pl_row_back(c, n, O_B, pl_whole(gy), gin));
  if (!pl_needs_any(n, X, V_W) && !pl_needs_any(n, Q_B, V_B)) {
    return PL_OK;
  }
  PL_TRY(qkv_new(c, w, gqkv));
  PL_TRY(mix_back(c, w, gy, *gqkv));
  PL_TRY(parts_back(c, n, w, *gqkv, gin));
  return pl_needs_any(n, X, NORM_B) ? norm_back(c, n, w, gqkv, gy, gin) : PL_OK;
}

static pl_status backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  work w = {.N = 0};
  pl_tensor *gqkv = NULL;
  const pl_status st = backward_in(c, n, &w, &gqkv, gout[0], gin);
  pl_tensor_unref(gqkv);
  close_work(&w);
  return st;
}

/* ---- samples --------------------------------------------------------------------- */

typedef struct shape {
  int64_t N, C, H, K, D;
  bool layer, bias;
  int64_t window;
  double theta;
} shape;

static pl_status inputs(pl_ctx *c, pl_dtype d, int seed, bool gaps, const shape *s, pl_call *k) {
  const int64_t Q = s->H * s->D;
  const int64_t KV = s->K * s->D;
  const int64_t C = s->C;
  const struct {
    int64_t rows, cols;
    bool have;
  } t[POS] = {{s->N, C, true},      {C, 0, true},         {C, 0, s->layer}, {Q, C, true},
              {KV, C, true},        {KV, C, true},        {C, Q, true},     {Q, 0, s->bias},
              {KV, 0, s->bias},     {KV, 0, s->bias},     {C, 0, s->bias}};
  k->n_in = N_IN;
  k->args = (pl_args){.i = {s->H, s->K, s->window, s->layer}, .n_i = 6,
                      .f = {1e-5, s->theta}, .n_f = 2};
  for (int j = 0; j < POS; j++) {
    if (t[j].have) {
      const bool vector = t[j].cols == 0;
      PL_TRY(pl_sample(c, d, seed + j, vector ? 0.5 : -1, vector ? 1.5 : 1, gaps && !vector,
                       vector ? 1 : 2, PL_SHAPE(t[j].rows, t[j].cols), &k->in[j]));
    }
  }
  if (s->theta == 0) {
    return PL_OK;
  }
  PL_TRY(pl_tensor_new(c, PL_I32, 1, &s->N, &k->in[POS]));
  for (int64_t n = 0; n < s->N; n++) {
    pl_i32(k->in[POS])[n] = (int32_t)(n * n % 11);
  }
  return PL_OK;
}

static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  switch (which) {
    case 0: /* grouped heads, one sequence of one token, one empty */
      PL_TRY(inputs(c, d, 1, false, &(shape){9, 6, 4, 2, 2, .theta = 100}, k));
      return ints(c, INTS(0, 5, 6, 6, 9), &k->in[SEQ]);
    case 1: /* one token in all */
      PL_TRY(inputs(c, d, 21, false, &(shape){1, 3, 1, 1, 4, .theta = 10}, k));
      return ints(c, INTS(0, 1), &k->in[SEQ]);
    case 2: /* everything has gaps; checkpoint */
      PL_TRY(inputs(c, d, 41, true, &(shape){7, 5, 2, 1, 4, .theta = 1000}, k));
      k->args.i[CHECKPOINT] = 1;
      return ints(c, INTS(0, 4, 7), &k->in[SEQ]);
    case 3: /* LayerNorm, biases, no rotation */
      PL_TRY(inputs(c, d, 61, false, &(shape){7, 6, 2, 2, 3, .layer = true, .bias = true}, k));
      return ints(c, INTS(0, 2, 7), &k->in[SEQ]);
    case 4:
      PL_TRY(inputs(c, d, 81, true, &(shape){5, 35, 2, 1, 2, .layer = true, .bias = true}, k));
      k->args.i[CHECKPOINT] = 1;
      return ints(c, INTS(0, 5), &k->in[SEQ]);
    case 5: /* a prompt with two answers, one sequence alone, a prompt with one answer */
      PL_TRY(inputs(c, d, 61, false, &(shape){12, 6, 4, 2, 2, .theta = 100}, k));
      PL_TRY(ints(c, INTS(-1, 0, 0, -1, -1, 4), &k->in[PARENT]));
      return ints(c, INTS(0, 3, 5, 6, 8, 10, 12), &k->in[SEQ]);
    case 6: /* a window that ends in the prompt */
      PL_TRY(inputs(c, d, 121, false, &(shape){10, 6, 2, 1, 4, .window = 3, .theta = 100}, k));
      PL_TRY(ints(c, INTS(0, 4, 7, 10), &k->in[SEQ]));
      return ints(c, INTS(-1, 0, -1), &k->in[PARENT]);
    default:
      return pl_no_more(c);
  }
}

const pl_op pl_op_attention_block = {
    .name = "attention_block",
    .params = "x: tensor, norm_w: tensor, norm_b: tensor?, q: tensor, k: tensor, v: tensor, "
              "o: tensor, q_b: tensor?, k_b: tensor?, v_b: tensor?, o_b: tensor?, pos: ids, "
              "seq: ids, parent: ids, heads: int, kv_heads: int, window: int, layer_norm: bool, "
              "checkpoint: bool, eps: num, theta: num",
    .ret = "Tensor",
    .doc = "x + o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x))), the first half of a "
           "decoder layer.",
    .flags = PL_OP_HIDDEN,
    .forward = forward,
    .backward = backward,
    .sample = sample,
    .twin = pl_attention_block_twin};
