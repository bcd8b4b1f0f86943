/* SPDX-License-Identifier: MIT */
/* A flush that fails: what was written since the last good one is recorded again.
 * What was written just before that may be as well, so no test says anything of
 * it. */
#include "bits.h"

#define SIZE (8 * CLUSTER)
#define WRITE BLKREPL_OP_WRITE
#define FLUSH BLKREPL_OP_FLUSH

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static blkrepl_bitmap *bitmap;
static uint8_t data[CLUSTER];
static bool settled; /* after a long time, so on the quick way */

static int set_up(void **state)
{
    (void)state;
    settled = false;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.info.request_alignment = 512;
    image = tape_open(&disk, &env);
    bitmap = bitmap_put(image, "it", CLUSTER, 0);
    return 0;
}

static int set_up_settled(void **state)
{
    set_up(state);
    settled = true;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_bitmap_free(bitmap);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

static void clear(void)
{
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
}

static void write_granule(uint64_t granule)
{
    ASSERT_CODE(write_now(&env, image, granule * CLUSTER, data, 512), 0);
}

/* Through or beside. */
static void flush(int result, bool beside)
{
    struct req req = {0};
    struct bracket b = {0};

    if (beside) {
        ASSERT_CODE(bracket_begin(&b, image, FLUSH, 0, 0), 0);
        ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, result, NULL, 0, NULL), 0);
        return;
    }
    disk.fail[FLUSH] = result;
    ASSERT_CODE(req_flush(&req, image), 0);
    env_drain(&env);
    req_assert_done(&req, result);
    disk.fail[FLUSH] = 0;
}

/* Two good ones: nothing is doubtful, nor was anything written just before. */
static void all_is_safe(void)
{
    flush(0, false);
    flush(0, false);
    clear();
    if (settled) {
        image_settle(&env, image);
    }
}

static void assert_dirty(uint64_t granule)
{
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, granule * CLUSTER), 1);
}

static void a_good_flush_records_nothing(void **state)
{
    (void)state;
    all_is_safe();
    write_granule(1);
    clear();
    flush(0, false);
    flush(0, true);
    ASSERT_BITS(bitmap, "........");
}

static void a_failed_flush_records_again_what_was_written_since_the_last_good_one(void **state)
{
    (void)state;
    for (int beside = 0; beside < 2; beside++) {
        write_granule(0);
        all_is_safe();
        write_granule(2);
        write_granule(5);
        clear();
        flush(-EIO, beside);
        ASSERT_BITS(bitmap, "..#..#..");
        clear();
        write_granule(7);
        clear();
        flush(-EIO, beside); /* the last good one is still the same */
        ASSERT_BITS(bitmap, "..#..#.#");
    }
}

static void writes_of_every_kind_are_doubtful(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    all_is_safe();
    ASSERT_CODE(req_zeroes(&req, image, CLUSTER, 512), 0);
    env_drain(&env);
    ASSERT_CODE(req_discard(&req, image, 3 * CLUSTER, CLUSTER), 0);
    env_drain(&env);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 5 * CLUSTER, 512), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    disk.fail[WRITE] = -EIO; /* it may have written something */
    ASSERT_CODE(write_now(&env, image, 7 * CLUSTER, data, 512), -EIO);
    disk.fail[WRITE] = 0;
    clear();
    flush(-EIO, false);
    ASSERT_BITS(bitmap, ".#.#.#.#");
}

static void before_the_first_good_flush_everything_is_doubtful(void **state)
{
    (void)state;
    flush(-EIO, false);
    ASSERT_BITS(bitmap, "########");
    clear();
    blkrepl_bitmap *second = bitmap_put(image, "second", CLUSTER, 0);
    flush(-EIO, true);
    ASSERT_BITS(bitmap, "########");
    ASSERT_BITS(second, "########");
    blkrepl_bitmap_free(second);
}

