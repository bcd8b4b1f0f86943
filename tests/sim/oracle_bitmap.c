/* SPDX-License-Identifier: MIT */
/* oracle_bitmap.c - what a bitmap promises.
 *
 * For each granule of a bitmap the oracle knows that it is clean, or dirty, or
 * that it may be dirty (GRANULE_MAY): then something that is recorded was going on
 * there when something was done to the bitmap.  A deed is applied to what was read
 * before it, so between deeds a granule is only uncertain where a write has not
 * ended.  What a successor has recorded nobody can read; of that the oracle knows
 * what must be in it and what may be.
 *
 * Instants count the deeds.  A write that surely had not ended in the library at
 * an instant has to be recorded by whoever records since then. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

#define SECTOR 512

static ull number(const struct bitmap *bitmap)
{
    return (ull)(bitmap - sim.bitmaps);
}

uint64_t granules_of(uint64_t bytes, uint64_t granularity)
{
    return bytes == 0 ? 0 : (bytes - 1) / granularity + 1;
}

bool bitmap_is_recording(const struct bitmap *bitmap)
{
    return bitmap->used && bitmap->now.enabled && bitmap->now.disk != NULL;
}

/* ---- Ranges and granules -------------------------------------------------------- */

void bitmap_mark(const struct bitmap *b, uint8_t *bits, uint64_t offset, uint64_t bytes,
                 uint8_t what)
{
    if (bytes == 0) {
        return;
    }
    for (uint64_t i = offset / b->granularity; i <= (offset + bytes - 1) / b->granularity; i++) {
        bits[i] |= what;
    }
}

uint64_t bitmap_granule_end(const struct bitmap *b, uint64_t i)
{
    uint64_t start = i * b->granularity;

    return b->now.bytes - start < b->granularity ? b->now.bytes : start + b->granularity;
}

/* A request is recorded as it is rounded to the alignment of the image; of a discard
 * that is not aligned the ends may be left out. */
static void rounded(const struct request *r, bool all, uint64_t *offset, uint64_t *bytes)
{
    uint64_t align = r->disk->align;
    bool inward = !all && r->op == BLKREPL_OP_DISCARD;
    uint64_t end = r->offset + r->bytes;
    uint64_t from = (r->offset + (inward ? align - 1 : 0)) / align * align;

    if (end < r->disk->bytes) {
        end = (end + (inward ? 0 : align - 1)) / align * align;
    }
    end = end < r->disk->bytes ? end : r->disk->bytes;
    *offset = from;
    *bytes = r->bytes > 0 && end > from ? end - from : 0;
}

static void mark_request(const struct bitmap *b, uint8_t *bits, const struct request *r,
                         uint8_t what)
{
    uint64_t offset;
    uint64_t bytes;

    if (r->disk == b->now.disk && is_write(r->op)) {
        rounded(r, what == GRANULE_MAY, &offset, &bytes);
        bitmap_mark(b, bits, offset, bytes, what);
    }
}

/* What jobs wrote, as far as it surely went on at or after an instant. */
static void mark_job_writes(const struct bitmap *b, uint8_t *bits, uint32_t since, uint8_t what)
{
    const struct disk *disk = b->now.disk;

    for (uint64_t at = 0; !disk_is_source(disk) && at < disk->bytes; at += SECTOR) {
        if (disk->job_writes[at / SECTOR] >= since) {
            bitmap_mark(b, bits, at, disk->bytes - at < SECTOR ? disk->bytes - at : SECTOR, what);
        }
    }
}

/* ---- What may be recorded at any moment ------------------------------------------- */

static bool is_over(const struct backup *b)
{
    return !(b->created || b->calling) || b->done || b->release_count > 0;
}

static bool job_lives(const struct disk *disk)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (job_writes_to(&sim.backups[i], disk) && !is_over(&sim.backups[i])) {
            return true;
        }
    }
    return false;
}

/* All that goes on on its image. */
void bitmap_mark_going_on(const struct bitmap *b, uint8_t *bits)
{
    const struct disk *disk = b->now.disk;
    bool all = false;

    if (!bitmap_is_recording(b)) {
        return;
    }
    for (uint32_t i = 0; i < sim.active_count; i++) {
        mark_request(b, bits, &sim.requests[sim.active[i]], GRANULE_MAY);
    }
    for (uint32_t i = 0; i < sim.ending_count; i++) {
        mark_request(b, bits, sim.ending[i], GRANULE_MAY);
        all = all || (sim.ending[i]->disk == disk && sim.ending[i]->op == BLKREPL_OP_FLUSH);
    }
    if (all || job_lives(disk) || disk->flush_failed) {
        bitmap_mark(b, bits, 0, disk->bytes, GRANULE_MAY);
    } else {
        mark_job_writes(b, bits, 1, GRANULE_MAY);
    }
}

