/* Patterns of tokenizer files: regular expressions in Oniguruma's syntax (what
 * Hugging Face uses), translated for PCRE2, or plain strings. */
#ifndef PL_TEXT_REGEX_H
#define PL_TEXT_REGEX_H
#include "base/buf.h"

typedef struct pl_regex pl_regex;

typedef struct pl_span { /* one part of a text: a match, or what lies between matches */
  size_t begin, end;
  bool match;
} pl_span;

typedef struct pl_spans { /* zero-initialise; reused from call to call */
  pl_span *at;
  size_t n, cap;
} pl_spans;
pl_status pl_spans_add(pl_ctx *c, pl_spans *s, size_t begin, size_t end, bool match);
void pl_spans_free(pl_ctx *c, pl_spans *s);

/* literal: pattern is a plain string, not empty. A construct whose meaning
 * differs between Oniguruma and PCRE2 is refused by name. */
pl_status pl_regex_new(pl_ctx *c, const char *pattern, size_t n, bool literal, pl_regex **out);
void pl_regex_free(pl_ctx *c, pl_regex *r); /* NULL is fine */
/* Cuts s into spans that cover it; out is cleared first. Matches are found
 * only inside valid UTF-8. Empty matches give empty spans. */
pl_status pl_regex_spans(pl_ctx *c, pl_regex *r, const char *s, size_t n, pl_spans *out);
/* Appends s with every match replaced by `with`, taken literally. */
pl_status pl_regex_replace(pl_ctx *c, pl_regex *r, const char *s, size_t n, const char *with,
                           size_t with_len, pl_spans *scratch, pl_buf *out);

#endif
