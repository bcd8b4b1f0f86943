/* SPDX-License-Identifier: MIT */
/* verify_create.c - creating a verify job: options, memory, budget. */
#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"
#include "block/quick.h"
#include "core/error.h"
#include "job/verify.h"

#define CHUNK_BYTES_DEFAULT (UINT64_C(256) << 10)
#define CHUNK_BYTES_MAX (UINT64_C(64) << 20)
#define WORKERS_DEFAULT 4
#define WORKERS_MOST 256
#define GUEST_TIMEOUT_DEFAULT_NS UINT64_C(30000000000)
#define BUFFER_ALIGN 4096

/* ---- What is refused ---------------------------------------------------------- */

static int verify_refuse(const char *why)
{
    return blkrepl__fail(-EINVAL, "verify: %s", why);
}

static int verify_check_options(const blkrepl_verify_options *options, blkrepl_verify_options *o)
{
    int rc = blkrepl__struct_in(o, sizeof *o, BLKREPL_VERIFY_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "verify: options");
    }
    if ((o->flags & ~(uint32_t)BLKREPL_VERIFY_FIRST) != 0 ||
        (o->job_flags & ~(uint32_t)(BLKREPL_JOB_MANUAL_FINALIZE | BLKREPL_JOB_MANUAL_DISMISS)) !=
            0 ||
        o->reserved0 != 0) {
        return verify_refuse("unknown flags, or a reserved field is not 0");
    }
    if (o->on_error > BLKREPL_ON_ERROR_ENOSPC) {
        return verify_refuse("unknown on_error");
    }
    if (o->workers_max > WORKERS_MOST) {
        return verify_refuse("workers_max is more than 256");
    }
    if (o->chunk_bytes_max != 0 &&
        (o->chunk_bytes_max < VERIFY_GRANULE || o->chunk_bytes_max > CHUNK_BYTES_MAX)) {
        return verify_refuse("chunk_bytes_max is not from 64 KiB to 64 MiB");
    }
    return 0;
}

static int verify_check_images(const blkrepl_image *image, const blkrepl_image *other)
{
    if (image == NULL || other == NULL) {
        return verify_refuse("an image is NULL");
    }
    if (image == other) {
        return verify_refuse("the images are one and the same");
    }
    if (image->ctx != other->ctx) {
        return blkrepl__fail(-EINVAL, "verify: \"%s\" and \"%s\" belong to different contexts",
                             image->name, other->name);
    }
    if (image_bytes(other) < image_bytes(image)) {
        return blkrepl__fail(-EINVAL,
                             "verify: \"%s\" has %" PRIu64 " bytes, \"%s\" has only %" PRIu64,
                             image->name, image_bytes(image), other->name, image_bytes(other));
    }
    return 0;
}

