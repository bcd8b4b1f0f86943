/* SPDX-License-Identifier: MIT */
/* api_job.c - jobs beyond a backup: verbs, groups, snapshots, verify, throttles. */
#include "call.h"

/* What is made is there, and only then. */
static int made(const struct call *c, int rc, bool asked, const void *out)
{
    rc = call_end_zero(c, rc);
    REQUIRE(!asked || (rc == 0) == (out != NULL), "%s: %d and *out %p", api_name(c->function), rc,
            out);
    return rc;
}

int api_job_complete(blkrepl_job *job)
{
    struct call c = call_begin(JOB_COMPLETE);

    return call_end_zero(&c, blkrepl_job_complete(job));
}

int api_job_finalize(blkrepl_job *job)
{
    struct call c = call_begin(JOB_FINALIZE);

    return call_end_zero(&c, blkrepl_job_finalize(job));
}

int api_job_dismiss(blkrepl_job *job)
{
    struct call c = call_begin(JOB_DISMISS);

    return call_end_zero(&c, blkrepl_job_dismiss(job));
}

int api_job_find(blkrepl_context *ctx, const char *name, blkrepl_job **out)
{
    struct call c = call_begin(JOB_FIND);
    int rc = blkrepl_job_find(ctx, name, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_job_next(blkrepl_context *ctx, uint64_t after_id, blkrepl_job **out)
{
    struct call c = call_begin(JOB_NEXT);
    int rc = blkrepl_job_next(ctx, after_id, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_group_create(blkrepl_context *ctx, uint32_t flags, blkrepl_group **out)
{
    struct call c = call_begin(GROUP_CREATE);
    int rc = blkrepl_group_create(ctx, flags, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_group_add(blkrepl_group *group, blkrepl_job *job)
{
    struct call c = call_begin(GROUP_ADD);

    return call_end_zero(&c, blkrepl_group_add(group, job));
}

int api_group_start(blkrepl_group *group)
{
    struct call c = call_begin(GROUP_START);

    return call_end_zero(&c, blkrepl_group_start(group));
}

int api_group_cancel(blkrepl_group *group, uint32_t flags)
{
    struct call c = call_begin(GROUP_CANCEL);

    return call_end_zero(&c, blkrepl_group_cancel(group, flags));
}

void api_group_free(blkrepl_group *group)
{
    struct call c = call_begin(GROUP_FREE);

    blkrepl_group_free(group);
    call_end(&c, 0);
}

int api_snapshot_open(blkrepl_job *job, const blkrepl_snapshot_options *options,
                      blkrepl_image **out)
{
    struct call c = call_begin(SNAPSHOT_OPEN);
    int rc = blkrepl_snapshot_open(job, options, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_verify_create(blkrepl_image *image, blkrepl_image *other,
                      const blkrepl_verify_options *options, blkrepl_job **out)
{
    struct call c = call_begin(VERIFY_CREATE);
    int rc = blkrepl_verify_create(image, other, options, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_verify_start(blkrepl_image *image, blkrepl_image *other,
                     const blkrepl_verify_options *options, blkrepl_job **out)
{
    struct call c = call_begin(VERIFY_START);
    int rc = blkrepl_verify_start(image, other, options, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_throttle_create(blkrepl_context *ctx, const blkrepl_throttle_options *options,
                        blkrepl_throttle **out)
{
    struct call c = call_begin(THROTTLE_CREATE);
    int rc = blkrepl_throttle_create(ctx, options, out);

    return made(&c, rc, out != NULL, out != NULL ? *out : NULL);
}

int api_throttle_set(blkrepl_throttle *throttle, const blkrepl_throttle_options *options)
{
    struct call c = call_begin(THROTTLE_SET);

    return call_end_zero(&c, blkrepl_throttle_set(throttle, options));
}

int api_throttle_query(blkrepl_throttle *throttle, blkrepl_throttle_info *info)
{
    struct call c = call_begin(THROTTLE_QUERY);

    return call_end_zero(&c, blkrepl_throttle_query(throttle, info));
}

void api_throttle_free(blkrepl_throttle *throttle)
{
    struct call c = call_begin(THROTTLE_FREE);

    blkrepl_throttle_free(throttle);
    call_end(&c, 0);
}

int api_image_set_throttle(blkrepl_image *image, blkrepl_throttle *throttle)
{
    struct call c = call_begin(IMAGE_SET_THROTTLE);

    return call_end_zero(&c, blkrepl_image_set_throttle(image, throttle));
}
