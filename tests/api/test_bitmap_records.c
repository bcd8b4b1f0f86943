/* SPDX-License-Identifier: MIT */
/* What a bitmap of an image records, and from when on it shows. */
#include "bits.h"

#define SIZE (8 * CLUSTER)
#define WRITE BLKREPL_OP_WRITE

static struct env env;
static struct tape disk, copy;
static blkrepl_image *image;
static blkrepl_bitmap *bitmap;
static uint8_t data[SIZE];

static void open_all(uint32_t alignment, uint64_t granularity)
{
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.info.request_alignment = alignment;
    image = tape_open(&disk, &env);
    bitmap = bitmap_put(image, "it", granularity, 0);
    fill(data, sizeof data, 0, 3);
}

static int set_up(void **state)
{
    (void)state;
    open_all(512, CLUSTER);
    return 0;
}

/* The same on the quick way. */
static int set_up_settled(void **state)
{
    set_up(state);
    image_settle(&env, image);
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

static int end(const struct bracket *b, int result)
{
    return blkrepl_write_end(env.ctx, b->token, result, NULL, 0, NULL);
}

static void clear(void)
{
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
}

/* ---- What ------------------------------------------------------------------------- */

static void writes_zeroes_and_discards_are_recorded_reads_and_flushes_are_not(void **state)
{
    blkrepl_extent extent;
    struct req req = {0};

    (void)state;
    ASSERT_CODE(req_read(&req, image, 0, data, CLUSTER), 0);
    ASSERT_CODE(req_flush(&req, image), 0);
    ASSERT_CODE(blkrepl_image_status(image, 0, 0, SIZE, &extent, 1, NULL), 0);
    ASSERT_CODE(req_write(&req, image, 3 * CLUSTER, data, 0), 0); /* of nothing */
    ASSERT_CODE(req_zeroes(&req, image, 3 * CLUSTER + 5, 0), 0);
    ASSERT_CODE(req_discard(&req, image, 3 * CLUSTER + 5, 0), 0);
    env_drain(&env);
    ASSERT_BITS(bitmap, "........");
    ASSERT_CODE(write_now(&env, image, CLUSTER, data, CLUSTER), 0);
    ASSERT_BITS(bitmap, ".#......");
    ASSERT_CODE(req_zeroes(&req, image, 3 * CLUSTER, 1), 0);
    env_drain(&env);
    ASSERT_BITS(bitmap, ".#.#....");
    ASSERT_CODE(req_discard(&req, image, 5 * CLUSTER, 3 * CLUSTER), 0);
    env_drain(&env);
    ASSERT_BITS(bitmap, ".#.#.###");
}

static void brackets_are_recorded_like_writes_through(void **state)
{
    static const uint32_t opcodes[] = {WRITE, BLKREPL_OP_ZEROES, BLKREPL_OP_DISCARD};
    struct bracket b = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(opcodes); i++) {
        clear();
        ASSERT_CODE(bracket_begin(&b, image, opcodes[i], 2 * CLUSTER - 512, 1024), 0);
        ASSERT_BITS(bitmap, "........");
        ASSERT_CODE(end(&b, 0), 0);
        ASSERT_BITS(bitmap, ".##....."); /* before end has returned */
    }
    clear();
    ASSERT_CODE(bracket_begin(&b, image, BLKREPL_OP_FLUSH, 0, 0), 0);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, CLUSTER, 0), 0);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_BITS(bitmap, "........");
}

static void what_failed_is_recorded_and_what_was_rejected_is_not(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    disk.fail[WRITE] = disk.fail[BLKREPL_OP_ZEROES] = disk.fail[BLKREPL_OP_DISCARD] = -EIO;
    ASSERT_CODE(write_now(&env, image, 0, data, 512), -EIO);
    ASSERT_CODE(req_zeroes(&req, image, 2 * CLUSTER, CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&req, -EIO);
    ASSERT_CODE(req_discard(&req, image, 4 * CLUSTER, CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&req, -EIO);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 6 * CLUSTER, 512), 0);
    ASSERT_CODE(end(&b, -ENOSPC), 0);
    ASSERT_BITS(bitmap, "#.#.#.#.");
    ASSERT_CODE(req_write(&req, image, SIZE - 1, data, 2), -EINVAL);
    ASSERT_CODE(req_discard(&req, image, CLUSTER, UINT64_MAX), -EINVAL);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, CLUSTER + 1, 512), -EINVAL);
    ASSERT_CODE(end(&b, 0), -ENOENT);
    env_drain(&env);
    ASSERT_BITS(bitmap, "#.#.#.#.");
}

