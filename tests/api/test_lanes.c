/* SPDX-License-Identifier: MIT */
/* Lanes: requests, callbacks, events, descriptors and limits are each lane's own. */
#include <dirent.h>
#include <poll.h>
#include <sys/resource.h>

#include "tape.h"

#define LANES 4
#define BLOCK 4096
#define SIZE (32 * CLUSTER)
#define WRITE BLKREPL_OP_WRITE

static struct env env;
static struct tape disk, copy;
static blkrepl_image *image, *target;
static uint8_t data[CLUSTER];
static uint8_t other_data[CLUSTER];

static void open_lanes(const blkrepl_context_options *base, unsigned flags)
{
    env_open(&env, base, flags);
    tape_init(&disk, SIZE);
    disk.lanes = base->lane_count;
    tape_fill(&disk, 1);
    image = tape_open(&disk, &env);
    fill(data, sizeof data, 0, 200);
    fill(other_data, sizeof other_data, 0, 201);
}

static int set_up(void **state)
{
    const blkrepl_context_options base = {.lane_count = LANES, .requests_max = 2};

    (void)state;
    open_lanes(&base, 0);
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

/* Poll every lane but one. */
static void drain_others(uint32_t but)
{
    for (int round = 0; round < 3; round++) {
        for (uint32_t lane = 0; lane < LANES; lane++) {
            if (lane != but) {
                lane_drain(&env, lane);
            }
        }
    }
}

/* ---- Callbacks ------------------------------------------------------------------- */

static void callbacks_run_in_polls_of_their_own_lane(void **state)
{
    struct req reqs[LANES] = {0};

    (void)state;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        ASSERT_CODE(lane_write(&reqs[lane], image, lane, lane * CLUSTER, data, BLOCK), 0);
    }
    for (uint32_t lane = LANES; lane-- > 0;) {
        assert_int_equal(reqs[lane].calls, 0);
        assert_int_equal(lane_drain(&env, lane), 1);
        req_assert_done(&reqs[lane], 0);
    }
    for (size_t i = 0; i < disk.log_count; i++) {
        assert_int_equal(disk.log[i].offset, disk.log[i].lane * CLUSTER);
    }
}

static int any_request(struct req *req, uint32_t kind, uint32_t lane, blkrepl_extent *extents)
{
    blkrepl_completion done;

    switch (kind) {
    case 0: return lane_read(req, image, lane, 0, other_data, BLOCK);
    case 1: return lane_write(req, image, lane, 0, data, BLOCK);
    case 2: return lane_zeroes(req, image, lane, 0, BLOCK);
    case 3: return lane_discard(req, image, lane, 0, BLOCK);
    case 4: return lane_flush(req, image, lane);
    default:
        req_reset(req);
        done = req_completion(req);
        return blkrepl_image_status(image, lane, 0, BLOCK, extents, 1, &done);
    }
}

static void requests_of_every_kind_wait_for_their_lane(void **state)
{
    blkrepl_extent extents[1];
    struct req req = {0};

    (void)state;
    for (uint32_t held = 0; held < 2; held++) {
        disk.hold = held ? OPS_ALL : 0;
        for (uint32_t kind = 0; kind < 6; kind++) {
            ASSERT_CODE(any_request(&req, kind, 2, extents), 0);
            assert_int_equal(disk.log[disk.log_count - 1].lane, 2);
            tape_finish_all(&disk, 0, 0);
            drain_others(2);
            assert_int_equal(req.calls, 0);
            assert_int_equal(lane_drain(&env, 2), 1);
            req_assert_done(&req, 0);
        }
    }
}

static int end(const struct bracket *b)
{
    return blkrepl_write_end(env.ctx, b->token, 0, NULL, 0, NULL);
}

static void a_go_waits_for_the_lane_of_its_bracket(void **state)
{
    struct bracket first = {0}, second = {0}, third = {0};

    (void)state;
    ASSERT_CODE(lane_begin(&first, image, 1, WRITE, 0, BLOCK), 0);
    ASSERT_CODE(lane_begin(&second, image, 2, WRITE, 0, BLOCK), BLKREPL_WAIT);
    ASSERT_CODE(lane_begin(&third, image, 3, WRITE, 0, BLOCK), BLKREPL_WAIT);
    ASSERT_CODE(end(&first), 0);
    drain_others(2);
    assert_int_equal(second.go.calls, 0);
    assert_int_equal(lane_drain(&env, 2), 1);
    req_assert_done(&second.go, 0);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, third.token), BLKREPL_WAIT);
    drain_others(3);
    assert_int_equal(third.go.calls, 0);
    assert_int_equal(lane_drain(&env, 3), 1);
    req_assert_done(&third.go, -ECANCELED);
    ASSERT_CODE(end(&second), 0);
}

