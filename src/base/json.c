/* Strict JSON (RFC 8259). cJSON alone takes trailing text, bad UTF-8, numbers
 * such as 01 and duplicate keys, and cuts strings at \u0000; so the text is
 * checked here first, in one pass, and cJSON then only builds the tree.
 * Must not change cJSON's global hooks. */
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

#define DEPTH_MAX 512
#define FILE_MAX ((size_t)1 << 31) /* bytes of a JSON file */
#define NUMBER_MAX 60 /* cJSON reads 63 characters of a number and chokes on the rest */

typedef struct key {
  uint64_t hash;
  size_t at; /* of its opening quote */
} key;

typedef struct scan {
  pl_ctx *c;
  const char *source, *text;
  size_t n, i;
  pl_buf keys;        /* key structs of the objects that are open */
  size_t long_numbers; /* how many are over NUMBER_MAX */
} scan;

static pl_status fail_at(scan *s, size_t at, const char *what) {
  size_t line = 1;
  size_t column = 1;
  for (size_t i = 0; i < at && i < s->n; i++) {
    unsigned char ch = (unsigned char)s->text[i];
    if (ch == '\n') {
      line++;
      column = 1;
    } else if ((ch & 0xc0) != 0x80) { /* count characters, not bytes */
      column++;
    }
  }
  return pl_fail(s->c, PL_EFORMAT, "%s:%zu:%zu: %s", s->source, line, column, what);
}

static pl_status fail_here(scan *s, const char *what) {
  return fail_at(s, s->i, s->i >= s->n ? "JSON ends too early" : what);
}

/* Length of the UTF-8 character at p (RFC 3629), 0 if it is none. */
static size_t utf8_len(const unsigned char *p, size_t n) {
  if (p[0] < 0x80) {
    return 1;
  }
  if (p[0] >= 0xc2 && p[0] <= 0xdf) {
    return n >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
  }
  if (p[0] >= 0xe0 && p[0] <= 0xef) {
    if (n < 3 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80) {
      return 0;
    }
    bool overlong = p[0] == 0xe0 && p[1] < 0xa0;
    bool surrogate = p[0] == 0xed && p[1] > 0x9f;
    return overlong || surrogate ? 0 : 3;
  }
  if (p[0] >= 0xf0 && p[0] <= 0xf4) {
    if (n < 4 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (p[3] & 0xc0) != 0x80) {
      return 0;
    }
    bool overlong = p[0] == 0xf0 && p[1] < 0x90;
    bool beyond = p[0] == 0xf4 && p[1] > 0x8f;
    return overlong || beyond ? 0 : 4;
  }
  return 0;
}

static int hex4(const char *p, size_t n) {
  int v = 0;
  if (n < 4) {
    return -1;
  }
  for (int i = 0; i < 4; i++) {
    char ch = p[i];
    int d = ch >= '0' && ch <= '9'   ? ch - '0'
            : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10
            : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10
                                     : -1;
    if (d < 0) {
      return -1;
    }
    v = v * 16 + d;
  }
  return v;
}

static size_t put_utf8(unsigned long cp, char out[4]) {
  if (cp < 0x80) {
    out[0] = (char)cp;
    return 1;
  }
  if (cp < 0x800) {
    out[0] = (char)(0xc0 | cp >> 6);
    out[1] = (char)(0x80 | (cp & 63));
    return 2;
  }
  if (cp < 0x10000) {
    out[0] = (char)(0xe0 | cp >> 12);
    out[1] = (char)(0x80 | (cp >> 6 & 63));
    out[2] = (char)(0x80 | (cp & 63));
    return 3;
  }
  out[0] = (char)(0xf0 | cp >> 18);
  out[1] = (char)(0x80 | (cp >> 12 & 63));
  out[2] = (char)(0x80 | (cp >> 6 & 63));
  out[3] = (char)(0x80 | (cp & 63));
  return 4;
}

/* One character of a string that was checked: its bytes as they mean, and how
 * far the text moves. For keys only, where "a" and "\u0061" are the same. */
static size_t key_char(const char *p, char out[4], size_t *outn) {
  static const char from[] = "bfnrt";
  static const char to[] = "\b\f\n\r\t";
  if (*p != '\\') {
    out[0] = *p;
    *outn = 1;
    return 1;
  }
  if (p[1] != 'u') {
    const char *found = strchr(from, p[1]);
    out[0] = found ? to[found - from] : p[1];
    *outn = 1;
    return 2;
  }
  unsigned long cp = (unsigned long)hex4(p + 2, 4);
  if (cp < 0xd800 || cp > 0xdbff) {
    *outn = put_utf8(cp, out);
    return 6;
  }
  unsigned long low = (unsigned long)hex4(p + 8, 4);
  *outn = put_utf8(0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00), out);
  return 12;
}

