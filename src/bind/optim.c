/* core.optim: fused optimizer updates on lists of parameters.
 *
 * What it is: the bridge from Lua's optimizers (lua/perilune/optim) to the update
 * kernels. One call updates a whole list of parameters, so that an interrupt
 * falls before or after an update and never inside one.
 * What it must not do: hold state. Moments are tensors of the caller's table.
 *
 * Each function checks every tensor first, then updates them all; the updates
 * cannot fail. Parameters are f32 or f64, contiguous; their version is raised. */
#include <math.h>

#include "autograd/op.h"
#include "base/profile.h"
#include "bind/bind.h"
#include "kernels/kernels.h"

typedef struct tensors {
  pl_tensor **t; /* borrowed from the Lua list, which stays on the stack */
  lua_Integer n;
} tensors;

/* Reads the list at idx (length n, or any where n < 0) into an array anchored on the stack. */
static tensors check_list(lua_State *L, int idx, lua_Integer n, const char *what) {
  luaL_checktype(L, idx, LUA_TTABLE);
  lua_Integer len = luaL_len(L, idx);
  if (n >= 0 && len != n) {
    luaL_error(L, "optim: %s has %I tensors for %I parameters", what, (LUAI_UACINT)len,
               (LUAI_UACINT)n);
  }
  tensors r = {lua_newuserdatauv(L, sizeof(pl_tensor *) * (size_t)(len > 0 ? len : 1), 0), len};
  for (lua_Integer i = 0; i < len; i++) {
    lua_geti(L, idx, i + 1);
    r.t[i] = pl_test_tensor(L, -1);
    if (r.t[i] == NULL) {
      luaL_error(L, "optim: %s[%I] is %s, wanted a tensor", what, (LUAI_UACINT)(i + 1),
                 luaL_typename(L, -1));
    }
    lua_pop(L, 1);
  }
  return r;
}

/* Parameters that can be updated in place, each with a contiguous gradient. */
static tensors check_params(lua_State *L, int idx) {
  pl_ctx *c = pl_lua_ctx(L);
  tensors p = check_list(L, idx, -1, "parameters");
  for (lua_Integer i = 0; i < p.n; i++) {
    pl_tensor *t = p.t[i];
    char shape[128];
    if ((t->dtype != PL_F32 && t->dtype != PL_F64) || !pl_contiguous(t)) {
      luaL_error(L, "optim: parameter %I is %s %s%s; wanted a contiguous f32 or f64 tensor",
                 (LUAI_UACINT)(i + 1), pl_dtypes[t->dtype].name, pl_shape_str(t, shape),
                 pl_contiguous(t) ? "" : " (a view with gaps)");
    }
    if (t->grad == NULL) {
      luaL_error(L, "optim: parameter %I has no gradient", (LUAI_UACINT)(i + 1));
    }
    if (!pl_contiguous(t->grad)) {
      pl_tensor *g = NULL;
      pl_lua_check(L, pl_tensor_contiguous(c, t->grad, &g));
      pl_tensor_unref(t->grad);
      t->grad = g;
    }
  }
  return p;
}

/* A list of state tensors like the parameters; nil gives an empty list (t = NULL). */
static tensors check_state(lua_State *L, int idx, const tensors *p, const char *what) {
  if (lua_isnoneornil(L, idx)) {
    return (tensors){NULL, 0};
  }
  tensors s = check_list(L, idx, p->n, what);
  for (lua_Integer i = 0; i < s.n; i++) {
    char want[128], got[128];
    if (s.t[i]->dtype != p->t[i]->dtype || !pl_same_shape(s.t[i], p->t[i]) ||
        !pl_contiguous(s.t[i])) {
      luaL_error(L,
                 "optim: %s[%I] is %s %s, its parameter is %s %s; "
                 "was the state saved from another model?",
                 what, (LUAI_UACINT)(i + 1), pl_dtypes[s.t[i]->dtype].name,
                 pl_shape_str(s.t[i], got), pl_dtypes[p->t[i]->dtype].name,
                 pl_shape_str(p->t[i], want));
    }
  }
  return s;
}

static void bump(const tensors *s) {
  for (lua_Integer i = 0; i < s->n; i++) {
    s->t[i]->storage->version++;
  }
}

/* Elements of a list, in bytes, for the profile. */
static double bytes_of(const tensors *s) {
  double n = 0;
  for (lua_Integer i = 0; i < s->n; i++) {
    n += (double)pl_numel(s->t[i]) * (double)pl_dtypes[s->t[i]->dtype].size;
  }
  return n;
}

