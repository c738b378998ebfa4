/* Running a tokenizer: text to ids and back, in Hugging Face's order of steps.
 * Encode: added tokens that want the raw text, normalizers, added tokens that
 * want normalized text, pre-tokenizers, the model, post-processors. */
#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_private.h"
#include "text/utf8.h"

#define KEEP_SCRATCH ((size_t)1 << 20) /* scratch above this is given back after a call */

pl_status pl_ids_add(pl_ctx *c, pl_ids *ids, int32_t id) {
  if (ids->len == ids->cap) {
    size_t cap = ids->cap ? ids->cap * 2 : 64;
    int32_t *data = pl_realloc(c, ids->data, cap * sizeof *data);
    if (!data) {
      return PL_ENOMEM;
    }
    ids->data = data;
    ids->cap = cap;
  }
  ids->data[ids->len] = id;
  ids->len++;
  return PL_OK;
}

void pl_ids_free(pl_ctx *c, pl_ids *ids) {
  pl_free(c, ids->data);
  memset(ids, 0, sizeof *ids);
}

pl_status pl_tokenizer_normalize(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n,
                                 pl_buf *out) {
  return pl_norms_apply(c, &t->norms, s, n, &t->spans, &t->norm_a, &t->norm_b, out);
}

static const pl_added *find_added(const pl_tokenizer *t, int32_t id) {
  for (size_t lo = 0, hi = t->n_added; lo < hi;) { /* sorted by id */
    size_t mid = lo + (hi - lo) / 2;
    if (t->added[mid].id == id) {
      return &t->added[mid];
    }
    if (t->added[mid].id < id) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return NULL;
}

/* Is the character at s[at] (or the one ending there) part of a word? */
static pl_status is_word(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n, bool *out) {
  PL_TRY(pl_regex_spans(c, t->word, s, n, &t->spans));
  *out = t->spans.n == 1 && t->spans.at[0].match;
  return PL_OK;
}

static pl_status stands_alone(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n, size_t begin,
                              size_t end, bool *out) {
  bool word = false;
  if (begin > 0) {
    size_t last = pl_utf8_last(s, begin);
    PL_TRY(is_word(c, t, s + begin - last, last, &word));
  }
  if (!word && end < n) {
    size_t first = 0;
    (void)pl_utf8_next(s + end, n - end, &first);
    PL_TRY(is_word(c, t, s + end, first, &word));
  }
  *out = !word;
  return PL_OK;
}

/* Cuts s = text[base, base + n) at the tokens of the tree, longest first. Where
 * rstrip took white space that is a token, too, Hugging Face gives both; the
 * search goes on behind the match, not behind what was stripped. Without
 * `control`, the text of a special token is text like any other. */
static pl_status cut_added(pl_ctx *c, pl_tokenizer *t, const pl_trie *trie, const char *s, size_t n,
                           size_t base, bool first, bool control, pl_pieces *out) {
  size_t done = 0;
  for (size_t i = 0; i < n;) {
    int32_t id = -1;
    size_t len = trie->first[(unsigned char)s[i]] ? pl_trie_longest(trie, s + i, n - i, &id) : 0;
    if (len == 0 || (!control && pl_tokenizer_is_special(t, id))) {
      i++;
      continue;
    }
    const pl_added *a = find_added(t, id);
    size_t begin = i;
    size_t end = i + len;
    bool alone = true;
    i = end;
    if (a->single_word) {
      PL_TRY(stands_alone(c, t, s, n, begin, end, &alone));
    }
    if (!alone) {
      continue;
    }
    size_t space = 0;
    while (a->lstrip && begin > done) {
      size_t last = pl_utf8_last(s, begin);
      if (!pl_is_white_space(pl_utf8_next(s + begin - last, last, &space))) {
        break;
      }
      begin -= last;
    }
    while (a->rstrip && end < n && pl_is_white_space(pl_utf8_next(s + end, n - end, &space))) {
      end += space;
    }
    if (begin > done) {
      PL_TRY(pl_pieces_add(c, out, (pl_piece){base + done, base + begin, -1, first && done == 0}));
    }
    PL_TRY(pl_pieces_add(c, out, (pl_piece){base + begin, base + end, id, first && begin == 0}));
    done = end;
  }
  if (done < n) {
    PL_TRY(pl_pieces_add(c, out, (pl_piece){base + done, base + n, -1, first && done == 0}));
  }
  return PL_OK;
}

/* Every text piece of in, normalized and cut again, goes to out. */
static pl_status normalize_pieces(pl_ctx *c, pl_tokenizer *t, const pl_pieces *in, bool control,
                                  pl_pieces *out) {
  out->n = 0;
  pl_buf_reset(&out->text);
  for (size_t i = 0; i < in->n; i++) {
    pl_piece p = in->at[i];
    if (p.id >= 0) {
      PL_TRY(pl_pieces_add(c, out, p));
      continue;
    }
    size_t base = out->text.len;
    pl_buf_reset(&t->norm_out);
    PL_TRY(pl_tokenizer_normalize(c, t, in->text.data + p.begin, p.end - p.begin, &t->norm_out));
    const char *s = t->norm_out.data ? t->norm_out.data : "";
    PL_TRY(pl_buf_add(c, &out->text, s, t->norm_out.len));
    PL_TRY(cut_added(c, t, &t->normalized, s, t->norm_out.len, base, p.first, control,
                     out));
  }
  return PL_OK;
}

static pl_status encode_word(pl_ctx *c, const pl_tokenizer *t, const char *s, size_t n,
                             pl_ids *out) {
  int32_t id = pl_vocab_find_model(&t->vocab, s, n);
  if (id < 0 && t->word_unk < 0) {
    return pl_fail(c, PL_EINVAL,
                   "the word \"%.*s\" is not in the vocabulary, and the tokenizer has no unk_token",
                   (int)(n < 80 ? n : 80), s);
  }
  return pl_ids_add(c, out, id < 0 ? t->word_unk : id);
}

static pl_status encode_text(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n, bool control,
                             pl_ids *out) {
  pl_pieces *p = &t->pieces;
  p->n = 0;
  pl_buf_reset(&p->text);
  PL_TRY(pl_buf_add(c, &p->text, s, n));
  PL_TRY(cut_added(c, t, &t->raw, s, n, 0, true, control, p));
  if (t->norms.n > 0 || t->normalized.n > 0) {
    PL_TRY(normalize_pieces(c, t, p, control, &t->other));
    pl_pieces swap = *p;
    *p = t->other;
    t->other = swap;
  }
  PL_TRY(pl_pres_apply(c, &t->pres, &t->spans, p, &t->other));
  for (size_t i = 0; i < p->n; i++) {
    const pl_piece *piece = &p->at[i];
    const char *text = p->text.data + piece->begin;
    size_t len = piece->end - piece->begin;
    if (piece->id >= 0) {
      PL_TRY(pl_ids_add(c, out, piece->id));
    } else if (t->bpe) {
      PL_TRY(pl_bpe_encode(c, t->bpe, text, len, out));
    } else {
      PL_TRY(encode_word(c, t, text, len, out));
    }
  }
  return PL_OK;
}

static void give_back(pl_ctx *c, pl_tokenizer *t) {
  if (t->pieces.text.cap + t->other.text.cap + t->norm_out.cap > KEEP_SCRATCH ||
      (t->pieces.cap + t->other.cap) * sizeof(pl_piece) > KEEP_SCRATCH) {
    pl_pieces_free(c, &t->pieces);
    pl_pieces_free(c, &t->other);
    pl_spans_free(c, &t->spans);
    pl_buf_free(c, &t->norm_a);
    pl_buf_free(c, &t->norm_b);
    pl_buf_free(c, &t->norm_out);
  }
}

pl_status pl_tokenizer_encode(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n,
                              bool add_special, pl_ids *out) {
  pl_status st = PL_OK;
  for (size_t i = t->n_wraps; i > 0 && add_special && st == PL_OK; i--) {
    const pl_ids *front = &t->wraps[i - 1].front; /* the last post-processor is outermost */
    for (size_t k = 0; k < front->len && st == PL_OK; k++) {
      st = pl_ids_add(c, out, front->data[k]);
    }
  }
  if (st == PL_OK) {
    st = encode_text(c, t, s, n, true, out);
  }
  for (size_t i = 0; i < t->n_wraps && add_special && st == PL_OK; i++) {
    const pl_ids *back = &t->wraps[i].back;
    for (size_t k = 0; k < back->len && st == PL_OK; k++) {
      st = pl_ids_add(c, out, back->data[k]);
    }
  }
  give_back(c, t);
  return st;
}

pl_status pl_tokenizer_encode_plain(pl_ctx *c, pl_tokenizer *t, const char *s, size_t n,
                                    pl_ids *out) {
  const pl_status st = encode_text(c, t, s, n, false, out);
  give_back(c, t);
  return st;
}

pl_status pl_tokenizer_decode(pl_ctx *c, pl_tokenizer *t, const int32_t *ids, size_t n,
                              bool skip_special, pl_buf *out) {
  pl_strings *tokens = &t->strings;
  tokens->n = 0;
  pl_buf_reset(&tokens->text);
  for (size_t i = 0; i < n; i++) {
    size_t len = 0;
    const char *s = pl_vocab_name(&t->vocab, ids[i], &len);
    if (!s) {
      return pl_fail(c, PL_EINVAL, "id %d at position %zu has no token (ids go from 0 to %d)",
                     ids[i], i + 1, t->vocab.n_ids - 1);
    }
    uint32_t flags = t->vocab.tokens[ids[i]].flags;
    if (skip_special && (flags & PL_TOKEN_SPECIAL)) {
      continue;
    }
    const pl_added *a = flags & PL_TOKEN_ADDED ? find_added(t, ids[i]) : NULL;
    if (a && a->shown) {
      s = a->shown;
      len = strlen(s);
    }
    PL_TRY(pl_buf_add(c, &tokens->text, s, len));
    PL_TRY(pl_strings_end(c, tokens));
  }
  pl_status st = pl_decs_apply(c, &t->decs, &t->spans, tokens, &t->other_strings, out);
  if (t->strings.text.cap + t->other_strings.text.cap > KEEP_SCRATCH) {
    pl_strings_free(c, &t->strings);
    pl_strings_free(c, &t->other_strings);
  }
  return st;
}
