"""Small helpers of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def readonly(array: Any) -> Any:
    """Return a NumPy array as a read-only view, so that writing into an input raises; CuPy arrays as they are."""
    if isinstance(array, np.ndarray):
        array = array.view()
        array.flags.writeable = False
    return array


def to_numpy(array: Any) -> np.ndarray:
    """Return an array of either backend in host memory."""
    return array.get() if hasattr(array, "get") else np.asarray(array)
