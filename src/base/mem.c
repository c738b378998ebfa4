/* Counted, 64-byte aligned memory that is kept when it is free.
 *
 * A training step asks for the same hundreds of megabytes again and again.
 * Fresh pages cost a fault and a clearing each, so freed memory is handed out
 * again: blocks of 32 KiB and more in size classes of a quarter power of two,
 * big ones out of an arena, where one may become a part of another. What is kept
 * and what is live together stay below a bound that follows the peak; what was
 * freed longest ago goes back first.
 *
 * Only the thread that owns the context calls this, never a parallel block:
 * there are no locks. Under sanitizers nothing is kept, so that every use
 * after free and every overflow is seen. */
#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/mem_cache.h"

#define ALIGN 64
#define CLASS_MIN ((size_t)32 << 10)
#define ARENA_MIN ((size_t)256 << 10)
#define SIZE_MOST ((size_t)1 << 44) /* of a block */
#define CLASSES 16
#define KEEP_MIN ((int64_t)256 << 20)
#define NO_CLASS (-1)

/* Sits in the 64 bytes in front of each block. */
typedef struct header {
  size_t size; /* asked for */
  size_t cap;  /* usable */
  int32_t cls; /* size class, or NO_CLASS */
  void *base;  /* what malloc gave, or NULL: */
  union {
    pl_piece *piece; /* of the arena */
    struct {
      struct header *next, *prev;   /* free blocks of the class, newest first */
      struct header *newer, *older; /* all free blocks by age */
    };
  };
} header;
_Static_assert(sizeof(header) <= ALIGN, "the header must fit in front of a block");

struct pl_block_cache {
  header *cls[CLASSES];
  header *newest, *oldest;
  int64_t bytes;
  pl_arena *arena;
};

pl_status pl_block_cache_new(pl_ctx *c) {
  pl_block_cache *k = calloc(1, sizeof *k);
  if (k) {
    k->arena = pl_arena_new();
  }
  if (!k || !k->arena) {
    free(k);
    return pl_fail(c, PL_ENOMEM, "out of memory at start");
  }
  c->mem.cache = k;
  return PL_OK;
}

void pl_block_cache_free(pl_ctx *c) {
  pl_block_cache *k = c->mem.cache;
  if (!k) {
    return;
  }
  pl_mem_trim(c);
  pl_arena_close(k->arena);
  free(k);
  c->mem.cache = NULL;
}

int64_t pl_block_cache_bytes(const pl_ctx *c) {
  const pl_block_cache *k = c->mem.cache;
  return k ? k->bytes + pl_arena_kept(k->arena) : 0;
}

/* The class whose blocks hold `bytes`, and how much they hold. */
static int class_of(size_t bytes, size_t *cap) {
  int k = 0;
  size_t low = CLASS_MIN;
  while (low * 2 <= bytes) {
    low *= 2;
    k += 4;
  }
  size_t quarter = low / 4;
  size_t part = (bytes - low + quarter - 1) / quarter;
  *cap = low + part * quarter;
  return k + (int)part;
}

/* Is it kept when it is free? */
static bool is_kept(size_t bytes) {
#ifdef PL_SANITIZE
  (void)bytes;
  return false;
#else
  return bytes >= CLASS_MIN && bytes <= SIZE_MOST;
#endif
}

static bool wants_class(size_t bytes) {
  return is_kept(bytes) && bytes < ARENA_MIN;
}

static bool wants_arena(const pl_ctx *c, size_t bytes) {
  return c->mem.cache && is_kept(bytes) && bytes >= ARENA_MIN;
}

static header *header_of(void *p) {
  return (header *)((char *)p - ALIGN);
}

static void *block_of(header *h) {
  return (char *)h + ALIGN;
}

static void unlink_block(pl_block_cache *k, header *h) {
  if (h->prev) {
    h->prev->next = h->next;
  } else {
    k->cls[h->cls] = h->next;
  }
  if (h->next) {
    h->next->prev = h->prev;
  }
  if (h->newer) {
    h->newer->older = h->older;
  } else {
    k->newest = h->older;
  }
  if (h->older) {
    h->older->newer = h->newer;
  } else {
    k->oldest = h->newer;
  }
  k->bytes -= (int64_t)h->cap;
}

static void link_block(pl_block_cache *k, header *h) {
  h->prev = NULL;
  h->next = k->cls[h->cls];
  if (h->next) {
    h->next->prev = h;
  }
  k->cls[h->cls] = h;
  h->newer = NULL;
  h->older = k->newest;
  if (h->older) {
    h->older->newer = h;
  } else {
    k->oldest = h;
  }
  k->newest = h;
  k->bytes += (int64_t)h->cap;
}

