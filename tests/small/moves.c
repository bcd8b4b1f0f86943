/* SPDX-License-Identifier: MIT */
/* moves.c - what can happen next, and letting it happen. */
#include "small.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLLS_MAX 40

static bool may_fail(void)
{
    return state.faults_used < run.theme->faults_max &&
           state.faults_used + state.late_used < run.theme->odd_max;
}

static bool may_be_late(bool fails)
{
    return state.late_used < run.theme->late_max && !state.shutdown &&
           state.faults_used + state.late_used + fails < run.theme->odd_max;
}

/* The move, and the same without its polls, or with one only, of either lane. */
static struct move *add(struct move *out, struct move move)
{
    bool fails = move.outcome == OUTCOME_FAIL || move.outcome == OUTCOME_LANDED;

    *out++ = move;
    if (may_be_late(fails) && move.kind != MOVE_CLOCK && move.kind != MOVE_POLL) {
        move.late = LATE_ALL;
        *out++ = move;
        move.late = LATE_ONE;
        *out++ = move;
        if (world_lanes() > 1) {
            move.late = LATE_LANE;
            *out++ = move;
        }
    }
    return out;
}

static struct move *add_failures(struct move *out, struct move move, uint32_t opcode)
{
    if (!may_fail()) {
        return out;
    }
    move.outcome = OUTCOME_FAIL;
    out = add(out, move);
    if (is_write(opcode)) {
        move.outcome = OUTCOME_LANDED;
        out = add(out, move);
    }
    return out;
}

static struct move *list_completions(struct move *out)
{
    for (uint32_t d = 0; d < 2; d++) {
        const struct disk *disk = &state.disks[d];

        for (uint32_t i = 0; i < disk->in_flight; i++) {
            struct move move = {.kind = MOVE_COMPLETE, .disk = d, .index = i};

            out = add(out, move);
            out = add_failures(out, move, disk->queue[i].opcode);
            if (disk->queue[i].told) {
                move.outcome = OUTCOME_CANCEL;
                out = add(out, move);
            }
        }
    }
    return out;
}

static struct move *list_ends(struct move *out)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];
        struct move move = {.kind = MOVE_END, .index = i};

        if (r->state == REQUEST_GO) {
            out = add(out, move);
            out = add_failures(out, move, r->op->opcode);
        }
    }
    return out;
}

/* Is the next deadline that of copy-before-write? */
bool moves_is_timeout(void)
{
    return state.deadline_ns - state.now_ns > TIMEOUT_NS / 2;
}

static struct move *list_clock(struct move *out)
{
    if (state.quiet && state.deadline_ns != BLKREPL_FOREVER &&
        (!moves_is_timeout() || may_fail())) {
        out = add(out, (struct move){.kind = MOVE_CLOCK});
    }
    return out;
}

/* All that can happen, in the order in which it is tried. */
uint32_t moves_list(struct move *moves)
{
    struct move *out = moves;

    if (state.gone) {
        return 0;
    }
    out = list_completions(out);
    out = list_ends(out);
    out = list_clock(out);
    if (out == moves && !state.quiet) {
        out = add(out, (struct move){.kind = MOVE_POLL});
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        if (r->op != NULL && r->op->kind == OP_BRACKET && !r->cancelled &&
            (r->state == REQUEST_GO || r->state == REQUEST_PENDING)) {
            out = add(out, (struct move){.kind = MOVE_DROP, .index = i});
        }
    }
    for (uint32_t i = 0; i < run.menu_count && state.ops_used < run.theme->ops_max; i++) {
        if (op_enabled(run.menu[i])) {
            out = add(out, (struct move){.kind = MOVE_OP, .index = i});
        }
    }
    EXPECT(out <= moves + MOVES_MAX, "too many moves");
    return (uint32_t)(out - moves);
}

/* Does nothing go on by itself?  That a host gives up, or a timeout, must not be
 * needed for an end. */
bool moves_quiescent(const struct move *moves, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        bool clock = moves[i].kind == MOVE_CLOCK && !moves_is_timeout();

        if (moves[i].kind == MOVE_COMPLETE || moves[i].kind == MOVE_END || clock ||
            moves[i].kind == MOVE_POLL) {
            return false;
        }
    }
    return true;
}

/* ---- Letting it happen --------------------------------------------------------------- */

/* Time passes until the next deadline. */
static void clock_apply(void)
{
    if (moves_is_timeout()) {
        struct queued q = {.owner = OWNER_JOB, .opcode = BLKREPL_OP_WRITE};

        disk_fault(&state.disks[1], &q, -ETIMEDOUT);
    }
    TRACE("the clock goes on by %llu ms", (ull)(state.deadline_ns - state.now_ns) / 1000000);
    state.now_ns = state.deadline_ns;
}

static void trace_move(const struct move *move)
{
    char text[64];

    if (run.trace) {
        move_print(move, text, sizeof text);
        trace_line("%s", text);
    }
}

static void move_call(const struct move *move)
{
    trace_move(move);
    switch (move->kind) {
    case MOVE_OP: op_apply(run.menu[move->index]); break;
    case MOVE_COMPLETE: disk_complete(&state.disks[move->disk], move->index, move->outcome); break;
    case MOVE_END: bracket_end(&state.requests[move->index], move->outcome); break;
    case MOVE_DROP: bracket_drop(&state.requests[move->index]); break;
    case MOVE_CLOCK: clock_apply(); break;
    case MOVE_POLL: break;
    }
}

