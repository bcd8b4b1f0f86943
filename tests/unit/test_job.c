/* SPDX-License-Identifier: MIT */
#include "job/job.h"

#include "unit/job_rig.h"

/* ---- Every verb in every state ---------------------------------------------------- */

/* The table of the public header, with the numbers of its notes. */
static const char *const table[] = {
    "start      ok (4)    -         -         -         -",
    "pause      ok (1)    ok (1)    ok (1)    -         -",
    "resume     ok (2)    ok (2)    ok (2)    -         -",
    "set_speed  ok        ok        ok        -         -",
    "cancel     ok        ok        ok        ok        -",
    "complete   -         -         ok (3)    -         -",
    "finalize   -         -         -         ok (5)    -",
    "dismiss    -         -         -         -         ok (6)",
    "query      ok        ok        ok        ok        ok",
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
    QUERY,
    VERBS
};

static const char *const verb_words[VERBS] = {"start",         "pause",   "resume",
                                              "set the speed", "cancel",  "complete",
                                              "finalize",      "dismiss", "query"};

/* What may be true of a job beside its state. */
enum {
    HOST_PAUSED = 1,
    ERROR_PAUSED = 2,
    TOLD = 4, /* to complete */
    IN_GROUP = 8,
    CANCELLING = 16,
    DISMISSED = 32,
    TRAITS = 64
};

static const uint32_t possible[] = {
    [BLKREPL_JOB_CREATED] = HOST_PAUSED | IN_GROUP,
    [BLKREPL_JOB_RUNNING] = HOST_PAUSED | ERROR_PAUSED | IN_GROUP | CANCELLING,
    [BLKREPL_JOB_READY] = HOST_PAUSED | ERROR_PAUSED | TOLD | IN_GROUP | CANCELLING,
    [BLKREPL_JOB_PENDING] = IN_GROUP,
    [BLKREPL_JOB_CONCLUDED] = IN_GROUP | DISMISSED,
};

/* The note of a cell; 0: always; -1: never. */
static int table_cell(enum verb verb, uint32_t state)
{
    const char *cell = table[verb] + 11 + (state - 1) * 10;

    return cell[0] == '-' ? -1 : cell[2] == ' ' && cell[3] == '(' ? cell[4] - '0' : 0;
}

static bool legal(enum verb verb, uint32_t state, uint32_t traits)
{
    bool paused = (traits & (HOST_PAUSED | ERROR_PAUSED)) != 0;

    if (traits & CANCELLING) {
        return table_cell(verb, state) >= 0 && verb != START;
    }
    switch (table_cell(verb, state)) {
    case 0: return true;
    case 1: return !(traits & HOST_PAUSED);
    case 2: return paused;
    case 3: return !(traits & TOLD) && !paused;
    case 4:
    case 5: return !(traits & IN_GROUP);
    case 6: return !(traits & DISMISSED);
    default: return false;
    }
}

static int call(struct actor *a, enum verb verb)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    switch (verb) {
    case START: return blkrepl_job_start(&a->job);
    case PAUSE: return blkrepl_job_pause(&a->job);
    case RESUME: return blkrepl_job_resume(&a->job);
    case SET_SPEED: return blkrepl_job_set_speed(&a->job, 5);
    case CANCEL: return blkrepl_job_cancel(&a->job, 0);
    case COMPLETE: return blkrepl_job_complete(&a->job);
    case FINALIZE: return blkrepl_job_finalize(&a->job);
    case DISMISS: return blkrepl_job_dismiss(&a->job);
    case QUERY: return blkrepl_job_query(&a->job, &info);
    case VERBS: break;
    }
    return 0;
}

struct scene {
    struct stage stage;
    struct actor *a;
    struct actor *b; /* the other of its group; NULL: none */
    blkrepl_group *group;
};

static void scene_start(struct scene *s)
{
    if (s->group == NULL) {
        assert_int_equal(blkrepl_job_start(&s->a->job), 0);
        return;
    }
    assert_int_equal(blkrepl_group_start(s->group), 0);
}

static void scene_traits(struct scene *s, uint32_t traits)
{
    if (traits & TOLD) {
        assert_int_equal(blkrepl_job_complete(&s->a->job), 0);
    }
    if (traits & HOST_PAUSED) {
        assert_int_equal(blkrepl_job_pause(&s->a->job), 0);
    }
    if (traits & ERROR_PAUSED) {
        actor_error_pause(s->a);
    }
    if (traits & CANCELLING) {
        assert_int_equal(blkrepl_job_cancel(&s->a->job, 0), 0);
    }
    if (traits & DISMISSED) {
        assert_int_equal(blkrepl_job_dismiss(&s->a->job), 0);
    }
}

