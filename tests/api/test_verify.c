/* SPDX-License-Identifier: MIT */
/* Verify: what it finds, byte by byte against a comparison done the simple way; with
 * guests that write meanwhile; what it reads, and how it fails. */
#include "stage.h"

#define CHUNK (64 * KIB)
#define CHUNKS 16
#define SIZE (CHUNKS * CHUNK - 5000)

static struct env env;
static struct part one, two;
static struct part *const both[] = {&one, &two};
static blkrepl_bitmap *only, *differing;
static blkrepl_job *job;
static blkrepl_verify_options o;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&one, &env, SIZE, 1);
    part_open(&two, &env, SIZE + 4096, 1);
    only = NULL;
    differing = NULL;
    job = NULL;
    o = (blkrepl_verify_options){
        .struct_size = sizeof o, .chunk_bytes_max = CHUNK, .workers_max = 1};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    part_mend(&one);
    part_mend(&two);
    parts_run(&env, both, 2);
    blkrepl_job_free(job);
    blkrepl_bitmap_free(only);
    blkrepl_bitmap_free(differing);
    parts_close(&env, both, 2);
    return 0;
}

static void want_differing(uint64_t granularity)
{
    differing = bitmap_make(&env, SIZE, granularity);
    o.differing = differing;
}

static void start(void)
{
    ASSERT_CODE(blkrepl_verify_start(one.image, two.image, &o, &job), 0);
    env_drain(&env);
}

static void done(uint64_t differing_bytes)
{
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.kind, BLKREPL_KIND_VERIFY);
    assert_int_equal(info.differing_bytes, differing_bytes);
    assert_int_equal(info.bytes_done, info.bytes_total);
    assert_int_equal(tape_submitted(&one.tape, BLKREPL_OP_WRITE), 0);
    assert_int_equal(tape_submitted(&two.tape, BLKREPL_OP_WRITE), 0);
}

static void spoil(uint64_t at)
{
    two.tape.data[at] ^= 0x40;
}

/* In granules, the simple way. */
static uint64_t map_differing(struct map *map, uint64_t granularity)
{
    uint64_t bytes = 0;

    map_init(map, SIZE, granularity);
    for (size_t i = 0; i < map->count; i++) {
        uint64_t from = i * granularity;

        map->dirty[i] = memcmp(one.tape.data + from, two.tape.data + from,
                               (size_t)(map_end(map, i) - from)) != 0;
        bytes += map->dirty[i] ? map_end(map, i) - from : 0;
    }
    return bytes;
}

/* ---- What it finds -------------------------------------------------------------------- */

static void images_that_are_the_same_do_not_differ(void **state)
{
    (void)state;
    spoil(SIZE); /* behind the first image's end */
    want_differing(4096);
    start();
    done(0);
    assert_int_equal(bitmap_info(differing).dirty_bytes, 0);
    char name[64];
    snprintf(name, sizeof name, "verify-%llu", (unsigned long long)job_info(job).id);
    assert_string_equal(job_info(job).name, name);
    assert_int_equal(job_info(job).bytes_total, SIZE);
}

static void differences_are_found_in_granules(void **state)
{
    static const uint64_t granularities[] = {512, 4096, CHUNK, 4 * CHUNK};

    (void)state;
    spoil(0);
    spoil(3 * CHUNK + 4095);
    spoil(3 * CHUNK + 4096);
    spoil(8 * CHUNK - 1);
    spoil(SIZE - 1);
    for (size_t i = 0; i < ARRAY_COUNT(granularities); i++) {
        struct map map;
        uint64_t bytes = map_differing(&map, granularities[i]);

        for (uint64_t chunk = CHUNK; chunk <= 16 * CHUNK; chunk *= 4) {
            o.chunk_bytes_max = chunk;
            o.workers_max = (uint32_t)(1 + chunk / CHUNK % 3);
            want_differing(granularities[i]);
            ASSERT_CODE(blkrepl_bitmap_invert(differing), 0); /* the start makes it clean */
            start();
            done(bytes);
            ASSERT_MAP(differing, &map);
            job_drop(&env, &job);
            blkrepl_bitmap_free(differing);
            differing = NULL;
            o.differing = NULL;
        }
    }
    start(); /* "without one of 64 KiB" */
    struct map map;
    done(map_differing(&map, CHUNK));
}

