/* The session's line editor (libedit): prompts, history, completion, Ctrl-C at
 * the prompt. Reading and printing what was typed is Lua's half, perilune.repl.
 *
 * SIGINT is blocked in the session's own code and let in at two places only:
 * while user code runs (protected_call) and while a key is awaited (ppoll), so
 * that it can neither be lost nor break libedit or the session half-way. */
#define _GNU_SOURCE
#include "base/clock.h"
#include "host/host.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HISTORY_MAX 2000
#define LINE_MAX_BYTES ((size_t)16 << 20)

extern char **environ;

typedef struct editor {
  lua_State *L;
  EditLine *el; /* NULL: plain lines */
  History *hist;
  const char *prompt;
  char *path;      /* of the history file, or NULL */
  double pressed;  /* when Ctrl-C was last pressed at the prompt */
} editor;

static void sigint(int how) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigprocmask(how, &set, NULL);
}

/* ---- history ---- */

/* One entry a line: newlines inside an entry are written \n, backslashes \\. */
static void history_load(editor *e) {
  FILE *f = e->path != NULL ? fopen(e->path, "r") : NULL;
  if (f == NULL) {
    return;
  }
  char *line = NULL;
  size_t cap = 0;
  ssize_t n = getline(&line, &cap, f);
  while (n > 0) {
    size_t to = 0;
    for (size_t from = 0; from < (size_t)n && line[from] != '\n'; from++) {
      if (line[from] == '\\' && from + 1 < (size_t)n) {
        from++;
        line[to++] = line[from] == 'n' ? '\n' : line[from];
      } else {
        line[to++] = line[from];
      }
    }
    line[to] = '\0';
    HistEvent ev;
    if (to > 0) {
      history(e->hist, &ev, H_ENTER, line);
    }
    n = getline(&line, &cap, f);
  }
  free(line);
  fclose(f);
}

