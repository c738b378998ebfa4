/* The forward pass of generation: rows, each one token of some text, go through
 * all layers together. A row says where its text's keys and values are kept, so
 * reading prompts, drawing tokens and scoring are the same code.
 *
 * Order of calls: open; then, again and again: fill row[0..n), pl_pass_prepare, and in a
 * team (base/par.h) pl_pass_forward, pl_pass_head_in, pl_pass_head; close. The members share
 * columns of the products and rows of the rest; a row's result is a function of that row and
 * its text alone, not of the rows beside it nor of the size of the team.
 * Must not: draw tokens or know requests. */
#ifndef PL_LM_FORWARD_H
#define PL_LM_FORWARD_H
#include "base/par.h"
#include "lm/pack.h"
#include "lm/sample.h"

#define PL_HEAD_ROWS 64 /* rows whose logits exist at a time */

/* Keys and values of one text: blocks of PL_KV_BLOCK positions, all layers in each. */
typedef struct pl_kv_seq {
  char **block;
  int64_t n_blocks, cap;
} pl_kv_seq;

typedef struct pl_pass_row {
  int32_t token;
  int64_t pos;             /* in the whole text */
  const pl_kv_seq *prefix; /* read only, n_prefix positions; may have 0 */
  int64_t n_prefix;
  const pl_kv_seq *own; /* position pos is written here, at pos - n_prefix */
} pl_pass_row;

typedef struct pl_pass {
  const pl_decoder *d; /* borrowed */
  const pl_pack *w;    /* borrowed */
  bool half;           /* the cache is bf16: with any weights but f32 */
  int64_t max_rows;
  pl_pass_row *row; /* [max_rows], filled by the caller */
  float *x;         /* [max_rows,C] after a pass: the hidden states before the last norm */
  float *logits;    /* [PL_HEAD_ROWS,V] */
  pl_chunk *chunks; /* [PL_HEAD_ROWS, chunks of V] of them */
  float inv_t[PL_HEAD_ROWS];
  int64_t together; /* key-value heads that attend at once */
  char *scratch; /* a thread's room, as many as threads; the caller may use it between passes */
  int64_t scratch_each, scratch_least;
  int scratch_threads;
  float *rope; /* [n_rope,D]: cosines, then sines */
  int64_t n_rope;
  float *qkv, *gu; /* [max_rows, Q + 2K], [max_rows, 2F'] */
  /* what the products read: normed rows, attention, feed-forward part, rows for the head */
  char *in_norm, *in_att, *in_ffn, *in_head;
  int64_t ld_hidden, ld_att, ld_ffn; /* bytes from row to row of them */
  char **free_blocks;
  int64_t n_free, cap_free;
} pl_pass;

/* Zero-initialised p. spare_blocks: how many freed cache blocks are kept for the next text;
 * scratch: bytes the caller wants in a thread's room. Close it also after a failure. */
pl_status pl_pass_open(pl_ctx *c, const pl_decoder *d, const pl_pack *w, int64_t max_rows,
                       int64_t spare_blocks, int64_t scratch, pl_pass *p);
void pl_pass_close(pl_ctx *c, pl_pass *p);

/* Makes room for n positions. */
pl_status pl_kv_reserve(pl_ctx *c, pl_pass *p, pl_kv_seq *s, int64_t n);
void pl_kv_release(pl_ctx *c, pl_pass *p, pl_kv_seq *s);

/* What a pass over row[0..n) needs before it may run. */
pl_status pl_pass_prepare(pl_ctx *c, pl_pass *p, int64_t n);

/* The rest is for all members of a team. They have met when pl_pass_forward returns. */

/* Embeds rows 0..n-1 and takes them through all layers. */
void pl_pass_forward(pl_pass *p, const pl_member *me, int64_t n);
/* h = norm(x), [C] */
void pl_pass_last_norm(const pl_pass *p, const float *x, float *h);
/* Row i (0..PL_HEAD_ROWS-1) of the head's input, after the last norm, and 1 / temperature, at
 * which the logits are measured; any one member. */
void pl_pass_head_in(pl_pass *p, int64_t i, const float *h, float inv_t);
/* logits and their chunks of rows 0..n-1 from what was put in; the members meet before and
 * after. */
void pl_pass_head(pl_pass *p, const pl_member *me, int64_t n);
/* The calling thread's room. */
void *pl_pass_room(const pl_pass *p);
/* An array of n * each floats. */
pl_status pl_floats(pl_ctx *c, int64_t n, int64_t each, float **out);

#endif
