/* SPDX-License-Identifier: MIT */
/* Throttles, by a clock that moves when it is told: averages, bursts, one row for
 * all, limits that change, and what is not held up. */
#include "stage.h"

#define SIZE (32 * CLUSTER)
#define RATE (100 * KIB) /* per second                                        */
#define MS (SECOND / 1000)

static struct env env;
static struct part disk, other, copy;
static struct part *const all[] = {&disk, &other, &copy};
static blkrepl_throttle *throttle;
static uint8_t memory[SIZE];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&other, &env, SIZE, 2);
    part_open(&copy, &env, SIZE, 0);
    throttle = NULL;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, all, 3);
    blkrepl_throttle_free(throttle);
    parts_close(&env, all, 3);
    return 0;
}

static blkrepl_throttle_options limits(uint64_t bytes, uint64_t burst)
{
    return (blkrepl_throttle_options){.struct_size = sizeof(blkrepl_throttle_options),
                                      .bytes_per_sec = bytes,
                                      .burst_bytes = burst};
}

static void make(uint64_t bytes, uint64_t ops, uint64_t burst_bytes, uint64_t burst_ops)
{
    blkrepl_throttle_options o = limits(bytes, burst_bytes);

    o.ops_per_sec = ops;
    o.burst_ops = burst_ops;
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &throttle), 0);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, throttle), 0);
}

static blkrepl_throttle_info throttle_info(void)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};

    ASSERT_CODE(blkrepl_throttle_query(throttle, &info), 0);
    return info;
}

static void write_at(struct req *req, struct part *part, uint64_t offset, uint64_t bytes)
{
    ASSERT_CODE(req_write(req, part->image, offset, memory + offset, (size_t)bytes), 0);
}

/* Uses up what there is at once, so that what follows has to wait. */
static void use_up(void)
{
    struct req req = {0};

    write_at(&req, &disk, 0, RATE);
    env_drain(&env);
    req_assert_done(&req, 0);
}

/* Time goes by in small steps, as it does for a host that polls. */
static void pass_time(uint64_t ns)
{
    for (uint64_t t = 0; t < ns; t += 10 * MS) {
        env_advance(&env, 10 * MS);
    }
}

static size_t ended(const struct req *reqs, size_t count)
{
    size_t n = 0;

    for (size_t i = 0; i < count; i++) {
        n += !REQ_PENDING(&reqs[i]);
    }
    return n;
}

/* ---- The average ---------------------------------------------------------------------- */

/* Many requests of one size wait; at every moment no more than promised has passed, and
 * no less. */
static void the_average_holds(uint64_t bytes, uint64_t rate, uint64_t burst, uint64_t count)
{
    static struct req reqs[200];
    uint64_t from = atomic_load(&env.now);

    memset(reqs, 0, sizeof reqs);
    for (uint64_t i = 0; i < count; i++) {
        write_at(&reqs[i], &disk, i * bytes % (SIZE - bytes), bytes);
    }
    for (env_drain(&env); ended(reqs, count) < count; env_advance(&env, 10 * MS)) {
        uint64_t ms = (atomic_load(&env.now) - from) / MS;
        uint64_t passed = ended(reqs, count) * bytes;

        if (passed > burst + rate * ms / 1000 + bytes || passed + bytes < rate * ms / 1000) {
            fail_msg("after %llu ms %llu bytes have passed", (unsigned long long)ms,
                     (unsigned long long)passed);
        }
        assert_true(ms < 100000);
    }
    for (uint64_t i = 0; i < count; i++) {
        req_assert_done(&reqs[i], 0);
        assert_true(i == 0 || reqs[i].order > reqs[i - 1].order);
    }
}

static void bytes_pass_at_the_average(void **state)
{
    (void)state;
    make(RATE, 0, 0, 0);
    the_average_holds(4 * KIB, RATE, RATE / 10, 100);
    assert_int_equal(throttle_info().bytes, 400 * KIB);
    assert_int_equal(throttle_info().ops, 100);
}

