"""A disaster, and the way back. Run by tools/disaster."""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mounted import Mount

MIB = 1 << 20
SHARD = 64 * MIB
SMALL_FILES = 4000


def timed(what, work):
    start = time.monotonic()
    result = work()
    print(f"{what:<60} {time.monotonic() - start:9.2f} s", flush=True)
    return result


def weights(seed, size):
    """Bytes as a checkpoint has them: f32 of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(size // 4, dtype=np.float32).tobytes()


def plant(root, gib):
    """Shards and small files in twenty directories, and a checkpoint."""
    shards = max(20, gib * 1024 * MIB // SHARD - 16)
    for n in range(shards):
        directory = os.path.join(root, "data", f"part{n % 20:02}")
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, f"shard{n:04}.bin"), "wb") as f:
            f.write(weights(n, SHARD))
    for n in range(SMALL_FILES):
        with open(os.path.join(root, "data", f"part{n % 20:02}", f"label{n:05}.json"), "w", encoding="ascii") as f:
            json.dump({"number": n, "text": "a label " * (n % 50)}, f)
    os.makedirs(os.path.join(root, "models"))
    with open(os.path.join(root, "models", "best.ckpt"), "wb") as f:
        for n in range(16):
            f.write(weights(10**6 + n, SHARD))


def digest(path):
    sha = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while block := f.read(4 * MIB):
            sha.update(block)
    return sha.hexdigest()


def hashes(root):
    """Each file's path, hash and mode."""
    files = [os.path.join(top, name) for top, _, names in os.walk(root) for name in names]
    with ThreadPoolExecutor(2) as pool:
        found = zip(files, pool.map(digest, files))
        return {os.path.relpath(path, root): (sha, os.stat(path).st_mode) for path, sha in found}


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def encrypt(path):
    """As such a program does: read, encrypt, write; every second file in place, others beside and then removed."""
    key = np.random.default_rng(int.from_bytes(os.urandom(8), "big"))
    in_place = path.endswith(".json") or int(path[-8:-4]) % 2 == 0
    with open(path, "r+b" if in_place else "rb") as f, open(path if in_place else path + ".locked", "r+b" if in_place else "wb") as out:
        offset = 0
        while block := f.read(4 * MIB):
            noise = np.frombuffer(key.bytes(len(block)), dtype=np.uint8)
            out.seek(offset)
            out.write((np.frombuffer(block, dtype=np.uint8) ^ noise).tobytes())
            offset += len(block)
    if not in_place:
        os.remove(path)
    return in_place


def wait_for(what, patience, ready):
    start = time.monotonic()
    while not ready():
        if time.monotonic() - start > patience:
            raise RuntimeError(f"no {what} within {patience} s")
        time.sleep(0.1)
    return time.monotonic() - start


def changes(mount, point):
    found = {}
    for line in mount.run("diff", mount.path, point, "--json").splitlines():
        change = json.loads(line)
        if "path" in change:
            found.setdefault(change["change"], set()).add(change["path"])
    return found


def burst(mount):
    return any("rewindfs diff" in problem for problem in mount.status()["problems"])


