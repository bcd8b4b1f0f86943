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

bool disk_is_source(const struct disk *disk)
{
    return disk->index < sim.options.sources;
}

bool disk_refuses_zeroes(const struct disk *disk)
{
    return disk->refuses_zeroes || (disk->info.opcodes & OPCODE(BLKREPL_OP_ZEROES)) == 0;
}

bool disk_has_answered(const struct disk *disk, int code)
{
    if (code <= -192) {
        return (disk->odd_codes >> contract_code_number(code) & 1) != 0;
    }
    return code < 0 && (disk->error_codes[-code / 64] >> (-code % 64) & 1) != 0;
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

static void discard(const struct disk *disk, uint64_t offset, uint64_t bytes, uint8_t *out)
{
    if (disk->discard_mode == 1) {
        memset(out, 0, bytes);
    } else {
        pattern_fill(out, 253, offset, bytes);
    }
}

/* The host of a bracket writes a part of it by its own means. */
void disk_host_writes(struct disk *disk, const struct request *from, uint64_t skip, uint64_t bytes)
{
    uint64_t offset = from->offset + skip;
    uint8_t *out = disk->medium + offset;

    if (sim.dead || !is_write(from->op) ||
        (from->op == BLKREPL_OP_DISCARD && disk->discard_mode == 0)) {
        return;
    }
    if (from->op == BLKREPL_OP_DISCARD) {
        discard(disk, offset, bytes, out);
    } else if (from->op == BLKREPL_OP_WRITE && from->tag != 0) {
        pattern_fill(out, from->tag, offset, bytes);
    } else {
        memset(out, 0, bytes);
    }
    power_wrote(disk, offset, bytes, (from->flags & BLKREPL_IO_FUA) != 0);
}

/* What the request would put on the medium. */
void disk_payload(const struct disk *disk, const struct disk_request *request, uint8_t *out)
{
    if (request->op == BLKREPL_OP_WRITE) {
        iov_copy(request->io, 0, request->bytes, out);
    } else if (request->op == BLKREPL_OP_COPY_FROM) {
        memcpy(out, request->from->medium + request->from_offset, request->bytes);
    } else if (request->op == BLKREPL_OP_ZEROES) {
        memset(out, 0, request->bytes);
    } else if (disk->discard_mode == 0) {
        memcpy(out, disk->medium + request->offset, request->bytes);
    } else {
        discard(disk, request->offset, request->bytes, out);
    }
}

static void land(struct disk *disk, const struct disk_request *r, uint64_t skip, uint64_t bytes,
                 bool fua)
{
    uint8_t *out = disk->medium + r->offset + skip;

    if (sim.dead || (r->op == BLKREPL_OP_DISCARD && disk->discard_mode == 0) || r->from_over) {
        return;
    }
    if (r->op == BLKREPL_OP_WRITE) {
        iov_copy(r->io, skip, bytes, out);
    } else if (r->op == BLKREPL_OP_COPY_FROM) {
        memcpy(out, r->from->medium + r->from_offset + skip, bytes);
        oracle_backup_copied(disk, r, r->offset + skip, bytes);
    } else if (r->op == BLKREPL_OP_ZEROES) {
        memset(out, 0, bytes);
    } else {
        discard(disk, r->offset + skip, bytes, out);
    }
    power_wrote(disk, r->offset + skip, bytes, fua);
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
    } else if (r->op == BLKREPL_OP_COPY_FROM && rng_chance(30)) {
        land(disk, r, 0, r->bytes, false);
        r->from_over = true;
    } else if (is_write(r->op)) {
        land(disk, r, at, part, false);
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
    static const int odd[] = {-EAGAIN, -ETIMEDOUT, -EBUSY,     -ENOMEM, -EINVAL,
                              -EROFS,  -EEXIST,    -ESHUTDOWN, -ENOENT};
    bool source = disk_is_source(disk);

    if (disk->odd_errors && rng_chance(60)) {
        return odd[rng_below(9)];
    }
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
    static const int refusals[] = {-ENOTSUP, -EXDEV, -EINVAL, -ENOSYS};
    bool hit;

    if (sim.dead) {
        return error_of(disk, r->op);
    }
    if (disk->refuses_zeroes &&
        (r->op == BLKREPL_OP_ZEROES || (r->op == BLKREPL_OP_DISCARD && rng_chance(30)))) {
        return -ENOTSUP;
    }
    if (r->op == BLKREPL_OP_COPY_FROM && disk->copies_most-- == 0) {
        disk->copies_most = 0;
        return contract_code(refusals[rng_below(4)]);
    }
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
    return contract_code(error_of(disk, r->op));
}

/* Is that no more than a polite no? */
static bool is_refusal(const struct disk_request *r, int result)
{
    return result == -ENOTSUP && (r->op == BLKREPL_OP_ZEROES || r->op == BLKREPL_OP_DISCARD);
}

void disk_note_failure(struct disk *disk, const struct disk_request *r, int result)
{
    oracle_spill_failed(disk, r);
    if (r->op == BLKREPL_OP_COPY_FROM) {
        return; /* nobody is to hear of it */
    }
    if (disk->failure_count < FAILURES_MAX) {
        disk->failures[disk->failure_count] =
            (struct failure){.op = r->op, .code = result, .offset = r->offset, .bytes = r->bytes};
    }
    disk->failure_count++;
    if (is_refusal(r, result)) {
        disk->failed_others++;
        return;
    }
    if (r->op == BLKREPL_OP_READ) {
        disk->failed_reads++;
    } else if ((r->op == BLKREPL_OP_WRITE || r->op == BLKREPL_OP_ZEROES) && result != -ECANCELED) {
        disk->failed_writes++;
    } else {
        disk->failed_others++;
    }
    if (result <= -192) {
        disk->odd_codes |= UINT32_C(1) << contract_code_number(result);
    } else {
        disk->error_codes[-result / 64] |= UINT64_C(1) << (-result % 64);
    }
}

/* Carry it out; if it fails, nothing, a part or all of it happens. */
static void perform(struct disk *disk, struct disk_request *r, int result)
{
    uint32_t extents = 0;

    if (is_refusal(r, result)) {
        disk_note_failure(disk, r, result);
        return;
    }
    if (result != 0) {
        if (is_write(r->op) && rng_chance(60)) {
            tear(disk, r);
        } else if (is_write(r->op) && rng_chance(50)) {
            land(disk, r, 0, r->bytes, false);
        } else if (r->op == BLKREPL_OP_READ && r->io->iov_count > 0) {
            memset(r->io->iov[0].base, 0xbb, r->io->iov[0].len);
        } else if (r->op == BLKREPL_OP_FLUSH) {
            power_flush_failed(disk);
        }
        disk_note_failure(disk, r, result);
        return;
    }
    if (r->op == BLKREPL_OP_READ) {
        sample(disk, r, r->bytes - r->copied);
    } else if (is_write(r->op)) {
        land(disk, r, 0, r->bytes, (r->flags & BLKREPL_IO_FUA) != 0);
    } else if (r->op == BLKREPL_OP_FLUSH) {
        power_flushed(disk, r->seq);
    } else if (!contract_status(disk, r)) {
        extents = fill_status(disk, r);
        contract_flags(r->io->extents, extents);
    }
    oracle_backup_disk_done(disk, r, r->io->extents, extents);
}

static void complete(struct disk *disk, uint32_t at, int result)
{
    struct disk_request r = disk->queue[at];
    int answer;

    memmove(disk->queue + at, disk->queue + at + 1,
            (--disk->in_flight - at) * sizeof disk->queue[0]);
    EVENT("disk %n completes id %n, %o at %n: %r", disk->index, r.id, r.op, r.offset,
          NEGATED(result));
    perform(disk, &r, result);
    oracle_bitmap_disk_done(disk, &r, result);
    inside_calls(CALL_COMPLETE);
    answer = blkrepl_io_complete(sim.ctx, r.id, result);
    EXPECT(answer == 0, "io_complete answered %d for id %llu", answer, (ull)r.id);
    contract_completed(r.id);
}

static bool may_complete(const struct disk *disk, uint32_t at)
{
    return disk->healed || sim.dead || !disk->queue[at].hung;
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

static void accept_io(struct disk *disk, blkrepl_io *io)
{
    struct disk_request *r = &disk->queue[disk->in_flight];

    EVENT("disk %n gets %o %n+%n, id %n", disk->index, io->opcode, io->offset, io->bytes, io->id);
    EXPECT(!disk->closed && !sim.gone, "submit after close");
    EXPECT(io->struct_size >= sizeof *io && io->id != 0, "bad io");
    EXPECT(io->host[0] == NULL && io->host[1] == NULL && io->host[2] == NULL && io->host[3] == NULL,
           "host[] is not 0 at submit");
    oracle_backend_submit(disk, io);
    io->host[0] = disk;
    *r = (struct disk_request){.io = io,
                               .id = io->id,
                               .seq = sim.seq,
                               .op = io->opcode,
                               .flags = io->flags,
                               .lane = io->lane,
                               .owner = -1};
    if (io->opcode != BLKREPL_OP_FLUSH) {
        r->offset = io->offset;
        r->bytes = io->bytes;
    }
    if (io->opcode == BLKREPL_OP_COPY_FROM) {
        sim.counts.copies++;
        r->from = io->source_user;
        r->from_offset = io->source_offset;
    }
    r->hung = !disk->healed && rng_chance(disk->hang_percent);
    sim.counts.hung += r->hung;
    disk->in_flight++;
    oracle_submit(disk, r);
}

static void backend_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    lanes_submit(disk, lane, ios, count);
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
    contract_inside();
    inside(INSIDE_SUBMIT);
    lanes_submitted(disk, lane);
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
    contract_inside();
    inside(INSIDE_CANCEL);
}

static void backend_close(void *user)
{
    struct disk *disk = user;

    EVENT("disk %n is closed", disk->index);
    EXPECT(!disk->closed && !sim.gone, "close twice, or after context_free");
    EXPECT(disk->in_flight == 0, "close with %u in flight", disk->in_flight);
    EXPECT(disk->image == NULL, "close with the handle open");
    lanes_close();
    disk->closed = true;
    contract_inside();
    inside(INSIDE_CLOSE);
}

static void image_release(void *user)
{
    struct disk *disk = user;

    EXPECT(!disk->released, "image user released twice");
    EXPECT(disk->image == NULL, "image user released with the handle open");
    EXPECT(!disk->opened || lanes_in_poll(0), "image user released outside of polls of lane 0");
    disk->released = true;
    inside(INSIDE_IMAGE_RELEASE);
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
    blkrepl_image *image; /* what is called meanwhile does not see it yet */
    int answer;

    for (;;) {
        sim.may_allocate = true;
        sim.alloc_failed = false;
        answer = blkrepl_image_open(sim.ctx, &ops, disk, &options, &image);
        sim.may_allocate = false;
        if (answer != -ENOMEM) {
            break;
        }
        EXPECT(sim.alloc_failed, "open: -ENOMEM without a reason");
        EXPECT(image == NULL && disk->released, "a failed open leaves something behind");
        disk->released = false;
        sim.options.alloc_fail_percent /= 2;
    }
    EXPECT(answer == 0, "open answered %d: %s", answer, blkrepl_error_message());
    answer = blkrepl_image_query(image, &info);
    EXPECT(answer == 0 && info.bytes == disk->bytes && info.user == disk &&
               info.request_alignment >= disk->info.request_alignment,
           "image_query answered %d", answer);
    disk->align = info.request_alignment;
    disk->image = image;
    disk->opened = true;
}

/* ---- The part ---------------------------------------------------------------- */

void disk_close_handle(struct disk *disk)
{
    blkrepl_image *image = disk->image;
    struct being outer;

    EVENT("the handle of image %n is closed", disk->index);
    disk->image = NULL;
    inside_calls(CALL_CLOSE);
    outer = lanes_enter(DOING_CLOSE, 0);
    blkrepl_image_close(image);
    sim.entry = outer;
}

static uint32_t pending_on(const struct disk *disk)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < sim.active_count; i++) {
        count += sim.requests[sim.active[i]].disk == disk;
    }
    return count;
}

