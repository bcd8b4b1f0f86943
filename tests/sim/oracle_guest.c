/* SPDX-License-Identifier: MIT */
/* oracle_guest.c - what a guest may rely on.
 *
 * Every byte that reaches a source is explained by a pending request of the
 * guest or leaves the medium as it is; an acknowledged write is on the medium; a
 * read returns what was there during the read; what a flush has covered is
 * durable.
 */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static uint8_t payload[DISK_BYTES_MAX];
static uint8_t expected[DISK_BYTES_MAX];

static int index_of(const struct request *request)
{
    return (int)(request - sim.requests);
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
    oracle_backup_given(disk,
                        &(struct disk_request){.owner = index_of(request),
                                               .owner_sure = true,
                                               .offset = request->offset,
                                               .bytes = request->bytes},
                        payload);
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
        oracle_bitmap_given(disk, io);
    }
    return count;
}

static bool lies_inside(const struct request *r, const struct disk_request *io)
{
    return io->offset >= r->offset && io->offset + io->bytes <= r->offset + r->bytes;
}

/* The first byte that nobody wants to be as it would be written; the end if there
 * is none. */
static uint64_t first_unwanted(const struct disk *disk, const struct disk_request *io,
                               struct request *const *owners, uint32_t count)
{
    for (uint64_t i = 0; count == 0 || !lies_inside(owners[0], io) ? i < io->bytes : false; i++) {
        uint64_t at = io->offset + i;
        bool wanted = payload[i] == disk->medium[at];

        for (uint32_t n = 0; !wanted && n < count; n++) {
            wanted = request_covers(owners[n], disk, at);
        }
        if (!wanted) {
            return at;
        }
    }
    return io->offset + io->bytes;
}

/* Old data that are spilled, and what a snapshot discards, go out with whose they are. */
static bool is_for_guest(const struct disk *disk, const struct disk_request *io)
{
    const struct backup *user = oracle_user_of(disk);

    return io->op == BLKREPL_OP_DISCARD || (user != NULL && user->spill == disk);
}

/* A disk has got a request.  A target gets writes of its job or of the guest, never
 * of both; who it is shows in the data. */
void oracle_submit(struct disk *disk, struct disk_request *io)
{
    static struct request *owners[REQUESTS_MAX];
    uint64_t unwanted;
    uint32_t count;

    if (!is_write(io->op)) {
        return;
    }
    disk_payload(disk, io, payload);
    if (io->op == BLKREPL_OP_COPY_FROM) {
        lanes_job_submit(io->lane);
        oracle_backup_target(disk, io, payload);
        oracle_bitmap_job_write(disk, io);
        return;
    }
    count = find_owners(disk, io, owners);
    unwanted = first_unwanted(disk, io, owners, count);
    if (io->owner_sure) {
        lanes_owner(owners[0], io->lane);
    }
    if (!disk_is_source(disk) && (count == 0 || unwanted < io->offset + io->bytes)) {
        if (!is_for_guest(disk, io)) {
            lanes_job_submit(io->lane);
        }
        oracle_backup_target(disk, io, payload);
        oracle_bitmap_job_write(disk, io);
        return;
    }
    EXPECT(io->op != BLKREPL_OP_DISCARD || count > 0, "a discard that nobody asked for");
    EXPECT(unwanted == io->offset + io->bytes,
           "write %llu+%llu changes byte %llu, which no pending request wants changed",
           (ull)io->offset, (ull)io->bytes, (ull)unwanted);
    oracle_backup_given(disk, io, payload);
}

/* ---- The guest -------------------------------------------------------------- */

static void check_error(const struct request *request)
{
    int code = request->result;
    bool policy = is_write(request->op) && request->op != BLKREPL_OP_FLUSH &&
                  oracle_backup_policy(request->disk, code);
    bool cancelled = code == -ECANCELED && (sim.shutdown || request->cancelled);
    bool backend = !request->bracket && disk_has_answered(request->disk, code);
    bool unsupported = code == -ENOTSUP && request->op == BLKREPL_OP_ZEROES &&
                       (request->flags & BLKREPL_IO_NO_FALLBACK) != 0 &&
                       disk_refuses_zeroes(request->disk);

    backend = backend && (code != -ECANCELED || sim.options.contract_percent > 0);
    EXPECT(policy || cancelled || unsupported || backend,
           "request %d ended with %d, which its disk never answered", index_of(request), code);
    EXPECT(!policy || backend || cancelled || !request->wrote_sure ||
               request->op != BLKREPL_OP_WRITE, /* others go in pieces */
           "request %d failed by policy, with %d, after it was written", index_of(request), code);
}

static bool has_written(const struct request *r, const struct disk *disk, uint64_t position,
                        uint8_t value)
{
    return r->wrote && request_covers(r, disk, position) && request_byte(r, position) == value;
}

/* May a write that came later have put this there? */
bool oracle_written_later(const struct request *request, uint64_t position, uint8_t value)
{
    static uint32_t last; /* mostly the next byte comes from where the last one came */
    uint32_t first = (uint32_t)index_of(request) + 1;

    if (last >= first && last < sim.request_count &&
        has_written(&sim.requests[last], request->disk, position, value)) {
        return true;
    }
    for (last = first; last < sim.request_count; last++) {
        if (has_written(&sim.requests[last], request->disk, position, value)) {
            return true;
        }
    }
    /* One that was made inside of this one's call was accepted before it. */
    for (uint32_t i = 0; i + 1 < first; i++) {
        if (sim.requests[i].accept_seq > request->accept_seq &&
            has_written(&sim.requests[i], request->disk, position, value)) {
            return true;
        }
    }
    return oracle_backup_wrote(request->disk, position, value, request->accept_seq);
}

/* A write has been acknowledged, or has failed. */
void oracle_guest_done(struct request *request)
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
        EXPECT(disk->medium[at] == request_byte(request, at) ||
                   oracle_written_later(request, at, disk->medium[at]),
               "request %d is acknowledged, byte %llu is not on the disk", index_of(request),
               (ull)at);
    }
    if ((request->flags & BLKREPL_IO_FUA) != 0 && request->bytes > 0) {
        request->durable = true;
        power_check_request(request);
    }
}

/* What was acknowledged before the flush was asked for is durable now. */
void oracle_flush_done(const struct request *request)
{
    if (request->result != 0) {
        check_error(request);
        return;
    }
    for (uint32_t i = 0; i < sim.request_count; i++) {
        struct request *r = &sim.requests[i];

        if (r->disk == request->disk && !r->durable && r->accepted && r->bytes > 0 &&
            (r->op == BLKREPL_OP_WRITE || r->op == BLKREPL_OP_ZEROES) && r->state == REQUEST_OVER &&
            r->result == 0 && r->done_seq < request->accept_seq) {
            r->durable = true;
            power_check_request(r);
        }
    }
}

/* Was there a write of this while the request went on? */
static bool written_meanwhile(const struct request *request, uint64_t position, uint8_t value)
{
    for (uint32_t i = 0; i < sim.request_count; i++) {
        const struct request *w = &sim.requests[i];

        if (request_covers(w, request->disk, position) &&
            (w->state != REQUEST_OVER || w->done_seq > request->accept_seq) &&
            request_byte(w, position) == value) {
            return true;
        }
    }
    return false;
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
        uint8_t value = request->buffer[i];

        EXPECT(value == before[i] || value == disk->medium[at] ||
                   written_meanwhile(request, at, value) || oracle_backup_wrote(disk, at, value, 0),
               "read %d returned %u for byte %llu, which was never there", index_of(request), value,
               (ull)at);
    }
}
