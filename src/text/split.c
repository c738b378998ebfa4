/* Pre-tokenizers: Split and its named forms, ByteLevel, Metaspace. */
#include <string.h>

#include "base/mem.h"
#include "text/pipeline.h"
#include "text/utf8.h"

static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

pl_status pl_pieces_add(pl_ctx *c, pl_pieces *p, pl_piece piece) {
  if (p->n == p->cap) {
    size_t cap = p->cap ? p->cap * 2 : 64;
    pl_piece *at = pl_realloc(c, p->at, cap * sizeof *at);
    if (!at) {
      return PL_ENOMEM;
    }
    p->at = at;
    p->cap = cap;
  }
  p->at[p->n] = piece;
  p->n++;
  return PL_OK;
}

void pl_pieces_free(pl_ctx *c, pl_pieces *p) {
  pl_buf_free(c, &p->text);
  pl_free(c, p->at);
  p->at = NULL;
  p->n = 0;
  p->cap = 0;
}

static bool shows_itself(int b) {
  return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

/* Bytes that print as themselves keep their number, the others follow from 256 on. */
static int32_t byte_level_char(int byte) {
  if (shows_itself(byte)) {
    return byte;
  }
  if (byte <= 0x20) {
    return 0x100 + byte;
  }
  return byte == 0xad ? 0x143 : 0x121 + byte - 0x7f;
}

int pl_byte_level_byte(int32_t cp) {
  if (cp >= 0 && cp < 0x100) {
    return shows_itself(cp) ? cp : -1;
  }
  if (cp >= 0x100 && cp <= 0x120) {
    return cp - 0x100;
  }
  if (cp >= 0x121 && cp <= 0x142) {
    return cp - 0x121 + 0x7f;
  }
  return cp == 0x143 ? 0xad : -1;
}

pl_status pl_byte_level_add(pl_ctx *c, pl_buf *out, const char *s, size_t n) {
  char block[512];
  size_t used = 0;
  for (size_t i = 0; i < n; i++) {
    if (used > sizeof block - 4) {
      PL_TRY(pl_buf_add(c, out, block, used));
      used = 0;
    }
    used += pl_utf8_put(block + used, byte_level_char((unsigned char)s[i]));
  }
  return pl_buf_add(c, out, block, used);
}

static pl_status push(pl_ctx *c, pl_pres *p, pl_pre_kind kind, pl_pre **out) {
  pl_pre *at = pl_realloc(c, p->at, (p->n + 1) * sizeof *at);
  if (!at) {
    return PL_ENOMEM;
  }
  p->at = at;
  *out = &p->at[p->n];
  memset(*out, 0, sizeof **out);
  (*out)->kind = kind;
  p->n++;
  return PL_OK;
}

static pl_status read_behavior(pl_ctx *c, const cJSON *j, const char *where, pl_behavior *out) {
  static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                      "MergedWithNext", "Contiguous"};
  const char *s = names[*out];
  PL_TRY(pl_json_str(c, j, where, "behavior", &s));
  for (int i = 0; i < 5; i++) {
    if (strcmp(s, names[i]) == 0) {
      *out = (pl_behavior)i;
      return PL_OK;
    }
  }
  return pl_fail(c, PL_EFORMAT, "%s: unknown behavior \"%.40s\"", where, s);
}

static pl_status read_byte_level(pl_ctx *c, const cJSON *j, pl_pres *out) {
  static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};
  static const char where[] = "pre-tokenizer ByteLevel";
  bool prefix = true;
  bool regex = true;
  pl_pre *p = NULL;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(pl_json_bool(c, j, where, "add_prefix_space", &prefix));
  PL_TRY(pl_json_bool(c, j, where, "use_regex", &regex));
  PL_TRY(push(c, out, PL_PRE_BYTE_LEVEL, &p));
  p->prepend = prefix ? PL_PREPEND_ALWAYS : PL_PREPEND_NEVER;
  return regex ? pl_regex_new(c, gpt2_pattern, sizeof gpt2_pattern - 1, false, &p->pattern) : PL_OK;
}

