/* The slow twins of the two blocks: each formula spelled out in small rows in f64, and
 * attention as a whole [N,N] softmax with a mask made from the rule of who sees whom.
 * Recorded where the inputs ask for it, so that tests have the gradients as well. */
#include <assert.h>
#include <math.h>

#include "autograd/block.h"

/* What has been made on the way, freed at the end; after a failure everything is NULL. */
typedef struct sheet {
  pl_ctx *c;
  pl_status st;
  pl_tensor *made[512];
  int n;
} sheet;

static pl_tensor *put(sheet *s, pl_status st, pl_tensor *t) {
  s->st = st;
  if (st != PL_OK) {
    return NULL;
  }
  assert(s->n < (int)(sizeof s->made / sizeof *s->made));
  s->made[s->n++] = t;
  return t;
}

static pl_tensor *run(sheet *s, const pl_op *op, pl_tensor *a, pl_tensor *b, const pl_args *args) {
  if (s->st != PL_OK) {
    return NULL;
  }
  pl_tensor *y = NULL;
  pl_tensor *in[] = {a, b};
  const pl_status st = pl_apply(s->c, op, in, b != NULL ? 2 : 1, args, &y);
  return put(s, st, y);
}

static pl_tensor *by_name(sheet *s, const char *name, pl_tensor *a, pl_tensor *b) {
  return run(s, pl_op_find(name), a, b, NULL);
}

static pl_tensor *add(sheet *s, pl_tensor *a, pl_tensor *b) {
  return run(s, &pl_op_add, a, b, NULL);
}

static pl_tensor *mul(sheet *s, pl_tensor *a, pl_tensor *b) {
  return run(s, &pl_op_mul, a, b, NULL);
}

static pl_tensor *number(sheet *s, double v) {
  pl_tensor *t = NULL;
  const pl_status st = s->st == PL_OK ? pl_tensor_scalar(s->c, PL_F64, v, &t) : s->st;
  return put(s, st, t);
}

static pl_tensor *wide(sheet *s, pl_tensor *t) {
  return t == NULL ? NULL : run(s, &pl_op_to, t, NULL, &(pl_args){.i = {PL_F64}, .n_i = 1});
}

/* x w^T + b */
static pl_tensor *affine(sheet *s, pl_tensor *x, pl_tensor *w, pl_tensor *b) {
  pl_tensor *y = run(s, &pl_op_linear, x, w, NULL);
  return b != NULL ? add(s, y, b) : y;
}

static pl_tensor *row_mean(sheet *s, pl_tensor *x) {
  return run(s, pl_op_find("mean"), x, NULL, &(pl_args){.i = {1, -1}, .n_i = 2});
}

static pl_tensor *norm(sheet *s, bool layer, double eps, pl_tensor *x, pl_tensor *w,
                       pl_tensor *b) {
  if (layer) {
    x = by_name(s, "sub", x, row_mean(s, x));
  }
  pl_tensor *square = mul(s, x, x);
  pl_tensor *size = by_name(s, "sqrt", add(s, row_mean(s, square), number(s, eps)), NULL);
  pl_tensor *y = mul(s, by_name(s, "div", x, size), w);
  return b != NULL ? add(s, y, b) : y;
}

static pl_tensor *columns(sheet *s, pl_tensor *x, int64_t from, int64_t n) {
  return run(s, pl_op_find("narrow"), x, NULL, &(pl_args){.i = {1, from, n}, .n_i = 3});
}

/* Does the query at row i see the key at row j? Positions count along the parent's tokens,
 * where there is one, and then the sequence's own. */
static bool sees(const pl_call *k, int64_t S, int64_t i, int64_t j, int64_t window) {
  const pl_tensor *seq = k->in[12];
  const pl_tensor *parent = k->in[13];
  for (int64_t s = 0; s < S; s++) {
    const int64_t first = (int64_t)pl_get(seq, &s);
    const int64_t end = (int64_t)pl_get(seq, (const int64_t[]){s + 1});
    if (i < first || i >= end) {
      continue;
    }
    const int64_t p = parent != NULL ? (int64_t)pl_get(parent, &s) : -1;
    const int64_t p0 = p >= 0 ? (int64_t)pl_get(seq, &p) : 0;
    const int64_t p1 = p >= 0 ? (int64_t)pl_get(seq, (const int64_t[]){p + 1}) : 0;
    const int64_t from = i - first + (p1 - p0);
    const bool own = j >= first && j <= i;
    const bool of_parent = j >= p0 && j < p1;
    const int64_t to = own ? j - first + (p1 - p0) : j - p0;
    return (own || of_parent) && (window == 0 || from - to < window);
  }
  return false;
}

