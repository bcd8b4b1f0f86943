/* SPDX-License-Identifier: MIT */
/* s_bitmap_image.c - bitmaps of images: recording, freezing, several at one instant. */
#include "api.h"

#define G CLUSTER

static struct image *one(struct world *w, const blkrepl_backend_info *info)
{
    struct image *image = image_disk(w, info, FILL_DATA);

    return world_open(w, NULL) && image_open(image, NULL) ? image : NULL;
}

static void check_all(struct world *w)
{
    world_settle(w);
    for (unsigned i = 0; i < w->bitmap_count; i++) {
        bitmap_check(&w->bitmaps[i]);
    }
}

/* ---- Names, lists, handles ---- */

static void wrong_options(struct image *image)
{
    static const blkrepl_bitmap_options bad[] = {
        {.name = NULL},
        {.name = ""},
        {.name = "x", .granularity_bytes = 256},
        {.name = "x", .granularity_bytes = UINT64_C(1) << 32},
        {.name = "x", .granularity_bytes = 1000},
        {.name = "x", .bytes = 5},
        {.name = "x", .flags = BLKREPL_BITMAP_BUSY},
    };
    blkrepl_bitmap *none = NULL;

    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        blkrepl_bitmap_options o = bad[i];

        o.struct_size = sizeof o;
        api_must(-EINVAL);
        api_bitmap_add(image->handle, &o, &none);
    }
    api_must(-EINVAL);
    api_bitmap_add(image->handle, NULL, &none);
    api_must(-EINVAL);
    api_bitmap_find(image->handle, NULL, &none);
    api_must(-EINVAL);
    api_bitmap_next(image->handle, 0, NULL);
    api_must(-EINVAL);
    api_bitmap_next(NULL, 0, &none);
}

/* All of the image, by their ids; how many. */
static unsigned list_all(struct image *image)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    blkrepl_bitmap *next = NULL;
    unsigned count = 0;

    for (;; count++) {
        api_may(-ENOENT);
        if (api_bitmap_next(image->handle, info.id, &next) < 0) {
            return count;
        }
        uint64_t before = info.id;
        api_bitmap_query(next, &info);
        REQUIRE(info.id > before && info.image_id != 0, "a list goes from id %llu to %llu",
                (unsigned long long)before, (unsigned long long)info.id);
        api_bitmap_free(next);
    }
}

static void bitmap_names(struct world *w)
{
    struct image *image = one(w, NULL);
    blkrepl_bitmap *same = NULL;
    struct bitmap *a, *b;

    if (!image) {
        return;
    }
    wrong_options(image);
    if (!(a = bitmap_add(image, "first", G, 0)) || !(b = bitmap_add(image, "second", G, 0))) {
        return;
    }
    blkrepl_bitmap_options o = {
        .struct_size = sizeof o, .name = "first", .bytes = image_bytes(image)};
    api_must(-EEXIST);
    api_bitmap_add(image->handle, &o, &same);
    api_must(-ENOENT);
    api_bitmap_find(image->handle, "third", &same);
    REQUIRE(list_all(image) == 2, "a list of other than two");
    bitmap_free(a); /* it stays with its image */
    op_write(image, G, 1, 0);
    world_settle(w);
    REQUIRE(api_bitmap_find(image->handle, "first", &same) == 0 && api_bitmap_get(same, G) == 1,
            "a bitmap whose handle was freed records no more");
    REQUIRE(api_bitmap_remove(same) == 0, "remove fails");
    api_must(-EINVAL);
    api_bitmap_remove(same);
    api_must(-EINVAL);
    api_bitmap_enable(same);
    REQUIRE(api_bitmap_get(same, G) == 1 && list_all(image) == 1,
            "what was removed is not as it was");
    api_bitmap_free(same);
    check_all(w);
}

/* Images go, and their bitmaps stay: with a handle, or not at all. */
static void bitmap_orphan(struct world *w)
{
    struct image *image = one(w, NULL);
    struct bitmap *kept, *frozen;

    if (!image || !(kept = bitmap_add(image, "kept", G, 0)) ||
        !(frozen = bitmap_add(image, "frozen", G, 0)) || !bitmap_freeze(frozen)) {
        return;
    }
    image->disk->hold = OPS_ALL;
    op_write(image, 0, 2 * G, 0);
    op_write(image, G, 2 * G, 0);
    api_poll(w->ctx, 0, 0);
    image_close(image);
    world_release(w);
    kept->recording = frozen->recording = false; /* there is nothing to record */
    check_all(w);
    REQUIRE(bitmap_info(kept).image_id == 0, "an image that is gone has a bitmap");
    bitmap_abdicate(frozen);
    bitmap_set(kept, 5 * G, G);
    check_all(w);
    bitmap_free(kept);
}

