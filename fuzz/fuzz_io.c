/* SPDX-License-Identifier: MIT */
/* fuzz_io.c - guest I/O over a disk with all kinds of limits, against a model.
 *
 * The input draws the disk, then a sequence of requests, brackets, completions
 * in any order, polls, and calls that must be refused; also from inside submit
 * and callbacks.  Reads return what the model allows, acknowledged writes are on
 * the medium, every callback runs once, and at the end nothing is left. */
#include "io.h"

#include "base/hook.h"

#include <stdlib.h>

#define STEPS_MAX 160
#define ROUNDS_MAX 10000
#define NESTED_MAX 2

struct io io;

/* ---- The disk ---------------------------------------------------------------- */

static void io_landed(struct disk *disk, const struct disk_request *request, int result)
{
    (void)disk;
    io.last_id = request->id;
    if (result < 0) {
        model_disk_failed(request, result);
        if (request->opcode == BLKREPL_OP_ZEROES && result == -ENOTSUP) {
            io.zeroes_refused = true;
        }
    }
}

/* Complete one, well or badly. */
static void io_complete(uint32_t which)
{
    struct disk_request *request = &io.disk.queue[which];
    int result = !io.healed && take_chance(io.error_percent) ? take_code() : 0;
    uint64_t landed = result < 0 && take_chance(50) ? take_u16() : 0;

    disk_complete(&io.disk, which, result, landed < request->bytes ? landed : request->bytes);
}

static void io_submitted(struct disk *disk)
{
    EXPECT(!io.gone, "no submit after context_free");
    for (uint32_t i = disk->in_flight; i > 0; i--) {
        if (disk->in_flight > 0 && take_chance(io.inline_percent)) {
            io_complete(take_below(disk->in_flight));
        }
    }
    io_nested();
}

static void io_cancelled(struct disk *disk, uint64_t id)
{
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        if (disk->queue[i].id == id && take_chance(io.cancel_percent)) {
            disk_complete(disk, i, take_chance(30) ? 0 : -ECANCELED, 0);
            break;
        }
    }
    io_nested();
}

static uint32_t draw_unit(uint32_t most_log)
{
    return take_chance(50) ? 1u << take_below(most_log + 1) : 0;
}

static uint64_t draw_limit(uint64_t unit)
{
    uint64_t limit;

    if (!take_chance(40)) {
        return 0;
    }
    limit = unit * (1 + take_below(6));
    limit += take_below(3) * (unit / 2);
    /* Most requests are not to become hundreds of pieces. */
    return limit < 128 && !take_chance(10) ? limit + 128 : limit;
}

static void draw_info(blkrepl_backend_info *info)
{
    uint64_t unit;

    info->request_alignment = draw_unit(io.huge ? 12 : 16);
    info->memory_alignment = draw_unit(12);
    unit = disk_alignment(&io.disk);
    info->transfer_bytes_max = draw_limit(unit);
    info->zeroes_bytes_max = draw_limit(unit);
    info->iov_count_max = take_chance(40) ? 1 + take_below(5) : 0;
    info->queue_depth = take_chance(50) ? 1 + take_below(4) : 0;
    info->opcodes = 0x7eu & ~(uint32_t)(take_below(16) << BLKREPL_OP_ZEROES);
    info->flags = take_chance(40) ? BLKREPL_BACKEND_FUA : 0;
    if (take_chance(4)) {
        info->flags |= BLKREPL_BACKEND_READ_ONLY;
        io.read_only = true;
    }
}

static void disk_draw(void)
{
    struct disk *disk = &io.disk;
    uint64_t bytes;

    io.huge = take_chance(15);
    if (io.huge) {
        bytes = (uint64_t)INT64_MAX - take_below(2) * 4095;
    } else {
        bytes = take_u16();
        bytes %= take_chance(20) ? WINDOW_MAX + 1 : 4 * KIB;
    }
    disk_init(disk, io.ctx, bytes, io.huge ? WINDOW_MAX : bytes > 0 ? bytes : 1);
    draw_info(&disk->info);
    disk->discard = (enum disk_discard)take_below(3);
    disk->status_unit = 1u << take_below(12);
    disk->on_submit = io_submitted;
    disk->on_cancel = io_cancelled;
    disk->on_landed = io_landed;
}

