/* Methods that change a tensor in place. Each obeys pl_inplace_check (leaf
 * rule, expanded views), refuses an operand whose gradient would be lost, and
 * bumps the storage's version. One row each; bind/ makes the Lua methods. */
#ifndef PL_AUTOGRAD_INPLACE_H
#define PL_AUTOGRAD_INPLACE_H
#include "autograd/op.h"

typedef struct pl_inplace {
  const char *name;   /* "add_" */
  const char *params; /* as in pl_op; the tensor parameter after x, if any, is `b` */
  const char *doc;
  pl_status (*fn)(pl_ctx *c, pl_tensor *x, const pl_tensor *b, const pl_args *args);
} pl_inplace;

extern const pl_inplace pl_inplace_rows[]; /* ended by a row with name NULL */

/* Checks, then runs. b: NULL where the row has no second tensor. Returns with
 * the row's name in front of the error text. */
pl_status pl_inplace_run(pl_ctx *c, const pl_inplace *row, pl_tensor *x, const pl_tensor *b,
                         const pl_args *args);
const pl_inplace *pl_inplace_find(const char *name);

/* Same shape, dtype-independent values? NaN differs from everything. */
pl_status pl_equal(pl_ctx *c, const pl_tensor *a, const pl_tensor *b, bool *out);

#endif
