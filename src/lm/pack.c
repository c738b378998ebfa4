/* Packed weights of a decoder: see pack.h. */
#include "lm/pack.h"

static int64_t version(const pl_tensor *t) {
  return t == NULL ? 0 : t->storage->version;
}

static int64_t version_of(const pl_decoder *d) {
  int64_t sum = version(d->head);
  for (int64_t l = 0; l < d->cfg.n_layers; l++) {
    const pl_layer *y = &d->layers[l];
    const pl_tensor *part[] = {y->q,    y->k,  y->v,    y->o,      y->q_b,  y->k_b,   y->v_b,
                               y->o_b,  y->gate, y->up, y->down, y->gate_b, y->up_b, y->down_b};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
      sum += version(part[i]);
    }
  }
  return sum;
}

void pl_pack_drop(pl_ctx *c, pl_pack *p) {
  if (p != NULL && --p->refs == 0) {
    pl_free(c, p->memory);
    pl_free(c, p->layers);
    pl_free(c, p);
  }
}

void pl_pack_release(pl_ctx *c, pl_decoder *d) {
  if (d->pack != NULL && d->pack->refs == 1) {
    pl_pack_drop(c, d->pack);
    d->pack = NULL;
  }
}

static int64_t whole_panels(int64_t n) {
  return (n + PL_PACKED_COLS - 1) / PL_PACKED_COLS * PL_PACKED_COLS;
}

/* Lays one matrix at *used; without memory only counts. */
static void lay(pl_pack *p, size_t *used, int64_t N, int64_t K, int64_t piece, bool bias,
                pl_packed *out) {
  const pl_operand in = {p->kind, K, piece};
  if (p->memory != NULL) {
    pl_packed_init(out, &in, N, bias, p->memory + *used);
  }
  *used += (pl_packed_bytes(&in, N, bias) + 63) / 64 * 64;
}

/* Lays all matrices; returns the bytes they take. */
static size_t lay_all(pl_pack *p, const pl_lm_config *f) {
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  const bool gated = f->act == PL_ACT_SILU_GATE;
  const int64_t piece = pl_packed_piece(f->hidden);
  size_t used = 0;
  for (int64_t l = 0; l < f->n_layers; l++) {
    pl_pack_layer *y = &p->layers[l];
    lay(p, &used, Q + 2 * K, f->hidden, piece, f->attention_bias, &y->qkv);
    lay(p, &used, f->hidden, Q, f->head_dim, f->attention_bias, &y->o);
    lay(p, &used, gated ? 2 * whole_panels(f->ffn) : f->ffn, f->hidden, piece, f->mlp_bias, &y->up);
    lay(p, &used, f->hidden, f->ffn, pl_packed_piece(f->ffn), f->mlp_bias, &y->down);
  }
  lay(p, &used, f->vocab, f->hidden, piece, false, &p->head);
  return used;
}

static void fill(pl_packed *to, int64_t n0, int64_t n, const pl_tensor *w, const pl_tensor *bias) {
  pl_packed_fill(to, n0, n, pl_f32(w), bias == NULL ? NULL : pl_f32(bias));
}

static void fill_gated(const pl_lm_config *f, const pl_layer *from, pl_packed *to) {
  for (int64_t i = 0; i < f->ffn; i += PL_PACKED_COLS) {
    const int64_t n = f->ffn - i < PL_PACKED_COLS ? f->ffn - i : PL_PACKED_COLS;
    pl_packed_fill(to, 2 * i, n, pl_f32(from->gate) + i * f->hidden,
                   from->gate_b == NULL ? NULL : pl_f32(from->gate_b) + i);
    pl_packed_fill(to, 2 * i + PL_PACKED_COLS, n, pl_f32(from->up) + i * f->hidden,
                   from->up_b == NULL ? NULL : pl_f32(from->up_b) + i);
  }
}

static void fill_layer(const pl_lm_config *f, const pl_layer *from, pl_pack_layer *to) {
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  fill(&to->qkv, 0, Q, from->q, from->q_b);
  fill(&to->qkv, Q, K, from->k, from->k_b);
  fill(&to->qkv, Q + K, K, from->v, from->v_b);
  fill(&to->o, 0, f->hidden, from->o, from->o_b);
  if (from->gate != NULL) {
    fill_gated(f, from, &to->up);
  } else {
    fill(&to->up, 0, f->ffn, from->up, from->up_b);
  }
  fill(&to->down, 0, f->hidden, from->down, from->down_b);
}

static pl_status make(pl_ctx *c, const pl_decoder *d, pl_pack *p) {
  p->layers = pl_alloc_zero(c, sizeof *p->layers * (size_t)d->cfg.n_layers);
  if (p->layers == NULL) {
    return PL_ENOMEM;
  }
  p->bytes = lay_all(p, &d->cfg);
  p->memory = pl_alloc_zero(c, p->bytes);
  if (p->memory == NULL) {
    return PL_ENOMEM;
  }
  (void)lay_all(p, &d->cfg);
  for (int64_t l = 0; l < d->cfg.n_layers; l++) {
    PL_TRY(pl_check_interrupt(c)); /* a large model takes seconds */
    fill_layer(&d->cfg, &d->layers[l], &p->layers[l]);
  }
  pl_packed_fill(&p->head, 0, d->cfg.vocab, pl_f32(d->head), NULL);
  return PL_OK;
}

pl_status pl_pack_of(pl_ctx *c, pl_decoder *d, pl_pack_kind kind, pl_pack **out) {
  const int64_t version = version_of(d);
  if (d->pack == NULL || d->pack->kind != kind || d->pack->version != version) {
    pl_pack_drop(c, d->pack); /* first, so that there are never two */
    d->pack = NULL;
    pl_pack *p = pl_alloc_zero(c, sizeof *p);
    if (p == NULL) {
      return PL_ENOMEM;
    }
    *p = (pl_pack){.kind = kind, .version = version, .refs = 1, .n_layers = d->cfg.n_layers};
    const pl_status st = make(c, d, p);
    if (st != PL_OK) {
      pl_pack_drop(c, p);
      return st;
    }
    d->pack = p;
  }
  d->pack->refs++;
  *out = d->pack;
  return PL_OK;
}
