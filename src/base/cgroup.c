/* Reads limits out of the trees of control groups. Where processes see a part of a tree only (a
 * namespace, a container of version 1), their group may be named by a path that is not there: what
 * cannot be read limits nothing, and the top of what is mounted is always looked at. */
#include "base/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { PATH_SIZE = 4096 };

/* The limit of the one group in folder dir; 0 = none. */
typedef int64_t (*limit_fn)(const char *dir);

/* Version 1 mounts a tree for each controller, version 2 one for all. */
typedef struct kind {
  const char *controller;
  limit_fn v1, v2;
} kind;

/* The first numbers of dir/name: how many of the two there were. */
static int numbers(const char *dir, const char *name, long long out[2]) {
  char path[PATH_SIZE + 64];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *f = fopen(path, "r");
  if (!f) {
    return 0;
  }
  const int n = fscanf(f, "%lld %lld", &out[0], &out[1]);
  fclose(f);
  return n < 0 ? 0 : n; /* "max" is none */
}

static int64_t rounded_up(long long quota, long long period) {
  return quota > 0 && period > 0 ? quota / period + (quota % period != 0) : 0;
}

static int64_t cpus_v2(const char *dir) {
  long long x[2];
  return numbers(dir, "cpu.max", x) == 2 ? rounded_up(x[0], x[1]) : 0;
}

static int64_t cpus_v1(const char *dir) {
  long long quota[2];
  long long period[2];
  return numbers(dir, "cpu.cfs_quota_us", quota) == 1 &&
                 numbers(dir, "cpu.cfs_period_us", period) == 1
             ? rounded_up(quota[0], period[0])
             : 0;
}

static int64_t memory_v2(const char *dir) {
  long long x[2];
  return numbers(dir, "memory.max", x) == 1 && x[0] > 0 ? x[0] : 0;
}

static int64_t memory_v1(const char *dir) {
  const long long unlimited = (long long)1 << 60; /* no limit is the largest number of pages */
  long long x[2];
  return numbers(dir, "memory.limit_in_bytes", x) == 1 && x[0] > 0 && x[0] < unlimited ? x[0] : 0;
}

static int64_t smaller(int64_t a, int64_t b) {
  return a == 0 || (b > 0 && b < a) ? b : a;
}

/* The smallest limit from the group at mount/group up to the one at mount. */
static int64_t smallest(const char *mount, const char *group, limit_fn limit) {
  char dir[PATH_SIZE];
  const bool outside = group[0] != '/' || strstr(group, "/..") != NULL; /* of what we see */
  const int n = snprintf(dir, sizeof dir, "%s%s", mount, outside ? "" : group);
  if (n < 0 || n >= (int)sizeof dir) {
    return 0;
  }
  int64_t least = limit(dir);
  while (strlen(dir) > strlen(mount)) {
    *strrchr(dir, '/') = 0;
    least = smaller(least, limit(dir));
  }
  return least;
}

static bool is_listed(const char *list, const char *name) {
  const size_t n = strlen(name);
  for (const char *p = list; p; p = strchr(p, ',')) {
    p += *p == ',';
    if (strncmp(p, name, n) == 0 && (p[n] == 0 || p[n] == ',')) {
      return true;
    }
  }
  return false;
}

/* One line of self, "ID:CONTROLLERS:GROUP"; version 2 names no controllers. */
static int64_t of_line(const char *root, char *line, const kind *k) {
  line[strcspn(line, "\n")] = 0;
  char *list = strchr(line, ':');
  char *group = list ? strchr(list + 1, ':') : NULL;
  if (!group) {
    return 0;
  }
  *group++ = 0;
  list++;
  if (*list == 0) {
    return smallest(root, group, k->v2);
  }
  if (!is_listed(list, k->controller)) {
    return 0;
  }
  char mount[PATH_SIZE];
  snprintf(mount, sizeof mount, "%s/%s", root, k->controller);
  return smallest(mount, group, k->v1);
}

static int64_t limit_of(const char *root, const char *self, const kind *k) {
  int64_t least = k->v2(root); /* also where /proc is not there */
  FILE *f = fopen(self, "r");
  if (!f) {
    return least;
  }
  char line[PATH_SIZE];
  while (fgets(line, sizeof line, f)) {
    least = smaller(least, of_line(root, line, k));
  }
  fclose(f);
  return least;
}

int pl_cgroup_cpus(const char *root, const char *self) {
  static const kind cpu = {"cpu", cpus_v1, cpus_v2};
  const int64_t n = limit_of(root, self, &cpu);
  return n > INT32_MAX ? INT32_MAX : (int)n;
}

int64_t pl_cgroup_memory(const char *root, const char *self) {
  static const kind memory = {"memory", memory_v1, memory_v2};
  return limit_of(root, self, &memory);
}
