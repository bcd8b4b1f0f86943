/* SPDX-License-Identifier: MIT */
/* oracle_backup.c - what a backup promises.
 *
 * The target holds, byte by byte, the medium of the source at the start.  A
 * write that had not ended then is CONCURRENT: GIVEN ones count with their data
 * (if they failed: with old or new bytes), MAYBE ones entirely or not at all,
 * AFTER ones not.  And nothing that a guest write destroys may be lost: it was
 * read (backup fails) or is on the target (guest write fails) before the source
 * disk, or the host of a bracket, gets the write.  Whoever breaks that has a
 * backup that must fail.
 */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static uint8_t start_media[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t read_maps[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t saved_maps[BACKUPS_MAX][DISK_BYTES_MAX];
/* What a COPY_FROM has put there that was not there at the start. */
static uint8_t smear_maps[BACKUPS_MAX][DISK_BYTES_MAX];
/* Read from a snapshot, and as what. */
static uint8_t seen_maps[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t seen_media[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t kept_maps[BACKUPS_MAX][DISK_BYTES_MAX];

static void must_fail(struct backup *backup, const char *why, uint64_t offset)
{
    if (backup->must_fail == NULL && job_sync(backup) != BLKREPL_SYNC_NONE) {
        EVENT("backup %n must not end as done, because of byte %n", (ull)backup->job_id, offset);
        backup->must_fail = why;
        backup->must_fail_offset = offset;
    }
}

static bool is_live(const struct backup *backup)
{
    return backup->started && !backup->done && !backup->cancel_asked && backup->release_count == 0;
}

/* ---- Old data is safe before it is destroyed ------------------------------- */

/* What the request is to the backup; -1: nothing, it came later. */
static int class_of(const struct backup *backup, int request)
{
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        if (backup->concurrent[i].request == request) {
            return (int)backup->concurrent[i].class;
        }
    }
    return -1;
}

static bool touches_concurrent(const struct backup *backup, uint64_t offset, uint64_t bytes)
{
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        const struct request *r = &sim.requests[backup->concurrent[i].request];

        if (overlaps(r->offset, r->bytes, offset, bytes)) {
            return true;
        }
    }
    return false;
}

static void given_to(struct backup *backup, int owner, const uint8_t *payload, uint64_t offset,
                     uint64_t bytes)
{
    /* With a spill image what the background has read is safe in its buffer. */
    bool on_target =
        backup->options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS && backup->spill == NULL;
    const uint8_t *safe = on_target ? backup->kept : backup->read_after;
    int class = class_of(backup, owner);

    if (class == CONCURRENT_GIVEN || class == CONCURRENT_MAYBE ||
        memchr(safe + offset, 0, bytes) == NULL) {
        return;
    }
    for (uint64_t i = 0; i < bytes; i++) {
        if (payload[i] != backup->source->medium[offset + i] && !safe[offset + i] &&
            oracle_sync_wanted(backup, offset + i)) {
            must_fail(backup,
                      on_target ? "a guest write was let through before its old data was on the "
                                  "target"
                                : "a guest write was let through before its old data was read",
                      offset + i);
            return;
        }
    }
}

/* `payload` is about to be written to a source, for a request of the guest; not
 * sure: or for another one. */
void oracle_backup_given(const struct disk *disk, const struct disk_request *io,
                         const uint8_t *payload)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *backup = &sim.backups[i];

        if (is_live(backup) && backup->source == disk && !backup->starting && job_taps(backup) &&
            (io->owner_sure || !touches_concurrent(backup, io->offset, io->bytes))) {
            given_to(backup, io->owner, payload, io->offset, io->bytes);
        }
    }
}

/* ---- What the guest does to a backup ------------------------------------------ */

/* What it touches may be copied for it, and it may have to wait, unless all is on
 * the target already, and not by a copy that may be void. */
