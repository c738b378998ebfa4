/* The hot loops: pointers and sizes only. No structs of ours, no allocation,
 * no I/O, no failure. Each has a slow obvious twin in ref.c and exists for
 * float and double: the .c files are compiled twice, PL_REAL and K(name) give
 * name_f32 and name_f64 (Makefile, "kernels"). Gradients ADD into their
 * outputs unless a comment says "sets". Work is cut into blocks that depend on
 * the sizes alone, so results do not depend on the number of threads.
 *
 * Who needs scratch memory is told how much by a *_scratch function (in elements). */
#ifndef PL_KERNELS_KERNELS_H
#define PL_KERNELS_KERNELS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/half.h"

#define PL_DECLARE_KERNELS(T, S)                                                                   \
  /* C[M,N] (ldc) = alpha * op(A) op(B) + beta * C, row-major; op = transpose where the flag says. \
   * Fixed tiles of C, one thread a tile. */                                                       \
  void pl_gemm_##S(bool ta, bool tb, int64_t M, int64_t N, int64_t K, T alpha, const T *A,         \
                   int64_t lda, const T *B, int64_t ldb, T beta, T *C, int64_t ldc);               \
  /* the same, serial: products inside a block of the caller */                                    \
  void pl_gemm_small_##S(bool ta, bool tb, int64_t M, int64_t N, int64_t K, T alpha, const T *A,   \
                         int64_t lda, const T *B, int64_t ldb, T beta, T *C, int64_t ldc);         \
  /* y[n,:] = w[ids[n],:]; the gradient adds gy[n,:] into gw[ids[n],:] in row order */             \
  void pl_embedding_##S(int64_t N, int64_t C, const T *w, const int32_t *ids, T *y);               \
  void pl_embedding_back_##S(int64_t N, int64_t C, int64_t V, const int32_t *ids,                  \
                             const T *gy, T *gw);                                                  \
  /* one-pass optimizer updates with PyTorch's semantics; g is scaled by gscale (clipping) first.  \
   * AdamW (Loshchilov & Hutter 2019), step t counts from 1 */                                     \
  void pl_adamw_##S(int64_t n, T *w, const T *g, T *m, T *v, double gscale, double lr, double b1,  \
                    double b2, double eps, double wd, int64_t t);                                  \
  void pl_rmsprop_##S(int64_t n, T *w, const T *g, T *sq, T *gavg, T *mom, double gscale,          \
                      double lr, double alpha, double eps, double wd, double momentum);            \
  void pl_sgd_##S(int64_t n, T *w, const T *g, T *mom, double gscale, double lr, double momentum,  \
                  double dampening, double wd, bool nesterov, bool first);                         \
  /* fixed-tree reductions in double */                                                            \
  double pl_sum_##S(int64_t n, const T *x);                                                        \
  double pl_sumsq_##S(int64_t n, const T *x);                                                      \
  /* vectorised y = f(x), within 2 ulp of libm */                                                  \
  void pl_exp_##S(int64_t n, const T *x, T *y);                                                    \
  void pl_tanh_##S(int64_t n, const T *x, T *y);                                                   \
  void pl_log_##S(int64_t n, const T *x, T *y);

PL_DECLARE_KERNELS(float, f32)
PL_DECLARE_KERNELS(double, f64)

/* Sequences that lie one after the other: s has the rows seq[s]..seq[s+1]. parent NULL, or for
 * each sequence -1 or the number of the nearest one before it that has none: all of the parent's
 * rows come before its own (a prompt shared by several answers). window: 0, or how many
 * rows up to its own a row sees. */
typedef struct pl_sequences {
  int64_t S;
  const int32_t *seq, *parent;
  int64_t window;
} pl_sequences;

