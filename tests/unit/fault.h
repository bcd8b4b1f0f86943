/* SPDX-License-Identifier: MIT */
/* fault.h - functions of the system that fail when a test says so.
 *
 * The library is linked into a unit test, so a test that defines, say, open()
 * itself gets the library's calls of it.  It asks fault_due() whether the call
 * is to fail, and otherwise passes it on to fault_real().  Needs _GNU_SOURCE. */
#ifndef TESTS_UNIT_FAULT_H
#define TESTS_UNIT_FAULT_H

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct fault {
    int err;        /* the errno of a call that fails */
    unsigned after; /* calls that go well before that */
    unsigned times; /* calls that are to fail         */
};

static inline bool fault_due(struct fault *fault)
{
    if (fault->times == 0) {
        return false;
    }
    if (fault->after > 0) {
        fault->after--;
        return false;
    }
    fault->times--;
    errno = fault->err;
    return true;
}

/* Put the system's own function into the pointer to function at `function`.
 * Some are called by another name where offsets have 64 bits: that goes first. */
static inline void fault_real(void *function, const char *name64, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name64);

    if (found == NULL) {
        found = dlsym(RTLD_NEXT, name);
    }
    if (found == NULL) {
        abort();
    }
    memcpy(function, &found, sizeof found);
}

#endif
