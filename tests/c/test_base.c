/* Status, memory, buffers, random numbers, parallel loops, hashes, clock. */
#include "harness.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem_cache.h"
#include "base/par.h"
#include "base/profile.h"
#include "base/rng.h"

TEST(errors_are_prefixed_and_cut) {
  pl_ctx *c = ctx();
  CHECK_STATUS(pl_fail(c, PL_EINVAL, "bad %d", 3), PL_EINVAL);
  CHECK_STR(c->err, "bad 3");
  CHECK_STATUS(pl_fail_in(c, PL_EIO, "file %s", "x"), PL_EIO);
  CHECK_STR(c->err, "file x: bad 3");
  CHECK_STATUS(pl_fail(c, PL_EIO, "again: %s", c->err), PL_EIO); /* its own text as argument */
  CHECK_STR(c->err, "again: file x: bad 3");
  char big[3000];
  memset(big, 'a', sizeof big - 1);
  big[sizeof big - 1] = 0;
  pl_fail(c, PL_EIO, "%s", big);
  CHECK_INT(strlen(c->err), PL_ERR_MAX - 1);
  pl_fail_in(c, PL_EIO, "%s", big);
  CHECK_INT(strlen(c->err), PL_ERR_MAX - 1);
}

TEST(interrupt_flag) {
  pl_interrupt_clear();
  CHECK_OK(pl_check_interrupt(ctx()));
  pl_interrupt_set();
  CHECK(pl_interrupt_pending());
  CHECK_STATUS(pl_check_interrupt(ctx()), PL_EINTR);
  CHECK_STR(ctx()->err, "interrupted");
  pl_interrupt_clear();
  CHECK(!pl_interrupt_pending());
}

TEST(memory_is_counted_and_aligned) {
  pl_ctx *c = ctx();
  static const size_t sizes[] = {0, 1, 63, 64, 65, 1000, 32767, 32768, 32769, 100000, 3000000};
  void *p[11];
  int64_t live = 0;
  for (int i = 0; i < 11; i++) {
    p[i] = pl_alloc(c, sizes[i]);
    REQUIRE(p[i]);
    CHECK_INT((uintptr_t)p[i] % 64, 0);
    memset(p[i], i, sizes[i]);
    live += (int64_t)sizes[i];
    CHECK_INT(c->mem.live, live);
  }
  for (int i = 0; i < 11; i++) {
    unsigned char *q = p[i];
    CHECK(sizes[i] == 0 || (q[0] == i && q[sizes[i] - 1] == i));
    pl_free(c, p[i]);
  }
  pl_free(c, NULL);
  CHECK_INT(c->mem.live, 0);
  CHECK_INT(c->mem.peak, live);
}

#ifndef PL_SANITIZE
TEST(big_blocks_are_kept_and_reused) {
  pl_ctx *c = ctx();
  void *p = pl_alloc(c, 5 << 20);
  pl_free(c, p);
  CHECK(pl_block_cache_bytes(c) >= 5 << 20);
  CHECK_INT(c->mem.live, 0);
  void *q = pl_alloc(c, (5 << 20) - 100);
  CHECK(p == q);
  CHECK(pl_block_cache_bytes(c) < 2 << 20); /* the rest of the last page */
  CHECK_INT(c->mem.live, (5 << 20) - 100);
  pl_free(c, q);
  pl_mem_trim(c);
  CHECK_INT(pl_block_cache_bytes(c), 0);
  p = pl_alloc(c, 100);
  pl_free(c, p);
  CHECK_INT(pl_block_cache_bytes(c), 0); /* small blocks are malloc's business */
  p = pl_alloc(c, 100000);
  pl_free(c, p);
  CHECK(pl_block_cache_bytes(c) >= 100000);
  q = pl_alloc(c, 99000); /* the same class */
  CHECK(p == q);
  CHECK_INT(pl_block_cache_bytes(c), 0);
  pl_free(c, q);
}

/* What a step of training does: activations come forward; backward they go one by one while
 * gradients of other sizes come, which stay until the step ends. */
