"""Figures of scale: many files, many snapshots, a barrier with full buffers. Run by tools/scale."""

import argparse
import os
import random
import re
import shutil
import statistics
import sys
import time

from mounted import Mount


class Measured(Mount):
    """A mount with the server's memory and counters."""

    def mount(self):
        start = time.monotonic()
        super().mount()
        return time.monotonic() - start

    def umount(self):
        self.run("umount", self.path)

    def counters(self):
        return self.status()["counters"]

    def peak_mib(self):
        with open(f"/proc/{self.status()['server_pid']}/status", encoding="ascii") as f:
            return int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1)) / 1024

    def idle(self):
        """Waits until background work has come to rest."""
        last = None
        while True:
            lsn = self.status()["lsn"]
            if lsn == last:
                return
            last = lsn
            time.sleep(1)


def timed(what, work):
    start = time.monotonic()
    result = work()
    print(f"{what:<52} {time.monotonic() - start:9.2f} s", flush=True)
    return result


def create_files(root, directories, each):
    for d in range(directories):
        path = os.path.join(root, f"d{d:04}")
        os.mkdir(path)
        for i in range(each):
            os.close(os.open(os.path.join(path, f"f{i:05}"), os.O_CREAT | os.O_WRONLY, 0o644))


def count(root):
    return sum(len(files) for _, _, files in os.walk(root))


def remove(root):
    for name in os.listdir(root):
        shutil.rmtree(os.path.join(root, name))


def differences(mount, directories, each):
    """Two neighbouring snapshots, a hundred changes between them."""
    rng = random.Random(2)
    for n, file in enumerate(rng.sample(range(directories * each), 100)):
        path = os.path.join(mount.path, f"d{file // each:04}", f"f{file % each:05}")
        if n % 4 == 0:
            with open(path + ".tmp", "w", encoding="ascii") as f:
                f.write(str(n))
            os.rename(path + ".tmp", path)
        elif n % 4 == 1:
            with open(path, "a", encoding="ascii") as f:
                f.write(str(n))
        elif n % 4 == 2:
            os.rename(path, path + ".moved")
        else:
            os.chmod(path, 0o600)
    mount.run("snapshot", "create", mount.path, "changed")
    for what in ("diff of 100 changes", "diff of 100 changes, again"):
        before = mount.counters()
        told = timed(what, lambda: mount.run("diff", mount.path, "full", "changed"))
        after = mount.counters()
        cost = ", ".join(f"{k} {after[k] - before[k]}" for k in before if k.startswith("index"))
        print(f"  {len(told.splitlines())} lines, {cost}")
    timed("diff to now", lambda: mount.run("diff", mount.path, "changed"))
    timed("log of a file", lambda: mount.run("log", os.path.join(mount.path, "d0000", "f00000")))


def versions(mount, count):
    print(f"-- a file with {count:,} versions")
    mount.mount()
    path = os.path.join(mount.path, "file")

    def save():
        for n in range(count):
            with open(path + ".tmp", "w", encoding="ascii") as f:
                f.write(str(n))
            os.rename(path + ".tmp", path)

    timed("save by write and rename", save)
    told = timed("log of all versions", lambda: mount.run("log", path, "--json"))
    assert len(told.splitlines()) >= count, len(told.splitlines())
    timed("log of the last 10", lambda: mount.run("log", path, "--limit", "10"))
    print(f"{'peak memory of the server':<52} {mount.peak_mib():9.0f} MiB")
    mount.umount()


def many_files(mount, directories, each):
    total = directories * each
    print(f"-- {total:,} files in {directories:,} directories")
    mount.mount()
    timed("create", lambda: create_files(mount.path, directories, each))
    timed("snapshot", lambda: mount.run("snapshot", "create", mount.path, "full"))
    print(f"{'peak memory of the server after creating':<52} {mount.peak_mib():9.0f} MiB")
    differences(mount, directories, each)
    timed("unmount", mount.umount)
    print(f"{'server start until mounted':<52} {mount.mount():9.2f} s")
    assert timed("list", lambda: count(mount.path)) == total
    assert timed("list the snapshot", lambda: count(os.path.join(mount.path, ".snapshots/full"))) == total
    timed("delete", lambda: remove(mount.path))
    assert count(mount.path) == 0
    print(f"{'peak memory of the server after deleting':<52} {mount.peak_mib():9.0f} MiB")
    mount.umount()


def cost(mount, operations, work):
    mount.idle()
    before, start = mount.counters(), time.monotonic()
    for _ in range(operations):
        work()
    elapsed, after = time.monotonic() - start, mount.counters()
    per = {k: (after[k] - before[k]) / operations for k in ("index_gets", "index_seeks", "index_bytes")}
    return per, operations / elapsed


def take_snapshots(mount, prefix, snapshots, changing, what):
    """Snapshots, before each of which the files that `changing` names are written; how long each takes."""
    took = []
    for i in range(snapshots):
        for path in changing():
            with open(path, "w", encoding="ascii") as f:
                f.write(str(i))
        start = time.monotonic()
        os.mkdir(os.path.join(mount.path, ".snapshots", f"{prefix}{i:05}"))
        took.append((time.monotonic() - start) * 1000)
    took.sort()
    print(
        f"{f'taking a snapshot, {what} before each':<52} median {statistics.median(took):6.2f} ms, "
        f"p99 {took[int(len(took) * 0.99)]:6.2f} ms, worst {took[-1]:6.2f} ms"
    )