static header *from_arena(pl_ctx *c, size_t bytes) {
  bool fresh;
  pl_piece *p = pl_arena_take(c->mem.cache->arena, bytes + ALIGN, &fresh);
  if (!p) {
    return NULL;
  }
  header *h = pl_piece_at(p);
  *h = (header){.cap = pl_piece_bytes(p) - ALIGN, .cls = NO_CLASS, .piece = p};
  c->mem.fresh += fresh;
  return h;
}

static header *from_malloc(pl_ctx *c, size_t bytes) {
  size_t cap = bytes;
  const int cls = wants_class(bytes) ? class_of(bytes, &cap) : NO_CLASS;
  /* malloc and a shift by hand: aligned_alloc skips glibc's fast path */
  void *base = malloc(cap + 2 * ALIGN);
  if (!base) {
    return NULL;
  }
  header *h = (header *)(((uintptr_t)base + ALIGN - 1) / ALIGN * ALIGN);
  h->cap = cap;
  h->cls = cls;
  h->base = base;
  c->mem.fresh += cls != NO_CLASS;
  return h;
}

static header *from_system(pl_ctx *c, size_t bytes) {
  return wants_arena(c, bytes) ? from_arena(c, bytes) : from_malloc(c, bytes);
}

/* A kept block of the right class, or of one of the next two (half as big again). */
static header *reuse(pl_ctx *c, size_t bytes) {
  pl_block_cache *k = c->mem.cache;
  if (!k || !wants_class(bytes)) {
    return NULL;
  }
  size_t cap;
  int cls = class_of(bytes, &cap);
  for (int i = cls; i < cls + 3 && i < CLASSES; i++) {
    header *h = k->cls[i];
    if (h) {
      unlink_block(k, h);
      return h;
    }
  }
  return NULL;
}

static void human(char out[32], double bytes) {
  static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  int i = 0;
  while (bytes >= 1024 && i < 4) {
    bytes /= 1024;
    i++;
  }
  snprintf(out, 32, i == 0 ? "%.0f %s" : "%.1f %s", bytes, unit[i]);
}

static void *no_memory(pl_ctx *c, size_t bytes, bool limited) {
  static const char *const advice[] = {
      [PL_LIMIT_CALLER] = "the limit of %s; use a smaller batch or raise the limit",
      [PL_LIMIT_SETTING] = "the limit of %s that PL_MEMORY sets; use a smaller batch or raise it",
      [PL_LIMIT_GROUP] = "%s, which is what this container or control group allows less 5 %%; "
                         "use a smaller batch, allow it more memory or set PL_MEMORY"};
  char want[32], live[32], limit[32], over[192];
  human(want, (double)bytes);
  human(live, (double)c->mem.live);
  human(limit, (double)c->mem.limit);
  if (limited) {
    snprintf(over, sizeof over, advice[c->mem.limit_by], limit);
    pl_fail(c, PL_ENOMEM, "out of memory: %s wanted with %s in use, over %s", want, live, over);
  } else {
    pl_fail(c, PL_ENOMEM,
            "out of memory: %s wanted with %s in use; use a smaller batch or a shorter max_length",
            want, live);
  }
  return NULL;
}

/* A size in words: digits and K, M, G or T; -1: it is none. */
static int64_t size_of(const char *text) {
  static const char units[] = "KMGT";
  char *end;
  errno = 0;
  const long long n = text[0] >= '0' && text[0] <= '9' ? strtoll(text, &end, 10) : -1;
  if (n < 0 || errno != 0) {
    return -1;
  }
  int shift = 0;
  const char letter = (char)(*end & ~0x20); /* k is K; a blank would be the end of the text */
  const char *unit = letter ? strchr(units, letter) : NULL;
  if (unit) {
    shift = 10 * (int)(unit - units + 1);
    end++;
  }
  return *end || n > INT64_MAX >> shift ? -1 : n << shift;
}

pl_status pl_mem_start_limit(pl_ctx *c, const char *setting, int64_t group) {
  pl_mem *m = &c->mem;
  if (setting && *setting) {
    const int64_t bytes = size_of(setting);
    if (bytes < 0) {
      return pl_fail(c, PL_EINVAL,
                     "PL_MEMORY is \"%.40s\", wanted bytes, or a number with K, M, G or T such as "
                     "8G (0: no limit)",
                     setting);
    }
    m->limit = bytes;
    m->limit_by = PL_LIMIT_SETTING;
  } else if (group > 0) {
    m->limit = group - group / 20; /* the rest is for the program itself, Lua and the libraries */
    m->limit_by = PL_LIMIT_GROUP;
  }
  return PL_OK;
}

