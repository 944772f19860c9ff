"""Activation layers: each is a thin shell over its function pair and keeps one array, mostly its output."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..errors import ArgumentError
from ..functional import activation as F
from .base import Layer, Train, register

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Clip",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]


class _Activation(Layer):
    """Shape: any -> the same. `keeps_output` says which array backward reads."""

    keeps_output = False

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        y = self._forward(x)
        return y, (y if self.keeps_output else x) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return self._backward(dy, ctx) if need_dx else None

    def _forward(self, x: Array) -> Array:
        raise TypeError(f"{type(self).__name__} does not define _forward")

    def _backward(self, dy: Array, kept: Array) -> Array:
        raise TypeError(f"{type(self).__name__} does not define _backward")


@register
class ReLU(_Activation):
    """max(x, 0)."""

    keeps_output = True

    def _forward(self, x: Array) -> Array:
        return F.relu_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.relu_backward(dy, kept)


@register
class Clip(_Activation):
    """x between low and high, and the nearer of the two outside. `Clip(0.0, 6.0)` is known as ReLU6."""

    keeps_output = True

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ArgumentError(f"Clip expects low < high; received {low!r} and {high!r}.")
        self.low = low
        self.high = high

    def _forward(self, x: Array) -> Array:
        return F.clip_forward(x, self.low, self.high)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.clip_backward(dy, kept, self.low, self.high)


@register
class LeakyReLU(_Activation):
    """x where x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def _forward(self, x: Array) -> Array:
        return F.leaky_relu_forward(x, self.negative_slope)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.leaky_relu_backward(dy, kept, self.negative_slope)


@register
class ELU(_Activation):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def _forward(self, x: Array) -> Array:
        return F.elu_forward(x, self.alpha)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.elu_backward(dy, kept, self.alpha)


@register
class SELU(_Activation):
    """ELU with the alpha and scale that keep mean 0 and variance 1 through layers."""

    def _forward(self, x: Array) -> Array:
        return F.elu_forward(x, F.SELU_ALPHA, F.SELU_SCALE)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.elu_backward(dy, kept, F.SELU_ALPHA, F.SELU_SCALE)


@register
class GELU(_Activation):
    """x times the normal distribution function of x; `approximate` is "none" or "tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ArgumentError(f'approximate of GELU must be "none" or "tanh"; received {approximate!r}.')
        self.approximate = approximate

    def _forward(self, x: Array) -> Array:
        return F.gelu_forward(x) if self.approximate == "none" else F.gelu_tanh_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.gelu_backward(dy, kept) if self.approximate == "none" else F.gelu_tanh_backward(dy, kept)


@register
class SiLU(_Activation):
    """x * sigmoid(x), also called swish."""

    def _forward(self, x: Array) -> Array:
        return F.silu_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.silu_backward(dy, kept)


@register
class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    keeps_output = True

    def _forward(self, x: Array) -> Array:
        return F.sigmoid_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.sigmoid_backward(dy, kept)


@register
class Tanh(_Activation):
    """tanh(x)."""

    keeps_output = True

    def _forward(self, x: Array) -> Array:
        return F.tanh_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.tanh_backward(dy, kept)


@register
class Softplus(_Activation):
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if beta <= 0:
            raise ArgumentError(f"beta of Softplus must be positive; received {beta!r}.")
        self.beta = beta
        self.threshold = threshold

    def _forward(self, x: Array) -> Array:
        return F.softplus_forward(x, self.beta, self.threshold)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.softplus_backward(dy, kept, self.beta, self.threshold)


@register
class Softmax(_Activation):
    """exp(x) over its sum along the first axis: classes of (K, N), channels of (C, H, W, N)."""

    keeps_output = True
    gives_probabilities = True

    def _forward(self, x: Array) -> Array:
        return F.softmax_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.softmax_backward(dy, kept)


@register
class LogSoftmax(_Activation):
    """The logarithm of Softmax, computed without overflow."""

    keeps_output = True

    def _forward(self, x: Array) -> Array:
        return F.log_softmax_forward(x)

    def _backward(self, dy: Array, kept: Array) -> Array:
        return F.log_softmax_backward(dy, kept)
