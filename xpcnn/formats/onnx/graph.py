"""A network as a graph of ONNX operators: a layer like any other, which runs, trains, and is saved with its weights."""

# ruff: noqa: D102 (setup, forward, backward and macs are described once, in Layer)
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ...backend import Array, array_module, key_of
from ...errors import ArgumentError, ShapeError, XpcnnError
from ...layers import Builder, Layer, Parameter, Step, register
from ...layers.base import Shape, Train
from .ops import OPS, Call, Op, inner, number, outer

__all__ = ["Graph", "Node", "constant"]

HOST_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
              "float16", "float32", "float64")  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operation: values go in and come out by name; "" is an optional one that is left out."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def row(self) -> Op:
        """What computes it."""
        return OPS[self.op]

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op})"

    def plain(self) -> tuple[Any, ...]:
        """Return the node as it stands in a configuration."""
        return self.op, self.name, self.inputs, self.outputs, tuple(self.attributes.items())


def constant(name: str, value: np.ndarray) -> tuple[Any, ...]:
    """Return a constant as it stands in a configuration: name, dtype, shape, elements."""
    flat = value.reshape(-1).tolist()  # JSON has no infinities
    elements = tuple(repr(v) if isinstance(v, float) and not math.isfinite(v) else v for v in flat)
    return name, value.dtype.name, tuple(value.shape), elements


def _array(dtype: str, shape: Sequence[int], elements: Sequence[Any]) -> np.ndarray:
    if dtype not in HOST_TYPES:
        raise ArgumentError(f"a graph has constants of the types {', '.join(HOST_TYPES)}; received {dtype!r}.")
    numbers = [float(v) if isinstance(v, str) else v for v in elements]
    return np.array(numbers, dtype).reshape(tuple(shape))


