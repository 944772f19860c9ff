"""Model files, and weights in the files of others. Reading a file never executes anything in it.

A *model file* holds the architecture beside the weights: safetensors (the default) or JSON, by `read` and `write`. The
weights alone come from, and go to, the files of other programs as well: `read_weights` and `write_weights`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError
from . import json, keras, onnx, pth, safetensors
from .conversion import convert

__all__ = ["convert", "json", "keras", "onnx", "pth", "read", "read_weights", "safetensors", "write", "write_weights"]

FORMATS = {".safetensors": safetensors, ".json": json}
TORCH = dict.fromkeys((".pth", ".pt", ".th", ".bin"), pth)
WEIGHTS: dict[str, Any] = FORMATS | TORCH | dict.fromkeys((".h5", ".hdf5", ".keras"), keras)


def _module(path: str | os.PathLike[str], formats: Mapping[str, Any] = FORMATS, what: str = "a model file") -> Any:
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        *others, last = (f"*{known}" for known in formats)
        raise ArgumentError(
            f'{what} is called {", ".join(others)} or {last}; received "{os.fspath(path)}". '
            "Choose one of these endings: it decides the format."
        )
    return formats[suffix]


def write(path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write JSON-able metadata and named arrays in the format that the suffix of `path` says.

    Raises:
        ArgumentError: for any suffix but .safetensors and .json.
    """
    _module(path).write(path, meta, tensors)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return metadata and named arrays of a model file, whose suffix says the format.

    Raises:
        ArgumentError: for any suffix but .safetensors and .json.
        FileNotFoundError: if there is no such file.
        FileFormatError: if the file is broken or something else.
    """
    meta, tensors = _module(path).read(path)
    return meta, tensors


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """Return the state dict in a file of weights: arrays by name, ready for `net.load_state_dict`.

    Args:
        path: .safetensors (of any program), .json (of xpcnn), .pth .pt .th .bin (torch: both formats, without torch),
            .h5 .hdf5 .keras (Keras: needs h5py; names and layouts are changed, see `xpcnn.formats.keras`).
        key: which state dict of a torch file that has several, such as "model".

    Raises:
        ArgumentError: for another suffix, or a key for a file that is none of torch's.
        FileNotFoundError: if there is no such file.
        FileFormatError: if the file is broken, hostile, or has no state dict or several.
        MissingExtraError: for a Keras file without h5py.
    """
    module = _module(path, WEIGHTS, "a file of weights")
    if module is pth:
        return pth.read_weights(path, key)
    if key is not None:
        raise ArgumentError(f"key is for torch files, which may hold several state dicts; {os.fspath(path)} is none.")
    tensors: dict[str, np.ndarray] = module.read_weights(path)
    return tensors


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, without any metadata, as .safetensors, .json or a torch file (.pth, .pt, .th, .bin).

    Raises:
        ArgumentError: for another suffix, or a dtype that the format does not have.
    """
    _module(path, FORMATS | TORCH, "a file of weights that xpcnn writes").write_weights(path, tensors)
