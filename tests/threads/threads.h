/* SPDX-License-Identifier: MIT */
/* threads.h - what the files of blkrepl-threads share.
 *
 * A run draws a plan from its seed, makes a context, lets guests, a control
 * thread and threads that complete requests loose on it, and frees it.  Then,
 * with all threads joined, check.c looks at every byte, and replay.c makes the
 * same calls in the recorded order in the simulator's world.
 *
 * Every word of a disk says which write it is of and where it belongs, so
 * that the checks need no copy of a disk: see word_of().  Stamps come from one
 * counter, one before each call and one after each answer.  All atomics of the
 * test that threads share while they run are relaxed where that will do: what the
 * test orders, ThreadSanitizer cannot see the library forget. */
#ifndef BLKREPL_THREADS_H
#define BLKREPL_THREADS_H

#include <libblkrepl/libblkrepl.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The limits of the simulator (sim.h), in which a run is to be replayed. */
#define OPS_MAX 480
#define VDISKS_MAX 5
#define MARKS_MAX 5
#define JOBS_MAX 6
#define GUESTS_MAX 16
#define COMPLETERS 2
#define VDISK_BYTES_MAX (256u * 1024)
#define VDISK_WORDS_MAX (VDISK_BYTES_MAX / 8)
#define OP_BYTES_MAX 24576u
#define PENDING_MAX 256
#define ENTRIES_MAX 40000

/* What a disk is like; drawn. */
struct vdisk_plan {
    blkrepl_backend_info info;
    uint32_t inline_percent;
    uint32_t error_permille;
    uint32_t cancel_percent; /* of cancelled requests that end at once      */
    bool discard_zeroes;
    bool has_cancel;
};

/* A run, before it begins; a function of the seed and of the command line. */
struct plan {
    uint64_t seed;
    uint32_t guests;
    uint32_t lanes;   /* for guests; lane 0 comes on top                      */
    uint32_t sources; /* the first disks; the others are targets              */
    uint32_t disks;
    uint32_t jobs;
    uint32_t ops; /* of a guest                                               */
    uint32_t beside_percent;
    uint32_t stretch_percent; /* the library is held back                     */
    uint32_t inside_percent;  /* calls from inside what the library calls     */
    bool one_thread;
    bool host_clock;           /* a clock of the host: polls do not sleep               */
    uint32_t blocking_percent; /* of the guests                               */
    bool shut_early;           /* the context is freed in the middle                    */
    bool quick;                /* guests ask only for what can go the quick way         */
    uint32_t again_percent;    /* images go back to it early                  */
    uint32_t marks;            /* bitmaps                                    */
    bool marks_late;           /* they come when guests are at work            */
    uint32_t marks_disk[MARKS_MAX];
    blkrepl_context_options context;
    struct vdisk_plan disk[VDISKS_MAX];
};

void plan_draw(struct plan *plan, uint64_t seed, bool one_thread, uint32_t guests, uint32_t lanes);

/* Chance: splitmix64. */
uint64_t dice(uint64_t *state);
uint64_t dice_below(uint64_t *state, uint64_t limit);
bool dice_chance(uint64_t *state, uint32_t percent);

/* What a disk does with a request depends on the request alone, so that the
 * replay's disks do the same. */
struct vdisk_fate {
    bool at_once;   /* completed inside submit                                */
    bool cancelled; /* ends at once when it is cancelled                      */
    int result;
};
struct vdisk_fate vdisk_fate(const struct plan *plan, uint32_t disk, const blkrepl_io *io);

enum op_state {
    OP_NONE,
    OP_CALLED, /* in its call, or accepted                                    */
    OP_GO,     /* a bracket that may write                                    */
    OP_OVER
};

/* Who has a bracket that waited. */
enum op_keep {
    KEEP_NONE,
    KEEP_WRITE,
    KEEP_CANCEL
};

/* A guest request or bracket.  Its guest makes it; the thread that polls its lane
 * sets result and end, and then state. */
