# SPDX-License-Identifier: MIT
"""What the checks share: finding files, and reading C well enough for our style."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ["base", "data", "core", "block", "job", "repl"]


@dataclass
class Report:
    """What one check found: problems as "file:line: text", and what it looked at."""

    problems: list = field(default_factory=list)
    summary: str = ""

    def add(self, where, text):
        self.problems.append(f"{where}: {text}")


def files(root, patterns):
    """The files below root that match one of the patterns, sorted, build trees left out."""
    found = {p for pattern in patterns for p in root.glob(pattern) if p.is_file()}
    return sorted(p for p in found if "__pycache__" not in p.parts)


def all_files(root):
    """Every file of the project: what git knows or would take, else everything."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (root / ".git").exists():
        names = subprocess.run(git, check=True, capture_output=True).stdout.decode().split("\0")
        return sorted(root / n for n in names if n and (root / n).is_file())
    return sorted(
        p for p in root.rglob("*") if p.is_file() and p.relative_to(root).parts[0] != "build"
    )


def lib_files(root):
    return files(root, ["lib/**/*.c", "lib/**/*.h"])


def public_headers(root):
    return files(root, ["include/libblkrepl/*.h"])


def line_of(text, position):
    return text.count("\n", 0, position) + 1


# A comment, a string or a character; strings first, so that "/*" in one is not a comment.
_LEXEME = re.compile(
    r'"(?:\\.|[^"\\\n])*"' r"|'(?:\\.|[^'\\\n])*'" r"|/\*.*?\*/" r"|//[^\n]*", re.DOTALL
)


def _blank(text):
    return re.sub(r"[^\n]", " ", text)


def without_comments(text, keep_strings=False):
    """The text with comments (and the inside of strings) blanked, positions unchanged."""

    def replace(match):
        lexeme = match.group()
        if lexeme[0] in "\"'":
            return lexeme if keep_strings else lexeme[0] + _blank(lexeme[1:-1]) + lexeme[-1]
        return _blank(lexeme)

    return _LEXEME.sub(replace, text)


def without_directives(code):
    """Preprocessor lines blanked as well, with their continuations."""
    return re.sub(
        r"^[ \t]*#(?:[^\n\\]|\\.)*(?:\\\n[^\n]*)*", lambda m: _blank(m.group()), code, flags=re.M
    )


def match_close(code, position):
    """The position of the bracket that closes the one at `position`."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    opening, closing = code[position], pairs[code[position]]
    depth = 0
    for i in range(position, len(code)):
        if code[i] == opening:
            depth += 1
        elif code[i] == closing:
            depth -= 1
            if depth == 0:
                return i
    return len(code) - 1


def split_commas(text):
    """The parts of a parameter list."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [p for p in parts if p]


@dataclass
class Function:
    name: str
    line: int  # of the name
    line_count: int  # from there to the closing brace
    parameters: list
    body: str  # without comments


def functions(text):
    """The functions defined in a C file that is written in our style."""
    code = without_directives(without_comments(text))
    found, position = [], 0
    while True:
        brace = code.find("{", position)
        if brace < 0:
            return found
        close = match_close(code, brace)
        head = code[position:brace]
        match = re.search(r"(\w+)\s*\(", head.rsplit(";", 1)[-1])
        if head.rstrip().endswith(")") and match:
            start = position + len(head) - len(head.rsplit(";", 1)[-1]) + match.start()
            paren = code.index("(", start)
            inside = code[paren + 1 : match_close(code, paren)]
            parameters = [p for p in split_commas(inside) if p != "void"]
            first, last = line_of(code, start), line_of(code, close)
            body = code[brace : close + 1]
            found.append(Function(match.group(1), first, last - first + 1, parameters, body))
        position = close + 1


def header_comment(text):
    """The comments a file begins with, as one text."""
    match = re.match(r"(?:\s*/\*.*?\*/)+", text, re.DOTALL)
    return match.group() if match else ""


@dataclass
class Declaration:
    """An exported function of a public header."""

    name: str
    header: Path
    line: int
    prototype: str
    doc: list  # lines of the doc comment before it, without " * "; None: there is none


def comment_lines(comment):
    """The text lines of a /** comment */."""
    inside = re.sub(r"^/\*\*?|\*/$", "", comment.strip())
    lines = [re.sub(r"^[ \t]*\*? ?", "", line).rstrip() for line in inside.split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def declarations(root):
    """All BLKREPL_API functions of the public headers."""
    found = []
    for header in public_headers(root):
        text = header.read_text()
        code = without_directives(without_comments(text))
        for match in re.finditer(r"\bBLKREPL_API\b([^;{]*?\b(\w+)\s*\([^;]*);", code):
            before = text[: match.start()].rstrip()
            doc = None
            if before.endswith("*/"):
                start = before.rindex("/*")
                if before.startswith("/**", start):
                    doc = comment_lines(before[start:])
            prototype = " ".join(match.group(1).split()) + ";"
            found.append(
                Declaration(match.group(2), header, line_of(text, match.start()), prototype, doc)
            )
    return found


def main(check):
    """Run one check alone, from the command line."""
    report = check(ROOT)
    for problem in report.problems:
        print(problem)
    print(report.summary)
    sys.exit(1 if report.problems else 0)
