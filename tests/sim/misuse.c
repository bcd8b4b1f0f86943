/* SPDX-License-Identifier: MIT */
/* misuse.c - a host that calls wrongly.
 *
 * Each wrong call gets the documented code and a message, and changes nothing: no
 * job is in another state, no image has more to do, nothing is called back. */
#include "sim.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

typedef unsigned long long ull;

#define HUGE_BYTES 1024

/* A struct of a newer release: larger, with something in what we do not know. */
union huge {
    blkrepl_bracket bracket;
    blkrepl_backup_options backup;
    blkrepl_context_options context;
    blkrepl_image_options image;
    blkrepl_backend_ops ops;
    blkrepl_job_info job;
    uint32_t struct_size;
    unsigned char bytes[HUGE_BYTES];
};

/* ---- What a wrong call must not change ------------------------------------------ */

struct seen {
    bool valid;
    uint64_t seq;
    uint32_t callbacks;
    uint32_t states[BACKUPS_MAX]; /* state, result and flags                     */
    uint64_t speeds[BACKUPS_MAX];
    uint32_t in_flight[DISKS_MAX];
};

static struct seen before;
static char marker[256];

static void look(struct seen *seen)
{
    *seen = (struct seen){.valid = true};
    seen->seq = sim.seq;
    seen->callbacks = sim.callbacks;
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        blkrepl_job_info info = {.struct_size = sizeof info};

        if (sim.backups[i].job != NULL) {
            blkrepl_job_query(sim.backups[i].job, &info);
        }
        info.flags &= ~(uint32_t)BLKREPL_JOB_FLAG_ERROR_PAUSED; /* comes when it comes */
        seen->states[i] = info.state << 16 | info.result << 8 | info.flags;
        seen->speeds[i] = info.speed_bytes_per_sec;
    }
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        blkrepl_image_info info = {.struct_size = sizeof info};

        if (sim.disks[i].image != NULL) {
            blkrepl_image_query(sim.disks[i].image, &info);
        }
        seen->in_flight[i] = info.requests_in_flight;
    }
    seen->valid = seen->seq == sim.seq; /* nobody has called from inside */
}

/* A wrong call comes next, without another one in between.  A failing call of
 * another kind leaves a message that must be gone afterwards. */
void wrong_call_begin(void)
{
    struct seen now;

    look(&now); /* may lead to other wrong calls, inside */
    before = now;
    blkrepl_backup_create(NULL, NULL, NULL, NULL);
    memcpy(marker, blkrepl_error_message(), strlen(blkrepl_error_message()) + 1);
}

static bool same(const struct seen *a, const struct seen *b)
{
    return a->callbacks == b->callbacks && memcmp(a->states, b->states, sizeof a->states) == 0 &&
           memcmp(a->speeds, b->speeds, sizeof a->speeds) == 0 &&
           memcmp(a->in_flight, b->in_flight, sizeof a->in_flight) == 0;
}

/* It has answered. */
void wrong_call(const char *what, int code, int answer)
{
    const char *message = blkrepl_error_message();
    struct seen after;

    EXPECT(answer == code || (answer == -ESHUTDOWN && sim.shutdown), "%s answered %d, not %d: %s",
           what, answer, code, message);
    EXPECT(message[0] != '\0' && strcmp(message, marker) != 0, "%s answered %d with the message %s",
           what, answer, message);
    look(&after);
    EXPECT(!before.valid || !after.valid || before.seq != after.seq || same(&before, &after),
           "%s changes something", what);
    before.valid = false; /* a wrong call that we are inside of cannot tell */
    sim.counts.misuses++;
}

/* ---- Completions of refused calls ----------------------------------------------- */

static uint32_t releases;

static void never(void *user, int result)
{
    (void)user;
    sim_fail("a refused call was called back with %d", result);
}

static void release(void *user)
{
    EXPECT(user == &releases, "a refused call releases something else");
    releases++;
}

static blkrepl_completion completion(void)
{
    releases = 0;
    return (blkrepl_completion){.fn = never, .user = &releases, .release = release};
}

