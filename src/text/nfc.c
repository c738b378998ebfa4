/* Normalization forms C and D: decompose, order the marks, compose.
 * Linear in the text, also for long runs of marks. */
#include "text/nfc.h"

#include <string.h>

#include "base/mem.h"
#include "text/nfc_table.h"
#include "text/utf8.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])
#define FIRST_CHANGED 0x300 /* text below this is in form C already */
#define FIRST_DECOMPOSED 0xc0
#define SHORT_RUN 16 /* marks up to which a plain insertion sort will do */

enum { /* Hangul syllables, The Unicode Standard 3.12 */
  S_BASE = 0xac00,
  L_BASE = 0x1100,
  V_BASE = 0x1161,
  T_BASE = 0x11a7,
  L_COUNT = 19,
  V_COUNT = 21,
  T_COUNT = 28,
  S_COUNT = L_COUNT * V_COUNT * T_COUNT
};

typedef struct points { /* code points; a wrong byte b is -1 - b */
  int32_t *at;
  size_t n, cap;
} points;

static pl_status add(pl_ctx *c, points *p, int32_t cp) {
  if (p->n == p->cap) {
    size_t cap = p->cap ? p->cap * 2 : 256;
    int32_t *at = pl_realloc(c, p->at, cap * sizeof *at);
    if (!at) {
      return PL_ENOMEM;
    }
    p->at = at;
    p->cap = cap;
  }
  p->at[p->n] = cp;
  p->n++;
  return PL_OK;
}

static unsigned combining_class(int32_t cp) {
  size_t lo = 0;
  size_t hi = cp < FIRST_CHANGED ? 0 : COUNT(classes);
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (cp > classes[mid].to) {
      lo = mid + 1;
    } else if (cp < classes[mid].from) {
      hi = mid;
    } else {
      return classes[mid].ccc;
    }
  }
  return 0;
}

/* Decompositions are at most a few steps deep: each step's first part may go on. */
static pl_status decompose(pl_ctx *c, points *p, int32_t cp) {
  int32_t s = cp - S_BASE;
  if (s >= 0 && s < S_COUNT) {
    PL_TRY(add(c, p, L_BASE + s / (V_COUNT * T_COUNT)));
    PL_TRY(add(c, p, V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT));
    return s % T_COUNT ? add(c, p, T_BASE + s % T_COUNT) : PL_OK;
  }
  size_t lo = 0;
  size_t hi = cp < FIRST_DECOMPOSED ? 0 : COUNT(decompositions);
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (decompositions[mid].cp == cp) {
      PL_TRY(decompose(c, p, decompositions[mid].first));
      return decompositions[mid].second ? decompose(c, p, decompositions[mid].second) : PL_OK;
    }
    if (decompositions[mid].cp < cp) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return add(c, p, cp);
}

static pl_status read_points(pl_ctx *c, const char *s, size_t n, points *p) {
  size_t len = 0;
  for (size_t i = 0; i < n; i += len) {
    int32_t cp = pl_utf8_next(s + i, n - i, &len);
    for (size_t k = 0; k < len && cp < 0; k++) {
      PL_TRY(add(c, p, -1 - (unsigned char)s[i + k]));
    }
    if (cp >= 0) {
      PL_TRY(decompose(c, p, cp));
    }
  }
  return PL_OK;
}

/* Stable order by combining class of a run of marks; room: n code points. */
static void order_run(int32_t *x, size_t n, int32_t *room) {
  size_t starts[257] = {0};
  if (n <= SHORT_RUN) {
    for (size_t i = 1; i < n; i++) {
      int32_t cp = x[i];
      unsigned ccc = combining_class(cp);
      size_t k = i;
      while (k > 0 && combining_class(x[k - 1]) > ccc) {
        x[k] = x[k - 1];
        k--;
      }
      x[k] = cp;
    }
    return;
  }
  for (size_t i = 0; i < n; i++) {
    starts[combining_class(x[i]) + 1]++;
  }
  for (size_t i = 1; i < 257; i++) {
    starts[i] += starts[i - 1];
  }
  for (size_t i = 0; i < n; i++) {
    size_t *to = &starts[combining_class(x[i])];
    room[*to] = x[i];
    (*to)++;
  }
  memcpy(x, room, n * sizeof *x);
}