TEST(a_block_is_cut_from_what_other_sizes_left) {
  pl_ctx *c = ctx();
  enum { LAYERS = 12, PARTS = 3 };
  static const size_t sizes[PARTS] = {3000000, 4700000, 1600000};
  void *act[LAYERS][PARTS];
  void *grad[LAYERS];
  int64_t fresh = 0;
  for (int step = 0; step < 4; step++) {
    fresh = c->mem.fresh;
    for (int i = 0; i < LAYERS; i++) {
      for (int j = 0; j < PARTS; j++) {
        act[i][j] = pl_alloc(c, sizes[j] + (size_t)i);
        REQUIRE(act[i][j]);
        memset(act[i][j], i + j, sizes[j]);
      }
    }
    for (int i = LAYERS - 1; i >= 0; i--) {
      grad[i] = pl_alloc(c, 9200000);
      REQUIRE(grad[i]);
      memset(grad[i], 100 + i, 9200000);
      for (int j = 0; j < PARTS; j++) {
        const char *p = act[i][j];
        CHECK(p[0] == i + j && p[sizes[j] - 1] == i + j); /* no block in another */
        pl_free(c, act[i][j]);
      }
    }
    for (int i = 0; i < LAYERS; i++) {
      const char *p = grad[i];
      CHECK(p[0] == 100 + i && p[9200000 - 1] == 100 + i);
      pl_free(c, grad[i]);
    }
  }
  CHECK_INT(c->mem.fresh - fresh, 0); /* the last step */
  CHECK(pl_block_cache_bytes(c) < c->mem.peak * 11 / 10);
}

TEST(kept_blocks_stay_within_their_bound) {
  pl_ctx *c = ctx();
  /* 40 sizes, one at a time: all out of the room of the largest */
  for (size_t i = 0; i < 40; i++) {
    void *p = pl_alloc(c, ((size_t)16 + i) << 20);
    REQUIRE(p);
    pl_free(c, p);
  }
  CHECK(pl_block_cache_bytes(c) >= (int64_t)55 << 20);
  CHECK(pl_block_cache_bytes(c) <= (int64_t)58 << 20);
  /* a hole of 599 MiB with blocks on both sides is too small for 600 */
  void *p = pl_alloc(c, (size_t)600 << 20);
  void *end = pl_alloc(c, 1 << 20);
  pl_free(c, p);
  void *begin = pl_alloc(c, 1 << 20);
  p = pl_alloc(c, (size_t)600 << 20);
  REQUIRE(begin && p && end);
  CHECK(pl_block_cache_bytes(c) <= c->mem.peak / 4);
  pl_free(c, p);
  pl_free(c, begin);
  pl_free(c, end);
  /* blocks below what the arena has, in classes */
  enum { N = 4000 };
  void **many = calloc(N, sizeof *many);
  REQUIRE(many);
  for (int i = 0; i < N; i++) {
    many[i] = pl_alloc(c, 200 << 10);
    CHECK(many[i] != NULL);
  }
  for (int i = 0; i < N; i++) {
    pl_free(c, many[i]);
  }
  free(many);
  CHECK(pl_block_cache_bytes(c) <= c->mem.peak + c->mem.peak / 4);
}

