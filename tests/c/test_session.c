/* The session on a real (pseudo) terminal: editing, history, completion, and
 * Ctrl-C, which must stop whatever runs at the first press and leave the
 * session alive. Drives the binary named by PL_BIN. */
#define _GNU_SOURCE
#include "harness.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OUT_MAX (1 << 20)

typedef struct session {
  pid_t pid;
  int fd;
  char *out;   /* all that came since the last expect */
  size_t len;
  bool alive;
} session;

static char history[64];

static void remove_history(void) {
  unlink(history);
}

static void name_history(void) {
  if (history[0] == '\0') {
    snprintf(history, sizeof history, "/tmp/perilune-history-%d", (int)getpid());
    atexit(remove_history);
  }
}

static const char *binary(void) {
  const char *bin = getenv("PL_BIN");
  return bin != NULL ? bin : "./perilune";
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void session_start(session *s, const char *no_color) {
  name_history();
  memset(s, 0, sizeof *s);
  s->out = calloc(1, OUT_MAX);
  s->pid = forkpty(&s->fd, NULL, NULL, &(struct winsize){.ws_row = 40, .ws_col = 100});
  if (s->pid == 0) {
    setenv("TERM", "xterm", 1);
    setenv("PL_HISTORY", history, 1);
    setenv("FAKE_API_KEY", "secret-abcdefgh", 1);
    if (no_color != NULL) {
      setenv("NO_COLOR", no_color, 1);
    } else {
      unsetenv("NO_COLOR");
    }
    execl(binary(), "perilune", (char *)NULL);
    _exit(127);
  }
  s->alive = s->pid > 0;
}

static void session_send(session *s, const char *text) {
  size_t n = strlen(text);
  while (n > 0) {
    ssize_t w = write(s->fd, text, n);
    if (w <= 0) {
      return;
    }
    text += w;
    n -= (size_t)w;
  }
}

/* Waits until text appears; forgets everything up to its end. */
static bool session_expect(session *s, const char *text, double seconds) {
  double end = now() + seconds;
  for (;;) {
    char *at = strstr(s->out, text);
    if (at != NULL) {
      size_t used = (size_t)(at - s->out) + strlen(text);
      memmove(s->out, s->out + used, s->len - used + 1);
      s->len -= used;
      return true;
    }
    if (now() > end) {
      fprintf(stderr, "# expected \"%s\", have \"%s\"\n", text, s->out);
      return false;
    }
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    if (poll(&p, 1, 50) > 0) {
      char chunk[4096];
      ssize_t n = read(s->fd, chunk, sizeof chunk);
      if (n <= 0) {
        s->alive = false;
        end = 0;
        continue;
      }
      for (ssize_t i = 0; i < n && s->len + 1 < OUT_MAX; i++) {
        if (chunk[i] != '\0') { /* libedit pads with NUL */
          s->out[s->len++] = chunk[i];
        }
      }
      s->out[s->len] = '\0';
    }
  }
}

static int session_end(session *s, double seconds) {
  double end = now() + seconds;
  int status = 0;
  while (now() < end) {
    if (waitpid(s->pid, &status, WNOHANG) == s->pid) {
      close(s->fd);
      free(s->out);
      return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }
    char chunk[4096];
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    if (poll(&p, 1, 20) > 0 && read(s->fd, chunk, sizeof chunk) < 0) {
      usleep(20000);
    }
  }
  kill(s->pid, SIGKILL);
  waitpid(s->pid, &status, 0);
  close(s->fd);
  free(s->out);
  return -1;
}

static void sleep_ms(int ms) {
  usleep((useconds_t)ms * 1000);
}

TEST(values_are_printed) {
  session s;
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "20 + 22\r");
  CHECK(session_expect(&s, "\n42", 5));
  session_send(&s, "pl.ones(2, 2)\r");
  CHECK(session_expect(&s, "f32 [2, 2]", 5));
  session_send(&s, "for i = 1, 2 do\r");
  CHECK(session_expect(&s, ">> ", 5));
  session_send(&s, "io.write('n', i) end\r");
  CHECK(session_expect(&s, "n1n2", 5));
  session_send(&s, ":quit\r");
  CHECK_INT(session_end(&s, 10), 0);
}

