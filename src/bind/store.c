/* core.store: in the making. */
#include "bind/bind.h"

int pl_open_store(lua_State *L) {
  lua_newtable(L);
  return 1;
}