static void scene_open(struct scene *s, uint32_t state, uint32_t traits)
{
    bool pending = state == BLKREPL_JOB_PENDING && !(traits & IN_GROUP);

    stage_open(&s->stage);
    s->a = stage_job(&s->stage, 0, pending ? BLKREPL_JOB_MANUAL_FINALIZE : 0);
    s->a->stubborn = true;
    s->b = NULL;
    s->group = NULL;
    if (traits & IN_GROUP) {
        s->b = stage_job(&s->stage, 1, 0);
        s->b->stubborn = true;
        assert_int_equal(blkrepl_group_create(s->stage.rig.ctx, 0, &s->group), 0);
        assert_int_equal(blkrepl_group_add(s->group, &s->a->job), 0);
        assert_int_equal(blkrepl_group_add(s->group, &s->b->job), 0);
    }
    if (state != BLKREPL_JOB_CREATED) {
        scene_start(s);
        s->a->ready = state == BLKREPL_JOB_READY;
        s->a->end = state == BLKREPL_JOB_PENDING     ? BLKREPL_RESULT_DONE
                    : state == BLKREPL_JOB_CONCLUDED ? BLKREPL_RESULT_FAILED
                                                     : 0;
        rig_poll(&s->stage.rig);
        s->a->end = 0;
    }
    scene_traits(s, traits);
    stage_forget(&s->stage);
    assert_int_equal(actor_info(s->a).state, state);
}

static void scene_close(struct scene *s)
{
    struct actor *actors[] = {s->a, s->b};

    for (size_t i = 0; i < ARRAY_COUNT(actors) && actors[i] != NULL; i++) {
        actors[i]->stubborn = false;
        blkrepl_job_cancel(&actors[i]->job, 0);
    }
    rig_poll(&s->stage.rig);
    for (size_t i = 0; i < ARRAY_COUNT(actors) && actors[i] != NULL; i++) {
        actor_step(actors[i]);
        blkrepl_job_free(&actors[i]->job);
    }
    blkrepl_group_free(s->group);
    stage_close(&s->stage);
}

/* What a verb has done is told by the flags and the state. */
static void check_effect(struct scene *s, enum verb verb, const blkrepl_job_info *before,
                         uint32_t traits)
{
    const uint32_t pauses = BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED;
    blkrepl_job_info after = actor_info(s->a);
    bool early = before->state == BLKREPL_JOB_CREATED || before->state == BLKREPL_JOB_PENDING;
    bool idle = (traits & CANCELLING) != 0;
    uint32_t flags = before->flags;
    uint32_t state = before->state;

    switch (verb) {
    case START: state = BLKREPL_JOB_RUNNING; break;
    case PAUSE: flags |= idle ? 0 : (uint32_t)BLKREPL_JOB_FLAG_PAUSED; break;
    case RESUME: flags &= idle ? ~0u : ~pauses; break;
    case CANCEL:
        state = early ? BLKREPL_JOB_CONCLUDED : state;
        flags |= early ? 0 : (uint32_t)BLKREPL_JOB_FLAG_CANCELLING;
        flags &= ~(uint32_t)(BLKREPL_JOB_FLAG_ERROR_PAUSED | BLKREPL_JOB_FLAG_FINALIZABLE);
        flags &= early ? ~pauses : ~0u;
        break;
    case COMPLETE: flags |= idle ? 0 : (uint32_t)BLKREPL_JOB_FLAG_COMPLETING; break;
    case FINALIZE: state = BLKREPL_JOB_CONCLUDED, flags = 0; break;
    case DISMISS: flags |= BLKREPL_JOB_FLAG_DISMISSED; break;
    case SET_SPEED:
    case QUERY:
    case VERBS: break;
    }
    assert_int_equal(after.state, state);
    assert_int_equal(after.flags, flags);
}

static unsigned state_events(struct scene *s)
{
    rig_poll(&s->stage.rig);
    return actor_events(&s->stage, s->a->job.id, BLKREPL_EVENT_JOB_STATE);
}

static void check_call(enum verb verb, uint32_t state, uint32_t traits)
{
    struct scene s;
    blkrepl_job_info before;
    bool ok = legal(verb, state, traits);
    bool told = !(traits & CANCELLING) &&
                (verb == START || verb == PAUSE || verb == RESUME || verb == COMPLETE);
    char words[64];
    int rc;

    scene_open(&s, state, traits);
    before = actor_info(s.a);
    rc = call(s.a, verb);
    if (rc != (ok ? 0 : BLKREPL_ERR_STATE)) {
        fail_msg("%s in state %u with %x: %d", verb_words[verb], state, traits, rc);
    }
    if (ok) {
        check_effect(&s, verb, &before, traits);
        assert_int_equal(state_events(&s), told);
    } else {
        blkrepl_job_info after = actor_info(s.a);

        assert_memory_equal(&before, &after, sizeof before); /* changes nothing */
        snprintf(words, sizeof words, "job \"a0\": cannot %s: ", verb_words[verb]);
        call(s.a, verb);
        assert_memory_equal(blkrepl_error_message(), words, strlen(words));
        rig_poll(&s.stage.rig);
        assert_int_equal(s.stage.rig.event_count, 0);
        assert_string_equal(s.stage.acts, "");
    }
    scene_close(&s);
}

static void job_verbs_are_legal_where_the_table_says(void **state)
{
    (void)state;
    for (enum verb verb = START; verb < VERBS; verb++) {
        for (uint32_t s = BLKREPL_JOB_CREATED; s <= BLKREPL_JOB_CONCLUDED; s++) {
            for (uint32_t traits = 0; traits < TRAITS; traits++) {
                if ((traits & ~possible[s]) == 0) {
                    check_call(verb, s, traits);
                }
            }
        }
    }
}

