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

#define ERROR_MESSAGE_BYTES 256

/* A call that has failed may still run code of the host, whose own calls may fail:
 * its message is kept meanwhile. */
struct error_kept {
    bool fresh;
    char message[ERROR_MESSAGE_BYTES];
};

/* A call begins: the message is an earlier one's.  Around code of the host: keep
 * the message if it is this call's, and give it back. */
void blkrepl__error_begin(void);
void blkrepl__error_keep(struct error_kept *kept);
void blkrepl__error_give_back(const struct error_kept *kept);

#endif