static void touch(struct backup *backup, const struct request *r)
{
    uint64_t align = r->disk->align;
    uint64_t cluster = job_cluster(backup);
    uint64_t size = backup->source->bytes;
    uint64_t from = r->offset / align * align;
    uint64_t end = (r->offset + r->bytes + align - 1) / align * align;

    if (r->bytes == 0 || (r->op == BLKREPL_OP_DISCARD && !r->bracket)) {
        return;
    }
    end = end < size ? end : size;
    from = from / cluster * cluster;
    end = end % cluster == 0 || end + cluster > size ? end : end + cluster - end % cluster;
    end = end < size ? end : size;
    if (backup->options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS || backup->has_copied ||
        memchr(backup->saved + from, 0, end - from) != NULL) {
        backup->wait_count++;
    }
    for (uint64_t at = from; at < end; at += cluster) {
        if (backup->touched[at / cluster] == 0) {
            backup->touched[at / cluster] = 1;
            backup->touched_count++;
            backup->touched_bytes += size - at < cluster ? size - at : cluster;
        }
    }
}

/* A guest is about to write to a source. */
void oracle_backup_touch(const struct request *request)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];

        if (b->source == request->disk && b->started && !b->done && b->release_count == 0 &&
            job_taps(b)) {
            touch(b, request);
        }
    }
}

#define NOT_OFFLOADED                                                                              \
    (uint32_t)(BLKREPL_BACKUP_DETECT_ZEROES | BLKREPL_BACKUP_NO_OFFLOAD | BLKREPL_BACKUP_COMPRESS)

/* A snapshot has discarded it; nobody else does. */
static void check_discard(struct backup *b, const struct disk_request *io)
{
    uint64_t cluster = job_cluster(b);

    EXPECT(job_sync(b) == BLKREPL_SYNC_NONE && io->offset < b->source->bytes,
           "a discard on a target");
    for (uint64_t i = io->offset / cluster; i * cluster < io->offset + io->bytes; i++) {
        EXPECT(i * cluster >= b->source->bytes || b->absent[i] != 0,
               "a discard on a target, of cluster %llu, which nobody has discarded", (ull)i);
    }
}

/* One cluster a request; what is not wanted is left alone. */
static void check_compress(const struct backup *b, const struct disk *disk,
                           const struct disk_request *io, const uint8_t *payload)
{
    bool wants = (b->options.flags & BLKREPL_BACKUP_COMPRESS) != 0;
    uint64_t cluster = disk->info.cluster_bytes != 0 ? disk->info.cluster_bytes : job_cluster(b);

    bool zero = payload[0] == 0 && memcmp(payload, payload + 1, io->bytes - 1) == 0;

    EXPECT(((io->flags & BLKREPL_IO_COMPRESS) != 0) == (wants && io->op == BLKREPL_OP_WRITE) ||
               (wants && zero),
           "a write to a target: compress %u, wanted %d", io->flags & BLKREPL_IO_COMPRESS, wants);
    if ((io->flags & BLKREPL_IO_COMPRESS) != 0) {
        EXPECT(io->offset / cluster == (io->offset + io->bytes - 1) / cluster,
               "%llu+%llu are compressed, cluster %llu", (ull)io->offset, (ull)io->bytes,
               (ull)cluster);
        sim.counts.compressed++;
    }
}

static void check_wanted(const struct backup *b, const struct disk_request *io, uint64_t size)
{
    for (uint64_t at = io->offset; b->partial && at < io->offset + io->bytes && at < size;
         at += 512) {
        EXPECT(oracle_sync_wanted(b, at),
               "byte %llu of the target is written, which the backup is not to touch", (ull)at);
    }
}

