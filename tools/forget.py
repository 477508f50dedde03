"""What deleting snapshots costs. Run by tools/forget."""

import argparse
import os
import random
import re
import shutil
import signal
import struct
import sys
import time

from mounted import Mount

EACH = 1000
# Changed files that only the deleted snapshot shows.
CHANGES = (0, 1_000, 10_000, 100_000)
QUIET_SECS = 15


def path_of(mount, n):
    return os.path.join(mount.path, f"d{n // EACH:04}", f"f{n % EACH:04}")


def write(mount, n, text):
    with open(path_of(mount, n), "w", encoding="ascii") as f:
        f.write(text)


def plant(mount, files):
    for n in range(files):
        if n % EACH == 0:
            os.mkdir(os.path.dirname(path_of(mount, n)))
        write(mount, n, f"{n} at first")


class Writer:
    """A process that writes 4 KiB into a file of its own and syncs, again and again, and notes how long each takes."""

    def __init__(self, mount):
        self.log = os.path.join(os.path.dirname(mount.store), "latencies")
        self.child = os.fork()
        if self.child == 0:
            self.work(os.path.join(mount.path, "writer"))

    def work(self, path):
        block = os.urandom(1 << 20)
        with open(path, "wb", buffering=0) as f, open(self.log, "wb", buffering=0) as log:
            n = 0
            while True:
                n += 1
                start = time.monotonic()
                os.pwrite(f.fileno(), block[n % 1000 * 1024 :][:4096], n % 25_600 * 4096)
                os.fsync(f.fileno())
                end = time.monotonic()
                log.write(struct.pack("dd", start, end - start))
                time.sleep(0.002)

    def latencies(self, since, until):
        """In milliseconds, sorted."""
        with open(self.log, "rb") as f:
            found = struct.iter_unpack("dd", f.read())
            return sorted(took * 1000 for at, took in found if since <= at < until)

    def stop(self):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


def spread(latencies):
    def at(part):
        return latencies[min(len(latencies) - 1, int(len(latencies) * part))]

    return f"median {at(0.5):6.2f}, p99 {at(0.99):7.2f}, worst {latencies[-1]:7.2f} ms", at(0.99)


def forgotten(mount):
    """Waits until all that was deleted is forgotten. When that was."""
    while mount.status()["forgetting"] > 0:
        time.sleep(0.02)
    return time.monotonic()


def quiet(writer):
    since = time.monotonic()
    time.sleep(QUIET_SECS)
    return writer.latencies(since, time.monotonic())


def beside(mount, writer, what, delete):
    """Deletes beside the writer; what it took, and what the writer noticed."""
    calm = quiet(writer)
    start = time.monotonic()
    delete()
    answered = time.monotonic() - start
    end = forgotten(mount)
    # Long enough for a p99 to mean something.
    busy = writer.latencies(start, max(end, start + 3))
    (told_calm, p99_calm), (told_busy, p99_busy) = spread(calm), spread(busy)
    print(
        f"{what:<34} answered {answered * 1000:8.1f} ms, done {end - start:7.2f} s\n"
        f"    writer before: {told_calm} ({len(calm)} writes)\n"
        f"    writer beside: {told_busy} ({len(busy)} writes): p99 {p99_busy - p99_calm:+.2f} ms",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rewindfs", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--snapshots", type=int, default=1000)
    options = parser.parse_args()
    os.makedirs(options.dir)
    rng = random.Random(1)
    mount = Mount(options.rewindfs, options.dir)
    # What is forgotten is freed at once, and not when the window of records has passed.
    with open(os.path.join(mount.store, "config.toml"), "r+", encoding="ascii") as f:
        changed = re.sub(r"(?m)^window_seconds = .*$", "window_seconds = 1", f.read())
        f.seek(0)
        f.write(changed)
        f.truncate()
    mount.mount()
    try:
        # Only what is asked for is kept and forgotten.
        mount.run("policy", "set", mount.path, "every=off", "continuous=off", "history-max=100%", "free-min=0")
        start = time.monotonic()
        plant(mount, options.files)
        print(f"{options.files:,} files written in {time.monotonic() - start:.0f} s", flush=True)
        special = {options.snapshots * (i + 1) // (len(CHANGES) + 1): n for i, n in enumerate(min(n, options.files) for n in CHANGES)}
        start = time.monotonic()
        for s in range(options.snapshots):
            # What changes right before and right after a snapshot, only that one shows.
            count = special.get(s, special.get(s - 1, 3))
            fixed = s in special or s - 1 in special
            for n in range(count) if fixed else rng.sample(range(options.files), 3):
                write(mount, n, f"{n} at {s}")
            os.mkdir(os.path.join(mount.path, ".snapshots", f"s{s:05}"))
        print(f"{options.snapshots:,} snapshots taken in {time.monotonic() - start:.0f} s", flush=True)
        writer = Writer(mount)
        time.sleep(3)
        for s, count in special.items():
            name = f"s{s:05}"
            beside(mount, writer, f"{count:,} changed files", lambda: mount.run("snapshot", "delete", mount.path, name))
        names = [f"s{s:05}" for s in range(options.snapshots) if s not in special][: options.snapshots * 9 // 10]
        beside(mount, writer, f"{len(names)} snapshots", lambda: mount.run("snapshot", "delete", mount.path, *names))
        writer.stop()
        left = len(os.listdir(os.path.join(mount.path, ".snapshots")))
        print(f"{left} snapshots are left", flush=True)
        mount.run("umount", mount.path)
    finally:
        mount.detach()
    mount.run("fsck", mount.store)
    print("fsck finds nothing")
    shutil.rmtree(options.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