static int answer;

static void poll_another_lane(struct req *req)
{
    (void)req;
    answer = blkrepl_poll(env.ctx, 2, 0);
}

static void no_lane_is_polled_from_inside_a_callback_of_another(void **state)
{
    struct req req = {.then = poll_another_lane};

    (void)state;
    answer = 99;
    ASSERT_CODE(lane_flush(&req, image, 1), 0);
    lane_drain(&env, 1);
    req_assert_done(&req, 0);
    ASSERT_CODE(answer, -EDEADLK);
}

/* ---- Limits, and ROOM -------------------------------------------------------------- */

static void requests_max_and_room_are_of_each_lane(void **state)
{
    struct req reqs[LANES][2] = {{{0}}};
    struct req more = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        for (uint32_t i = 0; i < 2; i++) {
            uint64_t offset = (2 * lane + i) * CLUSTER;

            ASSERT_CODE(lane_write(&reqs[lane][i], image, lane, offset, data, BLOCK), 0);
        }
        ASSERT_CODE(lane_write(&more, image, lane, 0, data, BLOCK), -EAGAIN);
        req_assert_rejected(&more);
    }
    tape_finish_all(&disk, 0, 0);
    for (uint32_t lane = LANES; lane-- > 0;) {
        assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, lane), 0);
        assert_int_equal(lane_drain(&env, lane), 3);
        assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, lane), 1);
        assert_int_equal(env.event_count, LANES - lane);
        assert_int_equal(env_event(&env, BLKREPL_EVENT_ROOM, lane, 0)->object_kind,
                         BLKREPL_OBJECT_LANE);
        ASSERT_CODE(lane_write(&more, image, lane, 0, data, BLOCK), 0);
        tape_finish_all(&disk, 0, 0);
        lane_drain(&env, lane);
        req_assert_done(&more, 0);
    }
}

/* ---- Sleeping ------------------------------------------------------------------------ */

static bool readable(uint32_t lane)
{
    struct pollfd p = {.fd = blkrepl_poll_fd(env.ctx, lane), .events = POLLIN};

    assert_true(p.fd >= 0);
    return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

/* Arm every lane; they have nothing to do. */
static void arm_all(void)
{
    uint64_t deadline;

    for (uint32_t lane = 0; lane < LANES; lane++) {
        lane_drain(&env, lane);
        ASSERT_CODE(blkrepl_poll_arm(env.ctx, lane, &deadline), 0);
        assert_true(deadline == BLKREPL_FOREVER);
        assert_false(readable(lane));
    }
}

static void assert_readable_is_only(uint32_t which)
{
    for (uint32_t lane = 0; lane < LANES; lane++) {
        assert_int_equal(readable(lane), lane == which);
    }
}

static void each_lane_has_a_descriptor_of_its_own(void **state)
{
    struct req req = {0};
    uint64_t deadline;

    (void)state;
    disk.hold = OPS_ALL;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        arm_all();
        ASSERT_CODE(lane_read(&req, image, lane, 0, other_data, BLOCK), 0);
        assert_readable_is_only(LANES);
        tape_finish_all(&disk, 0, 0);
        assert_readable_is_only(lane);
        ASSERT_CODE(blkrepl_poll_arm(env.ctx, lane, &deadline), 1);
        assert_int_equal(blkrepl_poll(env.ctx, lane, 0), 1);
        assert_readable_is_only(LANES);
        ASSERT_CODE(blkrepl_poll_wake(env.ctx, lane), 0);
        ASSERT_CODE(blkrepl_poll_arm(env.ctx, lane, &deadline), 1);
        blkrepl_poll(env.ctx, lane, 0);
    }
}

static void a_wake_is_for_one_lane(void **state)
{
    (void)state;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        arm_all();
        ASSERT_CODE(blkrepl_poll_wake(env.ctx, lane), 0);
        assert_readable_is_only(lane);
        assert_int_equal(blkrepl_poll(env.ctx, lane, 0), 0);
    }
}

