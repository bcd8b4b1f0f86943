/* SPDX-License-Identifier: MIT */
/* disk.c - a backend that checks the promises of backend.h.
 *
 * Data move between memory and medium when a request is completed; at submit
 * the memory is only touched, so that a sanitizer sees what is not there. */
#include "disk.h"

#include <stdlib.h>

uint8_t *disk_at(struct disk *disk, uint64_t offset)
{
    return &disk->medium[offset % disk->window];
}

uint64_t disk_alignment(const struct disk *disk)
{
    uint64_t request = disk->info.request_alignment;
    uint64_t memory = disk->info.memory_alignment;
    uint64_t larger = request > memory ? request : memory;

    return larger > 0 ? larger : 1;
}

static bool disk_has(const struct disk *disk, uint32_t opcode)
{
    return (disk->info.opcodes & OPCODE_BIT(opcode)) != 0;
}

/* ---- Checks of a submit ------------------------------------------------------ */

static void check_flags(const struct disk *disk, const blkrepl_io *io)
{
    uint32_t allowed = BLKREPL_IO_BACKGROUND;

    if (io->opcode == BLKREPL_OP_WRITE || io->opcode == BLKREPL_OP_ZEROES) {
        allowed |= (disk->info.flags & BLKREPL_BACKEND_FUA) != 0 ? BLKREPL_IO_FUA : 0;
    }
    if (io->opcode == BLKREPL_OP_WRITE) {
        allowed |= (disk->info.flags & BLKREPL_BACKEND_COMPRESS) != 0 ? BLKREPL_IO_COMPRESS : 0;
    }
    if (io->opcode == BLKREPL_OP_ZEROES) {
        allowed |= BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK;
    }
    EXPECT((io->flags & ~allowed) == 0, "opcode %u: flags within 0x%x, got 0x%x",
           (unsigned)io->opcode, (unsigned)allowed, (unsigned)io->flags);
}

static void check_range(const struct disk *disk, const blkrepl_io *io)
{
    uint64_t alignment = disk_alignment(disk);
    uint64_t end = io->offset + io->bytes;
    uint64_t limit = disk->info.zeroes_bytes_max;

    if (io->opcode == BLKREPL_OP_FLUSH) {
        return;
    }
    EXPECT(io->bytes > 0 && end > io->offset && end <= disk->info.bytes,
           "opcode %u: a range inside %llu bytes, got %llu+%llu", (unsigned)io->opcode,
           (ull)disk->info.bytes, (ull)io->offset, (ull)io->bytes);
    EXPECT(io->offset % alignment == 0 && (end % alignment == 0 || end == disk->info.bytes),
           "opcode %u: a multiple of %llu, got %llu+%llu", (unsigned)io->opcode, (ull)alignment,
           (ull)io->offset, (ull)io->bytes);
    if (io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_WRITE) {
        limit = disk->info.transfer_bytes_max;
    } else if (io->opcode == BLKREPL_OP_STATUS) {
        limit = 0;
    }
    EXPECT(limit == 0 || io->bytes <= limit, "opcode %u: at most %llu bytes, got %llu",
           (unsigned)io->opcode, (ull)limit, (ull)io->bytes);
}

/* One cluster, or the last one. */
static void check_compressed(const struct disk *disk, const blkrepl_io *io)
{
    uint64_t cluster = disk->info.cluster_bytes;

    EXPECT((io->flags & BLKREPL_IO_COMPRESS) == 0 || cluster == 0 ||
               (io->offset % cluster == 0 &&
                (io->bytes == cluster ||
                 (io->bytes < cluster && io->offset + io->bytes == disk->info.bytes))),
           "one cluster of %llu to be compressed, got %llu+%llu", (ull)cluster, (ull)io->offset,
           (ull)io->bytes);
}

static void touch(const blkrepl_iovec *iov, bool writing)
{
    volatile unsigned char *bytes = iov->base;

    if (writing && iov->len > 0) {
        bytes[0] = (unsigned char)bytes[0];
        bytes[iov->len - 1] = (unsigned char)bytes[iov->len - 1];
    } else if (iov->len > 0) {
        (void)bytes[0];
        (void)bytes[iov->len - 1];
    }
}