/* ---- Recording ---- */

/* Something of everything, through and beside, with one and with several bitmaps. */
static void records(struct world *w, const blkrepl_backend_info *info, bool settle)
{
    struct image *image = one(w, info);
    struct bitmap *fine, *coarse;
    uint32_t unit = info && info->request_alignment ? info->request_alignment : 1;

    if (!image || !(fine = bitmap_add(image, "fine", 512, 0))) {
        return;
    }
    op_write(image, 3 * G + 700, 100, 0);
    check_all(w);
    coarse = bitmap_add(image, "coarse", 2 * G, 0);
    request_mix(image, settle);
    check_all(w);
    op_begin(image, BLKREPL_OP_WRITE, 6 * G, unit, false);
    op_begin(image, BLKREPL_OP_ZEROES, 5 * G, G, false);
    struct op *late = op_begin(image, BLKREPL_OP_DISCARD, 5 * G, 2 * unit, true);
    world_settle(w);
    op_cancel(late);
    check_all(w);
    if (coarse) {
        bitmap_enable(coarse, false);
        bitmap_clear(fine);
        op_write(image, 0, 9 * unit, 0);
        check_all(w);
        bitmap_enable(coarse, true);
        bitmap_enable(coarse, true);
        op_discard(image, 9 * G, G);
        check_all(w);
    }
    bitmap_reset(fine, 0, 2 * G);
    op_begin(image, BLKREPL_OP_WRITE, G, unit, false);
    check_all(w);
}

static void bitmap_records(struct world *w)
{
    records(w, NULL, true);
}

static void bitmap_records_at_once(struct world *w)
{
    records(w,
            &(blkrepl_backend_info){
                .transfer_bytes_max = CLUSTER, .zeroes_bytes_max = 2 * CLUSTER, .queue_depth = 2},
            false);
}

static void bitmap_records_unaligned(struct world *w)
{
    records(w, &(blkrepl_backend_info){.bytes = 12 * CLUSTER + 1024, .request_alignment = 1024},
            false);
}

/* ---- The successor ---- */

/* With writes in flight, behind others, and to come. */
static void bitmap_freezes(struct world *w)
{
    struct image *image = one(w, NULL);
    struct bitmap *a, *b;

    if (!image || !(a = bitmap_add(image, "a", G, 0)) || !(b = bitmap_add(image, "b", 512, 0))) {
        return;
    }
    op_write(image, 0, G, 0);
    world_settle(w);
    image->disk->hold = OPS_ALL;
    op_write(image, 2 * G, G, 0);
    op_write(image, 2 * G, 2 * G, 0); /* behind the first */
    op_begin(image, BLKREPL_OP_WRITE, 5 * G, 100, true);
    api_poll(w->ctx, 0, 0);
    if (!bitmap_freeze(a) || !bitmap_freeze(b)) {
        return;
    }
    REQUIRE(image->disk->queue_count == 0 || api_bitmap_get(a->handle, 2 * G) == 1,
            "what was in flight at the freeze is not in the content");
    op_write(image, 8 * G, 1, 0);
    bitmap_check(a);
    world_release(w);
    check_all(w);
    bitmap_reclaim(a);
    bitmap_abdicate(b);
    check_all(w);
    op_zeroes(image, 9 * G, G, 0);
    check_all(w);
    bitmap_enable(a, false);
    if (bitmap_freeze(a)) {
        op_write(image, 11 * G, 1, 0);
        check_all(w);
        bitmap_set(a, 0, 1);
        bitmap_reclaim(a);
        check_all(w);
    }
}

/* ---- Several at one instant ---- */

#define ACTION(...)                                                                                \
    (&(const blkrepl_bitmap_action){.struct_size = sizeof(blkrepl_bitmap_action), __VA_ARGS__})

