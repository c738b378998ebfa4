/* SQLite behind pl_status: types, failures that leave the connection usable, files that
 * are no database or a broken one, full disks, other writers. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/buf.h"
#include "base/clock.h"
#include "store/db.h"

static char *in_dir(const char *name) {
  static char path[4][256];
  static int next;
  next = (next + 1) % 4;
  snprintf(path[next], sizeof path[next], "%s/%s", scratch_dir(), name);
  return path[next];
}

static const pl_db_options usual = {.busy_ms = 200};

static pl_db *open_new(const char *path) {
  pl_db *db = NULL;
  CHECK_OK(pl_db_open(ctx(), path, &usual, &db));
  return db;
}

static pl_stmt *prepare(pl_db *db, const char *sql) {
  pl_stmt *s = NULL;
  CHECK_OK(pl_stmt_new(ctx(), db, sql, &s));
  return s;
}

static pl_db_value integer(int64_t i) {
  return (pl_db_value){.type = PL_DB_INT, .i = i};
}

static pl_db_value text(const char *s, size_t n) {
  return (pl_db_value){.type = PL_DB_TEXT, .text = s, .size = n};
}

/* The first column of the first row as an integer; -1 without a row. */
static int64_t number_of(pl_db *db, const char *sql) {
  int64_t n = -1;
  bool row = false;
  pl_stmt *s = prepare(db, sql);
  if (s) {
    CHECK_OK(pl_stmt_step(ctx(), s, &row));
    pl_db_value v = integer(-1);
    if (row) {
      CHECK_OK(pl_stmt_get(ctx(), s, 0, &v));
    }
    n = v.i;
  }
  pl_stmt_free(ctx(), s);
  return n;
}

static bool same_bytes(const char *path, const void *bytes, size_t n) {
  pl_buf b;
  pl_buf_init(&b, 1 << 24);
  bool same = pl_file_read(ctx(), path, &b) == PL_OK && b.len == n && memcmp(b.data, bytes, n) == 0;
  pl_buf_free(ctx(), &b);
  return same;
}

TEST(a_new_file_is_private_and_logged) {
  const char *path = in_dir("new.db");
  umask(0);
  pl_db *db = open_new(path);
  umask(022);
  REQUIRE(db);
  struct stat s;
  CHECK(stat(path, &s) == 0 && (s.st_mode & 0777) == 0600);
  CHECK_INT(number_of(db, "PRAGMA synchronous"), 2);
  CHECK_INT(number_of(db, "PRAGMA foreign_keys"), 1);
  CHECK_INT(number_of(db, "SELECT journal_mode = 'wal' FROM pragma_journal_mode"), 1);
  CHECK_OK(pl_db_exec(ctx(), db, "CREATE TABLE t(x)"));
  char side[300];
  snprintf(side, sizeof side, "%s-wal", path);
  CHECK(stat(side, &s) == 0 && (s.st_mode & 0777) == 0600);
  CHECK_STR(pl_db_path(db), path);
  pl_db_close(ctx(), db);
  CHECK(stat(side, &s) != 0); /* the log went into the file */
}

TEST(names_that_sqlite_would_read_otherwise) {
  char before[300];
  REQUIRE(getcwd(before, sizeof before));
  REQUIRE(chdir(scratch_dir()) == 0);
  pl_db_close(ctx(), open_new(":memory:"));
  pl_db_close(ctx(), open_new("file:x?mode=memory"));
  CHECK(pl_file_exists(in_dir(":memory:")));
  CHECK(pl_file_exists(in_dir("file:x?mode=memory")));
  pl_db *db = NULL;
  CHECK_STATUS(pl_db_open(ctx(), "", &usual, &db), PL_EINVAL);
  CHECK(chdir(before) == 0);
}