static void with_first_it_ends_at_the_first_difference(void **state)
{
    (void)state;
    o.flags = BLKREPL_VERIFY_FIRST;
    spoil(3 * CHUNK);
    spoil(9 * CHUNK);
    want_differing(CHUNK);
    start();
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, CHUNK);
    ASSERT_BITS(differing, "...#............");
    assert_false(tape_saw(&one.tape, BLKREPL_OP_READ, 8 * CHUNK, 8 * CHUNK));
    job_drop(&env, &job);
    memcpy(two.tape.data, one.tape.data, SIZE);
    start();
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, 0);
    ASSERT_BITS(differing, "................");
    assert_true(tape_saw(&one.tape, BLKREPL_OP_READ, SIZE - 1, 1));
}

static void only_what_is_dirty_is_compared(void **state)
{
    static const uint64_t granularities[] = {4096, CHUNK, 2 * CHUNK};
    static const char *const chunks[] = {".##.....#......#", ".##.....#......#",
                                         "####....##....##"};

    (void)state;
    for (uint64_t at = 0; at < SIZE; at += CHUNK) {
        spoil(at);
    }
    for (size_t i = 0; i < ARRAY_COUNT(granularities); i++) {
        only = bitmap_make(&env, SIZE, granularities[i]);
        ASSERT_CODE(blkrepl_bitmap_set(only, 2 * CHUNK - 1, 2), 0);
        ASSERT_CODE(blkrepl_bitmap_set(only, 8 * CHUNK + 70, 1), 0);
        ASSERT_CODE(blkrepl_bitmap_set(only, SIZE - 1, 1), 0);
        o.only = only;
        want_differing(CHUNK);
        one.tape.log_count = 0;
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        ASSERT_BITS(differing, chunks[i]);
        for (uint64_t k = 0; k < CHUNKS; k++) {
            assert_int_equal(tape_saw(&one.tape, BLKREPL_OP_READ, k * CHUNK, CHUNK),
                             chunks[i][k] == '#');
        }
        assert_int_equal(bitmap_info(differing).dirty_bytes, job_info(job).differing_bytes);
        job_drop(&env, &job);
        blkrepl_bitmap_free(only);
        blkrepl_bitmap_free(differing);
        only = NULL;
        differing = NULL;
    }
}

/* What is dirty at the start, not at the create, and later marks do not count. */
static void only_is_looked_at_when_the_job_starts(void **state)
{
    (void)state;
    spoil(2 * CHUNK);
    spoil(5 * CHUNK);
    spoil(7 * CHUNK);
    only = bitmap_make(&env, SIZE, CHUNK);
    bitmap_draw(only, "..#.............");
    o.only = only;
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &o, &job), 0);
    bitmap_draw(only, ".....#..........");
    one.tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_bitmap_set(only, 7 * CHUNK, 1), 0);
    parts_run(&env, both, 2);
    done(2 * CHUNK);
}

static void the_bitmap_of_differences_is_busy_until_the_end(void **state)
{
    (void)state;
    spoil(CHUNK);
    want_differing(CHUNK);
    two.tape.hold = BIT(BLKREPL_OP_READ);
    start();
    assert_true(bitmap_flags(differing) & BLKREPL_BITMAP_BUSY);
    ASSERT_CODE(blkrepl_bitmap_clear(differing), -EBUSY);
    parts_run(&env, both, 2);
    ASSERT_CODE(blkrepl_bitmap_clear(differing), 0);
    job_drop(&env, &job);
    ASSERT_CODE(blkrepl_bitmap_freeze(differing), 0);
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_start(job), -EBUSY);
    ASSERT_STATE(job, BLKREPL_JOB_CREATED);
    ASSERT_CODE(blkrepl_bitmap_reclaim(differing), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    done(CHUNK);
    ASSERT_BITS(differing, ".#..............");
}

/* "keeps what was found however that ends" */
static void what_was_found_is_kept_after_a_cancel(void **state)
{
    (void)state;
    spoil(0);
    spoil(2 * CHUNK);
    spoil(15 * CHUNK);
    want_differing(CHUNK);
    two.tape.hold = BIT(BLKREPL_OP_READ);
    start();
    for (int i = 0; i < 4; i++) {
        assert_true(tape_pending(&two.tape, BLKREPL_OP_READ) > 0);
        ASSERT_CODE(tape_finish(&two.tape, 0, 0), 0);
        env_drain(&env);
    }
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    tape_finish_all(&two.tape, 0, -ECANCELED);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_BITS(differing, "#.#.............");
    assert_int_equal(bitmap_flags(differing) & BLKREPL_BITMAP_BUSY, 0);
}

/* ---- Guests ------------------------------------------------------------------------------- */

