/* The tape: running a row, recording it, and walking back.
 *
 * A node is owned by the tensors computed from it and owns its inputs, so a
 * graph nobody holds goes away by itself; both that and the walk are loops,
 * never recursion, because a graph may be a chain of a million nodes.
 * Nodes carry a sequence number: going down in it is a valid backward order.
 * What this file must not do: arithmetic beyond adding gradients. */
#include <assert.h>
#include <string.h>

#include "autograd/op.h"
#include "autograd/opkit.h"
#include "base/profile.h"

/* ---- nodes --------------------------------------------------------------- */

void pl_node_ref(pl_node *n) {
  n->ref++;
}

/* Drops one reference to an input or saved tensor; a node that dies with it
 * goes onto the work list. */
static void drop_tensor(pl_ctx *c, pl_tensor *t, pl_node **work) {
  if (t == NULL || --t->ref > 0) {
    return;
  }
  pl_node *n = pl_tensor_destroy(c, t);
  if (n != NULL && --n->ref == 0) {
    n->next = *work;
    *work = n;
  }
}

static void drop_contents(pl_node *n, pl_node **work) {
  for (int j = 0; j < n->n_in; j++) {
    drop_tensor(n->ctx, n->in[j], work);
    n->in[j] = NULL;
  }
  for (int j = 0; j < PL_OP_MAX_SAVED; j++) {
    drop_tensor(n->ctx, n->saved[j], work);
    n->saved[j] = NULL;
  }
}

static void free_work(pl_node *work) {
  while (work != NULL) {
    pl_node *n = work;
    work = n->next;
    drop_contents(n, &work);
    pl_free(n->ctx, n);
  }
}

void pl_node_unref(pl_node *n) {
  if (n == NULL || --n->ref > 0) {
    return;
  }
  n->next = NULL;
  free_work(n);
}

static bool has_bit(uint64_t mask, int j) {
  return j < 64 && (mask >> j & 1) != 0;
}

bool pl_node_needs(const pl_node *n, int in) {
  return in < n->n_in && n->needed[in] && n->in[in] != NULL && n->in[in]->requires_grad;
}

/* ---- recording ----------------------------------------------------------- */

static pl_status node_new(pl_ctx *c, const pl_call *k, pl_node **out) {
  size_t head = (sizeof(pl_node) + 15) & ~(size_t)15;
  size_t per = sizeof(pl_tensor *) + sizeof(uint32_t) + sizeof(bool);
  pl_node *n = pl_alloc_zero(c, head + (size_t)k->n_in * per);
  if (n == NULL) {
    return PL_ENOMEM;
  }
  n->ref = 1;
  n->ctx = c;
  n->op = k->op;
  n->n_in = k->n_in;
  n->n_out = k->n_out;
  n->args = k->args;
  n->in = (pl_tensor **)((char *)n + head);
  n->in_version = (uint32_t *)(n->in + k->n_in);
  n->needed = (bool *)(n->in_version + k->n_in);
  n->drop_in = (k->op->flags & PL_OP_SHAPES_ONLY) != 0 ? ~UINT64_C(0) : k->drop_in;
  *out = n;
  return PL_OK;
}

/* Takes what the call saved and holds its inputs. */
static pl_status node_fill(pl_ctx *c, pl_node *n, pl_call *k) {
  for (int j = 0; j < k->n_in; j++) {
    pl_tensor *t = k->in[j];
    if (t == NULL) {
      continue;
    }
    n->needed[j] = t->requires_grad;
    bool leaf = t->node == NULL && t->requires_grad;
    if (has_bit(n->drop_in, j) && !leaf) {
      PL_TRY(pl_tensor_ghost(c, t, &n->in[j]));
      if (t->node != NULL) {
        pl_node_ref(t->node);
      }
    } else {
      n->in[j] = pl_tensor_ref(t);
      n->in_version[j] = t->storage->version;
    }
  }
  for (int j = 0; j < PL_OP_MAX_SAVED; j++) {
    if (k->saved[j] == NULL) {
      continue;
    }
    bool is_out = false;
    for (int o = 0; o < k->n_out; o++) {
      is_out = is_out || k->saved[j] == k->out[o];
    }
    if (is_out) { /* an output owns this node: hold its values, not itself */
      PL_TRY(pl_tensor_alias(c, k->saved[j], &n->saved[j]));
    } else {
      n->saved[j] = pl_tensor_ref(k->saved[j]);
    }
    n->saved_version[j] = n->saved[j]->storage->version;
  }
  return PL_OK;
}

