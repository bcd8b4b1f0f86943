/* SPDX-License-Identifier: MIT */
/* backend_memory.c - the bundled backend that keeps a disk in memory.
 *
 * The pages are in a hash table by their number, with a chain per bucket.  It
 * doubles when it holds more pages than buckets; if there is no memory for
 * that, the chains just get longer. */
#include "block/backend_memory.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/checked.h"
#include "block/iov.h"

#define MEMORY_PAGE_SHIFT 16
#define MEMORY_PAGE_BYTES (UINT64_C(1) << MEMORY_PAGE_SHIFT)
#define MEMORY_BUCKET_BITS_MIN 4
#define MEMORY_QUEUE_DEPTH 64
/* How many pages in a row are looked up one by one before the whole table is
 * searched for the next one. */
#define MEMORY_PROBES 64

struct memory_page {
    struct memory_page *next; /* of its bucket */
    uint64_t number;
    unsigned char data[MEMORY_PAGE_BYTES];
};

struct memory_backend {
    /* Set at creation. */
    blkrepl_context *ctx;
    const struct alloc *alloc;
    int (*complete)(blkrepl_context *ctx, uint64_t id, int result);
    uint64_t bytes;
    /* Changed under the lock. */
    pthread_mutex_t lock;
    struct memory_page **buckets;
    unsigned bucket_bits;
    uint64_t page_count;
};

/* ---- The table ---------------------------------------------------------------------- */

/* Fibonacci hashing: the high bits of a product with 2^64 / golden ratio. */
static uint64_t memory_hash(uint64_t number, unsigned bits)
{
    return number * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits);
}

/* Where the pointer to a page is, or would be. */
static struct memory_page **memory_slot(struct memory_backend *mb, uint64_t number)
{
    struct memory_page **slot = &mb->buckets[memory_hash(number, mb->bucket_bits)];

    while (*slot != NULL && (*slot)->number != number) {
        slot = &(*slot)->next;
    }
    return slot;
}

static struct memory_page *memory_find(struct memory_backend *mb, uint64_t number)
{
    return *memory_slot(mb, number);
}

static void memory_grow(struct memory_backend *mb)
{
    uint64_t old_count = UINT64_C(1) << mb->bucket_bits;
    struct memory_page **old = mb->buckets;
    struct memory_page **buckets = blkrepl__zalloc_array(mb->alloc, old_count * 2, sizeof *buckets);

    if (buckets == NULL) {
        return;
    }
    mb->buckets = buckets;
    mb->bucket_bits++;
    for (uint64_t i = 0; i < old_count; i++) {
        while (old[i] != NULL) {
            struct memory_page *page = old[i];
            struct memory_page **slot = &buckets[memory_hash(page->number, mb->bucket_bits)];

            old[i] = page->next;
            page->next = *slot;
            *slot = page;
        }
    }
    blkrepl__free(mb->alloc, old);
}

/* A page for writing; NULL when there is no memory. */
static struct memory_page *memory_get(struct memory_backend *mb, uint64_t number)
{
    struct memory_page **slot = memory_slot(mb, number);
    struct memory_page *page = *slot;

    if (page != NULL) {
        return page;
    }
    page = blkrepl__zalloc(mb->alloc, sizeof *page);
    if (page == NULL) {
        return NULL;
    }
    page->number = number;
    *slot = page;
    if (++mb->page_count > UINT64_C(1) << mb->bucket_bits) {
        memory_grow(mb);
    }
    return page;
}

static void memory_drop(struct memory_backend *mb, struct memory_page **slot)
{
    struct memory_page *page = *slot;

    *slot = page->next;
    mb->page_count--;
    blkrepl__free(mb->alloc, page);
}

/* Drop the pages first..end-1, by number or, of a long range, by looking at all
 * pages there are. */
static void memory_drop_range(struct memory_backend *mb, uint64_t first, uint64_t end)
{
    struct memory_page **slot;

    if (end - first <= mb->page_count) {
        for (; first < end; first++) {
            slot = memory_slot(mb, first);
            if (*slot != NULL) {
                memory_drop(mb, slot);
            }
        }
        return;
    }
    for (uint64_t i = 0; i < UINT64_C(1) << mb->bucket_bits; i++) {
        slot = &mb->buckets[i];
        while (*slot != NULL) {
            if ((*slot)->number >= first && (*slot)->number < end) {
                memory_drop(mb, slot);
            } else {
                slot = &(*slot)->next;
            }
        }
    }
}

/* The first page there is in first..end-1; `end` if there is none. */
static uint64_t memory_next(struct memory_backend *mb, uint64_t first, uint64_t end)
{
    uint64_t next = end;
    uint64_t probes_end = min_u64(end, first + MEMORY_PROBES);

    for (; first < probes_end; first++) {
        if (memory_find(mb, first) != NULL) {
            return first;
        }
    }
    if (first == end || mb->page_count == 0) {
        return end;
    }
    for (uint64_t i = 0; i < UINT64_C(1) << mb->bucket_bits; i++) {
        for (struct memory_page *page = mb->buckets[i]; page != NULL; page = page->next) {
            if (page->number >= first && page->number < next) {
                next = page->number;
            }
        }
    }
    return next;
}

