/* Files: whole reads, read-only maps, atomic writes. Messages name the path
 * and what the operating system said. */
#ifndef PL_BASE_FILE_H
#define PL_BASE_FILE_H
#include "base/buf.h"

/* Appends the whole file. Over buf's maximum: PL_EFORMAT naming both sizes. */
pl_status pl_file_read(pl_ctx *c, const char *path, pl_buf *out);

typedef struct pl_map {
  const unsigned char *data; /* NULL for an empty file */
  size_t size;
} pl_map;
pl_status pl_file_map(pl_ctx *c, const char *path, pl_map *out);
void pl_file_unmap(pl_map *m);

/* Atomic replace: temporary file in the same directory, write, fsync, rename,
 * fsync of the directory. Until commit succeeds the old file is untouched;
 * abort removes the temporary file. A failed fsync or close is a failed write. */
typedef struct pl_writer pl_writer;
pl_status pl_writer_open(pl_ctx *c, const char *path, pl_writer **out);
pl_status pl_writer_add(pl_ctx *c, pl_writer *w, const void *bytes, size_t n);
pl_status pl_writer_commit(pl_ctx *c, pl_writer *w); /* frees w, also on failure */
void pl_writer_abort(pl_ctx *c, pl_writer *w);       /* frees w; NULL is fine */
pl_status pl_file_write(pl_ctx *c, const char *path, const void *bytes, size_t n); /* atomic */

pl_status pl_mkdirs(pl_ctx *c, const char *path); /* like mkdir -p */
/* One directory, made by this call: *made is false where the name is taken. */
pl_status pl_mkdir(pl_ctx *c, const char *path, bool *made);
bool pl_file_exists(const char *path);
bool pl_is_dir(const char *path);
/* Makes a directory's new name last: rename(from,to) + fsync of the parent. */
pl_status pl_rename(pl_ctx *c, const char *from, const char *to);
/* Puts fresh in place of what is at path and makes it last; what was there, if anything, has
 * fresh's name afterwards. A failure leaves both as they were. One step where the file system can
 * exchange names; where it cannot, two, by way of PATH.old-PID. */
pl_status pl_replace(pl_ctx *c, const char *fresh, const char *path);
pl_status pl_sync_parent(pl_ctx *c, const char *path); /* makes the names beside path last */
pl_status pl_remove_tree(pl_ctx *c, const char *path); /* a missing path is fine */

/* What tells that a file is not the one it was: any write, and any other file of this name. */
typedef struct pl_stamp {
  int64_t size, inode;
  int64_t mtime_ns, ctime_ns; /* since 1970 */
} pl_stamp;
pl_status pl_file_stamp(pl_ctx *c, const char *path, pl_stamp *out);
/* Calls fn(arg, name) for each entry in sorted order; "." and ".." left out. */
pl_status pl_list_dir(pl_ctx *c, const char *path,
                      pl_status (*fn)(void *arg, const char *name), void *arg);

#endif
