"""Hypothesis strategies, named by shape letters.

Notation: N batch, C input channels, H W input size, O output channels, KH KW kernel, G groups, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import references
from hypothesis import assume
from hypothesis import strategies as st

LENGTHS = {
    "N": st.integers(1, 4),
    "C": st.integers(1, 4),
    "H": st.integers(1, 8),
    "W": st.integers(1, 8),
    "O": st.integers(1, 5),
    "D": st.integers(1, 6),
    "K": st.integers(2, 6),
}

seeds = st.integers(0, 2**32 - 1)
layouts = st.sampled_from(["C", "F", "strided", "reversed", "readonly"])


def shape(letters: str) -> st.SearchStrategy[tuple[int, ...]]:
    """A shape by its letters: shape("NCHW")."""
    return st.tuples(*(LENGTHS[letter] for letter in letters))


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers, differently in memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "reversed":
        backwards = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[backwards])[backwards]
    array = np.array(array, order="C")
    array.flags.writeable = layout != "readonly"
    return array


def normal(seed: int, *shape: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def distinct(seed: int, *shape: int, dtype: str = "float64") -> np.ndarray:
    """Numbers around zero of which no two are closer than 0.1: differences never cross a tie or a kink."""
    count = int(np.prod(shape))
    values = 0.1 * (np.arange(count) - count // 2 + 0.5)
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(dtype)


@dataclass(frozen=True)
class WindowCase:
    """A sliding window over images of one size. Padding is as a user would write it."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def pads(self) -> tuple[int, int, int, int]:
        return references.sides(self.padding, self.size, self.kernel, self.stride, self.dilation)

    @property
    def output(self) -> tuple[int, int]:
        return references.output_size(self.size, self.kernel, self.stride, self.pads, self.dilation, self.ceil_mode)


@dataclass(frozen=True)
class ConvCase:
    """A convolution of N images (C, H, W) with O kernels (C/G, KH, KW)."""

    batch: int
    channels: int
    filters: int
    window: WindowCase
    groups: int = 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, *self.window.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels // self.groups, *self.window.kernel

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.filters, *self.window.output


@st.composite
def conv_windows_HW_KHKW(draw: st.DrawFn) -> WindowCase:
    """Any window a convolution may have: the kernel fits the padded image."""
    size = draw(shape("HW"))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    side = st.integers(0, 3)
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), side, st.tuples(side, side), st.tuples(*[side] * 4)))
    case = WindowCase(size, kernel, stride, padding, dilation)
    assume(min(case.output) >= 1)
    return case


@st.composite
def convolutions_NCHW_OCKHKW(draw: st.DrawFn) -> ConvCase:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    return ConvCase(
        draw(LENGTHS["N"]),
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        draw(conv_windows_HW_KHKW()),
        groups,
    )


@st.composite
def pool_windows_HW_KHKW(draw: st.DrawFn, dilated: bool = False) -> WindowCase:
    """Any window a pooling may have: padding at most half the kernel, so that no window sees padding alone."""
    size = draw(shape("HW"))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, kernel[0] // 2), st.integers(0, kernel[1] // 2)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if dilated else (1, 1)
    case = WindowCase(size, kernel, stride, padding, dilation, draw(st.booleans()))
    floor = references.output_size(size, kernel, stride, case.pads, dilation)
    assume(min(floor) >= 1)
    windows = references.taps(size, kernel, stride, case.pads, dilation, case.ceil_mode)
    assume(all(inside for _, _, inside in windows))
    return case
