/* SPDX-License-Identifier: MIT */
/* What a backup copies by a bitmap, and what becomes of the bitmap.  The disks have
 * eight clusters, the last of them short. */
#include "unit/backup_rig.h"

#include "base/checked.h"

#define EIGHT (7 * CLUSTER + 100)

static void bitmap_open(struct bench *b, uint64_t granularity)
{
    bench_open(b, EIGHT);
    bench_add_bitmap(b, granularity);
}

static int bitmap_setup(void **state)
{
    struct bench *b = malloc(sizeof *b);

    assert_non_null(b);
    bitmap_open(b, CLUSTER);
    *state = b;
    return 0;
}

/* One whose source has a bitmap of clusters. */
#define BITMAP_TEST(f) cmocka_unit_test_setup_teardown(f, bitmap_setup, bench_teardown)

static void mark(struct bench *b, uint64_t first, uint64_t count)
{
    uint64_t start = first * CLUSTER;

    assert_int_equal(blkrepl_bitmap_set(b->bitmap, start, min_u64(count * CLUSTER, EIGHT - start)),
                     0);
}

static blkrepl_backup_options bitmap_options(struct bench *b, uint32_t sync, uint32_t mode)
{
    blkrepl_backup_options o = options_of(b);

    o.sync = sync;
    o.bitmap = b->bitmap;
    o.bitmap_mode = mode;
    o.chunk_bytes_max = CLUSTER;
    return o;
}

/* Whether the target has the old data there, and nothing elsewhere. */
static void assert_copied(const struct bench *b, const char *clusters)
{
    static const unsigned char nothing[CLUSTER];

    for (unsigned i = 0; clusters[i] != '\0'; i++) {
        size_t at = (size_t)i * CLUSTER;
        size_t bytes = (size_t)min_u64(CLUSTER, EIGHT - at);

        assert_memory_equal(b->target.disk + at, clusters[i] == '#' ? b->old + at : nothing, bytes);
    }
}

/* ---- What is copied -------------------------------------------------------------- */

/* Any granularity against any cluster: what a dirty granule touches, whole clusters. */
static void backup_copies_the_clusters_that_dirty_granules_touch(void **state)
{
    static const struct {
        uint64_t granularity;
        uint64_t cluster;
        uint64_t dirty; /* one byte */
        const char *copied;
        uint64_t bytes;
    } cases[] = {
        {512, CLUSTER, 2 * CLUSTER + 700, "..#.....", CLUSTER},
        {CLUSTER, CLUSTER, CLUSTER, ".#......", CLUSTER},
        {2 * CLUSTER, CLUSTER, 3 * CLUSTER, "..##....", 2 * CLUSTER},
        {4 * CLUSTER, CLUSTER, 7 * CLUSTER, "....####", 3 * CLUSTER + 100},
        {64 * CLUSTER, CLUSTER, 0, "########", EIGHT},
        {CLUSTER, 4 * CLUSTER, 7 * CLUSTER, "....####", 3 * CLUSTER + 100},
        {512, CLUSTER, EIGHT - 1, ".......#", 100},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct bench b;
        blkrepl_backup_options o;
        blkrepl_job *job;

        bitmap_open(&b, cases[i].granularity);
        assert_int_equal(blkrepl_bitmap_set(b.bitmap, cases[i].dirty, 1), 0);
        o = bitmap_options(&b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER);
        o.cluster_bytes = cases[i].cluster;
        job = create(&b, &o);
        assert_int_equal(info_of(job).bytes_total, 0); /* not known yet */
        assert_int_equal(blkrepl_job_start(job), 0);
        assert_int_equal(info_of(job).bytes_total, cases[i].bytes);
        rig_poll(&b.rig);
        assert_copied(&b, cases[i].copied);
        assert_int_equal(info_of(job).bytes_total, cases[i].bytes);
        assert_concluded(&b, job, BLKREPL_RESULT_DONE, 0);
        bench_close(&b);
    }
}

