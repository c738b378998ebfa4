/* Every row of every table, from the row's own samples: gradients against
 * finite differences in f64, forward against the slow twin, failing
 * allocations, the same bytes on any number of threads. A new row is tested
 * by being listed in src/autograd/ops.c. */
#include "each_isa.h"
#include "harness.h"

#include "autograd/op.h"
#include "autograd/opkit.h"
#include "base/par.h"
#include "base/rng.h"
#include "tensor/fill.h"

enum { SLOTS = 16, MAX_SAMPLES = 40 };

typedef struct sample {
  pl_tensor *in[SLOTS];
  pl_call k;
} sample;

static void sample_free(sample *s) {
  for (int j = 0; j < SLOTS; j++) {
    pl_tensor_unref(s->in[j]);
    s->in[j] = NULL;
  }
  for (int o = 0; o < PL_OP_MAX_OUT; o++) {
    pl_tensor_unref(s->k.out[o]);
    s->k.out[o] = NULL;
  }
}

/* false when the row has no sample number `which` */
static bool sample_make(const pl_op *op, int which, pl_dtype d, sample *s) {
  memset(s, 0, sizeof *s);
  s->k.op = op;
  s->k.in = s->in;
  pl_status st = op->sample(ctx(), which, d, &s->k);
  if (st == PL_OK) {
    return true;
  }
  if (st != PL_ENOENT) {
    FAIL("%s sample %d: %s", op->name, which, ctx()->err);
  }
  sample_free(s);
  return false;
}

#define EACH_ROW(op)                                                       \
  for (int t_ = 0; pl_op_tables[t_] != NULL; t_++)                         \
    for (const pl_op *const *r_ = pl_op_tables[t_]; *r_ != NULL; r_++)     \
      for (const pl_op *op = *r_; op != NULL; op = NULL)

static bool is_real(const pl_tensor *t) {
  return t != NULL && (t->dtype == PL_F32 || t->dtype == PL_F64);
}

static pl_status apply(sample *s, pl_tensor **out) {
  memset(out, 0, PL_OP_MAX_OUT * sizeof *out);
  return pl_apply(ctx(), s->k.op, s->in, s->k.n_in, &s->k.args, out);
}

static void drop(pl_tensor **out) {
  for (int o = 0; o < PL_OP_MAX_OUT; o++) {
    pl_tensor_unref(out[o]);
    out[o] = NULL;
  }
}

static double weight(int o, uint64_t at) {
  return 2 * pl_uniform(5, (uint64_t)o, at) - 1;
}

/* sum over all real outputs of weight * value */
static pl_status weighted(sample *s, double *sum) {
  pl_tensor *out[PL_OP_MAX_OUT];
  pl_status st = apply(s, out);
  *sum = 0;
  for (int o = 0; st == PL_OK && o < PL_OP_MAX_OUT; o++) {
    int64_t i[PL_MAX_DIMS] = {0};
    uint64_t at = 0;
    bool more = is_real(out[o]) && pl_numel(out[o]) > 0;
    for (; more; more = pl_next(out[o], i)) {
      *sum += weight(o, at++) * pl_get(out[o], i);
    }
  }
  drop(out);
  return st;
}

static pl_status weights_like(const pl_tensor *t, int o, pl_tensor **out) {
  PL_TRY(pl_tensor_like(ctx(), t, out));
  int64_t i[PL_MAX_DIMS] = {0};
  uint64_t at = 0;
  bool more = pl_numel(t) > 0;
  for (; more; more = pl_next(t, i)) {
    pl_set(*out, i, weight(o, at++));
  }
  return PL_OK;
}

