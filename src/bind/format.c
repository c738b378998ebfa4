/* core.format: safetensors files and TensorBoard event files for Lua.
 *
 * Opening is an expected failure (nil, message); using a closed handle, an
 * unknown name or an unloadable dtype raises; so does a failed write, because
 * a save that was lost must not pass unseen. */
#include <string.h>

#include "bind/bind.h"
#include "format/safetensors.h"
#include "format/tfevents.h"

#define ST_NAME "perilune.Safetensors"

typedef struct st_box {
  pl_st *st; /* NULL once closed */
} st_box;

static pl_st *check_st(lua_State *L) {
  st_box *b = luaL_checkudata(L, 1, ST_NAME);
  luaL_argcheck(L, b->st != NULL, 1, "the safetensors file is closed");
  return b->st;
}

static const pl_st_entry *check_entry(lua_State *L, const pl_st *st) {
  const char *name = luaL_checkstring(L, 2);
  const pl_st_entry *e = pl_st_find(st, name);
  if (!e) {
    luaL_error(L, "%s holds no tensor \"%s\" (:names() lists the %I it has)", pl_st_path(st), name,
               (lua_Integer)pl_st_count(st));
  }
  return e;
}

static int st_close(lua_State *L) {
  st_box *b = luaL_checkudata(L, 1, ST_NAME);
  pl_st_close(pl_lua_ctx(L), b->st);
  b->st = NULL;
  return 0;
}

