/* SPDX-License-Identifier: MIT */
#include "unit/snap_rig.h"

#include "base/hook.h"

static blkrepl_backup_options by_clusters(uint32_t workers)
{
    return (blkrepl_backup_options){.struct_size = sizeof(blkrepl_backup_options),
                                    .cluster_bytes = CLUSTER,
                                    .chunk_bytes_max = CLUSTER,
                                    .reserve_bytes = CLUSTER,
                                    .workers_max = workers};
}

static void assert_result(blkrepl_job *job, uint32_t result)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_job_query(job, &info), 0);
    assert_int_equal(info.result, result);
}

/* ---- Opening ------------------------------------------------------------------- */

static void released(void *user)
{
    ++*(unsigned *)user;
}

static int open_with(struct snap_rig *r, const blkrepl_snapshot_options *options)
{
    blkrepl_image *image = r->from;
    int rc = blkrepl_snapshot_open(r->job, options, &image);

    assert_true(rc == 0 || image == NULL);
    blkrepl_image_close(image);
    rig_poll(&r->rig);
    return rc;
}

static void open_refuses_bad_options(void **state)
{
    struct snap_rig *r = *state;
    unsigned count = 0;
    blkrepl_snapshot_options o = {
        .struct_size = sizeof o, .user = &count, .release = released, .queue_depth = 1025};
    char name[BLKREPL_NAME_MAX + 2];
    blkrepl_image *image;
    struct {
        blkrepl_snapshot_options o;
        uint64_t more;
    } larger = {.o = {.struct_size = sizeof larger}};

    assert_int_equal(open_with(r, &o), -EINVAL);
    assert_int_equal(count, 1);
    o.queue_depth = 1024;
    assert_int_equal(open_with(r, &o), 0);
    assert_int_equal(count, 2);
    o.reserved0 = &o;
    assert_int_equal(open_with(r, &o), -EINVAL);
    o.reserved0 = NULL;
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    o.name = name;
    assert_int_equal(open_with(r, &o), -EINVAL);
    assert_int_equal(count, 4);
    name[sizeof name - 2] = '\0';
    assert_int_equal(open_with(r, &o), 0);
    assert_int_equal(count, 5);
    assert_int_equal(blkrepl_snapshot_open(NULL, &o, &image), -EINVAL);
    assert_null(image);
    assert_int_equal(blkrepl_snapshot_open(r->job, &o, NULL), -EINVAL);
    assert_int_equal(blkrepl_snapshot_open(r->job, NULL, NULL), -EINVAL);
    assert_int_equal(count, 7);
    o.struct_size = 8;
    assert_int_equal(open_with(r, &o), -EINVAL);
    assert_int_equal(count, 7); /* who can tell where it is */
    assert_int_equal(open_with(r, &larger.o), 0);
    larger.more = 1;
    assert_int_equal(open_with(r, &larger.o), BLKREPL_ERR_VERSION);
}

static void open_needs_a_job_that_is_ready_and_copies_nothing(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_backup_options o = {.struct_size = sizeof o, .cluster_bytes = CLUSTER};
    blkrepl_job *none;

    snap_open_images(r);
    assert_int_equal(blkrepl_backup_create(r->from, r->to, &o, &r->job), 0);
    assert_int_equal(open_with(r, NULL), -EINVAL);
    blkrepl_job_free(r->job);
    o.sync = BLKREPL_SYNC_NONE;
    assert_int_equal(blkrepl_backup_create(r->from, r->to, &o, &none), 0);
    r->job = none;
    assert_int_equal(open_with(r, NULL), BLKREPL_ERR_STATE);
    blkrepl_job_free(none);
    snap_start(r, NULL);
    r->target.hold = OP(WRITE);
    snap_write(r, 0, 4096, &(struct done){0});
    assert_int_equal(blkrepl_job_cancel(r->job, 0), 0);
    assert_int_equal(open_with(r, NULL), BLKREPL_ERR_STATE); /* it is ending, */
    script_end_all(&r->target);
    rig_poll(&r->rig);
    assert_int_equal(open_with(r, NULL), BLKREPL_ERR_STATE); /* and has ended */
}

