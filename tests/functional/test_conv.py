from __future__ import annotations

import threading
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
    "two groups of three channels, stride 2": case(2, 6, 4, (5, 6), (3, 3), (2, 2), 1, groups=2),
    "two groups of one channel, stride 2": case(2, 2, 4, (5, 6), (3, 3), (2, 2), 1, groups=2),
    "depthwise": case(2, 5, 5, (6, 5), (3, 3), padding=1, groups=5),
    "depthwise, stride 2": case(2, 5, 5, (6, 5), (3, 3), (2, 2), 1, groups=5),
    "depthwise with multiplier": case(2, 3, 6, (5, 5), (3, 3), padding=1, groups=3),
    "1x1": case(3, 5, 4, (4, 3), (1, 1)),
    "1x1, rows a page apart": case(8, 3, 4, (8, 8), (1, 1)),
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


def go(monkeypatch, gather: bool) -> None:
    """Gather or scatter, whichever the sizes would choose, forward (where it can scatter) and backward."""
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: gather)
    monkeypatch.setattr(conv, "_prefers_scatter", lambda *_: not gather)


@by_name
def test_gather_and_scatter_agree_with_loops(xp, case, monkeypatch):
    for gather in (True, False):
        go(monkeypatch, gather)
        check(case, xp)


@by_name
@pytest.mark.parametrize("long_row", [1, 10**9])
def test_taps_added_by_whole_rows_or_one_by_one(case, long_row, monkeypatch):
    go(monkeypatch, gather=False)
    monkeypatch.setattr(conv, "LONG_ROW", long_row)
    check(case, np)


@by_name
@pytest.mark.parametrize("columns", [1, 7, 10_000])
@pytest.mark.parametrize("gather", [True, False])
def test_many_chunks(xp, case, columns, gather, monkeypatch):
    """Chunks of part of a row, of a few rows, and of everything, spread over three threads."""
    monkeypatch.setattr(conv, "CHUNK", 64)
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (columns, columns))
    monkeypatch.setattr(conv, "CHUNK_GPU", columns * 4)
    go(monkeypatch, gather)
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    monkeypatch.setattr(backend, "_count", 3)
    check(case, xp)


@pytest.mark.parametrize("name", ["odd kernel", "stride 2", "1x1", "two groups", "many channels"])
@pytest.mark.parametrize("relu", [True, False])
def test_no_bias_is_a_bias_of_zeros(xp, name, relu, monkeypatch):
    """In several chunks, whose products are made in scratch memory."""
    monkeypatch.setattr(conv, "CHUNK", 64)
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (7, 7))
    monkeypatch.setattr(conv, "FEW_COLUMNS", 0)
    case = CASES[name]
    x, weight, bias, _ = arrays(case)
    args = xp.asarray(batch_last(x)), xp.asarray(weight)
    for gather in (True, False):
        go(monkeypatch, gather)
        ys = [
            backend.to_numpy(conv.conv2d_forward(*args, zero, window_of(case.window), case.groups, relu))
            for zero in (None, xp.asarray(0.0 * bias))
        ]
        np.testing.assert_array_equal(*ys)
        assert ys[0].any()


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
    columns = conv.Columns(x, window, case.groups)
    assert len(columns.chunks(np, columns.size)) > 1
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


