/* Big blocks out of one span of addresses.
 *
 * A training step's activations, gradients and scratch have many sizes, and they are not there
 * at the same time: what the backward pass frees is what its gradients need. So a block is cut
 * from the first hole that holds it, at its lower end, and joins the holes beside it when it
 * goes. With eight kinds of training steps this took at most a tenth more than what is live, the
 * smallest hole up to a half more (it breaks what a large block will want again). A step that
 * repeats finds the holes as it left them and asks the system for nothing.
 *
 * A span is reserved as addresses only, and counts for the system as memory as far as it was
 * opened; pages come by use, huge ones where the system has them. Which have come is noted, so
 * that holes can be given back without moving anything. Where addresses are limited, spans are
 * small and there are several. Pieces are described outside
 * of the span. Must not be called by two threads at once. */
#define _GNU_SOURCE
#include "base/arena.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define PAGE ((size_t)2 << 20) /* a huge page on x86-64 and arm64 */
#define SPAN ((size_t)64 << 30)
#define SPAN_MIN ((size_t)64 << 20) /* below it a span is as large as its block */
#define ALIGN ((size_t)64)
#define REST_MIN ((size_t)4096) /* a smaller rest stays with the block */

typedef struct span {
  char *at;            /* a multiple of PAGE */
  size_t bytes;        /* reserved */
  size_t end;          /* of the pieces; they leave no gap */
  size_t open;         /* may be read and written so far: a multiple of PAGE */
  unsigned char *come; /* of each page: is it there? */
  pl_piece *first, *last;
  struct span *next;
} span;

struct pl_piece {
  span *home;
  size_t from, bytes;        /* in the span */
  bool hole;
  uint64_t made;             /* of a hole: when it last grew */
  pl_piece *before, *after;  /* neighbours */
  pl_piece *previous, *next; /* holes, in no order */
};

struct pl_arena {
  span *spans;
  pl_piece *holes;
  int64_t come, used; /* bytes of pages that are there; of blocks */
  uint64_t clock;
};

pl_arena *pl_arena_new(void) {
  return calloc(1, sizeof(pl_arena));
}

void *pl_piece_at(const pl_piece *p) {
  return p->home->at + p->from;
}

size_t pl_piece_bytes(const pl_piece *p) {
  return p->bytes;
}

int64_t pl_arena_kept(const pl_arena *a) {
  return a->come - a->used;
}

/* ---- spans ------------------------------------------------------------------------------- */

static size_t pages_up(size_t bytes) {
  return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* Reserves addresses at a multiple of PAGE. */
static char *reserve(size_t bytes) {
  const size_t all = bytes + PAGE;
  char *p = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    return NULL;
  }
  const size_t before = (PAGE - (uintptr_t)p % PAGE) % PAGE;
  if (before > 0) {
    munmap(p, before);
  }
  munmap(p + before + bytes, PAGE - before);
  return p + before;
}

static void hole_in(pl_arena *a, pl_piece *p) {
  p->hole = true;
  p->made = ++a->clock;
  p->previous = NULL;
  p->next = a->holes;
  if (a->holes != NULL) {
    a->holes->previous = p;
  }
  a->holes = p;
}

static void hole_out(pl_arena *a, pl_piece *p) {
  p->hole = false;
  if (p->previous != NULL) {
    p->previous->next = p->next;
  } else {
    a->holes = p->next;
  }
  if (p->next != NULL) {
    p->next->previous = p->previous;
  }
}

/* At most a quarter of the addresses the process may have: others want some too. */
static size_t span_most(void) {
  struct rlimit r;
  size_t most = SPAN;
  if (getrlimit(RLIMIT_AS, &r) == 0 && r.rlim_cur != RLIM_INFINITY) {
    while (most >= SPAN_MIN && most > r.rlim_cur / 4) {
      most /= 4;
    }
  }
  return most;
}

