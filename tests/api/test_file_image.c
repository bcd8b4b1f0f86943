/* SPDX-License-Identifier: MIT */
/* Images over files: how they are opened, and that they hold what was written. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

#define SIZE (5 * MIB + 777)

static struct env env;
static char folder[] = "file-image-XXXXXX";
static char path[2][64];

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "file-image-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path[0], sizeof path[0], "%s/a", folder);
    snprintf(path[1], sizeof path[1], "%s/b", folder);
    env_open(&env, NULL, ENV_REAL_CLOCK);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    env_close(&env);
    unlink(path[0]);
    unlink(path[1]);
    assert_int_equal(rmdir(folder), 0);
    return 0;
}

static blkrepl_image *create(const char *name, uint64_t bytes)
{
    blkrepl_file_options f = {
        .struct_size = sizeof f, .flags = BLKREPL_FILE_CREATE, .bytes = bytes};
    blkrepl_image *image = NULL;

    ASSERT_CODE(blkrepl_image_open_file(env.ctx, name, &f, NULL, &image), 0);
    assert_int_equal(image_info(image).bytes, bytes);
    return image;
}

/* The pool's threads complete: so poll until it has. */
static void wait_for(const struct req *req)
{
    while (REQ_PENDING(req)) {
        assert_true(blkrepl_poll(env.ctx, 0, SECOND) >= 0);
    }
}

static void write_file(blkrepl_image *image, uint64_t offset, const void *data, size_t bytes)
{
    struct req req = {0};

    ASSERT_CODE(req_write(&req, image, offset, data, bytes), 0);
    wait_for(&req);
    req_assert_done(&req, 0);
}

static void read_file(blkrepl_image *image, uint64_t offset, void *out, size_t bytes)
{
    struct req req = {0};

    ASSERT_CODE(req_read(&req, image, offset, out, bytes), 0);
    wait_for(&req);
    req_assert_done(&req, 0);
}

static int try_open(const char *name, const blkrepl_file_options *f, const blkrepl_image_options *o)
{
    blkrepl_image *image = (blkrepl_image *)&env;
    int rc = blkrepl_image_open_file(env.ctx, name, f, o, &image);

    if (rc == 0) {
        assert_non_null(image);
        blkrepl_image_close(image);
    } else {
        assert_null(image);
    }
    return rc;
}

static void a_missing_file_is_enoent_and_not_created(void **state)
{
    struct stat st;

    (void)state;
    ASSERT_CODE(try_open(path[0], NULL, NULL), -ENOENT);
    assert_int_equal(stat(path[0], &st), -1);
    ASSERT_CODE(try_open("no/such/folder/x", NULL, NULL), -ENOENT);
}

static void a_folder_is_not_supported_or_an_errno(void **state)
{
    blkrepl_image_options ro = {.struct_size = sizeof ro, .flags = BLKREPL_IMAGE_READ_ONLY};

    (void)state;
    ASSERT_CODE(try_open(folder, NULL, &ro), -ENOTSUP);
    assert_true(try_open(folder, NULL, NULL) < 0);
    ASSERT_CODE(try_open("/dev/null", NULL, NULL), -ENOTSUP);
}

static void create_makes_grows_and_never_shortens(void **state)
{
    blkrepl_file_options f = {.struct_size = sizeof f, .flags = BLKREPL_FILE_CREATE, .bytes = 1000};
    struct stat st;

    (void)state;
    ASSERT_CODE(try_open(path[0], &f, NULL), 0);
    assert_int_equal(stat(path[0], &st), 0);
    assert_int_equal(st.st_size, 1000);
    assert_int_equal(st.st_mode & 0777 & ~0600u, 0);
    f.bytes = 5000;
    ASSERT_CODE(try_open(path[0], &f, NULL), 0);
    assert_int_equal(stat(path[0], &st), 0);
    assert_int_equal(st.st_size, 5000);
    f.bytes = 10;
    ASSERT_CODE(try_open(path[0], &f, NULL), 0);
    assert_int_equal(stat(path[0], &st), 0);
    assert_int_equal(st.st_size, 5000);
    blkrepl_image *image = NULL;
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[0], NULL, NULL, &image), 0);
    assert_int_equal(image_info(image).bytes, 5000);
    blkrepl_image_close(image);
}

