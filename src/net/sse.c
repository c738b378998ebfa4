/* The parser of sse.h. It keeps what was fed until a line is whole, so that characters may be
 * split anywhere; it must not look into the data. */
#include "net/sse.h"

#include <string.h>

void pl_sse_init(pl_sse *s, size_t max_event) {
  memset(s, 0, sizeof *s);
  s->max = max_event;
  pl_buf_init(&s->in, SIZE_MAX / 2);
  pl_buf_init(&s->data, SIZE_MAX / 2);
  pl_buf_init(&s->event, SIZE_MAX / 2);
  pl_buf_init(&s->id, SIZE_MAX / 2);
}

void pl_sse_free(pl_ctx *c, pl_sse *s) {
  pl_buf_free(c, &s->in);
  pl_buf_free(c, &s->data);
  pl_buf_free(c, &s->event);
  pl_buf_free(c, &s->id);
}

pl_status pl_sse_feed(pl_ctx *c, pl_sse *s, const char *bytes, size_t n) {
  if (s->pos > 0 && s->pos >= s->in.len / 2) { /* amortised: a byte moves once at most */
    size_t left = s->in.len - s->pos;
    if (left > 0) {
      memmove(s->in.data, s->in.data + s->pos, left);
    }
    s->in.len = left;
    s->scan -= s->pos;
    s->pos = 0;
  }
  return pl_buf_add(c, &s->in, bytes, n);
}

void pl_sse_finish(pl_sse *s) {
  s->over = true;
}

static pl_status set(pl_ctx *c, pl_buf *b, const char *value, size_t n) {
  pl_buf_reset(b);
  return pl_buf_add(c, b, value, n);
}

static bool named(const char *line, size_t n, const char *name) {
  return n == strlen(name) && memcmp(line, name, n) == 0;
}

static pl_status take_field(pl_ctx *c, pl_sse *s, const char *line, size_t n) {
  const char *colon = memchr(line, ':', n);
  size_t name = colon ? (size_t)(colon - line) : n;
  const char *value = line + (colon ? name + 1 : n);
  size_t nvalue = n - (size_t)(value - line);
  if (nvalue > 0 && value[0] == ' ') {
    value++;
    nvalue--;
  }
  if (named(line, name, "data")) {
    if (s->has_data) {
      PL_TRY(pl_buf_add(c, &s->data, "\n", 1));
    }
    s->has_data = true;
    return pl_buf_add(c, &s->data, value, nvalue);
  }
  if (named(line, name, "event")) {
    s->has_event = nvalue > 0;
    return set(c, &s->event, value, nvalue);
  }
  if (named(line, name, "id") && !memchr(value, 0, nvalue)) {
    s->has_id = nvalue > 0;
    return set(c, &s->id, value, nvalue);
  }
  return PL_OK; /* a comment (no name), retry, or a field that nobody knows */
}

/* A blank line or the end: is there an event? One without data is none. */
static bool dispatch(pl_sse *s) {
  if (!s->has_data) {
    s->has_event = false;
  }
  return s->has_data;
}

/* Without its end, and without a byte-order mark where it is the first; true: an event is whole. */
static pl_status take_line(pl_ctx *c, pl_sse *s, const char *line, size_t n, bool *whole) {
  if (!s->begun && n >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) {
    line += 3;
    n -= 3;
  }
  s->begun = true;
  *whole = n == 0 && dispatch(s);
  return n > 0 ? take_field(c, s, line, n) : PL_OK;
}

static pl_status check_size(pl_ctx *c, const pl_sse *s, size_t line) {
  if (s->data.len > s->max || line > s->max - s->data.len) {
    return pl_fail(c, PL_EFORMAT, "an event of the stream is over %zu bytes", s->max);
  }
  return PL_OK;
}

/* What the input's end leaves: the last line if its end is missing, then the event. */
static pl_status read_rest(pl_ctx *c, pl_sse *s) {
  size_t n = s->in.len - s->pos;
  const char *line = n > 0 ? s->in.data + s->pos : "";
  s->pos = s->in.len;
  s->scan = s->pos;
  if (n > 0) {
    PL_TRY(check_size(c, s, n));
    PL_TRY(take_line(c, s, line, n, &s->held));
  }
  s->held = s->held || dispatch(s);
  return PL_OK;
}

pl_status pl_sse_peek(pl_ctx *c, pl_sse *s, bool *found) {
  while (!s->held && s->scan < s->in.len) {
    char ch = s->in.data[s->scan];
    if (s->after_cr && ch == '\n' && s->scan == s->pos) {
      s->pos++;
      s->scan++;
      s->after_cr = false;
      continue;
    }
    s->after_cr = false;
    size_t i = s->scan;
    while (i < s->in.len && s->in.data[i] != '\n' && s->in.data[i] != '\r') {
      i++;
    }
    s->scan = i;
    PL_TRY(check_size(c, s, i - s->pos));
    if (i < s->in.len) {
      const char *line = s->in.data + s->pos;
      size_t n = i - s->pos;
      s->after_cr = s->in.data[i] == '\r';
      s->scan++;
      s->pos = s->scan;
      PL_TRY(take_line(c, s, line, n, &s->held));
    }
  }
  if (!s->held && s->over) {
    PL_TRY(read_rest(c, s));
  }
  *found = s->held;
  return PL_OK;
}

pl_status pl_sse_next(pl_ctx *c, pl_sse *s, pl_sse_event *out, bool *found) {
  PL_TRY(pl_sse_peek(c, s, found));
  if (*found) {
    *out = (pl_sse_event){.data = s->data.data,
                          .data_n = s->data.len,
                          .event = s->has_event ? s->event.data : NULL,
                          .event_n = s->event.len,
                          .id = s->has_id ? s->id.data : NULL,
                          .id_n = s->id.len};
    s->data.len = 0; /* the bytes stay for the caller until the next call */
    s->has_data = false;
    s->has_event = false;
    s->held = false;
  }
  return PL_OK;
}
