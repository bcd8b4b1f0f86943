/* SPDX-License-Identifier: MIT */
/* job.c - backups, and whether what they say is true. */
#include "api.h"

static uint8_t fetched[MEDIUM_BYTES_MAX];

static void job_released(void *user)
{
    struct job *job = user;

    job->released++;
}

static uint32_t side_opcodes(const struct job *job, uint32_t side)
{
    uint32_t read = BIT(BLKREPL_OP_READ) | 1;
    uint32_t write = BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_ZEROES) | 1;

    if (side == BLKREPL_SIDE_SOURCE || job->verify) {
        return read;
    }
    return side == BLKREPL_SIDE_SPILL ? read | write : write;
}

static const struct image *side_image(const struct job *job, uint32_t side)
{
    switch (side) {
    case BLKREPL_SIDE_SOURCE: return job->source;
    case BLKREPL_SIDE_TARGET: return job->target;
    case BLKREPL_SIDE_SPILL: return job->spill;
    default: return NULL;
    }
}

/* An error as a job tells it: of an injected failure, or of a timeout. */
static bool job_error_true(const struct job *job, uint32_t side, uint64_t offset, uint64_t bytes,
                           int code)
{
    const struct image *image = side_image(job, side);

    if (!image) {
        return false;
    }
    if (image->kind == IMAGE_SNAPSHOT) {
        return image_snapshot_failure(image, offset, offset + bytes, code);
    }
    if (failure_claim_exact(image->medium, side_opcodes(job, side), offset, bytes, code)) {
        return true;
    }
    if (side == BLKREPL_SIDE_TARGET && offset == 0 && bytes == image_bytes(job->source) &&
        failure_claim_exact(image->medium, BIT(BLKREPL_OP_FLUSH), 0, 0, code)) {
        return true;
    }
    return code == -ENOMEM && image->kind == IMAGE_MEMORY
               ? fault_plan()->domain == FAULT_ALLOC && fault_fired() > 0
               : code == -ETIMEDOUT && job->timeouts;
}

/* ---- Making and starting ------------------------------------------------------------------ */

static blkrepl_backup_options job_options(struct job *job, const struct image *target,
                                          const blkrepl_backup_options *options)
{
    uint64_t whole = target->disk ? target->disk->info.cluster_bytes : 0;
    blkrepl_backup_options o = {.struct_size = sizeof o};

    if (options) {
        o = *options;
        o.struct_size = sizeof o;
    }
    o.cluster_bytes = o.cluster_bytes ? o.cluster_bytes : whole > CLUSTER ? whole : CLUSTER;
    o.chunk_bytes_max = o.chunk_bytes_max ? o.chunk_bytes_max : 2 * CLUSTER;
    o.reserve_bytes = o.reserve_bytes ? o.reserve_bytes : 4 * CLUSTER;
    o.workers_max = o.workers_max ? o.workers_max : 2;
    o.user = job;
    o.release = job_released;
    return o;
}

/* The point in time is inside the call that follows. */
void job_take_start(struct job *job)
{
    struct model *m = &job->source->model;

    job->start = realloc(job->start, (size_t)m->bytes + 1);
    REQUIRE(job->start, "this machine has no memory");
    fault_pause(true);
    image_fetch(job->source, job->start);
    fault_pause(false);
    job->pending = 0;
    for (unsigned tag = 0; tag < m->tags; tag++) {
        job->pending |= (uint64_t)m->pending[tag] << tag;
    }
}

static void job_made(struct job *job, const blkrepl_backup_options *o)
{
    struct image *source = job->source;
    blkrepl_job_info info = job_info(job);

    job->id = info.id;
    job->target->unmodelled = true;
    if (source->disk) {
        source->disk->soft_status = true;
    }
    job->none = o->sync == BLKREPL_SYNC_NONE;
    if (job->spill) {
        job->spill->unmodelled = true;
        job->spill->disk->soft_discard = true;
    }
    if (o->on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS) {
        source->policy_media |= BIT(source->medium) | BIT(job->target->medium);
        source->policy_unit =
            o->cluster_bytes > source->policy_unit ? o->cluster_bytes : source->policy_unit;
    }
    REQUIRE(info.kind == BLKREPL_KIND_BACKUP && info.user == job && info.name[0] &&
                info.result == 0 && info.error == 0,
            "job: query of a new one tells kind %u, result %u, error %d", info.kind, info.result,
            info.error);
}