/* Kernels with activations of type A, for reals of type T: also in bf16. */
#define PL_DECLARE_ACT_KERNELS(T, A, S)                                                            \
  /* Causal attention in each sequence: q [N,H*D] and k, v [N,K*D] with rows ldq, ldk, ldv apart,  \
   * y [N,H*D]. lse [N,H] = log sum exp of the scaled scores, for the gradient. Sets y, lse. */    \
  void pl_attention_##S(const pl_sequences *seqs, int64_t H, int64_t K, int64_t D, const A *q,     \
                        int64_t ldq, const A *k, int64_t ldk, const A *v, int64_t ldv, A *y,       \
                        T *lse, T *scratch);                                                       \
  /* sets gq, gk, gv */                                                                            \
  void pl_attention_back_##S(const pl_sequences *seqs, int64_t H, int64_t K, int64_t D,            \
                             const A *q, int64_t ldq, const A *k, int64_t ldk, const A *v,         \
                             int64_t ldv, const A *y, const T *lse, const A *gy, A *gq,            \
                             int64_t ldgq, A *gk, int64_t ldgk, A *gv, int64_t ldgv, T *scratch);  \
  int64_t pl_attention_scratch_##S(const pl_sequences *seqs, int64_t D, bool back);                \
  /* y[n,c] = x[n,c] * rstd[n] * w[c]; rstd[n] = 1/sqrt(mean(x^2) + eps)                           \
   * (Zhang & Sennrich 2019) */                                                                    \
  void pl_rms_norm_##S(int64_t N, int64_t C, const T *x, const T *w, T eps, A *y, T *rstd);        \
  /* y[n,c] = (x[n,c] - mean[n]) * rstd[n] * w[c] + b[c] (Ba et al. 2016); b may be NULL */        \
  void pl_layer_norm_##S(int64_t N, int64_t C, const T *x, const T *w, const T *b, T eps, A *y,    \
                         T *mean, T *rstd);                                                        \
  /* set gx, or add to it where add; add to gw, gb; each may be NULL */                            \
  void pl_rms_norm_back_##S(int64_t N, int64_t C, const T *x, const T *w, const T *rstd,           \
                            const T *gy, bool add, T *gx, T *gw, T *scratch);                      \
  void pl_layer_norm_back_##S(int64_t N, int64_t C, const T *x, const T *w, const T *mean,         \
                              const T *rstd, const T *gy, bool add, T *gx, T *gw, T *gb,           \
                              T *scratch);                                                         \
  int64_t pl_norm_back_scratch_##S(int64_t N, int64_t C); /* of both, where gw or gb is wanted */  \
  /* rotary embedding, rotate-half form (Su et al. 2021): y[n,h,:] from x, position pos[n];        \
   * inverse = the transposed rotation (the gradient). Rows lie ld apart, heads side by side.      \
   * x == y allowed. Sets y. */                                                                    \
  void pl_rope_##S(int64_t N, int64_t H, int64_t D, int64_t ld, const A *x, const int32_t *pos,    \
                   T theta, bool inverse, A *y);                                                   \
  /* y = silu(a) * b, [n] */                                                                       \
  void pl_silu_mul_##S(int64_t n, const A *a, const A *b, A *y);                                   \
  /* sets ga, gb, and y once more */                                                               \
  void pl_silu_mul_back_##S(int64_t n, const A *a, const A *b, const A *gy, A *ga, A *gb, A *y);   \
  /* y = a/2 (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))), [n]; the gradient sets ga, y once more */  \
  void pl_gelu_##S(int64_t n, const A *a, A *y);                                                   \
  void pl_gelu_back_##S(int64_t n, const A *a, const A *gy, A *ga, A *y);                          \
  /* y[n,:] += b, y [N,C] with rows ld apart */                                                    \
  void pl_bias_##S(int64_t N, int64_t C, int64_t ld, const T *b, A *y);                            \
  /* sets gb[c] = sum_n g[n,c], rows in order */                                                   \
  void pl_bias_back_##S(int64_t N, int64_t C, int64_t ld, const A *g, T *gb);                      \
  /* y = x + b to each row; b may be NULL */                                                       \
  void pl_residual_##S(int64_t N, int64_t C, const T *x, const T *b, T *y);                        \
  /* out[m] = log softmax(h[rows[m],:] w^T)[ids[m]]; h [N,C], w [V,C]; rows NULL = 0..M-1. stats   \
   * (log sum exp and maxima) is for the gradient, and so is kept [M*V]: softmax's numerators,     \
   * or NULL, then the gradient computes the logits again. Logits exist for a block at a time. */  \
  void pl_token_logprob_##S(int64_t M, int64_t C, int64_t V, const T *h, const int32_t *rows,      \
                            const T *w, const int32_t *ids, T *out, T *stats, A *kept,             \
                            T *scratch);                                                           \
  /* adds to gh, sets gw; each may be NULL. Uses kept up. */                                       \
  void pl_token_logprob_back_##S(int64_t M, int64_t C, int64_t V, const T *h, const int32_t *rows, \
                                 const T *w, const int32_t *ids, const T *out, const T *stats,     \
                                 const T *gout, T *gh, T *gw, A *kept, T *scratch);                \
  int64_t pl_token_logprob_stats_##S(int64_t M, int64_t V);                                        \
  /* blocks of logits: 1 for the value, for the gradient 2, or 0 where kept is not NULL */         \
  int64_t pl_token_logprob_scratch_##S(int64_t M, int64_t C, int64_t V, int blocks);

PL_DECLARE_ACT_KERNELS(float, float, f32)
PL_DECLARE_ACT_KERNELS(double, double, f64)
PL_DECLARE_ACT_KERNELS(float, pl_bf16, bf16)

/* Runs `rounds` rounds of multiply-adds on every thread and returns how many
 * floating-point operations that were: time it to know the machine's peak. */
double pl_fma_probe(int64_t rounds);
/* The same for products of bf16; 0 where the kernels in use have no instruction for them. */
double pl_bf16_probe(int64_t rounds);
/* The same for products of bytes, summed in 32 bits. */
double pl_int8_probe(int64_t rounds);
/* Reads the bytes (64-byte aligned memory) once, all threads together. */
void pl_read_probe(int64_t bytes, const void *memory);

#endif
