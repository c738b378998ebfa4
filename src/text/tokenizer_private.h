/* The tokenizer's parts, for tokenizer.c (reading) and encode.c (running). */
#ifndef PL_TEXT_TOKENIZER_PRIVATE_H
#define PL_TEXT_TOKENIZER_PRIVATE_H
#include "text/bpe.h"
#include "text/pipeline.h"
#include "text/tokenizer.h"

typedef struct pl_added { /* how one added token is matched, by id */
  int32_t id;
  bool single_word, lstrip, rstrip, normalized;
  char *shown; /* what decoding gives where normalization changed it; else NULL */
} pl_added;

typedef struct pl_wrap { /* one post-processor: ids in front of and behind the text's */
  pl_ids front, back;
} pl_wrap;

struct pl_tokenizer {
  char *json;
  size_t json_len;
  char sha256[65];
  pl_vocab vocab;
  pl_bpe *bpe;      /* NULL: word level */
  int32_t word_unk; /* word level: id or -1 */
  pl_added *added;
  size_t n_added;
  pl_trie raw, normalized; /* added tokens looked for before / after normalization */
  pl_regex *word;          /* one word character; NULL where no token asks */
  pl_norms norms;
  pl_pres pres;
  pl_wrap *wraps;
  size_t n_wraps;
  pl_decs decs;
  /* Scratch of encode and decode. */
  pl_pieces pieces, other;
  pl_spans spans;
  pl_buf norm_a, norm_b, norm_out;
  pl_strings strings, other_strings;
};

/* Appends the whole chain of normalizers' result for s (used for added tokens, too). */
pl_status pl_tokenizer_normalize(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n, pl_buf *out);

#endif
