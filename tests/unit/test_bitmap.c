/* SPDX-License-Identifier: MIT */
/* What cannot be seen of bitmaps through the public functions alone. */
#include "unit/quick_rig.h"

#include <time.h>

#include "block/bitmap.h"

#define DISK (64 * KIB)

struct bench {
    struct quick_bench q;
    blkrepl_bitmap *bitmap;
};

static void bench_open(struct bench *b)
{
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .name = "b", .granularity_bytes = 4096};

    quick_init(&b->q, NULL, DISK);
    quick_open(&b->q);
    assert_int_equal(blkrepl_bitmap_add(b->q.image, &options, &b->bitmap), 0);
}

static void bench_close(struct bench *b)
{
    blkrepl_bitmap_free(b->bitmap);
    quick_close(&b->q);
}

/* Whichever map is damaged, it is told. */
static void validate_finds_damage_in_either_map(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl_bitmap_validate(b.bitmap), 0);
    b.bitmap->map.bits.set_count = 1;
    assert_int_equal(blkrepl_bitmap_validate(b.bitmap), BLKREPL_ERR_CORRUPT);
    assert_non_null(strstr(blkrepl_error_message(), "bitmap \"b\""));
    b.bitmap->map.bits.set_count = 0;
    assert_int_equal(blkrepl_bitmap_freeze(b.bitmap), 0);
    assert_int_equal(blkrepl_bitmap_validate(b.bitmap), 0);
    b.bitmap->since.bits.set_count = 1;
    assert_int_equal(blkrepl_bitmap_validate(b.bitmap), BLKREPL_ERR_CORRUPT);
    b.bitmap->map.bits.set_count = 1;
    assert_int_equal(blkrepl_bitmap_validate(b.bitmap), BLKREPL_ERR_CORRUPT);
    b.bitmap->map.bits.set_count = 0;
    b.bitmap->since.bits.set_count = 0;
    bench_close(&b);
}

/* Looking costs nothing; what needs an instant turns the image, and only if marks
 * could come in between. */
static void only_what_needs_an_instant_turns_the_image(void **state)
{
    struct bench b;
    uint64_t found;
    uint64_t bytes = 0;
    unsigned char digest[32];
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    (void)state;
    bench_open(&b);
    assert_true(quick_back(&b.q));
    assert_int_equal(blkrepl_bitmap_query(b.bitmap, &info), 0);
    assert_int_equal(blkrepl_bitmap_get(b.bitmap, 0), 0);
    assert_int_equal(blkrepl_bitmap_set(b.bitmap, 0, 1), 0);
    assert_int_equal(blkrepl_bitmap_next_dirty(b.bitmap, 0, DISK, &found), 1);
    assert_int_equal(blkrepl_bitmap_save(b.bitmap, 1, 0, NULL, &bytes), -EINVAL);
    assert_false(is_quick(&b.q)); /* save reads whole words */
    assert_true(quick_back(&b.q));
    assert_int_equal(blkrepl_bitmap_sha256(b.bitmap, digest), 0);
    assert_false(is_quick(&b.q));
    assert_int_equal(blkrepl_bitmap_disable(b.bitmap), 0);
    assert_true(quick_back(&b.q));
    assert_int_equal(blkrepl_bitmap_sha256(b.bitmap, digest), 0);
    assert_int_equal(blkrepl_bitmap_reset(b.bitmap, 0, 4096), 0);
    assert_true(is_quick(&b.q)); /* nobody marks it */
    bench_close(&b);
}

