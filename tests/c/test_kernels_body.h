/* The checks of test_kernels.c for one type: T, N(name) adds the suffix, TOL
 * is the error allowed relative to the largest value expected. */

static T *N(narrow)(int64_t n, const double *x) {
  T *y = memory((size_t)n * sizeof *y);
  for (int64_t i = 0; i < n; i++) {
    y[i] = (T)x[i];
  }
  return y;
}

/* A type's rounding of the inputs must not count: the twin reads them back. */
static void N(reread)(int64_t n, const T *x, double *back) {
  for (int64_t i = 0; i < n; i++) {
    back[i] = (double)x[i];
  }
}

static T *N(input)(int64_t n, int what, double **wide) {
  *wide = doubles(n, what);
  T *x = N(narrow)(n, *wide);
  N(reread)(n, x, *wide);
  return x;
}

static bool N(close)(const char *what, int64_t n, const T *got, const double *want) {
  double scale = 1e-2; /* where the true value is 0, rounding is measured against this */
  double worst = 0;
  for (int64_t i = 0; i < n; i++) {
    scale = fmax(scale, fabs(want[i]));
  }
  for (int64_t i = 0; i < n; i++) {
    double e = fabs((double)got[i] - want[i]) / scale;
    worst = e > worst || isnan(e) ? e : worst;
  }
  if (!(worst <= TOL)) {
    FAIL("%s: relative error %.2e, allowed %.1e", what, worst, (double)TOL);
    return false;
  }
  return true;
}

/* One product of both entries against the twin, rows with gaps behind them. */
static void N(check_gemm)(int flags, int64_t m, int64_t n, int64_t k) {
  bool ta = flags & 1;
  bool tb = flags & 2;
  int64_t lda = (ta ? m : k) + 3;
  int64_t ldb = (tb ? k : n) + 1;
  int64_t ldc = n + 2;
  double alpha = flags & 4 ? 0.5 : 1;
  double beta = flags & 4 ? -2 : 0;
  double *A;
  double *B;
  double *C;
  T *a = N(input)((ta ? k : m) * lda + 1, 1, &A);
  T *b = N(input)((tb ? n : k) * ldb + 1, 2, &B);
  T *c = N(input)(m * ldc, 3, &C);
  T *c2 = memory((size_t)(m * ldc) * sizeof *c2);
  memcpy(c2, c, (size_t)(m * ldc) * sizeof *c);
  if (beta == 0) {
    c[0] = (T)NAN; /* beta = 0 must not read C */
    c2[0] = (T)NAN;
  }
  pl_ref_gemm(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
  N(pl_gemm)(ta, tb, m, n, k, (T)alpha, a, lda, b, ldb, (T)beta, c, ldc);
  N(pl_gemm_small)(ta, tb, m, n, k, (T)alpha, a, lda, b, ldb, (T)beta, c2, ldc);
  char what[96];
  snprintf(what, sizeof what, "gemm %d%d %lld %lld %lld", ta, tb, (long long)m, (long long)n,
           (long long)k);
  N(close)(what, m * ldc, c, C); /* the gaps between rows included */
  N(close)(what, m * ldc, c2, C);
  release(A), release(B), release(C), release(a), release(b), release(c), release(c2);
}

TEST_OF(N(gemm_matches_twin)) {
  static const int64_t shapes[][3] = {{1, 1, 1},    {1, 17, 5},   {2, 3, 300},  {5, 16, 7},
                                      {6, 33, 64},  {7, 8, 9},    {13, 31, 12}, {20, 20, 32},
                                      {64, 48, 32}, {65, 129, 257}, {100, 70, 600}, {301, 90, 40},
                                      {3, 5, 0},    {130, 366, 128}, {1, 520, 96}, {8, 300, 288}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    for (int flags = 0; flags < 8; flags++) {
      N(check_gemm)(flags, shapes[s][0], shapes[s][1], shapes[s][2]);
    }
  }
}

/* sizes around the tiles of all variants, and deeper than one panel */
TEST_OF(N(gemm_of_random_shapes_matches_twin)) {
  for (int s = 0; s < 60; s++) {
    int64_t size[3];
    static const int most[3] = {90, 150, 700};
    for (int d = 0; d < 3; d++) {
      double u = pl_uniform(11, (uint64_t)s, (uint64_t)d);
      size[d] = 1 + (int64_t)(u * u * most[d]);
    }
    N(check_gemm)(s % 8, size[0], size[1], size[2]);
  }
}

TEST_OF(N(rms_norm_matches_twin)) {
  static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {5, 64}, {33, 100}, {300, 288}, {0, 5}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    int64_t n = shapes[s][0];
    int64_t c = shapes[s][1];
    double *X;
    double *W;
    double *GY;
    T *x = N(input)(n * c, 1, &X);
    T *w = N(input)(c, 2, &W);
    T *gy = N(input)(n * c, 3, &GY);
    T *y = memory((size_t)(n * c) * sizeof *y);
    T *rstd = memory((size_t)n * sizeof *rstd);
    T *gx = memory((size_t)(n * c) * sizeof *gx);
    T *gw = memory((size_t)c * sizeof *gw);
    T *scratch = memory((size_t)N(pl_norm_back_scratch)(n, c) * sizeof *scratch);
    double *Y = doubles(n * c, 4);
    double *GX = doubles(n * c, 5);
    double *GW = doubles(c, 6);
    memset(gx, 0, (size_t)(n * c) * sizeof *gx);
    memset(gw, 0, (size_t)c * sizeof *gw);
    pl_ref_rms_norm(n, c, X, W, 1e-5, Y);
    pl_ref_rms_norm_back(n, c, X, W, 1e-5, GY, GX, GW);
    N(pl_rms_norm)(n, c, x, w, (T)1e-5, y, rstd);
    N(pl_rms_norm_back)(n, c, x, w, rstd, gy, false, gx, gw, scratch);
    N(close)("rms_norm", n * c, y, Y);
    N(close)("rms_norm gx", n * c, gx, GX);
    N(close)("rms_norm gw", c, gw, GW);
    release(X), release(W), release(GY), release(x), release(w), release(gy), release(y);
    release(rstd), release(gx), release(gw), release(scratch), release(Y), release(GX), release(GW);
  }
}

