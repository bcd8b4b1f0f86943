/* SPDX-License-Identifier: MIT */
/* s_group.c - finding, finalizing and dismissing jobs; groups. */
#include "api.h"

#define MANUAL (BLKREPL_JOB_MANUAL_FINALIZE | BLKREPL_JOB_MANUAL_DISMISS)

/* ---- Verbs ---- */

/* There is one more handle of it, or there is none. */
static void look_for(struct world *w, const struct job *job, const char *name, bool there)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_job *found[2] = {NULL, NULL};

    api_may(there ? 0 : -ENOENT);
    api_job_find(w->ctx, name, &found[0]);
    api_may(there ? 0 : -ENOENT);
    api_job_next(w->ctx, job->id - 1, &found[1]);
    for (int i = 0; i < 2; i++) {
        REQUIRE((found[i] != NULL) == there, "a job is %sfound that is %sthere",
                there ? "not " : "", there ? "" : "not ");
        if (found[i]) {
            api_job_query(found[i], &info);
            REQUIRE(info.id == job->id, "another job is found");
            api_job_free(found[i]);
        }
    }
}

static void job_dismiss(struct job *job)
{
    blkrepl_job_info info = job_info(job);

    if (info.state != BLKREPL_JOB_CONCLUDED || (info.flags & BLKREPL_JOB_FLAG_DISMISSED) != 0) {
        api_must(BLKREPL_ERR_STATE);
    }
    api_job_dismiss(job->handle);
}

static void job_by_hand(struct world *w)
{
    struct image *source, *target;
    struct job *job;
    blkrepl_backup_options o = {.name = "by hand", .job_flags = MANUAL};

    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, &o))) {
        return;
    }
    look_for(w, job, "by hand", true);
    job_finalize(job);
    job_complete(job);
    job_dismiss(job);
    job_start(job);
    op_write(source, 0, 2 * CLUSTER, 0);
    world_settle(w);
    if (!job_concluded(job)) {
        REQUIRE(job_info(job).state == BLKREPL_JOB_PENDING, "all is done, and it is not PENDING");
        op_write(source, 0, CLUSTER, 0);
        job_dismiss(job);
        job_finalize(job);
        world_settle(w);
    }
    job_check(job);
    job_finalize(job);
    look_for(w, job, "by hand", true);
    job_dismiss(job);
    look_for(w, job, "by hand", false);
    job_dismiss(job);
}

static void job_pending_cancelled(struct world *w)
{
    struct image *source, *target;
    struct job *job;

    if (image_pair(w, NULL, NULL, &source, &target) &&
        (job =
             job_create_started(source, target, &(blkrepl_backup_options){.job_flags = MANUAL}))) {
        world_settle(w);
        job_cancel(job);
        world_settle(w);
        job_check(job);
    }
}

/* Nobody has a handle of it until it is found again. */
static void job_found_again(struct world *w)
{
    struct image *source, *target;
    struct job *job;
    blkrepl_backup_options o = {.name = "again", .job_flags = MANUAL};
    blkrepl_job *found = NULL;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(job = job_create_started(source, target, &o))) {
        return;
    }
    job_free(job);
    world_settle(w);
    if (api_job_find(w->ctx, "again", &found) == 0) {
        blkrepl_job_info info = {.struct_size = sizeof info};

        job->handle = found;
        api_job_query(found, &info);
        if (info.state == BLKREPL_JOB_PENDING) {
            job->done_events = 0;
            api_job_finalize(found);
        }
        world_settle(w);
        api_job_dismiss(found);
        job->handle = NULL;
        api_job_free(found);
    }
}

static void verbs_refused(struct world *w)
{
    blkrepl_job *job = NULL;
    blkrepl_group *group = NULL;

    if (!world_open(w, NULL)) {
        return;
    }
    api_must(-EINVAL);
    api_job_complete(NULL);
    api_must(-EINVAL);
    api_job_finalize(NULL);
    api_must(-EINVAL);
    api_job_dismiss(NULL);
    api_must(-EINVAL);
    api_job_find(w->ctx, NULL, &job);
    api_must(-ENOENT);
    api_job_find(w->ctx, "x", &job);
    api_must(-EINVAL);
    api_job_next(NULL, 0, &job);
    api_must(-ENOENT);
    api_job_next(w->ctx, 0, &job);
    api_must(-EINVAL);
    api_group_create(w->ctx, 2, &group);
    api_must(-EINVAL);
    api_group_create(NULL, 0, &group);
    api_must(-EINVAL);
    api_group_add(NULL, NULL);
    api_must(-EINVAL);
    api_group_start(NULL);
    api_must(-EINVAL);
    api_group_cancel(NULL, 0);
    api_group_free(NULL);
}

/* ---- Groups ---- */

static blkrepl_group *group_create(struct world *w, uint32_t flags)
{
    blkrepl_group *group = NULL;

    if (api_group_create(w->ctx, flags, &group) < 0) {
        api_group_create(w->ctx, flags, &group);
    }
    return group;
}

