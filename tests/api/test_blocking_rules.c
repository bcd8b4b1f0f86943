/* SPDX-License-Identifier: MIT */
/* Blocking calls: what they answer, what they refuse, and where they must not
 * be made. */
#include "call.h"

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (4 * CLUSTER)
#define LANES 3

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static uint8_t buffer[SIZE];

static void open_scene(unsigned flags)
{
    blkrepl_context_options o = {.struct_size = sizeof o, .lane_count = LANES};

    env_open(&env, &o, flags);
    tape_init(&disk, SIZE);
    tape_fill(&disk, 1);
    disk.info.request_alignment = 512;
    disk.lanes = LANES;
    image = tape_open(&disk, &env);
}

static int set_up(void **state)
{
    (void)state;
    open_scene(ENV_REAL_CLOCK);
    return 0;
}

static int set_up_clock(void **state)
{
    (void)state;
    open_scene(0);
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

static struct call call_of(enum call_kind kind)
{
    return (struct call){
        .image = image, .kind = kind, .lane = 1, .offset = 512, .bytes = 512, .memory = buffer};
}

/* The answer of such a call must be a refusal, with its reason. */
static void assert_refused(struct call *call, int code)
{
    size_t before = tape_submitted(&disk, 0);

    call->token = UINT64_MAX;
    ASSERT_CODE(call_make(call), code);
    assert_true(blkrepl_error_message()[0] != '\0');
    assert_int_equal(tape_submitted(&disk, 0), before);
    assert_int_equal(image_info(image).requests_in_flight, 0);
    if (call->kind == CALL_BEGIN) {
        assert_int_equal(call->token, 0);
    }
}

/* ---- Answers ---------------------------------------------------------------------- */

static void data_goes_where_it_should(void **state)
{
    uint8_t want[512];

    (void)state;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        struct call write = call_of(CALL_WRITE), read = call_of(CALL_READ);

        write.lane = read.lane = lane;
        write.offset = read.offset = 100 + 1000 * lane; /* unaligned, too */
        fill(want, sizeof want, 0, 7 + lane);
        memcpy(buffer, want, sizeof want);
        ASSERT_CODE(call_make(&write), 0);
        assert_memory_equal(disk.data + write.offset, want, sizeof want);
        memset(buffer, 0, sizeof buffer);
        ASSERT_CODE(call_make(&read), 0);
        assert_memory_equal(buffer, want, sizeof want);
        assert_int_equal(disk.log[disk.log_count - 1].lane, lane);
    }
}

static void zeroes_discard_flush_and_status_answer(void **state)
{
    struct call zeroes = call_of(CALL_ZEROES), status = call_of(CALL_STATUS);
    struct call discard = call_of(CALL_DISCARD), flush = call_of(CALL_FLUSH);

    (void)state;
    zeroes.flags = BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP;
    ASSERT_CODE(call_make(&zeroes), 0);
    assert_true(all_zero(disk.data + 512, 512));
    status.bytes = 1024;
    ASSERT_CODE(call_make(&status), 0);
    assert_int_equal(status.extent[0].bytes, 512);
    assert_int_equal(status.extent[0].flags, BLKREPL_EXTENT_ZERO);
    assert_int_equal(status.extent[1].bytes, 512);
    ASSERT_CODE(call_make(&discard), 0);
    ASSERT_CODE(call_make(&flush), 0);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_DISCARD), 1);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_FLUSH), 2); /* FUA is one */
}

static void errors_of_the_backend_come_back(void **state)
{
    static const uint32_t opcodes[] = {BLKREPL_OP_READ,    BLKREPL_OP_WRITE, BLKREPL_OP_ZEROES,
                                       BLKREPL_OP_DISCARD, BLKREPL_OP_FLUSH, BLKREPL_OP_STATUS};

    (void)state;
    for (int kind = 0; kind < CALL_BEGIN; kind++) {
        struct call call = call_of((enum call_kind)kind);

        disk.fail[opcodes[kind]] = -EIO - kind;
        ASSERT_CODE(call_make(&call), -EIO - kind);
        disk.fail[opcodes[kind]] = 0;
        ASSERT_CODE(call_make(&call), 0);
    }
}

/* -EAGAIN of a backend is a result like others: nothing waits for room. */
static void eagain_of_a_backend_is_a_result(void **state)
{
    struct call read = call_of(CALL_READ);

    (void)state;
    disk.fail[BLKREPL_OP_READ] = -EAGAIN;
    ASSERT_CODE(call_make(&read), -EAGAIN);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_READ), 1);
}

