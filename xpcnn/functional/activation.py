"""Activations, forward and backward, for arrays of any shape.

Each backward takes dy and the one array that the derivative is cheapest to read from: the output where that is
possible (the next layer keeps it anyway), else the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import backend
from ..backend import Array, array_module, for_rows
from . import fused

SELU_ALPHA = 1.6732632423543772  # Klambauer et al., "Self-Normalizing Neural Networks" (2017)
SELU_SCALE = 1.0507009873554805


def _map(function: Callable[..., Array], *arrays: Array, passes: int = 2) -> Array:
    """Apply an elementwise function block by block; the result is like the first array."""
    xp = array_module(*arrays)
    out = xp.empty(arrays[0].shape, arrays[0].dtype)

    def work(rows: slice) -> None:
        out[rows] = function(xp, *(a[rows] for a in arrays))

    for_rows(out, work, passes)
    return out


def relu_forward(x: Array) -> Array:
    """Return max(x, 0)."""
    xp = array_module(x)
    y = xp.empty(x.shape, x.dtype)
    for_rows(x, lambda rows: xp.clip(x[rows], 0.0, math.inf, out=y[rows]))
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dx from the output y: the derivative at 0 is 0."""
    xp = array_module(dy=dy, y=y)
    if fused.takes(dy):
        return fused.relu_backward(dy, y)
    dx = xp.empty(dy.shape, dy.dtype)
    for_rows(dy, lambda rows: xp.multiply(dy[rows], y[rows] > 0, out=dx[rows]), 2)
    return dx


def clip_forward(x: Array, low: float, high: float) -> Array:
    """Return x, but low where x < low and high where x > high."""
    return _map(lambda xp, x: xp.clip(x, low, high), x)


def clip_backward(dy: Array, y: Array, low: float, high: float) -> Array:
    """Return dx from the output y: the derivative at both ends is 0."""
    return _map(lambda xp, dy, y: dy * ((y > low) & (y < high)), dy, y)


def leaky_relu_forward(x: Array, slope: float) -> Array:
    """Return x where x > 0, else slope * x."""
    return _map(lambda xp, x: xp.where(x > 0, x, x * slope), x)


def leaky_relu_backward(dy: Array, x: Array, slope: float) -> Array:
    """Return dx from the input x."""
    return _map(lambda xp, dy, x: xp.where(x > 0, dy, dy * slope), dy, x)


def elu_forward(x: Array, alpha: float, scale: float = 1.0) -> Array:
    """Return scale * (x where x > 0, else alpha * (exp(x) - 1)). Clevert, Unterthiner and Hochreiter (2016)."""
    return _map(lambda xp, x: xp.where(x > 0, x * scale, xp.expm1(xp.minimum(x, 0.0)) * (alpha * scale)), x, passes=10)


def elu_backward(dy: Array, x: Array, alpha: float, scale: float = 1.0) -> Array:
    """Return dx from the input x."""
    return _map(
        lambda xp, dy, x: dy * xp.where(x > 0, scale, xp.exp(xp.minimum(x, 0.0)) * (alpha * scale)),
        dy,
        x,
        passes=10,
    )


def _sigmoid(xp: object, x: Array) -> Array:
    return 0.5 * xp.tanh(0.5 * x) + 0.5  # type: ignore[attr-defined]  # never overflows


def sigmoid_forward(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    return _map(_sigmoid, x, passes=10)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """Return dx from the output y."""
    return _map(lambda xp, dy, y: dy * y * (1.0 - y), dy, y)


def tanh_forward(x: Array) -> Array:
    """Return tanh(x)."""
    return _map(lambda xp, x: xp.tanh(x), x, passes=10)


def tanh_backward(dy: Array, y: Array) -> Array:
    """Return dx from the output y."""
    return _map(lambda xp, dy, y: dy * (1.0 - y * y), dy, y)


def silu_forward(x: Array) -> Array:
    """Return x * sigmoid(x). Elfwing, Uchibe and Doya (2018)."""
    return _map(lambda xp, x: x * _sigmoid(xp, x), x, passes=10)


def silu_backward(dy: Array, x: Array) -> Array:
    """Return dx from the input x."""

    def derivative(xp: object, dy: Array, x: Array) -> Array:
        s = _sigmoid(xp, x)
        return dy * s * (1.0 + x * (1.0 - s))

    return _map(derivative, dy, x, passes=12)


def gelu_forward(x: Array) -> Array:
    """Return x * Phi(x), Phi the standard normal distribution function. Hendrycks and Gimpel (2016)."""
    return _map(lambda xp, x: 0.5 * x * (1.0 + backend.erf(x * math.sqrt(0.5))), x, passes=60)


def gelu_backward(dy: Array, x: Array) -> Array:
    """Return dx from the input x."""

    def derivative(xp: object, dy: Array, x: Array) -> Array:
        phi = 0.5 * (1.0 + backend.erf(x * math.sqrt(0.5)))
        density = xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))  # type: ignore[attr-defined]
        return dy * (phi + x * density)

    return _map(derivative, dy, x, passes=70)


def _gelu_tanh(xp: object, x: Array) -> Array:
    return xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))  # type: ignore[attr-defined]


def gelu_tanh_forward(x: Array) -> Array:
    """Return the tanh approximation of gelu (same paper, section 2)."""
    return _map(lambda xp, x: 0.5 * x * (1.0 + _gelu_tanh(xp, x)), x, passes=14)


def gelu_tanh_backward(dy: Array, x: Array) -> Array:
    """Return dx from the input x."""

    def derivative(xp: object, dy: Array, x: Array) -> Array:
        t = _gelu_tanh(xp, x)
        inner = math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
        return dy * 0.5 * (1.0 + t + x * (1.0 - t * t) * inner)

    return _map(derivative, dy, x, passes=18)


def softplus_forward(x: Array, beta: float, threshold: float) -> Array:
    """Return log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""

    def function(xp: object, x: Array) -> Array:
        z = x * beta
        smooth = xp.log1p(xp.exp(-xp.abs(z))) + xp.maximum(z, 0.0)  # type: ignore[attr-defined]
        return xp.where(z > threshold, x, smooth * (1.0 / beta))  # type: ignore[attr-defined]

    return _map(function, x, passes=20)


def softplus_backward(dy: Array, x: Array, beta: float, threshold: float) -> Array:
    """Return dx from the input x."""
    return _map(lambda xp, dy, x: dy * xp.where(x * beta > threshold, 1.0, _sigmoid(xp, x * beta)), dy, x, passes=12)


def softmax_forward(x: Array) -> Array:
    """Return exp(x) over its sum along the first axis (classes)."""
    xp = array_module(x)
    y = xp.exp(x - x.max(axis=0))
    y /= y.sum(axis=0)
    return y


def softmax_backward(dy: Array, y: Array) -> Array:
    """Return dx from the output y."""
    array_module(dy=dy, y=y)
    return y * (dy - (dy * y).sum(axis=0))


def log_softmax_forward(x: Array) -> Array:
    """Return x minus the logarithm of the sum of exp(x) along the first axis (classes)."""
    xp = array_module(x)
    y = x - x.max(axis=0)
    y -= xp.log(xp.exp(y).sum(axis=0))
    return y


def log_softmax_backward(dy: Array, y: Array) -> Array:
    """Return dx from the output y."""
    xp = array_module(dy=dy, y=y)
    return dy - xp.exp(y) * dy.sum(axis=0)