static void backup_of_a_clean_bitmap_is_done(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = bitmap_options(b, BLKREPL_SYNC_INCREMENTAL, 0);
    blkrepl_job *job = run(b, &o);

    assert_int_equal(script_count(&b->target, BLKREPL_OP_WRITE), 0);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_FLUSH), 1);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_of_nothing_has_an_empty_bitmap(void **state)
{
    static const struct {
        uint32_t sync;
        uint32_t mode;
        uint32_t flags;
    } cases[] = {
        {BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, 0},
        {BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, 0},
        {BLKREPL_SYNC_NONE, BLKREPL_BITMAP_NEVER, BLKREPL_BACKUP_DIRTY_ONLY},
    };

    (void)state;
    for (size_t i = 0; i < 2 * ARRAY_COUNT(cases); i++) {
        struct bench b;
        blkrepl_backup_options o;
        blkrepl_job *job;
        bool cancel = i % 2 != 0;

        bench_open(&b, 0);
        bench_add_bitmap(&b, CLUSTER);
        o = bitmap_options(&b, cases[i / 2].sync, cases[i / 2].mode);
        o.flags = cases[i / 2].flags;
        job = start(&b, &o);
        assert_int_equal(cancel                        ? blkrepl_job_cancel(job, 0)
                         : o.sync == BLKREPL_SYNC_NONE ? blkrepl_job_complete(job)
                                                       : 0,
                         0);
        rig_poll(&b.rig);
        assert_dirty(&b, "");
        assert_concluded(&b, job, cancel ? BLKREPL_RESULT_CANCELLED : BLKREPL_RESULT_DONE,
                         cancel ? -ECANCELED : 0);
        bench_close(&b);
    }
}

/* The content at the start counts, not that at the creation. */
static void backup_takes_the_bitmap_as_it_is_at_the_start(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    mark(b, 1, 1);
    o = bitmap_options(b, BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ON_SUCCESS);
    job = create(b, &o);
    assert_int_equal(blkrepl_bitmap_clear(b->bitmap), 0); /* not busy yet */
    guest_write(b, 5, &done);
    memcpy(b->old, b->source.disk, EIGHT);
    assert_int_equal(blkrepl_job_start(job), 0);
    guest_write(b, 6, &done);
    rig_poll(&b->rig);
    assert_copied(b, ".....#..");
    assert_dirty(b, "......#.");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* A write that is in flight at the point in time belongs to both sides of it. */
static void backup_copies_what_was_in_flight_at_the_start(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    b->source.hold = OP(WRITE);
    guest_write(b, 3, &done);
    o = bitmap_options(b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS);
    job = run(b, &o);
    ASSERT_PENDING(&done);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_WRITE), 0); /* it waits */
    assert_int_equal(info_of(job).bytes_total, CLUSTER);
    script_end(&b->source, 0, 0);
    rig_poll(&b->rig);
    done_assert(&done, 0);
    memcpy(b->old, b->source.disk, EIGHT);
    assert_copied(b, "...#....");
    assert_dirty(b, "...#....");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* Only what is to be copied has old data; other parts are written without more ado. */
