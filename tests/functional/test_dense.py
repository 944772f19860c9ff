from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import laid_out, layouts, normal, seeds, shape
from tolerances import assert_close

from xpcnn import backend
from xpcnn.functional import dense
from xpcnn.functional.dense import dense_backward, dense_forward

SIZES = {
    "small": (3, 4, 5),
    "batch 1": (6, 4, 1),
    "one feature": (1, 3, 4),
    "one unit": (5, 1, 4),
    "tall": (40, 300, 50),
    "wide": (40, 50, 300),
    "in": (900, 10, 60),
}


@pytest.mark.parametrize(("features", "units", "batch"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("threads", [1, 3])
def test_is_a_product(xp, features, units, batch, dtype, threads, monkeypatch):
    monkeypatch.setattr(backend, "_count", threads)
    x, dy = normal(0, features, batch, dtype=dtype), normal(1, units, batch, dtype=dtype)
    weight, bias = normal(2, units, features, dtype=dtype), normal(3, units, dtype=dtype)
    wide = [np.float64(a) for a in (x, dy, weight, bias)]
    x, dy, weight, bias = (xp.asarray(a) for a in (x, dy, weight, bias))
    assert_close(dense_forward(x, weight, bias), wide[2] @ wide[0] + wide[3][:, None], "forward")
    assert_close(dense_forward(x, weight, None), wide[2] @ wide[0], "forward")
    dx, dweight = dense_backward(dy, x, weight)
    assert dx.dtype == dweight.dtype == dtype
    assert_close(dx, wide[2].T @ wide[1], "forward")
    assert_close(dweight, wide[1] @ wide[0].T, "forward")


@given(d_n=shape("DN"), units=st.integers(1, 5), layout=layouts, seed=seeds)
def test_any_shape_and_layout(xp, d_n, units, layout, seed):
    x, weight, dy = normal(seed, *d_n), normal(seed + 1, units, d_n[0]), normal(seed + 2, units, d_n[1])
    arrays = [laid_out(a, layout) for a in (x, weight, dy)]
    x_in, w_in, dy_in = arrays if xp is np else [xp.asarray(a) for a in arrays]
    assert_close(dense_forward(x_in, w_in, None), weight @ x, "forward")
    dx, dweight = dense_backward(dy_in, x_in, w_in)
    assert_close(dx, weight.T @ dy, "forward")
    assert_close(dweight, dy @ x.T, "forward")


def test_asked_for_one_gradient_only(xp):
    x, weight, dy = (xp.asarray(a) for a in (normal(0, 4, 3), normal(1, 5, 4), normal(2, 5, 3)))
    for unused in (None, x):
        dx, none = dense_backward(dy, unused, weight, need_dw=False)
        assert none is None
    assert_close(dx, backend.to_numpy(weight).T @ backend.to_numpy(dy), "forward")
    none, dweight = dense_backward(dy, x, weight, need_dx=False)
    assert none is None
    assert_close(dweight, backend.to_numpy(dy) @ backend.to_numpy(x).T, "forward")


def test_the_gradient_of_the_weights_is_computed_where_it_is_wanted(xp):
    """Into memory of the caller, whatever that held."""
    x, weight, dy = (xp.asarray(a) for a in (normal(0, 4, 3), normal(1, 5, 4), normal(2, 5, 3)))
    out = xp.full((5, 4), np.nan)
    assert dense_backward(dy, x, weight, out=out)[1] is out
    assert_close(out, backend.to_numpy(dy) @ backend.to_numpy(x).T, "forward")


SHARED = {  # features, units, batch -> the shapes of the parts of y, for three threads
    "more units than images: rows": (400, 60, 30, [(20, 30)] * 3),
    "more images than units: columns": (400, 30, 60, [(30, 20)] * 3),
    "as many": (400, 60, 60, [(20, 60)] * 3),
    "little work": (3, 60, 30, [(60, 30)]),
}


@pytest.mark.parametrize(("features", "units", "batch", "parts"), SHARED.values(), ids=SHARED)
def test_large_products_are_shared_by_the_threads(features, units, batch, parts, monkeypatch):
    shapes, matmul = [], dense.matmul
    monkeypatch.setattr(backend, "_count", 3)
    monkeypatch.setattr(dense, "matmul", lambda a, b, out: (shapes.append(out.shape), matmul(a, b, out)))
    x, weight = normal(0, features, batch), normal(1, units, features)
    assert_close(dense_forward(x, weight, None), weight @ x, "forward")
    assert shapes == parts
