/* The slow obvious twins of the kernels: plain loops in double, one thread,
 * written from the formula. Tests hold the fast kernels against them; nothing
 * else may call them. Shapes as in kernels.h; every function sets its outputs. */
#ifndef PL_KERNELS_REF_H
#define PL_KERNELS_REF_H
#include <stdbool.h>
#include <stdint.h>

void pl_ref_gemm(bool ta, bool tb, int64_t M, int64_t N, int64_t K, double alpha, const double *A,
                 int64_t lda, const double *B, int64_t ldb, double beta, double *C, int64_t ldc);
void pl_ref_rms_norm(int64_t N, int64_t C, const double *x, const double *w, double eps, double *y);
void pl_ref_rms_norm_back(int64_t N, int64_t C, const double *x, const double *w, double eps,
                          const double *gy, double *gx, double *gw);
void pl_ref_rope(int64_t N, int64_t H, int64_t D, const double *x, const int32_t *pos, double theta,
                 bool inverse, double *y);
void pl_ref_attention(int64_t S, const int32_t *seq, int64_t window, int64_t H, int64_t K,
                      int64_t D, const double *q, const double *k, const double *v, double *y);
void pl_ref_silu_mul(int64_t n, const double *a, const double *b, double *y);
void pl_ref_silu_mul_back(int64_t n, const double *a, const double *b, const double *gy, double *ga,
                          double *gb);
void pl_ref_embedding(int64_t N, int64_t C, const double *w, const int32_t *ids, double *y);
void pl_ref_token_logprob(int64_t M, int64_t C, int64_t V, const double *h, const int32_t *rows,
                          const double *w, const int32_t *ids, double *out);
/* H: rows of h, whose gradient is set whole */
void pl_ref_token_logprob_back(int64_t M, int64_t C, int64_t V, int64_t H, const double *h,
                               const int32_t *rows, const double *w, const int32_t *ids,
                               const double *gout, double *gh, double *gw);

#endif