/* ---- Start ------------------------------------------------------------------------ */

static void stage_one(struct stage *stage, struct actor **a, uint32_t flags)
{
    stage_open(stage);
    *a = stage_job(stage, 0, flags);
}

static void job_start_is_the_point_in_time_and_wakes_the_machine(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    actor_step(a);
    assert_int_equal(a->steps, 0); /* not yet started */
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_string_equal(stage.acts, "a.prepare a.start");
    assert_int_equal(a->steps, 0); /* only polls step */
    rig_poll(&stage.rig);
    assert_int_equal(a->steps, 1);
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    rig_poll(&stage.rig);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_may_not_start_stays_created_and_may_start_later(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    a->refuse = -EBUSY;
    assert_int_equal(blkrepl_job_start(&a->job), -EBUSY);
    assert_string_equal(blkrepl_error_message(), "it does not want to");
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_CREATED);
    rig_poll(&stage.rig);
    assert_int_equal(stage.rig.event_count, 0);
    a->refuse = 0;
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    actor_end(a, BLKREPL_RESULT_DONE);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_may_be_ready_from_its_start(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    a->ready_at_once = true;
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_READY);
    actor_end(a, BLKREPL_RESULT_DONE);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

/* ---- Pauses ----------------------------------------------------------------------- */

static void job_is_paused_by_the_host_and_by_an_error_apart(void **state)
{
    const uint32_t both = BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED;
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    stage_forget(&stage);
    actor_error_pause(a);
    actor_error_pause(a); /* the second of those in flight */
    assert_int_equal(actor_info(a).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
    assert_int_equal(blkrepl_job_pause(&a->job), 0);
    assert_int_equal(actor_info(a).flags, both);
    assert_int_equal(blkrepl_job_pause(&a->job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "job \"a0\": cannot pause: it is paused already");
    actor_end(a, BLKREPL_RESULT_DONE);
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_RUNNING); /* held */
    assert_int_equal(rig_event(&stage.rig, BLKREPL_EVENT_JOB_STATE, 0)->count, 2);
    assert_int_equal(blkrepl_job_resume(&a->job), 0);
    assert_int_equal(actor_info(a).flags, 0);
    assert_int_equal(a->resumed, 1);
    assert_int_equal(blkrepl_job_resume(&a->job), BLKREPL_ERR_STATE);
    rig_poll(&stage.rig); /* awake */
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_CONCLUDED);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_an_error_has_paused_is_resumed(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    actor_error_pause(a); /* not started: nothing can have failed */
    assert_int_equal(actor_info(a).flags, 0);
    assert_int_equal(blkrepl_job_pause(&a->job), 0);
    assert_int_equal(blkrepl_job_resume(&a->job), 0);
    assert_int_equal(a->resumed, 0); /* nothing is to be tried again */
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    a->ready = true;
    rig_poll(&stage.rig);
    actor_error_pause(a);
    assert_int_equal(blkrepl_job_complete(&a->job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "job \"a0\": cannot complete: it is paused");
    assert_int_equal(blkrepl_job_resume(&a->job), 0);
    assert_int_equal(a->resumed, 1);
    assert_int_equal(blkrepl_job_complete(&a->job), 0);
    assert_int_equal(a->completed, 1);
    actor_error_pause(a);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    assert_int_equal(actor_info(a).flags,
                     BLKREPL_JOB_FLAG_CANCELLING | BLKREPL_JOB_FLAG_COMPLETING);
    actor_error_pause(a); /* one that winds up is not paused any more */
    assert_int_equal(actor_info(a).flags,
                     BLKREPL_JOB_FLAG_CANCELLING | BLKREPL_JOB_FLAG_COMPLETING);
    assert_int_equal(a->resumed, 1);
    rig_poll(&stage.rig);
    assert_int_equal(actor_info(a).result, BLKREPL_RESULT_CANCELLED);
    actor_error_pause(a);
    assert_int_equal(actor_info(a).flags, 0);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_ends_is_not_paused_by_an_error_any_more(void **state)
{
    static const uint32_t results[] = {BLKREPL_RESULT_DONE, BLKREPL_RESULT_FAILED};
    struct stage stage;
    struct actor *a;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(results); i++) {
        stage_one(&stage, &a, BLKREPL_JOB_MANUAL_FINALIZE);
        assert_int_equal(blkrepl_job_start(&a->job), 0);
        rig_poll(&stage.rig);
        actor_error(a, -EIO, BLKREPL_SIDE_TARGET);
        actor_error_pause(a);
        blkrepl__enter(stage.rig.ctx);
        blkrepl__job_finish(&a->job, results[i]);
        blkrepl__leave(stage.rig.ctx, 0);
        assert_int_equal(actor_info(a).flags & BLKREPL_JOB_FLAG_ERROR_PAUSED, 0);
        actor_error_pause(a); /* PENDING */
        assert_int_equal(actor_info(a).flags & BLKREPL_JOB_FLAG_ERROR_PAUSED, 0);
        blkrepl_job_cancel(&a->job, 0);
        blkrepl_job_free(&a->job);
        stage_close(&stage);
    }
}

/* ---- Cancel ----------------------------------------------------------------------- */

static void job_that_is_cancelled_twice_is_told_twice_and_ends_once(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 2), -EINVAL);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, BLKREPL_CANCEL_FORCE), 0);
    assert_int_equal(a->cancelled, 2);
    assert_int_equal(actor_info(a).flags, BLKREPL_JOB_FLAG_CANCELLING);
    assert_int_equal(actor_info(a).error, 0);
    rig_poll(&stage.rig);
    assert_int_equal(actor_info(a).flags, 0);
    assert_int_equal(actor_info(a).error, -ECANCELED);
    assert_int_equal(actor_info(a).result, BLKREPL_RESULT_CANCELLED);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_was_never_started_concludes_inside_cancel(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_CONCLUDED);
    assert_string_equal(stage.acts, "a.let_go"); /* nothing was prepared or is to be settled */
    rig_poll(&stage.rig);
    assert_int_equal(rig_event(&stage.rig, BLKREPL_EVENT_JOB_DONE, 0)->error, -ECANCELED);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_may_end_inside_cancel_without_a_handle(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    a->at_once = BLKREPL_RESULT_CANCELLED;
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    blkrepl_job_free(&a->job);
    stage_close(&stage); /* cancels it */
    assert_string_equal(stage.acts, "a.prepare a.start a.cancelled a.settle:cancelled a.let_go");
}

