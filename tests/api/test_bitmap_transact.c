/* SPDX-License-Identifier: MIT */
/* Several things at one instant: in their order, and all of them or none. */
#include "bits.h"

#define SIZE (8 * CLUSTER)
#define WRITE BLKREPL_OP_WRITE
#define ACTIONS_MAX 64

static struct env env;
static struct tape disk, other_disk;
static blkrepl_image *image, *other;
static blkrepl_bitmap *a, *b; /* of the two images */

/* The list that the next call of run() gets. */
static blkrepl_bitmap_action actions[ACTIONS_MAX];
static blkrepl_bitmap_options options[ACTIONS_MAX];
static blkrepl_bitmap *sources[ACTIONS_MAX][2];
static uint32_t count;

static int set_up(void **state)
{
    (void)state;
    count = 0;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&other_disk, SIZE);
    image = tape_open(&disk, &env);
    other = tape_open(&other_disk, &env);
    a = bitmap_put(image, "a", CLUSTER, 0);
    b = bitmap_put(other, "b", CLUSTER, 0);
    bitmap_draw(a, "##......");
    bitmap_draw(b, "....##..");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
    blkrepl_image_close(image);
    blkrepl_image_close(other);
    env_close(&env);
    tape_close(&disk);
    tape_close(&other_disk);
    return 0;
}

static blkrepl_bitmap_action *add_to_list(uint32_t type)
{
    blkrepl_bitmap_action *action = &actions[count++];

    *action = (blkrepl_bitmap_action){.struct_size = sizeof *action, .type = type};
    return action;
}

static blkrepl_bitmap_action *then(uint32_t type, blkrepl_bitmap *bitmap)
{
    blkrepl_bitmap_action *action = add_to_list(type);

    action->bitmap = bitmap;
    return action;
}

static blkrepl_bitmap_action *then_sources(blkrepl_bitmap_action *action, blkrepl_bitmap *first,
                                           blkrepl_bitmap *second)
{
    blkrepl_bitmap **list = sources[count - 1];

    list[0] = first;
    list[1] = second;
    action->sources = list;
    action->source_count = second ? 2 : 1;
    return action;
}

static blkrepl_bitmap_action *then_add(blkrepl_image *to, const char *name, blkrepl_bitmap **out)
{
    blkrepl_bitmap_action *action = add_to_list(BLKREPL_BITMAP_ADD);
    blkrepl_bitmap_options *o = &options[count - 1];

    *o = (blkrepl_bitmap_options){.struct_size = sizeof *o, .name = name};
    action->image = to;
    action->options = o;
    action->out = out;
    *out = (blkrepl_bitmap *)&env; /* what is there before is of no matter */
    return action;
}

static int run(void)
{
    const blkrepl_bitmap_action *list[ACTIONS_MAX];
    uint32_t n = count;

    for (uint32_t i = 0; i < n; i++) {
        list[i] = &actions[i];
    }
    count = 0;
    return blkrepl_bitmap_transact(env.ctx, list, n);
}

/* The message has this number as a word of its own. */
static bool message_has(unsigned number)
{
    const char *at = blkrepl_error_message();

    while (*at) {
        size_t digits = strspn(at, "0123456789");

        if (digits > 0 && strtoul(at, NULL, 10) == number) {
            return true;
        }
        at += digits ? digits : 1;
    }
    return false;
}

static void refused(int code, unsigned number)
{
    ASSERT_CODE(run(), code);
    if (!message_has(number)) {
        fail_msg("\"%s\" does not name action %u", blkrepl_error_message(), number);
    }
}

static void assert_untouched(void)
{
    ASSERT_BITS(a, "##......");
    ASSERT_BITS(b, "....##..");
    assert_int_equal(bitmap_flags(a), BLKREPL_BITMAP_RECORDING);
    assert_int_equal(bitmap_flags(b), BLKREPL_BITMAP_RECORDING);
    assert_true(bitmap_info(a).image_id == image_info(image).id);
    assert_true(bitmap_info(b).image_id == image_info(other).id);
}

static blkrepl_bitmap *found(blkrepl_image *of, const char *name)
{
    blkrepl_bitmap *bitmap = NULL;
    int rc = blkrepl_bitmap_find(of, name, &bitmap);

    assert_int_equal(rc, bitmap ? 0 : -ENOENT);
    return bitmap;
}

/* ---- Each action ------------------------------------------------------------------- */

