/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_pool.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "base/checked.h"
#include "unit/backend_io.h"
#include "unit/fault.h"

#define ITEMS 256

#ifdef __linux__

static struct {
    struct fault thread;
    struct fault mutex;
    struct fault cond;
    struct fault affinity;
    long cpus; /* 0: as many as there are */
} fake;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *arg)
{
    int (*real)(pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *),
                void *arg);

    if (fault_due(&fake.thread)) {
        return fake.thread.err;
    }
    fault_real(&real, "pthread_create", "pthread_create");
    return real(thread, attributes, run, arg);
}

int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
{
    int (*real)(pthread_mutex_t * mutex, const pthread_mutexattr_t *attributes);

    if (fault_due(&fake.mutex)) {
        return fake.mutex.err;
    }
    fault_real(&real, "pthread_mutex_init", "pthread_mutex_init");
    return real(mutex, attributes);
}

int pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attributes)
{
    int (*real)(pthread_cond_t * cond, const pthread_condattr_t *attributes);

    if (fault_due(&fake.cond)) {
        return fake.cond.err;
    }
    fault_real(&real, "pthread_cond_init", "pthread_cond_init");
    return real(cond, attributes);
}

int sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set)
{
    int (*real)(pid_t pid, size_t bytes, cpu_set_t * set);

    if (fault_due(&fake.affinity)) {
        return -1;
    }
    fault_real(&real, "sched_getaffinity", "sched_getaffinity");
    return real(pid, bytes, set);
}

long sysconf(int name)
{
    long (*real)(int name);

    if (name == _SC_NPROCESSORS_ONLN && fake.cpus != 0) {
        return fake.cpus;
    }
    fault_real(&real, "sysconf", "sysconf");
    return real(name);
}

#endif

/* A client that notes the order in which items are done and can hold them. */
struct worker {
    struct pool_client client;
    struct alloc alloc;
    struct file_pool *pool;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct io_request requests[ITEMS];
    char order[ITEMS + 1];
    unsigned begun;
    unsigned inside;
    unsigned inside_most;
    bool held;    /* items wait inside run() where that may block */
    bool refuses; /* would block without may_block */
    bool helps;
    bool signals_blocked;
};

static void worker_note_signals(struct worker *w)
{
    sigset_t now;

    pthread_sigmask(SIG_SETMASK, NULL, &now);
    w->signals_blocked = sigismember(&now, SIGTERM) == 1 && sigismember(&now, SIGALRM) == 1;
}

/* What an item is called in the order: its io->lane. */
static bool worker_run(struct pool_client *client, blkrepl_io *io, bool may_block)
{
    struct worker *w = CONTAINER_OF(client, struct worker, client);

    pthread_mutex_lock(&w->lock);
    if (!may_block && w->refuses) {
        pthread_mutex_unlock(&w->lock);
        return false;
    }
    w->order[w->begun++] = (char)io->lane;
    w->inside++;
    w->inside_most = w->inside > w->inside_most ? w->inside : w->inside_most;
    worker_note_signals(w);
    pthread_cond_broadcast(&w->changed);
    while (w->held && may_block) {
        pthread_cond_wait(&w->changed, &w->lock);
    }
    w->inside--;
    pthread_mutex_unlock(&w->lock);
    io_done(io_context(), io->id, 0);
    return true;
}

static bool worker_helpable(struct pool_client *client, const blkrepl_io *io)
{
    (void)io;
    return CONTAINER_OF(client, struct worker, client)->helps;
}

static void set_up(struct worker *w, uint32_t threads_max)
{
    memset(w, 0, sizeof *w);
    w->client = (struct pool_client){.run = worker_run, .helpable = worker_helpable};
    w->helps = true;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    assert_int_equal(blkrepl__alloc_init(&w->alloc, NULL), 0);
    assert_int_equal(blkrepl__file_pool_create(&w->alloc, threads_max, &w->pool), 0);
}

