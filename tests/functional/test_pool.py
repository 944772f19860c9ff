from __future__ import annotations

import math

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from references import batch_last
from strategies import WindowCase, distinct, laid_out, layouts, normal, pool_windows_HW_KHKW, seeds, shape
from tolerances import assert_close

from xpcnn import backend
from xpcnn.errors import ShapeError
from xpcnn.functional import pool
from xpcnn.functional.geometry import Window, make_window

WINDOWS = {
    "2x2": WindowCase((6, 8), (2, 2), (2, 2), 0),
    "2x2, odd image": WindowCase((5, 7), (2, 2), (2, 2), 0),
    "2x2, odd image, ceil": WindowCase((5, 7), (2, 2), (2, 2), 0, ceil_mode=True),
    "3x3, stride 2, padding 1": WindowCase((7, 6), (3, 3), (2, 2), 1),
    "3x3, stride 2, ceil": WindowCase((6, 8), (3, 3), (2, 2), 0, ceil_mode=True),
    "3x3, stride 2, padding 1, ceil": WindowCase((6, 8), (3, 3), (2, 2), 1, ceil_mode=True),
    "3x3, stride 1, padding 1": WindowCase((5, 4), (3, 3), (1, 1), 1),
    "per-side padding": WindowCase((5, 6), (3, 3), (2, 1), (1, 0, 0, 1)),
    "per-side padding, ceil": WindowCase((6, 6), (3, 2), (2, 3), (0, 1, 1, 0), ceil_mode=True),
    "padding at the left": WindowCase((4, 4), (2, 2), (1, 1), (0, 0, 1, 0)),
    "padding at the sides, ceil below": WindowCase((3, 4), (2, 2), (2, 2), (0, 1), ceil_mode=True),
    "overlapping": WindowCase((6, 5), (3, 2), (1, 1), 0),
    "non-square kernel": WindowCase((6, 9), (1, 4), (2, 3), (0, 2)),
    "non-square kernel the other way": WindowCase((9, 6), (4, 1), (3, 2), (2, 0)),
    "stride larger than the kernel": WindowCase((9, 8), (2, 1), (4, 3), 0),
    "stride larger than the kernel, ceil": WindowCase((9, 8), (2, 2), (4, 5), 0, ceil_mode=True),
    "image as large as the kernel": WindowCase((4, 3), (4, 3), (1, 1), 0),
    "one pixel": WindowCase((1, 1), (1, 1), (1, 1), 0),
    "1x1, stride 2": WindowCase((5, 4), (1, 1), (2, 2), 0),
    "last window dropped from the far padding": WindowCase((4, 4), (2, 2), (3, 3), 1, ceil_mode=True),
}
DILATED = WINDOWS | {
    "dilation 2": WindowCase((7, 8), (3, 2), (1, 1), 0, (2, 2)),
    "dilation 2, stride 2, padding 1": WindowCase((8, 7), (3, 3), (2, 2), 1, (2, 2)),
    "dilation, ceil": WindowCase((9, 8), (2, 3), (2, 2), (0, 1), (3, 2), True),
    "stride of all dilated taps": WindowCase((9, 9), (2, 2), (4, 4), 0, (2, 2)),
}
POWERS = [1.0, 1.5, 2.0, 3.0, 10.0, math.inf]

windows = pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS)
dilated_windows = pytest.mark.parametrize("case", DILATED.values(), ids=DILATED)
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


def window_of(case: WindowCase) -> Window:
    window = make_window(case.size, case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    assert window.output == case.output
    return window


def options(case: WindowCase):
    return case.kernel, case.stride, case.pads


def put(xp, x: np.ndarray, layout: str = "C"):
    x = laid_out(batch_last(x), layout)
    return x if xp is np else xp.asarray(x)


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request, monkeypatch):
    """Once in one piece, once in as many blocks and threads as there can be."""
    if request.param == "in blocks":
        monkeypatch.setattr(backend, "BLOCK", 8)
        monkeypatch.setattr(backend, "INLINE_WORK", 0)
        monkeypatch.setattr(backend, "_count", 3)


# --- max --------------------------------------------------------------------------------------------------------


def check_max(xp, case: WindowCase, x: np.ndarray, layout: str = "C") -> None:
    window = window_of(case)
    dy = normal(7, *x.shape[:2], *case.output, dtype=str(x.dtype))
    x_in = put(xp, x, layout)
    y = pool.max_pool2d_forward(x_in, window)
    dx = pool.max_pool2d_backward(put(xp, dy, layout), x_in, y, window)
    assert y.dtype == dx.dtype == x.dtype
    expected = references.max_pool2d(x, *options(case), case.dilation, case.ceil_mode)
    np.testing.assert_array_equal(backend.to_numpy(y), batch_last(expected))
    expected = references.max_pool2d_gradient(dy, x, *options(case), case.dilation, case.ceil_mode)
    assert_close(dx, batch_last(expected), "forward")


