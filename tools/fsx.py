"""fsx with the same seeds on a mount and on the filesystem beside it. Part of tools/suites."""

import concurrent.futures
import fcntl
import filecmp
import os
import re
import shutil
import struct
import subprocess
import termios
import time

# Every operation that fsx has. The sizes make a file of some twenty chunks; no operation is empty, because
# posix_fallocate refuses that.
CONFIG = """flen = 1048576
nomsyncafterwrite = {nomsync}
[opsize]
min = 1
max = 131072
[weights]
read = 10
write = 10
mapread = 5
mapwrite = 10
truncate = 3
punch_hole = 3
posix_fallocate = 1
copy_file_range = 3
sendfile = 1
posix_fadvise = 1
invalidate = 1
close_open = 1
fsync = 0.5
fdatasync = 0.5
"""
EVERY = 1000


class Fsx:
    """The program, with one configuration."""

    def __init__(self, binary, home, msync):
        """msync: after each store through a mapping, which the disk below has to wait for each time."""
        self.binary = binary
        self.home = home
        self.name = "msync" if msync else "no-msync"
        self.config = os.path.join(home, f"fsx-{self.name}.toml")
        with open(self.config, "w", encoding="ascii") as f:
            f.write(CONFIG.format(nomsync="false" if msync else "true"))

    def command(self, seed, operations, path, *more):
        # What it saves when it finds a difference goes beside its log, not onto the mount.
        options = ["-f", self.config, "-S", str(seed), "-N", str(operations), "-P", self.home]
        return [self.binary, *options, *more, path]

    def run(self, seed, operations, paths):
        """The same at once on all paths. Returns for each "ok" or what failed, and the seconds it took."""
        with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(lambda path: self.one(seed, operations, path), paths))

    def one(self, seed, operations, path):
        start = time.monotonic()
        place = os.path.basename(os.path.dirname(path))
        log = os.path.join(self.home, f"fsx-{self.name}-{seed}-{operations}-{place}.log")
        with open(log, "wb") as out:
            done = subprocess.run(self.command(seed, operations, path), stdout=out, stderr=out, check=False)
        took = time.monotonic() - start
        return ("ok" if done.returncode == 0 else f"exit {done.returncode}, see {log}"), took

    def paused(self, seed, operations, path):
        return Paused(self.command(seed, operations, path, "-vv"), operations)


class Paused:
    """A run that can be stopped between two operations, exactly.

    fsx tells each operation in a line on stderr, by one write(2), before it begins it. Here stderr is a pipe in
    packet mode (O_DIRECT) of one page: room for one line, however short. While the lines before line K are read
    and no more, fsx puts line K into the pipe, does operation K, and sleeps in the write of line K+1 until line
    K is taken out. There it is stopped for as long as one likes, with K operations done and the next not begun:
    no signal has to arrive in time, and the history is that of a single run. That it sleeps there, and not in
    operation K, is told by the kernel (/proc/PID/syscall).
    """

    def __init__(self, command, operations):
        self.operations = operations
        self.seen = 0
        self.out, into = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=into)
        os.close(into)
        # Its first line names the seed.
        said = os.read(self.out, 4096)
        if b"Using seed" not in said:
            self.wrong(said)

    def advance(self, to):
        """Lets it go on until so many operations are done and no more."""
        last = to == self.operations
        while self.seen < to - (0 if last else 1):
            self.line()
        if last:
            if os.read(self.out, 4096) or self.process.wait() != 0:
                raise RuntimeError(f"fsx did not end well after {to} operations")
            return
        while not (self.waiting() and self.sleeps_in_write()):
            if self.process.poll() is not None:
                raise RuntimeError(f"fsx ended before operation {to} was done")
            time.sleep(0.0002)

    def line(self):
        """Takes one line. There must be exactly one for each operation, or stopping would not be exact."""
        said = os.read(self.out, 4096)
        match = re.match(rb"\[\S+\s+fsx\]\s+(\d+) ", said)
        if not match or int(match[1]) != self.seen + 1:
            self.wrong(said)
        self.seen += 1

    def wrong(self, said):
        while more := os.read(self.out, 4096):
            said += more
        raise RuntimeError(f"fsx said after operation {self.seen}: {said[-2000:].decode(errors='replace')}")

    def waiting(self):
        """Whether a line lies in the pipe."""
        count = fcntl.ioctl(self.out, termios.FIONREAD, b"\0" * 4)
        return struct.unpack("i", count)[0] > 0

    def sleeps_in_write(self):
        with open(f"/proc/{self.process.pid}/syscall", encoding="ascii") as f:
            # write is call 1 on x86-64. A process that runs reads as "running".
            return f.read().startswith("1 0x2 ")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)


def plain(fsx, seed, operations, beside, mount):
    """One seed on both. Returns for each its verdict and time; the files that they leave must be equal."""
    paths = [os.path.join(place, f"fsx-{seed}") for place in (beside, mount.path)]
    ext4, found = fsx.run(seed, operations, paths)
    if ext4[0] == found[0] == "ok" and not filecmp.cmp(*paths, shallow=False):
        found = ("another file in the end", found[1])
    return ext4, found


def snapshots(fsx, seed, operations, beside, mount):
    """One run on the mount, with a snapshot after every thousand operations; the same on ext4, with a copy of
    the file each time. Every snapshot must hold what the copy holds. Without msync: what was stored through
    mappings is in the snapshot all the same.

    At the first, middle and last stop fsx is also run anew and stopped by its own -N, which has no part in what
    the operations are: a pause that came too early or too late would show.
    """
    stops = list(range(EVERY, operations + 1, EVERY))
    copies = os.path.join(fsx.home, "stops")
    os.makedirs(copies)
    paths = [os.path.join(place, "fsx-snapshots") for place in (beside, mount.path)]
    runs = [fsx.paused(seed, operations, path) for path in paths]
    slowest = 0.0
    try:
        for stop in stops:
            for run in runs:
                run.advance(stop)
            start = time.monotonic()
            mount.run("snapshot", "create", mount.path, f"fsx-{stop}")
            slowest = max(slowest, time.monotonic() - start)
            shutil.copyfile(paths[0], os.path.join(copies, str(stop)))
    finally:
        for run in runs:
            run.close()
    for stop in (stops[0], stops[len(stops) // 2], stops[-1]):
        verdict, _ = fsx.one(seed, stop, paths[0])
        if verdict != "ok" or not filecmp.cmp(paths[0], os.path.join(copies, str(stop)), shallow=False):
            raise RuntimeError(f"ext4, stopped after {stop} operations: {verdict}, and not what the pause left")
    wrong = []
    for stop in stops:
        found = os.path.join(mount.path, ".snapshots", f"fsx-{stop}", "fsx-snapshots")
        if not filecmp.cmp(found, os.path.join(copies, str(stop)), shallow=False):
            wrong.append(stop)
    return wrong, len(stops), slowest