static void released(const char *what, uint32_t count)
{
    EXPECT(releases == count, "%s: %u releases of a refused completion", what, releases);
}

/* ---- Guest I/O ------------------------------------------------------------------ */

static struct disk *any_disk(void)
{
    return &sim.disks[rng_below(sim.options.disks)];
}

/* A lane that the context has not got. */
static uint32_t no_lane(void)
{
    uint32_t first = sim.options.context.lane_count;

    switch (rng_below(4)) {
    case 0: return first;
    case 1: return first + 1 + (uint32_t)rng_below(UINT32_MAX - first);
    case 2: return 256;
    default: return UINT32_MAX;
    }
}

static uint64_t beyond(const struct disk *disk)
{
    switch (rng_below(4)) {
    case 0: return disk->bytes + 1 + rng_below(5000);
    case 1: return UINT64_MAX - rng_below(3);
    case 2: return (UINT64_C(1) << 63) - 1 + rng_below(3);
    default: return disk->bytes + 1;
    }
}

/* A range that does not lie inside. */
static void wrong_range(const struct disk *disk, uint64_t *offset, uint64_t *bytes)
{
    *offset = rng_chance(50) ? rng_below(disk->bytes + 1) : beyond(disk);
    *bytes = *offset > disk->bytes && rng_chance(50) ? rng_below(10000) : beyond(disk);
}

static void check_io(const struct disk *disk, uint32_t op, int answer)
{
    bool may_be = is_write(op) && disk->read_only && answer == -EROFS;

    wrong_call("wrong guest I/O", may_be ? -EROFS : -EINVAL, answer);
    released("wrong guest I/O", 1);
}

static void wrong_extent_io(void)
{
    struct disk *disk = any_disk();
    blkrepl_completion done = completion();
    uint32_t op = (uint32_t)rng_between(BLKREPL_OP_ZEROES, BLKREPL_OP_STATUS);
    bool wrong_lane = op == BLKREPL_OP_FLUSH || rng_chance(20);
    uint32_t lane = wrong_lane ? no_lane() : lanes_draw();
    uint32_t flags = rng_chance(20) ? UINT32_C(1) << rng_between(3, 31) : 0;
    blkrepl_extent extents[2];
    uint64_t offset = 0;
    uint64_t bytes = 0;
    int answer;

    if (op == BLKREPL_OP_FLUSH || op == BLKREPL_OP_STATUS) {
        flags = 0; /* they have none */
    }
    if ((!wrong_lane && flags == 0) || rng_chance(30)) {
        wrong_range(disk, &offset, &bytes);
    }
    switch (op) {
    case BLKREPL_OP_ZEROES:
        answer = blkrepl_image_write_zeroes(disk->image, lane, offset, bytes, flags, &done);
        break;
    case BLKREPL_OP_DISCARD:
        answer = blkrepl_image_discard(disk->image, lane, offset, bytes, flags, &done);
        break;
    case BLKREPL_OP_FLUSH: answer = blkrepl_image_flush(disk->image, lane, &done); break;
    default:
        answer = rng_chance(30)
                     ? blkrepl_image_status(disk->image, 0, 0, 0, rng_chance(50) ? NULL : extents,
                                            0, &done)
                     : blkrepl_image_status(disk->image, lane, offset, bytes, extents, 2, &done);
        break;
    }
    check_io(disk, op, answer);
}

static void wrong_data_io(void)
{
    struct disk *disk = any_disk();
    blkrepl_completion done = completion();
    bool write = rng_chance(50);
    blkrepl_iovec iov[2] = {{.base = sim.arena, .len = 1}, {.base = sim.arena, .len = 1}};
    const blkrepl_iovec *list = iov;
    uint32_t lane = lanes_draw();
    uint32_t flags = 0;
    uint64_t offset = disk->bytes > 2 ? rng_below(disk->bytes - 2) : 0;
    uint32_t count = 2;

    switch (rng_below(8)) {
    case 0: lane = no_lane(); break;
    case 1: flags = UINT32_C(1) << rng_between(1, 31); break;
    case 2: list = NULL; break;
    case 3: iov[rng_below(2)].base = NULL; break;
    case 4: iov[0].len = SIZE_MAX - rng_below(2); break;
    case 5: iov[0].len = iov[1].len = SIZE_MAX / 2 + 1; break;
    case 6:
        offset = beyond(disk);
        count = (uint32_t)rng_below(3);
        break;
    default: iov[1].len = disk->bytes - offset; break;
    }
    check_io(disk, write ? BLKREPL_OP_WRITE : BLKREPL_OP_READ,
             (write ? blkrepl_image_write : blkrepl_image_read)(disk->image, lane, offset, list,
                                                                count, flags, &done));
}

