/* SPDX-License-Identifier: MIT */
/* oracle.c - what must hold.
 *
 * The guest's view: every byte that reaches a source is explained by a pending
 * request of the guest or leaves the medium as it is; an acknowledged write is
 * on the medium; a read returns what was there during the read.
 *
 * Backup: the target holds, byte by byte, the medium of the source at the
 * start.  A write that had not ended then is CONCURRENT: GIVEN ones count with
 * their data (if they failed: with old or new bytes), MAYBE ones entirely or
 * not at all, AFTER ones not.  And nothing that a guest write destroys may be
 * lost: it was read (backup fails) or is on the target (guest write fails)
 * before the source disk, or the host of a bracket, gets the write.  Whoever
 * breaks that has a backup that must fail.
 */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static uint8_t payload[DISK_BYTES_MAX];
static uint8_t expected[DISK_BYTES_MAX];
static uint8_t start_media[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t read_maps[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t saved_maps[BACKUPS_MAX][DISK_BYTES_MAX];

static int index_of(const struct request *request)
{
    return (int)(request - sim.requests);
}

static bool covers(const struct request *request, const struct disk *disk, uint64_t position)
{
    return request->disk == disk && is_write(request->op) && position >= request->offset &&
           position - request->offset < request->bytes;
}

/* All that a write puts on the medium. */
static void request_fill(const struct request *request, uint8_t *out)
{
    if (request->op == BLKREPL_OP_WRITE && request->tag != 0) {
        pattern_fill(out, request->tag, request->offset, request->bytes);
    } else if (request->op != BLKREPL_OP_DISCARD) {
        memset(out, 0, request->bytes);
    } else {
        for (uint64_t i = 0; i < request->bytes; i++) {
            out[i] = request_byte(request, request->offset + i);
        }
    }
}

static void must_fail(struct backup *backup, const char *why, uint64_t offset)
{
    if (backup->must_fail == NULL) {
        EVENT("backup %llu must not end as done, because of byte %llu", (ull)backup->job_id,
              offset);
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

static void given_to(struct backup *backup, int owner, uint64_t offset, uint64_t bytes)
{
    bool on_target = backup->options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS;
    const uint8_t *safe = on_target ? backup->saved : backup->read_after;
    int class = class_of(backup, owner);

    if (class == CONCURRENT_GIVEN || class == CONCURRENT_MAYBE ||
        memchr(safe + offset, 0, bytes) == NULL) {
        return;
    }
    for (uint64_t i = 0; i < bytes; i++) {
        if (payload[i] != backup->source->medium[offset + i] && !safe[offset + i]) {
            must_fail(backup,
                      on_target ? "a guest write was let through before its old data was on the "
                                  "target"
                                : "a guest write was let through before its old data was read",
                      offset + i);
            return;
        }
    }
}

/* `payload` is about to be written to a source. */
static void given(struct disk *disk, int owner, bool sure, uint64_t offset, uint64_t bytes)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *backup = &sim.backups[i];

        if (is_live(backup) && backup->source == disk && !backup->starting &&
            (sure || !touches_concurrent(backup, offset, bytes))) {
            given_to(backup, owner, offset, bytes);
        }
    }
}

/* The host has just learned that it may write. */
void oracle_go(struct request *request)
{
    struct disk *disk = request->disk;

    if (!is_write(request->op)) {
        return;
    }
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        EXPECT(!is_write(disk->queue[i].op) ||
                   !overlaps(disk->queue[i].offset, disk->queue[i].bytes, request->offset,
                             request->bytes),
               "GO for request %d while id %llu is in flight", index_of(request),
               (ull)disk->queue[i].id);
    }
    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        EXPECT(r == request || r->disk != disk || r->state != REQUEST_GO || !is_write(r->op) ||
                   !overlaps(r->offset, r->bytes, request->offset, request->bytes),
               "GO for request %d while bracket %d is open", index_of(request), index_of(r));
    }
    request_fill(request, payload);
    given(disk, index_of(request), true, request->offset, request->bytes);
}

/* ---- Submits ---------------------------------------------------------------- */

