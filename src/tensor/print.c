/* Printing as in the REPL: rows in braces, at most EDGE entries from each end
 * of a dim, one number format for all that is shown and no shared scale
 * factor; then dtype and shape, and for what does not fit a summary. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tensor/tensor.h"

enum { EDGE = 6, OUTER_EDGE = 3, CELL = 40 };

typedef struct style {
  int kind; /* 0 integers, 1 fixed, 2 scientific, 3 bool */
  int width;
} style;

static int edge_of(const pl_tensor *t, int d) {
  return d >= t->ndim - 2 ? EDGE : OUTER_EDGE;
}

/* Next shown position after k in dim d: jumps over the middle of long dims. */
static int64_t next_shown(const pl_tensor *t, int d, int64_t k) {
  int e = edge_of(t, d);
  if (t->shape[d] > 2 * e && k == e - 1) {
    return t->shape[d] - e;
  }
  return k + 1;
}

static bool elided(const pl_tensor *t) {
  for (int d = 0; d < t->ndim; d++) {
    if (t->shape[d] > 2 * edge_of(t, d)) {
      return true;
    }
  }
  return false;
}

/* Steps index through the shown elements; false after the last. */
static bool next_index(const pl_tensor *t, int64_t *index) {
  for (int d = t->ndim - 1; d >= 0; d--) {
    index[d] = next_shown(t, d, index[d]);
    if (index[d] < t->shape[d]) {
      return true;
    }
    index[d] = 0;
  }
  return false;
}

static int cell(const pl_tensor *t, const style *s, const int64_t *index, char out[CELL]) {
  double v = pl_get(t, index);
  if (s->kind == 3) {
    return snprintf(out, CELL, "%s", v != 0 ? "true" : "false");
  }
  if (t->dtype == PL_I64) { /* all 64 bits, not the 53 of a double */
    int64_t at = t->offset;
    for (int d = 0; d < t->ndim; d++) {
      at += index[d] * t->stride[d];
    }
    return snprintf(out, CELL, "%lld", (long long)((const int64_t *)t->storage->data)[at]);
  }
  if (!isfinite(v)) {
    return snprintf(out, CELL, "%s", isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
  }
  return snprintf(out, CELL, s->kind == 0 ? "%.0f" : s->kind == 1 ? "%.4f" : "%.4e", v);
}

static style choose_style(const pl_tensor *t) {
  style s = {0, 0};
  double big = 0;
  double small = INFINITY;
  bool whole = true;
  int64_t i[PL_MAX_DIMS] = {0};
  do {
    double v = fabs(pl_get(t, i));
    if (isfinite(v)) {
      big = v > big ? v : big;
      small = v > 0 && v < small ? v : small;
      whole = whole && v == floor(v);
    }
  } while (next_index(t, i));
  if (t->dtype == PL_BOOL) {
    s.kind = 3;
  } else if (pl_dtypes[t->dtype].is_float && !(whole && big < 1e7)) {
    s.kind = big >= 1e5 || (big > 0 && big < 1e-3) || small < 1e-9 * big ? 2 : 1;
  }
  char text[CELL];
  memset(i, 0, sizeof i);
  do {
    int w = cell(t, &s, i, text);
    s.width = w > s.width ? w : s.width;
  } while (next_index(t, i));
  return s;
}

static pl_status print_dim(pl_ctx *c, const pl_tensor *t, const style *s, int d, int64_t *index,
                           pl_buf *out) {
  if (d == t->ndim) {
    char text[CELL];
    cell(t, s, index, text);
    return pl_buf_printf(c, out, "%*s", s->width, text);
  }
  PL_TRY(pl_buf_puts(c, out, "{"));
  bool last = d == t->ndim - 1;
  for (int64_t k = 0; k < t->shape[d];) {
    index[d] = k;
    PL_TRY(print_dim(c, t, s, d + 1, index, out));
    int64_t next = next_shown(t, d, k);
    if (next < t->shape[d]) {
      PL_TRY(pl_buf_puts(c, out, last ? ", " : ",\n"));
      if (!last) {
        PL_TRY(pl_buf_printf(c, out, "%*s", d + 1, ""));
      }
    }
    if (next > k + 1) {
      PL_TRY(pl_buf_puts(c, out, last ? "..., " : "...,\n"));
      if (!last) {
        PL_TRY(pl_buf_printf(c, out, "%*s", d + 1, ""));
      }
    }
    k = next;
  }
  return pl_buf_puts(c, out, "}");
}

/* mean, std, min, max of all that is not NaN, and how many are */
static pl_status print_summary(pl_ctx *c, const pl_tensor *t, pl_buf *out) {
  double sum = 0;
  double sq = 0;
  double lo = INFINITY;
  double hi = -INFINITY;
  int64_t nan = 0;
  int64_t n = pl_numel(t);
  for (int pass = 0; pass < 2; pass++) {
    double mean = sum / (double)(n - nan);
    int64_t i[PL_MAX_DIMS] = {0};
    for (int64_t k = 0; k < n; k++) {
      double v = pl_get(t, i);
      if (isnan(v)) {
        nan += pass == 0;
      } else if (pass == 0) {
        sum += v;
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
      } else {
        sq += (v - mean) * (v - mean);
      }
      for (int d = t->ndim - 1; d >= 0; d--) {
        if (++i[d] < t->shape[d]) {
          break;
        }
        i[d] = 0;
      }
    }
  }
  int64_t m = n - nan;
  PL_TRY(pl_buf_printf(c, out, "  mean %.4g  std %.4g  min %.4g  max %.4g", sum / (double)m,
                       m > 1 ? sqrt(sq / (double)(m - 1)) : 0.0, lo, hi));
  if (nan > 0) {
    PL_TRY(pl_buf_printf(c, out, "  NaN %lld", (long long)nan));
  }
  return PL_OK;
}

pl_status pl_tensor_print(pl_ctx *c, const pl_tensor *t, pl_buf *out) {
  if (pl_numel(t) > 0) {
    style s = choose_style(t);
    int64_t index[PL_MAX_DIMS] = {0};
    PL_TRY(print_dim(c, t, &s, 0, index, out));
    PL_TRY(pl_buf_puts(c, out, t->ndim > 1 ? "\n" : "  "));
  }
  char text[128];
  PL_TRY(pl_buf_printf(c, out, "%s %s", pl_dtypes[t->dtype].name, pl_shape_str(t, text)));
  if (elided(t) && pl_numel(t) > 0 && t->dtype != PL_BOOL) {
    PL_TRY(print_summary(c, t, out));
  }
  if (t->requires_grad) {
    PL_TRY(pl_buf_puts(c, out, t->node == NULL ? "  requires grad" : "  has history"));
  }
  return PL_OK;
}