/* The gradient of weighted() by the tape. */
static pl_status run_tape(sample *s) {
  pl_ctx *c = ctx();
  pl_tensor *out[PL_OP_MAX_OUT];
  PL_TRY(apply(s, out));
  pl_status st = PL_OK;
  pl_tensor *loss = NULL;
  for (int o = 0; o < PL_OP_MAX_OUT && st == PL_OK; o++) {
    if (!is_real(out[o]) || !out[o]->requires_grad) {
      continue;
    }
    pl_tensor *w = NULL;
    pl_tensor *prod = NULL;
    pl_tensor *part = NULL;
    st = weights_like(out[o], o, &w);
    if (st == PL_OK) {
      st = pl_apply(c, &pl_op_mul, (pl_tensor *[]){out[o], w}, 2, NULL, &prod);
    }
    if (st == PL_OK) {
      st = pl_apply(c, &pl_op_sum, &prod, 1, &(pl_args){.n_i = 1}, &part);
    }
    if (st == PL_OK && loss != NULL) {
      pl_tensor *both = NULL;
      st = pl_apply(c, &pl_op_add, (pl_tensor *[]){loss, part}, 2, NULL, &both);
      if (st == PL_OK) {
        pl_tensor_unref(loss);
        loss = both;
      }
    } else if (st == PL_OK) {
      loss = pl_tensor_ref(part);
    }
    pl_tensor_unref(w);
    pl_tensor_unref(prod);
    pl_tensor_unref(part);
  }
  if (st == PL_OK && loss != NULL) {
    st = pl_backward(c, loss, NULL);
  }
  pl_tensor_unref(loss);
  drop(out);
  return st;
}

static void mark_inputs(sample *s, bool on) {
  for (int j = 0; j < s->k.n_in; j++) {
    if (is_real(s->in[j])) {
      s->in[j]->requires_grad = on;
    }
  }
}

static void drop_grads(sample *s) {
  for (int j = 0; j < s->k.n_in; j++) {
    if (s->in[j] != NULL) {
      pl_tensor_unref(s->in[j]->grad);
      s->in[j]->grad = NULL;
    }
  }
}

/* ---- gradients ------------------------------------------------------------------ */

static void check_element(sample *s, int which, int j, const int64_t *i) {
  pl_tensor *x = s->in[j];
  double was = pl_get(x, i);
  double h = 1e-6 * fmax(1, fabs(was));
  double up = 0;
  double down = 0;
  pl_set(x, i, was + h);
  pl_status st = weighted(s, &up);
  pl_set(x, i, was - h);
  st = st == PL_OK ? weighted(s, &down) : st;
  pl_set(x, i, was);
  if (st != PL_OK) {
    FAIL("%s sample %d: %s", s->k.op->name, which, ctx()->err);
    return;
  }
  double want = (up - down) / (2 * h);
  double got = x->grad != NULL ? pl_get(x->grad, i) : 0;
  if (!(fabs(got - want) <= 2e-6 * (1 + fabs(want)))) {
    FAIL("%s sample %d: gradient of input %d at [%lld %lld %lld] is %.9g, by differences %.9g",
         s->k.op->name, which, j + 1, (long long)i[0], (long long)i[1], (long long)i[2], got, want);
  }
}

static void check_sample_gradient(const pl_op *op, int which, sample *s) {
  mark_inputs(s, true);
  if (run_tape(s) != PL_OK) {
    FAIL("%s sample %d: %s", op->name, which, ctx()->err);
  } else {
    ctx()->grad_enabled = false;
    for (int j = 0; j < s->k.n_in && harness.failures < 20; j++) {
      int64_t i[PL_MAX_DIMS] = {0};
      bool more = is_real(s->in[j]) && pl_numel(s->in[j]) > 0;
      int64_t step = more ? 1 + pl_numel(s->in[j]) / 200 : 1; /* long inputs: every so many */
      for (int64_t at = 0; more; at++) {
        if (at % step == 0) {
          check_element(s, which, j, i);
        }
        more = pl_next(s->in[j], i);
      }
    }
    ctx()->grad_enabled = true;
  }
  drop_grads(s);
}

