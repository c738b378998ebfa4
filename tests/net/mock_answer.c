/* What the mock answers: a verdict to a judge's prompt, an object to a schema, else words of the
 * prompt. All of it is a function of the call's hash, so the same call gets the same answer.
 * A token is a word with the white space before it. */
#include "mock.h" /* first: it asks for the GNU names */

#include <ctype.h>
#include <math.h>
#include <strings.h>

static bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

long count_words(const char *at, size_t len) {
  long n = 0;
  for (size_t i = 0; i < len; i++) n += !is_space(at[i]) && (i == 0 || is_space(at[i - 1]));
  return n;
}

/* ---- the call ---- */
static void add_content(buf *text, const cJSON *content) {
  if (cJSON_IsString(content)) buf_str(text, content->valuestring);
  if (!cJSON_IsArray(content) && !cJSON_IsObject(content)) return;
  if (cJSON_IsObject(content)) {
    content = cJSON_GetObjectItemCaseSensitive(content, "parts");
  }
  const cJSON *part;
  cJSON_ArrayForEach(part, content) {
    const char *one = json_text(part, "text");
    if (one) buf_str(text, one);
  }
}

/* Anthropic and OpenAI content is a string or a list of parts, Gemini's an object with parts. */
void call_message(call *c, const char *role, const cJSON *content) {
  size_t at = c->text->len;
  add_content(c->text, content);
  if (strcmp(role, "user") == 0) {
    c->user_at = at;
    c->user_len = c->text->len - at;
  }
  c->prompt_tokens += count_words(c->text->data + at, c->text->len - at);
  c->hash = hash_bytes(c->hash, role, strlen(role));
  c->hash = hash_bytes(c->hash, c->text->data + at, c->text->len - at);
  c->messages++;
  buf_str(c->text, "\n");
}

bool call_finish(call *c) {
  c->prompt_tokens += 4 * c->messages;
  c->hash = hash_bytes(c->hash, c->model, strlen(c->model));
  return c->messages > 0;
}

/* ---- the two candidates of a comparison ---- */
typedef struct {
  bool found;
  size_t a, b; /* lengths */
} pair;

static pair pair_of(span a, span b) {
  return (pair){a.at && b.at, a.len, b.len};
}

/* Between the marks; last: the last such opening mark. */
static span between(span text, const char *open, const char *close, bool last) {
  span hit = span_find(text, open), rest = hit;
  while (last && rest.at) {
    rest = span_find((span){hit.at + 1, hit.len - 1}, open);
    if (rest.at) {
      hit = rest;
    }
  }
  if (!hit.at) return hit;
  span inner = {hit.at + strlen(open), hit.len - strlen(open)};
  span end = span_find(inner, close);
  if (!end.at) return end;
  return (span){inner.at, inner.len - end.len};
}

/* The lines that hold the nonce, but for the verdict's own, fence the candidates: the last four. */
static pair fenced(span text, span nonce) {
  span lines[4];
  int n = 0;
  size_t at = 0;
  char what[72];
  snprintf(what, sizeof what, "%.*s", (int)(nonce.len < 64 ? nonce.len : 64), nonce.at);
  while (at < text.len) {
    const char *eol = memchr(text.at + at, '\n', text.len - at);
    size_t len = eol ? (size_t)(eol - text.at) - at : text.len - at;
    span line = {text.at + at, len};
    at += len + 1;
    bool own = span_find(line, "VERDICT-").at || span_find(line, "SCORE-").at;
    if (own || !span_find(line, what).at) continue;
    if (n == 4) {
      memmove(lines, lines + 1, 3 * sizeof *lines);
      n = 3;
    }
    lines[n++] = line;
  }
  if (n < 4) return (pair){false, 0, 0};
  const char *a = lines[0].at + lines[0].len, *b = lines[2].at + lines[2].len;
  return pair_of((span){a, (size_t)(lines[1].at - a)}, (span){b, (size_t)(lines[3].at - b)});
}

static pair published(span text) {
  span a = between(text, "## Output (a):\n", "\n\n## Output (b):", true);
  span b = between(text, "## Output (b):\n", "\n\n## Which is best", true);
  if (a.at && b.at) return pair_of(a, b);
  const char *quotes[2] = {"\"output\": \"\"\"", "\"answer\": \"\"\""};
  for (int i = 0; i < 2; i++) {
    a = between(text, quotes[i], "\"\"\"", false);
    b = between(text, quotes[i], "\"\"\"", true);
    if (a.at && b.at && a.at != b.at) return pair_of(a, b);
  }
  a = between(text, "[The Start of Assistant A's Answer]\n", "\n[The End of Assistant A", false);
  b = between(text, "[The Start of Assistant B's Answer]\n", "\n[The End of Assistant B", true);
  return pair_of(a, b);
}

/* > 0: the first one; 0: a tie. */
static int winner(pair p, uint64_t hash, bool ties) {
  if (p.found && p.a != p.b) return p.a > p.b ? 1 : -1;
  if (ties && p.found) return 0;
  return hash & 1 ? 1 : -1;
}