static void nothing_at_all_is_legal(void **state)
{
    (void)state;
    for (int kind = 0; kind < CALL_STATUS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        call.offset = SIZE;
        call.bytes = 0;
        ASSERT_CODE(call_make(&call), 0);
    }
}

static void an_idle_image_says_go_at_once(void **state)
{
    struct call begin = call_of(CALL_BEGIN);
    uint64_t token;

    (void)state;
    ASSERT_CODE(call_make(&begin), 0);
    token = begin.token;
    assert_true(token != 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, token, 0, NULL, 0, NULL), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, token, 0, NULL, 0, NULL), -ENOENT);
    ASSERT_CODE(call_make(&begin), 0);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, begin.token), 0);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

/* ---- Refusals ---------------------------------------------------------------------- */

static void what_every_call_refuses(void **state)
{
    (void)state;
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        call.lane = LANES;
        assert_refused(&call, -EINVAL);
        call.lane = UINT32_MAX;
        assert_refused(&call, -EINVAL);
        call.lane = 1;
        call.image = NULL;
        assert_refused(&call, -EINVAL);
        call.image = image;
        if (kind != CALL_FLUSH) {
            call.offset = SIZE;
            assert_refused(&call, -EINVAL);
            call.offset = 512;
        }
        if (kind != CALL_FLUSH && kind != CALL_STATUS) {
            call.flags = BLKREPL_IO_BACKGROUND;
            assert_refused(&call, -EINVAL);
        }
    }
}

static void what_some_calls_refuse(void **state)
{
    blkrepl_extent extent;
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .bytes = 512, .lane = 1};
    struct {
        blkrepl_bracket known;
        uint64_t unknown;
    } newer = {.known = what, .unknown = 1};
    uint64_t token = 1;

    (void)state;
    ASSERT_CODE(blkrepl_image_read_wait(image, 1, 0, NULL, 1, 0), -EINVAL);
    ASSERT_CODE(blkrepl_image_write_wait(image, 1, 0, NULL, 1, 0), -EINVAL);
    ASSERT_CODE(blkrepl_image_status_wait(image, 1, 0, 512, NULL, 1), -EINVAL);
    ASSERT_CODE(blkrepl_image_status_wait(image, 1, 0, 512, &extent, 0), -EINVAL);
    ASSERT_CODE(blkrepl_write_begin_wait(image, &what, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_write_begin_wait(image, NULL, &token), -EINVAL);
    assert_int_equal(token, 0);
    what.opcode = BLKREPL_OP_READ;
    token = 1;
    ASSERT_CODE(blkrepl_write_begin_wait(image, &what, &token), -EINVAL);
    assert_int_equal(token, 0);
    newer.known.struct_size = sizeof newer;
    token = 1;
    ASSERT_CODE(blkrepl_write_begin_wait(image, &newer.known, &token), BLKREPL_ERR_VERSION);
    assert_int_equal(token, 0);
    newer.known.struct_size = 4;
    ASSERT_CODE(blkrepl_write_begin_wait(image, &newer.known, &token), -EINVAL);
    assert_int_equal(image_info(image).requests_in_flight, 0);
}

static bool kind_writes(enum call_kind kind)
{
    return kind == CALL_WRITE || kind == CALL_ZEROES || kind == CALL_DISCARD || kind == CALL_BEGIN;
}

static void a_read_only_image_refuses_writes(void **state)
{
    blkrepl_image_options o = {.struct_size = sizeof o, .flags = BLKREPL_IMAGE_READ_ONLY};
    struct tape other;
    blkrepl_image *read_only;

    (void)state;
    tape_init(&other, SIZE);
    other.lanes = LANES;
    read_only = tape_open_as(&other, &env, &tape_ops, &o);
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        call.image = read_only;
        ASSERT_CODE(call_make(&call), kind_writes(call.kind) ? -EROFS : 0);
        assert_int_equal(call.token, 0);
    }
    blkrepl_image_close(read_only);
    env_drain(&env);
    tape_close(&other);
}

static void the_target_of_a_job_refuses_writes(void **state)
{
    blkrepl_image *source = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &source), 0);
    ASSERT_CODE(blkrepl_backup_create(source, image, NULL, &job), 0);
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        if (kind_writes(call.kind)) {
            assert_refused(&call, -EBUSY);
        } else {
            ASSERT_CODE(call_make(&call), 0);
        }
    }
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    env_drain(&env);
    struct call write = call_of(CALL_WRITE);
    ASSERT_CODE(call_make(&write), 0);
}

