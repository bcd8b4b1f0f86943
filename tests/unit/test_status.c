/* SPDX-License-Identifier: MIT */
#include "block/status.h"
#include "unit/rig.h"

#define DATA BLKREPL_EXTENT_DATA
#define ZERO BLKREPL_EXTENT_ZERO
#define ALL (BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ZERO | BLKREPL_EXTENT_ALLOCATED)

/* A list for 100 bytes, and whether it makes sense. */
static const struct {
    blkrepl_extent extents[3];
    uint32_t max;
    bool valid;
} cases[] = {
    {{{.bytes = 100, .flags = DATA}}, 3, true},
    {{{.bytes = 60, .flags = ZERO}, {.bytes = 40, .flags = ALL}}, 3, true},
    {{{.bytes = 60, .flags = ZERO}}, 3, true}, /* what is missing is asked again */
    {{{.bytes = 30}, {.bytes = 30}, {.bytes = 40}}, 3, true},
    {{{.bytes = 0}}, 3, false},
    {{{.bytes = 101, .flags = DATA}}, 3, false},
    {{{.bytes = 60, .flags = ZERO}, {.bytes = 41, .flags = ZERO}}, 3, false},
    {{{.bytes = 60, .flags = ZERO}, {.bytes = 41, .flags = ZERO}}, 1, true}, /* not asked */
    {{{.bytes = UINT64_MAX, .flags = DATA}}, 3, false},
    {{{.bytes = 50, .flags = ALL + 1}}, 3, false},
    {{{.bytes = 50, .flags = DATA}, {.bytes = 50, .flags = 1u << 31}}, 3, false},
    {{{.bytes = 50, .flags = DATA}, {.bytes = 0, .flags = 1u << 31}}, 3, true},
};

static void status_is_believed_where_it_makes_sense(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        blkrepl_extent extents[3];
        blkrepl_io io = {.bytes = 100, .extents = extents, .extents_max = cases[i].max};

        memcpy(extents, cases[i].extents, sizeof extents);
        assert_int_equal(blkrepl__status_valid(&io), cases[i].valid);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_is_believed_where_it_makes_sense),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
