/* SPDX-License-Identifier: MIT */
/* replay.c - the library's side of the differential test: a story on standard input.
 *
 *     blkrepl-replay <STORY
 *
 * Files are opened in the current folder, what was read goes to the file "reads", what there is to
 * tell to standard output.  tests/e2e/stories.py explains the words of a story.  One thread, one
 * lane: the guest's calls block, and jobs move while they do and in "wait". */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#define WORDS_MAX 10
#define NAMES_MAX 64
#define CLUSTER 65536u
#define POLL_NS 1000000u
#define MAP_BYTES 65536u

/* Everything in a story has a name; what is there of it depends on what it is. */
struct named {
    char name[64];
    char file[64];
    blkrepl_image *image; /* of a disk, target or snapshot */
    blkrepl_job *job;     /* of a job or snapshot */
    blkrepl_bitmap *bitmap;
};

static blkrepl_context *ctx;
static struct named names[NAMES_MAX];
static unsigned name_count;
static FILE *reads;
static unsigned line_number;

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "blkrepl-replay: line %u: ", line_number);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void check(int rc, const char *what)
{
    if (rc < 0) {
        die("%s: %d: %s", what, rc, blkrepl_error_message());
    }
}

static struct named *add(const char *name)
{
    if (name_count == NAMES_MAX || strlen(name) >= sizeof names->name) {
        die("too many names, or too long ones");
    }
    snprintf(names[name_count].name, sizeof names->name, "%s", name);
    return &names[name_count++];
}

static struct named *find(const char *name)
{
    for (unsigned i = 0; i < name_count; i++) {
        if (strcmp(names[i].name, name) == 0) {
            return &names[i];
        }
    }
    die("nothing is called %s", name);
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 10);

    if (*end != '\0') {
        die("not a number: %s", text);
    }
    return value;
}

static void *allocate(uint64_t bytes)
{
    void *memory = malloc(bytes ? (size_t)bytes : 1);

    if (memory == NULL) {
        die("no memory");
    }
    return memory;
}

/* ---- A target that cannot be written at one byte ----------------------------------------- */

struct broken {
    int fd;
    uint64_t bytes;
    uint64_t fail;
};

static int broken_get_info(void *user, blkrepl_backend_info *info)
{
    struct broken *broken = user;

    info->bytes = broken->bytes;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE;
    return 0;
}

static int broken_transfer(struct broken *broken, const blkrepl_io *io)
{
    uint64_t at = io->offset;

    if (io->opcode == BLKREPL_OP_WRITE && broken->fail - io->offset < io->bytes) {
        return -EIO;
    }
    for (uint32_t i = 0; i < io->iov_count; i++) {
        size_t length = io->iov[i].len;
        ssize_t moved = io->opcode == BLKREPL_OP_WRITE
                            ? pwrite(broken->fd, io->iov[i].base, length, (off_t)at)
                            : pread(broken->fd, io->iov[i].base, length, (off_t)at);

        if (moved != (ssize_t)length) {
            return -EIO;
        }
        at += length;
    }
    return 0;
}

static void broken_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = ios[i]->id;
        int result = broken_transfer(user, ios[i]);

        check(blkrepl_io_complete(ctx, id, result), "complete");
    }
}

static void broken_close(void *user)
{
    struct broken *broken = user;

    close(broken->fd);
    free(broken);
}

static void open_broken(struct named *target, uint64_t fail)
{
    static const blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                                            .get_info = broken_get_info,
                                            .submit = broken_submit,
                                            .close = broken_close};
    struct broken *broken = allocate(sizeof *broken);

    broken->fd = open(target->file, O_RDWR);
    if (broken->fd < 0) {
        die("%s: %s", target->file, strerror(errno));
    }
    broken->bytes = (uint64_t)lseek(broken->fd, 0, SEEK_END);
    broken->fail = fail;
    check(blkrepl_image_open(ctx, &ops, broken, NULL, &target->image), target->file);
}