static void open_needs_requests_for_all_that_it_does_at_once(void **state)
{
    const blkrepl_context_options options = {.job_requests_max = 64};
    const blkrepl_backup_options backup = {.reserve_bytes = CLUSTER, .workers_max = 1};
    struct snap_rig r;
    blkrepl_snapshot_options o = {.struct_size = sizeof o};
    uint32_t left;

    (void)state;
    snap_init(&r, &options, 64 * KIB);
    snap_open(&r, &backup);
    left = r.rig.ctx->job_requests.count - r.rig.ctx->job_requests.used;
    o.queue_depth = left + 1;
    assert_int_equal(open_with(&r, &o), -ENOMEM);
    o.queue_depth = left;
    assert_int_equal(open_with(&r, &o), 0);
    assert_int_equal(r.rig.ctx->job_requests.count - r.rig.ctx->job_requests.used, left);
    snap_close(&r);
}

static void open_without_memory_leaves_nothing(void **state)
{
    struct snap_rig *r = *state;
    const blkrepl_backup_options backup = {.reserve_bytes = CLUSTER, .workers_max = 1};
    unsigned failures = 0;
    int rc = -ENOMEM;

    script_fini(&r->target);
    script_init(&r->target, 16 * KIB);
    r->target.info.request_alignment = 4096;
    snap_open(r, &backup);
    for (uint64_t nth = 1; rc != 0; nth++) {
        uint64_t live = r->rig.heap.live;
        uint32_t used = r->rig.ctx->job_requests.used;

        r->rig.heap.fail_at = r->rig.heap.calls + nth;
        rc = open_with(r, NULL);
        r->rig.heap.fail_at = 0;
        assert_true(rc == 0 || rc == -ENOMEM);
        assert_int_equal(r->rig.heap.live, live);
        assert_int_equal(r->rig.ctx->job_requests.used, used);
        assert_int_equal(r->rig.ctx->images_open, 3);
        failures += rc != 0;
    }
    assert_true(failures >= 6); /* the snapshot, its reads and buffer, leaf and image */
    snap_expect_old(r, 0, 10000);
}

static void image_takes_no_writes(void **state)
{
    struct snap_rig *r = *state;
    unsigned char byte = 0;
    blkrepl_iovec iov = {.base = &byte, .len = 1};
    blkrepl_image_info info = {.struct_size = sizeof info};
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = BLKREPL_OP_DISCARD, .bytes = 4096};
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_job *job;
    uint64_t token;

    assert_int_equal(blkrepl_image_write(r->image, 0, 0, &iov, 1, 0, NULL), -EROFS);
    assert_int_equal(blkrepl_image_write_zeroes(r->image, 0, 0, 1, 0, NULL), -EROFS);
    assert_int_equal(blkrepl_write_begin(r->image, &what, &completion, &token), -EROFS);
    assert_int_equal(blkrepl_image_query(r->image, &info), 0);
    assert_int_equal(info.flags, BLKREPL_IMAGE_READ_ONLY);
    assert_int_equal(info.bytes, 64 * KIB);
    assert_int_equal(info.cluster_bytes, CLUSTER);
    assert_int_equal(blkrepl_backup_create(r->from, r->image, NULL, &job), -EROFS);
    completion = done_of(&done);
    assert_int_equal(blkrepl_image_flush(r->image, 0, &completion), 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&r->source, 0) + script_count(&r->target, 0), 0);
}

static void other_read_only_images_take_no_discards(void **state)
{
    struct snap_rig *r = *state;

    r->source.info.flags = BLKREPL_BACKEND_READ_ONLY;
    snap_open(r, NULL);
    assert_int_equal(blkrepl_image_discard(r->from, 0, 0, 4096, 0, NULL), -EROFS);
    snap_discard(r, 0, 4096);
}

/* ---- Several ------------------------------------------------------------------- */

