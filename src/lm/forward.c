/* The forward pass of rows: see forward.h. */
#include "lm/forward.h"

#include <math.h>
#include <string.h>

#include "lm/attend.h"
#include "lm/rowmath.h"

/* ---- memory ---- */

pl_status pl_floats(pl_ctx *c, int64_t n, int64_t each, float **out) {
  size_t bytes;
  PL_TRY(pl_size_mul(c, (size_t)n, (size_t)each * sizeof **out, &bytes));
  *out = pl_alloc(c, bytes);
  return *out == NULL ? PL_ENOMEM : PL_OK;
}

static pl_status rows_of(pl_ctx *c, int64_t n, int64_t ld, char **out) {
  size_t bytes;
  PL_TRY(pl_size_mul(c, (size_t)n, (size_t)ld, &bytes));
  *out = pl_alloc_zero(c, bytes); /* rows end in zeros */
  return *out == NULL ? PL_ENOMEM : PL_OK;
}

pl_status pl_pass_open(pl_ctx *c, const pl_decoder *d, const pl_pack *w, int64_t max_rows,
                       int64_t spare_blocks, int64_t scratch, pl_pass *p) {
  const pl_lm_config *f = &d->cfg;
  const int64_t R = max_rows;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  p->d = d;
  p->w = w;
  p->half = w->kind != PL_PACK_F32;
  p->max_rows = max_rows;
  p->cap_free = spare_blocks;
  p->scratch_least = scratch;
  p->row = pl_alloc(c, sizeof *p->row * (size_t)R);
  p->free_blocks = pl_alloc(c, sizeof *p->free_blocks * (size_t)spare_blocks);
  if (p->row == NULL || p->free_blocks == NULL) {
    return PL_ENOMEM;
  }
  p->ld_hidden = pl_operand_ld(&w->head.in);
  p->ld_att = pl_operand_ld(&w->layers[0].o.in);
  p->ld_ffn = pl_operand_ld(&w->layers[0].down.in);
  PL_TRY(pl_floats(c, R, f->hidden, &p->x));
  PL_TRY(pl_floats(c, R, Q + 2 * K, &p->qkv));
  PL_TRY(pl_floats(c, R, w->layers[0].up.N, &p->gu));
  PL_TRY(pl_floats(c, PL_HEAD_ROWS, f->vocab, &p->logits));
  p->chunks = pl_alloc(c, sizeof *p->chunks * (size_t)(PL_HEAD_ROWS * pl_chunks(f->vocab)));
  if (p->chunks == NULL) {
    return PL_ENOMEM;
  }
  PL_TRY(rows_of(c, R, p->ld_hidden, &p->in_norm));
  PL_TRY(rows_of(c, R, p->ld_att, &p->in_att));
  PL_TRY(rows_of(c, R, p->ld_ffn, &p->in_ffn));
  return rows_of(c, PL_HEAD_ROWS, p->ld_hidden, &p->in_head);
}

void pl_pass_close(pl_ctx *c, pl_pass *p) {
  for (int64_t i = 0; i < p->n_free; i++) {
    pl_free(c, p->free_blocks[i]);
  }
  void *parts[] = {p->free_blocks, p->rope,    p->row,    p->x,      p->logits,  p->chunks, p->qkv,
                   p->gu,          p->in_norm, p->in_att, p->in_ffn, p->in_head, p->scratch};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    pl_free(c, parts[i]);
  }
  *p = (pl_pass){.d = NULL};
}

void *pl_pass_room(const pl_pass *p) {
  return p->scratch + pl_thread_id() * p->scratch_each;
}

void pl_kv_release(pl_ctx *c, pl_pass *p, pl_kv_seq *s) {
  for (int64_t i = 0; i < s->n_blocks; i++) {
    if (p->n_free < p->cap_free) {
      p->free_blocks[p->n_free++] = s->block[i];
    } else {
      pl_free(c, s->block[i]);
    }
  }
  pl_free(c, s->block);
  *s = (pl_kv_seq){NULL, 0, 0};
}

