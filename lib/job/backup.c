/* SPDX-License-Identifier: MIT */
/* backup.c - point-in-time copy of one image to another.
 *
 * A policy over the copy engine: all clusters are to do, the point in time is
 * the start, and the target is flushed at the end.
 *
 * Invariants:
 *   1. The tap is attached from the start until the engine stops or the job
 *      ends; the target takes no guest writes from the creation on.
 *   2. The job is done only if every cluster is on the target and the flush
 *      that followed has succeeded.
 *
 *   CREATED -> COPY -> DRAIN -> FLUSH -> DONE
 *                ^      |  |               ^
 *                +------+  +---------------+  error, cancel
 *
 *   CREATED -> COPY   backup_start  the point in time
 *   COPY    -> DRAIN  backup_copy   nothing left to claim, or the engine stopped
 *   DRAIN   -> COPY   backup_drain  clusters came back (a guest's copy failed)
 *   DRAIN   -> FLUSH  backup_drain  nothing in flight, all is on the target
 *   DRAIN   -> DONE   backup_drain  nothing in flight, the engine stopped
 *   FLUSH   -> DONE   backup_flush  the flush has ended
 *
 *   FLUSH: * no copy is in flight   * the todo map is empty
 *   DONE:  * nothing is in flight   * no guest waits for the job
 */
#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/hook.h"
#include "base/struct_io.h"
#include "block/quick.h"
#include "core/error.h"
#include "job/copy.h"
#include <libblkrepl/backup.h>

#define BACKUP_FLAGS (BLKREPL_BACKUP_DETECT_ZEROES | BLKREPL_BACKUP_NO_OFFLOAD)
#define CLUSTER_BYTES_MIN 4096u
#define CLUSTER_BYTES_MAX (1u << 24)
#define CLUSTER_BYTES_DEFAULT 65536u
#define CHUNK_BYTES_DEFAULT (256u << 10)
#define CHUNK_BYTES_MAX (UINT64_C(1) << 30)
#define RESERVE_BYTES_DEFAULT (16u << 20)
#define RESERVE_BYTES_MAX (UINT64_C(1) << 40)
#define WORKERS_DEFAULT 8
#define WORKERS_MOST 1024
#define CBW_TIMEOUT_DEFAULT_NS UINT64_C(30000000000)

enum backup_state {
    BACKUP_CREATED, /* nothing has happened yet */
    BACKUP_COPY,    /* there are clusters to claim */
    BACKUP_DRAIN,   /* copies are in flight */
    BACKUP_FLUSH,   /* the target is made durable */
    BACKUP_DONE,    /* concluded */
    BACKUP_STATE_COUNT
};

static const uint32_t backup_next[BACKUP_STATE_COUNT] = {
    [BACKUP_CREATED] = TO(BACKUP_COPY),
    [BACKUP_COPY] = TO(BACKUP_DRAIN),
    [BACKUP_DRAIN] = TO(BACKUP_COPY) | TO(BACKUP_FLUSH) | TO(BACKUP_DONE),
    [BACKUP_FLUSH] = TO(BACKUP_DONE),
};

struct backup {
    struct blkrepl_job job;
    struct copy copy;
    enum backup_state state;
    uint64_t bytes_total;
};

static void backup_start(struct blkrepl_job *job);
static enum step backup_copy(struct backup *backup);
static enum step backup_drain(struct backup *backup);
static enum step backup_flush(struct backup *backup);
static enum step backup_done(struct backup *backup);
static void backup_check(const struct backup *backup);

static struct backup *backup_of(struct blkrepl_job *job)
{
    return CONTAINER_OF(job, struct backup, job);
}

static enum step backup_step(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    backup_check(backup);
    switch (backup->state) {
    case BACKUP_COPY: return backup_copy(backup);
    case BACKUP_DRAIN: return backup_drain(backup);
    case BACKUP_FLUSH: return backup_flush(backup);
    case BACKUP_DONE: return backup_done(backup);
    case BACKUP_CREATED:
    case BACKUP_STATE_COUNT: break;
    }
    UNREACHABLE();
}

static enum step backup_enter(struct backup *backup, enum backup_state next)
{
    CHECK(backup_next[backup->state] & TO(next));
    backup->state = next;
    if (STRETCH(BACKUP_STATE)) {
        job_wake(&backup->job);
        return STEP_WAIT;
    }
    return STEP_AGAIN;
}

/* The point in time. */
static void backup_start(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    if (job->speed_bytes_per_sec != 0) {
        blkrepl__copy_set_speed(&backup->copy);
    }
    blkrepl__copy_attach(&backup->copy);
    backup_enter(backup, BACKUP_COPY);
}