/* `payload` is about to be written to a target. */
void oracle_backup_target(const struct disk *disk, const struct disk_request *io,
                          const uint8_t *payload)
{
    struct backup *backup = oracle_user_of(disk);
    uint64_t source_bytes;

    EXPECT(backup != NULL && !backup->done, "a write to a target without a running backup");
    if (backup->spill == disk) {
        oracle_spill_submit(disk, io, payload);
        return;
    }
    if (io->op == BLKREPL_OP_DISCARD) {
        check_discard(backup, io);
        return;
    }
    EXPECT(io->op != BLKREPL_OP_COPY_FROM ||
               ((backup->options.flags & NOT_OFFLOADED) == 0 && io->from == backup->source &&
                backup->through == NULL && io->from_offset == io->offset),
           "a COPY_FROM that the backup is not to send");
    check_compress(backup, disk, io, payload);
    source_bytes = backup->source->bytes;
    check_wanted(backup, io, source_bytes);
    if (io->offset + io->bytes <= source_bytes &&
        memcmp(payload, backup->start + io->offset, io->bytes) == 0) {
        return;
    }
    for (uint64_t i = 0; i < io->bytes; i++) {
        uint64_t at = io->offset + i;

        if (at >= source_bytes) {
            EXPECT(at < (source_bytes + disk->align - 1) / disk->align * disk->align &&
                       payload[i] == 0,
                   "byte %llu of the target, beyond the source, is written as %u", (ull)at,
                   payload[i]);
        } else if (payload[i] != backup->start[at] && !touches_concurrent(backup, at, 1)) {
            must_fail(backup, "data that were not there at the start were sent to the target", at);
        }
    }
}

/* A COPY_FROM has put these bytes on a target: where they are those of the start
 * they are safe.  Others come from a guest write meanwhile; that it is void shows
 * in the end. */
static void copied_to(struct backup *b, uint64_t offset, uint64_t bytes)
{
    b->has_copied = true;
    for (uint64_t at = offset; at < offset + bytes; at++) {
        bool same = b->target->medium[at] == b->start[at];

        smear_maps[b - sim.backups][at] |= !same;
        if (same || touches_concurrent(b, at, 1)) {
            b->saved_bytes += b->saved[at] ^ 1u;
            b->saved[at] = 1;
            b->kept[at] = 1;
        }
    }
}

void oracle_backup_copied(const struct disk *disk, const struct disk_request *request,
                          uint64_t offset, uint64_t bytes)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];

        if (b->started && !b->done && b->target == disk && b->source == request->from &&
            !job_is_verify(b) && request->seq >= b->start_seq) {
            copied_to(b, offset, bytes);
        }
    }
}

/* A disk has carried out a request. */
void oracle_backup_disk_done(struct disk *disk, const struct disk_request *request,
                             const blkrepl_extent *extents, uint32_t extent_count)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        uint64_t at = request->offset;

        if (!b->started || b->done || request->seq < b->start_seq || job_is_verify(b)) {
            continue;
        }
        if (b->spill == disk) {
            oracle_spill_done(disk, request);
            continue;
        }
        if (b->source == disk && request->op == BLKREPL_OP_READ) {
            memset(b->read_after + at, 1, request->bytes);
        }
        if (b->target == disk && request->op == BLKREPL_OP_COPY_FROM) {
            b->copied_bytes += request->bytes;
            for (uint64_t end = at + request->bytes; at < end; at++) {
                b->read_after[at] |= b->saved[at];
            }
            continue;
        }
        for (uint32_t n = 0; b->source == disk && n < extent_count; n++) {
            if ((extents[n].flags & BLKREPL_EXTENT_ZERO) != 0) {
                memset(b->read_after + at, 1, extents[n].bytes);
            }
            at += extents[n].bytes;
        }
        if (b->target == disk && is_write(request->op)) {
            uint64_t end = request->offset + request->bytes;

            for (end = end < b->source->bytes ? end : b->source->bytes; at < end; at++) {
                b->saved_bytes += b->saved[at] ^ 1u;
                b->saved[at] = 1;
                b->kept[at] = 1;
            }
        }
    }
}

/* May a write of the guest have ended with this code? */
bool oracle_backup_policy(const struct disk *disk, int code)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        if (b->started && b->source == disk && job_taps(b) &&
            b->options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS &&
            (code == -ETIMEDOUT || disk_has_answered(b->target, code) ||
             (b->spill != NULL && disk_has_answered(b->spill, code)) ||
             disk_has_answered(disk, code))) {
            return true;
        }
    }
    return false;
}

/* ---- Backups ---------------------------------------------------------------- */

