/* SPDX-License-Identifier: MIT */
#include "block/image.h"

#include "unit/rig.h"

#include <dirent.h>
#include <unistd.h>

static char path[64];

static int make_path(void **state)
{
    int fd;

    (void)state;
    snprintf(path, sizeof path, "/tmp/blkrepl-unit-XXXXXX");
    fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static unsigned descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    if (dir == NULL) {
        return 0; /* no such thing here: nothing to compare */
    }
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static unsigned released;

static void note_release(void *user)
{
    (void)user;
    released++;
}

static const blkrepl_file_options create = {
    .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = 8192};

static blkrepl_image_options options_of(uint32_t flags)
{
    released = 0;
    return (blkrepl_image_options){
        .struct_size = sizeof(blkrepl_image_options), .flags = flags, .release = note_release};
}

static void open_memory_gives_an_image_of_zeroes(void **state)
{
    struct rig rig = {.no_log = true};
    unsigned char memory[64];
    blkrepl_iovec iov = {memory, sizeof memory};
    struct done done;
    blkrepl_completion c = done_of(&done);
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl_image_open_memory(rig.ctx, BLKREPL_IMAGE_BYTES_MAX, NULL, &image), 0);
    memset(memory, 0xff, sizeof memory);
    assert_int_equal(blkrepl_image_read(image, 0, BLKREPL_IMAGE_BYTES_MAX - 64, &iov, 1, 0, &c), 0);
    rig_poll(&rig);
    done_assert(&done, 0);
    for (size_t i = 0; i < sizeof memory; i++) {
        assert_int_equal(memory[i], 0);
    }
    blkrepl_image_close(image);
    rig_close(&rig);
}

static void open_refuses_bad_arguments_and_releases(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_image_options o = options_of(0);
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl_image_open_memory(NULL, 1, &o, &image), -EINVAL);
    assert_int_equal(blkrepl_image_open_memory(rig.ctx, 1, &o, NULL), -EINVAL);
    assert_int_equal(
        blkrepl_image_open_memory(rig.ctx, (uint64_t)BLKREPL_IMAGE_BYTES_MAX + 1, &o, &image),
        -EINVAL);
    assert_int_equal(released, 3);
    assert_int_equal(blkrepl_image_open_file(NULL, path, NULL, &o, &image), -EINVAL);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, NULL, NULL, &o, &image), -EINVAL);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, NULL, &o, NULL), -EINVAL);
    assert_int_equal(released, 6);
    o = options_of(8);
    assert_int_equal(blkrepl_image_open_memory(rig.ctx, 1, &o, &image), -EINVAL);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, NULL, &o, &image), -EINVAL);
    assert_null(image);
    assert_int_equal(released, 2);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, "/nowhere/at/all", NULL, NULL, &image),
                     -ENOENT);
    assert_non_null(strstr(blkrepl_error_message(), "/nowhere/at/all"));
    rig_close(&rig);
}

/* Of options that are too small nothing but their size is read. */
static void open_does_not_read_beyond_small_options(void **state)
{
    struct rig rig = {.no_log = true};
    const uint32_t size = sizeof size;
    void *small = malloc(sizeof size);
    blkrepl_image *image;

    (void)state;
    assert_non_null(small);
    memcpy(small, &size, sizeof size);
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl_image_open_memory(rig.ctx, 1, small, &image), -EINVAL);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, NULL, small, &image), -EINVAL);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, small, NULL, &image), -EINVAL);
    rig_close(&rig);
    free(small);
}

static void open_file_knows_its_medium_and_shares_one_pool(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_image *one;
    blkrepl_image *two;
    void *pool;

    (void)state;
    rig_open(&rig, NULL);
    assert_null(rig.ctx->helper.user);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, &create, NULL, &one), 0);
    pool = rig.ctx->helper.user;
    assert_non_null(pool);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, NULL, NULL, &two), 0);
    assert_ptr_equal(rig.ctx->helper.user, pool);
    assert_true(one->leaf->identified && two->leaf->identified);
    assert_true(one->leaf->inode == two->leaf->inode && one->leaf->device == two->leaf->device);
    assert_int_equal(image_bytes(one), 8192);
    blkrepl_image_close(one);
    blkrepl_image_close(two);
    rig_close(&rig);
}

static void open_file_read_only_refuses_writes(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_image_options o = options_of(BLKREPL_IMAGE_READ_ONLY);
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, NULL, &o, &image), 0);
    assert_true(image->read_only);
    assert_int_equal(blkrepl_image_write_zeroes(image, 0, 0, 0, 0, NULL), -EROFS);
    blkrepl_image_close(image);
    rig_close(&rig);
}

/* Open with the nth allocation failing, until none does. */
static void open_fails_at_every_call(bool file)
{
    unsigned before = descriptors();
    int rc = -ENOMEM;

    for (uint64_t n = 1; rc == -ENOMEM && n < 30; n++) {
        struct rig rig = {.no_log = true};
        blkrepl_image_options o = options_of(0);
        blkrepl_image *image;

        rig_open(&rig, NULL);
        rig.heap.fail_at = rig.heap.calls + n;
        rc = file ? blkrepl_image_open_file(rig.ctx, path, &create, &o, &image)
                  : blkrepl_image_open_memory(rig.ctx, MIB, &o, &image);
        rig.heap.fail_at = 0;
        assert_int_equal(released, rc != 0);
        if (rc == 0) {
            assert_true(n > 4);
            blkrepl_image_close(image);
        }
        rig_close(&rig); /* nothing is live */
        assert_int_equal(descriptors(), before);
    }
    assert_int_equal(rc, 0);
}

static void open_that_runs_out_of_memory_anywhere_leaks_nothing(void **state)
{
    (void)state;
    open_fails_at_every_call(false);
    open_fails_at_every_call(true);
}

static void open_is_refused_while_the_context_is_being_freed(void **state)
{
    struct rig rig = {.no_log = true};
    blkrepl_image *image;
    blkrepl_image *other;

    (void)state;
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl_image_open_memory(rig.ctx, 1, NULL, &image), 0);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_int_equal(blkrepl_image_open_memory(rig.ctx, 1, NULL, &other), -ESHUTDOWN);
    assert_int_equal(blkrepl_image_open_file(rig.ctx, path, NULL, NULL, &other), -ESHUTDOWN);
    assert_null(rig.ctx->helper.user); /* no pool is made any more */
    blkrepl_image_close(image);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(open_memory_gives_an_image_of_zeroes),
        cmocka_unit_test(open_refuses_bad_arguments_and_releases),
        cmocka_unit_test(open_does_not_read_beyond_small_options),
        cmocka_unit_test(open_file_knows_its_medium_and_shares_one_pool),
        cmocka_unit_test(open_file_read_only_refuses_writes),
        cmocka_unit_test(open_that_runs_out_of_memory_anywhere_leaks_nothing),
        cmocka_unit_test(open_is_refused_while_the_context_is_being_freed),
    };

    return cmocka_run_group_tests(tests, make_path, remove_path);
}
