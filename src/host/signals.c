/* Ctrl-C that stops everything at the first press: loops, loops that catch
 * errors, coroutines and C ops.
 *
 * The handler sets the flag that C code polls and arms a hook on the *running*
 * Lua thread; the hook raises at the next instruction and stays armed until the
 * prompt, so that a loop around pcall stops too. A hook belongs to one thread,
 * hence our own coroutine.resume, wrap and close, which keep `running` right.
 * Nothing is paid in normal running. A second Ctrl-C within 2 s while the first
 * has not been noticed ends the process. */
#define _GNU_SOURCE
#include "host/host.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A signal handler has no other way to learn of these. */
static lua_State *volatile running;
static volatile sig_atomic_t last_second;
static pthread_t lua_thread;

static void on_instruction(lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (!pl_interrupt_pending()) { /* left over from an interrupt dealt with elsewhere */
    lua_sethook(L, NULL, 0, 0);
    return;
  }
  luaL_error(L, "interrupted");
}

/* Lua instructions only: a call hook would also keep C functions from starting
 * that close what is to be closed (no_grad's guard) on the way out. */
static void arm(lua_State *L) {
  lua_sethook(L, on_instruction, LUA_MASKCOUNT, 1);
}

static void on_sigint(int sig) {
  if (!pthread_equal(pthread_self(), lua_thread)) {
    pthread_kill(lua_thread, sig); /* a worker thread was interrupted: not its business */
    return;
  }
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (pl_interrupt_pending() && now.tv_sec - last_second <= 2) {
    static const char text[] = "\ninterrupted twice: stopped at once\n";
    ssize_t ignored = write(2, text, sizeof text - 1);
    (void)ignored;
    _exit(130);
  }
  last_second = (sig_atomic_t)now.tv_sec;
  pl_interrupt_set();
  lua_State *L = running;
  if (L != NULL) {
    arm(L);
  }
}

void pl_signals_clear(lua_State *L) {
  pl_interrupt_clear();
  lua_sethook(L, NULL, 0, 0);
  running = L;
}

/* ---- coroutines: as in Lua's lcorolib.c, with `running` kept right ---- */

static void enter(lua_State *co) {
  running = co;
  if (pl_interrupt_pending()) {
    arm(co);
  }
}

static void leave(lua_State *L) {
  running = L;
  if (pl_interrupt_pending()) {
    arm(L);
  }
}

static lua_State *check_co(lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co != NULL, 1, "coroutine");
  return co;
}

/* Results on L's stack: their number, or -1 with the error object. */
static int resume(lua_State *L, lua_State *co, int nargs) {
  if (!lua_checkstack(co, nargs)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  lua_xmove(L, co, nargs);
  int nres = 0;
  enter(co);
  int status = lua_resume(co, L, nargs, &nres);
  leave(L);
  if (status != LUA_OK && status != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  if (!lua_checkstack(L, nres + 1)) {
    lua_pop(co, nres);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, nres);
  return nres;
}

static int co_resume(lua_State *L) {
  lua_State *co = check_co(L);
  int n = resume(L, co, lua_gettop(L) - 1);
  lua_pushboolean(L, n >= 0);
  lua_insert(L, n >= 0 ? -(n + 1) : -2);
  return n >= 0 ? n + 1 : 2;
}

static int wrapped(lua_State *L) {
  lua_State *co = lua_tothread(L, lua_upvalueindex(1));
  int n = resume(L, co, lua_gettop(L));
  if (n >= 0) {
    return n;
  }
  int status = lua_status(co);
  if (status != LUA_OK && status != LUA_YIELD) {
    enter(co);
    status = lua_resetthread(co); /* runs what is to be closed */
    leave(L);
    lua_xmove(co, L, 1); /* the error object, perhaps a newer one */
  }
  if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

static int co_wrap(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  lua_pushcclosure(L, wrapped, 1);
  return 1;
}

static int co_close(lua_State *L) {
  lua_State *co = check_co(L);
  lua_Debug ar;
  bool normal = lua_status(co) == LUA_OK && lua_getstack(co, 0, &ar) == 1;
  if (co == L || normal) {
    return luaL_error(L, "cannot close a %s coroutine", co == L ? "running" : "normal");
  }
  enter(co);
  int status = lua_resetthread(co);
  leave(L);
  lua_pushboolean(L, status == LUA_OK);
  if (status == LUA_OK) {
    return 1;
  }
  lua_xmove(co, L, 1);
  return 2;
}

void pl_signals_install(lua_State *L) {
  const luaL_Reg own[] = {
      {"resume", co_resume}, {"wrap", co_wrap}, {"close", co_close}, {NULL, NULL}};
  lua_getglobal(L, "coroutine");
  luaL_setfuncs(L, own, 0);
  lua_pop(L, 1);
  running = L;
  lua_thread = pthread_self();
  struct sigaction sa;
  memset(&sa, 0, sizeof sa);
  sa.sa_handler = on_sigint; /* no SA_RESTART: a blocked read must return */
  sigaction(SIGINT, &sa, NULL);
}