static void snapshots_of_several_points_in_time(void **state)
{
    struct snap_rig r;
    struct script second;
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .cluster_bytes = 2 * CLUSTER, .sync = BLKREPL_SYNC_NONE};
    unsigned char *then = malloc(64 * KIB);
    unsigned char *data = malloc(64 * KIB);
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_iovec iov = {.base = data, .len = 64 * KIB};
    blkrepl_image *to;
    blkrepl_image *image;
    blkrepl_job *job;

    (void)state;
    assert_non_null(then);
    snap_init(&r, NULL, 64 * KIB);
    snap_open(&r, NULL);
    snap_overwrite(&r, 0, 10000);
    memcpy(then, r.source.disk, 64 * KIB);
    script_init(&second, 64 * KIB);
    to = script_open(&second, &r.rig);
    assert_int_equal(blkrepl_backup_start(r.from, to, &o, &job), 0);
    assert_int_equal(blkrepl_snapshot_open(job, NULL, &image), 0);
    snap_overwrite(&r, 9000, 40000);
    snap_expect_old(&r, 0, 64 * KIB);
    assert_int_equal(blkrepl_image_read(image, 0, 0, &iov, 1, 0, &completion), 0);
    rig_poll(&r.rig);
    done_assert(&done, 0);
    assert_memory_equal(data, then, 64 * KIB);
    blkrepl_job_free(job);
    blkrepl_image_close(image);
    blkrepl_image_close(to);
    snap_expect_old(&r, 0, 64 * KIB);
    snap_close(&r);
    script_fini(&second);
    free(then);
    free(data);
}

static void snapshot_is_the_source_of_a_backup(void **state)
{
    struct snap_rig r;
    struct script third;
    blkrepl_backup_options o = by_clusters(2);
    blkrepl_image *to;
    blkrepl_job *job;
    struct done write;

    (void)state;
    snap_init(&r, NULL, 256 * KIB);
    snap_open(&r, NULL);
    script_init(&third, 256 * KIB);
    third.hold = OP(WRITE);
    to = script_open(&third, &r.rig);
    assert_int_equal(blkrepl_backup_start(r.image, to, &o, &job), 0);
    rig_poll(&r.rig);
    for (uint64_t at = 0; at < 256 * KIB; at += 8192) { /* the guest goes on meanwhile */
        snap_write(&r, at + 4000, at + 8000, &write);
        if (third.waiting_count > 0) {
            script_end(&third, 0, 0);
        }
        rig_poll(&r.rig);
        done_assert(&write, 0);
    }
    third.hold = 0;
    script_end_all(&third);
    rig_poll(&r.rig);
    assert_result(job, BLKREPL_RESULT_DONE);
    assert_memory_equal(third.disk, r.old, 256 * KIB);
    blkrepl_job_free(job);
    blkrepl_image_close(to);
    snap_close(&r);
    script_fini(&third);
}

/* ---- The end --------------------------------------------------------------------- */

/* Requests in every place where one can be. */
struct crowd {
    struct snap_read source; /* at the source's backend */
    struct snap_read target; /* at the target's */
    struct snap_read task;   /* waits for a copy */
    struct snap_read behind; /* waits for a write from before the point in time */
    struct done discard;     /* waits for the reader of the target */
    struct done gone;        /* a discard at the target */
    struct done before;      /* that write */
    struct done write;       /* a guest that waits for the reader of the source */
};

static void crowd_discard(struct snap_rig *r, uint64_t start, uint64_t end, struct done *done)
{
    blkrepl_completion completion = done_of(done);

    assert_int_equal(blkrepl_image_discard(r->image, 0, start, end - start, 0, &completion), 0);
    rig_poll(&r->rig);
}

