/* Lua functions out of op rows: each row's params string is read once, at
 * opening; a call then checks its arguments against it, converts what counts
 * from 1, and runs the row. It must not know any particular op. */
#include "bind/tensor.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARAMS 12
#define MAX_INPUTS 8

typedef enum kind {
  K_TENSOR, K_TENSOR_OPT, K_TENSORS, K_IDS, K_POS, K_MASK,
  K_DIM, K_DIM_OPT, K_DIMS, K_INDEX, K_SHAPE, K_INT, K_INT_OPT, K_NUM, K_BOOL, K_DTYPE
} kind;

static const struct { const char *name; kind k; const char *wanted; } kinds[] = {
    {"tensor", K_TENSOR, "a tensor or a number"},
    {"tensor?", K_TENSOR_OPT, "a tensor, a number or nil"},
    {"tensors", K_TENSORS, "a list of tensors"},
    {"ids", K_IDS, "an integer tensor or a list of token ids (0-based)"},
    {"pos", K_POS, "an integer tensor or a list of positions (counted from 1)"},
    {"mask", K_MASK, "a bool tensor"},
    {"dim", K_DIM, "a dim (counted from 1, negative from the end)"},
    {"dim?", K_DIM_OPT, "a dim (counted from 1, negative from the end) or nil"},
    {"dims", K_DIMS, "a dim, a list of dims or nil"},
    {"index", K_INDEX, "a position (counted from 1, negative from the end)"},
    {"shape", K_SHAPE, "sizes, as a list or as several arguments"},
    {"int", K_INT, "an integer"},
    {"int?", K_INT_OPT, "an integer or nil"},
    {"num", K_NUM, "a number"},
    {"bool", K_BOOL, "true or false"},
    {"dtype", K_DTYPE, "a dtype (\"f32\", \"f64\", \"bf16\", \"i32\", \"i64\", \"bool\")"},
};

typedef struct param {
  char name[28];
  kind k;
  bool has_default;
  double def;   /* numbers and integers */
  pl_dtype dt;  /* of a dtype */
} param;

typedef struct row {
  const pl_op *op;
  int n, max_out;
  bool positions[PL_OP_MAX_OUT]; /* this result counts from 1 */
  param p[MAX_PARAMS];
} row;

/* ---- reading the params string ---- */

static const char *skip(const char *s) {
  while (*s == ' ') {
    s++;
  }
  return s;
}

static void copy_word(char *out, size_t size, const char *from, const char *to) {
  while (to > from && to[-1] == ' ') {
    to--;
  }
  size_t n = (size_t)(to - from);
  n = n < size ? n : size - 1;
  memcpy(out, from, n);
  out[n] = '\0';
}

static void bad_row(lua_State *L, const pl_op *op, const char *at) {
  luaL_error(L, "op row %s: cannot read its params at \"%s\"", op->name, at);
}

static void parse_default(lua_State *L, row *r, param *p, const char *word) {
  p->has_default = true;
  if (p->k == K_DTYPE) {
    char name[16];
    size_t n = strlen(word);
    copy_word(name, sizeof name, word[0] == '"' ? word + 1 : word,
              word[0] == '"' && n > 1 ? word + n - 1 : word + n);
    if (pl_dtype_find(pl_lua_ctx(L), name, &p->dt) != PL_OK) {
      bad_row(L, r->op, word);
    }
  } else if (strcmp(word, "true") == 0) {
    p->def = 1;
  } else if (strcmp(word, "false") == 0 || strcmp(word, "nil") == 0) {
    p->def = 0;
  } else {
    char *end;
    p->def = strtod(word, &end);
    if (*end != '\0') {
      bad_row(L, r->op, word);
    }
  }
}

