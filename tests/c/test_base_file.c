/* Reads, maps, atomic writes, directories: also on a full disk. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/buf.h"

/* Takes the C library's place, to be a file system that cannot exchange names. */
static bool no_exchange;

int renameat2(int old_dir, const char *from, int new_dir, const char *to, unsigned flags) {
  if (no_exchange) {
    errno = EINVAL;
    return -1;
  }
  return (int)syscall(SYS_renameat2, old_dir, from, new_dir, to, flags);
}

static char *in_dir(const char *name) {
  static char path[4][256];
  static int next;
  next = (next + 1) % 4;
  snprintf(path[next], sizeof path[next], "%s/%s", scratch_dir(), name);
  return path[next];
}

/* The file's text, in a buffer that the next call reuses; NULL if it cannot be read. */
static const char *text_of(const char *path) {
  static char text[100000];
  FILE *f = fopen(path, "r");
  if (!f) {
    return NULL;
  }
  size_t n = fread(text, 1, sizeof text - 1, f);
  fclose(f);
  text[n] = 0;
  return text;
}

static int count;
static char seen[1000];

static pl_status note(void *arg, const char *name) {
  (void)arg;
  count++;
  snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s ", name);
  return PL_OK;
}

static const char *list(const char *dir) {
  count = 0;
  seen[0] = 0;
  CHECK_OK(pl_list_dir(ctx(), dir, note, NULL));
  return seen;
}

TEST(whole_reads) {
  pl_ctx *c = ctx();
  pl_buf b;
  pl_buf_init(&b, 100);
  char *path = in_dir("read");
  CHECK_OK(pl_file_write(c, path, "hello\0there", 11));
  CHECK_OK(pl_buf_puts(c, &b, "> "));
  CHECK_OK(pl_file_read(c, path, &b));
  CHECK_INT(b.len, 13);
  CHECK(memcmp(b.data, "> hello\0there", 14) == 0);
  pl_buf_free(c, &b);
  CHECK_OK(pl_file_write(c, path, "", 0));
  CHECK_OK(pl_file_read(c, path, &b));
  CHECK_STR(b.data, "");
  pl_buf_free(c, &b);
  pl_buf_init(&b, 4);
  CHECK_OK(pl_file_write(c, path, "hello", 5));
  CHECK_STATUS(pl_file_read(c, path, &b), PL_EFORMAT);
  CHECK_HAS(c->err, "5 bytes, at most 4");
  CHECK_STATUS(pl_file_read(c, "/dev/zero", &b), PL_EFORMAT);
  CHECK_STATUS(pl_file_read(c, in_dir("none"), &b), PL_ENOENT);
  CHECK_HAS(c->err, "/none: cannot open: No such file");
  CHECK_STATUS(pl_file_read(c, scratch_dir(), &b), PL_EIO);
  CHECK_HAS(c->err, "is a directory");
  pl_buf_free(c, &b);
}

TEST(maps) {
  pl_ctx *c = ctx();
  pl_map m;
  char *path = in_dir("map");
  CHECK_OK(pl_file_write(c, path, "abc", 3));
  CHECK_OK(pl_file_map(c, path, &m));
  CHECK_INT(m.size, 3);
  CHECK(m.data && memcmp(m.data, "abc", 3) == 0);
  pl_file_unmap(&m);
  CHECK(!m.data);
  pl_file_unmap(&m);
  CHECK_OK(pl_file_write(c, path, NULL, 0));
  CHECK_OK(pl_file_map(c, path, &m));
  CHECK(!m.data && m.size == 0);
  CHECK_STATUS(pl_file_map(c, in_dir("none"), &m), PL_ENOENT);
  CHECK_STATUS(pl_file_map(c, scratch_dir(), &m), PL_EIO);
  CHECK_STATUS(pl_file_map(c, "/dev/null", &m), PL_EIO);
}