static void each_action_does_what_its_verb_does(void **state)
{
    blkrepl_bitmap *out = NULL;

    (void)state;
    then(BLKREPL_BITMAP_CLEAR, a);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(a, "........");
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, NULL);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(a, "....##..");
    then(BLKREPL_BITMAP_DISABLE, a);
    ASSERT_CODE(run(), 0);
    assert_int_equal(bitmap_flags(a), 0);
    then(BLKREPL_BITMAP_ENABLE, a);
    ASSERT_CODE(run(), 0);
    assert_int_equal(bitmap_flags(a), BLKREPL_BITMAP_RECORDING);
    then(BLKREPL_BITMAP_FREEZE, a);
    ASSERT_CODE(run(), 0);
    assert_int_equal(bitmap_flags(a), BLKREPL_BITMAP_RECORDING | BLKREPL_BITMAP_BUSY);
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    ASSERT_CODE(blkrepl_bitmap_abdicate(a), 0);
    ASSERT_BITS(a, "#.......");
    then(BLKREPL_BITMAP_REMOVE, a);
    ASSERT_CODE(run(), 0);
    assert_int_equal(bitmap_info(a).image_id, 0);
    then_add(image, "new", &out);
    ASSERT_CODE(run(), 0);
    assert_non_null(out);
    assert_string_equal(bitmap_info(out).name, "new");
    ASSERT_CODE(write_now(&env, image, CLUSTER, "x", 1), 0);
    ASSERT_BITS(out, ".#......");
    ASSERT_BITS(a, "#.......");
    blkrepl_bitmap_free(out);
}

static void a_new_one_may_begin_with_the_content_of_others(void **state)
{
    blkrepl_bitmap *fine = NULL, *off = NULL, *free_one = bitmap_drawn(&env, CLUSTER, ".......#");

    (void)state;
    blkrepl_bitmap_action *action = then_sources(then_add(image, "fine", &fine), a, free_one);
    options[0].granularity_bytes = CLUSTER / 2;
    assert_ptr_equal(action->options, &options[0]);
    then_sources(then_add(other, "off", &off), a, b);
    options[1].flags = BLKREPL_BITMAP_DISABLED;
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(fine, "####..........##");
    assert_int_equal(bitmap_flags(fine), BLKREPL_BITMAP_RECORDING);
    ASSERT_BITS(off, "##..##..");
    assert_int_equal(bitmap_flags(off), 0);
    assert_untouched();
    blkrepl_bitmap_free(fine);
    blkrepl_bitmap_free(off);
    blkrepl_bitmap_free(free_one);
}

/* ---- In their order ------------------------------------------------------------------ */

static void they_are_done_in_their_order(void **state)
{
    blkrepl_bitmap *out = NULL;

    (void)state;
    then_sources(then(BLKREPL_BITMAP_MERGE, b), a, NULL);
    then(BLKREPL_BITMAP_CLEAR, a);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(a, "........");
    ASSERT_BITS(b, "##..##..");
    then(BLKREPL_BITMAP_CLEAR, b);
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, NULL);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(a, "........");
    ASSERT_BITS(b, "........");
    bitmap_draw(a, "#......#");
    then_sources(then_add(other, "copy", &out), a, NULL);
    then(BLKREPL_BITMAP_CLEAR, a);
    then(BLKREPL_BITMAP_DISABLE, a);
    then(BLKREPL_BITMAP_ENABLE, a);
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, NULL);
    then(BLKREPL_BITMAP_FREEZE, a);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(out, "#......#");
    ASSERT_BITS(a, "........");
    assert_int_equal(bitmap_flags(a), BLKREPL_BITMAP_RECORDING | BLKREPL_BITMAP_BUSY);
    ASSERT_CODE(blkrepl_bitmap_reclaim(a), 0);
    blkrepl_bitmap_free(out);
}

static void a_merge_of_what_was_merged_has_it_all(void **state)
{
    blkrepl_bitmap *c = bitmap_drawn(&env, CLUSTER, ".......#");

    (void)state;
    then_sources(then(BLKREPL_BITMAP_MERGE, b), c, NULL);
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, NULL);
    then(BLKREPL_BITMAP_CLEAR, b);
    then_sources(then(BLKREPL_BITMAP_MERGE, b), a, c);
    then(BLKREPL_BITMAP_CLEAR, c);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(a, "##..##.#");
    ASSERT_BITS(b, "##..##.#");
    ASSERT_BITS(c, "........");
    blkrepl_bitmap_free(c);
}

