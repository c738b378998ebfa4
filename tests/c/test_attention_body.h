/* The checks of test_attention.c for one build: T reals, A activations, N(name) adds the
 * suffix, TOL is the error allowed relative to the largest value. */

/* q, k, v side by side in one matrix, as a decoder has them, and gaps behind. */
typedef struct N(run) {
  int64_t ld, n;
  A *qkv, *gqkv, *y, *gy;
  T *lse;
} N(run);

static N(run) N(run_of)(const shape *z, dense *d) {
  const int64_t rows = z->seq[z->S];
  const int64_t Q = z->H * z->D;
  const int64_t KV = z->K * z->D;
  N(run) r = {.ld = Q + 2 * KV + GAP, .n = rows};
  r.qkv = memory((size_t)(rows * r.ld) * sizeof(A));
  r.gqkv = memory((size_t)(rows * r.ld) * sizeof(A));
  r.y = memory((size_t)(rows * Q) * sizeof(A));
  r.gy = memory((size_t)(rows * Q) * sizeof(A));
  r.lse = memory((size_t)(rows * z->H) * sizeof(T));
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t c = 0; c < Q + 2 * KV; c++) {
      A x = OF(value(1, i * 1000 + c));
      r.qkv[i * r.ld + c] = x;
      double *to = c < Q ? d->q + i * Q + c : c < Q + KV ? d->k + i * KV + c - Q
                                                         : d->v + i * KV + c - Q - KV;
      *to = BACK(x);
    }
    for (int64_t c = 0; c < Q; c++) {
      r.gy[i * Q + c] = OF(value(2, i * 1000 + c));
      d->gy[i * Q + c] = BACK(r.gy[i * Q + c]);
    }
  }
  return r;
}

static void N(go)(const shape *z, N(run) *r) {
  const int64_t Q = z->H * z->D;
  const int64_t KV = z->K * z->D;
  const pl_sequences q = {z->S, z->seq, z->family ? z->parent : NULL, z->window};
  T *scratch = memory((size_t)N(pl_attention_scratch)(&q, z->D, true) * sizeof *scratch);
  N(pl_attention)(&q, z->H, z->K, z->D, r->qkv, r->ld, r->qkv + Q, r->ld, r->qkv + Q + KV, r->ld,
                  r->y, r->lse, scratch);
  N(pl_attention_back)(&q, z->H, z->K, z->D, r->qkv, r->ld, r->qkv + Q, r->ld, r->qkv + Q + KV,
                       r->ld, r->y, r->lse, r->gy, r->gqkv, r->ld, r->gqkv + Q, r->ld,
                       r->gqkv + Q + KV, r->ld, scratch);
  pl_free(&harness.ctx, scratch);
}

static void N(run_free)(N(run) *r) {
  void *parts[] = {r->qkv, r->gqkv, r->y, r->gy, r->lse};
  for (int i = 0; i < 5; i++) {
    pl_free(&harness.ctx, parts[i]);
  }
}

static void N(near)(const char *what, int which, int64_t rows, int64_t cols, const A *got,
                    int64_t ld, const double *want) {
  double worst = 0;
  double scale = 0.1; /* where the true values are 0, rounding is measured against this */
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t c = 0; c < cols; c++) {
      const double e = fabs(BACK(got[i * ld + c]) - want[i * cols + c]);
      worst = e > worst || isnan(e) ? e : worst;
      scale = fmax(scale, fabs(want[i * cols + c]));
    }
  }
  if (!(worst <= TOL * scale)) {
    FAIL("shape %d: %s is off by %.2e of %.2e", which, what, worst, scale);
  }
}

#define TEST_OF(title) TEST_EACH_ISA(title) /* expands its argument first */
#define TEST_ONE(title) TEST(title)
TEST_OF(N(attention_matches_dense_softmax)) {
  for (int which = 0; which < (int)(sizeof shapes / sizeof *shapes); which++) {
    const shape *z = &shapes[which];
    const int64_t Q = z->H * z->D;
    const int64_t KV = z->K * z->D;
    const int64_t rows = z->seq[z->S];
    dense d;
    double **parts[] = {&d.q, &d.gy, &d.y, &d.gq, &d.k, &d.v, &d.gk, &d.gv, &d.lse};
    for (int i = 0; i < 9; i++) {
      *parts[i] = memory((size_t)(rows * (i < 4 ? Q : i < 8 ? KV : z->H)) * sizeof(double));
    }
    N(run) r = N(run_of)(z, &d);
    N(go)(z, &r);
    twin(z, &d);
    N(near)("y", which, rows, Q, r.y, Q, d.y);
    N(near)("gq", which, rows, Q, r.gqkv, r.ld, d.gq);
    N(near)("gk", which, rows, KV, r.gqkv + Q, r.ld, d.gk);
    N(near)("gv", which, rows, KV, r.gqkv + Q + KV, r.ld, d.gv);
    for (int64_t i = 0; i < rows * z->H; i++) {
      if (!(fabs((double)r.lse[i] - d.lse[i]) < 1e-5)) {
        FAIL("shape %d: lse %d is %g, wanted %g", which, (int)i, (double)r.lse[i], d.lse[i]);
      }
    }
    for (int64_t i = 0; i < rows; i++) { /* what lies between rows stays */
      for (int c = 0; c < GAP; c++) {
        CHECK(BACK(r.gqkv[i * r.ld + Q + 2 * KV + c]) == 0);
      }
    }
    N(run_free)(&r);
    for (int i = 0; i < 9; i++) {
      pl_free(&harness.ctx, *parts[i]);
    }
  }
}

TEST_ONE(N(attention_has_the_same_bits_on_any_number_of_threads)) {
  static const int counts[] = {2, 3, 7};
  const int before = pl_threads();
  const shape *z = &shapes[8];
  const int64_t rows = z->seq[z->S];
  const int64_t wide = rows * (z->H + 2 * z->K) * z->D;
  dense d = {.q = memory((size_t)wide * 8), .k = memory((size_t)wide * 8),
             .v = memory((size_t)wide * 8), .gy = memory((size_t)wide * 8)};
  pl_set_threads(1);
  N(run) one = N(run_of)(z, &d);
  N(go)(z, &one);
  for (int i = 0; i < 3; i++) {
    pl_set_threads(counts[i]);
    N(run) more = N(run_of)(z, &d);
    N(go)(z, &more);
    CHECK(memcmp(one.y, more.y, (size_t)(rows * z->H * z->D) * sizeof(A)) == 0);
    CHECK(memcmp(one.gqkv, more.gqkv, (size_t)(rows * one.ld) * sizeof(A)) == 0);
    N(run_free)(&more);
  }
  pl_set_threads(before);
  N(run_free)(&one);
  pl_free(&harness.ctx, d.q), pl_free(&harness.ctx, d.k);
  pl_free(&harness.ctx, d.v), pl_free(&harness.ctx, d.gy);
}

#undef TEST_OF
#undef TEST_ONE
#undef T
#undef A
#undef N
#undef OF
#undef BACK
#undef TOL
