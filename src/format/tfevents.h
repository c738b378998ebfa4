/* TensorBoard event files: scalars only. A derived view for people; the truth
 * of a run is its metrics.jsonl, so a torn last record after a crash is fine
 * (readers stop there). Each record goes to the system at once. */
#ifndef PL_FORMAT_TFEVENTS_H
#define PL_FORMAT_TFEVENTS_H
#include "base/status.h"

typedef struct pl_tfevents pl_tfevents;

/* Makes dir/events.out.tfevents.SECONDS.HOST.PID; dir must exist. */
pl_status pl_tfevents_open(pl_ctx *c, const char *dir, pl_tfevents **out);
const char *pl_tfevents_path(const pl_tfevents *w);
/* step >= 0; value is stored as a float, NaN and infinities as they are. */
pl_status pl_tfevents_scalar(pl_ctx *c, pl_tfevents *w, const char *tag, int64_t step,
                             double value);
pl_status pl_tfevents_close(pl_ctx *c, pl_tfevents *w); /* frees w in any case; NULL is fine */

#endif
