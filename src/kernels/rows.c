/* Row-wise kernels of the decoder: RMSNorm, rotary embedding, SiLU gate,
 * embedding. Each row is computed by one thread in one order. */
#include <math.h>

#include "kernels/impl.h"
#include "kernels/vmath.h"

enum {
  GRAIN = 16384, /* elements in a block: about 10 microseconds of work */
  NORM_BLOCKS = 64, /* at most this many partial sums of gw */
  FREQS = 128    /* rotary frequencies handled at a time */
};

static int64_t rows_per_block(int64_t C) {
  return imax(1, GRAIN / imax(1, C));
}

typedef struct norm_job {
  int64_t N, C, rows;
  const real *x, *w, *gy;
  const real *rstd_in;
  real eps;
  real *y, *rstd, *gx, *gw_part;
} norm_job;

PL_VARIANTS(void, norm_block, (void *arg, int64_t b), (arg, b)) {
  const norm_job *j = arg;
  int64_t C = j->C;
  int64_t end = imin(j->N, (b + 1) * j->rows);
  for (int64_t n = b * j->rows; n < end; n++) {
    const real *x = j->x + n * C;
    real *y = j->y + n * C;
    const real *w = j->w;
    real r = 1 / PL_SQRT(vdot(C, x, x) / (real)C + j->eps);
    j->rstd[n] = r;
    for (int64_t c = 0; c < C; c++) {
      y[c] = x[c] * r * w[c];
    }
  }
}

void K(rms_norm)(int64_t N, int64_t C, const real *x, const real *w, real eps, real *y,
                 real *rstd) {
  norm_job j = {.N = N, .C = C, .rows = rows_per_block(C), .x = x, .w = w, .eps = eps, .y = y,
                .rstd = rstd};
  pl_parallel(ceil_div(N, j.rows), norm_block, &j);
}

/* With u = w * gy:  gx = r * u - x * r^3 / C * sum(u * x),  gw = sum_n gy * x * r. */
PL_VARIANTS(void, norm_back_block, (void *arg, int64_t b), (arg, b)) {
  const norm_job *j = arg;
  int64_t C = j->C;
  const real *w = j->w;
  real *part = j->gw_part ? j->gw_part + b * C : NULL;
  if (part) {
    memset(part, 0, (size_t)C * sizeof(real));
  }
  int64_t end = imin(j->N, (b + 1) * j->rows);
  for (int64_t n = b * j->rows; n < end; n++) {
    const real *x = j->x + n * C;
    const real *gy = j->gy + n * C;
    real r = j->rstd_in[n];
    if (j->gx) {
      real *gx = j->gx + n * C;
      vec s0 = {0};
      vec s1 = {0};
      int64_t c = 0;
      for (; c + 2 * PL_LANES <= C; c += 2 * PL_LANES) {
        s0 += vload(x + c) * vload(gy + c) * vload(w + c);
        s1 += vload(x + c + PL_LANES) * vload(gy + c + PL_LANES) * vload(w + c + PL_LANES);
      }
      real s = vsum(s0 + s1);
      for (; c < C; c++) {
        s += x[c] * gy[c] * w[c];
      }
      real f = s * r * r * r / (real)C;
      for (c = 0; c < C; c++) {
        gx[c] = r * w[c] * gy[c] - f * x[c];
      }
    }
    if (part) {
      for (int64_t c = 0; c < C; c++) {
        part[c] += gy[c] * x[c] * r;
      }
    }
  }
}

static int64_t norm_back_rows(int64_t N, int64_t C) {
  return imax(rows_per_block(C), ceil_div(N, NORM_BLOCKS));
}

int64_t K(rms_norm_back_scratch)(int64_t N, int64_t C) {
  return ceil_div(N, norm_back_rows(N, C)) * C;
}

void K(rms_norm_back)(int64_t N, int64_t C, const real *x, const real *w, const real *rstd,
                      const real *gy, real *gx, real *gw, real *scratch) {
  norm_job j = {.N = N, .C = C, .rows = norm_back_rows(N, C), .x = x, .w = w, .gy = gy,
                .rstd_in = rstd, .gx = gx, .gw_part = gw ? scratch : NULL};
  int64_t blocks = ceil_div(N, j.rows);
  pl_parallel(blocks, norm_back_block, &j);
  for (int64_t b = 0; gw && b < blocks; b++) {
    const real *part = scratch + b * C;
    for (int64_t c = 0; c < C; c++) {
      gw[c] += part[c];
    }
  }
}

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
  int64_t N, H, D, rows;
  const real *x;
  const int32_t *pos;
  double theta;
  bool inverse;
  real *y;
} rope_job;

