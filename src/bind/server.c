/* core.server: the HTTP server for Lua. The handle is valid from birth and says
 * "closed" afterwards; a client that is gone is a result, never an error. */
#include <string.h>

#include "bind/bind.h"
#include "net/server.h"

#define SERVER_NAME "perilune.Server"
#define HEADERS_MAX 16

static pl_server *check_server(lua_State *L) {
  pl_server **box = luaL_checkudata(L, 1, SERVER_NAME);
  luaL_argcheck(L, *box != NULL, 1, "this server was closed");
  return *box;
}

static const char *opt_field(lua_State *L, const char *name, const char *usual) {
  const int kind = lua_getfield(L, 1, name);
  if (kind != LUA_TNIL && kind != LUA_TSTRING) {
    luaL_error(L, "listen: %s is a %s; wanted a string", name, luaL_typename(L, -1));
  }
  const char *s = kind == LUA_TNIL ? usual : lua_tostring(L, -1);
  lua_pop(L, 1); /* the table keeps it */
  return s;
}

static double opt_number(lua_State *L, const char *name, double usual, double least, double most) {
  const int kind = lua_getfield(L, 1, name);
  const double v = kind == LUA_TNIL ? usual : lua_tonumber(L, -1);
  if ((kind != LUA_TNIL && kind != LUA_TNUMBER) || !(v >= least && v <= most)) {
    luaL_error(L, "listen: %s is %s; wanted a number from %f to %f", name,
               luaL_tolstring(L, -1, NULL), least, most);
  }
  lua_pop(L, 1);
  return v;
}

/* server.listen { address, port, token_env, token_optional, open_path, max_body,
 * max_connections, idle_s, request_s } -> Server | nil, message */
static int server_listen(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  pl_server_options o = {
      .address = opt_field(L, "address", "127.0.0.1"),
      .port = (int)opt_number(L, "port", 8080, 0, 65535),
      .token_env = opt_field(L, "token_env", NULL),
      .open_path = opt_field(L, "open_path", NULL),
      .max_body = (size_t)opt_number(L, "max_body", 8 << 20, 1, 1 << 30),
      .max_connections = (int)opt_number(L, "max_connections", 256, 1, 100000),
      .idle_s = opt_number(L, "idle_s", 120, 1, 86400),
      .request_s = opt_number(L, "request_s", 60, 0.01, 86400),
  };
  lua_getfield(L, 1, "token_optional");
  o.token_optional = lua_toboolean(L, -1);
  pl_server **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, SERVER_NAME);
  const pl_status st = pl_server_listen(pl_lua_ctx(L), &o, box);
  return st == PL_OK ? 1 : pl_lua_nil_error(L, st);
}

static int server_close(lua_State *L) {
  pl_server **box = luaL_checkudata(L, 1, SERVER_NAME);
  pl_server *s = *box;
  *box = NULL;
  pl_server_close(pl_lua_ctx(L), s);
  return 0;
}

static int server_port(lua_State *L) {
  lua_pushinteger(L, pl_server_port(check_server(L)));
  return 1;
}

static int server_tostring(lua_State *L) {
  pl_server **box = luaL_checkudata(L, 1, SERVER_NAME);
  if (*box == NULL) {
    lua_pushliteral(L, "HTTP server (closed)");
  } else {
    lua_pushfstring(L, "HTTP server on port %d", pl_server_port(*box));
  }
  return 1;
}

/* ---- requests ---- */

static int request_gc(lua_State *L) {
  pl_server_request_free(pl_lua_ctx(L), lua_touserdata(L, 1));
  return 0;
}

static pl_server_request *push_request(lua_State *L) {
  pl_server_request *r = lua_newuserdatauv(L, sizeof *r, 0);
  memset(r, 0, sizeof *r);
  if (luaL_newmetatable(L, "perilune.ServerRequest")) {
    lua_pushcfunction(L, request_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, request_gc);
    lua_setfield(L, -2, "__close");
  }
  lua_setmetatable(L, -2);
  lua_toclose(L, -1);
  return r;
}

static void push_buf(lua_State *L, const pl_buf *b) {
  lua_pushlstring(L, b->len == 0 ? "" : b->data, b->len);
}

/* "name\0value\0"... as a table; of a name that comes twice the values are joined by ", " */
static void push_pairs(lua_State *L, const pl_buf *b) {
  lua_newtable(L);
  for (size_t i = 0; i < b->len;) {
    const char *name = b->data + i;
    const char *value = name + strlen(name) + 1;
    i = (size_t)(value - b->data) + strlen(value) + 1;
    if (lua_getfield(L, -1, name) == LUA_TSTRING) {
      lua_pushfstring(L, ", %s", value);
      lua_concat(L, 2);
    } else {
      lua_pop(L, 1);
      lua_pushstring(L, value);
    }
    lua_setfield(L, -2, name);
  }
}