TEST(values_come_back_as_they_went) {
  pl_ctx *c = ctx();
  pl_db *db = open_new(in_dir("values.db"));
  CHECK_OK(pl_db_exec(c, db, "CREATE TABLE t(a, b, c, d, e); -- a comment\n ;"));
  pl_stmt *put = prepare(db, "INSERT INTO t VALUES(?, ?, ?, ?, ?)");
  pl_stmt *get = prepare(db, "SELECT a, b, c, d, e FROM t WHERE d = ?");
  static const char bytes[] = "a\0b\xff\xc3'\"\n";
  pl_db_value in[5] = {integer(INT64_MIN), {.type = PL_DB_REAL, .d = 0.1}, {.type = PL_DB_NULL},
                       text(bytes, sizeof bytes - 1), text("", 0)};
  bool row = true;
  CHECK_INT(pl_stmt_params(put), 5);
  for (int i = 0; i < 5; i++) {
    CHECK_OK(pl_stmt_bind(c, put, i, &in[i], i % 2 == 0));
  }
  CHECK_OK(pl_stmt_step(c, put, &row));
  CHECK(!row);
  CHECK_INT(pl_stmt_changes(put), 1);
  CHECK_INT(pl_stmt_rowid(put), 1);
  CHECK_OK(pl_stmt_bind(c, get, 0, &in[3], false));
  CHECK_OK(pl_stmt_step(c, get, &row));
  REQUIRE(row);
  CHECK_INT(pl_stmt_columns(get), 5);
  CHECK_STR(pl_stmt_column_name(get, 4), "e");
  for (int i = 0; i < 5; i++) {
    pl_db_value out;
    CHECK_OK(pl_stmt_get(c, get, i, &out));
    CHECK_INT(out.type, in[i].type);
    CHECK(out.i == in[i].i && out.d == in[i].d && out.size == in[i].size);
    CHECK(out.type != PL_DB_TEXT || memcmp(out.text, in[i].text, in[i].size) == 0);
  }
  uint64_t uses = pl_stmt_uses(get);
  pl_stmt_reset(get);
  CHECK(pl_stmt_uses(get) > uses);
  CHECK_INT(number_of(db, "SELECT length(CAST(d AS BLOB)) FROM t"), sizeof bytes - 1);
  CHECK_INT(number_of(db, "SELECT x'414200'"), 0); /* bytes are text to us */
  pl_stmt_free(c, put);
  pl_stmt_free(c, get);
  pl_db_close(c, db);
}

TEST(a_failed_statement_can_be_used_again) {
  pl_ctx *c = ctx();
  pl_db *db = open_new(in_dir("again.db"));
  CHECK_OK(pl_db_exec(c, db, "CREATE TABLE t(x UNIQUE)"));
  pl_stmt *put = prepare(db, "INSERT INTO t VALUES(?)");
  pl_db_value one = integer(1), two = integer(2);
  bool row;
  CHECK_OK(pl_db_exec(c, db, "BEGIN IMMEDIATE"));
  for (int i = 0; i < 3; i++) {
    CHECK_OK(pl_stmt_bind(c, put, 0, &one, false));
    pl_status st = pl_stmt_step(c, put, &row);
    if (i == 0) {
      CHECK_OK(st);
    } else {
      CHECK_INT(st, PL_EINVAL);
      CHECK_HAS(c->err, "again.db: UNIQUE constraint failed: t.x");
    }
  }
  CHECK_OK(pl_stmt_bind(c, put, 0, &two, false));
  CHECK_OK(pl_stmt_step(c, put, &row));
  CHECK(pl_db_in_transaction(db));
  CHECK_OK(pl_db_exec(c, db, "COMMIT"));
  CHECK(!pl_db_in_transaction(db));
  CHECK_INT(number_of(db, "SELECT count(*) FROM t"), 2);
  CHECK_OK(pl_db_exec(c, db, "BEGIN; DELETE FROM t"));
  pl_db_rollback(db);
  pl_db_rollback(db); /* nothing open: fine */
  CHECK_INT(number_of(db, "SELECT count(*) FROM t"), 2);
  CHECK_STATUS(pl_stmt_bind(c, put, 7, &one, false), PL_EINVAL);
  pl_stmt_free(c, put);
  pl_db_close(c, db);
}