@dilated_windows
@dtypes
@pytest.mark.usefixtures("blocks")
def test_max_without_ties(xp, case, dtype):
    check_max(xp, case, distinct(1, 2, 3, *case.size, dtype=dtype))


@dilated_windows
@pytest.mark.usefixtures("blocks")
def test_max_with_ties_takes_the_first_in_row_major_order(xp, case):
    check_max(xp, case, np.random.default_rng(1).integers(0, 2, (3, 2, *case.size)).astype("float64"))
    check_max(xp, case, np.zeros((1, 1, *case.size)))


@dilated_windows
def test_max_of_negative_images_is_not_the_padding(xp, case):
    check_max(xp, case, distinct(2, 2, 2, *case.size) - 1000.0)


@given(case=pool_windows_HW_KHKW(dilated=True), n_c=shape("NC"), layout=layouts, seed=seeds, ties=st.booleans())
def test_max_of_any_window(xp, case, n_c, layout, seed, ties):
    x = distinct(seed, *n_c, *case.size)
    check_max(xp, case, np.rint(x) if ties else x, layout)


def test_max_passes_nan_on(xp):
    x = xp.asarray(np.array([[1.0, np.nan], [2.0, 3.0]]).reshape(1, 2, 2, 1))
    assert math.isnan(float(pool.max_pool2d_forward(x, window_of(WindowCase((2, 2), (2, 2), (2, 2), 0)))[0, 0, 0, 0]))


@dilated_windows
def test_max_of_large_pixels(case, monkeypatch):
    """Pixels of many numbers are compared where they lie, others are copied together first."""
    x = distinct(5, 4, 2, *case.size)
    monkeypatch.setattr(pool, "SMALL_PIXEL", 3)
    check_max(np, case, x)
    monkeypatch.setattr(pool, "SMALL_PIXEL", 4)
    check_max(np, case, x)


@windows
def test_max_where_the_caller_wants_it(case):
    """A plan of a prediction has memory for each result."""
    x, window = batch_last(distinct(1, 2, 3, *case.size)), window_of(case)
    out = np.full((3, *case.output, 2), np.nan)
    assert pool.max_pool2d_forward(x, window, out) is out
    np.testing.assert_array_equal(out, pool.max_pool2d_forward(x, window))


# --- average ----------------------------------------------------------------------------------------------------


def check_average(xp, case: WindowCase, include_pad: bool, x: np.ndarray, layout: str = "C") -> None:
    window = window_of(case)
    dy = normal(7, *x.shape[:2], *case.output, dtype=str(x.dtype))
    y = pool.avg_pool2d_forward(put(xp, x, layout), window, include_pad)
    dx = pool.avg_pool2d_backward(put(xp, dy, layout), window, include_pad)
    assert y.dtype == dx.dtype == x.dtype
    assert_close(y, batch_last(references.avg_pool2d(x, *options(case), case.ceil_mode, include_pad)), "forward")
    expected = references.avg_pool2d_gradient(dy, case.size, *options(case), case.ceil_mode, include_pad)
    assert_close(dx, batch_last(expected), "forward")


@windows
@dtypes
@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.usefixtures("blocks")
def test_average(xp, case, dtype, include_pad):
    check_average(xp, case, include_pad, normal(1, 2, 3, *case.size, dtype=dtype))


@given(case=pool_windows_HW_KHKW(), n_c=shape("NC"), layout=layouts, seed=seeds, include_pad=st.booleans())
def test_average_of_any_window(xp, case, n_c, layout, seed, include_pad):
    check_average(xp, case, include_pad, normal(seed, *n_c, *case.size), layout)


@given(case=pool_windows_HW_KHKW(), include_pad=st.booleans())
def test_average_of_ones(case, include_pad):
    """Without counting the padding every mean of ones is one; with it none is more."""
    y = pool.avg_pool2d_forward(np.ones((1, *case.size, 1)), window_of(case), include_pad)
    assert y.max() <= 1 + 1e-12
    if not include_pad:
        np.testing.assert_allclose(y, 1.0, rtol=1e-12)


def test_average_counts_the_padding_unless_told_not_to(xp):
    window = window_of(WindowCase((2, 2), (2, 2), (2, 2), 1))
    y = pool.avg_pool2d_forward(xp.ones((1, 2, 2, 1)), window)
    np.testing.assert_array_equal(backend.to_numpy(y), 0.25)
    np.testing.assert_array_equal(backend.to_numpy(pool.avg_pool2d_backward(xp.ones((1, 2, 2, 1)), window)), 0.25)


