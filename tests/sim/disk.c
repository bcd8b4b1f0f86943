/* SPDX-License-Identifier: MIT */
/* disk.c - virtual disks: backends that check the library and misbehave.
 *
 * The data of a write land at random moments between submit and completion, in
 * pieces; those of a read are sampled likewise.  Errors leave none, a part or
 * all of the data behind.  Every submit is checked against backend.h.
 */
#include "sim.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OPCODE(op) (1u << (op))

typedef unsigned long long ull;

static uint8_t media[DISKS_MAX][DISK_BYTES_MAX];

static uint32_t draw_limit(uint32_t percent, uint64_t low, uint64_t high)
{
    return rng_chance(percent) ? (uint32_t)rng_between(low, high) : 0;
}

static void draw_info(struct disk *disk)
{
    static const uint32_t requests[] = {1, 1, 1, 512, 4096};
    static const uint32_t memory[] = {1, 1, 16, 512};
    blkrepl_backend_info *info = &disk->info;
    uint32_t align = requests[rng_below(5)];

    info->bytes = disk->bytes;
    info->request_alignment = rng_chance(30) && align == 1 ? 0 : align;
    info->memory_alignment = memory[rng_below(4)];
    info->queue_depth = (uint32_t)rng_between(1, rng_chance(30) ? 3 : QUEUE_MAX);
    info->iov_count_max = draw_limit(30, 1, 6);
    info->transfer_bytes_max = draw_limit(30, 1, 8) * (uint64_t)4096;
    info->zeroes_bytes_max = draw_limit(30, 1, 8) * (uint64_t)4096;
    info->cluster_bytes = rng_chance(15) ? 1u << rng_between(9, 15) : 0;
    info->opcodes = OPCODE(BLKREPL_OP_READ) | OPCODE(BLKREPL_OP_WRITE);
    for (uint32_t op = BLKREPL_OP_ZEROES; op <= BLKREPL_OP_STATUS; op++) {
        info->opcodes |= rng_chance(65) ? OPCODE(op) : 0;
    }
    info->flags = rng_chance(40) ? BLKREPL_BACKEND_FUA : 0;
    if (disk->read_only) {
        info->flags |= BLKREPL_BACKEND_READ_ONLY;
        info->opcodes &= ~OPCODE(BLKREPL_OP_WRITE);
    }
}

/* Take out of what was drawn what the plan wants left out. */
static void apply_plan(struct disk *disk)
{
    blkrepl_backend_info *info = &disk->info;

    disk->error_permille *= !sim_without(FAULT_ERRORS);
    disk->tear_percent *= !sim_without(FAULT_TORN);
    disk->hang_percent *= !sim_without(FAULT_HANGS);
    disk->inline_percent *= !sim_without(FAULT_INLINE);
    if (sim_without(FAULT_ORDER)) {
        disk->order = ORDER_FIFO;
    }
    if (sim_without(FAULT_LIMITS)) {
        *info = (blkrepl_backend_info){.bytes = info->bytes,
                                       .request_alignment = 1,
                                       .memory_alignment = 1,
                                       .queue_depth = QUEUE_MAX,
                                       .opcodes = info->opcodes,
                                       .flags = info->flags};
        disk->status_unit = 512;
    }
    if (sim_without(FAULT_OPCODES)) {
        info->opcodes = disk->read_only ? 0x7e & ~OPCODE(BLKREPL_OP_WRITE) : 0x7e;
    }
    if (sim_without(FAULT_DISCARDS)) {
        disk->discard_mode = 0;
    }
}

