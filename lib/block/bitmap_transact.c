/* SPDX-License-Identifier: MIT */
/* bitmap_transact.c - the verbs that change what a bitmap is for, and several of
 * them at one instant.
 *
 * All of it happens with the context's lock held.  First each action is prepared,
 * in order: it is judged, takes its memory, and leaves word for those behind it
 * (`leaving`, `freezing`, the name of what is added).  If one is refused the
 * prepared ones are undone, last first; no content and no recording has changed
 * by then.  Otherwise the images concerned are turned to the slow way, and all are
 * committed in order, which cannot fail. */
#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/struct_io.h"
#include "block/bitmap.h"
#include "block/quick.h"
#include "core/error.h"

struct action {
    blkrepl_bitmap_action what;  /* as the caller has it */
    struct blkrepl_bitmap *made; /* ADD: the action's own until it is done */
    bool done;
    struct dirtymap since;  /* FREEZE: memory for the successor; */
    struct dirtymap unused; /* what a commit leaves to be freed */
};

/* ---- Judging ------------------------------------------------------------------ */

static bool action_adds(const struct action *action)
{
    return action->what.type == BLKREPL_BITMAP_ADD;
}

/* Whether the content may be changed, or merged from, after the actions before. */
static int action_changeable(const struct blkrepl_bitmap *bitmap, const char *verb)
{
    if (bitmap->freezing) {
        return blkrepl__fail(-EBUSY, "bitmap \"%.100s\": %s: it is busy",
                             blkrepl__bitmap_called(bitmap), verb);
    }
    return blkrepl__bitmap_changeable(bitmap, verb);
}