/* ---- Holding the library back ------------------------------------------------ */

#ifdef BLKREPL_HOOKS

/* Not from the input, which is to mean the same in a build without hooks. */
static bool stretch(enum stretch_site site)
{
    io.stretch_state =
        (io.stretch_state + (uint64_t)site) * UINT64_C(6364136223846793005) + UINT64_C(1442695041);
    return (io.stretch_state >> 33) % 100 < io.stretch_percent;
}

static void stretch_install(void)
{
    blkrepl__stretch_hook = io.stretch_percent > 0 ? stretch : NULL;
}

#else

static void stretch_install(void)
{
    io.stretch_percent = 0;
}

#endif

static void stretch_draw(void)
{
    io.stretch_percent = take_chance(30) ? take_below(60) : 0;
    io.stretch_state = take_u8();
    stretch_install();
}

/* ---- The context ------------------------------------------------------------- */

static void io_event(void *user, const blkrepl_event *event)
{
    EXPECT(user == &io && io.polling && !io.gone, "an event in a poll");
    EXPECT(event->type == BLKREPL_EVENT_ROOM && event->object_kind == BLKREPL_OBJECT_LANE &&
               event->object_id == 0 && event->count > 0,
           "a ROOM of lane 0, got type %u", (unsigned)event->type);
    io.room_expected = false;
    io_nested();
}

static void context_open(void)
{
    blkrepl_allocator allocator = heap_allocator();
    blkrepl_hooks hooks = fuzz_hooks();
    blkrepl_context_options options = {.struct_size = sizeof options,
                                       .allocator = &allocator,
                                       .hooks = &hooks,
                                       .on_event = {.fn = io_event, .user = &io}};
    int rc;

    io.requests_max = 1 + take_below(24);
    options.requests_max = io.requests_max;
    options.job_requests_max = 1;
    options.callbacks_max = take_chance(30) ? 1 + take_below(4) : 0;
    options.completions_max = take_chance(30) ? 1 + take_below(4) : 0;
    rc = blkrepl_context_create(&options, &io.ctx);
    EXPECT(rc == 0, "a context, got %d \"%s\"", rc, blkrepl_error_message());
}

/* Limits that are felt: some requests wait, and the clock goes on only in act_query(). */
static blkrepl_throttle_options draw_limits(void)
{
    blkrepl_throttle_options o = {.struct_size = sizeof o};

    o.bytes_per_sec = take_chance(70) ? 1u + take_u16() : 0;
    o.ops_per_sec = take_chance(40) ? 1u + take_below(100) : 0;
    o.burst_bytes = take_chance(40) ? take_u16() : 0;
    return o;
}

static void throttle_draw(void)
{
    blkrepl_throttle_options o;

    if (take_chance(20)) {
        o = draw_limits();
        EXPECT(blkrepl_throttle_create(io.ctx, &o, &io.throttle) == 0, "a throttle");
        EXPECT(blkrepl_image_set_throttle(io.image, io.throttle) == 0, "an image to take it");
    }
}

static void io_open(void)
{
    int rc;

    memset(&io, 0, offsetof(struct io, disk));
    memset(&io.requests_max, 0, offsetof(struct io, requests) - offsetof(struct io, requests_max));
    io.next_tag = TAG_WRITES;
    stretch_draw();
    context_open();
    io.inline_percent = take_chance(50) ? take_below(101) : 0;
    io.error_percent = take_chance(40) ? take_below(30) : 0;
    io.nested_percent = take_chance(40) ? take_below(40) : 0;
    io.cancel_percent = take_below(101);
    disk_draw();
    model_init();
    rc = blkrepl_image_open(io.ctx, &disk_ops, &io.disk, NULL, &io.image);
    EXPECT(rc == 0, "an image, got %d \"%s\"", rc, blkrepl_error_message());
    throttle_draw();
}

