/* The forward pass on tape ops: see decoder.h. */
#include "lm/decoder.h"

#include <string.h>

#include "autograd/op.h"

/* ---- forward ---- */

static pl_status ids_check(pl_ctx *c, const char *what, const pl_tensor *t) {
  if (t->dtype != PL_I32 || t->ndim != 1 || !pl_contiguous(t)) {
    char got[128];
    return pl_fail(c, PL_EINVAL, "decoder: %s is %s %s; wanted a contiguous i32 vector", what,
                   pl_dtypes[t->dtype].name, pl_shape_str(t, got));
  }
  return PL_OK;
}

static pl_status parent_check(pl_ctx *c, const pl_tensor *parent, int64_t S) {
  PL_TRY(ids_check(c, "parent", parent));
  if (parent->shape[0] != S) {
    return pl_fail(c, PL_EINVAL, "decoder: %lld parents for %lld sequences",
                   (long long)parent->shape[0], (long long)S);
  }
  int32_t family = -1;
  for (int64_t i = 0; i < S; i++) {
    const int32_t p = pl_i32(parent)[i];
    family = p == -1 ? (int32_t)i : family;
    if (p != -1 && (p != family || p < 0)) {
      return pl_fail(c, PL_EINVAL, "decoder: sequence %lld goes on after sequence %d; wanted the "
                     "nearest one before it that goes on after none", (long long)i + 1, p + 1);
    }
  }
  return PL_OK;
}

static pl_status batch_check(pl_ctx *c, const pl_decoder *d, const pl_tensor *ids,
                             const pl_tensor *pos, const pl_tensor *seq,
                             const pl_tensor *parent) {
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
  if (parent != NULL) {
    PL_TRY(parent_check(c, parent, S));
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

/* *x <- y, which is made from it */
static void advance(pl_tensor **x, pl_tensor *y) {
  pl_tensor_unref(*x);
  *x = y;
}

static pl_status layer(pl_ctx *c, const pl_decoder *d, const pl_layer *y, pl_tensor *pos,
                       pl_tensor *seq, pl_tensor *parent, pl_tensor **x) {
  const pl_lm_config *g = &d->cfg;
  const bool layer_norm = g->norm == PL_NORM_LAYER;
  pl_tensor *mix[] = {*x,     y->norm1, y->norm1_b, y->q,   y->k, y->v, y->o,
                      y->q_b, y->k_b,   y->v_b,     y->o_b, pos,  seq,  parent};
  const pl_args mix_args = {
      .i = {g->heads, g->kv_heads, g->window, layer_norm, d->checkpoint}, .n_i = 6,
      .f = {g->eps, g->learned_pos ? 0 : g->theta}, .n_f = 2};
  pl_tensor *out;
  pl_status st = step(c, &pl_op_attention_block, mix, 14, &mix_args, &out);
  advance(x, out);
  if (st == PL_OK) {
    pl_tensor *ffn[] = {*x,      y->norm2,  y->norm2_b, y->gate,  y->up,
                        y->down, y->gate_b, y->up_b,    y->down_b};
    const pl_args ffn_args = {.i = {layer_norm, d->checkpoint}, .n_i = 3,
                              .f = {g->eps}, .n_f = 1};
    st = step(c, &pl_op_ffn_block, ffn, 9, &ffn_args, &out);
    advance(x, out);
  }
  return st;
}

/* Tokens and, where they are learned, positions as vectors. */
static pl_status embed(pl_ctx *c, const pl_decoder *d, pl_tensor *ids, pl_tensor *pos,
                       pl_tensor **x) {
  const pl_args none = {.n_i = 0};
  pl_tensor *at = NULL;
  pl_tensor *sum = NULL;
  PL_TRY(step(c, &pl_op_embedding, (pl_tensor *[]){d->embed, ids}, 2, &none, x));
  if (d->pos_embed == NULL) {
    return PL_OK;
  }
  pl_status st = step(c, &pl_op_embedding, (pl_tensor *[]){d->pos_embed, pos}, 2, &none, &at);
  if (st == PL_OK) {
    st = step(c, &pl_op_add, (pl_tensor *[]){*x, at}, 2, &none, &sum);
  }
  pl_tensor_unref(at);
  advance(x, sum);
  return st;
}

pl_status pl_decoder_hidden(pl_ctx *c, const pl_decoder *d, pl_tensor *ids, pl_tensor *pos,
                            pl_tensor *seq, pl_tensor *parent, pl_tensor **out) {
  const pl_lm_config *g = &d->cfg;
  PL_TRY(batch_check(c, d, ids, pos, seq, parent));
  const pl_args eps = {.f = {g->eps}, .n_f = 1};
  pl_tensor *x = NULL;
  pl_status st = embed(c, d, ids, pos, &x);
  for (int64_t l = 0; l < g->n_layers && st == PL_OK; l++) {
    st = layer(c, d, &d->layers[l], pos, seq, parent, &x);
    if (st == PL_OK) {
      st = pl_check_interrupt(c);
    }
  }
  if (st == PL_OK) {
    pl_tensor *in[] = {x, d->norm, d->norm_b};
    st = g->norm == PL_NORM_LAYER ? step(c, &pl_op_layer_norm, in, 3, &eps, out)
                                  : step(c, &pl_op_rms_norm, in, 2, &eps, out);
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
  PL_TRY(pl_decoder_hidden(c, d, b->ids, b->pos, b->seq, b->parent, &h));
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
  if (st == PL_OK && b->parent != NULL) {
    st = slice_i32(c, b->parent, s0, s1 - s0, 0, &p.parent);
    for (int64_t i = 0; st == PL_OK && i < s1 - s0; i++) {
      pl_i32(p.parent)[i] -= pl_i32(p.parent)[i] >= 0 ? (int32_t)s0 : 0;
    }
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
  pl_tensor_unref(p.parent);
  pl_tensor_unref(p.rows);
  pl_tensor_unref(p.targets);
  return st;
}

/* The sequence after s and all that go on after s. */
static int64_t family_end(const pl_lm_batch *b, int64_t s) {
  const int64_t S = b->seq->shape[0] - 1;
  s++;
  while (s < S && b->parent != NULL && pl_i32(b->parent)[s] >= 0) {
    s++;
  }
  return s;
}

pl_status pl_decoder_score(pl_ctx *c, const pl_decoder *d, const pl_lm_batch *b, int64_t budget,
                           pl_tensor **out) {
  const int64_t N = b->ids->shape[0];
  if (c->grad_enabled || N <= budget) {
    return forward_all(c, d, b, out);
  }
  PL_TRY(batch_check(c, d, b->ids, b->pos, b->seq, b->parent));
  PL_TRY(ids_check(c, "rows", b->rows));
  const int64_t S = b->seq->shape[0] - 1;
  const int64_t M = b->rows->shape[0];
  const int32_t *seq = pl_i32(b->seq);
  const int32_t *rows = pl_i32(b->rows);
  pl_tensor *y = NULL;
  PL_TRY(pl_tensor_new(c, d->embed->dtype, 1, &M, &y));
  int64_t m0 = 0;
  for (int64_t s0 = 0; s0 < S;) {
    int64_t s1 = family_end(b, s0);
    while (s1 < S && seq[family_end(b, s1)] - seq[s0] <= budget) {
      s1 = family_end(b, s1);
    }
    int64_t m1 = m0;
    while (m1 < M && rows[m1] < seq[s1]) { /* rows ascend from family to family */
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
