"""Model files as JSON: the same metadata, weights as nested lists. Large, but readable by anything.

A float32 is written with as many digits as Python needs to read the same number back, so the round trip is exact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError
from ..files import atomic_write
from .common import check_plain

__all__ = ["parse", "read", "read_weights", "write", "write_weights"]


def parse(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in `text`; `path` is named if it is none.

    Raises:
        FileFormatError: for text that is no JSON object.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{os.fspath(path)} does not hold valid JSON ({error}).") from None
    if not isinstance(data, dict):
        raise FileFormatError(f"{os.fspath(path)} should hold a JSON object; received {type(data).__name__}.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members; of two with one name, readers would disagree about which one counts."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the name {key[:80]!r} occurs twice in one object")
        made[key] = value
    return made


def write(path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write metadata and arrays to one JSON file, whole or not at all."""
    weights = {name: array.tolist() for name, array in tensors.items()}
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump({**meta, "weights": weights}, file)


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays alone. They come back as float64 if one of them is, else as float32.

    Raises:
        ArgumentError: for complex arrays and the like.
    """
    check_plain(tensors)
    double = any(array.dtype == np.float64 for array in tensors.values())
    write(path, {"dtype": "float64" if double else "float32"}, tensors)


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a JSON file that `write` or `write_weights` wrote, by name; errors as for `read`."""
    return read(path)[1]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write` wrote; arrays come back in the dtype that the metadata names (float32 without one).

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if it is no JSON object with "weights" that are rectangular lists of numbers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FileFormatError(f"{os.fspath(path)} is not a JSON text file.") from None
    meta = parse(text, path)
    weights = meta.pop("weights", None)
    if not isinstance(weights, dict):
        raise FileFormatError(f'{os.fspath(path)} has no "weights": it is not a model saved by xpcnn.')
    tensors = {}
    for name, values in weights.items():
        try:
            tensors[name] = np.asarray(values, dtype="float64" if meta.get("dtype") == "float64" else "float32")
        except (ValueError, TypeError, OverflowError):
            raise FileFormatError(
                f'{os.fspath(path)}: weights "{name}" should be rectangular nested lists of numbers.'
            ) from None
    return meta, tensors