/* The first bitmap brings regions along, for which lanes look. */
static void adding_a_bitmap_turns_the_image_before_it_has_regions(void **state)
{
    struct quick_bench q;
    blkrepl_bitmap_options options = {.struct_size = sizeof options, .name = "b"};
    blkrepl_bitmap *bitmap;

    (void)state;
    quick_init(&q, NULL, DISK);
    quick_open(&q);
    assert_true(is_quick(&q));
    q.rig.heap.fail_at = q.rig.heap.calls + 3; /* the object, its map, the regions */
    assert_int_equal(blkrepl_bitmap_add(q.image, &options, &bitmap), -ENOMEM);
    assert_null(bitmap);
    assert_null(q.image->record.regions);
    assert_false(is_quick(&q));
    assert_int_equal(blkrepl_bitmap_add(q.image, &options, &bitmap), 0);
    assert_non_null(q.image->record.regions);
    blkrepl_bitmap_free(bitmap);
    quick_close(&q);
}

struct transaction {
    blkrepl_context *ctx;
    const blkrepl_bitmap_action *const *actions;
    _Atomic int result; /* 1: not yet */
};

static void *transact_main(void *user)
{
    struct transaction *t = user;

    t->result = blkrepl_bitmap_transact(t->ctx, t->actions, 2);
    return NULL;
}

/* Who marks, sets or looks holds a bitmap's lock: none of the actions is done as long as
 * somebody has the lock of one of the bitmaps, not even those on the others. */
static void a_transaction_is_one_instant_for_the_sets_of_other_threads(void **state)
{
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .bytes = 4096, .granularity_bytes = 1};
    const struct timespec moment = {.tv_nsec = 50000000};
    struct rig rig = {.real_clock = true};
    blkrepl_bitmap *from;
    blkrepl_bitmap *into;
    pthread_t thread;

    (void)state;
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl_bitmap_create(rig.ctx, &options, &into), 0);
    assert_int_equal(blkrepl_bitmap_create(rig.ctx, &options, &from), 0);
    assert_int_equal(blkrepl_bitmap_set(from, 100, 1), 0);
    blkrepl_bitmap_action merge = {.struct_size = sizeof merge,
                                   .type = BLKREPL_BITMAP_MERGE,
                                   .bitmap = into,
                                   .sources = &from,
                                   .source_count = 1};
    blkrepl_bitmap_action clear = {
        .struct_size = sizeof clear, .type = BLKREPL_BITMAP_CLEAR, .bitmap = from};
    const blkrepl_bitmap_action *actions[] = {&merge, &clear};
    struct blkrepl_bitmap *in_turn[] = {into, from};
    for (int i = 0; i < 2; i++) {
        struct transaction t = {rig.ctx, actions, 1};

        pthread_mutex_lock(&in_turn[i]->lock);
        assert_int_equal(pthread_create(&thread, NULL, transact_main, &t), 0);
        nanosleep(&moment, NULL);
        assert_int_equal(t.result, 1);
        assert_false(blkrepl__dirtymap_get(&into->map, 100));
        assert_true(blkrepl__dirtymap_get(&from->map, 100));
        pthread_mutex_unlock(&in_turn[i]->lock);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(t.result, 0);
        assert_int_equal(blkrepl_bitmap_get(into, 100), 1);
        assert_int_equal(blkrepl_bitmap_get(from, 100), 0);
        assert_int_equal(blkrepl_bitmap_clear(into), 0);
        assert_int_equal(blkrepl_bitmap_set(from, 100, 1), 0);
    }
    blkrepl_bitmap_free(from);
    blkrepl_bitmap_free(into);
    rig_close(&rig);
}

static void a_list_of_nothing_is_done(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl_bitmap_transact(b.q.rig.ctx, NULL, 0), 0);
    assert_int_equal(blkrepl_bitmap_transact(NULL, NULL, 0), -EINVAL);
    assert_int_equal(blkrepl_bitmap_merge(b.bitmap, NULL, 0), 0);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(validate_finds_damage_in_either_map),
        cmocka_unit_test(only_what_needs_an_instant_turns_the_image),
        cmocka_unit_test(adding_a_bitmap_turns_the_image_before_it_has_regions),
        cmocka_unit_test(a_transaction_is_one_instant_for_the_sets_of_other_threads),
        cmocka_unit_test(a_list_of_nothing_is_done),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
