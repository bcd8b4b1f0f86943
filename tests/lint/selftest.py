#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Each check can fail: a small good tree passes all of them, and each bad change is refused."""

import importlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import ROOT, Report, main

BASE_H = """/* SPDX-License-Identifier: MIT */
/**
 * @file base.h
 * Macros.
 */
#ifndef LIBBLKREPL_BASE_H
#define LIBBLKREPL_BASE_H

#include <stdint.h>

#define BLKREPL_API __attribute__((visibility("default")))
#ifdef __cplusplus
#define BLKREPL_BEGIN_DECLS extern "C" {
#define BLKREPL_END_DECLS }
#else
#define BLKREPL_BEGIN_DECLS
#define BLKREPL_END_DECLS
#endif

/** A thing. */
typedef struct blkrepl_thing {
    uint32_t struct_size; /* sizeof *this */
} blkrepl_thing;

#endif
"""

VERSION_H = """/* SPDX-License-Identifier: MIT */
/**
 * @file version.h
 * The version.
 */
#ifndef LIBBLKREPL_VERSION_H
#define LIBBLKREPL_VERSION_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

#define BLKREPL_VERSION_MAJOR 0
#define BLKREPL_VERSION_MINOR 1
#define BLKREPL_VERSION_PATCH 0

/**
 * Tell the version.
 *
 * Ownership:  the text is static.
 * Thread:     any.
 * Returns:    a text.
 * Since:      0.1
 */
BLKREPL_API const char *blkrepl_version(void);

BLKREPL_END_DECLS

#endif
"""

VERSION_C = """/* SPDX-License-Identifier: MIT */
#include <libblkrepl/version.h>

const char *blkrepl_version(void)
{
    return "0.1.0";
}
"""

MACHINE_C = """/* SPDX-License-Identifier: MIT */
/* lamp.c - a machine.
 *
 *   OFF -> ON -> BROKEN
 *
 *   OFF -> ON      lamp_off   when somebody comes
 *   ON  -> BROKEN  lamp_on    after a while
 */
#include "job/lamp.h"

#include "base/list.h"

static const uint32_t lamp_next[LAMP_STATE_COUNT] = {
    [LAMP_OFF] = TO(LAMP_ON),
    [LAMP_ON] = TO(LAMP_BROKEN),
};

enum step lamp_step(struct lamp *lamp)
{
    switch (lamp->state) {
    case LAMP_OFF: return lamp_off(lamp);
    case LAMP_ON: return lamp_on(lamp);
    case LAMP_BROKEN: return STEP_DONE;
    }
}

static enum step lamp_off(struct lamp *lamp)
{
    return lamp_enter(lamp, LAMP_ON);
}

static enum step lamp_on(struct lamp *lamp)
{
    struct hours hours[] = {{{{1}}}};

    lamp->hooks.free(hours);
    return lamp_enter(lamp, LAMP_BROKEN);
}
"""

GOOD = {
    "CMakeLists.txt": "# SPDX-License-Identifier: MIT\nproject(libblkrepl VERSION 0.1.0)\n",
    "CHANGES.md": "# Changes\n\n## 0.1.0 (unreleased)\n",
    "include/libblkrepl/base.h": BASE_H,
    "include/libblkrepl/version.h": VERSION_H,
    "lib/base/version.c": VERSION_C,
    "lib/job/lamp.c": MACHINE_C,
    "lib/libblkrepl.map": "/* SPDX-License-Identifier: MIT */\n"
                          "LIBBLKREPL_0.1 { global: blkrepl_version; local: *; };\n",
    "tests/abi/exports.txt": "blkrepl_version LIBBLKREPL_0.1\n",
    "tests/lint/lengths.txt": "# nothing\n",
}


def long_function(name, line_count):
    return f"\nvoid {name}(void)\n{{\n" + "    work();\n" * (line_count - 3) + "}\n"


def deep(levels):
    inside = "work();"
    for _ in range(levels):
        inside = f"if (x) {{\n{inside}\n}}"
    return f"\nvoid deep(void)\n{{\n{inside}\n}}\n"


def add(text):
    return lambda old: old + text


def swap(old, new):
    def change(text):
        assert old in text, old
        return text.replace(old, new)

    return change


C, H, LAMP = "lib/base/version.c", "include/libblkrepl/version.h", "lib/job/lamp.c"
LENGTHS = "tests/lint/lengths.txt"

