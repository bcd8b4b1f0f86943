/* SPDX-License-Identifier: MIT */
#include "job/group.h"

#include "unit/job_rig.h"

#define JOBS 3
#define ORDERS 6

static const unsigned orders[ORDERS][JOBS] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                              {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

struct scene {
    struct stage stage;
    blkrepl_group *group;
};

/* Three jobs in a group, the flags of each. */
static void scene_create(struct scene *s, uint32_t group_flags, const uint32_t *flags)
{
    stage_open(&s->stage);
    assert_int_equal(blkrepl_group_create(s->stage.rig.ctx, group_flags, &s->group), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        struct actor *a = stage_job(&s->stage, i, flags != NULL ? flags[i] : 0);

        assert_int_equal(blkrepl_group_add(s->group, &a->job), 0);
    }
}

static void scene_open(struct scene *s, uint32_t group_flags, const uint32_t *flags)
{
    scene_create(s, group_flags, flags);
    assert_int_equal(blkrepl_group_start(s->group), 0);
    stage_forget(&s->stage);
}

/* Free the handles that are left, and see that all ended once. */
static void scene_close(struct scene *s)
{
    for (unsigned i = 0; i < JOBS; i++) {
        if (!s->stage.actors[i].gone) {
            blkrepl_job_free(&s->stage.actors[i].job);
        }
    }
    blkrepl_group_free(s->group);
    stage_close(&s->stage);
}

static struct actor *nth(struct scene *s, unsigned n)
{
    return &s->stage.actors[n];
}

static uint32_t state_of(struct scene *s, unsigned n)
{
    return actor_info(nth(s, n)).state;
}

static uint32_t result_of(struct scene *s, unsigned n)
{
    return actor_info(nth(s, n)).result;
}

static void expect_results(struct scene *s, uint32_t a, uint32_t b, uint32_t c)
{
    assert_int_equal(result_of(s, 0), a);
    assert_int_equal(result_of(s, 1), b);
    assert_int_equal(result_of(s, 2), c);
}

#define DONE BLKREPL_RESULT_DONE
#define FAILED BLKREPL_RESULT_FAILED
#define CANCELLED BLKREPL_RESULT_CANCELLED

/* ---- Members, start ------------------------------------------------------------------------ */

static void group_calls_check_their_arguments(void **state)
{
    struct scene s;
    struct rig other = {.no_log = true};
    blkrepl_group *group = (void *)&s;

    (void)state;
    scene_create(&s, 0, NULL);
    assert_int_equal(blkrepl_group_create(NULL, 0, &group), -EINVAL);
    assert_null(group);
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 2, &group), -EINVAL);
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 0, NULL), -EINVAL);
    s.stage.rig.heap.fail_at = s.stage.rig.heap.calls + 1;
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 0, &group), -ENOMEM);
    assert_null(group);
    assert_int_equal(blkrepl_group_add(NULL, &nth(&s, 0)->job), -EINVAL);
    assert_int_equal(blkrepl_group_add(s.group, NULL), -EINVAL);
    assert_int_equal(blkrepl_group_start(NULL), -EINVAL);
    assert_int_equal(blkrepl_group_cancel(NULL, 0), -EINVAL);
    assert_int_equal(blkrepl_group_cancel(s.group, 2), -EINVAL);
    blkrepl_group_free(NULL);
    rig_open(&other, NULL);
    assert_int_equal(blkrepl_group_create(other.ctx, 0, &group), 0);
    assert_int_equal(blkrepl_group_add(group, &nth(&s, 0)->job), -EINVAL);
    blkrepl_group_free(group);
    rig_close(&other);
    scene_close(&s);
}

