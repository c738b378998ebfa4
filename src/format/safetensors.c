/* safetensors reading and writing; see the header for the promises.
 * Layout: u64 header length, JSON header, data (all little-endian). */
#include "format/safetensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian; this reader copies it as it is"
#endif

#define HEADER_MAX ((uint64_t)100000000) /* the reference reader's limit */
#define EXACT_MAX 9007199254740992.0     /* 2^53: beyond it a JSON number may have been rounded */

/* The reference writer's order: it sorts by this row number, highest first. */
static const pl_st_dtype DTYPES[] = {
    {"BOOL", 8, "bool", 1},    {"F4", 4, NULL, 0},
    {"F6_E2M3", 6, NULL, 0},   {"F6_E3M2", 6, NULL, 0},
    {"U8", 8, "i32", 4},       {"I8", 8, "i32", 4},
    {"F8_E5M2", 8, NULL, 0},   {"F8_E4M3", 8, NULL, 0},
    {"F8_E8M0", 8, NULL, 0},   {"F8_E4M3FNUZ", 8, NULL, 0},
    {"F8_E5M2FNUZ", 8, NULL, 0}, {"I16", 16, "i32", 4},
    {"U16", 16, "i32", 4},     {"F16", 16, "f32", 4},
    {"BF16", 16, "bf16", 2},   {"I32", 32, "i32", 4},
    {"U32", 32, "i64", 8},     {"F32", 32, "f32", 4},
    {"C64", 64, NULL, 0},      {"F64", 64, "f64", 8},
    {"I64", 64, "i64", 8},     {"U64", 64, NULL, 0},
};
#define N_DTYPES (sizeof DTYPES / sizeof DTYPES[0])

struct pl_st {
  char *path;
  pl_map map;
  const unsigned char *data; /* after the header */
  size_t data_size;
  pl_st_entry *entries; /* by begin, end */
  size_t n;
  const pl_st_entry **by_name;
  pl_st_pair *metadata;
  size_t n_metadata;
};

static const pl_st_dtype *find_dtype(const char *name) {
  for (size_t i = 0; i < N_DTYPES; i++) {
    if (strcmp(DTYPES[i].name, name) == 0) {
      return &DTYPES[i];
    }
  }
  return NULL;
}

static int by_place(const void *pa, const void *pb) {
  const pl_st_entry *a = pa;
  const pl_st_entry *b = pb;
  if (a->begin != b->begin) {
    return a->begin < b->begin ? -1 : 1;
  }
  if (a->end != b->end) {
    return a->end < b->end ? -1 : 1;
  }
  return strcmp(a->name, b->name);
}

static int by_name(const void *pa, const void *pb) {
  const pl_st_entry *const *a = pa;
  const pl_st_entry *const *b = pb;
  return strcmp((*a)->name, (*b)->name);
}

/* A JSON value as a whole number of 0 .. 2^53; false otherwise. */
static bool whole(const cJSON *v, uint64_t *out) {
  if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0) || v->valuedouble > EXACT_MAX ||
      v->valuedouble != floor(v->valuedouble)) {
    return false;
  }
  *out = (uint64_t)v->valuedouble;
  return true;
}

/* Names are keys, never paths; still no reader of ours should meet one that
 * could be taken for a path upwards or that hides behind control characters. */
static bool good_name(const char *name) {
  for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
    if (*p < 0x20 || *p == 0x7f) {
      return false;
    }
    bool starts = p == (const unsigned char *)name || p[-1] == '/';
    if (starts && p[0] == '.' && p[1] == '.' && (p[2] == '/' || p[2] == 0)) {
      return false;
    }
  }
  return true;
}

static pl_status read_shape(pl_ctx *c, const cJSON *shape, pl_st_entry *e) {
  uint64_t numel = 1;
  bool empty = false;
  const cJSON *d = NULL;
  cJSON_ArrayForEach(d, shape) {
    uint64_t dim = 0;
    if (!whole(d, &dim)) {
      return pl_fail(c, PL_EFORMAT, "shape holds something that is not a whole number");
    }
    if (e->ndim == PL_ST_MAX_DIMS) {
      return pl_fail(c, PL_EFORMAT, "shape has more than %d dims", PL_ST_MAX_DIMS);
    }
    e->shape[e->ndim] = (int64_t)dim;
    e->ndim++;
    if (dim == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(numel, dim, &numel) || numel > (uint64_t)PTRDIFF_MAX) {
      return pl_fail(c, PL_EFORMAT, "the product of the shape overflows");
    }
  }
  e->numel = empty ? 0 : (int64_t)numel;
  return PL_OK;
}