static void a_context_that_is_being_freed_refuses_all(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY); /* the image is open */
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        assert_refused(&call, -ESHUTDOWN);
    }
}

static void a_clock_of_the_host_cannot_be_waited_for(void **state)
{
    (void)state;
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        assert_refused(&call, -EINVAL);
    }
}

/* ---- Where they must not be made ------------------------------------------------------ */

static unsigned insides; /* how often some_inside() ran */
static unsigned unwanted;

/* Every kind, from inside; counts the answers that are not -EDEADLK. */
static void some_inside(void)
{
    insides++;
    for (int kind = 0; kind < CALL_KINDS; kind++) {
        struct call call = call_of((enum call_kind)kind);

        call.lane = insides % LANES;
        unwanted += call_make(&call) != -EDEADLK;
    }
}

static void inside_user(void *user)
{
    (void)user;
    some_inside();
}

static void inside_callback(void *user, int result)
{
    (void)user;
    (void)result;
    some_inside();
}

static void inside_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    (void)io;
    some_inside();
}

static void inside_cancel(void *user, uint64_t id)
{
    (void)user;
    (void)id;
    some_inside();
}

static void inside_event(struct env *e, const blkrepl_event *event)
{
    (void)e;
    (void)event;
    some_inside();
}

static void inside_log(void *user, uint32_t level, const char *line)
{
    (void)user;
    (void)level;
    (void)line;
    some_inside();
}

static void assert_ran_inside(const char *where)
{
    if (insides == 0 || unwanted > 0) {
        fail_msg("%s: ran %u times, %u calls were not refused", where, insides, unwanted);
    }
    insides = 0;
}

/* In callbacks that a poll runs, and in those that another blocking call runs. */
static void not_inside_callbacks_and_releases(void **state)
{
    const blkrepl_completion callback = {inside_callback, NULL, NULL};
    const blkrepl_completion release = {inside_callback, NULL, inside_user};
    struct call flush = call_of(CALL_FLUSH);

    (void)state;
    ASSERT_CODE(blkrepl_image_flush(image, 0, &callback), 0);
    env_drain(&env);
    assert_ran_inside("callback");
    ASSERT_CODE(blkrepl_image_flush(image, 1, &callback), 0);
    ASSERT_CODE(call_make(&flush), 0);
    while (insides == 0) {
        blkrepl_poll(env.ctx, 1, 0);
    }
    assert_ran_inside("callback in a blocking call");
    ASSERT_CODE(blkrepl_image_flush(image, LANES, &release), -EINVAL);
    assert_ran_inside("release of what was rejected");
}

static void not_inside_submit_and_cancel(void **state)
{
    struct call read = call_of(CALL_READ);
    blkrepl_image *target;
    blkrepl_job *job;

    (void)state;
    disk.on_submit = inside_submit;
    ASSERT_CODE(call_make(&read), 0);
    assert_ran_inside("submit");
    disk.on_submit = NULL;

    disk.on_cancel = inside_cancel;
    disk.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &target), 0);
    ASSERT_CODE(blkrepl_backup_start(image, target, NULL, &job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_ran_inside("cancel");
    tape_release(&disk, &env);
    blkrepl_job_free(job);
    blkrepl_image_close(target);
    env_drain(&env);
}

static void not_inside_close_events_and_log(void **state)
{
    blkrepl_image_options o = {.struct_size = sizeof o, .release = inside_user};
    struct tape other;
    blkrepl_image *target;
    blkrepl_job *job;

    (void)state;
    tape_init(&other, SIZE);
    other.lanes = LANES;
    other.on_close = inside_user;
    target = tape_open(&other, &env);
    blkrepl_image_close(target);
    env_drain(&env);
    assert_ran_inside("close");
    tape_close(&other);

    env.on_event = inside_event;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, &o, &target), 0);
    ASSERT_CODE(blkrepl_backup_start(image, target, NULL, &job), 0);
    env_drain(&env);
    assert_ran_inside("event");
    env.on_event = NULL;
    blkrepl_job_free(job);
    blkrepl_image_close(target);
    env_drain(&env);
    assert_ran_inside("release of an image's user");
}

