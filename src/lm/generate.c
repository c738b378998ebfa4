/* Generation: see generate.h. The forward pass itself is forward.c. */
#include "lm/generate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/profile.h"
#include "base/rng.h"
#include "lm/forward.h"

#define PREFILL_ROWS 512 /* prompt tokens in one forward pass */
/* Rows take turns where the weights stay in the processor's last cache: the keys and values of
 * so many rows then stay there too, for so many tokens. Other weights come from memory at each
 * step, and are read for as many rows as there are. */
#define TURN_ROWS 16
#define TURN_TOKENS 16
#define TURN_WEIGHTS ((size_t)32 << 20)
#define STREAM_TAG ((uint64_t)0x67 << 56) /* keeps these random numbers apart from all others */

typedef struct request {
  pl_gen_request r;
  int32_t *prompt;
  pl_kv_seq kv;
  float *hidden; /* [C] after the last prompt token; NULL until the prompt was read */
  int64_t started, ended;
  struct request *next;
} request;

typedef struct sample {
  request *req;  /* NULL once that is over */
  int64_t index; /* the request's */
  int64_t number;
  pl_kv_seq kv;
  int32_t *ids;
  float *logprobs;
  pl_candidate *top; /* [cap,n_top] or NULL */
  int64_t n, cap, limit, n_top;
  pl_finish finish;
  struct sample *next; /* in the list of finished ones */
} sample;

struct pl_generator {
  const pl_decoder *d;
  pl_pack *pack; /* a reference */
  int64_t rows; /* running at most */
  int32_t *stop;
  int64_t n_stop;
  sample **run; /* [rows], n_run in use, in order of start */
  int64_t n_run;
  int64_t at, n_now; /* the rows whose turn it is */
  int64_t turn;      /* tokens left of it */
  bool failed;       /* in the middle of a step: nothing is whole any more */
  request *first, *last; /* all that is not over, in order of arrival */
  sample *done, *done_last, *taken;
  int64_t waiting; /* samples not started */
  pl_pass pass;
  request **owner; /* [pass.max_rows], while prompts are read */
  int64_t n_old;            /* of these rows, how many have drawn before: the first ones */
  int32_t *drawn;           /* [n_now] */
  float *drawn_logprob;
  pl_candidate *drawn_top; /* [n_now,PL_GEN_TOP_MAX], the logit a log-probability */
};

/* ---- memory ---- */

static void sample_free(pl_ctx *c, pl_generator *g, sample *s) {
  if (s == NULL) {
    return;
  }
  pl_kv_release(c, &g->pass, &s->kv);
  pl_free(c, s->ids);
  pl_free(c, s->logprobs);
  pl_free(c, s->top);
  pl_free(c, s);
}

static void request_free(pl_ctx *c, pl_generator *g, request *r) {
  pl_kv_release(c, &g->pass, &r->kv);
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
  pl_pass_close(c, &g->pass);
  pl_pack_drop(c, g->pack);
  void *parts[] = {g->stop, g->run, g->owner, g->drawn, g->drawn_logprob, g->drawn_top};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    pl_free(c, parts[i]);
  }
  pl_free(c, g);
}

static pl_status make_room(pl_ctx *c, pl_generator *g) {
  const pl_lm_config *f = &g->d->cfg;
  const int64_t max_rows = g->rows > PREFILL_ROWS ? g->rows : PREFILL_ROWS;
  PL_TRY(pl_pass_open(c, g->d, g->pack, max_rows, 4 * g->rows, pl_sample_scratch(f->vocab),
                      &g->pass));
  g->run = pl_alloc_zero(c, sizeof(sample *) * (size_t)g->rows);
  g->drawn = pl_alloc(c, sizeof *g->drawn * (size_t)g->rows);
  g->drawn_top = pl_alloc(c, sizeof *g->drawn_top * (size_t)g->rows * PL_GEN_TOP_MAX);
  g->owner = pl_alloc(c, sizeof(request *) * (size_t)max_rows);
  if (g->run == NULL || g->owner == NULL || g->drawn == NULL || g->drawn_top == NULL) {
    return PL_ENOMEM;
  }
  return pl_floats(c, g->rows, 1, &g->drawn_logprob);
}

