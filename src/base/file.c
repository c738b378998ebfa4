/* Whole reads, read-only maps and atomic writes. Every call that can fail is
 * checked, fsync and close too: a write that the disk did not take is a failed
 * write, and the old file stays. Must not know any file format. */
#define _GNU_SOURCE
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define READ_CHUNK ((size_t)1 << 16)
#define WRITE_BUFFER ((size_t)1 << 16)

/* what the operating system said about path; err is errno's value */
static pl_status os_fail(pl_ctx *c, const char *path, const char *action, int err) {
  pl_status st = err == ENOENT ? PL_ENOENT : PL_EIO;
  return pl_fail(c, st, "%s: cannot %s: %s", path, action, strerror(err));
}

static int open_retry(const char *path, int flags, mode_t mode) {
  int fd;
  do {
    fd = open(path, flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

static pl_status read_fd(pl_ctx *c, const char *path, int fd, pl_buf *out) {
  struct stat s;
  if (fstat(fd, &s) != 0) {
    return os_fail(c, path, "read", errno);
  }
  if (S_ISDIR(s.st_mode)) {
    return pl_fail(c, PL_EIO, "%s: is a directory, a file was wanted", path);
  }
  size_t start = out->len;
  if (S_ISREG(s.st_mode) && (uint64_t)s.st_size > out->max - out->len) {
    return pl_fail(c, PL_EFORMAT, "%s: %lld bytes, at most %zu are read", path,
                   (long long)s.st_size, out->max - out->len);
  }
  char chunk[READ_CHUNK];
  for (;;) {
    ssize_t n = read(fd, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return os_fail(c, path, "read", errno);
    }
    if (n == 0) {
      return pl_buf_add(c, out, "", 0);
    }
    if ((size_t)n > out->max - out->len) {
      return pl_fail(c, PL_EFORMAT, "%s: more than the %zu bytes that are read at most", path,
                     out->max - start);
    }
    PL_TRY(pl_buf_add(c, out, chunk, (size_t)n));
  }
}

pl_status pl_file_read(pl_ctx *c, const char *path, pl_buf *out) {
  int fd = open_retry(path, O_RDONLY, 0);
  if (fd < 0) {
    return os_fail(c, path, "open", errno);
  }
  pl_status st = read_fd(c, path, fd, out);
  close(fd); /* only read from: nothing to lose */
  return st;
}

pl_status pl_file_map(pl_ctx *c, const char *path, pl_map *out) {
  pl_status st = PL_OK;
  struct stat s;
  out->data = NULL;
  out->size = 0;
  int fd = open_retry(path, O_RDONLY, 0);
  if (fd < 0) {
    return os_fail(c, path, "open", errno);
  }
  if (fstat(fd, &s) != 0) {
    st = os_fail(c, path, "read", errno);
  } else if (!S_ISREG(s.st_mode)) {
    st = pl_fail(c, PL_EIO, "%s: is %s, a file was wanted", path,
                 S_ISDIR(s.st_mode) ? "a directory" : "not a regular file");
  } else if (s.st_size > 0) {
    void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      st = os_fail(c, path, "map", errno);
    } else {
      out->data = p;
      out->size = (size_t)s.st_size;
    }
  }
  close(fd);
  return st;
}

void pl_file_unmap(pl_map *m) {
  if (m->data) {
    munmap((void *)m->data, m->size);
  }
  m->data = NULL;
  m->size = 0;
}

struct pl_writer {
  char *path; /* the file that will appear */
  char *temp; /* what is written until then */
  int fd;
  size_t held;
  pl_status st; /* first failure, repeated by commit */
  char buf[WRITE_BUFFER];
};

static void writer_free(pl_ctx *c, pl_writer *w) {
  if (w->fd >= 0) {
    close(w->fd);
  }
  pl_free(c, w->path);
  pl_free(c, w->temp);
  pl_free(c, w);
}

/* The file that path stands for: a link's target, so that a link stays one. */
static pl_status resolve(pl_ctx *c, const char *path, char out[PATH_MAX]) {
  struct stat s;
  if (path[0] == 0) {
    return pl_fail(c, PL_EINVAL, "cannot write a file without a name");
  }
  if (lstat(path, &s) == 0 && S_ISLNK(s.st_mode) && realpath(path, out)) {
    return PL_OK;
  }
  if (stat(path, &s) == 0 && !S_ISREG(s.st_mode)) {
    return pl_fail(c, PL_EIO, "%s: is %s, cannot be replaced by a file", path,
                   S_ISDIR(s.st_mode) ? "a directory" : "not a regular file");
  }
  if (strlen(path) >= PATH_MAX - 64) {
    return pl_fail(c, PL_EINVAL, "file name too long: %.80s...", path);
  }
  memcpy(out, path, strlen(path) + 1);
  return PL_OK;
}

/* Opens a new file beside w->path. The number makes the name ours alone:
 * a process writes one file at a time under a name, and O_EXCL sees to the rest. */
static pl_status open_temp(pl_ctx *c, pl_writer *w) {
  static atomic_uint serial;
  size_t n = strlen(w->path) + 64;
  w->temp = pl_alloc(c, n);
  if (!w->temp) {
    return PL_ENOMEM;
  }
  for (int tries = 0; tries < 100; tries++) {
    unsigned number = atomic_fetch_add(&serial, 1);
    snprintf(w->temp, n, "%s.tmp-%ld-%u", w->path, (long)getpid(), number);
    w->fd = open_retry(w->temp, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (w->fd >= 0) {
      return PL_OK;
    }
    if (errno != EEXIST) {
      break;
    }
  }
  int err = errno;
  return os_fail(c, w->path, "write", err);
}

pl_status pl_writer_open(pl_ctx *c, const char *path, pl_writer **out) {
  char target[PATH_MAX];
  *out = NULL;
  PL_TRY(resolve(c, path, target));
  pl_writer *w = pl_alloc(c, sizeof *w);
  if (!w) {
    return PL_ENOMEM;
  }
  w->fd = -1;
  w->held = 0;
  w->temp = NULL;
  w->st = PL_OK;
  w->path = pl_strdup(c, target);
  pl_status st = w->path ? open_temp(c, w) : PL_ENOMEM;
  if (st != PL_OK) {
    writer_free(c, w);
    return st;
  }
  struct stat s;
  if (stat(target, &s) == 0) {
    fchmod(w->fd, s.st_mode & 07777); /* a replaced file keeps its mode where we may set it */
  }
  *out = w;
  return PL_OK;
}

static pl_status write_all(pl_ctx *c, pl_writer *w, const char *p, size_t n) {
  while (n > 0) {
    ssize_t k = write(w->fd, p, n);
    if (k < 0 && errno == EINTR) {
      continue;
    }
    if (k < 0) {
      w->st = os_fail(c, w->path, "write", errno);
      return w->st;
    }
    p += k;
    n -= (size_t)k;
  }
  return PL_OK;
}

static pl_status flush(pl_ctx *c, pl_writer *w) {
  size_t n = w->held;
  w->held = 0;
  return write_all(c, w, w->buf, n);
}

pl_status pl_writer_add(pl_ctx *c, pl_writer *w, const void *bytes, size_t n) {
  if (w->st != PL_OK) {
    return pl_fail(c, w->st, "%s: an earlier write failed", w->path);
  }
  if (n > WRITE_BUFFER - w->held) {
    PL_TRY(flush(c, w));
  }
  if (n >= WRITE_BUFFER) {
    return write_all(c, w, bytes, n);
  }
  if (n > 0) {
    memcpy(w->buf + w->held, bytes, n);
  }
  w->held += n;
  return PL_OK;
}

pl_status pl_sync_parent(pl_ctx *c, const char *path) {
  char dir[PATH_MAX];
  const char *slash = strrchr(path, '/');
  size_t n = slash ? (size_t)(slash - path) : 0;
  if (n >= sizeof dir) {
    return pl_fail(c, PL_EINVAL, "file name too long: %.80s...", path);
  }
  if (!slash) {
    memcpy(dir, ".", 2);
  } else if (n == 0) {
    memcpy(dir, "/", 2);
  } else {
    memcpy(dir, path, n);
    dir[n] = 0;
  }
  int fd = open_retry(dir, O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) {
    return os_fail(c, dir, "open", errno);
  }
  /* some file systems cannot sync a directory and say EINVAL */
  int err = fsync(fd) == 0 || errno == EINVAL ? 0 : errno;
  close(fd);
  return err == 0 ? PL_OK : os_fail(c, dir, "sync", err);
}

pl_status pl_writer_commit(pl_ctx *c, pl_writer *w) {
  pl_status st = w->st;
  if (st != PL_OK) {
    pl_fail(c, st, "%s: an earlier write failed; the file was left as it was", w->path);
  } else {
    st = flush(c, w);
  }
  if (st == PL_OK && fsync(w->fd) != 0) {
    st = os_fail(c, w->path, "sync", errno);
  }
  int fd = w->fd;
  w->fd = -1;
  if (close(fd) != 0 && st == PL_OK) {
    st = os_fail(c, w->path, "close", errno);
  }
  if (st == PL_OK && rename(w->temp, w->path) != 0) {
    st = os_fail(c, w->path, "rename the finished file to this name", errno);
  }
  if (st == PL_OK) {
    st = pl_sync_parent(c, w->path);
  } else {
    unlink(w->temp);
  }
  writer_free(c, w);
  return st;
}

void pl_writer_abort(pl_ctx *c, pl_writer *w) {
  if (!w) {
    return;
  }
  unlink(w->temp);
  writer_free(c, w);
}

pl_status pl_file_write(pl_ctx *c, const char *path, const void *bytes, size_t n) {
  pl_writer *w;
  PL_TRY(pl_writer_open(c, path, &w));
  pl_status st = pl_writer_add(c, w, bytes, n);
  if (st != PL_OK) {
    pl_writer_abort(c, w); /* keeps the text of the failure */
    return st;
  }
  return pl_writer_commit(c, w);
}

/* For file systems that cannot exchange two names. Returns errno's value, 0 for success. */
static int exchange_by_steps(const char *fresh, const char *path) {
  char old[PATH_MAX];
  int n = snprintf(old, sizeof old, "%s.old-%ld", path, (long)getpid());
  if (n >= (int)sizeof old) {
    return ENAMETOOLONG;
  }
  if (rename(path, old) != 0) {
    return errno;
  }
  int err = rename(fresh, path) == 0 ? 0 : errno;
  if (err == 0 && rename(old, fresh) != 0) {
    err = errno;
    rename(path, fresh);
  }
  if (err != 0) {
    rename(old, path);
  }
  return err;
}

static int exchange(const char *fresh, const char *path) {
  if (renameat2(AT_FDCWD, fresh, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
    return 0;
  }
  /* what a file system or kernel says that does not know the flag */
  bool unknown = errno == EINVAL || errno == ENOSYS || errno == ENOTSUP;
  return unknown ? exchange_by_steps(fresh, path) : errno;
}

pl_status pl_replace(pl_ctx *c, const char *fresh, const char *path) {
  struct stat s;
  if (lstat(path, &s) != 0 && errno == ENOENT) {
    return pl_rename(c, fresh, path);
  }
  int err = exchange(fresh, path);
  if (err != 0) {
    return os_fail(c, path, "put the new one in its place", err);
  }
  pl_status st = pl_sync_parent(c, path);
  if (st != PL_OK) {
    exchange(fresh, path);
  }
  return st;
}

pl_status pl_rename(pl_ctx *c, const char *from, const char *to) {
  if (rename(from, to) != 0) {
    int err = errno;
    pl_status st = err == ENOENT ? PL_ENOENT : PL_EIO;
    return pl_fail(c, st, "%s: cannot rename to %s: %s", from, to, strerror(err));
  }
  return pl_sync_parent(c, to);
}
