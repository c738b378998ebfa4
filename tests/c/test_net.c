/* src/net without Lua: events cut anywhere, keys and what hides them, addresses, HMAC, and the
 * client against a server that breaks connections (tests/net/rawserver.c). */
#define _GNU_SOURCE
#include <limits.h>
#include <sys/resource.h>

#include "base/hash.h"
#include "harness.h"
#include "net/http.h"
#include "net/url.h"

/* ---- HMAC ---- */

static void check_hmac(const char *key, size_t nkey, const char *text, size_t n,
                       const char *want) {
  char hex[65];
  pl_hmac_sha256_hex(key, nkey, text, n, hex);
  CHECK_STR(hex, want);
}

TEST(hmac_vectors_of_rfc_4231) {
  char key[131], text[50], count[25];
  memset(key, 0x0b, 20);
  check_hmac(key, 20, "Hi There", 8,
             "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  check_hmac("Jefe", 4, "what do ya want for nothing?", 28,
             "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  memset(key, 0xaa, sizeof key);
  memset(text, 0xdd, sizeof text);
  check_hmac(key, 20, text, 50,
             "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
  for (size_t i = 0; i < sizeof count; i++) {
    count[i] = (char)(i + 1);
  }
  memset(text, 0xcd, sizeof text);
  check_hmac(count, 25, text, 50,
             "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
  static const char first[] = "Test Using Larger Than Block-Size Key - Hash Key First";
  check_hmac(key, 131, first, sizeof first - 1,
             "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  static const char both[] = "This is a test using a larger than block-size key and a larger than "
                             "block-size data. The key needs to be hashed before being used by "
                             "the HMAC algorithm.";
  check_hmac(key, 131, both, sizeof both - 1,
             "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
  check_hmac("", 0, "", 0, "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}

/* ---- server-sent events ---- */

/* All events as one text: [event|data|id], NULL as -. */
static void take_all(pl_sse *s, pl_buf *out) {
  pl_sse_event e;
  bool found = true;
  while (found) {
    CHECK_OK(pl_sse_next(ctx(), s, &e, &found));
    if (found) {
      CHECK_OK(pl_buf_printf(ctx(), out, "[%.*s|%.*s|%.*s]", e.event ? (int)e.event_n : 1,
                             e.event ? e.event : "-", (int)e.data_n, e.data,
                             e.id ? (int)e.id_n : 1, e.id ? e.id : "-"));
    }
  }
}

/* Feeds the text in pieces that end at the cuts a and b, and finishes. */
static void check_cut(const char *text, size_t n, size_t a, size_t b, const char *want) {
  pl_sse s;
  pl_buf out;
  pl_sse_init(&s, 1 << 20);
  pl_buf_init(&out, 1 << 20);
  const size_t cuts[] = {0, a, b, n};
  for (int i = 0; i < 3; i++) {
    CHECK_OK(pl_sse_feed(ctx(), &s, text + cuts[i], cuts[i + 1] - cuts[i]));
    take_all(&s, &out);
  }
  CHECK_OK(pl_buf_puts(ctx(), &out, "."));
  pl_sse_finish(&s);
  take_all(&s, &out);
  if (strcmp(out.data, want) != 0) {
    FAIL("cut at %zu and %zu: \"%s\", wanted \"%s\"", a, b, out.data, want);
  }
  pl_buf_free(ctx(), &out);
  pl_sse_free(ctx(), &s);
}

/* what comes after the dot was given by the end of the input alone */
static const struct {
  const char *text, *want;
} streams[] = {
    {"data: one\n\ndata: two\n\n", "[-|one|-][-|two|-]."},
    {"data: one\r\n\r\ndata: two\r\n\r\n", "[-|one|-][-|two|-]."},
    {"data: one\r\rdata: two\r\r", "[-|one|-][-|two|-]."},
    {"data: one\r\n\rdata: two\n\r\n", "[-|one|-][-|two|-]."},
    {"\xef\xbb\xbf" "data: a mark\n\n", "[-|a mark|-]."},
    {"\xef\xbb\xbf\xef\xbb\xbf" "data: two marks\n\ndata: x\n\n", "[-|x|-]."},
    {": comment\n:\n\ndata: x\n: more\n\n", "[-|x|-]."},
    {"data: a\ndata:b\ndata:  c\ndata\ndata:\n\n", "[-|a\nb\n c\n\n|-]."},
    {"data:\n\ndata\n\n", "[-||-][-||-]."},
    {"event: add\ndata: 1\n\ndata: 2\n\n", "[add|1|-][-|2|-]."},
    {"event: lost\n\ndata: 2\n\n", "[-|2|-]."},
    {"event: a\nevent:\ndata: 2\n\n", "[-|2|-]."},
    {"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", "[-|a|1][-|b|1][-|c|-]."},
    {"retry: 10\nfoo: bar\ndata: x\nbar\n\n", "[-|x|-]."},
    {"data: caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82\n\n",
     "[-|caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82|-]."},
    {"data: {\"a\": \"b:c\"}\n\n", "[-|{\"a\": \"b:c\"}|-]."},
    {"data: one\n\ndata: two\n", "[-|one|-].[-|two|-]"},
    {"data: one\n\ndata: two", "[-|one|-].[-|two|-]"},
    {"data: one\n\ndata: two\r", "[-|one|-].[-|two|-]"},
    {"data: one\n\nevent: e", "[-|one|-]."},
    {"\n\n\r\n\r\r", "."},
    {"", "."},
};

TEST(events_are_the_same_however_the_stream_is_cut) {
  for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
    size_t n = strlen(streams[i].text);
    for (size_t a = 0; a <= n; a++) {
      for (size_t b = a; b <= n; b++) {
        check_cut(streams[i].text, n, a, b, streams[i].want);
      }
    }
  }
}

TEST(an_event_has_a_largest_size) {
  pl_sse s;
  pl_sse_event e;
  bool found;
  pl_sse_init(&s, 20);
  CHECK_OK(pl_sse_feed(ctx(), &s, "data: 12345678901234\n\n", 22));
  CHECK_OK(pl_sse_next(ctx(), &s, &e, &found));
  CHECK(found);
  CHECK_OK(pl_sse_feed(ctx(), &s, "data: 123456789012345678901234", 30));
  CHECK_STATUS(pl_sse_next(ctx(), &s, &e, &found), PL_EFORMAT);
  CHECK_HAS(ctx()->err, "over 20 bytes");
  pl_sse_free(ctx(), &s);
  pl_sse_init(&s, 20);
  pl_status st = PL_OK;
  for (int i = 0; i < 10 && st == PL_OK; i++) { /* many lines of one event */
    CHECK_OK(pl_sse_feed(ctx(), &s, "data: 12345\n", 12));
    st = pl_sse_next(ctx(), &s, &e, &found);
  }
  CHECK_INT(st, PL_EFORMAT);
  pl_sse_free(ctx(), &s);
}

TEST(a_long_stream_needs_little_memory) {
  pl_sse s;
  pl_sse_event e;
  bool found;
  pl_sse_init(&s, 1 << 20);
  for (int i = 0; i < 100000; i++) {
    CHECK_OK(pl_sse_feed(ctx(), &s, "data: some words\n\nda", 20));
    CHECK_OK(pl_sse_feed(ctx(), &s, "ta: more\n\n", 10));
    CHECK_OK(pl_sse_next(ctx(), &s, &e, &found));
    CHECK_OK(pl_sse_next(ctx(), &s, &e, &found));
    CHECK(found);
  }
  CHECK(ctx()->mem.peak < 100000);
  pl_sse_free(ctx(), &s);
}

static pl_status sse_once(void *arg) {
  pl_sse s;
  pl_sse_event e;
  bool found;
  (void)arg;
  pl_sse_init(&s, 1 << 20);
  pl_status st = pl_sse_feed(ctx(), &s, "id: 1\nevent: e\ndata: one\ndata: two\n\n", 36);
  st = st == PL_OK ? pl_sse_next(ctx(), &s, &e, &found) : st;
  pl_sse_free(ctx(), &s);
  return st;
}

TEST(events_without_memory) {
  CHECK(fail_each_alloc(sse_once, NULL) > 2);
}

/* ---- keys ---- */

static void check_redacted(const pl_secrets *s, const char *text, const char *want) {
  pl_buf out;
  bool changed = false;
  pl_buf_init(&out, 1 << 20);
  CHECK_OK(pl_redact(ctx(), s, text, strlen(text), &out, &changed));
  CHECK_STR(changed ? out.data : text, want);
  CHECK_INT(changed, strcmp(text, want) != 0);
  pl_buf_free(ctx(), &out);
}

/* what is hidden whether a key is loaded or not */
static void check_forms(const pl_secrets *s) {
  static const char *const same[] = {
      "", "nothing to hide", "authorization", "Authorization:", "Authorization: [key]",
      "Authorization: Bearer [key]", "x-api-key: [key]", "https://h/p?key=[key]&a=b",
      "the api-key is not here", "a = b; key=value", "the organization's z-score", "?monkey",
      "{\"key\": \"value\", \"finalized\": true}",
  };
  for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
    check_redacted(s, same[i], same[i]);
  }
  check_redacted(s, "> Authorization: Bearer abc.def\r\n> Accept: x",
                 "> Authorization: Bearer [key]\r\n> Accept: x");
  check_redacted(s, "AUTHORIZATION: basic dXNlcjpw, more", "AUTHORIZATION: basic [key], more");
  check_redacted(s, "authorization=abc", "authorization=[key]");
  check_redacted(s, "{\"Authorization\": \"Bearer abc\", \"x\": 1}",
                 "{\"Authorization\": \"Bearer [key]\", \"x\": 1}");
  check_redacted(s, "\"{\\\"authorization\\\":\\\"Bearer abc\\\"}\"",
                 "\"{\\\"authorization\\\":\\\"Bearer [key]\\\"}\"");
  check_redacted(s, "x-api-key: abc\nX-Api-Key:def", "x-api-key: [key]\nX-Api-Key:[key]");
  check_redacted(s, "'x-goog-api-key': 'abc'", "'x-goog-api-key': '[key]'");
  check_redacted(s, "GET /v1/models?key=abc HTTP/1.1", "GET /v1/models?key=[key] HTTP/1.1");
  check_redacted(s, "https://h/p?a=b&key=abc&c=d#e", "https://h/p?a=b&key=[key]&c=d#e");
  check_redacted(s, "?api_key=abc ?key=", "?api_key=[key] ?key=");
}

TEST(forms_of_headers_and_addresses_are_hidden) {
  const pl_secrets none = {NULL};
  check_forms(&none);
}

#define KEY "sk-t/est+Key\"1234567"

TEST(a_loaded_key_is_hidden_in_every_form) {
  pl_secrets s = {NULL};
  setenv("PL_TEST_KEY", KEY, 1);
  REQUIRE(pl_secrets_load(ctx(), &s, "PL_TEST_KEY") == PL_OK);
  check_forms(&s);
  check_redacted(&s, KEY, "[key]");
  check_redacted(&s, "before " KEY " and " KEY ".", "before [key] and [key].");
  check_redacted(&s, KEY KEY, "[key][key]");
  check_redacted(&s, "sk-t/est+Key\"123456 sk-", "sk-t/est+Key\"123456 sk-");
  check_redacted(&s, "Authorization: Bearer " KEY "\n", "Authorization: Bearer [key]\n");
  check_redacted(&s, "{\"k\": \"sk-t/est+Key\\\"1234567\"}", "{\"k\": \"[key]\"}");
  check_redacted(&s, "{\"k\": \"sk-t\\/est\\u002bKey\\u00221234567\"}", "{\"k\": \"[key]\"}");
  check_redacted(&s, "a=sk-t%2Fest%2BKey%221234567&b", "a=[key]&b");
  check_redacted(&s, "a=%73k-t%2fest%2bKey%221234567&b", "a=[key]&b");
  /* base64 of the key, of "a" key "b", "ab" key "c" and user:key@, in both alphabets */
  check_redacted(&s, "x c2stdC9lc3QrS2V5IjEyMzQ1Njc= y", "x [key] y");
  check_redacted(&s, "x YXNrLXQvZXN0K0tleSIxMjM0NTY3Yg== y", "x [key] y");
  check_redacted(&s, "x YWJzay10L2VzdCtLZXkiMTIzNDU2N2M= y", "x [key] y");
  check_redacted(&s, "Basic dXNlcjpzay10L2VzdCtLZXkiMTIzNDU2N0A=\n", "Basic [key]\n");
  CHECK(pl_secrets_in(&s, "x " KEY, 2 + sizeof KEY - 1));
  CHECK(pl_secrets_in(&s, "c2stdC9lc3QrS2V5IjEyMzQ1Njc=", 28));
  CHECK(!pl_secrets_in(&s, "Authorization: Bearer x", 23));
  pl_secrets_close(ctx(), &s);
  check_redacted(&s, KEY, KEY);
}

TEST(base64_in_the_alphabet_of_addresses) {
  pl_secrets s = {NULL};
  setenv("PL_TEST_KEY", "~~~?\?\?>>>~~~", 1);
  REQUIRE(pl_secrets_load(ctx(), &s, "PL_TEST_KEY") == PL_OK);
  check_redacted(&s, "x fn5+Pz8/Pj4+fn5+ y", "x [key] y");
  check_redacted(&s, "x fn5-Pz8_Pj4-fn5- y", "x [key] y");
  pl_secrets_close(ctx(), &s);
}

TEST(a_key_leaves_the_environment) {
  pl_secrets s = {NULL};
  setenv("PL_TEST_KEY", "sk-0123456789", 1);
  CHECK(pl_secrets_known(&s, "PL_TEST_KEY"));
  const char *there = getenv("PL_TEST_KEY");
  REQUIRE(there && *there);
  CHECK_OK(pl_secrets_load(ctx(), &s, "PL_TEST_KEY"));
  CHECK(!getenv("PL_TEST_KEY"));
  CHECK(pl_secrets_known(&s, "PL_TEST_KEY"));
  for (int i = 0; i < 13; i++) {
    CHECK_INT(there[i], 0); /* unsetenv leaves the memory, and it was wiped */
  }
  CHECK_OK(pl_secrets_load(ctx(), &s, "PL_TEST_KEY")); /* again: nothing to do */
  size_t n = 0;
  CHECK_STR(pl_secret_value(pl_secrets_find(&s, "PL_TEST_KEY"), &n), "sk-0123456789");
  CHECK_INT(n, 13);
  struct rlimit core;
  CHECK(getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_cur == 0 && core.rlim_max == 0);
  pl_secrets_close(ctx(), &s);
  pl_secrets_close(ctx(), &s);
  CHECK(!pl_secrets_known(&s, "PL_TEST_KEY"));
}

TEST(what_is_no_key_is_refused_and_not_quoted) {
  static const char *const bad[] = {"", "  \t ", "sk-secret\n", "sk-secret\r\nX: y", "sk-\x01x",
                                    "sk-secret\x7f"};
  pl_secrets s = {NULL};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    setenv("PL_TEST_KEY", bad[i], 1);
    CHECK_STATUS(pl_secrets_load(ctx(), &s, "PL_TEST_KEY"), PL_EINVAL);
    CHECK_HAS(ctx()->err, "PL_TEST_KEY");
    CHECK(!strstr(ctx()->err, "sk-"));
    CHECK(!s.first);
  }
  char *huge = calloc(1, 10001);
  memset(huge, 'k', 10000);
  setenv("PL_TEST_KEY", huge, 1);
  free(huge);
  CHECK_STATUS(pl_secrets_load(ctx(), &s, "PL_TEST_KEY"), PL_EINVAL);
  unsetenv("PL_TEST_KEY");
  CHECK_STATUS(pl_secrets_load(ctx(), &s, "PL_TEST_KEY"), PL_ENOENT);
  CHECK_HAS(ctx()->err, "export");
}

static pl_status redact_once(void *arg) {
  pl_secrets s = {NULL};
  pl_buf out;
  bool changed;
  (void)arg;
  pl_buf_init(&out, 1000);
  setenv("PL_TEST_KEY", KEY, 1);
  pl_status st = pl_secrets_load(ctx(), &s, "PL_TEST_KEY");
  static const char text[] = "x " KEY " ?key=abc";
  st = st == PL_OK ? pl_redact(ctx(), &s, text, sizeof text - 1, &out, &changed) : st;
  pl_buf_free(ctx(), &out);
  pl_secrets_close(ctx(), &s);
  return st;
}

TEST(keys_without_memory) {
  CHECK(fail_each_alloc(redact_once, NULL) > 2);
}

/* ---- addresses and header lines ---- */

TEST(addresses_that_are_refused) {
  static const struct {
    const char *url, *why;
  } bad[] = {
      {"http://api.example.com/v1", "insecure = true"},
      {"http://127.0.0.1.example.com/", "insecure = true"},
      {"http://localhost.example.com/", "insecure = true"},
      {"http://128.0.0.1/", "insecure = true"},
      {"http://[::2]/", "insecure = true"},
      {"http://[::ffff:8.8.8.8]/", "insecure = true"},
      {"https://user:password@api.example.com/", "password"},
      {"https://user@api.example.com/", "password"},
      {"http://localhost@evil.example/", "password"},
      {"ftp://api.example.com/", "https"},
      {"file:///etc/passwd", "https"},
      {"gopher://x/", "https"},
      {"nonsense://x/", "https"},
      {"api.example.com/v1", "https"},
      {"", "https://host/path"},
      {"https://", "https://host/path"},
      {"https://a b/", "https://host/path"},
      {"https://host/\r\nX: y", "https://host/path"},
      {"https://host:99999/", "https://host/path"},
  };
  pl_url u;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    if (pl_url_check(ctx(), bad[i].url, strlen(bad[i].url), false, &u) != PL_EINVAL) {
      FAIL("%s is let through", bad[i].url);
    }
    CHECK_HAS(ctx()->err, bad[i].why);
    CHECK(!strstr(ctx()->err, "password@") && !strstr(ctx()->err, "/v1"));
  }
  CHECK_STATUS(pl_url_check(ctx(), "https://h/\0/x", 13, false, &u), PL_EINVAL);
}

TEST(addresses_that_are_fine) {
  static const struct {
    const char *url, *host;
    bool insecure, loopback;
  } good[] = {
      {"https://api.example.com/v1?x=y", "api.example.com", false, false},
      {"https://api.example.com:8443/", "api.example.com:8443", false, false},
      {"http://api.example.com/", "api.example.com", true, false},
      {"http://localhost:8080/v1", "localhost:8080", false, true},
      {"http://LOCALHOST/", "LOCALHOST", false, true},
      {"http://127.0.0.1:1/", "127.0.0.1:1", false, true},
      {"http://127.200.1.2/", "127.200.1.2", false, true},
      {"http://[::1]:5/", "[::1]:5", false, true},
      {"https://127.0.0.1/", "127.0.0.1", false, true},
  };
  pl_url u;
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    CHECK_OK(pl_url_check(ctx(), good[i].url, strlen(good[i].url), good[i].insecure, &u));
    CHECK_STR(u.host, good[i].host);
    CHECK_INT(u.loopback, good[i].loopback);
  }
}

TEST(header_lines) {
  static const char *const good[] = {"A: b", "Content-Type: x/y", "X-Empty:", "X: a:b \t c"};
  static const char *const bad[] = {"", "no colon", ": x", "A b: c", " A: b", "A: b\r\nC: d",
                                    "A: b\n", "A\r: b", "A\xc3\xa9: b"};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    CHECK_OK(pl_header_check(ctx(), good[i], strlen(good[i])));
  }
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK_STATUS(pl_header_check(ctx(), bad[i], strlen(bad[i])), PL_EINVAL);
  }
  CHECK_STATUS(pl_header_check(ctx(), "A: b\0c", 6), PL_EINVAL);
  CHECK_HAS(ctx()->err, "header A");
}

