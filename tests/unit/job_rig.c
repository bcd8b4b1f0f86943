/* SPDX-License-Identifier: MIT */
#include "unit/job_rig.h"

static struct actor *actor_of(const struct blkrepl_job *job)
{
    return CONTAINER_OF(job, struct actor, job);
}

static void act(struct actor *actor, const char *what)
{
    char *acts = actor->stage->acts;
    size_t used = strlen(acts);

    snprintf(acts + used, ACTS_BYTES - used, "%s%c.%s", used > 0 ? " " : "", actor->letter, what);
}

static int actor_prepare(struct blkrepl_job *job)
{
    struct actor *actor = actor_of(job);

    if (actor->refuse < 0) {
        return blkrepl__fail(actor->refuse, "it does not want to");
    }
    actor->prepared++;
    act(actor, "prepare");
    return 0;
}

static void actor_unprepare(struct blkrepl_job *job)
{
    actor_of(job)->unprepared++;
    act(actor_of(job), "unprepare");
}

static void actor_start(struct blkrepl_job *job)
{
    struct actor *actor = actor_of(job);

    assert_int_equal(job->state, BLKREPL_JOB_RUNNING);
    actor->started++;
    act(actor, "start");
    if (actor->ready_at_once) {
        blkrepl__job_ready(job);
    }
}

static enum step actor_do_step(struct blkrepl_job *job)
{
    struct actor *actor = actor_of(job);
    uint32_t end = actor->end;

    assert_true(job->state == BLKREPL_JOB_RUNNING || job->state == BLKREPL_JOB_READY);
    actor->steps++;
    if (actor->ready) {
        actor->ready = false;
        blkrepl__job_ready(job);
        return STEP_AGAIN;
    }
    if (end == 0 && job->cancel && !actor->stubborn) {
        end = BLKREPL_RESULT_CANCELLED;
    }
    if (end == 0 || job_held(job)) {
        return STEP_WAIT;
    }
    if (end == BLKREPL_RESULT_FAILED) {
        blkrepl__job_fail(
            job, &(struct job_error){
                     .code = -EIO, .side = BLKREPL_SIDE_TARGET, .bytes = 512, .what = "write"});
    }
    blkrepl__job_finish(job, end);
    return STEP_DONE;
}

static void actor_cancelled(struct blkrepl_job *job)
{
    struct actor *actor = actor_of(job);

    assert_true(job->cancel && !job_held(job));
    actor->cancelled++;
    act(actor, "cancelled");
    if (actor->at_once != 0) {
        blkrepl__job_finish(job, actor->at_once);
    }
}

static void actor_complete(struct blkrepl_job *job)
{
    assert_true(job->complete);
    actor_of(job)->completed++;
    act(actor_of(job), "complete");
}

static void actor_resumed(struct blkrepl_job *job)
{
    assert_false(job_held(job));
    actor_of(job)->resumed++;
    act(actor_of(job), "resumed");
}

static void actor_speed_changed(struct blkrepl_job *job)
{
    actor_of(job)->speeds++;
}

static void actor_query(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    (void)job;
    info->bytes_total = 77;
}

static void actor_settle(struct blkrepl_job *job)
{
    static const char *const acts[] = {"", "settle:done", "settle:failed", "settle:cancelled"};
    struct actor *actor = actor_of(job);

    assert_int_equal(job->state, BLKREPL_JOB_CONCLUDED);
    assert_false(list_linked(&job->done_event.link)); /* the host is told later */
    actor->settled++;
    actor->settled_as = job->result;
    actor->settled_first = actor->let_go == 0;
    act(actor, acts[job->result]);
}

static void actor_let_go(struct blkrepl_job *job)
{
    assert_false(list_linked(&job->done_event.link));
    actor_of(job)->let_go++;
    act(actor_of(job), "let_go");
}

static void actor_destroy(struct blkrepl_job *job)
{
    struct actor *actor = actor_of(job);

    assert_false(list_linked(&job->state_event.link));
    assert_false(list_linked(&job->error_event.link));
    assert_false(list_linked(&job->done_event.link));
    assert_false(list_linked(&job->group_link));
    actor->destroyed++;
    actor->gone = true;
    memset(job, 0xdd, sizeof *job); /* nobody may look at it any more */
}

