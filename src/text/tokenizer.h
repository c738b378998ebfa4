/* Tokenizers: reads Hugging Face's tokenizer.json and gives the same ids.
 *
 * Use: pl_tokenizer_load, then encode / decode, then pl_tokenizer_free.
 * A component that is not implemented is an error that names it; nothing is
 * skipped. Models: BPE (byte level, byte fallback), WordLevel. Ids are data
 * and count from 0. Not for threads: encode uses scratch memory of its own.
 *
 * Text that is not valid UTF-8 is taken as it is: the bytes that are wrong
 * match no pattern, and reach the model as single bytes (byte level and byte
 * fallback keep them; others give the unknown token). Decoding always gives
 * valid UTF-8: wrong bytes become U+FFFD, as in Hugging Face. */
#ifndef PL_TEXT_TOKENIZER_H
#define PL_TEXT_TOKENIZER_H
#include "base/buf.h"

typedef struct pl_tokenizer pl_tokenizer;

typedef struct pl_ids { /* zero-initialise; free with pl_ids_free */
  int32_t *data;
  size_t len, cap;
} pl_ids;
pl_status pl_ids_add(pl_ctx *c, pl_ids *ids, int32_t id);
void pl_ids_free(pl_ctx *c, pl_ids *ids);

/* path: a tokenizer.json or the directory that holds one. */
pl_status pl_tokenizer_load(pl_ctx *c, const char *path, pl_tokenizer **out);
/* source: what the text is called in errors. */
pl_status pl_tokenizer_parse(pl_ctx *c, const char *source, const char *json, size_t n,
                             pl_tokenizer **out);
void pl_tokenizer_free(pl_ctx *c, pl_tokenizer *t); /* NULL is fine */

/* Appends ids. add_special: what the file's post-processor adds (BOS, ...). */
pl_status pl_tokenizer_encode(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n,
                              bool add_special, pl_ids *out);
/* Appends ids; the text of a special token does not become that token: for text of strangers. */
pl_status pl_tokenizer_encode_plain(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n,
                                    pl_ids *out);
/* Appends text. An id without a token is PL_EINVAL. */
pl_status pl_tokenizer_decode(pl_ctx *c, pl_tokenizer *t, const int32_t *ids, size_t n,
                              bool skip_special, pl_buf *out);

int32_t pl_tokenizer_vocab_size(const pl_tokenizer *t); /* highest id + 1, added tokens included */
int32_t pl_tokenizer_token_to_id(const pl_tokenizer *t, const char *s, size_t n); /* -1: none */
const char *pl_tokenizer_id_to_token(const pl_tokenizer *t, int32_t id, size_t *n); /* or NULL */
bool pl_tokenizer_is_special(const pl_tokenizer *t, int32_t id);
int32_t pl_tokenizer_bos(const pl_tokenizer *t); /* the id encode adds in front, or -1 */
const char *pl_tokenizer_model(const pl_tokenizer *t);           /* "BPE", "WordLevel" */
const char *pl_tokenizer_json(const pl_tokenizer *t, size_t *n); /* the text as it was read */
const char *pl_tokenizer_sha256(const pl_tokenizer *t);          /* of that text, in hex */

#endif
