/* SPDX-License-Identifier: MIT */
/* sim.h - what the files of blkrepl-sim share.
 *
 * One process, one thread, no clock, no files: a run is a function of its plan,
 * which is a 64-bit seed, and what of the seed's run is left out to shrink it.
 * The truth about a disk is the medium of its struct disk; the oracles compare
 * it with what the guest was told and with what a backup promised.  Everything
 * that happens is an event: it goes into the running hash and into a ring that
 * is printed when a promise is broken.
 *
 * The world is made of parts (disks, guest, backups, host).  A part draws its
 * options, says what it can do and how often, and watches over its promises; a
 * new machine of the library comes with a part and an oracle of its own.
 */
#ifndef BLKREPL_SIM_H
#define BLKREPL_SIM_H

#include <libblkrepl/libblkrepl.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SOURCES_MAX 2
#define DISKS_MAX 5
#define BACKUPS_MAX 10 /* jobs of any kind                                 */
#define BACKUPS_DRAWN 6
#define GROUPS_MAX 4
#define SNAPSHOTS_MAX 6
#define THROTTLES_MAX 3
#define MEMBERS_MAX 4
#define REQUESTS_MAX 512
#define QUEUE_MAX 32
#define LANES_MAX 5    /* that are drawn                                           */
#define LANES_KNOWN 16 /* that a replay of threads may have                        */
#define LANE_NONE UINT32_MAX
#define DISK_BYTES_MAX (1280u * 1024)
#define ARENA_BYTES (4u * 1024 * 1024)
#define RING 64
#define ACTORS_MAX 16
#define STEPS_MAX 512
#define FAILURES_MAX 32
#define BLOCKS_MAX (DISK_BYTES_MAX / 512 + 1) /* clusters: those that compress are small */
#define SITES_MAX 64
#define BITMAPS_MAX 24
#define GRANULES_MAX 4096
#define HANDLES_MAX 4
#define ENDING_MAX 8
#define SECOND_NS UINT64_C(1000000000)

/* What can be left out of a run as a whole (--without), in the order in which
 * the shrinker tries. */
enum fault {
    FAULT_ERRORS,    /* of disks                                            */
    FAULT_TORN,      /* data in pieces, before the completion               */
    FAULT_HANGS,     /* requests that do not end                            */
    FAULT_ORDER,     /* of completions: then first in, first out            */
    FAULT_INLINE,    /* completions inside submit                           */
    FAULT_LIMITS,    /* alignments, depths, transfer limits of disks        */
    FAULT_OPCODES,   /* opcodes that disks do not know                      */
    FAULT_DISCARDS,  /* discards that change the medium                     */
    FAULT_REENTRY,   /* calls from inside callbacks and backends            */
    FAULT_MISUSE,    /* wrong calls                                         */
    FAULT_MEMORY,    /* allocations that fail, budgets                      */
    FAULT_BOUNDS,    /* small bounds of the context                         */
    FAULT_JUMPS,     /* a clock that jumps                                  */
    FAULT_CLOSE,     /* handles closed in the middle                        */
    FAULT_SHUTDOWN,  /* the context freed in the middle                     */
    FAULT_BESIDE,    /* brackets                                            */
    FAULT_LONG,      /* long writes                                         */
    FAULT_VERBS,     /* pause, resume, cancel, ...                          */
    FAULT_TUNING,    /* of backups: reserve, workers, timeout, speed        */
    FAULT_STRETCH,   /* hooks in the library                                */
    FAULT_POWER,     /* power cuts                                          */
    FAULT_CONTRACT,  /* backends that break backend.h                       */
    FAULT_LANES,     /* more than one                                       */
    FAULT_UNPOLLED,  /* a lane that nobody polls                            */
    FAULT_SLEEP,     /* polls only when woken                               */
    FAULT_OFFLOAD,   /* disks that copy from each other                     */
    FAULT_BITMAPS,   /* dirty bitmaps                                       */
    FAULT_SYNC,      /* backups of bitmaps, and with bitmaps               */
    FAULT_POLICY,    /* jobs that stop at errors, or ignore them           */
    FAULT_FINALE,    /* jobs that wait for finalize and dismiss            */
    FAULT_COMPRESS,  /* backups that compress                              */
    FAULT_SPILL,     /* spill images                                       */
    FAULT_BURST,     /* of the speed of jobs                               */
    FAULT_GROUPS,    /* jobs that start together                           */
    FAULT_SNAPSHOTS, /* backups with SYNC_NONE, and images of them         */
    FAULT_VERIFY,    /* verify jobs                                        */
    FAULT_THROTTLES, /* of images and jobs                                 */
    FAULT_COUNT
};

/* What to run. */
struct sim_plan {
    uint64_t seed;
    uint64_t without;            /* bit n: enum fault n is off                      */
    uint8_t left_out[STEPS_MAX]; /* steps that are not taken                */
    const uint8_t *bytes;        /* chance comes from here first                   */
    size_t byte_count;
};

/* The order in which a disk completes its requests. */
enum order {
    ORDER_UNIFORM,
    ORDER_FIFO,
    ORDER_LIFO,
    ORDER_STARVE_OLDEST,
    ORDER_BATCHES,
    ORDER_COUNT
};

/* Code of the host that the library calls. */
enum inside {
    INSIDE_NOTHING,
    INSIDE_DONE,    /* completion                                      */
    INSIDE_RELEASE, /* of a completion                                 */
    INSIDE_GO,      /* of a bracket                                    */
    INSIDE_EVENT,   /* sink                                            */
    INSIDE_SUBMIT,
    INSIDE_CANCEL,
    INSIDE_CLOSE,
    INSIDE_IMAGE_RELEASE,
    INSIDE_JOB_RELEASE,
    INSIDE_LOG,
    INSIDE_COUNT
};