/* A span with room for `bytes`: as many addresses as the system lets us have. */
static span *span_new(pl_arena *a, size_t bytes) {
  span *s = calloc(1, sizeof *s);
  if (s == NULL) {
    return NULL;
  }
  s->bytes = span_most();
  while (s->at == NULL && s->bytes > bytes && s->bytes >= SPAN_MIN) {
    s->at = reserve(s->bytes);
    s->bytes = s->at != NULL ? s->bytes : s->bytes / 4;
  }
  if (s->at == NULL) {
    s->bytes = pages_up(bytes);
    s->at = reserve(s->bytes);
  }
  s->come = s->at != NULL ? calloc(s->bytes / PAGE, 1) : NULL;
  if (s->come == NULL) {
    if (s->at != NULL) {
      munmap(s->at, s->bytes);
    }
    free(s);
    return NULL;
  }
  /* Fewer faults and fewer TLB misses; a kernel without it changes nothing. */
  madvise(s->at, s->bytes, MADV_HUGEPAGE);
  s->next = a->spans;
  a->spans = s;
  return s;
}

static void span_close(span *s) {
  munmap(s->at, s->bytes);
  free(s->come);
  free(s);
}

/* ---- taking ------------------------------------------------------------------------------ */

static pl_piece *first_hole(const pl_arena *a, size_t bytes) {
  pl_piece *first = NULL;
  for (pl_piece *p = a->holes; p != NULL; p = p->next) {
    const uintptr_t at = (uintptr_t)pl_piece_at(p);
    if (p->bytes >= bytes && (first == NULL || at < (uintptr_t)pl_piece_at(first))) {
      first = p;
    }
  }
  return first;
}

/* Notes the pages of a new block as there; *fresh: some were not. */
static bool open_pages(pl_arena *a, const pl_piece *p, bool *fresh) {
  span *s = p->home;
  const size_t end = pages_up(p->from + p->bytes);
  if (end > s->open) {
    if (mprotect(s->at + s->open, end - s->open, PROT_READ | PROT_WRITE) != 0) {
      return false;
    }
    s->open = end;
  }
  *fresh = false;
  for (size_t i = p->from / PAGE; i < end / PAGE; i++) {
    if (!s->come[i]) {
      s->come[i] = 1;
      a->come += (int64_t)PAGE;
      *fresh = true;
    }
  }
  return true;
}

/* A new piece in front of `after`, or the last one of s; nothing else changes. */
static pl_piece *piece_new(span *s, size_t from, size_t bytes, pl_piece *after) {
  pl_piece *p = calloc(1, sizeof *p);
  if (p == NULL) {
    return NULL;
  }
  *p = (pl_piece){.home = s, .from = from, .bytes = bytes, .after = after};
  p->before = after != NULL ? after->before : s->last;
  *(p->before != NULL ? &p->before->after : &s->first) = p;
  *(after != NULL ? &after->before : &s->last) = p;
  return p;
}

/* A hole of `bytes` at the end of a span, the one that ends there counted. */
static pl_piece *hole_at_end(pl_arena *a, size_t bytes) {
  span *s = a->spans;
  pl_piece *p = NULL;
  size_t more = bytes;
  for (; s != NULL; s = s->next) {
    p = s->last != NULL && s->last->hole ? s->last : NULL;
    more = p != NULL ? bytes - p->bytes : bytes;
    if (more <= s->bytes - s->end) {
      break;
    }
  }
  if (s == NULL) {
    s = span_new(a, bytes);
    p = NULL;
    more = bytes;
  }
  if (s != NULL && p == NULL) {
    p = piece_new(s, s->end, 0, NULL);
    if (p != NULL) {
      hole_in(a, p);
    }
  }
  if (p != NULL) {
    p->bytes += more;
    s->end += more;
  }
  return p;
}

/* The lower part of a hole becomes a piece of its own, of `bytes`. NULL: no memory. */
static pl_piece *cut(pl_piece *p, size_t bytes) {
  pl_piece *lower = piece_new(p->home, p->from, bytes, p);
  if (lower != NULL) {
    p->from += bytes;
    p->bytes -= bytes;
  }
  return lower;
}

