"""Making, indexing and rearranging arrays."""

import cupy as cp
import numpy as np
import pytest
from comparing import IMAGES, MATRIX, OTHER, Comparisons, im2col

comparisons = Comparisons()
add = comparisons.add

add("zeros", lambda xp: xp.zeros((3, 4), "f4"))
add("ones", lambda xp: xp.ones((3, 4)))
add("full", lambda xp: xp.full((2, 3), 2.5, "f4"))
add("full_int", lambda xp: xp.full(3, 7))
add("arange", lambda xp: xp.arange(10))
add("arange_step", lambda xp: xp.arange(1, 9, 0.5, dtype="f4"))
add("linspace", lambda xp: xp.linspace(0, 1, 7))
add("eye", lambda xp: xp.eye(4, dtype="f4"))
add("identity_onehot", lambda xp, i: xp.eye(10, dtype="f4")[i], np.array([3, 1, 9]))
add("asarray_list", lambda xp: xp.asarray([[1, 2], [3, 4]], dtype="f4"))
add("ascontiguousarray", lambda xp, x: xp.ascontiguousarray(x.transpose(0, 2, 3, 1)), IMAGES)
add("zeros_like", lambda xp, x: xp.zeros_like(x), IMAGES)
add("empty_fill", lambda xp: _fill(xp.empty((3, 3), "f4")))


def _fill(a):
    a.fill(3)
    return a


add("astype", lambda xp, a: a.astype("f8"), MATRIX)
add("astype_int", lambda xp, a: (a * 10).astype("i4"), MATRIX)
add("astype_half", lambda xp, a: a.astype("f2"), MATRIX)
add("copy", lambda xp, a: a.copy(), MATRIX)

add("basic_slice", lambda xp, x: x[1:3, ::2, ::-1, 2] + 0, IMAGES)
add("fancy", lambda xp, x, i: x[i], IMAGES, np.array([2, 0, 3]))
add("fancy2", lambda xp, x, i, j: x[:, i, j], IMAGES, np.array([2, 0, 1]), np.array([5, 6, 7]))
add("bool_mask", lambda xp, a: a[a > 0], MATRIX)
add("setitem", lambda xp, a: _set(a), MATRIX)
add("setitem_fancy", lambda xp, a, i: _setf(a, i), MATRIX, np.array([0, 3]))
add("setitem_mask", lambda xp, a: _setm(a), MATRIX)
add("take", lambda xp, a, i: xp.take(a, i, axis=1), MATRIX, np.array([0, 6, 2]))
add("take_along_axis", lambda xp, a: xp.take_along_axis(a, a.argmax(axis=1)[:, None], axis=1), MATRIX)
add("put_along", lambda xp, a: _pa(xp, a), MATRIX)
add("nonzero", lambda xp, a: xp.nonzero(a > 0.3), MATRIX)


def _set(a):
    a[1:3, 2] = 5
    a[:, -1] = a[:, 0]
    return a


def _setf(a, i):
    a[i, i] = 9
    return a


def _setm(a):
    a[a < 0] = 0
    return a


def _pa(xp, a):
    xp.put_along_axis(a, a.argmax(axis=1)[:, None], 0, axis=1) if xp is np else a.__setitem__(
        (cp.arange(a.shape[0]), a.argmax(axis=1)), 0
    )
    return a


add("reshape_T", lambda xp, x: x.transpose(1, 0, 2, 3).reshape(3, -1), IMAGES)
add("pad", lambda xp, x: xp.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2))), IMAGES)
add("pad_const", lambda xp, x: xp.pad(x, 1, constant_values=-1), MATRIX)
add("pad_edge", lambda xp, x: xp.pad(x, 1, mode="edge"), MATRIX)
add("concatenate", lambda xp, a, b: xp.concatenate([a, b], axis=1), MATRIX, OTHER)
add("stack", lambda xp, a, b: xp.stack([a, b]), MATRIX, OTHER)
add("split", lambda xp, x: xp.split(x, 2), IMAGES)
add("repeat", lambda xp, a: xp.repeat(a, 3, axis=0), MATRIX)
add("tile", lambda xp, a: xp.tile(a, (2, 3)), MATRIX)
add("flip", lambda xp, a: xp.flip(a, 1), MATRIX)
add("rot90", lambda xp, a: xp.rot90(a), MATRIX)
add("roll", lambda xp, a: xp.roll(a, 2, axis=1), MATRIX)
add("squeeze_expand", lambda xp, a: xp.expand_dims(a, 1).squeeze(), MATRIX)
add("moveaxis", lambda xp, x: xp.ascontiguousarray(xp.moveaxis(x, 1, -1)), IMAGES)
add("swapaxes", lambda xp, x: xp.ascontiguousarray(x.swapaxes(0, 3)), IMAGES)
add("broadcast_to", lambda xp, a: xp.broadcast_to(a, (3, 5, 7)) + 0, MATRIX)
add("meshgrid", lambda xp: xp.meshgrid(xp.arange(3), xp.arange(4)))
add(
    "sliding_window_view",
    lambda xp, x: (
        (xp.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3)))[:, :, ::2, ::2]
        .transpose(0, 2, 3, 1, 4, 5)
        .reshape(4 * 9, -1)
    ),
    IMAGES,
)


add("as_stridedim2col", im2col, IMAGES)


@pytest.mark.parametrize("case", comparisons, ids=str)
def test_agrees_with_numpy(case):
    case.check()
