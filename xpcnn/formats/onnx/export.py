"""From a network to an ONNX file, in its inference form."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ... import layers as L
from ...backend import to_numpy
from ...errors import ArgumentError
from ...files import atomic_write
from ...functional.geometry import Window, pair
from ...functional.pool import adaptive_bins
from ...inference import Inference
from ...layers import Layer
from ...layers.base import Shape
from ...layers.base import _join as join
from ...version import __version__
from .graph import Graph
from .load import onnx_package
from .ops import OPS

__all__ = ["save"]

OPSET = 18


def save(net: Any, path: str | os.PathLike[str], input_shape: Shape | None = None) -> None:
    """Write a network as an ONNX file: "input" (N, C, H, W) float32 -> "output" (N, K), N free.

    It is of opset 18, or 20 where there is a GELU. Parameters keep their names, so `load(path)` has the same state
    dict. The form is that of inference: side classifiers are left out, dropout stays as a node that does nothing at
    prediction.

    Args:
        net: any network that has been built, or a `Classifier`, whose normalisation then comes first: it expects pixels
            as floats, uint8 divided by 255. Its averaged weights are written if it has any.
        path: the file.
        input_shape: (C, H, W) of the images; None for the shape that the network was built for.

    Raises:
        ArgumentError: for a layer that cannot be exported, or if the shape is not known.
        ShapeError: if the shape does not fit the network.
        MissingExtraError: if the package onnx is not installed.
    """
    onnx = onnx_package("writing ONNX files")
    with net.averaged() if hasattr(net, "averaged") else nullcontext(getattr(net, "net", net)) as body:
        shape = input_shape or body.input_shape
        before = body.state_dict().keys()
        if shape is None or (body.build(tuple(shape)) and body.state_dict().keys() != before):
            raise ArgumentError(
                "the network has not been built, so there is nothing to export. Call net.build(input_shape) first, or "
                "train it."
            )
        writer = Writer(onnx, body)
        x, shape = "input", tuple(int(n) for n in shape)
        mean, std = getattr(net, "mean", None), getattr(net, "std", None)
        if mean is not None and std is not None:
            x = writer.node("Sub", [x, writer.constant(np.array(mean, np.float32).reshape(1, -1, 1, 1), "mean")])
            x = writer.node("Div", [x, writer.constant(np.array(std, np.float32).reshape(1, -1, 1, 1), "std")])
        y, output = writer.layer(body, x, shape, "")
        model = writer.model(y, shape, output)
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


class Writer:
    """Nodes and constants of a model in the making."""

    def __init__(self, onnx: Any, net: Layer) -> None:
        self.helper = onnx.helper
        self.from_array = onnx.numpy_helper.from_array
        self.types = onnx.TensorProto
        self.weights = {id(entry): name for name, entry in net._state().items()}
        self.taken = {"input", "output", *self.weights.values()}
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.opset = OPSET

    def name(self, wish: str) -> str:
        """Return a name that nobody has yet."""
        count, name = 1, wish
        while name in self.taken:
            count += 1
            name = f"{wish}_{count}"
        self.taken.add(name)
        return name

    def node(
        self, op: str, inputs: Sequence[str], name: str = "", outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Add a node; return its first output."""
        name = self.name(name or op)
        outputs = list(outputs) or [self.name(f"{name}:0")]
        self.nodes.append(self.helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        self.opset = max(self.opset, OPS[op].since)
        return outputs[0]

    def constant(self, value: Any, name: str = "constant") -> str:
        """Add an array, a float (float32) or ints (int64); return its name."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = self.name(name)
        self.tensors[name] = self.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def weight(self, entry: Any) -> str:
        """Add a parameter or buffer of the network under its own name, once."""
        name = self.weights[id(entry)]
        if name not in self.tensors:
            array = np.array(to_numpy(entry.data), np.float32)
            self.tensors[name] = self.from_array(array, name)
        return name

    def layer(self, layer: Layer, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
        """Add a layer; return its output value and the shape of that."""
        for kind in type(layer).__mro__:
            if kind in WRITERS:
                return WRITERS[kind](self, layer, x, shape, path)
        raise ArgumentError(
            f"{type(layer).__name__} at {path or 'the top'!r} cannot be exported: the layers of xpcnn can, and a class "
            "derived from one of them is written as that."
        )

    def child(self, parent: str, name: str, layer: Layer, x: str, shape: Shape) -> tuple[str, Shape]:
        """Add a child of the layer at a path."""
        return self.layer(layer, x, shape, join(parent, name))

    def model(self, y: str, input_shape: Shape, output_shape: Shape) -> Any:
        """Return the finished model."""
        self.nodes.append(self.helper.make_node("Identity", [y], ["output"], name=self.name("output")))
        value, batch = self.helper.make_tensor_value_info, "N"
        graph = self.helper.make_graph(
            self.nodes,
            "xpcnn",
            [value("input", self.types.FLOAT, [batch, *input_shape])],
            [value("output", self.types.FLOAT, [batch, *output_shape])],
            list(self.tensors.values()),
        )
        opset = [self.helper.make_opsetid("", self.opset)]
        return self.helper.make_model(
            graph,
            producer_name="xpcnn",
            producer_version=__version__,
            opset_imports=opset,
            ir_version=self.helper.find_min_ir_version_for(opset),
        )


# --- layers with weights ----------------------------------------------------------------------------------------


def conv(w: Writer, layer: L.Conv2d, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    window = layer.window((shape[1], shape[2]))
    inputs = [x, w.weight(layer.weight), *([w.weight(layer.bias)] if isinstance(layer.bias, L.Parameter) else [])]
    y = w.node("Conv", inputs, path, group=layer.groups, dilations=window.dilation, **geometry(window))
    return y, (layer.out_channels, *window.output)


def geometry(window: Window, extra: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Return the attributes of a window; `extra` pixels are padded at the bottom and on the right."""
    top, bottom, left, right = window.pads
    pads = [top, left, bottom + extra[0], right + extra[1]]
    return {"kernel_shape": window.kernel, "strides": window.stride, "pads": pads}


def dense(w: Writer, layer: L.Dense, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    inputs = [x, w.weight(layer.weight), *([w.weight(layer.bias)] if isinstance(layer.bias, L.Parameter) else [])]
    return w.node("Gemm", inputs, path, transB=1), (layer.out_features,)


def batch_norm(w: Writer, layer: L.BatchNorm2d, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    channels = shape[0]
    if layer.weight is not None and layer.bias is not None:
        scale, shift = w.weight(layer.weight), w.weight(layer.bias)
    else:
        scale = w.constant(np.ones(channels, np.float32), join(path, "ones"))
        shift = w.constant(np.zeros(channels, np.float32), join(path, "zeros"))
    inputs = [x, scale, shift, w.weight(layer.running_mean), w.weight(layer.running_var)]
    return w.node("BatchNormalization", inputs, path, epsilon=layer.eps, momentum=1.0 - layer.momentum), shape


# --- pooling ----------------------------------------------------------------------------------------------------


def overhang(window: Window) -> tuple[int, int]:
    """By how many pixels the last windows reach beyond the padding, as ceil_mode lets them."""
    rows, columns = (
        max(0, window.padded[a] - window.input[a] - window.pads[2 * a] - window.pads[2 * a + 1]) for a in (0, 1)
    )
    return rows, columns


def max_pool(w: Writer, layer: L.MaxPool2d, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    window = layer.window((shape[1], shape[2]))
    return _largest(w, x, window, path), (shape[0], *window.output)


def _largest(w: Writer, x: str, window: Window, path: str) -> str:
    attributes = geometry(window, overhang(window))
    top, left, bottom, right = attributes["pads"]
    if bottom >= window.kernel[0] or right >= window.kernel[1]:  # a dilated window; onnxruntime wants padding below it
        pads = w.constant([0, 0, top, left, 0, 0, bottom, right])
        x = w.node("Pad", [x, pads, w.constant(-math.inf)], join(path, "pad"))
        attributes["pads"] = [0, 0, 0, 0]
    return w.node("MaxPool", [x], path, dilations=window.dilation, **attributes)


def average_pool(w: Writer, layer: L.AvgPool2d, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    window = layer.window((shape[1], shape[2]))
    return _average(w, x, window, layer.count_include_pad, path), (shape[0], *window.output)


def _average(w: Writer, x: str, window: Window, include_pad: bool, path: str) -> str:
    extra = overhang(window)
    if not include_pad or not any(extra):
        return w.node("AveragePool", [x], path, count_include_pad=int(include_pad), **geometry(window, extra))
    # zeros of the padding count, what lies beyond it does not: so the former become pixels
    top, bottom, left, right = window.pads
    x = w.node("Pad", [x, w.constant([0, 0, top, left, 0, 0, bottom, right])], join(path, "pad"))
    attributes = {**geometry(window), "pads": [0, 0, *extra]}
    return w.node("AveragePool", [x], path, count_include_pad=0, **attributes)


def lp_pool(w: Writer, layer: L.LpPool2d, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    window, p = layer.window((shape[1], shape[2])), layer.p
    output = (shape[0], *window.output)
    sizes = geometry(window, overhang(window))
    if math.isinf(p):
        return _largest(w, w.node("Abs", [x]), window, path), output
    if p == int(p):
        y = w.node("LpPool", [x], path, p=int(p), **sizes)
        return (w.node("Mul", [y, w.constant(window.taps ** (-1.0 / p))]) if layer.mean else y), output
    powers = w.node("Pow", [w.node("Abs", [x]), w.constant(p)])
    y = w.node("AveragePool", [powers], path, count_include_pad=1, **sizes)
    y = y if layer.mean else w.node("Mul", [y, w.constant(float(window.taps))])
    return w.node("Pow", [y, w.constant(1.0 / p)]), output


def adaptive(
    w: Writer, layer: L.AdaptiveAvgPool2d | L.AdaptiveMaxPool2d, x: str, shape: Shape, path: str
) -> tuple[str, Shape]:
    """One pooling where all bins are of one size, else rows and then columns, bin by bin."""
    size, bins = shape[1:], pair(layer.output_size, "output_size", 1)
    kind = "Average" if isinstance(layer, L.AdaptiveAvgPool2d) else "Max"
    output = (shape[0], *bins)
    if bins == (1, 1):
        return w.node(f"Global{kind}Pool", [x], path), output
    if all(n % b == 0 for n, b in zip(size, bins, strict=True)):
        kernel = [n // b for n, b in zip(size, bins, strict=True)]
        return w.node(f"{kind}Pool", [x], path, kernel_shape=kernel, strides=kernel), output
    for axis, n, count in zip((2, 3), size, bins, strict=True):
        where, parts = w.constant([axis]), []
        for part in adaptive_bins(n, count):
            piece = w.node("Slice", [x, w.constant([part.start]), w.constant([part.stop]), where])
            parts.append(w.node("ReduceMean" if kind == "Average" else "ReduceMax", [piece, where]))
        x = w.node("Concat", parts, join(path, f"axis{axis}"), axis=axis)
    return x, output


def global_pool(
    w: Writer, layer: L.GlobalAvgPool2d | L.GlobalMaxPool2d, x: str, shape: Shape, path: str
) -> tuple[str, Shape]:
    kind = "Average" if isinstance(layer, L.GlobalAvgPool2d) else "Max"
    return w.node("Flatten", [w.node(f"Global{kind}Pool", [x], path)], axis=1), shape[:1]


# --- layers without weights -------------------------------------------------------------------------------------


def simple(op: str, **attributes: Any) -> Callable[..., tuple[str, Shape]]:
    """Write a layer as one node; attributes that are functions take the layer."""

    def write(w: Writer, layer: Layer, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
        values = {name: value(layer) if callable(value) else value for name, value in attributes.items()}
        return w.node(op, [x], path, **values), shape

    return write


def silu(w: Writer, layer: L.SiLU, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    return w.node("Mul", [x, w.node("Sigmoid", [x])], path), shape


def softplus(w: Writer, layer: L.Softplus, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    z = x if layer.beta == 1.0 else w.node("Mul", [x, w.constant(layer.beta)])
    y = w.node("Softplus", [z], path)
    y = y if layer.beta == 1.0 else w.node("Mul", [y, w.constant(1.0 / layer.beta)])
    return w.node("Where", [w.node("Greater", [z, w.constant(layer.threshold)]), x, y]), shape


def clip(w: Writer, layer: L.Clip, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    return w.node("Clip", [x, w.constant(float(layer.low)), w.constant(float(layer.high))], path), shape


def dropout(w: Writer, layer: L.Dropout, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    if layer.p == 1.0:  # ONNX knows only less
        return x, shape
    # its name is the path, and the mask depends on that: a network that is read back drops the same elements
    return w.node("Dropout", [x, w.constant(float(layer.p))], path), shape


def flatten(w: Writer, layer: L.Flatten, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    return w.node("Flatten", [x], path, axis=1), (math.prod(shape),)


def nothing(w: Writer, layer: Layer, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    return x, shape


def pad_channels(w: Writer, layer: L.PadChannels, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    pads = w.constant([0, layer.before, 0, 0, 0, layer.after, 0, 0])
    return w.node("Pad", [x, pads], path), (layer.before + shape[0] + layer.after, *shape[1:])


def lrn(w: Writer, layer: L.LocalResponseNorm, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    channels, size = shape[0], layer.size
    if size % 2:
        return w.node("LRN", [x], path, size=size, alpha=layer.alpha, beta=layer.beta, bias=layer.k), shape
    # ONNX's even windows reach further forward, ours and torch's further back, and onnxruntime has none
    pads = w.constant([0, size // 2, 0, 0, 0, (size - 1) // 2, 0, 0])
    squares, axis = w.node("Pad", [w.node("Mul", [x, x]), pads], join(path, "squares")), w.constant([1])
    parts = [w.node("Slice", [squares, w.constant([i]), w.constant([i + channels]), axis]) for i in range(size)]
    total = w.node("Mul", [w.node("Sum", parts), w.constant(layer.alpha / size)])
    scale = w.node("Pow", [w.node("Add", [total, w.constant(float(layer.k))]), w.constant(float(layer.beta))])
    return w.node("Div", [x, scale], path), shape


# --- containers -------------------------------------------------------------------------------------------------


def sequential(w: Writer, layer: L.Sequential, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    for name, child in layer.children():
        x, shape = w.child(path, name, child, x, shape)
    return x, shape


def concat(w: Writer, layer: L.Concat, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    values, shapes = zip(*(w.child(path, name, child, x, shape) for name, child in layer.children()), strict=True)
    return w.node("Concat", values, path, axis=1), (sum(s[0] for s in shapes), *shapes[0][1:])


def residual(w: Writer, layer: L.Residual, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    body, after = w.child(path, "_body", layer.body, x, shape)
    other, _ = w.child(path, layer.shortcut_name, layer.shortcut, x, shape)
    return w.child(path, "_activation", layer.activation, w.node("Add", [body, other], join(path, "add")), after)


def dense_concat(w: Writer, layer: L.DenseConcat, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    body, after = w.child(path, "_body", layer.body, x, shape)
    return w.node("Concat", [x, body], join(path, "concat"), axis=1), (shape[0] + after[0], *shape[1:])


def body(w: Writer, layer: L.Recompute | Inference, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    return w.child(path, "_body", layer.body, x, shape)


def graph(w: Writer, layer: Graph, x: str, shape: Shape, path: str) -> tuple[str, Shape]:
    """Write the nodes of a graph with new names."""
    names = {"": "", layer.inputs[0]: x}
    for name, entry in layer._state().items():
        names[name] = w.weight(entry)
    for name, array in layer.numbers.items():
        names[name] = w.constant(array, join(path, name))
    for node in layer.parsed:
        for output in node.outputs:
            names[output] = w.name(join(path, output)) if output else ""
        attributes = dict(node.attributes)
        for key, value in attributes.items():
            if key == "to":
                attributes[key] = w.helper.np_dtype_to_tensor_dtype(
                    np.dtype("float32" if value == "network" else value)
                )
            elif node.op == "ConstantOfShape":
                attributes[key] = w.from_array(np.array([float(value[1])], value[0]))
        inputs, outputs = [names[i] for i in node.inputs], [names[o] for o in node.outputs]
        w.node(node.op, inputs, join(path, node.name), outputs, **attributes)
    return names[layer.outputs[0]], layer.output_shape


WRITERS: dict[type[Layer], Callable[..., tuple[str, Shape]]] = {
    L.Conv2d: conv,
    L.Dense: dense,
    L.BatchNorm1d: batch_norm,
    L.BatchNorm2d: batch_norm,
    L.MaxPool2d: max_pool,
    L.AvgPool2d: average_pool,
    L.LpPool2d: lp_pool,
    L.AdaptiveAvgPool2d: adaptive,
    L.AdaptiveMaxPool2d: adaptive,
    L.GlobalAvgPool2d: global_pool,
    L.GlobalMaxPool2d: global_pool,
    L.ReLU: simple("Relu"),
    L.LeakyReLU: simple("LeakyRelu", alpha=lambda layer: float(layer.negative_slope)),
    L.ELU: simple("Elu", alpha=lambda layer: float(layer.alpha)),
    L.SELU: simple("Selu"),
    L.Sigmoid: simple("Sigmoid"),
    L.Tanh: simple("Tanh"),
    L.Softmax: simple("Softmax", axis=1),
    L.LogSoftmax: simple("LogSoftmax", axis=1),
    L.GELU: simple("Gelu", approximate=lambda layer: layer.approximate),
    L.SiLU: silu,
    L.Softplus: softplus,
    L.Clip: clip,
    L.Dropout: dropout,
    L.Flatten: flatten,
    L.Identity: nothing,
    L.AuxiliaryHead: nothing,
    L.PadChannels: pad_channels,
    L.LocalResponseNorm: lrn,
    L.Sequential: sequential,
    L.Concat: concat,
    L.Residual: residual,
    L.DenseConcat: dense_concat,
    L.Recompute: body,
    Inference: body,
    Graph: graph,
}
