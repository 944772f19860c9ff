from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import laid_out, layouts, normal, seeds, shape

from xpcnn import backend
from xpcnn.functional.merge import add, concatenate

pytestmark = pytest.mark.usefixtures("blocks")


@given(shape=st.one_of(shape("CHWN"), shape("DN")), layout=layouts, seed=seeds)
def test_sum(xp, shape, layout, seed):
    a, b = (laid_out(normal(s, *shape), layout) for s in (seed, seed + 1))
    y = add(*(v if xp is np else xp.asarray(v) for v in (a, b)))
    np.testing.assert_array_equal(backend.to_numpy(y), a + b)


@given(
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    rest=st.one_of(shape("HWN"), shape("N")),
    layout=layouts,
    seed=seeds,
)
def test_channels_one_after_the_other(xp, channels, rest, layout, seed):
    arrays = [laid_out(normal(seed + c, count, *rest), layout) for c, count in enumerate(channels)]
    y = concatenate(arrays if xp is np else [xp.asarray(a) for a in arrays])
    np.testing.assert_array_equal(backend.to_numpy(y), np.concatenate(arrays))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_stays(xp, dtype):
    parts = [xp.ones((2, 3), dtype), xp.zeros((1, 3), dtype)]
    assert concatenate(parts).dtype == dtype
    assert concatenate(parts).flags.c_contiguous


def test_one_array_is_copied(xp):
    x = xp.ones((2, 3))
    y = concatenate([x])
    y[...] = 5.0
    assert float(x.sum()) == 6.0