/* What it may call there. */
enum call {
    CALL_READ,
    CALL_WRITE,
    CALL_ZEROES,
    CALL_DISCARD,
    CALL_FLUSH,
    CALL_STATUS,
    CALL_BEGIN,
    CALL_END,
    CALL_WRITE_CANCEL,
    CALL_CREATE,
    CALL_BACKUP_START,
    CALL_START,
    CALL_PAUSE,
    CALL_RESUME,
    CALL_SPEED,
    CALL_CANCEL,
    CALL_FREE,
    CALL_JOB_QUERY,
    CALL_OPEN,
    CALL_CLOSE,
    CALL_IMAGE_QUERY,
    CALL_COMPLETE,
    CALL_POLL,
    CALL_ARM,
    CALL_FD,
    CALL_WAKE,
    CALL_NOW,
    CALL_CONTEXT_FREE,
    CALL_BITMAP_CREATE,
    CALL_BITMAP_ADD,
    CALL_BITMAP_FIND,
    CALL_BITMAP_NEXT,
    CALL_BITMAP_FREE,
    CALL_BITMAP_QUERY,
    CALL_BITMAP_REMOVE,
    CALL_BITMAP_ENABLE,
    CALL_BITMAP_DISABLE,
    CALL_BITMAP_CLEAR,
    CALL_BITMAP_MERGE,
    CALL_BITMAP_TRANSACT,
    CALL_BITMAP_FREEZE,
    CALL_BITMAP_ABDICATE,
    CALL_BITMAP_RECLAIM,
    CALL_BITMAP_SET,
    CALL_BITMAP_RESET,
    CALL_BITMAP_INVERT,
    CALL_BITMAP_INTERSECT,
    CALL_BITMAP_SUBTRACT,
    CALL_BITMAP_RESIZE,
    CALL_BITMAP_GET,
    CALL_BITMAP_NEXT_DIRTY,
    CALL_BITMAP_NEXT_CLEAN,
    CALL_BITMAP_NEXT_AREA,
    CALL_BITMAP_STATUS,
    CALL_BITMAP_ITERATE,
    CALL_BITMAP_SAVE,
    CALL_BITMAP_LOAD_BEGIN,
    CALL_BITMAP_LOAD,
    CALL_BITMAP_LOAD_ZEROES,
    CALL_BITMAP_LOAD_ONES,
    CALL_BITMAP_LOAD_FINISH,
    CALL_BITMAP_SHA256,
    CALL_BITMAP_VALIDATE,
    CALL_JOB_COMPLETE,
    CALL_JOB_FINALIZE,
    CALL_JOB_DISMISS,
    CALL_JOB_FIND,
    CALL_JOB_NEXT,
    CALL_GROUP_CREATE,
    CALL_GROUP_ADD,
    CALL_GROUP_START,
    CALL_GROUP_CANCEL,
    CALL_GROUP_FREE,
    CALL_SNAPSHOT_OPEN,
    CALL_VERIFY_CREATE,
    CALL_VERIFY_START,
    CALL_THROTTLE_CREATE,
    CALL_THROTTLE_SET,
    CALL_THROTTLE_QUERY,
    CALL_THROTTLE_FREE,
    CALL_IMAGE_SET_THROTTLE,
    CALL_COUNT
};

/* Those that are no bitmap's are drawn by number. */
#define CALL_PLAIN_COUNT CALL_BITMAP_CREATE
#define CALL_BITMAP_LAST CALL_BITMAP_VALIDATE
#define CALL_JOB_FIRST CALL_JOB_COMPLETE

/* A verb of a job. */
enum verb {
    VERB_START,
    VERB_PAUSE,
    VERB_RESUME,
    VERB_SPEED,
    VERB_CANCEL,
    VERB_COMPLETE,
    VERB_FINALIZE,
    VERB_DISMISS,
    VERB_COUNT
};

/* A call of the library that we are inside of. */
enum doing {
    DOING_HOST, /* none: the library has called the host                   */
    DOING_CALL, /* of guest I/O, or about a bracket                        */
    DOING_POLL,
    DOING_CLOSE, /* of an image's handle                                   */
    DOING_FREE   /* of the context                                         */
};

struct being {
    enum doing kind;
    uint32_t lane; /* of a call or a poll                                    */
};

/* A request at a disk; what is needed after its io is gone is copied. */
struct disk_request {
    blkrepl_io *io;
    uint64_t id;
    uint64_t seq; /* of its submit                                           */
    uint64_t offset;
    uint64_t bytes;
    uint64_t copied;         /* READ: this much was sampled                          */
    const struct disk *from; /* COPY_FROM                                   */
    uint64_t from_offset;
    bool from_over; /* COPY_FROM: its data are those of an earlier moment   */
    uint32_t op;
    uint32_t flags;
    uint32_t lane;
    int owner;       /* guest request that it belongs to, or -1             */
    bool owner_sure; /* no other pending request could have caused it       */
    bool job;        /* a job writes to its target                          */
    bool hung;       /* not before it is cancelled, or the disk is healed   */
    bool told;       /* cancel was called for it                            */
};

/* A request that a disk has answered with an error. */
struct failure {
    uint32_t op;
    int code;
    uint64_t offset;
    uint64_t bytes;
};