TEST_OF(N(rope_matches_twin)) {
  static const int64_t shapes[][3] = {{1, 1, 2}, {9, 3, 6}, {40, 4, 32}, {5, 2, 48}, {3, 1, 400}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    int64_t n = shapes[s][0];
    int64_t h = shapes[s][1];
    int64_t d = shapes[s][2];
    double *X;
    T *x = N(input)(n * h * d, 1, &X);
    double *Y = doubles(n * h * d, 2);
    int32_t *pos = memory((size_t)n * sizeof *pos);
    for (int64_t i = 0; i < n; i++) {
      pos[i] = (int32_t)(i * i * 13 % 2048);
    }
    for (int inverse = 0; inverse < 2; inverse++) {
      pl_ref_rope(n, h, d, X, pos, 10000, inverse, Y);
      T *y = memory((size_t)(n * h * d) * sizeof *y);
      memcpy(y, x, (size_t)(n * h * d) * sizeof *y);
      N(pl_rope)(n, h, d, h * d, y, pos, 10000, inverse, y); /* in place */
      N(close)("rope", n * h * d, y, Y);
      release(y);
    }
    release(X), release(x), release(Y), release(pos);
  }
}

TEST_OF(N(attention_survives_large_scores)) {
  enum { L = 200, D = 4 };
  int32_t seq[2] = {0, L};
  T *q = memory(L * D * sizeof *q);
  T *y = memory(L * D * sizeof *y);
  T *lse = memory(L * sizeof *lse);
  for (int i = 0; i < L * D; i++) {
    q[i] = (T)(100 * value(1, i) + i);
  }
  const pl_sequences one = {.S = 1, .seq = seq};
  T *scratch = memory((size_t)N(pl_attention_scratch)(&one, D, false) * sizeof *scratch);
  N(pl_attention)(&one, 1, 1, D, q, D, q, D, q, D, y, lse, scratch);
  release(scratch);
  for (int i = 0; i < L * D; i++) {
    CHECK(isfinite((double)y[i]));
  }
  release(q), release(y), release(lse);
}

