/* SPDX-License-Identifier: MIT */
/* load.h - what the files of fuzz_hbitmap_load share.
 *
 * Two bitmaps of the public API, free-standing or of an image, each beside what
 * is known of it.  Every call is made with arguments from the input, and the
 * harness knows which answers are right and what the content is then. */
#ifndef FUZZ_LOAD_H
#define FUZZ_LOAD_H

#include "bits.h"

#define SUBJECTS 2

struct subject {
    blkrepl_bitmap *handle; /* NULL: none at the moment                         */
    struct bits bits;       /* the content                                    */
    struct bits since;      /* frozen: the successor's                         */
    bool named;             /* of the image                                   */
    bool recording;
    bool frozen;
    bool loading;
    uint64_t next; /* loading: where the next part begins                       */
    uint64_t position;
};

struct bench {
    blkrepl_context *ctx;
    blkrepl_image *image;
    uint64_t image_bytes;
    struct subject subjects[SUBJECTS];
};

extern struct bench bench;

unsigned subject_number(const struct subject *s);
/* Mostly the handle, at times NULL with what must be answered then. */
blkrepl_bitmap *handle_draw(const struct subject *s, struct verdict *verdict);
/* What a verb answers that needs the content for itself. */
void verdict_add_states(struct verdict *verdict, const struct subject *s);
/* What a question answers. */
void verdict_add_loading(struct verdict *verdict, const struct subject *s);
/* After the call: one of the verdict's codes, or `must` if it has none. */
void answer_expect(int answer, const struct verdict *verdict, int must, const char *what);
/* A range that may lie anywhere. */
void any_range_draw(const struct subject *s, uint64_t *offset, uint64_t *bytes);

/* The subject is what it must be, and says so. */
void subject_check(struct subject *s);

/* load_calls.c: the wire form. */
void call_begin_load(struct subject *s);
void call_load(struct subject *s);
void call_load_next(struct subject *s);
void call_finish(struct subject *s);
void call_save(struct subject *s);
void call_transfer(struct subject *s);

/* load_verbs.c: everything else, to be refused or not. */
void call_question(struct subject *s);
void call_iterate(struct subject *s);
void call_set(struct subject *s);
void call_reset(struct subject *s);
void call_plain(struct subject *s);
void call_combine(struct subject *s);
void call_resize(struct subject *s);
void call_freeze(struct subject *s);
void call_thaw(struct subject *s);
void call_record(struct subject *s);
void call_remove(struct subject *s);

#endif