/* The image whose handle the options name. */
static struct image *job_spill(struct world *w, const blkrepl_backup_options *options)
{
    struct image *found = NULL;

    for (unsigned i = 0; i < w->image_count && options && options->spill; i++) {
        found = w->images[i].handle == options->spill ? &w->images[i] : found;
    }
    return found;
}

static struct job *job_make(struct image *source, struct image *target,
                            const blkrepl_backup_options *options, bool start)
{
    struct world *w = source->world;

    REQUIRE(w->job_count < JOBS_MAX, "scenario: too many jobs");
    struct job *job = &w->jobs[w->job_count];
    blkrepl_backup_options o = job_options(job, target, options);
    *job = (struct job){
        .world = w, .source = source, .target = target, .spill = job_spill(w, options)};
    for (int attempt = 0; attempt < 2; attempt++) {
        job->released = 0;
        if (start) {
            job_take_start(job);
        }
        int rc = start ? api_backup_start(source->handle, target->handle, &o, &job->handle)
                       : api_backup_create(source->handle, target->handle, &o, &job->handle);
        if (rc == 0) {
            w->job_count++;
            job->started = start;
            job_made(job, &o);
            return job;
        }
        REQUIRE(job->released == 1, "create failed and released `user` %u times", job->released);
    }
    free(job->start);
    job->start = NULL;
    return NULL;
}

struct job *job_create(struct image *source, struct image *target,
                       const blkrepl_backup_options *options)
{
    return job_make(source, target, options, false);
}

struct job *job_create_started(struct image *source, struct image *target,
                               const blkrepl_backup_options *options)
{
    return job_make(source, target, options, true);
}

bool job_start(struct job *job)
{
    job_take_start(job);
    int rc = api_job_start(job->handle);

    REQUIRE(rc == 0, "a job that was made cannot be started: %s", api_error_message());
    job->started = true;
    return true;
}

void job_was_started(struct job *job)
{
    job->started = true;
}

struct job *job_verify(struct image *image, struct image *other,
                       const blkrepl_verify_options *options)
{
    struct world *w = image->world;
    blkrepl_verify_options o = options ? *options : (blkrepl_verify_options){.flags = 0};

    REQUIRE(w->job_count < JOBS_MAX, "scenario: too many jobs");
    struct job *job = &w->jobs[w->job_count];
    *job = (struct job){.world = w, .source = image, .target = other, .verify = true};
    o.struct_size = sizeof o;
    o.user = job;
    o.release = job_released;
    for (int attempt = 0; attempt < 2; attempt++) {
        job->released = 0;
        if (api_verify_create(image->handle, other->handle, &o, &job->handle) == 0) {
            w->job_count++;
            job->id = job_info(job).id;
            w->disks[image->medium].soft_status = w->disks[other->medium].soft_status = true;
            return job;
        }
        REQUIRE(job->released == 1, "create failed and released `user` %u times", job->released);
    }
    return NULL;
}

/* ---- Verbs ---------------------------------------------------------------------------------- */

blkrepl_job_info job_info(const struct job *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    api_job_query(job->handle, &info);
    return info;
}

bool job_concluded(const struct job *job)
{
    return job_info(job).state == BLKREPL_JOB_CONCLUDED;
}