static pl_status read_offsets(pl_ctx *c, const pl_st *s, const cJSON *offsets, pl_st_entry *e) {
  uint64_t begin = 0;
  uint64_t end = 0;
  if (cJSON_GetArraySize(offsets) != 2 || !whole(offsets->child, &begin) ||
      !whole(offsets->child->next, &end)) {
    return pl_fail(c, PL_EFORMAT, "data_offsets must be two whole numbers [begin, end]");
  }
  if (begin > end) {
    return pl_fail(c, PL_EFORMAT, "data_offsets begin at %llu, after their end %llu",
                   (unsigned long long)begin, (unsigned long long)end);
  }
  if (end > s->data_size) {
    return pl_fail(c, PL_EFORMAT, "data ends at byte %llu, but the file holds %zu bytes of data",
                   (unsigned long long)end, s->data_size);
  }
  e->begin = (size_t)begin;
  e->end = (size_t)end;
  return PL_OK;
}

static pl_status read_entry(pl_ctx *c, const pl_st *s, const cJSON *j, pl_st_entry *e) {
  const cJSON *dtype = NULL;
  const cJSON *shape = NULL;
  const cJSON *offsets = NULL;
  if (!cJSON_IsObject(j)) {
    return pl_fail(c, PL_EFORMAT, "an entry must be an object {dtype, shape, data_offsets}");
  }
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, j) {
    if (strcmp(v->string, "dtype") == 0) {
      dtype = v;
    } else if (strcmp(v->string, "shape") == 0) {
      shape = v;
    } else if (strcmp(v->string, "data_offsets") == 0) {
      offsets = v;
    } else {
      return pl_fail(c, PL_EFORMAT, "unknown key \"%.60s\"", v->string);
    }
  }
  if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets)) {
    return pl_fail(c, PL_EFORMAT, "dtype (a string), shape and data_offsets (arrays) are needed");
  }
  e->dtype = find_dtype(dtype->valuestring);
  if (!e->dtype) {
    return pl_fail(c, PL_EFORMAT, "unknown dtype \"%.40s\"", dtype->valuestring);
  }
  PL_TRY(read_shape(c, shape, e));
  PL_TRY(read_offsets(c, s, offsets, e));
  uint64_t bits = 0;
  if (__builtin_mul_overflow((uint64_t)e->numel, (uint64_t)e->dtype->bits, &bits) || bits % 8) {
    return pl_fail(c, PL_EFORMAT, "%lld elements of %s are no whole number of bytes below 2^61",
                   (long long)e->numel, e->dtype->name);
  }
  if (bits / 8 != e->end - e->begin) {
    return pl_fail(c, PL_EFORMAT, "shape and dtype need %llu bytes, data_offsets give %zu",
                   (unsigned long long)(bits / 8), e->end - e->begin);
  }
  return PL_OK;
}

static pl_status read_metadata(pl_ctx *c, pl_st *s, const cJSON *j) {
  if (!cJSON_IsObject(j)) {
    return pl_fail(c, PL_EFORMAT, "__metadata__ must be an object of strings");
  }
  size_t n = (size_t)cJSON_GetArraySize(j);
  s->metadata = pl_alloc_zero(c, n * sizeof *s->metadata);
  if (!s->metadata) {
    return PL_ENOMEM;
  }
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, j) {
    if (!cJSON_IsString(v)) {
      return pl_fail(c, PL_EFORMAT, "__metadata__[\"%.60s\"] is not a string", v->string);
    }
    pl_st_pair *p = &s->metadata[s->n_metadata];
    s->n_metadata++;
    p->key = pl_strdup(c, v->string);
    p->value = pl_strdup(c, v->valuestring);
    if (!p->key || !p->value) {
      return PL_ENOMEM;
    }
  }
  return PL_OK;
}

/* After sorting: entries must tile the data from 0 to its end. */
static pl_status check_tiling(pl_ctx *c, const pl_st *s) {
  size_t at = 0;
  for (size_t i = 0; i < s->n; i++) {
    const pl_st_entry *e = &s->entries[i];
    if (e->begin != at) {
      return pl_fail(c, PL_EFORMAT, "tensor \"%.120s\" begins at byte %zu of the data, %s %zu",
                     e->name, e->begin,
                     e->begin < at ? "inside the tensor before it, which ends at"
                                   : "leaving a hole after byte",
                     at);
    }
    at = e->end;
  }
  if (at != s->data_size) {
    return pl_fail(c, PL_EFORMAT, "the tensors end at byte %zu of the data, the file at %zu", at,
                   s->data_size);
  }
  return PL_OK;
}

