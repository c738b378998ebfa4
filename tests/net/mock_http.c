/* Bytes and HTTP/1.1 of the mock: buffers, hashes, reading one request out of a growing buffer.
 * Strict on purpose, so that a client's mistakes are heard; it knows nothing of the services. */
#include "mock.h" /* first: it asks for the GNU names */

#include <ctype.h>
#include <stdarg.h>
#include <strings.h>

void buf_need(buf *b, size_t more) {
  if (b->len + more + 1 <= b->cap) return;
  size_t cap = b->cap ? b->cap * 2 : 1024;
  while (cap < b->len + more + 1) {
    cap *= 2;
  }
  char *data = realloc(b->data, cap);
  if (!data) {
    fprintf(stderr, "mock: out of memory at %zu bytes\n", cap);
    exit(1);
  }
  b->data = data;
  b->cap = cap;
}

void buf_put(buf *b, const void *at, size_t len) {
  buf_need(b, len);
  if (len) memcpy(b->data + b->len, at, len);
  b->len += len;
  b->data[b->len] = 0;
}

void buf_str(buf *b, const char *text) {
  buf_put(b, text, strlen(text));
}

void buf_copy(buf *b, const char *text) {
  b->len = 0;
  buf_str(b, text);
}

void buf_fmt(buf *b, const char *fmt, ...) {
  buf_need(b, 128);
  for (;;) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(b->data + b->len, b->cap - b->len, fmt, args);
    va_end(args);
    if (n < 0) return;
    if (b->len + (size_t)n < b->cap) {
      b->len += (size_t)n;
      return;
    }
    buf_need(b, (size_t)n);
  }
}

void buf_json(buf *b, const char *at, size_t len) {
  buf_need(b, len + 2);
  b->data[b->len++] = '"';
  size_t done = 0;
  for (size_t i = 0; i < len; i++) {
    unsigned char c = (unsigned char)at[i];
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    buf_put(b, at + done, i - done);
    done = i + 1;
    if (c == '"' || c == '\\') {
      char two[2] = {'\\', (char)c};
      buf_put(b, two, 2);
    } else if (c == '\n') {
      buf_put(b, "\\n", 2);
    } else {
      buf_fmt(b, "\\u%04x", c);
    }
  }
  buf_put(b, at + done, len - done);
  buf_put(b, "\"", 1);
}

span span_find(span text, const char *what) {
  const char *at = text.len ? memmem(text.at, text.len, what, strlen(what)) : NULL;
  return at ? (span){at, text.len - (size_t)(at - text.at)} : (span){NULL, 0};
}

uint64_t hash_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t hash_bytes(uint64_t h, const void *at, size_t len) {
  const unsigned char *p = at;
  h ^= 0xcbf29ce484222325u;
  for (size_t i = 0; i < len; i++) h = (h ^ p[i]) * 0x100000001b3u;
  return hash_mix(h ^ len);
}

double hash_unit(uint64_t h) {
  return (double)(hash_mix(h) >> 11) * 0x1p-53;
}

/* ---- one request ---- */
span http_header(const request *q, const char *name) {
  size_t len = strlen(name);
  for (int i = 0; i < q->header_n; i++) {
    span n = q->headers[i].name;
    if (n.len == len && strncasecmp(n.at, name, len) == 0) return q->headers[i].value;
  }
  return (span){NULL, 0};
}

span http_query(const request *q, const char *name) {
  span rest = q->query;
  size_t len = strlen(name);
  while (rest.len) {
    const char *amp = memchr(rest.at, '&', rest.len);
    size_t one = amp ? (size_t)(amp - rest.at) : rest.len;
    if (one > len && rest.at[len] == '=' && memcmp(rest.at, name, len) == 0) {
      return (span){rest.at + len + 1, one - len - 1};
    }
    size_t skip = amp ? one + 1 : one;
    rest.at += skip;
    rest.len -= skip;
  }
  return (span){NULL, 0};
}

static bool is_token(span s) {
  for (size_t i = 0; i < s.len; i++) {
    if (!isalnum((unsigned char)s.at[i]) && !strchr("!#$%&'*+-.^_`|~", s.at[i])) return false;
  }
  return s.len > 0;
}

static bool has_word(span list, const char *word) {
  size_t len = strlen(word);
  for (size_t i = 0; i + len <= list.len; i++) {
    if (strncasecmp(list.at + i, word, len) == 0) return true;
  }
  return false;
}

