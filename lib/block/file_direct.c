/* SPDX-License-Identifier: MIT */
/* file_direct.c - what a file wants kept to that is open past the page cache.
 *
 * Kernels from 6.1 on tell it by statx(2).  The struct is laid out here anew,
 * since the headers of the build may be older than the kernel of the run. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include "block/file_direct.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "base/checked.h"

/* A sector is the least that is ever moved, and also what an iovec must not be
 * a part of: a device splits what has too many pieces, but not within one. */
#define DIRECT_ALIGNMENT_MIN 512u

struct direct_limits {
    uint32_t request;
    uint32_t memory;
};

/* ---- Asking ---------------------------------------------------------------------- */

#if defined(__linux__) && defined(SYS_statx)

#define DIRECT_STATX_DIOALIGN 0x2000u
#define DIRECT_AT_EMPTY_PATH 0x1000

/* The kernel's struct statx, of which only this is of interest. */
struct direct_statx {
    uint32_t mask;
    uint32_t before[37];
    uint32_t memory_alignment;
    uint32_t request_alignment;
    uint32_t behind[24];
};

_Static_assert(sizeof(struct direct_statx) == 256, "struct statx");
_Static_assert(offsetof(struct direct_statx, memory_alignment) == 152, "stx_dio_mem_align");

/* Returns: 0; -ENOTSUP the file cannot; -ENOSYS it is not told. */
static int direct_ask(const struct file *file, struct direct_limits *limits)
{
    struct direct_statx st = {.mask = 0};

    if (syscall(SYS_statx, file->fd, "", DIRECT_AT_EMPTY_PATH, DIRECT_STATX_DIOALIGN, &st) != 0 ||
        (st.mask & DIRECT_STATX_DIOALIGN) == 0) {
        return -ENOSYS;
    }
    limits->request = st.request_alignment;
    limits->memory = st.memory_alignment;
    return st.request_alignment != 0 && st.memory_alignment != 0 ? 0 : -ENOTSUP;
}

#else

static int direct_ask(const struct file *file, struct direct_limits *limits)
{
    (void)file;
    (void)limits;
    return -ENOSYS;
}

#endif

/* ---- Trying ---------------------------------------------------------------------- */

/* Where there is data to try reading, and from which alignment on.  Holes and
 * what lies behind the end are often read without a look at the alignment, so
 * that they say nothing about less than the default. */
static uint32_t direct_try_from(const struct file *file, uint64_t *at)
{
    *at = 0;
#ifdef SEEK_DATA
    off_t data = lseek(file->fd, 0, SEEK_DATA);

    if (data >= 0) {
        *at = (uint64_t)data;
        return DIRECT_ALIGNMENT_MIN;
    }
#else
    (void)file;
#endif
    return FILE_ALIGNMENT_DEFAULT;
}

/* Whether a read of this alignment is let through, whatever becomes of it. */
static bool direct_try(const struct file *file, void *buffer, uint64_t at, uint32_t alignment)
{
    ssize_t moved;

    do {
        moved = pread(file->fd, buffer, alignment, (off_t)align_down(at, alignment));
    } while (moved < 0 && errno == EINTR);
    return moved >= 0 || errno != EINVAL;
}

static int direct_probe(const struct file *file, const struct alloc *alloc,
                        struct direct_limits *limits)
{
    uint64_t at;
    uint32_t alignment = direct_try_from(file, &at);
    void *buffer =
        blkrepl__buffer_alloc(alloc, FILE_MEMORY_ALIGNMENT_MAX, FILE_REQUEST_ALIGNMENT_MAX);

    if (buffer == NULL) {
        return -ENOMEM;
    }
    while (alignment <= FILE_REQUEST_ALIGNMENT_MAX && !direct_try(file, buffer, at, alignment)) {
        alignment *= 2;
    }
    blkrepl__buffer_free(alloc, buffer, FILE_REQUEST_ALIGNMENT_MAX);
    limits->request = alignment;
    limits->memory = (uint32_t)min_u64(alignment, FILE_MEMORY_ALIGNMENT_MAX);
    return 0;
}

/* ---- The answer ------------------------------------------------------------------ */

/* A device can have sectors beyond the default, which are never split. */
static void direct_of_sectors(const struct file *file, struct direct_limits *limits)
{
    limits->request = file->sector_bytes;
    limits->memory = (uint32_t)min_u64(file->sector_bytes, FILE_MEMORY_ALIGNMENT_MAX);
}

static int direct_accept(struct file *file, struct direct_limits limits)
{
    uint64_t memory = max_u64(limits.memory, DIRECT_ALIGNMENT_MIN);
    uint64_t request = max_u64(limits.request, memory);

    if (file->device) {
        request = max_u64(request, file->sector_bytes);
    }
    if (!is_power_of_two(request) || request > FILE_REQUEST_ALIGNMENT_MAX ||
        !is_power_of_two(memory) || memory > FILE_MEMORY_ALIGNMENT_MAX) {
        return -ENOTSUP;
    }
    file->request_alignment = (uint32_t)request;
    file->memory_alignment = (uint32_t)memory;
    file->tail = align_down(file->bytes, request);
    return 0;
}

int blkrepl__file_direct_learn(struct file *file, const struct alloc *alloc)
{
    struct direct_limits limits;
    int rc = direct_ask(file, &limits);

    if (rc == -ENOSYS && file->device) {
        direct_of_sectors(file, &limits);
        rc = 0;
    } else if (rc == -ENOSYS) {
        rc = direct_probe(file, alloc, &limits);
    }
    return rc < 0 ? rc : direct_accept(file, limits);
}