TEST(a_write_is_seen_whole_or_not_at_all) {
  pl_ctx *c = ctx();
  char *dir = in_dir("atomic");
  CHECK_OK(pl_mkdirs(c, dir));
  char path[300];
  snprintf(path, sizeof path, "%s/file", dir);
  CHECK_OK(pl_file_write(c, path, "old", 3));
  chmod(path, 0640);
  pl_writer *w = NULL;
  CHECK_OK(pl_writer_open(c, path, &w));
  REQUIRE(w);
  CHECK_OK(pl_writer_add(c, w, "ne", 2));
  CHECK_OK(pl_writer_add(c, w, NULL, 0));
  CHECK_OK(pl_writer_add(c, w, "w", 1));
  CHECK_STR(text_of(path), "old");
  CHECK_OK(pl_writer_commit(c, w));
  CHECK_STR(text_of(path), "new");
  struct stat s;
  CHECK(stat(path, &s) == 0 && (s.st_mode & 0777) == 0640);
  CHECK_OK(pl_writer_open(c, path, &w));
  CHECK_OK(pl_writer_add(c, w, "newer", 5));
  pl_writer_abort(c, w);
  pl_writer_abort(c, NULL);
  CHECK_STR(text_of(path), "new");
  CHECK_STR(list(dir), "file ");
}

TEST(a_big_write_arrives) {
  pl_ctx *c = ctx();
  char *path = in_dir("big");
  pl_writer *w = NULL;
  pl_buf all;
  pl_buf back;
  pl_buf_init(&all, SIZE_MAX);
  pl_buf_init(&back, SIZE_MAX);
  char piece[70000];
  for (size_t i = 0; i < sizeof piece; i++) {
    piece[i] = (char)(i * 7 + i / 256);
  }
  CHECK_OK(pl_writer_open(c, path, &w));
  for (size_t n = 1; n <= sizeof piece; n = n * 2 + 1) {
    CHECK_OK(pl_writer_add(c, w, piece, n));
    CHECK_OK(pl_buf_add(c, &all, piece, n));
  }
  CHECK_OK(pl_writer_add(c, w, piece, sizeof piece));
  CHECK_OK(pl_buf_add(c, &all, piece, sizeof piece));
  CHECK_OK(pl_writer_commit(c, w));
  CHECK_OK(pl_file_read(c, path, &back));
  CHECK(back.len == all.len && memcmp(back.data, all.data, all.len) == 0);
  pl_buf_free(c, &all);
  pl_buf_free(c, &back);
}

TEST(writes_that_cannot_be) {
  pl_ctx *c = ctx();
  pl_writer *w = NULL;
  CHECK_STATUS(pl_writer_open(c, in_dir("no/such/file"), &w), PL_ENOENT);
  CHECK(!w);
  CHECK_HAS(c->err, "no/such/file: cannot write: No such file");
  CHECK_STATUS(pl_writer_open(c, scratch_dir(), &w), PL_EIO);
  CHECK_STATUS(pl_writer_open(c, "", &w), PL_EINVAL);
  CHECK_STATUS(pl_file_write(c, "/dev/full", "x", 1), PL_EIO); /* a device is not replaced */
  CHECK_HAS(c->err, "not a regular file");
  char path[5000];
  memset(path, 'a', sizeof path - 1);
  path[sizeof path - 1] = 0;
  CHECK_STATUS(pl_writer_open(c, path, &w), PL_EINVAL);
  path[300] = 0; /* over NAME_MAX */
  CHECK_STATUS(pl_writer_open(c, path, &w), PL_EIO);
}

TEST(a_link_stays_a_link) {
  pl_ctx *c = ctx();
  char *real = in_dir("real");
  char *link = in_dir("link");
  CHECK_OK(pl_file_write(c, real, "old", 3));
  CHECK(symlink(real, link) == 0);
  CHECK_OK(pl_file_write(c, link, "new", 3));
  CHECK_STR(text_of(real), "new");
  struct stat s;
  CHECK(lstat(link, &s) == 0 && S_ISLNK(s.st_mode));
}

