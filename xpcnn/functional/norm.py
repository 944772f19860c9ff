"""Batch normalisation and local response normalisation, forward and backward.

Arrays are batch-last: x (C, ..., N). Statistics are over everything but the channel and are accumulated in at least
float32.
"""

from __future__ import annotations

import math

from ..backend import Array, array_module, for_rows, row_dot, row_sum, workspace
from . import fused
from .activation import relu_backward


def batch_norm_forward(
    x: Array, weight: Array | None, bias: Array | None, eps: float, relu: bool = False
) -> tuple[Array, Array, Array]:
    """Normalise by the statistics of the batch: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1; var is the population variance.

    Args:
        x: (C, ..., N).
        weight: (C,) or None for 1.
        bias: (C,) or None for 0.
        eps: added to the variance.
        relu: return max(y, 0), applied while a block is in the cache.

    Returns:
        y like x, mean (C,), var (C,); the statistics in at least float32.
    """
    xp = array_module(x=x, weight=weight, bias=bias)
    if fused.takes(x, weight, bias):
        return fused.batch_norm_forward(x, weight, bias, eps, relu)
    wide = xp.promote_types(x.dtype, xp.float32)
    rows = x.reshape(x.shape[0], -1)
    y = xp.empty(rows.shape, x.dtype)
    mean, var = xp.empty(len(rows), wide), xp.empty(len(rows), wide)
    share = 1.0 / max(rows.shape[1], 1)

    def work(c: slice) -> None:
        block = rows[c]
        row_sum(block.astype(wide, copy=False), mean[c])
        mean[c] *= share
        centred = y[c] if y.dtype == wide else workspace(xp, "centred", block.shape, wide)
        xp.subtract(block, mean[c, None], out=centred)
        row_dot(centred, centred, var[c])
        var[c] *= share
        scale = 1.0 / xp.sqrt(var[c] + eps)
        centred *= (scale if weight is None else scale * weight[c])[:, None]
        if bias is not None:
            centred += bias[c, None]
        if relu:
            xp.clip(centred, 0.0, math.inf, out=centred)
        if y.dtype != wide:
            y[c] = centred

    for_rows(rows, work, passes=4)
    return y.reshape(x.shape), mean, var


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    eps: float,
    batch_statistics: bool = True,
    y: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Return (dx, dweight (C,), dbias (C,)).

    With `batch_statistics` the mean and variance are functions of x and have their part in dx; without, they are the
    constants of inference. If a ReLU was applied, y is the output, and dy counts only where y > 0.
    """
    xp = array_module(dy=dy, x=x, weight=weight)
    if fused.takes(dy, x, mean, var, weight, y):
        return fused.batch_norm_backward(dy, x, mean, var, weight, eps, batch_statistics, y)
    wide = xp.promote_types(mean.dtype, xp.float32)
    d_rows, rows = dy.reshape(dy.shape[0], -1), x.reshape(x.shape[0], -1)
    outputs = None if y is None else y.reshape(rows.shape)
    dx = xp.empty(rows.shape, dy.dtype)
    dweight, dbias = xp.empty(len(rows), wide), xp.empty(len(rows), wide)
    share = 1.0 / max(rows.shape[1], 1)

    def work(c: slice) -> None:
        d = d_rows[c].astype(wide, copy=False)
        if outputs is not None:
            d = xp.multiply(d, outputs[c] > 0, out=workspace(xp, "masked", d.shape, wide))
        centred = xp.subtract(rows[c], mean[c, None], out=workspace(xp, "centred", d.shape, wide))
        rstd = 1.0 / xp.sqrt(var[c] + eps)
        row_sum(d, dbias[c])
        row_dot(d, centred, dweight[c])
        dweight[c] *= rstd
        scale = rstd if weight is None else rstd * weight[c]
        if not batch_statistics:
            dx[c] = d * scale[:, None]
            return
        centred *= (dweight[c] * scale * rstd * -share)[:, None]
        result = dx[c] if dx.dtype == wide else workspace(xp, "gradient", d.shape, wide)
        xp.multiply(d, scale[:, None], out=result)
        result -= (dbias[c] * scale * share)[:, None]
        result += centred
        if dx.dtype != wide:
            dx[c] = result

    for_rows(rows, work, passes=4)
    return dx.reshape(x.shape), dweight, dbias


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    relu: bool = False,
) -> Array:
    """Normalise by fixed statistics, mean (C,) and var (C,); with `relu` return max(y, 0)."""
    xp = array_module(x=x, mean=mean, weight=weight)
    if fused.takes(x):
        return fused.batch_norm_inference(x, mean, var, weight, bias, eps, relu)
    scale = 1.0 / xp.sqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    rows = x.reshape(x.shape[0], -1)
    y = xp.empty(rows.shape, x.dtype)

    def work(c: slice) -> None:
        wide = xp.multiply(rows[c], scale[c, None], out=y[c] if y.dtype == scale.dtype else None)
        wide += shift[c, None]
        if relu:
            xp.clip(wide, 0.0, math.inf, out=wide)
        if y.dtype != scale.dtype:
            y[c] = wide

    for_rows(rows, work, passes=4)
    return y.reshape(x.shape)


def batch_norm_frozen_backward(
    dy: Array, var: Array, weight: Array | None, eps: float, y: Array | None = None
) -> Array:
    """Return dx where nothing is learned and the statistics are constants: dy, scaled as x was (y: see above)."""
    dy = dy if y is None else relu_backward(dy, y)
    return batch_norm_inference(dy, array_module(var).zeros_like(var), var, weight, None, eps)


def update_statistics(
    running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, count: int
) -> None:
    """running += momentum * (batch - running) in place, for a mean and a variance (C,) of `count` numbers each.

    The running variance is the unbiased one.
    """
    correction = count / (count - 1)
    if fused.takes(running_mean):
        fused.update_statistics(running_mean, running_var, mean, var, momentum, correction)
        return
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (correction * var - running_var)


def _window_sum(values: Array, before: int, after: int) -> Array:
    """Return for each channel c the sum of channels c - before to c + after that exist."""
    xp = array_module(values)
    channels = values.shape[0]
    total = xp.zeros_like(values)
    for shift in range(-before, after + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        if low < high:
            total[low:high] += values[low + shift : high + shift]
    return total


def local_response_norm_forward(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Return y = x / scale**beta and scale = k + alpha / size * (sum of x**2 over `size` channels around).

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep CNNs" (2012), section 3.3; alpha is
    divided by the window size, as frameworks do.
    """
    xp = array_module(x)
    scale = _window_sum(xp.square(x, dtype=xp.promote_types(x.dtype, xp.float32)), size // 2, (size - 1) // 2)
    scale *= alpha / size
    scale += k
    return (x * scale**-beta).astype(x.dtype, copy=False), scale


def local_response_norm_backward(
    dy: Array, x: Array, y: Array, scale: Array, size: int, alpha: float, beta: float
) -> Array:
    """Return dx."""
    array_module(dy=dy, x=x)
    dx = dy * scale**-beta
    # y of channel c depends on x of c - before .. c + after, so x of c on dy of c - after .. c + before
    dx -= x * _window_sum(dy * y / scale, (size - 1) // 2, size // 2) * (2.0 * alpha * beta / size)
    return dx.astype(dy.dtype, copy=False)