def test_the_last_bits_depend_on_lanes_but_not_on_threads(monkeypatch):
    case = LARGE["few filters"]
    x, weight, bias, dy = arrays(case, "float32")
    window, x, dy = window_of(case.window), batch_last(x), batch_last(dy)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(backend, "_count", threads)
        monkeypatch.setattr(backend, "_lanes", 4)
        with backend.single_threaded_blas():
            y = conv.conv2d_forward(x, weight, bias, window)
            results.append((y, *conv.conv2d_backward(dy, x, weight, window), conv.bias_gradient(dy)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def chunked(case: ConvCase, xp=np) -> conv.Columns:
    return conv.Columns(xp.asarray(batch_last(normal(0, *case.x_shape))), window_of(case.window), case.groups)


@pytest.mark.parametrize("case", [*LARGE.values(), *CASES.values()], ids=[*LARGE, *CASES])
@pytest.mark.parametrize("chunk", [conv.CHUNK, 10_000, 100])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("most", [0, 2000])
def test_chunks_are_all_columns_once_and_fit_the_cache(xp, case, chunk, lanes, most, monkeypatch):
    fewest = 8
    monkeypatch.setattr(backend, "_count", lanes)
    monkeypatch.setattr(conv, "CHUNK", chunk)
    monkeypatch.setattr(conv, "CHUNK_GPU", chunk)
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (fewest, 1000))
    columns = chunked(case, xp)
    chunks = columns.chunks(xp, columns.size, most)
    ranges = [columns.range(pixels) for pixels in chunks]
    (height, width), rows = columns.window.output, columns.rows * columns.groups
    assert [r.start for r in ranges] == [0, *(r.stop for r in ranges[:-1])]
    assert ranges[-1].stop == height * width * columns.batch
    assert all(h1 - h0 == 1 or (w0, w1) == (0, width) for h0, h1, w0, w1 in chunks)
    wanted = max(min(chunk // rows, most or 1000), fewest) if xp is np else chunk / rows
    # cut at whole pixels, and at whole rows of pixels where a chunk has several
    assert all(
        r.stop - r.start < wanted + (width if h1 - h0 > 1 else 1) * columns.batch
        for r, (h0, h1, _, _) in zip(ranges, chunks, strict=True)
    )
    if xp is np and columns.size >= backend.INLINE_WORK and len(chunks) <= height:
        assert len(chunks) % lanes == 0


def test_large_work_is_cut_into_lanes_and_small_work_is_not(monkeypatch):
    loops = []

    def spy(count, work, function):
        loops.append((count, work))
        for_chunks(count, work, function)

    for_chunks = conv.for_chunks
    monkeypatch.setattr(conv, "for_chunks", spy)
    monkeypatch.setattr(backend, "_count", 3)
    for case, large in ((LARGE["few filters"], True), (LARGE["groups"], True), (CASES["odd kernel"], False)):
        x, weight, _, dy = arrays(case)
        for gather in (True, False):
            monkeypatch.setattr(conv, "_prefers_gather", lambda *_, way=gather: way)
            loops.clear()
            args = window_of(case.window), case.groups
            conv.conv2d_forward(batch_last(x), weight, None, *args)
            conv.conv2d_backward(batch_last(dy), batch_last(x), weight, *args)
            conv.conv2d_backward(batch_last(dy), batch_last(x), weight, *args, need_dx=False)
            conv.conv2d_backward(batch_last(dy), None, weight, *args, need_dw=False)
            if not gather:  # what starts both gradients: one after the other if they are cut themselves
                assert ((2, 0) in loops) is large
            cut = [loop for loop in loops if loop != (2, 0)]
            assert len(cut) == (4 if gather else 5 if large else 6)
            for count, work in cut:
                assert (work >= backend.INLINE_WORK) is large
                assert not large or count % 3 == 0 or count == case.groups


def test_gradients_too_small_to_be_cut_are_computed_side_by_side(monkeypatch):
    """With 64 filters the products are worth a thread each, while the columns alone are not worth cutting."""
    rng = np.random.default_rng(3)
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((20, 12, 12, 5), (64, 20, 5, 5)))
    window = make_window((12, 12), (5, 5), (1, 1), 0)
    dy = rng.standard_normal((64, *window.output, 5), dtype=np.float32)
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: False)
    monkeypatch.setattr(backend, "_count", 2)
    barrier, threads = threading.Barrier(2), set()

    def watch(function):
        def call(*args):
            threads.add(threading.current_thread())
            barrier.wait(timeout=30)  # each waits for the other
            return function(*args)

        return call

    monkeypatch.setattr(conv, "_input_gradient", watch(conv._input_gradient))
    monkeypatch.setattr(conv, "_weight_gradient", watch(conv._weight_gradient))
    dx, dw = conv.conv2d_backward(dy, x, weight, window)
    assert len(threads) == 2
    monkeypatch.undo()
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: True)
    for value, expected in zip((dx, dw), conv.conv2d_backward(dy, x, weight, window), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3)


MIRRORED = {  # stride, padding, dilation -> padding of the convolution that turns dy into dx
    "no padding": ((1, 1), 0, (1, 1), (2, 2, 1, 1)),
    "per-side padding": ((1, 1), (0, 2, 1, 0), (1, 1), (2, 0, 0, 1)),
    "dilation": ((1, 1), 1, (2, 3), (3, 3, 2, 2)),
    "padding beyond the kernel": ((1, 1), (0, 3, 0, 0), (1, 1), None),
    "padding beyond the kernel on the other axis": ((1, 1), (0, 0, 2, 0), (1, 1), None),
    "vertical stride": ((2, 1), 0, (1, 1), None),
    "horizontal stride": ((1, 2), 0, (1, 1), None),
}