/* Is there anything to poll for? */
static bool is_busy(void)
{
    bool busy = false;

    for (uint32_t lane = world_lanes(); lane-- > 0;) { /* the deadline is that of lane 0 */
        int answer = blkrepl_poll_arm(state.ctx, lane, &state.deadline_ns);

        EXPECT(answer == 0 || answer == 1, "poll_arm answered %d", answer);
        busy = busy || answer == 1;
    }
    return busy;
}

static void poll_until_quiet(void)
{
    int polls = 0;

    do {
        EXPECT(polls++ < POLLS_MAX, "polls find something to do for ever");
        for (uint32_t lane = 0; lane < world_lanes(); lane++) {
            poll_once(lane);
        }
    } while (is_busy());
}

/* The polls that belong to a move; false if it is the same as another move. */
static bool polls_apply(enum late late)
{
    if (late != LATE_NO) {
        run.late++;
        state.late_used++;
        state.quiet = 0;
        if (late != LATE_ALL) {
            poll_once(late == LATE_LANE);
        }
        return is_busy();
    }
    poll_until_quiet();
    if (state.shutdown) {
        world_try_free();
    }
    state.quiet = 1;
    return true;
}

/* False if there is no such move, or it is the same as another one. */
bool move_apply(const struct move *move)
{
    run.events++;
    run.inline_at = move->inline_at;
    run.inline_outcome = move->inline_outcome;
    run.inline_count = 0;
    run.inline_hit = false;
    move_call(move);
    if (!state.gone && !polls_apply(move->late)) {
        return false;
    }
    if (move->inline_at > 0 && !run.inline_hit) {
        return false;
    }
    bitmap_check();
    if (state.quiet && !state.gone) {
        requests_check();
        jobs_check();
        fault_check();
    }
    return true;
}

/* ---- Moves as text ------------------------------------------------------------------- */

static const char outcome_letter[] = {
    [OUTCOME_OK] = '\0', [OUTCOME_FAIL] = 'e', [OUTCOME_LANDED] = 'E', [OUTCOME_CANCEL] = 'c'};

void move_print(const struct move *move, char *out, size_t bytes)
{
    char inline_text[16] = "";
    char outcome[2] = {outcome_letter[move->outcome], '\0'};
    static const char *const marks[] = {"", "+", "-", "="};
    const char *late = marks[move->late];

    if (move->inline_at > 0) {
        snprintf(inline_text, sizeof inline_text, "/%u%c", move->inline_at,
                 outcome_letter[move->inline_outcome]);
    }
    switch (move->kind) {
    case MOVE_OP:
        snprintf(out, bytes, "%s%s%s", run.menu[move->index]->name, inline_text, late);
        break;
    case MOVE_COMPLETE:
        snprintf(out, bytes, "%c%u%s%s%s", move->disk == 0 ? 's' : 't', move->index, outcome,
                 inline_text, late);
        break;
    case MOVE_END:
        snprintf(out, bytes, "end%u%s%s%s", move->index + 1, outcome, inline_text, late);
        break;
    case MOVE_DROP: snprintf(out, bytes, "drop%u%s%s", move->index + 1, inline_text, late); break;
    case MOVE_CLOCK: snprintf(out, bytes, "clock%s", inline_text); break;
    case MOVE_POLL: snprintf(out, bytes, "poll%s", inline_text); break;
    }
}

static enum outcome parse_outcome(const char **text)
{
    const char *at = *text;

    *text += *at == 'e' || *at == 'E' || *at == 'c';
    return *at == 'e'   ? OUTCOME_FAIL
           : *at == 'E' ? OUTCOME_LANDED
           : *at == 'c' ? OUTCOME_CANCEL
                        : OUTCOME_OK;
}

/* What stands before the number. */
static const char *parse_kind(const char *text, struct move *out)
{
    static const struct {
        const char *name;
        enum move_kind kind;
        uint32_t disk;
    } kinds[] = {{"end", MOVE_END, 0},   {"drop", MOVE_DROP, 0},  {"clock", MOVE_CLOCK, 0},
                 {"poll", MOVE_POLL, 0}, {"s", MOVE_COMPLETE, 0}, {"t", MOVE_COMPLETE, 1}};
    size_t bytes = strcspn(text, "/+-=");

    for (uint32_t i = 0; i < run.menu_count; i++) {
        if (strlen(run.menu[i]->name) == bytes && strncmp(text, run.menu[i]->name, bytes) == 0) {
            *out = (struct move){.kind = MOVE_OP, .index = i};
            return text + bytes;
        }
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        size_t length = strlen(kinds[i].name);

        if (strncmp(text, kinds[i].name, length) == 0) {
            *out = (struct move){.kind = kinds[i].kind, .disk = kinds[i].disk};
            return text + length;
        }
    }
    return NULL;
}

bool move_parse(const char *text, struct move *out)
{
    char *end;

    text = parse_kind(text, out);
    if (text == NULL) {
        return false;
    }
    if (out->kind == MOVE_COMPLETE || out->kind == MOVE_END || out->kind == MOVE_DROP) {
        out->index = (uint32_t)strtoul(text, &end, 10) - (out->kind != MOVE_COMPLETE);
        text = end;
        out->outcome = parse_outcome(&text);
    }
    if (*text == '/') {
        out->inline_at = (uint32_t)strtoul(text + 1, &end, 10);
        text = end;
        out->inline_outcome = parse_outcome(&text);
    }
    if (*text == '+' || *text == '-' || *text == '=') {
        out->late = *text == '+' ? LATE_ALL : *text == '-' ? LATE_ONE : LATE_LANE;
        text++;
    }
    return *text == '\0';
}