/* ---- Acts -------------------------------------------------------------------- */

static void act_poll(void)
{
    int rc;

    if (io.depth > 0) {
        rc = blkrepl_poll(io.ctx, 0, 0);
        EXPECT(rc == -EDEADLK, "a poll inside the host's code: -EDEADLK, got %d", rc);
        return;
    }
    if (io.polling) {
        return;
    }
    io.polling = true;
    rc = blkrepl_poll(io.ctx, 0, 0);
    io.polling = false;
    EXPECT(rc >= 0, "a poll, got %d", rc);
}

static void act_complete(void)
{
    for (uint32_t i = take_below(4) + 1; i > 0 && io.disk.in_flight > 0; i--) {
        io_complete(take_below(io.disk.in_flight));
    }
}

static void act_query(void)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    uint32_t most = io.pending; /* the call itself may end some, from inside submit */
    uint64_t deadline;
    int rc;

    rc = blkrepl_poll_arm(io.ctx, 0, &deadline);
    EXPECT(rc == 0 || rc == 1, "poll_arm: 0 or 1, got %d", rc);
    EXPECT(rc == 1 || deadline == BLKREPL_FOREVER || io.throttle != NULL,
           "no deadline without a job or a throttle");
    if (rc == 0 && deadline != BLKREPL_FOREVER && deadline > clock_now) {
        clock_now = take_chance(50) ? deadline : clock_now + (deadline - clock_now) / 2;
    }
    if (io.image != NULL) {
        rc = blkrepl_image_query(io.image, &info);
        EXPECT(rc == 0 && info.bytes == io.disk.info.bytes, "a query, got %d", rc);
        EXPECT(info.requests_in_flight <= most, "at most %u requests in flight, got %u",
               (unsigned)most, (unsigned)info.requests_in_flight);
    }
}

/* Change the limits, or take the throttle away: who waits then passes. */
static void act_throttle(void)
{
    blkrepl_throttle_options o;

    if (io.throttle == NULL || io.image == NULL || io.shut) {
        return;
    }
    o = draw_limits();
    if (take_chance(60)) {
        EXPECT(blkrepl_throttle_set(io.throttle, &o) == 0, "other limits");
    } else {
        bool on = take_chance(50);

        EXPECT(blkrepl_image_set_throttle(io.image, on ? io.throttle : NULL) == 0,
               "the throttle to be %s", on ? "given" : "taken away");
    }
}

/* Begin to free the context while there is something left. */
static void act_shut(void)
{
    int rc;

    if (io.depth > 0) {
        EXPECT(blkrepl_context_free(io.ctx) == -EBUSY, "no free inside the host's code");
        return;
    }
    if (!take_chance(10) || io.polling || (io.pending == 0 && io.image == NULL)) {
        return;
    }
    fuzz_note("shut");
    io.shut = true;
    io.polling = true;
    rc = blkrepl_context_free(io.ctx);
    io.polling = false;
    EXPECT(rc == -EBUSY || (rc == 0 && io.image == NULL), "-EBUSY while something is left, got %d",
           rc);
    io.gone = rc == 0;
}

void io_act(void)
{
    switch (take_below(20)) {
    case 0:
    case 1:
    case 2: guest_request(BLKREPL_OP_WRITE); break;
    case 3:
    case 4: guest_request(BLKREPL_OP_READ); break;
    case 5: guest_request(BLKREPL_OP_ZEROES); break;
    case 6: guest_request(BLKREPL_OP_DISCARD); break;
    case 7: guest_request(BLKREPL_OP_FLUSH); break;
    case 8: guest_request(BLKREPL_OP_STATUS); break;
    case 9: guest_bracket(); break;
    case 10:
    case 11: guest_finish_bracket(); break;
    case 12:
    case 13: act_complete(); break;
    case 14:
    case 15: act_poll(); break;
    case 16: guest_garbage(); break;
    case 17:
        act_query();
        act_throttle();
        break;
    case 18: act_shut(); break;
    default:
        if (io.image != NULL && take_chance(10)) {
            guest_close();
        }
        break;
    }
}

