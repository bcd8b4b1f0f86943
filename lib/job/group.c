/* SPDX-License-Identifier: MIT */
/* group.c - groups of jobs: one start for all, and one end.
 *
 * What a member does at its end may free other members, and the group with the last of
 * them.  So who walks the members holds the group, and begins anew after each. */
#include "job/group.h"

#include <errno.h>

#include "base/abi.h"
#include "core/error.h"

static struct blkrepl_job *group_job(struct list *link)
{
    return CONTAINER_OF(link, struct blkrepl_job, group_link);
}

void blkrepl__group_put(struct blkrepl_group *group)
{
    if (--group->refs == 0) {
        blkrepl__free(&group->ctx->alloc, group);
    }
}

void blkrepl__group_leave(struct blkrepl_job *job)
{
    struct blkrepl_group *group = job->group;

    if (group == NULL) {
        return;
    }
    list_remove(&job->group_link);
    job->group = NULL;
    if (!group->started) {
        job->group_id = 0; /* as if it had never been added */
    }
    blkrepl__group_put(group);
}

bool blkrepl__group_waits(const struct blkrepl_group *group)
{
    struct list *link = group->members.next;

    while (link != &group->members && group_job(link)->state == BLKREPL_JOB_PENDING) {
        link = link->next;
    }
    return link != &group->members;
}

bool blkrepl__group_manual(const struct blkrepl_group *group)
{
    struct list *link = group->members.next;

    while (link != &group->members && !(group_job(link)->flags & BLKREPL_JOB_MANUAL_FINALIZE)) {
        link = link->next;
    }
    return link != &group->members;
}

void blkrepl__group_finalizable(struct blkrepl_group *group)
{
    for (struct list *link = group->members.next; link != &group->members; link = link->next) {
        blkrepl__job_post_state(group_job(link));
    }
}

void blkrepl__group_done(struct blkrepl_group *group)
{
    group->refs++;
    while (!list_empty(&group->members)) {
        blkrepl__job_conclude(group_job(group->members.next), BLKREPL_RESULT_DONE);
    }
    blkrepl__group_put(group);
}

/* The first that is not being cancelled; NULL: none. */
static struct blkrepl_job *group_uncancelled(const struct blkrepl_group *group)
{
    struct list *link = group->members.next;

    while (link != &group->members && group_job(link)->cancel) {
        link = link->next;
    }
    return link != &group->members ? group_job(link) : NULL;
}

void blkrepl__group_abort(struct blkrepl_group *group)
{
    struct blkrepl_job *job;

    group->refs++;
    group->aborted = group->started;
    while ((job = group_uncancelled(group)) != NULL) {
        blkrepl__job_cancel(job);
    }
    blkrepl__group_put(group);
}

int blkrepl_group_create(blkrepl_context *ctx, uint32_t flags, blkrepl_group **out)
{
    struct blkrepl_group *group;
    bool shut;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || out == NULL || (flags & ~(uint32_t)BLKREPL_GROUP_INDIVIDUAL) != 0) {
        return blkrepl__fail(-EINVAL, "group: NULL or unknown flags");
    }
    group = blkrepl__zalloc(&ctx->alloc, sizeof *group);
    if (group == NULL) {
        return blkrepl__fail(-ENOMEM, "group: no memory");
    }
    group->ctx = ctx;
    group->individual = flags != 0;
    group->refs = 1;
    list_init(&group->members);
    blkrepl__enter(ctx);
    shut = ctx->shut;
    if (!shut) {
        group->id = ++ctx->last_id;
        ctx->groups_open++;
        *out = group;
    }
    blkrepl__leave(ctx, 0);
    if (shut) {
        blkrepl__free(&ctx->alloc, group);
        return blkrepl__fail(-ESHUTDOWN, "group: the context is being freed");
    }
    return 0;
}

static int group_add(struct blkrepl_group *group, struct blkrepl_job *job)
{
    int rc = blkrepl__job_may_join(job);

    if (rc < 0) {
        return rc;
    }
    if (group->started) {
        return blkrepl__fail(BLKREPL_ERR_STATE, "job \"%s\": cannot add to a group: it was started",
                             job->name);
    }
    job->group = group;
    job->group_id = group->id;
    group->refs++;
    list_append(&group->members, &job->group_link);
    return 0;
}

int blkrepl_group_add(blkrepl_group *group, blkrepl_job *job)
{
    struct blkrepl_context *ctx;
    int rc;

    if (group == NULL || job == NULL || group->ctx != job->ctx) {
        return blkrepl__fail(-EINVAL, "group: add: NULL, or of different contexts");
    }
    ctx = group->ctx;
    blkrepl__enter(ctx);
    rc = group_add(group, job);
    blkrepl__leave(ctx, 0);
    return rc;
}

/* Have every member take what it needs; all or none. */
static int group_prepare(struct blkrepl_group *group)
{
    struct list *link = group->members.next;
    int rc = 0;

    while (rc == 0 && link != &group->members) {
        struct blkrepl_job *job = group_job(link);

        rc = job_prepare(job);
        link = rc == 0 ? link->next : link;
    }
    while (rc < 0 && link->prev != &group->members) {
        struct blkrepl_job *job = group_job(link->prev);

        link = link->prev;
        job_tell(job, job->ops->unprepare);
    }
    return rc;
}

static int group_start(struct blkrepl_group *group)
{
    int rc;

    if (group->ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "group: the context is being freed");
    }
    if (group->started || list_empty(&group->members)) {
        return blkrepl__fail(BLKREPL_ERR_STATE, "group: cannot start: %s",
                             group->started ? "it was started" : "there is no job in it");
    }
    rc = group_prepare(group);
    if (rc < 0) {
        return rc;
    }
    group->started = true;
    for (struct list *link = group->members.next; link != &group->members; link = link->next) {
        blkrepl__job_launch(group_job(link));
    }
    return 0;
}

int blkrepl_group_start(blkrepl_group *group)
{
    struct blkrepl_context *ctx;
    int rc;

    if (group == NULL) {
        return blkrepl__fail(-EINVAL, "group is NULL");
    }
    ctx = group->ctx;
    blkrepl__enter(ctx);
    rc = group_start(group);
    blkrepl__leave(ctx, 0);
    return rc;
}

int blkrepl_group_cancel(blkrepl_group *group, uint32_t flags)
{
    struct blkrepl_context *ctx;
    int rc = 0;

    if (group == NULL || (flags & ~(uint32_t)BLKREPL_CANCEL_FORCE) != 0) {
        return blkrepl__fail(-EINVAL, "group: cancel: NULL or unknown flags");
    }
    ctx = group->ctx;
    blkrepl__enter(ctx);
    if (list_empty(&group->members)) {
        rc = blkrepl__fail(BLKREPL_ERR_STATE, "group: cannot cancel: no job of it is left");
    } else {
        blkrepl__group_abort(group);
    }
    blkrepl__leave(ctx, 0);
    return rc;
}

void blkrepl_group_free(blkrepl_group *group)
{
    struct blkrepl_context *ctx;

    if (group == NULL) {
        return;
    }
    ctx = group->ctx;
    blkrepl__enter(ctx);
    ctx->groups_open--;
    while (!group->started && !list_empty(&group->members)) {
        blkrepl__group_leave(group_job(group->members.next));
    }
    blkrepl__group_put(group);
    blkrepl__leave(ctx, 0);
}