static void group_refuses_jobs_that_are_not_free(void **state)
{
    struct scene s;
    struct actor *d;
    blkrepl_group *second;

    (void)state;
    scene_create(&s, 0, NULL);
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 0, &second), 0);
    assert_int_equal(blkrepl_group_add(second, &nth(&s, 0)->job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(),
                        "job \"a0\": cannot add to a group: it belongs to one");
    assert_int_equal(blkrepl_group_add(s.group, &nth(&s, 0)->job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_job_start(&nth(&s, 0)->job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "job \"a0\": cannot start: it belongs to a group");
    assert_int_equal(blkrepl_group_start(s.group), 0);
    d = stage_job(&s.stage, 3, 0);
    assert_int_equal(blkrepl_group_add(s.group, &d->job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(),
                        "job \"d0\": cannot add to a group: it was started");
    assert_int_equal(actor_info(d).group_id, 0);
    assert_int_equal(blkrepl_job_start(&d->job), 0);
    assert_int_equal(blkrepl_group_add(second, &d->job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "job \"d0\": cannot add to a group: running");
    blkrepl_group_free(second);
    blkrepl_job_free(&d->job);
    scene_close(&s);
}

static void group_starts_all_its_jobs_at_one_instant(void **state)
{
    struct scene s;
    blkrepl_job_info info;

    (void)state;
    scene_create(&s, 0, NULL);
    assert_int_equal(blkrepl_group_start(s.group), 0);
    assert_string_equal(s.stage.acts, "a.prepare b.prepare c.prepare a.start b.start c.start");
    assert_int_equal(blkrepl_group_start(s.group), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "group: cannot start: it was started");
    rig_poll(&s.stage.rig);
    for (unsigned i = 0; i < JOBS; i++) {
        info = actor_info(nth(&s, i));
        assert_int_equal(info.state, BLKREPL_JOB_RUNNING);
        assert_true(info.group_id == s.group->id && info.group_id != info.id);
        assert_int_equal(nth(&s, i)->steps, 1);
        assert_int_equal(actor_events(&s.stage, info.id, BLKREPL_EVENT_JOB_STATE), 1);
    }
    scene_close(&s);
}

static void group_starts_none_of_its_jobs_if_one_is_refused(void **state)
{
    static const char *const acts[JOBS] = {"", "a.prepare a.unprepare",
                                           "a.prepare b.prepare b.unprepare a.unprepare"};
    struct scene s;

    (void)state;
    for (unsigned bad = 0; bad < JOBS; bad++) {
        scene_create(&s, 0, NULL);
        nth(&s, bad)->refuse = -EBUSY;
        assert_int_equal(blkrepl_group_start(s.group), -EBUSY);
        assert_string_equal(blkrepl_error_message(), "it does not want to");
        assert_string_equal(s.stage.acts, acts[bad]);
        rig_poll(&s.stage.rig);
        assert_int_equal(s.stage.rig.event_count, 0);
        for (unsigned i = 0; i < JOBS; i++) {
            assert_int_equal(state_of(&s, i), BLKREPL_JOB_CREATED);
        }
        nth(&s, bad)->refuse = 0;
        assert_int_equal(blkrepl_group_start(s.group), 0); /* and again */
        assert_int_equal(nth(&s, 2)->started, 1);
        scene_close(&s);
    }
}

static void group_takes_kinds_that_have_nothing_to_prepare(void **state)
{
    static const struct job_ops none = {.destroy = NULL};
    struct scene s;
    struct blkrepl_job job = {.ops = &none};

    (void)state;
    scene_create(&s, BLKREPL_GROUP_INDIVIDUAL, NULL);
    blkrepl__enter(s.stage.rig.ctx);
    blkrepl__job_publish(&job, s.stage.rig.ctx, &(struct job_identity){.name = "n"});
    blkrepl__leave(s.stage.rig.ctx, 0);
    blkrepl_group_free(s.group);
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 0, &s.group), 0);
    assert_int_equal(blkrepl_group_add(s.group, &job), 0);
    assert_int_equal(blkrepl_group_add(s.group, &nth(&s, 0)->job), 0);
    nth(&s, 0)->refuse = -ENOENT;
    assert_int_equal(blkrepl_group_start(s.group), -ENOENT);
    nth(&s, 0)->refuse = 0;
    assert_int_equal(blkrepl_group_start(s.group), 0);
    blkrepl__enter(s.stage.rig.ctx);
    blkrepl__job_finish(&job, DONE);
    blkrepl__leave(s.stage.rig.ctx, 0);
    actor_end(nth(&s, 0), DONE);
    assert_int_equal(job.result, DONE);
    blkrepl_job_free(&job);
    scene_close(&s);
}

static void group_starts_whoever_has_not_left_it(void **state)
{
    struct scene s;

    (void)state;
    scene_create(&s, 0, NULL);
    assert_int_equal(blkrepl_job_cancel(&nth(&s, 1)->job, 0), 0); /* the others stay */
    assert_int_equal(actor_info(nth(&s, 1)).group_id, 0);
    assert_int_equal(state_of(&s, 0), BLKREPL_JOB_CREATED);
    blkrepl_job_free(&nth(&s, 2)->job);
    assert_int_equal(blkrepl_group_start(s.group), 0);
    actor_end(nth(&s, 0), DONE);
    assert_int_equal(result_of(&s, 0), DONE);
    assert_int_equal(result_of(&s, 1), CANCELLED);
    scene_close(&s);
}

static void group_without_jobs_does_not_start(void **state)
{
    struct scene s;

    (void)state;
    scene_create(&s, 0, NULL);
    assert_int_equal(blkrepl_group_cancel(s.group, 0), 0);
    expect_results(&s, CANCELLED, CANCELLED, CANCELLED);
    assert_int_equal(blkrepl_group_cancel(s.group, 0), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "group: cannot cancel: no job of it is left");
    assert_int_equal(blkrepl_group_start(s.group), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "group: cannot start: there is no job in it");
    scene_close(&s);
}

static void group_that_was_cancelled_before_its_start_may_be_filled_again(void **state)
{
    struct scene s;
    struct actor *d;

    (void)state;
    scene_create(&s, 0, NULL);
    assert_int_equal(blkrepl_group_cancel(s.group, 0), 0);
    d = stage_job(&s.stage, 3, 0);
    assert_int_equal(blkrepl_group_add(s.group, &d->job), 0);
    assert_int_equal(blkrepl_group_start(s.group), 0);
    actor_end(d, DONE);
    assert_int_equal(actor_info(d).result, DONE);
    blkrepl_job_free(&d->job);
    scene_close(&s);
}

static void group_that_is_freed_before_its_start_lets_its_jobs_go(void **state)
{
    struct scene s;

    (void)state;
    scene_create(&s, 0, NULL);
    blkrepl_group_free(s.group);
    s.group = NULL;
    for (unsigned i = 0; i < JOBS; i++) {
        assert_int_equal(actor_info(nth(&s, i)).group_id, 0);
    }
    assert_int_equal(blkrepl_job_start(&nth(&s, 0)->job), 0);
    actor_end(nth(&s, 0), DONE);
    assert_int_equal(result_of(&s, 0), DONE);
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 0, &s.group), 0);
    assert_int_equal(blkrepl_group_add(s.group, &nth(&s, 1)->job), 0);
    scene_close(&s);
}

