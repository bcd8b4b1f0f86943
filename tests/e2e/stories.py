# SPDX-License-Identifier: MIT
"""What the differential test tells to both sides: stories, one line a step.

    disk NAME FILE                      a disk with a guest
    target NAME FILE [FAIL]             a target; what covers byte FAIL cannot be written
    bitmap DISK NAME GRANULARITY        record from here on
    write DISK OFFSET BYTES SEED        the guest writes; said only if it is refused
    zeroes DISK OFFSET BYTES
    discard DISK OFFSET BYTES
    keep NAME LABEL                     copy a disk or target to FILE.LABEL, to be compared
    bits DISK BITMAP                    say what is dirty
    backup JOB DISK TARGET SYNC BITMAP MODE    declare a job ("-": no bitmap)
    start hold|run JOB                  its point in time; held jobs copy for the guest only
    group grouped|individual hold|run JOB...   the same of several, at one instant
    release JOB                         no longer held
    cancel JOB
    wait JOB                            until it has ended; say how
    fleece NAME DISK TARGET BITMAP      a snapshot of what is dirty in a bitmap ("-": of all)
    read NAME OFFSET BYTES              of the snapshot; say whether it was refused
    forget NAME OFFSET BYTES            discard it in the snapshot
    unfleece NAME DISK

Some things are kept out of the stories on purpose, since the two differ there and are meant to
(tests/e2e/README.md).
"""

import random

CLUSTER = 65536
MIB = 1 << 20
SIZES = [MIB, 4 * MIB, 4 * MIB + 9 * 512, 3 * MIB + 7 * 4096]
GRANULARITIES = [512, 4096, CLUSTER, 4 * CLUSTER]
# (sync, mode) that mean something to both.
MODES = [("full", "on-success"), ("full", "always"), ("bitmap", "on-success"),
         ("bitmap", "never"), ("bitmap", "always"), ("incremental", "on-success")]
ENDS = ["success", "cancel", "failure"]


