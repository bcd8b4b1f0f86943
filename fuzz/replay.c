/* SPDX-License-Identifier: MIT */
/* replay.c - a harness without libFuzzer: inputs from files, or at random.
 *
 *     fuzz_x-replay FILE|FOLDER...
 *     fuzz_x-replay --random COUNT SEED
 *
 * With --random each input has 0 to 4096 bytes and depends on the seed and its
 * number only. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define RANDOM_BYTES_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static const char *program;
static uint64_t replayed;

/* Run one input from a heap block of its size, so that a read beyond is seen. */
static void replay_bytes(const uint8_t *bytes, size_t count)
{
    uint8_t *copy = malloc(count > 0 ? count : 1);

    if (copy == NULL) {
        fprintf(stderr, "%s: no memory\n", program);
        exit(2);
    }
    if (count > 0) {
        memcpy(copy, bytes, count);
    }
    (void)LLVMFuzzerTestOneInput(copy, count);
    replayed++;
    free(copy);
}

static void fail(const char *path)
{
    fprintf(stderr, "%s: %s: %s\n", program, path, strerror(errno));
    exit(2);
}

static void replay_file(const char *path)
{
    static uint8_t bytes[1u << 20];
    FILE *file = fopen(path, "rb");
    size_t count;

    if (file == NULL) {
        fail(path);
    }
    count = fread(bytes, 1, sizeof bytes, file);
    if (ferror(file)) {
        fail(path);
    }
    fclose(file);
    if (getenv("FUZZ_TRACE") != NULL) {
        fprintf(stderr, "%s\n", path);
    }
    replay_bytes(bytes, count);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The files of a folder in the order of their names. */
static void replay_folder(const char *path)
{
    char **names = NULL;
    size_t count = 0;
    DIR *folder = opendir(path);

    if (folder == NULL) {
        fail(path);
    }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        size_t bytes = strlen(path) + strlen(entry->d_name) + 2;

        if (entry->d_name[0] == '.') {
            continue;
        }
        names = realloc(names, (count + 1) * sizeof *names);
        if (names == NULL || (names[count] = malloc(bytes)) == NULL) {
            fail(path);
        }
        snprintf(names[count++], bytes, "%s/%s", path, entry->d_name);
    }
    closedir(folder);
    if (count > 0) {
        qsort(names, count, sizeof *names, by_name);
    }
    for (size_t i = 0; i < count; i++) {
        replay_file(names[i]);
        free(names[i]);
    }
    free(names);
}

static void replay_path(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        fail(path);
    }
    if (S_ISDIR(st.st_mode)) {
        replay_folder(path);
    } else {
        replay_file(path);
    }
}

/* SplitMix64 steps. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void replay_random(uint64_t count, uint64_t seed)
{
    static uint8_t bytes[RANDOM_BYTES_MAX];

    for (uint64_t i = 0; i < count; i++) {
        uint64_t state = seed * UINT64_C(0x100000001) + i;
        size_t size = (size_t)(random_next(&state) % (RANDOM_BYTES_MAX + 1));

        for (size_t at = 0; at < size; at += 8) {
            uint64_t word = random_next(&state);

            memcpy(bytes + at, &word, size - at < 8 ? size - at : 8);
        }
        if (getenv("FUZZ_TRACE") != NULL) {
            fprintf(stderr, "input %" PRIu64 "\n", i);
        }
        replay_bytes(bytes, size);
    }
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');

    program = slash != NULL ? slash + 1 : argv[0];
    LLVMFuzzerInitialize(&argc, &argv);
    if (argc == 4 && strcmp(argv[1], "--random") == 0) {
        replay_random(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0));
    } else if (argc >= 2 && argv[1][0] != '-') {
        for (int i = 1; i < argc; i++) {
            replay_path(argv[i]);
        }
    } else {
        fprintf(stderr, "%s FILE|FOLDER...\n%s --random COUNT SEED\n", program, program);
        return 2;
    }
    printf("%s: %" PRIu64 " inputs replayed\n", program, replayed);
    return 0;
}