@pytest.mark.parametrize(("stride", "padding", "dilation", "pads"), MIRRORED.values(), ids=MIRRORED)
def test_the_window_back(stride, padding, dilation, pads):
    window = make_window((9, 8), (3, 2), stride, padding, dilation)
    expected = None if pads is None else Window(window.output, (9, 8), (3, 2), (1, 1), dilation, pads)
    assert window.mirrored == expected


WAYS = {  # filters, channels, kernel, size, padding -> whether dx is gathered on the CPU
    "few filters": (3, 64, 3, (32, 24), 1, True),
    "few channels": (64, 3, 3, (32, 24), 1, False),
    "many of both": (64, 64, 3, (32, 24), 1, True),
    "a kernel nearly as large as the image": (64, 64, 7, (8, 9), 0, False),
    "a large kernel on a tall image": (64, 64, 7, (64, 8), 0, False),
    "one of each, a large kernel": (1, 1, 7, (8, 9), 0, False),
    "very many of both, no padding": (512, 512, 3, (8, 9), 0, False),
    "few filters, a large kernel": (1, 512, 5, (8, 9), 0, True),
    "few channels, no padding": (512, 1, 5, (8, 9), 0, False),
    "1x1": (64, 3, 1, (32, 24), 0, True),
}


@pytest.mark.parametrize(("filters", "channels", "kernel", "size", "padding", "gathers"), WAYS.values(), ids=WAYS)
def test_which_way_back(xp, filters, channels, kernel, size, padding, gathers, monkeypatch):
    """The CPU makes the smaller columns, those of dy or of x; a GPU always those of dy."""
    ways = []
    for way in ("gather", "scatter"):
        monkeypatch.setattr(conv, f"_backward_by_{way}", lambda *_, way=way: ways.append(way) or (None, None))
    window = make_window(size, (kernel, kernel), (1, 1), padding)
    weight, dy = xp.ones((filters, channels, kernel, kernel)), xp.ones((filters, *window.output, 1))
    conv.conv2d_backward(dy, None, weight, window, need_dw=False)
    assert ways == ["gather" if gathers or xp is not np else "scatter"]


FORWARD = {  # filters, channels, kernel, padding, images of 32x32, dtype -> whether products come before shifts
    "few filters": (12, 48, 3, 1, 1, "float32", True),
    "more filters": (13, 48, 3, 1, 1, "float32", False),
    "float64": (12, 48, 3, 1, 1, "float64", True),
    "float16": (12, 48, 3, 1, 1, "float16", False),
    "no padding, few pixels": (4, 64, 3, 0, 1, "float32", False),
    "no padding": (4, 64, 3, 0, 2, "float32", True),
    "no padding, few windows": (12, 48, 5, 0, 2, "float32", False),
    "padding beyond the kernel": (4, 64, 3, 3, 1, "float32", False),
    "1x1": (4, 64, 1, 0, 1, "float32", False),
}


@pytest.mark.parametrize(("o", "c", "kernel", "padding", "n", "dtype", "scatters"), FORWARD.values(), ids=FORWARD)
def test_which_way_forward(xp, o, c, kernel, padding, n, dtype, scatters, monkeypatch):
    ways = []
    monkeypatch.setattr(conv, "_forward_by_scatter", lambda *_: ways.append("scatter"))
    x, weight = xp.ones((c, 32, 32, n), dtype), xp.ones((o, c, kernel, kernel), dtype)
    conv.conv2d_forward(x, weight, None, make_window((32, 32), (kernel, kernel), (1, 1), padding))
    assert ways == ["scatter"] * scatters


def test_groups_go_forward_by_columns(monkeypatch):
    monkeypatch.setattr(conv, "_forward_by_scatter", None)
    window = make_window((32, 32), (3, 3), (1, 1), 1)
    assert conv.conv2d_forward(np.ones((16, 32, 32, 1)), np.ones((2, 8, 3, 3)), None, window, 2).shape == (2, 32, 32, 1)


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