/* The head in[0..len) without its last CRLF CRLF. 0, or the status that refuses it. */
static int read_head(const char *in, size_t len, request *q) {
  const char *end = in + len;
  const char *eol = memmem(in, len, "\r\n", 2);
  if (!eol) {
    eol = end;
  }
  const char *one = memchr(in, ' ', (size_t)(eol - in));
  if (!one) return 400;
  const char *target = one + 1;
  const char *two = memchr(target, ' ', (size_t)(eol - target));
  if (!two || eol - two != 9 || memcmp(two, " HTTP/", 6) != 0) return 400;
  if (memcmp(two, " HTTP/1.", 8) != 0) return 505;
  q->method = (span){in, (size_t)(one - in)};
  if (!is_token(q->method) || *target != '/') return 400;
  const char *mark = memchr(target, '?', (size_t)(two - target));
  q->path = (span){target, (size_t)((mark ? mark : two) - target)};
  q->query = mark ? (span){mark + 1, (size_t)(two - mark - 1)} : (span){NULL, 0};
  q->keep_alive = two[8] != '0';
  q->header_n = 0;
  const char *at = eol + 2;
  while (at < end) {
    eol = memmem(at, (size_t)(end - at), "\r\n", 2);
    if (!eol) {
      eol = end;
    }
    const char *colon = memchr(at, ':', (size_t)(eol - at));
    if (!colon) return 400;
    span name = {at, (size_t)(colon - at)};
    if (!is_token(name)) return 400; /* a folded line lands here too */
    if (q->header_n == HEADERS_MAX) return 431;
    span value = {colon + 1, (size_t)(eol - colon - 1)};
    while (value.len && (value.at[0] == ' ' || value.at[0] == '\t')) {
      value.at++;
      value.len--;
    }
    while (value.len && strchr(" \t", value.at[value.len - 1])) value.len--;
    for (size_t i = 0; i < value.len; i++) {
      unsigned char c = (unsigned char)value.at[i];
      if ((c < 0x20 && c != '\t') || c == 0x7f) return 400;
    }
    q->headers[q->header_n].name = name;
    q->headers[q->header_n].value = value;
    q->header_n++;
    at = eol + 2;
  }
  span connection = http_header(q, "connection");
  if (has_word(connection, "close")) {
    q->keep_alive = false;
  }
  return 0;
}

static size_t body_limit(const request *q) {
  bool upload = span_is(q->path, "/v1/files") || span_is(q->path, "/v1/messages/batches");
  return upload ? UPLOAD_MAX : BODY_MAX;
}

static int read_length(framing *f, const request *q) {
  span length = {NULL, 0};
  int lengths = 0;
  for (int i = 0; i < q->header_n; i++) {
    if (q->headers[i].name.len == 14 && !strncasecmp(q->headers[i].name.at, "content-length", 14)) {
      length = q->headers[i].value;
      lengths++;
    }
  }
  span coding = http_header(q, "transfer-encoding");
  if (lengths > 1 || (lengths && coding.at)) return 400;
  if (coding.at) {
    if (coding.len != 7 || strncasecmp(coding.at, "chunked", 7) != 0) return 501;
    f->chunked = true;
  }
  size_t n = 0;
  for (size_t i = 0; i < length.len; i++) {
    if (!isdigit((unsigned char)length.at[i])) return 400;
    n = n * 10 + (size_t)(length.at[i] - '0');
    if (n > body_limit(q)) return 413;
  }
  if (lengths && !length.len) return 400;
  f->body_want = n;
  span expect = http_header(q, "expect");
  f->expect = expect.len == 12 && strncasecmp(expect.at, "100-continue", 12) == 0;
  if (expect.at && !f->expect) return 417;
  return 0;
}

