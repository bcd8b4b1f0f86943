/* SPDX-License-Identifier: MIT */
/* Guests and the verify job: who waits for whom, and for how long. */
#include "job/verify.h"
#include "unit/rig.h"

#define G VERIFY_GRANULE
#define OP(opcode) (1u << BLKREPL_OP_##opcode)

struct pair {
    struct rig rig;
    struct script disk[2];
    blkrepl_image *image[2];
    blkrepl_job *job;
};

/* Two disks of eight chunks; without STATUS unless `extra` says otherwise. */
static void pair_make(struct pair *p, const blkrepl_verify_options *o, uint32_t queue_depth,
                      uint32_t extra)
{
    memset(p, 0, sizeof *p);
    rig_open(&p->rig, NULL);
    for (int i = 0; i < 2; i++) {
        script_init(&p->disk[i], 8 * G);
        p->disk[i].info.opcodes &= ~OP(STATUS) | extra;
        p->disk[i].info.queue_depth = queue_depth;
        p->image[i] = script_open(&p->disk[i], &p->rig);
    }
    assert_int_equal(blkrepl_verify_create(p->image[0], p->image[1], o, &p->job), 0);
}

static blkrepl_verify_options options(uint32_t workers)
{
    return (blkrepl_verify_options){.struct_size = sizeof(blkrepl_verify_options),
                                    .chunk_bytes_max = G,
                                    .workers_max = workers};
}

static void pair_open(struct pair *p, uint32_t queue_depth)
{
    blkrepl_verify_options o = options(1);

    pair_make(p, &o, queue_depth, 0);
}

static void begin(struct pair *p)
{
    assert_int_equal(blkrepl_job_start(p->job), 0);
    rig_poll(&p->rig);
}

static struct verify *verify_of(const struct pair *p)
{
    return CONTAINER_OF(p->job, struct verify, job);
}

static blkrepl_job_info info_of(const struct pair *p)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_job_query(p->job, &info), 0);
    return info;
}

static void assert_concluded(const struct pair *p, uint32_t result, int error)
{
    blkrepl_job_info info = info_of(p);

    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, result);
    assert_int_equal(info.error, error);
    assert_int_equal(info.requests_in_flight, 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(p->image[i]->leaf->ranges.tree.count, 0);
    }
}

/* What the nth error event says. */
static void assert_error(const struct pair *p, unsigned nth, uint32_t side, uint64_t offset,
                         uint64_t bytes)
{
    const blkrepl_event *event = rig_event(&p->rig, BLKREPL_EVENT_JOB_ERROR, nth);

    assert_int_equal(event->error, -ETIMEDOUT);
    assert_int_equal(event->side, side);
    assert_int_equal(event->offset, offset);
    assert_int_equal(event->bytes, bytes);
}

static void let(struct pair *p, int i)
{
    p->disk[i].hold = 0;
    script_end_all(&p->disk[i]);
    rig_poll(&p->rig);
}

static void pair_close(struct pair *p)
{
    for (int i = 0; i < 100; i++) {
        p->disk[0].hold = p->disk[1].hold = 0;
        script_end_all(&p->disk[0]);
        script_end_all(&p->disk[1]);
        rig_poll(&p->rig);
    }
    blkrepl_job_free(p->job);
    for (int i = 0; i < 2; i++) {
        blkrepl_image_close(p->image[i]);
    }
    rig_close(&p->rig);
    script_fini(&p->disk[0]);
    script_fini(&p->disk[1]);
}

static void guest_write(struct pair *p, int i, uint64_t offset, struct done *done)
{
    static unsigned char data[4096];
    static blkrepl_iovec iov = {data, sizeof data};
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_write(p->image[i], 0, offset, &iov, 1, 0, &c), 0);
    rig_poll(&p->rig);
}

/* The guest comes first: the other image may be far away, and dead. */
static void a_guest_does_not_wait_for_ever_for_an_image_that_has_hung(void **state)
{
    struct pair p;
    struct done write;

    (void)state;
    pair_open(&p, 0);
    p.disk[1].hold = OP(READ);
    assert_int_equal(blkrepl_job_start(p.job), 0);
    rig_poll(&p.rig);
    guest_write(&p, 0, 0, &write);
    for (unsigned i = 0; i < 10; i++) {
        rig_advance(&p.rig, 360 * SECOND);
    }
    assert_int_equal(write.calls, 1);
    done_assert(&write, 0);
    pair_close(&p);
}

