/* Normalizers: Prepend, Replace, Strip, ByteLevel, NFC, NFD, and Sequences of them. */
#include <string.h>

#include "base/mem.h"
#include "text/nfc.h"
#include "text/pipeline.h"
#include "text/utf8.h"

static pl_status push(pl_ctx *c, pl_norms *p, pl_norm_kind kind, pl_norm **out) {
  pl_norm *at = pl_realloc(c, p->at, (p->n + 1) * sizeof *at);
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
                             pl_norm *m) {
  const char *s = NULL;
  PL_TRY(pl_json_str(c, j, where, key, &s));
  if (!s) {
    return pl_fail(c, PL_EFORMAT, "%s: %s is missing", where, key);
  }
  m->content = pl_strdup(c, s);
  m->content_len = strlen(s);
  return m->content ? PL_OK : PL_ENOMEM;
}

static pl_status read_sequence(pl_ctx *c, const cJSON *j, pl_norms *out) {
  const cJSON *list = NULL;
  PL_TRY(pl_json_sequence(c, j, "normalizer Sequence", "normalizers", &list));
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, list) {
    PL_TRY(pl_norms_read(c, v, out));
  }
  return PL_OK;
}

pl_status pl_norms_read(pl_ctx *c, const cJSON *j, pl_norms *out) {
  static const char *const prepend_keys[] = {"type", "prepend", NULL};
  static const char *const replace_keys[] = {"type", "pattern", "content", NULL};
  static const char *const strip_keys[] = {"type", "strip_left", "strip_right", NULL};
  static const char *const type_key[] = {"type", NULL};
  if (!j || cJSON_IsNull(j)) {
    return PL_OK;
  }
  const char *type = NULL;
  pl_norm *m = NULL;
  PL_TRY(pl_json_type(c, j, "a normalizer", &type));
  if (strcmp(type, "Sequence") == 0) {
    return read_sequence(c, j, out);
  }
  if (strcmp(type, "Prepend") == 0) {
    PL_TRY(pl_json_keys(c, j, "normalizer Prepend", prepend_keys));
    PL_TRY(push(c, out, PL_NORM_PREPEND, &m));
    return set_content(c, j, "normalizer Prepend", "prepend", m);
  }
  if (strcmp(type, "Replace") == 0) {
    PL_TRY(pl_json_keys(c, j, "normalizer Replace", replace_keys));
    PL_TRY(push(c, out, PL_NORM_REPLACE, &m));
    PL_TRY(set_content(c, j, "normalizer Replace", "content", m));
    return pl_json_pattern(c, j, "normalizer Replace", &m->pattern);
  }
  if (strcmp(type, "Strip") == 0) {
    PL_TRY(pl_json_keys(c, j, "normalizer Strip", strip_keys));
    PL_TRY(push(c, out, PL_NORM_STRIP, &m));
    PL_TRY(pl_json_bool(c, j, "normalizer Strip", "strip_left", &m->left));
    return pl_json_bool(c, j, "normalizer Strip", "strip_right", &m->right);
  }
  if (strcmp(type, "ByteLevel") == 0) {
    PL_TRY(pl_json_keys(c, j, "normalizer ByteLevel", type_key));
    return push(c, out, PL_NORM_BYTES, &m);
  }
  if (strcmp(type, "NFC") == 0 || strcmp(type, "NFD") == 0) {
    PL_TRY(pl_json_keys(c, j, type, type_key));
    return push(c, out, type[2] == 'C' ? PL_NORM_NFC : PL_NORM_NFD, &m);
  }
  return pl_fail(c, PL_EFORMAT,
                 "the normalizer \"%.60s\" is not implemented; have Sequence, Prepend, Replace, "
                 "Strip, ByteLevel, NFC, NFD",
                 type);
}

void pl_norms_free(pl_ctx *c, pl_norms *p) {
  for (size_t i = 0; i < p->n; i++) {
    pl_free(c, p->at[i].content);
    pl_regex_free(c, p->at[i].pattern);
  }
  pl_free(c, p->at);
  memset(p, 0, sizeof *p);
}

static pl_status strip(pl_ctx *c, const pl_norm *m, const char *s, size_t n, pl_buf *out) {
  size_t from = 0;
  size_t len = 0;
  while (m->left && from < n && pl_is_white_space(pl_utf8_next(s + from, n - from, &len))) {
    from += len;
  }
  while (m->right && n > from) {
    size_t last = pl_utf8_last(s, n);
    if (!pl_is_white_space(pl_utf8_next(s + n - last, last, &len))) {
      break;
    }
    n -= last;
  }
  return pl_buf_add(c, out, s + from, n - from);
}

static pl_status apply_one(pl_ctx *c, const pl_norm *m, const char *s, size_t n, pl_spans *spans,
                           pl_buf *out) {
  switch (m->kind) {
    case PL_NORM_PREPEND:
      if (n > 0) {
        PL_TRY(pl_buf_add(c, out, m->content, m->content_len));
      }
      return pl_buf_add(c, out, s, n);
    case PL_NORM_REPLACE:
      return pl_regex_replace(c, m->pattern, s, n, m->content, m->content_len, spans, out);
    case PL_NORM_STRIP:
      return strip(c, m, s, n, out);
    case PL_NORM_BYTES:
      return pl_byte_level_add(c, out, s, n);
    case PL_NORM_NFC:
    case PL_NORM_NFD:
      return pl_nfc_add(c, out, s, n, m->kind == PL_NORM_NFC);
  }
  return PL_OK;
}

pl_status pl_norms_apply(pl_ctx *c, const pl_norms *p, const char *s, size_t n, pl_spans *spans,
                         pl_buf *a, pl_buf *b, pl_buf *out) {
  for (size_t i = 0; i < p->n; i++) {
    pl_buf *to = i + 1 == p->n ? out : (i % 2 ? b : a);
    if (to != out) {
      pl_buf_reset(to);
    }
    PL_TRY(apply_one(c, &p->at[i], s, n, spans, to));
    s = to->data ? to->data : "";
    n = to->len;
  }
  return p->n == 0 ? pl_buf_add(c, out, s, n) : PL_OK;
}
