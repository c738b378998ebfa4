/* Byte pair encoding. A piece becomes symbols (ids of its characters, bytes or
 * the unknown token); symbols are cut where no merge could ever join the two
 * neighbours, so that a text without a pre-tokenizer falls into words; a short
 * segment is merged by looking for the lowest rank again and again, a long one
 * with a heap over a linked list. Results of short segments are remembered.
 * Must not know files or pre-tokenizers. */
#include "text/bpe.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "text/utf8.h"

#define SHORT_MAX 40     /* symbols up to which the plain search beats the heap */
#define CACHE_SYMBOLS 14 /* longest segment that is remembered */
#define CACHE_SLOTS 8192 /* a power of two; 0.9 MB */
#define CHARS 0x800      /* code points whose ids are in a table */
#define NO_RANK UINT32_MAX
#define POLL_EVERY 65536 /* merges between two looks at the interrupt flag */

typedef struct merge_slot { /* pair of ids -> rank and result; rank NO_RANK: free */
  int32_t left, right;
  uint32_t rank;
  int32_t id;
} merge_slot;

typedef struct cache_slot {
  int32_t key[CACHE_SYMBOLS];
  int32_t ids[CACHE_SYMBOLS];
  uint16_t n_key, n_ids; /* n_key 0: free */
} cache_slot;

typedef struct symbol {
  int32_t id;
  int32_t prev, next; /* -1 at the ends */
  bool gone;
} symbol;

typedef struct heap_entry {
  uint32_t rank;
  int32_t at;
  int32_t id; /* what the merge gave when it was put here */
} heap_entry;

struct pl_bpe {
  const pl_vocab *v;
  pl_bpe_options o;
  char *prefix, *suffix;
  size_t prefix_len, suffix_len;
  bool plain;   /* neither prefix nor suffix */
  bool segment; /* symbols of a piece may be cut apart by joins */
  int32_t chars[CHARS];
  int32_t bytes[256]; /* <0xNN>, -1 where missing */
  merge_slot *merges;
  size_t n_slots, n_merges, cap_merges;
  uint64_t *joins; /* pairs of symbols that stand side by side in some token; 0: free */
  size_t n_joins, join_slots;
  cache_slot *cache;
  pl_ids symbols; /* scratch */
  symbol *list;
  size_t list_cap;
  heap_entry *heap;
  size_t heap_n, heap_cap;
  pl_buf affixed;
};

static uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  return x ^ x >> 32;
}

