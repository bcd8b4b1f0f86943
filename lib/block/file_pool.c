/* SPDX-License-Identifier: MIT */
/* file_pool.c - a few threads that do what would block a submitter.
 *
 * Waking a thread costs more than most of the work it would do, so wakes are
 * counted: a thread is woken only for an item that no other thread is already
 * on its way for, and a thread that has finished an item looks for the next
 * one before it sleeps.
 *
 * Invariants, under the lock:
 *   1. sleeping counts the threads in pool_sleep() that nobody has woken;
 *      woken those that were woken and have not left it;
 *   2. starting counts the threads that were created and have not looked for
 *      work yet;
 *   3. background_running counts the pool's threads inside a background item;
 *      helpers are not counted.
 */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"

#define POOL_THREADS_DEFAULT_MAX 4
/* The guest counts as active until this many background items have begun after
 * its last request.  A count and not a time, like all bounds of the library. */
#define POOL_GUEST_RECENT 64
/* How many items of a queue a helper looks at. */
#define POOL_HELP_SCAN 16

static char pool_help_refused;
#define POOL_HELP_REFUSED ((void *)&pool_help_refused)

enum pool_kind {
    POOL_GUEST,
    POOL_BACKGROUND_WRITE,
    POOL_BACKGROUND_READ,
    POOL_KIND_COUNT
};

