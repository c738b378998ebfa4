/* Element-by-element loops, see elementwise.h. Each function is one switch
 * over the op with a plain loop in each case, which the compiler vectorises;
 * exp, tanh and log go through the vector versions in chunks. */
#include "kernels/elementwise.h"

#include <string.h>
#include <tgmath.h>

#include "kernels/impl.h"

typedef real T;

enum { CHUNK = 512 };

#define EACH(EXPR)                     \
  for (int64_t k = 0; k < n; k++) {    \
    T v = x[k];                        \
    y[k] = (EXPR);                     \
  }                                    \
  break

/* y[k] = exp(-|x[k]|), the safe half of the logistic family */
#define EXP_NEG_ABS()                  \
  for (int64_t k = 0; k < n; k++) {    \
    y[k] = -fabs(x[k]);                \
  }                                    \
  K(exp)(n, y, y)

/* t[k] <- log(1 + t[k]) for t in [0, 1], exact for small t: the rounding of
 * 1 + t is divided out again (Kahan; Goldberg 1991, theorem 4). n <= CHUNK. */
PL_INLINE void log1p_01(int64_t n, T *t) {
  T u[CHUNK] = {0};
  for (int64_t k = 0; k < n; k++) {
    u[k] = 1 + t[k];
  }
  T l[CHUNK];
  K(log)(n, u, l);
  for (int64_t k = 0; k < n; k++) {
    t[k] = u[k] == 1 ? t[k] : l[k] * (t[k] / (u[k] - 1));
  }
}

/* contiguous, n <= CHUNK */
PL_VARIANTS(void, unary, (pl_unary_code op, int64_t n, const T *restrict x, T *restrict y),
            (op, n, x, y)) {
  switch (op) {
    case PL_U_NEG: EACH(-v);
    case PL_U_EXP: K(exp)(n, x, y); break;
    case PL_U_LOG: K(log)(n, x, y); break;
    case PL_U_LOG1P: EACH(log1p(v));
    case PL_U_EXPM1: EACH(expm1(v));
    case PL_U_SQRT: EACH(sqrt(v));
    case PL_U_RSQRT: EACH(1 / sqrt(v));
    case PL_U_ABS: EACH(fabs(v));
    case PL_U_SIGN: EACH(v != v ? v : (T)((v > 0) - (v < 0)));
    case PL_U_SIN: EACH(sin(v));
    case PL_U_COS: EACH(cos(v));
    case PL_U_TANH: K(tanh)(n, x, y); break;
    case PL_U_SIGMOID: { /* both halves without overflow */
      EXP_NEG_ABS();
      for (int64_t k = 0; k < n; k++) {
        T r = 1 / (1 + y[k]);
        y[k] = x[k] < 0 ? y[k] * r : r;
      }
      break;
    }
    case PL_U_SILU: {
      EXP_NEG_ABS();
      for (int64_t k = 0; k < n; k++) {
        T r = 1 / (1 + y[k]);
        y[k] = x[k] * (x[k] < 0 ? y[k] * r : r);
      }
      break;
    }
    case PL_U_SOFTPLUS: /* log(1 + e^x) = max(x, 0) + log1p(e^-|x|) */
      EXP_NEG_ABS();
      log1p_01(n, y);
      for (int64_t k = 0; k < n; k++) {
        y[k] += x[k] > 0 ? x[k] : x[k] != x[k] ? x[k] : 0;
      }
      break;
    case PL_U_LOG_SIGMOID: /* -softplus(-x) */
      EXP_NEG_ABS();
      log1p_01(n, y);
      for (int64_t k = 0; k < n; k++) {
        y[k] = (x[k] < 0 ? x[k] : x[k] != x[k] ? x[k] : 0) - y[k];
      }
      break;
    case PL_U_RELU: EACH(v < 0 ? 0 : v);
    case PL_U_GELU: EACH((T)0.5 * v * (1 + erf(v * (T)0.70710678118654752440)));
    case PL_U_SQUARE: EACH(v * v);
    case PL_U_RECIPROCAL: EACH(1 / v);
    case PL_U_FLOOR: EACH(floor(v));
    case PL_U_ROUND: EACH(rint(v)); /* ties to even, as in the default rounding mode */
  }
}

