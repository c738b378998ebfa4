/* Causal attention over packed sequences, without T x T matrices in memory:
 * blocks of queries meet blocks of keys that are not in their future, with the
 * running maximum and sum of Milakov & Gimelshein 2018 (as in Dao et al. 2022).
 * The gradient computes the weights again from the kept log-sum-exp.
 *
 * A unit of work is one head (forward) or one group of heads that share keys
 * (gradient) of a few whole families of sequences: a sequence and those that it is the
 * parent of. Units are fixed by the shapes alone. Keys and values of a family are
 * copied once, in the order in which the products read them. */
#include <math.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels/corner.h"
#include "kernels/impl.h"

#define NONE ((real)-1e30)  /* the score of a key that must not be seen */
#define LEAST ((real)-1e25) /* below any other, scaled */
#define LOG2E ((real)1.44269504088896340736)
#define LN2 ((real)0.693147180559945309417)

enum {
  TOKENS = 64,     /* a unit takes families until it has about this many */
  MOST_LANES = 32, /* queries in a block, at most */
  MOST_KEYS = 114, /* keys in a block, at most */
  MOST_ROWS = 14   /* of a register tile */
};

typedef struct att_job {
  int64_t S, H, K, D, window, per; /* per: sequences in a unit */
  const int32_t *seq, *parent;
  int64_t longest; /* keys that a sequence sees, at most */
  const act *q, *k, *v;
  int64_t ldq, ldk, ldv;
  act *y;
  real *lse;
  const act *y_in, *gy;
  const real *lse_in;
  act *gq, *gk, *gv;
  int64_t ldgq, ldgk, ldgv;
  real scale;
  real *scratch;
  int64_t room; /* of one thread */
} att_job;

/* ---- sequences and their families ---------------------------------------------------- */

typedef struct att_view {
  int64_t at;             /* number of the sequence */
  int64_t begin, length;  /* its rows */
  int64_t before, parent; /* keys of its parent, and where they begin */
  int64_t keys;           /* before + length */
} att_view;

static bool is_child(const att_job *j, int64_t s) {
  return j->parent && j->parent[s] >= 0;
}

static void look(const att_job *j, int64_t at, att_view *s) {
  *s = (att_view){.at = at};
  if (at >= j->S) {
    return;
  }
  s->begin = j->seq[at];
  s->length = j->seq[at + 1] - s->begin;
  if (is_child(j, at)) {
    s->parent = j->seq[j->parent[at]];
    s->before = j->seq[j->parent[at] + 1] - s->parent;
  }
  s->keys = s->before + s->length;
}

/* A unit begins with the first sequence from its share on that is nobody's child. */
static void view_first(const att_job *j, int64_t unit, att_view *s) {
  int64_t at = unit * j->per;
  while (at < j->S && is_child(j, at)) {
    at++;
  }
  look(j, at, s);
}

static bool view_here(const att_job *j, int64_t unit, const att_view *s) {
  return s->at < j->S && (s->at < (unit + 1) * j->per || is_child(j, s->at));
}

static void view_next(const att_job *j, att_view *s) {
  look(j, s->at + 1, s);
}

/* The row of key i, those of the parent counted first. */
PL_INLINE int64_t key_row(const att_view *s, int64_t i) {
  return i < s->before ? s->parent + i : s->begin + i - s->before;
}

/* ---- room ------------------------------------------------------------------------------ */

/* Parts of one thread's scratch. Cells are at most as large as reals. */
typedef struct att_room {
  int64_t keys; /* even */
  int64_t ld;   /* of gk and gv */
  real *key_rows, *value_rows, *channels;
  real *queries, *grads, *query_panels, *grad_panels;
  real *s, *ds, *weights, *p_square, *ds_square; /* [keys of a block, queries] */
  real *t;                                       /* [D, queries] */
  real *gk, *gv;                                 /* [keys, ld] */
} att_room;

static int64_t take(real **at, real *memory, int64_t used, int64_t n) {
  *at = memory ? memory + used : NULL;
  return used + (n + 15) / 16 * 16;
}

/* Lays out the parts (nowhere, where memory is NULL) and returns how much they take. Strips are
 * whole and hold MR of STEP, at least three quarters. */
static int64_t room_of(int64_t longest, int64_t D, bool back, real *memory, att_room *r) {
  const int64_t keys = (longest + 1) / 2 * 2;
  const int64_t channels = (D + MOST_ROWS) * 4 / 3;
  const int64_t strips = (keys + MOST_ROWS) * 4 / 3 * (D + 1);
  const int64_t block = (MOST_KEYS + 2) * MOST_LANES;
  const int64_t panel = (D + MOST_LANES) * MOST_LANES;
  *r = (att_room){.keys = keys, .ld = (D + 15) / 16 * 16};
  int64_t n = take(&r->key_rows, memory, 0, strips);
  n = take(&r->channels, memory, n, channels * keys);
  n = take(&r->queries, memory, n, panel);
  n = take(&r->t, memory, n, panel);
  n = take(&r->s, memory, n, block);
  n = take(&r->weights, memory, n, block);
  if (back) {
    n = take(&r->value_rows, memory, n, strips);
    n = take(&r->grads, memory, n, panel);
    n = take(&r->query_panels, memory, n, panel);
    n = take(&r->grad_panels, memory, n, panel);
    n = take(&r->ds, memory, n, block);
    n = take(&r->p_square, memory, n, block);
    n = take(&r->ds_square, memory, n, block);
    n = take(&r->gk, memory, n, keys * r->ld);
    n = take(&r->gv, memory, n, keys * r->ld);
  }
  return n;
}

