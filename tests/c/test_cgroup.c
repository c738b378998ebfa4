/* Limits of control groups, read from trees made here, and the limit on memory set from them. */
#include "harness.h"

#include "base/cgroup.h"
#include "base/mem_cache.h"

typedef struct place {
  char root[256], self[300];
} place;

static void put(const place *p, const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", p->root, name);
  char *slash = strrchr(path, '/');
  *slash = 0;
  CHECK_OK(pl_mkdirs(ctx(), path));
  *slash = '/';
  CHECK_OK(pl_file_write(ctx(), path, text, strlen(text)));
}

/* An empty tree, and a process in the groups that the lines of self say. */
static place tree(const char *name, const char *self) {
  place p;
  snprintf(p.root, sizeof p.root, "%s/%s", scratch_dir(), name);
  snprintf(p.self, sizeof p.self, "%s.self", p.root);
  CHECK_OK(pl_mkdirs(ctx(), p.root));
  CHECK_OK(pl_file_write(ctx(), p.self, self, strlen(self)));
  return p;
}

static int cpus(const place *p) {
  return pl_cgroup_cpus(p->root, p->self);
}

static int64_t memory(const place *p) {
  return pl_cgroup_memory(p->root, p->self);
}

TEST(without_groups_there_is_no_limit) {
  place p = tree("none", "0::/\n");
  CHECK_INT(cpus(&p), 0);
  CHECK_INT(memory(&p), 0);
  CHECK_INT(pl_cgroup_cpus("/nowhere", "/nowhere/self"), 0);
  CHECK_INT(pl_cgroup_memory("/nowhere", "/nowhere/self"), 0);
}

TEST(the_smallest_limit_of_a_group_and_its_parents_holds) {
  place p = tree("nested", "0::/jobs/a/step\n");
  put(&p, "jobs/memory.max", "8000000000\n");
  put(&p, "jobs/cpu.max", "250000 100000\n");
  put(&p, "jobs/a/memory.max", "3000000000\n");
  put(&p, "jobs/a/cpu.max", "max 100000\n");
  put(&p, "jobs/a/step/memory.max", "max\n");
  put(&p, "jobs/a/step/cpu.max", "700000 100000\n");
  put(&p, "jobs/b/memory.max", "1000\n"); /* not ours */
  put(&p, "jobs/b/cpu.max", "100000 100000\n");
  CHECK_INT(cpus(&p), 3); /* 2.5, rounded up */
  CHECK_INT(memory(&p), 3000000000);
  put(&p, "jobs/a/step/memory.max", "2000000000\n");
  put(&p, "jobs/a/step/cpu.max", "50000 100000\n");
  CHECK_INT(cpus(&p), 1);
  CHECK_INT(memory(&p), 2000000000);
}

TEST(a_container_sees_its_group_as_the_top) {
  place p = tree("top", "0::/\n");
  put(&p, "memory.max", "5000\n");
  put(&p, "cpu.max", "400000 100000\n");
  CHECK_INT(cpus(&p), 4);
  CHECK_INT(memory(&p), 5000);
  p = tree("hidden", "0::/docker/0123\n"); /* a path of the host's */
  put(&p, "memory.max", "6000\n");
  CHECK_INT(memory(&p), 6000);
  p = tree("top/inner", "0::/../../other\n"); /* outside of what is seen: not above root either */
  CHECK_INT(memory(&p), 0);
}

TEST(groups_of_version_1_are_read) {
  place p = tree("v1", "11:name=systemd:/x\n5:memory:/box/a\n4:cpuacct,cpu:/box/a\n"
                       "3:cpuset:/x\n0::/\n");
  put(&p, "cpu/box/a/cpu.cfs_quota_us", "-1\n");
  put(&p, "cpu/box/a/cpu.cfs_period_us", "100000\n");
  put(&p, "memory/box/a/memory.limit_in_bytes", "9223372036854771712\n");
  put(&p, "cpuset/x/cpu.cfs_quota_us", "1\n");
  CHECK_INT(cpus(&p), 0);
  CHECK_INT(memory(&p), 0);
  put(&p, "cpu/box/cpu.cfs_quota_us", "600000\n");
  put(&p, "cpu/box/cpu.cfs_period_us", "100000\n");
  put(&p, "memory/box/memory.limit_in_bytes", "7000000000\n");
  CHECK_INT(cpus(&p), 6);
  CHECK_INT(memory(&p), 7000000000);
  put(&p, "memory/memory.limit_in_bytes", "4000\n"); /* as where only a part is mounted */
  CHECK_INT(memory(&p), 4000);
}

