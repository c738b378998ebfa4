/* Generation: see generate.h. Rows of a forward pass are described one by one
 * (token, position, whose cache), so that reading prompts and drawing tokens
 * are the same code. */
#include "lm/generate.h"

#include <math.h>
#include <string.h>

#include "base/par.h"
#include "base/rng.h"
#include "lm/rowmath.h"

#define PREFILL_ROWS 512 /* prompt tokens in one forward pass */
#define STREAM_TAG ((uint64_t)0x67 << 56) /* keeps these random numbers apart from all others */

/* Blocks of PL_KV_BLOCK positions, all layers in each. */
typedef struct kv_seq {
  float **block;
  int64_t n_blocks, cap;
} kv_seq;

typedef struct request {
  pl_gen_request r;
  int32_t *prompt;
  kv_seq kv;
  float *hidden; /* [C] after the last prompt token; NULL until the prompt was read */
  int64_t started, ended;
  struct request *next;
} request;

typedef struct sample {
  request *req;  /* NULL once that is over */
  int64_t index; /* the request's */
  int64_t number;
  kv_seq kv;
  int32_t *ids;
  float *logprobs;
  int64_t n, cap, limit;
  pl_finish finish;
  struct sample *next; /* in the list of finished ones */
} sample;

/* One row of a forward pass. */
typedef struct row {
  int32_t token;
  int64_t pos;            /* in the whole text */
  const kv_seq *prefix;   /* read only, n_prefix positions; may have 0 */
  int64_t n_prefix;
  const kv_seq *own;      /* position pos is written here, at pos - n_prefix */
} row;

struct pl_generator {
  const pl_decoder *d;
  int64_t rows, max_rows; /* running at most; rows of one pass at most */
  int32_t *stop;
  int64_t n_stop;
  sample **run; /* [rows], n_run in use, in order of start */
  int64_t n_run;
  request *first, *last; /* all that is not over, in order of arrival */
  sample *done, *done_last, *taken;
  float **free_blocks;
  int64_t n_free, cap_free;
  int64_t waiting; /* samples not started */
  float *rope;     /* [n_rope][D]: cosines, then sines */
  int64_t n_rope;
  row *row;        /* [max_rows] */
  request **owner; /* [max_rows], while prompts are read */
  int64_t *group;  /* [max_rows + 1] bounds, n_groups of them + 1 */
  int64_t n_groups, n_old;
  float *x, *norm, *q, *k, *v, *att, *gate, *up, *heads_in, *logits;
  char *scratch;   /* a thread's room, as many as threads */
  int64_t scratch_each;
  int scratch_threads;
  int32_t *drawn; /* [rows] */
  float *drawn_logprob;
};

/* ---- memory ---- */

static void kv_release(pl_ctx *c, pl_generator *g, kv_seq *s) {
  for (int64_t i = 0; i < s->n_blocks; i++) {
    if (g->n_free < g->cap_free) {
      g->free_blocks[g->n_free++] = s->block[i];
    } else {
      pl_free(c, s->block[i]);
    }
  }
  pl_free(c, s->block);
  *s = (kv_seq){NULL, 0, 0};
}

