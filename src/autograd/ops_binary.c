/* Rows: arithmetic and comparison of two tensors, with broadcasting and
 * promotion (bool < i32 < i64 < bf16 < f32 < f64; a float wins). */
#include <math.h>

#include "autograd/opkit.h"
#include "tensor/iter.h"

/* ---- arithmetic -------------------------------------------------------------- */

static pl_status forward(pl_ctx *c, pl_call *k, pl_binary_code op) {
  PL_TRY(pl_raw_binary(c, op, k->in[0], k->in[1], &k->out[0]));
  k->n_out = 1;
  bool ga = k->in[0]->requires_grad;
  bool gb = k->in[1]->requires_grad;
  switch (op) { /* keep an operand only where the other's gradient reads it */
    case PL_B_ADD:
    case PL_B_SUB: k->drop_in = 3; break;
    case PL_B_MUL: k->drop_in = (gb ? 0 : 1) | (ga ? 0 : 2); break;
    case PL_B_DIV: k->drop_in = gb ? 0 : 1; break;
    default: break;
  }
  return PL_OK;
}

typedef struct back_arg {
  pl_binary_code op;
  bool a, b, f64;
} back_arg;

static void back_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  const back_arg *w = arg; /* ptr: ga gb g a b; where one is not wanted its place holds g */
  if (w->f64) {
    pl_binary_back_f64(w->op, n, (double *)ptr[3], s[3], (double *)ptr[4], s[4], (double *)ptr[2],
                       w->a ? (double *)ptr[0] : NULL, w->b ? (double *)ptr[1] : NULL);
  } else {
    pl_binary_back_f32(w->op, n, (float *)ptr[3], s[3], (float *)ptr[4], s[4], (float *)ptr[2],
                       w->a ? (float *)ptr[0] : NULL, w->b ? (float *)ptr[1] : NULL);
  }
}

/* the full gradients, in the result's shape */
static pl_status full_back(pl_ctx *c, const pl_node *n, pl_tensor *g, pl_binary_code op,
                           pl_tensor **ga, pl_tensor **gb) {
  back_arg w = {op, pl_node_needs(n, 0), pl_node_needs(n, 1), g->dtype == PL_F64};
  pl_tensor *a = NULL;
  pl_tensor *b = NULL;
  pl_status st = PL_OK;
  if (w.a) {
    st = pl_tensor_like(c, g, ga);
  }
  if (st == PL_OK && w.b) {
    st = pl_tensor_like(c, g, gb);
  }
  /* an operand that was not kept is not read either: g stands in its place */
  if (st == PL_OK) {
    st = pl_as_dtype(c, n->in[0]->storage != NULL ? n->in[0] : g, g->dtype, &a);
  }
  if (st == PL_OK) {
    st = pl_as_dtype(c, n->in[1]->storage != NULL ? n->in[1] : g, g->dtype, &b);
  }
  if (st == PL_OK) {
    pl_iter it;
    pl_iter_init(&it, g->ndim, g->shape);
    pl_iter_add(&it, w.a ? *ga : g);
    pl_iter_add(&it, w.b ? *gb : g);
    pl_iter_add(&it, g);
    pl_iter_add(&it, a);
    pl_iter_add(&it, b);
    pl_iter_run(&it, back_run, &w);
  }
  pl_tensor_unref(a);
  pl_tensor_unref(b);
  return st;
}

static pl_status back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin,
                      pl_binary_code op) {
  pl_tensor *full[2] = {NULL, NULL};
  pl_status st = PL_OK;
  if (op == PL_B_ADD || op == PL_B_SUB) {
    full[0] = pl_tensor_ref(gout[0]);
    if (op == PL_B_ADD) {
      full[1] = pl_tensor_ref(gout[0]);
    } else if (pl_node_needs(n, 1)) {
      st = pl_raw_unary(c, PL_U_NEG, gout[0], &full[1]);
    }
  } else {
    st = full_back(c, n, gout[0], op, &full[0], &full[1]);
  }
  for (int j = 0; j < 2 && st == PL_OK; j++) {
    if (pl_node_needs(n, j)) {
      st = pl_sum_to(c, full[j], n->in[j]->ndim, n->in[j]->shape, &gin[j]);
    }
  }
  pl_tensor_unref(full[0]);
  pl_tensor_unref(full[1]);
  return st;
}

static double slow_f(pl_binary_code op, double u, double v) {
  switch (op) {
    case PL_B_ADD: return u + v;
    case PL_B_SUB: return u - v;
    case PL_B_MUL: return u * v;
    case PL_B_DIV: return u / v;
    case PL_B_POW: return pow(u, v);
    case PL_B_MAX: return fmax(u, v);
    case PL_B_MIN: return fmin(u, v);
  }
  return NAN;
}

