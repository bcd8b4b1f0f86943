/* SPDX-License-Identifier: MIT */
/* oracle_sync.c - which clusters a job is to copy, what becomes of its bitmap, and chains
 * of incremental backups.
 *
 * What a frozen bitmap holds is told by the bitmap, and compared by its own oracle; the
 * clusters that it touches are those that a backup of it copies.  When the job has
 * concluded the bitmap is as its mode says, granule by granule: it must be dirty, or it
 * must be clean, or a write goes on there.
 *
 * A chain is a bitmap and a target that together hold everything: the target is the
 * source of an earlier moment, apart from what is dirty.  A full backup begins one;
 * whatever becomes of the jobs in between, each that is done makes the target the source
 * as it was at its own start, in every byte. */
#include "sim.h"

#include <string.h>

typedef unsigned long long ull;

static uint8_t base_media[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t promise_media[BACKUPS_MAX][DISK_BYTES_MAX];

static ull number(const struct backup *backup)
{
    return (ull)(backup - sim.backups);
}

uint64_t job_cluster(const struct backup *b)
{
    uint64_t cluster = 65536;

    if (b->options.cluster_bytes != 0) {
        return b->options.cluster_bytes;
    }
    if ((b->options.flags & BLKREPL_BACKUP_COMPRESS) != 0 && b->target->info.cluster_bytes != 0) {
        return b->target->info.cluster_bytes;
    }
    cluster = b->source->info.cluster_bytes > cluster ? b->source->info.cluster_bytes : cluster;
    return b->target->info.cluster_bytes > cluster ? b->target->info.cluster_bytes : cluster;
}

/* ---- What is to be copied ---------------------------------------------------------- */

bool oracle_sync_wanted(const struct backup *b, uint64_t at)
{
    return !b->partial || b->wanted[at / job_cluster(b)] != 0;
}

/* Bytes of the clusters that are to be copied. */
uint64_t oracle_sync_bytes(const struct backup *b)
{
    uint64_t cluster = job_cluster(b);
    uint64_t bytes = 0;

    for (uint64_t at = 0; at < b->source->bytes; at += cluster) {
        uint64_t left = b->source->bytes - at;

        bytes += oracle_sync_wanted(b, at) ? (left < cluster ? left : cluster) : 0;
    }
    return bytes;
}

/* The last job before this one that has written to its target. */
static const struct backup *before(const struct backup *b)
{
    const struct backup *found = NULL;

    for (const struct backup *other = sim.backups; other < b; other++) {
        if (other->started && job_writes_to(other, b->target)) {
            found = other;
        }
    }
    return found;
}

static bool is_chained(const struct backup *b)
{
    const struct bitmap *bitmap = b->bitmap;
    const struct backup *last = before(b);

    return bitmap != NULL && bitmap->chain == b->target && bitmap->now.disk == b->source &&
           bitmap_is_recording(bitmap) && b->through == NULL && last != NULL &&
           last == &sim.backups[bitmap->chain_last] && !last->overwritten;
}

/* The start is about to be called. */
void oracle_sync_start(struct backup *b)
{
    uint32_t sync = job_sync(b);

    b->partial =
        b->bitmap != NULL && (sync == BLKREPL_SYNC_BITMAP || sync == BLKREPL_SYNC_INCREMENTAL ||
                              (b->options.flags & BLKREPL_BACKUP_DIRTY_ONLY) != 0);
    b->was_chained = is_chained(b);
    b->chained = b->was_chained && sync != BLKREPL_SYNC_NONE;
    b->base = base_media[b - sim.backups];
    b->promise = b->start;
    if (b->partial) {
        memcpy(b->base, b->target->medium, b->target->bytes);
        memset(b->wanted, 0, sizeof b->wanted);
    }
}

static void want(struct backup *b, uint64_t offset, uint64_t bytes)
{
    uint64_t cluster = job_cluster(b);

    for (uint64_t i = offset / cluster; i <= (offset + bytes - 1) / cluster; i++) {
        b->wanted[i] = 1;
    }
}

/* Its bitmap stands still. */
void oracle_sync_started(struct backup *b)
{
    uint64_t cluster = job_cluster(b);
    blkrepl_area area = {.offset = 0};
    uint64_t at = 0;

    if (!b->started || !b->partial) {
        return;
    }
    EXPECT(b->bitmap->handle_count > 0, "a job's bitmap without a handle");
    while (blkrepl_bitmap_next_area(b->bitmap->handles[0], at, UINT64_MAX, 0, &area) == 1) {
        want(b, area.offset, area.bytes);
        at = area.offset + area.bytes;
    }
    if (b->chained) {
        return;
    }
    b->promise = promise_media[b - sim.backups];
    memcpy(b->promise, b->base, b->source->bytes);
    for (at = 0; at < b->source->bytes; at += cluster) {
        uint64_t left = b->source->bytes - at;

        if (b->wanted[at / cluster] != 0) {
            memcpy(b->promise + at, b->start + at, left < cluster ? left : cluster);
        }
    }
}

/* ---- What becomes of the bitmap ------------------------------------------------------ */

static uint32_t mode_of(const struct backup *b)
{
    return b->options.bitmap_mode == 0 ? BLKREPL_BITMAP_ON_SUCCESS : b->options.bitmap_mode;
}

/* The result of the job; 0: the host cannot know. */
static uint32_t result_of(struct backup *b)
{
    blkrepl_job_info info;

    if (b->job == NULL || b->starting) {
        return !b->done ? 0 : b->result == 0 ? BLKREPL_RESULT_DONE : BLKREPL_RESULT_FAILED;
    }
    info = backup_query(b);
    EXPECT(info.state == BLKREPL_JOB_CONCLUDED, "backup %llu has given its bitmap back in state %u",
           number(b), info.state);
    return info.result;
}

/* Not done, ALWAYS: what is not on the target; what it was of is dirty, or may be. */
static void keep_missing(struct bitmap *bitmap, const struct backup *b)
{
    bool full = job_sync(b) == BLKREPL_SYNC_FULL;

    for (uint64_t i = 0; i < bitmap->now.granules; i++) {
        uint64_t from = i * bitmap->granularity;
        uint64_t end = bitmap_granule_end(bitmap, i);
        bool was = full || bitmap->now.content[i] != 0;
        bool missing = memchr(b->saved + from, 0, end - from) != NULL;
        uint8_t bits = 0;

        for (uint64_t at = from; at < end && bits == 0; at += 512) {
            bits = oracle_sync_wanted(b, at) ? GRANULE_MAY : 0;
        }
        bitmap->now.content[i] = bitmap->now.next[i] | bits | (was && missing ? GRANULE_DIRTY : 0);
    }
}

static void keep_some(struct bitmap *bitmap, bool all)
{
    for (uint64_t i = 0; i < bitmap->now.granules; i++) {
        bitmap->now.content[i] =
            bitmap->now.next[i] | (all || bitmap->now.content[i] != 0 ? GRANULE_MAY : 0);
    }
}

static void settle_content(struct bitmap *bitmap, const struct backup *b, uint32_t result)
{
    uint32_t mode = mode_of(b);
    bool reclaim = mode == BLKREPL_BITMAP_NEVER ||
                   (mode == BLKREPL_BITMAP_ON_SUCCESS && result != BLKREPL_RESULT_DONE);
    struct deed deed = {.call = CALL_BITMAP_ABDICATE, .bitmap = bitmap};

    if (job_is_verify(b)) {
        if (result == BLKREPL_RESULT_DONE && bitmap->now.disk == NULL && b->job != NULL) {
            oracle_verify_bitmap(b, bitmap, backup_query((struct backup *)b).error_count > 0);
        }
        keep_some(bitmap, true);
        bitmap->now.frozen = false;
    } else if (result == 0 && mode != BLKREPL_BITMAP_NEVER) {
        keep_some(bitmap, mode == BLKREPL_BITMAP_ALWAYS);
        bitmap->now.frozen = false;
        bitmap->now.since = bitmap->now.since_next;
    } else if (mode == BLKREPL_BITMAP_ALWAYS && result != BLKREPL_RESULT_DONE) {
        keep_missing(bitmap, b);
        bitmap->now.frozen = false;
        bitmap->now.since = bitmap->now.since_next;
        sim.counts.always++;
    } else {
        deed.call = reclaim ? CALL_BITMAP_RECLAIM : CALL_BITMAP_ABDICATE;
        oracle_bitmap_apply(&deed);
    }
}

/* Does the target hold everything together with the bitmap, as it is now? */
static bool is_link(const struct backup *b, uint32_t result)
{
    uint32_t mode = mode_of(b);
    bool full = job_sync(b) == BLKREPL_SYNC_FULL;

    if (b->through != NULL || job_is_verify(b) || job_sync(b) == BLKREPL_SYNC_NONE) {
        return false;
    }
    return b->was_chained ||
           (full && (mode == BLKREPL_BITMAP_ALWAYS ||
                     (result == BLKREPL_RESULT_DONE && mode != BLKREPL_BITMAP_NEVER)));
}

static void settle_chain(struct bitmap *bitmap, const struct backup *b, uint32_t result)
{
    bool kept =
        mode_of(b) == BLKREPL_BITMAP_NEVER ||
        (mode_of(b) == BLKREPL_BITMAP_ON_SUCCESS && result != BLKREPL_RESULT_DONE && result != 0);

    if (is_link(b, result) && bitmap->now.disk == b->source && bitmap_is_recording(bitmap)) {
        bitmap->chain = b->target;
        bitmap->chain_last = (uint32_t)number(b);
    } else if (!kept || b->target == bitmap->chain || job_is_verify(b)) {
        bitmap->chain = NULL;
    }
}

/* The bitmap is not busy any more: its job has settled. */
void oracle_sync_settled(struct bitmap *bitmap)
{
    struct backup *b = bitmap->now.job;
    uint32_t result = result_of(b);

    EVENT("bitmap %n is given back by backup %n, result %n, mode %n", (ull)(bitmap - sim.bitmaps),
          number(b), result, mode_of(b));
    bitmap->now.job = NULL;
    b->frozen = false;
    settle_content(bitmap, b, result);
    settle_chain(bitmap, b, result);
    sim.counts.settled++;
}

/* The job has concluded. */
void oracle_sync_concluded(struct backup *b)
{
    struct bitmap *bitmap = job_is_verify(b) ? b->differing : b->bitmap;
    struct chance_outer outer;

    if (!b->frozen || bitmap == NULL || !bitmap->used || bitmap->calling > 0 ||
        bitmap->now.job != b) {
        return;
    }
    outer = chance_jobs_begin();
    oracle_bitmap_check(bitmap);
    EXPECT(!b->frozen || !bitmap->used || bitmap->calling > 0,
           "backup %llu has concluded, its bitmap is busy", number(b));
    chance_jobs_end(outer);
}

/* A deed was done that takes out of a bitmap what a chain needs. */
void oracle_sync_deed(const struct deed *d)
{
    switch ((uint32_t)d->call) {
    case CALL_BITMAP_MERGE:
    case CALL_BITMAP_SET:
    case CALL_BITMAP_FREEZE:
    case CALL_BITMAP_RECLAIM:
    case CALL_BITMAP_ENABLE: return;
    default: d->bitmap->chain = NULL;
    }
}
