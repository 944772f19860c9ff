"""Batches on their way to the device: nothing is lost, whatever is overwritten meanwhile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import to_numpy
from strategies import normal

from xpcnn.backend import array_module
from xpcnn.data.uploader import Uploader


@pytest.mark.cuda_async
def test_uploader_brings_every_batch(xp):
    """More batches than slots, of growing and shrinking size, from memory that is overwritten right after."""
    uploader = Uploader("cpu" if xp is np else "cuda:0", slots=2)
    sums, expected, results = [], [], []
    for step in range(7):
        x, t = normal(step, 3 + step % 3, 5, dtype="float32"), np.arange(step + 1)
        expected.append((x.copy(), t.copy()))
        x_there, t_there = uploader.put(x, t)
        assert array_module(x_there, t_there) is xp
        sums.append((x_there * 2).sum())
        results.append((x_there, t_there))
        if xp is not np:
            x[...] = np.nan
            t[...] = -1
    for total, (x_there, t_there), (x, t) in zip(sums, results, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(x_there), x)
        np.testing.assert_array_equal(to_numpy(t_there), t)
        assert math.isclose(float(total), 2 * x.sum(), rel_tol=1e-4, abs_tol=1e-4)


@pytest.mark.cuda_async
def test_uploader_sends_ahead(xp):
    uploader = Uploader("cpu" if xp is np else "cuda:0")
    batches = [normal(i, 4, 3) for i in range(5)]
    waiting = [uploader.send(batch) for batch in batches[:3]]
    for i, batch in enumerate(batches):
        (there,) = waiting.pop(0)()
        np.testing.assert_array_equal(to_numpy(there), batch)
        if i + 3 < len(batches):
            waiting.append(uploader.send(batches[i + 3]))


def test_uploader_takes_odd_arrays(xp):
    uploader = Uploader("cpu" if xp is np else "cuda:0")
    arrays = (np.zeros((0, 3)), normal(1, 4, 6)[::2, ::3], np.asfortranarray(normal(2, 3, 4)), np.array(5, "uint8"))
    for there, array in zip(uploader.put(*arrays), arrays, strict=True):
        assert there.dtype == array.dtype
        np.testing.assert_array_equal(to_numpy(there), array)
    assert uploader.put() == ()


def test_uploader_on_the_cpu_hands_arrays_through():
    x = normal(1, 3)
    assert Uploader("cpu").put(x)[0] is x
