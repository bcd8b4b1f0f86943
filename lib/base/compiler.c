/* SPDX-License-Identifier: MIT */
/* compiler.c - where a broken invariant ends. */
#include "base/compiler.h"

#include <stdio.h>
#include <stdlib.h>

void blkrepl__check_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "libblkrepl: %s:%d: check failed: %s\n", file, line, what);
    abort();
}

void blkrepl__unreachable(const char *file, int line)
{
    blkrepl__check_failed("this line is never reached", file, line);
}
