/* SPDX-License-Identifier: MIT */
/* error.c - the message of the last call that failed on this thread.
 *
 * One static buffer per thread: no allocation, no destructor. */
#include "core/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char error_message[ERROR_MESSAGE_BYTES];
/* It is of the call that this thread is still inside of. */
static _Thread_local bool error_fresh;

void blkrepl__error_begin(void)
{
    error_fresh = false;
}

void blkrepl__error_keep(struct error_kept *kept)
{
    kept->fresh = error_fresh;
    if (UNLIKELY(error_fresh)) {
        memcpy(kept->message, error_message, sizeof error_message);
    }
    error_fresh = false;
}

void blkrepl__error_give_back(const struct error_kept *kept)
{
    if (UNLIKELY(kept->fresh)) {
        memcpy(error_message, kept->message, sizeof error_message);
    }
    error_fresh = kept->fresh;
}

int blkrepl__fail(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error_message, sizeof error_message, format, args);
    va_end(args);
    error_fresh = true;
    return code;
}

int blkrepl__fail_code(int code, const char *format, ...)
{
    va_list args;
    size_t used;

    va_start(args, format);
    vsnprintf(error_message, sizeof error_message, format, args);
    va_end(args);
    error_fresh = true;
    used = strlen(error_message);
    snprintf(error_message + used, sizeof error_message - used, ": %s", blkrepl_error_text(code));
    return code;
}

/* Our own table: strerror() is not for threads, strerror_r() not for keeps. */
struct error_entry {
    int code;
    const char *text;
};

static const struct error_entry error_table[] = {
    {0, "Success"},
    {BLKREPL_ERR_STATE, "Not possible in this state"},
    {BLKREPL_ERR_VERSION, "Needs a newer release of the library"},
    {BLKREPL_ERR_CORRUPT, "Data kept by the library does not make sense"},
    {-EPERM, "Operation not permitted"},
    {-ENOENT, "No such file or directory"},
    {-EINTR, "Interrupted system call"},
    {-EIO, "Input/output error"},
    {-ENXIO, "No such device or address"},
    {-EBADF, "Bad file descriptor"},
    {-EAGAIN, "Resource temporarily unavailable"},
    {-ENOMEM, "Cannot allocate memory"},
    {-EACCES, "Permission denied"},
    {-EFAULT, "Bad address"},
    {-EBUSY, "Device or resource busy"},
    {-EEXIST, "File exists"},
    {-ENODEV, "No such device"},
    {-ENOTDIR, "Not a directory"},
    {-EISDIR, "Is a directory"},
    {-EINVAL, "Invalid argument"},
    {-ENFILE, "Too many open files in system"},
    {-EMFILE, "Too many open files"},
    {-ETXTBSY, "Text file busy"},
    {-EFBIG, "File too large"},
    {-ENOSPC, "No space left on device"},
    {-ESPIPE, "Illegal seek"},
    {-EROFS, "Read-only file system"},
    {-EPIPE, "Broken pipe"},
    {-ERANGE, "Numerical result out of range"},
    {-EDEADLK, "Resource deadlock avoided"},
    {-ENAMETOOLONG, "File name too long"},
    {-ENOSYS, "Function not implemented"},
    {-ELOOP, "Too many levels of symbolic links"},
    {-EPROTO, "Protocol error"},
    {-EBADMSG, "Bad message"},
    {-EOVERFLOW, "Value too large for defined data type"},
    {-EILSEQ, "Invalid or incomplete multibyte or wide character"},
    {-ENOTSUP, "Operation not supported"},
    {-ENETDOWN, "Network is down"},
    {-ENETUNREACH, "Network is unreachable"},
    {-ECONNABORTED, "Software caused connection abort"},
    {-ECONNRESET, "Connection reset by peer"},
    {-ENOBUFS, "No buffer space available"},
    {-ENOTCONN, "Transport endpoint is not connected"},
    {-ETIMEDOUT, "Timed out"},
    {-ECONNREFUSED, "Connection refused"},
    {-EHOSTUNREACH, "No route to host"},
    {-EALREADY, "Operation already in progress"},
    {-EINPROGRESS, "Operation now in progress"},
    {-ESTALE, "Stale file handle"},
    {-EDQUOT, "Disk quota exceeded"},
    {-ECANCELED, "Operation canceled"},
#ifdef ESHUTDOWN
    {-ESHUTDOWN, "It is being shut down"},
#endif
#ifdef EMEDIUMTYPE
    {-ENOMEDIUM, "No medium found"},
    {-EMEDIUMTYPE, "Wrong medium type"},
#endif
#ifdef EREMOTEIO
    {-EREMOTEIO, "Remote I/O error"},
#endif
};

const char *blkrepl_error_text(int code)
{
    for (size_t i = 0; i < ARRAY_COUNT(error_table); i++) {
        if (error_table[i].code == code) {
            return error_table[i].text;
        }
    }
    return "unknown error";
}

const char *blkrepl_error_message(void)
{
    return error_message;
}
