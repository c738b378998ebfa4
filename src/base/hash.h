/* SHA-256 (FIPS 180-4) for keys and content, HMAC with it (RFC 2104) for what nobody else may
 * guess, CRC-32C (Castagnoli) for files. */
#ifndef PL_BASE_HASH_H
#define PL_BASE_HASH_H
#include <stddef.h>
#include <stdint.h>

typedef struct pl_sha256 { uint32_t h[8]; uint64_t len; unsigned char buf[64]; } pl_sha256;
void pl_sha256_init(pl_sha256 *s);
void pl_sha256_add(pl_sha256 *s, const void *bytes, size_t n);
void pl_sha256_hex(pl_sha256 *s, char out[65]); /* finishes s */
void pl_hmac_sha256_hex(const void *key, size_t nkey, const void *text, size_t n, char out[65]);
uint32_t pl_crc32c(uint32_t crc, const void *bytes, size_t n); /* start with 0 */

#endif