TEST_EACH_ISA(gradients_equal_finite_differences) {
  EACH_ROW(op) {
    if (op->backward == NULL || (op->flags & PL_OP_NO_F64) != 0) {
      continue;
    }
    sample s;
    for (int which = 0; which < MAX_SAMPLES && sample_make(op, which, PL_F64, &s); which++) {
      check_sample_gradient(op, which, &s);
      sample_free(&s);
    }
  }
}

/* A gradient is asked for one input at a time: the others must not be needed. */
TEST(one_input_alone_gives_the_same_gradient) {
  EACH_ROW(op) {
    if (op->backward == NULL || (op->flags & PL_OP_NO_F64) != 0) {
      continue;
    }
    sample s;
    for (int which = 0; which < MAX_SAMPLES && sample_make(op, which, PL_F64, &s); which++) {
      for (int j = 0; j < s.k.n_in; j++) {
        if (!is_real(s.in[j])) {
          continue;
        }
        mark_inputs(&s, true);
        CHECK_OK(run_tape(&s));
        pl_tensor *both = pl_tensor_ref(s.in[j]->grad);
        drop_grads(&s);
        mark_inputs(&s, false);
        s.in[j]->requires_grad = true;
        CHECK_OK(run_tape(&s));
        pl_tensor *alone = s.in[j]->grad;
        if ((both == NULL) != (alone == NULL) ||
            (both != NULL && memcmp(pl_data(both), pl_data(alone), both->storage->bytes) != 0)) {
          FAIL("%s sample %d: input %d", op->name, which, j + 1);
        }
        pl_tensor_unref(both);
        drop_grads(&s);
      }
      sample_free(&s);
    }
  }
}

/* ---- the slow twin ----------------------------------------------------------------- */

static void compare(const pl_op *op, int which, int o, const pl_tensor *got, const pl_tensor *want,
                    double tol) {
  char a[128];
  char b[128];
  if (got == NULL || want == NULL || !pl_same_shape(got, want)) {
    FAIL("%s sample %d, result %d: shape %s, the twin's %s", op->name, which, o + 1,
         got != NULL ? pl_shape_str(got, a) : "none",
         want != NULL ? pl_shape_str(want, b) : "none");
    return;
  }
  int64_t i[PL_MAX_DIMS] = {0};
  bool more = pl_numel(got) > 0;
  for (; more; more = pl_next(got, i)) {
    double g = pl_get(got, i);
    double w = pl_get(want, i);
    bool same = g == w || (isnan(g) && isnan(w)) || fabs(g - w) <= tol * (1 + fabs(w));
    if (!same) {
      FAIL("%s sample %d (%s), result %d at [%lld %lld %lld]: %.9g, the twin has %.9g", op->name,
           which, pl_dtypes[got->dtype].name, o + 1, (long long)i[0], (long long)i[1],
           (long long)i[2], g, w);
      return;
    }
  }
}

static void check_twin(const pl_op *op, pl_dtype d, double tol) {
  sample s;
  int which = 0;
  for (; which < MAX_SAMPLES && sample_make(op, which, d, &s); which++) {
    pl_tensor *out[PL_OP_MAX_OUT];
    if (apply(&s, out) != PL_OK) {
      FAIL("%s sample %d: %s", op->name, which, ctx()->err);
    } else if (op->twin(ctx(), &s.k) != PL_OK) {
      FAIL("%s sample %d, twin: %s", op->name, which, ctx()->err);
    } else {
      for (int o = 0; o < PL_OP_MAX_OUT; o++) {
        if (out[o] != NULL || s.k.out[o] != NULL) {
          compare(op, which, o, out[o], s.k.out[o], tol);
        }
      }
    }
    drop(out);
    sample_free(&s);
  }
  if (which == 0) {
    FAIL("%s has no sample", op->name);
  }
}

TEST_EACH_ISA(forward_equals_the_slow_twin) {
  EACH_ROW(op) {
    check_twin(op, PL_F32, 1e-5);
    check_twin(op, PL_F64, 1e-11);
  }
}

