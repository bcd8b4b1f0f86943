/* SPDX-License-Identifier: MIT */
/* Snapshots under guests, readers and discards in random order, held back wherever they
 * can be: what is read is what was there, and what is not is told. */
#include "unit/snap_rig.h"

#include "base/hook.h"

#define READS 6
#define WRITES 6
#define STATUS_EXTENTS 5

struct walk_read {
    struct snap_read read;
    blkrepl_iovec iov[7];
    bool used;
    bool gone; /* a part had been discarded when it began */
    bool late; /* the job was over */
};

struct walk_status {
    struct done done;
    blkrepl_extent extents[STATUS_EXTENTS];
    uint64_t offset;
    uint64_t bytes;
    bool used;
};

struct walk_write {
    struct done done;
    blkrepl_iovec iov;
    unsigned char data[20000];
    bool used;
};

struct walk {
    struct snap_rig r;
    struct rng rng;
    uint64_t size;
    blkrepl_image *images[2];
    struct walk_read reads[READS];
    struct walk_status status;
    struct walk_write writes[WRITES];
    struct done discard;
    bool discard_used;
    uint64_t discard_start;
    uint64_t discard_end;
    bool gone[64];  /* clusters that a discard which has ended was about */
    bool maybe[64]; /* the same, and it has not ended */
    unsigned char value;
    unsigned good;
    unsigned refused;
};

#ifdef BLKREPL_HOOKS
static struct walk *walking;

static bool walk_stretch(enum stretch_site site)
{
    (void)site;
    return rng_below(&walking->rng, 6) == 0;
}
#endif

/* Hold the library back at random, or no more. */
static void walk_set_stretch(struct walk *w)
{
#ifdef BLKREPL_HOOKS
    walking = w;
    blkrepl__stretch_hook = w != NULL ? walk_stretch : NULL;
#else
    (void)w;
#endif
}

static void walk_range(struct walk *w, uint64_t most, uint64_t *start, uint64_t *end)
{
    uint64_t bytes = 1 + rng_below(&w->rng, rng_below(&w->rng, 2) == 0 ? 6000 : most);

    *start = rng_below(&w->rng, w->size);
    *end = min_u64(*start + bytes, w->size);
}

static bool walk_any(const bool *clusters, uint64_t start, uint64_t end)
{
    for (uint64_t at = start / CLUSTER; at * CLUSTER < end; at++) {
        if (clusters[at]) {
            return true;
        }
    }
    return false;
}

/* Whether the job has ended, or is about to. */
static bool walk_over(const struct walk *w)
{
    return w->r.copy->stopped || w->r.job->complete;
}

static void walk_write(struct walk *w)
{
    struct walk_write *write = &w->writes[rng_below(&w->rng, WRITES)];
    blkrepl_completion completion;
    uint64_t start;
    uint64_t end;
    int rc;

    if (write->used) {
        return;
    }
    walk_range(w, sizeof write->data, &start, &end);
    memset(write->data, ++w->value, sizeof write->data);
    write->iov = (blkrepl_iovec){.base = write->data, .len = (size_t)(end - start)};
    completion = done_of(&write->done);
    switch (rng_below(&w->rng, 6)) {
    case 0: rc = blkrepl_image_discard(w->r.from, 0, start, end - start, 0, &completion); break;
    case 1:
        rc = blkrepl_image_write_zeroes(w->r.from, 0, start, end - start, 0, &completion);
        break;
    default: rc = blkrepl_image_write(w->r.from, 0, start, &write->iov, 1, 0, &completion); break;
    }
    assert_int_equal(rc, 0);
    write->used = true;
}

static void walk_read(struct walk *w)
{
    struct walk_read *one = &w->reads[rng_below(&w->rng, READS)];
    struct snap_read *read = &one->read;
    blkrepl_completion completion;
    uint64_t start;
    uint64_t end;
    uint64_t left;
    uint32_t count = 0;

    if (one->used) {
        return;
    }
    walk_range(w, w->size, &start, &end);
    completion = done_of(&read->done);
    read->offset = start;
    read->bytes = end - start;
    read->data = malloc((size_t)read->bytes + 1);
    assert_non_null(read->data);
    memset(read->data, 0x77, (size_t)read->bytes + 1);
    for (left = read->bytes; left > 0; count++) {
        uint64_t len = count == 6 ? left : min_u64(left, 1 + rng_below(&w->rng, 5000));

        one->iov[count] =
            (blkrepl_iovec){.base = read->data + (read->bytes - left), .len = (size_t)len};
        left -= len;
    }
    one->used = true;
    one->gone = walk_any(w->gone, start, end);
    one->late = walk_over(w);
    assert_int_equal(blkrepl_image_read(w->images[rng_below(&w->rng, 2)], 0, start, one->iov, count,
                                        0, &completion),
                     0);
}

