/* safetensors: a strict, mapped reader and an atomic writer.
 *
 * Use: pl_st_open, then pl_st_find / pl_st_at, pl_st_copy, pl_st_close.
 * A file that opens is sound: every entry lies inside the file, entries follow
 * each other with no hole and no overlap, and their sizes add up to the data
 * exactly. Everything is checked before the first byte of data is touched.
 * This module must not know tensors: it hands out names, shapes and bytes, and
 * bind/ makes tensors of them. */
#ifndef PL_FORMAT_SAFETENSORS_H
#define PL_FORMAT_SAFETENSORS_H
#include "base/status.h"

#define PL_ST_MAX_DIMS 8

typedef struct pl_st_dtype { /* one row a dtype of the format, in its alignment order */
  const char *name;          /* "F32" */
  int bits;                  /* of one element in the file */
  const char *load;          /* perilune dtype that pl_st_copy fills; NULL: cannot be loaded */
  int load_size;             /* bytes of one element there */
} pl_st_dtype;

typedef struct pl_st_entry {
  char *name;
  const pl_st_dtype *dtype;
  int ndim;
  int64_t shape[PL_ST_MAX_DIMS];
  int64_t numel;
  size_t begin, end; /* in the data, bytes */
} pl_st_entry;

typedef struct pl_st_pair { /* one entry of __metadata__ */
  char *key, *value;
} pl_st_pair;

typedef struct pl_st pl_st;

/* Maps and checks the file. Any flaw: PL_EFORMAT naming path and tensor.
 * The file must not be cut short by others while it is open. */
pl_status pl_st_open(pl_ctx *c, const char *path, pl_st **out);
void pl_st_close(pl_ctx *c, pl_st *s); /* NULL is fine */
const char *pl_st_path(const pl_st *s);
size_t pl_st_count(const pl_st *s);
const pl_st_entry *pl_st_at(const pl_st *s, size_t i); /* in the order of the data */
const pl_st_entry *pl_st_find(const pl_st *s, const char *name); /* NULL: none such */
size_t pl_st_metadata_count(const pl_st *s);
const pl_st_pair *pl_st_metadata_at(const pl_st *s, size_t i);
/* dst: numel elements of dtype->load. F16 widens to f32, U8, I8, I16, U16 to
 * i32, U32 to i64; the others are copied bit for bit. PL_EINVAL for a dtype
 * that cannot be loaded. */
pl_status pl_st_copy(pl_ctx *c, const pl_st *s, const pl_st_entry *e, void *dst);

typedef struct pl_st_item { /* what to write: contiguous, little-endian data */
  const char *name;
  const char *dtype; /* "F32", ... */
  int ndim;
  const int64_t *shape;
  const void *data;
} pl_st_item;

/* Atomic. Entries are ordered as the reference writer orders them (dtype by
 * alignment, then name), metadata by key, header padded with blanks to a
 * multiple of 8. Sorts items in place; their names must differ. */
pl_status pl_st_write(pl_ctx *c, const char *path, pl_st_item *items, size_t n,
                      const pl_st_pair *metadata, size_t n_metadata);

#endif