/* ---- The end ---------------------------------------------------------------------- */

static void job_that_is_done_before_the_cancel_is_seen_is_done(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    actor_end(a, BLKREPL_RESULT_DONE);
    assert_int_equal(actor_info(a).result, BLKREPL_RESULT_DONE);
    assert_int_equal(rig_event(&stage.rig, BLKREPL_EVENT_JOB_DONE, 0)->error, 0);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_would_have_to_wait_is_cancelled_by_an_earlier_cancel(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_FINALIZE);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    actor_end(a, BLKREPL_RESULT_DONE);
    assert_int_equal(actor_info(a).result, BLKREPL_RESULT_CANCELLED);
    assert_int_equal(a->settled_as, BLKREPL_RESULT_CANCELLED);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_waits_for_finalize_and_takes_no_step_meanwhile(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_FINALIZE);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_int_equal(blkrepl_job_finalize(&a->job), BLKREPL_ERR_STATE);
    stage_forget(&stage);
    actor_end(a, BLKREPL_RESULT_DONE);
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_PENDING);
    assert_int_equal(actor_info(a).flags, BLKREPL_JOB_FLAG_FINALIZABLE);
    assert_int_equal(actor_info(a).result, 0);
    assert_int_equal(stage.rig.event_count, 1);
    assert_int_equal(stage.rig.events[0].type, BLKREPL_EVENT_JOB_STATE);
    actor_step(a);
    assert_int_equal(a->steps, 2);
    assert_string_equal(stage.acts, ""); /* nothing is settled */
    assert_int_equal(blkrepl_job_finalize(&a->job), 0);
    assert_string_equal(stage.acts, "a.settle:done a.let_go");
    assert_int_equal(actor_info(a).result, BLKREPL_RESULT_DONE);
    assert_int_equal(blkrepl_job_finalize(&a->job), BLKREPL_ERR_STATE);
    rig_poll(&stage.rig);
    assert_int_equal(stage.rig.event_count, 2);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

