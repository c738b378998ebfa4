/* The few helpers that all bindings share: the state's context, errors, the
 * tensor box and the collector's hint. It holds no mathematics and knows no
 * particular module. */
#include "bind/bind.h"

#include <string.h>

void pl_lua_attach(lua_State *L, pl_lua *p) {
  *(pl_lua **)lua_getextraspace(L) = p;
}

pl_lua *pl_lua_of(lua_State *L) {
  return *(pl_lua **)lua_getextraspace(L);
}

pl_ctx *pl_lua_ctx(lua_State *L) {
  return &pl_lua_of(L)->ctx;
}

/* "file:line: " of the innermost frame that is not perilune's own Lua, or "". */
static void push_where(lua_State *L) {
  lua_Debug ar;
  for (int level = 1; lua_getstack(L, level, &ar) != 0; level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline > 0 && strstr(ar.source, "lua/perilune/") == NULL) {
      lua_pushfstring(L, "%s:%d: ", ar.short_src, ar.currentline);
      return;
    }
  }
  lua_pushliteral(L, "");
}

void pl_lua_check(lua_State *L, pl_status st) {
  if (st == PL_OK) {
    return;
  }
  const char *text = pl_lua_ctx(L)->err;
  luaL_checkstack(L, 4, NULL);
  push_where(L);
  lua_pushstring(L, text[0] != '\0' ? text : "failed without a message");
  lua_concat(L, 2);
  lua_error(L);
}

int pl_lua_nil_error(lua_State *L, pl_status st) {
  (void)st;
  luaL_pushfail(L);
  lua_pushstring(L, pl_lua_ctx(L)->err);
  return 2;
}

int pl_lua_true_or_nil(lua_State *L, pl_status st) {
  if (st == PL_EINTR) {
    pl_lua_check(L, st); /* Ctrl-C is never an ordinary result */
  }
  if (st != PL_OK) {
    return pl_lua_nil_error(L, st);
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* ---- buffers owned by Lua ---- */

#define BUF_NAME "perilune.Buffer"

static int buf_gc(lua_State *L) {
  pl_buf *b = luaL_checkudata(L, 1, BUF_NAME);
  pl_buf_free(pl_lua_ctx(L), b);
  return 0;
}

pl_buf *pl_lua_newbuf(lua_State *L, size_t max) {
  pl_buf *b = lua_newuserdatauv(L, sizeof *b, 0);
  pl_buf_init(b, max);
  if (luaL_newmetatable(L, BUF_NAME)) {
    lua_pushcfunction(L, buf_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  return b;
}

/* ---- tensors ---- */

pl_tensor **pl_push_box(lua_State *L) {
  pl_tensor **box = lua_newuserdatauv(L, sizeof *box, 1); /* user value 1: the name */
  *box = NULL;
  luaL_setmetatable(L, PL_TENSOR_NAME);
  return box;
}

/* Work for the collector worth `bytes`; true if that ended one of its cycles. */
static bool gc_step(lua_State *L, size_t bytes) {
  size_t kb = bytes / 1024;
  return kb > 0 && lua_gc(L, LUA_GCSTEP, kb > 1 << 30 ? 1 << 30 : (int)kb) == 1;
}

void pl_gc_hint(lua_State *L, size_t bytes) {
  (void)gc_step(L, bytes);
}

/* What grew above the mark is what may hang on dead objects, and asks for work
 * in proportion. The mark is the highest level since the collector last ended
 * a cycle: a training loop, whose memory goes up and down by itself, asks for
 * nothing after its first steps. It sinks slowly towards a lower level. */
static void hint_growth(lua_State *L) {
  pl_lua *p = pl_lua_of(L);
  int64_t grown = p->ctx.mem.live - p->seen;
  if (grown >= 64 * 1024) {
    p->seen = p->ctx.mem.live;
    if (gc_step(L, (size_t)grown)) {
      p->seen = p->ctx.mem.live;
    }
  } else if (grown < 0) {
    p->seen += grown / 1024;
  }
}

void pl_box_set(lua_State *L, pl_tensor **box, pl_tensor *t) {
  *box = t;
  hint_growth(L);
}

static int new_box(lua_State *L) {
  pl_push_box(L);
  return 1;
}

void pl_push_tensor(lua_State *L, pl_tensor *t) {
  /* The box is made under a protected call, for when Lua has no memory left
   * the reference that was handed over must still be released. */
  lua_pushcfunction(L, new_box);
  if (lua_pcall(L, 0, 1, 0) != LUA_OK) {
    pl_tensor_unref(t);
    lua_error(L);
  }
  pl_box_set(L, lua_touserdata(L, -1), t);
}

pl_tensor *pl_test_tensor(lua_State *L, int idx) {
  pl_tensor **box = luaL_testudata(L, idx, PL_TENSOR_NAME);
  if (box == NULL) {
    return NULL;
  }
  if (*box == NULL) {
    luaL_argerror(L, idx, "this tensor was freed");
  }
  return *box;
}

pl_tensor *pl_check_tensor(lua_State *L, int idx) {
  pl_tensor *t = pl_test_tensor(L, idx);
  if (t == NULL) {
    luaL_typeerror(L, idx, "tensor");
  }
  return t;
}

pl_dtype pl_check_dtype(lua_State *L, int idx) {
  const char *name = luaL_checkstring(L, idx);
  pl_dtype d = PL_F32;
  if (pl_dtype_find(pl_lua_ctx(L), name, &d) != PL_OK) {
    luaL_argerror(L, idx, pl_lua_ctx(L)->err);
  }
  return d;
}
