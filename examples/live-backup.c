/* SPDX-License-Identifier: MIT */
/* live-backup.c - back up a disk image while something writes to it.
 *
 *     live-backup [options] SOURCE TARGET        (--help tells the options)
 *
 * A program of use by itself, and the largest example: a context, two file
 * images, a backup job, and, if asked for, a built-in guest whose threads write
 * to the source through the library meanwhile.  With a bitmap, which lives in a file
 * (live-backup/map.c) while the program does not run, the next backup is incremental.
 *
 * The main thread polls.  It is the only one that runs callbacks; a guest
 * thread gives a write to the library and sleeps until its callback has said
 * how it went.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#include "live-backup/guest.h"
#include "live-backup/map.h"
#include "live-backup/progress.h"

enum exit_code {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_CANCELLED = 3
};

struct settings {
    const char *source;
    const char *target;
    const char *report;    /* NULL: none */
    const char *bitmap;    /* the same */
    const char *spill;     /* the same */
    uint64_t speed;        /* bytes per second; 0: unlimited */
    uint64_t resume_after; /* seconds; 0: when the user says so */
    uint32_t on_error;     /* BLKREPL_ON_ERROR_*; 0: report */
    unsigned writers;      /* 0: no guest */
    bool incremental;
    bool detect_zeroes;
    bool quiet;
};

static volatile sig_atomic_t interrupted;
static volatile sig_atomic_t told_to_resume;

/* ---- Small things ------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("live-backup: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
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

static void on_resume_signal(int number)
{
    (void)number;
    told_to_resume = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct sigaction resume = {.sa_handler = on_resume_signal};

    sigemptyset(&action.sa_mask);
    sigemptyset(&resume.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &resume, NULL);
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
    "  -b, --bitmap FILE     keep a map of what the guest writes after the backup's point in\n"
    "                        time in FILE, for the next one, an incremental backup\n"
    "  -i, --incremental     copy only what is in that map; TARGET has to be what the last\n"
    "                        backup has made.  If this one fails the map still holds it all\n"
    "  -e, --on-error WHAT   when SOURCE cannot be read or TARGET cannot be written: report\n"
    "                        (the backup fails, default), stop (it pauses; try again with\n"
    "                        Enter or SIGUSR1), enospc (the same if TARGET is full)\n"
    "      --resume-after N  try again by itself after N seconds\n"
    "      --spill FILE      put old data that the guest overwrites into FILE first, and from\n"
    "                        there to TARGET: a slow TARGET does not hold up the guest.  FILE\n"
    "                        is new, sparse, on a fast disk, and gone when the program ends\n"
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

static bool parse_on_error(const char *text, uint32_t *out)
{
    static const char *const words[] = {
        [BLKREPL_ON_ERROR_REPORT] = "report",
        [BLKREPL_ON_ERROR_STOP] = "stop",
        [BLKREPL_ON_ERROR_ENOSPC] = "enospc",
    };

    for (uint32_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (words[i] && strcmp(text, words[i]) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

enum long_option {
    OPTION_RESUME_AFTER = 1000,
    OPTION_SPILL
};

/* One option.  False if its argument is no good. */
static bool settings_option(struct settings *settings, int option)
{
    switch (option) {
    case 'w': return parse_writers(optarg, &settings->writers);
    case 's': return parse_bytes(optarg, &settings->speed);
    case 'e': return parse_on_error(optarg, &settings->on_error);
    case OPTION_RESUME_AFTER: return parse_bytes(optarg, &settings->resume_after);
    case 'r': settings->report = optarg; return true;
    case 'b': settings->bitmap = optarg; return true;
    case OPTION_SPILL: settings->spill = optarg; return true;
    case 'i': settings->incremental = true; return true;
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
        {"writers", required_argument, NULL, 'w'},
        {"speed", required_argument, NULL, 's'},
        {"bitmap", required_argument, NULL, 'b'},
        {"incremental", no_argument, NULL, 'i'},
        {"on-error", required_argument, NULL, 'e'},
        {"resume-after", required_argument, NULL, OPTION_RESUME_AFTER},
        {"spill", required_argument, NULL, OPTION_SPILL},
        {"detect-zeroes", no_argument, NULL, 'z'},
        {"report", required_argument, NULL, 'r'},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0}};
    int option;

    while ((option = getopt_long(argc, argv, "w:s:b:ie:zr:qhV", options, NULL)) != -1) {
        if (settings_option(settings, option)) {
            continue;
        }
        if (option != '?') {
            complain("bad argument '%s'", optarg);
        }
        fputs("Try 'live-backup --help'.\n", stderr);
        exit(EXIT_USAGE);
    }
    if (argc - optind != 2) {
        complain("%s", argc - optind < 2 ? "SOURCE and TARGET are needed" : "too many arguments");
        fputs("Try 'live-backup --help'.\n", stderr);
        exit(EXIT_USAGE);
    }
    if (settings->incremental && !settings->bitmap) {
        complain("--incremental needs the --bitmap of the last backup");
        exit(EXIT_USAGE);
    }
    settings->source = argv[optind];
    settings->target = argv[optind + 1];
}

/* ---- The backup ---------------------------------------------------------------------------- */

struct backup {
    struct settings settings;
    FILE *report;
    blkrepl_context *ctx;
    blkrepl_image *source;
    blkrepl_image *target;
    blkrepl_image *spill; /* NULL: none */
    blkrepl_job *job;
    struct map map;
    bool changed;      /* set by an event: its state is worth a look */
    bool concluded;    /* set by the job's last event */
    uint64_t retry_ns; /* paused by an error: when to try again; 0: not paused */
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
    backup->changed = true;
}

