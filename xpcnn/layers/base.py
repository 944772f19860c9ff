"""What a layer is: the protocol, parameters, names, configuration and flat buffers.

A layer returns its output together with `ctx`, exactly what backward will need, and stores nothing of a call on
itself. A network is a layer too, so everything here works on both.
"""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from .. import backend, init
from ..backend import Array, Device, array_module, generator, to_numpy
from ..errors import ArgumentError, ShapeError, StateDictError

__all__ = [
    "Buffer",
    "Builder",
    "Layer",
    "Parameter",
    "Shape",
    "Step",
    "Train",
    "batch_last",
    "config",
    "from_config",
    "register",
]

Shape = tuple[int, ...]
T = TypeVar("T")
_fresh = itertools.count()
SHOWN = 20  # how many keys of a kind an error lists


@dataclass(frozen=True)
class Step:
    """One training step, as layers see it.

    Args:
        seed, number: the dropout masks are a function of these two (and of the layer).
        recompute: the same forward once more: same masks, and running statistics stay as they are.
        inference: behave as at prediction but keep what backward needs (Grad-CAM, saliency).
        need_dx: whether somebody will ask for the gradient of this layer's input; without it, leading layers
            that have no trainable parameter keep nothing.
    """

    seed: int = 0
    number: int = 0
    recompute: bool = False
    inference: bool = False
    need_dx: bool = True

    @staticmethod
    def of(train: Train) -> Step | None:
        """Return None for False, a fresh step for True, and a step as it is."""
        if isinstance(train, Step):
            return train
        return Step(number=next(_fresh)) if train else None


Train: TypeAlias = "bool | Step"


class Parameter:
    """An array that is trained, and its gradient. Both are views of the network's flat buffers after `build`."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self._grad = array_module(data).zeros_like(data)
        self.cleared = False  # whether what is in the gradient's memory does not count
        self.trainable = True
        self.owner: Flat | None = None

    @property
    def grad(self) -> Array:
        """The sum of the gradients since the last update; a cleared one becomes zeros when it is asked for."""
        if self.cleared:
            self._grad.fill(0)
            self.cleared = False
        return self._grad

    @grad.setter
    def grad(self, array: Array) -> None:
        self._grad, self.cleared = array, False

    @property
    def room(self) -> Array | None:
        """Where backward may compute its gradient, before it calls `accumulate` with that; None if there is one."""
        return self._grad if self.cleared else None

    def accumulate(self, gradient: Array | None) -> None:
        """Add a gradient, unless the parameter is frozen."""
        if gradient is None or not self.trainable:
            return
        first, self.cleared = self.cleared, False
        if first and gradient is self._grad:
            return

        def add(rows: slice) -> None:
            target = self._grad[rows]
            if first:
                target[...] = gradient[rows]
            else:
                target += gradient[rows]  # in place: CuPy would copy what it takes for an overlapping input

        backend.for_rows(self._grad, add, 3)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """Return a parameter with arrays of its own, in no flat buffer yet."""
        twin = memo[id(self)] = Parameter(self.data.copy())
        twin.grad[...] = self.grad
        twin.trainable = self.trainable
        return twin

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype}, trainable={self.trainable})"


class Buffer:
    """An array that belongs to the state of a layer but is not trained (running statistics)."""

    def __init__(self, data: Array) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Buffer(shape={self.data.shape}, dtype={self.data.dtype})"


@dataclass(frozen=True)
class Builder:
    """Makes the parameters of one layer; knows its path, so initial weights and errors can name it."""

    seed: int
    dtype: np.dtype[Any]
    path: str = ""

    def child(self, name: str, layer: Layer, input_shape: Shape) -> Shape:
        """Set up a child of the layer under its attribute name; return its output shape."""
        inner = replace(self, path=_join(self.path, name))
        if isinstance(layer, Layer):
            return layer.setup(input_shape, inner)
        raise ArgumentError(f"{inner.path}: expected a layer; received {layer!r}.")

    def parameter(
        self, layer: Layer, name: str, shape: Shape, how: init.InitLike, fan_in: int = 1, fan_out: int = 1
    ) -> None:
        """Give the layer a parameter of that attribute name, or check the shape of the one it has.

        Its values depend on (seed, path.name) alone.
        """
        present = getattr(layer, name, None)
        if isinstance(present, Parameter):
            self._check(name, present, shape)
            return
        rng = generator(self.seed, _join(self.path, name))
        values = init.get(how)(shape, fan_in, fan_out, rng)
        setattr(layer, name, Parameter(np.ascontiguousarray(values, dtype=self.dtype)))

    def buffer(self, layer: Layer, name: str, shape: Shape, value: float) -> None:
        """Give the layer a buffer full of `value`, or check the shape of the one it has."""
        present = getattr(layer, name, None)
        if isinstance(present, Buffer):
            self._check(name, present, shape)
        else:
            setattr(layer, name, Buffer(np.full(shape, value, self.dtype)))

    def _check(self, name: str, present: Parameter | Buffer, shape: Shape) -> None:
        if present.data.shape != shape:
            raise self.error(
                f"the input that fits its {name} of shape {present.data.shape}",
                f"one that needs shape {shape}",
                "A network is built once; make a new one for another input.",
            )

    def error(self, expected: str, received: object, hint: str = "") -> ShapeError:
        """Return a ShapeError that names the layer."""
        where = f"layer {self.path!r}" if self.path else "the network"
        return ShapeError(f"{where} expects {expected}; received {received}.{' ' + hint if hint else ''}")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Put the layer's path before a ShapeError raised inside."""
        try:
            yield
        except ShapeError as error:
            raise ShapeError(f"layer {self.path!r}: {error}" if self.path else str(error)) from None

    def image(self, kind: str, shape: Shape) -> tuple[int, int, int]:
        """Return the shape if it is that of an image, (C, H, W); raise if not."""
        if len(shape) != 3:
            raise self.error(
                f"an image of shape (C, H, W) for {kind}",
                f"shape {shape}",
                "Put it before Flatten, or drop Flatten.",
            )
        return shape