TEST(wrong_sql_is_named) {
  pl_ctx *c = ctx();
  pl_db *db = open_new(in_dir("sql.db"));
  pl_stmt *s = NULL;
  CHECK_STATUS(pl_db_exec(c, db, "SELEC 1"), PL_EINVAL);
  CHECK_HAS(c->err, "sql.db: near \"SELEC\": syntax error");
  CHECK_STATUS(pl_stmt_new(c, db, "SELECT * FROM nowhere", &s), PL_EINVAL);
  CHECK_HAS(c->err, "no such table: nowhere");
  CHECK_STATUS(pl_stmt_new(c, db, "  -- nothing", &s), PL_EINVAL);
  CHECK_HAS(c->err, "no statement");
  CHECK_STATUS(pl_stmt_new(c, db, "SELECT 1; SELECT 2", &s), PL_EINVAL);
  CHECK_HAS(c->err, "one statement");
  CHECK(s == NULL);
  s = prepare(db, "SELECT 1 ;\n ");
  pl_stmt_free(c, s);
  pl_db_close(c, db);
}

TEST(statements_outlive_their_database) {
  pl_ctx *c = ctx();
  pl_db *db = open_new(in_dir("outlive.db"));
  pl_stmt *a = prepare(db, "SELECT 1"), *b = prepare(db, "SELECT 2"), *d = prepare(db, "SELECT 3");
  bool row;
  CHECK_OK(pl_stmt_step(c, d, &row)); /* in the middle of its rows */
  pl_stmt_free(c, b);
  pl_db_close(c, db);
  CHECK(!pl_stmt_open(a) && !pl_stmt_open(d));
  pl_stmt_free(c, a);
  pl_stmt_free(c, d);
  pl_stmt_free(c, NULL);
  pl_db_close(c, NULL);
}

TEST(files_that_are_no_database_stay_as_they_are) {
  pl_ctx *c = ctx();
  char junk[5000];
  memset(junk, 'j', sizeof junk);
  for (size_t n = 1; n <= sizeof junk; n = n * 3 + 7) {
    const char *path = in_dir("junk");
    CHECK_OK(pl_file_write(c, path, junk, n));
    for (int readonly = 0; readonly < 2; readonly++) {
      pl_db *db = (pl_db *)junk;
      pl_db_options o = {.readonly = readonly};
      CHECK_STATUS(pl_db_open(c, path, &o, &db), PL_EFORMAT);
      CHECK_HAS(c->err, path);
      CHECK_HAS(c->err, "no SQLite database");
      CHECK(db == NULL);
    }
    CHECK(same_bytes(path, junk, n));
  }
  pl_db *db = NULL;
  CHECK_STATUS(pl_db_open(c, scratch_dir(), &usual, &db), PL_EIO);
  CHECK_HAS(c->err, "is a directory");
  CHECK_STATUS(pl_db_open(c, in_dir("no/such/dir"), &usual, &db), PL_EIO);
  CHECK_HAS(c->err, "No such file or directory");
  CHECK_STATUS(pl_db_open(c, in_dir("none"), &(pl_db_options){.readonly = true}, &db), PL_ENOENT);
  CHECK(!pl_file_exists(in_dir("none")));
}

/* A database of some pages, its bytes in out. */
static void make_sound(const char *path, pl_buf *out) {
  pl_db *db = open_new(path);
  CHECK_OK(pl_db_exec(ctx(), db,
                      "DROP TABLE IF EXISTS t; CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT);"
                      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000)"
                      "INSERT INTO t SELECT i, hex(zeroblob(50)) FROM n"));
  pl_db_close(ctx(), db);
  CHECK_OK(pl_file_read(ctx(), path, out));
}

/* Opens, reads all, writes a row: PL_OK or the first failure. */
static pl_status use(const char *path) {
  pl_ctx *c = ctx();
  pl_db *db;
  PL_TRY(pl_db_open(c, path, &usual, &db));
  pl_status st = pl_db_exec(c, db, "SELECT sum(length(x)) FROM t; INSERT INTO t(x) VALUES('new')");
  pl_db_close(c, db);
  return st;
}

