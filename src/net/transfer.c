/* One request: its options for libcurl, the functions libcurl calls, and what its end means.
 *
 * libcurl sends a request again by itself where a kept connection turns out to be dead. It asks
 * `before_send` first each time, and there a second sending is stopped if a byte of the first has
 * left: what is paid per request must be counted by the caller. */
#define _GNU_SOURCE
#include "net/transfer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/mem.h"

#define KEEP_MAX ((size_t)256 << 10) /* larger buffers are not kept for the next request */

const char *pl_http_failure_name(pl_http_failure f) {
  static const char *const names[] = {
      [PL_HTTP_DONE] = NULL,       [PL_HTTP_REFUSED] = "refused",
      [PL_HTTP_RESOLVE] = "resolve", [PL_HTTP_CONNECT] = "connect",
      [PL_HTTP_TLS] = "tls",       [PL_HTTP_RESET] = "reset",
      [PL_HTTP_TIMEOUT] = "timeout", [PL_HTTP_IDLE] = "idle",
      [PL_HTTP_SHORT] = "short",   [PL_HTTP_TOO_LARGE] = "too_large",
      [PL_HTTP_PROTOCOL] = "protocol"};
  return names[f];
}

/* ---- what libcurl calls ---- */

/* libcurl stops with an error of its own when a function takes less than it was given. */
static size_t stop(pl_transfer *t, pl_http_failure f) {
  t->failure = f;
  return 0;
}

static size_t too_large(pl_transfer *t, const char *what, size_t max) {
  snprintf(t->message, sizeof t->message, "%s: the reply's %s is over %zu bytes", t->where.host,
           what, max);
  return stop(t, PL_HTTP_TOO_LARGE);
}

static size_t no_memory(pl_transfer *t) {
  snprintf(t->message, sizeof t->message, "%s: the reply could not be kept: %.200s",
           t->where.host, t->ctx->err);
  return stop(t, PL_HTTP_TOO_LARGE);
}

/* One header line. A new status line begins anew: before it came a 1xx reply. What comes after the
 * header (trailers of a chunked body) is left out. */
static size_t on_header(char *line, size_t one, size_t n, void *arg) {
  pl_transfer *t = arg;
  (void)one;
  t->last = *t->now;
  bool starts = n >= 5 && memcmp(line, "HTTP/", 5) == 0;
  if (starts && (t->head_done || t->head.len == 0)) {
    pl_buf_reset(&t->head);
    t->head_done = false;
  } else if (t->head_done) {
    return n;
  }
  if (n > PL_HEAD_MAX - t->head.len) {
    return too_large(t, "header", PL_HEAD_MAX);
  }
  if (line[0] == '\r' || line[0] == '\n') {
    t->head_done = true;
    return n;
  }
  return pl_buf_add(t->ctx, &t->head, line, n) == PL_OK ? n : no_memory(t);
}

static bool is_event_stream(CURL *easy) {
  static const char want[] = "text/event-stream";
  const char *type = NULL;
  curl_easy_getinfo(easy, CURLINFO_CONTENT_TYPE, &type);
  return type && strncasecmp(type, want, sizeof want - 1) == 0;
}

static size_t on_body(char *bytes, size_t one, size_t n, void *arg) {
  pl_transfer *t = arg;
  (void)one;
  t->last = *t->now;
  if (n > t->body.max - t->body.len) {
    return too_large(t, "body", t->body.max);
  }
  if (pl_buf_add(t->ctx, &t->body, bytes, n) != PL_OK) {
    return no_memory(t);
  }
  if (t->stream && !t->typed) {
    t->typed = true;
    t->events = is_event_stream(t->easy);
  }
  if (t->events) {
    bool found = false;
    if (pl_sse_feed(t->ctx, &t->sse, bytes, n) != PL_OK ||
        pl_sse_peek(t->ctx, &t->sse, &found) != PL_OK) {
      return no_memory(t);
    }
    if (found) {
      pl_http_mark_ready(t);
    }
  }
  return n;
}

static int on_progress(void *arg, curl_off_t down_all, curl_off_t down, curl_off_t up_all,
                       curl_off_t up) {
  pl_transfer *t = arg;
  (void)down_all;
  (void)up_all;
  if (down != t->down || up != t->up) {
    t->down = down;
    t->up = up;
    t->last = *t->now;
  }
  return 0;
}

