/* Reductions over rows, see reduce.h. Rows are spread over the threads in
 * groups of about ROW_WORK elements; the order inside a row is fixed. */
#include "kernels/reduce.h"

#include <math.h>
#include <string.h>

#include "kernels/impl.h"

typedef real T;

enum { ROW_WORK = 32768, TILE = 64, LONG_ROW = 65536, CHUNK = 512 };

typedef struct rows {
  int64_t R, n, C, per; /* per: rows a block */
  const T *x, *g;
  T *y, *z;
  int64_t *at;
  bool flag;
} rows;

static void each_group(rows *j, pl_block_fn fn) {
  j->per = ROW_WORK / (j->n > 0 ? j->n : 1);
  if (j->per < 1) {
    j->per = 1;
  }
  int64_t blocks = (j->R + j->per - 1) / j->per;
  if (blocks == 1) {
    fn(j, 0);
  } else if (blocks > 1) {
    pl_parallel(blocks, fn, j);
  }
}

#define EACH_ROW(j, b)                                                                     \
  for (int64_t r = (b) * (j)->per; r < (j)->R && r < ((b) + 1) * (j)->per; r++)

/* ---- sums ---------------------------------------------------------------- */

PL_VARIANTS(double, sum_row, (int64_t n, const T *x), (n, x)) {
  double lane[16] = {0};
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) {
    for (int i = 0; i < 16; i++) {
      lane[i] += x[k + i];
    }
  }
  for (int i = 0; k < n; k++, i++) {
    lane[i] += x[k];
  }
  for (int w = 8; w > 0; w /= 2) {
    for (int i = 0; i < w; i++) {
      lane[i] += lane[i + w];
    }
  }
  return lane[0];
}

static void sum_rows(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    j->y[r] = (T)sum_row(j->n, j->x + r * j->n);
  }
}

/* one tile of columns of one slab: rows are read in order */
PL_VARIANTS(void, sum_tile, (void *arg, int64_t b), (arg, b)) {
  const rows *j = arg;
  int64_t tiles = (j->C + TILE - 1) / TILE;
  int64_t a = b / tiles;
  int64_t from = b % tiles * TILE;
  int64_t w = j->C - from < TILE ? j->C - from : TILE;
  const T *x = j->x + a * j->n * j->C + from;
  double acc[TILE] = {0};
  if (w == TILE) {
    for (int64_t k = 0; k < j->n; k++) {
      for (int64_t i = 0; i < TILE; i++) {
        acc[i] += x[k * j->C + i];
      }
    }
  } else {
    for (int64_t k = 0; k < j->n; k++) {
      for (int64_t i = 0; i < w; i++) {
        acc[i] += x[k * j->C + i];
      }
    }
  }
  for (int64_t i = 0; i < w; i++) {
    j->y[a * j->C + from + i] = (T)acc[i];
  }
}

void K(sum_axis)(int64_t A, int64_t n, int64_t C, const T *x, T *y) {
  rows j = {.R = A, .n = n, .C = C, .x = x, .y = y};
  if (C == 1 && n >= LONG_ROW) {
    for (int64_t a = 0; a < A; a++) {
      y[a] = (T)K(sum)(n, x + a * n);
    }
  } else if (C == 1) {
    each_group(&j, sum_rows);
  } else {
    int64_t blocks = A * ((C + TILE - 1) / TILE);
    if (A * n * C < ROW_WORK) {
      for (int64_t b = 0; b < blocks; b++) {
        sum_tile(&j, b);
      }
    } else {
      pl_parallel(blocks, sum_tile, &j);
    }
  }
}

static void moments(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    const T *x = j->x + r * j->n;
    double mean = sum_row(j->n, x) / (double)j->n;
    double m2 = 0;
    for (int64_t k = 0; k < j->n; k++) {
      double d = x[k] - mean;
      m2 += d * d;
    }
    j->y[r] = (T)mean;
    j->z[r] = (T)m2;
  }
}

void K(moments_rows)(int64_t R, int64_t n, const T *x, T *mean, T *m2) {
  rows j = {.R = R, .n = n, .x = x, .y = mean, .z = m2};
  each_group(&j, moments);
}

/* ---- extremes ------------------------------------------------------------ */

static void extreme(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    const T *x = j->x + r * j->n;
    int64_t best = 0;
    for (int64_t k = 1; k < j->n && x[best] == x[best]; k++) {
      if (x[k] != x[k] || (j->flag ? x[k] < x[best] : x[k] > x[best])) {
        best = k;
      }
    }
    if (j->y != NULL) {
      j->y[r] = x[best];
    }
    if (j->at != NULL) {
      j->at[r] = best;
    }
  }
}

void K(max_rows)(int64_t R, int64_t n, const T *x, bool smallest, T *y, int64_t *at) {
  rows j = {.R = R, .n = n, .x = x, .y = y, .at = at, .flag = smallest};
  each_group(&j, extreme);
}