TEST(blocks_that_come_and_go_at_random_do_not_meet) {
  pl_ctx *c = ctx();
  enum { SLOTS = 60, WORDS = 8 };
  uint64_t *at[SLOTS] = {NULL};
  size_t n[SLOTS];
  for (uint64_t i = 0; i < 4000; i++) {
    const uint64_t s = (uint64_t)(SLOTS * pl_uniform(1, 0, i));
    if (i % 777 == 776) {
      pl_mem_trim(c);
    }
    for (size_t k = 0; at[s] && k < WORDS; k++) { /* what was written all over it */
      CHECK(at[s][k * (n[s] - 1) / (WORDS - 1)] == s + k);
    }
    pl_free(c, at[s]);
    at[s] = NULL;
    if (pl_uniform(1, 1, i) < 0.8) {
      n[s] = (size_t)exp(9 + 5 * pl_uniform(1, 2, i)); /* 64 KiB to 10 MiB */
      at[s] = pl_alloc(c, 8 * n[s]);
      REQUIRE(at[s]);
      for (size_t k = 0; k < WORDS; k++) {
        at[s][k * (n[s] - 1) / (WORDS - 1)] = s + k;
      }
    }
  }
  for (int s = 0; s < SLOTS; s++) {
    pl_free(c, at[s]);
  }
  CHECK(pl_block_cache_bytes(c) < 2 * c->mem.peak);
  pl_mem_trim(c);
  CHECK_INT(pl_block_cache_bytes(c), 0);
}

TEST(given_back_memory_comes_again) {
  pl_ctx *c = ctx();
  char *p = pl_alloc(c, 10 << 20);
  char *q = pl_alloc(c, 10 << 20);
  REQUIRE(p && q);
  memset(q, 7, 10 << 20);
  pl_free(c, p);
  pl_mem_trim(c);
  CHECK(pl_block_cache_bytes(c) < 4 << 20); /* the pages that q's ends lie in */
  const int64_t fresh = c->mem.fresh;
  p = pl_alloc_zero(c, 10 << 20);
  REQUIRE(p);
  CHECK_INT(c->mem.fresh, fresh + 1);
  for (int i = 0; i < 10 << 20; i += 4096) {
    CHECK(p[i] == 0 && q[i] == 7);
  }
  pl_free(c, p);
  pl_free(c, q);
}

/* Lowers the addresses this process may have to so many MiB more than it uses. */
static void limit_addresses(long mib) {
  FILE *f = fopen("/proc/self/statm", "r");
  long pages = 0;
  if (!f || fscanf(f, "%ld", &pages) != 1) {
    _exit(3);
  }
  fclose(f);
  struct rlimit r = {(rlim_t)pages * 4096 + ((rlim_t)mib << 20), RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &r);
}

static void arena_at_random(pl_arena *a, size_t most, int times);

/* A span for nearly every block, until there are no addresses left. */
TEST(arena_of_many_small_spans) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    limit_addresses(60);
    pl_arena *a = pl_arena_new();
    arena_at_random(a, 3 << 20, 2000);
    pl_arena_trim(a);
    const bool clean = a && pl_arena_kept(a) == 0;
    pl_arena_close(a);
    _exit(clean && harness.failures == 0 ? 0 : 1);
  }
  int status = -1;
  waitpid(pid, &status, 0);
  CHECK_INT(status, 0);
}

/* What others map beside the arena is left alone: a block takes what it needs, or a quarter of
 * what may be had. */
TEST(arena_leaves_addresses_to_others) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    limit_addresses(4 << 10);
    void *p = pl_alloc(ctx(), 1 << 20);
    void *others = mmap(NULL, (size_t)2 << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    _exit(p && others != MAP_FAILED ? 0 : 1);
  }
  int status = -1;
  waitpid(pid, &status, 0);
  CHECK_INT(status, 0);
}

TEST(more_than_there_is_is_refused) {
  CHECK(!pl_alloc(ctx(), (size_t)4 << 40));
  CHECK_HAS(ctx()->err, "out of memory: 4.0 TiB wanted");
}

TEST(no_memory_left_gives_the_kept_blocks_back) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    pl_ctx *c = ctx();
    limit_addresses(300);
    void *p = pl_alloc(c, (size_t)200 << 20);
    pl_free(c, p);
    p = pl_alloc(c, (size_t)290 << 20); /* only fits where the 200 MiB were */
    bool first = p != NULL;
    void *q = pl_alloc(c, (size_t)400 << 20);
    _exit(first && !q && strstr(c->err, "out of memory: 400.0 MiB wanted") ? 0 : 1);
  }
  int status = -1;
  waitpid(pid, &status, 0);
  CHECK_INT(status, 0);
}
#endif