/* A write to a target may be a job's, with the data of a guest who is not told yet. */
static bool is_guests(const struct disk *disk)
{
    return disk_is_source(disk) || sim.backup_count == 0;
}

/* Has a write surely reached the backend? */
static bool is_given(const struct request *r)
{
    return r->wrote_sure && is_guests(r->disk);
}

/* Has it, and not ended? */
static bool is_in_flight(const struct request *r)
{
    return r->bracket ? r->state == REQUEST_GO : is_given(r);
}

/* What is in flight has to be recorded by who has recorded until now. */
void bitmap_mark_in_flight(const struct bitmap *b, uint8_t *bits, uint32_t since)
{
    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        if (r->alive >= since && is_in_flight(r)) {
            mark_request(b, bits, r, GRANULE_DIRTY);
        }
    }
    bitmap_mark_going_on(b, bits); /* those of jobs may be recorded when they end only */
}

static void job_write_is_alive(struct disk *disk, const struct disk_request *io)
{
    for (uint64_t at = io->offset / SECTOR; at * SECTOR < io->offset + io->bytes; at++) {
        disk->job_writes[at] = sim.instant;
    }
}

static void request_is_alive(const struct disk *disk, const struct disk_request *io)
{
    struct request *r = io->owner >= 0 ? &sim.requests[io->owner] : NULL;

    if (r != NULL && io->owner_sure && is_guests(disk) && r->disk == disk &&
        r->state != REQUEST_OVER) {
        r->alive = sim.instant;
        r->alive_seq = sim.seq;
    }
}

static void is_alive(struct disk *disk, const struct disk_request *io)
{
    if (io->job) {
        job_write_is_alive(disk, io);
    } else if (is_write(io->op)) {
        request_is_alive(disk, io);
    }
}

/* Something is about to be done to bitmaps: what surely goes on at this instant? */
void oracle_bitmap_instant(void)
{
    sim.instant++;
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        for (uint32_t n = 0; n < sim.disks[i].in_flight; n++) {
            is_alive(&sim.disks[i], &sim.disks[i].queue[n]);
        }
    }
    for (uint32_t i = 0; i < sim.active_count; i++) {
        struct request *r = &sim.requests[sim.active[i]];

        r->alive = r->bracket && r->state == REQUEST_GO ? sim.instant : r->alive;
    }
}

/* ---- What happens to images --------------------------------------------------------- */

static bool records(const struct bitmap *b, const struct disk *disk)
{
    return bitmap_is_recording(b) && b->now.disk == disk;
}

/* Nobody has been told that the write has ended, but the mark is there. */
static void check_mark(struct bitmap *b, const struct request *r)
{
    uint64_t found = 0;
    uint64_t offset;
    uint64_t bytes;
    int answer;

    rounded(r, false, &offset, &bytes);
    if (b->calling > 0 || b->handle_count == 0 || b->now.loading || bytes == 0) {
        return;
    }
    b->calling++;
    answer = blkrepl_bitmap_next_clean(b->handles[0], offset, bytes, &found);
    b->calling--;
    EXPECT(answer == 0, "request %d is told before byte %llu is dirty in bitmap %llu: %d",
           (int)(r - sim.requests), (ull)found, number(b), answer);
    sim.counts.marks++;
}

static void request_is_recorded(const struct request *r, bool surely)
{
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        struct bitmap *b = &sim.bitmaps[i];
        uint8_t *bits = b->now.frozen ? b->now.next : b->now.content;
        bool sure = surely && r->alive >= (b->now.frozen ? b->now.since_next : b->now.since);

        if (!records(b, r->disk)) {
            continue;
        }
        mark_request(b, bits, r, GRANULE_MAY);
        if (sure) {
            mark_request(b, bits, r, GRANULE_DIRTY);
        }
        if (sure && !b->now.frozen) {
            check_mark(b, r);
        }
    }
}

/* Discards may be left out. */
static bool surely_written(const struct request *r)
{
    return (r->result == 0 && (r->bracket || r->op != BLKREPL_OP_DISCARD)) ||
           (is_given(r) && !r->bracket);
}

/* May a flush that was accepted after the write had ended, though its guest was not
 * told yet, be a good one? */
static bool may_be_durable(const struct request *w, const struct request *but)
{
    uint64_t ended = w->bracket                     ? w->done_seq
                     : w->alive_seq > w->accept_seq ? w->alive_seq
                                                    : w->accept_seq;

    if (w->disk->good_flush_seq > ended) {
        return true;
    }
    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        if (r != but && r->disk == w->disk && r->op == BLKREPL_OP_FLUSH && r->accept_seq > ended) {
            return true;
        }
    }
    return false;
}

