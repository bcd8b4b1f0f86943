/* SPDX-License-Identifier: MIT */
/* The table of job.h: every verb in every state, and under every condition that
 * the notes of the table name.  What is refused changes nothing; what is accepted
 * leaves a job that still comes to its end. */
#include "stage.h"

#define SIZE (8 * CLUSTER)

enum situation {
    CREATED,
    CREATED_PAUSED,
    RUNNING,
    RUNNING_PAUSED,
    RUNNING_ERROR,  /* an error has paused it                               */
    RUNNING_BOTH,   /* an error, and the host on top of it                  */
    RUNNING_UNDONE, /* paused by both, and resumed                          */
    READY,
    READY_PAUSED,
    READY_ERROR,
    COMPLETING, /* told so; the flush of the target has not returned      */
    PENDING,
    DONE,
    FAILED,
    CANCELLED,
    DISMISSED,
    SITUATIONS
};

enum verb {
    START,
    PAUSE,
    RESUME,
    SET_SPEED,
    CANCEL,
    COMPLETE,
    FINALIZE,
    DISMISS,
    VERBS
};

/* One column a verb: y accepted, - refused, ? the header leaves it open. */
static const char *const table[SITUATIONS] = {
    [CREATED] = "yy-yy---",        [CREATED_PAUSED] = "y-yyy---", [RUNNING] = "-y-yy---",
    [RUNNING_PAUSED] = "--yyy---", [RUNNING_ERROR] = "-yyyy---",  [RUNNING_BOTH] = "--yyy---",
    [RUNNING_UNDONE] = "-y-yy---", [READY] = "-y-yyy--",          [READY_PAUSED] = "--yyy---",
    [READY_ERROR] = "-yyyy---",    [COMPLETING] = "-???y---",     [PENDING] = "----y-y-",
    [DONE] = "-------y",           [FAILED] = "-------y",         [CANCELLED] = "-------y",
    [DISMISSED] = "--------",
};

static const char *const situation_names[SITUATIONS] = {
    "CREATED",
    "CREATED, paused",
    "RUNNING",
    "RUNNING, paused",
    "RUNNING, error paused",
    "RUNNING, paused twice",
    "RUNNING, resumed",
    "READY",
    "READY, paused",
    "READY, error paused",
    "READY, completing",
    "PENDING",
    "DONE",
    "FAILED",
    "CANCELLED",
    "DISMISSED",
};

static const uint32_t state_of[SITUATIONS] = {
    [CREATED] = BLKREPL_JOB_CREATED,
    [CREATED_PAUSED] = BLKREPL_JOB_CREATED,
    [RUNNING] = BLKREPL_JOB_RUNNING,
    [RUNNING_PAUSED] = BLKREPL_JOB_RUNNING,
    [RUNNING_ERROR] = BLKREPL_JOB_RUNNING,
    [RUNNING_BOTH] = BLKREPL_JOB_RUNNING,
    [RUNNING_UNDONE] = BLKREPL_JOB_RUNNING,
    [READY] = BLKREPL_JOB_READY,
    [READY_PAUSED] = BLKREPL_JOB_READY,
    [READY_ERROR] = BLKREPL_JOB_READY,
    [COMPLETING] = 0,
    [PENDING] = BLKREPL_JOB_PENDING,
    [DONE] = BLKREPL_JOB_CONCLUDED,
    [FAILED] = BLKREPL_JOB_CONCLUDED,
    [CANCELLED] = BLKREPL_JOB_CONCLUDED,
    [DISMISSED] = BLKREPL_JOB_CONCLUDED,
};

static struct env env;
static struct part disk, copy;
static struct part *const both[] = {&disk, &copy};
static blkrepl_job *job;
static bool verify; /* the job is a verify: its requests to `copy` are reads */

/* ---- Into each situation ------------------------------------------------------------ */

static void start(void)
{
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
}

static uint32_t copy_opcode(void)
{
    return verify ? BLKREPL_OP_READ : BLKREPL_OP_WRITE;
}

static void create_verify(const blkrepl_backup_options *o)
{
    blkrepl_verify_options v = {.struct_size = sizeof v,
                                .name = "b0",
                                .workers_max = 1,
                                .chunk_bytes_max = CLUSTER,
                                .on_error = o->on_target_error,
                                .job_flags = o->job_flags};

    ASSERT_CODE(blkrepl_verify_create(disk.image, copy.image, &v, &job), 0);
}

static void create(blkrepl_backup_options *o)
{
    if (verify) {
        create_verify(o);
        return;
    }
    o->struct_size = sizeof *o;
    o->name = "b0";
    o->workers_max = 1;
    o->chunk_bytes_max = CLUSTER;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, o, &job), 0);
}