static void tear_down(struct worker *w)
{
    blkrepl__file_pool_free(w->pool);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

static void hold(struct worker *w, bool held)
{
    pthread_mutex_lock(&w->lock);
    w->held = held;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void wait_begun(struct worker *w, unsigned begun)
{
    pthread_mutex_lock(&w->lock);
    while (w->begun < begun) {
        pthread_cond_wait(&w->changed, &w->lock);
    }
    pthread_mutex_unlock(&w->lock);
}

/* Queue one item per letter as requests from..: capitals are the guest's, the
 * others background; r and R are reads, everything else writes. */
static void add(struct worker *w, unsigned from, const char *letters)
{
    struct pool_queue batch = {.first = NULL};

    for (unsigned i = 0; letters[i] != '\0'; i++) {
        struct io_request *request = &w->requests[from + i];
        char letter = letters[i];

        io_init(request, letter == 'r' || letter == 'R' ? BLKREPL_OP_READ : BLKREPL_OP_WRITE, 0, 0);
        request->io.flags = letter >= 'a' ? BLKREPL_IO_BACKGROUND : 0;
        request->io.lane = (uint32_t)letter;
        blkrepl__file_pool_batch(&batch, &w->client, &request->io);
    }
    blkrepl__file_pool_add(w->pool, &batch);
    assert_int_equal(batch.count, 0);
}

static void wait_all(struct worker *w, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        assert_int_equal(io_wait(&w->requests[i]), 0);
    }
}

static struct file_pool_stats stats(struct worker *w)
{
    struct file_pool_stats now;

    blkrepl__file_pool_query(w->pool, &now);
    return now;
}

/* Until this many threads sleep: the only way to know that one has come to rest. */
static void wait_sleeping(struct worker *w, uint32_t sleeping)
{
    while (stats(w).sleeping != sleeping) {
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

static unsigned threads_of_process(void)
{
    DIR *dir = opendir("/proc/self/task");
    unsigned count = 0;

    if (dir == NULL) {
        return 0;
    }
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static void file_pool_starts_no_thread_before_it_is_needed(void **state)
{
    unsigned before = threads_of_process();
    struct worker w;

    (void)state;
    set_up(&w, 3);
    assert_false(blkrepl__file_pool_help(w.pool));
    assert_int_equal(threads_of_process(), before);
    assert_int_equal(stats(&w).threads, 0);

    add(&w, 0, "a");
    assert_int_equal(stats(&w).threads, 1);
    wait_all(&w, 0, 1);
    wait_sleeping(&w, 1);
    add(&w, 1, "b");
    wait_all(&w, 1, 2);
    assert_int_equal(stats(&w).threads, 1);
    wait_sleeping(&w, 1);
    hold(&w, true);
    add(&w, 2, "cdefg");
    wait_begun(&w, 5);
    assert_int_equal(stats(&w).threads, 3);
    hold(&w, false);
    wait_all(&w, 2, 7);
    tear_down(&w);
}

static void file_pool_does_guest_then_writes_then_reads(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 1);
    hold(&w, true);
    add(&w, 0, "x");
    wait_begun(&w, 1);
    add(&w, 1, "rarbR");
    add(&w, 6, "rcAB");
    hold(&w, false);
    wait_all(&w, 0, 10);
    assert_string_equal(w.order, "xRABabcrrr");
    assert_int_equal(w.inside_most, 1);
    assert_true(w.signals_blocked);
    tear_down(&w);
}

static void file_pool_wakes_no_more_than_needed(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 4);
    hold(&w, true);
    add(&w, 0, "abcd");
    wait_begun(&w, 4);
    add(&w, 4, "efgh");
    assert_int_equal(stats(&w).wakes, 0);
    hold(&w, false);
    wait_all(&w, 0, 8);
    wait_sleeping(&w, 4);
    assert_int_equal(stats(&w).wakes, 0);

    hold(&w, true);
    add(&w, 8, "a");
    assert_int_equal(stats(&w).wakes, 1);
    wait_begun(&w, 9);
    add(&w, 9, "bc");
    assert_int_equal(stats(&w).wakes, 3);
    wait_begun(&w, 11);
    add(&w, 11, "defgh");
    assert_int_equal(stats(&w).wakes, 4);
    wait_begun(&w, 12);
    add(&w, 16, "i");
    assert_int_equal(stats(&w).wakes, 4);
    hold(&w, false);
    wait_all(&w, 8, 17);
    tear_down(&w);
}

/* While the guest is active only half of the threads do background work. */
static void file_pool_leaves_room_for_the_guest(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 4);
    blkrepl__file_pool_note_guest(w.pool);
    hold(&w, true);
    add(&w, 0, "abcdefgh");
    wait_begun(&w, 2);
    assert_int_equal(stats(&w).threads, 2);
    /* The guest's have somebody to do them. */
    add(&w, 8, "AB");
    wait_begun(&w, 4);
    assert_int_equal(w.inside_most, 4);
    assert_true(strchr(w.order, 'A') != NULL && strchr(w.order, 'B') != NULL);
    hold(&w, false);
    wait_all(&w, 0, 10);
    tear_down(&w);
}

static void file_pool_forgets_a_quiet_guest(void **state)
{
    char many[65];
    struct worker w;

    (void)state;
    memset(many, 'a', 64);
    many[64] = '\0';
    set_up(&w, 4);
    blkrepl__file_pool_note_guest(w.pool);
    add(&w, 0, many);
    wait_all(&w, 0, 64);
    hold(&w, true);
    add(&w, 64, "bcdefg");
    wait_begun(&w, 68);
    assert_int_equal(w.inside_most, 4);
    hold(&w, false);
    wait_all(&w, 64, 70);
    tear_down(&w);
}

/* One thread is never kept from background work altogether. */
static void file_pool_of_one_does_both(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 1);
    blkrepl__file_pool_note_guest(w.pool);
    add(&w, 0, "aArB");
    wait_all(&w, 0, 4);
    tear_down(&w);
}

