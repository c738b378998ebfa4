/* Byte pair encoding of one piece of text, with the result of Hugging Face's
 * BPE: of all pairs that merge, the one of lowest rank first, the leftmost
 * among equals. Time n log n in the length of a piece. */
#ifndef PL_TEXT_BPE_H
#define PL_TEXT_BPE_H
#include "text/tokenizer.h"
#include "text/vocab.h"

typedef struct pl_bpe pl_bpe;

typedef struct pl_bpe_options {
  int32_t unk; /* id, or -1: an unknown character is an error */
  bool fuse_unk, byte_fallback, ignore_merges;
  const char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; "" = none */
} pl_bpe_options;

/* v is borrowed and must be complete (its model tokens). n_merges: how many will be added. */
pl_status pl_bpe_new(pl_ctx *c, const pl_vocab *v, const pl_bpe_options *o, size_t n_merges,
                     pl_bpe **out);
void pl_bpe_free(pl_ctx *c, pl_bpe *b); /* NULL is fine */
/* The next merge in order of rank. */
pl_status pl_bpe_add_merge(pl_ctx *c, pl_bpe *b, const char *left, size_t left_n,
                           const char *right, size_t right_n);
pl_status pl_bpe_encode(pl_ctx *c, pl_bpe *b, const char *s, size_t n, pl_ids *out);

#endif
