/* Causal attention over packed sequences, without T x T matrices in memory:
 * blocks of queries meet blocks of keys that are not in their future, with the
 * running maximum and sum of Milakov & Gimelshein 2018 (as in Dao et al. 2022).
 * The gradient computes the weights again from the kept log-sum-exp.
 *
 * A block of work is one head of a few whole sequences (forward), or one group
 * of heads that share keys (gradient): fixed by the shapes alone. */
#include <math.h>

#include "kernels/impl.h"
#include "kernels/vmath.h"

enum {
  QB = 32,  /* queries in a block */
  KB = 128, /* keys in a block: QB * KB scores live on the stack */
  TOKENS = 64 /* a block of work takes sequences until it has about this many */
};

typedef struct att_job {
  int64_t S, H, K, D, per; /* per: sequences in a block of work */
  const int32_t *seq;
  const real *q, *k, *v;
  real *y, *lse;
  const real *y_in, *lse_in, *gy;
  real *gq, *gk, *gv;
  real scale;
} att_job;

/* Row i may see keys [0, i + 1 - k0) of this block; the rest becomes 0.
 * Scores turn into exp(score - top); returns their sum. */
PL_INLINE real soften(int64_t seen, int64_t kb, real top, real *s) {
  real lane[16] = {0};
  int64_t c = 0;
  for (; c + 16 <= seen; c += 16) {
    for (int l = 0; l < 16; l++) {
      real e = k_exp(s[c + l] - top);
      s[c + l] = e;
      lane[l] += e;
    }
  }
  for (int w = 8; w > 0; w /= 2) {
    for (int l = 0; l < w; l++) {
      lane[l] += lane[l + w];
    }
  }
  for (; c < seen; c++) {
    s[c] = k_exp(s[c] - top);
    lane[0] += s[c];
  }
  for (; c < kb; c++) {
    s[c] = 0;
  }
  return lane[0];
}

PL_INLINE real row_max(int64_t n, const real *s) {
  real lane[8];
  for (int l = 0; l < 8; l++) {
    lane[l] = s[0];
  }
  int64_t c = 0;
  for (; c + 8 <= n; c += 8) {
    for (int l = 0; l < 8; l++) {
      lane[l] = s[c + l] > lane[l] ? s[c + l] : lane[l];
    }
  }
  real top = lane[0];
  for (int l = 1; l < 8; l++) {
    top = lane[l] > top ? lane[l] : top;
  }
  for (; c < n; c++) {
    top = s[c] > top ? s[c] : top;
  }
  return top;
}

/* Queries q0..q0+qb of one sequence whose first row is n0. */
PL_INLINE void forward_queries(const att_job *j, int64_t n0, int64_t h, int64_t q0, int64_t qb) {
  const int64_t D = j->D;
  const int64_t ldq = j->H * D;
  const int64_t ldk = j->K * D;
  const int64_t kh = h / (j->H / j->K);
  const real *q = j->q + (n0 + q0) * ldq + h * D;
  const real *k = j->k + n0 * ldk + kh * D;
  const real *v = j->v + n0 * ldk + kh * D;
  real *y = j->y + (n0 + q0) * ldq + h * D;
  real s[QB * KB];
  real top[QB];
  real sum[QB];
  for (int64_t k0 = 0; k0 < q0 + qb; k0 += KB) {
    int64_t kb = imin(KB, q0 + qb - k0);
    K(gemm_small)(false, true, qb, kb, D, j->scale, q, ldq, k + k0 * ldk, ldk, 0, s, kb);
    for (int64_t i = 0; i < qb; i++) {
      int64_t seen = imin(kb, q0 + i + 1 - k0);
      real *row = s + i * kb;
      if (seen <= 0) { /* the whole block lies in this query's future */
        soften(0, kb, 0, row);
        continue;
      }
      real m = row_max(seen, row);
      if (k0 == 0) {
        top[i] = m;
        sum[i] = soften(seen, kb, m, row);
        continue;
      }
      real new_top = m > top[i] ? m : top[i];
      real shrink = k_exp(top[i] - new_top);
      sum[i] = sum[i] * shrink + soften(seen, kb, new_top, row);
      top[i] = new_top;
      for (int64_t d = 0; d < D; d++) {
        y[i * ldq + d] *= shrink;
      }
    }
    K(gemm_small)(false, false, qb, D, kb, 1, s, kb, v + k0 * ldk, ldk, k0 ? 1 : 0, y, ldq);
  }
  for (int64_t i = 0; i < qb; i++) {
    real f = 1 / sum[i];
    for (int64_t d = 0; d < D; d++) {
      y[i * ldq + d] *= f;
    }
    j->lse[(n0 + q0 + i) * j->H + h] = top[i] + (real)log((double)sum[i]);
  }
}

PL_VARIANTS(void, forward_block, (void *arg, int64_t block), (arg, block)) {
  const att_job *j = arg;
  int64_t h = block % j->H;
  int64_t s0 = block / j->H * j->per;
  int64_t s1 = imin(j->S, s0 + j->per);
  for (int64_t s = s0; s < s1; s++) {
    int64_t n0 = j->seq[s];
    int64_t L = j->seq[s + 1] - n0;
    int64_t blocks = ceil_div(L, QB);
    for (int64_t b = 0; b < blocks; b++) {
      int64_t q0 = b * L / blocks;
      forward_queries(j, n0, h, q0, (b + 1) * L / blocks - q0);
    }
  }
}

