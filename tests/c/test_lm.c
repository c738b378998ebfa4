/* The decoder and the generator: row kernels against plain loops, the sampler
 * against sorting everything, the cache against the full forward pass. */
#include "each_isa.h"

#include "base/par.h"
#include "base/rng.h"
#include "kernels/half.h"
#include "lm/attend.h"
#include "lm/decoder.h"
#include "lm/generate.h"
#include "lm/sample.h"

static const pl_lm_config CFG = {.n_layers = 2, .hidden = 24, .heads = 4, .kv_heads = 2,
                                 .head_dim = 6, .ffn = 20, .vocab = 37, .context = 90,
                                 .eps = 1e-5, .theta = 1000, .tied = false};

static void fill(float *x, int64_t n, uint64_t stream, double scale) {
  for (int64_t i = 0; i < n; i++) {
    x[i] = (float)(scale * pl_normal(7, stream, (uint64_t)i));
  }
}

static pl_decoder *make_decoder(pl_ctx *c, const pl_lm_config *cfg) {
  pl_tensor *w[64];
  const int64_t n = pl_decoder_n_weights(cfg);
  for (int64_t i = 0; i < n; i++) {
    char name[48];
    int nd;
    int64_t shape[2];
    pl_decoder_weight_info(cfg, i, name, &nd, shape);
    if (pl_tensor_new(c, PL_F32, nd, shape, &w[i]) != PL_OK) {
      return NULL;
    }
    fill(pl_f32(w[i]), pl_numel(w[i]), (uint64_t)i, nd == 1 ? 1 : 0.4);
  }
  pl_decoder *d = NULL;
  const pl_status st = pl_decoder_new(c, cfg, w, n, &d);
  for (int64_t i = 0; i < n; i++) {
    pl_tensor_unref(w[i]);
  }
  return st == PL_OK ? d : NULL;
}

/* ---- configuration ---- */

TEST(lm_weights_of_a_gpt2) {
  pl_lm_config f = CFG;
  f.kv_heads = f.heads;
  f.head_dim = 5; /* odd is fine without rotation */
  f.theta = 0;
  f.norm = PL_NORM_LAYER;
  f.act = PL_ACT_GELU_TANH;
  f.learned_pos = f.attention_bias = f.mlp_bias = f.tied = true;
  static const char *const names[] = {"embed", "pos_embed", "layers.0.norm1", "layers.0.norm1_b"};
  const int64_t n = pl_decoder_n_weights(&f);
  CHECK(n == 2 + 16 * f.n_layers + 2);
  char name[48];
  int nd;
  int64_t shape[2];
  for (int i = 0; i < 4; i++) {
    pl_decoder_weight_info(&f, i, name, &nd, shape);
    CHECK(strcmp(name, names[i]) == 0);
  }
  pl_decoder_weight_info(&f, 2 + 16 + 15, name, &nd, shape);
  CHECK(strcmp(name, "layers.1.down_b") == 0 && nd == 1 && shape[0] == f.hidden);
  pl_decoder_weight_info(&f, n - 1, name, &nd, shape);
  CHECK(strcmp(name, "norm_b") == 0);
  pl_decoder *d = make_decoder(ctx(), &f);
  CHECK(d != NULL && d->head == d->embed && d->layers[1].down_b != NULL);
  CHECK(d->layers[0].gate == NULL && d->pos_embed->shape[0] == f.context);
  pl_decoder_free(ctx(), d);
}

