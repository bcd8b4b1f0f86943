/* SPDX-License-Identifier: MIT */
/* s_policy.c - what a job does about errors; spill images. */
#include "api.h"

/* First touches of a guest, through and beside, some of them again. */
static void guest(struct image *source)
{
    op_write(source, 100, 2 * CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 7 * CLUSTER, 300, false);
    api_poll(source->world->ctx, 0, 0);
    op_zeroes(source, 5 * CLUSTER, CLUSTER, 0);
    op_write(source, 9 * CLUSTER - 50, 100, 0);
    world_settle(source->world);
    op_write(source, 0, 6 * CLUSTER, 0);
    op_discard(source, 3 * CLUSTER, CLUSTER);
    op_read(source, 0, 8 * CLUSTER);
}

static void policy(struct world *w, const blkrepl_backup_options *o)
{
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(job = job_create_started(source, target, o))) {
        return;
    }
    guest(source);
    job_insist(job);
    if (job_concluded(job) && job_info(job).result == BLKREPL_RESULT_DONE) {
        REQUIRE(job_info(job).failed_bytes == 0, "done, and some bytes were given up");
    }
}

static void policy_ignore(struct world *w)
{
    policy(w, &(blkrepl_backup_options){.on_source_error = BLKREPL_ON_ERROR_IGNORE,
                                        .on_target_error = BLKREPL_ON_ERROR_IGNORE});
}

static void policy_stop(struct world *w)
{
    policy(w, &(blkrepl_backup_options){.on_source_error = BLKREPL_ON_ERROR_STOP,
                                        .on_target_error = BLKREPL_ON_ERROR_STOP});
}

static void policy_stop_guest_fails(struct world *w)
{
    policy(w, &(blkrepl_backup_options){.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS,
                                        .on_source_error = BLKREPL_ON_ERROR_STOP,
                                        .on_target_error = BLKREPL_ON_ERROR_STOP});
}

static void policy_enospc(struct world *w)
{
    policy(w, &(blkrepl_backup_options){.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS,
                                        .on_source_error = BLKREPL_ON_ERROR_ENOSPC,
                                        .on_target_error = BLKREPL_ON_ERROR_ENOSPC});
}

/* It stands still at an error, and is cancelled, or paused by the host as well. */
static void policy_stop_cancelled(struct world *w)
{
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(job = job_create_started(
              source, target,
              &(blkrepl_backup_options){.on_source_error = BLKREPL_ON_ERROR_STOP,
                                        .on_target_error = BLKREPL_ON_ERROR_STOP}))) {
        return;
    }
    job_pause(job);
    guest(source);
    world_settle(w);
    job_resume(job);
    job_pause(job);
    world_settle(w);
    job_cancel(job);
    world_settle(w);
    job_check(job);
}

/* ---- Spill ---- */

static void spill(struct world *w, const blkrepl_backup_options *options, bool slow)
{
    blkrepl_backup_options o = *options;
    struct image *source, *target, *spill;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target)) {
        return;
    }
    image_disk(w, NULL, FILL_DATA); /* what is written to has odd numbers */
    spill = image_disk(w, NULL, FILL_DATA);
    if (!image_open(spill, NULL)) {
        return;
    }
    o.spill = spill->handle;
    if (!(job = job_create(source, target, &o))) {
        return;
    }
    target->disk->hold = slow ? OPS_ALL : 0;
    job_start(job);
    guest(source);
    world_settle(w);
    target->disk->hold = 0;
    job_insist(job);
}

static void spill_plain(struct world *w)
{
    spill(w, &(blkrepl_backup_options){.flags = 0}, false);
}

static void spill_slow_target(struct world *w)
{
    spill(w, &(blkrepl_backup_options){.reserve_bytes = CLUSTER, .workers_max = 1}, true);
}

static void spill_guest_fails(struct world *w)
{
    spill(w, &(blkrepl_backup_options){.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS}, true);
}

static void spill_stop(struct world *w)
{
    spill(w,
          &(blkrepl_backup_options){.on_source_error = BLKREPL_ON_ERROR_STOP,
                                    .on_target_error = BLKREPL_ON_ERROR_STOP},
          true);
}

static void spill_ignore(struct world *w)
{
    spill(w,
          &(blkrepl_backup_options){.spill_bytes_max = 3 * CLUSTER,
                                    .on_source_error = BLKREPL_ON_ERROR_IGNORE,
                                    .on_target_error = BLKREPL_ON_ERROR_IGNORE},
          true);
}

const struct scenario policy_scenarios[] = {
    {"policy-ignore", policy_ignore, 0},
    {"policy-stop", policy_stop, 0},
    {"policy-stop-guest-fails", policy_stop_guest_fails, 0},
    {"policy-enospc", policy_enospc, 0},
    {"policy-stop-cancelled", policy_stop_cancelled, 0},
    {"spill-plain", spill_plain, 0},
    {"spill-slow-target", spill_slow_target, 0},
    {"spill-guest-fails", spill_guest_fails, 0},
    {"spill-stop", spill_stop, 0},
    {"spill-ignore", spill_ignore, 0},
    {NULL, NULL, 0},
};
