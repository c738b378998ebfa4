/* The tape: what is kept, what is freed, what is refused. */
#include "harness.h"

#include "autograd/inplace.h"
#include "autograd/op.h"
#include "autograd/opkit.h"
#include "tensor/fill.h"

static pl_tensor *full(double v, bool grad, int64_t n) {
  pl_tensor *t = NULL;
  CHECK_OK(pl_tensor_new(ctx(), PL_F32, 1, &n, &t));
  pl_fill_value(t, v);
  if (grad) {
    CHECK_OK(pl_set_requires_grad(ctx(), t, true));
  }
  return t;
}

static pl_tensor *op1(const char *name, pl_tensor *x) {
  pl_tensor *y = NULL;
  CHECK_OK(pl_apply(ctx(), pl_op_find(name), &x, 1, NULL, &y));
  return y;
}

static pl_tensor *op2(const char *name, pl_tensor *a, pl_tensor *b) {
  pl_tensor *y = NULL;
  CHECK_OK(pl_apply(ctx(), pl_op_find(name), (pl_tensor *[]){a, b}, 2, NULL, &y));
  return y;
}

static pl_tensor *total(pl_tensor *x) {
  pl_tensor *y = NULL;
  CHECK_OK(pl_apply(ctx(), &pl_op_sum, &x, 1, &(pl_args){.n_i = 1}, &y));
  return y;
}

static double item(const pl_tensor *t) {
  const int64_t zero[PL_MAX_DIMS] = {0};
  return pl_get(t, zero);
}

TEST(a_dropped_graph_frees_what_it_saved) {
  pl_tensor *w = full(1, true, 100000);
  int64_t before = ctx()->mem.live;
  pl_tensor *a = op1("exp", w);
  pl_tensor *b = op2("mul", a, w);
  pl_tensor *c = op1("tanh", b);
  pl_tensor_unref(a);
  pl_tensor_unref(b);
  CHECK(ctx()->mem.live > before + 2 * 400000); /* c still holds a through the nodes */
  pl_tensor_unref(c);
  CHECK_INT(ctx()->mem.live, before);
  pl_tensor_unref(w);
}

TEST(backward_frees_the_graph_at_once) {
  pl_tensor *w = full(1, true, 100000);
  int64_t before = ctx()->mem.live;
  pl_tensor *a = op1("exp", w);
  pl_tensor *s = total(a);
  pl_tensor_unref(a);
  CHECK_OK(pl_backward(ctx(), s, NULL));
  CHECK(ctx()->mem.live < before + 400000 + 4000); /* the gradient and a husk of the graph */
  CHECK_NEAR(item(w->grad), exp(1), 1e-5);
  pl_tensor_unref(s);
  pl_tensor_unref(w);
}

/* what an op does not need for its gradient is not kept */
TEST(a_sum_of_sums_keeps_no_values) {
  pl_tensor *w = full(1, true, 100000);
  int64_t before = ctx()->mem.live;
  pl_tensor *x = op1("neg", w);
  for (int k = 0; k < 5; k++) {
    pl_tensor *y = op2("add", x, w);
    pl_tensor_unref(x);
    x = y;
  }
  CHECK(ctx()->mem.live < before + 400000 + 20000);
  pl_tensor *s = total(x);
  CHECK_OK(pl_backward(ctx(), s, NULL));
  CHECK_NEAR(item(w->grad), 4, 0);
  pl_tensor_unref(s);
  pl_tensor_unref(x);
  pl_tensor_unref(w);
}

TEST(a_chain_of_a_million_nodes) {
  int n = quick_mode() ? 100000 : 1000000;
  for (int with_backward = 0; with_backward < 2; with_backward++) {
    pl_tensor *w = full(1, true, 1);
    pl_tensor *x = op1("neg", w);
    for (int k = 1; k < n; k++) {
      pl_tensor *y = NULL;
      if (pl_apply(ctx(), pl_op_find("neg"), &x, 1, NULL, &y) != PL_OK) {
        FAIL("%s", ctx()->err);
        break;
      }
      pl_tensor_unref(x);
      x = y;
    }
    if (with_backward) {
      CHECK_OK(pl_backward(ctx(), x, NULL));
      CHECK_NEAR(item(w->grad), 1, 0);
    }
    pl_tensor_unref(x); /* must not recurse */
    pl_tensor_unref(w);
  }
}

