/* core.store: SQLite databases and prepared statements for Lua. A database that
 * cannot be opened is nil, message; a statement that fails raises. Values go as
 * nil, integer, float, string (as text, any bytes) and boolean (as 0 or 1).
 * It must not know any schema, and no Lua code runs inside SQLite's frames. */
#include "store/db.h"

#include <string.h>

#include "bind/bind.h"

#define DB_NAME "perilune.Database"
#define STMT_NAME "perilune.Statement"
#define ROWS_NAME "perilune.Rows"
#define BUSY_MS_MAX (3600 * 1000)

/* ---- the database ---- */

static pl_db *check_db(lua_State *L, int idx) {
  pl_db **box = luaL_checkudata(L, idx, DB_NAME);
  luaL_argcheck(L, *box != NULL, idx, "this database was closed");
  return *box;
}

/* SQL text for C: SQLite would end it at a NUL without a word. */
static const char *check_sql(lua_State *L, int idx) {
  size_t n;
  const char *sql = luaL_checklstring(L, idx, &n);
  luaL_argcheck(L, strlen(sql) == n, idx, "SQL text must not hold a NUL byte");
  return sql;
}

/* store.open(path, { readonly = false, busy_ms = 10000 }) -> Database, or nil, message */
static int store_open(lua_State *L) {
  const char *path = check_sql(L, 1);
  pl_db_options o = {.busy_ms = 10000};
  if (!lua_isnoneornil(L, 2)) {
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_getfield(L, 2, "readonly");
    o.readonly = lua_toboolean(L, -1);
    lua_getfield(L, 2, "busy_ms");
    lua_Integer ms = luaL_optinteger(L, -1, o.busy_ms);
    luaL_argcheck(L, ms >= 0 && ms <= BUSY_MS_MAX, 2, "busy_ms must be 0 to 3600000");
    o.busy_ms = (int)ms;
  }
  pl_db **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, DB_NAME);
  pl_status st = pl_db_open(pl_lua_ctx(L), path, &o, box);
  if (st == PL_EINTR) {
    pl_lua_check(L, st); /* Ctrl-C is never an ordinary result */
  }
  return st == PL_OK ? 1 : pl_lua_nil_error(L, st);
}

static int db_close(lua_State *L) {
  pl_db **box = luaL_checkudata(L, 1, DB_NAME);
  pl_db *db = *box;
  *box = NULL;
  pl_db_close(pl_lua_ctx(L), db);
  return 0;
}

static int db_tostring(lua_State *L) {
  pl_db **box = luaL_checkudata(L, 1, DB_NAME);
  if (*box == NULL) {
    lua_pushliteral(L, "database (closed)");
  } else {
    lua_pushfstring(L, "database %s", pl_db_path(*box));
  }
  return 1;
}

static int db_exec(lua_State *L) {
  pl_db *db = check_db(L, 1);
  const char *sql = check_sql(L, 2);
  pl_lua_check(L, pl_db_exec(pl_lua_ctx(L), db, sql));
  return 0;
}

static int db_in_transaction(lua_State *L) {
  lua_pushboolean(L, pl_db_in_transaction(check_db(L, 1)));
  return 1;
}

/* db:transaction(f, ...) -> what f returns. BEGIN IMMEDIATE; f(...); COMMIT. When f raises:
 * ROLLBACK, and the same error again. In C, because after Ctrl-C no Lua code runs that
 * could still roll back. */
static int db_transaction(lua_State *L) {
  pl_ctx *c = pl_lua_ctx(L);
  pl_db **box = lua_touserdata(L, 1);
  pl_db *db = check_db(L, 1);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  luaL_argcheck(L, !pl_db_in_transaction(db), 1, "a transaction is open already");
  pl_lua_check(L, pl_db_exec(c, db, "BEGIN IMMEDIATE"));
  int status = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 0);
  if (*box == NULL) {
    return luaL_error(L, "the database was closed inside its transaction");
  }
  if (status != LUA_OK) {
    pl_db_rollback(db);
    return lua_error(L);
  }
  pl_status st = pl_db_in_transaction(db)
                     ? pl_db_exec(c, db, "COMMIT")
                     : pl_fail(c, PL_EINVAL, "%s: the transaction was ended by an earlier failure; "
                               "nothing of it was kept", pl_db_path(db));
  if (st != PL_OK) {
    pl_db_rollback(db);
    pl_lua_check(L, st);
  }
  return lua_gettop(L) - 1;
}

