/* The program: reads the arguments, opens Lua and hands over to a script, the
 * session or perilune.cli. It must not know what any command does. */
#define _GNU_SOURCE
#include "base/cgroup.h"
#include "base/mem.h"
#include "base/par.h"
#include "host/host.h"
#include "kernels/isa.h"

#include <limits.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PL_VERSION
#define PL_VERSION "0.1.0"
#endif

static const char usage[] =
    "usage: perilune                  the session; a script, where standard input is no terminal\n"
    "       perilune FILE.lua [ARG...]    runs a script; ARGs are in the table arg\n"
    "       perilune -e CODE              runs CODE; pl is there\n"
    "       perilune -i [FILE.lua ...]    the session, after the script\n"
    "       perilune COMMAND [ARG...]     run, plan, recipes, runs, serve, doctor, help\n"
    "       perilune --profile ...        before any of these: time by op on standard error\n"
    "                                     afterwards; --profile=json as one line of JSON\n"
    "       perilune -v                   the version\n"
    "       perilune -h                   this text; perilune help says more on commands\n";

/* ---- errors ---- */

/* Frames of ours and of C say nothing to the user; PL_TRACEBACK=full shows them. */
static bool frame_counts(const lua_Debug *ar, bool full) {
  if (full) {
    return true;
  }
  return ar->currentline > 0 && strstr(ar->source, "lua/perilune/") == NULL;
}

/* Appends the user's part of the stack to the text on top, if it says more than the text. */
static void add_traceback(lua_State *L) {
  const char *want = getenv("PL_TRACEBACK");
  bool full = want != NULL && strcmp(want, "full") == 0;
  lua_Debug ar;
  luaL_Buffer b;
  int shown = 0;
  char first[LUA_IDSIZE + 32] = "";
  const char *text = lua_tostring(L, -1);
  luaL_buffinit(L, &b);
  for (int level = 1; lua_getstack(L, level, &ar) != 0 && shown < 20; level++) {
    lua_getinfo(L, "Slnt", &ar);
    if (!frame_counts(&ar, full)) {
      continue;
    }
    char line[LUA_IDSIZE + 256];
    if (shown == 0) {
      snprintf(first, sizeof first, "%s:%d:", ar.short_src, ar.currentline);
    }
    if (ar.name != NULL) {
      snprintf(line, sizeof line, "\n  %s:%d: in %s '%s'", ar.short_src, ar.currentline,
               ar.namewhat[0] != '\0' ? ar.namewhat : "function", ar.name);
    } else if (*ar.what == 'm') {
      snprintf(line, sizeof line, "\n  %s:%d: in main chunk", ar.short_src, ar.currentline);
    } else {
      snprintf(line, sizeof line, "\n  %s:%d: in a function", ar.short_src, ar.currentline);
    }
    luaL_addstring(&b, line);
    shown++;
  }
  luaL_pushresult(&b);
  /* one frame, and the message already names its line: nothing to add */
  bool adds = shown > 1 || (shown == 1 && strncmp(text, first, strlen(first)) != 0);
  if (!adds) {
    lua_pop(L, 1);
    return;
  }
  lua_pushliteral(L, "\ncalled from");
  lua_insert(L, -2);
  lua_concat(L, 3);
}

static int message_handler(lua_State *L) {
  lua_settop(L, 1);
  if (pl_interrupt_pending()) { /* the hook is armed: no Lua code can run now */
    lua_pushliteral(L, "interrupted");
    return 1;
  }
  if (lua_type(L, 1) != LUA_TSTRING) {
    if (luaL_getmetafield(L, 1, "__tostring") != LUA_TNIL) {
      lua_pop(L, 1);
      luaL_tolstring(L, 1, NULL);
      return 1;
    }
    if (!lua_isnumber(L, 1)) {
      lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
    } else {
      lua_tostring(L, 1);
    }
  }
  add_traceback(L);
  return 1;
}

int pl_host_call(lua_State *L, int nargs, int nresults) {
  int base = lua_gettop(L) - nargs;
  lua_pushcfunction(L, message_handler);
  lua_insert(L, base);
  int status = lua_pcall(L, nargs, nresults, base);
  lua_remove(L, base);
  return status;
}

int pl_host_report(lua_State *L) {
  bool interrupted = pl_interrupt_pending();
  const char *text = luaL_tolstring(L, -1, NULL);
  fflush(stdout);
  fprintf(stderr, "perilune: %s\n", text);
  lua_pop(L, 2);
  return interrupted ? 130 : 1;
}

/* ---- set-up ---- */