TEST_OF(N(silu_mul_matches_twin)) {
  enum { COUNT = 40001 };
  double *A;
  double *B;
  double *G;
  T *a = N(input)(COUNT, 1, &A);
  T *b = N(input)(COUNT, 2, &B);
  T *g = N(input)(COUNT, 3, &G);
  for (int i = 0; i < COUNT; i++) {
    a[i] *= 12;
  }
  a[0] = (T)-1000;
  a[1] = (T)1000;
  N(reread)(COUNT, a, A);
  T *y[3];
  double *Y[3];
  for (int o = 0; o < 3; o++) {
    y[o] = memory(COUNT * sizeof(T));
    Y[o] = memory(COUNT * sizeof(double));
  }
  pl_ref_silu_mul(COUNT, A, B, Y[0]);
  pl_ref_silu_mul_back(COUNT, A, B, G, Y[1], Y[2]);
  N(pl_silu_mul)(COUNT, a, b, y[0]);
  N(pl_silu_mul_back)(COUNT, a, b, g, y[1], y[2], y[0]);
  for (int o = 0; o < 3; o++) {
    N(close)("silu_mul", COUNT, y[o], Y[o]);
    release(y[o]), release(Y[o]);
  }
  release(A), release(B), release(G), release(a), release(b), release(g);
}

TEST_OF(N(embedding_matches_twin)) {
  enum { R = 50, C = 130, V = 9 };
  double *W;
  double *G;
  T *w = N(input)(V * C, 1, &W);
  T *g = N(input)(R * C, 2, &G);
  int32_t ids[R];
  double gw[V * C] = {0};
  for (int i = 0; i < R; i++) {
    ids[i] = i * 7 % (V - 1); /* the last id is never used */
    for (int c = 0; c < C; c++) {
      gw[ids[i] * C + c] += G[i * C + c];
    }
  }
  double *Y = doubles(R * C, 3);
  T *y = memory(R * C * sizeof *y);
  T *back = memory(V * C * sizeof *back);
  memset(back, 0, V * C * sizeof *back);
  pl_ref_embedding(R, C, W, ids, Y);
  N(pl_embedding)(R, C, w, ids, y);
  N(pl_embedding_back)(R, C, V, ids, g, back);
  N(close)("embedding", R * C, y, Y);
  N(close)("embedding gw", V * C, back, gw);
  release(W), release(G), release(w), release(g), release(Y), release(y), release(back);
}

TEST_OF(N(token_logprob_matches_twin)) {
  /* rows asked, C, V, rows of h, picked? */
  static const int64_t shapes[][5] = {{1, 3, 1, 1, 0}, {5, 8, 11, 9, 1}, {40, 16, 366, 40, 0},
                                      {33, 12, 1000, 50, 1}, {1100, 4, 20, 1100, 1},
                                      {5000, 3, 1031, 5000, 0}, {0, 4, 5, 2, 1}};
  for (size_t s = 0; s < 2 * sizeof shapes / sizeof *shapes; s++) {
    const int64_t *shape = shapes[s / 2];
    int64_t m = shape[0];
    int64_t c = shape[1];
    int64_t v = shape[2];
    int64_t n = shape[3];
    double *H;
    double *W;
    double *G;
    T *h = N(input)(n * c, 1, &H);
    T *w = N(input)(v * c, 2, &W);
    T *g = N(input)(m, 3, &G);
    int32_t *ids = memory((size_t)m * sizeof *ids);
    int32_t *rows = memory((size_t)m * sizeof *rows);
    for (int64_t i = 0; i < m; i++) {
      ids[i] = (int32_t)(i * 5 % v);
      rows[i] = (int32_t)(i * 3 % n);
    }
    const int32_t *picked = shape[4] ? rows : NULL;
    T *out = memory((size_t)m * sizeof *out);
    T *stats = memory((size_t)N(pl_token_logprob_stats)(m, v) * sizeof *stats);
    T *gh = memory((size_t)(n * c) * sizeof *gh);
    T *gw = memory((size_t)(v * c) * sizeof *gw);
    T *scratch = memory((size_t)N(pl_token_logprob_scratch)(m, c, v, 2) * sizeof *scratch);
    double *OUT = doubles(m, 4);
    double *GH = doubles(n * c, 5);
    double *GW = doubles(v * c, 6);
    memset(gh, 0, (size_t)(n * c) * sizeof *gh);
    pl_ref_token_logprob(m, c, v, H, picked, W, ids, OUT);
    pl_ref_token_logprob_back(m, c, v, n, H, picked, W, ids, G, GH, GW);
    T *kept = s % 2 ? memory((size_t)(m * v) * sizeof *kept) : NULL;
    N(pl_token_logprob)(m, c, v, h, picked, w, ids, out, stats, kept, scratch);
    N(pl_token_logprob_back)(m, c, v, h, picked, w, ids, out, stats, g, gh, gw, kept, scratch);
    release(kept);
    N(close)("token_logprob", m, out, OUT);
    N(close)("token_logprob gh", n * c, gh, GH);
    N(close)("token_logprob gw", v * c, gw, GW);
    release(H), release(W), release(G), release(h), release(w), release(g), release(ids);
    release(rows), release(out), release(stats), release(gh), release(gw), release(scratch);
    release(OUT), release(GH), release(GW);
  }
}

