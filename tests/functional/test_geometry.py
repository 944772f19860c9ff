"""Sliding windows by themselves; test_conv.py and test_pool.py compare what is made with them."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import normal

from xpcnn import backend
from xpcnn.errors import ArgumentError, ShapeError
from xpcnn.functional import geometry
from xpcnn.functional.geometry import make_window


@pytest.mark.parametrize(("value", "expected"), [(3, (3, 3)), ((2, 3), (2, 3)), ([2, 1], (2, 1)), (1, (1, 1))])
def test_pair(value, expected):
    assert geometry.pair(value, "stride", 1) == expected


@pytest.mark.parametrize("value", [0, (1, 0), (0, 1), (1, 2, 3), (1,), 1.0, (1.0, 2), True, (True, 1), "same", None])
def test_no_pair(value):
    with pytest.raises(ArgumentError, match=r"^stride must be an int >= 1 or a pair of them; received .*\.$"):
        geometry.pair(value, "stride", 1)


def test_the_least_of_a_pair_is_a_parameter():
    assert geometry.pair(0, "padding", 0) == (0, 0)
    with pytest.raises(ArgumentError, match=r"^kernel must be an int >= 2 or a pair of them; received \(2, 1\)\.$"):
        geometry.pair((2, 1), "kernel", 2)


@pytest.mark.parametrize("value", ["same", "valid", 0, 3, (1, 2), (0, 1, 2, 3)])
def test_padding(value):
    assert geometry.as_padding(value) == value


@pytest.mark.parametrize("value", [[1, 2], [0, 1, 2, 3]])
def test_padding_of_lists_is_hashable(value):
    assert geometry.as_padding(value) == tuple(value)


@pytest.mark.parametrize("value", ["full", "", -1, (1,), (0, -1), (), (1, 2, 3), (1, 2, 3, 4, 5), 1.5, True, (True, 1)])
def test_no_padding(value):
    sides = r"\(vertical, horizontal\), \(top, bottom, left, right\)"
    with pytest.raises(ArgumentError, match=rf'^padding must be an int >= 0, a pair {sides}, "same" or "valid"; rec'):
        geometry.as_padding(value)


RESOLVED = {  # size, kernel, stride, padding, dilation -> pads, output
    "valid": ((7, 5), (3, 2), (1, 1), "valid", (1, 1), (0, 0, 0, 0), (5, 4)),
    "int": ((7, 5), (3, 2), (2, 1), 1, (1, 1), (1, 1, 1, 1), (4, 6)),
    "pair": ((7, 5), (3, 2), (2, 1), (0, 2), (1, 1), (0, 0, 2, 2), (3, 8)),
    "sides": ((7, 5), (3, 2), (1, 1), (1, 2, 3, 0), (1, 1), (1, 2, 3, 0), (8, 7)),
    "same, odd kernel": ((7, 5), (3, 5), (1, 1), "same", (1, 1), (1, 1, 2, 2), (7, 5)),
    "same, even kernel: more at the end": ((7, 5), (4, 2), (1, 1), "same", (1, 1), (1, 2, 0, 1), (7, 5)),
    "same, strided": ((7, 6), (3, 4), (2, 3), "same", (1, 1), (1, 1, 0, 1), (4, 2)),
    "same, dilated": ((7, 6), (3, 2), (1, 1), "same", (2, 3), (2, 2, 1, 2), (7, 6)),
    "same, stride beyond the kernel": ((7, 6), (1, 1), (3, 2), "same", (1, 1), (0, 0, 0, 0), (3, 3)),
}


@pytest.mark.parametrize("case", RESOLVED.values(), ids=RESOLVED)
def test_windows_are_resolved(case):
    *arguments, pads, output = case
    window = make_window(*arguments)
    assert (window.pads, window.output) == (pads, output)


@pytest.mark.parametrize(
    ("arguments", "pointwise", "covers"),
    [
        (((4, 4), (1, 1), (1, 1), 0), True, True),
        (((4, 4), (1, 1), (1, 2), 0), False, False),
        (((4, 4), (1, 1), (1, 1), (0, 0, 0, 1)), False, False),
        (((4, 4), (2, 2), (2, 2), 0), False, True),
        (((5, 4), (2, 2), (2, 2), 0), False, False),
        (((4, 4), (3, 3), (1, 1), 1), False, False),
        (((4, 4), (2, 1), (1, 1), 0), False, True),
    ],
)
def test_what_needs_no_padded_copy(arguments, pointwise, covers):
    window = make_window(*arguments)
    assert (window.is_pointwise, window.covers_input) == (pointwise, covers)


def test_a_kernel_that_does_not_fit_is_explained_in_full():
    with pytest.raises(ShapeError) as caught:
        make_window((4, 6), (3, 2), (1, 1), (0, 1, 0, 2), (3, 1))
    assert str(caught.value) == (
        "the kernel (3, 2) with dilation (3, 1) covers 7x2 pixels, more than the padded input of 5x8; received an "
        "input of 4x6. Use a smaller kernel, more padding or larger images."
    )


@pytest.mark.parametrize("padding", [(0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 2), (0, 0, 3, 0), (1, 2, 3, 4)])
@pytest.mark.parametrize("large", [False, True])
def test_padded_images(xp, padding, large, monkeypatch):
    """Every border is written anew, whatever the scratch memory held."""
    if large:
        monkeypatch.setattr(backend, "INLINE_WORK", 0)
        monkeypatch.setattr(backend, "_count", 3)
    shape = (5, 160, 120, 4) if large else (3, 6, 5, 2)
    window = make_window(shape[1:3], (2, 2), (1, 1), padding)
    x = normal(1, *shape)
    top, bottom, left, right = padding
    for value in (7.0, -np.inf):
        expected = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)
        np.testing.assert_array_equal(backend.to_numpy(geometry.pad(xp.asarray(x), window, value)), expected)


def test_without_padding_nothing_is_copied(xp):
    x = xp.asarray(normal(1, 2, 7, 6, 3))
    for size, kernel, stride, seen in (((7, 6), (2, 2), (1, 1), (7, 6)), ((7, 6), (2, 2), (3, 3), (5, 5))):
        view = geometry.pad(x, make_window(size, kernel, stride, 0), 0.0)
        assert view.shape == (2, *seen, 3)
        assert xp.shares_memory(view, x)


@pytest.mark.parametrize("channels", [1, 64])
def test_padding_takes_two_launches_at_most(channels, cuda_calls):
    """The value and the image, however large that is."""
    import cupy

    x, window = cupy.ones((channels, 64, 64, 8)), make_window((64, 64), (3, 3), (1, 1), 1)
    for value in (0.0, -np.inf):
        with cuda_calls() as calls:
            geometry.pad(x, window, value)
        assert calls["kernel_launch"] <= 2


def test_windows_may_reach_beyond_the_padding(xp):
    window = make_window((4, 5), (3, 3), (2, 2), (1, 0), (1, 1), ceil_mode=True)
    assert window.padded == (7, 5)
    padded = backend.to_numpy(geometry.pad(xp.ones((1, 4, 5, 1)), window, 0.0))
    np.testing.assert_array_equal(padded[0, :, 0, 0], [0, 1, 1, 1, 1, 0, 0])


def test_the_next_padded_image_takes_the_same_memory():
    window = make_window((3, 3), (2, 2), (1, 1), 1)
    first, second = (geometry.pad(np.ones((1, 3, 3, 1)), window, value) for value in (0.0, -np.inf))
    assert np.shares_memory(first, second)


def test_the_gradient_of_what_no_window_saw_is_zero(xp):
    window = make_window((5, 6), (2, 2), (3, 3), (1, 0, 0, 0))
    padded, dx = xp.asarray(normal(1, 2, *window.padded, 3)), xp.full((2, 5, 6, 3), np.nan)
    geometry.cut(padded, window, dx)
    expected = np.zeros((2, 5, 6, 3))
    expected[:, :4, :5] = backend.to_numpy(padded)[:, 1:]
    np.testing.assert_array_equal(backend.to_numpy(dx), expected)


@pytest.mark.parametrize("height", [1, 3])
def test_windows_may_see_nothing_but_padding(xp, height):
    """Their values are those of the padding, and the image has the gradient 0."""
    window = make_window((height, 4), (2, 1), (6, 1), (3, 0, 0, 0))
    assert window.output == (1, 4)
    padded = geometry.pad(xp.ones((2, height, 4, 3)), window, 7.0)
    np.testing.assert_array_equal(backend.to_numpy(geometry.tap(padded, window, 1, 0)), np.full((2, 1, 4, 3), 7.0))
    dx = xp.full((2, height, 4, 3), np.nan)
    geometry.cut(xp.ones((2, 2, 4, 3)), window, dx)
    np.testing.assert_array_equal(backend.to_numpy(dx), 0.0)


def test_items():
    image, target = normal(1, 2, 6, 8, 3, dtype="float32"), np.zeros((2, 3, 4, 3), "float32")
    items, room = geometry.item_views(image[:, ::2, 1::2], target)
    assert items.shape == room.shape == (2, 3, 4)
    assert items.dtype.itemsize == 12
    room[...] = items
    np.testing.assert_array_equal(target, image[:, ::2, 1::2])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2, 0)),
        np.zeros((2, 2, 6))[..., ::2],
        np.zeros((3, 2, 2)).transpose(1, 2, 0),
        np.zeros((2, 2, geometry.LARGEST_ITEM + 1)),
    ],
    ids=["none", "every other", "batch first", "many"],
)
def test_numbers_that_lie_apart_or_are_many_are_no_items(image):
    small = np.zeros((2, 2, 1))
    assert all(a is b for a, b in zip(geometry.item_views(small, image), (small, image), strict=True))


def test_the_largest_item():
    assert geometry.item_views(np.zeros((2, geometry.LARGEST_ITEM)))[0].shape == (2,)


def test_the_smallest_item():
    assert geometry.item_views(np.zeros((2, 1)))[0].shape == (2,)


@pytest.mark.cupy
def test_a_gpu_has_no_items():
    import cupy

    image = cupy.zeros((2, 2, 3))
    assert geometry.item_views(image)[0] is image


COPIED = {  # (from, to) of images (3, 4, 5, 2)
    "whole rows": (np.s_[:2, 1:3], np.s_[1:, :2]),
    "parts of rows": (np.s_[:, :, 1:4], np.s_[:, :, 2:]),
    "pixels": (np.s_[:, :, ::2], np.s_[:, :, 1:4]),
    "one pixel a row": (np.s_[:, :, 2:3], np.s_[:, :, :1]),
    "one image": (np.s_[..., :1], np.s_[..., -1:]),
    "an empty part": (np.s_[:, 4:], np.s_[:, :0]),
}


@pytest.mark.parametrize(("source", "target"), COPIED.values(), ids=COPIED)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", ["C", "batch first"])
def test_copies_go_where_they_should(xp, source, target, batch, layout):
    x = normal(1, 3, 4, 5, batch)
    x_in = xp.asarray(x) if layout == "C" else xp.asarray(np.moveaxis(x, -1, 0).copy()).transpose(1, 2, 3, 0)
    expected = np.zeros_like(x)
    expected[target] = x[source]
    out = xp.zeros_like(x_in)
    geometry.copy(out[target], x_in[source])
    np.testing.assert_array_equal(backend.to_numpy(out), expected)


def test_rows_are_copied_whole_where_they_are_whole(monkeypatch):
    shapes, item_views = [], geometry.item_views

    def spy(*arrays):
        shapes.append([a.shape for a in arrays])
        return item_views(*arrays)

    monkeypatch.setattr(geometry, "item_views", spy)
    x, y = np.zeros((3, 4, 5, 2)), np.ones((3, 4, 5, 2))
    geometry.copy(x[:, 1:, 1:4], y[:, :3, 2:])
    geometry.copy(x[:, :, ::2], y[:, :, 1:4])
    geometry.copy(x[:, :, 1:4], y[:, :, ::2])
    geometry.copy(x[..., 1:], y[..., :1])
    assert shapes == [[(3, 3, 6)] * 2, [(3, 4, 3, 2)] * 2, [(3, 4, 3, 2)] * 2, [(3, 4, 5, 1)] * 2]
