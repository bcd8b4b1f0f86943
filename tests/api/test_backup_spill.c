/* SPDX-License-Identifier: MIT */
/* Spill: old data go to a local image first, so that a target which does not answer
 * costs the guest nothing as long as there is room; and nothing is lost on the way. */
#include "stage.h"

#define CLUSTERS 32
#define SIZE (CLUSTERS * CLUSTER)
#define ROOM 8 /* clusters of the spill image that may be in use */
#define TIMEOUT (3 * SECOND)

static struct env env;
static struct part disk, copy, spill;
static struct part *const all[] = {&disk, &copy, &spill};
static blkrepl_job *job;
static blkrepl_backup_options o;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    part_open(&spill, &env, SIZE, 99);
    part_spoil_discards(&spill);
    job = NULL;
    o = (blkrepl_backup_options){.struct_size = sizeof o,
                                 .cluster_bytes = CLUSTER,
                                 .chunk_bytes_max = CLUSTER,
                                 .workers_max = 1,
                                 .reserve_bytes = 2 * CLUSTER,
                                 .cbw_timeout_ns = TIMEOUT,
                                 .spill = spill.image,
                                 .spill_bytes_max = ROOM * CLUSTER};
    return 0;
}

static void run(void)
{
    parts_run(&env, all, 3);
}

static int tear_down(void **state)
{
    (void)state;
    parts_mend(all, 3);
    run();
    blkrepl_job_free(job);
    parts_close(&env, all, 3);
    return 0;
}

/* Started and paused: only what the guest asks for is copied; the target never answers. */
static void start_with_a_dead_target(uint32_t cbw)
{
    o.on_cbw_error = cbw;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    copy.tape.hold = OPS_ALL;
    env_drain(&env);
}

/* The target comes back: the job ends well, and the spill image is empty. */
static void target_comes_back(void)
{
    copy.tape.hold = 0;
    do {
        env_drain(&env);
    } while (tape_finish_all(&copy.tape, 0, 0) > 0);
    if (job_has(job, BLKREPL_JOB_FLAG_PAUSED)) {
        ASSERT_CODE(blkrepl_job_resume(job), 0);
    }
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
    assert_int_equal(job_info(job).spilled_bytes, 0);
}

/* Every byte that was written to the spill image has been discarded since. */
static void spill_was_emptied(void)
{
    for (size_t i = 0; i < spill.tape.log_count; i++) {
        const struct tape_record *w = &spill.tape.log[i];
        bool gone = false;

        for (size_t k = i + 1; k < spill.tape.log_count && !gone; k++) {
            const struct tape_record *d = &spill.tape.log[k];

            gone = d->opcode == BLKREPL_OP_DISCARD && d->offset <= w->offset &&
                   d->offset + d->bytes >= w->offset + w->bytes;
        }
        if (w->opcode == BLKREPL_OP_WRITE && !gone) {
            fail_msg("%llu+%llu of the spill image was not discarded",
                     (unsigned long long)w->offset, (unsigned long long)w->bytes);
        }
    }
}

/* How many guest writes, each to a cluster of its own, end without time passing; the
 * first one that does not is *stuck. */
static uint64_t writes_until_stuck(struct req *stuck)
{
    for (uint64_t n = 0; n < CLUSTERS; n++) {
        guest_write(stuck, &disk, n * CLUSTER + 512, 512, 70);
        env_drain(&env);
        if (REQ_PENDING(stuck)) {
            return n;
        }
        req_assert_done(stuck, 0);
    }
    return CLUSTERS;
}

/* ---- A dead target ------------------------------------------------------------------------- */

