/* SPDX-License-Identifier: MIT */
#include <libblkrepl/version.h>

#include "unit/rig.h"

static void version_is_that_of_the_headers(void **state)
{
    char want[64];

    (void)state;
    snprintf(want, sizeof want, "%d.%d.%d", BLKREPL_VERSION_MAJOR, BLKREPL_VERSION_MINOR,
             BLKREPL_VERSION_PATCH);
    assert_string_equal(blkrepl_version(), want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_is_that_of_the_headers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