/* ---- Brackets ------------------------------------------------------------------- */

/* Sizes that no release ever had, or one with unknown contents. */
static int wrong_size(uint32_t *struct_size, union huge *huge, size_t known)
{
    if (rng_chance(50)) {
        *struct_size = rng_chance(50) ? 0 : (uint32_t)rng_below(known);
        return -EINVAL;
    }
    *struct_size = (uint32_t)rng_between(known + 1, HUGE_BYTES);
    huge->bytes[rng_between(known, *struct_size - 1)] = 1;
    return BLKREPL_ERR_VERSION;
}

static int break_bracket(const struct disk *disk, union huge *huge)
{
    blkrepl_bracket *what = &huge->bracket;

    switch (rng_below(6)) {
    case 0: return wrong_size(&what->struct_size, huge, sizeof *what);
    case 1: what->opcode = rng_chance(50) ? BLKREPL_OP_READ : (uint32_t)rng_between(6, 40); break;
    case 2: what->flags = UINT32_C(1) << (rng_chance(30) ? 2 : rng_between(3, 31)); break;
    case 3: what->lane = no_lane(); break;
    case 4:
        what->opcode = rng_chance(30) ? BLKREPL_OP_FLUSH : what->opcode;
        wrong_range(disk, &what->offset, &what->bytes);
        break;
    default:
        if (disk->align > 1 && disk->bytes > disk->align) {
            what->offset = rng_between(1, disk->align - 1);
        } else {
            what->opcode = 0;
        }
        break;
    }
    return -EINVAL;
}

static void wrong_begin(void)
{
    struct disk *disk = any_disk();
    union huge huge = {
        .bracket = {.struct_size = sizeof huge.bracket,
                    .opcode = (uint32_t)rng_between(BLKREPL_OP_WRITE, BLKREPL_OP_DISCARD)}};
    blkrepl_completion go = completion();
    uint32_t gone = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    int code = gone > 0 ? -EINVAL : break_bracket(disk, &huge);
    uint64_t token = 1;
    int answer;

    code = disk->image == NULL ? -EINVAL : code;
    go.fn = gone == 4 ? NULL : go.fn;
    answer = blkrepl_write_begin(disk->image, gone == 1 ? NULL : &huge.bracket,
                                 gone == 2 ? NULL : &go, gone == 3 ? NULL : &token);
    if (answer == -EROFS && disk->read_only) {
        code = -EROFS;
    }
    wrong_call("wrong write_begin", code, answer);
    released("wrong write_begin", gone == 2 ? 0 : 1);
    EXPECT(gone == 3 || token == 0, "a refused write_begin leaves a token");
}

/* A token that is no bracket's, or not that of one that has its GO. */
static uint64_t wrong_token(bool end)
{
    for (uint32_t tries = 0; tries < 4 && sim.request_count > 0; tries++) {
        const struct request *r = &sim.requests[rng_below(sim.request_count)];

        if (r->bracket && r->accepted && r->token != 0 &&
            (r->state == REQUEST_OVER || (end && r->state == REQUEST_PENDING))) {
            return r->token;
        }
    }
    return rng_chance(30) ? 0 : rng_next() | UINT64_C(1) << 62;
}