/* ---- Success ------------------------------------------------------------------------------- */

static void group_is_done_when_the_last_is_done(void **state)
{
    struct scene s;

    (void)state;
    for (unsigned o = 0; o < ORDERS; o++) {
        scene_open(&s, 0, NULL);
        for (unsigned i = 0; i < JOBS - 1; i++) {
            struct actor *a = nth(&s, orders[o][i]);

            s.stage.rig.event_count = 0;
            actor_end(a, DONE);
            assert_int_equal(actor_info(a).state, BLKREPL_JOB_PENDING);
            assert_int_equal(actor_info(a).flags, 0); /* it waits for others */
            assert_int_equal(s.stage.rig.event_count, 1);
            assert_int_equal(actor_events(&s.stage, a->job.id, BLKREPL_EVENT_JOB_STATE), 1);
            assert_int_equal(blkrepl_job_finalize(&a->job), BLKREPL_ERR_STATE);
            assert_non_null(strstr(blkrepl_error_message(), "have not got so far"));
        }
        stage_forget(&s.stage);
        actor_end(nth(&s, orders[o][2]), DONE);
        expect_results(&s, DONE, DONE, DONE);
        /* As they were added. */
        assert_string_equal(s.stage.acts, "a.settle:done a.let_go b.settle:done b.let_go "
                                          "c.settle:done c.let_go");
        assert_int_equal(s.stage.rig.event_count, JOBS);
        for (unsigned i = 0; i < JOBS; i++) {
            assert_int_equal(s.stage.rig.events[i].type, BLKREPL_EVENT_JOB_DONE);
            assert_int_equal(s.stage.rig.events[i].object_id, nth(&s, i)->job.id);
            assert_true(actor_info(nth(&s, i)).group_id == s.group->id); /* still known */
        }
        assert_int_equal(blkrepl_group_cancel(s.group, 0), BLKREPL_ERR_STATE);
        scene_close(&s);
    }
}

static void group_waits_for_one_finalize_of_any(void **state)
{
    struct scene s;

    (void)state;
    for (unsigned manual = 1; manual < 1u << JOBS; manual++) {
        for (unsigned who = 0; who < JOBS; who++) {
            uint32_t flags[JOBS];

            for (unsigned i = 0; i < JOBS; i++) {
                flags[i] = manual >> i & 1 ? (uint32_t)BLKREPL_JOB_MANUAL_FINALIZE : 0;
            }
            scene_open(&s, 0, flags);
            actor_end(nth(&s, 0), DONE);
            actor_end(nth(&s, 1), DONE);
            assert_int_equal(actor_info(nth(&s, 0)).flags, 0);
            assert_int_equal(blkrepl_job_finalize(&nth(&s, 0)->job), BLKREPL_ERR_STATE);
            stage_forget(&s.stage);
            actor_end(nth(&s, 2), DONE);
            assert_int_equal(s.stage.rig.event_count, JOBS); /* it may be finalized */
            for (unsigned i = 0; i < JOBS; i++) {
                assert_int_equal(s.stage.rig.events[i].type, BLKREPL_EVENT_JOB_STATE);
                assert_int_equal(s.stage.rig.events[i].count, 1);
                assert_int_equal(state_of(&s, i), BLKREPL_JOB_PENDING);
                assert_int_equal(actor_info(nth(&s, i)).flags, BLKREPL_JOB_FLAG_FINALIZABLE);
            }
            assert_string_equal(s.stage.acts, "");
            assert_int_equal(blkrepl_job_finalize(&nth(&s, who)->job), 0);
            expect_results(&s, DONE, DONE, DONE);
            scene_close(&s);
        }
    }
}

