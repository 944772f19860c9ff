"""From an ONNX file to a `Graph`: checked, brought to the newest form of each operator, constants folded."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArgumentError, FileFormatError, MissingExtraError, XpcnnError
from ...layers import Buffer, Parameter
from .graph import Graph, Node, constant, names_of
from .ops import OPS, Call, ints, number

__all__ = ["load"]

OLDEST_OPSET = 6
MOST_BYTES = 1 << 31  # what a protobuf message can hold
MOST_ELEMENTS = 1 << 28  # in one value for one image: 1 GiB in float32
MOST_FOLDED = 1 << 20  # in all constants that are computed while reading, beyond four times what the file holds

# ONNX's numbers of the element types that NumPy has
TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
         10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}  # fmt: skip

# attributes that newer versions take as inputs, in their order after the first
MOVED = {
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
    "Split": ("split",),
    "Slice": ("starts", "ends", "axes"),
    "Pad": ("pads", "value"),
    "Clip": ("min", "max"),
    "Dropout": ("ratio",),
    **{name: ("axes",) for name in OPS if name.startswith("Reduce")},
}
BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


def onnx_package(purpose: str) -> Any:
    """Return the package onnx."""
    try:
        importlib.import_module("onnx.shape_inference")
        return importlib.import_module("onnx")
    except ImportError:
        raise MissingExtraError("onnx", "onnx", purpose) from None


def load(path: str | os.PathLike[str], logits: bool = False, output: str | None = None) -> Graph:
    """Read an image classifier from an ONNX file; it can be used, trained, taken apart and saved like any network.

    Operators of opset 6 and newer are read. Weights of convolutions, products and normalisations are trained, and so
    are arrays that are added to or multiplied with what comes after them; other arrays are buffers. Parameters keep
    their names as far as possible. The batch axis is free even if the file fixes it.

    Args:
        path: the file.
        logits: leave out a Softmax at the end, because a `Classifier` and its loss apply one themselves.
        output: end with this value, or with the node of this name, instead of the graph's first output: to put another
            head on it, `Sequential(load(path, output="..."), Dense(5))`.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if the file is broken, keeps its weights elsewhere, is no graph from one input to one output,
            or asks for operators or types that are not known here, all of which are named.
        MissingExtraError: if the package onnx is not installed.
    """
    onnx = onnx_package("reading ONNX files")
    name = os.fspath(path)
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise FileFormatError(f"{name} has {size:,} bytes; an ONNX file has at most {MOST_BYTES:,}.")
    content = Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises its own
        raise FileFormatError(
            f"{name} is not a whole ONNX file ({error}). It may be truncated: copy it again."
        ) from None
    try:
        return network(onnx, model, logits, output)
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from None
    except (ArgumentError, MemoryError) as error:
        raise FileFormatError(f"{name} cannot be read: {error}") from None


def network(onnx: Any, model: Any, logits: bool, output: str | None) -> Graph:
    """Return the network that a classifier's model describes."""
    graph = read(onnx, model, network_only=True, logits=logits, output=output)
    shape = [d.dim_value for d in _inputs(model)[0].type.tensor_type.shape.dim][1:]
    if shape and all(n > 0 for n in shape):
        graph.input_shape = tuple(int(n) for n in shape)
    return graph


def read(onnx: Any, model: Any, network_only: bool = False, logits: bool = False, output: str | None = None) -> Graph:
    """Return the graph of a model.

    Args:
        onnx: the package.
        model: a ModelProto.
        network_only: make it a network: one input, one output, free batch axis; whether normalisation and dropout are
            in training is then for the caller of the network to say, not for the file.
        logits: leave out a last Softmax.
        output: the value or node to end with.
    """
    _check(onnx, model)
    reader = _Reader(onnx, model)
    inputs, outputs = [i.name for i in _inputs(model)], [o.name for o in model.graph.output]
    if network_only:
        if len(inputs) != 1:
            raise FileFormatError(f"a classifier has one input; this graph has {len(inputs)}: {', '.join(inputs)}.")
        outputs = outputs[:1] if output is None else [reader.value(output)]
        if logits:
            outputs = [reader.before_softmax(outputs[0])]
    reader.read_nodes(outputs, network_only)
    return reader.graph(inputs, outputs)


def _inputs(model: Any) -> list[Any]:
    """The inputs that are no initializers (older files list both)."""
    weights = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in weights]


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _tensors(inner)


