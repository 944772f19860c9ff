"""How close is close enough: the one table, by operation and dtype. Nothing is loosened elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import to_numpy

# (operation, dtype) -> (relative, absolute)
TOLERANCES = {
    # against the naive loops in float64; sums of products are relative to the largest number of the array
    ("forward", "float64"): (1e-12, 1e-12),
    ("forward", "float32"): (1e-5, 1e-5),
    # analytic against central differences, eps 1e-6
    ("gradient", "float64"): (1e-6, 1e-8),
    # NumPy against CuPy, fused kernels against generic bodies; float16 has 11 bits
    ("sum of products", "float64"): (1e-12, 1e-12),
    ("sum of products", "float32"): (1e-4, 1e-5),
    ("sum of products", "float16"): (5e-3, 5e-3),
    ("elementwise", "float64"): (1e-13, 1e-13),
    ("elementwise", "float32"): (1e-6, 1e-6),
    ("elementwise", "float16"): (2e-3, 2e-3),
    # float16 arithmetic through a network against float32
    ("mixed precision", "float16"): (2e-2, 2e-2),
    # an optimizer after ten steps, against the textbook formula
    ("update", "float64"): (1e-12, 1e-15),
    ("update", "float32"): (1e-5, 1e-6),
    # against torch, which sums in another order
    ("torch", "float64"): (1e-9, 1e-9),
}


def assert_close(actual: Any, expected: Any, operation: str, dtype: str | None = None) -> None:
    """Compare arrays by the table; the dtype is that of `actual` unless given."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    relative, absolute = TOLERANCES[operation, dtype or str(actual.dtype)]
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if operation in ("forward", "sum of products") and expected.size:
        # rounding of a sum scales with its terms, not with what is left after they cancel
        absolute *= max(1.0, float(np.max(np.abs(expected))))
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=absolute)
