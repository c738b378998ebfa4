/* core.base: JSON, hashes, files, the clock, memory, threads and counter-based
 * random numbers for Lua. Expected failure (a file, malformed text) is nil,
 * message; misuse raises. It must not hold more than the conversion. */
#define _GNU_SOURCE
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/rng.h"
#include "bind/bind.h"
#include "source_hash.h" /* made by the Makefile: SHA-256 over the C sources */

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define TEXT_MAX ((size_t)4 << 30)
#define JSON_DEPTH 200

/* JSON null in Lua tables: nil would lose the key. Its address is its identity. */
static const char null_key;

static void push_null(lua_State *L) {
  lua_pushlightuserdata(L, (void *)&null_key);
}

/* ---- JSON: writing ---- */

typedef struct enc {
  lua_State *L;
  pl_ctx *c;
  pl_buf *out;
  int indent; /* 0 = one line */
} enc;

static void put(enc *e, const char *s, size_t n) {
  pl_lua_check(e->L, pl_buf_add(e->c, e->out, s, n));
}

static void newline(enc *e, int depth) {
  if (e->indent == 0) {
    return;
  }
  put(e, "\n", 1);
  for (int i = 0; i < depth * e->indent; i++) {
    put(e, " ", 1);
  }
}

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_array(lua_State *L, int t) {
  if (lua_rawlen(L, t) > 0) {
    return true;
  }
  if (luaL_getmetafield(L, t, "__jsontype") == LUA_TNIL) {
    return false;
  }
  const char *type = lua_tostring(L, -1);
  bool yes = type != NULL && strcmp(type, "array") == 0;
  lua_pop(L, 1);
  return yes;
}

static void encode(enc *e, int depth);

static void encode_array(enc *e, int t, int depth) {
  lua_State *L = e->L;
  lua_Integer n = (lua_Integer)lua_rawlen(L, t);
  lua_Integer keys = 0;
  lua_pushnil(L);
  while (lua_next(L, t) != 0) {
    lua_pop(L, 1);
    keys++;
  }
  if (keys != n) {
    luaL_error(L, "json_encode: a table has %I list entries but %I keys; "
                  "JSON has lists or objects, not both", (LUAI_UACINT)n, (LUAI_UACINT)keys);
  }
  put(e, "[", 1);
  for (lua_Integer i = 1; i <= n; i++) {
    if (i > 1) {
      put(e, ",", 1);
    }
    newline(e, depth + 1);
    lua_rawgeti(L, t, i);
    encode(e, depth + 1);
    lua_pop(L, 1);
  }
  if (n > 0) {
    newline(e, depth);
  }
  put(e, "]", 1);
}

static void encode_object(enc *e, int t, int depth) {
  lua_State *L = e->L;
  size_t n = 0;
  lua_pushnil(L);
  while (lua_next(L, t) != 0) {
    if (lua_type(L, -2) != LUA_TSTRING) {
      luaL_error(L, "json_encode: an object's keys must be strings, got a %s key",
                 luaL_typename(L, -2));
    }
    lua_pop(L, 1);
    n++;
  }
  /* The strings stay alive through the table; sorting makes equal tables equal text. */
  const char **keys = lua_newuserdatauv(L, (n + 1) * sizeof *keys, 0);
  size_t k = 0;
  lua_pushnil(L);
  while (lua_next(L, t) != 0) {
    keys[k++] = lua_tostring(L, -2);
    lua_pop(L, 1);
  }
  qsort(keys, n, sizeof *keys, by_bytes);
  put(e, "{", 1);
  for (size_t i = 0; i < n; i++) {
    if (i > 0) {
      put(e, ",", 1);
    }
    newline(e, depth + 1);
    pl_lua_check(L, pl_json_put_string(e->c, e->out, keys[i], strlen(keys[i])));
    put(e, e->indent > 0 ? ": " : ":", e->indent > 0 ? 2 : 1);
    lua_pushstring(L, keys[i]);
    lua_rawget(L, t);
    encode(e, depth + 1);
    lua_pop(L, 1);
  }
  if (n > 0) {
    newline(e, depth);
  }
  put(e, "}", 1);
  lua_pop(L, 1);
}