pl_status pl_kv_reserve(pl_ctx *c, pl_pass *p, pl_kv_seq *s, int64_t n) {
  const pl_lm_config *f = &p->d->cfg;
  const int64_t want = (n + PL_KV_BLOCK - 1) / PL_KV_BLOCK;
  if (want > s->cap) {
    const int64_t cap = want > 2 * s->cap ? want : 2 * s->cap;
    char **grown = pl_realloc(c, s->block, sizeof *grown * (size_t)cap);
    if (grown == NULL) {
      return PL_ENOMEM;
    }
    s->block = grown;
    s->cap = cap;
  }
  while (s->n_blocks < want) {
    char *b = NULL;
    const int64_t each = f->n_layers * pl_kv_layer_bytes(f->kv_heads, f->head_dim, p->half);
    if (p->n_free > 0) {
      b = p->free_blocks[--p->n_free];
      memset(b, 0, (size_t)each); /* another text's NaN would be one here, times 0 too */
    } else {
      b = pl_alloc_zero(c, (size_t)each);
    }
    if (b == NULL) {
      return PL_ENOMEM;
    }
    s->block[s->n_blocks++] = b;
  }
  return PL_OK;
}

/* ---- the pass ---- */

enum { ATTEND_CACHE = 1 << 18 }; /* bytes */

static pl_status rope_table(pl_ctx *c, pl_pass *p, int64_t n) {
  const pl_lm_config *f = &p->d->cfg;
  const int64_t half = f->head_dim / 2;
  if (n <= p->n_rope) {
    return PL_OK;
  }
  int64_t want = 2 * n < f->context ? 2 * n : f->context;
  want = want < n ? n : want;
  float *grown = pl_realloc(c, p->rope, sizeof *grown * (size_t)(want * f->head_dim));
  if (grown == NULL) {
    return PL_ENOMEM;
  }
  p->rope = grown;
  for (int64_t t = p->n_rope; t < want; t++) {
    for (int64_t i = 0; i < half; i++) {
      const double a = (double)t * pow(f->theta, -2.0 * (double)i / (double)f->head_dim);
      grown[t * f->head_dim + i] = (float)cos(a);
      grown[t * f->head_dim + half + i] = (float)sin(a);
    }
  }
  p->n_rope = want;
  return PL_OK;
}

/* Query heads that share a key-value head. */
static int64_t group_of(const pl_lm_config *f) {
  return f->heads / f->kv_heads;
}

/* What attention takes of a thread's room for one key-value head, in floats. */
static int64_t attend_room(const pl_lm_config *f, int64_t positions) {
  const int64_t query = (sizeof(pl_query) + pl_kv_width(f->head_dim) * sizeof(float)) /
                        sizeof(float);
  return PL_ATTEND_ROWS * group_of(f) * (query + pl_attend_floats(positions, f->head_dim));
}

/* How many key-value heads attend at once: their keys lie side by side, so that the processor
 * reads ahead; the scores of all must fit in a cache. */
static int64_t heads_at_once(const pl_lm_config *f, int64_t positions) {
  const int64_t fit = (int64_t)(ATTEND_CACHE / sizeof(float)) / attend_room(f, positions);
  return fit < 1 ? 1 : fit < f->kv_heads ? fit : f->kv_heads;
}

/* A room for each thread: attention, a row of the feed-forward part, or what the caller asked
 * for. */
static pl_status thread_rooms(pl_ctx *c, pl_pass *p, int64_t positions) {
  const pl_lm_config *f = &p->d->cfg;
  const int threads = pl_threads();
  p->together = heads_at_once(f, positions);
  const int64_t attend = p->together * attend_room(f, positions);
  const int64_t row = p->w->layers[0].up.N > f->hidden ? p->w->layers[0].up.N : f->hidden;
  const int64_t floats = (attend > row ? attend : row) * (int64_t)sizeof(float);
  const int64_t each = ((floats > p->scratch_least ? floats : p->scratch_least) + 63) / 64 * 64;
  if (each <= p->scratch_each && threads <= p->scratch_threads) {
    return PL_OK;
  }
  const int64_t grown = each > 2 * p->scratch_each ? each : 2 * p->scratch_each;
  pl_free(c, p->scratch);
  p->scratch_each = 0; /* nothing, should there be no memory */
  p->scratch = pl_alloc(c, (size_t)grown * (size_t)threads);
  if (p->scratch == NULL) {
    return PL_ENOMEM;
  }
  p->scratch_each = grown;
  p->scratch_threads = threads;
  return PL_OK;
}

