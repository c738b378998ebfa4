/* The forward pass of rows: see forward.h. */
#include "lm/forward.h"

#include <math.h>
#include <string.h>

#include "base/par.h"
#include "lm/rowmath.h"

/* ---- memory ---- */

pl_status pl_floats(pl_ctx *c, int64_t n, int64_t each, float **out) {
  size_t bytes;
  PL_TRY(pl_size_mul(c, (size_t)n, (size_t)each * sizeof **out, &bytes));
  *out = pl_alloc(c, bytes);
  return *out == NULL ? PL_ENOMEM : PL_OK;
}

pl_status pl_pass_open(pl_ctx *c, const pl_decoder *d, int64_t max_rows, int64_t spare_blocks,
                       int64_t scratch, pl_pass *p) {
  const pl_lm_config *f = &d->cfg;
  const int64_t R = max_rows;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  p->d = d;
  p->max_rows = max_rows;
  p->cap_free = spare_blocks;
  p->scratch_least = scratch;
  p->row = pl_alloc(c, sizeof *p->row * (size_t)R);
  p->group = pl_alloc(c, sizeof *p->group * (size_t)(R + 1));
  p->free_blocks = pl_alloc(c, sizeof *p->free_blocks * (size_t)spare_blocks);
  if (p->row == NULL || p->group == NULL || p->free_blocks == NULL) {
    return PL_ENOMEM;
  }
  PL_TRY(pl_floats(c, R, f->hidden, &p->x));
  PL_TRY(pl_floats(c, R, f->hidden, &p->norm));
  PL_TRY(pl_floats(c, R, Q, &p->q));
  PL_TRY(pl_floats(c, R, K, &p->k));
  PL_TRY(pl_floats(c, R, K, &p->v));
  PL_TRY(pl_floats(c, R, Q, &p->att));
  PL_TRY(pl_floats(c, R, f->ffn, &p->gate));
  return pl_floats(c, R, f->ffn, &p->up);
}

void pl_pass_close(pl_ctx *c, pl_pass *p) {
  for (int64_t i = 0; i < p->n_free; i++) {
    pl_free(c, p->free_blocks[i]);
  }
  void *parts[] = {p->free_blocks, p->rope, p->row, p->x,    p->norm, p->q,      p->k,
                   p->v,           p->att,  p->gate, p->up,  p->group, p->scratch};
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
    float **grown = pl_realloc(c, s->block, sizeof *grown * (size_t)cap);
    if (grown == NULL) {
      return PL_ENOMEM;
    }
    s->block = grown;
    s->cap = cap;
  }
  while (s->n_blocks < want) {
    float *b = NULL;
    if (p->n_free > 0) {
      b = p->free_blocks[--p->n_free];
    } else {
      const int64_t floats = f->n_layers * pl_kv_layer_floats(f->kv_heads, f->head_dim);
      b = pl_alloc_zero(c, sizeof *b * (size_t)floats);
    }
    if (b == NULL) {
      return PL_ENOMEM;
    }
    s->block[s->n_blocks++] = b;
  }
  return PL_OK;
}

/* ---- the pass ---- */

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

/* Work on rows lo..lo+n-1 in one of two ways. Few rows, or one long prompt: all
 * threads share each product, and meet after it. Many rows: they are cut into
 * groups, and a thread takes a group through all layers alone, so that threads
 * meet once a pass. A row's result is the same either way. */
enum { ROWS_A_TASK = 4, GROUP_MIN = 12, GROUP_MAX = 48 };

typedef struct layer_arg {
  pl_pass *p;
  int64_t lo, n, layer;
} layer_arg;

static int64_t offset_of(const pl_lm_config *f, int64_t layer) {
  return layer * pl_kv_layer_floats(f->kv_heads, f->head_dim);
}

static void write_block(void *arg, int64_t block) {
  const layer_arg *a = arg;
  pl_pass *p = a->p;
  const pl_lm_config *f = &p->d->cfg;
  const int64_t D = f->head_dim;
  const int64_t first = a->lo + block * ROWS_A_TASK;
  for (int64_t i = first; i < a->lo + a->n && i < first + ROWS_A_TASK; i++) {
    const pl_pass_row *r = &p->row[i];
    const float *cs = p->rope + r->pos * D;
    float *k = p->k + i * f->kv_heads * D;
    pl_row_rope(f->heads, D, p->q + i * f->heads * D, cs);
    pl_row_rope(f->kv_heads, D, k, cs);
    const int64_t at = r->pos - r->n_prefix;
    pl_kv_write(f->kv_heads, D, k, p->v + i * f->kv_heads * D, at % PL_KV_BLOCK,
                r->own->block[at / PL_KV_BLOCK] + offset_of(f, a->layer));
  }
}