pl_status pl_metaspace_read(pl_ctx *c, const cJSON *j, pl_pre *out, bool *split) {
  static const char *const keys[] = {"type", "replacement", "prepend_scheme", "add_prefix_space",
                                     "split", "str_rep", NULL};
  static const char where[] = "Metaspace";
  const char *mark = "\xe2\x96\x81";
  const char *scheme = NULL;
  const char *str_rep = NULL;
  bool prefix = true;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(pl_json_str(c, j, where, "replacement", &mark));
  PL_TRY(pl_json_str(c, j, where, "prepend_scheme", &scheme));
  PL_TRY(pl_json_str(c, j, where, "str_rep", &str_rep));
  PL_TRY(pl_json_bool(c, j, where, "add_prefix_space", &prefix));
  PL_TRY(pl_json_bool(c, j, where, "split", split));
  size_t n = strlen(mark);
  size_t first = 0;
  if (n == 0 || pl_utf8_next(mark, n, &first) < 0 || first != n) {
    return pl_fail(c, PL_EFORMAT, "%s: replacement must be one character", where);
  }
  memcpy(out->mark, mark, n);
  out->mark_len = n;
  if (str_rep && strcmp(str_rep, mark) != 0) {
    return pl_fail(c, PL_EFORMAT, "%s: str_rep differs from replacement", where);
  }
  if (!prefix && scheme && strcmp(scheme, "never") != 0) {
    return pl_fail(c, PL_EFORMAT, "%s: add_prefix_space and prepend_scheme contradict", where);
  }
  if (!prefix || (scheme && strcmp(scheme, "never") == 0)) {
    out->prepend = PL_PREPEND_NEVER;
  } else if (!scheme || strcmp(scheme, "always") == 0) {
    out->prepend = PL_PREPEND_ALWAYS;
  } else if (strcmp(scheme, "first") == 0) {
    out->prepend = PL_PREPEND_FIRST;
  } else {
    return pl_fail(c, PL_EFORMAT, "%s: unknown prepend_scheme \"%.40s\"", where, scheme);
  }
  return PL_OK;
}

static pl_status read_metaspace(pl_ctx *c, const cJSON *j, pl_pres *out) {
  bool split = true;
  pl_pre *p = NULL;
  PL_TRY(push(c, out, PL_PRE_METASPACE, &p));
  PL_TRY(pl_metaspace_read(c, j, p, &split));
  p->behavior = PL_MERGED_WITH_NEXT;
  return split ? pl_regex_new(c, p->mark, p->mark_len, true, &p->pattern) : PL_OK;
}

static pl_status read_split(pl_ctx *c, const cJSON *j, pl_pres *out) {
  static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
  static const char where[] = "pre-tokenizer Split";
  pl_pre *p = NULL;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(push(c, out, PL_PRE_SPLIT, &p));
  PL_TRY(read_behavior(c, j, where, &p->behavior));
  PL_TRY(pl_json_bool(c, j, where, "invert", &p->invert));
  return pl_json_pattern(c, j, where, &p->pattern);
}

/* Pre-tokenizers that are a Split under another name. */
static const struct named_split {
  const char *type, *pattern;
  pl_behavior behavior;
  bool invert;
} named_splits[] = {
    {"Whitespace", "[\\w\\x{200c}\\x{200d}]+|[^\\w\\s\\x{200c}\\x{200d}]+", PL_REMOVED, true},
    {"WhitespaceSplit", "\\s", PL_REMOVED, false},
    {"Punctuation", "[!-/:-@\\[-`{-~\\p{P}]", PL_ISOLATED, false},
    {"Digits", "\\p{N}", PL_CONTIGUOUS, false},
};

static pl_status read_named_split(pl_ctx *c, const cJSON *j, const struct named_split *d,
                                  pl_pres *out) {
  static const char *const keys[] = {"type", NULL};
  static const char *const digits_keys[] = {"type", "individual_digits", NULL};
  static const char *const punctuation_keys[] = {"type", "behavior", NULL};
  bool digits = strcmp(d->type, "Digits") == 0;
  bool punctuation = strcmp(d->type, "Punctuation") == 0;
  bool each = false;
  pl_pre *p = NULL;
  PL_TRY(pl_json_keys(c, j, d->type,
                      digits ? digits_keys : (punctuation ? punctuation_keys : keys)));
  PL_TRY(push(c, out, PL_PRE_SPLIT, &p));
  p->behavior = d->behavior;
  p->invert = d->invert;
  if (digits) {
    PL_TRY(pl_json_bool(c, j, d->type, "individual_digits", &each));
    p->behavior = each ? PL_ISOLATED : PL_CONTIGUOUS;
  }
  if (punctuation) {
    PL_TRY(read_behavior(c, j, d->type, &p->behavior));
  }
  return pl_regex_new(c, d->pattern, strlen(d->pattern), false, &p->pattern);
}

