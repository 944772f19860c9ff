"""What one step asks of the GPU: kernel launches, copies and waits, counted on the simulated device.

    ci/cudasim/with-cuda-sim python benchmarks/launches.py [--batch 2] [--mixed] [--only NAME] [--json FILE]

The workloads are those of `xpcnn bench`; what is written to benchmarks/results/launches.json, compare.py prints too.

The counts do not depend on the machine or, but for very large batches, on the batch size. The first steps, which
compile kernels and make workspaces, are not counted. "generic" is what the array operations of the generic bodies would
launch without the kernels of xpcnn/functional/fused.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xpcnn import LossScale, Step, batch_last, softmax_cross_entropy
from xpcnn.data.uploader import Uploader
from xpcnn.functional import fused
from xpcnn.inspection.bench import WORKLOADS, Workload

COLUMNS = {
    "kernels": ("kernel_launch",),
    "gemms": ("gemm",),
    "memsets": ("memset",),
    "to device": ("h2d",),
    "to host": ("d2h",),
    "on device": ("d2d",),
    "waits": ("device_sync", "stream_sync", "event_sync"),
    "mallocs": ("malloc",),
}


def stepper(
    make: Callable[[], Any], shape: tuple[int, ...], optimizer: Any, mixed: bool
) -> Callable[[np.ndarray, np.ndarray, int], None]:
    """Return a function that does one step with host arrays: images, labels, number of the step.

    It is a training step; inference if there is no optimizer.
    """
    net, scale = make(), LossScale() if mixed else None
    net.build(shape, device="cuda:0")
    uploader = Uploader("cuda:0")

    def infer(images: np.ndarray, labels: np.ndarray, number: int) -> None:
        (x,) = uploader.put(images)
        net.forward(batch_last(x).astype("float16" if mixed else "float32", copy=False), False)

    def step(images: np.ndarray, labels: np.ndarray, number: int) -> None:
        x, t = uploader.put(images, labels)
        x = batch_last(x) if scale is None else batch_last(x).astype("float16")
        outputs, ctx = net.forward(x, Step(0, number, need_dx=False))
        _, dlogits = softmax_cross_entropy(outputs.astype("float32", copy=False), t)
        net.backward(dlogits if scale is None else scale.apply(dlogits, "float16"), ctx, need_dx=False)
        optimizer.step(net, scale=scale)

    return infer if optimizer is None else step


def count_step(workload: Workload, batch: int, mixed: bool) -> dict[str, int]:
    """Return the counters of the third step, by column."""
    import cudasim

    rng = np.random.default_rng(0)
    optimizer = workload.optimizer and workload.optimizer()
    step = stepper(workload.network, workload.shape, optimizer, mixed)
    for number in range(3):
        images = rng.random((batch, *workload.shape), dtype=np.float32)
        with cudasim.count() as counts:
            step(images, rng.integers(0, workload.classes, batch), number)
    found = counts.as_dict()
    return {name: sum(found[key] for key in keys) for name, keys in COLUMNS.items()}


def needs_simulator() -> None:
    """Leave with a hint unless CuPy runs on the simulated device."""
    with contextlib.suppress(ImportError):
        import cupy  # noqa: F401  (under with-cuda-sim this switches the simulator on)
    if "cudasim" not in sys.modules:
        sys.exit(f"this is counted on the simulated device: ci/cudasim/with-cuda-sim python {sys.argv[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--mixed", action="store_true", help="float16 arithmetic with a loss scale")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--json", type=Path, help="write the counts there")
    arguments = parser.parse_args()
    needs_simulator()
    print(f"one step, batch {arguments.batch}{', mixed precision' if arguments.mixed else ''}")
    print(f"{'':20}" + "".join(f"{name:>10}" for name in (*COLUMNS, "generic")))
    results = {}
    for name, workload in WORKLOADS.items():
        if arguments.only.lower() not in name.lower():
            continue
        counts = count_step(workload, arguments.batch, arguments.mixed)
        with fused.disabled():
            generic = count_step(workload, arguments.batch, arguments.mixed)["kernels"]
        results[name] = {**counts, "generic": generic}
        print(f"{name:20}" + "".join(f"{number:10,}" for number in results[name].values()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
