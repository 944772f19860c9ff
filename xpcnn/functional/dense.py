"""The dense (fully connected) layer: x (D, N), weight (O, D), bias (O,), y (O, N)."""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module, for_chunks, lanes, product, spans


def _matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a @ b with the rows of a, or else the columns of b, spread over threads."""
    xp = array_module(a, b)
    out = xp.empty((a.shape[0], b.shape[1]), b.dtype) if out is None else out
    work = out.size * a.shape[1]
    pieces = lanes() if xp is np and work > 400_000 else 1
    if a.shape[0] >= b.shape[1]:
        rows = spans(a.shape[0], pieces)
        for_chunks(len(rows), work, lambda i: product(a[slice(*rows[i])], b, out=out[slice(*rows[i])]))
    else:
        columns = spans(b.shape[1], pieces)
        for_chunks(len(columns), work, lambda i: product(a, b[:, slice(*columns[i])], out=out[:, slice(*columns[i])]))
    return out


def dense_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return y = weight @ x + bias, (O, N)."""
    array_module(x=x, weight=weight, bias=bias)
    y = _matmul(weight, x)
    if bias is not None:
        y += bias[:, None]
    return y


def dense_backward(
    dy: Array, x: Array | None, weight: Array, need_dx: bool = True, need_dw: bool = True, out: Array | None = None
) -> tuple[Array | None, Array | None]:
    """Return (dx (D, N) or None, dweight (O, D) or None); x may be None if dweight is not asked for.

    dweight is computed in `out` where that is given.
    """
    array_module(dy=dy, x=x, weight=weight)
    return (
        _matmul(weight.T, dy) if need_dx else None,
        _matmul(dy, x.T, out) if need_dw and x is not None else None,
    )
