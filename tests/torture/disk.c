/* SPDX-License-Identifier: MIT */
/* disk.c - a disk of the host: it checks what the library promises to backends,
 * and every request of it may be made to fail.
 *
 * What fails is nasty within the contract: a write has landed in part, a read
 * has left rubbish in the buffers, a status has left a lie. */
#include "api.h"

#define RUBBISH 0xee
#define DISCARDED 0xd1

/* By side, so that what a job tells of it can be checked: the code of media with
 * an even number (sources), and of the others (targets). */
static const int codes[][2] = {
    {-EIO, -ENOSPC},
    {-ENOTSUP, -ENOTSUP},
    {-ECANCELED, -ETIMEDOUT},
};

static uint8_t stores[MEDIA_MAX][MEDIUM_BYTES_MAX];

int disk_code(const struct disk *disk)
{
    return codes[fault_plan()->code % ARRAY_COUNT(codes)][disk->medium & 1];
}

void disk_init(struct disk *disk, struct world *world, int medium)
{
    *disk = (struct disk){.world = world, .medium = medium, .data = stores[medium]};
    disk->info.opcodes = OPS_ALL;
}

static uint64_t or_else(uint64_t value, uint64_t otherwise)
{
    return value ? value : otherwise;
}

static bool op_writes(uint32_t opcode)
{
    return opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES ||
           opcode == BLKREPL_OP_DISCARD || opcode == BLKREPL_OP_COPY_FROM;
}

static bool op_moves(uint32_t opcode)
{
    return opcode == BLKREPL_OP_READ || opcode == BLKREPL_OP_WRITE;
}

/* ---- What the library promises ---------------------------------------------------- */

static _Noreturn void disk_complain(const struct disk *d, const blkrepl_io *io, const char *what)
{
    torture_fail("medium %d, request of opcode %u at %llu+%llu, flags %u: %s", d->medium,
                 io->opcode, (unsigned long long)io->offset, (unsigned long long)io->bytes,
                 io->flags, what);
}

static void disk_check_range(const struct disk *d, const blkrepl_io *io)
{
    uint64_t align = or_else(d->info.request_alignment, 1);
    uint64_t size = d->info.bytes, end = io->offset + io->bytes;
    uint64_t most = UINT64_MAX;

    if (op_moves(io->opcode)) {
        most = or_else(d->info.transfer_bytes_max, most);
    } else if (io->opcode == BLKREPL_OP_COPY_FROM) {
        most = or_else(d->info.copy_bytes_max, most);
    } else if (op_writes(io->opcode)) {
        most = or_else(d->info.zeroes_bytes_max, most);
    }
    if (io->bytes == 0 || io->bytes > most || io->offset > size || io->bytes > size - io->offset) {
        disk_complain(d, io, "is empty, longer than the limit, or not inside the disk");
    }
    if (io->offset % align != 0 || (end % align != 0 && end != size)) {
        disk_complain(d, io, "is not aligned");
    }
}

static void disk_check_memory(const struct disk *d, const blkrepl_io *io)
{
    size_t align = (size_t)or_else(d->info.memory_alignment, 1);
    uint64_t sum = 0;

    for (uint32_t i = 0; i < io->iov_count; i++) {
        const blkrepl_iovec *v = &io->iov[i];
        bool tail = i + 1 == io->iov_count && io->offset + io->bytes == d->info.bytes;

        sum += v->len;
        if ((uintptr_t)v->base % align != 0 || (v->len % align != 0 && !tail)) {
            disk_complain(d, io, "has an iovec that is not aligned");
        }
    }
    if (sum != io->bytes || io->iov_count > or_else(d->info.iov_count_max, 1024)) {
        disk_complain(d, io, "has too many iovecs, or they do not add up");
    }
}

static void disk_check_flags(const struct disk *d, const blkrepl_io *io)
{
    uint32_t known = BLKREPL_IO_BACKGROUND;

    if ((io->opcode == BLKREPL_OP_WRITE || io->opcode == BLKREPL_OP_ZEROES) &&
        (d->info.flags & BLKREPL_BACKEND_FUA) != 0) {
        known |= BLKREPL_IO_FUA;
    }
    if (io->opcode == BLKREPL_OP_ZEROES) {
        known |= BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK;
    }
    if ((io->flags & ~known) != 0) {
        disk_complain(d, io, "has flags out of place");
    }
}