TEST(nonsense_limits_nothing) {
  place p = tree("odd", "0\nx:y\n\n::\n0::a\n0::/a\n");
  put(&p, "a/memory.max", "many\n");
  put(&p, "a/cpu.max", "100000\n");
  CHECK_INT(memory(&p), 0);
  CHECK_INT(cpus(&p), 0);
  put(&p, "a/cpu.max", "100000 0\n");
  CHECK_INT(cpus(&p), 0);
  put(&p, "a/cpu.max", "-5 100000\n");
  CHECK_INT(cpus(&p), 0);
  put(&p, "a/memory.max", "");
  CHECK_INT(memory(&p), 0);
}

static void refused_over(const char *text) {
  CHECK(!pl_alloc(ctx(), (size_t)ctx()->mem.limit + 1));
  CHECK_HAS(ctx()->err, "out of memory: ");
  CHECK_HAS(ctx()->err, text);
}

TEST(the_limit_on_memory_comes_from_the_group_or_the_setting) {
  pl_ctx *c = ctx();
  CHECK_OK(pl_mem_start_limit(c, NULL, 0));
  CHECK_INT(c->mem.limit, 0);
  CHECK_OK(pl_mem_start_limit(c, "", 1000));
  CHECK_INT(c->mem.limit, 950);
  refused_over("over 950 bytes, which is what this container or control group allows less 5 %; "
               "use a smaller batch, allow it more memory or set PL_MEMORY");
  CHECK_OK(pl_mem_start_limit(c, "2000", 1000));
  CHECK_INT(c->mem.limit, 2000);
  refused_over("over the limit of 2.0 KiB that PL_MEMORY sets; use a smaller batch or raise it");
  c->mem.limit_by = PL_LIMIT_CALLER;
  refused_over("over the limit of 2.0 KiB; use a smaller batch or raise the limit");
  CHECK_OK(pl_mem_start_limit(c, "0", 1000));
  CHECK_INT(c->mem.limit, 0);
}

TEST(a_setting_of_memory_is_a_size_or_an_error) {
  static const struct {
    const char *text;
    int64_t bytes; /* -1: refused */
  } cases[] = {{"1", 1},
               {"3K", 3 << 10},
               {"3k", 3 << 10},
               {"512M", 512 << 20},
               {"8G", (int64_t)8 << 30},
               {"2T", (int64_t)2 << 40},
               {"9223372036854775807", INT64_MAX},
               {"9223372036854775808", -1},
               {"8388608T", -1},
               {"abc", -1},
               {"-1", -1},
               {" 1", -1},
               {"8 ", -1},
               {"1 G", -1},
               {"1GB", -1},
               {"1.5G", -1},
               {"G", -1}};
  pl_ctx *c = ctx();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    c->mem.limit = -1;
    pl_status st = pl_mem_start_limit(c, cases[i].text, 0);
    CHECK_INT(c->mem.limit, cases[i].bytes);
    CHECK_INT(st, cases[i].bytes < 0 ? PL_EINVAL : PL_OK);
    if (st != PL_OK) {
      CHECK_HAS(c->err, "PL_MEMORY is \"");
      CHECK_HAS(c->err, cases[i].text);
    }
  }
  c->mem.limit = 0;
}

/* Memory that is kept counts for the group as much as memory in use. */
TEST(what_is_kept_and_what_is_in_use_stay_below_the_limit) {
  enum { SMALL = 200 };
  const int64_t page = 2 << 20; /* of the arena */
  pl_ctx *c = ctx();
  void *p[SMALL];
  c->mem.limit = (int64_t)48 << 20;
  for (int i = 0; i < SMALL; i++) {
    p[i] = pl_alloc(c, 100000);
    REQUIRE(p[i]);
  }
  for (int i = 0; i < SMALL; i++) {
    pl_free(c, p[i]);
  }
  p[0] = pl_alloc(c, (size_t)40 << 20);
  REQUIRE(p[0]);
  CHECK(c->mem.live + pl_block_cache_bytes(c) <= c->mem.limit + page);
  pl_free(c, p[0]);
}