/* ---- an object that fits a JSON schema ---- */
static void fit_schema(const cJSON *schema, uint64_t hash, int win, int depth, buf *out) {
  const cJSON *values = cJSON_GetObjectItemCaseSensitive(schema, "enum");
  const cJSON *type = cJSON_GetObjectItemCaseSensitive(schema, "type");
  if (cJSON_IsArray(type)) {
    type = type->child;
  }
  char kind[16];
  snprintf(kind, sizeof kind, "%s", cJSON_IsString(type) ? type->valuestring : "string");
  for (char *p = kind; *p; p++) *p = (char)tolower((unsigned char)*p);
  hash = hash_mix(hash);
  if (cJSON_GetArraySize(values) > 0) {
    unsigned count = (unsigned)cJSON_GetArraySize(values);
    const cJSON *pick = cJSON_GetArrayItem(values, (int)(hash % count));
    const char *wanted = win > 0 ? "a" : win < 0 ? "b" : "tie";
    const cJSON *one;
    cJSON_ArrayForEach(one, values) {
      if (cJSON_IsString(one) && strcasecmp(one->valuestring, wanted) == 0) {
        pick = one;
      }
    }
    char *text = cJSON_PrintUnformatted(pick);
    buf_str(out, text);
    free(text);
  } else if (strcmp(kind, "object") == 0 && depth < 16) {
    const char *comma = "{";
    const cJSON *one;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(schema, "properties")) {
      buf_str(out, comma);
      buf_json(out, one->string, strlen(one->string));
      buf_str(out, ":");
      fit_schema(one, hash ^ hash_bytes(0, one->string, strlen(one->string)), win, depth + 1, out);
      comma = ",";
    }
    buf_str(out, *comma == '{' ? "{}" : "}");
  } else if (strcmp(kind, "array") == 0 && depth < 16) {
    buf_str(out, "[");
    fit_schema(cJSON_GetObjectItemCaseSensitive(schema, "items"), hash, win, depth + 1, out);
    buf_str(out, "]");
  } else if (strcmp(kind, "integer") == 0 || strcmp(kind, "number") == 0) {
    double low = json_number(schema, "minimum", 1), high = json_number(schema, "maximum", low + 9);
    buf_fmt(out, "%.0f", low + floor(hash_unit(hash) * (high - low + 1)));
  } else if (strcmp(kind, "boolean") == 0) {
    buf_str(out, hash & 1 ? "true" : "false");
  } else {
    buf_str(out, "\"because\"");
  }
}

/* ---- the answer ---- */
static span user_words(const call *c, uint64_t hash, int *n) {
  span user = {c->text->data + c->user_at, c->user_len};
  long have = count_words(user.at, user.len);
  *n = 5 + (int)(hash % 36);
  if (have == 0) return (span){NULL, 0};
  long skip = have > *n ? (long)(hash_mix(hash) % (uint64_t)(have - *n)) : 0;
  size_t i = 0;
  for (long word = 0; i < user.len; i++) {
    bool starts = !is_space(user.at[i]) && (i == 0 || is_space(user.at[i - 1]));
    if (starts && word++ == skip) break;
  }
  return (span){user.at + i, user.len - i};
}

/* n words of the prompt, around again when it is short; a long one is cut between characters. */
static void some_words(const call *c, uint64_t hash, buf *out) {
  int n;
  span from = user_words(c, hash, &n);
  if (!from.at) {
    buf_str(out, "Nothing was asked, so nothing follows.");
    return;
  }
  size_t i = 0;
  for (int k = 0; k < n; k++) {
    while (i < from.len && is_space(from.at[i])) i++;
    if (i == from.len) {
      i = 0;
    }
    while (i < from.len && is_space(from.at[i])) i++;
    size_t end = i;
    while (end < from.len && !is_space(from.at[end])) end++;
    size_t len = end - i < 48 ? end - i : 48;
    while (len < end - i && len > 0 && ((unsigned char)from.at[i + len] & 0xc0) == 0x80) len--;
    if (k) buf_str(out, " ");
    buf_put(out, from.at + i, len);
    i = end;
  }
}

/* The nonce behind the last MARK-; the marks of candidates that lie come earlier. */
static span nonce_after(span text, const char *mark) {
  span found = {NULL, 0}, rest = span_find(text, mark);
  while (rest.at) {
    span nonce = {rest.at + strlen(mark), 0};
    size_t room = rest.len - strlen(mark);
    while (nonce.len < room && isxdigit((unsigned char)nonce.at[nonce.len])) nonce.len++;
    if (nonce.len) {
      found = nonce;
    }
    rest = span_find((span){rest.at + 1, rest.len - 1}, mark);
  }
  return found;
}

