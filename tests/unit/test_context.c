/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "core/context.h"

#include <fcntl.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include "unit/fault.h"
#include "unit/rig.h"

#ifdef __linux__

static struct {
    struct fault open;
    struct fault read; /* err 0: an answer that is too short */
    struct fault eventfd;
    struct fault mutex;
} fake;

int open(const char *path, int flags, ...)
{
    int (*real)(const char *path, int flags);

    if (fault_due(&fake.open)) {
        return -1;
    }
    fault_real(&real, "open64", "open"); /* nothing here creates a file */
    return real(path, flags);
}

ssize_t read(int fd, void *data, size_t bytes)
{
    ssize_t (*real)(int fd, void *data, size_t bytes);

    if (fault_due(&fake.read)) {
        return fake.read.err == 0 ? 3 : -1;
    }
    fault_real(&real, "read", "read");
    return real(fd, data, bytes);
}

int eventfd(unsigned count, int flags)
{
    int (*real)(unsigned count, int flags);

    if (fault_due(&fake.eventfd)) {
        return -1;
    }
    fault_real(&real, "eventfd", "eventfd");
    return real(count, flags);
}

int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
{
    int (*real)(pthread_mutex_t * mutex, const pthread_mutexattr_t *attributes);

    if (fault_due(&fake.mutex)) {
        return fake.mutex.err;
    }
    fault_real(&real, "pthread_mutex_init", "pthread_mutex_init");
    return real(mutex, attributes);
}

#endif

static void context_takes_zero_for_the_defaults(void **state)
{
    blkrepl_context *ctx;

    (void)state;
    assert_int_equal(blkrepl_context_create(NULL, &ctx), 0);
    assert_int_equal(ctx->lane_count, 1);
    assert_int_equal(ctx->requests_max, 1024);
    assert_int_equal(ctx->job_requests.count, 8192);
    assert_int_equal(ctx->callbacks_max, 256);
    assert_int_equal(ctx->completions_max, 256);
    assert_int_equal(ctx->copies_max, 16);
    assert_true(ctx->memory_bytes_max == UINT64_C(1) << 30);
    assert_int_equal(ctx->slot_count, 1024 + 8192);
    assert_true(blkrepl_context_now(ctx) > 0);
    assert_int_equal(blkrepl_context_free(ctx), 0);
    assert_int_equal(blkrepl_context_free(NULL), 0);
}

/* Create with one thing wrong. */
static void refuse(struct rig *rig, const blkrepl_context_options *options, int code)
{
    blkrepl_context *ctx = (blkrepl_context *)(void *)rig;
    unsigned before = rig->sink_released;

    assert_int_equal(blkrepl_context_create(options, &ctx), code);
    assert_null(ctx);
    assert_int_equal(rig->sink_released, before + 1);
    assert_int_equal(rig->heap.live, 0);
}

static void context_refuses_bad_options_and_releases_the_sink(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;
    blkrepl_context_options good = rig_options(&rig, NULL, &hooks, &allocator);
    blkrepl_context_options o;

    (void)state;
    o = good;
    o.flags = 1;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.reserved0 = 1;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.reserved1 = &o;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.lane_count = 257;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.lane_count = 256; /* with the jobs' one too many */
    o.requests_max = 65536;
    o.job_requests_max = 1;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.requests_max = 65537;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.job_requests_max = 65537;
    refuse(&rig, &o, -EINVAL);
    o = good;
    o.pool_threads_max = 65;
    refuse(&rig, &o, -EINVAL);
    hooks.flags = 1;
    refuse(&rig, &good, -EINVAL);
    hooks.flags = 0;
    hooks.struct_size = 8;
    refuse(&rig, &good, -EINVAL);
    hooks.struct_size = sizeof hooks;
    allocator.zalloc = NULL;
    refuse(&rig, &good, -EINVAL);
    allocator = heap_allocator(&rig.heap);
    assert_int_equal(blkrepl_context_create(&good, NULL), -EINVAL);
    o = good;
    o.struct_size = 8; /* too small for the sink to be in it */
    assert_int_equal(blkrepl_context_create(&o, &rig.ctx), -EINVAL);
    assert_int_equal(rig.sink_released, 12);
    o = good;
    o.lane_count = 1;
    o.requests_max = o.job_requests_max = 65536;
    rig.sink_released = 0;
    assert_int_equal(blkrepl_context_create(&o, &rig.ctx), 0);
    rig_close(&rig);
}

