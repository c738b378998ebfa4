/* core.net: the HTTP client, the parser of server-sent events, keys and the redactor.
 *
 * What it is: the bridge from lua/perilune/ai to src/net. A request's failure is a result like
 * any other (fields failure and message); only misuse and Ctrl-C raise. No Lua code runs while
 * libcurl does.
 * What it must not do: make a Lua string of a key, or decide on retries. */
#include <ctype.h>
#include <math.h>
#include <string.h>

#include "bind/bind.h"
#include "net/http.h"
#include "net/url.h"

#define CLIENT_NAME "perilune.HttpClient"
#define SSE_NAME "perilune.SseParser"
#define EVENT_MAX ((size_t)16 << 20)

/* ---- the client ---- */

typedef struct client_box {
  pl_http *h; /* NULL until opened and once closed */
} client_box;

static pl_http *check_client(lua_State *L) {
  client_box *b = luaL_checkudata(L, 1, CLIENT_NAME);
  luaL_argcheck(L, b->h != NULL, 1, "the client is closed");
  return b->h;
}

static int client_close(lua_State *L) {
  client_box *b = luaL_checkudata(L, 1, CLIENT_NAME);
  pl_http *h = b->h;
  b->h = NULL;
  pl_http_close(pl_lua_ctx(L), h);
  return 0;
}

static int client_tostring(lua_State *L) {
  client_box *b = luaL_checkudata(L, 1, CLIENT_NAME);
  if (b->h == NULL) {
    lua_pushliteral(L, "HTTP client (closed)");
  } else {
    lua_pushfstring(L, "HTTP client, %I in flight", (LUAI_UACINT)pl_http_active(b->h));
  }
  return 1;
}

/* The value on top must be of that type; its name for the message is the key below it. */
static void want(lua_State *L, const char *where, int type) {
  if (lua_type(L, -1) != type) {
    luaL_error(L, "%s: %s must be a %s, got %s", where, lua_tostring(L, -2),
               lua_typename(L, type), luaL_typename(L, -1));
  }
}

/* net.client { connections = 64, user_agent = "perilune" } */
static int client_new(lua_State *L) {
  pl_http_options o = {
      .connections = 64, .user_agent = "perilune", .secrets = &pl_lua_of(L)->secrets};
  lua_settop(L, 1);
  if (!lua_isnil(L, 1)) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_pushnil(L);
    while (lua_next(L, 1)) {
      const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
      if (strcmp(key, "connections") == 0) {
        want(L, "net.client", LUA_TNUMBER);
        lua_Integer n = luaL_checkinteger(L, -1);
        o.connections = n < 0 || n > 1 << 20 ? -1 : (int)n;
      } else if (strcmp(key, "user_agent") == 0) {
        want(L, "net.client", LUA_TSTRING);
        o.user_agent = lua_tostring(L, -1);
      } else {
        return luaL_error(L, "net.client: unknown option %s (connections, user_agent)",
                          luaL_tolstring(L, -2, NULL));
      }
      lua_pop(L, 1);
    }
  }
  client_box *b = lua_newuserdatauv(L, sizeof *b, 0);
  b->h = NULL;
  luaL_setmetatable(L, CLIENT_NAME);
  pl_lua_check(L, pl_http_open(pl_lua_ctx(L), &o, &b->h));
  return 1;
}

typedef enum field_kind { TEXT, FLAG, SECONDS } field_kind;

static const struct {
  const char *name;
  field_kind kind;
  size_t at;
} request_fields[] = {
    {"url", TEXT, offsetof(pl_http_request, url)},
    {"body", TEXT, offsetof(pl_http_request, body)},
    {"secret_header", TEXT, offsetof(pl_http_request, secret_header)},
    {"stream", FLAG, offsetof(pl_http_request, stream)},
    {"insecure", FLAG, offsetof(pl_http_request, insecure)},
    {"connect_s", SECONDS, offsetof(pl_http_request, connect_s)},
    {"total_s", SECONDS, offsetof(pl_http_request, total_s)},
    {"idle_s", SECONDS, offsetof(pl_http_request, idle_s)},
};

