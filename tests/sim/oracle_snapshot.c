/* SPDX-License-Identifier: MIT */
/* oracle_snapshot.c - what is read from a snapshot is the point in time, or an error that
 * snapshot.h allows.
 *
 * A byte that has been read once is the same for ever, through whatever image of the job:
 * also one that a write in flight at the start had something to do with. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

/* In `absent`: a discard was asked for, and has been acknowledged. */
enum {
    ABSENT_MAYBE = 1,
    ABSENT_SURE = 2
};

static bool any_absent(const struct request *r, uint8_t least)
{
    const struct backup *of = r->snapshot->of;
    uint64_t cluster = job_cluster(of);

    for (uint64_t i = r->offset / cluster; i * cluster < r->offset + r->bytes; i++) {
        if (of->absent[i] >= least || (of->partial && of->wanted[i] == 0)) {
            return true;
        }
    }
    return false;
}

/* Errors are ignored, and there were some: what could not be saved is lost. */
static bool may_be_lost(const struct backup *of)
{
    return (of->on_error[BLKREPL_SIDE_TARGET] == BLKREPL_ON_ERROR_IGNORE ||
            of->on_error[BLKREPL_SIDE_SOURCE] == BLKREPL_ON_ERROR_IGNORE) &&
           of->source->failed_reads + of->target->failed_writes + of->target->failed_others !=
               of->failed_reads + of->failed_writes + of->failed_others;
}

static bool is_absent(const struct backup *of, uint64_t at, uint8_t least)
{
    uint64_t i = at / job_cluster(of);

    return of->absent[i] >= least || (of->partial && of->wanted[i] == 0) || may_be_lost(of);
}

static void mark(const struct request *r, uint8_t what)
{
    struct backup *of = r->snapshot->of;
    uint64_t cluster = job_cluster(of);
    uint64_t size = of->source->bytes;
    uint64_t end = r->offset + r->bytes;

    for (uint64_t i = (r->offset + cluster - 1) / cluster; i * cluster < size; i++) {
        uint64_t cluster_end = size - i * cluster < cluster ? size : (i + 1) * cluster;

        if (cluster_end > end) {
            return;
        }
        of->absent[i] |= cluster_end % cluster == 0 || what == ABSENT_MAYBE ? what : 0;
    }
}

/* Whether a backup may have read the image: over what that has not saved yet a discard may
 * be left out, as on any image. */
static bool may_be_left_out(const struct snapshot *snapshot)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].through == snapshot && !job_is_verify(&sim.backups[i])) {
            return true;
        }
    }
    return false;
}

/* The request is about to be made. */
void oracle_snapshot_asked(struct request *r)
{
    if (r->op == BLKREPL_OP_DISCARD) {
        mark(r, ABSENT_MAYBE);
    } else if (r->op == BLKREPL_OP_READ) {
        r->must_fail = r->bytes > 0 && any_absent(r, ABSENT_SURE);
    }
}

static void check_byte(const struct request *r, uint64_t at, uint8_t value)
{
    struct backup *of = r->snapshot->of;

    EXPECT(oracle_backup_may_be(of, at, value),
           "snapshot read %d returned %u for byte %llu, which was %u at the start",
           (int)(r - sim.requests), value, (ull)at, of->start[at]);
    EXPECT(of->seen[at] == 0 || of->seen_as[at] == value,
           "snapshot read %d returned %u for byte %llu, where %u was read before",
           (int)(r - sim.requests), value, (ull)at, of->seen_as[at]);
    of->seen[at] = 1;
    of->seen_as[at] = value;
}

static void read_done(const struct request *r)
{
    EXPECT(!r->must_fail, "snapshot read %d has succeeded, there is nothing to be read",
           (int)(r - sim.requests));
    for (uint64_t i = 0; i < r->bytes; i++) {
        check_byte(r, r->offset + i, r->buffer[i]);
    }
    sim.counts.snapshot_reads += r->bytes > 0;
}

static void status_done(const struct request *r)
{
    const struct backup *of = r->snapshot->of;
    uint64_t at = r->offset;
    uint64_t end = r->offset + r->bytes;

    for (uint32_t i = 0; i < r->flags && r->extents[i].bytes > 0; i++) {
        const blkrepl_extent *extent = &r->extents[i];

        EXPECT(extent->bytes <= end - at, "status of a snapshot: more than was asked");
        for (uint64_t byte = at; byte < at + extent->bytes; byte++) {
            bool absent = is_absent(of, byte, ABSENT_MAYBE);

            EXPECT(extent->flags != 0 || absent || sim.options.contract_percent > 0,
                   "status of a snapshot: byte %llu cannot be read", (ull)byte);
            EXPECT((extent->flags & BLKREPL_EXTENT_ZERO) == 0 || absent ||
                       oracle_backup_may_be(of, byte, 0),
                   "status of a snapshot: byte %llu is zero", (ull)byte);
        }
        at += extent->bytes;
    }
    EXPECT(r->bytes == 0 || at > r->offset, "status of a snapshot: nothing was answered");
}

/* Has its job ended, or is it about to? */
static bool job_ends(struct backup *of)
{
    uint32_t ending = BLKREPL_JOB_FLAG_CANCELLING | BLKREPL_JOB_FLAG_COMPLETING;
    blkrepl_job_info info;

    if (of->cancel_asked || of->complete_asked || of->done || of->job == NULL || sim.shutdown) {
        return true;
    }
    info = backup_query(of);
    return info.state != BLKREPL_JOB_READY || (info.flags & ending) != 0;
}

static void failed(const struct request *r)
{
    struct backup *of = r->snapshot->of;
    bool absent = r->result == -EACCES && (any_absent(r, ABSENT_MAYBE) || may_be_lost(of));
    bool backend = disk_has_answered(of->source, r->result) ||
                   disk_has_answered(of->target, r->result) || r->result == -ETIMEDOUT;
    bool ended = (r->result == -ESHUTDOWN || r->result == -ECANCELED) && job_ends(of);

    EXPECT(absent || backend || ended, "snapshot request %d ended with %d", (int)(r - sim.requests),
           r->result);
}

/* It has ended. */
void oracle_snapshot_done(struct request *r)
{
    if (r->result != 0) {
        failed(r);
    } else if (r->op == BLKREPL_OP_READ) {
        read_done(r);
    } else if (r->op == BLKREPL_OP_STATUS) {
        status_done(r);
    } else if (r->op == BLKREPL_OP_DISCARD) {
        mark(r, may_be_left_out(r->snapshot) ? ABSENT_MAYBE : ABSENT_SURE);
        sim.counts.snapshot_discards++;
    }
}
