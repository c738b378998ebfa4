/* core.text: the tokenizer userdata. Every failure raises: a model that went on
 * without its tokenizer would be worse than a stop. */
#include <string.h>

#include "base/profile.h"
#include "bind/bind.h"
#include "text/tokenizer.h"

#define TOKENIZER_NAME "perilune.Tokenizer"

typedef struct tok_box {
  pl_tokenizer *t; /* NULL until loaded and once freed */
} tok_box;

typedef struct work_box { /* what one call needs, freed however the call ends */
  pl_ids ids;
  pl_buf text;
} work_box;

static pl_tokenizer *check_tok(lua_State *L) {
  tok_box *b = luaL_checkudata(L, 1, TOKENIZER_NAME);
  luaL_argcheck(L, b->t != NULL, 1, "the tokenizer was freed");
  return b->t;
}

static int work_gc(lua_State *L) {
  work_box *w = lua_touserdata(L, 1);
  pl_ids_free(pl_lua_ctx(L), &w->ids);
  pl_buf_free(pl_lua_ctx(L), &w->text);
  return 0;
}

static work_box *new_work(lua_State *L) {
  work_box *w = lua_newuserdatauv(L, sizeof *w, 0);
  memset(w, 0, sizeof *w);
  pl_buf_init(&w->text, (size_t)1 << 30);
  if (luaL_newmetatable(L, "perilune.TokenizerWork")) {
    lua_pushcfunction(L, work_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, work_gc);
    lua_setfield(L, -2, "__close");
  }
  lua_setmetatable(L, -2);
  lua_toclose(L, -1);
  return w;
}

/* An option of the table at idx, or usual; unknown keys raise. */
static bool option(lua_State *L, int idx, const char *where, const char *key, bool usual) {
  if (lua_isnoneornil(L, idx)) {
    return usual;
  }
  luaL_checktype(L, idx, LUA_TTABLE);
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    if (lua_type(L, -2) != LUA_TSTRING || strcmp(lua_tostring(L, -2), key) != 0) {
      lua_pop(L, 1);
      luaL_error(L, "%s: unknown option \"%s\" (the only one is %s)", where,
                 luaL_tolstring(L, -1, NULL), key);
    }
    if (!lua_isboolean(L, -1)) {
      luaL_error(L, "%s: %s must be true or false, got a %s", where, key, luaL_typename(L, -1));
    }
    usual = lua_toboolean(L, -1);
    lua_pop(L, 1);
  }
  return usual;
}

