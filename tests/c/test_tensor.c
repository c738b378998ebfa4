/* Tensors: geometry, conversion, creation, printing. */
#include "harness.h"

#include "autograd/opkit.h"
#include "base/par.h"
#include "tensor/fill.h"

static double at2(const pl_tensor *t, int64_t a, int64_t b) {
  const int64_t i[2] = {a, b};
  return pl_get(t, i);
}

/* 0, 1, 2, ... in the given shape */
static pl_tensor *count(pl_dtype d, int ndim, const int64_t *shape) {
  pl_tensor *t = NULL;
  CHECK_OK(pl_tensor_new(ctx(), d, ndim, shape, &t));
  int64_t i[PL_MAX_DIMS] = {0};
  int64_t n = 0;
  bool more = pl_numel(t) > 0;
  for (; more; more = pl_next(t, i)) {
    pl_set(t, i, (double)n++);
  }
  return t;
}

TEST(shapes_are_checked) {
  pl_tensor *t = NULL;
  CHECK_STATUS(pl_tensor_new(ctx(), PL_F32, 2, PL_SHAPE(2, -3), &t), PL_EINVAL);
  CHECK_HAS(ctx()->err, "size -3 of dim 2 is negative");
  CHECK_STATUS(pl_tensor_new(ctx(), PL_F32, 2, PL_SHAPE(INT64_MAX / 2, 8), &t), PL_EINVAL);
  CHECK_STATUS(pl_tensor_new(ctx(), PL_F64, 3, PL_SHAPE(0, INT64_MAX / 2, 8), &t), PL_EINVAL);
  CHECK_STATUS(pl_tensor_new(ctx(), PL_F32, 9, PL_SHAPE(1, 1, 1, 1, 1, 1, 1, 1, 1), &t), PL_EINVAL);
  CHECK_HAS(ctx()->err, "at most 8 dims");
  CHECK(t == NULL);
  CHECK_OK(pl_tensor_new(ctx(), PL_F32, 2, PL_SHAPE(0, 5), &t));
  CHECK_INT(pl_numel(t), 0);
  CHECK(pl_contiguous(t));
  pl_tensor_unref(t);
  pl_dtype d;
  CHECK_OK(pl_dtype_find(ctx(), "bf16", &d));
  CHECK_INT(d, PL_BF16);
  CHECK_STATUS(pl_dtype_find(ctx(), "float32", &d), PL_EINVAL);
  CHECK_HAS(ctx()->err, "did you mean \"f32\"");
  CHECK_STATUS(pl_dtype_find(ctx(), "x", &d), PL_EINVAL);
}

TEST(views_share_and_outlive) {
  pl_tensor *t = count(PL_F32, 2, PL_SHAPE(3, 4));
  pl_tensor *v = NULL;
  CHECK_OK(pl_swapped(ctx(), t, 0, 1, &v));
  CHECK(!pl_contiguous(v) && v->storage == t->storage);
  pl_tensor_unref(t);
  CHECK_NEAR(at2(v, 1, 2), 9, 0);
  pl_tensor *dense = NULL;
  CHECK_OK(pl_tensor_contiguous(ctx(), v, &dense));
  CHECK(dense != v && pl_contiguous(dense));
  CHECK_NEAR(pl_f32(dense)[5], 9, 0);
  pl_tensor *again = NULL;
  CHECK_OK(pl_tensor_contiguous(ctx(), dense, &again));
  CHECK(again == dense);
  pl_tensor_unref(again);
  pl_tensor_unref(dense);
  pl_tensor_unref(v);
}

TEST(broadcast_shapes) {
  pl_tensor *a = count(PL_F32, 3, PL_SHAPE(2, 1, 3));
  pl_tensor *b = count(PL_F32, 2, PL_SHAPE(4, 1));
  pl_tensor *z = count(PL_F32, 2, PL_SHAPE(0, 3));
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  CHECK_OK(pl_broadcast(ctx(), a, b, &ndim, shape));
  CHECK(ndim == 3 && shape[0] == 2 && shape[1] == 4 && shape[2] == 3);
  CHECK_OK(pl_broadcast(ctx(), a, z, &ndim, shape));
  CHECK(ndim == 3 && shape[1] == 0); /* 1 meets 0: nothing */
  CHECK_STATUS(pl_broadcast(ctx(), b, z, &ndim, shape), PL_EINVAL);
  CHECK_HAS(ctx()->err, "[4, 1] and [0, 3] do not broadcast");
  pl_tensor_unref(a);
  pl_tensor_unref(b);
  pl_tensor_unref(z);
}