static void backup_saves_only_what_it_copies(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    mark(b, 2, 1);
    o = bitmap_options(b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS);
    job = start_paused(b, &o);
    guest_write(b, 4, &done);
    done_assert(&done, 0);
    assert_int_equal(info_of(job).guest_waits_count, 0);
    guest_write(b, 2, &done);
    done_assert(&done, 0);
    assert_int_equal(info_of(job).guest_waits_count, 1);
    assert_copied(b, "..#.....");
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    assert_dirty(b, "..#.#...");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* ---- What becomes of the bitmap ---------------------------------------------------- */

enum ending {
    END_DONE,
    END_CANCELLED, /* in the middle */
    END_FAILED,    /* the same */
    END_FLUSH_FAILED,
    END_CALLED_OFF, /* in PENDING: all is on the target */
    END_BAD,        /* one cluster was given up */
};

static void end_all(struct script *script, int result)
{
    while (script->waiting_count > 0) {
        script_end(script, 0, result);
    }
}

static void end_job(struct bench *b, blkrepl_job *job, enum ending ending)
{
    switch (ending) {
    case END_DONE:
    case END_FLUSH_FAILED:
    case END_BAD:
        b->target.hold = 0;
        script_end_all(&b->target);
        break;
    case END_CANCELLED:
        assert_int_equal(blkrepl_job_cancel(job, 0), 0);
        rig_poll(&b->rig);
        end_all(&b->target, -ECANCELED);
        break;
    case END_FAILED:
        script_end(&b->target, 0, -EIO);
        rig_poll(&b->rig);
        end_all(&b->target, -ECANCELED);
        break;
    case END_CALLED_OFF:
        b->target.hold = 0;
        script_end_all(&b->target);
        rig_poll(&b->rig);
        assert_int_equal(info_of(job).state, BLKREPL_JOB_PENDING);
        assert_true(b->bitmap->busy);
        assert_int_equal(blkrepl_job_cancel(job, 0), 0);
        break;
    }
    rig_poll(&b->rig);
}

/* Clusters 1, 2, 3 and 6 are dirty at the start; cluster 1 gets to the target, then the
 * guest writes to 3 and 5, and the job ends while 2 is on its way. */
static void ends_so(uint32_t sync, uint32_t mode, enum ending ending, const char *dirty)
{
    static const uint32_t results[] = {BLKREPL_RESULT_DONE,      BLKREPL_RESULT_CANCELLED,
                                       BLKREPL_RESULT_FAILED,    BLKREPL_RESULT_FAILED,
                                       BLKREPL_RESULT_CANCELLED, BLKREPL_RESULT_FAILED};
    static const int errors[] = {0, -ECANCELED, -EIO, -EIO, -ECANCELED, -EIO};
    struct bench b;
    struct done done[2];
    blkrepl_backup_options o;
    blkrepl_job *job;

    bitmap_open(&b, CLUSTER);
    mark(&b, 1, 3);
    mark(&b, 6, 1);
    o = bitmap_options(&b, sync, mode);
    o.workers_max = 1;
    if (ending == END_CALLED_OFF) {
        o.job_flags = BLKREPL_JOB_MANUAL_FINALIZE;
    }
    if (ending == END_BAD) {
        o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    }
    if (ending == END_FLUSH_FAILED) {
        b.target.result[BLKREPL_OP_FLUSH] = -EIO;
    }
    b.target.hold = OP(WRITE);
    job = run(&b, &o);
    while (b.target.waiting[0]->offset != CLUSTER) {
        script_end(&b.target, 0, 0);
        rig_poll(&b.rig);
    }
    script_end(&b.target, 0, ending == END_BAD ? -EIO : 0);
    rig_poll(&b.rig);
    guest_write(&b, 3, &done[0]);
    guest_write(&b, 5, &done[1]);
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    assert_int_equal(blkrepl_bitmap_clear(b.bitmap), -EBUSY);
    assert_dirty(&b, ".###..#."); /* it stands still */
    end_job(&b, job, ending);
    assert_dirty(&b, dirty);
    assert_concluded(&b, job, results[ending], errors[ending]);
    bench_close(&b);
}

static void bitmap_on_success_holds_what_was_written_since_if_it_is_done(void **state)
{
    const uint32_t mode = BLKREPL_BITMAP_ON_SUCCESS;

    (void)state;
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_DONE, "...#.#..");
    ends_so(BLKREPL_SYNC_INCREMENTAL, 0, END_DONE, "...#.#..");
    ends_so(BLKREPL_SYNC_FULL, mode, END_DONE, "...#.#..");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_CANCELLED, ".###.##.");
    ends_so(BLKREPL_SYNC_FULL, mode, END_CANCELLED, ".###.##.");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_FAILED, ".###.##.");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_FLUSH_FAILED, ".###.##.");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_CALLED_OFF, ".###.##.");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_BAD, ".###.##.");
}

static void bitmap_never_is_as_if_there_had_been_no_backup(void **state)
{
    const uint32_t mode = BLKREPL_BITMAP_NEVER;

    (void)state;
    for (enum ending ending = END_DONE; ending <= END_BAD; ending++) {
        ends_so(BLKREPL_SYNC_BITMAP, mode, ending, ".###.##.");
    }
}

/* Cluster 3 is on the target, or in todo again, by the end of its own write. */
static void bitmap_always_holds_what_is_not_on_the_target(void **state)
{
    const uint32_t mode = BLKREPL_BITMAP_ALWAYS;

    (void)state;
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_DONE, "...#.#..");
    ends_so(BLKREPL_SYNC_FULL, mode, END_DONE, "...#.#..");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_CANCELLED, "..##.##.");
    ends_so(BLKREPL_SYNC_FULL, mode, END_CANCELLED, "..######");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_FAILED, "..##.##.");
    ends_so(BLKREPL_SYNC_FULL, mode, END_FAILED, "..######");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_FLUSH_FAILED, ".###.##.");
    ends_so(BLKREPL_SYNC_FULL, mode, END_FLUSH_FAILED, "########");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_CALLED_OFF, "...#.#..");
    ends_so(BLKREPL_SYNC_FULL, mode, END_CALLED_OFF, "...#.#..");
    ends_so(BLKREPL_SYNC_BITMAP, mode, END_BAD, ".#.#.#..");
    ends_so(BLKREPL_SYNC_FULL, mode, END_BAD, ".#.#.#..");
}

