/* SQLite behind pl_status. What is added to it: a private file made before SQLite
 * sees it, errors that name the file and say what to do, a wait for other writers
 * that Ctrl-C ends, and statements that survive the closing of their database. */
#define _GNU_SOURCE
#include "store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"

struct pl_db {
  sqlite3 *raw;
  char *path;     /* as given: for messages */
  int busy_ms;
  double waiting; /* since when, in pl_now's seconds */
  pl_stmt *first; /* all statements that are still open */
};

struct pl_stmt {
  sqlite3_stmt *raw; /* NULL once the database was closed */
  pl_db *db;
  pl_stmt *prev, *next;
  uint64_t uses;
  int64_t changes, rowid;
};

/* ---- failures ---- */

static const char *system_text(pl_db *db) {
  int err = db->raw ? sqlite3_system_errno(db->raw) : 0;
  return err != 0 ? strerror(err) : sqlite3_errmsg(db->raw);
}

static pl_status no_database(pl_ctx *c, const char *path) {
  return pl_fail(c, PL_EFORMAT, "%s: is no SQLite database; it was left as it is. Give another "
                 "name, or move that file away", path);
}

/* Turns SQLite's result code of the call just made into our status and a text. */
static pl_status fail(pl_ctx *c, pl_db *db, int rc) {
  const char *path = db->path;
  switch (rc & 0xff) {
    case SQLITE_NOMEM:
      return pl_fail(c, PL_ENOMEM, "%s: out of memory in SQLite", path);
    case SQLITE_NOTADB:
      return no_database(c, path);
    case SQLITE_CORRUPT:
      return pl_fail(c, PL_EFORMAT, "%s: the database is damaged (%s). Copy it and the files "
                     "beside it (-wal, -shm) away; `sqlite3 COPY .recover` saves what is readable",
                     path, sqlite3_errmsg(db->raw));
    case SQLITE_FULL:
      return pl_fail(c, PL_EIO, "%s: cannot be written: the disk is full. What was committed "
                     "before is safe; make room and try again", path);
    case SQLITE_IOERR:
      return pl_fail(c, PL_EIO, "%s: reading or writing failed: %s (SQLite code %d). What was "
                     "committed before is safe; is the disk full, or a limit on file sizes set?",
                     path, system_text(db), rc);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      PL_TRY(pl_check_interrupt(c)); /* Ctrl-C ended the wait */
      return pl_fail(c, PL_EIO, "%s: another process or connection was busy with it for more than "
                     "%d ms; try again when that has ended", path, db->busy_ms);
    case SQLITE_READONLY:
      return pl_fail(c, PL_EIO, "%s: cannot be written: the file, or the directory it lies in, is "
                     "read-only (the files -wal and -shm must be made beside it)", path);
    case SQLITE_CANTOPEN:
      return pl_fail(c, PL_EIO, "%s: cannot be opened: %s (the files -wal and -shm must be made "
                     "beside it: may its directory be written?)", path, system_text(db));
    case SQLITE_TOOBIG:
      return pl_fail(c, PL_EINVAL, "%s: a text or row is larger than SQLite takes (%d bytes)", path,
                     sqlite3_limit(db->raw, SQLITE_LIMIT_LENGTH, -1));
    default:
      return pl_fail(c, PL_EINVAL, "%s: %s", path, sqlite3_errmsg(db->raw));
  }
}

/* ---- opening ---- */

/* SQLite asks what to do while another connection holds a lock: 1 = try again. */
static int wait_turn(void *arg, int tries) {
  pl_db *db = arg;
  if (tries == 0) {
    db->waiting = pl_now();
  }
  double left = db->waiting + db->busy_ms / 1000.0 - pl_now();
  if (left <= 0 || pl_interrupt_pending()) {
    return 0;
  }
  long ms = tries < 4 ? 1 << tries : 20;
  struct timespec pause = {.tv_nsec = ms * 1000000};
  nanosleep(&pause, NULL);
  return 1;
}

/* Makes a missing file, for us alone. Only ever a file that was not there: to open and
 * close one that another connection of this process holds would drop its locks. */