/* Makes room for n positions. */
static pl_status kv_reserve(pl_ctx *c, pl_generator *g, kv_seq *s, int64_t n) {
  const pl_lm_config *f = &g->d->cfg;
  const int64_t want = (n + PL_KV_BLOCK - 1) / PL_KV_BLOCK;
  if (want > s->cap) {
    const int64_t cap = want > 2 * s->cap ? want : 2 * s->cap;
    float **p = pl_realloc(c, s->block, sizeof *p * (size_t)cap);
    if (p == NULL) {
      return PL_ENOMEM;
    }
    s->block = p;
    s->cap = cap;
  }
  while (s->n_blocks < want) {
    float *b = NULL;
    if (g->n_free > 0) {
      b = g->free_blocks[--g->n_free];
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

static void sample_free(pl_ctx *c, pl_generator *g, sample *s) {
  if (s == NULL) {
    return;
  }
  kv_release(c, g, &s->kv);
  pl_free(c, s->ids);
  pl_free(c, s->logprobs);
  pl_free(c, s);
}

static void request_free(pl_ctx *c, pl_generator *g, request *r) {
  kv_release(c, g, &r->kv);
  pl_free(c, r->prompt);
  pl_free(c, r->hidden);
  pl_free(c, r);
}

void pl_generator_free(pl_ctx *c, pl_generator *g) {
  if (g == NULL) {
    return;
  }
  for (int64_t i = 0; i < g->n_run; i++) {
    sample_free(c, g, g->run[i]);
  }
  sample_free(c, g, g->taken);
  while (g->done != NULL) {
    sample *next = g->done->next;
    sample_free(c, g, g->done);
    g->done = next;
  }
  while (g->first != NULL) {
    request *next = g->first->next;
    request_free(c, g, g->first);
    g->first = next;
  }
  for (int64_t i = 0; i < g->n_free; i++) {
    pl_free(c, g->free_blocks[i]);
  }
  void *parts[] = {g->stop, g->run,  g->free_blocks, g->rope, g->row,      g->x,
                   g->norm, g->q,    g->k,           g->v,    g->att,      g->gate,
                   g->up,   g->heads_in, g->logits,  g->scratch, g->drawn, g->drawn_logprob,
                   g->owner, g->group};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    pl_free(c, parts[i]);
  }
  pl_free(c, g);
}

static pl_status floats(pl_ctx *c, int64_t n, int64_t each, float **out) {
  size_t bytes;
  PL_TRY(pl_size_mul(c, (size_t)n, (size_t)each * sizeof **out, &bytes));
  *out = pl_alloc(c, bytes);
  return *out == NULL ? PL_ENOMEM : PL_OK;
}

static pl_status make_room(pl_ctx *c, pl_generator *g) {
  const pl_lm_config *f = &g->d->cfg;
  const int64_t R = g->max_rows;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  g->run = pl_alloc_zero(c, sizeof(sample *) * (size_t)g->rows);
  g->row = pl_alloc(c, sizeof *g->row * (size_t)R);
  g->cap_free = 4 * g->rows;
  g->free_blocks = pl_alloc(c, sizeof(float *) * (size_t)g->cap_free);
  g->drawn = pl_alloc(c, sizeof *g->drawn * (size_t)g->rows);
  g->owner = pl_alloc(c, sizeof(request *) * (size_t)R);
  g->group = pl_alloc(c, sizeof *g->group * (size_t)(R + 1));
  if (g->run == NULL || g->row == NULL || g->owner == NULL || g->group == NULL ||
      g->free_blocks == NULL || g->drawn == NULL) {
    return PL_ENOMEM;
  }
  PL_TRY(floats(c, g->rows, 1, &g->drawn_logprob));
  PL_TRY(floats(c, R, f->hidden, &g->x));
  PL_TRY(floats(c, R, f->hidden, &g->norm));
  PL_TRY(floats(c, R, Q, &g->q));
  PL_TRY(floats(c, R, K, &g->k));
  PL_TRY(floats(c, R, K, &g->v));
  PL_TRY(floats(c, R, Q, &g->att));
  PL_TRY(floats(c, R, f->ffn, &g->gate));
  PL_TRY(floats(c, R, f->ffn, &g->up));
  PL_TRY(floats(c, g->rows, f->hidden, &g->heads_in));
  return floats(c, g->rows, f->vocab, &g->logits);
}

pl_status pl_generator_new(pl_ctx *c, const pl_decoder *d, int64_t rows, const int32_t *stop_ids,
                           int64_t n_stop, pl_generator **out) {
  if (d->embed->dtype != PL_F32) {
    return pl_fail(c, PL_EINVAL, "generate: the weights are %s; wanted f32",
                   pl_dtypes[d->embed->dtype].name);
  }
  if (rows < 1 || rows > 4096) {
    return pl_fail(c, PL_EINVAL, "generate: batch_size is %lld; wanted 1 to 4096", (long long)rows);
  }
  pl_generator *g = pl_alloc_zero(c, sizeof *g);
  if (g == NULL) {
    return PL_ENOMEM;
  }
  g->d = d;
  g->rows = rows;
  g->max_rows = rows > PREFILL_ROWS ? rows : PREFILL_ROWS;
  pl_status st = make_room(c, g);
  g->stop = st == PL_OK ? pl_alloc(c, sizeof *stop_ids * (size_t)(n_stop + 1)) : NULL;
  if (g->stop == NULL) {
    pl_generator_free(c, g);
    return PL_ENOMEM;
  }
  if (n_stop > 0) {
    memcpy(g->stop, stop_ids, sizeof *stop_ids * (size_t)n_stop);
  }
  g->n_stop = n_stop;
  *out = g;
  return PL_OK;
}

/* ---- requests ---- */

static pl_status request_check(pl_ctx *c, const pl_lm_config *f, const pl_gen_request *r) {
  const long long at = (long long)r->index;
  const pl_sampling *s = &r->sampling;
  if (r->n_prompt < 1) {
    return pl_fail(c, PL_EINVAL, "generate: prompt %lld has no tokens", at);
  }
  if (r->n_prompt >= f->context) {
    return pl_fail(c, PL_EINVAL, "generate: prompt %lld has %lld tokens; the context of %lld "
                   "leaves no room for an answer", at, (long long)r->n_prompt,
                   (long long)f->context);
  }
  for (int64_t i = 0; i < r->n_prompt; i++) {
    if (r->prompt[i] < 0 || r->prompt[i] >= f->vocab) {
      return pl_fail(c, PL_EINVAL, "generate: prompt %lld has token id %d; the vocabulary has ids "
                     "0..%lld", at, r->prompt[i], (long long)f->vocab - 1);
    }
  }
  if (r->n < 1 || r->n >= 1 << 20 || r->max_tokens < 1) {
    return pl_fail(c, PL_EINVAL, "generate: n = %lld, max_tokens = %lld; wanted 1 or more",
                   (long long)r->n, (long long)r->max_tokens);
  }
  if (!(s->temperature >= 0) || !isfinite(s->temperature) || s->top_k < 0 ||
      !(s->top_p > 0 && s->top_p <= 1) || !(s->min_p >= 0 && s->min_p <= 1)) {
    return pl_fail(c, PL_EINVAL, "generate: temperature %g, top_k %lld, top_p %g, min_p %g; wanted "
                   ">= 0, >= 0, above 0 up to 1, 0 to 1", s->temperature, (long long)s->top_k,
                   s->top_p, s->min_p);
  }
  return PL_OK;
}

pl_status pl_generator_add(pl_ctx *c, pl_generator *g, const pl_gen_request *r) {
  PL_TRY(request_check(c, &g->d->cfg, r));
  request *q = pl_alloc_zero(c, sizeof *q);
  if (q == NULL) {
    return PL_ENOMEM;
  }
  q->r = *r;
  q->prompt = pl_alloc(c, sizeof *q->prompt * (size_t)r->n_prompt);
  if (q->prompt == NULL) {
    pl_free(c, q);
    return PL_ENOMEM;
  }
  memcpy(q->prompt, r->prompt, sizeof *q->prompt * (size_t)r->n_prompt);
  q->r.prompt = q->prompt;
  if (g->last == NULL) {
    g->first = q;
  } else {
    g->last->next = q;
  }
  g->last = q;
  g->waiting += r->n;
  return PL_OK;
}

static void request_over(pl_ctx *c, pl_generator *g, request *r) {
  request **at = &g->first;
  request *before = NULL;
  while (*at != r) {
    before = *at;
    at = &(*at)->next;
  }
  *at = r->next;
  if (g->last == r) {
    g->last = before;
  }
  request_free(c, g, r);
}

/* Moves a running sample to the finished ones. Its request may end with it. */
static void finish(pl_ctx *c, pl_generator *g, int64_t i, pl_finish why) {
  sample *s = g->run[i];
  s->finish = why;
  memmove(&g->run[i], &g->run[i + 1], sizeof(sample *) * (size_t)(g->n_run - i - 1));
  g->n_run--;
  kv_release(c, g, &s->kv);
  if (g->done == NULL) {
    g->done = s;
  } else {
    g->done_last->next = s;
  }
  g->done_last = s;
  request *r = s->req;
  r->ended++;
  if (r->ended == r->r.n) {
    s->req = NULL;
    request_over(c, g, r);
  }
}

/* ---- one forward pass of n rows ---- */

static pl_status rope_table(pl_ctx *c, pl_generator *g, int64_t n) {
  const pl_lm_config *f = &g->d->cfg;
  const int64_t half = f->head_dim / 2;
  if (n <= g->n_rope) {
    return PL_OK;
  }
  int64_t want = 2 * n < f->context ? 2 * n : f->context;
  want = want < n ? n : want;
  float *p = pl_realloc(c, g->rope, sizeof *p * (size_t)(want * f->head_dim));
  if (p == NULL) {
    return PL_ENOMEM;
  }
  g->rope = p;
  for (int64_t t = g->n_rope; t < want; t++) {
    for (int64_t i = 0; i < half; i++) {
      const double a = (double)t * pow(f->theta, -2.0 * (double)i / (double)f->head_dim);
      p[t * f->head_dim + i] = (float)cos(a);
      p[t * f->head_dim + half + i] = (float)sin(a);
    }
  }
  g->n_rope = want;
  return PL_OK;
}

/* Work on rows lo..lo+n-1 in one of two ways. Few rows, or one long prompt: all
 * threads share each product, and meet after it. Many rows: they are cut into
 * groups, and a thread takes a group through all layers alone, so that threads
 * meet once a pass. A row's result is the same either way. */
enum { ROWS_A_TASK = 4, GROUP_MIN = 12, GROUP_MAX = 48 };

typedef struct layer_arg {
  pl_generator *g;
  int64_t lo, n, layer;
} layer_arg;

static int64_t offset_of(const pl_lm_config *f, int64_t layer) {
  return layer * pl_kv_layer_floats(f->kv_heads, f->head_dim);
}

static void write_block(void *arg, int64_t block) {
  const layer_arg *a = arg;
  pl_generator *g = a->g;
  const pl_lm_config *f = &g->d->cfg;
  const int64_t D = f->head_dim;
  const int64_t first = a->lo + block * ROWS_A_TASK;
  for (int64_t i = first; i < a->lo + a->n && i < first + ROWS_A_TASK; i++) {
    const row *r = &g->row[i];
    const float *cs = g->rope + r->pos * D;
    float *k = g->k + i * f->kv_heads * D;
    pl_row_rope(f->heads, D, g->q + i * f->heads * D, cs);
    pl_row_rope(f->kv_heads, D, k, cs);
    const int64_t at = r->pos - r->n_prefix;
    pl_kv_write(f->kv_heads, D, k, g->v + i * f->kv_heads * D, at % PL_KV_BLOCK,
                r->own->block[at / PL_KV_BLOCK] + offset_of(f, a->layer));
  }
}

static void attend_block(void *arg, int64_t block) {
  const layer_arg *a = arg;
  pl_generator *g = a->g;
  const pl_lm_config *f = &g->d->cfg;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t first = a->lo + block * ROWS_A_TASK;
  float *scratch = (float *)(void *)(g->scratch + pl_thread_id() * g->scratch_each);
  for (int64_t i = first; i < a->lo + a->n && i < first + ROWS_A_TASK; i++) {
    const row *r = &g->row[i];
    pl_row_attention(f->heads, f->kv_heads, f->head_dim, g->q + i * Q,
                     r->n_prefix > 0 ? r->prefix->block : NULL, r->n_prefix, r->own->block,
                     r->pos - r->n_prefix + 1, offset_of(f, a->layer), scratch, g->att + i * Q);
  }
}

/* A room for each thread: attention scores, or what sampling needs. */
static pl_status thread_rooms(pl_ctx *c, pl_generator *g, int64_t positions) {
  const int threads = pl_threads();
  const int64_t scores = (positions + 2 * PL_KV_BLOCK) * (int64_t)sizeof(float);
  const int64_t draw = pl_sample_scratch(g->d->cfg.vocab);
  const int64_t each = ((scores > draw ? scores : draw) + 63) / 64 * 64;
  if (each <= g->scratch_each && threads <= g->scratch_threads) {
    return PL_OK;
  }
  pl_free(c, g->scratch);
  g->scratch_each = each > 2 * g->scratch_each ? each : 2 * g->scratch_each;
  g->scratch_threads = threads;
  g->scratch = pl_alloc(c, (size_t)g->scratch_each * (size_t)threads);
  return g->scratch == NULL ? PL_ENOMEM : PL_OK;
}

static void layer_forward(pl_generator *g, int64_t lo, int64_t n, int64_t l) {
  const pl_lm_config *f = &g->d->cfg;
  const pl_layer *y = &g->d->layers[l];
  const int64_t C = f->hidden;
  const int64_t F = f->ffn;
  const int64_t Q = f->heads * f->head_dim;
  const int64_t K = f->kv_heads * f->head_dim;
  float *x = g->x + lo * C;
  float *norm = g->norm + lo * C;
  float *gate = g->gate + lo * F;
  float *up = g->up + lo * F;
  layer_arg a = {.g = g, .lo = lo, .n = n, .layer = l};
  const int64_t tasks = (n + ROWS_A_TASK - 1) / ROWS_A_TASK;

  pl_row_norm(n, C, x, pl_f32(y->norm1), f->eps, norm);
  const pl_row_job qkv[] = {{norm, pl_f32(y->q), g->q + lo * Q, Q, C, Q, false},
                            {norm, pl_f32(y->k), g->k + lo * K, K, C, K, false},
                            {norm, pl_f32(y->v), g->v + lo * K, K, C, K, false}};
  pl_row_matmul(n, qkv, 3);
  pl_parallel(tasks, write_block, &a); /* all keys are in place before anyone looks */
  pl_parallel(tasks, attend_block, &a);
  const pl_row_job out = {g->att + lo * Q, pl_f32(y->o), x, C, Q, C, true};
  pl_row_matmul(n, &out, 1);

  pl_row_norm(n, C, x, pl_f32(y->norm2), f->eps, norm);
  const pl_row_job gate_up[] = {{norm, pl_f32(y->gate), gate, F, C, F, false},
                                {norm, pl_f32(y->up), up, F, C, F, false}};
  pl_row_matmul(n, gate_up, 2);
  pl_row_silu_mul(n, F, gate, up);
  const pl_row_job down = {gate, pl_f32(y->down), x, C, F, C, true};
  pl_row_matmul(n, &down, 1);
}

/* Embeds rows lo..lo+n-1 and takes them through all layers: g->x, before the last norm. */
static void rows_forward(pl_generator *g, int64_t lo, int64_t n) {
  const int64_t C = g->d->cfg.hidden;
  for (int64_t i = lo; i < lo + n; i++) {
    memcpy(g->x + i * C, pl_f32(g->d->embed) + g->row[i].token * C, sizeof *g->x * (size_t)C);
  }
  for (int64_t l = 0; l < g->d->cfg.n_layers; l++) {
    layer_forward(g, lo, n, l);
  }
}

/* What a pass over g->row[0..n) needs before it may run. */
static pl_status prepare(pl_ctx *c, pl_generator *g, int64_t n) {
  int64_t longest = 0;
  for (int64_t i = 0; i < n; i++) {
    longest = g->row[i].pos + 1 > longest ? g->row[i].pos + 1 : longest;
  }
  PL_TRY(rope_table(c, g, longest));
  return thread_rooms(c, g, longest);
}

/* Cuts rows 0..n-1 into groups of about equal size, g->group[0..n_groups] their
 * bounds; a group ends only where may_end says so. False: work on all together. */
static bool make_groups(pl_generator *g, int64_t n,
                        bool (*may_end)(const pl_generator *, int64_t)) {
  const int64_t threads = pl_threads();
  int64_t size = (n + 2 * threads - 1) / (2 * threads);
  size = size < GROUP_MIN ? GROUP_MIN : size > GROUP_MAX ? GROUP_MAX : size;
  int64_t largest = 0;
  int64_t lo = 0;
  g->n_groups = 0;
  g->group[0] = 0;
  for (int64_t i = 1; i <= n; i++) {
    if (i == n || (i - lo >= size && may_end(g, i))) {
      largest = i - lo > largest ? i - lo : largest;
      lo = i;
      g->group[++g->n_groups] = i;
    }
  }
  return g->n_groups >= threads && largest <= 2 * size;
}

/* ---- reading prompts ---- */

static bool prompt_ends(const pl_generator *g, int64_t i) {
  return g->row[i].own != g->row[i - 1].own;
}

/* Rows lo..lo+n-1: the layers, and the hidden state of each prompt that ends here. */
static void prefill_rows(pl_generator *g, int64_t lo, int64_t n) {
  const int64_t C = g->d->cfg.hidden;
  rows_forward(g, lo, n);
  for (int64_t i = lo; i < lo + n; i++) {
    if (g->owner[i] != NULL) {
      pl_row_norm(1, C, g->x + i * C, pl_f32(g->d->norm), g->d->cfg.eps, g->owner[i]->hidden);
    }
  }
}

static void prefill_group(void *arg, int64_t k) {
  pl_generator *g = arg;
  prefill_rows(g, g->group[k], g->group[k + 1] - g->group[k]);
}

/* Runs the n rows gathered; owner[i] is the request whose last token row i is, or NULL. */
static pl_status prefill_pass(pl_ctx *c, pl_generator *g, int64_t n) {
  PL_TRY(pl_check_interrupt(c));
  PL_TRY(prepare(c, g, n));
  for (int64_t i = 0; i < n; i++) {
    if (g->owner[i] != NULL) {
      PL_TRY(floats(c, g->d->cfg.hidden, 1, &g->owner[i]->hidden));
    }
  }
  if (make_groups(g, n, prompt_ends)) {
    pl_parallel(g->n_groups, prefill_group, g);
  } else {
    prefill_rows(g, 0, n);
  }
  return PL_OK;
}

/* Reads the prompts of list[0..n_list), packed into passes of PREFILL_ROWS. */
static pl_status prefill(pl_ctx *c, pl_generator *g, request *const *list, int64_t n_list) {
  int64_t n = 0;
  for (int64_t j = 0; j < n_list; j++) {
    request *r = list[j];
    PL_TRY(kv_reserve(c, g, &r->kv, r->r.n_prompt));
    for (int64_t t = 0; t < r->r.n_prompt; t++) {
      g->row[n] = (row){.token = r->prompt[t], .pos = t, .own = &r->kv};
      g->owner[n++] = t == r->r.n_prompt - 1 ? r : NULL;
      if (n == PREFILL_ROWS) {
        PL_TRY(prefill_pass(c, g, n));
        n = 0;
      }
    }
  }
  return n > 0 ? prefill_pass(c, g, n) : PL_OK;
}

static pl_status start_sample(pl_ctx *c, pl_generator *g, request *r) {
  sample *s = pl_alloc_zero(c, sizeof *s);
  if (s == NULL) {
    return PL_ENOMEM;
  }
  const int64_t room = g->d->cfg.context - r->r.n_prompt;
  s->req = r;
  s->index = r->r.index;
  s->number = r->started++;
  s->limit = r->r.max_tokens < room ? r->r.max_tokens : room;
  g->run[g->n_run++] = s;
  g->waiting--;
  return PL_OK;
}

/* Fills the free places; reads the prompts that come up for the first time. */
static pl_status admit(pl_ctx *c, pl_generator *g) {
  if (g->waiting == 0 || g->n_run == g->rows) {
    return PL_OK;
  }
  request **fresh = pl_alloc(c, sizeof *fresh * (size_t)g->rows);
  if (fresh == NULL) {
    return PL_ENOMEM;
  }
  int64_t n_fresh = 0;
  pl_status st = PL_OK;
  for (request *r = g->first; r != NULL && g->n_run < g->rows && st == PL_OK; r = r->next) {
    if (r->started == 0) {
      fresh[n_fresh++] = r;
    }
    while (r->started < r->r.n && g->n_run < g->rows && st == PL_OK) {
      st = start_sample(c, g, r);
    }
  }
  if (st == PL_OK) {
    st = prefill(c, g, fresh, n_fresh);
  }
  pl_free(c, fresh);
  return st;
}

/* ---- drawing ---- */

/* The id and its log-probability of running row i, from its logits. */
static void draw(pl_generator *g, int64_t i) {
  const int64_t V = g->d->cfg.vocab;
  const sample *s = g->run[i];
  const pl_gen_request *r = &s->req->r;
  const uint64_t stream = STREAM_TAG | (uint64_t)r->index << 20 | (uint64_t)s->number;
  const double u = pl_uniform(r->seed, stream, (uint64_t)s->n);
  double logprob = 0;
  g->drawn[i] = pl_sample_token(V, g->logits + i * V, &r->sampling, u,
                                g->scratch + pl_thread_id() * g->scratch_each, &logprob);
  g->drawn_logprob[i] = (float)logprob;
}

typedef struct draw_arg {
  pl_generator *g;
  int64_t lo;
} draw_arg;

static void draw_block(void *arg, int64_t i) {
  const draw_arg *a = arg;
  draw(a->g, a->lo + i);
}

/* One token for running rows lo..lo+n-1. The first g->n_old rows have drawn
 * before and read their last token now; the others begin at their prompt's end. */
static void draw_rows(pl_generator *g, int64_t lo, int64_t n) {
  const pl_lm_config *f = &g->d->cfg;
  const int64_t C = f->hidden;
  const int64_t old = g->n_old < lo ? 0 : g->n_old - lo < n ? g->n_old - lo : n;
  float *in = g->heads_in + lo * C;
  if (old > 0) {
    rows_forward(g, lo, old);
    pl_row_norm(old, C, g->x + lo * C, pl_f32(g->d->norm), f->eps, in);
  }
  for (int64_t i = old; i < n; i++) {
    memcpy(in + i * C, g->run[lo + i]->req->hidden, sizeof *in * (size_t)C);
  }
  const pl_row_job head = {in, pl_f32(g->d->head), g->logits + lo * f->vocab, f->vocab, C,
                           f->vocab, false};
  pl_row_matmul(n, &head, 1);
  draw_arg a = {g, lo};
  pl_parallel(n, draw_block, &a);
}

static void draw_group(void *arg, int64_t k) {
  pl_generator *g = arg;
  draw_rows(g, g->group[k], g->group[k + 1] - g->group[k]);
}

static bool anywhere(const pl_generator *g, int64_t i) {
  (void)g;
  (void)i;
  return true;
}

/* Draws a token for every running row into g->drawn. */
static pl_status draw_all(pl_ctx *c, pl_generator *g) {
  g->n_old = 0;
  while (g->n_old < g->n_run && g->run[g->n_old]->n > 0) { /* those that began earlier come first */
    sample *s = g->run[g->n_old];
    PL_TRY(kv_reserve(c, g, &s->kv, s->n));
    g->row[g->n_old++] = (row){.token = s->ids[s->n - 1],
                               .pos = s->req->r.n_prompt + s->n - 1,
                               .prefix = &s->req->kv,
                               .n_prefix = s->req->r.n_prompt,
                               .own = &s->kv};
  }
  PL_TRY(prepare(c, g, g->n_old));
  if (make_groups(g, g->n_run, anywhere)) {
    pl_parallel(g->n_groups, draw_group, g);
  } else {
    draw_rows(g, 0, g->n_run);
  }
  return PL_OK;
}

static pl_status append(pl_ctx *c, sample *s, int32_t id, float logprob) {
  if (s->n == s->cap) {
    const int64_t cap = s->cap == 0 ? 16 : 2 * s->cap;
    int32_t *ids = pl_realloc(c, s->ids, sizeof *ids * (size_t)cap);
    if (ids == NULL) {
      return PL_ENOMEM;
    }
    s->ids = ids;
    float *lp = pl_realloc(c, s->logprobs, sizeof *lp * (size_t)cap);
    if (lp == NULL) {
      return PL_ENOMEM;
    }
    s->logprobs = lp;
    s->cap = cap;
  }
  s->ids[s->n] = id;
  s->logprobs[s->n] = logprob;
  s->n++;
  return PL_OK;
}

static bool stops(const pl_generator *g, int32_t id) {
  for (int64_t i = 0; i < g->n_stop; i++) {
    if (g->stop[i] == id) {
      return true;
    }
  }
  return false;
}

pl_status pl_generator_step(pl_ctx *c, pl_generator *g, int64_t *active, int64_t *tokens) {
  PL_TRY(pl_check_interrupt(c));
  PL_TRY(admit(c, g));
  const int64_t n = g->n_run;
  if (n > 0) {
    PL_TRY(draw_all(c, g));
  }
  for (int64_t i = 0; i < n; i++) {
    if (g->drawn[i] < 0) {
      return pl_fail(c, PL_EINVAL, "generate: the model gives NaN or infinite logits for prompt "
                     "%lld; its weights are damaged or its training diverged",
                     (long long)g->run[i]->req->r.index);
    }
    PL_TRY(append(c, g->run[i], g->drawn[i], g->drawn_logprob[i]));
  }
  for (int64_t i = n - 1; i >= 0; i--) {
    const sample *s = g->run[i];
    if (stops(g, g->drawn[i])) {
      finish(c, g, i, PL_FINISH_STOP);
    } else if (s->n >= s->limit) {
      finish(c, g, i, PL_FINISH_LENGTH);
    }
  }
  *active = g->n_run + g->waiting;
  if (tokens != NULL) {
    *tokens = n;
  }
  return PL_OK;
}

static void describe(const sample *s, pl_gen_sample *out) {
  *out = (pl_gen_sample){s->index, s->number, s->n, s->ids, s->logprobs, s->finish};
}

bool pl_generator_take(pl_ctx *c, pl_generator *g, pl_gen_sample *out) {
  sample_free(c, g, g->taken);
  g->taken = g->done;
  if (g->taken == NULL) {
    return false;
  }
  g->done = g->taken->next;
  describe(g->taken, out);
  return true;
}

bool pl_generator_look(const pl_generator *g, int64_t i, pl_gen_sample *out) {
  if (i < 0 || i >= g->n_run) {
    return false;
  }
  describe(g->run[i], out);
  return true;
}

void pl_generator_stop(pl_ctx *c, pl_generator *g, int64_t i) {
  if (i >= 0 && i < g->n_run) {
    finish(c, g, i, PL_FINISH_STOP);
  }
}