/* A disk with some content: a pattern with runs of zeroes in it. */
static void disk_draw_one(struct disk *disk, uint32_t index, uint64_t bytes)
{
    bool source = index < sim.options.sources;

    disk->index = index;
    disk->bytes = bytes;
    disk->medium = media[index];
    disk->read_only = source && rng_chance(3);
    draw_info(disk);
    disk->order = (enum order)rng_below(ORDER_COUNT);
    disk->inline_percent = rng_chance(30) ? (uint32_t)rng_between(10, 100) : 0;
    if (rng_chance(30)) {
        disk->error_permille = (uint32_t)rng_between(5, 150);
        disk->errors_left = rng_chance(50) ? 1 : 1000;
        disk->sticky = rng_chance(15);
    }
    disk->hang_percent = rng_chance(12) ? (uint32_t)rng_between(1, 100) : 0;
    disk->tear_percent = rng_chance(60) ? (uint32_t)rng_between(10, 80) : 0;
    disk->discard_mode = (uint32_t)rng_below(3);
    disk->status_unit = rng_chance(20) ? (uint32_t)rng_between(1, 5000) : 512;
    disk->has_cancel = rng_chance(70);
    apply_plan(disk);
    pattern_fill(disk->medium, source ? 0 : 254, 0, bytes);
    for (uint64_t i = rng_below(4); source && bytes > 0 && i > 0; i--) {
        uint64_t from = rng_below(bytes);
        uint64_t run = rng_below(20000);

        memset(disk->medium + from, 0, run < bytes - from ? run : bytes - from);
    }
}

static uint64_t draw_size(void)
{
    uint32_t kind = (uint32_t)rng_below(20);

    if (kind == 0) {
        return rng_chance(30) ? 0 : rng_below(4096);
    }
    if (kind < 12) {
        return rng_below(2) * rng_below(4096) + 4096 * rng_below(9);
    }
    return kind < 19 || rng_chance(80) ? rng_below(24 * 4096) : rng_below(DISK_BYTES_MAX - 65536);
}

static void progress_act(void)
{
    disk_progress(&sim.disks[rng_below(sim.options.disks)]);
}

static void disk_part_draw(void)
{
    uint64_t largest = 0;

    sim_actor((uint32_t)rng_between(2, 40), false, progress_act);
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        uint64_t bytes = draw_size();

        if (i < sim.options.sources) {
            largest = bytes > largest ? bytes : largest;
        } else {
            bytes = largest + (rng_chance(50) ? rng_below(20000) : 0);
        }
        memset(&sim.disks[i], 0, offsetof(struct disk, volatile_writes));
        disk_draw_one(&sim.disks[i], i, bytes);
    }
}

bool disk_has_answered(const struct disk *disk, int code)
{
    return code < 0 && code > -192 && (disk->error_codes[-code / 64] >> (-code % 64) & 1) != 0;
}

uint8_t disk_discard_byte(const struct disk *disk, uint64_t position)
{
    return disk->discard_mode == 1 ? 0 : pattern_byte(253, position);
}

/* ---- Moving bytes ---------------------------------------------------------- */

static void iov_copy(const blkrepl_io *io, uint64_t skip, uint64_t bytes, uint8_t *flat)
{
    for (uint32_t i = 0; i < io->iov_count && bytes > 0; i++) {
        uint64_t len = io->iov[i].len;
        uint64_t part;

        if (skip >= len) {
            skip -= len;
            continue;
        }
        part = len - skip < bytes ? len - skip : bytes;
        if (io->opcode == BLKREPL_OP_READ) {
            memcpy((uint8_t *)io->iov[i].base + skip, flat, part);
        } else {
            memcpy(flat, (uint8_t *)io->iov[i].base + skip, part);
        }
        flat += part;
        bytes -= part;
        skip = 0;
    }
}

/* Put what `op` writes on the medium: from the guest's pattern, or zeroes. */
void disk_land(struct disk *disk, uint32_t op, uint64_t offset, uint64_t bytes,
               const struct request *from)
{
    uint8_t *out = disk->medium + offset;

    if (op == BLKREPL_OP_WRITE && from->tag != 0) {
        pattern_fill(out, from->tag, offset, bytes);
    } else if (op == BLKREPL_OP_WRITE || op == BLKREPL_OP_ZEROES) {
        memset(out, 0, bytes);
    } else if (op == BLKREPL_OP_DISCARD && disk->discard_mode != 0) {
        for (uint64_t i = 0; i < bytes; i++) {
            out[i] = disk_discard_byte(disk, offset + i);
        }
    }
}

