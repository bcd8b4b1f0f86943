/* SPDX-License-Identifier: MIT */
/* s_control.c - what one can do to a backup, and what is refused. */
#include "api.h"

/* ---- Verbs -------------------------------------------------------------------------------- */

static void control_null(struct world *w)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    struct image *source, *target;
    struct job *job;

    api_must(-EINVAL);
    api_job_start(NULL);
    api_must(-EINVAL);
    api_job_pause(NULL);
    api_must(-EINVAL);
    api_job_resume(NULL);
    api_must(-EINVAL);
    api_job_cancel(NULL, 0);
    api_must(-EINVAL);
    api_job_set_speed(NULL, 1);
    api_must(-EINVAL);
    api_job_query(NULL, &info);
    api_job_free(NULL);
    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, NULL))) {
        return;
    }
    api_must(-EINVAL);
    api_job_query(job->handle, NULL);
    info.struct_size = 4;
    api_must(-EINVAL);
    api_job_query(job->handle, &info);
    api_must(-EINVAL);
    api_job_cancel(job->handle, 6);
}

/* Every verb in CREATED, RUNNING, winding up and CONCLUDED. */
static void control_verbs(struct world *w)
{
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, NULL))) {
        return;
    }
    job_resume(job); /* refused: it is not paused */
    job_pause(job);
    job_pause(job); /* refused */
    job_set_speed(job, 5000);
    job_set_speed(job, 0);
    job_start(job);
    api_must(BLKREPL_ERR_STATE);
    api_job_start(job->handle);
    world_settle(w);
    op_write(source, 0, CLUSTER, 0);
    job_resume(job);
    job_resume(job);
    api_poll(w->ctx, 0, 0);
    target->disk->hold = source->disk->hold = OPS_ALL;
    api_poll(w->ctx, 0, 0);
    job_pause(job);
    world_settle(w);
    job_resume(job);
    world_settle(w);
    job_cancel(job);
    job_cancel(job);
    job_pause(job);
    job_resume(job);
    world_release(w);
    job_cancel(job);
    job_pause(job);
    job_set_speed(job, 1);
    api_must(BLKREPL_ERR_STATE);
    api_job_start(job->handle);
}

/* Cancelled before it has begun, and while somebody waits for it. */
static void cancel_at_work(struct world *w, bool cancel_ends, bool no_cancel, uint32_t policy)
{
    struct image *source = image_disk(w, NULL, FILL_DATA), *target = image_disk(w, NULL, FILL_DATA);
    blkrepl_backup_options o = {.on_cbw_error = policy, .name = "the job"};
    struct job *job;

    source->disk->cancel_ends = target->disk->cancel_ends = cancel_ends;
    target->disk->no_cancel = no_cancel;
    if (!world_open(w, NULL) || !image_open(source, NULL) || !image_open(target, NULL) ||
        !(job = job_create(source, target, &o))) {
        return;
    }
    job_cancel(job); /* never started */
    world_settle(w);
    job_check(job);
    job_free(job);
    job = job_create_started(source, target, &o);
    if (!job) {
        return;
    }
    target->disk->hold = source->disk->hold = OPS_ALL;
    world_settle(w);
    op_write(source, 0, 3 * CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 10 * CLUSTER, CLUSTER, false);
    world_settle(w);
    job_cancel(job);
    op_write(source, 8 * CLUSTER, 10, 0);
    world_settle(w);
    world_release(w);
    job_check(job);
    op_write(target, 0, 100, 0);
    world_settle(w);
}

static void control_cancel(struct world *w)
{
    cancel_at_work(w, false, false, BLKREPL_CBW_BACKUP_FAILS);
}

static void control_cancel_ends(struct world *w)
{
    cancel_at_work(w, true, false, BLKREPL_CBW_GUEST_WRITE_FAILS);
}

static void control_no_cancel(struct world *w)
{
    cancel_at_work(w, false, true, BLKREPL_CBW_BACKUP_FAILS);
}

