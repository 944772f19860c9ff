"""Kernels that CuPy's compiled modules carry: thrust, cub and the random generators."""

import cudasim
import cupy as cp
import numpy as np


def test_all_of_them_can_be_run(capfd):
    broken, total = cudasim.check_embedded()
    assert total > 800  # 894 in CuPy 14.2.0
    assert broken == 0, capfd.readouterr().err


def test_thrust_sorts():
    x = np.random.default_rng(0).integers(0, 1000, 5000)
    np.testing.assert_array_equal(cp.sort(cp.asarray(x)).get(), np.sort(x))