static void into_created(enum situation situation)
{
    blkrepl_backup_options o = {0};

    create(&o);
    if (situation == CREATED_PAUSED) {
        ASSERT_CODE(blkrepl_job_pause(job), 0);
    }
}

static void into_running(enum situation situation)
{
    blkrepl_backup_options o = {.on_target_error = BLKREPL_ON_ERROR_STOP};

    create(&o);
    if (situation == RUNNING || situation == RUNNING_PAUSED) {
        copy.tape.hold = OPS_ALL;
    } else {
        part_fail(&copy, copy_opcode(), 0, SIZE, -EIO);
    }
    start();
    if (situation == RUNNING_PAUSED || situation == RUNNING_BOTH || situation == RUNNING_UNDONE) {
        ASSERT_CODE(blkrepl_job_pause(job), 0);
    }
    if (situation == RUNNING_UNDONE) {
        part_mend(&copy);
        copy.tape.hold = OPS_ALL;
        ASSERT_CODE(blkrepl_job_resume(job), 0);
    }
    env_drain(&env);
}

static void into_ready(enum situation situation)
{
    blkrepl_backup_options o = {.sync = BLKREPL_SYNC_NONE,
                                .on_target_error = BLKREPL_ON_ERROR_STOP};

    create(&o);
    start();
    if (situation == READY_PAUSED) {
        ASSERT_CODE(blkrepl_job_pause(job), 0);
    } else if (situation == READY_ERROR) {
        part_fail(&copy, copy_opcode(), 0, SIZE, -EIO);
        guest_writes(&env, &disk, 0, 4096, 50);
    } else if (situation == COMPLETING) {
        copy.tape.hold = BIT(BLKREPL_OP_FLUSH);
        ASSERT_CODE(blkrepl_job_complete(job), 0);
    }
    env_drain(&env);
}

static void into_pending(enum situation situation)
{
    blkrepl_backup_options o = {.job_flags = BLKREPL_JOB_MANUAL_FINALIZE};

    (void)situation;
    create(&o);
    start();
}

static void into_concluded(enum situation situation)
{
    blkrepl_backup_options o = {0};

    create(&o);
    if (situation == FAILED) {
        part_fail(&copy, copy_opcode(), 0, SIZE, -EIO);
    } else if (situation == CANCELLED) {
        copy.tape.hold = OPS_ALL;
    }
    start();
    if (situation == CANCELLED) {
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        parts_run(&env, both, 2);
    } else if (situation == DISMISSED) {
        ASSERT_CODE(blkrepl_job_dismiss(job), 0);
    }
}

static uint32_t flags_of(enum situation situation)
{
    static const uint32_t flags[SITUATIONS] = {
        [CREATED_PAUSED] = BLKREPL_JOB_FLAG_PAUSED,
        [RUNNING_PAUSED] = BLKREPL_JOB_FLAG_PAUSED,
        [RUNNING_ERROR] = BLKREPL_JOB_FLAG_ERROR_PAUSED,
        [RUNNING_BOTH] = BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED,
        [READY_PAUSED] = BLKREPL_JOB_FLAG_PAUSED,
        [READY_ERROR] = BLKREPL_JOB_FLAG_ERROR_PAUSED,
        [COMPLETING] = BLKREPL_JOB_FLAG_COMPLETING,
        [PENDING] = BLKREPL_JOB_FLAG_FINALIZABLE,
        [DISMISSED] = BLKREPL_JOB_FLAG_DISMISSED,
    };

    return flags[situation];
}

static void into(enum situation situation)
{
    static void (*const how[SITUATIONS])(enum situation) = {
        into_created,   into_created,   into_running,   into_running,   into_running, into_running,
        into_running,   into_ready,     into_ready,     into_ready,     into_ready,   into_pending,
        into_concluded, into_concluded, into_concluded, into_concluded,
    };

    how[situation](situation);
    env_drain(&env);
    blkrepl_job_info info = job_info(job);
    if (info.flags != flags_of(situation) ||
        (state_of[situation] && info.state != state_of[situation])) {
        fail_msg("%s: state %u, flags %u", situation_names[situation], info.state, info.flags);
    }
}

/* ---- Each verb ------------------------------------------------------------------------- */

static int apply(enum verb verb)
{
    switch (verb) {
    case START: return blkrepl_job_start(job);
    case PAUSE: return blkrepl_job_pause(job);
    case RESUME: return blkrepl_job_resume(job);
    case SET_SPEED: return blkrepl_job_set_speed(job, 4 * CLUSTER);
    case CANCEL: return blkrepl_job_cancel(job, 0);
    case COMPLETE: return blkrepl_job_complete(job);
    case FINALIZE: return blkrepl_job_finalize(job);
    case DISMISS: return blkrepl_job_dismiss(job);
    case VERBS: break;
    }
    return 1;
}