static void file_pool_helper_does_background_only(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 1);
    hold(&w, true);
    add(&w, 0, "x");
    wait_begun(&w, 1);
    add(&w, 1, "rArb");

    assert_true(blkrepl__file_pool_help(w.pool));
    assert_true(io_is_done(&w.requests[4]));
    assert_true(blkrepl__file_pool_help(w.pool));
    assert_true(io_is_done(&w.requests[1]));
    assert_true(blkrepl__file_pool_help(w.pool));
    assert_true(io_is_done(&w.requests[3]));
    assert_false(blkrepl__file_pool_help(w.pool));
    assert_false(io_is_done(&w.requests[2]));
    assert_string_equal(w.order, "xbrr");
    hold(&w, false);
    wait_all(&w, 0, 5);
    tear_down(&w);
}

static void file_pool_helper_leaves_what_would_block(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 1);
    hold(&w, true);
    add(&w, 0, "x");
    wait_begun(&w, 1);
    w.refuses = true;
    add(&w, 1, "abr");
    assert_false(blkrepl__file_pool_help(w.pool));
    assert_int_equal(stats(&w).queued, 3);
    /* What was refused once is not tried by helpers again. */
    pthread_mutex_lock(&w.lock);
    w.refuses = false;
    pthread_mutex_unlock(&w.lock);
    assert_false(blkrepl__file_pool_help(w.pool));
    add(&w, 4, "c");
    w.helps = false;
    assert_false(blkrepl__file_pool_help(w.pool));
    w.helps = true;
    assert_true(blkrepl__file_pool_help(w.pool));
    assert_true(io_is_done(&w.requests[4]));
    hold(&w, false);
    wait_all(&w, 0, 5);
    /* Writes before reads also in what came back; the last to come is first. */
    assert_string_equal(w.order, "xcbar");
    tear_down(&w);
}

static void file_pool_cancels_what_is_queued(void **state)
{
    struct pool_client other = {.run = worker_run, .helpable = worker_helpable};
    struct worker w;

    (void)state;
    set_up(&w, 1);
    hold(&w, true);
    add(&w, 0, "x");
    wait_begun(&w, 1);
    add(&w, 1, "abArR");
    for (unsigned i = 1; i <= 5; i += 2) {
        blkrepl_io *io = &w.requests[i].io;

        assert_null(blkrepl__file_pool_cancel(w.pool, &other, io->id));
        assert_ptr_equal(blkrepl__file_pool_cancel(w.pool, &w.client, io->id), io);
        assert_null(blkrepl__file_pool_cancel(w.pool, &w.client, io->id));
    }
    assert_null(blkrepl__file_pool_cancel(w.pool, &w.client, w.requests[0].io.id));
    assert_null(blkrepl__file_pool_cancel(w.pool, &w.client, 0));
    hold(&w, false);
    wait_all(&w, 0, 1);
    assert_int_equal(io_wait(&w.requests[2]), 0);
    assert_int_equal(io_wait(&w.requests[4]), 0);
    assert_string_equal(w.order, "xbr");
    tear_down(&w);
}

