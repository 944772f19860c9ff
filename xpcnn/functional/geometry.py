"""Sliding windows: the geometry that convolution and pooling share.

Notation: N batch, C channels, H W input height and width, KH KW kernel, OH OW output. Inside a network arrays are
batch-last: (C, H, W, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np

from ..backend import Array, array_module, for_chunks, spans, strided, workspace
from ..errors import ArgumentError, ShapeError

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # top, bottom, left, right
Padding: TypeAlias = "int | str | Pair | Pads"
ALL = slice(None)
LARGEST_ITEM = 256  # numbers; longer runs are copied as fast


def pair(value: int | Pair | list[int], name: str, minimum: int) -> Pair:
    """Return (vertical, horizontal) from an int or a pair, checked against a minimum."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(both) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= minimum for v in both):
        raise ArgumentError(f"{name} must be an int >= {minimum} or a pair of them; received {value!r}.")
    return both[0], both[1]


def as_padding(padding: Padding | list[int]) -> Padding:
    """Return the padding if it is an int, a pair, (top, bottom, left, right), "same" or "valid"; raise if not."""
    result = tuple(padding) if isinstance(padding, (list, tuple)) else padding
    if isinstance(result, str):
        valid = result in ("same", "valid")
    else:
        sides = (result, result) if isinstance(result, int) else result if isinstance(result, tuple) else ()
        valid = len(sides) in (2, 4) and all(isinstance(p, int) and not isinstance(p, bool) and p >= 0 for p in sides)
    if not valid:
        raise ArgumentError(
            'padding must be an int >= 0, a pair (vertical, horizontal), (top, bottom, left, right), "same" or '
            f'"valid"; received {padding!r}.'
        )
    return result  # type: ignore[return-value]


@dataclass(frozen=True)
class Window:
    """A window with everything resolved for one input size. Pads are (top, bottom, left, right)."""

    input: Pair
    output: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    pads: Pads

    @property
    def taps(self) -> int:
        """Positions in the window, KH*KW."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_pointwise(self) -> bool:
        """Whether output pixel (i, j) sees input pixel (i, j) and no other."""
        return self.taps == 1 and self.stride == (1, 1) and not any(self.pads)

    @cached_property
    def covers_input(self) -> bool:
        """Whether the windows see exactly the input: no padding, nothing left out."""
        return self.padded == self.input and not any(self.pads)

    @cached_property
    def padded(self) -> Pair:
        """Height and width of the padded input that the windows cover."""
        return tuple(  # type: ignore[return-value]
            (o - 1) * s + (k - 1) * d + 1
            for o, k, s, d in zip(self.output, self.kernel, self.stride, self.dilation, strict=True)
        )

    @cached_property
    def extents(self) -> list[tuple[int, int, int]]:
        """For each axis (before, kept, after): zeros before, input pixels used, zeros after (by what windows cover).

        With ceil_mode windows reach beyond the padding; with a stride they may leave the last pixels out.
        """
        before = self.pads[::2]
        kept = [max(min(n, whole - p), 0) for n, whole, p in zip(self.input, self.padded, before, strict=True)]
        return [(p, k, whole - p - k) for p, k, whole in zip(before, kept, self.padded, strict=True)]

    @cached_property
    def taps_along(self) -> tuple[list[slice], list[slice]]:
        """For each axis the slice of the padded input that each tap sees."""
        return self.tap_slices(0, self.output[0]), self.tap_slices(1, self.output[1])

    def tap_slices(self, axis: int, count: int) -> list[slice]:
        """Return the slice of the padded input that each tap along one axis sees, of the first `count` windows."""
        span, step = (count - 1) * self.stride[axis] + 1, self.dilation[axis]
        return [slice(i * step, i * step + span, self.stride[axis]) for i in range(self.kernel[axis])]

    @cached_property
    def mirrored(self) -> Window | None:
        """The window that maps dy back to dx by a plain convolution: only for stride 1 and padding below the kernel."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        top, bottom, left, right = self.pads
        pads = (reach[0] - top, reach[0] - bottom, reach[1] - left, reach[1] - right)
        if self.stride != (1, 1) or min(pads) < 0:
            return None
        return Window(self.output, self.input, self.kernel, (1, 1), self.dilation, pads)


