from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from references import batch_first, batch_last
from scipy.signal import convolve2d, correlate2d
from strategies import (
    ConvCase,
    WindowCase,
    conv_windows_HW_KHKW,
    convolutions_NCHW_OCKHKW,
    laid_out,
    layouts,
    normal,
    seeds,
)
from tolerances import assert_close

import xpcnn
from xpcnn import backend
from xpcnn.errors import ArgumentError, DeviceError, ShapeError
from xpcnn.functional import conv
from xpcnn.functional.geometry import Window, as_padding, make_window


def case(n, c, o, size, kernel, stride=(1, 1), padding=0, dilation=(1, 1), groups=1):
    return ConvCase(n, c, o, WindowCase(size, kernel, stride, padding, dilation), groups)


CASES = {
    "one pixel": case(1, 1, 1, (1, 1), (1, 1)),
    "odd kernel": case(2, 3, 4, (7, 5), (3, 3), padding=1),
    "even kernel": case(2, 3, 4, (6, 8), (2, 4)),
    "even kernel, same": case(2, 2, 3, (5, 6), (4, 2), padding="same"),
    "non-square": case(3, 2, 5, (4, 9), (1, 5), padding=(0, 2)),
    "image as large as the kernel": case(2, 3, 4, (5, 4), (5, 4)),
    "padded image as large as the kernel": case(2, 3, 4, (3, 2), (5, 4), padding=1),
    "stride 2": case(2, 3, 4, (7, 8), (3, 3), (2, 2), padding=1),
    "stride larger than the kernel": case(2, 3, 4, (9, 8), (2, 1), (4, 3)),
    "unequal strides": case(2, 3, 4, (9, 8), (3, 2), (1, 3)),
    "last pixels unseen": case(2, 2, 3, (8, 9), (3, 3), (3, 4)),
    "per-side padding": case(2, 3, 4, (5, 5), (3, 3), padding=(0, 2, 1, 3)),
    "padding larger than the kernel": case(2, 2, 3, (3, 3), (2, 2), padding=3),
    "strided same": case(2, 2, 3, (7, 6), (3, 3), (2, 3), padding="same"),
    "dilation": case(2, 3, 4, (9, 8), (3, 2), padding=2, dilation=(2, 3)),
    "dilation and stride": case(2, 3, 4, (9, 9), (3, 3), (2, 2), 2, (2, 2)),
    "dilated same": case(2, 2, 3, (6, 7), (3, 3), padding="same", dilation=(2, 2)),
    "two groups": case(2, 4, 6, (5, 5), (3, 3), padding=1, groups=2),
    "two groups, stride 2": case(2, 4, 6, (5, 6), (3, 3), (2, 2), 1, groups=2),
    "depthwise": case(2, 5, 5, (6, 5), (3, 3), padding=1, groups=5),
    "depthwise, stride 2": case(2, 5, 5, (6, 5), (3, 3), (2, 2), 1, groups=5),
    "depthwise with multiplier": case(2, 3, 6, (5, 5), (3, 3), padding=1, groups=3),
    "1x1": case(3, 5, 4, (4, 3), (1, 1)),
    "1x1, stride 2": case(3, 5, 4, (4, 5), (1, 1), (2, 2)),
    "1x1, padded": case(3, 5, 4, (4, 3), (1, 1), padding=1),
    "1x1, two groups": case(3, 4, 6, (4, 3), (1, 1), groups=2),
    "many filters": case(2, 1, 40, (6, 6), (3, 3), padding=1),
    "many channels": case(2, 40, 1, (6, 6), (3, 3), padding=1),
    "batch 1": case(1, 3, 4, (8, 7), (3, 3), padding=1),
}

by_name = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def window_of(case: WindowCase) -> Window:
    return make_window(case.size, case.kernel, case.stride, case.padding, case.dilation)


def arrays(case: ConvCase, dtype: str = "float64", seed: int = 0):
    """x, weight, bias, dy in the usual layout."""
    return (
        normal(seed, *case.x_shape, dtype=dtype),
        normal(seed + 1, *case.weight_shape, dtype=dtype),
        normal(seed + 2, case.filters, dtype=dtype),
        normal(seed + 3, *case.y_shape, dtype=dtype),
    )


def options(case: ConvCase):
    return case.window.stride, case.window.pads, case.window.dilation, case.groups


def check(case: ConvCase, xp=np, dtype: str = "float64", layout: str = "C", seed: int = 0) -> None:
    """Forward and all three gradients against the naive loops."""
    x, weight, bias, dy = arrays(case, dtype, seed)
    window = window_of(case.window)
    assert window.output == case.window.output
    device = [laid_out(a, layout) for a in (batch_last(x), weight, bias, batch_last(dy))]
    x_in, w_in, b_in, dy_in = device if xp is np else [xp.asarray(a) for a in device]
    y = conv.conv2d_forward(x_in, w_in, b_in, window, case.groups)
    dx, dweight = conv.conv2d_backward(dy_in, x_in, w_in, window, case.groups)
    dbias = conv.bias_gradient(dy_in)
    expected = references.conv2d_gradients(dy, x, weight, *options(case))
    assert_close(y, batch_last(references.conv2d(x, weight, bias, *options(case))), "forward")
    for actual, wanted in zip((dx, dweight, dbias), (batch_last(expected[0]), *expected[1:]), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, "forward")


