/* SPDX-License-Identifier: MIT */
/* check.c - what must hold after a run, however its threads were interleaved.
 *
 * Each write has an interval, from before its call to after its answer.  What was
 * seen (by a read, by a backup, in the end) must be explained by one instant:
 *
 *   - nothing is seen of a write that began after the instant, and a word tells
 *     of no write that was never accepted, nor of a place where it does not belong;
 *   - nothing is missing: a word is older than no write that ended before the
 *     instant, unless another one may have come after that.
 *
 * The instant of a backup lies inside its start, and after the begin of everything
 * that it holds: so what it holds of one write obliges it to hold all that was
 * acknowledged before that write began, on the whole disk. */
#include "shared.h"
#include "threads.h"

#include <errno.h>
#include <stdlib.h>

#define BLOCK_WORDS 64
#define BLOCKS (VDISK_WORDS_MAX / BLOCK_WORDS)

typedef unsigned long long ull;

/* The writes of each block of each disk. */
static uint32_t near_count[VDISKS_MAX][BLOCKS];
static uint16_t near[VDISKS_MAX][BLOCKS][OPS_MAX];

/* The answer of a blocking call is its result. */
static bool was_refused(const struct op *op)
{
    return op->answer == -ESHUTDOWN || (op->answer < 0 && !op->blocking);
}

static void find_near(void)
{
    for (uint32_t disk = 0; disk < VDISKS_MAX; disk++) {
        for (uint32_t block = 0; block < BLOCKS; block++) {
            near_count[disk][block] = 0;
        }
    }
    for (uint32_t i = 0; i < world.op_count; i++) {
        const struct op *op = &world.ops[i];

        if (!op_writes(op) || was_refused(op) || op->bytes == 0) {
            continue;
        }
        for (uint64_t block = op->offset / 512; block <= (op->offset + op->bytes - 1) / 512;
             block++) {
            near[op->disk][block][near_count[op->disk][block]++] = (uint16_t)i;
        }
    }
}

static bool covers(const struct op *op, uint64_t word)
{
    return word >= op->offset / 8 && word < (op->offset + op->bytes) / 8;
}

/* What is seen of a disk, and when. */
struct view {
    const char *what;
    uint32_t number;
    uint32_t disk;
    uint64_t low;  /* what ended before is seen                              */
    uint64_t high; /* what began after is not                                */
};

/* Whether a write that began after `end` is over, and should be seen. */
static const struct op *newer(const struct view *view, uint64_t word, uint64_t end)
{
    uint64_t block = word / BLOCK_WORDS;

    for (uint32_t i = 0; i < near_count[view->disk][block]; i++) {
        const struct op *op = &world.ops[near[view->disk][block][i]];

        if (op->begin > end && op->end < view->low && op->result == 0 &&
            op->opcode != BLKREPL_OP_DISCARD && covers(op, word)) {
            return op;
        }
    }
    return NULL;
}

static const struct op *writer_of(const struct view *view, uint64_t word, uint64_t value)
{
    uint64_t number = (value >> 32) - 1;
    const struct op *op = &world.ops[number < world.op_count ? number : 0];

    MUST(number < world.op_count && (value & UINT32_MAX) == word && op->disk == view->disk &&
             covers(op, word) && op->opcode == BLKREPL_OP_WRITE,
         "%s %u: word %llu holds %llx, which is not of there", view->what, view->number, (ull)word,
         (ull)value);
    MUST(!was_refused(op) && (op->result != -ECANCELED || !op->bracket),
         "%s %u: word %llu is of op %llu, which was refused or cancelled", view->what, view->number,
         (ull)word, (ull)number);
    MUST(op->begin < view->high, "%s %u: word %llu is of op %llu, which came later", view->what,
         view->number, (ull)word, (ull)number);
    return op;
}

/* A zero: from the beginning, or of a zeroes or a discard. */
static bool zero_is_right(const struct view *view, uint64_t word)
{
    uint64_t block = word / BLOCK_WORDS;
    bool right = newer(view, word, 0) == NULL;

    for (uint32_t i = 0; i < near_count[view->disk][block] && !right; i++) {
        const struct op *op = &world.ops[near[view->disk][block][i]];

        right = op->opcode != BLKREPL_OP_WRITE && covers(op, word) && op->begin < view->high &&
                newer(view, word, op->end) == NULL;
    }
    return right;
}

static void check_word(const struct view *view, uint64_t word, uint64_t value)
{
    const struct op *op;
    const struct op *lost;

    if (value == 0) {
        MUST(zero_is_right(view, word), "%s %u: word %llu is zero and should not be", view->what,
             view->number, (ull)word);
        return;
    }
    op = writer_of(view, word, value);
    lost = newer(view, word, op->end);
    MUST(lost == NULL,
         "%s %u: word %llu is of op %llu (%llu to %llu), not of op %llu (%llu to %llu)", view->what,
         view->number, (ull)word, (ull)(op - world.ops), (ull)op->begin, (ull)op->end,
         (ull)(lost - world.ops), (ull)lost->begin, (ull)lost->end);
}

