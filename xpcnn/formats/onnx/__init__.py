"""ONNX: `load` makes a network of a file, `save` a file of a network. Needs the package `onnx` (the extra `onnx`).

A network that came from a file needs it no more: a `Graph` is a layer, and is saved as any other.
"""

from __future__ import annotations

from .export import save
from .graph import Graph
from .load import load

__all__ = ["Graph", "load", "save"]
