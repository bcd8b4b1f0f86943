/* SPDX-License-Identifier: MIT */
/* replay_disk.c - the disks of a replay: they do with a request what those of the run did,
 * and the simulator's oracles look on. */
#include "replay.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

#define OWED_MAX 1024

static uint8_t media[VDISKS_MAX][VDISK_BYTES_MAX];
static uint8_t payload[VDISK_BYTES_MAX];
/* Completions of the log whose request has not come yet. */
static struct entry owed[OWED_MAX];
static uint32_t owed_count;

static void land(struct disk *disk, const struct disk_request *r, uint64_t bytes, bool fua)
{
    if (bytes == 0 || (r->op == BLKREPL_OP_DISCARD && disk->discard_mode == 0)) {
        return;
    }
    disk_payload(disk, r, payload);
    memcpy(disk->medium + r->offset, payload, bytes);
    power_wrote(disk, r->offset, bytes, fua);
}

static void scatter(const struct disk *disk, const struct disk_request *r, uint64_t bytes)
{
    const uint8_t *from = disk->medium + r->offset;

    for (uint32_t i = 0; i < r->io->iov_count && bytes > 0; i++) {
        uint64_t part = r->io->iov[i].len < bytes ? r->io->iov[i].len : bytes;

        memcpy(r->io->iov[i].base, from, part);
        from += part;
        bytes -= part;
    }
}

static void perform(struct disk *disk, const struct disk_request *r, int result)
{
    uint64_t half = r->bytes / 16 * 8;

    if (result != 0) {
        if (is_write(r->op) && result != -ECANCELED) {
            land(disk, r, half, false);
        } else if (r->op == BLKREPL_OP_READ && result != -ECANCELED) {
            scatter(disk, r, half);
        } else if (r->op == BLKREPL_OP_FLUSH) {
            power_flush_failed(disk);
        }
        disk_note_failure(disk, r, result);
        return;
    }
    if (r->op == BLKREPL_OP_READ) {
        scatter(disk, r, r->bytes);
    } else if (is_write(r->op)) {
        land(disk, r, r->bytes, (r->flags & BLKREPL_IO_FUA) != 0);
    } else if (r->op == BLKREPL_OP_FLUSH) {
        power_flushed(disk, r->seq);
    } else {
        r->io->extents[0] = (blkrepl_extent){
            .bytes = r->bytes, .flags = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED};
    }
    oracle_backup_disk_done(disk, r, r->io->extents, r->op == BLKREPL_OP_STATUS);
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
    answer = blkrepl_io_complete(sim.ctx, r.id, result);
    EXPECT(answer == 0, "io_complete answered %d", answer);
}

static struct vdisk_fate fate_of(const struct disk *disk, uint32_t at)
{
    return vdisk_fate(replay.plan, disk->index, disk->queue[at].io);
}

/* ---- The backend --------------------------------------------------------------------- */

static int get_info(void *user, blkrepl_backend_info *info)
{
    const struct disk *disk = user;
    uint32_t struct_size = info->struct_size;

    *info = disk->info;
    info->struct_size = struct_size;
    return 0;
}

static void take(struct disk *disk, blkrepl_io *io)
{
    struct disk_request *r = &disk->queue[disk->in_flight];

    EVENT("disk %n gets %o %n+%n, id %n", disk->index, io->opcode, io->offset, io->bytes, io->id);
    EXPECT(!disk->closed && !sim.gone, "submit after close");
    oracle_backend_submit(disk, io);
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
    disk->in_flight++;
    oracle_submit(disk, r);
}

static void backend_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    lanes_submit(disk, lane, ios, count);
    for (uint32_t i = 0; i < count; i++) {
        take(disk, ios[i]);
        if (fate_of(disk, disk->in_flight - 1).at_once) {
            complete(disk, disk->in_flight - 1, fate_of(disk, disk->in_flight - 1).result);
        }
    }
    lanes_submitted(disk, lane);
}

static void backend_cancel(void *user, uint64_t id)
{
    struct disk *disk = user;

    for (uint32_t i = 0; i < disk->in_flight; i++) {
        if (disk->queue[i].id == id) {
            disk->queue[i].told = true;
            if (fate_of(disk, i).cancelled) {
                complete(disk, i, -ECANCELED);
            }
            return;
        }
    }
}

static void backend_close(void *user)
{
    struct disk *disk = user;

    EXPECT(!disk->closed && !sim.gone && disk->in_flight == 0 && disk->image == NULL,
           "disk %u: a wrong close", disk->index);
    lanes_close();
    disk->closed = true;
}

static void image_release(void *user)
{
    struct disk *disk = user;

    EXPECT(!disk->released && disk->image == NULL, "disk %u: a wrong release", disk->index);
    disk->released = true;
}

/* ---- The log --------------------------------------------------------------------------- */

static bool is_that(const struct disk_request *r, const struct entry *entry)
{
    return r->op == entry->a &&
           (r->op == BLKREPL_OP_FLUSH || (r->offset == entry->b && r->bytes == entry->c));
}

static bool complete_that(const struct entry *entry)
{
    struct disk *disk = &sim.disks[entry->object];
    uint32_t found = UINT32_MAX;
    uint32_t alike = 0;

    for (uint32_t i = 0; i < disk->in_flight && alike <= entry->lane; i++) {
        if (is_that(&disk->queue[i], entry)) {
            found = i;
            alike++;
        }
    }
    if (found != UINT32_MAX) {
        complete(disk, found, entry->answer);
    }
    return found != UINT32_MAX;
}

void replay_complete(const struct entry *entry)
{
    if (complete_that(entry)) {
        return;
    }
    EXPECT(!replay.exact, "entry %u: disk %u has no such request", replay.next - 1, entry->object);
    replay.tally->early++;
    if (owed_count < OWED_MAX) {
        owed[owed_count++] = *entry;
    }
}

void replay_complete_owed(void)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < owed_count; i++) {
        if (!complete_that(&owed[i])) {
            owed[kept++] = owed[i];
        }
    }
    owed_count = kept;
}

bool replay_complete_any(void)
{
    bool moved = false;

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        struct disk *disk = &sim.disks[i];

        for (; disk->in_flight > 0; moved = true) {
            complete(disk, 0, fate_of(disk, 0).result);
        }
    }
    return moved;
}

void replay_disk_open(uint32_t index)
{
    const struct vdisk_plan *plan = &replay.plan->disk[index];
    struct disk *disk = &sim.disks[index];
    blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                               .get_info = get_info,
                               .submit = backend_submit,
                               .cancel = plan->has_cancel ? backend_cancel : NULL,
                               .close = backend_close};
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = disk, .release = image_release};
    blkrepl_image_info info = {.struct_size = sizeof info};

    memset(disk, 0, sizeof *disk);
    memset(media[index], 0, sizeof media[index]);
    owed_count = 0;
    disk->index = index;
    disk->bytes = plan->info.bytes;
    disk->info = plan->info;
    disk->inline_percent = plan->inline_percent;
    disk->discard_mode = plan->discard_zeroes;
    disk->has_cancel = plan->has_cancel;
    disk->medium = media[index];
    power_open(disk);
    EXPECT(blkrepl_image_open(sim.ctx, &ops, disk, &options, &disk->image) == 0 &&
               blkrepl_image_query(disk->image, &info) == 0,
           "open: %s", blkrepl_error_message());
    disk->align = info.request_alignment;
    disk->opened = true;
}