@register
class Graph(Layer):
    """A graph of ONNX operators between one image batch and one output; `xpcnn.formats.onnx.load` makes it.

    In training its batch normalisations and dropouts behave as the layers `BatchNorm2d` and `Dropout`, whatever mode
    the file says. The input has ONNX's axes without the batch, mostly (C, H, W).

    Args:
        inputs: names of the inputs; a network has one.
        outputs: names of the outputs; a network has one.
        nodes: (operator, name, inputs, outputs, ((attribute, value), ...)), each after those it depends on.
        constants: (name, dtype, shape, elements) of sizes, axes, indices and other numbers.
        trained: (name, shape) of the parameters.
        fixed: (name, shape) of the buffers: running statistics, and arrays that are not trained.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        nodes: Sequence[Any],
        constants: Sequence[Any] = (),
        trained: Sequence[Any] = (),
        fixed: Sequence[Any] = (),
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.nodes = tuple(nodes)
        self.constants = tuple(constants)
        try:
            self.trained = tuple((str(name), tuple(shape)) for name, shape in trained)
            self.fixed = tuple((str(name), tuple(shape)) for name, shape in fixed)
            self.parsed = [Node(op, name, tuple(i), tuple(o), dict(a)) for op, name, i, o, a in nodes]
            self.numbers = {name: _array(dtype, shape, elements) for name, dtype, shape, elements in constants}
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"this does not describe a graph ({error}); make one with formats.onnx.load.") from None
        self.output_shape: Shape = ()  # known once built
        self._path = ""
        self._macs = 0
        self._check()
        for name, _ in (*self.trained, *self.fixed):
            if not name or name.startswith("_") or hasattr(self, name):
                raise ArgumentError(f"a graph cannot have a parameter named {name!r}: the name is taken.")

    # --- what is known without an input -------------------------------------------------------------------------

    def _check(self) -> None:
        """Find out which values are host values and when each is used last; raise if the graph hangs together badly."""
        known = {*self.inputs, *(name for name, _ in (*self.trained, *self.fixed)), *self.numbers, ""}
        self._on_host = set(self.numbers)
        last: dict[str, int] = {}
        for i, node in enumerate(self.parsed):
            if node.op not in OPS:
                raise ArgumentError(f"{node} is of an unknown operator; known are {', '.join(sorted(OPS))}.")
            row = node.row
            missing = [name for name in node.inputs if name not in known]
            if missing:
                raise ArgumentError(f"{node} uses {missing[0]!r}, which no node before it makes.")
            data = [name for name in node.inputs[: 1 if node.op == "CastLike" else None] if name]
            if row.shape_only or all(name in self._on_host for name in data):
                self._on_host.update(node.outputs)
            for position in row.host:
                name = node.inputs[position] if position < len(node.inputs) else ""
                if name and name not in self._on_host:
                    raise ArgumentError(
                        f"{node} takes {name!r} from the data: its input {position} must follow from shapes and "
                        "constants alone."
                    )
            known.update(node.outputs)
            last.update(dict.fromkeys(node.inputs, i))
        lost = [name for name in self.outputs if name not in known]
        if lost:
            raise ArgumentError(f"no node makes the output {lost[0]!r}.")
        self._drop: list[list[str]] = [[] for _ in self.parsed]
        for name, i in last.items():
            if name not in self.outputs:
                self._drop[i].append(name)

    def _parameters_of(self, node: Node) -> list[Parameter]:
        found = (vars(self).get(name) for name in node.inputs)
        return [p for p in found if isinstance(p, Parameter)]

    def _needs(self, need_dx: bool) -> list[tuple[bool, ...]]:
        """Return for each node which of its inputs need a gradient."""
        alive = {name for name, p in self.parameters().items() if p.trainable}
        alive.update(self.inputs if need_dx else ())
        result = []
        for node in self.parsed:
            needs = tuple(name in alive for name in node.inputs)
            result.append(needs)
            if any(needs) and node.row.backward is not None:
                alive.update(node.outputs)
        return result

    @property
    def gives_probabilities(self) -> bool:
        """See Layer."""
        return [node.op for node in self.parsed if node.op not in ("Reshape", "Shape")][-1:] == ["Softmax"]

    def _check_ends(self) -> None:
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise ArgumentError(f"a network has one input and one output; {self!r} has {self.inputs}, {self.outputs}.")

    # --- the layer ----------------------------------------------------------------------------------------------

    def setup(self, input_shape: Shape, new: Builder) -> Shape:
        self._path = new.path
        for name, shape in self.trained:
            new.parameter(self, name, shape, "zeros")  # the numbers come from the file
        for name, shape in self.fixed:
            new.buffer(self, name, shape, 1.0)
        self._check_ends()
        x = self.xp.zeros((2, *input_shape), next((p.data.dtype for p in self._state().values()), new.dtype))
        macs: list[int] = []
        with new.naming(), np.errstate(all="ignore"):
            (y,), _ = self.run({self.inputs[0]: outer(inner(x).copy())}, None, macs)
        if y.ndim < 1 or y.shape[0] != 2:
            raise new.error(
                "a graph that keeps the batch axis", f"an output of shape {y.shape} for 2 images", "Export it with a "
                "dynamic batch axis."
            )  # fmt: skip
        self._macs = sum(macs) // 2
        self.output_shape = tuple(int(n) for n in y.shape[1:])
        return self.output_shape

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        self._check_ends()
        step = Step.of(train)
        (y,), tape = self.run({self.inputs[0]: outer(x)}, step)
        return inner(y), None if step is None else (tape, x.shape, step.need_dx)

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        tape, shape, complete = ctx
        if need_dx and not complete:
            raise ArgumentError(
                "backward cannot return dx: the forward pass ran with Step(need_dx=False) and kept nothing for it. "
                "Call backward(dy, ctx, need_dx=False), or forward with need_dx=True."
            )
        gradients = self.differentiate({self.outputs[0]: outer(dy)}, tape, need_dx)
        for name, parameter in self.parameters().items():
            parameter.accumulate(gradients.get(name))
        dx = gradients.get(self.inputs[0])
        if not need_dx:
            return None
        return array_module(dy).zeros(shape, dy.dtype) if dx is None else inner(dx)

    def macs(self, input_shape: Shape, output_shape: Shape) -> int:
        return self._macs

    def folded(self) -> Graph:
        """Return the graph as `for_inference` wants it."""
        from .fold import folded  # which makes graphs

        return folded(self)

    def __repr__(self) -> str:
        return f"Graph({len(self.parsed)} nodes, {len(self.trained)} parameters)"

    # --- running ------------------------------------------------------------------------------------------------

    def run(
        self, values: Mapping[str, Array], step: Step | None, macs: list[int] | None = None
    ) -> tuple[list[Array], list[Any]]:
        """Compute the outputs from all inputs by name, with the batch axis first.

        Returns:
            The outputs, and for each node that takes part in backward (call, what it kept), else None; empty at
            inference. Multiply-accumulates are appended to `macs`.
        """
        xp = array_module(*values.values())
        env: dict[str, Any] = {"": None, **self.numbers, **{n: e.data for n, e in self._state().items()}, **values}
        dtype = next((x.dtype for x in values.values() if x.dtype.kind == "f"), self.dtype)
        everything = self._needs(step.need_dx) if step is not None else [()] * len(self.parsed)
        tape: list[Any] = []
        for node, needs, drop in zip(self.parsed, everything, self._drop, strict=True):
            arguments = self._arguments(node, env, xp, dtype)
            parameters = self._parameters_of(node)
            call = Call(
                node.name,
                node.attributes,
                len(node.outputs),
                needs or (False,) * len(arguments),
                step,
                dtype,
                key_of(f"{self._path}.{node.name}".strip(".")) if node.op == "Dropout" else 0,
                not parameters or any(p.trainable for p in parameters),
            )
            try:
                result, kept = node.row.forward(call, *arguments)
            except ShapeError as error:
                raise ShapeError(f"{node}: {error}") from None
            except XpcnnError:
                raise
            except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
                shapes = ", ".join(str(getattr(a, "shape", a)) for a in arguments)
                raise ShapeError(f"{node} does not fit its inputs of shape {shapes}: {error}") from error
            results = result if isinstance(result, tuple) else (result,)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    env[name] = np.asarray(value) if isinstance(value, np.generic) else value  # NumPy's 0-d results
            if step is not None:
                tape.append((call, kept) if any(needs) and node.row.backward is not None else None)
            if macs is not None and node.op in ("Conv", "Gemm", "MatMul"):
                macs.append(_macs(node, arguments, results[0]))
            for name in drop:
                env.pop(name, None) if name else None
        return [env[name] for name in self.outputs], tape

    def _arguments(self, node: Node, env: Mapping[str, Any], xp: ModuleType, dtype: Any) -> list[Any]:
        """Return the inputs of a node; where data and host values meet, the latter follow the former."""
        arguments = [env[name] for name in node.inputs]
        row, host = node.row, self._on_host
        if row.shape_only or all(not name or name in host for name in node.inputs):
            return arguments
        rank = max((a.ndim for n, a in zip(node.inputs, arguments, strict=True) if n and n not in host), default=0)
        for i, (name, value) in enumerate(zip(node.inputs, arguments, strict=True)):
            if not name or name not in host or i in row.host or (node.op == "CastLike" and i == 0):
                continue
            if row.scalars and value.size == 1 and value.ndim <= rank:
                arguments[i] = number(value)
            else:
                arguments[i] = xp.asarray(value.astype(dtype) if value.dtype.kind == "f" else value)
        return arguments

    def differentiate(
        self, gradients: Mapping[str, Array], tape: Sequence[Any], need_dx: bool = True
    ) -> dict[str, Array]:
        """Return the gradients of inputs and trained parameters by name from those of the outputs."""
        found: dict[str, Array] = dict(gradients)
        for node, needs, entry in zip(
            reversed(self.parsed), reversed(self._needs(need_dx)), reversed(tape), strict=True
        ):
            incoming = [found.pop(name, None) if name else None for name in node.outputs]
            if entry is None or not any(needs) or all(dy is None for dy in incoming):
                continue
            call, kept = entry
            backward = node.row.backward
            assert backward is not None
            for name, need, gradient in zip(node.inputs, needs, backward(call, needs, kept, *incoming), strict=False):
                if need and gradient is not None:
                    old = found.get(name)
                    found[name] = gradient if old is None else outer(inner(old) + inner(gradient))
        return found


def _macs(node: Node, arguments: Sequence[Any], y: Any) -> int:
    """Return the multiply-accumulate operations of a convolution or product."""
    if node.op == "Conv":
        weight = arguments[1]
        return int(y.size * weight.size // weight.shape[0])
    a = arguments[0]
    return int(y.size * (a.shape[0] if node.attributes.get("transA") else a.shape[-1]))


def names_of(nodes: Iterable[Node]) -> str:
    """Return "Op ('node', 'node')" for each operator, for an error message."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(node.op, []).append(repr(node.name))
    return "; ".join(f"{op} (node {', '.join(names)})" for op, names in found.items())
