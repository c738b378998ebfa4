/* Rows: functions of one tensor, element by element. Gradients come from the
 * result where that is cheaper (pl_unary_keeps_result), else from the input. */
#include <math.h>

#include "autograd/opkit.h"
#include "tensor/iter.h"

/* ---- the family f(x) -------------------------------------------------------- */

static bool is_flat(pl_unary_code op) {
  return op == PL_U_SIGN || op == PL_U_FLOOR || op == PL_U_ROUND;
}

static pl_status forward(pl_ctx *c, pl_call *k, pl_unary_code op) {
  PL_TRY(pl_raw_unary(c, op, k->in[0], &k->out[0]));
  k->n_out = 1;
  if (k->needs_grad && pl_unary_keeps_result(op)) {
    k->saved[0] = pl_tensor_ref(k->out[0]);
    k->drop_in = 1;
  } else if (op == PL_U_NEG || is_flat(op)) {
    k->drop_in = 1;
  }
  return PL_OK;
}

static pl_status back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout, pl_tensor **gin,
                      pl_unary_code op) {
  pl_tensor *g = gout[0];
  if (op == PL_U_NEG) {
    return pl_raw_unary(c, op, g, &gin[0]);
  }
  if (is_flat(op)) {
    return pl_tensor_zeros(c, g->dtype, g->ndim, g->shape, &gin[0]);
  }
  pl_tensor *s = NULL;
  PL_TRY(pl_dense(c, pl_unary_keeps_result(op) ? n->saved[0] : n->in[0], g->dtype, &s));
  pl_status st = pl_tensor_like(c, g, &gin[0]);
  if (st == PL_OK && g->dtype == PL_F64) {
    pl_unary_back_f64(op, pl_numel(g), pl_data(s), pl_data(g), pl_data(gin[0]));
  } else if (st == PL_OK) {
    pl_unary_back_f32(op, pl_numel(g), pl_data(s), pl_data(g), pl_data(gin[0]));
  }
  pl_tensor_unref(s);
  return st;
}

static double slow_f(pl_unary_code op, double v) {
  switch (op) {
    case PL_U_NEG: return -v;
    case PL_U_EXP: return exp(v);
    case PL_U_LOG: return log(v);
    case PL_U_LOG1P: return log1p(v);
    case PL_U_EXPM1: return expm1(v);
    case PL_U_SQRT: return sqrt(v);
    case PL_U_RSQRT: return pow(v, -0.5);
    case PL_U_ABS: return fabs(v);
    case PL_U_SIGN: return v > 0 ? 1 : v < 0 ? -1 : 0;
    case PL_U_SIN: return sin(v);
    case PL_U_COS: return cos(v);
    case PL_U_TANH: return tanh(v);
    case PL_U_SIGMOID: return 1 / (1 + exp(-v));
    case PL_U_SOFTPLUS: return log1p(exp(v));
    case PL_U_LOG_SIGMOID: return -log1p(exp(-v));
    case PL_U_RELU: return fmax(v, 0);
    case PL_U_GELU: return v * 0.5 * erfc(-v / sqrt(2));
    case PL_U_SILU: return v / (1 + exp(-v));
    case PL_U_SQUARE: return v * v;
    case PL_U_RECIPROCAL: return 1 / v;
    case PL_U_FLOOR: return floor(v);
    case PL_U_ROUND: return nearbyint(v);
  }
  return NAN;
}