/* The thread of the lane does that, when it wakes. */
static void a_wake_gives_nothing_to_a_backend(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(lane_write(&first, image, 1, 0, data, BLOCK), 0);
    ASSERT_CODE(lane_write(&second, image, 2, 0, data, BLOCK), 0);
    tape_finish_all(&disk, 0, 0);
    lane_drain(&env, 1); /* now the other one may go */
    assert_int_equal(tape_submitted(&disk, WRITE), 1);
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, 2), 0);
    assert_int_equal(tape_submitted(&disk, WRITE), 1);
    lane_drain(&env, 2);
    assert_int_equal(tape_submitted(&disk, WRITE), 2);
    tape_finish_all(&disk, 0, 0);
    drain_others(LANES);
    req_assert_done(&second, 0);
}

/* Lane 3's write lets lane 1's go: both have something to report. */
static void a_lane_wakes_for_what_another_one_has_done(void **state)
{
    struct req first = {0}, second = {0};
    struct bracket go = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    arm_all();
    ASSERT_CODE(lane_write(&first, image, 3, 0, data, BLOCK), 0);
    ASSERT_CODE(lane_begin(&go, image, 1, WRITE, 0, BLOCK), BLKREPL_WAIT);
    ASSERT_CODE(lane_write(&second, image, 2, 0, data, BLOCK), 0);
    assert_readable_is_only(LANES);
    tape_finish_all(&disk, 0, 0);
    lane_drain(&env, 3);
    assert_readable_is_only(1);
    assert_int_equal(blkrepl_poll(env.ctx, 1, 0), 1);
    req_assert_done(&go.go, 0);
    assert_false(tape_pending(&disk, WRITE) > 0);
    ASSERT_CODE(end(&go), 0);
    drain_others(LANES);
    tape_finish_all(&disk, 0, 0);
    drain_others(LANES);
    req_assert_done(&first, 0);
    req_assert_done(&second, 0);
}

struct sleeper {
    pthread_t thread;
    uint32_t lane;
    int callbacks;
};

static void *sleep_in_poll(void *argument)
{
    struct sleeper *s = argument;

    while (s->callbacks == 0) {
        int n = blkrepl_poll(env.ctx, s->lane, BLKREPL_FOREVER);

        s->callbacks += n > 0 ? n : 0;
    }
    return NULL;
}

static void each_lane_is_polled_by_a_thread_of_its_own(void **state)
{
    const blkrepl_context_options base = {.lane_count = LANES};
    struct sleeper sleepers[LANES];
    struct req reqs[LANES] = {0};

    (void)state;
    open_lanes(&base, ENV_REAL_CLOCK);
    disk.hold = BIT(WRITE);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        sleepers[lane] = (struct sleeper){.lane = lane};
        ASSERT_CODE(lane_write(&reqs[lane], image, lane, lane * CLUSTER, data, BLOCK), 0);
        assert_int_equal(
            pthread_create(&sleepers[lane].thread, NULL, sleep_in_poll, &sleepers[lane]), 0);
        while (blkrepl_poll(env.ctx, lane, 0) != -EBUSY) {
        }
    }
    for (uint32_t lane = LANES; lane-- > 0;) {
        ASSERT_CODE(blkrepl_poll(env.ctx, lane, 0), -EBUSY);
        tape_finish(&disk, tape_find(&disk, WRITE, lane * CLUSTER, 1), 0);
        pthread_join(sleepers[lane].thread, NULL);
        assert_int_equal(sleepers[lane].callbacks, 1);
        req_assert_done(&reqs[lane], 0);
        assert_int_equal(blkrepl_poll(env.ctx, lane, 0), 0);
    }
    tear_down(NULL);
}

/* ---- Order over lanes ----------------------------------------------------------------- */

static void overlapping_writes_of_several_lanes_keep_their_order(void **state)
{
    struct req first = {0}, second = {0}, third = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(lane_write(&first, image, 3, 0, data, 2 * BLOCK), 0);
    ASSERT_CODE(lane_write(&second, image, 1, BLOCK, other_data, 2 * BLOCK), 0);
    ASSERT_CODE(lane_write(&third, image, 2, 2 * BLOCK, data, 2 * BLOCK), 0);
    drain_others(LANES);
    assert_int_equal(tape_submitted(&disk, WRITE), 1);
    for (size_t i = 1; i < 4; i++) {
        tape_finish(&disk, 0, 0);
        drain_others(LANES);
        assert_int_equal(tape_submitted(&disk, WRITE), i < 3 ? i + 1 : 3);
    }
    assert_memory_equal(disk.data, data, BLOCK);
    assert_memory_equal(disk.data + BLOCK, other_data, BLOCK);
    assert_memory_equal(disk.data + 2 * BLOCK, data, 2 * BLOCK);
    req_assert_done(&first, 0);
    req_assert_done(&second, 0);
    req_assert_done(&third, 0);
}

