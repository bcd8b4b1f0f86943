/* SPDX-License-Identifier: MIT */
/* version.c - the release that is running. */
#include <libblkrepl/version.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *blkrepl_version(void)
{
    return TEXT(BLKREPL_VERSION_MAJOR) "." TEXT(BLKREPL_VERSION_MINOR) "." TEXT(
        BLKREPL_VERSION_PATCH);
}