/* Blocks of an arena that come and go, each full of a byte of its own; they are whole and apart
 * all the time. */
static void arena_at_random(pl_arena *a, size_t most, int times) {
  enum { SLOTS = 24 };
  pl_piece *held[SLOTS] = {NULL};
  for (int i = 0; i < times; i++) {
    const int s = (int)(SLOTS * pl_uniform(2, 0, (uint64_t)i));
    if (held[s] != NULL) {
      const unsigned char *at = pl_piece_at(held[s]);
      const size_t end = pl_piece_bytes(held[s]) - 1;
      CHECK(at[0] == s && at[end / 2] == s && at[end] == s);
      pl_arena_give(a, held[s]);
      held[s] = NULL;
    }
    if (i % 50 == 49) {
      pl_arena_trim(a);
    }
    bool fresh;
    if (pl_uniform(2, 1, (uint64_t)i) < 0.7) {
      const double part = pl_uniform(2, 2, (uint64_t)i);
      held[s] = pl_arena_take(a, (size_t)((double)most * part) + 1, &fresh);
    }
    if (held[s] != NULL) {
      memset(pl_piece_at(held[s]), s, pl_piece_bytes(held[s]));
    }
  }
  for (int s = 0; s < SLOTS; s++) {
    if (held[s] != NULL) {
      pl_arena_give(a, held[s]);
    }
  }
}

TEST(arena_cuts_and_joins) {
  pl_arena *a = pl_arena_new();
  REQUIRE(a);
  arena_at_random(a, 3 << 20, 600);
  CHECK(pl_arena_kept(a) > 0 && pl_arena_drop_oldest(a));
  pl_arena_trim(a);
  CHECK_INT(pl_arena_kept(a), 0);
  CHECK(!pl_arena_drop_oldest(a));
  pl_arena_close(a);
}

TEST(memory_limit_is_respected) {
  pl_ctx *c = ctx();
  c->mem.limit = 1000;
  void *p = pl_alloc(c, 600);
  CHECK(p);
  CHECK(!pl_alloc(c, 401));
  CHECK_HAS(c->err, "over the limit of 1000 bytes");
  void *q = pl_alloc(c, 400);
  CHECK(q);
  CHECK(!pl_realloc(c, q, 401));
  CHECK_INT(c->mem.live, 1000);
  CHECK_INT(c->mem.peak, 1000);
  pl_free(c, p);
  q = pl_realloc(c, q, 600); /* old and new exist side by side while it copies */
  CHECK(q);
  CHECK_INT(c->mem.live, 600);
  pl_free(c, q);
}

TEST(realloc_keeps_the_contents) {
  pl_ctx *c = ctx();
  size_t n = 10;
  unsigned char *p = pl_realloc(c, NULL, n);
  REQUIRE(p);
  for (size_t i = 0; i < n; i++) {
    p[i] = (unsigned char)i;
  }
  while (n < 5000000) {
    size_t more = n * 3 / 2;
    unsigned char *q = pl_realloc(c, p, more);
    REQUIRE(q);
    p = q;
    for (size_t i = n; i < more; i++) {
      p[i] = (unsigned char)i;
    }
    n = more;
    CHECK_INT(c->mem.live, n);
  }
  size_t wrong = 0;
  for (size_t i = 0; i < n; i++) {
    wrong += p[i] != (unsigned char)i;
  }
  CHECK_INT(wrong, 0);
  p = pl_realloc(c, p, 7);
  REQUIRE(p);
  CHECK_INT(p[6], 6);
  CHECK_INT(c->mem.live, 7);
  pl_free(c, p);
}

TEST(the_nth_allocation_fails) {
  pl_ctx *c = ctx();
  c->mem.fail_at = 3;
  void *a = pl_alloc(c, 8);
  void *b = pl_alloc_zero(c, 8);
  CHECK(a && b);
  CHECK(!pl_alloc(c, 8));
  CHECK_HAS(c->err, "out of memory");
  char *d = pl_strdup(c, "text");
  CHECK_STR(d, "text");
  pl_free(c, a);
  pl_free(c, b);
  pl_free(c, d);
}

