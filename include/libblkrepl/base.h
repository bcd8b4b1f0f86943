/* SPDX-License-Identifier: MIT */
/**
 * @file base.h
 * Macros and plain types that every other header of libblkrepl uses.
 *
 * Rules of the border, the same everywhere:
 *   - zero means "default"; an option struct may be NULL for all defaults;
 *   - a struct that begins with struct_size is filled by the caller with
 *     sizeof of what it was compiled with, so that it may grow in later
 *     releases; unknown flag bits and reserved fields must be 0, and a NULL
 *     where an object is needed is refused: all with -EINVAL;
 *   - the other way round: read or write only those fields of the library's
 *     structs that lie within their struct_size;
 *   - offset and bytes are in bytes; times are in nanoseconds;
 *   - a function that makes something sets *out to NULL when it fails, and
 *     before anything can call back about it when it succeeds;
 *   - a handle must not be in use by another thread when it is closed or freed;
 *   - functions return 0 or a negative code (see error.h) unless they say
 *     otherwise.
 */
#ifndef LIBBLKREPL_BASE_H
#define LIBBLKREPL_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define BLKREPL_API __attribute__((visibility("default")))
#else
#define BLKREPL_API
#endif

#ifdef __cplusplus
#define BLKREPL_BEGIN_DECLS extern "C" {
#define BLKREPL_END_DECLS }
#else
#define BLKREPL_BEGIN_DECLS
#define BLKREPL_END_DECLS
#endif

BLKREPL_BEGIN_DECLS

/** The owner of everything: see context.h. */
typedef struct blkrepl_context blkrepl_context;
/** A disk: see image.h. */
typedef struct blkrepl_image blkrepl_image;
/** Which parts of a disk may have changed: see bitmap.h. */
typedef struct blkrepl_bitmap blkrepl_bitmap;
/** A background operation: see job.h. */
typedef struct blkrepl_job blkrepl_job;
/** Jobs that belong together: see job.h. */
typedef struct blkrepl_group blkrepl_group;
/** A limit that images and jobs share: see throttle.h. */
typedef struct blkrepl_throttle blkrepl_throttle;

/** A piece of memory; the layout is that of struct iovec. */
typedef struct blkrepl_iovec {
    void *base;
    size_t len;
} blkrepl_iovec;

/**
 * The callback of one request.
 *
 * The struct is copied by the call that takes it.  `fn` runs exactly once for
 * an accepted request, in a poll of the lane that the request was given to (it
 * may have run before the call returns, in a thread that polls), with 0 or a
 * negative code; it never runs for a rejected request.  Where a call takes a
 * pointer to this struct, NULL means that nobody wants to know.
 *
 * `release` runs after `fn`, as the last use of `user`; it runs exactly once
 * also when the call was rejected or was answered at once and `fn` never runs
 * (then on the calling thread, before the call returns).  It belongs to the
 * callback, not to the write: a host that needs `user` for another try leaves
 * it NULL, as most C hosts do.  Bindings need it.
 *
 * Either may be NULL.  Both may call every function of the library but a poll.
 */
typedef struct blkrepl_completion {
    void (*fn)(void *user, int result);
    void *user;
    void (*release)(void *user);
} blkrepl_completion;

/** The largest image: 2^63 - 1 bytes. */
#define BLKREPL_IMAGE_BYTES_MAX 0x7fffffffffffffff
/** The longest name of an image or a job, without its terminating zero. */
#define BLKREPL_NAME_MAX 63

/** What a part of an image is, in blkrepl_extent.flags. */
enum blkrepl_extent_flags {
    /** Stored data; may still happen to be zero. */
    BLKREPL_EXTENT_DATA = 1,
    /** Reads as zero. */
    BLKREPL_EXTENT_ZERO = 2,
    /** Takes up space in this image. */
    BLKREPL_EXTENT_ALLOCATED = 4
};

/** One run of an image with the same status. */
typedef struct blkrepl_extent {
    uint64_t bytes;     /* 0 marks the end of a list that is not full */
    uint32_t flags;     /* BLKREPL_EXTENT_* */
    uint32_t reserved0; /* 0 */
} blkrepl_extent;

BLKREPL_END_DECLS

#endif