/* The entry on top (key below it) into r, if it is one of request_fields. */
static bool take_field(lua_State *L, const char *key, pl_http_request *r) {
  for (size_t i = 0; i < sizeof request_fields / sizeof *request_fields; i++) {
    if (strcmp(key, request_fields[i].name) != 0) {
      continue;
    }
    void *to = (char *)r + request_fields[i].at;
    if (request_fields[i].kind == TEXT) {
      pl_http_text *text = to;
      want(L, "send", LUA_TSTRING);
      text->text = lua_tolstring(L, -1, &text->n);
    } else if (request_fields[i].kind == FLAG) {
      want(L, "send", LUA_TBOOLEAN);
      *(bool *)to = lua_toboolean(L, -1);
    } else {
      want(L, "send", LUA_TNUMBER);
      double s = lua_tonumber(L, -1);
      if (!(s > 0)) {
        luaL_error(L, "send: %s must be over 0, got %f", key, (LUAI_UACNUMBER)s);
      }
      *(double *)to = s;
    }
    return true;
  }
  return false;
}

/* The list of header lines on top; the strings stay anchored in it, the array on the stack. */
static void take_headers(lua_State *L, pl_http_request *r) {
  want(L, "send", LUA_TTABLE);
  int list = lua_gettop(L);
  size_t n = (size_t)lua_rawlen(L, list);
  pl_http_text *lines = lua_newuserdatauv(L, (n + 1) * sizeof *lines, 0);
  for (size_t i = 0; i < n; i++) {
    if (lua_rawgeti(L, list, (lua_Integer)i + 1) != LUA_TSTRING) {
      luaL_error(L, "send: headers[%I] must be a string \"Name: value\", got %s",
                 (LUAI_UACINT)(i + 1), luaL_typename(L, -1));
    }
    lines[i].text = lua_tolstring(L, -1, &lines[i].n);
    lua_pop(L, 1);
  }
  r->headers = lines;
  r->header_n = n;
  lua_replace(L, 3); /* out of the way of lua_next */
}

/* Integers by name; true if it is one. */
static bool take_integer(lua_State *L, const char *key, pl_http_request *r, bool *has_id) {
  bool id = strcmp(key, "id") == 0;
  if (!id && strcmp(key, "max_body") != 0) {
    return false;
  }
  int whole = 0;
  lua_Integer n = lua_tointegerx(L, -1, &whole);
  if (!whole || (!id && n < 1)) {
    luaL_error(L, "send: %s must be a whole number%s, got %s", key, id ? "" : " over 0",
               luaL_tolstring(L, -1, NULL));
  }
  if (id) {
    r->id = n;
    *has_id = true;
  } else {
    r->max_body = (size_t)n;
  }
  return true;
}

static void take_secret(lua_State *L, pl_http_request *r, const char *name) {
  if ((name != NULL) != (r->secret_header.text != NULL)) {
    luaL_error(L, "send: secret_env and secret_header belong together");
  }
  if (name != NULL) {
    r->secret = pl_secrets_find(&pl_lua_of(L)->secrets, name);
    if (r->secret == NULL) {
      luaL_error(L, "send: the key %s was not loaded; call net.secret(\"%s\") first", name, name);
    }
  }
}

/* client:send { id =, url =, ... } queues and starts one request */
static int client_send(lua_State *L) {
  pl_http *h = check_client(L);
  pl_http_request r = {
      .method = "GET", .connect_s = 10, .total_s = 600, .idle_s = 60, .max_body = 64 << 20};
  const char *secret = NULL;
  const char *method = NULL;
  bool has_id = false;
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  lua_pushnil(L); /* 3: the array of headers */
  lua_pushnil(L);
  while (lua_next(L, 2)) {
    const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    if (strcmp(key, "method") == 0) {
      want(L, "send", LUA_TSTRING);
      method = lua_tostring(L, -1);
    } else if (strcmp(key, "secret_env") == 0) {
      want(L, "send", LUA_TSTRING);
      secret = lua_tostring(L, -1);
    } else if (strcmp(key, "headers") == 0) {
      take_headers(L, &r);
    } else if (!take_integer(L, key, &r, &has_id) && !take_field(L, key, &r)) {
      return luaL_error(L, "send: unknown field %s (id, method, url, headers, secret_header, "
                           "secret_env, body, stream, insecure, connect_s, total_s, idle_s, "
                           "max_body)", luaL_tolstring(L, -2, NULL));
    }
    lua_pop(L, 1);
  }
  if (!has_id || r.url.text == NULL) {
    return luaL_error(L, "send: %s is missing", has_id ? "url" : "id");
  }
  r.method = method != NULL ? method : r.body.text != NULL ? "POST" : "GET";
  take_secret(L, &r, secret);
  pl_lua_check(L, pl_http_send(pl_lua_ctx(L), h, &r));
  return 0;
}

