/* Filling fresh tensors, in fixed blocks spread over the threads. It knows no
 * views and checks nothing: callers made the tensor a moment ago. */
#include "tensor/fill.h"

#include "base/par.h"
#include "base/rng.h"

#define BLOCK 16384

typedef struct fill {
  pl_tensor *t;
  int64_t n;
  double a, b;
  uint64_t seed, stream;
  int64_t low;
  uint64_t span;
  double (*value)(const struct fill *f, int64_t i);
} fill;

/* bf16 and bool go through pl_set, which knows how they round. */
static void put(pl_tensor *t, int64_t i, double v) {
  switch (t->dtype) {
    case PL_F32:
      pl_f32(t)[i] = (float)v;
      break;
    case PL_F64:
      ((double *)pl_data(t))[i] = v;
      break;
    case PL_I32:
      pl_i32(t)[i] = (int32_t)v;
      break;
    case PL_I64:
      pl_i64(t)[i] = (int64_t)v;
      break;
    default: {
      int64_t index[PL_MAX_DIMS] = {0};
      int64_t rest = i;
      for (int d = t->ndim - 1; d >= 0; d--) {
        index[d] = rest % t->shape[d];
        rest /= t->shape[d];
      }
      pl_set(t, index, v);
    }
  }
}

static void block(void *arg, int64_t b) {
  const fill *f = arg;
  int64_t end = (b + 1) * BLOCK < f->n ? (b + 1) * BLOCK : f->n;
  for (int64_t i = b * BLOCK; i < end; i++) {
    put(f->t, i, f->value(f, i));
  }
}

static void run(fill *f, pl_tensor *t) {
  f->t = t;
  f->n = pl_numel(t);
  pl_parallel((f->n + BLOCK - 1) / BLOCK, block, f);
}

static double range_at(const fill *f, int64_t i) {
  return f->a + (double)i * f->b;
}

static double normal_at(const fill *f, int64_t i) {
  return pl_normal(f->seed, f->stream, (uint64_t)i);
}

static double uniform_at(const fill *f, int64_t i) {
  return pl_uniform(f->seed, f->stream, (uint64_t)i);
}

/* Multiply and shift (Lemire 2019): 64 random bits over the span; the bias is below 2^-32 for
 * spans below 2^32. */
static double integer_at(const fill *f, int64_t i) {
  uint32_t w[4];
  pl_philox(f->seed, f->stream, (uint64_t)i, w);
  uint64_t bits = (uint64_t)w[0] << 32 | w[1];
  uint64_t k = (uint64_t)(((unsigned __int128)bits * f->span) >> 64);
  return (double)(f->low + (int64_t)k);
}

static double eye_at(const fill *f, int64_t i) {
  int64_t columns = f->t->shape[1];
  return i / columns == i % columns ? 1.0 : 0.0;
}

void pl_fill_value(pl_tensor *t, double v) {
  pl_fill(t, v);
}

void pl_fill_range(pl_tensor *t, double from, double step) {
  fill f = {.a = from, .b = step, .value = range_at};
  run(&f, t);
}

void pl_fill_normal(pl_tensor *t, uint64_t seed, uint64_t stream) {
  fill f = {.seed = seed, .stream = stream, .value = normal_at};
  run(&f, t);
}

void pl_fill_uniform(pl_tensor *t, uint64_t seed, uint64_t stream) {
  fill f = {.seed = seed, .stream = stream, .value = uniform_at};
  run(&f, t);
  if (t->dtype == PL_F32) { /* rounding to float may reach 1, which is outside */
    int64_t n = f.n;
    for (int64_t i = 0; i < n; i++) {
      if (pl_f32(t)[i] >= 1.0f) {
        pl_f32(t)[i] = 0x1.fffffep-1f;
      }
    }
  }
}

void pl_fill_integers(pl_tensor *t, uint64_t seed, uint64_t stream, int64_t low, uint64_t n) {
  fill f = {.seed = seed, .stream = stream, .low = low, .span = n, .value = integer_at};
  run(&f, t);
}

void pl_fill_eye(pl_tensor *t) {
  fill f = {.value = eye_at};
  run(&f, t);
}