static void *at(const tensors *s, lua_Integer i) { return s->t == NULL ? NULL : pl_data(s->t[i]); }

/* adamw(params, exp_avg, exp_avg_sq, steps, gscale, lr, beta1, beta2, eps, weight_decay)
 * steps: a list of step counts, each from 1, one per parameter. */
static int l_adamw(lua_State *L) {
  double gscale = luaL_checknumber(L, 5), lr = luaL_checknumber(L, 6);
  double b1 = luaL_checknumber(L, 7), b2 = luaL_checknumber(L, 8);
  double eps = luaL_checknumber(L, 9), wd = luaL_checknumber(L, 10);
  luaL_checktype(L, 4, LUA_TTABLE);
  tensors p = check_params(L, 1);
  tensors m = check_state(L, 2, &p, "exp_avg");
  tensors v = check_state(L, 3, &p, "exp_avg_sq");
  luaL_argcheck(L, m.t != NULL && v.t != NULL, 2, "AdamW needs both moments");
  int64_t *t = lua_newuserdatauv(L, sizeof(int64_t) * (size_t)(p.n > 0 ? p.n : 1), 0);
  for (lua_Integer i = 0; i < p.n; i++) {
    lua_geti(L, 4, i + 1);
    t[i] = luaL_checkinteger(L, -1);
    lua_pop(L, 1);
    luaL_argcheck(L, t[i] >= 1, 4, "steps count from 1");
  }
  pl_ctx *c = pl_lua_ctx(L);
  pl_profile_enter(c, "(adamw)", false);
  for (lua_Integer i = 0; i < p.n; i++) {
    pl_tensor *w = p.t[i];
    int64_t n = pl_numel(w);
    if (w->dtype == PL_F32) {
      pl_adamw_f32(n, pl_data(w), pl_data(w->grad), at(&m, i), at(&v, i), gscale, lr, b1, b2, eps,
                   wd, t[i]);
    } else {
      pl_adamw_f64(n, pl_data(w), pl_data(w->grad), at(&m, i), at(&v, i), gscale, lr, b1, b2, eps,
                   wd, t[i]);
    }
  }
  pl_profile_leave(c, (pl_work){.bytes = 3 * bytes_of(&p) + 2 * (bytes_of(&m) + bytes_of(&v))});
  bump(&p);
  bump(&m);
  bump(&v);
  return 0;
}

/* rmsprop(params, square_avg, grad_avg|nil, momentum_buffer|nil, gscale, lr, alpha, eps,
 * weight_decay, momentum); grad_avg makes it centered. */
static int l_rmsprop(lua_State *L) {
  double gscale = luaL_checknumber(L, 5), lr = luaL_checknumber(L, 6);
  double alpha = luaL_checknumber(L, 7), eps = luaL_checknumber(L, 8);
  double wd = luaL_checknumber(L, 9), momentum = luaL_checknumber(L, 10);
  tensors p = check_params(L, 1);
  tensors sq = check_state(L, 2, &p, "square_avg");
  tensors avg = check_state(L, 3, &p, "grad_avg");
  tensors mom = check_state(L, 4, &p, "momentum_buffer");
  luaL_argcheck(L, sq.t != NULL, 2, "RMSprop needs the mean of squares");
  luaL_argcheck(L, momentum == 0 || mom.t != NULL, 4, "momentum needs a buffer");
  pl_ctx *c = pl_lua_ctx(L);
  pl_profile_enter(c, "(rmsprop)", false);
  for (lua_Integer i = 0; i < p.n; i++) {
    pl_tensor *w = p.t[i];
    int64_t n = pl_numel(w);
    if (w->dtype == PL_F32) {
      pl_rmsprop_f32(n, pl_data(w), pl_data(w->grad), at(&sq, i), at(&avg, i), at(&mom, i), gscale,
                     lr, alpha, eps, wd, momentum);
    } else {
      pl_rmsprop_f64(n, pl_data(w), pl_data(w->grad), at(&sq, i), at(&avg, i), at(&mom, i), gscale,
                     lr, alpha, eps, wd, momentum);
    }
  }
  pl_profile_leave(c, (pl_work){.bytes = 3 * bytes_of(&p) + 2 * (bytes_of(&sq) + bytes_of(&avg) +
                                                                 bytes_of(&mom))});
  bump(&p);
  bump(&sq);
  bump(&avg);
  bump(&mom);
  return 0;
}

