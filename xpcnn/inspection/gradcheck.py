"""Does backward compute the derivative of forward? Compare it with finite differences.

The check runs in float64 with central differences, (f(v + eps) - f(v - eps)) / (2 eps). Small arrays are checked
element by element; for large ones sum(gradient * d) is compared with the difference along d, for a few random
directions d.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array, array_module, generator, single_threaded_blas, to_numpy
from ..errors import ArgumentError
from ..functional.loss import softmax_cross_entropy
from ..layers import Layer, Step, batch_last
from ..table import Table

__all__ = ["GradientReport", "GradientRow", "gradcheck", "numerical_gradient"]

EPS = 1e-6
ATOL = 1e-8
RTOL = 1e-6


def numerical_gradient(f: Callable[[Array], Any], x: Array, eps: float = EPS) -> Array:
    """Return df/dx by central differences, one element at a time.

    Args:
        f: function of x that returns one number. It is called with x itself, whose elements are changed and put back;
            so it may also ignore its argument and use, say, a network that holds x as a parameter.
        x: writeable float64 array of any shape.
        eps: step.

    Returns:
        Array of the shape of x.
    """
    if x.dtype != np.float64:
        raise ArgumentError(f"numerical gradients need float64, float32 rounds too much; received {x.dtype}.")
    gradient = np.empty(x.shape)
    for index in np.ndindex(*x.shape):
        gradient[index] = _slope(lambda: float(f(x)), x, index, 1.0, eps)
    return array_module(x).asarray(gradient)


def _slope(f: Callable[[], float], x: Array, index: Any, direction: Any, eps: float) -> float:
    """Return the slope of f along `direction` in x[index]; x is put back exactly, whatever happens."""
    before = x[index].copy()
    try:
        x[index] = before + direction * eps
        up = f()
        x[index] = before - direction * eps
        down = f()
    finally:
        x[index] = before
    return (up - down) / (2 * eps)


@dataclass(frozen=True)
class GradientRow:
    """The check of one array; `analytic` and `numeric` are the pair that agrees least.

    `error` is |a - n| / (max(|a|, |n|) + atol / rtol), so a pair passes if it is at most rtol: the relative error for
    gradients above 0.01 (with the default tolerances), 100 times the absolute one for tiny ones. Infinite for NaN.
    """

    name: str
    shape: tuple[int, ...]
    checked: int
    method: str
    analytic: float
    numeric: float
    error: float
    passed: bool


@dataclass(frozen=True)
class GradientReport:
    """The outcome of `gradcheck`, one row for each parameter and one for the input; print it to see the table."""

    rows: tuple[GradientRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every array passed."""
        return all(row.passed for row in self.rows)

    @property
    def worst(self) -> GradientRow:
        """The row that agrees least."""
        return max(self.rows, key=lambda row: row.error)

    def table(self) -> Table:
        """Return the rows as a table."""
        table = Table(
            "Backward against central differences, float64",
            [("array", "<"), ("shape", "<"), ("checked", ">"), ("by", "<"), ("backward", ">"), ("differences", ">"),
             ("error", ">"), ("", "<")],
        )  # fmt: skip
        for row in self.rows:
            verdict = "ok" if row.passed else "WRONG"
            values = f"{row.analytic:.8g}", f"{row.numeric:.8g}", f"{row.error:.1e}"
            table.add(row.name, row.shape, row.checked, row.method, *values, verdict, bad=not row.passed)
        wrong = [row.name for row in self.rows if not row.passed]
        table.footer = f"wrong: {', '.join(wrong)}" if wrong else f"all {len(self.rows)} gradients agree"
        return table

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


@single_threaded_blas()  # some thousand small products: BLAS threads would mostly wait for each other
def gradcheck(
    net: Layer,
    x: Array,
    t: Array | None = None,
    *,
    inference: bool = False,
    eps: float = EPS,
    atol: float = ATOL,
    rtol: float = RTOL,
    elements: int = 200,
    directions: int = 10,
    seed: int = 0,
) -> GradientReport:
    """Check the gradient of every trainable parameter of a layer or network, and of its input.

    The network itself is not touched: a float64 copy is. What is differentiated is the mean softmax cross-entropy if
    labels are given, otherwise sum(y * r) / sqrt(size) with fixed random numbers r.

    Args:
        net: any layer; if it is not built yet, the copy is built for x.
        x: input as people hand it in, batch first: (N, C, H, W) or (N, D). Converted to float64. Random numbers are
            best: where an image is constant, ReLU and max pooling may sit on a kink, where no derivative exists.
        t: class labels (N,), or None.
        inference: behave as at prediction (batch norm with running statistics, no dropout) instead of as in training.
        eps: step of the differences. A pair that disagrees is tried once more with eps / 10, because a kink (ReLU, max
            pooling) may lie between the two points; a wrong gradient stays wrong.
        atol, rtol: a pair passes if |a - n| <= atol + rtol * max(|a|, |n|).
        elements: arrays of up to this many elements are checked element by element.
        directions: how many random directions are checked in larger ones.
        seed: of the directions, of r, of the initial weights of a layer not built yet and of dropout masks.
    """
    net = copy.deepcopy(net)
    net.build(tuple(x.shape[1:]), seed=seed, dtype="float64")
    net.to(dtype="float64")
    for parameter in net.parameters().values():
        parameter.grad[...] = 0.0
    xp = net.xp
    x = batch_last(xp.asarray(to_numpy(x), dtype=np.float64)).copy()
    labels = None if t is None else xp.asarray(to_numpy(t))
    step = Step(seed, 0, recompute=True, inference=inference)

    def weights_of(y: Array) -> Array:
        return xp.asarray(generator(seed, "projection").standard_normal(y.shape) / math.sqrt(y.size))

    def loss() -> float:
        y = net.forward(x, step)[0]
        return float((y * weights_of(y)).sum()) if labels is None else float(softmax_cross_entropy(y, labels)[0])

    y, ctx = net.forward(x, step)
    dy = weights_of(y) if labels is None else softmax_cross_entropy(y, labels)[1]
    dx = net.backward(dy, ctx)
    checks = [(name, p.data, p.grad) for name, p in net.parameters().items() if p.trainable]
    if dx is not None:
        checks.append(("input", x, dx))
    rows = []
    for name, values, gradient in checks:
        gradient = to_numpy(gradient).copy()
        if values.size <= elements:
            method, points = "element", [(index, 1.0) for index in np.ndindex(*values.shape)]
        else:
            rng = generator(seed, "direction", name)
            unit = [rng.standard_normal(values.shape) for _ in range(directions)]
            method, points = "direction", [(..., d / np.linalg.norm(d)) for d in unit]
        pairs = []
        for index, direction in points:
            analytic = float((gradient[index] * direction).sum())
            along = xp.asarray(direction)
            for size in (eps, eps / 10):
                numeric = _slope(loss, values, index, along, size)
                error = abs(analytic - numeric) / (max(abs(analytic), abs(numeric)) + atol / rtol)
                if error <= rtol:
                    break
            pairs.append((error if math.isfinite(error) else math.inf, analytic, numeric))
        error, analytic, numeric = max(pairs)
        shape = tuple(values.shape)
        rows.append(GradientRow(name, shape, len(pairs), method, analytic, numeric, error, error <= rtol))
    return GradientReport(tuple(rows))
