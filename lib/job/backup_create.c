/* SPDX-License-Identifier: MIT */
/* backup_create.c - making a backup: options, images, memory, and the public functions. */
#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"
#include "block/quick.h"
#include "core/error.h"
#include "job/backup.h"

#define BACKUP_FLAGS                                                                               \
    (BLKREPL_BACKUP_DETECT_ZEROES | BLKREPL_BACKUP_NO_OFFLOAD | BLKREPL_BACKUP_COMPRESS |          \
     BLKREPL_BACKUP_DIRTY_ONLY)
#define JOB_FLAGS (BLKREPL_JOB_MANUAL_FINALIZE | BLKREPL_JOB_MANUAL_DISMISS)
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

/* The images of a backup, by what they are for. */
struct backup_images {
    struct blkrepl_image *source;
    struct blkrepl_image *target;
    struct blkrepl_image *spill; /* NULL: none */
};

/* ---- The options ---------------------------------------------------------------- */

static int backup_refuse(const char *why)
{
    return blkrepl__fail(-EINVAL, "backup: %s", why);
}

static int backup_check_choices(const blkrepl_backup_options *o)
{
    if ((o->flags & ~(uint32_t)BACKUP_FLAGS) != 0) {
        return backup_refuse("unknown flags");
    }
    if ((o->job_flags & ~(uint32_t)JOB_FLAGS) != 0) {
        return backup_refuse("unknown job_flags");
    }
    if (o->reserved0 != 0 || o->reserved1 != NULL) {
        return backup_refuse("a reserved field is not 0");
    }
    if (o->sync > BLKREPL_SYNC_NONE) {
        return backup_refuse("unknown sync");
    }
    if (o->bitmap_mode > BLKREPL_BITMAP_ALWAYS) {
        return backup_refuse("unknown bitmap_mode");
    }
    if (o->on_cbw_error > BLKREPL_CBW_GUEST_WRITE_FAILS) {
        return backup_refuse("unknown on_cbw_error");
    }
    if (o->on_source_error > BLKREPL_ON_ERROR_ENOSPC ||
        o->on_target_error > BLKREPL_ON_ERROR_ENOSPC) {
        return backup_refuse("unknown on_source_error or on_target_error");
    }
    return 0;
}

static int backup_check_sizes(const blkrepl_backup_options *o)
{
    if (o->cluster_bytes != 0 &&
        (!is_power_of_two(o->cluster_bytes) || o->cluster_bytes < CLUSTER_BYTES_MIN ||
         o->cluster_bytes > CLUSTER_BYTES_MAX)) {
        return blkrepl__fail(
            -EINVAL, "backup: cluster_bytes %" PRIu64 " is not a power of two from 4 KiB to 16 MiB",
            o->cluster_bytes);
    }
    if (o->workers_max > WORKERS_MOST) {
        return backup_refuse("workers_max is more than 1024");
    }
    if (o->chunk_bytes_max > CHUNK_BYTES_MAX) {
        return backup_refuse("chunk_bytes_max is more than 1 GiB");
    }
    if (o->reserve_bytes > RESERVE_BYTES_MAX) {
        return backup_refuse("reserve_bytes is more than 1 TiB");
    }
    return 0;
}

/* Whether bitmap, its mode and what is to be copied fit together. */
static int backup_check_bitmap_use(const blkrepl_backup_options *o)
{
    bool dirty_only = (o->flags & BLKREPL_BACKUP_DIRTY_ONLY) != 0;

    if (o->bitmap == NULL) {
        if (o->sync == BLKREPL_SYNC_BITMAP || o->sync == BLKREPL_SYNC_INCREMENTAL || dirty_only) {
            return backup_refuse("SYNC_BITMAP, SYNC_INCREMENTAL and DIRTY_ONLY need a bitmap");
        }
        return o->bitmap_mode == 0 ? 0 : backup_refuse("bitmap_mode without a bitmap");
    }
    if (dirty_only && o->sync != BLKREPL_SYNC_NONE) {
        return backup_refuse("DIRTY_ONLY is for SYNC_NONE");
    }
    if (o->bitmap_mode == 0) {
        return backup_refuse("a bitmap needs a bitmap_mode");
    }
    if (o->sync == BLKREPL_SYNC_INCREMENTAL && o->bitmap_mode != BLKREPL_BITMAP_ON_SUCCESS) {
        return backup_refuse("SYNC_INCREMENTAL goes with BITMAP_ON_SUCCESS only");
    }
    if (o->sync == BLKREPL_SYNC_FULL && o->bitmap_mode == BLKREPL_BITMAP_NEVER) {
        return backup_refuse("with SYNC_FULL and BITMAP_NEVER a bitmap has no use");
    }
    if (o->sync == BLKREPL_SYNC_NONE && o->bitmap_mode == BLKREPL_BITMAP_ALWAYS) {
        return backup_refuse("BITMAP_ALWAYS cannot be had with SYNC_NONE");
    }
    return 0;
}

