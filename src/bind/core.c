/* require "perilune.core": the table of all C modules. It must not do more
 * than put them together; each lives in its own file. */
#include "bind/bind.h"

int pl_open_core(lua_State *L) {
  const luaL_Reg modules[] = {
      {"base", pl_open_base}, {"tensor", pl_open_tensor}, {"optim", pl_open_optim},
      {"text", pl_open_text}, {"format", pl_open_format}, {"lm", pl_open_lm},
      {"store", pl_open_store}, {"net", pl_open_net}, {"server", pl_open_server},
      {"profile", pl_open_profile},
  };
  lua_newtable(L);
  for (size_t i = 0; i < sizeof modules / sizeof modules[0]; i++) {
    lua_pushcfunction(L, modules[i].func);
    lua_call(L, 0, 1);
    lua_setfield(L, -2, modules[i].name);
  }
  return 1;
}
