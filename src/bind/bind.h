/* What every binding file shares. With host/, the only place that includes lua.h.
 * Order in a binding: check all arguments, anchor the result, call the core,
 * raise last (nothing may longjmp between a malloc and its owner). */
#ifndef PL_BIND_BIND_H
#define PL_BIND_BIND_H
#include <lauxlib.h>
#include <lua.h>
#include "net/secret.h"
#include "tensor/tensor.h"

/* What one Lua state needs beside the core's context. The host owns it; it
 * must outlive the state, for finalizers reach it. */
typedef struct pl_lua {
  pl_ctx ctx;
  int64_t seen;    /* mem.live when the collector last got its hint */
  uint64_t seed;   /* of creation functions that were given none: pl.seed */
  uint64_t stream; /* the next stream of that seed */
  pl_secrets secrets; /* keys of services: net.secret loads, the host wipes */
} pl_lua;

/* Puts p behind the state (lua_getextraspace: coroutines inherit it). */
void pl_lua_attach(lua_State *L, pl_lua *p);
pl_lua *pl_lua_of(lua_State *L);
pl_ctx *pl_lua_ctx(lua_State *L);
/* Raises ctx's error text, with the place of the user's call, unless st is PL_OK. */
void pl_lua_check(lua_State *L, pl_status st);
/* Expected failure: pushes nil, message and returns 2. */
int pl_lua_nil_error(lua_State *L, pl_status st);
/* pushes true, or nil, message; returns how many */
int pl_lua_true_or_nil(lua_State *L, pl_status st);

/* Pushes a byte buffer that Lua owns: safe to hold while Lua code may raise.
 * Collected with its userdata; pl_buf_free it early where it is large. */
pl_buf *pl_lua_newbuf(lua_State *L, size_t max);

#define PL_TENSOR_NAME "perilune.Tensor"
/* Takes over one reference (also when it raises); gives the collector its hint. */
void pl_push_tensor(lua_State *L, pl_tensor *t);
pl_tensor *pl_check_tensor(lua_State *L, int idx); /* borrowed; raises for a freed one */
pl_tensor *pl_test_tensor(lua_State *L, int idx);  /* NULL if it is none; raises for a freed one */
/* An empty tensor box, anchored before the core is called; fill with pl_box_set. */
pl_tensor **pl_push_box(lua_State *L);
/* Puts t (one reference taken over) into the box and hints the collector. The
 * hint may run finalizers: all that is new must be anchored. */
void pl_box_set(lua_State *L, pl_tensor **box, pl_tensor *t);
/* Tells Lua's collector that `bytes` of C memory hang on the objects just anchored. */
void pl_gc_hint(lua_State *L, size_t bytes);
/* A dtype by its name at idx; raises with the list of names. */
pl_dtype pl_check_dtype(lua_State *L, int idx);

/* Submodules of require "perilune.core": each pushes its table. */
int pl_open_tensor(lua_State *L); /* core.tensor: creation, op rows, autograd */
int pl_open_optim(lua_State *L);  /* core.optim: fused update steps */
int pl_open_base(lua_State *L);   /* core.base: json, hash, file, clock, memory, threads, rng */
int pl_open_text(lua_State *L);   /* core.text: tokenizer userdata */
int pl_open_format(lua_State *L); /* core.format: safetensors */
int pl_open_lm(lua_State *L);     /* core.lm: decoder userdata */
int pl_open_store(lua_State *L);  /* core.store: SQLite databases */
int pl_open_net(lua_State *L);    /* core.net: the HTTP client, secrets */
int pl_open_profile(lua_State *L); /* core.profile: time by op */
int pl_open_server(lua_State *L); /* core.server: the HTTP server */
int pl_lua_finally(lua_State *L);   /* base.finally */
void pl_lua_machine(lua_State *L);  /* adds to core.base, on the top, what tells of the machine */
int pl_open_core(lua_State *L);   /* the table holding them all; preloaded by host */

#endif