struct disk {
    /* Drawn per run. */
    uint32_t index;
    uint64_t bytes;
    blkrepl_backend_info info;
    enum order order;
    uint32_t inline_percent;
    uint32_t error_permille;
    uint32_t hang_percent;
    uint32_t tear_percent;
    uint32_t errors_left;
    uint32_t discard_mode; /* 0: unchanged, 1: zero, 2: garbage              */
    uint32_t status_unit;
    bool sticky;
    bool odd_errors;      /* codes with which the library has plans of its own */
    bool refuses_zeroes;  /* with -ENOTSUP, although they are declared         */
    uint32_t copies_most; /* COPY_FROM is refused after so many               */
    bool has_cancel;
    bool read_only;
    /* State. */
    uint8_t *medium;
    blkrepl_image *image;
    uint64_t align; /* what the image demands of a bracket                   */
    bool opened;
    bool closed;
    bool released;
    bool healed;
    bool failing;            /* a sticky error has begun                                */
    uint64_t error_codes[3]; /* bit n: -n was answered                       */
    uint32_t odd_codes;      /* the same of codes that are no errno          */
    uint32_t failed_reads;
    uint32_t failed_writes; /* but for the cancelled                          */
    uint32_t failed_others; /* cancelled ones and flushes                     */
    uint32_t failure_count;
    struct failure failures[FAILURES_MAX]; /* the first of them            */
    uint32_t submitting[LANES_KNOWN];      /* submits that we are inside of          */
    uint32_t in_flight;
    struct disk_request queue[QUEUE_MAX];
    /* By sector: at which instant (of bitmaps) a job's write there surely went on;
     * 0: none did. */
    uint32_t job_writes[DISK_BYTES_MAX / 512 + 1];
    bool job_failed;         /* one that wrote to it, since no job did                            */
    uint64_t good_flush_seq; /* of the accept of a flush that has succeeded          */
    bool flush_failed;       /* one has, and who asked for it may not know yet        */
};

/* Where a guest request is in its life. */
enum request_state {
    REQUEST_PENDING, /* in its call, or accepted and not called back         */
    REQUEST_GO,      /* a bracket: the host may write                        */
    REQUEST_OVER
};

/* Has a job this disk as its target? */
enum hold {
    HOLD_NONE,
    HOLD_MAYBE, /* nobody knows how far it is                                */
    HOLD_SURE
};

/* A guest request or a bracket. */
struct request {
    uint32_t op;
    uint32_t lane;
    struct disk *disk;
    struct snapshot *snapshot; /* the disk is that of this one                   */
    bool must_fail;            /* there is nothing to be read                    */
    uint64_t offset;
    uint64_t bytes;
    uint64_t token;
    uint64_t accept_seq;
    uint64_t done_seq;
    uint8_t *buffer;
    blkrepl_iovec iov[4];
    blkrepl_extent extents[4];
    enum request_state state;
    uint32_t flags;
    uint32_t tag; /* of the pattern; 0: the data are zeroes                  */
    int result;
    enum hold hold;      /* of a job on its disk, when it was made                 */
    uint32_t overwrites; /* backups whose target it takes                    */
    uint32_t fn_count;
    uint32_t release_count;
    uint32_t end_releases;
    uint32_t others;    /* of its lane that were pending when it was made        */
    uint32_t alive;     /* the last instant (of bitmaps) at which it surely had not ended */
    uint64_t alive_seq; /* the last event                                     */
    bool accepted;
    bool bracket;
    bool cancelled;
    bool doomed;     /* a cancel came too late: go will tell an error         */
    bool wrote;      /* something of it may have reached the medium          */
    bool wrote_sure; /* something of it has been given to the backend        */
    bool durable;    /* a flush that has succeeded covers it                  */
    bool no_release;
    bool alone;   /* nothing else was pending when it was made                */
    bool held_up; /* by a bracket of the lane that nobody polls               */
};

/* What a write that had not ended at the start of a backup is to it. */
enum concurrent_class {
    CONCURRENT_GIVEN, /* its data, if it succeeded                           */
    CONCURRENT_MAYBE, /* the library may have given it: all or nothing       */
    CONCURRENT_AFTER  /* surely not given: the old data                      */
};

struct concurrent {
    int request;
    enum concurrent_class class;
};

/* A job: a backup, or a verify job, whose second image is its target here. */
struct backup {
    struct disk *source;
    struct disk *target;
    blkrepl_job *job;
    blkrepl_backup_options options;
    /* Beyond plain backups; 0 and NULL are those. */
    uint32_t kind; /* BLKREPL_KIND_VERIFY                                     */
    blkrepl_verify_options verify;
    struct snapshot *through;  /* the source is this one, of the source        */
    struct snapshot *through2; /* verify: the second image                     */
    struct disk *spill;
    struct bitmap *bitmap;    /* verify: only                                  */
    struct bitmap *differing; /* verify                                        */
    struct throttle *throttle;
    uint32_t group;       /* number + 1; 0: none                               */
    bool adopted;         /* it had no handle for a while: nobody has looked   */
    uint32_t group_place; /* in the order of its adds                          */
    uint32_t job_flags;
    uint32_t on_error[BLKREPL_SIDE_SPILL + 1]; /* by side                      */
    bool frozen;                               /* it holds its bitmap, or may  */
    bool partial;                              /* only `wanted` clusters       */
    bool chained; /* bitmap and target were those of a chain at the start      */
    bool was_chained;
    uint8_t wanted[BLOCKS_MAX]; /* by cluster                                */
    uint8_t absent[BLOCKS_MAX]; /* a discard of a snapshot may have taken it */
    uint8_t *base;              /* the medium of the target at the start     */
    uint8_t *promise;           /* what the target holds in the end          */
    uint8_t *kept;              /* byte was written to target or spill since */
    uint8_t *seen;              /* byte was read from a snapshot ...          */
    uint8_t *seen_as;           /* ... as this                               */
    int start_code;             /* what its start is refused with; 1: who knows                */
    bool complete_asked;
    bool finalize_asked;
    bool dismissed;
    bool missed;           /* events: there was no handle for a while                    */
    uint32_t spill_failed; /* at the start                                     */
    uint64_t ready_seq;
    uint64_t start_ns;
    uint64_t start_seq;
    uint64_t job_id;
    char job_name[64];
    uint8_t *start;      /* the medium of the source at the start            */
    uint8_t *read_after; /* byte was read from the source since              */
    uint8_t *saved;      /* byte was written to the target since             */
    uint64_t saved_bytes;
    uint64_t copied_bytes; /* by COPY_FROM                                     */
    bool has_copied;       /* some of it, at least                              */
    /* What the guest has done to it since the start. */
    uint8_t touched[BLOCKS_MAX]; /* by cluster                            */
    uint64_t touched_count;
    uint64_t touched_bytes;
    uint64_t wait_count; /* writes that may have had to wait                  */
    /* What the host has done to it, and what it was told. */
    blkrepl_job_info told;
    uint64_t speed_bytes_per_sec;
    uint64_t state_changes;
    uint64_t state_events;
    uint64_t error_events;
    uint32_t failed_reads; /* of the disks, at the start                      */
    uint32_t failed_writes;
    uint32_t failed_others;
    uint32_t concurrent_count;
    struct concurrent concurrent[REQUESTS_MAX];
    const char *must_fail; /* why it may not end as done                     */
    uint64_t must_fail_offset;
    uint32_t event_count;
    uint32_t release_count;
    int result;   /* of JOB_DONE                                               */
    bool calling; /* inside its create                                       */
    bool created;
    bool starting;
    bool started;
    bool paused;
    uint32_t verbs;    /* calls about it that have not answered                      */
    bool unsure;       /* verbs inside verbs: who was first?                   */
    bool alloc_failed; /* in its create                                      */
    bool overwritten;  /* the target was given to others                      */
    bool cancel_asked;
    bool freed;
    bool done;    /* JOB_DONE was delivered                                     */
    bool checked; /* the target was compared                                 */
};

