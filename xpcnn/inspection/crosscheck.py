"""Does the GPU do what the CPU does? One forward and backward on NumPy and on CuPy, compared layer by layer."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array, Device, generator, single_threaded_blas, to_device, to_numpy
from ..functional.loss import softmax_cross_entropy
from ..layers import Layer, Step, batch_last
from ..table import Table
from .trace import Visit, trace

__all__ = ["CrosscheckReport", "CrosscheckRow", "crosscheck"]

# (relative, absolute) for sums of products, whose order of summation differs between the two. The absolute part is for
# arrays whose largest element is 1 and scales with it, because rounding scales with the terms of a sum, not with what
# is left of them; but not below FLOOR, where gradients that should cancel to zero are all rounding.
TOLERANCES = {"float64": (1e-12, 1e-12), "float32": (1e-4, 1e-5), "float16": (1e-2, 1e-2)}
FLOOR = 0.1


@dataclass(frozen=True)
class CrosscheckRow:
    """One array on both devices: an output, the gradient of an input, or the gradient of a parameter.

    `difference` is the largest |a - b|; `ratio` the largest |a - b| / tolerance, the tolerance of an element being
    relative * |a| + absolute * max |a|, with a computed by NumPy.
    """

    path: str
    layer: str
    what: str
    difference: float
    ratio: float

    @property
    def passed(self) -> bool:
        """Whether all elements agree (NaN never does)."""
        return self.ratio <= 1


@dataclass(frozen=True)
class CrosscheckReport:
    """The outcome of `crosscheck`, in the order in which things were computed; print it to see the table."""

    rows: tuple[CrosscheckRow, ...]
    device: str
    dtype: str

    @property
    def passed(self) -> bool:
        """Whether everything agrees."""
        return all(row.passed for row in self.rows)

    def table(self) -> Table:
        """Return a row for each pass through a layer."""
        relative, absolute = TOLERANCES[self.dtype]
        table = Table(
            f"cpu against {self.device}, {self.dtype}, tolerance {relative:g} relative + {absolute:g} absolute",
            [("name", "<"), ("layer", "<"), ("compared", "<"), ("largest difference", ">"), ("of tolerance", ">"),
             ("", "<")],
        )  # fmt: skip
        for row in self.rows:
            verdict = "ok" if row.passed else "DIFFERS"
            numbers = f"{row.difference:.1e}", f"{row.ratio:.2%}"
            table.add(row.path, row.layer, row.what, *numbers, verdict, bad=not row.passed)
        first = next((row for row in self.rows if not row.passed), None)
        table.footer = (
            f"everything agrees ({len(self.rows)} arrays)"
            if first is None
            else f"first to differ: {first.what} of {first.path or 'the network'}, {first.layer}"
        )
        return table

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


@single_threaded_blas()
def crosscheck(
    net: Layer, x: Array, t: Array | None = None, *, device: str = "cuda:0", seed: int = 0
) -> CrosscheckReport:
    """Run one training forward and backward on the CPU and on `device`, and compare every layer's results.

    Args:
        net: any layer; copies of it are used (built for x, in float32, if it is not built).
        x: input, batch first: (N, C, H, W) or (N, D).
        t: class labels (N,) for the mean softmax cross-entropy; without them fixed random numbers are the gradient
            of the output.
        device: what to compare with the CPU.
        seed: of dropout masks, of that gradient and of the weights of a network not built yet.

    Raises:
        DeviceError: if `device` cannot be used; the message says why.
    """
    there = Device(device)
    net = copy.deepcopy(net)
    net.build(tuple(x.shape[1:]), seed=seed)
    x = np.ascontiguousarray(batch_last(to_numpy(x).astype(net.dtype, copy=False)))
    labels = None if t is None else to_numpy(t)
    here_visits, here_grads = _run(net, Device("cpu"), x, labels, seed)
    there_visits, there_grads = _run(net, there, x, labels, seed)
    dtype = str(np.dtype(net.dtype))
    pairs = list(zip(here_visits, there_visits, strict=True))
    rows = [_compare(a.path, repr(a.layer), "output", a.y, b.y, dtype) for a, b in pairs]
    for a, b in reversed(pairs):
        if a.dx is not None and b.dx is not None:
            rows.append(_compare(a.path, repr(a.layer), "gradient of input", a.dx, b.dx, dtype))
    layers = {visit.path: repr(visit.layer) for visit in here_visits}
    for name, gradient in here_grads.items():
        path, _, last = name.rpartition(".")
        rows.append(_compare(path, layers.get(path, ""), f"gradient of {last}", gradient, there_grads[name], dtype))
    return CrosscheckReport(tuple(rows), str(there), dtype)


def _run(
    net: Layer, device: Device, x: np.ndarray, labels: np.ndarray | None, seed: int
) -> tuple[list[Visit], dict[str, np.ndarray]]:
    """Return what passed through every leaf, and the parameters' gradients, all in host memory."""
    net = copy.deepcopy(net).to(device)
    for parameter in net.parameters().values():
        parameter.grad[...] = 0.0
    step = Step(seed, 0)
    with device, trace(net) as visits:
        y, ctx = net.forward(to_device(x, device), step)
        if labels is None:
            projection = generator(seed, "projection").standard_normal(y.shape) / math.sqrt(y.size)
            dy = to_device(projection.astype(x.dtype), device)
        else:
            dy = softmax_cross_entropy(y, to_device(labels, device))[1]
        net.backward(dy, ctx)
    for visit in visits:
        visit.y, visit.dx = to_numpy(visit.y), None if visit.dx is None else to_numpy(visit.dx)
    return visits, {name: to_numpy(p.grad) for name, p in net.parameters().items() if p.trainable}


def _compare(path: str, layer: str, what: str, a: np.ndarray, b: np.ndarray, dtype: str) -> CrosscheckRow:
    relative, absolute = TOLERANCES[dtype]
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = np.abs(a - b)
    ratio = difference / (relative * np.abs(a) + absolute * np.abs(a).max(initial=FLOOR))
    return CrosscheckRow(path, layer, what, float(difference.max(initial=0.0)), float(ratio.max(initial=0.0)))