/* Whether the sources may be read and fit a bitmap of this size. */
static int action_check_sources(const struct action *action, const struct blkrepl_context *ctx,
                                uint64_t bytes)
{
    for (uint32_t i = 0; i < action->what.source_count; i++) {
        const struct blkrepl_bitmap *source = action->what.sources[i];
        int rc;

        if (source == NULL || source->ctx != ctx) {
            return blkrepl__fail(-EINVAL, "bitmap: source %" PRIu32 " is %s", i,
                                 source == NULL ? "NULL" : "of another context");
        }
        if (source->map.bytes != bytes) {
            return blkrepl__fail(-EINVAL,
                                 "bitmap \"%.100s\" has %" PRIu64 " bytes and cannot be merged "
                                 "into one of %" PRIu64,
                                 blkrepl__bitmap_called(source), source->map.bytes, bytes);
        }
        rc = action_changeable(source, "merge from");
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int action_prepare_add(struct action *action)
{
    struct blkrepl_image *image = action->what.image;
    struct blkrepl_context *ctx = image->ctx;
    struct blkrepl_bitmap *bitmap = action->made;
    int rc;

    if (ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "bitmap: the context is being freed");
    }
    if (blkrepl__bitmap_named(image, bitmap->name) != NULL) {
        return blkrepl__fail(-EEXIST, "image \"%s\" has a bitmap \"%.100s\"", image->name,
                             bitmap->name);
    }
    rc = action_check_sources(action, ctx, bitmap->map.bytes);
    blkrepl__quick_stop(image); /* lanes look whether there are regions */
    if (rc == 0 && blkrepl__record_prepare(&image->record, &ctx->alloc, bitmap->map.bytes) < 0) {
        rc = blkrepl__fail(-ENOMEM, "bitmap: no memory");
    }
    if (rc == 0) {
        bitmap->id = ++ctx->last_id;
        bitmap->image = image;
        list_append(&image->bitmaps, &bitmap->image_link);
    }
    return rc;
}

static int action_prepare_freeze(struct action *action)
{
    struct blkrepl_bitmap *bitmap = action->what.bitmap;
    int rc = action_changeable(bitmap, "freeze");

    if (rc == 0 && blkrepl__dirtymap_init(&action->since, &bitmap->ctx->alloc, bitmap->map.bytes,
                                          bitmap->map.shift) < 0) {
        rc = blkrepl__fail(-ENOMEM, "bitmap \"%.100s\": freeze: no memory",
                           blkrepl__bitmap_called(bitmap));
    }
    bitmap->freezing = bitmap->freezing || rc == 0;
    return rc;
}

static int action_need_image(const struct blkrepl_bitmap *bitmap, const char *verb)
{
    if (bitmap->image == NULL || bitmap->leaving) {
        return blkrepl__fail(-EINVAL, "bitmap \"%.100s\": %s: it has no image",
                             blkrepl__bitmap_called(bitmap), verb);
    }
    return 0;
}

static int action_prepare_remove(struct blkrepl_bitmap *bitmap)
{
    int rc = action_need_image(bitmap, "remove");

    if (rc == 0 && (bitmap->busy || bitmap->freezing)) {
        rc = blkrepl__fail(-EBUSY, "bitmap \"%.100s\": remove: it is busy",
                           blkrepl__bitmap_called(bitmap));
    }
    bitmap->leaving = bitmap->leaving || rc == 0;
    return rc;
}

static int action_prepare_record(const struct blkrepl_bitmap *bitmap, const char *verb)
{
    int rc = action_need_image(bitmap, verb);

    return rc < 0 ? rc : action_changeable(bitmap, verb);
}

static int action_prepare(struct action *action)
{
    struct blkrepl_bitmap *bitmap = action->what.bitmap;
    int rc;

    switch ((enum blkrepl_bitmap_action_type)action->what.type) {
    case BLKREPL_BITMAP_ADD: return action_prepare_add(action);
    case BLKREPL_BITMAP_REMOVE: return action_prepare_remove(bitmap);
    case BLKREPL_BITMAP_ENABLE: return action_prepare_record(bitmap, "enable");
    case BLKREPL_BITMAP_DISABLE: return action_prepare_record(bitmap, "disable");
    case BLKREPL_BITMAP_CLEAR: return action_changeable(bitmap, "clear");
    case BLKREPL_BITMAP_MERGE:
        rc = action_changeable(bitmap, "merge");
        return rc < 0 ? rc : action_check_sources(action, bitmap->ctx, bitmap->map.bytes);
    case BLKREPL_BITMAP_FREEZE: return action_prepare_freeze(action);
    }
    UNREACHABLE();
}

/* As if it had not been prepared. */
static void action_undo(struct action *action)
{
    switch ((enum blkrepl_bitmap_action_type)action->what.type) {
    case BLKREPL_BITMAP_ADD:
        list_remove(&action->made->image_link);
        action->made->image = NULL;
        break;
    case BLKREPL_BITMAP_REMOVE: action->what.bitmap->leaving = false; break;
    case BLKREPL_BITMAP_FREEZE:
        action->what.bitmap->freezing = false;
        action->unused = action->since;
        break;
    case BLKREPL_BITMAP_ENABLE:
    case BLKREPL_BITMAP_DISABLE:
    case BLKREPL_BITMAP_CLEAR:
    case BLKREPL_BITMAP_MERGE: break;
    }
}

/* ---- Doing --------------------------------------------------------------------- */

static void action_merge(const struct action *action, struct blkrepl_bitmap *bitmap)
{
    for (uint32_t i = 0; i < action->what.source_count; i++) {
        blkrepl__dirtymap_merge(&bitmap->map, &action->what.sources[i]->map);
    }
}

static void action_commit_add(struct action *action)
{
    struct blkrepl_bitmap *bitmap = action->made;

    action_merge(action, bitmap);
    blkrepl__bitmap_record(bitmap, bitmap->enabled);
    blkrepl__bitmap_ref(bitmap); /* its image's */
    blkrepl__bitmap_give_handle(bitmap);
    *action->what.out = bitmap;
}

static void action_commit_remove(struct blkrepl_bitmap *bitmap)
{
    blkrepl__bitmap_record(bitmap, false);
    list_remove(&bitmap->image_link);
    bitmap->image = NULL;
    bitmap->leaving = false;
    blkrepl__bitmap_unref(bitmap); /* its image's; the caller has a handle */
}

static void action_commit_freeze(struct action *action)
{
    struct blkrepl_bitmap *bitmap = action->what.bitmap;

    blkrepl__bitmap_freeze(bitmap, &action->since);
    bitmap->frozen = true;
    bitmap->freezing = false;
}

static void action_commit(struct action *action)
{
    struct blkrepl_bitmap *bitmap = action->what.bitmap;

    switch ((enum blkrepl_bitmap_action_type)action->what.type) {
    case BLKREPL_BITMAP_ADD: action_commit_add(action); break;
    case BLKREPL_BITMAP_REMOVE: action_commit_remove(bitmap); break;
    case BLKREPL_BITMAP_ENABLE: blkrepl__bitmap_record(bitmap, true); break;
    case BLKREPL_BITMAP_DISABLE: blkrepl__bitmap_record(bitmap, false); break;
    case BLKREPL_BITMAP_CLEAR: blkrepl__dirtymap_clear(&bitmap->map); break;
    case BLKREPL_BITMAP_MERGE: action_merge(action, bitmap); break;
    case BLKREPL_BITMAP_FREEZE: action_commit_freeze(action); break;
    }
}

static void action_stop_quick(const struct blkrepl_bitmap *bitmap)
{
    if (bitmap->image != NULL) {
        blkrepl__quick_stop(bitmap->image);
    }
}

/* Put a bitmap on the list of those to be held, in the order of their ids, once. */
static void action_want(struct list *held, struct blkrepl_bitmap *bitmap)
{
    struct list *after = held->prev;

    if (list_linked(&bitmap->held)) {
        return;
    }
    while (after != held && CONTAINER_OF(after, struct blkrepl_bitmap, held)->id > bitmap->id) {
        after = after->prev;
    }
    list_append(after->next, &bitmap->held); /* before what comes next */
}

static void action_want_all(struct list *held, const struct action *action)
{
    action_want(held, action_adds(action) ? action->made : action->what.bitmap);
    for (uint32_t i = 0; i < action->what.source_count; i++) {
        action_want(held, action->what.sources[i]);
    }
}

/* From here on nobody marks, sets or looks beside us. */
static void actions_hold(struct list *held)
{
    for (struct list *link = held->next; link != held; link = link->next) {
        action_stop_quick(CONTAINER_OF(link, struct blkrepl_bitmap, held));
    }
    for (struct list *link = held->next; link != held; link = link->next) {
        pthread_mutex_lock(&CONTAINER_OF(link, struct blkrepl_bitmap, held)->lock);
    }
}

static void actions_let_go(struct list *held)
{
    struct list *link;

    while ((link = list_pop(held)) != NULL) {
        pthread_mutex_unlock(&CONTAINER_OF(link, struct blkrepl_bitmap, held)->lock);
    }
}

/* All are prepared: do them, at one instant. */
static void actions_commit(struct action *actions, uint32_t count)
{
    struct list held;

    list_init(&held);
    for (uint32_t i = 0; i < count; i++) {
        action_want_all(&held, &actions[i]);
    }
    actions_hold(&held);
    for (uint32_t i = 0; i < count; i++) {
        action_commit(&actions[i]);
        actions[i].done = true;
    }
    actions_let_go(&held);
}

/* With the context's lock.  *refused: the number of the action that is. */
static int actions_do(struct action *actions, uint32_t count, uint32_t *refused)
{
    uint32_t prepared = 0;
    int rc = 0;

    while (prepared < count && (rc = action_prepare(&actions[prepared])) == 0) {
        prepared++;
    }
    if (rc < 0) {
        *refused = prepared;
        while (prepared > 0) {
            action_undo(&actions[--prepared]);
        }
        return rc;
    }
    actions_commit(actions, count);
    return 0;
}

/* ---- What the caller gives ------------------------------------------------------ */

/* Whether what its type does not use is 0, and what it needs is there. */
static bool action_complete(const blkrepl_bitmap_action *what)
{
    bool adds = what->type == BLKREPL_BITMAP_ADD;
    bool sources = adds || what->type == BLKREPL_BITMAP_MERGE;

    return what->type >= BLKREPL_BITMAP_ADD && what->type <= BLKREPL_BITMAP_FREEZE &&
           what->reserved0 == 0 && adds == (what->bitmap == NULL) &&
           adds == (what->image != NULL) && adds == (what->out != NULL) &&
           (adds || what->options == NULL) &&
           (sources || (what->source_count == 0 && what->sources == NULL)) &&
           (what->source_count == 0 || what->sources != NULL);
}

static int action_check_context(const blkrepl_bitmap_action *what,
                                const struct blkrepl_context *ctx)
{
    const struct blkrepl_context *its = what->bitmap != NULL ? what->bitmap->ctx : what->image->ctx;

    return its == ctx ? 0 : blkrepl__fail(-EINVAL, "bitmap: it is of another context");
}

/* Read one action and make what it adds; no lock is held. */
static int action_read(struct action *action, const struct blkrepl_context *ctx,
                       const blkrepl_bitmap_action *given)
{
    int rc = given == NULL ? -EINVAL
                           : blkrepl__struct_in(&action->what, sizeof action->what,
                                                BLKREPL_BITMAP_ACTION_V1_BYTES, given);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "bitmap: action");
    }
    if (!action_complete(&action->what)) {
        return blkrepl__fail(-EINVAL, "bitmap: unknown action, or a field is missing or too many");
    }
    rc = action_check_context(&action->what, ctx);
    if (rc == 0 && action_adds(action)) {
        rc = blkrepl__bitmap_make(action->what.image->ctx, action->what.image, action->what.options,
                                  &action->made);
    }
    return rc;
}

