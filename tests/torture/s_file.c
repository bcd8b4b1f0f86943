/* SPDX-License-Identifier: MIT */
/* s_file.c - images over files, on systems that can more or less. */
#include "api.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BYTES (12 * CLUSTER)

static const struct sys_files on_tmpfs = {.tmpfs = true, .no_zero_range = true};
static const struct sys_files granted = {.nowait = NOWAIT_GRANTED};
static const struct sys_files sometimes = {.nowait = NOWAIT_SOMETIMES};
static const struct sys_files refused = {
    .no_dsync = true, .no_punch = true, .no_zero_range = true, .no_seek = true};
static const struct sys_files device = {.device = true};
static const struct sys_files direct = {.direct = true};
static const struct sys_files threads = {.threads = true, .nowait = NOWAIT_SOMETIMES};

static struct image *one(struct world *w, const struct sys_files *files)
{
    sys_files(files);
    struct image *image = image_file(w, BYTES, FILL_HOLES);

    return world_open(w, NULL) && image_open(image, NULL) ? image : NULL;
}

static void mix(struct world *w, const struct sys_files *files)
{
    struct image *image = one(w, files);

    if (image) {
        request_mix(image, true);
        w->parts = 5;
        w->skew = 3;
        request_mix(image, false);
    }
}

static void file_tmpfs(struct world *w)
{
    mix(w, &on_tmpfs);
}

static void file_granted(struct world *w)
{
    mix(w, &granted);
}

static void file_sometimes(struct world *w)
{
    mix(w, &sometimes);
}

static void file_refused(struct world *w)
{
    mix(w, &refused);
}

static void file_device(struct world *w)
{
    struct image *image = one(w, &device);

    if (image) {
        request_mix(image, true);
        op_zeroes(image, 700, 2000, BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_FUA);
        op_zeroes(image, 5 * CLUSTER - 3, 2000, 0);
        op_zeroes(image, 6 * CLUSTER, 2000, BLKREPL_IO_NO_FALLBACK);
        op_zeroes(image, 100, 50, 0);
        op_discard(image, 8 * CLUSTER - 1, 600);
        world_settle(w);
    }
}

/* Opened twice, and everything goes to the pool. */
static void file_direct(struct world *w)
{
    blkrepl_file_options options = {.flags = BLKREPL_FILE_DIRECT};

    sys_files(&direct);
    struct image *image = image_file(w, BYTES - 100, FILL_HOLES);

    if (world_open(w, NULL) && image_open_file(image, &options)) {
        request_mix(image, true);
        w->parts = 5;
        w->skew = 3;
        request_mix(image, false);
    }
}

/* ---- Backups --------------------------------------------------------------------------------- */

static void file_pair(struct world *w, const struct sys_files *files,
                      const blkrepl_backup_options *o)
{
    sys_files(files);
    struct image *source = image_file(w, BYTES - 100, FILL_HOLES);
    struct image *target = image_file(w, BYTES, files->device ? FILL_DATA : FILL_ZERO);
    blkrepl_file_options open = {.flags = files->direct ? BLKREPL_FILE_DIRECT : 0};
    blkrepl_file_options create = {.flags = BLKREPL_FILE_CREATE | open.flags, .bytes = BYTES};

    if (!world_open(w, NULL) || !image_open_file(source, &open) ||
        !(files->device ? image_open(target, NULL) : image_open_file(target, &create)) ||
        !job_create_started(source, target, o)) {
        return;
    }
    op_write(source, 100, 2 * CLUSTER, 0);
    op_zeroes(source, 5 * CLUSTER, 3 * CLUSTER, BLKREPL_IO_MAY_UNMAP);
    op_discard(source, 9 * CLUSTER, CLUSTER);
    api_poll(w->ctx, 0, 0);
    op_write(source, 8 * CLUSTER - 50, 100, BLKREPL_IO_FUA);
    op_read(source, 0, BYTES - 100);
    world_settle(w);
}

static void file_backup_tmpfs(struct world *w)
{
    file_pair(w, &on_tmpfs, NULL);
}

static void file_backup_granted(struct world *w)
{
    file_pair(w, &granted,
              &(blkrepl_backup_options){.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS});
}