/* What the request would put on the medium. */
void disk_payload(const struct disk *disk, const struct disk_request *request, uint8_t *out)
{
    if (request->op == BLKREPL_OP_WRITE) {
        iov_copy(request->io, 0, request->bytes, out);
    } else if (request->op == BLKREPL_OP_ZEROES) {
        memset(out, 0, request->bytes);
    } else if (disk->discard_mode == 0) {
        memcpy(out, disk->medium + request->offset, request->bytes);
    } else {
        for (uint64_t i = 0; i < request->bytes; i++) {
            out[i] = disk_discard_byte(disk, request->offset + i);
        }
    }
}

static void land(struct disk *disk, const struct disk_request *r, uint64_t skip, uint64_t bytes)
{
    if (r->op == BLKREPL_OP_WRITE) {
        iov_copy(r->io, skip, bytes, disk->medium + r->offset + skip);
    } else {
        disk_land(disk, r->op, r->offset + skip, bytes, NULL);
    }
}

static void sample(struct disk *disk, struct disk_request *r, uint64_t bytes)
{
    iov_copy(r->io, r->copied, bytes, disk->medium + r->offset + r->copied);
    r->copied += bytes;
}

/* Some of the request happens, but it does not complete. */
static void tear(struct disk *disk, struct disk_request *r)
{
    uint64_t unit = rng_chance(50) ? 512 : 1;
    uint64_t at = rng_below(r->bytes) / unit * unit;
    uint64_t part = rng_below((r->bytes - at) / unit + 1) * unit;

    if (r->op == BLKREPL_OP_READ) {
        sample(disk, r, rng_below(r->bytes - r->copied + 1));
    } else if (is_write(r->op)) {
        land(disk, r, at, part);
        sim.counts.torn++;
    }
}