static pl_status twin(pl_ctx *c, pl_call *k, pl_unary_code op) {
  const pl_tensor *x = k->in[0];
  PL_TRY(pl_tensor_like(c, x, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(x) > 0) {
    do {
      pl_set(k->out[0], i, slow_f(op, pl_get(x, i)));
    } while (pl_next(x, i));
  }
  return PL_OK;
}

/* ranges: where f is defined and its slope moderate */
static pl_status sample(pl_ctx *c, int which, pl_dtype d, pl_call *k, double lo, double hi) {
  k->n_in = 1;
  switch (which) {
    case 0: return pl_sample(c, d, 1, lo, hi, false, 2, PL_SHAPE(2, 3), &k->in[0]);
    case 1: return pl_sample(c, d, 2, lo, hi, false, 0, NULL, &k->in[0]);
    case 2: return pl_sample(c, d, 3, lo, hi, true, 3, PL_SHAPE(3, 2, 4), &k->in[0]);
    case 3: return pl_sample(c, d, 4, lo, hi, false, 2, PL_SHAPE(0, 3), &k->in[0]);
    case 4: return pl_sample(c, d, 5, lo, hi, false, 1, PL_SHAPE(521), &k->in[0]);
    case 5: return pl_sample(c, d, 6, lo * 4, hi * 4, true, 2, PL_SHAPE(3, 5), &k->in[0]);
    default: return pl_no_more(c);
  }
}

#define UNARY(ID, CODE, LO, HI, DOC)                                                            \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                        \
    return forward(c, k, CODE);                                                                 \
  }                                                                                             \
  static pl_status ID##_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,               \
                             pl_tensor **gin) {                                                 \
    return back(c, n, gout, gin, CODE);                                                         \
  }                                                                                             \
  static pl_status ID##_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {                  \
    return sample(c, which, d, k, LO, HI);                                                      \
  }                                                                                             \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                           \
    return twin(c, k, CODE);                                                                    \
  }                                                                                             \
  static const pl_op op_##ID = {#ID,         "x: tensor",  "Tensor",    DOC,      PL_OP_METHOD, \
                                ID##_forward, ID##_back, ID##_sample, ID##_twin};

UNARY(neg, PL_U_NEG, -2, 2, "-x, element by element.")
UNARY(exp, PL_U_EXP, -2, 2, "e to the power x, element by element.")
UNARY(log, PL_U_LOG, 0.2, 3, "Natural logarithm, element by element: -inf at 0, NaN below.")
UNARY(log1p, PL_U_LOG1P, -0.2, 2, "log(1 + x), exact for small x.")
UNARY(expm1, PL_U_EXPM1, -2, 2, "exp(x) - 1, exact for small x.")
UNARY(sqrt, PL_U_SQRT, 0.2, 3, "Square root, element by element; NaN below 0.")
UNARY(rsqrt, PL_U_RSQRT, 0.2, 3, "1 / sqrt(x), element by element.")
UNARY(abs, PL_U_ABS, -2, 2, "Absolute value; the gradient at 0 is 0.")
UNARY(sign, PL_U_SIGN, -2, 2, "-1, 0 or 1 by the sign of x; its gradient is 0 everywhere.")
UNARY(sin, PL_U_SIN, -3, 3, "Sine of x in radians.")
UNARY(cos, PL_U_COS, -3, 3, "Cosine of x in radians.")
UNARY(tanh, PL_U_TANH, -2, 2, "Hyperbolic tangent, element by element.")
UNARY(sigmoid, PL_U_SIGMOID, -3, 3, "1 / (1 + exp(-x)), stable for large |x|.")
UNARY(softplus, PL_U_SOFTPLUS, -3, 3,
      "log(1 + exp(x)), stable for large |x|. softplus(-x) is -log_sigmoid(x).")
UNARY(log_sigmoid, PL_U_LOG_SIGMOID, -3, 3, "log(sigmoid(x)), stable for large |x|.")
UNARY(relu, PL_U_RELU, -2, 2, "max(x, 0); the gradient at 0 is 0.")
UNARY(gelu, PL_U_GELU, -2, 2,
      "x times the normal distribution function of x (Hendrycks & Gimpel 2016), exact form.")
UNARY(silu, PL_U_SILU, -3, 3, "x * sigmoid(x) (Elfwing et al. 2017), also called swish.")
UNARY(square, PL_U_SQUARE, -2, 2, "x * x, element by element.")
UNARY(reciprocal, PL_U_RECIPROCAL, 0.3, 2, "1 / x, element by element.")
UNARY(floor, PL_U_FLOOR, -3, 3, "Largest whole number not above x; gradient 0.")
UNARY(round, PL_U_ROUND, -3, 3, "Nearest whole number, halves to the even one; gradient 0.")

/* ---- clamp ------------------------------------------------------------------- */

typedef struct bounds {
  double lo, hi;
  bool f64;
} bounds;

