/* SPDX-License-Identifier: MIT */
/* Files past the page cache: they hold what was written, whatever the ranges and
 * buffers are, and their size stays what it was. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

#define SIZE (3 * MIB + 777)
#define PART (150 * KIB)

static struct env env;
static char folder[256];
static char path[2][300];
static unsigned char model[SIZE];
static unsigned char data[SIZE];
static const char *missing = "no folder";

static blkrepl_image *open_file(const char *name, uint32_t flags, uint64_t bytes)
{
    blkrepl_file_options f = {.struct_size = sizeof f, .flags = flags, .bytes = bytes};
    blkrepl_image *image = NULL;

    ASSERT_CODE(blkrepl_image_open_file(env.ctx, name, &f, NULL, &image), 0);
    return image;
}

static blkrepl_image *create(const char *name, uint64_t bytes)
{
    return open_file(name, BLKREPL_FILE_CREATE | BLKREPL_FILE_DIRECT, bytes);
}

/* Whether files there can do it.  A refusal says so, and in which way. */
static bool try_folder(const char *parent)
{
    blkrepl_file_options f = {.struct_size = sizeof f,
                              .flags = BLKREPL_FILE_CREATE | BLKREPL_FILE_DIRECT};
    blkrepl_image *image = NULL;
    int rc;

    snprintf(folder, sizeof folder, "%s/file-direct-XXXXXX", parent);
    if (mkdtemp(folder) == NULL) {
        return false;
    }
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/%u", folder, i);
    }
    rc = blkrepl_image_open_file(env.ctx, path[0], &f, NULL, &image);
    if (rc == 0) {
        blkrepl_image_close(image);
        return true;
    }
    missing = "O_DIRECT is refused wherever it was tried";
    ASSERT_CODE(rc, -ENOTSUP);
    assert_null(image);
    assert_non_null(strstr(blkrepl_error_message(), "with DIRECT: Operation not supported"));
    unlink(path[0]);
    assert_int_equal(rmdir(folder), 0);
    return false;
}