def _join(path: str, name: str) -> str:
    """Join names by dots; a name that starts with `_` adds nothing."""
    return path if name.startswith("_") else f"{path}.{name}" if path else name


def batch_last(x: Array) -> Array:
    """Turn (N, ...), of any array library, into contiguous (..., N), the layout inside networks."""
    x = backend.as_array(x)
    return array_module(x).ascontiguousarray(array_module(x).moveaxis(x, 0, -1))


def built(parameter: Parameter | Buffer | bool | None, layer: Layer, x: Array | None = None) -> Array:
    """Return the parameter's array; raise if the layer has not been built, or x is of another dtype.

    Where x is float16 and the parameter float32, which is mixed precision, it is a copy in float16.
    """
    if not isinstance(parameter, (Parameter, Buffer)):
        raise ShapeError(f"{layer!r} has no parameters yet: call net.build(input_shape) on the network first.")
    if x is not None and x.dtype != parameter.data.dtype:
        if (x.dtype, parameter.data.dtype) == (np.float16, np.float32):
            return parameter.data.astype(np.float16)
        raise ShapeError(
            f"{layer!r} has parameters of dtype {parameter.data.dtype} and received an input of dtype {x.dtype}. "
            f'Cast the input with x.astype("{parameter.data.dtype}"), or the network with net.to(dtype="{x.dtype}").'
        )
    return parameter.data