static bool bytes_left(CURL *easy) {
  long n = 0;
  curl_easy_getinfo(easy, CURLINFO_REQUEST_SIZE, &n);
  return n > 0;
}

static int before_send(void *arg, char *their_ip, char *our_ip, int their_port, int our_port) {
  pl_transfer *t = arg;
  (void)their_ip;
  (void)our_ip;
  (void)their_port;
  (void)our_port;
  t->asks++;
  t->last = *t->now;
  t->resend = t->asks > 1 && bytes_left(t->easy);
  return t->resend ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

/* As libcurl would, but a program started later does not inherit the connection. */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a) {
  (void)arg;
  (void)purpose;
  return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

/* ---- before ---- */

static CURLcode set_constant(pl_transfer *t, const char *user_agent, const char *ca) {
  CURLcode worst = CURLE_OK;
#define SET(option, value)                                          \
  do {                                                              \
    CURLcode code_ = curl_easy_setopt(t->easy, option, value);      \
    worst = worst == CURLE_OK ? code_ : worst;                      \
  } while (0)
  SET(CURLOPT_PRIVATE, t);
  SET(CURLOPT_ERRORBUFFER, t->error);
  /* before 7.87 a dead TLS connection raised SIGPIPE, from which only libcurl itself shielded */
  SET(CURLOPT_NOSIGNAL, (long)(curl_version_info(CURLVERSION_NOW)->version_num >= 0x075700));
  SET(CURLOPT_WRITEFUNCTION, on_body);
  SET(CURLOPT_WRITEDATA, t);
  SET(CURLOPT_HEADERFUNCTION, on_header);
  SET(CURLOPT_HEADERDATA, t);
  SET(CURLOPT_XFERINFOFUNCTION, on_progress);
  SET(CURLOPT_XFERINFODATA, t);
  SET(CURLOPT_NOPROGRESS, 0L);
  SET(CURLOPT_PREREQFUNCTION, before_send);
  SET(CURLOPT_PREREQDATA, t);
  SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
#if LIBCURL_VERSION_NUM >= 0x075500
  SET(CURLOPT_PROTOCOLS_STR, "http,https"); /* which of them when: pl_url_check */
#else
  SET(CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
  SET(CURLOPT_FOLLOWLOCATION, 0L);
  SET(CURLOPT_UNRESTRICTED_AUTH, 0L);
  SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
  SET(CURLOPT_FAILONERROR, 0L);
  SET(CURLOPT_HTTP09_ALLOWED, 0L);
  SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  SET(CURLOPT_SSL_VERIFYPEER, 1L);
  SET(CURLOPT_SSL_VERIFYHOST, 2L);
  SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
  SET(CURLOPT_ACCEPT_ENCODING, ""); /* all that libcurl can undo */
  SET(CURLOPT_TCP_NODELAY, 1L);
  /* The least it takes. The usual 64 KiB, got and given back for each request, make malloc
   * tidy up each time. */
  SET(CURLOPT_UPLOAD_BUFFERSIZE, 16384L);
  SET(CURLOPT_TCP_KEEPALIVE, 1L);
  SET(CURLOPT_TCP_KEEPIDLE, 30L);
  SET(CURLOPT_TCP_KEEPINTVL, 15L);
  SET(CURLOPT_USERAGENT, user_agent);
  if (ca) {
    SET(CURLOPT_CAINFO, ca);
  }
#undef SET
  /* a libcurl without HTTP/2 stays with 1.1 */
  curl_easy_setopt(t->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
  return worst;
}

pl_status pl_transfer_new(pl_ctx *c, pl_http *client, const double *now, const char *user_agent,
                          const char *ca, pl_transfer **out) {
  pl_transfer *t = pl_alloc_zero(c, sizeof *t);
  if (!t) {
    return PL_ENOMEM;
  }
  t->ctx = c;
  t->client = client;
  t->now = now;
  pl_buf_init(&t->out, SIZE_MAX / 2);
  pl_buf_init(&t->head, PL_HEAD_MAX);
  pl_sse_init(&t->sse, SIZE_MAX / 2);
  t->easy = curl_easy_init();
  CURLcode code = t->easy ? set_constant(t, user_agent, ca) : CURLE_OUT_OF_MEMORY;
  if (code != CURLE_OK) {
    pl_transfer_free(c, t);
    return pl_fail(c, PL_EINVAL, "libcurl %s cannot be set up: %s",
                   curl_version_info(CURLVERSION_NOW)->version, curl_easy_strerror(code));
  }
  *out = t;
  return PL_OK;
}

static pl_status add_header(pl_ctx *c, pl_transfer *t, const char *line) {
  struct curl_slist *more = curl_slist_append(t->headers, line);
  if (!more) {
    return pl_fail(c, PL_ENOMEM, "out of memory for the header of a request");
  }
  t->headers = more;
  return PL_OK;
}

/* The line with the key is put together in memory that is wiped at once; libcurl's own copies are
 * wiped when it frees them (http.c). */
static pl_status add_secret(pl_ctx *c, pl_transfer *t, const pl_http_request *r) {
  size_t n = 0;
  const char *value = pl_secret_value(r->secret, &n);
  size_t front = r->secret_header.n;
  char *line = pl_alloc(c, front + n + 1);
  if (!line) {
    return PL_ENOMEM;
  }
  memcpy(line, r->secret_header.text, front);
  memcpy(line + front, value, n + 1);
  pl_status st = add_header(c, t, line);
  explicit_bzero(line, front + n + 1);
  pl_free(c, line);
  return st;
}

static pl_status add_headers(pl_ctx *c, pl_transfer *t, const pl_http_request *r) {
  bool typed = false;
  for (size_t i = 0; i < r->header_n; i++) {
    const char *line = r->headers[i].text;
    PL_TRY(pl_header_check(c, line, r->headers[i].n));
    PL_TRY(add_header(c, t, line));
    typed = typed || strncasecmp(line, "content-type:", 13) == 0;
  }
  if (r->secret) {
    PL_TRY(pl_header_check(c, r->secret_header.text, r->secret_header.n));
    PL_TRY(add_secret(c, t, r));
  }
  PL_TRY(add_header(c, t, "Expect:")); /* no waiting for a 100 before the body */
  return typed ? PL_OK : add_header(c, t, "Content-Type:"); /* none rather than a form's */
}

static long milliseconds(double s) {
  double ms = s * 1000;
  return ms >= (double)INT_MAX ? INT_MAX : ms < 1 ? 1 : (long)ms;
}

static void set_method(pl_transfer *t, const pl_http_request *r) {
  curl_easy_setopt(t->easy, CURLOPT_NOBODY, 0L); /* also undoes what the last request set */
  if (r->body.text || strcmp(r->method, "POST") == 0) {
    curl_easy_setopt(t->easy, CURLOPT_POST, 1L);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->out.len);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->out.data);
  } else {
    curl_easy_setopt(t->easy, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(t->easy, CURLOPT_NOBODY, (long)(strcmp(r->method, "HEAD") == 0));
  }
  curl_easy_setopt(t->easy, CURLOPT_CUSTOMREQUEST, r->method);
}

static pl_status check_request(pl_ctx *c, pl_transfer *t, const pl_http_request *r) {
  PL_TRY(pl_url_check(c, r->url.text, r->url.n, r->insecure, &t->where));
  if (!pl_method_ok(r->method)) {
    return pl_fail(c, PL_EINVAL, "%s: the method must be capital letters, such as POST",
                   t->where.host);
  }
  pl_status st = add_headers(c, t, r);
  return st == PL_EINVAL ? pl_fail_in(c, st, "%s", t->where.host) : st;
}

pl_status pl_transfer_arm(pl_ctx *c, pl_transfer *t, const pl_http_request *r) {
  t->id = r->id;
  t->stream = r->stream;
  t->connect_s = r->connect_s;
  t->total_s = r->total_s;
  t->idle_s = r->idle_s;
  pl_buf_init(&t->body, r->max_body);
  t->started = *t->now;
  t->last = *t->now;
  PL_TRY(check_request(c, t, r));
  PL_TRY(pl_buf_add(c, &t->out, r->body.text ? r->body.text : "", r->body.n));
  set_method(t, r);
  CURLcode code = curl_easy_setopt(t->easy, CURLOPT_URL, r->url.text);
  curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
  curl_easy_setopt(t->easy, CURLOPT_CONNECTTIMEOUT_MS, milliseconds(r->connect_s));
  curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, milliseconds(r->total_s));
  /* what is announced as larger is not even begun */
  curl_easy_setopt(t->easy, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)r->max_body);
  curl_easy_setopt(t->easy, CURLOPT_PROXY, t->where.loopback ? "" : NULL);
  /* over TLS it pays to wait whether the first connection can carry many requests */
  curl_easy_setopt(t->easy, CURLOPT_PIPEWAIT, (long)(strncasecmp(r->url.text, "https", 5) == 0));
  return code == CURLE_OK ? PL_OK : pl_fail(c, PL_ENOMEM, "out of memory for an address");
}