static void check_iov(const struct disk *disk, const blkrepl_io *io)
{
    uint32_t most = disk->info.iov_count_max != 0 ? disk->info.iov_count_max : 1024;
    size_t memory = disk->info.memory_alignment != 0 ? disk->info.memory_alignment : 1;
    bool at_end = io->offset + io->bytes == disk->info.bytes;
    uint64_t total = 0;

    if (io->opcode != BLKREPL_OP_READ && io->opcode != BLKREPL_OP_WRITE) {
        EXPECT(io->iov_count == 0, "opcode %u: no iovecs", (unsigned)io->opcode);
        return;
    }
    EXPECT(io->iov_count <= most, "at most %u iovecs, got %u", (unsigned)most,
           (unsigned)io->iov_count);
    for (uint32_t i = 0; i < io->iov_count; i++) {
        const blkrepl_iovec *iov = &io->iov[i];

        EXPECT((uintptr_t)iov->base % memory == 0 || iov->len == 0,
               "iovec %u at a multiple of %zu, got %p", (unsigned)i, memory, iov->base);
        EXPECT(iov->len % memory == 0 || (at_end && total + iov->len == io->bytes),
               "iovec %u of a multiple of %zu, got %zu", (unsigned)i, memory, iov->len);
        touch(iov, io->opcode == BLKREPL_OP_READ);
        total += iov->len;
    }
    EXPECT(total == io->bytes, "iovecs of %llu bytes, got %llu", (ull)io->bytes, (ull)total);
}

static void check_in_flight(const struct disk *disk, const blkrepl_io *io)
{
    uint32_t depth = disk->info.queue_depth != 0 ? disk->info.queue_depth : 64;

    EXPECT(disk->in_flight < depth, "at most %u requests in flight", (unsigned)depth);
    EXPECT(disk->in_flight < DISK_QUEUE_MAX, "room in the harness for a request");
    EXPECT(io->id != 0 && io->id != disk->last_id, "an id that is not 0 and fresh");
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        const struct disk_request *other = &disk->queue[i];

        EXPECT(other->id != io->id, "id %llu not twice in flight", (ull)io->id);
        EXPECT(!opcode_writes(io->opcode) || !opcode_writes(other->opcode) ||
                   !ranges_overlap(other->offset, other->bytes, io->offset, io->bytes),
               "no overlapping writes in flight, got %llu+%llu and %llu+%llu", (ull)other->offset,
               (ull)other->bytes, (ull)io->offset, (ull)io->bytes);
    }
}

static void watch_background(struct disk *disk, const blkrepl_io *io)
{
    uint32_t reads = io->opcode == BLKREPL_OP_READ;

    if ((io->flags & BLKREPL_IO_BACKGROUND) == 0 ||
        (io->opcode != BLKREPL_OP_READ && io->opcode != BLKREPL_OP_WRITE)) {
        return;
    }
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        reads += disk->queue[i].opcode == BLKREPL_OP_READ &&
                 (disk->queue[i].flags & BLKREPL_IO_BACKGROUND) != 0;
    }
    disk->background_reads_most =
        reads > disk->background_reads_most ? reads : disk->background_reads_most;
    disk->background_bytes_most =
        io->bytes > disk->background_bytes_most ? io->bytes : disk->background_bytes_most;
}

static void disk_take(struct disk *disk, blkrepl_io *io)
{
    fuzz_note("  submit opcode %u %llu+%llu id %llu flags 0x%x", (unsigned)io->opcode,
              (ull)io->offset, (ull)io->bytes, (ull)io->id, (unsigned)io->flags);
    EXPECT(io->struct_size >= sizeof *io && io->lane == 0, "an io of ours, on lane 0");
    EXPECT(io->host[0] == NULL && io->host[1] == NULL && io->host[2] == NULL && io->host[3] == NULL,
           "host[] to be 0 at submit");
    EXPECT(io->opcode >= BLKREPL_OP_READ && io->opcode <= BLKREPL_OP_STATUS &&
               disk_has(disk, io->opcode),
           "a declared opcode, got %u", (unsigned)io->opcode);
    EXPECT(io->opcode != BLKREPL_OP_STATUS || (io->extents != NULL && io->extents_max > 0),
           "room for extents");
    EXPECT(!opcode_writes(io->opcode) || (disk->info.flags & BLKREPL_BACKEND_READ_ONLY) == 0,
           "no write to a read-only disk");
    check_flags(disk, io);
    check_range(disk, io);
    check_compressed(disk, io);
    check_iov(disk, io);
    check_in_flight(disk, io);
    watch_background(disk, io);
    io->host[0] = disk;
    io->host[3] = io;
    disk->last_id = io->id;
    disk->queue[disk->in_flight++] = (struct disk_request){.io = io,
                                                           .id = io->id,
                                                           .offset = io->offset,
                                                           .bytes = io->bytes,
                                                           .seq = ++disk->seq,
                                                           .opcode = io->opcode,
                                                           .flags = io->flags};
    if (disk->in_flight > disk->in_flight_most) {
        disk->in_flight_most = disk->in_flight;
    }
    if (disk->on_take != NULL) {
        disk->on_take(disk, io);
    }
}

