/* SPDX-License-Identifier: MIT */
/* sha256.h - SHA-256 (FIPS 180-4), in pieces of any length. */
#ifndef BLKREPL_DATA_SHA256_H
#define BLKREPL_DATA_SHA256_H

#include "base/compiler.h"

#define SHA256_BYTES 32
#define SHA256_BLOCK_BYTES 64

struct sha256 {
    uint32_t state[8];
    uint64_t bytes; /* so far */
    unsigned char block[SHA256_BLOCK_BYTES];
};

void blkrepl__sha256_init(struct sha256 *sha);
void blkrepl__sha256_update(struct sha256 *sha, const void *data, size_t bytes);
void blkrepl__sha256_final(struct sha256 *sha, unsigned char digest[SHA256_BYTES]);

#endif