static bool payload_matches(const struct request *r, const struct disk_request *io)
{
    uint64_t from = r->offset > io->offset ? r->offset : io->offset;
    uint64_t r_end = r->offset + r->bytes;
    uint64_t end = r_end < io->offset + io->bytes ? r_end : io->offset + io->bytes;

    if ((io->op == BLKREPL_OP_DISCARD) != (r->op == BLKREPL_OP_DISCARD)) {
        return false;
    }
    if (io->op == BLKREPL_OP_DISCARD) {
        return from == io->offset && end == io->offset + io->bytes;
    }
    for (uint64_t i = from; i < end && i < from + 8; i++) {
        if (payload[i - io->offset] != request_byte(r, i)) {
            return false;
        }
    }
    request_fill(r, expected);
    return memcmp(payload + (from - io->offset), expected + (from - r->offset), end - from) == 0;
}

/* The requests that may have caused the write.  The oldest is the owner, unless
 * it has ended inside the library already. */
static uint32_t find_owners(struct disk *disk, struct disk_request *io, struct request **owners)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < sim.active_count; i++) {
        struct request *r = &sim.requests[sim.active[i]];

        if (r->disk == disk && !r->bracket && is_write(r->op) &&
            overlaps(r->offset, r->bytes, io->offset, io->bytes) && payload_matches(r, io)) {
            r->wrote = true;
            owners[count++] = r;
        }
    }
    io->owner = count > 0 ? index_of(owners[0]) : -1;
    io->owner_sure = count == 1;
    if (count == 1) {
        owners[0]->wrote_sure = true;
    }
    return count;
}

static bool inside(const struct request *r, const struct disk_request *io)
{
    return io->offset >= r->offset && io->offset + io->bytes <= r->offset + r->bytes;
}

static void source_submit(struct disk *disk, struct disk_request *io)
{
    static struct request *owners[REQUESTS_MAX];
    uint32_t count = find_owners(disk, io, owners);

    EXPECT(io->op != BLKREPL_OP_DISCARD || count > 0, "a discard that nobody asked for");
    for (uint64_t i = 0; count == 0 || !inside(owners[0], io) ? i < io->bytes : false; i++) {
        uint64_t at = io->offset + i;
        bool wanted = payload[i] == disk->medium[at];

        for (uint32_t n = 0; !wanted && n < count; n++) {
            wanted = covers(owners[n], disk, at);
        }
        EXPECT(wanted, "write %llu+%llu changes byte %llu, which no pending request wants changed",
               (ull)io->offset, (ull)io->bytes, (ull)at);
    }
    given(disk, io->owner, io->owner_sure, io->offset, io->bytes);
}

static struct backup *backup_of_target(const struct disk *target)
{
    struct backup *found = NULL;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].target == target && sim.backups[i].started) {
            found = &sim.backups[i];
        }
    }
    return found;
}

static void target_submit(struct disk *disk, const struct disk_request *io)
{
    struct backup *backup = backup_of_target(disk);
    uint64_t source_bytes;

    EXPECT(backup != NULL && !backup->done, "a write to a target without a running backup");
    EXPECT(io->op != BLKREPL_OP_DISCARD, "a discard on a target");
    source_bytes = backup->source->bytes;
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

/* A disk has got a request. */
void oracle_submit(struct disk *disk, struct disk_request *request)
{
    if (!is_write(request->op)) {
        return;
    }
    disk_payload(disk, request, payload);
    if (disk->index < sim.options.sources) {
        source_submit(disk, request);
    } else {
        target_submit(disk, request);
    }
}

/* A disk has carried out a request. */
void oracle_disk_done(struct disk *disk, const struct disk_request *request,
                      const blkrepl_extent *extents, uint32_t extent_count)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        uint64_t at = request->offset;

        if (!b->started || b->done || request->seq < b->start_seq) {
            continue;
        }
        if (b->source == disk && request->op == BLKREPL_OP_READ) {
            memset(b->read_after + at, 1, request->bytes);
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
            }
        }
    }
}

/* ---- The guest -------------------------------------------------------------- */

