/* The rules of url.h. Addresses are read with libcurl's own parser, so that what is checked is
 * what libcurl will connect to. */
#include "net/url.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static bool is_loopback(const char *host) {
  struct in_addr v4;
  struct in6_addr v6;
  char inside[64];
  size_t n = strlen(host);
  if (strcasecmp(host, "localhost") == 0) {
    return true;
  }
  if (inet_pton(AF_INET, host, &v4) == 1) {
    return ntohl(v4.s_addr) >> 24 == 127;
  }
  if (n > 2 && n < sizeof inside && host[0] == '[' && host[n - 1] == ']') {
    memcpy(inside, host + 1, n - 2);
    inside[n - 2] = 0;
    return inet_pton(AF_INET6, inside, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
  }
  return false;
}

static pl_status judge(pl_ctx *c, CURLU *u, bool insecure, pl_url *out, char *part[5]) {
  curl_url_get(u, CURLUPART_SCHEME, &part[0], 0);
  curl_url_get(u, CURLUPART_HOST, &part[1], 0);
  curl_url_get(u, CURLUPART_PORT, &part[2], 0);
  curl_url_get(u, CURLUPART_USER, &part[3], 0);
  curl_url_get(u, CURLUPART_PASSWORD, &part[4], 0);
  const char *scheme = part[0] ? part[0] : "";
  const char *host = part[1] ? part[1] : "";
  if (strlen(host) > 255) {
    return pl_fail(c, PL_EINVAL, "the address has a host name of %zu bytes, more than any has",
                   strlen(host));
  }
  snprintf(out->host, sizeof out->host, "%s%s%s", host, part[2] ? ":" : "",
           part[2] ? part[2] : "");
  out->loopback = is_loopback(host);
  if (strcmp(scheme, "https") != 0 && strcmp(scheme, "http") != 0) {
    return pl_fail(c, PL_EINVAL, "%s: scheme %.20s is refused; use https", out->host, scheme);
  }
  if (part[3] || part[4]) {
    return pl_fail(c, PL_EINVAL, "%s: a name or password in the address is refused; "
                   "put the key into an environment variable", out->host);
  }
  if (scheme[4] == 0 && !out->loopback && !insecure) {
    return pl_fail(c, PL_EINVAL, "%s: http sends everything readable for all on the way; "
                   "use https, or insecure = true in a network of your own", out->host);
  }
  return PL_OK;
}

pl_status pl_url_check(pl_ctx *c, const char *url, size_t n, bool insecure, pl_url *out) {
  char *part[5] = {NULL};
  memset(out, 0, sizeof *out);
  CURLU *u = curl_url();
  if (!u) {
    return pl_fail(c, PL_ENOMEM, "out of memory for an address");
  }
  CURLUcode code = curl_url_set(u, CURLUPART_URL, url, 0);
  pl_status st;
  if (code == CURLUE_OUT_OF_MEMORY) {
    st = pl_fail(c, PL_ENOMEM, "out of memory for an address");
  } else if (code == CURLUE_UNSUPPORTED_SCHEME) {
    st = pl_fail(c, PL_EINVAL, "the address has a scheme that is refused; use https");
  } else if (code != CURLUE_OK || strlen(url) != n) {
    st = pl_fail(c, PL_EINVAL, "the address cannot be read (wanted https://host/path)");
  } else {
    st = judge(c, u, insecure, out, part);
  }
  for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
    curl_free(part[i]);
  }
  curl_url_cleanup(u);
  return st;
}

pl_status pl_header_check(pl_ctx *c, const char *line, size_t n) {
  static const char token[] = "!#$%&'*+-.^_`|~0123456789"
                              "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  size_t name = strspn(line, token); /* ends at a NUL too */
  if (name == 0 || name >= n || line[name] != ':') {
    return pl_fail(c, PL_EINVAL, "a header line must read \"Name: value\"; one does not");
  }
  for (size_t i = name; i < n; i++) {
    if (line[i] == '\r' || line[i] == '\n' || line[i] == 0) {
      return pl_fail(c, PL_EINVAL, "header %.*s: a line end or NUL in the value is refused",
                     name > 60 ? 60 : (int)name, line);
    }
  }
  return PL_OK;
}

bool pl_method_ok(const char *method) {
  size_t n = strspn(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
  return n > 0 && n <= 20 && method[n] == 0;
}
