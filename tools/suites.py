"""Other people's tests on a mount and on ext4, compared. Run by tools/suites, which says what there is."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time

import append
import fsx
from mounted import Mount
from postgres import Postgres

# What passes on ext4 with this version of pjdfstest; fewer, and it did not run as it should.
PJDFSTEST_PASSES = 385
PJDFSTEST_CONFIG = """[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
rename_ctime = {}
[settings]
naptime = 0.01
"""
# The limit of hard links is nothing that a filesystem can tell: glibc's pathconf knows it of ext4, and answers
# 127 ("unknown") for all of FUSE, on which pjdfstest skips its test of EMLINK. This answers what S-14 promises.
LINK_MAX = """#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
long pathconf(const char *path, int name) {
  static long (*real)(const char *, int);
  if (!real) real = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
  long value = real(path, name);
  return name == _PC_LINK_MAX && value == 127 ? 65000 : value;
}
"""
# What docs/SEMANTICS.md says is otherwise than on ext4, and the verdict that comes of it.
DEVIATIONS = {("stress-ng", "fiemap"): ("skipped", "S-98")}


class Table:
    """The verdicts. One differs if the mount's is not that of ext4, or not "ok" where ext4 was not asked."""

    def __init__(self):
        self.rows = []
        self.differing = []

    def add(self, suite, what, ext4, mount, note=""):
        deviation, reason = DEVIATIONS.get((suite, what), (None, None))
        if mount != (ext4 or "ok") and mount == deviation:
            note = f"as {reason} says"
        elif mount != (ext4 or "ok"):
            self.differing.append(f"{suite}: {what}")
            note = f"DIFFERS {note}"
        row = (suite, what, ext4 or "-", mount, note)
        self.rows.append(row)
        print("  ".join(row).rstrip(), flush=True)

    def show(self):
        rows = [("suite", "what", "ext4", "rewindfs", ""), *self.rows]
        widths = [max(len(row[n]) for row in rows) for n in range(4)]
        print()
        for row in rows:
            print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip())
        print()
        if self.differing:
            print(f"{len(self.differing)} of {len(self.rows)} differ: " + "; ".join(self.differing))
        else:
            print(f"no difference in {len(self.rows)} verdicts")


class Suite:
    """One suite's mount and the directory beside it."""

    def __init__(self, name, options, table):
        self.name = name
        self.options = options
        self.table = table
        self.home = os.path.join(options.dir, name)
        os.makedirs(self.home)
        self.beside = os.path.join(self.home, "ext4")
        os.makedirs(self.beside)
        self.mount = Mount(options.rewindfs, self.home)

    def add(self, what, ext4, mount, note=""):
        self.table.add(self.name, what, ext4, mount, note)

    def file(self, name, content):
        path = os.path.join(self.home, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(content)
        return path

    def run(self):
        """What goes wrong altogether is a verdict as well; what the suite leaves must be a sound store."""
        self.mount.mount()
        try:
            try:
                SUITES[self.name](self)
            except Exception as error:  # pylint: disable=broad-except
                self.add("the suite itself", None, f"{type(error).__name__}: {error}")
            self.mount.run("umount", self.mount.path)
            try:
                self.mount.run("fsck", self.mount.store)
                self.add("fsck afterwards", None, "ok")
            except RuntimeError as error:
                self.add("fsck afterwards", None, str(error))
        finally:
            self.mount.detach()


def pjdfstest(suite):
    """Each is the other's second filesystem."""
    config = suite.file("pjdfstest.toml", PJDFSTEST_CONFIG)
    shim = os.path.join(suite.home, "linkmax.so")
    source = suite.file("linkmax.c", LINK_MAX)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", shim, source], check=True)
    ext4 = pjdfstest_run(suite, config, shim, suite.beside, suite.mount.path)
    mount = pjdfstest_run(suite, config, shim, suite.mount.path, suite.beside)
    for case in sorted(ext4.keys() | mount.keys()):
        expected, found = ext4.get(case, ("missing", "")), mount.get(case, ("missing", ""))
        if expected[0] != found[0]:
            suite.add(case, expected[0], found[0], found[1])
    totals = [summary(cases) for cases in (ext4, mount)]
    suite.add(f"all {len(ext4)} cases", *totals)
    passed = sum(verdict == "ok" for verdict, _ in ext4.values())
    if passed < PJDFSTEST_PASSES:
        suite.add("on ext4 itself", None, f"{passed} passed, not {PJDFSTEST_PASSES}: see the log")


def pjdfstest_run(suite, config, shim, place, other):
    """Returns each case's verdict, and why it is not "ok"."""
    command = [suite.options.pjdfstest_program, "-c", config, "-p", place, "-s", other]
    environment = dict(os.environ, LD_PRELOAD=shim, NO_COLOR="1")
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False).stdout
    suite.file(f"pjdfstest-{os.path.basename(place)}.log", said)
    # The reasons stand under their case, indented.
    cases = re.finditer(r"^(\S+::\S+) +(ok|skipped|FAILED)((?:\n\t.*)*)", said, re.MULTILINE)
    return {case[1]: (case[2].lower(), " ".join(case[3].split())) for case in cases}


