/* Element-by-element loops: one switch a family, the loop inside the switch.
 * Strides are in elements; 1 and 0 (a broadcast scalar) are the fast cases.
 * Serial: the caller cuts big work into blocks. Compiled for float and double. */
#ifndef PL_KERNELS_ELEMENTWISE_H
#define PL_KERNELS_ELEMENTWISE_H
#include <stdbool.h>
#include <stdint.h>

typedef enum pl_unary_code {
  PL_U_NEG, PL_U_EXP, PL_U_LOG, PL_U_LOG1P, PL_U_EXPM1, PL_U_SQRT, PL_U_RSQRT, PL_U_ABS,
  PL_U_SIGN, PL_U_SIN, PL_U_COS, PL_U_TANH, PL_U_SIGMOID, PL_U_SOFTPLUS, PL_U_LOG_SIGMOID,
  PL_U_RELU, PL_U_GELU, PL_U_SILU, PL_U_SQUARE, PL_U_RECIPROCAL, PL_U_FLOOR, PL_U_ROUND
} pl_unary_code;

typedef enum pl_binary_code {
  PL_B_ADD, PL_B_SUB, PL_B_MUL, PL_B_DIV, PL_B_POW, PL_B_MAX, PL_B_MIN
} pl_binary_code;

typedef enum pl_compare_code {
  PL_C_EQ, PL_C_NE, PL_C_LT, PL_C_LE, PL_C_GT, PL_C_GE
} pl_compare_code;

#define PL_DECLARE_ELEMENTWISE(T, S)                                                              \
  /* y[n] = f(x); y contiguous */                                                                 \
  void pl_unary_##S(pl_unary_code op, int64_t n, const T *x, int64_t sx, T *y);                   \
  /* sets gx[n] = g * f'(x), from s = f(x) where pl_unary_keeps_result(op), else s = x */         \
  void pl_unary_back_##S(pl_unary_code op, int64_t n, const T *s, const T *g, T *gx);             \
  /* y = a op b; y may be a or b */                                                               \
  void pl_binary_##S(pl_binary_code op, int64_t n, const T *a, int64_t sa, const T *b,            \
                     int64_t sb, T *y, int64_t sy);                                               \
  /* sets ga[n], gb[n] (either may be NULL) from g[n], all contiguous */                          \
  void pl_binary_back_##S(pl_binary_code op, int64_t n, const T *a, int64_t sa, const T *b,       \
                          int64_t sb, const T *g, T *ga, T *gb);                                  \
  /* y[n] = 1 where a op b, else 0 */                                                             \
  void pl_compare_##S(pl_compare_code op, int64_t n, const T *a, int64_t sa, const T *b,          \
                      int64_t sb, uint8_t *y);

PL_DECLARE_ELEMENTWISE(float, f32)
PL_DECLARE_ELEMENTWISE(double, f64)

/* Does the derivative of op come cheaper from its result than from its input? */
static inline bool pl_unary_keeps_result(pl_unary_code op) {
  return op == PL_U_EXP || op == PL_U_SQRT || op == PL_U_RSQRT || op == PL_U_TANH ||
         op == PL_U_SIGMOID || op == PL_U_RELU || op == PL_U_RECIPROCAL;
}

#endif
