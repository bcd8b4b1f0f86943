/* SPDX-License-Identifier: MIT */
/* What a reader of snapshots has found: each of these has failed once. */
#include "unit/snap_rig.h"

/* Guests wait for the only buffers, at a target that has hung. */
static void hang(struct snap_rig *r, struct done writes[4])
{
    blkrepl_backup_options o = {.cluster_bytes = CLUSTER,
                                .reserve_bytes = CLUSTER,
                                .workers_max = 1,
                                .cbw_timeout_ns = 30 * SECOND,
                                .on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS};

    snap_init(r, NULL, 64 * KIB);
    snap_open(r, &o);
    r->target.hold = OP(WRITE) | OP(ZEROES) | OP(FLUSH);
    for (unsigned i = 0; i < 3; i++) {
        snap_write(r, i * CLUSTER, (i + 1) * CLUSTER, &writes[i]);
        ASSERT_PENDING(&writes[i]);
    }
    assert_int_equal(r->target.waiting_count, 2); /* the third has no buffer */
}

static void who_waits_for_a_buffer_goes_when_nothing_needs_to_be_saved_any_more(void **state)
{
    struct snap_rig r;
    struct done writes[4];
    struct done later;

    (void)state;
    hang(&r, writes);
    assert_int_equal(blkrepl_job_complete(r.job), 0);
    rig_poll(&r.rig);
    snap_write(&r, 5 * CLUSTER, 6 * CLUSTER, &later); /* one that comes now does not wait */
    done_assert(&later, 0);
    assert_int_equal(writes[2].calls, 1);
    done_assert(&writes[2], 0);
    snap_close(&r);
}

static void who_waits_for_a_buffer_goes_when_its_cluster_is_discarded(void **state)
{
    struct snap_rig r;
    struct done writes[4];

    (void)state;
    hang(&r, writes);
    snap_discard(&r, 2 * CLUSTER, 3 * CLUSTER);
    rig_poll(&r.rig);
    assert_int_equal(writes[2].calls, 1);
    done_assert(&writes[2], 0);
    snap_close(&r);
}

/* It is told that it is at its end, not that somebody has discarded this part. */
static void after_complete_requests_are_told_that_the_job_ends(void **state)
{
    struct snap_rig r;

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    snap_open(&r, NULL);
    r.target.hold = OP(FLUSH);
    assert_int_equal(blkrepl_job_complete(r.job), 0);
    rig_poll(&r.rig);
    snap_expect_code(&r, 0, 4096, -ESHUTDOWN);
    snap_close(&r);
}

/* A guest that reads without a pause, two requests at a time, at a backend that takes one:
 * its lane always has something to send.  Whoever writes where a snapshot is being read
 * must not wait for an end of that. */
static void a_write_behind_a_snapshot_read_is_not_starved_by_other_guests(void **state)
{
    struct snap_rig r;
    struct snap_read past;
    struct done write;
    struct done reads[2];
    unsigned char data[512];
    blkrepl_iovec iov = {data, sizeof data};

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    r.source.info.queue_depth = 1;
    snap_open(&r, NULL);
    r.source.hold = ALL;
    for (unsigned i = 0; i < 2; i++) {
        blkrepl_completion c = done_of(&reads[i]);

        assert_int_equal(blkrepl_image_read(r.from, 0, (60 + i) * KIB, &iov, 1, 0, &c), 0);
    }
    rig_poll(&r.rig);
    snap_read(&r, r.image, 0, 4096, &past);
    snap_write(&r, 0, 4096, &write);
    for (unsigned i = 0; i < 1000 && write.calls == 0; i++) {
        script_end(&r.source, 0, 0);
        rig_poll(&r.rig);
        for (unsigned n = 0; n < 2; n++) {
            if (reads[n].calls > 0) {
                blkrepl_completion c = done_of(&reads[n]);

                assert_int_equal(blkrepl_image_read(r.from, 0, (60 + n) * KIB, &iov, 1, 0, &c), 0);
            }
        }
        rig_poll(&r.rig);
    }
    assert_int_equal(write.calls, 1);
    done_assert(&write, 0);
    r.source.hold = 0;
    script_end_all(&r.source);
    rig_poll(&r.rig);
    snap_assert_old(&r, &past);
    snap_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_waits_for_a_buffer_goes_when_nothing_needs_to_be_saved_any_more),
        cmocka_unit_test(who_waits_for_a_buffer_goes_when_its_cluster_is_discarded),
        cmocka_unit_test(after_complete_requests_are_told_that_the_job_ends),
        cmocka_unit_test(a_write_behind_a_snapshot_read_is_not_starved_by_other_guests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
