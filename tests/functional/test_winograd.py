from __future__ import annotations

import numpy as np
import pytest
from strategies import normal

from xpcnn import backend
from xpcnn.functional import winograd
from xpcnn.functional.conv import conv2d_backward, conv2d_forward
from xpcnn.functional.geometry import Padding, Window, make_window

SHAPES = {  # C, O, H, W, N
    "one tile": (1, 1, 2, 2, 1),
    "more outputs": (3, 5, 4, 6, 2),
    "more inputs": (6, 2, 8, 4, 3),
    "batch of one": (4, 4, 6, 6, 1),
    "wide": (2, 3, 2, 20, 4),
    "odd height": (3, 4, 5, 6, 2),
    "odd width": (3, 4, 6, 5, 2),
    "odd": (2, 3, 7, 3, 3),
    "one pixel": (2, 3, 1, 1, 2),
}
PADDINGS = {"1": 1, "0": 0, "2": 2, "each side": (0, 1, 2, 1), "same": "same"}


def window_of(height: int, width: int, padding: Padding = 1) -> Window:
    return make_window((height, width), (3, 3), (1, 1), padding)


def arrays(shape: tuple[int, ...], dtype: str = "float64", padding: Padding = 1):
    """x, weight, bias, dy."""
    c, o, h, w, n = shape
    return (
        normal(0, c, h, w, n, dtype=dtype),
        normal(1, o, c, 3, 3, dtype=dtype),
        normal(2, o, dtype=dtype),
        normal(3, o, *window_of(h, w, padding).output, n, dtype=dtype),
    )


by_shape = pytest.mark.parametrize(
    ("shape", "padding"),
    [
        pytest.param(shape, padding, id=f"{name}, padding {way}")
        for name, shape in SHAPES.items()
        for way, padding in PADDINGS.items()
        if min(shape[2:4]) >= 3 or way in ("1", "2", "same")
    ],
)


