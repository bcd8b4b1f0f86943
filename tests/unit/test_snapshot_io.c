/* SPDX-License-Identifier: MIT */
#include "unit/snap_rig.h"

#include "base/hook.h"

#define DATA BLKREPL_EXTENT_DATA
#define ZERO BLKREPL_EXTENT_ZERO
#define ALLOCATED BLKREPL_EXTENT_ALLOCATED

/* ---- Where the data come from ------------------------------------------------ */

static void read_shows_what_was_there_before_a_write(void **state)
{
    struct snap_rig *r = *state;

    snap_expect_old(r, 0, 64 * KIB);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_READ), 0);
    snap_overwrite(r, 5000, 14000);
    snap_expect_old(r, 0, 64 * KIB);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_READ), 1);
    snap_expect_old(r, 4096, 16384);
    snap_expect_old(r, 4097, 16383);
    snap_overwrite(r, 0, 64 * KIB);
    script_forget(&r->source);
    snap_expect_old(r, 0, 64 * KIB);
    assert_int_equal(script_count(&r->source, BLKREPL_OP_READ), 0);
}

static void read_waits_for_writes_from_before_the_point_in_time(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct snap_read beside;
    struct done write;

    snap_open_images(r);
    r->source.hold = OP(WRITE);
    snap_write(r, 4096, 8192, &write);
    snap_start(r, NULL);
    snap_read(r, r->image, 0, 16 * KIB, &read);
    assert_int_equal(snap_count(r->image, SNAPSHOT_WAIT), 1);
    snap_read(r, r->image, 8192, 16 * KIB, &beside); /* it holds up nobody else */
    snap_assert_old(r, &beside);
    ASSERT_PENDING(&read.done);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    done_assert(&write, 0);
    memcpy(r->old, r->source.disk, 64 * KIB); /* it was before the point in time */
    snap_assert_old(r, &read);
}

static void read_that_has_waited_looks_again_where_the_data_are(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct done before;
    struct done after;

    snap_open_images(r);
    r->source.hold = OP(WRITE);
    snap_write(r, 0, 4096, &before);
    snap_start(r, NULL);
    snap_read(r, r->image, 0, 12 * KIB, &read);
    snap_write(r, 4096, 8192, &after); /* saved meanwhile, and overwritten */
    script_end(&r->source, 1, 0);
    rig_poll(&r->rig);
    done_assert(&after, 0);
    ASSERT_PENDING(&read.done);
    script_forget(&r->source);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    memcpy(r->old, r->source.disk, 4096);
    snap_assert_old(r, &read);
    assert_int_equal(script_count(&r->source, BLKREPL_OP_READ), 2); /* not the middle */
}

static void read_goes_before_a_bracket_that_has_not_been_told(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct done write;
    struct done go;
    uint64_t token;
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .offset = 0, .bytes = 8192};
    blkrepl_completion completion = done_of(&go);

    snap_open_images(r);
    r->source.hold = OP(WRITE);
    snap_write(r, 0, 4096, &write);
    assert_int_equal(blkrepl_write_begin(r->from, &what, &completion, &token), BLKREPL_WAIT);
    script_end(&r->source, 0, 0);
    blkrepl__enter(r->rig.ctx); /* its GO is due, and no poll has told it */
    blkrepl__leave(r->rig.ctx, 0);
    r->source.hold = OP(READ);
    r->polls_late = true;
    snap_start(r, NULL);
    snap_read(r, r->image, 0, 8192, &read);
    assert_int_equal(snap_count(r->image, SNAPSHOT_SOURCE), 1);
    ASSERT_PENDING(&go);
    rig_poll(&r->rig);
    ASSERT_PENDING(&go);
    while (r->source.waiting_count > 0) {
        script_end(&r->source, r->source.waiting_count - 1, 0);
        rig_poll(&r->rig);
    }
    done_assert(&go, 0);
    snap_assert_old(r, &read);
    assert_int_equal(blkrepl_write_end(r->rig.ctx, token, 0, NULL, 0, NULL), 0);
}