/* "others wait until both have been read", and those elsewhere do not. */
static void a_guest_write_waits_until_both_have_been_read(void **state)
{
    struct req here = {0}, there = {0}, elsewhere = {0};

    (void)state;
    want_differing(CHUNK);
    one.tape.hold = BIT(BLKREPL_OP_READ);
    two.tape.hold = BIT(BLKREPL_OP_READ);
    start();
    guest_write(&here, &one, 512, 512, 50);
    guest_write(&there, &two, 4096, 512, 50);
    guest_write(&elsewhere, &one, 9 * CHUNK, 512, 50);
    env_drain(&env);
    req_assert_done(&elsewhere, 0);
    assert_true(REQ_PENDING(&here) && REQ_PENDING(&there));
    part_finish(&env, &one, BLKREPL_OP_READ);
    assert_true(REQ_PENDING(&here) && REQ_PENDING(&there));
    two.tape.hold = 0;
    one.tape.hold = 0;
    parts_run(&env, both, 2);
    req_assert_done(&here, 0);
    req_assert_done(&there, 0);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(differing, ".........#......"); /* written alone, before its turn */
}

/* "guest writes in flight over it are waited for" */
static void a_write_in_flight_is_waited_for(void **state)
{
    struct bracket b = {0};
    static uint8_t data[512];

    (void)state;
    fill(data, sizeof data, 512, 60);
    ASSERT_CODE(bracket_begin(&b, one.image, BLKREPL_OP_WRITE, 512, 512), 0);
    want_differing(CHUNK);
    o.workers_max = 4;
    start();
    env_advance(&env, 100 * SECOND);
    ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
    assert_false(tape_saw(&one.tape, BLKREPL_OP_READ, 0, CHUNK));
    tape_poke(&one.tape, 512, data, sizeof data); /* to both, while it is in flight */
    tape_poke(&two.tape, 512, data, sizeof data);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    env_drain(&env);
    done(0);
}

/* A host that keeps both the same, each of its writes inside one bracket of the first
 * image: by seed, none is ever told to differ. */
static void mirrored_writes_never_differ(void **state)
{
    struct bracket brackets[4];
    bool open[4], poked[4];
    static uint8_t data[30000];

    (void)state;
    memcpy(two.tape.data, one.tape.data, SIZE);
    for (uint64_t seed = 1; seed <= (quick() ? 5 : 40); seed++) {
        struct rng rng = {.state = seed};

        memset(brackets, 0, sizeof brackets);
        memset(open, 0, sizeof open);
        memset(poked, 0, sizeof poked);
        o.workers_max = 1 + (uint32_t)rng_below(&rng, 4);
        one.tape.hold = BIT(BLKREPL_OP_READ);
        two.tape.hold = BIT(BLKREPL_OP_READ);
        ASSERT_CODE(blkrepl_verify_start(one.image, two.image, &o, &job), 0);
        for (int n = 0; n < 400; n++) {
            size_t i = (size_t)rng_below(&rng, 4);
            struct tape *t = rng_percent(&rng, 50) ? &one.tape : &two.tape;
            size_t pending = tape_pending(t, 0);

            if (pending && rng_percent(&rng, 40)) {
                ASSERT_CODE(tape_finish(t, (int)rng_below(&rng, pending), 0), 0);
            }
            blkrepl_poll(env.ctx, 0, 0);
            if (!open[i]) {
                uint64_t len = 1 + rng_below(&rng, sizeof data - 1);
                uint64_t at = rng_below(&rng, SIZE - len);

                assert_true(bracket_begin(&brackets[i], one.image, BLKREPL_OP_WRITE, at, len) >= 0);
                open[i] = true;
                poked[i] = false;
            } else if (bracket_may_go(&brackets[i]) && !poked[i]) {
                fill(data, sizeof data, (uint64_t)n, (unsigned)seed);
                tape_poke(&one.tape, brackets[i].offset, data, (size_t)brackets[i].bytes);
                poked[i] = true;
                tape_poke(&two.tape, brackets[i].offset, data, (size_t)brackets[i].bytes);
            } else if (poked[i]) {
                ASSERT_CODE(blkrepl_write_end(env.ctx, brackets[i].token, 0, NULL, 0, NULL), 0);
                open[i] = false;
            }
        }
        for (size_t i = 0; i < 4; i++) {
            if (open[i]) {
                blkrepl_write_cancel(env.ctx, brackets[i].token);
            }
        }
        parts_run(&env, both, 2);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        assert_int_equal(job_info(job).differing_bytes, 0);
        job_drop(&env, &job);
    }
}

