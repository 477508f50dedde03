"""Upgrades under PostgreSQL and cp. Run by tools/upgrades."""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

from mounted import Mount
from postgres import Postgres


def tree(root, gib):
    """Files of all sizes, incompressible."""
    rng = random.Random(1)
    left = int(gib * (1 << 30))
    block = rng.randbytes(1 << 20)
    n = 0
    while left > 0:
        sizes, weights = (100, 5000, 70_000, 3_000_000, 40_000_000, 200_000_000), (200, 200, 100, 40, 4, 1)
        size = min(left, *rng.choices(sizes, weights))
        directory = os.path.join(root, f"d{n % 37}")
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, f"f{n}"), "wb") as out:
            at = 0
            while at < size:
                start = rng.randrange(len(block) // 2)
                part = block[start : start + min(size - at, len(block) // 2)]
                out.write(part)
                at += len(part)
        left -= size
        n += 1
    return n


def drill(mount, options, home):
    """Upgrades while both run, then looks at what they made."""
    source = os.path.join(home, "source")
    print(f"{tree(source, options.gib)} files of {options.gib} GiB", flush=True)
    postgres = Postgres(os.path.join(mount.path, "pg"), os.path.join(home, "pg"))
    postgres.create(5)
    bench = postgres.bench(4, 100_000)
    copy = os.path.join(mount.path, "copy")
    started = time.monotonic()
    copying = subprocess.Popen(["cp", "--archive", source, copy], stderr=subprocess.PIPE, text=True)
    took = []
    while copying.poll() is None:
        time.sleep(options.seconds_between)
        if copying.poll() is not None:
            break
        # Another file each time, as a new version is.
        program = os.path.join(home, f"rewindfs-{len(took)}")
        shutil.copy(mount.binary, program)
        start = time.monotonic()
        mount.run("upgrade", "--store", mount.store, "--binary", program)
        took.append(time.monotonic() - start)
        running = os.readlink(f"/proc/{mount.status()['server_pid']}/exe")
        if running != program:
            raise RuntimeError(f"{running} runs, not {program}")
        os.unlink(program)
    said = copying.stderr.read()
    if copying.returncode != 0 or said:
        raise RuntimeError(f"cp: {copying.returncode} {said}")
    print(f"copied in {time.monotonic() - started:.0f} s, {len(took)} upgrades meanwhile", flush=True)
    if not took:
        raise RuntimeError("no upgrade was made while cp ran: --seconds-between is too long")
    print(f"an upgrade took {statistics.median(took):.2f} s in the middle, {max(took):.2f} s at most", flush=True)
    done = postgres.interrupt(bench)
    postgres.check()
    postgres.end()
    print(f"PostgreSQL: {done} transactions, none failed; checksums and indexes hold", flush=True)
    differing = subprocess.run(
        ["rsync", "--archive", "--checksum", "--dry-run", "--itemize-changes", "--delete", source + "/", copy + "/"],
        capture_output=True, text=True, check=True).stdout
    if differing:
        raise RuntimeError(f"the copy differs: {differing[:1000]}")
    print("the copy equals its source", flush=True)
    mount.run("umount", mount.path)
    print(mount.run("fsck", mount.store).strip())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rewindfs", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--gib", type=float, default=5)
    parser.add_argument("--seconds-between", type=float, default=5)
    options = parser.parse_args()
    home = os.path.abspath(options.dir)
    os.makedirs(home)
    os.chmod(home, 0o755)
    mount = Mount(os.path.abspath(options.rewindfs), home)
    mount.mount()
    try:
        drill(mount, options, home)
    finally:
        mount.detach()
    return 0


if __name__ == "__main__":
    sys.exit(main())
