/* SPDX-License-Identifier: MIT */
/* hbitmap.h - what the files of fuzz_hbitmap share.
 *
 * Three bitmaps of the library, each beside what it must hold.  They have the
 * same number of bytes until one is resized, and any shift that keeps the
 * granules few enough for the naive form. */
#ifndef FUZZ_HBITMAP_H
#define FUZZ_HBITMAP_H

#include "bits.h"

#include "data/dirtymap.h"

#define SUBJECTS 3

struct subject {
    struct dirtymap map;
    struct bits bits;
    uint64_t position; /* of an iteration that goes on while the bitmap changes */
};

struct bench {
    struct alloc alloc;
    struct subject subjects[SUBJECTS];
    uint32_t shift_least;
    uint32_t granules_most; /* at the least shift                             */
    uint64_t walk_state;
};

extern struct bench bench;

/* The number of a subject, for notes. */
unsigned subject_number(const struct subject *s);

/* The whole of it is what it must be. */
void subject_check(struct subject *s);
/* And says so in whichever way it is asked. */
void subject_check_well(struct subject *s);

/* Questions, with arguments from the input. */
void ask_get(struct subject *s);
void ask_next(struct subject *s);
void ask_area(struct subject *s);
void ask_status(struct subject *s);
void ask_iterate(struct subject *s);
void ask_predicates(struct subject *s);
void ask_save(struct subject *s);
void ask_sha256(struct subject *s);
void ask_bits_next(struct subject *s);
void ask_bits_list(struct subject *s);

#endif
