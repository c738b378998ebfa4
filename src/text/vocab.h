/* Tokens by name and by id, and the search for added tokens inside a text. */
#ifndef PL_TEXT_VOCAB_H
#define PL_TEXT_VOCAB_H
#include "base/buf.h"

enum { PL_TOKEN_MODEL = 1, PL_TOKEN_ADDED = 2, PL_TOKEN_SPECIAL = 4 };

typedef struct pl_token {
  size_t at; /* of its bytes in the vocabulary's text */
  uint32_t len;
  uint32_t flags; /* 0: no token has this id */
} pl_token;

typedef struct pl_vocab { /* zero-initialise, then pl_vocab_init */
  char *text;
  size_t text_len, text_cap;
  pl_token *tokens; /* [n_ids] */
  int32_t n_ids;    /* highest id + 1 */
  int32_t cap_ids;
  int32_t *slots; /* open addressing: id or -1 */
  size_t n_slots; /* a power of two */
  size_t used;
} pl_vocab;

/* room: about how many tokens will come. */
pl_status pl_vocab_init(pl_ctx *c, pl_vocab *v, size_t room);
void pl_vocab_free(pl_ctx *c, pl_vocab *v);
/* A name or id that is taken already is PL_EFORMAT; flags are ORed where the
 * same name comes with the same id. s[n] must be 0. */
pl_status pl_vocab_add(pl_ctx *c, pl_vocab *v, const char *s, size_t n, int32_t id,
                       uint32_t flags);
int32_t pl_vocab_find(const pl_vocab *v, const char *s, size_t n); /* -1: none */
/* The id if the model itself (not only an added token) has the name, else -1. */
int32_t pl_vocab_find_model(const pl_vocab *v, const char *s, size_t n);
const char *pl_vocab_name(const pl_vocab *v, int32_t id, size_t *n); /* NULL: none */

/* A prefix tree over bytes: node 0 is the root; children are chained. */
typedef struct pl_trie_node {
  int32_t child, next; /* 0: none */
  int32_t token;       /* -1: no token ends here */
  unsigned char byte;
} pl_trie_node;

typedef struct pl_trie {
  pl_trie_node *nodes;
  int32_t n, cap;
  int32_t first[256]; /* the root's children by byte, 0: none */
} pl_trie;

void pl_trie_free(pl_ctx *c, pl_trie *t);
pl_status pl_trie_add(pl_ctx *c, pl_trie *t, const char *s, size_t n, int32_t token);
/* Length of the longest entry that s starts with (0: none); its token out. */
size_t pl_trie_longest(const pl_trie *t, const char *s, size_t n, int32_t *token);

#endif