/* What is known of a granule: clean, one of these, or both. */
enum {
    GRANULE_MAY = 1, /* something that may have made it dirty                  */
    GRANULE_DIRTY = 3
};

/* What a bitmap should be like. */
struct bitmap_state {
    struct disk *disk; /* NULL: free-standing                                */
    uint64_t bytes;
    uint64_t granules;
    uint64_t load_next; /* the next part of a load                            */
    uint32_t since;     /* the instant since which its content misses nothing */
    uint32_t since_next;
    bool enabled;
    bool frozen;
    bool loading;
    struct backup *job; /* frozen: by this one; NULL: by the host               */
    uint8_t content[GRANULES_MAX];
    uint8_t next[GRANULES_MAX]; /* frozen: what the successor has recorded   */
};

struct bitmap {
    uint64_t id;
    uint64_t granularity;
    bool used;
    uint32_t calling;    /* calls about it that we are inside of; then others leave it alone */
    uint32_t begun;      /* of these, deeds                                      */
    uint32_t holder;     /* depth of the act that uses it, and one               */
    bool for_jobs;       /* others mostly leave it alone                       */
    struct disk *chain;  /* holds the image of an earlier moment, but for the content */
    uint32_t chain_last; /* number of the last job of it                       */
    uint32_t handle_count;
    blkrepl_bitmap *handles[HANDLES_MAX];
    char name[BLKREPL_BITMAP_NAME_MAX + 1];
    struct bitmap_state now;
    struct bitmap_state was; /* before the call                               */
};

/* One thing done to a bitmap. */
struct deed {
    enum call call;
    struct bitmap *bitmap;
    struct bitmap *sources[3];
    uint32_t source_count;
    bool malformed; /* an action that is none                                 */
    uint64_t offset;
    uint64_t bytes;
    uint64_t data_bytes; /* LOAD                                              */
    const uint8_t *data;
    struct disk *disk;              /* ADD: of whose image; else NULL                      */
    blkrepl_bitmap_options options; /* CREATE, ADD                            */
};

/* What a deed may be refused for. */
enum {
    REFUSE_BUSY = 1,
    REFUSE_STATE = 2,
    REFUSE_INVAL = 4,
    REFUSE_EXIST = 8
};

/* Jobs that start together. */
struct group {
    blkrepl_group *group; /* NULL: freed, or no group                           */
    uint32_t flags;
    uint32_t members; /* that were added                                        */
    uint64_t ids[MEMBERS_MAX];
    struct backup *list[MEMBERS_MAX];
    bool started;
    bool cancel_asked;
    bool calling;
    bool unsure; /* calls inside calls about it                                 */
    bool checked;
};

/* An image of the point in time of a job. */
struct snapshot {
    struct backup *of;
    bool used;
    bool calling;
    bool released;
    bool alloc_failed;
    struct disk disk; /* that nobody has: image, size                           */
};

/* A throttle; the host gives its handle up before its users may. */
struct throttle {
    blkrepl_throttle *throttle; /* NULL: freed                                  */
    blkrepl_throttle_options limits;
    bool used;
    bool changed; /* what was seen is of other limits                           */
    uint64_t window_ns;
    uint64_t window_bytes;
    uint64_t window_ops;
    uint64_t credit_bytes; /* the most that may have passed since               */
    blkrepl_throttle_info told;
    bool forced; /* jobs let things through that are not delayed                */
};

struct sim_options {
    uint32_t jobs_percent; /* of the steps; 0: nothing beyond plain backups     */
    uint32_t jobs_inside_percent;
    uint32_t sync_percent; /* of the backups                                    */
    uint32_t policy_percent;
    uint32_t finale_percent;
    uint32_t compress_percent;
    uint32_t spill_percent;
    uint32_t burst_percent;
    uint32_t none_percent;
    uint32_t verify_percent;
    uint32_t group_percent;
    uint32_t throttle_percent;
    uint32_t more_backups;
    bool any_bitmaps;
    uint32_t bitmaps_percent; /* of the steps; 0: no bitmaps                  */
    uint32_t bitmaps_inside_percent;
    uint32_t bitmaps_misuse_percent;
    uint32_t bitmaps_watch_percent; /* looking turns an image to the slow way  */
    uint32_t steps;
    uint32_t sources;
    uint32_t disks;
    uint32_t backups;
    uint32_t beside_percent;
    uint32_t target_percent; /* of the guest's requests                      */
    uint32_t reenter_percent;
    uint32_t misuse_percent;
    uint32_t contract_percent;
    uint32_t cuts;
    bool last_cut_real;
    uint32_t close_percent;
    uint32_t alloc_fail_percent;
    uint32_t long_writes_percent;
    bool early_shutdown;
    bool guest_first;
    bool clock_jumps;
    bool sleepy; /* the host of the last phases                              */
    blkrepl_context_options context;
};