/* A backend that cannot: it is refused, or buffers are written. */
static void zeroes_that_the_backend_does_not_know_are_recorded(void **state)
{
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.info.opcodes = OPS_RW;
    image = tape_open(&disk, &env);
    bitmap = bitmap_put(image, "it", 0, 0);
    ASSERT_CODE(
        blkrepl_image_write_zeroes(image, 0, 2 * CLUSTER, CLUSTER, BLKREPL_IO_NO_FALLBACK, &done),
        0);
    env_drain(&env);
    req_assert_done(&req, -ENOTSUP); /* nothing was done */
    ASSERT_BITS(bitmap, "........");
    ASSERT_CODE(req_zeroes(&req, image, 4 * CLUSTER, 2 * CLUSTER), 0);
    env_drain(&env);
    ASSERT_BITS(bitmap, "....##..");
    tear_down(state);
}

static void a_discard_that_had_no_effect_is_not_recorded(void **state)
{
    struct req req = {0};

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.info.opcodes = OPS_RW; /* "not declared: succeeds without effect" */
    image = tape_open(&disk, &env);
    bitmap = bitmap_put(image, "it", 0, 0);
    ASSERT_CODE(req_discard(&req, image, 0, CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_BITS(bitmap, "........");
    tear_down(state);
}

/* The discard of less than the backend can is skipped. */
static void a_discard_below_the_alignment_is_not_recorded(void **state)
{
    struct req req = {0};

    (void)state;
    open_all(4096, CLUSTER);
    ASSERT_CODE(req_discard(&req, image, 2 * CLUSTER + 1, 100), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_BITS(bitmap, "........");
    tear_down(state);
}

static void ranges_are_rounded_to_the_request_alignment_and_no_further(void **state)
{
    struct map map;
    struct req req = {0};

    (void)state;
    open_all(4096, 512);
    map_init(&map, SIZE, 512);
    ASSERT_CODE(write_now(&env, image, 5000, data, 100), 0);
    map_set(&map, 4096, 4096);
    ASSERT_MAP(bitmap, &map);
    ASSERT_CODE(write_now(&env, image, 16383, data, 2), 0);
    map_set(&map, 12288, 8192);
    ASSERT_MAP(bitmap, &map);
    ASSERT_CODE(write_now(&env, image, 32768, data, 4096), 0);
    map_set(&map, 32768, 4096);
    ASSERT_MAP(bitmap, &map);
    ASSERT_CODE(req_zeroes(&req, image, 65536 + 4095, 4098), 0);
    env_drain(&env);
    map_set(&map, 65536, 12288);
    ASSERT_MAP(bitmap, &map);
    ASSERT_CODE(req_discard(&req, image, 131072, 8192), 0);
    env_drain(&env);
    map_set(&map, 131072, 8192);
    ASSERT_MAP(bitmap, &map);
    tear_down(state);
}

/* And of a longer one the middle. */
static void the_edges_of_a_discard_below_the_alignment_are_not_recorded(void **state)
{
    struct map map;
    struct req req = {0};

    (void)state;
    open_all(4096, 512);
    map_init(&map, SIZE, 512);
    ASSERT_CODE(req_discard(&req, image, 4095, 8194), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    map_set(&map, 4096, 8192);
    ASSERT_MAP(bitmap, &map);
    tear_down(state);
}

static void every_recording_one_gets_its_granules_and_a_disabled_one_none(void **state)
{
    blkrepl_bitmap *fine = bitmap_put(image, "fine", CLUSTER / 2, 0);
    blkrepl_bitmap *coarse = bitmap_put(image, "coarse", 2 * CLUSTER, 0);
    blkrepl_bitmap *whole = bitmap_put(image, "whole", BLKREPL_BITMAP_GRANULARITY_MAX, 0);
    blkrepl_bitmap *off = bitmap_put(image, "off", 0, BLKREPL_BITMAP_DISABLED);
    struct bracket b = {0};

    (void)state;
    ASSERT_CODE(write_now(&env, image, CLUSTER, data, 512), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 6 * CLUSTER - 512, 1024), 0);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_BITS(bitmap, ".#...##.");
    ASSERT_BITS(fine, "..#........##...");
    ASSERT_BITS(coarse, "#.##");
    ASSERT_BITS(whole, "#");
    ASSERT_BITS(off, "........");
    ASSERT_CODE(blkrepl_bitmap_enable(off), 0);
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0);
    ASSERT_CODE(write_now(&env, image, 0, data, 512), 0);
    ASSERT_BITS(off, "#.......");
    ASSERT_BITS(bitmap, ".#...##.");
    blkrepl_bitmap_free(fine);
    blkrepl_bitmap_free(coarse);
    blkrepl_bitmap_free(whole);
    blkrepl_bitmap_free(off);
}

/* ---- When ----------------------------------------------------------------------------- */

static int seen_in_callback;

static void look(struct req *req)
{
    (void)req;
    seen_in_callback = blkrepl_bitmap_get(bitmap, 3 * CLUSTER);
}

static void a_mark_is_there_before_the_callback(void **state)
{
    struct req req = {.then = look};
    struct bracket first = {0}, second = {.go = {.then = look}};

    (void)state;
    for (int held = 0; held < 2; held++) {
        for (int result = 0; result >= -EIO; result -= EIO) {
            clear();
            disk.hold = held ? BIT(WRITE) : 0;
            disk.fail[WRITE] = result;
            seen_in_callback = 77;
            ASSERT_CODE(req_write(&req, image, 3 * CLUSTER, data, 512), 0);
            if (held) {
                env_drain(&env);
                ASSERT_BITS(bitmap, "........"); /* not yet */
                tape_finish_all(&disk, 0, 0);
            }
            env_drain(&env);
            req_assert_done(&req, result);
            ASSERT_CODE(seen_in_callback, 1);
        }
    }
    disk.fail[WRITE] = 0;
    clear();
    seen_in_callback = 77;
    ASSERT_CODE(bracket_begin(&first, image, WRITE, 3 * CLUSTER, 512), 0);
    ASSERT_CODE(bracket_begin(&second, image, WRITE, 3 * CLUSTER, 512), BLKREPL_WAIT);
    ASSERT_CODE(end(&first, 0), 0);
    env_drain(&env);
    ASSERT_CODE(seen_in_callback, 1);
    ASSERT_CODE(end(&second, 0), 0);
}

static void clear_in_callback(struct req *req)
{
    ASSERT_CODE(blkrepl_bitmap_clear(req->then_user), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(req->then_user), 0);
    ASSERT_CODE(blkrepl_bitmap_reclaim(req->then_user), 0);
}

static void bitmaps_may_be_used_and_freed_inside_callbacks(void **state)
{
    struct req req = {.then = clear_in_callback, .then_user = bitmap};

    (void)state;
    ASSERT_CODE(req_write(&req, image, 0, data, 512), 0);
    env_drain(&env);
    ASSERT_BITS(bitmap, "........");
}

static void what_is_in_flight_when_it_is_cleared_is_dirty_when_it_ends(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&req, image, 0, data, 512), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, CLUSTER, 512), 0);
    clear();
    tape_finish_all(&disk, 0, -EIO);
    env_drain(&env);
    ASSERT_CODE(end(&b, -EIO), 0);
    ASSERT_BITS(bitmap, "##......");
}

