/* SPDX-License-Identifier: MIT */
/* Snapshot images: the point in time, to be read whatever the guest writes; status,
 * discard, several at once, and as the source of other jobs. */
#include "stage.h"

#define CLUSTERS 16
#define SIZE (CLUSTERS * CLUSTER - 1000) /* the last one is short */
#define HOLE 12                          /* a cluster of zeroes, and the next one */

static struct env env;
static struct part disk, fleece, copy;
static struct part *const all[] = {&disk, &fleece, &copy};
static blkrepl_job *job;
static blkrepl_image *snapshot;
static uint8_t memory[CLUSTERS * CLUSTER];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    memset(disk.tape.data + HOLE * CLUSTER, 0, 2 * CLUSTER);
    part_note(&disk);
    part_open(&fleece, &env, SIZE, 90); /* what was there before must not show */
    part_open(&copy, &env, SIZE, 0);
    part_spoil_discards(&fleece);
    job = NULL;
    snapshot = NULL;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, all, 3);
    blkrepl_image_close(snapshot);
    job_run_out(&env, job, all, 3);
    blkrepl_job_free(job);
    parts_close(&env, all, 3);
    return 0;
}

static blkrepl_job *fleecing(struct part *to, blkrepl_bitmap *bitmap)
{
    blkrepl_job *made = NULL;
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .sync = BLKREPL_SYNC_NONE,
                                .cluster_bytes = CLUSTER,
                                .bitmap = bitmap,
                                .bitmap_mode = bitmap ? BLKREPL_BITMAP_NEVER : 0,
                                .flags = bitmap ? BLKREPL_BACKUP_DIRTY_ONLY : 0};

    ASSERT_CODE(blkrepl_backup_start(disk.image, to->image, &o, &made), 0);
    env_drain(&env);
    ASSERT_STATE(made, BLKREPL_JOB_READY);
    return made;
}

static blkrepl_image *open_of(blkrepl_job *of)
{
    blkrepl_image *image = NULL;

    ASSERT_CODE(blkrepl_snapshot_open(of, NULL, &image), 0);
    assert_non_null(image);
    return image;
}

static void take(void)
{
    job = fleecing(&fleece, NULL);
    snapshot = open_of(job);
}

static int reads(blkrepl_image *image, uint64_t offset, uint64_t bytes)
{
    memset(memory, 0xee, sizeof memory);
    return read_now(&env, image, offset, memory, (size_t)bytes);
}

static void shows(blkrepl_image *image, uint64_t offset, uint64_t bytes, const uint8_t *want)
{
    ASSERT_CODE(reads(image, offset, bytes), 0);
    assert_same(memory, want + offset, bytes, "snapshot");
}

/* ---- Reading --------------------------------------------------------------------------- */

static void it_shows_old_data_whatever_the_guest_writes(void **state)
{
    (void)state;
    take();
    shows(snapshot, 0, SIZE, disk.start);
    assert_int_equal(tape_submitted(&fleece.tape, BLKREPL_OP_READ), 0);
    guest_writes(&env, &disk, 3 * CLUSTER + 512, 512, 50);
    guest_writes(&env, &disk, 7 * CLUSTER - 512, CLUSTER, 51);
    guest_writes(&env, &disk, SIZE - 1, 1, 52);
    guest_writes(&env, &disk, HOLE * CLUSTER, 512, 53);
    shows(snapshot, 0, SIZE, disk.start);
    shows(snapshot, 3 * CLUSTER + 500, 30, disk.start);
    shows(snapshot, SIZE - 10, 10, disk.start);
    shows(snapshot, SIZE, 0, disk.start);
    guest_writes(&env, &disk, 0, SIZE, 54);
    shows(snapshot, 0, SIZE, disk.start);
}