TEST(lm_config_refusals) {
  const struct { pl_lm_config f; const char *text; } bad[] = {
      {{.head_dim = 5, .theta = 1}, "head size 5 is odd"},
      {{.head_dim = 6, .theta = 0}, "rope theta 0"},
      {{.head_dim = 6, .theta = 1, .window = -1}, "window -1"},
      {{.head_dim = 6, .theta = 1, .kv_heads = 3}, "cannot share 3"},
      {{.head_dim = 6, .theta = 1, .ffn = -1}, "the feed-forward size is -1"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    pl_lm_config f = CFG;
    f.head_dim = bad[i].f.head_dim;
    f.theta = bad[i].f.theta;
    f.window = bad[i].f.window;
    f.kv_heads = bad[i].f.kv_heads != 0 ? bad[i].f.kv_heads : f.kv_heads;
    f.ffn = bad[i].f.ffn != 0 ? bad[i].f.ffn : f.ffn;
    CHECK(pl_lm_config_check(ctx(), &f) == PL_EINVAL);
    CHECK(strstr(ctx()->err, bad[i].text) != NULL);
  }
}

/* ---- row kernels ---- */

/* Keys and values of T positions, 0..SPLIT-1 of them in blocks 0, 1 (a prefix), the others from
 * block 4 on, and one query for each of H rows. */
enum { H = 4, K = 2, T = 75, SPLIT = 40, W = 96, BLOCKS = 8 };

typedef struct cache {
  int64_t D;
  bool half, pairs; /* pairs: queries and probabilities are rounded as well */
  float *k, *v, *q, *scratch;
  char *block[BLOCKS];
} cache;

static float *numbers(int64_t n, uint64_t stream, bool half) {
  float *x = pl_alloc(ctx(), (size_t)n * sizeof *x);
  fill(x, n, stream, 1);
  if (half) {
    pl_bf16_round(n, x, x);
  }
  return x;
}

static cache cache_of(int64_t D, bool half) {
  cache c = {.D = D, .half = half, .pairs = half && pl_isa_used() == PL_ISA_AVX512BF16};
  c.k = numbers(T * K * D, 1, half);
  c.v = numbers(T * K * D, 2, half);
  c.q = numbers(H * D + 1, 3, c.pairs);
  c.scratch = pl_alloc(ctx(), (size_t)(H * K * pl_attend_floats(T, D)) * sizeof(float));
  for (int i = 0; i < BLOCKS; i++) {
    c.block[i] = pl_alloc_zero(ctx(), (size_t)pl_kv_layer_bytes(K, D, half));
  }
  for (int64_t t = 0; t < T; t++) {
    const int64_t at = t < SPLIT ? t : t - SPLIT;
    pl_kv_write(K, D, half, c.k + t * K * D, c.v + t * K * D, at % PL_KV_BLOCK,
                c.block[(t < SPLIT ? 0 : 4) + at / PL_KV_BLOCK]);
  }
  return c;
}

static void cache_drop(cache *c) {
  for (int i = 0; i < BLOCKS; i++) {
    pl_free(ctx(), c->block[i]);
  }
  pl_free(ctx(), c->k);
  pl_free(ctx(), c->v);
  pl_free(ctx(), c->q);
  pl_free(ctx(), c->scratch);
}

/* How far y is from a plain softmax over positions first..last-1 of head g. */
static double from_plain(const cache *c, int64_t row, int64_t g, int64_t first, int64_t last,
                         const float *y) {
  const int64_t D = c->D;
  double p[T];
  double z = 0;
  double worst = 0;
  for (int64_t t = first; t < last; t++) {
    double s = 0;
    for (int64_t d = 0; d < D; d++) {
      s += (double)c->q[row * D + d] * c->k[(t * K + g) * D + d];
    }
    p[t] = exp(s / sqrt((double)D));
    z += p[t];
  }
  for (int64_t d = 0; d < D; d++) {
    double want = 0;
    for (int64_t t = first; t < last; t++) {
      want += p[t] / z * c->v[(t * K + g) * D + d];
    }
    worst = fmax(worst, fabs(want - y[d]));
  }
  return worst;
}

/* The rows in both heads at once, and each row in each head alone: the same bits, and those of
 * a plain softmax to rounding. n0: of the prefix that they see. */
static void attention(const cache *c, int n0) {
  const int64_t sees[H] = {1, T - SPLIT, 30, 7}; /* of the text of its own */
  float y[K][H][W];
  float alone[W];
  pl_query query[K][H];
  pl_attend a = {.K = K, .D = c->D, .heads = K, .half = c->half, .prefix = c->block, .n0 = n0};
  for (int g = 0; g < K; g++) {
    for (int i = 0; i < H; i++) {
      query[g][i] = (pl_query){c->q + i * c->D, y[g][i], c->block + 4, sees[i], i == 1 ? 12 : 0};
    }
  }
  pl_row_attention(&a, query[0], H, c->scratch);
  a.heads = 1;
  for (; a.head < K; a.head++) {
    for (int i = 0; i < H; i++) {
      pl_query one = query[a.head][i];
      one.y = alone;
      pl_row_attention(&a, &one, 1, c->scratch);
      CHECK(memcmp(alone, y[a.head][i], sizeof *alone * (size_t)c->D) == 0);
      const double off = from_plain(c, i, a.head, SPLIT - n0 + one.past, SPLIT + sees[i], alone);
      CHECK(off < (c->pairs ? 4e-3 : 1e-5)); /* a weight is off by 2^-9 of itself at most */
    }
  }
}

TEST_EACH_ISA(lm_row_attention) {
  static const int64_t sizes[] = {1, 2, 5, 6, 16, 33, 48, 64, 80, 96};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    for (int half = 0; half < 2; half++) {
      cache c = cache_of(sizes[i], half == 1);
      attention(&c, 0);
      attention(&c, SPLIT);
      cache_drop(&c);
    }
  }
}

/* ---- sampling ---- */

typedef struct ranked { double p; float logit; int32_t id; } ranked;

static int by_rank(const void *a, const void *b) {
  const ranked *x = a;
  const ranked *y = b;
  if (x->logit != y->logit) {
    return x->logit > y->logit ? -1 : 1;
  }
  return x->id - y->id;
}

