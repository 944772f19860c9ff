"""Networks that only predict: `net.for_inference()`.

*Folding* leaves out what prediction does not need: batch norm behind a convolution or dense layer becomes part of its
weight and bias; dropout, side classifiers, recomputation and identities go. What is left is an ordinary network, and on
the CPU it runs by a *plan* (see `xpcnn.plan`): memory and views made once for an input shape, and a list of calls.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(2018), section 3.2, for the folding.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from . import backend
from .backend import Array, Device, for_chunks, single_threaded_blas, spans
from .errors import ArgumentError
from .layers import (
    AuxiliaryHead,
    BatchNorm1d,
    BatchNorm2d,
    Buffer,
    Builder,
    Conv2d,
    Dense,
    Dropout,
    Identity,
    Layer,
    Parameter,
    Recompute,
    Sequential,
    Step,
    register,
)
from .layers.base import Shape, Train, built
from .layers.containers import as_written
from .plan import Plan, of_layer, scale_and_shift

__all__ = ["Inference", "fixed", "fold", "for_inference", "scale_and_shift", "scaled"]

LARGEST = 1 << 26  # bytes of the largest activation of a plan: more images go through it in turns
SMALL = 1 << 18  # bytes of all images' largest activation that are not worth two threads
KEPT = 1 << 27  # bytes of plans that nobody is using
FINAL = (
    "this network was made by for_inference() and cannot be trained: its batch norm is part of its convolutions. Train "
    "the network it was made from, then call for_inference() again."
)

_lending = threading.Lock()


def for_inference(net: Layer) -> Inference:
    """Return a network for prediction with the outputs of `net`, to rounding. See `Layer.for_inference`."""
    if not net.state_dict() and net.input_shape is None:
        raise ArgumentError("the network has not been built: call net.build(input_shape), or train it, first.")
    result = Inference(fold(net))
    result.input_shape = net.input_shape
    return result


# --- folding ----------------------------------------------------------------------------------------------------


def fold(layer: Layer, done: dict[Any, Layer] | None = None) -> Layer:
    """Return a layer with the outputs that this one has at prediction.

    It is a new object; its arrays are those of the old one, but for weights that batch norm became part of. A layer
    class that knows better defines `folded()`, which returns the layer to use.

    Args:
        layer: any layer; containers of the user's own are made anew around their folded children.
        done: what has been folded already: a layer used twice stays one.
    """
    done = {} if done is None else done
    if isinstance(layer, (Recompute, Inference)):
        return fold(layer.body, done)
    if isinstance(layer, (Dropout, AuxiliaryHead)):
        return Identity()
    if id(layer) not in done:
        own = getattr(type(layer), "folded", None)
        result = done[id(layer)] = own(layer) if own else _twin(layer)
        for name, child in list(layer.children()):
            vars(result)[name] = fold(child, done)
        if type(layer) is Sequential:
            _fold_chain(layer, result, done)
    return done[id(layer)]


def _fold_chain(layer: Layer, result: Layer, done: dict[Any, Layer]) -> None:
    """In a Sequential: drop identities, and fold each batch norm that follows a convolution or dense layer."""
    old, new = dict(layer.children()), dict(result.children())
    chain = [name for name, child in new.items() if type(child) is not Identity]
    gone = new.keys() - chain
    for before, name in pairwise(chain):
        if type(new[before]) in (Conv2d, Dense) and isinstance(new[name], (BatchNorm1d, BatchNorm2d)):
            pair = id(old[before]), id(old[name])
            if pair not in done:
                done[pair] = _with_norm(new[before], new[name])
            vars(result)[before] = done[pair]
            gone.add(name)
    for name in gone:
        delattr(result, name)


def _twin(layer: Layer) -> Layer:
    """Return the layer once more, with parameters of its own that share its arrays and are not trained."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Parameter):
            vars(twin)[name] = fixed(value.data)
        elif isinstance(value, Buffer):
            vars(twin)[name] = Buffer(value.data)
    return twin


def fixed(data: Array) -> Parameter:
    """Return a parameter that is not trained, with no memory for a gradient."""
    xp = backend.array_module(data)
    parameter = Parameter(data[:0])
    parameter.data, parameter.trainable = data, False
    parameter.grad = xp.broadcast_to(xp.zeros((), data.dtype), data.shape)
    return parameter


def _with_norm(layer: Any, norm: Any) -> Layer:
    """Return a convolution or dense layer that does the work of the batch norm behind it."""
    result, bias = copy.copy(layer), layer.bias.data if isinstance(layer.bias, Parameter) else None
    weight, bias = scaled(built(layer.weight, layer), bias, *of_layer(norm))
    result.weight, result.bias = fixed(weight), fixed(bias)
    return result  # type: ignore[no-any-return]


