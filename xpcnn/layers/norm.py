"""Normalisation layers."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..errors import ArgumentError
from ..functional.norm import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_frozen_backward,
    batch_norm_inference,
    local_response_norm_backward,
    local_response_norm_forward,
    update_statistics,
)
from .base import Buffer, Builder, Layer, Parameter, Shape, Step, Train, built, register
from .conv import positive, trainable

__all__ = ["BatchNorm1d", "BatchNorm2d", "LocalResponseNorm"]


class _BatchNorm(Layer):
    """Batch normalisation per channel, as torch.nn.BatchNorm.

    In training the statistics are those of the batch, and running means are updated by
    `running += momentum * (batch - running)` (the variance unbiased). At inference the running statistics are used,
    and in training too once weight and bias are frozen: then nothing of the layer changes any more.

    Args:
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.
        affine: whether to scale and shift by trained parameters.

    Parameters: weight (C,), bias (C,). Buffers: running_mean (C,), running_var (C,).
    """

    dimensions = 0
    applies_relu = True

    def __init__(self, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        if eps <= 0 or not 0.0 <= momentum <= 1.0:
            raise ArgumentError(
                f"batch norm expects eps > 0 and momentum from 0 to 1; received eps={eps}, momentum={momentum}."
            )
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.weight: Parameter | None = None
        self.bias: Parameter | None = None
        self.running_mean: Buffer | None = None
        self.running_var: Buffer | None = None

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        if len(input_shape) != self.dimensions:
            letters = "(C, H, W)" if self.dimensions == 3 else "(D,)"
            raise new.error(f"an input of shape {letters} for {type(self).__name__}", f"shape {input_shape}")
        if self.affine:
            new.parameter(self, "weight", input_shape[:1], "ones")
            new.parameter(self, "bias", input_shape[:1], "zeros")
        new.buffer(self, "running_mean", input_shape[:1], 0.0)
        new.buffer(self, "running_var", input_shape[:1], 1.0)
        return input_shape

    def forward(self, x: Array, train: Train, relu: bool = False) -> tuple[Array, Any]:
        running_mean, running_var = built(self.running_mean, self), built(self.running_var, self)
        weight = None if self.weight is None else self.weight.data
        bias = None if self.bias is None else self.bias.data
        step = Step.of(train)
        if step is None or step.inference or self.is_frozen:
            y = batch_norm_inference(x, running_mean, running_var, weight, bias, self.eps, relu)
            kept = x if trainable(self.weight) or trainable(self.bias) else None
            return y, (kept, running_mean, running_var, False, y if relu else None) if step is not None else None
        count = x.size // x.shape[0]
        if count < 2:
            raise ArgumentError(
                f"{type(self).__name__} needs more than one value per channel in training; received an input of shape "
                f"{x.shape}. Use a larger batch, or drop_last=True if it is the last one of an epoch."
            )
        y, mean, var = batch_norm_forward(x, weight, bias, self.eps, relu)
        if not step.recompute:
            update_statistics(running_mean, running_var, mean, var, self.momentum, count)
        return y, (x, mean, var, True, y if relu else None)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        x, mean, var, batch_statistics, y = ctx
        weight = None if self.weight is None else self.weight.data
        if x is None:
            return batch_norm_frozen_backward(dy, var, weight, self.eps, y) if need_dx else None
        dx, dweight, dbias = batch_norm_backward(dy, x, mean, var, weight, self.eps, batch_statistics, y)
        if self.weight is not None and self.bias is not None:
            self.weight.accumulate(dweight)
            self.bias.accumulate(dbias)
        return dx if need_dx else None

    @property
    def is_frozen(self) -> bool:
        """Whether the layer has parameters and none of them is trained."""
        return self.affine and not trainable(self.weight) and not trainable(self.bias)


@register
class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images (C, H, W, N)."""

    dimensions = 3


@register
class BatchNorm1d(_BatchNorm):
    """Batch normalisation of features (D, N)."""

    dimensions = 1


BatchNorm2d.__doc__ = f"{BatchNorm2d.__doc__}\n\n{_BatchNorm.__doc__}"
BatchNorm1d.__doc__ = f"{BatchNorm1d.__doc__}\n\n{_BatchNorm.__doc__}"


@register
class LocalResponseNorm(Layer):
    """Divide by (k + alpha / size * sum of squares over `size` neighbouring channels)**beta, as in AlexNet."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = positive(size, "size")
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        return new.image("LocalResponseNorm", input_shape)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        y, scale = local_response_norm_forward(x, self.size, self.alpha, self.beta, self.k)
        return y, (x, y, scale) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        x, y, scale = ctx
        if not need_dx:
            return None
        return local_response_norm_backward(dy, x, y, scale, self.size, self.alpha, self.beta)
