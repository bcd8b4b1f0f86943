/* SPDX-License-Identifier: MIT */
/* Frozen bitmaps: the content stands still, a successor records on, and each end
 * leaves what it promises, wherever writes in flight begin and end. */
#include "bits.h"

#define SIZE (8 * CLUSTER)
#define WRITE BLKREPL_OP_WRITE

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static blkrepl_bitmap *bitmap;
static uint8_t data[SIZE];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.info.request_alignment = 512;
    image = tape_open(&disk, &env);
    bitmap = bitmap_put(image, "it", CLUSTER, 0);
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

static void write_granule(uint64_t granule)
{
    ASSERT_CODE(write_now(&env, image, granule * CLUSTER, data, 512), 0);
}

static uint64_t since(void)
{
    return bitmap_info(bitmap).since_bytes / CLUSTER;
}

/* ---- Content and successor -------------------------------------------------------- */

static void the_content_stands_still_while_the_successor_records(void **state)
{
    uint8_t before[32], after[32];

    (void)state;
    write_granule(0);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    assert_int_equal(bitmap_flags(bitmap), BLKREPL_BITMAP_RECORDING | BLKREPL_BITMAP_BUSY);
    assert_int_equal(since(), 0);
    ASSERT_CODE(blkrepl_bitmap_sha256(bitmap, before), 0);
    write_granule(0);
    assert_int_equal(since(), 1);
    write_granule(3);
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 5 * CLUSTER - 1, 2), 0);
    assert_int_equal(since(), 4);
    ASSERT_BITS(bitmap, "#.......");
    ASSERT_CODE(blkrepl_bitmap_sha256(bitmap, after), 0);
    assert_memory_equal(after, before, 32);
}

static void abdicate_leaves_what_came_since_and_reclaim_all_of_it(void **state)
{
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
        write_granule(0);
        write_granule(1);
        ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
        write_granule(1);
        write_granule(2);
        ASSERT_CODE(keep ? blkrepl_bitmap_reclaim(bitmap) : blkrepl_bitmap_abdicate(bitmap), 0);
        ASSERT_BITS(bitmap, keep ? "###....." : ".##.....");
        assert_int_equal(bitmap_flags(bitmap), BLKREPL_BITMAP_RECORDING);
        assert_int_equal(since(), 0);
        write_granule(7);
        ASSERT_BITS(bitmap, keep ? "###....#" : ".##....#");
        ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), BLKREPL_ERR_STATE);
        ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap), BLKREPL_ERR_STATE);
    }
}

static void abdicate_of_one_that_nobody_wrote_to_leaves_it_clean(void **state)
{
    (void)state;
    write_granule(0);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), 0);
    ASSERT_BITS(bitmap, "........");
    write_granule(4);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap), 0);
    ASSERT_BITS(bitmap, "....#...");
}

/* A successor must not remember what the one before it recorded. */
static void each_freeze_begins_with_an_empty_successor(void **state)
{
    struct rng rng = {.state = 3};
    struct map content, successor;

    (void)state;
    map_init(&content, SIZE, CLUSTER);
    for (int i = 0; i < (quick() ? 50 : 500); i++) {
        map_init(&successor, SIZE, CLUSTER);
        ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
        assert_int_equal(since(), 0);
        for (uint64_t n = rng_below(&rng, 4); n > 0; n--) {
            uint64_t granule = rng_below(&rng, 8);

            write_granule(granule);
            map_set(&successor, granule * CLUSTER, 1);
        }
        assert_int_equal(since(), map_dirty_count(&successor));
        ASSERT_MAP(bitmap, &content);
        if (rng_percent(&rng, 40)) {
            ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap), 0);
            map_merge(&content, &successor);
        } else {
            ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), 0);
            content = successor;
        }
        ASSERT_MAP(bitmap, &content);
    }
}

/* ---- Without recording ----------------------------------------------------------------- */

static void a_disabled_one_may_be_frozen_and_records_nothing(void **state)
{
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0);
        ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
        bitmap_draw(bitmap, "#.#.....");
        ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
        assert_int_equal(bitmap_flags(bitmap), BLKREPL_BITMAP_BUSY);
        write_granule(4);
        assert_int_equal(since(), 0);
        ASSERT_CODE(blkrepl_bitmap_set(bitmap, 7 * CLUSTER, 1), 0);
        assert_int_equal(since(), 1);
        ASSERT_CODE(keep ? blkrepl_bitmap_reclaim(bitmap) : blkrepl_bitmap_abdicate(bitmap), 0);
        ASSERT_BITS(bitmap, keep ? "#.#....#" : ".......#");
        assert_int_equal(bitmap_flags(bitmap), 0);
        write_granule(5);
        ASSERT_BITS(bitmap, keep ? "#.#....#" : ".......#");
        ASSERT_CODE(blkrepl_bitmap_enable(bitmap), 0);
    }
}

