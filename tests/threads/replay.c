/* SPDX-License-Identifier: MIT */
/* replay.c - a recorded run once more, by one thread, in the simulator's world.
 *
 * The calls of the log are made in the order in which the run's threads have entered
 * the library, with the completions between them, each call as a whole; the oracles
 * of the simulator look at every byte.  What one thread has recorded must come out
 * the same, callback by callback.
 *
 * What several threads have recorded may come out otherwise where a call of the run
 * let others in halfway, while it was in a submit or a callback: a write may have to
 * wait that did not, a callback may come a poll later.  Then the replay first lets
 * everything go on that can, and counts what still differs.  So it does with calls
 * that were inside when the context was closed.  A bracket may also have to wait for
 * another one that ends later in the log; then it is ended at the end.
 * Demanded is that everything ends, and what the oracles know.
 */
#include "replay.h"
#include "marks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

struct replay replay;

/* ---- The log ------------------------------------------------------------------------- */

static bool is_note(const struct entry *entry)
{
    return entry->kind == ENTRY_CALLBACK || entry->kind == ENTRY_EVENT;
}

void replay_enter(enum doing kind, uint32_t lane)
{
    sim.entry = (struct being){.kind = kind, .lane = lane};
}

void replay_leave(void)
{
    sim.entry = (struct being){.kind = DOING_HOST};
}

void replay_observed(enum entry_kind kind, uint32_t object, uint64_t a, uint64_t b, int answer)
{
    const struct entry *e = &replay.entries[replay.next];

    if (!replay.exact) {
        return;
    }
    EXPECT(replay.next < replay.count && e->kind == kind && e->object == object && e->a == a &&
               e->b == b && e->answer == answer,
           "entry %u: told %d of %u: %llu %llu %d; the run was told %u of %u: %llu %llu %d",
           replay.next, (int)kind, object, (ull)a, (ull)b, answer, e->kind, e->object, (ull)e->a,
           (ull)e->b, e->answer);
    replay.next++;
    replay.tally->compared++;
}

void replay_compare(const struct entry *entry, int answer)
{
    EXPECT(!replay.exact || answer == entry->answer,
           "entry %u, kind %u of %u: answered %d, in the run %d", replay.next - 1, entry->kind,
           entry->object, answer, entry->answer);
    replay.tally->compared++;
    replay.tally->differ += answer != entry->answer;
}

void replay_differs(const struct entry *entry, const char *why)
{
    EXPECT(!replay.exact, "entry %u, kind %u of %u: %s", replay.next - 1, entry->kind,
           entry->object, why);
    replay.tally->compared++;
    replay.tally->differ++;
}

/* ---- Backups ------------------------------------------------------------------------- */

static void act_release(void *user)
{
    struct backup *b = user;

    EXPECT(!sim.gone && b->release_count == 0, "a wrong release of a backup");
    b->release_count++;
}

/* Of a query that is in the log, so that it does not disturb an exact replay. */
static int query(struct backup *b)
{
    blkrepl_job_info info = backup_query(b);

    return (int)(info.state << 8 | info.flags << 4 | info.result);
}

static int create(struct backup *b, bool start)
{
    uint32_t requests = sim.request_count;
    bool idle = b->source->in_flight < b->source->info.queue_depth;
    int answer;

    b->release_count = 0;
    if (start) {
        oracle_backup_start(b);
    }
    b->calling = true;
    answer = (start ? blkrepl_backup_start : blkrepl_backup_create)(
        b->source->image, b->target->image, &b->options, &b->job);
    b->calling = false;
    b->created = answer == 0;
    EVENT("backup %n of disk %n to disk %n, started %n: %r", (ull)(b - sim.backups),
          b->source->index, b->target->index, start, NEGATED(answer));
    if (answer != 0) {
        b->started = false;
        EXPECT(b->release_count == 1, "a refused backup: %u releases", b->release_count);
        EXPECT(answer == -EBUSY || answer == -ENOMEM || (answer == -ESHUTDOWN && sim.shutdown),
               "a backup answered %d", answer);
    } else if (start) {
        oracle_backup_started(b, requests, idle);
        b->state_changes++;
    }
    if (answer == 0 && !replay.exact) {
        b->job_id = backup_query(b).id;
    }
    return answer;
}

static void backup(const struct entry *entry)
{
    struct backup *b = &sim.backups[entry->object];
    uint32_t source;
    uint32_t target;
    int answer;

    memset(b, 0, sizeof *b);
    sim.backup_count = entry->object + 1;
    backup_draw(replay.plan, entry->object, &b->options, &source, &target);
    b->source = &sim.disks[source];
    b->target = &sim.disks[target];
    b->options.user = b;
    b->options.release = act_release;
    b->unsure = true; /* what the host has asked for is not followed here */
    if (!replay.exact && entry->answer != 0) {
        b->release_count = 1;
        return; /* the job before it is over at another time */
    }
    answer = create(b, entry->a != 0);
    for (int i = 0; i < 1000 && answer != 0 && entry->answer == 0 && !replay.exact; i++) {
        replay_move();
        answer = create(b, entry->a != 0);
    }
    replay_compare(entry, answer);
}

