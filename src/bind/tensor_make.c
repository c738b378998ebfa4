/* Creation: tensors out of nested tables, constants, ranges and random numbers.
 * Sizes come as arguments or as a list; the options table comes last. */
#include "bind/tensor.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "tensor/fill.h"

/* ---- options ---- */

bool pl_check_options(lua_State *L, int idx, const char *fn, const char *const *known) {
  if (lua_isnoneornil(L, idx)) {
    return false;
  }
  if (!lua_istable(L, idx)) {
    pl_lua_raise(L, "%s: options must be a table, got %s", fn, luaL_typename(L, idx));
  }
  lua_pushnil(L);
  while (lua_next(L, idx) != 0) {
    lua_pop(L, 1);
    bool found = false;
    for (int i = 0; known[i] != NULL && lua_type(L, -1) == LUA_TSTRING; i++) {
      found = found || strcmp(known[i], lua_tostring(L, -1)) == 0;
    }
    if (!found) {
      lua_getglobal(L, "require");
      lua_pushliteral(L, "perilune.options");
      lua_call(L, 1, 1);
      lua_getfield(L, -1, "unknown");
      lua_pushliteral(L, "option");
      lua_pushvalue(L, -4);
      lua_newtable(L);
      for (int i = 0; known[i] != NULL; i++) {
        lua_pushstring(L, known[i]);
        lua_rawseti(L, -2, i + 1);
      }
      lua_call(L, 3, 1);
      pl_lua_raise(L, "%s: %s", fn, lua_tostring(L, -1));
    }
  }
  return true;
}

typedef struct making {
  pl_dtype dtype;
  bool has_dtype, requires_grad, has_seed;
  uint64_t seed, stream;
} making;

static making read_options(lua_State *L, int idx, const char *fn, pl_dtype dtype, bool random) {
  static const char *const plain[] = {"dtype", "requires_grad", NULL};
  static const char *const seeded[] = {"dtype", "requires_grad", "seed", NULL};
  making m = {.dtype = dtype};
  luaL_checkstack(L, 8, fn);
  if (!lua_isnone(L, idx) && !lua_isnone(L, idx + 1)) {
    pl_lua_raise(L, "%s: nothing may follow the options table", fn);
  }
  if (!pl_check_options(L, idx, fn, random ? seeded : plain)) {
    return m;
  }
  if (lua_getfield(L, idx, "dtype") != LUA_TNIL) {
    if (lua_type(L, -1) != LUA_TSTRING) {
      pl_lua_raise(L, "%s: option dtype must be a name like \"f32\", got %s", fn,
                   luaL_typename(L, -1));
    }
    pl_status st = pl_dtype_find(pl_lua_ctx(L), lua_tostring(L, -1), &m.dtype);
    if (st != PL_OK) {
      pl_lua_check(L, pl_fail_in(pl_lua_ctx(L), st, "%s", fn));
    }
    m.has_dtype = true;
  }
  if (lua_getfield(L, idx, "requires_grad") != LUA_TNIL) {
    if (!lua_isboolean(L, -1)) {
      pl_lua_raise(L, "%s: option requires_grad must be true or false, got %s", fn,
                   luaL_typename(L, -1));
    }
    m.requires_grad = lua_toboolean(L, -1);
  }
  if (lua_getfield(L, idx, "seed") != LUA_TNIL) {
    if (!lua_isinteger(L, -1)) {
      pl_lua_raise(L, "%s: option seed must be an integer, got %s", fn,
                   luaL_tolstring(L, -1, NULL));
    }
    m.has_seed = true;
    m.seed = (uint64_t)lua_tointeger(L, -1);
  }
  lua_pop(L, 3);
  return m;
}

/* The seed and stream of a call: given, or the next stream of pl.seed's. */
static void take_stream(lua_State *L, making *m) {
  if (!m->has_seed) {
    pl_lua *p = pl_lua_of(L);
    m->seed = p->seed;
    m->stream = ++p->stream;
  }
}

static pl_status make(pl_ctx *c, pl_dtype d, int n, const int64_t *sizes, pl_tensor **box) {
  return pl_tensor_new(c, d, n, sizes, box);
}