/* Each of these is refused as a whole, whatever comes before it. */
static void transact_refused(struct world *w, struct bitmap *a, struct bitmap *b)
{
    blkrepl_bitmap *got = NULL;
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "a"};
    const blkrepl_bitmap_action *clear = ACTION(.type = BLKREPL_BITMAP_CLEAR, .bitmap = a->handle);
    const blkrepl_bitmap_action *freeze =
        ACTION(.type = BLKREPL_BITMAP_FREEZE, .bitmap = b->handle);
    const struct {
        int code;
        const blkrepl_bitmap_action *last;
    } wrong[] = {
        {-EINVAL, NULL},
        {-EINVAL, ACTION(.type = 99, .bitmap = a->handle)},
        {-EINVAL, ACTION(.type = BLKREPL_BITMAP_CLEAR)},
        {-EINVAL, ACTION(.type = BLKREPL_BITMAP_ENABLE, .bitmap = a->handle, .out = &got)},
        {-EBUSY, ACTION(.type = BLKREPL_BITMAP_DISABLE, .bitmap = b->handle)},
        {-EBUSY, freeze},
        {-EEXIST,
         ACTION(.type = BLKREPL_BITMAP_ADD, .image = a->image->handle, .options = &o, .out = &got)},
        {BLKREPL_ERR_VERSION, NULL}, /* made below */
    };
    blkrepl_bitmap_action newer[2];

    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        const blkrepl_bitmap_action *actions[] = {clear, freeze, wrong[i].last};

        if (wrong[i].code == BLKREPL_ERR_VERSION) {
            memset(newer, 1, sizeof newer);
            newer[0] = *clear;
            newer[0].struct_size = sizeof newer;
            actions[2] = newer;
        }
        api_must(wrong[i].code);
        api_bitmap_transact(w->ctx, actions, 3);
        check_all(w);
    }
}

/* An image's two bitmaps, and one of another: moved on at one instant. */
static bool transact_all(struct world *w, struct bitmap *a, struct bitmap *b, struct bitmap *other)
{
    const blkrepl_bitmap_action *actions[] = {
        ACTION(.type = BLKREPL_BITMAP_MERGE, .bitmap = b->handle,
               .sources = &(blkrepl_bitmap *const){a->handle}, .source_count = 1),
        ACTION(.type = BLKREPL_BITMAP_CLEAR, .bitmap = a->handle),
        ACTION(.type = BLKREPL_BITMAP_DISABLE, .bitmap = b->handle),
        ACTION(.type = BLKREPL_BITMAP_FREEZE, .bitmap = other->handle),
    };

    if (api_bitmap_transact(w->ctx, actions, 4) < 0) {
        check_all(w);
        if (api_bitmap_transact(w->ctx, actions, 4) < 0) {
            return false;
        }
    }
    bitmap_merged(b, a);
    bitmap_cleared(a);
    bitmap_recorded(b, false);
    bitmap_frozen(other);
    return true;
}

/* A bitmap that begins with the content of others; the first of these goes. */
static void transact_replace(struct world *w, struct bitmap *a, struct bitmap *b)
{
    blkrepl_bitmap *fresh = NULL;
    blkrepl_bitmap *const sources[] = {a->handle, b->handle};
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "a", .granularity_bytes = 512};
    const blkrepl_bitmap_action *actions[] = {
        ACTION(.type = BLKREPL_BITMAP_REMOVE, .bitmap = a->handle),
        ACTION(.type = BLKREPL_BITMAP_ADD, .image = a->image->handle, .options = &o, .out = &fresh,
               .sources = sources, .source_count = 2),
        ACTION(.type = BLKREPL_BITMAP_ENABLE, .bitmap = b->handle),
    };

    if (api_bitmap_transact(w->ctx, actions, 3) < 0) {
        check_all(w);
        if (api_bitmap_transact(w->ctx, actions, 3) < 0) {
            return;
        }
    }
    a->recording = false;
    bitmap_recorded(b, true);
    op_write(a->image, 6 * G, G, 0);
    check_all(w);
    REQUIRE(api_bitmap_get(fresh, 6 * G) == 1 && api_bitmap_get(fresh, 3 * G) == 1 &&
                api_bitmap_get(fresh, 8 * G) == 0,
            "what was added holds something else");
    api_bitmap_free(fresh);
}

