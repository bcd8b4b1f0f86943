/* SPDX-License-Identifier: MIT */
/* options_verify.c - verify jobs with options from the input. */
#include "options.h"

#include "base/abi.h"

#include <stdlib.h>

#define GRANULE (64 * KIB)
#define CHUNK_DEFAULT (256 * KIB)
#define BYTES_MOST (UINT64_C(1) << 54)

static const struct field verify_fields[] = {
    FIELD(blkrepl_verify_options, flags, FIELD_U32),
    FIELD(blkrepl_verify_options, speed_bytes_per_sec, FIELD_U64),
    FIELD(blkrepl_verify_options, chunk_bytes_max, FIELD_U64),
    FIELD(blkrepl_verify_options, workers_max, FIELD_U32),
    FIELD(blkrepl_verify_options, on_error, FIELD_U32),
    FIELD(blkrepl_verify_options, job_flags, FIELD_U32),
    FIELD(blkrepl_verify_options, reserved0, FIELD_U32),
};
static const struct shape verify_shape =
    SHAPE(blkrepl_verify_options, BLKREPL_VERIFY_OPTIONS_V1_BYTES, verify_fields);

struct subject {
    blkrepl_verify_options o; /* as the library must understand them           */
    struct packed packed;
    struct release *release;
    char *name;
    int image[2]; /* of enum bench_disk, or -1                                    */
    struct given_bitmap only;
    struct given_bitmap differing;
    blkrepl_throttle *throttle;
    bool start;
    bool started;
    int start_code;
    struct verdict verdict;
    blkrepl_job *job;
};

/* ---- What the header says ---------------------------------------------------- */

static bool options_valid(const blkrepl_verify_options *o)
{
    uint32_t job_flags = BLKREPL_JOB_MANUAL_FINALIZE | BLKREPL_JOB_MANUAL_DISMISS;

    return (o->flags & ~(uint32_t)BLKREPL_VERIFY_FIRST) == 0 && (o->job_flags & ~job_flags) == 0 &&
           o->reserved0 == 0 && o->on_error <= BLKREPL_ON_ERROR_ENOSPC && o->workers_max <= 256 &&
           (o->chunk_bytes_max == 0 ||
            (o->chunk_bytes_max >= GRANULE && o->chunk_bytes_max <= UINT64_C(64) << 20)) &&
           (o->only == NULL || o->only != o->differing);
}

static void judge_images(struct subject *s)
{
    uint64_t bytes = bench.disks[s->image[0]].info.bytes;
    uint64_t chunk = s->o.chunk_bytes_max != 0 ? s->o.chunk_bytes_max : CHUNK_DEFAULT;
    uint64_t workers = s->o.workers_max != 0 ? s->o.workers_max : 4;

    verdict_add_if(&s->verdict,
                   s->image[0] == s->image[1] || bench.disks[s->image[1]].info.bytes < bytes,
                   -EINVAL);
    verdict_add_if(&s->verdict, bytes > BYTES_MOST, -EFBIG);
    if (s->o.only != NULL) {
        given_bitmap_judge(&s->only, bytes, &s->verdict);
    }
    if (s->o.differing != NULL) {
        given_bitmap_judge(&s->differing, bytes, &s->verdict);
        s->start_code = s->differing.frozen ? -EBUSY : 0;
        verdict_add_if(&s->verdict, s->start && s->differing.frozen, -EBUSY);
    }
    if (options_valid(&s->o)) {
        verdict_add_if(&s->verdict,
                       2 * workers * (chunk / GRANULE * GRANULE) > bench.memory_bytes_max, -ENOMEM);
        verdict_add_if(&s->verdict, 2 * workers > bench.job_requests_max, -ENOMEM);
    }
}

static void judge(struct subject *s)
{
    verdict_add_packing(&s->verdict, &s->packed);
    verdict_add_if(&s->verdict,
                   s->image[0] < 0 || s->image[1] < 0 || !options_valid(&s->o) ||
                       !job_name_valid(s->o.name),
                   -EINVAL);
    if (s->image[0] >= 0 && s->image[1] >= 0) {
        judge_images(s);
    }
}

/* ---- Drawing ----------------------------------------------------------------- */

static void draw_images(struct subject *s)
{
    s->image[0] = BENCH_SOURCE;
    s->image[1] = BENCH_TARGET;
    if (take_chance(40)) {
        s->image[0] = (int)take_below(BENCH_DISKS + 1) - 1;
        s->image[1] = (int)take_below(BENCH_DISKS + 1) - 1;
    }
    for (int i = 0; i < 2; i++) {
        if (s->image[i] >= 0) {
            bench_image((enum bench_disk)s->image[i]);
        }
    }
    /* Else hardly ever two images are the same. */
    if (s->image[0] >= 0 && s->image[1] >= 0 && take_chance(50)) {
        memcpy(bench.disks[s->image[1]].medium, bench.disks[s->image[0]].medium, 8 * KIB);
        bench.disks[s->image[1]].medium[take_below(8 * KIB)] ^= take_u8();
    }
}