static void parse_row(lua_State *L, row *r, const pl_op *op) {
  memset(r, 0, sizeof *r);
  r->op = op;
  const char *s = skip(op->params);
  while (*s != '\0') {
    if (r->n == MAX_PARAMS) {
      bad_row(L, op, s);
    }
    param *p = &r->p[r->n++];
    const char *colon = strchr(s, ':');
    if (colon == NULL) {
      bad_row(L, op, s);
      return;
    }
    copy_word(p->name, sizeof p->name, s, colon);
    const char *type = skip(colon + 1);
    const char *end = type + strcspn(type, ",");
    const char *eq = memchr(type, '=', (size_t)(end - type));
    char word[32];
    copy_word(word, sizeof word, type, eq != NULL ? eq : end);
    bool found = false;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
      if (strcmp(word, kinds[i].name) == 0) {
        p->k = kinds[i].k;
        found = true;
      }
    }
    if (!found) {
      bad_row(L, op, type);
    }
    if (eq != NULL) {
      copy_word(word, sizeof word, skip(eq + 1), end);
      parse_default(L, r, p, word);
    }
    s = *end == ',' ? skip(end + 1) : end;
  }
  for (const char *w = op->ret; *w != '\0' && r->max_out < PL_OP_MAX_OUT;) {
    w += strspn(w, " ,[]");
    if (*w == '\0') {
      break;
    }
    r->positions[r->max_out++] = strncmp(w, "Positions", 9) == 0;
    w += strcspn(w, " ,[]");
  }
}

/* ---- checking arguments ---- */

int pl_lua_raise(lua_State *L, const char *fmt, ...) {
  char text[PL_ERR_MAX];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  pl_lua_check(L, pl_fail(pl_lua_ctx(L), PL_EINVAL, "%s", text));
  return 0;
}

static int bad_arg(lua_State *L, const row *r, int i, int idx) {
  const char *got = lua_isnone(L, idx) ? "nothing" : luaL_typename(L, idx);
  if (lua_type(L, idx) == LUA_TUSERDATA && luaL_getmetafield(L, idx, "__name") == LUA_TSTRING) {
    got = lua_tostring(L, -1);
  }
  return pl_lua_raise(L, "%s: argument %d (%s) must be %s, got %s", r->op->name, i + 1,
                      r->p[i].name, kinds[r->p[i].k].wanted, got);
}

/* An integer, or a float that is one; false for all else. */
static bool whole(lua_State *L, int idx, lua_Integer *out) {
  int ok = 0;
  if (lua_type(L, idx) != LUA_TNUMBER) {
    return false;
  }
  *out = lua_tointegerx(L, idx, &ok);
  return ok != 0;
}

int64_t pl_check_count1(lua_State *L, int idx, const char *fn, const char *what) {
  lua_Integer v = 0;
  if (!whole(L, idx, &v)) {
    pl_lua_raise(L, "%s: %s must be an integer, got %s", fn, what, luaL_typename(L, idx));
  }
  if (v == 0) {
    pl_lua_raise(L, "%s: %s counts from 1 (or from -1 at the end), got 0", fn, what);
  }
  return v > 0 ? v - 1 : v;
}

int pl_check_sizes(lua_State *L, int idx, const char *fn, int64_t *sizes, int max, int *next) {
  int n = 0;
  lua_Integer v = 0;
  if (lua_istable(L, idx)) {
    int len = (int)luaL_len(L, idx);
    if (len > max) {
      pl_lua_raise(L, "%s: at most %d sizes, got %d", fn, max, len);
    }
    for (n = 0; n < len; n++) {
      lua_rawgeti(L, idx, n + 1);
      if (!whole(L, -1, &v)) {
        pl_lua_raise(L, "%s: size %d must be an integer, got %s", fn, n + 1,
                     luaL_typename(L, -1));
      }
      sizes[n] = v;
      lua_pop(L, 1);
    }
    *next = idx + 1;
    return n;
  }
  while (lua_type(L, idx + n) == LUA_TNUMBER) {
    if (n == max) {
      pl_lua_raise(L, "%s: at most %d sizes", fn, max);
    }
    if (!whole(L, idx + n, &v)) {
      pl_lua_raise(L, "%s: size %d must be an integer, got %g", fn, n + 1,
                   (double)lua_tonumber(L, idx + n));
    }
    sizes[n++] = v;
  }
  *next = idx + n;
  return n;
}

/* Pushes an i64 or i32 tensor holding the list of integers at idx (checked whole). */
static pl_tensor *push_int_list(lua_State *L, const row *r, int i, int idx, pl_dtype d) {
  int64_t n = (int64_t)luaL_len(L, idx);
  pl_tensor **box = pl_push_box(L);
  pl_lua_check(L, pl_tensor_new(pl_lua_ctx(L), d, 1, &n, box));
  for (int64_t k = 0; k < n; k++) {
    lua_rawgeti(L, idx, (lua_Integer)k + 1);
    lua_Integer v = 0;
    bool ok = whole(L, -1, &v) && (d == PL_I64 || (v >= INT32_MIN && v <= INT32_MAX));
    if (!ok) {
      pl_lua_raise(L, "%s: argument %d (%s): entry %lld must be an integer, got %s", r->op->name,
                   i + 1, r->p[i].name, (long long)k + 1, luaL_tolstring(L, -1, NULL));
    }
    lua_pop(L, 1);
    if (d == PL_I64) {
      pl_i64(*box)[k] = v;
    } else {
      pl_i32(*box)[k] = (int32_t)v;
    }
  }
  return *box;
}

