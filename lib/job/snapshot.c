/* SPDX-License-Identifier: MIT */
/* snapshot.c - images of a backup's point in time: opening, closing, when the job ends.
 *
 * A snapshot holds the job and its images until its backend is closed, which is when the
 * image is closed and every request to it has ended. */
#include "job/snapshot.h"

#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"
#include "core/error.h"
#include "job/backup.h"

#define QUEUE_DEPTH_DEFAULT 32
#define QUEUE_DEPTH_MOST 1024

int blkrepl__snapshot_code(const struct snapshot *snapshot)
{
    const struct blkrepl_job *job = snapshot->job;

    /* Once it was told to complete nothing is saved any more. */
    if (!snapshot->copy->stopped && !job->complete) {
        return 0;
    }
    if (snapshot->copy->failed || job->result == BLKREPL_RESULT_FAILED) {
        return job->cause.code;
    }
    return -ESHUTDOWN;
}

/* ---- The backend ------------------------------------------------------------- */

static const blkrepl_backend_info *snapshot_info(const struct blkrepl_image *image)
{
    return &image->leaf->port.info;
}

static uint32_t snapshot_larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t snapshot_smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static int snapshot_get_info(void *user, blkrepl_backend_info *info)
{
    const struct snapshot *snapshot = user;
    const blkrepl_backend_info *source = snapshot_info(snapshot->source);
    const blkrepl_backend_info *target = snapshot_info(snapshot->target);

    info->flags = BLKREPL_BACKEND_READ_ONLY;
    info->bytes = source->bytes;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_STATUS | 1u << BLKREPL_OP_DISCARD;
    info->queue_depth = snapshot->queue_depth;
    info->request_alignment = snapshot_larger(source->request_alignment, target->request_alignment);
    info->memory_alignment = snapshot_larger(source->memory_alignment, target->memory_alignment);
    info->iov_count_max = snapshot_smaller(
        snapshot_smaller(source->iov_count_max, target->iov_count_max), SNAPSHOT_IOVS);
    info->cluster_bytes = (uint32_t)snapshot->copy->config.cluster_bytes;
    return 0;
}

/* What is on its way when it returns is given away by others: nothing recurses. */
static void snapshot_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct snapshot *snapshot = user;

    (void)lane;
    blkrepl__enter(snapshot->ctx);
    for (uint32_t i = 0; i < count; i++) {
        blkrepl__snapshot_accept(snapshot, ios[i]);
    }
    blkrepl__leave_quietly(snapshot->ctx);
}

static void snapshot_cancel(void *user, uint64_t id)
{
    struct snapshot *snapshot = user;
    struct list *link;

    blkrepl__enter(snapshot->ctx);
    link = snapshot->busy.next;
    while (link != &snapshot->busy &&
           CONTAINER_OF(link, struct snapshot_read, link)->io->id != id) {
        link = link->next;
    }
    if (link != &snapshot->busy) {
        struct snapshot_read *read = CONTAINER_OF(link, struct snapshot_read, link);
        int code = blkrepl__snapshot_code(snapshot); /* the job's end is what counts */

        blkrepl__snapshot_give_up(read, code < 0 ? code : -ECANCELED);
        blkrepl__snapshot_tell(read);
    }
    blkrepl__leave_quietly(snapshot->ctx);
}

static void snapshot_free(struct snapshot *snapshot)
{
    const struct alloc *alloc = &snapshot->ctx->alloc;

    blkrepl__buffer_free(alloc, snapshot->tail, (size_t)snapshot->tail_bytes);
    blkrepl__free(alloc, snapshot->reads);
    blkrepl__free(alloc, snapshot);
}

/* Give back what was taken with the lock held, which it is again. */
static void snapshot_release(struct snapshot *snapshot)
{
    struct request_pool *pool = &snapshot->ctx->job_requests;

    CHECK(list_empty(&snapshot->busy));
    list_unlink(&snapshot->stopped.link);
    list_unlink(&snapshot->cancel_chore.link);
    for (uint32_t i = 0; i < snapshot->requests; i++) {
        blkrepl__request_put(pool, snapshot->reads[i].request);
    }
    blkrepl__image_unref(snapshot->source);
    blkrepl__image_unref(snapshot->target);
    blkrepl__job_put(snapshot->job);
}

static void snapshot_close(void *user)
{
    struct snapshot *snapshot = user;
    struct blkrepl_context *ctx = snapshot->ctx;

    blkrepl__enter(ctx);
    snapshot_release(snapshot);
    snapshot_free(snapshot);
    blkrepl__leave_quietly(ctx);
}

