/* Patterns over PCRE2 with JIT. The translation makes \s \w \d mean in PCRE2
 * what they mean in Oniguruma with Unicode, and refuses what it cannot say. */
#define _GNU_SOURCE /* memmem */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>
#include <string.h>

#include "base/mem.h"
#include "text/utf8.h"

#define PATTERN_MAX ((size_t)1 << 20)
#define JIT_STACK_MAX ((size_t)8 << 20)
#define POLL_EVERY 4096 /* matches between two looks at the interrupt flag */

struct pl_regex {
  char *literal; /* or the compiled pattern: */
  size_t literal_len;
  pcre2_code *code;
  pcre2_match_data *found;
  pcre2_match_context *match;
  pcre2_jit_stack *stack;
};

pl_status pl_spans_add(pl_ctx *c, pl_spans *s, size_t begin, size_t end, bool match) {
  if (s->n == s->cap) {
    size_t cap = s->cap ? s->cap * 2 : 64;
    pl_span *at = pl_realloc(c, s->at, cap * sizeof *at);
    if (!at) {
      return PL_ENOMEM;
    }
    s->at = at;
    s->cap = cap;
  }
  s->at[s->n].begin = begin;
  s->at[s->n].end = end;
  s->at[s->n].match = match;
  s->n++;
  return PL_OK;
}

void pl_spans_free(pl_ctx *c, pl_spans *s) {
  pl_free(c, s->at);
  memset(s, 0, sizeof *s);
}

/* Oniguruma's \w: letters with Other_Alphabetic, marks, decimal digits, connectors. */
#define WORD_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