/* The file has its name for a moment only: when the program ends it is gone, whatever happens. */
static bool spill_open(struct backup *backup, uint64_t bytes)
{
    const blkrepl_image_options spill = {.struct_size = sizeof spill, .name = "spill"};
    const blkrepl_file_options create = {.struct_size = sizeof create,
                                         .flags = BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE,
                                         .bytes = bytes};
    const char *path = backup->settings.spill;

    if (path && blkrepl_image_open_file(backup->ctx, path, &create, &spill, &backup->spill) < 0) {
        complain("%s", blkrepl_error_message());
        return false;
    }
    return !path || unlink(path) == 0;
}

/* What the disk's bitmap is for is decided here: a full backup may go without. */
static bool bitmap_open(struct backup *backup)
{
    const struct settings *settings = &backup->settings;

    if (settings->bitmap && !map_open(&backup->map, backup->source, settings->bitmap)) {
        complain("%s", map_error);
        return false;
    }
    if (settings->incremental && !backup->map.loaded) {
        complain("%s: there is no map, so this backup must be a full one", settings->bitmap);
        return false;
    }
    return true;
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
    return spill_open(backup, disk.bytes) && bitmap_open(backup);
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
        .sync = settings->incremental ? BLKREPL_SYNC_INCREMENTAL : BLKREPL_SYNC_FULL,
        .bitmap = backup->map.bitmap,
        .bitmap_mode = backup->map.bitmap ? BLKREPL_BITMAP_ON_SUCCESS : 0,
        .on_source_error = settings->on_error,
        .on_target_error = settings->on_error,
        .spill = backup->spill,
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

/* Has the user pressed Enter? */
static bool enter_pressed(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[256];

    return isatty(STDIN_FILENO) && poll(&input, 1, 0) == 1 &&
           read(STDIN_FILENO, line, sizeof line) > 0;
}

static const char *failing_file(const struct backup *backup)
{
    switch (backup->info.error_side) {
    case BLKREPL_SIDE_SOURCE: return backup->settings.source;
    case BLKREPL_SIDE_SPILL: return backup->settings.spill;
    default: return backup->settings.target;
    }
}

static void tell_of_pause(struct backup *backup)
{
    const struct settings *settings = &backup->settings;
    const blkrepl_job_info *info = &backup->info;
    char a[24], b[24];

    progress_end(&backup->progress, info, &backup->guest);
    complain("%s: %s", failing_file(backup), info->message);
    complain("paused after %s of %s; what the guest overwrites is saved all the same",
             human(a, (double)info->bytes_done), human(b, (double)info->bytes_total));
    if (settings->resume_after > 0) {
        complain("it is tried again in %" PRIu64 " s", settings->resume_after);
    } else {
        complain("see to it, then press Enter, or send SIGUSR1 to process %ld", (long)getpid());
    }
}

/* An error has paused the job, or nothing of the kind.  Resume makes it try again what has failed,
 * and nothing that was done is done twice. */
static void backup_see_to_pause(struct backup *backup)
{
    uint64_t wait = backup->settings.resume_after;

    blkrepl_job_query(backup->job, &backup->info);
    backup->changed = false;
    if (!(backup->info.flags & BLKREPL_JOB_FLAG_ERROR_PAUSED)) {
        backup->retry_ns = 0;
    } else if (backup->retry_ns == 0) {
        told_to_resume = 0;
        backup->retry_ns = wait > 0 ? now_ns() + wait * NS_PER_S : UINT64_MAX;
        tell_of_pause(backup);
    }
}

static void backup_resume_when_told(struct backup *backup)
{
    if (backup->retry_ns != 0 &&
        (now_ns() >= backup->retry_ns || told_to_resume || enter_pressed())) {
        backup->retry_ns = 0;
        complain("trying again");
        blkrepl_job_resume(backup->job);
    }
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
        if (backup->changed) {
            backup_see_to_pause(backup);
        }
        backup_resume_when_told(backup);
        if (backup->retry_ns == 0 && now_ns() - shown_ns >= POLL_NS) {
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

/* A map that was loaded is good in any case: if the backup has not come to its end, it holds what
 * it held and what was written since.  A new one is worth something only with its full backup. */
static bool backup_save_map(const struct backup *backup)
{
    bool done = backup->info.result == BLKREPL_RESULT_DONE;

    if (!backup->map.bitmap || !(backup->map.loaded || done)) {
        return true;
    }
    if (!map_save(&backup->map, backup->settings.bitmap)) {
        complain("%s", map_error);
        return false;
    }
    return true;
}

static void backup_close(struct backup *backup)
{
    blkrepl_job_free(backup->job);
    blkrepl_bitmap_free(backup->map.bitmap);
    blkrepl_image_close(backup->spill);
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
    if (info->spilled_bytes_total > 0) {
        printf("spill    %s went by way of it\n", human(a, (double)info->spilled_bytes_total));
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
    fprintf(f, "spilled_bytes_total=%" PRIu64 "\n", info->spilled_bytes_total);
    fprintf(f, "error_count=%" PRIu64 "\n", info->error_count);
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
        complain("%s: %s", failing_file(backup), info->message);
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
    if (!backup_save_map(&backup)) {
        code = EXIT_FAILED;
    }
    backup_close(&backup);
    if (fflush(stdout) != 0) {
        complain("standard output: %s", strerror(errno));
        code = code == EXIT_DONE ? EXIT_FAILED : code;
    }
    return (int)code;
}
