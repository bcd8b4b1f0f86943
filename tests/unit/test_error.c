/* SPDX-License-Identifier: MIT */
#include "core/error.h"

#include "unit/rig.h"

#include <pthread.h>

static void error_fail_records_its_text_and_returns_the_code(void **state)
{
    (void)state;
    assert_int_equal(blkrepl__fail(-EBUSY, "image \"%s\": %d", "d0", 7), -EBUSY);
    assert_string_equal(blkrepl_error_message(), "image \"d0\": 7");
    assert_int_equal(blkrepl__fail(BLKREPL_ERR_STATE, "next"), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "next");
}

static void error_fail_code_appends_the_text_of_the_code(void **state)
{
    char want[128];

    (void)state;
    assert_int_equal(blkrepl__fail_code(-ENOSPC, "open %u", 3u), -ENOSPC);
    snprintf(want, sizeof want, "open 3: %s", blkrepl_error_text(-ENOSPC));
    assert_string_equal(blkrepl_error_message(), want);
}

static void error_message_that_is_too_long_is_cut_and_terminated(void **state)
{
    (void)state;
    for (int bytes = 240; bytes < 270; bytes++) {
        blkrepl__fail_code(-EIO, "%*d", bytes, 1);
        assert_true(strlen(blkrepl_error_message()) <= 255);
        assert_true(strlen(blkrepl_error_message()) >= (size_t)(bytes < 255 ? bytes : 255));
    }
}

static void error_texts_are_known_for_what_the_library_returns(void **state)
{
    static const int codes[] = {-EINVAL,
                                -ENOMEM,
                                -EBUSY,
                                -EAGAIN,
                                -EROFS,
                                -EEXIST,
                                -ESHUTDOWN,
                                -ECANCELED,
                                -ENOSPC,
                                -ETIMEDOUT,
                                -ENOENT,
                                -ENOTSUP,
                                -EDEADLK,
                                -EFBIG,
                                -EIO,
                                -EMFILE,
                                0,
                                BLKREPL_ERR_STATE,
                                BLKREPL_ERR_VERSION};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(codes); i++) {
        assert_string_not_equal(blkrepl_error_text(codes[i]), "unknown error");
        for (size_t j = 0; j < i; j++) {
            char first[128];

            snprintf(first, sizeof first, "%s", blkrepl_error_text(codes[j]));
            assert_string_not_equal(blkrepl_error_text(codes[i]), first);
        }
    }
    assert_string_equal(blkrepl_error_text(-ENOSPC), "No space left on device");
}

static void error_text_of_an_unknown_code_says_so(void **state)
{
    static const int codes[] = {1, ENOENT, -4095, -4096, -10000, -10003, INT32_MIN, INT32_MAX};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(codes); i++) {
        assert_string_equal(blkrepl_error_text(codes[i]), "unknown error");
    }
}

static void *other_thread(void *user)
{
    bool *fresh = user;

    *fresh = blkrepl_error_message()[0] == '\0';
    blkrepl__fail(-EIO, "from elsewhere");
    return NULL;
}

static void error_message_belongs_to_its_thread(void **state)
{
    pthread_t thread;
    bool fresh = false;

    (void)state;
    blkrepl__fail(-EIO, "mine");
    assert_int_equal(pthread_create(&thread, NULL, other_thread, &fresh), 0);
    pthread_join(thread, NULL);
    assert_true(fresh); /* "" if no call has failed there */
    assert_string_equal(blkrepl_error_message(), "mine");
}

/* The host's calls from inside a call that has failed do not take its message. */
static void message_of_a_call_is_kept_around_code_of_the_host(void **state)
{
    struct error_kept kept;

    (void)state;
    blkrepl__error_begin();
    blkrepl__fail(-EINVAL, "ours");
    blkrepl__error_keep(&kept);
    blkrepl__fail(-EIO, "theirs");
    blkrepl__error_give_back(&kept);
    assert_string_equal(blkrepl_error_message(), "ours");
    blkrepl__error_begin(); /* a call that does not fail */
    blkrepl__error_keep(&kept);
    blkrepl__fail(-EIO, "theirs");
    blkrepl__error_give_back(&kept);
    assert_string_equal(blkrepl_error_message(), "theirs");
    blkrepl__error_keep(&kept); /* nor does the next callback take it */
    blkrepl__fail(-EIO, "last");
    blkrepl__error_give_back(&kept);
    assert_string_equal(blkrepl_error_message(), "last");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(message_of_a_call_is_kept_around_code_of_the_host),
        cmocka_unit_test(error_fail_records_its_text_and_returns_the_code),
        cmocka_unit_test(error_fail_code_appends_the_text_of_the_code),
        cmocka_unit_test(error_message_that_is_too_long_is_cut_and_terminated),
        cmocka_unit_test(error_texts_are_known_for_what_the_library_returns),
        cmocka_unit_test(error_text_of_an_unknown_code_says_so),
        cmocka_unit_test(error_message_belongs_to_its_thread),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