/* COPY: keep the engine busy until nothing is left to claim or we must stop. */
static enum step backup_copy(struct backup *backup)
{
    if (!backup->copy.stopped && backup->copy.todo.set_count > 0) {
        if (backup->job.paused || blkrepl__copy_pump(&backup->copy)) {
            return STEP_WAIT;
        }
    }
    return backup_enter(backup, BACKUP_DRAIN);
}

/* DRAIN: copies in flight still own buffers; wait for every one. */
static enum step backup_drain(struct backup *backup)
{
    if (!copy_idle(&backup->copy)) {
        return STEP_WAIT;
    }
    if (backup->copy.stopped) {
        return backup_enter(backup, BACKUP_DONE);
    }
    if (backup->copy.todo.set_count > 0) {
        return backup_enter(backup, BACKUP_COPY);
    }
    if (backup->job.paused) {
        return STEP_WAIT;
    }
    blkrepl__copy_flush(&backup->copy);
    return backup_enter(backup, BACKUP_FLUSH);
}

/* FLUSH: what we wrote is durable when the flush has ended well. */
static enum step backup_flush(struct backup *backup)
{
    struct copy *copy = &backup->copy;

    if (copy->flushing) {
        return STEP_WAIT;
    }
    if (!copy->stopped && copy->flush_result < 0) {
        blkrepl__copy_fail(copy, &(struct job_error){.code = copy->flush_result,
                                                     .side = BLKREPL_SIDE_TARGET,
                                                     .bytes = backup->bytes_total,
                                                     .what = "flush"});
    }
    return backup_enter(backup, BACKUP_DONE);
}

/* DONE: tell how it went; the job may be gone afterwards. */
static enum step backup_done(struct backup *backup)
{
    uint32_t result = BLKREPL_RESULT_DONE;

    if (backup->copy.failed) {
        result = BLKREPL_RESULT_FAILED;
    } else if (backup->copy.stopped) {
        result = BLKREPL_RESULT_CANCELLED;
    }
    blkrepl__copy_stop(&backup->copy);
    blkrepl__job_conclude(&backup->job, result);
    return STEP_DONE;
}

static void backup_check(const struct backup *backup)
{
    const struct copy *copy = &backup->copy;

    CHECK(!copy->stopped || list_empty(&copy->waiting));
    CHECK(backup->state != BACKUP_FLUSH || copy->stopped ||
          (list_empty(&copy->active) && list_empty(&copy->voids) && copy->todo.set_count == 0));
    CHECK(backup->state != BACKUP_DONE || copy_idle(copy));
    (void)copy;
}

static void backup_cancelled(struct blkrepl_job *job)
{
    blkrepl__copy_stop(&backup_of(job)->copy);
}

static void backup_speed_changed(struct blkrepl_job *job)
{
    blkrepl__copy_set_speed(&backup_of(job)->copy);
}

static void backup_query(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    const struct backup *backup = CONTAINER_OF(job, struct backup, job);
    const struct copy *copy = &backup->copy;

    info->bytes_done = copy->bytes_done;
    info->bytes_total = backup->bytes_total;
    if (info->bytes_done == info->bytes_total && info->bytes_total > 0 &&
        job->result != BLKREPL_RESULT_DONE) {
        info->bytes_done--; /* the last byte counts when the target is durable */
    }
    info->requests_in_flight = copy->in_flight;
    info->guest_copies_count = copy->guest_copies_count;
    info->guest_copies_bytes = min_u64(copy->guest_copies_bytes, info->bytes_done);
    info->guest_waits_count = copy->guest_waits_count;
    info->zero_bytes = min_u64(copy->zero_bytes, info->bytes_done);
    info->offloaded_bytes = min_u64(copy->offloaded_bytes, info->bytes_done);
}

static void backup_let_go(struct blkrepl_job *job)
{
    struct copy *copy = &backup_of(job)->copy;

    blkrepl__copy_unreserve(copy);
    copy->config.source->jobs_reading--;
    copy->config.target->jobs_writing--;
    blkrepl__image_unref(copy->config.source);
    blkrepl__image_unref(copy->config.target);
}

static void backup_destroy(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    blkrepl__copy_free(&backup->copy, job->ctx);
    blkrepl__free(&job->ctx->alloc, backup);
}

static const struct job_ops backup_ops = {
    .start = backup_start,
    .step = backup_step,
    .cancelled = backup_cancelled,
    .speed_changed = backup_speed_changed,
    .query = backup_query,
    .let_go = backup_let_go,
    .destroy = backup_destroy,
};

