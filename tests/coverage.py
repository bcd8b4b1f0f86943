#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Work up what llvm-cov exports: a table for lib/, then what no test reached, by name.

    tests/coverage.py EXPORT.json LINES BRANCHES

LINES and BRANCHES are the least coverage in percent; below it, or if what an entry of
tests/coverage.txt names is not in the source, the exit code is 1.  An entry that was reached is told
and is no failure: it depends on times and threads, and a count may be off by one if a process ends,
or forks, while another of its threads is about to count.

A condition has two branches, taken when it is true and when it is false.  Its MC/DC is covered if
two evaluations of the whole decision differ in this condition alone and in the result.  Everything
is summed up over all places that an inline function is compiled in.  What is said inside CHECK() is
no code of this build, and STRETCH() is there for tests only: neither counts.

tests/coverage.txt says what cannot be reached.  Its paragraphs are a reason, then indented lines:

    lib/core/wake.c  never true: fd < 0      an outcome of a condition, and the block it leads to
    lib/core/wake.c  line: UNREACHABLE();    a line of the source
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lint"))
sys.dont_write_bytecode = True

from common import ROOT, match_close, without_comments, without_directives

CODE, EXPANSION, MCDC_BRANCH = 0, 1, 6  # kinds of regions in the export
NOT_COUNTED = re.compile(r"\b(CHECK|STRETCH)\s*\(")


class Source:
    """A file of lib/, without comments; positions are (line, column), both from 1."""

    def __init__(self, path):
        self.name = str(path.relative_to(ROOT))
        self.text = without_comments(path.read_text(), keep_strings=True)
        self.lines = self.text.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        code = without_directives(without_comments(self.text))
        self.code_lines = {n for n, line in enumerate(code.split("\n"), 1) if line.strip(" {};")}
        self.not_counted = []
        for match in NOT_COUNTED.finditer(code):
            self.not_counted.append((match.start(), match_close(code, match.end() - 1)))

    def offset(self, position):
        return self.starts[position[0] - 1] + position[1] - 1

    def span(self, begin, end):
        """The text from here to there; of a macro's use the export gives less than all."""
        first, last = self.offset(begin), self.offset(end)
        name = re.compile(r"\w+").match(self.text, last)
        last = name.end() if name and first == last else last
        if self.text[last] == "(":
            last = match_close(self.text, last) + 1
        return " ".join(self.text[first:last].split())

    def is_code(self, number):
        """Whether a line has code of a function: more than a brace, no macro, no CHECK()."""
        text = self.lines[number - 1]
        indent = len(text) - len(text.lstrip())
        return number in self.code_lines and self.counts((number, indent + 1))

    def counts(self, position):
        at = self.offset(position)
        while self.text[at] == "!":
            at += 1
        return not any(begin <= at <= end for begin, end in self.not_counted)


@dataclass
class Condition:
    """A condition of the source: how often it was true, how often false."""

    source: Source
    begin: tuple
    text: str
    counted: bool = True
    counts: list = field(default_factory=lambda: [0, 0])
    excused: set = field(default_factory=set)  # of True and False
    block: tuple = None  # a block that follows at once and was never entered: its lines

    def missing(self):
        return [o for o, n in zip((True, False), self.counts) if n == 0 and o not in self.excused]


@dataclass
class Decision:
    """A decision of several conditions; covered[i]: its condition i was seen to decide alone."""

    source: Source
    begin: tuple
    text: str
    conditions: list
    covered: list

    def missing(self):
        return [c for c, done in zip(self.conditions, self.covered) if not done and self.tells(c)]

    def count(self):
        return sum(self.tells(c) for c in self.conditions)

    @staticmethod
    def tells(condition):
        """Of a condition with an excused outcome nothing can be shown."""
        return condition.counted and not condition.excused


@dataclass
class Excuse:
    """A line of tests/coverage.txt."""

    where: str
    file: str
    what: str  # "line", "never true" or "never false"
    text: str
    matches: int = 0
    found: bool = False  # it is in the source, reached or not