/* ---- the client against a server that breaks connections ---- */

static FILE *server;
static int port;

static bool start_server(void) {
  char path[PATH_MAX + 32];
  char command[PATH_MAX + 64];
  ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
  if (n <= 0) {
    return false;
  }
  path[n] = 0;
  char *slash = strrchr(path, '/');
  snprintf(slash + 1, 32, "rawserver");
  if (access(path, X_OK) != 0) {
    return false;
  }
  snprintf(command, sizeof command, "exec '%s'", path);
  server = popen(command, "r");
  return server && fscanf(server, "port %d", &port) == 1;
}

static pl_http_text text_of(const char *s) {
  return (pl_http_text){.text = s, .n = s ? strlen(s) : 0};
}

static pl_http_request request(const char *path, const char *body) {
  static char url[128];
  snprintf(url, sizeof url, "http://127.0.0.1:%d%s", port, path);
  return (pl_http_request){.id = 1, .method = body ? "POST" : "GET", .url = text_of(url),
                           .body = text_of(body), .connect_s = 5, .total_s = 5, .idle_s = 5,
                           .max_body = 1 << 20};
}

/* Sends and waits; out is borrowed from h. */
static pl_status exchange(pl_http *h, const pl_http_request *r, pl_http_result *out) {
  bool found = false;
  size_t ready = 0;
  PL_TRY(pl_http_send(ctx(), h, r));
  for (int i = 0; i < 100 && !found; i++) {
    PL_TRY(pl_http_poll(ctx(), h, 0.1, &ready));
    PL_TRY(pl_http_next(ctx(), h, out, &found));
  }
  return found ? PL_OK : pl_fail(ctx(), PL_EIO, "no result");
}