/* The kept probabilities by sorting everything: out[V], 0 where cut off. */
static void slow_kept(int64_t V, const float *logits, const pl_sampling *s, double *out) {
  ranked *r = malloc(sizeof *r * (size_t)V);
  for (int64_t i = 0; i < V; i++) {
    r[i] = (ranked){0, logits[i], (int32_t)i};
    out[i] = 0;
  }
  qsort(r, (size_t)V, sizeof *r, by_rank);
  for (int64_t i = 0; i < V; i++) {
    r[i].p = exp(((double)r[i].logit - r[0].logit) / s->temperature);
  }
  const int64_t n = s->top_k > 0 && s->top_k < V ? s->top_k : V;
  double total = 0;
  for (int64_t i = 0; i < n; i++) {
    total += r[i].p;
  }
  double mass = 0;
  double kept = 0;
  for (int64_t i = 0; i < n && (s->top_p == 1 || mass < s->top_p * total); i++) {
    mass += r[i].p;
    if (r[i].p >= s->min_p) {
      out[r[i].id] = r[i].p;
      kept += r[i].p;
    }
  }
  for (int64_t i = 0; i < V; i++) {
    out[i] /= kept;
  }
  free(r);
}

/* Measured and drawn at once. */
static int32_t sample(int64_t V, const float *logits, const pl_sampling *s, double u, void *scratch,
                      double *logprob) {
  pl_chunk chunks[16];
  CHECK(pl_chunks(V) <= 16);
  pl_sample_measure(V, logits, pl_sample_inverse(s), chunks);
  return pl_sample_token(V, logits, chunks, s, u, scratch, logprob);
}

TEST_EACH_ISA(lm_sampler_matches_sorting) {
  enum { V = 3000 };
  /* many at the best, which is the fastest, for the cuts, which all share */
  const int N = pl_isa_has((pl_isa)(pl_isa_used() + 1)) ? 2000 : 20000;
  static const pl_sampling cases[] = {{1, 0, 1, 0},    {0.7, 0, 0.9, 0}, {1.3, 40, 1, 0},
                                      {1, 5, 0.6, 0},  {1, 0, 1, 0.1},   {2, 100, 0.95, 0.02},
                                      {1, 1, 1, 0},    {0.05, 0, 0.99, 0}, {1, 0, 0.001, 0},
                                      {1, 3, 1, 0},    {1.5, 2, 0.9, 0},   {0.7, 0, 1, 0},
                                      {1, 8, 1, 0},    {1, 11, 0.9, 0.1},  {1e-38, 0, 1, 0},
                                      {1e-44, 0, 0.5, 0}, {1e50, 0, 1, 0}};
  float logits[V];
  fill(logits, V, 11, 3);
  logits[17] = logits[3]; /* equals: the lower id is the higher rank */
  for (int i = 900; i < 1100; i++) {
    logits[i] = 6;
  }
  void *scratch = pl_alloc(ctx(), (size_t)pl_sample_scratch(V));
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    double want[V];
    double got[V] = {0};
    slow_kept(V, logits, &cases[k], want);
    for (int i = 0; i < N; i++) { /* u on a grid: frequencies are then exact to 1/N a token */
      double lp;
      const int32_t id = sample(V, logits, &cases[k], (i + 0.5) / N, scratch, &lp);
      REQUIRE(id >= 0 && id < V);
      got[id] += 1.0 / N;
    }
    double worst = 0;
    for (int i = 0; i < V; i++) {
      worst = fmax(worst, fabs(got[i] - want[i]));
      CHECK(want[i] > 0 || got[i] == 0);
    }
    CHECK(worst < 1.5 / N + 1e-5);
  }
  pl_free(ctx(), scratch);
}

TEST_EACH_ISA(lm_sampler_greedy_and_logprob) {
  enum { V = 300 };
  float logits[V];
  fill(logits, V, 12, 2);
  logits[40] = 9;
  logits[41] = 9;
  const pl_sampling greedy = {0, 0, 1, 0};
  void *scratch = pl_alloc(ctx(), (size_t)pl_sample_scratch(V));
  double lp = 0;
  CHECK(sample(V, logits, &greedy, 0.5, scratch, &lp) == 40);
  double z = 0;
  for (int i = 0; i < V; i++) {
    z += exp(logits[i] - 9.0);
  }
  CHECK_NEAR(lp, -log(z), 1e-6);
  logits[200] = NAN;
  CHECK(sample(V, logits, &greedy, 0.5, scratch, &lp) == -1);
  logits[200] = INFINITY;
  CHECK(sample(V, logits, &greedy, 0.5, scratch, &lp) == -1);
  logits[200] = -INFINITY;
  logits[299] = NAN; /* with no other number in its chunk that counts */
  for (int i = 256; i < 299; i++) {
    logits[i] = -INFINITY;
  }
  CHECK(sample(V, logits, &greedy, 0.5, scratch, &lp) == -1);
  logits[299] = 0;
  CHECK(sample(V, logits, &greedy, 0.5, scratch, &lp) == 40);
  for (int i = 0; i < V; i++) { /* all but one are impossible, a chunk of them wholly */
    logits[i] = i == 7 ? 1 : -INFINITY;
  }
  const pl_sampling plain = {1, 0, 1, 0};
  CHECK(sample(V, logits, &plain, 1 - 1e-12, scratch, &lp) == 7 && fabs(lp) < 1e-6);
  pl_free(ctx(), scratch);
}