static pl_status write_it(void *arg) {
  static char bytes[100000];
  return pl_file_write(ctx(), arg, bytes, sizeof bytes);
}

TEST(writes_and_lists_without_memory) {
  CHECK(fail_each_alloc(write_it, in_dir("nomem")) >= 3);
  char *dir = in_dir("many");
  CHECK_OK(pl_mkdirs(ctx(), dir));
  for (int i = 0; i < 40; i++) {
    char path[300];
    snprintf(path, sizeof path, "%s/%02d", dir, i * 7 % 40);
    CHECK_OK(pl_file_write(ctx(), path, "", 0));
  }
  CHECK(strncmp(list(dir), "00 01 02 03 ", 12) == 0);
  CHECK_INT(count, 40);
}

/* Overwrites path with n new bytes in a process whose files end at `limit` bytes. */
static int write_limited(const char *path, size_t n, rlim_t limit) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    struct rlimit r = {limit, limit};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &r);
    char *bytes = malloc(n + 1);
    if (!bytes) {
      _exit(99);
    }
    memset(bytes, 'n', n);
    pl_status st = pl_file_write(ctx(), path, bytes, n);
    _exit(st == PL_OK || strstr(ctx()->err, path) ? (int)st : 98);
  }
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(a_file_size_limit_leaves_the_old_file) {
  char *dir = in_dir("limit");
  CHECK_OK(pl_mkdirs(ctx(), dir));
  char path[300];
  snprintf(path, sizeof path, "%s/file", dir);
  CHECK_OK(pl_file_write(ctx(), path, "old", 3));
  static const size_t sizes[] = {100, 65536, 65537, 90000};
  for (int i = 0; i < 4; i++) {
    for (size_t limit = 0; limit < sizes[i]; limit += sizes[i] / 4 + 1) {
      CHECK_INT(write_limited(path, sizes[i], limit), PL_EIO);
      CHECK_STR(text_of(path), "old");
      CHECK_STR(list(dir), "file ");
    }
  }
  CHECK_INT(write_limited(path, 90000, 90000), PL_OK);
  CHECK_INT(strlen(text_of(path)), 90000);
}

TEST(a_full_disk_leaves_the_old_file) {
  char *dir = in_dir("disk");
  CHECK_OK(pl_mkdirs(ctx(), dir));
  char path[300];
  snprintf(path, sizeof path, "%s/file", dir);
  char bytes[40000];
  memset(bytes, 'n', sizeof bytes - 1);
  bytes[sizeof bytes - 1] = 0;
  int good = 0;
  int bad = 0;
  for (int pages = 1; pages <= 13; pages++) {
    char opt[64];
    snprintf(opt, sizeof opt, "size=%dk", pages * 4);
    if (mount("tmpfs", dir, "tmpfs", 0, opt) != 0) {
      SKIP("needs root to make a small disk");
    }
    CHECK_OK(pl_file_write(ctx(), path, "old", 3));
    pl_status st = pl_file_write(ctx(), path, bytes, sizeof bytes - 1);
    if (st == PL_OK) {
      CHECK_STR(text_of(path), bytes);
      good++;
    } else {
      CHECK_INT(st, PL_EIO);
      CHECK_HAS(ctx()->err, "No space left");
      CHECK_STR(text_of(path), "old");
      bad++;
    }
    CHECK_STR(list(dir), "file ");
    umount(dir);
  }
  CHECK(good >= 2 && bad >= 9);
}

