/* Keys of services and the redactor (secret.h). It must not write a key anywhere but into its own
 * block, and no message may quote one. */
#define _GNU_SOURCE
#include "net/secret.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/mem.h"

#define VALUE_MAX 8192
#define SHOWN "[key]"
#define HIDE_MIN 6 /* a shorter key would turn ordinary words into "[key]" */
#define FORMS 6    /* base64 at three positions, in two alphabets */

extern char **environ;

typedef struct form {
  const char *text;
  size_t n;
} form;

/* One block: the struct, then all its texts, so that one wipe takes them all. */
struct pl_secret {
  pl_secret *next;
  size_t bytes;
  const char *name;
  const char *value;
  size_t len;
  form base64[FORMS];
  int forms;
  char text[];
};

/* ---- loading ---- */

static const char plain_alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char url_alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* The characters of base64(before .. value .. after) that depend on the value alone, where
 * `before` has `shift` bytes more than a multiple of three: what every text holds that was encoded
 * with the key somewhere in it. Returns their number. */
static size_t base64_core(const char *value, size_t n, size_t shift, const char *alphabet,
                          char *out) {
  size_t used = 0;
  size_t last = 8 * (shift + n) / 6;
  for (size_t i = (8 * shift + 5) / 6; i < last; i++) {
    unsigned six = 0;
    for (size_t bit = 6 * i; bit < 6 * i + 6; bit++) {
      unsigned char byte = (unsigned char)value[bit / 8 - shift];
      six = six << 1 | (byte >> (7 - bit % 8) & 1U);
    }
    out[used++] = alphabet[six];
  }
  return used;
}

static pl_secret *new_secret(pl_ctx *c, const char *name, const char *value, size_t n) {
  size_t names = strlen(name) + 1;
  size_t bytes = sizeof(pl_secret) + names + (n + 1) + FORMS * (n * 4 / 3 + 4);
  pl_secret *key = pl_alloc_zero(c, bytes);
  if (!key) {
    return NULL;
  }
  key->bytes = bytes;
  char *at = key->text;
  memcpy(at, name, names);
  key->name = at;
  at += names;
  memcpy(at, value, n);
  key->value = at;
  key->len = n;
  at += n + 1;
  for (size_t i = 0; i < FORMS; i++) {
    const char *alphabet = i < 3 ? plain_alphabet : url_alphabet;
    size_t used = base64_core(value, n, i % 3, alphabet, at);
    if (i >= 3 && !memchr(at, '-', used) && !memchr(at, '_', used)) {
      continue; /* the same in both alphabets */
    }
    key->base64[key->forms].text = at;
    key->base64[key->forms].n = used;
    key->forms++;
    at += used;
  }
  return key;
}

static bool blank(const char *value) {
  return value[strspn(value, " \t\r\n")] == 0;
}

static pl_status check_value(pl_ctx *c, const char *name, const char *value) {
  size_t n = strlen(value);
  if (blank(value)) {
    return pl_fail(c, PL_EINVAL, "%s is blank; put the service's key into it", name);
  }
  if (n > VALUE_MAX) {
    return pl_fail(c, PL_EINVAL, "%s holds %zu bytes, a key has at most %d", name, n, VALUE_MAX);
  }
  for (size_t i = 0; i < n; i++) {
    unsigned char ch = (unsigned char)value[i];
    if (ch < 0x20 || ch == 0x7f) {
      return pl_fail(c, PL_EINVAL,
                     "%s holds a control character (byte %u at position %zu), which no key has; "
                     "was it read from a file with line ends?",
                     name, ch, i + 1);
    }
  }
  return PL_OK;
}

/* Every entry of that name is overwritten where it lies: a child, /proc and a later getenv get
 * nothing. */
static void wipe_environment(const char *name) {
  size_t n = strlen(name);
  for (char **v = environ; v && *v; v++) {
    if (strncmp(*v, name, n) == 0 && (*v)[n] == '=') {
      explicit_bzero(*v + n + 1, strlen(*v + n + 1));
    }
  }
  unsetenv(name);
}

pl_status pl_secrets_load(pl_ctx *c, pl_secrets *s, const char *name) {
  if (pl_secrets_find(s, name)) {
    return PL_OK;
  }
  const char *value = getenv(name);
  if (!value) {
    return pl_fail(c, PL_ENOENT, "%s is not set in the environment; export it before the start",
                   name);
  }
  PL_TRY(check_value(c, name, value));
  pl_secret *key = new_secret(c, name, value, strlen(value));
  if (!key) {
    return PL_ENOMEM;
  }
  key->next = s->first;
  s->first = key;
  wipe_environment(name);
  const struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none); /* lowering a limit of one's own cannot fail */
  return PL_OK;
}

