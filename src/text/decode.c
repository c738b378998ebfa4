/* Decoders: a list of token strings becomes text. */
#include <string.h>

#include "base/mem.h"
#include "text/pipeline.h"
#include "text/utf8.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

pl_status pl_strings_end(pl_ctx *c, pl_strings *s) {
  if (s->n == s->cap) {
    size_t cap = s->cap ? s->cap * 2 : 64;
    size_t *ends = pl_realloc(c, s->ends, cap * sizeof *ends);
    if (!ends) {
      return PL_ENOMEM;
    }
    s->ends = ends;
    s->cap = cap;
  }
  s->ends[s->n] = s->text.len;
  s->n++;
  return PL_OK;
}

void pl_strings_free(pl_ctx *c, pl_strings *s) {
  pl_buf_free(c, &s->text);
  pl_free(c, s->ends);
  s->ends = NULL;
  s->n = 0;
  s->cap = 0;
}

static pl_status push(pl_ctx *c, pl_decs *p, pl_dec_kind kind, pl_dec **out) {
  pl_dec *at = pl_realloc(c, p->at, (p->n + 1) * sizeof *at);
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

static pl_status set_content(pl_ctx *c, const cJSON *j, const char *where, const char *key,
                             const char *usual, pl_dec *d) {
  const char *s = usual;
  PL_TRY(pl_json_str(c, j, where, key, &s));
  if (!s) {
    return pl_fail(c, PL_EFORMAT, "%s: %s is missing", where, key);
  }
  d->content = pl_strdup(c, s);
  d->content_len = strlen(s);
  return d->content ? PL_OK : PL_ENOMEM;
}

static pl_status read_count(pl_ctx *c, const cJSON *j, const char *key, int64_t *out) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
  if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0) || v->valuedouble > 1e9) {
    return pl_fail(c, PL_EFORMAT, "decoder Strip: %s must be a count", key);
  }
  *out = (int64_t)v->valuedouble;
  return PL_OK;
}

static pl_status read_strip(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const char *const keys[] = {"type", "content", "start", "stop", NULL};
  static const char where[] = "decoder Strip";
  pl_dec *d = NULL;
  size_t len = 0;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(push(c, out, PL_DEC_STRIP, &d));
  PL_TRY(set_content(c, j, where, "content", NULL, d));
  if (d->content_len == 0 || pl_utf8_next(d->content, d->content_len, &len) < 0 ||
      len != d->content_len) {
    return pl_fail(c, PL_EFORMAT, "%s: content must be one character", where);
  }
  PL_TRY(read_count(c, j, "start", &d->start));
  return read_count(c, j, "stop", &d->stop);
}

static pl_status read_replace(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const char *const keys[] = {"type", "pattern", "content", NULL};
  static const char where[] = "decoder Replace";
  pl_dec *d = NULL;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(push(c, out, PL_DEC_REPLACE, &d));
  PL_TRY(set_content(c, j, where, "content", NULL, d));
  return pl_json_pattern(c, j, where, &d->pattern);
}

static pl_status read_metaspace(pl_ctx *c, const cJSON *j, pl_decs *out) {
  bool split = true; /* says nothing about decoding */
  pl_dec *d = NULL;
  PL_TRY(push(c, out, PL_DEC_METASPACE, &d));
  return pl_metaspace_read(c, j, &d->metaspace, &split);
}

static pl_status read_bpe(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const char *const keys[] = {"type", "suffix", NULL};
  pl_dec *d = NULL;
  PL_TRY(pl_json_keys(c, j, "decoder BPEDecoder", keys));
  PL_TRY(push(c, out, PL_DEC_BPE, &d));
  PL_TRY(set_content(c, j, "decoder BPEDecoder", "suffix", "</w>", d));
  return pl_regex_new(c, d->content, d->content_len, true, &d->pattern);
}

static pl_status read_byte_level(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};
  pl_dec *d = NULL;
  PL_TRY(pl_json_keys(c, j, "decoder ByteLevel", keys));
  return push(c, out, PL_DEC_BYTE_LEVEL, &d);
}

static pl_status read_byte_fallback(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const char *const keys[] = {"type", NULL};
  pl_dec *d = NULL;
  PL_TRY(pl_json_keys(c, j, "decoder ByteFallback", keys));
  return push(c, out, PL_DEC_BYTE_FALLBACK, &d);
}

static pl_status read_fuse(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const char *const keys[] = {"type", NULL};
  pl_dec *d = NULL;
  PL_TRY(pl_json_keys(c, j, "decoder Fuse", keys));
  return push(c, out, PL_DEC_FUSE, &d);
}

