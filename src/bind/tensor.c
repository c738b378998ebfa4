/* core.tensor: puts the tensor functions, methods and metatable together out of
 * op rows and binding tables, and lists both for help and stubs. */
#include "bind/tensor.h"

#include <string.h>

static void register_rows(lua_State *L, const pl_bind_row *rows) {
  int functions = lua_gettop(L);
  int methods = functions - 1;
  for (const pl_bind_row *r = rows; r->name != NULL; r++) {
    lua_pushcfunction(L, r->fn);
    if (r->flags & PL_BIND_METHOD) {
      lua_pushvalue(L, -1);
      lua_setfield(L, methods, r->name);
    }
    if (r->flags & PL_BIND_FUNCTION) {
      lua_setfield(L, functions, r->name);
    } else {
      lua_pop(L, 1);
    }
  }
}

static void add_doc(lua_State *L, const char *name, const char *params, const char *ret,
                    const char *doc, bool function, bool method, bool op) {
  lua_createtable(L, 0, 7);
  lua_pushstring(L, name);
  lua_setfield(L, -2, "name");
  lua_pushstring(L, params);
  lua_setfield(L, -2, "params");
  lua_pushstring(L, ret);
  lua_setfield(L, -2, "ret");
  lua_pushstring(L, doc);
  lua_setfield(L, -2, "doc");
  lua_pushboolean(L, function);
  lua_setfield(L, -2, "is_function");
  lua_pushboolean(L, method);
  lua_setfield(L, -2, "is_method");
  lua_pushboolean(L, op);
  lua_setfield(L, -2, "is_op");
  lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
}

/* op_rows() -> list of {name, params, ret, doc, is_function, is_method, is_op}. */
static int rows(lua_State *L) {
  lua_newtable(L);
  for (const pl_op *const *const *t = pl_op_tables; *t != NULL; t++) {
    for (const pl_op *const *op = *t; *op != NULL; op++) {
      const pl_op *o = *op;
      if (!(o->flags & PL_OP_HIDDEN)) {
        add_doc(L, o->name, o->params, o->ret, o->doc, true, (o->flags & PL_OP_METHOD) != 0, true);
      }
    }
  }
  const pl_bind_row *const by_hand[] = {pl_tensor_make_rows, pl_tensor_method_rows};
  for (size_t i = 0; i < sizeof by_hand / sizeof by_hand[0]; i++) {
    for (const pl_bind_row *r = by_hand[i]; r->name != NULL; r++) {
      add_doc(L, r->name, r->params, r->ret, r->doc, (r->flags & PL_BIND_FUNCTION) != 0,
              (r->flags & PL_BIND_METHOD) != 0, false);
    }
  }
  return 1;
}

int pl_open_tensor(lua_State *L) {
  static const struct { const char *event, *op; } operators[] = {
      {"__add", "add"}, {"__sub", "sub"}, {"__mul", "mul"},
      {"__div", "div"}, {"__pow", "pow"}, {"__unm", "neg"}};
  luaL_newmetatable(L, PL_TENSOR_NAME);
  pl_tensor_meta(L);
  lua_newtable(L); /* methods */
  lua_newtable(L); /* functions */
  pl_register_ops(L);
  register_rows(L, pl_tensor_make_rows);
  register_rows(L, pl_tensor_method_rows);
  for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) {
    lua_getfield(L, -1, operators[i].op);
    lua_setfield(L, -4, operators[i].event);
  }
  lua_pushcfunction(L, rows);
  lua_setfield(L, -2, "op_rows");
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, pl_tensor_index, 1);
  lua_setfield(L, -4, "__index");
  lua_pushcfunction(L, pl_tensor_newindex);
  lua_setfield(L, -4, "__newindex");
  lua_pushvalue(L, -2); /* for completion and help */
  lua_setfield(L, -4, "__methods");
  return 1;
}