static void room_for(const att_job *j, real *memory, bool back, att_room *r) {
  (void)room_of(j->longest, j->D, back, memory, r);
}

static int64_t longest(const pl_sequences *q) {
  int64_t most = 0;
  for (int64_t s = 0; s < q->S; s++) {
    int64_t n = q->seq[s + 1] - q->seq[s];
    if (q->parent && q->parent[s] >= 0) {
      n += q->seq[q->parent[s] + 1] - q->seq[q->parent[s]];
    }
    most = imax(most, n);
  }
  return most;
}

int64_t K(attention_scratch)(const pl_sequences *seqs, int64_t D, bool back) {
  att_room r;
  return pl_threads() * room_of(longest(seqs), D, back, NULL, &r);
}

/* ---- the gradient of keys and values ---------------------------------------------------- */

/* A sequence begins with no gradient; its parent goes on with what it has. */
static void zero_keys(const att_job *j, const att_view *s, att_room *r) {
  (void)j;
  const size_t bytes = (size_t)(s->length * r->ld) * sizeof(real);
  memset(r->gk + s->before * r->ld, 0, bytes);
  memset(r->gv + s->before * r->ld, 0, bytes);
}

/* ---- the instruction sets ----------------------------------------------------------------- */

#define ISA baseline
#define TARGET
#define VBYTES 16
#define VL PER_16
#define MR 4
#define NATIVE 0
#include "kernels/attention_isa.h"

#ifdef __x86_64__
#define ISA avx2
#define TARGET PL_TARGET_AVX2
#define VBYTES 32
#define VL PER_32
#define MR 6
#define NATIVE 0
#include "kernels/attention_isa.h"

#define ISA avx512
#define TARGET PL_TARGET_AVX512
#define VBYTES 64
#define VL PER_64
#define MR 14
#define NATIVE 0
#include "kernels/attention_isa.h"

#if PL_IS_HALF
#define ISA avx512bf16
#define TARGET PL_TARGET_AVX512BF16
#define VBYTES 64
#define VL PER_64
#define MR 14
#define NATIVE 1
#include "kernels/attention_isa.h"
#endif
#endif

#if defined(__x86_64__) && PL_IS_HALF
#define RUN(f)                                        \
  switch (pl_isa_used()) {                            \
    case PL_ISA_AVX512BF16: f##_avx512bf16(j, unit, memory); break; \
    case PL_ISA_AVX512: f##_avx512(j, unit, memory); break;         \
    case PL_ISA_AVX2: f##_avx2(j, unit, memory); break;             \
    default: f##_baseline(j, unit, memory);                         \
  }
#elif defined(__x86_64__)
#define RUN(f)                                                      \
  switch (pl_isa_used()) {                                          \
    case PL_ISA_AVX512BF16:                                         \
    case PL_ISA_AVX512: f##_avx512(j, unit, memory); break;         \
    case PL_ISA_AVX2: f##_avx2(j, unit, memory); break;             \
    default: f##_baseline(j, unit, memory);                         \
  }
#else
#define RUN(f) f##_baseline(j, unit, memory)
#endif

static void forward_block(void *arg, int64_t unit) {
  const att_job *j = arg;
  real *memory = j->scratch + pl_thread_id() * j->room;
  RUN(forward_unit);
}

static void backward_block(void *arg, int64_t unit) {
  const att_job *j = arg;
  real *memory = j->scratch + pl_thread_id() * j->room;
  RUN(backward_unit);
}

static att_job job_of(const pl_sequences *q, int64_t H, int64_t Kh, int64_t D, real *scratch,
                      bool back) {
  att_room r;
  const int64_t n = q->S > 0 ? q->seq[q->S] - q->seq[0] : 0;
  att_job j = {.S = q->S, .H = H, .K = Kh, .D = D, .window = q->window, .seq = q->seq,
               .parent = q->parent, .longest = longest(q), .scratch = scratch,
               .per = imax(1, imin(q->S, TOKENS * q->S / imax(1, n))),
               .scale = (real)(1 / sqrt((double)D))};
  j.room = room_of(j.longest, D, back, scratch, &r);
  return j;
}

void K(attention)(const pl_sequences *seqs, int64_t H, int64_t Kh, int64_t D, const act *q,
                  int64_t ldq, const act *k, int64_t ldk, const act *v, int64_t ldv, act *y,
                  real *lse, real *scratch) {
  att_job j = job_of(seqs, H, Kh, D, scratch, false);
  j.q = q, j.k = k, j.v = v;
  j.ldq = ldq, j.ldk = ldk, j.ldv = ldv;
  j.y = y, j.lse = lse;
  pl_parallel(ceil_div(j.S, j.per) * H, forward_block, &j);
}

void K(attention_back)(const pl_sequences *seqs, int64_t H, int64_t Kh, int64_t D, const act *q,
                       int64_t ldq, const act *k, int64_t ldk, const act *v, int64_t ldv,
                       const act *y, const real *lse, const act *gy, act *gq, int64_t ldgq,
                       act *gk, int64_t ldgk, act *gv, int64_t ldgv, real *scratch) {
  att_job j = job_of(seqs, H, Kh, D, scratch, true);
  j.q = q, j.k = k, j.v = v;
  j.ldq = ldq, j.ldk = ldk, j.ldv = ldv;
  j.y_in = y, j.lse_in = lse, j.gy = gy;
  j.gq = gq, j.gk = gk, j.gv = gv;
  j.ldgq = ldgq, j.ldgk = ldgk, j.ldgv = ldgv;
  pl_parallel(ceil_div(j.S, j.per) * Kh, backward_block, &j);
}