def summary(cases):
    counts = [f"{sum(verdict == word for verdict, _ in cases.values())} {name}"
              for word, name in (("ok", "passed"), ("skipped", "skipped"), ("failed", "failed"))]
    return ", ".join(count for count in counts if not count.startswith("0 "))


def random_operations(suite):
    small, beside, mount = suite.options.small, suite.beside, suite.mount
    seeds, operations = (1, 20_000) if small else (10, 100_000)
    every, some = (fsx.Fsx(suite.options.fsx_program, suite.home, msync) for msync in (True, False))
    for seed in range(1, seeds + 1):
        # An msync after each store takes three times as long, so not all of them.
        program = every if seed % 5 == 1 else some
        ext4, found = fsx.plain(program, seed, operations, beside, mount)
        what = f"seed {seed}, {operations} operations, {program.name}"
        suite.add(what, ext4[0], found[0], f"{ext4[1]:.0f} s; {found[1]:.0f} s")
    wrong, count, slowest = fsx.snapshots(some, seeds + 1, operations, beside, mount)
    verdict = f"differ after {wrong} operations" if wrong else "ok"
    suite.add(f"{count} snapshots, one every {fsx.EVERY}", None, verdict, f"slowest taken in {slowest:.2f} s")


def stressors(suite):
    """One at a time. Where ext4 cannot run one, there is nothing to compare."""
    command = ["stress-ng", "--class", "filesystem?"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = 1 if suite.options.small else 10
    for name in (listed.stdout + listed.stderr).split("stressors:")[1].split():
        ext4, ext4_rate, reason = stressor(suite, name, seconds, suite.beside)
        if ext4 == "skipped":
            print(f"stress-ng {name}: not on ext4 here: {reason}", flush=True)
            continue
        mount, mount_rate, reason = stressor(suite, name, seconds, suite.mount.path)
        if mount == "ok" and ext4_rate and not mount_rate:
            # It did not get through one round, so it has verified nothing yet.
            mount, mount_rate, reason = stressor(suite, name, 20 * seconds, suite.mount.path)
            mount = mount if mount_rate or mount != "ok" else "nothing done"
        ratio = f"{mount_rate / ext4_rate:.2g} of ext4's {ext4_rate:.2g}/s" if ext4_rate else ""
        suite.add(name, ext4, mount, f"{ratio} {reason}".strip())


def stressor(suite, name, seconds, place):
    """Returns its verdict, the operations it did in a second, and what it said if all is not well."""
    command = ["stress-ng", f"--{name}", "1", "--timeout", f"{seconds}s", "--verify", "--temp-path", place,
               "--metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place,
                          start_new_session=True) as process:
        try:
            said = process.communicate(timeout=seconds + 300)[0]
        except subprocess.TimeoutExpired:
            # A verdict as well. Its workers go with it.
            os.killpg(process.pid, signal.SIGKILL)
            return "hangs", 0.0, ""
    suite.file(f"stress-ng-{name}-{os.path.basename(place)}.log", said)
    # "stress-ng: metrc: [PID] NAME  OPERATIONS  SECONDS …"
    count = re.search(rf"metrc: \[\d+\] {name} +(\d+) +([\d.]+)", said)
    operations, took = (int(count[1]), float(count[2])) if count else (0, 0.0)
    bad = re.findall(r"stress-ng: (?:fail|error):\s+\[\d+\] (.*)", said)
    not_run = re.findall(r"stress-ng: (?:info|warn):\s+\[\d+\] (.*(?:skipp|disabled).*)", said)
    if not_run and not operations:
        return "skipped", 0.0, not_run[0]
    if bad or process.returncode:
        return "failed", 0.0, "; ".join(bad[:2]) or f"exit {process.returncode}"
    return "ok", operations / took if took else 0.0, ""


def postgres(suite):
    """A benchmark with snapshots taken meanwhile; each of them is a database as after a power cut."""
    mount, small = suite.mount, suite.options.small
    seconds = 20 if small else 300
    live = Postgres(os.path.join(mount.path, "pg"), os.path.join(suite.home, "pg"))
    try:
        start = time.monotonic()
        live.create(10)
        suite.add("initdb, pgbench -i -s 10", None, "ok", f"{time.monotonic() - start:.0f} s")
        bench = live.bench(8, seconds)
        taken = []
        for n in range(1 if small else 3):
            time.sleep(seconds / 4)
            # What was committed before the command is in the snapshot.
            before = live.transactions()
            mount.run("snapshot", "create", mount.path, f"pg-{n}")
            taken.append((f"pg-{n}", before))
        rate = live.finish(bench)
        note = f"{rate:.0f} transactions/s, {live.transactions()} in all"
        suite.add(f"pgbench -c 8, {seconds} s", None, "ok", note)
        live.check()
        suite.add("pg_amcheck and sums", None, "ok")
        live.end()
        suite.add("pg_checksums and log", None, "ok")
    finally:
        live.kill()
    for name, before in taken:
        suite.add(f"copied out of snapshot {name}", None, *recovered(suite, name, before))


def recovered(suite, name, before):
    data = os.path.join(suite.mount.path, name)
    source = os.path.join(suite.mount.path, ".snapshots", name, "pg")
    subprocess.run(["cp", "--archive", source, data], check=True)
    # It names the server of the original, whose number another process may have by now.
    os.unlink(os.path.join(data, "postmaster.pid"))
    copy = Postgres(data, os.path.join(suite.home, name))
    try:
        copy.start()
        copy.check()
        count = copy.transactions()
        copy.end()
    finally:
        copy.kill()
    if count < before:
        return "transactions lost", f"{count} of {before}"
    return "ok", f"{count} transactions, of which {before} were seen before the snapshot"


def appends(suite):
    records = 50_000 if suite.options.small else 1_000_000
    results = []
    for place in (suite.beside, suite.mount.path):
        start = time.monotonic()
        turns, problem = append.race(os.path.join(place, "log"), 2, records // 2)
        results.append((problem or "ok", f"{time.monotonic() - start:.0f} s, {turns} changes of turn"))
    (ext4, slow), (mount, slower) = results
    suite.add(f"2 processes, {records} records", ext4, mount, f"{slow}; {slower}")


SUITES = {"pjdfstest": pjdfstest, "fsx": random_operations, "stress-ng": stressors, "postgres": postgres,
          "append": appends}


def kind_of(path):
    """The type of the filesystem that holds a directory."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        for line in f:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return "unknown"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+", metavar="NAME", choices=SUITES)
    parser.add_argument("--rewindfs", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--pjdfstest-program")
    parser.add_argument("--fsx-program")
    options = parser.parse_args()
    options.rewindfs = os.path.abspath(options.rewindfs)
    options.dir = os.path.abspath(options.dir)
    os.makedirs(options.dir)
    # Other users work in it.
    os.chmod(options.dir, 0o755)
    if kind_of(options.dir) != "ext4":
        sys.exit(f"{options.dir} is on {kind_of(options.dir)}; the yardstick is ext4: give a --dir on that")
    table = Table()
    for name in options.names:
        start = time.monotonic()
        Suite(name, options, table).run()
        print(f"{name}: {time.monotonic() - start:.0f} s\n", flush=True)
    table.show()
    return 1 if table.differing else 0


if __name__ == "__main__":
    sys.exit(main())