/* ---- softmax family ------------------------------------------------------ */

PL_VARIANTS(T, row_max, (int64_t n, const T *x), (n, x)) {
  T m = -(T)INFINITY;
  for (int64_t k = 0; k < n; k++) {
    m = x[k] > m ? x[k] : m;
  }
  return m;
}

/* sum of exp(x - m) in double; the exponentials go to y unless it is NULL */
static double exp_row(int64_t n, const T *x, T m, T *y) {
  T t[CHUNK];
  double sum = 0;
  for (int64_t at = 0; at < n; at += CHUNK) {
    int64_t w = n - at < CHUNK ? n - at : CHUNK;
    T *to = y != NULL ? y + at : t;
    for (int64_t k = 0; k < w; k++) {
      to[k] = x[at + k] - m;
    }
    K(exp)(w, to, to);
    sum += sum_row(w, to);
  }
  return sum;
}

static double lse_row(int64_t n, const T *x) {
  T m = row_max(n, x);
  if (isinf(m)) { /* nothing but -inf, or a +inf; NaN among them shows */
    double sum = sum_row(n, x);
    return isnan(sum) ? sum : m;
  }
  return m + log(exp_row(n, x, m, NULL));
}

static void lse(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    j->y[r] = (T)lse_row(j->n, j->x + r * j->n);
  }
}

void K(lse_rows)(int64_t R, int64_t n, const T *x, T *y) {
  rows j = {.R = R, .n = n, .x = x, .y = y};
  each_group(&j, lse);
}

static void softmax(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    const T *x = j->x + r * j->n;
    T *y = j->y + r * j->n;
    if (j->flag) {
      double l = lse_row(j->n, x);
      for (int64_t k = 0; k < j->n; k++) {
        y[k] = (T)(x[k] - l);
      }
    } else {
      double inv = 1 / exp_row(j->n, x, row_max(j->n, x), y);
      for (int64_t k = 0; k < j->n; k++) {
        y[k] = (T)(y[k] * inv);
      }
    }
  }
}

void K(softmax_rows)(int64_t R, int64_t n, const T *x, bool log_of, T *y) {
  rows j = {.R = R, .n = n, .x = x, .y = y, .flag = log_of};
  each_group(&j, softmax);
}

static void softmax_back(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    const T *y = j->x + r * j->n;
    const T *g = j->g + r * j->n;
    T *gx = j->y + r * j->n;
    double dot = 0;
    for (int64_t k = 0; k < j->n; k++) {
      dot += (double)g[k] * (j->flag ? 1 : y[k]);
    }
    for (int64_t k = 0; k < j->n; k++) {
      gx[k] = (T)(j->flag ? g[k] - exp((double)y[k]) * dot : y[k] * (g[k] - dot));
    }
  }
}

void K(softmax_back_rows)(int64_t R, int64_t n, const T *y, const T *g, bool log_of, T *gx) {
  rows j = {.R = R, .n = n, .x = y, .g = g, .y = gx, .flag = log_of};
  each_group(&j, softmax_back);
}

/* ---- scans and sorting ---------------------------------------------------- */

static void cumsum(void *arg, int64_t b) {
  const rows *j = arg;
  EACH_ROW(j, b) {
    double sum = 0;
    for (int64_t k = 0; k < j->n; k++) {
      int64_t i = r * j->n + (j->flag ? j->n - 1 - k : k);
      sum += j->x[i];
      j->y[i] = (T)sum;
    }
  }
}

void K(cumsum_rows)(int64_t R, int64_t n, const T *x, bool reverse, T *y) {
  rows j = {.R = R, .n = n, .x = x, .y = y, .flag = reverse};
  each_group(&j, cumsum);
}

/* Is a strictly before b? NaN counts as the largest. */
static bool before(T a, T b, bool descending) {
  if (descending) {
    return (a != a && b == b) || a > b;
  }
  return (a == a && b != b) || a < b;
}

void K(argsort)(int64_t n, const T *x, bool descending, int64_t *at, int64_t *scratch) {
  int64_t *from = at;
  int64_t *to = scratch;
  for (int64_t k = 0; k < n; k++) {
    from[k] = k;
  }
  for (int64_t w = 1; w < n; w *= 2) { /* bottom-up merge sort: stable, no recursion */
    for (int64_t lo = 0; lo < n; lo += 2 * w) {
      int64_t mid = lo + w < n ? lo + w : n;
      int64_t hi = lo + 2 * w < n ? lo + 2 * w : n;
      int64_t a = lo;
      int64_t b = mid;
      for (int64_t k = lo; k < hi; k++) {
        bool take_b = a == mid || (b < hi && before(x[from[b]], x[from[a]], descending));
        to[k] = take_b ? from[b++] : from[a++];
      }
    }
    int64_t *t = from;
    from = to;
    to = t;
  }
  if (from != at) {
    memcpy(at, from, (size_t)n * sizeof *at);
  }
}