static bool all_zero(const uint8_t *bytes, uint64_t count)
{
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

static uint32_t fill_status(struct disk *disk, const struct disk_request *r)
{
    uint32_t limit = (uint32_t)rng_between(1, r->io->extents_max);
    uint64_t at = r->offset;
    uint64_t end = r->offset + r->bytes;
    uint32_t count = 0;

    while (at < end) {
        uint64_t unit = disk->status_unit < end - at ? disk->status_unit : end - at;
        bool zero = all_zero(disk->medium + at, unit) && !rng_chance(5);
        uint32_t flags =
            zero ? BLKREPL_EXTENT_ZERO : BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;

        if (count > 0 && r->io->extents[count - 1].flags == flags) {
            r->io->extents[count - 1].bytes += unit;
        } else if (count == limit) {
            break;
        } else {
            r->io->extents[count++] = (blkrepl_extent){.bytes = unit, .flags = flags};
        }
        at += unit;
    }
    return count;
}

/* ---- Completion ------------------------------------------------------------ */

static int error_of(const struct disk *disk, uint32_t op)
{
    bool source = disk->index < sim.options.sources;

    if (op == BLKREPL_OP_WRITE || op == BLKREPL_OP_ZEROES) {
        return !source ? -EREMOTEIO : rng_chance(50) ? -EIO : -ENOSPC;
    }
    if (op == BLKREPL_OP_READ) {
        return source ? -EILSEQ : -ENODATA;
    }
    return source ? -EPROTO : -ENOLINK;
}

static int draw_result(struct disk *disk, const struct disk_request *r)
{
    bool hit;

    if (disk->healed || disk->error_permille == 0) {
        return 0;
    }
    hit = rng_below(1000) < disk->error_permille && disk->errors_left > 0;
    if (!hit && !disk->failing) {
        return 0;
    }
    disk->failing = disk->failing || disk->sticky;
    disk->errors_left -= disk->errors_left > 0;
    sim.counts.errors++;
    return error_of(disk, r->op);
}

static void note_volatile(struct disk *disk, const struct disk_request *r)
{
    uint32_t kept = 0;

    if ((disk->info.opcodes & OPCODE(BLKREPL_OP_FLUSH)) == 0) {
        return;
    }
    if (r->op == BLKREPL_OP_FLUSH) {
        for (uint32_t i = 0; i < disk->volatile_count; i++) {
            if (disk->volatile_writes[i].seq > r->seq) {
                disk->volatile_writes[kept++] = disk->volatile_writes[i];
            }
        }
        disk->volatile_count = kept;
    } else if ((r->op == BLKREPL_OP_WRITE || r->op == BLKREPL_OP_ZEROES) &&
               (r->flags & BLKREPL_IO_FUA) == 0 && disk->volatile_count < 2048) {
        disk->volatile_writes[disk->volatile_count++] =
            (struct volatile_write){.seq = sim.seq, .owner = r->owner_sure ? r->owner : -1};
    }
}

static void perform(struct disk *disk, struct disk_request *r, int result)
{
    uint32_t extents = 0;

    if (result == 0 && r->op == BLKREPL_OP_READ) {
        sample(disk, r, r->bytes - r->copied);
    } else if (result == 0 && is_write(r->op)) {
        land(disk, r, 0, r->bytes);
    } else if (result == 0 && r->op == BLKREPL_OP_STATUS) {
        extents = fill_status(disk, r);
    } else if (result != 0 && is_write(r->op) && rng_chance(60)) {
        tear(disk, r);
    } else if (result != 0 && is_write(r->op) && rng_chance(50)) {
        land(disk, r, 0, r->bytes);
    } else if (result != 0 && r->op == BLKREPL_OP_READ && r->io->iov_count > 0) {
        memset(r->io->iov[0].base, 0xbb, r->io->iov[0].len);
    }
    if (result == 0) {
        oracle_backup_disk_done(disk, r, r->io->extents, extents);
        note_volatile(disk, r);
    } else {
        disk->error_codes[-result / 64] |= UINT64_C(1) << (-result % 64);
    }
}

static void complete(struct disk *disk, uint32_t at, int result)
{
    struct disk_request r = disk->queue[at];
    int answer;

    memmove(disk->queue + at, disk->queue + at + 1,
            (--disk->in_flight - at) * sizeof disk->queue[0]);
    EVENT("disk %n completes id %n, %o at %n: %r", disk->index, r.id, r.op, r.offset, (ull)-result);
    perform(disk, &r, result);
    if (rng_chance(sim.options.misuse_percent)) {
        sim.counts.misuses++;
        answer = blkrepl_io_complete(sim.ctx, r.id, 1);
        EXPECT(answer == -EINVAL, "io_complete with a positive result answered %d", answer);
    }
    answer = blkrepl_io_complete(sim.ctx, r.id, result);
    EXPECT(answer == 0, "io_complete answered %d for id %llu", answer, (ull)r.id);
    if (rng_chance(sim.options.misuse_percent)) {
        sim.counts.misuses++;
        answer = blkrepl_io_complete(sim.ctx, r.id, 0);
        EXPECT(answer == -ENOENT, "a second io_complete answered %d", answer);
    }
}

static bool may_complete(const struct disk *disk, uint32_t at)
{
    return disk->healed || !disk->queue[at].hung;
}

/* The queue is in the order of submission. */
static uint32_t choose(const struct disk *disk)
{
    uint32_t ready[QUEUE_MAX];
    uint32_t count = 0;

    for (uint32_t i = 0; i < disk->in_flight; i++) {
        if (may_complete(disk, i)) {
            ready[count++] = i;
        }
    }
    if (count == 0) {
        return UINT32_MAX;
    }
    switch (disk->healed ? ORDER_UNIFORM : disk->order) {
    case ORDER_FIFO: return ready[0];
    case ORDER_LIFO: return ready[count - 1];
    case ORDER_STARVE_OLDEST:
        if (count == 1 && !rng_chance(5)) {
            return UINT32_MAX;
        }
        return ready[count > 1 ? rng_between(1, count - 1) : 0];
    case ORDER_UNIFORM:
    case ORDER_BATCHES:
    case ORDER_COUNT: break;
    }
    return ready[rng_below(count)];
}

/* Let something happen at the disk; false: nothing can. */
bool disk_progress(struct disk *disk)
{
    bool batch = disk->order == ORDER_BATCHES && !disk->healed;
    uint32_t left = 1;
    bool moved = false;

    if (disk->in_flight > 0 && rng_chance(disk->tear_percent)) {
        struct disk_request *r = &disk->queue[rng_below(disk->in_flight)];

        if (r->bytes > 0 && r->op != BLKREPL_OP_STATUS) {
            tear(disk, r);
            return true;
        }
    }
    if (batch) {
        left = rng_chance(25) ? QUEUE_MAX : 0;
    }
    for (uint32_t at; left > 0 && (at = choose(disk)) != UINT32_MAX; left--) {
        complete(disk, at, draw_result(disk, &disk->queue[at]));
        moved = true;
    }
    return moved;
}

void disk_heal(struct disk *disk)
{
    disk->healed = true;
    disk->inline_percent = rng_chance(50) ? 0 : disk->inline_percent;
}

/* ---- The backend ----------------------------------------------------------- */

static int backend_get_info(void *user, blkrepl_backend_info *info)
{
    struct disk *disk = user;
    uint32_t struct_size = info->struct_size;

    EXPECT(struct_size >= sizeof *info, "get_info: struct_size %u", struct_size);
    *info = disk->info;
    info->struct_size = struct_size;
    return 0;
}

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

static void accept_io(struct disk *disk, blkrepl_io *io)
{
    struct disk_request *r = &disk->queue[disk->in_flight];

    EVENT("disk %n gets %o %n+%n, id %n", disk->index, io->opcode, io->offset, io->bytes, io->id);
    EXPECT(!disk->closed && !sim.gone, "submit after close");
    EXPECT(io->struct_size >= sizeof *io && io->id != 0 && io->lane == 0, "bad io");
    EXPECT(io->host[0] == NULL && io->host[1] == NULL && io->host[2] == NULL && io->host[3] == NULL,
           "host[] is not 0 at submit");
    EXPECT(disk->in_flight < disk->info.queue_depth, "more than queue_depth %u in flight",
           disk->info.queue_depth);
    check_limits(disk, io);
    check_overlap(disk, io);
    io->host[0] = disk;
    *r = (struct disk_request){
        .io = io, .id = io->id, .seq = sim.seq, .op = io->opcode, .flags = io->flags, .owner = -1};
    if (io->opcode != BLKREPL_OP_FLUSH) {
        r->offset = io->offset;
        r->bytes = io->bytes;
    }
    r->hung = !disk->healed && rng_chance(disk->hang_percent);
    sim.counts.hung += r->hung;
    disk->in_flight++;
    oracle_submit(disk, r);
}

static void backend_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    EXPECT(lane == 0 && count > 0, "submit: lane %u count %u", lane, count);
    for (uint32_t i = 0; i < count; i++) {
        accept_io(disk, ios[i]);
    }
    for (uint32_t i = 0; i < count && disk->inline_percent > 0; i++) {
        uint32_t at = choose(disk);

        if (at != UINT32_MAX && rng_chance(disk->inline_percent)) {
            sim.counts.inline_completions++;
            complete(disk, at, draw_result(disk, &disk->queue[at]));
        }
    }
    sim_reenter();
}