static int set_up(void **state)
{
    const char *temporary = getenv("TMPDIR");
    bool found;

    (void)state;
    env_open(&env, NULL, ENV_REAL_CLOCK);
    found = try_folder(".") || (temporary != NULL && try_folder(temporary)) ||
            try_folder("/var/tmp") || try_folder("/dev/shm");
    if (!found) {
        folder[0] = '\0';
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    env_close(&env);
    if (folder[0] != '\0') {
        unlink(path[0]);
        unlink(path[1]);
        assert_int_equal(rmdir(folder), 0);
    }
    return 0;
}

static void need_folder(void)
{
    if (folder[0] == '\0') {
        print_message("skipped: %s\n", missing);
        skip();
    }
}

static void wait_for(const struct req *req)
{
    while (REQ_PENDING(req)) {
        assert_true(blkrepl_poll(env.ctx, 0, SECOND) >= 0);
    }
    req_assert_done(req, 0);
}

/* As another program sees it, and no byte longer or shorter. */
static void assert_file(const char *name, const void *want, size_t bytes)
{
    int fd = open(name, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(read(fd, data, SIZE), bytes);
    assert_int_equal(lseek(fd, 0, SEEK_END), bytes);
    close(fd);
    assert_memory_equal(data, want, bytes);
}

static void write_fua(blkrepl_image *image, uint64_t offset, void *memory, size_t bytes)
{
    blkrepl_iovec iov[2] = {{memory, bytes / 3}, {(char *)memory + bytes / 3, bytes - bytes / 3}};
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    ASSERT_CODE(blkrepl_image_write(image, 0, offset, iov, 2, BLKREPL_IO_FUA, &done), 0);
    wait_for(&req);
}

/* One request of any kind anywhere; half of them end with the image. */
static void any_request(struct rng *rng, blkrepl_image *image)
{
    uint64_t bytes = rng_below(rng, PART);
    uint64_t offset = rng_percent(rng, 50) ? SIZE - bytes : rng_below(rng, SIZE - bytes + 1);
    unsigned char *memory = data + rng_below(rng, 5000);
    struct req req = {0};

    fill(memory, bytes, offset, (unsigned)rng_below(rng, 200));
    switch (rng_below(rng, 5)) {
    case 0:
        ASSERT_CODE(req_read(&req, image, offset, memory, bytes), 0);
        wait_for(&req);
        break;
    case 1:
        memset(model + offset, 0, bytes);
        memset(memory, 0, bytes);
        ASSERT_CODE(req_zeroes(&req, image, offset, bytes), 0);
        wait_for(&req);
        break;
    case 2:
        memcpy(model + offset, memory, bytes);
        write_fua(image, offset, memory, bytes);
        break;
    default:
        memcpy(model + offset, memory, bytes);
        ASSERT_CODE(req_write(&req, image, offset, memory, bytes), 0);
        wait_for(&req);
        break;
    }
    assert_memory_equal(memory, model + offset, bytes);
}

/* "through the library any range and any buffer is good all the same" */
static void any_range_and_any_buffer_is_good(void **state)
{
    struct rng rng = {42};
    struct req req = {0};
    blkrepl_image *image;

    (void)state;
    need_folder();
    image = create(path[0], SIZE);
    memset(model, 0, SIZE);
    assert_true(image_info(image).request_alignment >= 512);
    assert_true(image_info(image).memory_alignment >= 512);
    for (int i = 0; i < (quick() ? 100 : 400); i++) {
        any_request(&rng, image);
        if (i % 50 == 0) {
            assert_file(path[0], model, SIZE);
        }
    }
    ASSERT_CODE(req_flush(&req, image), 0);
    wait_for(&req);
    assert_file(path[0], model, SIZE);
    blkrepl_image_close(image);
}

/* Many at once, each in a range of its own: the writes at the end, of which some
 * go through the page cache, leave those beside them alone. */
static void writes_beside_the_tail_leave_it_alone(void **state)
{
    enum {
        SLOTS = 24,
        SLOT = 512
    };
    static struct req reqs[SLOTS];
    struct rng rng = {7};
    uint64_t first = SIZE / SLOT * SLOT - (SLOTS - 1) * (uint64_t)SLOT;
    blkrepl_image *image;

    (void)state;
    need_folder();
    image = create(path[0], SIZE);
    memset(model, 0, SIZE);
    for (int round = 0; round < (quick() ? 10 : 60); round++) {
        for (unsigned i = 0; i < SLOTS; i++) {
            uint64_t offset = first + (uint64_t)i * SLOT;
            uint64_t bytes = i == SLOTS - 1 ? SIZE - offset : SLOT;

            reqs[i] = (struct req){0};
            fill(model + offset, bytes, offset, (unsigned)rng_below(&rng, 200));
            ASSERT_CODE(req_write(&reqs[i], image, offset, model + offset, bytes), 0);
        }
        for (unsigned i = 0; i < SLOTS; i++) {
            wait_for(&reqs[i]);
        }
        assert_file(path[0], model, SIZE);
    }
    blkrepl_image_close(image);
}

static void backup(blkrepl_image *source, blkrepl_image *target)
{
    blkrepl_job *job = NULL;

    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
        assert_true(blkrepl_poll(env.ctx, 0, SECOND) >= 0);
    }
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
}

/* From direct to direct, to buffered, and from buffered; holes included. */
static void a_backup_is_equal_byte_by_byte(void **state)
{
    (void)state;
    need_folder();
    for (unsigned how = 1; how < 4; how++) {
        blkrepl_image *source;
        int fd = open(path[0], O_RDWR | O_CREAT | O_TRUNC, 0600);

        assert_true(fd >= 0);
        memset(model, 0, SIZE);
        fill(model, MIB + 100, 0, how);
        fill(model + SIZE - 100000, 100000, 0, how + 10);
        assert_int_equal(pwrite(fd, model, MIB + 100, 0), MIB + 100);
        assert_int_equal(pwrite(fd, model + SIZE - 100000, 100000, SIZE - 100000), 100000);
        close(fd);
        source = open_file(path[0], (how & 1) != 0 ? BLKREPL_FILE_DIRECT : 0, 0);
        backup(source,
               open_file(path[1], BLKREPL_FILE_CREATE | ((how & 2) != 0 ? BLKREPL_FILE_DIRECT : 0),
                         SIZE));
        assert_file(path[1], model, SIZE);
        assert_file(path[0], model, SIZE);
        assert_int_equal(unlink(path[1]), 0);
    }
}

/* Discard, status and a read-only image work as ever. */
static void the_rest_works_as_ever(void **state)
{
    blkrepl_file_options f = {.struct_size = sizeof f, .flags = BLKREPL_FILE_DIRECT};
    blkrepl_image_options ro = {.struct_size = sizeof ro, .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_extent extents[16];
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);
    blkrepl_image *image;

    (void)state;
    need_folder();
    image = create(path[0], SIZE);
    fill(model, SIZE, 0, 9);
    ASSERT_CODE(req_write(&req, image, 0, model, SIZE), 0);
    wait_for(&req);
    req_reset(&req);
    ASSERT_CODE(req_discard(&req, image, 512 * KIB + 100, MIB), 0);
    wait_for(&req);
    req_reset(&req);
    done = req_completion(&req);
    ASSERT_CODE(blkrepl_image_status(image, 0, SIZE - 10000, 10000, extents, 16, &done), 0);
    wait_for(&req);
    assert_int_equal(extents[0].flags & BLKREPL_EXTENT_ZERO, 0);
    assert_true(extents[0].bytes > 0 && extents[0].bytes <= 10000);
    blkrepl_image_close(image);
    while (env_drain(&env) != 0) {
    }
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[0], &f, &ro, &image), 0);
    ASSERT_CODE(req_read(&req, image, SIZE - 5000, data, 5000), 0);
    wait_for(&req);
    assert_memory_equal(data, model + SIZE - 5000, 5000);
    ASSERT_CODE(req_write(&req, image, 0, data, 1), -EROFS);
    blkrepl_image_close(image);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(any_range_and_any_buffer_is_good),
        TEST(writes_beside_the_tail_leave_it_alone),
        TEST(a_backup_is_equal_byte_by_byte),
        TEST(the_rest_works_as_ever),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