/* A flush covers what had completed when it was accepted. */
static void a_write_that_ends_while_a_flush_goes_on_is_not_covered_by_it(void **state)
{
    struct req write = {0}, good = {0};

    (void)state;
    all_is_safe();
    disk.hold = BIT(WRITE) | BIT(FLUSH);
    ASSERT_CODE(req_write(&write, image, 3 * CLUSTER, data, 512), 0);
    ASSERT_CODE(req_flush(&good, image), 0);
    env_drain(&env);
    tape_finish_all(&disk, WRITE, 0);
    env_drain(&env);
    req_assert_done(&write, 0);
    tape_finish_all(&disk, FLUSH, 0);
    env_drain(&env);
    req_assert_done(&good, 0);
    disk.hold = 0;
    clear();
    flush(-EIO, false);
    assert_dirty(3);
}

static void a_good_flush_that_ends_late_covers_no_more_than_it_did(void **state)
{
    struct req early = {0};
    struct bracket late = {0};

    (void)state;
    all_is_safe();
    disk.hold = BIT(FLUSH);
    ASSERT_CODE(bracket_begin(&late, image, FLUSH, 0, 0), 0);
    write_granule(1);
    ASSERT_CODE(req_flush(&early, image), 0);
    env_drain(&env);
    write_granule(4);
    tape_finish_all(&disk, FLUSH, 0);
    env_drain(&env);
    req_assert_done(&early, 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, late.token, 0, NULL, 0, NULL), 0);
    disk.hold = 0;
    clear();
    flush(-EIO, false);
    assert_dirty(4);
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, 0), 0); /* nobody has written there */
}

static void a_good_flush_that_ends_late_does_not_make_up_for_those_that_failed(void **state)
{
    struct bracket late = {0};

    (void)state;
    all_is_safe();
    ASSERT_CODE(bracket_begin(&late, image, FLUSH, 0, 0), 0);
    write_granule(4); /* the late one does not cover this */
    for (int i = 0; i < 4; i++) {
        flush(-EIO, i % 2);
    }
    ASSERT_CODE(blkrepl_write_end(env.ctx, late.token, 0, NULL, 0, NULL), 0);
    clear();
    flush(-EIO, false);
    ASSERT_BITS(bitmap, "....#...");
}

static int seen;

static void look(struct req *req)
{
    (void)req;
    seen = blkrepl_bitmap_get(bitmap, 2 * CLUSTER);
}

static void the_mark_is_there_before_the_callback(void **state)
{
    struct req req = {.then = look};

    (void)state;
    for (int held = 0; held < 2; held++) {
        all_is_safe();
        write_granule(2);
        clear();
        disk.fail[FLUSH] = -EIO;
        disk.hold = held ? BIT(FLUSH) : 0;
        seen = 77;
        ASSERT_CODE(req_flush(&req, image), 0);
        tape_finish_all(&disk, 0, 0);
        env_drain(&env);
        req_assert_done(&req, -EIO);
        ASSERT_CODE(seen, 1);
        disk.fail[FLUSH] = 0;
        disk.hold = 0;
    }
}

/* The backend has no FUA: the library flushes after the write. */
static void the_flush_of_a_durable_write_is_a_flush(void **state)
{
    struct req req = {0};
    blkrepl_iovec iov = {data, 512};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    all_is_safe();
    write_granule(2);
    clear();
    disk.fail[FLUSH] = -EIO;
    ASSERT_CODE(blkrepl_image_write(image, 0, 6 * CLUSTER, &iov, 1, BLKREPL_IO_FUA, &done), 0);
    env_drain(&env);
    req_assert_done(&req, -EIO);
    disk.fail[FLUSH] = 0;
    assert_dirty(6);
    assert_dirty(2);
}

