/* SPDX-License-Identifier: MIT */
/* image.c - images: opening, closing, who holds them. */
#include "block/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/abi.h"
#include "base/struct_io.h"
#include "block/bitmap.h"
#include "block/guest.h"
#include "block/quick.h"
#include "block/throttle.h"
#include "core/error.h"
#include "core/lane.h"
#include "core/port_quick.h"

void blkrepl__image_options_release(const struct blkrepl_context *ctx,
                                    const blkrepl_image_options *options)
{
    if (options != NULL && options->struct_size >= BLKREPL_IMAGE_OPTIONS_V1_BYTES) {
        blkrepl__host_release(ctx, options->release, options->user);
    }
}

static int image_check_options(const blkrepl_image_options *options, blkrepl_image_options *copy)
{
    int rc = blkrepl__struct_in(copy, sizeof *copy, BLKREPL_IMAGE_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "image: options");
    }
    if ((copy->flags & ~(uint32_t)BLKREPL_IMAGE_READ_ONLY) != 0 || copy->reserved0 != NULL) {
        return blkrepl__fail(-EINVAL, "image: unknown flags or a reserved field is not 0");
    }
    if (copy->name != NULL && strlen(copy->name) > BLKREPL_NAME_MAX) {
        return blkrepl__fail(-EINVAL, "image: the name is longer than %d bytes", BLKREPL_NAME_MAX);
    }
    return 0;
}

static void image_set_name(struct blkrepl_image *image, const char *name)
{
    if (name != NULL) {
        snprintf(image->name, sizeof image->name, "%s", name);
    } else {
        snprintf(image->name, sizeof image->name, "image-%" PRIu64, image->id);
    }
}

/* The image enters the context, with the lock held. */
static int image_publish(struct blkrepl_image *image, const char *name, blkrepl_image **out)
{
    struct blkrepl_context *ctx = image->ctx;

    if (ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "image: the context is being freed");
    }
    image->id = ++ctx->last_id;
    image_set_name(image, name);
    blkrepl__port_init(&image->leaf->port, ctx, image->leaf->port.guest);
    blkrepl__port_quick_begin(&image->leaf->port, 0);
    atomic_store(&image->leaf->port.quick, true);
    image->open = true;
    ctx->images_open++;
    *out = image;
    return 0;
}

static void image_free(struct blkrepl_image *image)
{
    blkrepl__quick_fini(image);
    blkrepl__record_fini(&image->record, &image->ctx->alloc);
    blkrepl__free(&image->ctx->alloc, image);
}

int blkrepl__image_create(struct blkrepl_context *ctx, struct leaf *leaf,
                          const blkrepl_image_options *options, blkrepl_image **out)
{
    blkrepl_image_options copy;
    struct blkrepl_image *image;
    int rc;

    rc = image_check_options(options, &copy);
    if (rc == 0) {
        rc = blkrepl__guests_prepare(ctx);
    }
    if (rc < 0) {
        return rc;
    }
    image = blkrepl__zalloc(&ctx->alloc, sizeof *image);
    if (image == NULL) {
        return blkrepl__fail(-ENOMEM, "image: no memory");
    }
    image->ctx = ctx;
    image->leaf = leaf;
    image->user = copy.user;
    image->release = copy.release;
    image->read_only = (copy.flags & BLKREPL_IMAGE_READ_ONLY) != 0 ||
                       (leaf->port.info.flags & BLKREPL_BACKEND_READ_ONLY) != 0;
    image->refs = 1;
    list_init(&image->taps);
    list_init(&image->guests);
    list_init(&image->bitmaps);
    blkrepl__record_init(&image->record);
    if (!blkrepl__quick_init(image)) {
        blkrepl__free(&ctx->alloc, image);
        return blkrepl__fail(-ENOMEM, "image: no memory");
    }
    blkrepl__enter(ctx);
    rc = image_publish(image, copy.name, out);
    blkrepl__leave(ctx, 0);
    if (rc < 0) {
        image_free(image);
    }
    return rc;
}