/* ---- Pause, speed ------------------------------------------------------------- */

static void it_can_be_paused_and_slowed(void **state)
{
    (void)state;
    o.speed_bytes_per_sec = 2 * CHUNK;
    start();
    for (int i = 0; i < 10; i++) {
        env_advance(&env, SECOND / 10);
    }
    uint64_t so_far = job_info(job).bytes_done;
    assert_true(so_far >= CHUNK && so_far <= 4 * CHUNK);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    env_drain(&env);
    size_t reads = tape_submitted(&one.tape, BLKREPL_OP_READ);
    env_advance(&env, 100 * SECOND);
    assert_int_equal(tape_submitted(&one.tape, BLKREPL_OP_READ), reads);
    guest_writes(&env, &one, 15 * CHUNK, 512, 50); /* nothing is held */
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, SIZE - 15 * CHUNK);
}

/* ---- Errors ------------------------------------------------------------------- */

static void unreadable(struct part *part, int error)
{
    part_fail(part, BLKREPL_OP_READ, 5 * CHUNK, 512, error);
}

static void what_cannot_be_read_fails_the_job(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct part *part = both[i];

        unreadable(part, -EIO);
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
        blkrepl_job_info info = job_info(job);
        assert_int_equal(info.error_side, i == 0 ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET);
        assert_true(info.error_offset < 6 * CHUNK &&
                    info.error_offset + info.error_bytes > 5 * CHUNK);
        assert_true(info.error_count >= 1);
        assert_non_null(env_event(&env, BLKREPL_EVENT_JOB_ERROR, info.id, 0));
        part_mend(part);
        job_drop(&env, &job);
    }
}

static void with_ignore_it_counts_as_differing_and_the_job_fails_at_the_end(void **state)
{
    (void)state;
    o.on_error = BLKREPL_ON_ERROR_IGNORE;
    spoil(9 * CHUNK);
    for (int i = 0; i < 2; i++) {
        want_differing(CHUNK);
        unreadable(both[i], -EILSEQ);
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EILSEQ);
        ASSERT_BITS(differing, ".....#...#......");
        assert_int_equal(job_info(job).differing_bytes, 2 * CHUNK);
        assert_int_equal(job_info(job).failed_bytes, CHUNK);
        part_mend(both[i]);
        job_drop(&env, &job);
        blkrepl_bitmap_free(differing);
        differing = NULL;
    }
}

static void with_stop_it_pauses_and_tries_again(void **state)
{
    (void)state;
    o.on_error = BLKREPL_ON_ERROR_STOP;
    spoil(9 * CHUNK);
    for (int i = 0; i < 2; i++) {
        unreadable(both[i], -EIO);
        start();
        assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
        guest_writes(&env, &two, 5 * CHUNK, 0, 50);
        ASSERT_CODE(blkrepl_job_resume(job), 0);
        env_drain(&env);
        assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
        part_mend(both[i]);
        ASSERT_CODE(blkrepl_job_resume(job), 0);
        env_drain(&env);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        assert_int_equal(job_info(job).differing_bytes, CHUNK);
        job_drop(&env, &job);
    }
}

/* While an error pauses the job, guests may write where it failed. */
static void guests_go_on_while_an_error_pauses_it(void **state)
{
    (void)state;
    o.on_error = BLKREPL_ON_ERROR_STOP;
    unreadable(&two, -EIO);
    start();
    assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
    guest_writes(&env, &one, 5 * CHUNK, 512, 50);
    guest_writes(&env, &two, 5 * CHUNK, 512, 50);
    part_mend(&two);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(images_that_are_the_same_do_not_differ),
        T(differences_are_found_in_granules),
        T(with_first_it_ends_at_the_first_difference),
        T(only_what_is_dirty_is_compared),
        T(only_is_looked_at_when_the_job_starts),
        T(the_bitmap_of_differences_is_busy_until_the_end),
        T(what_was_found_is_kept_after_a_cancel),
        T(a_guest_write_waits_until_both_have_been_read),
        T(a_write_in_flight_is_waited_for),
        T(mirrored_writes_never_differ),
        T(it_can_be_paused_and_slowed),
        T(what_cannot_be_read_fails_the_job),
        T(with_ignore_it_counts_as_differing_and_the_job_fails_at_the_end),
        T(with_stop_it_pauses_and_tries_again),
        T(guests_go_on_while_an_error_pauses_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