static pl_status read_header(pl_ctx *c, pl_st *s, const cJSON *root) {
  if (!cJSON_IsObject(root)) {
    return pl_fail(c, PL_EFORMAT, "the header must be a JSON object");
  }
  size_t n = (size_t)cJSON_GetArraySize(root);
  s->entries = pl_alloc_zero(c, n * sizeof *s->entries);
  s->by_name = pl_alloc_zero(c, n * sizeof *s->by_name);
  if (!s->entries || !s->by_name) {
    return PL_ENOMEM;
  }
  const cJSON *v = NULL;
  cJSON_ArrayForEach(v, root) {
    if (strcmp(v->string, "__metadata__") == 0) {
      PL_TRY(read_metadata(c, s, v));
      continue;
    }
    if (!good_name(v->string)) {
      return pl_fail(c, PL_EFORMAT, "a tensor name holds \"..\" or a control character");
    }
    pl_st_entry *e = &s->entries[s->n];
    s->n++;
    e->name = pl_strdup(c, v->string);
    if (!e->name) {
      return PL_ENOMEM;
    }
    pl_status st = read_entry(c, s, v, e);
    if (st != PL_OK) {
      return pl_fail_in(c, st, "tensor \"%.120s\"", e->name);
    }
  }
  qsort(s->entries, s->n, sizeof *s->entries, by_place);
  for (size_t i = 0; i < s->n; i++) {
    s->by_name[i] = &s->entries[i];
  }
  qsort(s->by_name, s->n, sizeof *s->by_name, by_name);
  return check_tiling(c, s);
}

static pl_status open_mapped(pl_ctx *c, pl_st *s) {
  uint64_t n = 0;
  if (s->map.size < 8) {
    return pl_fail(c, PL_EFORMAT, "%zu bytes are too few for a safetensors file", s->map.size);
  }
  memcpy(&n, s->map.data, 8);
  if (n > HEADER_MAX) {
    return pl_fail(c, PL_EFORMAT,
                   "the header says it is %llu bytes long, more than the %llu allowed: "
                   "this is no safetensors file",
                   (unsigned long long)n, (unsigned long long)HEADER_MAX);
  }
  if (n > s->map.size - 8) {
    return pl_fail(c, PL_EFORMAT,
                   "the header says it is %llu bytes long, but only %zu follow: the file is cut "
                   "short",
                   (unsigned long long)n, s->map.size - 8);
  }
  const char *text = (const char *)s->map.data + 8;
  if (n == 0 || text[0] != '{') {
    return pl_fail(c, PL_EFORMAT, "the header does not start with '{'");
  }
  s->data = s->map.data + 8 + n;
  s->data_size = s->map.size - 8 - (size_t)n;
  cJSON *root = NULL;
  PL_TRY(pl_json_parse(c, "header", text, (size_t)n, &root));
  pl_status st = read_header(c, s, root);
  cJSON_Delete(root);
  return st;
}

pl_status pl_st_open(pl_ctx *c, const char *path, pl_st **out) {
  *out = NULL;
  pl_st *s = pl_alloc_zero(c, sizeof *s);
  if (!s) {
    return PL_ENOMEM;
  }
  pl_status st = PL_ENOMEM;
  s->path = pl_strdup(c, path);
  if (!s->path) {
    goto fail;
  }
  st = pl_file_map(c, path, &s->map);
  if (st != PL_OK) {
    goto fail;
  }
  st = open_mapped(c, s);
  if (st != PL_OK) {
    st = pl_fail_in(c, st, "%.600s", path);
    goto fail;
  }
  *out = s;
  return PL_OK;
fail:
  pl_st_close(c, s);
  return st;
}

void pl_st_close(pl_ctx *c, pl_st *s) {
  if (!s) {
    return;
  }
  if (s->map.data) {
    pl_file_unmap(&s->map);
  }
  for (size_t i = 0; i < s->n; i++) {
    pl_free(c, s->entries[i].name);
  }
  for (size_t i = 0; i < s->n_metadata; i++) {
    pl_free(c, s->metadata[i].key);
    pl_free(c, s->metadata[i].value);
  }
  pl_free(c, s->entries);
  pl_free(c, s->by_name);
  pl_free(c, s->metadata);
  pl_free(c, s->path);
  pl_free(c, s);
}