TEST(sizes_that_overflow_are_refused) {
  pl_ctx *c = ctx();
  size_t out = 0;
  CHECK_OK(pl_size_mul(c, 1u << 20, 1u << 20, &out));
  CHECK_INT(out, (long long)1 << 40);
  CHECK_STATUS(pl_size_mul(c, SIZE_MAX, 2, &out), PL_EINVAL);
  CHECK_STATUS(pl_size_mul(c, (size_t)1 << 62, 2, &out), PL_EINVAL);
  CHECK(!pl_alloc(c, SIZE_MAX));
  CHECK(!pl_alloc(c, PTRDIFF_MAX));
  CHECK(!pl_alloc(c, (size_t)1 << 55));
  CHECK_HAS(c->err, "out of memory");
}

static pl_status grow_buffer(void *arg) {
  pl_ctx *c = ctx();
  pl_buf *b = arg;
  pl_status st = PL_OK;
  for (int i = 0; i < 2000 && st == PL_OK; i++) {
    st = pl_buf_printf(c, b, "%d,", i);
  }
  pl_buf_free(c, b);
  return st;
}

TEST(buffers_grow_to_their_maximum) {
  pl_ctx *c = ctx();
  pl_buf b;
  pl_buf_init(&b, 10);
  CHECK(!b.data);
  CHECK_OK(pl_buf_puts(c, &b, "12345"));
  CHECK_OK(pl_buf_printf(c, &b, "%s", "67890"));
  CHECK_STR(b.data, "1234567890");
  CHECK_STATUS(pl_buf_add(c, &b, "x", 1), PL_EINVAL);
  CHECK_HAS(c->err, "maximum of 10");
  CHECK_STATUS(pl_buf_printf(c, &b, "%d", 1), PL_EINVAL);
  CHECK_STR(b.data, "1234567890");
  CHECK_OK(pl_buf_add(c, &b, NULL, 0));
  pl_buf_reset(&b);
  CHECK_STR(b.data, "");
  CHECK_STATUS(pl_buf_add(c, &b, "x", SIZE_MAX), PL_EINVAL);
  CHECK_OK(pl_buf_add(c, &b, "a\0b", 3));
  CHECK_INT(b.len, 3);
  pl_buf_free(c, &b);
  pl_buf_init(&b, SIZE_MAX);
  CHECK(fail_each_alloc(grow_buffer, &b) > 3);
}