struct op {
    uint32_t opcode;
    uint32_t disk;
    uint32_t lane;
    uint32_t flags;
    uint64_t offset;
    uint64_t bytes;
    bool bracket;
    bool blocking; /* the call returns when it is over, or has its GO         */
    uint32_t iov_count;
    blkrepl_iovec iov[3];
    blkrepl_extent extents[4];
    uint64_t *buffer;
    uint64_t token;
    uint64_t begin;
    int answer;
    int cancel_answer; /* NOT_CANCELLED                                       */
    /* By whom the state says. */
    uint64_t end;
    int result;
    atomic_uint state;
    atomic_uint keep;
    atomic_uint callbacks;
    atomic_uint releases;
};

enum act {
    ACT_START,
    ACT_PAUSE,
    ACT_RESUME,
    ACT_SPEED,
    ACT_CANCEL,
    ACT_QUERY,
    ACT_DROP
};

/* A backup; changed under world.verbs, or as the comments say. */
struct backup_run {
    uint32_t source;
    uint32_t target;
    blkrepl_backup_options options;
    blkrepl_job *job;
    bool made;
    bool started;
    bool paused;
    bool cancelled;
    bool dropped;
    uint64_t begin; /* stamps around the start                            */
    uint64_t begun;
    uint64_t *content; /* of the target, when it was done: by lane 0's poll  */
    int result;        /* likewise                                           */
    atomic_bool done;
    atomic_uint releases;
};

struct vdisk {
    uint32_t index;
    struct vdisk_plan plan;
    blkrepl_image *image;
    _Atomic uint64_t *words;
    _Atomic uint8_t *claims; /* by word: a write is in flight                 */
    atomic_uint in_flight;
    atomic_uint closed;
    atomic_uint released;
    atomic_bool failed; /* it has answered an error                           */
};

/* ---- The log ---------------------------------------------------------------- */

/* What is recorded: calls, completions, and what the host was told. */
enum entry_kind {
    ENTRY_REQUEST, /* object: op                                              */
    ENTRY_END,     /* of a bracket; a: its result                             */
    ENTRY_WRITE_CANCEL,
    ENTRY_POLL,     /* of `lane`                                              */
    ENTRY_WOKEN,    /* a poll that has slept goes on                          */
    ENTRY_WAKE,     /* poll_wake                                              */
    ENTRY_COMPLETE, /* object: disk; a: opcode, b: offset, c: bytes; lane: how
                     * many such requests came before it                      */
    ENTRY_BACKUP,   /* object: backup; a: 1: started at once                  */
    ENTRY_VERB,     /* object: backup; a: verb, b: speed                      */
    ENTRY_CLOSE,    /* object: disk                                           */
    ENTRY_FREE,     /* of the context                                         */
    ENTRY_CALLBACK, /* object: op; answer: its result                         */
    ENTRY_EVENT,    /* object: backup; a: type, b: count; answer: its error   */
    ENTRY_MARKS,    /* object: of the bitmap; a: verb, b and c: its arguments */
    ENTRY_KINDS
};

struct entry {
    uint64_t ticket; /* its place in the order of entries                     */
    uint64_t now_ns;
    uint64_t a;
    uint64_t b;
    uint64_t c;
    uint32_t kind;
    uint32_t thread;
    uint32_t lane;
    uint32_t object;
    int answer;
};

/* What one thread has recorded. */
struct recorder {
    uint32_t index;
    uint32_t polls_lane; /* UINT32_MAX: it is in no poll                      */
    uint64_t rng;
    uint64_t entered; /* by the hook                                          */
    struct entry *open;
    uint32_t count;
    bool full;
    struct entry *entries;
};

extern _Thread_local struct recorder *me;

void record_begin(struct plan *plan);
struct recorder *record_actor(uint32_t index);
/* Does the library tell when a call enters it? */
bool record_has_hook(void);
struct entry *record_call(enum entry_kind kind, uint32_t lane, uint32_t object, uint64_t a,
                          uint64_t b, uint64_t c);