TEST(damaged_files_give_an_error_never_a_crash) {
  pl_ctx *c = ctx();
  pl_buf b;
  pl_buf_init(&b, 1 << 24);
  const char *path = in_dir("damaged.db");
  make_sound(path, &b);
  REQUIRE(b.len > 20 * 4096);
  int refused = 0;
  for (size_t cut = 100; cut < b.len; cut += 11 * 1024) {
    CHECK_OK(pl_file_write(c, path, b.data, cut));
    pl_status st = use(path);
    CHECK(st == PL_EFORMAT);
    CHECK_HAS(c->err, path);
    refused++;
  }
  CHECK(refused > 5);
  for (size_t page = 0; page * 4096 < b.len; page += 3) {
    char *copy = pl_alloc(c, b.len);
    REQUIRE(copy);
    memcpy(copy, b.data, b.len);
    memset(copy + page * 4096, 0xa5, 4096);
    CHECK_OK(pl_file_write(c, path, copy, b.len));
    pl_free(c, copy);
    CHECK_STATUS(use(path), PL_EFORMAT);
    CHECK(page == 0 || strstr(c->err, "damaged"));
  }
  CHECK_OK(pl_file_write(c, path, b.data, b.len));
  CHECK_OK(use(path));
  pl_buf_free(c, &b);
}

static pl_status open_and_query(void *arg) {
  pl_ctx *c = ctx();
  pl_db *db = NULL;
  pl_stmt *s = NULL;
  bool row;
  PL_TRY(pl_db_open(c, arg, &usual, &db));
  pl_status st = pl_stmt_new(c, db, "SELECT 1", &s);
  if (st == PL_OK) {
    st = pl_stmt_step(c, s, &row);
  }
  pl_stmt_free(c, s);
  pl_db_close(c, db);
  return st;
}

TEST(every_allocation_may_fail) {
  CHECK_INT(fail_each_alloc(open_and_query, in_dir("alloc.db")), 4);
}

TEST(another_writer_is_waited_for) {
  pl_ctx *c = ctx();
  const char *path = in_dir("busy.db");
  pl_db *a = open_new(path), *b = open_new(path);
  CHECK_OK(pl_db_exec(c, a, "CREATE TABLE t(x); BEGIN IMMEDIATE; INSERT INTO t VALUES(1)"));
  double start = pl_now();
  CHECK_STATUS(pl_db_exec(c, b, "BEGIN IMMEDIATE"), PL_EIO);
  double waited = pl_now() - start;
  CHECK(waited > 0.15 && waited < 3);
  CHECK_HAS(c->err, "busy.db: another process");
  CHECK_INT(number_of(b, "SELECT count(*) FROM t"), 0); /* reading never waits */
  pl_interrupt_set();
  CHECK_STATUS(pl_db_exec(c, b, "BEGIN IMMEDIATE"), PL_EINTR);
  pl_interrupt_clear();
  CHECK_OK(pl_db_exec(c, a, "COMMIT"));
  CHECK_OK(pl_db_exec(c, b, "BEGIN IMMEDIATE; INSERT INTO t VALUES(2); COMMIT"));
  CHECK_INT(number_of(a, "SELECT count(*) FROM t"), 2);
  /* the lock of one connection outlives the opening and closing of another in this process */
  CHECK_OK(pl_db_exec(c, a, "BEGIN IMMEDIATE"));
  pl_db_close(c, open_new(path));
  CHECK_STATUS(pl_db_exec(c, b, "BEGIN IMMEDIATE"), PL_EIO);
  pl_db_close(c, a);
  pl_db_close(c, b);
}

