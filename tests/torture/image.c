/* SPDX-License-Identifier: MIT */
/* image.c - media and the images over them. */
#include "api.h"

#include <unistd.h>

#define POLLS_MAX 100000

uint64_t image_bytes(const struct image *image)
{
    return image->model.bytes;
}

bool image_volatile(const struct image *image)
{
    const blkrepl_backend_info *info = &image->world->disks[image->medium].info;

    return image->kind == IMAGE_FILE
               ? !sys_durable()
               : image->kind == IMAGE_DISK && (info->opcodes & BIT(BLKREPL_OP_FLUSH)) != 0;
}

static struct image *image_new(struct world *w, enum image_kind kind, uint64_t bytes,
                               enum fill fill)
{
    REQUIRE(w->image_count < MEDIA_MAX && bytes <= MEDIUM_BYTES_MAX,
            "scenario: too many media, or too large");
    int medium = (int)w->image_count++;
    struct image *image = &w->images[medium];

    image->world = w;
    image->kind = kind;
    image->medium = medium;
    image->policy_unit = 1;
    disk_init(&w->disks[medium], w, medium);
    durable_start(medium, bytes);
    model_init(&image->model, bytes, (unsigned)medium, fill == FILL_ZERO);
    return image;
}

/* What the medium holds before anybody uses it. */
static void image_fill(struct image *image, enum fill fill, uint8_t *out)
{
    struct model *m = &image->model;

    for (uint64_t at = CLUSTER; fill == FILL_HOLES && at < m->bytes; at += 4 * CLUSTER) {
        uint64_t end = at + 2 * CLUSTER + 512;

        model_done(m, model_begin(m, MODEL_ZERO, at, (end < m->bytes ? end : m->bytes) - at));
    }
    memcpy(out, m->likely, (size_t)m->bytes);
}

struct image *image_disk(struct world *w, const blkrepl_backend_info *info, enum fill fill)
{
    uint64_t bytes = info && info->bytes ? info->bytes : 12 * CLUSTER;
    struct image *image = image_new(w, IMAGE_DISK, bytes, fill);

    image->disk = &w->disks[image->medium];
    if (info) {
        uint32_t opcodes = info->opcodes ? info->opcodes : OPS_ALL;

        image->disk->info = *info;
        image->disk->info.opcodes = opcodes;
    }
    image->disk->info.bytes = bytes;
    image_fill(image, fill, image->disk->data);
    return image;
}

struct image *image_memory(struct world *w, uint64_t bytes)
{
    struct image *image = image_new(w, IMAGE_MEMORY, bytes, FILL_ZERO);

    api_memory_grows(true);
    return image;
}

struct image *image_file(struct world *w, uint64_t bytes, enum fill fill)
{
    static uint8_t content[MEDIUM_BYTES_MAX];
    struct image *image = image_new(w, IMAGE_FILE, bytes, fill);

    snprintf(image->path, sizeof image->path, "%s/%d", torture_folder(), image->medium);
    sys_medium(image->path, image->medium);
    unlink(image->path);
    image_fill(image, fill, content);
    if (fill == FILL_ZERO) {
        return image; /* it is for the open to create it */
    }
    FILE *file = fopen(image->path, "wb");
    REQUIRE(file && fwrite(content, 1, bytes, file) == bytes && fclose(file) == 0,
            "cannot write %s", image->path);
    return image;
}

/* ---- Opening --------------------------------------------------------------------------- */

static void image_release(void *user)
{
    struct image *image = user;

    image->released++;
}

static int image_try_snapshot(struct image *image, const blkrepl_image_options *o)
{
    blkrepl_snapshot_options s = {.struct_size = sizeof s,
                                  .queue_depth = 4,
                                  .name = o->name,
                                  .user = o->user,
                                  .release = o->release};

    return api_snapshot_open(image->under->handle, &s, &image->handle);
}

static int image_try(struct image *image, const blkrepl_image_options *o,
                     const blkrepl_file_options *file)
{
    struct world *w = image->world;

    switch (image->kind) {
    case IMAGE_DISK:
        return api_image_open(w->ctx, image->disk->no_cancel ? &disk_ops_no_cancel : &disk_ops,
                              image->disk, o, &image->handle);
    case IMAGE_MEMORY: return api_image_open_memory(w->ctx, image->model.bytes, o, &image->handle);
    case IMAGE_FILE: return api_image_open_file(w->ctx, image->path, file, o, &image->handle);
    case IMAGE_SNAPSHOT: return image_try_snapshot(image, o);
    }
    return 0;
}

static void image_check_info(const struct image *image)
{
    blkrepl_image_info info = {.struct_size = sizeof info};

    api_image_query(image->handle, &info);
    REQUIRE(info.bytes == image->model.bytes && info.user == image && info.name[0] &&
                info.requests_in_flight == 0,
            "medium %d: query tells %llu bytes, name \"%s\"", image->medium,
            (unsigned long long)info.bytes, info.name);
}

