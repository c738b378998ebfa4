/* Reading tokenizer.json into a tokenizer, its life and its look-ups.
 * Everything in the file is either understood or refused by name. */
#include "text/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "text/tokenizer_private.h"

#define FILE_MAX ((size_t)256 << 20)
#define WORD_PATTERN "[\\w\\x{200c}\\x{200d}]" /* \w of Rust's regex: with the joiners */

static pl_status read_id(pl_ctx *c, const cJSON *v, const char *what, int32_t *out) {
  if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0) || v->valuedouble > INT32_MAX - 1 ||
      v->valuedouble != floor(v->valuedouble)) {
    return pl_fail(c, PL_EFORMAT, "the id of %.80s is no whole number of 0 or more", what);
  }
  *out = (int32_t)v->valuedouble;
  return PL_OK;
}

static pl_status read_vocab(pl_ctx *c, pl_tokenizer *t, const cJSON *model) {
  const cJSON *vocab = cJSON_GetObjectItemCaseSensitive(model, "vocab");
  if (!cJSON_IsObject(vocab)) {
    return pl_fail(c, PL_EFORMAT, "model: vocab must be an object of token: id");
  }
  PL_TRY(pl_vocab_init(c, &t->vocab, (size_t)cJSON_GetArraySize(vocab)));
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, vocab) {
    int32_t id = 0;
    PL_TRY(read_id(c, v, v->string, &id));
    PL_TRY(pl_vocab_add(c, &t->vocab, v->string, strlen(v->string), id, PL_TOKEN_MODEL));
  }
  return PL_OK;
}

/* A merge is "a b", or ["a", "b"] in newer files. */
static pl_status read_merge(pl_ctx *c, pl_tokenizer *t, const cJSON *v) {
  if (cJSON_IsString(v)) {
    const char *s = v->valuestring;
    const char *blank = strchr(s, ' ');
    if (!blank || strchr(blank + 1, ' ')) {
      return pl_fail(c, PL_EFORMAT, "merge \"%.80s\" is not two tokens with one blank between", s);
    }
    return pl_bpe_add_merge(c, t->bpe, s, (size_t)(blank - s), blank + 1, strlen(blank + 1));
  }
  const cJSON *a = cJSON_IsArray(v) ? v->child : NULL;
  if (!cJSON_IsString(a) || !cJSON_IsString(a->next) || a->next->next) {
    return pl_fail(c, PL_EFORMAT, "a merge must be \"a b\" or [\"a\", \"b\"]");
  }
  return pl_bpe_add_merge(c, t->bpe, a->valuestring, strlen(a->valuestring), a->next->valuestring,
                          strlen(a->next->valuestring));
}

static pl_status read_bpe(pl_ctx *c, pl_tokenizer *t, const cJSON *model) {
  static const char *const keys[] = {"type", "vocab", "merges", "dropout", "unk_token",
                                     "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                                     "byte_fallback", "ignore_merges", NULL};
  static const char where[] = "model BPE";
  pl_bpe_options o = {.unk = -1, .prefix = "", .suffix = ""};
  const char *unk = NULL;
  PL_TRY(pl_json_keys(c, model, where, keys));
  PL_TRY(pl_json_str(c, model, where, "unk_token", &unk));
  PL_TRY(pl_json_str(c, model, where, "continuing_subword_prefix", &o.prefix));
  PL_TRY(pl_json_str(c, model, where, "end_of_word_suffix", &o.suffix));
  PL_TRY(pl_json_bool(c, model, where, "fuse_unk", &o.fuse_unk));
  PL_TRY(pl_json_bool(c, model, where, "byte_fallback", &o.byte_fallback));
  PL_TRY(pl_json_bool(c, model, where, "ignore_merges", &o.ignore_merges));
  const cJSON *dropout = cJSON_GetObjectItemCaseSensitive(model, "dropout");
  if (dropout && !cJSON_IsNull(dropout) && dropout->valuedouble != 0) {
    return pl_fail(c, PL_EFORMAT, "%s: dropout is not implemented; set it to null", where);
  }
  if (unk) {
    o.unk = pl_vocab_find_model(&t->vocab, unk, strlen(unk));
    if (o.unk < 0) {
      return pl_fail(c, PL_EFORMAT, "%s: the unk_token \"%.80s\" is not in vocab", where, unk);
    }
  }
  const cJSON *merges = cJSON_GetObjectItemCaseSensitive(model, "merges");
  if (!cJSON_IsArray(merges)) {
    return pl_fail(c, PL_EFORMAT, "%s: merges must be an array", where);
  }
  PL_TRY(pl_bpe_new(c, &t->vocab, &o, (size_t)cJSON_GetArraySize(merges), &t->bpe));
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, merges) {
    PL_TRY(read_merge(c, t, v));
  }
  return PL_OK;
}