static bool slow_test(pl_compare_code op, double u, double v) {
  switch (op) {
    case PL_C_EQ: return u == v;
    case PL_C_NE: return !(u == v);
    case PL_C_LT: return u < v;
    case PL_C_LE: return u <= v;
    case PL_C_GT: return v < u;
    case PL_C_GE: return v <= u;
  }
  return false;
}

static pl_status twin(pl_ctx *c, pl_call *k, pl_binary_code op) {
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  PL_TRY(pl_broadcast(c, k->in[0], k->in[1], &ndim, shape));
  PL_TRY(pl_tensor_new(c, k->in[0]->dtype, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) > 0) {
    do {
      pl_set(k->out[0], i,
             slow_f(op, pl_get_broadcast(k->in[0], ndim, i), pl_get_broadcast(k->in[1], ndim, i)));
    } while (pl_next(k->out[0], i));
  }
  return PL_OK;
}

typedef struct pair_shape {
  int na, nb;
  int64_t a[4], b[4];
  bool gaps;
} pair_shape;

static const pair_shape pairs[] = {
    {2, 2, {2, 3}, {2, 3}, false},       {2, 1, {2, 3}, {3}, false},
    {2, 2, {3, 1}, {1, 4}, false},       {0, 2, {0}, {2, 2}, false},
    {2, 0, {2, 3}, {0}, false},          {3, 3, {3, 2, 4}, {3, 2, 4}, true},
    {2, 1, {0, 3}, {3}, false},          {3, 2, {2, 1, 3}, {4, 1}, true},
    {0, 0, {0}, {0}, false},             {2, 2, {2, 67}, {2, 1}, false},
};

static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k, double lo, double hi) {
  if (which >= (int)(sizeof pairs / sizeof pairs[0])) {
    return pl_no_more(c);
  }
  const pair_shape *p = &pairs[which];
  k->n_in = 2;
  PL_TRY(pl_sample(c, d, 10 + which, lo, hi, p->gaps, p->na, p->a, &k->in[0]));
  return pl_sample(c, d, 30 + which, lo, hi, p->gaps, p->nb, p->b, &k->in[1]);
}

#define BINARY(ID, CODE, LO, HI, LINKAGE, DOC)                                                \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                      \
    return forward(c, k, CODE);                                                               \
  }                                                                                           \
  static pl_status ID##_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,             \
                             pl_tensor **gin) {                                               \
    return back(c, n, gout, gin, CODE);                                                       \
  }                                                                                           \
  static pl_status ID##_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {                \
    return sample(c, which, d, k, LO, HI);                                                    \
  }                                                                                           \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                         \
    return twin(c, k, CODE);                                                                  \
  }                                                                                           \
  LINKAGE const pl_op pl_op_##ID = {                                                          \
      #ID,          "a: tensor, b: tensor", "Tensor",    DOC,      PL_OP_METHOD,              \
      ID##_forward, ID##_back,              ID##_sample, ID##_twin};

BINARY(add, PL_B_ADD, -2, 2, , "a + b with broadcasting.")
BINARY(sub, PL_B_SUB, -2, 2, , "a - b with broadcasting.")
BINARY(mul, PL_B_MUL, -2, 2, , "a * b, element by element, with broadcasting.")
BINARY(div, PL_B_DIV, 0.4, 2, static,
       "a / b, element by element, with broadcasting; integers give f32.")
BINARY(pow, PL_B_POW, 0.4, 2, static, "a to the power b, element by element, with broadcasting.")
BINARY(maximum, PL_B_MAX, -2, 2, static,
       "The larger of a and b, element by element; NaN if either is, a tie shares the gradient.")
BINARY(minimum, PL_B_MIN, -2, 2, static,
       "The smaller of a and b, element by element; NaN if either is, a tie shares the gradient.")

/* ---- comparison ---------------------------------------------------------------- */

static void compare_f32(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_compare_f32(*(pl_compare_code *)arg, n, (float *)ptr[1], s[1], (float *)ptr[2], s[2],
                 (uint8_t *)ptr[0]);
}

static void compare_f64(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_compare_f64(*(pl_compare_code *)arg, n, (double *)ptr[1], s[1], (double *)ptr[2], s[2],
                 (uint8_t *)ptr[0]);
}

