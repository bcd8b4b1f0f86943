/* SPDX-License-Identifier: MIT */
/* options_job.c - what all jobs of the bench have in common: queries, verbs, the way to
 * the end, and what is given to them. */
#include "options.h"

#include "base/abi.h"

#define ROUNDS_MAX 800
#define PATIENCE 50 /* rounds, then the job is cancelled                       */

static const struct field job_info_fields[] = {
    FIELD(blkrepl_job_info, kind, FIELD_U32),
    FIELD(blkrepl_job_info, id, FIELD_U64),
    FIELD(blkrepl_job_info, bytes_total, FIELD_U64),
};
static const struct shape job_info_shape =
    SHAPE(blkrepl_job_info, BLKREPL_JOB_INFO_V1_BYTES, job_info_fields);

/* ---- Queries ----------------------------------------------------------------- */

blkrepl_job_info job_info(blkrepl_job *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    int rc = blkrepl_job_query(job, &info);

    EXPECT(rc == 0 && info.state >= BLKREPL_JOB_CREATED && info.state <= BLKREPL_JOB_CONCLUDED &&
               info.reserved0 == NULL,
           "a job to answer a query, got %d", rc);
    EXPECT(info.bytes_done <= info.bytes_total, "progress to stay below the total");
    EXPECT(info.error_count == info.source_errors + info.target_errors + info.spill_errors,
           "every error to be of one side");
    EXPECT((info.result != 0) == (info.state == BLKREPL_JOB_CONCLUDED) && (info.flags & ~63u) == 0,
           "a result when it has concluded");
    return info;
}

void job_query_any(blkrepl_job *job)
{
    blkrepl_job_info full = {.struct_size = sizeof full};
    struct packed packed = info_draw(&job_info_shape);
    int rc;

    call_begin();
    rc = blkrepl_job_query(job, packed.memory);
    call_end(rc, "job_query");
    EXPECT(rc != 0 || blkrepl_job_query(job, &full) == 0, "a query of the whole");
    info_expect(&job_info_shape, &packed, rc, &full);
    if (rc != 0) {
        bench_refused();
    }
    packed_free(&packed);
}

/* ---- Verbs -------------------------------------------------------------------- */