static uint64_t key_hash(const char *p) {
  uint64_t h = 1469598103934665603u; /* FNV-1a */
  while (*p != '"') {
    char out[4];
    size_t n;
    p += key_char(p, out, &n);
    for (size_t i = 0; i < n; i++) {
      h = (h ^ (unsigned char)out[i]) * 1099511628211u;
    }
  }
  return h;
}

static bool key_equal(const char *a, const char *b) {
  char ca[4], cb[4];
  size_t na = 0, nb = 0, ia = 0, ib = 0;
  for (;;) {
    bool end_a = ia == na && *a == '"';
    bool end_b = ib == nb && *b == '"';
    if (end_a || end_b) {
      return end_a && end_b;
    }
    if (ia == na) {
      a += key_char(a, ca, &na);
      ia = 0;
    }
    if (ib == nb) {
      b += key_char(b, cb, &nb);
      ib = 0;
    }
    if (ca[ia] != cb[ib]) {
      return false;
    }
    ia++;
    ib++;
  }
}

static int by_hash(const void *a, const void *b) {
  const key *x = a;
  const key *y = b;
  if (x->hash != y->hash) {
    return x->hash < y->hash ? -1 : 1;
  }
  return x->at < y->at ? -1 : x->at > y->at;
}

/* The keys from byte `from` of s->keys on are one object's: no two may be equal. */
static pl_status check_keys(scan *s, size_t from) {
  key *k = (key *)(void *)(s->keys.data + from);
  size_t n = (s->keys.len - from) / sizeof *k;
  if (n < 2) {
    return PL_OK;
  }
  qsort(k, n, sizeof *k, by_hash);
  for (size_t i = 0; i + 1 < n; i++) {
    for (size_t j = i + 1; j < n && k[j].hash == k[i].hash; j++) {
      if (key_equal(s->text + k[i].at + 1, s->text + k[j].at + 1)) {
        char what[160];
        const char *name = s->text + k[j].at;
        size_t len = 1;
        while (name[len] != '"' && len < 80) {
          len += name[len] == '\\' ? 2 : 1;
        }
        snprintf(what, sizeof what, "duplicate key %.*s\"", (int)len, name);
        return fail_at(s, k[j].at, what);
      }
    }
  }
  return PL_OK;
}

static void skip_space(scan *s) {
  while (s->i < s->n && (s->text[s->i] == ' ' || s->text[s->i] == '\n' ||
                         s->text[s->i] == '\r' || s->text[s->i] == '\t')) {
    s->i++;
  }
}

static pl_status scan_escape(scan *s) {
  size_t left = s->n - s->i;
  const char *p = s->text + s->i;
  if (left < 2) {
    s->i = s->n;
    return fail_here(s, "");
  }
  if (p[1] != 'u') {
    if (p[1] == 0 || !strchr("\"\\/bfnrt", p[1])) {
      return fail_here(s, "unknown escape in a string");
    }
    s->i += 2;
    return PL_OK;
  }
  int cp = hex4(p + 2, left - 2);
  if (cp < 0) {
    return fail_here(s, "\\u needs four hexadecimal digits");
  }
  if (cp == 0) {
    return fail_here(s, "\\u0000 is not accepted in a string");
  }
  if (cp >= 0xdc00 && cp <= 0xdfff) {
    return fail_here(s, "second half of a surrogate pair without its first");
  }
  if (cp < 0xd800 || cp > 0xdbff) {
    s->i += 6;
    return PL_OK;
  }
  int low = left >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, left - 8) : -1;
  if (low < 0xdc00 || low > 0xdfff) {
    return fail_here(s, "first half of a surrogate pair without its second");
  }
  s->i += 12;
  return PL_OK;
}

static pl_status scan_string(scan *s) {
  s->i++;
  while (s->i < s->n) {
    unsigned char ch = (unsigned char)s->text[s->i];
    if (ch == '"') {
      s->i++;
      return PL_OK;
    }
    if (ch == '\\') {
      PL_TRY(scan_escape(s));
    } else if (ch < 0x20) {
      return fail_here(s, "control character in a string; write it as an escape such as \\n");
    } else if (ch < 0x80) {
      s->i++;
    } else {
      size_t n = utf8_len((const unsigned char *)s->text + s->i, s->n - s->i);
      if (n == 0) {
        return fail_at(s, s->i, "invalid UTF-8");
      }
      s->i += n;
    }
  }
  return fail_here(s, "");
}

static bool digit_at(const scan *s, size_t i) {
  return i < s->n && s->text[i] >= '0' && s->text[i] <= '9';
}

static void skip_digits(scan *s) {
  while (digit_at(s, s->i)) {
    s->i++;
  }
}