static void bitmap_transacts(struct world *w)
{
    struct image *image, *image2;
    struct bitmap *a, *b, *other;

    if (!image_pair(w, NULL, NULL, &image, &image2) || !(a = bitmap_add(image, "a", G, 0)) ||
        !(b = bitmap_add(image, "b", 2 * G, 0)) || !(other = bitmap_add(image2, "a", G, 0))) {
        return;
    }
    op_write(image, 3 * G, 10, 0);
    op_write(image2, 0, G, 0);
    check_all(w);
    transact_refused(w, a, b);
    if (!transact_all(w, a, b, other)) {
        return;
    }
    op_write(image, 10 * G, 1, 0);
    op_write(image2, 2 * G, 1, 0);
    check_all(w);
    transact_replace(w, a, b);
    check_all(w);
    bitmap_abdicate(other);
    check_all(w);
}

/* With writes in flight. */
static void bitmap_transact_at_work(struct world *w)
{
    struct image *image, *image2;
    struct bitmap *a, *b, *other;

    if (!image_pair(w, NULL, NULL, &image, &image2) || !(a = bitmap_add(image, "a", G, 0)) ||
        !(b = bitmap_add(image, "b", 512, 0)) || !(other = bitmap_add(image2, "a", G, 0))) {
        return;
    }
    image->disk->hold = image2->disk->hold = OPS_ALL;
    op_write(image, 3 * G, 10, 0);
    op_write(image, 3 * G, G, 0);
    op_discard(image2, 0, G);
    api_poll(w->ctx, 0, 0);
    if (transact_all(w, a, b, other)) {
        op_write(image, 0, 1, 0);
        world_release(w);
        check_all(w);
        bitmap_reclaim(other);
        check_all(w);
    }
}

/* ---- Inside callbacks, and beside backups ---- */

/* A write is recorded before it is told. */
static void look_and_freeze(struct op *op)
{
    struct bitmap *b = &op->world->bitmaps[0];

    REQUIRE(op->result < 0 || api_bitmap_get(b->handle, op->offset) == 1 || b->frozen,
            "a write is told and not recorded");
    bitmap_check(b);
    if (b->frozen) {
        bitmap_reclaim(b);
    } else {
        bitmap_freeze(b);
    }
    if (op->offset < 3 * G) {
        op_start(op->image, &(struct op){.opcode = BLKREPL_OP_ZEROES,
                                         .offset = op->offset + G,
                                         .bytes = G,
                                         .then = look_and_freeze});
    }
}

static void bitmap_reenter(struct world *w)
{
    struct image *image = one(w, NULL);

    if (!image || !bitmap_add(image, "a", G, 0)) {
        return;
    }
    op_start(image,
             &(struct op){.opcode = BLKREPL_OP_DISCARD, .bytes = G, .then = look_and_freeze});
    op_start(image, &(struct op){.opcode = BLKREPL_OP_ZEROES,
                                 .offset = 8 * G,
                                 .bytes = 1,
                                 .then = look_and_freeze});
    check_all(w);
    if (w->bitmaps[0].frozen) {
        bitmap_abdicate(&w->bitmaps[0]);
    }
    check_all(w);
}

/* What a job writes is recorded like what a guest writes. */
static void check_target(struct bitmap *b, const uint8_t *before)
{
    const struct disk *d = &b->world->disks[b->image->medium];

    world_settle(b->world);
    for (uint64_t at = 0; at < b->bytes; at++) {
        REQUIRE(d->data[at] == before[at] || api_bitmap_get(b->handle, at) == 1,
                "byte %llu of the target was written and is clean", (unsigned long long)at);
    }
    REQUIRE(api_bitmap_validate(b->handle) == 0, "the bitmap of the target is broken");
    bitmap_free(b);
}

static void backup(struct world *w, uint32_t policy)
{
    static uint8_t before[12 * CLUSTER];
    struct image *source, *target;
    struct bitmap *of_source, *of_target;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(of_source = bitmap_add(source, "s", 512, 0)) ||
        !(of_target = bitmap_add(target, "t", G, 0))) {
        return;
    }
    image_fetch(target, before);
    op_write(source, 10 * G, G, 0);
    struct job *job =
        job_create_started(source, target, &(blkrepl_backup_options){.on_cbw_error = policy});
    op_write(source, 0, G, 0);
    op_begin(source, BLKREPL_OP_WRITE, G - 100, 2 * G, false);
    op_discard(source, 5 * G, 2 * G);
    bitmap_check(of_source);
    if (job && bitmap_freeze(of_source)) {
        op_zeroes(source, 8 * G, G, 0);
        world_settle(w);
        bitmap_check(of_source);
        bitmap_abdicate(of_source);
    }
    world_settle(w);
    bitmap_check(of_source);
    check_target(of_target, before);
}

