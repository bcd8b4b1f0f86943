/* SPDX-License-Identifier: MIT */
/* Overlapping writes are carried out one after the other in the order in which
 * they were accepted; others do not wait. */
#include "tape.h"

#define SIZE (128 * KIB)

static struct env env;
static struct tape disk;
static blkrepl_image *image;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_fill(&disk, 1);
    disk.hold = OPS_ALL;
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

static void overlapping_writes_wait_for_each_other(void **state)
{
    static uint8_t a[8192], b[8192], c[8192];
    struct req ra = {0}, rb = {0}, rc = {0};

    (void)state;
    image = tape_open(&disk, &env);
    memset(a, 1, sizeof a);
    memset(b, 2, sizeof b);
    memset(c, 3, sizeof c);
    ASSERT_CODE(req_write(&ra, image, 0, a, sizeof a), 0);
    ASSERT_CODE(req_write(&rb, image, 4096, b, sizeof b), 0);
    ASSERT_CODE(req_write(&rc, image, 65536, c, sizeof c), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, 0), 2);
    assert_true(tape_find(&disk, BLKREPL_OP_WRITE, 0, 1) >= 0);
    assert_true(tape_find(&disk, BLKREPL_OP_WRITE, 65536, 1) >= 0);
    tape_finish(&disk, tape_find(&disk, BLKREPL_OP_WRITE, 65536, 1), 0);
    env_drain(&env);
    req_assert_done(&rc, 0);
    assert_int_equal(tape_pending(&disk, 0), 1);
    tape_finish(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&ra, 0);
    assert_int_equal(tape_pending(&disk, 0), 1);
    tape_finish(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&rb, 0);
    assert_true(rc.order < ra.order && ra.order < rb.order);
    assert_memory_equal(disk.data + 4096, b, sizeof b);
    assert_memory_equal(disk.data, a, 4096);
}

static void a_failed_write_lets_the_next_one_pass(void **state)
{
    static uint8_t a[512], b[512];
    struct req ra = {0}, rb = {0};

    (void)state;
    image = tape_open(&disk, &env);
    memset(b, 2, sizeof b);
    ASSERT_CODE(req_write(&ra, image, 0, a, sizeof a), 0);
    ASSERT_CODE(req_write(&rb, image, 0, b, sizeof b), 0);
    env_drain(&env);
    tape_finish(&disk, 0, -EIO);
    env_drain(&env);
    req_assert_done(&ra, -EIO);
    tape_finish(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&rb, 0);
    assert_memory_equal(disk.data, b, sizeof b);
}

/* A waits for nobody, B for A, C for B though not for A: the order of a chain. */
static void a_chain_keeps_its_order(void **state)
{
    static uint8_t data[3][8192];
    struct req req[3] = {0};

    (void)state;
    image = tape_open(&disk, &env);
    for (size_t i = 0; i < 3; i++) {
        memset(data[i], (int)i + 1, sizeof data[i]);
        ASSERT_CODE(req_write(&req[i], image, i * 6144, data[i], sizeof data[i]), 0);
    }
    env_drain(&env);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(tape_pending(&disk, 0), 1);
        tape_finish(&disk, 0, 0);
        env_drain(&env);
        req_assert_done(&req[i], 0);
    }
    assert_int_equal(disk.data[6144 + 10], 2);
    assert_int_equal(disk.data[12288 + 10], 3);
}

static void zeroes_and_writes_keep_their_order(void **state)
{
    static uint8_t data[4096];
    struct req write = {0}, zeroes = {0}, again = {0};

    (void)state;
    disk.info.zeroes_bytes_max = 16384;
    image = tape_open(&disk, &env);
    memset(data, 7, sizeof data);
    ASSERT_CODE(req_write(&write, image, 20000, data, sizeof data), 0);
    ASSERT_CODE(req_zeroes(&zeroes, image, 0, 100000), 0);
    ASSERT_CODE(req_write(&again, image, 80000, data, sizeof data), 0);
    for (int i = 0; i < 100 && (REQ_PENDING(&zeroes) || REQ_PENDING(&again)); i++) {
        env_drain(&env);
        if (tape_pending(&disk, 0)) {
            tape_finish(&disk, (int)tape_pending(&disk, 0) - 1, 0);
        }
    }
    req_assert_done(&write, 0);
    req_assert_done(&zeroes, 0);
    req_assert_done(&again, 0);
    assert_true(all_zero(disk.data, 80000));
    assert_memory_equal(disk.data + 80000, data, sizeof data);
    assert_true(all_zero(disk.data + 84096, 100000 - 84096));
}