static int no_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    (void)out;
    (void)bytes;
    return -ENODEV;
}

static void context_passes_the_entropy_hook_s_code_on_or_takes_its_seed(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;
    blkrepl_context_options o = rig_options(&rig, NULL, &hooks, &allocator);

    (void)state;
    assert_int_equal(blkrepl_context_create(&o, &rig.ctx), 0);
    assert_true(rig.ctx->seed == UINT64_C(0x5a5a5a5a5a5a5a5a));
    rig_close(&rig);
    hooks.entropy = no_entropy;
    refuse(&rig, &o, -ENODEV);
}

static void context_that_gets_no_memory_leaks_none(void **state)
{
    int rc = -ENOMEM;

    (void)state;
    for (uint64_t n = 1; rc == -ENOMEM && n < 10; n++) {
        struct rig rig = {.no_log = true, .heap = {.fail_at = n}};
        blkrepl_hooks hooks;
        blkrepl_allocator allocator;
        blkrepl_context_options o = rig_options(&rig, NULL, &hooks, &allocator);

        rc = blkrepl_context_create(&o, &rig.ctx);
        if (rc == 0) {
            assert_int_equal(n, 4);
            rig_close(&rig);
        }
        assert_int_equal(rig.heap.live, 0);
        assert_int_equal(rig.sink_released, 1);
    }
    assert_int_equal(rc, 0);
}

#ifdef __linux__

/* The number of the next descriptor: the same as before if none was left open. */
static int next_fd(void)
{
    int fd = dup(STDIN_FILENO);

    assert_true(fd >= 0);
    close(fd);
    return fd;
}

static void context_says_what_the_system_refuses(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;
    blkrepl_context_options o = rig_options(&rig, NULL, &hooks, &allocator);
    int fd = next_fd();

    (void)state;
    fake.eventfd = (struct fault){.err = EMFILE, .times = 1};
    refuse(&rig, &o, -EMFILE);
    assert_non_null(strstr(blkrepl_error_message(), "wake-up descriptor"));
    fake.mutex = (struct fault){.err = EAGAIN, .times = 1};
    refuse(&rig, &o, -ENOMEM);
    assert_int_equal(next_fd(), fd);
    o.lane_count = 4;
    for (unsigned made = 0; made < 4; made++) {
        fake.eventfd = (struct fault){.err = EMFILE, .after = made, .times = 1};
        refuse(&rig, &o, -EMFILE);
        assert_int_equal(next_fd(), fd);
    }
    fake.mutex = (struct fault){.err = EAGAIN, .times = 1};
    refuse(&rig, &o, -ENOMEM);
    assert_int_equal(next_fd(), fd);
    hooks.entropy = NULL; /* then it is the system's */
    fake.open = (struct fault){.err = ENFILE, .times = 1};
    refuse(&rig, &o, -ENFILE);
    assert_non_null(strstr(blkrepl_error_message(), "/dev/urandom"));
    fake.read = (struct fault){.err = EIO, .times = 1};
    refuse(&rig, &o, -EIO);
    fake.read = (struct fault){.err = 0, .times = 1};
    refuse(&rig, &o, -EIO);
    assert_int_equal(next_fd(), fd);
    rig.sink_released = 0;
    assert_int_equal(blkrepl_context_create(&o, &rig.ctx), 0);
    rig_close(&rig);
}

#endif

static void context_time_never_runs_backwards(void **state)
{
    struct rig rig = {.no_log = true};

    (void)state;
    rig_open(&rig, NULL);
    rig.now = 500;
    assert_true(blkrepl_context_now(rig.ctx) == 500);
    rig.now = 400;
    assert_true(blkrepl_context_now(rig.ctx) == 500);
    rig.now = 501;
    assert_true(blkrepl_context_now(rig.ctx) == 501);
    rig.now = UINT64_MAX; /* whatever the host's clock says */
    assert_true(blkrepl_context_now(rig.ctx) == UINT64_MAX);
    rig_poll(&rig);
    assert_true(blkrepl_context_now(NULL) == 0);
    rig_close(&rig);
}