static pl_status read_sequence(pl_ctx *c, const cJSON *j, pl_decs *out) {
  const cJSON *list = NULL;
  PL_TRY(pl_json_sequence(c, j, "decoder Sequence", "decoders", &list));
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, list) {
    PL_TRY(pl_decs_read(c, v, out));
  }
  return PL_OK;
}

pl_status pl_decs_read(pl_ctx *c, const cJSON *j, pl_decs *out) {
  static const struct {
    const char *type;
    pl_status (*read)(pl_ctx *c, const cJSON *j, pl_decs *out);
  } readers[] = {
      {"Sequence", read_sequence}, {"Replace", read_replace},
      {"ByteFallback", read_byte_fallback}, {"Fuse", read_fuse},
      {"Strip", read_strip},       {"ByteLevel", read_byte_level},
      {"Metaspace", read_metaspace}, {"BPEDecoder", read_bpe},
  };
  const char *type = NULL;
  if (!j || cJSON_IsNull(j)) {
    return PL_OK;
  }
  PL_TRY(pl_json_type(c, j, "a decoder", &type));
  out->given = true;
  for (size_t i = 0; i < sizeof readers / sizeof readers[0]; i++) {
    if (strcmp(type, readers[i].type) == 0) {
      return readers[i].read(c, j, out);
    }
  }
  return pl_fail(c, PL_EFORMAT,
                 "the decoder \"%.60s\" is not implemented; have Sequence, Replace, ByteFallback, "
                 "Fuse, Strip, ByteLevel, Metaspace, BPEDecoder",
                 type);
}

void pl_decs_free(pl_ctx *c, pl_decs *d) {
  for (size_t i = 0; i < d->n; i++) {
    pl_free(c, d->at[i].content);
    pl_regex_free(c, d->at[i].pattern);
  }
  pl_free(c, d->at);
  memset(d, 0, sizeof *d);
}

/* "<0xNN>" -> its byte, else -1. */
static int byte_token(const char *s, size_t n) {
  int value = 0;
  if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') {
    return -1;
  }
  for (int i = 3; i < 5; i++) {
    char ch = s[i];
    if (ch >= '0' && ch <= '9') {
      value = value * 16 + (ch - '0');
    } else if ((ch >= 'A' && ch <= 'F') || (ch >= 'a' && ch <= 'f')) {
      value = value * 16 + ((ch | 0x20) - 'a' + 10);
    } else {
      return -1;
    }
  }
  return value;
}

/* A run of byte tokens is one string if it is valid UTF-8, else a U+FFFD each. */
static pl_status end_run(pl_ctx *c, pl_buf *run, pl_strings *out) {
  if (run->len == 0) {
    return PL_OK;
  }
  if (pl_utf8_valid_prefix(run->data, run->len) == run->len) {
    PL_TRY(pl_buf_add(c, &out->text, run->data, run->len));
    PL_TRY(pl_strings_end(c, out));
  } else {
    for (size_t i = 0; i < run->len; i++) {
      PL_TRY(pl_buf_puts(c, &out->text, REPLACEMENT));
      PL_TRY(pl_strings_end(c, out));
    }
  }
  pl_buf_reset(run);
  return PL_OK;
}

static pl_status byte_fallback(pl_ctx *c, const pl_strings *in, pl_buf *run, pl_strings *out) {
  size_t at = 0;
  for (size_t i = 0; i < in->n; i++) {
    const char *s = in->text.data + at;
    size_t n = in->ends[i] - at;
    int byte = byte_token(s, n);
    at = in->ends[i];
    if (byte >= 0) {
      char b = (char)byte;
      PL_TRY(pl_buf_add(c, run, &b, 1));
      continue;
    }
    PL_TRY(end_run(c, run, out));
    PL_TRY(pl_buf_add(c, &out->text, s, n));
    PL_TRY(pl_strings_end(c, out));
  }
  return end_run(c, run, out);
}

/* Tokens back to bytes; one with a character that stands for no byte is taken as it is. */
static pl_status byte_level(pl_ctx *c, const pl_strings *in, pl_buf *bytes, pl_strings *out) {
  size_t at = 0;
  for (size_t i = 0; i < in->n; i++) {
    size_t before = bytes->len;
    size_t len = 0;
    bool all = true;
    for (size_t k = at; k < in->ends[i] && all; k += len) {
      int byte = pl_byte_level_byte(pl_utf8_next(in->text.data + k, in->ends[i] - k, &len));
      char b = (char)byte;
      all = byte >= 0;
      if (all) {
        PL_TRY(pl_buf_add(c, bytes, &b, 1));
      }
    }
    if (!all) {
      bytes->len = before;
      PL_TRY(pl_buf_add(c, bytes, in->text.data + at, in->ends[i] - at));
    }
    at = in->ends[i];
  }
  PL_TRY(pl_utf8_add_lossy(c, &out->text, bytes->data, bytes->len));
  return pl_strings_end(c, out);
}