/* client:poll(seconds) -> how many requests have something to give */
static int client_poll(lua_State *L) {
  pl_http *h = check_client(L);
  double seconds = luaL_optnumber(L, 2, 0);
  size_t ready = 0;
  luaL_argcheck(L, seconds >= 0, 2, "seconds must not be negative");
  pl_lua_check(L, pl_http_poll(pl_lua_ctx(L), h, seconds, &ready));
  lua_pushinteger(L, (lua_Integer)ready);
  return 1;
}

static void set_text(lua_State *L, const char *name, const char *s, size_t n) {
  lua_pushlstring(L, s, n);
  lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double v) {
  lua_pushnumber(L, v);
  lua_setfield(L, -2, name);
}

/* Pushes { ["lower-case-name"] = "value" }; a name that comes again is joined by ", ". */
static void push_headers(lua_State *L, const char *head, size_t n) {
  size_t at = 0;
  pl_http_field f;
  lua_newtable(L);
  while (pl_http_header(head, n, &at, &f)) {
    luaL_Buffer b;
    char *name = luaL_buffinitsize(L, &b, f.name_n);
    for (size_t i = 0; i < f.name_n; i++) {
      name[i] = (char)tolower((unsigned char)f.name[i]);
    }
    luaL_pushresultsize(&b, f.name_n);
    lua_pushvalue(L, -1);
    if (lua_rawget(L, -3) == LUA_TNIL) {
      lua_pop(L, 1);
      lua_pushlstring(L, f.value, f.value_n);
    } else {
      lua_pushliteral(L, ", ");
      lua_pushlstring(L, f.value, f.value_n);
      lua_concat(L, 3);
    }
    lua_rawset(L, -3);
  }
}

static void push_result(lua_State *L, const pl_http_result *r) {
  lua_createtable(L, 0, 9);
  lua_pushinteger(L, r->id);
  lua_setfield(L, -2, "id");
  if (r->status > 0) {
    lua_pushinteger(L, r->status);
    lua_setfield(L, -2, "status");
  }
  push_headers(L, r->head, r->head_n);
  lua_setfield(L, -2, "headers");
  set_text(L, "body", r->body, r->body_n);
  set_number(L, "seconds", r->seconds);
  set_number(L, "first_s", r->first_s);
  lua_pushboolean(L, r->sent);
  lua_setfield(L, -2, "sent");
  if (r->failure != PL_HTTP_DONE) {
    lua_pushstring(L, pl_http_failure_name(r->failure));
    lua_setfield(L, -2, "failure");
    lua_pushstring(L, r->message);
    lua_setfield(L, -2, "message");
  }
}

static void push_event(lua_State *L, const pl_sse_event *e) {
  lua_createtable(L, 0, 4);
  set_text(L, "data", e->data, e->data_n);
  if (e->event != NULL) {
    set_text(L, "event", e->event, e->event_n);
  }
}

/* client:next() -> a result, an event of a stream, or nil */
static int client_next(lua_State *L) {
  pl_http *h = check_client(L);
  pl_http_result r;
  bool found = false;
  pl_lua_check(L, pl_http_next(pl_lua_ctx(L), h, &r, &found));
  if (!found) {
    lua_pushnil(L);
  } else if (r.is_event) {
    push_event(L, &r.event);
    lua_pushinteger(L, r.id);
    lua_setfield(L, -2, "id");
  } else {
    push_result(L, &r);
  }
  return 1;
}

/* client:cancel(id) -> how many requests were ended; they give no result */
static int client_cancel(lua_State *L) {
  pl_http *h = check_client(L);
  size_t n = pl_http_cancel(pl_lua_ctx(L), h, luaL_checkinteger(L, 2));
  lua_pushinteger(L, (lua_Integer)n);
  return 1;
}

static int client_active(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)pl_http_active(check_client(L)));
  return 1;
}

/* ---- server-sent events ---- */

typedef struct sse_box {
  pl_sse s;
  bool open;
} sse_box;

static sse_box *check_sse(lua_State *L) {
  sse_box *b = luaL_checkudata(L, 1, SSE_NAME);
  luaL_argcheck(L, b->open, 1, "the parser is closed");
  return b;
}

static int sse_close(lua_State *L) {
  sse_box *b = luaL_checkudata(L, 1, SSE_NAME);
  b->open = false;
  pl_sse_free(pl_lua_ctx(L), &b->s);
  return 0;
}

/* net.sse(most bytes of one event) -> parser */
static int sse_new(lua_State *L) {
  lua_Integer max = luaL_optinteger(L, 1, (lua_Integer)EVENT_MAX);
  luaL_argcheck(L, max > 0, 1, "the most bytes of an event must be over 0");
  sse_box *b = lua_newuserdatauv(L, sizeof *b, 0);
  pl_sse_init(&b->s, (size_t)max);
  b->open = true;
  luaL_setmetatable(L, SSE_NAME);
  return 1;
}

