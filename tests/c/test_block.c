/* The two halves of a decoder layer at sizes where work is shared out: values and all
 * gradients against the formula spelled out in small rows (the rows' twins, recorded), in
 * f64, f32 and under autocast; bytes on any number of threads; recomputation; failing
 * allocations. Small and awkward shapes are the rows' own samples (test_ops.c). */
#include "each_isa.h"
#include "harness.h"

#include "autograd/op.h"
#include "autograd/opkit.h"
#include "base/par.h"

enum { SLOTS = 14, SHAPES = 4, CHECKPOINT_MIX = 4, CHECKPOINT_FFN = 1 };

/* A layer's sizes; S sequences of N / S tokens or so. */
typedef struct shape {
  int64_t N, S, C, H, K, D, F;
  bool gpt2; /* LayerNorm, biases, GELU, no rotation */
} shape;

static const shape SIZES[SHAPES] = {{150, 2, 48, 4, 2, 12, 100, false},
                                    {150, 3, 48, 3, 3, 16, 100, true},
                                    {1, 1, 32, 2, 1, 16, 64, false},
                                    {70, 70, 33, 1, 1, 8, 17, true}};

typedef struct block {
  const pl_op *op;
  pl_tensor *in[SLOTS];
  int n;
  pl_args args;
} block;

static void add_in(block *b, pl_dtype d, bool have, double lo, double hi, int64_t rows,
                   int64_t cols) {
  if (have) {
    CHECK_OK(pl_sample(ctx(), d, 7 + b->n, lo, hi, false, cols == 0 ? 1 : 2, PL_SHAPE(rows, cols),
                       &b->in[b->n]));
    CHECK_OK(pl_set_requires_grad(ctx(), b->in[b->n], true));
  }
  b->n++;
}

static void add_ints(block *b, int64_t n, int64_t last, bool ends) {
  CHECK_OK(pl_tensor_new(ctx(), PL_I32, 1, &n, &b->in[b->n]));
  for (int64_t i = 0; i < n; i++) { /* where sequences begin, or positions */
    pl_i32(b->in[b->n])[i] = (int32_t)(ends ? i * i * last / ((n - 1) * (n - 1)) : i % 40);
  }
  b->n++;
}

/* Weights of about 1/sqrt(inputs), so that every part of the sum counts. */
static void make(block *b, const shape *s, pl_dtype d, bool mix) {
  const int64_t Q = s->H * s->D;
  const int64_t KV = s->K * s->D;
  const int64_t C = s->C;
  const bool g = s->gpt2;
  const double w = 1.7 / sqrt((double)C);
  memset(b, 0, sizeof *b);
  add_in(b, d, true, -1, 1, s->N, C);
  add_in(b, d, true, 0.5, 1.5, C, 0);
  add_in(b, d, g, -0.5, 0.5, C, 0);
  if (mix) {
    b->op = &pl_op_attention_block;
    b->args = (pl_args){.i = {s->H, s->K, 0, g}, .n_i = 6, .f = {1e-5, g ? 0 : 100}, .n_f = 2};
    add_in(b, d, true, -w, w, Q, C);
    add_in(b, d, true, -w, w, KV, C);
    add_in(b, d, true, -w, w, KV, C);
    add_in(b, d, true, -w, w, C, Q);
    add_in(b, d, g, -1, 1, Q, 0);
    add_in(b, d, g, -1, 1, KV, 0);
    add_in(b, d, g, -1, 1, KV, 0);
    add_in(b, d, g, -1, 1, C, 0);
    add_ints(b, s->N, 0, false);
    add_ints(b, s->S + 1, s->N, true);
    b->n++;
  } else {
    b->op = &pl_op_ffn_block;
    b->args = (pl_args){.i = {g}, .n_i = 3, .f = {1e-5}, .n_f = 1};
    add_in(b, d, !g, -w, w, s->F, C);
    add_in(b, d, true, -w, w, s->F, C);
    add_in(b, d, true, -w, w, C, s->F);
    b->n++; /* a gate's bias: the row's samples */
    add_in(b, d, g, -1, 1, s->F, 0);
    add_in(b, d, g, -1, 1, C, 0);
  }
}

static void drop_all(pl_tensor **t, int n) {
  for (int j = 0; j < n; j++) {
    pl_tensor_unref(t[j]);
    t[j] = NULL;
  }
}

