"""Activation layers: each is a thin shell over its function pair and keeps one array, mostly its output."""

from __future__ import annotations

from collections.abc import Callable
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

    functions: tuple[Callable[..., Array], Callable[..., Array]]  # the pair, forward and backward
    arguments: tuple[str, ...] = ()  # attributes that both take after their arrays
    keeps_output = False

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        y = self.functions[0](x, *(getattr(self, name) for name in self.arguments))
        return y, (y if self.keeps_output else x) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return self.functions[1](dy, ctx, *(getattr(self, name) for name in self.arguments)) if need_dx else None


@register
class ReLU(_Activation):
    """max(x, 0)."""

    functions = F.relu_forward, F.relu_backward
    keeps_output = True


@register
class Clip(_Activation):
    """x between low and high, and the nearer of the two outside. `Clip(0.0, 6.0)` is known as ReLU6."""

    functions = F.clip_forward, F.clip_backward
    arguments = "low", "high"
    keeps_output = True

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ArgumentError(f"Clip expects low < high; received {low!r} and {high!r}.")
        self.low = low
        self.high = high


@register
class LeakyReLU(_Activation):
    """x where x > 0, else negative_slope * x."""

    functions = F.leaky_relu_forward, F.leaky_relu_backward
    arguments = ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope


@register
class ELU(_Activation):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    functions = F.elu_forward, F.elu_backward
    arguments = ("alpha",)

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha


@register
class SELU(_Activation):
    """ELU with the alpha and scale that keep mean 0 and variance 1 through layers."""

    functions = F.elu_forward, F.elu_backward
    arguments = "alpha", "scale"
    alpha, scale = F.SELU_ALPHA, F.SELU_SCALE


@register
class GELU(_Activation):
    """x times the normal distribution function of x; `approximate` is "none" or "tanh"."""

    functions = F.gelu_forward, F.gelu_backward

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ArgumentError(f'approximate of GELU must be "none" or "tanh"; received {approximate!r}.')
        self.approximate = approximate
        if approximate == "tanh":
            self.functions = F.gelu_tanh_forward, F.gelu_tanh_backward


@register
class SiLU(_Activation):
    """x * sigmoid(x), also called swish."""

    functions = F.silu_forward, F.silu_backward


@register
class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    functions = F.sigmoid_forward, F.sigmoid_backward
    keeps_output = True


@register
class Tanh(_Activation):
    """tanh(x)."""

    functions = F.tanh_forward, F.tanh_backward
    keeps_output = True


@register
class Softplus(_Activation):
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""

    functions = F.softplus_forward, F.softplus_backward
    arguments = "beta", "threshold"

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if beta <= 0:
            raise ArgumentError(f"beta of Softplus must be positive; received {beta!r}.")
        self.beta = beta
        self.threshold = threshold


@register
class Softmax(_Activation):
    """exp(x) over its sum along the first axis: classes of (K, N), channels of (C, H, W, N)."""

    functions = F.softmax_forward, F.softmax_backward
    keeps_output = True
    gives_probabilities = True


@register
class LogSoftmax(_Activation):
    """The logarithm of Softmax, computed without overflow."""

    functions = F.log_softmax_forward, F.log_softmax_backward
    keeps_output = True