static void add_concurrent(struct backup *backup, int request, bool inside)
{
    const struct request *r = &sim.requests[request];
    bool is_given =
        r->state == REQUEST_OVER ||
        (r->bracket ? r->state == REQUEST_GO : r->wrote_sure && r->op == BLKREPL_OP_WRITE);

    if (r->disk == backup->source && is_write(r->op) && r->bytes > 0) {
        backup->concurrent[backup->concurrent_count++] = (struct concurrent){
            .request = request, .class = is_given && !inside ? CONCURRENT_GIVEN : CONCURRENT_MAYBE};
        if (r->state != REQUEST_OVER) {
            touch(backup, r);
        }
    }
}

/* Its source is a snapshot: its point in time is that of the snapshot. */
static void see_through(struct backup *backup)
{
    const struct backup *of = backup->through->of;

    memcpy(backup->start, of->start, backup->source->bytes);
    memcpy(backup->concurrent, of->concurrent, sizeof backup->concurrent);
    backup->concurrent_count = of->concurrent_count;
    memset(backup->read_after, 1, backup->source->bytes);
}

/* The start is about to be called. */
void oracle_backup_start(struct backup *backup)
{
    uint32_t slot = (uint32_t)(backup - sim.backups);
    uint64_t bytes = backup->source->bytes;

    if (job_is_verify(backup)) {
        oracle_verify_start(backup);
        backup->started = true;
        backup->starting = true;
        return;
    }
    backup->start = start_media[slot];
    backup->read_after = read_maps[slot];
    backup->saved = saved_maps[slot];
    backup->kept = backup->spill != NULL ? kept_maps[slot] : backup->saved;
    backup->seen = seen_maps[slot];
    backup->seen_as = seen_media[slot];
    memcpy(backup->start, backup->source->medium, bytes);
    memset(backup->read_after, 0, bytes);
    memset(backup->saved, 0, bytes);
    memset(smear_maps[slot], 0, bytes);
    if (backup->spill != NULL) {
        memset(backup->kept, 0, bytes);
    }
    if (job_sync(backup) == BLKREPL_SYNC_NONE) {
        memset(backup->seen, 0, bytes);
        memset(backup->absent, 0, sizeof backup->absent);
    }
    oracle_spill_start(backup);
    backup->copied_bytes = 0;
    backup->has_copied = false;
    memset(backup->touched, 0, sizeof backup->touched);
    backup->saved_bytes = 0;
    backup->touched_count = 0;
    backup->touched_bytes = 0;
    backup->wait_count = 0;
    backup->failed_reads = backup->source->failed_reads;
    backup->failed_writes = backup->target->failed_writes;
    backup->failed_others = backup->target->failed_others;
    backup->concurrent_count = 0;
    /* Also what is over and came after one that is not: it has the last word. */
    for (uint32_t i = sim.active_count > 0 ? (uint32_t)sim.active[0] : sim.request_count;
         i < sim.request_count; i++) {
        if (sim.requests[i].state != REQUEST_OVER || sim.requests[i].accepted) {
            add_concurrent(backup, (int)i, false);
        }
    }
    backup->start_seq = sim.seq;
    backup->start_ns = sim.now_ns;
    oracle_sync_start(backup);
    if (backup->through != NULL) {
        see_through(backup);
    }
    backup->started = true;
    backup->starting = true;
}

/* The start has been called.  What a disk that had room has not seen by now, in
 * a call from outside, cannot have been given. */
void oracle_backup_started(struct backup *backup, uint32_t requests_before, bool idle_before)
{
    const struct disk *source = backup->source;
    bool idle = !job_is_verify(backup) && idle_before &&
                source->in_flight < source->info.queue_depth && source->align <= 1 &&
                source->inline_percent == 0 && !sim.stretched;

    if (job_is_verify(backup)) {
        backup->starting = false;
        return;
    }
    for (uint32_t i = requests_before; i < sim.request_count && backup->through == NULL; i++) {
        add_concurrent(backup, (int)i, true);
    }
    oracle_sync_started(backup);
    for (uint32_t i = 0; idle && backup->through == NULL && i < backup->concurrent_count; i++) {
        struct concurrent *c = &backup->concurrent[i];
        const struct request *r = &sim.requests[c->request];

        /* On another lane it may wait, given, for a poll. */
        if (c->class == CONCURRENT_MAYBE && !r->bracket && !r->wrote && r->lane == 0) {
            c->class = CONCURRENT_AFTER;
        }
    }
    backup->starting = false;
}