/* One more backup of the bitmap to the same target completes it. */
static void backup_that_was_cancelled_is_completed_by_another(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;
    blkrepl_job *job;

    bench_add_bitmap(b, 512);
    o = bitmap_options(b, BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS);
    b->target.hold = OP(WRITE);
    job = run(b, &o);
    script_end(&b->target, 0, 0);
    rig_poll(&b->rig);
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    script_end(&b->target, 0, 0); /* what had gone out counts if it was well */
    script_end(&b->target, 0, -ECANCELED);
    rig_poll(&b->rig);
    blkrepl_job_free(job);
    assert_true(blkrepl_bitmap_get(b->bitmap, 2 * CLUSTER) == 1);
    b->target.hold = 0;
    o.sync = BLKREPL_SYNC_BITMAP;
    o.name = "b1";
    job = start(b, &o);
    assert_true(info_of(job).bytes_total < EIGHT);
    rig_poll(&b->rig);
    assert_int_equal(info_of(job).result, BLKREPL_RESULT_DONE);
    assert_memory_equal(b->target.disk, b->old, EIGHT);
    assert_dirty(b, "........");
    blkrepl_job_free(job);
}

/* ---- Which bitmap ------------------------------------------------------------------- */

static void backup_takes_a_bitmap_that_is_of_no_image_or_of_another(void **state)
{
    struct bench *b = *state;
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .granularity_bytes = CLUSTER, .bytes = EIGHT};
    blkrepl_backup_options o;
    blkrepl_job *job;

    assert_int_equal(blkrepl_bitmap_create(b->rig.ctx, &options, &b->bitmap), 0);
    mark(b, 4, 1);
    o = bitmap_options(b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS);
    job = start(b, &o);
    mark(b, 0, 1); /* since */
    rig_poll(&b->rig);
    assert_copied(b, "....#...");
    assert_dirty(b, "#.......");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
    blkrepl_bitmap_free(b->bitmap);

    b->released = 0;
    b->rig.event_count = 0;
    bench_open_third(b, EIGHT);
    options.name = "of the third";
    assert_int_equal(blkrepl_bitmap_add(b->spill, &options, &b->bitmap), 0);
    mark(b, 7, 1);
    o.bitmap = b->bitmap;
    job = start(b, &o);
    blkrepl_image_close(b->spill); /* and its bitmap is of none */
    b->spill = NULL;
    rig_poll(&b->rig);
    script_fini(&b->third);
    assert_copied(b, "....#..#");
    assert_dirty(b, "........");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* The job holds its bitmap, from the creation on. */
