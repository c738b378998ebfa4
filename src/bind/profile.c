/* core.profile: the counters of time by op (base/profile.h) for Lua; perilune.profile
 * makes tables of them. */
#include "base/profile.h"

#include "bind/bind.h"

/* start(): counts from here on; goes on where it was on already. */
static int start(lua_State *L) {
  pl_lua_check(L, pl_profile_start(pl_lua_ctx(L)));
  return 0;
}

/* stop(): no counting, and what was counted is gone. */
static int stop(lua_State *L) {
  pl_profile_stop(pl_lua_ctx(L));
  return 0;
}

static void set_number(lua_State *L, const char *name, double v) {
  lua_pushnumber(L, v);
  lua_setfield(L, -2, name);
}

/* rows() -> list of { name, calls, backward_calls, forward, backward (seconds), flop, bytes,
 * made } in the order of their first use; nil while nothing is counted. What was used inside
 * another is named "outer: inner". */
static int rows(lua_State *L) {
  const pl_profile *p = pl_lua_ctx(L)->profile;
  if (p == NULL) {
    lua_pushnil(L);
    return 1;
  }
  lua_createtable(L, p->n, 0);
  for (int i = 0; i < p->n; i++) {
    const pl_profile_row *r = &p->rows[i];
    lua_createtable(L, 0, 8);
    if (r->within != NULL) {
      lua_pushfstring(L, "%s: %s", r->within, r->name);
    } else {
      lua_pushstring(L, r->name);
    }
    lua_setfield(L, -2, "name");
    lua_pushinteger(L, r->calls[0]);
    lua_setfield(L, -2, "calls");
    lua_pushinteger(L, r->calls[1]);
    lua_setfield(L, -2, "backward_calls");
    set_number(L, "forward", r->seconds[0]);
    set_number(L, "backward", r->seconds[1]);
    set_number(L, "flop", r->work.flop);
    set_number(L, "bytes", r->work.bytes);
    set_number(L, "made", r->work.made);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

int pl_open_profile(lua_State *L) {
  const luaL_Reg functions[] = {{"start", start}, {"stop", stop}, {"rows", rows}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