static void exclusive_refuses_a_file_that_is_there(void **state)
{
    blkrepl_file_options f = {.struct_size = sizeof f,
                              .flags = BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE,
                              .bytes = 1000,
                              .mode = 0640};
    struct stat st;

    (void)state;
    ASSERT_CODE(try_open(path[0], &f, NULL), 0);
    f.bytes = 2000;
    ASSERT_CODE(try_open(path[0], &f, NULL), -EEXIST);
    assert_int_equal(stat(path[0], &st), 0);
    assert_int_equal(st.st_size, 1000);
    assert_int_equal(st.st_mode & 0777 & ~0640u, 0);
}

static void bad_options_are_refused(void **state)
{
    blkrepl_file_options good = {
        .struct_size = sizeof good, .flags = BLKREPL_FILE_CREATE, .bytes = 4096};
    blkrepl_file_options f;
    struct {
        blkrepl_file_options known;
        uint64_t unknown;
    } newer = {.known = good, .unknown = 1};
    struct stat st;

    (void)state;
    f = good;
    f.struct_size = sizeof f - 1;
    ASSERT_CODE(try_open(path[0], &f, NULL), -EINVAL);
    f = good;
    f.flags = 4;
    ASSERT_CODE(try_open(path[0], &f, NULL), -EINVAL);
    f = good;
    f.flags = BLKREPL_FILE_EXCLUSIVE; /* without CREATE */
    ASSERT_CODE(try_open(path[0], &f, NULL), -EINVAL);
    f = good;
    f.flags = 0; /* bytes without CREATE */
    ASSERT_CODE(try_open(path[0], &f, NULL), -EINVAL);
    f = good;
    f.queue_depth = 4097;
    ASSERT_CODE(try_open(path[0], &f, NULL), -EINVAL);
    f = good;
    f.bytes = UINT64_C(1) << 63;
    ASSERT_CODE(try_open(path[0], &f, NULL), -EINVAL);
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(try_open(path[0], &newer.known, NULL), BLKREPL_ERR_VERSION);
    assert_int_equal(stat(path[0], &st), -1); /* none of them made the file */
    f = good;
    f.queue_depth = 4096;
    ASSERT_CODE(try_open(path[0], &f, NULL), 0);
}

static void a_read_only_image_refuses_writes_and_needs_no_permission(void **state)
{
    blkrepl_image_options ro = {.struct_size = sizeof ro, .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_image *image = create(path[0], 4096);
    struct req req = {0};
    uint8_t byte = 1;

    (void)state;
    blkrepl_image_close(image);
    assert_int_equal(chmod(path[0], 0400), 0);
    if (geteuid() != 0) {
        ASSERT_CODE(try_open(path[0], NULL, NULL), -EACCES);
    }
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[0], NULL, &ro, &image), 0);
    ASSERT_CODE(req_write(&req, image, 0, &byte, 1), -EROFS);
    read_file(image, 0, &byte, 1);
    assert_int_equal(byte, 0);
    blkrepl_image_close(image);
}

static void what_is_written_is_in_the_file(void **state)
{
    blkrepl_image *image = create(path[0], SIZE);
    uint8_t *model = calloc(1, SIZE), *back = malloc(SIZE);
    struct rng rng = {.state = 8};
    struct req req = {0};

    (void)state;
    for (unsigned i = 0; i < (quick() ? 50u : 300u); i++) {
        uint64_t len = rng_below(&rng, 200000), at = rng_below(&rng, SIZE - len + 1);

        if (rng_percent(&rng, 25)) {
            memset(model + at, 0, (size_t)len);
            ASSERT_CODE(req_zeroes(&req, image, at, len), 0);
            wait_for(&req);
            req_assert_done(&req, 0);
        } else {
            fill(model + at, (size_t)len, at, i);
            write_file(image, at, model + at, (size_t)len);
        }
    }
    ASSERT_CODE(req_flush(&req, image), 0);
    wait_for(&req);
    req_assert_done(&req, 0);
    read_file(image, 0, back, SIZE);
    assert_memory_equal(back, model, SIZE);
    blkrepl_image_close(image);
    blkrepl_poll(env.ctx, 0, 0);
    FILE *file = fopen(path[0], "rb");
    assert_non_null(file);
    assert_int_equal(fread(back, 1, SIZE, file), SIZE);
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
    assert_memory_equal(back, model, SIZE);
    free(model);
    free(back);
}

