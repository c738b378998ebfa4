/* core.lm: the decoder, its weights and the generator for Lua (scoring is in score.c).
 * It checks arguments and hands them to lm/; it must not know text or file names. */
#include <string.h>

#include "base/hash.h"
#include "base/profile.h"
#include "base/rng.h"
#include "bind/bind.h"
#include "bind/lm.h"
#include "lm/decoder.h"
#include "lm/generate.h"

#define DECODER_NAME "perilune.Decoder"
#define GENERATOR_NAME "perilune.Generator"

/* ---- configuration ---- */

static int64_t field_int(lua_State *L, int idx, const char *name) {
  lua_getfield(L, idx, name);
  int ok = 0;
  const lua_Integer v = lua_tointegerx(L, -1, &ok);
  if (!ok) {
    luaL_error(L, "decoder: %s is missing or not an integer", name);
  }
  lua_pop(L, 1);
  return v;
}

static int64_t field_optint(lua_State *L, int idx, const char *name) {
  const int kind = lua_getfield(L, idx, name);
  lua_pop(L, 1);
  return kind == LUA_TNIL ? 0 : field_int(L, idx, name);
}

static double field_num(lua_State *L, int idx, const char *name) {
  lua_getfield(L, idx, name);
  int ok = 0;
  const double v = lua_tonumberx(L, -1, &ok);
  if (!ok) {
    luaL_error(L, "decoder: %s is missing or not a number", name);
  }
  lua_pop(L, 1);
  return v;
}

static bool field_bool(lua_State *L, int idx, const char *name) {
  lua_getfield(L, idx, name);
  const bool v = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return v;
}