/* A host that keeps both images the same: a bracket in each, both open at once. */
static void brackets_in_both_images_do_not_wait_in_a_circle(void **state)
{
    struct pair p;
    struct done go[2];
    uint64_t token[2];
    int answer;
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .offset = G, .bytes = 4096};
    blkrepl_completion c[2] = {done_of(&go[0]), done_of(&go[1])};

    (void)state;
    pair_open(&p, 0);
    p.disk[0].hold = OP(READ);
    assert_int_equal(blkrepl_job_start(p.job), 0);
    rig_poll(&p.rig); /* the first chunk is being read */
    assert_int_equal(blkrepl_write_begin(p.image[0], &what, &c[0], &token[0]), 0);
    p.disk[0].hold = 0;
    script_end_all(&p.disk[0]);
    rig_poll(&p.rig); /* the second one is due */
    answer = blkrepl_write_begin(p.image[1], &what, &c[1], &token[1]);
    for (unsigned i = 0; i < 10; i++) {
        rig_advance(&p.rig, 360 * SECOND);
    }
    assert_true(answer == 0 || go[1].calls == 1);
    assert_int_equal(blkrepl_write_end(p.rig.ctx, token[1], 0, NULL, 0, NULL), 0);
    assert_int_equal(blkrepl_write_end(p.rig.ctx, token[0], 0, NULL, 0, NULL), 0);
    rig_poll(&p.rig);
    pair_close(&p);
}

/* Others that read without a pause keep the backend's only place: the chunk that is held
 * is read all the same. */
static void a_write_behind_a_held_chunk_is_not_starved_by_other_guests(void **state)
{
    struct pair p;
    struct done write;
    struct done reads[2];
    unsigned char data[512];
    blkrepl_iovec iov = {data, sizeof data};

    (void)state;
    pair_open(&p, 1);
    p.disk[0].hold = OP(READ);
    for (unsigned i = 0; i < 2; i++) {
        blkrepl_completion c = done_of(&reads[i]);

        assert_int_equal(blkrepl_image_read(p.image[0], 0, (6 + i) * G, &iov, 1, 0, &c), 0);
    }
    rig_poll(&p.rig);
    assert_int_equal(blkrepl_job_start(p.job), 0);
    rig_poll(&p.rig);
    guest_write(&p, 0, 0, &write);
    for (unsigned i = 0; i < 1000 && write.calls == 0; i++) {
        script_end(&p.disk[0], 0, 0);
        rig_poll(&p.rig);
        for (unsigned n = 0; n < 2; n++) {
            if (reads[n].calls > 0) {
                blkrepl_completion c = done_of(&reads[n]);

                assert_int_equal(blkrepl_image_read(p.image[0], 0, (6 + n) * G, &iov, 1, 0, &c), 0);
            }
        }
        rig_poll(&p.rig);
    }
    assert_int_equal(write.calls, 1);
    done_assert(&write, 0);
    pair_close(&p);
}

/* ---- The deadline ------------------------------------------------------------- */

/* The image that has not answered is told; the first one if neither has. */
static void a_hung_image_fails_the_job(void **state)
{
    (void)state;
    for (int hung = 1; hung <= 3; hung++) {
        struct pair p;
        struct done write;
        const struct verify_task *task;

        pair_open(&p, 0);
        p.disk[0].hold = (hung & 1) != 0 ? OP(READ) : 0;
        p.disk[1].hold = (hung & 2) != 0 ? OP(READ) : 0;
        begin(&p);
        rig_advance(&p.rig, 100 * SECOND); /* nobody waits: there is time */
        guest_write(&p, 0, 512, &write);
        rig_advance(&p.rig, 30 * SECOND - 1);
        ASSERT_PENDING(&write);
        assert_int_equal(rig_events(&p.rig, BLKREPL_EVENT_JOB_ERROR), 0);
        rig_advance(&p.rig, 1);
        done_assert(&write, 0);
        assert_error(&p, 0, (hung & 1) != 0 ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET, 0, G);
        task = &verify_of(&p)->tasks[0];
        assert_int_equal(task->state, VERIFY_VOID);
        assert_int_equal(p.disk[0].cancels, hung & 1);
        assert_int_equal(p.disk[1].cancels, hung >> 1);
        assert_int_equal(info_of(&p).state, BLKREPL_JOB_RUNNING);
        assert_int_equal(info_of(&p).differing_bytes, G);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(p.image[i]->leaf->ranges.tree.count, 0);
            let(&p, i);
        }
        assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
        assert_int_equal(info_of(&p).error_count, 1);
        pair_close(&p);
    }
}