static uint64_t pair_key(int32_t a, int32_t b) {
  return (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
}

static const merge_slot *find_merge(const pl_bpe *b, int32_t left, int32_t right) {
  size_t at = (size_t)mix(pair_key(left, right)) & (b->n_slots - 1);
  while (b->merges[at].rank != NO_RANK) {
    if (b->merges[at].left == left && b->merges[at].right == right) {
      return &b->merges[at];
    }
    at = (at + 1) & (b->n_slots - 1);
  }
  return NULL;
}

/* Keys are stored + 1, so that 0 marks a free slot; ids never reach 2^32 - 1. */
static size_t join_place(const pl_bpe *b, uint64_t key) {
  size_t at = (size_t)mix(key) & (b->join_slots - 1);
  while (b->joins[at] != 0 && b->joins[at] != key + 1) {
    at = (at + 1) & (b->join_slots - 1);
  }
  return at;
}

static bool can_join(const pl_bpe *b, int32_t left, int32_t right) {
  return b->joins[join_place(b, pair_key(left, right))] != 0;
}

static size_t power_of_two(size_t at_least) {
  size_t n = 64;
  while (n < at_least) {
    n *= 2;
  }
  return n;
}

pl_status pl_bpe_new(pl_ctx *c, const pl_vocab *v, const pl_bpe_options *o, size_t n_merges,
                     pl_bpe **out) {
  *out = NULL;
  pl_bpe *b = pl_alloc_zero(c, sizeof *b);
  if (!b) {
    return PL_ENOMEM;
  }
  b->v = v;
  b->o = *o;
  b->prefix_len = strlen(o->prefix);
  b->suffix_len = strlen(o->suffix);
  b->plain = b->prefix_len == 0 && b->suffix_len == 0;
  b->segment = b->plain;
  b->cap_merges = n_merges;
  b->n_slots = power_of_two(n_merges * 2 + 1);
  b->join_slots = power_of_two(n_merges * 2 + 1);
  pl_buf_init(&b->affixed, (size_t)1 << 20);
  b->prefix = pl_strdup(c, o->prefix);
  b->suffix = pl_strdup(c, o->suffix);
  b->merges = pl_alloc(c, b->n_slots * sizeof *b->merges);
  b->joins = pl_alloc_zero(c, b->join_slots * sizeof *b->joins);
  b->cache = pl_alloc_zero(c, CACHE_SLOTS * sizeof *b->cache);
  if (!b->prefix || !b->suffix || !b->merges || !b->joins || !b->cache) {
    pl_bpe_free(c, b);
    return PL_ENOMEM;
  }
  for (size_t i = 0; i < b->n_slots; i++) {
    b->merges[i].rank = NO_RANK;
  }
  for (int32_t cp = 0; cp < CHARS; cp++) {
    char s[4];
    size_t n = pl_utf8_put(s, cp);
    b->chars[cp] = pl_vocab_find_model(v, s, n);
  }
  for (int i = 0; i < 256; i++) {
    char name[8];
    int n = snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
    b->bytes[i] = o->byte_fallback ? pl_vocab_find_model(v, name, (size_t)n) : -1;
  }
  *out = b;
  return PL_OK;
}

void pl_bpe_free(pl_ctx *c, pl_bpe *b) {
  if (!b) {
    return;
  }
  pl_free(c, b->prefix);
  pl_free(c, b->suffix);
  pl_free(c, b->merges);
  pl_free(c, b->joins);
  pl_free(c, b->cache);
  pl_ids_free(c, &b->symbols);
  pl_free(c, b->list);
  pl_free(c, b->heap);
  pl_buf_free(c, &b->affixed);
  pl_free(c, b);
}

/* A symbol that is not the character it is written as: <0xNN>, the unknown token. */
static bool stands_in(const pl_bpe *b, int32_t id) {
  for (int i = 0; i < 256; i++) {
    if (b->bytes[i] == id) {
      return true;
    }
  }
  return id == b->o.unk;
}

/* The two tokens meet at (last character of left, first of right), and symbols
 * are characters; where a merge takes a stand-in that no longer holds, and
 * pieces are not cut at all. */
static void add_join(pl_bpe *b, const char *left, size_t left_n, const char *right,
                     size_t right_n) {
  size_t last = pl_utf8_last(left, left_n);
  size_t first = 0;
  (void)pl_utf8_next(right, right_n, &first);
  int32_t end = pl_vocab_find_model(b->v, left + left_n - last, last);
  int32_t start = pl_vocab_find_model(b->v, right, first);
  if (end >= 0 && start >= 0) { /* otherwise no text gives this merge */
    uint64_t key = pair_key(end, start);
    b->joins[join_place(b, key)] = key + 1;
  }
}

pl_status pl_bpe_add_merge(pl_ctx *c, pl_bpe *b, const char *left, size_t left_n,
                           const char *right, size_t right_n) {
  int32_t l = pl_vocab_find_model(b->v, left, left_n);
  int32_t r = pl_vocab_find_model(b->v, right, right_n);
  if (l < 0 || r < 0 || left_n == 0 || right_n == 0) {
    size_t bad_n = l < 0 ? left_n : right_n;
    return pl_fail(c, PL_EFORMAT, "merge %zu joins \"%.*s\", which is not in the vocabulary",
                   b->n_merges, (int)(bad_n < 80 ? bad_n : 80), l < 0 ? left : right);
  }
  if (b->n_merges == b->cap_merges) {
    return pl_fail(c, PL_EINVAL, "more merges than announced (%zu)", b->cap_merges);
  }
  if (right_n < b->prefix_len) {
    return pl_fail(c, PL_EFORMAT, "merge %zu: its right part lacks the prefix \"%s\"", b->n_merges,
                   b->prefix);
  }
  pl_buf_reset(&b->affixed);
  PL_TRY(pl_buf_add(c, &b->affixed, left, left_n));
  PL_TRY(pl_buf_add(c, &b->affixed, right + b->prefix_len, right_n - b->prefix_len));
  int32_t id = pl_vocab_find_model(b->v, b->affixed.data, b->affixed.len);
  if (id < 0) {
    return pl_fail(c, PL_EFORMAT, "merge %zu gives \"%.80s\", which is not in the vocabulary",
                   b->n_merges, b->affixed.data);
  }
  size_t at = (size_t)mix(pair_key(l, r)) & (b->n_slots - 1);
  while (b->merges[at].rank != NO_RANK && (b->merges[at].left != l || b->merges[at].right != r)) {
    at = (at + 1) & (b->n_slots - 1);
  }
  b->merges[at] = (merge_slot){l, r, (uint32_t)b->n_merges, id};
  b->n_merges++;
  if (stands_in(b, l) || stands_in(b, r)) {
    b->segment = false;
  }
  if (b->segment) {
    add_join(b, left, left_n, right, right_n);
  }
  return PL_OK;
}

/* Id of one character of the piece, prefix and suffix applied; -1: none. */
static pl_status find_char(pl_ctx *c, pl_bpe *b, const char *s, size_t n, int32_t cp, bool first,
                           bool last, int32_t *id) {
  if (b->plain) {
    *id = cp >= 0 && cp < CHARS ? b->chars[cp] : pl_vocab_find_model(b->v, s, n);
    return PL_OK;
  }
  pl_buf_reset(&b->affixed);
  if (!first) {
    PL_TRY(pl_buf_add(c, &b->affixed, b->prefix, b->prefix_len));
  }
  PL_TRY(pl_buf_add(c, &b->affixed, s, n));
  if (last) {
    PL_TRY(pl_buf_add(c, &b->affixed, b->suffix, b->suffix_len));
  }
  *id = pl_vocab_find_model(b->v, b->affixed.data, b->affixed.len);
  return PL_OK;
}

/* All bytes of an unknown character, if each has its <0xNN>. */
static bool byte_ids(const pl_bpe *b, const char *s, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (b->bytes[(unsigned char)s[i]] < 0) {
      return false;
    }
  }
  return b->o.byte_fallback;
}

