/* SPDX-License-Identifier: MIT */
/* oracle_spill.c - old data on their way through a spill image.
 *
 * What is written there is of the point in time; it is thrown away only when it is on
 * the target; and never is more of it in use than the job was allowed. */
#include "sim.h"

#include <string.h>

typedef unsigned long long ull;

static uint8_t in_use[BACKUPS_MAX][BLOCKS_MAX]; /* by cluster: written, not thrown away */

static ull number(const struct backup *backup)
{
    return (ull)(backup - sim.backups);
}

/* The last job that writes, or has written, to a disk. */
struct backup *oracle_user_of(const struct disk *disk)
{
    struct backup *found = NULL;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].started && job_writes_to(&sim.backups[i], disk)) {
            found = &sim.backups[i];
        }
    }
    return found;
}

static uint64_t cluster_bytes(const struct backup *b, uint64_t number_of)
{
    uint64_t cluster = job_cluster(b);
    uint64_t left = b->source->bytes - number_of * cluster;

    return left < cluster ? left : cluster;
}

static bool is_on_target(const struct backup *b, uint64_t cluster)
{
    return memchr(b->saved + cluster * job_cluster(b), 0, cluster_bytes(b, cluster)) == NULL;
}

static void check_usage(struct backup *b)
{
    const uint8_t *map = in_use[number(b)];
    uint64_t cluster = job_cluster(b);
    uint64_t used = 0;

    for (uint64_t i = 0; i * cluster < b->source->bytes; i++) {
        used += map[i] != 0 && !is_on_target(b, i) ? cluster_bytes(b, i) : 0;
    }
    EXPECT(b->options.spill_bytes_max == 0 || used <= b->options.spill_bytes_max,
           "backup %llu uses %llu bytes of its spill image, of %llu", number(b), (ull)used,
           (ull)b->options.spill_bytes_max);
}

static void check_payload(const struct backup *b, const struct disk *disk,
                          const struct disk_request *io, const uint8_t *payload)
{
    uint64_t size = b->source->bytes;

    for (uint64_t i = 0; i < io->bytes; i++) {
        uint64_t at = io->offset + i;

        if (at >= size) {
            EXPECT(at < (size + disk->align - 1) / disk->align * disk->align && payload[i] == 0,
                   "byte %llu of a spill image, beyond the source, is written as %u", (ull)at,
                   payload[i]);
        } else {
            EXPECT(oracle_backup_may_be(b, at, payload[i]),
                   "byte %llu is spilled as %u, was %u at the start", (ull)at, payload[i],
                   b->start[at]);
        }
    }
}

/* Its spill image gets a write or a discard. */
void oracle_spill_submit(const struct disk *disk, const struct disk_request *io,
                         const uint8_t *payload)
{
    struct backup *b = oracle_user_of(disk);
    uint8_t *map = in_use[number(b)];
    uint64_t cluster = job_cluster(b);
    uint64_t end =
        io->offset + io->bytes < b->source->bytes ? io->offset + io->bytes : b->source->bytes;

    EXPECT(!b->done, "a request to the spill image of a job that is done");
    if (io->op == BLKREPL_OP_DISCARD || io->op == BLKREPL_OP_COPY_FROM) {
        EXPECT(io->op == BLKREPL_OP_DISCARD, "a COPY_FROM to a spill image");
        EXPECT(b->cancel_asked || sim.shutdown || b->error_events > 0 || io->offset >= end ||
                   memchr(b->saved + io->offset, 0, end - io->offset) == NULL,
               "backup %llu throws away %llu+%llu of its spill image, which is not on the target",
               number(b), (ull)io->offset, (ull)io->bytes);
        return;
    }
    check_payload(b, disk, io, payload);
    for (uint64_t at = io->offset / cluster; at * cluster < end; at++) {
        map[at] = 1;
    }
    check_usage(b);
    sim.counts.spills++;
}

/* The spill disk has done it. */
void oracle_spill_done(struct disk *disk, const struct disk_request *request)
{
    struct backup *b = oracle_user_of(disk);
    uint64_t size = b == NULL ? 0 : b->source->bytes;
    uint64_t end =
        request->offset + request->bytes < size ? request->offset + request->bytes : size;

    if (b == NULL || b->spill != disk || request->seq < b->start_seq || request->offset >= end) {
        return;
    }
    if (request->op == BLKREPL_OP_WRITE || request->op == BLKREPL_OP_ZEROES) {
        memset(b->kept + request->offset, 1, end - request->offset);
    } else if (request->op == BLKREPL_OP_DISCARD) {
        for (uint64_t i = request->offset / job_cluster(b); i * job_cluster(b) < end; i++) {
            in_use[number(b)][i] = 0;
        }
    }
}

/* It has refused it: what is there is nobody's. */
void oracle_spill_failed(struct disk *disk, const struct disk_request *request)
{
    struct backup *b = oracle_user_of(disk);
    uint64_t cluster = b != NULL ? job_cluster(b) : 0;

    if (b == NULL || b->spill != disk || request->seq < b->start_seq || !is_write(request->op) ||
        request->op == BLKREPL_OP_DISCARD) {
        return;
    }
    for (uint64_t i = request->offset / cluster; i * cluster < request->offset + request->bytes;
         i++) {
        in_use[number(b)][i] = 0;
    }
}

void oracle_spill_start(struct backup *b)
{
    memset(in_use[number(b)], 0, sizeof in_use[0]);
    b->spill_failed = b->spill != NULL ? b->spill->failure_count : 0;
}

/* May it have left this on its spill image? */
bool oracle_spill_may_hold(const struct backup *b, uint64_t position, uint8_t value)
{
    uint64_t end = (b->source->bytes + b->spill->align - 1) / b->spill->align * b->spill->align;

    return (position < b->source->bytes ? oracle_backup_may_be(b, position, value)
                                        : value == 0 && position < end) ||
           value == disk_discard_byte(b->spill, position);
}

bool oracle_spill_has_room(const struct backup *b)
{
    uint64_t cluster = job_cluster(b);
    uint64_t all = (b->source->bytes + cluster - 1) / cluster * cluster;

    return b->spill != NULL && b->spill->failure_count == b->spill_failed &&
           (b->options.spill_bytes_max == 0 || b->options.spill_bytes_max >= all);
}