/* What counts is the guest that came first; the ones that come later wait for less. */
static void the_first_guest_that_waits_sets_the_deadline(void **state)
{
    struct pair p;
    struct done write[2];
    blkrepl_verify_options o = options(1);

    (void)state;
    o.guest_timeout_ns = 5 * SECOND;
    pair_make(&p, &o, 0, 0);
    p.disk[1].hold = OP(READ);
    begin(&p);
    guest_write(&p, 0, 0, &write[0]);
    rig_advance(&p.rig, 4 * SECOND);
    guest_write(&p, 1, 8192, &write[1]);
    rig_advance(&p.rig, SECOND - 1);
    ASSERT_PENDING(&write[0]);
    ASSERT_PENDING(&write[1]);
    rig_advance(&p.rig, 1);
    done_assert(&write[0], 0);
    done_assert(&write[1], 0);
    let(&p, 1);
    assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    pair_close(&p);
}

/* Without a deadline they wait; cancelling lets them go. */
static void without_a_timeout_guests_wait(void **state)
{
    (void)state;
    for (int how = 0; how < 2; how++) {
        struct pair p;
        struct done write;
        blkrepl_verify_options o = options(1);

        o.guest_timeout_ns = BLKREPL_FOREVER - (uint64_t)how; /* beyond the end of time too */
        pair_make(&p, &o, 0, 0);
        p.disk[1].hold = OP(READ);
        begin(&p);
        guest_write(&p, 0, 0, &write);
        rig_advance(&p.rig, 1000000 * SECOND);
        ASSERT_PENDING(&write);
        assert_false(list_linked(&verify_of(&p)->guest_timer.link));
        assert_int_equal(blkrepl_job_cancel(p.job, 0), 0);
        rig_poll(&p.rig);
        done_assert(&write, 0);
        let(&p, 1);
        assert_concluded(&p, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        pair_close(&p);
    }
}

/* Who answers in time is compared; that the timer expires later says nothing. */
static void an_image_that_answers_in_time_is_compared(void **state)
{
    struct pair p;
    struct done write;

    (void)state;
    pair_open(&p, 0);
    p.disk[1].hold = OP(READ);
    begin(&p);
    guest_write(&p, 0, 0, &write);
    rig_advance(&p.rig, 30 * SECOND - 1);
    script_end(&p.disk[1], 0, 0);
    rig_poll(&p.rig);
    done_assert(&write, 0);
    rig_advance(&p.rig, 100 * SECOND);
    assert_int_equal(rig_events(&p.rig, BLKREPL_EVENT_JOB_ERROR), 0);
    let(&p, 1);
    assert_concluded(&p, BLKREPL_RESULT_DONE, 0);
    pair_close(&p);
}

/* Not even at the end of time is a task due for which nobody waits. */
static void who_is_not_waited_for_has_no_deadline(void **state)
{
    struct pair p;
    struct done write;
    blkrepl_verify_options o = options(2);

    (void)state;
    o.on_error = BLKREPL_ON_ERROR_IGNORE;
    pair_make(&p, &o, 0, 0);
    p.disk[1].hold = OP(READ);
    begin(&p);
    guest_write(&p, 0, G, &write);
    rig_advance(&p.rig, BLKREPL_FOREVER - p.rig.now);
    done_assert(&write, 0);
    assert_int_equal(rig_events(&p.rig, BLKREPL_EVENT_JOB_ERROR), 1);
    assert_int_equal(verify_of(&p)->tasks[0].state, VERIFY_READ);
    let(&p, 1);
    assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    assert_int_equal(info_of(&p).failed_bytes, G);
    pair_close(&p);
}

/* IGNORE: each task has its time, and what comes too late is not compared.  Others are
 * not cancelled. */
static void an_ignored_timeout_counts_as_differing(void **state)
{
    struct pair p;
    struct done write[2];
    blkrepl_verify_options o = options(3);

    (void)state;
    o.on_error = BLKREPL_ON_ERROR_IGNORE;
    pair_make(&p, &o, 0, 0);
    p.disk[1].hold = OP(READ);
    begin(&p);
    guest_write(&p, 0, G, &write[0]);
    rig_advance(&p.rig, SECOND);
    guest_write(&p, 0, 0, &write[1]);
    rig_advance(&p.rig, 29 * SECOND);
    done_assert(&write[0], 0);
    ASSERT_PENDING(&write[1]);
    assert_int_equal(p.disk[1].cancels, 1);
    assert_int_equal(verify_of(&p)->tasks[1].state, VERIFY_VOID);
    rig_advance(&p.rig, SECOND);
    done_assert(&write[1], 0);
    assert_error(&p, 0, BLKREPL_SIDE_TARGET, G, G);
    assert_error(&p, 1, BLKREPL_SIDE_TARGET, 0, G);
    assert_int_equal(p.disk[1].cancels, 2);
    assert_false(list_linked(&verify_of(&p)->guest_timer.link));
    p.disk[1].hold = 0;
    script_end(&p.disk[1], script_find(&p.disk[1], BLKREPL_OP_READ, 0), -EIO); /* late */
    rig_poll(&p.rig);
    assert_int_equal(info_of(&p).state, BLKREPL_JOB_RUNNING);
    let(&p, 1);
    assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    assert_int_equal(info_of(&p).error_count, 2);
    assert_int_equal(info_of(&p).failed_bytes, 2 * G);
    assert_int_equal(info_of(&p).differing_bytes, 2 * G);
    assert_int_equal(info_of(&p).bytes_done, 6 * G);
    pair_close(&p);
}

/* STOP: the chunk is compared again, as it is by then. */
static void a_timeout_that_stops_is_tried_again(void **state)
{
    struct pair p;
    struct done write;
    blkrepl_verify_options o = options(1);

    (void)state;
    o.on_error = BLKREPL_ON_ERROR_STOP;
    pair_make(&p, &o, 0, 0);
    p.disk[0].hold = OP(READ);
    begin(&p);
    guest_write(&p, 1, 0, &write);
    rig_advance(&p.rig, 30 * SECOND);
    done_assert(&write, 0);
    assert_true((info_of(&p).flags & BLKREPL_JOB_FLAG_ERROR_PAUSED) != 0);
    assert_int_equal(blkrepl_job_resume(p.job), 0);
    rig_poll(&p.rig);
    assert_int_equal(script_count(&p.disk[0], BLKREPL_OP_READ), 1); /* its task is not back */
    p.disk[1].disk[1] = p.disk[0].disk[1] ^ 1;
    let(&p, 0);
    assert_concluded(&p, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(script_count(&p.disk[0], BLKREPL_OP_READ), 9);
    assert_int_equal(info_of(&p).differing_bytes, G);
    assert_int_equal(info_of(&p).bytes_done, 8 * G);
    assert_int_equal(info_of(&p).error_count, 1);
    pair_close(&p);
}

/* What has not even begun is taken back, and nothing is left of the task. */
static void a_request_that_is_queued_is_taken_back(void **state)
{
    struct pair p;
    struct done done[2];
    unsigned char data[512];
    blkrepl_iovec iov = {data, sizeof data};
    blkrepl_completion c = done_of(&done[0]);

    (void)state;
    pair_open(&p, 1);
    p.disk[1].hold = OP(READ);
    assert_int_equal(blkrepl_image_read(p.image[1], 0, 6 * G, &iov, 1, 0, &c), 0);
    begin(&p);
    guest_write(&p, 0, 0, &done[1]);
    rig_advance(&p.rig, 30 * SECOND);
    done_assert(&done[1], 0);
    assert_error(&p, 0, BLKREPL_SIDE_TARGET, 0, G);
    assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    assert_int_equal(p.disk[1].cancels, 0);
    pair_close(&p);
}

/* One of the second image, until the time of the guest who waits for it is up. */
static void let_a_probe_hang(struct pair *p, uint32_t on_error)
{
    struct done write;
    blkrepl_verify_options o = options(2);

    o.on_error = on_error;
    pair_make(p, &o, 0, OP(STATUS));
    for (int i = 0; i < 2; i++) {
        p->disk[i].map[0] = (blkrepl_extent){.bytes = 8 * G, .flags = BLKREPL_EXTENT_ZERO};
    }
    p->disk[1].hold = OP(STATUS);
    begin(p);
    assert_true(verify_of(p)->probing);
    guest_write(p, 0, 0, &write);
    rig_advance(&p->rig, 30 * SECOND);
    done_assert(&write, 0);
}

/* A probe that hangs holds up nobody: another one asks about the rest. */
static void a_probe_has_a_deadline_too(void **state)
{
    struct pair p;

    (void)state;
    let_a_probe_hang(&p, BLKREPL_ON_ERROR_IGNORE);
    assert_error(&p, 0, BLKREPL_SIDE_TARGET, 0, 8 * G);
    assert_false(verify_of(&p)->probing);
    assert_int_equal(info_of(&p).state, BLKREPL_JOB_RUNNING);
    let(&p, 1);
    assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    assert_int_equal(info_of(&p).failed_bytes, 8 * G);
    pair_close(&p);
}

/* The old probe's answer is not that of the next one. */
static void a_probe_that_comes_back_late_is_not_the_next_one(void **state)
{
    struct pair p;

    (void)state;
    let_a_probe_hang(&p, BLKREPL_ON_ERROR_STOP);
    assert_int_equal(blkrepl_job_resume(p.job), 0);
    rig_poll(&p.rig);
    assert_int_equal(p.disk[1].waiting_count, 2); /* asked once more */
    script_end(&p.disk[1], 0, 0);
    rig_poll(&p.rig);
    assert_true(verify_of(&p)->probing);
    assert_int_equal(info_of(&p).bytes_done, 0);
    let(&p, 1);
    assert_concluded(&p, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(info_of(&p).zero_bytes, 8 * G);
    pair_close(&p);
}

/* ---- Before it reads ------------------------------------------------------------ */

/* Keep a write to image i under way over the first chunk until guests have to wait:
 * each comes while the one before is waited for. */
static void come_and_go(struct pair *p, int i, struct done *done, unsigned count)
{
    p->disk[i].hold = OP(WRITE);
    guest_write(p, i, 0, &done[0]);
    begin(p);
    for (unsigned n = 1; n <= count; n++) {
        guest_write(p, i, (n & 7) * 4096, &done[n]);
        assert_int_equal(p->disk[i].waiting_count, 2);
        script_end(&p->disk[i], 0, 0);
        rig_poll(&p->rig);
        done_assert(&done[n - 1], 0);
        assert_int_equal(script_count(&p->disk[0], BLKREPL_OP_READ), 0);
    }
}

/* A stream of writes is let pass for a while; then it is the task's turn. */
static void a_stream_of_writes_does_not_keep_it_from_reading(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct pair p;
        struct done done[67];
        const struct verify_task *task;

        pair_open(&p, 0);
        p.disk[1 - i].hold = OP(READ);
        come_and_go(&p, i, done, 65); /* that from before the start is not one of them */
        task = &verify_of(&p)->tasks[0];
        assert_int_equal(task->tries, 64);
        assert_int_equal(task->state, VERIFY_HOLDING);
        assert_int_equal(task->deadline_ns, BLKREPL_FOREVER);
        guest_write(&p, i, 8 * 4096, &done[66]);
        assert_int_equal(p.disk[i].waiting_count, 1);
        assert_int_equal(task->state, VERIFY_HOLDING);
        assert_true(task->hastened);
        script_end(&p.disk[i], 0, 0);
        rig_poll(&p.rig);
        done_assert(&done[65], 0);
        assert_int_equal(task->state, VERIFY_READ);
        ASSERT_PENDING(&done[66]);
        assert_int_equal(p.disk[1 - i].notes[p.disk[1 - i].note_count - 1].flags, 0);
        p.disk[i].hold = 0;
        let(&p, 1 - i);
        done_assert(&done[66], 0);
        assert_concluded(&p, BLKREPL_RESULT_DONE, 0);
        pair_close(&p);
    }
}

/* A write that has hung: whose image it is is told, and nothing is left of the task. */
static void a_write_that_hangs_is_not_waited_for_for_ever(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct pair p;
        struct done done[67];

        pair_open(&p, 0);
        come_and_go(&p, i, done, 65);
        guest_write(&p, 1 - i, 8 * 4096, &done[66]);
        ASSERT_PENDING(&done[66]);
        rig_advance(&p.rig, 30 * SECOND);
        done_assert(&done[66], 0);
        assert_error(&p, 0, i == 0 ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET, 0, G);
        assert_int_equal(info_of(&p).state, BLKREPL_JOB_CONCLUDED);
        let(&p, i);
        assert_concluded(&p, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
        done_assert(&done[65], 0);
        pair_close(&p);
    }
}

/* However often it has let guests go first: the host of a bracket may be waiting. */
static void a_bracket_may_wait_for_the_next_one(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct pair p;
        struct done done[66];
        struct done go[2];
        uint64_t token[2];
        blkrepl_bracket what = {
            .struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .bytes = 4096};

        pair_open(&p, 0);
        come_and_go(&p, i, done, 65);
        for (int n = 0; n < 2; n++) {
            blkrepl_completion c = done_of(&go[n]);

            what.offset = (uint64_t)(9 + n) * 4096;
            verify_of(&p)->tasks[0].tries = n == 0 ? 0 : 64; /* the first one may go */
            assert_int_equal(blkrepl_write_begin(p.image[i], &what, &c, &token[n]), 0);
            p.disk[i].hold = 0;
            script_end_all(&p.disk[i]);
            rig_poll(&p.rig);
            assert_int_equal(script_count(&p.disk[0], BLKREPL_OP_READ), 0);
        }
        assert_int_equal(verify_of(&p)->tasks[0].tries, 65);
        for (int n = 0; n < 2; n++) {
            assert_int_equal(blkrepl_write_end(p.rig.ctx, token[n], 0, NULL, 0, NULL), 0);
            rig_poll(&p.rig);
        }
        assert_concluded(&p, BLKREPL_RESULT_DONE, 0);
        pair_close(&p);
    }
}

/* ---- In a hurry ------------------------------------------------------------------ */

/* All parts of a chunk that a guest waits for go with the guests' requests; those of
 * the next chunk do not. */
static void all_parts_of_a_chunk_hurry(void **state)
{
    struct pair p;
    struct done write;
    blkrepl_verify_options o = options(1);
    const struct script *disk = &p.disk[0];

    (void)state;
    pair_make(&p, &o, 0, 0);
    p.image[0]->leaf->port.info.transfer_bytes_max = G / 2;
    p.disk[0].hold = OP(READ);
    begin(&p);
    assert_int_equal(disk->notes[0].flags, BLKREPL_IO_BACKGROUND);
    guest_write(&p, 1, 0, &write);
    script_end(&p.disk[0], 0, 0);
    rig_poll(&p.rig);
    assert_int_equal(disk->notes[1].flags, 0);
    assert_false(verify_of(&p)->tasks[0].side[0].request->job);
    script_end(&p.disk[0], 0, 0);
    rig_poll(&p.rig);
    done_assert(&write, 0);
    assert_int_equal(disk->notes[2].flags, BLKREPL_IO_BACKGROUND);
    let(&p, 0);
    assert_concluded(&p, BLKREPL_RESULT_DONE, 0);
    pair_close(&p);
}

/* "Equal to bytes_done only at the end of success": one that ends well early is at its end. */
static void what_is_done_at_the_first_difference_has_no_more_to_do(void **state)
{
    struct pair p;
    blkrepl_verify_options o = {.struct_size = sizeof o, .flags = BLKREPL_VERIFY_FIRST};
    blkrepl_job_info info = {.struct_size = sizeof info};

    (void)state;
    pair_open(&p, 0);
    blkrepl_job_free(p.job);
    p.disk[1].disk[0] = 1;
    assert_int_equal(blkrepl_verify_start(p.image[0], p.image[1], &o, &p.job), 0);
    rig_poll(&p.rig);
    assert_int_equal(blkrepl_job_query(p.job, &info), 0);
    assert_int_equal(info.result, BLKREPL_RESULT_DONE);
    assert_int_equal(info.bytes_done, info.bytes_total);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hung_image_fails_the_job),
        cmocka_unit_test(the_first_guest_that_waits_sets_the_deadline),
        cmocka_unit_test(without_a_timeout_guests_wait),
        cmocka_unit_test(an_image_that_answers_in_time_is_compared),
        cmocka_unit_test(who_is_not_waited_for_has_no_deadline),
        cmocka_unit_test(an_ignored_timeout_counts_as_differing),
        cmocka_unit_test(a_timeout_that_stops_is_tried_again),
        cmocka_unit_test(a_request_that_is_queued_is_taken_back),
        cmocka_unit_test(a_probe_has_a_deadline_too),
        cmocka_unit_test(a_probe_that_comes_back_late_is_not_the_next_one),
        cmocka_unit_test(a_stream_of_writes_does_not_keep_it_from_reading),
        cmocka_unit_test(a_write_that_hangs_is_not_waited_for_for_ever),
        cmocka_unit_test(a_bracket_may_wait_for_the_next_one),
        cmocka_unit_test(all_parts_of_a_chunk_hurry),
        cmocka_unit_test(a_guest_does_not_wait_for_ever_for_an_image_that_has_hung),
        cmocka_unit_test(brackets_in_both_images_do_not_wait_in_a_circle),
        cmocka_unit_test(a_write_behind_a_held_chunk_is_not_starved_by_other_guests),
        cmocka_unit_test(what_is_done_at_the_first_difference_has_no_more_to_do),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
