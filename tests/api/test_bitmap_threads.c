/* SPDX-License-Identifier: MIT */
/* Bitmaps used by several threads of the host at once, without guests: each call
 * happens as if alone. */
#include "bits.h"

#define THREADS 3
#define GRANULES 512u

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static blkrepl_bitmap *one, *two;
static uint64_t granule; /* of `one` */
static _Atomic unsigned errors;
static _Atomic bool stop;

struct worker {
    pthread_t thread;
    unsigned number;
    struct rng rng;
};

static struct worker workers[THREADS];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 64 * CLUSTER);
    image = tape_open(&disk, &env);
    one = bitmap_make(&env, GRANULES, 1);
    two = bitmap_make(&env, GRANULES, 1);
    atomic_store(&errors, 0);
    atomic_store(&stop, false);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_bitmap_validate(one), 0);
    ASSERT_CODE(blkrepl_bitmap_validate(two), 0);
    blkrepl_bitmap_free(one);
    blkrepl_bitmap_free(two);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

static void wrong_if(bool wrong)
{
    atomic_fetch_add(&errors, wrong);
}

static void run(void *(*const mains[THREADS])(void *))
{
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].number = i;
        workers[i].rng.state = i + 1;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, mains[i], &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    assert_int_equal(atomic_load(&errors), 0);
}

static int rounds(void)
{
    return quick() ? 300 : 3000;
}

/* ---- Setting ---------------------------------------------------------------------- */

/* Neighbours of each other, so in one word. */
static void *set_own(void *argument)
{
    struct worker *w = argument;

    for (unsigned i = w->number; i < GRANULES; i += THREADS) {
        wrong_if(blkrepl_bitmap_set(one, i * granule, 1) != 0);
        wrong_if(blkrepl_bitmap_get(one, i * granule) != 1);
    }
    return NULL;
}

static void *reset_own(void *argument)
{
    struct worker *w = argument;

    for (unsigned i = w->number; i < GRANULES; i += THREADS) {
        wrong_if(blkrepl_bitmap_reset(one, i * granule, granule) != 0);
        wrong_if(blkrepl_bitmap_get(one, i * granule) != 0);
    }
    return NULL;
}

static void neighbours_set_and_reset_by_different_threads_do_not_get_lost(void **state)
{
    blkrepl_bitmap *free_one = one;

    (void)state;
    for (int named = 0; named < 2; named++) {
        blkrepl_bitmap *b = named ? bitmap_put(image, "it", 512, 0) : one;

        one = b;
        granule = bitmap_info(one).granularity_bytes;
        for (int i = 0; i < rounds() / 30; i++) {
            run((void *(*const[])(void *)){set_own, set_own, set_own});
            assert_int_equal(bitmap_info(one).dirty_granules, GRANULES);
            ASSERT_CODE(blkrepl_bitmap_validate(one), 0);
            run((void *(*const[])(void *)){reset_own, reset_own, reset_own});
            assert_int_equal(bitmap_info(one).dirty_granules, 0);
            ASSERT_CODE(blkrepl_bitmap_validate(one), 0);
        }
    }
    blkrepl_bitmap_free(one);
    one = free_one;
}

/* ---- Two at once -------------------------------------------------------------------- */

static void *merge_both_ways(void *argument)
{
    struct worker *w = argument;

    for (int i = 0; i < rounds(); i++) {
        blkrepl_bitmap *a = rng_percent(&w->rng, 50) ? one : two;
        blkrepl_bitmap *b = a == one ? two : one;
        int rc = 0;

        switch (rng_below(&w->rng, 5)) {
        case 0: rc = bitmap_merge_one(a, b); break;
        case 1: rc = blkrepl_bitmap_intersect(a, b); break;
        case 2: rc = blkrepl_bitmap_subtract(a, b); break;
        case 3: rc = blkrepl_bitmap_invert(a); break;
        default: rc = blkrepl_bitmap_set(a, rng_below(&w->rng, GRANULES), 1); break;
        }
        wrong_if(rc != 0);
    }
    return NULL;
}

static void two_may_be_combined_both_ways_at_once(void **state)
{
    (void)state;
    run((void *(*const[])(void *)){merge_both_ways, merge_both_ways, merge_both_ways});
}

/* Either size, never a mixture. */
static void *resize_to_and_fro(void *argument)
{
    (void)argument;
    for (int i = 0; i < rounds(); i++) {
        wrong_if(blkrepl_bitmap_resize(one, i % 2 ? GRANULES : 3 * GRANULES) != 0);
    }
    return NULL;
}

