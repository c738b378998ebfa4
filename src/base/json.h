/* Strict JSON (RFC 8259) over cJSON: whole input, valid UTF-8, no duplicate
 * keys, no trailing text, no NUL (\u0000), nesting of at most 512, numbers that
 * a double can hold. The error names the source, line and column. The tree is
 * cJSON's own; look up with cJSON_GetObjectItemCaseSensitive. */
#ifndef PL_BASE_JSON_H
#define PL_BASE_JSON_H
#include <cjson/cJSON.h>
#include "base/buf.h"

/* source: what the text is called in an error (a path). Free with cJSON_Delete. */
pl_status pl_json_parse(pl_ctx *c, const char *source, const char *text, size_t n, cJSON **out);
pl_status pl_json_load(pl_ctx *c, const char *path, cJSON **out);
/* Appends s as a JSON string, quotes included. Invalid UTF-8 bytes become U+FFFD. */
pl_status pl_json_put_string(pl_ctx *c, pl_buf *b, const char *s, size_t n);
/* Appends a number that parses back to the same double (shortest of %.15g..%.17g);
 * NaN and infinities as the strings "nan", "inf", "-inf", for JSON has neither. */
pl_status pl_json_put_number(pl_ctx *c, pl_buf *b, double v);

#endif
