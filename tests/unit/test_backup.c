/* SPDX-License-Identifier: MIT */
#include "unit/backup_rig.h"

static void backup_copies_everything_and_flushes_before_it_is_done(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    b->target.hold = 1u << BLKREPL_OP_FLUSH;
    job = create(b, &o);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_CREATED);
    assert_int_equal(blkrepl_job_start(job), 0);
    rig_poll(&b->rig);
    assert_int_equal(b->target.waiting_count, 1);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(info_of(job).bytes_done, BYTES - 1); /* not yet durable */
    assert_int_equal(info_of(job).requests_in_flight, 1);
    script_end(&b->target, 0, 0);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_of_nothing_is_done(void **state)
{
    struct bench b;
    blkrepl_job *job;
    blkrepl_backup_options o;

    (void)state;
    bench_open(&b, 0);
    o = options_of(&b);
    job = run(&b, &o);
    assert_concluded(&b, job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(script_count(&b.target, BLKREPL_OP_FLUSH), 1);
    bench_close(&b);
}

static void backup_whose_flush_fails_has_failed(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    b->target.result[BLKREPL_OP_FLUSH] = -EIO;
    job = run(b, &o);
    assert_int_equal(info_of(job).error_side, BLKREPL_SIDE_TARGET);
    assert_non_null(strstr(info_of(job).message, "target flush"));
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

static void backup_that_fails_waits_for_what_is_in_flight(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    b->source.info.opcodes = 6;
    b->from->leaf->port.info.opcodes = 6;
    b->source.hold = 1u << BLKREPL_OP_READ;
    job = run(b, &o);
    assert_int_equal(b->source.waiting_count, 2);
    script_end(&b->source, 0, -EIO);
    rig_poll(&b->rig);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(b->source.cancels, 1);
    script_end(&b->source, 0, -ECANCELED);
    rig_poll(&b->rig);
    assert_int_equal(script_count(&b->target, 0), 0); /* not even a flush */
    assert_int_equal(info_of(job).error_count, 1);
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

/* Cancel while `opcode` waits at a backend. */
static void cancel_at(uint32_t opcode, bool at_target)
{
    struct bench b;
    struct script *script = at_target ? &b.target : &b.source;
    blkrepl_job *job;
    blkrepl_backup_options o;

    bench_open(&b, BYTES);
    o = options_of(&b);
    script->hold = 1u << opcode;
    job = run(&b, &o);
    assert_true(script->waiting_count > 0);
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    assert_int_equal(script->cancels, script->waiting_count);
    assert_int_equal(info_of(job).flags, BLKREPL_JOB_FLAG_CANCELLING);
    assert_int_equal(blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE), 0); /* again */
    rig_poll(&b.rig);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_RUNNING);
    script_end_all(script);
    rig_poll(&b.rig);
    assert_concluded(&b, job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    bench_close(&b);
}

static void backup_is_cancelled_in_every_state(void **state)
{
    struct bench b;
    blkrepl_job *job;
    blkrepl_backup_options o;

    (void)state;
    cancel_at(BLKREPL_OP_STATUS, false);
    cancel_at(BLKREPL_OP_READ, false);
    cancel_at(BLKREPL_OP_WRITE, true);
    cancel_at(BLKREPL_OP_FLUSH, true);
    bench_open(&b, BYTES); /* and before it is started */
    o = options_of(&b);
    job = create(&b, &o);
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_CONCLUDED);
    rig_poll(&b.rig);
    assert_concluded(&b, job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    bench_close(&b);
}

/* The target has no room for the flush: it is taken back, and nobody waits for
 * the target. */
static void backup_is_cancelled_before_its_flush_is_given_away(void **state)
{
    struct bench b;
    unsigned char data[512];
    blkrepl_iovec iov = {data, sizeof data};
    struct done read;
    blkrepl_completion c = done_of(&read);
    blkrepl_backup_options o;
    blkrepl_job *job;

    (void)state;
    bench_init(&b, CLUSTER);
    b.target.info.queue_depth = 1;
    b.target.hold = 1u << BLKREPL_OP_WRITE | 1u << BLKREPL_OP_READ;
    b.from = script_open(&b.source, &b.rig);
    b.to = script_open(&b.target, &b.rig);
    o = options_of(&b);
    job = run(&b, &o);
    assert_int_equal(blkrepl_job_pause(job), 0);
    script_end(&b.target, 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(blkrepl_image_read(b.to, 0, 0, &iov, 1, 0, &c), 0);
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b.rig);
    assert_int_equal(info_of(job).requests_in_flight, 1); /* the flush, queued */
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    rig_poll(&b.rig);
    ASSERT_PENDING(&read);
    assert_concluded(&b, job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    script_end(&b.target, 0, 0);
    rig_poll(&b.rig);
    done_assert(&read, 0);
    assert_int_equal(script_count(&b.target, BLKREPL_OP_FLUSH), 0);
    bench_close(&b);
}

static void backup_goes_back_to_copying_what_a_failed_guest_copy_left(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_completion c;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    b->target.hold = 1u << BLKREPL_OP_WRITE;
    job = start_paused(b, &o);
    c = done_of(&done);
    assert_int_equal(blkrepl_image_write_zeroes(b->from, 0, 0, 100, 0, &c), 0);
    rig_poll(&b->rig);
    assert_int_equal(b->target.waiting_count, 1); /* a paused backup still saves */
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    script_end(&b->target, script_find(&b->target, BLKREPL_OP_WRITE, CLUSTER), 0);
    rig_poll(&b->rig);
    assert_int_equal(b->target.waiting_count, 1); /* all is claimed: it drains */
    script_end(&b->target, 0, -ENOSPC);
    rig_poll(&b->rig);
    done_assert(&done, -ENOSPC);
    script_end(&b->target, script_find(&b->target, BLKREPL_OP_WRITE, 0), 0);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, 3 * CLUSTER);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_that_is_paused_stands_still(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    b->target.hold = 1u << BLKREPL_OP_WRITE;
    job = run(b, &o);
    assert_int_equal(blkrepl_job_pause(job), 0);
    while (b->target.waiting_count > 0) {
        script_end(&b->target, 0, 0);
        rig_poll(&b->rig);
    }
    assert_int_equal(info_of(job).state, BLKREPL_JOB_RUNNING);
    assert_true(info_of(job).bytes_done < BYTES / 2);
    b->target.hold = 0;
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* ---- Options -------------------------------------------------------------------- */

static void backup_refuses_bad_options_and_releases_once(void **state)
{
    struct bench *b = *state;

    REFUSED(b, flags, 16, -EINVAL);
    REFUSED(b, reserved0, 1, -EINVAL);
    REFUSED(b, reserved1, b, -EINVAL);
    REFUSED(b, sync, 5, -EINVAL);
    REFUSED(b, on_cbw_error, 3, -EINVAL);
    REFUSED(b, cluster_bytes, 2048, -EINVAL);
    REFUSED(b, cluster_bytes, 3 * 4096, -EINVAL);
    REFUSED(b, cluster_bytes, 32 * MIB, -EINVAL);
    REFUSED(b, workers_max, 1025, -EINVAL);
    REFUSED(b, chunk_bytes_max, (UINT64_C(1) << 30) + 1, -EINVAL);
    REFUSED(b, reserve_bytes, (UINT64_C(1) << 40) + 1, -EINVAL);
    REFUSED(b, reserve_bytes, UINT64_C(1) << 36, -ENOMEM); /* more than the context's budget */
    REFUSED(b, name, "", -EINVAL);
}

static void backup_refuses_images_that_do_not_fit(void **state)
{
    struct bench b;
    blkrepl_backup_options o;
    blkrepl_job *job;
    uint64_t bytes = BYTES;

    (void)state;
    bench_open(&b, bytes);
    o = options_of(&b);
    b.to->leaf->port.info.bytes = bytes - 1;
    refused(&b, &o, -ENOSPC);
    b.to->leaf->port.info.bytes = bytes;
    b.to->read_only = true;
    refused(&b, &o, -EROFS);
    b.to->read_only = false;
    b.to->leaf->port.info.request_alignment = 8192;
    refused(&b, &o, -ENOTSUP);
    b.to->leaf->port.info.request_alignment = 1;
    b.to->writes = 1;
    refused(&b, &o, -EBUSY);
    b.to->writes = 0;
    b.from->leaf->identified = b.to->leaf->identified = true;
    refused(&b, &o, -EINVAL); /* one file */
    b.to->leaf->inode = 1;
    assert_int_equal(blkrepl_backup_create(b.from, b.from, &o, &job), -EINVAL);
    assert_int_equal(blkrepl_backup_create(NULL, b.to, &o, &job), -EINVAL);
    assert_int_equal(blkrepl_backup_create(b.from, NULL, &o, &job), -EINVAL);
    assert_int_equal(blkrepl_backup_create(b.from, b.to, &o, NULL), -EINVAL);
    bench_close(&b);
}

/* The same disk is one with the same device and inode; what is not a file is the
 * same only as the same image. */
static void backup_tells_disks_apart(void **state)
{
    struct bench *b = *state;
    static const struct {
        bool from;
        bool to;
        uint64_t device;
        uint64_t inode;
        int rc;
    } cases[] = {{false, false, 0, 0, 0},     {true, false, 0, 0, 0}, {false, true, 0, 0, 0},
                 {true, true, 0, 0, -EINVAL}, {true, true, 1, 0, 0},  {true, true, 0, 1, 0},
                 {true, true, 1, 1, 0}};
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        b->from->leaf->identified = cases[i].from;
        b->to->leaf->identified = cases[i].to;
        b->to->leaf->device = cases[i].device;
        b->to->leaf->inode = cases[i].inode;
        assert_int_equal(blkrepl_backup_create(b->from, b->to, &o, &job), cases[i].rc);
        blkrepl_job_free(job);
        rig_poll(&b->rig);
    }
}

/* The host may have given our first choice of a name to another job. */
static void backup_without_a_name_gets_one_that_is_free(void **state)
{
    struct bench *b = *state;
    blkrepl_image *targets[3];
    blkrepl_job *jobs[3];
    char names[2][32];
    char want[32];

    for (int i = 0; i < 3; i++) {
        assert_int_equal(blkrepl_image_open_memory(b->rig.ctx, BYTES, NULL, &targets[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        uint64_t third = b->rig.ctx->last_id + 3 - (unsigned)i; /* the id of the third job */
        blkrepl_backup_options o = options_of(b);

        o.name = i < 2 ? names[i] : NULL;
        snprintf(names[0], sizeof names[0], "backup-%u", (unsigned)third);
        snprintf(names[1], sizeof names[1], "backup-%u.1", (unsigned)third);
        snprintf(want, sizeof want, "backup-%u.2", (unsigned)third);
        assert_int_equal(blkrepl_backup_create(b->from, targets[i], &o, &jobs[i]), 0);
    }
    assert_string_equal(info_of(jobs[2]).name, want);
    for (int i = 0; i < 3; i++) {
        blkrepl_job_free(jobs[i]);
        blkrepl_image_close(targets[i]);
    }
}

static void backup_keeps_its_images_to_itself(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *first;
    blkrepl_job *job;

    first = create(b, &o);
    o.name = "b1";
    assert_int_equal(blkrepl_backup_create(b->from, b->to, &o, &job), -EBUSY); /* its target */
    assert_int_equal(blkrepl_backup_create(b->to, b->from, &o, &job), -EBUSY);
    assert_int_equal(blkrepl_image_discard(b->to, 0, 0, 1, 0, NULL), -EBUSY);
    bench_open_third(b, BYTES);
    assert_int_equal(blkrepl_backup_create(b->to, b->spill, &o, &job), -EBUSY); /* half written */
    b->released = 0;
    blkrepl_job_free(first); /* never started: gone */
    rig_poll(&b->rig);
    assert_int_equal(b->released, 1);
    assert_int_equal(b->to->jobs_writing, 0);
    first = create(b, &o);
    blkrepl_job_free(first);
}

static void backup_takes_what_both_images_need_for_a_cluster(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    o.cluster_bytes = 0;
    o.chunk_bytes_max = 0;
    b->to->leaf->port.info.cluster_bytes = 1u << 20;
    b->from->leaf->port.info.cluster_bytes = 1u << 17;
    job = create(b, &o);
    assert_int_equal(copy_of(job)->config.cluster_bytes, 1u << 20);
    blkrepl_job_free(job);
}

struct two_jobs {
    struct bench b;
    struct script third;
    blkrepl_image *to_third;
    blkrepl_job *jobs[2];
    struct done done[4];
};

/* Two paused backups of one disk, each with two buffers; the second one's are in
 * use, by clusters 10 and 11. */
static void two_open(struct two_jobs *t)
{
    blkrepl_image *targets[2];

    memset(t, 0, sizeof *t);
    bench_open(&t->b, BYTES);
    script_init(&t->third, BYTES);
    t->third.hold = 1u << BLKREPL_OP_WRITE;
    t->to_third = script_open(&t->third, &t->b.rig);
    targets[0] = t->b.to;
    targets[1] = t->to_third;
    for (int i = 0; i < 2; i++) {
        blkrepl_backup_options o = options_of(&t->b);

        o.name = NULL;
        o.workers_max = 1;
        o.reserve_bytes = CLUSTER;
        assert_int_equal(blkrepl_backup_start(t->b.from, targets[i], &o, &t->jobs[i]), 0);
        assert_int_equal(blkrepl_job_pause(t->jobs[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        guest_write(&t->b, 10 + i, &t->done[i]);
        done_assert(&t->done[i], 0); /* saved in the buffers */
    }
    assert_int_equal(t->third.waiting_count, 2);
}

static void two_finish(struct two_jobs *t)
{
    t->b.source.hold = t->third.hold = 0;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(blkrepl_job_resume(t->jobs[i]), 0);
    }
    script_end_all(&t->b.source);
    script_end_all(&t->third);
    rig_poll(&t->b.rig);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(info_of(t->jobs[i]).result, BLKREPL_RESULT_DONE);
        blkrepl_job_free(t->jobs[i]);
    }
    assert_memory_equal(t->b.target.disk, t->b.old, BYTES);
    assert_memory_equal(t->third.disk, t->b.old, BYTES);
    blkrepl_image_close(t->to_third);
    bench_close(&t->b);
    script_fini(&t->third);
}

/* A write waits for a buffer of the second job.  When it gets its turn it has to
 * wait for the first one again: the buffer goes to the next in the row.  (No job
 * takes back by itself what it has let pass; this one is made to.) */
static void backup_passes_a_buffer_on_when_a_guest_goes_to_another_job(void **state)
{
    static struct two_jobs t;
    struct copy *first;

    (void)state;
    two_open(&t);
    guest_write(&t.b, 0, &t.done[2]);
    guest_write(&t.b, 1, &t.done[3]);
    ASSERT_PENDING(&t.done[2]);
    ASSERT_PENDING(&t.done[3]);
    first = copy_of(t.jobs[0]);
    blkrepl__hbitmap_set(&first->todo, 0, 1);
    t.b.source.hold = 1u << BLKREPL_OP_READ;
    script_end(&t.third, 0, 0);
    rig_poll(&t.b.rig);
    assert_int_equal(t.b.source.waiting_count, 2);
    (void)script_find(&t.b.source, BLKREPL_OP_READ, 0);       /* for the first job */
    (void)script_find(&t.b.source, BLKREPL_OP_READ, CLUSTER); /* for the second */
    two_finish(&t);
    done_assert(&t.done[2], 0);
    done_assert(&t.done[3], 0);
}

static void backup_create_that_runs_out_of_memory_anywhere_leaks_nothing(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);

    create_without_memory(b, &o, 3, 20);
}

static void backup_that_runs_takes_no_memory(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;
    uint64_t calls;

    job = create(b, &o);
    calls = b->rig.heap.calls;
    assert_int_equal(blkrepl_job_start(job), 0);
    assert_int_equal(blkrepl_image_write_zeroes(b->from, 0, 0, BYTES, 0, NULL), 0);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_int_equal(b->rig.heap.calls, calls);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BENCH_TEST(backup_copies_everything_and_flushes_before_it_is_done),
        cmocka_unit_test(backup_of_nothing_is_done),
        BENCH_TEST(backup_whose_flush_fails_has_failed),
        BENCH_TEST(backup_that_fails_waits_for_what_is_in_flight),
        cmocka_unit_test(backup_is_cancelled_in_every_state),
        cmocka_unit_test(backup_is_cancelled_before_its_flush_is_given_away),
        BENCH_TEST_SIZE(backup_goes_back_to_copying_what_a_failed_guest_copy_left, 3 * CLUSTER),
        BENCH_TEST(backup_that_is_paused_stands_still),
        BENCH_TEST(backup_refuses_bad_options_and_releases_once),
        cmocka_unit_test(backup_refuses_images_that_do_not_fit),
        BENCH_TEST(backup_tells_disks_apart),
        BENCH_TEST(backup_without_a_name_gets_one_that_is_free),
        BENCH_TEST(backup_keeps_its_images_to_itself),
        BENCH_TEST(backup_takes_what_both_images_need_for_a_cluster),
        cmocka_unit_test(backup_passes_a_buffer_on_when_a_guest_goes_to_another_job),
        BENCH_TEST(backup_create_that_runs_out_of_memory_anywhere_leaks_nothing),
        BENCH_TEST(backup_that_runs_takes_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
