/* UTF-8 decoding, validation and repair. Knows nothing of tokenizers. */
#include "text/utf8.h"

#include <string.h>

int32_t pl_utf8_next(const char *s, size_t n, size_t *len) {
  const unsigned char *p = (const unsigned char *)s;
  unsigned lead = p[0];
  *len = 1;
  if (lead < 0x80) {
    return (int32_t)lead;
  }
  size_t need = 0;
  unsigned low = 0x80; /* allowed range of the second byte */
  unsigned high = 0xbf;
  int32_t cp = 0;
  if (lead >= 0xc2 && lead <= 0xdf) {
    need = 1;
    cp = (int32_t)(lead & 0x1f);
  } else if (lead >= 0xe0 && lead <= 0xef) {
    need = 2;
    cp = (int32_t)(lead & 0x0f);
    low = lead == 0xe0 ? 0xa0 : 0x80;
    high = lead == 0xed ? 0x9f : 0xbf;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    need = 3;
    cp = (int32_t)(lead & 0x07);
    low = lead == 0xf0 ? 0x90 : 0x80;
    high = lead == 0xf4 ? 0x8f : 0xbf;
  } else {
    return -1;
  }
  for (size_t i = 1; i <= need; i++) {
    if (i >= n || p[i] < low || p[i] > high) {
      *len = i;
      return -1;
    }
    cp = (int32_t)((uint32_t)cp << 6 | (p[i] & 0x3f));
    low = 0x80;
    high = 0xbf;
  }
  *len = need + 1;
  return cp;
}

size_t pl_utf8_valid_prefix(const char *s, size_t n) {
  size_t i = 0;
  while (i < n) {
    uint64_t eight = 0;
    if (n - i >= 8) {
      memcpy(&eight, s + i, 8);
      if (!(eight & 0x8080808080808080u)) {
        i += 8;
        continue;
      }
    }
    size_t len = 0;
    if (pl_utf8_next(s + i, n - i, &len) < 0) {
      return i;
    }
    i += len;
  }
  return n;
}

size_t pl_utf8_last(const char *s, size_t n) {
  for (size_t back = n < 4 ? n : 4; back > 1; back--) {
    size_t len = 0;
    if (pl_utf8_next(s + n - back, back, &len) >= 0 && len == back) {
      return back;
    }
  }
  return 1;
}

size_t pl_utf8_put(char out[4], int32_t cp) {
  uint32_t u = (uint32_t)cp;
  if (u < 0x80) {
    out[0] = (char)u;
    return 1;
  }
  if (u < 0x800) {
    out[0] = (char)(0xc0 | u >> 6);
    out[1] = (char)(0x80 | (u & 0x3f));
    return 2;
  }
  if (u < 0x10000) {
    out[0] = (char)(0xe0 | u >> 12);
    out[1] = (char)(0x80 | (u >> 6 & 0x3f));
    out[2] = (char)(0x80 | (u & 0x3f));
    return 3;
  }
  out[0] = (char)(0xf0 | u >> 18);
  out[1] = (char)(0x80 | (u >> 12 & 0x3f));
  out[2] = (char)(0x80 | (u >> 6 & 0x3f));
  out[3] = (char)(0x80 | (u & 0x3f));
  return 4;
}

pl_status pl_utf8_add_lossy(pl_ctx *c, pl_buf *b, const char *s, size_t n) {
  size_t i = 0;
  while (i < n) {
    size_t good = pl_utf8_valid_prefix(s + i, n - i);
    PL_TRY(pl_buf_add(c, b, s + i, good));
    i += good;
    if (i < n) {
      size_t bad = 0;
      (void)pl_utf8_next(s + i, n - i, &bad);
      PL_TRY(pl_buf_add(c, b, "\xef\xbf\xbd", 3));
      i += bad;
    }
  }
  return PL_OK;
}

bool pl_is_white_space(int32_t cp) {
  return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
         (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
         cp == 0x205f || cp == 0x3000;
}