static void what_ended_before_the_clear_is_clean(void **state)
{
    struct bracket b = {0};

    (void)state;
    ASSERT_CODE(write_now(&env, image, 0, data, SIZE), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 0, SIZE), 0);
    ASSERT_CODE(end(&b, 0), 0);
    clear();
    env_drain(&env);
    ASSERT_BITS(bitmap, "........");
}

static void one_that_is_added_or_enabled_records_what_ends_from_then_on(void **state)
{
    blkrepl_bitmap *off = bitmap_put(image, "off", 0, BLKREPL_BITMAP_DISABLED);
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&req, image, 0, data, 512), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, CLUSTER, 512), 0);
    blkrepl_bitmap *added = bitmap_put(image, "added", 0, 0);
    ASSERT_CODE(blkrepl_bitmap_enable(off), 0);
    ASSERT_CODE(blkrepl_bitmap_enable(off), 0); /* does nothing */
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_BITS(added, "##......");
    ASSERT_BITS(off, "##......");
    blkrepl_bitmap_free(added);
    blkrepl_bitmap_free(off);
}

static void what_is_in_flight_when_it_is_disabled_is_marked_at_once_and_not_again(void **state)
{
    struct req req = {0}, later = {0};
    struct bracket b = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&req, image, 0, data, 512), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 2 * CLUSTER, CLUSTER + 512), 0);
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0);
    ASSERT_BITS(bitmap, "#.##....");
    ASSERT_CODE(req_write(&later, image, 6 * CLUSTER, data, 512), 0);
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0); /* does nothing */
    ASSERT_BITS(bitmap, "#.##....");
    clear();
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_BITS(bitmap, "........");
}

