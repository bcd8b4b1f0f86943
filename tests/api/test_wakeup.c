/* SPDX-License-Identifier: MIT */
/* Threads that sleep in a poll, and what must wake them: one that is forgotten sleeps until
 * the alarm ends the program. */
#include <poll.h>
#include <unistd.h>

#include "tape.h"

#define BLOCK 4096

static struct env env;
static struct tape disk;
static blkrepl_image *image;

/* Poll without end, until something is called back. */
static void *poll_forever(void *user)
{
    int *ran = user;

    while (*ran == 0) {
        *ran = blkrepl_poll(env.ctx, 0, BLKREPL_FOREVER);
    }
    return NULL;
}

/* A second thread that looks whether it may sleep, while a callback waits already and the
 * call that made it is in a submit. */
static void arm_in_submit(void *user, const blkrepl_io *io)
{
    uint64_t deadline;

    (void)user;
    if (io->opcode == BLKREPL_OP_ZEROES) {
        assert_int_equal(blkrepl_poll_arm(env.ctx, 0, &deadline), 1);
    }
}

static void arming_does_not_rob_a_sleeper(void **state)
{
    struct bracket first = {0};
    struct req write = {0}, zeroes = {0};
    uint8_t block[BLOCK] = {1};
    pthread_t sleeper;
    int ran = 0;

    (void)state;
    tape_init(&disk, 16 * BLOCK);
    disk.info.queue_depth = 1;
    disk.hold = 1u << BLKREPL_OP_ZEROES;
    disk.on_submit = arm_in_submit;
    env_open(&env, NULL, ENV_REAL_CLOCK);
    image = tape_open(&disk, &env);
    assert_int_equal(bracket_begin(&first, image, BLKREPL_OP_WRITE, 0, 2 * BLOCK), 0);
    assert_int_equal(req_write(&write, image, 0, block, BLOCK), 0);
    assert_int_equal(req_zeroes(&zeroes, image, BLOCK, BLOCK), 0);
    assert_int_equal(pthread_create(&sleeper, NULL, poll_forever, &ran), 0);
    (void)poll(NULL, 0, 100); /* so that it sleeps; if it does not, all is well too */
    assert_int_equal(blkrepl_write_end(env.ctx, first.token, 0, NULL, 0, NULL), 0);
    pthread_join(sleeper, NULL);
    assert_int_equal(ran, 1);
    req_assert_done(&write, 0);
    tape_release(&disk, &env);
    req_assert_done(&zeroes, 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void *flush_and_wait(void *user)
{
    *(int *)user = blkrepl_image_flush_wait(image, 0);
    return NULL;
}

/* Nothing is called back when a bracket ends, and yet its slot is free. */
static void room_wakes_a_call_that_leads(void **state)
{
    blkrepl_context_options options = {.struct_size = sizeof options, .requests_max = 1};
    struct bracket bracket = {0};
    pthread_t sleeper;
    int answer = 1;

    (void)state;
    tape_init(&disk, 16 * BLOCK);
    env_open(&env, &options, ENV_REAL_CLOCK);
    image = tape_open(&disk, &env);
    assert_int_equal(bracket_begin(&bracket, image, BLKREPL_OP_WRITE, 0, BLOCK), 0);
    assert_int_equal(pthread_create(&sleeper, NULL, flush_and_wait, &answer), 0);
    (void)poll(NULL, 0, 100);
    assert_int_equal(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), 0);
    pthread_join(sleeper, NULL);
    assert_int_equal(answer, 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arming_does_not_rob_a_sleeper),
        cmocka_unit_test(room_wakes_a_call_that_leads),
    };

    alarm(60);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
