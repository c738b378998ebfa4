/* OpenBLAS as found on this machine. */
#include "kernels/kernels.h"

#include <cblas.h>

const char *pl_blas_corename(void) {
  return openblas_get_corename();
}

void pl_blas_init(void) {
  openblas_set_num_threads(1);
}