/* ---- Requests ------------------------------------------------------------------------ */

/* The address is what all memory backends have in common. */
static char memory_copy_domain;
/* Never written; not const, so that it takes no room in the file. */
static unsigned char memory_zeroes[MEMORY_PAGE_BYTES];

/* What of start..end-1 lies in the page of `start`. */
static uint64_t memory_piece(uint64_t start, uint64_t end)
{
    return min_u64(end - start, MEMORY_PAGE_BYTES - start % MEMORY_PAGE_BYTES);
}

static int memory_read(struct memory_backend *mb, const blkrepl_io *io)
{
    struct iov_cursor to = {.iov = io->iov, .count = io->iov_count};
    uint64_t end = io->offset + io->bytes;
    uint64_t piece;

    for (uint64_t at = io->offset; at < end; at += piece) {
        const struct memory_page *page = memory_find(mb, at >> MEMORY_PAGE_SHIFT);
        const unsigned char *data = page != NULL ? page->data : memory_zeroes;

        piece = memory_piece(at, end);
        blkrepl__iov_scatter(&to, data + at % MEMORY_PAGE_BYTES, piece);
    }
    return 0;
}

static int memory_write(struct memory_backend *mb, const blkrepl_io *io)
{
    struct iov_cursor from = {.iov = io->iov, .count = io->iov_count};
    uint64_t end = io->offset + io->bytes;
    uint64_t piece;

    for (uint64_t at = io->offset; at < end; at += piece) {
        struct memory_page *page = memory_get(mb, at >> MEMORY_PAGE_SHIFT);

        if (page == NULL) {
            return -ENOMEM;
        }
        piece = memory_piece(at, end);
        blkrepl__iov_gather(&from, page->data + at % MEMORY_PAGE_BYTES, piece);
    }
    return 0;
}

static void memory_clear(struct memory_backend *mb, uint64_t start, uint64_t end)
{
    struct memory_page *page = memory_find(mb, start >> MEMORY_PAGE_SHIFT);

    if (page != NULL) {
        memset(page->data + start % MEMORY_PAGE_BYTES, 0, (size_t)(end - start));
    }
}

/* ZEROES and DISCARD: whole pages go, the page at either end is cleared. */
static int memory_zero(struct memory_backend *mb, const blkrepl_io *io)
{
    uint64_t end = io->offset + io->bytes;
    uint64_t first = align_up(io->offset, MEMORY_PAGE_BYTES);
    /* The last page of the disk is whole when it ends with the disk. */
    uint64_t last =
        end == mb->bytes ? align_up(end, MEMORY_PAGE_BYTES) : align_down(end, MEMORY_PAGE_BYTES);

    if (first > last) {
        memory_clear(mb, io->offset, end);
        return 0;
    }
    if (io->offset < first) {
        memory_clear(mb, io->offset, min_u64(first, end));
    }
    memory_drop_range(mb, first >> MEMORY_PAGE_SHIFT, last >> MEMORY_PAGE_SHIFT);
    if (last < end) {
        memory_clear(mb, last, end);
    }
    return 0;
}

/* The end of the run that begins with page `first`, and what it is. */
static uint64_t memory_run(struct memory_backend *mb, uint64_t first, uint64_t end, uint32_t *flags)
{
    uint64_t run = memory_next(mb, first, end);

    if (run > first) {
        *flags = BLKREPL_EXTENT_ZERO;
        return run;
    }
    do {
        run++;
    } while (run < end && memory_find(mb, run) != NULL);
    *flags = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
    return run;
}

static int memory_status(struct memory_backend *mb, const blkrepl_io *io)
{
    uint64_t at = io->offset;
    uint64_t end = io->offset + io->bytes;
    uint64_t end_page = align_up(end, MEMORY_PAGE_BYTES) >> MEMORY_PAGE_SHIFT;
    uint32_t used = 0;

    while (at < end && used < io->extents_max) {
        blkrepl_extent *extent = &io->extents[used++];
        uint64_t run;

        *extent = (blkrepl_extent){.bytes = 0};
        run = memory_run(mb, at >> MEMORY_PAGE_SHIFT, end_page, &extent->flags);
        run = min_u64(run << MEMORY_PAGE_SHIFT, end);
        extent->bytes = run - at;
        at = run;
    }
    if (used < io->extents_max) {
        io->extents[used] = (blkrepl_extent){.bytes = 0};
    }
    return 0;
}

/* What of start..end-1 lies in one page of either disk. */
static uint64_t memory_shared_piece(uint64_t from, uint64_t to, uint64_t bytes)
{
    return min_u64(memory_piece(from, from + bytes), memory_piece(to, to + bytes));
}