/* Nothing is left but the flush: at the backend, or still behind the guest's. */
static void control_cancel_flush(struct world *w)
{
    struct image *source, *target;
    blkrepl_backend_info narrow = {.bytes = CLUSTER, .queue_depth = 1};

    if (!image_pair(w, &narrow, &narrow, &source, &target)) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        struct job *job = job_create_started(source, target, NULL);

        if (!job) {
            return;
        }
        target->disk->hold = BIT(BLKREPL_OP_FLUSH) | BIT(BLKREPL_OP_WRITE);
        world_settle(w);
        for (int k = 0; k < i; k++) {
            op_flush(target); /* goes first when the last write is done */
        }
        if (target->disk->queue_count > 0) {
            disk_finish(target->disk, 0);
        }
        world_settle(w);
        job_cancel(job);
        world_settle(w);
        world_release(w);
        job_check(job);
        job_free(job);
    }
}

/* The name that the library would give is taken. */
static void control_names(struct world *w)
{
    struct image *source, *target, *other, *third;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !image_pair(w, NULL, NULL, &third, &other)) {
        return;
    }
    /* Ids are given in order: four images, so this is job 5, and the next one 6. */
    if (job_create(source, target, &(blkrepl_backup_options){.name = "backup-6"}) &&
        job_create_started(source, other, NULL)) {
        world_settle(w);
        blkrepl_job_info info = job_info(&w->jobs[1]);

        REQUIRE(strcmp(info.name, "backup-6") != 0, "two jobs have the name %s", info.name);
    }
}

/* Handles are dropped as soon as there are any; the backup goes on. */
static void control_free(struct world *w)
{
    struct image *source, *target, *unused, *other;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !image_pair(w, NULL, NULL, &unused, &other)) {
        return;
    }
    job = job_create(source, other, NULL);
    if (!job) {
        return;
    }
    job_free(job); /* never started */
    job = job_create_started(source, target, NULL);
    if (!job) {
        return;
    }
    image_close(target);
    api_poll(w->ctx, 0, 0);
    job_free(job);
    op_write(source, 5 * CLUSTER, 3 * CLUSTER, 0);
    image_close(source);
    world_settle(w);
    REQUIRE(target->disk->closes == 1 && source->disk->closes == 1,
            "the backup has ended, and its images are not closed");
}

/* By the clock: 4 clusters a second, then faster, then as fast as it goes. */
static void control_speed(struct world *w)
{
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(job = job_create_started(
              source, target, &(blkrepl_backup_options){.speed_bytes_per_sec = 4 * CLUSTER}))) {
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        world_advance(w, SECOND / 2);
        op_write(source, i * 2 * CLUSTER, 512, 0);
    }
    job_set_speed(job, 16 * CLUSTER);
    world_advance(w, SECOND / 4);
    job_set_speed(job, 0);
    world_settle(w);
}

/* ---- Calls from inside events ------------------------------------------------------------- */

/* When one is done, another one starts; then its handle goes. */
static void next_job(struct world *w, const blkrepl_event *event)
{
    struct job *first = &w->jobs[0];

    if (event->type == BLKREPL_EVENT_JOB_ERROR) {
        job_pause(first);
        job_resume(first);
    }
    if (event->type != BLKREPL_EVENT_JOB_DONE || event->user != first) {
        return;
    }
    w->on_event = NULL;
    job_check(first);
    op_write(first->source, 0, CLUSTER, 0);
    struct job *second = job_create_started(first->source, first->target, NULL);
    if (second) {
        op_write(first->source, 4 * CLUSTER, CLUSTER, 0);
    }
    api_must(-EDEADLK);
    api_poll(w->ctx, 0, 0);
}

static void control_reenter(struct world *w)
{
    struct image *source, *target;

    if (image_pair(w, NULL, NULL, &source, &target) && job_create_started(source, target, NULL)) {
        w->on_event = next_job;
        world_settle(w);
    }
}

static void free_inside(struct world *w, const blkrepl_event *event)
{
    struct job *job = &w->jobs[0];

    if (event->type == BLKREPL_EVENT_JOB_STATE && job->handle && job->started) {
        job_free(job);
        image_close(job->target);
        image_close(job->source);
    }
}

static void control_free_inside(struct world *w)
{
    struct image *source, *target;

    if (image_pair(w, NULL, NULL, &source, &target) && job_create_started(source, target, NULL)) {
        w->on_event = free_inside;
        world_settle(w);
    }
}

/* ---- What create refuses ------------------------------------------------------------------- */

