/* SPDX-License-Identifier: MIT */
/* options_snapshot.c - snapshots with options from the input, of jobs in any state. */
#include "options.h"

#include "base/abi.h"

#include <stdlib.h>

#define QUEUE_DEPTH_DEFAULT 32
#define QUEUE_DEPTH_MOST 1024
#define READ_MOST (4 * KIB)

static const struct field snapshot_fields[] = {
    FIELD(blkrepl_snapshot_options, queue_depth, FIELD_U32),
    FIELD(blkrepl_snapshot_options, reserved0, FIELD_POINTER),
};
static const struct shape snapshot_shape =
    SHAPE(blkrepl_snapshot_options, BLKREPL_SNAPSHOT_OPTIONS_V1_BYTES, snapshot_fields);

struct subject {
    const struct snapshot_of *of;
    blkrepl_snapshot_options o; /* as the library must understand them         */
    struct packed packed;
    struct release *release;
    char *name;
    struct verdict verdict;
    blkrepl_image *image;
};

static void draw(struct subject *s)
{
    blkrepl_snapshot_options *o = &s->o;

    o->queue_depth = 1 + take_below(8);
    if (take_chance(40)) {
        shape_draw(&snapshot_shape, o);
    }
    s->name = take_chance(40) ? name_draw() : NULL;
    s->release = release_new();
    o->name = s->name;
    o->user = s->release;
    o->release = s->release != NULL ? release_run : NULL;
    s->packed = shape_pack(&snapshot_shape, o, true);
    shape_cut(&snapshot_shape, o, &s->packed);
}

static void judge(struct subject *s)
{
    const blkrepl_snapshot_options *o = &s->o;
    blkrepl_job_info info = job_info(s->of->job);
    uint32_t depth = o->queue_depth != 0 ? o->queue_depth : QUEUE_DEPTH_DEFAULT;

    verdict_add_packing(&s->verdict, &s->packed);
    verdict_add_if(&s->verdict,
                   o->queue_depth > QUEUE_DEPTH_MOST || o->reserved0 != NULL ||
                       (o->name != NULL && strlen(o->name) > BLKREPL_NAME_MAX) || !s->of->none,
                   -EINVAL);
    verdict_add_if(&s->verdict,
                   info.state != BLKREPL_JOB_READY ||
                       (info.flags & (BLKREPL_JOB_FLAG_COMPLETING | BLKREPL_JOB_FLAG_CANCELLING)) !=
                           0,
                   BLKREPL_ERR_STATE);
    verdict_add_if(&s->verdict, depth > s->of->slots, -ENOMEM);
}

/* ---- An image of the point in time --------------------------------------------- */

static int read_some(const struct subject *s, uint8_t *bytes, size_t count)
{
    struct release *user = release_new();
    blkrepl_completion done = {.fn = release_called, .user = user, .release = release_run};
    blkrepl_iovec iov = {.base = bytes, .len = count};

    if (user == NULL) {
        return 1;
    }
    EXPECT(blkrepl_image_read(s->image, 0, 0, &iov, 1, 0, &done) == 0, "a read to be accepted");
    (void)bench_drain();
    EXPECT(user->calls == 1, "the read of a snapshot to end");
    return user->result;
}

/* The first cluster is as the source is, which nobody has written to. */
static void expect_readable(const struct subject *s, bool readable)
{
    uint64_t bytes = s->of->source->info.bytes;
    size_t count = (size_t)(bytes < READ_MOST ? bytes : READ_MOST);
    uint8_t *got = fuzz_alloc(count);
    int rc = read_some(s, got, count);

    EXPECT(rc == (readable ? 0 : -EACCES) || rc == 1, "a read of a snapshot: %d, got %d",
           readable ? 0 : -EACCES, rc);
    EXPECT(rc != 0 || memcmp(got, s->of->source->medium, count) == 0, "the point in time");
    free(got);
}

static void discard_first(const struct subject *s)
{
    blkrepl_completion done = {.fn = NULL};

    if (s->of->cluster <= s->of->source->info.bytes) {
        EXPECT(blkrepl_image_discard(s->image, 0, 0, s->of->cluster, 0, &done) == 0, "a discard");
        (void)bench_drain();
        expect_readable(s, false);
    }
}

static void expect_as_asked(const struct subject *s)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    blkrepl_completion done = {.fn = NULL};
    int rc = blkrepl_image_query(s->image, &info);

    EXPECT(rc == 0 && info.bytes == s->of->source->info.bytes && info.user == s->o.user &&
               info.cluster_bytes == s->of->cluster,
           "an image of %llu bytes, got %d, %llu", (ull)s->of->source->info.bytes, rc,
           (ull)info.bytes);
    EXPECT(name_matches(s->o.name != NULL ? s->name : NULL, "image", info.id, info.name),
           "the name that was given, got \"%s\"", info.name);
    call_begin();
    rc = blkrepl_image_write_zeroes(s->image, 0, 0, 1, 0, &done);
    call_end(rc, "a write to a snapshot");
    EXPECT(rc == -EROFS, "a snapshot not to be written to, got %d", rc);
}

static void use(struct subject *s)
{
    expect_as_asked(s);
    expect_readable(s, s->of->readable);
    if (take_chance(30)) {
        discard_first(s);
    }
    if (take_chance(40)) {
        uint8_t byte;
        int rc;

        job_run_to_end(s->of->job);
        rc = read_some(s, &byte, 1);
        EXPECT(rc != 0, "no data of a job that has ended, got %d", rc);
    }
    EXPECT(s->release == NULL || s->o.release == NULL || s->release->count == 0,
           "no release of an image that is open");
    blkrepl_image_close(s->image);
    (void)bench_drain();
}

void snapshot_try(const struct snapshot_of *of)
{
    struct subject s = {.of = of};
    int rc;

    draw(&s);
    judge(&s);
    heap_watch(take_chance(5) ? 1u + take_below(6) : 0);
    s.image = (blkrepl_image *)&s;
    call_begin();
    rc = blkrepl_snapshot_open(of->job, s.packed.memory, &s.image);
    verdict_add_if(&s.verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &s.verdict, "snapshot_open");
    heap_watch(0);
    EXPECT((s.image != NULL) == (rc == 0), "an image exactly if the answer is 0, got %d", rc);
    packed_free(&s.packed);
    if (rc == 0) {
        use(&s);
    } else {
        bench_refused();
    }
    job_user_expect_released(s.release, &s.packed);
    free(s.name);
}
