/* SPDX-License-Identifier: MIT */
#include "block/iov.h"

#include "unit/rig.h"

#include "base/checked.h"

#define IOVS 7
#define SPACE 4096

struct bench {
    struct rng rng;
    unsigned char memory[SPACE];
    blkrepl_iovec iov[IOVS];
    uint64_t total;
};

/* Entries with gaps between them, some of them empty. */
static void cut(struct bench *b, uint64_t unit)
{
    uint64_t at = 0;

    b->total = 0;
    for (int i = 0; i < IOVS; i++) {
        uint64_t len = rng_below(&b->rng, 4) == 0 ? 0 : unit * rng_below(&b->rng, 300 / unit);

        b->iov[i] = (blkrepl_iovec){.base = b->memory + at, .len = (size_t)len};
        at += len + unit * rng_below(&b->rng, 30 / unit + 1);
        b->total += len;
    }
}

/* The byte at `pos` of all entries together. */
static unsigned char *byte_at(const struct bench *b, uint64_t pos)
{
    int i = 0;

    while (pos >= b->iov[i].len) {
        pos -= b->iov[i++].len;
    }
    return (unsigned char *)b->iov[i].base + pos;
}

static void iov_bytes_adds_up_and_refuses_what_cannot_be(void **state)
{
    char memory[8];
    blkrepl_iovec iov[3] = {{memory, 5}, {NULL, 0}, {memory, 3}};
    uint64_t bytes = 99;

    (void)state;
    assert_true(blkrepl__iov_bytes(iov, 3, &bytes));
    assert_int_equal(bytes, 8);
    assert_true(blkrepl__iov_bytes(NULL, 0, &bytes));
    assert_int_equal(bytes, 0);
    iov[1].len = 1; /* bytes without memory */
    assert_false(blkrepl__iov_bytes(iov, 3, &bytes));
    iov[1] = (blkrepl_iovec){memory, SIZE_MAX};
    if (sizeof(size_t) < 8) {
        assert_true(blkrepl__iov_bytes(iov, 3, &bytes));
        assert_true(bytes == (uint64_t)SIZE_MAX + 8); /* no wrap in 32 bits */
    } else {
        assert_false(blkrepl__iov_bytes(iov, 3, &bytes));
        iov[1].len = (size_t)(BLKREPL_IMAGE_BYTES_MAX - 8);
        assert_true(blkrepl__iov_bytes(iov, 3, &bytes));
        iov[1].len++;
        assert_false(blkrepl__iov_bytes(iov, 3, &bytes));
    }
}

static void iov_gather_scatter_and_skip_agree_with_a_flat_array(void **state)
{
    struct bench b = {.rng = {2}};

    (void)state;
    for (int round = 0; round < 300; round++) {
        unsigned char flat[SPACE];
        struct iov_cursor at;
        uint64_t pos = 0;

        cut(&b, 1);
        at = (struct iov_cursor){.iov = b.iov, .count = IOVS};
        while (pos < b.total) {
            uint64_t bytes = rng_below(&b.rng, b.total - pos + 1);

            memset(b.memory, 0, SPACE);
            for (uint64_t i = 0; i < b.total; i++) {
                *byte_at(&b, i) = (unsigned char)(i * 3 + 1);
            }
            memset(flat, 0x7f, sizeof flat);
            switch (rng_below(&b.rng, 3)) {
            case 0: blkrepl__iov_skip(&at, bytes); break;
            case 1:
                blkrepl__iov_gather(&at, flat, bytes);
                for (uint64_t i = 0; i < bytes; i++) {
                    assert_int_equal(flat[i], (unsigned char)((pos + i) * 3 + 1));
                }
                assert_int_equal(flat[bytes], 0x7f);
                break;
            default:
                blkrepl__iov_scatter(&at, flat, bytes);
                for (uint64_t i = 0; i < b.total; i++) {
                    bool hit = i >= pos && i < pos + bytes;

                    assert_int_equal(*byte_at(&b, i), hit ? 0x7f : (unsigned char)(i * 3 + 1));
                }
                break;
            }
            pos += bytes;
        }
    }
}