static int verify_check_bitmap(const blkrepl_image *image, struct blkrepl_bitmap *bitmap)
{
    int rc;

    if (bitmap == NULL) {
        return 0;
    }
    if (bitmap->ctx != image->ctx) {
        return verify_refuse("a bitmap belongs to another context");
    }
    pthread_mutex_lock(&bitmap->lock);
    rc = blkrepl__bitmap_readable(bitmap, "verify");
    if (rc == 0 && bitmap->map.bytes != image_bytes(image)) {
        rc = blkrepl__fail(-EINVAL,
                           "verify: bitmap \"%.100s\" has %" PRIu64 " bytes, image \"%s\" has "
                           "%" PRIu64,
                           blkrepl__bitmap_called(bitmap), bitmap->map.bytes, image->name,
                           image_bytes(image));
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

/* All that can be told without the context's lock. */
static int verify_check_given(const blkrepl_image *image, const blkrepl_image *other,
                              const blkrepl_verify_options *o)
{
    int rc = verify_check_images(image, other);

    if (rc == 0 && o->throttle != NULL && o->throttle->ctx != image->ctx) {
        rc = verify_refuse("the throttle belongs to another context");
    }
    if (rc == 0 && o->only != NULL && o->only == o->differing) {
        rc = verify_refuse("the bitmaps are one and the same");
    }
    if (rc == 0) {
        rc = verify_check_bitmap(image, o->only);
    }
    return rc == 0 ? verify_check_bitmap(image, o->differing) : rc;
}

/* ---- Memory, without the lock ------------------------------------------------- */

static void verify_free_map(struct dirtymap *map)
{
    if (map->bits.level_count > 0) {
        blkrepl__dirtymap_fini(map);
    }
}

void blkrepl__verify_free(struct verify *verify)
{
    const struct alloc *alloc = &verify->job.ctx->alloc;

    verify_free_map(&verify->todo);
    verify_free_map(&verify->since);
    blkrepl__buffer_free(alloc, verify->memory, (size_t)verify->memory_bytes);
    blkrepl__free(alloc, verify->tasks);
    blkrepl__free(alloc, verify);
}

/* Give every task its part of the memory.  No image asks for blocks of more than a
 * granule, so what is read in whole blocks fits into a chunk. */
static void verify_equip_tasks(struct verify *verify)
{
    unsigned char *at = verify->memory;

    for (uint32_t n = 0; n < verify->task_count; n++) {
        struct verify_task *task = &verify->tasks[n];

        task->verify = verify;
        task->deadline_ns = BLKREPL_FOREVER;
        list_append(&verify->free, &task->link);
        for (int i = 0; i < 2; i++) {
            task->side[i].task = task;
            task->side[i].buffer = at;
            at += verify->chunk_bytes;
        }
    }
}

static int verify_alloc_buffers(struct verify *verify)
{
    const struct blkrepl_context *ctx = verify->job.ctx;
    const struct alloc *alloc = &ctx->alloc;

    verify->memory_bytes = 2 * verify->task_count * verify->chunk_bytes;
    if (verify->memory_bytes <= SIZE_MAX && verify->memory_bytes <= ctx->memory_bytes_max) {
        verify->tasks = blkrepl__zalloc_array(alloc, verify->task_count, sizeof *verify->tasks);
        verify->memory = blkrepl__buffer_alloc(alloc, BUFFER_ALIGN, (size_t)verify->memory_bytes);
    }
    if (verify->tasks == NULL || verify->memory == NULL) {
        return blkrepl__fail(-ENOMEM, "verify: no memory for %" PRIu64 " bytes of buffers",
                             verify->memory_bytes);
    }
    verify_equip_tasks(verify);
    return 0;
}

static int verify_alloc_maps(struct verify *verify, uint64_t bytes)
{
    const struct alloc *alloc = &verify->job.ctx->alloc;
    int rc = blkrepl__dirtymap_init(&verify->todo, alloc, bytes, VERIFY_SHIFT);

    if (rc == 0 && verify->differing != NULL) {
        rc = blkrepl__dirtymap_init(&verify->since, alloc, bytes, verify->differing->map.shift);
    }
    return rc < 0 ? blkrepl__fail_code(rc, "verify: maps of %" PRIu64 " bytes", bytes) : 0;
}

static bool verify_asks_status(const struct verify *verify)
{
    return leaf_has(verify->image[0]->leaf, BLKREPL_OP_STATUS) &&
           leaf_has(verify->image[1]->leaf, BLKREPL_OP_STATUS);
}

static void verify_describe(struct verify *verify, blkrepl_image *image, blkrepl_image *other,
                            const blkrepl_verify_options *o)
{
    struct blkrepl_job *job = &verify->job;
    uint64_t chunk = o->chunk_bytes_max != 0 ? o->chunk_bytes_max : CHUNK_BYTES_DEFAULT;

    job->ctx = image->ctx;
    job->ops = &blkrepl__verify_ops;
    job->kind = BLKREPL_KIND_VERIFY;
    job->on_error[BLKREPL_SIDE_SOURCE] = o->on_error;
    job->on_error[BLKREPL_SIDE_TARGET] = o->on_error;
    job->speed_bytes_per_sec = o->speed_bytes_per_sec;
    verify->image[0] = image;
    verify->image[1] = other;
    verify->only = o->only;
    verify->differing = o->differing;
    verify->throttle = o->throttle;
    verify->first = (o->flags & BLKREPL_VERIFY_FIRST) != 0;
    verify->asks_status = verify_asks_status(verify);
    verify->chunk_bytes = align_down(chunk, VERIFY_GRANULE);
    verify->guest_timeout_ns =
        o->guest_timeout_ns != 0 ? o->guest_timeout_ns : GUEST_TIMEOUT_DEFAULT_NS;
    verify->task_count = o->workers_max != 0 ? o->workers_max : WORKERS_DEFAULT;
    verify->bytes_total = image_bytes(image);
    list_init(&verify->free);
    list_init(&verify->active);
}

static int verify_alloc(blkrepl_image *image, blkrepl_image *other, const blkrepl_verify_options *o,
                        struct verify **out)
{
    struct verify *verify = blkrepl__zalloc(&image->ctx->alloc, sizeof *verify);
    int rc;

    if (verify == NULL) {
        return blkrepl__fail(-ENOMEM, "verify: no memory");
    }
    verify_describe(verify, image, other, o);
    rc = verify_alloc_maps(verify, image_bytes(image));
    if (rc == 0) {
        rc = verify_alloc_buffers(verify);
    }
    if (rc < 0) {
        blkrepl__verify_free(verify);
        return rc;
    }
    *out = verify;
    return 0;
}

/* ---- What needs the lock ------------------------------------------------------- */

static int verify_check_busy(struct verify *verify)
{
    if (verify->job.ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "verify: the context is being freed");
    }
    for (int i = 0; i < 2; i++) {
        if (verify->image[i]->jobs_writing > 0) {
            return blkrepl__fail(-EBUSY, "verify: \"%s\" is the target of another job",
                                 verify->image[i]->name);
        }
    }
    return 0;
}

/* Whether the budget has room. */
static int verify_check_budget(const struct verify *verify)
{
    const struct blkrepl_context *ctx = verify->job.ctx;
    uint64_t left = ctx->memory_bytes_max - ctx->memory_used;
    uint32_t slots = ctx->job_requests.count - ctx->job_requests.used;

    if (verify->memory_bytes > left) {
        return blkrepl__fail(-ENOMEM,
                             "verify: needs %" PRIu64 " bytes of buffers, the context's "
                             "memory_bytes_max leaves %" PRIu64,
                             verify->memory_bytes, left);
    }
    if (2 * verify->task_count > slots) {
        return blkrepl__fail(-ENOMEM,
                             "verify: needs %" PRIu32 " requests, the context's "
                             "job_requests_max leaves %" PRIu32,
                             2 * verify->task_count, slots);
    }
    return 0;
}

static void verify_rate_expired(struct timer *timer)
{
    job_wake(&CONTAINER_OF(timer, struct verify, rate_timer)->job);
}

/* The throttle has let the next chunk through. */
static void verify_turn_has_come(struct ready *ready)
{
    struct verify *verify = CONTAINER_OF(ready, struct verify, turn.ready);

    verify->turn_state = VERIFY_TURN_MINE;
    job_wake(&verify->job);
}

/* Ask the backends to cancel what they have; each call drops the lock, so look by
 * index. */
static void verify_cancel_run(struct chore *chore)
{
    struct verify *verify = CONTAINER_OF(chore, struct verify, cancel_chore);

    verify->job.refs++;
    for (uint32_t n = 0; n < 2 * verify->task_count; n++) {
        struct verify_side *side = &verify->tasks[n / 2].side[n % 2];
        bool unwanted = verify->stopped || side->task->state == VERIFY_VOID;

        if (unwanted && side->busy && !side->told) {
            side->told = true;
            blkrepl__port_cancel(side->request);
        }
    }
    blkrepl__job_put(&verify->job);
}

/* Take what there is room for. */
static void verify_take(struct verify *verify)
{
    struct blkrepl_context *ctx = verify->job.ctx;

    for (uint32_t n = 0; n < 2 * verify->task_count; n++) {
        verify->tasks[n / 2].side[n % 2].request = blkrepl__request_take(&ctx->job_requests);
    }
    ctx->memory_used += verify->memory_bytes;
    blkrepl__timer_init(&ctx->timers, &verify->rate_timer, verify_rate_expired);
    blkrepl__timer_init(&ctx->timers, &verify->guest_timer, blkrepl__verify_guest_expired);
    verify->turn.ready.run = verify_turn_has_come;
    verify->cancel_chore.run = verify_cancel_run;
    for (int i = 0; i < 2; i++) {
        blkrepl__quick_stop(verify->image[i]);
        verify->image[i]->jobs_reading++;
        blkrepl__image_ref(verify->image[i]);
    }
    if (verify->only != NULL) {
        blkrepl__bitmap_ref(verify->only);
    }
    if (verify->differing != NULL) {
        blkrepl__bitmap_ref(verify->differing);
    }
    if (verify->throttle != NULL) {
        blkrepl__throttle_ref(verify->throttle);
    }
}

void blkrepl__verify_let_go(struct verify *verify)
{
    struct blkrepl_context *ctx = verify->job.ctx;

    CHECK(list_empty(&verify->active));
    blkrepl__timer_clear(&verify->rate_timer);
    list_unlink(&verify->cancel_chore.link);
    for (uint32_t n = 0; n < 2 * verify->task_count; n++) {
        blkrepl__request_put(&ctx->job_requests, verify->tasks[n / 2].side[n % 2].request);
    }
    ctx->memory_used -= verify->memory_bytes;
    for (int i = 0; i < 2; i++) {
        verify->image[i]->jobs_reading--;
        blkrepl__image_unref(verify->image[i]);
    }
    if (verify->only != NULL) {
        blkrepl__bitmap_unref(verify->only);
    }
    if (verify->differing != NULL) {
        blkrepl__bitmap_unref(verify->differing);
    }
    blkrepl__throttle_unref(verify->throttle);
}

/* The job enters the context.  One that is to be started at once is prepared first:
 * once it is public it cannot fail. */
static int verify_enlist(struct verify *verify, const blkrepl_verify_options *o, bool start)
{
    struct blkrepl_job *job = &verify->job;
    int rc = verify_check_busy(verify);

    if (rc == 0) {
        rc = blkrepl__job_check_name(job->ctx, o->name);
    }
    if (rc == 0) {
        rc = verify_check_budget(verify);
    }
    if (rc == 0 && start) {
        rc = job->ops->prepare(job);
    }
    if (rc < 0) {
        return rc;
    }
    verify_take(verify);
    blkrepl__job_publish(job, job->ctx,
                         &(struct job_identity){.name = o->name,
                                                .kind_name = "verify",
                                                .user = o->user,
                                                .release = o->release,
                                                .flags = o->job_flags});
    if (start) {
        rc = blkrepl__job_start(job);
        CHECK(rc == 0);
    }
    return rc;
}

static int verify_make(blkrepl_image *image, blkrepl_image *other, const blkrepl_verify_options *o,
                       bool start, blkrepl_job **out)
{
    struct verify *verify = NULL;
    int rc = verify_check_given(image, other, o);

    if (rc == 0) {
        rc = verify_alloc(image, other, o, &verify);
    }
    if (rc < 0) {
        return rc;
    }
    blkrepl__enter(image->ctx);
    rc = verify_enlist(verify, o, start);
    if (rc == 0) {
        *out = &verify->job;
    }
    blkrepl__leave(image->ctx, 0);
    if (rc < 0) {
        blkrepl__verify_free(verify);
    }
    return rc;
}

static int verify_call(blkrepl_image *image, blkrepl_image *other,
                       const blkrepl_verify_options *options, bool start, blkrepl_job **out)
{
    const struct blkrepl_context *ctx = image != NULL ? image->ctx : NULL;
    blkrepl_verify_options o;
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    rc = out != NULL ? verify_check_options(options, &o) : verify_refuse("out is NULL");
    if (rc == 0) {
        rc = verify_make(image, other, &o, start, out);
    }
    if (rc < 0 && options != NULL && options->struct_size >= BLKREPL_VERIFY_OPTIONS_V1_BYTES) {
        blkrepl__host_release(ctx, options->release, options->user);
    }
    return rc;
}

int blkrepl_verify_create(blkrepl_image *image, blkrepl_image *other,
                          const blkrepl_verify_options *options, blkrepl_job **out)
{
    return verify_call(image, other, options, false, out);
}

int blkrepl_verify_start(blkrepl_image *image, blkrepl_image *other,
                         const blkrepl_verify_options *options, blkrepl_job **out)
{
    return verify_call(image, other, options, true, out);
}
