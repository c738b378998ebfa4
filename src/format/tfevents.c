/* Event files as TensorBoard reads them. A record is u64 length, u32 masked
 * CRC-32C of the length, data, u32 masked CRC-32C of the data (little-endian);
 * data is the protobuf message Event {1 wall_time double, 2 step int64,
 * 3 file_version string, 5 summary {1 value {1 tag string, 2 simple_value float}}}. */
#define _GNU_SOURCE /* gethostname */
#include "format/tfevents.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"

#define TAG_MAX 1000
#define PATH_BYTES 4096

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct pl_tfevents {
  FILE *f;
  pl_buf event, value, summary; /* scratch of one record */
  char path[PATH_BYTES];
};

static uint32_t masked_crc(const void *p, size_t n) {
  uint32_t crc = pl_crc32c(0, p, n);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static pl_status put_varint(pl_ctx *c, pl_buf *b, uint64_t v) {
  unsigned char bytes[10];
  size_t n = 0;
  while (v >= 0x80) {
    bytes[n] = (unsigned char)(v | 0x80);
    n++;
    v >>= 7;
  }
  bytes[n] = (unsigned char)v;
  return pl_buf_add(c, b, bytes, n + 1);
}

static pl_status put_key(pl_ctx *c, pl_buf *b, unsigned field, unsigned wire) {
  return put_varint(c, b, field << 3 | wire);
}

static pl_status put_bytes(pl_ctx *c, pl_buf *b, unsigned field, const void *p, size_t n) {
  PL_TRY(put_key(c, b, field, WIRE_BYTES));
  PL_TRY(put_varint(c, b, n));
  return pl_buf_add(c, b, p, n);
}

static pl_status start_event(pl_ctx *c, pl_tfevents *w) {
  double now = pl_walltime();
  pl_buf_reset(&w->event);
  PL_TRY(put_key(c, &w->event, 1, WIRE_64));
  return pl_buf_add(c, &w->event, &now, sizeof now);
}

static pl_status end_event(pl_ctx *c, pl_tfevents *w) {
  uint64_t n = w->event.len;
  uint32_t head = masked_crc(&n, sizeof n);
  uint32_t foot = masked_crc(w->event.data, w->event.len);
  bool ok = fwrite(&n, sizeof n, 1, w->f) == 1 && fwrite(&head, sizeof head, 1, w->f) == 1 &&
            fwrite(w->event.data, w->event.len, 1, w->f) == 1 &&
            fwrite(&foot, sizeof foot, 1, w->f) == 1;
  if (fflush(w->f) != 0 || !ok) {
    return pl_fail(c, PL_EIO, "%.600s: cannot write: %s", w->path, strerror(errno));
  }
  return PL_OK;
}

static pl_status open_file(pl_ctx *c, pl_tfevents *w, const char *dir) {
  static const char version[] = "brain.Event:2";
  char host[65] = "host";
  (void)gethostname(host, sizeof host - 1); /* only a name: the default will do */
  int n = snprintf(w->path, sizeof w->path, "%s/events.out.tfevents.%lld.%s.%ld", dir,
                   (long long)pl_walltime(), host, (long)getpid());
  if (n < 0 || (size_t)n >= sizeof w->path) {
    return pl_fail(c, PL_EINVAL, "the path of the event file in %.200s is too long", dir);
  }
  w->f = fopen(w->path, "ab");
  if (!w->f) {
    return pl_fail(c, PL_EIO, "%.600s: cannot write: %s", w->path, strerror(errno));
  }
  PL_TRY(start_event(c, w));
  PL_TRY(put_bytes(c, &w->event, 3, version, sizeof version - 1));
  return end_event(c, w);
}

pl_status pl_tfevents_open(pl_ctx *c, const char *dir, pl_tfevents **out) {
  *out = NULL;
  pl_tfevents *w = pl_alloc_zero(c, sizeof *w);
  if (!w) {
    return PL_ENOMEM;
  }
  pl_buf_init(&w->event, 4 * TAG_MAX);
  pl_buf_init(&w->value, 2 * TAG_MAX);
  pl_buf_init(&w->summary, 3 * TAG_MAX);
  pl_status st = open_file(c, w, dir);
  if (st != PL_OK) {
    char why[PL_ERR_MAX];
    memcpy(why, c->err, sizeof why); /* closing may fail, too; the first reason counts */
    (void)pl_tfevents_close(c, w);
    memcpy(c->err, why, sizeof why);
    return st;
  }
  *out = w;
  return PL_OK;
}

const char *pl_tfevents_path(const pl_tfevents *w) {
  return w->path;
}

pl_status pl_tfevents_scalar(pl_ctx *c, pl_tfevents *w, const char *tag, int64_t step,
                             double value) {
  size_t n = strlen(tag);
  float v = (float)value;
  if (step < 0 || n == 0 || n > TAG_MAX) {
    return pl_fail(c, PL_EINVAL, "a scalar needs a step of 0 or more and a tag of 1 to %d bytes",
                   TAG_MAX);
  }
  pl_buf_reset(&w->value);
  pl_buf_reset(&w->summary);
  PL_TRY(put_bytes(c, &w->value, 1, tag, n));
  PL_TRY(put_key(c, &w->value, 2, WIRE_32));
  PL_TRY(pl_buf_add(c, &w->value, &v, sizeof v));
  PL_TRY(put_bytes(c, &w->summary, 1, w->value.data, w->value.len));
  PL_TRY(start_event(c, w));
  PL_TRY(put_key(c, &w->event, 2, WIRE_VARINT));
  PL_TRY(put_varint(c, &w->event, (uint64_t)step));
  PL_TRY(put_bytes(c, &w->event, 5, w->summary.data, w->summary.len));
  return end_event(c, w);
}

pl_status pl_tfevents_close(pl_ctx *c, pl_tfevents *w) {
  if (!w) {
    return PL_OK;
  }
  pl_status st = PL_OK;
  if (w->f && fclose(w->f) != 0) {
    st = pl_fail(c, PL_EIO, "%.600s: cannot write: %s", w->path, strerror(errno));
  }
  pl_buf_free(c, &w->event);
  pl_buf_free(c, &w->value);
  pl_buf_free(c, &w->summary);
  pl_free(c, w);
  return st;
}