class Export:
    """All conditions, decisions and lines of lib/."""

    def __init__(self, path):
        data = json.loads(Path(path).read_text())["data"][0]
        self.sources = {}
        self.conditions = {}
        self.decisions = {}
        self.lines = {}  # source -> {line: count}
        for function in data["functions"]:
            if self.in_lib(function["filenames"][0]):
                self.add_function(function)
        for file in data["files"]:
            if self.in_lib(file["filename"]):
                source = self.source(file["filename"])
                self.lines[source] = line_counts(file["segments"])
        for source, counts in self.lines.items():
            for number in [n for n in counts if not source.is_code(n)]:
                del counts[number]

    @staticmethod
    def in_lib(name):
        return Path(name).is_relative_to(ROOT / "lib")

    def source(self, name):
        if name not in self.sources:
            self.sources[name] = Source(Path(name))
        return self.sources[name]

    def add_function(self, function):
        source = self.source(function["filenames"][0])
        uses = {}  # file id of an expansion -> (file id, position) of the macro's name
        for region in function["regions"]:
            if region[7] == EXPANSION:
                uses[region[6]] = (region[5], (region[0], region[1]))
        found = []
        for branch in function["branches"]:
            condition = self.condition(source, branch, uses)
            condition.counts[0] += branch[4]
            condition.counts[1] += branch[5]
            found.append((branch, condition))
            self.note_block(condition, branch, function["regions"])
        for record in function["mcdc_records"]:
            self.add_decision(source, record, found, uses)

    @staticmethod
    def use_in_source(file_id, position, uses):
        """Where, in the function's own file, the macro begins that a position belongs to."""
        while file_id in uses:
            file_id, position = uses[file_id]
        return position

    def condition(self, source, branch, uses):
        begin, end, file_id = tuple(branch[0:2]), tuple(branch[2:4]), branch[6]
        at = self.use_in_source(file_id, begin, uses)
        text = source.span(at, at if file_id in uses else end)
        key = (source.name, at, begin, end)
        new = Condition(source, at, text, source.counts(at))
        return self.conditions.setdefault(key, new)

    @staticmethod
    def note_block(condition, branch, regions):
        """The block between braces or the statement that only this condition leads to."""
        end = tuple(branch[2:4])
        blocks = [r for r in regions if r[7] == CODE and r[5] == branch[6] and tuple(r[0:2]) >= end]
        if branch[4] == 0 and blocks:
            first = min(blocks, key=lambda r: (r[0], r[1], -r[2], -r[3]))
            if first[4] == 0 and first[0] <= end[0] + 1:
                condition.block = (first[0], first[2])

    def add_decision(self, source, record, found, uses):
        """The export does not say which file a record is in; its conditions tell."""
        begin, end, covered = tuple(record[0:2]), tuple(record[2:4]), record[6]
        for file_id in sorted({branch[6] for branch, _ in found}):
            inside = []
            for branch, condition in found:
                at = (branch[6], tuple(branch[0:2]))
                while at[0] != file_id and at[0] in uses:
                    at = uses[at[0]]
                if at[0] == file_id and begin <= at[1] < end and branch[8] == MCDC_BRANCH:
                    inside.append((at[1], condition))
            if len(inside) != len(covered):
                continue
            at = self.use_in_source(file_id, begin, uses)
            text = source.span(at, at if file_id in uses else end)
            # The order of the flags is that of the conditions in the source.
            inside = [condition for _, condition in sorted(inside, key=lambda item: item[0])]
            key = (source.name, at, begin, end)
            decision = Decision(source, at, text, inside, [False] * len(covered))
            decision = self.decisions.setdefault(key, decision)
            decision.covered = [a or b for a, b in zip(decision.covered, covered)]
            return


def line_counts(segments):
    """Executions of each line of code, by the rules of llvm-cov: the line's best region counts."""
    rows = {}
    for line, column, count, has_count, is_entry, is_gap in segments:
        rows.setdefault(line, []).append((count, has_count, is_entry, is_gap))
    counts, wrapped = {}, None
    for line in range(1, max(rows, default=0) + 1):
        row = rows.get(line, [])
        begins = [s for s in row if s[1] and s[2] and not s[3]]
        skipped = bool(row) and not row[0][1] and row[0][2]
        if not skipped and ((wrapped and wrapped[1]) or begins):
            counts[line] = max([s[0] for s in begins] + [wrapped[0] if wrapped else 0])
        wrapped = row[-1] if row else wrapped
    return counts


# ---- What cannot be reached ------------------------------------------------------


def read_excuses(path):
    """The lines of tests/coverage.txt; what is not understood ends the program."""
    excuses, reason = [], False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = re.fullmatch(r"\s+(\S+)\s+(line|never true|never false): (.*\S)", line)
        if match and reason:
            excuses.append(Excuse(f"{path.name}:{number}", *match.groups()))
        elif line.startswith(" ") or match:
            sys.exit(f"{path}:{number}: a reason, then FILE line|never true|never false: TEXT")
        elif not line.startswith("#"):
            reason = bool(line)
    return excuses


def apply_excuses(export, excuses):
    """Take what is excused out of the account; returns how many branches and lines that are."""
    branches = lines = 0
    for excuse in excuses:
        outcome = excuse.what == "never true"
        for condition in export.conditions.values():
            name = (condition.source.name, condition.text)
            excuse.found |= name == (excuse.file, excuse.text)
            if name == (excuse.file, excuse.text) and condition.counts[0 if outcome else 1] == 0:
                condition.excused.add(outcome)
                excuse.matches += 1
                branches += 1
                counts = export.lines[condition.source]
                if outcome and condition.text.startswith("case "):
                    lines += drop_lines(counts, condition.begin[0], condition.begin[0])
                if outcome and condition.block:
                    lines += drop_lines(counts, *condition.block)
    for excuse in [e for e in excuses if e.what == "line"]:
        for source, counts in export.lines.items():
            texts = [line.strip() for line in source.lines]
            excuse.found |= source.name == excuse.file and excuse.text in texts
            for number in [n for n, count in counts.items() if count == 0]:
                text = texts[number - 1]
                if (source.name, text) == (excuse.file, excuse.text):
                    excuse.matches += 1
                    lines += drop_lines(counts, number, number)
    return branches, lines