static pl_status unknown_char(pl_ctx *c, const char *s, size_t n, int32_t cp) {
  if (cp < 0) {
    return pl_fail(c, PL_EINVAL,
                   "the text is not valid UTF-8 (byte 0x%02X) and the tokenizer has neither bytes "
                   "nor an unk_token for it",
                   (unsigned)(unsigned char)s[0]);
  }
  return pl_fail(c, PL_EINVAL,
                 "the tokenizer has no token for \"%.*s\" (U+%04X) and no unk_token to stand in",
                 (int)n, s, (unsigned)cp);
}

/* Piece -> b->symbols. Hugging Face holds one unknown token back while it
 * fuses, also past bytes that fall back; ids follow that order. */
static pl_status make_symbols(pl_ctx *c, pl_bpe *b, const char *s, size_t n) {
  bool pending = false;
  size_t len = 0;
  b->symbols.len = 0;
  for (size_t i = 0; i < n; i += len) {
    int32_t cp = pl_utf8_next(s + i, n - i, &len);
    int32_t id = -1;
    PL_TRY(find_char(c, b, s + i, len, cp, i == 0, i + len == n, &id));
    if (id >= 0) {
      if (pending) {
        PL_TRY(pl_ids_add(c, &b->symbols, b->o.unk));
        pending = false;
      }
      PL_TRY(pl_ids_add(c, &b->symbols, id));
    } else if (byte_ids(b, s + i, len)) {
      for (size_t k = 0; k < len; k++) {
        PL_TRY(pl_ids_add(c, &b->symbols, b->bytes[(unsigned char)s[i + k]]));
      }
    } else if (b->o.unk < 0) {
      return unknown_char(c, s + i, len, cp);
    } else {
      if (pending && !b->o.fuse_unk) {
        PL_TRY(pl_ids_add(c, &b->symbols, b->o.unk));
      }
      pending = true;
    }
  }
  return pending ? pl_ids_add(c, &b->symbols, b->o.unk) : PL_OK;
}

