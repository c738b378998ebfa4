/* A mock of AI services for tests, soak and benchmarks: OpenAI, Anthropic and Gemini routes on
 * loopback, replies that are a function of the request alone, and faults on order.
 *
 *   mock [--port 0] [--latency-ms 50] [--stream-ms 0] [--seed 1] [--faults 429=0.05,reset=0.01]
 *        [--rpm N] [--tpm N] [--key VALUE] [--batch-polls 2] [--log FILE] [--port-file FILE]
 *        [--stay]
 *
 * Prints "port N". Ends on SIGTERM, SIGINT and, without --stay, with its parent.
 * Faults (fault_names in mock_fault.c): any HTTP status, quota, reset, reset_body, stall,
 * stall_body, malformed, empty, error200, short, invalid_utf8, html502, refusal, stream_error,
 * no_done. Not counted and never delayed: GET /health, /stats, /ids and POST /script with any of
 *
 *   {"next": ["429", "ok"], "faults": {"500": 0.1}, "latency_ms": 5, "stream_ms": 1, "rpm": 60,
 *    "tpm": 1000, "batch_polls": 1, "retry_after": "7", "reply": "text", "sse_cut": 99,
 *    "headers": ["X: y"], "echo_headers": true, "clear": true}
 *
 * "next" adds to a queue ([] empties it) that is used up before the rates count; "sse_cut" holds
 * for one streamed reply, the others until changed (null, [] or false ends them); "clear" comes
 * first: it forgets all of the script and sets the counters to 0. /ids has a line a request: id,
 * how it ended.
 *
 * This file: the options and the start. */
#include "mock.h" /* first: it asks for the GNU names */

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

static int usage(const char *problem, const char *what) {
  fprintf(stderr, "mock: %s: %s\n", problem, what);
  return 2;
}

static int options(mock *m, int argc, char **argv, const char **port_file) {
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (strcmp(name, "--stay") == 0) {
      m->stay = true;
      continue;
    }
    if (i + 1 == argc) return usage("an option without its value, or unknown", name);
    const char *value = argv[++i];
    char *end;
    double x = strtod(value, &end);
    bool number = *value && !*end && x >= 0;
    if (strcmp(name, "--faults") == 0) {
      if (!fault_rates(m, value)) return usage("--faults wants NAME=RATE,NAME=RATE", value);
    } else if (strcmp(name, "--key") == 0) {
      m->key = value;
    } else if (strcmp(name, "--log") == 0) {
      m->log = fopen(value, "we");
      if (!m->log) return usage("cannot write the log", value);
    } else if (strcmp(name, "--port-file") == 0) {
      *port_file = value;
    } else if (!number) {
      return usage("no such option, or it wants a number", name);
    } else if (strcmp(name, "--port") == 0) {
      m->port = (int)x;
    } else if (strcmp(name, "--latency-ms") == 0) {
      m->latency_ms = x;
    } else if (strcmp(name, "--stream-ms") == 0) {
      m->stream_ms = x;
    } else if (strcmp(name, "--seed") == 0) {
      m->seed = (uint64_t)x;
    } else if (strcmp(name, "--rpm") == 0) {
      m->rpm.limit = m->rpm.left = x;
    } else if (strcmp(name, "--tpm") == 0) {
      m->tpm.limit = m->tpm.left = x;
    } else if (strcmp(name, "--batch-polls") == 0) {
      m->batch_polls = (int)x;
    } else {
      return usage("no such option", name);
    }
  }
  return 0;
}

/* The file appears whole: whoever waits for it never reads half a number. */
static bool write_port(const char *path, int port) {
  buf part = {0};
  buf_fmt(&part, "%s.part", path);
  FILE *f = fopen(part.data, "we");
  bool ok = f != NULL;
  if (f) {
    fprintf(f, "%d\n", port);
    ok = fclose(f) == 0 && rename(part.data, path) == 0;
  }
  free(part.data);
  return ok;
}

int main(int argc, char **argv) {
  mock m = {.latency_ms = 50, .seed = 1, .batch_polls = 2, .script = {.sse_cut = -1}};
  const char *port_file = NULL;
  pid_t parent = getppid();
  int bad = options(&m, argc, argv, &port_file);
  if (bad) return bad;
  if (!m.stay) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) return 0;
  }
  loop *l = loop_open(&m);
  if (!l) {
    fprintf(stderr, "mock: port %d: %s\n", m.port, strerror(errno));
    return 1;
  }
  if (port_file && !write_port(port_file, m.port)) return usage("cannot write", port_file);
  printf("port %d\n", m.port);
  fflush(stdout);
  loop_run(l);
  loop_close(l);
  script_free(&m);
  stats_clear(&m);
  batches_free(&m);
  files_free(&m);
  buf *buffers[] = {&m.body, &m.head, &m.scratch, &m.text};
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]->data);
  if (m.log) fclose(m.log);
  return 0;
}