static int st_names(lua_State *L) {
  const pl_st *st = check_st(L);
  size_t n = pl_st_count(st);
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_pushstring(L, pl_st_at(st, i)->name);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int st_info(lua_State *L) {
  const pl_st_entry *e = check_entry(L, check_st(L));
  lua_createtable(L, 0, 3);
  lua_pushstring(L, e->dtype->name);
  lua_setfield(L, -2, "dtype");
  lua_createtable(L, e->ndim, 0);
  for (int i = 0; i < e->ndim; i++) {
    lua_pushinteger(L, (lua_Integer)e->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "shape");
  lua_pushinteger(L, (lua_Integer)(e->end - e->begin));
  lua_setfield(L, -2, "bytes");
  return 1;
}

static int st_tensor(lua_State *L) {
  pl_st *st = check_st(L);
  const pl_st_entry *e = check_entry(L, st);
  pl_ctx *c = pl_lua_ctx(L);
  pl_dtype d = PL_F32;
  pl_tensor *t = NULL;
  char none = 0;
  if (!e->dtype->load) {
    pl_lua_check(L, pl_st_copy(c, st, e, &none)); /* raises its explanation */
  }
  pl_lua_check(L, pl_dtype_find(c, e->dtype->load, &d));
  pl_lua_check(L, pl_tensor_new(c, d, e->ndim, e->shape, &t));
  pl_status status = pl_st_copy(c, st, e, pl_data(t));
  if (status != PL_OK) {
    pl_tensor_unref(t);
    pl_lua_check(L, status);
  }
  pl_push_tensor(L, t);
  return 1;
}

static int st_metadata(lua_State *L) {
  const pl_st *st = check_st(L);
  lua_newtable(L);
  for (size_t i = 0; i < pl_st_metadata_count(st); i++) {
    const pl_st_pair *p = pl_st_metadata_at(st, i);
    lua_pushstring(L, p->value);
    lua_setfield(L, -2, p->key);
  }
  return 1;
}

static int st_tostring(lua_State *L) {
  st_box *b = luaL_checkudata(L, 1, ST_NAME);
  if (b->st) {
    lua_pushfstring(L, "safetensors %s: %I tensors", pl_st_path(b->st),
                    (lua_Integer)pl_st_count(b->st));
  } else {
    lua_pushliteral(L, "safetensors (closed)");
  }
  return 1;
}

/* format.safetensors_open(path) -> Safetensors | nil, message */
static int safetensors_open(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  st_box *b = lua_newuserdatauv(L, sizeof *b, 0);
  b->st = NULL;
  luaL_setmetatable(L, ST_NAME);
  pl_status status = pl_st_open(pl_lua_ctx(L), path, &b->st);
  if (status != PL_OK) {
    return pl_lua_nil_error(L, status);
  }
  return 1;
}

/* Pushes arrays (userdata, so that nothing leaks when a check raises) of what
 * the table at idx maps; count of pairs out. Keys must be strings. */
static size_t count_pairs(lua_State *L, int idx, const char *what) {
  size_t n = 0;
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    if (lua_type(L, -2) != LUA_TSTRING || strlen(lua_tostring(L, -2)) != lua_rawlen(L, -2)) {
      luaL_error(L, "safetensors_write: %s must have string keys without NUL, got a %s", what,
                 luaL_typename(L, -2));
    }
    n++;
    lua_pop(L, 1);
  }
  return n;
}

/* format.safetensors_write(path, {name = tensor}, metadata?) -> true; raises on failure.
 * metadata: strings to strings; default {format = "pt"}, as PyTorch's tools want. */
static int safetensors_write(lua_State *L) {
  static const pl_st_pair usual = {(char *)"format", (char *)"pt"};
  const char *path = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (!lua_isnoneornil(L, 3)) {
    luaL_checktype(L, 3, LUA_TTABLE);
  }
  lua_settop(L, 3);
  pl_ctx *c = pl_lua_ctx(L);
  size_t n = count_pairs(L, 2, "the table of tensors");
  size_t n_meta = lua_isnil(L, 3) ? 0 : count_pairs(L, 3, "metadata");
  pl_st_item *items = lua_newuserdatauv(L, (n + 1) * sizeof *items, 0);
  pl_tensor **tensors = lua_newuserdatauv(L, (n + 1) * sizeof *tensors, 0);
  pl_st_pair *meta = lua_newuserdatauv(L, (n_meta + 1) * sizeof *meta, 0);
  size_t i = 0;
  lua_pushnil(L);
  while (lua_next(L, 2)) {
    if (!pl_test_tensor(L, -1)) {
      luaL_error(L, "safetensors_write: \"%s\" is a %s, not a tensor", lua_tostring(L, -2),
                 luaL_typename(L, -1));
    }
    items[i].name = lua_tostring(L, -2);
    tensors[i] = pl_check_tensor(L, -1);
    i++;
    lua_pop(L, 1);
  }
  i = 0;
  if (n_meta > 0) {
    lua_pushnil(L);
    while (lua_next(L, 3)) {
      if (lua_type(L, -1) != LUA_TSTRING) {
        luaL_error(L, "safetensors_write: metadata \"%s\" is a %s, not a string",
                   lua_tostring(L, -2), luaL_typename(L, -1));
      }
      meta[i].key = (char *)lua_tostring(L, -2);
      meta[i].value = (char *)lua_tostring(L, -1);
      i++;
      lua_pop(L, 1);
    }
  }
  /* From here nothing raises until the references are given back. */
  pl_status status = PL_OK;
  size_t have = 0;
  while (have < n && status == PL_OK) {
    status = pl_tensor_contiguous(c, tensors[have], &tensors[have]);
    if (status == PL_OK) {
      const pl_tensor *t = tensors[have];
      items[have].dtype = pl_dtypes[t->dtype].st_name;
      items[have].ndim = t->ndim;
      items[have].shape = t->shape;
      items[have].data = pl_data(t);
      have++;
    }
  }
  if (status == PL_OK) {
    bool given = !lua_isnil(L, 3);
    status = pl_st_write(c, path, items, n, given ? meta : &usual, given ? n_meta : 1);
  }
  for (size_t k = 0; k < have; k++) {
    pl_tensor_unref(tensors[k]);
  }
  pl_lua_check(L, status);
  lua_pushboolean(L, true);
  return 1;
}

#define EVENTS_NAME "perilune.EventWriter"

typedef struct events_box {
  pl_tfevents *w; /* NULL once closed */
} events_box;

static int events_gc(lua_State *L) {
  events_box *b = luaL_checkudata(L, 1, EVENTS_NAME);
  pl_tfevents *w = b->w;
  b->w = NULL;
  (void)pl_tfevents_close(pl_lua_ctx(L), w); /* a collector has nobody to tell */
  return 0;
}

/* events:close(), raises if the last bytes could not be written. */
static int events_close(lua_State *L) {
  events_box *b = luaL_checkudata(L, 1, EVENTS_NAME);
  pl_tfevents *w = b->w;
  b->w = NULL;
  pl_lua_check(L, pl_tfevents_close(pl_lua_ctx(L), w));
  return 0;
}

static pl_tfevents *check_events(lua_State *L) {
  events_box *b = luaL_checkudata(L, 1, EVENTS_NAME);
  luaL_argcheck(L, b->w != NULL, 1, "the event file is closed");
  return b->w;
}

/* events:scalar(tag, step, value) */
static int events_scalar(lua_State *L) {
  pl_tfevents *w = check_events(L);
  const char *tag = luaL_checkstring(L, 2);
  lua_Integer step = luaL_checkinteger(L, 3);
  lua_Number value = luaL_checknumber(L, 4);
  pl_lua_check(L, pl_tfevents_scalar(pl_lua_ctx(L), w, tag, step, value));
  return 0;
}

static int events_path(lua_State *L) {
  lua_pushstring(L, pl_tfevents_path(check_events(L)));
  return 1;
}

static int events_tostring(lua_State *L) {
  events_box *b = luaL_checkudata(L, 1, EVENTS_NAME);
  lua_pushfstring(L, "event file %s", b->w ? pl_tfevents_path(b->w) : "(closed)");
  return 1;
}

/* format.tfevents_open(dir) -> EventWriter | nil, message; dir must exist */
static int tfevents_open(lua_State *L) {
  const char *dir = luaL_checkstring(L, 1);
  events_box *b = lua_newuserdatauv(L, sizeof *b, 0);
  b->w = NULL;
  luaL_setmetatable(L, EVENTS_NAME);
  pl_status status = pl_tfevents_open(pl_lua_ctx(L), dir, &b->w);
  if (status != PL_OK) {
    return pl_lua_nil_error(L, status);
  }
  return 1;
}

static const luaL_Reg events_methods[] = {
    {"scalar", events_scalar},
    {"path", events_path},
    {"close", events_close},
    {NULL, NULL},
};

static const luaL_Reg events_meta[] = {
    {"__gc", events_gc},
    {"__close", events_gc},
    {"__tostring", events_tostring},
    {NULL, NULL},
};

static const luaL_Reg st_methods[] = {
    {"names", st_names},       {"info", st_info},   {"tensor", st_tensor},
    {"metadata", st_metadata}, {"close", st_close}, {NULL, NULL},
};

static const luaL_Reg st_meta[] = {
    {"__gc", st_close},
    {"__close", st_close},
    {"__tostring", st_tostring},
    {NULL, NULL},
};

static const luaL_Reg functions[] = {
    {"safetensors_open", safetensors_open},
    {"safetensors_write", safetensors_write},
    {"tfevents_open", tfevents_open},
    {NULL, NULL},
};

int pl_open_format(lua_State *L) {
  luaL_newmetatable(L, ST_NAME);
  luaL_setfuncs(L, st_meta, 0);
  luaL_newlib(L, st_methods);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_newmetatable(L, EVENTS_NAME);
  luaL_setfuncs(L, events_meta, 0);
  luaL_newlib(L, events_methods);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  return 1;
}
