/* SPDX-License-Identifier: MIT */
/* file_status.c - where a file has data and where holes.
 *
 * A status may call data what is a hole, but never the other way round, since
 * what is said to be zero is not read.  So a file that has become shorter than
 * the disk is data where it is missing: reading it then fails, and a copy does
 * not silently hold zeroes. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include "block/file_status.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"

#if defined(SEEK_DATA) && defined(SEEK_HOLE)
#define FILE_HAVE_SEEK 1
#else
#define FILE_HAVE_SEEK 0
#endif

bool blkrepl__file_status_supported(const struct file *file)
{
    /* No system tells where the holes of a device are. */
    return FILE_HAVE_SEEK && !file->device;
}

/* ---- What was seen --------------------------------------------------------------- */

/* The end of the data that is known to begin at or before `offset`; `offset` if
 * none is known.  *changes is for status_remember(). */
static uint64_t status_recall(struct file *file, uint64_t offset, uint64_t *changes)
{
    struct file_seen *seen = &file->seen;
    uint64_t end = offset;

    pthread_mutex_lock(&seen->lock);
    if (seen->start <= offset && offset < seen->end) {
        end = seen->end;
    }
    *changes = seen->changes;
    pthread_mutex_unlock(&seen->lock);
    return end;
}

#if FILE_HAVE_SEEK
static void status_remember(struct file *file, uint64_t start, uint64_t end, uint64_t changes)
{
    struct file_seen *seen = &file->seen;

    pthread_mutex_lock(&seen->lock);
    if (seen->changes == changes) {
        seen->start = start;
        seen->end = end;
    }
    pthread_mutex_unlock(&seen->lock);
}
#endif

void blkrepl__file_status_forget(struct file *file)
{
    struct file_seen *seen = &file->seen;

    pthread_mutex_lock(&seen->lock);
    seen->start = 0;
    seen->end = 0;
    seen->changes++;
    pthread_mutex_unlock(&seen->lock);
}

/* ---- Status ---------------------------------------------------------------------- */

struct status_walk {
    struct file *file;
    uint64_t at;
    uint64_t end;
    blkrepl_extent *extents;
    uint32_t most;
    uint32_t used;
};

static void status_put(struct status_walk *walk, uint64_t to, uint32_t flags)
{
    to = min_u64(to, walk->end);
    walk->extents[walk->used++] = (blkrepl_extent){.bytes = to - walk->at, .flags = flags};
    walk->at = to;
}

#if FILE_HAVE_SEEK

/* What is missing at the end of the file, see the top. */
static bool status_shortened(const struct status_walk *walk)
{
    struct stat st;

    return fstat(walk->file->fd, &st) < 0 || (uint64_t)st.st_size < walk->end;
}

static void status_put_hole(struct status_walk *walk, uint64_t to)
{
    if (to == UINT64_MAX && status_shortened(walk)) {
        status_put(walk, walk->end, BLKREPL_EXTENT_DATA);
    } else {
        status_put(walk, to, BLKREPL_EXTENT_ZERO);
    }
}

/* The first data at or behind `at`; UINT64_MAX: none up to the end of the file;
 * `at` itself also when the file system does not tell. */
static uint64_t status_seek_data(struct file *file, uint64_t at)
{
    off_t found;

    if (atomic_load_explicit(&file->no_seek, memory_order_relaxed)) {
        return at;
    }
    found = lseek(file->fd, (off_t)at, SEEK_DATA);
    if (found >= 0) {
        return max_u64((uint64_t)found, at);
    }
    if (errno == ENXIO) {
        return UINT64_MAX;
    }
    atomic_store_explicit(&file->no_seek, true, memory_order_relaxed);
    return at;
}

/* The end of the data at `at`. */
static uint64_t status_seek_hole(struct file *file, uint64_t at, uint64_t changes)
{
    off_t found = -1;

    if (!atomic_load_explicit(&file->no_seek, memory_order_relaxed)) {
        found = lseek(file->fd, (off_t)at, SEEK_HOLE);
    }
    if (found < 0 || (uint64_t)found <= at) {
        return UINT64_MAX;
    }
    status_remember(file, at, (uint64_t)found, changes);
    return (uint64_t)found;
}

static void status_walk_step(struct status_walk *walk, uint64_t changes)
{
    uint64_t data = status_seek_data(walk->file, walk->at);

    if (data > walk->at) {
        status_put_hole(walk, data);
        return;
    }
    status_put(walk, status_seek_hole(walk->file, walk->at, changes),
               BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED);
}

#else

static void status_walk_step(struct status_walk *walk, uint64_t changes)
{
    (void)changes;
    status_put(walk, walk->end, BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED);
}

#endif

int blkrepl__file_status(struct file *file, const blkrepl_io *io, bool known_only)
{
    struct status_walk walk = {.file = file,
                               .at = io->offset,
                               .end = io->offset + io->bytes,
                               .extents = io->extents,
                               .most = io->extents_max};

    while (walk.at < walk.end && walk.used < walk.most) {
        uint64_t changes;
        uint64_t seen = status_recall(file, walk.at, &changes);

        if (seen > walk.at) {
            status_put(&walk, seen, BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED);
        } else if (known_only) {
            break;
        } else {
            status_walk_step(&walk, changes);
        }
    }
    if (walk.used < walk.most) {
        walk.extents[walk.used] = (blkrepl_extent){.bytes = 0};
    }
    return known_only && walk.used == 0 && io->bytes > 0 ? FILE_WOULD_BLOCK : 0;
}