static void attend_block(void *arg, int64_t block) {
  const layer_arg *a = arg;
  pl_pass *p = a->p;
  const pl_lm_config *f = &p->d->cfg;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t first = a->lo + block * ROWS_A_TASK;
  float *scratch = pl_pass_room(p);
  for (int64_t i = first; i < a->lo + a->n && i < first + ROWS_A_TASK; i++) {
    const pl_pass_row *r = &p->row[i];
    pl_row_attention(f->heads, f->kv_heads, f->head_dim, p->q + i * Q,
                     r->n_prefix > 0 ? r->prefix->block : NULL, r->n_prefix, r->own->block,
                     r->pos - r->n_prefix + 1, offset_of(f, a->layer), scratch, p->att + i * Q);
  }
}

/* A room for each thread: attention scores, or what the caller asked for. */
static pl_status thread_rooms(pl_ctx *c, pl_pass *p, int64_t positions) {
  const int threads = pl_threads();
  const int64_t scores = (positions + 2 * PL_KV_BLOCK) * (int64_t)sizeof(float);
  const int64_t least = p->scratch_least;
  const int64_t each = ((scores > least ? scores : least) + 63) / 64 * 64;
  if (each <= p->scratch_each && threads <= p->scratch_threads) {
    return PL_OK;
  }
  pl_free(c, p->scratch);
  p->scratch_each = each > 2 * p->scratch_each ? each : 2 * p->scratch_each;
  p->scratch_threads = threads;
  p->scratch = pl_alloc(c, (size_t)p->scratch_each * (size_t)threads);
  return p->scratch == NULL ? PL_ENOMEM : PL_OK;
}

static void layer_forward(pl_pass *p, int64_t lo, int64_t n, int64_t l) {
  const pl_lm_config *f = &p->d->cfg;
  const pl_layer *y = &p->d->layers[l];
  const int64_t C = f->hidden;
  const int64_t F = f->ffn;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  float *x = p->x + lo * C;
  float *norm = p->norm + lo * C;
  float *gate = p->gate + lo * F;
  float *up = p->up + lo * F;
  layer_arg a = {.p = p, .lo = lo, .n = n, .layer = l};
  const int64_t tasks = (n + ROWS_A_TASK - 1) / ROWS_A_TASK;

  pl_row_norm(n, C, x, pl_f32(y->norm1), f->eps, norm);
  const pl_row_job qkv[] = {{norm, pl_f32(y->q), p->q + lo * Q, Q, C, Q, false},
                            {norm, pl_f32(y->k), p->k + lo * K, K, C, K, false},
                            {norm, pl_f32(y->v), p->v + lo * K, K, C, K, false}};
  pl_row_matmul(n, qkv, 3);
  pl_parallel(tasks, write_block, &a); /* all keys are in place before anyone looks */
  pl_parallel(tasks, attend_block, &a);
  const pl_row_job out = {p->att + lo * Q, pl_f32(y->o), x, C, Q, C, true};
  pl_row_matmul(n, &out, 1);

  pl_row_norm(n, C, x, pl_f32(y->norm2), f->eps, norm);
  const pl_row_job gate_up[] = {{norm, pl_f32(y->gate), gate, F, C, F, false},
                                {norm, pl_f32(y->up), up, F, C, F, false}};
  pl_row_matmul(n, gate_up, 2);
  pl_row_silu_mul(n, F, gate, up);
  const pl_row_job down = {gate, pl_f32(y->down), x, C, F, C, true};
  pl_row_matmul(n, &down, 1);
}

void pl_pass_forward(pl_pass *p, int64_t lo, int64_t n) {
  const int64_t C = p->d->cfg.hidden;
  for (int64_t i = lo; i < lo + n; i++) {
    memcpy(p->x + i * C, pl_f32(p->d->embed) + p->row[i].token * C, sizeof *p->x * (size_t)C);
  }
  for (int64_t l = 0; l < p->d->cfg.n_layers; l++) {
    layer_forward(p, lo, n, l);
  }
}

pl_status pl_pass_prepare(pl_ctx *c, pl_pass *p, int64_t n) {
  int64_t longest = 0;
  for (int64_t i = 0; i < n; i++) {
    longest = p->row[i].pos + 1 > longest ? p->row[i].pos + 1 : longest;
  }
  PL_TRY(rope_table(c, p, longest));
  return thread_rooms(c, p, longest);
}

bool pl_pass_groups(pl_pass *p, int64_t n, bool whole_texts) {
  const int64_t threads = pl_threads();
  int64_t size = (n + 2 * threads - 1) / (2 * threads);
  size = size < GROUP_MIN ? GROUP_MIN : size > GROUP_MAX ? GROUP_MAX : size;
  int64_t largest = 0;
  int64_t lo = 0;
  p->n_groups = 0;
  p->group[0] = 0;
  for (int64_t i = 1; i <= n; i++) {
    const bool may_end = i == n || !whole_texts || p->row[i].own != p->row[i - 1].own;
    if (i == n || (i - lo >= size && may_end)) {
      largest = i - lo > largest ? i - lo : largest;
      lo = i;
      p->group[++p->n_groups] = i;
    }
  }
  return p->n_groups >= threads && largest <= 2 * size;
}