/* "one that is larger than a burst passes too, and the average holds" */
static void large_requests_pass_and_are_paid_afterwards(void **state)
{
    (void)state;
    make(RATE, 0, 4 * KIB, 0);
    the_average_holds(70 * KIB, RATE, 4 * KIB, 20);
}

static void a_request_for_more_than_a_second_passes_and_the_next_one_waits(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    make(RATE, 0, 0, 0);
    write_at(&first, &disk, 0, 5 * RATE);
    write_at(&second, &disk, 10 * CLUSTER, 512);
    env_drain(&env);
    req_assert_done(&first, 0);
    assert_true(REQ_PENDING(&second));
    assert_int_equal(throttle_info().waiting, 1);
    env_advance(&env, 4 * SECOND);
    assert_true(REQ_PENDING(&second));
    env_advance(&env, 2 * SECOND);
    req_assert_done(&second, 0);
    assert_int_equal(throttle_info().waiting, 0);
    assert_int_equal(throttle_info().delayed_ops, 1);
}

/* The clock need not be polled blindly: the deadline says when. */
static void the_deadline_says_when_the_next_one_passes(void **state)
{
    struct req req = {0};

    (void)state;
    make(RATE, 0, 0, 0);
    use_up();
    write_at(&req, &disk, 0, 512);
    uint64_t deadline = env_deadline(&env);
    assert_true(deadline != BLKREPL_FOREVER && deadline > atomic_load(&env.now));
    env_advance(&env, deadline - atomic_load(&env.now));
    req_assert_done(&req, 0);
    assert_true(env_deadline(&env) > atomic_load(&env.now));
}

/* "first come, first served": also who comes when all is paid, before anybody polled. */
static void who_comes_later_passes_later(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    make(RATE, 0, 0, 0);
    use_up();
    write_at(&first, &disk, 0, 512);
    env_drain(&env);
    atomic_fetch_add(&env.now, 10 * SECOND);
    write_at(&second, &disk, CLUSTER, 512);
    env_drain(&env);
    req_assert_done(&first, 0);
    req_assert_done(&second, 0);
    assert_true(first.order < second.order);
}

/* A host that polls late loses nothing of what its row was due. */
static void the_average_holds_when_polls_are_late(void **state)
{
    static struct req reqs[50];

    (void)state;
    memset(reqs, 0, sizeof reqs);
    make(RATE, 0, 0, 0);
    use_up();
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        write_at(&reqs[i], &disk, i * 8 * KIB, 4 * KIB);
    }
    env_drain(&env);
    assert_int_equal(ended(reqs, ARRAY_COUNT(reqs)), 0);
    env_advance(&env, 2 * SECOND); /* one for what is owed, and one for 25 of them */
    size_t n = ended(reqs, ARRAY_COUNT(reqs));
    assert_true(n >= 24 && n <= 29);
    env_advance(&env, 2 * SECOND);
    assert_int_equal(ended(reqs, ARRAY_COUNT(reqs)), ARRAY_COUNT(reqs));
}

static void operations_are_limited_by_themselves(void **state)
{
    struct req reqs[30] = {{0}};
    static const size_t by_second[] = {2, 12, 22, 30};

    (void)state;
    make(0, 10, 0, 2);
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        write_at(&reqs[i], &disk, i * CLUSTER, i % 2 ? CLUSTER : 1);
    }
    env_drain(&env);
    for (size_t s = 0; s < ARRAY_COUNT(by_second); s++) {
        size_t n = ended(reqs, ARRAY_COUNT(reqs));

        assert_true(n + 1 >= by_second[s] && n <= by_second[s] + 1);
        pass_time(SECOND);
    }
}