static pl_status read_word_level(pl_ctx *c, pl_tokenizer *t, const cJSON *model) {
  static const char *const keys[] = {"type", "vocab", "unk_token", NULL};
  static const char where[] = "model WordLevel";
  const char *unk = "<unk>"; /* the library's default */
  PL_TRY(pl_json_keys(c, model, where, keys));
  PL_TRY(pl_json_str(c, model, where, "unk_token", &unk));
  t->word_unk = pl_vocab_find_model(&t->vocab, unk, strlen(unk));
  return PL_OK;
}

static pl_status read_model(pl_ctx *c, pl_tokenizer *t, const cJSON *model) {
  const char *type = NULL;
  if (!cJSON_IsObject(model)) {
    return pl_fail(c, PL_EFORMAT, "model must be an object");
  }
  PL_TRY(pl_json_str(c, model, "model", "type", &type));
  if (!type && cJSON_GetObjectItemCaseSensitive(model, "merges")) {
    type = "BPE"; /* files before 2020 do not say it */
  }
  bool bpe = type && strcmp(type, "BPE") == 0;
  if (!bpe && (!type || strcmp(type, "WordLevel") != 0)) {
    return pl_fail(c, PL_EFORMAT, "the model \"%.60s\" is not implemented; have BPE, WordLevel",
                   type ? type : "(no type)");
  }
  PL_TRY(read_vocab(c, t, model));
  return bpe ? read_bpe(c, t, model) : read_word_level(c, t, model);
}

static int by_id(const void *pa, const void *pb) {
  const pl_added *a = pa;
  const pl_added *b = pb;
  return a->id < b->id ? -1 : a->id > b->id;
}

static pl_status read_added_token(pl_ctx *c, pl_tokenizer *t, const cJSON *j) {
  static const char *const keys[] = {"id", "content", "single_word", "lstrip", "rstrip",
                                     "normalized", "special", NULL};
  static const char where[] = "added_tokens";
  const char *content = NULL;
  bool special = false;
  pl_added a = {.normalized = true};
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(pl_json_str(c, j, where, "content", &content));
  if (!content || !*content) {
    return pl_fail(c, PL_EFORMAT, "%s: content must be a string, not empty", where);
  }
  PL_TRY(read_id(c, cJSON_GetObjectItemCaseSensitive(j, "id"), content, &a.id));
  PL_TRY(pl_json_bool(c, j, where, "special", &special));
  a.normalized = !special;
  PL_TRY(pl_json_bool(c, j, where, "normalized", &a.normalized));
  PL_TRY(pl_json_bool(c, j, where, "single_word", &a.single_word));
  PL_TRY(pl_json_bool(c, j, where, "lstrip", &a.lstrip));
  PL_TRY(pl_json_bool(c, j, where, "rstrip", &a.rstrip));
  if (a.single_word && !t->word) {
    PL_TRY(pl_regex_new(c, WORD_PATTERN, strlen(WORD_PATTERN), false, &t->word));
  }
  size_t n = strlen(content);
  uint32_t flags = PL_TOKEN_ADDED | (special ? PL_TOKEN_SPECIAL : 0);
  PL_TRY(pl_vocab_add(c, &t->vocab, content, n, a.id, flags));
  pl_added *kept = &t->added[t->n_added];
  *kept = a;
  t->n_added++;
  if (!a.normalized) {
    return pl_trie_add(c, &t->raw, content, n, a.id);
  }
  pl_buf_reset(&t->norm_out);
  PL_TRY(pl_tokenizer_normalize(c, t, content, n, &t->norm_out));
  const char *normal = t->norm_out.data ? t->norm_out.data : "";
  if (strcmp(normal, content) != 0) {
    kept->shown = pl_strdup(c, normal);
    if (!kept->shown) {
      return PL_ENOMEM;
    }
  }
  return pl_trie_add(c, &t->normalized, normal, t->norm_out.len, a.id);
}