/* Free what is left over; no lock is held. */
static void action_fini(struct action *action)
{
    if (action->made != NULL && !action->done) {
        blkrepl__bitmap_destroy(action->made);
    }
    if (action->unused.bits.level_count > 0) {
        blkrepl__dirtymap_fini(&action->unused);
    }
}

/* A verb by itself. */
static int action_alone(struct action *action, struct blkrepl_context *ctx)
{
    uint32_t refused;
    int rc;

    blkrepl__enter(ctx);
    rc = actions_do(action, 1, &refused);
    blkrepl__leave(ctx, 0);
    action_fini(action);
    return rc;
}

static int bitmap_verb(blkrepl_bitmap *bitmap, enum blkrepl_bitmap_action_type type)
{
    struct action action = {.what = {.type = type, .bitmap = bitmap}};

    if (bitmap == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: NULL");
    }
    return action_alone(&action, bitmap->ctx);
}

/* The number of the refused action goes before its message. */
static int actions_refused(int rc, uint32_t number)
{
    struct error_kept kept;

    blkrepl__error_keep(&kept);
    return blkrepl__fail(rc, "action %" PRIu32 ": %.200s", number, kept.message);
}

static int transact_run(struct blkrepl_context *ctx, struct action *actions,
                        const blkrepl_bitmap_action *const *given, uint32_t count)
{
    uint32_t number = 0;
    int rc = 0;

    while (number < count && (rc = action_read(&actions[number], ctx, given[number])) == 0) {
        number++;
    }
    if (rc == 0) {
        number = 0;
        blkrepl__enter(ctx);
        rc = ctx->shut ? blkrepl__fail(-ESHUTDOWN, "bitmap: the context is being freed")
                       : actions_do(actions, count, &number);
        blkrepl__leave(ctx, 0);
    }
    return rc < 0 ? actions_refused(rc, number) : 0;
}

