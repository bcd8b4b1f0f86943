/* SPDX-License-Identifier: MIT */
/* Backends that copy among themselves: a backup lets them, no guest waits for
 * it, and the first refusal ends it. */
#include "tape.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#define BYTES (16 * CLUSTER)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static uint8_t *start;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, BYTES);
    tape_init(&copy, BYTES);
    tape_fill(&disk, 1);
    tape_fill(&copy, 2);
    disk.info.copy_domain = copy.info.copy_domain = &env;
    copy.info.opcodes |= BIT(BLKREPL_OP_COPY_FROM);
    copy.hold = BIT(BLKREPL_OP_COPY_FROM);
    start = tape_copy(&disk);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    free(start);
    return 0;
}

static blkrepl_job *begin(uint32_t flags)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .flags = flags, .chunk_bytes_max = 4 * CLUSTER, .workers_max = 2};
    blkrepl_job *job = NULL;

    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    return job;
}

static void assert_done(blkrepl_job *job, uint64_t offloaded_bytes)
{
    blkrepl_job_info info = job_info(job);

    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, BLKREPL_RESULT_DONE);
    assert_int_equal(info.bytes_done, BYTES);
    assert_int_equal(info.offloaded_bytes, offloaded_bytes);
    assert_int_equal(info.error_count, 0);
    assert_same(copy.data, start, BYTES, "target");
    blkrepl_job_free(job);
}

static void data_go_from_backend_to_backend(void **state)
{
    blkrepl_job *job = begin(0);

    (void)state;
    assert_int_equal(tape_pending(&copy, BLKREPL_OP_COPY_FROM), 2);
    assert_int_equal(job_info(job).offloaded_bytes, 0);
    tape_finish(&copy, 0, 0);
    env_drain(&env);
    assert_int_equal(job_info(job).offloaded_bytes, 4 * CLUSTER);
    tape_release(&copy, &env);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_READ), 0);
    assert_done(job, BYTES);
}

static void the_first_refusal_is_the_last(void **state)
{
    blkrepl_job *job = begin(0);

    (void)state;
    tape_finish(&copy, 0, -EXDEV);
    tape_release(&copy, &env);
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_COPY_FROM), 2); /* that were out by then */
    assert_done(job, 4 * CLUSTER);
}

static void no_offload_means_none(void **state)
{
    blkrepl_job *job = begin(BLKREPL_BACKUP_NO_OFFLOAD);

    (void)state;
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_COPY_FROM), 0);
    assert_done(job, 0);
    assert_done(begin(BLKREPL_BACKUP_DETECT_ZEROES), 0); /* data have to be looked at */
}

/* The copy never ends, but the guest's write does; and when it ends at last, with
 * the guest's new data, these are not in the backup. */
static void a_guest_does_not_wait_for_it(void **state)
{
    blkrepl_job *job = begin(0);
    uint8_t data[3 * CLUSTER];

    (void)state;
    fill(data, sizeof data, 0, 77);
    assert_int_equal(write_now(&env, source, CLUSTER / 2, data, sizeof data), 0);
    assert_int_equal(write_now(&env, source, 7 * CLUSTER, data, 100), 0);
    assert_int_equal(copy.cancels, 2);
    assert_int_equal(tape_pending(&copy, 0), 2);
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_WRITE), 0); /* they would overlap */
    assert_int_equal(job_info(job).bytes_done, 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).guest_copies_count, 5);
    assert_done(job, BYTES - 5 * CLUSTER);
}

