/* SPDX-License-Identifier: MIT */
/* Bitmaps under threads: guests write on lanes of their own while others list,
 * clear, freeze, merge and swap.  Nothing is lost: a write that began after an
 * instant and was told before another is dirty in what was recorded between.
 *
 * Each granule has one writer, which counts its writes when they begin and when
 * they have been told; so "write n began after I looked" is begun < n. */
#include <sched.h>
#include <time.h>

#include "bits.h"

#define WRITERS 3
#define LANES (WRITERS + 1)
#define GRANULE 4096
#define GRANULES 198 /* a third is never written  */
#define SIZE ((uint64_t)GRANULES * GRANULE)
#define NEVER(granule) ((granule) % 3 == 2)

struct counts {
    uint32_t of[GRANULES];
};

struct writer {
    uint32_t lane;
    pthread_t thread;
    struct rng rng;
};

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static blkrepl_bitmap *bitmap;
static struct writer writers[LANES];
static _Atomic uint32_t begun[GRANULES], told[GRANULES];
static _Atomic bool stop;
static _Atomic unsigned errors;

static void look(_Atomic uint32_t *counters, struct counts *out)
{
    for (size_t i = 0; i < GRANULES; i++) {
        out->of[i] = atomic_load(&counters[i]);
    }
}

/* ---- Guests ------------------------------------------------------------------------- */

static void poll_own(uint32_t lane)
{
    if (blkrepl_poll(env.ctx, lane, 0) < 0) {
        atomic_fetch_add(&errors, 1);
    }
}

static int write_through(struct writer *w, uint32_t first, uint32_t granules)
{
    static const uint8_t data[4 * GRANULE];
    struct req req = {0};
    int rc;

    switch (rng_below(&w->rng, 3)) {
    case 0: rc = lane_write(&req, image, w->lane, first * GRANULE, data, granules * GRANULE); break;
    case 1: rc = lane_zeroes(&req, image, w->lane, first * GRANULE, granules * GRANULE); break;
    default: rc = lane_discard(&req, image, w->lane, first * GRANULE, granules * GRANULE); break;
    }
    while (rc == 0 && req.calls == 0) {
        poll_own(w->lane);
    }
    return rc;
}

static int write_beside(struct writer *w, uint32_t first, uint32_t granules)
{
    struct bracket b = {0};
    int rc = lane_begin(&b, image, w->lane, BLKREPL_OP_WRITE, first * GRANULE, granules * GRANULE);

    while (rc >= 0 && !bracket_may_go(&b)) {
        poll_own(w->lane);
    }
    if (rng_percent(&w->rng, 10)) {
        sched_yield(); /* in flight for a while */
    }
    return rc < 0 ? rc
                  : blkrepl_write_end(env.ctx, b.token, rng_percent(&w->rng, 20) ? -EIO : 0, NULL,
                                      0, NULL);
}

/* Those of its own among 0, 1, 3, 4, 6, 7 ... */
static void *writer_main(void *argument)
{
    struct writer *w = argument;
    uint32_t share = GRANULES / WRITERS, base = (w->lane - 1) * share;

    while (!atomic_load(&stop)) {
        uint32_t first = base + (uint32_t)rng_below(&w->rng, share / 3) * 3;
        uint32_t granules = 1 + (uint32_t)rng_below(&w->rng, 2);

        for (uint32_t i = 0; i < granules; i++) {
            atomic_fetch_add(&begun[first + i], 1);
        }
        int rc = rng_percent(&w->rng, 50) ? write_through(w, first, granules)
                                          : write_beside(w, first, granules);
        if (rc != 0) {
            atomic_fetch_add(&errors, 1);
        }
        for (uint32_t i = 0; i < granules; i++) {
            atomic_fetch_add(&told[first + i], 1);
        }
    }
    return NULL;
}

static void start_writers(void)
{
    atomic_store(&stop, false);
    for (uint32_t lane = 1; lane < LANES; lane++) {
        writers[lane].lane = lane;
        writers[lane].rng.state = lane;
        assert_int_equal(pthread_create(&writers[lane].thread, NULL, writer_main, &writers[lane]),
                         0);
    }
}

static int set_up_image(void **state)
{
    const blkrepl_context_options base = {.lane_count = LANES};

    (void)state;
    env_open(&env, &base, 0);
    tape_init(&disk, SIZE);
    disk.lanes = LANES;
    image = tape_open(&disk, &env);
    bitmap = NULL;
    for (size_t i = 0; i < GRANULES; i++) {
        atomic_store(&begun[i], 0);
        atomic_store(&told[i], 0);
    }
    atomic_store(&errors, 0);
    return 0;
}

