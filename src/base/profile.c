/* The profile's counters: see profile.h. Must not print or know any op. */
#include "base/profile.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

pl_status pl_profile_start(pl_ctx *c) {
  if (c->profile == NULL) {
    c->profile = pl_alloc_zero(c, sizeof *c->profile);
  }
  return c->profile != NULL ? PL_OK : PL_ENOMEM;
}

void pl_profile_stop(pl_ctx *c) {
  pl_free(c, c->profile);
  c->profile = NULL;
}

static bool same(const char *a, const char *b) {
  return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* The last row takes what has no room. */
static pl_profile_row *row_of(pl_profile *p, const char *within, const char *name) {
  for (int i = 0; i < p->n; i++) {
    if (same(p->rows[i].name, name) && same(p->rows[i].within, within)) {
      return &p->rows[i];
    }
  }
  if (p->n == PL_PROFILE_ROWS) {
    return &p->rows[PL_PROFILE_ROWS - 1];
  }
  pl_profile_row *r = &p->rows[p->n++];
  if (p->n < PL_PROFILE_ROWS) {
    r->name = name;
    r->within = within;
  } else {
    r->name = "(more)";
  }
  return r;
}

void pl_profile_push(pl_ctx *c, const char *name, bool back) {
  pl_profile *p = c->profile;
  if (p->depth < PL_PROFILE_DEPTH) { /* deeper stretches are part of the last one */
    const pl_profile_frame *outer = p->depth > 0 ? &p->frames[p->depth - 1] : NULL;
    p->frames[p->depth] = (pl_profile_frame){
        .row = row_of(p, outer != NULL ? outer->row->name : NULL, name),
        .back = back || (outer != NULL && outer->back != 0),
        .began = pl_now()};
  }
  p->depth++;
}

void pl_profile_add(pl_ctx *c, pl_work work) {
  pl_profile *p = c->profile;
  const int top = p->depth < PL_PROFILE_DEPTH ? p->depth : PL_PROFILE_DEPTH;
  if (top > 0) {
    pl_work *w = &p->frames[top - 1].row->work;
    w->flop += work.flop;
    w->bytes += work.bytes;
    w->made += work.made;
  }
}

void pl_profile_pop(pl_ctx *c, pl_work work) {
  pl_profile *p = c->profile;
  if (p->depth == 0) {
    return;
  }
  if (p->depth > PL_PROFILE_DEPTH) {
    p->depth--;
    return;
  }
  pl_profile_add(c, work);
  p->depth--;
  const pl_profile_frame *f = &p->frames[p->depth];
  const double all = pl_now() - f->began;
  f->row->calls[f->back]++;
  f->row->seconds[f->back] += all - f->inside;
  if (p->depth > 0) {
    p->frames[p->depth - 1].inside += all;
  }
}