static void it_is_an_image_like_any_other(void **state)
{
    blkrepl_image_info info;
    struct req req = {0};

    (void)state;
    take();
    info = image_info(snapshot);
    assert_int_equal(info.bytes, SIZE);
    assert_true(info.flags & BLKREPL_IMAGE_READ_ONLY);
    assert_true(info.id != image_info(disk.image).id);
    ASSERT_CODE(req_write(&req, snapshot, 0, memory, 512), -EROFS);
    ASSERT_CODE(req_zeroes(&req, snapshot, 0, 512), -EROFS);
    ASSERT_CODE(req_read(&req, snapshot, SIZE, memory, 1), -EINVAL);
    ASSERT_CODE(req_flush(&req, snapshot), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    shows(snapshot, 0, SIZE, disk.start);
}

static void several_images_of_one_job_show_the_same(void **state)
{
    blkrepl_snapshot_options o = {.struct_size = sizeof o, .name = "second", .queue_depth = 1};
    blkrepl_image *second = NULL;

    (void)state;
    take();
    guest_writes(&env, &disk, 0, 3 * CLUSTER, 50);
    ASSERT_CODE(blkrepl_snapshot_open(job, &o, &second), 0);
    assert_string_equal(image_info(second).name, "second");
    guest_writes(&env, &disk, 2 * CLUSTER, 3 * CLUSTER, 51);
    shows(second, 0, SIZE, disk.start);
    blkrepl_image_close(snapshot);
    snapshot = second;
    shows(snapshot, 0, SIZE, disk.start);
}

static void several_snapshots_show_each_its_own_time(void **state)
{
    blkrepl_job *later = NULL;
    blkrepl_image *then = NULL;
    uint8_t *first = malloc(SIZE);

    (void)state;
    assert_non_null(first);
    memcpy(first, disk.start, SIZE);
    take();
    guest_writes(&env, &disk, 2 * CLUSTER, 4 * CLUSTER, 50);
    later = fleecing(&copy, NULL);
    then = open_of(later);
    part_note(&disk);
    guest_writes(&env, &disk, 4 * CLUSTER, 4 * CLUSTER, 51);
    shows(snapshot, 0, SIZE, first);
    shows(then, 0, SIZE, disk.start);
    ASSERT_CODE(blkrepl_job_complete(job), 0); /* the one does not need the other */
    env_drain(&env);
    guest_writes(&env, &disk, 0, SIZE, 52);
    shows(then, 0, SIZE, disk.start);
    assert_true(reads(snapshot, 0, 512) < 0);
    blkrepl_image_close(then);
    ASSERT_CODE(blkrepl_job_cancel(later, 0), 0);
    env_drain(&env);
    blkrepl_job_free(later);
    free(first);
}

/* "A guest write waits for reads of the snapshot that are reading the same part." */
static void a_guest_write_waits_for_readers_of_the_source(void **state)
{
    struct req reader = {0}, near = {0}, far = {0};

    (void)state;
    take();
    disk.tape.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&reader, snapshot, 5 * CLUSTER, memory, CLUSTER), 0);
    env_drain(&env);
    assert_true(REQ_PENDING(&reader));
    int at = tape_find(&disk.tape, BLKREPL_OP_READ, 5 * CLUSTER, CLUSTER);
    assert_true(at >= 0);
    uint64_t id = disk.tape.queue[at]->id;
    guest_write(&near, &disk, 5 * CLUSTER + 4096, 512, 50);
    guest_write(&far, &disk, 9 * CLUSTER, 512, 50);
    env_drain(&env);
    for (size_t i = 0; i < disk.tape.queue_count; i++) { /* all old data but the reader's */
        if (disk.tape.queue[i]->id != id) {
            ASSERT_CODE(tape_finish(&disk.tape, (int)i, 0), 0);
            env_drain(&env);
            i = (size_t)-1;
        }
    }
    req_assert_done(&far, 0);
    assert_false(tape_saw(&disk.tape, BLKREPL_OP_WRITE, 5 * CLUSTER, CLUSTER));
    assert_true(REQ_PENDING(&near));
    parts_run(&env, all, 3);
    req_assert_done(&reader, 0);
    req_assert_done(&near, 0);
    assert_same(memory, disk.start + 5 * CLUSTER, CLUSTER, "snapshot");
}