static int set_up(void **state)
{
    set_up_image(state);
    bitmap = bitmap_put(image, "it", GRANULE, 0);
    start_writers();
    return 0;
}

static void join_writers(void)
{
    atomic_store(&stop, true);
    for (uint32_t lane = 1; lane < LANES; lane++) {
        pthread_join(writers[lane].thread, NULL);
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        lane_drain(&env, lane);
    }
    assert_int_equal(atomic_load(&errors), 0);
}

static int tear_down(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_bitmap_validate(bitmap), 0);
    blkrepl_bitmap_free(bitmap);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

/* Until the guests have done something, so that a round is one; now and then so
 * much that their image has gone back from the slow way to the quick one. */
static void let_them_write(uint32_t writes)
{
    static unsigned calls;

    uint64_t from = 0, to = 0;

    writes += ++calls % 40 == 0 ? 1500 : 0;
    for (size_t i = 0; i < GRANULES; i++) {
        from += atomic_load(&told[i]);
    }
    do {
        sched_yield();
        to = 0;
        for (size_t i = 0; i < GRANULES; i++) {
            to += atomic_load(&told[i]);
        }
    } while (to - from < writes);
}

static int rounds(int many)
{
    return quick() ? many / 10 : many;
}

/* What began after one look and was told before the other is in the bitmap, or in
 * either of two. */
static void assert_in(blkrepl_bitmap *b, blkrepl_bitmap *or_in, const struct counts *after,
                      const struct counts *before, const char *what)
{
    for (uint64_t i = 0; i < GRANULES; i++) {
        int dirty = blkrepl_bitmap_get(b, i * GRANULE);

        dirty = dirty || !or_in ? dirty : blkrepl_bitmap_get(or_in, i * GRANULE);
        if (before->of[i] > after->of[i] && dirty != 1) {
            fail_msg("%s: granule %u is not dirty (%d): write %u began after, %u was told before",
                     what, (unsigned)i, dirty, after->of[i] + 1, before->of[i]);
        }
        if (NEVER(i) && dirty != 0) {
            fail_msg("%s: granule %u is dirty and was never written", what, (unsigned)i);
        }
    }
}

/* ---- Tests --------------------------------------------------------------------------- */

static void what_was_told_since_the_last_clear_is_dirty(void **state)
{
    struct counts after, before;

    (void)state;
    for (int i = 0; i < rounds(2000); i++) {
        ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
        look(begun, &after);
        let_them_write((uint32_t)i % 7);
        look(told, &before);
        assert_in(bitmap, NULL, &after, &before, "since the clear");
    }
    join_writers();
}

/* Nothing that was told before a freeze is missing in the content, nor what was
 * told since in the successor, with either end. */
static void what_was_told_is_in_the_content_or_in_the_successor(void **state)
{
    struct counts start, at_freeze, after_freeze, at_end;
    struct rng rng = {.state = 5};
    uint8_t digests[2][32];

    (void)state;
    look(begun, &start);
    for (int i = 0; i < rounds(1500); i++) {
        bool keep = rng_percent(&rng, 40);

        let_them_write((uint32_t)i % 5);
        look(told, &at_freeze);
        ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
        look(begun, &after_freeze);
        ASSERT_CODE(blkrepl_bitmap_sha256(bitmap, digests[0]), 0);
        assert_in(bitmap, NULL, &start, &at_freeze, "content at the freeze");
        let_them_write((uint32_t)i % 5);
        ASSERT_CODE(blkrepl_bitmap_sha256(bitmap, digests[1]), 0);
        assert_memory_equal(digests[0], digests[1], 32);
        look(told, &at_end);
        ASSERT_CODE(keep ? blkrepl_bitmap_reclaim(bitmap) : blkrepl_bitmap_abdicate(bitmap), 0);
        start = keep ? start : after_freeze;
        assert_in(bitmap, NULL, &start, &at_end, keep ? "reclaimed" : "abdicated");
    }
    join_writers();
}

/* Moved from one to another at one instant: every write there ever was is in one. */
static void what_is_merged_away_and_cleared_at_one_instant_is_in_one_of_both(void **state)
{
    blkrepl_bitmap *sum = bitmap_make(&env, SIZE, GRANULE);
    blkrepl_bitmap *const sources[] = {bitmap};
    blkrepl_bitmap_action merge = {.struct_size = sizeof merge,
                                   .type = BLKREPL_BITMAP_MERGE,
                                   .bitmap = sum,
                                   .sources = sources,
                                   .source_count = 1};
    blkrepl_bitmap_action clear = {
        .struct_size = sizeof clear, .type = BLKREPL_BITMAP_CLEAR, .bitmap = bitmap};
    const blkrepl_bitmap_action *const move[] = {&merge, &clear};
    struct counts start = {{0}}, before;

    (void)state;
    for (int i = 0; i < rounds(1500); i++) {
        let_them_write((uint32_t)i % 5);
        look(told, &before);
        ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, move, 2), 0);
        assert_in(sum, NULL, &start, &before, "moved");
        if (i % 50 == 0) {
            look(begun, &start);
            ASSERT_CODE(blkrepl_bitmap_clear(sum), 0);
            look(told, &before);
        }
    }
    join_writers();
    look(told, &before);
    assert_in(sum, bitmap, &start, &before, "at the end");
    blkrepl_bitmap_free(sum);
}