/* The host's code calls the library. */
void io_nested(void)
{
    if (io.healed || io.depth >= NESTED_MAX || !take_chance(io.nested_percent)) {
        return;
    }
    io.depth++;
    io_act();
    io.depth--;
}

/* ---- To the end -------------------------------------------------------------- */

/* Who waits in the throttle's row gets its turn. */
static void pass_time(void)
{
    uint64_t deadline;

    if (io.throttle != NULL && !io.gone && blkrepl_poll_arm(io.ctx, 0, &deadline) == 0 &&
        deadline != BLKREPL_FOREVER && deadline > clock_now) {
        clock_now = deadline;
    }
}

/* The disk is well again: everything ends. */
static void io_finish(void)
{
    int rounds = 0;

    io.healed = true;
    if (io.throttle != NULL && io.image != NULL && !io.shut && take_chance(50)) {
        EXPECT(blkrepl_image_set_throttle(io.image, NULL) == 0, "the throttle to be taken away");
    }
    while (io.pending > 0) {
        EXPECT(++rounds < ROUNDS_MAX, "every request to end, %u have not", (unsigned)io.pending);
        (void)disk_complete_all(&io.disk);
        (void)guest_end_any_bracket();
        act_poll();
        pass_time();
    }
    while (io.room_expected) {
        EXPECT(++rounds < ROUNDS_MAX, "a ROOM after -EAGAIN");
        act_poll();
    }
    model_check_medium();
}

static void read_done(void *user, int result)
{
    EXPECT(result == 0, "a read of a good disk to succeed, got %d", result);
    *(bool *)user = true;
}

static void read_back(uint64_t offset, uint64_t count)
{
    uint8_t *bytes = fuzz_alloc((size_t)count);
    blkrepl_iovec iov = {.base = bytes, .len = (size_t)count};
    int rounds = 0;
    bool done = false;
    blkrepl_completion completion = {.fn = read_done, .user = &done};

    memset(bytes, 0x22, (size_t)count);
    EXPECT(blkrepl_image_read(io.image, 0, offset, &iov, 1, 0, &completion) == 0, "a read");
    while (!done) {
        EXPECT(++rounds < ROUNDS_MAX, "a read to end");
        (void)disk_complete_all(&io.disk);
        act_poll();
        pass_time();
    }
    for (uint64_t i = 0; i < count; i++) {
        EXPECT(bytes[i] == *disk_at(&io.disk, offset + i), "to read the medium at %llu",
               (ull)(offset + i));
    }
    free(bytes);
}

/* Both ends are read once more. */
static void io_read_back(void)
{
    uint64_t size = io.disk.info.bytes;
    uint64_t part = size < KIB ? size : KIB;

    if (io.image != NULL && !io.shut) {
        read_back(0, part);
        read_back(size - part, part);
    }
}

static void io_close(void)
{
    int rc = -EBUSY;

    if (io.image != NULL) {
        guest_close();
    }
    if (!io.gone) {
        blkrepl_throttle_free(io.throttle);
    }
    for (int i = 0; i < ROUNDS_MAX && rc == -EBUSY && !io.gone; i++) {
        io.polling = true;
        rc = blkrepl_context_free(io.ctx);
        io.polling = false;
        (void)disk_complete_all(&io.disk);
    }
    EXPECT(rc == 0 || io.gone, "context_free: 0, got %d \"%s\"", rc, blkrepl_error_message());
    EXPECT(io.disk.closes == 1, "the disk to be closed once, got %u", io.disk.closes);
    for (uint32_t i = 0; i < io.request_count; i++) {
        const struct request *request = &io.requests[i];

        EXPECT(request->releases == request->with_release,
               "release of request %u to have run once, got %u", (unsigned)i, request->releases);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_begin(data, size);
    io_open();
    for (int i = 0; i < STEPS_MAX && !input_empty() && !io.gone; i++) {
        io_act();
    }
    if (!io.gone) {
        io_finish();
        io_read_back();
    }
    io_close();
    fuzz_end();
    return 0;
}
