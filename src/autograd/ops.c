/* The one list of all tables of rows, and finding a row by name. */
#include <string.h>

#include "autograd/op.h"

extern const pl_op *const pl_ops_binary[];
extern const pl_op *const pl_ops_unary[];
extern const pl_op *const pl_ops_reduce[];
extern const pl_op *const pl_ops_softmax[];
extern const pl_op *const pl_ops_shape[];
extern const pl_op *const pl_ops_copy[];
extern const pl_op *const pl_ops_index[];
extern const pl_op *const pl_ops_order[];
extern const pl_op *const pl_ops_linalg[];
extern const pl_op *const pl_ops_lm[];

static const pl_op *const ops_block[] = {&pl_op_layer_norm, &pl_op_attention_block,
                                         &pl_op_ffn_block, NULL};

const pl_op *const *const pl_op_tables[] = {
    pl_ops_binary, pl_ops_unary, pl_ops_reduce, pl_ops_softmax, pl_ops_shape, pl_ops_copy,
    pl_ops_index,  pl_ops_order, pl_ops_linalg, pl_ops_lm,      ops_block,     NULL};

const pl_op *pl_op_find(const char *name) {
  for (int t = 0; pl_op_tables[t] != NULL; t++) {
    for (int k = 0; pl_op_tables[t][k] != NULL; k++) {
      if (strcmp(pl_op_tables[t][k]->name, name) == 0) {
        return pl_op_tables[t][k];
      }
    }
  }
  return NULL;
}
