/* Sampling: see sample.h. */
#define PL_REAL float
#define PL_SUFFIX f32
#include "lm/sample.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/vmath.h"
#include "lm/v16.h"

enum { CHUNK = PL_CHUNK, FEW = 64 /* are sorted rather than halved again */ };
#define E_ZERO 100 /* nats below the likeliest, where e is as good as nothing */

typedef int32_t i16v __attribute__((vector_size(64)));

typedef struct room { /* the scratch, cut up */
  const pl_chunk *chunks; /* [chunks of V] */
  /* the tokens that may be kept, by id: [V], n in use */
  int64_t n;
  float *e; /* exp((logit - max) / T), 0 once cut off */
  float *logit;
  int32_t *id;
  pl_candidate *sort; /* [V] those where the cut falls; the id is a place among these */
} room;

static int64_t round64(int64_t n) { return (n + 63) / 64 * 64; }

int64_t pl_sample_scratch(int64_t V) {
  return 3 * round64(V * 4) + round64(V * (int64_t)sizeof(pl_candidate));
}

static void *take(char **p, int64_t bytes) {
  char *at = *p;
  *p += round64(bytes);
  return at;
}

static room cut_up(int64_t V, const pl_chunk *chunks, void *scratch) {
  char *p = scratch;
  room r = {.chunks = chunks};
  r.e = take(&p, V * 4);
  r.logit = take(&p, V * 4);
  r.id = take(&p, V * 4);
  r.sort = take(&p, V * (int64_t)sizeof(pl_candidate));
  return r;
}

/* ---- one pass over the logits ---- */

/* The sum of exp((x - most) * inv_t) over a chunk. */
PL_INLINE float chunk_sum(const float *x, float most, float inv_t) {
  float lane[LANES_16] = {0};
  for (int i = 0; i < CHUNK; i += LANES_16) {
    for (int l = 0; l < LANES_16; l++) {
      lane[l] += k_exp_below((x[i + l] - most) * inv_t);
    }
  }
  float s = 0;
  for (int l = 0; l < LANES_16; l++) {
    s += lane[l];
  }
  return s;
}

PL_VARIANTS(pl_chunk, chunk_of, (const float *x, float inv_t), (x, inv_t)) {
  float lane[LANES_16];
  memcpy(lane, x, sizeof lane);
  for (int i = LANES_16; i < CHUNK; i += LANES_16) {
    for (int l = 0; l < LANES_16; l++) {
      lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    }
  }
  pl_chunk c = {.most = lane[0]};
  for (int l = 1; l < LANES_16; l++) {
    c.most = lane[l] > c.most ? lane[l] : c.most;
  }
  if (c.most == -INFINITY) { /* all are and count nothing, or a NaN is among them */
    int damaged = 0;
    for (int i = 0; i < CHUNK; i++) {
      damaged |= x[i] != x[i];
    }
    c.z = c.zt = damaged ? NAN : 0;
    return c;
  }
  c.z = chunk_sum(x, c.most, 1);
  c.zt = inv_t == 1 ? c.z : chunk_sum(x, c.most, inv_t);
  return c;
}

void pl_sample_measure(int64_t n, const float *logits, float inv_t, pl_chunk *chunks) {
  for (; n >= CHUNK; n -= CHUNK, logits += CHUNK) {
    *chunks++ = chunk_of(logits, inv_t);
  }
  if (n > 0) {
    float last[CHUNK];
    for (int64_t i = 0; i < CHUNK; i++) {
      last[i] = i < n ? logits[i] : -INFINITY;
    }
    *chunks = chunk_of(last, inv_t);
  }
}

float pl_sample_inverse(const pl_sampling *s) {
  const double most = 1e30; /* beyond it, and its inverse, only the likeliest, or all alike */
  return s->temperature == 0 ? 1 : (float)fmin(fmax(1 / s->temperature, 1 / most), most);
}

typedef struct totals {
  float most;
  double z, zt; /* of all, from most */
} totals;

/* What sums from `most` are worth beside those from the likeliest of all; all may be -inf. */
static float worth(float most, float of_all, float inv_t) {
  return most == -INFINITY ? 1 : expf((most - of_all) * inv_t);
}

/* The totals; the sums of each chunk count from the likeliest of all then. A NaN in a chunk is
 * one in its sums. */
static totals add_up(int64_t V, float inv_t, pl_chunk *chunks) {
  const int64_t n = pl_chunks(V);
  totals t = {.most = -INFINITY};
  for (int64_t i = 0; i < n; i++) {
    t.most = chunks[i].most > t.most ? chunks[i].most : t.most;
  }
  for (int64_t i = 0; i < n; i++) {
    pl_chunk *c = &chunks[i];
    c->z *= worth(c->most, t.most, 1);
    c->zt = inv_t == 1 ? c->z : c->zt * worth(c->most, t.most, inv_t);
    t.z += c->z;
    t.zt += c->zt;
  }
  return t;
}

/* e = exp((x - m) * inv_t) */
static void exps(int64_t n, const float *x, float m, float inv_t, float *e) {
  for (int64_t i = 0; i < n; i++) {
    e[i] = (x[i] - m) * inv_t;
  }
  pl_exp_f32(n, e, e);
}

