/* What a tokenizer does around its model: normalizers (string to string),
 * pre-tokenizers (pieces to pieces), decoders (token strings to text). Each
 * kind is a flat list; a Sequence in the file is only a longer list. Inside
 * src/text only. */
#ifndef PL_TEXT_PIPELINE_H
#define PL_TEXT_PIPELINE_H
#include <cjson/cJSON.h>

#include "text/regex.h"
#include "text/vocab.h"

#define PL_TEXT_MAX ((size_t)1 << 30) /* bytes of one text on its way through */

/* Reading the file's objects; `where` names the component in errors. */
pl_status pl_json_keys(pl_ctx *c, const cJSON *j, const char *where, const char *const *known);
pl_status pl_json_bool(pl_ctx *c, const cJSON *j, const char *where, const char *key, bool *out);
/* Missing or null leaves *out as it is; the string is borrowed from the tree. */
pl_status pl_json_str(pl_ctx *c, const cJSON *j, const char *where, const char *key,
                      const char **out);
pl_status pl_json_type(pl_ctx *c, const cJSON *j, const char *kind, const char **type);
/* The array `key` of a Sequence, which has no other key but its type. */
pl_status pl_json_sequence(pl_ctx *c, const cJSON *j, const char *where, const char *key,
                           const cJSON **list);
/* {"String": ..} or {"Regex": ..}. */
pl_status pl_json_pattern(pl_ctx *c, const cJSON *j, const char *where, pl_regex **out);

typedef struct pl_piece { /* a stretch of text, or (id >= 0) an added token */
  size_t begin, end;
  int32_t id;
  bool first; /* starts where the whole text starts */
} pl_piece;

typedef struct pl_pieces {
  pl_buf text;
  pl_piece *at;
  size_t n, cap;
} pl_pieces;
pl_status pl_pieces_add(pl_ctx *c, pl_pieces *p, pl_piece piece);
void pl_pieces_free(pl_ctx *c, pl_pieces *p);

typedef enum pl_norm_kind {
  PL_NORM_PREPEND,
  PL_NORM_REPLACE,
  PL_NORM_STRIP,
  PL_NORM_BYTES,
  PL_NORM_NFC,
  PL_NORM_NFD
} pl_norm_kind;

typedef struct pl_norm {
  pl_norm_kind kind;
  char *content; /* what is prepended or put in */
  size_t content_len;
  pl_regex *pattern;
  bool left, right;
} pl_norm;

typedef struct pl_norms {
  pl_norm *at;
  size_t n;
} pl_norms;
pl_status pl_norms_read(pl_ctx *c, const cJSON *j, pl_norms *out);
void pl_norms_free(pl_ctx *c, pl_norms *p);
/* Appends the normalized text; a and b are scratch. */
pl_status pl_norms_apply(pl_ctx *c, const pl_norms *p, const char *s, size_t n, pl_spans *spans,
                         pl_buf *a, pl_buf *b, pl_buf *out);

typedef enum pl_behavior {
  PL_ISOLATED,
  PL_REMOVED,
  PL_MERGED_WITH_PREVIOUS,
  PL_MERGED_WITH_NEXT,
  PL_CONTIGUOUS
} pl_behavior;

typedef enum pl_pre_kind { PL_PRE_SPLIT, PL_PRE_BYTE_LEVEL, PL_PRE_METASPACE } pl_pre_kind;
typedef enum pl_prepend { PL_PREPEND_ALWAYS, PL_PREPEND_FIRST, PL_PREPEND_NEVER } pl_prepend;

typedef struct pl_pre {
  pl_pre_kind kind;
  pl_regex *pattern; /* NULL: no split */
  pl_behavior behavior;
  bool invert;
  pl_prepend prepend; /* byte level: of a blank; metaspace: of its mark */
  char mark[4];       /* metaspace: what stands for a blank */
  size_t mark_len;
} pl_pre;

typedef struct pl_pres {
  pl_pre *at;
  size_t n;
} pl_pres;
pl_status pl_pres_read(pl_ctx *c, const cJSON *j, pl_pres *out);
void pl_pres_free(pl_ctx *c, pl_pres *p);
/* Runs all on *p in place (other is scratch of the same kind). */
pl_status pl_pres_apply(pl_ctx *c, const pl_pres *p, pl_spans *spans, pl_pieces *pieces,
                        pl_pieces *other);
/* Shared with the Metaspace decoder. */
pl_status pl_metaspace_read(pl_ctx *c, const cJSON *j, pl_pre *out, bool *split);

/* GPT-2's bytes as printable characters. */
pl_status pl_byte_level_add(pl_ctx *c, pl_buf *out, const char *s, size_t n);
int pl_byte_level_byte(int32_t cp); /* the byte cp stands for, -1: none */

typedef enum pl_dec_kind {
  PL_DEC_REPLACE,
  PL_DEC_BYTE_FALLBACK,
  PL_DEC_FUSE,
  PL_DEC_STRIP,
  PL_DEC_BYTE_LEVEL,
  PL_DEC_METASPACE,
  PL_DEC_BPE
} pl_dec_kind;

typedef struct pl_dec {
  pl_dec_kind kind;
  pl_regex *pattern;
  char *content;
  size_t content_len;
  int64_t start, stop;
  pl_pre metaspace;
} pl_dec;

typedef struct pl_decs {
  pl_dec *at;
  size_t n;
  bool given; /* false: the file has no decoder, tokens are joined by blanks */
} pl_decs;

typedef struct pl_strings { /* a list of strings, one after the other in text */
  pl_buf text;
  size_t *ends;
  size_t n, cap;
} pl_strings;
pl_status pl_strings_end(pl_ctx *c, pl_strings *s); /* what was added to text is one more string */
void pl_strings_free(pl_ctx *c, pl_strings *s);

pl_status pl_decs_read(pl_ctx *c, const cJSON *j, pl_decs *out);
void pl_decs_free(pl_ctx *c, pl_decs *d);
/* Runs all on *tokens in place (other is scratch), then appends the text. */
pl_status pl_decs_apply(pl_ctx *c, const pl_decs *d, pl_spans *spans, pl_strings *tokens,
                        pl_strings *other, pl_buf *out);

#endif