static void each_is_judged_as_the_earlier_ones_have_left_things(void **state)
{
    blkrepl_bitmap *out = NULL, *second = NULL;

    (void)state;
    then(BLKREPL_BITMAP_FREEZE, a);
    then(BLKREPL_BITMAP_CLEAR, a);
    refused(-EBUSY, 1);
    then(BLKREPL_BITMAP_FREEZE, a);
    then(BLKREPL_BITMAP_FREEZE, a);
    refused(-EBUSY, 1);
    then(BLKREPL_BITMAP_FREEZE, a);
    then_sources(then(BLKREPL_BITMAP_MERGE, b), a, NULL);
    refused(-EBUSY, 1);
    then(BLKREPL_BITMAP_FREEZE, a);
    then(BLKREPL_BITMAP_REMOVE, a);
    refused(-EBUSY, 1);
    then(BLKREPL_BITMAP_FREEZE, a);
    then_sources(then_add(other, "x", &out), a, NULL);
    refused(-EBUSY, 1);
    assert_null(out);
    then(BLKREPL_BITMAP_REMOVE, a);
    then(BLKREPL_BITMAP_REMOVE, a);
    refused(-EINVAL, 1);
    then(BLKREPL_BITMAP_REMOVE, a);
    then(BLKREPL_BITMAP_CLEAR, a); /* as free-standing */
    then(BLKREPL_BITMAP_ENABLE, a);
    refused(-EINVAL, 2);
    then_add(image, "x", &out);
    then_add(image, "x", &second);
    refused(-EEXIST, 1);
    assert_null(out);
    assert_null(second);
    assert_null(found(image, "x"));
    then_add(image, "a", &out);
    then(BLKREPL_BITMAP_REMOVE, a);
    refused(-EEXIST, 0);
    assert_untouched();
}

static void a_name_that_was_freed_may_be_used_in_the_same_call(void **state)
{
    blkrepl_bitmap *out = NULL;

    (void)state;
    then(BLKREPL_BITMAP_REMOVE, a);
    then_sources(then_add(image, "a", &out), a, b);
    then(BLKREPL_BITMAP_CLEAR, a);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(out, "##..##..");
    ASSERT_BITS(a, "........");
    blkrepl_bitmap *again = found(image, "a");
    assert_true(bitmap_info(again).id == bitmap_info(out).id);
    assert_true(bitmap_info(again).id != bitmap_info(a).id);
    ASSERT_CODE(write_now(&env, image, 2 * CLUSTER, "x", 1), 0);
    ASSERT_BITS(out, "###.##..");
    ASSERT_BITS(a, "........");
    blkrepl_bitmap_free(again);
    blkrepl_bitmap_free(out);
}

/* ---- All or nothing ----------------------------------------------------------------------- */

/* Eight actions that change everything; the bad one comes at each place. */
static void a_refusal_at_any_place_undoes_all(void **state)
{
    blkrepl_bitmap *busy = bitmap_put(image, "busy", CLUSTER, 0);
    struct bracket w = {0};

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_freeze(busy), 0);
    ASSERT_CODE(bracket_begin(&w, image, WRITE, 7 * CLUSTER, 512), 0);
    for (unsigned bad = 0; bad <= 8; bad++) {
        blkrepl_bitmap *out[2] = {NULL, NULL};

        for (unsigned i = 0; i <= 8; i++) {
            if (i == bad) {
                then(BLKREPL_BITMAP_CLEAR, busy);
            }
            switch (i) {
            case 0: then_sources(then(BLKREPL_BITMAP_MERGE, a), b, NULL); break;
            case 1: then(BLKREPL_BITMAP_CLEAR, b); break;
            case 2: then_sources(then_add(other, "x", &out[0]), a, NULL); break;
            case 3: then(BLKREPL_BITMAP_DISABLE, a); break; /* marks what is in flight */
            case 4: then_add(image, "y", &out[1]); break;
            case 5: then(BLKREPL_BITMAP_FREEZE, b); break;
            case 6: then(BLKREPL_BITMAP_ENABLE, a); break;
            case 7: then(BLKREPL_BITMAP_REMOVE, a); break;
            default: break;
            }
        }
        refused(-EBUSY, bad);
        assert_untouched();
        assert_null(out[0]);
        assert_null(out[1]);
        assert_null(found(other, "x"));
        assert_null(found(image, "y"));
        assert_int_equal(bitmap_flags(busy), BLKREPL_BITMAP_RECORDING | BLKREPL_BITMAP_BUSY);
    }
    ASSERT_CODE(blkrepl_write_end(env.ctx, w.token, 0, NULL, 0, NULL), 0);
    ASSERT_BITS(a, "##.....#"); /* it still records */
    ASSERT_CODE(write_now(&env, other, 0, "x", 1), 0);
    ASSERT_BITS(b, "#...##..");
    blkrepl_bitmap_free(busy);
}

