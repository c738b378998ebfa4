/* What the control groups of this process allow: containers and job schedulers set these limits.
 * Versions 1 and 2; a limit holds for the group that has it and for all below it. Where the files
 * lie is an argument, so that tests can show a tree of their own. It must not set anything. */
#ifndef PL_BASE_CGROUP_H
#define PL_BASE_CGROUP_H
#include <stdint.h>

#define PL_CGROUP_ROOT "/sys/fs/cgroup"     /* where the groups are mounted */
#define PL_CGROUP_SELF "/proc/self/cgroup"  /* which ones this process is in */

/* Processors' worth of time, rounded up; 0 = no limit. */
int pl_cgroup_cpus(const char *root, const char *self);
/* Bytes; 0 = no limit. */
int64_t pl_cgroup_memory(const char *root, const char *self);

#endif
