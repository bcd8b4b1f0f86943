/* SPDX-License-Identifier: MIT */
/* sha256.c - SHA-256, with the names of FIPS 180-4 in the comments.
 *
 * Words are put together from bytes, so the order of the machine's bytes does not
 * matter.  Eight rounds stand in one loop: after eight the working variables have
 * gone once around, and no round moves them. */
#include "data/sha256.h"

#include "base/checked.h"

#include <string.h>

#define ROUNDS 64
#define BLOCK_WORDS (SHA256_BLOCK_BYTES / 4)
#define LENGTH_BYTES 8

/* H(0): the first 32 bits of the fractions of the square roots of the first 8 primes. */
static const uint32_t sha256_start[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* K: the same of the cube roots of the first 64 primes. */
static const uint32_t sha256_constant[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t rotate_right(uint32_t x, uint32_t by)
{
    return x >> by | x << (32 - by);
}

static inline uint32_t load_be32(const unsigned char *from)
{
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static inline void store_be32(unsigned char *to, uint32_t x)
{
    to[0] = (unsigned char)(x >> 24);
    to[1] = (unsigned char)(x >> 16);
    to[2] = (unsigned char)(x >> 8);
    to[3] = (unsigned char)x;
}

/* W: the words of the block, then those that are mixed from them. */
static void sha256_schedule(uint32_t words[ROUNDS], const unsigned char *block)
{
    for (unsigned i = 0; i < BLOCK_WORDS; i++) {
        words[i] = load_be32(block + (size_t)i * 4);
    }
    for (unsigned i = BLOCK_WORDS; i < ROUNDS; i++) {
        uint32_t x = words[i - 15];
        uint32_t y = words[i - 2];

        x = rotate_right(x, 7) ^ rotate_right(x, 18) ^ x >> 3;
        y = rotate_right(y, 17) ^ rotate_right(y, 19) ^ y >> 10;
        words[i] = words[i - 16] + x + words[i - 7] + y;
    }
}

/* Ch and Maj, with an operation less each than as they are written there. */
static inline uint32_t choose(uint32_t x, uint32_t y, uint32_t z)
{
    return z ^ (x & (y ^ z));
}

static inline uint32_t majority(uint32_t x, uint32_t y, uint32_t z)
{
    return (x & y) | (z & (x | y));
}

/* A round: of the eight variables only d and h change; what follows calls h a, and so on. */
#define ROUND(a, b, c, d, e, f, g, h, add)                                                         \
    do {                                                                                           \
        (h) += (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) +                  \
               choose(e, f, g) + (add);                                                            \
        (d) += (h);                                                                                \
        (h) +=                                                                                     \
            (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) + majority(a, b, c);  \
    } while (0)

static void sha256_block(uint32_t state[8], const unsigned char *block)
{
    uint32_t words[ROUNDS];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];

    sha256_schedule(words, block);
    for (unsigned i = 0; i < ROUNDS; i += 8) {
        const uint32_t *k = sha256_constant + i;
        const uint32_t *w = words + i;

        ROUND(a, b, c, d, e, f, g, h, k[0] + w[0]);
        ROUND(h, a, b, c, d, e, f, g, k[1] + w[1]);
        ROUND(g, h, a, b, c, d, e, f, k[2] + w[2]);
        ROUND(f, g, h, a, b, c, d, e, k[3] + w[3]);
        ROUND(e, f, g, h, a, b, c, d, k[4] + w[4]);
        ROUND(d, e, f, g, h, a, b, c, k[5] + w[5]);
        ROUND(c, d, e, f, g, h, a, b, k[6] + w[6]);
        ROUND(b, c, d, e, f, g, h, a, k[7] + w[7]);
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
}

void blkrepl__sha256_init(struct sha256 *sha)
{
    memcpy(sha->state, sha256_start, sizeof sha->state);
    sha->bytes = 0;
}

void blkrepl__sha256_update(struct sha256 *sha, const void *data, size_t bytes)
{
    const unsigned char *from = data;
    size_t held = (size_t)(sha->bytes % SHA256_BLOCK_BYTES);

    if (bytes == 0) {
        return; /* data may be NULL, which memcpy must not see */
    }
    sha->bytes += bytes;
    if (held != 0) {
        size_t take = (size_t)min_u64(bytes, SHA256_BLOCK_BYTES - held);

        memcpy(sha->block + held, from, take);
        if (held + take < SHA256_BLOCK_BYTES) {
            return;
        }
        sha256_block(sha->state, sha->block);
        from += take;
        bytes -= take;
    }
    for (; bytes >= SHA256_BLOCK_BYTES; bytes -= SHA256_BLOCK_BYTES) {
        sha256_block(sha->state, from);
        from += SHA256_BLOCK_BYTES;
    }
    memcpy(sha->block, from, bytes);
}

void blkrepl__sha256_final(struct sha256 *sha, unsigned char digest[SHA256_BYTES])
{
    size_t held = (size_t)(sha->bytes % SHA256_BLOCK_BYTES);
    uint64_t bits = sha->bytes * 8;

    sha->block[held++] = 0x80;
    if (held > SHA256_BLOCK_BYTES - LENGTH_BYTES) {
        memset(sha->block + held, 0, SHA256_BLOCK_BYTES - held);
        sha256_block(sha->state, sha->block);
        held = 0;
    }
    memset(sha->block + held, 0, SHA256_BLOCK_BYTES - LENGTH_BYTES - held);
    store_be32(sha->block + SHA256_BLOCK_BYTES - 8, (uint32_t)(bits >> 32));
    store_be32(sha->block + SHA256_BLOCK_BYTES - 4, (uint32_t)bits);
    sha256_block(sha->state, sha->block);
    for (unsigned i = 0; i < ARRAY_COUNT(sha->state); i++) {
        store_be32(digest + (size_t)i * 4, sha->state[i]);
    }
}