static void crowd_gather(struct snap_rig *r, struct crowd *c)
{
    snap_open_images(r);
    r->source.hold = OP(WRITE);
    snap_write(r, 40960, 45056, &c->before);
    snap_start(r, NULL);
    r->source.hold = 0;
    snap_overwrite(r, 0, 8192);
    snap_overwrite(r, 16384, 20480);
    r->source.hold = OP(READ);
    r->target.hold = ALL;
    snap_read(r, r->image, 40960, 45056, &c->behind);
    snap_read(r, r->image, 8192, 12288, &c->source);
    snap_read(r, r->image, 0, 4096, &c->target);
    r->source.hold = 0;
    snap_write(r, 32768, 36864, &c->before); /* its copy stays at the target */
    done_assert(&c->before, 0);
    snap_read(r, r->image, 32768, 36864, &c->task);
    crowd_discard(r, 0, 8192, &c->discard);
    crowd_discard(r, 16384, 20480, &c->gone);
    snap_write(r, 8192, 12288, &c->write);
    assert_int_equal(snap_count(r->image, SNAPSHOT_SOURCE), 1);
    assert_int_equal(snap_count(r->image, SNAPSHOT_TARGET), 1);
    assert_int_equal(snap_count(r->image, SNAPSHOT_WAIT), 2);
    assert_int_equal(snap_count(r->image, SNAPSHOT_HELD), 1);
    assert_int_equal(snap_count(r->image, SNAPSHOT_DISCARD), 1);
    ASSERT_PENDING(&c->write);
}

/* The job has ended: nobody is held by what it holds, and requests fail. */
static void crowd_scatter(struct snap_rig *r, struct crowd *c, int code)
{
    done_assert(&c->write, 0); /* though its reader is still at the source */
    assert_int_equal(r->source.disk[8192], 0xee);
    snap_assert_failed(&c->task, code);
    snap_assert_failed(&c->behind, code);
    done_assert(&c->discard, code);
    assert_int_equal(r->source.cancels, 1);
    assert_true(r->target.cancels >= 2);
    ASSERT_PENDING(&c->source.done);
    ASSERT_PENDING(&c->target.done);
    ASSERT_PENDING(&c->gone);
    snap_expect_code(r, 50000, 50001, code);
    script_end_all(&r->source);
    script_end_all(&r->target);
    rig_poll(&r->rig);
    snap_assert_failed(&c->source, code); /* it has read new data */
    snap_assert_failed(&c->target, code);
    done_assert(&c->gone, code);
    snap_expect_code(r, 0, 1, code);
}

static void requests_fail_when_the_job_is_cancelled(void **state)
{
    struct snap_rig *r = *state;
    struct crowd c;

    crowd_gather(r, &c);
    assert_int_equal(blkrepl_job_cancel(r->job, 0), 0);
    rig_poll(&r->rig);
    crowd_scatter(r, &c, -ESHUTDOWN);
}

static void requests_fail_with_what_the_job_has_failed_of(void **state)
{
    struct snap_rig *r = *state;
    struct crowd c;

    crowd_gather(r, &c);
    script_end(&r->target, script_find(&r->target, BLKREPL_OP_WRITE, 32768), -ENOSPC);
    rig_poll(&r->rig);
    crowd_scatter(r, &c, -ENOSPC);
}

static void requests_fail_when_the_job_is_done(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;

    snap_overwrite(r, 0, 4096);
    r->source.hold = OP(READ);
    snap_read(r, r->image, 4096, 8192, &read);
    assert_int_equal(blkrepl_job_complete(r->job), 0);
    script_end(&r->source, 0, 0); /* before the job has ended, and too late all the same */
    rig_poll(&r->rig);
    snap_assert_failed(&read, -ESHUTDOWN);
    assert_result(r->job, BLKREPL_RESULT_DONE);
    snap_expect_code(r, 0, 4096, -ESHUTDOWN);
    snap_expect_code(r, 8192, 8193, -ESHUTDOWN);
}