static void refused(struct image *source, struct image *target, blkrepl_backup_options o, int code)
{
    blkrepl_job *none = NULL;

    o.struct_size = o.struct_size ? o.struct_size : sizeof o;
    api_must(code);
    api_backup_create(source ? source->handle : NULL, target ? target->handle : NULL, &o, &none);
    api_must(code);
    api_backup_start(source ? source->handle : NULL, target ? target->handle : NULL, &o, &none);
}

static void refuse_options(struct image *source, struct image *target)
{
    static const blkrepl_backup_options bad[] = {
        {.flags = 16},
        {.reserved0 = 1},
        {.sync = 2},
        {.sync = 5},
        {.bitmap_mode = BLKREPL_BITMAP_NEVER},
        {.job_flags = 4},
        {.on_source_error = 5},
        {.on_target_error = 5},
        {.spill_bytes_max = CLUSTER},
        {.on_cbw_error = 3},
        {.cluster_bytes = 5000},
        {.cluster_bytes = 2048},
        {.cluster_bytes = 1u << 25},
        {.workers_max = 1025},
        {.chunk_bytes_max = UINT64_C(1) << 31},
        {.reserve_bytes = UINT64_C(1) << 41},
        {.struct_size = 16},
        {.name = "",
         .cluster_bytes = CLUSTER,
         .chunk_bytes_max = 1,
         .reserve_bytes = 1,
         .workers_max = 1},
    };

    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        refused(source, target, bad[i], -EINVAL);
    }
    refused(NULL, target, (blkrepl_backup_options){.flags = 0}, -EINVAL);
    refused(source, NULL, (blkrepl_backup_options){.flags = 0}, -EINVAL);
    refused(source, source, (blkrepl_backup_options){.flags = 0}, -EINVAL);
    api_must(-EINVAL);
    api_backup_create(source->handle, target->handle, NULL, NULL);
}

/* As little as a job can take. */
static blkrepl_backup_options least(uint64_t cluster, uint32_t workers, const char *name)
{
    return (blkrepl_backup_options){.cluster_bytes = cluster,
                                    .chunk_bytes_max = 1,
                                    .reserve_bytes = 1,
                                    .workers_max = workers,
                                    .name = name};
}

enum medium {
    SOURCE,
    TARGET,
    SMALL,
    FIXED,
    OTHER,
    BLOCKS,
    MEDIA
};

static bool refused_media(struct world *w, struct image **media)
{
    blkrepl_context_options base = {.memory_bytes_max = 40 * CLUSTER, .job_requests_max = 9};
    blkrepl_image_options read_only = {.flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_backend_info info[MEDIA] = {
        [SMALL] = {.bytes = CLUSTER}, [BLOCKS] = {.request_alignment = 2 * CLUSTER}};
    bool open = world_open(w, &base);

    for (int i = 0; i < MEDIA && open; i++) {
        media[i] = image_disk(w, &info[i], FILL_DATA);
        open = image_open(media[i], i == FIXED ? &read_only : NULL);
    }
    return open;
}

static void control_refused(struct world *w)
{
    const blkrepl_backup_options none = {.flags = 0};
    struct image *m[MEDIA];

    if (!refused_media(w, m)) {
        return;
    }
    refuse_options(m[SOURCE], m[TARGET]);
    refused(m[SOURCE], m[SMALL], none, -ENOSPC);
    refused(m[SOURCE], m[FIXED], none, -EROFS);
    refused(m[SOURCE], m[BLOCKS], least(CLUSTER, 1, NULL), -ENOTSUP);
    refused(m[SOURCE], m[TARGET], least(CLUSTER, 9, NULL), -ENOMEM); /* requests */
    refused(m[SOURCE], m[TARGET], none, -ENOMEM);
    m[TARGET]->disk->hold = OPS_ALL;
    op_write(m[TARGET], 0, 10, 0);
    refused(m[SOURCE], m[TARGET], least(CLUSTER, 1, NULL), -EBUSY);
    world_release(w);
    if (job_create(m[SOURCE], m[TARGET], &(blkrepl_backup_options){.name = "taken"})) {
        refused(m[FIXED], m[TARGET], least(CLUSTER, 1, NULL), -EBUSY);
        refused(m[TARGET], m[BLOCKS], least(2 * CLUSTER, 1, NULL), -EBUSY);
        refused(m[SOURCE], m[OTHER], least(CLUSTER, 1, "taken"), -EEXIST);
    }
}

/* Images of 2^62 bytes have too many clusters. */
static void control_too_big(struct world *w)
{
    blkrepl_image *images[2] = {NULL, NULL};
    blkrepl_backup_options o = {.struct_size = sizeof o, .cluster_bytes = CLUSTER};
    blkrepl_job *none = NULL;

    if (!world_open(w, NULL)) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        if (api_image_open_memory(w->ctx, UINT64_C(1) << 62, NULL, &images[i]) < 0) {
            api_image_open_memory(w->ctx, UINT64_C(1) << 62, NULL, &images[i]);
        }
    }
    if (images[0] && images[1]) {
        api_must(-EFBIG);
        api_backup_create(images[0], images[1], &o, &none);
    }
    api_image_close(images[0]);
    api_image_close(images[1]);
}