static pl_status read_added(pl_ctx *c, pl_tokenizer *t, const cJSON *j) {
  if (!j || cJSON_IsNull(j)) {
    return PL_OK;
  }
  if (!cJSON_IsArray(j)) {
    return pl_fail(c, PL_EFORMAT, "added_tokens must be an array");
  }
  t->added = pl_alloc(c, (size_t)cJSON_GetArraySize(j) * sizeof *t->added);
  if (!t->added) {
    return PL_ENOMEM;
  }
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, j) {
    PL_TRY(read_added_token(c, t, v));
  }
  qsort(t->added, t->n_added, sizeof *t->added, by_id);
  return PL_OK;
}

static pl_status push_wrap(pl_ctx *c, pl_tokenizer *t, pl_wrap **out) {
  pl_wrap *wraps = pl_realloc(c, t->wraps, (t->n_wraps + 1) * sizeof *wraps);
  if (!wraps) {
    return PL_ENOMEM;
  }
  t->wraps = wraps;
  *out = &t->wraps[t->n_wraps];
  memset(*out, 0, sizeof **out);
  t->n_wraps++;
  return PL_OK;
}

static pl_status add_known_id(pl_ctx *c, const pl_tokenizer *t, const cJSON *v, pl_ids *to) {
  int32_t id = 0;
  size_t n = 0;
  PL_TRY(read_id(c, v, "a special token of the post-processor", &id));
  if (!pl_vocab_name(&t->vocab, id, &n)) {
    return pl_fail(c, PL_EFORMAT, "the post-processor adds id %d, which has no token", id);
  }
  return pl_ids_add(c, to, id);
}

/* One {"SpecialToken": {"id": name}}: its ids are in the special_tokens map. */
static pl_status add_special(pl_ctx *c, const pl_tokenizer *t, const cJSON *map, const cJSON *v,
                             pl_ids *to) {
  const char *name = NULL;
  PL_TRY(pl_json_str(c, v, "TemplateProcessing", "id", &name));
  const cJSON *entry = name ? cJSON_GetObjectItemCaseSensitive(map, name) : NULL;
  const cJSON *ids = cJSON_GetObjectItemCaseSensitive(entry, "ids");
  if (!cJSON_IsArray(ids)) {
    return pl_fail(c, PL_EFORMAT, "TemplateProcessing: special_tokens has no ids for \"%.60s\"",
                   name ? name : "(no name)");
  }
  const cJSON *id = NULL;
  cJSON_ArrayForEach(id, ids) {
    PL_TRY(add_known_id(c, t, id, to));
  }
  return PL_OK;
}

static pl_status read_template(pl_ctx *c, pl_tokenizer *t, const cJSON *j) {
  static const char *const keys[] = {"type", "single", "pair", "special_tokens", NULL};
  static const char where[] = "TemplateProcessing";
  pl_wrap *w = NULL;
  int texts = 0;
  PL_TRY(pl_json_keys(c, j, where, keys));
  PL_TRY(push_wrap(c, t, &w));
  const cJSON *single = cJSON_GetObjectItemCaseSensitive(j, "single");
  const cJSON *map = cJSON_GetObjectItemCaseSensitive(j, "special_tokens");
  if (!cJSON_IsArray(single)) {
    return pl_fail(c, PL_EFORMAT, "%s: single must be an array", where);
  }
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, single) {
    const char *id = NULL;
    const cJSON *special = cJSON_GetObjectItemCaseSensitive(v, "SpecialToken");
    const cJSON *sequence = cJSON_GetObjectItemCaseSensitive(v, "Sequence");
    if (special) {
      PL_TRY(add_special(c, t, map, special, texts ? &w->back : &w->front));
      continue;
    }
    PL_TRY(pl_json_str(c, sequence, where, "id", &id));
    texts += id && strcmp(id, "A") == 0 ? 1 : 2;
  }
  if (texts != 1) {
    return pl_fail(c, PL_EFORMAT, "%s: single must hold the sequence A once and no other", where);
  }
  return PL_OK;
}

