/* SPDX-License-Identifier: MIT */
/* options.h - what the files of fuzz_options share.
 *
 * The bench is a context that does nothing wrong: two small disks and what else
 * is opened when it is needed.  Every act makes calls with structs from the
 * input; after each that was refused the bench must still work. */
#ifndef FUZZ_OPTIONS_H
#define FUZZ_OPTIONS_H

#include "disk.h"

/* The disks of the bench, by what they are good for. */
enum bench_disk {
    BENCH_SOURCE,
    BENCH_TARGET,
    BENCH_READ_ONLY,
    BENCH_SMALL,    /* too small a target                                       */
    BENCH_COARSE,   /* request alignment of 64 KiB                              */
    BENCH_CLUSTER,  /* wants to be written in clusters of 1 MiB                 */
    BENCH_COMPRESS, /* can compress clusters of 8 KiB                          */
    BENCH_HUGE,     /* 2^63-1 bytes                                             */
    BENCH_HUGE_TOO,
    BENCH_DISKS, /* those for acts; the others show that all is well     */
    BENCH_SOUND_SOURCE = BENCH_DISKS,
    BENCH_SOUND_TARGET,
    BENCH_ALL
};

struct bench {
    blkrepl_context *ctx;
    uint64_t memory_bytes_max;
    uint32_t requests_max;
    uint32_t job_requests_max;
    blkrepl_image *images[BENCH_ALL];
    struct disk disks[BENCH_ALL];
    unsigned refused; /* calls, since the start                               */
    bool job;         /* one of the acts has a job: memory may be used up     */
};

extern struct bench bench;

blkrepl_image *bench_image(enum bench_disk which);
/* Poll until the library wants to sleep; the deadline that it names. */
uint64_t bench_drain(void);
/* What a host does every day must work: write, read, back up. */
void bench_expect_sound(void);
/* The call was refused: count it, and see whether the bench has suffered. */
void bench_refused(void);

/* Free a context, which must be possible now. */
void context_expect_freed(blkrepl_context *ctx);
/* Write and read back some bytes at `offset` of an image, with polls. */
void image_round_trip(blkrepl_context *ctx, blkrepl_image *image, uint64_t offset, size_t bytes);

/* Requests to an image of a bundled backend, from the input. */
void image_exercise(blkrepl_image *image, uint64_t bytes);

/* A name on a heap block of its size: NULL, good, or too long; at most 79 bytes. */
char *name_draw(void);
/* Whether the name of an image is in the info, or the default one. */
bool name_matches(const char *asked, const char *kind, uint64_t id, const char *got);

/* Options of an image, with what is wrong about them in *verdict. */
struct image_options {
    blkrepl_image_options typed;
    struct packed packed;
    struct release *release; /* what the image must release, or NULL          */
    char *name;
};

struct image_options image_options_draw(struct verdict *verdict);
/* After the call: what it borrowed goes, so that a later use is seen. */
void image_options_drop(struct image_options *options);
/* The image was refused: its release has run if the library could know of it. */
void image_options_expect_released(const struct image_options *options);
/* The info that the image gives is what was asked for. */
blkrepl_image_info image_expect_info(blkrepl_image *image, const struct image_options *options);

/* Options of a bitmap, of an image if `image` is not NULL, with what is wrong about
 * them in *verdict; typed has what they mean then. */
struct bitmap_options {
    blkrepl_bitmap_options typed;
    struct packed packed;
    char *name;
};

struct bitmap_options bitmap_options_draw(const blkrepl_image_info *image, struct verdict *verdict);
void bitmap_options_drop(struct bitmap_options *options);
/* Whether the image has a bitmap of this name. */
bool bitmap_exists(blkrepl_image *image, const char *name);

/* The acts. */
void act_context(void);
void act_open_backend(void);
void act_open_file(void);
void act_open_memory(void);
void act_backup(void);
void act_bracket(void);
void act_request(void);
void act_status(void);
void act_query_image(void);
void act_bitmap(void);
void act_transact(void);
void act_null(void);
void act_verify(void);
void act_throttle(void);
void act_group(void);

/* Begins to free the bench, and calls what is refused from then on. */
void bench_shut(void);

/* Any job of the bench.  A query, of which is true what is true of every job. */
blkrepl_job_info job_info(blkrepl_job *job);
/* A job_query with a struct of any size; `job` may be in any state. */
void job_query_any(blkrepl_job *job);

enum job_verb {
    VERB_SET_SPEED,
    VERB_PAUSE,
    VERB_RESUME,
    VERB_START,
    VERB_CANCEL,
    VERB_COMPLETE,
    VERB_FINALIZE,
    VERB_DISMISS,
    VERB_COUNT
};

/* Give a verb, which must answer as the table of job.h has it; a start that the table
 * allows answers start_code. */
int job_verb(blkrepl_job *job, enum job_verb verb, int start_code);
/* Give up to three from the input; whether one of them has started the job. */
bool job_verbs_draw(blkrepl_job *job, int start_code);
/* Let the job run, and time pass, until it ends; if that takes long, cancel it. */
void job_run_to_end(blkrepl_job *job);
/* Free the handle of a job that has concluded, and dismiss it if that has to be done. */
void job_drop(blkrepl_job *job);

/* A free-standing bitmap for a job; zero: none. */
struct given_bitmap {
    blkrepl_bitmap *handle;
    uint64_t bytes;
    uint64_t unit;
    uint32_t dirty; /* a bit for 512 bytes                                      */
    bool frozen;    /* busy: the host has frozen it                             */
    bool loading;   /* inconsistent                                             */
};

void given_bitmap_draw(struct given_bitmap *given, uint64_t bytes);
void given_bitmap_drop(struct given_bitmap *given);
/* Whether something in the range was dirty when it was given. */
bool given_bitmap_any(const struct given_bitmap *given, uint64_t start, uint64_t bytes);
/* What is wrong with it for images of `bytes`, except that it may be busy. */
void given_bitmap_judge(const struct given_bitmap *given, uint64_t bytes, struct verdict *verdict);
/* A throttle with any limits, or mostly NULL. */
blkrepl_throttle *given_throttle_draw(void);

bool job_name_valid(const char *name);
/* It was refused, or is gone: `user` was released once, if the library could know of it. */
void job_user_expect_released(struct release *user, const struct packed *packed);

/* What sync and bitmap_mode mean, 0 included. */
uint32_t backup_sync_of(const blkrepl_backup_options *o);
uint32_t backup_mode_of(const blkrepl_backup_options *o);
/* Whether the options are right by themselves, but for the name. */
bool backup_options_valid(const blkrepl_backup_options *o);

/* Of what a snapshot is opened. */
struct snapshot_of {
    blkrepl_job *job;
    const struct disk *source;
    uint64_t cluster;
    uint32_t slots; /* of job_requests_max that are left                       */
    bool none;      /* a backup with SYNC_NONE                                 */
    bool readable;  /* the first cluster is                                    */
};

/* Open a snapshot with options from the input, read it and close it. */
void snapshot_try(const struct snapshot_of *of);

/* Removes what act_open_file() has made. */
void open_file_clean(void);

#endif