@pytest.mark.parametrize(
    ("name", "include_pad", "same"),
    [
        ("2x2", False, True),
        ("3x3, stride 2, padding 1", True, True),
        ("3x3, stride 2, padding 1", False, False),
        ("per-side padding", True, True),
        ("padding at the left", True, True),
        ("2x2, odd image", True, True),
        ("2x2, odd image, ceil", True, False),
        ("3x3, stride 2, ceil", False, False),
    ],
)
def test_average_divides_by_one_number_where_all_windows_are_alike(xp, name, include_pad, same):
    """One multiplication instead of one by an array made for it."""
    scale = pool._scale(xp.ones(1, "float32"), window_of(WINDOWS[name]), include_pad)
    assert isinstance(scale, float) if same else scale.dtype == "float32"


# --- Lp ---------------------------------------------------------------------------------------------------------


@windows
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.usefixtures("blocks")
def test_lp(xp, case, p, mean):
    x, window = distinct(1, 2, 2, *case.size), window_of(case)
    x_in = put(xp, x)
    y = pool.lp_pool2d_forward(x_in, window, p, mean)
    expected = references.lp_pool2d(x, p, *options(case), case.ceil_mode, mean)
    assert_close(y, batch_last(expected), "forward")
    if not math.isinf(p):  # |x| and |-x| tie, so the maximum of absolute values has no derivative everywhere
        dy = normal(2, *y.shape)
        dx = pool.lp_pool2d_backward(xp.asarray(dy), x_in, y, window, p, mean)
        numerical = references.numerical_gradient(
            lambda v: pool.lp_pool2d_forward(v, window, p, mean), batch_last(x), dy
        )
        assert_close(dx, numerical, "gradient")


def test_lp_infinity_is_the_maximum_of_absolute_values(xp):
    case = WindowCase((6, 5), (3, 2), (2, 1), 1)
    x, window = np.abs(distinct(1, 2, 3, *case.size)) * np.linspace(1, 2, 30).reshape(6, 5), window_of(case)
    y = pool.lp_pool2d_forward(put(xp, -x), window, math.inf)
    np.testing.assert_array_equal(backend.to_numpy(y), batch_last(references.max_pool2d(x, *options(case))))
    dy = normal(2, 2, 3, *case.output)
    dx = pool.lp_pool2d_backward(put(xp, dy), put(xp, -x), y, window, math.inf)
    assert_close(dx, -batch_last(references.max_pool2d_gradient(dy, x, *options(case))), "forward")


def test_lp_shares_the_gradient_of_a_tied_maximum(xp):
    x = xp.asarray(np.array([3.0, -3.0, 1.0, 3.0]).reshape(1, 2, 2, 1))
    window = window_of(WindowCase((2, 2), (2, 2), (2, 2), 0))
    y = pool.lp_pool2d_forward(x, window, math.inf)
    dx = pool.lp_pool2d_backward(xp.full((1, 1, 1, 1), 6.0), x, y, window, math.inf)
    np.testing.assert_array_equal(backend.to_numpy(dx).ravel(), [2.0, -2.0, 0.0, 2.0])


def test_the_padding_takes_no_gradient_from_a_maximum(xp):
    """Whatever the size of the maximum: here every pixel is the only one of its window."""
    window = window_of(WindowCase((2, 2), (2, 2), (2, 2), 1))
    for size in (0.25, 1.0, -1.0):
        x = xp.full((1, 2, 2, 1), size)
        y = pool.lp_pool2d_forward(x, window, math.inf)
        dx = pool.lp_pool2d_backward(xp.full((1, 2, 2, 1), 6.0), x, y, window, math.inf)
        np.testing.assert_array_equal(backend.to_numpy(dx), math.copysign(6.0, size))


def test_lp_of_one_with_mean_is_the_average_of_absolute_values(xp):
    case = WindowCase((6, 4), (2, 2), (2, 2), 0)
    x = normal(1, 2, 3, *case.size)
    y = pool.lp_pool2d_forward(put(xp, x), window_of(case), 1.0, mean=True)
    assert_close(y, batch_last(references.avg_pool2d(np.abs(x), *options(case))), "forward")


