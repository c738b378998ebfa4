/* Products of bf16 numbers with sums in f32, and the conversions. */
#include "kernels/half.h"

#include "base/par.h"

enum { GRAIN = 65536 };

static float at(const pl_mat *m, int64_t r, int64_t c) {
  const int64_t i = r * m->ld + c;
  return m->half ? pl_bf16_float(((const pl_bf16 *)m->data)[i])
                 : pl_bf16_float(pl_bf16_of(((const float *)m->data)[i]));
}

typedef struct job {
  bool ta, tb;
  int64_t N, K;
  float alpha, beta;
  pl_mat A, B, C;
} job;

static void row(void *arg, int64_t m) {
  const job *j = arg;
  for (int64_t n = 0; n < j->N; n++) {
    float s = 0;
    for (int64_t k = 0; k < j->K; k++) {
      s += (j->ta ? at(&j->A, k, m) : at(&j->A, m, k)) * (j->tb ? at(&j->B, n, k) : at(&j->B, k, n));
    }
    const int64_t i = m * j->C.ld + n;
    if (j->C.half) {
      ((pl_bf16 *)j->C.data)[i] = pl_bf16_of(j->alpha * s);
    } else {
      float *c = (float *)j->C.data + i;
      *c = j->beta != 0 ? j->alpha * s + j->beta * *c : j->alpha * s;
    }
  }
}

void pl_gemm_bf16(bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha, pl_mat A,
                  pl_mat B, float beta, pl_mat C) {
  job j = {ta, tb, N, K, alpha, beta, A, B, C};
  pl_parallel(M, row, &j);
}

void pl_gemm_small_bf16(bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha, pl_mat A,
                        pl_mat B, float beta, pl_mat C) {
  job j = {ta, tb, N, K, alpha, beta, A, B, C};
  for (int64_t m = 0; m < M; m++) {
    row(&j, m);
  }
}

typedef struct convert {
  int64_t n;
  const float *wide_in;
  const pl_bf16 *half_in;
  float *wide;
  pl_bf16 *half;
} convert;

static void convert_block(void *arg, int64_t b) {
  const convert *j = arg;
  const int64_t end = (b + 1) * GRAIN < j->n ? (b + 1) * GRAIN : j->n;
  for (int64_t i = b * GRAIN; i < end; i++) {
    if (j->half != NULL) {
      j->half[i] = pl_bf16_of(j->wide_in[i]);
    } else {
      j->wide[i] = pl_bf16_float(j->half_in[i]);
    }
  }
}

void pl_to_bf16(int64_t n, const float *x, pl_bf16 *y) {
  convert j = {.n = n, .wide_in = x, .half = y};
  pl_parallel((n + GRAIN - 1) / GRAIN, convert_block, &j);
}

void pl_from_bf16(int64_t n, const pl_bf16 *x, float *y) {
  convert j = {.n = n, .half_in = x, .wide = y};
  pl_parallel((n + GRAIN - 1) / GRAIN, convert_block, &j);
}
