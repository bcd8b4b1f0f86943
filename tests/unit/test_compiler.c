/* SPDX-License-Identifier: MIT */
/* A broken invariant stops the program with one line that says where. */
#include "base/compiler.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static bool one_is_two(void)
{
    volatile int one = 1;

    return one == 2;
}

static void fail_always_check(void)
{
    ALWAYS_CHECK(one_is_two());
}

static void reach_the_unreachable(void)
{
    UNREACHABLE();
}

/* Run it in a child; what it writes to stderr comes into `said`. */
static int run_in_child(void (*run)(void), char *said, size_t bytes)
{
    int fds[2];
    int status = 0;
    size_t used = 0;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        run();
        _exit(0);
    }
    close(fds[1]);
    for (ssize_t got = 1; got > 0 && used + 1 < bytes; used += got > 0 ? (size_t)got : 0) {
        got = read(fds[0], said + used, bytes - 1 - used);
    }
    said[used] = '\0';
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void a_broken_invariant_stops_in_every_build(void **state)
{
    char said[512];
    int status = run_in_child(fail_always_check, said, sizeof said);

    (void)state;
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(said, "one_is_two()"));
    assert_non_null(strstr(said, "test_compiler.c"));
}

static void the_unreachable_stops(void **state)
{
    char said[512];
    int status = run_in_child(reach_the_unreachable, said, sizeof said);

    (void)state;
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(said, "test_compiler.c"));
}

static void what_holds_does_nothing(void **state)
{
    (void)state;
    ALWAYS_CHECK(!one_is_two());
    CHECK(!one_is_two());
    assert_int_equal(ARRAY_COUNT(((int[]){1, 2, 3})), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_broken_invariant_stops_in_every_build),
        cmocka_unit_test(the_unreachable_stops),
        cmocka_unit_test(what_holds_does_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