/* ---- statements ---- */

static pl_stmt *check_stmt(lua_State *L, int idx) {
  pl_stmt **box = luaL_checkudata(L, idx, STMT_NAME);
  luaL_argcheck(L, *box != NULL, idx, "this statement was closed");
  luaL_argcheck(L, pl_stmt_open(*box), idx, "the database of this statement was closed");
  return *box;
}

static int db_prepare(lua_State *L) {
  pl_db *db = check_db(L, 1);
  const char *sql = check_sql(L, 2);
  pl_stmt **box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = NULL;
  luaL_setmetatable(L, STMT_NAME);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1); /* the database lives as long as its statements */
  pl_lua_check(L, pl_stmt_new(pl_lua_ctx(L), db, sql, box));
  return 1;
}

static int stmt_close(lua_State *L) {
  pl_stmt **box = luaL_checkudata(L, 1, STMT_NAME);
  pl_stmt *s = *box;
  *box = NULL;
  pl_stmt_free(pl_lua_ctx(L), s);
  return 0;
}

static int stmt_tostring(lua_State *L) {
  pl_stmt **box = luaL_checkudata(L, 1, STMT_NAME);
  bool open = *box != NULL && pl_stmt_open(*box);
  lua_pushstring(L, open ? "statement" : "statement (closed)");
  return 1;
}

/* A value as SQLite takes it; the text stays Lua's, which holds it on the stack. */
static pl_db_value check_value(lua_State *L, int idx) {
  pl_db_value v = {.type = PL_DB_NULL};
  switch (lua_type(L, idx)) {
    case LUA_TNIL:
      break;
    case LUA_TBOOLEAN:
      v.type = PL_DB_INT;
      v.i = lua_toboolean(L, idx);
      break;
    case LUA_TNUMBER:
      if (lua_isinteger(L, idx)) {
        v.type = PL_DB_INT;
        v.i = lua_tointeger(L, idx);
      } else {
        v.type = PL_DB_REAL;
        v.d = lua_tonumber(L, idx);
        luaL_argcheck(L, v.d == v.d, idx, "NaN cannot be stored: SQLite would make it NULL");
      }
      break;
    case LUA_TSTRING:
      v.type = PL_DB_TEXT;
      v.text = lua_tolstring(L, idx, &v.size);
      break;
    default:
      luaL_typeerror(L, idx, "nil, number, string or boolean");
  }
  return v;
}

/* Resets the statement and binds all arguments after it. */
static pl_stmt *bind_all(lua_State *L, bool copy) {
  pl_stmt *s = check_stmt(L, 1);
  int given = lua_gettop(L) - 1;
  if (given != pl_stmt_params(s)) {
    luaL_error(L, "the statement has %d parameters, got %d values", pl_stmt_params(s), given);
  }
  for (int i = 0; i < given; i++) {
    check_value(L, i + 2); /* all of them, before anything is changed */
  }
  pl_stmt_reset(s);
  for (int i = 0; i < given; i++) {
    pl_db_value v = check_value(L, i + 2);
    pl_lua_check(L, pl_stmt_bind(pl_lua_ctx(L), s, i, &v, copy));
  }
  return s;
}

static void push_column(lua_State *L, const pl_stmt *s, int i) {
  pl_db_value v;
  pl_lua_check(L, pl_stmt_get(pl_lua_ctx(L), s, i, &v));
  switch (v.type) {
    case PL_DB_INT:
      lua_pushinteger(L, v.i);
      break;
    case PL_DB_REAL:
      lua_pushnumber(L, v.d);
      break;
    case PL_DB_TEXT:
      lua_pushlstring(L, v.text, v.size);
      break;
    default:
      lua_pushnil(L);
  }
}

static void push_row(lua_State *L, const pl_stmt *s) {
  int n = pl_stmt_columns(s);
  lua_createtable(L, 0, n);
  for (int i = 0; i < n; i++) {
    push_column(L, s, i);
    lua_setfield(L, -2, pl_stmt_column_name(s, i));
  }
}