static void the_number_is_right_in_a_long_list(void **state)
{
    (void)state;
    for (unsigned bad = 0; bad < ACTIONS_MAX; bad += 7) {
        for (unsigned i = 0; i < ACTIONS_MAX; i++) {
            then(i == bad ? 99 : BLKREPL_BITMAP_CLEAR, a);
        }
        refused(-EINVAL, bad);
    }
    assert_untouched();
}

/* ---- Refusals --------------------------------------------------------------------------- */

static void each_refusal_is_that_of_the_verb(void **state)
{
    struct env stranger;
    blkrepl_bitmap *out = NULL, *loading = bitmap_make(&env, SIZE, CLUSTER);
    blkrepl_bitmap *longer = bitmap_make(&env, SIZE + 1, CLUSTER);
    blkrepl_image *foreign_image = NULL;

    (void)state;
    env_open(&stranger, NULL, 0);
    blkrepl_bitmap *foreign = bitmap_make(&stranger, SIZE, CLUSTER);
    ASSERT_CODE(blkrepl_image_open_memory(stranger.ctx, SIZE, NULL, &foreign_image), 0);
    ASSERT_CODE(blkrepl_bitmap_load_begin(loading), 0);
    then(BLKREPL_BITMAP_CLEAR, loading);
    refused(BLKREPL_ERR_STATE, 0);
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, loading);
    refused(BLKREPL_ERR_STATE, 0);
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, longer);
    refused(-EINVAL, 0);
    then_sources(then(BLKREPL_BITMAP_MERGE, a), b, foreign);
    refused(-EINVAL, 0);
    then(BLKREPL_BITMAP_CLEAR, foreign);
    refused(-EINVAL, 0);
    then_add(foreign_image, "x", &out);
    refused(-EINVAL, 0);
    assert_null(out);
    then_sources(then_add(image, "x", &out), longer, NULL);
    refused(-EINVAL, 0);
    then_sources(then_add(image, "x", &out), b, loading);
    refused(BLKREPL_ERR_STATE, 0);
    then_add(image, "", &out);
    refused(-EINVAL, 0);
    then_add(image, "x", &out);
    options[0].granularity_bytes = 511;
    refused(-EINVAL, 0);
    then_add(image, "x", &out);
    options[0].bytes = SIZE - 1;
    refused(-EINVAL, 0);
    assert_null(found(image, "x"));
    assert_untouched();
    blkrepl_bitmap_free(foreign);
    blkrepl_image_close(foreign_image);
    env_close(&stranger);
    blkrepl_bitmap_free(loading);
    blkrepl_bitmap_free(longer);
}

static void null_and_unknown_types_are_refused(void **state)
{
    const blkrepl_bitmap_action *none[1] = {NULL};
    blkrepl_bitmap *out = NULL;

    (void)state;
    then(BLKREPL_BITMAP_CLEAR, a);
    ASSERT_CODE(blkrepl_bitmap_transact(NULL, none, 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, NULL, 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, none, 1), -EINVAL);
    count = 0;
    static const uint32_t types[] = {0, 8, 1000, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        then(BLKREPL_BITMAP_CLEAR, a);
        then(types[i], a);
        refused(-EINVAL, 1);
    }
    for (uint32_t type = BLKREPL_BITMAP_REMOVE; type <= BLKREPL_BITMAP_FREEZE; type++) {
        then(BLKREPL_BITMAP_CLEAR, a);
        if (type == BLKREPL_BITMAP_MERGE) {
            then_sources(then(type, NULL), b, NULL);
        } else {
            then(type, NULL);
        }
        refused(-EINVAL, 1);
    }
    then(BLKREPL_BITMAP_CLEAR, a);
    sources[1][0] = NULL;
    then(BLKREPL_BITMAP_MERGE, a)->sources = sources[1];
    actions[1].source_count = 1;
    refused(-EINVAL, 1);
    then(BLKREPL_BITMAP_CLEAR, a);
    then(BLKREPL_BITMAP_MERGE, a)->source_count = 1;
    refused(-EINVAL, 1);
    then_add(NULL, "x", &out);
    refused(-EINVAL, 0);
    then_add(image, "x", &out)->options = NULL;
    refused(-EINVAL, 0);
    then_add(image, "x", &out)->out = NULL;
    refused(-EINVAL, 0);
    assert_null(found(image, "x"));
    assert_untouched();
}