static void make_text(const mock *m, const call *c, uint64_t hash, answer *out) {
  buf *t = &out->text;
  span user = {c->text->data + c->user_at, c->user_len};
  span all = {c->text->data, c->text->len};
  if (m->script.has_fixed) {
    buf_put(t, m->script.fixed.data, m->script.fixed.len);
    return;
  }
  span nonce = nonce_after(user, "VERDICT-"), score = nonce_after(user, "SCORE-");
  if (!nonce.at && !score.at) {
    nonce = nonce_after(all, "VERDICT-");
  }
  if (!nonce.at && !score.at) {
    score = nonce_after(all, "SCORE-");
  }
  pair p = nonce.at ? fenced(user, nonce) : published(user);
  int win = winner(p, hash, nonce.at != NULL);
  if (c->schema) {
    fit_schema(c->schema, hash, win, 0, t);
  } else if (nonce.at) {
    buf_fmt(t, "VERDICT-%.*s: %s", (int)nonce.len, nonce.at, win > 0 ? "A" : win < 0 ? "B" : "TIE");
  } else if (score.at) {
    unsigned most = span_find(user, "1 to 10").at ? 10 : 5;
    buf_fmt(t, "SCORE-%.*s: %d", (int)score.len, score.at, 1 + (int)(hash % most));
  } else if (span_find(user, "Output (a)").at) {
    buf_str(t, win > 0 ? "Output (a)" : "Output (b)");
  } else if (span_find(user, "m or M").at) {
    buf_str(t, win > 0 ? "m" : "M");
    double lean = p.found ? ((double)p.a - (double)p.b) / ((double)p.a + (double)p.b + 1)
                          : 2 * hash_unit(hash) - 1;
    out->first_other = 0.98 * fmax(0.03, 1 / (1 + exp(4 * fabs(lean))));
  } else if (span_find(user, "'rank': <model-rank>").at) {
    buf_fmt(t, "[{'model': 'model_%d', 'rank': 1}, {'model': 'model_%d', 'rank': 2}]",
            win > 0 ? 1 : 2, win > 0 ? 2 : 1);
  } else if (span_find(all, "[[A]]").at) {
    buf_fmt(t, "Both were compared. [[%s]]", win > 0 ? "A" : "B");
  } else if (span_find(all, "[[rating]]").at) {
    buf_fmt(t, "It was read. Rating: [[%d]]", 1 + (int)(hash % 10));
  } else {
    some_words(c, hash, t);
  }
}

static void apply_stop(const call *c, answer *out) {
  const cJSON *one = cJSON_IsArray(c->stop) ? c->stop->child : c->stop;
  for (; one; one = cJSON_IsArray(c->stop) ? one->next : NULL) {
    if (!cJSON_IsString(one) || !one->valuestring[0]) continue;
    span hit = span_find((span){out->text.data, out->text.len}, one->valuestring);
    if (!hit.at) continue;
    out->text.len -= hit.len;
    out->stop = one->valuestring;
  }
}

static void split_words(const call *c, answer *out) {
  size_t at = 0;
  const buf *t = &out->text;
  while (at < t->len) {
    size_t end = at;
    while (end < t->len && is_space(t->data[end])) end++;
    while (end < t->len && !is_space(t->data[end])) end++;
    if (c->max_tokens >= 0 && out->word_n >= c->max_tokens) {
      out->cut = true;
      out->stop = NULL;
      break;
    }
    if (out->word_n == out->word_cap) {
      out->word_cap = out->word_cap ? out->word_cap * 2 : 64;
      out->words = realloc(out->words, (size_t)out->word_cap * sizeof *out->words);
      if (!out->words) exit(1);
    }
    out->words[out->word_n++] = (span){t->data + at, end - at};
    at = end;
  }
  out->text.len = at;
}

void answer_make(mock *m, const call *c, int index, answer *out) {
  *out = (answer){.hash = hash_mix(c->hash + (uint64_t)index)};
  buf_need(&out->text, 256);
  if (m->fault.kind == FAULT_REFUSAL) {
    out->refused = true;
  }
  make_text(m, c, out->hash, out);
  if (m->fault.kind == FAULT_UTF8) buf_str(&out->text, " \xff\xc3(");
  apply_stop(c, out);
  split_words(c, out);
}

void answer_free(answer *a) {
  free(a->text.data);
  free(a->words);
}

double answer_logprob(const answer *a, int i, int k, span *word) {
  static const char *const others[TOP_MAX + 1] = {" the", " a", " of", " to", " and", " in", " is",
    " it", " that", " for", " was", " on", " as", " with", " be", " at", " by", " this", " or",
    " an", " so"};
  double u = 0.5 + 0.499 * hash_unit(a->hash ^ (uint64_t)(i + 1) * 0x9e37u);
  bool pick = i == 0 && a->first_other > 0;
  if (pick) {
    u = 0.98 - a->first_other;
  }
  *word = a->words[i];
  if (k == 0) return log(u);
  if (pick && k == 1) {
    *word = (span){a->words[0].at[0] == 'm' ? "M" : "m", 1};
    return log(a->first_other);
  }
  double rest = pick ? 0.02 : 1 - u;
  int at = k - 1;
  for (int j = 0; j <= k - 1; j++) {
    if (span_is(a->words[i], others[j])) { /* no word stands there twice */
      at = k;
    }
  }
  *word = (span){others[at], strlen(others[at])};
  return log(rest * pow(0.5, pick ? k - 1 : k));
}
