/* Directories: make, list, remove. The other half of file.h. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"

#define DEPTH_MAX 200 /* open descriptors of one removal */

static pl_status os_fail(pl_ctx *c, const char *path, const char *action, int err) {
  pl_status st = err == ENOENT ? PL_ENOENT : PL_EIO;
  return pl_fail(c, st, "%s: cannot %s: %s", path, action, strerror(err));
}

bool pl_file_exists(const char *path) {
  struct stat s;
  return stat(path, &s) == 0;
}

bool pl_is_dir(const char *path) {
  struct stat s;
  return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static int64_t in_ns(struct timespec t) {
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

pl_status pl_file_stamp(pl_ctx *c, const char *path, pl_stamp *out) {
  struct stat s;
  if (stat(path, &s) != 0) {
    return os_fail(c, path, "read the times", errno);
  }
  *out = (pl_stamp){.size = s.st_size, .inode = (int64_t)s.st_ino,
                    .mtime_ns = in_ns(s.st_mtim), .ctime_ns = in_ns(s.st_ctim)};
  return PL_OK;
}

pl_status pl_mkdirs(pl_ctx *c, const char *path) {
  char p[PATH_MAX];
  size_t n = strlen(path);
  if (n == 0 || n >= sizeof p) {
    return pl_fail(c, PL_EINVAL, "directory name %s: \"%.80s\"", n == 0 ? "is empty" : "too long",
                   path);
  }
  memcpy(p, path, n + 1);
  for (size_t i = 1; i <= n; i++) {
    if (p[i] != '/' && p[i] != 0) {
      continue;
    }
    char keep = p[i];
    p[i] = 0;
    int err = mkdir(p, 0777) == 0 ? 0 : errno;
    if (err != 0 && !pl_is_dir(p)) {
      return os_fail(c, p, "make the directory", err == EEXIST ? ENOTDIR : err);
    }
    p[i] = keep;
  }
  return PL_OK;
}

pl_status pl_mkdir(pl_ctx *c, const char *path, bool *made) {
  int err = mkdir(path, 0777) == 0 ? 0 : errno;
  *made = err == 0;
  return err == 0 || err == EEXIST ? PL_OK : os_fail(c, path, "make the directory", err);
}

/* Removes name in the directory dir, and what is in it. Links are not followed.
 * Returns errno's value, 0 for success. */
static int remove_at(int dir, const char *name, int depth) {
  if (unlinkat(dir, name, 0) == 0 || errno == ENOENT) {
    return 0;
  }
  if (errno != EISDIR && errno != EPERM) {
    return errno;
  }
  if (depth == DEPTH_MAX) {
    return ELOOP;
  }
  int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) {
    return errno;
  }
  DIR *d = fdopendir(fd);
  if (!d) {
    int err = errno;
    close(fd);
    return err;
  }
  int err = 0;
  struct dirent *e = readdir(d);
  while (e && err == 0) {
    if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
      err = remove_at(fd, e->d_name, depth + 1);
    }
    e = readdir(d);
  }
  closedir(d);
  if (err == 0 && unlinkat(dir, name, AT_REMOVEDIR) != 0 && errno != ENOENT) {
    err = errno;
  }
  return err;
}

pl_status pl_remove_tree(pl_ctx *c, const char *path) {
  char real[PATH_MAX];
  if (path[0] == 0 || (realpath(path, real) && strcmp(real, "/") == 0)) {
    return pl_fail(c, PL_EINVAL, "\"%s\" is not a directory to remove", path);
  }
  int err = remove_at(AT_FDCWD, path, 0);
  return err == 0 ? PL_OK : os_fail(c, path, "remove", err);
}

typedef struct names {
  char **at;
  size_t n, cap;
} names;

static pl_status add_name(pl_ctx *c, names *l, const char *name) {
  if (l->n == l->cap) {
    size_t cap = l->cap == 0 ? 32 : l->cap * 2;
    char **p = pl_realloc(c, l->at, cap * sizeof *p);
    if (!p) {
      return PL_ENOMEM;
    }
    l->at = p;
    l->cap = cap;
  }
  char *s = pl_strdup(c, name);
  if (!s) {
    return PL_ENOMEM;
  }
  l->at[l->n] = s;
  l->n++;
  return PL_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

pl_status pl_list_dir(pl_ctx *c, const char *path, pl_status (*fn)(void *arg, const char *name),
                      void *arg) {
  names l = {0};
  pl_status st = PL_OK;
  DIR *d = opendir(path);
  if (!d) {
    return os_fail(c, path, "list", errno);
  }
  errno = 0;
  struct dirent *e = readdir(d);
  while (e && st == PL_OK) {
    if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
      st = add_name(c, &l, e->d_name);
    }
    errno = 0;
    e = readdir(d);
  }
  if (st == PL_OK && errno != 0) {
    st = os_fail(c, path, "list", errno);
  }
  closedir(d);
  if (l.n > 0) {
    qsort(l.at, l.n, sizeof *l.at, by_name);
  }
  for (size_t i = 0; i < l.n && st == PL_OK; i++) {
    st = fn(arg, l.at[i]);
  }
  for (size_t i = 0; i < l.n; i++) {
    pl_free(c, l.at[i]);
  }
  pl_free(c, l.at);
  return st;
}
