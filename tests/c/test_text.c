/* Tokenizers from C: UTF-8, patterns, and the merge loop against a slow twin.
 * Equality with Hugging Face is tests/lua/test_tokenizer.lua's. */
#include "harness.h"

#include "base/rng.h"
#include "text/regex.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

TEST(utf8_decodes_and_refuses_what_rfc_3629_says) {
  static const struct {
    const char *bytes;
    int32_t cp;
    size_t len;
  } rows[] = {
      {"a", 'a', 1},
      {"\xc3\xa9", 0xe9, 2},
      {"\xe2\x96\x81", 0x2581, 3},
      {"\xf0\x9f\x98\x80", 0x1f600, 4},
      {"\xf4\x8f\xbf\xbf", 0x10ffff, 4},
      {"\xed\x9f\xbf", 0xd7ff, 3},
      {"\x80", -1, 1},             /* a continuation alone */
      {"\xc0\x80", -1, 1},         /* overlong */
      {"\xe0\x80\x80", -1, 1},     /* overlong */
      {"\xf0\x80\x80\x80", -1, 1}, /* overlong */
      {"\xed\xa0\x80", -1, 1},     /* a surrogate */
      {"\xf4\x90\x80\x80", -1, 1}, /* above U+10FFFF */
      {"\xf5", -1, 1},
      {"\xe2\x96", -1, 2}, /* cut short: one wrong part */
      {"\xf0\x9f\x98", -1, 3},
      {"\xe2\x41", -1, 1},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    size_t len = 0;
    CHECK_INT(pl_utf8_next(rows[i].bytes, strlen(rows[i].bytes), &len), rows[i].cp);
    CHECK_INT(len, rows[i].len);
  }
  for (int32_t cp = 0; cp < 0x110000; cp += cp < 0x3000 ? 1 : 61) {
    char s[4];
    size_t n = pl_utf8_put(s, cp);
    size_t len = 0;
    bool surrogate = cp >= 0xd800 && cp < 0xe000;
    if ((pl_utf8_next(s, n, &len) == cp) == surrogate) {
      FAIL("U+%04X", (unsigned)cp);
    }
    if (!surrogate && pl_utf8_last(s, n) != n) {
      FAIL("last of U+%04X", (unsigned)cp);
    }
  }
}

TEST(wrong_utf8_is_repaired_part_by_part) {
  pl_buf b;
  pl_buf_init(&b, 1000);
  CHECK_OK(pl_utf8_add_lossy(ctx(), &b, "a\xff\xe2\x96z\xf0\x9f", 7));
  CHECK_STR(b.data, "a\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd");
  CHECK_INT(pl_utf8_valid_prefix("abcdefgh\xc3\xa9ijklmnop\xff", 19), 18);
  pl_buf_free(ctx(), &b);
}

/* Spans as text: matches in <>, the rest as it is, | between. */
static void check_spans(const char *pattern, bool literal, const char *s, size_t n,
                        const char *want) {
  pl_regex *r = NULL;
  pl_spans spans = {0};
  pl_buf b;
  pl_buf_init(&b, 4000);
  CHECK_OK(pl_regex_new(ctx(), pattern, strlen(pattern), literal, &r));
  if (r) {
    CHECK_OK(pl_regex_spans(ctx(), r, s, n, &spans));
    for (size_t i = 0; i < spans.n; i++) {
      const pl_span *p = &spans.at[i];
      CHECK_OK(pl_buf_printf(ctx(), &b, "%s%.*s%s", p->match ? "<" : "|", (int)(p->end - p->begin),
                             s + p->begin, p->match ? ">" : ""));
    }
    CHECK_STR(b.data ? b.data : "", want);
  }
  pl_spans_free(ctx(), &spans);
  pl_buf_free(ctx(), &b);
  pl_regex_free(ctx(), r);
}

TEST(patterns_cut_as_oniguruma_does) {
  check_spans("b+", false, "abbcb", 5, "|a<bb>|c<b>");
  check_spans("b+", false, "", 0, "");
  check_spans("bb", true, "abbcbbb", 7, "|a<bb>|c<bb>|b");
  check_spans(".*", true, "a.*b", 4, "|a<.*>|b");
  check_spans("x*", false, "axb", 3, "<>|a<x>|b<>"); /* no empty match right behind a match */
  check_spans("\\s", false, "a\xc2\x85\xe1\xa0\x8e", 6,
              "|a<\xc2\x85>|\xe1\xa0\x8e"); /* not U+180E */
  check_spans("\\w+", false, "e\xcc\x81_\xef\xbc\x92-", 8,
              "<e\xcc\x81_\xef\xbc\x92>|-"); /* marks */
  check_spans("\\d", false, "1\xe2\x85\xa7", 4,
              "<1>|\xe2\x85\xa7"); /* a Roman numeral is no digit */
  check_spans("^b$", false, "a\nb\nc", 5, "|a\n<b>|\nc");
  check_spans("(?i:'S)", false, "'s", 2, "<'s>");
  check_spans("\\u0061\\x{62}", false, "ab", 2, "<ab>");
  check_spans("[\\w-]+", false, "a-b c", 5, "<a-b>| <c>");
  check_spans("b", false, "b\xff" "b\xc3", 4, "<b>|\xff<b>|\xc3"); /* wrong bytes never match */
}