/* Both limits hold: the tighter one decides. */
static void bytes_and_operations_are_limited_together(void **state)
{
    struct req small[10] = {{0}}, large[10] = {{0}};

    (void)state;
    make(RATE, 5, 1, 1);
    for (size_t i = 0; i < 10; i++) {
        write_at(&small[i], &disk, i * CLUSTER, 1);
    }
    env_drain(&env);
    pass_time(SECOND);
    size_t n = ended(small, 10);
    assert_true(n >= 5 && n <= 7);
    pass_time(2 * SECOND);
    assert_int_equal(ended(small, 10), 10);
    for (size_t i = 0; i < 10; i++) {
        write_at(&large[i], &disk, i * CLUSTER, RATE / 2);
    }
    env_drain(&env);
    pass_time(2 * SECOND);
    n = ended(large, 10);
    assert_true(n >= 4 && n <= 6);
    pass_time(5 * SECOND);
    assert_int_equal(ended(large, 10), 10);
}

/* ---- Bursts ------------------------------------------------------------------------------- */

static size_t pass_at_once(uint64_t bytes)
{
    struct req reqs[32] = {{0}};

    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        write_at(&reqs[i], &disk, i * CLUSTER, bytes);
    }
    env_drain(&env);
    size_t n = ended(reqs, ARRAY_COUNT(reqs));
    while (ended(reqs, ARRAY_COUNT(reqs)) < ARRAY_COUNT(reqs)) {
        pass_time(SECOND);
    }
    return n;
}

static void after_idleness_a_burst_passes(void **state)
{
    (void)state;
    make(RATE, 0, 16 * 4 * KIB, 0);
    for (int i = 0; i < 3; i++) {
        env_advance(&env, 1000 * SECOND); /* no more than one burst is saved up */
        size_t n = pass_at_once(4 * KIB);

        if (n < 16 || n > 17) {
            fail_msg("round %d: %zu passed at once", i, n);
        }
    }
}

static void the_burst_is_a_tenth_of_a_second_unless_told(void **state)
{
    (void)state;
    make(80 * KIB, 0, 0, 0);
    env_advance(&env, 1000 * SECOND);
    size_t n = pass_at_once(KIB);
    assert_true(n >= 8 && n <= 9);
    blkrepl_throttle_info info = throttle_info();
    assert_int_equal(info.bytes_per_sec, 80 * KIB);
}

/* ---- What passes and what does not -------------------------------------------- */

static void every_kind_of_guest_io_waits_and_flush_and_status_pass(void **state)
{
    struct req r[4] = {{0}}, flush = {0}, status = {0};
    struct bracket b = {0}, f = {0};
    blkrepl_extent extent[2];
    uint8_t out[512];

    (void)state;
    make(RATE, 0, 0, 0);
    use_up();
    ASSERT_CODE(req_read(&r[0], disk.image, 0, out, sizeof out), 0);
    write_at(&r[1], &disk, CLUSTER, 512);
    ASSERT_CODE(req_zeroes(&r[2], disk.image, 2 * CLUSTER, 512), 0);
    ASSERT_CODE(req_discard(&r[3], disk.image, 3 * CLUSTER, 512), 0);
    ASSERT_CODE(bracket_begin(&b, disk.image, BLKREPL_OP_WRITE, 4 * CLUSTER, 512), BLKREPL_WAIT);
    ASSERT_CODE(bracket_begin(&f, disk.image, BLKREPL_OP_FLUSH, 0, 0), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, f.token, 0, NULL, 0, NULL), 0);
    ASSERT_CODE(req_flush(&flush, disk.image), 0);
    blkrepl_completion done = req_completion(&status);
    ASSERT_CODE(blkrepl_image_status(disk.image, 0, 0, SIZE, extent, 2, &done), 0);
    env_drain(&env);
    req_assert_done(&flush, 0);
    req_assert_done(&status, 0);
    assert_int_equal(ended(r, 4), 0);
    assert_int_equal(b.go.calls, 0);
    assert_int_equal(throttle_info().waiting, 5);
    pass_time(2 * SECOND);
    assert_int_equal(ended(r, 4), 4);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    blkrepl_throttle_info info = throttle_info();
    assert_int_equal(info.ops, 6);
    assert_int_equal(info.bytes, RATE + 5 * 512);
    assert_int_equal(info.delayed_ops, 5);
    assert_int_equal(info.waiting, 0);
}