/* ---- after ---- */

static pl_http_failure never_asked(const pl_transfer *t, CURLcode code) {
  switch (code) {
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
      return PL_HTTP_REFUSED;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
      return PL_HTTP_RESOLVE;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_USE_SSL_FAILED:
    case CURLE_SSL_ENGINE_INITFAILED:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
      return PL_HTTP_TLS;
    case CURLE_OPERATION_TIMEDOUT:
      return *t->now - t->started >= t->total_s ? PL_HTTP_TIMEOUT : PL_HTTP_CONNECT;
    default:
      return PL_HTTP_CONNECT;
  }
}

static pl_http_failure once_asked(const pl_transfer *t, CURLcode code) {
  switch (code) {
    case CURLE_OK: /* libcurl takes an end within the header for an end */
      return t->head_done && t->status >= 200 ? PL_HTTP_DONE : PL_HTTP_RESET;
    case CURLE_OPERATION_TIMEDOUT:
      return PL_HTTP_TIMEOUT;
    case CURLE_PARTIAL_FILE:
      return PL_HTTP_SHORT;
    case CURLE_FILESIZE_EXCEEDED:
    case CURLE_OUT_OF_MEMORY: /* what libcurl 7 says to a header line over 100 KB */
      return PL_HTTP_TOO_LARGE;
    case CURLE_RECV_ERROR: /* broken chunks too, which only the text tells apart */
      return strstr(t->error, "chunk") ? PL_HTTP_PROTOCOL : PL_HTTP_RESET;
    case CURLE_SEND_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_ABORTED_BY_CALLBACK: /* before_send */
    case CURLE_SEND_FAIL_REWIND:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_COULDNT_RESOLVE_HOST: /* on the way to send again, which would be stopped */
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
      return PL_HTTP_RESET;
    default:
      return PL_HTTP_PROTOCOL;
  }
}

