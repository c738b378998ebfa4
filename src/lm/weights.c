/* A decoder's configuration and weights: see decoder.h. One table says which
 * weights there are, in their order; all else about them is read from it.
 * Must not: compute. */
#include <stddef.h>
#include <stdio.h>

#include "lm/decoder.h"
#include "lm/pack.h"

/* ---- configuration ---- */

static pl_status kinds_check(pl_ctx *c, const pl_lm_config *g) {
  if (g->heads % g->kv_heads != 0) {
    return pl_fail(c, PL_EINVAL, "decoder: %lld heads cannot share %lld key-value heads evenly",
                   (long long)g->heads, (long long)g->kv_heads);
  }
  if (!g->learned_pos && g->head_dim % 2 != 0) {
    return pl_fail(c, PL_EINVAL, "decoder: head size %lld is odd; rotary embedding wants pairs",
                   (long long)g->head_dim);
  }
  if (!(g->eps >= 0) || (!g->learned_pos && !(g->theta > 0))) {
    return pl_fail(c, PL_EINVAL, "decoder: eps %g and rope theta %g; wanted >= 0 and > 0", g->eps,
                   g->theta);
  }
  if (g->window < 0) {
    return pl_fail(c, PL_EINVAL, "decoder: window %lld; wanted a number of tokens, or 0 for all",
                   (long long)g->window);
  }
  return PL_OK;
}

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
  return kinds_check(c, g);
}

/* ---- the table ---- */

typedef enum size_name { ONE, C, Q, K, F, V, T } size_name; /* ONE: the weight is a vector */

static int64_t size_of(const pl_lm_config *g, size_name s) {
  switch (s) {
    case C: return g->hidden;
    case Q: return g->heads * g->head_dim;
    case K: return g->kv_heads * g->head_dim;
    case F: return g->ffn;
    case V: return g->vocab;
    case T: return g->context;
    default: return 1;
  }
}

static bool has_norm_bias(const pl_lm_config *g) {
  return g->norm == PL_NORM_LAYER;
}
static bool has_positions(const pl_lm_config *g) {
  return g->learned_pos;
}
static bool has_attention_bias(const pl_lm_config *g) {
  return g->attention_bias;
}
static bool has_gate(const pl_lm_config *g) {
  return g->act == PL_ACT_SILU_GATE;
}
static bool has_mlp_bias(const pl_lm_config *g) {
  return g->mlp_bias;
}
static bool has_gate_bias(const pl_lm_config *g) {
  return has_gate(g) && g->mlp_bias;
}
static bool has_head(const pl_lm_config *g) {
  return !g->tied;
}

typedef enum part { BEFORE, LAYER, AFTER } part;

static const struct weight {
  part part;
  const char *name;
  size_t at; /* of its pointer, in pl_layer or pl_decoder */
  size_name rows, cols;
  bool (*there)(const pl_lm_config *g); /* NULL: always */
} table[] = {
    {BEFORE, "embed", offsetof(pl_decoder, embed), V, C, NULL},
    {BEFORE, "pos_embed", offsetof(pl_decoder, pos_embed), T, C, has_positions},
    {LAYER, "norm1", offsetof(pl_layer, norm1), C, ONE, NULL},
    {LAYER, "norm1_b", offsetof(pl_layer, norm1_b), C, ONE, has_norm_bias},
    {LAYER, "q", offsetof(pl_layer, q), Q, C, NULL},
    {LAYER, "k", offsetof(pl_layer, k), K, C, NULL},
    {LAYER, "v", offsetof(pl_layer, v), K, C, NULL},
    {LAYER, "o", offsetof(pl_layer, o), C, Q, NULL},
    {LAYER, "q_b", offsetof(pl_layer, q_b), Q, ONE, has_attention_bias},
    {LAYER, "k_b", offsetof(pl_layer, k_b), K, ONE, has_attention_bias},
    {LAYER, "v_b", offsetof(pl_layer, v_b), K, ONE, has_attention_bias},
    {LAYER, "o_b", offsetof(pl_layer, o_b), C, ONE, has_attention_bias},
    {LAYER, "norm2", offsetof(pl_layer, norm2), C, ONE, NULL},
    {LAYER, "norm2_b", offsetof(pl_layer, norm2_b), C, ONE, has_norm_bias},
    {LAYER, "gate", offsetof(pl_layer, gate), F, C, has_gate},
    {LAYER, "up", offsetof(pl_layer, up), F, C, NULL},
    {LAYER, "down", offsetof(pl_layer, down), C, F, NULL},
    {LAYER, "gate_b", offsetof(pl_layer, gate_b), F, ONE, has_gate_bias},
    {LAYER, "up_b", offsetof(pl_layer, up_b), F, ONE, has_mlp_bias},
    {LAYER, "down_b", offsetof(pl_layer, down_b), C, ONE, has_mlp_bias},
    {AFTER, "norm", offsetof(pl_decoder, norm), C, ONE, NULL},
    {AFTER, "norm_b", offsetof(pl_decoder, norm_b), C, ONE, has_norm_bias},
    {AFTER, "head", offsetof(pl_decoder, head), V, C, has_head}};