static bool is_file(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

/* perilune's Lua files lie in lua/ beside the program, or in share/ when installed. */
static bool find_lua(char *out, size_t size) {
#ifdef PL_LUA_DIR /* a build outside the source tree */
  snprintf(out, size, "%s", PL_LUA_DIR);
  return true;
#else
  char exe[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (n <= 0) {
    return false;
  }
  exe[n] = '\0';
  char *slash = strrchr(exe, '/');
  *slash = '\0';
  const char *places[] = {"lua", "../share/perilune/lua", "../lua"};
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    char probe[PATH_MAX + 64];
    snprintf(probe, sizeof probe, "%s/%s/perilune/init.lua", exe, places[i]);
    if (is_file(probe)) {
      int len = snprintf(out, size, "%s/%s", exe, places[i]);
      return len > 0 && (size_t)len < size;
    }
  }
  return false;
#endif
}

static void set_path(lua_State *L) {
  char dir[PATH_MAX];
  if (!find_lua(dir, sizeof dir)) {
    luaL_error(L, "cannot find perilune's Lua files beside the program (lua/perilune/init.lua)");
  }
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  const char *old = lua_tostring(L, -1);
  bool here = old != NULL && strstr(old, "./?.lua") != NULL;
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s%s", dir, dir, old != NULL ? old : "",
                  here ? "" : ";./?.lua");
  lua_setfield(L, -3, "path");
  lua_pop(L, 1);
  lua_getfield(L, -1, "preload");
  lua_pushcfunction(L, pl_open_core);
  lua_setfield(L, -2, "perilune.core");
  lua_pop(L, 2);
}

static void set_arg(lua_State *L, int argc, char **argv, int script) {
  lua_createtable(L, argc - script, script);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - script);
  }
  lua_setglobal(L, "arg");
}

/* ---- what can be run ---- */

static int run_chunk(lua_State *L, int load_status, int nargs) {
  if (load_status == LUA_OK) {
    lua_insert(L, -(nargs + 1));
    if (pl_host_call(L, nargs, 0) == LUA_OK) {
      return 0;
    }
  }
  return pl_host_report(L);
}

/* pl where it was not required: only for -e, and without touching _G. */
static int index_e(lua_State *L) {
  const char *name = lua_tostring(L, 2);
  lua_pushglobaltable(L);
  lua_pushvalue(L, 2);
  if (lua_gettable(L, -2) != LUA_TNIL || name == NULL || strcmp(name, "pl") != 0) {
    return 1;
  }
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune");
  lua_call(L, 1, 1);
  return 1;
}

static int run_code(lua_State *L, const char *code) {
  int status = luaL_loadbuffer(L, code, strlen(code), "=(command line)");
  if (status == LUA_OK) {
    lua_newtable(L);
    lua_createtable(L, 0, 2);
    lua_pushcfunction(L, index_e);
    lua_setfield(L, -2, "__index");
    lua_pushglobaltable(L);
    lua_setfield(L, -2, "__newindex");
    lua_setmetatable(L, -2);
    lua_setupvalue(L, -2, 1);
  }
  return run_chunk(L, status, 0);
}

static int run_script(lua_State *L, int argc, char **argv, int script) {
  set_arg(L, argc, argv, script);
  for (int i = script + 1; i < argc; i++) {
    luaL_checkstack(L, 4, "too many arguments");
    lua_pushstring(L, argv[i]);
  }
  return run_chunk(L, luaL_loadfilex(L, argv[script], "t"), argc - script - 1);
}

static int run_cli(lua_State *L, int argc, char **argv, int first) {
  set_arg(L, argc, argv, 0);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.cli");
  if (pl_host_call(L, 1, 1) != LUA_OK) {
    return pl_host_report(L);
  }
  lua_getfield(L, -1, "main");
  lua_createtable(L, argc - first, 0);
  for (int i = first; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - first + 1);
  }
  if (pl_host_call(L, 1, 1) != LUA_OK) {
    return pl_host_report(L);
  }
  int code = lua_isnil(L, -1) ? 0 : (int)lua_tointeger(L, -1);
  lua_pop(L, 2);
  return code;
}

static bool is_script(const char *word) {
  size_t n = strlen(word);
  bool named = n > 4 && strcmp(word + n - 4, ".lua") == 0;
  return named || (strchr(word, '/') != NULL && is_file(word));
}

static int usage_error(const char *what, const char *word) {
  fprintf(stderr, "perilune: %s %s\n%s", what, word, usage);
  return 2;
}

typedef struct job {
  int argc;
  char **argv;
  int code;
  const char *profile; /* "text", "json" or NULL */
} job;

/* perilune.profile's start(), or stop(form); what fails is reported. */
static int profile(lua_State *L, const char *what, const char *form) {
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.profile");
  if (pl_host_call(L, 1, 1) != LUA_OK) {
    return pl_host_report(L);
  }
  lua_getfield(L, -1, what);
  lua_pushstring(L, form);
  if (pl_host_call(L, 1, 0) != LUA_OK) {
    return pl_host_report(L);
  }
  lua_pop(L, 1);
  return 0;
}

static int no_arguments(lua_State *L) {
  if (isatty(STDIN_FILENO)) {
    return pl_repl(L);
  }
  return run_chunk(L, luaL_loadfilex(L, NULL, "t"), 0);
}