static void backend_cancel(void *user, uint64_t id)
{
    struct disk *disk = user;

    EVENT("disk %n is to cancel id %n", disk->index, id);
    EXPECT(!disk->closed && !sim.gone, "cancel after close");
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        if (disk->queue[i].id != id) {
            continue;
        }
        sim.counts.cancelled_io++;
        disk->queue[i].hung = false;
        disk->queue[i].told = true;
        if (rng_chance(50)) {
            complete(disk, i, rng_chance(80) ? -ECANCELED : draw_result(disk, &disk->queue[i]));
        }
        break;
    }
    sim_reenter();
}

static void backend_close(void *user)
{
    struct disk *disk = user;

    EVENT("disk %n is closed", disk->index);
    EXPECT(!disk->closed && !sim.gone, "close twice, or after context_free");
    EXPECT(disk->in_flight == 0, "close with %u in flight", disk->in_flight);
    EXPECT(disk->image == NULL, "close with the handle open");
    disk->closed = true;
    sim_reenter();
}

static void image_release(void *user)
{
    struct disk *disk = user;

    EXPECT(!disk->released, "image user released twice");
    EXPECT(disk->image == NULL, "image user released with the handle open");
    disk->released = true;
}

/* Open the image over the disk; when memory fails, again without that. */
static void disk_open(struct disk *disk)
{
    blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                               .get_info = backend_get_info,
                               .submit = backend_submit,
                               .cancel = disk->has_cancel ? backend_cancel : NULL,
                               .close = backend_close};
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = disk, .release = image_release};
    blkrepl_image_info info = {.struct_size = sizeof info};
    int answer;

    for (;;) {
        sim.may_allocate = true;
        sim.alloc_failed = false;
        answer = blkrepl_image_open(sim.ctx, &ops, disk, &options, &disk->image);
        sim.may_allocate = false;
        if (answer != -ENOMEM) {
            break;
        }
        EXPECT(sim.alloc_failed, "open: -ENOMEM without a reason");
        EXPECT(disk->image == NULL && disk->released, "a failed open leaves something behind");
        disk->released = false;
        sim.options.alloc_fail_percent /= 2;
    }
    EXPECT(answer == 0, "open answered %d: %s", answer, blkrepl_error_message());
    answer = blkrepl_image_query(disk->image, &info);
    EXPECT(answer == 0 && info.bytes == disk->bytes && info.user == disk &&
               info.request_alignment >= disk->info.request_alignment,
           "image_query answered %d", answer);
    disk->align = info.request_alignment;
    disk->opened = true;
}