static pl_status make_private(pl_ctx *c, const char *path) {
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd >= 0) {
    close(fd);
    return pl_sync_parent(c, path);
  }
  if (errno != EEXIST) {
    return pl_fail(c, PL_EIO, "%s: cannot be made: %s", path, strerror(errno));
  }
  return PL_OK;
}

/* What can be said of a name before SQLite sees it. A file of one byte it would take for a
 * new one and write over. */
static pl_status check_name(pl_ctx *c, const char *path, bool readonly) {
  struct stat s;
  if (path[0] == 0) {
    return pl_fail(c, PL_EINVAL, "a database needs a file name");
  }
  if (stat(path, &s) != 0) {
    return readonly ? pl_fail(c, PL_ENOENT, "%s: %s", path, strerror(errno)) : PL_OK;
  }
  if (!S_ISREG(s.st_mode)) {
    return pl_fail(c, PL_EIO, "%s: is %s, a file was wanted", path,
                   S_ISDIR(s.st_mode) ? "a directory" : "not a regular file");
  }
  return s.st_size == 1 ? no_database(c, path) : PL_OK;
}

static int set_up(pl_db *db, bool readonly, bool *logged) {
  static const char fixed[] =
      "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;"
      "PRAGMA cell_size_check = ON; SELECT count(*) FROM sqlite_schema";
  sqlite3_stmt *s = NULL;
  *logged = readonly;
  if (!readonly) {
    int rc = sqlite3_prepare_v2(db->raw, "PRAGMA journal_mode = WAL", -1, &s, NULL);
    rc = rc == SQLITE_OK ? sqlite3_step(s) : rc;
    if (rc == SQLITE_ROW) {
      const unsigned char *mode = sqlite3_column_text(s, 0);
      *logged = mode && strcmp((const char *)mode, "wal") == 0;
    }
    int end = sqlite3_finalize(s);
    if (rc != SQLITE_ROW) {
      return end != SQLITE_OK ? end : rc;
    }
  }
  return sqlite3_exec(db->raw, fixed, NULL, NULL, NULL);
}

/* The switch to the log may be refused at once where two processes open a new file together,
 * without asking wait_turn: the whole set-up is tried again until the time is over. */
static pl_status open_file(pl_ctx *c, pl_db *db, const char *name, bool readonly) {
  int flags = SQLITE_OPEN_NOMUTEX | (readonly ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE);
  int rc = sqlite3_open_v2(name, &db->raw, flags, NULL);
  if (!db->raw) {
    return pl_fail(c, PL_ENOMEM, "%s: out of memory in SQLite", db->path);
  }
  if (rc != SQLITE_OK) {
    return fail(c, db, rc);
  }
  sqlite3_extended_result_codes(db->raw, 1);
  sqlite3_busy_handler(db->raw, wait_turn, db);
  sqlite3_db_config(db->raw, SQLITE_DBCONFIG_DEFENSIVE, 1, (int *)NULL);
  bool logged = false;
  double end = pl_now() + db->busy_ms / 1000.0;
  do {
    rc = set_up(db, readonly, &logged);
  } while ((rc & 0xff) == SQLITE_BUSY && pl_now() < end && wait_turn(db, 0));
  if (rc != SQLITE_OK) {
    return fail(c, db, rc);
  }
  if (!readonly && sqlite3_db_readonly(db->raw, "main") == 1) {
    return fail(c, db, SQLITE_READONLY);
  }
  if (!logged) {
    return pl_fail(c, PL_EIO, "%s: SQLite cannot keep a write-ahead log there (a network file "
                   "system?); put the file on a local disk", db->path);
  }
  return PL_OK;
}

pl_status pl_db_open(pl_ctx *c, const char *path, const pl_db_options *o, pl_db **out) {
  *out = NULL;
  PL_TRY(check_name(c, path, o->readonly));
  pl_db *db = pl_alloc_zero(c, sizeof *db);
  if (!db) {
    return PL_ENOMEM;
  }
  db->busy_ms = o->busy_ms;
  db->path = pl_strdup(c, path);
  size_t size = strlen(path) + 3;
  char *name = db->path ? pl_alloc(c, size) : NULL;
  pl_status st = name ? PL_OK : PL_ENOMEM;
  if (st == PL_OK && !o->readonly) {
    st = make_private(c, path);
  }
  if (st == PL_OK) {
    /* ":memory:" and "file:..." mean something else to SQLite; here they are names */
    snprintf(name, size, "%s%s", path[0] == '/' ? "" : "./", path);
    st = open_file(c, db, name, o->readonly);
  }
  pl_free(c, name);
  if (st != PL_OK) {
    pl_db_close(c, db);
    return st;
  }
  *out = db;
  return PL_OK;
}

