"""What a training step must take on a GPU, computed: bytes moved, floating-point operations, and the time they imply.

    ci/cudasim/with-cuda-sim python benchmarks/roofline.py [--only W1] [--write docs/gpu.md]

A step of each workload of `xpcnn bench` is run with its real batch size, but kernels and matrix products only note
what they are given: every array that they read or write counts once, as if nothing stayed in a cache from one kernel
to the next. Kernels of CuPy itself do run, on the simulated device, and count by the names and grids in its log: a
broadcast operand counts in full, and what its few reductions read not at all. Nothing here is a measurement.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from launches import needs_simulator, stepper

from xpcnn import backend, layers
from xpcnn.functional import fused
from xpcnn.inspection.bench import WORKLOADS, Workload

BANDWIDTH = 3.35e12  # bytes/s: H100 SXM
PEAK = {"float32": 67e12, "float16": 990e12}  # FLOP/s; float16 by tensor cores, dense
CUDA_LAUNCH, PYTHON_LAUNCH = 3e-6, 10e-6  # s, assumed: what the device needs, and what calling it from Python costs
START, END = "<!-- benchmarks/roofline.py writes from here", "<!-- to here -->"
IN_PLACE = ("update", "unscale", "update_statistics")  # kernels that read and write the same arrays
SIZES = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int64": 8,
    "int": 8,
    "bool": 1,
    "float": 0,
}  # float: a Python number


@dataclass
class Counts:
    """Launches, bytes and operations of one step.

    `seconds` is the sum over launches of what takes longer, moving or computing, at the peak of the device.
    """

    launches: int = 0
    products: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, size: float, flops: float = 0.0, dtype: str = "float32") -> None:
        """Count one launch."""
        self.launches += 1
        self.bytes += size
        self.flops += flops
        self.seconds += max(size / BANDWIDTH, flops / PEAK[dtype])


def sizes(arguments: Any) -> int:
    """Return the bytes of all arrays among the arguments of a kernel."""
    return sum(a.nbytes for a in arguments if hasattr(a, "nbytes") and a.ndim)


@contextmanager
def noting(counts: Counts) -> Iterator[None]:
    """Let fused kernels and products count what they are given instead of running."""
    elementwise = fused._elementwise

    def fake_elementwise(xp: Any, *definition: str) -> Any:
        name, _, outputs, *_ = definition
        kernel = elementwise(xp, *definition)

        def launch(*arguments: Any, size: int | None = None) -> Any:
            given = [a for a in arguments if hasattr(a, "nbytes")]
            made = []
            if len(arguments) < kernel.nargs:  # the kernel makes its outputs
                shape = np.broadcast_shapes(*(a.shape for a in given))
                kinds = [np.bool_ if "bool" in text else given[0].dtype for text in outputs.split(",")]
                made = [xp.empty(shape, kind) for kind in kinds]
            counts.add((1 + (name in IN_PLACE)) * sizes((*given, *made)))
            return made[0] if len(made) == 1 else made

        return launch

    def fake_kernel(_: Any, name: str, *__: Any, **___: Any) -> Any:
        return lambda grid, block, arguments: counts.add((1 + (name in IN_PLACE)) * sizes(arguments))

    def fake_product(a: Any, b: Any, out: Any) -> Any:
        counts.products += 1
        counts.add(sizes((a, b, out)), 2.0 * out.size * a.shape[-1], str(a.dtype))
        return out

    def fake_bias_gradient(dy: Any) -> Any:
        counts.add(dy.nbytes)
        return backend.array_module(dy).zeros(len(dy), np.float32)

    with ExitStack() as stack:
        for module, name, fake in (
            (fused, "_elementwise", fake_elementwise),
            (fused, "_kernel", fake_kernel),
            (backend, "product", fake_product),
            (layers.conv, "bias_gradient", fake_bias_gradient),
            (layers.dense, "bias_gradient", fake_bias_gradient),
        ):
            stack.enter_context(mock.patch.object(module, name, fake))
        yield


def count_cupy(counts: Counts, log: list[str]) -> None:
    """Add the kernels of CuPy itself, whose names end with the types of inputs and outputs: cupy_add__float32_..."""
    for line in log:
        if not line.startswith("launch "):
            continue
        name, grid, block = re.fullmatch(r"launch (\S+) grid (\d+),1,1 block (\d+),1,1", line).groups()
        types = name.partition("__")[2].split("_") if name.startswith("cupy_") else []
        counts.add(int(grid) * int(block) * sum(SIZES[kind] for kind in types if kind))


def count(workload: Workload, mixed: bool) -> Counts:
    """Return the counts of a training step."""
    import cudasim

    step = stepper(workload.network, workload.shape, workload.optimizer(), mixed)
    images = np.zeros((workload.batch, *workload.shape), np.float32)
    labels = np.zeros(workload.batch, np.int64)
    with noting(Counts()):
        step(images, labels, 0)
    counts = Counts()
    with noting(counts), cudasim.count(log=True) as calls:
        step(images, labels, 1)
    count_cupy(counts, calls.log)
    counts.bytes += 2.0 * calls["d2d_bytes"]
    counts.seconds += 2.0 * calls["d2d_bytes"] / BANDWIDTH
    return counts


def table(only: str) -> Iterator[str]:
    """Yield the lines of the table."""
    import cupy

    titles = (
        "workload, arithmetic, launches, of these products, GB moved, GFLOP, moving, computing, roofline, launching"
    )
    yield f"| {titles.replace(', ', ' | ')} |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, workload in WORKLOADS.items():
        if workload.optimizer is None or only.lower() not in name.lower():
            continue
        for mixed in (False, True):
            c = count(workload, mixed)
            cupy.get_default_memory_pool().free_all_blocks()
            peak = PEAK["float16" if mixed else "float32"]
            times = [c.bytes / BANDWIDTH, c.flops / peak, c.seconds]
            launching = f"{c.launches * CUDA_LAUNCH * 1e3:.2f} to {c.launches * PYTHON_LAUNCH * 1e3:.2f} ms"
            yield (
                f"| {name} | {'mixed' if mixed else 'float32'} | {c.launches} | {c.products} | {c.bytes / 1e9:.3g} "
                f"| {c.flops / 1e9:.3g} | " + " | ".join(f"{1e3 * t:.3f} ms" for t in times) + f" | {launching} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--write", type=Path, help="put the table between the marks in this file")
    arguments = parser.parse_args()
    needs_simulator()
    lines = []
    for line in table(arguments.only):
        print(line, flush=True)
        lines.append(line)
    if arguments.write is not None:
        before, _, rest = arguments.write.read_text().partition(START)
        head, _, after = rest.partition(END)
        mark = head.splitlines()[0]
        arguments.write.write_text(f"{before}{START}{mark}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")


if __name__ == "__main__":
    main()
