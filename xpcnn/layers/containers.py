"""The containers that every network from LeNet to Inception v3 is built of, and one that saves memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from ..backend import Array
from ..errors import ArgumentError
from ..functional.merge import add, concatenate
from .activation import ReLU
from .base import Builder, Layer, Shape, Step, Train, register
from .dense import Identity
from .pool import MaxPool2d

__all__ = ["AuxiliaryHead", "Concat", "DenseConcat", "Recompute", "Residual", "Sequential"]


class _Container(Layer):
    """Children are attributes; positional ones are called 0, 1, ..."""

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        children = {str(i): layer for i, layer in enumerate(layers)} | named
        for name, layer in children.items():
            if not isinstance(layer, Layer):
                raise ArgumentError(
                    f"{type(self).__name__} expects layers; received {layer!r} of type {type(layer).__name__}."
                )
            if hasattr(type(self), name):
                raise ArgumentError(f"{type(self).__name__} cannot have a child named {name!r}: the name is taken.")
            setattr(self, name, layer)

    @classmethod
    def from_children(cls, **named: Layer) -> Layer:
        """Make the container from its children by name, as `config` describes them."""
        return cls(**named)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __repr__(self) -> str:
        lines = [f"{name}: {layer!r}".replace("\n", "\n  ") for name, layer in self.children()]
        return f"{type(self).__name__}({''.join(f'{chr(10)}  {line}' for line in lines)}\n)"


as_written = ContextVar("as_written", default=False)


def _arranged(layers: list[Layer]) -> Iterator[tuple[Layer, bool]]:
    """Yield (layer, whether it applies the ReLU after it) in the order in which they are computed.

    A ReLU before a max pooling comes after it instead: both are monotone, so outputs and gradients are the same, and
    there are fewer pixels left. A ReLU after a layer that can apply it is left to that layer. Inside
    `as_written.set(True)` everything is computed as it is written: then each layer can be watched.
    """
    if as_written.get():
        yield from ((layer, False) for layer in layers)
        return
    i = 0
    while i < len(layers):
        layer, following = layers[i], layers[i + 1 : i + 3]
        pools = len(following) == 2 and type(following[1]) is MaxPool2d
        if type(layer) is ReLU and following and type(following[0]) is MaxPool2d:
            yield following[0], False
            yield layer, False
            i += 2
        elif layer.applies_relu and following and type(following[0]) is ReLU and not pools:
            yield layer, True
            i += 2
        else:
            yield layer, False
            i += 1


@register
class Sequential(_Container):
    """Layers one after the other: `Sequential(Conv2d(8, 3), ReLU())`, or named: `Sequential(conv1=Conv2d(8, 3))`."""

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        for name, layer in self.children():
            input_shape = new.child(name, layer, input_shape)
        return input_shape

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        step = Step.of(train)
        complete = step is None or step.need_dx
        contexts: list[tuple[Layer, Any]] = []
        for layer, relu in _arranged([layer for _, layer in self.children()]):
            options = {"relu": True} if relu else {}
            x, ctx = layer.forward(x, step or False, **options)
            if step is not None and (step.need_dx or layer.has_trainable):
                contexts.append((layer, ctx))
                if not step.need_dx:  # what comes after the first layer that learns owes it a gradient
                    step = replace(step, need_dx=True)
        return x, None if step is None else (complete, contexts)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        complete, contexts = ctx
        if need_dx and not complete:
            raise ArgumentError(
                "backward cannot return dx: the forward pass ran with Step(need_dx=False) and kept nothing for it. "
                "Call backward(dy, ctx, need_dx=False), or forward with need_dx=True."
            )
        first = 0 if need_dx else next((i for i, (layer, _) in enumerate(contexts) if layer.has_trainable), None)
        if first is None:
            return None
        gradient: Array | None = dy
        for i in range(len(contexts) - 1, first - 1, -1):
            layer, inner = contexts[i]
            gradient = layer.backward(gradient, inner, need_dx or i > first)
        return gradient


@register
class Concat(_Container):
    """Branches side by side, their channels concatenated (inception)."""

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        shapes = [new.child(name, layer, input_shape) for name, layer in self.children()]
        if not shapes or any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise new.error("branches with equal height and width", f"output shapes {shapes}", "Adjust their padding.")
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        step: Train = Step.of(train) or False
        outputs, contexts = zip(*(layer.forward(x, step) for _, layer in self.children()), strict=True)
        return concatenate(outputs), ([len(y) for y in outputs], contexts) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        dx, start = None, 0
        for (_, layer), size, inner in zip(self.children(), *ctx, strict=True):
            part = layer.backward(dy[start : start + size], inner, need_dx)
            start += size
            dx = part if dx is None else add(dx, part)
        return dx


@register
class Residual(Layer):
    """y = activation(body(x) + shortcut(x)). He et al., "Deep Residual Learning for Image Recognition" (2016).

    Args:
        body: its layers add nothing to the names: `conv1.weight`, not `body.conv1.weight`.
        shortcut: None for the identity.
        activation: applied to the sum; None for none.
        shortcut_name: what the names of the shortcut begin with, "downsample" or "shortcut".
    """

    def __init__(
        self,
        body: Layer,
        shortcut: Layer | None = None,
        activation: Layer | None = None,
        shortcut_name: str = "downsample",
    ) -> None:
        if shortcut_name not in ("downsample", "shortcut"):
            raise ArgumentError(f'shortcut_name must be "downsample" or "shortcut"; received {shortcut_name!r}.')
        self._body = body
        self.shortcut_name = shortcut_name
        vars(self)[shortcut_name] = shortcut or Identity()
        self._activation = activation or Identity()

    @property
    def body(self) -> Layer:
        """The residual branch."""
        return self._body

    @property
    def shortcut(self) -> Layer:
        """The other branch."""
        other: Layer = vars(self)[self.shortcut_name]
        return other

    @property
    def activation(self) -> Layer:
        """What is applied to the sum."""
        return self._activation

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        shape = new.child("_body", self._body, input_shape)
        other = new.child(self.shortcut_name, self.shortcut, input_shape)
        if shape != other:
            raise new.error("body and shortcut of one shape", f"{shape} and {other}", "Give the shortcut a 1x1 Conv2d.")
        return new.child("_activation", self._activation, shape)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        step: Train = Step.of(train) or False
        body, body_ctx = self._body.forward(x, step)
        other, other_ctx = self.shortcut.forward(x, step)
        inner = replace(step, need_dx=True) if isinstance(step, Step) else False
        y, ctx = self._activation.forward(add(body, other), inner)
        return y, (body_ctx, other_ctx, ctx) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        body_ctx, other_ctx, activation_ctx = ctx
        dy = self._activation.backward(dy, activation_ctx)
        dx = self._body.backward(dy, body_ctx, need_dx)
        other = self.shortcut.backward(dy, other_ctx, need_dx)
        return add(dx, other) if dx is not None and other is not None else None


@register
class DenseConcat(Layer):
    """y = concatenation of x and body(x). Huang et al., "Densely Connected Convolutional Networks" (2017)."""

    def __init__(self, body: Layer) -> None:
        self._body = body

    @property
    def body(self) -> Layer:
        """What computes the new channels; it adds nothing to the names."""
        return self._body

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        shape = new.child("_body", self._body, input_shape)
        if shape[1:] != input_shape[1:]:
            raise new.error("a body that keeps height and width", f"{input_shape} to {shape}", "Adjust its padding.")
        return (input_shape[0] + shape[0], *shape[1:])

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        y, ctx = self._body.forward(x, train)
        return concatenate([x, y]), (len(x), ctx) if train else None

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        channels, inner = ctx
        dx = self._body.backward(dy[channels:], inner, need_dx)
        return add(dx, dy[:channels]) if dx is not None else None


@register
class Recompute(Layer):
    """Keeps only the input of its body; backward runs the body forward again. Less memory for one more forward.

    Dropout draws the same mask the second time, and running statistics are not updated again, so results are the
    same to the last bit. Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
    """

    def __init__(self, body: Layer) -> None:
        self._body = body

    @property
    def body(self) -> Layer:
        """What is computed again; it adds nothing to the names."""
        return self._body

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        if any(isinstance(layer, AuxiliaryHead) for _, layer in self.walk()):
            raise new.error("a body without AuxiliaryHead in Recompute", "one with it", "Put the head outside.")
        return new.child("_body", self._body, input_shape)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        step = Step.of(train)
        y, _ = self._body.forward(x, step or False)
        return y, None if step is None else (x, replace(step, recompute=True))

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        x, step = ctx
        _, inner = self._body.forward(x, step)
        return self._body.backward(dy, inner, need_dx)


@register
class AuxiliaryHead(Layer):
    """A side classifier that helps to train a deep trunk (Szegedy et al., "Going Deeper with Convolutions", 2015).

    In the trunk it is the identity. In training it also computes `head(x)`; the loop finds these logits by
    `auxiliaries(ctx)` and leaves the gradient of their loss there, which backward takes times `weight`.
    """

    def __init__(self, head: Layer, weight: float = 0.3) -> None:
        self._head = head
        self.weight = weight

    @property
    def head(self) -> Layer:
        """The side classifier; it adds nothing to the names."""
        return self._head

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        new.child("_head", self._head, input_shape)
        return input_shape

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        step = Step.of(train)
        if step is None or step.inference:
            return x, None if step is None else Auxiliary(None, None)
        logits, ctx = self._head.forward(x, step)
        return x, Auxiliary(logits, ctx)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        if ctx.gradient is None:
            return dy if need_dx else None
        side = self._head.backward(ctx.gradient * self.weight, ctx.head, need_dx)
        return add(dy, side) if side is not None else None


class Auxiliary:
    """What an auxiliary head leaves in the context of one forward pass: its logits, and room for their gradient."""

    def __init__(self, logits: Array | None, head: Any) -> None:
        self.logits = logits
        self.head = head
        self.gradient: Array | None = None


def auxiliaries(ctx: Any) -> list[Auxiliary]:
    """Return the auxiliary heads of a forward pass in order; set `.gradient` of each before net.backward.

    The gradient is that of the loss by the head's logits; the head's own `weight` is applied in backward.
    """
    if isinstance(ctx, Auxiliary):
        return [ctx] if ctx.logits is not None else []
    if isinstance(ctx, (list, tuple)):
        return [head for part in ctx for head in auxiliaries(part)]
    return []
