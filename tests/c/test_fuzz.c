/* A short run of tests/fuzz in every test run; `make fuzz` is the long one. */
#include "harness.h"

#include "../fuzz/fuzz.h"

TEST(mutated_files_do_no_harm) {
  static fuzz f;
  char scratch[256];
  const char *root = getenv("PL_ROOT");
  snprintf(scratch, sizeof scratch, "%s/fuzz.safetensors", scratch_dir());
  f.ctx = ctx();
  f.seed = 1;
  f.scratch = scratch;
  REQUIRE(fuzz_load(&f, root && *root ? root : "."));
  for (f.number = 0; f.number < (quick_mode() ? 300 : 1500); f.number++) {
    fuzz_case(&f);
  }
  /* about one in seventy still reads; none would mean that the readers are not reached */
  CHECK(f.accepted > f.number / 150);
  fuzz_end(&f);
}
