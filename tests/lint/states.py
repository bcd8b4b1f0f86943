#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""State machines: the header comment and the table x_next[] say the same.

Every state of the table appears in the file's header comment, and the transitions it allows are
those of the comment's list, one a line: "DRAIN -> FLUSH    backup_drain   why".  The function named
there exists in the file.  States may be written without the machine's prefix.
"""

import os
import re

from common import Report, files, functions, header_comment, line_of, main, without_comments

TABLE = re.compile(r"\bconst\s+\w+\s+(\w+_next)\s*\[[^\]]*\]\s*=\s*\{(.*?)\n?\};", re.DOTALL)
NAMES = r"\w+(?:\s*,\s*\w+)*"
TRANSITION = re.compile(rf"^[ \t*]*({NAMES})\s+->\s+({NAMES})(?:\s{{2,}}(\w+)|[ \t]*$)", re.M)


def table_edges(body):
    """{state: set of successors} of the text between a table's braces."""
    edges = {}
    for state, value in re.findall(r"\[(\w+)\]\s*=\s*([^\[]*)", body):
        edges[state] = set(re.findall(r"\bTO\(\s*(\w+)\s*\)", value))
    return edges


def resolve(name, states, prefix):
    """The state meant by a name in the comment; None: no state of this machine."""
    for candidate in (name, prefix + name):
        if candidate in states:
            return candidate
    return None


def check_machine(report, where, table, edges, comment, defined):
    states = set(edges) | set().union(*edges.values())
    common = os.path.commonprefix(sorted(states))
    prefix = common[: common.rfind("_") + 1]
    for state in sorted(states):
        short = state[len(prefix) :]
        if not re.search(rf"\b(?:{state}|{short})\b", comment):
            report.add(where, f"{table}: state {short} is not in the header comment")

    listed = set()
    for left, right, function in TRANSITION.findall(comment):
        for source in re.split(r"\s*,\s*", left):
            for target in re.split(r"\s*,\s*", right):
                edge = (resolve(source, states, prefix), resolve(target, states, prefix))
                if None in edge:
                    continue
                listed.add(edge)
                if function not in defined:
                    named = function or "(none)"
                    report.add(where, f"{source} -> {target}: no function {named} in this file")
    allowed = {(source, target) for source, targets in edges.items() for target in targets}
    for source, target in sorted(allowed - listed):
        report.add(where, f"{table} allows {source} -> {target}, the header comment does not")
    for source, target in sorted(listed - allowed):
        report.add(where, f"{table} does not allow {source} -> {target}, the header comment does")
    return len(states), len(allowed)


def check(root):
    report = Report()
    machines = state_count = edge_count = 0
    for path in files(root, ["lib/**/*.c"]):
        text = path.read_text()
        code = without_comments(text)
        for match in TABLE.finditer(code):
            edges = table_edges(match.group(2))
            where = f"{path.relative_to(root)}:{line_of(code, match.start())}"
            if not edges:
                report.add(where, f"{match.group(1)}: no [STATE] = TO(...) entry understood")
                continue
            defined = {f.name for f in functions(text)}
            states, allowed = check_machine(
                report, where, match.group(1), edges, header_comment(text), defined
            )
            machines += 1
            state_count += states
            edge_count += allowed
    report.summary = f"{machines} machines, {state_count} states, {edge_count} transitions"
    return report


if __name__ == "__main__":
    main(check)