static int count_of(pl_http *h, const char *path) {
  pl_http_result r;
  pl_http_request q = request("/count", NULL);
  CHECK_OK(exchange(h, &q, &r));
  char name[64];
  snprintf(name, sizeof name, "\"%s\":", path);
  const char *at = strstr(r.body, name);
  return at ? (int)strtol(at + strlen(name), NULL, 10) : 0;
}

static pl_status open_client(pl_http **h, int connections, const pl_secrets *s) {
  const pl_http_options o = {
      .connections = connections, .user_agent = "test", .secrets = s};
  return pl_http_open(ctx(), &o, h);
}

/* A kept connection that breaks when the request has been read: libcurl would send it again by
 * itself. Each of our sends must be one request at the server, with and without a body. */
static void check_sent_once(const char *body) {
  pl_http *h = NULL;
  pl_http_result r;
  REQUIRE(open_client(&h, 1, NULL) == PL_OK);
  int before = count_of(h, "/reset-reused");
  int resets = 0;
  for (int i = 0; i < 10; i++) {
    const pl_http_request q = request("/reset-reused", body);
    REQUIRE(exchange(h, &q, &r) == PL_OK);
    CHECK(r.sent);
    if (r.failure == PL_HTTP_RESET) {
      resets++;
      CHECK_HAS(r.message, "may have been carried out");
    } else {
      CHECK_INT(r.status, 200);
    }
  }
  CHECK_INT(resets, 5); /* the first (a connection of count_of's) and then every second one */
  CHECK_INT(count_of(h, "/reset-reused") - before, 10);
  pl_http_close(ctx(), h);
}