@pytest.mark.parametrize("name", ["odd kernel", "stride 2", "1x1", "two groups", "batch 1"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("gather", [True, False])
def test_relu_in_it_is_the_same_as_behind_it(xp, name, biased, gather, monkeypatch):
    go(monkeypatch, gather)
    case = CASES[name]
    x, weight, bias, _ = arrays(case)
    x, weight, bias = xp.asarray(batch_last(x)), xp.asarray(weight), xp.asarray(bias) if biased else None
    y = conv.conv2d_forward(x, weight, bias, window_of(case.window), case.groups)
    both = conv.conv2d_forward(x, weight, bias, window_of(case.window), case.groups, relu=True)
    np.testing.assert_array_equal(backend.to_numpy(both), np.maximum(backend.to_numpy(y), 0.0))


@pytest.mark.parametrize("name", ["odd kernel", "stride 2", "1x1", "two groups", "many filters", "many channels"])
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
    assert conv.conv2d_backward(dy, x, weight, window, case.groups, need_dx=False, need_dw=False) == (None, None)


@pytest.mark.parametrize("gather", [True, False])
def test_the_gradient_nobody_asked_for_costs_nothing(gather, monkeypatch):
    case = CASES["odd kernel"]
    x, weight, _, dy = arrays(case)
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: gather)
    monkeypatch.setattr(conv, "_matmul_transposed", None)  # what makes the gradient of the weight
    args = batch_last(dy), batch_last(x), weight, window_of(case.window), case.groups
    assert conv.conv2d_backward(*args, need_dw=False)[0].shape == batch_last(x).shape


SHARED = {name: LARGE[name] for name in ("few filters", "stride 2", "groups")}
shared = pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)


@shared
@pytest.mark.parametrize("gather", [True, False])
def test_cutting_work_into_parts_makes_no_more_of_it(case, gather, monkeypatch):
    """Multiplications are counted: each part does its own and nothing else."""
    counts = {"_matmul": 0, "_matmul_transposed": 0}

    def count(name, product, a, b, out):
        counts[name] += out.size * a.shape[2]
        product(a, b, out)

    for name in counts:
        monkeypatch.setattr(conv, name, partial(count, name, getattr(conv, name)))
    monkeypatch.setattr(conv, "CHUNK", 1 << 16)
    go(monkeypatch, gather)
    monkeypatch.setattr(backend, "_lanes", 3)
    x, weight, _, dy = arrays(case)
    window, macs = window_of(case.window), dy.size * weight[0].size
    conv.conv2d_forward(batch_last(x), weight, None, window, case.groups)
    assert counts == {"_matmul": macs, "_matmul_transposed": 0}
    conv.conv2d_backward(batch_last(dy), batch_last(x), weight, window, case.groups)
    # gathering makes columns for every pixel of x, also those at the rim that fewer windows see
    back = x.size * weight[:, 0].size // case.groups if gather and window.stride == (1, 1) else macs
    assert counts == {"_matmul": macs + back, "_matmul_transposed": back}


@pytest.fixture
def shares(monkeypatch):
    """For each loop over products, how many multiplications each of its steps does."""
    running, found = [], []

    def loop(count, work, function):
        mine = []
        for index in range(count):
            running.append(0)
            function(index)
            mine.append(running.pop())
        if any(mine):  # a loop that only starts others multiplies nothing itself
            found.append(mine)

    def count(product, a, b, out):
        running[-1] += out.size * a.shape[2]
        product(a, b, out)

    for name in ("_matmul", "_matmul_transposed"):
        monkeypatch.setattr(conv, name, partial(count, getattr(conv, name)))
    monkeypatch.setattr(conv, "for_chunks", loop)
    return found


@shared
@pytest.mark.parametrize("gather", [True, False])
def test_each_of_three_lanes_gets_its_share(case, gather, shares, monkeypatch):
    """None does more than half of the multiplications of a loop."""
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: gather)
    monkeypatch.setattr(backend, "_count", 3)
    x, weight, _, dy = arrays(case)
    args = window_of(case.window), case.groups
    conv.conv2d_forward(batch_last(x), weight, None, *args)
    conv.conv2d_backward(batch_last(dy), batch_last(x), weight, *args)
    conv.conv2d_backward(batch_last(dy), None, weight, *args, need_dw=False)
    conv.conv2d_backward(batch_last(dy), batch_last(x), weight, *args, need_dx=False)
    assert len(shares) == (4 if gather and window_of(case.window).stride == (1, 1) else 5)
    for share in shares:
        assert 2 * max(share) <= sum(share)


def test_where_pixels_are_few_lanes_share_the_filters(shares, monkeypatch):
    monkeypatch.setattr(backend, "_count", 3)
    case = CASES["image as large as the kernel"]
    x, weight = normal(0, 64, 5, 4, 3), normal(1, 960, 64, 5, 4)
    y = conv.conv2d_forward(x, weight, None, window_of(case.window))
    assert shares == [[320 * weight[0].size * 3] * 3]
    assert_close(y[:, 0, 0], weight.reshape(960, -1) @ x.reshape(-1, 3), "forward")