/* ---- failing allocations ------------------------------------------------------------- */

static pl_status run_and_drop(void *arg) {
  sample *s = arg;
  pl_status st = run_tape(s);
  drop_grads(s);
  return st;
}

TEST(each_failing_allocation_is_an_error_without_a_leak) {
  EACH_ROW(op) {
    sample s;
    for (int which = 0; which < MAX_SAMPLES && sample_make(op, which, PL_F64, &s); which++) {
      double before = 0;
      double after = 0;
      mark_inputs(&s, op->backward != NULL && (op->flags & PL_OP_NO_F64) == 0);
      CHECK_OK(weighted(&s, &before));
      if (fail_each_alloc(run_and_drop, &s) < 0) {
        FAIL("%s sample %d", op->name, which);
      }
      CHECK_OK(weighted(&s, &after));
      if (memcmp(&before, &after, sizeof before) != 0) {
        FAIL("%s sample %d: %.17g before failures, %.17g after", op->name, which, before, after);
      }
      sample_free(&s);
    }
  }
}

/* ---- threads ------------------------------------------------------------------------- */

/* bytes of results and gradients of one run with n threads, one after another */
static char *run_bytes(sample *s, int n, size_t *size) {
  pl_tensor *out[PL_OP_MAX_OUT];
  pl_set_threads(n);
  *size = 0;
  char *all = NULL;
  if (run_tape(s) != PL_OK || apply(s, out) != PL_OK) {
    FAIL("%s: %s", s->k.op->name, ctx()->err);
    return NULL;
  }
  pl_tensor *list[SLOTS + PL_OP_MAX_OUT] = {NULL};
  for (int j = 0; j < s->k.n_in; j++) {
    list[j] = s->in[j] != NULL ? s->in[j]->grad : NULL;
  }
  memcpy(list + SLOTS, out, sizeof out);
  for (int j = 0; j < SLOTS + PL_OP_MAX_OUT; j++) {
    pl_tensor *dense = NULL;
    if (list[j] == NULL || pl_tensor_contiguous(ctx(), list[j], &dense) != PL_OK) {
      continue;
    }
    size_t bytes = (size_t)pl_numel(dense) * pl_dtypes[dense->dtype].size;
    all = realloc(all, *size + bytes + 1);
    memcpy(all + *size, pl_data(dense), bytes);
    *size += bytes;
    pl_tensor_unref(dense);
  }
  drop(out);
  drop_grads(s);
  return all;
}

static void check_threads(sample *s) {
  int was = pl_threads();
  mark_inputs(s, s->k.op->backward != NULL);
  size_t n1;
  size_t n;
  char *one = run_bytes(s, 1, &n1);
  static const int counts[] = {2, 3, 7};
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
    int threads = counts[i];
    char *some = run_bytes(s, threads, &n);
    if (n != n1 || one == NULL || some == NULL || memcmp(one, some, n) != 0) {
      FAIL("%s: other bytes on %d threads than on 1", s->k.op->name, threads);
    }
    free(some);
  }
  free(one);
  pl_set_threads(was);
}

TEST_EACH_ISA(same_bytes_on_any_threads) {
  EACH_ROW(op) {
    sample s;
    for (int which = 0; which < MAX_SAMPLES && sample_make(op, which, PL_F32, &s); which++) {
      check_threads(&s);
      sample_free(&s);
    }
  }
}