/* The value on top of the stack, left there. */
static void encode(enc *e, int depth) {
  lua_State *L = e->L;
  if (depth > JSON_DEPTH) {
    luaL_error(L, "json_encode: nested more than %d deep (does a table contain itself?)",
               JSON_DEPTH);
  }
  luaL_checkstack(L, 8, "json_encode");
  int t = lua_gettop(L);
  switch (lua_type(L, t)) {
    case LUA_TNIL:
      put(e, "null", 4);
      break;
    case LUA_TBOOLEAN:
      put(e, lua_toboolean(L, t) ? "true" : "false", lua_toboolean(L, t) ? 4 : 5);
      break;
    case LUA_TNUMBER:
      if (lua_isinteger(L, t)) {
        pl_lua_check(L, pl_buf_printf(e->c, e->out, "%lld", (long long)lua_tointeger(L, t)));
      } else {
        pl_lua_check(L, pl_json_put_number(e->c, e->out, lua_tonumber(L, t)));
      }
      break;
    case LUA_TSTRING: {
      size_t n;
      const char *s = lua_tolstring(L, t, &n);
      pl_lua_check(L, pl_json_put_string(e->c, e->out, s, n));
      break;
    }
    case LUA_TTABLE:
      if (is_array(L, t)) {
        encode_array(e, t, depth);
      } else {
        encode_object(e, t, depth);
      }
      break;
    case LUA_TLIGHTUSERDATA:
      if (lua_touserdata(L, t) == (void *)&null_key) {
        put(e, "null", 4);
        break;
      }
      /* fall through */
    default:
      luaL_error(L, "json_encode: cannot write a %s", luaL_typename(L, t));
  }
}

static int json_encode(lua_State *L) {
  luaL_checkany(L, 1);
  enc e = {.L = L, .c = pl_lua_ctx(L)};
  if (!lua_isnoneornil(L, 2)) {
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_getfield(L, 2, "indent");
    if (lua_isboolean(L, -1)) {
      e.indent = lua_toboolean(L, -1) ? 2 : 0;
    } else {
      lua_Integer n = luaL_optinteger(L, -1, 0);
      e.indent = n < 0 || n > 8 ? 2 : (int)n;
    }
  }
  e.out = pl_lua_newbuf(L, TEXT_MAX);
  lua_pushvalue(L, 1);
  encode(&e, 0);
  lua_pushlstring(L, e.out->data, e.out->len);
  pl_buf_free(e.c, e.out);
  return 1;
}

/* ---- JSON: reading ---- */

typedef struct tree_box {
  cJSON *root;
} tree_box;

#define TREE_NAME "perilune.JsonTree"

static int tree_gc(lua_State *L) {
  tree_box *b = luaL_checkudata(L, 1, TREE_NAME);
  cJSON_Delete(b->root);
  b->root = NULL;
  return 0;
}

