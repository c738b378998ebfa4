/* The second half of a decoder layer as one row, with a gate or without:
 *
 *   h = norm(x)
 *   y = x + (silu(h W_gate^T + b_gate) * (h W_up^T + b_up)) W_down^T + b_down     or
 *   y = x + gelu(h W_up^T + b_up) W_down^T + b_down
 *
 * Kept for backward: the norm's statistics, gate and up. The norm's output and the
 * activation are computed again; with `checkpoint` everything is. */
#include "autograd/block.h"

enum { X, NORM_W, NORM_B, GATE_W, UP_W, DOWN_W, GATE_B, UP_B, DOWN_B, N_IN };
enum { LAYER_NORM, CHECKPOINT, STORAGE };   /* args.i */
enum { MEAN, RSTD, GATE, UP, N_KEPT };      /* saved */

typedef struct work {
  pl_tensor *in[N_IN]; /* dense; NULL where absent */
  pl_tensor *kept[N_KEPT];
  pl_tensor *norm, *hidden; /* the norm's output, the activation: while they are needed */
  double eps;
  bool layer_norm;
  int64_t N, C, F;
  pl_dtype real, act; /* of numbers, and of how activations are stored */
} work;

static void close_work(work *w) {
  drop(w->in, N_IN);
  drop(w->kept, N_KEPT);
  pl_tensor_unref(w->norm);
  pl_tensor_unref(w->hidden);
}

static pl_status open_work(pl_ctx *c, pl_tensor *const *in, const pl_args *a, work *w) {
  PL_TRY(want_float(c, "x", in[X], 2));
  PL_TRY(want_float(c, "up", in[UP_W], 2));
  const int64_t C = in[X]->shape[1];
  const int64_t F = in[UP_W]->shape[0];
  PL_TRY(pl_want_shape(c, "norm_w", in[NORM_W], C, 0));
  PL_TRY(pl_want_shape(c, "norm_b", in[NORM_B], C, 0));
  PL_TRY(pl_want_shape(c, "gate", in[GATE_W], F, C));
  PL_TRY(pl_want_shape(c, "up", in[UP_W], F, C));
  PL_TRY(pl_want_shape(c, "down", in[DOWN_W], C, F));
  PL_TRY(pl_want_shape(c, "gate_b", in[GATE_B], F, 0));
  PL_TRY(pl_want_shape(c, "up_b", in[UP_B], F, 0));
  PL_TRY(pl_want_shape(c, "down_b", in[DOWN_B], C, 0));
  w->N = in[X]->shape[0];
  w->C = C;
  w->F = F;
  w->eps = a->f[0];
  w->layer_norm = a->i[LAYER_NORM] != 0;
  w->real = compute_dtype(in, N_IN);
  return dense(c, in, N_IN, w->real, w->in);
}

/* ---- forward -------------------------------------------------------------------- */

static pl_status normed(pl_ctx *c, work *w) {
  return pl_norm_new(c, w->in, w->eps, w->layer_norm, w->act, &w->norm, &w->kept[MEAN],
                     &w->kept[RSTD]);
}

static pl_status spread(pl_ctx *c, work *w) {
  PL_TRY(normed(c, w));
  for (int j = 0; j < 2; j++) {
    if (w->in[GATE_W + j] != NULL) {
      PL_TRY(pl_matrix(c, w->act, w->N, w->F, &w->kept[GATE + j]));
      pl_product(false, true, pl_whole(w->norm), pl_whole(w->in[GATE_W + j]), PL_SET,
                 pl_whole(w->kept[GATE + j]));
      pl_bias(w->in[GATE_B + j], pl_whole(w->kept[GATE + j]));
    }
  }
  pl_drop(&w->norm);
  return PL_OK;
}

