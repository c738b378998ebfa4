/* Slow twins: see ref.h. Clarity only; no vectors, no blocks, no threads. */
#include "kernels/ref.h"

#include <math.h>
#include <string.h>

void pl_ref_gemm(bool ta, bool tb, int64_t M, int64_t N, int64_t K, double alpha, const double *A,
                 int64_t lda, const double *B, int64_t ldb, double beta, double *C, int64_t ldc) {
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N; n++) {
      double s = 0;
      for (int64_t k = 0; k < K; k++) {
        s += (ta ? A[k * lda + m] : A[m * lda + k]) * (tb ? B[n * ldb + k] : B[k * ldb + n]);
      }
      C[m * ldc + n] = alpha * s + (beta != 0 ? beta * C[m * ldc + n] : 0);
    }
  }
}

static double rstd(int64_t C, const double *x, double eps) {
  double s = 0;
  for (int64_t c = 0; c < C; c++) {
    s += x[c] * x[c];
  }
  return 1 / sqrt(s / (double)C + eps);
}

void pl_ref_rms_norm(int64_t N, int64_t C, const double *x, const double *w, double eps,
                     double *y) {
  for (int64_t n = 0; n < N; n++) {
    double r = rstd(C, x + n * C, eps);
    for (int64_t c = 0; c < C; c++) {
      y[n * C + c] = x[n * C + c] * r * w[c];
    }
  }
}

void pl_ref_rms_norm_back(int64_t N, int64_t C, const double *x, const double *w, double eps,
                          const double *gy, double *gx, double *gw) {
  memset(gw, 0, (size_t)C * sizeof *gw);
  for (int64_t n = 0; n < N; n++) {
    double r = rstd(C, x + n * C, eps);
    double dot = 0; /* of x with the gradient of x * r */
    for (int64_t c = 0; c < C; c++) {
      dot += x[n * C + c] * gy[n * C + c] * w[c];
    }
    for (int64_t c = 0; c < C; c++) {
      gx[n * C + c] = r * gy[n * C + c] * w[c] - x[n * C + c] * r * r * r * dot / (double)C;
      gw[c] += gy[n * C + c] * x[n * C + c] * r;
    }
  }
}

void pl_ref_rope(int64_t N, int64_t H, int64_t D, const double *x, const int32_t *pos, double theta,
                 bool inverse, double *y) {
  for (int64_t n = 0; n < N; n++) {
    for (int64_t h = 0; h < H; h++) {
      for (int64_t j = 0; j < D / 2; j++) {
        double angle = pos[n] * pow(theta, -2.0 * (double)j / (double)D);
        double s = inverse ? -sin(angle) : sin(angle);
        const double *a = x + (n * H + h) * D;
        double a0 = a[j];
        double a1 = a[j + D / 2];
        y[(n * H + h) * D + j] = a0 * cos(angle) - a1 * s;
        y[(n * H + h) * D + j + D / 2] = a1 * cos(angle) + a0 * s;
      }
    }
  }
}

/* The first key that query i sees. */
static int64_t first_key(int64_t i, int64_t window) {
  return window > 0 && i >= window ? i - window + 1 : 0;
}

/* The weight that query i gives to key k, both numbered from the start of one
 * sequence that begins at row n0; keys before `from` are not seen. */
static double weight(int64_t n0, int64_t from, int64_t i, int64_t k_row, int64_t h, int64_t H,
                     int64_t K, int64_t D, const double *q, const double *k) {
  double top = -INFINITY;
  double own = 0;
  double sum = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (int64_t t = from; t <= i; t++) {
      double s = 0;
      for (int64_t d = 0; d < D; d++) {
        s += q[((n0 + i) * H + h) * D + d] * k[((n0 + t) * K + h / (H / K)) * D + d];
      }
      s /= sqrt((double)D);
      if (pass == 0) {
        top = s > top ? s : top;
      } else {
        sum += exp(s - top);
        own = t == k_row ? exp(s - top) : own;
      }
    }
  }
  return own / sum;
}

void pl_ref_attention(int64_t S, const int32_t *seq, int64_t window, int64_t H, int64_t K,
                      int64_t D, const double *q, const double *k, const double *v, double *y) {
  for (int64_t s = 0; s < S; s++) {
    int64_t n0 = seq[s];
    for (int64_t i = 0; i < seq[s + 1] - n0; i++) {
      for (int64_t h = 0; h < H; h++) {
        double *to = y + ((n0 + i) * H + h) * D;
        memset(to, 0, (size_t)D * sizeof *to);
        for (int64_t t = first_key(i, window); t <= i; t++) {
          double p = weight(n0, first_key(i, window), i, t, h, H, K, D, q, k);
          for (int64_t d = 0; d < D; d++) {
            to[d] += p * v[((n0 + t) * K + h / (H / K)) * D + d];
          }
        }
      }
    }
  }
}

static double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

void pl_ref_silu_mul(int64_t n, const double *a, const double *b, double *y) {
  for (int64_t i = 0; i < n; i++) {
    y[i] = a[i] * sigmoid(a[i]) * b[i];
  }
}

void pl_ref_silu_mul_back(int64_t n, const double *a, const double *b, const double *gy, double *ga,
                          double *gb) {
  for (int64_t i = 0; i < n; i++) {
    double s = sigmoid(a[i]);
    ga[i] = gy[i] * b[i] * (s + a[i] * s * (1 - s));
    gb[i] = gy[i] * a[i] * s;
  }
}

void pl_ref_embedding(int64_t N, int64_t C, const double *w, const int32_t *ids, double *y) {
  for (int64_t n = 0; n < N; n++) {
    for (int64_t c = 0; c < C; c++) {
      y[n * C + c] = w[ids[n] * C + c];
    }
  }
}

static double logit(int64_t C, const double *h, const double *w) {
  double s = 0;
  for (int64_t c = 0; c < C; c++) {
    s += h[c] * w[c];
  }
  return s;
}

static double log_sum_exp(int64_t C, int64_t V, const double *h, const double *w) {
  double top = -INFINITY;
  for (int64_t v = 0; v < V; v++) {
    top = fmax(top, logit(C, h, w + v * C));
  }
  double s = 0;
  for (int64_t v = 0; v < V; v++) {
    s += exp(logit(C, h, w + v * C) - top);
  }
  return top + log(s);
}

void pl_ref_token_logprob(int64_t M, int64_t C, int64_t V, const double *h, const int32_t *rows,
                          const double *w, const int32_t *ids, double *out) {
  for (int64_t m = 0; m < M; m++) {
    const double *x = h + (rows ? rows[m] : m) * C;
    out[m] = logit(C, x, w + ids[m] * C) - log_sum_exp(C, V, x, w);
  }
}

void pl_ref_token_logprob_back(int64_t M, int64_t C, int64_t V, int64_t H, const double *h,
                               const int32_t *rows, const double *w, const int32_t *ids,
                               const double *gout, double *gh, double *gw) {
  memset(gh, 0, (size_t)(H * C) * sizeof *gh);
  memset(gw, 0, (size_t)(V * C) * sizeof *gw);
  for (int64_t m = 0; m < M; m++) {
    int64_t row = rows ? rows[m] : m;
    const double *x = h + row * C;
    double lse = log_sum_exp(C, V, x, w);
    for (int64_t v = 0; v < V; v++) {
      double g = gout[m] * ((v == ids[m] ? 1 : 0) - exp(logit(C, x, w + v * C) - lse));
      for (int64_t c = 0; c < C; c++) {
        gh[row * C + c] += g * w[v * C + c];
        gw[v * C + c] += g * x[c];
      }
    }
  }
}