static void disk_query(struct disk *disk)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    uint32_t pending = pending_on(disk);
    uint64_t seq = sim.seq;
    int answer;

    if (disk->image == NULL) {
        return;
    }
    inside_calls(CALL_IMAGE_QUERY);
    answer = blkrepl_image_query(disk->image, &info);
    EXPECT(answer == 0 && info.bytes == disk->bytes && info.user == disk &&
               info.request_alignment == disk->align &&
               ((info.flags & BLKREPL_IMAGE_READ_ONLY) != 0) == disk->read_only,
           "image_query answered %d", answer);
    EXPECT(sim.seq != seq || info.requests_in_flight <= pending,
           "image %u has %u requests, %u are pending", disk->index, info.requests_in_flight,
           pending);
    EXPECT(
        sim.seq != seq || sim.depth + sim.reenter_depth > 0 || info.requests_in_flight == pending,
        "image %u has %u requests, %u are pending", disk->index, info.requests_in_flight, pending);
}

static void query_act(void)
{
    disk_query(&sim.disks[rng_below(sim.options.disks)]);
}

/* For the matrix: one call about a disk. */
void disk_call(enum call call)
{
    struct disk *disk = &sim.disks[rng_below(sim.options.disks)];

    if (call == CALL_COMPLETE) {
        disk_progress(disk);
    } else if (call == CALL_IMAGE_QUERY) {
        disk_query(disk);
    } else if (disk->image != NULL && !sim_without(FAULT_CLOSE)) {
        disk_close_handle(disk);
    }
}

static void progress_act(void)
{
    disk_progress(&sim.disks[rng_below(sim.options.disks)]);
}

static void disk_part_draw(void)
{
    sim_actor((uint32_t)rng_between(2, 40), false, progress_act);
    sim_actor(1, false, query_act);
    disk_draw();
}

/* The first time, or again, on what has survived. */
static void disk_part_open(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        struct disk *disk = &sim.disks[i];

        disk->opened = false;
        disk->closed = false;
        disk->released = false;
        disk->healed = false;
        disk->failure_count = 0;
        memset(disk->error_codes, 0, sizeof disk->error_codes);
        memset(disk->job_writes, 0, sizeof disk->job_writes);
        disk->good_flush_seq = 0;
        disk->job_failed = false;
        disk->flush_failed = false;
        power_open(disk);
    }
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

const struct part disk_part = {.draw = disk_part_draw,
                               .open = disk_part_open,
                               .move = disk_part_move,
                               .close = disk_part_close,
                               .end = disk_part_end,
                               .list = disk_list};