void K(unary)(pl_unary_code op, int64_t n, const T *x, int64_t sx, T *y) {
  T dense[CHUNK];
  for (int64_t at = 0; at < n; at += CHUNK) {
    int64_t m = n - at < CHUNK ? n - at : CHUNK;
    const T *from = x + at * sx;
    if (sx != 1) {
      for (int64_t k = 0; k < m; k++) {
        dense[k] = from[k * sx];
      }
      from = dense;
    }
    unary(op, m, from, y + at);
  }
}

#undef EACH
#define EACH(EXPR)                     \
  for (int64_t k = 0; k < n; k++) {    \
    T v = s[k];                        \
    gx[k] = g[k] * (EXPR);             \
  }                                    \
  break

static T logistic(T v) {
  T t = exp(-fabs(v));
  return v < 0 ? t / (1 + t) : 1 / (1 + t);
}

PL_VARIANTS(void, unary_back, (pl_unary_code op, int64_t n, const T *s, const T *g, T *gx),
            (op, n, s, g, gx)) {
  switch (op) {
    case PL_U_NEG: EACH(((void)v, (T)-1));
    case PL_U_EXP: EACH(v);
    case PL_U_LOG: EACH(1 / v);
    case PL_U_LOG1P: EACH(1 / (1 + v));
    case PL_U_EXPM1: EACH(exp(v));
    case PL_U_SQRT: EACH((T)0.5 / v);
    case PL_U_RSQRT: EACH((T)-0.5 * v * v * v);
    case PL_U_ABS: EACH((T)((v > 0) - (v < 0)));
    case PL_U_SIN: EACH(cos(v));
    case PL_U_COS: EACH(-sin(v));
    case PL_U_TANH: EACH(1 - v * v);
    case PL_U_SIGMOID: EACH(v * (1 - v));
    case PL_U_SOFTPLUS: EACH(logistic(v));
    case PL_U_LOG_SIGMOID: EACH(logistic(-v));
    case PL_U_RELU: EACH(v > 0 ? 1 : 0);
    case PL_U_GELU:
      EACH((T)0.5 * (1 + erf(v * (T)0.70710678118654752440)) +
           v * exp((T)-0.5 * v * v) * (T)0.39894228040143267794);
    case PL_U_SILU: EACH(logistic(v) * (1 + v * (1 - logistic(v))));
    case PL_U_SQUARE: EACH(2 * v);
    case PL_U_RECIPROCAL: EACH(-v * v);
    case PL_U_SIGN:
    case PL_U_FLOOR:
    case PL_U_ROUND: memset(gx, 0, (size_t)n * sizeof *gx); break;
  }
}

void K(unary_back)(pl_unary_code op, int64_t n, const T *s, const T *g, T *gx) {
  unary_back(op, n, s, g, gx);
}

/* The loop with the strides that matter spelled out, so that each vectorises.
 * y may be a or b, so there is no restrict here. */
#define LOOP(EXPR)                                   \
  if (sy == 1 && sa == 1 && sb == 1) {               \
    for (int64_t k = 0; k < n; k++) {                \
      T u = a[k];                                    \
      T v = b[k];                                    \
      y[k] = (EXPR);                                 \
    }                                                \
  } else if (sy == 1 && sa == 1 && sb == 0) {        \
    T v = b[0];                                      \
    for (int64_t k = 0; k < n; k++) {                \
      T u = a[k];                                    \
      y[k] = (EXPR);                                 \
    }                                                \
  } else if (sy == 1 && sa == 0 && sb == 1) {        \
    T u = a[0];                                      \
    for (int64_t k = 0; k < n; k++) {                \
      T v = b[k];                                    \
      y[k] = (EXPR);                                 \
    }                                                \
  } else {                                           \
    for (int64_t k = 0; k < n; k++) {                \
      T u = a[k * sa];                               \
      T v = b[k * sb];                               \
      y[k * sy] = (EXPR);                            \
    }                                                \
  }                                                  \
  break

