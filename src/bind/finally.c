/* base.finally: what is done however a block of Lua code ends. */
#include "base/status.h"
#include "bind/bind.h"

#define NAME "perilune.Finally"

/* After Ctrl-C the host's hook stops every Lua function at its first instruction, a __close
 * too. So the interrupt is put aside while f runs, and is pending again afterwards. A second
 * Ctrl-C stops f. */
static int at_end(lua_State *L) {
  lua_settop(L, 2);
  const bool pending = pl_interrupt_pending();
  const lua_Hook hook = lua_gethook(L);
  const int mask = lua_gethookmask(L);
  const int count = lua_gethookcount(L);
  if (pending) {
    lua_sethook(L, NULL, 0, 0);
    pl_interrupt_clear();
  }
  lua_getiuservalue(L, 1, 1);
  lua_pushvalue(L, 2);
  lua_pushboolean(L, pending);
  const int status = lua_pcall(L, 2, 0, 0);
  if (pending) {
    pl_interrupt_set();
    lua_sethook(L, hook, mask, count);
  }
  return status == LUA_OK ? 0 : lua_error(L);
}

/* finally(f) -> a to-be-closed value: `local guard <close> = base.finally(f)` calls f(problem,
 * interrupted) when its block ends: problem is the error on its way, or nil. */
int pl_lua_finally(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_newuserdatauv(L, 0, 1);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  if (luaL_newmetatable(L, NAME)) {
    lua_pushcfunction(L, at_end);
    lua_setfield(L, -2, "__close");
  }
  lua_setmetatable(L, -2);
  return 1;
}
