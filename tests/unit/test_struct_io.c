/* SPDX-License-Identifier: MIT */
#include "base/abi.h"
#include "base/struct_io.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define V1_BYTES 8
#define OUR_BYTES 16
#define SIZE_MAX_TRIED 40

/* A caller's struct of `bytes` bytes on the heap, so that a sanitizer sees the
 * library go beyond it: its size, then 4, 5, 6, ... up to `filled`, then 0. */
static unsigned char *struct_make(uint32_t bytes, uint32_t filled)
{
    unsigned char *memory = calloc(1, bytes);

    assert_non_null(memory);
    memcpy(memory, &bytes, sizeof bytes);
    for (uint32_t i = sizeof bytes; i < filled && i < bytes; i++) {
        memory[i] = (unsigned char)i;
    }
    return memory;
}

static uint32_t struct_size(const void *memory)
{
    uint32_t bytes;

    memcpy(&bytes, memory, sizeof bytes);
    return bytes;
}

static void expect_bytes(const unsigned char *memory, uint32_t bytes, uint32_t filled)
{
    for (uint32_t i = sizeof bytes; i < bytes; i++) {
        assert_int_equal(memory[i], i < filled ? i : 0);
    }
}

static void struct_io_in_of_null_gives_zeroes(void **state)
{
    unsigned char ours[OUR_BYTES];

    (void)state;
    memset(ours, 0xee, sizeof ours);
    assert_int_equal(blkrepl__struct_in(ours, OUR_BYTES, V1_BYTES, NULL), 0);
    assert_int_equal(struct_size(ours), OUR_BYTES);
    expect_bytes(ours, OUR_BYTES, 0);
}

static void struct_io_in_smaller_than_v1_is_einval(void **state)
{
    (void)state;
    for (uint32_t bytes = sizeof(uint32_t); bytes < V1_BYTES; bytes++) {
        unsigned char ours[OUR_BYTES];
        unsigned char untouched[OUR_BYTES];
        unsigned char *theirs = struct_make(bytes, bytes);

        memset(ours, 0xee, sizeof ours);
        memset(untouched, 0xee, sizeof untouched);
        assert_int_equal(blkrepl__struct_in(ours, OUR_BYTES, V1_BYTES, theirs), -EINVAL);
        assert_memory_equal(ours, untouched, sizeof ours);
        free(theirs);
    }
}

static void struct_io_in_with_size_zero_is_einval(void **state)
{
    unsigned char ours[OUR_BYTES];
    unsigned char *theirs = struct_make(OUR_BYTES, 0);

    (void)state;
    memset(theirs, 0, sizeof(uint32_t));
    assert_int_equal(blkrepl__struct_in(ours, OUR_BYTES, V1_BYTES, theirs), -EINVAL);
    free(theirs);
}

static void struct_io_in_copies_what_there_is_and_zeroes_the_rest(void **state)
{
    (void)state;
    for (uint32_t bytes = V1_BYTES; bytes <= OUR_BYTES; bytes++) {
        unsigned char ours[OUR_BYTES];
        unsigned char *theirs = struct_make(bytes, bytes);

        memset(ours, 0xee, sizeof ours);
        assert_int_equal(blkrepl__struct_in(ours, OUR_BYTES, V1_BYTES, theirs), 0);
        assert_int_equal(struct_size(ours), OUR_BYTES);
        expect_bytes(ours, OUR_BYTES, bytes);
        free(theirs);
    }
}

static void struct_io_in_larger_than_ours_is_fine_if_the_rest_is_zero(void **state)
{
    (void)state;
    for (uint32_t bytes = OUR_BYTES + 1; bytes <= SIZE_MAX_TRIED; bytes++) {
        unsigned char ours[OUR_BYTES];
        unsigned char *theirs = struct_make(bytes, OUR_BYTES);

        assert_int_equal(blkrepl__struct_in(ours, OUR_BYTES, V1_BYTES, theirs), 0);
        assert_int_equal(struct_size(ours), OUR_BYTES);
        expect_bytes(ours, OUR_BYTES, OUR_BYTES);
        free(theirs);
    }
}

static void struct_io_in_with_any_unknown_byte_set_is_version(void **state)
{
    (void)state;
    for (uint32_t at = OUR_BYTES; at < SIZE_MAX_TRIED; at++) {
        unsigned char ours[OUR_BYTES];
        unsigned char untouched[OUR_BYTES];
        unsigned char *theirs = struct_make(SIZE_MAX_TRIED, OUR_BYTES);

        theirs[at] = 0x80;
        memset(ours, 0xee, sizeof ours);
        memset(untouched, 0xee, sizeof untouched);
        assert_int_equal(blkrepl__struct_in(ours, OUR_BYTES, V1_BYTES, theirs),
                         BLKREPL_ERR_VERSION);
        assert_memory_equal(ours, untouched, sizeof ours);
        free(theirs);
    }
}