/* The value of the number text[from..to), which may be of any length. */
static pl_status number_value(scan *s, size_t from, size_t to, double *v) {
  char small[NUMBER_MAX + 4];
  size_t n = to - from;
  char *t = n < sizeof small ? small : pl_alloc(s->c, n + 1);
  if (!t) {
    return PL_ENOMEM;
  }
  memcpy(t, s->text + from, n);
  t[n] = 0;
  *v = strtod(t, NULL);
  if (t != small) {
    pl_free(s->c, t);
  }
  return PL_OK;
}

static pl_status scan_number(scan *s) {
  static const char bad[] = "malformed number";
  size_t start = s->i;
  bool exponent = false;
  if (s->text[s->i] == '-') {
    s->i++;
  }
  if (!digit_at(s, s->i)) {
    return fail_here(s, bad);
  }
  if (s->text[s->i] == '0') {
    s->i++;
    if (digit_at(s, s->i)) {
      return fail_at(s, start, "a number must not start with 0");
    }
  } else {
    skip_digits(s);
  }
  if (s->i < s->n && s->text[s->i] == '.') {
    s->i++;
    if (!digit_at(s, s->i)) {
      return fail_here(s, bad);
    }
    skip_digits(s);
  }
  if (s->i < s->n && (s->text[s->i] == 'e' || s->text[s->i] == 'E')) {
    exponent = true;
    s->i++;
    if (s->i < s->n && (s->text[s->i] == '+' || s->text[s->i] == '-')) {
      s->i++;
    }
    if (!digit_at(s, s->i)) {
      return fail_here(s, bad);
    }
    skip_digits(s);
  }
  size_t len = s->i - start;
  if (exponent || len > NUMBER_MAX) {
    double v;
    PL_TRY(number_value(s, start, s->i, &v));
    if (isinf(v)) {
      return fail_at(s, start, "number too large for a double");
    }
  }
  s->long_numbers += len > NUMBER_MAX;
  return PL_OK;
}

static pl_status scan_word(scan *s, const char *word) {
  size_t n = strlen(word);
  if (s->n - s->i < n || memcmp(s->text + s->i, word, n) != 0) {
    return fail_at(s, s->i, "unknown word; a value is an object, array, string, number, "
                            "true, false or null");
  }
  s->i += n;
  return PL_OK;
}

static pl_status scan_value(scan *s, int depth);

static pl_status scan_array(scan *s, int depth) {
  s->i++;
  skip_space(s);
  if (s->i < s->n && s->text[s->i] == ']') {
    s->i++;
    return PL_OK;
  }
  for (;;) {
    PL_TRY(scan_value(s, depth));
    skip_space(s);
    if (s->i < s->n && s->text[s->i] == ',') {
      s->i++;
    } else if (s->i < s->n && s->text[s->i] == ']') {
      s->i++;
      return PL_OK;
    } else {
      return fail_here(s, "expected , or ] in an array");
    }
  }
}

static pl_status scan_member(scan *s, int depth) {
  skip_space(s);
  if (s->i >= s->n || s->text[s->i] != '"') {
    return fail_here(s, "expected a key in quotes");
  }
  key k = {.hash = 0, .at = s->i};
  PL_TRY(scan_string(s));
  k.hash = key_hash(s->text + k.at + 1);
  PL_TRY(pl_buf_add(s->c, &s->keys, &k, sizeof k));
  skip_space(s);
  if (s->i >= s->n || s->text[s->i] != ':') {
    return fail_here(s, "expected : after a key");
  }
  s->i++;
  return scan_value(s, depth);
}

static pl_status scan_object(scan *s, int depth) {
  size_t from = s->keys.len;
  s->i++;
  skip_space(s);
  if (s->i < s->n && s->text[s->i] == '}') {
    s->i++;
    return PL_OK;
  }
  for (;;) {
    PL_TRY(scan_member(s, depth));
    skip_space(s);
    if (s->i < s->n && s->text[s->i] == ',') {
      s->i++;
    } else if (s->i < s->n && s->text[s->i] == '}') {
      s->i++;
      break;
    } else {
      return fail_here(s, "expected , or } in an object");
    }
  }
  PL_TRY(check_keys(s, from));
  s->keys.len = from;
  return PL_OK;
}

static pl_status scan_value(scan *s, int depth) {
  skip_space(s);
  if (s->i >= s->n) {
    return fail_here(s, "");
  }
  char ch = s->text[s->i];
  if ((ch == '{' || ch == '[') && depth == DEPTH_MAX) {
    return fail_here(s, "nested deeper than 512 levels");
  }
  switch (ch) {
    case '{':
      return scan_object(s, depth + 1);
    case '[':
      return scan_array(s, depth + 1);
    case '"':
      return scan_string(s);
    case 't':
      return scan_word(s, "true");
    case 'f':
      return scan_word(s, "false");
    case 'n':
      return scan_word(s, "null");
    default:
      break;
  }
  if (ch == '-' || (ch >= '0' && ch <= '9')) {
    return scan_number(s);
  }
  return fail_here(s, "expected a value");
}

