/* SPDX-License-Identifier: MIT */
/* hook.c - where a test can hold the library back; empty in what is shipped. */
#include "base/hook.h"

#ifdef BLKREPL_HOOKS
bool (*blkrepl__stretch_hook)(enum stretch_site site);

bool blkrepl__stretch(enum stretch_site site)
{
    return blkrepl__stretch_hook != NULL && blkrepl__stretch_hook(site);
}

void (*blkrepl__record_hook)(enum record_entry entry, uint32_t lane);

void blkrepl__record(enum record_entry entry, uint32_t lane)
{
    if (blkrepl__record_hook != NULL) {
        blkrepl__record_hook(entry, lane);
    }
}
#endif