/* ---- Disks, reads, backups ------------------------------------------------------- */

static void check_disk(uint32_t disk)
{
    struct view view = {
        .what = "disk", .number = disk, .disk = disk, .low = UINT64_MAX, .high = UINT64_MAX};

    for (uint64_t word = 0; word < world.plan.disk[disk].info.bytes / 8; word++) {
        check_word(&view, word, atomic_load(&world.disks[disk].words[word]));
    }
}

static void check_read(uint32_t number)
{
    const struct op *op = &world.ops[number];
    struct view view = {
        .what = "read", .number = number, .disk = op->disk, .low = op->begin, .high = op->end};

    for (uint64_t i = 0; i < op->bytes / 8; i++) {
        check_word(&view, op->offset / 8 + i, op->buffer[i]);
    }
}

static void check_backup(uint32_t number)
{
    const struct backup_run *job = &world.jobs[number];
    uint64_t words = world.plan.disk[job->source].info.bytes / 8;
    struct view view = {.what = "backup",
                        .number = number,
                        .disk = job->source,
                        .low = job->begin,
                        .high = job->begun};

    for (uint64_t word = 0; word < words; word++) {
        if (job->content[word] != 0) {
            const struct op *op = writer_of(&view, word, job->content[word]);

            view.low = op->begin > view.low ? op->begin : view.low;
        }
    }
    for (uint64_t word = 0; word < words; word++) {
        check_word(&view, word, job->content[word]);
    }
}

/* ---- Requests and jobs ----------------------------------------------------------- */

static void check_result(uint32_t number)
{
    const struct op *op = &world.ops[number];
    bool shut = atomic_load(&world.shut) && world.plan.shut_early;
    int result = op->result;

    MUST(result == 0 || (result == -EIO && (op->bracket || world.disks[op->disk].failed)) ||
             ((result == -EREMOTEIO || result == -EIO) && atomic_load(&world.policy)) ||
             (result == -ECANCELED && (op->bracket || shut)),
         "op %u ended with %d", number, result);
    MUST(op->cancel_answer != BLKREPL_WAIT || result == -ECANCELED,
         "op %u was cancelled and ended with %d", number, result);
    MUST(op->cancel_answer != -ENOENT || result < 0,
         "op %u could not be cancelled and ended with %d", number, result);
}

static void check_op(uint32_t number)
{
    struct op *op = &world.ops[number];
    uint32_t state = atomic_load(&op->state);
    uint32_t callbacks = op->bracket ? op->answer == BLKREPL_WAIT : op->answer == 0;

    if (state == OP_NONE) {
        return;
    }
    callbacks = op->blocking ? 0 : callbacks;
    MUST(state == OP_OVER && atomic_load(&op->callbacks) == callbacks &&
             atomic_load(&op->releases) == !op->blocking,
         "op %u answered %d: state %u, %u callbacks, %u releases", number, op->answer, state,
         atomic_load(&op->callbacks), atomic_load(&op->releases));
    world.counts.requests++;
    world.counts.waits += op->answer == BLKREPL_WAIT;
    world.counts.blocking += op->blocking;
    if (was_refused(op)) {
        return;
    }
    check_result(number);
    if (op->opcode == BLKREPL_OP_READ && op->result == 0) {
        check_read(number);
    }
}

static void check_job(uint32_t number)
{
    struct backup_run *job = &world.jobs[number];
    bool done = atomic_load(&job->done);

    MUST(atomic_load(&job->releases) == 1, "backup %u: %u releases", number,
         atomic_load(&job->releases));
    if (!job->made) {
        return;
    }
    MUST(!done || job->result != -ECANCELED || job->cancelled || atomic_load(&world.shut),
         "backup %u was cancelled by nobody", number);
    MUST(!done || job->result != 0 || job->started, "backup %u is done and was never started",
         number);
    world.counts.cancelled += done && job->result == -ECANCELED;
    world.counts.failed += done && job->result < 0 && job->result != -ECANCELED;
    world.counts.done += job->content != NULL;
    if (job->content != NULL) {
        check_backup(number);
    }
}

void check_run(void)
{
    find_near();
    for (uint32_t i = 0; i < world.plan.disks; i++) {
        MUST(atomic_load(&world.disks[i].closed) == 1 && atomic_load(&world.disks[i].released) == 1,
             "disk %u is not closed and released once", i);
    }
    MUST(atomic_load(&world.sink_releases) == 1, "the sink is not released once");
    for (uint32_t i = 0; i < world.op_count; i++) {
        check_op(i);
    }
    for (uint32_t i = 0; i < world.plan.sources; i++) {
        check_disk(i);
    }
    for (uint32_t i = 0; i < world.job_count; i++) {
        check_job(i);
    }
}