/* ---- Moving bytes ------------------------------------------------------------ */

static void copy_iov(struct disk *disk, const blkrepl_io *io, uint64_t bytes)
{
    uint64_t at = io->offset;
    uint64_t end = io->offset + bytes;

    for (uint32_t i = 0; i < io->iov_count && at < end; i++) {
        uint8_t *memory = io->iov[i].base;
        uint64_t left = io->iov[i].len < end - at ? io->iov[i].len : end - at;

        while (left > 0) {
            uint64_t room = disk->window - at % disk->window;
            size_t part = (size_t)(left < room ? left : room);

            if (io->opcode == BLKREPL_OP_READ) {
                memcpy(memory, disk_at(disk, at), part);
            } else {
                memcpy(disk_at(disk, at), memory, part);
            }
            memory += part;
            at += part;
            left -= part;
        }
    }
}

static void disk_fill(struct disk *disk, uint64_t offset, uint64_t bytes, int value)
{
    uint64_t end = offset + (bytes < disk->window ? bytes : disk->window);

    while (offset < end) {
        uint64_t room = disk->window - offset % disk->window;
        uint64_t part = end - offset < room ? end - offset : room;

        memset(disk_at(disk, offset), value, (size_t)part);
        offset += part;
    }
}

static bool disk_is_zero(struct disk *disk, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + (bytes < disk->window ? bytes : disk->window);

    while (offset < end) {
        if (*disk_at(disk, offset++) != 0) {
            return false;
        }
    }
    return true;
}

static void disk_status(struct disk *disk, const blkrepl_io *io)
{
    uint64_t at = io->offset;
    uint64_t end = io->offset + io->bytes;
    uint64_t unit = disk->status_unit > 0 ? disk->status_unit : 512;
    uint32_t used = 0;

    while (at < end && used < io->extents_max) {
        uint64_t run = unit - at % unit < end - at ? unit - at % unit : end - at;
        bool zero = disk_is_zero(disk, at, run);

        io->extents[used++] = (blkrepl_extent){
            .bytes = run,
            .flags = zero ? BLKREPL_EXTENT_ZERO : BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED};
        at += run;
    }
}

/* What of the request reaches the medium, or the memory. */
static void disk_land(struct disk *disk, const blkrepl_io *io, uint64_t bytes)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE: copy_iov(disk, io, bytes); break;
    case BLKREPL_OP_ZEROES: disk_fill(disk, io->offset, bytes, 0); break;
    case BLKREPL_OP_DISCARD:
        if (disk->discard != DISK_DISCARD_NOTHING) {
            disk_fill(disk, io->offset, bytes,
                      disk->discard == DISK_DISCARD_ZEROES ? 0 : DISK_GARBAGE);
        }
        break;
    default: break;
    }
}

/* ---- Completing -------------------------------------------------------------- */

static void remember_error(struct disk *disk, const struct disk_request *request, int code)
{
    if (disk->error_count == DISK_ERRORS_MAX) {
        disk->errors_lost = true;
        return;
    }
    disk->errors[disk->error_count++] = (struct disk_error){.code = code,
                                                            .opcode = request->opcode,
                                                            .offset = request->offset,
                                                            .bytes = request->bytes,
                                                            .seq = disk->seq};
}

static void add_volatile(struct disk *disk, uint64_t offset, uint64_t end, uint64_t seq)
{
    if (offset >= end) {
        return;
    }
    if (disk->write_count == DISK_WRITES_MAX) {
        disk->writes_lost = true;
        return;
    }
    disk->writes[disk->write_count++] =
        (struct disk_write){.offset = offset, .bytes = end - offset, .seq = seq};
}

/* What lies in the range is durable, or overwritten. */
static void cut_volatile(struct disk *disk, uint64_t offset, uint64_t end)
{
    struct disk_write writes[DISK_WRITES_MAX];
    uint32_t count = disk->write_count;

    memcpy(writes, disk->writes, count * sizeof writes[0]);
    disk->write_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t from = writes[i].offset;
        uint64_t to = from + writes[i].bytes;

        if (!ranges_overlap(from, to - from, offset, end - offset)) {
            add_volatile(disk, from, to, writes[i].seq);
            continue;
        }
        add_volatile(disk, from, offset, writes[i].seq);
        add_volatile(disk, end, to, writes[i].seq);
    }
}

