"""A PostgreSQL cluster with pgbench's tables, for the drills and suites beside this file."""

import glob
import os
import re
import shutil
import subprocess

# No other server listens there: each cluster has a socket of its own, in its home, and no network.
PORT = "54329"


class Postgres:
    """A cluster, run by the user postgres: its data in one directory, its socket and log in another."""

    def __init__(self, data, home):
        self.data = data
        self.home = home
        self.log = os.path.join(home, "log")
        self.bin = max(glob.glob("/usr/lib/postgresql/*/bin"))
        os.makedirs(home)
        shutil.chown(home, "postgres", "postgres")

    def create(self, scale):
        """An empty cluster, started, with pgbench's tables."""
        os.makedirs(self.data)
        shutil.chown(self.data, "postgres", "postgres")
        self.run("initdb", "--pgdata", self.data, "--data-checksums", "--auth=trust")
        self.start()
        self.run("pgbench", *self.where(), "--initialize", "--scale", str(scale), "--quiet", "postgres")

    def start(self):
        settings = {"port": PORT, "unix_socket_directories": self.home, "listen_addresses": "''",
                    "log_min_messages": "warning"}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self.run("pg_ctl", "--pgdata", self.data, "--log", self.log, "--wait", "--timeout", "300",
                 "-o", options, "start")

    def where(self):
        return ["--host", self.home, "--port", PORT]

    def command(self, program, *arguments):
        return ["runuser", "--user", "postgres", "--", os.path.join(self.bin, program), *arguments]

    def run(self, program, *arguments):
        done = subprocess.run(self.command(program, *arguments), cwd=self.home, capture_output=True, text=True,
                              check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout} {done.stderr}")
        return done.stdout

    def bench(self, clients, seconds):
        """A benchmark under way. --no-vacuum: without it pgbench empties its history, which `check` needs."""
        command = self.command("pgbench", *self.where(), "--client", str(clients), "--jobs", "2",
                               "--time", str(seconds), "--no-vacuum", "postgres")
        return subprocess.Popen(command, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True)

    def interrupt(self, bench):
        """Ends a benchmark that was to go on. Returns the transactions done."""
        if bench.poll() is not None:
            raise RuntimeError(f"pgbench ended: {bench.stdout.read()}")
        done = self.transactions()
        bench.terminate()
        bench.wait()
        no_error(bench.stdout.read())
        return done

    def finish(self, bench):
        """Waits for a benchmark. Returns its transactions per second."""
        said = bench.communicate()[0]
        no_error(said)
        failed = re.search(r"number of failed transactions: (\d+)", said)
        tps = re.search(r"^tps = ([0-9.]+)", said, re.MULTILINE)
        if bench.returncode != 0 or not tps or (failed and failed[1] != "0"):
            raise RuntimeError(f"pgbench: {bench.returncode} {said}")
        return float(tps[1])

    def transactions(self):
        return int(self.query("select count(*) from pgbench_history"))

    def check(self):
        """Every index and heap is sound, and the sums that each transaction keeps equal are equal."""
        self.run("pg_amcheck", *self.where(), "--all", "--install-missing", "--heapallindexed",
                 "--parent-check")
        sums = self.query(
            "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),"
            " (select sum(tbalance) from pgbench_tellers),"
            " (select coalesce(sum(delta), 0) from pgbench_history)")
        if len(set(sums.split("|"))) != 1:
            raise RuntimeError(f"accounts, branches, tellers and history differ: {sums}")

    def query(self, text):
        return self.run("psql", *self.where(), "--no-psqlrc", "--tuples-only", "--no-align",
                        "--command", text, "postgres").strip()

    def stop(self):
        self.run("pg_ctl", "--pgdata", self.data, "--wait", "--mode", "fast", "stop")

    def end(self):
        """Stops it; then its pages must have the checksums they should, and its log nothing bad."""
        self.stop()
        self.run("pg_checksums", "--check", "--pgdata", self.data)
        with open(self.log, encoding="utf-8") as log:
            # The end of the benchmark closes its connections.
            bad = [line for line in log if "client" not in line and
                   any(word in line for word in ("PANIC", "FATAL", "could not", "I/O"))]
        if bad:
            raise RuntimeError(f"PostgreSQL noticed: {bad}")

    def kill(self):
        """Leaves no server of it running, whatever happened."""
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            command = self.command("pg_ctl", "--pgdata", self.data, "--wait", "--mode", "immediate", "stop")
            subprocess.run(command, cwd="/", capture_output=True, check=False)


def no_error(said):
    if "ERROR" in said or "FATAL" in said or "PANIC" in said:
        raise RuntimeError(f"pgbench: {said}")
