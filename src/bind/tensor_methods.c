/* Methods that are not op rows: questions about a tensor, values in and out of
 * Lua, gradients, in-place changes, early release. */
#include "bind/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- questions ---- */

static int dim(lua_State *L) {
  lua_pushinteger(L, pl_check_tensor(L, 1)->ndim);
  return 1;
}

static void push_sizes(lua_State *L, const pl_tensor *t) {
  lua_createtable(L, t->ndim, 0);
  for (int d = 0; d < t->ndim; d++) {
    lua_pushinteger(L, t->shape[d]);
    lua_rawseti(L, -2, d + 1);
  }
}

static int shape(lua_State *L) {
  push_sizes(L, pl_check_tensor(L, 1));
  return 1;
}

static int size(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  if (lua_isnoneornil(L, 2)) {
    push_sizes(L, t);
    return 1;
  }
  int d = 0;
  pl_ctx *c = pl_lua_ctx(L);
  pl_status st = pl_norm_dim(c, t, pl_check_count1(L, 2, "size", "dim"), &d);
  if (st != PL_OK) {
    pl_lua_check(L, pl_fail_in(c, st, "size"));
  }
  lua_pushinteger(L, t->shape[d]);
  return 1;
}

static int length(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  if (t->ndim == 0) {
    return pl_lua_raise(L, "#x: a 0-dim tensor has no length; use x:item() for its value");
  }
  lua_pushinteger(L, t->shape[0]);
  return 1;
}

static int dtype(lua_State *L) {
  lua_pushstring(L, pl_dtypes[pl_check_tensor(L, 1)->dtype].name);
  return 1;
}

static int numel(lua_State *L) {
  lua_pushinteger(L, pl_numel(pl_check_tensor(L, 1)));
  return 1;
}

static int is_contiguous(lua_State *L) {
  lua_pushboolean(L, pl_contiguous(pl_check_tensor(L, 1)));
  return 1;
}

static int is_tensor(lua_State *L) {
  lua_pushboolean(L, luaL_testudata(L, 1, PL_TENSOR_NAME) != NULL);
  return 1;
}

/* Changes with every in-place write: what was computed from the values before is stale. */
static int version(lua_State *L) {
  lua_pushinteger(L, pl_check_tensor(L, 1)->storage->version);
  return 1;
}

/* ---- values ---- */

static void push_element(lua_State *L, const pl_tensor *t, const int64_t *at) {
  if (t->dtype == PL_BOOL) {
    lua_pushboolean(L, pl_get(t, at) != 0);
  } else if (pl_dtypes[t->dtype].is_float) {
    lua_pushnumber(L, pl_get(t, at));
  } else if (t->dtype == PL_I64) { /* not through a double: 2^53 */
    int64_t off = 0;
    for (int d = 0; d < t->ndim; d++) {
      off += at[d] * t->stride[d];
    }
    lua_pushinteger(L, pl_i64(t)[off]);
  } else {
    lua_pushinteger(L, (lua_Integer)pl_get(t, at));
  }
}

static int item(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  if (pl_numel(t) != 1) {
    char s[128];
    return pl_lua_raise(L, "item: wants a tensor of one element, got %s; use x[i] or x:tolist()",
                        pl_shape_str(t, s));
  }
  int64_t at[PL_MAX_DIMS] = {0};
  push_element(L, t, at);
  return 1;
}