@pytest.mark.parametrize("p", POWERS)
def test_lp_of_zeros_has_gradient_zero_and_no_warning(xp, p):
    window = window_of(WindowCase((4, 4), (2, 2), (2, 2), 0))
    x = xp.zeros((1, 4, 4, 2))
    y = pool.lp_pool2d_forward(x, window, p)
    dx = pool.lp_pool2d_backward(xp.ones(y.shape), x, y, window, p)
    np.testing.assert_array_equal(backend.to_numpy(y), 0.0)
    np.testing.assert_array_equal(backend.to_numpy(dx), 0.0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lp_neither_overflows_nor_underflows(xp, size):
    window = window_of(WindowCase((2, 2), (2, 2), (2, 2), 0))
    x = xp.full((1, 2, 2, 1), size, "float32")
    y = pool.lp_pool2d_forward(x, window, 3.0)
    dx = pool.lp_pool2d_backward(xp.ones(y.shape, "float32"), x, y, window, 3.0)
    np.testing.assert_allclose(backend.to_numpy(y), size * 4 ** (1 / 3), rtol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(dx), 4 ** (-2 / 3), rtol=1e-5)


@given(case=pool_windows_HW_KHKW(), n_c=shape("NC"), layout=layouts, seed=seeds, p=st.sampled_from(POWERS))
def test_lp_of_any_window(xp, case, n_c, layout, seed, p):
    x = normal(seed, *n_c, *case.size)
    y = pool.lp_pool2d_forward(put(xp, x, layout), window_of(case), p)
    assert_close(y, batch_last(references.lp_pool2d(x, p, *options(case), case.ceil_mode)), "forward")


# --- adaptive ---------------------------------------------------------------------------------------------------

SIZES = [((6, 6), (3, 3)), ((7, 5), (3, 2)), ((5, 8), (5, 8)), ((3, 2), (5, 4)), ((6, 9), (1, 1)), ((1, 1), (2, 3))]


@pytest.mark.parametrize(("size", "output"), SIZES)
@dtypes
def test_adaptive(xp, size, output, dtype):
    x = distinct(1, 2, 3, *size, dtype=dtype)
    y = pool.adaptive_avg_pool2d_forward(put(xp, x), output)
    assert_close(y, batch_last(references.adaptive_avg_pool2d(x, output)), "forward")
    y = pool.adaptive_max_pool2d_forward(put(xp, x), output)
    np.testing.assert_array_equal(backend.to_numpy(y), batch_last(references.adaptive_max_pool2d(x, output)))


@pytest.mark.parametrize(("size", "output"), SIZES)
def test_adaptive_gradients_are_those_of_differences(xp, size, output):
    x, dy = batch_last(distinct(1, 2, 3, *size)), batch_last(normal(2, 2, 3, *output))
    dx = pool.adaptive_avg_pool2d_backward(xp.asarray(dy), size)
    numerical = references.numerical_gradient(lambda v: pool.adaptive_avg_pool2d_forward(v, output), x, dy)
    assert_close(dx, numerical, "gradient")
    y = pool.adaptive_max_pool2d_forward(xp.asarray(x), output)
    dx = pool.adaptive_max_pool2d_backward(xp.asarray(dy), xp.asarray(x), y)
    numerical = references.numerical_gradient(lambda v: pool.adaptive_max_pool2d_forward(v, output), x, dy)
    assert_close(dx, numerical, "gradient")


def test_adaptive_max_ties_go_to_the_first(xp):
    x, dy = xp.zeros((1, 4, 4, 1)), xp.ones((1, 2, 2, 1))
    dx = pool.adaptive_max_pool2d_backward(dy, x, pool.adaptive_max_pool2d_forward(x, (2, 2)))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(backend.to_numpy(dx)[0, :, :, 0], expected)


def test_adaptive_average_of_float16_is_summed_in_float32(xp):
    y = pool.adaptive_avg_pool2d_forward(xp.full((2, 40, 50, 3), 300.0, "float16"), (1, 2))
    np.testing.assert_array_equal(backend.to_numpy(y), np.full((2, 1, 2, 3), 300.0, "float16"))


@given(size=shape("HW"), output=shape("HW"), seed=seeds)
def test_adaptive_of_any_size(xp, size, output, seed):
    x = normal(seed, 2, 1, *size)
    y = pool.adaptive_avg_pool2d_forward(put(xp, x), output)
    assert_close(y, batch_last(references.adaptive_avg_pool2d(x, output)), "forward")


# --- geometry ---------------------------------------------------------------------------------------------------


@given(case=pool_windows_HW_KHKW(dilated=True))
def test_every_window_sees_a_pixel(case):
    window = window_of(case)
    assert window.taps == case.kernel[0] * case.kernel[1]
    assert window.pads == case.pads


def test_a_kernel_larger_than_the_image_is_refused():
    with pytest.raises(ShapeError, match=r"the kernel \(5, 2\) .* padded input of 4x4; received an input of 4x4"):
        make_window((4, 4), (5, 2), (1, 1), 0)