/* ---- The public functions -------------------------------------------------------- */

/* No handle is given before all is done. */
static void transact_clear_out(const blkrepl_bitmap_action *const *actions, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        blkrepl_bitmap_action what;

        if (actions[i] != NULL &&
            blkrepl__struct_in(&what, sizeof what, BLKREPL_BITMAP_ACTION_V1_BYTES, actions[i]) ==
                0 &&
            what.out != NULL) {
            *what.out = NULL;
        }
    }
}

int blkrepl_bitmap_transact(blkrepl_context *ctx, const blkrepl_bitmap_action *const *actions,
                            uint32_t action_count)
{
    struct action *ours;
    int rc;

    if (actions != NULL) {
        transact_clear_out(actions, action_count);
    }
    if (ctx == NULL || (actions == NULL && action_count > 0)) {
        return blkrepl__fail(-EINVAL, "bitmap: transact with NULL");
    }
    if (action_count == 0) {
        return 0;
    }
    ours = blkrepl__zalloc_array(&ctx->alloc, action_count, sizeof *ours);
    if (ours == NULL) {
        return blkrepl__fail(-ENOMEM, "bitmap: no memory for %" PRIu32 " actions", action_count);
    }
    rc = transact_run(ctx, ours, actions, action_count);
    for (uint32_t i = 0; i < action_count; i++) {
        action_fini(&ours[i]);
    }
    blkrepl__free(&ctx->alloc, ours);
    return rc;
}

