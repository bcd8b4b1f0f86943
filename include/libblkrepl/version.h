/* SPDX-License-Identifier: MIT */
/**
 * @file version.h
 * The release these headers belong to, and the one that is running.
 */
#ifndef LIBBLKREPL_VERSION_H
#define LIBBLKREPL_VERSION_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

#define BLKREPL_VERSION_MAJOR 0
#define BLKREPL_VERSION_MINOR 1
#define BLKREPL_VERSION_PATCH 0

/**
 * Tell the version of the library that is running.
 *
 * Ownership:  the text is static; it must not be freed.
 * Thread:     any.
 * Returns:    "major.minor.patch", never NULL.
 * Since:      0.1
 */
BLKREPL_API const char *blkrepl_version(void);

BLKREPL_END_DECLS

#endif