/* The table of job.h; whether the verb is right now. */
static bool verb_allowed(enum job_verb verb, const blkrepl_job_info *info)
{
    bool live = info->state < BLKREPL_JOB_PENDING;
    bool paused = (info->flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    bool held = paused || (info->flags & BLKREPL_JOB_FLAG_ERROR_PAUSED) != 0;
    bool cancelling = (info->flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;
    bool told = (info->flags & BLKREPL_JOB_FLAG_COMPLETING) != 0;

    switch (verb) {
    case VERB_START: return info->state == BLKREPL_JOB_CREATED && info->group_id == 0;
    case VERB_PAUSE: return live && (cancelling || !paused);
    case VERB_RESUME: return live && (cancelling || held);
    case VERB_SET_SPEED: return live;
    case VERB_CANCEL: return info->state < BLKREPL_JOB_CONCLUDED;
    case VERB_COMPLETE: return info->state == BLKREPL_JOB_READY && (cancelling || (!told && !held));
    case VERB_FINALIZE: return (info->flags & BLKREPL_JOB_FLAG_FINALIZABLE) != 0;
    case VERB_DISMISS:
    case VERB_COUNT:
    default:
        return info->state == BLKREPL_JOB_CONCLUDED &&
               (info->flags & BLKREPL_JOB_FLAG_DISMISSED) == 0;
    }
}

/* With flags that are unknown a cancel is refused first. */
static int verb_cancel(blkrepl_job *job)
{
    uint32_t flags = take_chance(20) ? (uint32_t)take_number() : take_below(2);
    int rc;

    if (flags > BLKREPL_CANCEL_FORCE) {
        rc = blkrepl_job_cancel(job, flags);
        call_end(rc, "a cancel with unknown flags");
        EXPECT(rc == -EINVAL, "flags 0x%x: -EINVAL, got %d", (unsigned)flags, rc);
        call_begin();
        flags = 0;
    }
    return blkrepl_job_cancel(job, flags);
}

static int verb_call(enum job_verb verb, blkrepl_job *job)
{
    uint64_t number;
    int rc;

    switch (verb) {
    case VERB_START: return blkrepl_job_start(job);
    case VERB_PAUSE: return blkrepl_job_pause(job);
    case VERB_RESUME: return blkrepl_job_resume(job);
    case VERB_CANCEL: return verb_cancel(job);
    case VERB_COMPLETE: return blkrepl_job_complete(job);
    case VERB_FINALIZE: return blkrepl_job_finalize(job);
    case VERB_DISMISS: return blkrepl_job_dismiss(job);
    case VERB_SET_SPEED:
    case VERB_COUNT:
    default:
        number = take_number();
        rc = blkrepl_job_set_speed(job, number);
        EXPECT(rc < 0 || job_info(job).speed_bytes_per_sec == number, "the speed that was set");
        return rc;
    }
}

int job_verb(blkrepl_job *job, enum job_verb verb, int start_code)
{
    blkrepl_job_info before = job_info(job);
    int right = verb_allowed(verb, &before) ? 0 : BLKREPL_ERR_STATE;
    int rc;

    right = right == 0 && verb == VERB_START ? start_code : right;
    call_begin();
    rc = verb_call(verb, job);
    call_end(rc, "a verb");
    EXPECT(rc == right, "verb %u in state %u with flags 0x%x: %d, got %d", (unsigned)verb,
           (unsigned)before.state, (unsigned)before.flags, right, rc);
    return rc;
}

bool job_verbs_draw(blkrepl_job *job, int start_code)
{
    bool started = false;

    for (uint32_t verbs = take_below(4); verbs > 0; verbs--) {
        enum job_verb verb = (enum job_verb)take_below(VERB_COUNT);

        started = (job_verb(job, verb, start_code) == 0 && verb == VERB_START) || started;
    }
    return started;
}

/* ---- To the end -------------------------------------------------------------- */

static void finish_queued(void)
{
    for (unsigned i = 0; i < BENCH_DISKS; i++) {
        if (bench.images[i] != NULL) {
            (void)disk_complete_all(&bench.disks[i]);
        }
    }
}

/* Give the verb that it waits for, if any. */
static void job_nudge(blkrepl_job *job, bool cancel)
{
    blkrepl_job_info info = job_info(job);

    if (cancel && verb_allowed(VERB_CANCEL, &info)) {
        (void)job_verb(job, VERB_CANCEL, 0);
    } else if (verb_allowed(VERB_COMPLETE, &info)) {
        (void)job_verb(job, VERB_COMPLETE, 0);
    } else if (verb_allowed(VERB_FINALIZE, &info)) {
        (void)job_verb(job, VERB_FINALIZE, 0);
    }
}

void job_run_to_end(blkrepl_job *job)
{
    for (int i = 0; i < ROUNDS_MAX; i++) {
        uint64_t deadline;

        finish_queued();
        deadline = bench_drain();
        if (job_info(job).state == BLKREPL_JOB_CONCLUDED) {
            return;
        }
        if (deadline != BLKREPL_FOREVER) {
            clock_now = deadline > clock_now ? deadline : clock_now;
        }
        job_nudge(job, i == PATIENCE);
    }
    EXPECT(false, "the job to come to its end");
}

void job_drop(blkrepl_job *job)
{
    blkrepl_job_info info = job_info(job);
    blkrepl_job *found = NULL;
    int rc;

    blkrepl_job_free(job);
    (void)bench_drain();
    rc = blkrepl_job_find(bench.ctx, info.name, &found);
    if (rc == 0) {
        EXPECT(job_info(found).id == info.id, "the job of this name");
        EXPECT((info.flags & BLKREPL_JOB_FLAG_DISMISSED) == 0, "a dismissed job not to be found");
        EXPECT(job_verb(found, VERB_DISMISS, 0) == 0, "a job that stays until it is dismissed");
        blkrepl_job_free(found);
        (void)bench_drain();
        rc = blkrepl_job_find(bench.ctx, info.name, &found);
    }
    EXPECT(rc == -ENOENT && found == NULL, "no job of this name any more, got %d", rc);
}

/* ---- What is given to a job ---------------------------------------------------- */

void given_bitmap_draw(struct given_bitmap *given, uint64_t bytes)
{
    uint16_t mask = take_u16();
    blkrepl_bitmap_options options = {.struct_size = sizeof options};
    int rc;

    given->bytes = take_chance(5) || bytes > 8 * KIB ? 4 * KIB : bytes;
    given->unit = UINT64_C(512) << take_below(6);
    options.bytes = given->bytes;
    options.granularity_bytes = given->unit;
    rc = blkrepl_bitmap_create(bench.ctx, &options, &given->handle);
    EXPECT(rc == 0, "a plain bitmap, got %d \"%s\"", rc, blkrepl_error_message());
    for (uint64_t i = 0; i < 16 && i * 512 < given->bytes; i++) {
        EXPECT((mask >> i & 1) == 0 || blkrepl_bitmap_set(given->handle, i * 512, 1) == 0,
               "a plain set");
    }
    for (uint64_t i = 0; i < 16 && i * 512 < given->bytes; i++) {
        given->dirty |= blkrepl_bitmap_get(given->handle, i * 512) == 1 ? 1u << i : 0;
    }
    given->loading = take_chance(5);
    given->frozen = !given->loading && take_chance(5);
    EXPECT(!given->loading || blkrepl_bitmap_load_begin(given->handle) == 0, "a plain load");
    EXPECT(!given->frozen || blkrepl_bitmap_freeze(given->handle) == 0, "a plain freeze");
}

void given_bitmap_drop(struct given_bitmap *given)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    if (given->handle == NULL) {
        return;
    }
    EXPECT(blkrepl_bitmap_query(given->handle, &info) == 0 &&
               ((info.flags & BLKREPL_BITMAP_BUSY) != 0) == given->frozen,
           "a bitmap that no job holds any more");
    EXPECT(!given->frozen || blkrepl_bitmap_abdicate(given->handle) == 0, "a plain abdicate");
    blkrepl_bitmap_free(given->handle);
    given->handle = NULL;
}

bool given_bitmap_any(const struct given_bitmap *given, uint64_t start, uint64_t bytes)
{
    for (uint64_t i = start / 512; i < 16 && i * 512 < start + bytes; i++) {
        if ((given->dirty >> i & 1) != 0) {
            return true;
        }
    }
    return false;
}

void given_bitmap_judge(const struct given_bitmap *given, uint64_t bytes, struct verdict *verdict)
{
    verdict_add_if(verdict, given->loading, BLKREPL_ERR_STATE);
    verdict_add_if(verdict, given->bytes != bytes, -EINVAL);
}

blkrepl_throttle *given_throttle_draw(void)
{
    blkrepl_throttle_options o = {.struct_size = sizeof o};
    blkrepl_throttle *throttle = NULL;

    if (take_chance(15)) {
        o.bytes_per_sec = take_number();
        o.ops_per_sec = take_chance(50) ? take_number() : 0;
        o.burst_bytes = take_chance(30) ? take_number() : 0;
        EXPECT(blkrepl_throttle_create(bench.ctx, &o, &throttle) == 0, "a plain throttle");
    }
    return throttle;
}

bool job_name_valid(const char *name)
{
    return name == NULL || (name[0] != '\0' && strlen(name) <= BLKREPL_NAME_MAX);
}

void job_user_expect_released(struct release *user, const struct packed *packed)
{
    if (user == NULL) {
        return;
    }
    if (!packed_readable(packed)) {
        EXPECT(user->count == 0, "no release that the library cannot know");
        release_run(user);
    }
    EXPECT(user->count == 1, "a user to be released once, got %u", user->count);
}
