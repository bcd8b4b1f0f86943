/* SPDX-License-Identifier: MIT */
/* s_snapshot.c - backups that copy nothing by themselves, and images of their point in
 * time. */
#include "api.h"

static const blkrepl_backup_options none = {.sync = BLKREPL_SYNC_NONE};
static const blkrepl_backup_options none_guest_fails = {
    .sync = BLKREPL_SYNC_NONE, .on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS};

static struct job *fleece(struct world *w, const blkrepl_backup_options *o)
{
    struct image *source, *target;

    return image_pair(w, NULL, NULL, &source, &target) ? job_create_started(source, target, o)
                                                       : NULL;
}

/* NULL also if the job has failed already. */
static struct image *open_snapshot(struct job *job)
{
    world_settle(job->world);
    return job_info(job).state == BLKREPL_JOB_READY ? image_snapshot(job) : NULL;
}

static void guest(struct image *source)
{
    op_write(source, 100, 2 * CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 7 * CLUSTER, 300, false);
    api_poll(source->world->ctx, 0, 0);
    op_zeroes(source, 5 * CLUSTER, CLUSTER, 0);
    op_write(source, 0, 4 * CLUSTER, 0);
}

/* All of it, in parts, while the guest goes on. */
static void read_all(struct image *snapshot)
{
    uint64_t size = image_bytes(snapshot);

    op_read(snapshot, 0, size);
    op_read(snapshot, 3 * CLUSTER + 77, 2 * CLUSTER);
    op_status(snapshot, 0, size, 8);
    op_read(snapshot, size - 5, 5);
}

/* ---- The job ---- */

static void none_completed(struct world *w)
{
    struct job *job = fleece(w, &none);

    if (job) {
        guest(job->source);
        api_poll(w->ctx, 0, 0);
        job_complete(job);
        guest(job->source);
        world_settle(w);
        job_complete(job);
        job_check(job);
    }
}

static void none_guest_fails_completed(struct world *w)
{
    struct job *job = fleece(w, &none_guest_fails);

    if (job) {
        world_settle(w);
        guest(job->source);
        job_pause(job);
        job_complete(job);
        world_settle(w);
        job_resume(job);
        job_complete(job);
        world_settle(w);
        job_check(job);
    }
}

/* ---- Reading ---- */

static void snapshot_read(struct world *w)
{
    struct job *job = fleece(w, &none);
    struct image *snapshot = job ? open_snapshot(job) : NULL;

    if (snapshot) {
        read_all(snapshot);
        guest(job->source);
        read_all(snapshot);
        world_settle(w);
        read_all(snapshot);
        world_settle(w);
        api_must(-EROFS);
        op_write(snapshot, 0, 512, 0);
        api_must(-EROFS);
        op_zeroes(snapshot, 0, 512, 0);
        op_flush(snapshot);
        world_settle(w);
    }
}

/* What is discarded cannot be read, through no image of the job. */
static void snapshot_discard(struct world *w)
{
    struct job *job = fleece(w, &none_guest_fails);
    struct image *snapshot = job ? open_snapshot(job) : NULL;
    struct image *second = snapshot ? open_snapshot(job) : NULL;

    if (second) {
        op_write(job->source, 0, 3 * CLUSTER, 0);
        world_settle(w);
        snapshot->forgotten = second->forgotten = true;
        op_read(second, 0, 2 * CLUSTER);
        op_discard(snapshot, 100, 4 * CLUSTER);
        guest(job->source);
        op_read(second, 2 * CLUSTER, CLUSTER);
        op_read(snapshot, 8 * CLUSTER, CLUSTER);
        op_status(second, 0, image_bytes(second), 8);
        world_settle(w);
        if (job_info(job).state == BLKREPL_JOB_READY) {
            struct op *op = op_read(snapshot, 2 * CLUSTER, CLUSTER);

            world_settle(w);
            REQUIRE(op->result < 0, "what was discarded is read");
        }
    }
}

/* Two points in time of one source. */
static void snapshot_several(struct world *w)
{
    struct job *first = fleece(w, &none), *second;
    struct image *one = first ? open_snapshot(first) : NULL, *two;

    if (!one) {
        return;
    }
    op_write(first->source, CLUSTER, 2 * CLUSTER, 0);
    world_settle(w);
    struct image *target = image_disk(w, NULL, FILL_DATA);
    if (!image_open(target, NULL) || !(second = job_create_started(first->source, target, &none)) ||
        !(two = open_snapshot(second))) {
        return;
    }
    guest(first->source);
    read_all(one);
    read_all(two);
    world_settle(w);
    job_complete(first);
    read_all(two);
    world_settle(w);
}