/* BertProcessing and RobertaProcessing: cls in front, sep behind. */
static pl_status read_cls_sep(pl_ctx *c, pl_tokenizer *t, const cJSON *j) {
  static const char *const keys[] = {"type", "sep", "cls", "trim_offsets", "add_prefix_space",
                                     NULL};
  const cJSON *cls = cJSON_GetObjectItemCaseSensitive(j, "cls");
  const cJSON *sep = cJSON_GetObjectItemCaseSensitive(j, "sep");
  pl_wrap *w = NULL;
  PL_TRY(pl_json_keys(c, j, "post-processor", keys));
  PL_TRY(push_wrap(c, t, &w));
  if (cJSON_GetArraySize(cls) != 2 || cJSON_GetArraySize(sep) != 2) {
    return pl_fail(c, PL_EFORMAT, "post-processor: cls and sep must be [token, id]");
  }
  PL_TRY(add_known_id(c, t, cls->child->next, &w->front));
  return add_known_id(c, t, sep->child->next, &w->back);
}

static pl_status read_post(pl_ctx *c, pl_tokenizer *t, const cJSON *j) {
  static const char *const bytes_keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                           NULL};
  const char *type = NULL;
  if (!j || cJSON_IsNull(j)) {
    return PL_OK;
  }
  PL_TRY(pl_json_type(c, j, "a post-processor", &type));
  if (strcmp(type, "ByteLevel") == 0) { /* moves offsets only, which we do not give */
    return pl_json_keys(c, j, "post-processor ByteLevel", bytes_keys);
  }
  if (strcmp(type, "TemplateProcessing") == 0) {
    return read_template(c, t, j);
  }
  if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
    return read_cls_sep(c, t, j);
  }
  if (strcmp(type, "Sequence") != 0) {
    return pl_fail(c, PL_EFORMAT,
                   "the post-processor \"%.60s\" is not implemented; have Sequence, ByteLevel, "
                   "TemplateProcessing, BertProcessing, RobertaProcessing",
                   type);
  }
  const cJSON *list = NULL;
  PL_TRY(pl_json_sequence(c, j, "post-processor Sequence", "processors", &list));
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, list) {
    PL_TRY(read_post(c, t, v));
  }
  return PL_OK;
}

static pl_status read_root(pl_ctx *c, pl_tokenizer *t, const cJSON *j) {
  static const char *const keys[] = {"version", "added_tokens", "normalizer", "pre_tokenizer",
                                     "post_processor", "decoder", "model", NULL};
  PL_TRY(pl_json_keys(c, j, "tokenizer.json", keys));
  PL_TRY(read_model(c, t, cJSON_GetObjectItemCaseSensitive(j, "model")));
  PL_TRY(pl_norms_read(c, cJSON_GetObjectItemCaseSensitive(j, "normalizer"), &t->norms));
  PL_TRY(read_added(c, t, cJSON_GetObjectItemCaseSensitive(j, "added_tokens")));
  PL_TRY(pl_pres_read(c, cJSON_GetObjectItemCaseSensitive(j, "pre_tokenizer"), &t->pres));
  PL_TRY(read_post(c, t, cJSON_GetObjectItemCaseSensitive(j, "post_processor")));
  PL_TRY(pl_decs_read(c, cJSON_GetObjectItemCaseSensitive(j, "decoder"), &t->decs));
  if (t->vocab.n_ids == 0) {
    return pl_fail(c, PL_EFORMAT, "the vocabulary is empty");
  }
  return PL_OK;
}

static pl_status read_text(pl_ctx *c, pl_tokenizer *t, const char *source, const char *json,
                           size_t n) {
  cJSON *root = NULL;
  pl_sha256 sha;
  t->json = pl_alloc(c, n + 1);
  if (!t->json) {
    return PL_ENOMEM;
  }
  memcpy(t->json, json, n);
  t->json[n] = 0;
  t->json_len = n;
  pl_sha256_init(&sha);
  pl_sha256_add(&sha, json, n);
  pl_sha256_hex(&sha, t->sha256);
  PL_TRY(pl_json_parse(c, source, json, n, &root));
  pl_status st = read_root(c, t, root);
  cJSON_Delete(root);
  return st == PL_OK ? st : pl_fail_in(c, st, "%.600s", source);
}