static void group_of_individuals_shares_the_start_only(void **state)
{
    static const uint32_t flags[JOBS] = {0, BLKREPL_JOB_MANUAL_FINALIZE,
                                         BLKREPL_JOB_MANUAL_FINALIZE};
    struct scene s;

    (void)state;
    scene_open(&s, BLKREPL_GROUP_INDIVIDUAL, flags);
    actor_end(nth(&s, 0), FAILED);
    assert_int_equal(result_of(&s, 0), FAILED);
    actor_end(nth(&s, 1), DONE);
    assert_int_equal(actor_info(nth(&s, 1)).flags, BLKREPL_JOB_FLAG_FINALIZABLE);
    actor_end(nth(&s, 2), DONE);
    assert_int_equal(blkrepl_job_finalize(&nth(&s, 1)->job), 0);
    assert_int_equal(result_of(&s, 1), DONE);
    assert_int_equal(state_of(&s, 2), BLKREPL_JOB_PENDING);
    assert_int_equal(blkrepl_job_cancel(&nth(&s, 2)->job, 0), 0);
    assert_int_equal(result_of(&s, 2), CANCELLED);
    scene_close(&s);
    scene_open(&s, BLKREPL_GROUP_INDIVIDUAL, flags);
    assert_int_equal(blkrepl_job_cancel(&nth(&s, 2)->job, 0), 0);
    actor_end(nth(&s, 0), DONE);
    assert_int_equal(nth(&s, 1)->cancelled, 0);
    actor_end(nth(&s, 1), DONE);
    assert_int_equal(blkrepl_group_cancel(s.group, BLKREPL_CANCEL_FORCE), 0);
    expect_results(&s, DONE, CANCELLED, CANCELLED);
    scene_close(&s);
}

/* ---- Failure and cancel -------------------------------------------------------------------- */

/* Where the others are when one of them gives up. */
enum place {
    RUNNING,
    READY,
    PENDING,
    PLACES
};

enum giving_up {
    FAILS,
    IS_CANCELLED,
    GROUP_IS_CANCELLED,
    WAYS
};

static void go_to(struct actor *a, enum place place)
{
    a->ready = place == READY;
    actor_end(a, place == PENDING ? DONE : 0);
}

static void give_up(struct scene *s, struct actor *a, enum giving_up way)
{
    switch (way) {
    case FAILS: actor_end(a, FAILED); break;
    case IS_CANCELLED: assert_int_equal(blkrepl_job_cancel(&a->job, 0), 0); break;
    case GROUP_IS_CANCELLED: assert_int_equal(blkrepl_group_cancel(s->group, 0), 0); break;
    case WAYS: break;
    }
}

static void check_giving_up(unsigned who, unsigned left, unsigned right, enum giving_up way,
                            enum place place)
{
    struct scene s;
    unsigned others[2] = {(who + 1) % JOBS, (who + 2) % JOBS};
    enum place places[2] = {(enum place)left, (enum place)right};
    uint32_t result = way == FAILS ? FAILED : CANCELLED;

    scene_open(&s, 0, NULL);
    for (unsigned i = 0; i < 2; i++) {
        go_to(nth(&s, others[i]), places[i]);
    }
    go_to(nth(&s, who), place);
    give_up(&s, nth(&s, who), way);
    for (unsigned i = 0; i < 2; i++) {
        struct actor *other = nth(&s, others[i]);

        if (places[i] == PENDING) { /* at once */
            assert_int_equal(actor_info(other).state, BLKREPL_JOB_CONCLUDED);
            assert_int_equal(other->cancelled, 0);
        } else {
            assert_int_equal(other->cancelled, 1);
        }
    }
    rig_poll(&s.stage.rig);
    assert_int_equal(result_of(&s, who), result);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(result_of(&s, others[i]), CANCELLED);
        assert_int_equal(nth(&s, others[i])->settled_as, CANCELLED);
        assert_int_equal(actor_events(&s.stage, nth(&s, others[i])->job.id, BLKREPL_EVENT_JOB_DONE),
                         1);
    }
    scene_close(&s);
}

static void group_is_given_up_with_any_of_its_jobs(void **state)
{
    (void)state;
    for (unsigned who = 0; who < JOBS; who++) {
        for (unsigned others = 0; others < PLACES * PLACES; others++) {
            for (enum giving_up way = FAILS; way < WAYS; way++) {
                for (enum place place = RUNNING; place < PLACES; place++) {
                    bool all = others == PENDING * PLACES + PENDING && place == PENDING;

                    /* All are done otherwise; and a job in PENDING cannot fail. */
                    if (!all && !(place == PENDING && way == FAILS)) {
                        check_giving_up(who, others % PLACES, others / PLACES, way, place);
                    }
                }
            }
        }
    }
}