TEST(a_loop_left_halfway_does_not_stop_writing) {
  pl_ctx *c = ctx();
  const char *path = in_dir("view.db");
  pl_db *a = open_new(path), *b = open_new(path);
  CHECK_OK(pl_db_exec(c, a, "CREATE TABLE t(x); INSERT INTO t VALUES(1), (2), (3)"));
  pl_stmt *loop = prepare(a, "SELECT x FROM t");
  pl_stmt *put = prepare(a, "INSERT INTO t VALUES(?)");
  pl_db_value v = integer(9);
  bool row;
  for (int way = 0; way < 2; way++) {
    CHECK_OK(pl_stmt_step(c, loop, &row));
    uint64_t uses = pl_stmt_uses(loop);
    CHECK_OK(pl_db_exec(c, b, "INSERT INTO t VALUES(4)"));
    if (way == 0) {
      CHECK_OK(pl_db_exec(c, a, "BEGIN IMMEDIATE; INSERT INTO t VALUES(9); COMMIT"));
    } else {
      CHECK_OK(pl_stmt_bind(c, put, 0, &v, false));
      CHECK_OK(pl_stmt_step(c, put, &row));
    }
    CHECK(pl_stmt_uses(loop) > uses);
  }
  CHECK_INT(number_of(a, "SELECT count(*) FROM t WHERE x IN (4, 9)"), 4);
  pl_stmt_free(c, loop);
  pl_stmt_free(c, put);
  pl_db_close(c, a);
  pl_db_close(c, b);
}

/* Runs fn(arg) in a child and gives its exit status. */
static int in_child(int (*fn)(const char *), const char *arg) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    _exit(fn(arg));
  }
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int open_together(const char *path) {
  pl_db *db;
  pl_db_options o = {.busy_ms = 20000};
  pl_status st = pl_db_open(ctx(), path, &o, &db);
  if (st != PL_OK) {
    printf("    %s\n", ctx()->err);
    return 1;
  }
  st = pl_db_exec(ctx(), db, "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS t(x);"
                             "INSERT INTO t VALUES(1); COMMIT");
  pl_db_close(ctx(), db);
  return st != PL_OK;
}

TEST(processes_may_make_a_file_at_once) {
  enum { ROUNDS = 5, EACH = 6 };
  for (int round = 0; round < ROUNDS; round++) {
    char path[300];
    snprintf(path, sizeof path, "%s/together-%d.db", scratch_dir(), round);
    pid_t pid[EACH];
    fflush(stdout);
    for (int i = 0; i < EACH; i++) {
      pid[i] = fork();
      if (pid[i] == 0) {
        int bad = open_together(path);
        fflush(stdout);
        _exit(bad);
      }
    }
    for (int i = 0; i < EACH; i++) {
      int status = -1;
      waitpid(pid[i], &status, 0);
      CHECK_INT(status, 0);
    }
    pl_db *db = open_new(path);
    CHECK_INT(number_of(db, "SELECT count(*) FROM t"), EACH);
    pl_db_close(ctx(), db);
  }
}

/* Writes rows of 3 kB, one a transaction, until it fails; then the database must still
 * be readable, hold every committed row and no other. Gives 0, or the line that failed. */
static int fill_up(const char *path) {
  pl_ctx *c = ctx();
  pl_db *db = open_new(path);
  if (!db || pl_db_exec(c, db, "CREATE TABLE t(x)") != PL_OK) {
    return 1;
  }
  int done = 0;
  pl_status st = PL_OK;
  while (st == PL_OK && done < 2000) {
    st = pl_db_exec(c, db, "BEGIN IMMEDIATE; INSERT INTO t VALUES(hex(randomblob(1500))); COMMIT");
    done += st == PL_OK;
  }
  if (st != PL_EIO || !strstr(c->err, path)) {
    return 2;
  }
  pl_db_rollback(db);
  if (number_of(db, "SELECT count(*) FROM t") != done) {
    return 3;
  }
  pl_db_close(c, db);
  db = open_new(path); /* and after a new start, with no room at all */
  if (!db || number_of(db, "SELECT count(*) FROM t") != done) {
    return 4;
  }
  if (number_of(db, "SELECT integrity_check = 'ok' FROM pragma_integrity_check") != 1) {
    return 5;
  }
  pl_db_close(c, db);
  return 0;
}