static void push_list(lua_State *L, const pl_tensor *t, int64_t *at, int d) {
  if (d == t->ndim) {
    push_element(L, t, at);
    return;
  }
  luaL_checkstack(L, 4, "tolist");
  lua_createtable(L, (int)(t->shape[d] > 1 << 20 ? 1 << 20 : t->shape[d]), 0);
  for (int64_t i = 0; i < t->shape[d]; i++) {
    at[d] = i;
    push_list(L, t, at, d + 1);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

static int tolist(lua_State *L) {
  int64_t at[PL_MAX_DIMS] = {0};
  push_list(L, pl_check_tensor(L, 1), at, 0);
  return 1;
}

static int to_string(lua_State *L) {
  pl_tensor **box = luaL_checkudata(L, 1, PL_TENSOR_NAME);
  if (*box == NULL) {
    lua_pushliteral(L, "tensor (freed)");
    return 1;
  }
  pl_ctx *c = pl_lua_ctx(L);
  pl_buf *b = pl_lua_newbuf(L, (size_t)64 << 20);
  pl_lua_check(L, pl_tensor_print(c, *box, b));
  lua_pushlstring(L, b->data != NULL ? b->data : "", b->len);
  pl_buf_free(c, b);
  return 1;
}

/* The operand of a method as a tensor; a number becomes one in a box on the stack. */
static pl_tensor *operand(lua_State *L, int idx, const char *fn, const pl_tensor *beside) {
  if (lua_type(L, idx) == LUA_TNUMBER) {
    pl_tensor **box = pl_push_box(L);
    pl_lua_check(L, pl_scalar_like(pl_lua_ctx(L), beside, lua_tonumber(L, idx),
                                   lua_isinteger(L, idx), box));
    return *box;
  }
  pl_tensor *t = pl_test_tensor(L, idx);
  if (t == NULL) {
    pl_lua_raise(L, "%s: wants a tensor, got %s", fn, luaL_typename(L, idx));
  }
  return t;
}

/* A contiguous tensor with t's values, anchored on the stack. */
static pl_tensor *push_flat(lua_State *L, const pl_tensor *t, pl_dtype d) {
  pl_tensor **box = pl_push_box(L);
  pl_ctx *c = pl_lua_ctx(L);
  if (t->dtype == d) {
    pl_lua_check(L, pl_tensor_contiguous(c, t, box));
  } else {
    pl_lua_check(L, pl_tensor_cast(c, t, d, box));
  }
  return *box;
}

static int equal(lua_State *L) {
  pl_tensor *a = pl_check_tensor(L, 1);
  pl_tensor *b = operand(L, 2, "equal", a);
  bool same = a->dtype == b->dtype && pl_same_shape(a, b);
  if (same) {
    pl_tensor *fa = push_flat(L, a, a->dtype);
    pl_tensor *fb = push_flat(L, b, b->dtype);
    size_t bytes = (size_t)pl_numel(fa) * pl_dtypes[fa->dtype].size;
    same = bytes == 0 || memcmp(pl_data(fa), pl_data(fb), bytes) == 0;
  }
  lua_pushboolean(L, same);
  return 1;
}

static double option(lua_State *L, int idx, const char *name, double def) {
  double v = def;
  if (lua_istable(L, idx)) {
    if (lua_getfield(L, idx, name) != LUA_TNIL) {
      if (lua_type(L, -1) != LUA_TNUMBER) {
        pl_lua_raise(L, "allclose: option %s must be a number, got %s", name, luaL_typename(L, -1));
      }
      v = lua_tonumber(L, -1);
    }
    lua_pop(L, 1);
  }
  return v;
}

static int allclose(lua_State *L) {
  static const char *const known[] = {"rtol", "atol", NULL};
  lua_settop(L, 3);
  pl_tensor *a = pl_check_tensor(L, 1);
  pl_check_options(L, 3, "allclose", known);
  double rtol = option(L, 3, "rtol", 1e-5);
  double atol = option(L, 3, "atol", 1e-8);
  pl_tensor *b = operand(L, 2, "allclose", a);
  char sa[128];
  char sb[128];
  if (!pl_same_shape(a, b)) {
    return pl_lua_raise(L, "allclose: shapes differ: %s and %s", pl_shape_str(a, sa),
                        pl_shape_str(b, sb));
  }
  const double *x = pl_data(push_flat(L, a, PL_F64));
  const double *y = pl_data(push_flat(L, b, PL_F64));
  int64_t n = pl_numel(a);
  bool close = true;
  for (int64_t i = 0; i < n && close; i++) {
    close = x[i] == y[i] || fabs(x[i] - y[i]) <= atol + rtol * fabs(y[i]);
  }
  lua_pushboolean(L, close);
  return 1;
}

/* ---- gradients ---- */

static int requires_grad_(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  bool on = true;
  if (!lua_isnoneornil(L, 2)) {
    if (!lua_isboolean(L, 2)) {
      return pl_lua_raise(L, "requires_grad_: wants true or false, got %s", luaL_typename(L, 2));
    }
    on = lua_toboolean(L, 2);
  }
  pl_lua_check(L, pl_set_requires_grad(pl_lua_ctx(L), t, on));
  lua_settop(L, 1);
  return 1;
}

static int backward(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  pl_tensor *g = NULL;
  if (!lua_isnoneornil(L, 2)) {
    g = operand(L, 2, "backward", t);
  }
  pl_lua_check(L, pl_backward(pl_lua_ctx(L), t, g));
  return 0;
}

static int zero_grad(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  pl_tensor *g = t->grad;
  t->grad = NULL;
  pl_tensor_unref(g);
  lua_settop(L, 1);
  return 1;
}

#define GUARD_NAME "perilune.ModeGuard"

typedef struct mode {
  bool grad_enabled, bf16;
} mode;

static int guard_close(lua_State *L) {
  const mode *was = luaL_checkudata(L, 1, GUARD_NAME);
  pl_lua_ctx(L)->grad_enabled = was->grad_enabled;
  pl_lua_ctx(L)->bf16 = was->bf16;
  return 0;
}

/* Pushes what brings the present mode back when it is closed, on every way out: also
 * errors keep their traceback. */
static void push_guard(lua_State *L) {
  const pl_ctx *c = pl_lua_ctx(L);
  mode *was = lua_newuserdatauv(L, sizeof *was, 0);
  *was = (mode){c->grad_enabled, c->bf16};
  luaL_setmetatable(L, GUARD_NAME);
}

/* Calls the function at 1 with what is above it in another mode. */
static int call_in_mode(lua_State *L, const char *fn, mode to) {
  luaL_checkany(L, 1);
  if (lua_type(L, 1) != LUA_TFUNCTION) {
    return pl_lua_raise(L, "%s: wants a function, got %s", fn, luaL_typename(L, 1));
  }
  pl_ctx *c = pl_lua_ctx(L);
  push_guard(L);
  lua_insert(L, 1);
  lua_toclose(L, 1);
  c->grad_enabled = to.grad_enabled;
  c->bf16 = to.bf16;
  lua_call(L, lua_gettop(L) - 2, LUA_MULTRET);
  return lua_gettop(L) - 1; /* returning closes the guard */
}

static int no_grad(lua_State *L) {
  return call_in_mode(L, "no_grad", (mode){false, pl_lua_ctx(L)->bf16});
}

static int autocast(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  const bool half = strcmp(name, "bf16") == 0;
  if (!half && strcmp(name, "f32") != 0) {
    return pl_lua_raise(L, "autocast: \"%s\" is not a precision to multiply in; wanted \"bf16\" or "
                        "\"f32\" (as the tensors are)", name);
  }
  lua_remove(L, 1);
  return call_in_mode(L, "autocast", (mode){pl_lua_ctx(L)->grad_enabled, half});
}

static int grad_enabled(lua_State *L) {
  lua_pushboolean(L, pl_lua_ctx(L)->grad_enabled);
  return 1;
}

/* ---- in place ---- */

static void check_inplace(lua_State *L, const char *fn, pl_tensor *t) {
  pl_lua_check(L, pl_inplace_check(pl_lua_ctx(L), fn, t));
}

/* Writes src into dst; where both lie in one storage the values are read first. */
static void write_into(lua_State *L, const char *fn, pl_tensor *dst, pl_tensor *src) {
  pl_ctx *c = pl_lua_ctx(L);
  if (src->storage == dst->storage) {
    pl_tensor **box = pl_push_box(L);
    pl_lua_check(L, pl_tensor_cast(c, src, src->dtype, box));
    src = *box;
  }
  pl_status st = pl_tensor_copy(c, dst, src);
  if (st != PL_OK) {
    pl_lua_check(L, pl_fail_in(c, st, "%s", fn));
  }
}

static int copy_(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  pl_tensor *src = operand(L, 2, "copy_", t);
  check_inplace(L, "copy_", t);
  write_into(L, "copy_", t, src);
  lua_settop(L, 1);
  return 1;
}

static int fill_(lua_State *L) {
  pl_check_tensor(L, 1);
  if (lua_type(L, 2) != LUA_TNUMBER) {
    return pl_lua_raise(L, "fill_: wants a number, got %s", luaL_typename(L, 2));
  }
  return copy_(L);
}

static int zero_(lua_State *L) {
  pl_check_tensor(L, 1);
  lua_settop(L, 1);
  lua_pushinteger(L, 0);
  return copy_(L);
}

/* x:add_(y): the row without the underscore, then the values into x. */
static int by_row(lua_State *L, const char *fn, const pl_op *op) {
  pl_ctx *c = pl_lua_ctx(L);
  pl_tensor *t = pl_check_tensor(L, 1);
  pl_tensor *src = operand(L, 2, fn, t);
  check_inplace(L, fn, t);
  pl_tensor **box = pl_push_box(L);
  pl_tensor *in[2] = {t, src};
  bool was = c->grad_enabled;
  c->grad_enabled = false;
  pl_status st = pl_apply(c, op, in, 2, NULL, box);
  c->grad_enabled = was;
  pl_lua_check(L, st);
  if (!pl_same_shape(*box, t)) {
    char a[128];
    char b[128];
    return pl_lua_raise(L, "%s: the result would be %s, but x stays %s", fn, pl_shape_str(*box, a),
                        pl_shape_str(t, b));
  }
  if (pl_dtypes[(*box)->dtype].is_float && !pl_dtypes[t->dtype].is_float) {
    return pl_lua_raise(L, "%s: the result would be %s, but x stays %s; use x:to(\"f32\")", fn,
                        pl_dtypes[(*box)->dtype].name, pl_dtypes[t->dtype].name);
  }
  write_into(L, fn, t, *box);
  pl_tensor_unref(*box);
  *box = NULL;
  lua_settop(L, 1);
  return 1;
}

static int add_(lua_State *L) {
  return by_row(L, "add_", &pl_op_add);
}

static int sub_(lua_State *L) {
  return by_row(L, "sub_", &pl_op_sub);
}

static int mul_(lua_State *L) {
  return by_row(L, "mul_", &pl_op_mul);
}

static int div_(lua_State *L) {
  return by_row(L, "div_", pl_op_find("div"));
}

/* ---- indexing ---- */

static int index_error(lua_State *L, const pl_tensor *t, int d, int64_t i) {
  char s[128];
  return pl_lua_raise(L, "index %lld is outside 1..%lld (dim %d of %s)", (long long)i,
                      (long long)t->shape[d], d + 1, pl_shape_str(t, s));
}

/* Position i (1-based or negative) of dim d, 0-based; raises when outside. */
static int64_t check_position(lua_State *L, const pl_tensor *t, int d, int64_t i) {
  int64_t at = i > 0 ? i - 1 : i + t->shape[d];
  if (i == 0 || at < 0 || at >= t->shape[d]) {
    index_error(L, t, d, i);
  }
  return at;
}

/* Pushes x at position i of dim d (0-based dim): a view of one dim less. */
static pl_tensor *push_select(lua_State *L, pl_tensor *t, int d, int64_t i) {
  pl_args a = {.i = {d, check_position(L, t, d, i)}, .n_i = 2};
  pl_apply_push(L, pl_op_find("select"), &t, 1, &a, 1);
  return pl_check_tensor(L, -1);
}

/* Pushes the view from..to (both counted, inclusive) of dim d. */
static pl_tensor *push_range(lua_State *L, pl_tensor *t, int d, int64_t from, int64_t to) {
  int64_t first = from > 0 ? from - 1 : from + t->shape[d];
  int64_t last = to > 0 ? to - 1 : to + t->shape[d];
  if (from == 0 || to == 0 || first < 0 || last >= t->shape[d] || last < first - 1) {
    char s[128];
    pl_lua_raise(L, "the range {%lld, %lld} does not lie in 1..%lld (dim %d of %s)",
                 (long long)from, (long long)to, (long long)t->shape[d], d + 1, pl_shape_str(t, s));
  }
  pl_args a = {.i = {d, first, last - first + 1}, .n_i = 3};
  pl_apply_push(L, pl_op_find("narrow"), &t, 1, &a, 1);
  return pl_check_tensor(L, -1);
}

static int64_t whole_key(lua_State *L, int idx) {
  int ok = 0;
  int64_t v = lua_type(L, idx) == LUA_TNUMBER ? lua_tointegerx(L, idx, &ok) : 0;
  if (!ok) {
    pl_lua_raise(L, "index must be an integer, got %s", luaL_tolstring(L, idx, NULL));
  }
  return v;
}

/* x[{a, {b, c}, {}}]: a position, a range and everything, dim by dim. Pushes the view. */
static pl_tensor *push_multi(lua_State *L, pl_tensor *t, int keys) {
  int n = (int)luaL_len(L, keys);
  if (n > t->ndim) {
    char s[128];
    pl_lua_raise(L, "%d indices for %d dims of %s", n, t->ndim, pl_shape_str(t, s));
  }
  int d = 0;
  for (int k = 1; k <= n; k++) {
    luaL_checkstack(L, 8, "index");
    lua_rawgeti(L, keys, k);
    if (lua_istable(L, -1)) {
      int len = (int)luaL_len(L, -1);
      if (len == 2) {
        int at = lua_gettop(L);
        lua_rawgeti(L, at, 1);
        lua_rawgeti(L, at, 2);
        int64_t from = whole_key(L, -2);
        int64_t to = whole_key(L, -1);
        t = push_range(L, t, d, from, to);
      } else if (len != 0) {
        pl_lua_raise(L, "index %d must be a position, {from, to} or {}, got a list of %d", k, len);
      }
      d++;
    } else {
      t = push_select(L, t, d, whole_key(L, -1));
    }
  }
  return t;
}

static int slice(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  int d = 0;
  pl_ctx *c = pl_lua_ctx(L);
  pl_status st = pl_norm_dim(c, t, pl_check_count1(L, 2, "slice", "dim"), &d);
  if (st != PL_OK) {
    pl_lua_check(L, pl_fail_in(c, st, "slice"));
  }
  int64_t from = whole_key(L, 3);
  push_range(L, t, d, from, lua_isnoneornil(L, 4) ? -1 : whole_key(L, 4));
  return 1;
}

/* Upvalue 1: the methods. */
int pl_tensor_index(lua_State *L) {
  pl_tensor **box = luaL_checkudata(L, 1, PL_TENSOR_NAME);
  if (lua_type(L, 2) == LUA_TSTRING) {
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL) {
      return 1;
    }
    const char *key = lua_tostring(L, 2);
    if (strcmp(key, "name") == 0) {
      lua_getiuservalue(L, 1, 1);
      return 1;
    }
    pl_tensor *t = pl_check_tensor(L, 1);
    if (strcmp(key, "grad") == 0) {
      if (t->grad == NULL) {
        lua_pushnil(L);
      } else {
        pl_push_tensor(L, pl_tensor_ref(t->grad));
      }
      return 1;
    }
    if (strcmp(key, "requires_grad") == 0) {
      lua_pushboolean(L, t->requires_grad);
      return 1;
    }
    lua_getglobal(L, "require");
    lua_pushliteral(L, "perilune.options");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "unknown");
    lua_pushliteral(L, "method or field");
    lua_pushvalue(L, 2);
    lua_newtable(L);
    int n = 0;
    lua_pushnil(L);
    while (lua_next(L, lua_upvalueindex(1)) != 0) {
      lua_pop(L, 1);
      lua_pushvalue(L, -1);
      lua_rawseti(L, -3, ++n);
    }
    lua_call(L, 3, 1);
    return pl_lua_raise(L, "tensor: %.200s", lua_tostring(L, -1));
  }
  pl_tensor *t = pl_check_tensor(L, 1);
  (void)box;
  if (lua_istable(L, 2)) {
    if (push_multi(L, t, 2) == t) {
      lua_pushvalue(L, 1);
    }
    return 1;
  }
  pl_tensor *by = pl_test_tensor(L, 2);
  if (by != NULL) { /* x[mask] or x[positions] */
    lua_getfield(L, lua_upvalueindex(1), by->dtype == PL_BOOL ? "masked_select" : "index_select");
    lua_pushvalue(L, 1);
    if (by->dtype != PL_BOOL) {
      lua_pushinteger(L, 1);
    }
    lua_pushvalue(L, 2);
    lua_call(L, by->dtype == PL_BOOL ? 2 : 3, 1);
    return 1;
  }
  if (t->ndim == 0) {
    return pl_lua_raise(L, "a 0-dim tensor cannot be indexed; use x:item() for its value");
  }
  push_select(L, t, 0, whole_key(L, 2));
  return 1;
}

