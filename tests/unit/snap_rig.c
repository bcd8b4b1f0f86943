/* SPDX-License-Identifier: MIT */
#include "unit/snap_rig.h"

#include "block/quick.h"

void snap_init(struct snap_rig *r, const blkrepl_context_options *options, uint64_t bytes)
{
    memset(r, 0, sizeof *r);
    rig_open(&r->rig, options);
    script_init(&r->source, bytes);
    script_init(&r->target, bytes);
    for (uint64_t i = 0; i < bytes; i++) {
        r->source.disk[i] = (unsigned char)(i / 61 + i % 7 + 1);
    }
}

static void snap_poll(struct snap_rig *r)
{
    if (!r->polls_late) {
        rig_poll(&r->rig);
    }
}

blkrepl_image *snap_another(struct snap_rig *r)
{
    blkrepl_image *image;

    assert_int_equal(blkrepl_snapshot_open(r->job, NULL, &image), 0);
    return image;
}

void snap_open_images(struct snap_rig *r)
{
    r->from = script_open(&r->source, &r->rig);
    r->to = script_open(&r->target, &r->rig);
}

void snap_start(struct snap_rig *r, const blkrepl_backup_options *options)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .cluster_bytes = CLUSTER};
    uint64_t bytes = r->source.info.bytes;

    if (options != NULL) {
        o = *options;
        o.struct_size = sizeof o;
        o.cluster_bytes = o.cluster_bytes != 0 ? o.cluster_bytes : CLUSTER;
    }
    o.sync = BLKREPL_SYNC_NONE;
    assert_int_equal(blkrepl_backup_start(r->from, r->to, &o, &r->job), 0);
    r->copy = blkrepl__backup_copy_of(r->job);
    assert_non_null(r->copy);
    r->old = malloc((size_t)bytes + 1);
    assert_non_null(r->old);
    memcpy(r->old, r->source.disk, (size_t)bytes);
    snap_poll(r);
    r->image = snap_another(r);
}

void snap_open(struct snap_rig *r, const blkrepl_backup_options *options)
{
    snap_open_images(r);
    snap_start(r, options);
}

void snap_close(struct snap_rig *r)
{
    r->source.hold = r->target.hold = 0;
    blkrepl_image_close(r->image);
    blkrepl_job_free(r->job);
    for (int i = 0; i < 100; i++) {
        script_end_all(&r->source);
        script_end_all(&r->target);
        rig_poll(&r->rig);
    }
    blkrepl_image_close(r->from);
    blkrepl_image_close(r->to);
    rig_close(&r->rig);
    script_fini(&r->source);
    script_fini(&r->target);
    free(r->old);
}

int snap_setup_closed(void **state)
{
    uintptr_t bytes = (uintptr_t)*state;
    struct snap_rig *r = malloc(sizeof *r);

    assert_non_null(r);
    snap_init(r, NULL, bytes != 0 ? bytes : 64 * KIB);
    *state = r;
    return 0;
}

int snap_setup(void **state)
{
    int rc = snap_setup_closed(state);

    snap_open(*state, NULL);
    return rc;
}

int snap_teardown(void **state)
{
    struct snap_rig *r = *state;

    assert_int_equal(r->source.waiting_count + r->target.waiting_count, 0); /* whose locals? */
    snap_close(r);
    free(r);
    return 0;
}

struct snapshot *snap_of(const blkrepl_image *image)
{
    return image->leaf->port.backend;
}

unsigned snap_count(const blkrepl_image *image, enum snapshot_read_state state)
{
    const struct snapshot *snapshot = snap_of(image);
    unsigned count = 0;

    for (uint32_t i = 0; i < snapshot->queue_depth; i++) {
        count += snapshot->reads[i].state == state;
    }
    return count;
}

void snap_write(struct snap_rig *r, uint64_t start, uint64_t end, struct done *done)
{
    rig_write(&r->rig, r->from, start, end, done);
}

void snap_overwrite(struct snap_rig *r, uint64_t start, uint64_t end)
{
    struct done done;

    snap_write(r, start, end, &done);
    done_assert(&done, 0);
}

void snap_read(struct snap_rig *r, blkrepl_image *image, uint64_t start, uint64_t end,
               struct snap_read *read)
{
    blkrepl_completion completion = done_of(&read->done);

    read->offset = start;
    read->bytes = end - start;
    read->data = malloc((size_t)read->bytes + 1);
    assert_non_null(read->data);
    memset(read->data, 0x77, (size_t)read->bytes + 1);
    read->iov = (blkrepl_iovec){.base = read->data, .len = (size_t)read->bytes};
    assert_int_equal(blkrepl_image_read(image, 0, start, &read->iov, 1, 0, &completion), 0);
    snap_poll(r);
}

void snap_assert_old(const struct snap_rig *r, struct snap_read *read)
{
    done_assert(&read->done, 0);
    assert_memory_equal(read->data, r->old + read->offset, read->bytes);
    assert_int_equal(read->data[read->bytes], 0x77);
    free(read->data);
    read->data = NULL;
}

void snap_assert_failed(struct snap_read *read, int code)
{
    done_assert(&read->done, code);
    free(read->data);
    read->data = NULL;
}

void snap_expect_old(struct snap_rig *r, uint64_t start, uint64_t end)
{
    struct snap_read read;

    snap_read(r, r->image, start, end, &read);
    snap_assert_old(r, &read);
}

void snap_expect_code(struct snap_rig *r, uint64_t start, uint64_t end, int code)
{
    struct snap_read read;

    snap_read(r, r->image, start, end, &read);
    snap_assert_failed(&read, code);
}

void snap_discard(struct snap_rig *r, uint64_t start, uint64_t end)
{
    struct done done;
    blkrepl_completion completion = done_of(&done);

    assert_int_equal(blkrepl_image_discard(r->image, 0, start, end - start, 0, &completion), 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
}

void snap_status(struct snap_rig *r, uint64_t start, uint64_t end, blkrepl_extent *extents,
                 uint32_t most)
{
    struct done done;
    blkrepl_completion completion = done_of(&done);

    assert_int_equal(
        blkrepl_image_status(r->image, 0, start, end - start, extents, most, &completion), 0);
    rig_poll(&r->rig);
    done_assert(&done, 0);
}
