/* core.server: in the making. */
#include "bind/bind.h"

int pl_open_server(lua_State *L) {
  lua_newtable(L);
  return 1;
}
