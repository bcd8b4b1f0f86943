/* SPDX-License-Identifier: MIT */
/* What a job tells: events, in order and counted, and the query. */
#include "tape.h"

#define SIZE (16 * CLUSTER)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static blkrepl_job *job;
static uint64_t id;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    job = NULL;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tape_release(&disk, &env);
    tape_release(&copy, &env);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    return 0;
}

static void create(const blkrepl_backup_options *o)
{
    ASSERT_CODE(blkrepl_backup_create(source, target, o, &job), 0);
    id = job_info(job).id;
}

/* ---- Events --------------------------------------------------------------------------- */

static void done_is_the_last_event_and_comes_once(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .user = &env};

    (void)state;
    create(&o);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    assert_int_equal(env.event_count, 0); /* only polls deliver */
    env_drain(&env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
    assert_true(env_count(&env, BLKREPL_EVENT_JOB_STATE, id) >= 1);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_ERROR, id), 0);
    const blkrepl_event *last = &env.events[env.event_count - 1];
    assert_int_equal(last->type, BLKREPL_EVENT_JOB_DONE);
    for (size_t i = 0; i < env.event_count; i++) {
        assert_int_equal(env.events[i].object_kind, BLKREPL_OBJECT_JOB);
        assert_int_equal(env.events[i].object_id, id);
        assert_ptr_equal(env.events[i].user, &env);
        assert_true(env.events[i].struct_size >= sizeof(blkrepl_event));
    }
    ASSERT_CODE(last->error, 0);
    assert_int_equal(last->count, 1);
}

static void state_events_coalesce_and_count(void **state)
{
    (void)state;
    create(NULL);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    env_drain(&env);
    assert_int_equal(env.event_count, 1);
    assert_int_equal(env.events[0].type, BLKREPL_EVENT_JOB_STATE);
    assert_int_equal(env.events[0].count, 3);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(env.event_count, 2);
    assert_int_equal(env.events[1].count, 1);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
}

static void refused_verbs_give_no_events(void **state)
{
    (void)state;
    create(NULL);
    ASSERT_CODE(blkrepl_job_resume(job), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_job_set_speed(job, 5), 0);
    env_drain(&env);
    assert_int_equal(env.event_count, 0);
}

static bool held_at_done;
static struct req after_done;

static void look_at_done(struct env *e, const blkrepl_event *event)
{
    (void)e;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        blkrepl_job_info info = {.struct_size = sizeof info};

        blkrepl_job_query(job, &info);
        held_at_done = info.requests_in_flight != 0 || info.state != BLKREPL_JOB_CONCLUDED ||
                       req_write(&after_done, target, 0, NULL, 0) != 0;
    }
}

static void at_done_it_holds_no_image_and_has_nothing_in_flight(void **state)
{
    (void)state;
    held_at_done = true;
    env.on_event = look_at_done;
    create(NULL);
    copy.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_true(job_info(job).requests_in_flight > 0);
    tape_release(&copy, &env);
    assert_false(held_at_done);
}

static void an_error_event_says_where_and_why(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .name = "nightly"};

    (void)state;
    create(&o);
    copy.fail_opcode = BLKREPL_OP_WRITE;
    copy.fail_offset = 9 * CLUSTER;
    copy.fail_bytes = CLUSTER;
    copy.fail_result = -ENOSPC;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    const blkrepl_event *e = env_event(&env, BLKREPL_EVENT_JOB_ERROR, id, 0);
    assert_non_null(e);
    assert_int_equal(e->side, BLKREPL_SIDE_TARGET);
    ASSERT_CODE(e->error, -ENOSPC);
    assert_true(e->offset <= 9 * CLUSTER && e->offset + e->bytes > 9 * CLUSTER);
    const blkrepl_event *done = env_event(&env, BLKREPL_EVENT_JOB_DONE, id, 0);
    assert_non_null(done);
    ASSERT_CODE(done->error, -ENOSPC);
    assert_true(done > e);
    assert_int_equal(env.events[env.event_count - 1].type, BLKREPL_EVENT_JOB_DONE);

    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(info.error, -ENOSPC);
    assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
    assert_int_equal(info.error_offset, e->offset);
    assert_int_equal(info.error_bytes, e->bytes);
    assert_true(info.error_count >= 1);
    assert_non_null(strstr(info.message, "nightly"));
    assert_non_null(strstr(info.message, "target"));
    assert_true(info.bytes_done < info.bytes_total);
}

static void a_source_read_error_is_told_as_such(void **state)
{
    (void)state;
    create(NULL);
    disk.fail_opcode = BLKREPL_OP_READ;
    disk.fail_offset = 5 * CLUSTER + 100;
    disk.fail_bytes = 1;
    disk.fail_result = -EIO;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(info.error, -EIO);
    assert_int_equal(info.error_side, BLKREPL_SIDE_SOURCE);
    assert_true(info.error_offset <= 5 * CLUSTER + 100);
    assert_true(info.error_offset + info.error_bytes > 5 * CLUSTER + 100);
    assert_non_null(strstr(info.message, "source"));
}

