/* Rotary position embedding (Su et al. 2021), rotate-half form. */
#include <math.h>

#include "kernels/impl.h"

enum {
  GRAIN = 16384, /* elements in a block: about 10 microseconds of work */
  FREQS = 128    /* frequencies handled at a time */
};

/* cos and sin of n angles in radians, |angle| up to about 1e6: reduced by pi/2
 * in double (three-part constant after fdlibm), then Taylor polynomials that
 * are exact to double on [-pi/4, pi/4] up to 1e-13. */
PL_INLINE void cos_sin(int64_t n, double pos, const double *freq, real *co, real *si) {
#if PL_IS_FLOAT
  for (int64_t i = 0; i < n; i++) {
    double a = pos * freq[i];
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    double shifted = a * 0.63661977236758134308 + magic;
    int64_t q;
    memcpy(&q, &shifted, sizeof q);
    double k = shifted - magic;
    double r = a - k * 1.57079632673412561417e+00;
    r = r - k * 6.07710050650619224932e-11;
    double z = r * r;
    double s = 2.7557313707070068e-6 + z * -2.5050760253406863e-8;
    s = -1.9841269829857949e-4 + z * s;
    s = 8.3333333333224895e-3 + z * s;
    s = -1.6666666666666632e-1 + z * s;
    s = r + r * z * s;
    double c = -2.7557314351390663e-7 + z * 2.0875723212981748e-9;
    c = 2.4801587289476729e-5 + z * c;
    c = -1.3888888888874110e-3 + z * c;
    c = 4.1666666666666602e-2 + z * c;
    c = 1.0 - 0.5 * z + z * z * c;
    double cc = (q & 1) ? s : c;
    double ss = (q & 1) ? c : s;
    co[i] = (real)(((q + 1) & 2) ? -cc : cc);
    si[i] = (real)((q & 2) ? -ss : ss);
  }
#else
  for (int64_t i = 0; i < n; i++) {
    co[i] = cos(pos * freq[i]);
    si[i] = sin(pos * freq[i]);
  }
#endif
}

typedef struct rope_job {
  int64_t N, H, D, ld, rows;
  const act *x;
  const int32_t *pos;
  double theta;
  bool inverse;
  act *y;
} rope_job;

#if PL_IS_HALF
typedef pl_bf16 halves __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(32)));

PL_INLINE vec load(const act *p) {
  halves h;
  memcpy(&h, p, sizeof h);
  return (vec)(__builtin_convertvector(h, words) << 16);
}

/* As pl_bf16_of: to nearest, ties to even, a NaN stays one. */
PL_INLINE void store(act *p, vec v) {
  const words u = (words)v;
  const words high = u >> 16;
  const words nan = (words)(v != v);
  const words near = (u + 0x7fffU + (high & 1U)) >> 16;
  const halves h = __builtin_convertvector((nan & (high | 0x40U)) | (~nan & near), halves);
  memcpy(p, &h, sizeof h);
}
#else
#define load vload
#define store vstore
#endif

/* One head: the pair (j, j + D/2) turned by the angle j. x may be y. */
PL_INLINE void turn(int64_t n, int64_t half, const act *x, const real *co, const real *si, act *y) {
  int64_t i = 0;
  for (; i + PL_LANES <= n; i += PL_LANES) {
    vec a = load(x + i);
    vec b = load(x + half + i);
    vec c = vload(co + i);
    vec s = vload(si + i);
    store(y + i, a * c - b * s);
    store(y + half + i, b * c + a * s);
  }
  for (; i < n; i++) {
    real a = act_real(x[i]);
    real b = act_real(x[half + i]);
    y[i] = act_of(a * co[i] - b * si[i]);
    y[half + i] = act_of(b * co[i] + a * si[i]);
  }
}

PL_VARIANTS(void, rope_block, (void *arg, int64_t block), (arg, block)) {
  const rope_job *j = arg;
  int64_t half = j->D / 2;
  int64_t end = imin(j->N, (block + 1) * j->rows);
  for (int64_t f0 = 0; f0 < half; f0 += FREQS) {
    double freq[FREQS];
    real co[FREQS];
    real si[FREQS];
    int64_t nf = imin(FREQS, half - f0);
    for (int64_t i = 0; i < nf; i++) {
      freq[i] = pow(j->theta, -2.0 * (double)(f0 + i) / (double)j->D);
    }
    for (int64_t n = block * j->rows; n < end; n++) {
      cos_sin(nf, (double)j->pos[n], freq, co, si);
      for (int64_t i = 0; j->inverse && i < nf; i++) {
        si[i] = -si[i];
      }
      for (int64_t h = 0; h < j->H; h++) {
        int64_t at = n * j->ld + h * j->D + f0;
        turn(nf, half, j->x + at, co, si, j->y + at);
      }
    }
  }
}

void K(rope)(int64_t N, int64_t H, int64_t D, int64_t ld, const act *x, const int32_t *pos,
             real theta, bool inverse, act *y) {
  rope_job j = {N, H, D, ld, imax(8, GRAIN / imax(1, H * D)), x, pos, (double)theta, inverse, y};
  pl_parallel(ceil_div(N, j.rows), rope_block, &j);
}