def _resolve(padding: Padding, size: Pair, stride: Pair, spread: tuple[int, ...]) -> Pads:
    """Return (top, bottom, left, right) for any way of saying it."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        height, width = (max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, stride, spread, strict=True))
        return (height // 2, height - height // 2, width // 2, width - width // 2)
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return (padding[0], padding[0], padding[1], padding[1])
    return padding


@lru_cache(maxsize=4096)
def make_window(
    size: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Window:
    """Resolve a window for an input of size (H, W).

    Output size: floor((H + pads - dilation * (KH - 1) - 1) / stride) + 1; with `ceil_mode` rounded up, less a last
    window that would start in the far padding. "same" gives ceil(H / stride), with the odd pixel at the bottom right.

    Raises:
        ShapeError: if the kernel does not fit into the padded input.
    """
    spread = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    pads = _resolve(padding, size, stride, spread)
    output = []
    for n, e, s, before, after in zip(size, spread, stride, pads[::2], pads[1::2], strict=True):
        room = n + before + after - e
        if room < 0:
            raise ShapeError(
                f"the kernel {kernel} with dilation {dilation} covers {spread[0]}x{spread[1]} pixels, more than the "
                f"padded input of {size[0] + pads[0] + pads[1]}x{size[1] + pads[2] + pads[3]}; received an input of "
                f"{size[0]}x{size[1]}. Use a smaller kernel, more padding or larger images."
            )
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:
            count -= 1
        output.append(count)
    return Window(size, (output[0], output[1]), kernel, stride, dilation, pads)


def item_views(*arrays: Array) -> Sequence[Array]:
    """Return views (...) of arrays (..., n) whose items are n numbers each, or the arrays if that does not help.

    NumPy copies items that lie apart up to five times as fast as runs of n numbers. CuPy has none.
    """
    for a in arrays:
        if type(a) is not np.ndarray or a.strides[-1] != a.itemsize or not 0 < a.shape[-1] <= LARGEST_ITEM:
            return arrays
    return [a.view(f"V{a.shape[-1] * a.itemsize}")[..., 0] for a in arrays]


def copy(target: Array, source: Array) -> None:
    """target[...] = source (..., W, N), by items: whole rows, or pixels where these lie apart."""
    xp = array_module(target, source)
    if xp is np and target.strides[-2] == source.strides[-2] == target.shape[-1] * target.itemsize:
        rows = (*target.shape[:-2], target.shape[-2] * target.shape[-1])
        target, source = target.reshape(rows), source.reshape(rows)  # views: nothing lies between these two axes
    xp.copyto(*item_views(target, source))


def pad(x: Array, window: Window, value: float) -> Array:
    """Return x (C, H, W, N) surrounded by `value` as the windows need it; x itself (cut) where nothing is added.

    The result is scratch memory (see `workspace`) and valid until the next call.
    """
    (top, height, bottom), (left, width, right) = window.extents
    if not (top or bottom or left or right):
        return x[:, :height, :width]
    xp = array_module(x)
    channels, batch = x.shape[0], x.shape[3]
    padded = workspace(xp, "pad", (channels, top + height + bottom, left + width + right, batch), x.dtype)
    if xp.__name__ == "cupy":
        padded.fill(value)
        padded[:, top : top + height, left : left + width] = x[:, :height, :width]
        return padded
    blocks = spans(channels, max(1, padded.size // 65_536))

    def fill(index: int) -> None:
        first, last = blocks[index]
        block = padded[first:last]
        block[:, :top] = value
        block[:, top + height :] = value
        block[:, top : top + height, :left] = value
        block[:, top : top + height, left + width :] = value
        copy(block[:, top : top + height, left : left + width], x[first:last, :height, :width])

    for_chunks(len(blocks), padded.size, fill)
    return padded


def window_view(padded: Array, window: Window, groups: int, height: int) -> Array:
    """Return what `height` rows of windows see, a view (G, C/G, KH, KW, height, OW, N) of the padded input.

    The last two axes are one, OW*N, where rows are contiguous.
    """
    (kh, kw), (sh, sw), (dh, dw), width = window.kernel, window.stride, window.dilation, window.output[1]
    channels, batch, (c, h, w, n) = len(padded) // groups, padded.shape[3], padded.strides
    sizes, steps = ((width * batch,), (n,)) if sw == 1 and w == batch * n else ((width, batch), (w * sw, n))
    shape = (groups, channels, kh, kw, height, *sizes)
    return strided(padded, shape, (c * channels, c, h * dh, w * dw, h * sh, *steps))


def tap(padded: Array, window: Window, i: int, j: int) -> Array:
    """Return the view (C, OH, OW, N) of the padded input that window position (i, j) sees."""
    rows, columns = window.taps_along
    return padded[:, rows[i], columns[j]]


def cut(padded: Array, window: Window, dx: Array) -> None:
    """Copy the gradient of the real pixels out of that of the padded image; pixels that no window saw get zero."""
    (top, height, _), (left, width, _) = window.extents
    if (height, width) != window.input:
        dx.fill(0)
    copy(dx[:, :height, :width], padded[:, top : top + height, left : left + width])