static void guests_go_on_as_long_as_there_is_room(void **state)
{
    (void)state;
    for (uint32_t cbw = BLKREPL_CBW_BACKUP_FAILS; cbw <= BLKREPL_CBW_GUEST_WRITE_FAILS; cbw++) {
        part_note(&disk);
        start_with_a_dead_target(cbw);
        for (uint64_t n = 0; n < ROOM; n++) {
            guest_writes(&env, &disk, n * 3 * CLUSTER, 512, 70 + cbw);
        }
        env_advance(&env, 100 * TIMEOUT); /* nobody waits: no timeout */
        ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
        blkrepl_job_info info = job_info(job);
        assert_true(info.spilled_bytes > 0 && info.spilled_bytes <= ROOM * CLUSTER);
        assert_true(info.spilled_bytes_total >= info.spilled_bytes);
        assert_int_equal(info.guest_waits_count, ROOM);
        guest_writes(&env, &disk, 0, CLUSTER, 80); /* saved once is saved */
        assert_int_equal(job_info(job).guest_waits_count, ROOM);
        target_comes_back();
        spill_was_emptied();
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

static void without_room_the_backup_fails_by_policy(void **state)
{
    struct req req = {0};

    (void)state;
    start_with_a_dead_target(BLKREPL_CBW_BACKUP_FAILS);
    uint64_t n = writes_until_stuck(&req);
    assert_true(n >= ROOM && n < CLUSTERS);
    ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
    env_advance(&env, TIMEOUT / 2);
    assert_true(REQ_PENDING(&req));
    env_advance(&env, TIMEOUT);
    req_assert_done(&req, 0); /* the guest is free */
    guest_writes(&env, &disk, (CLUSTERS - 1) * CLUSTER, 512, 71);
    run();
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    ASSERT_CODE(write_now(&env, spill.image, 0, "x", 1), 0); /* all are free */
}

static void without_room_the_guest_write_fails_by_policy(void **state)
{
    static uint8_t before[SIZE];
    struct req req = {0};

    (void)state;
    start_with_a_dead_target(BLKREPL_CBW_GUEST_WRITE_FAILS);
    uint64_t n = writes_until_stuck(&req);
    assert_int_equal(n, ROOM); /* there are no buffers to be saved in */
    tape_peek(&disk.tape, 0, before, SIZE);
    env_advance(&env, 2 * TIMEOUT);
    req_assert_done(&req, -ETIMEDOUT);
    assert_same(disk.tape.data, before, SIZE, "source");
    ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
    target_comes_back();
    spill_was_emptied();
}

/* Finish what waits at the target, one by one, until the guest's write has ended. */
static void finish_until_done(struct req *req)
{
    for (int n = 0; REQ_PENDING(req) && n < 3 * CLUSTERS; n++) {
        assert_true(tape_pending(&copy.tape, 0) > 0);
        ASSERT_CODE(tape_finish(&copy.tape, 0, 0), 0);
        env_drain(&env);
        assert_true(job_info(job).spilled_bytes <= ROOM * CLUSTER);
    }
    req_assert_done(req, 0);
}

/* What has arrived makes room for more. */
static void room_comes_back_when_the_target_does(void **state)
{
    struct req req = {0};

    (void)state;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    copy.tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
    env_drain(&env);
    for (uint64_t at = CLUSTERS - ROOM; at < CLUSTERS; at++) {
        guest_writes(&env, &disk, at * CLUSTER, 512, 72);
    }
    assert_int_equal(job_info(job).spilled_bytes, ROOM * CLUSTER);
    for (uint64_t at = 10; at < 16; at++) {
        guest_write(&req, &disk, at * CLUSTER, 512, 72);
        env_drain(&env);
        finish_until_done(&req);
    }
    target_comes_back();
    spill_was_emptied();
}

/* spill_bytes_max 0: all of the image. */
static void without_a_limit_all_of_the_image_is_room(void **state)
{
    struct req req = {0};

    (void)state;
    o.spill_bytes_max = 0;
    start_with_a_dead_target(BLKREPL_CBW_GUEST_WRITE_FAILS);
    assert_int_equal(writes_until_stuck(&req), CLUSTERS);
    assert_int_equal(job_info(job).spilled_bytes, SIZE);
    target_comes_back();
    spill_was_emptied();
}

/* "So a guest waits for local storage only": also where a background copy hangs. */
static void a_background_copy_that_hangs_holds_no_guest(void **state)
{
    (void)state;
    for (uint32_t cbw = BLKREPL_CBW_BACKUP_FAILS; cbw <= BLKREPL_CBW_GUEST_WRITE_FAILS; cbw++) {
        memset(copy.tape.data, 0, SIZE);
        part_note(&disk);
        o.on_cbw_error = cbw;
        o.workers_max = 4;
        copy.tape.hold = OPS_ALL;
        ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
        env_drain(&env);
        uint64_t pending = tape_pending(&copy.tape, BLKREPL_OP_WRITE);
        assert_true(pending > 0 && pending <= ROOM);
        for (uint64_t n = 0; n < pending; n++) {
            guest_writes(&env, &disk, copy.tape.queue[n]->offset + 512, 512, 70 + cbw);
        }
        target_comes_back();
        spill_was_emptied();
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

/* The place of what was spilled is taken until it is on the target, not until it is read. */
static void what_is_on_its_way_to_the_target_takes_its_place(void **state)
{
    struct req req = {0};

    (void)state;
    start_with_a_dead_target(BLKREPL_CBW_GUEST_WRITE_FAILS);
    for (uint64_t at = CLUSTERS - ROOM; at < CLUSTERS; at++) {
        guest_writes(&env, &disk, at * CLUSTER, 512, 72);
    }
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    for (int n = 0; job_info(job).spilled_bytes == ROOM * CLUSTER; n++) {
        assert_true(n < 3 * CLUSTERS);
        env_drain(&env); /* until something of it is written to the target */
        if (tape_find(&copy.tape, BLKREPL_OP_WRITE, (CLUSTERS - ROOM) * CLUSTER, ROOM * CLUSTER) >=
            0) {
            break;
        }
        ASSERT_CODE(tape_finish(&copy.tape, 0, 0), 0);
    }
    assert_int_equal(job_info(job).spilled_bytes, ROOM * CLUSTER);
    assert_int_equal(tape_submitted(&spill.tape, BLKREPL_OP_DISCARD), 0);
    guest_write(&req, &disk, 20 * CLUSTER, 512, 73);
    env_drain(&env);
    assert_true(tape_saw(&copy.tape, BLKREPL_OP_WRITE, 20 * CLUSTER, CLUSTER) ||
                !tape_saw(&spill.tape, BLKREPL_OP_WRITE, 20 * CLUSTER, CLUSTER));
    target_comes_back();
    spill_was_emptied();
}

/* Saved means: in a buffer, or in the spill image, by policy. */
static void what_a_guest_waits_for_depends_on_the_policy(void **state)
{
    (void)state;
    for (uint32_t cbw = BLKREPL_CBW_BACKUP_FAILS; cbw <= BLKREPL_CBW_GUEST_WRITE_FAILS; cbw++) {
        struct req req = {0};

        part_note(&disk);
        start_with_a_dead_target(cbw);
        spill.tape.hold = OPS_ALL;
        guest_write(&req, &disk, 5 * CLUSTER, 512, 70 + cbw);
        env_drain(&env);
        assert_int_equal(REQ_PENDING(&req), cbw == BLKREPL_CBW_GUEST_WRITE_FAILS);
        assert_true(tape_pending(&spill.tape, BLKREPL_OP_WRITE) > 0);
        assert_int_equal(tape_submitted(&copy.tape, BLKREPL_OP_WRITE), 0);
        copy.tape.log_count = 0;
        spill.tape.hold = 0;
        part_finish(&env, &spill, 0);
        req_assert_done(&req, 0);
        target_comes_back();
        copy.tape.log_count = 0;
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

/* ---- A spill image that fails ------------------------------------------------- */

/* "or the spill image refuses a write, old data go to the target as without it" */
static void a_spill_image_that_refuses_is_done_without(void **state)
{
    (void)state;
    for (uint32_t cbw = BLKREPL_CBW_BACKUP_FAILS; cbw <= BLKREPL_CBW_GUEST_WRITE_FAILS; cbw++) {
        memset(copy.tape.data, 0, SIZE);
        part_note(&disk);
        part_fail(&spill, BLKREPL_OP_WRITE, 0, SIZE, -ENOSPC);
        start_with_a_dead_target(cbw);
        copy.tape.hold = 0; /* it lives */
        for (uint64_t n = 0; n < CLUSTERS; n += 2) {
            guest_writes(&env, &disk, n * CLUSTER, 512, 70 + cbw);
        }
        assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_PAUSED);
        target_comes_back();
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

static void with_a_refusing_spill_image_and_a_dead_target_the_policy_applies(void **state)
{
    struct req req = {0};

    (void)state;
    part_fail(&spill, BLKREPL_OP_WRITE, 0, SIZE, -EIO);
    start_with_a_dead_target(BLKREPL_CBW_GUEST_WRITE_FAILS);
    assert_int_equal(writes_until_stuck(&req), 0);
    env_advance(&env, 2 * TIMEOUT);
    req_assert_done(&req, -ETIMEDOUT);
    ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
    target_comes_back();
}

/* Something is in the spill image, and cannot be read back when the target is there. */
static void spill_something_unreadable(uint32_t on_source_error)
{
    o.on_source_error = on_source_error;
    o.on_target_error = BLKREPL_ON_ERROR_REPORT;
    o.reserve_bytes = CLUSTER;
    start_with_a_dead_target(BLKREPL_CBW_GUEST_WRITE_FAILS);
    for (uint64_t n = 1; n < ROOM; n++) {
        guest_writes(&env, &disk, n * CLUSTER, 512, 70);
    }
    part_fail(&spill, BLKREPL_OP_READ, 0, SIZE, -EIO);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    copy.tape.hold = 0;
    do {
        env_drain(&env);
    } while (tape_finish_all(&copy.tape, 0, 0) > 0);
}

static void a_spill_image_that_cannot_be_read_fails_the_backup(void **state)
{
    (void)state;
    spill_something_unreadable(BLKREPL_ON_ERROR_REPORT);
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.error_side, BLKREPL_SIDE_SPILL);
    assert_true(info.spill_errors >= 1);
    assert_int_equal(info.source_errors + info.target_errors, 0);
    const blkrepl_event *e = env_event(&env, BLKREPL_EVENT_JOB_ERROR, info.id, 0);
    assert_non_null(e);
    assert_int_equal(e->side, BLKREPL_SIDE_SPILL);
}

static void a_spill_image_that_cannot_be_read_stops_the_backup_if_so_told(void **state)
{
    (void)state;
    spill_something_unreadable(BLKREPL_ON_ERROR_STOP);
    assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
    assert_int_equal(job_info(job).error_side, BLKREPL_SIDE_SPILL);
    assert_true(job_info(job).spilled_bytes > 0);
    part_mend(&spill);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    target_comes_back();
    spill_was_emptied();
}

static void a_spill_image_that_cannot_be_read_is_ignored_until_the_end_if_so_told(void **state)
{
    (void)state;
    spill_something_unreadable(BLKREPL_ON_ERROR_IGNORE);
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
    assert_int_equal(job_info(job).error_side, BLKREPL_SIDE_SPILL);
    assert_true(job_info(job).failed_bytes > 0);
    assert_memory_equal(copy.tape.data + ROOM * CLUSTER, disk.start + ROOM * CLUSTER,
                        (CLUSTERS - ROOM) * CLUSTER);
}

/* A target that fails and not only keeps silent: with STOP guests go on as before. */
static void a_target_that_fails_stops_the_job_and_not_the_guests(void **state)
{
    (void)state;
    for (uint32_t cbw = BLKREPL_CBW_BACKUP_FAILS; cbw <= BLKREPL_CBW_GUEST_WRITE_FAILS; cbw++) {
        memset(copy.tape.data, 0, SIZE);
        part_note(&disk);
        o.on_cbw_error = cbw;
        o.on_target_error = BLKREPL_ON_ERROR_STOP;
        part_fail(&copy, BLKREPL_OP_WRITE, 0, SIZE, -ENOSPC);
        ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
        env_drain(&env);
        assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
        for (uint64_t n = 1; n < ROOM; n++) {
            guest_writes(&env, &disk, n * 3 * CLUSTER, 512, 70 + cbw);
        }
        env_advance(&env, 100 * TIMEOUT);
        ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
        assert_true(job_info(job).spilled_bytes > 0);
        part_mend(&copy);
        ASSERT_CODE(blkrepl_job_resume(job), 0);
        target_comes_back();
        spill_was_emptied();
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

/* ---- By seed ------------------------------------------------------------------ */

static void stir(struct rng *rng)
{
    static struct req reqs[8];

    memset(reqs, 0, sizeof reqs);
    for (int n = 0; n < 600; n++) {
        struct part *part = all[rng_below(rng, 3)];
        size_t pending = tape_pending(&part->tape, 0);
        unsigned i = (unsigned)rng_below(rng, ARRAY_COUNT(reqs));
        uint64_t at = rng_below(rng, SIZE - 2 * CLUSTER);

        if (rng_percent(rng, 30) && (!reqs[i].iov.len || !REQ_PENDING(&reqs[i]))) {
            guest_write(&reqs[i], &disk, at, 1 + rng_below(rng, 2 * CLUSTER), 90);
        }
        if (pending && (part != &copy || rng_percent(rng, 20))) {
            ASSERT_CODE(tape_finish(&part->tape, (int)rng_below(rng, pending), 0), 0);
        }
        if (rng_percent(rng, 60)) {
            blkrepl_poll(env.ctx, 0, 0);
        }
    }
}

static void by_seed_the_target_gets_the_right_bytes(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 8 : 50); seed++) {
        struct rng rng = {.state = seed};

        memset(copy.tape.data, 0, SIZE);
        tape_fill(&disk.tape, (unsigned)seed);
        part_note(&disk);
        o.on_cbw_error = 1 + (uint32_t)rng_below(&rng, 2);
        o.workers_max = 1 + (uint32_t)rng_below(&rng, 4);
        o.cluster_bytes = UINT64_C(16384) << rng_below(&rng, 4);
        o.reserve_bytes = 0;
        o.spill_bytes_max = (1 + rng_below(&rng, 6)) * o.cluster_bytes;
        for (int i = 0; i < 3; i++) {
            all[i]->tape.hold = OPS_ALL;
            all[i]->tape.log_count = 0;
        }
        part_spoil_discards(&spill);
        ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
        stir(&rng);
        run();
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        assert_same(copy.tape.data, disk.start, SIZE, "target");
        assert_int_equal(job_info(job).spilled_bytes, 0);
        spill_was_emptied();
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

/* ---- What create refuses ------------------------------------------------------ */

static void refused(blkrepl_image *image, int code)
{
    o.spill = image;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), code);
    assert_null(job);
}

static void spill_images_that_will_not_do(void **state)
{
    blkrepl_image_options read_only = {.struct_size = sizeof read_only,
                                       .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_image *small = NULL, *sealed = NULL;
    blkrepl_job *verify = NULL;
    struct bracket b = {0};

    (void)state;
    o.sync = BLKREPL_SYNC_NONE;
    refused(spill.image, -EINVAL);
    o.sync = 0;
    refused(disk.image, -EINVAL);
    refused(copy.image, -EINVAL);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE - 1, NULL, &small), 0);
    refused(small, -ENOSPC);
    blkrepl_image_close(small);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, &read_only, &sealed), 0);
    refused(sealed, -EROFS);
    blkrepl_image_close(sealed);
    ASSERT_CODE(bracket_begin(&b, spill.image, BLKREPL_OP_WRITE, 0, 512), 0);
    refused(spill.image, -EBUSY);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    ASSERT_CODE(blkrepl_verify_create(spill.image, disk.image, NULL, &verify), 0);
    refused(spill.image, -EBUSY);
    blkrepl_job_free(verify);
    env_drain(&env);
}

static void the_spill_image_is_taken_until_the_job_concludes(void **state)
{
    static struct part target;
    blkrepl_job *second = NULL;

    (void)state;
    part_open(&target, &env, SIZE, 0);
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
    ASSERT_CODE(write_now(&env, spill.image, 0, "x", 1), -EBUSY);
    ASSERT_CODE(blkrepl_backup_create(disk.image, target.image, &o, &second), -EBUSY);
    o.spill = NULL;
    o.spill_bytes_max = 0;
    ASSERT_CODE(blkrepl_backup_create(disk.image, spill.image, &o, &second), -EBUSY);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    ASSERT_CODE(write_now(&env, spill.image, 0, "x", 1), 0);
    part_close(&target);
    env_drain(&env);
    part_end(&target);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(guests_go_on_as_long_as_there_is_room),
        T(without_room_the_backup_fails_by_policy),
        T(without_room_the_guest_write_fails_by_policy),
        T(room_comes_back_when_the_target_does),
        T(without_a_limit_all_of_the_image_is_room),
        T(a_background_copy_that_hangs_holds_no_guest),
        T(what_is_on_its_way_to_the_target_takes_its_place),
        T(what_a_guest_waits_for_depends_on_the_policy),
        T(a_spill_image_that_refuses_is_done_without),
        T(with_a_refusing_spill_image_and_a_dead_target_the_policy_applies),
        T(a_spill_image_that_cannot_be_read_fails_the_backup),
        T(a_spill_image_that_cannot_be_read_stops_the_backup_if_so_told),
        T(a_spill_image_that_cannot_be_read_is_ignored_until_the_end_if_so_told),
        T(a_target_that_fails_stops_the_job_and_not_the_guests),
        T(by_seed_the_target_gets_the_right_bytes),
        T(spill_images_that_will_not_do),
        T(the_spill_image_is_taken_until_the_job_concludes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