/* every pair of dtypes, dense and strided, against the meaning of the number */
TEST(conversions) {
  static const double values[] = {0, 1, -2, 100, 0.75, -3.5, 1e10, NAN, INFINITY, -INFINITY};
  enum { N = sizeof values / sizeof values[0] };
  for (int from = 0; from < PL_N_DTYPES; from++) {
    for (int to = 0; to < PL_N_DTYPES; to++) {
      pl_tensor *x = NULL;
      pl_tensor *column = NULL;
      pl_tensor *y = NULL;
      CHECK_OK(pl_tensor_zeros(ctx(), (pl_dtype)from, 2, PL_SHAPE(N, 2), &x));
      CHECK_OK(pl_tensor_view(ctx(), x, 1, PL_SHAPE(N), PL_SHAPE(2), 1, &column));
      for (int64_t k = 0; k < N; k++) {
        pl_set(column, &k, values[k]);
      }
      CHECK_OK(pl_tensor_cast(ctx(), column, (pl_dtype)to, &y));
      for (int64_t k = 0; k < N; k++) {
        double v = pl_get(column, &k);
        double got = pl_get(y, &k);
        double want = v;
        if (to == PL_BOOL) {
          want = v != 0;
        } else if (to == PL_I32) {
          want = isnan(v) ? 0 : fmin(fmax(trunc(v), -2147483648.0), 2147483647.0);
        } else if (to == PL_I64) {
          want = isnan(v) ? 0 : fmin(fmax(trunc(v), -0x1p63), 0x1p63);
        } else if (to == PL_BF16) {
          want = isfinite(v) ? got : v; /* rounding has its own test */
          CHECK(!isfinite(v) || fabs(got - v) <= fabs(v) / 256);
        } else if (to == PL_F32) {
          want = (float)v;
        }
        if (!(got == want || (isnan(got) && isnan(want)))) {
          FAIL("%s %g to %s gives %g, wanted %g", pl_dtypes[from].name, v, pl_dtypes[to].name, got,
               want);
        }
      }
      pl_tensor_unref(x);
      pl_tensor_unref(column);
      pl_tensor_unref(y);
    }
  }
}

TEST(bf16_rounds_to_nearest_even) {
  static const double pairs[][2] = {{1.00390625, 1},          {1.01171875, 1.015625},
                                    {1.004, 1.0078125},  {3.3895314e38, 3.3895314e38},
                                    {3.4e38, INFINITY},       {-0.1, -0.10009765625}};
  pl_tensor *t = NULL;
  CHECK_OK(pl_tensor_new(ctx(), PL_BF16, 0, NULL, &t));
  for (size_t k = 0; k < sizeof pairs / sizeof pairs[0]; k++) {
    pl_set(t, NULL, pairs[k][0]);
    double got = pl_get(t, NULL);
    CHECK(got == pairs[k][1] || fabs(got - pairs[k][1]) < 1e-6 * fabs(pairs[k][1]));
  }
  pl_tensor_unref(t);
}

TEST(copy_broadcasts_overlaps_and_counts) {
  pl_tensor *t = count(PL_F32, 2, PL_SHAPE(3, 3));
  pl_tensor *flipped = NULL;
  CHECK_OK(pl_swapped(ctx(), t, 0, 1, &flipped));
  uint32_t version = t->storage->version;
  CHECK_OK(pl_tensor_copy(ctx(), t, flipped)); /* overlaps itself */
  CHECK_INT(t->storage->version, version + 1);
  for (int64_t a = 0; a < 3; a++) {
    for (int64_t b = 0; b < 3; b++) {
      CHECK_NEAR(at2(t, a, b), b * 3 + a, 0);
    }
  }
  pl_tensor *row = count(PL_I64, 1, PL_SHAPE(3));
  CHECK_OK(pl_tensor_copy(ctx(), t, row));
  CHECK_NEAR(at2(t, 2, 1), 1, 0);
  CHECK_STATUS(pl_tensor_copy(ctx(), row, t), PL_EINVAL);
  CHECK_HAS(ctx()->err, "[3, 3] do not fit into [3]");
  pl_tensor_unref(t);
  pl_tensor_unref(flipped);
  pl_tensor_unref(row);
}

TEST(filling) {
  pl_tensor *t = count(PL_F64, 2, PL_SHAPE(2, 3));
  pl_fill_range(t, 1, -0.25);
  CHECK_NEAR(at2(t, 1, 2), -0.25, 0);
  pl_fill_eye(t);
  CHECK(at2(t, 1, 1) == 1 && at2(t, 1, 2) == 0 && at2(t, 0, 0) == 1);
  pl_tensor *column = NULL;
  CHECK_OK(pl_tensor_view(ctx(), t, 1, PL_SHAPE(2), PL_SHAPE(3), 2, &column));
  uint32_t version = t->storage->version;
  CHECK_OK(pl_fill(column, 7)); /* only the view's elements */
  CHECK(at2(t, 0, 2) == 7 && at2(t, 1, 2) == 7 && at2(t, 1, 1) == 1);
  CHECK_INT(t->storage->version, version + 1);
  pl_tensor_unref(column);
  pl_tensor_unref(t);
  for (int d = 0; d < PL_N_DTYPES; d++) {
    t = count((pl_dtype)d, 1, PL_SHAPE(70000)); /* several blocks */
    pl_fill_value(t, 1);
    int64_t bad = 0;
    for (int64_t k = 0; k < 70000; k++) {
      bad += pl_get(t, &k) != 1;
    }
    CHECK_INT(bad, 0);
    pl_tensor_unref(t);
  }
}

