/* Attention of sequences that go on after another, by reading that one again before each:
 * rows are copied out, attention runs on plain sequences, and what belongs to the sequence's
 * own rows is copied back. */
#include "autograd/block.h"

typedef struct family {
  pl_tensor *from; /* i32 [M]: the row that row i of the longer matrix is */
  pl_tensor *seq;  /* i32 [S+1] */
  pl_tensor *own;  /* i32 [M]: 1 where it is the sequence's own */
} family;

static void close_family(family *f) {
  pl_tensor_unref(f->from);
  pl_tensor_unref(f->seq);
  pl_tensor_unref(f->own);
}

static pl_status open_family(pl_ctx *c, const pl_heads *h, family *f) {
  const int64_t S = h->seq->shape[0] - 1;
  const int32_t *seq = pl_i32(h->seq);
  const int32_t *parent = pl_i32(h->parent);
  int64_t M = seq[S];
  for (int64_t s = 0; s < S; s++) {
    M += parent[s] >= 0 ? seq[parent[s] + 1] - seq[parent[s]] : 0;
  }
  PL_TRY(pl_tensor_new(c, PL_I32, 1, &M, &f->from));
  PL_TRY(pl_tensor_new(c, PL_I32, 1, &M, &f->own));
  PL_TRY(pl_tensor_new(c, PL_I32, 1, &(int64_t){S + 1}, &f->seq));
  int32_t m = 0;
  for (int64_t s = 0; s < S; s++) {
    pl_i32(f->seq)[s] = m;
    const int64_t p = parent[s] >= 0 ? parent[s] : s;
    for (int64_t t = p; t <= s; t += t < s ? s - t : 1) {
      for (int32_t i = seq[t]; i < seq[t + 1]; i++) {
        pl_i32(f->from)[m] = i;
        pl_i32(f->own)[m++] = t == s;
      }
    }
  }
  pl_i32(f->seq)[S] = m;
  return PL_OK;
}

static pl_status like(pl_ctx *c, const family *f, const pl_tensor *t, pl_tensor **out) {
  return pl_tensor_new(c, t->dtype, 2, PL_SHAPE(f->from->shape[0], width(t)), out);
}

static size_t row_size(const pl_tensor *t) {
  return (size_t)width(t) * pl_dtypes[t->dtype].size;
}

/* Rows of t in the longer order; with own_only the others are 0. */
static pl_status unfold(pl_ctx *c, const family *f, const pl_tensor *t, bool own_only,
                        pl_tensor **out) {
  PL_TRY(like(c, f, t, out));
  const size_t n = row_size(t);
  for (int64_t i = 0; i < f->from->shape[0]; i++) {
    char *to = (char *)pl_data(*out) + (size_t)i * n;
    if (own_only && !pl_i32(f->own)[i]) {
      memset(to, 0, n);
    } else {
      memcpy(to, (const char *)pl_data(t) + (size_t)pl_i32(f->from)[i] * n, n);
    }
  }
  return PL_OK;
}

/* The own rows of the longer matrix t. */
static void fold(const family *f, const pl_tensor *t, pl_tensor *y) {
  const size_t n = row_size(t);
  for (int64_t i = 0; i < f->from->shape[0]; i++) {
    if (pl_i32(f->own)[i]) {
      memcpy((char *)pl_data(y) + (size_t)pl_i32(f->from)[i] * n,
             (const char *)pl_data(t) + (size_t)i * n, n);
    }
  }
}

/* Every row of the longer matrix t added to the row it is, in t's precision. */
static void fold_sum(const family *f, const pl_tensor *t, pl_tensor *y) {
  const int64_t n = width(t);
  (void)pl_fill(y, 0);
  for (int64_t i = 0; i < f->from->shape[0]; i++) {
    for (int64_t j = 0; j < n; j++) {
      const int64_t to[2] = {pl_i32(f->from)[i], j};
      pl_set(y, to, pl_get(y, to) + pl_get(t, (const int64_t[]){i, j}));
    }
  }
}

static pl_heads plain(const pl_heads *h, const family *f) {
  pl_heads g = *h;
  g.seq = f->seq;
  g.parent = NULL;
  g.pos = NULL;
  return g;
}

pl_status pl_attend_family(pl_ctx *c, const pl_heads *h, const pl_tensor *qkv, pl_tensor *y,
                           pl_tensor *lse) {
  family f = {NULL};
  pl_tensor *t[3] = {NULL};
  pl_status st = open_family(c, h, &f);
  const pl_heads g = plain(h, &f);
  st = st == PL_OK ? unfold(c, &f, qkv, false, &t[0]) : st;
  st = st == PL_OK ? like(c, &f, y, &t[1]) : st;
  st = st == PL_OK ? like(c, &f, lse, &t[2]) : st;
  st = st == PL_OK ? pl_attend(c, &g, t[0], t[1], t[2]) : st;
  if (st == PL_OK) {
    fold(&f, t[1], y);
    fold(&f, t[2], lse);
  }
  drop(t, 3);
  close_family(&f);
  return st;
}

pl_status pl_attend_back_family(pl_ctx *c, const pl_heads *h, const pl_tensor *qkv,
                                const pl_tensor *y, const pl_tensor *lse, const pl_tensor *gy,
                                pl_tensor *gqkv) {
  family f = {NULL};
  pl_tensor *t[5] = {NULL};
  pl_status st = open_family(c, h, &f);
  const pl_heads g = plain(h, &f);
  st = st == PL_OK ? unfold(c, &f, qkv, false, &t[0]) : st;
  st = st == PL_OK ? unfold(c, &f, y, false, &t[1]) : st;
  st = st == PL_OK ? unfold(c, &f, lse, false, &t[2]) : st;
  st = st == PL_OK ? unfold(c, &f, gy, true, &t[3]) : st;
  st = st == PL_OK ? like(c, &f, gqkv, &t[4]) : st;
  st = st == PL_OK ? pl_attend_back(c, &g, t[0], t[1], t[2], t[3], t[4]) : st;
  if (st == PL_OK) {
    fold_sum(&f, t[4], gqkv);
  }
  drop(t, 5);
  close_family(&f);
  return st;
}
