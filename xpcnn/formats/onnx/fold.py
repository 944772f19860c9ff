"""A graph for prediction: batch norm is folded into the convolution before it, nodes that do nothing are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...inference import fixed, scale_and_shift, scaled
from ...layers import Buffer

if TYPE_CHECKING:
    from .graph import Graph, Node

__all__ = ["folded"]


def folded(graph: Graph) -> Graph:
    """Return a new graph with the outputs that this one has at prediction; arrays that do not change are shared."""
    arrays = {name: entry.data for name, entry in graph._state().items()}
    nodes = _without_idle(graph)
    uses = Counter(name for node in nodes for name in node.inputs) + Counter(graph.outputs)
    made_by: dict[str, int] = {}
    kept: list[Node] = []
    for node in nodes:
        position = made_by.get(node.inputs[0], -1) if node.op == "BatchNormalization" else -1
        conv = kept[position] if position >= 0 else None
        if conv is not None and _can_fold(conv, node, arrays.keys(), uses):
            scale, bias, mean, var = (arrays[name] for name in node.inputs[1:])
            factor, shift = scale_and_shift(mean, var, scale, bias, node.attributes.get("epsilon", 1e-5))
            (x, weight, *own), name = conv.inputs, node.inputs[2]
            arrays[weight], arrays[name] = scaled(arrays[weight], arrays[own[0]] if own else None, factor, shift)
            kept[position] = replace(conv, inputs=(x, weight, name), outputs=node.outputs[:1])
            made_by[node.outputs[0]] = position
        else:
            made_by.update({name: len(kept) for name in node.outputs if node.op == "Conv"})
            kept.append(node)
    return _with_nodes(graph, kept, arrays)


def _without_idle(graph: Graph) -> list[Node]:
    """Return the nodes but for Identity and Dropout, whose outputs are their inputs at prediction."""
    same: dict[str, str] = {}
    nodes = []
    used = {name for node in graph.parsed for name in node.inputs} | set(graph.outputs)
    for node in graph.parsed:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        visible = node.outputs[0] in graph.outputs or any(name in used for name in node.outputs[1:] if name)
        if node.op in ("Identity", "Dropout") and not visible:
            same[node.outputs[0]] = node.inputs[0]
        else:
            nodes.append(node)
    return nodes


def _can_fold(conv: Node, norm: Node, known: Container[str], uses: Counter[str]) -> bool:
    """Whether nobody else sees what would change, and all numbers are arrays of the graph."""
    own = [conv.outputs[0], conv.inputs[1], norm.inputs[2]]
    arrays = [*conv.inputs[1:], *norm.inputs[1:]]
    return (
        all(uses[name] == 1 for name in own)
        and all(name in known for name in arrays)
        and not any(norm.outputs[1:])
        and not norm.attributes.get("training_mode", 0)
    )


def _with_nodes(graph: Graph, nodes: list[Node], arrays: dict[str, Any]) -> Graph:
    """Return a graph of these nodes, with the arrays that they use."""
    used = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    trained, still = ([entry for entry in entries if entry[0] in used] for entries in (graph.trained, graph.fixed))
    constants = [entry for entry in graph.constants if entry[0] in used]
    result = type(graph)(graph.inputs, graph.outputs, [n.plain() for n in nodes], constants, trained, still)
    for name, _ in trained:
        setattr(result, name, fixed(arrays[name]))
    for name, _ in still:
        setattr(result, name, Buffer(arrays[name]))
    for name in ("input_shape", "output_shape", "_path", "_macs"):
        setattr(result, name, getattr(graph, name))
    return result