/* One escape, p[0] is the character after the backslash; *used: bytes of p taken. */
static pl_status translate_escape(pl_ctx *c, const char *p, size_t n, bool in_class, pl_buf *out,
                                  size_t *used) {
  *used = 1;
  switch (p[0]) {
    case 's':
      return pl_buf_puts(c, out, "\\p{White_Space}");
    case 'S':
      return pl_buf_puts(c, out, "\\P{White_Space}");
    case 'd':
      return pl_buf_puts(c, out, "\\p{Nd}");
    case 'D':
      return pl_buf_puts(c, out, "\\P{Nd}");
    case 'w':
      return pl_buf_puts(c, out, in_class ? WORD_SET : "[" WORD_SET "]");
    case 'W':
      if (in_class) {
        return pl_fail(c, PL_EFORMAT, "\\W inside [...] is not supported");
      }
      return pl_buf_puts(c, out, "[^" WORD_SET "]");
    case 'h':
      return pl_buf_puts(c, out, in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]");
    case 'v':
      return pl_buf_puts(c, out, "\\x0b");
    case 'u':
      if (n < 5) {
        return pl_fail(c, PL_EFORMAT, "\\u needs four hexadecimal digits");
      }
      *used = 5;
      return pl_buf_printf(c, out, "\\x{%.4s}", p + 1);
    default:
      break;
  }
  unsigned char b = (unsigned char)p[0];
  bool letter = (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || (b >= '0' && b <= '9');
  if (letter && !strchr("pPxnrtfaeAzZ0", b)) {
    return pl_fail(c, PL_EFORMAT, "the escape \\%c is not supported", b);
  }
  PL_TRY(pl_buf_add(c, out, "\\", 1));
  if (strchr("pPx", b) && n > 1 && p[1] == '{') {
    const char *close = memchr(p, '}', n);
    *used = close ? (size_t)(close - p) + 1 : n;
  }
  return pl_buf_add(c, out, p, *used);
}

/* After "(?": only the group forms that mean the same in both. */
static pl_status check_group(pl_ctx *c, const char *p, size_t n) {
  if (n > 0 && strchr(":=!>#<", p[0])) {
    return PL_OK;
  }
  for (size_t i = 0; i < n && p[i] != ':' && p[i] != ')'; i++) {
    if (p[i] != 'i' && p[i] != '-') {
      return pl_fail(c, PL_EFORMAT, "the group option (?%c is not supported (only i is)", p[i]);
    }
  }
  return PL_OK;
}

static pl_status translate(pl_ctx *c, const char *p, size_t n, pl_buf *out) {
  bool in_class = false;
  bool in_interval = false;
  size_t class_start = 0;
  for (size_t i = 0; i < n; i++) {
    char ch = p[i];
    size_t left = n - i - 1;
    if (ch == '\\' && left > 0) {
      size_t used = 0;
      PL_TRY(translate_escape(c, p + i + 1, left, in_class, out, &used));
      i += used;
      continue;
    }
    if (in_class) {
      if (ch == '[') {
        return pl_fail(c, PL_EFORMAT, "a set inside [...] is not supported: write \\[ for itself");
      }
      if (ch == '&' && left > 0 && p[i + 1] == '&') {
        return pl_fail(c, PL_EFORMAT, "&& inside [...] is not supported");
      }
      in_class = ch != ']' || i == class_start;
    } else if (ch == '[') {
      in_class = true;
      class_start = i + 1 + (left > 0 && p[i + 1] == '^');
    } else if (ch == '(' && left > 0 && p[i + 1] == '?') {
      PL_TRY(check_group(c, p + i + 2, left - 1));
    } else if (ch == '{') {
      in_interval = true;
    } else if (ch == '}' && in_interval) {
      in_interval = false;
      if (left > 0 && p[i + 1] == '+') {
        return pl_fail(c, PL_EFORMAT, "{n,m}+ is not supported: its meaning differs by library");
      }
    }
    PL_TRY(pl_buf_add(c, out, &ch, 1));
  }
  return PL_OK;
}

static pl_status compile(pl_ctx *c, pl_regex *r, const char *pattern, size_t n) {
  pl_buf b;
  pl_buf_init(&b, PATTERN_MAX);
  pl_status st = translate(c, pattern, n, &b);
  if (st == PL_OK) {
    int error = 0;
    PCRE2_SIZE at = 0;
    /* Oniguruma's ^ and $ are about lines, hence MULTILINE. */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    r->code = pcre2_compile((PCRE2_SPTR)(b.data ? b.data : ""), b.len, options, &error, &at, NULL);
    if (!r->code) {
      PCRE2_UCHAR text[160] = {0};
      pcre2_get_error_message(error, text, sizeof text);
      st = pl_fail(c, PL_EFORMAT, "%s at byte %zu", (char *)text, (size_t)at);
    }
  }
  pl_buf_free(c, &b);
  if (st != PL_OK) {
    return pl_fail_in(c, st, "pattern \"%.*s\"", (int)(n < 200 ? n : 200), pattern);
  }
  (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* without JIT: slower, same result */
  r->found = pcre2_match_data_create(1, NULL);
  r->match = pcre2_match_context_create(NULL);
  r->stack = pcre2_jit_stack_create((size_t)32 << 10, JIT_STACK_MAX, NULL);
  if (!r->found || !r->match) {
    return pl_fail(c, PL_ENOMEM, "out of memory compiling a pattern");
  }
  pcre2_jit_stack_assign(r->match, NULL, r->stack);
  return PL_OK;
}

pl_status pl_regex_new(pl_ctx *c, const char *pattern, size_t n, bool literal, pl_regex **out) {
  *out = NULL;
  if (n == 0) {
    return pl_fail(c, PL_EFORMAT, "an empty pattern matches nothing of use");
  }
  pl_regex *r = pl_alloc_zero(c, sizeof *r);
  if (!r) {
    return PL_ENOMEM;
  }
  pl_status st = PL_OK;
  if (literal) {
    r->literal = pl_alloc(c, n);
    if (r->literal) {
      memcpy(r->literal, pattern, n);
      r->literal_len = n;
    } else {
      st = PL_ENOMEM;
    }
  } else {
    st = compile(c, r, pattern, n);
  }
  if (st != PL_OK) {
    pl_regex_free(c, r);
    return st;
  }
  *out = r;
  return PL_OK;
}

void pl_regex_free(pl_ctx *c, pl_regex *r) {
  if (!r) {
    return;
  }
  pl_free(c, r->literal);
  pcre2_match_data_free(r->found);
  pcre2_match_context_free(r->match);
  pcre2_jit_stack_free(r->stack);
  pcre2_code_free(r->code);
  pl_free(c, r);
}

static pl_status literal_spans(pl_ctx *c, const pl_regex *r, const char *s, size_t n,
                               pl_spans *out) {
  size_t done = 0;
  while (done < n) {
    const char *hit = memmem(s + done, n - done, r->literal, r->literal_len);
    size_t at = hit ? (size_t)(hit - s) : n;
    if (at > done) {
      PL_TRY(pl_spans_add(c, out, done, at, false));
    }
    if (hit) {
      PL_TRY(pl_spans_add(c, out, at, at + r->literal_len, true));
      at += r->literal_len;
    }
    done = at;
  }
  return PL_OK;
}

/* Matches inside the valid stretch s[from, to); *prev: end of what is covered. */
static pl_status stretch_spans(pl_ctx *c, pl_regex *r, const char *s, size_t from, size_t to,
                               size_t *prev, pl_spans *out) {
  const PCRE2_SIZE *v = pcre2_get_ovector_pointer(r->found);
  PCRE2_SPTR text = (PCRE2_SPTR)s + from;
  size_t n = to - from;
  size_t at = 0;
  size_t last = PCRE2_UNSET; /* end of the match before */
  uint32_t count = 0;
  while (at <= n) {
    int rc = pcre2_match(r->code, text, n, at, PCRE2_NO_UTF_CHECK, r->found, r->match);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT;
      rc = pcre2_match(r->code, text, n, at, options, r->found, r->match);
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
      return PL_OK;
    }
    if (rc < 0) {
      PCRE2_UCHAR why[160] = {0};
      pcre2_get_error_message(rc, why, sizeof why);
      return pl_fail(c, PL_EFORMAT, "the tokenizer's split pattern failed on this text: %s",
                     (char *)why);
    }
    if (v[0] < at || v[1] < v[0]) {
      return pl_fail(c, PL_EFORMAT, "the tokenizer's split pattern matches backwards (\\K)");
    }
    size_t step = 1;
    if (v[1] < n) {
      (void)pl_utf8_next((const char *)text + v[1], n - v[1], &step);
    }
    if (v[0] == v[1] && v[1] == last) { /* an empty match right behind a match is none */
      at = v[1] + step;
      last = PCRE2_UNSET;
      continue;
    }
    if (from + v[0] > *prev) {
      PL_TRY(pl_spans_add(c, out, *prev, from + v[0], false));
    }
    PL_TRY(pl_spans_add(c, out, from + v[0], from + v[1], true));
    *prev = from + v[1];
    last = v[1];
    at = v[0] == v[1] ? v[1] + step : v[1];
    count++;
    if (count % POLL_EVERY == 0) {
      PL_TRY(pl_check_interrupt(c));
    }
  }
  return PL_OK;
}

pl_status pl_regex_spans(pl_ctx *c, pl_regex *r, const char *s, size_t n, pl_spans *out) {
  out->n = 0;
  if (n == 0) {
    return PL_OK;
  }
  if (r->literal) {
    return literal_spans(c, r, s, n, out);
  }
  size_t prev = 0;
  size_t at = 0;
  while (at < n) {
    size_t good = pl_utf8_valid_prefix(s + at, n - at);
    if (good > 0) {
      PL_TRY(stretch_spans(c, r, s, at, at + good, &prev, out));
    }
    at += good;
    if (at < n) {
      size_t bad = 0;
      (void)pl_utf8_next(s + at, n - at, &bad);
      at += bad;
    }
  }
  if (prev < n) {
    PL_TRY(pl_spans_add(c, out, prev, n, false));
  }
  return PL_OK;
}

pl_status pl_regex_replace(pl_ctx *c, pl_regex *r, const char *s, size_t n, const char *with,
                           size_t with_len, pl_spans *scratch, pl_buf *out) {
  PL_TRY(pl_regex_spans(c, r, s, n, scratch));
  for (size_t i = 0; i < scratch->n; i++) {
    const pl_span *p = &scratch->at[i];
    if (p->match) {
      PL_TRY(pl_buf_add(c, out, with, with_len));
    } else {
      PL_TRY(pl_buf_add(c, out, s + p->begin, p->end - p->begin));
    }
  }
  return PL_OK;
}