const pl_secret *pl_secrets_find(const pl_secrets *s, const char *name) {
  const pl_secret *key = s->first;
  while (key && strcmp(key->name, name) != 0) {
    key = key->next;
  }
  return key;
}

bool pl_secrets_known(const pl_secrets *s, const char *name) {
  const char *value = getenv(name);
  return pl_secrets_find(s, name) || (value && !blank(value));
}

const char *pl_secret_value(const pl_secret *key, size_t *n) {
  *n = key->len;
  return key->value;
}

void pl_secrets_close(pl_ctx *c, pl_secrets *s) {
  while (s->first) {
    pl_secret *key = s->first;
    s->first = key->next;
    explicit_bzero(key, key->bytes);
    pl_free(c, key);
  }
}

/* ---- finding what must not be shown ---- */

typedef struct span {
  size_t from, to;
} span;

/* What one search needs. With spans = NULL it only tells whether there is any. */
typedef struct search {
  pl_ctx *c;
  const char *text;
  size_t n;
  pl_buf *spans;
  bool found;
} search;

static pl_status hide(search *q, size_t from, size_t to) {
  q->found = true;
  const span s = {from, to};
  return q->spans ? pl_buf_add(q->c, q->spans, &s, sizeof s) : PL_OK;
}

static int hex_value(const char *s, int digits) {
  int v = 0;
  for (int i = 0; i < digits; i++) {
    int ch = tolower((unsigned char)s[i]);
    if (!isxdigit(ch)) {
      return -1;
    }
    v = v * 16 + (ch <= '9' ? ch - '0' : ch - 'a' + 10);
  }
  return v;
}

/* How much of the text at `at` spells the key, each character plain, %XX, \uXXXX or \c; 0: none. */
static size_t spelled(const search *q, size_t at, const pl_secret *key) {
  const char *t = q->text;
  size_t i = at;
  for (size_t k = 0; k < key->len; k++) {
    int want = (unsigned char)key->value[k];
    size_t left = q->n - i;
    if (left > 0 && (unsigned char)t[i] == want) {
      i++;
    } else if (left > 2 && t[i] == '%' && hex_value(t + i + 1, 2) == want) {
      i += 3;
    } else if (left > 5 && t[i] == '\\' && t[i + 1] == 'u' && hex_value(t + i + 2, 4) == want) {
      i += 6;
    } else if (left > 1 && t[i] == '\\' && (unsigned char)t[i + 1] == want) {
      i += 2;
    } else {
      return 0;
    }
  }
  return i - at;
}

static bool in_base64(char ch) {
  return isalnum((unsigned char)ch) || ch == '+' || ch == '/' || ch == '-' || ch == '_';
}

static pl_status find_key(search *q, const pl_secret *key) {
  const char first = key->value[0];
  for (size_t i = 0; i < q->n; i++) {
    char ch = q->text[i];
    if (ch != first && ch != '%' && ch != '\\') {
      continue;
    }
    size_t n = spelled(q, i, key);
    if (n > 0) {
      PL_TRY(hide(q, i, i + n));
      i += n - 1;
    }
  }
  for (int f = 0; f < key->forms; f++) {
    const form *b = &key->base64[f];
    size_t from = 0;
    const char *hit = memmem(q->text, q->n, b->text, b->n);
    while (hit) { /* the whole run of base64, for its ends hold some bits of the key too */
      size_t start = (size_t)(hit - q->text);
      size_t end = start + b->n;
      while (start > from && in_base64(q->text[start - 1])) {
        start--;
      }
      while (end < q->n && in_base64(q->text[end])) {
        end++;
      }
      for (int pad = 0; pad < 2 && end < q->n && q->text[end] == '='; pad++) {
        end++;
      }
      PL_TRY(hide(q, start, end));
      from = end;
      hit = memmem(q->text + from, q->n - from, b->text, b->n);
    }
  }
  return PL_OK;
}

static bool ends_value(char ch) {
  return (unsigned char)ch <= ' ' || strchr("\"'\\,;<>`", ch) != NULL;
}

/* Hides one word from `at` on, at most up to one of the characters in `stop`. */
static pl_status hide_word(search *q, size_t at, const char *stop) {
  size_t to = at;
  while (to < q->n && !ends_value(q->text[to]) && !strchr(stop, q->text[to])) {
    to++;
  }
  bool hidden = to - at == strlen(SHOWN) && memcmp(q->text + at, SHOWN, to - at) == 0;
  return to == at || hidden ? PL_OK : hide(q, at, to);
}

