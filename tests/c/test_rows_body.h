/* The checks of test_rows.c for one build: T reals, A activations, N_(name) adds the suffix.
 * TOL and REAL_TOL: errors allowed of activations and of reals, relative to the value or, near
 * 0, to the size of the inputs. */

/* n inputs, which the twin sees rounded as the kernel does */
static T *N_(reals)(int64_t n, int what, double *wide) {
  T *x = memory((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) {
    x[i] = (T)value(what, i);
    wide[i] = (double)x[i];
  }
  return x;
}

static A *N_(acts)(int64_t n, int what, double *wide) {
  A *x = memory((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) {
    x[i] = OF(value(what, i));
    wide[i] = BACK(x[i]);
  }
  return x;
}

static double *N_(wide)(int64_t n) {
  return memory((size_t)n * sizeof(double));
}

static void N_(near)(const char *what, double got, double want, double tol, double size) {
  if (!(fabs(got - want) <= tol * fmax(fabs(want), size))) {
    FAIL("%s is %.9g, wanted %.9g", what, got, want);
  }
}

static void N_(near_acts)(const char *what, int64_t n, const A *got, const double *want,
                          double size) {
  for (int64_t i = 0; i < n; i++) {
    N_(near)(what, BACK(got[i]), want[i], TOL, size);
  }
}

static void N_(near_reals)(const char *what, int64_t n, const T *got, const double *want,
                           double size) {
  for (int64_t i = 0; i < n; i++) {
    N_(near)(what, (double)got[i], want[i], REAL_TOL, size);
  }
}

static void N_(check_norm)(bool layer, int round, int64_t n, int64_t c) {
  const bool add = round % 2;
  const bool bias = layer && round % 3 != 0;
  double *x = N_(wide)(n * c), *w = N_(wide)(c), *b = N_(wide)(c), *gy = N_(wide)(n * c);
  double *y = N_(wide)(n * c), *gx = N_(wide)(n * c), *gw = N_(wide)(c), *gb = N_(wide)(c);
  T *tx = N_(reals)(n * c, 1, x), *tw = N_(reals)(c, 2, w), *tb = N_(reals)(c, 3, b);
  T *tgy = N_(reals)(n * c, 4, gy), *tgx = N_(reals)(n * c, 5, gx);
  T *tgw = N_(reals)(c, 6, gw), *tgb = N_(reals)(c, 7, gb);
  A *ty = memory((size_t)(n * c) * sizeof *ty);
  T *mean = memory((size_t)n * sizeof *mean), *rstd = memory((size_t)n * sizeof *rstd);
  T *scratch = memory((size_t)N_(pl_norm_back_scratch)(n, c) * sizeof *scratch);
  if (!add) {
    memset(gx, 0, (size_t)(n * c) * sizeof *gx);
  }
  norm_twin(layer, n, c, x, w, bias ? b : NULL, gy, y, gx, gw, gb);
  if (layer) {
    N_(pl_layer_norm)(n, c, tx, tw, bias ? tb : NULL, (T)EPS, ty, mean, rstd);
    N_(pl_layer_norm_back)(n, c, tx, tw, mean, rstd, tgy, add, tgx, tgw, bias ? tgb : NULL,
                           scratch);
  } else {
    N_(pl_rms_norm)(n, c, tx, tw, (T)EPS, ty, rstd);
    N_(pl_rms_norm_back)(n, c, tx, tw, rstd, tgy, add, tgx, tgw, scratch);
  }
  double steep = 1; /* a row of equal numbers is divided by next to nothing */
  for (int64_t i = 0; i < n; i++) {
    const norm_row r = norm_of(layer, c, x + i * c);
    N_(near)("rstd", (double)rstd[i], r.rstd, REAL_TOL * (1 + r.rstd), 1);
    steep = fmax(steep, r.rstd);
  }
  N_(near_acts)("norm", n * c, ty, y, 4 * steep);
  N_(near_reals)("norm gx", n * c, tgx, gx, 16 * steep * steep);
  N_(near_reals)("norm gw", c, tgw, gw, 8 * steep * (double)n);
  if (bias) {
    N_(near_reals)("norm gb", c, tgb, gb, 4 * (double)n);
  }
  void *all[] = {x,  w,   b,   gy,  y,   gx, gw,   gb,   tx,     tw,
                 tb, tgy, tgx, tgw, tgb, ty, mean, rstd, scratch};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    release(all[i]);
  }
}

TEST_OF(N_(norms_match_plain_loops)) {
  for (int round = 0; round < 24; round++) {
    const int64_t n = round == 0 ? 0 : size_of(round, 0, 90);
    const int64_t c = size_of(round, 1, 700);
    N_(check_norm)(false, round, n, c);
    N_(check_norm)(true, round, n, c);
  }
}

TEST_OF(N_(norm_back_leaves_out_what_is_not_wanted)) {
  enum { R = 3, C = 21 };
  double wide[R * C];
  T *x = N_(reals)(R * C, 1, wide), *w = N_(reals)(C, 2, wide), *gy = N_(reals)(R * C, 3, wide);
  T mean[R] = {0}, rstd[R] = {1, 1, 1}, g[2][C] = {{0}};
  T *scratch = memory((size_t)N_(pl_norm_back_scratch)(R, C) * sizeof *scratch);
  T *gx = memory(R * C * sizeof *gx);
  N_(pl_layer_norm_back)(R, C, x, w, mean, rstd, gy, false, NULL, g[0], NULL, scratch);
  N_(pl_rms_norm_back)(R, C, x, w, rstd, gy, false, NULL, g[1], scratch);
  N_(pl_rms_norm_back)(R, C, x, w, rstd, gy, false, gx, NULL, NULL);
  CHECK(memcmp(g[0], g[1], sizeof g[0]) == 0); /* a mean of 0 changes nothing */
  CHECK(gx[0] != 0);
  release(x), release(w), release(gy), release(scratch), release(gx);
}

TEST_OF(N_(rotation_matches_the_twin)) {
  for (int round = 0; round < 16; round++) {
    const int64_t n = round == 0 ? 0 : size_of(round, 0, 60);
    const int64_t h = size_of(round, 1, 4);
    const int64_t d = 2 * size_of(round, 2, 150);
    const int64_t ld = h * d + GAP;
    double *x = N_(wide)(n * ld), *rows = N_(wide)(n * h * d), *y = N_(wide)(n * h * d);
    A *tx = N_(acts)(n * ld, 1, x);
    int32_t *pos = memory((size_t)n * sizeof *pos);
    for (int64_t i = 0; i < n; i++) {
      pos[i] = (int32_t)(i * i * 13 % 2048);
      memcpy(rows + i * h * d, x + i * ld, (size_t)(h * d) * sizeof *rows);
    }
    pl_ref_rope(n, h, d, rows, pos, 10000, round % 2, y);
    A *to = round % 3 ? tx : memory((size_t)(n * ld) * sizeof *to); /* in place too */
    N_(pl_rope)(n, h, d, ld, tx, pos, 10000, round % 2, to);
    for (int64_t i = 0; i < n; i++) {
      N_(near_acts)("rotated", h * d, to + i * ld, y + i * h * d, 1);
      for (int64_t c = h * d; c < ld; c++) { /* what lies between rows stays */
        CHECK(BACK(to[i * ld + c]) == (to == tx ? x[i * ld + c] : 0));
      }
    }
    if (to != tx) {
      release(to);
    }
    release(x), release(rows), release(y), release(tx), release(pos);
  }
}

TEST_OF(N_(activations_match_their_formulas)) {
  enum { COUNT = 33003 };
  double *a = N_(wide)(COUNT), *b = N_(wide)(COUNT), *g = N_(wide)(COUNT);
  A *ta = N_(acts)(COUNT, 1, a), *tb = N_(acts)(COUNT, 2, b), *tg = N_(acts)(COUNT, 3, g);
  A *out[3];
  A *again = memory(COUNT * sizeof(A));
  for (int o = 0; o < 3; o++) {
    out[o] = memory(COUNT * sizeof(A));
  }
  static const double edges[] = {0, -0.0, 1e4, -1e4, 100, -100, 20, -20, 1e-30, -1e-30,
                                 550, -550, 1e7,  -1e7};
  for (int i = 0; i < COUNT; i++) { /* within +-8, and the edges */
    ta[i] = OF(i < 14 ? edges[i] : 4 * a[i]);
    a[i] = BACK(ta[i]);
  }
  N_(pl_silu_mul)(COUNT, ta, tb, out[0]);
  N_(pl_silu_mul_back)(COUNT, ta, tb, tg, out[1], out[2], again);
  for (int i = 0; i < COUNT; i++) {
    const double s = 1 / (1 + exp(-a[i]));
    N_(near)("silu_mul", BACK(out[0][i]), a[i] * s * b[i], TOL, 0.1);
    N_(near)("silu_mul again", BACK(again[i]), a[i] * s * b[i], TOL, 0.1);
    N_(near)("silu_mul ga", BACK(out[1][i]), g[i] * b[i] * s * (1 + a[i] * (1 - s)), TOL, 1);
    N_(near)("silu_mul gb", BACK(out[2][i]), g[i] * a[i] * s, TOL, 0.1);
  }
  N_(pl_gelu)(COUNT, ta, out[0]);
  N_(pl_gelu_back)(COUNT, ta, tg, out[1], again);
  for (int i = 0; i < COUNT; i++) {
    N_(near)("gelu", BACK(out[0][i]), gelu(a[i]), TOL, 0.1);
    N_(near)("gelu again", BACK(again[i]), gelu(a[i]), TOL, 0.1);
    const double slope = fabs(a[i]) > 50 ? a[i] > 0 : gelu_slope(a[i]);
    N_(near)("gelu ga", BACK(out[1][i]), g[i] * slope, TOL, 1);
  }
  for (int i = 0; i < 40; i++) {
    ta[i] = OF(NAN);
  }
  N_(pl_silu_mul)(40, ta, tb, out[0]);
  N_(pl_gelu)(40, ta, out[1]);
  CHECK(isnan(BACK(out[0][0])) && isnan(BACK(out[0][39]))); /* vector and tail */
  CHECK(isnan(BACK(out[1][0])) && isnan(BACK(out[1][39])));
  for (int o = 0; o < 3; o++) {
    release(out[o]);
  }
  release(a), release(b), release(g), release(ta), release(tb), release(tg), release(again);
}

TEST_OF(N_(biases_match_plain_loops)) {
  for (int round = 0; round < 12; round++) {
    const int64_t n = round == 0 ? 0 : size_of(round, 0, 90);
    const int64_t c = size_of(round, 1, 300);
    const int64_t ld = c + GAP;
    double *y = N_(wide)(n * ld), *b = N_(wide)(c), *sum = N_(wide)(c), *x = N_(wide)(n * c);
    A *ty = N_(acts)(n * ld, 1, y);
    T *tb = N_(reals)(c, 2, b), *gb = N_(reals)(c, 3, sum), *tx = N_(reals)(n * c, 4, x);
    T *to = memory((size_t)(n * c) * sizeof *to);
    N_(pl_bias_back)(n, c, ld, ty, gb);
    N_(pl_bias)(n, c, ld, tb, ty);
    N_(pl_residual)(n, c, tx, round % 2 ? tb : NULL, to);
    for (int64_t k = 0; k < c; k++) {
      sum[k] = 0;
      for (int64_t i = 0; i < n; i++) {
        sum[k] += y[i * ld + k];
        N_(near)("bias", BACK(ty[i * ld + k]), y[i * ld + k] + b[k], TOL, 1);
        N_(near)("residual", (double)to[i * c + k], x[i * c + k] + (round % 2 ? b[k] : 0), REAL_TOL,
                 1);
      }
    }
    N_(near_reals)("bias gradient", c, gb, sum, (double)(n + 1));
    for (int64_t i = 0; i < n; i++) {
      CHECK(BACK(ty[i * ld + c]) == y[i * ld + c]); /* what lies between rows stays */
    }
    release(y), release(b), release(sum), release(x), release(ty), release(tb), release(gb);
    release(tx), release(to);
  }
}

TEST_ONE(N_(rows_have_the_same_bits_on_any_number_of_threads)) {
  enum { R = 300, C = 200 };
  static const int counts[] = {1, 2, 3, 7};
  const int before = pl_threads();
  double *wide = N_(wide)(R * C);
  T *x = N_(reals)(R * C, 1, wide), *w = N_(reals)(C, 2, wide), *gy = N_(reals)(R * C, 3, wide);
  A *a = N_(acts)(R * C, 4, wide), *b = N_(acts)(R * C, 5, wide);
  T *scratch = memory((size_t)N_(pl_norm_back_scratch)(R, C) * sizeof *scratch);
  typedef struct results {
    A y[R * C], t[R * C], t2[R * C], ga[R * C], gb[R * C];
    T mean[R], rstd[R], gx[R * C], gw[C], gbias[C], sum[C];
  } results;
  results *first = memory(sizeof *first);
  for (int i = 0; i < 4; i++) {
    pl_set_threads(counts[i]);
    results *r = memory(sizeof *r);
    N_(pl_layer_norm)(R, C, x, w, w, (T)EPS, r->y, r->mean, r->rstd);
    N_(pl_layer_norm_back)(R, C, x, w, r->mean, r->rstd, gy, true, r->gx, r->gw, r->gbias, scratch);
    N_(pl_rms_norm_back)(R, C, x, w, r->rstd, gy, true, r->gx, r->gw, scratch);
    N_(pl_silu_mul)(R * C, a, b, r->t);
    N_(pl_silu_mul_back)(R * C, a, b, r->t, r->ga, r->gb, r->t2);
    N_(pl_bias_back)(R, C, C, a, r->sum);
    if (i == 0) {
      memcpy(first, r, sizeof *first);
    }
    CHECK(memcmp(first, r, sizeof *first) == 0);
    release(r);
  }
  pl_set_threads(before);
  release(first), release(wide), release(x), release(w), release(gy), release(a), release(b);
  release(scratch);
}

#undef T
#undef A
#undef N_
#undef OF
#undef BACK
#undef TOL
#undef REAL_TOL
