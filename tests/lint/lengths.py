#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sizes: functions, files, parameters, nesting, columns.

lengths.txt lists the functions that are longer than allowed, "file function lines" (a whole file:
function "-").  An entry must equal the present length, so it can only be lowered or go away.
"""

import re
from statistics import median

from common import Report, files, functions, lib_files, main

FUNCTION_LINES = 70
STATE_FUNCTION_LINES = 50
FILE_LINES = 1000
PARAMETERS = 7
NESTING = 4
COLUMNS = 100

SOURCES = [f"{top}/**/*.{end}" for top in ("lib", "include", "examples", "tests", "fuzz")
           for end in ("c", "h")]


def ratchet(root):
    path = root / "tests/lint/lengths.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return {(file, function): int(count) for file, function, count in entries}


def nesting(body):
    """How deep blocks lie in a function body; braces of initializers do not count."""
    deepest, stack = 0, []
    for match in re.finditer(r"[{}]", body):
        if match.group() == "}":
            stack.pop()
            continue
        # "= {", ", {", "({" and the "){" of a compound literal; "if (x) {" has a space.
        initializer = re.search(r"(?:[=,(]\s*|\))$", body[: match.start()])
        stack.append(not initializer and all(stack))
        deepest = max(deepest, sum(stack) - 1)
    return deepest


def state_functions(found):
    """The functions that the switch of an x_step() leads to."""
    names = set()
    for function in found:
        if function.name.endswith("_step"):
            names |= set(re.findall(r"case\s+\w+:\s*return\s+(\w+)\s*\(", function.body))
    return names


def check_function(report, where, function, limit, entry):
    name, count = function.name, function.line_count
    if entry is None and count > limit:
        report.add(where, f"{name} has {count} lines; at most {limit}")
    elif entry is not None and count > entry:
        report.add(where, f"{name} grew from {entry} to {count} lines")
    elif entry is not None and count < entry:
        report.add(where, f"{name} has {count} lines now; lengths.txt says {entry}")
    if len(function.parameters) > PARAMETERS:
        report.add(where, f"{name} has {len(function.parameters)} parameters; at most {PARAMETERS}")
    depth = nesting(function.body)
    if depth > NESTING:
        report.add(where, f"{name} is nested {depth} deep; at most {NESTING}")


def check_functions(report, file, found, allowed):
    states = state_functions(found)
    for function in found:
        limit = STATE_FUNCTION_LINES if function.name in states else FUNCTION_LINES
        entry = allowed.pop((str(file), function.name), None)
        check_function(report, f"{file}:{function.line}", function, limit, entry)


def check(root):
    report = Report()
    allowed = ratchet(root)
    listed = len(allowed)
    counts = []
    for path in lib_files(root):
        name = path.relative_to(root)
        text = path.read_text()
        found = functions(text)
        counts += [f.line_count for f in found]
        check_functions(report, name, found, allowed)
        line_count = text.count("\n")
        entry = allowed.pop((str(name), "-"), FILE_LINES)
        if line_count > entry and path.suffix == ".c":
            report.add(name, f"has {line_count} lines; at most {entry}")
    for file, function in allowed:
        report.add("tests/lint/lengths.txt", f"{file} {function} is not there any more")

    sources = files(root, SOURCES)
    for path in sources:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if len(line) > COLUMNS:
                where = f"{path.relative_to(root)}:{number}"
                report.add(where, f"{len(line)} columns; at most {COLUMNS}")

    counts.sort()
    if counts:
        p95 = counts[min(len(counts) - 1, int(len(counts) * 0.95))]
        report.summary = (
            f"{len(sources)} files; {len(counts)} functions in lib: median {median(counts):g}, "
            f"p95 {p95} (aim 45), longest {counts[-1]}; {listed} in the ratchet"
        )
    return report


if __name__ == "__main__":
    main(check)
