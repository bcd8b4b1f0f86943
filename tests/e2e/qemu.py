# SPDX-License-Identifier: MIT
"""QEMU's side of the differential test: a story told to a qemu-storage-daemon.

Jobs, bitmaps and filters are made with QMP, over the daemon's standard input and output; the guest
writes through an NBD export, over a Unix socket.  tests/e2e/stories.py explains the words of a
story.
"""

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time

DAEMON = "qemu-storage-daemon"
LIMIT_SECONDS = 60
CLUSTER = 65536
SLOW = 1  # bytes per second: one cluster, and then nothing for as long as anybody looks


class QmpError(Exception):
    """The answer of a command that was refused."""


def pattern(seed, count):
    """What a write of this seed writes; replay.c has the same."""
    word = (seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF
    return (struct.pack("<Q", word) * (count // 8 + 1))[:count]


class Nbd:
    """A client of one export; one request at a time."""

    OPTION_GO = 7
    READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_SECONDS)
        self.socket.connect(path)
        magic, option_magic, _ = struct.unpack(">8s8sH", self.receive(18))
        if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise OSError("this is no NBD server")
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", self.OPTION_GO, len(data)) + data)
        reply = 0
        while reply != 1:  # information may come before the acknowledgement
            _, _, reply, length = struct.unpack(">QIII", self.receive(20))
            self.receive(length)
            if reply & 0x80000000:
                raise OSError(f"export {export}: option reply {reply:#x}")

    def receive(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise OSError("the NBD server has gone")
            data += part
        return data

    def request(self, command, offset, count, data=b"", answer=0):
        """The error (0: none), and the data of a read."""
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 1, offset, count) + data)
        magic, error, _ = struct.unpack(">IIQ", self.receive(16))
        if magic != 0x67446698:
            raise OSError("this is no NBD reply")
        return error, self.receive(answer) if error == 0 else b""

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, self.DISCONNECT, 1, 0, 0))
        self.socket.close()


