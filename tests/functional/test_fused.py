"""The CUDA kernels against the generic bodies they stand beside, which are compared with references elsewhere."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import normal, seeds
from tolerances import assert_close

from xpcnn import SGD, Adagrad, Adam, AdamW, Dense, RMSprop
from xpcnn.functional import activation, conv, dropout, fused, loss, norm, pool
from xpcnn.functional.geometry import make_window

pytestmark = pytest.mark.cupy
DTYPES = ["float16", "float32", "float64"]


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


@pytest.fixture(params=["32-bit indices", "64-bit indices"])
def indices(request, monkeypatch):
    """Both types of index, whatever the size of the arrays."""
    if request.param.startswith("64"):
        monkeypatch.setattr(fused, "INDEX_LIMIT", 0)


def both(function, *arguments, **options):
    """Return what the kernel and what the generic body give, as tuples."""
    first = function(*arguments, **options)
    with fused.disabled():
        second = function(*arguments, **options)
    return tuple(r if isinstance(r, tuple) else (r,) for r in (first, second))


def assert_same(function, *arguments, operation="elementwise", **options):
    for ours, generic in zip(*both(function, *arguments, **options), strict=True):
        assert ours.dtype == generic.dtype
        assert_close(ours, generic.get(), operation)


def test_kernels_are_for_contiguous_cupy_arrays(cp):
    assert not fused.takes(np.ones(3))
    assert fused.takes(cp.ones((2, 3)), None)
    assert not fused.takes(cp.ones((2, 3)).T)
    assert not fused.takes(cp.ones((2, 0)))
    with fused.disabled():
        assert not fused.takes(cp.ones(3))
    assert fused.takes(cp.ones(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise(cp, dtype):
    dy, y = (cp.asarray(normal(seed, 5, 7, 3, dtype=dtype)) for seed in (1, 2))
    assert_same(activation.relu_backward, dy, y)
    for p in (0.0, 0.3, 0.9):
        (y1, mask1), (y2, mask2) = both(dropout.dropout_forward, dy, p, 12345)
        assert (mask1 == mask2).all()
        assert_close(y1, y2.get(), "elementwise")
        assert_same(dropout.dropout_backward, dy, mask1, p)


WINDOWS = [  # input, kernel, stride, padding, dilation
    ((5, 7), (3, 3), (1, 1), 1, (1, 1)),
    ((6, 5), (2, 2), (2, 2), 0, (1, 1)),
    ((7, 8), (3, 2), (2, 3), (1, 0, 0, 1), (1, 1)),
    ((9, 7), (2, 3), (1, 2), 1, (2, 2)),
    ((5, 5), (1, 1), (2, 2), 0, (1, 1)),
    ((4, 4), (4, 4), (1, 1), 0, (1, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", WINDOWS, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(cp, indices, geometry, groups, dtype, monkeypatch):
    window = make_window(*geometry)
    x, weight = normal(1, 4, *geometry[0], 3, dtype=dtype), normal(2, 6, 4 // groups, *geometry[1], dtype=dtype)
    dy, bias = normal(3, 6, *window.output, 3, dtype=dtype), normal(4, 6, dtype=dtype)
    x, weight, dy, bias = map(cp.asarray, (x, weight, dy, bias))
    for columns in (1 << 28, 60):  # all at once, and in several chunks
        monkeypatch.setattr(conv, "CHUNK_GPU", columns)
        for relu in (False, True):
            assert_same(conv.conv2d_forward, x, weight, bias, window, groups, relu, operation="sum of products")
        assert_same(conv.conv2d_backward, dy, x, weight, window, groups, operation="sum of products")


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.integers(0, 1),
    ceil_mode=st.booleans(),
    levels=st.sampled_from([2, 1000]),  # few levels: many elements of a window are equal
    seed=seeds,
)
def test_max_pool_of_any_geometry(cp, indices, size, kernel, stride, padding, ceil_mode, levels, seed):
    padding = min(padding, min(kernel) // 2)
    assume(all(n + 2 * padding >= k for n, k in zip(size, kernel, strict=True)))
    window = make_window(size, kernel, stride, padding, (1, 1), ceil_mode)
    rng = np.random.default_rng(seed)
    x = cp.asarray(rng.integers(-levels, levels, (2, *size, 3)).astype(np.float32))
    dy = cp.asarray(rng.integers(-9, 9, (2, *window.output, 3)).astype(np.float32))  # sums of which are exact
    (y,), (expected,) = both(pool.max_pool2d_forward, x, window)
    assert (y == expected).all()
    (dx,), (expected,) = both(pool.max_pool2d_backward, dy, x, y, window)
    assert (dx == expected).all()


def test_max_pool_passes_nan_on(cp):
    x = cp.zeros((1, 2, 4, 1), np.float32)
    x[0, 1, 0] = np.nan
    y = pool.max_pool2d_forward(x, make_window((2, 4), (2, 2), (2, 2), 0))
    assert np.isnan(y.get().ravel()).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 4, 2), (1, 1, 1, 2), (2, 40, 40, 3), (5, 9)])  # the third in several parts
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm(cp, shape, affine, relu, dtype):
    x, dy = (cp.asarray((normal(seed, *shape) * 2 + 3).astype(dtype)) for seed in (1, 2))
    weight, bias = (cp.asarray(normal(seed, shape[0], dtype=dtype)) if affine else None for seed in (3, 4))
    assert_same(norm.batch_norm_forward, x, weight, bias, 1e-5, relu, operation="sum of products")
    y, mean, var = norm.batch_norm_forward(x, weight, bias, 1e-5, relu)
    assert_same(norm.batch_norm_inference, x, mean, var, weight, bias, 1e-5, relu, operation="sum of products")
    for by_batch in (True, False):
        arguments = dy, x, mean, var, weight, 1e-5, by_batch, y if relu else None
        assert_same(norm.batch_norm_backward, *arguments, operation="sum of products")


def test_batch_norm_of_numbers_far_from_zero(cp):
    x = cp.asarray((normal(1, 2, 3000) + 1e4).astype(np.float32))
    _, mean, var = norm.batch_norm_forward(x, None, None, 1e-5)
    exact = x.get().astype(np.float64)
    np.testing.assert_allclose(mean.get(), exact.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(var.get(), exact.var(axis=1), rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics(cp, dtype):
    wide = np.promote_types(dtype, np.float32)
    mean, var = (cp.asarray(np.abs(normal(seed, 4)).astype(wide)) for seed in (1, 2))
    results = []
    for context in (fused.disabled(), None):
        running = [cp.asarray(np.abs(normal(seed, 4)).astype(dtype)) for seed in (3, 4)]
        if context:
            with context:
                norm.update_statistics(*running, mean, var, 0.1, 12)
        else:
            norm.update_statistics(*running, mean, var, 0.1, 12)
        results.append(running)
    for ours, generic in zip(*results, strict=True):
        assert_close(ours, generic.get(), "elementwise")


@pytest.mark.parametrize("strided", range(4))
def test_running_statistics_of_another_layout(cp, strided):
    """Kernels are for contiguous arrays; what they cannot take is moved all the same."""
    arrays = [cp.asarray(np.abs(normal(seed, 4))) for seed in range(4)]
    expected = [a.copy() for a in arrays]
    norm.update_statistics(*expected, 0.1, 12)
    arrays[strided] = cp.repeat(arrays[strided], 2)[::2]
    norm.update_statistics(*arrays, 0.1, 12)
    for ours, wanted in zip(arrays, expected, strict=True):
        assert_close(ours, wanted.get(), "elementwise")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "batch"), [(2, 1), (10, 33), (70, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy(cp, classes, batch, smoothing, dtype):
    logits = cp.asarray((normal(1, classes, batch) * 5).astype(dtype))
    for labels in ("int64", "uint8"):
        t = cp.asarray(np.random.default_rng(0).integers(0, classes, batch).astype(labels))
        options = {"label_smoothing": smoothing, "operation": "sum of products"}
        assert_same(loss.softmax_cross_entropy, logits, t, **options)


def test_softmax_cross_entropy_of_extreme_logits(cp):
    logits = np.array([[1e4, -np.inf, np.nan, 3.0], [-1e4, 0.0, 0.0, 3.0]], np.float32)
    t = cp.asarray(np.array([0, 1, 0, 1]))
    for n in range(4):
        (one, gradient), (two, expected) = both(
            loss.softmax_cross_entropy, cp.asarray(logits[:, n : n + 1]), t[n : n + 1]
        )
        np.testing.assert_allclose(one.get(), two.get(), rtol=1e-6)
        np.testing.assert_allclose(gradient.get(), expected.get(), rtol=1e-6)


def test_softmax_cross_entropy_takes_the_largest_of_many_logits(cp):
    logits, t = cp.asarray(np.linspace(2e3, -2e3, 40)[:, None].astype(np.float32)), cp.asarray(np.array([0]))
    assert_same(loss.softmax_cross_entropy, logits, t, operation="sum of products")


OPTIMIZERS = {
    "SGD": lambda: SGD(0.1, weight_decay=0.01),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "Nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "Adagrad": lambda: Adagrad(0.1, lr_decay=0.1, initial_accumulator_value=0.5),
    "RMSprop": lambda: RMSprop(0.1, weight_decay=0.01),
    "centered": lambda: RMSprop(0.1, momentum=0.5, centered=True),
    "Adam": lambda: Adam(0.1, weight_decay=0.01, groups={"bias": {"lr": 0.01, "weight_decay": 0.0}}),
    "no memory": lambda: Adam(0.1, betas=(0.0, 0.9)),
    "AdamW": lambda: AdamW(0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates(cp, name, dtype):
    weights = []
    for context in (nullcontext(), fused.disabled()):
        net, optimizer = Dense(4), OPTIMIZERS[name]()
        net.build((3,), dtype=dtype, device="cuda:0")
        with context:
            for seed in range(10):
                net.flat().grad[...] = cp.asarray(normal(seed, 16))
                optimizer.step(net)
                assert not net.flat().grad.any()
        weights.append({**net.state_dict(), **optimizer.state_dict()})
    for key, array in weights[0].items():
        assert_close(np.asarray(array.get() if hasattr(array, "get") else array), weights[1][key], "update", dtype)


def test_an_update_counts_every_step_unless_told_otherwise(cp):
    w, g = cp.ones(3), cp.full(3, 2.0)
    fused.update("w -= lr * g * step;", w, g, {}, {"lr": 0.5}, 4)
    assert w.tolist() == [-3.0] * 3
    fused.update("w -= lr * g * step;", w, g, {}, {"lr": 0.5}, 4, skipped=cp.asarray(3), finite=cp.asarray(True))
    assert w.tolist() == [-4.0] * 3
    g[...] = np.inf
    fused.update("w -= lr * g * step;", w, g, {}, {"lr": 0.5}, 5, finite=cp.asarray(False))
    assert w.tolist() == [-4.0] * 3


@pytest.mark.parametrize("size", [1, 1000, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fault", [None, np.inf, -np.inf, np.nan])
def test_unscale(cp, size, dtype, fault):
    for place in (0, size // 2, size - 1):
        exact = normal(1, size, dtype=dtype)
        if fault is not None:
            exact[place] = fault
        gradient = cp.asarray(exact)
        finite = fused.unscale(gradient, cp.asarray(np.float32(8)))
        np.testing.assert_array_equal(gradient.get(), exact / 8)
        assert finite.shape == ()
        assert bool(finite) is (fault is None)


def test_unscale_fills_the_device_but_wastes_no_blocks(cp, monkeypatch):
    grids, kernel = [], fused._kernel
    monkeypatch.setattr(fused, "_kernel", lambda *a, **k: lambda *b: (grids.append(b[:2]), kernel(*a, **k)(*b)))
    monkeypatch.setattr(fused, "BLOCKS", 5)
    for size, blocks in ((1, 1), (2047, 1), (2048, 2), (4 * 256 * 9, 5)):
        fused.unscale(cp.ones(size), cp.asarray(np.float32(2)))
        assert grids.pop() == ((blocks,), (fused.THREADS,))


def test_the_scale_is_adjusted(cp):
    """Halved after a fault, doubled after three good gradients in a row."""
    scale, good, skipped = cp.asarray(np.float32(16)), cp.asarray(0), cp.asarray(0)
    for finite, *expected in (
        (True, 16, 1, 0),
        (True, 16, 2, 0),
        (False, 8, 0, 1),
        (True, 8, 1, 1),
        (True, 8, 2, 1),
        (True, 16, 0, 1),
        (False, 8, 0, 2),
    ):
        fused.adjust_scale(cp.asarray(finite), 3, scale, good, skipped)
        assert [float(scale), int(good), int(skipped)] == expected


def test_kernels_are_called_like_their_functions(cp, monkeypatch):
    """It is what profilers show."""
    names = []
    for maker in ("_elementwise", "_kernel"):
        make = getattr(fused, maker)
        monkeypatch.setattr(fused, maker, lambda *a, make=make, **k: (names.append(a[1]), make(*a, **k))[1])
    x, window = cp.ones((2, 4, 4, 3)), make_window((4, 4), (2, 2), (2, 2), 0)
    small, mask, row = cp.ones((2, 2, 2, 3)), cp.ones((2, 4, 4, 3), bool), cp.ones(2)
    scalar = cp.asarray(np.float32(1))
    for expected, call in {
        "relu_backward": lambda: fused.relu_backward(x, x),
        "dropout_forward": lambda: fused.dropout_forward(x, 1, (2, 3), 1.0),
        "dropout_backward": lambda: fused.dropout_backward(x, mask, 1.0),
        "bias_relu": lambda: fused.bias_relu(x.reshape(2, -1), row[:, None], x.reshape(2, -1)),
        "im2col": lambda: fused.im2col(x, window, slice(0, 12), 1, False),
        "col2im": lambda: fused.col2im(cp.ones((1, 8, 12)), window, (0, 2), x.copy()),
        "max_pool2d_forward": lambda: fused.max_pool2d_forward(x, window),
        "max_pool2d_backward": lambda: fused.max_pool2d_backward(small, x, small, window),
        "statistics, normalise": lambda: fused.batch_norm_forward(x, row, row, 1e-5, False),
        "gradient_sums, gradients": lambda: fused.batch_norm_backward(x, x, row, row, row, 1e-5, True, None),
        "batch_norm_inference": lambda: fused.batch_norm_inference(x, row, row, row, row, 1e-5, False),
        "update_statistics": lambda: fused.update_statistics(row, row, row, row, 0.1, 1.1),
        "cross_entropy": lambda: fused.softmax_cross_entropy(cp.ones((3, 2)), cp.asarray([0, 1]), 0.0),
        "update": lambda: fused.update("w -= g;", row, row.copy(), {}, {}, 1),
        "unscale": lambda: fused.unscale(row, scalar),
        "adjust_scale": lambda: fused.adjust_scale(cp.asarray(True), 9, scalar, cp.asarray(0), cp.asarray(0)),
    }.items():
        call()
        assert ", ".join(names) == expected
        names.clear()


def test_the_same_bits_every_time(cp):
    x, dy = (cp.asarray(normal(seed, 3, 40, 40, 4, dtype="float32")) for seed in (1, 2))
    first, second = (norm.batch_norm_forward(x, None, None, 1e-5) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    _, mean, var = first
    first, second = (norm.batch_norm_backward(dy, x, mean, var, None, 1e-5) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