/* What must be done at the end of a block is done, so the session is whole afterwards. */
TEST(ctrl_c_keeps_a_training) {
  static const char *const before[] = {
      "m = pl.load 'tests/golden/lm/tied'",
      "g = assert(pl.json.read 'tests/golden/train/losses.json')",
      "wait = function() require('perilune.core').base.sleep(0.01) end",
      "o = { cache = true, epochs = 1000000, on_step = wait, gradient_checkpointing = true }",
      "home = os.tmpname(); os.remove(home); require('perilune.study.store').set_home(home)",
  };
  session s;
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  for (size_t i = 0; i < sizeof before / sizeof before[0]; i++) {
    session_send(&s, before[i]);
    session_send(&s, "\r");
  }
  static const char *const says[] = {"the same call goes on from", "goes on after step"};
  for (int i = 0; i < 2; i++) {
    session_send(&s, "pl.train.sft(m, g.rows, o)\r");
    if (i == 1) { /* neither the lock nor the run of the first holds it up */
      CHECK(session_expect(&s, says[1], 10));
    }
    sleep_ms(500);
    session_send(&s, "\003");
    CHECK(session_expect(&s, says[0], 10));
    CHECK(session_expect(&s, "interrupted", 5));
  }
  session_send(&s, "require('perilune.core').base.remove_tree(home), 'removed'\r");
  CHECK(session_expect(&s, "\"removed\"", 5));
  session_send(&s, ":quit\r");
  CHECK_INT(session_end(&s, 10), 0);
}

TEST(ctrl_c_stops_what_runs) {
  static const char *const loops[] = {
      "while true do end",
      "while true do pcall(function() while true do end end) end",
      "coroutine.wrap(function() while true do end end)()",
      "while true do local c = coroutine.create(function() pcall(function() while true do end end) "
      "coroutine.yield() end); coroutine.resume(c) end",
      "x = pl.randn(300, 300); while true do local y = x:matmul(x) end",
      "while true do pcall(x.exp, x) end",
      "pl.no_grad(function() while true do end end)",
  };
  session s;
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  for (size_t i = 0; i < sizeof loops / sizeof loops[0]; i++) {
    session_send(&s, "'ready' .. ");
    char mark[32];
    snprintf(mark, sizeof mark, "%d\r", (int)i);
    session_send(&s, mark);
    snprintf(mark, sizeof mark, "\"ready%d\"", (int)i);
    CHECK(session_expect(&s, mark, 5));
    session_send(&s, loops[i]);
    session_send(&s, "\r");
    sleep_ms(300);
    session_send(&s, "\003");
    CHECK(session_expect(&s, "interrupted", 5));
  }
  session_send(&s, "6 * 7, pl.grad_enabled()\r"); /* what was to be closed was closed */
  CHECK(session_expect(&s, "\n42", 5));
  CHECK(session_expect(&s, "true", 5));
  session_send(&s, ":quit\r");
  CHECK_INT(session_end(&s, 10), 0);
}

TEST(ctrl_c_at_the_prompt) {
  session s;
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "error('not run')");
  CHECK(session_expect(&s, "run", 5));
  session_send(&s, "\003");
  CHECK(session_expect(&s, "again within 2 s", 5));
  session_send(&s, "1 + 1\r");
  CHECK(session_expect(&s, "\n2", 5));
  sleep_ms(2500);
  session_send(&s, "for i = 1, 3 do\r");
  CHECK(session_expect(&s, ">> ", 5));
  session_send(&s, "\003"); /* leaves the unfinished entry */
  CHECK(session_expect(&s, "again within 2 s", 5));
  session_send(&s, "2 + 1\r");
  CHECK(session_expect(&s, "\n3", 5));
  sleep_ms(2500);
  session_send(&s, "\003");
  CHECK(session_expect(&s, "again within 2 s", 5));
  session_send(&s, "\003");
  CHECK_INT(session_end(&s, 10), 0);
}