/* out[0] = the result, out[1 + j] = the gradient of input j for a fixed gradient of the result,
 * by the row or by its twin. */
static pl_status run(block *b, bool twin, pl_tensor **out) {
  memset(out, 0, (SLOTS + 1) * sizeof *out);
  pl_tensor *y = NULL;
  pl_tensor *g = NULL;
  if (twin) {
    pl_call k = {.op = b->op, .in = b->in, .n_in = b->n, .args = b->args};
    PL_TRY(b->op->twin(ctx(), &k));
    y = k.out[0];
  } else {
    PL_TRY(pl_apply(ctx(), b->op, b->in, b->n, &b->args, &y));
  }
  pl_status st = pl_sample(ctx(), y->dtype, 99, -1, 1, false, 2, y->shape, &g);
  if (st == PL_OK) {
    st = pl_backward(ctx(), y, g);
  }
  pl_tensor_unref(g);
  out[0] = y;
  for (int j = 0; j < b->n; j++) {
    if (b->in[j] != NULL) {
      out[1 + j] = b->in[j]->grad;
      b->in[j]->grad = NULL;
    }
  }
  if (st != PL_OK) {
    drop_all(out, SLOTS + 1);
  }
  return st;
}

/* |a - b| / |b|, by the root of the sums of squares */
static double distance(const pl_tensor *a, const pl_tensor *b) {
  double far = 0;
  double all = 0;
  int64_t i[PL_MAX_DIMS] = {0};
  do {
    const double d = pl_get(a, i) - pl_get(b, i);
    far += d * d;
    all += pl_get(b, i) * pl_get(b, i);
  } while (pl_next(a, i));
  return all > 0 ? sqrt(far / all) : sqrt(far);
}

static void compare(const block *b, int which, const char *mode, pl_tensor *const *got,
                    pl_tensor *const *want, double tol) {
  for (int j = 0; j <= b->n; j++) {
    if ((got[j] == NULL) != (want[j] == NULL)) {
      FAIL("%s shape %d (%s): result %d is there once", b->op->name, which, mode, j);
    } else if (got[j] != NULL) {
      CHECK(got[j]->dtype == b->in[0]->dtype);
      const double d = distance(got[j], want[j]);
      if (!(d <= tol)) {
        FAIL("%s shape %d (%s): %s %d is %.3g away", b->op->name, which, mode,
             j == 0 ? "result" : "gradient of input", j, d);
      }
    }
  }
}

/* A gradient that is a difference of nearly equal sums has no digits left to compare: that of
 * the keys' bias is 0 (softmax does not see what all keys share), and with one token in a
 * sequence those of queries and keys are, too. */
static void drop_cancelled(const block *b, const shape *s, pl_tensor **t) {
  if (b->op == &pl_op_attention_block) {
    for (int j = 3; j <= 8; j++) {
      if (j == 8 || (s->N == s->S && j != 5 && j != 6)) {
        pl_tensor_unref(t[1 + j]);
        t[1 + j] = NULL;
      }
    }
  }
}

static void check_mode(int which, bool mix, pl_dtype d, bool half, double tol) {
  block b;
  pl_tensor *got[SLOTS + 1];
  pl_tensor *want[SLOTS + 1];
  make(&b, &SIZES[which], d, mix);
  ctx()->bf16 = half;
  CHECK_OK(run(&b, false, got));
  ctx()->bf16 = false;
  CHECK_OK(run(&b, true, want));
  drop_cancelled(&b, &SIZES[which], got);
  drop_cancelled(&b, &SIZES[which], want);
  compare(&b, which, half ? "bf16" : pl_dtypes[d].name, got, want, tol);
  drop_all(got, SLOTS + 1);
  drop_all(want, SLOTS + 1);
  drop_all(b.in, SLOTS);
}

/* bf16 keeps 8 bits: a rounding is at most 2^-9 of a value, and on the longest way to a
 * gradient there are about ten, whose errors add up like their root: about 1 in 100 together. */