static void wrong_end(void)
{
    blkrepl_completion done = completion();
    uint64_t token = wrong_token(true);

    switch (rng_below(4)) {
    case 0:
        wrong_call("write_end with a byte count", -EINVAL,
                   blkrepl_write_end(sim.ctx, token, 512, NULL, 0, &done));
        break;
    case 1:
        wrong_call("write_end without a context", -EINVAL,
                   blkrepl_write_end(NULL, token, 0, NULL, 0, &done));
        break;
    default:
        wrong_call("write_end of a wrong token", -ENOENT,
                   blkrepl_write_end(sim.ctx, token, rng_chance(50) ? 0 : -EIO, NULL, 0, &done));
        break;
    }
    released("wrong write_end", 1);
}

static void wrong_write_cancel(void)
{
    bool none = rng_chance(20);
    uint64_t token = wrong_token(false);

    wrong_call("write_cancel of a wrong token", none ? -EINVAL : -ENOENT,
               blkrepl_write_cancel(none ? NULL : sim.ctx, token));
}

/* ---- Jobs ----------------------------------------------------------------------- */

static void wrong_new_verb(void)
{
    blkrepl_job *job = NULL;

    switch (rng_below(7)) {
    case 0: wrong_call("complete of NULL", -EINVAL, blkrepl_job_complete(NULL)); break;
    case 1: wrong_call("finalize of NULL", -EINVAL, blkrepl_job_finalize(NULL)); break;
    case 2: wrong_call("dismiss of NULL", -EINVAL, blkrepl_job_dismiss(NULL)); break;
    case 3: wrong_call("find of NULL", -EINVAL, blkrepl_job_find(sim.ctx, NULL, &job)); break;
    case 4: wrong_call("find of nobody", -ENOENT, blkrepl_job_find(sim.ctx, "nobody", &job)); break;
    case 5: wrong_call("next into NULL", -EINVAL, blkrepl_job_next(sim.ctx, 0, NULL)); break;
    default:
        wrong_call("next of the last", -ENOENT, blkrepl_job_next(sim.ctx, UINT64_MAX, &job));
        break;
    }
    EXPECT(job == NULL, "a refused call gives a handle");
}

static void wrong_verb(void)
{
    struct backup *b = sim.backup_count > 0 ? &sim.backups[rng_below(sim.backup_count)] : NULL;
    blkrepl_job *job = b != NULL ? b->job : NULL;
    blkrepl_job_info info = {.struct_size =
                                 (uint32_t)rng_below(offsetof(blkrepl_job_info, offloaded_bytes))};

    if (sim.options.jobs_percent > 0 && rng_chance(40)) {
        wrong_new_verb();
        return;
    }
    switch (rng_below(8)) {
    case 0: wrong_call("start of NULL", -EINVAL, blkrepl_job_start(NULL)); break;
    case 1: wrong_call("pause of NULL", -EINVAL, blkrepl_job_pause(NULL)); break;
    case 2: wrong_call("resume of NULL", -EINVAL, blkrepl_job_resume(NULL)); break;
    case 3: wrong_call("set_speed of NULL", -EINVAL, blkrepl_job_set_speed(NULL, 1)); break;
    case 4:
        wrong_call("cancel with unknown flags", -EINVAL,
                   blkrepl_job_cancel(job, UINT32_C(1) << rng_between(1, 31)));
        break;
    case 5: wrong_call("query into nothing", -EINVAL, blkrepl_job_query(job, NULL)); break;
    case 6: wrong_call("query of an unknown size", -EINVAL, blkrepl_job_query(job, &info)); break;
    default:
        if (job != NULL && b->started && !b->starting) {
            wrong_call("a second start", BLKREPL_ERR_STATE, blkrepl_job_start(job));
        }
        break;
    }
}

/* A host of a newer release asks: what we do not know is zero. */
static void newer_query(void)
{
    struct backup *b = sim.backup_count > 0 ? &sim.backups[rng_below(sim.backup_count)] : NULL;
    union huge huge;
    bool clean = true;
    int answer;

    if (b == NULL || b->job == NULL) {
        return;
    }
    memset(&huge, 0x77, sizeof huge);
    huge.struct_size = (uint32_t)rng_between(sizeof huge.job, HUGE_BYTES);
    answer = blkrepl_job_query(b->job, &huge.job);
    for (size_t i = sizeof huge.job; i < huge.struct_size; i++) {
        clean = clean && huge.bytes[i] == 0;
    }
    for (size_t i = huge.struct_size; i < HUGE_BYTES; i++) {
        clean = clean && huge.bytes[i] == 0x77;
    }
    EXPECT(answer == 0 && huge.struct_size >= sizeof huge.job && clean,
           "a query of a newer host answered %d, the rest is zero: %d", answer, clean);
}

