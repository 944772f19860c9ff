"""Plans: a network for one input shape on the CPU, as a list of NumPy calls on memory that was laid out before.

A layer's `forward` makes room for its output, finds its geometry, views its arrays and picks a way, every time. For one
small image that takes longer than the arithmetic. A plan does all of it once. Every activation has its place, inside
the zeros that the convolution after it wants around it; concatenated branches compute where they will be read; memory
that nobody needs any more is used again. What runs is the list of calls.

Convolution is `functional.conv.conv2d_forward` taken apart: columns, product, bias, ReLU. Winograd's convolution,
pooling, products and the geometry of windows are the functions that the layers use, and layers without a planner below
run their own forward. The tests hold plans to the outputs of the layers.

Notation: N batch, C input channels, H W input size, O output channels, KH KW kernel, OH OW output size, G groups.
Arrays are batch-last: x (C, H, W, N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from . import backend
from .backend import Array, for_chunks, spans
from .functional import winograd
from .functional.conv import CHUNK, CHUNK_COLUMNS, FEW_COLUMNS, PAGE
from .functional.geometry import Pads, Window, item_views, window_view
from .functional.pool import max_pool2d_forward
from .layers import (
    BatchNorm1d,
    BatchNorm2d,
    Builder,
    Clip,
    Concat,
    Conv2d,
    Dense,
    DenseConcat,
    Flatten,
    Identity,
    Layer,
    MaxPool2d,
    Parameter,
    ReLU,
    Residual,
    Sequential,
)
from .layers.base import Shape, built
from .layers.containers import _arranged

__all__ = ["Plan", "of_layer", "scale_and_shift"]

NO_PADS: Pads = (0, 0, 0, 0)
WINOGRAD = 4  # times as few tiles as in training make it worth while: the weights are transformed already
LONG = 1 << 23  # multiply-accumulates of a layer that are worth a second thread
Call = Callable[[], object]


# --- values -----------------------------------------------------------------------------------------------------


class Value:
    """An activation of a plan, (C, H, W, N) or (D, N). Its memory is known once the plan has been laid out."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pads = NO_PADS  # zeros around the image that readers want
        self.home: tuple[Value, int] | None = None  # the value it is a part of, and from which channel on
        self.flat = False  # whether somebody sees it flattened: then it can have no zeros around it
        self.memory: np.ndarray | None = None  # with the zeros

    @property
    def root(self) -> Value:
        """The value in whose memory it lies."""
        return self if self.home is None else self.home[0].root

    @property
    def whole_shape(self) -> Shape:
        """Its shape with the zeros."""
        top, bottom, left, right = self.pads
        channels, *image, count = self.shape
        return (channels, *(n + m for n, m in zip(image, (top + bottom, left + right), strict=False)), count)

    def view(self, pads: Pads = NO_PADS) -> np.ndarray:
        """Return the image with so many of the zeros around it."""
        if self.home is not None:
            whole, start = self.home
            image = whole.view(pads)
            return (
                image[start : start + self.shape[0]] if whole.shape[1:] == self.shape[1:] else image.reshape(self.shape)
            )
        assert self.memory is not None
        if not any(self.pads):
            return self.memory
        (top, _, left, _), (_, height, width, _) = self.pads, self.shape
        rows, columns = slice(top - pads[0], top + height + pads[1]), slice(left - pads[2], left + width + pads[3])
        return self.memory[:, rows, columns]


# --- plans ------------------------------------------------------------------------------------------------------