static void reads_do_not_wait_for_writes_in_flight(void **state)
{
    static uint8_t data[512], back[512];
    struct req write = {0}, read = {0};

    (void)state;
    image = tape_open(&disk, &env);
    ASSERT_CODE(req_write(&write, image, 0, data, sizeof data), 0);
    ASSERT_CODE(req_read(&read, image, 0, back, sizeof back), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_READ), 1);
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&write, 0);
    req_assert_done(&read, 0);
}

/* Two guests in one block of the backend: neither may lose the other's bytes. */
static void neighbours_in_one_block_do_not_lose_updates(void **state)
{
    struct rng rng = {.state = 12};

    (void)state;
    disk.info.request_alignment = 4096;
    image = tape_open(&disk, &env);
    uint8_t *want = tape_copy(&disk);
    for (int round = 0; round < 200; round++) {
        static uint8_t data[6][3000];
        struct req req[6] = {0};
        int pending = 6;

        for (unsigned i = 0; i < 6; i++) {
            size_t len = 1 + (size_t)rng_below(&rng, 2999);
            uint64_t at = rng_below(&rng, 3 * 4096 - len);

            fill(data[i], len, at, (unsigned)round * 6 + i);
            memcpy(want + at, data[i], len);
            ASSERT_CODE(req_write(&req[i], image, at, data[i], len), 0);
        }
        while (pending > 0) {
            env_drain(&env);
            size_t n = tape_pending(&disk, 0);
            if (n) {
                tape_finish(&disk, (int)rng_below(&rng, n), 0);
            }
            env_drain(&env);
            pending = 0;
            for (int i = 0; i < 6; i++) {
                pending += REQ_PENDING(&req[i]);
            }
        }
    }
    assert_same(disk.data, want, SIZE, "disk, seed 12");
    free(want);
}

static void an_unaligned_read_waits_for_no_write(void **state)
{
    static uint8_t data[100], back[100];
    struct req write = {0}, read = {0};

    (void)state;
    disk.info.request_alignment = 4096;
    image = tape_open(&disk, &env);
    ASSERT_CODE(req_write(&write, image, 10, data, sizeof data), 0);
    env_drain(&env);
    ASSERT_CODE(req_read(&read, image, 5000, back, sizeof back), 0);
    env_drain(&env);
    int at = tape_find(&disk, BLKREPL_OP_READ, 5000, 1);
    assert_true(at >= 0);
    tape_finish(&disk, at, 0);
    env_drain(&env);
    req_assert_done(&read, 0);
    assert_memory_equal(back, disk.data + 5000, sizeof back);
    tape_release(&disk, &env);
    req_assert_done(&write, 0);
}

/* More requests than the backend takes at once: the tape checks queue_depth. */
static void a_shallow_backend_gets_everything_in_the_end(void **state)
{
    static uint8_t data[64][512];
    struct req req[64] = {0};

    (void)state;
    disk.info.queue_depth = 2;
    image = tape_open(&disk, &env);
    for (unsigned i = 0; i < 64; i++) {
        memset(data[i], (int)i, sizeof data[i]);
        ASSERT_CODE(req_write(&req[i], image, i * 512, data[i], sizeof data[i]), 0);
    }
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, 0), 2);
    for (int i = 0; i < 64; i++) {
        env_drain(&env);
        tape_finish(&disk, (int)tape_pending(&disk, 0) - 1, 0);
    }
    env_drain(&env);
    for (unsigned i = 0; i < 64; i++) {
        req_assert_done(&req[i], 0);
        assert_int_equal(disk.data[i * 512], i);
    }
}

static void requests_in_flight_are_counted(void **state)
{
    static uint8_t data[512];
    struct req req[3] = {0};
    struct bracket bracket = {0};

    (void)state;
    image = tape_open(&disk, &env);
    assert_int_equal(image_info(image).requests_in_flight, 0);
    for (unsigned i = 0; i < 3; i++) {
        ASSERT_CODE(req_write(&req[i], image, 0, data, sizeof data), 0);
    }
    ASSERT_CODE(bracket_begin(&bracket, image, BLKREPL_OP_WRITE, 4096, 512), 0);
    assert_int_equal(image_info(image).requests_in_flight, 4);
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), 0);
    assert_int_equal(image_info(image).requests_in_flight, 3);
    tape_release(&disk, &env);
    assert_int_equal(image_info(image).requests_in_flight, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(overlapping_writes_wait_for_each_other),
        T(a_failed_write_lets_the_next_one_pass),
        T(a_chain_keeps_its_order),
        T(zeroes_and_writes_keep_their_order),
        T(reads_do_not_wait_for_writes_in_flight),
        T(neighbours_in_one_block_do_not_lose_updates),
        T(an_unaligned_read_waits_for_no_write),
        T(a_shallow_backend_gets_everything_in_the_end),
        T(requests_in_flight_are_counted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
