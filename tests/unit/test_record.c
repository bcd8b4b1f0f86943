/* SPDX-License-Identifier: MIT */
/* What bitmaps learn of writes and of flushes, on either way of a request. */
#include "unit/quick_rig.h"

#include "block/bitmap.h"
#include "block/record.h"

#define GRANULE UINT64_C(512)
#define DISK (64 * KIB)

static struct alloc heap_of(struct heap *heap)
{
    blkrepl_allocator hooks = heap_allocator(heap);
    struct alloc alloc;

    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    return alloc;
}

/* ---- By itself ---------------------------------------------------------------- */

struct lone {
    struct heap heap;
    struct alloc alloc;
    struct record record;
    struct blkrepl_bitmap bitmap;
};

static void lone_open(struct lone *l, uint64_t bytes, uint32_t shift)
{
    memset(l, 0, sizeof *l);
    l->alloc = heap_of(&l->heap);
    blkrepl__record_init(&l->record);
    assert_int_equal(blkrepl__record_prepare(&l->record, &l->alloc, bytes), 0);
    assert_int_equal(blkrepl__dirtymap_init(&l->bitmap.map, &l->alloc, bytes, shift), 0);
    l->bitmap.marks = &l->bitmap.map;
    list_append(&l->record.bitmaps, &l->bitmap.record_link);
}

static void lone_close(struct lone *l)
{
    blkrepl__dirtymap_fini(&l->bitmap.map);
    blkrepl__record_fini(&l->record, &l->alloc);
    assert_int_equal(l->heap.live, 0);
}

static uint64_t lone_dirty(const struct lone *l)
{
    return blkrepl__dirtymap_dirty_bytes(&l->bitmap.map);
}

static struct record_flush flush_begin(struct record *record)
{
    struct record_flush flush;

    record_flush(record, &flush);
    return flush;
}

static void flush(struct lone *l, int result)
{
    struct record_flush flush = flush_begin(&l->record);

    blkrepl__record_flush_ended(&l->record, &flush, result);
}

static void record_without_regions_does_nothing(void **state)
{
    struct record record = {.region_shift = 0};

    (void)state;
    blkrepl__record_init(&record);
    record_write(&record, 0, 512);
    struct record_flush none = flush_begin(&record);
    assert_int_equal(none.epoch, 0);
    blkrepl__record_flush_ended(&record, &none, 0);
    blkrepl__record_flush_ended(&record, &none, -EIO);
}

static void record_is_prepared_once_and_may_find_no_memory(void **state)
{
    struct heap heap = {.fail_at = 1};
    struct alloc alloc = heap_of(&heap);
    struct record record = {.region_shift = 0};
    void *regions;

    (void)state;
    blkrepl__record_init(&record);
    assert_int_equal(blkrepl__record_prepare(&record, &alloc, DISK), -ENOMEM);
    assert_null(record.regions);
    assert_int_equal(blkrepl__record_prepare(&record, &alloc, DISK), 0);
    regions = (void *)record.regions;
    assert_int_equal(blkrepl__record_prepare(&record, &alloc, DISK), 0);
    assert_ptr_equal(regions, (void *)record.regions);
    blkrepl__record_fini(&record, &alloc);
    assert_int_equal(heap.live, 0);
}

/* Every disk has at most so many regions, and its last byte lies in one. */
static void regions_cover_disks_of_every_size(void **state)
{
    static const uint64_t sizes[] = {0,    1,         RECORD_REGIONS,    RECORD_REGIONS + 1,
                                     DISK, DISK + 17, UINT64_C(1) << 46, INT64_MAX};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct lone l;
        uint64_t bytes = sizes[i];

        lone_open(&l, bytes, 40);
        assert_true(bytes == 0 || (bytes - 1) >> l.record.region_shift < RECORD_REGIONS);
        flush(&l, 0);
        flush(&l, -EIO);
        assert_int_equal(lone_dirty(&l), 0);
        if (bytes > 0) {
            record_write(&l.record, bytes - 1, bytes + 511); /* rounded beyond the end */
            assert_true(blkrepl__dirtymap_get(&l.bitmap.map, bytes - 1));
            blkrepl__dirtymap_clear(&l.bitmap.map);
            flush(&l, -EIO);
            assert_true(blkrepl__dirtymap_get(&l.bitmap.map, bytes - 1));
        }
        lone_close(&l);
    }
}

static void all_is_doubtful_before_the_first_flush(void **state)
{
    struct lone l;

    (void)state;
    lone_open(&l, DISK, 9);
    flush(&l, -EIO);
    assert_int_equal(lone_dirty(&l), DISK);
    blkrepl__dirtymap_clear(&l.bitmap.map);
    flush(&l, 0);
    flush(&l, -EIO);
    assert_int_equal(lone_dirty(&l), 0);
    lone_close(&l);
}