static int backup_check_spill_use(const blkrepl_backup_options *o)
{
    if (o->spill == NULL && o->spill_bytes_max != 0) {
        return backup_refuse("spill_bytes_max without a spill image");
    }
    if (o->spill != NULL && o->sync == BLKREPL_SYNC_NONE) {
        return backup_refuse("with SYNC_NONE nothing is copied later, so there is no spill");
    }
    return 0;
}

static void backup_default_options(blkrepl_backup_options *o)
{
    o->sync = o->sync != 0 ? o->sync : BLKREPL_SYNC_FULL;
    if (o->sync == BLKREPL_SYNC_INCREMENTAL && o->bitmap != NULL && o->bitmap_mode == 0) {
        o->bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS;
    }
}

static int backup_check_options(const blkrepl_backup_options *options, blkrepl_backup_options *o)
{
    int rc = blkrepl__struct_in(o, sizeof *o, BLKREPL_BACKUP_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "backup: options");
    }
    rc = backup_check_choices(o);
    if (rc == 0) {
        rc = backup_check_sizes(o);
    }
    if (rc == 0) {
        backup_default_options(o);
        rc = backup_check_bitmap_use(o);
    }
    return rc < 0 ? rc : backup_check_spill_use(o);
}

/* ---- How it copies --------------------------------------------------------------- */

static const blkrepl_backend_info *backup_info(const struct blkrepl_image *image)
{
    return &image->leaf->port.info;
}

/* The least cluster that all images can live with. */
static int backup_check_cluster(const struct copy_config *config)
{
    uint64_t need = max_u64(backup_info(config->source)->request_alignment,
                            backup_info(config->target)->request_alignment);
    uint64_t whole = backup_info(config->target)->cluster_bytes;

    if (config->spill != NULL) {
        need = max_u64(need, backup_info(config->spill)->request_alignment);
    }
    if (config->cluster_bytes < need) {
        return blkrepl__fail(-ENOTSUP,
                             "backup: cluster_bytes %" PRIu64
                             " is below the images' request alignment of %" PRIu64,
                             config->cluster_bytes, need);
    }
    if (config->cluster_bytes < whole) {
        return blkrepl__fail(-ENOTSUP,
                             "backup: cluster_bytes %" PRIu64 " is below the clusters of %" PRIu64
                             " of target \"%s\"",
                             config->cluster_bytes, whole, config->target->name);
    }
    return 0;
}

/* Compressed is what the target has as one cluster. */
static int backup_check_compress(const struct copy_config *config)
{
    const blkrepl_backend_info *target = backup_info(config->target);

    if (!config->compress) {
        return 0;
    }
    if ((target->flags & BLKREPL_BACKEND_COMPRESS) == 0) {
        return blkrepl__fail(-ENOTSUP, "backup: target \"%s\" cannot compress",
                             config->target->name);
    }
    if (target->cluster_bytes != 0 && config->cluster_bytes != target->cluster_bytes) {
        return blkrepl__fail(-ENOTSUP,
                             "backup: cluster_bytes %" PRIu64
                             ", but target \"%s\" compresses clusters of %" PRIu32,
                             config->cluster_bytes, config->target->name, target->cluster_bytes);
    }
    if (target->transfer_bytes_max < config->cluster_bytes) {
        return blkrepl__fail(-ENOTSUP,
                             "backup: target \"%s\" takes %" PRIu64
                             " bytes at once, so no cluster of %" PRIu64 " to be compressed",
                             config->target->name, target->transfer_bytes_max,
                             config->cluster_bytes);
    }
    return 0;
}

