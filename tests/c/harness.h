/* What a C test file includes first. Usage:
 *
 *   #include "harness.h"
 *   TEST(buffers_grow) { CHECK(1 + 1 == 2); }
 *
 * Tests register themselves; main() is here: it runs all, or those whose names
 * contain an argument, prints "ok NAME", "not ok NAME" or "skip NAME why", and
 * ends with "#P passed, F failed, S skipped". A failed CHECK goes on with the
 * test, a failed REQUIRE leaves it. ctx() is a fresh context per test; a test
 * that leaves memory behind fails. */
#ifndef PL_TESTS_HARNESS_H
#define PL_TESTS_HARNESS_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/status.h"

typedef void (*harness_fn)(void);

static struct {
  struct {
    const char *name;
    harness_fn fn;
  } tests[256];
  int count;
  int failures; /* of the running test */
  const char *skipped;
  pl_ctx ctx;
  char dir[128];
} harness;

#define TEST(title)                                                         \
  static void test_##title(void);                                            \
  __attribute__((constructor)) static void register_##title(void) {          \
    if (harness.count < (int)(sizeof harness.tests / sizeof *harness.tests)) { \
      harness.tests[harness.count].name = #title;                           \
      harness.tests[harness.count].fn = test_##title;                       \
    }                                                                       \
    harness.count++;                                                        \
  }                                                                         \
  static void test_##title(void)

#define FAIL(...)                                    \
  do {                                               \
    harness.failures++;                              \
    printf("    %s:%d: ", __FILE__, __LINE__);       \
    printf(__VA_ARGS__);                             \
    printf("\n");                                    \
  } while (0)