static void a_failed_flush_marks_what_was_written_since_the_last_good_one(void **state)
{
    struct lone l;

    (void)state;
    lone_open(&l, DISK, 9);
    flush(&l, 0);
    record_write(&l.record, 0, 512);
    flush(&l, 0); /* covers it */
    flush(&l, 0); /* and this one is known to be later than the write */
    record_write(&l.record, 4096, 4608);
    blkrepl__dirtymap_clear(&l.bitmap.map);
    flush(&l, -EIO);
    assert_int_equal(lone_dirty(&l), 512);
    assert_true(blkrepl__dirtymap_get(&l.bitmap.map, 4096));
    blkrepl__dirtymap_clear(&l.bitmap.map);
    flush(&l, -EIO); /* it is still not durable */
    assert_int_equal(lone_dirty(&l), 512);
    lone_close(&l);
}

/* A flush that was accepted before a write ended says nothing of that write. */
static void a_flush_does_not_cover_what_ends_after_it_was_accepted(void **state)
{
    struct lone l;
    struct record_flush early;

    (void)state;
    lone_open(&l, DISK, 9);
    flush(&l, 0);
    early = flush_begin(&l.record);
    record_write(&l.record, 0, 512);
    blkrepl__record_flush_ended(&l.record, &early, 0);
    blkrepl__dirtymap_clear(&l.bitmap.map);
    flush(&l, -EIO);
    assert_int_equal(lone_dirty(&l), 512);
    lone_close(&l);
}

/* Flushes may end in any order; an earlier one takes nothing back. */
static void the_latest_good_flush_counts(void **state)
{
    struct lone l;
    struct record_flush first;
    struct record_flush second;

    (void)state;
    lone_open(&l, DISK, 9);
    record_write(&l.record, 0, 512);
    first = flush_begin(&l.record);
    second = flush_begin(&l.record);
    blkrepl__record_flush_ended(&l.record, &second, 0);
    blkrepl__record_flush_ended(&l.record, &first, 0);
    blkrepl__dirtymap_clear(&l.bitmap.map);
    flush(&l, -EIO);
    assert_int_equal(lone_dirty(&l), 0);
    lone_close(&l);
}

/* Of two that overlap, the system may tell only one what was lost. */
static void a_good_flush_beside_a_failed_one_hides_nothing(void **state)
{
    (void)state;
    for (int failed = 0; failed < 2; failed++) {
        struct record_flush both[2];
        struct lone l;

        lone_open(&l, DISK, 9);
        flush(&l, 0);
        record_write(&l.record, 0, 512);
        blkrepl__dirtymap_clear(&l.bitmap.map);
        both[0] = flush_begin(&l.record);
        both[1] = flush_begin(&l.record);
        blkrepl__record_flush_ended(&l.record, &both[1 - failed], 0);
        blkrepl__record_flush_ended(&l.record, &both[failed], -EIO);
        assert_int_equal(lone_dirty(&l), 512);
        lone_close(&l);
    }
}

/* A write that looked at the epoch long ago does not hide a later one. */
static void an_old_epoch_does_not_replace_a_new_one(void **state)
{
    struct lone l;
    uint64_t before;

    (void)state;
    lone_open(&l, DISK, 9);
    flush(&l, 0);
    flush(&l, 0);
    record_write(&l.record, 0, 512);
    before = atomic_load(&l.record.regions[0]);
    atomic_store(&l.record.epoch, 1); /* as that write saw it */
    record_write(&l.record, 0, 512);
    assert_int_equal(atomic_load(&l.record.regions[0]), before);
    lone_close(&l);
}

/* ---- Through an image ---------------------------------------------------------- */

static blkrepl_bitmap *bitmap_of(struct quick_bench *b)
{
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .name = "b", .granularity_bytes = GRANULE};
    blkrepl_bitmap *bitmap;

    assert_int_equal(blkrepl_bitmap_add(b->image, &options, &bitmap), 0);
    assert_true(quick_back(b) || !is_quick(b));
    return bitmap;
}

static void bench_open(struct quick_bench *b)
{
    quick_init(b, NULL, DISK);
    quick_open(b);
}

static void expect_dirty(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    blkrepl_area area = {.offset = 1};
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_bitmap_query(bitmap, &info), 0);
    assert_int_equal(info.dirty_bytes, bytes);
    assert_int_equal(blkrepl_bitmap_next_area(bitmap, 0, UINT64_MAX, 0, &area), bytes > 0);
    if (bytes > 0) {
        assert_int_equal(area.offset, offset);
        assert_int_equal(area.bytes, bytes);
    }
    assert_int_equal(blkrepl_bitmap_validate(bitmap), 0);
    assert_int_equal(blkrepl_bitmap_clear(bitmap), 0);
}

static void good_flushes(struct quick_bench *b)
{
    for (int i = 0; i < 3; i++) {
        struct done done;

        quick_flush_call(b, 0, &done);
        quick_poll_all(b);
    }
}