pl_status pl_pass_prepare(pl_ctx *c, pl_pass *p, int64_t n) {
  int64_t longest = 0;
  for (int64_t i = 0; i < n; i++) {
    longest = p->row[i].pos + 1 > longest ? p->row[i].pos + 1 : longest;
  }
  if (!p->d->cfg.learned_pos) {
    PL_TRY(rope_table(c, p, longest));
  }
  return thread_rooms(c, p, longest);
}

/* The steps of a layer. Each is this member's share; between two of them all meet. */

enum { FFN_ROWS = 64 }; /* rows whose gates and ups stay in the cache until they are used */

static int64_t offset_of(const pl_pass *p, int64_t layer) {
  return layer * pl_kv_layer_bytes(p->d->cfg.kv_heads, p->d->cfg.head_dim, p->half);
}

static void embed(pl_pass *p, const pl_member *me, int64_t n) {
  const int64_t C = p->d->cfg.hidden;
  int64_t first;
  int64_t last;
  pl_team_share(me, n, &first, &last);
  for (int64_t i = first; i < last; i++) {
    float *x = p->x + i * C;
    memcpy(x, pl_f32(p->d->embed) + p->row[i].token * C, sizeof *x * (size_t)C);
    for (int64_t j = 0; j < C && p->d->pos_embed != NULL; j++) {
      x[j] += pl_f32(p->d->pos_embed)[p->row[i].pos * C + j];
    }
  }
}

static void norm(const pl_pass *p, const float *x, const pl_tensor *w, const pl_tensor *bias,
                 float *h) {
  const pl_lm_config *f = &p->d->cfg;
  if (f->norm == PL_NORM_LAYER) {
    pl_row_layer_norm(f->hidden, x, pl_f32(w), pl_f32(bias), f->eps, h);
  } else {
    pl_row_norm(f->hidden, x, pl_f32(w), f->eps, h);
  }
}

static void norm_rows(pl_pass *p, const pl_member *me, int64_t n, const pl_tensor *w,
                      const pl_tensor *bias) {
  const int64_t C = p->d->cfg.hidden;
  float *h = pl_pass_room(p);
  int64_t first;
  int64_t last;
  pl_team_share(me, n, &first, &last);
  for (int64_t i = first; i < last; i++) {
    norm(p, p->x + i * C, w, bias, h);
    pl_operand_put(&p->w->head.in, h, 0, C, p->in_norm + i * p->ld_hidden);
  }
}

static void product(const pl_member *me, int64_t n, const pl_packed *w, const char *in, int64_t ld,
                    bool add, float *y, int64_t ldy) {
  int64_t first;
  int64_t last;
  pl_team_share(me, pl_packed_panels(w), &first, &last);
  pl_packed_product(w, n, in, ld, add, y, ldy, first, last);
}

static void write_keys(pl_pass *p, const pl_member *me, int64_t n, int64_t layer) {
  const pl_lm_config *f = &p->d->cfg;
  const int64_t D = f->head_dim;
  int64_t first;
  int64_t last;
  pl_team_share(me, n, &first, &last);
  for (int64_t i = first; i < last; i++) {
    const pl_pass_row *r = &p->row[i];
    float *q = p->qkv + i * (f->heads + 2 * f->kv_heads) * D;
    if (!f->learned_pos) {
      pl_row_rope(f->heads + f->kv_heads, D, q, p->rope + r->pos * D); /* keys follow queries */
    }
    const float *k = q + f->heads * D;
    const int64_t at = r->pos - r->n_prefix;
    pl_kv_write(f->kv_heads, D, p->half, k, k + f->kv_heads * D, at % PL_KV_BLOCK,
                r->own->block[at / PL_KV_BLOCK] + offset_of(p, layer));
  }
}

/* Do rows i and j read keys together: of one prefix, or of one text without a prefix? */
static bool together(const pl_pass_row *i, const pl_pass_row *j) {
  return i->n_prefix == j->n_prefix && i->prefix == j->prefix &&
         (i->own == j->own || i->n_prefix > 0);
}