pl_status pl_generator_new(pl_ctx *c, pl_decoder *d, pl_pack_kind kind, int64_t rows,
                           const int32_t *stop_ids, int64_t n_stop, pl_generator **out) {
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
  pl_status st = pl_pack_of(c, d, kind, &g->pack);
  if (st == PL_OK) {
    st = make_room(c, g);
  }
  if (st == PL_OK) {
    g->stop = pl_alloc(c, sizeof *stop_ids * (size_t)(n_stop + 1));
    st = g->stop == NULL ? PL_ENOMEM : PL_OK;
  }
  if (st != PL_OK) {
    pl_generator_free(c, g);
    return st;
  }
  if (n_stop > 0) {
    memcpy(g->stop, stop_ids, sizeof *stop_ids * (size_t)n_stop);
  }
  g->n_stop = n_stop;
  *out = g;
  return PL_OK;
}

/* ---- requests ---- */

static pl_status check_ids(pl_ctx *c, const pl_lm_config *f, const char *where, const int32_t *ids,
                           int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if (ids[i] < 0 || ids[i] >= f->vocab) {
      return pl_fail(c, PL_EINVAL, "%s has token id %d; the vocabulary has ids 0..%lld", where,
                     ids[i], (long long)f->vocab - 1);
    }
  }
  return PL_OK;
}

static pl_status check_top(pl_ctx *c, const pl_lm_config *f, int64_t top) {
  if (top < 0 || top > PL_GEN_TOP_MAX || top > f->vocab) {
    return pl_fail(c, PL_EINVAL, "generate: top is %lld; wanted 0 to %d, at most the vocabulary",
                   (long long)top, PL_GEN_TOP_MAX);
  }
  return PL_OK;
}

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
  char where[64];
  snprintf(where, sizeof where, "generate: prompt %lld", at);
  PL_TRY(check_ids(c, f, where, r->prompt, r->n_prompt));
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
  return check_top(c, f, r->top);
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

static void done_add(pl_generator *g, sample *s) {
  s->next = NULL;
  if (g->done == NULL) {
    g->done = s;
  } else {
    g->done_last->next = s;
  }
  g->done_last = s;
}

/* Row i is about to go; those after it move up, and so does the turn. */
static void leaves(pl_generator *g, int64_t i) {
  if (i < g->at) {
    g->at--;
  } else if (i < g->at + g->n_now) {
    g->n_now--;
  }
}

/* Moves a running sample to the finished ones. Its request may end with it. */
static void finish(pl_ctx *c, pl_generator *g, int64_t i, pl_finish why) {
  sample *s = g->run[i];
  s->finish = why;
  leaves(g, i);
  memmove(&g->run[i], &g->run[i + 1], sizeof(sample *) * (size_t)(g->n_run - i - 1));
  g->n_run--;
  pl_kv_release(c, &g->pass, &s->kv);
  done_add(g, s);
  request *r = s->req;
  r->ended++;
  if (r->ended == r->r.n) {
    s->req = NULL;
    request_over(c, g, r);
  }
}

/* ---- reading prompts ---- */

typedef struct pass_arg {
  pl_generator *g;
  int64_t n;
} pass_arg;

/* The layers, and the hidden state of each prompt that ends in this pass. */
static void prefill_rows(void *arg, const pl_member *me) {
  const pass_arg *a = arg;
  pl_generator *g = a->g;
  pl_pass_forward(&g->pass, me, a->n);
  for (int64_t i = me->rank; i < a->n; i += me->size) {
    if (g->owner[i] != NULL) {
      pl_pass_last_norm(&g->pass, g->pass.x + i * g->d->cfg.hidden, g->owner[i]->hidden);
    }
  }
}

/* Runs the n rows gathered; owner[i] is the request whose last token row i is, or NULL. */
static pl_status prefill_pass(pl_ctx *c, pl_generator *g, int64_t n) {
  PL_TRY(pl_check_interrupt(c));
  PL_TRY(pl_pass_prepare(c, &g->pass, n));
  for (int64_t i = 0; i < n; i++) {
    if (g->owner[i] != NULL) {
      PL_TRY(pl_floats(c, g->d->cfg.hidden, 1, &g->owner[i]->hidden));
    }
  }
  pass_arg a = {g, n};
  pl_team_run(prefill_rows, &a);
  return PL_OK;
}