static pl_status read_delimiter(pl_ctx *c, const cJSON *j, pl_pres *out) {
  static const char *const keys[] = {"type", "delimiter", NULL};
  static const char where[] = "pre-tokenizer CharDelimiterSplit";
  const char *s = "";
  pl_pre *p = NULL;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(pl_json_str(c, j, where, "delimiter", &s));
  PL_TRY(push(c, out, PL_PRE_SPLIT, &p));
  p->behavior = PL_REMOVED;
  return pl_regex_new(c, s, strlen(s), true, &p->pattern);
}

static pl_status read_sequence(pl_ctx *c, const cJSON *j, pl_pres *out) {
  const cJSON *list = NULL;
  PL_TRY(pl_json_sequence(c, j, "pre-tokenizer Sequence", "pretokenizers", &list));
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, list) {
    PL_TRY(pl_pres_read(c, v, out));
  }
  return PL_OK;
}

pl_status pl_pres_read(pl_ctx *c, const cJSON *j, pl_pres *out) {
  static const struct {
    const char *type;
    pl_status (*read)(pl_ctx *c, const cJSON *j, pl_pres *out);
  } readers[] = {
      {"Sequence", read_sequence}, {"ByteLevel", read_byte_level}, {"Metaspace", read_metaspace},
      {"Split", read_split},       {"CharDelimiterSplit", read_delimiter},
  };
  const char *type = NULL;
  if (!j || cJSON_IsNull(j)) {
    return PL_OK;
  }
  PL_TRY(pl_json_type(c, j, "a pre-tokenizer", &type));
  for (size_t i = 0; i < sizeof readers / sizeof readers[0]; i++) {
    if (strcmp(type, readers[i].type) == 0) {
      return readers[i].read(c, j, out);
    }
  }
  for (size_t i = 0; i < sizeof named_splits / sizeof named_splits[0]; i++) {
    if (strcmp(type, named_splits[i].type) == 0) {
      return read_named_split(c, j, &named_splits[i], out);
    }
  }
  return pl_fail(c, PL_EFORMAT,
                 "the pre-tokenizer \"%.60s\" is not implemented; have Sequence, ByteLevel, "
                 "Metaspace, Split, CharDelimiterSplit, Whitespace, WhitespaceSplit, Punctuation, "
                 "Digits",
                 type);
}

void pl_pres_free(pl_ctx *c, pl_pres *p) {
  for (size_t i = 0; i < p->n; i++) {
    pl_regex_free(c, p->at[i].pattern);
  }
  pl_free(c, p->at);
  memset(p, 0, sizeof *p);
}

/* Joins neighbouring spans as the behavior says; in place, as Hugging Face folds them. */
static void fold(pl_spans *s, pl_behavior behavior) {
  size_t n = 0;
  bool previous = false;
  if (behavior == PL_MERGED_WITH_NEXT) { /* the same fold from the other end */
    size_t to = s->n;
    for (size_t i = s->n; i > 0; i--) {
      pl_span span = s->at[i - 1];
      if (span.match && !previous && to < s->n) {
        s->at[to].begin = span.begin;
      } else {
        to--;
        s->at[to] = span;
      }
      previous = span.match;
    }
    memmove(s->at, s->at + to, (s->n - to) * sizeof *s->at);
    s->n -= to;
    return;
  }
  for (size_t i = 0; i < s->n; i++) {
    pl_span span = s->at[i];
    bool join = behavior == PL_CONTIGUOUS ? span.match == previous : span.match && !previous;
    if (join && n > 0) {
      s->at[n - 1].end = span.end;
    } else {
      s->at[n] = span;
      n++;
    }
    previous = span.match;
  }
  s->n = n;
}

/* Cuts in.at's text pieces with the pattern; the text stays the same. */
static pl_status split_pieces(pl_ctx *c, const pl_pre *p, pl_spans *spans, const pl_pieces *in,
                              pl_pieces *out) {
  out->n = 0;
  for (size_t i = 0; i < in->n; i++) {
    const pl_piece *piece = &in->at[i];
    if (piece->id >= 0) {
      PL_TRY(pl_pieces_add(c, out, *piece));
      continue;
    }
    size_t n = piece->end - piece->begin;
    PL_TRY(pl_regex_spans(c, p->pattern, in->text.data + piece->begin, n, spans));
    for (size_t k = 0; k < spans->n && p->invert; k++) {
      spans->at[k].match = !spans->at[k].match;
    }
    if (p->behavior != PL_ISOLATED && p->behavior != PL_REMOVED) {
      fold(spans, p->behavior);
    }
    for (size_t k = 0; k < spans->n; k++) {
      const pl_span *s = &spans->at[k];
      if (s->begin < s->end && !(s->match && p->behavior == PL_REMOVED)) {
        pl_piece part = {piece->begin + s->begin, piece->begin + s->end, -1,
                         piece->first && s->begin == 0};
        PL_TRY(pl_pieces_add(c, out, part));
      }
    }
  }
  return PL_OK;
}