static void a_bracket_that_waits_can_be_cancelled(void **state)
{
    struct bracket b = {0};
    struct req req = {0};

    (void)state;
    make(RATE, 0, 0, 0);
    use_up();
    ASSERT_CODE(bracket_begin(&b, disk.image, BLKREPL_OP_WRITE, 0, 512), BLKREPL_WAIT);
    write_at(&req, &disk, CLUSTER, 512);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, b.token), BLKREPL_WAIT);
    env_drain(&env);
    req_assert_done(&b.go, -ECANCELED);
    assert_true(REQ_PENDING(&req));
    env_advance(&env, 2 * SECOND);
    req_assert_done(&req, 0);
}

/* "Who has to wait does so in one row for all images": by turns, whoever comes. */
static void two_images_share_one_row_and_one_limit(void **state)
{
    static struct req reqs[60];

    (void)state;
    make(RATE, 0, 4 * KIB, 0);
    ASSERT_CODE(blkrepl_image_set_throttle(other.image, throttle), 0);
    memset(reqs, 0, sizeof reqs);
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        write_at(&reqs[i], i % 3 ? &disk : &other, i * 8 * KIB, i % 2 ? 4 * KIB : 6 * KIB);
    }
    for (env_drain(&env); ended(reqs, 60) < 60; env_advance(&env, 10 * MS)) {
        assert_true(throttle_info().bytes <= 20 * RATE);
    }
    for (size_t i = 1; i < ARRAY_COUNT(reqs); i++) {
        assert_true(reqs[i].order > reqs[i - 1].order);
    }
    assert_int_equal(throttle_info().bytes, 300 * KIB);
    uint64_t took = atomic_load(&env.now) - SECOND;
    assert_true(took >= 2800 * MS && took <= 3050 * MS);
}

static void images_of_different_throttles_do_not_wait_for_each_other(void **state)
{
    blkrepl_throttle *second = NULL;
    blkrepl_throttle_options o = limits(RATE, 0);
    struct req mine = {0}, theirs = {0};

    (void)state;
    make(RATE, 0, 0, 0);
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &second), 0);
    ASSERT_CODE(blkrepl_image_set_throttle(other.image, second), 0);
    blkrepl_throttle_free(second); /* the image holds it */
    use_up();
    write_at(&mine, &disk, 0, 512);
    write_at(&theirs, &other, 0, 512);
    env_drain(&env);
    assert_true(REQ_PENDING(&mine));
    req_assert_done(&theirs, 0);
    env_advance(&env, 2 * SECOND);
    req_assert_done(&mine, 0);
}

/* "A write that waits holds up nobody but those behind it." */
static void a_job_without_the_throttle_is_not_held_up(void **state)
{
    blkrepl_job *job = NULL;
    struct req req = {0};

    (void)state;
    make(RATE, 0, 0, 0);
    use_up();
    part_note(&disk);
    fill(memory, CLUSTER, 0, 77);
    write_at(&req, &disk, 0, CLUSTER);
    env_drain(&env);
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, NULL, &job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
    assert_true(REQ_PENDING(&req));
    blkrepl_job_free(job);
    env_advance(&env, 2 * SECOND);
    req_assert_done(&req, 0);
    assert_memory_equal(disk.tape.data, memory, CLUSTER);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(bytes_pass_at_the_average),
        T(large_requests_pass_and_are_paid_afterwards),
        T(a_request_for_more_than_a_second_passes_and_the_next_one_waits),
        T(the_deadline_says_when_the_next_one_passes),
        T(who_comes_later_passes_later),
        T(the_average_holds_when_polls_are_late),
        T(operations_are_limited_by_themselves),
        T(bytes_and_operations_are_limited_together),
        T(after_idleness_a_burst_passes),
        T(the_burst_is_a_tenth_of_a_second_unless_told),
        T(every_kind_of_guest_io_waits_and_flush_and_status_pass),
        T(a_bracket_that_waits_can_be_cancelled),
        T(two_images_share_one_row_and_one_limit),
        T(images_of_different_throttles_do_not_wait_for_each_other),
        T(a_job_without_the_throttle_is_not_held_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