/* ---- generator ---- */

enum { PROMPTS = 6, SAMPLES = 3, TOKENS = 40 };
static const int64_t LENGTHS[PROMPTS] = {1, 5, 33, 2, 64, 32};

static void prompt_of(int p, int32_t *out) {
  for (int64_t i = 0; i < LENGTHS[p]; i++) {
    out[i] = (int32_t)(pl_uniform(5, (uint64_t)p, (uint64_t)i) * 37);
  }
}

typedef struct kept { int64_t n; int32_t ids[TOKENS]; float lp[TOKENS]; pl_finish finish; } kept;

static pl_status run_all(pl_ctx *c, pl_decoder *d, pl_pack_kind kind, int64_t rows,
                         const pl_sampling *s, kept out[PROMPTS][SAMPLES]) {
  pl_generator *g = NULL;
  const int32_t stop[] = {9};
  PL_TRY(pl_generator_new(c, d, kind, rows, stop, 1, &g));
  pl_status st = PL_OK;
  for (int p = 0; p < PROMPTS && st == PL_OK; p++) {
    int32_t ids[64];
    prompt_of(p, ids);
    const pl_gen_request r = {.prompt = ids, .n_prompt = LENGTHS[p], .index = p + 1, .n = SAMPLES,
                              .max_tokens = TOKENS, .sampling = *s, .seed = 3};
    st = pl_generator_add(c, g, &r);
  }
  int64_t active = 1;
  while (st == PL_OK && active > 0) {
    st = pl_generator_step(c, g, &active, NULL);
    pl_gen_sample x;
    while (st == PL_OK && pl_generator_take(c, g, &x)) {
      kept *k = &out[x.index - 1][x.sample];
      k->n = x.n;
      k->finish = x.finish;
      memcpy(k->ids, x.ids, sizeof *k->ids * (size_t)x.n);
      memcpy(k->lp, x.logprobs, sizeof *k->lp * (size_t)x.n);
    }
  }
  pl_generator_free(c, g);
  return st;
}

/* The other architecture: every kind of weight that Llama lacks, an odd head size, a window. */
static pl_lm_config gpt2(void) {
  pl_lm_config f = CFG;
  f.kv_heads = f.heads;
  f.head_dim = 5;
  f.norm = PL_NORM_LAYER;
  f.act = PL_ACT_GELU_TANH;
  f.learned_pos = f.attention_bias = f.mlp_bias = f.tied = true;
  f.window = 25;
  return f;
}

static void neighbours(const pl_lm_config *f, pl_pack_kind kind) {
  static kept a[PROMPTS][SAMPLES];
  static kept b[PROMPTS][SAMPLES];
  const pl_sampling s = {1, 0, 0.95, 0};
  pl_decoder *d = make_decoder(ctx(), f);
  REQUIRE(d != NULL);
  const int threads = pl_threads();
  pl_set_threads(1);
  CHECK_OK(run_all(ctx(), d, kind, 1, &s, a));
  for (int rows = 2; rows <= 32; rows *= 4) {
    pl_set_threads(rows == 2 ? 3 : rows == 8 ? 7 : 2);
    memset(b, 0, sizeof b);
    CHECK_OK(run_all(ctx(), d, kind, rows, &s, b));
    for (int p = 0; p < PROMPTS; p++) {
      for (int k = 0; k < SAMPLES; k++) {
        const kept *x = &a[p][k];
        const kept *y = &b[p][k];
        CHECK(x->n > 0 && x->n == y->n && x->finish == y->finish);
        CHECK(memcmp(x->ids, y->ids, sizeof *x->ids * (size_t)x->n) == 0);
        CHECK(memcmp(x->lp, y->lp, sizeof *x->lp * (size_t)x->n) == 0);
        CHECK((x->finish == PL_FINISH_STOP) == (x->ids[x->n - 1] == 9));
        CHECK(LENGTHS[p] + x->n <= f->context);
      }
    }
  }
  CHECK(memcmp(a[0][0].ids, a[0][1].ids, sizeof *a[0][0].ids) != 0 ||
        memcmp(a[1][0].ids, a[1][1].ids, sizeof *a[1][0].ids) != 0); /* samples differ */
  pl_set_threads(threads);
  pl_decoder_free(ctx(), d);
}