static void status_finds_no_data_where_there_is_none(void **state)
{
    blkrepl_image *image = create(path[0], SIZE);
    uint8_t *back = malloc(SIZE);
    uint8_t block[5000];
    uint64_t at = 0;

    (void)state;
    fill(block, sizeof block, 0, 1);
    write_file(image, 2 * MIB + 100, block, sizeof block);
    read_file(image, 0, back, SIZE);
    while (at < SIZE) {
        blkrepl_extent extent[2] = {{0}};
        struct req req = {0};
        blkrepl_completion done = req_completion(&req);

        ASSERT_CODE(blkrepl_image_status(image, 0, at, SIZE - at, extent, 2, &done), 0);
        wait_for(&req);
        req_assert_done(&req, 0);
        assert_true(extent[0].bytes > 0);
        for (size_t i = 0; i < 2 && extent[i].bytes; i++) {
            assert_true(extent[i].bytes <= SIZE - at);
            if (extent[i].flags & BLKREPL_EXTENT_ZERO) {
                assert_true(all_zero(back + at, (size_t)extent[i].bytes));
            }
            at += extent[i].bytes;
        }
    }
    free(back);
    blkrepl_image_close(image);
}

static void many_requests_at_once_all_end(void **state)
{
    enum {
        COUNT = 500
    };
    static uint8_t data[COUNT][4096];
    static struct req req[COUNT];
    blkrepl_image *image = create(path[0], COUNT * 4096);

    (void)state;
    memset(req, 0, sizeof req);
    for (unsigned i = 0; i < COUNT; i++) {
        fill(data[i], 4096, i * 4096u, 7);
        ASSERT_CODE(req_write(&req[i], image, i * 4096u, data[i], 4096), 0);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        wait_for(&req[i]);
        req_assert_done(&req[i], 0);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        uint8_t back[4096];

        read_file(image, i * 4096u, back, sizeof back);
        assert_memory_equal(back, data[i], sizeof back);
    }
    blkrepl_image_close(image);
}

static void a_file_is_backed_up_to_a_file_while_it_is_written(void **state)
{
    blkrepl_image *source = create(path[0], SIZE), *target = create(path[1], SIZE);
    uint8_t *start = malloc(SIZE), *back = malloc(SIZE), block[3000];
    blkrepl_job *job = NULL;
    struct rng rng = {.state = 3};

    (void)state;
    fill(start, SIZE, 0, 1);
    memset(start + MIB, 0, 2 * MIB);
    write_file(source, 0, start, MIB);
    write_file(source, 3 * MIB, start + 3 * MIB, SIZE - 3 * MIB);
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t at = rng_below(&rng, SIZE - sizeof block);

        fill(block, sizeof block, at, 50 + i);
        write_file(source, at, block, sizeof block);
    }
    while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
        assert_true(blkrepl_poll(env.ctx, 0, SECOND) >= 0);
    }
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    read_file(target, 0, back, SIZE);
    assert_memory_equal(back, start, SIZE);
    free(start);
    free(back);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
}

static void one_file_opened_twice_is_no_pair_for_a_backup(void **state)
{
    blkrepl_image *first = create(path[0], 100000), *second = NULL, *linked = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[0], NULL, NULL, &second), 0);
    ASSERT_CODE(blkrepl_backup_create(first, second, NULL, &job), -EINVAL);
    assert_null(job);
    assert_int_equal(link(path[0], path[1]), 0);
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, path[1], NULL, NULL, &linked), 0);
    ASSERT_CODE(blkrepl_backup_create(first, linked, NULL, &job), -EINVAL);
    blkrepl_image_close(first);
    blkrepl_image_close(second);
    blkrepl_image_close(linked);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_missing_file_is_enoent_and_not_created),
        T(a_folder_is_not_supported_or_an_errno),
        T(create_makes_grows_and_never_shortens),
        T(exclusive_refuses_a_file_that_is_there),
        T(bad_options_are_refused),
        T(a_read_only_image_refuses_writes_and_needs_no_permission),
        T(what_is_written_is_in_the_file),
        T(status_finds_no_data_where_there_is_none),
        T(many_requests_at_once_all_end),
        T(a_file_is_backed_up_to_a_file_while_it_is_written),
        T(one_file_opened_twice_is_no_pair_for_a_backup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