PL_VARIANTS(void, binary,
            (pl_binary_code op, int64_t n, const T *a, int64_t sa, const T *b, int64_t sb, T *y,
             int64_t sy),
            (op, n, a, sa, b, sb, y, sy)) {
  switch (op) {
    case PL_B_ADD: LOOP(u + v);
    case PL_B_SUB: LOOP(u - v);
    case PL_B_MUL: LOOP(u * v);
    case PL_B_DIV: LOOP(u / v);
    case PL_B_MAX: LOOP(u != u ? u : v != v ? v : u > v ? u : v);
    case PL_B_MIN: LOOP(u != u ? u : v != v ? v : u < v ? u : v);
    case PL_B_POW:
      if (sb == 0 && b[0] == 2) { /* the square in losses: a product, not libm */
        K(binary)(PL_B_MUL, n, a, sa, a, sa, y, sy);
        break;
      }
      LOOP(pow(u, v));
  }
}

void K(binary)(pl_binary_code op, int64_t n, const T *a, int64_t sa, const T *b, int64_t sb, T *y,
               int64_t sy) {
  binary(op, n, a, sa, b, sb, y, sy);
}

#define EACH_A(EXPR)                            \
  for (int64_t k = 0; ga != NULL && k < n; k++) { \
    T u = a[k * sa];                            \
    T v = b[k * sb];                            \
    (void)u;                                    \
    (void)v;                                    \
    ga[k] = (EXPR);                             \
  }
#define EACH_B(EXPR)                            \
  for (int64_t k = 0; gb != NULL && k < n; k++) { \
    T u = a[k * sa];                            \
    T v = b[k * sb];                            \
    (void)u;                                    \
    (void)v;                                    \
    gb[k] = (EXPR);                             \
  }                                             \
  break

PL_VARIANTS(void, binary_back,
            (pl_binary_code op, int64_t n, const T *a, int64_t sa, const T *b, int64_t sb,
             const T *g, T *ga, T *gb),
            (op, n, a, sa, b, sb, g, ga, gb)) {
  switch (op) {
    case PL_B_ADD: EACH_A(g[k]) EACH_B(g[k]);
    case PL_B_SUB: EACH_A(g[k]) EACH_B(-g[k]);
    case PL_B_MUL: EACH_A(g[k] * v) EACH_B(g[k] * u);
    case PL_B_DIV: EACH_A(g[k] / v) EACH_B(-g[k] * (u / v) / v);
    case PL_B_POW: /* at v = 0 and at u = 0 the limits, not 0 * inf */
      EACH_A(v == 0 ? 0 : v == 2 ? g[k] * 2 * u : g[k] * v * pow(u, v - 1))
      EACH_B(u == 0 && v >= 0 ? 0 : g[k] * pow(u, v) * log(u));
    case PL_B_MAX: /* a tie is shared */
      EACH_A(u > v ? g[k] : u == v ? g[k] / 2 : 0) EACH_B(v > u ? g[k] : u == v ? g[k] / 2 : 0);
    case PL_B_MIN:
      EACH_A(u < v ? g[k] : u == v ? g[k] / 2 : 0) EACH_B(v < u ? g[k] : u == v ? g[k] / 2 : 0);
  }
}

void K(binary_back)(pl_binary_code op, int64_t n, const T *a, int64_t sa, const T *b, int64_t sb,
                    const T *g, T *ga, T *gb) {
  binary_back(op, n, a, sa, b, sb, g, ga, gb);
}

#define TEST(OP)                              \
  for (int64_t k = 0; k < n; k++) {           \
    y[k] = a[k * sa] OP b[k * sb];            \
  }                                           \
  break

PL_VARIANTS(void, compare,
            (pl_compare_code op, int64_t n, const T *a, int64_t sa, const T *b, int64_t sb,
             uint8_t *y),
            (op, n, a, sa, b, sb, y)) {
  switch (op) {
    case PL_C_EQ: TEST(==);
    case PL_C_NE: TEST(!=);
    case PL_C_LT: TEST(<);
    case PL_C_LE: TEST(<=);
    case PL_C_GT: TEST(>);
    case PL_C_GE: TEST(>=);
  }
}

void K(compare)(pl_compare_code op, int64_t n, const T *a, int64_t sa, const T *b, int64_t sb,
                uint8_t *y) {
  compare(op, n, a, sa, b, sb, y);
}
