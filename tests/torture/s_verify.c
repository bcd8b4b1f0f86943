/* SPDX-License-Identifier: MIT */
/* s_verify.c - two images are compared, while guests use them. */
#include "api.h"

/* Two that are the same but for a part. */
static bool twins(struct world *w, uint64_t bytes, struct image **image, struct image **other)
{
    blkrepl_backend_info info = {.bytes = bytes};

    if (!image_pair(w, &info, &info, image, other)) {
        return false;
    }
    (*other)->unmodelled = true;
    memcpy((*other)->disk->data, (*image)->disk->data, bytes);
    return true;
}

static void differ(const struct image *other, uint64_t at)
{
    other->disk->data[at] ^= 0x55;
}

/* Chunks of 64 KiB, of which there are two. */
#define SIZE (28u * CLUSTER)
#define CHUNK (64u * KIB)

static struct job *start(struct image *image, struct image *other, const blkrepl_verify_options *o)
{
    struct job *job = job_verify(image, other, o);

    if (job) {
        REQUIRE(api_job_start(job->handle) == 0, "a verify job cannot be started: %s",
                api_error_message());
        job->started = true;
    }
    return job;
}

static bool done(const struct job *job)
{
    return job_info(job).result == BLKREPL_RESULT_DONE;
}

static void verify_same(struct world *w)
{
    struct image *image, *other;
    struct job *job;

    if (twins(w, SIZE, &image, &other) && (job = start(image, other, NULL))) {
        world_settle(w);
        REQUIRE(!done(job) || job_info(job).differing_bytes == 0, "the same images differ");
        job_check(job);
    }
}

/* With bitmaps: what to compare, and what was found. */
static void verify_bitmaps(struct world *w)
{
    struct image *image, *other;
    struct bitmap *only, *found;
    struct job *job;

    if (!twins(w, SIZE, &image, &other) || !(only = bitmap_create(w, SIZE, 4 * KIB)) ||
        !(found = bitmap_create(w, SIZE, CLUSTER))) {
        return;
    }
    differ(other, 100);
    differ(other, CHUNK + 5 * CLUSTER);
    bitmap_set(only, CHUNK, 1);
    bitmap_set(found, 0, CLUSTER); /* it is made clean */
    if (!(job = start(image, other,
                      &(blkrepl_verify_options){.only = only->handle,
                                                .differing = found->handle,
                                                .on_error = BLKREPL_ON_ERROR_IGNORE}))) {
        return;
    }
    world_settle(w);
    job_check(job);
    memset(found->must, 0, sizeof found->must);
    memset(found->may, 0, sizeof found->may);
    for (uint64_t g = (CHUNK + 5 * CLUSTER) / CLUSTER; done(job) && g; g = 0) {
        found->must[g] = found->may[g] = true;
        REQUIRE(job_info(job).differing_bytes == CLUSTER, "%llu bytes differ, not one granule",
                (unsigned long long)job_info(job).differing_bytes);
    }
    for (uint64_t g = CHUNK / CLUSTER; !done(job) && g < SIZE / CLUSTER; g++) {
        found->may[g] = true; /* what could not be read counts as differing */
    }
    bitmap_check(found);
    bitmap_check(only);
}

static void verify_first(struct world *w)
{
    struct image *image, *other;
    struct job *job;
    blkrepl_verify_options o = {.flags = BLKREPL_VERIFY_FIRST, .workers_max = 1};

    if (twins(w, SIZE, &image, &other)) {
        differ(other, 3);
        differ(other, SIZE - 1);
        if ((job = start(image, other, &o))) {
            world_settle(w);
            REQUIRE(!done(job) || job_info(job).differing_bytes > 0, "a difference is not found");
        }
    }
}

/* The guest writes to the first image; the job stops at errors, and is resumed. */
static void verify_live(struct world *w)
{
    struct image *image, *other;
    struct job *job;
    blkrepl_verify_options o = {.on_error = BLKREPL_ON_ERROR_STOP, .workers_max = 1};

    if (!twins(w, SIZE, &image, &other)) {
        return;
    }
    image->disk->hold = BIT(BLKREPL_OP_WRITE);
    op_write(image, 100, 100, 0);
    if (!(job = start(image, other, &o))) {
        return;
    }
    op_begin(image, BLKREPL_OP_WRITE, CHUNK - 10, 20, false);
    op_read(image, 0, CLUSTER);
    world_settle(w);
    image->disk->hold = 0;
    op_zeroes(image, CHUNK + CLUSTER, CLUSTER, 0);
    job_insist(job);
}

static void verify_cancelled(struct world *w)
{
    struct image *image, *other;
    struct job *job;

    if (twins(w, SIZE, &image, &other)) {
        other->disk->hold = BIT(BLKREPL_OP_READ);
        if ((job = start(image, other, NULL))) {
            op_write(image, 0, CLUSTER, 0);
            world_settle(w);
            job_cancel(job);
            world_settle(w);
            world_release(w);
            job_check(job);
        }
    }
}

static void verify_start(struct world *w)
{
    struct image *image, *other;
    blkrepl_job *job = NULL;
    blkrepl_verify_options o = {.struct_size = sizeof o};

    if (!twins(w, 2 * CLUSTER, &image, &other)) {
        return;
    }
    api_must(-EINVAL);
    api_verify_create(image->handle, image->handle, &o, &job);
    api_must(-EINVAL);
    api_verify_start(image->handle, NULL, &o, &job);
    if (api_verify_start(image->handle, other->handle, &o, &job) < 0 &&
        api_verify_start(image->handle, other->handle, &o, &job) < 0) {
        return;
    }
    w->job_dropped = true;
    api_job_free(job);
    world_settle(w);
}

const struct scenario verify_scenarios[] = {
    {"verify-same", verify_same, 0},
    {"verify-bitmaps", verify_bitmaps, 0},
    {"verify-first", verify_first, 0},
    {"verify-live", verify_live, 0},
    {"verify-cancelled", verify_cancelled, 0},
    {"verify-start", verify_start, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