/* What all of them together must leave is what they would one after the other. */
static void random_writes(uint64_t seed, uint32_t depth)
{
    const blkrepl_context_options base = {.lane_count = LANES};
    static struct req reqs[200];
    static uint8_t blocks[200][4 * BLOCK];
    struct rng rng = {.state = seed};
    uint8_t *model;

    open_lanes(&base, 0);
    blkrepl_image_close(image);
    lane_drain(&env, 0);
    disk.closes = disk.get_infos = 0;
    disk.info.queue_depth = depth;
    disk.hold = BIT(WRITE);
    image = tape_open(&disk, &env);
    model = tape_copy(&disk);
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        uint64_t offset = rng_below(&rng, 8) * BLOCK;
        size_t bytes = (1 + (size_t)rng_below(&rng, 4)) * BLOCK;
        uint32_t lane = (uint32_t)rng_below(&rng, LANES);

        fill(blocks[i], bytes, offset, (unsigned)i);
        memcpy(model + offset, blocks[i], bytes);
        ASSERT_CODE(lane_write(&reqs[i], image, lane, offset, blocks[i], bytes), 0);
        if (disk.queue_count > 0 && rng_percent(&rng, 60)) {
            tape_finish(&disk, (int)rng_below(&rng, disk.queue_count), 0);
        }
        if (rng_percent(&rng, 60)) {
            blkrepl_poll(env.ctx, (uint32_t)rng_below(&rng, LANES), 0);
        }
    }
    do {
        drain_others(LANES);
    } while (tape_finish_all(&disk, 0, 0) > 0);
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        req_assert_done(&reqs[i], 0);
    }
    assert_same(disk.data, model, SIZE, "disk");
    free(model);
    tear_down(NULL);
}

static void many_writes_of_several_lanes_keep_their_order(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 5 : 60); seed++) {
        random_writes(seed, 1 + (uint32_t)seed % 5);
    }
}

/* ---- Jobs ------------------------------------------------------------------------------ */

static uint32_t polled; /* the lane that is being polled; LANES: none */
static bool writing;    /* a guest's call */
static unsigned misplaced;

static void target_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    misplaced += polled != 0 || io->lane != 0;
}

static void source_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    if (io->lane == 0) {
        misplaced += polled != 0;
    } else {
        misplaced += !writing && polled != io->lane;
    }
}

static void on_job_event(struct env *e, const blkrepl_event *event)
{
    (void)e;
    misplaced += event->object_kind == BLKREPL_OBJECT_JOB && polled != 0;
}

static void poll_once(uint32_t lane)
{
    polled = lane;
    assert_true(blkrepl_poll(env.ctx, lane, 0) >= 0);
    polled = LANES;
}

static blkrepl_job *start_backup(void)
{
    const blkrepl_backup_options o = {.struct_size = sizeof o,
                                      .cluster_bytes = CLUSTER,
                                      .chunk_bytes_max = CLUSTER,
                                      .workers_max = 1};
    blkrepl_job *job = NULL;

    tape_init(&copy, SIZE);
    copy.on_submit = target_submit;
    disk.on_submit = source_submit;
    env.on_event = on_job_event;
    target = tape_open(&copy, &env);
    misplaced = 0;
    polled = LANES;
    ASSERT_CODE(blkrepl_backup_start(image, target, &o, &job), 0);
    return job;
}

static void finish_backup(blkrepl_job *job, const uint8_t *start)
{
    for (int i = 0; i < 1000 && job_info(job).state != BLKREPL_JOB_CONCLUDED; i++) {
        poll_once(0);
    }
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    poll_once(0);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, job_info(job).id), 1);
    assert_int_equal(misplaced, 0);
    assert_same(copy.data, start, SIZE, "target");
    blkrepl_job_free(job);
    blkrepl_image_close(target);
}