static int backup_check_options(const blkrepl_backup_options *options, blkrepl_backup_options *o)
{
    int rc = blkrepl__struct_in(o, sizeof *o, BLKREPL_BACKUP_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "backup: options");
    }
    if ((o->flags & ~(uint32_t)BACKUP_FLAGS) != 0 || o->reserved0 != 0 || o->reserved1 != NULL ||
        o->sync > BLKREPL_SYNC_FULL || o->on_cbw_error > BLKREPL_CBW_GUEST_WRITE_FAILS) {
        return blkrepl__fail(-EINVAL, "backup: unknown flags, sync or on_cbw_error, or a "
                                      "reserved field is not 0");
    }
    if (o->cluster_bytes != 0 &&
        (!is_power_of_two(o->cluster_bytes) || o->cluster_bytes < CLUSTER_BYTES_MIN ||
         o->cluster_bytes > CLUSTER_BYTES_MAX)) {
        return blkrepl__fail(
            -EINVAL, "backup: cluster_bytes %" PRIu64 " is not a power of two from 4 KiB to 16 MiB",
            o->cluster_bytes);
    }
    if (o->workers_max > WORKERS_MOST || o->chunk_bytes_max > CHUNK_BYTES_MAX ||
        o->reserve_bytes > RESERVE_BYTES_MAX) {
        return blkrepl__fail(-EINVAL, "backup: more than 1024 workers, 1 GiB a chunk or 1 TiB of "
                                      "reserve");
    }
    return 0;
}

/* The alignment and cluster that both images can live with. */
static uint64_t backup_unit(const struct blkrepl_image *source, const struct blkrepl_image *target)
{
    const blkrepl_backend_info *s = &source->leaf->port.info;
    const blkrepl_backend_info *t = &target->leaf->port.info;

    return max_u64(max_u64(s->request_alignment, t->request_alignment),
                   max_u64(s->cluster_bytes, t->cluster_bytes));
}

static int backup_configure(const blkrepl_backup_options *o, struct copy_config *config)
{
    uint64_t unit = backup_unit(config->source, config->target);
    uint64_t need = max_u64(config->source->leaf->port.info.request_alignment,
                            config->target->leaf->port.info.request_alignment);
    uint64_t chunk = o->chunk_bytes_max != 0 ? o->chunk_bytes_max : CHUNK_BYTES_DEFAULT;

    config->cluster_bytes =
        o->cluster_bytes != 0 ? o->cluster_bytes : max_u64(CLUSTER_BYTES_DEFAULT, unit);
    if (config->cluster_bytes < need) {
        return blkrepl__fail(-ENOTSUP,
                             "backup: cluster_bytes %" PRIu64
                             " is below the images' request alignment of %" PRIu64,
                             config->cluster_bytes, need);
    }
    config->chunk_bytes = max_u64(align_down(chunk, config->cluster_bytes), config->cluster_bytes);
    config->reserve_bytes = o->reserve_bytes != 0 ? o->reserve_bytes : RESERVE_BYTES_DEFAULT;
    config->cbw_timeout_ns = o->cbw_timeout_ns != 0 ? o->cbw_timeout_ns : CBW_TIMEOUT_DEFAULT_NS;
    config->workers = o->workers_max != 0 ? o->workers_max : WORKERS_DEFAULT;
    config->hold_until_written = o->on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS;
    config->detect_zeroes = (o->flags & BLKREPL_BACKUP_DETECT_ZEROES) != 0;
    config->no_offload = (o->flags & BLKREPL_BACKUP_NO_OFFLOAD) != 0;
    return 0;
}

static bool backup_same_medium(const struct blkrepl_image *a, const struct blkrepl_image *b)
{
    return a == b || (a->leaf->identified && b->leaf->identified &&
                      a->leaf->device == b->leaf->device && a->leaf->inode == b->leaf->inode);
}

/* What does not change and needs no lock. */
static int backup_check_images(const blkrepl_image *source, const blkrepl_image *target)
{
    if (source == NULL || target == NULL) {
        return blkrepl__fail(-EINVAL, "backup: %s is NULL", source == NULL ? "source" : "target");
    }
    if (source->ctx != target->ctx) {
        return blkrepl__fail(-EINVAL, "backup: \"%s\" and \"%s\" belong to different contexts",
                             source->name, target->name);
    }
    if (backup_same_medium(source, target)) {
        return blkrepl__fail(-EINVAL, "backup: source \"%s\" and target \"%s\" are the same disk",
                             source->name, target->name);
    }
    if (image_bytes(target) < image_bytes(source)) {
        return blkrepl__fail(
            -ENOSPC, "backup: target \"%s\" has %" PRIu64 " bytes, source \"%s\" has %" PRIu64,
            target->name, image_bytes(target), source->name, image_bytes(source));
    }
    if (target->read_only) {
        return blkrepl__fail(-EROFS, "backup: target \"%s\" is read-only", target->name);
    }
    return 0;
}

