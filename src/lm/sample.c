/* Sampling: see sample.h. */
#include "lm/sample.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "kernels/kernels.h"

enum { CHUNK = 256, BUCKETS = 256, LANES = 16 };
#define BUCKETS_PER_NAT 8 /* buckets reach 32 nats below the best; the last takes the rest */

typedef struct room { /* the scratch, cut up */
  float *e;           /* [V] exp((logit - max) / T), 0 once cut off */
  double *mass;       /* [BUCKETS] */
  int64_t *count;     /* [BUCKETS] */
  pl_candidate *cand; /* [V] */
  uint8_t *bucket;    /* [V] */
} room;

static int64_t round64(int64_t n) { return (n + 63) / 64 * 64; }

int64_t pl_sample_scratch(int64_t V) {
  return round64(V * 4) + BUCKETS * 16 + round64(V * (int64_t)sizeof(pl_candidate)) + round64(V);
}

static room cut_up(int64_t V, void *scratch) {
  char *p = scratch;
  room r;
  r.e = (float *)p;
  p += round64(V * 4);
  r.mass = (double *)p;
  p += BUCKETS * 8;
  r.count = (int64_t *)p;
  p += BUCKETS * 8;
  r.cand = (pl_candidate *)p;
  p += round64(V * (int64_t)sizeof(pl_candidate));
  r.bucket = (uint8_t *)p;
  return r;
}

static float max_of(int64_t n, const float *x) {
  float lane[LANES];
  for (int l = 0; l < LANES; l++) {
    lane[l] = x[0];
  }
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int l = 0; l < LANES; l++) {
      lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    }
  }
  for (; i < n; i++) {
    lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  }
  for (int l = 1; l < LANES; l++) {
    lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
  }
  return lane[0];
}

static double sum_of(int64_t n, const float *x) {
  float lane[LANES] = {0};
  const int64_t whole = n - n % LANES;
  for (int64_t i = 0; i < whole; i += LANES) {
    for (int l = 0; l < LANES; l++) {
      lane[l] += x[i + l];
    }
  }
  double s = 0;
  for (int64_t i = whole; i < n; i++) {
    s += x[i];
  }
  for (int l = 0; l < LANES; l++) {
    s += lane[l];
  }
  return s;
}

/* e = exp((logits - m) * inv_t) where e is not NULL; returns the sum. */
static double exps(int64_t V, const float *logits, float m, float inv_t, float *e) {
  double sum = 0;
  float own[CHUNK];
  for (int64_t i = 0; i < V; i += CHUNK) {
    const int64_t n = V - i < CHUNK ? V - i : CHUNK;
    float *t = e == NULL ? own : e + i;
    for (int64_t j = 0; j < n; j++) {
      t[j] = (logits[i + j] - m) * inv_t;
    }
    pl_exp_f32(n, t, t);
    sum += sum_of(n, t);
  }
  return sum;
}

static int by_rank(const void *a, const void *b) {
  const pl_candidate *x = a;
  const pl_candidate *y = b;
  if (x->logit != y->logit) {
    return x->logit > y->logit ? -1 : 1;
  }
  return x->id < y->id ? -1 : x->id > y->id;
}

static void histogram(int64_t V, const float *logits, float m, float inv_t, room *r) {
  for (int b = 0; b < BUCKETS; b++) {
    r->mass[b] = 0;
    r->count[b] = 0;
  }
  for (int64_t v = 0; v < V; v++) {
    if (r->e[v] == 0) {
      r->bucket[v] = BUCKETS - 1;
      continue;
    }
    const float d = (m - logits[v]) * (inv_t * BUCKETS_PER_NAT);
    const int b = d < BUCKETS - 1 ? (int)d : BUCKETS - 1;
    r->bucket[v] = (uint8_t)b;
    r->mass[b] += r->e[v];
    r->count[b]++;
  }
}