/* sizes at which work is really shared out */
TEST_EACH_ISA(same_bytes_on_any_threads_when_big) {
  static const struct {
    const char *name;
    int n_in;
    int64_t a[2], b[2];
    pl_args args;
  } cases[] = {
      {"add", 2, {300, 700}, {1, 700}, {.n_i = 0}},
      {"mul", 2, {300, 700}, {300, 1}, {.n_i = 0}},
      {"exp", 1, {300, 700}, {0, 0}, {.n_i = 0}},
      {"softplus", 1, {300, 700}, {0, 0}, {.n_i = 0}},
      {"sum", 1, {300, 700}, {0, 0}, {.n_i = 1}},
      {"mean", 1, {300, 700}, {0, 0}, {.i = {0, 0}, .n_i = 2}},
      {"mean", 1, {300, 700}, {0, 0}, {.i = {0, 1}, .n_i = 2}},
      {"std", 1, {300, 700}, {0, 0}, {.i = {1, 0, 0}, .n_i = 3}},
      {"softmax", 1, {300, 700}, {0, 0}, {.i = {-1}, .n_i = 1}},
      {"log_softmax", 1, {300, 700}, {0, 0}, {.i = {0}, .n_i = 1}},
      {"logsumexp", 1, {300, 700}, {0, 0}, {.i = {0, 1}, .n_i = 2}},
      {"cumsum", 1, {300, 700}, {0, 0}, {.i = {1}, .n_i = 1}},
      {"max", 1, {300, 700}, {0, 0}, {.i = {0, 0}, .n_i = 2}},
      {"matmul", 2, {300, 200}, {200, 260}, {.n_i = 0}},
      {"transpose", 1, {300, 700}, {0, 0}, {.i = {0, 1}, .n_i = 2}},
  };
  for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
    sample s;
    memset(&s, 0, sizeof s);
    s.k.op = pl_op_find(cases[k].name);
    REQUIRE(s.k.op != NULL);
    s.k.in = s.in;
    s.k.n_in = cases[k].n_in;
    s.k.args = cases[k].args;
    CHECK_OK(pl_tensor_new(ctx(), PL_F32, 2, cases[k].a, &s.in[0]));
    pl_fill_normal(s.in[0], 1, k);
    if (cases[k].n_in == 2) {
      CHECK_OK(pl_tensor_new(ctx(), PL_F32, 2, cases[k].b, &s.in[1]));
      pl_fill_normal(s.in[1], 2, k);
    }
    check_threads(&s);
    sample_free(&s);
  }
}

/* ---- declarations --------------------------------------------------------------------- */

TEST(rows_are_complete) {
  EACH_ROW(op) {
    CHECK(op->name != NULL && op->params != NULL && op->ret != NULL && op->doc != NULL);
    CHECK(op->forward != NULL && op->sample != NULL && op->twin != NULL);
    CHECK(pl_op_find(op->name) == op); /* names are unique */
  }
}

/* ---- promotion, half precision, messages ------------------------------------------------ */

static pl_tensor *vec(pl_dtype d, int n, const double *v) {
  pl_tensor *t = NULL;
  CHECK_OK(pl_tensor_new(ctx(), d, 1, PL_SHAPE(n), &t));
  for (int64_t k = 0; k < n; k++) {
    pl_set(t, &k, v[k]);
  }
  return t;
}

#define VEC(d, ...) \
  vec(d, (int)(sizeof((double[]){__VA_ARGS__}) / sizeof(double)), (double[]){__VA_ARGS__})

static double at(const pl_tensor *t, int64_t k) {
  return pl_get(t, &k);
}

static pl_tensor *binary(const char *name, pl_tensor *a, pl_tensor *b) {
  pl_tensor *y = NULL;
  CHECK_OK(pl_apply(ctx(), pl_op_find(name), (pl_tensor *[]){a, b}, 2, NULL, &y));
  pl_tensor_unref(a);
  pl_tensor_unref(b);
  return y;
}

