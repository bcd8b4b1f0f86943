/* SPDX-License-Identifier: MIT */
/* error.c - the message of the last call that failed on this thread.
 *
 * One static buffer per thread: no allocation, no destructor. */
#include "core/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char error_message[256];
static _Thread_local char error_text[96];

int blkrepl__fail(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error_message, sizeof error_message, format, args);
    va_end(args);
    return code;
}

int blkrepl__fail_code(int code, const char *format, ...)
{
    va_list args;
    size_t used;

    va_start(args, format);
    vsnprintf(error_message, sizeof error_message, format, args);
    va_end(args);
    used = strlen(error_message);
    if (used + 3 < sizeof error_message) {
        memcpy(error_message + used, ": ", 3);
        used += 2;
        blkrepl__error_describe(code, error_message + used, sizeof error_message - used);
    }
    return code;
}

void blkrepl__error_describe(int code, char *out, size_t bytes)
{
    if (code == 0) {
        snprintf(out, bytes, "success");
    } else if (code == BLKREPL_ERR_STATE) {
        snprintf(out, bytes, "not possible in this state");
    } else if (code == BLKREPL_ERR_VERSION) {
        snprintf(out, bytes, "needs a newer release of the library");
    } else if (code > 0 || code < -4095 || strerror_r(-code, out, bytes) != 0) {
        snprintf(out, bytes, "unknown error");
    } else if (strncmp(out, "Unknown error", 13) == 0) {
        snprintf(out, bytes, "unknown error");
    }
}

const char *blkrepl_error_text(int code)
{
    blkrepl__error_describe(code, error_text, sizeof error_text);
    return error_text;
}

const char *blkrepl_error_message(void)
{
    return error_message;
}