static int fill_limited(const char *path) {
  struct rlimit r = {100 * 1024, 100 * 1024};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &r);
  return fill_up(path);
}

TEST(a_limit_on_file_sizes) {
  const char *path = in_dir("limit.db");
  CHECK_INT(in_child(fill_limited, path), 0);
  pl_db *db = open_new(path); /* without the limit it goes on */
  CHECK_OK(pl_db_exec(ctx(), db, "INSERT INTO t VALUES(hex(zeroblob(300000)))"));
  pl_db_close(ctx(), db);
}

TEST(a_full_disk) {
  const char *dir = in_dir("small");
  char path[300], ballast[300];
  mkdir(dir, 0700);
  if (mount("tmpfs", dir, "tmpfs", 0, "size=400k") != 0) {
    SKIP("needs root to make a small disk");
  }
  static char bytes[100 * 1024];
  snprintf(path, sizeof path, "%s/full.db", dir);
  snprintf(ballast, sizeof ballast, "%s/ballast", dir);
  CHECK_OK(pl_file_write(ctx(), ballast, bytes, sizeof bytes));
  CHECK_INT(in_child(fill_up, path), 0);
  unlink(ballast);
  pl_db *db = open_new(path);
  CHECK_OK(pl_db_exec(ctx(), db, "INSERT INTO t VALUES('there is room again')"));
  CHECK_INT(number_of(db, "SELECT count(*) > 20 FROM t"), 1);
  pl_db_close(ctx(), db);
  umount(dir);
}

/* 0 if opening for writing is refused with a clear text. */
static int open_as_nobody(const char *path) {
  if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) {
    return 77;
  }
  pl_db *db = NULL;
  pl_status st = pl_db_open(ctx(), path, &usual, &db);
  if (st != PL_EIO || !strstr(ctx()->err, path)) {
    return 1;
  }
  return strstr(ctx()->err, "read-only") || strstr(ctx()->err, "ermission denied") ? 0 : 2;
}

TEST(read_only_files_and_directories) {
  const char *dir = in_dir("locked");
  char path[300];
  snprintf(path, sizeof path, "%s/ledger.db", dir);
  CHECK(chmod(scratch_dir(), 0755) == 0 && mkdir(dir, 0755) == 0);
  pl_db *db = open_new(path);
  CHECK_OK(pl_db_exec(ctx(), db, "CREATE TABLE t(x); INSERT INTO t VALUES(1)"));
  pl_db_close(ctx(), db);
  pl_buf b;
  pl_buf_init(&b, 1 << 20);
  CHECK_OK(pl_file_read(ctx(), path, &b));
  chmod(path, 0666);
  chmod(dir, 0555);
  CHECK_INT(in_child(open_as_nobody, path), 0); /* no room for -wal */
  chmod(path, 0444);
  CHECK_INT(in_child(open_as_nobody, path), 0);
  chmod(path, 0000);
  CHECK_INT(in_child(open_as_nobody, path), 0);
  char other[300];
  snprintf(other, sizeof other, "%s/other.db", dir);
  CHECK_INT(in_child(open_as_nobody, other), 0); /* cannot be made */
  chmod(dir, 0755);
  CHECK(same_bytes(path, b.data, b.len));
  pl_buf_free(ctx(), &b);
}

TEST(readonly_reads_and_does_not_write) {
  pl_ctx *c = ctx();
  const char *path = in_dir("reader.db");
  pl_db *db = open_new(path), *reader = NULL;
  CHECK_OK(pl_db_exec(c, db, "CREATE TABLE t(x); INSERT INTO t VALUES(5)"));
  CHECK_OK(pl_db_open(c, path, &(pl_db_options){.readonly = true}, &reader));
  REQUIRE(reader);
  CHECK_INT(number_of(reader, "SELECT x FROM t"), 5);
  CHECK_STATUS(pl_db_exec(c, reader, "INSERT INTO t VALUES(6)"), PL_EIO);
  CHECK_HAS(c->err, "read-only");
  pl_db_close(c, reader);
  pl_db_close(c, db);
}
