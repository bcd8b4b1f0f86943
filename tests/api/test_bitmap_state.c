/* SPDX-License-Identifier: MIT */
/* What each verb answers in each state, and that a refused one changes nothing.
 * What a successor holds is in test_bitmap_frozen.c. */
#include "bits.h"

#define SIZE (8 * CLUSTER)
#define PICTURE "#.#....."
#define STATE_ERROR BLKREPL_ERR_STATE
/* Two refusals apply, and the header does not say which goes first. */
#define EITHER (-4000)

static struct env env;
static struct tape disk;
static blkrepl_image *image;

/* ---- The states ------------------------------------------------------------------- */

enum kind {
    RECORDING,
    DISABLED,
    FROZEN,     /* it was recording                                            */
    FROZEN_OFF, /* it was disabled                                             */
    LOADING,    /* of an image                                                 */
    FREE,
    FREE_FROZEN,
    FREE_LOADING,
    REMOVED,
    KINDS
};

static const char *const kind_names[KINDS] = {"recording",   "disabled",     "frozen",
                                              "frozen off",  "loading",      "free-standing",
                                              "free frozen", "free loading", "removed"};

static blkrepl_bitmap *in_state(enum kind kind)
{
    bool off = kind == DISABLED || kind == FROZEN_OFF || kind == LOADING;
    bool is_free = kind == FREE || kind == FREE_FROZEN || kind == FREE_LOADING;
    blkrepl_bitmap *b =
        is_free ? bitmap_make(&env, SIZE, CLUSTER)
                : bitmap_put(image, "subject", CLUSTER, off ? BLKREPL_BITMAP_DISABLED : 0);

    bitmap_draw(b, PICTURE);
    if (kind == FROZEN || kind == FROZEN_OFF || kind == FREE_FROZEN) {
        ASSERT_CODE(blkrepl_bitmap_freeze(b), 0);
        ASSERT_CODE(blkrepl_bitmap_set(b, CLUSTER, 1), 0); /* in the successor */
    } else if (kind == LOADING || kind == FREE_LOADING) {
        ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    } else if (kind == REMOVED) {
        ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
    }
    return b;
}

static const uint32_t kind_flags[KINDS] = {
    [RECORDING] = BLKREPL_BITMAP_RECORDING,
    [FROZEN] = BLKREPL_BITMAP_RECORDING | BLKREPL_BITMAP_BUSY,
    [FROZEN_OFF] = BLKREPL_BITMAP_BUSY,
    [LOADING] = BLKREPL_BITMAP_INCONSISTENT,
    [FREE_FROZEN] = BLKREPL_BITMAP_BUSY,
    [FREE_LOADING] = BLKREPL_BITMAP_INCONSISTENT,
};

/* It is as in_state() has made it. */
static void assert_as_it_was(blkrepl_bitmap *b, enum kind kind)
{
    blkrepl_bitmap_info info = bitmap_info(b);
    uint32_t flags = kind_flags[kind];

    assert_int_equal(info.flags, flags);
    assert_int_equal(info.image_id != 0, kind <= LOADING);
    assert_int_equal(info.since_bytes, flags & BLKREPL_BITMAP_BUSY ? CLUSTER : 0);
    if (flags & BLKREPL_BITMAP_INCONSISTENT) {
        assert_int_equal(info.dirty_granules, 0);
        ASSERT_CODE(blkrepl_bitmap_get(b, 0), STATE_ERROR);
    } else {
        ASSERT_BITS(b, PICTURE);
    }
    ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
}

/* ---- The verbs --------------------------------------------------------------------- */

static blkrepl_bitmap *plain; /* another one, of a picture */
static uint8_t room[64];
static uint64_t number;

static int do_merge_to(blkrepl_bitmap *b)
{
    return bitmap_merge_one(b, plain);
}

static int do_merge_from(blkrepl_bitmap *b)
{
    return bitmap_merge_one(plain, b);
}

static int do_set(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_set(b, 7 * CLUSTER, 1);
}

static int do_reset(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_reset(b, 0, CLUSTER);
}

static int do_intersect_to(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_intersect(b, plain);
}

static int do_intersect_from(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_intersect(plain, b);
}

static int do_subtract_to(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_subtract(b, plain);
}

static int do_subtract_from(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_subtract(plain, b);
}

static int do_resize(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_resize(b, 2 * CLUSTER);
}

static int do_get(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_get(b, CLUSTER);
}

static int do_next_dirty(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_next_dirty(b, 0, UINT64_MAX, &number);
}

static int do_next_clean(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_next_clean(b, 0, UINT64_MAX, &number);
}

static int do_next_area(blkrepl_bitmap *b)
{
    blkrepl_area area;

    return blkrepl_bitmap_next_area(b, 0, UINT64_MAX, 0, &area);
}

static int do_status(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_status(b, 0, SIZE, &number);
}

static int do_iterate(blkrepl_bitmap *b)
{
    uint64_t position = 0, offsets[8];

    return blkrepl_bitmap_iterate(b, &position, offsets, 8);
}

