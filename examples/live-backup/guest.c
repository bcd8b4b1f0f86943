/* SPDX-License-Identifier: MIT */
/* guest.c - each thread gives a write to the library and sleeps until its callback, which runs in
 * the main thread's poll, has said how it went. */
#include "guest.h"

#include <signal.h>
#include <time.h>

uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Runs in the main thread's poll. */
static void on_written(void *user, int result)
{
    struct writer *writer = user;

    pthread_mutex_lock(&writer->lock);
    writer->result = result;
    pthread_cond_signal(&writer->answered);
    pthread_mutex_unlock(&writer->lock);
}

/* Write and wait for the answer.  There is always room: the context takes more requests at
 * once than there can be writers. */
static int writer_write(struct writer *writer, uint64_t offset, void *block)
{
    const blkrepl_iovec iov = {block, BLOCK_BYTES};
    const blkrepl_completion done = {.fn = on_written, .user = writer};

    writer->result = 1;
    int error = blkrepl_image_write(writer->guest->disk, 0, offset, &iov, 1, 0, &done);
    if (error < 0) {
        return error;
    }
    pthread_mutex_lock(&writer->lock);
    while (writer->result == 1) {
        pthread_cond_wait(&writer->answered, &writer->lock);
    }
    pthread_mutex_unlock(&writer->lock);
    return writer->result;
}

static uint64_t writer_random(struct writer *writer)
{
    writer->random ^= writer->random << 13;
    writer->random ^= writer->random >> 7;
    writer->random ^= writer->random << 17;
    return writer->random;
}

static void *writer_main(void *user)
{
    struct writer *writer = user;
    struct guest *guest = writer->guest;
    uint64_t block[BLOCK_BYTES / sizeof(uint64_t)];

    for (size_t i = 0; i < BLOCK_BYTES / sizeof block[0]; i++) {
        block[i] = writer_random(writer);
    }
    while (!guest->stop && writer->error == 0) {
        uint64_t offset = writer_random(writer) % guest->blocks * BLOCK_BYTES;
        uint64_t start = now_ns();

        block[0]++; /* no two writes are the same */
        writer->error = writer_write(writer, offset, block);
        writer->error_offset = offset;
        uint64_t took = now_ns() - start;
        if (took > writer->slowest_ns) {
            writer->slowest_ns = took;
        }
        writer->writes += writer->error == 0;
    }
    guest->running--;
    blkrepl_poll_wake(guest->ctx, 0);
    return NULL;
}

/* The threads do not take signals, so that these interrupt the poll. */
bool guest_start(struct guest *guest, unsigned count)
{
    sigset_t all, old;

    guest->start_ns = now_ns();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (guest->count < count) {
        struct writer *writer = &guest->writers[guest->count];

        writer->guest = guest;
        writer->random = (guest->start_ns + guest->count + 1) * 0x9e3779b97f4a7c15u | 1;
        pthread_mutex_init(&writer->lock, NULL);
        pthread_cond_init(&writer->answered, NULL);
        guest->running++;
        if (pthread_create(&writer->thread, NULL, writer_main, writer) != 0) {
            guest->running--;
            break;
        }
        guest->count++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return guest->count == count;
}

void guest_stop(struct guest *guest)
{
    guest->stop = true;
    guest->end_ns = now_ns();
    while (guest->running > 0) {
        blkrepl_poll(guest->ctx, 0, POLL_NS);
    }
    for (unsigned i = 0; i < guest->count; i++) {
        pthread_join(guest->writers[i].thread, NULL);
    }
}

uint64_t guest_writes(const struct guest *guest)
{
    uint64_t writes = 0;

    for (unsigned i = 0; i < guest->count; i++) {
        writes += guest->writers[i].writes;
    }
    return writes;
}

uint64_t guest_slowest_ns(const struct guest *guest)
{
    uint64_t slowest = 0;

    for (unsigned i = 0; i < guest->count; i++) {
        if (guest->writers[i].slowest_ns > slowest) {
            slowest = guest->writers[i].slowest_ns;
        }
    }
    return slowest;
}

double guest_seconds(const struct guest *guest)
{
    uint64_t end = guest->end_ns ? guest->end_ns : now_ns();

    return (double)(end - guest->start_ns) / NS_PER_S;
}
