/* SPDX-License-Identifier: MIT */
/* sys.c - which system call fails, and how.
 *
 * A hard failure is one that the library cannot get over by trying again or in
 * another way: somebody has to be told of it. */
#include "sys.h"

#include <pthread.h>

#define FDS_MAX 1024
#define TRACE_MAX 65536

enum sys_weight {
    SOFT,      /* a hint that was not to be had */
    HARD,      /* the request, or the call, fails */
    HARD_OPEN, /* while an image is being opened */
};

struct sys_code {
    int err;
    bool passing; /* tried again, or done in another way: nobody is told */
    bool once;    /* for ever it would hang any program */
};

struct sys_entry {
    enum sys_weight weight;
    int told; /* what the library makes of any code; 0: the code */
    struct sys_code codes[FAULT_CODES_MAX];
};

#define INTERRUPTED                                                                                \
    {                                                                                              \
        EINTR, true, true                                                                          \
    }
#define REFUSED(err)                                                                               \
    {                                                                                              \
        err, true, false                                                                           \
    }

static const struct sys_entry table[SYS_KINDS] = {
    [SYS_OPEN] = {HARD, 0, {{EMFILE, false, false}, {EIO, false, false}, INTERRUPTED}},
    [SYS_OPEN_SEED] = {HARD, 0, {{EMFILE, false, false}, {ENOENT, false, false}}},
    [SYS_CLOSE] = {SOFT, 0, {{EIO, true, false}, {EINTR, true, false}}},
    [SYS_READ] = {SOFT, 0, {INTERRUPTED, {EAGAIN, true, true}}},
    [SYS_SEED] = {HARD, -EIO, {{EIO, false, false}, {SYS_ZERO, false, false}}},
    [SYS_WRITE] = {SOFT, 0, {INTERRUPTED}},
    [SYS_POLL] = {SOFT, 0, {INTERRUPTED}},
    [SYS_EVENTFD] = {HARD, 0, {{EMFILE, false, false}, {ENOMEM, false, false}}},
    [SYS_FCNTL] = {HARD_OPEN, 0, {{EIO, false, false}}},
    [SYS_FSTAT] = {HARD_OPEN, 0, {{EIO, false, false}, {ENOMEM, false, false}}},
    [SYS_STAT] = {SOFT, 0, {{ENOENT, true, false}}},
    [SYS_FSTATFS] = {SOFT, 0, {REFUSED(ENOSYS), {EINTR, true, false}}},
    [SYS_FTRUNCATE] = {HARD, 0, {{EIO, false, false}, {ENOSPC, false, false}, INTERRUPTED}},
    [SYS_LSEEK] = {HARD_OPEN, 0, {REFUSED(EINVAL), REFUSED(EIO)}},
    [SYS_FALLOCATE] =
        {HARD, 0, {{EIO, false, false}, REFUSED(EOPNOTSUPP), INTERRUPTED, {ENOSPC, false, false}}},
    [SYS_IOCTL] = {HARD, 0, {{EIO, false, false}, REFUSED(ENOTTY), INTERRUPTED}},
    [SYS_MEASURE] = {SOFT, 0, {REFUSED(EIO), REFUSED(ENOTTY)}},
    [SYS_FDATASYNC] = {HARD, 0, {{EIO, false, false}, {ENOSPC, false, false}, INTERRUPTED}},
    [SYS_PREADV] =
        {HARD,
         0,
         {{EIO, false, false}, {SYS_SHORT, true, false}, INTERRUPTED, {SYS_ZERO, false, false}}},
    [SYS_PWRITEV] = {HARD,
                     0,
                     {{EIO, false, false},
                      {SYS_SHORT, true, false},
                      INTERRUPTED,
                      {SYS_ZERO, false, false},
                      {ENOSPC, false, false}}},
    [SYS_NOWAIT_READ] =
        {SOFT, 0, {REFUSED(EAGAIN), {SYS_SHORT, true, false}, REFUSED(EOPNOTSUPP), REFUSED(EIO)}},
    [SYS_NOWAIT_WRITE] =
        {SOFT, 0, {REFUSED(EAGAIN), {SYS_SHORT, true, false}, REFUSED(EOPNOTSUPP), REFUSED(EIO)}},
    [SYS_DSYNC] =
        {HARD,
         0,
         {{EIO, false, false}, {SYS_SHORT, true, false}, INTERRUPTED, REFUSED(EOPNOTSUPP)}},
    [SYS_PWRITE] =
        {HARD,
         0,
         {{EIO, false, false}, {SYS_SHORT, true, false}, INTERRUPTED, {SYS_ZERO, false, false}}},
    [SYS_COPY] = {SOFT,
                  0,
                  {REFUSED(EIO),
                   {SYS_SHORT, true, false},
                   INTERRUPTED,
                   {SYS_ZERO, true, false},
                   REFUSED(EXDEV)}},
    [SYS_THREAD] = {SOFT, 0, {REFUSED(EAGAIN)}},
    [SYS_MUTEX] = {HARD, -ENOMEM, {{ENOMEM, false, false}, {EAGAIN, false, false}}},
    [SYS_COND] = {HARD, -ENOMEM, {{ENOMEM, false, false}, {EAGAIN, false, false}}},
    [SYS_CPUS] = {SOFT, 0, {REFUSED(EPERM)}},
};