static int set_field(lua_State *L, pl_tensor *t) {
  const char *key = lua_tostring(L, 2);
  if (strcmp(key, "name") == 0) {
    if (!lua_isnil(L, 3) && lua_type(L, 3) != LUA_TSTRING) {
      return pl_lua_raise(L, "x.name must be a string, got %s", luaL_typename(L, 3));
    }
    lua_settop(L, 3);
    lua_setiuservalue(L, 1, 1);
    return 0;
  }
  if (strcmp(key, "grad") != 0) {
    return pl_lua_raise(L, "a tensor has no field \"%s\" to set (grad and name can be)", key);
  }
  pl_tensor *g = NULL;
  if (!lua_isnil(L, 3)) {
    g = pl_test_tensor(L, 3);
    char a[128];
    char b[128];
    if (g == NULL) {
      return pl_lua_raise(L, "x.grad must be a tensor or nil, got %s", luaL_typename(L, 3));
    }
    if (!pl_same_shape(g, t) || g->dtype != t->dtype) {
      return pl_lua_raise(L, "x.grad must be like x: %s %s, got %s %s", pl_dtypes[t->dtype].name,
                          pl_shape_str(t, a), pl_dtypes[g->dtype].name, pl_shape_str(g, b));
    }
    if (g->storage == t->storage) {
      return pl_lua_raise(L, "x.grad must not share x's values; use y:clone()");
    }
    /* another handle without history: no chain of gradients can close into a ring */
    pl_tensor **box = pl_push_box(L);
    pl_status st = pl_contiguous(g) ? pl_tensor_alias(pl_lua_ctx(L), g, box)
                                    : pl_tensor_cast(pl_lua_ctx(L), g, g->dtype, box);
    pl_lua_check(L, st);
    g = *box;
    *box = NULL;
  }
  pl_tensor *old = t->grad;
  t->grad = g;
  pl_tensor_unref(old);
  return 0;
}