TEST(dtypes_promote) {
  static const struct {
    pl_dtype a, b, sum, quotient;
  } rows[] = {{PL_BOOL, PL_BOOL, PL_I64, PL_F32}, {PL_BOOL, PL_I32, PL_I32, PL_F32},
              {PL_I32, PL_I64, PL_I64, PL_F32},   {PL_I64, PL_F32, PL_F32, PL_F32},
              {PL_F32, PL_F64, PL_F64, PL_F64},   {PL_BF16, PL_F32, PL_F32, PL_F32},
              {PL_I32, PL_F64, PL_F64, PL_F64},   {PL_BF16, PL_BF16, PL_F32, PL_F32}};
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    pl_tensor *s = binary("add", VEC(rows[k].a, 1, 0), VEC(rows[k].b, 1, 1));
    pl_tensor *q = binary("div", VEC(rows[k].a, 1, 0), VEC(rows[k].b, 1, 1));
    CHECK_INT(s->dtype, rows[k].sum);
    CHECK_INT(q->dtype, rows[k].quotient);
    CHECK_NEAR(at(s, 0), 2, 0);
    CHECK_NEAR(at(q, 1), 0, 0);
    pl_tensor_unref(s);
    pl_tensor_unref(q);
  }
  pl_tensor *big = binary("mul", VEC(PL_I64, 3037000500.0, -3), VEC(PL_I64, 3, 7));
  CHECK_NEAR(at(big, 0), 9111001500.0, 0);
  CHECK_NEAR(at(big, 1), -21, 0);
  pl_tensor_unref(big);
  pl_tensor *p = binary("pow", VEC(PL_I32, 2, -3, 2), VEC(PL_I32, 10, 3, -1));
  CHECK_INT(p->dtype, PL_I32);
  CHECK_NEAR(at(p, 0), 1024, 0);
  CHECK_NEAR(at(p, 1), -27, 0);
  CHECK_NEAR(at(p, 2), 0, 0);
  pl_tensor_unref(p);
}

TEST(half_precision_is_storage) {
  pl_tensor *x = VEC(PL_BF16, 1, 2, 3);
  CHECK_OK(pl_set_requires_grad(ctx(), x, true));
  pl_tensor *y = NULL;
  pl_tensor *s = NULL;
  CHECK_OK(pl_apply(ctx(), pl_op_find("square"), &x, 1, NULL, &y));
  CHECK_INT(y->dtype, PL_F32);
  CHECK_OK(pl_apply(ctx(), &pl_op_sum, &y, 1, &(pl_args){.n_i = 1}, &s));
  CHECK_OK(pl_backward(ctx(), s, NULL));
  REQUIRE(x->grad != NULL);
  CHECK_INT(x->grad->dtype, PL_BF16);
  CHECK_NEAR(at(x->grad, 2), 6, 0);
  pl_tensor_unref(x);
  pl_tensor_unref(y);
  pl_tensor_unref(s);
}

/* Every row on bf16 inputs equals itself on the same values in f32. */
static void check_half(const pl_op *op, int which, sample *s) {
  sample h;
  memset(&h, 0, sizeof h);
  h.k.op = op;
  h.k.in = h.in;
  h.k.n_in = s->k.n_in;
  h.k.args = s->k.args;
  for (int j = 0; j < s->k.n_in; j++) {
    h.in[j] = pl_tensor_ref(s->in[j]);
    if (is_real(s->in[j])) {
      pl_tensor_unref(h.in[j]);
      CHECK_OK(pl_tensor_cast(ctx(), s->in[j], PL_BF16, &h.in[j]));
      CHECK_OK(pl_tensor_copy(ctx(), s->in[j], h.in[j])); /* the rounded values */
      bool grad = op->backward != NULL;
      h.in[j]->requires_grad = grad;
      s->in[j]->requires_grad = grad;
    }
  }
  pl_tensor *a[PL_OP_MAX_OUT];
  pl_tensor *b[PL_OP_MAX_OUT];
  CHECK_OK(apply(s, a));
  CHECK_OK(apply(&h, b));
  for (int o = 0; o < PL_OP_MAX_OUT && a[o] != NULL; o++) {
    compare(op, which, o, b[o], a[o], 1e-2);
  }
  drop(a);
  drop(b);
  CHECK_OK(run_tape(s));
  pl_tensor *loss[PL_OP_MAX_OUT];
  CHECK_OK(apply(&h, loss));
  if (loss[0] != NULL && loss[0]->requires_grad && loss[1] == NULL) {
    pl_tensor *w = NULL;
    CHECK_OK(weights_like(loss[0], 0, &w));
    CHECK_OK(pl_backward(ctx(), loss[0], w));
    pl_tensor_unref(w);
    for (int j = 0; j < s->k.n_in; j++) {
      if (is_real(s->in[j]) && s->in[j]->grad != NULL && h.in[j]->grad != NULL) {
        CHECK_INT(h.in[j]->grad->dtype, PL_BF16);
        compare(op, which, j + 10, h.in[j]->grad, s->in[j]->grad, 2e-2);
      }
    }
  }
  drop(loss);
  drop_grads(s);
  drop_grads(&h);
  sample_free(&h);
}