/* As backup tools rotate them: a new one begins where the old one is disabled. */
static void one_that_takes_over_misses_nothing(void **state)
{
    struct counts start, before, next_start;
    char name[] = "a";

    (void)state;
    look(begun, &start);
    for (int i = 0; i < rounds(600); i++) {
        blkrepl_bitmap_options o = {
            .struct_size = sizeof o, .granularity_bytes = GRANULE, .name = name};
        blkrepl_bitmap *next = NULL;
        blkrepl_bitmap_action add = {.struct_size = sizeof add,
                                     .type = BLKREPL_BITMAP_ADD,
                                     .image = image,
                                     .options = &o,
                                     .out = &next};
        blkrepl_bitmap_action end = {.struct_size = sizeof end,
                                     .type = i % 2 ? BLKREPL_BITMAP_DISABLE : BLKREPL_BITMAP_REMOVE,
                                     .bitmap = bitmap};
        const blkrepl_bitmap_action *const swap[] = {&add, &end};

        let_them_write(5);
        look(told, &before);
        name[0] = (char)('a' + i % 20);
        ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, swap, 2), 0);
        look(begun, &next_start);
        assert_in(bitmap, NULL, &start, &before, "the old one");
        let_them_write(5);
        look(told, &before);
        assert_in(next, NULL, &next_start, &before, "the new one");
        if (i % 2) {
            ASSERT_CODE(blkrepl_bitmap_remove(bitmap), 0);
        }
        blkrepl_bitmap_free(bitmap);
        bitmap = next;
        start = next_start;
    }
    join_writers();
}

/* Before it the image had none at all, and no reason to record anything.  Guests
 * are at it, and nothing that this thread reads orders what they do: so a sanitizer
 * sees what the library itself orders. */
static void the_first_one_may_be_added_while_guests_write(void **state)
{
    struct counts after, before;

    (void)state;
    for (int i = 0; i < (quick() ? 5 : 15); i++) {
        struct timespec a_while = {0, 1000000 * (i % 10)};

        set_up_image(state);
        start_writers();
        nanosleep(&a_while, NULL);
        bitmap = bitmap_put(image, "it", GRANULE, 0);
        look(begun, &after);
        let_them_write(20);
        look(told, &before);
        assert_in(bitmap, NULL, &after, &before, "since it was added");
        join_writers();
        tear_down(state);
    }
}

/* Granules 2, 5, 8 ... of this one: dirty all the time if even, clean if odd. */
static void lists_keep_their_promise_while_guests_write(void **state)
{
    (void)state;
    for (uint64_t i = 2; i < GRANULES; i += 6) {
        ASSERT_CODE(blkrepl_bitmap_set(bitmap, i * GRANULE, 1), 0);
    }
    for (int i = 0; i < rounds(3000); i++) {
        uint64_t position = 0, list[5], next = 0;
        unsigned fixed = 0;
        int n;

        while ((n = blkrepl_bitmap_iterate(bitmap, &position, list, 1 + (uint32_t)i % 5)) > 0) {
            for (int k = 0; k < n; k++) {
                uint64_t granule = list[k] / GRANULE;

                assert_true(granule >= next); /* so none twice */
                next = granule + 1;
                assert_false(granule % 6 == 5);
                fixed += granule % 6 == 2;
            }
        }
        ASSERT_CODE(n, 0);
        assert_int_equal(fixed, GRANULES / 6);
        for (uint64_t k = 0; i % 8 == 0 && k < GRANULES; k += 3) { /* a third changes back */
            ASSERT_CODE(blkrepl_bitmap_reset(bitmap, k * GRANULE, 2 * GRANULE), 0);
        }
    }
    join_writers();
}

/* ---- Several of the host at once -------------------------------------------------------- */

static void *lister_main(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        blkrepl_bitmap *b = NULL;
        blkrepl_bitmap_info info = {.struct_size = sizeof info};

        for (uint64_t id = 0; blkrepl_bitmap_next(image, id, &b) == 0;) {
            bool good = blkrepl_bitmap_query(b, &info) == 0 && info.id > id &&
                        info.dirty_bytes <= SIZE && blkrepl_bitmap_validate(b) == 0;

            atomic_fetch_add(&errors, !good);
            id = info.id;
            blkrepl_bitmap_free(b);
        }
    }
    return NULL;
}