/* BK-28: the data are all there, and its bitmap is as after a failure. */
static void job_that_is_cancelled_while_pending_settles_as_cancelled(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_FINALIZE);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    actor_end(a, BLKREPL_RESULT_DONE);
    stage_forget(&stage);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    assert_string_equal(stage.acts, "a.settle:cancelled a.let_go");
    assert_int_equal(a->cancelled, 0); /* its machine has ended */
    assert_int_equal(actor_info(a).error, -ECANCELED);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_fails_does_not_wait_for_finalize(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_FINALIZE);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    actor_end(a, BLKREPL_RESULT_FAILED);
    assert_int_equal(actor_info(a).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(actor_info(a).error, -EIO);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

/* ---- Errors ----------------------------------------------------------------------- */

static void job_policies_are_by_side(void **state)
{
    static const int codes[] = {-EIO, -ENOSPC, -EDQUOT};
    struct blkrepl_job job = {.on_error = {[BLKREPL_SIDE_TARGET] = BLKREPL_ON_ERROR_STOP,
                                           [BLKREPL_SIDE_SPILL] = BLKREPL_ON_ERROR_REPORT}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(codes); i++) {
        struct job_error error = {.code = codes[i], .side = BLKREPL_SIDE_SOURCE};

        job.on_error[BLKREPL_SIDE_SOURCE] = 0;
        assert_int_equal(blkrepl__job_judge(&job, &error), JOB_FAIL);
        job.on_error[BLKREPL_SIDE_SOURCE] = BLKREPL_ON_ERROR_ENOSPC;
        assert_int_equal(blkrepl__job_judge(&job, &error), i == 0 ? JOB_FAIL : JOB_STOP);
        job.on_error[BLKREPL_SIDE_SOURCE] = BLKREPL_ON_ERROR_IGNORE;
        assert_int_equal(blkrepl__job_judge(&job, &error), JOB_IGNORE);
        error.side = BLKREPL_SIDE_TARGET;
        assert_int_equal(blkrepl__job_judge(&job, &error), JOB_STOP);
        error.side = BLKREPL_SIDE_SPILL;
        assert_int_equal(blkrepl__job_judge(&job, &error), JOB_FAIL);
    }
}

static void job_keeps_its_first_error_and_counts_them_all(void **state)
{
    struct stage stage;
    struct actor *a;
    blkrepl_job_info info;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    actor_error(a, -ENOSPC, BLKREPL_SIDE_SPILL);
    actor_error(a, -EIO, BLKREPL_SIDE_SOURCE);
    actor_error(a, -EIO, BLKREPL_SIDE_TARGET);
    actor_error(a, -EIO, BLKREPL_SIDE_TARGET);
    info = actor_info(a);
    assert_string_equal(info.message,
                        "job \"a0\": spill write at 4096+512: No space left on device");
    assert_int_equal(info.error_count, 4);
    assert_int_equal(info.source_errors, 1);
    assert_int_equal(info.target_errors, 2);
    assert_int_equal(info.spill_errors, 1);
    assert_int_equal(info.error_side, BLKREPL_SIDE_SPILL);
    assert_int_equal(info.error_offset, 4096);
    assert_int_equal(info.error_bytes, 512);
    assert_int_equal(info.error, 0); /* not concluded */
    assert_int_equal(info.bytes_total, 77);
    assert_string_equal(stage.rig.lines[1], "");
    rig_poll(&stage.rig);
    assert_int_equal(rig_event(&stage.rig, BLKREPL_EVENT_JOB_ERROR, 0)->count, 4);
    assert_int_equal(rig_event(&stage.rig, BLKREPL_EVENT_JOB_ERROR, 0)->side, BLKREPL_SIDE_TARGET);
    assert_string_equal(stage.rig.lines[1], info.message);
    assert_int_equal(stage.rig.levels[1], BLKREPL_LOG_ERROR);
    actor_end(a, BLKREPL_RESULT_FAILED); /* the error that ended it is what is told */
    info = actor_info(a);
    assert_int_equal(info.error, -EIO);
    assert_string_equal(info.message, "job \"a0\": target write at 0+512: Input/output error");
    assert_int_equal(info.error_count, 5);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_has_no_errors_after_its_end(void **state)
{
    struct stage stage;
    struct actor *a;
    blkrepl_job_info before;
    blkrepl_job_info after;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    actor_end(a, BLKREPL_RESULT_FAILED);
    stage_forget(&stage);
    before = actor_info(a);
    actor_error(a, -ENOSPC, BLKREPL_SIDE_SOURCE);
    blkrepl__enter(stage.rig.ctx);
    blkrepl__job_fail(&a->job, &(struct job_error){.code = -EPERM, .what = "read"});
    blkrepl__leave(stage.rig.ctx, 0);
    after = actor_info(a);
    assert_memory_equal(&before, &after, sizeof before);
    rig_poll(&stage.rig);
    assert_int_equal(stage.rig.event_count, 0); /* DONE was the last one */
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_events_come_in_order_and_done_is_the_last(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    actor_end(a, BLKREPL_RESULT_FAILED);
    assert_int_equal(stage.rig.event_count, 3);
    assert_int_equal(stage.rig.events[0].type, BLKREPL_EVENT_JOB_STATE);
    assert_int_equal(stage.rig.events[1].type, BLKREPL_EVENT_JOB_ERROR);
    assert_int_equal(stage.rig.events[2].type, BLKREPL_EVENT_JOB_DONE);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(stage.rig.events[i].object_kind, BLKREPL_OBJECT_JOB);
        assert_int_equal(stage.rig.events[i].object_id, a->job.id);
        assert_ptr_equal(stage.rig.events[i].user, a);
    }
    assert_int_equal(stage.rig.events[2].error, -EIO);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
    assert_int_equal(a->events_at_release, 3); /* the release comes after every event */
}

/* ---- Names, handles, dismissal ---------------------------------------------------- */

static void job_without_a_handle_runs_on_without_events(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    blkrepl_job_free(&a->job); /* its STATE event waits: dropped */
    rig_poll(&stage.rig);
    assert_int_equal(a->steps, 1);
    assert_int_equal(a->destroyed, 0);
    actor_end(a, BLKREPL_RESULT_DONE);
    assert_int_equal(stage.rig.event_count, 0);
    stage_close(&stage);
}

static void job_has_events_while_there_is_any_handle(void **state)
{
    struct stage stage;
    struct actor *a;
    blkrepl_job *handle;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", &handle), 0);
    assert_ptr_equal(handle, &a->job);
    blkrepl_job_free(&a->job);
    assert_int_equal(blkrepl_job_start(handle), 0); /* it lives by the other one */
    rig_poll(&stage.rig);
    assert_int_equal(stage.rig.event_count, 1);
    blkrepl_job_free(handle);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", &handle), 0); /* it runs */
    actor_end(a, BLKREPL_RESULT_DONE);
    assert_int_equal(rig_events(&stage.rig, BLKREPL_EVENT_JOB_DONE), 1);
    assert_int_equal(blkrepl_context_free(stage.rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(),
                        "context: 0 image, 0 bitmap, 1 job and 0 group handles are open");
    blkrepl_job_free(handle);
    stage_close(&stage);
}

static void job_names_are_legal_and_unique_until_the_handle_is_freed(void **state)
{
    struct stage stage;
    struct actor *a;
    char name[BLKREPL_NAME_MAX + 2];

    (void)state;
    stage_one(&stage, &a, 0);
    memset(name, 'x', sizeof name);
    name[BLKREPL_NAME_MAX + 1] = '\0';
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, NULL), 0);
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, ""), -EINVAL);
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, name), -EINVAL);
    name[BLKREPL_NAME_MAX] = '\0';
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, name), 0);
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), -EEXIST);
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a"), 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0); /* concluded: still taken */
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), -EEXIST);
    blkrepl_job_free(&a->job);
    assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), 0);
    stage_close(&stage);
}

