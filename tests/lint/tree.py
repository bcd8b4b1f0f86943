#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tree: what may lie at the top, SPDX lines, versions that agree, no path of one machine."""

import re

from common import Report, all_files, main

TOP = """lib include examples bindings tests fuzz pkgconfig docs CMakeLists.txt CMakePresets.json
README.md LICENSE CHANGES.md CONTRIBUTING.md .ci .gitignore .gitattributes .clang-format .clang-tidy
.editorconfig""".split()

SOURCE_NAMES = re.compile(r".*\.(c|h|cc|cpp|hpp|py|sh|map)$|CMakeLists\.txt$")
# Written so that this file does not contain what it looks for.
MACHINE_PATH = re.compile("/" + r"(?:work|home|root|Users)" + "/" + r"\w")


def is_source(path, text):
    return bool(SOURCE_NAMES.match(path.name)) or text.startswith("#!")


def check_versions(report, root):
    """CMakeLists.txt, version.h and CHANGES.md name the same release."""
    header = (root / "include/libblkrepl/version.h").read_text()
    versions = {"version.h": ".".join(re.findall(r"BLKREPL_VERSION_\w+ (\d+)", header))}
    for name, pattern in (("CMakeLists.txt", r"project\(libblkrepl VERSION ([\d.]+)"),
                          ("CHANGES.md", r"^## ([\d.]+)")):
        path = root / name
        found = re.search(pattern, path.read_text(), re.M) if path.exists() else None
        versions[name] = found.group(1) if found else "none"
    if len(set(versions.values())) != 1:
        report.add("version", ", ".join(f"{file}: {v}" for file, v in versions.items()))


def check(root):
    report = Report()
    everything = all_files(root)
    sources = 0
    for top in sorted({path.relative_to(root).parts[0] for path in everything} - set(TOP)):
        report.add(top, "does not belong at the top of the tree")
    for path in everything:
        name = path.relative_to(root)
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if is_source(path, text):
            sources += 1
            if "SPDX-License-Identifier: MIT" not in "".join(text.splitlines(True)[:3]):
                report.add(name, "no SPDX line at its head")
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                report.add(f"{name}:{number}", "names a path of one machine")
    check_versions(report, root)
    report.summary = f"{len(everything)} files, {sources} sources"
    return report


if __name__ == "__main__":
    main(check)
