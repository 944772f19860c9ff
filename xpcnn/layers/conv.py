"""Convolution."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..errors import ArgumentError
from ..functional.activation import relu_backward
from ..functional.conv import bias_gradient, conv2d_backward, conv2d_forward
from ..functional.geometry import Padding, Pair, Window, as_padding, make_window, pair
from ..init import InitLike
from .base import Builder, Layer, Parameter, Shape, Train, built, register

__all__ = ["Conv2d"]


@register
class Conv2d(Layer):
    """Convolution of (C, H, W, N) with O kernels of KH x KW pixels, as torch.nn.Conv2d.

    Args:
        out_channels: number of kernels, O.
        kernel_size: int or (KH, KW).
        stride: int or (vertical, horizontal).
        padding: zeros around the image: int, (vertical, horizontal), (top, bottom, left, right), "same", "valid".
        dilation: distance between kernel taps.
        groups: channels are cut into that many groups, convolved separately. `groups=C` is depthwise.
        bias: whether to add one number per output channel.
        init: initializer of the weight (`xpcnn.init`).
        bias_init: initializer of the bias; None means torch's for `init="torch_default"` and zeros otherwise.

    Shape: (C, H, W) -> (O, OH, OW), OH = floor((H + padding - dilation*(KH-1) - 1) / stride) + 1.

    Parameters: weight (O, C/groups, KH, KW), bias (O,).
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: InitLike = "torch_default",
        bias_init: InitLike | None = None,
    ) -> None:
        self.out_channels = positive(out_channels, "out_channels")
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = as_padding(padding)
        self.dilation = dilation
        self.groups = positive(groups, "groups")
        self.init = init
        self.bias_init = bias_init
        self._window = (pair(kernel_size, "kernel_size", 1), pair(stride, "stride", 1), pair(dilation, "dilation", 1))
        if out_channels % groups:
            raise ArgumentError(f"out_channels must be divisible by groups; received {out_channels} and {groups}.")
        self.weight: Parameter | None = None
        self.bias: Parameter | bool = bias

    def window(self, size: Pair) -> Window:
        """Return the window geometry for an input of size (H, W)."""
        kernel, stride, dilation = self._window
        return make_window(size, kernel, stride, self.padding, dilation)

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        channels, height, width = new.image("Conv2d", input_shape)
        if channels % self.groups:
            raise new.error(f"a number of input channels divisible by groups={self.groups}", f"{channels} channels")
        with new.naming():
            window = self.window((height, width))
        fan_in, fan_out = channels // self.groups * window.taps, self.out_channels // self.groups * window.taps
        shape = (self.out_channels, channels // self.groups, *window.kernel)
        new.parameter(self, "weight", shape, self.init, fan_in, fan_out)
        if self.bias is not False:
            new.parameter(self, "bias", shape[:1], bias_init(self.init, self.bias_init), fan_in, fan_out)
        return (self.out_channels, *window.output)

    applies_relu = True

    def forward(self, x: Array, train: Train, relu: bool = False) -> tuple[Array, Any]:
        window = self.window(x.shape[1:3])
        bias = self.bias.data if isinstance(self.bias, Parameter) else None
        y = conv2d_forward(x, built(self.weight, self, x), bias, window, self.groups, relu)
        if not train:
            return y, None
        return y, (x if trainable(self.weight) else None, window, y if relu else None)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        x, window, y = ctx
        if y is not None:
            dy = relu_backward(dy, y)
        own: Any = self.weight
        dx, dw = conv2d_backward(dy, x, built(own, self, dy), window, self.groups, need_dx, x is not None)
        own.accumulate(dw)
        if trainable(self.bias):
            self.bias.accumulate(bias_gradient(dy))  # type: ignore[union-attr]
        return dx

    def macs(self, input_shape: Shape, output_shape: Shape) -> int:
        kernel = self._window[0]
        outputs = output_shape[0] * output_shape[1] * output_shape[2]
        return outputs * input_shape[0] // self.groups * kernel[0] * kernel[1]


def trainable(parameter: Parameter | bool | None) -> bool:
    """Whether there is such a parameter and it is trained."""
    return isinstance(parameter, Parameter) and parameter.trainable


def positive(value: int, name: str) -> int:
    """Return the value if it is a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{name} must be a positive int; received {value!r}.")
    return value


def bias_init(init: InitLike, own: InitLike | None) -> InitLike:
    """Return the initializer of a bias: its own, else torch's beside torch's weights, else zeros."""
    return own if own is not None else "torch_default" if init == "torch_default" else "zeros"