static void job_gets_a_name_that_is_free(void **state)
{
    struct stage stage;
    struct actor *a;
    struct actor *b;

    (void)state;
    stage_one(&stage, &a, 0);
    snprintf(a->job.name, sizeof a->job.name, "kind-3"); /* as if the host had chosen it */
    b = stage_job(&stage, 1, 0);
    blkrepl_job_free(&b->job);
    rig_poll(&stage.rig);
    memset(b, 0, sizeof *b);
    b->job.ops = a->job.ops;
    blkrepl__enter(stage.rig.ctx);
    blkrepl__job_publish(&b->job, stage.rig.ctx, &(struct job_identity){.kind_name = "kind"});
    blkrepl__leave(stage.rig.ctx, 0);
    b->stage = &stage;
    assert_string_equal(actor_info(b).name, "kind-3.1");
    blkrepl_job_free(&b->job);
    assert_int_equal(b->destroyed, 1); /* at once: nobody is to be told */
    b->stage = NULL;
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_name_is_free_although_somebody_inside_still_holds_the_job(void **state)
{
    struct stage stage;
    struct actor *a;
    blkrepl_job *handle;

    (void)state;
    for (int early = 0; early < 2; early++) {
        stage_one(&stage, &a, 0);
        assert_int_equal(blkrepl_job_start(&a->job), 0);
        a->job.refs++;
        if (early) {
            blkrepl_job_free(&a->job);
        }
        actor_end(a, BLKREPL_RESULT_DONE);
        if (!early) {
            assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), -EEXIST);
            blkrepl_job_free(&a->job);
        }
        assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), 0);
        assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", &handle), -ENOENT);
        assert_int_equal(blkrepl_job_next(stage.rig.ctx, 0, &handle), -ENOENT);
        blkrepl__enter(stage.rig.ctx);
        blkrepl__job_put(&a->job);
        blkrepl__leave(stage.rig.ctx, 0);
        stage_close(&stage);
    }
}

static void job_is_kept_until_it_is_dismissed(void **state)
{
    struct stage stage;
    struct actor *a;
    blkrepl_job *handle;

    (void)state;
    for (int early = 0; early < 2; early++) {
        stage_one(&stage, &a, BLKREPL_JOB_MANUAL_DISMISS);
        assert_int_equal(blkrepl_job_start(&a->job), 0);
        if (early) {
            blkrepl_job_free(&a->job);
        }
        actor_end(a, BLKREPL_RESULT_FAILED);
        if (!early) {
            blkrepl_job_free(&a->job);
        }
        assert_int_equal(a->destroyed, 0);
        assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), -EEXIST);
        assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", &handle), 0);
        assert_int_equal(actor_info(a).error, -EIO); /* still known */
        assert_int_equal(blkrepl_job_dismiss(handle), 0);
        assert_int_equal(actor_info(a).flags, BLKREPL_JOB_FLAG_DISMISSED);
        assert_int_equal(blkrepl__job_check_name(stage.rig.ctx, "a0"), 0);
        assert_int_equal(a->destroyed, 0); /* a handle stays good */
        blkrepl_job_free(handle);
        stage_close(&stage);
    }
}

