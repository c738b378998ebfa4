/* Where the time goes, by name: ops (the tape enters and leaves them) and named
 * stretches of other C code. Off unless started; then every call below costs one
 * branch. A stretch inside another is counted once: each row holds self time, so
 * the rows add up to what was inside any of them.
 *
 * Use from C, nothing that can jump away in between:
 *   pl_profile_enter(c, "tokenize", false);
 *   st = pl_tokenizer_encode(...);
 *   pl_profile_leave(c, (pl_work){.bytes = n});
 * and inside an op, beside its products:
 *   pl_profile_work(c, 2.0 * M * N * K, 0);
 */
#ifndef PL_BASE_PROFILE_H
#define PL_BASE_PROFILE_H
#include "base/status.h"

enum { PL_PROFILE_ROWS = 256, PL_PROFILE_DEPTH = 32 };

/* What a stretch has done, as far as it knows. */
typedef struct pl_work {
  double flop;  /* multiply-adds count two */
  double bytes; /* read and written, where memory is what limits it */
  double made;  /* bytes of its results */
} pl_work;

/* [0] forward (and all that is no backward), [1] backward */
typedef struct pl_profile_row {
  const char *name;   /* as given: must outlive the profile */
  const char *within; /* the stretch it was used in, or NULL: each has a row of its own */
  int64_t calls[2];
  double seconds[2];
  pl_work work;
} pl_profile_row;

typedef struct pl_profile_frame {
  pl_profile_row *row;
  int back;
  double began, inside; /* inside: seconds of the stretches in it */
} pl_profile_frame;

struct pl_profile {
  int n, depth;
  pl_profile_row rows[PL_PROFILE_ROWS];
  pl_profile_frame frames[PL_PROFILE_DEPTH];
};

pl_status pl_profile_start(pl_ctx *c); /* idempotent: goes on with what was counted */
void pl_profile_stop(pl_ctx *c);       /* forgets the counts; idempotent */

/* The slow halves; call the three below. */
void pl_profile_push(pl_ctx *c, const char *name, bool back);
void pl_profile_pop(pl_ctx *c, pl_work work);
void pl_profile_add(pl_ctx *c, pl_work work);

static inline void pl_profile_enter(pl_ctx *c, const char *name, bool back) {
  if (c->profile != NULL) {
    pl_profile_push(c, name, back);
  }
}

static inline void pl_profile_leave(pl_ctx *c, pl_work work) {
  if (c->profile != NULL) {
    pl_profile_pop(c, work);
  }
}

/* Adds to what the innermost stretch has done. */
static inline void pl_profile_work(pl_ctx *c, double flop, double bytes) {
  if (c->profile != NULL) {
    pl_profile_add(c, (pl_work){.flop = flop, .bytes = bytes});
  }
}

#endif