/* A new tensor in a box on the stack. Collects once when memory is short. */
static pl_tensor *push_new(lua_State *L, const char *fn, const making *m, int n,
                           const int64_t *sizes) {
  pl_ctx *c = pl_lua_ctx(L);
  if (m->requires_grad && !pl_dtypes[m->dtype].is_float) {
    pl_lua_raise(L, "%s: requires_grad needs a float dtype, not %s", fn, pl_dtypes[m->dtype].name);
  }
  pl_tensor **box = pl_push_box(L);
  pl_tensor *t = NULL;
  pl_status st = make(c, m->dtype, n, sizes, &t);
  if (st == PL_ENOMEM) {
    lua_gc(L, LUA_GCCOLLECT);
    pl_mem_trim(c);
    st = make(c, m->dtype, n, sizes, &t);
  }
  if (st != PL_OK) {
    pl_lua_check(L, pl_fail_in(c, st, "%s", fn));
  }
  t->requires_grad = m->requires_grad;
  pl_box_set(L, box, t);
  return t;
}

/* ---- constants and ranges ---- */

static int filled(lua_State *L, const char *fn, double v) {
  int64_t sizes[PL_MAX_DIMS];
  int next;
  int n = pl_check_sizes(L, 1, fn, sizes, PL_MAX_DIMS, &next);
  making m = read_options(L, next, fn, PL_F32, false);
  pl_fill_value(push_new(L, fn, &m, n, sizes), v);
  return 1;
}

static int zeros(lua_State *L) {
  return filled(L, "zeros", 0);
}

static int ones(lua_State *L) {
  return filled(L, "ones", 1);
}

static int full(lua_State *L) {
  int64_t sizes[PL_MAX_DIMS];
  int next;
  int n;
  int at; /* of the value: after the list, or the last number */
  if (lua_istable(L, 1)) {
    n = pl_check_sizes(L, 1, "full", sizes, PL_MAX_DIMS, &next);
    at = next;
  } else {
    at = 1;
    while (lua_type(L, at + 1) == LUA_TNUMBER) {
      at++;
    }
    n = at - 1;
    for (int i = 0; i < n && i < PL_MAX_DIMS; i++) {
      int ok;
      sizes[i] = lua_tointegerx(L, i + 1, &ok);
      if (!ok) {
        pl_lua_raise(L, "full: size %d must be an integer, got %g", i + 1, lua_tonumber(L, i + 1));
      }
    }
    if (n > PL_MAX_DIMS) {
      pl_lua_raise(L, "full: at most %d sizes", PL_MAX_DIMS);
    }
  }
  if (lua_type(L, at) != LUA_TNUMBER) {
    pl_lua_raise(L, "full: the value after the sizes must be a number, got %s",
                 luaL_typename(L, at));
  }
  double v = lua_tonumber(L, at);
  making m = read_options(L, at + 1, "full", PL_F32, false);
  pl_fill_value(push_new(L, "full", &m, n, sizes), v);
  return 1;
}

static int arange(lua_State *L) {
  int n = 0;
  bool whole = true;
  double v[3] = {0, 0, 1};
  while (n < 3 && lua_type(L, n + 1) == LUA_TNUMBER) {
    v[n] = lua_tonumber(L, n + 1);
    whole = whole && lua_isinteger(L, n + 1);
    n++;
  }
  if (n == 0) {
    return pl_lua_raise(L, "arange: wants to, or from, to, step; got %s", luaL_typename(L, 1));
  }
  making m = read_options(L, n + 1, "arange", whole ? PL_I64 : PL_F32, false);
  double from = n == 1 ? 0 : v[0];
  double to = n == 1 ? v[0] : v[1];
  double count = ceil((to - from) / v[2]);
  if (v[2] == 0 || !(count < 9e15)) {
    return pl_lua_raise(L, "arange: from %g to %g in steps of %g has no end", from, to, v[2]);
  }
  int64_t size = count > 0 ? (int64_t)count : 0;
  pl_fill_range(push_new(L, "arange", &m, 1, &size), from, v[2]);
  return 1;
}

static double check_number(lua_State *L, int idx, const char *fn, const char *what) {
  if (lua_type(L, idx) != LUA_TNUMBER) {
    pl_lua_raise(L, "%s: %s must be a number, got %s", fn, what, luaL_typename(L, idx));
  }
  return lua_tonumber(L, idx);
}

static int64_t check_integer(lua_State *L, int idx, const char *fn, const char *what) {
  int ok = 0;
  int64_t v = lua_type(L, idx) == LUA_TNUMBER ? lua_tointegerx(L, idx, &ok) : 0;
  if (!ok) {
    pl_lua_raise(L, "%s: %s must be an integer, got %s", fn, what, luaL_tolstring(L, idx, NULL));
  }
  return v;
}