# (check, [(file, change)...], what the problem must say)
BAD = [
    ("layers", [(C, add('#include "core/context.h"\n'))], "must not include core"),
    ("layers", [(LAMP, add('#  include "repl/session.h"\n'))], "must not include repl"),
    ("layers", [(C, add('#include "list.h"\n'))], "room/file.h"),
    ("layers", [("lib/misc/x.c", add("int x;\n"))], "none of the rooms"),

    ("lengths", [(C, add(long_function("f", 71)))], "f has 71 lines; at most 70"),
    ("lengths", [(C, add(long_function("f", 75))), (LENGTHS, add(f"{C} f 74\n"))], "grew from 74"),
    ("lengths", [(C, add(long_function("f", 73))), (LENGTHS, add(f"{C} f 74\n"))], "73 lines now"),
    ("lengths", [(LENGTHS, add(f"{C} f 74\n"))], "not there any more"),
    ("lengths", [(LAMP, swap("lamp_enter(lamp, LAMP_ON);", "\n" * 50))],
     "lamp_off has 54 lines; at most 50"),
    ("lengths", [(C, add("\n" * 1000))], "at most 1000"),
    ("lengths", [(C, add("void f(int a, int b, int c, int d, int e, int (*f)(int, int), int g,"
                         " int h)\n{\n}\n"))], "8 parameters"),
    ("lengths", [(C, add(deep(5)))], "nested 5 deep"),
    ("lengths", [(C, add("/*" + "x" * 100 + "*/\n"))], "104 columns"),

    ("exports", [(H, swap("blkrepl_version(", "blkrepl_release("))], "blkrepl_release is missing"),
    ("exports", [("lib/libblkrepl.map", swap("_0.1", "_0.2"))], "LIBBLKREPL_0.2"),
    ("exports", [("lib/libblkrepl.map", swap("global:", "global: blkrepl_x;"))],
     "in no public header"),
    ("exports", [("tests/abi/exports.txt", lambda old: "")], "blkrepl_version is missing"),
    ("exports", [(H, swap("Since:      0.1", "Since:      0.2"))], "header says LIBBLKREPL_0.2"),
    ("exports", [(H, swap(" * Since:      0.1\n", ""))], "header says no Since"),

    ("doc", [(H, swap(" * Since:      0.1\n", ""))], "field Since is missing"),
    ("doc", [(H, swap(" * Thread:     any.\n", ""))], "field Thread is missing"),
    ("doc", [(H, swap(" * Returns:    a text.\n", ""))], "field Returns is missing"),
    ("doc", [(H, swap("Ownership:  ", "Callbacks:  x\n * Ownership:  "))], "not in the order"),
    ("doc", [(H, swap("Thread:     any.", "Thread:     any.\n * Thread:     any."))], "twice"),
    ("doc", [(H, swap("Returns:    a", "Result:     a"))], "unknown field Result"),
    ("doc", [(H, swap("Returns:    a", "Returns:  a"))], "begins in column 12"),
    ("doc", [(H, swap("Tell the version.", "Tells the version."))], "not imperative"),
    ("doc", [(H, swap("Tell the version.", "Tell the version"))], "not one sentence"),
    ("doc", [(H, swap(" */\nBLKREPL_API", " */\n\nint x;\nBLKREPL_API"))], "no doc comment"),
    ("doc", [(H, swap("@file version.h", ""))], "no @file"),
    ("doc", [("include/libblkrepl/base.h", swap("/** A thing. */\n", ""))], "no doc comment"),

    ("banned", [(C, add("void f(void) { x = malloc(1); }\n"))], "malloc"),
    ("banned", [(C, add("void f(void) { free (x); }\n"))], "free"),
    ("banned", [(C, add("hooks h = {.free = free};\n"))], "free"),
    ("banned", [(C, add("void f(void) { y = time(NULL); }\n"))], "time"),
    ("banned", [(C, add("void f(void) { gettimeofday(&t, NULL); }\n"))], "gettimeofday"),
    ("banned", [(C, add("void f(void) { y = rand(); }\n"))], "rand"),
    ("banned", [(C, add("void f(void) { sprintf(x, y); }\n"))], "sprintf"),
    ("banned", [(C, add("void f(void) { strcpy(x, y); }\n"))], "strcpy"),
    ("banned", [(C, add("#include <assert.h>\n"))], "assert.h"),
    ("banned", [(C, add("void f(void) { abort(); }\n"))], "abort"),
    ("banned", [(C, add("void f(void) { printf(x); }\n"))], "printf"),
    ("banned", [(C, add("void f(void) { fprintf(stderr, x); }\n"))], "stderr"),
    ("banned", [(C, add("/* TO" "DO: later */\n"))], "without an issue number"),

    ("headers", [(H, swap("#include <libblkrepl/base.h>", ""))], "gcc -std=c11"),
    ("headers", [(H, add("typedef struct { int a : 33; } x;\n"))], "version.h"),
    ("headers", [(H, swap("(void);", "(void);\nint blkrepl_x(int class);"))], "g++ -std=c++17"),

    ("cffi_cdef", [(H, swap("(void);", "(void);\nstatic inline int x(void) { return 0; }"))],
     "cdef"),
    ("cffi_cdef", [(H, swap("#define BLKREPL_VERSION_MINOR 1", "#define X(a) \\\n    (a)"))],
     "cdef"),

    ("states", [(LAMP, swap(" *   OFF -> ON      lamp_off   when somebody comes\n", ""))],
     "allows LAMP_OFF -> LAMP_ON"),
    ("states", [(LAMP, swap(" */\n#inc", " *   OFF -> BROKEN  lamp_off   dropped\n */\n#inc"))],
     "does not allow"),
    ("states", [(LAMP, swap("lamp_on    after", "lamp_blow  after"))], "no function lamp_blow"),
    ("states", [(LAMP, swap("TO(LAMP_BROKEN)", "TO(LAMP_BROKEN) | TO(LAMP_STOLEN)"))],
     "state STOLEN is not in the header comment"),
    ("states", [(LAMP, swap("[LAMP_OFF] = TO(LAMP_ON),", "2,")),
                (LAMP, swap("[LAMP_ON] = TO(LAMP_BROKEN),", "4,"))],
     "no [STATE] = TO(...) entry"),

    ("format", [(C, swap("    return", "  return"))], "not as clang-format has it"),

    ("tree", [(C, swap("/* SPDX-License-Identifier: MIT */\n", ""))], "no SPDX line"),
    ("tree", [("tests/tool", add("#!/bin/bash\n"))], "no SPDX line"),
    ("tree", [("notes.txt", add("x\n"))], "does not belong at the top"),
    ("tree", [(C, add("/* see /" "home/x */\n"))], "path of one machine"),
    ("tree", [(H, swap("VERSION_PATCH 0", "VERSION_PATCH 1"))], "version.h: 0.1.1"),
    ("tree", [("CHANGES.md", swap("0.1.0", "0.0.9"))], "CHANGES.md: 0.0.9"),
]