struct file_pool {
    /* Set at creation. */
    const struct alloc *alloc;
    uint32_t threads_max;
    /* Changed without the lock, too. */
    atomic_uint guest_recent;
    atomic_uint background_queued;
    /* Changed under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct pool_queue queues[POOL_KIND_COUNT];
    uint32_t started;
    uint32_t starting;
    uint32_t sleeping;
    uint32_t woken;
    uint32_t background_running;
    uint64_t wakes;
    bool stop;
    pthread_t threads[];
};

static struct pool_client *pool_client_of(const blkrepl_io *io)
{
    return io->host[1];
}

static enum pool_kind pool_kind_of(const blkrepl_io *io)
{
    if ((io->flags & BLKREPL_IO_BACKGROUND) == 0) {
        return POOL_GUEST;
    }
    if (io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_STATUS) {
        return POOL_BACKGROUND_READ;
    }
    return POOL_BACKGROUND_WRITE;
}

static uint32_t pool_background(const struct file_pool *pool)
{
    return pool->queues[POOL_BACKGROUND_WRITE].count + pool->queues[POOL_BACKGROUND_READ].count;
}

/* How many threads may be inside background items. */
static uint32_t pool_background_limit(const struct file_pool *pool)
{
    if (atomic_load_explicit(&pool->guest_recent, memory_order_relaxed) == 0) {
        return pool->threads_max;
    }
    return (uint32_t)max_u64(1, pool->threads_max / 2);
}

/* How many more background items may begin now. */
static uint32_t pool_background_room(const struct file_pool *pool)
{
    uint32_t limit = pool_background_limit(pool);

    return limit > pool->background_running ? limit - pool->background_running : 0;
}

void blkrepl__file_pool_note_guest(struct file_pool *pool)
{
    /* The load keeps the line shared among the CPUs while nothing changes. */
    if (atomic_load_explicit(&pool->guest_recent, memory_order_relaxed) != POOL_GUEST_RECENT) {
        atomic_store_explicit(&pool->guest_recent, POOL_GUEST_RECENT, memory_order_relaxed);
    }
}

static void pool_forget_guest(struct file_pool *pool)
{
    unsigned recent = atomic_load_explicit(&pool->guest_recent, memory_order_relaxed);

    if (recent != 0) {
        atomic_compare_exchange_strong_explicit(&pool->guest_recent, &recent, recent - 1,
                                                memory_order_relaxed, memory_order_relaxed);
    }
}

static void pool_count_background(struct file_pool *pool)
{
    atomic_store_explicit(&pool->background_queued, pool_background(pool), memory_order_relaxed);
}

/* The item that a thread of the pool should do next; NULL if there is none. */
static blkrepl_io *pool_take(struct file_pool *pool)
{
    blkrepl_io *io = blkrepl__pool_queue_pop(&pool->queues[POOL_GUEST]);

    if (io == NULL && pool_background_room(pool) > 0) {
        io = blkrepl__pool_queue_pop(&pool->queues[POOL_BACKGROUND_WRITE]);
        if (io == NULL) {
            io = blkrepl__pool_queue_pop(&pool->queues[POOL_BACKGROUND_READ]);
        }
        pool_count_background(pool);
    }
    return io;
}

/* ---- Waking and starting threads --------------------------------------------- */

static void *pool_thread(void *arg);

/* The host's signal handlers must not run on threads it does not know of. */
static bool pool_start_thread(struct file_pool *pool)
{
    sigset_t all;
    sigset_t before;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(&pool->threads[pool->started], NULL, pool_thread, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err != 0) {
        return false;
    }
    pool->started++;
    pool->starting++;
    return true;
}

/* See to it that every item that may begin has a thread on its way.  Returns how
 * many times the caller has to signal `work`, best after dropping the lock. */
static uint32_t pool_wake(struct file_pool *pool)
{
    uint64_t wanted = (uint64_t)pool->queues[POOL_GUEST].count +
                      min_u64(pool_background(pool), pool_background_room(pool));
    uint32_t coming = pool->woken + pool->starting;
    uint32_t signals = 0;

    while (coming < wanted && pool->sleeping > 0) {
        pool->sleeping--;
        pool->woken++;
        pool->wakes++;
        signals++;
        coming++;
    }
    while (coming < wanted && pool->started < pool->threads_max && pool_start_thread(pool)) {
        coming++;
    }
    return signals;
}

static void pool_signal(struct file_pool *pool, uint32_t signals)
{
    while (signals-- > 0) {
        pthread_cond_signal(&pool->work);
    }
}

static void pool_sleep(struct file_pool *pool)
{
    pool->sleeping++;
    pthread_cond_wait(&pool->work, &pool->lock);
    /* Woken by nobody in particular: then nobody has taken us off the count.
     * Should another thread's wake be consumed here, it does the same for us. */
    if (pool->woken > 0) {
        pool->woken--;
    } else {
        pool->sleeping--;
    }
}

/* ---- The threads --------------------------------------------------------------- */

/* Do an item that was taken from the queues; drops the lock meanwhile. */
static void pool_run(struct file_pool *pool, blkrepl_io *io)
{
    bool background = pool_kind_of(io) != POOL_GUEST;
    uint32_t signals = 0;

    if (background) {
        pool->background_running++;
        pool_forget_guest(pool);
        /* The guest has gone quiet: others may join in. */
        signals = pool_wake(pool);
    }
    pthread_mutex_unlock(&pool->lock);
    pool_signal(pool, signals);
    (void)pool_client_of(io)->run(pool_client_of(io), io, true);
    pthread_mutex_lock(&pool->lock);
    pool->background_running -= background ? 1 : 0;
}

static void *pool_thread(void *arg)
{
    struct file_pool *pool = arg;
    blkrepl_io *io;

    pthread_mutex_lock(&pool->lock);
    pool->starting--;
    for (;;) {
        io = pool_take(pool);
        if (io != NULL) {
            pool_run(pool, io);
        } else if (pool->stop) {
            break;
        } else {
            pool_sleep(pool);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

void blkrepl__file_pool_batch(struct pool_queue *batch, struct pool_client *client, blkrepl_io *io)
{
    io->host[1] = client;
    io->host[3] = NULL;
    blkrepl__pool_queue_append(batch, io);
}

void blkrepl__file_pool_add(struct file_pool *pool, struct pool_queue *batch)
{
    blkrepl_io *io;
    uint32_t signals;

    pthread_mutex_lock(&pool->lock);
    while ((io = blkrepl__pool_queue_pop(batch)) != NULL) {
        blkrepl__pool_queue_append(&pool->queues[pool_kind_of(io)], io);
    }
    pool_count_background(pool);
    signals = pool_wake(pool);
    while (pool->started == 0 && (io = pool_take(pool)) != NULL) {
        pool_run(pool, io);
    }
    pthread_mutex_unlock(&pool->lock);
    pool_signal(pool, signals);
}

/* ---- Helpers ------------------------------------------------------------------- */

static bool pool_helpable(const blkrepl_io *io, const void *key)
{
    struct pool_client *client = pool_client_of(io);

    (void)key;
    return io->host[3] != POOL_HELP_REFUSED && client->helpable(client, io);
}

static blkrepl_io *pool_take_helpable(struct file_pool *pool)
{
    blkrepl_io *io;

    pthread_mutex_lock(&pool->lock);
    io = blkrepl__pool_queue_take(&pool->queues[POOL_BACKGROUND_WRITE], POOL_HELP_SCAN,
                                  pool_helpable, NULL);
    if (io == NULL) {
        io = blkrepl__pool_queue_take(&pool->queues[POOL_BACKGROUND_READ], POOL_HELP_SCAN,
                                      pool_helpable, NULL);
    }
    pool_count_background(pool);
    pthread_mutex_unlock(&pool->lock);
    return io;
}

/* It would have blocked: give it back to the threads. */
static void pool_return(struct file_pool *pool, blkrepl_io *io)
{
    uint32_t signals;

    io->host[3] = POOL_HELP_REFUSED;
    pthread_mutex_lock(&pool->lock);
    blkrepl__pool_queue_prepend(&pool->queues[pool_kind_of(io)], io);
    pool_count_background(pool);
    signals = pool_wake(pool);
    pthread_mutex_unlock(&pool->lock);
    pool_signal(pool, signals);
}

bool blkrepl__file_pool_help(struct file_pool *pool)
{
    while (atomic_load_explicit(&pool->background_queued, memory_order_relaxed) > 0) {
        blkrepl_io *io = pool_take_helpable(pool);

        if (io == NULL) {
            return false;
        }
        if (pool_client_of(io)->run(pool_client_of(io), io, false)) {
            return true;
        }
        pool_return(pool, io);
    }
    return false;
}

/* ---- Cancel, query, life ------------------------------------------------------- */

struct pool_key {
    const struct pool_client *client;
    uint64_t id;
};

static bool pool_is(const blkrepl_io *io, const void *key)
{
    const struct pool_key *wanted = key;

    return io->id == wanted->id && pool_client_of(io) == wanted->client;
}

blkrepl_io *blkrepl__file_pool_cancel(struct file_pool *pool, const struct pool_client *client,
                                      uint64_t id)
{
    struct pool_key key = {.client = client, .id = id};
    blkrepl_io *io = NULL;

    pthread_mutex_lock(&pool->lock);
    for (int kind = 0; io == NULL && kind < POOL_KIND_COUNT; kind++) {
        io = blkrepl__pool_queue_take(&pool->queues[kind], UINT32_MAX, pool_is, &key);
    }
    pool_count_background(pool);
    pthread_mutex_unlock(&pool->lock);
    return io;
}

void blkrepl__file_pool_query(struct file_pool *pool, struct file_pool_stats *stats)
{
    pthread_mutex_lock(&pool->lock);
    *stats = (struct file_pool_stats){
        .threads = pool->started,
        .sleeping = pool->sleeping,
        .queued = pool->queues[POOL_GUEST].count + pool_background(pool),
        .wakes = pool->wakes,
    };
    pthread_mutex_unlock(&pool->lock);
}

static uint32_t pool_cpus(void)
{
    long count;

#ifdef __linux__
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return (uint32_t)CPU_COUNT(&set);
    }
#endif
    count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : (uint32_t)count;
}

int blkrepl__file_pool_create(const struct alloc *alloc, uint32_t threads_max,
                              struct file_pool **out)
{
    struct file_pool *pool;

    if (threads_max == 0) {
        threads_max = (uint32_t)min_u64(pool_cpus(), POOL_THREADS_DEFAULT_MAX);
    }
    pool = blkrepl__zalloc(alloc, sizeof *pool + threads_max * sizeof pool->threads[0]);
    if (pool == NULL) {
        return -ENOMEM;
    }
    pool->alloc = alloc;
    pool->threads_max = threads_max;
    if (pthread_mutex_init(&pool->lock, NULL) != 0) {
        goto fail;
    }
    if (pthread_cond_init(&pool->work, NULL) != 0) {
        pthread_mutex_destroy(&pool->lock);
        goto fail;
    }
    *out = pool;
    return 0;

fail:
    blkrepl__free(alloc, pool);
    return -ENOMEM;
}

void blkrepl__file_pool_free(struct file_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    CHECK(pool->queues[POOL_GUEST].count + pool_background(pool) == 0);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->started; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    blkrepl__free(pool->alloc, pool);
}