TEST_EACH_ISA(lm_generation_does_not_depend_on_neighbours) {
  const pl_lm_config other = gpt2();
  neighbours(&CFG, PL_PACK_F32);
  neighbours(&CFG, PL_PACK_INT8);
  neighbours(&other, PL_PACK_BF16);
  pl_lm_config wide = CFG; /* so many heads that not all of them attend at once */
  wide.heads = 128;
  neighbours(&wide, PL_PACK_BF16);
}

/* How far log p of every generated token is from that of the full forward pass in f32. */
static double from_forward(const pl_lm_config *f, pl_pack_kind kind) {
  static kept a[PROMPTS][SAMPLES];
  const pl_sampling s = {1.2, 0, 1, 0};
  pl_decoder *d = make_decoder(ctx(), f);
  if (d == NULL || run_all(ctx(), d, kind, 4, &s, a) != PL_OK) {
    return INFINITY;
  }
  ctx()->grad_enabled = false;
  double worst = 0;
  for (int p = 0; p < PROMPTS; p++) {
    const kept *k = &a[p][1];
    const int64_t n = LENGTHS[p] + k->n - 1;
    const int64_t two = 2;
    int32_t text[128];
    prompt_of(p, text);
    memcpy(text + LENGTHS[p], k->ids, sizeof *text * (size_t)k->n);
    pl_lm_batch b = {NULL};
    pl_tensor *lp = NULL;
    CHECK(pl_tensor_new(ctx(), PL_I32, 1, &n, &b.ids) == PL_OK);
    CHECK(pl_tensor_new(ctx(), PL_I32, 1, &n, &b.pos) == PL_OK);
    CHECK(pl_tensor_new(ctx(), PL_I32, 1, &two, &b.seq) == PL_OK);
    CHECK(pl_tensor_new(ctx(), PL_I32, 1, &k->n, &b.rows) == PL_OK);
    CHECK(pl_tensor_new(ctx(), PL_I32, 1, &k->n, &b.targets) == PL_OK);
    for (int64_t i = 0; i < n; i++) {
      pl_i32(b.ids)[i] = text[i];
      pl_i32(b.pos)[i] = (int32_t)i;
    }
    pl_i32(b.seq)[0] = 0;
    pl_i32(b.seq)[1] = (int32_t)n;
    for (int64_t i = 0; i < k->n; i++) {
      pl_i32(b.rows)[i] = (int32_t)(LENGTHS[p] + i - 1);
      pl_i32(b.targets)[i] = k->ids[i];
    }
    CHECK(pl_decoder_score(ctx(), d, &b, 8192, &lp) == PL_OK);
    for (int64_t i = 0; i < k->n && lp != NULL; i++) {
      worst = fmax(worst, fabs(pl_f32(lp)[i] - k->lp[i]));
    }
    pl_tensor *all[] = {b.ids, b.pos, b.seq, b.rows, b.targets, lp};
    for (size_t i = 0; i < 6; i++) {
      pl_tensor_unref(all[i]);
    }
  }
  ctx()->grad_enabled = true;
  pl_decoder_free(ctx(), d);
  return worst;
}

TEST_EACH_ISA(lm_cache_equals_forward) {
  const pl_lm_config other = gpt2();
  CHECK(from_forward(&CFG, PL_PACK_F32) < 1e-4);
  CHECK(from_forward(&other, PL_PACK_F32) < 1e-4);
  pl_lm_config wide = CFG;
  wide.heads = 128;
  CHECK(from_forward(&wide, PL_PACK_F32) < 1e-4);
  const double half = fmax(from_forward(&CFG, PL_PACK_BF16), from_forward(&other, PL_PACK_BF16));
  const double eighth = fmax(from_forward(&CFG, PL_PACK_INT8), from_forward(&other, PL_PACK_INT8));
  /* rounded: random weights this large spread it; tests/lua/test_generate.lua has a real model */
  CHECK(half > 1e-4 && half < 0.8);
  CHECK(eighth > 1e-4 && eighth < 1.2);
}

/* Packed weights are made again after a change, and only then. */
TEST(lm_packed_weights_follow_the_model) {
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  pl_pack *a = NULL;
  pl_pack *b = NULL;
  pl_pack *c = NULL;
  CHECK_OK(pl_pack_of(ctx(), d, PL_PACK_INT8, &a));
  CHECK_OK(pl_pack_of(ctx(), d, PL_PACK_INT8, &b));
  CHECK(a == b);
  CHECK_OK(pl_fill(d->layers[1].up, 0.25));
  CHECK_OK(pl_pack_of(ctx(), d, PL_PACK_INT8, &c));
  CHECK(c != a && c->layers[1].up.scale[16] == 0.25F / 127);
  pl_pack_drop(ctx(), b);
  pl_pack_drop(ctx(), c);
  /* a generator that runs keeps what it began with */
  CHECK(a->refs == 1 && a->layers[1].up.N == 64);
  pl_pack_drop(ctx(), a);
  pl_decoder_free(ctx(), d);
}

