/* core.net: in the making. */
#include "bind/bind.h"

int pl_open_net(lua_State *L) {
  lua_newtable(L);
  return 1;
}