/* Which answer a verb has to give now: a job may have failed meanwhile. */
static void job_expect(const struct job *job, uint32_t flags, uint32_t paused)
{
    blkrepl_job_info info = job_info(job);
    bool winding_up = (info.flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;

    if (info.state == BLKREPL_JOB_CONCLUDED) {
        api_must(BLKREPL_ERR_STATE);
    } else if (!winding_up && flags != 0 && (info.flags & flags) == paused) {
        api_must(BLKREPL_ERR_STATE);
    }
}

void job_pause(struct job *job)
{
    job_expect(job, BLKREPL_JOB_FLAG_PAUSED, BLKREPL_JOB_FLAG_PAUSED);
    api_job_pause(job->handle);
}

void job_resume(struct job *job)
{
    job_expect(job, BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED, 0);
    api_job_resume(job->handle);
}

void job_set_speed(struct job *job, uint64_t speed_bytes_per_sec)
{
    job_expect(job, 0, 0);
    api_job_set_speed(job->handle, speed_bytes_per_sec);
}

void job_cancel(struct job *job)
{
    job_expect(job, 0, 0);
    if (api_job_cancel(job->handle, 0) == 0) {
        job->cancelled = true;
    }
}

void job_complete(struct job *job)
{
    blkrepl_job_info info = job_info(job);
    uint32_t not =
        BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED | BLKREPL_JOB_FLAG_COMPLETING;
    bool winding_up = (info.flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;

    if (info.state != BLKREPL_JOB_READY || (!winding_up && (info.flags & not ) != 0)) {
        api_must(BLKREPL_ERR_STATE);
    }
    job->completed = true; /* what reads may be told so inside the call */
    job->completed = api_job_complete(job->handle) == 0;
}

void job_finalize(struct job *job)
{
    if ((job_info(job).flags & BLKREPL_JOB_FLAG_FINALIZABLE) == 0) {
        api_must(BLKREPL_ERR_STATE);
    }
    api_job_finalize(job->handle);
}

void job_insist(struct job *job)
{
    for (unsigned i = 0; i < 8; i++) {
        world_settle(job->world);
        if ((job_info(job).flags & BLKREPL_JOB_FLAG_ERROR_PAUSED) == 0) {
            return;
        }
        job_resume(job);
    }
    world_settle(job->world);
}

void job_free(struct job *job)
{
    blkrepl_job *handle = job->handle;

    if (!job->checked) {
        job->world->job_dropped = true;
    }
    job->handle = NULL;
    api_job_free(handle);
}

/* ---- Looking ---------------------------------------------------------------------------- */

void job_event(struct world *w, const blkrepl_event *event)
{
    struct job *job = NULL;

    for (unsigned i = 0; i < w->job_count; i++) {
        if (w->jobs[i].handle && w->jobs[i].id == event->object_id) {
            job = &w->jobs[i];
        }
    }
    REQUIRE(job && event->object_kind == BLKREPL_OBJECT_JOB && event->user == job,
            "event %u of an object that is not there", event->type);
    REQUIRE(job->done_events == 0, "event %u after JOB_DONE", event->type);
    switch (event->type) {
    case BLKREPL_EVENT_JOB_STATE: break;
    case BLKREPL_EVENT_JOB_ERROR:
        job->error_events += event->count;
        REQUIRE(job_error_true(job, event->side, event->offset, event->bytes, event->error),
                "JOB_ERROR: side %u, %llu+%llu, %d: nothing like it was injected", event->side,
                (unsigned long long)event->offset, (unsigned long long)event->bytes, event->error);
        break;
    case BLKREPL_EVENT_JOB_DONE:
        job->done_events++;
        job->done_error = event->error;
        break;
    default: torture_fail("event of unknown type %u", event->type);
    }
}

/* The target is the source as it was at the start, but for writes that were under
 * way then. */
static void job_check_copy(const struct job *job)
{
    const struct model *m = &job->source->model;

    fault_pause(true);
    image_fetch(job->target, fetched);
    fault_pause(false);
    for (uint64_t i = 0; i < m->bytes; i++) {
        bool good = fetched[i] == job->start[i];

        for (unsigned tag = 0; !good && tag < m->tags; tag++) {
            good = (job->pending >> tag & 1) != 0 && i >= m->start[tag] && i < m->end[tag] &&
                   (m->kind[tag] == MODEL_ANY || model_byte(m, i, tag) == fetched[i]);
        }
        REQUIRE(good, "a backup is done, and byte %llu is 0x%02x on the target, not 0x%02x",
                (unsigned long long)i, fetched[i], job->start[i]);
    }
}

static void job_check_message(const struct job *job, const blkrepl_job_info *info, int code)
{
    char head[128], tail[128];
    size_t length = strlen(info->message), tail_length;

    if (info->error_side == 0) {
        REQUIRE(info->message[0] == '\0', "no error, and a message: \"%s\"", info->message);
        return;
    }
    api_check_text(info->message, "job message");
    snprintf(head, sizeof head, "job \"%s\": %s ", info->name,
             info->error_side == BLKREPL_SIDE_SOURCE   ? "source"
             : info->error_side == BLKREPL_SIDE_TARGET ? "target"
                                                       : "spill");
    snprintf(tail, sizeof tail, " at %llu+%llu: %s", (unsigned long long)info->error_offset,
             (unsigned long long)info->error_bytes, code ? api_error_text(code) : "");
    tail_length = code ? strlen(tail) : 0;
    REQUIRE(strncmp(info->message, head, strlen(head)) == 0 && length > tail_length &&
                strcmp(info->message + length - tail_length, code ? tail : "") == 0,
            "the message is \"%s\", not \"%s... %s\"", info->message, head, tail);
    (void)job;
}

/* Whether another one of its group has failed, or was cancelled. */
static bool job_group_ended(const struct job *job)
{
    const struct world *w = job->world;
    bool found = false;

    for (unsigned i = 0; i < w->job_count && job->group; i++) {
        const struct job *other = &w->jobs[i];

        found = found || (other != job && other->group == job->group &&
                          (!other->handle || other->cancelled ||
                           job_info(other).result == BLKREPL_RESULT_FAILED));
    }
    return found;
}

static void job_check_result(const struct job *job, const blkrepl_job_info *info)
{
    switch (info->result) {
    case BLKREPL_RESULT_DONE:
        REQUIRE(info->error == 0 && info->bytes_done == info->bytes_total,
                "done with error %d, "
                "%llu of %llu bytes",
                info->error, (unsigned long long)info->bytes_done,
                (unsigned long long)info->bytes_total);
        if (job->verify || job->none) {
            break;
        }
        REQUIRE(!image_volatile(job->target) ||
                    durable_range(job->target->medium, 0, image_bytes(job->source)),
                "a backup is done, and the target is not durable");
        job_check_copy(job);
        break;
    case BLKREPL_RESULT_FAILED:
        REQUIRE(job_error_true(job, info->error_side, info->error_offset, info->error_bytes,
                               info->error),
                "failed: \"%s\" (%d), and nothing like it was injected", info->message,
                info->error);
        job_check_message(job, info, info->error);
        break;
    case BLKREPL_RESULT_CANCELLED:
        REQUIRE((job->cancelled || job_group_ended(job)) && info->error == -ECANCELED,
                "cancelled by nobody, or with error %d", info->error);
        break;
    default: torture_fail("concluded with result %u", info->result);
    }
    REQUIRE(info->result == BLKREPL_RESULT_DONE || info->bytes_total == 0 ||
                info->bytes_done < info->bytes_total,
            "not done, and all %llu bytes are", (unsigned long long)info->bytes_total);
}

void job_check(struct job *job)
{
    blkrepl_job_info info = job_info(job);

    REQUIRE(info.state == BLKREPL_JOB_CONCLUDED, "a job is in state %u after all has ended",
            info.state);
    REQUIRE(info.requests_in_flight == 0 && (info.flags & BLKREPL_JOB_FLAG_CANCELLING) == 0,
            "concluded with %u requests in flight", info.requests_in_flight);
    if (job->world->silent) {
        job->done_events = 1;
        job->done_error = info.error;
        job->error_events = info.error_count;
    }
    REQUIRE(job->done_events == 1 && job->done_error == info.error,
            "JOB_DONE came %u times, with %d; the query tells %d", job->done_events,
            job->done_error, info.error);
    REQUIRE(job->error_events == info.error_count,
            "%llu failures told by events, %llu by the "
            "query",
            (unsigned long long)job->error_events, (unsigned long long)info.error_count);
    REQUIRE((info.error_count > 0) == (info.error_side != 0), "%llu failures, on side %u",
            (unsigned long long)info.error_count, info.error_side);
    job_check_message(job, &info, 0);
    job_check_result(job, &info);
    if (info.result == BLKREPL_RESULT_CANCELLED) {
        /* A flush whose end nobody waited for tells nothing of the copy. */
        failure_forgive_of(job->target->medium, BLKREPL_OP_FLUSH);
    }
    REQUIRE(info.error_count == info.source_errors + info.target_errors + info.spill_errors,
            "%llu failures are not the sum of those of the sides",
            (unsigned long long)info.error_count);
    job->world->job_errors += info.error_count;
    job->checked = true;
}