TEST(lm_generation_refuses_and_survives) {
  static kept a[PROMPTS][SAMPLES];
  const pl_sampling s = {1, 0, 1, 0};
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  pl_generator *g = NULL;
  int32_t ids[128] = {0};
  pl_gen_request r = {.prompt = ids, .n_prompt = 90, .index = 4, .n = 1, .max_tokens = 5,
                      .sampling = s};
  REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 2, NULL, 0, &g) == PL_OK);
  CHECK(pl_generator_add(ctx(), g, &r) == PL_EINVAL);
  CHECK(strstr(ctx()->err, "prompt 4 has 90 tokens") != NULL);
  r.n_prompt = 3;
  ids[1] = 37;
  CHECK(pl_generator_add(ctx(), g, &r) == PL_EINVAL);
  CHECK(strstr(ctx()->err, "token id 37") != NULL);
  ids[1] = 0;
  r.sampling.top_p = NAN;
  CHECK(pl_generator_add(ctx(), g, &r) == PL_EINVAL);
  r.sampling = s;
  r.n = 3;
  CHECK(pl_generator_add(ctx(), g, &r) == PL_OK);
  int64_t active = 0;
  CHECK(pl_generator_step(ctx(), g, &active, NULL) == PL_OK && active == 3);
  pl_generator_stop(ctx(), g, 0);
  pl_gen_sample x;
  CHECK(pl_generator_take(ctx(), g, &x) && x.n == 1 && x.finish == PL_FINISH_STOP);
  pl_interrupt_set();
  CHECK(pl_generator_step(ctx(), g, &active, NULL) == PL_EINTR);
  pl_interrupt_clear();
  pl_generator_free(ctx(), g); /* with samples running and waiting */
  /* a step that failed half way leaves nothing to go on from */
  REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 2, NULL, 0, &g) == PL_OK);
  CHECK(pl_generator_add(ctx(), g, &r) == PL_OK);
  ctx()->mem.fail_at = 3;
  CHECK(pl_generator_step(ctx(), g, &active, NULL) == PL_ENOMEM);
  ctx()->mem.fail_at = 0;
  CHECK(pl_generator_step(ctx(), g, &active, NULL) == PL_EINVAL);
  pl_generator_free(ctx(), g);
  /* every allocation fails once; the harness counts what is left behind */
  pl_status st = PL_ENOMEM;
  for (int64_t n = 1; st == PL_ENOMEM && n < 5000; n += n < 80 ? 1 : 37) {
    ctx()->mem.fail_at = n;
    st = run_all(ctx(), d, PL_PACK_F32, 4, &s, a);
  }
  ctx()->mem.fail_at = 0;
  CHECK(st == PL_OK);
  pl_decoder_free(ctx(), d);
}

/* Runs one request to its end; the sample is valid until the generator is freed. */
static pl_status run_one(pl_generator *g, const pl_gen_request *r, pl_gen_sample *out) {
  PL_TRY(pl_generator_add(ctx(), g, r));
  int64_t active = 1;
  while (active > 0) {
    PL_TRY(pl_generator_step(ctx(), g, &active, NULL));
  }
  return pl_generator_take(ctx(), g, out) ? PL_OK : PL_ENOENT;
}

TEST(lm_generation_key_and_likeliest_tokens) {
  const pl_sampling s = {1, 0, 1, 0};
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  int32_t ids[64];
  prompt_of(1, ids);
  pl_gen_request r = {.prompt = ids, .n_prompt = LENGTHS[1], .index = 4, .n = 1, .max_tokens = 30,
                      .sampling = s, .seed = 3};
  kept a = {0};
  for (int k = 0; k < 3; k++) { /* index 4; index 900 with its key; the same with alternatives */
    pl_generator *g = NULL;
    pl_gen_sample x;
    REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 2, NULL, 0, &g) == PL_OK);
    REQUIRE(run_one(g, &r, &x) == PL_OK);
    REQUIRE(x.n == 30 && x.n_top == r.top && (x.top != NULL) == (r.top > 0));
    if (k == 0) {
      memcpy(a.ids, x.ids, sizeof *x.ids * 30);
      memcpy(a.lp, x.logprobs, sizeof *x.logprobs * 30);
    }
    CHECK(memcmp(a.ids, x.ids, sizeof *x.ids * 30) == 0);
    CHECK(memcmp(a.lp, x.logprobs, sizeof *x.logprobs * 30) == 0);
    for (int64_t i = 0; i < 30 && r.top > 0; i++) {
      const pl_candidate *t = x.top + i * r.top;
      bool among = false;
      for (int64_t j = 0; j < r.top; j++) {
        CHECK(j == 0 || t[j - 1].logit >= t[j].logit);
        among = among || (t[j].id == x.ids[i] && fabs(t[j].logit - x.logprobs[i]) < 1e-6);
      }
      CHECK(among || x.logprobs[i] <= t[r.top - 1].logit);
    }
    pl_generator_free(ctx(), g);
    r.index = 900;
    r.key = 4;
    r.top = k == 1 ? 5 : 0;
  }
  pl_generator *g = NULL;
  REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 2, NULL, 0, &g) == PL_OK);
  r.top = 21;
  CHECK(pl_generator_add(ctx(), g, &r) == PL_EINVAL);
  pl_generator_free(ctx(), g);
  pl_decoder_free(ctx(), d);
}

