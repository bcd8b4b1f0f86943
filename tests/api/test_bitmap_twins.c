/* SPDX-License-Identifier: MIT */
/* Random lists of actions, and the same verbs one by one on twins: the same
 * answers, the same content, and a refused list leaves all as it was. */
#include "bits.h"

#define SIZE (8 * CLUSTER)
#define WRITE BLKREPL_OP_WRITE
#define BITMAPS 4
#define ACTIONS 7

static struct env env;
static struct tape disk, other_disk;
static blkrepl_image *images[2];
static struct bracket flights[3];

/* What is to be done, in numbers, so that it can be done to either set. */
struct plan {
    uint32_t type;
    size_t bitmap;
    size_t sources[2];
    uint32_t source_count;
};

struct twins {
    blkrepl_bitmap *bitmaps[BITMAPS];
};

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&other_disk, SIZE);
    images[0] = tape_open(&disk, &env);
    images[1] = tape_open(&other_disk, &env);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(images[0]);
    blkrepl_image_close(images[1]);
    env_close(&env);
    tape_close(&disk);
    tape_close(&other_disk);
    return 0;
}

/* Both sets alike: of two images or of none, on, off, frozen or being loaded. */
static void make(struct twins *set, struct rng rng, char name)
{
    char full[3] = {name, 'a', '\0'};

    for (size_t i = 0; i < BITMAPS; i++, full[1]++) {
        uint64_t home = rng_below(&rng, 3), condition = rng_below(&rng, 8);
        uint64_t granularity = CLUSTER << rng_below(&rng, 2);
        uint32_t flags = condition < 2 ? BLKREPL_BITMAP_DISABLED : 0;

        set->bitmaps[i] = home == 2 ? bitmap_make(&env, SIZE, granularity)
                                    : bitmap_put(images[home], full, granularity, flags);
        for (int n = 0; n < 2; n++) {
            ASSERT_CODE(blkrepl_bitmap_set(set->bitmaps[i], rng_below(&rng, SIZE), 1), 0);
        }
        if (condition == 0) {
            ASSERT_CODE(blkrepl_bitmap_load_begin(set->bitmaps[i]), 0);
        } else if (condition == 2) {
            ASSERT_CODE(blkrepl_bitmap_freeze(set->bitmaps[i]), 0);
            ASSERT_CODE(blkrepl_bitmap_set(set->bitmaps[i], rng_below(&rng, SIZE), 1), 0);
        }
    }
}

static void drop(struct twins *set)
{
    for (size_t i = 0; i < BITMAPS; i++) {
        blkrepl_bitmap *b = set->bitmaps[i];

        if (bitmap_flags(b) & BLKREPL_BITMAP_BUSY) {
            ASSERT_CODE(blkrepl_bitmap_reclaim(b), 0);
        }
        if (bitmap_info(b).image_id) {
            ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
        }
        blkrepl_bitmap_free(b);
    }
}

static void plan_one(struct plan *plan, struct rng *rng)
{
    /* Freezing and removing end most lists: they are rare. */
    static const uint32_t types[] = {BLKREPL_BITMAP_ENABLE,  BLKREPL_BITMAP_ENABLE,
                                     BLKREPL_BITMAP_DISABLE, BLKREPL_BITMAP_DISABLE,
                                     BLKREPL_BITMAP_CLEAR,   BLKREPL_BITMAP_MERGE,
                                     BLKREPL_BITMAP_MERGE,   BLKREPL_BITMAP_MERGE,
                                     BLKREPL_BITMAP_FREEZE,  BLKREPL_BITMAP_REMOVE};

    plan->type = types[rng_below(rng, ARRAY_COUNT(types))];
    plan->bitmap = (size_t)rng_below(rng, BITMAPS);
    plan->sources[0] = (size_t)rng_below(rng, BITMAPS);
    plan->sources[1] = (size_t)rng_below(rng, BITMAPS);
    plan->source_count = plan->type == BLKREPL_BITMAP_MERGE ? 1 + (uint32_t)rng_below(rng, 2) : 0;
}

static int at_once(struct twins *set, const struct plan *plans, uint32_t count)
{
    blkrepl_bitmap_action actions[ACTIONS];
    const blkrepl_bitmap_action *list[ACTIONS];
    blkrepl_bitmap *sources[ACTIONS][2];

    for (uint32_t i = 0; i < count; i++) {
        sources[i][0] = set->bitmaps[plans[i].sources[0]];
        sources[i][1] = set->bitmaps[plans[i].sources[1]];
        actions[i] = (blkrepl_bitmap_action){.struct_size = sizeof actions[i],
                                             .type = plans[i].type,
                                             .bitmap = set->bitmaps[plans[i].bitmap],
                                             .sources = plans[i].source_count ? sources[i] : NULL,
                                             .source_count = plans[i].source_count};
        list[i] = &actions[i];
    }
    return blkrepl_bitmap_transact(env.ctx, list, count);
}

