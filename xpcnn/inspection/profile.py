"""Where a training step spends its time, layer by layer, forward and backward."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array, Device, generator
from ..functional.loss import softmax_cross_entropy
from ..layers import Layer, Step, batch_last
from ..optim import SGD, Optimizer
from ..table import Table, quantity
from ..training import Callback, Fit
from ..training.memory import memory_of
from .trace import Backward, Forward, shadowed

__all__ = ["LayerTime", "LayerTimes", "Profile", "profile", "watch_time"]


@dataclass
class LayerTime:
    """Seconds and calls of one leaf, summed; MACs, and bytes that it keeps for backward, of its last batch.

    Bytes that an earlier layer keeps already (the output of a ReLU is the input of the next convolution) are counted
    there.
    """

    path: str
    layer: str
    forward: float = 0.0
    backward: float = 0.0
    calls: int = 0
    macs: int = 0
    kept: int = 0


@dataclass
class Profile:
    """What `watch_time` or `profile` recorded; print it for a table. `total` is seconds of whole steps."""

    layers: list[LayerTime]
    steps: int = 0
    total: float = 0.0
    device: str = "cpu"
    _seen: set[int] = field(default_factory=set, repr=False)

    def table(self) -> Table:
        """Return milliseconds per step and layer, with the totals below."""
        steps = max(self.steps, 1)
        table = Table(
            f"Time per step on {self.device}, mean of {self.steps} steps",
            [("name", "<"), ("layer", "<"), ("forward", ">"), ("backward", ">"), ("share", ">"), ("MACs", ">"),
             ("forward rate", ">"), ("kept for backward", ">")],
        )  # fmt: skip
        inside = sum(row.forward + row.backward for row in self.layers)
        for row in self.layers:
            calls = max(row.calls, 1)
            rate = quantity(2 * row.macs / (row.forward / calls)) + "FLOP/s" if row.macs and row.forward else ""
            table.add(
                row.path,
                row.layer,
                f"{row.forward / steps * 1e3:.3f} ms",
                f"{row.backward / steps * 1e3:.3f} ms",
                f"{(row.forward + row.backward) / inside:.1%}" if inside else "",
                quantity(row.macs) if row.macs else "",
                rate,
                quantity(row.kept, "B") if row.kept else "",
            )
        other = f", {(self.total - inside) / steps * 1e3:.2f} ms of it outside the layers" if self.total else ""
        step = f"{self.total / steps * 1e3:.2f} ms a step{other}" if self.total else f"{inside / steps * 1e3:.2f} ms"
        table.footer = f"Total: {step}"
        return table

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


@contextmanager
def watch_time(net: Layer) -> Iterator[Profile]:
    """Time every leaf of `net` while inside. On a GPU each call is waited for, so the whole becomes slower.

    The leaves' `forward` and `backward` are shadowed meanwhile; layers that are otherwise computed together, such as a
    convolution and its ReLU, are computed apart.
    """
    result = Profile([], device=str(net.device))
    with shadowed(net, lambda path, layer: _clocks(path, layer, result, net.device)):
        yield result


def _clocks(path: str, layer: Layer, result: Profile, device: Device) -> tuple[Forward, Backward]:
    """Add a row to the profile; return the layer's forward and backward, timed into it."""
    forward, backward = layer.forward, layer.backward
    row = LayerTime(path, repr(layer))
    result.layers.append(row)

    def clocked(function: Callable[[], Any]) -> tuple[Any, float]:
        backend.synchronize(device)
        started = time.perf_counter()
        value = function()
        backend.synchronize(device)
        return value, time.perf_counter() - started

    def timed_forward(x: Array, train: Any) -> tuple[Array, Any]:
        (y, ctx), seconds = clocked(lambda: forward(x, train))
        row.forward += seconds
        row.calls += 1
        row.macs = layer.macs(x.shape[:-1], y.shape[:-1]) * x.shape[-1]
        pieces = memory_of(ctx)
        row.kept = sum(size for piece, size in pieces.items() if piece not in result._seen)
        result._seen.update(pieces)
        return y, ctx

    def timed_backward(dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        dx, seconds = clocked(lambda: backward(dy, ctx, need_dx))
        row.backward += seconds
        return dx

    return timed_forward, timed_backward


class LayerTimes(Callback):
    """Times the layers in the first steps of a `fit` and prints the table; `.result` keeps it.

    Args:
        steps: how many steps to time, after one that is not counted. What follows runs at full speed.
        verbose: whether to print.
    """

    def __init__(self, steps: int = 10, verbose: bool = True) -> None:
        self.steps = steps
        self.verbose = verbose
        self.result: Profile | None = None
        self._watch: Any = None
        self._started = 0.0

    def on_step_end(self, fit: Fit) -> None:
        """Begin after the first step, end `steps` later."""
        if self.result is None:
            self._watch = watch_time(fit.net)
            self.result = self._watch.__enter__()
            self._started = time.perf_counter()
        elif self._watch is not None:
            self.result.steps += 1
            self.result._seen.clear()
            if self.result.steps == self.steps:
                self._end()

    def on_fit_end(self, fit: Fit) -> None:
        """End if the training was shorter."""
        self._end()

    def _end(self) -> None:
        if self._watch is None or self.result is None:
            return
        backend.synchronize(self.result.device)
        self.result.total = time.perf_counter() - self._started
        self._watch.__exit__(None, None, None)
        self._watch = None
        if self.verbose:
            print(self.result)


def profile(
    net: Layer,
    input_shape: tuple[int, ...] | None = None,
    batch_size: int = 32,
    steps: int = 5,
    optimizer: Optimizer | None = None,
) -> Profile:
    """Train a copy of the network for a few steps on random data and time its layers.

    Args:
        net: a network that ends in K scores, built or not. It is not changed.
        input_shape: (C, H, W); a built network knows its own.
        batch_size: images per step.
        steps: how many to average over, after one that is not counted.
        optimizer: SGD if not given; its time is part of what is outside the layers.
    """
    net = copy.deepcopy(net)
    shape = tuple(input_shape or net.input_shape or ())
    (classes,) = net.build(shape)
    optimizer = optimizer or SGD(1e-3)
    rng = generator(0, "profile")
    x = backend.to_device(rng.standard_normal((batch_size, *shape)).astype(net.dtype), net.device)
    t = backend.to_device(rng.integers(0, classes, batch_size), net.device)

    def step(number: int) -> None:
        logits, ctx = net.forward(batch_last(x), Step(0, number, need_dx=False))
        _, dlogits = softmax_cross_entropy(logits, t)
        net.backward(dlogits, ctx, need_dx=False)
        optimizer.step(net)
        backend.synchronize(net.device)

    with net.device, backend.single_threaded_blas(), np.errstate(all="ignore"):
        step(0)
        with watch_time(net) as result:
            started = time.perf_counter()
            for number in range(1, steps + 1):
                result._seen.clear()
                step(number)
            result.total, result.steps = time.perf_counter() - started, steps
    return result
