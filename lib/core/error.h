/* SPDX-License-Identifier: MIT */
/* error.h - the message of the last call that failed on this thread. */
#ifndef BLKREPL_CORE_ERROR_H
#define BLKREPL_CORE_ERROR_H

#include "base/compiler.h"
#include <libblkrepl/error.h>

/* Record a message for this thread and return `code`, so that a function can
 * say `return blkrepl__fail(-EINVAL, "...")`. */
int blkrepl__fail(int code, const char *format, ...) PRINTF_LIKE(2, 3);

/* The same with the text of the code behind the message: "...: text". */
int blkrepl__fail_code(int code, const char *format, ...) PRINTF_LIKE(2, 3);

#endif