/* The tensor for "ids" or "pos"; where one is made it is anchored on the stack. */
static pl_tensor *int_input(lua_State *L, const row *r, int i, int idx) {
  pl_dtype want = r->p[i].k == K_IDS ? PL_I32 : PL_I64;
  pl_tensor *t;
  if (lua_istable(L, idx)) {
    t = push_int_list(L, r, i, idx, want);
  } else {
    t = pl_test_tensor(L, idx);
    if (t == NULL) {
      bad_arg(L, r, i, idx);
      return NULL;
    }
    if (pl_dtypes[t->dtype].is_float || t->dtype == PL_BOOL) {
      pl_lua_raise(L, "%s: argument %d (%s) must hold integers, got %s; use x:to(\"i64\")",
                   r->op->name, i + 1, r->p[i].name, pl_dtypes[t->dtype].name);
    }
    if (r->p[i].k == K_IDS && t->dtype == want) {
      return t;
    }
    pl_tensor **box = pl_push_box(L);
    pl_lua_check(L, pl_tensor_cast(pl_lua_ctx(L), t, want, box));
    t = *box;
  }
  if (r->p[i].k == K_POS) {
    int64_t *v = pl_i64(t);
    int64_t n = pl_numel(t);
    for (int64_t k = 0; k < n; k++) {
      if (v[k] == 0) {
        pl_lua_raise(L, "%s: argument %d (%s) counts from 1 (or from -1 at the end), got 0",
                     r->op->name, i + 1, r->p[i].name);
      }
      v[k] -= v[k] > 0 ? 1 : 0;
    }
  }
  return t;
}

typedef struct call {
  pl_tensor *fixed[MAX_INPUTS];
  pl_tensor **in; /* fixed, or a list's own array */
  int n_in;
  bool number[MAX_INPUTS]; /* in[k] is still to be made from value[k] */
  bool is_int[MAX_INPUTS];
  double value[MAX_INPUTS];
  pl_args args;
  int64_t list[PL_OP_MAX_INT]; /* goes behind the single integers */
  int n_list;
} call;

static void add_list_arg(lua_State *L, const row *r, int i, int *idx, call *k) {
  const char *fn = r->op->name;
  if (lua_isnoneornil(L, *idx) && r->p[i].k == K_DIMS) {
    (*idx)++;
    return;
  }
  bool several = i == r->n - 1 && !lua_istable(L, *idx);
  if (!several && !lua_istable(L, *idx) && lua_type(L, *idx) != LUA_TNUMBER) {
    bad_arg(L, r, i, *idx);
  }
  int next = *idx + 1;
  lua_Integer one = 0;
  if (several || lua_istable(L, *idx)) {
    k->n_list = pl_check_sizes(L, *idx, fn, k->list, PL_MAX_DIMS, &next);
    if (several && next == *idx && !lua_isnoneornil(L, *idx)) {
      bad_arg(L, r, i, *idx);
    }
  } else if (whole(L, *idx, &one)) {
    k->list[0] = one;
    k->n_list = 1;
  } else {
    bad_arg(L, r, i, *idx);
  }
  for (int j = 0; j < k->n_list && r->p[i].k == K_DIMS; j++) {
    if (k->list[j] == 0) {
      pl_lua_raise(L, "%s: dims count from 1 (or from -1 at the end), got 0", fn);
    }
    k->list[j] -= k->list[j] > 0 ? 1 : 0;
  }
  *idx = next;
}