pl_status pl_tokenizer_parse(pl_ctx *c, const char *source, const char *json, size_t n,
                             pl_tokenizer **out) {
  *out = NULL;
  pl_tokenizer *t = pl_alloc_zero(c, sizeof *t);
  if (!t) {
    return PL_ENOMEM;
  }
  pl_buf *const bufs[] = {&t->pieces.text, &t->other.text,   &t->norm_a,           &t->norm_b,
                          &t->norm_out,    &t->strings.text, &t->other_strings.text};
  for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++) {
    pl_buf_init(bufs[i], PL_TEXT_MAX);
  }
  t->word_unk = -1;
  pl_status st = read_text(c, t, source, json, n);
  if (st != PL_OK) {
    pl_tokenizer_free(c, t);
    return st;
  }
  *out = t;
  return PL_OK;
}

pl_status pl_tokenizer_load(pl_ctx *c, const char *path, pl_tokenizer **out) {
  *out = NULL;
  pl_buf name;
  pl_buf text;
  pl_buf_init(&name, (size_t)1 << 16);
  pl_buf_init(&text, FILE_MAX);
  pl_status st = pl_buf_printf(c, &name, "%s%s", path, pl_is_dir(path) ? "/tokenizer.json" : "");
  if (st == PL_OK) {
    st = pl_file_read(c, name.data, &text);
  }
  if (st == PL_OK) {
    st = pl_tokenizer_parse(c, name.data, text.data ? text.data : "", text.len, out);
  }
  pl_buf_free(c, &name);
  pl_buf_free(c, &text);
  return st;
}

void pl_tokenizer_free(pl_ctx *c, pl_tokenizer *t) {
  if (!t) {
    return;
  }
  for (size_t i = 0; i < t->n_wraps; i++) {
    pl_ids_free(c, &t->wraps[i].front);
    pl_ids_free(c, &t->wraps[i].back);
  }
  pl_free(c, t->wraps);
  for (size_t i = 0; i < t->n_added; i++) {
    pl_free(c, t->added[i].shown);
  }
  pl_free(c, t->added);
  pl_trie_free(c, &t->raw);
  pl_trie_free(c, &t->normalized);
  pl_regex_free(c, t->word);
  pl_norms_free(c, &t->norms);
  pl_pres_free(c, &t->pres);
  pl_decs_free(c, &t->decs);
  pl_bpe_free(c, t->bpe);
  pl_vocab_free(c, &t->vocab);
  pl_pieces_free(c, &t->pieces);
  pl_pieces_free(c, &t->other);
  pl_spans_free(c, &t->spans);
  pl_buf_free(c, &t->norm_a);
  pl_buf_free(c, &t->norm_b);
  pl_buf_free(c, &t->norm_out);
  pl_strings_free(c, &t->strings);
  pl_strings_free(c, &t->other_strings);
  pl_free(c, t->json);
  pl_free(c, t);
}

int32_t pl_tokenizer_vocab_size(const pl_tokenizer *t) {
  return t->vocab.n_ids;
}

int32_t pl_tokenizer_token_to_id(const pl_tokenizer *t, const char *s, size_t n) {
  return pl_vocab_find(&t->vocab, s, n);
}

const char *pl_tokenizer_id_to_token(const pl_tokenizer *t, int32_t id, size_t *n) {
  return pl_vocab_name(&t->vocab, id, n);
}

bool pl_tokenizer_is_special(const pl_tokenizer *t, int32_t id) {
  size_t n = 0;
  return pl_vocab_name(&t->vocab, id, &n) && (t->vocab.tokens[id].flags & PL_TOKEN_SPECIAL);
}

int32_t pl_tokenizer_bos(const pl_tokenizer *t) {
  for (size_t i = t->n_wraps; i > 0; i--) {
    if (t->wraps[i - 1].front.len > 0) {
      return t->wraps[i - 1].front.data[0];
    }
  }
  return -1;
}

const char *pl_tokenizer_model(const pl_tokenizer *t) {
  return t->bpe ? "BPE" : "WordLevel";
}

const char *pl_tokenizer_json(const pl_tokenizer *t, size_t *n) {
  *n = t->json_len;
  return t->json;
}

const char *pl_tokenizer_sha256(const pl_tokenizer *t) {
  return t->sha256;
}
