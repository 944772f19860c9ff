"""The same function with NumPy and with CuPy: shapes, types and values must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cupy as cp
import numpy as np

rng = np.random.RandomState(0)
IMAGES = rng.randn(4, 3, 8, 8).astype("f4")
MATRIX = rng.randn(5, 7).astype("f4")
OTHER = rng.randn(5, 7).astype("f4")
POSITIVE = np.abs(MATRIX) + 0.1
DOUBLES = rng.randn(6, 5)
INTEGERS = rng.randint(-50, 50, (4, 9)).astype("i4")
HALVES = rng.randn(4, 6).astype("f2")


@dataclass
class Case:
    """A function of xp and arrays, which gives an array or several."""

    name: str
    function: Callable[..., Any]
    arrays: tuple[np.ndarray, ...]
    tolerance: float

    def __str__(self) -> str:
        return self.name

    def check(self) -> None:
        expected = as_tuple(self.function(np, *[a.copy() for a in self.arrays]))
        found = as_tuple(self.function(cp, *[cp.asarray(a) for a in self.arrays]))
        assert len(found) == len(expected)
        for x, y in zip(map(np.asarray, expected), found, strict=True):
            assert isinstance(y, cp.ndarray), type(y)
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            if x.dtype.kind in "fc":
                tolerance = 2e-2 if x.dtype == np.float16 else self.tolerance
                np.testing.assert_allclose(y.get(), x, rtol=tolerance, atol=tolerance)
            else:
                np.testing.assert_array_equal(y.get(), x)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class Comparisons(list[Case]):
    """Cases of one file."""

    def add(self, name: str, function: Callable[..., Any], *arrays: np.ndarray, tol: float = 1e-5) -> None:
        self.append(Case(name, function, arrays, tol))


def im2col(xp: Any, x: Any) -> Any:
    """Return the 3 x 3 windows of images (n, c, 8, 8) as rows: (n * 36, c * 9)."""
    n, c = x.shape[:2]
    s = x.strides
    windows = xp.lib.stride_tricks.as_strided(x, (n, c, 3, 3, 6, 6), (s[0], s[1], s[2], s[3], s[2], s[3]))
    return xp.ascontiguousarray(windows.transpose(0, 4, 5, 1, 2, 3)).reshape(n * 36, -1)
