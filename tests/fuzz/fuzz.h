/* Mutated input for the strict readers: JSON, tokenizer.json, safetensors.
 * A case is a function of (seed, number), so a crash is repeated by its number.
 * What a reader accepts must keep its promises; that is checked here, too. */
#ifndef PL_TESTS_FUZZ_H
#define PL_TESTS_FUZZ_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "format/safetensors.h"
#include "text/tokenizer.h"

#define FUZZ_SEEDS_MAX 64

typedef struct fuzz_seed { /* one sound input to start from */
  char *data;
  size_t n;
  bool tensors;
} fuzz_seed;

typedef struct fuzz {
  pl_ctx *ctx;
  uint64_t seed, number;
  uint64_t draws;
  fuzz_seed seeds[FUZZ_SEEDS_MAX];
  size_t n_seeds;
  const char *scratch; /* path of a file to write safetensors to */
  uint64_t accepted;
} fuzz;

static uint64_t fuzz_draw(fuzz *f, uint64_t below) {
  f->draws++;
  return (uint64_t)(pl_uniform(f->seed, f->number, f->draws) * (double)below);
}

static void fuzz_add(fuzz *f, const char *data, size_t n, bool tensors) {
  char *copy = n < ((size_t)1 << 17) && f->n_seeds < FUZZ_SEEDS_MAX ? malloc(n + 1) : NULL;
  if (copy) {
    memcpy(copy, data, n);
    f->seeds[f->n_seeds] = (fuzz_seed){copy, n, tensors};
    f->n_seeds++;
  }
}

/* The golden files under root; false if there are none. */
static bool fuzz_load(fuzz *f, const char *root) {
  static const char *const names[] = {"own", "other"};
  char path[512];
  pl_buf b;
  pl_buf_init(&b, (size_t)1 << 24);
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%.300s/tests/golden/safetensors/%s.safetensors", root, names[i]);
    pl_buf_reset(&b);
    if (pl_file_read(f->ctx, path, &b) == PL_OK) {
      fuzz_add(f, b.data, b.len, true);
    }
  }
  cJSON *all = NULL;
  snprintf(path, sizeof path, "%.300s/tests/golden/tokenizer_own.json", root);
  if (pl_json_load(f->ctx, path, &all) == PL_OK) {
    const cJSON *t = NULL;
    cJSON_ArrayForEach(t, cJSON_GetObjectItemCaseSensitive(all, "tokenizers")) {
      const cJSON *text = cJSON_GetObjectItemCaseSensitive(t, "json");
      if (cJSON_IsString(text)) {
        fuzz_add(f, text->valuestring, strlen(text->valuestring), false);
      }
    }
  }
  cJSON_Delete(all);
  pl_buf_free(f->ctx, &b);
  return f->n_seeds > 2;
}

static void fuzz_end(fuzz *f) {
  for (size_t i = 0; i < f->n_seeds; i++) {
    free(f->seeds[i].data);
  }
}

/* Replaces `cut` bytes at `at` by new ones. */
static size_t fuzz_splice(char *data, size_t n, size_t room, size_t at, size_t cut,
                          const char *with, size_t with_n) {
  if (at > n || cut > n - at || n - cut + with_n > room) {
    return n;
  }
  memmove(data + at + with_n, data + at + cut, n - at - cut);
  memcpy(data + at, with, with_n);
  return n - cut + with_n;
}

/* The string, number or word of JSON at or behind `at`; its length (0: none) out. */
static size_t fuzz_token(const char *data, size_t n, size_t at, size_t *len) {
  while (at < n && !strchr("\"0123456789tfn", data[at] ? data[at] : '\"')) {
    at++;
  }
  size_t end = at + 1;
  bool string = at < n && data[at] == '"';
  while (string && end < n && data[end] != '"') {
    end += data[end] == '\\' ? 2 : 1;
  }
  while (!string && end < n && !strchr(",:]} ", data[end] ? data[end] : ' ')) {
    end++;
  }
  end += string ? 1 : 0;
  *len = at < n && end <= n && end - at < 4000 ? end - at : 0;
  return at;
}

/* One token of the text takes the place of another: mostly still good JSON. */
static size_t fuzz_swap(fuzz *f, char *data, size_t n, size_t room) {
  static char piece[4000];
  size_t from_len = 0;
  size_t to_len = 0;
  /* most of them near the start, where a tokenizer's components are */
  size_t near = n > 1500 ? 1500 : n;
  size_t from = fuzz_token(data, n, (size_t)fuzz_draw(f, fuzz_draw(f, 4) ? near : n), &from_len);
  size_t to = fuzz_token(data, n, (size_t)fuzz_draw(f, fuzz_draw(f, 4) ? near : n), &to_len);
  if (from_len == 0 || to_len == 0) {
    return n;
  }
  memcpy(piece, data + from, from_len);
  return fuzz_splice(data, n, room, to, to_len, piece, from_len);
}