struct counts {
    uint64_t seeds;
    uint64_t events;
    uint64_t errors;
    uint64_t torn;
    uint64_t hung;
    uint64_t inline_completions;
    uint64_t cancelled_io;
    uint64_t copies; /* COPY_FROM                                           */
    uint64_t alloc_failures;
    uint64_t stretches;
    uint64_t misuses;
    uint64_t reentries;
    uint64_t requests;
    uint64_t refused;
    uint64_t brackets;
    uint64_t backups_done;
    uint64_t backups_failed;
    uint64_t backups_cancelled;
    uint64_t backups_dropped;
    uint64_t cuts;
    uint64_t survivors; /* guarantees that were looked at after a cut          */
    uint64_t reboots;
    uint64_t breaches;
    uint64_t ghosts;
    uint64_t busy;     /* guest writes that a job's target has refused             */
    uint64_t lanes;    /* runs with more than one                                */
    uint64_t unpolled; /* runs in which one of them is not polled             */
    uint64_t hastened; /* writes that went out with lane 0                    */
    uint64_t sleeps;   /* polls that were not made                              */
    uint64_t bitmaps;
    uint64_t marks; /* completions whose mark was looked for                   */
    uint64_t freezes;
    uint64_t merges;
    uint64_t transacts;
    uint64_t bitmaps_refused;
    uint64_t loads;
    uint64_t syncs[4]; /* jobs done: FULL with a bitmap, BITMAP, INCREMENTAL, NONE */
    uint64_t links;    /* of chains, that were compared                         */
    uint64_t settled;  /* bitmaps that a job has given back                     */
    uint64_t always;   /* of these, by ALWAYS after a failure                   */
    uint64_t stops;    /* error pauses seen                                     */
    uint64_t ignored;  /* jobs that failed with bytes given up                  */
    uint64_t finalized;
    uint64_t dismissed;
    uint64_t found;
    uint64_t compressed; /* writes                                               */
    uint64_t spills;     /* writes to a spill image                              */
    uint64_t groups;     /* started                                              */
    uint64_t groups_done;
    uint64_t groups_failed;
    uint64_t snapshots;
    uint64_t snapshot_reads; /* with data                                        */
    uint64_t snapshot_discards;
    uint64_t through; /* jobs done with a snapshot as source                     */
    uint64_t verifies;
    uint64_t differences;
    uint64_t throttles;
    uint64_t delayed;
    uint64_t verbs[VERB_COUNT][BLKREPL_JOB_CONCLUDED + 1];
    uint64_t matrix[INSIDE_COUNT][CALL_COUNT];
};

/* Something that can be done at random. */
struct actor {
    uint32_t weight;
    bool outside; /* not from inside a callback                              */
    void (*act)(void);
};

/* A part of the world; what it has not got is NULL. */
struct part {
    void (*draw)(void);              /* its options and actors               */
    void (*open)(void);              /* before the first step                */
    void (*watch)(void);             /* what must hold after every step      */
    void (*resume)(void);            /* no host holds anything up any more   */
    bool (*move)(void);              /* without faults: go on by one thing   */
    bool (*unfinished)(void);        /* something is left that has to end    */
    void (*close)(uint32_t percent); /* drop that many handles               */
    void (*end)(void);               /* what must hold when all is freed     */
    void (*list)(void);              /* print what was drawn                 */
};

extern const struct part disk_part;
extern const struct part guest_part;
extern const struct part backup_part;
extern const struct part host_part;
extern const struct part lanes_part;
extern const struct part power_part;
extern const struct part contract_part;
extern const struct part misuse_part;
extern const struct part bitmap_part;
extern const struct part jobs_part;
extern const struct part snapshot_part;
extern const struct part throttle_part;

struct event_record {
    const char *format;
    unsigned long long args[5];
};