/* The call has answered; returns the answer. */
int record_answer(struct entry *entry, int answer);
void record_note(enum entry_kind kind, uint32_t lane, uint32_t object, uint64_t a, uint64_t b,
                 int answer);
/* Everything in the order of entries; false: there was no room for all of it. */
bool record_merge(struct entry **entries, uint32_t *count);
void record_save(const char *path, const struct plan *plan, const struct entry *entries,
                 uint32_t count);
struct entry *record_load(const char *path, struct plan *plan, uint32_t *count);

/* ---- The world -------------------------------------------------------------- */

struct tally {
    uint64_t runs;
    uint64_t calls;
    uint64_t requests;
    uint64_t waits;
    uint64_t blocking;
    uint64_t entries;
    uint64_t locks; /* taken by threads inside the library                    */
    uint64_t done;
    uint64_t failed;
    uint64_t cancelled;
    uint64_t looks; /* into bitmaps                                          */
    uint64_t turns; /* and how often one began anew                          */
    uint64_t replays;
    uint64_t exact;
    uint64_t replayed_done;
    uint64_t compared;
    uint64_t early;  /* completions that came before their request           */
    uint64_t differ; /* answers that depend on more than the order of entries  */
};

struct world {
    struct plan plan;
    blkrepl_context *ctx;
    atomic_uint_fast64_t stamps;
    atomic_uint_fast64_t locks;
    atomic_uint_fast64_t now_ns;
    atomic_uint guests_left;
    atomic_bool shut;
    atomic_bool policy; /* a backup makes guest writes fail                   */
    atomic_uint sink_releases;
    pthread_mutex_t verbs;
    uint32_t job_count;
    struct backup_run jobs[JOBS_MAX];
    struct vdisk disks[VDISKS_MAX];
    uint32_t op_count; /* of all guests: op i of guest g is ops[g * plan.ops + i] */
    struct op ops[OPS_MAX];
    struct tally counts;
};

extern struct world world;

uint64_t stamp(void);
void live_run(void);
_Noreturn void fail(const char *format, ...);
extern void (*on_failure)(void);

#define MUST(condition, ...)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fail(__VA_ARGS__);                                                                     \
        }                                                                                          \
    } while (0)

bool op_writes(const struct op *op);
/* What write number `op` puts there; never 0. */
uint64_t word_of(uint32_t op, uint64_t word);

/* op.c */
#define NOT_CANCELLED 1000
enum op_state op_state_of(struct op *op);
void op_make(struct op *op);
/* It has got its GO: write, or give it up. */
void bracket_finish(struct op *op, uint64_t *rng);
/* It waits. */
void bracket_cancel(struct op *op);

/* guest.c */
int live_poll(uint32_t lane, uint64_t timeout_ns);
void live_wake(uint32_t lane);
/* Arm, and sleep on the lane's descriptor. */
void live_sleep(uint32_t lane, int timeout_ms);
/* From inside a callback or a submit: what needs no handle. */
void live_inside(void);
void guest_reset(void);
/* One step; wait: it may sleep.  False: it is over. */
bool guest_step(uint32_t number, bool wait);
void *guest_thread(void *number);

/* disk.c */
int vdisk_open(struct vdisk *disk);
void vdisk_reset(struct vdisk *disk, uint32_t index, const struct vdisk_plan *plan);
void vdisk_claim(struct vdisk *disk, uint64_t offset, uint64_t bytes, bool take);
void vdisk_host_writes(struct vdisk *disk, uint32_t op);
bool vdisk_complete_one(uint64_t *rng);
void vdisk_completer_stop(void);
void *vdisk_completer(void *actor);
uint32_t vdisk_pending(void);

/* jobs.c: the control thread's part. */
void job_event(void *user, const blkrepl_event *event);
bool job_create(uint64_t *rng);
void job_verb(uint64_t *rng);
/* Let everything end; true: it has. */
bool job_wind_up(void);

/* check.c: with all threads joined. */
void check_run(void);

/* replay.c */
void replay_run(const struct plan *plan, const struct entry *entries, uint32_t count,
                struct tally *counts);

#endif