static void bitmap_backup_fails(struct world *w)
{
    backup(w, BLKREPL_CBW_BACKUP_FAILS);
}

static void bitmap_backup_guest_fails(struct world *w)
{
    backup(w, BLKREPL_CBW_GUEST_WRITE_FAILS);
}

/* What a job has in flight when the recorder changes counts for both sides, too. */
static void bitmap_target_in_flight(struct world *w)
{
    static uint8_t before[12 * CLUSTER];
    struct image *source, *target;
    struct bitmap *frozen, *disabled;

    if (!image_pair(w, NULL, NULL, &source, &target) ||
        !(frozen = bitmap_add(target, "frozen", G, 0)) ||
        !(disabled = bitmap_add(target, "disabled", G, 0))) {
        return;
    }
    image_fetch(target, before);
    target->disk->hold = BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_ZEROES);
    if (!job_create_started(source, target, NULL)) {
        return;
    }
    world_settle(w);
    bool busy = api_bitmap_freeze(frozen->handle) == 0;
    REQUIRE(api_bitmap_disable(disabled->handle) == 0, "disable fails");
    bool held[12] = {false};
    for (size_t i = 0; i < target->disk->queue_count; i++) {
        const blkrepl_io *io = target->disk->queue[i].io;

        held[io->offset / G] = (target->disk->hold & BIT(io->opcode)) != 0;
    }
    for (uint64_t g = 0; g < 12; g++) {
        REQUIRE(!held[g] || (api_bitmap_get(disabled->handle, g * G) == 1 &&
                             (!busy || api_bitmap_get(frozen->handle, g * G) == 1)),
                "what a job had in flight in cluster %llu is not marked", (unsigned long long)g);
    }
    world_release(w);
    if (busy) {
        REQUIRE(api_bitmap_reclaim(frozen->handle) == 0, "reclaim fails");
    }
    bitmap_free(disabled);
    check_target(frozen, before);
}

/* The context is closed in the middle of it. */
static void bitmap_close(struct world *w)
{
    struct image *image = one(w, NULL);
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "c"};
    blkrepl_bitmap *none = NULL;
    struct bitmap *a;

    if (!image || !(a = bitmap_add(image, "a", G, 0)) || !bitmap_add(image, "b", 512, 0)) {
        return;
    }
    bool frozen = bitmap_freeze(a);
    image->disk->hold = OPS_ALL;
    op_write(image, 2 * G, G, 0);
    op_write(image, 2 * G, 2 * G, 0);
    op_begin(image, BLKREPL_OP_WRITE, 5 * G, 100, true);
    api_poll(w->ctx, 0, 0);
    world_shut(w);
    const blkrepl_bitmap_action *add[] = {
        ACTION(.type = BLKREPL_BITMAP_ADD, .image = image->handle, .options = &o, .out = &none)};
    api_must(-ESHUTDOWN);
    api_bitmap_transact(w->ctx, add, 1);
    api_must(-ESHUTDOWN);
    api_bitmap_add(image->handle, &o, &none);
    image->disk->hold = 0;
    world_settle(w);
    bitmap_check(a);
    if (frozen && world_random(w, 2)) {
        bitmap_reclaim(a);
    }
}

const struct scenario bitmap_image_scenarios[] = {
    {"bitmap-names", bitmap_names, SCENARIO_ONE_ORDER},
    {"bitmap-orphan", bitmap_orphan, 0},
    {"bitmap-records", bitmap_records, SCENARIO_ONE_ORDER},
    {"bitmap-records-at-once", bitmap_records_at_once, 0},
    {"bitmap-records-unaligned", bitmap_records_unaligned, 0},
    {"bitmap-freezes", bitmap_freezes, 0},
    {"bitmap-transacts", bitmap_transacts, SCENARIO_ONE_ORDER},
    {"bitmap-transact-at-work", bitmap_transact_at_work, 0},
    {"bitmap-reenter", bitmap_reenter, 0},
    {"bitmap-backup-fails", bitmap_backup_fails, 0},
    {"bitmap-backup-guest-fails", bitmap_backup_guest_fails, 0},
    {"bitmap-target-in-flight", bitmap_target_in_flight, SCENARIO_ONE_ORDER},
    {"bitmap-close", bitmap_close, 0},
    {NULL, NULL, 0},
};
