#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Choose a small corpus:  fuzz/pick.py MERGE_CONTROL_FILE CORPUS

Reads what libFuzzer -set_cover_merge=1 wrote about each input, takes inputs until every edge of the library is
reached, then those that add most features, small ones first, within the limits; CORPUS gets the
inputs that were chosen and loses all others.
"""

import os
import shutil
import sys

INPUTS_MAX = 200
BYTES_MAX = 250_000
# What an input has to add to be worth its place.
FEATURES_LEAST = 3


def read(path):
    """The inputs as {name: (size, edges, features)}."""
    with open(path, encoding="ascii") as file:
        lines = file.read().split("\n")
    count = int(lines[0])
    names = lines[2 : 2 + count]
    inputs = {name: [0, frozenset(), frozenset()] for name in names}
    for line in lines[2 + count :]:
        words = line.split()
        if not words:
            continue
        entry = inputs[names[int(words[1])]]
        if words[0] == "STARTED":
            entry[0] = int(words[2])
        elif words[0] == "FT":
            # An edge has eight features: how often it was taken, in powers of two.
            entry[1] = frozenset(int(word) // 8 for word in words[2:])
            entry[2] = frozenset(words[2:])
    return inputs


def take(inputs, chosen, which, least):
    """Greedily add inputs while one adds at least `least` of its sets number `which`."""
    reached = set().union(*(inputs[name][which] for name in chosen))
    left = {name: len(entry[which] - reached) for name, entry in inputs.items()}
    while len(chosen) < INPUTS_MAX and sum(inputs[n][0] for n in chosen) < BYTES_MAX:
        best = max(left, key=lambda name: (left[name], -inputs[name][0], name))
        # Gains only shrink, so most are not worth a new count.
        gain = len(inputs[best][which] - reached)
        if gain != left[best]:
            left[best] = gain
            continue
        if gain < least:
            return
        chosen.append(best)
        reached |= inputs[best][which]


def main():
    control, corpus = sys.argv[1:]
    inputs = read(control)
    chosen = []
    if inputs:
        take(inputs, chosen, 1, 1)
        edges = len(chosen)
        take(inputs, chosen, 2, FEATURES_LEAST)
        print(f"{len(inputs)} inputs; {edges} for the edges, {len(chosen) - edges} for features")
    fresh = corpus + ".new"
    os.makedirs(fresh)
    for path in chosen:
        shutil.copyfile(path, os.path.join(fresh, os.path.basename(path)))
    shutil.rmtree(corpus)
    os.rename(fresh, corpus)


if __name__ == "__main__":
    main()
