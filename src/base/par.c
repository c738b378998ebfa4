/* Parallel loops over OpenMP. Which thread runs a block is left to chance;
 * what a block computes must not depend on it. */
#define _GNU_SOURCE
#include "base/par.h"

#include "base/cgroup.h"
#include "base/clock.h"

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS_MAX 256

/* One number for the process, like OpenMP's own; 0 = not asked yet. It never
 * changes a result, only how fast it comes. */
static atomic_int threads;

/* True when cpu is the first of the hardware threads that share its core and
 * that we may use: two on one core would only fight for its vector units. */
static bool first_of_core(int cpu, const cpu_set_t *set) {
  char path[96];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  FILE *f = fopen(path, "r");
  if (!f) {
    return true;
  }
  bool first = true;
  int a;
  while (first && fscanf(f, "%d", &a) == 1) {
    int b = a;
    int sep = fgetc(f);
    if (sep == '-') {
      if (fscanf(f, "%d", &b) != 1) {
        break;
      }
      sep = fgetc(f);
    }
    for (int i = a; i <= b && i < cpu && i < CPU_SETSIZE; i++) {
      if (CPU_ISSET(i, set)) {
        first = false;
      }
    }
    if (sep != ',') {
      break;
    }
  }
  fclose(f);
  return first;
}

static const char *wanted(void) {
  const char *text = getenv("PL_THREADS");
  return text && *text ? text : NULL;
}

/* 0: no number of threads */
static int count_of(const char *text) {
  char *end;
  const long n = strtol(text, &end, 10);
  return *end == 0 && n >= 1 && n <= THREADS_MAX ? (int)n : 0;
}

const char *pl_threads_complaint(char out[160]) {
  const char *text = wanted();
  if (!text || count_of(text) > 0) {
    return NULL;
  }
  snprintf(out, 160, "PL_THREADS is \"%.40s\", wanted a number of threads from 1 to %d", text,
           THREADS_MAX);
  return out;
}

int pl_cores(void) {
  cpu_set_t set;
  int n = 0;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int i = 0; i < CPU_SETSIZE; i++) {
      if (CPU_ISSET(i, &set) && first_of_core(i, &set)) {
        n++;
      }
    }
  }
  return n < 1 ? 1 : n;
}

static int default_threads(void) {
  const char *text = wanted();
  if (text && count_of(text) > 0) {
    return count_of(text);
  }
  int n = pl_cores();
  const int most = pl_cgroup_cpus(PL_CGROUP_ROOT, PL_CGROUP_SELF);
  n = most > 0 && most < n ? most : n;
  return n < THREADS_MAX ? n : THREADS_MAX;
}

int pl_threads(void) {
  int n = atomic_load(&threads);
  if (n == 0) {
    n = default_threads();
    atomic_store(&threads, n);
  }
  return n;
}

void pl_set_threads(int n) {
  n = n < 1 ? 1 : n;
  atomic_store(&threads, n > THREADS_MAX ? THREADS_MAX : n);
}

int pl_thread_id(void) {
  return omp_get_thread_num();
}

/* A thread that wakes is often put on the processor of the one that woke it, and the two take
 * turns there while another processor idles: half the speed, until the system notices. So a
 * thread that finds itself where thread 0 is forbids itself that processor, which moves it at
 * once, and keeps to the others until thread 0 comes there. Not too often: where other programs
 * are busy too, thread 0 moves around. */
static atomic_llong moved; /* when, in nanoseconds */

static void settle(int first) {
  enum { EVERY = 5000000 };
  if (omp_get_thread_num() == 0 || sched_getcpu() != first) {
    return;
  }
  const long long now = (long long)(1e9 * pl_now());
  long long then = atomic_load(&moved);
  cpu_set_t all;
  if (now - then < EVERY || !atomic_compare_exchange_strong(&moved, &then, now) ||
      sched_getaffinity(getpid(), sizeof all, &all) != 0) { /* what the process may use */
    return;
  }
  CPU_CLR(first, &all);
  if (CPU_COUNT(&all) > 0) {
    (void)sched_setaffinity(0, sizeof all, &all);
  }
}

void pl_parallel(int64_t nblocks, pl_block_fn fn, void *arg) {
  int n = pl_threads();
  if (nblocks <= 1 || n == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < nblocks; i++) {
      fn(arg, i);
    }
    return;
  }
  const int first = sched_getcpu();
  /* Always the full team: libgomp ends and restarts threads when its size changes. */
#pragma omp parallel num_threads(n)
  {
    settle(first);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < nblocks; i++) {
      fn(arg, i);
    }
  }
}

/* ---- teams ---- */

enum {
  SPINS = 500,   /* looks, some microseconds, before others are let on this processor */
  REST_MOST = 64 /* runs alone before the team is tried again */
};

struct pl_team {
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_uint meeting; /* how many have ended */
  _Alignas(64) atomic_llong next;   /* to be taken by whoever comes */
  _Alignas(64) atomic_llong waited; /* nanoseconds of all members, those beyond SPINS */
};

/* Where processors are shared with other programs, a member that was put aside makes the
 * others wait. When the members of a run waited longer than one of them alone would have
 * needed, the next runs are done alone, ever more of them. As with the number of threads,
 * only the time depends on it. */
static atomic_int rest, rest_next = 1;

static void pause_briefly(void) {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

static void wait_long(pl_team *t, unsigned now) {
  const double start = pl_now();
  while (atomic_load_explicit(&t->meeting, memory_order_acquire) == now) {
    sched_yield();
  }
  const long long ns = (long long)(1e9 * (pl_now() - start));
  atomic_fetch_add_explicit(&t->waited, ns, memory_order_relaxed);
}

void pl_team_meet(const pl_member *me) {
  pl_team *t = me->team;
  if (me->size == 1) {
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    return;
  }
  const unsigned now = atomic_load_explicit(&t->meeting, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 == me->size) {
    atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_store_explicit(&t->meeting, now + 1, memory_order_release);
    return;
  }
  for (int i = 0; i < SPINS; i++) {
    if (atomic_load_explicit(&t->meeting, memory_order_acquire) != now) {
      return;
    }
    pause_briefly();
  }
  wait_long(t, now);
}

int64_t pl_team_take(const pl_member *me) {
  return atomic_fetch_add_explicit(&me->team->next, 1, memory_order_relaxed);
}

void pl_team_run(pl_team_fn fn, void *arg) {
  int n = pl_threads();
  if (n == 1 || omp_in_parallel() || atomic_load(&rest) > 0) {
    pl_team none = {0, 0, 0, 0};
    const pl_member alone = {0, 1, &none};
    fn(arg, &alone);
    if (atomic_load(&rest) > 0) {
      atomic_fetch_sub(&rest, 1);
    }
    return;
  }
  pl_team team = {0, 0, 0, 0};
  const double start = pl_now();
  const int first = sched_getcpu();
#pragma omp parallel num_threads(n)
  {
    settle(first);
    const pl_member me = {omp_get_thread_num(), omp_get_num_threads(), &team};
    fn(arg, &me);
    pl_team_meet(&me); /* so that all waiting is seen */
  }
  const double alone_took = n * (pl_now() - start) - 1e-9 * (double)atomic_load(&team.waited);
  const int next = atomic_load(&rest_next);
  if (alone_took < pl_now() - start) {
    atomic_store(&rest, next);
    atomic_store(&rest_next, next < REST_MOST ? 2 * next : REST_MOST);
  } else {
    atomic_store(&rest_next, next > 1 ? next / 2 : 1);
  }
}