static void a_cancelled_job_ends_when_the_copy_has_ended(void **state)
{
    blkrepl_job *job = begin(0);
    uint8_t data[100] = {0};

    (void)state;
    assert_int_equal(write_now(&env, source, 0, data, sizeof data), 0); /* one is void */
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    tape_finish(&copy, 1, -ECANCELED);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    tape_finish(&copy, 0, 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
    blkrepl_job_free(job);
}

/* A backend that was compiled before the domain was there has none: its part of
 * the info ends before it. */
static int old_get_info(void *user, blkrepl_backend_info *info)
{
    struct tape *t = user;
    uint32_t size = info->struct_size;

    t->get_infos++;
    assert_true(size > offsetof(blkrepl_backend_info, copy_bytes_max));
    memcpy(info, &t->info, offsetof(blkrepl_backend_info, copy_bytes_max));
    info->struct_size = size;
    return 0;
}

static void a_backend_that_does_not_know_of_it_is_not_asked(void **state)
{
    blkrepl_backend_ops ops = tape_ops;
    static struct tape old;
    blkrepl_job *job;

    (void)state;
    blkrepl_image_close(target);
    env_drain(&env);
    tape_close(&copy);
    tape_init(&old, BYTES);
    old.info.copy_domain = &env;
    old.info.opcodes |= BIT(BLKREPL_OP_COPY_FROM);
    ops.get_info = old_get_info;
    target = tape_open_as(&old, &env, &ops, NULL);
    job = begin(0);
    assert_int_equal(tape_submitted(&old, BLKREPL_OP_COPY_FROM), 0);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(old.data, start, BYTES, "target");
    blkrepl_job_free(job);
    blkrepl_image_close(target);
    env_drain(&env);
    tape_close(&old);
    tape_init(&copy, 0);
    target = tape_open(&copy, &env);
}

/* ---- The bundled backends ------------------------------------------------------- */

/* The pool's threads complete, too. */
static int wait_for(const struct req *req)
{
    while (REQ_PENDING(req)) {
        env_drain(&env);
        sched_yield();
    }
    return req->result;
}

static int put(blkrepl_image *image, uint64_t offset, const void *data, size_t bytes)
{
    struct req req = {0};

    ASSERT_CODE(req_write(&req, image, offset, data, bytes), 0);
    return wait_for(&req);
}

static int get(blkrepl_image *image, void *out, size_t bytes)
{
    struct req req = {0};

    ASSERT_CODE(req_read(&req, image, 0, out, bytes), 0);
    return wait_for(&req);
}

/* 5 of the 16 clusters hold data. */
static void back_up(blkrepl_image *from, blkrepl_image *to, uint32_t flags, uint64_t least,
                    uint64_t most)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .flags = flags};
    uint8_t *want = calloc(1, BYTES), *got = malloc(BYTES);
    blkrepl_job *job = NULL;
    blkrepl_job_info info;

    fill(want + 3 * CLUSTER, 5 * CLUSTER, 0, 5);
    assert_int_equal(put(from, 3 * CLUSTER, want + 3 * CLUSTER, 5 * CLUSTER), 0);
    fill(got, BYTES, 0, 6);
    assert_int_equal(put(to, 0, got, BYTES), 0);
    ASSERT_CODE(blkrepl_backup_start(from, to, &o, &job), 0);
    while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
        env_drain(&env);
        sched_yield();
    }
    info = job_info(job);
    assert_int_equal(info.result, BLKREPL_RESULT_DONE);
    assert_in_range(info.offloaded_bytes, least, most);
    assert_int_equal(get(to, got, BYTES), 0);
    assert_same(got, want, BYTES, "target");
    blkrepl_job_free(job);
    blkrepl_image_close(from);
    blkrepl_image_close(to);
    free(want);
    free(got);
}

static void memory_images_copy_among_themselves(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= BLKREPL_BACKUP_NO_OFFLOAD; flags++) {
        blkrepl_image *from = NULL, *to = NULL;
        uint64_t want = flags == 0 ? 5 * CLUSTER : 0;

        ASSERT_CODE(blkrepl_image_open_memory(env.ctx, BYTES, NULL, &from), 0);
        ASSERT_CODE(blkrepl_image_open_memory(env.ctx, BYTES, NULL, &to), 0);
        back_up(from, to, flags, want, want);
    }
}

/* Whether the kernel does it is its affair; with the flag it is not asked. */
static void files_copy_among_themselves(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= BLKREPL_BACKUP_NO_OFFLOAD; flags++) {
        blkrepl_file_options create = {
            .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = BYTES};
        blkrepl_image *from = NULL, *to = NULL;
        char path[2][64];

        for (int i = 0; i < 2; i++) {
            snprintf(path[i], sizeof path[i], "./blkrepl-offload-%d-%ld", i, (long)getpid());
            remove(path[i]);
        }
        ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[0], &create, NULL, &from), 0);
        ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[1], &create, NULL, &to), 0);
        back_up(from, to, flags, 0, flags == 0 ? BYTES : 0);
        remove(path[0]);
        remove(path[1]);
    }
}

/* From a file to memory: no domain in common. */
static void unlike_images_go_through_buffers(void **state)
{
    blkrepl_image *to = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, BYTES, NULL, &to), 0);
    ASSERT_CODE(blkrepl_backup_start(source, to, NULL, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_int_equal(job_info(job).offloaded_bytes, 0);
    blkrepl_job_free(job);
    blkrepl_image_close(to);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(data_go_from_backend_to_backend),
        T(the_first_refusal_is_the_last),
        T(no_offload_means_none),
        T(a_guest_does_not_wait_for_it),
        T(a_cancelled_job_ends_when_the_copy_has_ended),
        T(a_backend_that_does_not_know_of_it_is_not_asked),
        T(memory_images_copy_among_themselves),
        T(files_copy_among_themselves),
        T(unlike_images_go_through_buffers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