pl_piece *pl_arena_take(pl_arena *a, size_t bytes, bool *fresh) {
  bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
  pl_piece *p = first_hole(a, bytes);
  if (p == NULL) {
    p = hole_at_end(a, bytes);
  }
  if (p != NULL && p->bytes - bytes >= REST_MIN) {
    p = cut(p, bytes);
  }
  if (p == NULL) {
    return NULL;
  }
  if (p->hole) {
    hole_out(a, p);
  }
  a->used += (int64_t)p->bytes;
  if (!open_pages(a, p, fresh)) {
    pl_arena_give(a, p);
    return NULL;
  }
  return p;
}

/* ---- giving back ------------------------------------------------------------------------- */

/* p takes over the piece after it. */
static void join(pl_piece *p) {
  pl_piece *q = p->after;
  p->bytes += q->bytes;
  p->after = q->after;
  *(p->after != NULL ? &p->after->before : &p->home->last) = p;
  free(q);
}

void pl_arena_give(pl_arena *a, pl_piece *p) {
  a->used -= (int64_t)p->bytes;
  if (p->after != NULL && p->after->hole) {
    hole_out(a, p->after);
    join(p);
  }
  if (p->before != NULL && p->before->hole) {
    p = p->before;
    hole_out(a, p);
    join(p);
  }
  hole_in(a, p);
}

/* Pages that lie in p alone: first..last-1. */
static void pages_in(const pl_piece *p, size_t *first, size_t *last) {
  const size_t end = p->from + p->bytes;
  *first = pages_up(p->from) / PAGE;
  *last = (p->after == NULL ? pages_up(end) : end) / PAGE; /* nobody has the rest of the last */
}

static bool has_pages(const pl_piece *p) {
  size_t first, last;
  pages_in(p, &first, &last);
  for (size_t i = first; i < last; i++) {
    if (p->home->come[i]) {
      return true;
    }
  }
  return false;
}

static void drop_pages(pl_arena *a, const pl_piece *p) {
  size_t first, last;
  pages_in(p, &first, &last);
  if (first >= last) {
    return;
  }
  madvise(p->home->at + first * PAGE, (last - first) * PAGE, MADV_DONTNEED);
  for (size_t i = first; i < last; i++) {
    a->come -= p->home->come[i] ? (int64_t)PAGE : 0;
    p->home->come[i] = 0;
  }
}

bool pl_arena_drop_oldest(pl_arena *a) {
  pl_piece *oldest = NULL;
  for (pl_piece *p = a->holes; p != NULL; p = p->next) {
    if ((oldest == NULL || p->made < oldest->made) && has_pages(p)) {
      oldest = p;
    }
  }
  if (oldest != NULL) {
    drop_pages(a, oldest);
  }
  return oldest != NULL;
}

/* Spans without a block go altogether: their addresses may be what is missing. */
void pl_arena_trim(pl_arena *a) {
  for (pl_piece *p = a->holes; p != NULL; p = p->next) {
    drop_pages(a, p);
  }
  for (span **at = &a->spans; *at != NULL;) {
    span *s = *at;
    pl_piece *p = s->first;
    if (p != NULL && (!p->hole || p->after != NULL)) {
      at = &s->next;
      continue;
    }
    if (p != NULL) {
      hole_out(a, p);
      free(p);
    }
    *at = s->next;
    span_close(s);
  }
}

void pl_arena_close(pl_arena *a) {
  if (a == NULL || a->used > 0) {
    return;
  }
  while (a->spans != NULL) {
    span *s = a->spans;
    a->spans = s->next;
    for (pl_piece *p = s->first; p != NULL;) {
      pl_piece *after = p->after;
      free(p);
      p = after;
    }
    span_close(s);
  }
  free(a);
}