/* With all of them in PENDING, for want of a finalize. */
static void group_that_may_be_finalized_can_still_be_cancelled(void **state)
{
    static const uint32_t flags[JOBS] = {0, BLKREPL_JOB_MANUAL_FINALIZE, 0};
    struct scene s;

    (void)state;
    for (unsigned who = 0; who <= JOBS; who++) {
        scene_open(&s, 0, flags);
        for (unsigned i = 0; i < JOBS; i++) {
            actor_end(nth(&s, i), DONE);
        }
        give_up(&s, nth(&s, who % JOBS), who < JOBS ? IS_CANCELLED : GROUP_IS_CANCELLED);
        expect_results(&s, CANCELLED, CANCELLED, CANCELLED);
        scene_close(&s);
    }
}

/* JB-39: one fails in the same poll in which another is cancelled, fails too, or is done. */
static void group_that_is_given_up_twice_at_once_ends_once(void **state)
{
    static const uint32_t ends[] = {0, DONE, FAILED, CANCELLED};
    struct scene s;

    (void)state;
    for (unsigned e = 0; e < ARRAY_COUNT(ends) * ARRAY_COUNT(ends); e++) {
        for (unsigned o = 0; o < ORDERS; o++) {
            for (int cancel = 0; cancel < 2; cancel++) {
                uint32_t first = ends[e % ARRAY_COUNT(ends)];
                uint32_t second = ends[e / ARRAY_COUNT(ends)];

                scene_open(&s, 0, NULL);
                nth(&s, orders[o][0])->end = FAILED;
                nth(&s, orders[o][1])->end = first;
                nth(&s, orders[o][2])->end = second;
                for (unsigned i = 0; i < JOBS; i++) {
                    blkrepl__machine_wake(s.stage.rig.ctx, &nth(&s, i)->job.machine);
                }
                if (cancel) {
                    assert_int_equal(blkrepl_job_cancel(&nth(&s, orders[o][1])->job, 0), 0);
                }
                rig_poll(&s.stage.rig);
                assert_int_equal(result_of(&s, orders[o][0]), FAILED);
                assert_int_equal(result_of(&s, orders[o][1]), first == FAILED ? FAILED : CANCELLED);
                assert_int_equal(result_of(&s, orders[o][2]),
                                 second == FAILED ? FAILED : CANCELLED);
                for (unsigned i = 0; i < JOBS; i++) {
                    assert_int_equal(nth(&s, i)->settled, 1);
                    assert_int_equal(
                        actor_events(&s.stage, nth(&s, i)->job.id, BLKREPL_EVENT_JOB_DONE), 1);
                }
                scene_close(&s);
            }
        }
    }
}

/* One that is done before it sees the cancel: none is done. */
static void group_that_is_given_up_has_no_job_that_is_done(void **state)
{
    struct scene s;

    (void)state;
    for (int way = 0; way < 4; way++) {
        scene_open(&s, 0, NULL);
        for (unsigned i = 0; i < JOBS; i++) {
            nth(&s, i)->end = DONE;
            nth(&s, i)->at_once = way & 1 ? DONE : 0; /* inside the cancel, or later */
        }
        give_up(&s, nth(&s, 1), way & 2 ? GROUP_IS_CANCELLED : IS_CANCELLED);
        for (unsigned i = 0; i < JOBS; i++) {
            actor_step(nth(&s, i));
        }
        expect_results(&s, CANCELLED, CANCELLED, CANCELLED);
        scene_close(&s);
    }
}

static void group_job_ends_by_its_own_way_after_a_cancel(void **state)
{
    struct scene s;

    (void)state;
    scene_open(&s, 0, NULL);
    nth(&s, 2)->stubborn = true;
    actor_end(nth(&s, 0), FAILED);
    assert_int_equal(result_of(&s, 1), CANCELLED);
    assert_int_equal(state_of(&s, 2), BLKREPL_JOB_RUNNING);
    assert_int_equal(actor_info(nth(&s, 2)).flags, BLKREPL_JOB_FLAG_CANCELLING);
    assert_int_equal(blkrepl_group_cancel(s.group, 0), 0); /* again */
    assert_int_equal(nth(&s, 2)->cancelled, 1);
    actor_end(nth(&s, 2), FAILED);
    expect_results(&s, FAILED, CANCELLED, FAILED);
    scene_close(&s);
}

/* ---- What goes while a group is walked ----------------------------------------------------- */

