/* A decoder over flattened tokens: Llama, GPT-2 and what lies between them.
 *
 * What it is: a configuration and its weights (ordinary tensors, so that the
 * tape, the optimizers and Lua see them), and the forward pass: two tape ops a
 * layer. Sequences of any lengths lie one after the other in N tokens; there is
 * no padding anywhere. With recording off every intermediate is freed as soon
 * as the next one exists.
 *
 * Must not: know file formats, tokenizers or names of other libraries' weights
 * (lua/perilune/models), sample (generate.h) or hold a cache.
 *
 * Use:
 *   pl_decoder *d;
 *   PL_TRY(pl_decoder_new(c, &cfg, weights, pl_decoder_n_weights(&cfg), &d));
 *   PL_TRY(pl_decoder_hidden(c, d, ids, pos, seq, &h));            [N] -> [N,C]
 *   PL_TRY(pl_decoder_logprob(c, d, h, rows, targets, &lp));       -> [M]
 */
#ifndef PL_LM_DECODER_H
#define PL_LM_DECODER_H
#include "tensor/tensor.h"

typedef enum pl_norm_kind { PL_NORM_RMS, PL_NORM_LAYER } pl_norm_kind;
typedef enum pl_act_kind {
  PL_ACT_SILU_GATE, /* silu(gate h) * up h */
  PL_ACT_GELU_TANH  /* gelu(up h) in the tanh form; no gate */
} pl_act_kind;

/* What is not named is 0, and all zeros below `tied` is a Llama. */
typedef struct pl_lm_config {
  int64_t n_layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
  int64_t context; /* positions the model was made for */
  double eps;      /* of the norms */
  double theta;    /* base of the rotary frequencies; not read where positions are learned */
  bool tied;       /* the output weight is the embedding */
  pl_norm_kind norm;
  pl_act_kind act;
  bool learned_pos;    /* positions have a table of their own; no rotation */
  bool attention_bias; /* of q, k, v and o */
  bool mlp_bias;       /* of gate, up and down */
  int64_t window;      /* a token sees that many, itself included; 0 = all before it */
} pl_lm_config;

typedef struct pl_layer { /* NULL where the configuration has none */
  pl_tensor *norm1, *norm1_b;        /* [C] before attention */
  pl_tensor *q, *k, *v, *o;          /* [H*D,C] [K*D,C] [K*D,C] [C,H*D] */
  pl_tensor *q_b, *k_b, *v_b, *o_b;
  pl_tensor *norm2, *norm2_b;        /* [C] before the feed-forward part */
  pl_tensor *gate, *up, *down;       /* [F,C] [F,C] [C,F] */
  pl_tensor *gate_b, *up_b, *down_b;
} pl_layer;

typedef struct pl_decoder {
  pl_lm_config cfg;
  pl_tensor *embed;     /* [V,C] */
  pl_tensor *pos_embed; /* [context,C], or NULL */
  pl_layer *layers;
  pl_tensor *norm;      /* [C] */
  pl_tensor *norm_b;    /* [C], or NULL */
  pl_tensor *head;      /* [V,C]; the embedding itself (one more reference) where tied */
  bool checkpoint;      /* backward computes each half of a layer again: less memory, more time */
  struct pl_pack *pack; /* the weights as generation wants them, or NULL: pack.h */
} pl_decoder;

/* Refuses what cannot be: kv_heads must divide heads, rotation wants an even head_dim, ... */
pl_status pl_lm_config_check(pl_ctx *c, const pl_lm_config *cfg);
/* How many weights there are (weights.c has their table). */
int64_t pl_decoder_n_weights(const pl_lm_config *cfg);
/* "layers.3.q" and the shape of weight number i. */
void pl_decoder_weight_info(const pl_lm_config *cfg, int64_t i, char name[48], int *ndim,
                            int64_t shape[2]);
/* Takes its own references; the shapes are checked; one float dtype for all. */
pl_status pl_decoder_new(pl_ctx *c, const pl_lm_config *cfg, pl_tensor *const *weights, int64_t n,
                         pl_decoder **out);
void pl_decoder_free(pl_ctx *c, pl_decoder *d); /* NULL is fine */

/* ids, pos: i32 [N]; seq: i32 [S+1], where each sequence begins and, last, N. parent: i32 [S]
 * or NULL: a sequence whose entry is not -1 goes on after all tokens of that earlier one, the
 * nearest before it that goes on after none. Gives the hidden states after the last norm, [N,C].
 * Ids must lie in 0..V-1. */
pl_status pl_decoder_hidden(pl_ctx *c, const pl_decoder *d, pl_tensor *ids, pl_tensor *pos,
                            pl_tensor *seq, pl_tensor *parent, pl_tensor **out);
/* log softmax(h[rows] head^T)[targets]: rows, targets i32 [M] -> [M] */
pl_status pl_decoder_logprob(pl_ctx *c, const pl_decoder *d, pl_tensor *h, pl_tensor *rows,
                             pl_tensor *targets, pl_tensor **out);

/* What scoring needs of a packed set of rows. */
typedef struct pl_lm_batch {
  pl_tensor *ids, *pos; /* i32 [N] tokens that are read (the last one of a row predicts nothing) */
  pl_tensor *seq;       /* i32 [S+1] */
  pl_tensor *parent;    /* i32 [S], or NULL: no sequence goes on after another */
  pl_tensor *rows;      /* i32 [M] position in 0..N-1 that predicts, family by family; one may
                         * predict several targets */
  pl_tensor *targets;   /* i32 [M] what came */
} pl_lm_batch;

/* Log-probabilities [M] of the batch's targets. While recording: one forward of
 * all, differentiable. Otherwise in pieces of whole families (a sequence and those that go on
 * after it) of at most `budget` tokens (at least one family each), so that memory stays bounded. */
pl_status pl_decoder_score(pl_ctx *c, const pl_decoder *d, const pl_lm_batch *b, int64_t budget,
                           pl_tensor **out);

/* x [M], group i32 [M] with values 0..n-1 -> [n], sums in order; differentiable. */
pl_status pl_group_sum(pl_ctx *c, pl_tensor *x, pl_tensor *group, int64_t n, pl_tensor **out);
/* x [M], at i32 [M] (distinct places in rows*cols) -> [rows,cols], 0 elsewhere; differentiable. */
pl_status pl_place(pl_ctx *c, pl_tensor *x, pl_tensor *at, int64_t rows, int64_t cols,
                   pl_tensor **out);

#endif
