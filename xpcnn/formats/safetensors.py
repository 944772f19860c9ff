"""Model files: one safetensors file with the architecture and everything else as JSON in its header.

The format is a length, a JSON header and raw arrays (https://github.com/huggingface/safetensors): nothing in it can
be executed, and the reader checks every offset against the length of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..errors import FileFormatError
from ..files import atomic_write
from .json import parse

__all__ = ["KEY", "read", "write"]

KEY = "xpcnn"  # the entry of the header's metadata that holds our JSON


def write(path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays and JSON-able metadata to one file, whole or not at all."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(arrays, temporary, metadata={KEY: json.dumps(meta)})


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write` wrote.

    Returns:
        The metadata, and the arrays by name.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if it is broken, no safetensors file, or has no xpcnn entry in its header.
    """
    with open(path, "rb"):  # a missing or unreadable file keeps Python's own error
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # the library raises its own and, for dtypes NumPy lacks, several others
        raise FileFormatError(
            f"{os.fspath(path)} is not a whole safetensors file ({error}). It may be truncated: copy it again."
        ) from None
    if KEY not in metadata:
        raise FileFormatError(
            f'{os.fspath(path)} is a safetensors file without the "{KEY}" entry in its header, so the architecture is '
            "unknown. Build the network yourself and give it the arrays with net.load_state_dict(...)."
        )
    return parse(metadata[KEY], path), tensors