static pl_status record(pl_ctx *c, pl_call *k) {
  pl_node *n;
  PL_TRY(node_new(c, k, &n));
  pl_status st = node_fill(c, n, k);
  if (st != PL_OK) {
    pl_node_unref(n);
    return st;
  }
  n->seq = ++c->node_seq;
  for (int o = 0; o < k->n_out; o++) {
    pl_tensor *t = k->out[o];
    n->out_ndim[o] = t->ndim;
    memcpy(n->out_shape[o], t->shape, sizeof t->shape);
    n->out_dtype[o] = t->dtype;
    if (pl_dtypes[t->dtype].is_float) {
      t->node = n;
      t->node_out = o;
      t->requires_grad = true;
      pl_node_ref(n);
    }
  }
  pl_node_unref(n); /* the outputs own it now */
  return PL_OK;
}

static void drop_call(pl_call *k, bool outs) {
  for (int j = 0; j < PL_OP_MAX_SAVED; j++) {
    pl_tensor_unref(k->saved[j]);
  }
  for (int o = 0; outs && o < PL_OP_MAX_OUT; o++) {
    pl_tensor_unref(k->out[o]);
  }
}

/* ---- the profile ----------------------------------------------------------- */

/* Ends what pl_profile_enter began, with the bytes of the results. */
static void leave(pl_ctx *c, const pl_op *op, pl_tensor *const *made, int n) {
  pl_work w = {0};
  for (int j = 0; c->profile != NULL && j < n && (op->flags & PL_OP_VIEW) == 0; j++) {
    if (made[j] != NULL) {
      w.made += (double)pl_numel(made[j]) * (double)pl_dtypes[made[j]->dtype].size;
    }
  }
  pl_profile_leave(c, w);
}

/* ---- running --------------------------------------------------------------- */

static pl_status run_call(pl_ctx *c, pl_call *k, pl_tensor **outs) {
  for (int j = 0; j < k->n_in; j++) {
    k->needs_grad = k->needs_grad || (k->in[j] != NULL && k->in[j]->requires_grad);
  }
  k->needs_grad = k->needs_grad && c->grad_enabled && k->op->backward != NULL;
  bool was = c->grad_enabled;
  c->grad_enabled = false; /* rows may use rows; only the whole is recorded */
  pl_profile_enter(c, k->op->name, false);
  pl_status st = k->op->forward(c, k);
  leave(c, k->op, k->out, k->n_out);
  c->grad_enabled = was;
  if (st == PL_OK && k->needs_grad) {
    st = record(c, k);
  }
  if (st != PL_OK) {
    drop_call(k, true);
    return pl_fail_in(c, st, "%s", k->op->name);
  }
  drop_call(k, false);
  for (int o = 0; o < k->n_out; o++) {
    outs[o] = k->out[o];
  }
  return PL_OK;
}

pl_status pl_apply(pl_ctx *c, const pl_op *op, pl_tensor **in, int n_in, const pl_args *args,
                   pl_tensor **outs) {
  PL_TRY(pl_check_interrupt(c));
  pl_call k = {.op = op, .in = in, .n_in = n_in};
  if (args != NULL) {
    k.args = *args;
  }
  bool half = false;
  for (int j = 0; j < n_in; j++) {
    half = half || (in[j] != NULL && in[j]->dtype == PL_BF16);
  }
  if (!half || (op->flags & (PL_OP_ANY_DTYPE | PL_OP_VIEW)) != 0) {
    return run_call(c, &k, outs);
  }
  /* bf16 is a way to store: computing happens in f32, recorded as a cast */
  pl_tensor **wide = pl_alloc_zero(c, (size_t)n_in * sizeof *wide);
  if (wide == NULL) {
    return PL_ENOMEM;
  }
  pl_status st = PL_OK;
  for (int j = 0; j < n_in && st == PL_OK; j++) {
    if (in[j] != NULL && in[j]->dtype == PL_BF16) {
      pl_args to = {.i = {PL_F32}, .n_i = 1};
      st = pl_apply(c, &pl_op_to, &in[j], 1, &to, &wide[j]);
    } else {
      wide[j] = pl_tensor_ref(in[j]);
    }
  }
  if (st == PL_OK) {
    k.in = wide;
    st = run_call(c, &k, outs);
  }
  for (int j = 0; j < n_in; j++) {
    pl_tensor_unref(wide[j]);
  }
  pl_free(c, wide);
  return st;
}