struct sim {
    struct sim_plan plan;
    const uint8_t *bytes;
    size_t bytes_left;
    uint64_t rng;
    uint64_t rng_aside;
    uint64_t rng_bitmaps;
    uint64_t rng_jobs;
    bool chance_is_aside;
    uint64_t seq;
    uint64_t hash;
    struct event_record ring[RING];
    bool trace;
    bool story; /* leaves out what tells nothing                              */
    blkrepl_context *ctx;
    bool gone;     /* context_free() has returned 0                          */
    bool shutdown; /* context_free() was called                              */
    bool quiet;    /* no new work of any kind                                */
    bool dead;     /* the power is off: nothing reaches a medium             */
    bool may_allocate;
    bool alloc_failed;
    bool room_expected[LANES_KNOWN];
    bool misusing; /* inside a wrong call                                      */
    uint32_t callback_depth;
    uint32_t depth; /* calls of the library we are inside of                 */
    uint32_t reenter_depth;
    uint32_t backend_depth; /* of them, those of a backend                   */
    enum inside inside;
    uint32_t callbacks;
    uint32_t pending;                   /* requests and brackets that have not ended           */
    uint32_t lane_pending[LANES_KNOWN]; /* of them, those of a lane            */
    uint32_t ghosts_pending[LANES_MAX];
    struct being entry; /* the innermost                                     */
    uint32_t polled;    /* the lane in whose poll we are                     */
    uint32_t unpolled;  /* the lane that nobody polls                        */
    bool freeing;       /* inside context_free()                             */
    bool sleepy;
    bool asleep[LANES_MAX];
    uint64_t sleeps_until[LANES_MAX];
    uint64_t now_ns;
    uint64_t last_now_ns;
    uint64_t heard_ns; /* from the context                                   */
    int64_t live_blocks;
    uint32_t sink_releases;
    uint32_t cuts_left;
    uint32_t actor_count;
    struct actor actors[ACTORS_MAX];
    bool stretched;             /* the library is held back somewhere        */
    uint8_t stretch[SITES_MAX]; /* percent, by site                          */
    uint32_t instant;           /* counts what is done to bitmaps                       */
    uint32_t ending_count;
    const struct request *ending[ENDING_MAX]; /* brackets inside their end     */
    uint32_t bitmap_count;                    /* slots that were ever used     */
    struct sim_options options;
    struct disk disks[DISKS_MAX];
    uint32_t request_count;
    uint32_t active_count;
    int active[REQUESTS_MAX]; /* not over, in order of acceptance            */
    struct request requests[REQUESTS_MAX];
    uint32_t backup_count;
    struct backup backups[BACKUPS_MAX];
    uint32_t group_count;
    struct group groups[GROUPS_MAX];
    struct snapshot snapshots[SNAPSHOTS_MAX];
    struct throttle throttles[THROTTLES_MAX];
    struct throttle *image_throttles[DISKS_MAX];
    struct bitmap bitmaps[BITMAPS_MAX];
    uint8_t *arena;
    size_t arena_used;
    struct counts counts;
};

extern struct sim sim;

/* chance.c */
void chance_stream(uint64_t number);
uint64_t rng_next(void);
uint64_t rng_below(uint64_t limit);
uint64_t rng_between(uint64_t low, uint64_t high);
bool rng_chance(uint32_t percent);
uint64_t rng_aside(uint64_t limit);
/* What is drawn about bitmaps is no part of the other streams either: from begin
 * to end all chance is theirs.  End takes what begin returned. */
struct chance_outer {
    uint64_t rng;
    size_t bytes_left;
    bool nested;
};
void chance_bitmaps_stream(uint64_t number);
struct chance_outer chance_bitmaps_begin(void);
void chance_bitmaps_end(struct chance_outer outer);
/* The same for what jobs do beyond plain backups. */
void chance_jobs_stream(uint64_t number);
struct chance_outer chance_jobs_begin(void);
void chance_jobs_end(struct chance_outer outer);
void pattern_init(void);
uint8_t pattern_byte(uint32_t tag, uint64_t position);
void pattern_fill(uint8_t *out, uint32_t tag, uint64_t position, uint64_t bytes);

/* event.c */
void event_add(uint64_t where, const char *format, const unsigned long long args[5]);
_Noreturn void sim_fail(const char *format, ...);
/* Called when a promise is broken, after it was printed; then comes abort(). */
extern void (*sim_on_failure)(const char *format);

/* A code as events show it. */
#define NEGATED(code) ((unsigned long long)-(long long)(code))
#define EVENT(format, ...) event_add(__LINE__, format, (unsigned long long[5]){__VA_ARGS__})
#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            sim_fail(__VA_ARGS__);                                                                 \
        }                                                                                          \
    } while (0)

/* world.c: one run. */
void sim_setup(void);
void sim_run(const struct sim_plan *plan, bool trace);
/* The fuzzer's: chance comes from the bytes, then from a generator. */
void sim_run_bytes(const uint8_t *bytes, size_t count);
void sim_list_options(void);
bool sim_without(enum fault fault);
void sim_actor(uint32_t weight, bool outside, void (*act)(void));
/* One random act; inside: of those that may be done there. */
void world_act(bool inside);
/* End the context, and see that nothing is left; begin with a new one. */
void world_shut_down(void);
void world_open(void);

/* shrink.c: a failing run made small. */
extern const char *const fault_names[FAULT_COUNT];
void shrink(const struct sim_plan *plan);

/* lanes.c: who polls which lane, and what belongs to one. */
struct being lanes_enter(enum doing kind, uint32_t lane);
bool lanes_in_poll(uint32_t lane);
void lanes_close(void);
void lanes_submit(struct disk *disk, uint32_t lane, blkrepl_io *const *ios, uint32_t count);
void lanes_submitted(struct disk *disk, uint32_t lane);
void lanes_job_submit(uint32_t lane);
void lanes_owner(const struct request *request, uint32_t lane);
uint32_t lanes_draw(void);
uint32_t lanes_draw_polled(void);
int lanes_poll(uint32_t lane);
int lanes_poll_all(void);
uint64_t lanes_deadline(void);
void lanes_sleep(bool sleepy);
uint32_t lanes_must_end(bool sources);

/* disk_draw.c: what the disks of a run are like. */
void disk_draw(void);
void disk_list(void);

/* disk.c: the backends. */
bool disk_progress(struct disk *disk);
void disk_close_handle(struct disk *disk);
void disk_call(enum call call);
void disk_heal(struct disk *disk);
void disk_host_writes(struct disk *disk, const struct request *from, uint64_t skip, uint64_t bytes);
void disk_payload(const struct disk *disk, const struct disk_request *request, uint8_t *out);
uint8_t disk_discard_byte(const struct disk *disk, uint64_t position);
bool disk_has_answered(const struct disk *disk, int code);
bool disk_is_source(const struct disk *disk);
void disk_note_failure(struct disk *disk, const struct disk_request *request, int result);
bool disk_refuses_zeroes(const struct disk *disk);

