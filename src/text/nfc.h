/* Unicode normalization forms C and D (UAX #15). */
#ifndef PL_TEXT_NFC_H
#define PL_TEXT_NFC_H
#include "base/buf.h"

/* Appends s in form C (compose) or D. Wrong bytes are kept and combine with nothing. */
pl_status pl_nfc_add(pl_ctx *c, pl_buf *out, const char *s, size_t n, bool compose);

#endif