/* srv:take(seconds = 0) -> { id, method, path, query, headers, body } | nil */
static int server_take(lua_State *L) {
  pl_server *s = check_server(L);
  const double seconds = luaL_optnumber(L, 2, 0);
  pl_server_request *r = push_request(L);
  pl_lua_check(L, pl_server_take(pl_lua_ctx(L), s, seconds, r));
  if (r->id == 0) {
    return 0;
  }
  lua_createtable(L, 0, 6);
  lua_pushinteger(L, r->id);
  lua_setfield(L, -2, "id");
  lua_pushstring(L, r->method);
  lua_setfield(L, -2, "method");
  push_buf(L, &r->path);
  lua_setfield(L, -2, "path");
  push_pairs(L, &r->query);
  lua_setfield(L, -2, "query");
  push_pairs(L, &r->headers);
  lua_setfield(L, -2, "headers");
  push_buf(L, &r->body);
  lua_setfield(L, -2, "body");
  return 1;
}

/* ---- answers ---- */

/* The list of "Name: value" at idx into h; the strings are split in userdata left on the stack. */
static int check_headers(lua_State *L, int idx, pl_server_header h[HEADERS_MAX]) {
  if (lua_isnoneornil(L, idx)) {
    return 0;
  }
  luaL_checktype(L, idx, LUA_TTABLE);
  const int n = (int)lua_rawlen(L, idx);
  luaL_argcheck(L, n <= HEADERS_MAX, idx, "more than 16 headers");
  luaL_checkstack(L, n + 4, NULL);
  for (int i = 0; i < n; i++) {
    size_t len = 0;
    lua_rawgeti(L, idx, i + 1);
    const char *line = lua_tolstring(L, -1, &len);
    const char *colon = line == NULL ? NULL : strstr(line, ": ");
    luaL_argcheck(L, colon != NULL && strlen(line) == len, idx, "wanted texts \"Name: value\"");
    char *copy = lua_newuserdatauv(L, len + 1, 0);
    memcpy(copy, line, len + 1);
    copy[colon - line] = '\0';
    h[i] = (pl_server_header){copy, copy + (colon - line) + 2};
    lua_remove(L, -2);
  }
  return n;
}

static int check_status(lua_State *L, int idx) {
  const lua_Integer status = luaL_checkinteger(L, idx);
  luaL_argcheck(L, status >= 200 && status <= 599, idx, "wanted a status of 200 to 599");
  return (int)status;
}

/* srv:respond(id, status, headers, body) -> is the client still there? */
static int server_respond(lua_State *L) {
  pl_server *s = check_server(L);
  const int64_t id = luaL_checkinteger(L, 2);
  const int status = check_status(L, 3);
  size_t n = 0;
  const char *body = luaL_checklstring(L, 5, &n);
  pl_server_header h[HEADERS_MAX];
  const int n_h = check_headers(L, 4, h);
  bool live = false;
  pl_lua_check(L, pl_server_respond(pl_lua_ctx(L), s, id, status, h, n_h, body, n, &live));
  lua_pushboolean(L, live);
  return 1;
}

/* srv:begin(id, status, headers) -> is the client still there? */
static int server_begin(lua_State *L) {
  pl_server *s = check_server(L);
  const int64_t id = luaL_checkinteger(L, 2);
  const int status = check_status(L, 3);
  pl_server_header h[HEADERS_MAX];
  const int n_h = check_headers(L, 4, h);
  bool live = false;
  pl_lua_check(L, pl_server_begin(pl_lua_ctx(L), s, id, status, h, n_h, &live));
  lua_pushboolean(L, live);
  return 1;
}

/* srv:write(id, bytes) -> is the client still there? */
static int server_write(lua_State *L) {
  pl_server *s = check_server(L);
  const int64_t id = luaL_checkinteger(L, 2);
  size_t n = 0;
  const char *bytes = luaL_checklstring(L, 3, &n);
  lua_pushboolean(L, pl_server_write(s, id, bytes, n));
  return 1;
}

static int server_finish(lua_State *L) {
  pl_server *s = check_server(L);
  pl_server_finish(s, luaL_checkinteger(L, 2));
  return 0;
}

/* srv:gone() -> list of ids */
static int server_gone(lua_State *L) {
  pl_server *s = check_server(L);
  lua_newtable(L);
  int64_t id = pl_server_gone(s);
  for (lua_Integer i = 1; id != 0; i++) {
    lua_pushinteger(L, id);
    lua_rawseti(L, -2, i);
    id = pl_server_gone(s);
  }
  return 1;
}

int pl_open_server(lua_State *L) {
  const luaL_Reg meta[] = {{"__gc", server_close}, {"__close", server_close},
                           {"__tostring", server_tostring}, {NULL, NULL}};
  const luaL_Reg methods[] = {
      {"port", server_port},     {"take", server_take},   {"respond", server_respond},
      {"begin", server_begin},   {"write", server_write}, {"finish", server_finish},
      {"gone", server_gone},     {"close", server_close}, {NULL, NULL}};
  const luaL_Reg functions[] = {{"listen", server_listen}, {NULL, NULL}};
  luaL_newmetatable(L, SERVER_NAME);
  luaL_setfuncs(L, meta, 0);
  luaL_newlib(L, methods);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  return 1;
}