/* What was written since the last good flush is recorded once more. */
static void mark_unflushed(const struct bitmap *b, uint8_t *bits, const struct request *flush)
{
    for (uint32_t i = 0; i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        if (r->disk == flush->disk && r->accepted && r->state == REQUEST_OVER && is_write(r->op) &&
            surely_written(r) && r->done_seq < flush->accept_seq && !may_be_durable(r, flush)) {
            mark_request(b, bits, r, GRANULE_DIRTY);
        }
    }
}

static bool flushes(const struct request *r)
{
    return r->op == BLKREPL_OP_FLUSH || (r->flags & BLKREPL_IO_FUA) != 0;
}

static bool flush_goes_on(const struct disk *disk)
{
    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        if (r->disk == disk && (r->op == BLKREPL_OP_FLUSH || is_write(r->op)) && flushes(r)) {
            return true;
        }
    }
    return false;
}

/* A flush has failed, or something that may have failed for that. */
static void flush_is_recorded(const struct request *r)
{
    struct disk *disk = r->disk;

    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        struct bitmap *b = &sim.bitmaps[i];
        uint8_t *bits = b->now.frozen ? b->now.next : b->now.content;
        uint32_t since = b->now.frozen ? b->now.since_next : b->now.since;

        if (!records(b, disk)) {
            continue;
        }
        bitmap_mark(b, bits, 0, disk->bytes, GRANULE_MAY);
        if (r->op == BLKREPL_OP_FLUSH && !r->cancelled && r->alive >= since && !sim.shutdown) {
            mark_unflushed(b, bits, r);
        }
    }
    disk->flush_failed = disk->flush_failed && flush_goes_on(disk);
}

static void flush_over(const struct request *r)
{
    struct disk *disk = r->disk;

    if (r->result != 0) {
        flush_is_recorded(r);
    } else if (r->op == BLKREPL_OP_FLUSH && r->accept_seq > disk->good_flush_seq) {
        disk->good_flush_seq = r->accept_seq;
    }
}

void oracle_bitmap_request_over(const struct request *r)
{
    if (!sim.options.any_bitmaps || !r->accepted) {
        return;
    }
    if (is_write(r->op)) {
        request_is_recorded(r, !r->bracket && surely_written(r));
    }
    if (!r->bracket && (is_write(r->op) || r->op == BLKREPL_OP_FLUSH) && flushes(r)) {
        flush_over(r);
    }
}

/* It is not among the active ones any more, but the library has not been told. */
void oracle_bitmap_bracket_ends(const struct request *r)
{
    EXPECT(sim.ending_count < ENDING_MAX, "too many brackets end inside each other");
    sim.ending[sim.ending_count++] = r;
}

void oracle_bitmap_bracket_ended(const struct request *r)
{
    sim.ending_count--;
    if (!sim.options.any_bitmaps) {
        return;
    }
    if (is_write(r->op)) {
        request_is_recorded(r, !r->cancelled);
    } else {
        flush_over(r);
    }
}

/* The disk gets a write of the guest. */
void oracle_bitmap_given(const struct disk *disk, const struct disk_request *io)
{
    request_is_alive(disk, io);
}

void oracle_bitmap_job_write(struct disk *disk, struct disk_request *io)
{
    io->job = true;
    if (sim.options.any_bitmaps) {
        job_write_is_alive(disk, io);
    }
}

/* The disk has done it; the library has not been told. */
void oracle_bitmap_disk_done(struct disk *disk, const struct disk_request *io, int result)
{
    if (sim.options.any_bitmaps) {
        is_alive(disk, io);
        disk->flush_failed = disk->flush_failed || (io->op == BLKREPL_OP_FLUSH && result != 0);
    }
}

static void job_is_over(struct disk *disk, bool good)
{
    disk->job_failed = disk->job_failed || !good; /* another one may follow at once */
    if (sim.bitmap_count == 0 || job_lives(disk)) {
        return;
    }
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        struct bitmap *b = &sim.bitmaps[i];
        uint8_t *bits = b->now.frozen ? b->now.next : b->now.content;

        if (records(b, disk)) {
            mark_job_writes(b, bits, b->now.frozen ? b->now.since_next : b->now.since,
                            GRANULE_DIRTY);
            mark_job_writes(b, bits, 1, GRANULE_MAY);
            bitmap_mark(b, bits, 0, disk->job_failed ? disk->bytes : 0, GRANULE_MAY);
        }
    }
    disk->job_failed = false;
    memset(disk->job_writes, 0, sizeof disk->job_writes);
}

/* All that a job has written to its images is recorded now. */
void oracle_bitmap_job_over(const struct backup *backup)
{
    bool good = backup->done && backup->result == 0;

    if (job_is_verify(backup)) {
        return;
    }
    job_is_over(backup->target, good);
    if (backup->spill != NULL) {
        job_is_over(backup->spill, false);
    }
}
