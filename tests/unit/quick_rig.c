/* SPDX-License-Identifier: MIT */
#include "unit/quick_rig.h"

#include "base/checked.h"

static unsigned char memory[2 * 1024 * 1024];

void quick_init(struct quick_bench *b, const blkrepl_context_options *options, uint64_t bytes)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, options);
    script_init(&b->disk, bytes);
    b->disk.info.request_alignment = 512;
}

void quick_open(struct quick_bench *b)
{
    b->image = script_open_quick(&b->disk, &b->rig);
    assert_true(is_quick(b));
}

void quick_close(struct quick_bench *b)
{
    quick_check(b);
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
}

bool is_quick(const struct quick_bench *b)
{
    return atomic_load(&quick_port(b)->quick);
}

struct port *quick_port(const struct quick_bench *b)
{
    return &b->image->leaf->port;
}

struct guest *quick_guest(const struct quick_bench *b, uint32_t index)
{
    return blkrepl__guest_of_slot(b->rig.ctx, index);
}

/* ---- Invariants ------------------------------------------------------------- */

static uint32_t list_count(const struct list *list)
{
    uint32_t count = 0;

    for (const struct list *link = list->next; link != list; link = link->next) {
        count++;
    }
    return count;
}

/* One guest of the image that is quick. */
static void check_guest(const struct guest *guest)
{
    bool moving = guest->phase == GUEST_GIVEN || guest->phase == GUEST_GO;

    assert_true(moving || guest->phase == GUEST_ENDED);
    assert_false(list_linked(&guest->image_link));
    assert_false(range_live(&guest->range));
    assert_int_equal(list_linked(&guest->stripe_link), moving && guest_writes(guest));
    assert_int_equal(guest->in_stripe, list_linked(&guest->stripe_link));
    assert_int_equal(list_linked(&guest->callback.link), guest->phase == GUEST_ENDED);
}

/* Nothing of the slow way is left. */
static void check_port(const struct quick_bench *b)
{
    const struct port *port = quick_port(b);

    assert_true(b->image->open && list_empty(&b->image->taps));
    assert_int_equal(b->image->jobs_reading + b->image->jobs_writing, 0);
    assert_int_equal(b->image->leaf->ranges.tree.count, 0);
    assert_int_equal(port->guest_in_flight + port->job_in_flight + port->guest_waiting, 0);
    for (uint32_t lane = 0; lane < b->rig.ctx->lane_count; lane++) {
        assert_true(list_empty(&port->guest[lane].waiting) && list_empty(&port->guest[lane].first));
        assert_true(port->guest[lane].places <= port->places_kept);
    }
}

static uint32_t stripes_count(const struct quick_bench *b)
{
    uint32_t count = 0;

    for (int i = 0; i < QUICK_STRIPES; i++) {
        count += list_count(&b->image->stripes[i].writes);
    }
    return count;
}

static uint32_t places_all(const struct quick_bench *b)
{
    uint32_t places = atomic_load(&quick_port(b)->places);

    for (uint32_t lane = 0; lane < b->rig.ctx->lane_count; lane++) {
        places += quick_port(b)->guest[lane].places;
    }
    return places;
}

void quick_check(struct quick_bench *b)
{
    struct blkrepl_context *ctx = b->rig.ctx;
    uint32_t in_flight = 0;
    uint32_t writes = 0;
    uint32_t all = 0;

    for (uint32_t lane = 0; lane < ctx->lane_count; lane++) {
        const struct list *list = &ctx->lanes[lane].quick;

        for (const struct list *link = list->next; link != list; link = link->next) {
            const struct guest *guest = CONTAINER_OF(link, struct guest, quick_link);

            assert_true(atomic_load(&guest->request->quick) && guest->lane == lane);
            if (guest->image == b->image) {
                check_guest(guest);
                in_flight += guest->phase == GUEST_GIVEN;
                writes += list_linked(&guest->stripe_link);
                all++;
            }
        }
    }
    assert_int_equal(stripes_count(b), writes);
    if (is_quick(b)) {
        check_port(b);
        assert_int_equal(places_all(b) + in_flight, quick_port(b)->info.queue_depth);
    } else {
        assert_int_equal(all, 0);
    }
    assert_true(b->disk.waiting_count <= quick_port(b)->info.queue_depth);
}

/* ---- Turning it ------------------------------------------------------------- */

void quick_turn(struct quick_bench *b)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__quick_stop(b->image);
    assert_false(is_quick(b));
    blkrepl__leave(b->rig.ctx, 0);
    quick_check(b);
}

bool quick_back(struct quick_bench *b)
{
    blkrepl__enter(b->rig.ctx);
    b->image->slow_left = 0;
    blkrepl__quick_resume(b->image);
    blkrepl__leave(b->rig.ctx, 0);
    quick_check(b);
    return is_quick(b);
}

/* ---- Requests --------------------------------------------------------------- */

static blkrepl_iovec *iov_of(uint64_t bytes)
{
    static blkrepl_iovec iovs[4096];
    static unsigned next;
    blkrepl_iovec *iov = &iovs[next++ % ARRAY_COUNT(iovs)];

    assert_true(bytes <= sizeof memory);
    *iov = (blkrepl_iovec){.base = memory, .len = (size_t)bytes};
    return iov;
}

void quick_write(struct quick_bench *b, uint32_t lane, uint64_t offset, uint64_t bytes,
                 struct done *done)
{
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_write(b->image, lane, offset, iov_of(bytes), 1, 0, &c), 0);
}

void quick_read(struct quick_bench *b, uint32_t lane, uint64_t offset, uint64_t bytes,
                struct done *done)
{
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_read(b->image, lane, offset, iov_of(bytes), 1, 0, &c), 0);
}

void quick_flush_call(struct quick_bench *b, uint32_t lane, struct done *done)
{
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_flush(b->image, lane, &c), 0);
}

void quick_slow(struct quick_bench *b, uint32_t lane, struct done *done)
{
    static blkrepl_extent extent;
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_status(b->image, lane, 0, 512, &extent, 1, &c), 0);
}

int quick_bracket(struct quick_bench *b, uint32_t lane, uint32_t opcode, uint64_t offset,
                  uint64_t bytes, struct done *go, uint64_t *token)
{
    blkrepl_completion c = done_of(go);
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = opcode,
                            .offset = offset,
                            .bytes = bytes,
                            .lane = lane};

    return blkrepl_write_begin(b->image, &what, &c, token);
}

void quick_poll(struct quick_bench *b, uint32_t lane)
{
    for (unsigned i = 0; blkrepl__lane_busy(b->rig.ctx, lane) || i == 0; i++) {
        assert_true(i < 10000);
        assert_true(blkrepl_poll(b->rig.ctx, lane, 0) >= 0);
    }
}

void quick_poll_all(struct quick_bench *b)
{
    for (uint32_t i = 0; i < 3 * b->rig.ctx->lane_count; i++) {
        quick_poll(b, i % b->rig.ctx->lane_count);
    }
}

void quick_unlocked(const struct quick_bench *b)
{
    struct blkrepl_context *ctx = b->rig.ctx;

    assert_int_equal(pthread_mutex_trylock(&ctx->lock), 0);
    pthread_mutex_unlock(&ctx->lock);
    for (uint32_t lane = 0; lane < ctx->lane_count; lane++) {
        assert_int_equal(pthread_mutex_trylock(&ctx->lanes[lane].lock), 0);
        pthread_mutex_unlock(&ctx->lanes[lane].lock);
    }
}