/* ---- the rules for leaves ------------------------------------------------- */

pl_status pl_set_requires_grad(pl_ctx *c, pl_tensor *t, bool on) {
  if (t->node != NULL) {
    return pl_fail(c, PL_EINVAL,
                   "requires_grad_: this tensor is the result of %s; only leaves can be marked "
                   "(use x:detach():requires_grad_())",
                   t->node->op->name);
  }
  if (on && !pl_dtypes[t->dtype].is_float) {
    return pl_fail(c, PL_EINVAL, "requires_grad_: a %s tensor has no gradient; use x:to(\"f32\")",
                   pl_dtypes[t->dtype].name);
  }
  t->requires_grad = on;
  return PL_OK;
}

pl_status pl_inplace_check(pl_ctx *c, const char *name, const pl_tensor *t) {
  if (t->requires_grad && c->grad_enabled) {
    return pl_fail(c, PL_EINVAL, "%s: %s", name,
                   t->node == NULL
                       ? "a leaf that requires grad cannot be changed in place while recording; "
                         "do it inside pl.no_grad(function() ... end)"
                       : "a recorded result cannot be changed in place; write y = y:op(...) "
                         "instead, or use y:detach()");
  }
  for (int d = 0; d < t->ndim; d++) {
    if (t->shape[d] > 1 && t->stride[d] == 0) {
      return pl_fail(c, PL_EINVAL,
                     "%s: an expanded view shares its elements and cannot be written to; "
                     "call clone() first",
                     name);
    }
  }
  return PL_OK;
}

/* ---- walking back --------------------------------------------------------- */

typedef struct node_list {
  pl_node **at;
  int64_t n, cap;
} node_list;

static pl_status list_add(pl_ctx *c, node_list *l, pl_node *n) {
  if (l->n == l->cap) {
    int64_t cap = l->cap == 0 ? 64 : 2 * l->cap;
    pl_node **at = pl_realloc(c, l->at, (size_t)cap * sizeof *at);
    if (at == NULL) {
      return PL_ENOMEM;
    }
    l->at = at;
    l->cap = cap;
  }
  pl_node_ref(n);
  l->at[l->n++] = n;
  return PL_OK;
}

static pl_status check_node(pl_ctx *c, const pl_node *n) {
  if (n->freed) {
    return pl_fail(c, PL_EINVAL,
                   "backward: the graph was already used (at %s): what it saved is freed by the "
                   "first backward; compute the loss again, or add the losses and go back once",
                   n->op->name);
  }
  for (int j = 0; j < n->n_in; j++) {
    const pl_tensor *t = n->in[j];
    if (t != NULL && t->storage != NULL && !has_bit(n->drop_in, j) &&
        t->storage->version != n->in_version[j]) {
      return pl_fail(c, PL_EINVAL,
                     "backward: input %d of %s was modified in place since it was recorded; "
                     "its gradient would be wrong (clone() it before the change)",
                     j + 1, n->op->name);
    }
  }
  for (int j = 0; j < PL_OP_MAX_SAVED; j++) {
    if (n->saved[j] != NULL && n->saved[j]->storage->version != n->saved_version[j]) {
      return pl_fail(c, PL_EINVAL,
                     "backward: the result of %s was modified in place since it was recorded; "
                     "its gradient would be wrong (clone() it before the change)",
                     n->op->name);
    }
  }
  return PL_OK;
}

/* All nodes that root depends on; checked before any gradient is touched. */
static pl_status reach(pl_ctx *c, pl_node *root, node_list *l) {
  uint64_t mark = ++c->node_seq;
  root->mark = mark;
  PL_TRY(list_add(c, l, root));
  for (int64_t at = 0; at < l->n; at++) {
    pl_node *n = l->at[at];
    PL_TRY(check_node(c, n));
    for (int j = 0; j < n->n_in; j++) {
      pl_node *up = n->in[j] != NULL ? n->in[j]->node : NULL;
      if (up != NULL && up->mark != mark) {
        up->mark = mark;
        PL_TRY(list_add(c, l, up));
      }
    }
  }
  return PL_OK;
}