static void what_a_type_does_not_use_must_be_0(void **state)
{
    blkrepl_bitmap *out = NULL;

    (void)state;
    for (uint32_t type = BLKREPL_BITMAP_REMOVE; type <= BLKREPL_BITMAP_FREEZE; type++) {
        for (int field = 0; field < 6; field++) {
            bool merge = type == BLKREPL_BITMAP_MERGE;
            blkrepl_bitmap_action *action = then(type, a);

            if (merge) {
                then_sources(action, b, NULL);
            }
            switch (field) {
            case 0: action->image = image; break;
            case 1: action->options = &options[0]; break;
            case 2: action->out = &out; break;
            case 3: action->reserved0 = 1; break;
            case 4: action->sources = merge ? NULL : sources[0]; break;
            default: action->source_count = merge ? 0 : 1; break;
            }
            if (merge && field > 3) {
                count = 0; /* it uses them */
            } else {
                refused(-EINVAL, 0);
            }
        }
    }
    then_add(image, "x", &out)->bitmap = a;
    refused(-EINVAL, 0);
    then_add(image, "x", &out)->reserved0 = 1;
    refused(-EINVAL, 0);
    assert_null(found(image, "x"));
    assert_untouched();
}

static void actions_of_other_releases_are_understood_or_refused(void **state)
{
    struct {
        blkrepl_bitmap_action known;
        uint64_t unknown;
    } newer = {.unknown = 1};
    const blkrepl_bitmap_action *list[2] = {&actions[0], &newer.known};

    (void)state;
    then(BLKREPL_BITMAP_CLEAR, b);
    newer.known = *then(BLKREPL_BITMAP_CLEAR, a);
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, list, 2), BLKREPL_ERR_VERSION);
    assert_true(message_has(1));
    for (uint32_t size = 0; size < sizeof newer.known; size += 4) {
        newer.known.struct_size = size;
        ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, list, 2), -EINVAL);
        assert_true(message_has(1));
    }
    assert_untouched();
    newer.known.struct_size = sizeof newer;
    newer.unknown = 0;
    ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, list, 2), 0);
    ASSERT_BITS(a, "........");
    ASSERT_BITS(b, "........");
}

/* ---- One instant ------------------------------------------------------------------------- */

/* What is in flight is on both sides of it, on every image. */
static void what_is_in_flight_is_on_both_sides_of_the_instant(void **state)
{
    struct bracket w[2] = {0};

    (void)state;
    ASSERT_CODE(bracket_begin(&w[0], image, WRITE, 3 * CLUSTER, 512), 0);
    ASSERT_CODE(bracket_begin(&w[1], other, WRITE, 2 * CLUSTER, 512), 0);
    then(BLKREPL_BITMAP_FREEZE, a);
    then(BLKREPL_BITMAP_DISABLE, b);
    ASSERT_CODE(run(), 0);
    ASSERT_BITS(a, "##.#....");
    ASSERT_BITS(b, "..#.##..");
    for (int i = 0; i < 2; i++) {
        ASSERT_CODE(blkrepl_write_end(env.ctx, w[i].token, 0, NULL, 0, NULL), 0);
    }
    ASSERT_CODE(blkrepl_bitmap_abdicate(a), 0);
    ASSERT_BITS(a, "...#....");
}

/* The swap that backup tools make: a new one records from where the old one ends. */
static void a_swap_of_bitmaps_loses_no_write_in_flight(void **state)
{
    struct bracket w = {0};
    blkrepl_bitmap *out = NULL;

    (void)state;
    ASSERT_CODE(bracket_begin(&w, image, WRITE, 3 * CLUSTER, 512), 0);
    then_add(image, "next", &out);
    then(BLKREPL_BITMAP_DISABLE, a);
    ASSERT_CODE(run(), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, w.token, 0, NULL, 0, NULL), 0);
    ASSERT_BITS(a, "##.#....");
    ASSERT_BITS(out, "...#....");
    blkrepl_bitmap_free(out);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(each_action_does_what_its_verb_does),
        T(a_new_one_may_begin_with_the_content_of_others),
        T(they_are_done_in_their_order),
        T(a_merge_of_what_was_merged_has_it_all),
        T(each_is_judged_as_the_earlier_ones_have_left_things),
        T(a_name_that_was_freed_may_be_used_in_the_same_call),
        T(a_refusal_at_any_place_undoes_all),
        T(the_number_is_right_in_a_long_list),
        T(each_refusal_is_that_of_the_verb),
        T(null_and_unknown_types_are_refused),
        T(what_a_type_does_not_use_must_be_0),
        T(actions_of_other_releases_are_understood_or_refused),
        T(what_is_in_flight_is_on_both_sides_of_the_instant),
        T(a_swap_of_bitmaps_loses_no_write_in_flight),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