static void say(pl_transfer *t, CURLcode code) {
  const char *host = t->where.host;
  char *out = t->message;
  size_t size = sizeof t->message;
  const char *text = t->error[0] ? t->error : curl_easy_strerror(code);
  long number = 0;
  curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &number);
  const char *paid = t->sent ? "; the request may have been carried out" : "; nothing was sent";
  switch (t->failure) {
    case PL_HTTP_RESOLVE:
      snprintf(out, size, "%s: the name was not found (%s); check the address and the network",
               host, text);
      break;
    case PL_HTTP_CONNECT:
      if (code == CURLE_OPERATION_TIMEDOUT) {
        snprintf(out, size, "%s: no connection within %g s; check the address and the network",
                 host, t->connect_s);
      } else {
        snprintf(out, size, "%s: no connection (%s); is the service up and the address right?",
                 host, number > 0 ? strerror((int)number) : text);
      }
      break;
    case PL_HTTP_TLS:
      snprintf(out, size, "%s: no secure connection (%.200s); nothing was sent. Check the "
               "clock; name a certificate authority of your own in SSL_CERT_FILE", host, text);
      break;
    case PL_HTTP_RESET:
      snprintf(out, size, "%s: the connection broke (%s)%s", host,
               t->resend || code == CURLE_OK || code == CURLE_GOT_NOTHING
                   ? "closed by the server before its reply was whole"
                   : text,
               paid);
      break;
    case PL_HTTP_TIMEOUT:
      snprintf(out, size, "%s: no whole reply within %g s%s", host, t->total_s, paid);
      break;
    case PL_HTTP_IDLE:
      snprintf(out, size, "%s: nothing came for %g s%s", host, t->idle_s, paid);
      break;
    case PL_HTTP_SHORT:
      snprintf(out, size, "%s: the reply ended after %zu bytes, before its announced end%s", host,
               t->body.len, paid);
      break;
    case PL_HTTP_TOO_LARGE:
      if (code == CURLE_OUT_OF_MEMORY) {
        snprintf(out, size, "%s: a header line of the reply is too long", host);
      } else {
        snprintf(out, size, "%s: the reply is over the limit of %zu bytes", host, t->body.max);
      }
      break;
    default:
      snprintf(out, size, "%s: the reply is not proper HTTP (%s); is it a service of this kind?",
               host, text);
      break;
  }
}