static int job_start(struct backup *b)
{
    uint32_t requests = sim.request_count;
    bool idle = b->source->in_flight < b->source->info.queue_depth;
    int answer;

    if (b->started || b->cancel_asked || sim.shutdown) {
        return blkrepl_job_start(b->job);
    }
    oracle_backup_start(b);
    answer = blkrepl_job_start(b->job);
    oracle_backup_started(b, requests, idle);
    b->started = answer == 0;
    b->state_changes += answer == 0;
    return answer;
}

static int act_drop(struct backup *b)
{
    blkrepl_job *job = b->job;

    b->job = NULL;
    b->freed = true;
    blkrepl_job_free(job);
    return 0;
}

static int verb_call(struct backup *b, const struct entry *entry)
{
    switch ((enum act)entry->a) {
    case ACT_START: return job_start(b);
    case ACT_PAUSE: return blkrepl_job_pause(b->job);
    case ACT_RESUME: return blkrepl_job_resume(b->job);
    case ACT_SPEED: return blkrepl_job_set_speed(b->job, entry->b);
    case ACT_CANCEL: b->cancel_asked = true; return blkrepl_job_cancel(b->job, 0);
    case ACT_QUERY: return query(b);
    case ACT_DROP: return act_drop(b);
    }
    return 0;
}

static void verb(const struct entry *entry)
{
    struct backup *b = &sim.backups[entry->object];
    bool was_asked = b->cancel_asked;
    int answer;

    if (b->job == NULL) {
        replay_differs(entry, "there is no such job");
        return;
    }
    EVENT("backup %n: verb %n", entry->object, entry->a);
    answer = verb_call(b, entry);
    if (entry->a == ACT_CANCEL && answer != 0) {
        b->cancel_asked = was_asked;
    }
    EXPECT(answer == 0 || entry->a == ACT_QUERY || answer == BLKREPL_ERR_STATE ||
               (answer == -ESHUTDOWN && sim.shutdown),
           "verb %llu answered %d", (ull)entry->a, answer);
    replay_compare(entry, answer);
}

static void on_event(void *user, const blkrepl_event *event)
{
    struct backup *b = event->user;

    (void)user;
    if (event->object_kind != BLKREPL_OBJECT_JOB) {
        return;
    }
    EVENT("event %e of %k %n: %r", event->type, event->object_kind, event->object_id,
          NEGATED(event->error));
    replay_observed(ENTRY_EVENT, (uint32_t)(b - sim.backups), event->type, event->count,
                    event->error);
    if (!replay.exact) {
        struct being outer = lanes_enter(DOING_HOST, 0);

        sim.callback_depth++;
        backup_event(event);
        sim.callback_depth--;
        sim.entry = outer;
    } else if (event->type == BLKREPL_EVENT_JOB_DONE) {
        b->done = true;
        sim.counts.backups_done += event->error == 0;
        if (event->error == 0) {
            oracle_backup_done(b);
        }
    }
}

/* ---- Polls and the context --------------------------------------------------------------- */

static void poll_entry(const struct entry *entry)
{
    if (entry->answer < 0) {
        return; /* another thread polled: there is only one here */
    }
    if (replay.exact) {
        replay_compare(entry, lanes_poll(entry->lane));
    } else {
        lanes_poll(entry->lane);
    }
}

bool replay_move(void)
{
    bool moved = replay_complete_any();

    for (uint32_t lane = 0; lane <= replay.plan->lanes; lane++) {
        moved = lanes_poll(lane) > 0 || moved;
    }
    sim.now_ns += 1000000;
    return moved;
}

static int context_free(void)
{
    int answer;

    sim.shutdown = true;
    sim.freeing = true;
    sim.depth++;
    replay_enter(DOING_FREE, 0);
    answer = blkrepl_context_free(sim.ctx);
    replay_leave();
    sim.depth--;
    sim.freeing = false;
    EVENT("context_free: %r", NEGATED(answer));
    sim.gone = answer == 0;
    return answer;
}

static uint64_t hook_clock(void *user)
{
    (void)user;
    sim.last_now_ns = sim.now_ns;
    return sim.now_ns;
}

static void sink_release(void *user)
{
    (void)user;
    sim.sink_releases++;
}

static void failed(const char *format)
{
    (void)format;
    if (on_failure != NULL) {
        on_failure();
    }
    fflush(stdout);
    _Exit(1);
}