/* Keeps the head of the order up to and with the token at which the count
 * reaches max_count or the mass reaches max_mass; zeroes e of the others. */
static void cut(int64_t V, const float *logits, int64_t max_count, double max_mass, room *r) {
  int64_t count = 0;
  double mass = 0;
  int at = 0;
  while (at < BUCKETS - 1 && count + r->count[at] < max_count && mass + r->mass[at] < max_mass) {
    count += r->count[at];
    mass += r->mass[at];
    at++;
  }
  int64_t n = 0;
  for (int64_t v = 0; v < V; v++) {
    if (r->bucket[v] > at) {
      r->e[v] = 0;
    } else if (r->bucket[v] == at && r->e[v] > 0) {
      r->cand[n++] = (pl_candidate){logits[v], (int32_t)v};
    }
  }
  qsort(r->cand, (size_t)n, sizeof *r->cand, by_rank);
  bool done = false;
  for (int64_t i = 0; i < n; i++) {
    float *e = &r->e[r->cand[i].id];
    if (done) {
      *e = 0;
      continue;
    }
    count++;
    mass += *e;
    done = count >= max_count || mass >= max_mass;
  }
}

static void cut_all(int64_t V, const float *logits, float m, const pl_sampling *s, float inv_t,
                    room *r) {
  if (s->top_k > 0 && s->top_k < V) {
    histogram(V, logits, m, inv_t, r);
    cut(V, logits, s->top_k, INFINITY, r);
  }
  if (s->top_p < 1) {
    histogram(V, logits, m, inv_t, r);
    cut(V, logits, INT64_MAX, s->top_p * sum_of(V, r->e), r);
  }
  if (s->min_p > 0) { /* the likeliest has e = 1 */
    const float least = (float)s->min_p;
    for (int64_t v = 0; v < V; v++) {
      r->e[v] = r->e[v] < least ? 0 : r->e[v];
    }
  }
}

static int32_t draw(int64_t V, const float *e, double u) {
  double total = 0;
  for (int64_t i = 0; i < V; i += CHUNK) {
    total += sum_of(V - i < CHUNK ? V - i : CHUNK, e + i);
  }
  double left = u * total;
  int64_t i = 0;
  for (; i + CHUNK < V; i += CHUNK) {
    const double here = sum_of(CHUNK, e + i);
    if (left < here) {
      break;
    }
    left -= here;
  }
  int64_t last = -1; /* rounding may walk off the end: the last possible token then */
  for (; i < V; i++) {
    if (e[i] > 0) {
      last = i;
      left -= e[i];
      if (left < 0) {
        break;
      }
    }
  }
  while (last < 0) { /* the tail held nothing that was kept: the last kept token before it */
    i--;
    last = e[i] > 0 ? i : -1;
  }
  return (int32_t)last;
}

int32_t pl_sample_token(int64_t V, const float *logits, const pl_sampling *s, double u,
                        void *scratch, double *logprob) {
  room r = cut_up(V, scratch);
  const float m = max_of(V, logits);
  const bool greedy = s->temperature == 0;
  const float inv_t = greedy ? 1 : (float)(1 / s->temperature);
  double z = exps(V, logits, m, 1, greedy || inv_t != 1 ? NULL : r.e);
  if (!isfinite(z) || !isfinite(m) || !(z > 0.5)) {
    return -1;
  }
  int32_t id = 0;
  if (greedy) {
    while (logits[id] != m) {
      id++;
    }
  } else {
    if (inv_t != 1) {
      (void)exps(V, logits, m, inv_t, r.e);
    }
    cut_all(V, logits, m, s, inv_t, &r);
    id = draw(V, r.e, u);
  }
  *logprob = (double)logits[id] - m - log(z);
  return id;
}

double pl_sample_logsumexp(int64_t V, const float *logits) {
  const float m = max_of(V, logits);
  return m + log(exps(V, logits, m, 1, NULL));
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
