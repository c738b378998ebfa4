/* The matrix product: fixed tiles of C, each computed by one thread, so that
 * the result does not depend on how many threads there are. Must not allocate.
 *
 * Kernels for three instruction sets come from gemm_isa.h; which one runs is
 * the processor's choice and never the shape's. */
#include "kernels/corner.h"
#include "kernels/impl.h"

enum { AHEAD = 16 }; /* rows of B that are asked for before they are copied */

/* A tile that sticks out over the right edge of C, from a copy: rare, and out
 * of line because inlining it into every tile made the compiler work for minutes. */
static __attribute__((noinline)) void edge(
    int mr, int nc, const real *t, int64_t ldt, real beta, real *c, int64_t ldc) {
  for (int i = 0; i < mr; i++) {
    for (int j = 0; j < nc; j++) {
      real *p = c + i * ldc + j;
      *p = beta != 0 ? t[i * ldt + j] + beta * *p : t[i * ldt + j];
    }
  }
}

#define ISA baseline
#define TARGET
#define VBYTES 16
#define VL PER_16
#define MR 4
#define KC ((int64_t)(1280 / sizeof(real)))
#define NB 256
#include "kernels/gemm_isa.h"

#ifdef __x86_64__
#define ISA avx2
#define TARGET PL_TARGET_AVX2
#define VBYTES 32
#define VL PER_32
#define MR 6
#define KC ((int64_t)(1280 / sizeof(real)))
#define NB 256
#include "kernels/gemm_isa.h"

#define ISA avx512
#define TARGET PL_TARGET_AVX512
#define VBYTES 64
#define VL PER_64
#define MR 14
#define KC ((int64_t)(1536 / sizeof(real)))
#define NB 512
#include "kernels/gemm_isa.h"
#endif

void K(gemm_small)(bool ta, bool tb, int64_t M, int64_t N, int64_t Kn, real alpha, const real *A,
                   int64_t lda, const real *B, int64_t ldb, real beta, real *C, int64_t ldc) {
#ifdef __x86_64__
  pl_isa isa = pl_isa_used();
  if (isa >= PL_ISA_AVX512) {
    product_avx512(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
  if (isa == PL_ISA_AVX2) {
    product_avx2(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
#endif
  product_baseline(ta, tb, M, N, Kn, alpha, A, lda, B, ldb, beta, C, ldc);
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
  /* Start from the tile that copies least and halve its longer side: to four tiles
   * wherever one is worth handing over, further only while tiles stay large, for
   * every halving means one operand is read and copied once more. */
  int64_t mb = part(M, 1024, 6);
  int64_t nb = part(N, 512, 32);
  for (;;) {
    int64_t tiles = ceil_div(M, mb) * ceil_div(N, nb);
    double each = (double)mb * (double)nb * (double)Kn;
    int64_t longer = imax(mb, nb);
    bool more = tiles < 4 ? each > 1e6 && longer > 32 : tiles < 16 && each > 3e7 && longer >= 1024;
    if (!more) {
      break;
    }
    if (mb >= nb) {
      mb = part(M, ceil_div(mb, 2), 6);
    } else {
      nb = part(N, ceil_div(nb, 2), 32);
    }
  }
  job j = {ta, tb, M, N, Kn, lda, ldb, ldc, alpha, beta, A, B, C, ceil_div(N, nb), mb, nb};
  pl_parallel(ceil_div(M, mb) * j.cols, run_tile, &j);
}
