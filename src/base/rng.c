/* Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy
 * as 1, 2, 3" (SC 2011). Key = seed, counter = (index, stream). No state. */
#include "base/rng.h"

#include <math.h>

#define MUL0 0xD2511F53u
#define MUL1 0xCD9E8D57u
#define WEYL0 0x9E3779B9u
#define WEYL1 0xBB67AE85u

void pl_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
  uint32_t k0 = (uint32_t)seed;
  uint32_t k1 = (uint32_t)(seed >> 32);
  uint32_t x0 = (uint32_t)index;
  uint32_t x1 = (uint32_t)(index >> 32);
  uint32_t x2 = (uint32_t)stream;
  uint32_t x3 = (uint32_t)(stream >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)MUL0 * x0;
    uint64_t p1 = (uint64_t)MUL1 * x2;
    x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
    x1 = (uint32_t)p1;
    x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
    x3 = (uint32_t)p0;
    k0 += WEYL0;
    k1 += WEYL1;
  }
  out[0] = x0;
  out[1] = x1;
  out[2] = x2;
  out[3] = x3;
}

static uint64_t join(uint32_t lo, uint32_t hi) {
  return (uint64_t)hi << 32 | lo;
}

double pl_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t w[4];
  pl_philox(seed, stream, index, w);
  return (double)(join(w[0], w[1]) >> 11) * 0x1p-53;
}

double pl_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t w[4];
  pl_philox(seed, stream, index, w);
  double u = (double)((join(w[0], w[1]) >> 11) + 1) * 0x1p-53; /* (0,1]: log is finite */
  double v = (double)(join(w[2], w[3]) >> 11) * 0x1p-53;
  return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

void pl_permutation(uint64_t seed, uint64_t stream, int64_t n, int64_t *out) {
  for (int64_t i = 0; i < n; i++) {
    out[i] = i;
  }
  for (int64_t i = n - 1; i > 0; i--) {
    uint32_t w[4];
    pl_philox(seed, stream, (uint64_t)i, w);
    /* the remainder's bias is below n / 2^64 */
    int64_t j = (int64_t)(join(w[0], w[1]) % (uint64_t)(i + 1));
    int64_t t = out[i];
    out[i] = out[j];
    out[j] = t;
  }
}