class Story:
    """One story on one disk or two, with the files it begins with."""

    def __init__(self, title, seed):
        self.title = title
        self.random = random.Random(f"{title} {seed}")
        self.files = {}  # file -> (bytes, "data" or "sparse")
        self.lines = []
        self.sizes = {}  # disk -> bytes
        self.seeds = 0
        self.dirty = {}  # disk -> clusters that the guest has written since `clean`

    def say(self, *words):
        self.lines.append(" ".join(str(word) for word in words))

    def disk(self, name, size=None):
        self.sizes[name] = size or self.random.choice(SIZES)
        self.files[name + ".img"] = (self.sizes[name], "data")
        self.dirty[name] = set()
        self.say("disk", name, name + ".img")

    def target(self, name, disk, kind="data", fail=None):
        self.files[name + ".img"] = (self.sizes[disk], kind)
        self.say("target", name, name + ".img", *([] if fail is None else [fail]))

    def note(self, disk, offset, count):
        self.dirty[disk] |= set(range(offset // CLUSTER, (offset + count - 1) // CLUSTER + 1))

    def clean(self, disk):
        self.dirty[disk] = set()

    def write(self, disk, offset, count):
        self.seeds += 1
        self.note(disk, offset, count)
        self.say("write", disk, offset, count, self.seeds)

    def guest(self, disk, count, discards=False):
        """So many requests, most of them small, some over several clusters, any alignment."""
        for _ in range(count):
            kind = self.random.random()
            length = self.random.choice([1, 512, 4096, 4096, 5000, CLUSTER, 150000])
            offset = self.random.randrange(self.sizes[disk] - length + 1)
            if kind < 0.5:
                offset -= offset % 4096
            if kind < 0.8:
                self.write(disk, offset, length)
            elif kind < 0.95 or not discards:
                self.note(disk, offset, length)
                self.say("zeroes", disk, offset, length)
            else:
                offset -= offset % CLUSTER
                self.note(disk, offset, CLUSTER)
                self.say("discard", disk, offset, min(CLUSTER, self.sizes[disk] - offset))

    def touch(self, disk, cluster):
        """Write somewhere in this cluster."""
        offset = cluster * CLUSTER
        room = min(CLUSTER, self.sizes[disk] - offset)
        self.write(disk, offset + self.random.randrange(room), 1)

    def ordinary_job(self, job, disk, target, sync="full", bitmap="-", mode="-"):
        """From start to success, the guest writing in between."""
        self.say("backup", job, disk, target, sync, bitmap, mode)
        self.say("start hold", job)
        self.clean(disk)
        self.guest(disk, self.random.randrange(1, 6))
        self.say("release", job)
        self.say("wait", job)
        self.say("keep", target, job)
        if bitmap != "-":
            self.say("bits", disk, bitmap)


def full(seed):
    story = Story("full", seed)
    story.disk("a")
    story.target("t", "a")
    story.guest("a", 6, discards=True)
    story.ordinary_job("j1", "a", "t")
    story.guest("a", 6, discards=True)
    story.say("backup j2 a t full - -")
    story.say("start run j2")
    story.guest("a", 3)
    story.say("wait j2")
    story.say("keep t j2")
    story.say("keep a end")
    return story


def chain(seed, granularity):
    """Full, then incrementals onto the same target: it must follow the disk."""
    story = Story(f"chain of incrementals, granularity {granularity}", seed)
    story.disk("a")
    story.target("t", "a")
    story.say("bitmap a b", granularity)
    story.guest("a", 4, discards=True)
    story.ordinary_job("full", "a", "t", "full", "b", "on-success")
    for step in range(1, 5):
        story.guest("a", story.random.randrange(1, 12), discards=True)
        story.ordinary_job(f"inc{step}", "a", "t", "incremental", "b", "on-success")
    story.say("keep a end")
    return story


def modes(seed, sync, mode, end, granularity):
    """One job of each kind and end, and what it does to its bitmap."""
    story = Story(f"{sync}, {mode}, {end}, granularity {granularity}", seed)
    story.disk("a")
    story.say("bitmap a b", granularity)
    story.guest("a", 8, discards=True)
    for cluster in story.random.sample(range(1, story.sizes["a"] // CLUSTER), 3):
        story.touch("a", cluster)  # so there is something to fail, with data in it
        bad = cluster
    todo = story.dirty["a"] if sync != "full" else {0}
    if bad == min(todo):
        story.touch("a", 0)
    first = min(todo)
    story.target("t", "a", fail=bad * CLUSTER if end == "failure" else None)
    story.say("backup j1 a t", sync, "b", mode)
    story.say("start hold j1")
    story.touch("a", first)  # which a held job of QEMU has copied by itself
    story.guest("a", 5)
    story.touch("a", bad)  # refused if it cannot be saved
    if end == "cancel":
        story.say("cancel j1")
    else:
        story.say("release j1")
    story.say("wait j1")
    # QEMU takes whole clusters for missing, the library only what of them was dirty.
    if not (sync == "bitmap" and mode == "always" and end != "success" and granularity < CLUSTER):
        story.say("bits a b")
    if end == "success":
        story.say("keep t j1")
    story.guest("a", 3, discards=True)
    # What the bitmap holds is what is missing: on the same target after a cancel.
    if end == "failure":
        story.target("t2", "a")
    target = "t2" if end == "failure" else "t"
    story.say("backup j2 a", target, "bitmap b on-success")
    story.say("start run j2")
    story.say("wait j2")
    story.say("keep", target, "j2")
    story.say("bits a b")
    return story


def none(seed):
    """Old data go to the target where the guest writes, and nowhere else."""
    story = Story("sync none", seed)
    story.disk("a")
    story.target("t", "a", "sparse")
    story.guest("a", 4, discards=True)
    story.say("backup j1 a t none - -")
    story.say("start run j1")
    story.guest("a", 8)
    story.say("keep t running")
    story.say("cancel j1")
    story.say("wait j1")
    story.guest("a", 2)
    story.say("keep a end")
    return story


def fleece(seed, bitmap):
    """A snapshot is read, and given back in parts, while the guest writes."""
    story = Story("fleecing" + (", with a bitmap" if bitmap else ""), seed)
    story.disk("a")
    story.target("t", "a", "sparse")
    story.say("bitmap a b 65536")
    story.guest("a", 10, discards=True)
    story.say("fleece s a t", "b" if bitmap else "-")
    for _ in range(8):
        story.guest("a", 2)
        for _ in range(3):
            length = story.random.choice([1, 4096, 70000])
            offset = story.random.randrange(story.sizes["a"] - length)
            story.say("read s", offset, length)
        if story.random.random() < 0.6:
            count = story.random.choice([1, 3])
            cluster = story.random.randrange(story.sizes["a"] // CLUSTER - count)
            story.say("forget s", cluster * CLUSTER, count * CLUSTER)
    story.say("keep t running")
    story.say("unfleece s a")
    story.say("bits a b")
    story.guest("a", 2)
    story.say("keep a end")
    return story


def group(seed, completion, end):
    """Two disks; what becomes of the first job when the second one does not succeed."""
    story = Story(f"group, {completion}, {end}", seed)
    for disk in "ab":
        story.disk(disk)
        story.say("bitmap", disk, "m", CLUSTER)
        story.guest(disk, 6, discards=True)
    bad = story.random.randrange(1, story.sizes["b"] // CLUSTER)
    story.touch("b", bad)
    if min(story.dirty["b"]) == bad:
        story.touch("b", 0)
    story.target("ta", "a")
    story.target("tb", "b", fail=bad * CLUSTER if end == "failure" else None)
    story.say("backup ja a ta incremental m on-success")
    story.say("backup jb b tb incremental m on-success")
    story.say("group", completion, "hold ja jb")
    for disk in "ab":
        story.guest(disk, 4)
    if end == "cancel":
        story.say("cancel jb")
        if completion == "individual":
            story.say("release ja")
    else:
        story.say("release ja")
        story.say("release jb")
    for job in ("ja", "jb"):
        story.say("wait", job)
    for disk in "ab":
        story.say("bits", disk, "m")
    if end == "success" or completion == "individual":
        story.say("keep ta end")
    if end == "success":
        story.say("keep tb end")
    return story


def all_stories(seed):
    stories = [full(seed), none(seed), fleece(seed, False), fleece(seed, True)]
    stories += [chain(seed, granularity) for granularity in GRANULARITIES]
    stories += [group(seed, completion, end) for completion in ("grouped", "individual")
                for end in ENDS]
    for number, (sync, mode) in enumerate(MODES):
        for turn, end in enumerate(ENDS):
            for granularity in {CLUSTER, GRANULARITIES[(seed + number + turn) % 4]}:
                stories.append(modes(seed, sync, mode, end, granularity))
    return stories
