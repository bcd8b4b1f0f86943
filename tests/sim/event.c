/* SPDX-License-Identifier: MIT */
/* event.c - the event log, its hash, and what happens when a promise is broken.
 *
 * The formats of events know %n (a number), %o (an opcode), %r (a result, given
 * as its positive errno), %v (a verb), %s (a state of a job), %e (an event), %k
 * (the kind of an object), %i (code of the host that was called) and %c (a call). */
#include "sim.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const opcodes[] = {"op 0",    "read",  "write",  "zeroes",
                                      "discard", "flush", "status", "copy from"};
static const char *const verbs[] = {"start",  "pause",    "resume",   "set_speed",
                                    "cancel", "complete", "finalize", "dismiss"};
static const char *const states[] = {"0", "created", "running", "ready", "pending", "concluded"};

static const char *name_of(const char *const *names, size_t count, unsigned long long value)
{
    return value < count ? names[value] : "?";
}

static void print_result(unsigned long long code)
{
    static const struct {
        int code;
        const char *name;
    } names[] = {{0, "ok"},
                 {EIO, "EIO"},
                 {ENOSPC, "ENOSPC"},
                 {EAGAIN, "EAGAIN"},
                 {EBUSY, "EBUSY"},
                 {EINVAL, "EINVAL"},
                 {ENOMEM, "ENOMEM"},
                 {EROFS, "EROFS"},
                 {EEXIST, "EEXIST"},
                 {ENOENT, "ENOENT"},
                 {ENOTSUP, "ENOTSUP"},
                 {ESHUTDOWN, "ESHUTDOWN"},
                 {ECANCELED, "ECANCELED"},
                 {ETIMEDOUT, "ETIMEDOUT"},
                 {EREMOTEIO, "EREMOTEIO (a target's)"},
                 {EILSEQ, "EILSEQ (a source's)"},
                 {ENODATA, "ENODATA (a target's)"},
                 {EPROTO, "EPROTO (a source's)"},
                 {ENOLINK, "ENOLINK (a target's)"}};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if ((unsigned long long)names[i].code == code) {
            printf("%s", names[i].name);
            return;
        }
    }
    printf("-%llu", code);
}

static void print_event(unsigned long long type)
{
    switch (type) {
    case BLKREPL_EVENT_ROOM: printf("ROOM"); return;
    case BLKREPL_EVENT_JOB_STATE: printf("JOB_STATE"); return;
    case BLKREPL_EVENT_JOB_ERROR: printf("JOB_ERROR"); return;
    case BLKREPL_EVENT_JOB_DONE: printf("JOB_DONE"); return;
    default: printf("%llu", type); return;
    }
}

static void print_argument(char kind, unsigned long long value)
{
    switch (kind) {
    case 'o': printf("%s", name_of(opcodes, sizeof opcodes / sizeof opcodes[0], value)); return;
    case 'v': printf("%s", name_of(verbs, sizeof verbs / sizeof verbs[0], value)); return;
    case 's': printf("%s", name_of(states, sizeof states / sizeof states[0], value)); return;
    case 'r': print_result(value); return;
    case 'i': printf("%s", inside_name(value)); return;
    case 'c': printf("%s", call_name(value)); return;
    case 'e': print_event(value); return;
    case 'k': printf("%s", value == BLKREPL_OBJECT_JOB ? "job" : "lane"); return;
    default: printf("%llu", value); return;
    }
}

static void event_print(uint64_t number, const struct event_record *event)
{
    const unsigned long long *argument = event->args;

    printf("%6llu  ", (unsigned long long)number);
    for (const char *at = event->format; *at != '\0'; at++) {
        if (*at == '%') {
            print_argument(*++at, *argument++);
        } else {
            putchar(*at);
        }
    }
    putchar('\n');
}

void event_add(uint64_t where, const char *format, const unsigned long long args[5])
{
    struct event_record *event = &sim.ring[sim.seq % RING];
    uint64_t hash = sim.hash ^ where;

    event->format = format;
    for (int i = 0; i < 5; i++) {
        event->args[i] = args[i];
        hash = (hash ^ args[i]) * UINT64_C(0x9fb21c651e98df25);
        hash ^= hash >> 32;
    }
    sim.hash = hash;
    sim.seq++;
    if (sim.trace && !(sim.story && args[0] == 0 && strncmp(format, "poll", 4) == 0)) {
        event_print(sim.seq, event);
    }
}

static void print_ring(void)
{
    uint64_t first = sim.seq > 40 ? sim.seq - 40 : 0;

    for (uint64_t i = first; i < sim.seq; i++) {
        event_print(i + 1, &sim.ring[i % RING]);
    }
}

void sim_fail(const char *format, ...)
{
    va_list args;

    if (!sim.trace) {
        print_ring();
    }
    printf("FAILED seed %llu after %llu events: ", (unsigned long long)sim.plan.seed,
           (unsigned long long)sim.seq);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
    if (sim_on_failure != NULL) {
        sim_on_failure(format);
    }
    abort();
}