static void requests_fail_with_what_a_job_has_failed_of_at_last(void **state)
{
    struct snap_rig *r = *state;
    const blkrepl_backup_options options = {.on_target_error = BLKREPL_ON_ERROR_IGNORE};

    snap_open(r, &options);
    r->target.hold = OP(FLUSH);
    assert_int_equal(blkrepl_job_complete(r->job), 0);
    rig_poll(&r->rig);
    snap_expect_code(r, 0, 4096, -ESHUTDOWN); /* nobody knows yet */
    assert_int_equal(open_with(r, NULL), BLKREPL_ERR_STATE);
    script_end(&r->target, 0, -EDQUOT);
    rig_poll(&r->rig);
    snap_expect_code(r, 0, 4096, -EDQUOT);
}

static void requests_that_have_not_set_out_are_taken_back(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read reads[3];

    r->source.info.queue_depth = 1;
    r->target.info.queue_depth = 1;
    r->source.hold = OP(READ);
    snap_open(r, NULL);
    for (int i = 0; i < 3; i++) {
        snap_read(r, r->image, 0, 4096, &reads[i]);
    }
    assert_int_equal(r->source.waiting_count, 1);
    assert_int_equal(r->from->jobs_reading, 4);
    assert_int_equal(blkrepl_job_cancel(r->job, 0), 0);
    rig_poll(&r->rig);
    snap_assert_failed(&reads[1], -ESHUTDOWN);
    snap_assert_failed(&reads[2], -ESHUTDOWN);
    assert_int_equal(r->from->jobs_reading, 1);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    snap_assert_failed(&reads[0], -ESHUTDOWN);
    assert_int_equal(r->from->jobs_reading, 0);
}

static void nobody_writes_the_target_under_a_late_discard(void **state)
{
    struct snap_rig *r = *state;
    struct done discard;
    struct done write;
    blkrepl_completion completion = done_of(&write);
    unsigned char data[4096];
    blkrepl_iovec iov = {.base = data, .len = sizeof data};
    blkrepl_job *job;

    memset(data, 0x11, sizeof data);
    snap_overwrite(r, 0, 4096);
    r->target.hold = OP(DISCARD);
    crowd_discard(r, 0, 4096, &discard);
    assert_int_equal(blkrepl_job_cancel(r->job, 0), 0);
    rig_poll(&r->rig);
    assert_int_equal(blkrepl_image_write(r->to, 0, 0, &iov, 1, 0, &completion), 0);
    rig_poll(&r->rig);
    ASSERT_PENDING(&write);
    assert_int_equal(blkrepl_backup_create(r->from, r->to, NULL, &job), -EBUSY);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    done_assert(&discard, -ESHUTDOWN);
    done_assert(&write, 0);
    assert_int_equal(r->target.disk[0], 0x11);
    assert_int_equal(blkrepl_backup_create(r->from, r->to, NULL, &job), 0);
    blkrepl_job_free(job);
}

static void images_live_as_long_as_the_snapshot(void **state)
{
    struct snap_rig r;
    struct snap_read read;

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    r.source.hold = OP(READ);
    snap_open(&r, NULL);
    snap_read(&r, r.image, 0, 4096, &read);
    blkrepl_image_close(r.from);
    blkrepl_image_close(r.to);
    assert_int_equal(blkrepl_job_cancel(r.job, 0), 0);
    blkrepl_job_free(r.job);
    rig_poll(&r.rig);
    assert_int_equal(blkrepl_context_free(r.rig.ctx), -EBUSY);
    blkrepl_image_close(r.image); /* under its reader */
    rig_poll(&r.rig);
    assert_int_equal(r.source.closed + r.target.closed, 0);
    assert_int_equal(blkrepl_context_free(r.rig.ctx), -EBUSY);
    ASSERT_PENDING(&read.done);
    script_end(&r.source, 0, 0);
    rig_close(&r.rig);
    snap_assert_failed(&read, -ESHUTDOWN);
    script_fini(&r.source);
    script_fini(&r.target);
    free(r.old);
}