TEST(patterns_that_mean_something_else_in_pcre2_are_refused) {
  static const char *const bad[][2] = {
      {"a\\b", "\\b is not supported"},     {"a\\Kb", "\\K is not supported"},
      {"[a[bc]]", "a set inside"},          {"[a&&b]", "&& inside"},
      {"(?m:a)", "group option (?m"},       {"a{1,3}+", "{n,m}+"},
      {"[\\W]", "\\W inside"},              {"(a", "pattern \"(a\""},
      {"\\u00", "four hexadecimal digits"}, {"\\1", "\\1 is not supported"},
      {"", "empty pattern"},                {"\\p{NoSuch}", "pattern"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    pl_regex *r = NULL;
    CHECK_STATUS(pl_regex_new(ctx(), bad[i][0], strlen(bad[i][0]), false, &r), PL_EFORMAT);
    CHECK_HAS(ctx()->err, bad[i][1]);
    CHECK(r == NULL);
  }
}

TEST(a_pattern_that_never_ends_is_an_error) {
  pl_regex *r = NULL;
  pl_spans spans = {0};
  char s[64];
  memset(s, 'a', sizeof s);
  CHECK_OK(pl_regex_new(ctx(), "(a+a+)+[bc]", 11, false, &r));
  CHECK_STATUS(pl_regex_spans(ctx(), r, s, sizeof s, &spans), PL_EFORMAT);
  CHECK_HAS(ctx()->err, "split pattern failed");
  pl_spans_free(ctx(), &spans);
  pl_regex_free(ctx(), r);
}

/* ---- merging against a slow twin -------------------------------------------- */

#define LETTERS 5
#define MERGES 60

typedef struct toy { /* a random merge table over a few letters */
  int n_ids, n_merges;
  char names[LETTERS + MERGES][80];
  int left[MERGES], right[MERGES], result[MERGES];
} toy;

static void make_toy(toy *t, uint64_t seed) {
  memset(t, 0, sizeof *t);
  for (t->n_ids = 0; t->n_ids < LETTERS; t->n_ids++) {
    t->names[t->n_ids][0] = (char)('a' + t->n_ids);
  }
  for (uint64_t i = 0; t->n_merges < MERGES && i < 1000; i++) {
    int a = (int)(pl_uniform(seed, 1, i) * t->n_ids);
    int b = (int)(pl_uniform(seed, 2, i) * t->n_ids);
    char joined[160];
    bool fresh = true;
    int same = -1;
    snprintf(joined, sizeof joined, "%s%s", t->names[a], t->names[b]);
    for (int k = 0; k < t->n_merges; k++) {
      fresh = fresh && (t->left[k] != a || t->right[k] != b);
    }
    for (int k = 0; k < t->n_ids; k++) {
      same = strcmp(t->names[k], joined) == 0 ? k : same; /* two merges may give one token */
    }
    if (fresh && strlen(joined) < 12) {
      if (same < 0) {
        same = t->n_ids;
        memcpy(t->names[same], joined, 80);
        t->n_ids++;
      }
      t->left[t->n_merges] = a;
      t->right[t->n_merges] = b;
      t->result[t->n_merges] = same;
      t->n_merges++;
    }
  }
}

static void toy_json(const toy *t, pl_buf *b) {
  pl_buf_reset(b);
  CHECK_OK(pl_buf_puts(ctx(), b, "{\"model\":{\"type\":\"BPE\",\"vocab\":{"));
  for (int i = 0; i < t->n_ids; i++) {
    CHECK_OK(pl_buf_printf(ctx(), b, "%s\"%s\":%d", i ? "," : "", t->names[i], i));
  }
  CHECK_OK(pl_buf_puts(ctx(), b, "},\"merges\":["));
  for (int i = 0; i < t->n_merges; i++) {
    CHECK_OK(pl_buf_printf(ctx(), b, "%s\"%s %s\"", i ? "," : "", t->names[t->left[i]],
                           t->names[t->right[i]]));
  }
  CHECK_OK(pl_buf_puts(ctx(), b, "]},\"decoder\":{\"type\":\"Fuse\"}}"));
}

/* The definition: the first merge of the table that applies, leftmost, again and again. */
static size_t slow_merge(const toy *t, int *x, size_t n) {
  for (;;) {
    int best = t->n_merges;
    size_t at = 0;
    for (size_t i = 0; i + 1 < n; i++) {
      for (int k = 0; k < best; k++) {
        if (t->left[k] == x[i] && t->right[k] == x[i + 1]) {
          best = k;
          at = i;
        }
      }
    }
    if (best == t->n_merges) {
      return n;
    }
    x[at] = t->result[best];
    memmove(x + at + 1, x + at + 2, (n - at - 2) * sizeof *x);
    n--;
  }
}

TEST(merging_equals_the_slow_twin) {
  pl_buf json;
  pl_buf_init(&json, 1 << 16);
  int rounds = quick_mode() ? 4 : 12;
  for (int round = 0; round < rounds; round++) {
    static toy t;
    pl_tokenizer *tok = NULL;
    make_toy(&t, (uint64_t)round);
    toy_json(&t, &json);
    CHECK_OK(pl_tokenizer_parse(ctx(), "toy", json.data, json.len, &tok));
    REQUIRE(tok);
    for (int k = 0; k < 120; k++) { /* lengths on both sides of the plain search's limit */
      char s[300];
      int x[300];
      size_t n = (size_t)k * 300 / 120 + 1;
      for (size_t i = 0; i < n; i++) {
        x[i] = (int)(pl_uniform((uint64_t)round, 10 + (uint64_t)k, i) * LETTERS);
        s[i] = (char)('a' + x[i]);
      }
      pl_ids ids = {0};
      pl_buf back;
      pl_buf_init(&back, 1000);
      size_t m = slow_merge(&t, x, n);
      CHECK_OK(pl_tokenizer_encode(ctx(), tok, s, n, true, &ids));
      bool same = ids.len == m;
      for (size_t i = 0; i < m && same; i++) {
        same = ids.data[i] == x[i];
      }
      CHECK(same);
      CHECK_OK(pl_tokenizer_decode(ctx(), tok, ids.data, ids.len, true, &back));
      CHECK(back.len == n && memcmp(back.data, s, n) == 0);
      pl_ids_free(ctx(), &ids);
      pl_buf_free(ctx(), &back);
    }
    pl_tokenizer_free(ctx(), tok);
  }
  pl_buf_free(ctx(), &json);
}

static const char whole[] =
    "{\"added_tokens\":[{\"id\":5,\"content\":\"<x>\",\"special\":true,\"lstrip\":true,"
    "\"rstrip\":true,\"single_word\":true},{\"id\":6,\"content\":\"a b\",\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
    "{\"type\":\"Prepend\",\"prepend\":\"_\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\s\"},\"content\":\"_\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Split\","
    "\"pattern\":{\"String\":\"_\"},\"behavior\":\"MergedWithNext\"},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
    "{\"SpecialToken\":{\"id\":\"<x>\"}},"
    "{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<x>\"}}],"
    "\"special_tokens\":{\"<x>\":{\"ids\":[5]}}},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},"
    "\"content\":\" \"},{\"type\":\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"fuse_unk\":true,"
    "\"vocab\":{\"?\":0,\"a\":1,\"b\":2,\"_\":3,\"_a\":4},\"merges\":[[\"_\",\"a\"]]}}";

static pl_status all_of_it(void *arg) {
  pl_tokenizer *t = NULL;
  pl_ids ids = {0};
  pl_buf text;
  (void)arg;
  pl_buf_init(&text, 1000);
  pl_status st = pl_tokenizer_parse(ctx(), "whole", whole, strlen(whole), &t);
  if (st == PL_OK) {
    st = pl_tokenizer_encode(ctx(), t, "a b a zz <x> b", 14, true, &ids);
  }
  if (st == PL_OK) {
    st = pl_tokenizer_decode(ctx(), t, ids.data, ids.len, true, &text);
  }
  if (st == PL_OK) {
    CHECK_STR(text.data, "a b a ? b");
    CHECK_INT(pl_tokenizer_bos(t), 5);
    CHECK(pl_tokenizer_is_special(t, 5) && !pl_tokenizer_is_special(t, 6));
    CHECK_INT(pl_tokenizer_vocab_size(t), 7);
  }
  pl_buf_free(ctx(), &text);
  pl_ids_free(ctx(), &ids);
  pl_tokenizer_free(ctx(), t);
  return st;
}

TEST(out_of_memory_leaves_nothing_behind) {
  CHECK(fail_each_alloc(all_of_it, NULL) > 20);
}

TEST(every_truncation_of_a_tokenizer_is_refused) {
  for (size_t n = 0; n < strlen(whole); n++) {
    pl_tokenizer *t = NULL;
    CHECK_STATUS(pl_tokenizer_parse(ctx(), "cut.json", whole, n, &t), PL_EFORMAT);
    CHECK_HAS(ctx()->err, "cut.json");
  }
}
