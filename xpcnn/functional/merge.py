"""Where branches of a network meet: sums and concatenations of arrays (C, ..., N), spread over threads."""

from __future__ import annotations

from collections.abc import Sequence

from ..backend import Array, array_module, for_rows


def add(a: Array, b: Array) -> Array:
    """Return a + b."""
    xp = array_module(a, b)
    y = xp.empty(a.shape, a.dtype)
    for_rows(y, lambda rows: xp.add(a[rows], b[rows], out=y[rows]), 3)
    return y


def concatenate(arrays: Sequence[Array]) -> Array:
    """Return the arrays one after the other along the first axis (channels)."""
    xp = array_module(*arrays)
    y = xp.empty((sum(len(a) for a in arrays), *arrays[0].shape[1:]), arrays[0].dtype)
    start = 0
    for a in arrays:
        part = y[start : start + len(a)]
        for_rows(a, lambda rows, a=a, part=part: xp.copyto(part[rows], a[rows]), 2)  # type: ignore[misc]
        start += len(a)
    return y