static void add_tensors(lua_State *L, const row *r, int i, int idx, call *k) {
  if (!lua_istable(L, idx)) {
    bad_arg(L, r, i, idx);
  }
  int n = (int)luaL_len(L, idx);
  pl_tensor **in = lua_newuserdatauv(L, (size_t)(n + MAX_INPUTS) * sizeof *in, 0);
  memcpy(in, k->in, (size_t)k->n_in * sizeof *in);
  for (int j = 0; j < n; j++) {
    lua_rawgeti(L, idx, j + 1);
    pl_tensor *t = pl_test_tensor(L, -1);
    if (t == NULL) {
      pl_lua_raise(L, "%s: argument %d (%s): entry %d must be a tensor, got %s", r->op->name, i + 1,
                   r->p[i].name, j + 1, luaL_typename(L, -1));
    }
    lua_pop(L, 1); /* the list itself keeps it alive */
    in[k->n_in++] = t;
  }
  k->in = in;
}

static void add_single(lua_State *L, const row *r, int i, int idx, call *k) {
  const param *p = &r->p[i];
  int64_t *out = &k->args.i[k->args.n_i];
  lua_Integer v = 0;
  if (p->k == K_NUM) {
    double *f = &k->args.f[k->args.n_f++];
    if (lua_isnoneornil(L, idx) && p->has_default) {
      *f = p->def;
    } else if (lua_type(L, idx) == LUA_TNUMBER) {
      *f = lua_tonumber(L, idx);
    } else {
      bad_arg(L, r, i, idx);
    }
    return;
  }
  k->args.n_i++;
  if (lua_isnoneornil(L, idx) && (p->has_default || p->k == K_DIM_OPT || p->k == K_INT_OPT)) {
    if (!p->has_default) {
      *out = PL_ABSENT;
    } else if (p->k == K_DTYPE) {
      *out = p->dt;
    } else {
      *out = (int64_t)p->def;
      bool counts = p->k == K_DIM || p->k == K_DIM_OPT || p->k == K_INDEX;
      *out -= counts && *out > 0 ? 1 : 0;
    }
    return;
  }
  switch (p->k) {
    case K_BOOL:
      if (!lua_isboolean(L, idx)) {
        bad_arg(L, r, i, idx);
      }
      *out = lua_toboolean(L, idx);
      break;
    case K_DTYPE: {
      if (lua_type(L, idx) != LUA_TSTRING) {
        bad_arg(L, r, i, idx);
      }
      pl_dtype d = PL_F32;
      pl_status st = pl_dtype_find(pl_lua_ctx(L), lua_tostring(L, idx), &d);
      if (st != PL_OK) {
        pl_lua_check(L, pl_fail_in(pl_lua_ctx(L), st, "%s", r->op->name));
      }
      *out = d;
      break;
    }
    default:
      if (!whole(L, idx, &v)) {
        bad_arg(L, r, i, idx);
      }
      if (p->k == K_INT || p->k == K_INT_OPT) {
        *out = v;
      } else {
        *out = pl_check_count1(L, idx, r->op->name, p->name);
      }
  }
}

static void add_tensor(lua_State *L, const row *r, int i, int idx, call *k) {
  const param *p = &r->p[i];
  int at = k->n_in++;
  if (lua_type(L, idx) == LUA_TNUMBER) {
    k->number[at] = true;
    k->is_int[at] = lua_isinteger(L, idx);
    k->value[at] = lua_tonumber(L, idx);
    return;
  }
  bool none = lua_isnoneornil(L, idx);
  if (none && p->k == K_TENSOR_OPT) {
    return;
  }
  if (none && p->has_default) {
    k->number[at] = true;
    k->value[at] = p->def;
    return;
  }
  k->in[at] = pl_test_tensor(L, idx);
  if (k->in[at] == NULL) {
    bad_arg(L, r, i, idx);
  }
}

/* ---- calling ---- */

int pl_apply_push(lua_State *L, const pl_op *op, pl_tensor **in, int n_in, const pl_args *args,
                  int max_out) {
  pl_ctx *c = pl_lua_ctx(L);
  pl_tensor **box[PL_OP_MAX_OUT];
  pl_tensor *out[PL_OP_MAX_OUT] = {NULL};
  luaL_checkstack(L, PL_OP_MAX_OUT + 4, op->name);
  for (int o = 0; o < max_out; o++) {
    box[o] = pl_push_box(L);
  }
  pl_status st = pl_apply(c, op, in, n_in, args, out);
  if (st == PL_ENOMEM) { /* dead tensors may hold what is missing */
    lua_gc(L, LUA_GCCOLLECT);
    pl_mem_trim(c);
    st = pl_apply(c, op, in, n_in, args, out);
  }
  pl_lua_check(L, st);
  int came = 0;
  while (came < max_out && out[came] != NULL) {
    *box[came] = out[came];
    came++;
  }
  lua_pop(L, max_out - came);
  if (came > 0) {
    pl_box_set(L, box[0], out[0]); /* all is anchored: the hint may run finalizers */
  }
  return came;
}

