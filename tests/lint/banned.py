#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Calls that lib/ does not make, and notes that nobody would find again."""

import re

from common import Report, files, lib_files, line_of, main, without_comments

ANYWHERE = ""

# (what, the only file that may, a pattern over code without comments and strings)
BANNED = [
    ("memory functions of libc", "lib/base/alloc.c",
     r"(?<![.\w])(?<!->)(?:malloc|calloc|realloc|free|posix_memalign|aligned_alloc|strdup|strndup"
     r"|alloca)\s*\("),
    ("memory functions of libc", "lib/base/alloc.c", r"=\s*(?:malloc|calloc|realloc|free)\s*[;,}]"),
    ("time of day", ANYWHERE, r"(?<![.\w])(?<!->)(?:time|gettimeofday)\s*\("),
    ("unseeded randomness", ANYWHERE, r"\b(?:rand|srand|random|rand_r)\s*\("),
    ("unbounded string function", ANYWHERE, r"\b(?:sprintf|vsprintf|strcpy|strcat|gets)\s*\("),
    ("assert.h: use CHECK", ANYWHERE, r"#\s*include\s*<assert\.h>|\bassert\s*\("),
    ("abort", "lib/base/compiler.c", r"(?<![.\w])(?<!->)(?:abort|exit|_exit)\s*\("),
    ("output of its own", "lib/base/compiler.c",
     r"\b(?:printf|vprintf|puts|putchar|perror)\s*\(|\b(?:stdout|stderr)\b"),
]


def check(root):
    report = Report()
    sources = lib_files(root)
    for path in sources:
        name = path.relative_to(root)
        code = without_comments(path.read_text())
        for what, exception, pattern in BANNED:
            if str(name) == exception:
                continue
            for match in re.finditer(pattern, code):
                found = " ".join(match.group().split()).rstrip("( ")
                report.add(f"{name}:{line_of(code, match.start())}", f"{what}: {found}")

    noted = sources + files(root, ["include/**/*.h", "examples/**/*.c", "tests/**/*.c"])
    for path in noted:
        text = path.read_text()
        for match in re.finditer(r"\b(?:TODO|FIXME|XXX)\b(?!\(#\d+\))", text):
            where = f"{path.relative_to(root)}:{line_of(text, match.start())}"
            report.add(where, f"{match.group()} without an issue number")
    report.summary = f"{len(sources)} files, {len(BANNED)} rules"
    return report


if __name__ == "__main__":
    main(check)