def many_snapshots(mount, snapshots, operations):
    print(f"-- costs per operation with 0 and with {snapshots:,} snapshots")
    mount.mount()
    path, rng = os.path.join(mount.path, "data"), random.Random(1)
    with open(path, "wb") as f:
        f.write(os.urandom(64 << 20))
        os.fsync(f.fileno())
    os.mkdir(os.path.join(mount.path, "new"))
    names = iter(range(10**9))

    def read():
        with open(path, "rb", buffering=0) as f:
            fd = f.fileno()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.pread(fd, 4096, rng.randrange((64 << 20) // 4096) * 4096)

    def create():
        os.close(os.open(os.path.join(mount.path, "new", f"{next(names):08}"), os.O_CREAT | os.O_WRONLY))

    def measure(label):
        for what, work in (("read 4 KiB", read), ("create a file", create)):
            per, rate = cost(mount, operations, work)
            print(
                f"{label:>12} {what:<14} gets {per['index_gets']:7.3f}  seeks {per['index_seeks']:6.3f}  "
                f"bytes {per['index_bytes']:8.1f}  {rate:9.0f}/s",
                flush=True,
            )

    measure("none")
    changing = os.path.join(mount.path, "changing")
    take_snapshots(mount, "s", snapshots, lambda: [changing], "one small change")
    measure(f"{snapshots:,}")
    last = [f"s{i:05}" for i in range(snapshots)][-2:]
    timed("diff of the last two snapshots", lambda: mount.run("diff", mount.path, *last))
    timed("log of the file that changed", lambda: mount.run("log", os.path.join(mount.path, "changing")))
    mount.umount()


def take_points(mount, files, snapshots):
    """Many snapshots of many files, three of which are changed before each."""
    rng = random.Random(3)
    take_snapshots(mount, "p", snapshots, lambda: rng.sample(files, 3), "three small changes")
    told = timed("list of the snapshots", lambda: mount.run("snapshot", "list", mount.path))
    assert len(told.splitlines()) > snapshots
    timed("diff of the last two", lambda: mount.run("diff", mount.path, f"p{snapshots - 2:05}", f"p{snapshots - 1:05}"))
    timed("diff of the first and the last", lambda: mount.run("diff", mount.path, "p00000", f"p{snapshots - 1:05}"))
    timed("log of a file", lambda: mount.run("log", files[0]))
    print(f"{'peak memory of the server':<52} {mount.peak_mib():9.0f} MiB")
    timed("unmount", mount.umount)
    print(f"{'server start until mounted':<52} {mount.mount():9.2f} s")
    middle = os.path.join(mount.path, ".snapshots", f"p{snapshots // 2:05}")
    found = timed("list the files of the one in the middle", lambda: count(middle))
    assert found == count(mount.path), found
    mount.umount()


def many_points(mount, directories, each, snapshots):
    print(f"-- {snapshots:,} snapshots of {directories * each:,} files")
    mount.mount()
    timed("create", lambda: create_files(mount.path, directories, each))
    files = [os.path.join(mount.path, f"d{d:04}", f"f{i:05}") for d in range(directories) for i in range(each)]
    take_points(mount, files, snapshots)


def full_buffers(mount):
    print("-- a snapshot while a writer keeps the buffers full")
    mount.mount()
    child = os.fork()
    if child == 0:
        block = os.urandom(1 << 20)
        with open(os.path.join(mount.path, "stream"), "wb", buffering=0) as f:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                f.write(block)
                if f.tell() > 4 << 30:
                    f.seek(0)
        os._exit(0)
    took, dirty = [], []
    for i in range(10):
        time.sleep(1)
        dirty.append(mount.counters()["dirty_bytes"] / (1 << 20))
        start = time.monotonic()
        os.mkdir(os.path.join(mount.path, ".snapshots", f"s{i}"))
        took.append((time.monotonic() - start) * 1000)
    os.waitpid(child, 0)
    print(
        f"dirty {statistics.median(dirty):.0f} MiB median, {max(dirty):.0f} MiB most; snapshot "
        f"median {statistics.median(took):.0f} ms, worst {max(took):.0f} ms"
    )
    mount.umount()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rewindfs", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--directories", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000, help="in each directory")
    parser.add_argument("--snapshots", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--operations", type=int, default=5000)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--only", choices=["files", "points", "snapshots", "versions", "buffers"])
    options = parser.parse_args()
    parts = {
        "files": lambda m: many_files(m, options.directories, options.files),
        "points": lambda m: many_points(m, options.directories, options.files, options.points),
        "snapshots": lambda m: many_snapshots(m, options.snapshots, options.operations),
        "versions": lambda m: versions(m, options.versions),
        "buffers": full_buffers,
    }
    for name, part in parts.items():
        if options.only in (None, name):
            home = os.path.join(options.dir, f"scale-{name}")
            os.makedirs(home)
            mount = Measured(options.rewindfs, home)
            part(mount)
            mount.run("fsck", mount.store)
            shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