static void job_that_was_never_started_is_kept_only_if_it_was_cancelled(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_DISMISS);
    blkrepl_job_free(&a->job);
    rig_poll(&stage.rig);
    assert_int_equal(a->destroyed, 1);
    stage_close(&stage);
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_DISMISS);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    blkrepl_job_free(&a->job);
    rig_poll(&stage.rig);
    assert_int_equal(a->destroyed, 0);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", &(blkrepl_job *){NULL}), 0);
    assert_int_equal(blkrepl_job_dismiss(&a->job), 0);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_is_dismissed_tells_its_end_all_the_same(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    assert_int_equal(blkrepl_job_dismiss(&a->job), 0);
    rig_poll(&stage.rig);
    assert_int_equal(rig_events(&stage.rig, BLKREPL_EVENT_JOB_DONE), 1);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_is_found_by_its_name_and_in_the_order_of_ids(void **state)
{
    struct stage stage;
    struct actor *actors[3];
    blkrepl_job *handle;
    uint64_t id = 0;

    (void)state;
    stage_open(&stage);
    for (unsigned i = 0; i < 3; i++) {
        actors[i] = stage_job(&stage, i, 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(blkrepl_job_next(stage.rig.ctx, id, &handle), 0);
        assert_ptr_equal(handle, &actors[i]->job);
        id = handle->id;
        blkrepl_job_free(handle);
    }
    assert_int_equal(blkrepl_job_next(stage.rig.ctx, id, &handle), -ENOENT);
    assert_null(handle);
    assert_int_equal(blkrepl_job_cancel(&actors[0]->job, 0), 0);
    assert_int_equal(blkrepl_job_dismiss(&actors[0]->job), 0);
    assert_int_equal(blkrepl_job_next(stage.rig.ctx, 0, &handle), 0);
    assert_ptr_equal(handle, &actors[1]->job);
    blkrepl_job_free(handle);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", &handle), -ENOENT);
    assert_null(handle);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, "c0", &handle), 0);
    assert_ptr_equal(handle, &actors[2]->job);
    blkrepl_job_free(handle);
    for (unsigned i = 0; i < 3; i++) {
        blkrepl_job_free(&actors[i]->job);
    }
    stage_close(&stage);
}

/* ---- Arguments, and operations that a kind does not have -------------------------- */