TEST(random_numbers_are_a_function_of_the_seed) {
  int was = pl_threads();
  pl_tensor *t[4] = {NULL};
  for (int k = 0; k < 4; k++) {
    pl_set_threads(k + 1);
    CHECK_OK(pl_tensor_new(ctx(), PL_F32, 2, PL_SHAPE(300, 300), &t[k]));
    pl_fill_normal(t[k], k < 3 ? 7 : 8, 0);
  }
  CHECK(memcmp(pl_data(t[0]), pl_data(t[1]), t[0]->storage->bytes) == 0);
  CHECK(memcmp(pl_data(t[0]), pl_data(t[2]), t[0]->storage->bytes) == 0);
  CHECK(memcmp(pl_data(t[0]), pl_data(t[3]), t[0]->storage->bytes) != 0);
  pl_set_threads(was);
  double sum = 0;
  double sq = 0;
  for (int k = 0; k < 90000; k++) {
    sum += pl_f32(t[0])[k];
    sq += pl_f32(t[0])[k] * pl_f32(t[0])[k];
  }
  CHECK_NEAR(sum / 90000, 0, 0.015); /* 4.5 standard errors */
  CHECK_NEAR(sq / 90000, 1, 0.025);
  for (int k = 0; k < 4; k++) {
    pl_tensor_unref(t[k]);
  }
  pl_tensor *w = NULL;
  CHECK_OK(pl_tensor_new(ctx(), PL_I64, 1, PL_SHAPE(6000), &w));
  pl_fill_integers(w, 3, 0, -1, 3);
  int seen[3] = {0};
  for (int k = 0; k < 6000; k++) {
    REQUIRE(pl_i64(w)[k] >= -1 && pl_i64(w)[k] < 2);
    seen[pl_i64(w)[k] + 1]++;
  }
  CHECK(seen[0] > 1850 && seen[1] > 1850 && seen[2] > 1850);
  pl_tensor_unref(w);
}

static void check_print(const pl_tensor *t, const char *want) {
  pl_buf b;
  pl_buf_init(&b, 1 << 16);
  CHECK_OK(pl_tensor_print(ctx(), t, &b));
  CHECK_STR(b.data, want);
  pl_buf_free(ctx(), &b);
}

TEST(printing) {
  pl_tensor *t = count(PL_F32, 2, PL_SHAPE(2, 3));
  check_print(t, "{{0, 1, 2},\n {3, 4, 5}}\nf32 [2, 3]");
  t->requires_grad = true;
  pl_f32(t)[1] = -0.5f;
  check_print(t, "{{ 0.0000, -0.5000,  2.0000},\n { 3.0000,  4.0000,  5.0000}}\n"
                 "f32 [2, 3]  requires grad");
  pl_tensor_unref(t);
  CHECK_OK(pl_tensor_scalar(ctx(), PL_F64, 2.5, &t));
  check_print(t, "2.5000  f64 []");
  pl_tensor_unref(t);
  t = count(PL_I64, 1, PL_SHAPE(3));
  pl_i64(t)[1] = INT64_MIN;
  check_print(t, "{                   0, -9223372036854775808,                    2}  i64 [3]");
  pl_tensor_unref(t);
  t = count(PL_BOOL, 1, PL_SHAPE(2));
  check_print(t, "{false,  true}  bool [2]");
  pl_tensor_unref(t);
  t = count(PL_F32, 1, PL_SHAPE(2));
  pl_f32(t)[0] = 1e-7f;
  pl_f32(t)[1] = NAN;
  check_print(t, "{1.0000e-07,        nan}  f32 [2]");
  pl_tensor_unref(t);
  t = count(PL_F32, 2, PL_SHAPE(0, 3));
  check_print(t, "f32 [0, 3]");
  pl_tensor_unref(t);
  t = count(PL_F32, 1, PL_SHAPE(100));
  pl_f32(t)[50] = NAN;
  check_print(t, "{ 0,  1,  2,  3,  4,  5, ..., 94, 95, 96, 97, 98, 99}  f32 [100]"
                 "  mean 49.49  std 29.16  min 0  max 99  NaN 1");
  pl_tensor_unref(t);
  t = count(PL_I32, 3, PL_SHAPE(2, 1, 2));
  check_print(t, "{{{0, 1}},\n {{2, 3}}}\ni32 [2, 1, 2]");
  pl_tensor_unref(t);
}

TEST(small_tensors_cost_two_allocations) {
  pl_tensor *t = NULL;
  ctx()->mem.fail_at = 3;
  CHECK_OK(pl_tensor_new(ctx(), PL_F32, 1, PL_SHAPE(4), &t));
  CHECK_INT(ctx()->mem.fail_at, 1);
  ctx()->mem.fail_at = 0;
  pl_tensor_unref(t);
}