/* Which of the NULL-ended names the field is; 0 where it is absent. */
static int field_choice(lua_State *L, int idx, const char *name, const char *const *names) {
  int found = 0;
  if (lua_getfield(L, idx, name) != LUA_TNIL) {
    const char *s = luaL_tolstring(L, -1, NULL);
    while (names[found] != NULL && strcmp(names[found], s) != 0) {
      found++;
    }
    if (names[found] == NULL) {
      luaL_error(L, "decoder: %s is \"%s\"; wanted \"%s\" or \"%s\"", name, s, names[0], names[1]);
    }
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return found;
}

/* A decoder's configuration, as models/FAMILY.lua writes it: sizes, eps, theta and tied; and
 * where it is no Llama norm = "layer", act = "gelu_tanh", learned_pos, attention_bias, mlp_bias,
 * window. */
static pl_lm_config check_config(lua_State *L, int idx) {
  static const char *const norms[] = {"rms", "layer", NULL};            /* as in pl_norm_kind */
  static const char *const acts[] = {"silu_gate", "gelu_tanh", NULL};   /* as in pl_act_kind */
  luaL_checktype(L, idx, LUA_TTABLE);
  pl_lm_config f = {.n_layers = field_int(L, idx, "n_layers"),
                    .hidden = field_int(L, idx, "hidden"),
                    .heads = field_int(L, idx, "heads"),
                    .kv_heads = field_int(L, idx, "kv_heads"),
                    .head_dim = field_int(L, idx, "head_dim"),
                    .ffn = field_int(L, idx, "ffn"),
                    .vocab = field_int(L, idx, "vocab"),
                    .context = field_int(L, idx, "context"),
                    .eps = field_num(L, idx, "eps"),
                    .tied = field_bool(L, idx, "tied"),
                    .norm = (pl_norm_kind)field_choice(L, idx, "norm", norms),
                    .act = (pl_act_kind)field_choice(L, idx, "act", acts),
                    .learned_pos = field_bool(L, idx, "learned_pos"),
                    .attention_bias = field_bool(L, idx, "attention_bias"),
                    .mlp_bias = field_bool(L, idx, "mlp_bias"),
                    .window = field_optint(L, idx, "window")};
  f.theta = f.learned_pos ? 0 : field_num(L, idx, "theta");
  pl_lua_check(L, pl_lm_config_check(pl_lua_ctx(L), &f));
  return f;
}

/* lm.weights(config) -> list of { name, shape } in the decoder's order */
static int lm_weights(lua_State *L) {
  const pl_lm_config f = check_config(L, 1);
  const int64_t n = pl_decoder_n_weights(&f);
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n; i++) {
    char name[48];
    int nd;
    int64_t shape[2];
    pl_decoder_weight_info(&f, i, name, &nd, shape);
    lua_createtable(L, 0, 2);
    lua_pushstring(L, name);
    lua_setfield(L, -2, "name");
    lua_createtable(L, nd, 0);
    for (int k = 0; k < nd; k++) {
      lua_pushinteger(L, shape[k]);
      lua_rawseti(L, -2, k + 1);
    }
    lua_setfield(L, -2, "shape");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* ---- decoder ---- */

pl_decoder *pl_check_decoder(lua_State *L, int idx) {
  pl_decoder **box = luaL_checkudata(L, idx, DECODER_NAME);
  luaL_argcheck(L, *box != NULL, idx, "this decoder was closed");
  return *box;
}

/* The tensors of the list at idx, as a userdata array on the stack's top. */
static pl_tensor **check_tensors(lua_State *L, int idx, int64_t *n) {
  luaL_checktype(L, idx, LUA_TTABLE);
  *n = (int64_t)lua_rawlen(L, idx);
  pl_tensor **list = lua_newuserdatauv(L, sizeof *list * (size_t)(*n + 1), 0);
  for (int64_t i = 0; i < *n; i++) {
    lua_rawgeti(L, idx, i + 1);
    list[i] = pl_test_tensor(L, -1);
    if (list[i] == NULL) {
      luaL_error(L, "entry %d of the list is a %s; wanted a tensor", (int)i + 1,
                 luaL_typename(L, -1));
    }
    lua_pop(L, 1);
  }
  return list;
}

/* lm.decoder(config, list of tensors) -> Decoder */
static int lm_decoder(lua_State *L) {
  const pl_lm_config f = check_config(L, 1);
  int64_t n;
  pl_tensor **w = check_tensors(L, 2, &n);
  pl_decoder **box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = NULL;
  luaL_setmetatable(L, DECODER_NAME);
  pl_lua_check(L, pl_decoder_new(pl_lua_ctx(L), &f, w, n, box));
  return 1;
}

static int decoder_close(lua_State *L) {
  pl_decoder **box = luaL_checkudata(L, 1, DECODER_NAME);
  pl_decoder *d = *box;
  *box = NULL;
  pl_decoder_free(pl_lua_ctx(L), d);
  return 0;
}

/* d:checkpoint(on): does backward compute each layer again instead of keeping its activations? */
static int decoder_checkpoint(lua_State *L) {
  pl_check_decoder(L, 1)->checkpoint = lua_toboolean(L, 2);
  return 0;
}

/* d:release_pack(): frees the packed weights of generation that has ended */
static int decoder_release_pack(lua_State *L) {
  pl_decoder *d = pl_check_decoder(L, 1);
  pl_pack_release(pl_lua_ctx(L), d);
  return 0;
}

static int decoder_tostring(lua_State *L) {
  pl_decoder **box = luaL_checkudata(L, 1, DECODER_NAME);
  if (*box == NULL) {
    lua_pushliteral(L, "decoder (closed)");
  } else {
    lua_pushfstring(L, "decoder: %d layers, hidden %d, vocabulary %d",
                    (int)(*box)->cfg.n_layers, (int)(*box)->cfg.hidden, (int)(*box)->cfg.vocab);
  }
  return 1;
}

/* The list ids at idx, checked: length out. Raises naming the row. */
int64_t pl_check_ids(lua_State *L, int idx, int64_t row) {
  if (lua_type(L, idx) != LUA_TTABLE) {
    luaL_error(L, "row %d: ids is a %s; wanted a list of token ids", (int)row,
               luaL_typename(L, idx));
  }
  const int64_t n = (int64_t)lua_rawlen(L, idx);
  for (int64_t i = 1; i <= n; i++) {
    int ok = 0;
    lua_rawgeti(L, idx, i);
    const lua_Integer v = lua_tointegerx(L, -1, &ok);
    if (!ok || lua_type(L, -1) != LUA_TNUMBER || v < 0 || v > INT32_MAX) {
      luaL_error(L, "row %d: token %d is %s; wanted an integer id of 0 or more", (int)row, (int)i,
                 luaL_tolstring(L, -1, NULL));
    }
    lua_pop(L, 1);
  }
  return n;
}

/* lm.group_sum(x [M], group i32 [M], n) -> [n] */
static int lm_group_sum(lua_State *L) {
  pl_tensor *x = pl_check_tensor(L, 1);
  pl_tensor *group = pl_check_tensor(L, 2);
  const int64_t n = luaL_checkinteger(L, 3);
  pl_tensor *out = NULL;
  pl_lua_check(L, pl_group_sum(pl_lua_ctx(L), x, group, n, &out));
  pl_push_tensor(L, out);
  return 1;
}

/* lm.place(x [M], at i32 [M], rows, cols) -> [rows, cols] */
static int lm_place(lua_State *L) {
  pl_tensor *x = pl_check_tensor(L, 1);
  pl_tensor *at = pl_check_tensor(L, 2);
  const int64_t rows = luaL_checkinteger(L, 3);
  const int64_t cols = luaL_checkinteger(L, 4);
  pl_tensor *out = NULL;
  pl_lua_check(L, pl_place(pl_lua_ctx(L), x, at, rows, cols, &out));
  pl_push_tensor(L, out);
  return 1;
}

/* ---- weights ---- */

/* lm.init_normal(t, seed, stream, std): fills an f32 tensor with N(0, std^2), element i
 * from counter i of (seed, stream) */
static int lm_init_normal(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  const uint64_t seed = (uint64_t)luaL_checkinteger(L, 2);
  const uint64_t stream = (uint64_t)luaL_checkinteger(L, 3);
  const double std = luaL_checknumber(L, 4);
  luaL_argcheck(L, t->dtype == PL_F32 && pl_contiguous(t), 1, "wanted a contiguous f32 tensor");
  const int64_t n = pl_numel(t);
  float *x = pl_f32(t);
  for (int64_t i = 0; i < n; i++) {
    x[i] = (float)(std * pl_normal(seed, stream, (uint64_t)i));
  }
  t->storage->version++;
  return 0;
}

/* lm.to_float(t) -> t itself if f32, else an f32 copy */
static int lm_to_float(lua_State *L) {
  pl_tensor *t = pl_check_tensor(L, 1);
  if (t->dtype == PL_F32) {
    lua_settop(L, 1);
    return 1;
  }
  pl_tensor *out = NULL;
  pl_lua_check(L, pl_tensor_cast(pl_lua_ctx(L), t, PL_F32, &out));
  pl_push_tensor(L, out);
  return 1;
}

/* lm.copies(list) -> list of new leaves with the same values */
static int lm_copies(lua_State *L) {
  int64_t n;
  pl_tensor **list = check_tensors(L, 1, &n);
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n; i++) {
    pl_tensor *out = NULL;
    pl_lua_check(L, pl_tensor_cast(pl_lua_ctx(L), list[i], list[i]->dtype, &out));
    pl_push_tensor(L, out);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* lm.equal(a, b) -> do two contiguous tensors hold the same bytes? */
static int lm_equal(lua_State *L) {
  const pl_tensor *a = pl_check_tensor(L, 1);
  const pl_tensor *b = pl_check_tensor(L, 2);
  const bool same = a->dtype == b->dtype && pl_same_shape(a, b) && pl_contiguous(a) &&
                    pl_contiguous(b);
  lua_pushboolean(L, same && memcmp(pl_data(a), pl_data(b),
                                    (size_t)pl_numel(a) * pl_dtypes[a->dtype].size) == 0);
  return 1;
}

/* lm.hash(text, list) -> sha256 hex of the text, then of each tensor's dtype, shape and bytes */
static int lm_hash(lua_State *L) {
  size_t len;
  const char *text = luaL_checklstring(L, 1, &len);
  int64_t n;
  pl_tensor **list = check_tensors(L, 2, &n);
  pl_sha256 s;
  pl_sha256_init(&s);
  pl_sha256_add(&s, text, len);
  for (int64_t i = 0; i < n; i++) {
    const pl_tensor *t = list[i];
    luaL_argcheck(L, pl_contiguous(t), 2, "wanted contiguous tensors");
    const int64_t head[2] = {t->dtype, t->ndim};
    pl_sha256_add(&s, head, sizeof head);
    pl_sha256_add(&s, t->shape, sizeof *t->shape * (size_t)t->ndim);
    pl_sha256_add(&s, pl_data(t), (size_t)pl_numel(t) * pl_dtypes[t->dtype].size);
  }
  char hex[65];
  pl_sha256_hex(&s, hex);
  lua_pushstring(L, hex);
  return 1;
}

/* lm.version(list) -> a number that grows whenever one of the tensors is changed in place */
static int lm_version(lua_State *L) {
  int64_t n;
  pl_tensor **list = check_tensors(L, 1, &n);
  lua_Integer sum = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += list[i]->storage->version;
  }
  lua_pushinteger(L, sum);
  return 1;
}

/* ---- generator ---- */

static pl_generator *check_generator(lua_State *L) {
  pl_generator **box = luaL_checkudata(L, 1, GENERATOR_NAME);
  luaL_argcheck(L, *box != NULL, 1, "this generator was closed");
  return *box;
}

/* The ids at idx as a userdata array on the stack's top. */
static int32_t *check_id_array(lua_State *L, int idx, int64_t row, int64_t *n) {
  *n = pl_check_ids(L, idx, row);
  int32_t *p = lua_newuserdatauv(L, sizeof *p * (size_t)(*n + 1), 0);
  for (int64_t i = 0; i < *n; i++) {
    lua_rawgeti(L, idx, i + 1);
    p[i] = (int32_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
  }
  return p;
}

/* lm.generator(decoder, rows, stop_ids, dtype = "f32" | "bf16" | "int8") -> Generator */
static int lm_generator(lua_State *L) {
  static const char *const kinds[] = {"f32", "bf16", "int8", NULL}; /* as in pl_pack_kind */
  pl_decoder *d = pl_check_decoder(L, 1);
  const int64_t rows = luaL_checkinteger(L, 2);
  const int kind = luaL_checkoption(L, 4, "f32", kinds);
  int64_t n;
  const int32_t *stop = check_id_array(L, 3, 0, &n);
  pl_generator **box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = NULL;
  luaL_setmetatable(L, GENERATOR_NAME);
  lua_pushvalue(L, 1); /* keeps the decoder alive */
  lua_setiuservalue(L, -2, 1);
  pl_lua_check(L, pl_generator_new(pl_lua_ctx(L), d, (pl_pack_kind)kind, rows, stop, n, box));
  return 1;
}

static int generator_close(lua_State *L) {
  pl_generator **box = luaL_checkudata(L, 1, GENERATOR_NAME);
  pl_generator *g = *box;
  *box = NULL;
  pl_generator_free(pl_lua_ctx(L), g);
  return 0;
}

/* g:add(ids, index, { n, max_tokens, temperature, top_k, top_p, min_p, seed, key?, top? }) */
static int generator_add(lua_State *L) {
  pl_generator *g = check_generator(L);
  const int64_t index = luaL_checkinteger(L, 3);
  luaL_checktype(L, 4, LUA_TTABLE);
  pl_gen_request r = {.index = index,
                      .n = field_int(L, 4, "n"),
                      .max_tokens = field_int(L, 4, "max_tokens"),
                      .seed = (uint64_t)field_int(L, 4, "seed"),
                      .key = field_optint(L, 4, "key"),
                      .top = field_optint(L, 4, "top"),
                      .sampling = {.temperature = field_num(L, 4, "temperature"),
                                   .top_k = field_int(L, 4, "top_k"),
                                   .top_p = field_num(L, 4, "top_p"),
                                   .min_p = field_num(L, 4, "min_p")}};
  r.prompt = check_id_array(L, 2, index, &r.n_prompt);
  pl_lua_check(L, pl_generator_add(pl_lua_ctx(L), g, &r));
  return 0;
}

/* g:step(k = 1) -> active, tokens: at most k steps, fewer when nothing is left */
static int generator_step(lua_State *L) {
  pl_generator *g = check_generator(L);
  const lua_Integer k = luaL_optinteger(L, 2, 1);
  int64_t active = 1;
  int64_t tokens = 0;
  for (lua_Integer i = 0; i < k && active > 0; i++) {
    int64_t n = 0;
    pl_ctx *c = pl_lua_ctx(L);
    pl_profile_enter(c, "(generate)", false);
    const pl_status st = pl_generator_step(c, g, &active, &n);
    pl_profile_leave(c, (pl_work){0});
    pl_lua_check(L, st);
    tokens += n;
  }
  lua_pushinteger(L, active);
  lua_pushinteger(L, tokens);
  return 2;
}

static void push_ids(lua_State *L, const pl_gen_sample *s) {
  lua_createtable(L, (int)s->n, 0);
  for (int64_t i = 0; i < s->n; i++) {
    lua_pushinteger(L, s->ids[i]);
    lua_rawseti(L, -2, i + 1);
  }
}

/* { id, logprob, id, logprob, ... } of k candidates, likeliest first */
static void push_top(lua_State *L, const pl_candidate *top, int64_t k) {
  lua_createtable(L, (int)(2 * k), 0);
  for (int64_t i = 0; i < k; i++) {
    lua_pushinteger(L, top[i].id);
    lua_rawseti(L, -2, 2 * i + 1);
    lua_pushnumber(L, top[i].logit);
    lua_rawseti(L, -2, 2 * i + 2);
  }
}

/* Pushes a list of n such lists, or nil where none were asked for. */
static void push_tops(lua_State *L, const pl_candidate *tops, int64_t n, int64_t k) {
  if (k == 0) {
    lua_pushnil(L);
    return;
  }
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n; i++) {
    push_top(L, tops + i * k, k);
    lua_rawseti(L, -2, i + 1);
  }
}

/* g:take() -> index, sample (1-based), ids, logprobs, finish, tops; or nothing
 * tops: with `top`, for each token { id, logprob, id, logprob, ... } */
static int generator_take(lua_State *L) {
  pl_generator *g = check_generator(L);
  pl_gen_sample s;
  if (!pl_generator_take(pl_lua_ctx(L), g, &s)) {
    return 0;
  }
  lua_pushinteger(L, s.index);
  lua_pushinteger(L, s.sample + 1);
  push_ids(L, &s);
  lua_createtable(L, (int)s.n, 0);
  for (int64_t i = 0; i < s.n; i++) {
    lua_pushnumber(L, s.logprobs[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_pushstring(L, s.finish == PL_FINISH_STOP ? "stop" : "length");
  push_tops(L, s.top, s.n, s.n_top);
  return 6;
}

/* g:drew() -> first, last: the running rows (1-based) that the last step drew a token for; none
 * where last < first. stop(i) moves those after i up. */
static int generator_drew(lua_State *L) {
  const pl_generator *g = check_generator(L);
  int64_t first;
  int64_t n;
  pl_generator_drew(g, &first, &n);
  lua_pushinteger(L, first + 1);
  lua_pushinteger(L, first + n);
  return 2;
}

/* g:look(i, k = all) -> index, sample, the last k ids of running row i (1-based); or nothing */
static int generator_look(lua_State *L) {
  const pl_generator *g = check_generator(L);
  pl_gen_sample s;
  if (!pl_generator_look(g, luaL_checkinteger(L, 2) - 1, &s)) {
    return 0;
  }
  const int64_t k = luaL_optinteger(L, 3, s.n);
  luaL_argcheck(L, k >= 0, 3, "wanted 0 or more");
  if (k < s.n) {
    s.ids += s.n - k;
    s.n = k;
  }
  lua_pushinteger(L, s.index);
  lua_pushinteger(L, s.sample + 1);
  push_ids(L, &s);
  return 3;
}

/* g:last(i) -> index, sample, n, id, logprob, top of the newest (n-th) token of running row i;
 * or nothing. Makes no table unless `top` was asked for. */
static int generator_last(lua_State *L) {
  const pl_generator *g = check_generator(L);
  pl_gen_sample s;
  if (!pl_generator_look(g, luaL_checkinteger(L, 2) - 1, &s) || s.n == 0) {
    return 0;
  }
  lua_pushinteger(L, s.index);
  lua_pushinteger(L, s.sample + 1);
  lua_pushinteger(L, s.n);
  lua_pushinteger(L, s.ids[s.n - 1]);
  lua_pushnumber(L, s.logprobs[s.n - 1]);
  if (s.n_top == 0) {
    return 5;
  }
  push_top(L, s.top + (s.n - 1) * s.n_top, s.n_top);
  return 6;
}

/* g:cancel(index) -> samples dropped that had not ended */
static int generator_cancel(lua_State *L) {
  pl_generator *g = check_generator(L);
  const int64_t index = luaL_checkinteger(L, 2);
  lua_pushinteger(L, pl_generator_cancel(pl_lua_ctx(L), g, index));
  return 1;
}

/* g:score(ids, top = 0) -> logprobs, tops: of each token but the first, given those before it */
static int generator_score(lua_State *L) {
  pl_generator *g = check_generator(L);
  const int64_t top = luaL_optinteger(L, 3, 0);
  luaL_argcheck(L, top >= 0 && top <= PL_GEN_TOP_MAX, 3, "wanted 0 to 20");
  int64_t n = 0;
  const int32_t *ids = check_id_array(L, 2, 1, &n);
  float *logprobs = lua_newuserdatauv(L, sizeof *logprobs * (size_t)(n + 1), 0);
  pl_candidate *tops = lua_newuserdatauv(L, sizeof *tops * (size_t)(n * top + 1), 0);
  pl_lua_check(L, pl_generator_score(pl_lua_ctx(L), g, ids, n, top, logprobs, tops));
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n - 1; i++) {
    lua_pushnumber(L, logprobs[i]);
    lua_rawseti(L, -2, i + 1);
  }
  push_tops(L, tops, n - 1, top);
  return 2;
}

/* g:stop(i): running row i (1-based) ends here */
static int generator_stop(lua_State *L) {
  pl_generator *g = check_generator(L);
  pl_generator_stop(pl_lua_ctx(L), g, luaL_checkinteger(L, 2) - 1);
  return 0;
}

static void new_class(lua_State *L, const char *name, const luaL_Reg *meta,
                      const luaL_Reg *methods) {
  luaL_newmetatable(L, name);
  luaL_setfuncs(L, meta, 0);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}

int pl_open_lm(lua_State *L) {
  const luaL_Reg decoder_meta[] = {{"__gc", decoder_close}, {"__close", decoder_close},
                                   {"__tostring", decoder_tostring}, {NULL, NULL}};
  const luaL_Reg decoder_methods[] = {{"score", pl_lua_score}, {"checkpoint", decoder_checkpoint},
                                      {"release_pack", decoder_release_pack},
                                      {"close", decoder_close}, {NULL, NULL}};
  const luaL_Reg generator_meta[] = {{"__gc", generator_close}, {"__close", generator_close},
                                     {NULL, NULL}};
  const luaL_Reg generator_methods[] = {
      {"add", generator_add},       {"step", generator_step}, {"take", generator_take},
      {"drew", generator_drew},     {"look", generator_look}, {"last", generator_last},
      {"stop", generator_stop},     {"close", generator_close},
      {"cancel", generator_cancel}, {"score", generator_score}, {NULL, NULL}};
  const luaL_Reg functions[] = {
      {"weights", lm_weights},     {"decoder", lm_decoder},   {"generator", lm_generator},
      {"group_sum", lm_group_sum}, {"place", lm_place},       {"init_normal", lm_init_normal},
      {"to_float", lm_to_float},   {"copies", lm_copies},     {"equal", lm_equal},
      {"hash", lm_hash},           {"version", lm_version},   {NULL, NULL}};
  new_class(L, DECODER_NAME, decoder_meta, decoder_methods);
  new_class(L, GENERATOR_NAME, generator_meta, generator_methods);
  lua_newtable(L);
  luaL_setfuncs(L, functions, 0);
  return 1;
}