TEST(philox_gives_the_published_words) {
  /* Random123 1.14.0, tests/kat_vectors, philox4x32 10 */
  static const struct {
    uint64_t index, stream, seed;
    uint32_t want[4];
  } t[] = {
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822,
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (int i = 0; i < 3; i++) {
    uint32_t w[4];
    pl_philox(t[i].seed, t[i].stream, t[i].index, w);
    for (int j = 0; j < 4; j++) {
      CHECK_INT(w[j], t[i].want[j]);
    }
  }
}

TEST(uniform_and_normal_have_their_moments) {
  const int n = quick_mode() ? 20000 : 200000;
  double s[4] = {0}, u1 = 0, u2 = 0, low = 1, high = 0;
  for (int i = 0; i < n; i++) {
    double u = pl_uniform(1, 2, (uint64_t)i);
    double z = pl_normal(1, 3, (uint64_t)i);
    low = u < low ? u : low;
    high = u > high ? u : high;
    u1 += u;
    u2 += u * u;
    for (int k = 0; k < 4; k++) {
      s[k] += pow(z, k + 1);
    }
  }
  double tol = 6 / sqrt(n); /* more than five standard errors of each */
  CHECK(low >= 0 && high < 1 && low < 0.001 && high > 0.999);
  CHECK_NEAR(u1 / n, 0.5, tol * 0.3);
  CHECK_NEAR(u2 / n, 1.0 / 3, tol * 0.3);
  CHECK_NEAR(s[0] / n, 0, tol);
  CHECK_NEAR(s[1] / n, 1, tol * 1.5);
  CHECK_NEAR(s[2] / n, 0, tol * 4);
  CHECK_NEAR(s[3] / n, 3, tol * 10);
  CHECK(pl_uniform(1, 2, 3) == pl_uniform(1, 2, 3));
  CHECK(pl_uniform(1, 2, 3) != pl_uniform(2, 2, 3));
  CHECK(pl_uniform(1, 2, 3) != pl_uniform(1, 3, 3));
}

TEST(permutations_are_fair) {
  int64_t p[1000];
  bool seen[1000] = {false};
  pl_permutation(7, 1, 1000, p);
  int64_t moved = 0;
  for (int i = 0; i < 1000; i++) {
    REQUIRE(p[i] >= 0 && p[i] < 1000 && !seen[p[i]]);
    seen[p[i]] = true;
    moved += p[i] != i;
  }
  CHECK(moved > 980);
  int count[6] = {0};
  for (uint64_t s = 0; s < 6000; s++) {
    pl_permutation(s, 0, 3, p);
    count[p[0] * 2 + (p[1] > p[2])]++;
  }
  for (int i = 0; i < 6; i++) {
    CHECK_NEAR(count[i], 1000, 150); /* five standard deviations */
  }
  pl_permutation(1, 1, 0, p);
  p[0] = 5;
  pl_permutation(1, 1, 1, p);
  CHECK_INT(p[0], 0);
}

typedef struct sums {
  const float *x;
  int64_t n, size;
  float part[64];
  int calls[64];
  int worst_id;
} sums;

static void sum_block(void *arg, int64_t block) {
  sums *s = arg;
  int64_t end = (block + 1) * s->size < s->n ? (block + 1) * s->size : s->n;
  float a = 0;
  for (int64_t i = block * s->size; i < end; i++) {
    a += s->x[i];
  }
  s->part[block] = a;
  s->calls[block]++;
  if (pl_thread_id() < 0 || pl_thread_id() >= pl_threads()) {
    s->worst_id = pl_thread_id();
  }
}

static void outer_block(void *arg, int64_t block) {
  (void)block;
  pl_parallel(64, sum_block, (sums *)arg + block);
}

enum { ITEMS = 100, PHASES = 3 };

typedef struct taking {
  atomic_int taken[PHASES][ITEMS];
  atomic_int too_early; /* an item of a phase that began before the last one had ended */
} taking;

static void take_items(void *arg, const pl_member *me) {
  taking *t = arg;
  for (int phase = 0; phase < PHASES; phase++) {
    for (int64_t i = pl_team_take(me); i < ITEMS; i = pl_team_take(me)) {
      atomic_fetch_add(&t->taken[phase][i], 1);
      for (int k = 0; phase > 0 && k < ITEMS; k++) {
        atomic_fetch_add(&t->too_early, atomic_load(&t->taken[phase - 1][k]) != 1);
      }
    }
    pl_team_meet(me);
  }
}

TEST(a_team_takes_every_item_once) {
  const int before = pl_threads();
  static const int threads[] = {1, 2, 3, 7};
  for (size_t k = 0; k < 4; k++) {
    pl_set_threads(threads[k]);
    for (int repeat = 0; repeat < 5; repeat++) {
      taking t = {.too_early = 0};
      pl_team_run(take_items, &t);
      for (int i = 0; i < PHASES * ITEMS; i++) {
        CHECK_INT(t.taken[i / ITEMS][i % ITEMS], 1);
      }
      CHECK_INT(t.too_early, 0);
    }
  }
  pl_set_threads(before);
}

TEST(parallel_loops_give_the_same_on_any_number_of_threads) {
  pl_ctx *c = ctx();
  int before = pl_threads();
  const int64_t n = 64 * 1000 - 17;
  float *x = pl_alloc(c, (size_t)n * sizeof *x);
  REQUIRE(x);
  for (int64_t i = 0; i < n; i++) {
    x[i] = (float)pl_normal(5, 0, (uint64_t)i);
  }
  sums first = {.x = x, .n = n, .size = 1000, .worst_id = 0};
  pl_set_threads(1);
  CHECK_INT(pl_threads(), 1);
  pl_parallel(64, sum_block, &first);
  for (int threads = 2; threads <= 4; threads++) {
    for (int repeat = 0; repeat < 5; repeat++) {
      sums s = {.x = x, .n = n, .size = 1000};
      pl_set_threads(threads);
      pl_parallel(64, sum_block, &s);
      CHECK(memcmp(s.part, first.part, sizeof s.part) == 0);
      CHECK_INT(s.worst_id, 0);
      for (int i = 0; i < 64; i++) {
        CHECK_INT(s.calls[i], 1);
      }
    }
  }
  sums two[2] = {{.x = x, .n = n, .size = 1000}, {.x = x, .n = n, .size = 1000}};
  pl_parallel(2, outer_block, two); /* nested loops run inside their block */
  CHECK(memcmp(two[0].part, first.part, sizeof first.part) == 0);
  CHECK(memcmp(two[1].part, first.part, sizeof first.part) == 0);
  pl_parallel(0, sum_block, NULL);
  pl_parallel(-1, sum_block, NULL);
  pl_set_threads(0);
  CHECK_INT(pl_threads(), 1);
  pl_set_threads(100000);
  CHECK_INT(pl_threads(), 256);
  pl_set_threads(before);
  pl_free(c, x);
}

static void check_sha(const char *text, size_t n, size_t step, const char *want) {
  pl_sha256 s;
  char hex[65];
  pl_sha256_init(&s);
  for (size_t i = 0; i < n; i += step) {
    pl_sha256_add(&s, text + i, n - i < step ? n - i : step);
  }
  pl_sha256_hex(&s, hex);
  CHECK_STR(hex, want);
}

TEST(sha256_gives_the_published_digests) {
  /* FIPS 180-4 examples, NIST CSRC */
  static const char long_text[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  static const char zero[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
  static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  static const char two[] = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";
  static const char mega[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
  check_sha("", 0, 1, zero);
  check_sha("abc", 3, 3, abc);
  check_sha("abc", 3, 1, abc);
  for (size_t step = 1; step <= 56; step++) {
    check_sha(long_text, 56, step, two);
  }
  char *a = malloc(1000000);
  REQUIRE(a);
  memset(a, 'a', 1000000);
  check_sha(a, 1000000, 1000000, mega);
  check_sha(a, 1000000, 997, mega);
  free(a);
}

static uint32_t crc_bits(const unsigned char *p, size_t n) {
  uint32_t crc = 0xffffffff;
  for (size_t i = 0; i < n; i++) {
    crc ^= p[i];
    for (int k = 0; k < 8; k++) {
      crc = crc >> 1 ^ (0x82f63b78 & -(crc & 1));
    }
  }
  return ~crc;
}

TEST(crc32c_gives_the_published_sums) {
  unsigned char t[257];
  memset(t, 0, 32);
  CHECK_INT(pl_crc32c(0, t, 32), 0x8a9136aa); /* RFC 3720, B.4 */
  memset(t, 0xff, 32);
  CHECK_INT(pl_crc32c(0, t, 32), 0x62a8ab43);
  CHECK_INT(pl_crc32c(0, "123456789", 9), 0xe3069283);
  CHECK_INT(pl_crc32c(0, "", 0), 0);
  for (size_t i = 0; i < sizeof t; i++) {
    t[i] = (unsigned char)(i * i + 3);
  }
  for (size_t n = 0; n <= sizeof t; n++) {
    uint32_t want = crc_bits(t, n);
    CHECK_INT(pl_crc32c(0, t, n), want);
    CHECK_INT(pl_crc32c(pl_crc32c(0, t, n / 3), t + n / 3, n - n / 3), want);
  }
}

TEST(the_clock_runs) {
  double a = pl_now();
  double b = pl_now();
  CHECK(b >= a && b < a + 5);
  CHECK(pl_walltime() > 1.6e9);
  CHECK(pl_rss_peak() > 100000);
  char name[128];
  pl_cpu_name(name);
  CHECK(strlen(name) > 8);
}

static const pl_profile_row *row_named(const pl_ctx *c, const char *name) {
  for (int i = 0; i < c->profile->n; i++) {
    if (strcmp(c->profile->rows[i].name, name) == 0) {
      return &c->profile->rows[i];
    }
  }
  return NULL;
}

static void wait_ms(double ms) {
  for (double end = pl_now() + ms * 1e-3; pl_now() < end;) {
  }
}

TEST(a_profile_counts_what_is_inside_once) {
  pl_ctx *c = ctx();
  pl_profile_enter(c, "off", false); /* nothing is on: nothing happens */
  pl_profile_leave(c, (pl_work){0});
  CHECK_OK(pl_profile_start(c));
  const double began = pl_now();
  pl_profile_enter(c, "outer", true);
  wait_ms(1);
  for (int i = 0; i < 2; i++) {
    pl_profile_enter(c, "inner", false); /* used by a backward: counts as one */
    wait_ms(2);
    pl_profile_work(c, 10, 0);
    pl_profile_leave(c, (pl_work){.bytes = 5});
  }
  pl_profile_work(c, 3, 0);
  pl_profile_leave(c, (pl_work){.made = 7});
  const double all = pl_now() - began;
  CHECK_INT(c->profile->n, 2);
  const pl_profile_row *outer = row_named(c, "outer");
  const pl_profile_row *inner = row_named(c, "inner");
  REQUIRE(outer != NULL && inner != NULL);
  CHECK(outer->calls[0] == 0 && outer->calls[1] == 1 && outer->seconds[0] == 0);
  CHECK(inner->calls[0] == 0 && inner->calls[1] == 2);
  CHECK(outer->within == NULL && strcmp(inner->within, "outer") == 0);
  CHECK(inner->seconds[1] >= 4e-3 && outer->seconds[1] >= 1e-3);
  CHECK(outer->seconds[1] + inner->seconds[1] <= all);
  CHECK(outer->work.flop == 3 && outer->work.made == 7);
  CHECK(inner->work.flop == 20 && inner->work.bytes == 10);
  pl_profile_stop(c);
  CHECK(c->profile == NULL);
}

TEST(a_profile_survives_depth_and_many_names) {
  pl_ctx *c = ctx();
  static char names[2 * PL_PROFILE_ROWS][8];
  CHECK_OK(pl_profile_start(c));
  pl_profile_leave(c, (pl_work){0}); /* nothing was entered */
  for (int i = 0; i < 2 * PL_PROFILE_DEPTH; i++) {
    pl_profile_enter(c, "deep", false);
  }
  pl_profile_work(c, 1, 0);
  for (int i = 0; i < 2 * PL_PROFILE_DEPTH; i++) {
    pl_profile_leave(c, (pl_work){0});
  }
  CHECK_INT(c->profile->depth, 0);
  CHECK_INT(c->profile->n, 2); /* "deep", and "deep" inside "deep" */
  CHECK_INT(c->profile->rows[0].calls[0], 1);
  CHECK_INT(c->profile->rows[1].calls[0], PL_PROFILE_DEPTH - 1);
  for (int i = 0; i < 2 * PL_PROFILE_ROWS; i++) {
    snprintf(names[i], sizeof names[i], "n%d", i);
    pl_profile_enter(c, names[i], false);
    pl_profile_leave(c, (pl_work){.flop = 1});
  }
  CHECK_INT(c->profile->n, PL_PROFILE_ROWS);
  double flop = 0;
  for (int i = 0; i < c->profile->n; i++) {
    flop += c->profile->rows[i].work.flop;
  }
  CHECK(flop == 2 * PL_PROFILE_ROWS + 1);
  pl_profile_stop(c);
}