/* s:run(...) -> rows changed, id of the last row inserted */
static int stmt_run(lua_State *L) {
  pl_stmt *s = bind_all(L, false);
  bool row = true;
  while (row) {
    pl_lua_check(L, pl_stmt_step(pl_lua_ctx(L), s, &row));
  }
  lua_pushinteger(L, pl_stmt_changes(s));
  lua_pushinteger(L, pl_stmt_rowid(s));
  return 2;
}

/* Steps to the first row: the statement, or NULL with nil pushed where there is none. */
static pl_stmt *first_row(lua_State *L) {
  pl_stmt *s = bind_all(L, false);
  bool row;
  pl_lua_check(L, pl_stmt_step(pl_lua_ctx(L), s, &row));
  if (!row) {
    lua_pushnil(L);
    return NULL;
  }
  return s;
}

/* s:row(...) -> the first row as a table, or nil */
static int stmt_row(lua_State *L) {
  pl_stmt *s = first_row(L);
  if (s != NULL) {
    push_row(L, s);
    pl_stmt_reset(s);
  }
  return 1;
}

/* s:value(...) -> the first column of the first row, or nil */
static int stmt_value(lua_State *L) {
  pl_stmt *s = first_row(L);
  if (s != NULL) {
    push_column(L, s, 0);
    pl_stmt_reset(s);
  }
  return 1;
}

/* ---- loops over rows ---- */

/* One loop: it ends when its statement was used for something else. */
typedef struct rows {
  pl_stmt **box; /* of the statement, which user value 1 keeps alive */
  uint64_t uses;
} rows;

static bool still_its(const rows *r) {
  return r->box != NULL && *r->box != NULL && pl_stmt_open(*r->box) &&
         pl_stmt_uses(*r->box) == r->uses;
}

static int rows_next(lua_State *L) {
  rows *r = luaL_checkudata(L, 1, ROWS_NAME);
  if (r->box == NULL) {
    return 0; /* asked again after the end */
  }
  if (!still_its(r)) {
    return luaL_error(L, "rows: the statement was closed or used again inside its loop, or given "
                         "up so that this process could write");
  }
  bool row;
  pl_lua_check(L, pl_stmt_step(pl_lua_ctx(L), *r->box, &row));
  if (!row) {
    r->box = NULL;
    return 0;
  }
  push_row(L, *r->box);
  return 1;
}

/* A loop that was left halfway lets go of its view of the database at the latest here. */
static int rows_gc(lua_State *L) {
  rows *r = luaL_checkudata(L, 1, ROWS_NAME);
  if (still_its(r)) {
    pl_stmt_reset(*r->box);
  }
  r->box = NULL;
  return 0;
}

static int stmt_rows(lua_State *L) {
  bind_all(L, true);
  lua_pushcfunction(L, rows_next);
  rows *r = lua_newuserdatauv(L, sizeof *r, 1);
  r->box = NULL;
  luaL_setmetatable(L, ROWS_NAME);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  r->box = lua_touserdata(L, 1);
  r->uses = pl_stmt_uses(*r->box);
  return 2;
}

/* ---- the module ---- */

static void new_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction close,
                      lua_CFunction tostring) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, close);
  lua_setfield(L, -2, "__gc");
  lua_pushcfunction(L, close);
  lua_setfield(L, -2, "__close");
  lua_pushcfunction(L, tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pop(L, 1);
}

int pl_open_store(lua_State *L) {
  static const luaL_Reg functions[] = {{"open", store_open}, {NULL, NULL}};
  static const luaL_Reg db[] = {{"exec", db_exec},
                                {"prepare", db_prepare},
                                {"transaction", db_transaction},
                                {"in_transaction", db_in_transaction},
                                {"close", db_close},
                                {NULL, NULL}};
  static const luaL_Reg stmt[] = {{"run", stmt_run},     {"row", stmt_row},     {"rows", stmt_rows},
                                  {"value", stmt_value}, {"close", stmt_close}, {NULL, NULL}};
  new_class(L, DB_NAME, db, db_close, db_tostring);
  new_class(L, STMT_NAME, stmt, stmt_close, stmt_tostring);
  luaL_newmetatable(L, ROWS_NAME);
  lua_pushcfunction(L, rows_gc);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  luaL_newlib(L, functions);
  return 1;
}