static void iov_slice_describes_what_lies_ahead_and_does_not_move(void **state)
{
    struct bench b = {.rng = {3}};

    (void)state;
    for (int round = 0; round < 2000; round++) {
        struct iov_cursor at;
        blkrepl_iovec out[IOVS];
        uint32_t most = 1 + (uint32_t)rng_below(&b.rng, IOVS);
        uint32_t used;
        uint64_t pos;
        uint64_t want;
        uint64_t got;

        cut(&b, 1);
        if (b.total == 0) {
            continue;
        }
        pos = rng_below(&b.rng, b.total);
        want = 1 + rng_below(&b.rng, b.total - pos);
        at = (struct iov_cursor){.iov = b.iov, .count = IOVS};
        blkrepl__iov_skip(&at, pos);
        got = blkrepl__iov_slice(&at, want, 1, out, most, &used);
        assert_true(got <= want && used <= most && got > 0);
        assert_true(got == want || used == most); /* as much as there is room for */
        for (uint32_t i = 0; i < used; i++) {
            assert_true(out[i].len > 0);
            assert_ptr_equal(out[i].base, byte_at(&b, pos));
            assert_ptr_equal((unsigned char *)out[i].base + out[i].len - 1,
                             byte_at(&b, pos + out[i].len - 1));
            pos += out[i].len;
        }
        assert_true(blkrepl__iov_slice(&at, want, 1, out, most, &used) == got);
    }
}

static void iov_slice_stops_before_an_entry_that_is_not_aligned(void **state)
{
    static _Alignas(64) unsigned char memory[512];
    blkrepl_iovec iov[3] = {{memory, 64}, {memory + 64, 100}, {memory + 192, 64}};
    struct iov_cursor at = {.iov = iov, .count = 3};
    blkrepl_iovec out[3];
    uint32_t used;

    (void)state;
    assert_int_equal(blkrepl__iov_slice(&at, 228, 64, out, 3, &used), 64);
    assert_int_equal(used, 1);
    assert_int_equal(blkrepl__iov_slice(&at, 128, 64, out, 3, &used), 128); /* cut, it fits */
    assert_int_equal(blkrepl__iov_slice(&at, 228, 4, out, 3, &used), 228);
    iov[0].base = memory + 1;
    assert_int_equal(blkrepl__iov_slice(&at, 228, 64, out, 3, &used), 0);
    assert_int_equal(used, 0);
}

static void iov_aligned_looks_at_every_address_and_length(void **state)
{
    static _Alignas(512) unsigned char memory[2048];
    blkrepl_iovec iov[2] = {{memory, 512}, {memory + 512, 1024}};

    (void)state;
    assert_true(blkrepl__iov_aligned(iov, 2, 512));
    assert_false(blkrepl__iov_aligned(iov, 2, 1024));
    iov[1].len = 1000;
    assert_false(blkrepl__iov_aligned(iov, 2, 512));
    assert_true(blkrepl__iov_aligned(iov, 1, 512));
    assert_true(blkrepl__iov_aligned(iov, 2, 8));
    iov[1] = (blkrepl_iovec){memory + 513, 512};
    assert_false(blkrepl__iov_aligned(iov, 2, 512));
    assert_true(blkrepl__iov_aligned(iov, 2, 1));
    assert_true(blkrepl__iov_aligned(NULL, 0, 4096));
}

static void iov_zeroes_are_zero_and_no_more_than_asked(void **state)
{
    static const uint64_t bytes[] = {1, 65535, 65536, 65537, 200000, UINT64_C(1) << 40};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bytes); i++) {
        blkrepl_iovec out[3];
        uint64_t total = 0;
        uint32_t used;
        uint64_t got = blkrepl__iov_zeroes(out, 3, bytes[i], &used);

        for (uint32_t j = 0; j < used; j++) {
            assert_true(blkrepl__is_zero(out[j].base, out[j].len));
            assert_int_equal((uintptr_t)out[j].base & 4095, 0);
            total += out[j].len;
        }
        assert_true(got == total && used <= 3);
        assert_true(got == min_u64(bytes[i], 3 * 65536));
    }
}

static void is_zero_finds_any_bit_at_every_length_and_position(void **state)
{
    unsigned char memory[160];

    (void)state;
    for (size_t shift = 0; shift < 9; shift++) {
        for (size_t bytes = 0; bytes <= 80; bytes++) {
            memset(memory, 0xff, sizeof memory); /* what lies around does not count */
            memset(memory + shift, 0, bytes);
            assert_true(blkrepl__is_zero(memory + shift, bytes));
            for (size_t at = 0; at < bytes; at++) {
                memory[shift + at] = (unsigned char)(1 << at % 8);
                assert_false(blkrepl__is_zero(memory + shift, bytes));
                memory[shift + at] = 0;
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(iov_bytes_adds_up_and_refuses_what_cannot_be),
        cmocka_unit_test(iov_gather_scatter_and_skip_agree_with_a_flat_array),
        cmocka_unit_test(iov_slice_describes_what_lies_ahead_and_does_not_move),
        cmocka_unit_test(iov_slice_stops_before_an_entry_that_is_not_aligned),
        cmocka_unit_test(iov_aligned_looks_at_every_address_and_length),
        cmocka_unit_test(iov_zeroes_are_zero_and_no_more_than_asked),
        cmocka_unit_test(is_zero_finds_any_bit_at_every_length_and_position),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