TEST(lm_cancelled_requests_leave_the_others_alone) {
  const pl_sampling s = {1, 0, 1, 0};
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  pl_generator *g = NULL;
  pl_gen_sample x;
  int32_t ids[64];
  prompt_of(1, ids);
  pl_gen_request r = {.prompt = ids, .n_prompt = LENGTHS[1], .index = 1, .n = 1, .max_tokens = 25,
                      .sampling = s, .seed = 3};
  kept a = {0};
  REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 4, NULL, 0, &g) == PL_OK);
  REQUIRE(run_one(g, &r, &x) == PL_OK);
  memcpy(a.ids, x.ids, sizeof *x.ids * 25);
  r.index = 2;
  r.n = 9; /* runs and waits */
  CHECK_OK(pl_generator_add(ctx(), g, &r));
  r.index = 3;
  r.n = 2;
  r.max_tokens = 1; /* ends and is not taken */
  CHECK_OK(pl_generator_add(ctx(), g, &r));
  int64_t active = 0;
  CHECK_OK(pl_generator_step(ctx(), g, &active, NULL));
  CHECK(active == 11);
  CHECK(pl_generator_cancel(ctx(), g, 77) == 0);
  CHECK(pl_generator_cancel(ctx(), g, 2) == 9);
  r.index = 1;
  r.n = 1;
  r.max_tokens = 25;
  CHECK_OK(pl_generator_add(ctx(), g, &r));
  CHECK_OK(pl_generator_step(ctx(), g, &active, NULL));
  CHECK(active == 1);
  CHECK(pl_generator_cancel(ctx(), g, 3) == 0); /* both had ended */
  while (active > 0) {
    REQUIRE(pl_generator_step(ctx(), g, &active, NULL) == PL_OK);
  }
  REQUIRE(pl_generator_take(ctx(), g, &x));
  CHECK(x.index == 1 && x.n == 25 && memcmp(a.ids, x.ids, sizeof *x.ids * 25) == 0);
  CHECK(!pl_generator_take(ctx(), g, &x));
  r.index = 5;
  r.n = 6;
  CHECK_OK(pl_generator_add(ctx(), g, &r));
  CHECK(pl_generator_cancel(ctx(), g, 5) == 6); /* before its prompt was read */
  CHECK(pl_generator_step(ctx(), g, &active, NULL) == PL_OK && active == 0);
  pl_generator_free(ctx(), g);
  pl_decoder_free(ctx(), d);
}

enum { CROWD = 45, CROWD_TOKENS = 21 };

/* CROWD requests, `rows` at once; after some steps one of them is cancelled, again and again.
 * counts: tokens of each, 0 where it was cancelled. */
static pl_status crowd(pl_decoder *d, int64_t rows, bool cancel, int32_t ids[][CROWD_TOKENS],
                       int64_t *counts) {
  pl_generator *g = NULL;
  PL_TRY(pl_generator_new(ctx(), d, PL_PACK_F32, rows, NULL, 0, &g));
  pl_status st = PL_OK;
  for (int j = 0; j < CROWD && st == PL_OK; j++) {
    int32_t prompt[64];
    prompt_of(j % PROMPTS, prompt);
    const pl_gen_request r = {.prompt = prompt, .n_prompt = LENGTHS[j % PROMPTS], .index = j + 1,
                              .n = 1, .max_tokens = 1 + (j * 5) % CROWD_TOKENS,
                              .sampling = {1, 0, 1, 0}, .seed = 3};
    st = pl_generator_add(ctx(), g, &r);
  }
  int64_t active = 1;
  for (int step = 0; st == PL_OK && active > 0; step++) {
    st = pl_generator_step(ctx(), g, &active, NULL);
    pl_gen_sample x;
    while (st == PL_OK && pl_generator_take(ctx(), g, &x)) {
      counts[x.index - 1] = x.n;
      memcpy(ids[x.index - 1], x.ids, sizeof *x.ids * (size_t)x.n);
    }
    if (cancel && step % 3 == 1) {
      (void)pl_generator_cancel(ctx(), g, 1 + step * 11 % CROWD);
      (void)pl_generator_cancel(ctx(), g, 1 + (step + 5) % 14); /* of the first to have a turn */
    }
  }
  pl_generator_free(ctx(), g);
  return st;
}