static void unlink_stmt(pl_stmt *s) {
  sqlite3_finalize(s->raw);
  if (s->prev) {
    s->prev->next = s->next;
  } else {
    s->db->first = s->next;
  }
  if (s->next) {
    s->next->prev = s->prev;
  }
  s->raw = NULL;
  s->db = NULL;
  s->prev = NULL;
  s->next = NULL;
}

void pl_db_close(pl_ctx *c, pl_db *db) {
  if (!db) {
    return;
  }
  while (db->first) {
    unlink_stmt(db->first);
  }
  sqlite3_close(db->raw); /* nothing is open in it: cannot be refused; NULL is fine */
  pl_free(c, db->path);
  pl_free(c, db);
}

const char *pl_db_path(const pl_db *db) {
  return db->path;
}

bool pl_db_in_transaction(const pl_db *db) {
  return sqlite3_get_autocommit(db->raw) == 0;
}

void pl_db_rollback(pl_db *db) {
  if (pl_db_in_transaction(db)) {
    sqlite3_exec(db->raw, "ROLLBACK", NULL, NULL, NULL);
  }
}

/* ---- statements ---- */

/* A loop over rows that was left halfway holds its view of the database, and SQLite lets
 * nobody write from an old view. Its statement is given up, and the write is tried again. */
static bool drop_old_views(pl_db *db, const sqlite3_stmt *self, int rc) {
  if (rc != SQLITE_BUSY_SNAPSHOT || pl_db_in_transaction(db)) {
    return false;
  }
  for (pl_stmt *s = db->first; s; s = s->next) {
    if (s->raw != self && sqlite3_stmt_busy(s->raw)) {
      pl_stmt_reset(s);
    }
  }
  return true;
}

static int step(pl_db *db, sqlite3_stmt *s) {
  int rc = sqlite3_step(s);
  /* more than once: between giving up a view and trying again another process may write */
  for (int tries = 0; tries < 100 && drop_old_views(db, s, rc); tries++) {
    sqlite3_reset(s);
    rc = sqlite3_step(s);
  }
  return rc;
}

pl_status pl_db_exec(pl_ctx *c, pl_db *db, const char *sql) {
  while (*sql) {
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(db->raw, sql, -1, &s, &sql);
    if (rc != SQLITE_OK) {
      return fail(c, db, rc);
    }
    if (!s) {
      continue; /* blanks or a comment */
    }
    do {
      rc = step(db, s);
    } while (rc == SQLITE_ROW);
    pl_status st = rc == SQLITE_DONE ? PL_OK : fail(c, db, rc);
    sqlite3_finalize(s);
    PL_TRY(st);
  }
  return PL_OK;
}

static bool only_blanks(const char *s) {
  return s[strspn(s, " \t\r\n;")] == 0;
}

pl_status pl_stmt_new(pl_ctx *c, pl_db *db, const char *sql, pl_stmt **out) {
  *out = NULL;
  pl_stmt *s = pl_alloc_zero(c, sizeof *s);
  if (!s) {
    return PL_ENOMEM;
  }
  const char *rest = sql;
  pl_status st = PL_OK;
  int rc = sqlite3_prepare_v3(db->raw, sql, -1, SQLITE_PREPARE_PERSISTENT, &s->raw, &rest);
  if (rc != SQLITE_OK) {
    st = fail(c, db, rc);
  } else if (!s->raw) {
    st = pl_fail(c, PL_EINVAL, "%s: there is no statement in the text given to prepare", db->path);
  } else if (!only_blanks(rest)) {
    st = pl_fail(c, PL_EINVAL, "%s: prepare takes one statement; after the first came: %.80s",
                 db->path, rest);
  }
  if (st != PL_OK) {
    sqlite3_finalize(s->raw);
    pl_free(c, s);
    return st;
  }
  s->db = db;
  s->next = db->first;
  if (s->next) {
    s->next->prev = s;
  }
  db->first = s;
  *out = s;
  return PL_OK;
}