static void disk_check_overlap(const struct disk *d, const blkrepl_io *io)
{
    for (size_t i = 0; i < d->queue_count; i++) {
        const blkrepl_io *other = d->queue[i].io;

        if (other->id == io->id) {
            disk_complain(d, io, "has the id of one that is in flight");
        }
        if (op_writes(io->opcode) && op_writes(other->opcode) &&
            io->offset < other->offset + other->bytes && other->offset < io->offset + io->bytes) {
            disk_complain(d, io, "overlaps a write that is in flight");
        }
    }
}

static void disk_check_source(const struct disk *d, const blkrepl_io *io)
{
    const struct disk *from = io->source_user;

    if (from == d || from->closes >= from->opened || !d->info.copy_domain ||
        from->info.copy_domain != d->info.copy_domain) {
        disk_complain(d, io, "copies from a disk that is not open or of another domain");
    }
    if (io->bytes > from->info.bytes || io->source_offset > from->info.bytes - io->bytes) {
        disk_complain(d, io, "copies what is not inside its source");
    }
}

static void disk_check(const struct disk *d, const blkrepl_io *io, uint32_t lane)
{
    if (d->closes >= d->opened || !d->opened) {
        disk_complain(d, io, "comes while the disk is not open");
    }
    if (io->struct_size < sizeof *io || io->id == 0 || lane != 0 || io->lane != 0 || io->host[0] ||
        io->host[1] || io->host[2] || io->host[3]) {
        disk_complain(d, io, "has a bad size, id or lane, or scratch that is not 0");
    }
    if (io->opcode > 31 || (d->info.opcodes & BIT(io->opcode)) == 0 ||
        (op_writes(io->opcode) && (d->info.flags & BLKREPL_BACKEND_READ_ONLY) != 0)) {
        disk_complain(d, io, "was not declared");
    }
    if (d->in_flight >= or_else(d->info.queue_depth, 64)) {
        disk_complain(d, io, "is more than the queue depth");
    }
    if (io->opcode != BLKREPL_OP_FLUSH) {
        disk_check_range(d, io);
    }
    if (op_moves(io->opcode)) {
        disk_check_memory(d, io);
    }
    if (io->opcode == BLKREPL_OP_COPY_FROM) {
        disk_check_source(d, io);
    }
    if (io->opcode == BLKREPL_OP_STATUS && (!io->extents || io->extents_max == 0)) {
        disk_complain(d, io, "has no room for extents");
    }
    disk_check_flags(d, io);
    disk_check_overlap(d, io);
}

/* ---- Carrying out ------------------------------------------------------------------ */

/* Move up to `bytes`; READ with `fill` set gets that instead of data. */
static void disk_move(struct disk *d, const blkrepl_io *io, uint64_t bytes, int fill)
{
    uint64_t at = io->offset;

    for (uint32_t i = 0; i < io->iov_count && bytes > 0; i++) {
        size_t len = io->iov[i].len < bytes ? io->iov[i].len : (size_t)bytes;

        if (io->opcode == BLKREPL_OP_WRITE) {
            memcpy(d->data + at, io->iov[i].base, len);
        } else if (fill >= 0) {
            memset(io->iov[i].base, fill, len);
        } else {
            memcpy(io->iov[i].base, d->data + at, len);
        }
        at += len;
        bytes -= len;
    }
}

static bool disk_zero(const struct disk *d, uint64_t at, uint64_t end)
{
    while (at < end && d->data[at] == 0) {
        at++;
    }
    return at == end;
}

static void disk_tell_status(struct disk *d, const blkrepl_io *io)
{
    uint64_t at = io->offset, end = io->offset + io->bytes;
    uint32_t n = 0;

    if (d->status != STATUS_TRUE) {
        io->extents[0].bytes = d->status == STATUS_EMPTY ? 0 : io->bytes * 2;
        io->extents[0].flags = BLKREPL_EXTENT_ZERO;
        return;
    }
    while (at < end) {
        uint64_t next = (at / 512 + 1) * 512;

        next = next < end ? next : end;
        uint32_t flags = disk_zero(d, at, next) ? BLKREPL_EXTENT_ZERO
                                                : BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
        if (n > 0 && io->extents[n - 1].flags == flags) {
            io->extents[n - 1].bytes += next - at;
        } else if (n < io->extents_max) {
            io->extents[n++] = (blkrepl_extent){.bytes = next - at, .flags = flags};
        } else {
            return;
        }
        at = next;
    }
}