TEST(no_request_is_sent_twice) {
  if (!server && !start_server()) {
    SKIP("no rawserver beside this program");
  }
  check_sent_once(NULL);
  check_sent_once("a body");
  char *large = malloc(300001);
  memset(large, 'x', 300000);
  large[300000] = 0;
  check_sent_once(large);
  free(large);
}

TEST(events_of_a_stream_come_before_its_end) {
  if (!server && !start_server()) {
    SKIP("no rawserver beside this program");
  }
  pl_http *h = NULL;
  pl_http_result r;
  pl_http_request q = request("/sse?ms=1", NULL);
  q.stream = true;
  q.idle_s = 0.2;
  REQUIRE(open_client(&h, 4, NULL) == PL_OK);
  CHECK_OK(exchange(h, &q, &r));
  CHECK(r.is_event);
  CHECK_STR(r.event.data, "one\ntwo");
  CHECK_STR(r.event.event, "first");
  CHECK_INT(pl_http_active(h), 1);
  CHECK_INT(pl_http_cancel(ctx(), h, 1), 1);
  CHECK_INT(pl_http_active(h), 0);
  bool found = true;
  CHECK_OK(pl_http_next(ctx(), h, &r, &found));
  CHECK(!found);
  pl_http_close(ctx(), h);
}