static void redact_message(pl_transfer *t, const pl_secrets *secrets) {
  static const pl_secrets none = {NULL};
  pl_buf clean;
  bool changed = false;
  pl_buf_init(&clean, SIZE_MAX / 2);
  pl_status st = pl_redact(t->ctx, secrets ? secrets : &none, t->message, strlen(t->message),
                           &clean, &changed);
  if (st != PL_OK || changed) { /* without memory to look through it, nothing of it is shown */
    snprintf(t->message, sizeof t->message, "%s",
             st == PL_OK ? clean.data : "failed; no memory for the message");
  }
  pl_buf_free(t->ctx, &clean);
}

void pl_transfer_end(pl_transfer *t, CURLcode code, const pl_secrets *secrets) {
  curl_off_t total = 0;
  curl_off_t first = 0;
  curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &t->status);
  curl_easy_getinfo(t->easy, CURLINFO_TOTAL_TIME_T, &total);
  curl_easy_getinfo(t->easy, CURLINFO_STARTTRANSFER_TIME_T, &first);
  t->sent = t->asks > 0 && (t->status > 0 || bytes_left(t->easy));
  t->seconds = t->failure == PL_HTTP_DONE && total > 0 ? (double)total * 1e-6
                                                        : *t->now - t->started;
  t->first_s = t->status > 0 ? (double)first * 1e-6 : 0;
  if (t->failure == PL_HTTP_DONE) {
    t->failure = t->sent ? once_asked(t, code) : never_asked(t, code);
  }
  if (t->failure == PL_HTTP_DONE && t->events) {
    pl_sse_finish(&t->sse);
  }
  if (t->failure != PL_HTTP_DONE) {
    if (!t->message[0]) {
      say(t, code);
    }
    redact_message(t, secrets);
  }
}

static void keep_small(pl_ctx *c, pl_buf *b) {
  if (b->cap > KEEP_MAX) {
    pl_buf_free(c, b);
  }
  pl_buf_reset(b);
}

void pl_transfer_clear(pl_ctx *c, pl_transfer *t) {
  if (t->easy) {
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, NULL);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, NULL);
  }
  curl_slist_free_all(t->headers);
  keep_small(c, &t->out);
  keep_small(c, &t->head);
  pl_buf_free(c, &t->body);
  pl_sse_free(c, &t->sse);
  *t = (pl_transfer){.ctx = c, .client = t->client, .now = t->now, .easy = t->easy,
                     .out = t->out, .head = t->head};
  pl_sse_init(&t->sse, SIZE_MAX / 2); /* an event is never larger than its body may be */
}

void pl_transfer_free(pl_ctx *c, pl_transfer *t) {
  pl_transfer_clear(c, t);
  if (t->easy) {
    curl_easy_cleanup(t->easy);
  }
  pl_buf_free(c, &t->out);
  pl_buf_free(c, &t->head);
  pl_free(c, t);
}

bool pl_http_header(const char *head, size_t head_n, size_t *at, pl_http_field *out) {
  while (*at < head_n) {
    const char *line = head + *at;
    const char *end = memchr(line, '\n', head_n - *at);
    size_t n = end ? (size_t)(end - line) : head_n - *at;
    *at += end ? n + 1 : n;
    while (n > 0 && (line[n - 1] == '\r' || line[n - 1] == ' ' || line[n - 1] == '\t')) {
      n--;
    }
    const char *colon = memchr(line, ':', n);
    if (!colon || colon == line || line[0] == ' ' || line[0] == '\t') {
      continue; /* the status line, or the rest of a folded line */
    }
    out->name = line;
    out->name_n = (size_t)(colon - line);
    out->value = colon + 1;
    out->value_n = n - out->name_n - 1;
    while (out->value_n > 0 && (out->value[0] == ' ' || out->value[0] == '\t')) {
      out->value++;
      out->value_n--;
    }
    return true;
  }
  return false;
}
