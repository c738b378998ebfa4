/* A decoder's weights packed for generation (kernels/packed.h): query, key and value side by
 * side, gate and up in turns of 16 columns, the head, and the biases. Made once and kept with
 * the decoder until the weights change or another format is wanted; whoever uses it holds a
 * reference. */
#ifndef PL_LM_PACK_H
#define PL_LM_PACK_H
#include "kernels/packed.h"
#include "lm/decoder.h"

typedef struct pl_pack_layer {
  pl_packed qkv; /* [Q + 2K, C] */
  pl_packed o;   /* [C, Q] */
  pl_packed up;  /* [F, C]; with a gate [2 F', C], F' = F in whole panels: 16 of gate, 16 of up.. */
  pl_packed down; /* [C, F] */
} pl_pack_layer;

typedef struct pl_pack {
  pl_pack_kind kind;
  int64_t version; /* of the weights, summed */
  int refs;
  int64_t n_layers;
  pl_pack_layer *layers;
  pl_packed head; /* [V, C] */
  char *memory;
  size_t bytes; /* of it */
} pl_pack;

/* A reference to d's weights in this format. f32 weights. */
pl_status pl_pack_of(pl_ctx *c, pl_decoder *d, pl_pack_kind kind, pl_pack **out);
void pl_pack_drop(pl_ctx *c, pl_pack *p); /* NULL is fine */
/* Frees what d keeps, unless a generator uses it: it is as large as the model, and who asks next
 * packs again. */
void pl_pack_release(pl_ctx *c, pl_decoder *d);

#endif