/* Past quotes and blanks, also quotes escaped in a JSON text. */
static size_t skip_quotes(const search *q, size_t at) {
  while (at < q->n && q->text[at] && strchr(" \t\"'\\", q->text[at])) {
    at++;
  }
  return at;
}

/* The value of a header whose name ends at `at`: "name: value", "name": "value", name=value. */
static pl_status hide_header(search *q, size_t at) {
  static const char *const schemes[] = {"bearer", "basic", "token", "apikey", "key"};
  at = skip_quotes(q, at);
  if (at >= q->n || (q->text[at] != ':' && q->text[at] != '=')) {
    return PL_OK;
  }
  at = skip_quotes(q, at + 1);
  for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
    size_t n = strlen(schemes[i]);
    if (q->n - at > n && strncasecmp(q->text + at, schemes[i], n) == 0 &&
        (q->text[at + n] == ' ' || q->text[at + n] == '\t')) {
      at = skip_quotes(q, at + n);
      break;
    }
  }
  return hide_word(q, at, "");
}

/* Is the word there in the text, whatever its case? */
static bool word_at(const search *q, size_t at, size_t before, const char *word) {
  size_t n = strlen(word);
  return at >= before && q->n - (at - before) >= n &&
         strncasecmp(q->text + at - before, word, n) == 0;
}

/* Each form is looked for by its rarest character: memchr passes over the rest. */
static pl_status find_forms(search *q) {
  static const char rare[] = "zZ-=";
  for (const char *r = rare; *r; r++) {
    const char *hit = memchr(q->text, *r, q->n);
    while (hit) {
      size_t at = (size_t)(hit - q->text);
      if ((*r == 'z' || *r == 'Z') && word_at(q, at, 7, "authorization")) {
        PL_TRY(hide_header(q, at + 6));
      } else if (*r == '-' && word_at(q, at, 3, "api-key")) {
        PL_TRY(hide_header(q, at + 4));
      } else if (*r == '=' && word_at(q, at, 3, "key=")) {
        size_t name = at - 3;
        while (name > 0 && (in_base64(q->text[name - 1]) && q->text[name - 1] != '/')) {
          name--;
        }
        if (name > 0 && (q->text[name - 1] == '?' || q->text[name - 1] == '&')) {
          PL_TRY(hide_word(q, at + 1, "&#"));
        }
      }
      hit = memchr(hit + 1, *r, q->n - at - 1);
    }
  }
  return PL_OK;
}

static int by_start(const void *a, const void *b) {
  size_t x = ((const span *)a)->from;
  size_t y = ((const span *)b)->from;
  return x < y ? -1 : x > y;
}

static pl_status find_all(search *q, const pl_secrets *s) {
  for (const pl_secret *key = s->first; key; key = key->next) {
    if (key->len >= HIDE_MIN) {
      PL_TRY(find_key(q, key));
    }
  }
  return PL_OK;
}

bool pl_secrets_in(const pl_secrets *s, const char *text, size_t n) {
  search q = {.text = text, .n = n};
  return find_all(&q, s) == PL_OK && q.found; /* without spans nothing is allocated */
}

pl_status pl_redact(pl_ctx *c, const pl_secrets *s, const char *text, size_t n, pl_buf *out,
                    bool *changed) {
  pl_buf spans;
  pl_buf_init(&spans, SIZE_MAX / 2);
  search q = {.c = c, .text = text, .n = n, .spans = &spans};
  pl_status st = n == 0 ? PL_OK : find_all(&q, s);
  if (st == PL_OK && n > 0) {
    st = find_forms(&q);
  }
  *changed = q.found;
  size_t count = spans.len / sizeof(span);
  span *all = (span *)(void *)spans.data;
  size_t done = 0;
  if (count > 1) {
    qsort(all, count, sizeof *all, by_start);
  }
  for (size_t i = 0; i < count && st == PL_OK; i++) {
    if (all[i].from >= done) {
      st = pl_buf_add(c, out, text + done, all[i].from - done);
      st = st == PL_OK ? pl_buf_puts(c, out, SHOWN) : st;
    }
    done = all[i].to > done ? all[i].to : done;
  }
  if (st == PL_OK && count > 0) {
    st = pl_buf_add(c, out, text + done, n - done);
  }
  pl_buf_free(c, &spans);
  return st;
}
