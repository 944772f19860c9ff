"""xpcnn beside PyTorch on the CPU, interleaved in one run, in separate processes with equal threads.

    pip install torch==2.13.0        # the CPU build
    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/compare.py [NAME ...] [--rounds 6] [--json FILE]

Each round lets one side work for a while and then the other, in turn first. The ratio (torch time / our time, above 1
we are faster) is the median over rounds of the ratio of the two medians of that round, with the least and greatest.
Rounds in which the rest of the machine took more than `--busy` of a core are left out and counted.

Rows "... for_inference" are the same network after `net.for_inference()`; torch's side stays as it is, `eval()` in
`inference_mode()`. `inference.py` compares more ways to predict.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

SIDES = ("torch", "xpcnn")
FAST = " for_inference"
LAUNCHES = Path(__file__).parent / "results" / "launches.json"  # of a step on a GPU: benchmarks/launches.py wrote it


# --- a side, in a process of its own ----------------------------------------------------------------------------


def peak_memory():
    """Return the peak resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would begin with that of the parent
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def busy_elsewhere():
    """Return (seconds of CPU that the machine used, that this process used, now)."""
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
    return total, own.ru_utime + own.ru_stime, time.perf_counter()


def workloads():
    """Return the workloads by name, those of inference a second time."""
    from xpcnn.inspection.bench import WORKLOADS

    names = [[name] if workload.optimizer else [name, name + FAST] for name, workload in WORKLOADS.items()]
    return {name: WORKLOADS[name.removesuffix(FAST)] for group in names for name in group}


def images(workload):
    """Return the random images that our side takes."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((workload.batch, *workload.shape), dtype=np.float32)


def fast_runner(workload):
    """Return a function that predicts once with the network made for it."""
    net, x = workload.network(), images(workload)
    net.build(workload.shape)
    fast = net.for_inference()
    return lambda: fast(x)


def serve(side, name, threads):
    """Measure a workload on one side."""
    from xpcnn.backend import single_threaded_blas
    from xpcnn.inspection.bench import runner, sgemm_peak

    workload = workloads()[name]
    if side == "torch":
        import torch
        import torch_side

        torch.set_num_threads(threads)
        imported = peak_memory()
        step = torch_side.runner(workload)
    else:
        import xpcnn

        xpcnn.set_threads(threads)
        imported = peak_memory()
        step = fast_runner(workload) if name.endswith(FAST) else runner(workload)
    for _ in range(3):
        step()
    memory = peak_memory()
    time.sleep(0.3)
    ready = {"imported": imported, "memory": memory, "peak": sgemm_peak() if side == "xpcnn" else None}
    training = side == "xpcnn" and workload.optimizer is not None
    with single_threaded_blas() if training else nullcontext():  # for all steps, as in `fit`
        answer(step, **ready)


def answer(step, **ready):
    """Say that we are ready, then answer each line "SECONDS" on stdin with the step times of so many seconds."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        seconds, times = float(line), []
        before = busy_elsewhere()
        while len(times) < 2 or time.perf_counter() - before[2] < seconds:
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        after = busy_elsewhere()
        other = (after[0] - before[0]) - (after[1] - before[1])
        print(json.dumps({"times": times, "other": max(0.0, other) / (after[2] - before[2])}), flush=True)


# --- both sides in turn -----------------------------------------------------------------------------------------


def compare(name, rounds, seconds, threads, busy):
    """Return the results of one workload."""
    command = [sys.executable, __file__, "--serve"]
    sides, ready = {}, {}
    for side in SIDES:  # one after the other: ours measures the peak when all is quiet
        sides[side] = subprocess.Popen(
            [*command, side, name, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready[side] = json.loads(sides[side].stdout.readline())
    measured = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            time.sleep(0.15)  # an idle BLAS or OpenMP thread spins for a tenth of a second
            print(seconds, file=sides[side].stdin, flush=True)
            measured[side].append(json.loads(sides[side].stdout.readline()))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    quiet = [i for i in range(rounds) if all(measured[side][i]["other"] <= busy for side in SIDES)]
    used = quiet or range(rounds)
    median = {side: [statistics.median(measured[side][i]["times"]) for i in used] for side in SIDES}
    ratios = [t / x for t, x in zip(median["torch"], median["xpcnn"], strict=True)]
    ours = statistics.median(median["xpcnn"])
    return {
        "workload": name,
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_greatest": max(ratios),
        "ratio_of_best": min(min(r["times"]) for r in measured["torch"])
        / min(min(r["times"]) for r in measured["xpcnn"]),
        "rounds": len(used),
        "rounds_disturbed": rounds - len(quiet),
        "torch_ms": statistics.median(median["torch"]) * 1e3,
        "xpcnn_ms": ours * 1e3,
        "torch_memory_mb": ready["torch"]["memory"],
        "xpcnn_memory_mb": ready["xpcnn"]["memory"],
        "sgemm_gflops": ready["xpcnn"]["peak"] / 1e9,
        "utilisation": workloads()[name].flops() / ours / ready["xpcnn"]["peak"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of workload names; all by default")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in each round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", type=float, default=0.15, help="cores that others may use before a round is left out")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    if {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & os.environ.keys():
        print("note: OPENBLAS_CORETYPE or OPENBLAS_L2_SIZE is set, which slows NumPy", file=sys.stderr)
    titles = {"torch ms": 10, "xpcnn ms": 10, "ratio": 7, "spread": 14, "best": 7, "of peak": 9, "MB": 12}
    print(f"{'workload':32}" + "".join(f"{title:>{width}}" for title, width in titles.items()) + "  launches  copies")
    launches = json.loads(LAUNCHES.read_text()) if LAUNCHES.exists() else {}
    results = []
    for name in workloads():
        if options.names and not any(part.lower() in name.lower() for part in options.names):
            continue
        r = compare(name, options.rounds, options.seconds, options.threads, options.busy)
        results.append(r)
        asked = launches.get(name)
        r["gpu_launches"] = asked["kernels"] + asked["gemms"] + asked["memsets"] if asked else None
        r["gpu_copies"] = asked["to device"] + asked["to host"] + asked["on device"] if asked else None
        spread = f"{r['ratio_least']:.2f}-{r['ratio_greatest']:.2f}"
        memory = f"{r['torch_memory_mb']:.0f}/{r['xpcnn_memory_mb']:.0f}"
        print(
            f"{name:32}{r['torch_ms']:10.2f}{r['xpcnn_ms']:10.2f}{r['ratio']:7.2f}{spread:>14}{r['ratio_of_best']:7.2f}"
            f"{r['utilisation']:9.0%}{memory:>12}{r['gpu_launches'] or '-':>10}{r['gpu_copies'] if asked else '-':>8}"
            + (f"  ({r['rounds_disturbed']} disturbed)" * bool(r["rounds_disturbed"])),
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({**about(options.threads), "results": results}, indent=2) + "\n")


def about(threads):
    """Return what a file of results says about the machine and the versions."""
    import torch

    from xpcnn.inspection.doctor import versions

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu[0]}, {len(cpu)} cores, {platform.system()}",
        "threads": threads,
        "versions": {**versions(), "torch": torch.__version__},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