def test_columns_of_pixels_are_the_image_itself_unless_its_rows_share_cache_sets():
    window = make_window((8, 8), (1, 1), (1, 1), 0)
    for batch, apart in ((9, 8 * 8 * 9 * 8), (8, 4096)):
        x = normal(0, 3, 8, 8, batch)
        col = conv.Columns(x, window).chunk((0, 8, 0, 8))
        np.testing.assert_array_equal(col[0], x.reshape(3, -1))
        assert x.strides[0] == apart
        assert np.shares_memory(col, x) is (apart % 4096 > 0)
        assert col.strides[1] % 4096


@shared
@pytest.mark.parametrize("gather", [True, False])
def test_columns_take_no_more_memory_than_a_chunk(case, gather, monkeypatch):
    """However large the image: that is what chunks and bands of rows are for."""
    monkeypatch.setattr(backend._local, "buffers", scratch := {}, raising=False)
    monkeypatch.setattr(backend, "_count", 1)
    monkeypatch.setattr(conv, "CHUNK", 1 << 16)
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (64, 16_384))
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: gather)
    x, weight, _, dy = arrays(case)
    args = window_of(case.window), case.groups
    conv.conv2d_forward(batch_last(x), weight, None, *args)
    conv.conv2d_backward(batch_last(dy), batch_last(x), weight, *args)
    one_row = weight[0].size * case.groups * batch_last(dy)[0, 0].size
    assert scratch["columns", np.dtype("float64")].size <= 1.25 * conv.CHUNK + one_row


@pytest.mark.cupy
@pytest.mark.parametrize("name", ["odd kernel", "stride 2", "1x1", "two groups", "two groups, stride 2"])
@pytest.mark.parametrize("gather", [True, False])
def test_a_gpu_makes_each_product_at_once(name, gather, monkeypatch):
    """Pieces are for the caches of a CPU, and each would cost launches."""
    import cupy

    products = []

    def watch(kind, product, *args):
        products.append(kind)
        product(*args)

    for kind in ("_matmul", "_matmul_transposed"):
        monkeypatch.setattr(conv, kind, partial(watch, kind, getattr(conv, kind)))
    monkeypatch.setattr(conv, "CHUNK", 8)
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (1, 7))
    monkeypatch.setattr(conv, "_prefers_gather", lambda *_: gather)
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    monkeypatch.setattr(backend, "_count", 3)
    case = CASES[name]
    x, weight, _, dy = arrays(case)
    x, weight, dy = cupy.asarray(batch_last(x)), cupy.asarray(weight), cupy.asarray(batch_last(dy))
    args = window_of(case.window), case.groups
    conv.conv2d_forward(x, weight, None, *args)
    assert products == ["_matmul"]
    conv.conv2d_backward(dy, x, weight, *args)
    assert sorted(products) == ["_matmul"] * 2 + ["_matmul_transposed"]
    conv.conv2d_backward(dy, None, weight, *args, need_dw=False)
    assert sorted(products) == ["_matmul"] * 3 + ["_matmul_transposed"]
    conv.conv2d_backward(dy, x, weight, *args, need_dx=False)
    assert sorted(products) == ["_matmul"] * 3 + ["_matmul_transposed"] * 2


def test_bias_gradient_of_float16_is_summed_in_float32(xp):
    dy = xp.full((2, 10, 10, 700), 0.5, "float16")
    gradient = conv.bias_gradient(dy)
    assert gradient.dtype == "float32"
    np.testing.assert_array_equal(backend.to_numpy(gradient), [35_000.0] * 2)


def test_bias_gradient_copies_nothing():
    dy = normal(1, 64, 10, 10, 9, dtype="float32")
    with backend.peak_memory("cpu") as peak:
        conv.bias_gradient(dy)
        assert peak() < dy.nbytes / 4


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
    expects = r"^conv2d expects x \(N, C, H, W\) and weight \(O, C/groups, KH, KW\); received"
    with pytest.raises(ShapeError, match=rf"{expects} x \(3, 5, 5\), weight \(4, 3, 3, 3\), groups=1\.$"):
        xpcnn.conv2d(x[0], weight)
    with pytest.raises(ShapeError, match=rf"{expects} x \(2, 3, 5, 5\), weight \(4, 3, 3\), groups=1"):
        xpcnn.conv2d(x, weight[..., 0])
    with pytest.raises(ShapeError, match=r"received x \(2, 3, 5, 5\), weight \(4, 2, 3, 3\), groups=1"):
        xpcnn.conv2d(x, weight[:, :2])
    with pytest.raises(ShapeError, match=r"^conv2d expects .* O divisible by groups.*weight \(4, 1, 3, 3\), groups=3"):
        xpcnn.conv2d(x, weight[:, :1], groups=3)
    with pytest.raises(ShapeError, match=r"a bias of shape \(O,\); received .*, groups=1, bias \(3,\)\.$"):
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