/* Whether the images are free; with the lock held. */
static int backup_check_busy(blkrepl_image *source, blkrepl_image *target)
{
    blkrepl__quick_stop(source);
    blkrepl__quick_stop(target);
    if (source->ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "backup: the context is being freed");
    }
    if (target->jobs_reading > 0 || target->jobs_writing > 0) {
        return blkrepl__fail(-EBUSY, "backup: target \"%s\" is in use by another job",
                             target->name);
    }
    if (source->jobs_writing > 0) {
        return blkrepl__fail(-EBUSY, "backup: source \"%s\" is the target of another job",
                             source->name);
    }
    if (target->writes > 0) {
        return blkrepl__fail(-EBUSY,
                             "backup: %" PRIu32 " guest writes to target \"%s\" have not "
                             "ended",
                             target->writes, target->name);
    }
    return 0;
}

/* Everything that needs the lock: names, budget, the images' state. */
static int backup_enlist(struct backup *backup, const blkrepl_backup_options *o, bool start)
{
    struct copy_config *config = &backup->copy.config;
    struct blkrepl_context *ctx = config->source->ctx;
    int rc = backup_check_busy(config->source, config->target);

    if (rc == 0) {
        rc = blkrepl__job_check_name(ctx, o->name);
    }
    backup->job.ctx = ctx;
    if (rc == 0) {
        rc = blkrepl__copy_reserve(&backup->copy, &backup->job);
    }
    if (rc < 0) {
        return rc;
    }
    config->source->jobs_reading++;
    config->target->jobs_writing++;
    blkrepl__image_ref(config->source);
    blkrepl__image_ref(config->target);
    backup->job.speed_bytes_per_sec = o->speed_bytes_per_sec;
    blkrepl__job_publish(
        &backup->job, ctx,
        &(struct job_identity){
            .name = o->name, .kind_name = "backup", .user = o->user, .release = o->release});
    return start ? blkrepl__job_start(&backup->job) : 0;
}

/* Take the memory and fill the map, without the lock. */
static int backup_alloc(const blkrepl_backup_options *o, blkrepl_image *source,
                        blkrepl_image *target, struct backup **out)
{
    struct copy_config config = {.source = source, .target = target};
    struct blkrepl_context *ctx = source->ctx;
    struct backup *backup;
    int rc = backup_configure(o, &config);

    if (rc < 0) {
        return rc;
    }
    backup = blkrepl__zalloc(&ctx->alloc, sizeof *backup);
    if (backup == NULL) {
        return blkrepl__fail(-ENOMEM, "backup: no memory");
    }
    rc = blkrepl__copy_alloc(&backup->copy, ctx, &config);
    if (rc < 0) {
        blkrepl__copy_free(&backup->copy, ctx);
        blkrepl__free(&ctx->alloc, backup);
        return rc;
    }
    backup->job.ops = &backup_ops;
    backup->job.kind = BLKREPL_KIND_BACKUP;
    backup->bytes_total = image_bytes(source);
    blkrepl__hbitmap_set_all(&backup->copy.todo);
    *out = backup;
    return 0;
}

static int backup_make(blkrepl_image *source, blkrepl_image *target,
                       const blkrepl_backup_options *options, bool start, blkrepl_job **out)
{
    blkrepl_backup_options o;
    struct blkrepl_context *ctx;
    struct backup *backup = NULL;
    int rc = backup_check_options(options, &o);

    if (rc == 0) {
        rc = backup_check_images(source, target);
    }
    if (rc == 0) {
        rc = backup_alloc(&o, source, target, &backup);
    }
    if (rc < 0) {
        return rc;
    }
    ctx = source->ctx;
    blkrepl__enter(ctx);
    rc = backup_enlist(backup, &o, start);
    if (rc == 0) {
        *out = &backup->job;
    }
    blkrepl__leave(ctx, 0);
    if (rc < 0) {
        blkrepl__copy_free(&backup->copy, ctx);
        blkrepl__free(&ctx->alloc, backup);
    }
    return rc;
}

static int backup_call(blkrepl_image *source, blkrepl_image *target,
                       const blkrepl_backup_options *options, bool start, blkrepl_job **out)
{
    const struct blkrepl_context *ctx = source != NULL ? source->ctx : NULL;
    int rc;

    if (out == NULL) {
        rc = blkrepl__fail(-EINVAL, "backup: out is NULL");
    } else {
        *out = NULL;
        rc = backup_make(source, target, options, start, out);
    }
    if (rc < 0 && options != NULL && options->struct_size >= BLKREPL_BACKUP_OPTIONS_V1_BYTES) {
        blkrepl__host_release(ctx, options->release, options->user);
    }
    return rc;
}

int blkrepl_backup_create(blkrepl_image *source, blkrepl_image *target,
                          const blkrepl_backup_options *options, blkrepl_job **out)
{
    return backup_call(source, target, options, false, out);
}

int blkrepl_backup_start(blkrepl_image *source, blkrepl_image *target,
                         const blkrepl_backup_options *options, blkrepl_job **out)
{
    return backup_call(source, target, options, true, out);
}