/* A verb may be refused because another thread was first, and for nothing else. */
static void *meddler_main(void *argument)
{
    struct rng rng = {.state = 1000 + *(const uint32_t *)argument};
    char name[] = {'m', (char)('0' + *(const uint32_t *)argument), '\0'};

    while (!atomic_load(&stop)) {
        blkrepl_bitmap_options o = {
            .struct_size = sizeof o, .granularity_bytes = 512, .name = name};
        blkrepl_bitmap *shared = NULL, *own = NULL;
        int rc[5] = {0};

        rc[0] = blkrepl_bitmap_find(image, "shared", &shared);
        rc[1] = blkrepl_bitmap_add(image, &o, &own);
        switch (rng_below(&rng, 6)) {
        case 0: rc[2] = blkrepl_bitmap_clear(shared); break;
        case 1: rc[2] = blkrepl_bitmap_freeze(shared); break;
        case 2: rc[2] = blkrepl_bitmap_abdicate(shared); break;
        case 3: rc[2] = blkrepl_bitmap_reclaim(shared); break;
        case 4: rc[2] = blkrepl_bitmap_disable(shared); break;
        default: rc[2] = blkrepl_bitmap_enable(shared); break;
        }
        rc[2] = rc[2] == -EBUSY || rc[2] == BLKREPL_ERR_STATE ? 0 : rc[2];
        rc[3] = bitmap_merge_one(own, shared);
        rc[3] = rc[3] == -EBUSY ? 0 : rc[3];
        rc[4] = blkrepl_bitmap_remove(own);
        for (size_t i = 0; i < ARRAY_COUNT(rc); i++) {
            atomic_fetch_add(&errors, rc[i] != 0);
        }
        blkrepl_bitmap_free(own);
        blkrepl_bitmap_free(shared);
    }
    return NULL;
}

static void many_threads_change_list_and_record_at_once(void **state)
{
    pthread_t lister, meddlers[2];
    uint32_t numbers[2] = {0, 1};
    struct counts start = {{0}}, end;
    blkrepl_bitmap *shared = bitmap_put(image, "shared", GRANULE, 0);

    (void)state;
    join_writers(); /* so that `it` has had all from the start: begin anew */
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
    look(begun, &start);
    start_writers();
    assert_int_equal(pthread_create(&lister, NULL, lister_main, NULL), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&meddlers[i], NULL, meddler_main, &numbers[i]), 0);
    }
    let_them_write(quick() ? 2000 : 20000);
    atomic_store(&stop, true);
    pthread_join(lister, NULL);
    pthread_join(meddlers[0], NULL);
    pthread_join(meddlers[1], NULL);
    join_writers();
    look(told, &end);
    assert_in(bitmap, NULL, &start, &end, "the one that nobody touched");
    ASSERT_CODE(blkrepl_bitmap_validate(shared), 0);
    blkrepl_bitmap_free(shared);
}

/* ---- Lanes without threads ----------------------------------------------------------------- */

static int dirty_in_callback;

static void is_it_dirty(struct req *req)
{
    dirty_in_callback += blkrepl_bitmap_get(req->then_user, 0) == 1;
}

static void a_callback_in_any_lane_sees_the_mark_of_its_write(void **state)
{
    struct req reqs[LANES];

    (void)state;
    join_writers();
    disk.hold = BIT(BLKREPL_OP_WRITE);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        memset(&reqs[lane], 0, sizeof reqs[lane]);
        reqs[lane].then = is_it_dirty;
        reqs[lane].then_user = bitmap;
        ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
        dirty_in_callback = 0;
        ASSERT_CODE(lane_write(&reqs[lane], image, lane, 0, "x", 1), 0);
        tape_finish_all(&disk, 0, 0);
        lane_drain(&env, lane);
        req_assert_done(&reqs[lane], 0);
        assert_int_equal(dirty_in_callback, 1);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(what_was_told_since_the_last_clear_is_dirty),
        T(what_was_told_is_in_the_content_or_in_the_successor),
        T(what_is_merged_away_and_cleared_at_one_instant_is_in_one_of_both),
        T(one_that_takes_over_misses_nothing),
        cmocka_unit_test(the_first_one_may_be_added_while_guests_write),
        T(lists_keep_their_promise_while_guests_write),
        T(many_threads_change_list_and_record_at_once),
        T(a_callback_in_any_lane_sees_the_mark_of_its_write),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
