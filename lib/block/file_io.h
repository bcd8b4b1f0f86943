/* SPDX-License-Identifier: MIT */
/* file_io.h - an open file or block device, and moving data to and from it.
 *
 * What the file turned out not to be able to do is remembered, so that it is
 * tried once and not at every request. */
#ifndef BLKREPL_BLOCK_FILE_IO_H
#define BLKREPL_BLOCK_FILE_IO_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/compiler.h"
#include <libblkrepl/backend.h>

/* The answer of what was not to block and would have. */
#define FILE_WOULD_BLOCK 1
/* No single transfer is longer, so that it fits ssize_t everywhere. */
#define FILE_TRANSFER_BYTES_MAX (UINT64_C(1) << 30)

/* A run of data that was seen, so that asking for the status of a long file
 * piece by piece does not walk through all of it for every piece. */
struct file_seen {
    pthread_mutex_t lock;
    uint64_t start;
    uint64_t end;
    uint64_t changes; /* zeroes and discards so far: what was seen before is old */
};

struct file {
    /* Set at open. */
    int fd;
    bool device;    /* a block device */
    bool in_memory; /* tmpfs: nothing blocks, and nothing is durable */
    uint32_t sector_bytes;
    uint64_t bytes;
    /* Set at open past the page cache; see file_direct.h. */
    bool direct;
    int tail_fd; /* through the page cache; -1: there is no tail */
    uint32_t request_alignment;
    uint32_t memory_alignment;
    uint64_t tail; /* where it begins */
    /* Set for good when the kernel says so. */
    atomic_bool no_nowait_read;
    atomic_bool no_nowait_write;
    atomic_bool no_dsync;
    atomic_bool no_punch;
    atomic_bool no_zero_range;
    atomic_bool no_seek;
    atomic_bool no_copy; /* from another file to this one */
    struct file_seen seen;
    pthread_mutex_t near_tail; /* see file_io.c */
};

/* Carry out a READ or WRITE from `*done` bytes on, and count them there.  With
 * `nowait` only as far as it does not block; past the page cache it always may.
 * Returns: 0 all is done; FILE_WOULD_BLOCK; a negated errno; -EIO the file has
 *          become shorter than the request, or takes no more. */
int blkrepl__file_transfer(struct file *file, const blkrepl_io *io, bool nowait, uint64_t *done);

/* Whether a READ or WRITE is worth trying with `nowait`. */
bool blkrepl__file_may_nowait(struct file *file, const blkrepl_io *io);

/* Make durable what was written.  Returns: 0 or a negated errno. */
int blkrepl__file_sync(struct file *file);

#endif
