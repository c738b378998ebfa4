/* make fuzz: mutated files against the readers until time is over. Usage:
 *
 *   fuzz [SECONDS [SEED [CASE]]]    CASE: only that one, to repeat a crash
 *
 * Built with the sanitizers; a crash prints the case's number. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <unistd.h>

#include "base/clock.h"

void __sanitizer_set_death_callback(void (*callback)(void));

static fuzz state; /* global for the death callback alone */

static void on_death(void) {
  fprintf(stderr, "died at: fuzz 0 %llu %llu\n", (unsigned long long)state.seed,
          (unsigned long long)state.number);
}

int main(int argc, char **argv) {
  static pl_ctx ctx;
  char scratch[64];
  double seconds = argc > 1 ? strtod(argv[1], NULL) : 30;
  snprintf(scratch, sizeof scratch, "/tmp/pl-fuzz-%ld.safetensors", (long)getpid());
  if (pl_ctx_init(&ctx) != PL_OK) {
    return 1;
  }
  ctx.mem.limit = (int64_t)1 << 30;
  state.ctx = &ctx;
  state.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
  state.scratch = scratch;
#ifdef PL_SANITIZE
  __sanitizer_set_death_callback(on_death);
#else
  (void)on_death;
#endif
  if (!fuzz_load(&state, ".")) {
    fprintf(stderr, "no golden files: run in the top folder\n");
    return 1;
  }
  double end = pl_now() + seconds;
  if (argc > 3) {
    state.number = strtoull(argv[3], NULL, 10);
    fuzz_case(&state);
  } else {
    while (pl_now() < end) {
      fuzz_case(&state);
      state.number++;
    }
  }
  printf("%llu cases, %llu accepted, no crash\n", (unsigned long long)state.number,
         (unsigned long long)state.accepted);
  unlink(scratch);
  fuzz_end(&state);
  pl_ctx_close(&ctx);
  return 0;
}