/* May a write of the guest have ended with this code? */
static bool is_policy_code(const struct disk *disk, int code)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        if (b->started && b->source == disk &&
            b->options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS &&
            (code == -ETIMEDOUT || disk_has_answered(b->target, code) ||
             disk_has_answered(disk, code))) {
            return true;
        }
    }
    return false;
}

static void check_error(const struct request *request)
{
    int code = request->result;
    bool policy = is_write(request->op) && request->op != BLKREPL_OP_FLUSH &&
                  is_policy_code(request->disk, code);
    bool cancelled = code == -ECANCELED && (sim.shutdown || request->cancelled);
    bool backend = !request->bracket && disk_has_answered(request->disk, code);
    bool unsupported = code == -ENOTSUP && request->op == BLKREPL_OP_ZEROES &&
                       (request->flags & BLKREPL_IO_NO_FALLBACK) != 0;

    EXPECT(policy || cancelled || unsupported || (backend && code != -ECANCELED),
           "request %d ended with %d, which its disk never answered", index_of(request), code);
    EXPECT(!policy || backend || cancelled || !request->wrote_sure ||
               request->op != BLKREPL_OP_WRITE, /* others go in pieces */
           "request %d failed by policy, with %d, after it was written", index_of(request), code);
}

static bool later_write(const struct request *request, uint64_t position)
{
    for (uint32_t i = (uint32_t)index_of(request) + 1; i < sim.request_count; i++) {
        if (sim.requests[i].wrote && covers(&sim.requests[i], request->disk, position)) {
            return true;
        }
    }
    return false;
}

/* A write through the library has been acknowledged, or has failed. */
void oracle_guest_done(const struct request *request)
{
    const struct disk *disk = request->disk;
    bool same = true;

    if (request->result != 0) {
        check_error(request);
        return;
    }
    if (request->op != BLKREPL_OP_DISCARD) {
        request_fill(request, expected);
        same = memcmp(expected, disk->medium + request->offset, request->bytes) == 0;
    }
    for (uint64_t at = request->offset; !same && at < request->offset + request->bytes; at++) {
        EXPECT(disk->medium[at] == request_byte(request, at) || later_write(request, at),
               "request %d is acknowledged, byte %llu is not on the disk", index_of(request),
               (ull)at);
    }
    for (uint32_t i = 0; (request->flags & BLKREPL_IO_FUA) != 0 && i < disk->volatile_count; i++) {
        EXPECT(disk->volatile_writes[i].owner != index_of(request),
               "request %d with FUA is acknowledged and not durable", index_of(request));
    }
}

void oracle_flush_done(const struct request *request)
{
    const struct disk *disk = request->disk;

    if (request->result != 0) {
        check_error(request);
        return;
    }
    for (uint32_t i = 0; i < disk->volatile_count; i++) {
        int owner = disk->volatile_writes[i].owner;
        const struct request *r = owner >= 0 ? &sim.requests[owner] : NULL;

        EXPECT(r == NULL || r->state != REQUEST_OVER || r->result != 0 ||
                   r->done_seq >= request->accept_seq,
               "flush %d has succeeded, request %d is not durable", index_of(request), owner);
    }
}

/* A read has ended; `before` is what was on the medium when it was accepted. */
void oracle_read_done(const struct request *request, const uint8_t *before)
{
    const struct disk *disk = request->disk;

    if (request->result != 0) {
        check_error(request);
        return;
    }
    for (uint64_t i = 0; i < request->bytes; i++) {
        uint64_t at = request->offset + i;
        bool good = request->buffer[i] == before[i] || request->buffer[i] == disk->medium[at];

        for (uint32_t n = 0; !good && n < sim.request_count; n++) {
            const struct request *w = &sim.requests[n];

            good = covers(w, disk, at) &&
                   (w->state != REQUEST_OVER || w->done_seq > request->accept_seq) &&
                   request_byte(w, at) == request->buffer[i];
        }
        EXPECT(good, "read %d returned %u for byte %llu, which was never there", index_of(request),
               request->buffer[i], (ull)at);
    }
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
    }
}

