/* SPDX-License-Identifier: MIT */
/* s_throttle.c - limits that images and jobs share. */
#include "api.h"

#define STEPS_MAX 200

static blkrepl_throttle *throttle_create(struct world *w, const blkrepl_throttle_options *options)
{
    blkrepl_throttle_options o = *options;
    blkrepl_throttle *throttle = NULL;

    o.struct_size = sizeof o;
    if (api_throttle_create(w->ctx, &o, &throttle) < 0) {
        api_throttle_create(w->ctx, &o, &throttle);
    }
    return throttle;
}

static blkrepl_throttle_info throttle_info(blkrepl_throttle *throttle)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};

    api_throttle_query(throttle, &info);
    return info;
}

/* Until nobody waits any more. */
static void pass_time(struct world *w, blkrepl_throttle *throttle)
{
    unsigned steps = 0;

    world_settle(w);
    while (throttle_info(throttle).waiting > 0) {
        REQUIRE(++steps < STEPS_MAX, "somebody waits for ever for a throttle");
        world_advance(w, SECOND / 4);
    }
}

static const blkrepl_throttle_options slow = {.bytes_per_sec = 8 * CLUSTER, .ops_per_sec = 10};

static void throttle_guest(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);
    blkrepl_throttle *throttle;

    if (!world_open(w, NULL) || !image_open(image, NULL) ||
        !(throttle = throttle_create(w, &slow))) {
        return;
    }
    api_image_set_throttle(image->handle, throttle);
    request_mix(image, false);
    op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    struct op *given_up = op_begin(image, BLKREPL_OP_WRITE, CLUSTER, CLUSTER, true);
    op_cancel(given_up);
    op_write(image, 0, 4 * CLUSTER, 0);
    pass_time(w, throttle);
    REQUIRE(throttle_info(throttle).delayed_ops > 0, "nobody had to wait");
    op_write(image, 0, 4 * CLUSTER, 0);
    op_write(image, 0, 4 * CLUSTER, 0);
    api_image_set_throttle(image->handle, NULL);
    api_throttle_free(throttle);
    world_settle(w);
}

/* Set free by other limits; then the handle goes while somebody waits. */
static void throttle_set(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);
    blkrepl_throttle *throttle;
    blkrepl_throttle_options o = {.struct_size = sizeof o}, bad = o;

    if (!world_open(w, NULL) || !image_open(image, NULL) ||
        !(throttle = throttle_create(w, &slow))) {
        return;
    }
    bad.flags = 1;
    api_must(-EINVAL);
    api_throttle_set(throttle, &bad);
    api_must(-EINVAL);
    api_throttle_set(NULL, &o);
    api_must(-EINVAL);
    api_throttle_query(throttle, NULL);
    api_must(-EINVAL);
    api_image_set_throttle(NULL, throttle);
    api_throttle_free(NULL);
    api_image_set_throttle(image->handle, throttle);
    for (unsigned i = 0; i < 4; i++) {
        op_write(image, i * CLUSTER, 3 * CLUSTER, 0);
        op_read(image, 0, CLUSTER);
    }
    api_throttle_set(throttle, &o);
    world_settle(w);
    o.ops_per_sec = 2;
    api_throttle_set(throttle, &o);
    for (unsigned i = 0; i < 4; i++) {
        op_write(image, i * CLUSTER, CLUSTER, 0);
    }
    api_throttle_free(throttle);
    for (unsigned i = 0; i < 30; i++) {
        world_advance(w, SECOND / 4);
    }
    api_image_set_throttle(image->handle, NULL);
}

/* The image is closed with requests that wait. */
static void throttle_closed(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);
    blkrepl_throttle *throttle;

    if (world_open(w, NULL) && image_open(image, NULL) && (throttle = throttle_create(w, &slow))) {
        api_image_set_throttle(image->handle, throttle);
        op_write(image, 0, 4 * CLUSTER, 0);
        op_write(image, 0, 4 * CLUSTER, 0);
        op_read(image, 0, 4 * CLUSTER);
        image_close(image);
        pass_time(w, throttle);
        api_throttle_free(throttle);
    }
}

/* A backup and a guest behind one throttle, and then a verify. */
static void throttle_jobs(struct world *w)
{
    struct image *source, *target;
    blkrepl_throttle *throttle;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(throttle = throttle_create(w, &slow))) {
        return;
    }
    api_image_set_throttle(source->handle, throttle);
    job = job_create_started(source, target, &(blkrepl_backup_options){.throttle = throttle});
    if (job) {
        op_write(source, 100, 2 * CLUSTER, 0);
        op_begin(source, BLKREPL_OP_WRITE, 9 * CLUSTER, 100, false);
        world_advance(w, SECOND / 8);
        op_write(source, 7 * CLUSTER, CLUSTER, 0);
        pass_time(w, throttle);
        job_check(job);
        job = job_verify(source, target, &(blkrepl_verify_options){.throttle = throttle});
    }
    if (job) {
        api_job_start(job->handle);
        job->started = true;
        pass_time(w, throttle);
        job_check(job);
    }
    api_image_set_throttle(source->handle, NULL);
    api_throttle_free(throttle);
}

/* A job that waits for its turn is cancelled, and another one paused. */
static void throttle_cancelled(struct world *w)
{
    blkrepl_throttle_options crawl = {.ops_per_sec = 1, .burst_ops = 1};
    struct image *source, *target;
    blkrepl_throttle *throttle;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(throttle = throttle_create(w, &crawl))) {
        return;
    }
    job = job_create_started(source, target, &(blkrepl_backup_options){.throttle = throttle});
    if (job) {
        world_settle(w);
        job_pause(job);
        world_advance(w, 3 * SECOND);
        job_resume(job);
        world_settle(w);
        job_cancel(job);
        world_settle(w);
        job_check(job);
        REQUIRE(throttle_info(throttle).waiting == 0, "a job that is over waits for a throttle");
    }
    api_throttle_free(throttle);
}

const struct scenario throttle_scenarios[] = {
    {"throttle-guest", throttle_guest, 0},         {"throttle-set", throttle_set, 0},
    {"throttle-closed", throttle_closed, 0},       {"throttle-jobs", throttle_jobs, 0},
    {"throttle-cancelled", throttle_cancelled, 0}, {NULL, NULL, 0},
};