TEST(completion) {
  session s;
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "pl.logsu\t({1 , 2})\r"); /* completed to logsumexp, which refuses a table */
  CHECK(session_expect(&s, "logsumexp: argument 1", 5));
  session_send(&s, "pl.ran\t\t");
  CHECK(session_expect(&s, "randint", 5));
  session_send(&s, "\003");
  CHECK(session_expect(&s, "again", 5));
  session_send(&s, ":quit\r");
  CHECK_INT(session_end(&s, 10), 0);
}

TEST(history_is_kept) {
  name_history();
  unlink(history);
  session s;
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "a = 1\ra = 1\rfor i = 1, 1 do\rend\r");
  session_send(&s, "key = 'secret-abcdefgh'\r");
  session_send(&s, "'the end' .. '!'\r");
  CHECK(session_expect(&s, "the end!", 5));
  CHECK(session_expect(&s, "> ", 5));
  session_send(&s, "\004"); /* end of input */
  CHECK_INT(session_end(&s, 10), 0);
  struct stat st;
  CHECK(stat(history, &st) == 0);
  CHECK((st.st_mode & 0777) == 0600);
  char text[1024] = "";
  FILE *f = fopen(history, "r");
  CHECK(f != NULL);
  if (f != NULL) {
    size_t n = fread(text, 1, sizeof text - 1, f);
    text[n] = '\0';
    fclose(f);
  }
  CHECK(strcmp(text, "a = 1\nfor i = 1, 1 do\\nend\n'the end' .. '!'\n") == 0);
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "\020\r"); /* Ctrl-P: the last entry */
  CHECK(session_expect(&s, "\"the end!\"", 5));
  CHECK(session_expect(&s, "> ", 5));
  session_send(&s, "\004");
  CHECK_INT(session_end(&s, 10), 0);
}

/* What net.secret has loaded is no longer in the environment, and must still be kept out. */
TEST(history_without_a_loaded_key) {
  name_history();
  unlink(history);
  setenv("PL_TEST_LOADED", "a-key-of-a-service", 1); /* a name that does not end in _KEY */
  session s;
  session_start(&s, "1");
  unsetenv("PL_TEST_LOADED");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "require('perilune.core').net.secret 'PL_TEST_LOADED'\r");
  CHECK(session_expect(&s, "true", 5));
  session_send(&s, "key = 'a-key-of-a-service'\r");
  session_send(&s, "key = 'YS1rZXktb2YtYS1zZXJ2aWNl'\r"); /* in base64 */
  session_send(&s, "'the end' .. '!'\r");
  CHECK(session_expect(&s, "the end!", 5));
  CHECK(session_expect(&s, "> ", 5));
  session_send(&s, "\004");
  CHECK_INT(session_end(&s, 10), 0);
  char text[1024] = "";
  FILE *f = fopen(history, "r");
  CHECK(f != NULL);
  if (f != NULL) {
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
  }
  CHECK(strstr(text, "PL_TEST_LOADED") != NULL && strstr(text, "the end") != NULL);
  CHECK(strstr(text, "key = ") == NULL);
}

TEST(colour_only_where_wanted) {
  session s;
  session_start(&s, NULL);
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "12345 + 1\r");
  CHECK(session_expect(&s, "\033[36m12346", 5));
  CHECK(session_expect(&s, "> ", 5));
  session_send(&s, "\004");
  CHECK_INT(session_end(&s, 10), 0);
  session_start(&s, "1");
  CHECK(session_expect(&s, "pl is loaded", 10));
  session_send(&s, "12345 + 1\r");
  CHECK(session_expect(&s, "\n12346", 5));
  CHECK(session_expect(&s, "> ", 5));
  session_send(&s, "\004");
  CHECK_INT(session_end(&s, 10), 0);
}