/* Free the handles of `mask`, bit JOBS being the group's. */
static void free_some(struct scene *s, unsigned mask)
{
    for (unsigned i = 0; i < JOBS; i++) {
        if (mask >> i & 1) {
            blkrepl_job_free(&nth(s, i)->job);
        }
    }
    if (mask >> JOBS & 1) {
        blkrepl_group_free(s->group);
    }
}

/* The end of all, in steps; what was freed before step `moment` does not matter. */
static void play(struct scene *s, enum giving_up way, unsigned moment, unsigned mask)
{
    unsigned now = 0;

    scene_create(s, 0, NULL);
    nth(s, 2)->at_once = way == WAYS ? 0 : (uint32_t)CANCELLED;
    assert_int_equal(blkrepl_group_start(s->group), 0);
    for (unsigned i = 0; i < JOBS - 1; i++) {
        if (now++ == moment) {
            free_some(s, mask);
        }
        actor_end(nth(s, i), DONE);
    }
    if (now++ == moment) {
        free_some(s, mask);
    }
    actor_end(nth(s, 2), way == WAYS ? (uint32_t)DONE : way == FAILS ? (uint32_t)FAILED : 0);
    if (way == IS_CANCELLED && !(moment < now && mask & 1)) {
        blkrepl_job_cancel(&nth(s, 0)->job, 0);
    } else if (way == GROUP_IS_CANCELLED && !(moment < now && mask >> JOBS & 1)) {
        blkrepl_group_cancel(s->group, 0);
    }
    if (now++ == moment) {
        free_some(s, mask);
    }
    free_some(s, ~mask & ((2u << JOBS) - 1));
    stage_close(&s->stage);
}

static void group_and_jobs_may_be_freed_at_any_moment(void **state)
{
    struct scene s;

    (void)state;
    for (enum giving_up way = FAILS; way <= WAYS; way++) {
        for (unsigned moment = 0; moment <= JOBS; moment++) {
            for (unsigned mask = 0; mask < 2u << JOBS; mask++) {
                uint32_t result = way == WAYS ? DONE : CANCELLED;

                play(&s, way, moment, mask);
                for (unsigned i = 0; i < JOBS; i++) {
                    assert_int_equal(s.stage.actors[i].settled_as,
                                     way == FAILS && i == 2 ? (uint32_t)FAILED : result);
                }
            }
        }
    }
}

/* Handles that a callback frees: whose, at which event. */
static struct {
    uint32_t type;
    unsigned at;
    unsigned mask;
} sink_plan;

static void freeing_sink(void *user, const blkrepl_event *event)
{
    struct scene *s = CONTAINER_OF(user, struct scene, stage.rig);

    s->stage.rig.event_count++;
    if (event->type == sink_plan.type && event->user == &s->stage.actors[sink_plan.at]) {
        unsigned mask = sink_plan.mask;

        sink_plan.mask = 0;
        free_some(s, mask);
    }
}

static void group_and_jobs_may_be_freed_inside_callbacks(void **state)
{
    static const uint32_t types[] = {BLKREPL_EVENT_JOB_STATE, BLKREPL_EVENT_JOB_ERROR,
                                     BLKREPL_EVENT_JOB_DONE};
    const unsigned all = (2u << JOBS) - 1;
    struct scene s;

    (void)state;
    for (unsigned n = 0; n < ARRAY_COUNT(types) * JOBS * 2 * (all + 1); n++) {
        unsigned mask = n % (all + 1);
        bool fails = n / (all + 1) % 2;

        scene_create(&s, 0, NULL);
        s.stage.rig.ctx->sink.fn = freeing_sink;
        sink_plan.at = n / (all + 1) / 2 % JOBS;
        sink_plan.type = types[n / (all + 1) / 2 / JOBS];
        sink_plan.mask = mask;
        assert_int_equal(blkrepl_group_start(s.group), 0);
        for (unsigned i = 0; i < JOBS; i++) {
            nth(&s, i)->end = fails && i == 1 ? FAILED : DONE;
        }
        rig_poll(&s.stage.rig);
        free_some(&s, sink_plan.mask != 0 || mask == 0 ? all : ~mask & all);
        stage_close(&s.stage);
        assert_int_equal(s.stage.actors[0].settled_as, fails ? CANCELLED : DONE);
    }
}

/* ---- The context is freed ------------------------------------------------------------------ */