static void struct_io_out_smaller_than_v1_is_einval(void **state)
{
    unsigned char *ours = struct_make(OUR_BYTES, OUR_BYTES);

    (void)state;
    for (uint32_t bytes = sizeof(uint32_t); bytes < V1_BYTES; bytes++) {
        unsigned char *theirs = struct_make(bytes, 0);

        assert_int_equal(blkrepl__struct_out(theirs, V1_BYTES, ours, OUR_BYTES), -EINVAL);
        assert_int_equal(struct_size(theirs), bytes);
        expect_bytes(theirs, bytes, 0);
        free(theirs);
    }
    free(ours);
}

static void struct_io_out_fills_every_size_and_keeps_it(void **state)
{
    unsigned char *ours = struct_make(OUR_BYTES, OUR_BYTES);

    (void)state;
    for (uint32_t bytes = V1_BYTES; bytes <= SIZE_MAX_TRIED; bytes++) {
        unsigned char *theirs = struct_make(bytes, 0);

        memset(theirs + sizeof bytes, 0xee, bytes - sizeof bytes);
        assert_int_equal(blkrepl__struct_out(theirs, V1_BYTES, ours, OUR_BYTES), 0);
        assert_int_equal(struct_size(theirs), bytes);
        expect_bytes(theirs, bytes, OUR_BYTES);
        free(theirs);
    }
    free(ours);
}

/* What came later is not asked of a caller of the first release. */
static void struct_io_v1_sizes_are_those_of_this_release(void **state)
{
    (void)state;
    assert_int_equal(BLKREPL_CONTEXT_OPTIONS_V1_BYTES, sizeof(blkrepl_context_options));
    assert_int_equal(BLKREPL_ALLOCATOR_V1_BYTES, sizeof(blkrepl_allocator));
    assert_int_equal(BLKREPL_HOOKS_V1_BYTES, sizeof(blkrepl_hooks));
    assert_int_equal(BLKREPL_BACKEND_OPS_V1_BYTES, sizeof(blkrepl_backend_ops));
    assert_int_equal(BLKREPL_BACKEND_INFO_V1_BYTES, offsetof(blkrepl_backend_info, copy_bytes_max));
    assert_int_equal(BLKREPL_IMAGE_OPTIONS_V1_BYTES, sizeof(blkrepl_image_options));
    assert_int_equal(BLKREPL_IMAGE_INFO_V1_BYTES, sizeof(blkrepl_image_info));
    assert_int_equal(BLKREPL_FILE_OPTIONS_V1_BYTES, sizeof(blkrepl_file_options));
    assert_int_equal(BLKREPL_BRACKET_V1_BYTES, sizeof(blkrepl_bracket));
    assert_int_equal(BLKREPL_JOB_INFO_V1_BYTES, offsetof(blkrepl_job_info, offloaded_bytes));
    assert_int_equal(BLKREPL_BACKUP_OPTIONS_V1_BYTES,
                     offsetof(blkrepl_backup_options, on_source_error));
    assert_int_equal(BLKREPL_SNAPSHOT_OPTIONS_V1_BYTES, sizeof(blkrepl_snapshot_options));
    assert_int_equal(BLKREPL_THROTTLE_OPTIONS_V1_BYTES, sizeof(blkrepl_throttle_options));
    assert_int_equal(BLKREPL_THROTTLE_INFO_V1_BYTES, sizeof(blkrepl_throttle_info));
    assert_int_equal(BLKREPL_VERIFY_OPTIONS_V1_BYTES,
                     offsetof(blkrepl_verify_options, guest_timeout_ns));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(struct_io_in_of_null_gives_zeroes),
        cmocka_unit_test(struct_io_in_smaller_than_v1_is_einval),
        cmocka_unit_test(struct_io_in_with_size_zero_is_einval),
        cmocka_unit_test(struct_io_in_copies_what_there_is_and_zeroes_the_rest),
        cmocka_unit_test(struct_io_in_larger_than_ours_is_fine_if_the_rest_is_zero),
        cmocka_unit_test(struct_io_in_with_any_unknown_byte_set_is_version),
        cmocka_unit_test(struct_io_out_smaller_than_v1_is_einval),
        cmocka_unit_test(struct_io_out_fills_every_size_and_keeps_it),
        cmocka_unit_test(struct_io_v1_sizes_are_those_of_this_release),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
