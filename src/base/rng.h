/* Counter-based random numbers (Philox4x32-10, Salmon et al. 2011): a number
 * is a pure function of (seed, stream, index), so there is no hidden state to
 * lose and any thread can make any element. */
#ifndef PL_BASE_RNG_H
#define PL_BASE_RNG_H
#include <stdint.h>

/* Four 32-bit words for (seed, stream, index). */
void pl_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);
double pl_uniform(uint64_t seed, uint64_t stream, uint64_t index); /* [0,1), 53 bits */
/* Standard normal (Box-Muller on words of one counter). */
double pl_normal(uint64_t seed, uint64_t stream, uint64_t index);
/* out[n] <- a permutation of 0..n-1 (Fisher-Yates), same for the same arguments. */
void pl_permutation(uint64_t seed, uint64_t stream, int64_t n, int64_t *out);

#endif