/* What was being written at the point in time is not shown before it stands still. */
static void a_write_in_flight_at_the_point_in_time_is_waited_for(void **state)
{
    static uint8_t data[4096];
    struct bracket b = {0};
    struct req reader = {0};

    (void)state;
    fill(data, sizeof data, 0, 66);
    ASSERT_CODE(bracket_begin(&b, disk.image, BLKREPL_OP_WRITE, 5 * CLUSTER, sizeof data), 0);
    take();
    shows(snapshot, 0, 5 * CLUSTER, disk.start);
    ASSERT_CODE(req_read(&reader, snapshot, 5 * CLUSTER, memory, CLUSTER), 0);
    env_drain(&env);
    assert_true(REQ_PENDING(&reader));
    assert_false(tape_saw(&disk.tape, BLKREPL_OP_READ, 5 * CLUSTER, sizeof data));
    tape_poke(&disk.tape, 5 * CLUSTER, data, sizeof data);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    env_drain(&env);
    req_assert_done(&reader, 0);
    part_note(&disk); /* it succeeded: the point in time holds it */
    assert_same(memory, disk.start + 5 * CLUSTER, CLUSTER, "snapshot");
    guest_writes(&env, &disk, 5 * CLUSTER, CLUSTER, 67);
    shows(snapshot, 0, SIZE, disk.start);
}

/* ---- Status --------------------------------------------------------------------------------- */

/* The status of a range in one letter a cluster: D data, Z zero, x neither. */
static void status_is(blkrepl_image *image, const char *want)
{
    char seen[CLUSTERS + 1] = "";

    for (uint64_t i = 0; i < CLUSTERS; i++) {
        blkrepl_extent extent[4];
        struct req req = {0};
        uint64_t bytes = i + 1 < CLUSTERS ? CLUSTER : SIZE - i * CLUSTER;
        blkrepl_completion done = req_completion(&req);

        memset(extent, 0xff, sizeof extent);
        ASSERT_CODE(blkrepl_image_status(image, 0, i * CLUSTER, bytes, extent, 4, &done), 0);
        env_drain(&env);
        req_assert_done(&req, 0);
        assert_int_equal(extent[0].bytes, bytes);
        seen[i] = extent[0].flags & BLKREPL_EXTENT_ZERO   ? 'Z'
                  : extent[0].flags & BLKREPL_EXTENT_DATA ? 'D'
                                                          : 'x';
        assert_int_equal(seen[i] == 'x', extent[0].flags == 0);
    }
    assert_string_equal(seen, want);
}

