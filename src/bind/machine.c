/* The part of core.base on the machine: memory and its limit, threads, the kernels in use, and what
 * the processor and its memory can do at most. */
#include <string.h>

#include "base/cgroup.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/par.h"
#include "bind/bind.h"
#include "kernels/isa.h"
#include "kernels/kernels.h"

static int memory(lua_State *L) {
  const pl_mem *m = &pl_lua_ctx(L)->mem;
  lua_createtable(L, 0, 3);
  lua_pushinteger(L, m->live);
  lua_setfield(L, -2, "live");
  lua_pushinteger(L, m->peak);
  lua_setfield(L, -2, "peak");
  lua_pushinteger(L, m->fresh);
  lua_setfield(L, -2, "fresh");
  lua_pushinteger(L, pl_rss_peak());
  lua_setfield(L, -2, "rss_peak");
  return 1;
}

/* memory_limit([bytes]) -> the limit, who set it: allocations beyond it fail with an error;
 * 0 = none. */
static int memory_limit(lua_State *L) {
  static const char *const by[] = {"caller", "PL_MEMORY", "group"};
  pl_mem *m = &pl_lua_ctx(L)->mem;
  if (!lua_isnoneornil(L, 1)) {
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 0, 1, "bytes must be 0 (no limit) or more");
    m->limit = n;
    m->limit_by = PL_LIMIT_CALLER;
  }
  lua_pushinteger(L, m->limit);
  lua_pushstring(L, by[m->limit_by]);
  return 2;
}

/* fail_at(n): the n-th allocation from now fails; for tests. */
static int fail_at(lua_State *L) {
  pl_lua_ctx(L)->mem.fail_at = luaL_checkinteger(L, 1);
  return 0;
}

static int threads(lua_State *L) {
  if (!lua_isnoneornil(L, 1)) {
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 1 && n <= 256, 1, "threads must be 1 to 256");
    pl_set_threads((int)n);
  }
  lua_pushinteger(L, pl_threads());
  return 1;
}

/* cores() -> how many this process may use, and for how many it has time, nil: no quota */
static int cores(lua_State *L) {
  const int quota = pl_cgroup_cpus(PL_CGROUP_ROOT, PL_CGROUP_SELF);
  lua_pushinteger(L, pl_cores());
  if (quota > 0) {
    lua_pushinteger(L, quota);
  } else {
    lua_pushnil(L);
  }
  return 2;
}

static int cpu_name(lua_State *L) {
  char name[128];
  pl_cpu_name(name);
  lua_pushstring(L, name);
  return 1;
}

static int probed(lua_State *L, double (*probe)(int64_t rounds)) {
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 1, 1, "rounds must be at least 1");
  lua_pushnumber(L, probe(n));
  return 1;
}

/* fma_probe(rounds) -> operations done; time it for the machine's peak. */
static int fma_probe(lua_State *L) {
  return probed(L, pl_fma_probe);
}

/* bf16_probe(rounds) -> the same for products of bf16, 0 where no instruction does them. */
static int bf16_probe(lua_State *L) {
  return probed(L, pl_bf16_probe);
}

/* int8_probe(rounds) -> the same for products of bytes. */
static int int8_probe(lua_State *L) {
  return probed(L, pl_int8_probe);
}

/* read_probe(bytes) -> bytes a second that all threads together read from a block of that
 * size, the best of some rounds: of memory where it is much larger than the caches. */
static int read_probe(lua_State *L) {
  lua_Integer bytes = luaL_checkinteger(L, 1);
  luaL_argcheck(L, bytes > 0 && bytes <= (lua_Integer)1 << 36, 1, "wanted 1 byte to 64 GB");
  void *memory = pl_alloc_zero(pl_lua_ctx(L), (size_t)bytes);
  pl_lua_check(L, memory == NULL ? PL_ENOMEM : PL_OK);
  memset(memory, 1, (size_t)bytes); /* pages of zeros would all be one page */
  double best = 0;
  for (int i = 0; i < 8; i++) {
    double start = pl_now();
    pl_read_probe(bytes, memory);
    double rate = (double)bytes / (pl_now() - start);
    best = rate > best ? rate : best;
  }
  pl_free(pl_lua_ctx(L), memory);
  lua_pushnumber(L, best);
  return 1;
}

/* isa() -> title of the kernels in use, their key, list of the keys this processor has */
static int isa(lua_State *L) {
  lua_pushstring(L, pl_isa_title(pl_isa_used()));
  lua_pushstring(L, pl_isa_key(pl_isa_used()));
  lua_newtable(L);
  for (int i = PL_ISA_BASELINE; i < PL_ISA_COUNT; i++) {
    if (pl_isa_has((pl_isa)i)) {
      lua_pushstring(L, pl_isa_key((pl_isa)i));
      lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    }
  }
  return 3;
}

void pl_lua_machine(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"memory", memory},
      {"memory_limit", memory_limit},
      {"fail_at", fail_at},
      {"threads", threads},
      {"cores", cores},
      {"cpu_name", cpu_name},
      {"fma_probe", fma_probe},
      {"bf16_probe", bf16_probe},
      {"int8_probe", int8_probe},
      {"read_probe", read_probe},
      {"isa", isa},
      {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