static pl_tensor *mask(sheet *s, const pl_call *k) {
  const int64_t N = k->in[0]->shape[0];
  const int64_t S = k->in[12]->shape[0] - 1;
  pl_tensor *m = NULL;
  const pl_status st = s->st != PL_OK ? s->st : pl_tensor_zeros(s->c, PL_F64, 2,
                                                                PL_SHAPE(N, N), &m);
  for (int64_t i = 0; st == PL_OK && i < N; i++) {
    for (int64_t j = 0; j < N; j++) {
      pl_set(m, PL_SHAPE(i, j), sees(k, S, i, j, k->args.i[2]) ? 0 : -1e30);
    }
  }
  return put(s, st, m);
}

static pl_tensor *turned(sheet *s, pl_tensor *x, const pl_call *k, int64_t heads) {
  const double theta = k->args.f[1];
  if (theta == 0) {
    return x;
  }
  return run(s, &pl_op_rope, x, k->in[11], &(pl_args){.i = {heads}, .n_i = 1, .f = {theta},
                                                      .n_f = 1});
}

static pl_status finish(sheet *s, pl_call *k, pl_tensor *y) {
  pl_tensor *out = NULL;
  if (s->st == PL_OK) {
    const pl_args to = {.i = {compute_dtype(k->in, k->n_in)}, .n_i = 1};
    s->st = pl_apply(s->c, &pl_op_to, &y, 1, &to, &out);
  }
  for (int j = 0; j < s->n; j++) {
    pl_tensor_unref(s->made[j]);
  }
  k->out[0] = out;
  k->n_out = 1;
  return s->st;
}

pl_status pl_attention_block_twin(pl_ctx *c, pl_call *k) {
  sheet s = {.c = c};
  const int64_t H = k->args.i[0];
  const int64_t K = k->args.i[1];
  pl_tensor *t[11];
  for (int j = 0; j < 11; j++) {
    t[j] = wide(&s, k->in[j]);
  }
  const int64_t D = k->in[3]->shape[0] / H;
  pl_tensor *h = norm(&s, k->args.i[3] != 0, k->args.f[0], t[0], t[1], t[2]);
  pl_tensor *q = turned(&s, affine(&s, h, t[3], t[7]), k, H);
  pl_tensor *key = turned(&s, affine(&s, h, t[4], t[8]), k, K);
  pl_tensor *v = affine(&s, h, t[5], t[9]);
  pl_tensor *hidden = mask(&s, k);
  pl_tensor *scale = number(&s, 1 / sqrt((double)D));
  pl_tensor *y = t[10] != NULL ? add(&s, t[0], t[10]) : t[0];
  for (int64_t i = 0; i < H; i++) {
    const int64_t g = i / (H / K) * D;
    pl_tensor *scores = run(&s, &pl_op_linear, columns(&s, q, i * D, D), columns(&s, key, g, D),
                            NULL);
    scores = add(&s, mul(&s, scores, scale), hidden);
    pl_tensor *p = run(&s, pl_op_find("softmax"), scores, NULL, &(pl_args){.i = {1}, .n_i = 1});
    pl_tensor *mixed = run(&s, &pl_op_matmul, p, columns(&s, v, g, D), NULL);
    y = add(&s, y, affine(&s, mixed, columns(&s, t[6], i * D, D), NULL));
  }
  return finish(&s, k, y);
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks and Gimpel 2016 */
static pl_tensor *gelu(sheet *s, pl_tensor *x) {
  pl_tensor *cube = mul(s, mul(s, x, x), x);
  pl_tensor *inner = add(s, x, mul(s, cube, number(s, 0.044715)));
  pl_tensor *t = by_name(s, "tanh", mul(s, inner, number(s, sqrt(2 / 3.14159265358979323846))),
                         NULL);
  return mul(s, mul(s, x, number(s, 0.5)), add(s, t, number(s, 1)));
}

pl_status pl_ffn_block_twin(pl_ctx *c, pl_call *k) {
  sheet s = {.c = c};
  pl_tensor *t[9];
  for (int j = 0; j < 9; j++) {
    t[j] = wide(&s, k->in[j]);
  }
  pl_tensor *h = norm(&s, k->args.i[0] != 0, k->args.f[0], t[0], t[1], t[2]);
  pl_tensor *up = affine(&s, h, t[4], t[7]);
  pl_tensor *hidden;
  if (t[3] != NULL) {
    hidden = mul(&s, by_name(&s, "silu", affine(&s, h, t[3], t[6]), NULL), up);
  } else {
    hidden = gelu(&s, up);
  }
  return finish(&s, k, add(&s, t[0], affine(&s, hidden, t[5], t[8])));
}
