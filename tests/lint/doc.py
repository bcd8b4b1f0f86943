#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Doc comments of the public headers: labelled fields, their order; and man pages from them.

    doc.py              check
    doc.py --man DIR    write a page per function and per header into DIR
"""

import re
import sys
from pathlib import Path

from common import (ROOT, Report, comment_lines, declarations, header_comment, line_of, main,
                    public_headers, without_comments)

LABELS = ["Ownership", "Callbacks", "Thread", "States", "Returns", "Since"]
REQUIRED = ["Thread", "Returns", "Since"]
LABEL = re.compile(r"([A-Z][a-z]+):( +|$)(.*)")
TEXT_COLUMN = 12


def parts(doc):
    """A doc comment as (summary, description lines, [(label, lines)])."""
    end = doc.index("") if "" in doc else len(doc)
    summary, rest = " ".join(doc[:end]), doc[end:]
    fields = []
    description = []
    for line in rest:
        match = LABEL.match(line)
        if match and (match.group(1) in LABELS or len(match.group(2)) > 1):
            fields.append((match.group(1), [line]))
        elif fields and line:
            fields[-1][1].append(line)
        elif not fields:
            description.append(line)
    return summary, description, fields


def field_text(lines):
    return [re.sub(r"^[A-Z][a-z]+:", "", lines[0]).strip()] + [line.strip() for line in lines[1:]]


def field_problems(fields):
    labels = [label for label, _ in fields]
    for label in labels:
        if label not in LABELS:
            yield f"unknown field {label}"
        if labels.count(label) > 1:
            yield f"field {label} occurs twice"
    for label in REQUIRED:
        if label not in labels:
            yield f"field {label} is missing"
    known = [LABELS.index(label) for label in labels if label in LABELS]
    if known != sorted(known):
        yield "fields are not in the order " + ", ".join(LABELS)
    for label, lines in fields:
        for line in lines:
            body = line[len(label) + 1 :] if line is lines[0] else line
            column = len(line) - len(body.lstrip())
            if column < TEXT_COLUMN or (line is lines[0] and column > TEXT_COLUMN):
                yield f"field {label}: the text begins in column {TEXT_COLUMN}"
                break


def problems(declaration):
    """What is wrong with the doc comment of one function."""
    if not declaration.doc:
        yield "has no doc comment"
        return
    summary, _, fields = parts(declaration.doc)
    words = summary.split()
    if not summary.endswith(".") or not summary[0].isupper():
        yield "the first paragraph is not one sentence"
    if words and re.search(r"[^s]s$", words[0]):
        yield f'the first sentence is not imperative: "{words[0]} ..."'
    yield from field_problems(fields)


def check_types(report, root, header):
    """Every struct, enum and handle has a doc comment too."""
    text = header.read_text()
    name = header.relative_to(root)
    count = 0
    if "@file" not in header_comment(text):
        report.add(name, "has no @file comment")
    code = without_comments(text)
    for match in re.finditer(r"^(?:typedef struct|enum|struct|union) \w+", code, re.M):
        count += 1
        before = text[: match.start()].rstrip()
        if not before.endswith("*/") or not before.startswith("/**", before.rindex("/*")):
            where = f"{name}:{line_of(text, match.start())}"
            report.add(where, f"{match.group()} has no doc comment")
    return count


def check(root):
    report = Report()
    found = declarations(root)
    for declaration in found:
        where = f"{declaration.header.relative_to(root)}:{declaration.line}"
        for problem in problems(declaration):
            report.add(where, f"{declaration.name}: {problem}")
    headers = public_headers(root)
    types = sum(check_types(report, root, header) for header in headers)
    report.summary = f"{len(headers)} headers, {len(found)} functions, {types} types"
    return report


# ---- Man pages -----------------------------------------------------------------------------------

SECTIONS = {"Ownership": "OWNERSHIP", "Callbacks": "CALLBACKS", "Thread": "THREADS",
            "States": "STATES", "Returns": "RETURN VALUE", "Since": "HISTORY"}


def roff(line):
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + line if line[:1] in (".", "'") else line


def roff_text(lines):
    """Paragraphs; indented lines are shown as they are."""
    out, literal = [], False
    for line in lines:
        if line and line.startswith(" ") != literal:
            literal = not literal
            out.append(".nf" if literal else ".fi")
        if line:
            out.append(roff(line))
        else:
            out.append("" if literal else ".PP")
    return out + ([".fi"] if literal else [])


def page_head(name, summary, version):
    return [f'.TH "{name}" 3 "" "libblkrepl {version}" "libblkrepl"', ".SH NAME",
            f"{roff(name)} \\- {roff(summary)}"]


def see_also(names):
    lines = [f".BR {name} (3) ," for name in names]
    return [".SH SEE ALSO"] + lines[:-1] + [lines[-1].removesuffix(" ,")] if lines else []


def function_page(declaration, version):
    summary, description, fields = parts(declaration.doc)
    short = summary.rstrip(".")
    page = page_head(declaration.name, short[:1].lower() + short[1:], version)
    include = f"#include <libblkrepl/{declaration.header.name}>"
    page += [".SH SYNOPSIS", ".nf", include, "", roff(declaration.prototype), ".fi"]
    while description and not description[0]:
        description.pop(0)
    page += [".SH DESCRIPTION"] + roff_text(description or [summary])
    for label, lines in fields:
        text = field_text(lines)
        if label == "Since":
            text = [f"Since version {text[0]}."]
        page += [f'.SH "{SECTIONS[label]}"'] + [roff(line) for line in text]
    others = set(re.findall(r"blkrepl_\w+(?=\()", "\n".join(declaration.doc)))
    names = sorted(others - {declaration.name}) + [f"libblkrepl-{declaration.header.stem}"]
    return "\n".join(page + see_also(names)) + "\n"


def header_page(header, names, version):
    text = header.read_text()
    lines = [line for comment in re.findall(r"/\*\*.*?\*/", header_comment(text), re.DOTALL)
             for line in comment_lines(comment) if not line.startswith("@file")]
    summary = lines[0].rstrip(".") if lines else header.name
    page = page_head(f"libblkrepl-{header.stem}", summary, version)
    page += [".SH SYNOPSIS", f"#include <libblkrepl/{header.name}>", ".SH DESCRIPTION"]
    page += roff_text(lines)
    types = re.findall(r"^/\*\*(?:(?!\*/).)*\*/\n(?:typedef struct|enum) \w+ \{.*?^\}[^;]*;",
                       text, re.M | re.DOTALL)
    if types:
        lines = [line for text in types for line in (text + "\n").split("\n")]
        page += [".SH TYPES", ".nf"] + [roff(line) for line in lines] + [".fi"]
    return "\n".join(page + see_also(names)) + "\n"


def write_man(root, folder):
    """One page per function and one per header; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (root / "include/libblkrepl/version.h").read_text()
    version = ".".join(re.findall(r"#define BLKREPL_VERSION_\w+ (\d+)", text))
    found = declarations(root)
    for declaration in found:
        (folder / f"{declaration.name}.3").write_text(function_page(declaration, version))
    headers = public_headers(root)
    for header in headers:
        names = [d.name for d in found if d.header == header]
        (folder / f"libblkrepl-{header.stem}.3").write_text(header_page(header, names, version))
    return len(found) + len(headers)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--man":
        print(write_man(ROOT, Path(sys.argv[2])), "pages")
    else:
        main(check)