static tree_box *push_tree(lua_State *L) {
  tree_box *b = lua_newuserdatauv(L, sizeof *b, 0);
  b->root = NULL;
  if (luaL_newmetatable(L, TREE_NAME)) {
    lua_pushcfunction(L, tree_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  return b;
}

static void push_json(lua_State *L, const cJSON *v) {
  luaL_checkstack(L, 8, "json_decode");
  switch (v->type & 0xff) {
    case cJSON_False:
    case cJSON_True:
      lua_pushboolean(L, (v->type & 0xff) == cJSON_True);
      break;
    case cJSON_Number: {
      double d = v->valuedouble;
      /* Beyond 2^53 the parsed double may not be the number that was written. */
      if (floor(d) == d && fabs(d) <= 9007199254740992.0) {
        lua_pushinteger(L, (lua_Integer)d);
      } else {
        lua_pushnumber(L, d);
      }
      break;
    }
    case cJSON_String:
      lua_pushstring(L, v->valuestring);
      break;
    case cJSON_Array: {
      lua_newtable(L);
      lua_Integer i = 0;
      for (const cJSON *x = v->child; x != NULL; x = x->next) {
        push_json(L, x);
        lua_rawseti(L, -2, ++i);
      }
      if (i == 0) { /* so that [] is written as [] again */
        luaL_setmetatable(L, "perilune.JsonArray");
      }
      break;
    }
    case cJSON_Object:
      lua_newtable(L);
      for (const cJSON *x = v->child; x != NULL; x = x->next) {
        lua_pushstring(L, x->string);
        push_json(L, x);
        lua_rawset(L, -3);
      }
      break;
    default:
      push_null(L);
  }
}

static int give_tree(lua_State *L, tree_box *box, pl_status st) {
  if (st != PL_OK) {
    return pl_lua_nil_error(L, st);
  }
  push_json(L, box->root);
  cJSON_Delete(box->root);
  box->root = NULL;
  return 1;
}

static int json_decode(lua_State *L) {
  size_t n;
  const char *s = luaL_checklstring(L, 1, &n);
  const char *source = luaL_optstring(L, 2, "JSON text");
  tree_box *box = push_tree(L);
  return give_tree(L, box, pl_json_parse(pl_lua_ctx(L), source, s, n, &box->root));
}

static int json_read(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  tree_box *box = push_tree(L);
  return give_tree(L, box, pl_json_load(pl_lua_ctx(L), path, &box->root));
}

/* Marks a table as a JSON list even when it is empty. */
static int json_array(lua_State *L) {
  if (lua_isnoneornil(L, 1)) {
    lua_settop(L, 0);
    lua_newtable(L);
  }
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  luaL_setmetatable(L, "perilune.JsonArray");
  return 1;
}

/* ---- hashes ---- */

#define SHA_NAME "perilune.Sha256"

static int sha256_once(lua_State *L) {
  size_t n;
  const char *s = luaL_checklstring(L, 1, &n);
  pl_sha256 h;
  char hex[65];
  pl_sha256_init(&h);
  pl_sha256_add(&h, s, n);
  pl_sha256_hex(&h, hex);
  lua_pushstring(L, hex);
  return 1;
}

static int hmac_sha256(lua_State *L) {
  size_t nkey, n;
  const char *key = luaL_checklstring(L, 1, &nkey);
  const char *text = luaL_checklstring(L, 2, &n);
  char hex[65];
  pl_hmac_sha256_hex(key, nkey, text, n, hex);
  lua_pushstring(L, hex);
  return 1;
}

static int sha256_new(lua_State *L) {
  pl_sha256 *h = lua_newuserdatauv(L, sizeof *h, 0);
  pl_sha256_init(h);
  luaL_setmetatable(L, SHA_NAME);
  return 1;
}

static int sha256_add(lua_State *L) {
  pl_sha256 *h = luaL_checkudata(L, 1, SHA_NAME);
  size_t n;
  const char *s = luaL_checklstring(L, 2, &n);
  pl_sha256_add(h, s, n);
  lua_settop(L, 1);
  return 1;
}

/* The hash so far; more can be added after. */
static int sha256_hex(lua_State *L) {
  pl_sha256 copy = *(pl_sha256 *)luaL_checkudata(L, 1, SHA_NAME);
  char hex[65];
  pl_sha256_hex(&copy, hex);
  lua_pushstring(L, hex);
  return 1;
}

/* ---- files ---- */

static int read_file(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  pl_ctx *c = pl_lua_ctx(L);
  pl_buf *b = pl_lua_newbuf(L, TEXT_MAX);
  pl_status st = pl_file_read(c, path, b);
  if (st != PL_OK) {
    return pl_lua_nil_error(L, st);
  }
  lua_pushlstring(L, b->data != NULL ? b->data : "", b->len);
  pl_buf_free(c, b);
  return 1;
}

static int write_file(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  size_t n;
  const char *s = luaL_checklstring(L, 2, &n);
  return pl_lua_true_or_nil(L, pl_file_write(pl_lua_ctx(L), path, s, n));
}

#define WRITER_NAME "perilune.Writer"

/* writer(path) -> a file that appears whole at commit(), for what is too large to hold:
 * w:add(text), w:commit(), each true or nil, message. Dropped without commit: no file. */
static int writer_open(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  pl_writer **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, WRITER_NAME);
  pl_status st = pl_writer_open(pl_lua_ctx(L), path, box);
  return st == PL_OK ? 1 : pl_lua_nil_error(L, st);
}

static pl_writer **check_writer(lua_State *L) {
  pl_writer **box = luaL_checkudata(L, 1, WRITER_NAME);
  luaL_argcheck(L, *box != NULL, 1, "this writer was closed");
  return box;
}

static int writer_add(lua_State *L) {
  pl_writer **box = check_writer(L);
  size_t n;
  const char *s = luaL_checklstring(L, 2, &n);
  return pl_lua_true_or_nil(L, pl_writer_add(pl_lua_ctx(L), *box, s, n));
}

static int writer_commit(lua_State *L) {
  pl_writer **box = check_writer(L);
  pl_writer *w = *box;
  *box = NULL;
  return pl_lua_true_or_nil(L, pl_writer_commit(pl_lua_ctx(L), w));
}

static int writer_close(lua_State *L) {
  pl_writer **box = luaL_checkudata(L, 1, WRITER_NAME);
  pl_writer *w = *box;
  *box = NULL;
  pl_writer_abort(pl_lua_ctx(L), w);
  return 0;
}

static int mkdirs(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return pl_lua_true_or_nil(L, pl_mkdirs(pl_lua_ctx(L), path));
}

/* mkdir(path) -> true; false where the name is taken; nil, message */
static int mkdir_(lua_State *L) {
  bool made;
  pl_status st = pl_mkdir(pl_lua_ctx(L), luaL_checkstring(L, 1), &made);
  if (st != PL_OK) {
    return pl_lua_nil_error(L, st);
  }
  lua_pushboolean(L, made);
  return 1;
}

static int exists(lua_State *L) {
  lua_pushboolean(L, pl_file_exists(luaL_checkstring(L, 1)));
  return 1;
}

static int is_dir(lua_State *L) {
  lua_pushboolean(L, pl_is_dir(luaL_checkstring(L, 1)));
  return 1;
}

/* stamp(path) -> {size, inode, mtime_ns, ctime_ns}, or nil, message */
static int stamp(lua_State *L) {
  pl_stamp s;
  pl_status st = pl_file_stamp(pl_lua_ctx(L), luaL_checkstring(L, 1), &s);
  if (st != PL_OK) {
    return pl_lua_nil_error(L, st);
  }
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, s.size);
  lua_setfield(L, -2, "size");
  lua_pushinteger(L, s.inode);
  lua_setfield(L, -2, "inode");
  lua_pushinteger(L, s.mtime_ns);
  lua_setfield(L, -2, "mtime_ns");
  lua_pushinteger(L, s.ctime_ns);
  lua_setfield(L, -2, "ctime_ns");
  return 1;
}