static void history_write(editor *e, const char *s) {
  int fd = e->path != NULL ? open(e->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  FILE *f = fd >= 0 ? fdopen(fd, "a") : NULL;
  if (f == NULL) {
    if (fd >= 0) {
      close(fd);
    }
    return; /* a session without history is still a session */
  }
  for (; *s != '\0'; s++) {
    if (*s == '\n') {
      fputs("\\n", f);
    } else if (*s == '\\') {
      fputs("\\\\", f);
    } else {
      fputc(*s, f);
    }
  }
  fputc('\n', f);
  fclose(f);
}

static bool ends_with(const char *s, size_t n, const char *end) {
  size_t m = strlen(end);
  return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* Does the entry hold a secret: a loaded key (the environment has it no more), the value of a key
 * in the environment, or its usual form? */
static bool holds_key(const pl_secrets *loaded, const char *s) {
  if (pl_secrets_in(loaded, s, strlen(s))) {
    return true;
  }
  for (char **v = environ; *v != NULL; v++) {
    const char *eq = strchr(*v, '=');
    if (eq == NULL || strlen(eq + 1) < 8) {
      continue;
    }
    size_t n = (size_t)(eq - *v);
    if ((ends_with(*v, n, "_KEY") || ends_with(*v, n, "_TOKEN") || ends_with(*v, n, "_SECRET")) &&
        strstr(s, eq + 1) != NULL) {
      return true;
    }
  }
  for (const char *at = strstr(s, "sk-"); at != NULL; at = strstr(at + 3, "sk-")) {
    size_t n = strspn(at + 3, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");
    if (n >= 16) {
      return true;
    }
  }
  return false;
}

static int add_history(lua_State *L) {
  editor *e = lua_touserdata(L, lua_upvalueindex(1));
  const char *s = luaL_checkstring(L, 1);
  if (e->el == NULL || holds_key(&pl_lua_of(L)->secrets, s)) {
    return 0;
  }
  HistEvent ev;
  if (history(e->hist, &ev, H_FIRST) >= 0 && strcmp(ev.str, s) == 0) {
    return 0;
  }
  history(e->hist, &ev, H_ENTER, s);
  history_write(e, s);
  return 0;
}

/* ---- reading ---- */

static char *prompt_text(EditLine *el) {
  void *e = NULL;
  el_get(el, EL_CLIENTDATA, &e);
  return (char *)((editor *)e)->prompt;
}

/* A read that Ctrl-C ends: el_gets then returns NULL with the flag set. UTF-8
 * is put together here, for libedit's own reader would swallow EINTR. */
static int read_char(EditLine *el, wchar_t *out) {
  (void)el;
  mbstate_t state;
  memset(&state, 0, sizeof state);
  for (;;) {
    char byte;
    sigset_t none;
    sigemptyset(&none);
    struct pollfd key = {.fd = STDIN_FILENO, .events = POLLIN};
    if (ppoll(&key, 1, NULL, &none) < 0) {
      if (pl_interrupt_pending()) {
        return -1;
      }
      continue; /* the window changed its size, or the job was continued */
    }
    ssize_t n = read(STDIN_FILENO, &byte, 1);
    if (n <= 0) {
      return n == 0 ? 0 : -1;
    }
    size_t used = mbrtowc(out, &byte, 1, &state);
    if (used == (size_t)-1) { /* not UTF-8: take the byte as it is */
      *out = (unsigned char)byte;
      return 1;
    }
    if (used != (size_t)-2) {
      if (used == 0) {
        *out = L'\0';
      }
      return 1;
    }
  }
}

static unsigned char complete(EditLine *el, int ch) {
  (void)ch;
  void *data = NULL;
  el_get(el, EL_CLIENTDATA, &data);
  lua_State *L = ((editor *)data)->L;
  const LineInfo *li = el_line(el);
  int top = lua_gettop(L);
  unsigned char result = CC_ERROR;
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.repl.complete");
  if (lua_pcall(L, 1, 1, 0) != LUA_OK) {
    lua_settop(L, top);
    return result;
  }
  /* complete.edit(text before the cursor) -> text to insert, list to show */
  lua_getfield(L, -1, "edit");
  lua_pushlstring(L, li->buffer, (size_t)(li->cursor - li->buffer));
  if (lua_pcall(L, 1, 2, 0) == LUA_OK) {
    const char *insert = lua_tostring(L, -2);
    const char *list = lua_tostring(L, -1);
    if (insert != NULL && insert[0] != '\0') {
      el_insertstr(el, insert);
      result = CC_REFRESH;
    }
    if (list != NULL && list[0] != '\0') {
      printf("\n%s\n", list);
      fflush(stdout);
      result = CC_REDISPLAY;
    }
  }
  lua_settop(L, top);
  return result;
}

static int plain_line(lua_State *L) {
  char *line = NULL;
  size_t cap = 0;
  errno = 0;
  sigint(SIG_UNBLOCK);
  ssize_t n = getline(&line, &cap, stdin);
  sigint(SIG_BLOCK);
  if (n >= 0) {
    lua_pushlstring(L, line, (size_t)n > 0 && line[n - 1] == '\n' ? (size_t)n - 1 : (size_t)n);
    free(line);
    return 1;
  }
  free(line);
  lua_pushnil(L);
  if (errno == EINTR && pl_interrupt_pending()) {
    clearerr(stdin);
    lua_pushliteral(L, "interrupt");
    return 2;
  }
  return 1;
}

/* readline(prompt) -> line | nil at the end | nil, "interrupt" | nil, "quit" */
static int read_line(lua_State *L) {
  editor *e = lua_touserdata(L, lua_upvalueindex(1));
  const char *prompt = luaL_checkstring(L, 1);
  fflush(stdout);
  if (e->el == NULL) {
    int n = plain_line(L);
    if (n == 2) {
      pl_signals_clear(L);
    }
    return n;
  }
  e->prompt = prompt;
  int n = 0;
  el_set(e->el, EL_PREP_TERM, 1); /* before the prompt: what is typed at once is not lost */
  const char *line = el_gets(e->el, &n);
  if (pl_interrupt_pending()) {
    pl_signals_clear(L);
    el_reset(e->el);
    double now = pl_now();
    bool again = now - e->pressed < 2;
    e->pressed = now;
    lua_pushnil(L);
    if (again) {
      fputs("\n", stdout);
      lua_pushliteral(L, "quit");
    } else {
      fputs("^C  (again within 2 s to quit)\n", stdout);
      lua_pushliteral(L, "interrupt");
    }
    return 2;
  }
  if (line == NULL || n <= 0) {
    fputs("\n", stdout);
    lua_pushnil(L);
    return 1;
  }
  size_t len = strlen(line);
  lua_pushlstring(L, line, len > 0 && line[len - 1] == '\n' ? len - 1 : len);
  return 1;
}

/* call(f, ...) -> true, results | false, error text, interrupted. Clears Ctrl-C after. */
static int protected_call(lua_State *L) {
  luaL_checkany(L, 1);
  sigint(SIG_UNBLOCK);
  int status = pl_host_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  sigint(SIG_BLOCK);
  bool interrupted = pl_interrupt_pending();
  if (interrupted) {
    pl_signals_clear(L);
  }
  lua_pushboolean(L, status == LUA_OK);
  lua_insert(L, 1);
  if (status != LUA_OK) {
    lua_pushboolean(L, interrupted);
  }
  return lua_gettop(L);
}

/* ---- the session ---- */

static void set_history_path(editor *e) {
  const char *given = getenv("PL_HISTORY");
  const char *home = getenv("HOME");
  char path[4096];
  if (given != NULL) {
    snprintf(path, sizeof path, "%s", given);
  } else if (home != NULL) {
    snprintf(path, sizeof path, "%s/.perilune_history", home);
  } else {
    return;
  }
  e->path = path[0] != '\0' ? strdup(path) : NULL;
}

static void editor_open(editor *e) {
  const char *term = getenv("TERM");
  bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
  if (!terminal || term == NULL || strcmp(term, "dumb") == 0) {
    return;
  }
  setlocale(LC_CTYPE, "");
  if (MB_CUR_MAX == 1) {
    setlocale(LC_CTYPE, "C.UTF-8");
  }
  e->el = el_init("perilune", stdin, stdout, stderr);
  e->hist = history_init();
  if (e->el == NULL || e->hist == NULL) {
    return;
  }
  HistEvent ev;
  history(e->hist, &ev, H_SETSIZE, HISTORY_MAX);
  history(e->hist, &ev, H_SETUNIQUE, 1);
  el_set(e->el, EL_CLIENTDATA, e);
  el_set(e->el, EL_PROMPT_ESC, prompt_text, '\1');
  el_set(e->el, EL_EDITOR, "emacs");
  el_set(e->el, EL_HIST, history, e->hist);
  el_set(e->el, EL_GETCFN, read_char);
  el_set(e->el, EL_ADDFN, "pl-complete", "complete a name", complete);
  el_set(e->el, EL_BIND, "\t", "pl-complete", NULL);
  el_set(e->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
  el_source(e->el, NULL);
  set_history_path(e);
  history_load(e);
}

static void editor_close(editor *e) {
  if (e->el != NULL) {
    el_end(e->el);
  }
  if (e->hist != NULL) {
    history_end(e->hist);
  }
  free(e->path);
}

static int session(lua_State *L) {
  editor e = {.L = L, .prompt = "", .pressed = -100};
  int top = lua_gettop(L);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "perilune.repl");
  if (pl_host_call(L, 1, 1) != LUA_OK) {
    return pl_host_report(L);
  }
  editor_open(&e);
  const luaL_Reg host[] = {{"readline", read_line},
                           {"add_history", add_history},
                           {"call", protected_call},
                           {NULL, NULL}};
  lua_getfield(L, -1, "start");
  luaL_newlibtable(L, host);
  lua_pushlightuserdata(L, &e);
  luaL_setfuncs(L, host, 1);
  lua_pushboolean(L, e.el != NULL);
  lua_setfield(L, -2, "edits");
  int code = 0;
  bool on = true;
  if (pl_host_call(L, 1, 1) != LUA_OK) { /* start(host) -> step */
    code = pl_host_report(L);
    on = false;
  }
  while (on) { /* step() -> false when the session is over */
    lua_pushvalue(L, -1);
    if (pl_host_call(L, 0, 1) != LUA_OK) {
      pl_host_report(L);
      pl_signals_clear(L);
      continue;
    }
    on = lua_toboolean(L, -1);
    lua_pop(L, 1);
  }
  editor_close(&e);
  lua_settop(L, top);
  return code;
}

int pl_repl(lua_State *L) {
  sigint(SIG_BLOCK);
  int code = session(L);
  sigint(SIG_UNBLOCK);
  return code;
}