/* Max-heap on seq, in place. */
static void sift(node_list *l, int64_t at) {
  for (;;) {
    int64_t big = 2 * at + 1;
    if (big >= l->n) {
      return;
    }
    if (big + 1 < l->n && l->at[big + 1]->seq > l->at[big]->seq) {
      big++;
    }
    if (l->at[at]->seq >= l->at[big]->seq) {
      return;
    }
    pl_node *t = l->at[at];
    l->at[at] = l->at[big];
    l->at[big] = t;
    at = big;
  }
}

static pl_node *pop(node_list *l) {
  pl_node *top = l->at[0];
  l->at[0] = l->at[--l->n];
  sift(l, 0);
  return top;
}

/* slot <- slot + g; takes over the reference g. */
static pl_status gather(pl_ctx *c, pl_tensor **slot, pl_tensor *g) {
  if (*slot == NULL) {
    *slot = g;
    return PL_OK;
  }
  pl_tensor *s = *slot;
  pl_status st = PL_OK;
  if (s->ref == 1 && s->storage->ref == 1 && pl_contiguous(s)) {
    st = pl_raw_add_into(c, s, g);
  } else {
    pl_tensor *sum;
    st = pl_raw_add(c, s, g, &sum);
    if (st == PL_OK) {
      pl_tensor_unref(s);
      *slot = sum;
    }
  }
  pl_tensor_unref(g);
  return st;
}

/* leaf->grad <- leaf->grad + g; takes over the reference g, and the tensor
 * itself where nobody else can see it: the first gradient is not copied. */
static pl_status gather_leaf(pl_ctx *c, pl_tensor *leaf, pl_tensor *g) {
  if (leaf->grad != NULL) {
    /* in place: who holds t.grad (an optimizer) sees the new value */
    pl_status st = pl_raw_add_into(c, leaf->grad, g);
    pl_tensor_unref(g);
    return st;
  }
  bool all_of_it = g->storage->bytes == (size_t)pl_numel(g) * pl_dtypes[g->dtype].size;
  if (g->ref == 1 && g->storage->ref == 1 && pl_contiguous(g) && all_of_it) {
    leaf->grad = g;
    return PL_OK;
  }
  pl_status st = pl_tensor_cast(c, g, g->dtype, &leaf->grad);
  pl_tensor_unref(g);
  return st;
}

pl_tensor *pl_node_gathered(const pl_node *n, int in, pl_dtype d) {
  pl_tensor *leaf = n->in[in];
  pl_tensor *g = leaf->node == NULL ? leaf->grad : NULL;
  if (g == NULL || g->dtype != d || !pl_contiguous(g)) {
    return NULL;
  }
  g->storage->version++;
  return g;
}

static pl_status send(pl_ctx *c, pl_tensor *to, pl_tensor *g) {
  assert(pl_same_shape(to, g));
  if (g->dtype != to->dtype) {
    pl_tensor *same;
    pl_status st = pl_tensor_cast(c, g, to->dtype, &same);
    pl_tensor_unref(g);
    PL_TRY(st);
    g = same;
  }
  if (to->node != NULL) {
    return gather(c, &to->node->gout[to->node_out], g);
  }
  return gather_leaf(c, to, g);
}

static pl_status fill_gout(pl_ctx *c, pl_node *n) {
  for (int o = 0; o < n->n_out; o++) {
    if (n->gout[o] == NULL) {
      PL_TRY(pl_tensor_zeros(c, n->out_dtype[o], n->out_ndim[o], n->out_shape[o], &n->gout[o]));
    } else if (!pl_contiguous(n->gout[o])) {
      pl_tensor *t;
      PL_TRY(pl_tensor_contiguous(c, n->gout[o], &t));
      pl_tensor_unref(n->gout[o]);
      n->gout[o] = t;
    }
  }
  return PL_OK;
}

/* Hands the gradients of n's inputs on, each to where it is gathered. */
static pl_status send_all(pl_ctx *c, pl_node *n, pl_tensor **gin) {
  for (int j = 0; j < n->n_in; j++) {
    pl_tensor *g = gin[j];
    gin[j] = NULL;
    if (g == NULL) {
      continue;
    }
    if (!pl_node_needs(n, j)) {
      pl_tensor_unref(g);
      continue;
    }
    PL_TRY(send(c, n->in[j], g));
  }
  return PL_OK;
}