static void draw_options(struct subject *s)
{
    blkrepl_verify_options *o = &s->o;
    uint64_t bytes = s->image[0] >= 0 ? bench.disks[s->image[0]].info.bytes : 8 * KIB;

    o->workers_max = 1;
    o->chunk_bytes_max = GRANULE + take_below(2) * 100;
    o->flags = take_below(2);
    o->on_error = take_below(5);
    o->job_flags = take_below(4);
    if (take_chance(40)) {
        shape_draw(&verify_shape, o);
    }
    s->name = take_chance(40) ? name_draw() : NULL;
    s->release = release_new();
    if (take_chance(30)) {
        given_bitmap_draw(&s->only, bytes);
    }
    if (take_chance(50)) {
        given_bitmap_draw(&s->differing, bytes);
    }
    s->throttle = given_throttle_draw();
    o->name = s->name;
    o->user = s->release;
    o->release = s->release != NULL ? release_run : NULL;
    o->only = s->only.handle;
    o->differing = take_chance(3) ? s->only.handle : s->differing.handle;
    o->throttle = s->throttle;
    s->packed = shape_pack(&verify_shape, o, true);
    shape_cut(&verify_shape, o, &s->packed);
}

/* ---- To the end -------------------------------------------------------------- */

static bool differs(const struct subject *s, uint64_t start, uint64_t end)
{
    return memcmp(bench.disks[s->image[0]].medium + start, bench.disks[s->image[1]].medium + start,
                  (size_t)(end - start)) != 0;
}

/* Exactly what differs was found; the disks are smaller than a chunk. */
static void expect_found(const struct subject *s, uint64_t found)
{
    uint64_t bytes = bench.disks[s->image[0]].info.bytes;
    uint64_t unit = s->o.differing != NULL ? s->differing.unit : GRANULE;
    bool compared = s->o.only == NULL || s->only.dirty != 0;
    uint64_t total = 0;

    for (uint64_t at = 0; at < bytes; at += unit) {
        uint64_t end = at + unit < bytes ? at + unit : bytes;
        bool dirty = compared && differs(s, at, end);

        total += dirty ? end - at : 0;
        EXPECT(s->o.differing == NULL ||
                   blkrepl_bitmap_get(s->differing.handle, at) == (dirty ? 1 : 0),
               "the granule at %llu to be %s", (ull)at, dirty ? "dirty" : "clean");
    }
    EXPECT(found == total, "%llu bytes that differ, got %llu", (ull)total, (ull)found);
}

static void expect_result(const struct subject *s)
{
    blkrepl_job_info info = job_info(s->job);

    if (info.result == BLKREPL_RESULT_DONE) {
        EXPECT(s->started && info.error == 0 && info.bytes_done == info.bytes_total,
               "all of it done");
        expect_found(s, info.differing_bytes);
    } else {
        EXPECT(info.error < 0, "a code for what went wrong");
    }
}

static void expect_created(const struct subject *s)
{
    blkrepl_job_info info = job_info(s->job);
    uint64_t bytes = bench.disks[s->image[0]].info.bytes;

    EXPECT(info.kind == BLKREPL_KIND_VERIFY && info.user == s->o.user && info.group_id == 0,
           "the job that was asked for");
    EXPECT(name_matches(s->o.name != NULL ? s->name : NULL, "verify", info.id, info.name),
           "the name that was given, got \"%s\"", info.name);
    EXPECT(info.speed_bytes_per_sec == s->o.speed_bytes_per_sec && info.bytes_total <= bytes &&
               info.differing_bytes == 0,
           "a job that has done nothing yet");
    EXPECT(info.state == (s->start ? BLKREPL_JOB_RUNNING : BLKREPL_JOB_CREATED),
           "a job that is %s, got %u", s->start ? "running" : "created", (unsigned)info.state);
}

static void use_job(struct subject *s)
{
    s->started = s->start;
    expect_created(s);
    job_query_any(s->job);
    s->started = job_verbs_draw(s->job, s->start_code) || s->started;
    if (job_info(s->job).state == BLKREPL_JOB_CREATED) {
        s->started = job_verb(s->job, VERB_START, s->start_code) == 0;
        EXPECT(s->started || job_verb(s->job, VERB_CANCEL, 0) == 0, "a plain cancel");
    }
    (void)blkrepl_job_resume(s->job);
    job_run_to_end(s->job);
    expect_result(s);
    job_drop(s->job);
}

static blkrepl_image *image_of(const struct subject *s, int which)
{
    return s->image[which] >= 0 ? bench.images[s->image[which]] : NULL;
}

void act_verify(void)
{
    struct subject s = {.start = take_chance(60)};
    int rc;

    draw_images(&s);
    draw_options(&s);
    judge(&s);
    heap_watch(take_chance(5) ? 1u + take_below(8) : 0);
    s.job = (blkrepl_job *)&s;
    call_begin();
    rc = (s.start ? blkrepl_verify_start : blkrepl_verify_create)(image_of(&s, 0), image_of(&s, 1),
                                                                  s.packed.memory, &s.job);
    verdict_add_if(&s.verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &s.verdict, s.start ? "verify_start" : "verify_create");
    heap_watch(0);
    EXPECT((s.job != NULL) == (rc == 0), "a job exactly if the answer is 0, got %d", rc);
    packed_free(&s.packed);
    bench.job = rc == 0;
    if (rc == 0) {
        use_job(&s);
        bench.job = false;
    } else {
        bench_refused();
    }
    job_user_expect_released(s.release, &s.packed);
    given_bitmap_drop(&s.only);
    given_bitmap_drop(&s.differing);
    blkrepl_throttle_free(s.throttle);
    free(s.name);
}