TEST(diamonds_and_shared_parts_add_up) {
  pl_tensor *w = full(0.5, true, 1);
  pl_tensor *a = op1("exp", w);     /* e^w */
  pl_tensor *b = op2("mul", a, a);  /* e^2w, one input twice */
  pl_tensor *c = op2("add", a, b);
  pl_tensor *d = op2("mul", c, a);  /* e^2w + e^3w */
  CHECK_OK(pl_backward(ctx(), d, NULL));
  CHECK_NEAR(item(w->grad), 2 * exp(1) + 3 * exp(1.5), 1e-4);
  pl_tensor *all[] = {w, a, b, c, d};
  for (int k = 0; k < 5; k++) {
    pl_tensor_unref(all[k]);
  }
}

/* a wide, deep ladder: each node is visited once, not once a path */
TEST(a_ladder_is_walked_once) {
  pl_tensor *w = full(1, true, 1);
  pl_tensor *x = op1("neg", w);
  pl_tensor *half = full(0.5, false, 1);
  for (int k = 0; k < 200; k++) {
    pl_tensor *twice = op2("add", x, x);
    pl_tensor *y = op2("mul", twice, half);
    pl_tensor_unref(twice);
    pl_tensor_unref(x);
    x = y;
  }
  CHECK_OK(pl_backward(ctx(), x, NULL));
  CHECK_NEAR(item(w->grad), -1, 0);
  pl_tensor_unref(x);
  pl_tensor_unref(half);
  pl_tensor_unref(w);
}

TEST(leaf_gradients_accumulate_in_the_same_tensor) {
  pl_tensor *w = full(2, true, 3);
  pl_tensor *held = NULL;
  for (int k = 1; k <= 3; k++) {
    pl_tensor *y = op2("mul", w, w);
    pl_tensor *s = total(y);
    CHECK_OK(pl_backward(ctx(), s, NULL));
    CHECK_NEAR(item(w->grad), 4 * k, 0);
    CHECK(held == NULL || held == w->grad); /* who holds it sees the sum */
    held = w->grad;
    pl_tensor_unref(y);
    pl_tensor_unref(s);
  }
  pl_tensor_unref(w);
}

/* the first gradient is taken over: it must not be shared with anything */
TEST(gradients_of_two_leaves_are_separate) {
  pl_tensor *a = full(1, true, 4);
  pl_tensor *b = full(1, true, 4);
  pl_tensor *y = op2("add", a, b);
  pl_tensor *g = full(3, false, 4);
  CHECK_OK(pl_backward(ctx(), y, g));
  CHECK(a->grad->storage != b->grad->storage && a->grad->storage != g->storage);
  CHECK_OK(pl_fill(a->grad, 9));
  CHECK_NEAR(item(b->grad), 3, 0);
  CHECK_NEAR(item(g), 3, 0);
  pl_tensor *all[] = {a, b, y, g};
  for (int k = 0; k < 4; k++) {
    pl_tensor_unref(all[k]);
  }
}