static void file_backup_refused(struct world *w)
{
    file_pair(w, &refused, &(blkrepl_backup_options){.flags = BLKREPL_BACKUP_DETECT_ZEROES});
}

static void file_backup_direct(struct world *w)
{
    file_pair(w, &direct, NULL);
}

static void file_backup_device(struct world *w)
{
    file_pair(w, &device, NULL);
}

/* With the pool's threads, and a poll that helps them. */
static void file_threads(struct world *w)
{
    w->real_clock = true;
    file_pair(w, &threads, NULL);
    if (w->ctx) {
        world_finish(w);
        api_poll(w->ctx, 0, SECOND / 1000);
    }
}

/* Cancelled while the pool is at it; handles dropped, context closed. */
static void file_threads_cancel(struct world *w)
{
    sys_files(&threads);
    w->real_clock = true;
    w->default_pool = true;
    struct image *source = image_file(w, BYTES, FILL_DATA),
                 *target = image_file(w, BYTES, FILL_DATA);
    struct job *job;

    if (!world_open(w, NULL) || !image_open(source, NULL) || !image_open(target, NULL) ||
        !(job = job_create_started(source, target, NULL))) {
        return;
    }
    api_poll(w->ctx, 0, 0);
    op_write(source, 0, CLUSTER, 0);
    op_flush(source);
    job_cancel(job);
    op_write(source, 3 * CLUSTER, CLUSTER, 0);
    image_close(source);
    world_finish(w);
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void cannot(struct world *w, const char *path, const blkrepl_file_options *file,
                   const blkrepl_image_options *options, int code)
{
    blkrepl_image *none = NULL;

    api_must(code);
    api_image_open_file(w->ctx, path, file, options, &none);
}

static void cannot_with(struct world *w, const char *path, blkrepl_file_options file, int code)
{
    file.struct_size = file.struct_size ? file.struct_size : sizeof file;
    cannot(w, path, &file, NULL, code);
}

static void open_bad_options(struct world *w, const char *path)
{
    blkrepl_image_options ro = {.struct_size = sizeof ro, .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_file_options create = {.struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE};
    blkrepl_image *none = NULL;

    cannot_with(w, path, (blkrepl_file_options){.flags = 8}, -EINVAL);
    cannot_with(w, path, (blkrepl_file_options){.flags = BLKREPL_FILE_EXCLUSIVE}, -EINVAL);
    cannot_with(w, path, (blkrepl_file_options){.bytes = 5}, -EINVAL);
    cannot_with(w, path, (blkrepl_file_options){.queue_depth = 5000}, -EINVAL);
    cannot_with(w, path, (blkrepl_file_options){.struct_size = 8}, -EINVAL);
    cannot(w, path, &create, &ro, -EINVAL);
    api_must(-EINVAL);
    api_image_open_file(w->ctx, NULL, NULL, NULL, &none);
    api_must(-EINVAL);
    api_image_open_file(NULL, path, NULL, NULL, &none);
}

static void file_open_refused(struct world *w)
{
    sys_files(&on_tmpfs);
    struct image *there = image_file(w, BYTES, FILL_DATA);
    char missing[160];

    if (!world_open(w, NULL)) {
        return;
    }
    snprintf(missing, sizeof missing, "%s/missing", torture_folder());
    open_bad_options(w, there->path);
    cannot(w, missing, NULL, NULL, -ENOENT);
    cannot(w, torture_folder(), NULL,
           &(blkrepl_image_options){.struct_size = sizeof(blkrepl_image_options),
                                    .flags = BLKREPL_IMAGE_READ_ONLY},
           -ENOTSUP);
    api_may(-EISDIR); /* if not even stat(2) tells what it is */
    cannot(w, torture_folder(), NULL, NULL, -ENOTSUP);
    cannot(w, "/dev/null", NULL, NULL, -ENOTSUP);
    cannot_with(
        w, there->path,
        (blkrepl_file_options){.flags = BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE, .bytes = 5},
        -EEXIST);
    image_open(there, NULL);
}

/* A device that is too small is not grown. */
static void file_device_small(struct world *w)
{
    sys_files(&device);
    struct image *there = image_file(w, BYTES, FILL_DATA);

    if (world_open(w, NULL)) {
        cannot_with(w, there->path,
                    (blkrepl_file_options){.flags = BLKREPL_FILE_CREATE, .bytes = 2 * BYTES},
                    -ENOSPC);
        image_open_file(there, &(blkrepl_file_options){.flags = BLKREPL_FILE_CREATE});
    }
}

/* Made, grown, read-only; one file by two handles is no pair for a backup. */
static void file_create(struct world *w)
{
    sys_files(&on_tmpfs);
    struct image *made = image_file(w, BYTES, FILL_ZERO), *fixed = image_file(w, BYTES, FILL_DATA);
    blkrepl_file_options create = {.flags = BLKREPL_FILE_CREATE, .bytes = BYTES, .mode = 0640};
    blkrepl_image *twin = NULL;
    blkrepl_job *none = NULL;

    if (!world_open(w, NULL) || !image_open_file(made, &create) ||
        !image_open(fixed, &(blkrepl_image_options){.flags = BLKREPL_IMAGE_READ_ONLY})) {
        return;
    }
    op_write(made, 5, 500, 0);
    op_read(fixed, 0, CLUSTER);
    api_must(-EROFS);
    op_write(fixed, 0, 5, 0);
    world_settle(w);
    if (api_image_open_file(w->ctx, made->path, NULL, NULL, &twin) == 0) {
        api_must(-EINVAL);
        api_backup_create(made->handle, twin, NULL, &none);
        api_image_close(twin);
    }
}

/* The file becomes shorter behind the library's back: no zeroes instead of data. */
static void file_shortened(struct world *w)
{
    struct image *image = one(w, &granted);

    if (!image) {
        return;
    }
    REQUIRE(truncate(image->path, BYTES / 2) == 0, "cannot truncate %s", image->path);
    failure_add(&(struct failure){.medium = image->medium, .code = -EIO, .bytes = UINT64_MAX});
    struct op *op = op_read(image, BYTES - CLUSTER, CLUSTER);
    world_settle(w);
    REQUIRE(op->result < 0, "what is missing was read");
    static blkrepl_extent extent;
    api_image_status(image->handle, 0, BYTES - CLUSTER, CLUSTER, &extent, 1, NULL);
    world_settle(w);
    REQUIRE((extent.flags & BLKREPL_EXTENT_ZERO) == 0, "what is missing is called zero");
    REQUIRE(truncate(image->path, BYTES) == 0, "cannot truncate %s", image->path);
    image->unmodelled = true;
}

const struct scenario file_scenarios[] = {
    {"file-tmpfs", file_tmpfs, SCENARIO_ONE_ORDER},
    {"file-granted", file_granted, SCENARIO_ONE_ORDER},
    {"file-sometimes", file_sometimes, SCENARIO_ONE_ORDER},
    {"file-refused", file_refused, SCENARIO_ONE_ORDER},
    {"file-device", file_device, SCENARIO_ONE_ORDER},
    {"file-direct", file_direct, SCENARIO_ONE_ORDER},
    {"file-backup-direct", file_backup_direct, SCENARIO_ONE_ORDER},
    {"file-backup-tmpfs", file_backup_tmpfs, SCENARIO_ONE_ORDER},
    {"file-backup-granted", file_backup_granted, SCENARIO_ONE_ORDER},
    {"file-backup-refused", file_backup_refused, SCENARIO_ONE_ORDER},
    {"file-backup-device", file_backup_device, SCENARIO_ONE_ORDER},
    {"file-threads", file_threads, SCENARIO_ONE_ORDER | SCENARIO_THREADS},
    {"file-threads-cancel", file_threads_cancel, SCENARIO_ONE_ORDER | SCENARIO_THREADS},
    {"file-open-refused", file_open_refused, SCENARIO_ONE_ORDER},
    {"file-device-small", file_device_small, SCENARIO_ONE_ORDER},
    {"file-create", file_create, SCENARIO_ONE_ORDER},
    {"file-shortened", file_shortened, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
