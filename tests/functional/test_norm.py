from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from references import batch_last, numerical_gradient
from strategies import laid_out, layouts, normal, seeds, shape
from tolerances import assert_close

from xpcnn import backend
from xpcnn.functional import norm

pytestmark = pytest.mark.usefixtures("blocks")

SHAPES = [(4, 3, 5, 2), (2, 1, 1, 7), (8, 5), (1, 3, 4, 4), (1, 1, 3, 3)]


def setting(shape, dtype="float64"):
    channels = shape[1]
    x = (normal(1, *shape) * 3 + 5).astype(dtype)
    return x, normal(2, channels, dtype=dtype), normal(3, channels, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_batch_norm_by_the_batch(xp, shape, dtype):
    x, weight, bias = setting(shape, dtype)
    y, mean, var = norm.batch_norm_forward(xp.asarray(batch_last(x)), xp.asarray(weight), xp.asarray(bias), 1e-5)
    axes = tuple(i for i in range(x.ndim) if i != 1)
    assert_close(mean, np.mean(x, axis=axes, dtype="float64"), "forward")
    assert_close(var, np.var(x, axis=axes, dtype="float64"), "forward")
    nothing = np.zeros(shape[1])
    expected, _, _ = references.batch_norm(x, weight, bias, nothing, nothing, True)
    assert y.dtype == dtype
    assert_close(y, batch_last(expected), "forward")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_batch_norm_by_fixed_statistics(xp, shape, dtype):
    x, weight, bias = setting(shape, dtype)
    mean, var = normal(4, shape[1], dtype=dtype), normal(5, shape[1], dtype=dtype) ** 2
    y = norm.batch_norm_inference(*(xp.asarray(a) for a in (batch_last(x), mean, var, weight, bias)), 1e-5)
    expected, _, _ = references.batch_norm(x, weight, bias, mean, var, False)
    assert y.dtype == dtype
    assert_close(y, batch_last(expected), "forward")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_gradients_are_those_of_differences(xp, shape, batch_statistics, affine):
    x, weight, bias = setting(shape)
    channels, eps = shape[1], 1e-3
    x, dy, fixed = batch_last(x), batch_last(normal(6, *shape)), (normal(4, channels) + 5, normal(5, channels) ** 2 + 1)

    def forward(x, weight, bias):
        if batch_statistics:
            return norm.batch_norm_forward(x, weight, bias, eps)
        return norm.batch_norm_inference(x, *fixed, weight, bias, eps), *fixed

    scale = weight if affine else None
    _, mean, var = forward(x, scale, bias if affine else None)
    arrays = [None if a is None else xp.asarray(a) for a in (dy, x, mean, var, scale)]
    dx, dweight, dbias = norm.batch_norm_backward(*arrays, eps, batch_statistics)

    weight = weight if affine else np.ones(channels)
    assert_close(dx, numerical_gradient(lambda v: forward(v, scale, None)[0], x, dy), "gradient")
    assert_close(dweight, numerical_gradient(lambda v: forward(x, v, bias)[0], weight, dy), "gradient")
    assert_close(dbias, numerical_gradient(lambda v: forward(x, scale, v)[0], bias, dy), "gradient")


AFFINE = pytest.mark.parametrize(("weighted", "shifted"), [(True, True), (True, False), (False, True), (False, False)])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@AFFINE
def test_batch_norm_reads_weight_and_bias_in_their_dtype(xp, dtype, weighted, shifted):
    """Of float16 images too, whose statistics are float32, and also where only one of them is given."""
    x, weight, bias = (a.astype(dtype) for a in setting((4, 3, 5, 2)))
    affine = [xp.asarray(a) if given else None for a, given in ((weight, weighted), (bias, shifted))]
    x = xp.asarray(batch_last(x))
    y, mean, var = norm.batch_norm_forward(x, *affine, 1e-5)
    wide = [a if a is None else a.astype("float64") for a in (x, *affine)]
    exact, _, _ = norm.batch_norm_forward(*wide, 1e-5)
    for ours in (y, norm.batch_norm_inference(x, mean, var, *affine, 1e-5)):
        assert_close(ours, backend.to_numpy(exact), "sum of products", dtype)


@pytest.mark.parametrize("shape", SHAPES)
@AFFINE
def test_batch_norm_without_weight_or_bias(xp, shape, weighted, shifted):
    x, weight, bias = setting(shape)
    mean, var = normal(4, shape[1]), normal(5, shape[1]) ** 2
    affine = [xp.asarray(a) if given else None for a, given in ((weight, weighted), (bias, shifted))]
    ones, zeros = np.ones(shape[1]), np.zeros(shape[1])
    by_hand = (weight if weighted else ones, bias if shifted else zeros)
    batch, fixed = (references.batch_norm(x, *by_hand, mean, var, train)[0] for train in (True, False))
    x = xp.asarray(batch_last(x))
    assert_close(norm.batch_norm_forward(x, *affine, 1e-5)[0], batch_last(batch), "forward")
    statistics = xp.asarray(mean), xp.asarray(var)
    assert_close(norm.batch_norm_inference(x, *statistics, *affine, 1e-5), batch_last(fixed), "forward")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@AFFINE
def test_batch_norm_with_relu_in_it(xp, shape, dtype, weighted, shifted):
    """The same bits as a ReLU behind it; backward counts dy only where the output is above zero."""
    x, weight, bias = setting(shape, dtype)
    weight, bias = (xp.asarray(a) if given else None for a, given in ((weight, weighted), (bias, shifted)))
    x, dy = (xp.asarray(batch_last(a.astype(dtype))) for a in (x, normal(6, *shape)))
    y, mean, var = norm.batch_norm_forward(x, weight, bias, 1e-5, relu=True)
    plain, _, _ = norm.batch_norm_forward(x, weight, bias, 1e-5)
    np.testing.assert_array_equal(backend.to_numpy(y), np.maximum(backend.to_numpy(plain), 0))
    fixed = norm.batch_norm_inference(x, mean, var, weight, bias, 1e-5, relu=True)
    plain = norm.batch_norm_inference(x, mean, var, weight, bias, 1e-5)
    np.testing.assert_array_equal(backend.to_numpy(fixed), np.maximum(backend.to_numpy(plain), 0))
    ours = norm.batch_norm_backward(dy, x, mean, var, weight, 1e-5, y=y)
    expected = norm.batch_norm_backward(dy * (y > 0), x, mean, var, weight, 1e-5)
    for actual, wanted in zip(ours, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, "forward")


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_where_nothing_is_learned(xp, weighted, relu):
    """The dx of fixed statistics, without x."""
    x, weight, bias = setting((5, 3, 4, 2))
    x, dy, mean, var, bias = (
        xp.asarray(a) for a in (batch_last(x), batch_last(normal(6, 5, 3, 4, 2)), normal(4, 3), normal(5, 3) ** 2, bias)
    )
    weight = xp.asarray(weight) if weighted else None
    y = norm.batch_norm_inference(x, mean, var, weight, bias, 1e-3, relu=True) if relu else None
    dx = norm.batch_norm_frozen_backward(dy, var, weight, 1e-3, y)
    expected, _, _ = norm.batch_norm_backward(dy, x, mean, var, weight, 1e-3, batch_statistics=False, y=y)
    assert_close(dx, expected, "forward")


def test_batch_norm_counts_the_statistics_unless_told_not_to(xp):
    x, weight, bias = (xp.asarray(a) for a in setting((4, 3)))
    dy = xp.asarray(normal(6, 3, 4))
    _, mean, var = norm.batch_norm_forward(x.T, weight, bias, 1e-5)
    dx, _, _ = norm.batch_norm_backward(dy, x.T, mean, var, weight, 1e-5)
    np.testing.assert_allclose(backend.to_numpy(dx).sum(axis=1), 0.0, atol=1e-12)


def test_batch_norm_of_one_number_is_the_bias(xp):
    x, bias = xp.asarray(np.array([[3.0], [-5.0]])), xp.asarray(np.array([1.0, 2.0]))
    y, mean, var = norm.batch_norm_forward(x, None, bias, 1e-5)
    np.testing.assert_array_equal(backend.to_numpy(y), [[1.0], [2.0]])
    np.testing.assert_array_equal(backend.to_numpy(mean), [3.0, -5.0])
    np.testing.assert_array_equal(backend.to_numpy(var), [0.0, 0.0])
    dx, dweight, dbias = norm.batch_norm_backward(xp.asarray(np.array([[7.0], [8.0]])), x, mean, var, None, 1e-5)
    np.testing.assert_array_equal(backend.to_numpy(dx), 0.0)
    np.testing.assert_array_equal(backend.to_numpy(dweight), 0.0)
    np.testing.assert_array_equal(backend.to_numpy(dbias), [7.0, 8.0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_running_statistics_move_by_the_momentum(xp, dtype):
    """In place; the variance that is remembered is the unbiased one."""
    x = (normal(1, 5, 3) * 3 + 5).astype(dtype)
    running = [xp.asarray(a.astype(dtype)) for a in (normal(2, 3), normal(3, 3) ** 2)]
    before = [backend.to_numpy(a).copy() for a in running]
    mean, var = (xp.asarray(a) for a in (x.mean(axis=0), x.var(axis=0)))
    norm.update_statistics(*running, mean, var, momentum=0.3, count=5)
    _, *expected = references.batch_norm(x, np.ones(3), np.zeros(3), *before, True, momentum=0.3)
    for actual, wanted in zip(running, expected, strict=True):
        assert_close(actual, wanted, "forward")


@given(shape=shape("NCHW"), layout=layouts, seed=seeds)
def test_batch_norm_of_any_shape(xp, shape, layout, seed):
    if shape[0] * shape[2] * shape[3] < 2:
        shape = (2, *shape[1:])
    x = normal(seed, *shape)
    x_in = laid_out(batch_last(x), layout)
    y, _, _ = norm.batch_norm_forward(x_in if xp is np else xp.asarray(x_in), None, None, 1e-5)
    ones, zeros = np.ones(shape[1]), np.zeros(shape[1])
    assert_close(y, batch_last(references.batch_norm(x, ones, zeros, zeros, ones, True)[0]), "forward")


def test_batch_norm_of_float16_is_summed_in_float32(xp):
    """The sum of these and of their squares is far beyond float16, mean and variance are not."""
    x = (np.arange(8192) % 2 * 2.0 + 99.0).astype("float16").reshape(1, 64, 64, 2)
    y, mean, var = norm.batch_norm_forward(xp.asarray(x), None, None, 1e-5)
    assert y.dtype == "float16"
    assert mean.dtype == var.dtype == "float32"
    np.testing.assert_allclose(backend.to_numpy(mean), [100.0], rtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(var), [1.0], rtol=1e-4)
    np.testing.assert_allclose(backend.to_numpy(y), np.where(x > 100, 1.0, -1.0), rtol=1e-2)


def test_batch_norm_of_float16_is_rounded_once(xp):
    """What cancels in float16 numbers cancels in float32 arithmetic: only inputs and results are float16."""
    x, weight, bias = (normal(1, 2, 60) * 3).astype("float16"), np.full(2, 1e3, "float16"), np.full(2, -1e3, "float16")
    dy = (1000 + np.rint(normal(2, 2, 60))).astype("float16")
    results = []
    for dtype in ("float16", "float64"):
        wide, w, b, d = (xp.asarray(a.astype(dtype)) for a in (x, weight, bias, dy))
        y, mean, var = norm.batch_norm_forward(wide, w, b, 1e-5)
        results.append((y, *norm.batch_norm_backward(d, wide, mean, var, None, 1e-5), mean, var))
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype in ("float16", "float32")
        np.testing.assert_allclose(backend.to_numpy(ours), backend.to_numpy(exact), rtol=1e-3, atol=2e-2)


def test_batch_norm_survives_a_large_mean_in_float32(xp):
    """E[x^2] - E[x]^2 would lose every digit here."""
    x = (1000.0 + normal(1, 3, 8, 8, 16)).astype("float32")
    _, _, var = norm.batch_norm_forward(xp.asarray(x), None, None, 1e-5)
    np.testing.assert_allclose(backend.to_numpy(var), x.astype("float64").var(axis=(1, 2, 3)), rtol=1e-4)


def test_batch_norm_takes_memory_for_its_result_alone(monkeypatch):
    """Scratch memory is there after the first call; backward makes a mask of bytes beside it."""
    monkeypatch.setattr(backend, "_count", 1)
    x, scale = normal(1, 4, 12_000, dtype="float32"), np.ones(4, "float32")
    y, mean, var = norm.batch_norm_forward(x, scale, scale, 1e-5, relu=True)
    for work, most in (
        (lambda: norm.batch_norm_forward(x, scale, scale, 1e-5, relu=True), 1.2),
        (lambda: norm.batch_norm_backward(x, x, mean, var, scale, 1e-5), 1.2),
        (lambda: norm.batch_norm_backward(x, x, mean, var, scale, 1e-5, y=y), 1.6),
    ):
        work()
        tracemalloc.start()
        try:
            work()
            assert tracemalloc.get_traced_memory()[1] < most * x.nbytes
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_local_response_norm(xp, size, dtype):
    x = normal(1, 2, 6, 3, 4, dtype=dtype)
    y, _ = norm.local_response_norm_forward(xp.asarray(batch_last(x)), size, 0.3, 0.75, 1.5)
    assert y.dtype == dtype
    assert_close(y, batch_last(references.local_response_norm(x, size, 0.3, 0.75, 1.5)), "forward")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_local_response_norm_gradient_is_that_of_differences(xp, size):
    x, dy = batch_last(normal(1, 2, 6, 2, 2)), batch_last(normal(2, 2, 6, 2, 2))
    y, scale = norm.local_response_norm_forward(x, size, 0.8, 0.75, 1.0)
    dx = norm.local_response_norm_backward(*(xp.asarray(a) for a in (dy, x, y, scale)), size, 0.8, 0.75)
    numerical = numerical_gradient(lambda v: norm.local_response_norm_forward(v, size, 0.8, 0.75, 1.0)[0], x, dy)
    assert_close(dx, numerical, "gradient")


@given(shape=shape("NCHW"), size=st.integers(1, 6), layout=layouts, seed=seeds)
def test_local_response_norm_of_any_shape(xp, shape, size, layout, seed):
    x = normal(seed, *shape)
    x_in = laid_out(batch_last(x), layout)
    y, _ = norm.local_response_norm_forward(x_in if xp is np else xp.asarray(x_in), size, 1.0, 0.5, 2.0)
    assert_close(y, batch_last(references.local_response_norm(x, size, 1.0, 0.5, 2.0)), "forward")


def test_local_response_norm_of_float16_squares_in_float32(xp):
    x = xp.full((5, 1, 1, 2), 1000.0, "float16")  # the square is beyond float16
    y, scale = norm.local_response_norm_forward(x, 5, 1e-4, 0.75, 1.0)
    assert y.dtype == "float16"
    dx = norm.local_response_norm_backward(xp.ones_like(x), x, y, scale, 5, 1e-4, 0.75)
    assert dx.dtype == "float16"
    wide = [backend.to_numpy(a).astype("float64") for a in (x, y, dx)]
    exact, factor = norm.local_response_norm_forward(wide[0], 5, 1e-4, 0.75, 1.0)
    slope = norm.local_response_norm_backward(np.ones_like(exact), wide[0], exact, factor, 5, 1e-4, 0.75)
    np.testing.assert_allclose(wide[1], exact, rtol=1e-3)
    np.testing.assert_allclose(wide[2], slope, rtol=1e-2)
