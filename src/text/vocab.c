/* The vocabulary's two look-ups and the tree of added tokens. */
#include "text/vocab.h"

#include <string.h>

#include "base/mem.h"

#define IDS_SPARE 65536 /* how far ids may run ahead of their number: bounds memory */

/* FNV-1a with a last mix, so that the low bits depend on every byte. */
static size_t hash_bytes(const char *s, size_t n) {
  uint64_t h = 1469598103934665603u;
  for (size_t i = 0; i < n; i++) {
    h = (h ^ (unsigned char)s[i]) * 1099511628211u;
  }
  return (size_t)(h ^ h >> 29);
}

static pl_status rehash(pl_ctx *c, pl_vocab *v, size_t n_slots) {
  int32_t *slots = pl_alloc(c, n_slots * sizeof *slots);
  if (!slots) {
    return PL_ENOMEM;
  }
  for (size_t i = 0; i < n_slots; i++) {
    slots[i] = -1;
  }
  for (int32_t id = 0; id < v->n_ids; id++) {
    const pl_token *t = &v->tokens[id];
    if (t->flags) {
      size_t at = hash_bytes(v->text + t->at, t->len) & (n_slots - 1);
      while (slots[at] >= 0) {
        at = (at + 1) & (n_slots - 1);
      }
      slots[at] = id;
    }
  }
  pl_free(c, v->slots);
  v->slots = slots;
  v->n_slots = n_slots;
  return PL_OK;
}

pl_status pl_vocab_init(pl_ctx *c, pl_vocab *v, size_t room) {
  size_t n_slots = 64;
  while (n_slots < room * 2) {
    n_slots *= 2;
  }
  return rehash(c, v, n_slots);
}

void pl_vocab_free(pl_ctx *c, pl_vocab *v) {
  pl_free(c, v->text);
  pl_free(c, v->tokens);
  pl_free(c, v->slots);
  memset(v, 0, sizeof *v);
}

int32_t pl_vocab_find(const pl_vocab *v, const char *s, size_t n) {
  size_t at = hash_bytes(s, n) & (v->n_slots - 1);
  while (v->slots[at] >= 0) {
    const pl_token *t = &v->tokens[v->slots[at]];
    if (t->len == n && memcmp(v->text + t->at, s, n) == 0) {
      return v->slots[at];
    }
    at = (at + 1) & (v->n_slots - 1);
  }
  return -1;
}

int32_t pl_vocab_find_model(const pl_vocab *v, const char *s, size_t n) {
  int32_t id = pl_vocab_find(v, s, n);
  return id >= 0 && (v->tokens[id].flags & PL_TOKEN_MODEL) ? id : -1;
}

const char *pl_vocab_name(const pl_vocab *v, int32_t id, size_t *n) {
  if (id < 0 || id >= v->n_ids || !v->tokens[id].flags) {
    return NULL;
  }
  *n = v->tokens[id].len;
  return v->text + v->tokens[id].at;
}

static pl_status grow_ids(pl_ctx *c, pl_vocab *v, int32_t id) {
  if ((size_t)id >= v->n_slots * 8 + IDS_SPARE) {
    return pl_fail(c, PL_EFORMAT, "id %d is far beyond the number of tokens", id);
  }
  if (id >= v->cap_ids) {
    int32_t cap = v->cap_ids ? v->cap_ids : 256;
    while (cap <= id) {
      cap *= 2;
    }
    pl_token *tokens = pl_realloc(c, v->tokens, (size_t)cap * sizeof *tokens);
    if (!tokens) {
      return PL_ENOMEM;
    }
    v->tokens = tokens;
    v->cap_ids = cap;
  }
  while (v->n_ids <= id) {
    memset(&v->tokens[v->n_ids], 0, sizeof *v->tokens);
    v->n_ids++;
  }
  return PL_OK;
}