static void run_arguments(lua_State *L, job *j) {
  bool session = false;
  bool did = false;
  int i = 1;
  set_arg(L, j->argc, j->argv, 0);
  for (; i < j->argc && j->argv[i][0] == '-' && j->argv[i][1] != '\0'; i++) {
    const char *o = j->argv[i];
    if (strcmp(o, "--") == 0) {
      i++;
      break;
    } else if (strcmp(o, "-i") == 0) {
      session = true;
    } else if (strcmp(o, "-v") == 0 || strcmp(o, "--version") == 0) {
      printf("perilune %s (%s)\n", PL_VERSION, LUA_RELEASE);
      did = true;
    } else if (strcmp(o, "-h") == 0 || strcmp(o, "--help") == 0) {
      fputs(usage, stdout);
      return;
    } else if (strncmp(o, "-e", 2) == 0) {
      const char *code = o[2] != '\0' ? o + 2 : i + 1 < j->argc ? j->argv[++i] : NULL;
      if (code == NULL) {
        j->code = usage_error("-e needs an argument:", "CODE");
        return;
      }
      j->code = run_code(L, code);
      did = true;
    } else if (strcmp(o, "--profile") == 0 || strcmp(o, "--profile=json") == 0) {
      j->profile = o[9] == '=' ? "json" : "text";
      j->code = profile(L, "start", j->profile);
    } else {
      j->code = usage_error("unknown option", o);
    }
    if (j->code != 0) {
      return;
    }
  }
  if (i < j->argc) {
    if (strcmp(j->argv[i], "-") == 0) {
      j->code = run_chunk(L, luaL_loadfilex(L, NULL, "t"), 0);
    } else if (is_script(j->argv[i])) {
      j->code = run_script(L, j->argc, j->argv, i);
    } else {
      j->code = run_cli(L, j->argc, j->argv, i);
    }
  } else if (!did && !session) {
    j->code = no_arguments(L);
  }
  if (session) {
    if (j->code == 130) {
      pl_signals_clear(L);
    }
    j->code = pl_repl(L);
  }
}

static int run_job(lua_State *L) {
  job *j = lua_touserdata(L, 1);
  lua_settop(L, 0);
  luaL_openlibs(L);
  set_path(L);
  pl_signals_install(L);
  run_arguments(L, j);
  if (j->profile != NULL) {
    pl_signals_clear(L); /* after Ctrl-C too, one wants to see where the time went */
    const int code = profile(L, "stop", j->profile);
    j->code = j->code != 0 ? j->code : code;
  }
  return 0;
}

/* OpenMP's threads wait for each other by spinning for milliseconds, which on a busy machine
 * starves the very thread they wait for: a training run of 0.5 s took 80 s beside other
 * programs, and takes 1 s with short spinning, at no cost on an idle machine. libgomp reads
 * this setting only while it is loaded, so the program starts itself once more (2 ms). */
static void shorten_waits(char **argv) {
  char exe[PATH_MAX];
  if (getenv("GOMP_SPINCOUNT") != NULL || getenv("OMP_WAIT_POLICY") != NULL) {
    return;
  }
  ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (n > 0 && setenv("GOMP_SPINCOUNT", "2000", 1) == 0) {
    exe[n] = '\0';
    execv(exe, argv); /* if it fails, this process goes on as it is */
  }
}

int main(int argc, char **argv) {
  shorten_waits(argv);
  char text[160];
  /* other kernels than asked for would give other bits; a mistyped number would go unnoticed */
  if (pl_isa_complaint(text) != NULL || pl_threads_complaint(text) != NULL) {
    fprintf(stderr, "perilune: %s\n", text);
    return 1;
  }
  signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes fails the write, it does not end us */
  pl_lua state = {.seed = 0};
  pl_lua *p = &state;
  if (pl_ctx_init(&p->ctx) != PL_OK ||
      pl_mem_start_limit(&p->ctx, getenv("PL_MEMORY"),
                         pl_cgroup_memory(PL_CGROUP_ROOT, PL_CGROUP_SELF)) != PL_OK) {
    fprintf(stderr, "perilune: %s\n", p->ctx.err);
    pl_ctx_close(&p->ctx);
    return 1;
  }
  lua_State *L = luaL_newstate();
  if (L == NULL) {
    fprintf(stderr, "perilune: out of memory at the start\n");
    pl_ctx_close(&p->ctx);
    return 1;
  }
  pl_lua_attach(L, p);
  job j = {.argc = argc, .argv = argv};
  lua_pushcfunction(L, run_job);
  lua_pushlightuserdata(L, &j);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
    j.code = pl_host_report(L);
  }
  lua_close(L);
  pl_secrets_close(&p->ctx, &p->secrets);
  pl_ctx_close(&p->ctx);
  bool failed = ferror(stdout) != 0;
  if (fflush(stdout) != 0 || failed) {
    fprintf(stderr, "perilune: standard output: cannot be written (is the disk full?)\n");
    return j.code != 0 ? j.code : 1;
  }
  return j.code;
}