/* Reads the prompts of list[0..n_list), packed into passes of PREFILL_ROWS. */
static pl_status prefill(pl_ctx *c, pl_generator *g, request *const *list, int64_t n_list) {
  int64_t n = 0;
  for (int64_t j = 0; j < n_list; j++) {
    request *r = list[j];
    PL_TRY(pl_kv_reserve(c, &g->pass, &r->kv, r->r.n_prompt));
    for (int64_t t = 0; t < r->r.n_prompt; t++) {
      g->pass.row[n] = (pl_pass_row){.token = r->prompt[t], .pos = t, .own = &r->kv};
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
  s->n_top = r->r.top;
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

/* Whose turn it is: everybody's, or that of some of the rows. What has not drawn yet comes after
 * all that has, as it began later. */
static void next_turn(pl_generator *g) {
  const bool in_turns = g->n_run > TURN_ROWS && g->pack->bytes <= TURN_WEIGHTS;
  if (!in_turns) {
    g->at = 0;
    g->n_now = g->n_run;
    g->turn = 0;
    return;
  }
  if (g->turn == 0) {
    g->at += g->n_now;
    g->turn = TURN_TOKENS;
  }
  g->turn--;
  g->at = g->at < g->n_run ? g->at : 0;
  const int64_t groups = (g->n_run + TURN_ROWS - 1) / TURN_ROWS;
  const int64_t each = (g->n_run + groups - 1) / groups;
  g->n_now = each < g->n_run - g->at ? each : g->n_run - g->at;
}

/* The id and its log-probability of row i of those whose turn it is, from its logits and their
 * chunks. */
static void draw(pl_generator *g, int64_t i, const float *logits, pl_chunk *chunks) {
  const int64_t V = g->d->cfg.vocab;
  const sample *s = g->run[g->at + i];
  const pl_gen_request *r = &s->req->r;
  const int64_t key = r->key == 0 ? r->index : r->key;
  const uint64_t stream = STREAM_TAG | (uint64_t)key << 20 | (uint64_t)s->number;
  const double u = pl_uniform(r->seed, stream, (uint64_t)s->n);
  double logprob = 0;
  const int32_t id =
      pl_sample_token(V, logits, chunks, &r->sampling, u, pl_pass_room(&g->pass), &logprob);
  g->drawn[i] = id;
  g->drawn_logprob[i] = (float)logprob;
  if (r->top > 0 && id >= 0) {
    pl_sample_top(V, logits, logits[id] - logprob, r->top, g->drawn_top + i * PL_GEN_TOP_MAX);
  }
}

/* One token for every row whose turn it is. The first g->n_old of them have drawn before and
 * read their last token now; the others begin at their prompt's end. */
static void draw_rows(void *arg, const pl_member *me) {
  pl_generator *g = arg;
  pl_pass *p = &g->pass;
  const int64_t C = g->d->cfg.hidden;
  const int64_t V = g->d->cfg.vocab;
  if (g->n_old > 0) {
    pl_pass_forward(p, me, g->n_old);
  }
  for (int64_t lo = 0; lo < g->n_now; lo += PL_HEAD_ROWS) {
    const int64_t n = g->n_now - lo < PL_HEAD_ROWS ? g->n_now - lo : PL_HEAD_ROWS;
    for (int64_t i = me->rank; i < n; i += me->size) {
      const request *r = g->run[g->at + lo + i]->req;
      const float *h = r->hidden;
      if (lo + i < g->n_old) {
        float *own = pl_pass_room(p);
        pl_pass_last_norm(p, p->x + (lo + i) * C, own);
        h = own;
      }
      pl_pass_head_in(p, i, h, pl_sample_inverse(&r->r.sampling));
    }
    pl_pass_head(p, me, n);
    for (int64_t i = pl_team_take(me); i < n; i = pl_team_take(me)) {
      draw(g, lo + i, p->logits + i * V, p->chunks + i * pl_chunks(V));
    }
    pl_team_meet(me); /* the logits are free again */
  }
}

/* Draws a token for every row whose turn it is into g->drawn. */
static pl_status draw_all(pl_ctx *c, pl_generator *g) {
  g->n_old = 0;
  while (g->n_old < g->n_now && g->run[g->at + g->n_old]->n > 0) {
    sample *s = g->run[g->at + g->n_old];
    PL_TRY(pl_kv_reserve(c, &g->pass, &s->kv, s->n));
    g->pass.row[g->n_old++] = (pl_pass_row){.token = s->ids[s->n - 1],
                                            .pos = s->req->r.n_prompt + s->n - 1,
                                            .prefix = &s->req->kv,
                                            .n_prefix = s->req->r.n_prompt,
                                            .own = &s->kv};
  }
  PL_TRY(pl_pass_prepare(c, &g->pass, g->n_old));
  pl_team_run(draw_rows, g);
  return PL_OK;
}

/* Adds what was drawn for row i of those whose turn it is. */
static pl_status append(pl_ctx *c, pl_generator *g, int64_t i) {
  sample *s = g->run[g->at + i];
  const int64_t top = s->n_top;
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
    if (top > 0) {
      pl_candidate *t = pl_realloc(c, s->top, sizeof *t * (size_t)(cap * top));
      if (t == NULL) {
        return PL_ENOMEM;
      }
      s->top = t;
    }
    s->cap = cap;
  }
  s->ids[s->n] = g->drawn[i];
  s->logprobs[s->n] = g->drawn_logprob[i];
  if (top > 0) {
    memcpy(s->top + s->n * top, g->drawn_top + i * PL_GEN_TOP_MAX, sizeof *s->top * (size_t)top);
  }
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

static pl_status step(pl_ctx *c, pl_generator *g, int64_t *active, int64_t *tokens) {
  pl_profile_enter(c, "prompts", false);
  pl_status st = admit(c, g);
  pl_profile_leave(c, (pl_work){0});
  next_turn(g);
  const int64_t n = g->n_now;
  if (st == PL_OK && n > 0) {
    pl_profile_enter(c, "tokens", false);
    st = draw_all(c, g);
    pl_profile_leave(c, (pl_work){0});
  }
  PL_TRY(st);
  for (int64_t i = 0; i < n; i++) {
    if (g->drawn[i] < 0) {
      return pl_fail(c, PL_EINVAL, "generate: the model gives NaN or infinite logits for prompt "
                     "%lld; its weights are damaged or its training diverged",
                     (long long)g->run[g->at + i]->req->r.index);
    }
    PL_TRY(append(c, g, i));
  }
  for (int64_t i = n - 1; i >= 0; i--) {
    const sample *s = g->run[g->at + i];
    if (stops(g, g->drawn[i])) {
      finish(c, g, g->at + i, PL_FINISH_STOP);
    } else if (s->n >= s->limit) {
      finish(c, g, g->at + i, PL_FINISH_LENGTH);
    }
  }
  *active = g->n_run + g->waiting;
  if (tokens != NULL) {
    *tokens = n;
  }
  return PL_OK;
}

pl_status pl_generator_step(pl_ctx *c, pl_generator *g, int64_t *active, int64_t *tokens) {
  PL_TRY(pl_check_interrupt(c));
  if (g->failed) {
    return pl_fail(c, PL_EINVAL, "generate: a step of this generator has failed; make a new one");
  }
  const pl_status st = step(c, g, active, tokens);
  g->failed = st != PL_OK;
  return st;
}

void pl_generator_drew(const pl_generator *g, int64_t *first, int64_t *n) {
  *first = g->at;
  *n = g->n_now;
}

static void describe(const sample *s, pl_gen_sample *out) {
  *out = (pl_gen_sample){s->index, s->number, s->n, s->ids, s->logprobs, s->n_top, s->top,
                         s->finish};
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

int64_t pl_generator_cancel(pl_ctx *c, pl_generator *g, int64_t index) {
  int64_t dropped = 0;
  int64_t kept = 0;
  for (int64_t i = 0; i < g->n_run; i++) {
    if (g->run[i]->index == index) {
      leaves(g, kept);
      sample_free(c, g, g->run[i]);
      dropped++;
    } else {
      g->run[kept++] = g->run[i];
    }
  }
  g->n_run = kept;
  sample *list = g->done;
  g->done = NULL;
  g->done_last = NULL;
  while (list != NULL) {
    sample *next = list->next;
    if (list->index == index) {
      sample_free(c, g, list);
    } else {
      done_add(g, list);
    }
    list = next;
  }
  for (request *r = g->first; r != NULL;) {
    request *next = r->next;
    if (r->r.index == index) {
      dropped += r->r.n - r->started;
      g->waiting -= r->r.n - r->started;
      request_over(c, g, r);
    }
    r = next;
  }
  return dropped;
}

/* ---- scoring a text ---- */

typedef struct score_arg {
  pl_generator *g;
  int64_t n, top;      /* rows of the pass */
  const int32_t *next; /* [n] the token that follows each row */
  float *logprobs;
  pl_candidate *tops;
} score_arg;

/* Rows 0..n-1 through the layers, and what they say about the tokens after them. */
static void score_rows(void *arg, const pl_member *me) {
  const score_arg *a = arg;
  pl_generator *g = a->g;
  pl_pass *p = &g->pass;
  const int64_t V = g->d->cfg.vocab;
  pl_pass_forward(p, me, a->n);
  for (int64_t lo = 0; lo < a->n; lo += PL_HEAD_ROWS) {
    const int64_t m = a->n - lo < PL_HEAD_ROWS ? a->n - lo : PL_HEAD_ROWS;
    for (int64_t i = me->rank; i < m; i += me->size) {
      float *h = pl_pass_room(p);
      pl_pass_last_norm(p, p->x + (lo + i) * g->d->cfg.hidden, h);
      pl_pass_head_in(p, i, h, 1);
    }
    pl_pass_head(p, me, m);
    for (int64_t i = me->rank; i < m; i += me->size) {
      const float *logits = p->logits + i * V;
      const double z = pl_sample_logsumexp(V, p->chunks + i * pl_chunks(V));
      a->logprobs[lo + i] = (float)(logits[a->next[lo + i]] - z);
      if (a->top > 0) {
        pl_sample_top(V, logits, z, a->top, a->tops + (lo + i) * a->top);
      }
    }
    pl_team_meet(me);
  }
}

pl_status pl_generator_score(pl_ctx *c, pl_generator *g, const int32_t *ids, int64_t n, int64_t top,
                             float *logprobs, pl_candidate *tops) {
  const pl_lm_config *f = &g->d->cfg;
  if (n < 2 || n > f->context) {
    return pl_fail(c, PL_EINVAL, "score: %lld tokens; wanted 2 to %lld (the context)",
                   (long long)n, (long long)f->context);
  }
  PL_TRY(check_top(c, f, top));
  PL_TRY(check_ids(c, f, "score: the text", ids, n));
  pl_kv_seq kv = {NULL, 0, 0};
  pl_status st = pl_kv_reserve(c, &g->pass, &kv, n - 1);
  for (int64_t lo = 0; lo < n - 1 && st == PL_OK; lo += PREFILL_ROWS) {
    const int64_t m = n - 1 - lo < PREFILL_ROWS ? n - 1 - lo : PREFILL_ROWS;
    for (int64_t t = 0; t < m; t++) {
      g->pass.row[t] = (pl_pass_row){.token = ids[lo + t], .pos = lo + t, .own = &kv};
    }
    st = pl_check_interrupt(c);
    if (st == PL_OK) {
      st = pl_pass_prepare(c, &g->pass, m);
    }
    if (st == PL_OK) {
      score_arg a = {g, m, top, ids + lo + 1, logprobs + lo, tops + lo * top};
      pl_team_run(score_rows, &a);
    }
  }
  pl_kv_release(c, &g->pass, &kv);
  for (int64_t i = 0; i < n - 1 && st == PL_OK; i++) {
    if (!isfinite(logprobs[i]) && !(logprobs[i] < 0)) {
      st = pl_fail(c, PL_EINVAL, "score: the model gives NaN or infinite logits; its weights are "
                   "damaged or its training diverged");
    }
  }
  return st;
}
