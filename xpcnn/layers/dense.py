"""Dense layers, what leads to them (Flatten and Dropout), and layers that only move data."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, array_module, key_of
from ..errors import ArgumentError
from ..functional.conv import bias_gradient
from ..functional.dense import dense_backward, dense_forward
from ..functional.dropout import dropout_backward, dropout_forward, mask_key
from ..functional.merge import concatenate
from ..init import InitLike
from .base import Builder, Layer, Parameter, Shape, Step, Train, built, register
from .conv import bias_init, positive, trainable

__all__ = ["Dense", "Dropout", "Flatten", "Identity", "PadChannels"]


@register
class Dense(Layer):
    """y = weight @ x + bias on (D, N), as torch.nn.Linear.

    Args:
        out_features: number of outputs, O.
        bias: whether to add one number per output.
        init, bias_init: initializers, as for `Conv2d`.

    Parameters: weight (O, D), bias (O,).
    """

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        init: InitLike = "torch_default",
        bias_init: InitLike | None = None,
    ) -> None:
        self.out_features = positive(out_features, "out_features")
        self.init = init
        self.bias_init = bias_init
        self.weight: Parameter | None = None
        self.bias: Parameter | bool = bias

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        if len(input_shape) != 1:
            raise new.error("features of shape (D,) for Dense", f"shape {input_shape}", "Put a Flatten before it.")
        shape = (self.out_features, input_shape[0])
        new.parameter(self, "weight", shape, self.init, shape[1], shape[0])
        if self.bias is not False:
            new.parameter(self, "bias", shape[:1], bias_init(self.init, self.bias_init), shape[1], shape[0])
        return (self.out_features,)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        bias = self.bias.data if isinstance(self.bias, Parameter) else None
        y = dense_forward(x, built(self.weight, self, x), bias)
        return y, (x if trainable(self.weight) else None,) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        (x,) = ctx
        own: Any = self.weight
        room = own.room if own.data.dtype == dy.dtype else None  # else dy is float16
        dx, dw = dense_backward(dy, x, built(own, self, dy), need_dx, x is not None, room)
        own.accumulate(dw)
        if trainable(self.bias):
            self.bias.accumulate(bias_gradient(dy))  # type: ignore[union-attr]
        return dx

    def macs(self, input_shape: Shape, output_shape: Shape) -> int:
        return input_shape[0] * output_shape[0]


@register
class Flatten(Layer):
    """(C, H, W) to (C*H*W,), in torch's order."""

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        return x.reshape(-1, x.shape[-1]), x.shape if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return dy.reshape(ctx) if need_dx else None


@register
class Identity(Layer):
    """Returns its input."""

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        return x, () if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return dy if need_dx else None


@register
class PadChannels(Layer):
    """Channels of zeros before and after those of the image: (C, H, W) -> (before + C + after, H, W)."""

    def __init__(self, before: int, after: int) -> None:
        if before < 0 or after < 0:
            raise ArgumentError(f"PadChannels expects numbers of channels >= 0; received {before!r} and {after!r}.")
        self.before = before
        self.after = after

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        channels, height, width = new.image("PadChannels", input_shape)
        return (self.before + channels + self.after, height, width)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        xp = array_module(x)
        before, after = (xp.zeros((n, *x.shape[1:]), x.dtype) for n in (self.before, self.after))
        return concatenate([before, x, after]), () if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return dy[self.before : len(dy) - self.after] if need_dx else None


@register
class Dropout(Layer):
    """In training, set each element to 0 with probability p and scale the others by 1 / (1 - p).

    The mask is a function of the step, of the layer's path and of the element's position: a step that is computed
    again, resumed, or run on another backend drops the same elements.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise ArgumentError(f"the dropout probability p must lie between 0 and 1; received {p!r}.")
        self.p = p
        self._key = 0

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        self._key = key_of(new.path)
        return input_shape

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        step = Step.of(train)
        if step is None:
            return x, None
        if step.inference or self.p == 0.0:
            return x, (None,)
        key = mask_key(self._key, step.seed, step.number)
        y, mask = dropout_forward(x, self.p, key)
        return y, (mask,)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        (mask,) = ctx
        if not need_dx or mask is None:
            return dy if need_dx else None
        array_module(dy=dy, mask=mask)
        return dropout_backward(dy, mask, self.p)
