"""Watching a network work: what enters and leaves every leaf layer, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..backend import Array
from ..layers import Layer
from ..layers.containers import as_written

__all__ = ["Visit", "shadowed", "trace"]

Forward = Callable[..., tuple[Array, Any]]
Backward = Callable[..., Any]


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
def shadowed(net: Layer, watchers: Callable[[str, Layer], tuple[Forward, Backward]]) -> Iterator[None]:
    """Put watchers(path, layer) in place of `forward` and `backward` of every leaf while inside.

    Layers that are otherwise computed together, such as a convolution and its ReLU, are computed apart.
    """
    token = as_written.set(True)
    watched: list[Layer] = []
    try:
        for path, layer in net.leaves():
            forward, backward = watchers(path, layer)
            watched.append(layer)
            vars(layer).update(forward=forward, backward=backward)
        yield
    finally:
        as_written.reset(token)
        for layer in watched:
            vars(layer).pop("forward", None)
            vars(layer).pop("backward", None)


@contextmanager
def trace(net: Layer) -> Iterator[list[Visit]]:
    """Record every pass through the leaves of `net` while inside, in the order of the forward calls.

    A layer used twice is visited twice. The leaves' `forward` and `backward` are shadowed meanwhile, so trace a network
    that nobody else is using (a copy).
    """
    visits: list[Visit] = []
    with shadowed(net, lambda path, layer: _watchers(path, layer, visits)):
        yield visits


def _watchers(path: str, layer: Layer, visits: list[Visit]) -> tuple[Forward, Backward]:
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

    return watched_forward, watched_backward
