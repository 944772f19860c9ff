"""Weights in Keras files, .h5 (Keras 2 and 3, whole models and weights alone) and .keras. Needs h5py (extra `keras`).

Arrays are renamed and transposed to what xpcnn's layers expect, under the names of the Keras layers:

    kernel (KH, KW, C, O)              layer.weight (O, C, KH, KW)
    depthwise kernel (KH, KW, C, M)    layer.weight (C*M, 1, KH, KW), for groups=C
    kernel (D, O) of a dense layer     layer.weight (O, D)
    bias                               layer.bias
    gamma, beta                        layer.weight, layer.bias
    moving_mean, moving_variance       layer.running_mean, layer.running_var

A separable convolution becomes `layer.depthwise` and `layer.pointwise`, a model inside the model `model.layer`.

Three things a network that takes these weights has to do like Keras, and no file format can:

* Keras flattens (H, W, C) where xpcnn flattens (C, H, W): give the weight of a dense layer that follows `Flatten`
  to `permute_dense`. After global average pooling, or where H = W = 1, nothing needs to be done.
* With stride 2, Keras's padding="same" pads more on the right and below, as ours does: (0, 1, 0, 1) for 3x3 kernels
  and even sizes. Torch's padding=1 is something else.
* Keras's batch norm has eps=1e-3 by default.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..errors import ArgumentError, FileFormatError, MissingExtraError
from . import hdf5
from .common import most_bytes, naming, stored_zip

__all__ = ["permute_dense", "read_weights"]

SECONDS = 30  # until a file is given up, should the system not limit the time that hdf5.py computes

Arrays: TypeAlias = "dict[tuple[str, ...], np.ndarray]"
LISTS = ("layers", "_layer_checkpoint_dependencies")  # groups of Keras 3 that hold layers and are none
LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the weights of a Keras file as a state dict; see the top of this module for names and layouts.

    A process of its own does the reading, since damaged files can crash the HDF5 library.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if it is broken, no Keras file, refers to other files, or describes more than it holds.
        MissingExtraError: without h5py.
    """
    with open(path, "rb") as file:
        if importlib.util.find_spec("h5py") is None:
            raise MissingExtraError("h5py", "keras", "reading a Keras file")
        with naming(path):
            size = os.fstat(file.fileno()).st_size
            config, start = None, file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                archive = stored_zip(file, size)
                if "model.weights.h5" not in archive.namelist():
                    raise FileFormatError("is a zip archive without the model.weights.h5 of Keras's files.")
                config = archive.read("config.json") if "config.json" in archive.namelist() else None
                content = archive.read("model.weights.h5")
            else:
                content = file.read()
            header, arrays = _read_hdf5(content)
            if not arrays or min(map(len, arrays)) < 2:
                raise FileFormatError("is an HDF5 file without the layers of a Keras model.")
            configured = _configured(config or header["config"])
            if all(path[-2] == "vars" and path[-1].isdecimal() for path in arrays):
                layers = _numbered(arrays, header["names"], configured)
            else:
                layers = _named(arrays, configured)
            return {name: array for layer in layers for name, array in _convert(layer)}