TEST(half_precision_inputs_work_in_every_row) {
  EACH_ROW(op) {
    sample s;
    for (int which = 0; which < MAX_SAMPLES && sample_make(op, which, PL_F32, &s); which++) {
      check_half(op, which, &s);
      sample_free(&s);
    }
  }
}

TEST(whole_numbers_stay_whole) {
  static const struct {
    const char *op;
    pl_args args;
    pl_dtype out;
    double first;
  } rows[] = {{"sum", {.n_i = 1}, PL_I64, 9},
              {"mean", {.n_i = 1}, PL_F32, 3},
              {"max", {.i = {PL_ABSENT, 0}, .n_i = 2}, PL_I32, 5},
              {"min", {.i = {0, 0}, .n_i = 2}, PL_I32, 1},
              {"argmax", {.i = {0, 0}, .n_i = 2}, PL_I64, 0},
              {"cumsum", {.i = {0}, .n_i = 1}, PL_I64, 5},
              {"sort", {.i = {0, 0}, .n_i = 2}, PL_I32, 1},
              {"topk", {.i = {2, 0, 1}, .n_i = 3}, PL_I32, 5},
              {"abs", {.n_i = 0}, PL_I32, 5},
              {"neg", {.n_i = 0}, PL_I32, -5},
              {"exp", {.n_i = 0}, PL_F32, 148.41316},
              {"softmax", {.i = {0}, .n_i = 1}, PL_F32, 0.8668},
              {"std", {.i = {1, 0}, .n_i = 2}, PL_F32, 2},
              {"clamp", {.f = {0, 4}, .n_f = 2}, PL_I32, 4},
              {"clone", {.n_i = 0}, PL_I32, 5},
              {"any", {.n_i = 1}, PL_BOOL, 1}};
  pl_tensor *x = VEC(PL_I32, 5, 1, 3);
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    pl_tensor *out[PL_OP_MAX_OUT] = {NULL};
    CHECK_OK(pl_apply(ctx(), pl_op_find(rows[k].op), &x, 1, &rows[k].args, out));
    const int64_t zero[PL_MAX_DIMS] = {0};
    if (out[0] == NULL || out[0]->dtype != rows[k].out ||
        fabs(pl_get(out[0], zero) - rows[k].first) > 1e-4) {
      FAIL("%s of {5, 1, 3}", rows[k].op);
    }
    drop(out);
  }
  pl_tensor_unref(x);
  pl_tensor *m = binary("matmul", VEC(PL_I64, 3, 4), VEC(PL_I64, 5, -1));
  CHECK(m->dtype == PL_I64 && pl_get(m, NULL) == 11);
  pl_tensor_unref(m);
}

