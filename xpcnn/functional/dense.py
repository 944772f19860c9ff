"""The dense (fully connected) layer: x (D, N), weight (O, D), bias (O,), y (O, N)."""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module, for_chunks, lanes, matmul, spans

Product = tuple[Array, Array, Array]  # (a, b, out): out[...] = a @ b


def _multiply(*products: Product) -> None:
    """Compute products, cut into rows of a or else columns of b and spread over threads together."""
    work = sum(out.size * a.shape[1] for a, _, out in products)
    count = lanes() if work > 400_000 and isinstance(products[0][2], np.ndarray) else 1
    parts: list[Product] = []
    for a, b, out in products:
        if a.shape[0] >= b.shape[1]:
            parts += [(a[i:j], b, out[i:j]) for i, j in spans(a.shape[0], count)]
        else:
            parts += [(a, b[:, i:j], out[:, i:j]) for i, j in spans(b.shape[1], count)]
    for_chunks(len(parts), work, lambda index: matmul(*parts[index]))


def dense_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return y = weight @ x + bias, (O, N)."""
    xp = array_module(x=x, weight=weight, bias=bias)
    y = xp.empty((weight.shape[0], x.shape[1]), x.dtype)
    _multiply((weight, x, y))
    if bias is not None:
        y += bias[:, None]
    return y


def dense_backward(
    dy: Array, x: Array | None, weight: Array, need_dx: bool = True, need_dw: bool = True, out: Array | None = None
) -> tuple[Array | None, Array | None]:
    """Return (dx (D, N) or None, dweight (O, D) or None); x may be None if dweight is not asked for.

    dweight is computed in `out` where that is given.
    """
    xp = array_module(dy=dy, x=x, weight=weight)
    dx = xp.empty((weight.shape[1], dy.shape[1]), dy.dtype) if need_dx else None
    products = [] if dx is None else [(weight.T, dy, dx)]
    dw = None
    if need_dw and x is not None:
        dw = xp.empty(weight.shape, x.dtype) if out is None else out
        products.append((dy, x.T, dw))
    _multiply(*products)
    return dx, dw
