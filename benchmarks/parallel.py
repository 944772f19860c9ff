"""Data-parallel training: what two processes bring on two cores, measured; and what summing gradients costs, computed.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/parallel.py measure [--rounds 8] [--json FILE]
    python benchmarks/parallel.py compute [--write docs/parallel.md]

`measure` trains the same network on the same batches as 1 rank with 2 threads, as 2 ranks with 1 thread, and as 1 rank
with 1 thread, each for a while and in turns, on random images. The efficiency is the time of 1 x 2 over that of 2 x 1:
above 1, processes use the cores better than threads. It is the median over rounds, with the least and greatest.

`compute` is a model and no measurement. All-reduce on a ring of p GPUs sends 2 (p - 1) / p times the gradients over
each link in 2 (p - 1) steps (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", 2009). Two binary trees send twice the gradients in about 2 log2(p) steps (Sanders, Speck and Traeff,
"Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009); NCCL has both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xpcnn import Classifier, set_threads, zoo
from xpcnn.inspection.bench import WORKLOADS
from xpcnn.inspection.doctor import versions

SIDES = {"1 rank, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1), "1 rank, 1 thread": (1, 1)}
NAMES = ("W1 mri b32", "W2 lenet b100", "W3 simple b100", "W4 keras b16", "W5 densenet40 b64")
NETWORKS = ("resnet20", "mobilenet_v2", "densenet121", "inception_v3", "resnet18", "resnet50", "vgg16")
START, END = "<!-- benchmarks/parallel.py writes from here", "<!-- to here -->"


# --- measured ---------------------------------------------------------------------------------------------------


def serve(name: str, threads: int) -> None:
    """Train so many steps for each number on stdin and print the seconds; rank 0 reads and prints."""
    set_threads(threads)
    workload = WORKLOADS[name]
    rng = np.random.default_rng(0)
    classifier = Classifier(workload.network(), optimizer=workload.optimizer(), device="cpu", parallel="mpi")
    classifier.build(workload.shape)
    images = rng.integers(0, 256, (20 * workload.batch, *workload.shape), np.uint8)
    labels = np.arange(len(images)) % workload.classes
    while steps := asked(classifier.rank):
        chosen = np.arange(steps * workload.batch) % len(images)
        data = images[chosen], labels[chosen]
        classifier.fit(*data, epochs=1, batch_size=workload.batch, shuffle=False, verbose=False)
        if not classifier.rank:
            print(classifier.history["seconds"][-1], flush=True)


def asked(rank: int) -> int:
    """Return the number on the next line, on every rank; 0 at the end. Nobody spins while the other side works."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if rank:
        while not world.iprobe(source=0):
            time.sleep(0.01)
        return world.recv(source=0)
    number = int(sys.stdin.readline() or 0)
    for other in range(1, world.Get_size()):
        world.send(number, other)
    return number


class Side:
    """One way to train, in processes of its own."""

    def __init__(self, name: str, ranks: int, threads: int) -> None:
        mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
        command = [mpiexec, "-n", str(ranks), sys.executable, __file__, "serve", name, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, steps: int) -> float:
        print(steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, rounds: int, seconds: float) -> dict:
    """Return milliseconds a step of every side, and the ratios of the medians of each round."""
    sides = {side: Side(name, *how) for side, how in SIDES.items()}
    steps = 4
    for side in sides.values():
        steps = max(4, round(seconds / (side.seconds(4) / 4)))  # that of the last, which is the slowest
    times = {side: [] for side in SIDES}
    for number in range(rounds):
        time.sleep(0.1)
        for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
            times[side].append(sides[side].seconds(steps) / steps)
    for side in sides.values():
        side.end()
    threaded, ranked, single = times.values()
    efficiency = [a / b for a, b in zip(threaded, ranked, strict=True)]
    speed_up = [a / b for a, b in zip(single, ranked, strict=True)]
    return {
        "workload": name,
        "steps": steps,
        "milliseconds": {side: 1e3 * statistics.median(values) for side, values in times.items()},
        "efficiency": statistics.median(efficiency),
        "efficiency_least": min(efficiency),
        "efficiency_greatest": max(efficiency),
        "speed_up": statistics.median(speed_up),
    }


