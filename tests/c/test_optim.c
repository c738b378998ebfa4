/* The optimizer kernels against torch: 10 steps of each case in
 * tests/golden/optim.json (made by make_optim.py), in double and in float, at every
 * instruction set. The 19 weights of the file are repeated: more than two blocks of a kernel. */
#include "each_isa.h"

#include "base/json.h"
#include "kernels/kernels.h"

enum { SIZE = 19, STEPS = 10, MANY = 2 * 16384 + SIZE };

static double number(const cJSON *of, const char *key) {
  const cJSON *v = cJSON_GetObjectItemCaseSensitive(of, key);
  return v ? (cJSON_IsBool(v) ? cJSON_IsTrue(v) : v->valuedouble) : 0;
}

static double at(const cJSON *list, int i) {
  return cJSON_GetArrayItem(list, i)->valuedouble;
}

/* One step of the case on state s (3 buffers), with T's kernels. */
#define STEP(T, S)                                                                               \
  static void step_##S(const char *name, const cJSON *o, int t, T *w, const T *g, T s[][MANY]) { \
    double lr = number(o, "lr");                                                                 \
    double wd = number(o, "weight_decay");                                                       \
    double momentum = number(o, "momentum");                                                     \
    const cJSON *betas = cJSON_GetObjectItemCaseSensitive(o, "betas");                           \
    /* gradients come halved and are scaled back: that is how clipping reaches the kernel */     \
    if (strcmp(name, "adamw") == 0) {                                                            \
      pl_adamw_##S(MANY, w, g, s[0], s[1], 2, lr, at(betas, 0), at(betas, 1), number(o, "eps"),  \
                   wd, t);                                                                       \
    } else if (strcmp(name, "rmsprop") == 0) {                                                   \
      pl_rmsprop_##S(MANY, w, g, s[0], number(o, "centered") != 0 ? s[1] : NULL,                 \
                     momentum != 0 ? s[2] : NULL, 2, lr, number(o, "alpha"), number(o, "eps"),   \
                     wd, momentum);                                                              \
    } else {                                                                                     \
      pl_sgd_##S(MANY, w, g, momentum != 0 ? s[0] : NULL, 2, lr, momentum,                       \
                 number(o, "dampening"), wd, number(o, "nesterov") != 0, t == 1);                \
    }                                                                                            \
  }                                                                                              \
  static void run_##S(const cJSON *file, const cJSON *one, double tol) {                         \
    const char *name = cJSON_GetObjectItemCaseSensitive(one, "name")->valuestring;               \
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(one, "options");                           \
    const cJSON *after = cJSON_GetObjectItemCaseSensitive(one, "after");                         \
    const cJSON *w0 = cJSON_GetObjectItemCaseSensitive(file, "w0");                              \
    const cJSON *g_all = cJSON_GetObjectItemCaseSensitive(file, "g");                            \
    struct {                                                                                     \
      T w[MANY], g[MANY], s[3][MANY];                                                            \
    } *m = pl_alloc_zero(ctx(), sizeof *m);                                                      \
    REQUIRE(m);                                                                                  \
    for (int i = 0; i < MANY; i++) {                                                             \
      m->w[i] = (T)at(w0, i % SIZE);                                                             \
    }                                                                                            \
    bool good = true;                                                                            \
    for (int t = 0; t < STEPS && good; t++) {                                                    \
      double g1[SIZE];                                                                           \
      double want[SIZE];                                                                         \
      for (int i = 0; i < SIZE; i++) {                                                           \
        g1[i] = at(cJSON_GetArrayItem(g_all, t), i) / 2;                                         \
        want[i] = at(cJSON_GetArrayItem(after, t), i);                                           \
      }                                                                                          \
      for (int i = 0; i < MANY; i++) {                                                           \
        m->g[i] = (T)g1[i % SIZE];                                                               \
      }                                                                                          \
      step_##S(name, o, t + 1, m->w, m->g, m->s);                                                \
      for (int i = 0; i < MANY && good; i++) {                                                   \
        const double one_want = want[i % SIZE];                                                  \
        good = fabs((double)m->w[i] - one_want) <= tol * (1 + fabs(one_want));                   \
        if (!good) {                                                                             \
          char *text = cJSON_PrintUnformatted(o);                                                \
          FAIL("%s %s: step %d, weight %d is %.12g, torch has %.12g", name, text, t + 1, i,      \
               (double)m->w[i], one_want);                                                       \
          cJSON_free(text);                                                                      \
        }                                                                                        \
      }                                                                                          \
    }                                                                                            \
    pl_free(ctx(), m);                                                                           \
  }
STEP(double, f64)
STEP(float, f32)

TEST_EACH_ISA(optimizers_follow_torch) {
  cJSON *file = NULL;
  REQUIRE(pl_json_load(ctx(), "tests/golden/optim.json", &file) == PL_OK);
  const cJSON *cases = cJSON_GetObjectItemCaseSensitive(file, "cases");
  CHECK(cJSON_GetArraySize(cases) >= 13);
  const cJSON *one;
  cJSON_ArrayForEach(one, cases) {
    run_f64(file, one, 1e-12);
    run_f32(file, one, 3e-5);
  }
  cJSON_Delete(file);
}

TEST_EACH_ISA(an_update_is_the_same_in_blocks_and_alone) {
  enum { LARGE = 100000 };
  float *x[4];
  for (int k = 0; k < 4; k++) {
    x[k] = pl_alloc(ctx(), LARGE * sizeof(float));
    REQUIRE(x[k] != NULL);
    for (int i = 0; i < LARGE; i++) {
      x[k][i] = (float)((i * (k + 3)) % 97) / 97 + 0.01F;
    }
  }
  const int spots[] = {0, 16383, 16384, 99999};
  float one[4][4];
  for (int s = 0; s < 4; s++) {
    for (int k = 0; k < 4; k++) {
      one[s][k] = x[k][spots[s]];
    }
    pl_adamw_f32(1, &one[s][0], &one[s][1], &one[s][2], &one[s][3], 1, 1e-3, 0.9,
                 0.99, 1e-8, 0.1, 3);
  }
  pl_adamw_f32(LARGE, x[0], x[1], x[2], x[3], 1, 1e-3, 0.9, 0.99, 1e-8, 0.1, 3);
  for (int s = 0; s < 4; s++) {
    CHECK_NEAR(x[0][spots[s]], one[s][0], 1e-6);
    CHECK_NEAR(x[2][spots[s]], one[s][2], 1e-6);
  }
  for (int k = 0; k < 4; k++) {
    pl_free(ctx(), x[k]);
  }
}