/* ---- Disks and the guest ----------------------------------------------------------------- */

static struct named *add_file(char **words)
{
    struct named *disk = add(words[1]);

    snprintf(disk->file, sizeof disk->file, "%s", words[2]);
    return disk;
}

static void do_disk(char **words, unsigned count)
{
    struct named *disk = add_file(words);

    (void)count;
    check(blkrepl_image_open_file(ctx, disk->file, NULL, NULL, &disk->image), disk->file);
}

static void do_target(char **words, unsigned count)
{
    if (count > 3) {
        open_broken(add_file(words), number(words[3]));
    } else {
        do_disk(words, count);
    }
}

/* A refusal is worth a line; so it is for the other side. */
static void guest_did(char **words, int result)
{
    if (result < 0) {
        printf("%s %s %s refused\n", words[0], words[1], words[2]);
    }
}

static void do_write(char **words, unsigned count)
{
    uint64_t bytes = number(words[3]);
    uint64_t word = number(words[4]) * UINT64_C(0x9e3779b97f4a7c15) + 1;
    unsigned char *data = allocate(bytes);
    const blkrepl_iovec iov = {data, (size_t)bytes};

    (void)count;
    for (uint64_t i = 0; i < bytes; i++) {
        data[i] = (unsigned char)(word >> i % 8 * 8);
    }
    guest_did(words,
              blkrepl_image_write_wait(find(words[1])->image, 0, number(words[2]), &iov, 1, 0));
    free(data);
}

static void do_zeroes(char **words, unsigned count)
{
    (void)count;
    guest_did(words, blkrepl_image_write_zeroes_wait(find(words[1])->image, 0, number(words[2]),
                                                     number(words[3]), BLKREPL_IO_MAY_UNMAP));
}

static void do_discard(char **words, unsigned count)
{
    (void)count;
    guest_did(words, blkrepl_image_discard_wait(find(words[1])->image, 0, number(words[2]),
                                                number(words[3]), 0));
}

static void do_keep(char **words, unsigned count)
{
    const struct named *disk = find(words[1]);
    char name[160], buffer[8192];
    FILE *from, *to;
    size_t moved;

    (void)count;
    snprintf(name, sizeof name, "%s.%s", disk->file, words[2]);
    from = fopen(disk->file, "rb");
    to = fopen(name, "wb");
    if (from == NULL || to == NULL) {
        die("%s: %s", name, strerror(errno));
    }
    while ((moved = fread(buffer, 1, sizeof buffer, from)) > 0) {
        fwrite(buffer, 1, moved, to);
    }
    fclose(from);
    if (fclose(to) != 0) {
        die("%s: %s", name, strerror(errno));
    }
}

/* ---- Bitmaps ----------------------------------------------------------------------------- */

static blkrepl_bitmap *find_bitmap(const char *disk, const char *name)
{
    blkrepl_bitmap *bitmap;

    if (strcmp(name, "-") == 0) {
        return NULL;
    }
    check(blkrepl_bitmap_find(find(disk)->image, name, &bitmap), name);
    return bitmap;
}

static void do_bitmap(char **words, unsigned count)
{
    const blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .granularity_bytes = number(words[3]), .name = words[2]};
    blkrepl_bitmap *bitmap;

    (void)count;
    check(blkrepl_bitmap_add(find(words[1])->image, &options, &bitmap), words[2]);
    blkrepl_bitmap_free(bitmap);
}

/* The bits themselves, in hexadecimal. */
static void do_bits(char **words, unsigned count)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    blkrepl_bitmap *bitmap = find_bitmap(words[1], words[2]);
    static unsigned char data[MAP_BYTES];
    uint64_t length = sizeof data;

    (void)count;
    check(blkrepl_bitmap_query(bitmap, &info), "query");
    check(blkrepl_bitmap_save(bitmap, 0, info.bytes, data, &length), "save");
    printf("bits %s %s %" PRIu64 " ", words[1], words[2], info.dirty_granules);
    for (uint64_t i = 0; i < length; i++) {
        printf("%02x", data[i]);
    }
    putchar('\n');
    blkrepl_bitmap_free(bitmap);
}

