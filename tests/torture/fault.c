/* SPDX-License-Identifier: MIT */
/* fault.c - the plan of a run, and the list of what was made to fail. */
#include <pthread.h>
#include <stdatomic.h>

#include "torture.h"

#define FAILURES_MAX 8192

static struct fault_plan plan;
static atomic_uint_fast64_t calls[FAULT_DOMAINS];
static atomic_uint_fast64_t fired;
static atomic_int paused;

/* Pool threads add to it, too. */
static pthread_mutex_t failures_lock = PTHREAD_MUTEX_INITIALIZER;
static struct failure failures[FAILURES_MAX];
static size_t failures_count;
static bool failures_lost; /* there were more: what is not found may be one of them */

void fault_start(const struct fault_plan *wanted)
{
    plan = *wanted;
    for (int i = 0; i < FAULT_DOMAINS; i++) {
        atomic_store(&calls[i], 0);
    }
    atomic_store(&fired, 0);
    atomic_store(&paused, 0);
    failures_count = 0;
    failures_lost = false;
}

void fault_pause(bool pause)
{
    atomic_fetch_add(&paused, pause ? 1 : -1);
}

bool fault_due(enum fault_domain domain)
{
    if (atomic_load(&paused) > 0) {
        return false;
    }
    uint64_t n = atomic_fetch_add(&calls[domain], 1) + 1;

    return plan.domain == domain && (n == plan.nth || (plan.on && n > plan.nth));
}

void fault_note(void)
{
    atomic_fetch_add(&fired, 1);
}

const struct fault_plan *fault_plan(void)
{
    return &plan;
}

uint64_t fault_calls(enum fault_domain domain)
{
    return atomic_load(&calls[domain]);
}

uint64_t fault_fired(void)
{
    return atomic_load(&fired);
}

/* ---- Failures ----------------------------------------------------------------- */

void failure_add(const struct failure *failure)
{
    pthread_mutex_lock(&failures_lock);
    if (failures_count < FAILURES_MAX) {
        failures[failures_count++] = *failure;
    } else {
        failures_lost = true;
    }
    pthread_mutex_unlock(&failures_lock);
}

static bool failure_is_of(const struct failure *f, uint32_t media, uint32_t opcodes)
{
    return f->medium < 0 ? media == UINT32_MAX
                         : (media >> f->medium & 1) != 0 && (opcodes >> f->opcode & 1) != 0;
}

static bool failure_touches(const struct failure *f, uint64_t offset, uint64_t end)
{
    return f->bytes == 0 || offset == end || (f->offset < end && offset < f->offset + f->bytes) ||
           f->bytes == UINT64_MAX;
}

bool failure_claim(uint32_t media, uint32_t opcodes, uint64_t offset, uint64_t end, int code)
{
    bool found = false;

    pthread_mutex_lock(&failures_lock);
    for (size_t i = 0; i < failures_count; i++) {
        struct failure *f = &failures[i];

        if (f->code == code && !f->passing && failure_is_of(f, media, opcodes) &&
            failure_touches(f, offset, end)) {
            f->claimed = true;
            found = true;
        }
    }
    pthread_mutex_unlock(&failures_lock);
    return found || failures_lost;
}

bool failure_claim_exact(int medium, uint32_t opcodes, uint64_t offset, uint64_t bytes, int code)
{
    bool found = false;

    pthread_mutex_lock(&failures_lock);
    for (size_t i = 0; i < failures_count; i++) {
        struct failure *f = &failures[i];
        bool anywhere = f->bytes == UINT64_MAX; /* a system call tells no request */

        if (f->code == code && !f->passing && f->medium == medium &&
            (opcodes >> f->opcode & 1) != 0 &&
            (anywhere || (f->offset == offset && f->bytes == bytes))) {
            f->claimed = true;
            found = true;
        }
    }
    pthread_mutex_unlock(&failures_lock);
    return found || failures_lost;
}

size_t failure_count(uint32_t media, uint32_t opcodes, uint64_t offset, uint64_t end)
{
    size_t count = 0;

    pthread_mutex_lock(&failures_lock);
    for (size_t i = 0; i < failures_count; i++) {
        count += failure_is_of(&failures[i], media, opcodes) &&
                 failure_touches(&failures[i], offset, end);
    }
    pthread_mutex_unlock(&failures_lock);
    return count;
}

size_t failure_unclaimed(const struct failure **first)
{
    size_t count = 0;

    *first = NULL;
    for (size_t i = 0; i < failures_count; i++) {
        if (failures[i].hard && !failures[i].claimed) {
            *first = *first ? *first : &failures[i];
            count++;
        }
    }
    return count;
}

void failure_forgive(uint32_t media, uint32_t opcodes, uint64_t offset, uint64_t end)
{
    pthread_mutex_lock(&failures_lock);
    for (size_t i = 0; i < failures_count; i++) {
        failures[i].claimed = failures[i].claimed || (failure_is_of(&failures[i], media, opcodes) &&
                                                      failure_touches(&failures[i], offset, end));
    }
    pthread_mutex_unlock(&failures_lock);
}

void failure_forgive_of(int medium, uint32_t opcode)
{
    pthread_mutex_lock(&failures_lock);
    for (size_t i = 0; i < failures_count; i++) {
        failures[i].claimed =
            failures[i].claimed || (failures[i].medium == medium && failures[i].opcode == opcode);
    }
    pthread_mutex_unlock(&failures_lock);
}