static void it_is_recorded_by_whoever_records(void **state)
{
    blkrepl_bitmap *off = bitmap_put(image, "off", CLUSTER, BLKREPL_BITMAP_DISABLED);
    blkrepl_bitmap *frozen = bitmap_put(image, "frozen", CLUSTER, 0);

    (void)state;
    all_is_safe();
    write_granule(2);
    clear();
    ASSERT_CODE(blkrepl_bitmap_clear(frozen), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(frozen), 0);
    flush(-EIO, false);
    ASSERT_BITS(bitmap, "..#.....");
    ASSERT_BITS(off, "........");
    ASSERT_BITS(frozen, "........");
    assert_int_equal(bitmap_info(frozen).since_bytes, CLUSTER);
    ASSERT_CODE(blkrepl_bitmap_abdicate(frozen), 0);
    ASSERT_BITS(frozen, "..#.....");
    blkrepl_bitmap_free(off);
    blkrepl_bitmap_free(frozen);
}

/* Also what was written while nothing was recorded: it is the disk that lost it. */
static void one_that_is_enabled_later_gets_it_too(void **state)
{
    (void)state;
    all_is_safe();
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0);
    write_granule(2);
    ASSERT_CODE(blkrepl_bitmap_enable(bitmap), 0);
    ASSERT_BITS(bitmap, "........");
    flush(-EIO, false);
    ASSERT_BITS(bitmap, "..#.....");
}

/* On a large disk a region is more than a granule. */
static void a_region_is_a_2048th_of_the_disk(void **state)
{
    const uint64_t bytes = UINT64_C(2048) * 16 * CLUSTER - 512;
    blkrepl_image *large = NULL;
    struct bracket b = {0};
    uint64_t run = 0;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, bytes, NULL, &large), 0);
    blkrepl_bitmap *map = bitmap_put(large, "it", CLUSTER, 0);
    for (int i = 0; i < 2; i++) {
        ASSERT_CODE(bracket_begin(&b, large, FLUSH, 0, 0), 0);
        ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    }
    static const uint64_t regions[] = {3, 2047}; /* the last one is shorter */
    for (size_t i = 0; i < ARRAY_COUNT(regions); i++) {
        ASSERT_CODE(bracket_begin(&b, large, WRITE, regions[i] * 16 * CLUSTER + 8192, 512), 0);
        ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    }
    ASSERT_CODE(blkrepl_bitmap_clear(map), 0);
    ASSERT_CODE(bracket_begin(&b, large, FLUSH, 0, 0), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, -EIO, NULL, 0, NULL), 0);
    for (size_t i = 0; i < ARRAY_COUNT(regions); i++) {
        uint64_t at = regions[i] * 16 * CLUSTER;

        ASSERT_CODE(blkrepl_bitmap_get(map, at - 1), 0);
        ASSERT_CODE(blkrepl_bitmap_status(map, at, bytes - at, &run), 1);
        assert_int_equal(run, at + 16 * CLUSTER > bytes ? bytes - at : 16 * CLUSTER);
    }
    blkrepl_bitmap_free(map);
    blkrepl_image_close(large);
}

int main(void)
{
#define T(name)                                                                                    \
    cmocka_unit_test_setup_teardown(name, set_up, tear_down),                                      \
        cmocka_unit_test_setup_teardown(name, set_up_settled, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_good_flush_records_nothing),
        T(a_failed_flush_records_again_what_was_written_since_the_last_good_one),
        T(writes_of_every_kind_are_doubtful),
        T(before_the_first_good_flush_everything_is_doubtful),
        T(a_write_that_ends_while_a_flush_goes_on_is_not_covered_by_it),
        T(a_good_flush_that_ends_late_covers_no_more_than_it_did),
        T(a_good_flush_that_ends_late_does_not_make_up_for_those_that_failed),
        T(the_mark_is_there_before_the_callback),
        T(the_flush_of_a_durable_write_is_a_flush),
        T(it_is_recorded_by_whoever_records),
        T(one_that_is_enabled_later_gets_it_too),
        T(a_region_is_a_2048th_of_the_disk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