/* What one job takes of the context's budget is all there is: given back each time. */
static void control_budget(struct world *w)
{
    blkrepl_context_options base = {.memory_bytes_max = 8 * CLUSTER, .job_requests_max = 7};
    struct image *source, *target;

    if (!world_open(w, &base) || !image_pair(w, NULL, NULL, &source, &target)) {
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        struct job *job =
            i % 2 ? job_create(source, target, NULL) : job_create_started(source, target, NULL);

        if (!job) {
            return;
        }
        op_write(source, i * CLUSTER, CLUSTER, 0);
        if (i == 1) {
            job_cancel(job);
        }
        world_settle(w);
        if (i != 3) {
            job_check(job);
            job_free(job);
        }
    }
    struct image *other = image_disk(w, NULL, FILL_DATA);
    if (image_open(other, NULL)) {
        refused(source, other,
                (blkrepl_backup_options){.cluster_bytes = CLUSTER,
                                         .chunk_bytes_max = 1,
                                         .reserve_bytes = 1,
                                         .workers_max = 1},
                -ENOMEM);
    }
}

/* Contexts share nothing, so their images are no pair. */
static void control_two_contexts(struct world *w)
{
    struct image *source = image_disk(w, NULL, FILL_DATA);
    blkrepl_context *elsewhere = NULL;
    blkrepl_image *image = NULL;
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;
    blkrepl_context_options o;
    blkrepl_job *none = NULL;

    if (!world_open(w, NULL) || !image_open(source, NULL)) {
        return;
    }
    o = world_options(w, NULL, &hooks, &allocator);
    if (api_context_create(&o, &elsewhere) < 0) {
        return;
    }
    if (api_image_open_memory(elsewhere, UINT64_C(1) << 40, NULL, &image) == 0) {
        api_must(-EINVAL);
        api_backup_create(source->handle, image, NULL, &none);
    }
    api_image_close(image);
    REQUIRE(api_context_free(elsewhere) == 0, "a context without anything cannot be freed");
}

/* Without a sink there are no events; everything can be asked for. */
static void control_silent(struct world *w)
{
    struct image *source, *target;

    w->silent = true;
    if (image_pair(w, NULL, NULL, &source, &target) && job_create_started(source, target, NULL)) {
        op_write(source, 3 * CLUSTER, 2 * CLUSTER, 0);
        world_settle(w);
    }
}

const struct scenario control_scenarios[] = {
    {"control-null", control_null, SCENARIO_ONE_ORDER},
    {"control-verbs", control_verbs, 0},
    {"control-cancel", control_cancel, 0},
    {"control-cancel-ends", control_cancel_ends, 0},
    {"control-no-cancel", control_no_cancel, 0},
    {"control-cancel-flush", control_cancel_flush, 0},
    {"control-names", control_names, SCENARIO_ONE_ORDER},
    {"control-free", control_free, 0},
    {"control-speed", control_speed, 0},
    {"control-reenter", control_reenter, 0},
    {"control-free-inside", control_free_inside, 0},
    {"control-refused", control_refused, SCENARIO_ONE_ORDER},
    {"control-budget", control_budget, 0},
    {"control-two-contexts", control_two_contexts, SCENARIO_ONE_ORDER},
    {"control-silent", control_silent, 0},
    {"control-too-big", control_too_big, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