typedef struct names {
  pl_ctx *c;
  pl_buf *b;
} names;

/* Into a buffer first: no Lua error may jump through the directory walk. */
static pl_status add_name(void *arg, const char *name) {
  names *n = arg;
  return pl_buf_add(n->c, n->b, name, strlen(name) + 1);
}

static int list_dir(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  names n = {.c = pl_lua_ctx(L), .b = pl_lua_newbuf(L, (size_t)256 << 20)};
  pl_status st = pl_list_dir(n.c, path, add_name, &n);
  if (st != PL_OK) {
    return pl_lua_nil_error(L, st);
  }
  lua_newtable(L);
  lua_Integer i = 0;
  for (size_t at = 0; at < n.b->len; at += strlen(n.b->data + at) + 1) {
    lua_pushstring(L, n.b->data + at);
    lua_rawseti(L, -2, ++i);
  }
  return 1;
}

static int rename_(lua_State *L) {
  const char *from = luaL_checkstring(L, 1);
  const char *to = luaL_checkstring(L, 2);
  return pl_lua_true_or_nil(L, pl_rename(pl_lua_ctx(L), from, to));
}

/* replace(fresh, path): whole or not at all, whatever is at path; that has fresh's name after. */
static int replace(lua_State *L) {
  const char *fresh = luaL_checkstring(L, 1);
  const char *path = luaL_checkstring(L, 2);
  return pl_lua_true_or_nil(L, pl_replace(pl_lua_ctx(L), fresh, path));
}

static int remove_tree(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return pl_lua_true_or_nil(L, pl_remove_tree(pl_lua_ctx(L), path));
}

static int real_path(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  char *full = realpath(path, NULL);
  if (full == NULL) {
    luaL_pushfail(L);
    lua_pushfstring(L, "%s: %s", path, strerror(errno));
    return 2;
  }
  char fixed[PATH_MAX];
  int n = snprintf(fixed, sizeof fixed, "%s", full);
  free(full);
  lua_pushlstring(L, fixed, n < (int)sizeof fixed ? (size_t)n : sizeof fixed - 1);
  return 1;
}