static size_t fuzz_mutate(fuzz *f, char *data, size_t n, size_t room) {
  static const char *const bits[] = {
      "null", "true", "-1", "0", "1e999", "4294967296", "9007199254740993", "18446744073709551616",
      "0.5", "\\u0000", "\\ud800", "\"\"", "[]", "{}", "[[[[", "}}", "\"type\":\"Sequence\"",
      "\"Regex\":\"(a*)*\"", "\"Regex\":\"[\\\\s\\\\w]{2,}\"", "\"Removed\"", "\"MergedWithNext\"",
      "\"Contiguous\"", "\xff", "\xe2\x96",
      "\"shape\":[0]", "\"data_offsets\":[0,0]", "\"F4\"", "\"invert\":true",
      "\"dtype\":\"U8\"", ","};
  uint64_t times = 1 + fuzz_draw(f, 3);
  for (uint64_t i = 0; i < times && n > 0; i++) {
    size_t at = (size_t)fuzz_draw(f, n);
    size_t len = (size_t)fuzz_draw(f, n - at < 40 ? n - at : 40) + 1;
    size_t from = (size_t)fuzz_draw(f, n - len + 1);
    char piece[64];
    const char *bit = bits[fuzz_draw(f, sizeof bits / sizeof bits[0])];
    memcpy(piece, data + from, len);
    switch (fuzz_draw(f, 12)) {
      case 0:
        data[at] = (char)(data[at] ^ (1 << fuzz_draw(f, 8)));
        break;
      case 1:
        data[at] = (char)fuzz_draw(f, 256);
        break;
      case 2:
        n = fuzz_splice(data, n, room, at, len, "", 0);
        break;
      case 3:
        n = fuzz_splice(data, n, room, at, 0, piece, len);
        break;
      case 4:
        n = fuzz_splice(data, n, room, at, fuzz_draw(f, 2) ? len : 0, bit, strlen(bit));
        break;
      case 5:
        n = fuzz_draw(f, 4) ? fuzz_splice(data, n, room, at, len, piece, len) : at;
        break;
      default:
        n = fuzz_swap(f, data, n, room);
        break;
    }
  }
  return n;
}

static void fuzz_broken(const fuzz *f, const char *what) {
  fprintf(stderr, "seed %llu case %llu: %s\n", (unsigned long long)f->seed,
          (unsigned long long)f->number, what);
  abort();
}

static void fuzz_tensors(fuzz *f, const char *data, size_t n) {
  pl_st *s = NULL;
  FILE *out = fopen(f->scratch, "wb");
  if (!out) {
    fuzz_broken(f, "cannot write the scratch file");
  }
  fwrite(data, 1, n, out);
  fclose(out);
  if (pl_st_open(f->ctx, f->scratch, &s) != PL_OK) {
    if (!strstr(f->ctx->err, f->scratch)) {
      fuzz_broken(f, "the refusal does not name the file");
    }
    return;
  }
  f->accepted++;
  size_t at = 0;
  for (size_t i = 0; i < pl_st_count(s); i++) {
    const pl_st_entry *e = pl_st_at(s, i);
    void *room = malloc((size_t)e->numel * (size_t)e->dtype->load_size + 1);
    if (e->begin != at || pl_st_find(s, e->name) != e) {
      fuzz_broken(f, "accepted entries do not tile the data");
    }
    if (room && e->dtype->load && pl_st_copy(f->ctx, s, e, room) != PL_OK) {
      fuzz_broken(f, "an accepted tensor cannot be copied");
    }
    free(room);
    at = e->end;
  }
  pl_st_close(f->ctx, s);
}

static void fuzz_tokenizer(fuzz *f, const char *data, size_t n) {
  pl_tokenizer *t = NULL;
  if (pl_tokenizer_parse(f->ctx, "fuzz.json", data, n, &t) != PL_OK) {
    if (!strstr(f->ctx->err, "fuzz.json")) {
      fuzz_broken(f, "the refusal does not name the source");
    }
    return;
  }
  f->accepted++;
  char text[64];
  pl_ids ids = {0};
  pl_buf back;
  pl_buf_init(&back, (size_t)1 << 20);
  for (size_t i = 0; i < sizeof text; i++) {
    static const char often[] = "  ab<|>_\n\t.1\xc3\xa9\xe2\x96\x81\xff";
    text[i] = fuzz_draw(f, 3) ? often[fuzz_draw(f, sizeof often)] : (char)fuzz_draw(f, 256);
  }
  if (pl_tokenizer_encode(f->ctx, t, text, sizeof text, true, &ids) == PL_OK) {
    for (size_t i = 0; i < ids.len; i++) {
      size_t len = 0;
      if (!pl_tokenizer_id_to_token(t, ids.data[i], &len)) {
        fuzz_broken(f, "encode gave an id without a token");
      }
    }
    if (pl_tokenizer_decode(f->ctx, t, ids.data, ids.len, false, &back) != PL_OK) {
      fuzz_broken(f, "what was encoded cannot be decoded");
    }
  }
  pl_ids_free(f->ctx, &ids);
  pl_buf_free(f->ctx, &back);
  pl_tokenizer_free(f->ctx, t);
}

static void fuzz_case(fuzz *f) {
  f->draws = 0;
  const fuzz_seed *s = &f->seeds[fuzz_draw(f, f->n_seeds)];
  if (fuzz_draw(f, 4) == 0) { /* there are few files of tensors: take them more often */
    s = &f->seeds[fuzz_draw(f, 2)];
  }
  size_t room = s->n + 256;
  char *data = malloc(room); /* exactly on the heap: a read past the end is seen */
  if (!data) {
    return;
  }
  memcpy(data, s->data, s->n);
  size_t n = fuzz_mutate(f, data, s->n, room);
  char *exact = malloc(n ? n : 1);
  if (exact) {
    int64_t live = f->ctx->mem.live;
    memcpy(exact, data, n);
    f->ctx->err[0] = 0;
    if (s->tensors) {
      fuzz_tensors(f, exact, n);
    } else {
      fuzz_tokenizer(f, exact, n);
    }
    if (f->ctx->mem.live != live) {
      fuzz_broken(f, "memory was left behind");
    }
  }
  free(exact);
  free(data);
}

#endif