/* Sequences to a block of work. */
static int64_t group(int64_t S_, const int32_t *seq) {
  int64_t n = S_ > 0 ? seq[S_] - seq[0] : 0;
  return imax(1, imin(S_, TOKENS * S_ / imax(1, n)));
}

void K(attention)(int64_t S_, const int32_t *seq, int64_t H, int64_t Kh, int64_t D, const real *q,
                  const real *k, const real *v, real *y, real *lse) {
  att_job j = {.S = S_, .H = H, .K = Kh, .D = D, .per = group(S_, seq), .seq = seq, .q = q, .k = k,
               .v = v, .y = y, .lse = lse, .scale = (real)(1 / sqrt((double)D))};
  pl_parallel(ceil_div(S_, j.per) * H, forward_block, &j);
}

/* With P the weights and A = sum_d gy y (one number a query):
 *   gv = P^T gy,  dS = P (gy v^T - A) scale,  gq = dS k,  gk = dS^T q. */
PL_INLINE void backward_queries(const att_job *j, int64_t n0, int64_t h, int64_t q0, int64_t qb) {
  const int64_t D = j->D;
  const int64_t ldq = j->H * D;
  const int64_t ldk = j->K * D;
  const int64_t kh = h / (j->H / j->K);
  const int64_t at_q = (n0 + q0) * ldq + h * D;
  const real *q = j->q + at_q;
  const real *gy = j->gy + at_q;
  real p[QB * KB];
  real ds[QB * KB];
  real a[QB];
  for (int64_t i = 0; i < qb; i++) {
    a[i] = vdot(D, gy + i * ldq, j->y_in + at_q + i * ldq);
  }
  for (int64_t k0 = 0; k0 < q0 + qb; k0 += KB) {
    int64_t kb = imin(KB, q0 + qb - k0);
    const int64_t at_k = (n0 + k0) * ldk + kh * D;
    K(gemm_small)(false, true, qb, kb, D, j->scale, q, ldq, j->k + at_k, ldk, 0, p, kb);
    K(gemm_small)(false, true, qb, kb, D, j->scale, gy, ldq, j->v + at_k, ldk, 0, ds, kb);
    for (int64_t i = 0; i < qb; i++) {
      int64_t seen = imax(0, imin(kb, q0 + i + 1 - k0));
      real *restrict pi = p + i * kb;
      real *restrict di = ds + i * kb;
      real lse = j->lse_in[(n0 + q0 + i) * j->H + h];
      real ai = a[i] * j->scale;
      int64_t c = 0;
      for (; c < seen; c++) {
        real w = k_exp(pi[c] - lse);
        pi[c] = w;
        di[c] = w * (di[c] - ai);
      }
      for (; c < kb; c++) {
        pi[c] = 0;
        di[c] = 0;
      }
    }
    K(gemm_small)(true, false, kb, D, qb, 1, p, kb, gy, ldq, 1, j->gv + at_k, ldk);
    K(gemm_small)(true, false, kb, D, qb, 1, ds, kb, q, ldq, 1, j->gk + at_k, ldk);
    K(gemm_small)(false, false, qb, D, kb, 1, ds, kb, j->k + at_k, ldk, k0 ? 1 : 0, j->gq + at_q,
                  ldq);
  }
}

PL_VARIANTS(void, backward_block, (void *arg, int64_t block), (arg, block)) {
  const att_job *j = arg;
  int64_t kh = block % j->K;
  int64_t s0 = block / j->K * j->per;
  int64_t s1 = imin(j->S, s0 + j->per);
  int64_t heads = j->H / j->K;
  for (int64_t s = s0; s < s1; s++) {
    int64_t n0 = j->seq[s];
    int64_t L = j->seq[s + 1] - n0;
    int64_t blocks = ceil_div(L, QB);
    for (int64_t n = n0; n < n0 + L; n++) {
      memset(j->gk + (n * j->K + kh) * j->D, 0, (size_t)j->D * sizeof(real));
      memset(j->gv + (n * j->K + kh) * j->D, 0, (size_t)j->D * sizeof(real));
    }
    for (int64_t h = kh * heads; h < (kh + 1) * heads; h++) {
      for (int64_t b = 0; b < blocks; b++) {
        int64_t q0 = b * L / blocks;
        backward_queries(j, n0, h, q0, (b + 1) * L / blocks - q0);
      }
    }
  }
}

void K(attention_back)(int64_t S_, const int32_t *seq, int64_t H, int64_t Kh, int64_t D,
                       const real *q, const real *k, const real *v, const real *y, const real *lse,
                       const real *gy, real *gq, real *gk, real *gv) {
  att_job j = {.S = S_, .H = H, .K = Kh, .D = D, .per = group(S_, seq), .seq = seq, .q = q, .k = k,
               .v = v, .y_in = y, .lse_in = lse, .gy = gy, .gq = gq, .gk = gk, .gv = gv,
               .scale = (real)(1 / sqrt((double)D))};
  pl_parallel(ceil_div(S_, j.per) * Kh, backward_block, &j);
}