static pl_status http_once(void *arg) {
  (void)arg;
  pl_http *h = NULL;
  pl_http_result r = {0};
  const pl_http_request q = request("/echo", "a body");
  pl_status st = open_client(&h, 4, NULL);
  if (st == PL_OK) {
    st = exchange(h, &q, &r);
  }
  if (st == PL_OK && r.failure != PL_HTTP_DONE) { /* a reply that could not be kept */
    st = pl_fail(ctx(), PL_ENOMEM, "%s", r.message);
  }
  pl_http_close(ctx(), h);
  return st;
}

TEST(the_client_without_memory) {
  if (!server && !start_server()) {
    SKIP("no rawserver beside this program");
  }
  CHECK(fail_each_alloc(http_once, NULL) > 3);
}

/* How often the key lies in writable memory of this process. `masked` is the key with every byte
 * changed, so that the search does not find itself. */
static int occurrences(const unsigned char *masked, size_t n) {
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[512];
  int found = 0;
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long from, to;
    char rights[5];
    if (sscanf(line, "%lx-%lx %4s", &from, &to, rights) != 3 || strncmp(rights, "rw", 2) != 0 ||
        strstr(line, "[v")) {
      continue;
    }
    for (const volatile unsigned char *p = (const unsigned char *)from;
         p + n <= (const unsigned char *)to; p++) {
      size_t i = 0;
      while (i < n && (p[i] ^ 0x55) == masked[i]) {
        i++;
      }
      found += i == n;
    }
  }
  if (maps) {
    fclose(maps);
  }
  return found;
}

