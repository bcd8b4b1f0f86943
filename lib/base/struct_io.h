/* SPDX-License-Identifier: MIT */
/* struct_io.h - size-first structs crossing the border.
 *
 * Both check struct_size, which is the first uint32_t of every such struct. */
#ifndef BLKREPL_BASE_STRUCT_IO_H
#define BLKREPL_BASE_STRUCT_IO_H

#include "base/compiler.h"

/* Read the caller's struct `src` into ours of `dst_bytes`; NULL gives zeroes.
 * `v1_bytes` is the size of the struct in its first release.  dst's own
 * struct_size becomes dst_bytes.
 * Returns: 0; -EINVAL smaller than v1; BLKREPL_ERR_VERSION larger than ours and
 *          not zero in what we do not know. */
int blkrepl__struct_in(void *dst, size_t dst_bytes, size_t v1_bytes, const void *src);

/* Give our struct `src` of `src_bytes` to the caller, whose `dst` says its size:
 * the common part is copied, the rest of the caller's zeroed, its struct_size
 * kept.
 * Returns: 0; -EINVAL smaller than v1. */
int blkrepl__struct_out(void *dst, size_t v1_bytes, const void *src, size_t src_bytes);

#endif