/* Results that are positions count from 1 in Lua. */
static void count_from_1(pl_tensor *t) {
  int64_t n = pl_numel(t);
  for (int64_t k = 0; k < n; k++) {
    if (t->dtype == PL_I64) {
      pl_i64(t)[k]++;
    } else {
      pl_i32(t)[k]++;
    }
  }
}

static int run_row(lua_State *L) {
  const row *r = lua_touserdata(L, lua_upvalueindex(1));
  call k = {.n_in = 0};
  k.in = k.fixed;
  int idx = 1;
  int top = lua_gettop(L);
  luaL_checkstack(L, MAX_PARAMS + 16, r->op->name);
  if (top < r->n) { /* what is pushed on the way must not be taken for an argument */
    lua_settop(L, r->n);
  }
  for (int i = 0; i < r->n; i++) {
    kind what = r->p[i].k;
    if (what == K_DIMS || what == K_SHAPE) {
      add_list_arg(L, r, i, &idx, &k);
      continue;
    }
    if (what == K_TENSORS) {
      add_tensors(L, r, i, idx, &k);
    } else if (what == K_TENSOR || what == K_TENSOR_OPT || what == K_MASK) {
      add_tensor(L, r, i, idx, &k);
    } else if (what == K_IDS || what == K_POS) {
      int at = k.n_in++;
      k.in[at] = int_input(L, r, i, idx);
    } else {
      add_single(L, r, i, idx, &k);
    }
    idx++;
  }
  if (top >= idx) {
    return pl_lua_raise(L, "%s: too many arguments (%d); it is %s(%s)", r->op->name, top,
                        r->op->name, r->op->params);
  }
  memcpy(k.args.i + k.args.n_i, k.list, (size_t)k.n_list * sizeof k.list[0]);
  k.args.n_i += k.n_list;

  /* Numbers last: from here to their release nothing raises but pl_apply_push,
   * so they are anchored like all that is made on the way. */
  pl_ctx *c = pl_lua_ctx(L);
  pl_tensor *other = NULL;
  for (int j = 0; j < k.n_in && other == NULL; j++) {
    other = k.in[j];
  }
  pl_tensor **made[MAX_INPUTS] = {NULL};
  for (int j = 0; j < k.n_in && j < MAX_INPUTS; j++) {
    if (k.number[j]) {
      made[j] = pl_push_box(L);
      pl_status st = other != NULL ? pl_scalar_like(c, other, k.value[j], k.is_int[j], made[j])
                                   : pl_tensor_scalar(c, PL_F32, k.value[j], made[j]);
      pl_lua_check(L, st);
      k.in[j] = *made[j];
    }
  }
  int n = pl_apply_push(L, r->op, k.in, k.n_in, &k.args, r->max_out);
  for (int o = 0; o < n; o++) {
    if (r->positions[o]) {
      count_from_1(pl_check_tensor(L, o - n));
    }
  }
  for (int j = 0; j < MAX_INPUTS; j++) {
    if (made[j] != NULL) { /* now, not at the collector's leisure */
      pl_tensor_unref(*made[j]);
      *made[j] = NULL;
    }
  }
  return n;
}

/* Lua calls __unm and __len with the operand twice. */
static int run_unary(lua_State *L) {
  lua_settop(L, 1);
  return run_row(L);
}

void pl_register_ops(lua_State *L) {
  int functions = lua_gettop(L);
  int methods = functions - 1;
  for (const pl_op *const *const *table = pl_op_tables; *table != NULL; table++) {
    for (const pl_op *const *op = *table; *op != NULL; op++) {
      if ((*op)->flags & PL_OP_HIDDEN) {
        continue;
      }
      row *r = lua_newuserdatauv(L, sizeof *r, 0);
      parse_row(L, r, *op);
      bool unary = strcmp((*op)->name, "neg") == 0;
      lua_pushcclosure(L, unary ? run_unary : run_row, 1);
      if ((*op)->flags & PL_OP_METHOD) {
        lua_pushvalue(L, -1);
        lua_setfield(L, methods, (*op)->name);
      }
      lua_setfield(L, functions, (*op)->name);
    }
  }
}