/* The reads of old data go with the writes that need them; all else is lane 0's. */
static void a_job_is_served_by_lane_0_and_old_data_by_the_lane_of_the_write(void **state)
{
    uint8_t *start = tape_copy(&disk);
    struct req reqs[2] = {{0}};
    blkrepl_job *job = start_backup();

    (void)state;
    ASSERT_CODE(blkrepl_job_pause(job), 0); /* only what guests need is copied */
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t lane = 1 + i % (LANES - 1);
        size_t before = tape_submitted(&disk, BLKREPL_OP_READ);

        writing = true;
        ASSERT_CODE(lane_write(&reqs[0], image, lane, (31 - i) * CLUSTER, data, BLOCK), 0);
        writing = false;
        assert_int_equal(tape_submitted(&disk, BLKREPL_OP_READ), before + 1);
        assert_int_equal(disk.log[disk.log_count - 1].lane, lane);
        for (uint32_t n = 1; n < LANES; n++) {
            poll_once(n);
        }
        req_assert_done(&reqs[0], 0);
        poll_once(0);
    }
    assert_true(tape_submitted(&copy, 0) >= 16);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    finish_backup(job, start);
    free(start);
    tear_down(NULL);
    tape_close(&copy);
}

static int set_up_only(void **state)
{
    const blkrepl_context_options base = {.lane_count = LANES};

    (void)state;
    open_lanes(&base, 0);
    return 0;
}

/* Whatever the other lanes do, no job moves before lane 0 is polled. */
static void no_job_moves_in_polls_of_other_lanes(void **state)
{
    uint8_t *start = tape_copy(&disk);
    blkrepl_job *job = start_backup();
    struct req req = {0};

    (void)state;
    for (uint32_t i = 0; i < 50; i++) {
        writing = true;
        ASSERT_CODE(lane_read(&req, image, 1 + i % 3, 0, other_data, BLOCK), 0);
        writing = false;
        for (uint32_t lane = 1; lane < LANES; lane++) {
            poll_once(lane);
        }
    }
    assert_int_equal(tape_submitted(&copy, 0), 0);
    assert_int_equal(env.event_count, 0);
    finish_backup(job, start);
    free(start);
    tear_down(NULL);
    tape_close(&copy);
}

/* A timer is none of their business. */
static void deadlines_are_those_of_lane_0(void **state)
{
    uint8_t *start = tape_copy(&disk);
    blkrepl_job *job = start_backup();
    struct req req = {0};
    uint64_t deadline;

    (void)state;
    ASSERT_CODE(blkrepl_job_set_speed(job, 1), 0);
    for (int i = 0; i < 50; i++) {
        poll_once(0);
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        poll_once(lane);
        ASSERT_CODE(blkrepl_poll_arm(env.ctx, lane, &deadline), 0);
        assert_int_equal(deadline == BLKREPL_FOREVER, lane > 0);
    }
    writing = true;
    ASSERT_CODE(lane_read(&req, image, 1, 0, other_data, BLOCK), 0);
    writing = false;
    assert_readable_is_only(1); /* the read was done inside the call */
    poll_once(1);
    req_assert_done(&req, 0);
    assert_readable_is_only(LANES);
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    finish_backup(job, start);
    free(start);
    tear_down(NULL);
    tape_close(&copy);
}

/* ---- The edges --------------------------------------------------------------------------- */

static void assert_no_such_lane(uint32_t lane)
{
    struct bracket bracket = {0};
    blkrepl_extent extents[1];
    struct req req = {0};
    uint64_t deadline;

    for (uint32_t kind = 0; kind < 6; kind++) {
        ASSERT_CODE(any_request(&req, kind, lane, extents), -EINVAL);
        req_assert_rejected(&req);
        assert_non_null(strstr(blkrepl_error_message(), "lane"));
    }
    ASSERT_CODE(lane_begin(&bracket, image, lane, WRITE, 0, BLOCK), -EINVAL);
    req_assert_rejected(&bracket.go);
    assert_int_equal(bracket.token, 0);
    ASSERT_CODE(blkrepl_poll(env.ctx, lane, 0), -EINVAL);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, lane, &deadline), -EINVAL);
    ASSERT_CODE(blkrepl_poll_fd(env.ctx, lane), -EINVAL);
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, lane), -EINVAL);
}