TEST(directories) {
  pl_ctx *c = ctx();
  char *top = in_dir("tree");
  char path[300];
  snprintf(path, sizeof path, "%s/a/b//c/", top);
  CHECK_OK(pl_mkdirs(c, path));
  CHECK_OK(pl_mkdirs(c, path));
  CHECK(pl_is_dir(path));
  snprintf(path, sizeof path, "%s/a/file", top);
  CHECK_OK(pl_file_write(c, path, "x", 1));
  CHECK(pl_file_exists(path) && !pl_is_dir(path));
  snprintf(path, sizeof path, "%s/a/file/d", top);
  CHECK_STATUS(pl_mkdirs(c, path), PL_EIO);
  CHECK_STATUS(pl_mkdirs(c, ""), PL_EINVAL);
  bool made;
  snprintf(path, sizeof path, "%s/a/own", top);
  CHECK_OK(pl_mkdir(c, path, &made));
  CHECK(made);
  CHECK_OK(pl_mkdir(c, path, &made));
  CHECK(!made);
  CHECK(rmdir(path) == 0);
  snprintf(path, sizeof path, "%s/none/own", top);
  CHECK_STATUS(pl_mkdir(c, path, &made), PL_ENOENT);
  char *outside = in_dir("outside");
  CHECK_OK(pl_file_write(c, outside, "keep", 4));
  snprintf(path, sizeof path, "%s/a/link", top);
  CHECK(symlink(scratch_dir(), path) == 0);
  char other[300];
  snprintf(path, sizeof path, "%s/a", top);
  snprintf(other, sizeof other, "%s/z", top);
  CHECK_OK(pl_rename(c, path, other));
  CHECK_STR(list(top), "z ");
  CHECK_STR(list(other), "b file link ");
  CHECK_STATUS(pl_rename(c, path, other), PL_ENOENT);
  CHECK_HAS(c->err, "cannot rename to");
  CHECK_OK(pl_remove_tree(c, top));
  CHECK(!pl_file_exists(top));
  CHECK_STR(text_of(outside), "keep"); /* links are not followed */
  CHECK_OK(pl_remove_tree(c, top));
  CHECK_STATUS(pl_remove_tree(c, "/"), PL_EINVAL);
  CHECK_STATUS(pl_remove_tree(c, "/tmp/.."), PL_EINVAL);
  CHECK_STATUS(pl_remove_tree(c, ""), PL_EINVAL);
  CHECK_STATUS(pl_list_dir(c, top, note, NULL), PL_ENOENT);
}

TEST(stamps) {
  pl_ctx *c = ctx();
  pl_stamp a, b;
  char *path = in_dir("stamped");
  CHECK_STATUS(pl_file_stamp(c, path, &a), PL_ENOENT);
  CHECK_OK(pl_file_write(c, path, "one", 3));
  CHECK_OK(pl_file_stamp(c, path, &a));
  CHECK_OK(pl_file_stamp(c, path, &b));
  CHECK_INT(a.size, 3);
  CHECK(memcmp(&a, &b, sizeof a) == 0);
  CHECK_OK(pl_file_write(c, path, "two", 3)); /* a new file of the same name and size */
  CHECK_OK(pl_file_stamp(c, path, &b));
  CHECK(a.inode != b.inode && a.ctime_ns <= b.ctime_ns && b.mtime_ns > 0);
}

TEST(replacing_a_directory) {
  pl_ctx *c = ctx();
  for (int way = 0; way < 2; way++) {
    no_exchange = way == 1;
    char *top = in_dir(no_exchange ? "steps" : "exchange");
    char path[300], old[310], fresh[300];
    snprintf(path, sizeof path, "%s/at", top);
    snprintf(fresh, sizeof fresh, "%s/fresh", top);
    CHECK_OK(pl_mkdirs(c, fresh));
    CHECK_OK(pl_replace(c, fresh, path)); /* nothing there: a rename */
    CHECK_STR(list(top), "at ");
    snprintf(old, sizeof old, "%s/old", path);
    CHECK_OK(pl_file_write(c, old, "x", 1));
    CHECK_STATUS(pl_replace(c, fresh, path), PL_ENOENT); /* and what is there stays */
    CHECK_STR(list(path), "old ");
    CHECK_STR(list(top), "at ");
    CHECK_OK(pl_mkdirs(c, fresh));
    CHECK_OK(pl_replace(c, fresh, path));
    CHECK_STR(list(path), "");
    CHECK_STR(list(fresh), "old ");
    CHECK_STR(list(top), "at fresh ");
  }
  no_exchange = false;
}