def drop_lines(counts, first, last):
    gone = [n for n in range(first, last + 1) if counts.get(n) == 0]
    for number in gone:
        del counts[number]
    return len(gone)


# ---- The report ------------------------------------------------------------------


@dataclass
class Total:
    lines: list = field(default_factory=lambda: [0, 0])  # covered, all
    branches: list = field(default_factory=lambda: [0, 0])
    mcdc: list = field(default_factory=lambda: [0, 0])

    def add(self, other):
        for mine, more in zip((self.lines, self.branches, self.mcdc),
                              (other.lines, other.branches, other.mcdc)):
            mine[0] += more[0]
            mine[1] += more[1]

    def row(self, name):
        cells = [f"{covered:6d}/{count:<5d}{percent(covered, count):>7s}"
                 for covered, count in (self.lines, self.branches, self.mcdc)]
        return f"{name:<30}" + "".join(cells)


def percent(covered, count):
    """Rounded down: what is not all never reads 100."""
    return f"{int(10000 * covered / count) / 100:.2f}" if count else "-"


def totals(export):
    """Per file, in the order of the rooms and names."""
    result = {}
    for source, counts in export.lines.items():
        total = result.setdefault(source.name, Total())
        total.lines = [sum(count > 0 for count in counts.values()), len(counts)]
    for condition in filter(lambda c: c.counted, export.conditions.values()):
        total = result[condition.source.name]
        total.branches[0] += 2 - len(condition.excused) - len(condition.missing())
        total.branches[1] += 2 - len(condition.excused)
    for decision in export.decisions.values():
        total = result[decision.source.name]
        total.mcdc[0] += decision.count() - len(decision.missing())
        total.mcdc[1] += decision.count()
    return dict(sorted(result.items()))


def print_table(result):
    print(f"\n{'':<30}{'lines':>12}      %{'branches':>11}      %{'mcdc':>11}       %")
    whole = Total()
    for name, total in result.items():
        if total.lines[1] > 0:
            print(total.row(name))
        whole.add(total)
    print(whole.row("total"))
    return whole


def print_missing(export):
    """What no test reached: lines, outcomes of conditions, conditions that never decided."""
    conditions = filter(lambda c: c.counted, export.conditions.values())
    for source, counts in sorted(export.lines.items(), key=lambda item: item[0].name):
        for number in sorted(n for n, count in counts.items() if count == 0):
            print(f"line    {source.name}:{number}: {source.lines[number - 1].strip()}")
    for condition in sorted(conditions, key=lambda c: (c.source.name, c.begin)):
        for outcome in condition.missing():
            where = f"{condition.source.name}:{condition.begin[0]}"
            print(f"branch  {where}: never {str(outcome).lower()}: {condition.text}")
    for decision in sorted(export.decisions.values(), key=lambda d: (d.source.name, d.begin)):
        where = f"{decision.source.name}:{decision.begin[0]}"
        for condition in decision.missing():
            print(f"mcdc    {where}: never decides alone: {condition.text}   in: {decision.text}")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    least = {"lines": float(sys.argv[2]), "branches": float(sys.argv[3])}
    export = Export(sys.argv[1])
    excuses_path = ROOT / "tests/coverage.txt"
    excuses = read_excuses(excuses_path) if excuses_path.exists() else []
    branches, lines = apply_excuses(export, excuses)
    whole = print_table(totals(export))
    print("\nnot reached:")
    print_missing(export)
    print(f"\n{len(excuses)} entries of tests/coverage.txt take out {branches} branches and "
          f"{lines} lines")
    problems = []
    for e in [e for e in excuses if e.matches == 0]:
        name = f"{e.where}: {e.file} {e.what}: {e.text}"
        if e.found:
            print(f"note    it was reached: {name}")
        else:
            problems.append(f"it is not in the source: {name}")
    for name, bound in least.items():
        covered, count = getattr(whole, name)
        if count == 0 or 100 * covered < bound * count:
            problems.append(f"{name}: {percent(covered, count)} % is less than {bound} %")
    for problem in problems:
        print(f"FAIL    {problem}")
    print(f"coverage: lines {percent(*whole.lines)} %, branches {percent(*whole.branches)} %, "
          f"mcdc {percent(*whole.mcdc)} %")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
