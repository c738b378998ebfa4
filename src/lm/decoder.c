/* The Llama forward pass on tape ops: see decoder.h. */
#include "lm/decoder.h"

#include <stdio.h>
#include <string.h>

#include "autograd/op.h"
#include "lm/pack.h"

pl_status pl_lm_config_check(pl_ctx *c, const pl_lm_config *g) {
  const struct { const char *name; int64_t v; } sizes[] = {
      {"the number of layers", g->n_layers}, {"the hidden size", g->hidden},
      {"the number of heads", g->heads}, {"the number of key-value heads", g->kv_heads},
      {"the head size", g->head_dim}, {"the feed-forward size", g->ffn},
      {"the vocabulary size", g->vocab}, {"the context length", g->context}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    if (sizes[i].v < 1 || sizes[i].v > (int64_t)1 << 28) {
      return pl_fail(c, PL_EINVAL, "decoder: %s is %lld; wanted 1 or more", sizes[i].name,
                     (long long)sizes[i].v);
    }
  }
  if (g->heads % g->kv_heads != 0) {
    return pl_fail(c, PL_EINVAL, "decoder: %lld heads cannot share %lld key-value heads evenly",
                   (long long)g->heads, (long long)g->kv_heads);
  }
  if (g->head_dim % 2 != 0) {
    return pl_fail(c, PL_EINVAL, "decoder: head size %lld is odd; rotary embedding wants pairs",
                   (long long)g->head_dim);
  }
  if (!(g->eps >= 0) || !(g->theta > 0)) {
    return pl_fail(c, PL_EINVAL, "decoder: eps %g and rope theta %g; wanted >= 0 and > 0", g->eps,
                   g->theta);
  }
  return PL_OK;
}

int64_t pl_decoder_n_weights(const pl_lm_config *g) {
  return 2 + PL_LAYER_WEIGHTS * g->n_layers + (g->tied ? 0 : 1);
}

void pl_decoder_weight_info(const pl_lm_config *g, int64_t i, char name[48], int *ndim,
                            int64_t shape[2]) {
  const int64_t C = g->hidden;
  const int64_t Q = g->heads * g->head_dim;
  const int64_t K = g->kv_heads * g->head_dim;
  const struct { const char *name; int64_t s0, s1; } part[PL_LAYER_WEIGHTS] = {
      {"norm1", C, 0}, {"q", Q, C}, {"k", K, C}, {"v", K, C}, {"o", C, Q},
      {"norm2", C, 0}, {"gate", g->ffn, C}, {"up", g->ffn, C}, {"down", C, g->ffn}};
  const int64_t in_layers = PL_LAYER_WEIGHTS * g->n_layers;
  if (i >= 1 && i <= in_layers) {
    const int64_t layer = (i - 1) / PL_LAYER_WEIGHTS;
    const int p = (int)((i - 1) % PL_LAYER_WEIGHTS);
    (void)snprintf(name, 48, "layers.%lld.%s", (long long)layer, part[p].name);
    shape[0] = part[p].s0;
    shape[1] = part[p].s1;
    *ndim = part[p].s1 == 0 ? 1 : 2;
    return;
  }
  const bool norm = i == in_layers + 1;
  (void)snprintf(name, 48, "%s", norm ? "norm" : i == 0 ? "embed" : "head");
  shape[0] = norm ? C : g->vocab;
  shape[1] = norm ? 0 : C;
  *ndim = norm ? 1 : 2;
}

static pl_status weight_check(pl_ctx *c, const pl_lm_config *g, int64_t i, const pl_tensor *w,
                              pl_dtype want) {
  char name[48];
  char got[128];
  int nd;
  int64_t s[2];
  pl_decoder_weight_info(g, i, name, &nd, s);
  const bool same = w->ndim == nd && w->shape[0] == s[0] && (nd == 1 || w->shape[1] == s[1]);
  if (!same) {
    return pl_fail(c, PL_EINVAL, "decoder: weight %s has shape %s; wanted [%lld%s%.0lld]", name,
                   pl_shape_str(w, got), (long long)s[0], nd == 2 ? ", " : "",
                   (long long)(nd == 2 ? s[1] : 0));
  }
  if (w->dtype != want || (want != PL_F32 && want != PL_F64)) {
    return pl_fail(c, PL_EINVAL, "decoder: weight %s is %s; wanted f32 for all (or f64 for all)",
                   name, pl_dtypes[w->dtype].name);
  }
  if (!pl_contiguous(w)) {
    return pl_fail(c, PL_EINVAL, "decoder: weight %s is a strided view; pass t:contiguous()", name);
  }
  return PL_OK;
}