static int do_save(blkrepl_bitmap *b)
{
    uint64_t bytes = sizeof room;

    return blkrepl_bitmap_save(b, 0, SIZE, room, &bytes);
}

static int do_load(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_load(b, 0, SIZE, "\x05", 1);
}

static int do_load_zeroes(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_load_zeroes(b, 0, SIZE);
}

static int do_load_ones(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_load_ones(b, 0, SIZE);
}

static int do_sha256(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_sha256(b, room);
}

static int do_part_alignment(blkrepl_bitmap *b)
{
    return blkrepl_bitmap_part_alignment(b) == 64 * CLUSTER ? 0 : -1;
}

/* What each answers in each state; some look only (0 or more is success). */
struct verb {
    const char *name;
    int (*call)(blkrepl_bitmap *b);
    bool looks;
    int answer[KINDS];
};

#define BUSY (-EBUSY)
#define INVAL (-EINVAL)
#define STATE STATE_ERROR
#define ALL_OF(n)                                                                                  \
    {                                                                                              \
        n, n, n, n, n, n, n, n, n                                                                  \
    }
/* "neither busy nor inconsistent" and no image needed */
#define CHANGES                                                                                    \
    {                                                                                              \
        0, 0, BUSY, BUSY, STATE, 0, BUSY, STATE, 0                                                 \
    }
#define LOOKS(n)                                                                                   \
    {                                                                                              \
        n, n, n, n, STATE, n, n, STATE, n                                                          \
    }
#define LOADS                                                                                      \
    {                                                                                              \
        STATE, STATE, STATE, STATE, 0, STATE, STATE, 0, STATE                                      \
    }

/* In the order of `enum kind`: recording, disabled, frozen, frozen off, loading,
 * free, free frozen, free loading, removed. */
static const struct verb verbs[] = {
    {"remove", blkrepl_bitmap_remove, false, {0, 0, BUSY, BUSY, 0, INVAL, EITHER, INVAL, INVAL}},
    {"enable",
     blkrepl_bitmap_enable,
     false,
     {0, 0, BUSY, BUSY, STATE, INVAL, EITHER, EITHER, INVAL}},
    {"disable",
     blkrepl_bitmap_disable,
     false,
     {0, 0, BUSY, BUSY, STATE, INVAL, EITHER, EITHER, INVAL}},
    {"clear", blkrepl_bitmap_clear, false, CHANGES},
    {"merge to", do_merge_to, false, CHANGES},
    {"merge from", do_merge_from, true, CHANGES},
    {"freeze", blkrepl_bitmap_freeze, false, CHANGES},
    {"abdicate",
     blkrepl_bitmap_abdicate,
     false,
     {STATE, STATE, 0, 0, STATE, STATE, 0, STATE, STATE}},
    {"reclaim", blkrepl_bitmap_reclaim, false, {STATE, STATE, 0, 0, STATE, STATE, 0, STATE, STATE}},
    {"set", do_set, false, {0, 0, 0, 0, STATE, 0, 0, STATE, 0}},
    {"reset", do_reset, false, CHANGES},
    {"invert", blkrepl_bitmap_invert, false, CHANGES},
    {"intersect", do_intersect_to, false, CHANGES},
    {"intersect with", do_intersect_from, true, CHANGES},
    {"subtract", do_subtract_to, false, CHANGES},
    {"subtract from", do_subtract_from, true, CHANGES},
    {"resize", do_resize, false, {INVAL, INVAL, EITHER, EITHER, EITHER, 0, BUSY, STATE, 0}},
    {"get", do_get, true, LOOKS(0)},
    {"next_dirty", do_next_dirty, true, LOOKS(1)},
    {"next_clean", do_next_clean, true, LOOKS(1)},
    {"next_area", do_next_area, true, LOOKS(1)},
    {"status", do_status, true, LOOKS(1)},
    {"iterate", do_iterate, true, LOOKS(2)},
    {"part_alignment", do_part_alignment, true, ALL_OF(0)},
    {"save", do_save, true, LOOKS(0)},
    {"load_begin", blkrepl_bitmap_load_begin, false, {BUSY, 0, BUSY, BUSY, 0, 0, BUSY, 0, 0}},
    {"load", do_load, false, LOADS},
    {"load_zeroes", do_load_zeroes, false, LOADS},
    {"load_ones", do_load_ones, false, LOADS},
    {"load_finish",
     blkrepl_bitmap_load_finish,
     false,
     {STATE, STATE, STATE, STATE, INVAL, STATE, STATE, INVAL, STATE}},
    {"sha256", do_sha256, true, LOOKS(0)},
    {"validate", blkrepl_bitmap_validate, true, ALL_OF(0)},
};

static bool answers_well(int got, int want, enum kind kind)
{
    if (want != EITHER) {
        return got == want;
    }
    return got == -EINVAL || got == (kind_flags[kind] & BLKREPL_BITMAP_BUSY ? -EBUSY : STATE_ERROR);
}