def scaled(weight: Array, bias: Array | None, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Return weight (O, ...) and bias (O,) for outputs times `scale` (O,) plus `shift` (O,)."""
    both = shift if bias is None else bias * scale + shift
    return (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(weight.dtype), both.astype(weight.dtype)


# --- the network ------------------------------------------------------------------------------------------------


@register
class Inference(Layer):
    """A folded network, `body`, that runs by plans on the CPU; `net.for_inference()` makes it. It cannot be trained.

    Several threads may predict with it at once: each call has a plan of its own meanwhile. Each of our threads takes
    its share of the images; those of a single image share the layers that take long.
    """

    def __init__(self, body: Layer) -> None:
        self._body = body
        self._forget()

    @property
    def body(self) -> Layer:
        """The folded network; it adds nothing to the names."""
        return self._body

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        """See `Layer.setup`."""
        return new.child("_body", self._body, input_shape)

    def __call__(self, x: Array) -> Array:
        """Return the outputs (N, ...) for inputs (N, ...), cast to the network's dtype."""
        x = backend.as_array(x)
        if not (self._plans_for(x) and x.ndim and len(x)):
            return super().__call__(x)
        return np.moveaxis(self._predict(np.moveaxis(x, 0, -1)), -1, 0)

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        """See `Layer.forward`. `train` is False, or a step with `inference` (Grad-CAM).

        Raises:
            ArgumentError: for a training step.
        """
        step = Step.of(train)
        if step is not None and not step.inference:
            raise ArgumentError(FINAL)
        if step is None and self._plans_for(x) and x.dtype == self.dtype and x.shape[-1]:
            return self._predict(x), None
        with single_threaded_blas():
            return self._body.forward(x, step or False)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        """See `Layer.backward`."""
        return self._body.backward(dy, ctx, need_dx)

    @property
    def device(self) -> Device:
        """Where the parameters are."""
        return self._facts()[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._facts()[1]

    def load_state_dict(self, *args: Any, **options: Any) -> None:
        """See `Layer.load_state_dict`."""
        super().load_state_dict(*args, **options)
        self._forget()

    def to(self, *args: Any, **options: Any) -> Layer:
        """See `Layer.to`."""
        super().to(*args, **options)
        self._forget()
        return self

    def _set_trainable(self, pattern: str, trainable: bool) -> None:
        if trainable:
            raise ArgumentError(FINAL)

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own plans."""
        return {"input_shape": self.input_shape, "_body": self._body}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    # --- plans --------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop everything that was made from weights which may have changed."""
        self._known: tuple[Device, np.dtype[Any], bool] | None = None
        self._sizes: dict[Shape, tuple[int, Shape]] = {}
        self._plans: OrderedDict[Any, list[Plan]] = OrderedDict()  # least recently used first
        self._packed: dict[int, np.ndarray] = {}  # transformed weights, shared by the plans

    def _facts(self) -> tuple[Device, np.dtype[Any], bool]:
        """Return device and dtype, and whether there are weights: what has none takes the dtype of its input."""
        if self._known is None:
            self._known = self._body.device, self._body.dtype, bool(self._body.state_dict())
        return self._known

    def _plans_for(self, x: Array) -> bool:
        """Whether there are plans for such an array: on the CPU, in float32 and float64, if nobody watches layers."""
        device, dtype, weights = self._facts()
        planned = weights and device.kind == "cpu" and dtype in (np.float32, np.float64)
        return isinstance(x, np.ndarray) and planned and not as_written.get()

    def _predict(self, x: np.ndarray) -> np.ndarray:
        """Return y (..., N), in memory of its own, for x (..., N)."""
        shape, count = x.shape[:-1], x.shape[-1]
        largest, output = self._size(shape)
        shares = 1 if count * largest < SMALL else min(backend.lanes(), count)
        lanes = backend.lanes() if shares == 1 else 1
        parts = spans(count, -(-count * largest // (shares * LARGEST)) * shares)
        y = np.empty((*output, count), self.dtype)

        def work(i: int) -> None:
            start, stop = parts[i]
            with self._plan(shape, stop - start, lanes) as plan:
                plan.run(x[..., start:stop], y[..., start:stop])

        with single_threaded_blas():
            for_chunks(len(parts), backend.INLINE_WORK if shares > 1 else 0, work)
        return y

    def _size(self, shape: Shape) -> tuple[int, Shape]:
        """Return the bytes of the largest activation of one image, and the shape of the output."""
        if shape not in self._sizes:
            self._body.setup(shape, Builder(0, self.dtype))  # raises where the network does not fit
            plan = Plan(self._body, (*shape, 1), self.dtype, 1, {})
            self._sizes[shape] = plan.largest, plan.output.shape[:-1]
        return self._sizes[shape]

    @contextmanager
    def _plan(self, shape: Shape, count: int, lanes: int) -> Iterator[Plan]:
        """Lend a plan for so many images that nobody else uses meanwhile."""
        key, plans = (shape, count, lanes), self._plans
        with _lending:
            free = plans.setdefault(key, [])
            plan = free.pop() if free else None
        plan = plan or Plan(self._body, (*shape, count), self.dtype, lanes, self._packed)
        yield plan
        with _lending:
            plans.setdefault(key, []).append(plan)
            plans.move_to_end(key)
            while len(plans) > 1 and sum(p.bytes for kept in plans.values() for p in kept) > KEPT:
                plans.popitem(last=False)
