/* Files and batches: answered with 404 as yet. */
#include "mock.h" /* first: it asks for the GNU names */

static void none(mock *m, reply *r) {
  error_reply(m, r, 404, "Batches are not served.");
}

void batch_route(mock *m, const request *q, span rest, reply *r) {
  (void)q;
  (void)rest;
  none(m, r);
}

void files_route(mock *m, const request *q, span rest, reply *r) {
  (void)q;
  (void)rest;
  none(m, r);
}

void message_batch_route(mock *m, const request *q, span rest, reply *r) {
  (void)q;
  (void)rest;
  none(m, r);
}

void batches_free(mock *m) {
  (void)m;
}