class Plan:
    """A network for one input shape: fixed memory, and the calls that fill it.

    First the layers say in order which values they read and write. When the plan runs for the first time, each value
    gets memory, that of others which nobody needs any more if it can be, and each layer makes its calls.

    Args:
        net: the network, built, which fits the shape.
        shape: of the input, with N.
        dtype: float32 or float64.
        lanes: into how many parts, one for each thread, a layer is cut that takes long enough.
        packed: transformed weights by the id of the layer, shared by the plans of a network.
    """

    def __init__(
        self, net: Layer, shape: Shape, dtype: np.dtype[Any], lanes: int, packed: dict[int, np.ndarray]
    ) -> None:
        self.dtype = dtype
        self.lanes = lanes
        self.packed = packed
        self.bytes = 0
        self.steps: list[tuple[tuple[Value, ...], Value, Callable[[], list[Call]]]] = []
        self.calls: list[Call] = []
        self.scratch: dict[str, int] = {}  # elements
        self.input = Value(shape)
        self.output = self.layer(net, self.input)
        values = [self.input, *(output for _, output, _ in self.steps)]
        self.largest = max(math.prod(value.shape) for value in values) * dtype.itemsize

    def run(self, x: np.ndarray, y: np.ndarray) -> None:
        """y[...] = the outputs for x."""
        if not self.bytes:
            self._lay_out()
        np.copyto(self.input.view(), x)
        for call in self.calls:
            call()
        np.copyto(y, self.output.view())

    def _lay_out(self) -> None:
        """Give memory to all values, and make the calls."""
        self.memory = {name: np.empty(size, self.dtype) for name, size in self.scratch.items()}
        last = {v.root: i for i, (inputs, output, _) in enumerate(self.steps) for v in (*inputs, output)}
        last[self.output.root] = len(self.steps)
        blocks: dict[Value, np.ndarray] = {}
        free: list[tuple[Any, np.ndarray]] = []
        everything = list(self.memory.values())
        for i, (inputs, output, make) in enumerate([((), self.input, list), *self.steps], -1):
            if output.root not in blocks:
                size = math.prod(output.root.whole_shape)
                fits = [block for form, block in free if form == _form(output.root) and block.size >= size]
                block = min(fits, key=len) if fits else np.zeros(size, self.dtype)
                everything += [] if fits else [block]
                free = [(form, other) for form, other in free if other is not block]
                blocks[output.root] = block
                output.root.memory = block[:size].reshape(output.root.whole_shape)
            self.calls += make()
            free += [(_form(root), blocks[root]) for root in {v.root for v in (*inputs, output)} if last.get(root) == i]
        self.bytes = sum(array.nbytes for array in everything)

    # --- what planners use --------------------------------------------------------------------------------------

    def layer(self, layer: Layer, x: Value, **options: Any) -> Value:
        """Plan a layer; return its output."""
        planner = PLANNERS.get(type(layer))
        return planner(self, layer, x, **options) if planner else self.ordinary(layer, x)

    def step(self, inputs: tuple[Value, ...], shape: Shape, make: Callable[[Value], list[Call]]) -> Value:
        """Add a step that writes a value of that shape; return it. `make(value)` is called when memory is known."""
        output = Value(shape)
        self.steps.append((inputs, output, lambda: make(output)))
        return output

    def ordinary(self, layer: Layer, x: Value) -> Value:
        """Let the layer's own forward do it."""
        shape = layer.setup(x.shape[:-1], Builder(0, self.dtype))

        def make(y: Value) -> list[Call]:
            source, target = x.view(), y.view()
            return [lambda: np.copyto(target, layer.forward(source, False)[0])]

        return self.step((x,), (*shape, x.shape[-1]), make)

    def copy(self, x: Value) -> Value:
        """Return the value once more, in a place of its own."""
        return self.step((x,), x.shape, lambda y: [partial(np.copyto, y.view(), x.view())])

    def padded(self, x: Value, pads: Pads) -> Value:
        """Return x with at least so many zeros around it."""
        if any(pads) and x.root.flat:
            x = self.copy(x)
        x.root.pads = tuple(map(max, x.root.pads, pads))  # type: ignore[assignment]
        return x

    def joined(self, parts: Sequence[Value]) -> Value:
        """Return the values one after the other along the channels: each is computed there, if it can be."""
        whole = Value((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        start = 0
        for part in parts:
            if part.home is not None or part.flat:
                part = self.copy(part)
            part.home = whole, start
            whole.pads = tuple(map(max, whole.pads, part.pads))  # type: ignore[assignment]
            start += part.shape[0]
        return whole

    def lanes_for(self, macs: int) -> int:
        """Return into how many parts to cut so many multiply-accumulates."""
        return self.lanes if macs >= LONG else 1

    def reserve(self, name: str, shape: tuple[int, int, int], lanes: int = 1) -> None:
        """Say that each of the lanes will borrow scratch memory of this size."""
        for lane in range(lanes):
            key = f"{name} {lane}"
            self.scratch[key] = max(self.scratch.get(key, 0), math.prod(_spaced(shape)))

    def borrow(self, name: str, shape: tuple[int, int, int], lane: int = 0) -> np.ndarray:
        """Return scratch matrices (G, M, N) of a lane, which the steps use in turn."""
        spaced = _spaced(shape)
        return self.memory[f"{name} {lane}"][: math.prod(spaced)].reshape(spaced)[..., : shape[2]]


def _at_once(parts: list[list[Call]]) -> list[Call]:
    """Return one call that makes the calls of all parts, each part in a thread; those of a single part as they are."""
    if len(parts) == 1:
        return parts[0]

    def work(i: int) -> None:
        for call in parts[i]:
            call()

    return [lambda: for_chunks(len(parts), backend.INLINE_WORK, work)]


def _product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Call:
    """Return the call `out[...] = a @ b` for stacks of G matrices."""
    return partial(np.matmul, a, b, out) if len(a) > 1 else partial(backend.matmul, a[0], b[0], out[0])


def _form(value: Value) -> Any:
    """Return what memory must have in common to be used again: the same zeros in the same places, or none."""
    return (value.whole_shape, value.pads) if any(value.pads) else None


def _spaced(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape with rows an odd number of cache lines apart: BLAS is slow on powers of two."""
    return shape[0], shape[1], (-(-shape[2] // 16) | 1) * 16


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut arrays along the first axis into blocks that stay in the cache."""
    for start, stop in spans(len(arrays[0]), -(-arrays[0].size // backend.BLOCK)):
        yield tuple(array[start:stop] for array in arrays)


def _clip(x: np.ndarray, out: np.ndarray, low: float = 0.0, high: float = math.inf) -> Call:
    """Return the call `out[...] = min(max(x, low), high)`, by default ReLU."""
    return partial(x.clip, low, high, out)


# --- layers with weights ----------------------------------------------------------------------------------------


def _conv2d(plan: Plan, layer: Any, x: Value, relu: bool = False) -> Value:
    weight, window, groups = built(layer.weight, layer), layer.window(x.shape[1:3]), layer.groups
    shape = len(weight), *window.output, x.shape[3]
    bias = layer.bias.data if isinstance(layer.bias, Parameter) else np.zeros(len(weight), weight.dtype)
    more = np.empty((0, *x.shape[1:3], WINOGRAD * x.shape[3]), weight.dtype)
    if plan.lanes == 1 and winograd.takes(more, weight, window, groups):
        return _winograd(plan, layer, x, weight, bias, window, relu)
    depth, pixels = weight[0].size, math.prod(shape[1:])
    lanes = plan.lanes_for(weight.size * pixels)
    wide = groups > 1 or pixels >= lanes * FEW_COLUMNS  # threads share the pixels, or else the filters
    columns = min(max(CHUNK // (depth * groups), CHUNK_COLUMNS[0]), CHUNK_COLUMNS[1])
    count = -(-pixels // columns)
    bands = spans(shape[1], -(-count // lanes) * lanes if wide else count)
    columns = max(stop - start for start, stop in bands) * shape[2] * shape[3]
    if depth * groups * columns > 4 * CHUNK:  # one row of pixels is too much for the cache
        y = plan.ordinary(layer, x)
        return _clipped(plan, y) if relu else y
    x = plan.padded(x, window.pads)
    plan.reserve("columns", (groups, depth, columns), lanes)
    plan.reserve("product", (groups, len(weight) // groups, columns), lanes)

    def make(y: Value) -> list[Call]:
        image, target, matrix = x.view(window.pads), y.view(), weight.reshape(groups, -1, depth)
        tasks = [(o, rows) for o in spans(len(weight), 1 if wide else lanes) for rows in bands]
        shares: list[list[Call]] = []
        for lane, run in enumerate(spans(len(tasks), lanes)):
            borrow = partial(plan.borrow, lane=lane)
            shares.append([])
            for (first, last), rows in tasks[slice(*run)]:
                some = matrix if wide else matrix[:, first:last]
                part = target[first:last, slice(*rows)]
                shares[-1] += _convolved(image, some, bias[first:last], part, window, rows[0], relu, borrow)
        return _at_once(shares)

    return plan.step((x,), shape, make)


def _convolved(
    image: np.ndarray,
    matrix: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    window: Window,
    first: int,
    relu: bool,
    borrow: Callable[[str, tuple[int, int, int]], np.ndarray],
) -> Iterator[Call]:
    """Yield the calls that compute some rows of the output, from `first` on, from the padded image.

    Args:
        matrix: kernels (G, O/G, K).
        y: where the rows go, (O, rows, OW, N).
    """
    (groups, filters, depth), channels, (height, width, count) = matrix.shape, len(image) // len(matrix), y.shape[1:]
    columns = height * width * count
    col = None
    if window.is_pointwise and image.flags.c_contiguous:
        start = first * width * count
        col = image.reshape(groups, channels, -1)[..., start : start + columns]
    if col is None or col.strides[1] % PAGE == 0:
        seen = window_view(image[:, first * window.stride[0] :], window, groups, height)
        col = borrow("columns", (groups, depth, columns))
        yield partial(np.copyto, *item_views(col.reshape(seen.shape), seen))
    in_place = y.flags.c_contiguous
    product = y.reshape(groups, filters, -1) if in_place else borrow("product", (groups, filters, columns))
    yield _product(matrix, col, product)
    flat = product.reshape(len(y), -1)
    result = flat.reshape(y.shape)
    if relu or in_place:
        yield partial(np.add, flat, bias[:, None], flat)
    else:
        yield partial(np.add, result, bias[:, None, None, None], y)
    if relu:
        yield _clip(result, y)


def _winograd(plan: Plan, layer: Any, x: Value, weight: Any, bias: Any, window: Window, relu: bool) -> Value:
    """Winograd's convolution, whose weights are transformed once, with the zeros for all tiles around the image."""
    (top, bottom, left, right), (height, width) = window.pads, window.output
    pads = top, bottom + height % 2, left, right + width % 2
    x = plan.padded(x, pads)

    def make(y: Value) -> list[Call]:
        if id(layer) not in plan.packed:
            plan.packed[id(layer)] = winograd.transform(weight).copy()
        image = x.view(pads)
        inside = replace(window, input=image.shape[1:3], pads=NO_PADS)
        return [partial(winograd.convolve, image, plan.packed[id(layer)], inside, bias, relu, y.view())]

    return plan.step((x,), (len(weight), *window.output, x.shape[3]), make)


def _dense(plan: Plan, layer: Any, x: Value) -> Value:
    weight = built(layer.weight, layer)

    def make(y: Value) -> list[Call]:
        out = y.view()
        lanes = spans(len(weight), plan.lanes_for(weight.size * x.shape[1]))
        calls = _at_once([[_product(weight[None, a:b], x.view()[None], out[None, a:b])] for a, b in lanes])
        return [*calls, partial(np.add, out, layer.bias.data[:, None], out)] if layer.bias is not False else calls

    return plan.step((x,), (len(weight), x.shape[1]), make)


def scale_and_shift(
    mean: Array, var: Array, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array]:
    """Return (C,) and (C,) in float64: at prediction batch norm is x * scale + shift."""
    scale = 1.0 / backend.array_module(var).sqrt(var.astype("float64") + eps)
    if weight is not None:
        scale = scale * weight
    return scale, (0.0 if bias is None else bias) - mean.astype("float64") * scale


def of_layer(norm: Any) -> tuple[Array, Array]:
    """Return `scale_and_shift` of a batch norm layer."""
    mean, var = (built(buffer, norm) for buffer in (norm.running_mean, norm.running_var))
    weight, bias = (entry.data for entry in (norm.weight, norm.bias)) if norm.affine else (None, None)
    return scale_and_shift(mean, var, weight, bias, norm.eps)


def _batch_norm(plan: Plan, layer: Layer, x: Value, relu: bool = False) -> Value:
    columns = (-1, *[1] * (len(x.shape) - 1))
    scale, shift = (array.astype(plan.dtype).reshape(columns) for array in of_layer(layer))

    def make(y: Value) -> list[Call]:
        calls: list[Call] = []
        for a, s, t, out in _blocks(x.view(), scale, shift, y.view()):
            calls += [partial(np.multiply, a, s, out), partial(np.add, out, t, out)]
            calls += [_clip(out, out)] if relu else []
        return calls

    return plan.step((x,), x.shape, make)


# --- layers without weights, and containers ---------------------------------------------------------------------


def _clipped(plan: Plan, x: Value, low: float = 0.0, high: float = math.inf) -> Value:
    return plan.step((x,), x.shape, lambda y: [_clip(a, b, low, high) for a, b in _blocks(x.view(), y.view())])


def _max_pool(plan: Plan, layer: Any, x: Value) -> Value:
    window = layer.window(x.shape[1:3])

    def make(y: Value) -> list[Call]:
        return [partial(max_pool2d_forward, x.view(), window, y.view())]

    return plan.step((x,), (x.shape[0], *window.output, x.shape[3]), make)


def _flatten(plan: Plan, layer: Layer, x: Value) -> Value:
    shape = (math.prod(x.shape[:-1]), x.shape[-1])
    if any(x.root.pads):
        return plan.step((x,), shape, lambda y: [partial(np.copyto, y.view().reshape(x.shape), x.view())])
    x.root.flat = True
    y = Value(shape)
    y.home = x, 0
    return y


def _sequential(plan: Plan, layer: Layer, x: Value) -> Value:
    for child, relu in _arranged([child for _, child in layer.children()]):
        x = plan.layer(child, x, **({"relu": True} if relu else {}))
    return x


def _residual(plan: Plan, layer: Any, x: Value) -> Value:
    body, other, relu = plan.layer(layer.body, x), plan.layer(layer.shortcut, x), type(layer.activation) is ReLU

    def make(y: Value) -> list[Call]:
        calls: list[Call] = []
        for a, b, out in _blocks(body.view(), other.view(), y.view()):
            calls += [partial(np.add, a, b, out), *([_clip(out, out)] if relu else [])]
        return calls

    y = plan.step((body, other), body.shape, make)
    return y if relu else plan.layer(layer.activation, y)


PLANNERS: dict[type[Layer], Callable[..., Value]] = {
    Conv2d: _conv2d,
    Dense: _dense,
    BatchNorm1d: _batch_norm,
    BatchNorm2d: _batch_norm,
    MaxPool2d: _max_pool,
    Flatten: _flatten,
    Sequential: _sequential,
    Residual: _residual,
    ReLU: lambda plan, layer, x: _clipped(plan, x),
    Clip: lambda plan, layer, x: _clipped(plan, x, layer.low, layer.high),
    Identity: lambda plan, layer, x: x,
    Concat: lambda plan, layer, x: plan.joined([plan.layer(child, x) for _, child in layer.children()]),
    DenseConcat: lambda plan, layer, x: plan.joined([x, plan.layer(layer.body, x)]),
}
