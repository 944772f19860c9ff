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

from ..errors import FileFormatError
from ..files import atomic_write
from .common import bfloat16_to_float32, check_plain
from .json import parse

__all__ = ["KEY", "read", "read_weights", "write", "write_weights"]

KEY = "xpcnn"  # the entry of the header's metadata that holds our JSON
DTYPES = {f"{kind}{8 * size}": f"{kind[0].upper()}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)}
DTYPES |= {"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64"}


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
    """Write the file ourselves: the library puts a temporary file of its own beside it, which a kill would leave."""
    arrays = {name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that all of them lie aligned
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        kind = DTYPES[arrays[name].dtype.name]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)


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
                metadata = header.pop("__metadata__", None) or {}
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
