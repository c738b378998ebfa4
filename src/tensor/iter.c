/* Walking several tensors together: see iter.h. Knows geometry and blocks,
 * nothing of what is computed. */
#include "tensor/iter.h"

#include <assert.h>
#include <string.h>

#include "base/par.h"

enum { BLOCK = 32768, PARALLEL_FROM = 65536 };

typedef struct job {
  const pl_iter *it;
  pl_iter_fn fn;
  void *arg;
  int64_t block;
} job;

void pl_iter_init(pl_iter *it, int ndim, const int64_t *shape) {
  memset(it, 0, sizeof *it);
  it->ndim = ndim;
  it->n = 1;
  for (int d = 0; d < ndim; d++) {
    it->shape[d] = shape[d];
    it->n *= shape[d];
  }
}

void pl_iter_add(pl_iter *it, const pl_tensor *t) {
  assert(it->nop < PL_ITER_OPS && t->ndim <= it->ndim);
  int k = it->nop++;
  it->ptr[k] = pl_data(t);
  it->esize[k] = pl_dtypes[t->dtype].size;
  int lead = it->ndim - t->ndim;
  for (int d = 0; d < t->ndim; d++) {
    it->stride[k][lead + d] = t->shape[d] == 1 ? 0 : t->stride[d];
  }
}

/* Drops dims of size 1 and merges neighbours that lie behind each other. */
static void collapse(pl_iter *it) {
  int w = 0;
  for (int d = 0; d < it->ndim; d++) {
    if (it->shape[d] == 1) {
      continue;
    }
    bool merge = w > 0;
    for (int k = 0; merge && k < it->nop; k++) {
      merge = it->stride[k][w - 1] == it->stride[k][d] * it->shape[d];
    }
    if (merge) {
      it->shape[w - 1] *= it->shape[d];
    } else {
      it->shape[w] = it->shape[d];
      w++;
    }
    for (int k = 0; k < it->nop; k++) {
      it->stride[k][w - 1] = it->stride[k][d];
    }
  }
  if (w == 0) {
    it->shape[0] = 1;
    w = 1;
  }
  it->ndim = w;
}

static void run_block(void *arg, int64_t b) {
  const job *j = arg;
  const pl_iter *it = j->it;
  int last = it->ndim - 1;
  int64_t pos = b * j->block;
  int64_t end = pos + j->block < it->n ? pos + j->block : it->n;
  int64_t idx[PL_MAX_DIMS];
  int64_t rest = pos;
  char *ptr[PL_ITER_OPS];
  int64_t stride[PL_ITER_OPS];
  for (int k = 0; k < it->nop; k++) {
    ptr[k] = it->ptr[k];
    stride[k] = it->stride[k][last];
  }
  for (int d = last; d >= 0; d--) {
    idx[d] = rest % it->shape[d];
    rest /= it->shape[d];
    for (int k = 0; k < it->nop; k++) {
      ptr[k] += idx[d] * it->stride[k][d] * (int64_t)it->esize[k];
    }
  }
  while (pos < end) {
    int64_t n = it->shape[last] - idx[last];
    if (n > end - pos) {
      n = end - pos;
    }
    j->fn(j->arg, n, ptr, stride);
    pos += n;
    idx[last] += n;
    int64_t moved = n;
    for (int d = last; d >= 0; d--) {
      bool wraps = idx[d] == it->shape[d] && d > 0;
      for (int k = 0; k < it->nop; k++) {
        int64_t step = moved - (wraps ? it->shape[d] : 0);
        ptr[k] += step * it->stride[k][d] * (int64_t)it->esize[k];
      }
      if (!wraps) {
        break;
      }
      idx[d] = 0;
      idx[d - 1]++;
      moved = 1;
    }
  }
}

void pl_iter_run(pl_iter *it, pl_iter_fn fn, void *arg) {
  if (it->n == 0) {
    return;
  }
  collapse(it);
  job j = {it, fn, arg, it->n >= PARALLEL_FROM ? BLOCK : it->n};
  int64_t blocks = (it->n + j.block - 1) / j.block;
  if (blocks == 1) {
    run_block(&j, 0);
  } else {
    pl_parallel(blocks, run_block, &j);
  }
}
