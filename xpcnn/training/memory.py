"""How much memory a training step takes, and how to train within less.

A step is measured, not modelled: the network goes forward and backward on zeros of the shape in question while
allocations are counted. What would be too large to try is extrapolated from the two largest batches that were not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import BLOCK, Array, peak_memory, single_threaded_blas, threads
from ..data import Loader
from ..data.uploader import SLOTS
from ..errors import ArgumentError
from ..layers import AuxiliaryHead, BatchNorm1d, BatchNorm2d, Layer, Parameter, Recompute, Sequential, Step, auxiliaries
from ..layers.base import Shape
from ..optim import Optimizer
from ..table import quantity

__all__ = [
    "Demand",
    "TrainingMemory",
    "bytes_of",
    "choose",
    "flattened",
    "memory_of",
    "queued",
    "recomputing",
    "training_memory",
    "weights_of",
]

UNITS = ("", "K", "M", "G", "T")
PROBE = 1 << 30  # bytes that `training_memory` may take to find out
WITH_NORM = 16  # images in a micro-batch below which batch norm's statistics suffer
LEAST_WITH_NORM = 4


def bytes_of(size: int | str, name: str = "memory_limit") -> int:
    """Return a number of bytes: an int as it is, "2GiB" (powers of 1024) or "500 MB" (powers of 1000)."""
    result = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", size.strip(), re.IGNORECASE)
        if match is not None:
            number, unit, binary = match.groups()
            result = int(float(number) * (1024 if binary else 1000) ** UNITS.index(unit.upper()))
    if result < 1:
        raise ArgumentError(f'{name} is a number of bytes, or a text such as "2GiB" or "500MB"; received {size!r}.')
    return result


def _text(size: float) -> str:
    return quantity(size, "B")


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes at the highest point of a step.

    Attributes:
        batch_size: images in a batch.
        micro_batch: images that go through the network at once.
        recompute: whether activations are computed again in backward instead of being kept.
        weights: parameters and running statistics.
        gradients: of the parameters.
        optimizer: its state, and the moving average of the weights if there is one.
        images: batches that wait to enter the network.
        kept: what forward keeps for backward, its input too.
        working: everything that is there for a moment: gradients of activations, columns of a convolution, ...
    """

    batch_size: int
    micro_batch: int
    recompute: bool
    weights: int
    gradients: int
    optimizer: int
    images: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.images + self.kept + self.working

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "images", "kept", "working")
        parts = ", ".join(f"{name} {_text(getattr(self, name))}" for name in names)
        pieces = f" in micro-batches of {self.micro_batch}" if self.micro_batch < self.batch_size else ""
        again = " with recomputation" if self.recompute else ""
        return f"Training, batch {self.batch_size}{pieces}{again}: {_text(self.total)} ({parts})"


# --- what a network keeps ---------------------------------------------------------------------------------------


def memory_of(ctx: Any) -> dict[int, int]:
    """Return {piece of memory: bytes} of all arrays in a ctx. A view keeps all of the array it looks into alive."""
    return {id(base): base.nbytes for base in _bases(ctx, set())}