/* Moves chunk after chunk behind the part of the body that is there. */
static int read_chunks(framing *f, char *in, size_t len, const request *q) {
  for (;;) {
    if (f->chunk_left) {
      size_t have = len - f->scanned;
      size_t data = f->chunk_left > 2 ? f->chunk_left - 2 : 0;
      size_t take = have < data ? have : data;
      memmove(in + f->body_at + f->body_len, in + f->scanned, take);
      f->body_len += take;
      f->scanned += take;
      f->chunk_left -= take;
      if (f->chunk_left > 2 || len - f->scanned < 2) return HTTP_MORE;
      if (memcmp(in + f->scanned, "\r\n", 2) != 0) return 400;
      f->scanned += 2;
      f->chunk_left = 0;
    }
    const char *line = in + f->scanned;
    const char *eol = memmem(line, len - f->scanned, "\r\n", 2);
    if (!eol) return len - f->scanned > 256 ? 400 : HTTP_MORE;
    size_t n = 0;
    const char *p = line;
    for (; p < eol && isxdigit((unsigned char)*p); p++) {
      int c = tolower((unsigned char)*p);
      n = n * 16 + (size_t)(isdigit(c) ? c - '0' : c - 'a' + 10);
      if (n + f->body_len > body_limit(q)) return 413;
    }
    if (p == line || (p < eol && *p != ';')) return 400;
    size_t after = (size_t)(eol - in) + 2;
    if (n == 0) {
      if (len - after < 2) return HTTP_MORE; /* trailers are refused */
      if (memcmp(in + after, "\r\n", 2) != 0) return 400;
      f->scanned = after + 2;
      return HTTP_WHOLE;
    }
    f->scanned = after;
    f->chunk_left = n + 2;
  }
}

int http_read(framing *f, char *in, size_t len, request *q, size_t *used) {
  bool fresh = !f->has_head;
  if (fresh) {
    size_t from = f->scanned > 3 ? f->scanned - 3 : 0;
    const char *end = memmem(in + from, len - from, "\r\n\r\n", 4);
    if (!end) {
      f->scanned = len;
      return len > HEAD_MAX ? 431 : HTTP_MORE;
    }
    f->body_at = (size_t)(end - in) + 4;
    if (f->body_at > HEAD_MAX) return 431;
    f->has_head = true;
    f->scanned = f->body_at;
  }
  /* read again when more came: the buffer may have moved */
  int status = read_head(in, f->body_at - 4, q);
  if (status) return status;
  if (fresh) {
    status = read_length(f, q);
    if (status) return status;
  }
  if (f->chunked) {
    status = read_chunks(f, in, len, q);
  } else {
    f->body_len = len - f->body_at < f->body_want ? len - f->body_at : f->body_want;
    f->scanned = f->body_at + f->body_len;
    status = f->body_len == f->body_want ? HTTP_WHOLE : HTTP_MORE;
  }
  if (status == HTTP_MORE && fresh && f->expect) return HTTP_CONTINUE;
  if (status == HTTP_WHOLE) {
    q->body = (span){in + f->body_at, f->body_len};
    *used = f->scanned;
  }
  return status;
}

/* ---- one reply ---- */
static const char *status_text(int status) {
  switch (status) {
    case 200: return "OK";
    case 302: return "Found";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 413: return "Payload Too Large";
    case 429: return "Too Many Requests";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "Status";
  }
}

size_t http_write(buf *out, const reply *r, frame *f) {
  bool chunked = r->sse && f->cut == SIZE_MAX && f->keep_alive;
  f->keep_alive = f->keep_alive && (chunked || !r->sse);
  buf_fmt(out, "HTTP/1.1 %d %s\r\n", r->status, status_text(r->status));
  buf_fmt(out, "content-type: %s\r\n", r->type);
  buf_put(out, r->head->data, r->head->len);
  if (!r->sse) buf_fmt(out, "content-length: %zu\r\n", r->body->len + (f->broken ? 100 : 0));
  if (chunked) buf_str(out, "transfer-encoding: chunked\r\n");
  buf_str(out, f->keep_alive ? "\r\n" : "connection: close\r\n\r\n");
  size_t head = out->len;
  if (!chunked) {
    buf_put(out, r->body->data, r->body->len < f->cut ? r->body->len : f->cut);
    return head;
  }
  span rest = {r->body->data, r->body->len};
  while (rest.len) {
    span tail = span_find(rest, "\n\n");
    size_t n = tail.at ? rest.len - tail.len + 2 : rest.len;
    buf_fmt(out, "%zx\r\n", n);
    buf_put(out, rest.at, n);
    buf_str(out, "\r\n");
    rest = (span){rest.at + n, rest.len - n};
  }
  if (!f->broken) buf_str(out, "0\r\n\r\n");
  return head;
}