pl_status pl_decoder_new(pl_ctx *c, const pl_lm_config *cfg, pl_tensor *const *w, int64_t n,
                         pl_decoder **out) {
  PL_TRY(pl_lm_config_check(c, cfg));
  const int64_t want = pl_decoder_n_weights(cfg);
  if (n != want) {
    return pl_fail(c, PL_EINVAL, "decoder: got %lld weights; %lld layers want %lld", (long long)n,
                   (long long)cfg->n_layers, (long long)want);
  }
  for (int64_t i = 0; i < n; i++) {
    PL_TRY(weight_check(c, cfg, i, w[i], w[0]->dtype));
  }
  pl_decoder *d = pl_alloc_zero(c, sizeof *d);
  if (d == NULL) {
    return PL_ENOMEM;
  }
  d->layers = pl_alloc_zero(c, sizeof *d->layers * (size_t)cfg->n_layers);
  if (d->layers == NULL) {
    pl_free(c, d);
    return PL_ENOMEM;
  }
  d->cfg = *cfg;
  int64_t i = 0;
  d->embed = pl_tensor_ref(w[i++]);
  for (int64_t l = 0; l < cfg->n_layers; l++) {
    pl_layer *y = &d->layers[l];
    pl_tensor **part[PL_LAYER_WEIGHTS] = {&y->norm1, &y->q,    &y->k,  &y->v,   &y->o,
                                          &y->norm2, &y->gate, &y->up, &y->down};
    for (int p = 0; p < PL_LAYER_WEIGHTS; p++) {
      *part[p] = pl_tensor_ref(w[i++]);
    }
  }
  d->norm = pl_tensor_ref(w[i++]);
  d->head = pl_tensor_ref(cfg->tied ? d->embed : w[i]);
  *out = d;
  return PL_OK;
}

void pl_decoder_free(pl_ctx *c, pl_decoder *d) {
  if (d == NULL) {
    return;
  }
  for (int64_t l = 0; l < d->cfg.n_layers; l++) {
    pl_layer *y = &d->layers[l];
    pl_tensor *part[PL_LAYER_WEIGHTS] = {y->norm1, y->q,    y->k,  y->v,   y->o,
                                         y->norm2, y->gate, y->up, y->down};
    for (int p = 0; p < PL_LAYER_WEIGHTS; p++) {
      pl_tensor_unref(part[p]);
    }
  }
  pl_pack_drop(c, d->pack);
  pl_tensor_unref(d->embed);
  pl_tensor_unref(d->norm);
  pl_tensor_unref(d->head);
  pl_free(c, d->layers);
  pl_free(c, d);
}

/* ---- forward ---- */

static pl_status ids_check(pl_ctx *c, const char *what, const pl_tensor *t) {
  if (t->dtype != PL_I32 || t->ndim != 1 || !pl_contiguous(t)) {
    char got[128];
    return pl_fail(c, PL_EINVAL, "decoder: %s is %s %s; wanted a contiguous i32 vector", what,
                   pl_dtypes[t->dtype].name, pl_shape_str(t, got));
  }
  return PL_OK;
}