/* In a child that may not create threads the adder does the work. */
static int work_without_threads(void)
{
    struct rlimit none = {.rlim_cur = 0, .rlim_max = 0};
    struct worker w;

    if (setrlimit(RLIMIT_NPROC, &none) < 0 || (getuid() == 0 && setuid(65534) < 0)) {
        return 77;
    }
    set_up(&w, 2);
    add(&w, 0, "raA");
    if (stats(&w).threads > 0) {
        return 77;
    }
    for (int i = 0; i < 3; i++) {
        if (!io_is_done(&w.requests[i])) {
            return 1;
        }
    }
    if (strcmp(w.order, "Aar") != 0) {
        return 2;
    }
    tear_down(&w);
    return 0;
}

static void file_pool_works_without_threads(void **state)
{
    int status = 0;
    pid_t pid;

    (void)state;
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(work_without_threads());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

#ifdef __linux__

/* While no thread can be had the adder does the work; it is tried again, and who
 * was got does what the others would have done. */
static void file_pool_goes_on_with_the_threads_it_gets(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 4);
    fake.thread = (struct fault){.err = EAGAIN, .times = 100};
    add(&w, 0, "raA");
    assert_string_equal(w.order, "Aar"); /* done when add() is back */
    assert_int_equal(stats(&w).threads, 0);
    wait_all(&w, 0, 3);
    fake.thread = (struct fault){.err = EAGAIN, .after = 2, .times = 1};
    hold(&w, true);
    add(&w, 3, "ABCD");
    wait_begun(&w, 3 + 2);
    assert_int_equal(stats(&w).threads, 2);
    assert_int_equal(stats(&w).queued, 2);
    add(&w, 7, "E");
    wait_begun(&w, 3 + 4);
    assert_int_equal(stats(&w).threads, 4);
    hold(&w, false);
    wait_all(&w, 3, 8);
    tear_down(&w);
}

static long pool_memory;

static void *count_zalloc(void *user, size_t bytes)
{
    (void)user;
    pool_memory++;
    return calloc(1, bytes);
}

static void count_free(void *user, void *memory)
{
    (void)user;
    pool_memory--;
    free(memory);
}

static void file_pool_without_a_lock_is_not_created(void **state)
{
    struct fault *const faults[] = {&fake.mutex, &fake.cond};
    struct file_pool *pool;
    struct alloc alloc;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, NULL), 0);
    alloc.hooks.zalloc = count_zalloc;
    alloc.hooks.free = count_free;
    for (unsigned i = 0; i < ARRAY_COUNT(faults); i++) {
        *faults[i] = (struct fault){.err = EAGAIN, .times = 1};
        assert_int_equal(blkrepl__file_pool_create(&alloc, 2, &pool), -ENOMEM);
        assert_int_equal(pool_memory, 0);
    }
}

/* "One per CPU this thread may use": where that is not told, one per CPU. */
static void file_pool_counts_the_cpus(void **state)
{
    static const struct {
        long cpus;
        uint32_t threads;
    } cases[] = {{3, 3}, {2, 2}, {1, 1}, {-1, 1}, {64, 4}};
    struct worker w;

    (void)state;
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        fake.affinity = (struct fault){.err = EINVAL, .times = 1};
        fake.cpus = cases[i].cpus;
        set_up(&w, 0);
        fake.cpus = 0;
        hold(&w, true);
        add(&w, 0, "ABCDEFGHI");
        wait_begun(&w, cases[i].threads);
        assert_int_equal(stats(&w).threads, cases[i].threads);
        hold(&w, false);
        wait_all(&w, 0, 9);
        tear_down(&w);
    }
}

#endif

/* ---- Many at once ----------------------------------------------------------------- */

#define CROWD 4
#define CROWD_ITEMS 40
#define CROWD_ROUNDS 50

