#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Each public header compiles alone and twice, as C11 and C++17, with every compiler there is."""

import shutil
import subprocess

from common import Report, main, public_headers

WARNINGS = "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -fsyntax-only".split()
LANGUAGES = [("c", "c11", ["gcc", "clang"]), ("c++", "c++17", ["g++", "clang++"])]


def check(root):
    report = Report()
    headers = public_headers(root)
    count = 0
    for language, standard, compilers in LANGUAGES:
        present = [compiler for compiler in compilers if shutil.which(compiler)]
        if not present:
            report.add(language, f"none of {' '.join(compilers)} is installed")
        for compiler in present:
            for header in headers:
                count += 1
                command = [compiler, "-x", language, f"-std={standard}", *WARNINGS,
                           "-I", str(root / "include"), "-"]
                line = f"#include <libblkrepl/{header.name}>\n"
                done = subprocess.run(command, input=line * 2, capture_output=True, text=True)
                if done.returncode != 0:
                    first = (done.stderr.strip().splitlines() or ["failed"])[0]
                    report.add(header.relative_to(root), f"{compiler} -std={standard}: {first}")
    report.summary = f"{len(headers)} headers, {count} compilations"
    return report


if __name__ == "__main__":
    main(check)