static pl_attend attend_of(const pl_pass *p, const pl_pass_row *r, int64_t layer, int64_t head,
                           int64_t heads) {
  return (pl_attend){.K = p->d->cfg.kv_heads,
                     .D = p->d->cfg.head_dim,
                     .head = head,
                     .heads = heads,
                     .half = p->half,
                     .layer = offset_of(p, layer),
                     .prefix = r->n_prefix > 0 ? r->prefix->block : NULL,
                     .n0 = r->n_prefix};
}

/* Query head h of a row. */
static pl_query query_of(const pl_pass *p, int64_t row, int64_t h, float *y) {
  const pl_lm_config *f = &p->d->cfg;
  const pl_pass_row *r = &p->row[row];
  const int64_t past = f->window > 0 ? r->pos + 1 - f->window : 0;
  return (pl_query){p->qkv + (row * (f->heads + 2 * f->kv_heads) + h) * f->head_dim, y,
                    r->own->block, r->pos - r->n_prefix + 1, past > 0 ? past : 0};
}

/* Rows i..i+k-1 in key-value heads head..head+heads-1. */
static void attend_rows(pl_pass *p, int64_t i, int64_t k, int64_t layer, int64_t head,
                        int64_t heads) {
  const int64_t D = p->d->cfg.head_dim;
  const int64_t group = group_of(&p->d->cfg);
  const int64_t width = pl_kv_width(D);
  const int64_t n = k * group;
  const pl_attend a = attend_of(p, &p->row[i], layer, head, heads);
  pl_query *query = pl_pass_room(p);
  float *y = (float *)(query + heads * n);
  for (int64_t q = 0; q < heads * n; q++) {
    const int64_t h = (head + q / n) * group + q % group;
    query[q] = query_of(p, i + q % n / group, h, y + q * width);
  }
  pl_row_attention(&a, query, (int)n, y + heads * n * width);
  for (int64_t q = 0; q < heads * n; q++) {
    const int64_t h = (head + q / n) * group + q % group;
    char *in = p->in_att + (i + q % n / group) * p->ld_att;
    pl_operand_put(&p->w->layers[layer].o.in, query[q].y, h * D, D, in);
  }
}

/* How many rows from i on read keys together. */
static int64_t together_from(const pl_pass *p, int64_t i, int64_t n) {
  int64_t k = 1;
  while (k < PL_ATTEND_ROWS && i + k < n && together(&p->row[i], &p->row[i + k])) {
    k++;
  }
  return k;
}

/* The members take tiles of rows in turn, for later ones may see more; where there are few,
 * each takes some of the heads. */
static void attend(pl_pass *p, const pl_member *me, int64_t n, int64_t layer) {
  const bool by_rows = n >= 2 * PL_ATTEND_ROWS * me->size;
  int64_t first = 0;
  int64_t last = p->d->cfg.kv_heads;
  if (!by_rows) {
    pl_team_share(me, last, &first, &last);
  }
  int64_t tile = 0;
  int64_t taken = by_rows ? pl_team_take(me) : 0;
  for (int64_t i = 0; i < n; tile++) {
    const int64_t k = together_from(p, i, n);
    const bool mine = !by_rows || tile == taken;
    if (by_rows && mine) {
      taken = pl_team_take(me);
    }
    for (int64_t head = first; head < last && mine; head += p->together) {
      const int64_t heads = last - head < p->together ? last - head : p->together;
      if (i + k < n) { /* what comes next is on its way while these work */
        const pl_attend a = attend_of(p, &p->row[i + k], layer, first, 1);
        const pl_query q = query_of(p, i + k, 0, NULL);
        pl_kv_ask(&a, &q);
      }
      attend_rows(p, i, k, layer, head, heads);
    }
    i += k;
  }
}