static void group_handle_keeps_its_context(void **state)
{
    struct scene s;
    blkrepl_group *group;
    struct actor *d;

    (void)state;
    scene_create(&s, 0, NULL);
    d = stage_job(&s.stage, 3, 0);
    free_some(&s, (1u << JOBS) - 1);
    assert_int_equal(blkrepl_group_add(s.group, &d->job), 0);
    assert_int_equal(blkrepl_context_free(s.stage.rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(),
                        "context: 0 image, 0 bitmap, 1 job and 1 group handles are open");
    assert_int_equal(actor_info(d).result, CANCELLED);
    assert_int_equal(blkrepl_group_start(s.group), -ESHUTDOWN);
    assert_int_equal(blkrepl_group_add(s.group, &d->job), -ESHUTDOWN);
    assert_int_equal(blkrepl_group_cancel(s.group, 0), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_group_create(s.stage.rig.ctx, 0, &group), -ESHUTDOWN);
    assert_null(group);
    blkrepl_job_free(&d->job);
    assert_int_equal(blkrepl_context_free(s.stage.rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(),
                        "context: 0 image, 0 bitmap, 0 job and 1 group handles are open");
    blkrepl_group_free(s.group);
    stage_close(&s.stage);
}

/* Nobody has a handle; the first that is told takes all others with it. */
static void group_without_handles_is_gone_with_its_context(void **state)
{
    static const uint32_t flags[JOBS] = {0, BLKREPL_JOB_MANUAL_FINALIZE,
                                         BLKREPL_JOB_MANUAL_DISMISS};
    struct scene s;

    (void)state;
    for (unsigned pending = 0; pending <= JOBS; pending++) {
        scene_open(&s, 0, flags);
        for (unsigned i = 0; i < pending; i++) {
            actor_end(nth(&s, i), DONE);
        }
        free_some(&s, (2u << JOBS) - 1);
        stage_close(&s.stage);
        for (unsigned i = 0; i < JOBS; i++) {
            assert_int_equal(s.stage.actors[i].settled_as, CANCELLED);
        }
    }
}

/* ---- Whatever a host does ------------------------------------------------------------------ */

struct chaos {
    struct scene s; /* its group is groups[0] */
    struct rng rng;
    blkrepl_group *groups[2];
    uint32_t group_flags[2];
    unsigned members[2];      /* of the started group, a bit each */
    unsigned handles[ACTORS]; /* how many there are */
    uint32_t flags[ACTORS];
};

static void chaos_group(struct chaos *c)
{
    unsigned g = (unsigned)rng_below(&c->rng, 2);
    unsigned n = (unsigned)rng_below(&c->rng, ACTORS);

    if (c->groups[g] == NULL) {
        return;
    }
    switch (rng_below(&c->rng, 12)) {
    case 0:
        blkrepl_group_free(c->groups[g]);
        c->groups[g] = NULL;
        break;
    case 1: blkrepl_group_cancel(c->groups[g], 0); break;
    case 2:
    case 3:
    case 4:
        if (blkrepl_group_start(c->groups[g]) == 0) {
            for (unsigned i = 0; i < ACTORS; i++) {
                struct actor *a = nth(&c->s, i);

                c->members[g] |= !a->gone && a->job.group == c->groups[g] ? 1u << i : 0;
            }
        }
        break;
    default:
        if (c->handles[n] > 0) {
            blkrepl_group_add(c->groups[g], &nth(&c->s, n)->job);
        }
    }
}

static void chaos_verb(struct chaos *c, struct actor *a)
{
    switch (rng_below(&c->rng, 9)) {
    case 0: blkrepl_job_start(&a->job); break;
    case 1: blkrepl_job_pause(&a->job); break;
    case 2:
    case 3: blkrepl_job_resume(&a->job); break;
    case 4:
        if (rng_below(&c->rng, 6) == 0) {
            blkrepl_job_cancel(&a->job, 0);
        }
        break;
    case 5: blkrepl_job_complete(&a->job); break;
    case 6: blkrepl_job_finalize(&a->job); break;
    case 7: blkrepl_job_dismiss(&a->job); break;
    default: actor_info(a);
    }
}

/* What the job itself does, and who knows it. */
static void chaos_job(struct chaos *c, unsigned n)
{
    struct actor *a = nth(&c->s, n);
    char name[3] = {(char)('a' + n), '0', '\0'};
    blkrepl_job *handle;
    bool runs = a->job.state == BLKREPL_JOB_RUNNING;

    switch (rng_below(&c->rng, 8)) {
    case 0: c->handles[n] += blkrepl_job_find(c->s.stage.rig.ctx, name, &handle) == 0; break;
    case 1:
        if (c->handles[n] > 0 && rng_below(&c->rng, 4) == 0) {
            c->handles[n]--;
            blkrepl_job_free(&a->job);
        }
        break;
    case 2:
        if (runs && rng_below(&c->rng, 2) == 0) {
            actor_error(a, -EIO, BLKREPL_SIDE_SOURCE);
            actor_error_pause(a);
        }
        break;
    case 3: a->ready = runs; break;
    case 4: a->at_once = rng_below(&c->rng, 3) == 0 ? CANCELLED : 0; break;
    case 5: a->end = rng_below(&c->rng, 8) == 0 ? FAILED : DONE; break;
    case 6: a->refuse = rng_below(&c->rng, 4) == 0 ? -EBUSY : 0; break;
    default: blkrepl__machine_wake(c->s.stage.rig.ctx, &a->job.machine);
    }
}

static void chaos_act(struct chaos *c)
{
    unsigned n = (unsigned)rng_below(&c->rng, ACTORS);
    struct actor *a = nth(&c->s, n);
    uint64_t kind = rng_below(&c->rng, 10);

    if (kind < 3) {
        chaos_group(c);
    } else if (kind < 4) {
        rig_poll(&c->s.stage.rig);
    } else if (!a->gone && kind < 7) {
        chaos_job(c, n);
    } else if (c->handles[n] > 0) {
        chaos_verb(c, a);
    }
}

/* All of a group with grouped completion are done, or none. */
static void chaos_check(const struct chaos *c)
{
    for (unsigned g = 0; g < 2; g++) {
        unsigned done = 0;

        for (unsigned i = 0; i < ACTORS; i++) {
            done |= c->s.stage.actors[i].settled_as == DONE ? 1u << i : 0;
        }
        done &= c->members[g];
        if (c->group_flags[g] == 0 && done != 0 && done != c->members[g]) {
            fail_msg("of the group %x only %x are done", c->members[g], done);
        }
    }
}

static unsigned chaos_run(uint64_t seed)
{
    struct chaos c = {.rng = {seed}};
    unsigned done = 0;

    stage_open(&c.s.stage);
    for (unsigned g = 0; g < 2; g++) {
        c.group_flags[g] = rng_below(&c.rng, 4) == 0 ? BLKREPL_GROUP_INDIVIDUAL : 0;
        assert_int_equal(blkrepl_group_create(c.s.stage.rig.ctx, c.group_flags[g], &c.groups[g]),
                         0);
    }
    for (unsigned i = 0; i < ACTORS; i++) {
        c.flags[i] = rng_below(&c.rng, 3) == 0 ? (uint32_t)rng_below(&c.rng, 4) : 0;
        stage_job(&c.s.stage, i, c.flags[i]);
        c.handles[i] = 1;
    }
    for (int i = 0; i < 80; i++) {
        chaos_act(&c);
    }
    for (unsigned i = 0; i < ACTORS; i++) {
        for (; c.handles[i] > 0; c.handles[i]--) {
            blkrepl_job_free(&nth(&c.s, i)->job);
        }
    }
    blkrepl_group_free(c.groups[0]);
    blkrepl_group_free(c.groups[1]);
    stage_close(&c.s.stage);
    chaos_check(&c);
    for (unsigned i = 0; i < ACTORS; i++) {
        done += c.s.stage.actors[i].settled_as == DONE && c.s.stage.actors[i].started != 0 &&
                ((c.members[0] | c.members[1]) >> i & 1);
    }
    return done;
}

static void groups_are_done_as_a_whole_or_not_at_all(void **state)
{
    unsigned runs = quick() ? 300 : 5000;
    unsigned done = 0;

    (void)state;
    for (unsigned seed = 1; seed <= runs; seed++) {
        done += chaos_run(seed);
    }
    assert_true(done > runs / 10); /* it is worth its while */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(group_calls_check_their_arguments),
        cmocka_unit_test(group_refuses_jobs_that_are_not_free),
        cmocka_unit_test(group_starts_all_its_jobs_at_one_instant),
        cmocka_unit_test(group_starts_none_of_its_jobs_if_one_is_refused),
        cmocka_unit_test(group_takes_kinds_that_have_nothing_to_prepare),
        cmocka_unit_test(group_starts_whoever_has_not_left_it),
        cmocka_unit_test(group_without_jobs_does_not_start),
        cmocka_unit_test(group_that_was_cancelled_before_its_start_may_be_filled_again),
        cmocka_unit_test(group_that_is_freed_before_its_start_lets_its_jobs_go),
        cmocka_unit_test(group_is_done_when_the_last_is_done),
        cmocka_unit_test(group_waits_for_one_finalize_of_any),
        cmocka_unit_test(group_of_individuals_shares_the_start_only),
        cmocka_unit_test(group_is_given_up_with_any_of_its_jobs),
        cmocka_unit_test(group_that_may_be_finalized_can_still_be_cancelled),
        cmocka_unit_test(group_that_is_given_up_twice_at_once_ends_once),
        cmocka_unit_test(group_that_is_given_up_has_no_job_that_is_done),
        cmocka_unit_test(group_job_ends_by_its_own_way_after_a_cancel),
        cmocka_unit_test(group_and_jobs_may_be_freed_at_any_moment),
        cmocka_unit_test(group_and_jobs_may_be_freed_inside_callbacks),
        cmocka_unit_test(group_handle_keeps_its_context),
        cmocka_unit_test(group_without_handles_is_gone_with_its_context),
        cmocka_unit_test(groups_are_done_as_a_whole_or_not_at_all),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