/* The list of events that are whole, or nil, message for one that is too large. */
static int push_events(lua_State *L, pl_sse *s) {
  pl_ctx *c = pl_lua_ctx(L);
  pl_sse_event e;
  bool found = true;
  lua_newtable(L);
  for (lua_Integer i = 1; found; i++) {
    pl_status st = pl_sse_next(c, s, &e, &found);
    if (st == PL_EFORMAT) {
      return pl_lua_nil_error(L, st);
    }
    pl_lua_check(L, st);
    if (found) {
      push_event(L, &e);
      if (e.id != NULL) {
        set_text(L, "id", e.id, e.id_n);
      }
      lua_rawseti(L, -2, i);
    }
  }
  return 1;
}

static int sse_feed(lua_State *L) {
  sse_box *b = check_sse(L);
  size_t n = 0;
  const char *bytes = luaL_checklstring(L, 2, &n);
  pl_lua_check(L, pl_sse_feed(pl_lua_ctx(L), &b->s, bytes, n));
  return push_events(L, &b->s);
}

static int sse_finish(lua_State *L) {
  sse_box *b = check_sse(L);
  pl_sse_finish(&b->s);
  return push_events(L, &b->s);
}

/* ---- keys ---- */

static const char *check_env_name(lua_State *L) {
  size_t n = 0;
  const char *s = luaL_checklstring(L, 1, &n);
  size_t good = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");
  luaL_argcheck(L, n > 0 && good == n && !isdigit((unsigned char)s[0]), 1,
                "wanted the name of an environment variable, such as OPENAI_API_KEY");
  return s;
}

/* net.secret(name) -> true | nil, message */
static int secret(lua_State *L) {
  const char *name = check_env_name(L);
  return pl_lua_true_or_nil(L, pl_secrets_load(pl_lua_ctx(L), &pl_lua_of(L)->secrets, name));
}

/* net.has_secret(name) -> boolean: loaded, or there to be loaded */
static int has_secret(lua_State *L) {
  const char *name = check_env_name(L);
  lua_pushboolean(L, pl_secrets_known(&pl_lua_of(L)->secrets, name));
  return 1;
}

/* net.redact(text) -> text without keys; the very same string where it holds none */
static int redact(lua_State *L) {
  size_t n = 0;
  const char *text = luaL_checklstring(L, 1, &n);
  bool changed = false;
  lua_settop(L, 1);
  pl_buf *out = pl_lua_newbuf(L, SIZE_MAX / 2);
  pl_lua_check(L, pl_redact(pl_lua_ctx(L), &pl_lua_of(L)->secrets, text, n, out, &changed));
  if (!changed) {
    lua_settop(L, 1);
    return 1;
  }
  lua_pushlstring(L, out->data, out->len);
  pl_buf_free(pl_lua_ctx(L), out);
  return 1;
}

/* net.is_loopback(url) -> boolean: an address of this machine, by its form */
static int is_loopback(lua_State *L) {
  size_t n = 0;
  const char *url = luaL_checklstring(L, 1, &n);
  pl_url where;
  bool good = pl_url_check(pl_lua_ctx(L), url, n, true, &where) == PL_OK;
  lua_pushboolean(L, good && where.loopback);
  return 1;
}

static void new_class(lua_State *L, const char *name, const luaL_Reg *methods,
                      lua_CFunction closer) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, closer);
  lua_setfield(L, -2, "__gc");
  lua_pushcfunction(L, closer);
  lua_setfield(L, -2, "__close");
}

int pl_open_net(lua_State *L) {
  const luaL_Reg client[] = {{"send", client_send},     {"poll", client_poll},
                             {"next", client_next},     {"cancel", client_cancel},
                             {"active", client_active}, {"close", client_close},
                             {NULL, NULL}};
  const luaL_Reg sse[] = {
      {"feed", sse_feed}, {"finish", sse_finish}, {"close", sse_close}, {NULL, NULL}};
  const luaL_Reg functions[] = {{"client", client_new},
                                {"sse", sse_new},
                                {"secret", secret},
                                {"has_secret", has_secret},
                                {"redact", redact},
                                {"is_loopback", is_loopback},
                                {NULL, NULL}};
  new_class(L, CLIENT_NAME, client, client_close);
  lua_pushcfunction(L, client_tostring);
  lua_setfield(L, -2, "__tostring");
  new_class(L, SSE_NAME, sse, sse_close);
  lua_pop(L, 2);
  luaL_newlib(L, functions);
  return 1;
}