static void backup_holds_its_bitmap(void **state)
{
    struct bench *b = *state;
    blkrepl_bitmap *bitmap;
    blkrepl_backup_options o;
    blkrepl_job *job;

    mark(b, 4, 1);
    o = bitmap_options(b, BLKREPL_SYNC_INCREMENTAL, 0);
    job = create(b, &o);
    assert_int_equal(blkrepl_bitmap_remove(b->bitmap), 0); /* not busy yet */
    bitmap = b->bitmap;
    b->bitmap = NULL;
    blkrepl_bitmap_free(bitmap);
    assert_int_equal(blkrepl_job_start(job), 0);
    rig_poll(&b->rig);
    assert_copied(b, "....#...");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_that_never_starts_leaves_its_bitmap_alone(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;
    blkrepl_job *job;

    mark(b, 4, 1);
    o = bitmap_options(b, BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS);
    job = create(b, &o);
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    rig_poll(&b->rig);
    assert_dirty(b, "....#...");
    assert_concluded(b, job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    b->released = 0;
    job = create(b, &o);
    blkrepl_job_free(job);
    rig_poll(&b->rig);
    assert_int_equal(b->released, 1);
    assert_int_equal(b->bitmap->refs, 2);
}

/* Busy and inconsistent are judged when it is started. */
static void backup_whose_bitmap_is_in_use_can_start_later(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;
    blkrepl_job *job;

    mark(b, 4, 1);
    o = bitmap_options(b, BLKREPL_SYNC_INCREMENTAL, 0);
    assert_int_equal(blkrepl_bitmap_freeze(b->bitmap), 0);
    refused(b,
            &(blkrepl_backup_options){.struct_size = sizeof o,
                                      .sync = BLKREPL_SYNC_INCREMENTAL,
                                      .release = o.release,
                                      .user = b,
                                      .flags = 1u << 31},
            -EINVAL);
    assert_int_equal(blkrepl_backup_start(b->from, b->to, &o, &job), -EBUSY);
    assert_null(job);
    assert_int_equal(b->from->refs, 1);
    b->released = 0;
    job = create(b, &o);
    assert_int_equal(blkrepl_job_start(job), -EBUSY);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_CREATED);
    assert_int_equal(blkrepl_bitmap_reclaim(b->bitmap), 0);
    assert_int_equal(blkrepl_bitmap_disable(b->bitmap), 0);
    assert_int_equal(blkrepl_bitmap_load_begin(b->bitmap), 0);
    assert_int_equal(blkrepl_job_start(job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_bitmap_load_ones(b->bitmap, 0, EIGHT), 0);
    assert_int_equal(blkrepl_bitmap_load_finish(b->bitmap), 0);
    assert_int_equal(blkrepl_job_start(job), 0);
    rig_poll(&b->rig);
    assert_copied(b, "########");
    assert_dirty(b, "........");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_notices_that_its_bitmap_was_resized(void **state)
{
    struct bench *b = *state;
    blkrepl_bitmap_options options = {.struct_size = sizeof options, .bytes = EIGHT};
    blkrepl_backup_options o;
    blkrepl_job *job;

    assert_int_equal(blkrepl_bitmap_create(b->rig.ctx, &options, &b->bitmap), 0);
    o = bitmap_options(b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER);
    job = create(b, &o);
    assert_int_equal(blkrepl_bitmap_resize(b->bitmap, EIGHT + 1), 0);
    assert_int_equal(blkrepl_job_start(job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_bitmap_clear(b->bitmap), 0); /* it is not busy */
    assert_int_equal(blkrepl_bitmap_resize(b->bitmap, EIGHT), 0);
    assert_int_equal(blkrepl_job_start(job), 0);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* One bitmap, two jobs of a group: all or none is started. */
static void backups_of_a_group_cannot_share_a_bitmap(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;
    blkrepl_group *group;
    blkrepl_job *jobs[2];

    bench_open_third(b, EIGHT);
    mark(b, 4, 1);
    o = bitmap_options(b, BLKREPL_SYNC_INCREMENTAL, 0);
    jobs[0] = create(b, &o);
    o.name = "b1";
    assert_int_equal(blkrepl_backup_create(b->from, b->spill, &o, &jobs[1]), 0);
    assert_int_equal(blkrepl_group_create(b->rig.ctx, 0, &group), 0);
    assert_int_equal(blkrepl_group_add(group, jobs[0]), 0);
    assert_int_equal(blkrepl_group_add(group, jobs[1]), 0);
    assert_int_equal(blkrepl_group_start(group), -EBUSY);
    assert_false(b->bitmap->busy || b->bitmap->freezing);
    blkrepl_job_free(jobs[1]);
    rig_poll(&b->rig);
    assert_int_equal(blkrepl_group_start(group), 0);
    rig_poll(&b->rig);
    assert_copied(b, "....#...");
    assert_int_equal(info_of(jobs[0]).result, BLKREPL_RESULT_DONE);
    blkrepl_job_free(jobs[0]);
    blkrepl_group_free(group);
}

/* ---- Options and memory -------------------------------------------------------------- */

static void backup_refuses_a_bitmap_that_does_not_fit(void **state)
{
    struct bench *b = *state;
    static const struct {
        uint32_t sync;
        uint32_t mode;
        bool bitmap;
        uint32_t flags;
    } bad[] = {
        {BLKREPL_SYNC_BITMAP, 0, true, 0},
        {BLKREPL_SYNC_BITMAP, 4, true, 0},
        {BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER, false, 0},
        {BLKREPL_SYNC_BITMAP, 0, false, 0},
        {BLKREPL_SYNC_INCREMENTAL, 0, false, 0},
        {BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_NEVER, true, 0},
        {BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ALWAYS, true, 0},
        {BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, false, 0},
        {BLKREPL_SYNC_FULL, BLKREPL_BITMAP_NEVER, true, 0},
        {BLKREPL_SYNC_FULL, 0, true, 0},
        {0, BLKREPL_BITMAP_NEVER, true, 0},
        {BLKREPL_SYNC_NONE, BLKREPL_BITMAP_ALWAYS, true, 0},
        {BLKREPL_SYNC_NONE, 0, true, 0},
        {BLKREPL_SYNC_NONE, 0, false, BLKREPL_BACKUP_DIRTY_ONLY},
        {BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS, true, BLKREPL_BACKUP_DIRTY_ONLY},
        {BLKREPL_SYNC_FULL, 0, false, BLKREPL_BACKUP_DIRTY_ONLY},
    };
    blkrepl_backup_options o;

    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        o = bitmap_options(b, bad[i].sync, bad[i].mode);
        o.flags = bad[i].flags;
        o.bitmap = bad[i].bitmap ? b->bitmap : NULL;
        refused(b, &o, -EINVAL);
    }
}

static void backup_refuses_a_bitmap_of_another_size_or_context_or_half_loaded(void **state)
{
    blkrepl_bitmap_options options = {.struct_size = sizeof options, .bytes = EIGHT + 1};
    struct rig other;
    struct bench b;
    blkrepl_backup_options o;

    (void)state;
    memset(&other, 0, sizeof other);
    rig_open(&other, NULL);
    bench_open(&b, EIGHT);
    assert_int_equal(blkrepl_bitmap_create(b.rig.ctx, &options, &b.bitmap), 0);
    o = bitmap_options(&b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS);
    refused(&b, &o, -EINVAL);
    assert_int_equal(blkrepl_bitmap_resize(b.bitmap, EIGHT), 0);
    assert_int_equal(blkrepl_bitmap_load_begin(b.bitmap), 0);
    refused(&b, &o, BLKREPL_ERR_STATE);
    options.bytes = EIGHT;
    assert_int_equal(blkrepl_bitmap_create(other.ctx, &options, &o.bitmap), 0);
    refused(&b, &o, -EINVAL);
    blkrepl_bitmap_free(o.bitmap);
    bench_close(&b);
    rig_close(&other);
}

static void backup_with_everything_that_runs_out_of_memory_leaks_nothing(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;

    bench_open_third(b, EIGHT);
    o = bitmap_options(b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS);
    o.spill = b->spill;
    o.on_source_error = BLKREPL_ON_ERROR_IGNORE;
    create_without_memory(b, &o, 6, 30);
}

static void backup_takes_no_memory_for_its_bitmap_while_it_runs(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;
    uint64_t calls;

    mark(b, 2, 3);
    o = bitmap_options(b, BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS);
    job = create(b, &o);
    calls = b->rig.heap.calls;
    assert_int_equal(blkrepl_job_start(job), 0);
    guest_write(b, 3, &done);
    assert_int_equal(b->rig.heap.calls, calls);
    assert_dirty(b, "...#....");
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backup_copies_the_clusters_that_dirty_granules_touch),
        BITMAP_TEST(backup_of_a_clean_bitmap_is_done),
        cmocka_unit_test(backup_of_nothing_has_an_empty_bitmap),
        BITMAP_TEST(backup_takes_the_bitmap_as_it_is_at_the_start),
        BITMAP_TEST(backup_copies_what_was_in_flight_at_the_start),
        BITMAP_TEST(backup_saves_only_what_it_copies),
        cmocka_unit_test(bitmap_on_success_holds_what_was_written_since_if_it_is_done),
        cmocka_unit_test(bitmap_never_is_as_if_there_had_been_no_backup),
        cmocka_unit_test(bitmap_always_holds_what_is_not_on_the_target),
        BENCH_TEST_SIZE(backup_that_was_cancelled_is_completed_by_another, EIGHT),
        BENCH_TEST_SIZE(backup_takes_a_bitmap_that_is_of_no_image_or_of_another, EIGHT),
        BITMAP_TEST(backup_holds_its_bitmap),
        BITMAP_TEST(backup_that_never_starts_leaves_its_bitmap_alone),
        BITMAP_TEST(backup_whose_bitmap_is_in_use_can_start_later),
        BENCH_TEST_SIZE(backup_notices_that_its_bitmap_was_resized, EIGHT),
        BITMAP_TEST(backups_of_a_group_cannot_share_a_bitmap),
        BITMAP_TEST(backup_refuses_a_bitmap_that_does_not_fit),
        cmocka_unit_test(backup_refuses_a_bitmap_of_another_size_or_context_or_half_loaded),
        BITMAP_TEST(backup_with_everything_that_runs_out_of_memory_leaks_nothing),
        BITMAP_TEST(backup_takes_no_memory_for_its_bitmap_while_it_runs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