static int one(struct twins *set, const struct plan *plan)
{
    blkrepl_bitmap *b = set->bitmaps[plan->bitmap];
    blkrepl_bitmap *const sources[] = {set->bitmaps[plan->sources[0]],
                                       set->bitmaps[plan->sources[1]]};

    switch (plan->type) {
    case BLKREPL_BITMAP_REMOVE: return blkrepl_bitmap_remove(b);
    case BLKREPL_BITMAP_ENABLE: return blkrepl_bitmap_enable(b);
    case BLKREPL_BITMAP_DISABLE: return blkrepl_bitmap_disable(b);
    case BLKREPL_BITMAP_CLEAR: return blkrepl_bitmap_clear(b);
    case BLKREPL_BITMAP_MERGE: return blkrepl_bitmap_merge(b, sources, plan->source_count);
    default: return blkrepl_bitmap_freeze(b);
    }
}

static void assert_alike(struct twins *set, struct twins *twin, const char *when)
{
    for (size_t i = 0; i < BITMAPS; i++) {
        blkrepl_bitmap_info x = bitmap_info(set->bitmaps[i]), y = bitmap_info(twin->bitmaps[i]);
        uint8_t digests[2][32] = {{0}, {0}};
        int rc = blkrepl_bitmap_sha256(set->bitmaps[i], digests[0]);

        ASSERT_CODE(blkrepl_bitmap_sha256(twin->bitmaps[i], digests[1]), rc);
        if (x.flags != y.flags || x.image_id != y.image_id || x.since_bytes != y.since_bytes ||
            x.dirty_bytes != y.dirty_bytes || memcmp(digests[0], digests[1], 32) != 0) {
            fail_msg("bitmap %zu %s: flags %u and %u, dirty %llu and %llu", i, when, x.flags,
                     y.flags, (unsigned long long)x.dirty_bytes, (unsigned long long)y.dirty_bytes);
        }
        ASSERT_CODE(blkrepl_bitmap_validate(set->bitmaps[i]), 0);
    }
}

static void begin_flights(struct rng *rng)
{
    for (size_t i = 0; i < ARRAY_COUNT(flights); i++) { /* each in a place of its own */
        uint64_t at = (2 * i + rng_below(rng, 2)) * CLUSTER;

        ASSERT_CODE(bracket_begin(&flights[i], images[rng_below(rng, 2)], WRITE, at, 512), 0);
    }
}

static void end_flights(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(flights); i++) {
        ASSERT_CODE(blkrepl_write_end(env.ctx, flights[i].token, 0, NULL, 0, NULL), 0);
    }
}

/* Returns whether the list was carried out. */
static bool try_list(struct rng *rng)
{
    struct plan plans[ACTIONS];
    uint32_t count = 1 + (uint32_t)rng_below(rng, ACTIONS), done = 0;
    struct rng same = {.state = rng_below(rng, UINT64_MAX)};
    struct twins set, twin, before;
    int rc = 0;

    begin_flights(rng); /* before, so that enabled ones owe the same to each set */
    make(&set, same, 'x');
    make(&twin, same, 'y');
    make(&before, same, 'z');
    for (uint32_t i = 0; i < count; i++) {
        plan_one(&plans[i], rng);
    }
    int answer = at_once(&set, plans, count);
    while (done < count && (rc = one(&twin, &plans[done])) == 0) {
        done++;
    }
    ASSERT_CODE(answer, rc);
    assert_alike(&set, answer == 0 ? &twin : &before, "after it");
    end_flights();
    assert_alike(&set, answer == 0 ? &twin : &before, "after what was in flight");
    ASSERT_CODE(write_now(&env, images[0], 7 * CLUSTER, "x", 1), 0);
    ASSERT_CODE(write_now(&env, images[1], 6 * CLUSTER, "x", 1), 0);
    assert_alike(&set, answer == 0 ? &twin : &before, "after another write");
    drop(&set);
    drop(&twin);
    drop(&before);
    return answer == 0;
}

static void a_list_does_what_its_verbs_do_one_by_one_or_nothing(void **state)
{
    int done = 0, all = quick() ? 500 : 5000;
    struct rng rng = {.state = 99};

    (void)state;
    for (int i = 0; i < all; i++) {
        done += try_list(&rng);
    }
    assert_true(done > all / 10 && done < all - all / 10); /* there is something of both */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_list_does_what_its_verbs_do_one_by_one_or_nothing, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