/* ---- Jobs -------------------------------------------------------------------------------- */

static uint32_t sync_of(const char *text)
{
    static const char *const syncs[] = {"", "full", "bitmap", "incremental", "none"};

    for (uint32_t i = 1; i < 5; i++) {
        if (strcmp(text, syncs[i]) == 0) {
            return i;
        }
    }
    die("no such sync: %s", text);
}

static uint32_t mode_of(const char *text)
{
    static const char *const modes[] = {"-", "on-success", "never", "always"};

    for (uint32_t i = 0; i < 4; i++) {
        if (strcmp(text, modes[i]) == 0) {
            return i;
        }
    }
    die("no such bitmap mode: %s", text);
}

/* As QEMU does it: what cannot be saved fails the guest's write.  One copy at a time, cluster by
 * cluster, so that a job which fails has got equally far. */
static void create_backup(struct named *job, char **words, blkrepl_backup_options *options)
{
    options->struct_size = sizeof *options;
    options->name = job->name;
    options->cluster_bytes = options->chunk_bytes_max = CLUSTER;
    options->workers_max = 1;
    options->on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    job->bitmap = options->bitmap;
    check(blkrepl_backup_create(find(words[2])->image, find(words[3])->image, options, &job->job),
          job->name);
}

static void do_backup(char **words, unsigned count)
{
    (void)count;
    create_backup(add(words[1]), words,
                  &(blkrepl_backup_options){.sync = sync_of(words[4]),
                                            .bitmap = find_bitmap(words[2], words[5]),
                                            .bitmap_mode = mode_of(words[6])});
}

static void hold(const char *how, const struct named *job)
{
    if (strcmp(how, "hold") == 0) {
        check(blkrepl_job_pause(job->job), "pause");
    }
}

static void do_start(char **words, unsigned count)
{
    struct named *job = find(words[2]);

    (void)count;
    hold(words[1], job);
    check(blkrepl_job_start(job->job), "start");
}

static void do_group(char **words, unsigned count)
{
    blkrepl_group *group;
    uint32_t flags = strcmp(words[1], "individual") == 0 ? BLKREPL_GROUP_INDIVIDUAL : 0;

    check(blkrepl_group_create(ctx, flags, &group), "group");
    for (unsigned i = 3; i < count; i++) {
        hold(words[2], find(words[i]));
        check(blkrepl_group_add(group, find(words[i])->job), "group");
    }
    check(blkrepl_group_start(group), "group");
    blkrepl_group_free(group);
}

static void do_release(char **words, unsigned count)
{
    (void)count;
    check(blkrepl_job_resume(find(words[1])->job), "resume");
}

static void do_cancel(char **words, unsigned count)
{
    (void)count;
    check(blkrepl_job_cancel(find(words[1])->job, 0), "cancel");
}

static blkrepl_job_info wait_for(const struct named *job, uint32_t state)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    while (info.state != state && info.state != BLKREPL_JOB_CONCLUDED) {
        check(blkrepl_poll(ctx, 0, POLL_NS), "poll");
        check(blkrepl_job_query(job->job, &info), "query");
    }
    return info;
}

static void let_go(struct named *job)
{
    blkrepl_job_free(job->job);
    blkrepl_bitmap_free(job->bitmap);
    job->job = NULL;
    job->bitmap = NULL;
}

static void do_wait(char **words, unsigned count)
{
    static const char *const results[] = {"", "done", "failed", "cancelled"};
    struct named *job = find(words[1]);
    blkrepl_job_info info = wait_for(job, BLKREPL_JOB_CONCLUDED);

    (void)count;
    printf("job %s %s\n", words[1], results[info.result]);
    let_go(job);
}

/* ---- A snapshot to read from ------------------------------------------------------------- */

