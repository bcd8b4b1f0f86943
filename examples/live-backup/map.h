/* SPDX-License-Identifier: MIT */
/* map.h - the dirty bitmap of a disk, kept in a file while nobody runs. */
#ifndef LIVE_BACKUP_MAP_H
#define LIVE_BACKUP_MAP_H

#include <stdbool.h>

#include <libblkrepl/libblkrepl.h>

struct map {
    blkrepl_bitmap *bitmap; /* of the disk; records */
    bool loaded;            /* from the file */
};

/* What went wrong with the last call that answered false. */
extern char map_error[512];

/* Give the disk a bitmap that records, with what the file holds if it is there.
 *
 * The file is removed then: it does not know of what is written from now on, and must not be
 * taken for good if this program ends without map_save(). */
bool map_open(struct map *map, blkrepl_image *disk, const char *path);

/* Write it to the file. */
bool map_save(const struct map *map, const char *path);

#endif
