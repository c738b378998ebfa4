/* Hostile safetensors files: each is refused with the path in the message and
 * no memory left behind. What sound files hold is tests/lua/test_safetensors.lua's. */
#include "harness.h"

#include "base/hash.h"
#include "format/safetensors.h"
#include "format/tfevents.h"

static const char *file_with(const void *bytes, size_t n) {
  static char path[256];
  snprintf(path, sizeof path, "%s/hostile.safetensors", scratch_dir());
  FILE *f = fopen(path, "wb");
  if (f) {
    fwrite(bytes, 1, n, f);
    fclose(f);
  }
  return path;
}

/* header length, header, `data` bytes of 1. */
static size_t build(unsigned char *out, uint64_t length, const char *header, size_t data) {
  size_t n = strlen(header);
  memcpy(out, &length, 8);
  memcpy(out + 8, header, n);
  memset(out + 8 + n, 1, data);
  return 8 + n + data;
}

static pl_status open_bytes(const void *bytes, size_t n) {
  pl_st *s = NULL;
  ctx()->err[0] = 0;
  pl_status st = pl_st_open(ctx(), file_with(bytes, n), &s);
  CHECK((st == PL_OK) == (s != NULL));
  pl_st_close(ctx(), s);
  return st;
}

static void refuse(const char *header, size_t data, const char *says) {
  static unsigned char bytes[8192];
  size_t n = build(bytes, strlen(header), header, data);
  CHECK_STATUS(open_bytes(bytes, n), PL_EFORMAT);
  CHECK_HAS(ctx()->err, "hostile.safetensors");
  CHECK_HAS(ctx()->err, says);
}

static const char sound[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                            "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                            "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[16,24]},"
                            "\"c\":{\"dtype\":\"U8\",\"shape\":[0,9],\"data_offsets\":[24,24]}}   ";

TEST(a_sound_file_opens) {
  unsigned char bytes[512];
  size_t n = build(bytes, strlen(sound), sound, 24);
  pl_st *s = NULL;
  CHECK_OK(pl_st_open(ctx(), file_with(bytes, n), &s));
  REQUIRE(s);
  CHECK_INT(pl_st_count(s), 3);
  const pl_st_entry *e = pl_st_find(s, "b");
  REQUIRE(e);
  int64_t v = 0;
  CHECK_OK(pl_st_copy(ctx(), s, e, &v));
  CHECK_INT(v, 0x0101010101010101);
  CHECK(pl_st_find(s, "d") == NULL);
  CHECK_STR(pl_st_metadata_at(s, 0)->value, "pt");
  pl_st_close(ctx(), s);
}

TEST(every_truncation_and_one_byte_more_is_refused) {
  unsigned char bytes[512];
  size_t n = build(bytes, strlen(sound), sound, 25);
  for (size_t cut = 0; cut <= n; cut++) {
    if (cut == n - 1) {
      CHECK_OK(open_bytes(bytes, cut));
      continue;
    }
    CHECK_STATUS(open_bytes(bytes, cut), PL_EFORMAT);
    CHECK_HAS(ctx()->err, "hostile.safetensors");
  }
}

TEST(header_lengths_that_lie) {
  static const uint64_t lengths[] = {0, 1, 7, 100000001, UINT32_MAX, (uint64_t)1 << 62, UINT64_MAX,
                                     UINT64_MAX - 7};
  unsigned char bytes[512];
  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    size_t n = build(bytes, lengths[i], sound, 24);
    CHECK_STATUS(open_bytes(bytes, n), PL_EFORMAT);
  }
}