@pytest.fixture
def any_size(monkeypatch):
    """Let small convolutions take this way too."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)


def both_ways(monkeypatch, function):
    """Return what a function gives this way, and what it gives by columns."""
    calls = []
    for name in ("convolve", "weight_gradient"):
        real = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, real=real, **k: calls.append(real) or real(*a, **k))
    ours = function()
    assert calls
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "takes", lambda *_: False)
        calls.clear()
        expected = function()
    assert not calls
    return ours, expected


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_forward_is_that_by_columns(any_size, monkeypatch, shape, bias, relu):
    x, weight, b, _ = arrays(shape)
    window = window_of(*x.shape[1:3])
    y, expected = both_ways(monkeypatch, lambda: conv2d_forward(x, weight, b if bias else None, window, 1, relu))
    assert y.flags.c_contiguous
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("part", [1, 1 << 22])
def test_gradients_are_those_by_columns(any_size, monkeypatch, shape, part):
    monkeypatch.setattr(winograd, "PART", part)  # with 1, every row of tiles is a part
    monkeypatch.setattr(winograd, "PART_GRADIENT", part)
    x, weight, _, dy = arrays(shape)
    window = window_of(*x.shape[1:3])
    ours, expected = both_ways(monkeypatch, lambda: conv2d_backward(dy, x, weight, window))
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_only_what_is_asked_for(any_size):
    x, weight, _, dy = arrays(SHAPES["more outputs"])
    window = window_of(4, 6)
    dx, dw = conv2d_backward(dy, x, weight, window)
    np.testing.assert_array_equal(conv2d_backward(dy, None, weight, window, need_dw=False)[0], dx)
    np.testing.assert_array_equal(conv2d_backward(dy, x, weight, window, need_dx=False)[1], dw)
    assert conv2d_backward(dy, None, weight, window, need_dw=False)[1] is None
    assert conv2d_backward(dy, x, weight, window, need_dx=False)[0] is None


def test_arrays_in_any_layout(any_size):
    x, weight, _, dy = arrays((3, 4, 4, 6, 5))
    window = window_of(4, 6)
    expected = conv2d_forward(x, weight, None, window), *conv2d_backward(dy, x, weight, window)
    strided = [np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1) for a in (x, dy)]
    mirrored = np.ascontiguousarray(weight[::-1])[::-1]
    found = (
        conv2d_forward(strided[0], mirrored, None, window),
        *conv2d_backward(strided[1], strided[0], mirrored, window),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(128, 128, 8, 8, 16), (256, 128, 4, 4, 64)])
def test_rounding_in_float32_is_that_of_columns(monkeypatch, shape):
    x, weight, _, dy = arrays(shape, "float32")
    window = window_of(*shape[2:4])
    exact = [a.astype("float64") for a in (x, weight, dy)]

    def all_three(x, weight, dy):
        return conv2d_forward(x, weight, None, window), *conv2d_backward(dy, x, weight, window)

    ours, columns = both_ways(monkeypatch, lambda: all_three(x, weight, dy))
    for one, other, true in zip(ours, columns, all_three(*exact), strict=True):
        assert one.dtype == "float32"
        scale = np.abs(true).max()
        assert np.abs(one - true).max() / scale < max(3 * np.abs(other - true).max() / scale, 2e-6)


def test_threads_change_nothing_with_fixed_lanes(any_size, monkeypatch):
    for name in ("_count", "_lanes"):
        monkeypatch.setattr(backend, name, getattr(backend, name))  # and back
    x, weight, b, dy = arrays((64, 64, 8, 8, 8), "float32")
    results = []
    for threads in (1, 2, 3):
        backend.set_threads(threads, lanes=4)
        with backend.single_threaded_blas():
            y = conv2d_forward(x, weight, b, window_of(8, 8), 1, True)
            results.append((y, *conv2d_backward(dy, x, weight, window_of(8, 8))))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


REFUSED = {
    "kernel 5x5": {"kernel": (5, 5), "padding": 2},
    "kernel 3x1": {"kernel": (3, 1)},
    "stride": {"stride": (2, 2)},
    "dilation": {"dilation": (2, 2), "padding": 2},
    "padding beyond the kernel": {"padding": (1, 1, 3, 1)},
    "groups": {"groups": 2},
    "few inputs": {"channels": 64},
    "few outputs": {"filters": 64},
    "few tiles": {"size": (2, 2)},
    "float16": {"dtype": "float16"},
}


@pytest.mark.parametrize("changed", [{}, *REFUSED.values()], ids=["taken", *REFUSED])
def test_what_is_taken(changed):
    made = {"size": (16, 16), "kernel": (3, 3), "stride": (1, 1), "padding": 1, "dilation": (1, 1), "groups": 1}
    made |= {"channels": 128, "filters": 128, "dtype": "float32"} | changed
    window = make_window(made["size"], made["kernel"], made["stride"], made["padding"], made["dilation"])
    x = np.zeros((made["channels"], *made["size"], 8), made["dtype"])
    weight = np.zeros((made["filters"], made["channels"] // made["groups"], *made["kernel"]), made["dtype"])
    assert winograd.takes(x, weight, window, made["groups"]) is not bool(changed)


def test_arrays_of_a_gpu_are_not_taken(xp):
    x, weight = xp.zeros((128, 16, 16, 8), "float32"), xp.zeros((128, 128, 3, 3), "float32")
    assert winograd.takes(x, weight, window_of(16, 16), 1) is (xp is np)


def test_just_enough(monkeypatch):
    def taken(channels, filters, width, batch, padding=1):
        x = np.zeros((channels, 16, width, batch), "float32")
        weight = np.zeros((filters, channels, 3, 3), "float32")
        return winograd.takes(x, weight, window_of(16, width, padding), 1)

    assert (winograd.FEWEST_CHANNELS, winograd.FEWEST_TILES) == (128, 256)
    assert taken(128, 128, 16, 4)
    assert taken(128, 128, 15, 4)  # the last tile of a row reaches into zeros
    assert not taken(127, 128, 16, 4)
    assert not taken(128, 127, 16, 4)
    assert not taken(128, 128, 14, 4)
    assert not taken(128, 128, 16, 3)
    assert taken(128, 128, 16, 4, 2)
    assert not winograd.takes([[0.0]], np.zeros((128, 128, 3, 3)), window_of(16, 16), 1)
    assert not winograd.takes(np.zeros((128, 16, 16, 8)), [[0.0]], window_of(16, 16), 1)


@pytest.mark.parametrize("shape", [(5, 6, 7, 5, 3), (5, 6, 8, 4, 3)])
def test_scratch_memory_is_named_typed_and_written_before_it_is_read(any_size, monkeypatch, shape):
    monkeypatch.setattr(winograd, "PART", 1)
    monkeypatch.setattr(winograd, "PART_GRADIENT", 1)
    x, weight, b, dy = arrays(shape, "float32")
    window = window_of(*shape[2:4])
    expected = conv2d_forward(x, weight, b, window, 1, True), *conv2d_backward(dy, x, weight, window)
    names, real, product = set(), winograd.workspace, winograd.matmul

    def workspace(xp, name, shape, dtype):
        assert dtype == "float32"
        names.add(name)
        array = real(xp, name, shape, dtype)
        array.fill(np.nan)
        return array

    def matmul(a, b, out):
        assert a.dtype == b.dtype == out.dtype == "float32"
        return product(a, b, out)

    monkeypatch.setattr(winograd, "workspace", workspace)
    monkeypatch.setattr(winograd, "matmul", matmul)
    found = conv2d_forward(x, weight, b, window, 1, True), *conv2d_backward(dy, x, weight, window)
    assert names == {f"winograd {what}" for what in ("kernels", "tiles", "columns", "products", "outputs", "part")}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_array_equal(one, other)


def test_work_is_shared_by_blocks_of_channels_and_runs_of_elements(any_size, monkeypatch):
    monkeypatch.setattr(winograd, "BLOCK", 8)
    monkeypatch.setattr(backend, "_count", 2)
    monkeypatch.setattr(backend, "_lanes", 2)
    loops = []
    monkeypatch.setattr(
        winograd, "for_chunks", lambda count, work, f: loops.append((count, work)) or [f(i) for i in range(count)]
    )
    x, weight, b, _ = arrays((6, 4, 4, 4, 2))  # 8 tiles of 16 elements
    conv2d_forward(x, weight, b, window_of(4, 4))
    kernels, tiles, elements, outputs = loops
    assert kernels == (4, 16 * 24)
    assert tiles == (6, 16 * 48)
    assert elements == (2, 16 * 16 * 4 * 8)
    assert outputs == (4, 16 * 32)