#define CLAMP_LOOP(T)                                                                     \
  do {                                                                                    \
    T *y = (T *)ptr[0];                                                                   \
    const T *x = (const T *)ptr[1];                                                       \
    T lo = (T)b->lo;                                                                      \
    T hi = (T)b->hi;                                                                      \
    for (int64_t i = 0; i < n; i++) {                                                     \
      T v = x[i * s[1]];                                                                  \
      v = v < lo ? lo : v; /* a NaN stays */                                              \
      y[i * s[0]] = v > hi ? hi : v;                                                      \
    }                                                                                     \
  } while (0)

static void clamp_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  const bounds *b = arg;
  if (b->f64) {
    CLAMP_LOOP(double);
  } else {
    CLAMP_LOOP(float);
  }
}

#define CLAMP_BACK_LOOP(T)                                                                \
  do {                                                                                    \
    T *y = (T *)ptr[0];                                                                   \
    const T *x = (const T *)ptr[1];                                                       \
    const T *g = (const T *)ptr[2];                                                       \
    for (int64_t i = 0; i < n; i++) {                                                     \
      T v = x[i * s[1]];                                                                  \
      y[i * s[0]] = v >= (T)b->lo && v <= (T)b->hi ? g[i * s[2]] : 0;                     \
    }                                                                                     \
  } while (0)

static void clamp_back_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  const bounds *b = arg;
  if (b->f64) {
    CLAMP_BACK_LOOP(double);
  } else {
    CLAMP_BACK_LOOP(float);
  }
}

pl_status pl_raw_clamp(pl_ctx *c, const pl_tensor *x, double lo, double hi, pl_tensor **out) {
  bool whole = !pl_dtypes[x->dtype].is_float;
  bounds b = {lo, hi, whole || x->dtype == PL_F64};
  pl_tensor *in;
  PL_TRY(pl_as_dtype(c, x, b.f64 ? PL_F64 : PL_F32, &in));
  pl_tensor *y;
  pl_status st = pl_tensor_like(c, in, &y);
  if (st == PL_OK) {
    pl_iter it;
    pl_iter_init(&it, y->ndim, y->shape);
    pl_iter_add(&it, y);
    pl_iter_add(&it, in);
    pl_iter_run(&it, clamp_run, &b);
  }
  if (st == PL_OK && whole) {
    st = pl_tensor_cast(c, y, x->dtype, out);
    pl_tensor_unref(y);
  } else if (st == PL_OK) {
    *out = y;
  }
  pl_tensor_unref(in);
  return st;
}

static pl_status clamp_forward(pl_ctx *c, pl_call *k) {
  if (!(k->args.f[0] <= k->args.f[1])) {
    return pl_fail(c, PL_EINVAL, "min %g is above max %g", k->args.f[0], k->args.f[1]);
  }
  k->n_out = 1;
  return pl_raw_clamp(c, k->in[0], k->args.f[0], k->args.f[1], &k->out[0]);
}

static pl_status clamp_back(pl_ctx *c, const pl_node *n, pl_tensor *const *gout,
                            pl_tensor **gin) {
  bounds b = {n->args.f[0], n->args.f[1], gout[0]->dtype == PL_F64};
  PL_TRY(pl_tensor_like(c, gout[0], &gin[0]));
  pl_iter it;
  pl_iter_init(&it, gin[0]->ndim, gin[0]->shape);
  pl_iter_add(&it, gin[0]);
  pl_iter_add(&it, n->in[0]);
  pl_iter_add(&it, gout[0]);
  pl_iter_run(&it, clamp_back_run, &b);
  return PL_OK;
}

static pl_status clamp_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  static const double at[6][2] = {{-1, 1},        {-INFINITY, 0.5}, {-0.5, INFINITY},
                                  {-0.7, 1.1},    {0, 0},           {-0.5, 0.25}};
  PL_TRY(sample(c, which, d, k, -2, 2));
  k->args = (pl_args){.f = {at[which][0], at[which][1]}, .n_f = 2};
  return PL_OK;
}

