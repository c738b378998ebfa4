/* The matrix product: fixed tiles of C, each computed by one thread, so that
 * the result does not depend on how many threads there are. Must not allocate.
 *
 * Kernels for three instruction sets come from gemm_isa.h; which one runs is
 * the processor's choice and never the shape's. */
#include "kernels/impl.h"

enum {
  KC = 256, /* depth of a packed panel: KC * 2 vectors = 16 or 32 KiB */
  MC = 256  /* rows of A that stream past one panel: MC * KC floats stay in L2 */
};

#define ISA any
#define TARGET
#define VBYTES 16
#define MR 4
#include "kernels/gemm_isa.h"

#ifdef __x86_64__
#define ISA v3
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define VBYTES 32
#define MR 6
#include "kernels/gemm_isa.h"

#define ISA v4
#define TARGET __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define VBYTES 64
#define MR 14
#include "kernels/gemm_isa.h"
#endif

void K(gemm_small)(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, real alpha, const real *A,
                   int64_t lda, const real *B, int64_t ldb, real beta, real *C, int64_t ldc) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    product_v4(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    product_v3(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
#endif
  product_any(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
}

typedef struct job {
  bool ta, tb;
  int64_t M, N, K, lda, ldb, ldc;
  real alpha, beta;
  const real *A, *B;
  real *C;
  int64_t cols;   /* tiles across */
  int64_t mb, nb; /* rows and columns of a tile */
} job;

static void run_tile(void *arg, int64_t t) {
  const job *j = arg;
  int64_t m0 = t / j->cols * j->mb;
  int64_t n0 = t % j->cols * j->nb;
  int64_t m = imin(j->mb, j->M - m0);
  int64_t n = imin(j->nb, j->N - n0);
  K(gemm_small)(j->ta, j->tb, m, n, j->K, j->alpha, j->ta ? j->A + m0 : j->A + m0 * j->lda, j->lda,
                j->tb ? j->B + n0 * j->ldb : j->B + n0, j->ldb, j->beta, j->C + m0 * j->ldc + n0,
                j->ldc);
}

/* x cut into equal parts of at most `most`, each a multiple of `unit`. */
static int64_t part(int64_t x, int64_t most, int64_t unit) {
  int64_t parts = ceil_div(x, most);
  return ceil_div(ceil_div(x, parts), unit) * unit;
}

void K(gemm)(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, real alpha, const real *A,
             int64_t lda, const real *B, int64_t ldb, real beta, real *C, int64_t ldc) {
  double work = (double)M * (double)N * (double)Kn;
  if (work < 64 * 64 * 16) {
    K(gemm_small)(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
  /* Start from the tile that packs least and halve its longer side until there
   * is enough to share out, but never below what is worth handing over. */
  int64_t mb = part(M, MC, 12);
  int64_t nb = part(N, 512, 32);
  while (ceil_div(M, mb) * ceil_div(N, nb) < 16 && (double)mb * (double)nb * (double)Kn > 1e6) {
    if (mb >= nb || nb <= 32) {
      mb = part(M, ceil_div(mb, 2), 12);
    } else {
      nb = part(N, ceil_div(nb, 2), 32);
    }
    if (mb <= 12 && nb <= 32) {
      break;
    }
  }
  job j = {ta, tb, M, N, Kn, lda, ldb, ldc, alpha, beta, A, B, C, ceil_div(N, nb), mb, nb};
  pl_parallel(ceil_div(M, mb) * j.cols, run_tile, &j);
}