TEST(a_key_stays_in_one_place_of_memory) {
#ifdef PL_SANITIZE
  SKIP("the sanitizer keeps freed memory and forbids looking at it");
#endif
  if (!server && !start_server()) {
    SKIP("no rawserver beside this program");
  }
  enum { N = 40 };
  unsigned char masked[N];
  char value[N + 1];
  for (int i = 0; i < N; i++) {
    value[i] = (char)('a' + i * 7 % 26);
    masked[i] = (unsigned char)value[i] ^ 0x55;
  }
  value[N] = 0;
  pl_secrets s = {NULL};
  setenv("PL_TEST_KEY", value, 1);
  explicit_bzero(value, sizeof value);
  CHECK(occurrences(masked, N) > 0);
  REQUIRE(pl_secrets_load(ctx(), &s, "PL_TEST_KEY") == PL_OK);
  CHECK_INT(occurrences(masked, N), 1);
  pl_http *h = NULL;
  pl_http_result r;
  REQUIRE(open_client(&h, 4, &s) == PL_OK);
  for (int i = 0; i < 5; i++) {
    pl_http_request q = request(i == 3 ? "/reset-body" : "/ok", "a body");
    q.secret = pl_secrets_find(&s, "PL_TEST_KEY");
    q.secret_header = text_of("Authorization: Bearer ");
    CHECK_OK(exchange(h, &q, &r));
  }
  pl_http_close(ctx(), h);
  CHECK_INT(occurrences(masked, N), 1);
  pl_secrets_close(ctx(), &s);
  CHECK_INT(occurrences(masked, N), 0);
}

TEST(zz_the_server_ends) {
  if (!server) {
    SKIP("no server was started");
  }
  pl_http *h = NULL;
  pl_http_result r;
  const pl_http_request q = request("/quit", NULL);
  REQUIRE(open_client(&h, 1, NULL) == PL_OK);
  CHECK_OK(exchange(h, &q, &r));
  pl_http_close(ctx(), h);
  CHECK_INT(pclose(server), 0);
  server = NULL;
}