static void write_waits_for_a_read_of_the_source(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read first;
    struct snap_read second;
    struct done write;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 8192, &first);
    snap_read(r, r->image, 4096, 12288, &second); /* they may overlap */
    assert_int_equal(snap_count(r->image, SNAPSHOT_SOURCE), 2);
    snap_write(r, 4096, 8192, &write);
    script_end(&r->source, 2, 0); /* its old data are saved */
    rig_poll(&r->rig);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_WRITE), 1);
    assert_int_equal(script_count(&r->source, BLKREPL_OP_WRITE), 0);
    script_end(&r->source, 1, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &second);
    assert_int_equal(script_count(&r->source, BLKREPL_OP_WRITE), 0);
    ASSERT_PENDING(&write);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &first);
    done_assert(&write, 0);
}

static void guest_that_waits_hastens_the_read(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read busy;
    struct snap_read read;
    struct done writes[2];

    r->source.info.queue_depth = 1;
    r->source.info.transfer_bytes_max = 4096;
    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->from, 60 * KIB, 61 * KIB, &busy); /* a guest's, who has the only place */
    snap_read(r, r->image, 0, 8192, &read);
    snap_of(r->image)->reads[0].request->io.flags = BLKREPL_IO_BACKGROUND;
    snap_write(r, 0, 4096, &writes[0]); /* its old data come from the same backend, */
    snap_write(r, 4096, 8192, &writes[1]);
    for (int i = 0; i < 3; i++) {
        script_end(&r->source, 0, 0);
        rig_poll(&r->rig);
    }
    assert_int_equal(r->source.waiting[0]->offset, 0); /* then it waits for the reader */
    assert_int_equal(r->source.waiting[0]->flags, 0);
    assert_false(snap_of(r->image)->reads[0].request->job);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    assert_int_equal(r->source.waiting[0]->offset, 4096);
    assert_false(snap_of(r->image)->reads[0].request->job); /* and what follows */
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
    free(busy.data);
    done_assert(&writes[0], 0);
    done_assert(&writes[1], 0);
}

static void read_waits_for_the_copy_that_has_its_cluster(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct done write;

    r->target.hold = OP(WRITE);
    snap_open(r, NULL);
    snap_write(r, 4096, 8192, &write);
    done_assert(&write, 0); /* the old data are in a buffer */
    snap_read(r, r->image, 0, 12 * KIB, &read);
    assert_int_equal(snap_count(r->image, SNAPSHOT_WAIT), 1);
    ASSERT_PENDING(&read.done);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
}

static void read_of_a_cluster_whose_copy_has_failed_takes_it_from_the_source(void **state)
{
    struct snap_rig *r = *state;
    const blkrepl_backup_options options = {.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS};
    struct snap_read read;
    struct done write;

    r->target.hold = OP(WRITE);
    snap_open(r, &options);
    snap_write(r, 4096, 8192, &write);
    snap_read(r, r->image, 4096, 8192, &read);
    ASSERT_PENDING(&read.done);
    script_end(&r->target, 0, -EIO);
    rig_poll(&r->rig);
    done_assert(&write, -EIO);
    snap_assert_old(r, &read);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_READ), 0);
}