static void context_free_names_what_remains(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    struct done done;
    blkrepl_completion c = done_of(&done);
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, MIB);
    script.hold = 0x7e;
    image = script_open(&script, &rig);
    assert_int_equal(blkrepl_image_flush(image, 0, &c), 0);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(),
                        "context: 1 image, 0 bitmap, 0 job and 0 group handles are open");
    assert_int_equal(script.cancels, 1); /* nobody wants it any more */
    assert_true(script.cancelled == script.waiting[0]->id);
    blkrepl_image_close(image);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_int_equal(script.cancels, 1); /* told once */
    assert_string_equal(blkrepl_error_message(), "context: 1 requests or brackets have not ended");
    assert_int_equal(rig.sink_released, 0);
    script_end(&script, 0, -ECANCELED);
    ASSERT_PENDING(&done);
    rig_close(&rig); /* the free polls */
    done_assert(&done, -ECANCELED);
    script_fini(&script);
}

static void context_free_notices_other_threads(void **state)
{
    struct rig rig = {.no_log = true};

    (void)state;
    rig_open(&rig, NULL);
    rig.ctx->inside++;
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    rig.ctx->inside--;
    atomic_fetch_add(&rig.ctx->lanes[0].completing, 1);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    atomic_fetch_sub(&rig.ctx->lanes[0].completing, 1);
    atomic_store(&rig.ctx->lanes[0].polling, true);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    atomic_store(&rig.ctx->lanes[0].polling, false);
    rig_close(&rig);
}

struct stay {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    blkrepl_image *image;
    bool entered;
    bool left;
};

static struct stay stay = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void stay_inside(struct script *script)
{
    (void)script;
    pthread_mutex_lock(&stay.lock);
    stay.entered = true;
    pthread_cond_broadcast(&stay.changed);
    while (!stay.left) {
        pthread_cond_wait(&stay.changed, &stay.lock);
    }
    pthread_mutex_unlock(&stay.lock);
}

static void *flush_thread(void *arg)
{
    blkrepl_completion c = done_of(arg);
    int rc = blkrepl_image_flush(stay.image, 0, &c);

    return rc == 0 ? NULL : arg;
}

/* Everything has ended but a thread of the host's is still inside the backend:
 * closing it, and freeing the context, has to wait. */
static void context_free_waits_for_who_is_inside_a_backend(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    struct done done;
    pthread_t thread;
    void *failed;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, MIB);
    stay.image = script_open(&script, &rig);
    script.hold = 0x7e;
    script.inside = stay_inside;
    assert_int_equal(pthread_create(&thread, NULL, flush_thread, &done), 0);
    pthread_mutex_lock(&stay.lock);
    while (!stay.entered) {
        pthread_cond_wait(&stay.changed, &stay.lock);
    }
    pthread_mutex_unlock(&stay.lock);
    script_end(&script, 0, 0); /* while submit has not returned */
    rig_poll(&rig);
    done_assert(&done, 0);
    blkrepl_image_close(stay.image);
    rig_poll(&rig);
    assert_int_equal(script.closed, 0);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(),
                        "context: a job winds up or a backend is being closed");
    pthread_mutex_lock(&stay.lock);
    stay.left = true;
    pthread_cond_broadcast(&stay.changed);
    pthread_mutex_unlock(&stay.lock);
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    rig_close(&rig);
    script_fini(&script);
}

static void note_release(void *user)
{
    ++*(unsigned *)user;
}

