/* SPDX-License-Identifier: MIT */
/* options_shut.c - a context that is being freed: what it still accepts, and
 * that everything else is refused. */
#include "options.h"

/* A call that makes something, or a guest request. */
static int refused_call(uint32_t which, const blkrepl_completion *done, blkrepl_image **image)
{
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = done->user, .release = done->release};
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE};
    blkrepl_image *sound = bench.images[BENCH_SOUND_SOURCE];
    blkrepl_extent extent;
    uint64_t token = 1;
    int rc;

    switch (which) {
    case 0: return blkrepl_image_open_memory(bench.ctx, take_u16(), &options, image);
    case 1: return blkrepl_image_open_file(bench.ctx, "/dev/null", NULL, &options, image);
    case 2: return blkrepl_image_read(sound, 0, 0, NULL, 0, 0, done);
    case 3: return blkrepl_image_write(sound, 0, 0, NULL, 0, 0, done);
    case 4: return blkrepl_image_write_zeroes(sound, 0, 0, take_u8(), 0, done);
    case 5: return blkrepl_image_discard(sound, 0, 0, take_u8(), 0, done);
    case 6: return blkrepl_image_flush(sound, 0, done);
    case 7: return blkrepl_image_status(sound, 0, 0, take_u8(), &extent, 1, done);
    default:
        rc = blkrepl_write_begin(sound, &what, done, &token);
        EXPECT(token == 0, "no token from a begin that failed");
        return rc;
    }
}

static int refused_open(const blkrepl_completion *done, blkrepl_image **image)
{
    static struct disk disk;
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = done->user, .release = done->release};
    int rc;

    disk_init(&disk, bench.ctx, 4 * KIB, 4 * KIB);
    rc = blkrepl_image_open(bench.ctx, &disk_ops, &disk, &options, image);
    EXPECT(disk.closes == 0, "no close from an open that failed");
    return rc;
}

static int refused_backup(const blkrepl_completion *done, bool start)
{
    blkrepl_backup_options options = {.struct_size = sizeof options,
                                      .user = done->user,
                                      .release = done->release,
                                      .cluster_bytes = 4096,
                                      .chunk_bytes_max = 4096,
                                      .reserve_bytes = 4096,
                                      .workers_max = 1};
    blkrepl_job *job = (blkrepl_job *)&options;
    int rc = (start ? blkrepl_backup_start : blkrepl_backup_create)(
        bench.images[BENCH_SOUND_SOURCE], bench.images[BENCH_SOUND_TARGET], &options, &job);

    EXPECT(job == NULL, "no job from a create that failed");
    return rc;
}

static int refused_verify(const blkrepl_completion *done)
{
    blkrepl_verify_options options = {.struct_size = sizeof options,
                                      .user = done->user,
                                      .release = done->release,
                                      .chunk_bytes_max = 64 * KIB,
                                      .workers_max = 1};
    blkrepl_job *job = (blkrepl_job *)&options;
    int rc;

    rc = blkrepl_verify_start(bench.images[BENCH_SOUND_SOURCE], bench.images[BENCH_SOUND_TARGET],
                              &options, &job);
    EXPECT(job == NULL, "no job from a create that failed");
    return rc == -ENOMEM && bench.memory_bytes_max < 128 * KIB ? -ESHUTDOWN : rc;
}

/* Calls without a user, which is released here. */
static int refused_plain(uint32_t which, const blkrepl_completion *done)
{
    blkrepl_throttle *throttle = (blkrepl_throttle *)&which;
    blkrepl_group *group = (blkrepl_group *)&which;
    int rc;

    done->release(done->user);
    switch (which) {
    case 13:
        rc = blkrepl_throttle_create(bench.ctx, NULL, &throttle);
        EXPECT(throttle == NULL, "no throttle from a create that failed");
        return rc;
    case 14:
        rc = blkrepl_group_create(bench.ctx, take_below(2), &group);
        EXPECT(group == NULL, "no group from a create that failed");
        return rc;
    default: return blkrepl_image_set_throttle(bench.images[BENCH_SOUND_SOURCE], NULL);
    }
}

static void shut_call(void)
{
    struct release *release = release_new();
    blkrepl_completion done = {
        .fn = release_called, .user = release, .release = release != NULL ? release_run : NULL};
    blkrepl_image *image = NULL;
    uint32_t which = take_below(16);
    int rc;

    if (release == NULL) {
        return;
    }
    call_begin();
    if (which < 9) {
        rc = refused_call(which, &done, &image);
    } else if (which >= 12) {
        rc = which == 12 ? refused_verify(&done) : refused_plain(which, &done);
    } else {
        rc = which == 9 ? refused_open(&done, &image) : refused_backup(&done, which == 10);
    }
    call_end(rc, "a call while the context is being freed");
    EXPECT(rc == -ESHUTDOWN || (which == 1 && rc == -ENOTSUP), "-ESHUTDOWN, got %d", rc);
    EXPECT(image == NULL, "no image from an open that failed");
    EXPECT(release->count == 1 && release->calls == 0, "a release, and no callback");
}

void bench_shut(void)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    int rc;

    bench_image(BENCH_SOUND_SOURCE);
    bench_image(BENCH_SOUND_TARGET);
    call_begin();
    rc = blkrepl_context_free(bench.ctx);
    call_end(rc, "context_free with images");
    EXPECT(rc == -EBUSY, "-EBUSY while images are open, got %d", rc);
    for (uint32_t calls = 1 + take_below(12); calls > 0; calls--) {
        shut_call();
    }
    rc = blkrepl_image_query(bench.images[BENCH_SOUND_SOURCE], &info);
    EXPECT(rc == 0 && info.requests_in_flight == 0, "a query as ever, got %d", rc);
    EXPECT(blkrepl_poll(bench.ctx, 0, 0) >= 0, "a poll as ever");
}