static void what_is_in_flight_when_it_is_removed_is_not_lost(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&req, image, 0, data, 512), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 2 * CLUSTER, 512), 0);
    ASSERT_CODE(blkrepl_bitmap_remove(bitmap), 0);
    ASSERT_BITS(bitmap, "#.#.....");
    clear();
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_BITS(bitmap, "........"); /* it records no more */
}

static void what_is_in_flight_when_the_image_is_closed_is_recorded(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&req, image, 0, data, 512), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 2 * CLUSTER, 512), 0);
    blkrepl_image_close(image);
    image = NULL;
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, 0), 1);
    assert_int_equal(disk.closes, 0);
    ASSERT_CODE(end(&b, 0), 0);
    env_drain(&env);
    assert_int_equal(disk.closes, 1);
    assert_int_equal(bitmap_info(bitmap).image_id, 0);
    ASSERT_BITS(bitmap, "#.#.....");
}

/* ---- What never went --------------------------------------------------------------------- */

static void a_bracket_that_is_given_up_is_not_recorded(void **state)
{
    struct bracket first = {0}, waits = {0};

    (void)state;
    ASSERT_CODE(bracket_begin(&first, image, WRITE, CLUSTER, 512), 0);
    ASSERT_CODE(bracket_begin(&waits, image, WRITE, CLUSTER, 4 * CLUSTER), BLKREPL_WAIT);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, waits.token), BLKREPL_WAIT);
    env_drain(&env);
    req_assert_done(&waits.go, -ECANCELED);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, first.token), 0); /* had its GO, wrote nothing */
    env_drain(&env);
    ASSERT_BITS(bitmap, "........");
}

/* It is not in flight: it will be recorded when it has been. */
static void a_write_that_waits_its_turn_is_recorded_at_its_own_end(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&first, image, 0, data, 512), 0);
    ASSERT_CODE(req_write(&second, image, 0, data, 2 * CLUSTER), 0);
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&first, 0);
    ASSERT_BITS(bitmap, "#.......");
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&second, 0);
    ASSERT_BITS(bitmap, "##......");
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

static void what_a_backup_writes_to_its_target_is_recorded_there(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    tape_fill(&disk, 7);
    memset(disk.data + 3 * CLUSTER, 0, CLUSTER);
    tape_init(&copy, SIZE);
    blkrepl_image *target = tape_open(&copy, &env);
    blkrepl_bitmap *there = bitmap_put(target, "there", 0, 0);
    ASSERT_CODE(blkrepl_backup_start(image, target, NULL, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, disk.data, SIZE, "target");
    for (uint64_t i = 0; i < 8; i++) {
        if (i != 3) { /* may be left as it is: zeroes onto zeroes */
            ASSERT_CODE(blkrepl_bitmap_get(there, i * CLUSTER), 1);
        }
    }
    ASSERT_BITS(bitmap, "........"); /* the source was only read */
    blkrepl_bitmap_free(there);
    blkrepl_job_free(job);
    blkrepl_image_close(target);
    env_drain(&env);
    tape_close(&copy);
}

static void a_guest_write_that_waits_for_a_backup_is_recorded_when_it_ends(void **state)
{
    struct req req = {0};
    blkrepl_job *job = NULL;

    (void)state;
    tape_fill(&disk, 7);
    tape_init(&copy, SIZE);
    blkrepl_image *target = tape_open(&copy, &env);
    disk.hold = BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_STATUS);
    ASSERT_CODE(blkrepl_backup_start(image, target, NULL, &job), 0);
    ASSERT_CODE(req_write(&req, image, 2 * CLUSTER, data, 512), 0);
    env_drain(&env);
    assert_int_equal(req.calls, 0);
    ASSERT_BITS(bitmap, "........");
    tape_release(&disk, &env);
    req_assert_done(&req, 0);
    ASSERT_BITS(bitmap, "..#.....");
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    blkrepl_job_free(job);
    blkrepl_image_close(target);
    env_drain(&env);
    tape_close(&copy);
}

