#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Rooms and layers: a file of lib/ includes its own room and those to the left of it.

base <- data <- core <- block <- job <- repl
"""

import re

from common import ROOMS, Report, lib_files, line_of, main, without_comments


def check(root):
    report = Report()
    count = 0
    sources = lib_files(root)
    for path in sources:
        name = path.relative_to(root)
        room = name.parts[1]
        if len(name.parts) != 3 or room not in ROOMS:
            report.add(name, f"is in none of the rooms {' '.join(ROOMS)}")
            continue
        text = without_comments(path.read_text(), keep_strings=True)
        for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', text, re.M):
            count += 1
            where = f"{name}:{line_of(text, match.start())}"
            wanted = match.group(1).split("/")
            if len(wanted) != 2 or wanted[0] not in ROOMS:
                report.add(where, f'include "{match.group(1)}" as "room/file.h"')
            elif ROOMS.index(wanted[0]) > ROOMS.index(room):
                report.add(where, f"{room} must not include {wanted[0]}: {match.group(1)}")
    report.summary = f"{len(sources)} files, {count} includes"
    return report


if __name__ == "__main__":
    main(check)
