/* SPDX-License-Identifier: MIT */
/* jobs.c - backups, which any thread may start, pause, resume, cancel or ask. */
#include "shared.h"
#include "threads.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void act_release(void *user)
{
    struct backup_run *job = user;

    atomic_fetch_add(&job->releases, 1);
}

/* What the backup is like, and what it copies: a function of the plan. */
void backup_draw(const struct plan *plan, uint32_t number, blkrepl_backup_options *options,
                 uint32_t *source, uint32_t *target)
{
    uint64_t rng = plan->seed * 31 + number;
    uint64_t cluster = UINT64_C(4096) << dice_below(&rng, 3);

    *source = (uint32_t)dice_below(&rng, plan->sources);
    *target = plan->sources + (uint32_t)dice_below(&rng, plan->disks - plan->sources);
    *options = (blkrepl_backup_options){.struct_size = sizeof *options};
    options->flags = dice_chance(&rng, 30) ? BLKREPL_BACKUP_DETECT_ZEROES : 0;
    options->cluster_bytes = cluster;
    options->chunk_bytes_max = cluster * (dice_below(&rng, 8) + 1);
    options->reserve_bytes = cluster * (dice_below(&rng, 20) + 1);
    options->workers_max = (uint32_t)dice_below(&rng, 6);
    options->on_cbw_error = dice_chance(&rng, 30) ? BLKREPL_CBW_GUEST_WRITE_FAILS : 0;
    options->cbw_timeout_ns = BLKREPL_FOREVER;
}

void job_event(void *user, const blkrepl_event *event)
{
    struct backup_run *job = event->user;

    (void)user;
    MUST(me != NULL && (me->polls_lane == event->object_id || me->polls_lane == LANE_ANY ||
                        (me->polls_lane == 0 && event->object_kind == BLKREPL_OBJECT_JOB)),
         "an event outside of a poll of its lane");
    if (event->object_kind != BLKREPL_OBJECT_JOB) {
        return;
    }
    record_note(ENTRY_EVENT, 0, (uint32_t)(job - world.jobs), event->type, event->count,
                event->error);
    MUST(!atomic_load(&job->done), "an event after JOB_DONE");
    if (event->type != BLKREPL_EVENT_JOB_DONE) {
        return;
    }
    job->result = event->error;
    if (event->error == 0) {
        uint64_t words = world.plan.disk[job->source].info.bytes / 8;

        job->content = malloc(words * 8);
        MUST(job->content != NULL, "no memory");
        for (uint64_t i = 0; i < words; i++) {
            job->content[i] =
                atomic_load_explicit(&world.disks[job->target].words[i], memory_order_relaxed);
        }
    }
    atomic_store(&job->done, true);
}

/* Whether the content of the target is not wanted any more. */
static bool target_is_free(uint32_t target)
{
    for (uint32_t i = 0; i < world.job_count; i++) {
        struct backup_run *job = &world.jobs[i];

        if (job->target == target && job->made && !job->dropped && !atomic_load(&job->done)) {
            return false;
        }
    }
    return true;
}

static bool create(struct backup_run *job, uint32_t number, bool start)
{
    struct entry *entry;
    int answer;

    job->options.user = job;
    job->options.release = act_release;
    entry = record_call(ENTRY_BACKUP, 0, number, start, 0, 0);
    job->begin = stamp();
    answer = record_answer(entry, (start ? blkrepl_backup_start : blkrepl_backup_create)(
                                      world.disks[job->source].image,
                                      world.disks[job->target].image, &job->options, &job->job));
    job->begun = stamp();
    MUST(answer == 0 || answer == -EBUSY || answer == -ENOMEM ||
             (answer == -ESHUTDOWN && atomic_load(&world.shut)),
         "a backup answered %d: %s", answer, blkrepl_error_message());
    MUST(answer == 0 || atomic_load(&job->releases) == 1, "a refused backup is not released");
    job->made = answer == 0;
    job->started = answer == 0 && start;
    return job->made;
}

/* Create one more backup; false: there are enough, or it was refused. */
bool job_create(uint64_t *rng)
{
    struct backup_run *job;
    uint32_t number;
    bool made = false;

    if (pthread_mutex_trylock(&world.verbs) != 0) {
        return false;
    }
    number = world.job_count;
    job = &world.jobs[number];
    if (number < world.plan.jobs && !atomic_load(&world.shut)) {
        backup_draw(&world.plan, number, &job->options, &job->source, &job->target);
        if (target_is_free(job->target)) {
            if (job->options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS) {
                atomic_store(&world.policy, true);
            }
            world.job_count++;
            made = create(job, number, dice_chance(rng, 70));
        }
    }
    pthread_mutex_unlock(&world.verbs);
    return made;
}