static char long_name[BLKREPL_NAME_MAX + 2];

/* What there is no bitmap for, and what there is not at all. */
static void break_policies(blkrepl_backup_options *o)
{
    switch (rng_below(6)) {
    case 0: o->sync = (uint32_t)rng_between(2, 3); break;
    case 1: o->sync = rng_chance(50) ? 5 : UINT32_MAX; break;
    case 2: o->on_source_error = rng_chance(50) ? 5 : UINT32_MAX; break;
    case 3: o->on_target_error = rng_chance(50) ? 5 : UINT32_MAX; break;
    case 4: o->job_flags = UINT32_C(1) << rng_between(2, 31); break;
    default: o->bitmap_mode = rng_chance(50) ? 4 : UINT32_MAX; break;
    }
}

/* Break one of the options. */
static int break_backup(union huge *huge)
{
    static const uint64_t clusters[] = {1, 2048, 4095, 4097, 12288, 1u << 25, UINT64_C(1) << 63};
    blkrepl_backup_options *o = &huge->backup;
    int code;

    switch (rng_below(10)) {
    case 0:
        code = wrong_size(&o->struct_size, huge, sizeof *o);
        if (code == -EINVAL) { /* the first releases had fewer options */
            o->struct_size %= (uint32_t)offsetof(blkrepl_backup_options, on_source_error);
        }
        return code;
    case 1: o->flags = UINT32_C(1) << rng_between(3, 31); break;
    case 2: o->cluster_bytes = clusters[rng_below(7)]; break;
    case 3: o->workers_max = rng_chance(30) ? 1025 : rng_chance(50) ? UINT32_MAX : 1u << 31; break;
    case 4: o->chunk_bytes_max = rng_chance(50) ? (1u << 30) + 1 : UINT64_MAX; break;
    case 5: o->reserve_bytes = rng_chance(50) ? (UINT64_C(1) << 40) + 1 : UINT64_MAX; break;
    case 6: break_policies(o); break;
    case 7: o->on_cbw_error = rng_chance(50) ? 3 : UINT32_MAX; break;
    case 8:
        o->reserved0 = rng_chance(50);
        o->reserved1 = o->reserved0 != 0 ? NULL : huge;
        break;
    default:
        memset(long_name, 'x', BLKREPL_NAME_MAX + 1);
        o->name = rng_chance(50) ? "" : long_name;
        break;
    }
    return -EINVAL;
}

/* One that reads through a snapshot does without the disk when the snapshot has come to its end. */
static bool is_source_of_job(const struct disk *disk)
{
    bool found = false;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];

        found = found || (b->source == disk && b->through == NULL && b->created && b->job != NULL &&
                          backup_query(b).state != BLKREPL_JOB_CONCLUDED);
    }
    return found;
}

/* Why these images do not go together; 0: they may. */
static int images_code(const struct disk *source, const struct disk *target)
{
    if (source->image == NULL || target->image == NULL || source == target) {
        return -EINVAL;
    }
    if (target->bytes < source->bytes) {
        return -ENOSPC;
    }
    if (target->read_only) {
        return -EROFS;
    }
    return backup_hold(source) == HOLD_SURE || is_source_of_job(target) ? -EBUSY : 0;
}

/* Images that do not go together. */
static int break_images(struct disk **source, struct disk **target)
{
    int code;

    *source = any_disk();
    *target = any_disk();
    code = images_code(*source, *target);
    wrong_call_begin(); /* the queries may have led to other calls, inside */
    return code == images_code(*source, *target) ? code : 0;
}

