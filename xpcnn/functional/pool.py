"""Pooling: max, average, Lp and their adaptive forms, forward and backward.

Notation: N batch, C channels, H W input size, KH KW window, OH OW output size. Arrays are batch-last: x (C, H, W, N),
y (C, OH, OW, N).

A window of KH*KW taps is reduced tap by tap: each tap is a shifted view of the input, so every pass runs over long
contiguous rows. Max pooling goes over columns, then over rows; no arg-max is stored, backward finds it by comparing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ..backend import Array, array_module, for_rows, workspace
from . import fused
from .geometry import ALL, Window, cut, item_views, pad, tap

SMALL_PIXEL = 64  # numbers up to which the pixels of a tap are better copied together than compared where they lie

# --- max --------------------------------------------------------------------------------------------------------


def max_pool2d_forward(x: Array, window: Window, out: Array | None = None) -> Array:
    """Return the largest element of every window, on the CPU in `out` if that is given; padding never wins."""
    xp = array_module(x)
    if fused.takes(x):
        return fused.max_pool2d_forward(x, window)
    y = xp.empty((x.shape[0], *window.output, x.shape[3]), x.dtype) if out is None else out
    padded = pad(x, window, -math.inf)
    rows, columns = window.taps_along

    def work(channels: slice) -> None:  # rows first: their runs are longest
        block = padded[channels]
        maxima = workspace(xp, "column maxima", (block.shape[0], y.shape[1], *block.shape[2:]), x.dtype)
        _maximum([block[:, i] for i in rows], maxima)
        _maximum([maxima[:, :, j] for j in columns], y[channels])

    for_rows(x, work)
    return y


def _maximum(taps: list[Array], out: Array) -> None:
    """out = the elementwise maximum of all taps."""
    xp = array_module(out)
    if len(taps) == 1:
        xp.copyto(out, taps[0])
    for k, other in enumerate(taps[1:]):
        xp.maximum(out if k else taps[0], other, out=out)


def max_pool2d_backward(dy: Array, x: Array, y: Array, window: Window) -> Array:
    """Return dx: each gradient goes to the first largest element of its window, in row-major order."""
    xp = array_module(dy=dy, x=x, y=y)
    if fused.takes(dy):
        return fused.max_pool2d_backward(dy, x, y, window)
    dx = xp.empty(x.shape, dy.dtype)
    padded = pad(x, window, -math.inf)
    rows, columns = window.taps_along
    apart = all(s >= k * d for s, k, d in zip(window.stride, window.kernel, window.dilation, strict=True))
    tiles = apart and window.stride == window.kernel

    def work(channels: slice) -> None:
        block, d_block = padded[channels], dx[channels]
        if not window.covers_input:
            d_block = workspace(xp, "d padded", block.shape, dy.dtype)
        if not tiles:
            d_block.fill(0)
        if apart:
            _route(dy[channels], y[channels], block, d_block, [(ALL, i, j) for i in rows for j in columns], apart)
        else:  # fewer steps: first to the row of the window, then to the pixel in it
            maxima = workspace(xp, "row maxima", (*block.shape[:2], *y.shape[2:]), x.dtype)
            _maximum([block[:, :, j] for j in columns], maxima)
            d_maxima = workspace(xp, "d row maxima", maxima.shape, dy.dtype)
            d_maxima.fill(0)
            _route(dy[channels], y[channels], maxima, d_maxima, [(ALL, i) for i in rows], apart)
            _route(d_maxima, maxima, block, d_block, [(ALL, ALL, j) for j in columns], apart)
        if not window.covers_input:
            cut(d_block, window, dx[channels])

    for_rows(x, work)
    return dx


def _route(dy: Array, y: Array, x: Array, dx: Array, taps: list[tuple[slice, ...]], apart: bool) -> None:
    """Route dy to the first tap of x that equals the maximum y: written to dx if taps lie apart, else added."""
    xp = array_module(dy)
    small = apart and x.shape[-1] <= SMALL_PIXEL
    equal = workspace(xp, "equal", dy.shape, np.bool_)
    seen = workspace(xp, "seen", dy.shape, x.dtype) if small else x
    share, rest = (workspace(xp, name, dy.shape, dy.dtype) for name in ("share", "rest"))  # dense, unlike taps
    x_pixels, dx_pixels, seen_pixels, share_pixels, rest_pixels = item_views(x, dx, seen, share, rest)
    if len(taps) == 1:
        xp.copyto(rest, dy)
    for where in taps:
        if where is taps[-1]:
            share, share_pixels = rest, rest_pixels
        else:
            tap = x[where]
            if small:
                xp.copyto(seen_pixels, x_pixels[where])
                tap = seen
            xp.equal(tap, y, out=equal)
            xp.multiply(dy, equal, out=share)
            dy = xp.subtract(dy, share, out=rest)
        if apart:
            xp.copyto(dx_pixels[where], share_pixels)
        else:
            target = dx[where]
            target += share


# --- average ----------------------------------------------------------------------------------------------------


def _taps(padded: Array, window: Window) -> Iterator[Array]:
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            yield tap(padded, window, i, j)


def _counts(xp: object, window: Window, axis: int, include_pad: bool, dtype: object) -> Array:
    """How many elements count along one axis of each window: (OH or OW,).

    With `include_pad` the padding counts too, but never what lies beyond it (which `ceil_mode` may reach).
    """
    before, after = window.pads[2 * axis], window.pads[2 * axis + 1]
    low, high = (0, window.input[axis] + before + after) if include_pad else (before, before + window.input[axis])
    start = xp.arange(window.output[axis], dtype=dtype) * window.stride[axis]  # type: ignore[attr-defined]
    stop = xp.minimum(start + window.kernel[axis], high)  # type: ignore[attr-defined]
    return stop - xp.maximum(start, low)  # type: ignore[attr-defined]


def _scale(x: Array, window: Window, include_pad: bool) -> Array | float:
    """One over the number of elements of each window: a float where it is the same everywhere, else (OH, OW, 1)."""
    overhang = any(window.padded[a] > window.input[a] + sum(window.pads[2 * a : 2 * a + 2]) for a in (0, 1))
    if not overhang and (include_pad or not any(window.pads)):
        return 1.0 / window.taps
    xp = array_module(x)
    rows, columns = (_counts(xp, window, axis, include_pad, x.dtype) for axis in (0, 1))
    return 1.0 / (rows[:, None, None] * columns[:, None])


def avg_pool2d_forward(x: Array, window: Window, include_pad: bool = True) -> Array:
    """Return the mean of every window; with `include_pad` zeros of the padding count as elements."""
    xp = array_module(x)
    y = xp.empty((x.shape[0], *window.output, x.shape[3]), x.dtype)
    padded = pad(x, window, 0.0)
    scale = _scale(x, window, include_pad)

    def work(channels: slice) -> None:
        out = y[channels]
        first, *others = _taps(padded[channels], window)
        xp.multiply(first, 1.0, out=out)
        for other in others:
            out += other
        out *= scale

    for_rows(x, work)
    return y


def avg_pool2d_backward(dy: Array, window: Window, include_pad: bool = True) -> Array:
    """Return dx (C, H, W, N): every element gets its share of each window it is in."""
    xp = array_module(dy)
    scale = _scale(dy, window, include_pad)
    share = xp.multiply(dy, scale)
    return _spread(dy, window, lambda channels, i, j: share[channels])


def _spread(dy: Array, window: Window, part: Callable[[slice, int, int], Array]) -> Array:
    """Return dx with part(channels, i, j) (c, OH, OW, N) added at tap (i, j), for all taps."""
    xp = array_module(dy)
    dx = xp.empty((dy.shape[0], *window.input, dy.shape[3]), dy.dtype)
    whole = window.covers_input

    def work(channels: slice) -> None:
        out = dx[channels]
        shape = (out.shape[0], *window.padded, out.shape[3])
        d_block = out if whole else workspace(xp, "d padded", shape, dy.dtype)
        d_block.fill(0)
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                target = tap(d_block, window, i, j)
                target += part(channels, i, j)
        if not whole:
            cut(d_block, window, out)

    for_rows(dx, work)
    return dx


# --- Lp ---------------------------------------------------------------------------------------------------------


def lp_pool2d_forward(x: Array, window: Window, p: float, mean: bool = False) -> Array:
    """Return (sum of |x|**p over the window)**(1/p), or of the mean with `mean`; p >= 1, infinity for the maximum.

    Powers are taken relative to the window's largest element, so that no p overflows.
    Source: Boureau, Ponce and LeCun, "A Theoretical Analysis of Feature Pooling in Visual Recognition" (2010).
    """
    xp = array_module(x)
    size = xp.abs(x)
    padded = pad(size, window, 0.0)
    first, *others = _taps(padded, window)
    largest = first.copy()
    for other in others:
        xp.maximum(largest, other, out=largest)
    if math.isinf(p):
        return largest
    unit = xp.where(largest == 0, 1.0, largest)
    total = xp.zeros_like(largest)
    for view in _taps(padded, window):
        total += (view / unit) ** p
    if mean:
        total *= 1.0 / window.taps
    return largest * total ** (1.0 / p)


def lp_pool2d_backward(dy: Array, x: Array, y: Array, window: Window, p: float, mean: bool = False) -> Array:
    """Return dx = dy * sign(x) * (|x| / y)**(p-1), over KH*KW with `mean`; zero where the whole window is zero.

    For p = infinity the gradient is shared by all elements that equal the maximum.
    """
    xp = array_module(dy=dy, x=x, y=y)
    padded = pad(x, window, 0.0)
    unit = xp.where(y == 0, 1.0, y)
    if math.isinf(p):
        ties = sum((xp.abs(view) == y).astype(dy.dtype) for view in _taps(padded, window))
        share = dy / ties
    else:
        share = dy * (1.0 / window.taps) if mean else dy

    def part(channels: slice, i: int, j: int) -> Array:
        view = tap(padded, window, i, j)[channels]
        size = xp.abs(view)
        weight = (size / unit[channels]) ** (p - 1.0)  # 1 for the largest, else 0, where p is infinity
        return share[channels] * xp.sign(view) * weight

    return _spread(dy, window, part)


# --- adaptive ---------------------------------------------------------------------------------------------------


def adaptive_bins(size: int, bins: int) -> list[slice]:
    """Cut range(size) into bins that cover it evenly: bin i is floor(i*size/bins) to ceil((i+1)*size/bins)."""
    return [slice(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def _cells(x_shape: tuple[int, ...], output: tuple[int, int]) -> Iterator[tuple[int, int, slice, slice]]:
    for i, rows in enumerate(adaptive_bins(x_shape[1], output[0])):
        for j, columns in enumerate(adaptive_bins(x_shape[2], output[1])):
            yield i, j, rows, columns


def adaptive_avg_pool2d_forward(x: Array, output: tuple[int, int]) -> Array:
    """Return the mean of each of OH*OW bins that cover the image evenly."""
    xp = array_module(x)
    y = xp.empty((x.shape[0], *output, x.shape[3]), x.dtype)
    for i, j, rows, columns in _cells(x.shape, output):
        y[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    return y


def adaptive_avg_pool2d_backward(dy: Array, input_size: tuple[int, int]) -> Array:
    """Return dx (C, H, W, N)."""
    xp = array_module(dy)
    dx = xp.zeros((dy.shape[0], *input_size, dy.shape[3]), dy.dtype)
    for i, j, rows, columns in _cells(dx.shape, dy.shape[1:3]):
        count = (rows.stop - rows.start) * (columns.stop - columns.start)
        dx[:, rows, columns] += (dy[:, i, j] * (1.0 / count))[:, None, None]
    return dx


def _bin_window(rows: slice, columns: slice) -> Window:
    """One bin as a window over just its own pixels."""
    size = (rows.stop - rows.start, columns.stop - columns.start)
    return Window(size, (1, 1), size, (1, 1), (1, 1), (0, 0, 0, 0))


def adaptive_max_pool2d_forward(x: Array, output: tuple[int, int]) -> Array:
    """Return the largest element of each of OH*OW bins that cover the image evenly."""
    xp = array_module(x)
    y = xp.empty((x.shape[0], *output, x.shape[3]), x.dtype)
    for i, j, rows, columns in _cells(x.shape, output):
        y[:, i, j] = x[:, rows, columns].max(axis=(1, 2))
    return y


def adaptive_max_pool2d_backward(dy: Array, x: Array, y: Array) -> Array:
    """Return dx: each gradient goes to the first largest element of its bin, in row-major order."""
    xp = array_module(dy=dy, x=x, y=y)
    dx = xp.zeros(x.shape, dy.dtype)
    for i, j, rows, columns in _cells(x.shape, dy.shape[1:3]):
        cell = (ALL, slice(i, i + 1), slice(j, j + 1))
        dx[:, rows, columns] += max_pool2d_backward(dy[cell], x[:, rows, columns], y[cell], _bin_window(rows, columns))
    return dx
