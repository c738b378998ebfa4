/* Changes in place, see inplace.h. */
#include "autograd/inplace.h"

#include <string.h>

#include "autograd/opkit.h"

static pl_status scaled_into(pl_ctx *c, pl_binary_code op, pl_tensor *x, const pl_tensor *b,
                             double alpha) {
  if (alpha == 1) {
    return pl_raw_binary_into(c, op, x, b);
  }
  pl_tensor *part;
  PL_TRY(pl_raw_scale(c, b, alpha, &part));
  pl_status st = pl_raw_binary_into(c, op, x, part);
  pl_tensor_unref(part);
  return st;
}

static pl_status add_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  return scaled_into(c, PL_B_ADD, x, b, a->f[0]);
}

static pl_status sub_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  return scaled_into(c, PL_B_SUB, x, b, a->f[0]);
}

static pl_status mul_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)a;
  return pl_raw_binary_into(c, PL_B_MUL, x, b);
}

static pl_status div_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)a;
  if (!pl_dtypes[x->dtype].is_float) {
    return pl_fail(c, PL_EINVAL, "a quotient does not fit into %s; use x = x / b",
                   pl_dtypes[x->dtype].name);
  }
  return pl_raw_binary_into(c, PL_B_DIV, x, b);
}

static pl_status pow_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)a;
  return pl_raw_binary_into(c, PL_B_POW, x, b);
}

static pl_status zero_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)c;
  (void)b;
  (void)a;
  return pl_fill(x, 0);
}

static pl_status fill_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)c;
  (void)b;
  return pl_fill(x, a->f[0]);
}

static pl_status copy_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)a;
  return pl_tensor_copy(c, x, b);
}

static pl_status clamp_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  (void)b;
  if (!(a->f[0] <= a->f[1])) {
    return pl_fail(c, PL_EINVAL, "min %g is above max %g", a->f[0], a->f[1]);
  }
  pl_tensor *y;
  PL_TRY(pl_raw_clamp(c, x, a->f[0], a->f[1], &y));
  pl_status st = pl_tensor_copy(c, x, y);
  pl_tensor_unref(y);
  return st;
}

static pl_status masked_fill_in(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *a) {
  pl_tensor *in[2] = {x, (pl_tensor *)b};
  pl_tensor *y = NULL;
  PL_TRY(pl_apply(c, pl_op_find("masked_fill"), in, 2, a, &y));
  pl_status st = pl_tensor_copy(c, x, y);
  pl_tensor_unref(y);
  return st;
}

const pl_inplace pl_inplace_rows[] = {
    {"add_", "x: tensor, b: tensor, alpha: num = 1", "x <- x + alpha * b.", add_in},
    {"sub_", "x: tensor, b: tensor, alpha: num = 1", "x <- x - alpha * b.", sub_in},
    {"mul_", "x: tensor, b: tensor", "x <- x * b.", mul_in},
    {"div_", "x: tensor, b: tensor", "x <- x / b.", div_in},
    {"pow_", "x: tensor, b: tensor", "x <- x ^ b.", pow_in},
    {"zero_", "x: tensor", "Every element <- 0.", zero_in},
    {"fill_", "x: tensor, value: num", "Every element <- value.", fill_in},
    {"copy_", "x: tensor, b: tensor", "x <- the values of b, converted and broadcast.", copy_in},
    {"clamp_", "x: tensor, min: num = -inf, max: num = inf", "x <- x cut to [min, max].", clamp_in},
    {"masked_fill_", "x: tensor, b: mask, value: num", "x <- value where the mask b is true.",
     masked_fill_in},
    {NULL, NULL, NULL, NULL}};

const pl_inplace *pl_inplace_find(const char *name) {
  for (const pl_inplace *r = pl_inplace_rows; r->name != NULL; r++) {
    if (strcmp(r->name, name) == 0) {
      return r;
    }
  }
  return NULL;
}

pl_status pl_inplace_run(pl_ctx *c, const pl_inplace *row, pl_tensor *x, const pl_tensor *b,
                         const pl_args *args) {
  PL_TRY(pl_check_interrupt(c));
  PL_TRY(pl_inplace_check(c, row->name, x));
  if (b != NULL && b->requires_grad && c->grad_enabled) {
    return pl_fail(c, PL_EINVAL,
                   "%s: the gradient of the operand would be lost; write x = x:op(b), or use "
                   "b:detach()",
                   row->name);
  }
  static const pl_args none = {.f = {1}};
  pl_status st = row->fn(c, x, b, args != NULL ? args : &none);
  return st == PL_OK ? PL_OK : pl_fail_in(c, st, "%s", row->name);
}

pl_status pl_equal(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, bool *out) {
  *out = false;
  if (!pl_same_shape(a, b)) {
    return PL_OK;
  }
  pl_tensor *in[2] = {(pl_tensor *)a, (pl_tensor *)b};
  pl_tensor *same = NULL;
  PL_TRY(pl_apply(c, pl_op_find("eq"), in, 2, NULL, &same));
  size_t n = (size_t)pl_numel(same);
  *out = n == 0 || memchr(pl_data(same), 0, n) == NULL;
  pl_tensor_unref(same);
  return PL_OK;
}
