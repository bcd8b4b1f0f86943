/* SPDX-License-Identifier: MIT */
/* memory.c - how much memory a bitmap takes that is really there. */
#include "kinds.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Without what is mapped from files: programs and libraries. */
static double resident_kib(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    double kib = 0;

    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "Anonymous: %lf", &kib) == 1) {
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return kib;
}

double memory_kib(const struct kind *kind, uint64_t bit_count, uint64_t ones)
{
    double kib = 0;
    int ends[2];
    pid_t child = -1;

    if (pipe(ends) < 0 || (child = fork()) < 0) {
        bench_die("cannot fork");
    }
    if (child == 0) {
        void *map = kind->create(64); /* what comes with the first one is not counted */
        double before;

        resident_kib();
        before = resident_kib();
        map = kind->create(bit_count);
        if (ones == bit_count) {
            kind->set(map, 0, bit_count);
        } else {
            kind->set_each(map, order_of(bit_count, 3), ones);
        }
        kib = resident_kib() - before;
        _exit(write(ends[1], &kib, sizeof kib) == sizeof kib ? 0 : 1);
    }
    if (read(ends[0], &kib, sizeof kib) != sizeof kib) {
        bench_die("the child has died");
    }
    waitpid(child, NULL, 0);
    close(ends[0]);
    close(ends[1]);
    return kib;
}