static pl_status batch_check(pl_ctx *c, const pl_decoder *d, const pl_tensor *ids,
                             const pl_tensor *pos, const pl_tensor *seq) {
  PL_TRY(ids_check(c, "ids", ids));
  PL_TRY(ids_check(c, "pos", pos));
  PL_TRY(ids_check(c, "seq", seq));
  const int64_t N = ids->shape[0];
  const int64_t S = seq->shape[0] - 1;
  const int32_t *s = pl_i32(seq);
  if (pos->shape[0] != N || S < 1 || s[0] != 0 || s[S] != N) {
    return pl_fail(c, PL_EINVAL, "decoder: %lld ids, %lld positions, sequences ending at %d; they "
                   "must agree and begin at 0", (long long)N, (long long)pos->shape[0],
                   S < 1 ? -1 : s[S]);
  }
  for (int64_t i = 0; i < S; i++) {
    if (s[i + 1] <= s[i]) {
      return pl_fail(c, PL_EINVAL, "decoder: sequence %lld is empty", (long long)i + 1);
    }
  }
  const int32_t *id = pl_i32(ids);
  for (int64_t i = 0; i < N; i++) {
    if (id[i] < 0 || id[i] >= d->cfg.vocab) {
      return pl_fail(c, PL_EINVAL, "decoder: token id %d; the vocabulary has ids 0..%lld", id[i],
                     (long long)d->cfg.vocab - 1);
    }
    if (pl_i32(pos)[i] < 0 || pl_i32(pos)[i] >= d->cfg.context) {
      return pl_fail(c, PL_EINVAL, "decoder: position %d; the context is %lld tokens long",
                     pl_i32(pos)[i], (long long)d->cfg.context);
    }
  }
  return PL_OK;
}

/* Applies a row; *out is NULL on failure, so that the callers can drop() it always. */
static pl_status step(pl_ctx *c, const pl_op *op, pl_tensor **in, int n, const pl_args *a,
                      pl_tensor **out) {
  pl_tensor *y = NULL;
  const pl_status st = pl_apply(c, op, in, n, a, &y);
  *out = st == PL_OK ? y : NULL;
  return st;
}

static void drop(pl_tensor **t) {
  pl_tensor_unref(*t);
  *t = NULL;
}

/* *x <- *x + W_o attention(rope(W_q h), rope(W_k h), W_v h), h = norm1(*x) */
static pl_status attention_part(pl_ctx *c, const pl_lm_config *g, const pl_layer *y,
                                pl_tensor *pos, pl_tensor *seq, pl_tensor **x) {
  pl_tensor *t[8] = {NULL};
  enum { NORM, Q, K, V, QR, KR, ATT, OUT };
  const pl_args eps = {.f = {g->eps}, .n_f = 1};
  const pl_args none = {.n_i = 0};
  const pl_args rq = {.i = {g->heads}, .n_i = 1, .f = {g->theta}, .n_f = 1};
  const pl_args rk = {.i = {g->kv_heads}, .n_i = 1, .f = {g->theta}, .n_f = 1};
  const pl_args hk = {.i = {g->heads, g->kv_heads}, .n_i = 2};
  pl_tensor *sum = NULL;
  pl_status st = step(c, &pl_op_rms_norm, (pl_tensor *[]){*x, y->norm1}, 2, &eps, &t[NORM]);
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[NORM], y->q}, 2, &none, &t[Q]);
  }
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[NORM], y->k}, 2, &none, &t[K]);
  }
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[NORM], y->v}, 2, &none, &t[V]);
  }
  drop(&t[NORM]);
  if (st == PL_OK) {
    st = step(c, &pl_op_rope, (pl_tensor *[]){t[Q], pos}, 2, &rq, &t[QR]);
  }
  drop(&t[Q]);
  if (st == PL_OK) {
    st = step(c, &pl_op_rope, (pl_tensor *[]){t[K], pos}, 2, &rk, &t[KR]);
  }
  drop(&t[K]);
  if (st == PL_OK) {
    pl_tensor *in[] = {t[QR], t[KR], t[V], seq};
    st = step(c, &pl_op_attention, in, 4, &hk, &t[ATT]);
  }
  drop(&t[QR]);
  drop(&t[KR]);
  drop(&t[V]);
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[ATT], y->o}, 2, &none, &t[OUT]);
  }
  drop(&t[ATT]);
  if (st == PL_OK) {
    st = step(c, &pl_op_add, (pl_tensor *[]){*x, t[OUT]}, 2, &none, &sum);
  }
  drop(&t[OUT]);
  drop(x);
  *x = sum;
  return st;
}