static const struct job_ops actor_ops = {.prepare = actor_prepare,
                                         .unprepare = actor_unprepare,
                                         .start = actor_start,
                                         .step = actor_do_step,
                                         .cancelled = actor_cancelled,
                                         .complete = actor_complete,
                                         .resumed = actor_resumed,
                                         .speed_changed = actor_speed_changed,
                                         .query = actor_query,
                                         .settle = actor_settle,
                                         .let_go = actor_let_go,
                                         .destroy = actor_destroy};

static void actor_release(void *user)
{
    struct actor *actor = user;

    assert_true(actor->gone);
    actor->released++;
    actor->events_at_release = actor->stage->rig.event_count;
}

void stage_open(struct stage *stage)
{
    memset(stage, 0, sizeof *stage);
    rig_open(&stage->rig, NULL);
}

static void actor_check(const struct actor *actor)
{
    assert_int_equal(actor->let_go, 1);
    assert_int_equal(actor->destroyed, 1);
    assert_int_equal(actor->released, 1);
    assert_int_equal(actor->settled, actor->started);
    assert_true(actor->started == 0 || actor->settled_first);
    assert_int_equal(actor->prepared, actor->unprepared + actor->started);
}

void stage_close(struct stage *stage)
{
    rig_poll(&stage->rig);
    rig_close(&stage->rig);
    for (unsigned i = 0; i < ACTORS; i++) {
        if (stage->actors[i].stage != NULL) {
            actor_check(&stage->actors[i]);
        }
    }
}

struct actor *stage_job(struct stage *stage, unsigned n, uint32_t flags)
{
    struct actor *actor = &stage->actors[n];
    char name[3] = {(char)('a' + n), '0', '\0'};

    memset(actor, 0, sizeof *actor);
    actor->stage = stage;
    actor->letter = name[0];
    actor->job.ops = &actor_ops;
    actor->job.kind = BLKREPL_KIND_BACKUP;
    blkrepl__enter(stage->rig.ctx);
    blkrepl__job_publish(&actor->job, stage->rig.ctx,
                         &(struct job_identity){.name = name,
                                                .kind_name = "kind",
                                                .user = actor,
                                                .release = actor_release,
                                                .flags = flags});
    blkrepl__leave(stage->rig.ctx, 0);
    return actor;
}

void stage_forget(struct stage *stage)
{
    rig_poll(&stage->rig);
    stage->acts[0] = '\0';
    stage->rig.event_count = 0;
}

void actor_step(struct actor *actor)
{
    struct rig *rig = &actor->stage->rig;

    if (!actor->gone) {
        blkrepl__machine_wake(rig->ctx, &actor->job.machine);
    }
    rig_poll(rig);
}

void actor_end(struct actor *actor, uint32_t result)
{
    actor->end = result;
    actor_step(actor);
}

void actor_error(struct actor *actor, int code, uint32_t side)
{
    struct blkrepl_context *ctx = actor->stage->rig.ctx;

    blkrepl__enter(ctx);
    blkrepl__job_error(
        &actor->job,
        &(struct job_error){
            .code = code, .side = side, .offset = 4096, .bytes = 512, .what = "write"});
    blkrepl__leave(ctx, 0);
}

void actor_error_pause(struct actor *actor)
{
    struct blkrepl_context *ctx = actor->stage->rig.ctx;

    blkrepl__enter(ctx);
    blkrepl__job_error_pause(&actor->job);
    blkrepl__leave(ctx, 0);
}

blkrepl_job_info actor_info(struct actor *actor)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_job_query(&actor->job, &info), 0);
    return info;
}

unsigned actor_events(const struct stage *stage, uint64_t id, uint32_t type)
{
    unsigned count = 0;

    for (unsigned i = 0; i < stage->rig.event_count; i++) {
        count += stage->rig.events[i].object_id == id && stage->rig.events[i].type == type;
    }
    return count;
}