const char *pl_st_path(const pl_st *s) {
  return s->path;
}

size_t pl_st_count(const pl_st *s) {
  return s->n;
}

const pl_st_entry *pl_st_at(const pl_st *s, size_t i) {
  return &s->entries[i];
}

const pl_st_entry *pl_st_find(const pl_st *s, const char *name) {
  size_t lo = 0;
  size_t hi = s->n;
  while (lo < hi) {
    size_t mid = lo + (hi - lo) / 2;
    int order = strcmp(s->by_name[mid]->name, name);
    if (order == 0) {
      return s->by_name[mid];
    }
    if (order < 0) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return NULL;
}

size_t pl_st_metadata_count(const pl_st *s) {
  return s->n_metadata;
}

const pl_st_pair *pl_st_metadata_at(const pl_st *s, size_t i) {
  return &s->metadata[i];
}

/* IEEE 754 binary16 to binary32, exactly (subnormals, infinities, NaN payload). */
static float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 0x1fu;
  uint32_t fraction = h & 0x3ffu;
  uint32_t bits = 0;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {
    float tiny = (float)fraction * 0x1p-24f; /* exact: at most 10 bits */
    return sign ? -tiny : tiny;
  }
  float f = 0;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* The loop of one widening copy: the file's elements may lie unaligned. */
#define WIDEN(from, to, expr)                     \
  do {                                            \
    to *d_ = dst;                                 \
    for (int64_t i = 0; i < e->numel; i++) {      \
      from v;                                     \
      memcpy(&v, src + (size_t)i * sizeof v, sizeof v); \
      d_[i] = (expr);                             \
    }                                             \
  } while (0)

pl_status pl_st_copy(pl_ctx *c, const pl_st *s, const pl_st_entry *e, void *dst) {
  const unsigned char *src = s->data + e->begin;
  const char *t = e->dtype->name;
  if (!e->dtype->load) {
    return pl_fail(c, PL_EINVAL,
                   "%.500s: tensor \"%.120s\" is of dtype %s, which cannot be loaded; have F32, "
                   "F64, F16, BF16, BOOL and the integers up to 32 bits and I64. Convert the file",
                   s->path, e->name, t);
  }
  if (e->numel == 0) {
    return PL_OK;
  }
  if (strcmp(t, "F16") == 0) {
    WIDEN(uint16_t, float, half_to_float(v));
  } else if (strcmp(t, "BOOL") == 0) {
    WIDEN(uint8_t, uint8_t, v != 0);
  } else if (strcmp(t, "U8") == 0) {
    WIDEN(uint8_t, int32_t, (int32_t)v);
  } else if (strcmp(t, "I8") == 0) {
    WIDEN(int8_t, int32_t, (int32_t)v);
  } else if (strcmp(t, "U16") == 0) {
    WIDEN(uint16_t, int32_t, (int32_t)v);
  } else if (strcmp(t, "I16") == 0) {
    WIDEN(int16_t, int32_t, (int32_t)v);
  } else if (strcmp(t, "U32") == 0) {
    WIDEN(uint32_t, int64_t, (int64_t)v);
  } else {
    memcpy(dst, src, e->end - e->begin);
  }
  return PL_OK;
}

static int by_reference_order(const void *pa, const void *pb) {
  const pl_st_item *a = pa;
  const pl_st_item *b = pb;
  const pl_st_dtype *da = find_dtype(a->dtype);
  const pl_st_dtype *db = find_dtype(b->dtype);
  if (da != db) {
    return da > db ? -1 : 1;
  }
  return strcmp(a->name, b->name);
}

static pl_status item_bytes(pl_ctx *c, const pl_st_item *it, size_t *out) {
  const pl_st_dtype *d = find_dtype(it->dtype);
  size_t n = 1;
  for (int k = 0; k < it->ndim; k++) {
    PL_TRY(pl_size_mul(c, n, (size_t)it->shape[k], &n));
  }
  return pl_size_mul(c, n, (size_t)d->bits / 8, out);
}

static pl_status put_metadata(pl_ctx *c, pl_buf *b, const pl_st_pair *m, size_t n) {
  PL_TRY(pl_buf_puts(c, b, "\"__metadata__\":{"));
  for (size_t done = 0; done < n; done++) { /* a selection sort: there are a handful of keys */
    size_t next = n;
    for (size_t i = 0; i < n; i++) {
      size_t before = 0;
      for (size_t k = 0; k < n; k++) {
        before += strcmp(m[k].key, m[i].key) < 0;
      }
      if (before == done) {
        next = i;
      }
    }
    if (next == n) {
      return pl_fail(c, PL_EINVAL, "metadata names a key twice");
    }
    PL_TRY(pl_buf_puts(c, b, done ? "," : ""));
    PL_TRY(pl_json_put_string(c, b, m[next].key, strlen(m[next].key)));
    PL_TRY(pl_buf_puts(c, b, ":"));
    PL_TRY(pl_json_put_string(c, b, m[next].value, strlen(m[next].value)));
  }
  return pl_buf_puts(c, b, "}");
}

static pl_status put_header(pl_ctx *c, pl_buf *b, const pl_st_item *items, size_t n,
                            const pl_st_pair *metadata, size_t n_metadata) {
  size_t at = 0;
  bool first = true;
  PL_TRY(pl_buf_puts(c, b, "{"));
  if (n_metadata > 0) {
    PL_TRY(put_metadata(c, b, metadata, n_metadata));
    first = false;
  }
  for (size_t i = 0; i < n; i++) {
    const pl_st_item *it = &items[i];
    size_t bytes = 0;
    PL_TRY(item_bytes(c, it, &bytes));
    PL_TRY(pl_buf_puts(c, b, first ? "" : ","));
    first = false;
    PL_TRY(pl_json_put_string(c, b, it->name, strlen(it->name)));
    PL_TRY(pl_buf_printf(c, b, ":{\"dtype\":\"%s\",\"shape\":[", it->dtype));
    for (int k = 0; k < it->ndim; k++) {
      PL_TRY(pl_buf_printf(c, b, "%s%lld", k ? "," : "", (long long)it->shape[k]));
    }
    PL_TRY(pl_buf_printf(c, b, "],\"data_offsets\":[%zu,%zu]}", at, at + bytes));
    at += bytes;
  }
  PL_TRY(pl_buf_puts(c, b, "}"));
  while (b->len % 8) {
    PL_TRY(pl_buf_puts(c, b, " "));
  }
  return PL_OK;
}

static pl_status put_file(pl_ctx *c, pl_writer *w, const pl_buf *header, const pl_st_item *items,
                          size_t n) {
  uint64_t length = header->len;
  PL_TRY(pl_writer_add(c, w, &length, sizeof length));
  PL_TRY(pl_writer_add(c, w, header->data, header->len));
  for (size_t i = 0; i < n; i++) {
    size_t bytes = 0;
    PL_TRY(item_bytes(c, &items[i], &bytes));
    if (bytes > 0) {
      PL_TRY(pl_writer_add(c, w, items[i].data, bytes));
    }
  }
  return PL_OK;
}

pl_status pl_st_write(pl_ctx *c, const char *path, pl_st_item *items, size_t n,
                      const pl_st_pair *metadata, size_t n_metadata) {
  for (size_t i = 0; i < n; i++) {
    const pl_st_dtype *d = find_dtype(items[i].dtype);
    if (!d || d->bits % 8 || items[i].ndim > PL_ST_MAX_DIMS || !good_name(items[i].name) ||
        strcmp(items[i].name, "__metadata__") == 0) {
      return pl_fail(c, PL_EINVAL, "%.500s: tensor \"%.120s\" of dtype %.20s cannot be written",
                     path, items[i].name, items[i].dtype);
    }
  }
  if (n > 1) {
    qsort(items, n, sizeof *items, by_reference_order);
  }
  pl_buf header;
  pl_buf_init(&header, HEADER_MAX);
  pl_writer *w = NULL;
  pl_status st = put_header(c, &header, items, n, metadata, n_metadata);
  if (st != PL_OK) {
    st = pl_fail_in(c, st, "%.600s", path);
    goto done;
  }
  st = pl_writer_open(c, path, &w);
  if (st != PL_OK) {
    goto done;
  }
  st = put_file(c, w, &header, items, n);
  if (st != PL_OK) {
    goto done;
  }
  st = pl_writer_commit(c, w);
  w = NULL;
done:
  pl_writer_abort(c, w);
  pl_buf_free(c, &header);
  return st;
}