static double sum_of(int64_t n, const float *x) {
  float lane[LANES_16] = {0};
  const int64_t whole = n - n % LANES_16;
  for (int64_t i = 0; i < whole; i += LANES_16) {
    for (int l = 0; l < LANES_16; l++) {
      lane[l] += x[i + l];
    }
  }
  double s = 0;
  for (int64_t i = whole; i < n; i++) {
    s += x[i];
  }
  for (int l = 0; l < LANES_16; l++) {
    s += lane[l];
  }
  return s;
}

/* ---- the tokens that may be kept ---- */

static int descending(const void *a, const void *b) {
  const float x = *(const float *)a;
  const float y = *(const float *)b;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* A logit that no kept token lies below. top_k: k chunks have one as good as their best.
 * top_p: V tokens this far down would not have the mass that may be cut off. What a later cut
 * may rest on (top_p: the sum of what top_k left) stays above it too. */
static float bound_of(int64_t V, const pl_sampling *s, const totals *t, float inv_t, room *r) {
  const int64_t n = pl_chunks(V);
  if (s->top_k > 0 && s->top_k < V) {
    if (s->top_k > n) {
      return -INFINITY;
    }
    for (int64_t i = 0; i < n; i++) {
      r->e[i] = r->chunks[i].most;
    }
    qsort(r->e, (size_t)n, sizeof *r->e, descending);
    return r->e[s->top_k - 1];
  }
  const double least = s->top_p < 1 ? (1 - s->top_p) * t->zt / (double)V / 2 : s->min_p / 2;
  return (float)(t->most + log(least) / inv_t);
}

/* Lists the tokens from the bound on. */
static void collect(int64_t V, const float *logits, float bound, room *r) {
  int64_t n = 0;
  for (int64_t c = 0; c < pl_chunks(V); c++) {
    if (r->chunks[c].most < bound) {
      continue;
    }
    const int64_t end = (c + 1) * CHUNK < V ? (c + 1) * CHUNK : V;
    for (int64_t v = c * CHUNK; v < end; v++) { /* without branches: most miss it */
      r->logit[n] = logits[v];
      r->id[n] = (int32_t)v;
      n += logits[v] >= bound;
    }
  }
  r->n = n;
}

static int by_rank(const void *a, const void *b) {
  const pl_candidate *x = a;
  const pl_candidate *y = b;
  if (x->logit != y->logit) {
    return x->logit > y->logit ? -1 : 1;
  }
  return x->id < y->id ? -1 : x->id > y->id;
}

typedef struct tally {
  int64_t count;
  double mass;
} tally;

/* Those of the list with a logit of at least x: how many, and their e. */
PL_VARIANTS(tally, from_on, (int64_t n, const float *logit, const float *e, float x),
            (n, logit, e, x)) {
  tally t = {0, 0};
  for (int64_t i = 0; i < n; i += CHUNK) {
    const int64_t end = n - i < CHUNK ? n : i + CHUNK;
    v16 mass = {0};
    i16v count = {0};
    int64_t j = i;
    for (; j + LANES_16 <= end; j += LANES_16) {
      v16 l;
      i16v m;
      memcpy(&l, logit + j, sizeof l);
      memcpy(&m, e + j, sizeof m);
      const i16v in = l >= x; /* -1 where it is */
      mass += (v16)(m & in);
      count -= in;
    }
    for (int l = 0; j < end; j++, l++) {
      mass[l] += logit[j] >= x ? e[j] : 0;
      count[l] += logit[j] >= x;
    }
    for (int l = 0; l < LANES_16; l++) {
      t.mass += mass[l];
      t.count += count[l];
    }
  }
  return t;
}

static bool enough(tally t, int64_t max_count, double max_mass) {
  return t.count >= max_count || t.mass >= max_mass;
}

/* Cuts off e below lo, and those from lo up to below hi that come in the order after the token
 * with which there is enough; above: those from hi on. */
static void cut_between(float lo, float hi, tally above, int64_t max_count, double max_mass,
                        room *r) {
  int64_t n = 0;
  for (int64_t i = 0; i < r->n; i++) {
    if (r->logit[i] < lo) {
      r->e[i] = 0;
    } else if (r->logit[i] < hi) {
      r->sort[n++] = (pl_candidate){r->logit[i], (int32_t)i};
    }
  }
  qsort(r->sort, (size_t)n, sizeof *r->sort, by_rank);
  for (int64_t i = 0; i < n; i++) {
    float *e = &r->e[r->sort[i].id];
    if (enough(above, max_count, max_mass)) {
      *e = 0;
      continue;
    }
    above.count++;
    above.mass += *e;
  }
}

/* Keeps the head of the order up to and with the token at which the count reaches max_count or
 * the mass reaches max_mass. The logits between which it lies are halved until they are few. */
static void cut(float lowest, float most, int64_t max_count, double max_mass, room *r) {
  tally from_lo = from_on(r->n, r->logit, r->e, lowest);
  tally from_hi = from_on(r->n, r->logit, r->e, most);
  float lo = lowest;
  float hi = most;
  if (!enough(from_lo, max_count, max_mass)) {
    return;
  }
  if (enough(from_hi, max_count, max_mass)) {
    cut_between(most, INFINITY, (tally){0, 0}, max_count, max_mass, r);
    return;
  }
  while (from_lo.count - from_hi.count > FEW) {
    const float x = lo + (hi - lo) / 2;
    if (!(x > lo && x < hi)) {
      break; /* equals */
    }
    const tally t = from_on(r->n, r->logit, r->e, x);
    if (enough(t, max_count, max_mass)) {
      lo = x;
      from_lo = t;
    } else {
      hi = x;
      from_hi = t;
    }
  }
  cut_between(lo, hi, from_hi, max_count, max_mass, r);
}

static void cut_all(int64_t V, const float *logits, const pl_sampling *s, const totals *t,
                    float inv_t, room *r) {
  const float bound = fmaxf(bound_of(V, s, t, inv_t, r), t->most - E_ZERO / inv_t);
  collect(V, logits, bound, r);
  exps(r->n, r->logit, t->most, inv_t, r->e);
  double kept = t->zt;
  if (s->top_k > 0 && s->top_k < V) {
    cut(bound, t->most, s->top_k, INFINITY, r);
    kept = sum_of(r->n, r->e);
  }
  if (s->top_p < 1) {
    cut(bound, t->most, INT64_MAX, s->top_p * kept, r);
  }
  if (s->min_p > 0) { /* the likeliest has e = 1 */
    const float least = (float)s->min_p;
    for (int64_t i = 0; i < r->n; i++) {
      r->e[i] = r->e[i] < least ? 0 : r->e[i];
    }
  }
}

/* The place in e at which the sum passes `left`; rounding may walk off the end: the last
 * possible one then. -1: nothing is possible. */
static int64_t walk(int64_t n, const float *e, double left) {
  int64_t last = -1;
  for (int64_t i = 0; i < n; i++) {
    if (e[i] > 0) {
      last = i;
      left -= e[i];
      if (left < 0) {
        break;
      }
    }
  }
  return last;
}

/* Draws among all V tokens: a chunk by the sums, then a token of it. */
static int32_t draw_any(int64_t V, const float *logits, const totals *t, float inv_t, double u,
                        const room *r) {
  double left = u * t->zt;
  int64_t last = 0; /* the last chunk that is possible */
  for (int64_t c = 0; c < pl_chunks(V); c++) {
    const double here = r->chunks[c].zt;
    if (here > 1e-30) { /* less is as good as nothing */
      last = c;
      if (left < here) {
        break;
      }
      left -= here;
    }
  }
  const int64_t from = last * CHUNK;
  const int64_t n = V - from < CHUNK ? V - from : CHUNK;
  float e[CHUNK] = {0};
  exps(n, logits + from, t->most, inv_t, e);
  const int64_t at = walk(n, e, left);
  return (int32_t)(at < 0 ? -1 : from + at);
}

int32_t pl_sample_token(int64_t V, const float *logits, pl_chunk *chunks, const pl_sampling *s,
                        double u, void *scratch, double *logprob) {
  const float inv_t = pl_sample_inverse(s);
  const totals t = add_up(V, inv_t, chunks);
  room r = cut_up(V, chunks, scratch);
  if (!isfinite(t.z) || !isfinite(t.most) || !(t.z > 0.5)) {
    return -1;
  }
  int32_t id = 0;
  if (s->temperature == 0) {
    while (chunks[id / CHUNK].most != t.most) {
      id += CHUNK;
    }
    while (logits[id] != t.most) {
      id++;
    }
  } else if ((s->top_k > 0 && s->top_k < V) || s->top_p < 1 || s->min_p > 0) {
    cut_all(V, logits, s, &t, inv_t, &r);
    const int64_t at = walk(r.n, r.e, u * sum_of(r.n, r.e));
    id = at < 0 ? -1 : r.id[at];
  } else {
    id = draw_any(V, logits, &t, inv_t, u, &r);
  }
  *logprob = id < 0 ? 0 : (double)logits[id] - t.most - log(t.z);
  return id;
}

double pl_sample_logsumexp(int64_t V, pl_chunk *chunks) {
  const totals t = add_up(V, 1, chunks);
  return t.most + log(t.z);
}

void pl_sample_top(int64_t V, const float *logits, double z, int64_t k, pl_candidate *out) {
  int64_t n = 0;
  for (int64_t v = 0; v < V; v++) { /* out is a sorted list; most tokens miss its end */
    if (n == k && !(logits[v] > out[k - 1].logit)) {
      continue;
    }
    int64_t at = n < k ? n++ : k - 1;
    for (; at > 0 && logits[v] > out[at - 1].logit; at--) {
      out[at] = out[at - 1];
    }
    out[at] = (pl_candidate){logits[v], (int32_t)v};
  }
  for (int64_t i = 0; i < n; i++) {
    out[i].logit = (float)(out[i].logit - z);
  }
}
