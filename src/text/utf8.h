/* UTF-8 as RFC 3629 has it: no surrogates, no overlong forms, up to U+10FFFF. */
#ifndef PL_TEXT_UTF8_H
#define PL_TEXT_UTF8_H
#include "base/buf.h"

/* The code point at s (n >= 1 bytes left) and its length. For wrong bytes: -1
 * and the length of the maximal part that one U+FFFD stands for (Unicode 3.9). */
int32_t pl_utf8_next(const char *s, size_t n, size_t *len);
/* Length of the longest valid prefix. */
size_t pl_utf8_valid_prefix(const char *s, size_t n);
/* Length of the character (or wrong part) that ends at s + n; n >= 1. */
size_t pl_utf8_last(const char *s, size_t n);
/* Writes cp's form, gives its length (1 .. 4). */
size_t pl_utf8_put(char out[4], int32_t cp);
/* Appends s with wrong parts replaced by U+FFFD. */
pl_status pl_utf8_add_lossy(pl_ctx *c, pl_buf *b, const char *s, size_t n);
bool pl_is_white_space(int32_t cp); /* Unicode's White_Space */

#endif