static void status_is_that_of_the_point_in_time(void **state)
{
    (void)state;
    take();
    status_is(snapshot, "DDDDDDDDDDDDZZDD");
    guest_writes(&env, &disk, HOLE * CLUSTER, 512, 50);
    guest_writes(&env, &disk, 4 * CLUSTER, 512, 50);
    status_is(snapshot, "DDDDDDDDDDDDZZDD");
    struct req req = {0};
    ASSERT_CODE(req_zeroes(&req, disk.image, 0, 4 * CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    status_is(snapshot, "DDDDDDDDDDDDZZDD");
}

/* ---- Discard ------------------------------------------------------------------ */

static void discard(blkrepl_image *image, uint64_t offset, uint64_t bytes)
{
    struct req req = {0};

    ASSERT_CODE(req_discard(&req, image, offset, bytes), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
}

static void what_is_discarded_cannot_be_read(void **state)
{
    blkrepl_image *second = NULL;

    (void)state;
    take();
    second = open_of(job);
    guest_writes(&env, &disk, 3 * CLUSTER, 512, 50); /* saved */
    discard(snapshot, 3 * CLUSTER, 2 * CLUSTER);     /* and one that is not */
    ASSERT_CODE(reads(snapshot, 3 * CLUSTER, 512), -EACCES);
    ASSERT_CODE(reads(snapshot, 4 * CLUSTER, CLUSTER), -EACCES);
    ASSERT_CODE(reads(second, 4 * CLUSTER + 700, 1), -EACCES);
    ASSERT_CODE(reads(snapshot, 2 * CLUSTER, 2 * CLUSTER), -EACCES); /* as a whole */
    shows(snapshot, 0, 3 * CLUSTER, disk.start);
    shows(snapshot, 5 * CLUSTER, SIZE - 5 * CLUSTER, disk.start);
    status_is(snapshot, "DDDxxDDDDDDDZZDD");
    assert_true(tape_saw(&fleece.tape, BLKREPL_OP_DISCARD, 3 * CLUSTER, CLUSTER));
    ASSERT_STATE(job, BLKREPL_JOB_READY);
    blkrepl_image_close(second);
}

/* "of the whole clusters in its range nothing needs to be saved from then on" */
static void what_is_discarded_is_not_saved_for(void **state)
{
    (void)state;
    take();
    discard(snapshot, 4 * CLUSTER, 4 * CLUSTER);
    size_t before = tape_submitted(&disk.tape, BLKREPL_OP_READ);
    guest_writes(&env, &disk, 4 * CLUSTER, 4 * CLUSTER, 50);
    assert_int_equal(tape_submitted(&disk.tape, BLKREPL_OP_READ), before);
    assert_int_equal(tape_submitted(&fleece.tape, BLKREPL_OP_WRITE), 0);
    assert_int_equal(job_info(job).guest_waits_count, 0);
    guest_writes(&env, &disk, 8 * CLUSTER, 512, 50);
    shows(snapshot, 8 * CLUSTER, CLUSTER, disk.start);
}

static void less_than_a_cluster_is_not_discarded(void **state)
{
    (void)state;
    take();
    guest_writes(&env, &disk, 2 * CLUSTER, 2 * CLUSTER, 50);
    discard(snapshot, 2 * CLUSTER + 512, CLUSTER);
    discard(snapshot, 2 * CLUSTER, CLUSTER - 1);
    discard(snapshot, 6 * CLUSTER, 0);
    shows(snapshot, 0, SIZE, disk.start);
    assert_int_equal(tape_submitted(&fleece.tape, BLKREPL_OP_DISCARD), 0);
    discard(snapshot, 2 * CLUSTER + 1, 2 * CLUSTER - 1); /* the second one, whole */
    shows(snapshot, 0, 3 * CLUSTER, disk.start);
    ASSERT_CODE(reads(snapshot, 3 * CLUSTER, 1), -EACCES);
    discard(snapshot, (CLUSTERS - 1) * CLUSTER,
            SIZE - (CLUSTERS - 1) * CLUSTER); /* the short one */
    ASSERT_CODE(reads(snapshot, SIZE - 1, 1), -EACCES);
}

/* Whoever reads when it is discarded gets the right data, or is told that they are gone. */
static void nobody_is_told_garbage_when_it_is_discarded(void **state)
{
    for (int saved = 0; saved < 2; saved++) {
        struct req reader = {0}, gone = {0};

        (void)state;
        take();
        if (saved) {
            guest_writes(&env, &disk, 5 * CLUSTER, 512, 50);
        }
        disk.tape.hold = BIT(BLKREPL_OP_READ);
        fleece.tape.hold = BIT(BLKREPL_OP_READ);
        memset(memory, 0xee, CLUSTER);
        ASSERT_CODE(req_read(&reader, snapshot, 5 * CLUSTER, memory, CLUSTER), 0);
        env_drain(&env);
        assert_true(REQ_PENDING(&reader));
        ASSERT_CODE(req_discard(&gone, snapshot, 4 * CLUSTER, 3 * CLUSTER), 0);
        env_drain(&env);
        if (!saved) { /* nothing is saved for it; but not under the reader's eyes */
            struct req req = {0};

            guest_write(&req, &disk, 5 * CLUSTER, CLUSTER, 51);
            env_drain(&env);
            part_finish(&env, &disk, 0);
            part_finish(&env, &disk, 0);
            req_assert_done(&req, 0);
        }
        fleece.tape.hold = 0;
        disk.tape.hold = 0;
        part_finish(&env, &fleece, 0);
        part_finish(&env, &disk, 0);
        req_assert_done(&gone, 0);
        if (reader.result != -EACCES) {
            req_assert_done(&reader, 0);
            assert_same(memory, disk.start + 5 * CLUSTER, CLUSTER, "snapshot");
        }
        ASSERT_CODE(reads(snapshot, 5 * CLUSTER, 1), -EACCES);
        blkrepl_image_close(snapshot);
        snapshot = NULL;
        ASSERT_CODE(blkrepl_job_complete(job), 0);
        env_drain(&env);
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
        part_note(&disk);
    }
}

/* ---- Only what is dirty ------------------------------------------------------- */

static void with_dirty_only_the_rest_is_neither_saved_nor_shown(void **state)
{
    blkrepl_bitmap *bitmap = bitmap_put(disk.image, "b", CLUSTER, 0);

    (void)state;
    bitmap_draw(bitmap, "..##............");
    job = fleecing(&fleece, bitmap);
    snapshot = open_of(job);
    guest_writes(&env, &disk, CLUSTER, 2 * CLUSTER, 50);
    shows(snapshot, 2 * CLUSTER, 2 * CLUSTER, disk.start);
    ASSERT_CODE(reads(snapshot, CLUSTER, 512), -EACCES);
    ASSERT_CODE(reads(snapshot, 4 * CLUSTER, 512), -EACCES);
    status_is(snapshot, "xxDDxxxxxxxxxxxx");
    assert_false(tape_saw(&fleece.tape, BLKREPL_OP_WRITE, 0, 2 * CLUSTER));
    ASSERT_BITS(bitmap, "..##............"); /* it stands still: what a puller needs */
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(bitmap, ".###............");
    blkrepl_bitmap_free(bitmap);
}

/* With a bitmap and without DIRTY_ONLY all can be read, and the bitmap tells what changed. */
static void a_bitmap_without_dirty_only_stands_still_beside_it(void **state)
{
    blkrepl_bitmap *bitmap = bitmap_put(disk.image, "b", CLUSTER, 0);
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .sync = BLKREPL_SYNC_NONE,
                                .cluster_bytes = CLUSTER,
                                .bitmap = bitmap,
                                .bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS};

    (void)state;
    bitmap_draw(bitmap, "..##............");
    ASSERT_CODE(blkrepl_backup_start(disk.image, fleece.image, &o, &job), 0);
    env_drain(&env);
    snapshot = open_of(job);
    guest_writes(&env, &disk, CLUSTER, 2 * CLUSTER, 50);
    shows(snapshot, 0, SIZE, disk.start);
    ASSERT_BITS(bitmap, "..##............");
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    ASSERT_BITS(bitmap, ".##............."); /* it has been used up */
    blkrepl_bitmap_free(bitmap);
}

/* ---- As the source of a job --------------------------------------------------- */

static void it_can_be_backed_up_while_the_guest_writes(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .cluster_bytes = CLUSTER,
                                .chunk_bytes_max = CLUSTER,
                                .workers_max = 1};
    blkrepl_job *backup = NULL;

    (void)state;
    take();
    guest_writes(&env, &disk, 10 * CLUSTER, 3 * CLUSTER, 50);
    ASSERT_CODE(blkrepl_backup_create(snapshot, copy.image, &o, &backup), 0);
    copy.tape.hold = BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_ZEROES);
    ASSERT_CODE(blkrepl_job_start(backup), 0);
    for (uint64_t i = 0; i < CLUSTERS; i++) {
        guest_writes(&env, &disk, i * 5 % CLUSTERS * CLUSTER, 512, 51);
        part_finish(&env, &copy, 0);
    }
    parts_run(&env, all, 3);
    ASSERT_ENDED(backup, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
    blkrepl_job_free(backup);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(it_shows_old_data_whatever_the_guest_writes),
        T(it_is_an_image_like_any_other),
        T(several_images_of_one_job_show_the_same),
        T(several_snapshots_show_each_its_own_time),
        T(a_guest_write_waits_for_readers_of_the_source),
        T(a_write_in_flight_at_the_point_in_time_is_waited_for),
        T(nobody_is_told_garbage_when_it_is_discarded),
        T(status_is_that_of_the_point_in_time),
        T(what_is_discarded_cannot_be_read),
        T(what_is_discarded_is_not_saved_for),
        T(less_than_a_cluster_is_not_discarded),
        T(with_dirty_only_the_rest_is_neither_saved_nor_shown),
        T(a_bitmap_without_dirty_only_stands_still_beside_it),
        T(it_can_be_backed_up_while_the_guest_writes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