enum { TABLE = sizeof table / sizeof *table };

static bool is_there(const pl_lm_config *g, part p, int j) {
  return table[j].part == p && (table[j].there == NULL || table[j].there(g));
}

static int64_t count(const pl_lm_config *g, part p) {
  int64_t n = 0;
  for (int j = 0; j < TABLE; j++) {
    n += is_there(g, p, j);
  }
  return n;
}

/* The i-th entry of a part that is there. */
static const struct weight *entry(const pl_lm_config *g, part p, int64_t i) {
  int64_t seen = 0;
  for (int j = 0; j < TABLE; j++) {
    seen += is_there(g, p, j);
    if (seen == i + 1) {
      return &table[j];
    }
  }
  return NULL;
}

/* Entry and layer of weight number i; layer -1 outside of them. */
static const struct weight *find(const pl_lm_config *g, int64_t i, int64_t *layer) {
  const int64_t before = count(g, BEFORE);
  const int64_t each = count(g, LAYER);
  *layer = -1;
  if (i < before) {
    return entry(g, BEFORE, i);
  }
  i -= before;
  if (i >= each * g->n_layers) {
    return entry(g, AFTER, i - each * g->n_layers);
  }
  *layer = i / each;
  return entry(g, LAYER, i % each);
}

int64_t pl_decoder_n_weights(const pl_lm_config *g) {
  return count(g, BEFORE) + count(g, LAYER) * g->n_layers + count(g, AFTER);
}

void pl_decoder_weight_info(const pl_lm_config *g, int64_t i, char name[48], int *ndim,
                            int64_t shape[2]) {
  int64_t layer;
  const struct weight *w = find(g, i, &layer);
  if (layer >= 0) {
    (void)snprintf(name, 48, "layers.%lld.%s", (long long)layer, w->name);
  } else {
    (void)snprintf(name, 48, "%s", w->name);
  }
  *ndim = w->cols == ONE ? 1 : 2;
  shape[0] = size_of(g, w->rows);
  shape[1] = size_of(g, w->cols);
}

static pl_tensor **slot(pl_decoder *d, int64_t i) {
  int64_t layer;
  const struct weight *w = find(&d->cfg, i, &layer);
  char *base = layer < 0 ? (char *)d : (char *)&d->layers[layer];
  return (pl_tensor **)(void *)(base + w->at);
}

/* ---- the decoder ---- */

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
  for (int64_t i = 0; i < n; i++) {
    *slot(d, i) = pl_tensor_ref(w[i]);
  }
  if (cfg->tied) {
    d->head = pl_tensor_ref(d->embed);
  }
  *out = d;
  return PL_OK;
}

void pl_decoder_free(pl_ctx *c, pl_decoder *d) {
  if (d == NULL) {
    return;
  }
  for (int64_t i = 0; i < pl_decoder_n_weights(&d->cfg); i++) {
    pl_tensor_unref(*slot(d, i));
  }
  if (d->cfg.tied) {
    pl_tensor_unref(d->head);
  }
  pl_pack_drop(c, d->pack);
  pl_free(c, d->layers);
  pl_free(c, d);
}