def _check(onnx: Any, model: Any) -> None:
    """Refuse what is broken, huge, or not in the file."""
    if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in _tensors(model.graph)):
        raise FileFormatError(
            "it keeps its weights in another file, which is not followed. Save it with all data in one file "
            "(onnx.save_model(..., save_as_external_data=False))."
        )
    if model.graph.sparse_initializer:
        raise FileFormatError("it has sparse weights, which are not supported.")
    unknown = [
        Node(n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}.{n.op_type}", _name(n), (), (), {})
        for n in model.graph.node
    ]
    unknown = [n for n in unknown if n.op not in OPS and n.op != "Constant"]
    if unknown:
        raise FileFormatError(f"it uses operators that are not known here: {names_of(unknown)}.")
    version = _opset(model)
    if version < OLDEST_OPSET:
        raise FileFormatError(f"it is written for opset {version}; {OLDEST_OPSET} and newer are read.")
    if any(n.op_type == "Slice" for n in model.graph.node) and not _survives_inference(model):
        raise FileFormatError("it is not a valid ONNX model (inferring its shapes crashes the package onnx).")
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:  # ValidationError, InferenceError, and others from inside
        raise FileFormatError(f"it is not a valid ONNX model ({str(error).strip()}).") from None
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        count = math.prod(max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim)
        if count > MOST_ELEMENTS:
            raise FileFormatError(f"its value {value.name!r} has {count:,} elements, more than {MOST_ELEMENTS:,}.")
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.value_info)


