"""Kills servers and holders under load. Run by tools/survive."""

import argparse
import ctypes
import hashlib
import mmap
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time

from mounted import Mount

STOP = threading.Event()
FAILURES = []
# To be called when all programs have ended.
CLOSE = []


def fail(who, what):
    """Notes a failure; the run ends with it."""
    FAILURES.append(f"{who}: {what}")
    print(f"FAILED {who}: {what}", flush=True)
    STOP.set()


def work(name, step):
    """A thread that repeats a step until the run ends; whatever it raises is a failure."""

    def run():
        count = 0
        try:
            while not STOP.is_set():
                step(count)
                count += 1
        except Exception as error:  # pylint: disable=broad-except
            fail(name, f"{type(error).__name__}: {error} (step {count})")
        COUNTS[name] = count

    thread = threading.Thread(target=run, name=name)
    thread.start()
    return thread


COUNTS = {}


def gone(pid):
    """Waits until a process has ended."""
    while True:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as f:
                if f.read().rsplit(")", 1)[1].split()[0] in "ZX":
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.001)


def populate(root, files):
    """Many small files, quickly, through the mount."""
    per = 1000
    for d in range(-(-files // per)):
        directory = os.path.join(root, f"d{d}")
        os.makedirs(directory)
        for f in range(min(per, files - d * per)):
            with open(os.path.join(directory, f"f{f}"), "wb") as out:
                out.write(b"%d/%d" % (d, f))


def checkpoints(root):
    """Writes, fsyncs, renames over the old one, reads back: the old or the new content, whole."""
    rng = random.Random(1)
    expected = {}

    def step(n):
        name = os.path.join(root, f"ckpt-{n % 4}")
        size = rng.randrange(1 << 20, 24 << 20)
        block = rng.randbytes(65536)
        content = b"".join(block[i % 777 :] + block[: i % 777] for i in range(size // 65536))
        with open(name + ".tmp", "wb") as out:
            for at in range(0, len(content), 1 << 20):
                out.write(content[at : at + (1 << 20)])
            out.flush()
            os.fsync(out.fileno())
        os.rename(name + ".tmp", name)
        expected[name] = hashlib.blake2b(content).digest()
        victim = rng.choice(list(expected))
        with open(victim, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if hashlib.blake2b(f.read()).digest() != expected[victim]:
                raise RuntimeError(f"{victim} has other content")

    return step


def names(root, seed):
    """Every operation of names, each of which must work exactly once."""
    rng = random.Random(seed)
    os.makedirs(root)

    def step(n):
        a, b, c, d = (os.path.join(root, f"{kind}{n}") for kind in "abcd")
        fd = os.open(a, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
        text = rng.randbytes(rng.randrange(1, 9000))
        os.write(fd, text)
        os.link(a, b)
        os.mkdir(c)
        os.rename(b, os.path.join(c, "in"))
        os.symlink("target", d)
        os.setxattr(a, "user.n", str(n).encode(), os.XATTR_CREATE)
        if os.fstat(fd).st_nlink != 2 or os.getxattr(a, "user.n") != str(n).encode():
            raise RuntimeError(f"{a}: links or attribute")
        os.unlink(a)
        os.ftruncate(fd, len(text) // 2)
        if os.pread(fd, 10000, 0) != text[: len(text) // 2]:
            raise RuntimeError(f"{a}: content")
        os.close(fd)
        os.unlink(os.path.join(c, "in"))
        os.rmdir(c)
        os.unlink(d)
        if os.listdir(root):
            raise RuntimeError(f"left over: {os.listdir(root)}")

    return step


def appender(path):
    """Appends without fsync and reads back through the same descriptor, and through a mapping."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
    CLOSE.append(lambda: os.close(fd))
    written = bytearray()
    rng = random.Random(3)

    def step(_):
        nonlocal written
        if len(written) > 1 << 20:
            os.ftruncate(fd, 0)
            written = bytearray()
        text = rng.randbytes(rng.randrange(1, 3000))
        os.write(fd, text)
        written += text
        if os.fstat(fd).st_size != len(written):
            raise RuntimeError(f"size {os.fstat(fd).st_size}, not {len(written)}")
        if rng.random() < 0.1:
            with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                if mapped[:] != written:
                    raise RuntimeError("other content")

    return step


def database(path):
    """Transactions; the sum over all rows stays the same."""
    state = {}

    def step(n):
        if not state:
            state["db"] = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
            CLOSE.append(state["db"].close)
            db = state["db"]
            db.execute("pragma synchronous=full")
            db.execute("create table if not exists t (id integer primary key, v integer)")
            db.executemany("insert into t values (?, 1000)", ((i,) for i in range(100)))
        db = state["db"]
        db.execute("begin immediate")
        db.execute("update t set v = v - 1 where id = ?", (n % 100,))
        db.execute("update t set v = v + 1 where id = ?", ((n * 7 + 3) % 100,))
        db.execute("commit")
        if n % 50 == 0:
            if db.execute("select sum(v) from t").fetchone()[0] != 100 * 1000:
                raise RuntimeError("the sum has changed")
            if db.execute("pragma integrity_check").fetchone()[0] != "ok":
                raise RuntimeError("integrity_check")

    return step


def repository(root):
    """Commits, and fsck every few of them."""
    env = dict(os.environ, GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@t", GIT_COMMITTER_NAME="t",
               GIT_COMMITTER_EMAIL="t@t", HOME=root)

    def git(*arguments):
        done = subprocess.run(["git", "-C", root, *arguments], env=env, capture_output=True, text=True,
                              check=False)
        if done.returncode != 0:
            raise RuntimeError(f"git {arguments[0]}: {done.stdout} {done.stderr}")

    os.makedirs(root)
    git("init", "--quiet")
    # In the background it would lock HEAD while the next commit wants to.
    git("config", "gc.autoDetach", "false")
    rng = random.Random(2)

    def step(n):
        for _ in range(5):
            with open(os.path.join(root, f"file{rng.randrange(50)}"), "w", encoding="ascii") as f:
                f.write(str(rng.random()) * rng.randrange(1, 200))
        git("add", "--all")
        git("commit", "--quiet", "--allow-empty", "-m", f"commit {n}")
        if n % 20 == 19:
            git("fsck", "--strict")

    return step


class Prober:
    """Stats and reads one file all the time; notes how long each took."""

    def __init__(self, path):
        self.path = path
        self.longest = 0.0
        with open(path, "wb") as f:
            f.write(b"x" * 4096)

    def step(self, _):
        start = time.monotonic()
        # Past the kernel's cache: the server must answer.
        os.statvfs(self.path)
        self.longest = max(self.longest, time.monotonic() - start)
        time.sleep(0.001)

    def take(self):
        longest, self.longest = self.longest, 0.0
        return longest


def hold_open(root, count):
    """Opens files and keeps them."""
    held = []
    for n in range(count):
        held.append(os.open(os.path.join(root, f"d{n // 1000}", f"f{n % 1000}"), os.O_RDONLY))
    return held


def under_load(mount, options):
    """Kills servers, then holders, while everything runs."""
    root = mount.path
    print(f"making {options.files} files", flush=True)
    populate(os.path.join(root, "many"), options.files)
    held = hold_open(os.path.join(root, "many"), min(options.open, options.files))
    os.makedirs(os.path.join(root, "work"))
    inside = os.path.join(root, "work")
    prober = Prober(os.path.join(inside, "probe"))
    fsx = start_fsx(options, inside)
    threads = [
        work("checkpoints", checkpoints(inside)),
        work("names 1", names(os.path.join(inside, "names1"), 11)),
        work("names 2", names(os.path.join(inside, "names2"), 12)),
        work("appender", appender(os.path.join(inside, "append"))),
        work("sqlite", database(os.path.join(inside, "db"))),
        work("git", repository(os.path.join(inside, "repo"))),
        work("prober", prober.step),
    ]
    try:
        kill_servers(mount, options, prober, fsx)
        if not STOP.is_set():
            kill_holders(mount, options, fsx)
    finally:
        STOP.set()
        for thread in threads:
            thread.join()
        end_fsx(fsx)
        for n, fd in enumerate(held):
            if os.pread(fd, 100, 0) != b"%d/%d" % (n // 1000, n % 1000):
                fail("held open", f"file {n} reads otherwise")
            os.close(fd)
        for close in CLOSE:
            close()
    print("done meanwhile:", ", ".join(f"{k} {v}" for k, v in sorted(COUNTS.items())), flush=True)


def start_fsx(options, inside):
    if not options.fsx:
        return None
    config = os.path.join(os.path.dirname(os.path.dirname(inside)), "fsx.toml")
    with open(config, "w", encoding="ascii") as f:
        f.write("flen = 1048576\n[opsize]\nmax = 262144\n[weights]\npunch_hole = 1\nclose_open = 1\n"
                "invalidate = 0.1\nfsync = 0.1\nfdatasync = 0.1\ncopy_file_range = 1\n")
    log = open(os.path.join(os.path.dirname(config), "fsx.log"), "wb")
    command = [options.fsx, "-f", config, "-S", "1", os.path.join(inside, "fsx")]
    return subprocess.Popen(command, stdout=log, stderr=log)


def check_fsx(fsx):
    if fsx and fsx.poll() is not None:
        fail("fsx", f"ended with {fsx.returncode}; see fsx.log")


def end_fsx(fsx):
    if fsx:
        check_fsx(fsx)
        fsx.terminate()
        fsx.wait()


def kill_servers(mount, options, prober, fsx):
    low, high = options.between
    rng = random.Random(5)
    pauses = []
    for n in range(options.server):
        time.sleep(rng.uniform(low, high))
        check_fsx(fsx)
        if STOP.is_set():
            return
        entry = mount.entry()
        prober.take()
        start = time.monotonic()
        try:
            os.kill(entry["pid"], signal.SIGKILL)
        except ProcessLookupError:
            continue
        # The pause ends when something that needs the server is answered.
        os.statvfs(mount.path)
        pauses.append(max(time.monotonic() - start, prober.take()))
        if (n + 1) % 25 == 0:
            print(f"{n + 1} servers killed, pause median {statistics.median(pauses):.3f} s, "
                  f"longest {max(pauses):.3f} s", flush=True)
    if pauses:
        pauses.sort()
        print(f"server killed {len(pauses)} times: pause median {statistics.median(pauses):.3f} s, "
              f"p95 {pauses[int(len(pauses) * 0.95)]:.3f} s, longest {pauses[-1]:.3f} s", flush=True)


def kill_holders(mount, options, fsx):
    rng = random.Random(6)
    for n in range(options.holder):
        time.sleep(rng.uniform(0.1, 1.0))
        check_fsx(fsx)
        if STOP.is_set():
            return
        before = mount.status()
        os.kill(before["holder_pid"], signal.SIGKILL)
        while True:
            after = mount.status()
            if after["holder_pid"] not in (None, before["holder_pid"]):
                break
            time.sleep(0.01)
        if after["server_pid"] != before["server_pid"]:
            fail("holder", "its death took the server along")
        if n % 10 == 9:
            # The new holder does what the old one did.
            os.kill(after["server_pid"], signal.SIGKILL)
            os.statvfs(mount.path)
    print(f"holder killed {options.holder} times, and the server under every tenth new one", flush=True)


def both(mount, options):
    """Kills holder and server together; every acknowledged write must be there after mounting again."""
    rng = random.Random(7)
    log = os.path.join(os.path.dirname(mount.store), "acknowledged")
    root = os.path.join(mount.path, "both")
    os.makedirs(root, exist_ok=True)
    os.sync()
    total = 0
    for seed in range(options.both):
        open(log, "wb").close()
        status = mount.status()
        writer = subprocess.Popen(
            [sys.executable, __file__, "--writer", root, log, str(seed)], stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, 0.8))
        victims = [status["holder_pid"], status["server_pid"]]
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            gone(pid)
        writer.wait()
        libc = ctypes.CDLL(None, use_errno=True)
        while libc.umount2(mount.path.encode(), 2) == 0:
            pass
        mount.mount()
        acknowledged = os.path.getsize(log)
        total += acknowledged
        difference = lost(root, operations(seed), acknowledged)
        if difference:
            fail("both", f"round {seed}, {acknowledged} operations: {difference}")
            return
        for name in os.listdir(root):
            os.unlink(os.path.join(root, name))
        if (seed + 1) % 25 == 0:
            print(f"{seed + 1} times both killed, {total} acknowledged operations, none lost", flush=True)
    print(f"both killed {options.both} times: {total} acknowledged operations, none lost", flush=True)


def lost(root, steps, acknowledged):
    """What differs from the first steps, if something does. The one behind them may have happened or not."""
    before = {}
    for _ in range(acknowledged):
        carry_out(before, next(steps))
    under_way = next(steps)
    after = dict(before)
    carry_out(after, under_way)
    found = {}
    for name in os.listdir(root):
        with open(os.path.join(root, name), "rb") as f:
            found[name] = f.read()
    if found in (before, after):
        return None
    name = under_way["name"]
    if under_way["op"] == "append":
        # Made, and nothing written yet; or a part of it.
        part = found.get(name, b"")
        if len(part) >= len(before.get(name, b"")) and after[name].startswith(part):
            found[name] = after[name]
            if found == after:
                return None
    names = sorted(set(found) ^ set(before)) or [n for n in before if found[n] != before[n]]
    return f"{names} differ; under way was {under_way['op']} {name}"


def carry_out(state, step):
    if step["op"] == "append":
        state[step["name"]] = state.get(step["name"], b"") + step["data"]
    elif step["op"] == "rename":
        state[step["to"]] = state.pop(step["name"])
    else:
        state.pop(step["name"])


def operations(seed):
    """Appends, renames and unlinks without end, the same for the same seed."""
    rng = random.Random(seed)
    files = []
    for n in range(sys.maxsize):
        kind = rng.random()
        if kind < 0.8 or len(files) < 3:
            if files and kind < 0.6:
                name = rng.choice(files)
            else:
                name = f"n{n}"
                files.append(name)
            yield {"op": "append", "name": name, "data": rng.randbytes(rng.choice((1, 100, 5000, 40000)))}
            continue
        name = files.pop(rng.randrange(len(files)))
        if kind < 0.9:
            files.append(f"r{n}")
            yield {"op": "rename", "name": name, "to": f"r{n}"}
        else:
            yield {"op": "unlink", "name": name}


def writer(root, log, seed):
    """Carries operations out; counts on another disk, which outlives all, what was acknowledged."""
    count = os.open(log, os.O_WRONLY | os.O_APPEND)
    files = {}
    for step in operations(seed):
        path = os.path.join(root, step["name"])
        if step["op"] == "append":
            if step["name"] not in files:
                files[step["name"]] = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            assert os.write(files[step["name"]], step["data"]) == len(step["data"])
        elif step["op"] == "rename":
            os.rename(path, os.path.join(root, step["to"]))
            files[step["to"]] = files.pop(step["name"])
        else:
            os.unlink(path)
            os.close(files.pop(step["name"]))
        os.write(count, b".")


def main():
    if sys.argv[1:2] == ["--writer"]:
        writer(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--rewindfs", required=True)
    parser.add_argument("--fsx")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--server", type=int, default=500)
    parser.add_argument("--holder", type=int, default=50)
    parser.add_argument("--both", type=int, default=200)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--open", type=int, default=5000)
    parser.add_argument("--seconds-between", default="0.0-1.5")
    options = parser.parse_args()
    options.between = tuple(float(part) for part in options.seconds_between.split("-"))
    os.makedirs(options.dir)
    mount = Mount(os.path.abspath(options.rewindfs), os.path.abspath(options.dir))
    mount.mount()
    try:
        if options.server or options.holder:
            under_load(mount, options)
        if options.both and not FAILURES:
            STOP.clear()
            both(mount, options)
        mount.run("umount", mount.path)
        print(mount.run("fsck", mount.store).strip())
    finally:
        mount.detach()
    for failure in FAILURES:
        print("FAILED", failure)
    return 1 if FAILURES else 0


if __name__ == "__main__":
    sys.exit(main())