/* ---- Verbs --------------------------------------------------------------------- */

static int query(struct backup_run *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    int answer = blkrepl_job_query(job->job, &info);

    MUST(answer == 0 && info.user == job && info.bytes_done <= info.bytes_total &&
             info.state >= BLKREPL_JOB_CREATED && info.state <= BLKREPL_JOB_CONCLUDED,
         "query answered %d, state %u", answer, info.state);
    job->paused = (info.flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    return (int)(info.state << 8 | info.flags << 4 | info.result);
}

static int verb_call(struct backup_run *job, enum act verb, uint64_t speed)
{
    switch (verb) {
    case ACT_START: return blkrepl_job_start(job->job);
    case ACT_PAUSE: return blkrepl_job_pause(job->job);
    case ACT_RESUME: return blkrepl_job_resume(job->job);
    case ACT_SPEED: return blkrepl_job_set_speed(job->job, speed);
    case ACT_CANCEL: return blkrepl_job_cancel(job->job, 0);
    case ACT_QUERY: return query(job);
    case ACT_DROP: blkrepl_job_free(job->job); break;
    }
    return 0;
}

static int verb_do(struct backup_run *job, enum act verb, uint64_t speed)
{
    bool first = verb == ACT_START && !job->started;
    uint64_t before = stamp();
    struct entry *entry;
    int answer;

    job->cancelled = job->cancelled || verb == ACT_CANCEL;
    entry = record_call(ENTRY_VERB, 0, (uint32_t)(job - world.jobs), verb, speed, 0);
    answer = record_answer(entry, verb_call(job, verb, speed));
    MUST(answer == 0 || verb == ACT_QUERY || answer == BLKREPL_ERR_STATE ||
             (answer == -ESHUTDOWN && atomic_load(&world.shut)),
         "verb %d answered %d", (int)verb, answer);
    if (first && answer == 0) {
        job->begin = before;
        job->begun = stamp();
        job->started = true;
    }
    job->dropped = job->dropped || verb == ACT_DROP;
    return answer;
}

/* Whoever drops the handle of a job that is not over has not held it up. */
static void drop(struct backup_run *job)
{
    if (!atomic_load(&job->done)) {
        verb_do(job, ACT_SPEED, 0);
        verb_do(job, ACT_RESUME, 0);
    }
    verb_do(job, ACT_DROP, 0);
}

void job_verb(uint64_t *rng)
{
    static const uint8_t verbs[] = {ACT_START,  ACT_START, ACT_START, ACT_PAUSE, ACT_RESUME,
                                    ACT_RESUME, ACT_SPEED, ACT_QUERY, ACT_QUERY, ACT_CANCEL};
    struct backup_run *job;

    if (pthread_mutex_trylock(&world.verbs) != 0) {
        return;
    }
    job = world.job_count > 0 ? &world.jobs[dice_below(rng, world.job_count)] : NULL;
    if (job != NULL && job->made && !job->dropped) {
        if (dice_chance(rng, 2)) {
            drop(job);
        } else {
            verb_do(job, (enum act)verbs[dice_below(rng, 10)],
                    dice_chance(rng, 60) ? 0 : 20000 + dice_below(rng, 5000000));
        }
    }
    pthread_mutex_unlock(&world.verbs);
}

/* Let everything end; true: it has. */
bool job_wind_up(void)
{
    bool over = true;

    pthread_mutex_lock(&world.verbs);
    for (uint32_t i = 0; i < world.job_count; i++) {
        struct backup_run *job = &world.jobs[i];

        if (!job->made || job->dropped) {
            continue;
        }
        if (atomic_load(&job->done)) {
            verb_do(job, ACT_DROP, 0);
            continue;
        }
        over = false;
        verb_do(job, ACT_QUERY, 0);
        if (!job->started && !job->cancelled) {
            verb_do(job, ACT_CANCEL, 0);
        } else if (job->paused) {
            verb_do(job, ACT_RESUME, 0);
        } else {
            verb_do(job, ACT_SPEED, 0);
        }
    }
    pthread_mutex_unlock(&world.verbs);
    return over;
}
