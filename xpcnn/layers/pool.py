"""Pooling layers."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..errors import ArgumentError
from ..functional import pool as F
from ..functional.geometry import Pair, Window, make_window, pair
from .base import Builder, Layer, Shape, Train, register

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "LpPool2d",
    "MaxPool2d",
]


class _Pool2d(Layer):
    """What the sliding-window poolings share. `stride=None` means the kernel size."""

    kernel_size: int | Pair
    stride: int | Pair | None
    padding: int | Pair
    ceil_mode: bool
    dilation: int | Pair = 1

    def _check(self) -> None:
        """Resolve and check the arguments; called by the constructors when all are set."""
        kernel = pair(self.kernel_size, "kernel_size", 1)
        stride = kernel if self.stride is None else pair(self.stride, "stride", 1)
        padding = pair(self.padding, "padding", 0)
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise ArgumentError(
                f"padding of a pooling must be at most half the kernel size; received padding={self.padding!r} and "
                f"kernel_size={self.kernel_size!r}."
            )
        self._window = (kernel, stride, padding, pair(self.dilation, "dilation", 1))

    def window(self, size: Pair) -> Window:
        """Return the window geometry for an input of size (H, W)."""
        kernel, stride, padding, dilation = self._window
        return make_window(size, kernel, stride, padding, dilation, self.ceil_mode)

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        channels, height, width = new.image(type(self).__name__, input_shape)
        with new.naming():
            return (channels, *self.window((height, width)).output)


@register
class MaxPool2d(_Pool2d):
    """The largest element of each window, as torch.nn.MaxPool2d; among equals the gradient goes to the first.

    Args:
        kernel_size, stride, padding, dilation: int or (vertical, horizontal); stride None means kernel_size.
        ceil_mode: round the output size up, so that a last window may reach beyond the image.

    Shape: (C, H, W) -> (C, OH, OW).
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        self._check()

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        window = self.window(x.shape[1:3])
        y = F.max_pool2d_forward(x, window)
        return y, (x, y, window) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return F.max_pool2d_backward(dy, *ctx) if need_dx else None


@register
class AvgPool2d(_Pool2d):
    """The mean of each window, as torch.nn.AvgPool2d.

    Args:
        kernel_size, stride, padding: int or (vertical, horizontal); stride None means kernel_size.
        ceil_mode: round the output size up.
        count_include_pad: whether zeros of the padding count as elements.

    Shape: (C, H, W) -> (C, OH, OW).
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self._check()

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        window = self.window(x.shape[1:3])
        return F.avg_pool2d_forward(x, window, self.count_include_pad), window if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return F.avg_pool2d_backward(dy, ctx, self.count_include_pad) if need_dx else None


@register
class LpPool2d(_Pool2d):
    """The p-norm of each window: (sum |x|**p)**(1/p), or of the mean instead of the sum with `mean=True`.

    With `mean`, p = 1 is average pooling of non-negative maps; p = infinity is max pooling of |x|.

    Args:
        kernel_size, stride, padding: int or (vertical, horizontal); stride None means kernel_size.
        p: p >= 1, `math.inf` allowed.
        ceil_mode: round the output size up.
        mean: divide the sum by KH*KW before the root is taken.

    Shape: (C, H, W) -> (C, OH, OW).
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        p: float = 2.0,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        ceil_mode: bool = False,
        mean: bool = False,
    ) -> None:
        if not p >= 1:
            raise ArgumentError(f"p of LpPool2d must be at least 1; received {p!r}.")
        self.kernel_size = kernel_size
        self.p = float(p)
        self.stride = stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.mean = mean
        self._check()

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        window = self.window(x.shape[1:3])
        y = F.lp_pool2d_forward(x, window, self.p, self.mean)
        return y, (x, y, window) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        x, y, window = ctx
        return F.lp_pool2d_backward(dy, x, y, window, self.p, self.mean) if need_dx else None


class _AdaptivePool2d(Layer):
    def __init__(self, output_size: int | Pair) -> None:
        self.output_size = output_size
        self._output = pair(output_size, "output_size", 1)

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        return (new.image(type(self).__name__, input_shape)[0], *self._output)


@register
class AdaptiveAvgPool2d(_AdaptivePool2d):
    """The mean of each of OH x OW bins that cover the image evenly, whatever its size, as torch's."""

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        return F.adaptive_avg_pool2d_forward(x, self._output), x.shape[1:3] if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return F.adaptive_avg_pool2d_backward(dy, ctx) if need_dx else None


@register
class AdaptiveMaxPool2d(_AdaptivePool2d):
    """The largest element of each of OH x OW bins that cover the image evenly, as torch's."""

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        y = F.adaptive_max_pool2d_forward(x, self._output)
        return y, (x, y) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return F.adaptive_max_pool2d_backward(dy, *ctx) if need_dx else None


class _GlobalPool2d(Layer):
    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        return new.image(type(self).__name__, input_shape)[:1]


@register
class GlobalAvgPool2d(_GlobalPool2d):
    """The mean of each channel: (C, H, W) -> (C,). Lin, Chen and Yan, "Network in Network" (2014)."""

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        return F.adaptive_avg_pool2d_forward(x, (1, 1))[:, 0, 0], x.shape[1:3] if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return F.adaptive_avg_pool2d_backward(dy[:, None, None], ctx) if need_dx else None


@register
class GlobalMaxPool2d(_GlobalPool2d):
    """The largest element of each channel: (C, H, W) -> (C,)."""

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        y = F.adaptive_max_pool2d_forward(x, (1, 1))
        return y[:, 0, 0], (x, y) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        return F.adaptive_max_pool2d_backward(dy[:, None, None], *ctx) if need_dx else None