static bool image_open_with(struct image *image, const blkrepl_image_options *options,
                            const blkrepl_file_options *file)
{
    blkrepl_image_options o = options ? *options : (blkrepl_image_options){.flags = 0};

    o.struct_size = sizeof o;
    o.user = image;
    o.release = image_release;
    for (int attempt = 0; attempt < 2; attempt++) {
        image->released = 0;
        if (image_try(image, &o, file) == 0) {
            image->opened = true;
            image->read_only =
                image->kind == IMAGE_SNAPSHOT || (o.flags & BLKREPL_IMAGE_READ_ONLY) != 0 ||
                (image->world->disks[image->medium].info.flags & BLKREPL_BACKEND_READ_ONLY) != 0;
            image->disk = image->kind == IMAGE_DISK ? &image->world->disks[image->medium] : NULL;
            if (image->disk) {
                image->disk->opened++;
            }
            image_check_info(image);
            return true;
        }
        REQUIRE(image->released == 1, "open failed and released `user` %u times", image->released);
    }
    image->released = 0;
    return false;
}

bool image_open(struct image *image, const blkrepl_image_options *options)
{
    return image_open_with(image, options, NULL);
}

bool image_open_file(struct image *image, const blkrepl_file_options *file)
{
    blkrepl_file_options f = *file;

    f.struct_size = sizeof f;
    return image_open_with(image, NULL, &f);
}

bool image_pair(struct world *w, const blkrepl_backend_info *source_info,
                const blkrepl_backend_info *target_info, struct image **source,
                struct image **target)
{
    *source = image_disk(w, source_info, FILL_DATA);
    *target = image_disk(w, target_info, FILL_DATA);
    return (w->ctx || world_open(w, NULL)) && image_open(*source, NULL) &&
           image_open(*target, NULL);
}

/* ---- Snapshots ------------------------------------------------------------------------------ */

struct image *image_snapshot(struct job *job)
{
    struct world *w = job->world;
    struct image *image = image_new(w, IMAGE_SNAPSHOT, image_bytes(job->source), FILL_DATA);

    image->under = job;
    image->unmodelled = true; /* it is compared with the start of the job */
    w->disks[job->target->medium].soft_discard = true;
    w->disks[job->target->medium].soft_status = true;
    return image_open(image, NULL) ? image : NULL;
}

/* What a job tells of its end, however it came. */
static bool image_snapshot_over(const struct image *image, int code)
{
    const struct job *job = image->under;
    blkrepl_job_info info = {.state = BLKREPL_JOB_CONCLUDED, .error = code};

    if (job->handle) {
        info = job_info(job);
    }
    if (code == -ESHUTDOWN && (job->completed || job->cancelled || !job->handle)) {
        return true;
    }
    if (info.state == BLKREPL_JOB_CONCLUDED) {
        return code == info.error;
    }
    return info.error_count > 0 && failure_claim(UINT32_MAX, ANY_OPCODE, 0, 0, code);
}

bool image_snapshot_failure(const struct image *image, uint64_t offset, uint64_t end, int code)
{
    const struct job *job = image->under;
    uint32_t media = BIT(job->source->medium) | BIT(job->target->medium);
    uint32_t opcodes = BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_STATUS);
    uint64_t first = offset / CLUSTER * CLUSTER, last = (end + CLUSTER - 1) / CLUSTER * CLUSTER;

    if (image_snapshot_over(image, code)) {
        failure_forgive(media, opcodes, first, last);
        return true;
    }
    return failure_claim(media, opcodes, first, last, code) ||
           (code == -EACCES && image->forgotten);
}

void image_close(struct image *image)
{
    blkrepl_image *handle = image->handle;

    image->handle = NULL;
    api_image_close(handle);
}

/* ---- What the medium holds ----------------------------------------------------------------- */

static void fetch_done(void *user, int result)
{
    *(int *)user = result;
}

/* Through the image: the only way to what is in memory. */
static void image_fetch_memory(struct image *image, uint8_t *out)
{
    blkrepl_iovec iov = {.base = out, .len = (size_t)image->model.bytes};
    int result = 1;
    blkrepl_completion done = {.fn = fetch_done, .user = &result};

    REQUIRE(blkrepl_image_read(image->handle, 0, 0, &iov, 1, 0, &done) == 0, "cannot read: %s",
            blkrepl_error_message());
    for (int i = 0; i < POLLS_MAX && result == 1; i++) {
        blkrepl_poll(image->world->ctx, 0, 0);
    }
    REQUIRE(result == 0, "reading a memory image gave %d", result);
}

static void image_fetch_file(const struct image *image, uint8_t *out)
{
    FILE *file = fopen(image->path, "rb");
    size_t bytes = (size_t)image->model.bytes;

    REQUIRE(file && fread(out, 1, bytes, file) == bytes, "cannot read %s", image->path);
    fclose(file);
}

void image_fetch(struct image *image, uint8_t *out)
{
    switch (image->kind) {
    case IMAGE_DISK:
        memcpy(out, image->world->disks[image->medium].data, (size_t)image->model.bytes);
        break;
    case IMAGE_MEMORY: image_fetch_memory(image, out); break;
    case IMAGE_FILE: image_fetch_file(image, out); break;
    case IMAGE_SNAPSHOT: memcpy(out, image->under->start, (size_t)image->model.bytes); break;
    }
}

void image_check(struct image *image)
{
    static uint8_t content[MEDIUM_BYTES_MAX];
    char what[32];

    if (image->unmodelled || !image->opened || (image->kind == IMAGE_MEMORY && !image->handle)) {
        return;
    }
    snprintf(what, sizeof what, "medium %d", image->medium);
    image_fetch(image, content);
    model_check(&image->model, 0, content, image->model.bytes, NULL, what);
}