static void *merge_if_it_fits(void *argument)
{
    struct worker *w = argument;

    for (int i = 0; i < rounds(); i++) {
        uint64_t position = 0, list[16], found = 0, need = 0;
        int rc = w->number == 1 ? bitmap_merge_one(one, two) : bitmap_merge_one(two, one);

        wrong_if(rc != 0 && rc != -EINVAL);
        rc = blkrepl_bitmap_intersect(two, one);
        wrong_if(rc != 0 && rc != -EINVAL);
        rc = blkrepl_bitmap_set(one, 2 * GRANULES, 1);
        wrong_if(rc != 0 && rc != -EINVAL);
        wrong_if(blkrepl_bitmap_next_dirty(one, 0, UINT64_MAX, &found) < 0);
        wrong_if(blkrepl_bitmap_iterate(one, &position, list, 16) < 0);
        rc = blkrepl_bitmap_save(one, 0, 3 * (uint64_t)GRANULES, NULL, &need);
        wrong_if(rc != 0 && rc != -EINVAL);
        wrong_if(blkrepl_bitmap_validate(one) != 0);
    }
    return NULL;
}

static void one_may_be_resized_while_others_use_it(void **state)
{
    (void)state;
    run((void *(*const[])(void *)){resize_to_and_fro, merge_if_it_fits, merge_if_it_fits});
}

/* ---- Loading ---------------------------------------------------------------------------- */

static void *load_again_and_again(void *argument)
{
    int n = rounds();

    (void)argument;
    for (int i = 0; i < n; i++) {
        wrong_if(blkrepl_bitmap_load_begin(one) != 0);
        wrong_if(blkrepl_bitmap_load_ones(one, 0, 128) != 0);
        wrong_if(blkrepl_bitmap_load_zeroes(one, 128, GRANULES - 128) != 0);
        wrong_if(blkrepl_bitmap_load_finish(one) != 0);
    }
    atomic_store(&stop, true);
    return NULL;
}

static void *read_all_or_nothing(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        blkrepl_bitmap_info info = {.struct_size = sizeof info};
        int last = blkrepl_bitmap_get(one, 127);
        uint64_t found = 0;
        int rc = blkrepl_bitmap_next_clean(one, 0, UINT64_MAX, &found);

        wrong_if(last != 1 && last != BLKREPL_ERR_STATE);
        wrong_if(rc == 1 ? found != 128 : rc != BLKREPL_ERR_STATE);
        wrong_if(blkrepl_bitmap_query(one, &info) != 0);
        wrong_if(info.dirty_bytes != (info.flags & BLKREPL_BITMAP_INCONSISTENT ? 0 : 128));
        rc = bitmap_merge_one(two, one);
        wrong_if(rc != 0 && rc != BLKREPL_ERR_STATE);
    }
    return NULL;
}

static void a_load_is_seen_whole_or_not_at_all(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_bitmap_set(one, 0, 128), 0);
    run((void *(*const[])(void *)){load_again_and_again, read_all_or_nothing, read_all_or_nothing});
    assert_true(bitmap_info(two).dirty_bytes == 0 || bitmap_info(two).dirty_bytes == 128);
}

/* ---- Handles ------------------------------------------------------------------------------ */

static void *add_find_and_remove(void *argument)
{
    struct worker *w = argument;
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "contested"};

    for (int i = 0; i < rounds(); i++) {
        blkrepl_bitmap *b = NULL;
        int rc = 0;

        switch (rng_below(&w->rng, 4)) {
        case 0:
            rc = blkrepl_bitmap_add(image, &o, &b);
            wrong_if(rc != 0 && rc != -EEXIST);
            break;
        case 1:
            rc = blkrepl_bitmap_find(image, "contested", &b);
            wrong_if(rc != 0 && rc != -ENOENT);
            break;
        case 2:
            rc = blkrepl_bitmap_next(image, 0, &b);
            wrong_if(rc != 0 && rc != -ENOENT);
            break;
        default:
            if (blkrepl_bitmap_find(image, "contested", &b) == 0) {
                rc = blkrepl_bitmap_remove(b);
                wrong_if(rc != 0 && rc != -EINVAL); /* another one was first */
            }
            break;
        }
        wrong_if(b != NULL && blkrepl_bitmap_set(b, 0, 1) != 0);
        wrong_if(b != NULL && blkrepl_bitmap_get(b, 0) != 1);
        blkrepl_bitmap_free(b);
    }
    return NULL;
}

static void names_are_added_found_and_removed_by_many(void **state)
{
    blkrepl_bitmap *b = NULL;

    (void)state;
    run((void *(*const[])(void *)){add_find_and_remove, add_find_and_remove, add_find_and_remove});
    if (blkrepl_bitmap_find(image, "contested", &b) == 0) {
        ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
        blkrepl_bitmap_free(b);
    }
    ASSERT_CODE(blkrepl_bitmap_next(image, 0, &b), -ENOENT);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(neighbours_set_and_reset_by_different_threads_do_not_get_lost),
        T(two_may_be_combined_both_ways_at_once),
        T(one_may_be_resized_while_others_use_it),
        T(a_load_is_seen_whole_or_not_at_all),
        T(names_are_added_found_and_removed_by_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