static uint64_t backup_default_cluster(const struct copy_config *config)
{
    const blkrepl_backend_info *s = backup_info(config->source);
    const blkrepl_backend_info *t = backup_info(config->target);

    if (config->compress && t->cluster_bytes != 0) {
        return t->cluster_bytes;
    }
    return max_u64(CLUSTER_BYTES_DEFAULT,
                   max_u64(max_u64(s->request_alignment, t->request_alignment),
                           max_u64(s->cluster_bytes, t->cluster_bytes)));
}

static int backup_configure_cluster(const blkrepl_backup_options *o, struct copy_config *config)
{
    uint64_t chunk = o->chunk_bytes_max != 0 ? o->chunk_bytes_max : CHUNK_BYTES_DEFAULT;
    int rc;

    config->cluster_bytes =
        o->cluster_bytes != 0 ? o->cluster_bytes : backup_default_cluster(config);
    config->chunk_bytes =
        config->compress ? config->cluster_bytes
                         : max_u64(align_down(chunk, config->cluster_bytes), config->cluster_bytes);
    rc = backup_check_cluster(config);
    return rc < 0 ? rc : backup_check_compress(config);
}

static int backup_configure(const blkrepl_backup_options *o, const struct backup_images *images,
                            struct copy_config *config)
{
    *config = (struct copy_config){
        .source = images->source,
        .target = images->target,
        .spill = images->spill,
        .reserve_bytes = o->reserve_bytes != 0 ? o->reserve_bytes : RESERVE_BYTES_DEFAULT,
        .cbw_timeout_ns = o->cbw_timeout_ns != 0 ? o->cbw_timeout_ns : CBW_TIMEOUT_DEFAULT_NS,
        .workers = o->workers_max != 0 ? o->workers_max : WORKERS_DEFAULT,
        .hold_until_written = o->on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS,
        .detect_zeroes = (o->flags & BLKREPL_BACKUP_DETECT_ZEROES) != 0,
        .no_offload = (o->flags & BLKREPL_BACKUP_NO_OFFLOAD) != 0,
        .compress = (o->flags & BLKREPL_BACKUP_COMPRESS) != 0,
        .keeps_bad = o->on_source_error == BLKREPL_ON_ERROR_IGNORE ||
                     o->on_target_error == BLKREPL_ON_ERROR_IGNORE,
        .keeps_absent = o->sync == BLKREPL_SYNC_NONE,
        .spill_bytes_max = o->spill_bytes_max != 0 ? o->spill_bytes_max : UINT64_MAX,
        .burst_bytes = o->speed_burst_bytes,
        .throttle = o->throttle,
    };
    return backup_configure_cluster(o, config);
}

/* ---- The images and the bitmap --------------------------------------------------- */

static bool backup_same_medium(const struct blkrepl_image *a, const struct blkrepl_image *b)
{
    return a == b || (a->leaf->identified && b->leaf->identified &&
                      a->leaf->device == b->leaf->device && a->leaf->inode == b->leaf->inode);
}

static int backup_check_apart(const struct blkrepl_image *a, const char *a_role,
                              const struct blkrepl_image *b, const char *b_role)
{
    if (a->ctx != b->ctx) {
        return blkrepl__fail(-EINVAL, "backup: \"%s\" and \"%s\" belong to different contexts",
                             a->name, b->name);
    }
    if (backup_same_medium(a, b)) {
        return blkrepl__fail(-EINVAL, "backup: %s \"%s\" and %s \"%s\" are the same disk", a_role,
                             a->name, b_role, b->name);
    }
    return 0;
}

/* Whether the source's data can be written there: to the target, or the spill image. */
static int backup_check_room(const struct blkrepl_image *source, const struct blkrepl_image *image,
                             const char *role)
{
    if (image_bytes(image) < image_bytes(source)) {
        return blkrepl__fail(
            -ENOSPC, "backup: %s \"%s\" has %" PRIu64 " bytes, source \"%s\" has %" PRIu64, role,
            image->name, image_bytes(image), source->name, image_bytes(source));
    }
    return image->read_only
               ? blkrepl__fail(-EROFS, "backup: %s \"%s\" is read-only", role, image->name)
               : 0;
}