static void a_free_standing_one_may_be_frozen(void **state)
{
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, "#..#");

    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        ASSERT_CODE(blkrepl_bitmap_freeze(b), 0);
        ASSERT_CODE(blkrepl_bitmap_set(b, KIB, 1), 0);
        assert_int_equal(bitmap_info(b).since_bytes, KIB);
        ASSERT_CODE(keep ? blkrepl_bitmap_abdicate(b) : blkrepl_bitmap_reclaim(b), 0);
        ASSERT_BITS(b, keep ? ".#.." : "##.#");
    }
    blkrepl_bitmap_free(b);
}

static void since_bytes_ends_with_the_bitmap(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 2 * KIB - 24, KIB);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_freeze(b), 0);
    ASSERT_CODE(blkrepl_bitmap_set(b, 2 * KIB - 25, 1), 0);
    assert_int_equal(bitmap_info(b).since_bytes, KIB - 24);
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 2 * KIB - 24), 0);
    assert_int_equal(bitmap_info(b).since_bytes, 2 * KIB - 24);
    ASSERT_CODE(blkrepl_bitmap_reclaim(b), 0);
    ASSERT_BITS(b, "##");
    blkrepl_bitmap_free(b);
}

/* ---- A write in flight at each instant ------------------------------------------------------ */

enum instant {
    BEFORE, /* the freeze                                                  */
    MEANWHILE,
    AFTER /* abdicate or reclaim                                             */
};

enum form {
    THROUGH,
    THROUGH_FAILS,
    BESIDE,
    BESIDE_FAILS,
    FORMS
};

struct flight {
    enum form form;
    enum instant begin, end;
    bool settled;
    struct req req;
    struct bracket bracket;
};

static void flight_begin(struct flight *f, enum instant now)
{
    if (f->begin == now && f->form <= THROUGH_FAILS) {
        ASSERT_CODE(req_write(&f->req, image, 2 * CLUSTER, data, 512), 0);
        env_drain(&env);
    } else if (f->begin == now) {
        ASSERT_CODE(bracket_begin(&f->bracket, image, WRITE, 2 * CLUSTER, 512), 0);
    }
}

static void flight_end(struct flight *f, enum instant now)
{
    int result = f->form == THROUGH_FAILS || f->form == BESIDE_FAILS ? -EIO : 0;

    if (f->end == now && f->form <= THROUGH_FAILS) {
        tape_finish_all(&disk, 0, result);
        env_drain(&env);
        req_assert_done(&f->req, result);
    } else if (f->end == now) {
        ASSERT_CODE(blkrepl_write_end(env.ctx, f->bracket.token, result, NULL, 0, NULL), 0);
    }
}

static void flight_instant(struct flight *f, enum instant now)
{
    if (f->settled) {
        image_settle(&env, image);
    }
    flight_begin(f, now);
    flight_end(f, now);
}

/* Granule 0 is dirty before, granule 2 is the flight's. */
static void fly(struct flight *f, bool keep)
{
    bool in_content = f->begin == BEFORE; /* ended, or in flight at the freeze     */
    bool in_successor = f->end != BEFORE; /* once it has ended                     */

    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, 1), 0);
    flight_instant(f, BEFORE);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_BITS(bitmap, in_content ? "#.#....." : "#.......");
    flight_instant(f, MEANWHILE);
    ASSERT_BITS(bitmap, in_content ? "#.#....." : "#.......");
    assert_int_equal(since(), f->end == MEANWHILE);
    ASSERT_CODE(keep ? blkrepl_bitmap_reclaim(bitmap) : blkrepl_bitmap_abdicate(bitmap), 0);
    if (keep && in_content) {
        ASSERT_CODE(blkrepl_bitmap_get(bitmap, 2 * CLUSTER), 1);
    }
    flight_instant(f, AFTER);
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, 0), keep);
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, 2 * CLUSTER), in_successor || keep);
    assert_int_equal(bitmap_info(bitmap).dirty_granules, keep + (in_successor || keep));
}

static void fly_all(bool settled)
{
    disk.hold = BIT(WRITE);
    for (enum form form = 0; form < FORMS; form++) {
        for (enum instant begin = BEFORE; begin <= AFTER; begin++) {
            for (enum instant end = begin; end <= AFTER; end++) {
                for (int keep = 0; keep < 2; keep++) {
                    struct flight f = {
                        .form = form, .begin = begin, .end = end, .settled = settled};

                    fly(&f, keep);
                }
            }
        }
    }
}

static void a_write_in_flight_is_in_both_wherever_it_begins_and_ends(void **state)
{
    (void)state;
    fly_all(false);
}

static void so_it_is_when_nothing_has_been_asked_of_the_bitmaps_for_long(void **state)
{
    (void)state;
    fly_all(true);
}

static void two_freezes_over_one_write_have_it_both(void **state)
{
    struct bracket b = {0};

    (void)state;
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 2 * CLUSTER, CLUSTER + 512), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_BITS(bitmap, "..##....");
    ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_BITS(bitmap, "..##....");
    ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    ASSERT_BITS(bitmap, "..##....");
}

