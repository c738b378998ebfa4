/* decoder:score: rows that Lua tokenised become packed tensors, and those log-probabilities.
 *
 * Rows are as lua/perilune/rows.lua makes them: { ids = {...}, start = k }, k the 1-based
 * position of the first token that counts. Two rows that begin alike can be read as a family:
 * the common beginning once, then what each goes on with. Text is not known here. */
#include "bind/bind.h"
#include "bind/lm.h"

/* Pushes row i's ids; gives their number and `start`. */
static int64_t push_row(lua_State *L, int rows, int64_t i, int64_t *start) {
  lua_rawgeti(L, rows, i);
  if (lua_type(L, -1) != LUA_TTABLE) {
    luaL_error(L, "row %d is a %s; wanted { ids = {...}, start = k }", (int)i,
               luaL_typename(L, -1));
  }
  lua_getfield(L, -1, "start");
  *start = luaL_optinteger(L, -1, 2);
  lua_pop(L, 1);
  lua_getfield(L, -1, "ids");
  lua_remove(L, -2);
  return (int64_t)lua_rawlen(L, -1);
}

/* A row in the ids of all rows: n of them from `at` on; number `start` (from 1) is the first
 * that counts. */
typedef struct row {
  int64_t at, n, start;
} row;

static void check_row(lua_State *L, const pl_decoder *d, int64_t i, const row *r) {
  if (r->start < 2 || r->start > r->n) {
    luaL_error(L, "row %d: nothing to score: %d tokens, the first that counts is number %d "
               "(the first token of a row has nothing before it)", (int)i, (int)r->n,
               (int)r->start);
  }
  if (r->n > d->cfg.context) {
    luaL_error(L, "row %d has %d tokens; the context is %d (give max_length, or shorten it)",
               (int)i, (int)r->n, (int)d->cfg.context);
  }
}

typedef struct table {
  row *rows;
  int32_t *ids;
  int64_t n, width; /* width: of the longest row without its first token */
} table;

/* Reads the list of rows at idx; leaves two userdata on the stack that hold them. */
static table read_rows(lua_State *L, const pl_decoder *d, int idx) {
  table t = {.n = (int64_t)lua_rawlen(L, idx)};
  if (t.n == 0) {
    luaL_error(L, "score: there are no rows");
  }
  t.rows = lua_newuserdatauv(L, sizeof *t.rows * (size_t)t.n, 0);
  int64_t total = 0;
  for (int64_t i = 0; i < t.n; i++) {
    row *r = &t.rows[i];
    (void)push_row(L, idx, i + 1, &r->start);
    r->at = total;
    r->n = pl_check_ids(L, -1, i + 1);
    lua_pop(L, 1);
    check_row(L, d, i + 1, r);
    total += r->n;
    t.width = r->n - 1 > t.width ? r->n - 1 : t.width;
  }
  if (total > INT32_MAX / 2 || t.n * t.width > INT32_MAX / 2) {
    luaL_error(L, "score: %d rows are too many tokens for one call; pass them in parts", (int)t.n);
  }
  t.ids = lua_newuserdatauv(L, sizeof *t.ids * (size_t)total, 0);
  for (int64_t i = 0; i < t.n; i++) {
    int64_t start;
    (void)push_row(L, idx, i + 1, &start);
    for (int64_t k = 0; k < t.rows[i].n; k++) {
      lua_rawgeti(L, -1, k + 1);
      t.ids[t.rows[i].at + k] = (int32_t)lua_tointeger(L, -1);
      lua_pop(L, 1);
    }
    lua_pop(L, 1);
  }
  return t;
}

/* Fewer common tokens are not worth a sequence of their own. */
enum { SHARED_FROM = 4 };

/* How many tokens of two rows' beginnings are computed once: those in common before either's
 * first token that counts. */
static int64_t shared(const table *t, const row *a, const row *b) {
  const int64_t most = (a->start < b->start ? a->start : b->start) - 1;
  int64_t n = 0;
  while (n < most && t->ids[a->at + n] == t->ids[b->at + n]) {
    n++;
  }
  return n < SHARED_FROM ? 0 : n;
}

/* Packed rows in the making: n tokens, s sequences, m targets so far. */
typedef struct packing {
  const table *t;
  bool all;
  pl_lm_batch b;
  pl_tensor *row_of, *place, *mask;
  int64_t n, s, m;
} packing;

/* Tokens from..to-1 of a row as a sequence, unless there are none; gives the place of the first. */
static int64_t put_tokens(packing *p, const row *r, int64_t from, int64_t to, int64_t parent) {
  const int64_t first = p->n;
  for (int64_t k = from; k < to; k++) {
    pl_i32(p->b.ids)[p->n] = p->t->ids[r->at + k];
    pl_i32(p->b.pos)[p->n++] = (int32_t)k;
  }
  if (to > from) {
    pl_i32(p->b.parent)[p->s++] = (int32_t)parent;
    pl_i32(p->b.seq)[p->s] = (int32_t)p->n;
  }
  return first;
}