def disaster(mount, good, ago):
    root = mount.path
    parts = sorted(os.listdir(os.path.join(root, "data")))
    gone, locked = parts[:10], parts[10:15]
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    time.sleep(2)
    start = time.monotonic()
    timed("rm -rf of half of the directories", lambda: [shutil.rmtree(os.path.join(root, "data", d)) for d in gone])
    print(f"{'an alert, after the removal had ended':<60} {wait_for('alert', 60, lambda: burst(mount)):9.2f} s")
    files = [os.path.join(root, "data", d, f) for d in locked for f in sorted(os.listdir(os.path.join(root, "data", d)))]
    in_place = timed("encrypting a quarter", lambda: [encrypt(path) for path in files])
    with open(os.path.join(root, "models", "best.ckpt"), "r+b") as f:
        f.seek(100 * MIB)
        f.write(os.urandom(300 * MIB))
    sync(os.path.join(root, "models", "best.ckpt"))
    took = time.monotonic() - start
    wait = ago - took
    if ago > took + 5:
        # The moment that is asked for lies before the disaster as long as this is quicker than `ago`.
        print(f"(the disaster took {took:.0f} s; @{ago}s is {wait:.0f} s before it)")
    found = timed(f"diff @{ago}s", lambda: changes(mount, f"@{ago}s"))
    expect_removed = {p for p in good if p.split(os.sep)[0] == "data" and p.split(os.sep)[1] in gone}
    relative = [os.path.relpath(path, root) for path in files]
    replaced = {p for p, here in zip(relative, in_place) if not here}
    expect_removed |= replaced
    files_removed = {p for p in found.get("removed", set()) | found.get("renamed", set()) if p in good}
    assert files_removed == expect_removed, sorted(files_removed ^ expect_removed)[:5]
    assert {f"{p}.locked" for p in replaced} <= found["added"], "the encrypted copies"
    in_place_files = {p for p, here in zip(relative, in_place) if here}
    assert in_place_files | {"models/best.ckpt"} <= found["modified"], sorted(in_place_files - found["modified"])[:5]
    packs = mount.status()["bytes"]["packs"]
    timed("restore of the removed half", lambda: [mount.run("restore", os.path.join(root, "data", d), "--at", f"@{before}") for d in gone])
    timed("restore of the encrypted quarter", lambda: [mount.run("restore", os.path.join(root, "data", d), "--at", f"@{before}") for d in locked])
    source = os.path.join(root, ".snapshots", f"@{before}", "models", "best.ckpt")
    timed("cp of the checkpoint out of .snapshots", lambda: subprocess.run(["cp", "-a", source, os.path.join(root, "models")], check=True))
    print(f"{'bytes that all this added to the packs':<60} {mount.status()['bytes']['packs'] - packs:9,}")
    back = timed("hashing all", lambda: hashes(root))
    assert back == good, sorted(set(back.items()) ^ set(good.items()))[:5]
    print("everything is back, by hash and mode", flush=True)


def copies(mount, below, gib):
    """The same copy out of a snapshot, and on the filesystem below."""
    files, size = gib * 4, 256 * MIB
    for root in (mount.path, below):
        os.makedirs(os.path.join(root, "checkpoints"))
        for n in range(files):
            with open(os.path.join(root, "checkpoints", f"step{n:04}.ckpt"), "wb") as f:
                f.write(weights(n, size))
        os.sync()
    mount.run("snapshot", "create", mount.path, "copied")
    packs = mount.status()["bytes"]["packs"]
    took = {}
    for n in range(3):
        for name, source, root in (
            ("mount", os.path.join(mount.path, ".snapshots", "copied", "checkpoints"), mount.path),
            ("ext4", os.path.join(below, "checkpoints"), below),
        ):
            target = os.path.join(root, f"copy{n}")
            start = time.monotonic()
            subprocess.run(["cp", "-a", source, target], check=True)
            sync(target)
            took.setdefault(name, []).append(time.monotonic() - start)
            if name == "ext4":
                shutil.rmtree(target)
                os.sync()
    added = mount.status()["bytes"]["packs"] - packs
    ours, theirs = (sorted(took[name])[1] for name in ("mount", "ext4"))
    print(f"cp -a of {gib} GiB: mount {ours:.2f} s, below {theirs:.2f} s: {theirs / ours:.0f} times as fast; packs +{added:,} bytes")
    print(f"  all: {took}")
    same = hashes(os.path.join(mount.path, "copy2")) == hashes(os.path.join(below, "checkpoints"))
    assert same, "the copy differs"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rewindfs", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--gib", type=int, default=10)
    parser.add_argument("--ago", type=int, default=600, help="seconds between the planting and the disaster")
    parser.add_argument("--only", choices=["disaster", "copies"])
    options = parser.parse_args()
    os.makedirs(options.dir)
    for name in ("disaster", "copies"):
        if options.only not in (None, name):
            continue
        home = os.path.join(options.dir, name)
        os.makedirs(home)
        mount = Mount(options.rewindfs, home)
        mount.mount()
        try:
            if name == "disaster":
                timed(f"planting {options.gib} GiB", lambda: plant(mount.path, options.gib))
                good = timed("hashing it", lambda: hashes(mount.path))
                print(f"waiting until {options.ago} s ago it was all there", flush=True)
                time.sleep(options.ago)
                disaster(mount, good, options.ago)
            else:
                below = os.path.join(home, "below")
                os.makedirs(below)
                copies(mount, below, options.gib)
            mount.run("umount", mount.path)
        finally:
            mount.detach()
        timed("fsck", lambda: mount.run("fsck", mount.store))
        shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