static pl_status order_marks(pl_ctx *c, points *p) {
  int32_t *room = pl_alloc(c, p->n * sizeof *room);
  if (!room) {
    return PL_ENOMEM;
  }
  size_t i = 0;
  while (i < p->n) {
    size_t end = i;
    while (end < p->n && combining_class(p->at[end]) != 0) {
      end++;
    }
    order_run(p->at + i, end - i, room);
    i = end + 1;
  }
  pl_free(c, room);
  return PL_OK;
}

/* The character that a and b make, or -1. */
static int32_t compose_pair(int32_t a, int32_t b) {
  int32_t l = a - L_BASE;
  int32_t v = b - V_BASE;
  if (l >= 0 && l < L_COUNT && v >= 0 && v < V_COUNT) {
    return S_BASE + (l * V_COUNT + v) * T_COUNT;
  }
  int32_t s = a - S_BASE;
  int32_t t = b - T_BASE;
  if (s >= 0 && s < S_COUNT && s % T_COUNT == 0 && t > 0 && t < T_COUNT) {
    return a + t;
  }
  size_t lo = 0;
  size_t hi = COUNT(compositions);
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    size_t row = compositions[mid];
    int32_t first = decompositions[row].first;
    int32_t second = decompositions[row].second;
    if (first == a && second == b) {
      return decompositions[row].cp;
    }
    if (first < a || (first == a && second < b)) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return -1;
}

static void compose_all(points *p) {
  size_t n = 0;
  size_t starter = SIZE_MAX; /* where the last character of class 0 went */
  unsigned last = 0;         /* class of what was kept behind it, 0: nothing */
  for (size_t i = 0; i < p->n; i++) {
    int32_t cp = p->at[i];
    unsigned ccc = combining_class(cp);
    bool open = starter != SIZE_MAX && (n == starter + 1 || ccc > last);
    int32_t made = open && cp >= FIRST_CHANGED ? compose_pair(p->at[starter], cp) : -1;
    if (made >= 0) {
      p->at[starter] = made;
      continue;
    }
    p->at[n] = cp;
    if (ccc == 0) {
      starter = n;
    }
    last = ccc;
    n++;
  }
  p->n = n;
}

static pl_status write_points(pl_ctx *c, const points *p, pl_buf *out) {
  for (size_t i = 0; i < p->n; i++) {
    char bytes[4];
    size_t len = 1;
    if (p->at[i] < 0) {
      bytes[0] = (char)(-1 - p->at[i]);
    } else {
      len = pl_utf8_put(bytes, p->at[i]);
    }
    PL_TRY(pl_buf_add(c, out, bytes, len));
  }
  return PL_OK;
}

/* True if no code point reaches the first one that could change. */
static bool all_below(const char *s, size_t n, bool compose) {
  unsigned char limit = compose ? 0xcc : 0xc3; /* first bytes of U+0300 and U+00C0 */
  for (size_t i = 0; i < n; i++) {
    if ((unsigned char)s[i] >= limit) {
      return false;
    }
  }
  return true;
}

pl_status pl_nfc_add(pl_ctx *c, pl_buf *out, const char *s, size_t n, bool compose) {
  if (all_below(s, n, compose)) {
    return pl_buf_add(c, out, s, n);
  }
  points p = {0};
  pl_status st = read_points(c, s, n, &p);
  if (st == PL_OK) {
    st = order_marks(c, &p);
  }
  if (st == PL_OK && compose) {
    compose_all(&p);
  }
  if (st == PL_OK) {
    st = write_points(c, &p, out);
  }
  pl_free(c, p.at);
  return st;
}