/* More rows than take their turn together: each text is what it is alone, whoever goes. */
TEST(lm_rows_take_turns) {
  static int32_t alone[CROWD][CROWD_TOKENS];
  static int32_t among[CROWD][CROWD_TOKENS];
  int64_t n[CROWD] = {0};
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  CHECK_OK(crowd(d, 1, false, alone, n));
  for (int64_t rows = 20; rows <= CROWD; rows += 25) {
    for (int cancel = 0; cancel < 2; cancel++) {
      int64_t m[CROWD] = {0};
      int gone = 0;
      CHECK_OK(crowd(d, rows, cancel == 1, among, m));
      for (int j = 0; j < CROWD; j++) {
        gone += m[j] == 0;
        CHECK(m[j] == 0 || m[j] == n[j]);
        CHECK(memcmp(alone[j], among[j], sizeof alone[j][0] * (size_t)m[j]) == 0);
      }
      CHECK(cancel == 1 ? gone > 3 && gone < CROWD - 9 : gone == 0);
    }
  }
  pl_decoder_free(ctx(), d);
}

/* A row that goes before those whose turn it is takes the turn from none of them. */
TEST(lm_a_turn_stays_with_its_rows) {
  enum { FULL = 16, INTO = 4, EACH = CROWD / 3 };
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  pl_generator *g = NULL;
  REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, CROWD, NULL, 0, &g) == PL_OK);
  int32_t prompt[64];
  prompt_of(1, prompt);
  for (int j = 0; j < CROWD; j++) {
    const pl_gen_request r = {.prompt = prompt, .n_prompt = LENGTHS[1], .index = j + 1, .n = 1,
                              .max_tokens = 30, .sampling = {1, 0, 1, 0}, .seed = 3};
    CHECK_OK(pl_generator_add(ctx(), g, &r));
  }
  int64_t active = 0;
  for (int step = 0; step < FULL + INTO; step++) {
    CHECK_OK(pl_generator_step(ctx(), g, &active, NULL));
  }
  CHECK(pl_generator_cancel(ctx(), g, 3) == 1);
  CHECK_OK(pl_generator_step(ctx(), g, &active, NULL));
  pl_gen_sample x;
  for (int64_t i = 0; pl_generator_look(g, i, &x); i++) {
    CHECK(x.n == (x.index <= EACH ? FULL : x.index <= 2 * EACH ? INTO + 1 : 0));
  }
  CHECK(active == CROWD - 1);
  pl_generator_free(ctx(), g);
  pl_decoder_free(ctx(), d);
}

TEST(lm_scoring_beside_generation) {
  const pl_sampling s = {1, 0, 1, 0};
  pl_decoder *d = make_decoder(ctx(), &CFG);
  REQUIRE(d != NULL);
  pl_generator *g = NULL;
  pl_gen_sample x;
  int32_t text[90];
  prompt_of(2, text);
  const int64_t n = LENGTHS[2];
  const pl_gen_request r = {.prompt = text, .n_prompt = n, .index = 1, .n = 1, .max_tokens = 40,
                            .sampling = s, .seed = 3, .top = 3};
  REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 2, NULL, 0, &g) == PL_OK);
  REQUIRE(run_one(g, &r, &x) == PL_OK);
  memcpy(text + n, x.ids, sizeof *text * 40);
  float lp[89];
  pl_candidate tops[89 * 3];
  REQUIRE(pl_generator_score(ctx(), g, text, n + 40, 3, lp, tops) == PL_OK);
  for (int64_t i = 0; i < 40; i++) {
    CHECK_NEAR(lp[n - 1 + i], x.logprobs[i], 1e-5);
    CHECK(tops[(n - 1 + i) * 3].id == x.top[i * 3].id);
  }
  CHECK(pl_generator_score(ctx(), g, text, 1, 0, lp, tops) == PL_EINVAL);
  CHECK(pl_generator_score(ctx(), g, text, 91, 0, lp, tops) == PL_EINVAL);
  text[3] = 37;
  CHECK(pl_generator_score(ctx(), g, text, 10, 0, lp, tops) == PL_EINVAL);
  CHECK(strstr(ctx()->err, "token id 37") != NULL);
  pl_generator_free(ctx(), g);
  /* where there was no memory, the next try finds nothing half made */
  text[3] = 0;
  pl_status st = PL_ENOMEM;
  for (int64_t at = 1; st == PL_ENOMEM && at < 500; at++) {
    REQUIRE(pl_generator_new(ctx(), d, PL_PACK_F32, 2, NULL, 0, &g) == PL_OK);
    ctx()->mem.fail_at = at;
    st = pl_generator_score(ctx(), g, text, 60, 0, lp, tops);
    ctx()->mem.fail_at = 0;
    CHECK(pl_generator_score(ctx(), g, text, 60, 0, lp, tops) == PL_OK);
    pl_generator_free(ctx(), g);
  }
  CHECK(st == PL_OK);
  pl_decoder_free(ctx(), d);
}