int pl_tensor_newindex(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  if (lua_type(L, 2) == LUA_TSTRING) {
    return set_field(L, t);
  }
  pl_ctx *c = pl_lua_ctx(L);
  pl_tensor *src = operand(L, 3, "x[i] = v", t);
  check_inplace(L, "x[i] = v", t);
  push_guard(L);
  lua_toclose(L, -1);
  c->grad_enabled = false; /* while the view is taken */
  pl_tensor *view = t;
  if (lua_istable(L, 2)) {
    view = push_multi(L, t, 2);
  } else if (t->ndim == 0) {
    return pl_lua_raise(L, "a 0-dim tensor cannot be indexed; use x:fill_(v)");
  } else {
    view = push_select(L, t, 0, whole_key(L, 2));
  }
  write_into(L, "x[i] = v", view, src);
  return 0;
}

/* ---- release ---- */

static int release(lua_State *L) {
  pl_tensor **box = luaL_checkudata(L, 1, PL_TENSOR_NAME);
  pl_tensor *t = *box;
  *box = NULL;
  pl_tensor_unref(t);
  return 0;
}

/* x == y: is it the same tensor? (x:eq(y) compares values) */
static int same(lua_State *L) {
  pl_tensor **a = luaL_testudata(L, 1, PL_TENSOR_NAME);
  pl_tensor **b = luaL_testudata(L, 2, PL_TENSOR_NAME);
  lua_pushboolean(L, a != NULL && b != NULL && *a == *b);
  return 1;
}

