/* SPDX-License-Identifier: MIT */
/* struct_io.c - size-first structs crossing the border. */
#include "base/struct_io.h"

#include <errno.h>
#include <libblkrepl/error.h>
#include <string.h>

/* The host's struct may be of any type, so it is read as bytes. */
static uint32_t struct_size_get(const void *any)
{
    uint32_t size;

    memcpy(&size, any, sizeof size);
    return size;
}

static void struct_size_put(void *any, uint32_t size)
{
    memcpy(any, &size, sizeof size);
}

static bool struct_zero(const unsigned char *from, const unsigned char *end)
{
    while (from < end) {
        if (*from++ != 0) {
            return false;
        }
    }
    return true;
}

int blkrepl__struct_in(void *dst, size_t dst_bytes, size_t v1_bytes, const void *src)
{
    size_t src_bytes = 0;

    CHECK(sizeof(uint32_t) <= v1_bytes && v1_bytes <= dst_bytes);
    if (src != NULL) {
        const unsigned char *bytes = src;

        src_bytes = struct_size_get(src);
        if (src_bytes < v1_bytes) {
            return -EINVAL;
        }
        if (src_bytes > dst_bytes) {
            if (!struct_zero(bytes + dst_bytes, bytes + src_bytes)) {
                return BLKREPL_ERR_VERSION;
            }
            src_bytes = dst_bytes;
        }
    }
    memset(dst, 0, dst_bytes);
    if (src != NULL) {
        memcpy(dst, src, src_bytes);
    }
    struct_size_put(dst, (uint32_t)dst_bytes);
    return 0;
}

int blkrepl__struct_out(void *dst, size_t v1_bytes, const void *src, size_t src_bytes)
{
    uint32_t dst_bytes = struct_size_get(dst);
    size_t common = dst_bytes < src_bytes ? dst_bytes : src_bytes;

    CHECK(sizeof(uint32_t) <= v1_bytes && v1_bytes <= src_bytes);
    if (dst_bytes < v1_bytes) {
        return -EINVAL;
    }
    memcpy(dst, src, common);
    memset((unsigned char *)dst + common, 0, dst_bytes - common);
    struct_size_put(dst, dst_bytes);
    return 0;
}