static pl_status clamp_twin(pl_ctx *c, pl_call *k) {
  const pl_tensor *x = k->in[0];
  PL_TRY(pl_tensor_like(c, x, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(x) > 0) {
    do {
      pl_set(k->out[0], i, fmin(fmax(pl_get(x, i), k->args.f[0]), k->args.f[1]));
    } while (pl_next(x, i));
  }
  return PL_OK;
}

static const pl_op op_clamp = {
    "clamp",       "x: tensor, min: num = -inf, max: num = inf",
    "Tensor",      "x cut to [min, max], element by element; outside, the gradient is 0.",
    PL_OP_METHOD,  clamp_forward, clamp_back, clamp_sample, clamp_twin};

/* ---- tests on single elements --------------------------------------------- */

typedef enum ask { ASK_NAN, ASK_FINITE, ASK_NOT } ask;

static bool answer(ask what, double v) {
  return what == ASK_NAN ? isnan(v) != 0 : what == ASK_FINITE ? isfinite(v) != 0 : v == 0;
}

static void ask_run(void *arg, int64_t n, char *const *ptr, const int64_t *s) {
  const ask *a = arg;
  uint8_t *y = (uint8_t *)ptr[0];
  const double *x = (const double *)ptr[1];
  for (int64_t i = 0; i < n; i++) {
    y[i * s[0]] = answer(*a, x[i * s[1]]);
  }
}

static pl_status ask_forward(pl_ctx *c, pl_call *k, ask what) {
  pl_tensor *wide;
  PL_TRY(pl_as_dtype(c, k->in[0], PL_F64, &wide)); /* exact for these questions */
  pl_status st = pl_tensor_new(c, PL_BOOL, wide->ndim, wide->shape, &k->out[0]);
  k->n_out = 1;
  if (st == PL_OK) {
    pl_iter it;
    pl_iter_init(&it, wide->ndim, wide->shape);
    pl_iter_add(&it, k->out[0]);
    pl_iter_add(&it, wide);
    pl_iter_run(&it, ask_run, &what);
  }
  pl_tensor_unref(wide);
  return st;
}

static pl_status ask_twin(pl_ctx *c, pl_call *k, ask what) {
  const pl_tensor *x = k->in[0];
  PL_TRY(pl_tensor_new(c, PL_BOOL, x->ndim, x->shape, &k->out[0]));
  k->n_out = 1;
  int64_t i[PL_MAX_DIMS] = {0};
  if (pl_numel(x) > 0) {
    do {
      pl_set(k->out[0], i, answer(what, pl_get(x, i)));
    } while (pl_next(x, i));
  }
  return PL_OK;
}

static pl_status ask_sample(pl_ctx *c, int which, pl_dtype d, pl_call *k) {
  PL_TRY(sample(c, which, d, k, -2, 2));
  static const double odd[3] = {NAN, INFINITY, 0};
  int64_t i[PL_MAX_DIMS] = {0};
  int at = 0;
  if (pl_numel(k->in[0]) > 0) {
    do {
      pl_set(k->in[0], i, odd[at % 3]);
      at++;
    } while (at < 4 && pl_next(k->in[0], i));
  }
  return PL_OK;
}

#define ASK(ID, WHAT, DOC)                                                                 \
  static pl_status ID##_forward(pl_ctx *c, pl_call *k) {                                   \
    return ask_forward(c, k, WHAT);                                                        \
  }                                                                                        \
  static pl_status ID##_twin(pl_ctx *c, pl_call *k) {                                      \
    return ask_twin(c, k, WHAT);                                                           \
  }                                                                                        \
  static const pl_op op_##ID = {#ID, "x: tensor", "Tensor", DOC, PL_OP_METHOD | PL_OP_NO_F64, \
                                ID##_forward, NULL, ask_sample, ID##_twin};

ASK(isnan, ASK_NAN, "true where x is NaN (a bool tensor).")
ASK(isfinite, ASK_FINITE, "true where x is neither NaN nor infinite (a bool tensor).")
ASK(logical_not, ASK_NOT, "true where x is 0 or false (a bool tensor).")

const pl_op *const pl_ops_unary[] = {
    &op_neg,      &op_exp,  &op_log,         &op_log1p, &op_expm1, &op_sqrt,   &op_rsqrt,
    &op_abs,      &op_sign, &op_sin,         &op_cos,   &op_tanh,  &op_sigmoid, &op_softplus,
    &op_log_sigmoid, &op_relu, &op_gelu,     &op_silu,  &op_square, &op_reciprocal, &op_floor,
    &op_round,    &op_clamp, &op_isnan,      &op_isfinite, &op_logical_not, NULL};
