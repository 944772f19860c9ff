"""Dropout whose mask is a function of (seed, step, layer, element): the same on every backend, and again on demand.

Source: Srivastava et al., "Dropout" (2014); "inverted" scaling, so that inference does nothing.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from ..backend import Array, array_module, for_chunks, for_rows, pieces, spans
from . import fused

BLOCK = 1 << 17  # elements
ROUNDS = ((16, 0x21F0AAAD), (15, 0xD35A2D97))  # shift and factor of each round of the mixer


def mix(value: int) -> int:
    """Hash the low 64 bits of a Python int to 32 (the mixer below, over one half after the other)."""
    h = 0x9E3779B9
    for half in (value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF):
        h = (h + half) & 0xFFFFFFFF
        for shift, factor in ROUNDS:
            h = (h ^ h >> shift) * factor & 0xFFFFFFFF
        h ^= h >> 15
    return h


def mask_key(layer: int, seed: int, number: int) -> int:
    """Return the key of a layer's mask in step `number` of a training."""
    return mix(mix(layer) ^ mix(seed) << 32 ^ number * 0x9E3779B97F4A7C15)


def random_bits(xp: ModuleType, start: int, stop: int, key: int) -> Array:
    """Return uint32 hashes of start..stop-1 under a 32-bit key.

    The mixer is a two-round xorshift-multiply bijection ("lowbias32" family, C. Wellons, 2018), applied twice so that
    neighbouring keys give unrelated masks.
    """
    h = xp.arange(start, stop, dtype=xp.uint32)
    for salt in (key, mix(key + 1)):
        h ^= salt
        for shift, factor in ROUNDS:
            h ^= h >> shift
            h *= factor
        h ^= h >> 15
    return h


def _threshold(p: float) -> int:
    """The hashes below it are dropped."""
    return int(p * 2**32)


def dropout_mask(xp: ModuleType, shape: tuple[int, ...], p: float, key: int) -> Array:
    """Return a boolean mask that is False with probability p."""
    size = math.prod(shape)
    threshold = _threshold(p)
    if xp is not np:
        return (random_bits(xp, 0, size, key) >= threshold).reshape(shape)
    mask = np.empty(size, np.bool_)
    blocks = spans(size, pieces(size, 12, BLOCK))

    def work(index: int) -> None:
        first, last = blocks[index]
        np.greater_equal(random_bits(np, first, last, key), threshold, out=mask[first:last])

    for_chunks(len(blocks), 12 * size, work)
    return mask.reshape(shape)


def dropout_forward(x: Array, p: float, key: int) -> tuple[Array, Array]:
    """Return (y, mask): y = x * mask / (1 - p). p = 1 drops everything."""
    xp = array_module(x)
    if p == 1.0:
        return xp.zeros_like(x), xp.zeros(x.shape, np.bool_)
    if fused.takes(x):
        return fused.dropout_forward(x, _threshold(p), (key, mix(key + 1)), 1.0 / (1.0 - p))
    mask = dropout_mask(xp, x.shape, p, key)
    return dropout_backward(x, mask, p), mask


def dropout_backward(dy: Array, mask: Array, p: float) -> Array:
    """Return dx = dy * mask / (1 - p)."""
    xp = array_module(dy=dy, mask=mask)
    if p == 1.0:
        return xp.zeros_like(dy)
    if fused.takes(dy):
        return fused.dropout_backward(dy, mask, 1.0 / (1.0 - p))
    dx = xp.empty_like(dy)

    def work(rows: slice) -> None:
        block = xp.multiply(dy[rows], mask[rows], out=dx[rows])
        block *= 1.0 / (1.0 - p)

    for_rows(dy, work, 4)
    return dx
