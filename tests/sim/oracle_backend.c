/* SPDX-License-Identifier: MIT */
/* oracle_backend.c - what a backend may rely on: every submit keeps to backend.h
 * and to the limits of its disk. */
#include "sim.h"

typedef unsigned long long ull;

#define OPCODE(op) (1u << (op))

static void check_iov(const struct disk *disk, const blkrepl_io *io)
{
    uint64_t align = disk->info.memory_alignment;
    uint32_t limit = disk->info.iov_count_max == 0 ? 1024 : disk->info.iov_count_max;
    bool at_end = io->offset + io->bytes == disk->bytes;
    uint64_t sum = 0;

    EXPECT(io->iov_count > 0 && io->iov_count <= limit, "%u iovecs", io->iov_count);
    for (uint32_t i = 0; i < io->iov_count; i++) {
        bool last = i + 1 == io->iov_count;

        EXPECT((uintptr_t)io->iov[i].base % align == 0, "iovec %u: address not aligned", i);
        EXPECT(io->iov[i].len % align == 0 || (last && at_end), "iovec %u: length %zu", i,
               io->iov[i].len);
        sum += io->iov[i].len;
    }
    EXPECT(sum == io->bytes, "iovecs of %llu bytes together, not %llu", (ull)sum, (ull)io->bytes);
}

static void check_copy(const struct disk *disk, const blkrepl_io *io)
{
    const struct disk *from = io->source_user;
    uint64_t align = from->info.request_alignment == 0 ? 1 : from->info.request_alignment;
    uint64_t end = io->source_offset + io->bytes;

    EXPECT(from != disk && from->opened && !from->closed && disk->info.copy_domain != NULL &&
               from->info.copy_domain == disk->info.copy_domain,
           "COPY_FROM disk %u, which is not of this domain", from->index);
    EXPECT(io->source_offset < from->bytes && io->bytes <= from->bytes - io->source_offset,
           "COPY_FROM %llu+%llu outside of the source", (ull)io->source_offset, (ull)io->bytes);
    EXPECT(io->source_offset % align == 0 && (end % align == 0 || end == from->bytes),
           "COPY_FROM %llu+%llu not aligned to %llu", (ull)io->source_offset, (ull)io->bytes,
           (ull)align);
    EXPECT(io->iov_count == 0, "COPY_FROM with %u iovecs", io->iov_count);
}

static void check_limits(const struct disk *disk, const blkrepl_io *io)
{
    uint64_t align = disk->info.request_alignment == 0 ? 1 : disk->info.request_alignment;
    uint64_t end = io->offset + io->bytes;
    uint64_t limit = disk->info.transfer_bytes_max;

    EXPECT((disk->info.opcodes & OPCODE(io->opcode)) != 0, "opcode %u not declared", io->opcode);
    EXPECT((io->flags & BLKREPL_IO_FUA) == 0 ||
               ((disk->info.flags & BLKREPL_BACKEND_FUA) != 0 &&
                (io->opcode == BLKREPL_OP_WRITE || io->opcode == BLKREPL_OP_ZEROES)),
           "FUA not declared, or with opcode %u", io->opcode);
    if (io->opcode == BLKREPL_OP_FLUSH) {
        return;
    }
    EXPECT(io->bytes > 0 && io->offset < disk->bytes && io->bytes <= disk->bytes - io->offset,
           "range %llu+%llu outside of the disk", (ull)io->offset, (ull)io->bytes);
    EXPECT(io->offset % align == 0 && (end % align == 0 || end == disk->bytes),
           "range %llu+%llu not aligned to %llu", (ull)io->offset, (ull)io->bytes, (ull)align);
    if (io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_WRITE) {
        check_iov(disk, io);
    } else if (io->opcode == BLKREPL_OP_STATUS) {
        EXPECT(io->extents != NULL && io->extents_max > 0, "STATUS without extents");
        return;
    } else if (io->opcode == BLKREPL_OP_COPY_FROM) {
        check_copy(disk, io);
        limit = disk->info.copy_bytes_max;
    } else {
        limit = disk->info.zeroes_bytes_max;
    }
    EXPECT(limit == 0 || io->bytes <= limit, "opcode %u of %llu bytes, limit %llu", io->opcode,
           (ull)io->bytes, (ull)limit);
}

static void check_overlap(const struct disk *disk, const blkrepl_io *io)
{
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        const struct disk_request *r = &disk->queue[i];

        EXPECT(r->id != io->id, "id %llu twice in flight", (ull)io->id);
        EXPECT(!is_write(io->opcode) || !is_write(r->op) ||
                   !overlaps(r->offset, r->bytes, io->offset, io->bytes),
               "write %llu+%llu overlaps id %llu in flight", (ull)io->offset, (ull)io->bytes,
               (ull)r->id);
    }
    for (uint32_t i = 0; is_write(io->opcode) && i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        EXPECT(r->disk != disk || r->state != REQUEST_GO || !is_write(r->op) ||
                   !overlaps(r->offset, r->bytes, io->offset, io->bytes),
               "write %llu+%llu overlaps a bracket that got its GO", (ull)io->offset,
               (ull)io->bytes);
    }
}

/* A disk is about to get a request. */
void oracle_backend_submit(const struct disk *disk, const blkrepl_io *io)
{
    EXPECT(disk->in_flight < disk->info.queue_depth, "more than queue_depth %u in flight",
           disk->info.queue_depth);
    check_limits(disk, io);
    check_overlap(disk, io);
}