int blkrepl_bitmap_add(blkrepl_image *image, const blkrepl_bitmap_options *options,
                       blkrepl_bitmap **out)
{
    struct action action = {.what = {.type = BLKREPL_BITMAP_ADD, .image = image, .out = out}};
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (image == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: %s is NULL", image == NULL ? "image" : "out");
    }
    rc = blkrepl__bitmap_make(image->ctx, image, options, &action.made);
    return rc < 0 ? rc : action_alone(&action, image->ctx);
}

int blkrepl_bitmap_remove(blkrepl_bitmap *bitmap)
{
    return bitmap_verb(bitmap, BLKREPL_BITMAP_REMOVE);
}

int blkrepl_bitmap_enable(blkrepl_bitmap *bitmap)
{
    return bitmap_verb(bitmap, BLKREPL_BITMAP_ENABLE);
}

int blkrepl_bitmap_disable(blkrepl_bitmap *bitmap)
{
    return bitmap_verb(bitmap, BLKREPL_BITMAP_DISABLE);
}

int blkrepl_bitmap_clear(blkrepl_bitmap *bitmap)
{
    return bitmap_verb(bitmap, BLKREPL_BITMAP_CLEAR);
}

int blkrepl_bitmap_freeze(blkrepl_bitmap *bitmap)
{
    return bitmap_verb(bitmap, BLKREPL_BITMAP_FREEZE);
}

int blkrepl_bitmap_merge(blkrepl_bitmap *bitmap, blkrepl_bitmap *const *sources,
                         uint32_t source_count)
{
    struct action action = {.what = {.type = BLKREPL_BITMAP_MERGE,
                                     .bitmap = bitmap,
                                     .sources = sources,
                                     .source_count = source_count}};

    if (bitmap == NULL || (sources == NULL && source_count > 0)) {
        return blkrepl__fail(-EINVAL, "bitmap: merge with NULL");
    }
    return action_alone(&action, bitmap->ctx);
}

/* The host's freeze ends. */
static int bitmap_thaw(blkrepl_bitmap *bitmap, const char *verb,
                       void (*end)(struct blkrepl_bitmap *bitmap, struct dirtymap *unused))
{
    struct dirtymap unused;
    int rc = 0;

    if (bitmap == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: NULL");
    }
    blkrepl__enter(bitmap->ctx);
    if (!bitmap->frozen) {
        rc = blkrepl__fail(BLKREPL_ERR_STATE, "bitmap \"%.100s\": %s: it is not frozen",
                           blkrepl__bitmap_called(bitmap), verb);
    } else {
        action_stop_quick(bitmap);
        pthread_mutex_lock(&bitmap->lock);
        end(bitmap, &unused);
        pthread_mutex_unlock(&bitmap->lock);
    }
    blkrepl__leave(bitmap->ctx, 0);
    if (rc == 0) {
        blkrepl__dirtymap_fini(&unused);
    }
    return rc;
}

int blkrepl_bitmap_abdicate(blkrepl_bitmap *bitmap)
{
    return bitmap_thaw(bitmap, "abdicate", blkrepl__bitmap_abdicate);
}

int blkrepl_bitmap_reclaim(blkrepl_bitmap *bitmap)
{
    return bitmap_thaw(bitmap, "reclaim", blkrepl__bitmap_reclaim);
}