static const blkrepl_backend_ops snapshot_ops = {.struct_size = sizeof snapshot_ops,
                                                 .get_info = snapshot_get_info,
                                                 .submit = snapshot_submit,
                                                 .cancel = snapshot_cancel,
                                                 .close = snapshot_close};

/* ---- The end of the job -------------------------------------------------------- */

/* Ask the backends to cancel what they have; each call drops the lock.  A request that
 * is busy holds the image, so it is there, and goes on being there. */
static void snapshot_cancel_run(struct chore *chore)
{
    struct snapshot *snapshot = CONTAINER_OF(chore, struct snapshot, cancel_chore);
    struct blkrepl_image *image = snapshot->image;

    if (list_empty(&snapshot->busy)) {
        return;
    }
    blkrepl__image_ref(image);
    for (uint32_t i = 0; i < snapshot->queue_depth; i++) {
        blkrepl__snapshot_tell(&snapshot->reads[i]);
    }
    blkrepl__image_unref(image);
}

/* The engine has stopped: nobody waits for the snapshot, and it tells nothing more. */
static void snapshot_stopped(struct ready *ready)
{
    struct snapshot *snapshot = CONTAINER_OF(ready, struct snapshot, stopped);
    int code = blkrepl__snapshot_code(snapshot);
    struct list *link;
    struct list *next;

    for (link = snapshot->busy.next; link != &snapshot->busy; link = next) {
        next = link->next;
        blkrepl__snapshot_give_up(CONTAINER_OF(link, struct snapshot_read, link), code);
    }
    if (!list_empty(&snapshot->busy)) {
        blkrepl__chore_add(snapshot->ctx, &snapshot->cancel_chore);
    }
}

/* ---- Opening -------------------------------------------------------------------- */

static int snapshot_check_options(const blkrepl_snapshot_options *options,
                                  blkrepl_snapshot_options *o)
{
    int rc = blkrepl__struct_in(o, sizeof *o, BLKREPL_SNAPSHOT_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "snapshot: options");
    }
    if (o->queue_depth > QUEUE_DEPTH_MOST || o->reserved0 != NULL) {
        return blkrepl__fail(-EINVAL,
                             "snapshot: more than %d requests at once, or a reserved "
                             "field is not 0",
                             QUEUE_DEPTH_MOST);
    }
    return 0;
}

/* The last block, where the source ends inside of one of the target's. */
static void snapshot_find_tail(struct snapshot *snapshot)
{
    const blkrepl_backend_info *target = snapshot_info(snapshot->target);
    uint64_t bytes = image_bytes(snapshot->source);
    uint64_t start = align_down(bytes, target->request_alignment);

    snapshot->tail_at = UINT64_MAX;
    if (start < bytes && bytes < target->bytes) {
        snapshot->tail_at = start;
        snapshot->tail_bytes = min_u64(start + target->request_alignment, target->bytes) - start;
    }
}

/* Hold the job, if it has a point in time to show, and its images; with the lock held. */
static int snapshot_hold(struct snapshot *snapshot)
{
    struct blkrepl_job *job = snapshot->job;

    if (snapshot->ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "snapshot: the context is being freed");
    }
    if (job->state != BLKREPL_JOB_READY || blkrepl__snapshot_code(snapshot) < 0) {
        return blkrepl__fail(BLKREPL_ERR_STATE, "snapshot: job \"%s\" is not ready", job->name);
    }
    snapshot->source = snapshot->copy->config.source;
    snapshot->target = snapshot->copy->config.target;
    blkrepl__image_ref(snapshot->source);
    blkrepl__image_ref(snapshot->target);
    job->refs++;
    snapshot->stopped.run = snapshot_stopped;
    list_append(&snapshot->copy->watchers, &snapshot->stopped.link);
    return 0;
}

/* Take the memory, without the lock. */
static int snapshot_alloc(struct snapshot *snapshot)
{
    const struct alloc *alloc = &snapshot->ctx->alloc;

    snapshot_find_tail(snapshot);
    snapshot->reads = blkrepl__zalloc_array(alloc, snapshot->queue_depth, sizeof *snapshot->reads);
    if (snapshot->tail_bytes > 0) {
        snapshot->tail = blkrepl__buffer_alloc(
            alloc, snapshot_info(snapshot->target)->memory_alignment, (size_t)snapshot->tail_bytes);
    }
    if (snapshot->reads == NULL || (snapshot->tail_bytes > 0 && snapshot->tail == NULL)) {
        return blkrepl__fail(-ENOMEM, "snapshot: no memory");
    }
    return 0;
}