/* ---- The part ---------------------------------------------------------------- */

void disk_close_handle(struct disk *disk)
{
    blkrepl_image *image = disk->image;

    EVENT("the handle of image %n is closed", disk->index);
    disk->image = NULL;
    blkrepl_image_close(image);
}

static void disk_part_open(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        disk_open(&sim.disks[i]);
    }
}

static bool disk_part_move(void)
{
    bool moved = false;

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        moved = disk_progress(&sim.disks[i]) || moved;
    }
    return moved;
}

static void disk_part_close(uint32_t percent)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        if (sim.disks[i].image != NULL && rng_chance(percent)) {
            disk_close_handle(&sim.disks[i]);
        }
    }
}

static void disk_part_end(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        EXPECT(sim.disks[i].closed && sim.disks[i].released, "disk %u is not closed", i);
    }
}

static void disk_part_list(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        const struct disk *d = &sim.disks[i];
        const blkrepl_backend_info *n = &d->info;

        printf("disk %u: %" PRIu64 " bytes, align %u/%u, depth %u, iov %u, transfer %" PRIu64
               ", zeroes %" PRIu64 ", cluster %u, opcodes %x, flags %x, order %d, inline %u%%, "
               "errors %u/1000%s, hang %u%%, tear %u%%, discard %u, status unit %u, cancel %d\n",
               i, d->bytes, n->request_alignment, n->memory_alignment, n->queue_depth,
               n->iov_count_max, n->transfer_bytes_max, n->zeroes_bytes_max, n->cluster_bytes,
               n->opcodes, n->flags, (int)d->order, d->inline_percent, d->error_permille,
               d->sticky ? " sticky" : "", d->hang_percent, d->tear_percent, d->discard_mode,
               d->status_unit, d->has_cancel);
    }
}

const struct part disk_part = {.draw = disk_part_draw,
                               .open = disk_part_open,
                               .move = disk_part_move,
                               .close = disk_part_close,
                               .end = disk_part_end,
                               .list = disk_part_list};
