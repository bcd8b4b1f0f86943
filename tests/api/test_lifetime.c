/* SPDX-License-Identifier: MIT */
/* Dropping a handle never blocks, never loses a callback, never closes early. */
#include "tape.h"

#define SIZE (8 * CLUSTER)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static uint8_t buffer[4096];
static int image_released, job_released;

static void count(void *user)
{
    (*(int *)user)++;
}

static int set_up(void **state)
{
    blkrepl_image_options o = {.struct_size = sizeof o, .user = &image_released, .release = count};

    (void)state;
    image_released = job_released = 0;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    source = tape_open_as(&disk, &env, &tape_ops, &o);
    target = tape_open(&copy, &env);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    assert_int_equal(image_released, 1);
    tape_close(&disk);
    tape_close(&copy);
    return 0;
}

static void close_source(void)
{
    blkrepl_image_close(source);
    source = NULL;
}

static void an_idle_image_is_closed_soon(void **state)
{
    (void)state;
    close_source();
    env_drain(&env);
    assert_int_equal(disk.closes, 1);
    assert_int_equal(image_released, 1);
    ASSERT_CODE(write_now(&env, target, 0, "x", 1), 0);
}

static void requests_in_flight_keep_the_backend_open(void **state)
{
    struct req req[3] = {0};

    (void)state;
    disk.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req[0], source, 0, buffer, 512), 0);
    ASSERT_CODE(req_write(&req[1], source, 0, buffer, 512), 0); /* waits for [0] */
    ASSERT_CODE(req_read(&req[2], source, 8192, buffer, 512), 0);
    close_source();
    env_drain(&env);
    assert_int_equal(disk.closes, 0);
    assert_int_equal(image_released, 0);
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    assert_int_equal(disk.closes, 0);
    req_assert_done(&req[0], 0);
    req_assert_done(&req[2], 0);
    tape_finish_all(&disk, 0, -EIO);
    env_drain(&env);
    req_assert_done(&req[1], -EIO);
    assert_int_equal(disk.closes, 1);
    assert_int_equal(image_released, 1);
}

static void close_in_callback(struct req *req)
{
    (void)req;
    close_source();
}

static void close_inside_a_callback_is_legal(void **state)
{
    struct req req = {.then = close_in_callback};

    (void)state;
    ASSERT_CODE(req_read(&req, source, 0, buffer, 512), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(disk.closes, 1);
}

static void close_in_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    (void)io;
    if (source) {
        close_source();
    }
}

static void close_inside_submit_is_legal(void **state)
{
    struct req req = {0};

    (void)state;
    disk.on_submit = close_in_submit;
    ASSERT_CODE(req_read(&req, source, 0, buffer, 512), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(disk.closes, 1);
}

static void an_open_bracket_keeps_the_image(void **state)
{
    struct bracket first = {0}, second = {0};

    (void)state;
    ASSERT_CODE(bracket_begin(&first, source, BLKREPL_OP_WRITE, 0, 4096), 0);
    ASSERT_CODE(bracket_begin(&second, source, BLKREPL_OP_WRITE, 0, 4096), BLKREPL_WAIT);
    close_source();
    env_drain(&env);
    assert_int_equal(disk.closes, 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, first.token, 0, NULL, 0, NULL), 0);
    env_drain(&env);
    assert_int_equal(disk.closes, 0);
    req_assert_done(&second.go, 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, second.token, 0, NULL, 0, NULL), 0);
    env_drain(&env);
    assert_int_equal(disk.closes, 1);
}

static void start_backup(blkrepl_job **job)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .user = &job_released, .release = count};

    ASSERT_CODE(blkrepl_backup_start(source, target, &o, job), 0);
}

static void a_job_keeps_its_images(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    copy.hold = OPS_ALL;
    start_backup(&job);
    env_drain(&env);
    close_source();
    blkrepl_image_close(target);
    target = NULL;
    env_drain(&env);
    assert_int_equal(disk.closes, 0);
    assert_int_equal(copy.closes, 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_int_equal(disk.closes, 1);
    assert_int_equal(copy.closes, 1);
    assert_same(copy.data, disk.data, SIZE, "target");
    assert_int_equal(job_released, 0);
    blkrepl_job_free(job);
    env_drain(&env);
    assert_int_equal(job_released, 1);
}

static void a_freed_job_that_runs_goes_on_without_events(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    copy.hold = OPS_ALL;
    start_backup(&job);
    uint64_t id = job_info(job).id;
    blkrepl_job_free(job);
    tape_release(&copy, &env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_STATE, id), 0);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 0);
    assert_same(copy.data, disk.data, SIZE, "target");
    assert_int_equal(job_released, 1);
    ASSERT_CODE(write_now(&env, target, 0, "x", 1), 0); /* no longer a target */
}

static void a_freed_job_that_was_never_started_is_gone(void **state)
{
    blkrepl_job *job = NULL;
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .name = "twice", .user = &job_released, .release = count};

    (void)state;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    ASSERT_CODE(write_now(&env, target, 0, "x", 1), -EBUSY);
    blkrepl_job_free(job);
    env_drain(&env);
    assert_int_equal(job_released, 1);
    ASSERT_CODE(write_now(&env, target, 0, "x", 1), 0);
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    blkrepl_job_free(job);
    env_drain(&env);
    assert_int_equal(job_released, 2);
    assert_int_equal(env.event_count, 0);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

static blkrepl_job *job_in_event;