static const char *const verb_names[VERBS] = {"start",  "pause",    "resume",   "set_speed",
                                              "cancel", "complete", "finalize", "dismiss"};

static void check_answer(enum situation situation, enum verb verb, int rc)
{
    int want = table[situation][verb] == 'y' ? 0 : BLKREPL_ERR_STATE;

    if (table[situation][verb] != '?' && rc != want) {
        fail_msg("%s of a job that is %s: %d, not %d", verb_names[verb], situation_names[situation],
                 rc, want);
    }
    if (rc == BLKREPL_ERR_STATE && !strstr(blkrepl_error_message(), "\"b0\"")) {
        fail_msg("\"%s\" does not name the job", blkrepl_error_message());
    }
}

/* Whatever it waits for it gets. */
static void bring_to_its_end(void)
{
    part_mend(&copy);
    parts_run(&env, both, 2);
    blkrepl_job_info info = job_info(job);

    if (info.state == BLKREPL_JOB_CREATED) {
        ASSERT_CODE(blkrepl_job_start(job), 0);
    }
    if (info.state < BLKREPL_JOB_PENDING &&
        info.flags & (BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED)) {
        ASSERT_CODE(blkrepl_job_resume(job), 0);
    }
    for (int i = 0; i < 10; i++) { /* it may be slow now */
        env_advance(&env, SECOND);
    }
    if (job_state(job) == BLKREPL_JOB_READY) {
        ASSERT_CODE(blkrepl_job_complete(job), 0);
    }
    env_drain(&env);
    if (job_state(job) == BLKREPL_JOB_PENDING) {
        ASSERT_CODE(blkrepl_job_finalize(job), 0);
    }
    env_drain(&env);
    ASSERT_STATE(job, BLKREPL_JOB_CONCLUDED);
    /* "a property of the live states" */
    assert_false(job_has(job, BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED));
}

static void check_result(enum situation situation, enum verb verb)
{
    uint32_t want = situation == FAILED ? BLKREPL_RESULT_FAILED : BLKREPL_RESULT_DONE;
    uint32_t got = job_info(job).result;
    bool cancelled = verb == CANCEL && table[situation][CANCEL] == 'y';

    want = situation == CANCELLED || cancelled ? BLKREPL_RESULT_CANCELLED : want;
    if (got != want) {
        fail_msg("%s of a job that is %s: it ends with result %u, not %u", verb_names[verb],
                 situation_names[situation], got, want);
    }
}

static void one_case(enum situation situation, enum verb verb)
{
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    into(situation);
    size_t events = env.event_count;
    blkrepl_job_info before = job_info(job);
    int rc = apply(verb);

    check_answer(situation, verb, rc);
    if (rc == BLKREPL_ERR_STATE) {
        env_drain(&env);
        blkrepl_job_info after = job_info(job);
        assert_memory_equal(&before, &after, sizeof before);
        assert_int_equal(env.event_count, events);
    }
    bring_to_its_end();
    check_result(situation, verb);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, before.id), 1);
    blkrepl_job_free(job);
    parts_close(&env, both, 2);
}

static void every_verb_in(enum situation from, enum situation to)
{
    for (enum situation s = from; s <= to; s++) {
        for (enum verb v = 0; v < VERBS; v++) {
            one_case(s, v);
        }
    }
}

/* The other kind of job; it is never READY. */
static void every_verb_of_a_verify(void **state)
{
    (void)state;
    verify = true;
    every_verb_in(CREATED, RUNNING_UNDONE);
    every_verb_in(PENDING, DISMISSED);
    verify = false;
}

static void every_verb_in_created(void **state)
{
    (void)state;
    every_verb_in(CREATED, CREATED_PAUSED);
}

static void every_verb_in_running(void **state)
{
    (void)state;
    every_verb_in(RUNNING, RUNNING_UNDONE);
}

static void every_verb_in_ready(void **state)
{
    (void)state;
    every_verb_in(READY, COMPLETING);
}

static void every_verb_in_pending(void **state)
{
    (void)state;
    every_verb_in(PENDING, PENDING);
}

static void every_verb_in_concluded(void **state)
{
    (void)state;
    every_verb_in(DONE, DISMISSED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_verb_in_created),   cmocka_unit_test(every_verb_in_running),
        cmocka_unit_test(every_verb_in_ready),     cmocka_unit_test(every_verb_in_pending),
        cmocka_unit_test(every_verb_in_concluded), cmocka_unit_test(every_verb_of_a_verify),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
