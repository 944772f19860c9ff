"""Fixed workloads and how long they take: what `xpcnn bench` runs, and what `benchmarks/` compares with torch.

W1 to W4 are the networks of the four examples with their optimizers; W5 are three deep networks for 32x32 RGB images;
W6 is inference. Data are random: the time does not depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend
from ..backend import Device, generator
from ..errors import ArgumentError
from ..functional.loss import softmax_cross_entropy
from ..layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dense,
    DenseConcat,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Step,
    batch_last,
)
from ..optim import SGD, Adagrad, Adam, Optimizer
from ..table import Table, quantity
from ..zoo import keras_style, lenet, mri, simple_convnet
from .summary import summary

__all__ = ["WORKLOADS", "BenchReport", "BenchRow", "Workload", "bench", "runner", "sgemm_peak"]


@dataclass(frozen=True)
class Workload:
    """A network, its input and its optimizer; `optimizer` None means inference."""

    network: Callable[[], Layer]
    shape: tuple[int, int, int]
    classes: int
    batch: int
    optimizer: Callable[[], Optimizer] | None

    def flops(self) -> float:
        """Return floating-point operations per step, two per MAC: forward, and in training dw and dx.

        The first layer computes no dx.
        """
        rows = [row.macs for row in summary(self.network(), self.shape).rows if row.macs]
        macs = sum(rows) if self.optimizer is None else 3 * sum(rows) - rows[0]
        return 2.0 * macs * self.batch


def _conv_norm(width: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> list[Layer]:
    layers: list[Layer] = [Conv2d(width, kernel, stride, kernel // 2, bias=False), BatchNorm2d()]
    return [*layers, ReLU()] if relu else layers


def vgg16_bn() -> Layer:
    """VGG-16 with batch norm and one dense layer."""
    layers: list[Layer] = []
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += _conv_norm(width)
        layers.append(MaxPool2d(2))
    return Sequential(*layers, Flatten(), Dense(10))


def resnet18() -> Layer:
    """ResNet-18 with a 3x3 stem."""
    layers, present = _conv_norm(64), 64
    for width, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            body = Sequential(*_conv_norm(width, 3, stride), *_conv_norm(width, relu=False))
            same = stride == 1 and present == width
            layers.append(Residual(body, None if same else Sequential(*_conv_norm(width, 1, stride, False)), ReLU()))
            present = width
    return Sequential(*layers, GlobalAvgPool2d(), Dense(10))


def densenet40() -> Layer:
    """DenseNet-BC of depth 40, growth 12: three blocks of six layers."""
    layers: list[Layer] = [Conv2d(24, 3, padding=1, bias=False)]
    channels = 24
    for block in range(3):
        for _ in range(6):
            narrow = [BatchNorm2d(), ReLU(), Conv2d(48, 1, bias=False)]
            layers.append(DenseConcat(Sequential(*narrow, BatchNorm2d(), ReLU(), Conv2d(12, 3, padding=1, bias=False))))
        channels += 72
        if block < 2:
            channels //= 2
            layers += [BatchNorm2d(), ReLU(), Conv2d(channels, 1, bias=False), AvgPool2d(2)]
    return Sequential(*layers, BatchNorm2d(), ReLU(), GlobalAvgPool2d(), Dense(10))


def _sgd() -> Optimizer:
    return SGD(0.1, momentum=0.9, weight_decay=5e-4)


def _plain_sgd() -> Optimizer:
    return SGD(0.01, weight_decay=5e-4)


WORKLOADS = {
    "W1 mri b32": Workload(mri, (1, 200, 200), 4, 32, Adam),
    "W2 lenet b5": Workload(lenet, (1, 28, 28), 10, 5, _plain_sgd),
    "W2 lenet b100": Workload(lenet, (1, 28, 28), 10, 100, _plain_sgd),
    "W3 simple b100": Workload(simple_convnet, (1, 28, 28), 10, 100, Adam),
    "W4 keras b16": Workload(keras_style, (1, 28, 28), 10, 16, Adagrad),
    "W5 vgg16-bn b64": Workload(vgg16_bn, (3, 32, 32), 10, 64, _sgd),
    "W5 resnet18 b64": Workload(resnet18, (3, 32, 32), 10, 64, _sgd),
    "W5 densenet40 b64": Workload(densenet40, (3, 32, 32), 10, 64, _sgd),
    "W6 keras b1": Workload(keras_style, (1, 28, 28), 10, 1, None),
    "W6 keras b64": Workload(keras_style, (1, 28, 28), 10, 64, None),
    "W6 vgg16-bn b1": Workload(vgg16_bn, (3, 32, 32), 10, 1, None),
    "W6 vgg16-bn b64": Workload(vgg16_bn, (3, 32, 32), 10, 64, None),
}


def runner(workload: Workload, device: str | Device = "cpu") -> Callable[[], float]:
    """Return a function that does one step of the workload, waits for it, and returns the loss (0 for inference)."""
    place = Device(device)
    net, rng = workload.network(), generator(0, "bench")
    net.build(workload.shape, seed=0, device=place)
    x = backend.to_device(rng.standard_normal((workload.batch, *workload.shape), dtype=np.float32), place)
    t = backend.to_device(rng.integers(0, workload.classes, workload.batch), place)
    if workload.optimizer is None:

        def infer() -> float:
            net(x)
            backend.synchronize(place)
            return 0.0

        return infer
    optimizer, number = workload.optimizer(), 0

    def step() -> float:
        nonlocal number
        number += 1
        with backend.single_threaded_blas():
            logits, ctx = net.forward(batch_last(x), Step(0, number, need_dx=False))
            loss, dlogits = softmax_cross_entropy(logits, t)
            net.backward(dlogits, ctx, need_dx=False)
            optimizer.step(net)
            return float(loss)

    return step


def sgemm_peak(device: str | Device = "cpu", size: int = 2048, rounds: int = 5) -> float:
    """Return float32 operations per second of the best of a few products of two size x size matrices.

    On the CPU each of our threads multiplies its own rows, with BLAS on one thread each.
    """
    place = Device(device)
    xp, rng = place.xp, generator(0, "sgemm")
    a, b = (backend.to_device(rng.standard_normal((size, size), dtype=np.float32), place) for _ in range(2))
    out = xp.empty_like(a)
    rows = backend.spans(size, backend.threads() if xp is np else 1)
    best = float("inf")
    with backend.single_threaded_blas():
        for _ in range(rounds):
            started = time.perf_counter()
            backend.for_chunks(len(rows), size**3, lambda i: xp.matmul(a[slice(*rows[i])], b, out=out[slice(*rows[i])]))
            backend.synchronize(place)
            best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


@dataclass(frozen=True)
class BenchRow:
    """Seconds per step (median and best), steps timed, and what part of the sgemm peak the model's FLOPs reach."""

    workload: str
    median: float
    best: float
    steps: int
    images_per_second: float
    utilisation: float


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured; print it for a table. `sgemm` is the peak in operations per second."""

    device: str
    threads: int
    sgemm: float
    rows: tuple[BenchRow, ...]

    def table(self) -> Table:
        """Return the rows as a table."""
        table = Table(
            f"Benchmarks on {self.device}" + (f", {self.threads} threads" if self.device == "cpu" else ""),
            [("workload", "<"), ("median", ">"), ("best", ">"), ("steps", ">"), ("images/s", ">"),
             ("of sgemm peak", ">")],
        )  # fmt: skip
        for row in self.rows:
            times = f"{row.median * 1e3:.2f} ms", f"{row.best * 1e3:.2f} ms"
            table.add(row.workload, *times, row.steps, quantity(row.images_per_second), f"{row.utilisation:.0%}")
        table.footer = f"sgemm peak: {quantity(self.sgemm)}FLOP/s"
        return table

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


def bench(names: Sequence[str] = (), device: str | Device = "cpu", seconds: float = 2.0) -> BenchReport:
    """Time workloads for so many seconds each.

    Args:
        names: parts of names of WORKLOADS, in any case; all workloads if empty.
        device: where to compute.
        seconds: how long to time each; at least 3 steps are timed after 2 that are not.
    """
    chosen = {k: w for k, w in WORKLOADS.items() if not names or any(n.lower() in k.lower() for n in names)}
    if not chosen:
        raise ArgumentError(f"no workload is called {', '.join(names)}; there are: {', '.join(WORKLOADS)}.")
    peak = sgemm_peak(device)
    rows = []
    for name, workload in chosen.items():
        step = runner(workload, device)
        for _ in range(2):
            step()
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        median = statistics.median(times)
        rows.append(
            BenchRow(name, median, min(times), len(times), workload.batch / median, workload.flops() / median / peak)
        )
    return BenchReport(str(Device(device)), backend.threads(), peak, tuple(rows))