def _survives_inference(model: Any) -> bool:
    """Say whether shape inference comes to an end, by trying it in a process of its own.

    With an axis of negative length, which padding can make too, that of Slice aborts the process (onnx 1.23).
    """
    command = [sys.executable, "-I", "-c", _INFER, json.dumps([str(folder) for folder in sys.path])]
    done = subprocess.run(
        command, input=model.SerializeToString(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return done.returncode in (0, 1)  # 1: it has raised, and will do so here


_INFER = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import onnx.shape_inference
onnx.shape_inference.infer_shapes(sys.stdin.buffer.read())
"""


def _opset(model: Any) -> int:
    return max((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _name(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else ""))


class _Reader:
    """Nodes and constants of a model on their way to a `Graph`."""

    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx = onnx
        self.proto = model.graph
        self.opset = _opset(model)
        self.constants: dict[str, np.ndarray] = {t.name: self.array(t) for t in model.graph.initializer}
        self.nodes: list[Node] = []
        self.room = MOST_FOLDED + 4 * sum(a.size for a in self.constants.values())
        values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}
        self.ranks.update({name: a.ndim for name, a in self.constants.items()})
        kinds = []
        for value in [*_inputs(model), *model.graph.output]:
            if value.type.WhichOneof("value") != "tensor_type":
                raise FileFormatError(f"its value {value.name!r} is no tensor.")
            kinds.append(self.type_name(value.type.tensor_type.elem_type))
        self.dtype = kinds[0] if kinds[0].startswith("float") else "float32"  # of the network
        dims = _inputs(model)[0].type.tensor_type.shape.dim if _inputs(model) else []
        self.batch = int(dims[0].dim_value) if len(dims) else 0  # 0 if the file leaves it open

    def type_name(self, number: int) -> str:
        """Return NumPy's name of an ONNX element type."""
        if number not in TYPES:
            names = {value: name for name, value in self.onnx.TensorProto.DataType.items()}
            raise FileFormatError(f"it uses the element type {names.get(number, number)}, which is not known here.")
        return TYPES[number]

    def array(self, tensor: Any) -> np.ndarray:
        """Return the numbers of a tensor."""
        self.type_name(tensor.data_type)
        try:
            return np.array(self.onnx.numpy_helper.to_array(tensor))
        except Exception as error:  # lengths that do not fit, negative ones, and more
            raise FileFormatError(f"its tensor {tensor.name!r} is broken ({error}).") from None

    def before_softmax(self, output: str) -> str:
        """Return the input of the Softmax that makes `output`, if there is one."""
        return next((str(n.input[0]) for n in self.proto.node if output in n.output and n.op_type == "Softmax"), output)

    def value(self, name: str) -> str:
        """Return the value that is called `name`, or the first output of the node that is."""
        made = {str(o): str(o) for n in self.proto.node for o in n.output}
        made = {str(n.name): str(n.output[0]) for n in self.proto.node if n.output} | made
        if not name or name not in made:
            raise FileFormatError(f"there is no value and no node called {name!r} in it.")
        return made[name]

    # --- nodes --------------------------------------------------------------------------------------------------

    def read_nodes(self, outputs: list[str], network_only: bool) -> None:
        """Take over the nodes that the outputs need, in their newest form, and fold what is constant."""
        wanted, needed = set(outputs), []
        for proto in reversed(self.proto.node):
            if wanted.intersection(proto.output):
                wanted.update(proto.input)
                needed.append(proto)
        names: Counter[str] = Counter()
        for proto in reversed(needed):
            if proto.op_type == "Constant":
                self.constants[proto.output[0]] = self.constant(proto)
                continue
            name = _name(proto)
            names[name] += 1
            name = name if names[name] == 1 else f"{name}.{names[name]}"
            used = [o if o in wanted else "" for o in proto.output] if network_only else list(proto.output)
            while used and not used[-1] and proto.op_type != "Split":
                used.pop()
            attributes = {a.name: self.attribute(a) for a in proto.attribute}
            node = Node(proto.op_type, name, tuple(proto.input), tuple(used), attributes)
            for new in self.modern(node, network_only):
                self.add(new)

    def constant(self, proto: Any) -> np.ndarray:
        """Return the value of a Constant node."""
        (attribute,) = proto.attribute
        if attribute.name == "value":
            return self.array(attribute.t)
        value = self.attribute(attribute)
        if isinstance(value, str) or "string" in attribute.name:
            raise FileFormatError(f"its constant {proto.output[0]!r} is text.")
        return np.array(value, np.float32 if "float" in attribute.name else np.int64)

    def attribute(self, proto: Any) -> Any:
        """Return an attribute as a number, text, or tuple of them; a one-element tensor as (dtype, number)."""
        value = self.onnx.helper.get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, self.onnx.TensorProto):
            array = self.array(value)
            if array.size != 1:
                raise FileFormatError(f"its attribute {proto.name!r} should be a single number.")
            return array.dtype.name, constant("", array)[3][0]
        if proto.type == self.onnx.AttributeProto.INTS:
            return tuple(value)
        if proto.type == self.onnx.AttributeProto.FLOATS:
            return tuple(number(np.float32(v)) for v in value)
        if isinstance(value, float):
            return number(np.float32(value))
        if isinstance(value, int):
            return value
        raise FileFormatError(f"its attribute {proto.name!r} is of a kind that is not known here.")

    def put(self, name: str, value: np.ndarray) -> str:
        """Add a constant under a new name."""
        while name in self.constants:
            name += "_"
        self.constants[name] = value
        self.ranks[name] = value.ndim
        return name

    def modern(self, node: Node, network_only: bool) -> Iterator[Node]:
        """Yield a node in the newest form of its operator, which may take several."""
        attributes = dict(node.attributes)
        inputs = list(node.inputs)
        for i, moved in enumerate(MOVED.get(node.op, ())):
            if moved in attributes:
                value = attributes.pop(moved)
                inputs += [""] * (i + 2 - len(inputs))
                if not inputs[i + 1]:
                    kind = self.dtype if isinstance(value, float) else "int64"
                    inputs[i + 1] = self.put(f"{node.name}.{moved}", np.array(value, kind))
        for flag in ("is_test", "consumed_inputs", "storage_order"):
            attributes.pop(flag, None)
        if node.op in ("Cast", "CastLike"):
            attributes = {} if node.op == "CastLike" else {"to": self.type_name(attributes["to"])}
            if attributes.get("to") == self.dtype:
                attributes["to"] = "network"
        if node.op == "BatchNormalization":
            self.batch_norm(node, attributes, network_only)
        if node.op == "GroupNormalization" and self.opset < 21:
            raise FileFormatError(f"{node} is of opset {self.opset}; it is read from opset 21 on.")
        outputs = node.outputs
        if network_only and node.op in ("BatchNormalization", "Dropout", "LayerNormalization", "MaxPool"):
            if any(node.outputs[1:]):
                raise FileFormatError(f"{node} has a second output that is used, which a classifier's has not.")
            outputs = outputs[:1]
            inputs = inputs[:2] if node.op == "Dropout" else inputs  # not training_mode: the network's caller says
        elif node.op == "MaxPool" and len(outputs) > 1:
            raise FileFormatError(f"{node} returns indices, which are not computed here.")
        elif node.op == "Dropout" and len(inputs) > 2 and np.any(self.constants.get(inputs[2], False)):
            raise FileFormatError(f"{node} draws random numbers.")
        if node.op == "Reshape" and self.batch and inputs[1] in self.constants and inputs[0] not in self.constants:
            sizes = self.constants[inputs[1]]
            if network_only and sizes.size and sizes[0] == self.batch and not attributes.get("allowzero"):
                inputs[1] = self.put(inputs[1], np.array([0, *sizes[1:]], np.int64))  # 0: as long as the input's axis
        node = replace(node, inputs=tuple(inputs), outputs=tuple(outputs), attributes=attributes)
        if node.op in ("Softmax", "LogSoftmax") and self.opset < 13:
            yield from self.old_softmax(node)
        elif self.opset < 7 and node.op in (*BROADCASTING, "PRelu"):
            yield from self.old_broadcast(node)
        else:
            yield node

    def batch_norm(self, node: Node, attributes: dict[str, Any], network_only: bool) -> None:
        """Settle whether the node uses the statistics of the batch."""
        if attributes.pop("spatial", 1) != 1:
            raise FileFormatError(f"{node} normalises every pixel by itself (spatial=0), which is not known here.")
        if self.opset < 14 and len(node.outputs) > 1:
            attributes["training_mode"] = 1
        if network_only:
            attributes.pop("training_mode", None)

    def old_softmax(self, node: Node) -> Iterator[Node]:
        """Before opset 13 the axes from `axis` on are one."""
        x, y = node.inputs[0], node.outputs[0]
        axis = node.attributes.get("axis", 1)
        yield Node("Shape", f"{node.name}.shape", (x,), (f"{y}.shape",), {})
        yield Node("Flatten", f"{node.name}.flatten", (x,), (f"{y}.flat",), {"axis": axis})
        yield Node(node.op, node.name, (f"{y}.flat",), (f"{y}.probabilities",), {"axis": 1})
        yield Node("Reshape", f"{node.name}.reshape", (f"{y}.probabilities", f"{y}.shape"), (y,), {})

    def old_broadcast(self, node: Node) -> Iterator[Node]:
        """Before opset 7 `axis` says where the second input's axes lie in the first's; for PRelu it is the channel."""
        a, b = node.inputs
        attributes = {k: v for k, v in node.attributes.items() if k not in ("axis", "broadcast")}
        axis = 1 if node.op == "PRelu" else node.attributes.get("axis")
        node = replace(node, attributes=attributes)
        if axis is not None and self.ranks.get(b, 0) > 0:
            if a not in self.ranks or b not in self.ranks:
                raise FileFormatError(f"{node} broadcasts along axis {axis} of a value of unknown shape.")
            axis = axis + self.ranks[a] if axis < 0 else axis
            missing = self.ranks[a] - axis - self.ranks[b]
            if missing > 0:
                axes = self.put(f"{node.name}.axes", np.arange(self.ranks[b], self.ranks[b] + missing))
                yield Node("Unsqueeze", f"{node.name}.unsqueeze", (b, axes), (f"{node.name}.second",), {})
                node = replace(node, inputs=(a, f"{node.name}.second"))
        yield node

    def add(self, node: Node) -> None:
        """Take over a node, or compute it now if all it needs is constant."""
        row = node.row
        if not row.folds or not all(name in self.constants for name in node.inputs if name):
            self.nodes.append(node)
            return
        arguments = [self.constants[name] if name else None for name in node.inputs]
        try:
            size = _elements(node, arguments)
            if size > self.room:
                raise FileFormatError(f"{node} makes a constant of {size:,} elements: too large for this file.")
            self.room -= size
            call = Call(node.name, node.attributes, len(node.outputs), (False,) * len(arguments), None, self.dtype, 0)
            with np.errstate(all="ignore"):
                result, _ = row.forward(call, *arguments)
        except (ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
            if isinstance(error, XpcnnError):
                raise FileFormatError(f"{node}: {error}") from None
            raise FileFormatError(f"{node} does not fit its inputs ({error}).") from None
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                self.constants[name] = np.ascontiguousarray(value)
                self.ranks[name] = self.constants[name].ndim

    # --- the graph ----------------------------------------------------------------------------------------------

    def graph(self, inputs: list[str], outputs: list[str]) -> Graph:
        """Sort the constants into parameters, buffers and host values, and make the graph."""
        used = {name for node in self.nodes for name in node.inputs} | set(outputs)
        constants = {name: a for name, a in self.constants.items() if name in used}
        on_host = {
            node.inputs[i] for node in self.nodes for i in node.row.host if i < len(node.inputs) and node.inputs[i]
        }
        floats = {name for name, a in constants.items() if a.dtype.kind == "f" and name not in on_host}
        trained = self.find_trained(floats)
        large = {name for name in floats if constants[name].size > 1 and name not in outputs}
        fixed = large | {n for node in self.nodes if node.op == "BatchNormalization" for n in node.inputs[3:5]} & floats
        fixed -= trained
        taken = {*inputs, *outputs, *(name for node in self.nodes for name in (*node.inputs, *node.outputs))}
        names = valid_names([name for name in constants if name in trained | fixed], taken)
        nodes = [replace(node, inputs=tuple(names.get(name, name) for name in node.inputs)) for node in self.nodes]
        graph = Graph(
            inputs,
            [names.get(name, name) for name in outputs],
            [node.plain() for node in nodes],
            [constant(name, a) for name, a in constants.items() if name not in names],
            [(new, constants[old].shape) for old, new in names.items() if old in trained],
            [(new, constants[old].shape) for old, new in names.items() if old in fixed],
        )
        for old, new in names.items():
            values = np.ascontiguousarray(constants[old])
            setattr(graph, new, Parameter(values) if old in trained else Buffer(values))
        return graph

    def find_trained(self, floats: set[str]) -> set[str]:
        """Return the constants that are weights.

        What is added to or multiplied with the images before the first weights is preprocessing, and stays as it is.
        """
        trained: set[str] = set()
        behind: set[str] = set()  # values that depend on weights
        for node in self.nodes:
            found = {node.inputs[i] for i in node.row.trained if i < len(node.inputs)} & floats
            if node.op in ("Add", "Mul") and behind.intersection(node.inputs):
                found |= {name for name in node.inputs if name in floats and self.constants[name].size > 1}
            trained |= found
            if found or behind.intersection(node.inputs):
                behind.update(node.outputs)
        return trained


def valid_names(names: list[str], taken: set[str]) -> dict[str, str]:
    """Return a name for each that can stand in a state dict and in patterns of `freeze`, and is nobody else's."""
    taken = (taken - set(names)) | {""}
    result: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^\w.-]+", ".", name).strip("._") or "value"
        new, count = base, 1
        while new in taken or hasattr(_EMPTY, new):
            count += 1
            new = f"{base}_{count}"
        taken.add(new)
        result[name] = new
    return result


_EMPTY = Graph((), (), ())  # whose attributes are no names for parameters


def _elements(node: Node, arguments: list[Any]) -> int:
    """Return at most how many elements the result of a constant node has, before it is computed."""
    shapes: list[tuple[int, ...]] = [tuple(a.shape) for a in arguments if a is not None]
    if node.op == "ConstantOfShape":
        return math.prod(ints(arguments[0]))
    if node.op == "Expand":
        return math.prod(np.broadcast_shapes(shapes[0], ints(arguments[1])))
    if node.op == "Tile":
        return math.prod((*shapes[0], *ints(arguments[1])))
    if node.op == "Range":
        start, limit, delta = (float(a.item()) for a in arguments)
        return max(0, math.ceil((limit - start) / delta))
    if node.op == "Pad":
        margin = sum(abs(p) for p in ints(arguments[1]))
        return math.prod(int(n) + margin for n in shapes[0])
    if node.op == "Gather":
        length = max(shapes[0][int(node.attributes.get("axis", 0))], 1)
        return math.prod((*shapes[0], *shapes[1])) // length
    if node.op == "MatMul":
        return math.prod(shapes[0][:-1]) * math.prod(shapes[1][-1:]) * math.prod(shapes[1][:-2])
    if node.op == "Gemm":
        return max(shapes[0]) * max(shapes[1])
    if node.row.scalars or node.op in ("Where", "PRelu"):
        return math.prod(np.broadcast_shapes(*shapes))
    return sum(math.prod(shape) for shape in shapes)
