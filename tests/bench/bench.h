/* SPDX-License-Identifier: MIT */
/* bench.h - what the benchmarks share: clocks and medians. */
#ifndef BLKREPL_TESTS_BENCH_H
#define BLKREPL_TESTS_BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static inline uint64_t bench_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline double bench_seconds(struct timeval tv)
{
    return (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

/* CPU seconds of this process and of its children that have ended. */
static inline double bench_cpu_seconds(void)
{
    struct rusage self;
    struct rusage children;

    getrusage(RUSAGE_SELF, &self);
    getrusage(RUSAGE_CHILDREN, &children);
    return bench_seconds(self.ru_utime) + bench_seconds(self.ru_stime) +
           bench_seconds(children.ru_utime) + bench_seconds(children.ru_stime);
}

static inline int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The median of `count` values, which are sorted on the way. */
static inline double bench_median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, bench_compare);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

#endif