static pthread_mutex_t sys_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sys_files files;
static struct {
    char path[128];
    int medium;
} names[MEDIA_MAX];
static unsigned name_count;
static signed char fd_medium[FDS_MAX]; /* medium + 1 */
static bool fd_open[FDS_MAX];
static bool opening;
/* The kinds of the calls of the last run in which nothing failed. */
static unsigned char trace[TRACE_MAX];

void sys_start(void)
{
    files = (struct sys_files){.threads = true};
    name_count = 0;
    memset(fd_medium, 0, sizeof fd_medium);
}

void sys_files(const struct sys_files *wanted)
{
    files = *wanted;
}

const struct sys_files *sys_files_now(void)
{
    return &files;
}

void sys_medium(const char *path, int medium)
{
    REQUIRE(name_count < MEDIA_MAX, "scenario: too many files");
    snprintf(names[name_count].path, sizeof names[0].path, "%s", path);
    names[name_count++].medium = medium;
}

void sys_opening(bool begin)
{
    opening = begin;
}

void sys_closed(int fd)
{
    REQUIRE(fd >= 0 && fd < FDS_MAX && fd_open[fd], "descriptor %d is closed and was not open", fd);
    fd_open[fd] = false;
    fd_medium[fd] = 0;
}

void sys_check_closed(void)
{
    for (int fd = 0; fd < FDS_MAX; fd++) {
        REQUIRE(!fd_open[fd], "leaked: descriptor %d", fd);
    }
}

void sys_opened(const char *path, int fd)
{
    if (fd < 0 || fd >= FDS_MAX) {
        return;
    }
    fd_open[fd] = true;
    fd_medium[fd] = 0;
    for (unsigned i = 0; i < name_count; i++) {
        if (strcmp(names[i].path, path) == 0) {
            fd_medium[fd] = (signed char)(names[i].medium + 1);
        }
    }
}

static int medium_of(int fd)
{
    return fd >= 0 && fd < FDS_MAX ? fd_medium[fd] - 1 : -1;
}

int sys_medium_of(int fd)
{
    return medium_of(fd);
}

bool sys_durable(void)
{
    return files.tmpfs;
}

/* What is known of a call by its number alone. */
static const struct sys_code *code_of(enum sys_kind kind, bool on, unsigned wanted)
{
    const struct sys_code *codes = table[kind].codes;
    unsigned count = 0;

    while (count < FAULT_CODES_MAX && codes[count].err != 0) {
        count++;
    }
    if (!on) {
        return wanted < count ? &codes[wanted] : NULL;
    }
    for (unsigned i = 0; i < count; i++) {
        const struct sys_code *code = &codes[(wanted + i) % count];

        if (!code->once) {
            return code;
        }
    }
    return NULL;
}

bool sys_code_fits(uint64_t nth, unsigned code)
{
    return nth >= TRACE_MAX || code_of((enum sys_kind)trace[nth], false, code) != NULL;
}

static void sys_record(enum sys_kind kind, int fd, const struct sys_code *code)
{
    const struct sys_entry *entry = &table[kind];
    int told = code->err == SYS_ZERO ? -EIO : -code->err;

    fault_note();
    if (code->err == SYS_SHORT || code->err == EINTR) {
        return; /* the library has to go on by itself */
    }
    failure_add(&(struct failure){
        .medium = medium_of(fd),
        .code = entry->told != 0 ? entry->told : told,
        .bytes = UINT64_MAX,
        .hard =
            !code->passing && (entry->weight == HARD || (entry->weight == HARD_OPEN && opening)),
    });
}

void sys_refuses(int fd, int err)
{
    failure_add(&(struct failure){.medium = medium_of(fd), .code = -err, .bytes = UINT64_MAX});
}

int sys_verdict(enum sys_kind kind, int fd)
{
    const struct sys_code *code = NULL;

    pthread_mutex_lock(&sys_lock);
    bool due = fault_due(FAULT_SYS);
    uint64_t n = fault_calls(FAULT_SYS);
    if (fault_plan()->domain == FAULT_NONE && n < TRACE_MAX) {
        trace[n] = (unsigned char)kind;
    }
    if (due) {
        code = code_of(kind, fault_plan()->on, fault_plan()->code);
        if (code) {
            sys_record(kind, fd, code);
        }
    }
    pthread_mutex_unlock(&sys_lock);
    return code ? code->err : 0;
}
