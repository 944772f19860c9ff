"""Sums, extremes, scans and sorts."""

import numpy as np
import pytest
from comparing import HALVES, IMAGES, INTEGERS, MATRIX, Comparisons, rng

comparisons = Comparisons()
add = comparisons.add

for n in ["sum", "mean", "max", "min", "argmax", "argmin", "prod", "std", "var"]:
    add(n, lambda xp, a, n=n: getattr(xp, n)(a), MATRIX)
    add(n + "_axis", lambda xp, x, n=n: getattr(xp, n)(x, axis=(2 if n.startswith("arg") else (0, 2, 3))), IMAGES)
    add(n + "_big", lambda xp, x, n=n: getattr(xp, n)(x, axis=0), (rng.randn(1000, 5) * 0.1 + 1).astype("f4"), tol=1e-3)
add("sum_keepdims", lambda xp, a: a.sum(axis=1, keepdims=True), MATRIX)
add("sum_int", lambda xp, i: i.sum(axis=0), INTEGERS)
add("sum_bool", lambda xp, a: (a > 0).sum(), MATRIX)
add("any_all", lambda xp, a: (xp.any(a > 0, axis=0), xp.all(a > 0, axis=1)), MATRIX)
add("cumsum", lambda xp, a: xp.cumsum(a, axis=1), MATRIX)
add("cumsum_flat", lambda xp: xp.cumsum(xp.arange(3000)))
add("sum_half", lambda xp, h: h.sum(axis=0), HALVES)
add("count_nonzero", lambda xp, a: xp.asarray(xp.count_nonzero(a > 0)), MATRIX)
add("amax_nan", lambda xp: xp.max(xp.array([1.0, float("nan"), 2.0])))
add("logsumexp", lambda xp, a: xp.log(xp.exp(a - a.max(1, keepdims=True)).sum(1)), MATRIX)
add(
    "softmax",
    lambda xp, a: xp.exp(a - a.max(1, keepdims=True)) / xp.exp(a - a.max(1, keepdims=True)).sum(1, keepdims=True),
    MATRIX,
)
add("bincount", lambda xp, i: xp.bincount(i), np.array([1, 1, 4, 0]))
add("unique", lambda xp, i: xp.unique(i), np.array([3, 1, 3, 2]))
add("sort", lambda xp, a: xp.sort(a, axis=1), MATRIX)
add("argsort", lambda xp, a: xp.argsort(a, axis=1), MATRIX)
add("partition_topk", lambda xp, a: xp.argsort(-a, axis=1)[:, :3], MATRIX)
add("median", lambda xp, a: xp.median(a, axis=1), MATRIX)
add("searchsorted", lambda xp, a: xp.searchsorted(xp.arange(10.0), a), np.array([2.5, 7.1]))
add("linalg_norm", lambda xp, a: xp.linalg.norm(a), MATRIX)
add("allclose", lambda xp, a: xp.asarray(xp.allclose(a, a)), MATRIX)


@pytest.mark.parametrize("case", comparisons, ids=str)
def test_agrees_with_numpy(case):
    case.check()
