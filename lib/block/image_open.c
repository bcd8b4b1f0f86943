/* SPDX-License-Identifier: MIT */
/* image_open.c - opening images over the bundled backends. */
#include <errno.h>

#include "base/abi.h"
#include "base/struct_io.h"
#include "block/backend_file.h"
#include "block/backend_memory.h"
#include "block/image.h"
#include "core/error.h"

static bool open_pool_help(void *user)
{
    return blkrepl__file_pool_help(user);
}

static void open_pool_free(void *user)
{
    blkrepl__file_pool_free(user);
}

/* The context's pool of file threads, made when the first file is opened; its
 * threads start later. */
static int open_pool(struct blkrepl_context *ctx, struct file_pool **out)
{
    struct file_pool *pool = NULL;
    int rc = 0;

    blkrepl__enter(ctx);
    if (ctx->shut) {
        rc = -ESHUTDOWN;
    } else if (ctx->helper.user == NULL) {
        rc = blkrepl__file_pool_create(&ctx->alloc, ctx->pool_threads_max, &pool);
        if (rc == 0) {
            ctx->helper =
                (struct helper){.user = pool, .help = open_pool_help, .free = open_pool_free};
        }
    }
    *out = ctx->helper.user;
    blkrepl__leave(ctx, 0);
    return rc < 0 ? blkrepl__fail_code(rc, "image: pool of file threads") : 0;
}

static bool open_read_only(const blkrepl_image_options *options)
{
    return options != NULL && options->struct_size >= BLKREPL_IMAGE_OPTIONS_V1_BYTES &&
           (options->flags & BLKREPL_IMAGE_READ_ONLY) != 0;
}

static int open_file(blkrepl_context *ctx, const char *path,
                     const blkrepl_file_options *file_options, const blkrepl_image_options *options,
                     blkrepl_image **out)
{
    blkrepl_file_options file;
    struct file_backend *backend;
    struct file_pool *pool;
    struct leaf *leaf;
    int rc;

    rc = blkrepl__struct_in(&file, sizeof file, BLKREPL_FILE_OPTIONS_V1_BYTES, file_options);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "image: file options");
    }
    rc = open_pool(ctx, &pool);
    if (rc < 0) {
        return rc;
    }
    rc = blkrepl__file_backend_open(ctx, &ctx->alloc, pool, path, &file, open_read_only(options),
                                    &backend);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "image: cannot open \"%.150s\"%s", path,
                                  (file.flags & BLKREPL_FILE_DIRECT) != 0 ? " with DIRECT" : "");
    }
    rc = blkrepl__leaf_create(ctx, &blkrepl__file_backend_ops, backend, &leaf);
    if (rc == 0) {
        leaf->identified = true;
        blkrepl__file_backend_identity(backend, &leaf->device, &leaf->inode);
        rc = blkrepl__image_create(ctx, leaf, options, out);
        if (rc < 0) {
            blkrepl__leaf_free(leaf);
        }
    }
    if (rc < 0) {
        blkrepl__file_backend_discard(backend);
    }
    return rc;
}

int blkrepl_image_open_file(blkrepl_context *ctx, const char *path,
                            const blkrepl_file_options *file_options,
                            const blkrepl_image_options *options, blkrepl_image **out)
{
    int rc = -EINVAL;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || path == NULL || out == NULL) {
        blkrepl__fail(rc, "image: context, path or out is NULL");
    } else {
        rc = open_file(ctx, path, file_options, options, out);
    }
    if (rc < 0) {
        blkrepl__image_options_release(ctx, options);
    }
    return rc;
}

static int open_memory(blkrepl_context *ctx, uint64_t bytes, const blkrepl_image_options *options,
                       blkrepl_image **out)
{
    struct memory_backend *backend;
    struct leaf *leaf;
    int rc;

    rc = blkrepl__memory_backend_create(ctx, &ctx->alloc, bytes, &backend);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "image: memory");
    }
    rc = blkrepl__leaf_create(ctx, &blkrepl__memory_backend_ops, backend, &leaf);
    if (rc == 0) {
        rc = blkrepl__image_create(ctx, leaf, options, out);
        if (rc < 0) {
            blkrepl__leaf_free(leaf);
        }
    }
    if (rc < 0) {
        blkrepl__memory_backend_discard(backend);
    }
    return rc;
}

int blkrepl_image_open_memory(blkrepl_context *ctx, uint64_t bytes,
                              const blkrepl_image_options *options, blkrepl_image **out)
{
    int rc = -EINVAL;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || out == NULL || bytes > BLKREPL_IMAGE_BYTES_MAX) {
        blkrepl__fail(rc, "image: context or out is NULL, or more than 2^63-1 bytes");
    } else {
        rc = open_memory(ctx, bytes, options, out);
    }
    if (rc < 0) {
        blkrepl__image_options_release(ctx, options);
    }
    return rc;
}