/* Two sources, two targets, a group of two jobs. */
static blkrepl_group *group_of_two(struct world *w, uint32_t flags, uint32_t job_flags)
{
    blkrepl_backup_options o = {.job_flags = job_flags};
    struct image *source[2], *target[2];
    blkrepl_group *group;

    if (!image_pair(w, NULL, NULL, &source[0], &target[0]) ||
        !image_pair(w, NULL, NULL, &source[1], &target[1]) || !(group = group_create(w, flags))) {
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        struct job *job = job_create(source[i], target[i], i == 0 ? &o : NULL);

        if (!job) {
            api_group_free(group);
            return NULL;
        }
        api_group_add(group, job->handle);
        job->group = (flags & BLKREPL_GROUP_INDIVIDUAL) == 0 ? 1 : 0;
        api_must(BLKREPL_ERR_STATE);
        api_group_add(group, job->handle);
        api_must(BLKREPL_ERR_STATE);
        api_job_start(job->handle);
    }
    return group;
}

static void group_start(struct world *w, blkrepl_group *group)
{
    for (unsigned i = 0; i < 2; i++) {
        job_take_start(&w->jobs[i]);
    }
    REQUIRE(api_group_start(group) == 0, "a group cannot be started: %s", api_error_message());
    for (unsigned i = 0; i < 2; i++) {
        job_was_started(&w->jobs[i]);
    }
    api_must(BLKREPL_ERR_STATE);
    api_group_start(group);
}

static void group_guest(struct world *w)
{
    for (unsigned i = 0; i < 2; i++) {
        op_write(w->jobs[i].source, 2 * CLUSTER, 3 * CLUSTER, 0);
        op_begin(w->jobs[i].source, BLKREPL_OP_WRITE, 8 * CLUSTER, 100, false);
    }
}

/* Grouped: both are done, or none. */
static void group_check(struct world *w)
{
    blkrepl_job_info first = job_info(&w->jobs[0]), second = job_info(&w->jobs[1]);

    REQUIRE(w->jobs[0].group == 0 ||
                (first.result == BLKREPL_RESULT_DONE) == (second.result == BLKREPL_RESULT_DONE),
            "of a group one is done (result %u) and the other is not (%u)", first.result,
            second.result);
    job_check(&w->jobs[0]);
    job_check(&w->jobs[1]);
}

static void group(struct world *w, uint32_t flags, uint32_t job_flags)
{
    blkrepl_group *g = group_of_two(w, flags, job_flags);

    if (g) {
        group_start(w, g);
        group_guest(w);
        world_settle(w);
        job_finalize(&w->jobs[0]);
        world_settle(w);
        group_check(w);
        api_must(BLKREPL_ERR_STATE);
        api_group_cancel(g, 0);
        api_group_free(g);
    }
}

static void group_together(struct world *w)
{
    group(w, 0, 0);
}

static void group_finalized(struct world *w)
{
    group(w, 0, BLKREPL_JOB_MANUAL_FINALIZE);
}

static void group_individual(struct world *w)
{
    group(w, BLKREPL_GROUP_INDIVIDUAL, BLKREPL_JOB_MANUAL_FINALIZE);
}

static void group_cancelled(struct world *w)
{
    blkrepl_group *g = group_of_two(w, 0, BLKREPL_JOB_MANUAL_FINALIZE);

    if (g) {
        group_start(w, g);
        group_guest(w);
        api_poll(w->ctx, 0, 0);
        if (job_concluded(&w->jobs[0]) && job_concluded(&w->jobs[1])) {
            api_must(BLKREPL_ERR_STATE);
        }
        if (api_group_cancel(g, BLKREPL_CANCEL_FORCE) == 0) {
            w->jobs[0].cancelled = w->jobs[1].cancelled = true;
        }
        api_group_free(g);
        world_settle(w);
        group_check(w);
    }
}

/* One of them is cancelled when the other waits for it, or the group's handle is gone. */
static void group_one_cancelled(struct world *w)
{
    blkrepl_group *g = group_of_two(w, 0, 0);

    if (g) {
        w->jobs[1].target->disk->hold = OPS_ALL;
        group_start(w, g);
        api_group_free(g);
        group_guest(w);
        world_settle(w);
        job_cancel(&w->jobs[1]);
        world_release(w);
        group_check(w);
    }
}

/* It is never started: its jobs are as if they had never been in it. */
static void group_dropped(struct world *w)
{
    blkrepl_group *g = group_of_two(w, 0, 0);

    if (g) {
        api_group_free(g);
        w->jobs[0].group = w->jobs[1].group = 0;
        job_start(&w->jobs[1]);
        job_free(&w->jobs[0]);
        world_settle(w);
        job_check(&w->jobs[1]);
    }
}

const struct scenario group_scenarios[] = {
    {"job-by-hand", job_by_hand, 0},
    {"job-pending-cancelled", job_pending_cancelled, 0},
    {"job-found-again", job_found_again, 0},
    {"job-verbs-refused", verbs_refused, SCENARIO_ONE_ORDER},
    {"group-together", group_together, 0},
    {"group-finalized", group_finalized, 0},
    {"group-individual", group_individual, 0},
    {"group-cancelled", group_cancelled, 0},
    {"group-one-cancelled", group_one_cancelled, 0},
    {"group-dropped", group_dropped, 0},
    {NULL, NULL, 0},
};