static void free_in_event(struct env *e, const blkrepl_event *event)
{
    (void)e;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        blkrepl_job_free(job_in_event);
    }
}

static void a_job_may_be_freed_in_its_own_event(void **state)
{
    (void)state;
    env.on_event = free_in_event;
    start_backup(&job_in_event);
    uint64_t id = job_info(job_in_event).id;
    env_drain(&env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
    assert_int_equal(job_released, 1);
}

static void queued_events_of_a_freed_job_are_dropped(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_backup_create(source, target, NULL, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    blkrepl_job_free(job);
    env_drain(&env);
    assert_int_equal(env.event_count, 0);
}

/* ---- Bitmaps ---------------------------------------------------------------------------- */

static blkrepl_bitmap *bitmap_of(blkrepl_image *image)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "b"};
    blkrepl_bitmap *bitmap = NULL;

    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &bitmap), 0);
    return bitmap;
}

static void bitmaps_do_not_keep_their_image(void **state)
{
    blkrepl_bitmap *bitmap = bitmap_of(source);

    (void)state;
    ASSERT_CODE(write_now(&env, source, 0, "x", 1), 0);
    close_source();
    env_drain(&env);
    assert_int_equal(disk.closes, 1);
    assert_int_equal(image_released, 1);
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, 0), 1); /* and are good without it */
    blkrepl_bitmap_free(bitmap);
}

static void free_bitmap_in_callback(struct req *req)
{
    blkrepl_bitmap_free(req->then_user);
}

static void a_bitmap_may_be_freed_inside_a_callback(void **state)
{
    struct req req = {.then = free_bitmap_in_callback, .then_user = bitmap_of(source)};
    blkrepl_bitmap *again = NULL;

    (void)state;
    ASSERT_CODE(req_write(&req, source, 0, buffer, 512), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(blkrepl_bitmap_find(source, "b", &again), 0); /* it stays with the image */
    ASSERT_CODE(blkrepl_bitmap_get(again, 0), 1);
    blkrepl_bitmap_free(again);
}

static void a_bitmap_outlives_the_job_that_wrote_to_its_image(void **state)
{
    blkrepl_bitmap *bitmap = bitmap_of(target);
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    blkrepl_image_close(target);
    target = NULL;
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, 1), 0); /* the job keeps the image */
    env_drain(&env);
    assert_int_equal(copy.closes, 1);
    ASSERT_CODE(blkrepl_bitmap_get(bitmap, SIZE - 1), 1);
    blkrepl_job_free(job);
    blkrepl_bitmap_free(bitmap);
}

/* ---- open that fails ------------------------------------------------------------------ */

static void a_failed_open_releases_its_user_and_leaves_the_backend(void **state)
{
    static struct tape other;
    int released = 0;
    blkrepl_image_options o = {.struct_size = sizeof o, .user = &released, .release = count};
    blkrepl_image *out = source;
    char long_name[66];

    (void)state;
    tape_init(&other, 4096);
    other.get_info_result = -EIO;
    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &other, &o, &out), -EIO);
    assert_null(out);
    assert_int_equal(released, 1);
    other.get_info_result = 0;
    o.flags = 0x100;
    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &other, &o, &out), -EINVAL);
    o.flags = 0;
    o.reserved0 = &o;
    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &other, &o, &out), -EINVAL);
    o.reserved0 = NULL;
    assert_int_equal(released, 3);
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[64] = 0;
    o.name = long_name;
    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &other, &o, &out), -EINVAL);
    assert_int_equal(released, 4);
    assert_int_equal(other.closes, 0);
    free(other.data);
}

static void the_query_tells_what_was_opened(void **state)
{
    char name[64], long_name[64];
    blkrepl_image_options o = {.struct_size = sizeof o, .name = name, .user = &env};
    blkrepl_image *image = NULL;

    (void)state;
    memset(long_name, 'n', 63);
    long_name[63] = 0;
    strcpy(name, long_name);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 12345, &o, &image), 0);
    memset(name, 'x', 63); /* it was copied */
    blkrepl_image_info info = image_info(image), first = image_info(source);
    assert_string_equal(info.name, long_name);
    assert_int_equal(info.bytes, 12345);
    assert_ptr_equal(info.user, &env);
    assert_int_equal(info.flags, 0);
    assert_true(info.id != first.id && info.id != image_info(target).id);
    assert_true(info.request_alignment >= 1 && info.memory_alignment >= 1);
    char want[64];
    snprintf(want, sizeof want, "image-%llu", (unsigned long long)first.id);
    assert_string_equal(first.name, want);
    blkrepl_image_close(image);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(an_idle_image_is_closed_soon),
        T(requests_in_flight_keep_the_backend_open),
        T(close_inside_a_callback_is_legal),
        T(close_inside_submit_is_legal),
        T(an_open_bracket_keeps_the_image),
        T(a_job_keeps_its_images),
        T(a_freed_job_that_runs_goes_on_without_events),
        T(a_freed_job_that_was_never_started_is_gone),
        T(a_job_may_be_freed_in_its_own_event),
        T(queued_events_of_a_freed_job_are_dropped),
        T(bitmaps_do_not_keep_their_image),
        T(a_bitmap_may_be_freed_inside_a_callback),
        T(a_bitmap_outlives_the_job_that_wrote_to_its_image),
        T(a_failed_open_releases_its_user_and_leaves_the_backend),
        T(the_query_tells_what_was_opened),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