/* The source of a backup, which so is one of the past. */
static void snapshot_backup(struct world *w)
{
    struct job *job = fleece(w, &none);
    struct image *snapshot = job ? open_snapshot(job) : NULL;

    if (!snapshot) {
        return;
    }
    op_write(job->source, CLUSTER, 100, 0);
    struct image *target = image_disk(w, NULL, FILL_DATA);
    if (image_open(target, NULL) && job_create_started(snapshot, target, NULL)) {
        guest(job->source);
        world_settle(w);
    }
}

/* ---- The end ---- */

enum how {
    HOW_COMPLETE,
    HOW_CANCEL,
    HOW_CLOSE,
    HOW_FREE
};

/* Requests are at the disks, in all stages, when it comes to its end. */
static void end_under_readers(struct world *w, enum how how)
{
    struct job *job =
        fleece(w, &(blkrepl_backup_options){.sync = BLKREPL_SYNC_NONE, .name = "fleece"});
    struct image *snapshot = job ? open_snapshot(job) : NULL;

    if (!snapshot) {
        return;
    }
    op_write(job->source, 0, 2 * CLUSTER, 0);
    world_settle(w);
    job->source->disk->hold = job->target->disk->hold = BIT(BLKREPL_OP_READ);
    read_all(snapshot);
    op_write(job->source, 4 * CLUSTER, 100, 0);
    world_settle(w);
    switch (how) {
    case HOW_COMPLETE: job_complete(job); break;
    case HOW_CANCEL: job_cancel(job); break;
    case HOW_CLOSE: image_close(snapshot); break;
    case HOW_FREE: job_free(job); break;
    }
    world_settle(w);
    if (how != HOW_CLOSE) {
        op_read(snapshot, 0, 512);
    }
    if (how == HOW_FREE) {
        api_may(-ENOENT); /* it has failed */
        api_job_find(w->ctx, "fleece", &job->handle);
        w->silent = true; /* some events were nobody's */
    }
    world_release(w);
}

static void snapshot_completed(struct world *w)
{
    end_under_readers(w, HOW_COMPLETE);
}

static void snapshot_cancelled(struct world *w)
{
    end_under_readers(w, HOW_CANCEL);
}

static void snapshot_closed(struct world *w)
{
    end_under_readers(w, HOW_CLOSE);
}

static void snapshot_job_freed(struct world *w)
{
    end_under_readers(w, HOW_FREE);
}

static void snapshot_refused(struct world *w)
{
    struct image *source, *target, *other;
    blkrepl_snapshot_options o = {.struct_size = sizeof o}, bad = o;
    blkrepl_image *out = NULL;
    struct job *full, *job;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(full = job_create(source, target, NULL))) {
        return;
    }
    bad.queue_depth = 5000;
    api_must(-EINVAL);
    api_snapshot_open(full->handle, &o, &out);
    api_must(-EINVAL);
    api_snapshot_open(NULL, &o, &out);
    image_disk(w, NULL, FILL_DATA);
    other = image_disk(w, NULL, FILL_DATA);
    if (!image_open(other, NULL) || !(job = job_create(source, other, &none))) {
        return;
    }
    api_must(BLKREPL_ERR_STATE);
    api_snapshot_open(job->handle, &o, &out);
    job_start(job);
    world_settle(w);
    api_must(-EINVAL);
    api_snapshot_open(job->handle, &bad, &out);
    job_complete(job);
    api_must(BLKREPL_ERR_STATE);
    api_snapshot_open(job->handle, &o, &out);
    world_settle(w);
}

const struct scenario snapshot_scenarios[] = {
    {"none-completed", none_completed, 0},
    {"none-guest-fails-completed", none_guest_fails_completed, 0},
    {"snapshot-read", snapshot_read, 0},
    {"snapshot-discard", snapshot_discard, 0},
    {"snapshot-several", snapshot_several, 0},
    {"snapshot-backup", snapshot_backup, 0},
    {"snapshot-completed", snapshot_completed, 0},
    {"snapshot-cancelled", snapshot_cancelled, 0},
    {"snapshot-closed", snapshot_closed, 0},
    {"snapshot-job-freed", snapshot_job_freed, 0},
    {"snapshot-refused", snapshot_refused, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