# (check, source of the library, what the problem must say)
API = '__attribute__((visibility("default"))) '
BAD_LIBRARIES = [
    ("exports", API + "int blkrepl_other(void) { return 0; }", "blkrepl_version is missing"),
    ("exports", VERSION_C, "blkrepl_version: no version"),
    ("cffi_cdef", VERSION_C.replace("0.1.0", "0.0.7"), "says version 0.0.7"),
]


def make_tree(folder, changes=()):
    contents = dict(GOOD)
    for name, change in changes:
        contents[name] = change(contents.get(name, ""))
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(ROOT / ".clang-format", folder)


def build_library(folder, source, flags=()):
    path = folder / "libblkrepl.so"
    (folder / "library.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-I", folder / "include", *flags, "-o", path,
                    folder / "library.c"], check=True)
    (folder / "library.c").unlink()
    return path


def run(name, folder, *library):
    return importlib.import_module(name).check(folder, *library).problems


def check_good(report):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tree(folder)
        for check in sorted({check for check, _, _ in BAD}):
            for problem in run(check, folder):
                report.add(check, f"refuses a good tree: {problem}")
        library = build_library(folder, VERSION_C,
                                [f"-Wl,--version-script={folder}/lib/libblkrepl.map"])
        for check in ("exports", "cffi_cdef"):
            for problem in run(check, folder, library):
                report.add(check, f"refuses a good library: {problem}")


def expect(report, check, problems, wanted, what):
    if not any(wanted in problem for problem in problems):
        report.add(check, f"does not say '{wanted}' of {what}, but {problems}")


def check(root):
    report = Report()
    check_good(report)
    for check_name, changes, wanted in BAD:
        with tempfile.TemporaryDirectory() as name:
            make_tree(Path(name), changes)
            what = f"a changed {changes[0][0]}"
            expect(report, check_name, run(check_name, Path(name)), wanted, what)
    for check_name, source, wanted in BAD_LIBRARIES:
        with tempfile.TemporaryDirectory() as name:
            make_tree(Path(name))
            library = build_library(Path(name), source)
            expect(report, check_name, run(check_name, Path(name), library), wanted, "a library")
    count = len(BAD) + len(BAD_LIBRARIES)
    report.summary = f"{count} bad inputs, {len(report.problems)} not refused"
    return report


if __name__ == "__main__":
    main(check)
