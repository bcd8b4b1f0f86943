/* SPDX-License-Identifier: MIT */
/* s_backup_bitmap.c - backups by a bitmap: what is copied, and what becomes of it.
 *
 * All of the bitmap is dirty at the start, so that what is done can be compared like any
 * other copy. */
#include "api.h"

#define G 512u

/* A guest that goes on. */
static void guest(struct image *source)
{
    struct world *w = source->world;
    uint64_t size = image_bytes(source);

    for (unsigned i = 0; i < 10; i++) {
        uint64_t at = world_random(w, size - CLUSTER);

        if (i % 3 == 0) {
            op_begin(source, BLKREPL_OP_WRITE, at, 1 + world_random(w, CLUSTER), false);
        } else {
            op_write(source, at, 1 + world_random(w, CLUSTER), 0);
        }
        if (i % 2 == 0) {
            api_poll(w->ctx, 0, 0);
        }
    }
}

/* What the job did to the bitmap is done to its model. */
static void follow(struct bitmap *b, const struct job *job, uint32_t mode)
{
    bool done = job_info(job).result == BLKREPL_RESULT_DONE;

    if (done && mode != BLKREPL_BITMAP_NEVER) {
        bitmap_used_up(b);
        return;
    }
    if (!done && mode == BLKREPL_BITMAP_ALWAYS) {
        memset(b->must, 0, sizeof b->must); /* whatever is not on the target */
    }
    bitmap_not_used(b);
}

static void run(struct world *w, uint32_t sync, uint32_t mode, bool cancel)
{
    struct image *source, *target;
    struct bitmap *b;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(b = bitmap_add(source, "b", G, 0))) {
        return;
    }
    bitmap_set(b, 0, image_bytes(source));
    op_begin(source, BLKREPL_OP_WRITE, 2 * CLUSTER, CLUSTER, false);
    job = job_create(
        source, target,
        &(blkrepl_backup_options){.sync = sync, .bitmap = b->handle, .bitmap_mode = mode});
    if (!job) {
        return;
    }
    job_start(job);
    bitmap_frozen(b);
    guest(source);
    if (cancel) {
        job_cancel(job);
    }
    world_settle(w);
    if (job_concluded(job)) {
        follow(b, job, mode);
    }
    bitmap_check(b);
}

static void backup_incremental(struct world *w)
{
    run(w, BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ON_SUCCESS, false);
}

static void backup_incremental_cancelled(struct world *w)
{
    run(w, BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ON_SUCCESS, true);
}

static void backup_bitmap_never(struct world *w)
{
    run(w, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER, false);
}

static void backup_bitmap_always(struct world *w)
{
    run(w, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, false);
}

static void backup_full_always_cancelled(struct world *w)
{
    run(w, BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, true);
}

const struct scenario backup_bitmap_scenarios[] = {
    {"backup-incremental", backup_incremental, 0},
    {"backup-incremental-cancelled", backup_incremental_cancelled, 0},
    {"backup-bitmap-never", backup_bitmap_never, 0},
    {"backup-bitmap-always", backup_bitmap_always, 0},
    {"backup-full-always-cancelled", backup_full_always_cancelled, 0},
    {NULL, NULL, 0},
};