static void read_in_pieces_fills_each_entry_with_its_bytes(void **state)
{
    struct snap_rig *r = *state;
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_iovec iov[400];
    unsigned char *data = malloc(64 * KIB + 400);
    unsigned char *at = data;
    uint64_t left = 60000;
    uint64_t offset = 1234;
    uint32_t count = 0;

    assert_non_null(data);
    memset(data, 0x77, 64 * KIB + 400);
    for (uint64_t cluster = 1; cluster < 16; cluster += 2) {
        snap_overwrite(r, cluster * CLUSTER, (cluster + 1) * CLUSTER);
    }
    for (; left > 0; count++) { /* entries of many lengths, a byte between them */
        size_t len = (size_t)min_u64(left, count % 9 == 4 ? 0 : 47 * (count % 11) + 1);

        iov[count] = (blkrepl_iovec){.base = at, .len = len};
        at += len + 1;
        left -= len;
    }
    assert_in_range(count, 200, 399);
    assert_int_equal(blkrepl_image_read(r->image, 0, offset, iov, count, 0, &completion), 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
    for (uint32_t i = 0; i < count; i++) {
        assert_memory_equal(iov[i].base, r->old + offset, iov[i].len);
        assert_int_equal(((unsigned char *)iov[i].base)[iov[i].len], 0x77);
        offset += iov[i].len;
    }
    free(data);
}

static void read_keeps_to_the_limits_of_both_backends(void **state)
{
    struct snap_rig *r = *state;

    r->source.info.request_alignment = 512;
    r->source.info.transfer_bytes_max = 1536;
    r->source.info.iov_count_max = 3;
    r->target.info.request_alignment = 4096;
    r->target.info.memory_alignment = 512;
    r->target.info.transfer_bytes_max = 4096;
    r->target.info.iov_count_max = 1;
    snap_open(r, NULL);
    assert_int_equal(r->image->leaf->port.info.request_alignment, 4096);
    assert_int_equal(r->image->leaf->port.info.memory_alignment, 512);
    assert_int_equal(r->image->leaf->port.info.iov_count_max, 1);
    assert_int_equal(r->image->leaf->port.info.cluster_bytes, CLUSTER);
    snap_expect_old(r, 0, 64 * KIB);
    snap_overwrite(r, 8192, 20000);
    snap_expect_old(r, 0, 64 * KIB);
    snap_expect_old(r, 8191, 30001);
}

static void read_of_the_source_is_in_pieces_that_guests_can_wait_for(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct done write;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 4 * MIB, &read);
    assert_int_equal(r->source.waiting[0]->bytes, MIB);
    snap_write(r, 2 * MIB, 2 * MIB + 4096, &write);
    assert_int_equal(r->source.waiting[1]->offset, 2 * MIB);
    script_end(&r->source, 1, 0);
    rig_poll(&r->rig);
    done_assert(&write, 0);
    r->source.hold = 0;
    script_end_all(&r->source);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
}

static void errors_of_both_backends_are_passed_on(void **state)
{
    struct snap_rig *r = *state;

    snap_overwrite(r, 4096, 8192);
    r->source.result[BLKREPL_OP_READ] = -EIO;
    snap_expect_code(r, 0, 12288, -EIO);
    snap_expect_old(r, 4096, 8192);
    r->source.result[BLKREPL_OP_READ] = 0;
    r->target.result[BLKREPL_OP_READ] = -ENXIO;
    snap_expect_code(r, 0, 12288, -ENXIO);
    snap_expect_old(r, 0, 4096);
    r->target.result[BLKREPL_OP_READ] = 0;
    snap_expect_old(r, 0, 64 * KIB); /* the job has nothing to do with it */
}

/* ---- Where the source ends --------------------------------------------------- */

/* A source that ends inside of the target's third block. */
static int tail_setup(void **state)
{
    struct snap_rig *r = malloc(sizeof *r);

    assert_non_null(r);
    snap_init(r, NULL, 10000);
    script_fini(&r->target);
    script_init(&r->target, 16 * KIB);
    r->target.info.request_alignment = 4096;
    r->target.info.memory_alignment = 512;
    snap_open(r, NULL);
    *state = r;
    return 0;
}

#define TAIL_TEST(f) cmocka_unit_test_setup_teardown(f, tail_setup, snap_teardown)

static void read_of_the_last_block_goes_through_a_buffer(void **state)
{
    struct snap_rig *r = *state;

    assert_int_equal(image_bytes(r->image), 10000);
    snap_expect_old(r, 0, 10000);
    snap_overwrite(r, 9999, 10000);
    snap_expect_old(r, 0, 10000);
    snap_expect_old(r, 9000, 10000);
    snap_expect_old(r, 9000, 9999);
    snap_overwrite(r, 0, 10000);
    snap_expect_old(r, 0, 10000);
    snap_expect_old(r, 4000, 10000);
    snap_expect_old(r, 9999, 10000);
}

static void readers_of_the_last_block_have_the_buffer_one_by_one(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read reads[3];

    snap_overwrite(r, 0, 10000);
    r->target.hold = OP(READ);
    for (int i = 0; i < 3; i++) {
        snap_read(r, r->image, 8192, 10000, &reads[i]);
    }
    assert_int_equal(snap_count(r->image, SNAPSHOT_TARGET), 1);
    assert_int_equal(snap_count(r->image, SNAPSHOT_WAIT), 2);
    script_end(&r->target, 0, -EIO);
    rig_poll(&r->rig);
    snap_assert_failed(&reads[0], -EIO);
    assert_int_equal(snap_count(r->image, SNAPSHOT_TARGET), 1);
    snap_discard(r, 0, 4096); /* somewhere else */
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &reads[1]);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &reads[2]);
}