/* Only metamethods: not in the table of methods. */
void pl_tensor_meta(lua_State *L) {
  const luaL_Reg meta[] = {{"__gc", release}, {"__close", release}, {"__len", length},
                           {"__tostring", to_string}, {"__eq", same}, {NULL, NULL}};
  luaL_setfuncs(L, meta, 0);
  luaL_newmetatable(L, GUARD_NAME);
  lua_pushcfunction(L, guard_close);
  lua_setfield(L, -2, "__close");
  lua_pop(L, 1);
}

#define F PL_BIND_FUNCTION
#define M PL_BIND_METHOD

const pl_bind_row pl_tensor_method_rows[] = {
    {"dim", "x: tensor", "integer", "The number of dims.", M, dim},
    {"shape", "x: tensor", "integer[]", "All sizes, as a list.", M, shape},
    {"size", "x: tensor, dim: dim?", "integer|integer[]",
     "The size of one dim, or the list of all sizes.", M, size},
    {"dtype", "x: tensor", "string",
     "The name of the element type: f32, f64, bf16, i32, i64, bool.", M, dtype},
    {"numel", "x: tensor", "integer", "The number of elements.", M, numel},
    {"is_contiguous", "x: tensor", "boolean",
     "Do the elements lie behind each other, row by row?", M, is_contiguous},
    {"is_tensor", "v: any", "boolean", "Is v a tensor?", F, is_tensor},
    {"version", "x: tensor", "integer",
     "A count that grows with every in-place change of the values.", M, version},
    {"item", "x: tensor", "number|boolean", "The value of a tensor of one element.", M, item},
    {"tolist", "x: tensor", "table", "All values as nested lists.", M, tolist},
    {"equal", "x: tensor, y: tensor", "boolean",
     "Same dtype, same shape and the same bytes? (x == y asks whether both are one tensor.)", F | M,
     equal},
    {"allclose", "x: tensor, y: tensor, opts: {rtol = 1e-5, atol = 1e-8}", "boolean",
     "Is |x - y| <= atol + rtol |y| everywhere? NaN is close to nothing.", F | M, allclose},
    {"requires_grad_", "x: tensor, on: bool = true", "Tensor",
     "Marks a leaf: backward will add its gradient into x.grad. Returns x.", M, requires_grad_},
    {"backward", "x: tensor, grad: tensor?", "nil",
     "Adds the gradient of x into .grad of every leaf it was computed from, and frees the graph. "
     "Without grad, x has one element.",
     M, backward},
    {"zero_grad", "x: tensor", "Tensor", "Forgets x.grad. Returns x.", M, zero_grad},
    {"no_grad", "f: function, ...", "any",
     "Calls f(...) without recording for backward; returns what f returns.", F, no_grad},
    {"autocast", "dtype: dtype, f: function, ...", "any",
     "Calls f(...) with the matrix products of linear layers, decoder and head in \"bf16\" (sums "
     "in f32, as do weights, their gradients and the optimizer); returns what f returns. backward "
     "follows what was computed, wherever it is called. \"f32\" switches it off inside.",
     F, autocast},
    {"grad_enabled", "", "boolean", "Is recording for backward on?", F, grad_enabled},
    {"slice", "x: tensor, dim: dim, from: int, to: int = -1", "Tensor",
     "Positions from..to of one dim, both included, counted from 1 or from -1 at the end; a view. "
     "x[{i, {from, to}, {}}] does it dim by dim.",
     M, slice},
    {"copy_", "x: tensor, y: tensor", "Tensor",
     "Writes y's values into x, broadcast and converted.", M, copy_},
    {"fill_", "x: tensor, value: num", "Tensor", "Sets every element.", M, fill_},
    {"zero_", "x: tensor", "Tensor", "Sets every element to 0.", M, zero_},
    {"add_", "x: tensor, y: tensor", "Tensor", "x <- x + y.", M, add_},
    {"sub_", "x: tensor, y: tensor", "Tensor", "x <- x - y.", M, sub_},
    {"mul_", "x: tensor, y: tensor", "Tensor", "x <- x * y.", M, mul_},
    {"div_", "x: tensor, y: tensor", "Tensor", "x <- x / y.", M, div_},
    {"free", "x: tensor", "nil",
     "Releases the memory now; x cannot be used after. `local x <close>` does so at the end of its "
     "block.",
     M, release},
    {NULL, NULL, NULL, NULL, 0, NULL},
};
