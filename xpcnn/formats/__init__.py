"""Model files: safetensors (the default) and JSON. Reading a file never executes anything in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError
from . import json, safetensors

__all__ = ["json", "read", "safetensors", "write"]

FORMATS = {".safetensors": safetensors, ".json": json}


def _module(path: str | os.PathLike[str]) -> Any:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ArgumentError(
            f'a model file is called *.safetensors or *.json; received "{os.fspath(path)}". '
            "Choose one of these endings: it decides the format."
        )
    return FORMATS[suffix]


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