static void last_block_needs_no_buffer_where_the_disks_end_together(void **state)
{
    struct snap_rig *r = *state;

    r->target.info.request_alignment = 4096;
    snap_open(r, NULL);
    assert_null(snap_of(r->image)->tail);
    snap_overwrite(r, 0, 10000);
    snap_expect_old(r, 0, 10000);
    snap_expect_old(r, 9999, 10000);
}

/* ---- Status -------------------------------------------------------------------- */

static void status_is_of_the_source_or_of_the_target_or_nothing(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_extent e[8];

    r->source.map[0] = (blkrepl_extent){.bytes = 32 * KIB, .flags = ZERO};
    r->source.map[1] = (blkrepl_extent){.bytes = 32 * KIB, .flags = DATA | ALLOCATED};
    snap_open(r, NULL);
    snap_status(r, 0, 64 * KIB, e, 8);
    assert_int_equal(e[0].bytes, 32 * KIB);
    assert_int_equal(e[0].flags, ZERO);
    assert_int_equal(e[1].bytes, 32 * KIB);
    assert_int_equal(e[1].flags, DATA | ALLOCATED);
    assert_int_equal(e[2].bytes, 0);
    snap_overwrite(r, 4096, 8192);
    snap_discard(r, 8192, 16384);
    snap_overwrite(r, 32 * KIB, 36 * KIB);
    r->target.map[0] = (blkrepl_extent){.bytes = 32 * KIB, .flags = ZERO | ALLOCATED};
    snap_status(r, 0, 64 * KIB, e, 8);
    assert_int_equal(e[0].bytes, 4096);
    assert_int_equal(e[0].flags, ZERO);
    assert_int_equal(e[1].bytes, 4096);
    assert_int_equal(e[1].flags, ZERO | ALLOCATED);
    assert_int_equal(e[2].bytes, 8192);
    assert_int_equal(e[2].flags, 0);
    assert_int_equal(e[3].bytes, 16384);
    assert_int_equal(e[3].flags, ZERO);
    assert_int_equal(e[4].bytes, 32 * KIB); /* of both, and the same */
    assert_int_equal(e[4].flags, DATA | ALLOCATED);
    assert_int_equal(e[5].bytes, 0);
    snap_status(r, 0, 64 * KIB, e, 3); /* a list that is full ends early */
    assert_int_equal(e[2].bytes, 8192);
    snap_status(r, 6000, 9000, e, 8);
    assert_int_equal(e[0].bytes, 2192);
    assert_int_equal(e[1].bytes, 808);
    assert_int_equal(e[1].flags, 0);
}

static void status_is_all_data_where_backends_cannot_tell(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_extent e[4];

    r->source.info.opcodes &= ~OP(STATUS);
    r->target.info.opcodes &= ~OP(STATUS);
    snap_open(r, NULL);
    snap_overwrite(r, 4096, 8192);
    snap_status(r, 0, 64 * KIB, e, 4);
    assert_int_equal(e[0].bytes, 64 * KIB);
    assert_int_equal(e[0].flags, DATA | ALLOCATED);
    assert_int_equal(e[1].bytes, 0);
}