static void do_fleece(char **words, unsigned count)
{
    struct named *snapshot = add(words[1]);
    blkrepl_backup_options options = {.sync = BLKREPL_SYNC_NONE,
                                      .bitmap = find_bitmap(words[2], words[4])};

    (void)count;
    if (options.bitmap) {
        options.bitmap_mode = BLKREPL_BITMAP_NEVER;
        options.flags = BLKREPL_BACKUP_DIRTY_ONLY;
    }
    create_backup(snapshot, words, &options);
    check(blkrepl_job_start(snapshot->job), "start");
    wait_for(snapshot, BLKREPL_JOB_READY);
    check(blkrepl_snapshot_open(snapshot->job, NULL, &snapshot->image), "snapshot");
}

static void do_read(char **words, unsigned count)
{
    uint64_t bytes = number(words[3]);
    char *data = allocate(bytes);
    const blkrepl_iovec iov = {data, (size_t)bytes};
    int rc = blkrepl_image_read_wait(find(words[1])->image, 0, number(words[2]), &iov, 1, 0);

    (void)count;
    printf("read %s %s %s\n", words[1], words[2], rc < 0 ? "refused" : "good");
    if (rc == 0) {
        fwrite(data, 1, (size_t)bytes, reads);
    }
    free(data);
}

static void do_forget(char **words, unsigned count)
{
    int rc =
        blkrepl_image_discard_wait(find(words[1])->image, 0, number(words[2]), number(words[3]), 0);

    (void)count;
    printf("forget %s %s %s\n", words[1], words[2], rc < 0 ? "refused" : "good");
}

static void do_unfleece(char **words, unsigned count)
{
    struct named *snapshot = find(words[1]);

    (void)count;
    blkrepl_image_close(snapshot->image);
    snapshot->image = NULL;
    check(blkrepl_job_complete(snapshot->job), "complete");
    if (wait_for(snapshot, BLKREPL_JOB_CONCLUDED).result != BLKREPL_RESULT_DONE) {
        die("the snapshot did not end well");
    }
    let_go(snapshot);
}

/* ---- The story --------------------------------------------------------------------------- */

static const struct verb {
    const char *name;
    unsigned words; /* at least so many, itself included */
    void (*fn)(char **words, unsigned count);
} verbs[] = {
    {"disk", 3, do_disk},     {"target", 3, do_target},   {"write", 5, do_write},
    {"zeroes", 4, do_zeroes}, {"discard", 4, do_discard}, {"keep", 3, do_keep},
    {"bitmap", 4, do_bitmap}, {"bits", 3, do_bits},       {"backup", 7, do_backup},
    {"start", 3, do_start},   {"group", 4, do_group},     {"release", 2, do_release},
    {"cancel", 2, do_cancel}, {"wait", 2, do_wait},       {"fleece", 5, do_fleece},
    {"read", 4, do_read},     {"forget", 4, do_forget},   {"unfleece", 3, do_unfleece},
};

static void tell(char *line)
{
    char *words[WORDS_MAX], *rest;
    unsigned count = 0;

    for (char *word = strtok_r(line, " \n", &rest); word && count < WORDS_MAX;
         word = strtok_r(NULL, " \n", &rest)) {
        words[count++] = word;
    }
    for (size_t i = 0; count > 0 && i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(words[0], verbs[i].name) == 0 && count >= verbs[i].words) {
            verbs[i].fn(words, count);
            return;
        }
    }
    die("cannot be understood");
}

int main(void)
{
    char line[512];

    reads = fopen("reads", "wb");
    if (reads == NULL) {
        die("reads: %s", strerror(errno));
    }
    check(blkrepl_context_create(NULL, &ctx), "context");
    while (fgets(line, sizeof line, stdin)) {
        line_number++;
        tell(line);
    }
    for (unsigned i = 0; i < name_count; i++) {
        blkrepl_image_close(names[i].image);
    }
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, POLL_NS);
    }
    return fclose(reads) == 0 && fflush(stdout) == 0 ? 0 : 1;
}