static int linspace(lua_State *L) {
  double from = check_number(L, 1, "linspace", "from");
  double to = check_number(L, 2, "linspace", "to");
  int64_t n = check_integer(L, 3, "linspace", "n");
  making m = read_options(L, 4, "linspace", PL_F32, false);
  pl_tensor *t = push_new(L, "linspace", &m, 1, &n);
  pl_fill_range(t, from, n > 1 ? (to - from) / (double)(n - 1) : 0);
  if (n > 1) { /* the end is exactly what was asked for */
    int64_t last = n - 1;
    pl_set(t, &last, to);
  }
  return 1;
}

static int eye(lua_State *L) {
  int64_t sizes[2] = {check_integer(L, 1, "eye", "n"), 0};
  bool two = lua_type(L, 2) == LUA_TNUMBER;
  sizes[1] = two ? check_integer(L, 2, "eye", "m") : sizes[0];
  making m = read_options(L, two ? 3 : 2, "eye", PL_F32, false);
  pl_fill_eye(push_new(L, "eye", &m, 2, sizes));
  return 1;
}

/* ---- random numbers ---- */

static int random_floats(lua_State *L, const char *fn,
                         void (*fill)(pl_tensor *, uint64_t, uint64_t)) {
  int64_t sizes[PL_MAX_DIMS];
  int next;
  int n = pl_check_sizes(L, 1, fn, sizes, PL_MAX_DIMS, &next);
  making m = read_options(L, next, fn, PL_F32, true);
  if (!pl_dtypes[m.dtype].is_float) {
    return pl_lua_raise(L, "%s: dtype must be a float, not %s; for integers use randint", fn,
                        pl_dtypes[m.dtype].name);
  }
  pl_tensor *t = push_new(L, fn, &m, n, sizes);
  take_stream(L, &m);
  fill(t, m.seed, m.stream);
  return 1;
}

static int randn(lua_State *L) {
  return random_floats(L, "randn", pl_fill_normal);
}

static int rand_(lua_State *L) {
  return random_floats(L, "rand", pl_fill_uniform);
}

static int randint(lua_State *L) {
  int64_t low = check_integer(L, 1, "randint", "low");
  int64_t high = check_integer(L, 2, "randint", "high");
  if (high <= low) {
    return pl_lua_raise(L, "randint: high must be above low (it is left out), got %lld and %lld",
                        (long long)low, (long long)high);
  }
  int64_t sizes[PL_MAX_DIMS];
  int next;
  int n = pl_check_sizes(L, 3, "randint", sizes, PL_MAX_DIMS, &next);
  making m = read_options(L, next, "randint", PL_I64, true);
  pl_tensor *t = push_new(L, "randint", &m, n, sizes);
  take_stream(L, &m);
  pl_fill_integers(t, m.seed, m.stream, low, (uint64_t)high - (uint64_t)low);
  return 1;
}

static int randperm(lua_State *L) {
  int64_t n = check_integer(L, 1, "randperm", "n");
  making m = read_options(L, 2, "randperm", PL_I64, true);
  if (m.dtype != PL_I64) {
    return pl_lua_raise(L, "randperm: dtype is always i64");
  }
  pl_tensor *t = push_new(L, "randperm", &m, 1, &n);
  take_stream(L, &m);
  pl_permutation(m.seed, m.stream, n, pl_i64(t));
  for (int64_t i = 0; i < n; i++) {
    pl_i64(t)[i]++; /* positions count from 1 */
  }
  return 1;
}

static int seed(lua_State *L) {
  pl_lua *p = pl_lua_of(L);
  p->seed = (uint64_t)check_integer(L, 1, "seed", "the seed");
  p->stream = 0;
  return 0;
}

/* ---- from nested tables ---- */

/* "[2][1]" for error texts. */
static const char *place(lua_State *L, const int64_t *at, int depth) {
  lua_pushliteral(L, "");
  for (int d = 0; d < depth; d++) {
    lua_pushfstring(L, "%s[%I]", lua_tostring(L, -1), (LUAI_UACINT)at[d] + 1);
    lua_remove(L, -2);
  }
  return lua_tostring(L, -1);
}

typedef struct nested {
  pl_tensor *t;
  int ndim;
  int64_t shape[PL_MAX_DIMS];
  int64_t at[PL_MAX_DIMS];
  int64_t next; /* element to fill */
} nested;