static void status_that_fails_or_makes_no_sense(void **state)
{
    struct snap_rig *r = *state;
    struct done done;
    blkrepl_completion completion;
    blkrepl_extent e[4];

    snap_overwrite(r, 0, 8192);
    r->target.result[BLKREPL_OP_STATUS] = -EIO;
    snap_status(r, 0, 8192, e, 4);
    assert_int_equal(e[0].bytes, 8192);
    assert_int_equal(e[0].flags, DATA | ALLOCATED);
    r->target.result[BLKREPL_OP_STATUS] = 0;
    r->target.map_raw = true;
    r->target.map[0] = (blkrepl_extent){.bytes = 8193, .flags = ZERO};
    snap_status(r, 0, 8192, e, 4);
    assert_int_equal(e[0].bytes, 8192);
    assert_int_equal(e[0].flags, DATA | ALLOCATED);
    assert_int_equal(e[1].bytes, 0);
    r->source.map_raw = true;
    for (int i = 0; i < 4; i++) {
        const blkrepl_extent bad[] = {{.bytes = 0},
                                      {.bytes = 4097, .flags = ZERO},
                                      {.bytes = 4096, .flags = 8},
                                      {.bytes = 4096, .flags = ZERO}};

        r->source.map[0] = bad[i];
        r->source.result[BLKREPL_OP_STATUS] = i == 3 ? -EPERM : 0;
        completion = done_of(&done);
        assert_int_equal(blkrepl_image_status(r->image, 0, 16384, 4096, e, 4, &completion), 0);
        rig_poll(&r->rig);
        done_assert(&done, i == 3 ? -EPERM : -EIO);
    }
}

static void status_ends_where_a_backend_has_told_no_more(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_extent e[4];

    r->source.info.request_alignment = 512;
    r->source.extents_most = 1;
    r->source.map[0] = (blkrepl_extent){.bytes = 5000, .flags = ZERO};
    r->source.map[1] = (blkrepl_extent){.bytes = 60536, .flags = DATA};
    snap_open(r, NULL);
    snap_status(r, 0, 64 * KIB, e, 4);
    assert_int_equal(e[0].bytes, 5000);
    assert_int_equal(e[1].bytes, 0);
    snap_status(r, 4608, 64 * KIB, e, 4);
    assert_int_equal(e[0].bytes, 392);
}

static void status_of_the_last_block_ends_with_the_source(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_extent e[4];

    snap_overwrite(r, 0, 10000);
    r->target.map[0] = (blkrepl_extent){.bytes = 9000, .flags = DATA};
    r->target.map[1] = (blkrepl_extent){.bytes = 7384, .flags = ZERO};
    snap_status(r, 0, 10000, e, 4);
    assert_int_equal(e[0].bytes, 9000);
    assert_int_equal(e[1].bytes, 1000);
    assert_int_equal(e[1].flags, ZERO);
    assert_int_equal(e[2].bytes, 0);
}

static void status_is_not_of_what_a_guest_writes_meanwhile(void **state)
{
    struct snap_rig *r = *state;
    struct done done;
    struct done write;
    blkrepl_completion completion = done_of(&done);
    blkrepl_extent e[4];

    r->source.hold = OP(STATUS);
    snap_open(r, NULL);
    assert_int_equal(blkrepl_image_status(r->image, 0, 0, 8192, e, 4, &completion), 0);
    rig_poll(&r->rig);
    snap_write(r, 0, 4096, &write);
    ASSERT_PENDING(&write);
    assert_int_equal(script_count(&r->source, BLKREPL_OP_WRITE), 0);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
    done_assert(&write, 0);
}

/* ---- Discards ------------------------------------------------------------------ */

static void discard_makes_whole_clusters_unreadable(void **state)
{
    struct snap_rig *r = *state;
    blkrepl_image *other;
    struct snap_read read;

    other = snap_another(r);
    snap_overwrite(r, 16384, 24576);
    snap_discard(r, 4097, 8191); /* less than a cluster */
    snap_discard(r, 4097, 12287);
    snap_expect_old(r, 0, 64 * KIB);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_DISCARD), 0);
    snap_discard(r, 4097, 24577);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_DISCARD), 1); /* what was there */
    assert_int_equal(r->target.notes[r->target.note_count - 1].offset, 16384);
    assert_int_equal(r->target.notes[r->target.note_count - 1].bytes, 8192);
    snap_expect_old(r, 0, 8192);
    snap_expect_old(r, 24576, 64 * KIB);
    snap_expect_code(r, 0, 8193, -EACCES);
    snap_expect_code(r, 8192, 8193, -EACCES);
    snap_expect_code(r, 20000, 30000, -EACCES);
    snap_read(r, other, 20000, 20001, &read);
    snap_assert_failed(&read, -EACCES);
    script_forget(&r->target);
    snap_overwrite(r, 8192, 24576); /* nothing is saved */
    assert_int_equal(script_count(&r->target, 0), 0);
    snap_discard(r, 0, 64 * KIB); /* once more */
    assert_int_equal(script_count(&r->target, 0), 0);
    blkrepl_image_close(other);
}

