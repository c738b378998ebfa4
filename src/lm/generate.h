/* Batched generation with a key-value cache.
 *
 * A generator holds a fixed number of running rows. Requests (a prompt and how
 * many samples of it) wait in a queue; as rows end, their places are filled at
 * once. A prompt is read once, in a batch with other prompts, logits only at
 * its last token; its cache is stored once and shared by its samples, each of
 * which keeps blocks of its own for what it added.
 *
 * Every token drawn is a function of the weights, the prompt, the options and
 * (seed, key, sample, place): not of the rows running beside it, nor of the
 * number of threads (attend.h).
 *
 * Order of calls: new, add, cancel and score (any time), step until nothing is active, take (any
 * time after a step), free. After a step that failed every other one fails too.
 * Must not: know text. Stop strings are the caller's: it looks at running rows
 * between steps and calls pl_generator_stop.
 */
#ifndef PL_LM_GENERATE_H
#define PL_LM_GENERATE_H
#include "lm/pack.h"
#include "lm/sample.h"

#define PL_GEN_TOP_MAX 20

typedef struct pl_generator pl_generator;

typedef struct pl_gen_request {
  const int32_t *prompt; /* copied */
  int64_t n_prompt;      /* 1 or more, shorter than the context */
  int64_t index;         /* names the prompt in errors (1-based) and its samples */
  int64_t key;           /* of its random numbers, below 2^32; 0: the index */
  int64_t n;             /* samples */
  int64_t max_tokens;
  pl_sampling sampling;
  uint64_t seed;
  int64_t top; /* 0..PL_GEN_TOP_MAX likeliest tokens to tell of at each place */
} pl_gen_request;

typedef enum pl_finish { PL_FINISH_STOP, PL_FINISH_LENGTH } pl_finish;

/* A sample: finished (take) or running (look). The arrays are the generator's. */
typedef struct pl_gen_sample {
  int64_t index, sample;  /* of the request; 0-based number of the sample */
  int64_t n;              /* tokens so far, the stop token included where one came */
  const int32_t *ids;     /* [n] */
  const float *logprobs;  /* [n] at temperature 1, nothing cut off */
  int64_t n_top;          /* as asked for */
  const pl_candidate *top; /* [n,n_top] likeliest first, `logit` the log-probability as above */
  pl_finish finish;       /* LENGTH: max_tokens or the context was reached */
} pl_gen_sample;

/* Borrows d, which must outlive it unchanged; f32 weights, which are packed in the format asked
 * for (pack.h). rows: 1..4096 run at a time. */
pl_status pl_generator_new(pl_ctx *c, pl_decoder *d, pl_pack_kind kind, int64_t rows,
                           const int32_t *stop_ids, int64_t n_stop, pl_generator **out);
void pl_generator_free(pl_ctx *c, pl_generator *g); /* NULL is fine */
pl_status pl_generator_add(pl_ctx *c, pl_generator *g, const pl_gen_request *r);
/* One token for every running row, filling free places first; of many rows of a small model,
 * for those whose turn it is. *active: samples running or waiting afterwards. *tokens (may be
 * NULL): drawn by this call. Polls the interrupt flag. */
pl_status pl_generator_step(pl_ctx *c, pl_generator *g, int64_t *active, int64_t *tokens);
/* The oldest finished sample; false when there is none. Valid until the next
 * call of take or step. */
bool pl_generator_take(pl_ctx *c, pl_generator *g, pl_gen_sample *out);
/* Running row number i (0-based); false past the last. */
bool pl_generator_look(const pl_generator *g, int64_t i, pl_gen_sample *out);
/* The running rows that the last step drew a token for, less those that left since: *n from *first
 * on. */
void pl_generator_drew(const pl_generator *g, int64_t *first, int64_t *n);
/* Ends running row i as a stop; it can then be taken. Row numbers change with this call. */
void pl_generator_stop(pl_ctx *c, pl_generator *g, int64_t i);
/* Drops what runs, waits or has ended of the requests with this index, at once;
 * returns how many samples had not ended. Row numbers change with this call. */
int64_t pl_generator_cancel(pl_ctx *c, pl_generator *g, int64_t index);

/* log p(ids[i + 1] | ids[0..i]) into logprobs [n-1], and the `top` likeliest tokens of
 * each of these places into tops [n-1,top]. Runs at once, beside what is running. */
pl_status pl_generator_score(pl_ctx *c, pl_generator *g, const int32_t *ids, int64_t n, int64_t top,
                             float *logprobs, pl_candidate *tops);

#endif
