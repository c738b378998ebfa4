/* Keys of services, from the environment only: held in C, never a Lua string, wiped when closed.
 * With them the redactor that every message and every kept text passes.
 *
 *   PL_TRY(pl_secrets_load(c, &secrets, "OPENAI_API_KEY"));
 *   const pl_secret *key = pl_secrets_find(&secrets, "OPENAI_API_KEY");
 *   PL_TRY(pl_redact(c, &secrets, text, n, &out, &changed));
 *   pl_secrets_close(c, &secrets);
 *
 * A zeroed pl_secrets is an empty one. */
#ifndef PL_NET_SECRET_H
#define PL_NET_SECRET_H
#include "base/buf.h"

typedef struct pl_secret pl_secret;
typedef struct pl_secrets { pl_secret *first; } pl_secrets;

/* Takes the value of the environment variable: copied, overwritten where the environment held it,
 * unset, core dumps off. Loaded already: nothing to do. Not set, blank, with control characters
 * or over 8 KiB: an error that never holds the value, and the variable stays. */
pl_status pl_secrets_load(pl_ctx *c, pl_secrets *s, const char *name);
const pl_secret *pl_secrets_find(const pl_secrets *s, const char *name); /* NULL: not loaded */
/* Loaded, or in the environment and not blank (it is not loaded by asking). */
bool pl_secrets_known(const pl_secrets *s, const char *name);
const char *pl_secret_value(const pl_secret *key, size_t *n);            /* ends in a NUL too */
void pl_secrets_close(pl_ctx *c, pl_secrets *s);                         /* wipes; idempotent */

/* Does the text hold a loaded key, as it is, escaped or in base64? */
bool pl_secrets_in(const pl_secrets *s, const char *text, size_t n);
/* Appends the text to out with "[key]" for every loaded key of 6 characters and more (as it is,
 * percent-encoded, escaped as in JSON, inside base64) and for the value behind Authorization,
 * ...api-key and ?...key=. Where there is nothing to hide out stays as it was, *changed false. */
pl_status pl_redact(pl_ctx *c, const pl_secrets *s, const char *text, size_t n, pl_buf *out,
                    bool *changed);

#endif
