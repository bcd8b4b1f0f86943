/* SPDX-License-Identifier: MIT */
/* durable.c - what would outlive a power failure.
 *
 * Every write of a medium has a number, kept for each granule that it touches; a
 * flush that has succeeded makes durable what had landed before it began. */
#include <pthread.h>

#include "torture.h"

#define GRANULE 64u

struct medium {
    uint64_t written[MEDIUM_BYTES_MAX / GRANULE]; /* 0: durable by itself */
    uint64_t clock;
    uint64_t durable;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct medium media[MEDIA_MAX];

void durable_start(int medium, uint64_t bytes)
{
    media[medium].clock = 0;
    media[medium].durable = 0;
    memset(media[medium].written, 0,
           (size_t)(bytes / GRANULE + 1) * sizeof media[medium].written[0]);
}

void durable_wrote(int medium, uint64_t offset, uint64_t bytes, bool fua)
{
    if (medium < 0 || bytes == 0) {
        return;
    }
    struct medium *m = &media[medium];

    pthread_mutex_lock(&lock);
    m->clock++;
    for (uint64_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        m->written[i] = fua ? 0 : m->clock;
    }
    pthread_mutex_unlock(&lock);
}

uint64_t durable_clock(int medium)
{
    pthread_mutex_lock(&lock);
    uint64_t clock = medium < 0 ? 0 : media[medium].clock;
    pthread_mutex_unlock(&lock);
    return clock;
}

void durable_flushed(int medium, uint64_t clock)
{
    pthread_mutex_lock(&lock);
    if (medium >= 0 && clock > media[medium].durable) {
        media[medium].durable = clock;
    }
    pthread_mutex_unlock(&lock);
}

bool durable_until(int medium, uint64_t clock)
{
    pthread_mutex_lock(&lock);
    bool all = media[medium].durable >= clock;
    pthread_mutex_unlock(&lock);
    return all;
}

bool durable_range(int medium, uint64_t offset, uint64_t end)
{
    const struct medium *m = &media[medium];
    bool all = true;

    pthread_mutex_lock(&lock);
    for (uint64_t i = (offset + GRANULE - 1) / GRANULE; i < end / GRANULE; i++) {
        all = all && m->written[i] <= m->durable;
    }
    pthread_mutex_unlock(&lock);
    return all;
}