class Layer:
    """Base class. A layer defines `setup`, `forward`, `backward`, and `macs` if it multiplies."""

    input_shape: Shape | None = None  # what the network was built for
    applies_relu = False  # whether forward takes relu=True, which does the work of a ReLU that follows

    # --- what a layer's author writes ---------------------------------------------------------------------------

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        """Check the input shape (without N), make parameters by `new` unless they exist, return the output shape."""
        return input_shape

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        """Return (y, ctx); ctx is all that backward needs, None when train is False. x and y are batch-last."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        """Add to the gradients of the parameters; return the gradient for x, or None if it is not needed."""
        raise TypeError(f"{type(self).__name__} does not define backward")

    def macs(self, input_shape: Shape, output_shape: Shape) -> int:
        """Return how many multiply-accumulate operations one image takes."""
        return 0

    # --- what people call ---------------------------------------------------------------------------------------

    def build(self, input_shape: Shape, seed: int = 0, dtype: str = "float32", device: str | Device = "cpu") -> Shape:
        """Make all parameters for inputs (C, H, W) or (D,), once; return the output shape.

        Calling it again checks that the layers fit the shape and keeps the parameters.

        Raises:
            ShapeError: if a layer does not fit its input; the message names the layer.
        """
        shape = tuple(input_shape)
        if not shape or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
            raise ShapeError(f"build expects a shape such as (C, H, W) of positive ints; received {input_shape!r}.")
        kind = np.dtype(dtype)
        if kind.name not in ("float16", "float32", "float64"):
            raise ArgumentError(f"dtype must be float16, float32 or float64; received {dtype!r}.")
        built = bool(self._state())
        place, kind = (self.device, self.dtype) if built else (Device(device), kind)
        output = self.setup(tuple(int(n) for n in shape), Builder(seed, kind))
        self.input_shape = tuple(int(n) for n in shape)
        self.to(place)
        return output

    def __call__(self, x: Array) -> Array:
        """Return the outputs (N, ...) for inputs (N, ...), cast to the network's dtype, in inference mode."""
        x = batch_last(x)
        dtype = next((entry.data.dtype for _, entry in self._entries()), x.dtype if x.dtype.kind == "f" else "float32")
        with backend.single_threaded_blas():
            y, _ = self.forward(x.astype(dtype, copy=False), False)
        return array_module(y).moveaxis(y, -1, 0)

    def for_inference(self) -> Layer:
        """Return a new network for prediction: the same outputs, to rounding, in less time. It cannot be trained.

        Batch norm is folded into the weights before it, dropout and side classifiers go, and on the CPU memory is laid
        out before the first call. Weights that do not change are shared with this network: after it has been trained
        further, call it again.

        Raises:
            ArgumentError: if the network has not been built.
        """
        from ..inference import for_inference  # which knows all layers

        return for_inference(self)

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield (attribute name, layer) of the direct children, in order."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value

    def walk(self, path: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield (path, layer) of this layer and all below it, each object once, parents first."""
        seen: set[int] = set()
        stack: list[tuple[str, Layer]] = [(path, self)]
        while stack:
            where, layer = stack.pop()
            if id(layer) not in seen:
                seen.add(id(layer))
                yield where, layer
                stack.extend((_join(where, name), child) for name, child in reversed(list(layer.children())))

    def leaves(self) -> list[tuple[str, Layer]]:
        """Return (path, layer) of the layers that have no children."""
        return [(path, layer) for path, layer in self.walk() if not any(True for _ in layer.children())]

    def __getitem__(self, path: str | int) -> Layer:
        """Return the layer at a path such as "features.0"."""
        for where, layer in self.walk():
            if where == str(path) and layer is not self:
                return layer
        known = ", ".join(where for where, _ in self.walk() if where)
        raise ArgumentError(f"no layer at {str(path)!r}; known paths: {known}.")

    def replace(self, path: str | int, layer: Layer) -> None:
        """Put another layer in the place of the one at a path: `net.replace("fc", Dense(5))`.

        In a network that has been built, the next `build` (or `Classifier.fit`) makes the parameters of the new layer
        from its seed; all others stay as they are.

        Raises:
            ArgumentError: if there is no layer at that path, or the new one is none.
        """
        if not isinstance(layer, Layer):
            raise ArgumentError(f"replace expects a layer such as Dense(5); received {layer!r}.")
        old = self[path]
        for parent in [parent for _, parent in self.walk()]:
            for name, child in list(parent.children()):
                if child is old:
                    vars(parent)[name] = layer

    def _state(self) -> dict[str, Parameter | Buffer]:
        """All parameters and buffers by name."""
        state: dict[str, Parameter | Buffer] = {}
        for name, value in self._entries():
            if name in state:
                raise ArgumentError(
                    f"two parameters are called {name!r}: give one of the layers a name that does not begin "
                    "with '_', for example Concat(left=..., right=...)."
                )
            state[name] = value
        return state

    def _entries(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        for path, layer in self.walk():
            for attribute, value in vars(layer).items():
                if isinstance(value, (Parameter, Buffer)):
                    yield _join(path, attribute), value

    def parameters(self) -> dict[str, Parameter]:
        """Return all parameters by name, frozen ones too, in the order of the layers."""
        return {name: value for name, value in self._state().items() if isinstance(value, Parameter)}

    @property
    def has_trainable(self) -> bool:
        """Whether anything in here is trained: where not, backward need not come by."""
        return any(parameter.trainable for parameter in self._all_parameters())

    @property
    def gives_probabilities(self) -> bool:
        """Whether the outputs are those of a softmax: that is the last layer's to say."""
        last = self.leaves()[-1][1]
        return last is not self and last.gives_probabilities

    @property
    def device(self) -> Device:
        """Where the parameters are ("cpu" for a network without any)."""
        return next((backend.device_of(entry.data) for _, entry in self._entries()), Device("cpu"))

    @property
    def xp(self) -> ModuleType:
        """The array module of the parameters."""
        return self.device.xp

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters (float32 for a network without any)."""
        return next((entry.data.dtype for _, entry in self._entries()), np.dtype(np.float32))

    def to(self, device: str | Device | None = None, dtype: str | None = None) -> Layer:
        """Move the network to a device and/or change its dtype; returns the network."""
        place = self.device if device is None else Device(device)
        for entry in self._state().values():
            kind = entry.data.dtype if dtype is None else np.dtype(dtype)
            if backend.device_of(entry.data) == place and entry.data.dtype == kind:
                continue
            entry.data = backend.to_device(entry.data, place).astype(kind)
            if isinstance(entry, Parameter):
                entry.grad = backend.to_device(entry.grad, place).astype(kind)
                entry.owner = None
        self.flat()
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters and buffers by name: the arrays themselves, not copies."""
        return {name: entry.data for name, entry in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True, strip_prefix: str = "") -> None:
        """Copy arrays into the network. Nothing is changed unless everything fits.

        `num_batches_tracked` of torch's batch norm is ignored, and DenseNet's first spelling, `norm.1.weight` for
        `norm1.weight`, accepted.

        Args:
            state: name -> array; arrays are cast and moved to the network's dtype and device.
            strict: False allows missing and unexpected keys, though not that no key fits.
            strip_prefix: what to take off the front of the keys that begin with it, such as "module.".

        Raises:
            StateDictError: listing missing, unexpected and mis-shaped keys.
        """
        own = self._state()
        if not own:
            raise StateDictError("the network has no parameters yet; call net.build(input_shape) first.")
        given: dict[str, Array] = {}
        faults = []
        for key, array in state.items():
            name = key.removeprefix(strip_prefix)
            older = re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name)
            name = older if name not in own and older in own else name
            if name in given:
                faults.append(f"{name} comes twice")
            if not name.endswith("num_batches_tracked"):
                given[name] = array
        fitting = own.keys() & given.keys()
        if strict or not fitting:
            for what, names in (("missing", own.keys() - fitting), ("unexpected", given.keys() - fitting)):
                some = sorted(names)[:SHOWN] + [f"and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
                faults += [f"{what}: {', '.join(some)}"] if names else []
        for name in fitting:
            if tuple(given[name].shape) != own[name].data.shape:
                faults.append(f"{name} has shape {tuple(given[name].shape)}, expected {own[name].data.shape}")
        if faults:
            first = next(iter(given), "")
            prefixes = (first[: i + 1] for i, letter in enumerate(first) if letter == ".")
            shared = (p for p in prefixes if all(k.startswith(p) for k in given))
            prefix = next((p for p in shared if any(k.removeprefix(p) in own for k in given)), "")
            hint = f' All its keys begin with "{prefix}": try strip_prefix="{strip_prefix}{prefix}".' if prefix else ""
            raise StateDictError(f"the state dict does not fit the network: {'; '.join(sorted(faults))}.{hint}")
        for name in fitting:
            target = own[name].data
            target[...] = backend.to_device(np.asarray(to_numpy(given[name]), dtype=target.dtype), self.device)

    def matching(self, pattern: str) -> dict[str, Parameter]:
        """Return the parameters whose name matches (fnmatch, "*.bias"), or whose path begins so ("features.0").

        Raises:
            ArgumentError: if there is none.
        """
        known = self.parameters()
        found = {k: p for k, p in known.items() if fnmatch.fnmatchcase(k, pattern) or k.startswith(pattern + ".")}
        if not found:
            raise ArgumentError(f"no parameter matches {pattern!r}; known: {', '.join(known)}.")
        return found

    def freeze(self, pattern: str = "*") -> None:
        """Stop training the parameters that `matching` finds. Frozen batch norm behaves as at prediction."""
        self._set_trainable(pattern, False)

    def unfreeze(self, pattern: str = "*") -> None:
        """Train the parameters that `matching` finds again."""
        self._set_trainable(pattern, True)

    def _set_trainable(self, pattern: str, trainable: bool) -> None:
        for parameter in self.matching(pattern).values():
            parameter.trainable = trainable
            if not trainable:
                parameter.grad.fill(0)

    def flat(self) -> Flat:
        """Return the flat buffers of this network, made (again) if its parameters are not all in one."""
        found = dict.fromkeys(self._all_parameters())
        owners = {p.owner for p in found}
        if len(owners) == 1 and (owner := owners.pop()) is not None and len(owner.parameters) == len(found):
            return owner
        return Flat(self.parameters())

    def _all_parameters(self) -> Iterator[Parameter]:
        """Yield every parameter, perhaps twice, in any order, without names: cheap enough to ask in every step."""
        below: list[Layer] = [self]
        for layer in below:
            for value in vars(layer).values():
                if isinstance(value, Parameter):
                    yield value
                elif isinstance(value, Layer):
                    below.append(value)

    def __repr__(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = argument(self, name)
            if parameter.default is inspect.Parameter.empty:
                parts.append(repr(value))
            elif value != parameter.default:
                parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def argument(layer: Layer, name: str) -> Any:
    """Return a constructor argument; where a parameter has taken the place of a flag (bias), the flag was True."""
    value = getattr(layer, name)
    return True if isinstance(value, Parameter) else value


class Flat:
    """All parameters of a network in one array, and all gradients in another; parameters become views of them."""

    def __init__(self, parameters: dict[str, Parameter]) -> None:
        self.parameters = parameters
        sizes = [p.data.size for p in parameters.values()]
        self.starts = list(itertools.accumulate(sizes, initial=0))
        first = next((p.data for p in parameters.values()), np.zeros(0, np.float32))
        xp = array_module(*(p.data for p in parameters.values()))
        with backend.device_of(first):
            self.data = xp.empty(self.starts[-1], first.dtype)
            self._grad = xp.zeros(self.starts[-1], first.dtype)
        for parameter, start, size in zip(parameters.values(), self.starts, sizes, strict=False):
            shape = parameter.data.shape
            view = self.data[start : start + size].reshape(shape)
            view[...] = parameter.data
            gradient = self._grad[start : start + size].reshape(shape)
            gradient[...] = parameter.grad
            parameter.data, parameter.grad, parameter.owner = view, gradient, self

    @property
    def grad(self) -> Array:
        """All gradients."""
        for parameter in self.parameters.values():
            _ = parameter.grad  # a cleared one becomes zeros
        return self._grad

    def clear(self) -> None:
        """Forget the gradients of what is trained."""
        for parameter in self.parameters.values():
            parameter.cleared = parameter.cleared or parameter.trainable

    def views(self, buffer: Array) -> dict[str, Array]:
        """Return views of another array of the same length by parameter name (an optimizer's state)."""
        return {
            name: buffer[start : start + p.data.size].reshape(p.data.shape)
            for (name, p), start in zip(self.parameters.items(), self.starts, strict=False)
        }

    def runs(self, terms: Callable[[str], T]) -> list[tuple[slice, T]]:
        """Return the contiguous runs of trainable parameters that have the same terms(name), with these."""
        result: list[tuple[slice, T]] = []
        for (name, p), start, stop in zip(self.parameters.items(), self.starts, self.starts[1:], strict=False):
            if p.trainable and start < stop:
                mine = terms(name)
                if result and result[-1][0].stop == start and result[-1][1] == mine:
                    start = result.pop()[0].start
                result.append((slice(start, stop), mine))
        return result


# --- configuration ----------------------------------------------------------------------------------------------

_CLASSES: dict[str, type[Layer]] = {}
L = TypeVar("L", bound=type[Layer])


def register(cls: L) -> L:
    """Class decorator: let files name this layer class. Only registered classes are ever made from a file."""
    if _CLASSES.get(cls.__name__, cls).__module__ != cls.__module__:
        raise ArgumentError(f"a layer class named {cls.__name__} is registered already.")
    _CLASSES[cls.__name__] = cls
    return cls


def config(layer: Layer) -> dict[str, Any]:
    """Describe a network as JSON-able data: class names and constructor arguments. A layer used twice stays one."""
    seen: dict[int, int] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Layer):
            if id(value) in seen:
                return {"again": seen[id(value)]}
            seen[id(value)] = len(seen)
            return {"layer": type(value).__name__, "arguments": arguments(value)}
        if isinstance(value, init.Initializer):
            return init.encode(value)
        if isinstance(value, (list, tuple)):
            return [encode(v) for v in value]
        if isinstance(value, float) and math.isinf(value):
            return str(value)
        return value

    def arguments(layer: Layer) -> dict[str, Any]:
        if type(layer).__name__ not in _CLASSES:
            raise ArgumentError(
                f"{type(layer).__name__} cannot be written to a file: decorate the class with xpcnn.register."
            )
        return {name: encode(value) for name, value in layer_arguments(layer).items()}

    return encode(layer)  # type: ignore[no-any-return]


def layer_arguments(layer: Layer) -> dict[str, Any]:
    """Return the constructor arguments of a layer: attributes of the same names; children by name for containers."""
    result: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(layer)).parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            result.update(layer.children())
        else:
            result[name] = argument(layer, name)
    return result


