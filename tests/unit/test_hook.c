/* SPDX-License-Identifier: MIT */
#include "unit/rig.h"

#include "base/hook.h"

#ifdef BLKREPL_HOOKS
static unsigned asked[STRETCH_SITE_COUNT];
static unsigned every;

/* True for the first `every` questions of each place. */
static bool stretch_some(enum stretch_site site)
{
    return asked[site]++ < every;
}

static void hook_that_is_not_set_stretches_nothing(void **state)
{
    (void)state;
    blkrepl__stretch_hook = NULL;
    assert_false(STRETCH(READY));
}

static void hook_is_asked_for_the_place_where_it_stands(void **state)
{
    (void)state;
    memset(asked, 0, sizeof asked);
    every = 1;
    blkrepl__stretch_hook = stretch_some;
    assert_true(STRETCH(OUTBOX));
    assert_false(STRETCH(OUTBOX));
    assert_int_equal(asked[STRETCH_OUTBOX], 2);
    assert_int_equal(asked[STRETCH_READY], 0);
    blkrepl__stretch_hook = NULL;
}

/* However long a window is held open, what was put off is done. */
static void hook_puts_off_and_loses_nothing(void **state)
{
    struct rig rig = {0};
    struct script disk;
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_iovec iov;
    blkrepl_image *image;
    unsigned char bytes[512] = {1, 2, 3};
    unsigned polls = 0;

    (void)state;
    memset(asked, 0, sizeof asked);
    every = 20;
    blkrepl__stretch_hook = stretch_some;
    rig_open(&rig, NULL);
    script_init(&disk, 1u << 16);
    image = script_open(&disk, &rig);
    iov = (blkrepl_iovec){.base = bytes, .len = sizeof bytes};
    assert_int_equal(blkrepl_image_write(image, 0, 0, &iov, 1, 0, &completion), 0);
    while (done.calls == 0) {
        assert_true(polls++ < 1000);
        blkrepl_poll(rig.ctx, 0, 0);
    }
    assert_true(asked[STRETCH_OUTBOX] > every && asked[STRETCH_READY] > every);
    done_assert(&done, 0);
    assert_memory_equal(disk.disk, bytes, sizeof bytes);
    blkrepl__stretch_hook = NULL;
    blkrepl_image_close(image);
    rig_close(&rig);
    script_fini(&disk);
}

/* Not script_open(), which turns the image to the slow way. */
static blkrepl_image *open_quick(struct script *disk, struct rig *rig)
{
    blkrepl_image *image;

    disk->ctx = rig->ctx;
    disk->opened = true;
    assert_int_equal(blkrepl_image_open(rig->ctx, &script_ops, disk, NULL, &image), 0);
    return image;
}

/* The first batch is left for later, and no poll goes the quick way. */
static bool stretch_polls(enum stretch_site site)
{
    return site == STRETCH_POLL || (site == STRETCH_OUTBOX && asked[site]++ == 0);
}

/* What a quick call has left is also given away by polls that are not quick. */
static void hook_leaves_quick_requests_to_any_poll(void **state)
{
    struct rig rig = {0};
    struct script disk;
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&disk, 1u << 16);
    image = open_quick(&disk, &rig);
    memset(asked, 0, sizeof asked);
    blkrepl_poll(rig.ctx, 0, 0); /* nothing else asks for the slow way */
    blkrepl__stretch_hook = stretch_polls;
    assert_int_equal(blkrepl_image_flush(image, 0, &completion), 0);
    assert_int_equal(asked[STRETCH_OUTBOX], 1);
    blkrepl_poll(rig.ctx, 0, 0);
    blkrepl_poll(rig.ctx, 0, 0);
    done_assert(&done, 0);
    blkrepl__stretch_hook = NULL;
    blkrepl_image_close(image);
    rig_close(&rig);
    script_fini(&disk);
}

static unsigned entries[RECORD_WOKEN + 1];

static void count_entry(enum record_entry entry, uint32_t lane)
{
    (void)lane;
    entries[entry]++;
}

/* A quick call enters once, another one a second time; what it gives to a backend, or
 * calls back, it comes back from. */
static void hook_records_entries(void **state)
{
    struct rig rig = {0};
    struct script disk;
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&disk, 1u << 16);
    image = open_quick(&disk, &rig);
    blkrepl_poll(rig.ctx, 0, 0); /* nothing asks for the slow way */
    memset(entries, 0, sizeof entries);
    blkrepl__record_hook = count_entry;
    assert_int_equal(blkrepl_image_flush(image, 0, &completion), 0);
    assert_int_equal(entries[RECORD_ENTER], 1);
    assert_int_equal(entries[RECORD_PASS], 0);
    assert_int_equal(entries[RECORD_BACK], 1);
    while (done.calls == 0) {
        blkrepl_poll(rig.ctx, 0, 0);
    }
    done_assert(&done, 0);
    assert_true(entries[RECORD_ENTER] > 1);
    assert_int_equal(entries[RECORD_WOKEN], 0);
    script_go_slow(image);
    memset(entries, 0, sizeof entries);
    completion = done_of(&done);
    assert_int_equal(blkrepl_image_flush(image, 0, &completion), 0);
    assert_int_equal(entries[RECORD_ENTER], 2); /* it asks for the quick way first */
    assert_int_equal(entries[RECORD_PASS], 1);
    while (done.calls == 0) {
        blkrepl_poll(rig.ctx, 0, 0);
    }
    blkrepl__record_hook = NULL;
    done_assert(&done, 0);
    blkrepl_image_close(image);
    rig_close(&rig);
    script_fini(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hook_that_is_not_set_stretches_nothing),
        cmocka_unit_test(hook_is_asked_for_the_place_where_it_stands),
        cmocka_unit_test(hook_puts_off_and_loses_nothing),
        cmocka_unit_test(hook_leaves_quick_requests_to_any_poll),
        cmocka_unit_test(hook_records_entries),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
static void hook_of_a_shipped_build_is_a_constant(void **state)
{
    (void)state;
    assert_false(STRETCH(READY));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hook_of_a_shipped_build_is_a_constant),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