/* Take a request slot for each, with the lock held. */
static int snapshot_take_requests(struct snapshot *snapshot)
{
    struct request_pool *pool = &snapshot->ctx->job_requests;

    if (pool->count - pool->used < snapshot->queue_depth) {
        return blkrepl__fail(-ENOMEM,
                             "snapshot: needs %" PRIu32 " requests, the context's "
                             "job_requests_max leaves %" PRIu32,
                             snapshot->queue_depth, pool->count - pool->used);
    }
    for (; snapshot->requests < snapshot->queue_depth; snapshot->requests++) {
        struct snapshot_read *read = &snapshot->reads[snapshot->requests];

        read->snapshot = snapshot;
        read->request = blkrepl__request_take(pool);
        list_append(&snapshot->free, &read->link);
    }
    return 0;
}

/* An image over the backend, which is its own from then on. */
static int snapshot_image(struct snapshot *snapshot, const blkrepl_snapshot_options *o)
{
    blkrepl_image_options options = {
        .struct_size = sizeof options, .name = o->name, .user = o->user, .release = o->release};
    struct leaf *leaf;
    int rc = blkrepl__leaf_create(snapshot->ctx, &snapshot_ops, snapshot, &leaf);

    if (rc < 0) {
        return rc;
    }
    rc = blkrepl__image_create(snapshot->ctx, leaf, &options, &snapshot->image);
    if (rc < 0) {
        blkrepl__leaf_free(leaf);
        return rc;
    }
    snapshot->image->discards = true;
    return 0;
}

/* What it needs but itself; what there is when it fails is given back by
 * snapshot_close(). */
static int snapshot_equip(struct snapshot *snapshot, const blkrepl_snapshot_options *o)
{
    int rc = snapshot_alloc(snapshot);

    if (rc == 0) {
        blkrepl__enter(snapshot->ctx);
        rc = snapshot_take_requests(snapshot);
        blkrepl__leave(snapshot->ctx, 0);
    }
    return rc == 0 ? snapshot_image(snapshot, o) : rc;
}

/* A snapshot that holds its job. */
static int snapshot_create(struct blkrepl_job *job, uint32_t queue_depth, struct snapshot **out)
{
    struct snapshot *snapshot = blkrepl__zalloc(&job->ctx->alloc, sizeof *snapshot);
    int rc;

    if (snapshot == NULL) {
        return blkrepl__fail(-ENOMEM, "snapshot: no memory");
    }
    snapshot->ctx = job->ctx;
    snapshot->job = job;
    snapshot->copy = blkrepl__backup_copy_of(job);
    snapshot->queue_depth = queue_depth != 0 ? queue_depth : QUEUE_DEPTH_DEFAULT;
    snapshot->cancel_chore.run = snapshot_cancel_run;
    list_init(&snapshot->free);
    list_init(&snapshot->busy);
    list_init(&snapshot->tail_waiters);
    blkrepl__enter(job->ctx);
    rc = snapshot_hold(snapshot);
    blkrepl__leave(job->ctx, 0);
    if (rc < 0) {
        snapshot_free(snapshot);
        return rc;
    }
    *out = snapshot;
    return 0;
}

static int snapshot_open(struct blkrepl_job *job, const blkrepl_snapshot_options *options,
                         blkrepl_image **out)
{
    blkrepl_snapshot_options o;
    struct snapshot *snapshot = NULL;
    int rc = snapshot_check_options(options, &o);

    if (rc < 0) {
        return rc;
    }
    if (blkrepl__backup_copy_of(job) == NULL) {
        return blkrepl__fail(-EINVAL, "snapshot: job \"%s\" is not a backup with SYNC_NONE",
                             job->name);
    }
    rc = snapshot_create(job, o.queue_depth, &snapshot);
    if (rc < 0) {
        return rc;
    }
    rc = snapshot_equip(snapshot, &o);
    if (rc < 0) {
        snapshot_close(snapshot);
        return rc;
    }
    *out = snapshot->image;
    return 0;
}

int blkrepl_snapshot_open(blkrepl_job *job, const blkrepl_snapshot_options *options,
                          blkrepl_image **out)
{
    int rc = -EINVAL;

    if (out != NULL) {
        *out = NULL;
    }
    if (job == NULL || out == NULL) {
        blkrepl__fail(rc, "snapshot: %s is NULL", job == NULL ? "job" : "out");
    } else {
        rc = snapshot_open(job, options, out);
    }
    if (rc < 0 && options != NULL && options->struct_size >= BLKREPL_SNAPSHOT_OPTIONS_V1_BYTES) {
        blkrepl__host_release(job != NULL ? job->ctx : NULL, options->release, options->user);
    }
    return rc;
}