TEST_OF(N(sums_match_plain_loops)) {
  static const int64_t sizes[] = {0, 1, 15, 17, 16384, 100003, 5000000};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    int64_t n = sizes[s];
    double *X;
    T *x = N(input)(n, 1, &X);
    long double sum = 0;
    long double square = 0;
    for (int64_t i = 0; i < n; i++) {
      sum += (long double)X[i];
      square += (long double)X[i] * (long double)X[i];
    }
    CHECK_NEAR(N(pl_sum)(n, x), (double)sum, 1e-9);
    CHECK_NEAR(N(pl_sumsq)(n, x), (double)square, 1e-12 * (double)n + 1e-12);
    release(X), release(x);
  }
}

/* One mixed run; the bytes of all results into out. Returns how many. */
static size_t N(mixed)(char *out, size_t most) {
  enum { R = 150, C = 96, V = 700 };
  double *wide[4];
  T *x = N(input)(R * C, 1, &wide[0]);
  T *w = N(input)(V * C, 2, &wide[1]);
  T *z = N(input)(R * V, 4, &wide[2]);
  T *gw = N(input)(V * C, 5, &wide[3]);
  int32_t ids[R];
  int32_t rows[R];
  size_t at = 0;
  for (int i = 0; i < R; i++) {
    ids[i] = i * 37 % V;
    rows[i] = i * 7 % R;
  }
#define KEEP(p, n)                                     \
  do {                                                 \
    if (at + (size_t)(n) * sizeof(T) <= most) {        \
      memcpy(out + at, p, (size_t)(n) * sizeof(T));    \
      at += (size_t)(n) * sizeof(T);                   \
    }                                                  \
  } while (0)
  N(pl_gemm)(false, true, R, V, C, 1, x, C, w, C, 0, z, V);
  KEEP(z, R * V);
  N(pl_gemm)(true, false, V, C, R, 1, z, V, x, C, 1, gw, C);
  KEEP(gw, V * C);
  T *scratch = memory((size_t)N(pl_token_logprob_scratch)(R, C, V, 2) * sizeof *scratch);
  T *stats = memory((size_t)N(pl_token_logprob_stats)(R, V) * sizeof *stats);
  N(pl_token_logprob)(R, C, V, x, rows, w, ids, z, stats, NULL, scratch);
  release(scratch), release(stats);
  for (int i = 0; i < 4; i++) {
    KEEP(&z[i], 1);
  }
  T norm[2] = {(T)N(pl_sumsq)(V * C, w), (T)N(pl_sum)(V * C, w)};
  KEEP(norm, 2);
#undef KEEP
  for (int i = 0; i < 4; i++) {
    release(wide[i]);
  }
  release(x), release(w), release(z), release(gw);
  return at;
}

TEST_OF(N(same_bits_on_any_number_of_threads)) {
  enum { MOST = 4 << 20 };
  int before = pl_threads();
  char *first = memory(MOST);
  char *other = memory(MOST);
  static const int counts[] = {1, 2, 3, 7};
  size_t n = 0;
  for (int i = 0; i < 4; i++) {
    pl_set_threads(counts[i]);
    size_t got = N(mixed)(i == 0 ? first : other, MOST);
    n = i == 0 ? got : n;
    CHECK(got == n && n > 100000);
    CHECK(i == 0 || memcmp(first, other, n) == 0);
  }
  pl_set_threads(before);
  release(first), release(other);
}