static void wrong_create(void)
{
    struct disk *source = &sim.disks[rng_below(sim.options.sources)];
    struct disk *target = &sim.disks[rng_between(sim.options.sources, sim.options.disks - 1)];
    union huge huge = {.backup = {.struct_size = sizeof huge.backup,
                                  .cluster_bytes = 65536,
                                  .reserve_bytes = 65536,
                                  .workers_max = 1,
                                  .user = &releases,
                                  .release = release}};
    bool may_allocate = sim.may_allocate;
    bool start = rng_chance(50);
    blkrepl_job *job = (blkrepl_job *)&huge;
    bool known;
    int answer;
    int code;

    releases = 0;
    if (rng_chance(25)) {
        code = break_images(&source, &target);
    } else {
        code = break_backup(&huge);
    }
    if (code == 0) {
        return;
    }
    if ((source->image == NULL || target->image == NULL) && code != BLKREPL_ERR_VERSION) {
        code = -EINVAL;
    }
    known = huge.struct_size >= sizeof huge.backup;
    sim.may_allocate = true;
    answer = (start ? blkrepl_backup_start : blkrepl_backup_create)(source->image, target->image,
                                                                    &huge.backup, &job);
    sim.may_allocate = may_allocate;
    if ((huge.backup.name != NULL && answer == -EBUSY) ||
        ((huge.backup.name != NULL || code == -EBUSY) && answer == -ENOMEM)) {
        code = answer; /* names and jobs are looked at last */
    }
    wrong_call("wrong backup_create", code, answer);
    EXPECT(job == NULL && releases == (known ? 1u : 0u), "a wrong backup_create: %u releases",
           releases);
}

/* ---- Contexts and images -------------------------------------------------------- */

static int break_context(union huge *huge)
{
    blkrepl_context_options *o = &huge->context;
    uint32_t *limits[] = {&o->requests_max, &o->job_requests_max, &o->callbacks_max,
                          &o->completions_max, &o->copies_max};
    static blkrepl_allocator allocator = {.struct_size = sizeof allocator};
    static blkrepl_hooks hooks;

    switch (rng_below(8)) {
    case 0: return wrong_size(&o->struct_size, huge, sizeof *o);
    case 1:
        o->lane_count = rng_chance(80) ? (uint32_t)rng_between(257, UINT32_MAX) : 256;
        o->requests_max = o->lane_count == 256 ? 65536 : 0; /* with the jobs' too many */
        break;
    case 2: *limits[rng_below(5)] = rng_chance(50) ? 65537 : UINT32_MAX; break;
    case 3: o->pool_threads_max = 65; break;
    case 4: o->flags = UINT32_C(1) << rng_below(32); break;
    case 5: o->reserved0 = 1; break;
    case 6: o->allocator = &allocator; break; /* without functions */
    default:
        hooks.struct_size = rng_chance(50) ? 4 : sizeof hooks;
        hooks.flags = 1;
        o->hooks = &hooks;
        break;
    }
    return -EINVAL;
}

static void wrong_context(void)
{
    union huge huge = {.context = {.struct_size = sizeof huge.context}};
    blkrepl_context *ctx = (blkrepl_context *)&huge;
    bool none = rng_chance(10);
    bool known;
    int code = break_context(&huge);

    releases = 0;
    huge.context.on_event = (blkrepl_event_sink){.user = &releases, .release = release};
    known = huge.struct_size >= sizeof huge.context;
    wrong_call("wrong context_create", none ? -EINVAL : code,
               blkrepl_context_create(&huge.context, none ? NULL : &ctx));
    EXPECT((none || ctx == NULL) && releases == (known ? 1u : 0u),
           "a wrong context_create: %u releases", releases);
}

static int no_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    (void)info;
    return -EIO;
}

static void no_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    (void)user;
    (void)ios;
    sim_fail("submit %u of lane %u to a backend that was refused", count, lane);
}