/* power.c: caches, and what survives. */
void power_open(const struct disk *disk);
void power_wrote(const struct disk *disk, uint64_t offset, uint64_t bytes, bool fua);
void power_flushed(const struct disk *disk, uint64_t submit_seq);
void power_flush_failed(const struct disk *disk);
/* A write, or a backup, is guaranteed: compare it with all that may survive. */
void power_check_request(const struct request *request);
void power_check_backup(const struct backup *backup);

/* contract.c: backends that break the contract. */
int contract_code(int code);
uint32_t contract_code_number(int code);
void contract_completed(uint64_t id);
bool contract_status(struct disk *disk, const struct disk_request *request);
void contract_flags(blkrepl_extent *extents, uint32_t count);
void contract_inside(void);

/* misuse.c: a host that calls wrongly. */
void wrong_call_begin(void);
void wrong_call(const char *what, int code, int answer);

/* inside.c: calls from inside what the library calls. */
void inside(enum inside where);
void sim_reenter(void); /* from inside an event */
void inside_calls(enum call call);
void inside_print(void);
const char *inside_name(unsigned long long number);
const char *call_name(unsigned long long number);

/* guest.c: requests and brackets. */
void guest_call(enum call call);
void guest_snapshot(struct snapshot *snapshot, uint32_t op);
bool guest_bracket_finish(void);
/* Has a write of the guest to this disk not ended? */
enum hold guest_hold(const struct disk *disk);
bool request_covers(const struct request *request, const struct disk *disk, uint64_t position);
uint8_t request_byte(const struct request *request, uint64_t position);
void request_fill(const struct request *request, uint8_t *out);
bool is_write(uint32_t op);
bool overlaps(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes);

/* backup.c: backups. */
void backup_call(enum call call);
struct backup *backup_new(struct disk *source, struct disk *target);
void backup_made(struct backup *backup);
void job_release(void *user);
/* Has another job this name? */
enum hold job_name_hold(const struct backup *but, const char *name);
blkrepl_job_info backup_query(struct backup *backup);
/* Does a job write to this disk? */
enum hold backup_hold(const struct disk *target);
/* The same, and: does one read it? */
enum hold backup_use(const struct disk *target);
uint64_t draw_speed(void);
static inline bool job_is_verify(const struct backup *b)
{
    return b->kind == BLKREPL_KIND_VERIFY;
}
/* Is it told of writes of the guest to its source? */
static inline bool job_taps(const struct backup *b)
{
    return !job_is_verify(b) && b->through == NULL;
}
static inline bool job_writes_to(const struct backup *b, const struct disk *disk)
{
    return !job_is_verify(b) && (b->target == disk || b->spill == disk);
}
static inline uint32_t job_sync(const struct backup *b)
{
    return b->options.sync == 0 ? BLKREPL_SYNC_FULL : b->options.sync;
}

/* verb.c: the verbs of jobs. */
void verb_do(struct backup *backup, enum verb verb);
void verb_act(void);
void job_drop(struct backup *backup);
void job_call(enum call call);
struct backup *job_pick(void);
/* What the host holds up goes on; true: it did something. */
bool job_drive(void);
void job_resume_all(void);
/* Is there nothing left to wait for? */
bool job_over(const struct backup *backup);
/* Nobody else is busy with its bitmaps. */
bool job_may_start(const struct backup *backup);
/* The bitmap of a job that is about to start. */
void job_freeze(struct backup *backup);
void job_frozen(struct backup *backup, bool started, bool sure);

/* jobs.c: what jobs do beyond plain backups. */
void jobs_step(void);
bool jobs_want_inside(uint32_t factor);
void jobs_inside(void);
void jobs_draw_backup(struct backup *backup);
/* May the create of this backup be refused with this? */
bool jobs_refusal(const struct backup *backup, int answer);

/* group.c */
void group_act(void);
void group_call(enum call call);
void group_left(struct backup *backup);
void group_drop_all(uint32_t percent);

/* snapshot.c */
void snapshot_act(void);
void snapshot_call(enum call call);
struct snapshot *snapshot_pick(void);

/* verify.c */
void verify_do(bool start);
void oracle_verify_start(struct backup *backup);
void oracle_verify_reset(void);
void oracle_verify_done(struct backup *backup, const blkrepl_job_info *info);
void oracle_verify_bitmap(const struct backup *backup, const struct bitmap *bitmap, bool errors);
/* Something was written to a medium. */
void oracle_verify_wrote(const struct disk *disk, uint64_t offset, uint64_t bytes);

/* throttle.c */
void throttle_act(void);
void throttle_call(enum call call);
struct throttle *throttle_pick(void);
bool throttle_raise(void);

/* oracle_throttle.c */
void oracle_throttle_look(struct throttle *throttle);

/* oracle_group.c: all or none, at one instant. */
void oracle_group_watch(void);
void oracle_group_finalized(const struct backup *backup);

/* oracle_snapshot.c */
void oracle_snapshot_asked(struct request *request);
void oracle_snapshot_done(struct request *request);

/* oracle_sync.c: which clusters a job is to copy, and what becomes of its bitmap. */
void oracle_sync_start(struct backup *backup);
void oracle_sync_started(struct backup *backup);
bool oracle_sync_wanted(const struct backup *backup, uint64_t at);
void oracle_sync_settled(struct bitmap *bitmap);
void oracle_sync_concluded(struct backup *backup);
void oracle_sync_deed(const struct deed *deed);
uint64_t oracle_sync_bytes(const struct backup *backup);
uint64_t job_cluster(const struct backup *backup);

/* oracle_spill.c */
void oracle_spill_submit(const struct disk *disk, const struct disk_request *io,
                         const uint8_t *payload);
