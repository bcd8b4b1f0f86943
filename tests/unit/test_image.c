/* SPDX-License-Identifier: MIT */
#include "block/image.h"

#include "unit/rig.h"

static unsigned released;

static void note_release(void *user)
{
    (void)user;
    released++;
}

static blkrepl_image_options options_of(const char *name)
{
    released = 0;
    return (blkrepl_image_options){.struct_size = sizeof(blkrepl_image_options),
                                   .name = name,
                                   .user = &released,
                                   .release = note_release};
}

static int open_with(struct rig *rig, struct script *script, const blkrepl_image_options *o,
                     blkrepl_image **out)
{
    int rc;

    script->ctx = rig->ctx;
    *out = (blkrepl_image *)(void *)rig;
    rc = blkrepl_image_open(rig->ctx, &script_ops, script, o, out);
    script->opened = rc == 0;
    if (rc == 0) {
        script_go_slow(*out);
    }
    assert_int_equal(*out == NULL, rc != 0);
    return rc;
}

static void image_tells_what_it_was_opened_with(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    blkrepl_image_options o = options_of("disk");
    blkrepl_image_info info = {.struct_size = sizeof info};
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, 12345);
    script.info.request_alignment = 512;
    script.info.cluster_bytes = 4096;
    o.flags = BLKREPL_IMAGE_READ_ONLY;
    assert_int_equal(open_with(&rig, &script, &o, &image), 0);
    assert_int_equal(blkrepl_image_query(image, &info), 0);
    assert_string_equal(info.name, "disk");
    assert_int_equal(info.bytes, 12345);
    assert_int_equal(info.request_alignment, 512);
    assert_int_equal(info.memory_alignment, 1);
    assert_int_equal(info.cluster_bytes, 4096);
    assert_int_equal(info.flags, BLKREPL_IMAGE_READ_ONLY);
    assert_ptr_equal(info.user, &released);
    assert_int_equal(info.requests_in_flight, 0);
    info.struct_size = 8;
    assert_int_equal(blkrepl_image_query(image, &info), -EINVAL);
    assert_int_equal(blkrepl_image_query(image, NULL), -EINVAL);
    assert_int_equal(blkrepl_image_query(NULL, &info), -EINVAL);
    blkrepl_image_close(image);
    assert_int_equal(released, 0); /* in a poll */
    rig_poll(&rig);
    assert_int_equal(released, 1);
    rig_close(&rig);
    script_fini(&script);
}

static void image_without_a_name_is_named_by_its_id_which_is_never_reused(void **state)
{
    struct rig rig = {.no_log = true};
    uint64_t last = 0;

    (void)state;
    rig_open(&rig, NULL);
    for (int i = 0; i < 5; i++) {
        struct script script;
        blkrepl_image_info info = {.struct_size = sizeof info};
        char want[64];
        blkrepl_image *image;

        script_init(&script, 1);
        image = script_open(&script, &rig);
        assert_int_equal(blkrepl_image_query(image, &info), 0);
        assert_true(info.id > last);
        last = info.id;
        snprintf(want, sizeof want, "image-%u", (unsigned)info.id);
        assert_string_equal(info.name, want);
        blkrepl_image_close(image);
        script_fini(&script);
    }
    rig_close(&rig);
}

static void image_open_that_is_refused_releases_and_leaves_the_backend_alone(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    blkrepl_image *image;
    char name[BLKREPL_NAME_MAX + 2];
    blkrepl_image_options o;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, MIB);
    memset(name, 'n', sizeof name);
    name[BLKREPL_NAME_MAX + 1] = '\0';
    for (int i = 0; i < 4; i++) {
        o = options_of("x");
        o.flags = i == 0 ? 2 : 0;
        o.reserved0 = i == 1 ? &rig : NULL;
        o.name = i == 2 ? name : "x";
        script.info_result = i == 3 ? -EIO : 0;
        assert_int_equal(open_with(&rig, &script, &o, &image), i == 3 ? -EIO : -EINVAL);
        assert_int_equal(released, 1);
        assert_int_equal(script.closed, 0);
    }
    script.info_result = 0;
    o = options_of("x");
    o.struct_size = 8; /* too small for the release to be in it */
    assert_int_equal(open_with(&rig, &script, &o, &image), -EINVAL);
    assert_non_null(strstr(blkrepl_error_message(), "image: options"));
    assert_int_equal(released, 0);
    name[BLKREPL_NAME_MAX] = '\0';
    o = options_of(name);
    assert_int_equal(open_with(&rig, &script, &o, &image), 0);
    blkrepl_image_close(image);
    blkrepl_image_close(NULL);
    rig_poll(&rig);
    o = options_of("x");
    assert_int_equal(blkrepl_image_open(NULL, &script_ops, &script, &o, &image), -EINVAL);
    assert_int_equal(released, 1);
    assert_int_equal(blkrepl_image_open(rig.ctx, &script_ops, &script, &o, NULL), -EINVAL);
    assert_int_equal(released, 2);
    rig_close(&rig);
    script_fini(&script);
}