/* what the user reads: the op's name and both shapes */
TEST(errors_name_op_and_shapes) {
  pl_tensor *a = NULL;
  pl_tensor *y = NULL;
  CHECK_OK(pl_sample(ctx(), PL_F32, 1, 0, 1, false, 2, PL_SHAPE(2, 3), &a));
  pl_tensor *p = VEC(PL_I64, 0, 2);
  static const struct {
    const char *op;
    pl_args args;
    bool with_p;
    const char *says;
  } cases[] = {
      {"matmul", {.n_i = 0}, false, "matmul: [2, 3] and [2, 3]: inner sizes 3 and 2 differ"},
      {"sum", {.i = {0, 2}, .n_i = 2}, false, "sum: dim 3 is not a dim of [2, 3] (it has 2)"},
      {"sum", {.i = {0, 1, -1}, .n_i = 3}, false, "dim 2 is given twice"},
      {"reshape", {.i = {4, -1}, .n_i = 2}, false, "reshape: [2, 3] has 6 elements"},
      {"reshape", {.i = {5}, .n_i = 1}, false, "does not fit [5]"},
      {"index_select", {.n_i = 1}, true, "position 3 is outside dim 1 of [2, 3] (1 to 2)"},
      {"select", {.i = {1, 3}, .n_i = 2}, false, "position 4 is outside dim 2 of [2, 3]"},
      {"topk", {.i = {4, 1, 1}, .n_i = 3}, false, "k = 4 of dim 2 of [2, 3]"},
      {"expand", {.i = {4, 3}, .n_i = 2}, false, "[2, 3] does not expand to [4, 3]"},
      {"clamp", {.f = {2, 1}, .n_f = 2}, false, "clamp: min 2 is above max 1"},
      {"norm", {.n_i = 1, .f = {3}, .n_f = 1}, false, "norm: p = 3"},
  };
  for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
    bool two = cases[k].with_p || strcmp(cases[k].op, "matmul") == 0;
    CHECK_STATUS(pl_apply(ctx(), pl_op_find(cases[k].op),
                          (pl_tensor *[]){a, cases[k].with_p ? p : a}, two ? 2 : 1, &cases[k].args,
                          &y),
                 PL_EINVAL);
    CHECK_HAS(ctx()->err, cases[k].says);
  }
  pl_tensor *b = NULL;
  CHECK_OK(pl_sample(ctx(), PL_F32, 1, 0, 1, false, 1, PL_SHAPE(2), &b));
  CHECK_STATUS(pl_apply(ctx(), &pl_op_add, (pl_tensor *[]){a, b}, 2, NULL, &y), PL_EINVAL);
  CHECK_HAS(ctx()->err, "add: [2, 3] and [2] do not broadcast");
  pl_tensor_unref(a);
  pl_tensor_unref(b);
  pl_tensor_unref(p);
}

/* stable forms at the ends of the range */
TEST(large_arguments_stay_finite) {
  static const struct {
    const char *op;
    double x, want;
  } rows[] = {{"softplus", 1000, 1000},  {"softplus", -1000, 0}, {"log_sigmoid", -1000, -1000},
              {"log_sigmoid", 1000, 0},  {"sigmoid", -1000, 0},  {"sigmoid", 1000, 1},
              {"silu", -1000, 0},        {"tanh", 1000, 1},      {"tanh", -1000, -1},
              {"gelu", -1000, 0},        {"gelu", 1000, 1000},   {"softplus", -20, 2.0611536e-9}};
  for (int wide = 0; wide < 2; wide++) {
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
      pl_tensor *x = vec(wide ? PL_F64 : PL_F32, 1, &rows[k].x);
      pl_tensor *y = NULL;
      CHECK_OK(pl_set_requires_grad(ctx(), x, true));
      CHECK_OK(pl_apply(ctx(), pl_op_find(rows[k].op), &x, 1, NULL, &y));
      CHECK_NEAR(at(y, 0), rows[k].want, 1e-6 * fabs(rows[k].want) + 1e-15);
      CHECK_OK(pl_backward(ctx(), y, NULL));
      CHECK(x->grad != NULL && isfinite(at(x->grad, 0)));
      pl_tensor_unref(x);
      pl_tensor_unref(y);
    }
  }
}
