/* A thin, safe layer over SQLite: one connection, prepared statements.
 *
 *   pl_db *db;
 *   PL_TRY(pl_db_open(c, "ledger.db", &(pl_db_options){.busy_ms = 10000}, &db));
 *   PL_TRY(pl_db_exec(c, db, "CREATE TABLE IF NOT EXISTS t(x)"));
 *   pl_stmt *s;
 *   PL_TRY(pl_stmt_new(c, db, "INSERT INTO t VALUES(?)", &s));
 *   bind, step until no row is left, reset; again; pl_stmt_free; pl_db_close.
 *
 * Used by one thread at a time. A failure names the file, says what to do and
 * leaves the connection usable; an open transaction can then be rolled back.
 * SQLite's own memory is not counted by pl_alloc. Must not know any schema. */
#ifndef PL_STORE_DB_H
#define PL_STORE_DB_H
#include "base/status.h"

typedef struct pl_db pl_db;
typedef struct pl_stmt pl_stmt;

typedef struct pl_db_options {
  bool readonly; /* the file must be there and is not written */
  int busy_ms;   /* how long to wait while another connection writes */
} pl_db_options;

/* Makes the file (mode 0600) if it is missing. Write-ahead log, synchronous =
 * FULL: what was committed is on disk when the call returns. *out is NULL after
 * a failure, and a file that is no database is left as it is. */
pl_status pl_db_open(pl_ctx *c, const char *path, const pl_db_options *o, pl_db **out);
/* Finalizes the statements too (pl_stmt_free them all the same); NULL is fine. */
void pl_db_close(pl_ctx *c, pl_db *db);
const char *pl_db_path(const pl_db *db);
/* Runs several statements and throws their rows away. */
pl_status pl_db_exec(pl_ctx *c, pl_db *db, const char *sql);
bool pl_db_in_transaction(const pl_db *db);
/* Gives up an open transaction; cannot fail and keeps ctx's error text. */
void pl_db_rollback(pl_db *db);

typedef enum pl_db_type { PL_DB_NULL, PL_DB_INT, PL_DB_REAL, PL_DB_TEXT } pl_db_type;

typedef struct pl_db_value {
  pl_db_type type;
  int64_t i;
  double d;         /* never NaN: SQLite would make it NULL */
  const char *text; /* any bytes, NUL included */
  size_t size;
} pl_db_value;

/* sql holds exactly one statement. */
pl_status pl_stmt_new(pl_ctx *c, pl_db *db, const char *sql, pl_stmt **out);
void pl_stmt_free(pl_ctx *c, pl_stmt *s); /* NULL is fine */
bool pl_stmt_open(const pl_stmt *s);      /* false once its database was closed */
int pl_stmt_params(const pl_stmt *s);
int pl_stmt_columns(const pl_stmt *s);
const char *pl_stmt_column_name(const pl_stmt *s, int i); /* i from 0 */
/* Parameter i, from 0. Text is copied if `copy`, else it must live until the reset. */
pl_status pl_stmt_bind(pl_ctx *c, pl_stmt *s, int i, const pl_db_value *v, bool copy);
/* *row: there is a row to read. Without one the statement has been reset, as after a failure. */
pl_status pl_stmt_step(pl_ctx *c, pl_stmt *s, bool *row);
/* Column i of the present row; text lives until the next step or reset. */
pl_status pl_stmt_get(pl_ctx *c, const pl_stmt *s, int i, pl_db_value *out);
void pl_stmt_reset(pl_stmt *s); /* ready for the next bind; lets go of bound text */
/* Grows with each reset: a reader sees that its statement was used for something else. */
uint64_t pl_stmt_uses(const pl_stmt *s);
int64_t pl_stmt_changes(const pl_stmt *s); /* rows that the last run changed */
int64_t pl_stmt_rowid(const pl_stmt *s);   /* of the last row inserted */

#endif