/* What does not change and needs no lock. */
static int backup_check_images(const struct backup_images *images)
{
    const struct blkrepl_image *source = images->source;
    const struct blkrepl_image *target = images->target;
    const struct blkrepl_image *spill = images->spill;
    int rc;

    if (source == NULL || target == NULL) {
        return blkrepl__fail(-EINVAL, "backup: %s is NULL", source == NULL ? "source" : "target");
    }
    rc = backup_check_apart(source, "source", target, "target");
    if (rc == 0 && spill != NULL) {
        rc = backup_check_apart(source, "source", spill, "spill image");
    }
    if (rc == 0 && spill != NULL) {
        rc = backup_check_apart(target, "target", spill, "spill image");
    }
    if (rc == 0) {
        rc = backup_check_room(source, target, "target");
    }
    if (rc == 0 && spill != NULL) {
        rc = backup_check_room(source, spill, "spill image");
    }
    return rc;
}

/* The rest of it is judged at the start. */
static int backup_check_bitmap(struct blkrepl_bitmap *bitmap, const struct blkrepl_image *source)
{
    int rc;

    if (bitmap->ctx != source->ctx) {
        return backup_refuse("the bitmap belongs to a different context");
    }
    pthread_mutex_lock(&bitmap->lock);
    rc = blkrepl__bitmap_readable(bitmap, "backup");
    if (rc == 0 && bitmap->map.bytes != image_bytes(source)) {
        rc = blkrepl__fail(-EINVAL,
                           "backup: bitmap \"%.100s\" has %" PRIu64 " bytes, source \"%s\" "
                           "has %" PRIu64,
                           blkrepl__bitmap_called(bitmap), bitmap->map.bytes, source->name,
                           image_bytes(source));
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

static int backup_check_given(const blkrepl_backup_options *o, const struct backup_images *images)
{
    int rc = backup_check_images(images);

    if (rc == 0 && o->throttle != NULL && o->throttle->ctx != images->source->ctx) {
        rc = backup_refuse("the throttle belongs to a different context");
    }
    return rc < 0 || o->bitmap == NULL ? rc : backup_check_bitmap(o->bitmap, images->source);
}

/* Whether an image that the job writes to is free; with the lock held. */
static int backup_check_free(const struct blkrepl_image *image, const char *role)
{
    if (image->jobs_reading > 0 || image->jobs_writing > 0) {
        return blkrepl__fail(-EBUSY, "backup: %s \"%s\" is in use by another job", role,
                             image->name);
    }
    if (image->writes > 0) {
        return blkrepl__fail(-EBUSY, "backup: %" PRIu32 " guest writes to %s \"%s\" have not ended",
                             image->writes, role, image->name);
    }
    return 0;
}

/* Whether the images are free; with the lock held. */
static int backup_check_busy(const struct copy_config *config)
{
    int rc;

    if (config->source->ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "backup: the context is being freed");
    }
    blkrepl__quick_stop(config->source);
    blkrepl__quick_stop(config->target);
    rc = backup_check_free(config->target, "target");
    if (rc == 0 && config->spill != NULL) {
        blkrepl__quick_stop(config->spill);
        rc = backup_check_free(config->spill, "spill image");
    }
    if (rc == 0 && config->source->jobs_writing > 0) {
        rc = blkrepl__fail(-EBUSY, "backup: source \"%s\" is the target of another job",
                           config->source->name);
    }
    return rc;
}

/* ---- Making it ------------------------------------------------------------------- */

/* The job holds what it uses until it has concluded; the engine holds the throttle. */
static void backup_hold(struct backup *backup)
{
    const struct copy_config *config = &backup->copy.config;

    config->source->jobs_reading++;
    config->target->jobs_writing++;
    blkrepl__image_ref(config->source);
    blkrepl__image_ref(config->target);
    if (config->spill != NULL) {
        config->spill->jobs_writing++;
        blkrepl__image_ref(config->spill);
    }
    if (backup->bitmap != NULL) {
        blkrepl__bitmap_ref(backup->bitmap);
    }
}

/* Everything that may be refused and needs the lock.  A job that is to be started at
 * once is prepared first: once it is public it cannot fail. */
static int backup_take(struct backup *backup, const blkrepl_backup_options *o, bool start)
{
    int rc = backup_check_busy(&backup->copy.config);

    if (rc == 0) {
        rc = blkrepl__job_check_name(backup->job.ctx, o->name);
    }
    if (rc == 0 && start) {
        rc = blkrepl__backup_bitmap_prepare(backup);
    }
    if (rc == 0) {
        rc = blkrepl__copy_reserve(&backup->copy, &backup->job);
    }
    if (rc < 0) {
        blkrepl__backup_bitmap_unprepare(backup);
    }
    return rc;
}

/* The job enters the context. */
static int backup_enlist(struct backup *backup, const blkrepl_backup_options *o, bool start)
{
    struct blkrepl_job *job = &backup->job;
    int rc = backup_take(backup, o, start);

    if (rc < 0) {
        return rc;
    }
    backup_hold(backup);
    job->speed_bytes_per_sec = o->speed_bytes_per_sec;
    blkrepl__job_publish(job, job->ctx,
                         &(struct job_identity){.name = o->name,
                                                .kind_name = "backup",
                                                .user = o->user,
                                                .release = o->release,
                                                .flags = o->job_flags});
    if (start) {
        rc = blkrepl__job_start(job);
        CHECK(rc == 0);
    }
    return rc;
}

static void backup_free(struct backup *backup)
{
    struct blkrepl_context *ctx = backup->job.ctx;

    blkrepl__backup_bitmap_fini(backup);
    blkrepl__copy_free(&backup->copy, ctx);
    blkrepl__free(&ctx->alloc, backup);
}

static void backup_describe(struct backup *backup, const blkrepl_backup_options *o)
{
    struct blkrepl_job *job = &backup->job;

    job->ops = &blkrepl__backup_ops;
    job->kind = BLKREPL_KIND_BACKUP;
    job->on_error[BLKREPL_SIDE_SOURCE] = o->on_source_error;
    job->on_error[BLKREPL_SIDE_TARGET] = o->on_target_error;
    job->on_error[BLKREPL_SIDE_SPILL] = o->on_source_error;
    backup->sync = o->sync;
    backup->bitmap_mode = o->bitmap_mode;
    backup->bitmap = o->bitmap;
    backup->dirty_only = (o->flags & BLKREPL_BACKUP_DIRTY_ONLY) != 0;
}

/* Take the memory and fill the map, without the lock. */
static int backup_alloc(const blkrepl_backup_options *o, const struct copy_config *config,
                        struct backup **out)
{
    struct blkrepl_context *ctx = config->source->ctx;
    struct backup *backup = blkrepl__zalloc(&ctx->alloc, sizeof *backup);
    int rc;

    if (backup == NULL) {
        return blkrepl__fail(-ENOMEM, "backup: no memory");
    }
    backup->job.ctx = ctx;
    backup_describe(backup, o);
    rc = blkrepl__copy_alloc(&backup->copy, ctx, config);
    if (rc == 0) {
        rc = blkrepl__backup_bitmap_init(backup);
    }
    if (rc < 0) {
        backup_free(backup);
        return rc;
    }
    *out = backup;
    return 0;
}

static int backup_make(const struct backup_images *images, const blkrepl_backup_options *o,
                       bool start, blkrepl_job **out)
{
    struct backup *backup = NULL;
    struct copy_config config;
    int rc = backup_check_given(o, images);

    if (rc == 0) {
        rc = backup_configure(o, images, &config);
    }
    if (rc == 0) {
        rc = backup_alloc(o, &config, &backup);
    }
    if (rc < 0) {
        return rc;
    }
    blkrepl__enter(images->source->ctx);
    rc = backup_enlist(backup, o, start);
    if (rc == 0) {
        *out = &backup->job;
    }
    blkrepl__leave(images->source->ctx, 0);
    if (rc < 0) {
        backup_free(backup);
    }
    return rc;
}

static int backup_call(blkrepl_image *source, blkrepl_image *target,
                       const blkrepl_backup_options *options, bool start, blkrepl_job **out)
{
    struct backup_images images = {.source = source, .target = target};
    const struct blkrepl_context *ctx = source != NULL ? source->ctx : NULL;
    blkrepl_backup_options o;
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    rc = out != NULL ? backup_check_options(options, &o) : backup_refuse("out is NULL");
    if (rc == 0) {
        images.spill = o.spill;
        rc = backup_make(&images, &o, start, out);
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