static void job_calls_check_their_arguments(void **state)
{
    struct stage stage;
    struct actor *a;
    blkrepl_job_info info = {.struct_size = 8};
    blkrepl_job *handle;

    (void)state;
    stage_one(&stage, &a, 0);
    assert_int_equal(blkrepl_job_query(&a->job, &info), -EINVAL);
    assert_int_equal(blkrepl_job_query(&a->job, NULL), -EINVAL);
    assert_int_equal(blkrepl_job_query(NULL, &info), -EINVAL);
    assert_int_equal(blkrepl_job_start(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_pause(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_resume(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_set_speed(NULL, 1), -EINVAL);
    assert_int_equal(blkrepl_job_cancel(NULL, 0), -EINVAL);
    assert_int_equal(blkrepl_job_complete(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_finalize(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_dismiss(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_find(NULL, "a0", &handle), -EINVAL);
    assert_null(handle);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, NULL, &handle), -EINVAL);
    assert_int_equal(blkrepl_job_find(stage.rig.ctx, "a0", NULL), -EINVAL);
    assert_int_equal(blkrepl_job_next(NULL, 0, &handle), -EINVAL);
    assert_int_equal(blkrepl_job_next(stage.rig.ctx, 0, NULL), -EINVAL);
    blkrepl_job_free(NULL);
    assert_int_equal(blkrepl_job_set_speed(&a->job, 1234), 0);
    info = actor_info(a);
    assert_int_equal(info.speed_bytes_per_sec, 1234);
    assert_int_equal(a->speeds, 1);
    assert_string_equal(info.name, "a0");
    assert_ptr_equal(info.user, a);
    assert_int_equal(info.kind, BLKREPL_KIND_BACKUP);
    assert_int_equal(info.group_id, 0);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_kind_needs_no_operations(void **state)
{
    static const struct job_ops none = {.destroy = NULL};
    struct rig rig = {.no_log = true};
    struct blkrepl_job job = {.ops = &none};
    blkrepl_job_info info = {.struct_size = sizeof info};

    (void)state;
    rig_open(&rig, NULL);
    blkrepl__enter(rig.ctx);
    blkrepl__job_publish(&job, rig.ctx, &(struct job_identity){.name = "n"});
    blkrepl__leave(rig.ctx, 0);
    assert_int_equal(blkrepl_job_set_speed(&job, 1), 0);
    assert_int_equal(blkrepl_job_query(&job, &info), 0);
    assert_int_equal(info.bytes_total, 0);
    assert_int_equal(blkrepl_job_start(&job), 0);
    rig_poll(&rig);
    blkrepl__enter(rig.ctx);
    blkrepl__job_ready(&job);
    blkrepl__leave(rig.ctx, 0);
    assert_int_equal(blkrepl_job_pause(&job), 0);
    assert_int_equal(blkrepl_job_resume(&job), 0);
    assert_int_equal(blkrepl_job_complete(&job), 0);
    assert_int_equal(blkrepl_job_cancel(&job, 0), 0);
    blkrepl__enter(rig.ctx);
    blkrepl__job_finish(&job, BLKREPL_RESULT_CANCELLED);
    blkrepl__leave(rig.ctx, 0);
    blkrepl_job_free(&job);
    rig_close(&rig);
}

/* ---- The context is freed --------------------------------------------------------- */

static void job_is_cancelled_when_its_context_is_freed(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_DISMISS);
    a->ready = true;
    assert_int_equal(blkrepl_job_start(&a->job), 0);
    assert_int_equal(blkrepl_context_free(stage.rig.ctx), -EBUSY);
    assert_int_equal(a->cancelled, 1);
    assert_int_equal(actor_info(a).result, BLKREPL_RESULT_CANCELLED);
    assert_int_equal(actor_info(a).flags, BLKREPL_JOB_FLAG_DISMISSED); /* by the context */
    for (enum verb verb = START; verb < VERBS; verb++) {
        int rc = verb == CANCEL || verb == DISMISS ? BLKREPL_ERR_STATE : -ESHUTDOWN;

        assert_int_equal(call(a, verb), verb == QUERY ? 0 : rc);
    }
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_that_is_dismissed_is_not_dismissed_by_its_context_again(void **state)
{
    struct stage stage;
    struct actor *a;

    (void)state;
    stage_one(&stage, &a, BLKREPL_JOB_MANUAL_DISMISS);
    assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0);
    assert_int_equal(blkrepl_job_dismiss(&a->job), 0);
    assert_int_equal(blkrepl_context_free(stage.rig.ctx), -EBUSY);
    assert_int_equal(a->destroyed, 0); /* a handle stays good */
    assert_int_equal(actor_info(a).flags, BLKREPL_JOB_FLAG_DISMISSED);
    blkrepl_job_free(&a->job);
    stage_close(&stage);
}

static void job_without_a_handle_is_gone_with_its_context(void **state)
{
    struct stage stage;

    (void)state;
    stage_open(&stage);
    for (unsigned i = 0; i < ACTORS; i++) { /* concluded, pending, running, running */
        struct actor *a = stage_job(&stage, i,
                                    i == 0   ? (uint32_t)BLKREPL_JOB_MANUAL_DISMISS
                                    : i == 1 ? (uint32_t)BLKREPL_JOB_MANUAL_FINALIZE
                                    : i == 2 ? (uint32_t)BLKREPL_JOB_MANUAL_DISMISS
                                             : 0);

        assert_int_equal(blkrepl_job_start(&a->job), 0);
        if (i < 2) {
            actor_end(a, BLKREPL_RESULT_DONE);
        }
        blkrepl_job_free(&a->job);
    }
    stage_forget(&stage);
    assert_int_equal(stage.actors[0].destroyed + stage.actors[1].destroyed, 0);
    stage_close(&stage);
    assert_string_equal(stage.acts, "b.settle:cancelled b.let_go c.cancelled d.cancelled "
                                    "c.settle:cancelled c.let_go d.settle:cancelled d.let_go");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(job_verbs_are_legal_where_the_table_says),
        cmocka_unit_test(job_start_is_the_point_in_time_and_wakes_the_machine),
        cmocka_unit_test(job_that_may_not_start_stays_created_and_may_start_later),
        cmocka_unit_test(job_may_be_ready_from_its_start),
        cmocka_unit_test(job_is_paused_by_the_host_and_by_an_error_apart),
        cmocka_unit_test(job_that_an_error_has_paused_is_resumed),
        cmocka_unit_test(job_that_ends_is_not_paused_by_an_error_any_more),
        cmocka_unit_test(job_that_is_cancelled_twice_is_told_twice_and_ends_once),
        cmocka_unit_test(job_that_was_never_started_concludes_inside_cancel),
        cmocka_unit_test(job_may_end_inside_cancel_without_a_handle),
        cmocka_unit_test(job_that_is_done_before_the_cancel_is_seen_is_done),
        cmocka_unit_test(job_that_would_have_to_wait_is_cancelled_by_an_earlier_cancel),
        cmocka_unit_test(job_waits_for_finalize_and_takes_no_step_meanwhile),
        cmocka_unit_test(job_that_is_cancelled_while_pending_settles_as_cancelled),
        cmocka_unit_test(job_that_fails_does_not_wait_for_finalize),
        cmocka_unit_test(job_policies_are_by_side),
        cmocka_unit_test(job_keeps_its_first_error_and_counts_them_all),
        cmocka_unit_test(job_has_no_errors_after_its_end),
        cmocka_unit_test(job_events_come_in_order_and_done_is_the_last),
        cmocka_unit_test(job_without_a_handle_runs_on_without_events),
        cmocka_unit_test(job_has_events_while_there_is_any_handle),
        cmocka_unit_test(job_names_are_legal_and_unique_until_the_handle_is_freed),
        cmocka_unit_test(job_gets_a_name_that_is_free),
        cmocka_unit_test(job_name_is_free_although_somebody_inside_still_holds_the_job),
        cmocka_unit_test(job_is_kept_until_it_is_dismissed),
        cmocka_unit_test(job_that_was_never_started_is_kept_only_if_it_was_cancelled),
        cmocka_unit_test(job_that_is_dismissed_tells_its_end_all_the_same),
        cmocka_unit_test(job_is_found_by_its_name_and_in_the_order_of_ids),
        cmocka_unit_test(job_calls_check_their_arguments),
        cmocka_unit_test(job_kind_needs_no_operations),
        cmocka_unit_test(job_is_cancelled_when_its_context_is_freed),
        cmocka_unit_test(job_that_is_dismissed_is_not_dismissed_by_its_context_again),
        cmocka_unit_test(job_without_a_handle_is_gone_with_its_context),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
