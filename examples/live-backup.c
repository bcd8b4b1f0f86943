/* SPDX-License-Identifier: MIT */
/* live-backup.c - back up a disk image while something writes to it.
 *
 *     live-backup [options] SOURCE TARGET        (--help tells the options)
 *
 * A program of use by itself, and the largest example: a context, two file
 * images, a backup job, and, if asked for, a built-in guest whose threads write
 * to the source through the library meanwhile.
 *
 * The main thread polls.  It is the only one that runs callbacks; a guest
 * thread gives a write to the library and sleeps until its callback has said
 * how it went.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#define NS_PER_S 1000000000u
#define POLL_NS 100000000u /* a signal or a redraw waits no longer than this */
#define BLOCK_BYTES 4096u
#define WRITERS_MAX 256u

enum exit_code {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_CANCELLED = 3
};

struct settings {
    const char *source;
    const char *target;
    const char *report; /* NULL: none */
    uint64_t speed;     /* bytes per second; 0: unlimited */
    unsigned writers;   /* 0: no guest */
    bool detect_zeroes;
    bool quiet;
};

/* One thread of the guest, with at most one write in flight. */
struct writer {
    struct guest *guest;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t answered;
    int result; /* of the write in flight; 1 until there is one */
    int error;  /* that ended this writer */
    uint64_t error_offset;
    uint64_t random;
    uint64_t slowest_ns;
    atomic_ulong writes; /* read by the progress display */
};

struct guest {
    blkrepl_context *ctx;
    blkrepl_image *disk;
    uint64_t blocks; /* of the disk */
    uint64_t start_ns;
    uint64_t end_ns;
    unsigned count;
    atomic_bool stop;
    atomic_uint running;
    struct writer writers[WRITERS_MAX];
};

struct progress {
    bool terminal; /* redraw one line; otherwise print one now and then */
    bool quiet;
    bool drawn;
    unsigned percent_shown; /* in the last line */
    uint64_t shown_ns;
    uint64_t rated_ns; /* when the rate was last looked at, and what was done then */
    uint64_t rated_bytes;
    double rate; /* bytes per second, smoothed */
};

static volatile sig_atomic_t interrupted;