static pl_status scan_text(scan *s) {
  if (s->n >= 3 && memcmp(s->text, "\xef\xbb\xbf", 3) == 0) {
    return fail_at(s, 0, "starts with a byte order mark; save it as plain UTF-8");
  }
  PL_TRY(scan_value(s, 0));
  skip_space(s);
  return s->i == s->n ? PL_OK : fail_here(s, "text after the end of the JSON value");
}

/* A copy of the text with each overlong number printed shorter; the same doubles. */
static pl_status shorten_numbers(scan *s, pl_buf *out) {
  size_t from = 0;
  size_t i = 0;
  while (i < s->n) {
    char ch = s->text[i];
    if (ch == '"') {
      i++;
      while (s->text[i] != '"') {
        i += s->text[i] == '\\' ? 2 : 1;
      }
      i++;
    } else if (ch == '-' || (ch >= '0' && ch <= '9')) {
      size_t start = i;
      while (i < s->n && strchr("+-.0123456789eE", s->text[i]) && s->text[i] != 0) {
        i++;
      }
      if (i - start > NUMBER_MAX) {
        double v;
        PL_TRY(number_value(s, start, i, &v));
        PL_TRY(pl_buf_add(s->c, out, s->text + from, start - from));
        PL_TRY(pl_buf_printf(s->c, out, "%.17g", v));
        from = i;
      }
    } else {
      i++;
    }
  }
  return pl_buf_add(s->c, out, s->text + from, s->n - from);
}

pl_status pl_json_parse(pl_ctx *c, const char *source, const char *text, size_t n, cJSON **out) {
  scan s = {.c = c, .source = source, .text = text, .n = n};
  pl_buf shorter;
  *out = NULL;
  pl_buf_init(&s.keys, PTRDIFF_MAX);
  pl_buf_init(&shorter, PTRDIFF_MAX);
  pl_status st = scan_text(&s);
  pl_buf_free(c, &s.keys);
  if (st == PL_OK && s.long_numbers > 0) {
    st = shorten_numbers(&s, &shorter);
    text = shorter.data;
    n = shorter.len;
  }
  if (st == PL_OK) {
    *out = cJSON_ParseWithLengthOpts(text, n, NULL, 0);
    if (!*out) {
      st = pl_fail(c, PL_ENOMEM, "%s: out of memory for the JSON tree of %zu bytes of text",
                   source, n);
    }
  }
  pl_buf_free(c, &shorter);
  return st;
}

pl_status pl_json_load(pl_ctx *c, const char *path, cJSON **out) {
  pl_buf b;
  *out = NULL;
  pl_buf_init(&b, FILE_MAX);
  pl_status st = pl_file_read(c, path, &b);
  if (st == PL_OK) {
    st = pl_json_parse(c, path, b.data, b.len, out);
  }
  pl_buf_free(c, &b);
  return st;
}

pl_status pl_json_put_string(pl_ctx *c, pl_buf *b, const char *s, size_t n) {
  PL_TRY(pl_buf_add(c, b, "\"", 1));
  size_t from = 0;
  size_t i = 0;
  while (i < n) {
    unsigned char ch = (unsigned char)s[i];
    size_t len = utf8_len((const unsigned char *)s + i, n - i);
    if (len > 0 && ch >= 0x20 && ch != '"' && ch != '\\') {
      i += len;
      continue;
    }
    PL_TRY(pl_buf_add(c, b, s + from, i - from));
    const char *found = ch > 0 ? strchr("\"\"\\\\\nn\rr\tt\bb\ff", ch) : NULL;
    if (len == 0) {
      PL_TRY(pl_buf_puts(c, b, "\xef\xbf\xbd"));
    } else if (found) {
      char esc[2] = {'\\', found[1]};
      PL_TRY(pl_buf_add(c, b, esc, 2));
    } else {
      PL_TRY(pl_buf_printf(c, b, "\\u%04x", ch));
    }
    i++;
    from = i;
  }
  PL_TRY(pl_buf_add(c, b, s + from, n - from));
  return pl_buf_add(c, b, "\"", 1);
}

pl_status pl_json_put_number(pl_ctx *c, pl_buf *b, double v) {
  if (isnan(v)) {
    return pl_buf_puts(c, b, "\"nan\"");
  }
  if (isinf(v)) {
    return pl_buf_puts(c, b, v > 0 ? "\"inf\"" : "\"-inf\"");
  }
  char t[32];
  for (int digits = 15; digits <= 17; digits++) {
    snprintf(t, sizeof t, "%.*g", digits, v);
    if (strtod(t, NULL) == v) {
      break;
    }
  }
  return pl_buf_puts(c, b, t);
}
