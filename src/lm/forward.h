/* The forward pass of generation: rows, each one token of some text, go through
 * all layers together. A row says where its text's keys and values are kept, so
 * reading prompts, drawing tokens and scoring are the same code.
 *
 * Order of calls: open; then, again and again: fill row[0..n), pl_pass_prepare,
 * pl_pass_forward on all of them or on the groups that pl_pass_groups made;
 * close. A row's result is a function of that row and its text alone: not of
 * the rows beside it, the groups or the number of threads (rowmath.h).
 * Must not: draw tokens or know requests. */
#ifndef PL_LM_FORWARD_H
#define PL_LM_FORWARD_H
#include "lm/decoder.h"

/* Keys and values of one text: blocks of PL_KV_BLOCK positions, all layers in each. */
typedef struct pl_kv_seq {
  float **block;
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
  int64_t max_rows;
  pl_pass_row *row; /* [max_rows], filled by the caller */
  float *x;         /* [max_rows,C] after a pass: the hidden states before the last norm */
  int64_t *group;   /* [max_rows + 1] bounds, n_groups of them + 1 */
  int64_t n_groups;
  char *scratch; /* a thread's room, as many as threads; the caller may use it between passes */
  int64_t scratch_each, scratch_least;
  int scratch_threads;
  float *rope; /* [n_rope,D]: cosines, then sines */
  int64_t n_rope;
  float *norm, *q, *k, *v, *att, *gate, *up;
  float **free_blocks;
  int64_t n_free, cap_free;
} pl_pass;

/* Zero-initialised p. spare_blocks: how many freed cache blocks are kept for the next text;
 * scratch: bytes the caller wants in a thread's room. Close it also after a failure. */
pl_status pl_pass_open(pl_ctx *c, const pl_decoder *d, int64_t max_rows, int64_t spare_blocks,
                       int64_t scratch, pl_pass *p);
void pl_pass_close(pl_ctx *c, pl_pass *p);

/* Makes room for n positions. */
pl_status pl_kv_reserve(pl_ctx *c, pl_pass *p, pl_kv_seq *s, int64_t n);
void pl_kv_release(pl_ctx *c, pl_pass *p, pl_kv_seq *s);

/* What a pass over row[0..n) needs before it may run. */
pl_status pl_pass_prepare(pl_ctx *c, pl_pass *p, int64_t n);
/* Cuts rows 0..n-1 into groups of about equal size; with whole_texts, rows that write to one
 * pl_kv_seq stay together. False: work on all together, threads share each product. */
bool pl_pass_groups(pl_pass *p, int64_t n, bool whole_texts);
/* Embeds rows lo..lo+n-1 and takes them through all layers. Groups may run side by side. */
void pl_pass_forward(pl_pass *p, int64_t lo, int64_t n);
/* The caller's thread room inside a parallel block. */
void *pl_pass_room(const pl_pass *p);
/* An array of n * each floats. */
pl_status pl_floats(pl_ctx *c, int64_t n, int64_t each, float **out);

#endif