static int image_open(blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend_user,
                      const blkrepl_image_options *options, blkrepl_image **out)
{
    struct leaf *leaf;
    int rc = blkrepl__leaf_create(ctx, ops, backend_user, &leaf);

    if (rc == 0) {
        rc = blkrepl__image_create(ctx, leaf, options, out);
        if (rc < 0) {
            blkrepl__leaf_free(leaf);
        }
    }
    return rc;
}

int blkrepl_image_open(blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend_user,
                       const blkrepl_image_options *options, blkrepl_image **out)
{
    int rc = -EINVAL;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || out == NULL) {
        blkrepl__fail(rc, "image: %s is NULL", ctx == NULL ? "context" : "out");
    } else {
        rc = image_open(ctx, ops, backend_user, options, out);
    }
    if (rc < 0) {
        blkrepl__image_options_release(ctx, options);
    }
    return rc;
}

void blkrepl__image_ref(struct blkrepl_image *image)
{
    image->refs++;
}

/* The host's release runs as a callback of lane 0: after every event. */
static void image_gone(struct callback *callback, struct delivery *out)
{
    struct blkrepl_image *image = CONTAINER_OF(callback, struct blkrepl_image, gone);

    *out = (struct delivery){.done = {.user = image->user, .release = image->release}};
    image_free(image);
}

void blkrepl__image_unref(struct blkrepl_image *image)
{
    struct blkrepl_context *ctx = image->ctx;

    CHECK(image->refs > 0);
    if (--image->refs > 0) {
        return;
    }
    blkrepl__bitmaps_orphan(image);
    blkrepl__throttle_unref(image->throttle);
    image->throttle = NULL;
    blkrepl__port_drop(&image->leaf->port);
    if (image->release == NULL) {
        image_free(image);
        return;
    }
    image->gone.deliver = image_gone;
    blkrepl__lane_callback(&ctx->lanes[0], &image->gone);
}

void blkrepl_image_close(blkrepl_image *image)
{
    struct blkrepl_context *ctx;

    if (image == NULL) {
        return;
    }
    ctx = image->ctx;
    blkrepl__enter(ctx);
    ctx->images_open--;
    image->open = false;
    blkrepl__quick_stop(image);
    blkrepl__image_unref(image);
    blkrepl__empty_outbox(ctx, 0, OUTBOX_CLOSE);
    blkrepl__leave(ctx, 0);
}

int blkrepl_image_query(blkrepl_image *image, blkrepl_image_info *info)
{
    blkrepl_image_info ours = {.struct_size = sizeof ours};
    const blkrepl_backend_info *backend;
    int rc;

    if (image == NULL || info == NULL) {
        return blkrepl__fail(-EINVAL, "image: query with NULL");
    }
    backend = &image->leaf->port.info;
    ours.flags = image->read_only ? BLKREPL_IMAGE_READ_ONLY : 0;
    ours.id = image->id;
    ours.bytes = backend->bytes;
    ours.request_alignment = backend->request_alignment;
    ours.memory_alignment = backend->memory_alignment;
    ours.cluster_bytes = backend->cluster_bytes;
    ours.user = image->user;
    memcpy(ours.name, image->name, sizeof image->name);
    blkrepl__enter(image->ctx);
    ours.requests_in_flight = image->requests + blkrepl__quick_count(image);
    blkrepl__leave(image->ctx, 0);
    rc = blkrepl__struct_out(info, BLKREPL_IMAGE_INFO_V1_BYTES, &ours, sizeof ours);
    return rc < 0 ? blkrepl__fail(rc, "image \"%s\": query: struct_size is too small", image->name)
                  : 0;
}

void blkrepl__image_attach(struct blkrepl_image *image, struct tap *tap)
{
    blkrepl__quick_stop(image);
    tap->attached_at = ++image->ctx->instant;
    tap->bit = UINT64_C(1) << (image->taps_attached++ % 64);
    list_append(&image->taps, &tap->link);
}

void blkrepl__image_detach(struct tap *tap)
{
    list_unlink(&tap->link);
}