static pl_status forward_in(pl_ctx *c, pl_call *k, work *w) {
  PL_TRY(open_work(c, k->in, &k->args, w));
  w->act = pl_activation_dtype(c, w->real);
  k->args.i[STORAGE] = w->act;
  PL_TRY(spread(c, w));
  PL_TRY(pl_matrix(c, w->act, w->N, w->F, &w->hidden));
  pl_activate(w->kept[GATE], w->kept[UP], w->hidden);
  if (k->needs_grad && k->args.i[CHECKPOINT] == 0) {
    for (int j = 0; j < N_KEPT; j++) {
      k->saved[j] = w->kept[j] != NULL ? pl_tensor_ref(w->kept[j]) : NULL;
    }
    k->drop_in = 1U << GATE_B | 1U << UP_B | 1U << DOWN_B;
  } else {
    pl_drop(&w->kept[GATE]);
    pl_drop(&w->kept[UP]);
  }
  k->n_out = 1;
  PL_TRY(pl_matrix(c, w->real, w->N, w->C, &k->out[0]));
  pl_residual(w->in[X], w->in[DOWN_B], k->out[0]);
  pl_product(false, true, pl_whole(w->hidden), pl_whole(w->in[DOWN_W]), PL_ADD,
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

/* g[0], g[1]: the gradients of gate (where there is one) and up from gy = that of y. The
 * activation comes along. */
static pl_status spread_back(pl_ctx *c, work *w, const pl_tensor *gy, pl_tensor **g) {
  pl_tensor *ghidden;
  PL_TRY(pl_matrix(c, w->act, w->N, w->F, &ghidden));
  pl_product(false, false, pl_whole(gy), pl_whole(w->in[DOWN_W]), PL_SET, pl_whole(ghidden));
  pl_status st = pl_matrix(c, w->act, w->N, w->F, &w->hidden);
  for (int j = 0; j < 2 && st == PL_OK; j++) {
    if (w->in[GATE_W + j] != NULL) {
      st = pl_matrix(c, w->act, w->N, w->F, &g[j]);
    }
  }
  if (st == PL_OK) {
    pl_activate_back(w->kept[GATE], w->kept[UP], ghidden, g[0], g[1], w->hidden);
  }
  pl_tensor_unref(ghidden);
  return st;
}

static pl_status parts_back(pl_ctx *c, const pl_node *n, work *w, pl_tensor *const *g,
                            pl_tensor **gin) {
  if (pl_needs_any(n, GATE_W, UP_W)) {
    PL_TRY(normed(c, w));
  }
  for (int j = 0; j < 2; j++) {
    if (g[j] != NULL) {
      PL_TRY(pl_weight_back(c, n, GATE_W + j, pl_whole(g[j]), w->norm, gin));
      PL_TRY(pl_row_back(c, n, GATE_B + j, pl_whole(g[j]), gin));
    }
  }
  pl_drop(&w->norm);
  return PL_OK;
}

/* The norm and what is before it: gnorm = sum of g W over gate and up. */
static pl_status norm_back(pl_ctx *c, const pl_node *n, const work *w, pl_tensor **g,
                           pl_tensor *gy, pl_tensor **gin) {
  pl_tensor *gnorm;
  PL_TRY(pl_matrix(c, w->real, w->N, w->C, &gnorm));
  pl_product(false, false, pl_whole(g[1]), pl_whole(w->in[UP_W]), PL_SET, pl_whole(gnorm));
  if (g[0] != NULL) {
    pl_product(false, false, pl_whole(g[0]), pl_whole(w->in[GATE_W]), PL_ADD, pl_whole(gnorm));
  }
  pl_drop(&g[0]);
  pl_drop(&g[1]);
  const pl_status st = pl_input_back(c, n, w->in, w->kept[MEAN], w->kept[RSTD], gnorm, gy, gin);
  pl_tensor_unref(gnorm);
  return st;
}

static pl_status backward_in(pl_ctx *c, const pl_node *n, work *w, pl_tensor **g, pl_tensor *gy,
                             pl_tensor **gin) {
  PL_TRY(open_work(c, n->in, &n->args, w));
  w->act = (pl_dtype)n->args.i[STORAGE];
  if (n->args.i[CHECKPOINT] != 0) {
    PL_TRY(spread(c, w));
  } else {
    for (int j = 0; j < N_KEPT; j++) {
      w->kept[j] = n->saved[j] != NULL ? pl_tensor_ref(n->saved[j]) : NULL;
    }
  }
  PL_TRY(pl_row_back(c, n, DOWN_B, pl_whole(gy), gin));
  PL_TRY(spread_back(c, w, gy, g));
  PL_TRY(pl_weight_back(c, n, DOWN_W, pl_whole(gy), w->hidden, gin));
  pl_drop(&w->hidden);
  PL_TRY(parts_back(c, n, w, g, gin));
  return pl_needs_any(n, X, NORM_B) ? norm_back(c, n, w, g, gy, gin) : PL_OK;
}

static pl_status backward(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin) {
  work w = {.N = 0};
  pl_tensor *g[2] = {NULL, NULL};
  const pl_status st = backward_in(c, n, &w, g, gout[0], gin);
  drop(g, 2);
  close_work(&w);
  return st;
}

/* ---- samples --------------------------------------------------------------------- */

static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const struct {
    int64_t N, C, F;
    bool gate, layer, bias, gaps, checkpoint;
  } rows[] = {{5, 4, 7, .gate = true},
              {1, 3, 2, .gate = true},
              {6, 5, 3, .gate = true, .gaps = true, .checkpoint = true},
              {7, 9, 5, .layer = true, .bias = true},
              {2, 35, 3, .layer = true, .bias = true, .gaps = true, .checkpoint = true},
              {3, 4, 5, .gate = true, .layer = true},
              {4, 6, 5, .gate = true, .bias = true},
              {0, 4, 5, .gate = true}};
  if (which >= (int)(sizeof rows / sizeof *rows)) {
    return pl_no_more(c);
  }
  const int64_t N = rows[which].N;
  const int64_t C = rows[which].C;
  const int64_t F = rows[which].F;
  const bool layer = rows[which].layer;
  const bool bias = rows[which].bias;
  const struct {
    int64_t rows, cols;
    bool have;
  } t[N_IN] = {{N, C, true}, {C, 0, true}, {C, 0, layer}, {F, C, rows[which].gate},
               {F, C, true}, {C, F, true}, {F, 0, bias && rows[which].gate},
               {F, 0, bias}, {C, 0, bias}};
  k->n_in = N_IN;
  k->args = (pl_args){.i = {layer, rows[which].checkpoint}, .n_i = 3, .f = {1e-5}, .n_f = 1};
  for (int j = 0; j < N_IN; j++) {
    if (t[j].have) {
      const bool vector = t[j].cols == 0;
      PL_TRY(pl_sample(c, d, 31 * which + j, vector ? 0.5 : -1, vector ? 1.5 : 1,
                       rows[which].gaps && !vector, vector ? 1 : 2,
                       PL_SHAPE(t[j].rows, t[j].cols), &k->in[j]));
    }
  }
  return PL_OK;
}

const pl_op pl_op_ffn_block = {
    .name = "ffn_block",
    .params = "x: tensor, norm_w: tensor, norm_b: tensor?, gate: tensor?, up: tensor, "
              "down: tensor, gate_b: tensor?, up_b: tensor?, down_b: tensor?, layer_norm: bool, "
              "checkpoint: bool, eps: num",
    .ret = "Tensor",
    .doc = "x + down(silu(gate(norm x)) * up(norm x)), or without a gate x + down(gelu(up(norm "
           "x))) in the tanh form: the second half of a decoder layer.",
    .flags = PL_OP_HIDDEN,
    .forward = forward,
    .backward = backward,
    .sample = sample,
    .twin = pl_ffn_block_twin};