/* One head: the pair (j, j + D/2) turned by the angle j. x may be y. */
PL_INLINE void turn(int64_t n, int64_t half, const real *x, const real *co, const real *si,
                    real *y) {
  int64_t i = 0;
  for (; i + PL_LANES <= n; i += PL_LANES) {
    vec a = vload(x + i);
    vec b = vload(x + half + i);
    vec c = vload(co + i);
    vec s = vload(si + i);
    vstore(y + i, a * c - b * s);
    vstore(y + half + i, b * c + a * s);
  }
  for (; i < n; i++) {
    real a = x[i];
    real b = x[half + i];
    y[i] = a * co[i] - b * si[i];
    y[half + i] = b * co[i] + a * si[i];
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
        int64_t at = (n * j->H + h) * j->D + f0;
        turn(nf, half, j->x + at, co, si, j->y + at);
      }
    }
  }
}

void K(rope)(int64_t N, int64_t H, int64_t D, const real *x, const int32_t *pos, real theta,
             bool inverse, real *y) {
  rope_job j = {N, H, D, imax(8, GRAIN / imax(1, H * D)), x, pos, (double)theta, inverse, y};
  pl_parallel(ceil_div(N, j.rows), rope_block, &j);
}

typedef struct gate_job {
  int64_t n;
  const real *a, *b, *gy;
  real *y, *ga, *gb;
} gate_job;

PL_VARIANTS(void, silu_block, (void *arg, int64_t block), (arg, block)) {
  const gate_job *j = arg;
  int64_t i0 = block * GRAIN;
  int64_t n = imin(GRAIN, j->n - i0);
  const real *restrict a = j->a + i0;
  const real *restrict b = j->b + i0;
  real *restrict y = j->y + i0;
  for (int64_t i = 0; i < n; i++) {
    y[i] = a[i] * k_sigmoid(a[i]) * b[i];
  }
}

void K(silu_mul)(int64_t n, const real *a, const real *b, real *y) {
  gate_job j = {.n = n, .a = a, .b = b, .y = y};
  pl_parallel(ceil_div(n, GRAIN), silu_block, &j);
}

/* d silu(a) = s (1 + a (1 - s)) with s = sigmoid(a) */
PL_VARIANTS(void, silu_back_block, (void *arg, int64_t block), (arg, block)) {
  const gate_job *j = arg;
  int64_t i0 = block * GRAIN;
  int64_t n = imin(GRAIN, j->n - i0);
  const real *restrict a = j->a + i0;
  const real *restrict b = j->b + i0;
  const real *restrict gy = j->gy + i0;
  real *restrict ga = j->ga + i0;
  real *restrict gb = j->gb + i0;
  for (int64_t i = 0; i < n; i++) {
    real s = k_sigmoid(a[i]);
    real t = gy[i] * s;
    ga[i] = t * b[i] * (1 + a[i] * (1 - s));
    gb[i] = t * a[i];
  }
}

void K(silu_mul_back)(int64_t n, const real *a, const real *b, const real *gy, real *ga,
                      real *gb) {
  gate_job j = {.n = n, .a = a, .b = b, .gy = gy, .ga = ga, .gb = gb};
  pl_parallel(ceil_div(n, GRAIN), silu_back_block, &j);
}

typedef struct embed_job {
  int64_t N, C, rows;
  const real *w, *gy;
  const int32_t *ids;
  real *y, *gw;
} embed_job;

static void embed_block(void *arg, int64_t block) {
  const embed_job *j = arg;
  int64_t end = imin(j->N, (block + 1) * j->rows);
  for (int64_t n = block * j->rows; n < end; n++) {
    memcpy(j->y + n * j->C, j->w + (int64_t)j->ids[n] * j->C, (size_t)j->C * sizeof(real));
  }
}

void K(embedding)(int64_t N, int64_t C, const real *w, const int32_t *ids, real *y) {
  embed_job j = {.N = N, .C = C, .rows = rows_per_block(C), .w = w, .ids = ids, .y = y};
  pl_parallel(ceil_div(N, j.rows), embed_block, &j);
}

/* A block owns a range of columns and walks all rows in order. */
PL_VARIANTS(void, embed_back_block, (void *arg, int64_t block), (arg, block)) {
  const embed_job *j = arg;
  int64_t c0 = block * j->rows;
  int64_t c1 = imin(j->C, c0 + j->rows);
  for (int64_t n = 0; n < j->N; n++) {
    real *restrict to = j->gw + (int64_t)j->ids[n] * j->C;
    const real *restrict from = j->gy + n * j->C;
    for (int64_t c = c0; c < c1; c++) {
      to[c] += from[c];
    }
  }
}

void K(embedding_back)(int64_t N, int64_t C, int64_t V, const int32_t *ids, const real *gy,
                       real *gw) {
  (void)V;
  embed_job j = {.N = N, .C = C, .rows = 64, .ids = ids, .gy = gy, .gw = gw};
  pl_parallel(ceil_div(C, j.rows), embed_back_block, &j);
}