/* *x <- *x + W_down (silu(W_gate h) * (W_up h)), h = norm2(*x) */
static pl_status ffn_part(pl_ctx *c, const pl_lm_config *g, const pl_layer *y, pl_tensor **x) {
  pl_tensor *t[5] = {NULL};
  enum { NORM, GATE, UP, MUL, OUT };
  const pl_args eps = {.f = {g->eps}, .n_f = 1};
  const pl_args none = {.n_i = 0};
  pl_tensor *sum = NULL;
  pl_status st = step(c, &pl_op_rms_norm, (pl_tensor *[]){*x, y->norm2}, 2, &eps, &t[NORM]);
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[NORM], y->gate}, 2, &none, &t[GATE]);
  }
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[NORM], y->up}, 2, &none, &t[UP]);
  }
  drop(&t[NORM]);
  if (st == PL_OK) {
    st = step(c, &pl_op_silu_mul, (pl_tensor *[]){t[GATE], t[UP]}, 2, &none, &t[MUL]);
  }
  drop(&t[GATE]);
  drop(&t[UP]);
  if (st == PL_OK) {
    st = step(c, &pl_op_linear, (pl_tensor *[]){t[MUL], y->down}, 2, &none, &t[OUT]);
  }
  drop(&t[MUL]);
  if (st == PL_OK) {
    st = step(c, &pl_op_add, (pl_tensor *[]){*x, t[OUT]}, 2, &none, &sum);
  }
  drop(&t[OUT]);
  drop(x);
  *x = sum;
  return st;
}

pl_status pl_decoder_hidden(pl_ctx *c, const pl_decoder *d, pl_tensor *ids, pl_tensor *pos,
                            pl_tensor *seq, pl_tensor **out) {
  const pl_lm_config *g = &d->cfg;
  PL_TRY(batch_check(c, d, ids, pos, seq));
  const pl_args none = {.n_i = 0};
  const pl_args eps = {.f = {g->eps}, .n_f = 1};
  pl_tensor *x = NULL;
  PL_TRY(step(c, &pl_op_embedding, (pl_tensor *[]){d->embed, ids}, 2, &none, &x));
  pl_status st = PL_OK;
  for (int64_t l = 0; l < g->n_layers && st == PL_OK; l++) {
    st = attention_part(c, g, &d->layers[l], pos, seq, &x);
    if (st == PL_OK) {
      st = ffn_part(c, g, &d->layers[l], &x);
    }
    if (st == PL_OK) {
      st = pl_check_interrupt(c);
    }
  }
  if (st == PL_OK) {
    st = step(c, &pl_op_rms_norm, (pl_tensor *[]){x, d->norm}, 2, &eps, out);
  }
  pl_tensor_unref(x);
  return st;
}

pl_status pl_decoder_logprob(pl_ctx *c, const pl_decoder *d, pl_tensor *h, pl_tensor *rows,
                             pl_tensor *targets, pl_tensor **out) {
  const pl_args none = {.n_i = 0};
  PL_TRY(ids_check(c, "rows", rows));
  PL_TRY(ids_check(c, "targets", targets));
  const int64_t M = rows->shape[0];
  for (int64_t i = 0; i < M; i++) {
    const int32_t r = pl_i32(rows)[i];
    const int32_t t = i < targets->shape[0] ? pl_i32(targets)[i] : -1;
    if (r < 0 || r >= h->shape[0] || t < 0 || t >= d->cfg.vocab) {
      return pl_fail(c, PL_EINVAL, "decoder: wanted id %d at row %d; the vocabulary has ids "
                     "0..%lld and there are %lld rows", t, r, (long long)d->cfg.vocab - 1,
                     (long long)h->shape[0]);
    }
  }
  return step(c, &pl_op_token_logprob, (pl_tensor *[]){h, d->head, rows, targets}, 4, &none, out);
}

/* ---- scoring a batch ---- */