static int memory_copy(struct memory_backend *mb, const blkrepl_io *io)
{
    struct memory_backend *from = io->source_user;
    uint64_t piece;

    for (uint64_t done = 0; done < io->bytes; done += piece) {
        uint64_t in = io->source_offset + done;
        uint64_t out = io->offset + done;
        const struct memory_page *page = memory_find(from, in >> MEMORY_PAGE_SHIFT);
        struct memory_page *to;

        piece = memory_shared_piece(in, out, io->bytes - done);
        if (page == NULL) {
            memory_clear(mb, out, out + piece);
            continue;
        }
        to = memory_get(mb, out >> MEMORY_PAGE_SHIFT);
        if (to == NULL) {
            return -ENOMEM;
        }
        memcpy(to->data + out % MEMORY_PAGE_BYTES, page->data + in % MEMORY_PAGE_BYTES,
               (size_t)piece);
    }
    return 0;
}

static int memory_do(struct memory_backend *mb, const blkrepl_io *io)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ: return memory_read(mb, io);
    case BLKREPL_OP_WRITE: return memory_write(mb, io);
    case BLKREPL_OP_ZEROES:
    case BLKREPL_OP_DISCARD: return memory_zero(mb, io);
    case BLKREPL_OP_FLUSH: return 0;
    case BLKREPL_OP_STATUS: return memory_status(mb, io);
    case BLKREPL_OP_COPY_FROM: return memory_copy(mb, io);
    default: return -ENOTSUP;
    }
}

/* The other disk of a COPY_FROM; NULL: none. */
static struct memory_backend *memory_other(const blkrepl_io *io)
{
    return io->opcode == BLKREPL_OP_COPY_FROM ? io->source_user : NULL;
}

/* One disk or two are locked, two in the order of their addresses. */
static int memory_serve(struct memory_backend *mb, const blkrepl_io *io)
{
    struct memory_backend *other = memory_other(io);
    bool other_first = other != NULL && (uintptr_t)other < (uintptr_t)mb;
    struct memory_backend *first = other_first ? other : mb;
    struct memory_backend *second = other_first ? mb : other;
    int rc;

    pthread_mutex_lock(&first->lock);
    if (second != NULL) {
        pthread_mutex_lock(&second->lock);
    }
    rc = memory_do(mb, io);
    if (second != NULL) {
        pthread_mutex_unlock(&second->lock);
    }
    pthread_mutex_unlock(&first->lock);
    return rc;
}

/* ---- The backend's functions ---------------------------------------------------------- */

static int memory_get_info(void *user, blkrepl_backend_info *info)
{
    const struct memory_backend *mb = user;

    info->flags = BLKREPL_BACKEND_FUA;
    info->bytes = mb->bytes;
    info->transfer_bytes_max = 0;
    info->zeroes_bytes_max = 0;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE | 1u << BLKREPL_OP_ZEROES |
                    1u << BLKREPL_OP_DISCARD | 1u << BLKREPL_OP_FLUSH | 1u << BLKREPL_OP_STATUS |
                    1u << BLKREPL_OP_COPY_FROM;
    info->queue_depth = MEMORY_QUEUE_DEPTH;
    info->request_alignment = 1;
    info->memory_alignment = 1;
    info->iov_count_max = 1024;
    info->cluster_bytes = 0;
    info->copy_domain = &memory_copy_domain;
    return 0;
}

static void memory_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct memory_backend *mb = user;

    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        (void)mb->complete(mb->ctx, ios[i]->id, memory_serve(mb, ios[i]));
    }
}

static void memory_close(void *user)
{
    struct memory_backend *mb = user;

    memory_drop_range(mb, 0, UINT64_MAX);
    blkrepl__free(mb->alloc, mb->buckets);
    pthread_mutex_destroy(&mb->lock);
    blkrepl__free(mb->alloc, mb);
}

const blkrepl_backend_ops blkrepl__memory_backend_ops = {
    .struct_size = sizeof(blkrepl_backend_ops),
    .get_info = memory_get_info,
    .submit = memory_submit,
    .close = memory_close,
};

int blkrepl__memory_backend_create(blkrepl_context *ctx, const struct alloc *alloc, uint64_t bytes,
                                   struct memory_backend **out)
{
    struct memory_backend *mb;

    if (bytes > BLKREPL_IMAGE_BYTES_MAX) {
        return -EINVAL;
    }
    mb = blkrepl__zalloc(alloc, sizeof *mb);
    if (mb == NULL) {
        return -ENOMEM;
    }
    mb->ctx = ctx;
    mb->alloc = alloc;
    mb->complete = blkrepl_io_complete;
    mb->bytes = bytes;
    mb->bucket_bits = MEMORY_BUCKET_BITS_MIN;
    mb->buckets = blkrepl__zalloc_array(alloc, UINT64_C(1) << mb->bucket_bits, sizeof *mb->buckets);
    if (mb->buckets == NULL || pthread_mutex_init(&mb->lock, NULL) != 0) {
        blkrepl__free(alloc, mb->buckets);
        blkrepl__free(alloc, mb);
        return -ENOMEM;
    }
    *out = mb;
    return 0;
}

void blkrepl__memory_backend_discard(struct memory_backend *mb)
{
    if (mb != NULL) {
        memory_close(mb);
    }
}

void blkrepl__memory_backend_set_complete(struct memory_backend *mb,
                                          int (*complete)(blkrepl_context *ctx, uint64_t id,
                                                          int result))
{
    mb->complete = complete;
}