static void disk_copy(struct disk *d, const blkrepl_io *io, uint64_t bytes)
{
    const struct disk *from = io->source_user;

    memcpy(d->data + io->offset, from->data + io->source_offset, (size_t)bytes);
}

static void disk_carry_out(struct disk *d, const blkrepl_io *io)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE: disk_move(d, io, io->bytes, -1); break;
    case BLKREPL_OP_ZEROES: memset(d->data + io->offset, 0, (size_t)io->bytes); break;
    case BLKREPL_OP_FLUSH: durable_flushed(d->medium, (uintptr_t)io->host[0]); break;
    case BLKREPL_OP_DISCARD: memset(d->data + io->offset, DISCARDED, (size_t)io->bytes); break;
    case BLKREPL_OP_STATUS: disk_tell_status(d, io); break;
    case BLKREPL_OP_COPY_FROM: disk_copy(d, io, io->bytes); break;
    default: break;
    }
}

static void disk_carry_out_badly(struct disk *d, const blkrepl_io *io, int result)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ: disk_move(d, io, io->bytes, RUBBISH); break;
    case BLKREPL_OP_WRITE: disk_move(d, io, io->bytes / 2, -1); break;
    case BLKREPL_OP_ZEROES:
        if (result != -ENOTSUP) {
            memset(d->data + io->offset, 0, (size_t)(io->bytes / 2));
        }
        break;
    case BLKREPL_OP_COPY_FROM: disk_copy(d, io, io->bytes / 2); break;
    case BLKREPL_OP_STATUS:
        io->extents[0].bytes = io->bytes;
        io->extents[0].flags = BLKREPL_EXTENT_ZERO;
        break;
    default: break;
    }
}

/* An opcode that is not known after all: there is a documented way round it; round
 * a COPY_FROM always. */
static bool disk_failure_passing(uint32_t opcode, int result)
{
    if (opcode == BLKREPL_OP_COPY_FROM) {
        return true;
    }
    return result == -ENOTSUP && (opcode == BLKREPL_OP_ZEROES || opcode == BLKREPL_OP_DISCARD);
}

/* Whether somebody has to be told of it.  A job that has stopped expects to see
 * -ECANCELED and does not tell. */
static bool disk_failure_hard(const struct disk *d, uint32_t opcode, int result)
{
    if (opcode == BLKREPL_OP_STATUS) {
        return !d->soft_status;
    }
    if (opcode == BLKREPL_OP_DISCARD && d->soft_discard) {
        return false;
    }
    if (opcode == BLKREPL_OP_READ && result == -ECANCELED) {
        return !d->soft_status;
    }
    return !disk_failure_passing(opcode, result);
}

static void disk_end(struct disk *d, const blkrepl_io *io, int result, bool cancelled)
{
    uint64_t id = io->id;

    if (op_writes(io->opcode) && io->opcode != BLKREPL_OP_DISCARD) {
        bool fua = result == 0 && (io->flags & BLKREPL_IO_FUA) != 0;

        durable_wrote(d->medium, io->offset, io->bytes, fua);
    }
    if (result == 0) {
        disk_carry_out(d, io);
    } else {
        failure_add(&(struct failure){
            .medium = d->medium,
            .code = result,
            .opcode = io->opcode,
            .offset = io->opcode == BLKREPL_OP_FLUSH ? 0 : io->offset,
            .bytes = io->opcode == BLKREPL_OP_FLUSH ? 0 : io->bytes,
            .hard = !cancelled && disk_failure_hard(d, io->opcode, result),
            .passing = disk_failure_passing(io->opcode, result),
        });
        if (!cancelled) {
            disk_carry_out_badly(d, io, result);
        }
    }
    d->in_flight--;
    api_io_complete(d->world->ctx, id, result);
    if (id % 7 == 0) { /* a second time does no damage */
        api_must(-ENOENT);
        api_io_complete(d->world->ctx, id, 0);
    }
}

void disk_finish(struct disk *d, size_t index)
{
    struct disk_held held = d->queue[index];

    d->queue_count--;
    memmove(&d->queue[index], &d->queue[index + 1], (d->queue_count - index) * sizeof d->queue[0]);
    disk_end(d, held.io, held.result, false);
}