/* What row i predicts. Its first `common` tokens lie from `head` on, the others from `tail` on. */
static void put_targets(packing *p, int64_t i, int64_t common, int64_t head, int64_t tail) {
  const row *r = &p->t->rows[i];
  const int64_t width = p->t->width;
  for (int64_t k = p->all ? 1 : r->start - 1; k < r->n; k++) {
    const int64_t by = k - 1 < common ? head + k - 1 : tail + k - 1 - common;
    pl_i32(p->b.rows)[p->m] = (int32_t)by;
    pl_i32(p->b.targets)[p->m] = p->t->ids[r->at + k];
    pl_i32(p->row_of)[p->m] = (int32_t)i;
    pl_i32(p->place)[p->m++] = (int32_t)(i * width + k - 1);
  }
  for (int64_t k = r->start - 1; k < r->n; k++) {
    pl_f32(p->mask)[i * width + k - 1] = 1;
  }
}

/* A row's last token is read by nobody: it is only predicted. */
static void put_row(packing *p, int64_t i) {
  const row *r = &p->t->rows[i];
  put_targets(p, i, 0, 0, put_tokens(p, r, 0, r->n - 1, -1));
}

static void put_pair(packing *p, int64_t i, int64_t common) {
  const row *r = &p->t->rows[i];
  const int64_t parent = p->s;
  const int64_t head = put_tokens(p, r, 0, common, -1);
  for (int64_t j = 0; j < 2; j++) {
    put_targets(p, i + j, common, head, put_tokens(p, r + j, common, r[j].n - 1, parent));
  }
}

typedef struct sizes {
  int64_t tokens, targets, sequences;
} sizes;

static sizes measure(const table *t, bool all, bool share) {
  sizes z = {.tokens = 0};
  for (int64_t i = 0; i < t->n; i++) {
    const row *r = &t->rows[i];
    z.tokens += r->n - 1;
    z.targets += all ? r->n - 1 : r->n - r->start + 1;
    z.sequences++;
    const int64_t common = share && i % 2 == 1 ? shared(t, r - 1, r) : 0;
    if (common > 0) {
      z.tokens -= common;
      z.sequences += 1 - (r[-1].n - 1 == common) - (r->n - 1 == common);
    }
  }
  return z;
}

static pl_tensor *push_i32(lua_State *L, int64_t n) {
  pl_tensor *t = NULL;
  pl_lua_check(L, pl_tensor_new(pl_lua_ctx(L), PL_I32, 1, &n, &t));
  pl_push_tensor(L, t);
  return t;
}

/* d:score(rows, all, budget, share)
 *   -> flat [M], row_of i32 [M], place i32 [M], width, mask f32 [rows, width]
 * all: every token but a row's first counts, else those from `start` on. share: rows 1 and 2, 3
 * and 4 ... are pairs; what the two begin with is computed once. place: where an entry goes in a
 * [rows, width] table. mask: 1 where a token from `start` on is predicted. */
int pl_lua_score(lua_State *L) {
  const pl_decoder *d = pl_check_decoder(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  const bool all = lua_toboolean(L, 3);
  const int64_t budget = luaL_optinteger(L, 4, 8192);
  const bool share = lua_toboolean(L, 5);
  lua_settop(L, 5);
  pl_ctx *c = pl_lua_ctx(L);
  const table t = read_rows(L, d, 2);
  if (share && (all || t.n % 2 != 0)) {
    return luaL_error(L, "score: wanted pairs of rows with a prompt each, to share it");
  }
  const sizes z = measure(&t, all, share);
  packing p = {.t = &t, .all = all,
               .b = {.ids = push_i32(L, z.tokens), .pos = push_i32(L, z.tokens),
                     .seq = push_i32(L, z.sequences + 1), .parent = push_i32(L, z.sequences),
                     .rows = push_i32(L, z.targets), .targets = push_i32(L, z.targets)}};
  p.row_of = push_i32(L, z.targets);
  const int at_row_of = lua_gettop(L);
  p.place = push_i32(L, z.targets);
  const int64_t shape[2] = {t.n, t.width};
  pl_lua_check(L, pl_tensor_zeros(c, PL_F32, 2, shape, &p.mask));
  pl_push_tensor(L, p.mask);
  pl_i32(p.b.seq)[0] = 0;
  bool families = false;
  for (int64_t i = 0; i < t.n;) {
    const int64_t common = share && i % 2 == 0 ? shared(&t, &t.rows[i], &t.rows[i + 1]) : 0;
    if (common > 0) {
      put_pair(&p, i, common);
      i += 2;
    } else {
      put_row(&p, i++);
    }
    families = families || common > 0;
  }
  if (!families) {
    p.b.parent = NULL;
  }
  pl_tensor *flat = NULL;
  pl_lua_check(L, pl_decoder_score(c, d, &p.b, budget, &flat));
  pl_push_tensor(L, flat);
  lua_pushvalue(L, at_row_of);
  lua_pushvalue(L, at_row_of + 1);
  lua_pushinteger(L, t.width);
  lua_pushvalue(L, at_row_of + 2);
  return 5;
}