def from_config(data: Mapping[str, Any]) -> Layer:
    """Make the network that `config` described. Unknown classes and arguments are refused; nothing is executed.

    Raises:
        ArgumentError: if the data do not describe a network.
    """
    made: list[Layer | None] = []

    def decode(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "again" in value:
                number = value["again"]
                if not isinstance(number, int) or not 0 <= number < len(made) or made[number] is None:
                    raise ArgumentError(f"the architecture refers to layer {number!r}, which is not there.")
                return made[number]
            return layer(value) if "layer" in value else init.decode(value)
        if isinstance(value, list):
            return tuple(decode(v) for v in value)
        return float(value) if value in ("inf", "-inf") else value

    def layer(value: Mapping[str, Any]) -> Layer:
        name, arguments = value.get("layer"), value.get("arguments")
        if not isinstance(name, str) or name not in _CLASSES or not isinstance(arguments, Mapping):
            raise ArgumentError(f"the architecture names an unknown layer {name!r}; known are {', '.join(_CLASSES)}.")
        position = len(made)
        made.append(None)
        decoded = {str(k): decode(v) for k, v in arguments.items()}
        cls = _CLASSES[name]
        factory: Callable[..., Layer] = getattr(cls, "from_children", cls)
        try:
            result = factory(**decoded)
        except TypeError as error:
            raise ArgumentError(f"the architecture gives {name} arguments it does not take: {error}.") from error
        made[position] = result
        return result

    if not isinstance(data, Mapping) or "layer" not in data:
        raise ArgumentError("the architecture is not that of a network: expected an object with 'layer' in it.")
    return layer(data)
