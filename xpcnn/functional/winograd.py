"""Convolution with 3x3 kernels in fewer multiplications, on the CPU: Winograd's F(2x2, 3x3).

An image is cut into tiles of 4x4 pixels, which overlap by two and give 2x2 outputs each. With three fixed matrices

    U = G w G^T (kernels),  V = B^T x B (tiles),  y = A^T (U * V) A,

where * multiplies the 4x4 elements one by one and sums over channels: 16 products of matrices (O, C) and (C, tiles)
do what the columns of the same tiles need 36 for. A transform of both axes of a tile is one product with the Kronecker
square of its matrix; below, the 16 elements of a tile are the first axis. The last tiles of an odd number of rows or
columns reach into zeros, and what they give there is left out.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), sections 4.1 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .. import backend
from ..backend import Array, for_chunks, matmul, spans, workspace
from .geometry import Window, copy, pad

FEWEST_CHANNELS = 128  # with fewer the transforms cost more than they save
FEWEST_TILES = 256  # of all images, likewise
PART, PART_GRADIENT = 1 << 20, 1 << 22  # elements of V at a time; every part is added to the gradient of the kernels
BLOCK = 1 << 15  # tiles of channels that one call transforms


def _square(*rows: tuple[float, ...]) -> Array:
    return np.kron(np.array(rows), np.array(rows))


B = _square((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # (16, 16), of B^T
G = _square((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # (16, 9)
A = _square((1, 1, 1, 0), (0, 1, -1, -1))  # (4, 16), of A^T


def takes(x: Array, weight: Array, window: Window, groups: int) -> bool:
    """Whether this is such a convolution, and large enough to gain by it; x may be the gradient of the output."""
    if not (isinstance(x, np.ndarray) and isinstance(weight, np.ndarray)):
        return False
    tiles = -(-window.output[0] // 2) * -(-window.output[1] // 2) * x.shape[3]
    return (
        (window.kernel, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))
        and max(window.pads) <= 2
        and groups == 1
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and tiles >= FEWEST_TILES
        and x.dtype != np.float16
    )


def transform(weight: Array, mirrored: bool = False) -> Array:
    """Return U (16, O, C) of weight (O, C, 3, 3), in scratch memory; `mirrored` for the way back."""
    u = workspace(np, "winograd kernels", (16, *weight.shape[:2]), weight.dtype)
    square = (G[:, ::-1] if mirrored else G).astype(weight.dtype)

    def work(rows: slice) -> None:
        np.matmul(square, weight[rows].reshape(-1, 9).T, out=u[:, rows].reshape(16, -1))

    _over_channels(u[0], work)
    return u


def convolve(
    x: Array, u: Array, window: Window, bias: Array | None = None, relu: bool = False, out: Array | None = None
) -> Array:
    """Return y (O, OH, OW, N) for x (C, H, W, N), U (16, O, C) and bias (O,) or None; with `relu` max(y, 0).

    It is computed in `out` if that is given.
    """
    y = np.empty((u.shape[1], *window.output, x.shape[3]), x.dtype) if out is None else out
    square = A.astype(x.dtype)
    for rows, v in _tiles(x, window, PART):
        products = workspace(np, "winograd products", (16, len(y), v.shape[2]), y.dtype)

        def product(t: slice, v: Array = v, products: Array = products) -> None:
            np.matmul(u[t], v[t], out=products[t])

        def gather(channels: slice, products: Array = products, rows: slice = rows) -> None:
            four = workspace(np, "winograd outputs", (4, *products[0, channels].shape), y.dtype)
            matmul(square, products[:, channels].reshape(16, -1), four.reshape(4, -1))
            if bias is not None:
                four += bias[channels, None]
            if relu:
                np.clip(four, 0.0, math.inf, out=four)
            for pixels, target in _pixels(four, y[channels], rows):
                copy(target, pixels)

        _over_elements(products.size, product)
        _over_channels(products[0], gather)
    return y


def input_gradient(dy: Array, weight: Array, mirrored: Window) -> Array:
    """Return dx (C, H, W, N) for dy (O, OH, OW, N): a convolution with mirrored kernels; `mirrored` maps dy to dx."""
    return convolve(dy, transform(weight, mirrored=True).transpose(0, 2, 1), mirrored)


def weight_gradient(dy: Array, x: Array, window: Window) -> Array:
    """Return dweight (O, C, 3, 3) for dy (O, OH, OW, N) and x (C, H, W, N): G^T ((A dy A^T) * V) G."""
    total = workspace(np, "winograd kernels", (16, len(dy), len(x)), x.dtype)
    spreads, gathers = A.T.astype(dy.dtype), G.astype(x.dtype)
    for rows, v in _tiles(x, window, PART_GRADIENT):
        spread = workspace(np, "winograd products", (16, len(dy), v.shape[2]), dy.dtype)

        def scatter(channels: slice, spread: Array = spread, rows: slice = rows) -> None:
            four = workspace(np, "winograd outputs", (4, *spread[0, channels].shape), dy.dtype)
            if window.output[0] % 2 or window.output[1] % 2:
                four.fill(0)
            for pixels, source in _pixels(four, dy[channels], rows):
                copy(pixels, source)
            matmul(spreads, four.reshape(4, -1), spread[:, channels].reshape(16, -1))

        def product(t: slice, spread: Array = spread, v: Array = v, first: bool = rows.start == 0) -> None:
            part = total[t] if first else workspace(np, "winograd part", total[t].shape, total.dtype)
            np.matmul(spread[t], v[t].transpose(0, 2, 1), out=part)
            if not first:
                total[t] += part

        _over_channels(spread[0], scatter)
        _over_elements(total.size, product)
    dw = np.empty((len(dy), len(x), 3, 3), x.dtype)

    def gather(rows: slice) -> None:
        np.matmul(total[:, rows].reshape(16, -1).T, gathers, out=dw[rows].reshape(-1, 9))

    _over_channels(total[0], gather)
    return dw


def _tiles(x: Array, window: Window, part: int) -> Iterator[tuple[slice, Array]]:
    """Yield (rows of tiles, V (16, C, tiles in these rows)) for all of the image."""
    channels, batch = x.shape[0], x.shape[3]
    high, wide = (-(-n // 2) for n in window.output)
    padded = pad(x, Window(window.input, (high, wide), (4, 4), (2, 2), (1, 1), window.pads), 0.0)
    c, h, w, n = padded.strides
    shape, strides = (4, 4, channels, high, wide, batch), (h, w, c, 2 * h, 2 * w, n)
    view = backend.strided(padded, shape, strides)
    square = B.astype(x.dtype)
    for first, last in spans(high, -(-16 * channels * high * wide * batch // part)):
        v = workspace(np, "winograd tiles", (16, channels, (last - first) * wide * batch), x.dtype)

        def work(block: slice, v: Array = v, rows: slice = slice(first, last)) -> None:
            source = view[:, :, block, rows]
            tiles = workspace(np, "winograd columns", source.shape, x.dtype)
            copy(tiles, source)
            matmul(square, tiles.reshape(16, -1), v[:, block].reshape(16, -1))

        _over_channels(v[0], work)
        yield slice(first, last), v


def _pixels(four: Array, y: Array, rows: slice) -> Iterator[tuple[Array, Array]]:
    """Yield, for each of the 2x2 outputs of a tile, those in `four` (4, O, tiles in some rows) and their place in y."""
    wide, batch = -(-y.shape[2] // 2), y.shape[3]
    tiles = four.reshape(2, 2, len(y), -1, wide, batch)
    for i in (0, 1):
        for j in (0, 1):
            place = y[:, 2 * rows.start + i : 2 * rows.stop : 2, j::2]
            yield tiles[i, j, :, : place.shape[1], : place.shape[2]], place


def _over_channels(example: Array, function: Callable[[slice], None]) -> None:
    """Call function(channels) for blocks of what has 16 arrays like the example (channels, tiles)."""
    pieces = -(-example.size // (BLOCK * backend.lanes())) * backend.lanes()
    blocks = spans(len(example), pieces)
    for_chunks(len(blocks), 16 * example.size, lambda i: function(slice(*blocks[i])))


def _over_elements(work: int, function: Callable[[slice], None]) -> None:
    """Call function(elements of a tile) for runs of the 16."""
    runs = spans(16, backend.lanes())
    for_chunks(len(runs), 16 * work, lambda i: function(slice(*runs[i])))