@by_name
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_naive_loops(xp, case, dtype):
    check(case, xp, dtype)


@by_name
def test_gather_and_scatter_agree_with_loops(xp, case, monkeypatch):
    """Both ways of the backward pass, whichever the sizes would choose."""
    for gather in (True, False):
        monkeypatch.setattr(conv, "_prefers_gather", lambda *_, way=gather: way)
        check(case, xp)


@by_name
@pytest.mark.parametrize("columns", [1, 7, 10_000])
@pytest.mark.parametrize("gather", [True, False])
def test_many_chunks(xp, case, columns, gather, monkeypatch):
    """Chunks of part of a row, of a few rows, and of everything, spread over three threads."""
    monkeypatch.setattr(conv, "CHUNK", 64)
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (columns, columns))
    monkeypatch.setattr(conv, "CHUNK_GPU", columns * 4)
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: gather)
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    monkeypatch.setattr(backend, "_count", 3)
    check(case, xp)


LARGE = {
    "few filters": case(8, 24, 4, (40, 40), (3, 3), padding=1),
    "many filters": case(8, 4, 48, (40, 40), (3, 3), padding=1),
    "stride 2": case(8, 8, 16, (41, 40), (3, 3), (2, 2), 1),
    "1x1": case(8, 16, 16, (40, 40), (1, 1)),
    "groups": case(8, 16, 16, (32, 32), (3, 3), padding=1, groups=4),
    "wide": case(2, 2, 3, (20, 300), (3, 5)),
}


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_several_chunks_at_their_real_size(case, monkeypatch):
    """Large enough that threads and chunks are used as in earnest. Bit for bit the same every time."""
    monkeypatch.setattr(backend, "_count", 2)
    x, weight, bias, dy = arrays(case, "float32")
    window, x, dy = window_of(case.window), batch_last(x), batch_last(dy)
    assert len(conv.Columns(x, window, case.groups).chunks(np)) > 1
    check(case, dtype="float32")
    runs = [
        (
            conv.conv2d_forward(x, weight, bias, window, case.groups),
            *conv.conv2d_backward(dy, x, weight, window, case.groups),
        )
        for _ in range(3)
    ]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@given(case=convolutions_NCHW_OCKHKW(), layout=layouts, seed=seeds)
def test_any_convolution_equals_naive_loops(xp, case, layout, seed):
    check(case, xp, layout=layout, seed=seed)


@given(case=conv_windows_HW_KHKW())
def test_window_resolves_as_the_formula_says(case):
    window = window_of(case)
    assert window.output == case.output
    assert window.pads == case.pads


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("many")])
def test_gradients_are_those_of_differences(name):
    case = CASES[name]
    x, weight, _, dy = arrays(case)
    dx, dweight, _ = references.conv2d_gradients(dy, x, weight, *options(case))
    window = window_of(case.window)

    def forward(x, weight):
        return batch_first(conv.conv2d_forward(batch_last(x), weight, None, window, case.groups))

    assert_close(dx, references.numerical_gradient(lambda v: forward(v, weight), x, dy), "gradient")
    assert_close(dweight, references.numerical_gradient(lambda v: forward(x, v), weight, dy), "gradient")


@pytest.mark.parametrize("name", ["odd kernel", "stride 2", "1x1", "two groups"])
def test_asked_for_one_gradient_only(xp, name):
    case = CASES[name]
    x, weight, _, dy = arrays(case)
    x, weight, dy, window = (
        xp.asarray(batch_last(x)),
        xp.asarray(weight),
        xp.asarray(batch_last(dy)),
        window_of(case.window),
    )
    dx, dweight = conv.conv2d_backward(dy, x, weight, window, case.groups)
    none, dweight_alone = conv.conv2d_backward(dy, x, weight, window, case.groups, need_dx=False)
    assert none is None
    assert_close(dweight_alone, dweight, "forward")
    dx_alone, none = conv.conv2d_backward(dy, None, weight, window, case.groups, need_dw=False)
    assert none is None
    assert_close(dx_alone, dx, "forward")


def test_bias_gradient_of_float16_is_summed_in_float32(xp):
    dy = xp.full((2, 10, 10, 700), 0.5, "float16")
    gradient = conv.bias_gradient(dy)
    assert gradient.dtype == "float32"
    np.testing.assert_array_equal(backend.to_numpy(gradient), [35_000.0] * 2)


# --- the public function, (N, C, H, W) ---------------------------------------------------------------------------