void pl_stmt_free(pl_ctx *c, pl_stmt *s) {
  if (s && s->raw) {
    unlink_stmt(s);
  }
  pl_free(c, s);
}

bool pl_stmt_open(const pl_stmt *s) {
  return s->raw != NULL;
}

int pl_stmt_params(const pl_stmt *s) {
  return sqlite3_bind_parameter_count(s->raw);
}

int pl_stmt_columns(const pl_stmt *s) {
  return sqlite3_column_count(s->raw);
}

const char *pl_stmt_column_name(const pl_stmt *s, int i) {
  const char *name = sqlite3_column_name(s->raw, i);
  return name ? name : "";
}

pl_status pl_stmt_bind(pl_ctx *c, pl_stmt *s, int i, const pl_db_value *v, bool copy) {
  int rc = SQLITE_OK;
  switch (v->type) {
    case PL_DB_NULL:
      rc = sqlite3_bind_null(s->raw, i + 1);
      break;
    case PL_DB_INT:
      rc = sqlite3_bind_int64(s->raw, i + 1, v->i);
      break;
    case PL_DB_REAL:
      rc = sqlite3_bind_double(s->raw, i + 1, v->d);
      break;
    case PL_DB_TEXT:
      rc = sqlite3_bind_text64(s->raw, i + 1, v->text, v->size,
                               copy ? SQLITE_TRANSIENT : SQLITE_STATIC, SQLITE_UTF8);
      break;
  }
  return rc == SQLITE_OK ? PL_OK : fail(c, s->db, rc);
}

pl_status pl_stmt_step(pl_ctx *c, pl_stmt *s, bool *row) {
  int rc = step(s->db, s->raw);
  *row = rc == SQLITE_ROW;
  if (rc == SQLITE_ROW) {
    return PL_OK;
  }
  pl_status st = PL_OK;
  if (rc == SQLITE_DONE) {
    s->changes = sqlite3_stmt_readonly(s->raw) ? 0 : sqlite3_changes64(s->db->raw);
    s->rowid = sqlite3_last_insert_rowid(s->db->raw);
  } else {
    st = fail(c, s->db, rc);
  }
  pl_stmt_reset(s);
  return st;
}

pl_status pl_stmt_get(pl_ctx *c, const pl_stmt *s, int i, pl_db_value *out) {
  memset(out, 0, sizeof *out);
  int type = sqlite3_column_type(s->raw, i);
  switch (type) {
    case SQLITE_INTEGER:
      out->type = PL_DB_INT;
      out->i = sqlite3_column_int64(s->raw, i);
      break;
    case SQLITE_FLOAT:
      out->type = PL_DB_REAL;
      out->d = sqlite3_column_double(s->raw, i);
      break;
    case SQLITE_NULL:
      break;
    default: /* text, or bytes that something else wrote */
      out->type = PL_DB_TEXT;
      out->text = type == SQLITE_TEXT ? (const char *)sqlite3_column_text(s->raw, i)
                                      : sqlite3_column_blob(s->raw, i);
      out->size = (size_t)sqlite3_column_bytes(s->raw, i);
      if (!out->text && sqlite3_errcode(s->db->raw) == SQLITE_NOMEM) {
        return fail(c, s->db, SQLITE_NOMEM);
      }
      out->text = out->text ? out->text : "";
  }
  return PL_OK;
}

void pl_stmt_reset(pl_stmt *s) {
  sqlite3_reset(s->raw); /* says again what the last step said: known already */
  sqlite3_clear_bindings(s->raw);
  s->uses++;
}

uint64_t pl_stmt_uses(const pl_stmt *s) {
  return s->uses;
}

int64_t pl_stmt_changes(const pl_stmt *s) {
  return s->changes;
}

int64_t pl_stmt_rowid(const pl_stmt *s) {
  return s->rowid;
}
