/* What the files that bind lm/ share. */
#ifndef PL_BIND_LM_H
#define PL_BIND_LM_H
#include <lua.h>

#include "lm/decoder.h"

/* The decoder at idx; raises where it is none or closed. */
pl_decoder *pl_check_decoder(lua_State *L, int idx);
/* The list of token ids at idx, checked: its length. Raises naming the row. */
int64_t pl_check_ids(lua_State *L, int idx, int64_t row);
/* decoder:score, see score.c */
int pl_lua_score(lua_State *L);

#endif