class Daemon:
    """A qemu-storage-daemon, and QMP with it."""

    def __init__(self, folder):
        self.socket = os.path.join(folder, "nbd")
        self.process = subprocess.Popen(
            [DAEMON, "--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp",
             "--nbd-server", f"addr.type=unix,addr.path={self.socket}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder)
        self.answer("QMP")
        self.command("qmp_capabilities")

    def answer(self, *keys):
        """The next message that has one of the keys; events are passed over."""
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise OSError(f"{DAEMON} has ended")
            message = json.loads(line)
            if any(key in message for key in keys):
                return message

    def command(self, verb, **arguments):
        message = {"execute": verb}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value
                                    for key, value in arguments.items()}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.answer("return", "error")
        if "error" in answer:
            raise QmpError(f"{verb}: {answer['error']['desc']}")
        return answer["return"]

    def close(self):
        with contextlib.suppress(OSError, QmpError):
            self.command("quit")
        try:
            self.process.wait(LIMIT_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()


class Replay:
    """Carries out a story; what it has to tell is in `log`."""

    def __init__(self, folder):
        self.folder = folder
        self.log = []
        self.files = {}    # name of a disk or target -> file
        self.guests = {}   # disk -> its NBD client
        self.readers = {}  # snapshot -> its NBD client
        self.jobs = {}     # job -> arguments of blockdev-backup
        self.reads = open(os.path.join(folder, "reads"), "wb")
        self.daemon = Daemon(folder)

    def close(self):
        for client in [*self.guests.values(), *self.readers.values()]:
            client.close()
        self.daemon.close()
        self.reads.close()

    def run(self, story):
        for line in story:
            verb, *words = line.split()
            getattr(self, "do_" + verb)(*words)

    # ---- disks and the guest

    def file_node(self, name, file):
        self.files[name] = file
        return {"driver": "file", "filename": file, "discard": "unmap"}

    def attach_guest(self, disk, node):
        self.daemon.command("block-export-add", type="nbd", id="guest-" + disk, node_name=node,
                            name="guest-" + disk, writable=True)
        self.guests[disk] = Nbd(self.daemon.socket, "guest-" + disk)

    def detach(self, clients, name, export):
        clients.pop(name).close()
        self.daemon.command("block-export-del", id=export, mode="hard")
        self.wait_until(lambda: all(e["id"] != export
                                    for e in self.daemon.command("query-block-exports")))

    def wait_until(self, fact):
        end = time.monotonic() + LIMIT_SECONDS
        while not fact():
            if time.monotonic() > end:
                raise TimeoutError("the daemon does not get on")
            time.sleep(0.002)

    def do_disk(self, name, file):
        self.daemon.command("blockdev-add", node_name=name, **self.file_node(name, file))
        self.attach_guest(name, name)

    def do_target(self, name, file, fail=None):
        node = self.file_node(name, file)
        if fail is not None:
            rules = [{"event": "none", "iotype": kind, "errno": 5, "sector": int(fail) // 512}
                     for kind in ("write", "write-zeroes")]
            node = {"driver": "blkdebug", "image": node, "inject-error": rules}
        self.daemon.command("blockdev-add", node_name=name, **node)

    def guest(self, line, disk, *request):
        error, _ = self.guests[disk].request(*request)
        if error:
            self.log.append(f"{line} refused")

    def do_write(self, disk, offset, count, seed):
        data = pattern(int(seed), int(count))
        self.guest(f"write {disk} {offset}", disk, Nbd.WRITE, int(offset), int(count), data)

    def do_zeroes(self, disk, offset, count):
        self.guest(f"zeroes {disk} {offset}", disk, Nbd.ZEROES, int(offset), int(count))

    def do_discard(self, disk, offset, count):
        self.guest(f"discard {disk} {offset}", disk, Nbd.TRIM, int(offset), int(count))

    def do_keep(self, name, label):
        """A copy of what a disk or target holds now."""
        if name in self.guests:
            self.guests[name].request(Nbd.FLUSH, 0, 0)
        file = os.path.join(self.folder, self.files[name])
        shutil.copyfile(file, f"{file}.{label}")

    # ---- bitmaps

    def do_bitmap(self, disk, name, granularity):
        self.daemon.command("block-dirty-bitmap-add", node=disk, name=name,
                            granularity=int(granularity))

    def do_bits(self, disk, name):
        """How many granules are dirty, and the digest of which."""
        digest = self.daemon.command("x-debug-block-dirty-bitmap-sha256", node=disk, name=name)
        nodes = self.daemon.command("query-named-block-nodes", flat=True)
        bitmaps = next(n for n in nodes if n["node-name"] == disk)["dirty-bitmaps"]
        found = next(b for b in bitmaps if b["name"] == name)
        count = found["count"] // found["granularity"]
        self.log.append(f"bits {disk} {name} {count} {digest['sha256']}")

    # ---- jobs

    def do_backup(self, job, disk, target, sync, bitmap, mode):
        self.jobs[job] = {"job-id": job, "device": disk, "target": target, "sync": sync,
                          "auto-dismiss": False,
                          "x-perf": {"max-workers": 1, "max-chunk": CLUSTER}}
        if bitmap != "-":
            self.jobs[job].update({"bitmap": bitmap, "bitmap-mode": mode})

    def do_start(self, how, *jobs):
        for job in jobs:
            self.jobs[job]["speed"] = SLOW if how == "hold" else 0
        if len(jobs) == 1:
            self.daemon.command("blockdev-backup", **self.jobs[jobs[0]])

    def do_group(self, completion, how, *jobs):
        self.do_start(how, *jobs)
        actions = [{"type": "blockdev-backup", "data": self.jobs[job]} for job in jobs]
        self.daemon.command("transaction", actions=actions,
                            properties={"completion-mode": completion})

    def do_release(self, job):
        self.daemon.command("block-job-set-speed", device=job, speed=0)

    def do_cancel(self, job):
        self.daemon.command("job-cancel", id=job)

    def state(self, job):
        return next(j for j in self.daemon.command("query-jobs") if j["id"] == job)

    def do_wait(self, job):
        self.wait_until(lambda: self.state(job)["status"] == "concluded")
        error = self.state(job).get("error")
        result = "done" if error is None else "failed"
        result = "cancelled" if error == "Operation canceled" else result
        self.log.append(f"job {job} {result}")
        self.daemon.command("job-dismiss", id=job)

    # ---- a snapshot to read from

    def do_fleece(self, name, disk, target, bitmap):
        """The filter goes on top of the disk, and the guest on top of the filter."""
        self.detach(self.guests, disk, "guest-" + disk)
        only = {} if bitmap == "-" else {"bitmap": {"node": disk, "name": bitmap}}
        self.daemon.command("blockdev-add", driver="copy-before-write", node_name="cbw-" + name,
                            file=disk, target=target, discard="unmap", **only)
        self.attach_guest(disk, "cbw-" + name)
        self.daemon.command("blockdev-add", driver="snapshot-access", node_name=name,
                            file="cbw-" + name, discard="unmap")
        self.daemon.command("block-export-add", type="nbd", id=name, node_name=name, name=name,
                            writable=True)  # for discards only
        self.readers[name] = Nbd(self.daemon.socket, name)

    def do_read(self, name, offset, count):
        """Cluster by cluster: QEMU 7.2 reads new data where a read begins in a saved cluster and
        ends in one that is not."""
        data = b""
        error = 0
        start, end = int(offset), int(offset) + int(count)
        while start < end and not error:
            piece = min(end, start // CLUSTER * CLUSTER + CLUSTER) - start
            error, part = self.readers[name].request(Nbd.READ, start, piece, answer=piece)
            data += part
            start += piece
        self.log.append(f"read {name} {offset} {'refused' if error else 'good'}")
        self.reads.write(b"" if error else data)

    def do_forget(self, name, offset, count):
        error, _ = self.readers[name].request(Nbd.TRIM, int(offset), int(count))
        self.log.append(f"forget {name} {offset} {'refused' if error else 'good'}")

    def do_unfleece(self, name, disk):
        self.detach(self.readers, name, name)
        self.detach(self.guests, disk, "guest-" + disk)
        self.daemon.command("blockdev-del", node_name=name)
        self.daemon.command("blockdev-del", node_name="cbw-" + name)
        self.attach_guest(disk, disk)
