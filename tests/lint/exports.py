#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One list of exported functions: public headers = map = tests/abi/exports.txt = built library.

    exports.py              check
    exports.py --write      write tests/abi/exports.txt anew from the map
"""

import re
import subprocess
import sys

from common import ROOT, Report, declarations, main, without_comments


def map_nodes(root):
    """{function: node} of the version script."""
    text = without_comments((root / "lib/libblkrepl.map").read_text())
    found = {}
    for node, body in re.findall(r"(\w[\w.]*)\s*\{(.*?)\}", text, re.DOTALL):
        visible = body.split("local:")[0]
        found.update({name: node for name in re.findall(r"(\w+)\s*;", visible)})
    return found


def recorded(root):
    """{function: node} of tests/abi/exports.txt."""
    path = root / "tests/abi/exports.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split() for line in lines if line.strip() and not line.startswith("#"))


def library_exports(library):
    """{function: node} of a built shared library."""
    command = ["nm", "-D", "--defined-only", str(library)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-1] for line in output.splitlines()]
    pairs = [re.split("@+", symbol) for symbol in symbols if "@" in symbol]
    plain = [s for s in symbols if "@" not in s and not s.startswith("LIBBLKREPL_")]
    return {**{pair[0]: pair[1] for pair in pairs}, **{symbol: "no version" for symbol in plain}}


def since(declaration):
    for line in declaration.doc or []:
        match = re.match(r"Since:\s*([\d.]+)", line)
        if match:
            return "LIBBLKREPL_" + match.group(1)
    return "no Since"


def compare(report, where, wanted, found):
    for name in sorted(set(wanted) | set(found)):
        if name not in found:
            report.add(where, f"{name} is missing")
        elif name not in wanted:
            report.add(where, f"{name} is in no public header")
        elif wanted[name] != found[name]:
            report.add(where, f"{name}: {found[name]}, its header says {wanted[name]}")


def check(root, library=None):
    report = Report()
    wanted = {d.name: since(d) for d in declarations(root)}
    compare(report, "lib/libblkrepl.map", wanted, map_nodes(root))
    compare(report, "tests/abi/exports.txt", wanted, recorded(root))
    if library is not None:
        compare(report, library.name, wanted, library_exports(library))
    looked = "with the built library" if library is not None else "no built library"
    report.summary = f"{len(wanted)} functions, {looked}"
    return report


def write(root):
    lines = [f"{name} {node}\n" for name, node in sorted(map_nodes(root).items())]
    (root / "tests/abi/exports.txt").write_text("".join(lines))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write(ROOT)
    else:
        main(check)