TEST(a_second_backward_is_refused) {
  pl_tensor *w = full(1, true, 1);
  pl_tensor *a = op1("exp", w);
  pl_tensor *b = op1("neg", a);
  pl_tensor *c = op1("tanh", a);
  CHECK_OK(pl_backward(ctx(), b, NULL));
  double g = item(w->grad);
  CHECK_STATUS(pl_backward(ctx(), b, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "the graph was already used");
  CHECK_STATUS(pl_backward(ctx(), c, NULL), PL_EINVAL); /* shares the exp */
  CHECK_HAS(ctx()->err, "exp");
  CHECK_NEAR(item(w->grad), g, 0); /* refused before anything was added */
  pl_tensor *all[] = {w, a, b, c};
  for (int k = 0; k < 4; k++) {
    pl_tensor_unref(all[k]);
  }
}

TEST(a_changed_input_is_noticed) {
  pl_tensor *w = full(1, true, 2);
  pl_tensor *x = full(3, false, 2);
  pl_tensor *one = full(1, false, 1);
  pl_tensor *y = op2("mul", w, x);
  pl_tensor *s = total(y);
  CHECK_OK(pl_inplace_run(ctx(), pl_inplace_find("add_"), x, one, NULL));
  CHECK_STATUS(pl_backward(ctx(), s, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "input 2 of mul was modified in place");
  CHECK(w->grad == NULL);
  pl_tensor_unref(y);
  pl_tensor_unref(s);

  y = op1("exp", w); /* keeps its result */
  s = total(y);
  ctx()->grad_enabled = false;
  CHECK_OK(pl_inplace_run(ctx(), pl_inplace_find("zero_"), y, NULL, NULL));
  ctx()->grad_enabled = true;
  CHECK_STATUS(pl_backward(ctx(), s, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "the result of exp was modified in place");
  pl_tensor_unref(y);
  pl_tensor_unref(s);

  y = op2("add", w, x); /* needs no values: may be changed */
  s = total(y);
  CHECK_OK(pl_inplace_run(ctx(), pl_inplace_find("zero_"), x, NULL, NULL));
  CHECK_OK(pl_backward(ctx(), s, NULL));
  CHECK_NEAR(item(w->grad), 1, 0);
  pl_tensor *all[] = {w, x, one, y, s};
  for (int k = 0; k < 5; k++) {
    pl_tensor_unref(all[k]);
  }
}

TEST(in_place_rules) {
  pl_tensor *w = full(1, true, 2);
  pl_tensor *x = full(1, false, 2);
  const pl_inplace *add = pl_inplace_find("add_");
  CHECK_STATUS(pl_inplace_run(ctx(), add, w, x, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "add_: a leaf that requires grad");
  CHECK_STATUS(pl_inplace_run(ctx(), add, x, w, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "gradient of the operand would be lost");
  pl_tensor *y = op1("exp", w);
  CHECK_STATUS(pl_inplace_run(ctx(), add, y, x, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "a recorded result");
  ctx()->grad_enabled = false;
  CHECK_OK(pl_inplace_run(ctx(), add, w, x, NULL));
  CHECK_NEAR(item(w), 2, 0);
  ctx()->grad_enabled = true;
  pl_tensor *wide = NULL;
  CHECK_OK(pl_apply(ctx(), pl_op_find("expand"), &x, 1, &(pl_args){.i = {3, 2}, .n_i = 2}, &wide));
  CHECK_STATUS(pl_inplace_run(ctx(), add, wide, x, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "expanded view");
  pl_tensor *all[] = {w, x, y, wide};
  for (int k = 0; k < 4; k++) {
    pl_tensor_unref(all[k]);
  }
}

TEST(in_place_methods_compute) {
  pl_tensor *x = full(3, false, 4);
  pl_tensor *b = full(2, false, 1);
  const struct {
    const char *name;
    bool operand;
    pl_args args;
    double want;
  } rows[] = {{"add_", true, {.f = {1}}, 5},      {"sub_", true, {.f = {0.5}}, 4},
              {"mul_", true, {.f = {0}}, 8},      {"div_", true, {.f = {0}}, 4},
              {"pow_", true, {.f = {0}}, 16},     {"clamp_", false, {.f = {-1, 7}}, 7},
              {"copy_", true, {.f = {0}}, 2},     {"fill_", false, {.f = {-4}}, -4},
              {"masked_fill_", true, {.f = {6}}, 6}, {"zero_", false, {.f = {0}}, 0}};
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    uint32_t version = x->storage->version;
    CHECK_OK(pl_inplace_run(ctx(), pl_inplace_find(rows[k].name), x, rows[k].operand ? b : NULL,
                            &rows[k].args));
    for (int64_t i = 0; i < 4; i++) {
      CHECK_NEAR(pl_get(x, &i), rows[k].want, 0);
    }
    CHECK(x->storage->version != version);
  }
  CHECK_STATUS(pl_inplace_run(ctx(), pl_inplace_find("add_"), b, x, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "add_: [1] cannot be changed in place by [4]");
  pl_tensor_unref(x);
  pl_tensor_unref(b);
}

TEST(nothing_is_recorded_without_need) {
  pl_tensor *w = full(1, true, 2);
  pl_tensor *x = full(1, false, 2);
  pl_tensor *y = op2("mul", x, x);
  CHECK(!y->requires_grad && y->node == NULL);
  ctx()->grad_enabled = false;
  pl_tensor *z = op2("mul", w, w);
  ctx()->grad_enabled = true;
  CHECK(!z->requires_grad && z->node == NULL);
  pl_tensor *d = op1("detach", w);
  CHECK(!d->requires_grad && d->storage == w->storage);
  CHECK_STATUS(pl_backward(ctx(), z, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "does not depend on anything that requires a gradient");
  pl_tensor *all[] = {w, x, y, z, d};
  for (int k = 0; k < 5; k++) {
    pl_tensor_unref(all[k]);
  }
}

/* the value of x was not kept for w, which wanted no gradient when y was computed */
TEST(a_leaf_marked_later_joins_no_graph) {
  pl_tensor *a = full(3, true, 2);
  pl_tensor *w = full(2, false, 2);
  pl_tensor *one = full(1, false, 2);
  pl_tensor *x = op2("mul", a, one);
  pl_tensor *y = op2("mul", x, w);
  pl_tensor *s = total(y);
  CHECK_OK(pl_set_requires_grad(ctx(), w, true));
  CHECK_OK(pl_backward(ctx(), s, NULL));
  CHECK(w->grad == NULL);
  REQUIRE(a->grad != NULL);
  CHECK(item(a->grad) == 2);
  pl_tensor *all[] = {a, w, one, x, y, s};
  for (int k = 0; k < 6; k++) {
    pl_tensor_unref(all[k]);
  }
}

TEST(backward_checks_its_gradient) {
  pl_tensor *w = full(1, true, 2);
  pl_tensor *y = op1("exp", w);
  pl_tensor *g = full(1, false, 3);
  CHECK_STATUS(pl_backward(ctx(), y, NULL), PL_EINVAL);
  CHECK_HAS(ctx()->err, "[2] needs a gradient");
  CHECK_STATUS(pl_backward(ctx(), y, g), PL_EINVAL);
  CHECK_HAS(ctx()->err, "[3]");
  CHECK(w->grad == NULL && y->grad == NULL);
  pl_tensor *i = NULL;
  CHECK_OK(pl_tensor_new(ctx(), PL_I64, 1, PL_SHAPE(3), &i));
  CHECK_STATUS(pl_set_requires_grad(ctx(), i, true), PL_EINVAL);
  CHECK_STATUS(pl_set_requires_grad(ctx(), y, true), PL_EINVAL);
  CHECK_HAS(ctx()->err, "only leaves");
  pl_tensor *all[] = {w, y, g, i};
  for (int k = 0; k < 4; k++) {
    pl_tensor_unref(all[k]);
  }
}

/* positions handed out with a result may be changed; the gradient does not care */
TEST(positions_are_the_callers_own) {
  pl_tensor *w = NULL;
  CHECK_OK(pl_tensor_new(ctx(), PL_F32, 1, PL_SHAPE(6), &w));
  pl_fill_range(w, 0, 1);
  CHECK_OK(pl_set_requires_grad(ctx(), w, true));
  for (int k = 0; k < 2; k++) {
    pl_tensor *out[PL_OP_MAX_OUT] = {NULL};
    pl_args by_dim = {.i = {0, 0}, .n_i = 2};
    pl_args top = {.i = {2, 0, 1}, .n_i = 3};
    CHECK_OK(pl_apply(ctx(), pl_op_find(k == 0 ? "max" : "topk"), &w, 1, k == 0 ? &by_dim : &top,
                      out));
    REQUIRE(out[1] != NULL);
    CHECK(!out[1]->requires_grad);
    CHECK_OK(pl_fill(out[1], 1));
    pl_tensor *s = total(out[0]);
    CHECK_OK(pl_backward(ctx(), s, NULL));
    int64_t last = 5;
    CHECK_NEAR(pl_get(w->grad, &last), k + 1, 0);
    pl_tensor_unref(s);
    pl_tensor_unref(out[0]);
    pl_tensor_unref(out[1]);
  }
  pl_tensor_unref(w);
}

TEST(an_interrupt_stops_forward_and_backward) {
  pl_tensor *w = full(1, true, 2);
  pl_tensor *y = op1("exp", w);
  pl_tensor *s = total(y);
  pl_tensor *z = NULL;
  pl_interrupt_set();
  CHECK_STATUS(pl_apply(ctx(), pl_op_find("exp"), &w, 1, NULL, &z), PL_EINTR);
  CHECK_STATUS(pl_backward(ctx(), s, NULL), PL_EINTR);
  pl_interrupt_clear();
  CHECK(w->grad == NULL);
  pl_tensor_unref(w);
  pl_tensor_unref(y);
  pl_tensor_unref(s);
}

TEST(views_pass_gradients_to_their_base) {
  pl_tensor *w = full(1, true, 6);
  pl_tensor *m = NULL;
  pl_tensor *row = NULL;
  CHECK_OK(pl_apply(ctx(), pl_op_find("reshape"), &w, 1, &(pl_args){.i = {2, 3}, .n_i = 2}, &m));
  CHECK(m->storage == w->storage);
  CHECK_OK(pl_apply(ctx(), pl_op_find("select"), &m, 1, &(pl_args){.i = {0, 1}, .n_i = 2}, &row));
  pl_tensor *s = total(row);
  CHECK_OK(pl_backward(ctx(), s, NULL));
  for (int64_t k = 0; k < 6; k++) {
    CHECK_NEAR(pl_get(w->grad, &k), k >= 3, 0);
  }
  pl_tensor *all[] = {w, m, row, s};
  for (int k = 0; k < 4; k++) {
    pl_tensor_unref(all[k]);
  }
}