static void discard_of_what_the_target_keeps(void **state)
{
    struct snap_rig r;

    (void)state;
    snap_init(&r, NULL, 64 * KIB);
    r.target.info.opcodes &= ~OP(DISCARD);
    snap_open(&r, NULL);
    snap_overwrite(&r, 0, 8192);
    snap_discard(&r, 0, 8192);
    snap_expect_code(&r, 0, 1, -EACCES);
    snap_close(&r);

    snap_init(&r, NULL, 64 * KIB);
    r.target.info.zeroes_bytes_max = 4096;
    r.target.result[BLKREPL_OP_DISCARD] = -EIO;
    snap_open(&r, NULL);
    snap_overwrite(&r, 0, 12288);
    snap_discard(&r, 0, 12288);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_DISCARD), 3); /* nobody minds */
    snap_expect_code(&r, 0, 1, -EACCES);
    snap_close(&r);
}

static void discard_of_the_last_cluster_takes_the_targets_block(void **state)
{
    struct snap_rig *r = *state;

    snap_overwrite(r, 0, 10000);
    snap_discard(r, 4096, 10000);
    assert_int_equal(r->target.notes[r->target.note_count - 1].offset, 4096);
    assert_int_equal(r->target.notes[r->target.note_count - 1].bytes, 8192);
    snap_expect_old(r, 0, 4096);
    snap_expect_code(r, 9999, 10000, -EACCES);
}

static void discard_in_the_target_waits_for_readers_of_any_snapshot(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct snap_read late;
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_image *other;

    r->target.hold = OP(READ);
    snap_open(r, NULL);
    other = snap_another(r);
    snap_overwrite(r, 0, 16384);
    snap_read(r, other, 4096, 8192, &read);
    assert_int_equal(blkrepl_image_discard(r->image, 0, 0, 16384, 0, &completion), 0);
    rig_poll(&r->rig);
    assert_int_equal(snap_count(r->image, SNAPSHOT_HELD), 1);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_DISCARD), 0);
    snap_read(r, other, 4096, 8192, &late); /* and does not wait for later ones */
    snap_assert_failed(&late, -EACCES);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
    done_assert(&done, 0);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_DISCARD), 1);
    blkrepl_image_close(other);
}

static void discard_waits_for_several_readers_one_after_the_other(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read reads[2];
    struct done done;
    blkrepl_completion completion = done_of(&done);

    r->target.hold = OP(READ);
    snap_open(r, NULL);
    snap_overwrite(r, 0, 16384);
    snap_read(r, r->image, 0, 4096, &reads[0]);
    snap_read(r, r->image, 8192, 12288, &reads[1]);
    assert_int_equal(blkrepl_image_discard(r->image, 0, 0, 16384, 0, &completion), 0);
    rig_poll(&r->rig);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    ASSERT_PENDING(&done);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
    snap_assert_old(r, &reads[0]);
    snap_assert_old(r, &reads[1]);
}

static void discard_under_a_reader_of_the_source_lets_it_read(void **state)
{
    struct snap_rig *r = *state;
    struct snap_read read;
    struct done write;

    r->source.hold = OP(READ);
    snap_open(r, NULL);
    snap_read(r, r->image, 0, 8192, &read);
    snap_discard(r, 0, 8192);
    snap_write(r, 0, 4096, &write); /* nothing to save, but somebody reads */
    ASSERT_PENDING(&write);
    script_end(&r->source, 0, 0);
    rig_poll(&r->rig);
    snap_assert_old(r, &read);
    done_assert(&write, 0);
}

static void discard_waits_for_a_copy_on_its_way(void **state)
{
    struct snap_rig *r = *state;
    struct done write;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    r->target.hold = OP(WRITE);
    snap_open(r, NULL);
    snap_write(r, 4096, 8192, &write);
    assert_int_equal(blkrepl_image_discard(r->image, 0, 0, 16384, 0, &completion), 0);
    rig_poll(&r->rig);
    ASSERT_PENDING(&done);
    script_end(&r->target, 0, 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&r->target, BLKREPL_OP_DISCARD), 1);
    snap_expect_code(r, 4096, 8192, -EACCES);
}