def permute_dense(weight: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a dense weight (O, H*W*C) that follows Keras's Flatten for a flattened (C, H, W): (O, C*H*W).

    Args:
        weight: as `read_weights` gives it.
        shape: (C, H, W) of the images that are flattened.

    Raises:
        ArgumentError: if the weight does not fit the shape.
    """
    channels, height, width = shape
    if weight.ndim != 2 or weight.shape[1] != channels * height * width:
        raise ArgumentError(
            f"permute_dense expects a weight of shape (O, {channels * height * width}) for images {tuple(shape)}; "
            f"received shape {weight.shape}."
        )
    images = weight.reshape(-1, height, width, channels)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(weight.shape)


def _read_hdf5(content: bytes) -> tuple[dict[str, Any], Arrays]:
    """Return what hdf5.py says of a file, and its arrays by path (without "model_weights" in front)."""
    limit = most_bytes(len(content))
    command = [sys.executable, "-I", hdf5.__file__, json.dumps([str(folder) for folder in sys.path]), str(limit)]
    busy = "keeps the HDF5 library busy for ever: it is broken."
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=SECONDS + len(content) / 2**24)
    except subprocess.TimeoutExpired:
        raise FileFormatError(busy) from None
    if -done.returncode == getattr(signal, "SIGPROF", None):
        raise FileFormatError(busy)
    if done.returncode:
        raise FileFormatError(f"is broken: the HDF5 library crashed (exit code {done.returncode}).")
    (length,) = struct.unpack_from("<Q", done.stdout)
    header = json.loads(done.stdout[8 : 8 + length])
    if header["error"]:
        raise FileFormatError(header["error"])
    arrays: Arrays = {}
    position = 8 + length
    for entry in header["arrays"]:
        path, dtype, shape = tuple(entry["path"]), np.dtype(entry["dtype"]), entry["shape"]
        flat = np.frombuffer(done.stdout, dtype, math.prod(shape), position)
        arrays[path[1:] if path[0] == "model_weights" else path] = flat.reshape(shape)
        position += flat.nbytes
    return header, arrays


# --- from arrays to layers -----------------------------------------------------------------------------------


@dataclass
class _Layer:
    """A layer's name in the state dict, what kind it is ("conv2d", "" if unknown), its options and its variables."""

    name: str
    kind: str
    options: Mapping[str, Any]
    variables: dict[str, np.ndarray] = field(default_factory=dict)


def _configured(text: Any) -> dict[str, Mapping[str, Any]]:
    """Return the configuration of each layer, as the JSON in the file has it: {"name": {"class_name": ..., ...}}."""
    found: dict[str, Mapping[str, Any]] = {}
    stack = [] if text is None else [json.loads(text)]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                found[inner["name"]] = inner | {"class_name": str(value.get("class_name"))}
        elif isinstance(value, list):
            stack.extend(value)
    return found


def _layer(name: str, label: str, group: str, configured: Mapping[str, Mapping[str, Any]]) -> _Layer:
    """Make a layer, whose kind is that of its configuration or else of its group's name, such as conv2d_1."""
    options = configured.get(label, {})
    kind = options.get("class_name") or re.sub(r"_\d+$", "", group)
    return _Layer(name, kind.replace("_", "").lower(), options)


def _named(arrays: Arrays, configured: Mapping[str, Mapping[str, Any]]) -> list[_Layer]:
    """Keras 2, and .h5 of Keras 3: layer/.../kernel:0. The path between has more than one name in nested models."""
    parents: dict[str, set[tuple[str, ...]]] = {}
    for path in arrays:
        parents.setdefault(path[0], set()).add(path[1:-1])
    layers: dict[str, _Layer] = {}
    for path, array in arrays.items():
        inner = path[2:-1] if path[1] == path[0] else path[1:-1]
        parts = (path[0], *inner) if len(parents[path[0]]) > 1 else path[:1]
        name = ".".join(parts)
        layer = layers.setdefault(name, _layer(name, parts[-1], parts[-1], configured))
        layer.variables[path[-1].removesuffix(":0")] = array
    return list(layers.values())


def _numbered(arrays: Arrays, names: Mapping[str, str], configured: Mapping[str, Mapping[str, Any]]) -> list[_Layer]:
    """Keras 3: layers/conv2d_1/vars/0, where "vars" has the layer's name as an attribute (Keras 3.6 and newer)."""
    layers: dict[tuple[str, ...], _Layer] = {}
    for path, array in sorted(arrays.items(), key=lambda item: (item[0][:-1], int(item[0][-1]))):
        owner = path[:-2]
        if owner not in layers:
            steps = [owner[: i + 1] for i, part in enumerate(owner) if part not in LISTS]
            labels = [names.get("/".join(step), step[-1]) for step in steps]
            layers[owner] = _layer(".".join(labels), labels[-1], owner[-1], configured)
        layer = layers[owner]
        layer.variables[str(len(layer.variables))] = array
    for layer in layers.values():
        order = _order(layer)
        if len(order) >= len(layer.variables):
            layer.variables = dict(zip(order, layer.variables.values(), strict=False))
    return list(layers.values())


def _order(layer: _Layer) -> list[str]:
    """Return the names of a layer's variables in the order in which Keras 3 numbers them; [] if unknown."""
    if layer.kind == "batchnormalization":
        count = len(layer.variables)
        if not layer.options and count == 3:
            raise FileFormatError(
                f"does not say which three variables {layer.name!r} has. Save the whole model as .keras instead."
            )
        scale, center = layer.options.get("scale", count == 4), layer.options.get("center", count == 4)
        return ["gamma"] * bool(scale) + ["beta"] * bool(center) + ["moving_mean", "moving_variance"]
    if layer.kind.startswith("separableconv"):
        return ["depthwise_kernel", "pointwise_kernel", "bias"]
    return ["kernel", "bias"] if "conv" in layer.kind or layer.kind == "dense" else []


def _convert(layer: _Layer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a layer under their names and in the layouts of xpcnn."""
    if "transpose" in layer.kind:
        raise FileFormatError(f"has the transposed convolution {layer.name!r}, a layer that xpcnn does not have.")
    separable = "pointwise_kernel" in layer.variables
    for name, array in layer.variables.items():
        prefix = layer.name
        if name == "depthwise_kernel" or (name == "kernel" and layer.kind.startswith("depthwise")):
            prefix += ".depthwise" if separable else ""
            array = array.transpose(-2, -1, *range(array.ndim - 2))  # (KH, KW, C, M) to (C, M, KH, KW)
            name, array = "weight", array.reshape(-1, 1, *array.shape[2:])
        elif name in ("kernel", "pointwise_kernel"):
            prefix += ".pointwise" if separable else ""
            name, array = "weight", array.transpose(-1, -2, *range(array.ndim - 2))
        elif name == "bias" and separable:
            prefix += ".pointwise"
        yield f"{prefix}.{LEAVES.get(name, name)}", np.array(array, array.dtype.newbyteorder("="), order="C")