static void image_open_that_runs_out_of_memory_anywhere_leaks_nothing(void **state)
{
    int rc = -ENOMEM;

    (void)state;
    for (uint64_t n = 1; rc == -ENOMEM && n < 20; n++) {
        struct rig rig = {.no_log = true};
        struct script script;
        blkrepl_image *image;
        blkrepl_image_options o = options_of("x");

        rig_open(&rig, NULL); /* the guests belong to the first image */
        script_init(&script, MIB);
        script.info.request_alignment = 512;
        rig.heap.fail_at = rig.heap.calls + n;
        rc = open_with(&rig, &script, &o, &image);
        rig.heap.fail_at = 0;
        assert_int_equal(released, rc != 0);
        assert_int_equal(script.closed, 0);
        if (rc == 0) {
            assert_int_equal(n, 7);
            blkrepl_image_close(image);
        }
        rig_close(&rig); /* nothing is live */
        script_fini(&script);
    }
    assert_int_equal(rc, 0);
}

static void image_lives_until_its_last_user_and_then_closes_its_backend(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    blkrepl_image *image;
    blkrepl_image_options o = options_of("x");

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, MIB);
    assert_int_equal(open_with(&rig, &script, &o, &image), 0);
    blkrepl__enter(rig.ctx);
    blkrepl__image_ref(image);
    blkrepl__leave(rig.ctx, 0);
    blkrepl_image_close(image);
    rig_poll(&rig);
    assert_int_equal(script.closed, 0);
    assert_int_equal(released, 0);
    blkrepl__enter(rig.ctx);
    blkrepl__image_unref(image);
    blkrepl__leave(rig.ctx, 0);
    rig_poll(&rig);
    assert_int_equal(script.closed, 1);
    assert_int_equal(released, 1);
    rig_close(&rig);
    script_fini(&script);
}

static void image_taps_are_attached_each_at_an_instant_of_its_own(void **state)
{
    struct rig rig = {.no_log = true};
    struct script script;
    struct tap taps[3];
    blkrepl_image *image;

    (void)state;
    rig_open(&rig, NULL);
    script_init(&script, MIB);
    image = script_open(&script, &rig);
    memset(taps, 0, sizeof taps);
    for (int i = 0; i < 3; i++) {
        uint64_t before = rig.ctx->instant;

        blkrepl__image_attach(image, &taps[i]);
        assert_true(taps[i].attached_at > before);
        assert_true(rig.ctx->instant == taps[i].attached_at);
    }
    assert_ptr_equal(image->taps.next, &taps[0].link); /* asked in this order */
    blkrepl__image_detach(&taps[0]);
    blkrepl__image_detach(&taps[0]); /* twice does no harm */
    assert_ptr_equal(image->taps.next, &taps[1].link);
    blkrepl__image_detach(&taps[1]);
    blkrepl__image_detach(&taps[2]);
    assert_true(list_empty(&image->taps));
    blkrepl_image_close(image);
    rig_close(&rig);
    script_fini(&script);
}

static void image_is_not_opened_in_a_context_that_is_being_freed(void **state)
{
    struct rig rig = {.no_log = true};
    struct script first;
    struct script second;
    blkrepl_image *image;
    blkrepl_image *other;
    blkrepl_image_options o = options_of("x");

    (void)state;
    rig_open(&rig, NULL);
    script_init(&first, MIB);
    script_init(&second, MIB);
    image = script_open(&first, &rig);
    assert_int_equal(blkrepl_context_free(rig.ctx), -EBUSY);
    assert_int_equal(open_with(&rig, &second, &o, &other), -ESHUTDOWN);
    assert_int_equal(released, 1);
    blkrepl_image_close(image);
    rig_close(&rig);
    script_fini(&first);
    script_fini(&second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(image_tells_what_it_was_opened_with),
        cmocka_unit_test(image_without_a_name_is_named_by_its_id_which_is_never_reused),
        cmocka_unit_test(image_open_that_is_refused_releases_and_leaves_the_backend_alone),
        cmocka_unit_test(image_open_that_runs_out_of_memory_anywhere_leaks_nothing),
        cmocka_unit_test(image_lives_until_its_last_user_and_then_closes_its_backend),
        cmocka_unit_test(image_taps_are_attached_each_at_an_instant_of_its_own),
        cmocka_unit_test(image_is_not_opened_in_a_context_that_is_being_freed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