struct crowd {
    struct worker *worker;
    unsigned from;
    uint64_t seed;
};

static void *crowd_member(void *arg)
{
    static const char letters[] = "aArR";
    struct crowd *c = arg;

    for (int round = 0; round < CROWD_ROUNDS; round++) {
        unsigned count = 0;

        while (count < CROWD_ITEMS) {
            unsigned more = (unsigned)min_u64(1 + io_below(&c->seed, 8), CROWD_ITEMS - count);
            char what[9] = "";

            for (unsigned i = 0; i < more; i++) {
                what[i] = letters[io_below(&c->seed, 4)];
            }
            add(c->worker, c->from + count, what);
            count += more;
            if (io_below(&c->seed, 2) == 0) {
                blkrepl__file_pool_note_guest(c->worker->pool);
            }
            (void)blkrepl__file_pool_help(c->worker->pool);
        }
        for (unsigned i = 0; i < CROWD_ITEMS; i++) {
            io_wait(&c->worker->requests[c->from + i]);
        }
        pthread_mutex_lock(&c->worker->lock);
        c->worker->begun = 0;
        pthread_mutex_unlock(&c->worker->lock);
    }
    return NULL;
}

static bool crowd_run(struct pool_client *client, blkrepl_io *io, bool may_block)
{
    (void)client;
    if (!may_block && (io->id >> 8) % 4 == 0) {
        return false;
    }
    io_done(io_context(), io->id, 0);
    return true;
}

static void file_pool_serves_many_threads(void **state)
{
    pthread_t threads[CROWD];
    struct crowd crowd[CROWD];
    struct worker w;

    (void)state;
    set_up(&w, 3);
    w.client.run = crowd_run;
    for (unsigned i = 0; i < CROWD; i++) {
        crowd[i] = (struct crowd){.worker = &w, .from = i * CROWD_ITEMS, .seed = i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_member, &crowd[i]), 0);
    }
    for (unsigned i = 0; i < CROWD; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(stats(&w).queued, 0);
    wait_sleeping(&w, stats(&w).threads);
    tear_down(&w);
}

/* ---- Creation ------------------------------------------------------------------------ */

static void *no_memory(void *user, size_t bytes)
{
    (void)user;
    (void)bytes;
    return NULL;
}

static void file_pool_without_memory_is_not_created(void **state)
{
    struct file_pool *pool;
    struct alloc alloc;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, NULL), 0);
    alloc.hooks.zalloc = no_memory;
    assert_int_equal(blkrepl__file_pool_create(&alloc, 0, &pool), -ENOMEM);
    blkrepl__file_pool_free(NULL);
}

static void file_pool_by_default_has_at_most_four_threads(void **state)
{
    struct worker w;

    (void)state;
    set_up(&w, 0);
    hold(&w, true);
    add(&w, 0, "abcdefghi");
    wait_begun(&w, 1);
    assert_in_range(stats(&w).threads, 1, 4);
    hold(&w, false);
    wait_all(&w, 0, 9);
    tear_down(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_pool_starts_no_thread_before_it_is_needed),
        cmocka_unit_test(file_pool_does_guest_then_writes_then_reads),
        cmocka_unit_test(file_pool_wakes_no_more_than_needed),
        cmocka_unit_test(file_pool_leaves_room_for_the_guest),
        cmocka_unit_test(file_pool_forgets_a_quiet_guest),
        cmocka_unit_test(file_pool_of_one_does_both),
        cmocka_unit_test(file_pool_helper_does_background_only),
        cmocka_unit_test(file_pool_helper_leaves_what_would_block),
        cmocka_unit_test(file_pool_cancels_what_is_queued),
        cmocka_unit_test(file_pool_works_without_threads),
#ifdef __linux__
        cmocka_unit_test(file_pool_goes_on_with_the_threads_it_gets),
        cmocka_unit_test(file_pool_without_a_lock_is_not_created),
        cmocka_unit_test(file_pool_counts_the_cpus),
#endif
        cmocka_unit_test(file_pool_serves_many_threads),
        cmocka_unit_test(file_pool_without_memory_is_not_created),
        cmocka_unit_test(file_pool_by_default_has_at_most_four_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