TEST(headers_that_are_wrong) {
#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
  refuse("[]", 0, "does not start with '{'");
  refuse(" {}", 0, "does not start with '{'");
  refuse("{}x", 0, "header");
  refuse("{" A "," A "}", 8, "header"); /* the same name twice */
  refuse("{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
         "inside the tensor");
  refuse("{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         "inside the tensor");
  refuse("{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}", 16, "hole");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole");
  refuse("{" A "}", 9, "the file at 9");
  refuse("{" A "}", 7, "data ends at byte 8");
  refuse("{}", 1, "the file at 1");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "after their end");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "need 12 bytes");
  refuse("{\"a\":{\"dtype\":\"F99\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         "unknown dtype \"F99\"");
  refuse("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1,
         "whole number of bytes");
  refuse("{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype (a string)");
  refuse("{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype (a string)");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "whole number");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[0.5],\"data_offsets\":[0,8]}}", 8, "whole number");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1e30],\"data_offsets\":[0,8]}}", 8, "whole number");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8,
         "dims");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflows");
  refuse("{\"a\":{\"dtype\":\"F64\",\"shape\":[4503599627370496,1024],\"data_offsets\":[0,0]}}", 0,
         "whole number of bytes below");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8,
         "two whole numbers");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,8]}}", 8,
         "two whole numbers");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8,
         "unknown key");
  refuse("{\"a\":[]}", 0, "must be an object");
  refuse("{\"__metadata__\":{\"a\":1}}", 0, "not a string");
  refuse("{\"__metadata__\":[]}", 0, "object of strings");
  refuse("{\"../a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "\"..\"");
  refuse("{\"a/..\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "\"..\"");
  refuse("{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "u0000");
  refuse("{\"a\\nb\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         "control character");
  refuse("{\"a\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "header");
#undef A
}

TEST(deep_nesting_is_refused) {
  static char header[4096];
  memset(header, '[', 2000);
  memcpy(header, "{\"a\":", 5);
  header[2000] = 0;
  refuse(header, 0, "header");
}

/* Whatever is accepted: every entry inside the data, sizes adding up exactly. */
TEST(one_byte_changed_anywhere) {
  unsigned char bytes[512];
  size_t n = build(bytes, strlen(sound), sound, 24);
  static const unsigned char to[] = {0, '"', '0', '9', '{', '}', ',', 0xff, '-', '.', 'e', ' '};
  for (size_t i = 0; i < n - 24; i++) {
    unsigned char was = bytes[i];
    for (size_t k = 0; k < sizeof to; k++) {
      bytes[i] = to[k];
      pl_st *s = NULL;
      if (pl_st_open(ctx(), file_with(bytes, n), &s) == PL_OK) {
        size_t at = 0;
        for (size_t e = 0; e < pl_st_count(s); e++) {
          const pl_st_entry *entry = pl_st_at(s, e);
          double room[16];
          CHECK_INT(entry->begin, at);
          at = entry->end;
          if (entry->dtype->load &&
              (size_t)entry->numel * (size_t)entry->dtype->load_size <= sizeof room) {
            CHECK_OK(pl_st_copy(ctx(), s, entry, room));
          }
        }
        if (i >= 8) {
          CHECK_INT(at, 24);
        }
      }
      pl_st_close(ctx(), s);
    }
    bytes[i] = was;
    if (quick_mode()) {
      i += 2;
    }
  }
}

static pl_status open_and_write(void *arg) {
  pl_st *s = NULL;
  PL_TRY(pl_st_open(ctx(), arg, &s));
  static const float values[4] = {1, 2, 3, 4};
  static const int64_t shape[1] = {4};
  pl_st_item items[2] = {{"y", "F32", 1, shape, values}, {"x", "I32", 1, shape, values}};
  pl_st_pair meta[2] = {{"format", "pt"}, {"about", "a test"}};
  char path[256];
  snprintf(path, sizeof path, "%s/written.safetensors", scratch_dir());
  pl_status st = pl_st_write(ctx(), path, items, 2, meta, 2);
  pl_st_close(ctx(), s);
  return st;
}

TEST(out_of_memory_leaves_nothing_behind) {
  unsigned char bytes[512];
  char path[256];
  snprintf(path, sizeof path, "%s", file_with(bytes, build(bytes, strlen(sound), sound, 24)));
  CHECK(fail_each_alloc(open_and_write, path) > 5);
}

TEST(a_write_that_cannot_be_written) {
  static const float one = 1;
  pl_st_item bad[] = {
      {"__metadata__", "F32", 0, NULL, &one},
      {"a", "F4", 0, NULL, &one},
      {"a\nb", "F32", 0, NULL, &one}};
  for (size_t i = 0; i < 3; i++) {
    CHECK_STATUS(pl_st_write(ctx(), "/nonexistent/x", &bad[i], 1, NULL, 0), PL_EINVAL);
  }
  pl_st_item good = {"a", "F32", 0, NULL, &one};
  CHECK_STATUS(pl_st_write(ctx(), "/nonexistent/x", &good, 1, NULL, 0), PL_ENOENT);
  CHECK_HAS(ctx()->err, "/nonexistent");
}

/* ---- event files: a reader by hand, from the format's description ----------- */

static uint32_t masked(const unsigned char *p, size_t n) {
  uint32_t crc = pl_crc32c(0, p, n);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static uint64_t varint(const unsigned char **p) {
  uint64_t v = 0;
  for (int shift = 0;; shift += 7) {
    unsigned char b = *(*p)++;
    v |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) {
      return v;
    }
  }
}

typedef struct event {
  double wall;
  int64_t step;
  char version[32], tag[64];
  float value;
} event;

static void read_message(const unsigned char *p, const unsigned char *end, int depth, event *e) {
  while (p < end) {
    uint64_t key = varint(&p);
    uint64_t field = key >> 3;
    if ((key & 7) == 1) {
      memcpy(&e->wall, p, 8);
      CHECK_INT(depth * 10 + (int)field, 1);
      p += 8;
    } else if ((key & 7) == 5) {
      memcpy(&e->value, p, 4);
      CHECK_INT(depth * 10 + (int)field, 22);
      p += 4;
    } else if ((key & 7) == 0) {
      e->step = (int64_t)varint(&p);
      CHECK_INT(depth * 10 + (int)field, 2);
    } else {
      size_t n = (size_t)varint(&p);
      REQUIRE(p + n <= end);
      char *text = depth == 0 ? e->version : e->tag;
      bool is_text = depth == 0 ? field == 3 : depth == 2 && field == 1;
      if (is_text) {
        snprintf(text, depth == 0 ? sizeof e->version : sizeof e->tag, "%.*s", (int)n,
                 (const char *)p);
      } else {
        read_message(p, p + n, depth + 1, e);
      }
      p += n;
    }
  }
}

static int read_events(const char *path, event *out, int max) {
  pl_buf b;
  pl_buf_init(&b, 1 << 20);
  int count = 0;
  CHECK_OK(pl_file_read(ctx(), path, &b));
  const unsigned char *p = (const unsigned char *)b.data;
  const unsigned char *end = p + b.len;
  while (p < end && count < max) {
    uint64_t n = 0;
    uint32_t crc[2];
    memcpy(&n, p, 8);
    memcpy(&crc[0], p + 8, 4);
    CHECK(crc[0] == masked(p, 8));
    memcpy(&crc[1], p + 12 + n, 4);
    CHECK(crc[1] == masked(p + 12, (size_t)n));
    memset(&out[count], 0, sizeof out[count]);
    read_message(p + 12, p + 12 + n, 0, &out[count]);
    count++;
    p += 16 + n;
  }
  CHECK(p == end);
  pl_buf_free(ctx(), &b);
  return count;
}

TEST(event_files_hold_what_was_written) {
  pl_tfevents *w = NULL;
  CHECK_OK(pl_tfevents_open(ctx(), scratch_dir(), &w));
  REQUIRE(w);
  char path[512];
  snprintf(path, sizeof path, "%s", pl_tfevents_path(w));
  CHECK_HAS(path, "/events.out.tfevents.");
  CHECK_OK(pl_tfevents_scalar(ctx(), w, "loss", 1, 0.5));
  CHECK_OK(pl_tfevents_scalar(ctx(), w, "rewards/margins", 300, -1.25));
  CHECK_OK(pl_tfevents_scalar(ctx(), w, "lr", 5000000000, 1e-6));
  CHECK_STATUS(pl_tfevents_scalar(ctx(), w, "lr", -1, 0), PL_EINVAL);
  CHECK_OK(pl_tfevents_close(ctx(), w));
  event e[8];
  REQUIRE(read_events(path, e, 8) == 4);
  CHECK_STR(e[0].version, "brain.Event:2");
  CHECK(e[0].wall > 1e9);
  CHECK_STR(e[1].tag, "loss");
  CHECK_INT(e[1].step, 1);
  CHECK_NEAR(e[1].value, 0.5, 0);
  CHECK_STR(e[2].tag, "rewards/margins");
  CHECK_INT(e[2].step, 300);
  CHECK_NEAR(e[2].value, -1.25, 0);
  CHECK_INT(e[3].step, 5000000000);
  CHECK_NEAR(e[3].value, 1e-6, 1e-12);
}

TEST(an_event_file_that_cannot_be_made) {
  pl_tfevents *w = NULL;
  CHECK_STATUS(pl_tfevents_open(ctx(), "/nonexistent", &w), PL_EIO);
  CHECK_HAS(ctx()->err, "/nonexistent");
  CHECK(w == NULL);
}