def measure(rounds: int, seconds: float, names: list[str], file: Path | None) -> None:
    """Compare on all workloads and print a table."""
    print(
        "| workload | " + " | ".join(f"{side}, ms" for side in SIDES) + " | efficiency | least to greatest | speed-up |"
    )
    print("|---" * (len(SIDES) + 4) + "|")
    results = []
    for name in NAMES:
        if names and not any(part.lower() in name.lower() for part in names):
            continue
        r = compare(name, rounds, seconds)
        results.append(r)
        cells = [f"{r['milliseconds'][side]:.2f}" for side in SIDES]
        spread = f"{r['efficiency_least']:.2f} to {r['efficiency_greatest']:.2f}"
        print(
            f"| {name} | {' | '.join(cells)} | **{r['efficiency']:.2f}** | {spread} | {r['speed_up']:.2f} |", flush=True
        )
    if file is not None:
        cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{cpu[0].split(':')[1].strip()}, {len(cpu)} cores, {platform.system()}",
            "versions": versions(),
            "rounds": rounds,
        }
        file.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


# --- computed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """GPUs and what joins them.

    Args:
        gpus: their number p.
        bandwidth: bytes/s that the slowest link of the ring carries in one direction.
        latency: seconds of one of the ring's steps.
    """

    gpus: int
    bandwidth: float
    latency: float


NVLINK, NETWORK = 450e9, 50e9  # bytes/s a GPU: NVLink 4 inside of a machine of 8 H100, 400 Gbit/s between machines
CLUSTERS = (Cluster(8, NVLINK, 3e-6), Cluster(64, NETWORK, 5e-6), Cluster(1024, NETWORK, 5e-6))
RATE = 0.4 * 67e12  # FLOP/s: 40 % of an H100's float32 peak, assumed
IMAGES = 32  # of each GPU
BUCKETS = 4


def ring(size: float, cluster: Cluster) -> float:
    """Return the seconds that a ring takes to sum `size` bytes over all GPUs."""
    p = cluster.gpus
    return 2 * (p - 1) / p * size / cluster.bandwidth + 2 * (p - 1) * cluster.latency


def trees(size: float, cluster: Cluster) -> float:
    """Return the seconds that two binary trees take."""
    return 2 * size / cluster.bandwidth + 2 * math.log2(cluster.gpus) * cluster.latency


def step(macs: float) -> float:
    """Return the seconds of forward and backward: three times the multiplications of inference, two FLOPs each."""
    return 3 * 2 * macs * IMAGES / RATE


def efficiency(macs: float, bucket: float) -> float:
    """Return the part of the time in which GPUs compute, if summing a bucket takes so many seconds.

    Buckets are summed one after the other and begin while backward runs, which is two thirds of a step; the last one
    when backward has ended.
    """
    waiting = max(bucket, BUCKETS * bucket - step(macs) * 2 / 3 * (BUCKETS - 1) / BUCKETS)
    return step(macs) / (step(macs) + waiting)


def table() -> str:
    """Return the table of docs/parallel.md."""
    heads = [f"{c.gpus:,} GPUs" for c in CLUSTERS]
    lines = [
        f"| network | gradients MB | step ms | {' | '.join(heads)} |",
        "|---|--:|--:|" + "--:|" * len(CLUSTERS),
    ]
    for name in NETWORKS:
        form = zoo.entry(name).form()
        size, seconds = 4.0 * form.parameters, step(form.macs)
        cells = []
        for cluster in CLUSTERS:
            parts = [efficiency(form.macs, how(size / BUCKETS, cluster)) for how in (ring, trees)]
            cells.append(f"{1e3 * ring(size, cluster):.2f} ms, {parts[0]:.0%} ({parts[1]:.0%})")
        lines.append(f"| {name} | {size / 1e6:.1f} | {1e3 * seconds:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(page: Path) -> None:
    """Put the table between the marks in a page."""
    text = page.read_text("utf-8")
    head, _, rest = text.partition(START)
    mark, _, rest = rest.partition("\n")
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{START}{mark}\n\n{table()}\n\n{END}{tail}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("names", nargs="*", help="parts of workload names; all by default")
    measuring.add_argument("--rounds", type=int, default=8)
    measuring.add_argument("--seconds", type=float, default=0.6, help="of the slowest side in each round")
    measuring.add_argument("--json", type=Path, help="write the results there")
    computing = commands.add_parser("compute")
    computing.add_argument("--write", type=Path, help="put the table into this page, between its marks")
    serving = commands.add_parser("serve")
    serving.add_argument("name")
    serving.add_argument("threads", type=int)
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.name, options.threads)
    elif options.command == "measure":
        measure(options.rounds, options.seconds, options.names, options.json)
    elif options.write is None:
        print(table())
    else:
        write(options.write)


if __name__ == "__main__":
    main()