static void compare_i64(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  pl_compare_code op = *(pl_compare_code *)arg;
  uint8_t *y = (uint8_t *)ptr[0];
  for (int64_t k = 0; k < n; k++) {
    int64_t u = ((const int64_t *)ptr[1])[k * s[1]];
    int64_t v = ((const int64_t *)ptr[2])[k * s[2]];
    switch (op) {
      case PL_C_EQ: y[k] = u == v; break;
      case PL_C_NE: y[k] = u != v; break;
      case PL_C_LT: y[k] = u < v; break;
      case PL_C_LE: y[k] = u <= v; break;
      case PL_C_GT: y[k] = u > v; break;
      case PL_C_GE: y[k] = u >= v; break;
    }
  }
}

static pl_status compare(pl_ctx *c, pl_call *k, pl_compare_code op) {
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  PL_TRY(pl_broadcast(c, k->in[0], k->in[1], &ndim, shape));
  pl_dtype want = pl_promote(k->in[0]->dtype, k->in[1]->dtype);
  pl_dtype d = pl_dtypes[want].is_float ? pl_float_of(want) : PL_I64;
  pl_tensor *a = NULL;
  pl_tensor *b = NULL;
  pl_status st = pl_as_dtype(c, k->in[0], d, &a);
  if (st == PL_OK) {
    st = pl_as_dtype(c, k->in[1], d, &b);
  }
  if (st == PL_OK) {
    st = pl_tensor_new(c, PL_BOOL, ndim, shape, &k->out[0]);
    k->n_out = 1;
  }
  if (st == PL_OK) {
    pl_iter it;
    pl_iter_init(&it, ndim, shape);
    pl_iter_add(&it, k->out[0]);
    pl_iter_add(&it, a);
    pl_iter_add(&it, b);
    pl_iter_run(&it, d == PL_F64 ? compare_f64 : d == PL_F32 ? compare_f32 : compare_i64, &op);
  }
  pl_tensor_unref(a);
  pl_tensor_unref(b);
  return st;
}

static pl_status compare_twin(pl_ctx *c, pl_call *k, pl_compare_code op) {
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  PL_TRY(pl_broadcast(c, k->in[0], k->in[1], &ndim, shape));
  PL_TRY(pl_tensor_new(c, PL_BOOL, ndim, shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(k->out[0]) > 0) {
    do {
      pl_set(k->out[0], i, slow_test(op, pl_get_broadcast(k->in[0], ndim, i),
                                     pl_get_broadcast(k->in[1], ndim, i)));
    } while (pl_next(k->out[0], i));
  }
  return PL_OK;
}

/* few different values, so that equal ones occur */
static pl_status compare_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  PL_TRY(sample(c, which, d, k, 0, 1));
  for (int j = 0; j < 2; j++) {
    int64_t i[PL_MAX_DIMS] = {0};
    if (pl_numel(k->in[j]) > 0) {
      do {
        pl_set(k->in[j], i, floor(3 * pl_get(k->in[j], i)));
      } while (pl_next(k->in[j], i));
    }
  }
  return PL_OK;
}

#define COMPARE(ID, CODE, DOC)                                                               \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                     \
    return compare(c, k, CODE);                                                              \
  }                                                                                          \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                        \
    return compare_twin(c, k, CODE);                                                         \
  }                                                                                          \
  static const pl_op pl_op_##ID = {#ID,                                                      \
                                   "a: tensor, b: tensor",                                   \
                                   "Tensor",                                                 \
                                   DOC,                                                      \
                                   PL_OP_METHOD | PL_OP_NO_F64,                              \
                                   ID##_forward,                                             \
                                   NULL,                                                     \
                                   compare_sample,                                           \
                                   ID##_twin};

COMPARE(eq, PL_C_EQ, "true where a equals b (a bool tensor), with broadcasting.")
COMPARE(ne, PL_C_NE, "true where a differs from b (a bool tensor), with broadcasting.")
COMPARE(lt, PL_C_LT, "true where a < b (a bool tensor), with broadcasting.")
COMPARE(le, PL_C_LE, "true where a <= b (a bool tensor), with broadcasting.")
COMPARE(gt, PL_C_GT, "true where a > b (a bool tensor), with broadcasting.")
COMPARE(ge, PL_C_GE, "true where a >= b (a bool tensor), with broadcasting.")

const pl_op *const pl_ops_binary[] = {
    &pl_op_add, &pl_op_sub, &pl_op_mul, &pl_op_div, &pl_op_pow, &pl_op_maximum, &pl_op_minimum,
    &pl_op_eq,  &pl_op_ne,  &pl_op_lt,  &pl_op_le,  &pl_op_gt,  &pl_op_ge,      NULL};