pl_status pl_vocab_add(pl_ctx *c, pl_vocab *v, const char *s, size_t n, int32_t id,
                       uint32_t flags) {
  int32_t have = pl_vocab_find(v, s, n);
  if (have >= 0) {
    if (have != id) {
      return pl_fail(c, PL_EFORMAT, "token \"%.80s\" has two ids, %d and %d", s, have, id);
    }
    v->tokens[id].flags |= flags;
    return PL_OK;
  }
  if (id < 0 || n > INT32_MAX) {
    return pl_fail(c, PL_EFORMAT, "token \"%.80s\" cannot have id %d", s, id);
  }
  PL_TRY(grow_ids(c, v, id));
  if (v->tokens[id].flags) {
    return pl_fail(c, PL_EFORMAT, "id %d stands for two tokens, the second is \"%.80s\"", id, s);
  }
  if (v->text_cap - v->text_len <= n) {
    size_t cap = v->text_cap * 2 + n + 4096;
    char *text = pl_realloc(c, v->text, cap);
    if (!text) {
      return PL_ENOMEM;
    }
    v->text = text;
    v->text_cap = cap;
  }
  if ((v->used + 1) * 2 > v->n_slots) {
    PL_TRY(rehash(c, v, v->n_slots * 2));
  }
  memcpy(v->text + v->text_len, s, n);
  v->text[v->text_len + n] = 0;
  pl_token *t = &v->tokens[id];
  t->at = v->text_len;
  t->len = (uint32_t)n;
  t->flags = flags;
  v->text_len += n + 1;
  size_t at = hash_bytes(s, n) & (v->n_slots - 1);
  while (v->slots[at] >= 0) {
    at = (at + 1) & (v->n_slots - 1);
  }
  v->slots[at] = id;
  v->used++;
  return PL_OK;
}

void pl_trie_free(pl_ctx *c, pl_trie *t) {
  pl_free(c, t->nodes);
  memset(t, 0, sizeof *t);
}

static pl_status new_node(pl_ctx *c, pl_trie *t, unsigned char byte, int32_t next, int32_t *out) {
  if (t->n == t->cap) {
    int32_t cap = t->cap ? t->cap * 2 : 256;
    pl_trie_node *nodes = pl_realloc(c, t->nodes, (size_t)cap * sizeof *nodes);
    if (!nodes) {
      return PL_ENOMEM;
    }
    t->nodes = nodes;
    t->cap = cap;
    if (t->n == 0) { /* the root, so that 0 can mean none */
      memset(&t->nodes[0], 0, sizeof t->nodes[0]);
      t->nodes[0].token = -1;
      t->n = 1;
    }
  }
  pl_trie_node *node = &t->nodes[t->n];
  node->child = 0;
  node->next = next;
  node->token = -1;
  node->byte = byte;
  *out = t->n;
  t->n++;
  return PL_OK;
}

static int32_t find_child(const pl_trie *t, int32_t node, unsigned char byte) {
  if (node == 0) {
    return t->first[byte];
  }
  int32_t k = t->nodes[node].child;
  while (k && t->nodes[k].byte != byte) {
    k = t->nodes[k].next;
  }
  return k;
}

pl_status pl_trie_add(pl_ctx *c, pl_trie *t, const char *s, size_t n, int32_t token) {
  int32_t node = 0;
  for (size_t i = 0; i < n; i++) {
    unsigned char byte = (unsigned char)s[i];
    int32_t k = find_child(t, node, byte);
    if (!k) {
      PL_TRY(new_node(c, t, byte, node ? t->nodes[node].child : 0, &k));
      if (node) {
        t->nodes[node].child = k;
      } else {
        t->first[byte] = k;
      }
    }
    node = k;
  }
  if (node) {
    t->nodes[node].token = token;
  }
  return PL_OK;
}

size_t pl_trie_longest(const pl_trie *t, const char *s, size_t n, int32_t *token) {
  size_t best = 0;
  int32_t node = 0;
  for (size_t i = 0; i < n; i++) {
    node = find_child(t, node, (unsigned char)s[i]);
    if (!node) {
      break;
    }
    if (t->nodes[node].token >= 0) {
      best = i + 1;
      *token = t->nodes[node].token;
    }
  }
  return best;
}