@by_name
def test_public_conv2d(xp, case):
    x, weight, bias, _ = arrays(case)
    y = xpcnn.conv2d(
        xp.asarray(x),
        xp.asarray(weight),
        xp.asarray(bias),
        stride=case.window.stride,
        padding=case.window.padding,
        dilation=case.window.dilation,
        groups=case.groups,
    )
    assert_close(y, references.conv2d(x, weight, bias, *options(case)), "forward")


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
def test_public_conv2d_takes_ints(stride, padding, dilation):
    x, weight = normal(0, 2, 3, 7, 6), normal(1, 4, 3, 3, 2)
    actual = xpcnn.conv2d(x, weight, None, stride, padding, dilation)
    expected = references.conv2d(x, weight, None, (stride,) * 2, (padding,) * 4, (dilation,) * 2)
    assert_close(actual, expected, "forward")
    assert_close(xpcnn.conv2d(x, weight, None, stride, [padding, padding], dilation), expected, "forward")


def test_channel_last_results_are_equal_however_they_are_turned():
    x = normal(0, 3, 2, 5, 4)
    np.testing.assert_array_equal(batch_first(batch_last(x)), x)


def test_public_conv2d_refuses_wrong_shapes():
    x, weight = np.zeros((2, 3, 5, 5)), np.zeros((4, 3, 3, 3))
    with pytest.raises(ShapeError, match=r"x \(N, C, H, W\).*received x \(3, 5, 5\), weight \(4, 3, 3, 3\), groups=1"):
        xpcnn.conv2d(x[0], weight)
    with pytest.raises(ShapeError, match=r"received x \(2, 3, 5, 5\), weight \(4, 2, 3, 3\), groups=1"):
        xpcnn.conv2d(x, weight[:, :2])
    with pytest.raises(ShapeError, match=r"divisible by groups.*weight \(4, 1, 3, 3\), groups=3"):
        xpcnn.conv2d(x, weight[:, :1], groups=3)
    with pytest.raises(ShapeError, match=r"bias of shape \(O,\).*bias \(3,\)"):
        xpcnn.conv2d(x, weight, np.zeros(3))
    with pytest.raises(
        ShapeError, match=r"the kernel \(3, 3\).*more than the padded input of 2x5.*Use a smaller kernel"
    ):
        xpcnn.conv2d(x[:, :, :2], weight)
    with pytest.raises(ShapeError, match=r"with dilation \(3, 3\) covers 7x7 pixels"):
        xpcnn.conv2d(x, weight, dilation=3)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"stride": 0}, r"stride must be an int >= 1 or a pair of them; received 0\."),
        ({"stride": (1, 2, 3)}, r"stride must be .* received \(1, 2, 3\)"),
        ({"stride": 1.5}, r"stride must be .* received 1\.5"),
        ({"stride": True}, r"stride must be .* received True"),
        ({"dilation": (1, 0)}, r"dilation must be an int >= 1 .* received \(1, 0\)"),
        ({"padding": -1}, r"padding must be an int >= 0.*received -1"),
        ({"padding": "full"}, r'"same" or "valid"; received \'full\''),
        ({"padding": (1, 2, 3)}, r"padding must be .*received \(1, 2, 3\)"),
        ({"padding": (1, -2)}, r"padding must be .*received \(1, -2\)"),
        ({"padding": 1.0}, r"padding must be .*received 1\.0"),
        ({"groups": 0}, r"groups"),
        ({"groups": -1}, r"groups"),
    ],
)
def test_public_conv2d_refuses_wrong_options(option, text):
    with pytest.raises((ArgumentError, ShapeError), match=text):
        xpcnn.conv2d(np.zeros((2, 3, 5, 5)), np.zeros((4, 3, 3, 3)), **option)


@pytest.mark.cupy
def test_public_conv2d_refuses_two_backends():
    import cupy

    with pytest.raises(DeviceError, match=r"x on cpu, weight on cuda:0.*xpcnn\.to_device"):
        xpcnn.conv2d(np.zeros((2, 3, 5, 5)), cupy.zeros((4, 3, 3, 3)))


@pytest.mark.parametrize(("padding", "mode"), [(0, "valid"), ((2, 3), "full")])
def test_scipy_computes_the_same(xp, padding, mode):
    """SciPy's correlate2d, one pair of channels at a time, is the judge of forward and of dx."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 7, 9)), rng.standard_normal((4, 3, 3, 4))
    expected = np.array([[sum(map(partial(correlate2d, mode=mode), image, w)) for w in weight] for image in x])
    got = xpcnn.to_numpy(conv.conv2d(xp.asarray(x), xp.asarray(weight), padding=padding))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)

    dy = rng.standard_normal(expected.shape)
    back = "full" if mode == "valid" else "valid"
    planes = weight.transpose(1, 0, 2, 3)
    expected_dx = np.array([[sum(map(partial(convolve2d, mode=back), d, w)) for w in planes] for d in dy])
    window = make_window((7, 9), (3, 4), (1, 1), as_padding(padding))
    dx, _ = conv.conv2d_backward(xp.asarray(dy.transpose(1, 2, 3, 0)), None, xp.asarray(weight), window, need_dw=False)
    np.testing.assert_allclose(xpcnn.to_numpy(dx).transpose(3, 0, 1, 2), expected_dx, rtol=0, atol=1e-12)