#define CHECK(cond)                   \
  do {                                \
    if (!(cond)) {                    \
      FAIL("failed: %s", #cond);      \
    }                                 \
  } while (0)

#define REQUIRE(cond)                 \
  do {                                \
    if (!(cond)) {                    \
      FAIL("failed: %s", #cond);      \
      return;                         \
    }                                 \
  } while (0)

#define CHECK_INT(got, want)                                              \
  do {                                                                    \
    long long got_ = (long long)(got);                                    \
    long long want_ = (long long)(want);                                  \
    if (got_ != want_) {                                                  \
      FAIL("%s is %lld, wanted %lld", #got, got_, want_);                 \
    }                                                                     \
  } while (0)

#define CHECK_STR(got, want)                                              \
  do {                                                                    \
    const char *got_ = (got);                                             \
    const char *want_ = (want);                                           \
    if (!got_ || strcmp(got_, want_) != 0) {                              \
      FAIL("%s is \"%s\", wanted \"%s\"", #got, got_ ? got_ : "(null)", want_); \
    }                                                                     \
  } while (0)

/* text must occur in got: for error messages */
#define CHECK_HAS(got, text)                                              \
  do {                                                                    \
    const char *got_ = (got);                                             \
    const char *text_ = (text);                                           \
    if (!got_ || !strstr(got_, text_)) {                                  \
      FAIL("%s is \"%s\", wanted something with \"%s\"", #got,            \
           got_ ? got_ : "(null)", text_);                                \
    }                                                                     \
  } while (0)

/* |a - b| <= tol; NaN fails */
#define CHECK_NEAR(a, b, tol)                                             \
  do {                                                                    \
    double a_ = (double)(a);                                              \
    double b_ = (double)(b);                                              \
    if (!(fabs(a_ - b_) <= (double)(tol))) {                              \
      FAIL("%s = %.9g and %s = %.9g differ by more than %g", #a, a_, #b, b_, (double)(tol)); \
    }                                                                     \
  } while (0)

/* status must be PL_OK, else the error text is shown */
#define CHECK_OK(expr)                                                    \
  do {                                                                    \
    pl_status st_ = (expr);                                               \
    if (st_ != PL_OK) {                                                   \
      FAIL("%s gave status %d: %s", #expr, (int)st_, harness.ctx.err);    \
    }                                                                     \
  } while (0)

#define CHECK_STATUS(expr, want)                                          \
  do {                                                                    \
    pl_status st_ = (expr);                                               \
    if (st_ != (want)) {                                                  \
      FAIL("%s gave status %d, wanted %s", #expr, (int)st_, #want);       \
    }                                                                     \
  } while (0)

#define SKIP(why)            \
  do {                       \
    harness.skipped = (why); \
    return;                  \
  } while (0)

static inline pl_ctx *ctx(void) {
  return &harness.ctx;
}

/* A folder of this process's own for files; removed at the end. */
static inline const char *scratch_dir(void) {
  if (!harness.dir[0]) {
    const char *tmp = getenv("TMPDIR");
    snprintf(harness.dir, sizeof harness.dir, "%.80s/pl-test-%ld", tmp && *tmp ? tmp : "/tmp",
             (long)getpid());
    mkdir(harness.dir, 0700);
  }
  return harness.dir;
}

/* Where the shared data lie, or NULL: then SKIP. */
static inline const char *shared_dir(void) {
  const char *p = getenv("PL_SHARED");
  p = p && *p ? p : "../shared";
  return pl_is_dir(p) ? p : NULL;
}

static inline bool quick_mode(void) {
  const char *p = getenv("PL_TEST_QUICK");
  return p && *p && strcmp(p, "0") != 0;
}

/* Runs fn(arg) with its 1st, 2nd, ... allocation failing until a run is not
 * touched by it. fn returns its status and frees all it made. Each failed run must
 * give PL_ENOMEM with a text and leave no memory behind. Returns how many
 * allocations fn makes, or -1 after a failure. */
static inline int fail_each_alloc(pl_status (*fn)(void *arg), void *arg) {
  pl_ctx *c = ctx();
  for (int n = 1; n < 100000; n++) {
    int64_t before = c->mem.live;
    c->err[0] = 0;
    c->mem.fail_at = n;
    pl_status st = fn(arg);
    bool untouched = c->mem.fail_at > 0;
    c->mem.fail_at = 0;
    if (c->mem.live != before) {
      FAIL("allocation %d failing leaks %lld bytes", n, (long long)(c->mem.live - before));
      return -1;
    }
    if (untouched) {
      if (st != PL_OK) {
        FAIL("status %d without a failing allocation: %s", (int)st, c->err);
        return -1;
      }
      return n - 1;
    }
    if (st != PL_ENOMEM || !c->err[0]) {
      FAIL("allocation %d failing gives status %d, text \"%s\"", n, (int)st, c->err);
      return -1;
    }
  }
  FAIL("more than 100000 allocations");
  return -1;
}

static int run_test(int i) {
  harness.failures = 0;
  harness.skipped = NULL;
  const char *name = harness.tests[i].name;
  if (pl_ctx_init(&harness.ctx) != PL_OK) {
    printf("not ok %s: no context\n", name);
    return 1;
  }
  harness.tests[i].fn();
  if (harness.ctx.mem.live != 0 && !harness.skipped) {
    FAIL("%lld bytes were not freed", (long long)harness.ctx.mem.live);
  }
  pl_ctx_close(&harness.ctx);
  if (harness.failures > 0) {
    printf("not ok %s\n", name);
    return 1;
  }
  if (harness.skipped) {
    printf("skip %s %s\n", name, harness.skipped);
    return 2;
  }
  printf("ok %s\n", name);
  return 0;
}

int main(int argc, char **argv) {
  int result[3] = {0, 0, 0}; /* passed, failed, skipped */
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (harness.count > (int)(sizeof harness.tests / sizeof *harness.tests)) {
    printf("not ok harness: too many tests in one file\n");
    return 1;
  }
  for (int i = 0; i < harness.count; i++) {
    bool wanted = argc < 2;
    for (int a = 1; a < argc; a++) {
      wanted = wanted || strstr(harness.tests[i].name, argv[a]) != NULL;
    }
    if (wanted) {
      result[run_test(i)]++;
    }
  }
  if (harness.dir[0] && pl_ctx_init(&harness.ctx) == PL_OK) {
    pl_remove_tree(&harness.ctx, harness.dir);
    pl_ctx_close(&harness.ctx);
  }
  printf("#%d passed, %d failed, %d skipped\n", result[0], result[1], result[2]);
  return result[1] > 0 || result[0] + result[2] == 0;
}

#endif