/* Neither a bracket without its GO nor a write behind another has been given to
 * anybody: they are recorded when they end, or never. */
static void what_waits_is_not_in_flight(void **state)
{
    struct bracket first = {0}, given_up = {0};
    struct req later = {0};

    (void)state;
    ASSERT_CODE(bracket_begin(&first, image, WRITE, 0, 512), 0);
    ASSERT_CODE(bracket_begin(&given_up, image, WRITE, 0, 3 * CLUSTER), BLKREPL_WAIT);
    ASSERT_CODE(req_write(&later, image, 0, data, 2 * CLUSTER), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_BITS(bitmap, "#.......");
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, given_up.token), BLKREPL_WAIT);
    ASSERT_CODE(blkrepl_write_end(env.ctx, first.token, 0, NULL, 0, NULL), 0);
    env_drain(&env);
    req_assert_done(&later, 0);
    ASSERT_BITS(bitmap, "#.......");
    ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), 0);
    ASSERT_BITS(bitmap, "##......");
}

/* Frozen while off: a write in flight is nobody's. */
static void a_write_in_flight_is_not_marked_in_one_that_does_not_record(void **state)
{
    struct bracket b = {0};

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0);
    ASSERT_CODE(bracket_begin(&b, image, WRITE, 2 * CLUSTER, 512), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    ASSERT_BITS(bitmap, "........");
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    assert_int_equal(since(), 0);
    ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap), 0);
    ASSERT_BITS(bitmap, "........");
}

/* Many in flight at once, more than one bitmap, any order: the frozen content has
 * what was told before and what was in flight, the rest is in the successor. */
static void random_flights_are_where_they_belong(void **state)
{
    struct rng rng = {.state = 41};
    blkrepl_bitmap *off = bitmap_put(image, "off", 4096, BLKREPL_BITMAP_DISABLED);
    struct bracket b[24] = {0};
    bool open[24] = {false}, frozen = false;
    static struct map content, since_map;

    (void)state;
    blkrepl_bitmap_free(bitmap);
    bitmap = bitmap_put(image, "fine", 4096, 0);
    map_init(&content, SIZE, 4096);
    map_init(&since_map, SIZE, 4096);
    for (int i = 0; i < (quick() ? 1000 : 10000); i++) {
        size_t n = (size_t)rng_below(&rng, 24);

        if (rng_percent(&rng, 15)) {
            bool keep = rng_percent(&rng, 50);

            if (!frozen) {
                ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
                for (size_t k = 0; k < 24; k++) {
                    if (open[k]) {
                        map_set(&content, b[k].offset, b[k].bytes);
                    }
                }
            } else {
                ASSERT_CODE(keep ? blkrepl_bitmap_reclaim(bitmap) : blkrepl_bitmap_abdicate(bitmap),
                            0);
                map_reset(&content, 0, keep ? 0 : SIZE);
                map_merge(&content, &since_map);
                map_reset(&since_map, 0, SIZE);
            }
            frozen = !frozen;
        } else if (open[n]) {
            ASSERT_CODE(blkrepl_write_end(env.ctx, b[n].token, 0, NULL, 0, NULL), 0);
            map_set(frozen ? &since_map : &content, b[n].offset, b[n].bytes);
            open[n] = false;
        } else {
            /* Each in a part of its own, so that none waits. */
            uint64_t part = SIZE / 24 / 512 * 512, from = rng_below(&rng, part / 512) * 512;

            open[n] = true;
            ASSERT_CODE(bracket_begin(&b[n], image, WRITE, n * part + from,
                                      512 * (1 + rng_below(&rng, (part - from) / 512))),
                        0);
        }
        ASSERT_MAP(bitmap, &content);
        assert_int_equal(bitmap_info(bitmap).since_bytes, 4096 * map_dirty_count(&since_map));
    }
    for (size_t k = 0; k < 24; k++) {
        if (open[k]) {
            ASSERT_CODE(blkrepl_write_end(env.ctx, b[k].token, 0, NULL, 0, NULL), 0);
        }
    }
    assert_int_equal(bitmap_info(off).dirty_granules, 0);
    blkrepl_bitmap_free(off);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(the_content_stands_still_while_the_successor_records),
        T(abdicate_leaves_what_came_since_and_reclaim_all_of_it),
        T(abdicate_of_one_that_nobody_wrote_to_leaves_it_clean),
        T(each_freeze_begins_with_an_empty_successor),
        T(a_disabled_one_may_be_frozen_and_records_nothing),
        T(a_free_standing_one_may_be_frozen),
        T(since_bytes_ends_with_the_bitmap),
        T(a_write_in_flight_is_in_both_wherever_it_begins_and_ends),
        T(so_it_is_when_nothing_has_been_asked_of_the_bitmaps_for_long),
        T(two_freezes_over_one_write_have_it_both),
        T(what_waits_is_not_in_flight),
        T(a_write_in_flight_is_not_marked_in_one_that_does_not_record),
        T(random_flights_are_where_they_belong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