/* Whether the backup must hold the data of the write, not just may. */
static bool counts(const struct concurrent *c, const struct request *r)
{
    return c->class == CONCURRENT_GIVEN && r->state == REQUEST_OVER && r->wrote && r->result == 0 &&
           r->op != BLKREPL_OP_DISCARD;
}

/* Those that were not over at the start and may be seen in a range. */
struct nearby {
    uint32_t count;
    const struct concurrent *list[REQUESTS_MAX];
};

static void find_nearby(const struct backup *backup, uint64_t from, uint64_t end,
                        struct nearby *nearby)
{
    nearby->count = 0;
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        const struct concurrent *c = &backup->concurrent[i];
        const struct request *r = &sim.requests[c->request];

        if (c->class != CONCURRENT_AFTER && (r->state != REQUEST_OVER || r->wrote) &&
            overlaps(r->offset, r->bytes, from, end - from)) {
            nearby->list[nearby->count++] = c;
        }
    }
}

/* Requests are in the order of their acceptance, which is that of their effect. */
static bool is_allowed(const struct backup *backup, const struct nearby *nearby, uint64_t at,
                       uint8_t value)
{
    bool allowed = value == backup->start[at];

    for (uint32_t i = 0; i < nearby->count; i++) {
        const struct request *r = &sim.requests[nearby->list[i]->request];

        if (request_covers(r, backup->source, at)) {
            bool same = value == request_byte(r, at);

            allowed = counts(nearby->list[i], r) ? same : allowed || same;
        }
    }
    return allowed;
}

bool oracle_backup_may_be(const struct backup *backup, uint64_t at, uint8_t value)
{
    static struct nearby nearby;

    if (value == backup->start[at] && !touches_concurrent(backup, at, 1)) {
        return true;
    }
    find_nearby(backup, at, at + 1, &nearby);
    return is_allowed(backup, &nearby, at, value);
}

/* A write that may have been given or not is in the backup whole or not at all. */
static void check_whole(const struct backup *backup, const struct concurrent *c)
{
    const struct request *r = &sim.requests[c->request];
    const uint8_t *target = backup->target->medium;
    uint32_t old_count = 0;
    uint32_t new_count = 0;

    if (c->class != CONCURRENT_MAYBE || r->op != BLKREPL_OP_WRITE || r->state != REQUEST_OVER ||
        r->result != 0 || backup->partial) {
        return;
    }
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        const struct request *other = &sim.requests[backup->concurrent[i].request];

        if (other != r && overlaps(r->offset, r->bytes, other->offset, other->bytes)) {
            return;
        }
    }
    for (uint64_t at = r->offset; at < r->offset + r->bytes; at++) {
        if (backup->start[at] != request_byte(r, at)) {
            old_count += target[at] == backup->start[at];
            new_count += target[at] == request_byte(r, at);
        }
    }
    EXPECT(old_count == 0 || new_count == 0,
           "the backup holds a part of write %d: %u bytes old, %u new", c->request, old_count,
           new_count);
}

static void check_bytes(const struct backup *backup, const uint8_t *data, uint64_t from,
                        uint64_t end, const char *where)
{
    static struct nearby nearby;

    find_nearby(backup, from, end, &nearby);
    for (uint64_t at = from; at < end; at++) {
        uint8_t value = data[at - from];
        bool copied = backup->chained || oracle_sync_wanted(backup, at);

        EXPECT(
            copied ? is_allowed(backup, &nearby, at, value) : value == backup->base[at],
            "backup %llu is done, byte %llu of the target is %u %s, was %u at the start, is %u now",
            (ull)backup->job_id, (ull)at, value, where, backup->start[at],
            backup->source->medium[at]);
    }
}