/* The value on top of the stack fills the part of the tensor from depth on. */
static void fill_nested(lua_State *L, nested *n, int depth) {
  luaL_checkstack(L, 6, "tensor");
  if (depth == n->ndim) {
    double v = 0;
    if (lua_type(L, -1) == LUA_TNUMBER) {
      v = lua_tonumber(L, -1);
    } else if (lua_isboolean(L, -1)) {
      v = lua_toboolean(L, -1);
    } else {
      const char *got = luaL_typename(L, -1);
      pl_lua_raise(L, "tensor: entry %s must be a number, got %s", place(L, n->at, depth), got);
    }
    if (n->t->dtype == PL_I64 && lua_isinteger(L, -1)) {
      pl_i64(n->t)[n->next++] = lua_tointeger(L, -1);
      return;
    }
    if (n->t->dtype == PL_F32) {
      pl_f32(n->t)[n->next++] = (float)v;
      return;
    }
    n->next++;
    pl_set(n->t, n->at, v);
    return;
  }
  if (!lua_istable(L, -1)) {
    const char *got = luaL_typename(L, -1);
    pl_lua_raise(L, "tensor: entry %s must be a list of %lld, got %s", place(L, n->at, depth),
                 (long long)n->shape[depth], got);
  }
  int64_t len = (int64_t)lua_rawlen(L, -1);
  if (len != n->shape[depth]) {
    pl_lua_raise(L, "tensor: entry %s has %lld values, the first of its kind has %lld",
                 place(L, n->at, depth), (long long)len, (long long)n->shape[depth]);
  }
  for (int64_t i = 0; i < len; i++) {
    n->at[depth] = i;
    lua_rawgeti(L, -1, (lua_Integer)i + 1);
    fill_nested(L, n, depth + 1);
    lua_pop(L, 1);
  }
}

static int tensor(lua_State *L) {
  pl_dtype natural = PL_F32;
  nested n = {.ndim = 0};
  if (pl_test_tensor(L, 1) != NULL) {
    return pl_lua_raise(L, "tensor: this is a tensor already; use x:clone() or x:detach()");
  }
  if (lua_isnoneornil(L, 1)) {
    return pl_lua_raise(L, "tensor: wants a number or a nested table, got nil");
  }
  lua_pushvalue(L, 1);
  while (lua_istable(L, -1)) { /* the shape is read along the first entries */
    if (n.ndim == PL_MAX_DIMS) {
      return pl_lua_raise(L, "tensor: nested more than %d deep", PL_MAX_DIMS);
    }
    n.shape[n.ndim++] = (int64_t)lua_rawlen(L, -1);
    lua_rawgeti(L, -1, 1);
    lua_remove(L, -2);
  }
  if (lua_isboolean(L, -1)) {
    natural = PL_BOOL;
  }
  lua_pop(L, 1);
  making m = read_options(L, 2, "tensor", natural, false);
  n.t = push_new(L, "tensor", &m, n.ndim, n.shape);
  lua_pushvalue(L, 1);
  fill_nested(L, &n, 0);
  lua_pop(L, 1);
  return 1;
}

#define F PL_BIND_FUNCTION
#define OPTS ", opts: {dtype = \"f32\", requires_grad = false}"
#define SEEDED ", opts: {dtype = \"f32\", seed, requires_grad = false}"

const pl_bind_row pl_tensor_make_rows[] = {
    {"tensor", "values: list" OPTS, "Tensor",
     "A tensor from a number or a nested list of numbers (f32) or booleans (bool).", F, tensor},
    {"zeros", "sizes: shape" OPTS, "Tensor", "All zeros.", F, zeros},
    {"ones", "sizes: shape" OPTS, "Tensor", "All ones.", F, ones},
    {"full", "sizes: shape, value: num" OPTS, "Tensor", "All equal to value.", F, full},
    {"arange", "from: num = 0, to: num, step: num = 1" OPTS, "Tensor",
     "from, from + step, ... below to, [n]; i64 when all are integers. arange(n) starts at 0.", F,
     arange},
    {"linspace", "from: num, to: num, n: int" OPTS, "Tensor", "n values from `from` to `to`, [n].",
     F, linspace},
    {"eye", "n: int, m: int = n" OPTS, "Tensor", "Ones on the diagonal, [n, m].", F, eye},
    {"randn", "sizes: shape" SEEDED, "Tensor",
     "Standard normal numbers; the same seed is the same tensor on any number of threads.", F,
     randn},
    {"rand", "sizes: shape" SEEDED, "Tensor", "Uniform numbers in [0, 1).", F, rand_},
    {"randint", "low: int, high: int, sizes: shape, opts: {dtype = \"i64\", seed}", "Tensor",
     "Uniform whole numbers low, ..., high - 1.", F, randint},
    {"randperm", "n: int, opts: {seed}", "Tensor", "The positions 1..n in random order, [n].", F,
     randperm},
    {"seed", "seed: int", "nil",
     "Seeds the random functions that are given no seed: each call then takes the next stream.", F,
     seed},
    {NULL, NULL, NULL, NULL, 0, NULL},
};
