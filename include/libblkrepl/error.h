/* SPDX-License-Identifier: MIT */
/**
 * @file error.h
 * Error codes and messages.
 *
 * -1 .. -4095 are negated errno values, passed through from the host's backend
 * or used with their plain meaning.  The library's own codes start at -10001.
 */
#ifndef LIBBLKREPL_ERROR_H
#define LIBBLKREPL_ERROR_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

/** The library's own error codes; their values never change. */
enum blkrepl_error {
    /** Not possible in the object's present state. */
    BLKREPL_ERR_STATE = -10001,
    /** The caller uses a feature of a newer release than this library. */
    BLKREPL_ERR_VERSION = -10002,
    /** Data that the library keeps does not make sense. */
    BLKREPL_ERR_CORRUPT = -10005
};

/**
 * Describe an error code in a few words.
 *
 * Ownership:  the text is static; it must not be freed.
 * Thread:     any.
 * Returns:    a text, never NULL; unknown codes give "unknown error".
 * Since:      0.1
 */
BLKREPL_API const char *blkrepl_error_text(int code);

/**
 * Say what was wrong with the last call that failed on this thread.
 *
 * Names the object and the reason, e.g. `job "b0": cannot start: already
 * running`.  A call that succeeds leaves the text alone.  What goes wrong
 * inside a job, after the call, is in blkrepl_job_query().
 *
 * Ownership:  one buffer per thread, overwritten by the next failing call.
 * Thread:     any.
 * Returns:    a text, never NULL; "" if no call has failed on this thread.
 * Since:      0.1
 */
BLKREPL_API const char *blkrepl_error_message(void);

BLKREPL_END_DECLS

#endif