/* Merges x[0..n) in place, n <= SHORT_MAX; gives the new length. */
static size_t merge_short(const pl_bpe *b, int32_t *x, size_t n) {
  uint32_t rank[SHORT_MAX];
  int32_t result[SHORT_MAX];
  for (size_t i = 0; i + 1 < n; i++) {
    const merge_slot *m = find_merge(b, x[i], x[i + 1]);
    rank[i] = m ? m->rank : NO_RANK;
    result[i] = m ? m->id : -1;
  }
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++) {
      if (rank[i] < rank[best]) {
        best = i;
      }
    }
    if (rank[best] == NO_RANK) {
      break;
    }
    x[best] = result[best];
    for (size_t i = best + 1; i + 1 < n; i++) {
      x[i] = x[i + 1];
      rank[i - 1] = rank[i];
      result[i - 1] = result[i];
    }
    n--;
    for (size_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
      const merge_slot *m = find_merge(b, x[i], x[i + 1]);
      rank[i] = m ? m->rank : NO_RANK;
      result[i] = m ? m->id : -1;
    }
  }
  return n;
}

static bool before(const heap_entry *a, const heap_entry *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static pl_status heap_push(pl_ctx *c, pl_bpe *b, const merge_slot *m, int32_t at) {
  if (b->heap_n == b->heap_cap) {
    size_t cap = b->heap_cap ? b->heap_cap * 2 : 256;
    heap_entry *heap = pl_realloc(c, b->heap, cap * sizeof *heap);
    if (!heap) {
      return PL_ENOMEM;
    }
    b->heap = heap;
    b->heap_cap = cap;
  }
  heap_entry e = {m->rank, at, m->id};
  size_t i = b->heap_n;
  b->heap_n++;
  while (i > 0 && before(&e, &b->heap[(i - 1) / 2])) {
    b->heap[i] = b->heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  b->heap[i] = e;
  return PL_OK;
}

static heap_entry heap_pop(pl_bpe *b) {
  heap_entry top = b->heap[0];
  b->heap_n--;
  heap_entry e = b->heap[b->heap_n];
  size_t i = 0;
  for (;;) {
    size_t k = 2 * i + 1;
    if (k >= b->heap_n) {
      break;
    }
    if (k + 1 < b->heap_n && before(&b->heap[k + 1], &b->heap[k])) {
      k++;
    }
    if (!before(&b->heap[k], &e)) {
      break;
    }
    b->heap[i] = b->heap[k];
    i = k;
  }
  b->heap[i] = e;
  return top;
}

/* Pushes the merge of symbol i with the one behind it, if there is one. */
static pl_status push_pair(pl_ctx *c, pl_bpe *b, int32_t i) {
  int32_t next = i < 0 ? -1 : b->list[i].next;
  const merge_slot *m = next < 0 ? NULL : find_merge(b, b->list[i].id, b->list[next].id);
  return m ? heap_push(c, b, m, i) : PL_OK;
}

static pl_status merge_long(pl_ctx *c, pl_bpe *b, const int32_t *x, size_t n, pl_ids *out) {
  if (n > INT32_MAX) {
    return pl_fail(c, PL_EINVAL, "a piece of %zu symbols is too long", n);
  }
  if (b->list_cap < n) {
    symbol *list = pl_realloc(c, b->list, n * sizeof *list);
    if (!list) {
      return PL_ENOMEM;
    }
    b->list = list;
    b->list_cap = n;
  }
  symbol *list = b->list;
  for (size_t i = 0; i < n; i++) {
    list[i] = (symbol){x[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1, false};
  }
  b->heap_n = 0;
  for (size_t i = 0; i + 1 < n; i++) {
    PL_TRY(push_pair(c, b, (int32_t)i));
  }
  for (uint32_t turn = 1; b->heap_n > 0; turn++) {
    if (turn % POLL_EVERY == 0) {
      PL_TRY(pl_check_interrupt(c));
    }
    heap_entry top = heap_pop(b);
    symbol *s = &list[top.at];
    const merge_slot *m = s->gone || s->next < 0 ? NULL : find_merge(b, s->id, list[s->next].id);
    if (!m || m->id != top.id) { /* a neighbour has changed since it was pushed */
      continue;
    }
    symbol *right = &list[s->next];
    right->gone = true;
    s->id = top.id;
    s->next = right->next;
    if (s->next >= 0) {
      list[s->next].prev = top.at;
    }
    PL_TRY(push_pair(c, b, s->prev));
    PL_TRY(push_pair(c, b, top.at));
  }
  for (int32_t i = 0; i >= 0; i = list[i].next) {
    PL_TRY(pl_ids_add(c, out, list[i].id));
  }
  return PL_OK;
}

static pl_status add_all(pl_ctx *c, pl_ids *out, const int32_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) {
    PL_TRY(pl_ids_add(c, out, ids[i]));
  }
  return PL_OK;
}

static cache_slot *cache_place(pl_bpe *b, const int32_t *x, size_t n) {
  uint64_t h = n;
  for (size_t i = 0; i < n; i++) {
    h = (h ^ (uint32_t)x[i]) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  return &b->cache[h & (CACHE_SLOTS - 1)];
}

static pl_status merge_segment(pl_ctx *c, pl_bpe *b, const int32_t *x, size_t n, pl_ids *out) {
  if (n == 1) {
    return pl_ids_add(c, out, x[0]);
  }
  if (n > SHORT_MAX) {
    return merge_long(c, b, x, n, out);
  }
  cache_slot *slot = n <= CACHE_SYMBOLS ? cache_place(b, x, n) : NULL;
  if (slot && slot->n_key == n && memcmp(slot->key, x, n * sizeof *x) == 0) {
    return add_all(c, out, slot->ids, slot->n_ids);
  }
  int32_t work[SHORT_MAX];
  memcpy(work, x, n * sizeof *x);
  size_t got = merge_short(b, work, n);
  if (slot) {
    memcpy(slot->key, x, n * sizeof *x);
    memcpy(slot->ids, work, got * sizeof *work);
    slot->n_key = (uint16_t)n;
    slot->n_ids = (uint16_t)got;
  }
  return add_all(c, out, work, got);
}

pl_status pl_bpe_encode(pl_ctx *c, pl_bpe *b, const char *s, size_t n, pl_ids *out) {
  if (b->o.ignore_merges) {
    int32_t whole = pl_vocab_find_model(b->v, s, n);
    if (whole >= 0) {
      return pl_ids_add(c, out, whole);
    }
  }
  PL_TRY(make_symbols(c, b, s, n));
  const int32_t *x = b->symbols.data;
  size_t start = 0;
  for (size_t i = 1; i <= b->symbols.len; i++) {
    bool joined = i < b->symbols.len && (!b->segment || can_join(b, x[i - 1], x[i]));
    if (!joined) {
      PL_TRY(merge_segment(c, b, x + start, i - start, out));
      start = i;
    }
  }
  return PL_OK;
}