static void discard_of_many_runs_lets_others_have_a_turn(void **state)
{
    struct snap_rig *r = *state;

    snap_open(r, NULL);
    for (uint64_t cluster = 0; cluster < 512; cluster += 2) {
        snap_discard(r, cluster * CLUSTER, (cluster + 1) * CLUSTER);
    }
    snap_discard(r, 0, 2 * MIB); /* more than is done at once */
    for (uint64_t cluster = 0; cluster < 512; cluster++) {
        snap_expect_code(r, cluster * CLUSTER, cluster * CLUSTER + 1, -EACCES);
    }
}

static void discard_is_recorded_by_the_targets_bitmaps(void **state)
{
    struct snap_rig *r = *state;
    const blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .name = "b", .granularity_bytes = 4096};
    blkrepl_bitmap *bitmap;
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    snap_overwrite(r, 0, 16384);
    assert_int_equal(blkrepl_bitmap_add(r->to, &options, &bitmap), 0);
    snap_discard(r, 4096, 12288);
    assert_int_equal(blkrepl_bitmap_query(bitmap, &info), 0);
    assert_int_equal(info.dirty_bytes, 8192);
    blkrepl_bitmap_free(bitmap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SNAP_TEST(read_shows_what_was_there_before_a_write),
        SNAP_TEST_CLOSED(read_waits_for_writes_from_before_the_point_in_time),
        SNAP_TEST_CLOSED(read_that_has_waited_looks_again_where_the_data_are),
        SNAP_TEST_CLOSED(read_goes_before_a_bracket_that_has_not_been_told),
        SNAP_TEST_CLOSED(write_waits_for_a_read_of_the_source),
        SNAP_TEST_CLOSED(guest_that_waits_hastens_the_read),
        SNAP_TEST_CLOSED(read_waits_for_the_copy_that_has_its_cluster),
        SNAP_TEST_CLOSED(read_of_a_cluster_whose_copy_has_failed_takes_it_from_the_source),
        SNAP_TEST(read_in_pieces_fills_each_entry_with_its_bytes),
        SNAP_TEST_CLOSED(read_keeps_to_the_limits_of_both_backends),
        SNAP_TEST_SIZE(read_of_the_source_is_in_pieces_that_guests_can_wait_for, 4 * MIB),
        SNAP_TEST(errors_of_both_backends_are_passed_on),
        TAIL_TEST(read_of_the_last_block_goes_through_a_buffer),
        TAIL_TEST(readers_of_the_last_block_have_the_buffer_one_by_one),
        SNAP_TEST_SIZE(last_block_needs_no_buffer_where_the_disks_end_together, 10000),
        SNAP_TEST_CLOSED(status_is_of_the_source_or_of_the_target_or_nothing),
        SNAP_TEST_CLOSED(status_is_all_data_where_backends_cannot_tell),
        SNAP_TEST(status_that_fails_or_makes_no_sense),
        SNAP_TEST_CLOSED(status_ends_where_a_backend_has_told_no_more),
        TAIL_TEST(status_of_the_last_block_ends_with_the_source),
        SNAP_TEST_CLOSED(status_is_not_of_what_a_guest_writes_meanwhile),
        SNAP_TEST(discard_makes_whole_clusters_unreadable),
        cmocka_unit_test(discard_of_what_the_target_keeps),
        TAIL_TEST(discard_of_the_last_cluster_takes_the_targets_block),
        SNAP_TEST_CLOSED(discard_in_the_target_waits_for_readers_of_any_snapshot),
        SNAP_TEST_CLOSED(discard_waits_for_several_readers_one_after_the_other),
        SNAP_TEST_CLOSED(discard_under_a_reader_of_the_source_lets_it_read),
        SNAP_TEST_CLOSED(discard_waits_for_a_copy_on_its_way),
        SNAP_TEST_SIZE(discard_of_many_runs_lets_others_have_a_turn, 2 * MIB),
        SNAP_TEST(discard_is_recorded_by_the_targets_bitmaps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