static void wrong_open(void)
{
    union huge ops = {
        .ops = {.struct_size = sizeof ops.ops, .get_info = no_info, .submit = no_submit}};
    union huge options = {
        .image = {.struct_size = sizeof options.image, .user = &releases, .release = release}};
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    blkrepl_image *image = (blkrepl_image *)&ops;
    bool memory = rng_chance(50);
    uint64_t bytes = 512;
    int code = -EINVAL;
    bool known;
    int answer;

    releases = 0;
    memset(long_name, 'x', BLKREPL_NAME_MAX + 1);
    switch (memory ? rng_between(4, 8) : rng_below(4)) {
    case 0: code = wrong_size(&ops.struct_size, &ops, sizeof ops.ops); break;
    case 1: ops.ops.get_info = NULL; break;
    case 2: ops.ops.submit = NULL; break;
    case 3: ops.ops.flags = 1; break;
    case 4: bytes = rng_chance(50) ? UINT64_MAX : UINT64_C(1) << 63; break;
    case 5: options.image.flags = UINT32_C(1) << rng_between(1, 31); break;
    case 6: options.image.name = long_name; break;
    case 7: options.image.reserved0 = &ops; break;
    default: code = wrong_size(&options.struct_size, &options, sizeof options.image); break;
    }
    known = options.struct_size >= sizeof options.image;
    sim.may_allocate = true;
    sim.alloc_failed = false;
    answer = memory ? blkrepl_image_open_memory(sim.ctx, bytes, &options.image, &image)
                    : blkrepl_image_open(sim.ctx, &ops.ops, NULL, &options.image, &image);
    sim.may_allocate = may_allocate;
    code = answer == -ENOMEM && sim.alloc_failed ? -ENOMEM : code;
    sim.alloc_failed = sim.alloc_failed || failed;
    wrong_call("wrong open", code, answer);
    EXPECT(image == NULL && releases == (known ? 1u : 0u), "a wrong open: %u releases", releases);
}

/* ---- Polls and queries ---------------------------------------------------------- */

static void wrong_poll(void)
{
    uint32_t lane = no_lane();
    blkrepl_context *ctx = rng_chance(30) ? NULL : sim.ctx;
    struct disk *disk = any_disk();
    blkrepl_image_info info = {.struct_size = (uint32_t)rng_below(sizeof info)};
    uint64_t deadline;

    switch (rng_below(9)) {
    case 0: wrong_call("poll_arm", -EINVAL, blkrepl_poll_arm(ctx, lane, &deadline)); break;
    case 1: wrong_call("poll_arm", -EINVAL, blkrepl_poll_arm(sim.ctx, lanes_draw(), NULL)); break;
    case 7:
        wrong_call("a poll of no lane", sim.reenter_depth > 0 ? -EDEADLK : -EINVAL,
                   blkrepl_poll(sim.ctx, lane, 0));
        break;
    case 2: wrong_call("poll_fd", -EINVAL, blkrepl_poll_fd(ctx, lane)); break;
    case 3: wrong_call("poll_wake", -EINVAL, blkrepl_poll_wake(ctx, lane)); break;
    case 4: wrong_call("io_complete", -EINVAL, blkrepl_io_complete(NULL, rng_next(), 0)); break;
    case 5: wrong_call("image_query", -EINVAL, blkrepl_image_query(disk->image, NULL)); break;
    case 6: wrong_call("image_query", -EINVAL, blkrepl_image_query(disk->image, &info)); break;
    default:
        wrong_call("a poll that sleeps, with a clock of the host",
                   sim.reenter_depth > 0 ? -EDEADLK : -EINVAL,
                   blkrepl_poll(sim.ctx, lanes_draw(), rng_chance(50) ? 1 : BLKREPL_FOREVER));
        break;
    }
}

static void misuse_act(void)
{
    static void (*const acts[])(void) = {wrong_extent_io, wrong_data_io,      wrong_begin,
                                         wrong_end,       wrong_write_cancel, wrong_verb,
                                         newer_query,     wrong_create,       wrong_create,
                                         wrong_context,   wrong_open,         wrong_poll};

    if (sim.misusing) {
        return; /* what is counted is that of one wrong call */
    }
    sim.misusing = true;
    wrong_call_begin();
    acts[rng_below(sizeof acts / sizeof acts[0])]();
    sim.misusing = false;
}

static void misuse_draw(void)
{
    uint32_t weight = sim.options.misuse_percent;

    sim_actor(weight > 0 ? 1 + weight / 2 : 0, false, misuse_act);
}

const struct part misuse_part = {.draw = misuse_draw};