static pl_status step_back(pl_ctx *c, pl_node *n, pl_tensor **gin) {
  PL_TRY(pl_check_interrupt(c));
  pl_profile_enter(c, n->op->name, true);
  pl_status st = fill_gout(c, n);
  if (st == PL_OK) {
    st = n->op->backward(c, n, n->gout, gin);
  }
  leave(c, n->op, gin, n->n_in);
  if (st != PL_OK) {
    return pl_fail_in(c, st, "%s (backward)", n->op->name);
  }
  for (int o = 0; o < n->n_out; o++) { /* gone before the next node allocates */
    pl_tensor_unref(n->gout[o]);
    n->gout[o] = NULL;
  }
  pl_profile_enter(c, "(sums of gradients)", true);
  st = send_all(c, n, gin);
  pl_profile_leave(c, (pl_work){0});
  return st;
}

static pl_status walk_node(pl_ctx *c, pl_node *n) {
  bool reached = false;
  for (int o = 0; o < n->n_out; o++) {
    reached = reached || n->gout[o] != NULL;
  }
  if (!reached) {
    return PL_OK;
  }
  pl_tensor *few[8] = {NULL};
  pl_tensor **gin = few;
  if (n->n_in > 8) {
    gin = pl_alloc_zero(c, (size_t)n->n_in * sizeof *gin);
    if (gin == NULL) {
      return PL_ENOMEM;
    }
  }
  pl_status st = step_back(c, n, gin);
  for (int j = 0; j < n->n_in; j++) {
    pl_tensor_unref(gin[j]);
  }
  if (gin != few) {
    pl_free(c, gin);
  }
  return st;
}

static void release_node(pl_node *n) {
  for (int o = 0; o < PL_OP_MAX_OUT; o++) {
    pl_tensor_unref(n->gout[o]);
    n->gout[o] = NULL;
  }
  n->freed = true;
  pl_node *work = NULL;
  drop_contents(n, &work);
  free_work(work);
}

static pl_status walk(pl_ctx *c, pl_node *root, int out, pl_tensor *seed) {
  node_list l = {0};
  pl_status st = reach(c, root, &l);
  if (st == PL_OK) {
    root->gout[out] = pl_tensor_ref(seed);
    for (int64_t at = l.n / 2 - 1; at >= 0; at--) {
      sift(&l, at);
    }
    while (l.n > 0) {
      pl_node *n = pop(&l);
      if (st == PL_OK) {
        st = walk_node(c, n);
      }
      release_node(n);
      pl_node_unref(n);
    }
  }
  for (int64_t at = 0; at < l.n; at++) { /* only where a check failed */
    pl_node_unref(l.at[at]);
  }
  pl_free(c, l.at);
  return st;
}

pl_status pl_backward(pl_ctx *c, pl_tensor *t, const pl_tensor *grad) {
  char text[128];
  char text2[128];
  if (!t->requires_grad) {
    return pl_fail(c, PL_EINVAL,
                   "backward: this tensor does not depend on anything that requires a gradient "
                   "(was requires_grad_() called, and was recording on?)");
  }
  if (grad == NULL && pl_numel(t) != 1) {
    return pl_fail(c, PL_EINVAL,
                   "backward: a tensor of shape %s needs a gradient argument; "
                   "or reduce it to one number first (:sum(), :mean())",
                   pl_shape_str(t, text));
  }
  if (grad != NULL && !pl_same_shape(t, grad)) {
    return pl_fail(c, PL_EINVAL, "backward: the gradient has shape %s, the tensor %s",
                   pl_shape_str(grad, text), pl_shape_str(t, text2));
  }
  pl_tensor *seed;
  if (grad != NULL) {
    PL_TRY(pl_tensor_cast(c, grad, t->dtype, &seed));
  } else {
    PL_TRY(pl_tensor_like(c, t, &seed));
    const int64_t zero[PL_MAX_DIMS] = {0};
    pl_set(seed, zero, 1);
  }
  bool was = c->grad_enabled;
  c->grad_enabled = false;
  pl_status st;
  if (t->node == NULL) {
    st = gather_leaf(c, t, seed);
    seed = NULL;
  } else {
    st = walk(c, t->node, t->node_out, seed);
  }
  c->grad_enabled = was;
  pl_tensor_unref(seed);
  return st;
}