/* Takes up to start (stop) copies of the content off the front (back). */
static pl_status strip(pl_ctx *c, const pl_dec *d, const char *s, size_t n, pl_buf *out) {
  size_t m = d->content_len;
  for (int64_t k = 0; k < d->start && n >= m && memcmp(s, d->content, m) == 0; k++) {
    s += m;
    n -= m;
  }
  for (int64_t k = 0; k < d->stop && n >= m && memcmp(s + n - m, d->content, m) == 0; k++) {
    n -= m;
  }
  return pl_buf_add(c, out, s, n);
}

static pl_status metaspace(pl_ctx *c, const pl_pre *p, const char *s, size_t n, bool first,
                           pl_buf *out) {
  size_t len = 0;
  for (size_t i = 0; i < n; i += len) {
    (void)pl_utf8_next(s + i, n - i, &len);
    if (len != p->mark_len || memcmp(s + i, p->mark, len) != 0) {
      PL_TRY(pl_buf_add(c, out, s + i, len));
    } else if (!first || p->prepend == PL_PREPEND_NEVER) {
      PL_TRY(pl_buf_add(c, out, " ", 1));
    }
  }
  return PL_OK;
}

/* One decoder that works token by token. */
static pl_status each_token(pl_ctx *c, const pl_dec *d, pl_spans *spans, const pl_strings *in,
                            pl_strings *out) {
  size_t at = 0;
  for (size_t i = 0; i < in->n; i++) {
    const char *s = in->text.data ? in->text.data + at : "";
    size_t n = in->ends[i] - at;
    at = in->ends[i];
    if (d->kind == PL_DEC_REPLACE) {
      PL_TRY(pl_regex_replace(c, d->pattern, s, n, d->content, d->content_len, spans, &out->text));
    } else if (d->kind == PL_DEC_BPE) {
      bool last = i + 1 == in->n;
      PL_TRY(pl_regex_replace(c, d->pattern, s, n, " ", last ? 0 : 1, spans, &out->text));
    } else if (d->kind == PL_DEC_STRIP) {
      PL_TRY(strip(c, d, s, n, &out->text));
    } else {
      PL_TRY(metaspace(c, &d->metaspace, s, n, i == 0, &out->text));
    }
    PL_TRY(pl_strings_end(c, out));
  }
  return PL_OK;
}

static pl_status apply_one(pl_ctx *c, const pl_dec *d, pl_spans *spans, const pl_strings *in,
                           pl_strings *out) {
  pl_buf bytes;
  pl_buf_init(&bytes, PL_TEXT_MAX);
  pl_status st = PL_OK;
  if (d->kind == PL_DEC_BYTE_FALLBACK) {
    st = byte_fallback(c, in, &bytes, out);
  } else if (d->kind == PL_DEC_BYTE_LEVEL) {
    st = byte_level(c, in, &bytes, out);
  } else if (d->kind == PL_DEC_FUSE) {
    st = pl_buf_add(c, &out->text, in->text.data, in->text.len);
    if (st == PL_OK) {
      st = pl_strings_end(c, out);
    }
  } else {
    st = each_token(c, d, spans, in, out);
  }
  pl_buf_free(c, &bytes);
  return st;
}

pl_status pl_decs_apply(pl_ctx *c, const pl_decs *d, pl_spans *spans, pl_strings *tokens,
                        pl_strings *other, pl_buf *out) {
  if (!d->given) {
    size_t at = 0;
    for (size_t i = 0; i < tokens->n; i++) {
      PL_TRY(pl_buf_puts(c, out, i ? " " : ""));
      PL_TRY(pl_buf_add(c, out, tokens->text.data + at, tokens->ends[i] - at));
      at = tokens->ends[i];
    }
    return PL_OK;
  }
  for (size_t i = 0; i < d->n; i++) {
    other->n = 0;
    pl_buf_reset(&other->text);
    PL_TRY(apply_one(c, &d->at[i], spans, tokens, other));
    pl_strings swap = *tokens;
    *tokens = *other;
    *other = swap;
  }
  return pl_buf_add(c, out, tokens->text.data, tokens->text.len);
}