static void push_ids(lua_State *L, const pl_ids *ids) {
  lua_createtable(L, (int)ids->len, 0);
  for (size_t i = 0; i < ids->len; i++) {
    lua_pushinteger(L, ids->data[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

/* tok:encode(text, {add_special_tokens = true}) -> list of ids (from 0) */
static int tok_encode(lua_State *L) {
  pl_tokenizer *t = check_tok(L);
  size_t n = 0;
  const char *s = luaL_checklstring(L, 2, &n);
  bool special = option(L, 3, "encode", "add_special_tokens", true);
  work_box *w = new_work(L);
  pl_ctx *c = pl_lua_ctx(L);
  pl_profile_enter(c, "(tokenize)", false);
  const pl_status st = pl_tokenizer_encode(c, t, s, n, special, &w->ids);
  pl_profile_leave(c, (pl_work){.made = (double)w->ids.len * sizeof *w->ids.data});
  pl_lua_check(L, st);
  push_ids(L, &w->ids);
  return 1;
}

/* tok:encode_plain(text) -> list of ids; nothing added, and no special token out of its text */
static int tok_encode_plain(lua_State *L) {
  pl_tokenizer *t = check_tok(L);
  size_t n = 0;
  const char *s = luaL_checklstring(L, 2, &n);
  work_box *w = new_work(L);
  pl_ctx *c = pl_lua_ctx(L);
  pl_profile_enter(c, "(tokenize)", false);
  const pl_status st = pl_tokenizer_encode_plain(c, t, s, n, &w->ids);
  pl_profile_leave(c, (pl_work){.made = (double)w->ids.len * sizeof *w->ids.data});
  pl_lua_check(L, st);
  push_ids(L, &w->ids);
  return 1;
}

/* tok:decode(ids, {skip_special_tokens = true}) -> text */
static int tok_decode(lua_State *L) {
  pl_tokenizer *t = check_tok(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  bool skip = option(L, 3, "decode", "skip_special_tokens", true);
  work_box *w = new_work(L);
  pl_ctx *c = pl_lua_ctx(L);
  lua_Integer n = luaL_len(L, 2);
  for (lua_Integer i = 1; i <= n; i++) {
    int is_int = 0;
    lua_geti(L, 2, i);
    lua_Integer id = lua_tointegerx(L, -1, &is_int);
    if (!is_int || id < 0 || id > INT32_MAX) {
      return luaL_error(L, "decode: entry %I of ids is %s, not an id", i,
                        luaL_tolstring(L, -1, NULL));
    }
    lua_pop(L, 1);
    pl_lua_check(L, pl_ids_add(c, &w->ids, (int32_t)id));
  }
  pl_lua_check(L, pl_tokenizer_decode(c, t, w->ids.data, w->ids.len, skip, &w->text));
  lua_pushlstring(L, w->text.data ? w->text.data : "", w->text.len);
  return 1;
}

static int tok_vocab_size(lua_State *L) {
  lua_pushinteger(L, pl_tokenizer_vocab_size(check_tok(L)));
  return 1;
}

/* tok:token_to_id(token) -> id | nil */
static int tok_token_to_id(lua_State *L) {
  const pl_tokenizer *t = check_tok(L);
  size_t n = 0;
  const char *s = luaL_checklstring(L, 2, &n);
  int32_t id = pl_tokenizer_token_to_id(t, s, n);
  if (id < 0) {
    return 0;
  }
  lua_pushinteger(L, id);
  return 1;
}

/* tok:id_to_token(id) -> token | nil */
static int tok_id_to_token(lua_State *L) {
  const pl_tokenizer *t = check_tok(L);
  lua_Integer id = luaL_checkinteger(L, 2);
  size_t n = 0;
  const char *s =
      id < 0 || id > INT32_MAX ? NULL : pl_tokenizer_id_to_token(t, (int32_t)id, &n);
  if (!s) {
    return 0;
  }
  lua_pushlstring(L, s, n);
  return 1;
}

static int tok_is_special(lua_State *L) {
  const pl_tokenizer *t = check_tok(L);
  lua_Integer id = luaL_checkinteger(L, 2);
  lua_pushboolean(L, id >= 0 && id <= INT32_MAX && pl_tokenizer_is_special(t, (int32_t)id));
  return 1;
}

static int tok_json(lua_State *L) {
  size_t n = 0;
  const char *s = pl_tokenizer_json(check_tok(L), &n);
  lua_pushlstring(L, s, n);
  return 1;
}

static int tok_hash(lua_State *L) {
  lua_pushstring(L, pl_tokenizer_sha256(check_tok(L)));
  return 1;
}

/* tok:bos_declared() -> the id encode adds in front | nil */
static int tok_bos_declared(lua_State *L) {
  int32_t id = pl_tokenizer_bos(check_tok(L));
  if (id < 0) {
    return 0;
  }
  lua_pushinteger(L, id);
  return 1;
}

static int tok_tostring(lua_State *L) {
  tok_box *b = luaL_checkudata(L, 1, TOKENIZER_NAME);
  if (!b->t) {
    lua_pushliteral(L, "tokenizer (freed)");
    return 1;
  }
  int32_t bos = pl_tokenizer_bos(b->t);
  size_t n = 0;
  const char *name = bos < 0 ? NULL : pl_tokenizer_id_to_token(b->t, bos, &n);
  lua_pushfstring(L, "tokenizer %s, %d ids, %s%s", pl_tokenizer_model(b->t),
                  (int)pl_tokenizer_vocab_size(b->t), name ? "puts in front " : "adds no BOS",
                  name ? name : "");
  return 1;
}

static int tok_free(lua_State *L) {
  tok_box *b = luaL_checkudata(L, 1, TOKENIZER_NAME);
  pl_tokenizer_free(pl_lua_ctx(L), b->t);
  b->t = NULL;
  return 0;
}

static tok_box *new_tok(lua_State *L) {
  tok_box *b = lua_newuserdatauv(L, sizeof *b, 0);
  b->t = NULL;
  luaL_setmetatable(L, TOKENIZER_NAME);
  return b;
}

/* The file's text, tables of its size and a cache hang on the userdata. */
static int finish(lua_State *L, const tok_box *b, pl_status st) {
  size_t n = 0;
  pl_lua_check(L, st);
  (void)pl_tokenizer_json(b->t, &n);
  pl_gc_hint(L, 4 * n + ((size_t)1 << 20));
  return 1;
}

/* text.load(path of a tokenizer.json or its directory) -> Tokenizer */
static int text_load(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  tok_box *b = new_tok(L);
  return finish(L, b, pl_tokenizer_load(pl_lua_ctx(L), path, &b->t));
}

/* text.from_json(text, name_for_errors?) -> Tokenizer */
static int text_from_json(lua_State *L) {
  size_t n = 0;
  const char *s = luaL_checklstring(L, 1, &n);
  const char *source = luaL_optstring(L, 2, "tokenizer.json");
  tok_box *b = new_tok(L);
  return finish(L, b, pl_tokenizer_parse(pl_lua_ctx(L), source, s, n, &b->t));
}

static const luaL_Reg methods[] = {
    {"encode", tok_encode},
    {"encode_plain", tok_encode_plain},
    {"decode", tok_decode},
    {"vocab_size", tok_vocab_size},
    {"token_to_id", tok_token_to_id},
    {"id_to_token", tok_id_to_token},
    {"is_special", tok_is_special},
    {"json", tok_json},
    {"hash", tok_hash},
    {"bos_declared", tok_bos_declared},
    {"free", tok_free},
    {NULL, NULL},
};

static const luaL_Reg meta[] = {
    {"__gc", tok_free},
    {"__close", tok_free},
    {"__tostring", tok_tostring},
    {NULL, NULL},
};

static const luaL_Reg functions[] = {
    {"load", text_load},
    {"from_json", text_from_json},
    {NULL, NULL},
};

int pl_open_text(lua_State *L) {
  luaL_newmetatable(L, TOKENIZER_NAME);
  luaL_setfuncs(L, meta, 0);
  luaL_newlib(L, methods);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  return 1;
}