/* These data may be what is on the target: do they keep the promise? */
void oracle_backup_kept(const struct backup *backup, const uint8_t *data, uint64_t offset,
                        uint64_t bytes, const char *where)
{
    uint64_t size = backup->source->bytes;
    uint64_t end = offset + bytes < size ? offset + bytes : size;

    for (uint64_t at = offset; at < end; at += 512) {
        uint64_t part = end - at < 512 ? end - at : 512;

        if (memcmp(backup->promise + at, data + (at - offset), part) != 0) {
            check_bytes(backup, data + (at - offset), at, at + part, where);
        }
    }
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        const struct request *r = &sim.requests[backup->concurrent[i].request];
        uint64_t r_end = r->offset + r->bytes < end ? r->offset + r->bytes : end;
        uint64_t from = r->offset > offset ? r->offset : offset;

        if (from < r_end && counts(&backup->concurrent[i], r)) {
            check_bytes(backup, data + (from - offset), from, r_end, where);
        }
    }
}

/* The target goes to others: a set of backups that this ends, to undo it. */
uint32_t oracle_backup_overwrite(const struct disk *target)
{
    uint32_t set = 0;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (job_writes_to(&sim.backups[i], target) && !sim.backups[i].overwritten) {
            sim.backups[i].overwritten = true;
            set |= UINT32_C(1) << i;
        }
    }
    return set;
}

void oracle_backup_overwrite_not(uint32_t backups)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if ((backups >> i & 1) != 0) {
            sim.backups[i].overwritten = false;
        }
    }
}

/* May a backup that started after `since` have written this to its target? */
bool oracle_backup_wrote(const struct disk *target, uint64_t position, uint8_t value,
                         uint64_t since)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        uint64_t end;

        if (!job_writes_to(b, target) || b->start == NULL || b->start_seq < since) {
            continue;
        }
        if (b->spill == target) {
            if (oracle_spill_may_hold(b, position, value)) {
                return true;
            }
            continue;
        }
        if (job_sync(b) == BLKREPL_SYNC_NONE && value == disk_discard_byte(target, position)) {
            return true;
        }
        if (smear_maps[i][position] != 0) {
            return true;
        }
        end = (b->source->bytes + target->align - 1) / target->align * target->align;
        if (position < b->source->bytes ? value == b->start[position]
                                        : value == 0 && position < end) {
            return true;
        }
        for (uint32_t n = 0; n < b->concurrent_count; n++) {
            const struct request *r = &sim.requests[b->concurrent[n].request];

            if (request_covers(r, b->source, position) && request_byte(r, position) == value) {
                return true;
            }
        }
    }
    return false;
}

/* Is it done, and has nobody else written to its target? */
bool oracle_backup_is_kept(const struct backup *backup)
{
    return backup->checked && !backup->overwritten && !job_is_verify(backup) &&
           job_sync(backup) != BLKREPL_SYNC_NONE && oracle_user_of(backup->target) == backup;
}

/* The library says that the backup is done. */
void oracle_backup_done(struct backup *backup)
{
    backup->checked = true;
    if (job_sync(backup) == BLKREPL_SYNC_NONE) {
        return; /* what it has saved is good as long as it runs */
    }
    if (!oracle_backup_is_kept(backup)) {
        return; /* it has been overwritten by now */
    }
    EXPECT(backup->must_fail == NULL, "backup %llu is done, but at byte %llu %s",
           (ull)backup->job_id, (ull)backup->must_fail_offset, backup->must_fail);
    oracle_backup_kept(backup, backup->target->medium, 0, backup->source->bytes, "as it is read");
    power_check_backup(backup);
    sim.counts.links += backup->chained;
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        check_whole(backup, &backup->concurrent[i]);
    }
    for (uint32_t i = 0; i < backup->target->in_flight; i++) {
        EXPECT(!is_write(backup->target->queue[i].op), "backup %llu is done with a write in flight",
               (ull)backup->job_id);
    }
}