/* The start is about to be called. */
void oracle_backup_start(struct backup *backup)
{
    uint32_t slot = (uint32_t)(backup - sim.backups);
    uint64_t bytes = backup->source->bytes;

    backup->start = start_media[slot];
    backup->read_after = read_maps[slot];
    backup->saved = saved_maps[slot];
    memcpy(backup->start, backup->source->medium, bytes);
    memset(backup->read_after, 0, bytes);
    memset(backup->saved, 0, bytes);
    backup->saved_bytes = 0;
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
    backup->started = true;
    backup->starting = true;
}

/* The start has been called.  What a disk that had room has not seen by now, in
 * a call from outside, cannot have been given. */
void oracle_backup_started(struct backup *backup, uint32_t requests_before, bool idle_before)
{
    const struct disk *source = backup->source;
    bool idle = idle_before && source->in_flight < source->info.queue_depth && source->align <= 1 &&
                source->inline_percent == 0;

    for (uint32_t i = requests_before; i < sim.request_count; i++) {
        add_concurrent(backup, (int)i, true);
    }
    for (uint32_t i = 0; idle && i < backup->concurrent_count; i++) {
        struct concurrent *c = &backup->concurrent[i];
        const struct request *r = &sim.requests[c->request];

        if (c->class == CONCURRENT_MAYBE && !r->bracket && !r->wrote) {
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

/* Requests are in the order of their acceptance, which is that of their effect. */
static bool is_allowed(const struct backup *backup, uint64_t at, uint8_t value)
{
    bool allowed = value == backup->start[at];

    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        const struct concurrent *c = &backup->concurrent[i];
        const struct request *r = &sim.requests[c->request];
        bool over = r->state == REQUEST_OVER;
        bool same;

        if (c->class == CONCURRENT_AFTER || !covers(r, backup->source, at) || (over && !r->wrote)) {
            continue;
        }
        same = value == request_byte(r, at);
        if (counts(c, r)) {
            allowed = same;
        } else {
            allowed = allowed || same;
        }
    }
    return allowed;
}

/* A write that may have been given or not is in the backup whole or not at all. */
static void check_whole(const struct backup *backup, const struct concurrent *c)
{
    const struct request *r = &sim.requests[c->request];
    const uint8_t *target = backup->target->medium;
    uint32_t old_count = 0;
    uint32_t new_count = 0;

    if (c->class != CONCURRENT_MAYBE || r->op != BLKREPL_OP_WRITE || r->state != REQUEST_OVER ||
        r->result != 0) {
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

static void check_byte(const struct backup *backup, uint64_t at)
{
    uint8_t value = backup->target->medium[at];

    EXPECT(is_allowed(backup, at, value),
           "backup %llu is done, byte %llu of the target is %u, was %u at the start, is %u now",
           (ull)backup->job_id, (ull)at, value, backup->start[at], backup->source->medium[at]);
}

/* The library says that the backup is done. */
void oracle_backup_done(struct backup *backup)
{
    uint64_t bytes = backup->source->bytes;

    backup->checked = true;
    if (backup_of_target(backup->target) != backup) {
        return; /* it has been overwritten by now */
    }
    EXPECT(backup->must_fail == NULL, "backup %llu is done, but at byte %llu %s",
           (ull)backup->job_id, (ull)backup->must_fail_offset, backup->must_fail);
    for (uint64_t at = 0; at < bytes; at += 512) {
        uint64_t part = bytes - at < 512 ? bytes - at : 512;

        if (memcmp(backup->start + at, backup->target->medium + at, part) != 0) {
            for (uint64_t i = at; i < at + part; i++) {
                check_byte(backup, i);
            }
        }
    }
    for (uint32_t i = 0; i < backup->concurrent_count; i++) {
        const struct request *r = &sim.requests[backup->concurrent[i].request];

        for (uint64_t at = r->offset;
             counts(&backup->concurrent[i], r) && at < r->offset + r->bytes; at++) {
            check_byte(backup, at);
        }
        check_whole(backup, &backup->concurrent[i]);
    }
    EXPECT(backup->target->volatile_count == 0, "backup %llu is done, its target is not durable",
           (ull)backup->job_id);
    EXPECT(backup->target->in_flight == 0, "backup %llu is done with requests in flight",
           (ull)backup->job_id);
}