/* A flush makes durable what was completed before it was submitted. */
static void flush_volatile(struct disk *disk, uint64_t seq)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < disk->write_count; i++) {
        if (disk->writes[i].seq > seq) {
            disk->writes[kept++] = disk->writes[i];
        }
    }
    disk->write_count = kept;
}

static void remember_durable(struct disk *disk, const struct disk_request *request)
{
    uint64_t end = request->offset + request->bytes;

    if (request->opcode == BLKREPL_OP_FLUSH) {
        flush_volatile(disk, request->seq);
    } else if (request->opcode == BLKREPL_OP_WRITE || request->opcode == BLKREPL_OP_ZEROES) {
        cut_volatile(disk, request->offset, end);
        if ((request->flags & BLKREPL_IO_FUA) == 0) {
            add_volatile(disk, request->offset, end, disk->seq);
        }
    }
}

void disk_complete(struct disk *disk, uint32_t at, int result, uint64_t landed)
{
    struct disk_request request = disk->queue[at];
    blkrepl_io *io = request.io;
    int rc;

    EXPECT(io->id == request.id && io->offset == request.offset && io->bytes == request.bytes &&
               io->opcode == request.opcode && io->host[0] == disk && io->host[3] == io,
           "a request that stays as it is until it is completed");
    disk->seq++;
    disk_land(disk, io, result == 0 ? request.bytes : landed);
    if (result == 0 && io->opcode == BLKREPL_OP_STATUS) {
        disk_status(disk, io);
    }
    if (result < 0) {
        remember_error(disk, &request, result);
    } else {
        remember_durable(disk, &request);
    }
    if (disk->on_landed != NULL) {
        disk->on_landed(disk, &request, result);
    }
    disk->queue[at] = disk->queue[--disk->in_flight];
    fuzz_note("  complete id %llu: %d", (ull)request.id, result);
    rc = blkrepl_io_complete(disk->ctx, request.id, result);
    EXPECT(rc == 0, "io_complete of a request in flight: 0, got %d", rc);
}

uint32_t disk_complete_all(struct disk *disk)
{
    uint32_t count = 0;

    while (disk->in_flight > 0) {
        disk_complete(disk, 0, 0, 0);
        count++;
    }
    return count;
}

void disk_complete_inline(struct disk *disk)
{
    (void)disk_complete_all(disk);
}

/* ---- The backend's functions ------------------------------------------------- */

static int disk_get_info(void *user, blkrepl_backend_info *info)
{
    struct disk *disk = user;
    blkrepl_backend_info zero = {.struct_size = info->struct_size};

    EXPECT(info->struct_size >= sizeof *info && memcmp(info, &zero, sizeof zero) == 0,
           "get_info: a struct of our size that is zero");
    EXPECT(disk->get_infos++ == 0 && disk->closes == 0, "get_info: to come first and once");
    disk->info.struct_size = info->struct_size;
    *info = disk->info;
    return disk->get_info_result;
}

static void disk_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    EXPECT(disk->get_infos == 1 && disk->closes == 0, "submit: between get_info and close");
    EXPECT(lane == 0 && count > 0, "submit: lane 0 and requests, got lane %u, %u", (unsigned)lane,
           (unsigned)count);
    for (uint32_t i = 0; i < count; i++) {
        disk_take(disk, ios[i]);
    }
    if (disk->on_submit != NULL) {
        disk->on_submit(disk);
    }
}

static void disk_cancel(void *user, uint64_t id)
{
    struct disk *disk = user;

    EXPECT(disk->closes == 0, "cancel: before close");
    fuzz_note("  cancel id %llu", (ull)id);
    if (disk->on_cancel != NULL) {
        disk->on_cancel(disk, id);
    }
}

static void disk_close(void *user)
{
    struct disk *disk = user;

    EXPECT(disk->closes++ == 0, "close: to come once");
    EXPECT(disk->in_flight == 0, "close: with nothing in flight, got %u",
           (unsigned)disk->in_flight);
}

const blkrepl_backend_ops disk_ops = {.struct_size = sizeof disk_ops,
                                      .get_info = disk_get_info,
                                      .submit = disk_submit,
                                      .cancel = disk_cancel,
                                      .close = disk_close};

void disk_init(struct disk *disk, blkrepl_context *ctx, uint64_t bytes, uint64_t window)
{
    memset(disk, 0, offsetof(struct disk, medium));
    disk->ctx = ctx;
    disk->window = window;
    disk->info.bytes = bytes;
    disk->info.opcodes = 0x7e; /* READ .. STATUS */
    disk->on_submit = disk_complete_inline;
}