static void images_are_closed_behind_the_snapshot(void **state)
{
    struct snap_rig r;

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    snap_open(&r, NULL);
    blkrepl_image_close(r.from);
    blkrepl_image_close(r.to);
    assert_int_equal(blkrepl_job_cancel(r.job, 0), 0);
    blkrepl_job_free(r.job);
    rig_poll(&r.rig);
    assert_int_equal(r.source.closed + r.target.closed, 0);
    snap_expect_code(&r, 0, 4096, -ESHUTDOWN);
    blkrepl_image_close(r.image);
    assert_int_equal(r.source.closed + r.target.closed, 2);
    rig_close(&r.rig);
    script_fini(&r.source);
    script_fini(&r.target);
    free(r.old);
}

static void name_of_a_job_is_free_though_a_snapshot_holds_it(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_backup_options o = {.name = "fleecing"};
    blkrepl_job *job;

    snap_open(r, &o);
    assert_int_equal(blkrepl_job_cancel(r->job, 0), 0);
    rig_poll(&r->rig);
    blkrepl_job_free(r->job);
    assert_int_equal(blkrepl_job_find(r->rig.ctx, "fleecing", &job), -ENOENT);
    assert_int_equal(blkrepl_job_next(r->rig.ctx, 0, &job), -ENOENT);
    o.struct_size = sizeof o;
    assert_int_equal(blkrepl_backup_create(r->from, r->to, &o, &r->job), 0);
    snap_expect_code(r, 0, 1, -ESHUTDOWN);
}

static void image_is_closed_under_its_readers(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 64 * KIB, &read);
    blkrepl_image_close(r->image);
    rig_poll(&r->rig);
    ASSERT_PENDING(&read.done);
    r->source.hold = 0;
    script_end_all(&r->source);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
    r->image = snap_another(r);
    snap_expect_old(r, 0, 64 * KIB);
}

static void cancel_gives_up_what_another_job_reads(void **state)
{
    struct snap_rig r;
    struct script third;
    blkrepl_backup_options o = by_clusters(3);
    blkrepl_image *to;
    blkrepl_job *job;

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    r.source.info.opcodes &= ~OP(STATUS);
    r.source.info.queue_depth = 1;
    snap_open(&r, NULL);
    r.target.hold = OP(WRITE);
    snap_write(&r, 0, 4096, &(struct done){0}); /* the first cluster is on its way */
    r.source.hold = OP(READ);
    script_init(&third, 64 * KIB);
    third.info.opcodes &= ~OP(STATUS);
    to = script_open(&third, &r.rig);
    r.image->leaf->port.info.opcodes &= ~OP(STATUS);
    assert_int_equal(blkrepl_backup_start(r.image, to, &o, &job), 0);
    rig_poll(&r.rig);
    assert_int_equal(snap_count(r.image, SNAPSHOT_WAIT), 1);
    assert_int_equal(snap_count(r.image, SNAPSHOT_SOURCE), 2);
    assert_int_equal(r.source.waiting_count, 1);
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    rig_poll(&r.rig);
    assert_int_equal(r.source.cancels, 1);
    assert_int_equal(snap_count(r.image, SNAPSHOT_FREE), 31);
    script_end(&r.source, 0, -ECANCELED);
    rig_poll(&r.rig);
    assert_result(job, BLKREPL_RESULT_CANCELLED);
    r.source.hold = r.target.hold = 0;
    script_end_all(&r.target);
    rig_poll(&r.rig);
    snap_expect_old(&r, 0, 64 * KIB); /* the snapshot is as good as ever */
    blkrepl_job_free(job);
    blkrepl_image_close(to);
    snap_close(&r);
    script_fini(&third);
}

static void cancel_of_what_has_ended_does_nothing(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 4096, &read);
    r->image->leaf->port.ops.cancel(r->image->leaf->port.backend, 12345);
    assert_int_equal(r->source.cancels, 0);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
}