/* ---- Small things ------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("live-backup: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

/* A number of bytes for people, e.g. "1.5 GiB"; returns out. */
static const char *human(char out[24], double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;

    while (bytes >= 1023.95 && unit < 6) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, 24, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

/* A duration for people, e.g. "4:05" or "1:00:00"; returns out. */
static const char *clock_text(char out[24], double seconds)
{
    unsigned s = seconds < 359999 ? (unsigned)(seconds + 0.5) : 359999;

    if (s < 3600) {
        snprintf(out, 24, "%u:%02u", s / 60, s % 60);
    } else {
        snprintf(out, 24, "%u:%02u:%02u", s / 3600, s / 60 % 60, s % 60);
    }
    return out;
}

/* The first signal asks for a clean end; the second one gets the default: the end. */
static void on_signal(int number)
{
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupted = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- The command line ---------------------------------------------------------------------- */

static const char help[] =
    "usage: live-backup [options] SOURCE TARGET\n"
    "\n"
    "Copy the disk image SOURCE to TARGET as it is at this moment.  TARGET is created,\n"
    "or overwritten; if it is larger than SOURCE, the rest of it is left alone.\n"
    "\n"
    "  -w, --writers N       a built-in guest: N threads (1 to 256) overwrite random 4 KiB\n"
    "                        blocks of SOURCE through the library while it is copied.\n"
    "                        THIS DESTROYS THE CONTENTS OF SOURCE; TARGET gets what was\n"
    "                        there before\n"
    "  -s, --speed BYTES     copy at most this much per second; K, M, G: KiB, MiB, GiB\n"
    "  -z, --detect-zeroes   do not store zeroes, make holes where TARGET can have them\n"
    "  -r, --report FILE     write the figures of the summary to FILE, as key=value lines\n"
    "  -q, --quiet           print nothing but errors\n"
    "  -h, --help            print this\n"
    "  -V, --version         print the version of the library\n"
    "\n"
    "The first SIGINT (Ctrl-C) or SIGTERM cancels, a second one ends the program at once.\n"
    "Exit codes: 0 done, 1 failed, 2 usage, 3 cancelled; TARGET is usable only after 0.\n";

/* "64M": digits and at most one unit. */
static bool parse_bytes(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    unsigned long long value;
    unsigned shift = 0;
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    value = strtoull(text, &end, 10);
    for (unsigned i = 0; units[i] != '\0' && *end != '\0'; i++) {
        if (*end == units[i] || *end == units[i] - 'A' + 'a') {
            shift = 10 * (i + 1);
            end++;
            break;
        }
    }
    if (errno != 0 || *end != '\0' || value > UINT64_MAX >> shift) {
        return false;
    }
    *out = (uint64_t)value << shift;
    return true;
}

static bool parse_writers(const char *text, unsigned *out)
{
    uint64_t value;

    if (!parse_bytes(text, &value) || value < 1 || value > WRITERS_MAX) {
        return false;
    }
    *out = (unsigned)value;
    return true;
}

/* One option.  False if its argument is no good. */
static bool settings_option(struct settings *settings, int option)
{
    switch (option) {
    case 'w': return parse_writers(optarg, &settings->writers);
    case 's': return parse_bytes(optarg, &settings->speed);
    case 'r': settings->report = optarg; return true;
    case 'z': settings->detect_zeroes = true; return true;
    case 'q': settings->quiet = true; return true;
    case 'h': fputs(help, stdout); exit(EXIT_DONE);
    case 'V': printf("live-backup, libblkrepl %s\n", blkrepl_version()); exit(EXIT_DONE);
    default: return false;
    }
}

/* Does not return if the command line is wrong. */
static void settings_parse(struct settings *settings, int argc, char **argv)
{
    static const struct option options[] = {
        {"writers", required_argument, NULL, 'w'}, {"speed", required_argument, NULL, 's'},
        {"detect-zeroes", no_argument, NULL, 'z'}, {"report", required_argument, NULL, 'r'},
        {"quiet", no_argument, NULL, 'q'},         {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},       {NULL, 0, NULL, 0}};
    int option;

    while ((option = getopt_long(argc, argv, "w:s:zr:qhV", options, NULL)) != -1) {
        if (settings_option(settings, option)) {
            continue;
        }
        if (option != '?') {
            complain("bad argument '%s' of option -%c", optarg, option);
        }
        fputs("Try 'live-backup --help'.\n", stderr);
        exit(EXIT_USAGE);
    }
    if (argc - optind != 2) {
        complain("%s", argc - optind < 2 ? "SOURCE and TARGET are needed" : "too many arguments");
        fputs("Try 'live-backup --help'.\n", stderr);
        exit(EXIT_USAGE);
    }
    settings->source = argv[optind];
    settings->target = argv[optind + 1];
}

/* ---- The guest ----------------------------------------------------------------------------- */

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
static bool guest_start(struct guest *guest, unsigned count)
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

/* Let every writer finish its write; their callbacks run in these polls. */
static void guest_stop(struct guest *guest)
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

static uint64_t guest_writes(const struct guest *guest)
{
    uint64_t writes = 0;

    for (unsigned i = 0; i < guest->count; i++) {
        writes += guest->writers[i].writes;
    }
    return writes;
}

static uint64_t guest_slowest_ns(const struct guest *guest)
{
    uint64_t slowest = 0;

    for (unsigned i = 0; i < guest->count; i++) {
        if (guest->writers[i].slowest_ns > slowest) {
            slowest = guest->writers[i].slowest_ns;
        }
    }
    return slowest;
}

static double guest_seconds(const struct guest *guest)
{
    uint64_t end = guest->end_ns ? guest->end_ns : now_ns();

    return (double)(end - guest->start_ns) / NS_PER_S;
}

/* ---- Progress ------------------------------------------------------------------------------ */

enum part {
    PART_SIZES,
    PART_RATE,
    PART_ETA,
    PART_GUEST,
    PART_COUNT
};

static void progress_start(struct progress *progress, bool quiet)
{
    const char *term = getenv("TERM");

    progress->quiet = quiet;
    progress->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    progress->shown_ns = progress->rated_ns = now_ns();
}

/* The rate of the last two seconds or so. */
static void progress_rate(struct progress *progress, uint64_t bytes)
{
    uint64_t now = now_ns();
    double seconds = (double)(now - progress->rated_ns) / NS_PER_S;

    if (seconds <= 0) {
        return;
    }
    double rate = (double)(bytes - progress->rated_bytes) / seconds;
    double weight = progress->rated_bytes == 0 || seconds > 2 ? 1 : seconds / 2;
    progress->rate += (rate - progress->rate) * weight;
    progress->rated_ns = now;
    progress->rated_bytes = bytes;
}

static void progress_parts(const struct progress *progress, const blkrepl_job_info *info,
                           const struct guest *guest, char parts[PART_COUNT][64])
{
    uint64_t left = info->bytes_total - info->bytes_done;
    char a[24], b[24];

    snprintf(parts[PART_SIZES], 64, "  %10s of %s", human(a, (double)info->bytes_done),
             human(b, (double)info->bytes_total));
    snprintf(parts[PART_RATE], 64, "  %10s/s", human(a, progress->rate));
    snprintf(parts[PART_ETA], 64, "  ETA %s",
             progress->rate > 0 ? clock_text(a, (double)left / progress->rate) : "-:--");
    parts[PART_GUEST][0] = '\0';
    if (guest->count > 0) {
        snprintf(parts[PART_GUEST], 64, "  guest %.0f writes/s",
                 (double)guest_writes(guest) / guest_seconds(guest));
    }
}

static unsigned terminal_columns(void)
{
    struct winsize size = {0};

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* Redraw the line: what is important first, and a bar in what is left of the width. */
static void progress_draw(unsigned percent, char parts[PART_COUNT][64])
{
    static const enum part by_importance[] = {PART_RATE, PART_ETA, PART_SIZES, PART_GUEST};
    static const char full[] = "==================================================";
    size_t room = terminal_columns() - 1; /* the last column would wrap */
    size_t used = 5;

    for (unsigned i = 0; i < PART_COUNT; i++) {
        size_t length = strlen(parts[by_importance[i]]);

        if (used + length <= room) {
            used += length;
        } else {
            parts[by_importance[i]][0] = '\0';
        }
    }
    fprintf(stderr, "\r%3u %%", percent);
    if (room >= used + 13) {
        size_t width = room - used - 3 < sizeof full - 1 ? room - used - 3 : sizeof full - 1;
        int filled = (int)(width * percent / 100);

        fprintf(stderr, " [%.*s%s%*s]", filled, full, percent < 100 ? ">" : "",
                (int)width - filled - (percent < 100), "");
    }
    for (unsigned i = 0; i < PART_COUNT; i++) {
        fputs(parts[i], stderr);
    }
    fputs("\033[K", stderr);
    fflush(stderr);
}

/* Elsewhere than on a terminal: a line for every tenth, but not two in a second, and one after
 * ten seconds in any case. */
static void progress_line(struct progress *progress, unsigned percent, char parts[PART_COUNT][64])
{
    uint64_t since = progress->rated_ns - progress->shown_ns;

    if (since >= 10ull * NS_PER_S ||
        (since >= NS_PER_S && percent / 10 > progress->percent_shown / 10)) {
        fprintf(stderr, "%3u %%%s%s%s%s\n", percent, parts[PART_SIZES], parts[PART_RATE],
                parts[PART_ETA], parts[PART_GUEST]);
        progress->shown_ns = progress->rated_ns;
        progress->percent_shown = percent;
    }
}

static void progress_show(struct progress *progress, const blkrepl_job_info *info,
                          const struct guest *guest)
{
    double part = info->bytes_total ? (double)info->bytes_done / (double)info->bytes_total : 1;
    unsigned percent = (unsigned)(100 * part);
    char parts[PART_COUNT][64];

    if (progress->quiet) {
        return;
    }
    progress_rate(progress, info->bytes_done);
    progress_parts(progress, info, guest, parts);
    if (progress->terminal) {
        progress_draw(percent, parts);
        progress->drawn = true;
    } else {
        progress_line(progress, percent, parts);
    }
}

/* The last state stays on the screen, above the summary. */
static void progress_end(struct progress *progress, const blkrepl_job_info *info,
                         const struct guest *guest)
{
    if (progress->drawn) {
        progress_show(progress, info, guest);
        fputc('\n', stderr);
    }
}

/* ---- The backup ---------------------------------------------------------------------------- */

struct backup {
    struct settings settings;
    FILE *report;
    blkrepl_context *ctx;
    blkrepl_image *source;
    blkrepl_image *target;
    blkrepl_job *job;
    bool concluded; /* set by the job's last event */
    blkrepl_job_info info;
    uint64_t start_ns;
    uint64_t end_ns;
    struct guest guest;
    struct progress progress;
};

static void on_event(void *user, const blkrepl_event *event)
{
    struct backup *backup = user;

    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        backup->concluded = true;
    }
}

/* Open everything that can be wrong before anything is touched. */
static bool backup_open(struct backup *backup)
{
    const struct settings *settings = &backup->settings;
    blkrepl_context_options context = {.struct_size = sizeof context,
                                       .on_event = {.fn = on_event, .user = backup}};
    blkrepl_image_options source = {.struct_size = sizeof source,
                                    .flags = settings->writers ? 0 : BLKREPL_IMAGE_READ_ONLY,
                                    .name = "source"};
    blkrepl_image_options target = {.struct_size = sizeof target, .name = "target"};
    blkrepl_file_options create = {.struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE};
    blkrepl_image_info disk = {.struct_size = sizeof disk};

    if (settings->report && !(backup->report = fopen(settings->report, "w"))) {
        complain("%s: %s", settings->report, strerror(errno));
        return false;
    }
    if (blkrepl_context_create(&context, &backup->ctx) < 0 ||
        blkrepl_image_open_file(backup->ctx, settings->source, NULL, &source, &backup->source) <
            0) {
        complain("%s", blkrepl_error_message());
        return false;
    }
    blkrepl_image_query(backup->source, &disk);
    if (settings->writers > 0 && disk.bytes < BLOCK_BYTES) {
        complain("%s: too small for a guest that writes %u bytes", settings->source, BLOCK_BYTES);
        return false;
    }
    create.bytes = disk.bytes;
    if (blkrepl_image_open_file(backup->ctx, settings->target, &create, &target, &backup->target) <
        0) {
        complain("%s", blkrepl_error_message());
        return false;
    }
    backup->guest.ctx = backup->ctx;
    backup->guest.disk = backup->source;
    backup->guest.blocks = disk.bytes / BLOCK_BYTES;
    return true;
}

/* The point in time is inside blkrepl_backup_start(); the guest begins right after it. */
static bool backup_start(struct backup *backup)
{
    const struct settings *settings = &backup->settings;
    blkrepl_backup_options options = {
        .struct_size = sizeof options,
        .flags = settings->detect_zeroes ? BLKREPL_BACKUP_DETECT_ZEROES : 0,
        .name = "backup",
        .speed_bytes_per_sec = settings->speed,
    };

    backup->start_ns = now_ns();
    if (blkrepl_backup_start(backup->source, backup->target, &options, &backup->job) < 0) {
        complain("cannot copy %s to %s: %s", settings->source, settings->target,
                 blkrepl_error_message());
        return false;
    }
    if (settings->writers > 0 && !guest_start(&backup->guest, settings->writers)) {
        complain("could start %u guest threads only", backup->guest.count);
    }
    return true;
}

/* Poll until the job has ended, show progress, see to signals. */
static void backup_watch(struct backup *backup)
{
    uint64_t shown_ns = now_ns();
    bool cancelled = false;

    progress_start(&backup->progress, backup->settings.quiet);
    while (!backup->concluded) {
        blkrepl_poll(backup->ctx, 0, POLL_NS);
        if (interrupted && !cancelled) {
            blkrepl_job_cancel(backup->job, 0);
            cancelled = true;
        }
        if (now_ns() - shown_ns >= POLL_NS) {
            shown_ns = now_ns();
            blkrepl_job_query(backup->job, &backup->info);
            progress_show(&backup->progress, &backup->info, &backup->guest);
        }
    }
    backup->end_ns = now_ns();
    guest_stop(&backup->guest);
    blkrepl_job_query(backup->job, &backup->info);
    progress_end(&backup->progress, &backup->info, &backup->guest);
}

static void backup_close(struct backup *backup)
{
    blkrepl_job_free(backup->job);
    blkrepl_image_close(backup->target);
    blkrepl_image_close(backup->source);
    while (blkrepl_context_free(backup->ctx) == -EBUSY) {
        blkrepl_poll(backup->ctx, 0, POLL_NS / 100);
    }
}

/* ---- What it came to ----------------------------------------------------------------------- */

static double backup_seconds(const struct backup *backup)
{
    return (double)(backup->end_ns - backup->start_ns) / NS_PER_S;
}

static void print_summary(const struct backup *backup)
{
    const blkrepl_job_info *info = &backup->info;
    const struct guest *guest = &backup->guest;
    double bytes = (double)info->bytes_done, seconds = backup_seconds(backup);
    char a[24], b[24];

    printf("copied   %s in %.2f s, %s per second\n", human(a, bytes), seconds,
           human(b, bytes / seconds));
    if (info->zero_bytes > 0) {
        printf("zeroes   %s of that were holes or zeroes\n", human(a, (double)info->zero_bytes));
    }
    if (guest->count == 0) {
        return;
    }
    printf("guest    %" PRIu64 " writes of %u bytes, %.0f per second, the slowest took %.1f ms\n",
           guest_writes(guest), BLOCK_BYTES, (double)guest_writes(guest) / guest_seconds(guest),
           (double)guest_slowest_ns(guest) / 1e6);
    printf("         %" PRIu64 " of them had to wait until the old data were saved: %" PRIu64
           " copies, %s\n",
           info->guest_waits_count, info->guest_copies_count,
           human(a, (double)info->guest_copies_bytes));
}

static bool write_report(const struct backup *backup)
{
    static const char *const results[] = {"unknown", "done", "failed", "cancelled"};
    const blkrepl_job_info *info = &backup->info;
    FILE *f = backup->report;

    fprintf(f, "result=%s\n", results[info->result < 4 ? info->result : 0]);
    fprintf(f, "bytes_done=%" PRIu64 "\n", info->bytes_done);
    fprintf(f, "bytes_total=%" PRIu64 "\n", info->bytes_total);
    fprintf(f, "zero_bytes=%" PRIu64 "\n", info->zero_bytes);
    fprintf(f, "seconds=%.6f\n", backup_seconds(backup));
    fprintf(f, "guest_copies_count=%" PRIu64 "\n", info->guest_copies_count);
    fprintf(f, "guest_copies_bytes=%" PRIu64 "\n", info->guest_copies_bytes);
    fprintf(f, "guest_waits_count=%" PRIu64 "\n", info->guest_waits_count);
    fprintf(f, "guest_writers=%u\n", backup->guest.count);
    fprintf(f, "guest_writes_count=%" PRIu64 "\n", guest_writes(&backup->guest));
    fprintf(f, "guest_write_bytes=%u\n", BLOCK_BYTES);
    fprintf(f, "guest_slowest_ns=%" PRIu64 "\n", guest_slowest_ns(&backup->guest));
    fprintf(f, "error=%" PRId32 "\n", info->error);
    bool good = !ferror(f);
    if (fclose(f) != 0 || !good) {
        complain("%s: %s", backup->settings.report, strerror(errno));
        return false;
    }
    return true;
}

/* A guest that could not write is told of, whatever became of the backup. */
static bool guest_was_well(const struct backup *backup)
{
    for (unsigned i = 0; i < backup->guest.count; i++) {
        const struct writer *writer = &backup->guest.writers[i];

        if (writer->error < 0) {
            complain("%s: guest write at %" PRIu64 " failed: %s", backup->settings.source,
                     writer->error_offset, blkrepl_error_text(writer->error));
            return false;
        }
    }
    return backup->guest.count == backup->settings.writers;
}

static enum exit_code backup_verdict(const struct backup *backup)
{
    const blkrepl_job_info *info = &backup->info;
    const struct settings *settings = &backup->settings;
    char a[24], b[24];

    if (info->result == BLKREPL_RESULT_CANCELLED) {
        complain("cancelled after %s of %s; %s is incomplete", human(a, (double)info->bytes_done),
                 human(b, (double)info->bytes_total), settings->target);
        return EXIT_CANCELLED;
    }
    if (info->result != BLKREPL_RESULT_DONE) {
        complain("%s: %s",
                 info->error_side == BLKREPL_SIDE_SOURCE ? settings->source : settings->target,
                 info->message);
        complain("failed after %s of %s; %s is incomplete", human(a, (double)info->bytes_done),
                 human(b, (double)info->bytes_total), settings->target);
        return EXIT_FAILED;
    }
    if (!settings->quiet) {
        print_summary(backup);
    }
    return guest_was_well(backup) ? EXIT_DONE : EXIT_FAILED;
}

int main(int argc, char **argv)
{
    static struct backup backup = {.info = {.struct_size = sizeof backup.info}};
    enum exit_code code = EXIT_FAILED;

    settings_parse(&backup.settings, argc, argv);
    catch_signals();
    if (backup_open(&backup) && backup_start(&backup)) {
        backup_watch(&backup);
        code = backup_verdict(&backup);
        if (backup.report && !write_report(&backup)) {
            code = EXIT_FAILED;
        }
    }
    backup_close(&backup);
    if (fflush(stdout) != 0) {
        complain("standard output: %s", strerror(errno));
        code = code == EXIT_DONE ? EXIT_FAILED : code;
    }
    return (int)code;
}
