"""Does memory stay flat, and is nothing left behind? Many training steps, then many models loaded and used in threads.

    python benchmarks/long_run.py [--steps 2000] [--cycles 200] [--threads 8] [--json FILE]

Training: system E (keras_style, Adagrad, dropout) on the embedded digits, augmented by two workers, with validation.
Loading: each cycle loads the trained model from its file, predicts 64 images and compares with the first prediction. A
round is one cycle in each thread; its threads are new, so what belongs to a thread must go with it.

The first quarter of the samples is warming up; growth is the least of the last samples less the least of those between,
because what threads have at a moment only ever adds. The exit code is 1 if memory grew beyond the bounds, or if a file
handle, a thread or a temporary file is left.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import sys
import tempfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn import Classifier, load
from xpcnn.data import RandomAffine, Subset, mnist
from xpcnn.optim import Adagrad
from xpcnn.training import Callback
from xpcnn.zoo import keras_style

TRACED_BOUND = 0.25  # MB that Python's objects and NumPy's arrays may grow, whatever the number of steps
RESIDENT_BOUND = 32.0  # MB that the process may grow: threads have memory pools of their own, which fill by chance
SAMPLES = 20
BATCH = 16


def resident_mb() -> float:
    """Return the memory that the process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def handles() -> list[str]:
    """Return what the open file handles are."""
    found = []
    for handle in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{handle}"))
        except OSError:  # that of the listing itself
            continue
    return sorted(found)


def threads() -> list[str]:
    """Return the names of the threads; those in which xpcnn computes are meant to stay."""
    return sorted(t.name for t in threading.enumerate() if not t.name.startswith("xpcnn-worker"))


class Watch:
    """Memory, sampled every so often."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.every = what, max(1, total // SAMPLES)
        self.samples: list[tuple[int, float, float]] = []
        print(f"{what:>8}  traced MB  resident MB  handles  threads")

    def sample(self, number: int) -> None:
        """Take a sample if it is time for one."""
        if number % self.every:
            return
        gc.collect()
        traced, resident = tracemalloc.get_traced_memory()[0] / 2**20, resident_mb()
        self.samples.append((number, traced, resident))
        print(f"{number:8d} {traced:10.3f} {resident:12.1f} {len(handles()):8d} {len(threads()):8d}", flush=True)

    def growth(self) -> dict[str, float]:
        """Return how much was taken in the end beyond what it was in the middle."""
        count = len(self.samples)
        middle, end = self.samples[count // 4 : 5 * count // 8], self.samples[5 * count // 8 :]
        made = {}
        for name, column in (("traced_mb", 1), ("resident_mb", 2)):
            made[name] = min(sample[column] for sample in end) - min(sample[column] for sample in middle)
        return made


@dataclass
class Sampler(Callback):
    """Samples during a training."""

    watch: Watch
    steps: int = 0

    def on_step_end(self, fit: Any) -> None:
        self.steps += 1
        self.watch.sample(self.steps)


def train(steps: int, path: Path) -> Watch:
    """Train for so many steps and save the model."""
    digits, others = mnist()
    epochs = max(1, steps // 100)
    part = Subset(digits, np.arange(steps // epochs * BATCH))
    model = Classifier(keras_style(), device="cpu", optimizer=Adagrad(1e-2), seed=1)
    watch = Watch("step", steps)
    model.fit(
        part,
        epochs=epochs,
        batch_size=BATCH,
        validation=Subset(others, np.arange(100)),
        augment=RandomAffine(10, 0.1),
        workers=2,
        callbacks=[Sampler(watch)],
        verbose=False,
    )
    model.save(path)
    few = Subset(others, np.arange(200))
    print(f"accuracy on {len(few)} digits: {model.score(few):.3f}")
    return watch


def use(cycles: int, count: int, path: Path) -> Watch:
    """Load and predict so many times, in `count` threads."""
    images = mnist()[1].x[:64]
    expected = load(path, "cpu").predict(images)
    rounds = -(-cycles // count)
    watch = Watch("round", rounds)

    def cycle(_: int) -> bool:
        return bool((load(path, "cpu").predict(images) == expected).all())

    for number in range(1, rounds + 1):
        with ThreadPoolExecutor(count, "user") as pool:
            if not all(pool.map(cycle, range(min(count, cycles - (number - 1) * count)))):
                raise SystemExit("a thread predicted something else")
        del pool  # which keeps its threads, and with them their scratch memory
        watch.sample(number)
    return watch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the samples to this file")
    options = parser.parse_args()

    problems, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # where everybody in this process makes temporary files
        path = Path(folder, "model.safetensors")
        train(20, path)  # imports, caches, pools of threads
        tracemalloc.start()
        before = {"file handle": handles(), "thread": threads()}
        begin = time.perf_counter()
        for watch in (train(options.steps, path), use(options.cycles, options.threads, path)):
            grown = watch.growth()
            results[watch.what] = {"growth": grown, "samples": watch.samples}
            print(f"grown over the {watch.what}s: " + ", ".join(f"{name} {mb:+.3f}" for name, mb in grown.items()))
            for name, bound in (("traced_mb", TRACED_BOUND), ("resident_mb", RESIDENT_BOUND)):
                if grown[name] > bound:
                    problems.append(f"{name} grew by {grown[name]:.3f} over the {watch.what}s; the bound is {bound}")
        gc.collect()
        seconds = time.perf_counter() - begin
        for what, after in (("file handle", handles()), ("thread", threads())):
            left = [name for name in after if after.count(name) > before[what].count(name)]
            print(f"{what}s before and after: {len(before[what])}, {len(after)}")
            problems += [f"{what} left behind: {name}" for name in sorted(set(left))]
        files = sorted(os.listdir(folder))
        print(f"temporary files left: {len(files) - 1}")
        problems += [f"file left behind: {name}" for name in files if name != path.name]
    tempfile.tempdir = None
    print("\n".join(problems) if problems else f"flat, and nothing left behind, after {seconds:.0f} s")
    if options.json:
        machine = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        about = {"date": datetime.date.today().isoformat(), "machine": machine, "seconds": round(seconds)}
        about |= {"steps": options.steps, "cycles": options.cycles, "threads": options.threads, "problems": problems}
        options.json.write_text(json.dumps(about | results, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