static void backend_is_told_once_that_a_request_is_not_wanted(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 64 * KIB, &read);
    for (int i = 0; i < 2; i++) {
        r->image->leaf->port.ops.cancel(snap_of(r->image), snap_of(r->image)->reads[0].io->id);
    }
    assert_int_equal(r->source.cancels, 1);
    assert_int_equal(blkrepl_job_cancel(r->job, 0), 0);
    rig_poll(&r->rig);
    assert_int_equal(r->source.cancels, 1);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    snap_assert_failed(&read, -ESHUTDOWN);
}

static void cancel_ends_a_read_of_several_pieces_with_the_first(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 2 * MIB, &read);
    r->image->leaf->port.ops.cancel(snap_of(r->image), snap_of(r->image)->reads[0].io->id);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    assert_int_equal(script_count(&r->source, BLKREPL_OP_READ), 1);
    snap_assert_failed(&read, -ECANCELED);
    assert_int_equal(r->from->jobs_reading, 1);
}

static void context_can_be_freed_with_everything_under_way(void **state)
{
    struct snap_rig r;
    struct crowd c;

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    crowd_gather(&r, &c);
    blkrepl_image_close(r.image);
    blkrepl_image_close(r.from);
    blkrepl_image_close(r.to);
    blkrepl_job_free(r.job);
    assert_int_equal(blkrepl_context_free(r.rig.ctx), -EBUSY);
    script_end_all(&r.source);
    script_end_all(&r.target);
    rig_close(&r.rig);
    snap_assert_failed(&c.source, -ESHUTDOWN);
    snap_assert_failed(&c.target, -ESHUTDOWN);
    snap_assert_failed(&c.task, -ESHUTDOWN);
    snap_assert_failed(&c.behind, -ESHUTDOWN);
    done_assert(&c.gone, -ESHUTDOWN);
    done_assert(&c.discard, -ESHUTDOWN);
    script_fini(&r.source);
    script_fini(&r.target);
    free(r.old);
}

static void open_is_refused_while_the_context_goes(void **state)
{
    struct snap_rig *r = *state;

    assert_int_equal(blkrepl_context_free(r->rig.ctx), -EBUSY);
    assert_int_equal(open_with(r, NULL), -ESHUTDOWN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SNAP_TEST(open_refuses_bad_options),
        SNAP_TEST_CLOSED(open_needs_a_job_that_is_ready_and_copies_nothing),
        cmocka_unit_test(open_needs_requests_for_all_that_it_does_at_once),
        SNAP_TEST_SIZE(open_without_memory_leaves_nothing, 10000),
        SNAP_TEST(image_takes_no_writes),
        SNAP_TEST_CLOSED(other_read_only_images_take_no_discards),
        cmocka_unit_test(snapshots_of_several_points_in_time),
        cmocka_unit_test(snapshot_is_the_source_of_a_backup),
        SNAP_TEST_CLOSED(requests_fail_when_the_job_is_cancelled),
        SNAP_TEST_CLOSED(requests_fail_with_what_the_job_has_failed_of),
        SNAP_TEST(requests_fail_when_the_job_is_done),
        SNAP_TEST_CLOSED(requests_fail_with_what_a_job_has_failed_of_at_last),
        SNAP_TEST_CLOSED(requests_that_have_not_set_out_are_taken_back),
        SNAP_TEST(nobody_writes_the_target_under_a_late_discard),
        cmocka_unit_test(images_live_as_long_as_the_snapshot),
        cmocka_unit_test(images_are_closed_behind_the_snapshot),
        SNAP_TEST_CLOSED(name_of_a_job_is_free_though_a_snapshot_holds_it),
        SNAP_TEST_CLOSED(image_is_closed_under_its_readers),
        cmocka_unit_test(cancel_gives_up_what_another_job_reads),
        SNAP_TEST_CLOSED(cancel_of_what_has_ended_does_nothing),
        SNAP_TEST_CLOSED(backend_is_told_once_that_a_request_is_not_wanted),
        SNAP_TEST_SIZE(cancel_ends_a_read_of_several_pieces_with_the_first, 2 * MIB),
        cmocka_unit_test(context_can_be_freed_with_everything_under_way),
        SNAP_TEST(open_is_refused_while_the_context_goes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