/* The last callbacks belong to the thread that polls. */
static void context_free_leaves_callbacks_to_who_polls(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    unsigned released = 0;
    blkrepl_image_options o = {.struct_size = sizeof o, .user = &released, .release = note_release};
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, MIB);
    script.ctx = rig.ctx;
    script.opened = true;
    assert_int_equal(blkrepl_image_open(rig.ctx, &script_ops, &script, &o, &image), 0);
    blkrepl_image_close(image);
    atomic_store(&rig.ctx->lanes[0].polling, true);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(),
                        "context: a job winds up or a backend is being closed");
    assert_int_equal(released, 0);
    atomic_store(&rig.ctx->lanes[0].polling, false);
    rig_close(&rig);
    assert_int_equal(released, 1);
    script_fini(&script);
}

/* Each lane by itself: one that is polled keeps its callbacks for its poller. */
static void context_free_leaves_a_lane_to_who_polls_it(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    struct done done[3];
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, &(blkrepl_context_options){.lane_count = 3});
    script_init(&script, MIB);
    image = script_open(&script, &rig);
    for (uint32_t lane = 0; lane < 3; lane++) {
        blkrepl_completion c = done_of(&done[lane]);

        assert_int_equal(blkrepl_image_flush(image, lane, &c), 0);
    }
    blkrepl_image_close(image);
    atomic_store(&rig.ctx->lanes[1].polling, true);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(), "context: 1 requests or brackets have not ended");
    done_assert(&done[0], 0);
    ASSERT_PENDING(&done[1]);
    done_assert(&done[2], 0);
    atomic_store(&rig.ctx->lanes[1].polling, false);
    assert_int_equal(blkrepl_poll(rig.ctx, 1, 0), 1);
    atomic_store(&rig.ctx->lanes[2].polling, true); /* not even then */
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_string_equal(blkrepl_error_message(), "context: another thread is inside a call");
    atomic_store(&rig.ctx->lanes[2].polling, false);
    rig_close(&rig);
    done_assert(&done[1], 0);
    script_fini(&script);
}

static struct machine *shut_order[2];
static unsigned shut_count;

static void note_shut(struct machine *machine)
{
    shut_order[shut_count++] = machine;
}

static void context_free_shuts_jobs_down_once_and_wakes_pollers(void **state)
{
    struct rig rig = {.no_log = true};
    struct machine machines[2] = {{.shut_down = note_shut}, {.shut_down = note_shut}};

    (void)state;
    rig_open(&rig, NULL);
    shut_count = 0;
    list_append(&rig.ctx->jobs, &machines[0].all);
    list_append(&rig.ctx->jobs, &machines[1].all);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_true(rig.ctx->shut);
    assert_int_equal(shut_count, 2);
    assert_ptr_equal(shut_order[0], &machines[0]);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_int_equal(shut_count, 2);
    list_remove(&machines[0].all);
    list_remove(&machines[1].all);
    rig_close(&rig);
}

static unsigned helper_freed;

static void note_helper_free(void *user)
{
    (void)user;
    helper_freed++;
}

static void context_free_frees_its_helper(void **state)
{
    struct rig rig = {.no_log = true};

    (void)state;
    rig_open(&rig, NULL);
    helper_freed = 0;
    rig.ctx->helper = (struct helper){.user = &rig, .free = note_helper_free};
    rig_close(&rig);
    assert_int_equal(helper_freed, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(context_takes_zero_for_the_defaults),
        cmocka_unit_test(context_refuses_bad_options_and_releases_the_sink),
        cmocka_unit_test(context_passes_the_entropy_hook_s_code_on_or_takes_its_seed),
        cmocka_unit_test(context_that_gets_no_memory_leaks_none),
#ifdef __linux__
        cmocka_unit_test(context_says_what_the_system_refuses),
#endif
        cmocka_unit_test(context_time_never_runs_backwards),
        cmocka_unit_test(context_free_names_what_remains),
        cmocka_unit_test(context_free_notices_other_threads),
        cmocka_unit_test(context_free_waits_for_who_is_inside_a_backend),
        cmocka_unit_test(context_free_leaves_callbacks_to_who_polls),
        cmocka_unit_test(context_free_leaves_a_lane_to_who_polls_it),
        cmocka_unit_test(context_free_shuts_jobs_down_once_and_wakes_pollers),
        cmocka_unit_test(context_free_frees_its_helper),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