static void walk_status(struct walk *w)
{
    struct walk_status *status = &w->status;
    blkrepl_completion completion = done_of(&status->done);
    uint64_t end;

    if (status->used) {
        return;
    }
    walk_range(w, w->size, &status->offset, &end);
    status->bytes = end - status->offset;
    status->used = true;
    assert_int_equal(blkrepl_image_status(w->images[0], 0, status->offset, status->bytes,
                                          status->extents, STATUS_EXTENTS, &completion),
                     0);
}

static void walk_discard(struct walk *w)
{
    blkrepl_completion completion;
    uint64_t start;
    uint64_t end;

    if (w->discard_used) {
        return;
    }
    walk_range(w, 20000, &start, &end);
    completion = done_of(&w->discard);
    w->discard_used = true;
    w->discard_start = align_up(start, CLUSTER) / CLUSTER;
    w->discard_end = end == w->size ? align_up(end, CLUSTER) / CLUSTER : end / CLUSTER;
    for (uint64_t at = w->discard_start; at < w->discard_end; at++) {
        w->maybe[at] = true;
    }
    assert_int_equal(blkrepl_image_discard(w->images[rng_below(&w->rng, 2)], 0, start, end - start,
                                           0, &completion),
                     0);
}

/* What must hold of a read that has ended. */
static void walk_check_read(struct walk *w, struct walk_read *one)
{
    struct snap_read *read = &one->read;
    int result = read->done.result;

    assert_int_equal(read->data[read->bytes], 0x77);
    if (result == 0) {
        assert_false(one->gone);
        assert_false(one->late);
        assert_memory_equal(read->data, w->r.old + read->offset, read->bytes);
        w->good++;
    } else if (result == -EACCES) {
        assert_true(walk_any(w->maybe, read->offset, read->offset + read->bytes));
        w->refused++;
    } else if (result != -EIO) { /* which a backend has said, or the job has failed of */
        assert_true(walk_over(w));
        assert_int_equal(result, -ESHUTDOWN);
    }
    free(read->data);
    one->used = false;
}

static void walk_check_status(struct walk *w)
{
    struct walk_status *status = &w->status;
    uint64_t at = status->offset;

    status->used = false;
    if (status->done.result != 0) {
        assert_true(walk_over(w));
        return;
    }
    for (int i = 0; i < STATUS_EXTENTS && status->extents[i].bytes > 0; i++) {
        uint64_t end = at + status->extents[i].bytes;

        assert_true(end <= status->offset + status->bytes);
        for (uint64_t b = at; b < end && (status->extents[i].flags & BLKREPL_EXTENT_ZERO) != 0;
             b++) {
            assert_int_equal(w->r.old[b], 0);
        }
        if (status->extents[i].flags == 0) {
            assert_true(walk_any(w->maybe, at, at + 1));
        }
        at = end;
    }
    assert_true(at > status->offset);
}

static void walk_look(struct walk *w)
{
    for (int i = 0; i < READS; i++) {
        if (w->reads[i].used && w->reads[i].read.done.calls > 0) {
            walk_check_read(w, &w->reads[i]);
        }
    }
    for (int i = 0; i < WRITES; i++) {
        w->writes[i].used = w->writes[i].used && w->writes[i].done.calls == 0;
    }
    if (w->status.used && w->status.done.calls > 0) {
        walk_check_status(w);
    }
    if (w->discard_used && w->discard.calls > 0) {
        w->discard_used = false;
        for (uint64_t at = w->discard_start; at < w->discard_end && w->discard.result == 0; at++) {
            w->gone[at] = true;
        }
    }
}

/* Whether it is of a write that was given before the point in time. */
static bool walk_is_before(const struct walk *w, const blkrepl_io *io)
{
    uint32_t slot = (uint32_t)(io->id & REQUEST_INDEX_MASK);
    const struct guest *guest;

    if (slot >= w->r.rig.ctx->requests_max || io->opcode == BLKREPL_OP_READ) {
        return false;
    }
    guest = blkrepl__guest_of_slot(w->r.rig.ctx, slot);
    return range_live(&guest->range) && guest->image == w->r.from &&
           guest->range.given_at <= w->r.copy->tap.attached_at;
}