static void a_lane_that_does_not_exist_is_refused_everywhere(void **state)
{
    static const uint32_t bad[] = {LANES, LANES + 1, 255, 256, UINT32_MAX};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        assert_no_such_lane(bad[i]);
    }
    assert_int_equal(image_info(image).requests_in_flight, 0);
    assert_int_equal(disk.log_count, 0);
}

static void there_may_be_256_lanes(void **state)
{
    const blkrepl_context_options base = {.lane_count = 256, .requests_max = 2};
    static struct req reqs[256];
    static int fds[256];

    (void)state;
    open_lanes(&base, 0);
    for (uint32_t lane = 0; lane < 256; lane++) {
        fds[lane] = blkrepl_poll_fd(env.ctx, lane);
        for (uint32_t i = 0; i < lane; i++) {
            assert_true(fds[i] != fds[lane]);
        }
        ASSERT_CODE(lane_write(&reqs[lane], image, lane, lane * BLOCK, data, BLOCK), 0);
    }
    assert_no_such_lane(256);
    for (uint32_t lane = 0; lane < 256; lane++) {
        assert_int_equal(lane_drain(&env, (lane * 7) % 256), 1);
        req_assert_done(&reqs[(lane * 7) % 256], 0);
    }
    tear_down(NULL);
}

static unsigned open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static int create_in_vain(void)
{
    const blkrepl_context_options base = {.lane_count = 8, .requests_max = 1};
    blkrepl_context *ctx = (blkrepl_context *)&env;
    blkrepl_allocator allocator;
    blkrepl_hooks hooks;
    blkrepl_context_options o = env_options(&env, &base, 0, &hooks, &allocator);
    int rc = blkrepl_context_create(&o, &ctx);

    assert_int_equal(ctx == NULL, rc < 0);
    if (rc < 0) {
        assert_int_equal(env.sink_released, 1);
        assert_int_equal(env.heap.live, 0);
        env.sink_released = 0;
    } else {
        ASSERT_CODE(blkrepl_context_free(ctx), 0);
    }
    return rc;
}

/* The lowest number that no file has, and more, are allowed one after the other. */
static void without_descriptors_a_create_fails_and_leaves_nothing(void **state)
{
    struct rlimit before;
    unsigned open_before;
    unsigned failures = 0;
    int rc;

    (void)state;
    memset(&env, 0, sizeof env);
    pthread_mutex_init(&env.heap.lock, NULL);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    open_before = open_descriptors();
    for (rlim_t limit = 3;; limit++) {
        struct rlimit less = {.rlim_cur = limit, .rlim_max = before.rlim_max};

        assert_int_equal(setrlimit(RLIMIT_NOFILE, &less), 0);
        rc = create_in_vain();
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_int_equal(open_descriptors(), open_before);
        if (rc != -EMFILE) {
            break;
        }
        failures++;
        assert_true(blkrepl_error_message()[0] != '\0');
    }
    ASSERT_CODE(rc, 0);
    assert_true(failures >= 8);
    pthread_mutex_destroy(&env.heap.lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(callbacks_run_in_polls_of_their_own_lane, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(requests_of_every_kind_wait_for_their_lane, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_go_waits_for_the_lane_of_its_bracket, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_lane_is_polled_from_inside_a_callback_of_another, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(requests_max_and_room_are_of_each_lane, set_up, tear_down),
        cmocka_unit_test_setup_teardown(each_lane_has_a_descriptor_of_its_own, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_wake_is_for_one_lane, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_wake_gives_nothing_to_a_backend, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_lane_wakes_for_what_another_one_has_done, set_up,
                                        tear_down),
        cmocka_unit_test(each_lane_is_polled_by_a_thread_of_its_own),
        cmocka_unit_test_setup_teardown(overlapping_writes_of_several_lanes_keep_their_order,
                                        set_up, tear_down),
        cmocka_unit_test(many_writes_of_several_lanes_keep_their_order),
        cmocka_unit_test_setup(a_job_is_served_by_lane_0_and_old_data_by_the_lane_of_the_write,
                               set_up_only),
        cmocka_unit_test_setup(no_job_moves_in_polls_of_other_lanes, set_up_only),
        cmocka_unit_test_setup(deadlines_are_those_of_lane_0, set_up_only),
        cmocka_unit_test_setup_teardown(a_lane_that_does_not_exist_is_refused_everywhere, set_up,
                                        tear_down),
        cmocka_unit_test(there_may_be_256_lanes),
        cmocka_unit_test(without_descriptors_a_create_fails_and_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