static bool wants_mark(const pl_pre *p, const pl_piece *piece, const char *s, const char *mark,
                       size_t mark_len) {
  bool has = piece->end - piece->begin >= mark_len && memcmp(s, mark, mark_len) == 0;
  return !has && (p->prepend == PL_PREPEND_ALWAYS ||
                  (p->prepend == PL_PREPEND_FIRST && piece->first));
}

/* Blanks become the mark, and one is put in front where the scheme asks for it. */
static pl_status metaspace_text(pl_ctx *c, const pl_pre *p, const pl_piece *piece, const char *s,
                                pl_buf *out) {
  size_t n = piece->end - piece->begin;
  bool blank = s[0] == ' '; /* becomes the mark, so it counts as one */
  if (!blank && wants_mark(p, piece, s, p->mark, p->mark_len)) {
    PL_TRY(pl_buf_add(c, out, p->mark, p->mark_len));
  }
  for (size_t i = 0; i < n;) {
    const char *hit = memchr(s + i, ' ', n - i);
    size_t at = hit ? (size_t)(hit - s) : n;
    PL_TRY(pl_buf_add(c, out, s + i, at - i));
    if (hit) {
      PL_TRY(pl_buf_add(c, out, p->mark, p->mark_len));
      at++;
    }
    i = at;
  }
  return PL_OK;
}

typedef enum rewrite { REWRITE_PREFIX, REWRITE_BYTES, REWRITE_METASPACE } rewrite;

/* New text for every piece. */
static pl_status rewrite_pieces(pl_ctx *c, const pl_pre *p, rewrite how, const pl_pieces *in,
                                pl_pieces *out) {
  out->n = 0;
  pl_buf_reset(&out->text);
  for (size_t i = 0; i < in->n; i++) {
    pl_piece piece = in->at[i];
    if (piece.id < 0) {
      const char *s = in->text.data + piece.begin;
      size_t n = piece.end - piece.begin;
      size_t begin = out->text.len;
      if (how == REWRITE_METASPACE) {
        PL_TRY(metaspace_text(c, p, &piece, s, &out->text));
      } else if (how == REWRITE_BYTES) {
        PL_TRY(pl_byte_level_add(c, &out->text, s, n));
      } else {
        PL_TRY(pl_buf_puts(c, &out->text, wants_mark(p, &piece, s, " ", 1) ? " " : ""));
        PL_TRY(pl_buf_add(c, &out->text, s, n));
      }
      piece.begin = begin;
      piece.end = out->text.len;
    }
    PL_TRY(pl_pieces_add(c, out, piece));
  }
  return PL_OK;
}

/* The two lists trade places; text goes along only where it was rewritten. */
static void trade(pl_pieces *a, pl_pieces *b, bool text) {
  pl_pieces t = *a;
  *a = *b;
  *b = t;
  if (!text) {
    pl_buf keep = a->text;
    a->text = b->text;
    b->text = keep;
  }
}

pl_status pl_pres_apply(pl_ctx *c, const pl_pres *p, pl_spans *spans, pl_pieces *pieces,
                        pl_pieces *other) {
  for (size_t i = 0; i < p->n; i++) {
    const pl_pre *pre = &p->at[i];
    if (pre->kind == PL_PRE_METASPACE) {
      PL_TRY(rewrite_pieces(c, pre, REWRITE_METASPACE, pieces, other));
      trade(pieces, other, true);
    } else if (pre->kind == PL_PRE_BYTE_LEVEL && pre->prepend == PL_PREPEND_ALWAYS) {
      PL_TRY(rewrite_pieces(c, pre, REWRITE_PREFIX, pieces, other));
      trade(pieces, other, true);
    }
    if (pre->pattern) {
      PL_TRY(split_pieces(c, pre, spans, pieces, other));
      trade(pieces, other, false);
    }
    if (pre->kind == PL_PRE_BYTE_LEVEL) {
      PL_TRY(rewrite_pieces(c, pre, REWRITE_BYTES, pieces, other));
      trade(pieces, other, true);
    }
  }
  return PL_OK;
}