static void without_a_sink_all_can_be_asked_for(void **state)
{
    blkrepl_context *ctx = NULL;
    blkrepl_image *a = NULL, *b = NULL;
    blkrepl_job *quiet = NULL;

    (void)state;
    create(NULL);
    ASSERT_CODE(blkrepl_context_create(NULL, &ctx), 0);
    ASSERT_CODE(blkrepl_image_open_memory(ctx, 100000, NULL, &a), 0);
    ASSERT_CODE(blkrepl_image_open_memory(ctx, 100000, NULL, &b), 0);
    ASSERT_CODE(blkrepl_backup_start(a, b, NULL, &quiet), 0);
    for (int i = 0; i < 10000 && job_info(quiet).state != BLKREPL_JOB_CONCLUDED; i++) {
        assert_true(blkrepl_poll(ctx, 0, 0) >= 0);
    }
    assert_int_equal(job_info(quiet).result, BLKREPL_RESULT_DONE);
    blkrepl_job_free(quiet);
    blkrepl_image_close(a);
    blkrepl_image_close(b);
    int rc = -EBUSY;
    for (int i = 0; i < 100 && rc == -EBUSY; i++) {
        rc = blkrepl_context_free(ctx);
    }
    ASSERT_CODE(rc, 0);
}

/* ---- Query ---------------------------------------------------------------------------- */

static void a_new_job_is_described_as_it_was_made(void **state)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .name = "b0", .user = &disk, .speed_bytes_per_sec = 4096000};

    (void)state;
    create(&o);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.kind, BLKREPL_KIND_BACKUP);
    assert_int_equal(info.state, BLKREPL_JOB_CREATED);
    assert_int_equal(info.result, 0);
    assert_int_equal(info.flags, 0);
    assert_int_equal(info.error, 0);
    assert_int_equal(info.error_side, 0);
    assert_int_equal(info.requests_in_flight, 0);
    assert_true(info.id != 0);
    assert_int_equal(info.error_count, 0);
    assert_int_equal(info.bytes_done, 0);
    assert_int_equal(info.bytes_total, SIZE);
    assert_int_equal(info.speed_bytes_per_sec, 4096000);
    assert_int_equal(info.guest_copies_count, 0);
    assert_ptr_equal(info.user, &disk);
    assert_string_equal(info.name, "b0");
    assert_string_equal(info.message, "");
}

static void a_job_without_a_name_is_named_by_its_id(void **state)
{
    char want[64];

    (void)state;
    create(NULL);
    snprintf(want, sizeof want, "backup-%llu", (unsigned long long)id);
    assert_string_equal(job_info(job).name, want);
}

static void ids_are_never_used_twice(void **state)
{
    uint64_t seen[40];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(seen); i++) {
        create(NULL);
        seen[i] = id;
        blkrepl_job_free(job);
        job = NULL;
        for (size_t k = 0; k < i; k++) {
            assert_true(seen[k] != seen[i]);
        }
    }
}

static void a_done_job_has_done_all_and_says_so(void **state)
{
    (void)state;
    create(NULL);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.bytes_done, SIZE);
    assert_int_equal(info.bytes_total, SIZE);
    assert_int_equal(info.error, 0);
    assert_int_equal(info.zero_bytes, 0);
    assert_int_equal(info.requests_in_flight, 0);
    assert_int_equal(info.guest_copies_bytes, 0);
    assert_string_equal(info.message, "");
}

/* Never more than what the target has acknowledged, and all of it only at the
 * end of success: the last flush is part of the job. */
static void progress_is_never_beyond_the_truth(void **state)
{
    struct rng rng = {.state = 5};
    uint64_t last = 0;

    (void)state;
    create(NULL);
    copy.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    for (;;) {
        env_drain(&env);
        blkrepl_job_info info = job_info(job);
        assert_true(info.bytes_done <= copy.settled_bytes);
        assert_true(info.bytes_done >= last);
        assert_int_equal(info.requests_in_flight, tape_pending(&copy, 0) + tape_pending(&disk, 0));
        last = info.bytes_done;
        if (info.state == BLKREPL_JOB_CONCLUDED) {
            break;
        }
        assert_true(info.bytes_done < info.bytes_total);
        assert_int_equal(info.result, 0);
        size_t pending = tape_pending(&copy, 0);
        assert_true(pending > 0);
        tape_finish(&copy, (int)rng_below(&rng, pending), 0);
    }
    assert_int_equal(last, SIZE);
}

static void guest_copies_are_counted(void **state)
{
    struct req req = {0};
    uint8_t data[512] = {1};

    (void)state;
    create(NULL);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_write(&req, source, 7 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    assert_int_equal(req.calls, 0);
    tape_release(&disk, &env);
    req_assert_done(&req, 0);
    ASSERT_CODE(write_now(&env, source, 7 * CLUSTER + 4096, data, sizeof data), 0);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.guest_copies_count, 1);
    assert_true(info.guest_copies_bytes >= 512 && info.guest_copies_bytes <= SIZE);
    assert_int_equal(info.guest_waits_count, 1);
    assert_true(info.bytes_done > 0 && info.bytes_done < SIZE);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(done_is_the_last_event_and_comes_once),
        T(state_events_coalesce_and_count),
        T(refused_verbs_give_no_events),
        T(at_done_it_holds_no_image_and_has_nothing_in_flight),
        T(an_error_event_says_where_and_why),
        T(a_source_read_error_is_told_as_such),
        T(without_a_sink_all_can_be_asked_for),
        T(a_new_job_is_described_as_it_was_made),
        T(a_job_without_a_name_is_named_by_its_id),
        T(ids_are_never_used_twice),
        T(a_done_job_has_done_all_and_says_so),
        T(progress_is_never_beyond_the_truth),
        T(guest_copies_are_counted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