static int exe_dir(lua_State *L) {
  char path[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (n <= 0) {
    luaL_pushfail(L);
    lua_pushstring(L, "/proc/self/exe: cannot be read");
    return 2;
  }
  path[n] = '\0';
  char *slash = strrchr(path, '/');
  lua_pushlstring(L, path, slash == path ? 1 : (size_t)(slash - path));
  return 1;
}

/* ---- the machine ---- */

static int now(lua_State *L) {
  lua_pushnumber(L, pl_now());
  return 1;
}

static int walltime(lua_State *L) {
  lua_pushnumber(L, pl_walltime());
  return 1;
}

static int sleep_(lua_State *L) {
  double end = pl_now() + luaL_checknumber(L, 1);
  while (pl_now() < end) { /* in slices, so that Ctrl-C is seen */
    double left = end - pl_now();
    struct timespec ts = {.tv_sec = 0, .tv_nsec = (long)(fmin(fmax(left, 0.0), 0.05) * 1e9)};
    nanosleep(&ts, NULL);
    pl_lua_check(L, pl_check_interrupt(pl_lua_ctx(L)));
  }
  return 0;
}

/* Raises when Ctrl-C is pending: for loops in Lua that catch errors. */
static int check_interrupt(lua_State *L) {
  pl_lua_check(L, pl_check_interrupt(pl_lua_ctx(L)));
  return 0;
}

static int isatty_(lua_State *L) {
  lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
  return 1;
}

static int term_width(lua_State *L) {
  struct winsize w;
  for (int fd = 2; fd >= 0; fd--) {
    if (ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0) {
      lua_pushinteger(L, w.ws_col);
      return 1;
    }
  }
  lua_pushinteger(L, 80);
  return 1;
}

static int pid(lua_State *L) {
  lua_pushinteger(L, getpid());
  return 1;
}

/* ---- random numbers ---- */

static int uniform(lua_State *L) {
  uint64_t seed = (uint64_t)luaL_checkinteger(L, 1);
  uint64_t stream = (uint64_t)luaL_checkinteger(L, 2);
  lua_pushnumber(L, pl_uniform(seed, stream, (uint64_t)luaL_checkinteger(L, 3)));
  return 1;
}

static int normal(lua_State *L) {
  uint64_t seed = (uint64_t)luaL_checkinteger(L, 1);
  uint64_t stream = (uint64_t)luaL_checkinteger(L, 2);
  lua_pushnumber(L, pl_normal(seed, stream, (uint64_t)luaL_checkinteger(L, 3)));
  return 1;
}

static int permutation(lua_State *L) {
  uint64_t seed = (uint64_t)luaL_checkinteger(L, 1);
  uint64_t stream = (uint64_t)luaL_checkinteger(L, 2);
  lua_Integer n = luaL_checkinteger(L, 3);
  luaL_argcheck(L, n >= 0 && n <= INT_MAX, 3, "the length must be 0 to 2^31 - 1");
  int64_t *p = lua_newuserdatauv(L, (size_t)(n + 1) * sizeof *p, 0);
  pl_permutation(seed, stream, n, p);
  lua_createtable(L, (int)n, 0);
  for (lua_Integer i = 0; i < n; i++) {
    lua_pushinteger(L, p[i] + 1);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static const luaL_Reg functions[] = {
    {"json_encode", json_encode},
    {"json_decode", json_decode},
    {"json_read", json_read},
    {"json_array", json_array},
    {"sha256", sha256_once},
    {"sha256_new", sha256_new},
    {"hmac_sha256", hmac_sha256},
    {"read_file", read_file},
    {"write_file", write_file},
    {"writer", writer_open},
    {"mkdirs", mkdirs},
    {"mkdir", mkdir_},
    {"exists", exists},
    {"is_dir", is_dir},
    {"stamp", stamp},
    {"list_dir", list_dir},
    {"rename", rename_},
    {"replace", replace},
    {"remove_tree", remove_tree},
    {"realpath", real_path},
    {"exe_dir", exe_dir},
    {"now", now},
    {"walltime", walltime},
    {"sleep", sleep_},
    {"check_interrupt", check_interrupt},
    {"finally", pl_lua_finally},
    {"isatty", isatty_},
    {"term_width", term_width},
    {"pid", pid},
    {"uniform", uniform},
    {"normal", normal},
    {"permutation", permutation},
    {NULL, NULL},
};

int pl_open_base(lua_State *L) {
  const luaL_Reg sha[] = {{"add", sha256_add}, {"hex", sha256_hex}, {NULL, NULL}};
  luaL_newmetatable(L, SHA_NAME);
  luaL_newlib(L, sha);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  const luaL_Reg writer[] = {{"add", writer_add}, {"commit", writer_commit}, {NULL, NULL}};
  luaL_newmetatable(L, WRITER_NAME);
  luaL_newlib(L, writer);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, writer_close);
  lua_setfield(L, -2, "__gc");
  lua_pushcfunction(L, writer_close);
  lua_setfield(L, -2, "__close");
  lua_pop(L, 1);
  luaL_newmetatable(L, "perilune.JsonArray");
  lua_pushliteral(L, "array");
  lua_setfield(L, -2, "__jsontype");
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  pl_lua_machine(L);
  push_null(L);
  lua_setfield(L, -2, "null");
  lua_pushstring(L, PL_SOURCE_HASH);
  lua_setfield(L, -2, "source_hash");
  return 1;
}
