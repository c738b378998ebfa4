/* Time and the machine, from the operating system. */
#define _GNU_SOURCE
#include "base/clock.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static double seconds(clockid_t id) {
  struct timespec t;
  clock_gettime(id, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double pl_now(void) {
  return seconds(CLOCK_MONOTONIC);
}

double pl_walltime(void) {
  return seconds(CLOCK_REALTIME);
}

int64_t pl_rss_peak(void) {
  struct rusage u;
  if (getrusage(RUSAGE_SELF, &u) != 0) {
    return 0;
  }
  return (int64_t)u.ru_maxrss * 1024;
}

static void model_name(char *out, size_t n) {
  FILE *f = fopen("/proc/cpuinfo", "r");
  char line[256];
  snprintf(out, n, "unknown processor");
  while (f && fgets(line, sizeof line, f)) {
    char *colon = strchr(line, ':');
    if (strncmp(line, "model name", 10) == 0 && colon && colon[1] == ' ') {
      colon[strcspn(colon, "\n")] = 0;
      snprintf(out, n, "%s", colon + 2);
      break;
    }
  }
  if (f) {
    fclose(f);
  }
}

void pl_cpu_name(char out[128]) {
  char name[80];
  model_name(name, sizeof name);
#if defined(__x86_64__)
  snprintf(out, 128, "%s (x86-64%s%s%s%s)", name, __builtin_cpu_supports("avx2") ? " avx2" : "",
           __builtin_cpu_supports("fma") ? " fma" : "",
           __builtin_cpu_supports("avx512f") ? " avx512f" : "",
           __builtin_cpu_supports("avx512bf16") ? " avx512bf16" : "");
#elif defined(__aarch64__)
  snprintf(out, 128, "%s (arm64)", name);
#else
  snprintf(out, 128, "%s", name);
#endif
}