static void try_verb(const struct verb *verb, enum kind kind)
{
    blkrepl_bitmap *b = in_state(kind);

    plain = bitmap_drawn(&env, CLUSTER, ".#......");
    int got = verb->call(b);
    if (!answers_well(got, verb->answer[kind], kind)) {
        fail_msg("%s of one that is %s answers %d (%s), not %d (%s)", verb->name, kind_names[kind],
                 got, blkrepl_error_text(got), verb->answer[kind],
                 blkrepl_error_text(verb->answer[kind]));
    }
    if (got < 0) {
        assert_true(strlen(blkrepl_error_message()) > 0);
        ASSERT_BITS(plain, ".#......");
    }
    if (got < 0 || verb->looks) {
        assert_as_it_was(b, kind);
    }
    ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
    if (bitmap_flags(b) & BLKREPL_BITMAP_BUSY) {
        ASSERT_CODE(blkrepl_bitmap_reclaim(b), 0);
    }
    if (bitmap_info(b).image_id) {
        ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
    }
    blkrepl_bitmap_free(plain);
    blkrepl_bitmap_free(b);
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    image = tape_open(&disk, &env);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

static void every_verb_answers_in_every_state_as_it_is_written(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(verbs); i++) {
        for (enum kind kind = 0; kind < KINDS; kind++) {
            try_verb(&verbs[i], kind);
        }
    }
}

/* ---- The same as actions -------------------------------------------------------------- */

static int act(uint32_t type, blkrepl_bitmap *b, blkrepl_bitmap *source)
{
    blkrepl_bitmap *const sources[] = {source};
    blkrepl_bitmap_action action = {.struct_size = sizeof action,
                                    .type = type,
                                    .bitmap = b,
                                    .sources = source ? sources : NULL,
                                    .source_count = source != NULL};
    const blkrepl_bitmap_action *const actions[] = {&action};

    return blkrepl_bitmap_transact(env.ctx, actions, 1);
}

static int act_remove(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_REMOVE, b, NULL);
}

static int act_enable(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_ENABLE, b, NULL);
}

static int act_disable(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_DISABLE, b, NULL);
}

static int act_clear(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_CLEAR, b, NULL);
}

static int act_merge_to(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_MERGE, b, plain);
}

static int act_merge_from(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_MERGE, plain, b);
}

static int act_freeze(blkrepl_bitmap *b)
{
    return act(BLKREPL_BITMAP_FREEZE, b, NULL);
}

static void an_action_answers_what_the_verb_answers(void **state)
{
    static int (*const acts[])(blkrepl_bitmap *) = {
        act_remove, act_enable, act_disable, act_clear, act_merge_to, act_merge_from, act_freeze};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(acts); i++) { /* the first verbs, in their order */
        struct verb verb = verbs[i];

        verb.call = acts[i];
        for (enum kind kind = 0; kind < KINDS; kind++) {
            try_verb(&verb, kind);
        }
    }
}

/* ---- Enable, disable ---------------------------------------------------------------------- */

static void enable_and_disable_change_what_is_recorded_and_nothing_else(void **state)
{
    blkrepl_bitmap *b = bitmap_put(image, "it", CLUSTER, 0);

    (void)state;
    bitmap_draw(b, PICTURE);
    for (int i = 0; i < 2; i++) { /* twice: the second does nothing */
        ASSERT_CODE(blkrepl_bitmap_disable(b), 0);
        assert_int_equal(bitmap_flags(b), 0);
        ASSERT_CODE(write_now(&env, image, 4 * CLUSTER, "x", 1), 0);
        ASSERT_BITS(b, PICTURE);
    }
    for (int i = 0; i < 2; i++) {
        ASSERT_CODE(blkrepl_bitmap_enable(b), 0);
        assert_int_equal(bitmap_flags(b), BLKREPL_BITMAP_RECORDING);
        ASSERT_BITS(b, PICTURE);
    }
    ASSERT_CODE(write_now(&env, image, 7 * CLUSTER, "x", 1), 0);
    ASSERT_BITS(b, "#.#....#");
    blkrepl_bitmap_free(b);
}

static void a_loaded_one_is_disabled_and_may_be_enabled(void **state)
{
    blkrepl_bitmap *b = in_state(LOADING);

    (void)state;
    ASSERT_CODE(write_now(&env, image, 7 * CLUSTER, "x", 1), 0);
    ASSERT_CODE(do_load(b), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    assert_int_equal(bitmap_flags(b), 0);
    ASSERT_BITS(b, PICTURE);
    ASSERT_CODE(blkrepl_bitmap_enable(b), 0);
    ASSERT_CODE(write_now(&env, image, CLUSTER, "x", 1), 0);
    ASSERT_BITS(b, "###.....");
    blkrepl_bitmap_free(b);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(every_verb_answers_in_every_state_as_it_is_written),
        T(an_action_answers_what_the_verb_answers),
        T(enable_and_disable_change_what_is_recorded_and_nothing_else),
        T(a_loaded_one_is_disabled_and_may_be_enabled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
