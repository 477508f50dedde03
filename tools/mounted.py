"""A store with its mount, for the drills and measurements beside this file."""

import json
import os
import subprocess


class Mount:
    """A store with its mount."""

    def __init__(self, binary, home):
        self.binary = binary
        self.store = os.path.join(home, "store")
        self.path = os.path.join(home, "mnt")
        os.makedirs(self.path)
        os.environ["REWINDFS_KEY_DIR"] = os.path.join(home, "keys")
        self.run("init", self.store)

    def run(self, *arguments):
        done = subprocess.run([self.binary, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def mount(self):
        self.run("mount", self.store, self.path)

    def detach(self):
        """Leaves nothing mounted, whatever happened."""
        subprocess.run(["umount", "--lazy", self.path], stderr=subprocess.DEVNULL, check=False)

    def status(self):
        return json.loads(self.run("status", self.path, "--json"))

    def entry(self):
        """What the registry says, which needs no answer from a server."""
        with open(os.path.join(self.store, "node"), encoding="ascii") as f:
            node = f.read().strip().split()[-1]
        with open(f"/run/rewindfs/{node}.json", encoding="ascii") as f:
            return json.load(f)