/* A backend completes something; what was on its way at the point in time is part of it. */
static void walk_complete(struct walk *w, struct script *script)
{
    unsigned nth;
    uint64_t offset;
    uint64_t bytes;
    bool before;
    int result = 0;

    if (script->waiting_count == 0) {
        return;
    }
    nth = (unsigned)rng_below(&w->rng, script->waiting_count);
    offset = script->waiting[nth]->offset;
    bytes = script->waiting[nth]->bytes;
    before = walk_is_before(w, script->waiting[nth]);
    if (script->waiting[nth]->opcode == BLKREPL_OP_READ && rng_below(&w->rng, 2000) == 0) {
        result = -EIO;
    }
    script_end(script, nth, result);
    if (before) {
        memcpy(w->r.old + offset, w->r.source.disk + offset, (size_t)bytes);
    }
}

static void walk_step(struct walk *w)
{
    switch (rng_below(&w->rng, 12)) {
    case 0: walk_write(w); break;
    case 1:
    case 2: walk_read(w); break;
    case 3: walk_status(w); break;
    case 4:
        if (rng_below(&w->rng, 30) == 0) {
            walk_discard(w);
        }
        break;
    case 5:
    case 6:
    case 7: walk_complete(w, &w->r.source); break;
    case 8:
    case 9: walk_complete(w, &w->r.target); break;
    default: assert_true(blkrepl_poll(w->r.rig.ctx, 0, 0) >= 0); break;
    }
    walk_look(w);
}

/* The disks: of different alignments and ends. */
static void walk_open(struct walk *w)
{
    blkrepl_backup_options o = {.reserve_bytes = (1 + rng_below(&w->rng, 4)) * CLUSTER};
    uint64_t ends[] = {64 * KIB, 61000, 61440 + 512};

    o.on_cbw_error = (uint32_t)rng_below(&w->rng, 3);
    w->size = ends[rng_below(&w->rng, 3)];
    snap_init(&w->r, NULL, w->size);
    memset(w->r.source.disk + 20000, 0, 20000);
    w->r.source.map[0] = (blkrepl_extent){.bytes = 20000, .flags = BLKREPL_EXTENT_DATA};
    w->r.source.map[1] = (blkrepl_extent){.bytes = 20000, .flags = BLKREPL_EXTENT_ZERO};
    if (rng_below(&w->rng, 2) == 0) {
        script_fini(&w->r.target);
        script_init(&w->r.target, 68 * KIB);
    }
    w->r.target.info.request_alignment = 1u << rng_below(&w->rng, 13);
    w->r.source.info.request_alignment = 1u << rng_below(&w->rng, 10);
    w->r.source.info.transfer_bytes_max = rng_below(&w->rng, 2) * 10240;
    w->r.target.info.iov_count_max = (uint32_t)rng_below(&w->rng, 4);
    snap_open_images(&w->r);
    w->r.source.hold = ALL;
    for (uint64_t n = rng_below(&w->rng, 3); n > 0; n--) {
        walk_write(w);
        rig_poll(&w->r.rig);
    }
    if (w->r.source.waiting_count > 0) {
        w->r.source.map[0].bytes = 0; /* it may be true no more */
    }
    snap_start(&w->r, &o);
    w->images[0] = w->r.image;
    w->images[1] = snap_another(&w->r);
    w->r.source.hold = w->r.target.hold = ALL;
}

static bool walk_busy(const struct walk *w)
{
    bool busy = w->status.used || w->discard_used;

    for (int i = 0; i < READS; i++) {
        busy = busy || w->reads[i].used;
    }
    for (int i = 0; i < WRITES; i++) {
        busy = busy || w->writes[i].used;
    }
    return busy;
}

static void walk_close(struct walk *w)
{
    if (rng_below(&w->rng, 2) == 0) {
        blkrepl_job_cancel(w->r.job, 0);
    } else {
        blkrepl_job_complete(w->r.job);
    }
    for (int i = 0; i < 30; i++) {
        walk_step(w);
    }
    walk_set_stretch(NULL);
    w->r.source.hold = w->r.target.hold = 0;
    for (int i = 0; i < 10000 && walk_busy(w); i++) {
        walk_complete(w, &w->r.source);
        walk_complete(w, &w->r.target);
        rig_poll(&w->r.rig);
        walk_look(w);
    }
    assert_false(walk_busy(w));
    blkrepl_image_close(w->images[1]);
    snap_close(&w->r);
}

static void snapshots_are_what_was_there(void **state)
{
    unsigned seeds = quick() ? 40 : 400;
    unsigned good = 0;
    unsigned refused = 0;

    (void)state;
    for (unsigned seed = 1; seed <= seeds; seed++) {
        struct walk *w = calloc(1, sizeof *w);

        assert_non_null(w);
        w->rng.state = seed;
        walk_open(w);
        walk_set_stretch(w);
        for (int i = 0; i < 1500; i++) {
            walk_step(w);
        }
        walk_close(w);
        good += w->good;
        refused += w->refused;
        free(w);
    }
    assert_true(good > 20 * seeds && refused > seeds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapshots_are_what_was_there),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
