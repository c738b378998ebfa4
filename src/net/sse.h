/* Server-sent events (HTML standard, "server-sent events"): bytes in, in pieces of any size,
 * events out. Usage:
 *
 *   pl_sse s;
 *   pl_sse_init(&s, 1 << 20);
 *   PL_TRY(pl_sse_feed(c, &s, bytes, n));
 *   PL_TRY(pl_sse_next(c, &s, &event, &found));   until found is false
 *   pl_sse_finish(&s);                            the stream is over: then once more
 *   pl_sse_free(c, &s);
 *
 * Lines end with CR, LF or CRLF; a byte-order mark in front is skipped; the field retry is
 * ignored, for connecting again is not this parser's decision. */
#ifndef PL_NET_SSE_H
#define PL_NET_SSE_H
#include "base/buf.h"

typedef struct pl_sse {
  pl_buf in;          /* what was fed and not yet read */
  size_t pos, scan;   /* start of the line being read; up to where no line end was found */
  pl_buf data, event, id;
  size_t max;         /* most bytes of one event */
  bool has_data, has_event, has_id;
  bool begun;         /* the first line is behind us, and with it a byte-order mark */
  bool after_cr;      /* a line feed now belongs to the line before */
  bool over, held;    /* no more is fed; an event waits for pl_sse_next */
} pl_sse;

/* Borrowed from the parser until its next call; event and id may be NULL. */
typedef struct pl_sse_event {
  const char *data, *event, *id; /* id: the last one the stream named */
  size_t data_n, event_n, id_n;
} pl_sse_event;

void pl_sse_init(pl_sse *s, size_t max_event);
pl_status pl_sse_feed(pl_ctx *c, pl_sse *s, const char *bytes, size_t n);
/* No more comes: an event that lacks its blank line, or the end of its last line, counts. */
void pl_sse_finish(pl_sse *s);
/* Is there a whole event? It stays for pl_sse_next. */
pl_status pl_sse_peek(pl_ctx *c, pl_sse *s, bool *found);
/* An event over the maximum is PL_EFORMAT, also when its end is not yet there. */
pl_status pl_sse_next(pl_ctx *c, pl_sse *s, pl_sse_event *out, bool *found);
void pl_sse_free(pl_ctx *c, pl_sse *s);

#endif