TEST_EACH_ISA(blocks_equal_the_formula) {
  for (int which = 0; which < SHAPES; which++) {
    for (int mix = 0; mix < 2; mix++) {
      check_mode(which, mix != 0, PL_F64, false, 1e-12);
      check_mode(which, mix != 0, PL_F64, true, 1e-12); /* never rounded */
      check_mode(which, mix != 0, PL_F32, false, 2e-6);
      check_mode(which, mix != 0, PL_F32, true, 1.5e-2);
    }
  }
}

static void same_bytes(const block *b, const char *what, pl_tensor *const *x,
                       pl_tensor *const *y) {
  for (int j = 0; j <= b->n; j++) {
    const bool same = x[j] == NULL ? y[j] == NULL
                                   : y[j] != NULL && memcmp(pl_data(x[j]), pl_data(y[j]),
                                                            x[j]->storage->bytes) == 0;
    if (!same) {
      FAIL("%s, %s: other bytes in result %d", b->op->name, what, j);
    }
  }
}

TEST_EACH_ISA(blocks_give_the_same_bytes_on_any_threads_and_when_computed_again) {
  static const int counts[] = {2, 3, 7};
  const shape big[] = {{300, 3, 64, 4, 2, 16, 176, false}, {300, 2, 64, 4, 4, 16, 256, true}};
  const int was = pl_threads();
  for (int k = 0; k < 8; k++) { /* shape, block, precision */
    const bool mix = (k & 2) != 0;
    block b;
    pl_tensor *one[SLOTS + 1];
    pl_tensor *other[SLOTS + 1];
    make(&b, &big[k & 1], PL_F32, mix);
    ctx()->bf16 = (k & 4) != 0;
    pl_set_threads(1);
    CHECK_OK(run(&b, false, one));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
      pl_set_threads(counts[i]);
      CHECK_OK(run(&b, false, other));
      same_bytes(&b, "threads", one, other);
      drop_all(other, SLOTS + 1);
    }
    b.args.i[mix ? CHECKPOINT_MIX : CHECKPOINT_FFN] = 1;
    CHECK_OK(run(&b, false, other));
    same_bytes(&b, "checkpoint", one, other);
    drop_all(other, SLOTS + 1);
    drop_all(one, SLOTS + 1);
    drop_all(b.in, SLOTS);
    ctx()->bf16 = false;
  }
  pl_set_threads(was);
}

/* backward is asked for outside of autocast, as training does: it follows the forward pass */
TEST(blocks_go_back_as_they_went_forward) {
  for (int k = 0; k < 4; k++) {
    const bool mix = (k & 1) != 0;
    block b;
    pl_tensor *y = NULL;
    pl_tensor *g = NULL;
    pl_tensor *want[SLOTS + 1];
    make(&b, &SIZES[0], PL_F32, mix);
    b.args.i[mix ? CHECKPOINT_MIX : CHECKPOINT_FFN] = k / 2;
    ctx()->bf16 = true;
    CHECK_OK(run(&b, false, want));
    CHECK_OK(pl_apply(ctx(), b.op, b.in, b.n, &b.args, &y));
    ctx()->bf16 = false;
    CHECK_OK(pl_sample(ctx(), PL_F32, 99, -1, 1, false, 2, y->shape, &g));
    CHECK_OK(pl_backward(ctx(), y, g));
    CHECK(memcmp(pl_data(b.in[0]->grad), pl_data(want[1]), want[1]->storage->bytes) == 0);
    for (int j = 0; j < b.n; j++) {
      if (b.in[j] != NULL) {
        pl_tensor_unref(b.in[j]->grad);
        b.in[j]->grad = NULL;
      }
    }
    pl_tensor_unref(y);
    pl_tensor_unref(g);
    drop_all(want, SLOTS + 1);
    drop_all(b.in, SLOTS);
  }
}

/* bytes that the graph holds on to between forward and backward */
static int64_t held(block *b, bool checkpoint) {
  pl_tensor *y = NULL;
  const int64_t before = ctx()->mem.live;
  b->args.i[b->op == &pl_op_attention_block ? CHECKPOINT_MIX : CHECKPOINT_FFN] = checkpoint;
  CHECK_OK(pl_apply(ctx(), b->op, b->in, b->n, &b->args, &y));
  const int64_t bytes = ctx()->mem.live - before - (int64_t)y->storage->bytes;
  pl_tensor_unref(y);
  return bytes;
}

