/* SHA-256 (FIPS 180-4), HMAC (RFC 2104) and CRC-32C (Castagnoli, RFC 3720 appendix B.4). */
#define _GNU_SOURCE
#include "base/hash.h"

#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotr(uint32_t x, int n) {
  return x >> n | x << (32 - n);
}

static void compress_plain(uint32_t h[8], const unsigned char *p, size_t blocks) {
  for (; blocks > 0; blocks--, p += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
      w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
             (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    }
    for (int i = 16; i < 64; i++) {
      uint32_t s0 = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t s1 = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3];
    uint32_t e = h[4], f = h[5], g = h[6], x = h[7];
    for (int i = 0; i < 64; i++) {
      uint32_t s1 = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25);
      uint32_t t1 = x + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i];
      uint32_t s0 = rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22);
      uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      x = g;
      g = f;
      f = e;
      e = d + t1;
      d = c;
      c = b;
      b = a;
      a = t1 + t2;
    }
    h[0] += a;
    h[1] += b;
    h[2] += c;
    h[3] += d;
    h[4] += e;
    h[5] += f;
    h[6] += g;
    h[7] += x;
  }
}

#if defined(__x86_64__)
/* The same with the processor's SHA instructions: checkpoints and models are
 * hashed whole, and these are five times as fast. Lane order as Intel's SHA
 * extensions paper has it: one register holds A,B,E,F, the other C,D,G,H. */
__attribute__((target("sha,sse4.1"))) static void compress_sha_ni(uint32_t h[8],
                                                                  const unsigned char *p,
                                                                  size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i dcba = _mm_loadu_si128((const __m128i *)(const void *)h);
  __m128i hgfe = _mm_loadu_si128((const __m128i *)(const void *)(h + 4));
  __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1);
  __m128i efgh = _mm_shuffle_epi32(hgfe, 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; blocks > 0; blocks--, p += 64) {
    __m128i m[4];
    __m128i abef0 = abef;
    __m128i cdgh0 = cdgh;
    for (int i = 0; i < 4; i++) {
      m[i] = _mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i));
      m[i] = _mm_shuffle_epi8(m[i], swap);
    }
    for (int r = 0; r < 16; r++) {
      __m128i k = _mm_loadu_si128((const __m128i *)(const void *)(K + 4 * r));
      __m128i wk = _mm_add_epi32(m[r % 4], k);
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
      __m128i last = m[(r + 3) % 4];
      __m128i w = _mm_sha256msg1_epu32(m[r % 4], m[(r + 1) % 4]);
      w = _mm_add_epi32(w, _mm_alignr_epi8(last, m[(r + 2) % 4], 4));
      m[r % 4] = _mm_sha256msg2_epu32(w, last);
    }
    abef = _mm_add_epi32(abef, abef0);
    cdgh = _mm_add_epi32(cdgh, cdgh0);
  }
  __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
  __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128((__m128i *)(void *)h, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128((__m128i *)(void *)(h + 4), _mm_alignr_epi8(dchg, feba, 8));
}

static bool has_sha_ni(void) {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
         (b >> 29 & 1);
}
#endif

/* Short texts take the plain way: in a virtual machine, asking what the processor can do
 * takes longer than hashing them. */
static void compress(uint32_t h[8], const unsigned char *p, size_t blocks) {
#if defined(__x86_64__)
  if (blocks >= 64 && has_sha_ni()) {
    compress_sha_ni(h, p, blocks);
    return;
  }
#endif
  compress_plain(h, p, blocks);
}

void pl_sha256_init(pl_sha256 *s) {
  static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memcpy(s->h, start, sizeof start);
  s->len = 0;
}

void pl_sha256_add(pl_sha256 *s, const void *bytes, size_t n) {
  const unsigned char *p = bytes;
  size_t held = (size_t)(s->len % 64);
  s->len += n;
  if (held > 0) {
    size_t take = 64 - held < n ? 64 - held : n;
    memcpy(s->buf + held, p, take);
    p += take;
    n -= take;
    if (held + take < 64) {
      return;
    }
    compress_plain(s->h, s->buf, 1);
  }
  compress(s->h, p, n / 64);
  p += n / 64 * 64;
  if (n % 64 > 0) {
    memcpy(s->buf, p, n % 64);
  }
}

static void finish(pl_sha256 *s, unsigned char out[32]) {
  uint64_t bits = s->len * 8;
  unsigned char pad[72] = {0x80};
  size_t held = (size_t)(s->len % 64);
  size_t zeros = held < 56 ? 56 - held : 120 - held;
  for (int i = 0; i < 8; i++) {
    pad[zeros + (size_t)i] = (unsigned char)(bits >> (56 - 8 * i));
  }
  pl_sha256_add(s, pad, zeros + 8);
  for (int i = 0; i < 32; i++) {
    out[i] = (unsigned char)(s->h[i / 4] >> (24 - 8 * (i % 4)));
  }
}

void pl_sha256_hex(pl_sha256 *s, char out[65]) {
  static const char digit[] = "0123456789abcdef";
  unsigned char bytes[32];
  finish(s, bytes);
  for (int i = 0; i < 32; i++) {
    out[2 * i] = digit[bytes[i] >> 4];
    out[2 * i + 1] = digit[bytes[i] & 15];
  }
  out[64] = 0;
}

void pl_hmac_sha256_hex(const void *key, size_t nkey, const void *text, size_t n, char out[65]) {
  unsigned char pad[64] = {0};
  unsigned char inner[32];
  pl_sha256 s;
  if (nkey > sizeof pad) {
    pl_sha256_init(&s);
    pl_sha256_add(&s, key, nkey);
    finish(&s, pad);
  } else if (nkey > 0) {
    memcpy(pad, key, nkey);
  }
  for (size_t i = 0; i < sizeof pad; i++) {
    pad[i] ^= 0x36;
  }
  pl_sha256_init(&s);
  pl_sha256_add(&s, pad, sizeof pad);
  pl_sha256_add(&s, text, n);
  finish(&s, inner);
  for (size_t i = 0; i < sizeof pad; i++) {
    pad[i] ^= 0x36 ^ 0x5c;
  }
  pl_sha256_init(&s);
  pl_sha256_add(&s, pad, sizeof pad);
  pl_sha256_add(&s, inner, sizeof inner);
  pl_sha256_hex(&s, out);
  explicit_bzero(pad, sizeof pad); /* all but the key itself */
  explicit_bzero(&s, sizeof s);
}

static uint32_t crc_plain(uint32_t crc, const unsigned char *p, size_t n) {
  /* reflected polynomial 0x82f63b78, four bits at a time */
  static const uint32_t T[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
                                 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
                                 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
  for (; n > 0; n--, p++) {
    crc ^= *p;
    crc = crc >> 4 ^ T[crc & 15];
    crc = crc >> 4 ^ T[crc & 15];
  }
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const unsigned char *p,
                                                            size_t n) {
  uint64_t x = crc;
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t v;
    memcpy(&v, p, 8);
    x = __builtin_ia32_crc32di(x, v);
  }
  return crc_plain((uint32_t)x, p, n);
}
#endif

uint32_t pl_crc32c(uint32_t crc, const void *bytes, size_t n) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) {
    return ~crc_sse42(~crc, bytes, n);
  }
#endif
  return ~crc_plain(~crc, bytes, n);
}
