"""Watching a network work: what enters and leaves every leaf layer, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..layers import Layer
from ..layers.containers import as_written

__all__ = ["Visit", "trace"]


@dataclass
class Visit:
    """One pass through one leaf: x -> y with its ctx, and later dy -> dx. Arrays are batch-last."""

    path: str
    layer: Layer
    x: Array
    y: Array
    ctx: Any
    dy: Array = None
    dx: Array = None


@contextmanager
def trace(net: Layer) -> Iterator[list[Visit]]:
    """Record every pass through the leaves of `net` while inside, in the order of the forward calls.

    A layer used twice is visited twice. The leaves' `forward` and `backward` are shadowed meanwhile, so trace a network
    that nobody else is using (a copy).
    """
    visits: list[Visit] = []
    token = as_written.set(True)
    watched: list[Layer] = []
    try:
        for path, layer in net.leaves():
            watched.append(layer)
            _watch(path, layer, visits)
        yield visits
    finally:
        as_written.reset(token)
        for layer in watched:
            vars(layer).pop("forward", None)
            vars(layer).pop("backward", None)


def _watch(path: str, layer: Layer, visits: list[Visit]) -> None:
    forward, backward = layer.forward, layer.backward

    def watched_forward(x: Array, train: Any) -> tuple[Array, Any]:
        y, ctx = forward(x, train)
        visits.append(Visit(path, layer, x, y, ctx))
        return y, ctx

    def watched_backward(dy: Array, ctx: Any, need_dx: bool = True) -> Array:
        dx = backward(dy, ctx, need_dx)
        for visit in reversed(visits):
            if visit.layer is layer and visit.ctx is ctx and visit.dy is None:
                visit.dy, visit.dx = dy, dx
                break
        return dx

    vars(layer).update(forward=watched_forward, backward=watched_backward)
