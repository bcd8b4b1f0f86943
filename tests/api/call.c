/* SPDX-License-Identifier: MIT */
#include "call.h"

#include <sched.h>
#include <unistd.h>

static int call_begin(struct call *call)
{
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = BLKREPL_OP_WRITE,
                            .offset = call->offset,
                            .bytes = call->bytes,
                            .lane = call->lane,
                            .flags = call->flags};

    return blkrepl_write_begin_wait(call->image, &what, &call->token);
}

int call_make(struct call *call)
{
    blkrepl_iovec iov = {call->memory, (size_t)call->bytes};
    blkrepl_image *image = call->image;
    int rc = 0;

    switch (call->kind) {
    case CALL_READ:
        rc = blkrepl_image_read_wait(image, call->lane, call->offset, &iov, 1, call->flags);
        break;
    case CALL_WRITE:
        rc = blkrepl_image_write_wait(image, call->lane, call->offset, &iov, 1, call->flags);
        break;
    case CALL_ZEROES:
        rc = blkrepl_image_write_zeroes_wait(image, call->lane, call->offset, call->bytes,
                                             call->flags);
        break;
    case CALL_DISCARD:
        rc = blkrepl_image_discard_wait(image, call->lane, call->offset, call->bytes, call->flags);
        break;
    case CALL_FLUSH: rc = blkrepl_image_flush_wait(image, call->lane); break;
    case CALL_STATUS:
        rc = blkrepl_image_status_wait(image, call->lane, call->offset, call->bytes, call->extent,
                                       ARRAY_COUNT(call->extent));
        break;
    case CALL_BEGIN: rc = call_begin(call); break;
    case CALL_KINDS: break;
    }
    call->result = rc;
    return rc;
}

/* The kernel's number of this thread: the last part of where the link leads. */
static int thread_number(void)
{
    char path[64] = "";
    ssize_t got = readlink("/proc/thread-self", path, sizeof path - 1);
    const char *number = got > 0 ? strrchr(path, '/') : NULL;

    return number ? (int)strtol(number + 1, NULL, 10) : 0;
}

static void *call_main(void *user)
{
    struct call *call = user;

    atomic_store(&call->tid, thread_number());
    call_make(call);
    atomic_store(&call->returned, true);
    return NULL;
}

void call_start(struct call *call)
{
    atomic_store(&call->tid, 0);
    atomic_store(&call->returned, false);
    assert_int_equal(pthread_create(&call->thread, NULL, call_main, call), 0);
}

/* The letter in /proc that tells what a thread does. */
static char thread_state(int tid)
{
    char path[64], line[256];
    size_t got = 0;

    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE *file = fopen(path, "r");
    if (file) {
        got = fread(line, 1, sizeof line - 1, file);
        fclose(file);
    }
    line[got] = '\0';
    const char *name_end = strrchr(line, ')');
    return name_end && name_end[1] ? name_end[2] : '?';
}

void call_until_asleep(struct call *call)
{
    int tid = 0;

    while (!atomic_load(&call->returned)) {
        tid = tid ? tid : atomic_load(&call->tid);
        if (tid && thread_state(tid) == 'S') {
            return;
        }
        sched_yield();
    }
}

int call_join(struct call *call)
{
    pthread_join(call->thread, NULL);
    return call->result;
}

static void *poller_main(void *user)
{
    struct poller *poller = user;

    while (!atomic_load(&poller->stop)) {
        int rc = blkrepl_poll(poller->ctx, poller->lane, BLKREPL_FOREVER);

        poller->errors += rc < 0 && rc != -EBUSY;
    }
    atomic_store(&poller->stopped, true);
    return NULL;
}

void poller_start(struct poller *poller, blkrepl_context *ctx, uint32_t lane)
{
    poller->ctx = ctx;
    poller->lane = lane;
    poller->errors = 0;
    atomic_store(&poller->stop, false);
    atomic_store(&poller->stopped, false);
    assert_int_equal(pthread_create(&poller->thread, NULL, poller_main, poller), 0);
    while (blkrepl_poll(ctx, lane, 0) != -EBUSY) {
        sched_yield();
    }
}

void poller_stop(struct poller *poller)
{
    atomic_store(&poller->stop, true);
    while (!atomic_load(&poller->stopped)) {
        blkrepl_poll_wake(poller->ctx, poller->lane);
        sched_yield();
    }
    pthread_join(poller->thread, NULL);
    assert_int_equal(poller->errors, 0);
}

void tape_await(struct tape *t, size_t count)
{
    pthread_mutex_lock(&t->lock);
    while (t->queue_count < count) {
        pthread_cond_wait(&t->more, &t->lock);
    }
    pthread_mutex_unlock(&t->lock);
}

void image_await(blkrepl_image *image, uint32_t count)
{
    while (image_info(image).requests_in_flight != count) {
        sched_yield();
    }
}