/* Random writes through and beside, in any order, against an array of bools. */
static void random_writes_are_recorded_and_nothing_else(void **state)
{
    struct rng rng = {.state = 12};
    struct req reqs[8] = {0};
    struct map map;

    (void)state;
    blkrepl_bitmap_free(bitmap);
    bitmap = bitmap_put(image, "finer", 4096, 0);
    map_init(&map, SIZE, 4096);
    disk.hold = OPS_ALL;
    for (int i = 0; i < (quick() ? 50 : 500); i++) {
        for (size_t k = 0; k < 8; k++) {
            uint64_t at = rng_below(&rng, SIZE), bytes = rng_below(&rng, SIZE - at) >> k;
            uint64_t kind = rng_below(&rng, 3);

            at = kind == 2 ? at / 512 * 512 : at; /* a discard leaves out the edges */
            bytes = kind == 2 ? bytes / 512 * 512 : bytes;
            ASSERT_CODE(kind == 0   ? req_write(&reqs[k], image, at, data, bytes)
                        : kind == 1 ? req_zeroes(&reqs[k], image, at, bytes)
                                    : req_discard(&reqs[k], image, at, bytes),
                        0);
            map_set(&map, at, bytes);
        }
        do {
            env_drain(&env);
        } while (tape_finish_all(&disk, 0, rng_percent(&rng, 30) ? -EIO : 0) > 0);
        ASSERT_MAP(bitmap, &map);
        if (rng_percent(&rng, 50)) {
            clear();
            map_reset(&map, 0, SIZE);
        }
    }
}

int main(void)
{
/* Each on the slow way, then on the quick one. */
#define T(name)                                                                                    \
    cmocka_unit_test_setup_teardown(name, set_up, tear_down),                                      \
        cmocka_unit_test_setup_teardown(name, set_up_settled, tear_down)
    const struct CMUnitTest tests[] = {
        T(writes_zeroes_and_discards_are_recorded_reads_and_flushes_are_not),
        T(brackets_are_recorded_like_writes_through),
        T(what_failed_is_recorded_and_what_was_rejected_is_not),
        cmocka_unit_test(zeroes_that_the_backend_does_not_know_are_recorded),
        cmocka_unit_test(a_discard_that_had_no_effect_is_not_recorded),
        cmocka_unit_test(a_discard_below_the_alignment_is_not_recorded),
        cmocka_unit_test(ranges_are_rounded_to_the_request_alignment_and_no_further),
        cmocka_unit_test(the_edges_of_a_discard_below_the_alignment_are_not_recorded),
        T(every_recording_one_gets_its_granules_and_a_disabled_one_none),
        T(a_mark_is_there_before_the_callback),
        T(bitmaps_may_be_used_and_freed_inside_callbacks),
        T(what_is_in_flight_when_it_is_cleared_is_dirty_when_it_ends),
        T(what_ended_before_the_clear_is_clean),
        T(one_that_is_added_or_enabled_records_what_ends_from_then_on),
        T(what_is_in_flight_when_it_is_disabled_is_marked_at_once_and_not_again),
        T(what_is_in_flight_when_it_is_removed_is_not_lost),
        T(what_is_in_flight_when_the_image_is_closed_is_recorded),
        T(a_bracket_that_is_given_up_is_not_recorded),
        T(a_write_that_waits_its_turn_is_recorded_at_its_own_end),
        T(what_a_backup_writes_to_its_target_is_recorded_there),
        T(a_guest_write_that_waits_for_a_backup_is_recorded_when_it_ends),
        T(random_writes_are_recorded_and_nothing_else),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
