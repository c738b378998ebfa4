/* What the files of core.tensor share: argument reading and registration. */
#ifndef PL_BIND_TENSOR_H
#define PL_BIND_TENSOR_H
#include "autograd/op.h"
#include "bind/bind.h"

enum { PL_BIND_FUNCTION = 1, PL_BIND_METHOD = 2 };

/* A function written by hand, documented like an op row: params and ret in the
 * words of pl_op.params, so that help and stubs come from one place. */
typedef struct pl_bind_row {
  const char *name;
  const char *params;
  const char *ret;
  const char *doc;
  unsigned flags;
  lua_CFunction fn;
} pl_bind_row;

extern const pl_bind_row pl_tensor_make_rows[];   /* creation: tensor_make.c */
extern const pl_bind_row pl_tensor_method_rows[]; /* tensor_methods.c */

/* Raises with the place of the user's call in front. */
int pl_lua_raise(lua_State *L, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* 1-based or negative to what the core takes (0-based or negative); 0 raises. */
int64_t pl_check_count1(lua_State *L, int idx, const char *fn, const char *what);
/* Sizes at idx: a list, or (varargs) all integers from idx on. Returns how many
 * were read; *next is the first argument after them. */
int pl_check_sizes(lua_State *L, int idx, const char *fn, int64_t *sizes, int max, int *next);

/* Puts a Lua function for each visible op row into the table at the top of the
 * stack, methods also into the table below it. */
void pl_register_ops(lua_State *L);
/* Runs the row on inputs that the caller keeps alive, and pushes what came.
 * Returns how many. Once collects and tries again when memory is short. */
int pl_apply_push(lua_State *L, const pl_op *op, pl_tensor **in, int n_in, const pl_args *args,
                  int max_out);
/* x[key] and x[key] = value. */
int pl_tensor_index(lua_State *L);
int pl_tensor_newindex(lua_State *L);

/* Fills the metatable at the top of the stack. */
void pl_tensor_meta(lua_State *L);

/* nil or the table of options at idx; raises for keys that are not in `known`
 * (NULL-ended), suggesting the nearest. Returns false when there is none. */
bool pl_check_options(lua_State *L, int idx, const char *fn, const char *const *known);

#endif