static void open_world(void)
{
    const struct plan *plan = replay.plan;
    blkrepl_hooks hooks = {.struct_size = sizeof hooks, .clock_ns = hook_clock};
    blkrepl_context_options options = plan->context;

    memset(&sim, 0, offsetof(struct sim, disks));
    memset(&sim.counts, 0, sizeof sim.counts);
    sim.request_count = 0;
    sim.active_count = 0;
    sim.backup_count = 0;
    sim.plan.seed = plan->seed;
    sim.polled = LANE_NONE;
    sim.unpolled = LANE_NONE;
    sim.now_ns = UINT64_C(1000000000000);
    sim.options.sources = plan->sources;
    sim.options.disks = plan->disks;
    sim.options.backups = plan->jobs;
    sim.options.context = options;
    sim.options.clock_jumps = !plan->host_clock;
    sim_on_failure = failed;
    pattern_init();
    options.hooks = &hooks;
    options.on_event = (blkrepl_event_sink){.fn = on_event, .release = sink_release};
    EXPECT(blkrepl_context_create(&options, &sim.ctx) == 0, "context: %s", blkrepl_error_message());
    for (uint32_t i = 0; i < plan->disks; i++) {
        replay_disk_open(i);
    }
    replay_marks_open();
    replay_guest_reset();
}

/* ---- The end ------------------------------------------------------------------------------- */

static void job_finish(struct backup *b)
{
    if (b->job == NULL) {
        return;
    }
    if (b->done || sim.shutdown) {
        act_drop(b);
    } else if (!b->started) {
        b->cancel_asked = true;
        blkrepl_job_cancel(b->job, 0);
    } else {
        blkrepl_job_resume(b->job);
        blkrepl_job_set_speed(b->job, 0);
    }
}

/* What the log has left open ends too. */
static void wind_up(void)
{
    uint32_t handles = 1;

    for (int i = 0; sim.pending > 0 || handles > 0; i++) {
        handles = 0;
        replay_bracket_finish();
        replay_move();
        for (uint32_t n = 0; n < sim.backup_count; n++) {
            job_finish(&sim.backups[n]);
            handles += sim.backups[n].job != NULL;
        }
        EXPECT(i < 20000, "no end: %u requests, %u jobs", sim.pending, handles);
    }
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        disk_close_handle(&sim.disks[i]);
    }
    replay_marks_free();
    for (int i = 0; context_free() != 0; i++) {
        replay_move();
        EXPECT(i < 20000, "context_free: %s", blkrepl_error_message());
    }
}

static void check_end(void)
{
    replay_guest_check();
    EXPECT(sim.sink_releases == 1, "the sink is not released");
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        EXPECT(sim.disks[i].closed && sim.disks[i].released, "disk %u is not closed", i);
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        EXPECT(sim.backups[i].release_count == 1, "backup %u: %u releases", i,
               sim.backups[i].release_count);
    }
}

/* ---- The replay ----------------------------------------------------------------------------- */

static void step(const struct entry *entry)
{
    switch ((enum entry_kind)entry->kind) {
    case ENTRY_REQUEST: replay_request(entry); break;
    case ENTRY_END: replay_end(entry); break;
    case ENTRY_WRITE_CANCEL: replay_write_cancel(entry); break;
    case ENTRY_POLL: poll_entry(entry); break;
    case ENTRY_WOKEN: lanes_poll(entry->lane); break;
    case ENTRY_WAKE: blkrepl_poll_wake(sim.ctx, entry->lane); break;
    case ENTRY_COMPLETE: replay_complete(entry); break;
    case ENTRY_BACKUP: backup(entry); break;
    case ENTRY_VERB: verb(entry); break;
    case ENTRY_MARKS: replay_marks(entry); break;
    case ENTRY_CLOSE: disk_close_handle(&sim.disks[entry->object]); break;
    case ENTRY_FREE: replay_compare(entry, context_free()); break;
    case ENTRY_CALLBACK:
    case ENTRY_EVENT:
        EXPECT(!replay.exact, "entry %u: the run was told of %u: %d", replay.next - 1,
               entry->object, entry->answer);
        break;
    case ENTRY_KINDS: break;
    }
}

/* The part of the log in which the guests are at work; what comes after is of the run's
 * own end, which depends on what was left. */
static bool is_last(const struct entry *entry)
{
    return entry->kind == ENTRY_CLOSE;
}

void replay_run(const struct plan *plan, const struct entry *entries, uint32_t count,
                struct tally *tally)
{
    replay = (struct replay){.plan = plan,
                             .entries = entries,
                             .count = count,
                             .exact = plan->one_thread,
                             .tally = tally};
    open_world();
    while (replay.next < count && !sim.gone) {
        const struct entry *entry = &entries[replay.next++];

        if (!replay.exact && is_last(entry)) {
            break;
        }
        if (!is_note(entry)) {
            sim.now_ns = entry->now_ns > sim.now_ns ? entry->now_ns : sim.now_ns;
        }
        step(entry);
        if (!replay.exact && !sim.gone) {
            replay_complete_owed();
            oracle_job_watch();
        }
    }
    if (replay.exact) {
        EXPECT(sim.gone && replay.next == count, "the run ended with entry %u, its replay with %u",
               count, replay.next);
    } else if (!sim.gone) {
        wind_up();
    }
    check_end();
    tally->replays++;
    tally->exact += replay.exact;
    tally->replayed_done += sim.counts.backups_done;
}
