/* SPDX-License-Identifier: MIT */
/* options_contents.c - images in memory and over files, against a byte array.
 *
 * The region is a part of the image that spans several pages of the memory
 * backend; requests are made one after the other. */
#include "options.h"

#include <poll.h>
#include <stdlib.h>

#define REGION_MAX (160 * KIB)
#define DATA_MAX 3000
#define STEPS_MAX 12
#define EXTENTS_MAX 5
#define POLLS_MAX 1000

struct waiter {
    bool done;
    int result;
};

static uint8_t model[REGION_MAX];
static uint64_t region_offset;
static uint64_t region_bytes;

static void waiter_called(void *user, int result)
{
    struct waiter *waiter = user;

    waiter->done = true;
    waiter->result = result;
}

/* Threads of the library may have to do it: then sleep until they have. */
static void wait_for(const struct waiter *waiter, int rc, const char *what)
{
    struct pollfd fd = {.fd = blkrepl_poll_fd(bench.ctx, 0), .events = POLLIN};
    uint64_t deadline;

    EXPECT(rc == 0, "%s to be accepted, got %d \"%s\"", what, rc, blkrepl_error_message());
    for (int polls = 0; !waiter->done; polls++) {
        EXPECT(polls < POLLS_MAX, "%s to end", what);
        if (blkrepl_poll_arm(bench.ctx, 0, &deadline) == 0) {
            EXPECT(poll(&fd, 1, 10000) == 1, "%s to end", what);
        }
        EXPECT(blkrepl_poll(bench.ctx, 0, 0) >= 0, "a poll");
    }
    EXPECT(waiter->result == 0, "%s to succeed, got %d", what, waiter->result);
}

/* A part of the region. */
static void draw_part(uint64_t *at, uint64_t *bytes, uint64_t most)
{
    uint64_t edge = (1 + take_below(2)) * 64 * KIB - region_offset % (64 * KIB);
    uint64_t room;

    *at = take_chance(50) ? edge - take_below(64) : (uint64_t)take_u16() * 3;
    *at %= region_bytes + 1;
    room = region_bytes - *at;
    *bytes = take_chance(50) ? take_u8() : (uint64_t)take_u16() * 3;
    *bytes = *bytes < room ? *bytes : room;
    *bytes = *bytes < most ? *bytes : most;
}

static void do_write(blkrepl_image *image, const blkrepl_completion *done)
{
    uint8_t data[DATA_MAX];
    blkrepl_iovec iov = {.base = data};
    uint8_t tag = take_u8();
    uint64_t at;
    uint64_t bytes;

    draw_part(&at, &bytes, DATA_MAX);
    iov.len = (size_t)bytes;
    for (uint64_t i = 0; i < bytes; i++) {
        data[i] = (uint8_t)(tag + i);
    }
    wait_for(done->user, blkrepl_image_write(image, 0, region_offset + at, &iov, 1, 0, done),
             "a write");
    memcpy(model + at, data, (size_t)bytes);
}

static void do_zeroes(blkrepl_image *image, const blkrepl_completion *done)
{
    uint32_t flags = take_chance(50) ? BLKREPL_IO_MAY_UNMAP : 0;
    uint64_t at;
    uint64_t bytes;

    draw_part(&at, &bytes, UINT64_MAX);
    wait_for(done->user,
             blkrepl_image_write_zeroes(image, 0, region_offset + at, bytes, flags, done),
             "zeroes");
    memset(model + at, 0, (size_t)bytes);
}

static void read_part(blkrepl_image *image, uint64_t at, uint64_t bytes, uint8_t *out)
{
    struct waiter waiter = {.done = false};
    blkrepl_completion done = {.fn = waiter_called, .user = &waiter};
    blkrepl_iovec iov = {.base = out, .len = (size_t)bytes};

    memset(out, 0x33, (size_t)bytes);
    wait_for(&waiter, blkrepl_image_read(image, 0, region_offset + at, &iov, 1, 0, &done),
             "a read");
}

/* Each byte is what it was, or zero. */
static void do_discard(blkrepl_image *image, const blkrepl_completion *done)
{
    uint64_t at;
    uint64_t bytes;
    uint8_t *now;

    draw_part(&at, &bytes, UINT64_MAX);
    wait_for(done->user, blkrepl_image_discard(image, 0, region_offset + at, bytes, 0, done),
             "a discard");
    now = fuzz_alloc((size_t)bytes);
    read_part(image, at, bytes, now);
    for (uint64_t i = 0; i < bytes; i++) {
        EXPECT(now[i] == 0 || now[i] == model[at + i], "a discard to leave zero or what was there");
        model[at + i] = now[i];
    }
    free(now);
}

static void do_read(blkrepl_image *image)
{
    uint64_t at;
    uint64_t bytes;
    uint8_t *now;

    draw_part(&at, &bytes, UINT64_MAX);
    now = fuzz_alloc((size_t)bytes);
    read_part(image, at, bytes, now);
    EXPECT(bytes == 0 || memcmp(now, model + at, (size_t)bytes) == 0,
           "to read what was written at %llu+%llu", (ull)(region_offset + at), (ull)bytes);
    free(now);
}

static void do_status(blkrepl_image *image, const blkrepl_completion *done)
{
    blkrepl_extent extents[EXTENTS_MAX];
    uint32_t count = 1 + take_below(EXTENTS_MAX);
    uint64_t total = 0;
    uint64_t at;
    uint64_t bytes;

    draw_part(&at, &bytes, UINT64_MAX);
    memset(extents, 0xa5, sizeof extents);
    wait_for(done->user,
             blkrepl_image_status(image, 0, region_offset + at, bytes, extents, count, done),
             "a status");
    for (uint32_t i = 0; i < count && extents[i].bytes > 0; i++) {
        EXPECT(extents[i].bytes <= bytes - total, "extents inside the range");
        for (uint64_t j = 0; j < extents[i].bytes; j++, total++) {
            EXPECT((extents[i].flags & BLKREPL_EXTENT_ZERO) == 0 || model[at + total] == 0,
                   "no ZERO where there are data, at %llu", (ull)(region_offset + at + total));
        }
    }
    EXPECT(total > 0 || bytes == 0, "extents of one byte at least");
}

static void step(blkrepl_image *image)
{
    struct waiter waiter = {.done = false};
    blkrepl_completion done = {.fn = waiter_called, .user = &waiter};

    switch (take_below(8)) {
    case 0:
    case 1:
    case 2: do_write(image, &done); break;
    case 3: do_zeroes(image, &done); break;
    case 4: do_discard(image, &done); break;
    case 5: do_status(image, &done); break;
    case 6: wait_for(&waiter, blkrepl_image_flush(image, 0, &done), "a flush"); break;
    default: do_read(image); break;
    }
}

void image_exercise(blkrepl_image *image, uint64_t bytes)
{
    region_bytes = bytes < REGION_MAX ? bytes : REGION_MAX;
    region_offset = take_chance(50) ? bytes - region_bytes : 0;
    read_part(image, 0, region_bytes, model);
    for (uint32_t steps = take_below(STEPS_MAX); steps > 0; steps--) {
        step(image);
    }
}
