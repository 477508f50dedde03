"""A real training run on a rewindfs mount, started by tools/train.

Reads the handwritten-digits data set through the mount, trains a multilayer perceptron on it with Adam in f32, and
saves weights and moments ten times over the same model.safetensors, with a snapshot after each. Then it mounts the
store again, loads all ten back from .snapshots/ and compares them, bit for bit, with hashes taken from the arrays in
memory before they were saved. Exits non-zero on any difference.
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from safetensors.numpy import load_file, save, save_file

MIB = 1 << 20
PIXELS, CLASSES = 64, 10
BATCH = 128
STEPS_PER_CHECKPOINT = 14  # one pass over the 1,797 digits


class Failure(Exception):
    """Something that must hold does not."""


class Mount:
    """The program under test: one store and its mount."""

    def __init__(self, binary, home):
        self.binary = str(binary)
        self.store, self.point = home / "store", home / "mnt"
        # The demonstration's key stays with the demonstration.
        self.env = os.environ | {"REWINDFS_KEY_DIR": str(home / "keys")}
        for directory in (self.point, home / "keys"):
            directory.mkdir(parents=True)

    def __call__(self, *args):
        command = [self.binary, *map(str, args)]
        done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failure(f"{' '.join(command)}: exit code {done.returncode}")
        return done.stdout

    def __enter__(self):
        self("mount", self.store, self.point)
        return self

    def __exit__(self, kind, *_):
        try:
            self("umount", self.point)
        except Failure:
            subprocess.run(["umount", "--lazy", self.point], check=False)
            if kind is None:
                raise


class Network:
    """A multilayer perceptron with its Adam state, all arrays in one dictionary."""

    def __init__(self, hidden, seed=1):
        random = np.random.default_rng(seed)
        sizes = [PIXELS, hidden, hidden, CLASSES]
        self.layers = len(sizes) - 1
        self.weights, self.steps = {}, 0
        for i, (rows, columns) in enumerate(zip(sizes, sizes[1:])):
            scale = np.float32(np.sqrt(2.0 / rows))
            self.weights[f"layer{i}.weight"] = random.standard_normal((rows, columns), dtype=np.float32) * scale
            self.weights[f"layer{i}.bias"] = np.zeros(columns, np.float32)
        self.first = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.second = {name: np.zeros_like(w) for name, w in self.weights.items()}

    def forward(self, images):
        values = [images]
        for i in range(self.layers):
            x = values[-1] @ self.weights[f"layer{i}.weight"] + self.weights[f"layer{i}.bias"]
            values.append(np.maximum(x, 0) if i + 1 < self.layers else x)
        return values

    def step(self, images, labels):
        """One Adam step on the cross entropy; returns the loss."""
        values = self.forward(images)
        logits = values[-1] - values[-1].max(axis=1, keepdims=True)
        odds = np.exp(logits)
        odds /= odds.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = -np.log(odds[rows, labels] + 1e-12).mean()
        odds[rows, labels] -= 1
        slope = odds / np.float32(len(labels))
        self.steps += 1
        for i in reversed(range(self.layers)):
            gradients = {f"layer{i}.weight": values[i].T @ slope, f"layer{i}.bias": slope.sum(axis=0)}
            if i > 0:
                slope = (slope @ self.weights[f"layer{i}.weight"].T) * (values[i] > 0)
            for name, gradient in gradients.items():
                self.adam(name, gradient)
        return float(loss)

    def adam(self, name, gradient, rate=1e-3, beta1=0.9, beta2=0.999):
        first, second = self.first[name], self.second[name]
        first *= np.float32(beta1)
        first += np.float32(1 - beta1) * gradient
        second *= np.float32(beta2)
        second += np.float32(1 - beta2) * gradient * gradient
        rate *= np.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
        self.weights[name] -= np.float32(rate) * first / (np.sqrt(second) + np.float32(1e-8))

    def state(self):
        """What a checkpoint holds."""
        arrays = {"steps": np.array([self.steps], np.int64)}
        for group, members in (("model", self.weights), ("adam.m", self.first), ("adam.v", self.second)):
            arrays |= {f"{group}.{name}": array for name, array in members.items()}
        return arrays


def hidden_for(mib):
    """The smallest layer width (a multiple of 16) whose checkpoint has at least `mib` MiB."""
    hidden = 16
    while 12 * (PIXELS * hidden + hidden * hidden + hidden * CLASSES + 2 * hidden + CLASSES) < mib * MIB:
        hidden += 16
    return hidden


def install_dataset(target):
    """Unpacks the digits that ship inside scikit-learn into the mount."""
    package = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
    rows = gzip.decompress((package / "datasets/data/digits.csv.gz").read_bytes())
    target.mkdir(parents=True)
    (target / "digits.csv").write_bytes(rows)
    return hashlib.sha256(rows).hexdigest()


def read_dataset(path):
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    if table.shape != (1797, PIXELS + 1):
        raise Failure(f"{path}: {table.shape} is not the shape of the data set")
    return table[:, :PIXELS] / np.float32(16), table[:, PIXELS].astype(np.int64)


def array_hash(array):
    return hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()).hexdigest()


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(arrays, path, through_rename):
    """Saves as programs do: over the file itself, or beside it and renamed into place."""
    target = path.with_suffix(".tmp") if through_rename else path
    save_file(arrays, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    if through_rename:
        os.replace(target, path)


def train(mount, count, mib, side_file):
    """Trains, saves and snapshots; returns what each checkpoint must be, and the seconds spent."""
    data = mount.point / "data"
    digits = data / "digits.csv"
    digits_hash = install_dataset(data)
    model = mount.point / "run" / "model.safetensors"
    model.parent.mkdir()
    network = Network(hidden_for(mib))
    order = np.random.default_rng(2)
    seconds = dict.fromkeys(("training", "saving", "snapshots"), 0.0)
    expected = []
    for number in range(1, count + 1):
        began = time.monotonic()
        images, labels = read_dataset(digits)  # through the mount, every time
        for _ in range(STEPS_PER_CHECKPOINT):
            picked = order.choice(len(labels), BATCH, replace=False)
            loss = network.step(images[picked], labels[picked])
        hits = (network.forward(images)[-1].argmax(axis=1) == labels).mean()
        seconds["training"] += time.monotonic() - began

        arrays = network.state()
        image = save(arrays)
        entry = {
            "name": f"step-{network.steps:05}",
            "bytes": len(image),
            "sha256": hashlib.sha256(image).hexdigest(),
            "arrays": {name: array_hash(array) for name, array in arrays.items()},
        }
        del image
        began = time.monotonic()
        save_checkpoint(arrays, model, through_rename=number % 2 == 0)
        seconds["saving"] += time.monotonic() - began
        began = time.monotonic()
        printed = mount("snapshot", "create", mount.point, entry["name"]).strip()
        seconds["snapshots"] += time.monotonic() - began
        if printed != entry["name"]:
            raise Failure(f"snapshot create printed {printed!r} and not {entry['name']!r}")
        expected.append(entry)
        # On the filesystem below, so that what must be compared does not depend on what is compared.
        side_file.write_text(json.dumps(expected, indent=1))
        print(f"  {entry['name']}  loss {loss:.4f}  accuracy {hits:.3f}  {entry['bytes'] / MIB:.1f} MiB", flush=True)
    if hits < 0.8:
        raise Failure(f"accuracy {hits:.3f}: it did not learn, so this is not a real training run")
    return expected, digits_hash, seconds


def verify(mount, expected, digits_hash):
    """Loads every checkpoint from its snapshot and compares; returns what zstd -3 makes of the files."""
    listed = set(os.listdir(mount.point / ".snapshots"))
    missing = [entry["name"] for entry in expected if entry["name"] not in listed]
    if missing:
        raise Failure(f"not listed in .snapshots: {', '.join(missing)}")
    zstd_bytes = 0
    for entry in expected:
        root = mount.point / ".snapshots" / entry["name"]
        path = root / "run" / "model.safetensors"
        arrays = load_file(path)  # maps the file
        found = {name: array_hash(array) for name, array in arrays.items()}
        if found != entry["arrays"]:
            wrong = sorted(name for name in found | entry["arrays"] if found.get(name) != entry["arrays"].get(name))
            raise Failure(f"{path}: arrays differ: {', '.join(wrong)}")
        if path.stat().st_size != entry["bytes"] or file_hash(path) != entry["sha256"]:
            raise Failure(f"{path}: the bytes differ from what was saved")
        if file_hash(root / "data" / "digits.csv") != digits_hash:
            raise Failure(f"{root}: the data set differs")
        zstd_bytes += zstd_size(path)
        print(f"  {entry['name']}  {len(found)} arrays and the whole file equal", flush=True)
    if file_hash(mount.point / "run" / "model.safetensors") != expected[-1]["sha256"]:
        raise Failure("the live file is not the last checkpoint")
    return zstd_bytes


def zstd_size(path):
    with open(path, "rb") as file:
        with subprocess.Popen(["zstd", "-3", "-q", "-c"], stdin=file, stdout=subprocess.PIPE) as zstd:
            size = sum(len(block) for block in iter(lambda: zstd.stdout.read(MIB), b""))
    if zstd.returncode != 0:
        raise Failure(f"zstd failed on {path}")
    return size


def disk_usage(path):
    """Bytes allocated below, as du counts them (a hard-linked file once), without what is kept back for a full disk."""
    command = ["du", "--summarize", "--block-size=1", "--exclude=reserve", path]
    return int(subprocess.check_output(command, text=True).split()[0])


def main():
    parser = argparse.ArgumentParser(prog="tools/train", description=__doc__.split("\n\n")[1])
    parser.add_argument("--rewindfs", required=True, type=pathlib.Path, help="the program")
    parser.add_argument("--dir", required=True, type=pathlib.Path, help="where to work; must be empty or absent; is kept")
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--mib", type=int, default=64, help="size of a checkpoint, at least")
    parser.add_argument("--require-smaller", action="store_true", help="fail unless the store is smaller than the files")
    options = parser.parse_args()
    if options.checkpoints < 1 or options.mib < 1:
        parser.error("--checkpoints and --mib must be at least 1")
    if options.dir.exists() and any(options.dir.iterdir()):
        parser.error(f"{options.dir} is not empty")

    home = options.dir.resolve()
    mount = Mount(options.rewindfs.resolve(), home)
    mount("init", mount.store)
    print(f"training; a checkpoint of {options.mib} MiB or more, {options.checkpoints} times:", flush=True)
    with mount:
        expected, digits_hash, seconds = train(mount, options.checkpoints, options.mib, home / "expected.json")
    print("mounted again; loading them back from .snapshots:", flush=True)
    began = time.monotonic()
    with mount:
        zstd_bytes = verify(mount, expected, digits_hash)
    seconds["verifying (zstd included)"] = time.monotonic() - began

    files, store = sum(entry["bytes"] for entry in expected), disk_usage(mount.store)
    parts = {part.name: disk_usage(part) for part in sorted(mount.store.iterdir()) if part.is_dir()}
    print(f"\n{'what':<36}{'bytes':>14}{'of the files':>14}")
    rows = [(f"{len(expected)} checkpoints, as files", files), ("the store (du, without its reserve)", store)]
    rows += [(f"  {name}/", size) for name, size in parts.items()]
    rows += [("zstd -3 of each file, summed", zstd_bytes)]
    for name, size in rows:
        print(f"{name:<36}{size:>14,}{size / files:>14.3f}")
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    if store >= files and options.require_smaller:
        raise Failure("the store is not smaller than the files it holds")
    print(f"OK: {len(expected)} checkpoints of {expected[0]['bytes'] / MIB:.1f} MiB came back bit-exact after a remount")


if __name__ == "__main__":
    try:
        main()
    except (Failure, OSError) as error:
        sys.exit(f"tools/train: {error}")
