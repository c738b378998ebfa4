/* Status, memory, buffers, random numbers, parallel loops, hashes, clock. */
#include "harness.h"

TEST(errors_are_prefixed_and_cut) {
  CHECK_STATUS(pl_fail(ctx(), PL_EINVAL, "bad %d", 3), PL_EINVAL);
  CHECK_STR(ctx()->err, "bad 3");
}
