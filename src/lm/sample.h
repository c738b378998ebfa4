/* Picking the next token from one row of logits.
 *
 * Order of the cuts, as in transformers: temperature, top_k, top_p on what
 * top_k left, min_p. The kept set is always a head of the tokens sorted by
 * (logit, then lower id). The logits are read once, when they are made; then only the tokens
 * above a bound are looked at, and of these only the few where the cut falls are sorted. */
#ifndef PL_LM_SAMPLE_H
#define PL_LM_SAMPLE_H
#include <stdint.h>

typedef struct pl_sampling {
  double temperature; /* 0 = the likeliest token (lowest id among equals) */
  int64_t top_k;      /* 0 = all */
  double top_p;       /* 1 = all; else the smallest set of at least this mass */
  double min_p;       /* 0 = all; else tokens of at least min_p times the likeliest's probability */
} pl_sampling;

typedef struct pl_candidate {
  float logit;
  int32_t id;
} pl_candidate;

/* What is kept of each PL_CHUNK logits of a row (the last ones: fewer), made while they are
 * near, in pl_sample_measure; a row has all that sampling wants to know of every logit. */
#define PL_CHUNK 256
typedef struct pl_chunk {
  float most;
  float z;  /* sum of exp(logit - most) */
  float zt; /* sum of exp((logit - most) / temperature) */
} pl_chunk;

static inline int64_t pl_chunks(int64_t V) { return (V + PL_CHUNK - 1) / PL_CHUNK; }
/* n logits from a chunk's first on; inv_t: 1 / temperature. */
void pl_sample_measure(int64_t n, const float *logits, float inv_t, pl_chunk *chunks);
/* 1 / temperature as it is measured for such a sampling. */
float pl_sample_inverse(const pl_sampling *s);

/* Bytes of scratch (64-byte aligned) that one call needs for a vocabulary of V. */
int64_t pl_sample_scratch(int64_t V);

/* u uniform in [0,1); chunks: of the whole row, with this sampling's temperature; changed.
 * Returns the id, or -1 if the logits are not finite.
 * *logprob: of that id at temperature 1 with nothing cut off. */
int32_t pl_sample_token(int64_t V, const float *logits, pl_chunk *chunks, const pl_sampling *s,
                        double u, void *scratch, double *logprob);
/* NaN or infinite if a logit is. Changes chunks. */
double pl_sample_logsumexp(int64_t V, pl_chunk *chunks);

/* The k likeliest tokens (k <= V; the lower id first among equals) into out[k], `logit`
 * replaced by the log-probability. z: pl_sample_logsumexp. */
void pl_sample_top(int64_t V, const float *logits, double z, int64_t k, pl_candidate *out);

#endif