void oracle_spill_done(struct disk *disk, const struct disk_request *request);
void oracle_spill_failed(struct disk *disk, const struct disk_request *request);
bool oracle_spill_may_hold(const struct backup *backup, uint64_t position, uint8_t value);
/* Has it room for everything, and has it never failed? */
bool oracle_spill_has_room(const struct backup *backup);
void oracle_spill_start(struct backup *backup);
struct backup *oracle_user_of(const struct disk *disk);
/* May the byte of the point in time of the job be this? */
bool oracle_backup_may_be(const struct backup *backup, uint64_t at, uint8_t value);
/* May a guest write have to wait for the clock; for a target, for ever? */
void backup_guest_needs(bool *clock, bool *target);
void backup_check_cancelled(void);

/* oracle_backend.c: what a backend may rely on. */
void oracle_backend_submit(const struct disk *disk, const blkrepl_io *io);

/* bitmap.c: what the host does with bitmaps. */
void bitmap_step(void);
bool bitmap_wants_inside(uint32_t factor);
void bitmap_inside(void);
/* bitmap_more.c: what takes more than one bitmap, or one call. */
void bitmap_transact(void);
void bitmap_wire(enum call call);
void bitmap_misuse(void);
/* For both.  What slot and pick return, those who are called inside leave alone
 * until the act is over. */
struct bitmap *bitmap_slot(void);
struct bitmap *bitmap_pick(void);
bool bitmap_has_handle(struct bitmap *bitmap);
blkrepl_bitmap *bitmap_handle(const struct bitmap *bitmap);
void bitmap_draw_options(struct deed *deed);
void bitmap_made(struct bitmap *bitmap, blkrepl_bitmap *handle);
/* One for jobs: of a disk, or free-standing. */
void bitmap_for_jobs(struct disk *disk, uint64_t bytes);
bool bitmap_is_right(const struct deed *deed, int answer, uint32_t refusals);
void bitmap_try(struct deed *deed);

/* oracle_bitmap.c: what is recorded. */
uint64_t granules_of(uint64_t bytes, uint64_t granularity);
bool bitmap_is_recording(const struct bitmap *bitmap);
uint64_t bitmap_granule_end(const struct bitmap *bitmap, uint64_t granule);
void bitmap_mark(const struct bitmap *bitmap, uint8_t *bits, uint64_t offset, uint64_t bytes,
                 uint8_t what);
/* What may be recorded at any moment; what must be when it stops to record. */
void bitmap_mark_going_on(const struct bitmap *bitmap, uint8_t *bits);
void bitmap_mark_in_flight(const struct bitmap *bitmap, uint8_t *bits, uint32_t since);
void oracle_bitmap_instant(void);
void oracle_bitmap_request_over(const struct request *request);
void oracle_bitmap_bracket_ends(const struct request *request);
void oracle_bitmap_bracket_ended(const struct request *request);
void oracle_bitmap_given(const struct disk *disk, const struct disk_request *io);
void oracle_bitmap_job_write(struct disk *disk, struct disk_request *io);
void oracle_bitmap_disk_done(struct disk *disk, const struct disk_request *io, int result);
void oracle_bitmap_job_over(const struct backup *backup);

/* oracle_bitmap_look.c: what it tells of itself. */
void oracle_bitmap_check(struct bitmap *bitmap);
/* A call comes that is about it; it has answered. */
void oracle_bitmap_begin(struct bitmap *bitmap);
void oracle_bitmap_refused(struct bitmap *bitmap);
void oracle_bitmap_settle(struct bitmap *bitmap, bool sure);

/* oracle_bitmap_deed.c: what is done to it, each deed as the earlier ones have left
 * things. */
void oracle_bitmap_init(const struct deed *deed);
uint32_t oracle_bitmap_refusals(const struct deed *deed);
void oracle_bitmap_apply(const struct deed *deed);

/* oracle_job.c: what a job tells of itself. */
void oracle_job_watch(void);
void backup_event(const blkrepl_event *event);

/* oracle_guest.c: what a guest may rely on. */
void oracle_submit(struct disk *disk, struct disk_request *request);
void oracle_go(struct request *request);
void oracle_guest_done(struct request *request);
void oracle_read_done(const struct request *request, const uint8_t *before);
void oracle_flush_done(const struct request *request);
/* May a write that came later have put this there? */
bool oracle_written_later(const struct request *request, uint64_t position, uint8_t value);

/* oracle_backup.c: what a backup promises. */
void oracle_backup_start(struct backup *backup);
void oracle_backup_started(struct backup *backup, uint32_t requests_before, bool idle_before);
void oracle_backup_done(struct backup *backup);
void oracle_backup_given(const struct disk *disk, const struct disk_request *io,
                         const uint8_t *payload);
void oracle_backup_target(const struct disk *disk, const struct disk_request *io,
                          const uint8_t *payload);
/* A COPY_FROM has put these bytes on a target. */
void oracle_backup_copied(const struct disk *disk, const struct disk_request *request,
                          uint64_t offset, uint64_t bytes);
void oracle_backup_disk_done(struct disk *disk, const struct disk_request *request,
                             const blkrepl_extent *extents, uint32_t extent_count);
/* May a write of the guest have ended with this code, by a job's policy? */
bool oracle_backup_policy(const struct disk *disk, int code);
/* A guest is about to write to a source. */
void oracle_backup_touch(const struct request *request);
/* May a backup that started after `since` have written this to its target? */
bool oracle_backup_wrote(const struct disk *target, uint64_t position, uint8_t value,
                         uint64_t since);
/* The target goes to others: a set of backups that this ends, to undo it. */
uint32_t oracle_backup_overwrite(const struct disk *target);
void oracle_backup_overwrite_not(uint32_t backups);
/* Is it done, and has nobody else written to its target? */
bool oracle_backup_is_kept(const struct backup *backup);
/* These data may be what is on the target: do they keep the promise? */
void oracle_backup_kept(const struct backup *backup, const uint8_t *data, uint64_t offset,
                        uint64_t bytes, const char *where);

#endif