TEST(blocks_keep_only_what_they_say) {
  const shape s = {256, 2, 64, 4, 2, 16, 192, false};
  block mix;
  block ffn;
  make(&mix, &s, PL_F32, true);
  make(&ffn, &s, PL_F32, false);
  ctx()->bf16 = true;
  /* rows of q|k|v and of attention's output in bf16, a log-sum-exp a head, a statistic */
  const int64_t a = 256 * ((4 + 2 * 2) * 16 * 2 + 4 * 16 * 2 + 4 * 4 + 4);
  const int64_t f = 256 * (2 * 192 * 2 + 4);
  CHECK(held(&mix, false) >= a && held(&mix, false) < a + 4096);
  CHECK(held(&ffn, false) >= f && held(&ffn, false) < f + 4096);
  CHECK(held(&mix, true) < 4096);
  CHECK(held(&ffn, true) < 4096);
  ctx()->grad_enabled = false;
  CHECK(held(&mix, false) < 1024);
  CHECK(held(&ffn, false) < 1024);
  ctx()->grad_enabled = true;
  ctx()->bf16 = false;
  drop_all(mix.in, SLOTS);
  drop_all(ffn.in, SLOTS);
}

static pl_status run_and_drop(void *arg) {
  pl_tensor *out[SLOTS + 1];
  block *b = arg;
  const pl_status st = run(b, false, out);
  for (int j = 0; j < b->n; j++) {
    if (b->in[j] != NULL) { /* of a run that failed half way */
      pl_tensor_unref(b->in[j]->grad);
      b->in[j]->grad = NULL;
    }
  }
  drop_all(out, SLOTS + 1);
  return st;
}

TEST(blocks_survive_each_failing_allocation) {
  const shape s[] = {{9, 2, 8, 2, 1, 4, 6, false}, {9, 2, 8, 2, 2, 4, 6, true}};
  for (int k = 0; k < 8; k++) {
    block b;
    make(&b, &s[k & 1], PL_F32, (k & 2) != 0);
    b.args.i[(k & 2) != 0 ? CHECKPOINT_MIX : CHECKPOINT_FFN] = k / 4;
    ctx()->bf16 = true;
    CHECK(fail_each_alloc(run_and_drop, &b) > 0);
    ctx()->bf16 = false;
    drop_all(b.in, SLOTS);
  }
}

TEST(blocks_say_what_does_not_fit) {
  block b;
  pl_tensor *y = NULL;
  make(&b, &SIZES[0], PL_F32, true);
  b.args.i[1] = 3;
  CHECK_STATUS(pl_apply(ctx(), b.op, b.in, b.n, &b.args, &y), PL_EINVAL);
  CHECK_HAS(ctx()->err, "attention_block: 4 heads and 3 kv_heads do not fit 48 rows of q");
  b.args.i[1] = 4;
  CHECK_STATUS(pl_apply(ctx(), b.op, b.in, b.n, &b.args, &y), PL_EINVAL);
  CHECK_HAS(ctx()->err, "k is [24, 48], wanted [48, 48]");
  b.args.i[1] = 2;
  pl_i32(b.in[12])[2] = 149;
  CHECK_STATUS(pl_apply(ctx(), b.op, b.in, b.n, &b.args, &y), PL_EINVAL);
  CHECK_HAS(ctx()->err, "seq runs from 0 to 149");
  pl_i32(b.in[12])[2] = 150;
  const int64_t two = 2;
  CHECK_OK(pl_tensor_new(ctx(), PL_I32, 1, &two, &b.in[13]));
  pl_i32(b.in[13])[0] = -1;
  pl_i32(b.in[13])[1] = 1; /* of itself */
  CHECK_STATUS(pl_apply(ctx(), b.op, b.in, b.n, &b.args, &y), PL_EINVAL);
  CHECK_HAS(ctx()->err, "parent of sequence 2 is 1");
  drop_all(b.in, SLOTS);
  make(&b, &SIZES[0], PL_F32, false);
  pl_tensor_unref(b.in[5]);
  b.in[5] = pl_tensor_ref(b.in[4]);
  CHECK_STATUS(pl_apply(ctx(), b.op, b.in, b.n, &b.args, &y), PL_EINVAL);
  CHECK_HAS(ctx()->err, "ffn_block: down is [100, 48], wanted [48, 100]");
  drop_all(b.in, SLOTS);
}