static void not_inside_the_log(void **state)
{
    blkrepl_hooks hooks = {.struct_size = sizeof hooks, .log = inside_log};
    blkrepl_context_options o = {.struct_size = sizeof o, .lane_count = LANES, .hooks = &hooks};
    blkrepl_image *images[2];
    blkrepl_context *ctx;
    blkrepl_job *job;

    (void)state;
    ASSERT_CODE(blkrepl_context_create(&o, &ctx), 0);
    ASSERT_CODE(blkrepl_image_open_memory(ctx, SIZE, NULL, &images[0]), 0);
    ASSERT_CODE(blkrepl_image_open_memory(ctx, SIZE, NULL, &images[1]), 0);
    ASSERT_CODE(blkrepl_backup_start(images[0], images[1], NULL, &job), 0);
    image = images[0];
    while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
        blkrepl_poll(ctx, 0, SECOND);
    }
    assert_ran_inside("log");
    blkrepl_job_free(job);
    blkrepl_image_close(images[0]);
    blkrepl_image_close(images[1]);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, SECOND / 1000);
    }
}

/* ---- Fork ------------------------------------------------------------------------------ */

static int threads_count(void)
{
    DIR *dir = opendir("/proc/self/task");
    int count = 0;

    assert_non_null(dir);
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        count += e->d_name[0] != '.';
    }
    closedir(dir);
    return count;
}

/* All of the child's work; the number of the first thing that went wrong. */
static int child_main(blkrepl_context *ctx, blkrepl_image *file)
{
    struct call write = call_of(CALL_WRITE), read = call_of(CALL_READ), flush = call_of(CALL_FLUSH);
    uint8_t got[512];
    int rc = -EBUSY;

    write.image = read.image = flush.image = file;
    fill(buffer, 512, 512, 9);
    read.memory = got;
    if (call_make(&write) || call_make(&flush) || call_make(&read)) {
        return 1;
    }
    if (memcmp(got, buffer, sizeof got)) {
        return 2;
    }
    blkrepl_image_close(file);
    while ((rc = blkrepl_context_free(ctx)) == -EBUSY) {
        blkrepl_poll(ctx, 0, SECOND / 1000);
    }
    return rc ? 3 : 0;
}

/* Both sides of a fork have all they need; the pool comes with a request. */
static void a_host_may_fork_before_its_first_request(void **state)
{
    blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = SIZE};
    blkrepl_context_options o = {.struct_size = sizeof o, .lane_count = LANES};
    struct call read, flush;
    char path[] = "/tmp/blkrepl-XXXXXX";
    blkrepl_image *file;
    blkrepl_context *ctx;
    int status = -1;

    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    int before = threads_count();
    ASSERT_CODE(blkrepl_context_create(&o, &ctx), 0);
    ASSERT_CODE(blkrepl_image_open_file(ctx, path, &create, NULL, &file), 0);
    assert_int_equal(threads_count(), before);
    pid_t child = fork();
    if (child == 0) {
        _exit(child_main(ctx, file));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);

    image = file;
    flush = call_of(CALL_FLUSH);
    ASSERT_CODE(call_make(&flush), 0);
    assert_true(threads_count() > before);
    uint8_t want[512];
    fill(want, sizeof want, 512, 9);
    read = call_of(CALL_READ);
    ASSERT_CODE(call_make(&read), 0);
    assert_memory_equal(buffer, want, sizeof want);
    blkrepl_image_close(file);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, SECOND / 1000);
    }
    close(fd);
    unlink(path);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_host_may_fork_before_its_first_request),
        TEST(data_goes_where_it_should),
        TEST(zeroes_discard_flush_and_status_answer),
        TEST(errors_of_the_backend_come_back),
        TEST(eagain_of_a_backend_is_a_result),
        TEST(nothing_at_all_is_legal),
        TEST(an_idle_image_says_go_at_once),
        TEST(what_every_call_refuses),
        TEST(what_some_calls_refuse),
        TEST(a_read_only_image_refuses_writes),
        TEST(the_target_of_a_job_refuses_writes),
        TEST(a_context_that_is_being_freed_refuses_all),
        cmocka_unit_test_setup_teardown(a_clock_of_the_host_cannot_be_waited_for, set_up_clock,
                                        tear_down),
        TEST(not_inside_callbacks_and_releases),
        TEST(not_inside_submit_and_cancel),
        TEST(not_inside_close_events_and_log),
        cmocka_unit_test(not_inside_the_log),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