static void quick_writes_are_recorded_and_keep_the_image_quick(void **state)
{
    struct quick_bench b;
    blkrepl_bitmap *bitmap;
    struct done done;
    uint64_t token;

    (void)state;
    bench_open(&b);
    bitmap = bitmap_of(&b);
    quick_turn(&b);
    assert_true(quick_back(&b));
    quick_write(&b, 0, 4096, 512, &done);
    assert_true(is_quick(&b));
    quick_poll_all(&b);
    assert_true(is_quick(&b));
    expect_dirty(bitmap, 4096, 512);
    assert_true(quick_back(&b));
    b.disk.result[BLKREPL_OP_WRITE] = -EIO; /* it failed: nobody knows what is there */
    quick_write(&b, 0, 8192, 1024, &done);
    quick_poll_all(&b);
    expect_dirty(bitmap, 8192, 1024);
    assert_true(quick_back(&b));
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 1024, 512, &done, &token), 0);
    assert_true(is_quick(&b));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, -EIO, NULL, 0, NULL), 0);
    assert_true(is_quick(&b));
    expect_dirty(bitmap, 1024, 512);
    assert_true(quick_back(&b));
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 1024, 512, &done, &token), 0);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), 0); /* nothing was done */
    expect_dirty(bitmap, 0, 0);
    blkrepl_bitmap_free(bitmap);
    quick_close(&b);
}

static void failed_flushes_are_recorded_on_either_way(void **state)
{
    struct quick_bench b;
    blkrepl_bitmap *bitmap;
    struct done done;
    uint64_t token;

    (void)state;
    bench_open(&b);
    bitmap = bitmap_of(&b);
    for (int slow = 0; slow < 2; slow++) {
        good_flushes(&b);
        quick_write(&b, 0, 4096, 512, &done);
        quick_poll_all(&b);
        assert_int_equal(blkrepl_bitmap_clear(bitmap), 0);
        if (!slow) {
            assert_true(quick_back(&b));
        }
        b.disk.result[BLKREPL_OP_FLUSH] = -EIO;
        quick_flush_call(&b, 0, &done);
        quick_poll_all(&b);
        expect_dirty(bitmap, 4096, 512);
        if (!slow) {
            assert_true(quick_back(&b));
        }
        assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_FLUSH, 0, 0, &done, &token), 0);
        assert_int_equal(blkrepl_write_end(b.rig.ctx, token, -EIO, NULL, 0, NULL), 0);
        expect_dirty(bitmap, 4096, 512);
        b.disk.result[BLKREPL_OP_FLUSH] = 0;
    }
    blkrepl_bitmap_free(bitmap);
    quick_close(&b);
}

/* Where the backend knows no FUA, the library flushes for it. */
static void the_failed_flush_of_a_write_with_fua_is_recorded(void **state)
{
    struct quick_bench b;
    blkrepl_bitmap *bitmap;
    struct done done;
    unsigned char block[512] = {1};
    blkrepl_iovec iov = {.base = block, .len = sizeof block};
    blkrepl_completion completion = {.fn = NULL};

    (void)state;
    quick_init(&b, NULL, DISK);
    b.disk.info.flags &= ~(uint32_t)BLKREPL_BACKEND_FUA;
    quick_open(&b);
    bitmap = bitmap_of(&b);
    good_flushes(&b);
    quick_write(&b, 0, 0, 512, &done);
    quick_poll_all(&b);
    assert_int_equal(blkrepl_bitmap_clear(bitmap), 0);
    b.disk.result[BLKREPL_OP_FLUSH] = -EIO;
    assert_int_equal(blkrepl_image_write(b.image, 0, 512, &iov, 1, BLKREPL_IO_FUA, &completion), 0);
    quick_poll_all(&b);
    expect_dirty(bitmap, 0, 1024);
    blkrepl_bitmap_free(bitmap);
    quick_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_without_regions_does_nothing),
        cmocka_unit_test(record_is_prepared_once_and_may_find_no_memory),
        cmocka_unit_test(regions_cover_disks_of_every_size),
        cmocka_unit_test(all_is_doubtful_before_the_first_flush),
        cmocka_unit_test(a_failed_flush_marks_what_was_written_since_the_last_good_one),
        cmocka_unit_test(a_flush_does_not_cover_what_ends_after_it_was_accepted),
        cmocka_unit_test(the_latest_good_flush_counts),
        cmocka_unit_test(a_good_flush_beside_a_failed_one_hides_nothing),
        cmocka_unit_test(an_old_epoch_does_not_replace_a_new_one),
        cmocka_unit_test(quick_writes_are_recorded_and_keep_the_image_quick),
        cmocka_unit_test(failed_flushes_are_recorded_on_either_way),
        cmocka_unit_test(the_failed_flush_of_a_write_with_fua_is_recorded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