/* sgd(params, momentum_buffer|nil, first, gscale, lr, momentum, dampening, weight_decay, nesterov)
 * first: a list of booleans: true where the buffer is to be set to the gradient, as PyTorch does
 * in its first step. */
static int l_sgd(lua_State *L) {
  luaL_checktype(L, 3, LUA_TTABLE);
  double gscale = luaL_checknumber(L, 4), lr = luaL_checknumber(L, 5);
  double momentum = luaL_checknumber(L, 6), dampening = luaL_checknumber(L, 7);
  double wd = luaL_checknumber(L, 8);
  bool nesterov = lua_toboolean(L, 9);
  tensors p = check_params(L, 1);
  tensors mom = check_state(L, 2, &p, "momentum_buffer");
  luaL_argcheck(L, momentum == 0 || mom.t != NULL, 2, "momentum needs a buffer");
  pl_ctx *c = pl_lua_ctx(L);
  pl_profile_enter(c, "(sgd)", false);
  for (lua_Integer i = 0; i < p.n; i++) {
    pl_tensor *w = p.t[i];
    int64_t n = pl_numel(w);
    lua_rawgeti(L, 3, i + 1);
    bool first = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (w->dtype == PL_F32) {
      pl_sgd_f32(n, pl_data(w), pl_data(w->grad), at(&mom, i), gscale, lr, momentum, dampening, wd,
                 nesterov, first);
    } else {
      pl_sgd_f64(n, pl_data(w), pl_data(w->grad), at(&mom, i), gscale, lr, momentum, dampening, wd,
                 nesterov, first);
    }
  }
  pl_profile_leave(c, (pl_work){.bytes = 3 * bytes_of(&p) + 2 * bytes_of(&mom)});
  bump(&p);
  bump(&mom);
  return 0;
}

/* with_grad(tensors) -> list of the positions (from 1) that hold a gradient. */
static int l_with_grad(lua_State *L) {
  tensors p = check_list(L, 1, -1, "parameters");
  lua_createtable(L, (int)p.n, 0);
  lua_Integer k = 0;
  for (lua_Integer i = 0; i < p.n; i++) {
    if (p.t[i]->grad != NULL) {
      lua_pushinteger(L, i + 1);
      lua_rawseti(L, -2, ++k);
    }
  }
  return 1;
}

/* zero_grad(tensors): forgets the gradients (PyTorch's set_to_none). */
static int l_zero_grad(lua_State *L) {
  tensors p = check_list(L, 1, -1, "parameters");
  for (lua_Integer i = 0; i < p.n; i++) {
    pl_tensor *g = p.t[i]->grad;
    p.t[i]->grad = NULL;
    pl_tensor_unref(g);
  }
  return 0;
}

/* grad_norm(tensors) -> the Euclidean norm of all gradients together; none counts as 0. */
static int l_grad_norm(lua_State *L) {
  pl_ctx *c = pl_lua_ctx(L);
  tensors p = check_list(L, 1, -1, "parameters");
  double total = 0;
  for (lua_Integer i = 0; i < p.n; i++) {
    pl_tensor *g = p.t[i]->grad;
    if (g == NULL) {
      continue;
    }
    if (g->dtype != PL_F32 && g->dtype != PL_F64) {
      return luaL_error(L, "optim: the gradient of parameter %I is %s, wanted f32 or f64",
                        (LUAI_UACINT)(i + 1), pl_dtypes[g->dtype].name);
    }
    pl_tensor *flat = NULL;
    pl_lua_check(L, pl_tensor_contiguous(c, g, &flat));
    int64_t n = pl_numel(flat);
    bool single = flat->dtype == PL_F32;
    total += single ? pl_sumsq_f32(n, pl_data(flat)) : pl_sumsq_f64(n, pl_data(flat));
    pl_tensor_unref(flat);
  }
  lua_pushnumber(L, sqrt(total));
  return 1;
}

int pl_open_optim(lua_State *L) {
  static const luaL_Reg functions[] = {{"adamw", l_adamw},         {"rmsprop", l_rmsprop},
                                       {"sgd", l_sgd},             {"with_grad", l_with_grad},
                                       {"zero_grad", l_zero_grad}, {"grad_norm", l_grad_norm},
                                       {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
