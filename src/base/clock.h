/* Time and the machine. */
#ifndef PL_BASE_CLOCK_H
#define PL_BASE_CLOCK_H
#include "base/status.h"

double pl_now(void);       /* monotonic seconds */
double pl_walltime(void);  /* seconds since 1970 */
int64_t pl_rss_peak(void); /* peak resident bytes of this process */
void pl_cpu_name(char out[128]); /* "AMD EPYC ... (avx2 fma ...)" */

#endif
