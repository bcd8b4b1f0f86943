#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The public headers are a valid cffi cdef, and the built library answers through it.

Lines that begin with "#" are dropped, except `#define NAME number`; so are the words BLKREPL_API
and BLKREPL_BEGIN/END_DECLS.
"""

import re

from common import Report, main, public_headers


def in_order(headers):
    """The headers, each after those it includes."""
    by_name = {header.name: header for header in headers}
    done = []

    def visit(header):
        if header in done:
            return
        for name in re.findall(r"#include <libblkrepl/(\w+\.h)>", header.read_text()):
            if name in by_name and name != header.name:
                visit(by_name[name])
        done.append(header)

    for header in headers:
        visit(header)
    return done


def cdef(header):
    """What remains of a header for cffi."""
    lines = []
    for line in header.read_text().splitlines():
        if line.startswith("#"):
            number = re.match(r"#define \w+ (0x[0-9a-fA-F]+|-?\d+)$", line)
            line = line if number else ""
        lines.append(re.sub(r"\bBLKREPL_(API|BEGIN_DECLS|END_DECLS)\b", "", line))
    return "\n".join(lines) + "\n"


def header_version(root):
    text = (root / "include/libblkrepl/version.h").read_text()
    return ".".join(re.findall(r"#define BLKREPL_VERSION_\w+ (\d+)", text))


def check(root, library=None):
    report = Report()
    try:
        from cffi import FFI
    except ImportError:
        report.add("cffi", "python3-cffi is not installed")
        return report
    ffi = FFI()
    headers = in_order(public_headers(root))
    report.summary = f"{len(headers)} headers"
    for header in headers:
        try:
            ffi.cdef(cdef(header))
        except Exception as error:  # cffi and pycparser raise many kinds
            report.add(header.relative_to(root), f"cdef: {str(error).splitlines()[0]}")
            return report
    if library is not None:
        try:
            opened = ffi.dlopen(str(library.resolve()))
            version = ffi.string(opened.blkrepl_version()).decode()
        except (OSError, AttributeError) as error:
            report.add(library.name, str(error).splitlines()[0])
            return report
        if version != header_version(root):
            report.add(library.name, f"says version {version}; headers: {header_version(root)}")
        report.summary += f", library answers {version}"
    return report


if __name__ == "__main__":
    main(check)
