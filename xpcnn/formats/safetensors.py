"""Model files: one safetensors file with the architecture and everything else as JSON in its header.

The format is a length, a JSON header and raw arrays (https://github.com/huggingface/safetensors): nothing in it can
be executed, and the reader checks every offset against the length of the file.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..errors import FileFormatError
from ..files import atomic_write
from .common import bfloat16_to_float32, check_plain
from .json import parse

__all__ = ["KEY", "read", "read_weights", "write", "write_weights"]

KEY = "xpcnn"  # the entry of the header's metadata that holds our JSON


def write(path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays and JSON-able metadata to one file, whole or not at all."""
    _write(path, tensors, {KEY: json.dumps(meta)})


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays alone, as any program reads them, whole or not at all.

    Raises:
        ArgumentError: for complex arrays and the like.
    """
    check_plain(tensors)
    _write(path, tensors, None)


def _write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None) -> None:
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(arrays, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:  # which hides the OSError of a full disk
            raise OSError(
                f"{os.fspath(path)} could not be written ({error}); what was there before is whole."
            ) from None


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write` wrote.

    Returns:
        The metadata, and the arrays by name.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if it is broken, no safetensors file, or has no xpcnn entry in its header.
    """
    metadata, tensors = _read(path)
    if KEY not in metadata:
        raise FileFormatError(
            f'{os.fspath(path)} is a safetensors file without the "{KEY}" entry in its header, so the architecture is '
            "unknown. Build the network yourself and give it the arrays with net.load_state_dict(...)."
        )
    return parse(metadata[KEY], path), tensors


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of any safetensors file by name, bfloat16 as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if it is broken or no safetensors file.
    """
    return _read(path)[1]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with open(path, "rb") as raw:  # a missing or unreadable file keeps Python's own error
        try:
            with safetensors.safe_open(path, framework="numpy") as file:  # checks every offset
                (length,) = struct.unpack("<Q", raw.read(8))
                header = parse(raw.read(length).decode(), path)  # checks that no name occurs twice
                metadata = header.pop("__metadata__", {})
                tensors = {}
                for name, entry in header.items():
                    half = entry["dtype"] == "BF16"  # which NumPy lacks
                    tensors[name] = _bfloat16(raw, 8 + length, entry) if half else file.get_tensor(name)
        except Exception as error:  # the library raises its own and, for dtypes NumPy lacks, several others
            raise FileFormatError(
                f"{os.fspath(path)} is not a whole safetensors file ({error}). It may be truncated: copy it again."
            ) from None
    return metadata, tensors


def _bfloat16(file: BinaryIO, base: int, entry: Mapping[str, Any]) -> np.ndarray:
    """Return a bfloat16 array, whose place in the file the library has checked, as float32."""
    start, stop = entry["data_offsets"]
    file.seek(base + start)
    bits = np.frombuffer(file.read(stop - start), "<u2")
    values: np.ndarray = bfloat16_to_float32(bits).reshape(entry["shape"])
    return values
