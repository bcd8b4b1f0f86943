#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""clang-format leaves lib, include, examples and tests as they are."""

import re
import shutil
import subprocess

from common import Report, files, main

SOURCES = [f"{top}/**/*.{end}" for top in ("lib", "include", "examples", "tests", "fuzz")
           for end in ("c", "h")]


def check(root):
    report = Report()
    sources = files(root, SOURCES)
    report.summary = f"{len(sources)} files"
    if not shutil.which("clang-format"):
        report.add("clang-format", "is not installed")
        return report
    for path in sources:
        command = ["clang-format", "--style=file", "--dry-run", "-Werror", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            lines = re.findall(r":(\d+):\d+: error", done.stderr) or ["1"]
            text = f"not as clang-format has it, in {len(set(lines))} places"
            report.add(f"{path.relative_to(root)}:{lines[0]}", text)
    return report


if __name__ == "__main__":
    main(check)