/* Whether this request is one that is to fail; its result. */
static int disk_verdict(struct disk *d)
{
    if (!fault_due(FAULT_DISK)) {
        return 0;
    }
    fault_note();
    return disk_code(d);
}

int disk_host_io(struct disk *d, uint32_t opcode, uint64_t offset, const uint8_t *data,
                 uint64_t bytes)
{
    int result = disk_verdict(d);
    uint64_t land = result == 0 ? bytes : bytes / 2;

    if (opcode == BLKREPL_OP_WRITE) {
        memcpy(d->data + offset, data, (size_t)land);
    } else if (opcode == BLKREPL_OP_ZEROES) {
        memset(d->data + offset, 0, (size_t)land);
    } else if (opcode == BLKREPL_OP_DISCARD) {
        memset(d->data + offset, DISCARDED, (size_t)land);
    } else if (result == 0) {
        durable_flushed(d->medium, durable_clock(d->medium));
    }
    if (opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES) {
        durable_wrote(d->medium, offset, bytes, false);
    }
    return result;
}

/* ---- The backend ------------------------------------------------------------------- */

static int disk_get_info(void *user, blkrepl_backend_info *info)
{
    struct disk *d = user;
    uint32_t size = info->struct_size;
    int result = disk_verdict(d);

    REQUIRE(d->opened == d->closes, "get_info of a disk that is open");
    d->get_infos++;
    *info = d->info;
    info->struct_size = size;
    if (result < 0) {
        failure_add(&(struct failure){.medium = d->medium, .code = result, .hard = true});
        memset((char *)info + sizeof size, RUBBISH, sizeof *info - sizeof size);
    }
    return result;
}

static void disk_take(struct disk *d, blkrepl_io *io, uint32_t lane)
{
    disk_check(d, io, lane);
    io->host[0] = (void *)(uintptr_t)durable_clock(d->medium);
    d->submitted[io->opcode]++;
    int result = disk_verdict(d);

    if (d->on_submit) {
        d->on_submit(d, io);
    }
    d->in_flight++;
    if (d->world->order == ORDER_INLINE && (d->hold & BIT(io->opcode)) == 0) {
        disk_end(d, io, result, false);
        return;
    }
    REQUIRE(d->queue_count < DISK_QUEUE_MAX, "scenario: the queue of a disk is full");
    d->queue[d->queue_count++] = (struct disk_held){
        .io = io, .id = io->id, .result = result, .sequence = ++d->world->sequence};
}

static void disk_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *d = user;

    REQUIRE(count > 0, "submit of no request");
    d->inside++;
    for (uint32_t i = 0; i < count; i++) {
        disk_take(d, ios[i], lane);
    }
    d->inside--;
}

static void disk_cancel(void *user, uint64_t id)
{
    struct disk *d = user;

    REQUIRE(d->closes < d->opened, "cancel after close");
    d->cancels++;
    for (size_t i = 0; d->cancel_ends && i < d->queue_count; i++) {
        if (d->queue[i].id == id) {
            struct disk_held held = d->queue[i];

            d->queue_count--;
            memmove(&d->queue[i], &d->queue[i + 1], (d->queue_count - i) * sizeof d->queue[0]);
            disk_end(d, held.io, -ECANCELED, true);
            return;
        }
    }
}

static void disk_close(void *user)
{
    struct disk *d = user;

    d->closes++;
    REQUIRE(d->closes == d->opened, "medium %d is closed %u times and was opened %u times",
            d->medium, d->closes, d->opened);
    REQUIRE(d->inside == 0 && d->in_flight == 0, "medium %d is closed while it is in use",
            d->medium);
    if (d->on_close) {
        d->on_close(d);
    }
}

const blkrepl_backend_ops disk_ops = {
    .struct_size = sizeof(blkrepl_backend_ops),
    .get_info = disk_get_info,
    .submit = disk_submit,
    .cancel = disk_cancel,
    .close = disk_close,
};

const blkrepl_backend_ops disk_ops_no_cancel = {
    .struct_size = sizeof(blkrepl_backend_ops),
    .get_info = disk_get_info,
    .submit = disk_submit,
    .close = disk_close,
};