/* Gives back what was freed longest ago where more is kept than may be. */
static void hold_bound(pl_mem *m) {
  int64_t most = m->peak + m->peak / 4;
  if (most < KEEP_MIN) {
    most = KEEP_MIN;
  }
  if (m->limit > 0 && most > m->limit) { /* what is kept is in use for whoever set it */
    most = m->limit;
  }
  pl_block_cache *k = m->cache;
  while (k && m->live + k->bytes + pl_arena_kept(k->arena) > most) {
    header *old = k->oldest;
    const bool classes = old && k->bytes >= pl_arena_kept(k->arena); /* the larger share */
    if (!classes && pl_arena_drop_oldest(k->arena)) {
      continue;
    }
    if (!old) {
      return;
    }
    unlink_block(k, old);
    free(old->base);
  }
}

void *pl_alloc(pl_ctx *c, size_t bytes) {
  pl_mem *m = &c->mem;
  if (m->fail_at > 0) {
    m->fail_at--;
    if (m->fail_at == 0) {
      return no_memory(c, bytes, false);
    }
  }
  if (bytes > PTRDIFF_MAX - ALIGN * ALIGN) {
    return no_memory(c, bytes, false);
  }
  if (m->limit > 0 && (int64_t)bytes > m->limit - m->live) {
    return no_memory(c, bytes, true);
  }
  header *h = reuse(c, bytes);
  if (!h) {
    h = from_system(c, bytes);
  }
  if (!h) {
    pl_mem_trim(c);
    h = from_system(c, bytes);
  }
  if (!h) {
    return no_memory(c, bytes, false);
  }
  h->size = bytes;
  m->live += (int64_t)bytes;
  if (m->live > m->peak) {
    m->peak = m->live;
  }
  hold_bound(m);
  return block_of(h);
}

void *pl_alloc_zero(pl_ctx *c, size_t bytes) {
  void *p = pl_alloc(c, bytes);
  if (p) {
    memset(p, 0, bytes);
  }
  return p;
}

void pl_free(pl_ctx *c, void *p) {
  if (!p) {
    return;
  }
  header *h = header_of(p);
  pl_mem *m = &c->mem;
  m->live -= (int64_t)h->size;
  if (!h->base) {
    if (m->cache) { /* else it outlives its context */
      pl_arena_give(m->cache->arena, h->piece);
    }
  } else if (h->cls == NO_CLASS || !m->cache) {
    free(h->base);
  } else {
    link_block(m->cache, h);
  }
  hold_bound(m);
}

void *pl_realloc(pl_ctx *c, void *p, size_t bytes) {
  if (!p) {
    return pl_alloc(c, bytes);
  }
  header *h = header_of(p);
  pl_mem *m = &c->mem;
  /* Stay in place when it fits and at least half of the block is used. */
  bool roomy = bytes <= h->cap && bytes >= h->cap / 2;
  int64_t more = (int64_t)bytes - (int64_t)h->size;
  if (roomy && (m->limit == 0 || m->live + more <= m->limit || more <= 0)) {
    h->size = bytes;
    m->live += more;
    if (m->live > m->peak) {
      m->peak = m->live;
    }
    return p;
  }
  void *q = pl_alloc(c, bytes);
  if (!q) {
    return NULL;
  }
  memcpy(q, p, h->size < bytes ? h->size : bytes);
  pl_free(c, p);
  return q;
}

char *pl_strdup(pl_ctx *c, const char *s) {
  size_t n = strlen(s) + 1;
  char *p = pl_alloc(c, n);
  if (p) {
    memcpy(p, s, n);
  }
  return p;
}

void pl_mem_trim(pl_ctx *c) {
  pl_block_cache *k = c->mem.cache;
  while (k && k->oldest) {
    header *old = k->oldest;
    unlink_block(k, old);
    free(old->base);
  }
  if (k) {
    pl_arena_trim(k->arena);
  }
}

pl_status pl_size_mul(pl_ctx *c, size_t a, size_t b, size_t *out) {
  size_t r;
  if (__builtin_mul_overflow(a, b, &r) || r > PTRDIFF_MAX) {
    return pl_fail(c, PL_EINVAL, "size overflow: %zu * %zu is too large for this machine", a, b);
  }
  *out = r;
  return PL_OK;
}
