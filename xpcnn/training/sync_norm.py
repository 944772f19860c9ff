"""Batch norm over the images of all processes of a parallel training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ..backend import Array, array_module, for_rows, row_dot, row_sum
from ..errors import ArgumentError
from ..functional.norm import batch_norm_backward, batch_norm_inference, update_statistics
from ..layers import BatchNorm1d, BatchNorm2d, Layer, Step
from ..layers.base import Buffer, Train

if TYPE_CHECKING:
    from .parallel import Exchange

__all__ = ["SyncBatchNorm", "synchronised"]


def synchronised(net: Layer, exchange: Exchange) -> Layer:
    """Return a network of the same layers, whose batch norms use the statistics of all ranks.

    Raises:
        ArgumentError: if another layer keeps running statistics: what it does with them is not known here.
    """
    made: dict[int, Layer] = {}

    def twin(layer: Layer) -> Layer:
        if id(layer) not in made:
            if type(layer) in (BatchNorm1d, BatchNorm2d):
                made[id(layer)] = SyncBatchNorm(layer, exchange)
                return made[id(layer)]
            if any(isinstance(value, Buffer) for value in vars(layer).values()):
                raise ArgumentError(
                    "sync_batch_norm=True is for BatchNorm1d and BatchNorm2d; the network has a "
                    f"{type(layer).__name__} with running statistics. Use sync_batch_norm=False, and 16 images or "
                    "more to a rank."
                )
            made[id(layer)] = copy.copy(layer)
            vars(made[id(layer)]).update({name: twin(child) for name, child in layer.children()})
        return made[id(layer)]

    return twin(net)


class SyncBatchNorm(Layer):
    """A batch norm that takes mean and variance over the images of all ranks; forward and backward both talk.

    The gradient is that of one process with the whole batch.

    Args:
        norm: the layer whose parameters and running statistics are used.
        exchange: knows the ranks, and how many images there are.
    """

    applies_relu = True

    def __init__(self, norm: Layer, exchange: Exchange) -> None:
        self.norm: Any = norm
        self.exchange = exchange

    def forward(self, x: Array, train: Train, relu: bool = False) -> tuple[Array, Any]:
        """See Layer."""
        norm, step = self.norm, Step.of(train)
        if step is None or step.inference or norm.is_frozen:
            y, ctx = norm.forward(x, step or False, relu)
            return y, ctx
        here, everywhere = self.exchange.images
        count = everywhere * (x.size // (x.shape[0] * x.shape[-1]))
        if count < 2:
            raise ArgumentError(
                f"{type(norm).__name__} needs more than one value per channel in training; all ranks together have "
                f"{count}. Use a larger batch, or drop_last=True if it is the last one of an epoch."
            )
        xp = array_module(x)
        wide = xp.promote_types(x.dtype, xp.float32)
        rows = x.reshape(x.shape[0], -1)
        mean, var = xp.empty(len(rows), wide), xp.empty(len(rows), wide)

        def add(c: slice) -> None:
            row_sum(rows[c].astype(wide, copy=False), mean[c])

        def add_squares(c: slice) -> None:
            centred = rows[c] - mean[c, None]
            row_dot(centred, centred, var[c])

        for statistic, work in ((mean, add), (var, add_squares)):
            for_rows(rows, work, passes=2)
            if not here:
                statistic[...] = 0.0
            self.exchange.ranks.sum(statistic)
            statistic /= float(count)
        weight, bias = (None if p is None else p.data for p in (norm.weight, norm.bias))
        y = batch_norm_inference(x, mean, var, weight, bias, norm.eps, relu)
        if not step.recompute:
            update_statistics(norm.running_mean.data, norm.running_var.data, mean, var, norm.momentum, count)
        return y, _Together(x, mean, var, y if relu else None, here, count)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        """See Layer."""
        norm = self.norm
        if not isinstance(ctx, _Together):
            dx: Array | None = norm.backward(dy, ctx, need_dx)
            return dx
        xp, weight = array_module(dy), None if norm.weight is None else norm.weight.data
        dx, dweight, dbias = batch_norm_backward(dy, ctx.x, ctx.mean, ctx.var, weight, norm.eps, False, ctx.y)
        if norm.weight is not None:
            norm.weight.accumulate(dweight)
            norm.bias.accumulate(dbias)
        if not need_dx:
            return None
        sums = xp.stack([dweight, dbias])
        self.exchange.ranks.sum(sums)
        if not ctx.here:  # its image is in nobody's mean
            return dx
        rstd = 1.0 / xp.sqrt(ctx.var + norm.eps)
        scale = (rstd if weight is None else rstd * weight) * (1.0 / ctx.count)
        slope, shift = sums[0] * rstd * scale, sums[1] * scale
        d_rows, rows = dx.reshape(dx.shape[0], -1), ctx.x.reshape(dx.shape[0], -1)

        def work(c: slice) -> None:
            part = rows[c] - ctx.mean[c, None]
            part *= slope[c, None]
            part += shift[c, None]
            d_rows[c] -= part

        for_rows(d_rows, work, passes=4)
        return dx


class _Together:
    """What a synchronised batch norm keeps for backward."""

    def __init__(self, x: Array, mean: Array, var: Array, y: Array | None, here: int, count: int) -> None:
        self.x = x
        self.mean = mean
        self.var = var
        self.y = y  # if a ReLU was applied
        self.here = here
        self.count = count