static pl_status forward_all(pl_ctx *c, const pl_decoder *d, const pl_lm_batch *b,
                             pl_tensor **out) {
  pl_tensor *h = NULL;
  PL_TRY(pl_decoder_hidden(c, d, b->ids, b->pos, b->seq, &h));
  const pl_status st = pl_decoder_logprob(c, d, h, b->rows, b->targets, out);
  pl_tensor_unref(h);
  return st;
}

static pl_status slice_i32(pl_ctx *c, const pl_tensor *t, int64_t from, int64_t n, int32_t minus,
                           pl_tensor **out) {
  PL_TRY(pl_tensor_new(c, PL_I32, 1, &n, out));
  const int32_t *src = pl_i32(t) + from;
  int32_t *dst = pl_i32(*out);
  for (int64_t i = 0; i < n; i++) {
    dst[i] = src[i] - minus;
  }
  return PL_OK;
}

/* Sequences s0..s1-1 of b, whose targets are m0..m1-1. */
static pl_status score_piece(pl_ctx *c, const pl_decoder *d, const pl_lm_batch *b, int64_t s0,
                             int64_t s1, int64_t m0, int64_t m1, pl_tensor *out) {
  const int32_t n0 = pl_i32(b->seq)[s0];
  const int64_t n = pl_i32(b->seq)[s1] - n0;
  pl_lm_batch p = {NULL};
  pl_tensor *lp = NULL;
  pl_status st = slice_i32(c, b->ids, n0, n, 0, &p.ids);
  if (st == PL_OK) {
    st = slice_i32(c, b->pos, n0, n, 0, &p.pos);
  }
  if (st == PL_OK) {
    st = slice_i32(c, b->seq, s0, s1 - s0 + 1, n0, &p.seq);
  }
  if (st == PL_OK) {
    st = slice_i32(c, b->rows, m0, m1 - m0, n0, &p.rows);
  }
  if (st == PL_OK) {
    st = slice_i32(c, b->targets, m0, m1 - m0, 0, &p.targets);
  }
  if (st == PL_OK && m1 > m0) {
    st = forward_all(c, d, &p, &lp);
  }
  if (st == PL_OK && m1 > m0) {
    const size_t size = pl_dtypes[lp->dtype].size;
    memcpy((char *)pl_data(out) + (size_t)m0 * size, pl_data(lp), (size_t)(m1 - m0) * size);
  }
  pl_tensor_unref(lp);
  pl_tensor_unref(p.ids);
  pl_tensor_unref(p.pos);
  pl_tensor_unref(p.seq);
  pl_tensor_unref(p.rows);
  pl_tensor_unref(p.targets);
  return st;
}

pl_status pl_decoder_score(pl_ctx *c, const pl_decoder *d, const pl_lm_batch *b, int64_t budget,
                           pl_tensor **out) {
  const int64_t N = b->ids->shape[0];
  if (c->grad_enabled || N <= budget) {
    return forward_all(c, d, b, out);
  }
  PL_TRY(batch_check(c, d, b->ids, b->pos, b->seq));
  PL_TRY(ids_check(c, "rows", b->rows));
  const int64_t S = b->seq->shape[0] - 1;
  const int64_t M = b->rows->shape[0];
  const int32_t *seq = pl_i32(b->seq);
  const int32_t *rows = pl_i32(b->rows);
  pl_tensor *y = NULL;
  PL_TRY(pl_tensor_new(c, d->embed->dtype, 1, &M, &y));
  int64_t m0 = 0;
  for (int64_t s0 = 0; s0 < S;) {
    int64_t s1 = s0 + 1;
    while (s1 < S && seq[s1 + 1] - seq[s0] <= budget) {
      s1++;
    }
    int64_t m1 = m0;
    while (m1 < M && rows[m1] < seq[s1]) { /* rows ascend: Lua builds them sequence by sequence */
      m1++;
    }
    const pl_status st = score_piece(c, d, b, s0, s1, m0, m1, y);
    if (st != PL_OK) {
      pl_tensor_unref(y);
      return st;
    }
    m0 = m1;
    s0 = s1;
  }
  *out = y;
  return PL_OK;
}