/* What the product down reads, of this member's columns: silu(gate) * up, or gelu(up). */
static void up_rows(pl_pass *p, const pl_member *me, int64_t n, const pl_pack_layer *y) {
  const pl_packed *w = &y->up;
  const pl_operand *out = &y->down.in;
  const int64_t F = p->d->cfg.ffn;
  /* a member's columns are whole panels, and where they share scales whole pieces */
  const int64_t each = out->kind == PL_PACK_INT8 ? out->piece : PL_PACKED_COLS;
  const bool gated = p->d->cfg.act == PL_ACT_SILU_GATE;
  const int64_t twice = gated ? 2 : 1;
  float *h = pl_pass_room(p);
  int64_t first;
  int64_t last;
  pl_team_share(me, (F + each - 1) / each, &first, &last);
  const int64_t k0 = first * each;
  const int64_t k1 = last * each < F ? last * each : F;
  const int64_t p0 = k0 / PL_PACKED_COLS;
  const int64_t p1 = (k1 + PL_PACKED_COLS - 1) / PL_PACKED_COLS;
  for (int64_t i = 0; i < n; i += FFN_ROWS) {
    const int64_t m = n - i < FFN_ROWS ? n - i : FFN_ROWS;
    pl_packed_product(w, m, p->in_norm + i * p->ld_hidden, p->ld_hidden, false, p->gu + i * w->N,
                      w->N, twice * p0, twice * p1);
    for (int64_t j = i; j < i + m; j++) {
      const float *from = p->gu + j * w->N + twice * k0;
      if (gated) {
        pl_row_silu_mul(p1 - p0, from, h);
      } else {
        pl_row_gelu(k1 - k0, from, h);
      }
      pl_operand_put(out, h, k0, k1 - k0, p->in_ffn + j * p->ld_ffn);
    }
  }
}

static void layer_forward(pl_pass *p, const pl_member *me, int64_t n, int64_t l) {
  const pl_lm_config *f = &p->d->cfg;
  const pl_layer *y = &p->d->layers[l];
  const pl_pack_layer *w = &p->w->layers[l];
  norm_rows(p, me, n, y->norm1, y->norm1_b);
  pl_team_meet(me);
  product(me, n, &w->qkv, p->in_norm, p->ld_hidden, false, p->qkv, w->qkv.N);
  pl_team_meet(me);
  write_keys(p, me, n, l);
  pl_team_meet(me); /* all keys are in place before anyone looks */
  attend(p, me, n, l);
  pl_team_meet(me);
  product(me, n, &w->o, p->in_att, p->ld_att, true, p->x, f->hidden);
  pl_team_meet(me);
  norm_rows(p, me, n, y->norm2, y->norm2_b);
  pl_team_meet(me);
  up_rows(p, me, n, w);
  pl_team_meet(me);
  product(me, n, &w->down, p->in_ffn, p->ld_ffn, true, p->x, f->hidden);
  pl_team_meet(me);
}

void pl_pass_forward(pl_pass *p, const pl_member *me, int64_t n) {
  embed(p, me, n);
  for (int64_t l = 0; l < p->d->cfg.n_layers; l++) {
    layer_forward(p, me, n, l);
  }
}

void pl_pass_last_norm(const pl_pass *p, const float *x, float *h) {
  norm(p, x, p->d->norm, p->d->norm_b, h);
}

void pl_pass_head_in(pl_pass *p, int64_t i, const float *h, float inv_t) {
  pl_operand_put(&p->w->head.in, h, 0, p->d->cfg.hidden, p->in_head + i * p->ld_hidden);
  p->inv_t[i] = inv_t;
}

/* The chunks are measured while their logits are in the cache. */
void pl_pass_head(pl_pass *p, const pl_member *me, int64_t n) {
  enum { TOGETHER = 4, PANELS = PL_CHUNK / PL_PACKED_COLS };
  const pl_packed *w = &p->w->head;
  const int64_t V = p->d->cfg.vocab;
  const int64_t all = pl_chunks(V);
  int64_t first;
  int64_t last;
  pl_team_meet(me);
  pl_team_share(me, all, &first, &last);
  for (int64_t c = first; c < last; c += TOGETHER) {
    const int64_t end = c + TOGETHER < last ? c + TOGETHER : last;
    const int64_t p1 = end * PANELS < pl_packed_panels(w) ? end * PANELS : pl_packed_panels(w);
    const int64_t v = c * PL_CHUNK;
    const int64_t count = (end * PL_CHUNK < V ? end * PL_CHUNK : V) - v;
    pl_packed_product(w, n, p->in_head, p->ld_hidden, false, p->logits, V, c * PANELS, p1);
    for (int64_t i = 0; i < n; i++) {
      pl_sample_measure(count, p->logits + i * V + v, p->inv_t[i], p->chunks + i * all + c);
    }
  }
  pl_team_meet(me);
}