def _bases(value: Any, seen: set[int]) -> Iterator[Array]:
    if id(value) in seen or isinstance(value, (Layer, Parameter, str, bytes, int, float, type(None))):
        return
    seen.add(id(value))
    if hasattr(value, "nbytes") and hasattr(value, "dtype"):
        while getattr(value, "base", None) is not None and hasattr(value.base, "nbytes"):
            value = value.base
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _bases(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _bases(item, seen)
    elif hasattr(value, "__dict__"):
        yield from _bases(vars(value), seen)


def weights_of(net: Layer) -> dict[int, int]:
    """Return {piece of memory: bytes} of parameters, gradients and buffers: whatever ctx refers to is no extra."""
    arrays = [p.grad for p in net.parameters().values()]
    return memory_of([*net.state_dict().values(), *arrays])


# --- one step ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Bytes of a forward and backward pass: input and what is kept, and the highest point beside that."""

    kept: float
    working: float

    @property
    def total(self) -> float:
        """Both."""
        return self.kept + self.working


class Probe:
    """Finds out what forward and backward of a built network take, by doing them on zeros.

    Running statistics stay as they are; gradients are zero afterwards.
    """

    def __init__(self, net: Layer, shape: Shape, body: Layer | None = None, dtype: Any = None) -> None:
        self.net = net
        self.shape = shape
        self.body = body or net  # what is run: the network, or the same layers with recomputation
        self.dtype = dtype or net.dtype
        self.measured: dict[int, Piece] = {}

    def measure(self, images: int) -> Piece:
        """Do it, for so many images."""
        xp, own = self.net.xp, weights_of(self.net)
        with self.net.device:
            x = xp.zeros((*self.shape, images), self.dtype)
            with single_threaded_blas(), peak_memory(self.net.device) as peak:
                y, ctx = self.body.forward(x, Step(recompute=True, need_dx=False))
                extra = sum(size for piece, size in memory_of(ctx).items() if piece not in own and piece != id(x))
                for head in auxiliaries(ctx):
                    head.gradient = xp.zeros_like(head.logits)
                self.body.backward(xp.zeros_like(y), ctx, need_dx=False)
                self.measured[images] = Piece(extra + x.nbytes, peak() - extra)
            self.net.flat().grad[...] = 0.0
        return self.measured[images]

    def explore(self, most: int, limit: float) -> None:
        """Measure ever larger batches, up to `most` images, while no more than `limit` bytes are to be expected."""
        first = 2 if has_batch_norm(self.net) else 1
        for images in sorted({min(first << i, most) for i in range(most.bit_length() + 1)}):
            if images not in self.measured and (len(self.measured) < 2 or self.estimate(images).total <= limit):
                self.measure(images)

    def estimate(self, images: int) -> Piece:
        """Return what was measured for so many images, or lies on the line through the two nearest sizes."""
        if images in self.measured:
            return self.measured[images]
        sizes = sorted(self.measured)
        index = next((i for i, size in enumerate(sizes) if size > images), len(sizes) - 1)
        low, high = sizes[max(index, 1) - 1], sizes[max(index, 1)]
        first, second, part = self.measured[low], self.measured[high], (images - low) / (high - low)
        return Piece(
            max(first.kept + part * (second.kept - first.kept), 0.0),
            max(first.working + part * (second.working - first.working), 0.0),
        )


def has_batch_norm(net: Layer) -> bool:
    """Whether the statistics of a batch matter."""
    return any(isinstance(layer, (BatchNorm1d, BatchNorm2d)) and not layer.is_frozen for _, layer in net.walk())


@dataclass(frozen=True)
class Demand:
    """What is trained, as far as it decides about memory: all but how the batch goes through the network."""

    net: Layer
    shape: Shape
    batch_size: int
    optimizer: Optimizer
    ema: bool = False
    queued: int = 1  # batches that have been prepared and not yet used
    dtype: Any = None  # of the activations; None for that of the weights

    def memory(self, piece: Piece, micro_batch: int | None = None, recompute: bool = False) -> TrainingMemory:
        """Return the whole, for what forward and backward take."""
        parameters, itemsize = list(self.net.parameters().values()), self.net.dtype.itemsize
        weights = sum(p.data.nbytes for p in parameters)
        update = weights if self.optimizer.clip_norm is not None else 0  # a step without activations
        scratch = 0
        if self.net.xp is np:
            scratch = min(weights, BLOCK * itemsize) * threads()  # stays
        else:
            update += weights
        return TrainingMemory(
            batch_size=self.batch_size,
            micro_batch=micro_batch or self.batch_size,
            recompute=recompute,
            weights=sum(array.nbytes for array in self.net.state_dict().values()),
            gradients=sum(p.grad.nbytes for p in parameters),
            optimizer=(self.optimizer.state_arrays + self.ema) * weights,
            images=self.queued * self.batch_size * math.prod(self.shape) * itemsize,
            kept=round(piece.kept),
            working=round(max(piece.working, update - piece.kept)) + scratch,
        )


def queued(loader: Loader) -> int:
    """Return how many batches a loader keeps prepared in the memory of the device, with the one in use."""
    if loader.device.kind == "cuda":
        return SLOTS
    return 1 + (max(loader.workers, loader.prefetch) + 1 if loader.workers else 0)


def training_memory(
    net: Layer, shape: Shape, batch_size: int, optimizer: Optimizer, ema: bool = False, probe: int = PROBE
) -> TrainingMemory:
    """Return what training a built network takes.

    The data set is not counted, nor what callbacks keep. The network goes forward and backward on zeros: its weights
    and statistics stay as they are, its gradients are cleared.

    Args:
        net: the network.
        shape: (C, H, W) of its images.
        batch_size: images in a batch.
        optimizer: whose state is counted.
        ema: whether there is a moving average of the weights.
        probe: bytes that finding out may take. A step that takes more is extrapolated.
    """
    found = Probe(net, shape)
    found.explore(batch_size, probe)
    return Demand(net, shape, batch_size, optimizer, ema).memory(found.estimate(batch_size))


# --- less of it -------------------------------------------------------------------------------------------------


def recomputing(net: Layer, shape: Shape, dtype: Any = None) -> Layer | None:
    """Return the same layers in a network that keeps the input of each of some segments and computes the rest again.

    The segments are chosen so that their inputs and the largest segment take the least together (Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost", 2016). The result shares its layers with `net`, which stays as
    it is, and trains it to the same bits.

    Returns:
        None if that would save nothing.
    """
    blocks = _blocks(net)
    xp, images, own = net.xp, 2, weights_of(net)
    inputs, kept, contexts = [], [], []
    with net.device, single_threaded_blas():
        x = xp.zeros((*shape, images), dtype or net.dtype)
        seen = own.keys() | {id(x)}
        for block in blocks:
            inputs.append(x.nbytes)
            x, ctx = block.forward(x, Step(recompute=True))
            contexts.append(ctx)  # alive, so that no id is used again
            kept.append(sum(size for piece, size in memory_of(ctx).items() if piece not in seen))
            seen |= memory_of(ctx).keys()
    apart = [_has_side(block) for block in blocks]
    best, least = None, sum(kept)
    for count in range(2, len(blocks) + 1):
        segments = _segments(kept, sum(kept) / count, apart)
        cost = sum(inputs[first] for first, _ in segments[1:]) + max(sum(kept[a:b]) for a, b in segments)
        if cost < least:
            best, least = segments, cost
    return None if best is None else Sequential(*(_segment(blocks[a:b]) for a, b in best))


def _blocks(net: Layer) -> list[Layer]:
    """The layers of nested Sequentials in order; those without parameters go with the one before them."""
    blocks: list[list[Layer]] = []
    for layer in flattened(net):
        if not blocks or layer.parameters() or _has_side(blocks[-1][-1]):
            blocks.append([])
        blocks[-1].append(layer)
    return [block[0] if len(block) == 1 else Sequential(*block) for block in blocks]


def flattened(net: Layer) -> Iterator[Layer]:
    """Yield the layers of nested Sequentials in order; of any other network itself."""
    if type(net) is Sequential:
        for _, layer in net.children():
            yield from flattened(layer)
    else:
        yield net


def _has_side(layer: Layer) -> bool:
    """Whether there is an auxiliary head inside: its logits must be found in the first forward pass."""
    return any(isinstance(inner, AuxiliaryHead) for _, inner in layer.walk())


def _segments(sizes: list[int], most: float, apart: list[bool]) -> list[tuple[int, int]]:
    """Cut a list into runs of sums up to `most`; a larger item is a run by itself, and so is one that is `apart`."""
    runs, first, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > first and (total + size > most or apart[i] or apart[i - 1]):
            runs.append((first, i))
            first, total = i, 0
        total += size
    return [*runs, (first, len(sizes))]


def _segment(blocks: list[Layer]) -> Layer:
    """One segment; a single plain layer keeps little more than its input anyway."""
    segment = Sequential(*(layer for block in blocks for layer in flattened(block)))
    if _has_side(segment) or len(segment.leaves()) == 1:
        return segment
    return Recompute(segment)


def choose(demand: Demand, limit: int, micro_batch: int | None = None) -> tuple[TrainingMemory, Layer]:
    """Find the way to train with the fewest sacrifices that takes at most `limit` bytes.

    Smaller micro-batches come first and recomputation last; with batch norm, whose statistics are those of the
    micro-batch, recomputation comes before micro-batches of fewer than 16 images.

    Args:
        demand: what is trained.
        limit: bytes.
        micro_batch: most images in a micro-batch, if somebody has said so.

    Returns:
        What it will take, and the network to run: `demand.net` or one that recomputes.

    Raises:
        ArgumentError: if there is no way; it says how much is needed.
    """
    net, most = demand.net, min(micro_batch or demand.batch_size, demand.batch_size)
    norm = has_batch_norm(net)
    tried = []
    for recompute in (False, True):
        body = recomputing(net, demand.shape, demand.dtype) if recompute else net
        if body is None:
            break
        fewest = 1 if not norm else LEAST_WITH_NORM if recompute else WITH_NORM
        probe = Probe(net, demand.shape, body, demand.dtype)
        probe.explore(most, limit - demand.memory(Piece(0.0, 0.0)).total)
        for size in _cuts(demand.batch_size, most, min(fewest, most)):
            tried.append(demand.memory(probe.estimate(size), size, recompute))
            if tried[-1].total <= limit:
                return tried[-1], body
    least = min(tried, key=lambda memory: memory.total)
    raise ArgumentError(
        f"memory_limit: {_text(limit)} is not enough. The least that this training can do with is "
        f"{_text(least.total)}: {least}. Raise the limit, lower batch_size, or use a smaller network or smaller images."
    )


def _cuts(batch_size: int, most: int, fewest: int) -> list[int]:
    """The sizes of micro-batches, largest first, that cut a batch into as equal pieces as can be."""
    sizes = {-(-batch_size // pieces) for pieces in range(1, batch_size + 1)}
    return sorted((size for size in sizes if fewest <= size <= most), reverse=True) or [most]
