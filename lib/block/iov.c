/* SPDX-License-Identifier: MIT */
/* iov.c - walking over the host's iovecs. */
#include "block/iov.h"

#include <string.h>

#include "base/checked.h"

#define ZERO_BYTES 65536

/* Never written; not const, so that it takes no room in the file. */
static _Alignas(4096) unsigned char iov_zero[ZERO_BYTES];

bool blkrepl__iov_bytes(const blkrepl_iovec *iov, uint32_t count, uint64_t *bytes)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (iov[i].len > 0 && iov[i].base == NULL) {
            return false;
        }
        if (!checked_add(total, iov[i].len, &total) || total > BLKREPL_IMAGE_BYTES_MAX) {
            return false;
        }
    }
    *bytes = total;
    return true;
}

/* The piece under the cursor, at most `bytes`; empty entries are passed over. */
static blkrepl_iovec iov_piece(struct iov_cursor *at, uint64_t bytes)
{
    blkrepl_iovec piece;

    while (at->index < at->count && at->skip == at->iov[at->index].len) {
        at->index++;
        at->skip = 0;
    }
    ALWAYS_CHECK(at->index < at->count);
    piece.base = (char *)at->iov[at->index].base + at->skip;
    piece.len = at->iov[at->index].len - at->skip;
    if (piece.len > bytes) {
        piece.len = (size_t)bytes;
    }
    return piece;
}

void blkrepl__iov_skip(struct iov_cursor *at, uint64_t bytes)
{
    while (bytes > 0) {
        blkrepl_iovec piece = iov_piece(at, bytes);

        at->skip += piece.len;
        bytes -= piece.len;
    }
}

void blkrepl__iov_gather(struct iov_cursor *at, void *out, uint64_t bytes)
{
    char *to = out;

    while (bytes > 0) {
        blkrepl_iovec piece = iov_piece(at, bytes);

        memcpy(to, piece.base, piece.len);
        at->skip += piece.len;
        to += piece.len;
        bytes -= piece.len;
    }
}

void blkrepl__iov_scatter(struct iov_cursor *at, const void *from, uint64_t bytes)
{
    const char *next = from;

    while (bytes > 0) {
        blkrepl_iovec piece = iov_piece(at, bytes);

        memcpy(piece.base, next, piece.len);
        at->skip += piece.len;
        next += piece.len;
        bytes -= piece.len;
    }
}

static bool iov_entry_aligned(blkrepl_iovec entry, uint32_t alignment)
{
    return (((uintptr_t)entry.base | entry.len) & (alignment - 1)) == 0;
}

uint64_t blkrepl__iov_slice(const struct iov_cursor *at, uint64_t bytes, uint32_t alignment,
                            blkrepl_iovec *out, uint32_t most, uint32_t *used)
{
    struct iov_cursor walk = *at;
    uint64_t total = 0;

    *used = 0;
    while (total < bytes && *used < most) {
        blkrepl_iovec piece = iov_piece(&walk, bytes - total);

        if (!iov_entry_aligned(piece, alignment)) {
            break;
        }
        out[(*used)++] = piece;
        walk.skip += piece.len;
        total += piece.len;
    }
    return total;
}

bool blkrepl__iov_aligned(const blkrepl_iovec *iov, uint32_t count, uint32_t alignment)
{
    for (uint32_t i = 0; alignment > 1 && i < count; i++) {
        if (!iov_entry_aligned(iov[i], alignment)) {
            return false;
        }
    }
    return true;
}

uint64_t blkrepl__iov_zeroes(blkrepl_iovec *out, uint32_t most, uint64_t bytes, uint32_t *used)
{
    uint64_t total = 0;

    for (*used = 0; *used < most && total < bytes; (*used)++) {
        size_t len = (size_t)min_u64(bytes - total, ZERO_BYTES);

        out[*used] = (blkrepl_iovec){.base = iov_zero, .len = len};
        total += len;
    }
    return total;
}

bool blkrepl__is_zero(const void *memory, size_t bytes)
{
    const unsigned char *at = memory;
    size_t head = bytes < 16 ? bytes : 16;

    for (size_t i = 0; i < head; i++) {
        if (at[i] != 0) {
            return false;
        }
    }
    /* The first 16 bytes are zero; the rest equals itself 16 bytes earlier if
     * and only if it is zero as well.  memcmp is as fast as it gets. */
    return bytes <= 16 || memcmp(at, at + 16, bytes - 16) == 0;
}
