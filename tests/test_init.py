from __future__ import annotations

import json
import math

import numpy as np
import pytest

from xpcnn import init
from xpcnn.backend import generator
from xpcnn.errors import ArgumentError
from xpcnn.layers import Conv2d, Dense

SHAPE, FAN_IN, FAN_OUT = (64, 32, 5, 5), 32 * 25, 64 * 25

# name -> (standard deviation, bound or None)
EXPECTED = {
    "he_normal": (math.sqrt(2 / FAN_IN), None),
    "he_uniform": (math.sqrt(2 / FAN_IN), math.sqrt(6 / FAN_IN)),
    "xavier_normal": (math.sqrt(2 / (FAN_IN + FAN_OUT)), None),
    "xavier_uniform": (math.sqrt(2 / (FAN_IN + FAN_OUT)), math.sqrt(6 / (FAN_IN + FAN_OUT))),
    "lecun_normal": (math.sqrt(1 / FAN_IN), None),
    "lecun_uniform": (math.sqrt(1 / FAN_IN), math.sqrt(3 / FAN_IN)),
    "torch_default": (math.sqrt(1 / (3 * FAN_IN)), 1 / math.sqrt(FAN_IN)),
    "normal": (0.01, None),
    "uniform": (0.05 / math.sqrt(3), 0.05),
}


def values(how: init.InitLike, shape=SHAPE) -> np.ndarray:
    return init.get(how)(shape, FAN_IN, FAN_OUT, generator(1, "test"))


@pytest.mark.parametrize("name", EXPECTED)
def test_mean_deviation_and_bound(name):
    std, bound = EXPECTED[name]
    x = values(name)
    assert x.shape == SHAPE
    assert x.dtype == np.float64
    assert abs(x.mean()) < 5 * std / math.sqrt(x.size)
    assert abs(x.std() / std - 1) < 0.01
    if bound is None:
        assert np.abs(x).max() > 3.5 * std
    else:
        assert 0.99 * bound < np.abs(x).max() <= bound


def test_truncated_normal():
    x = values(init.TruncatedNormal(0.3, cut=1.5))
    assert np.abs(x).max() <= 0.45
    assert np.abs(x).max() > 0.44
    # the deviation of a Gaussian cut at c: sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1))
    phi, total = math.exp(-1.125) / math.sqrt(2 * math.pi), math.erf(1.5 / math.sqrt(2))
    assert abs(x.std() / (0.3 * math.sqrt(1 - 3 * phi / total)) - 1) < 0.02


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (8, 2, 3, 3), (40, 2, 3, 3)])
def test_orthogonal(shape):
    matrix = values(init.Orthogonal(2.0), shape).reshape(shape[0], -1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 4.0 * np.eye(len(small)), atol=1e-12)


def test_constants():
    assert (values("zeros") == 0).all()
    assert (values("ones") == 1).all()
    assert (values(init.Constant(0.3)) == 0.3).all()


def test_every_name_works_and_goes_through_json():
    for name in init.NAMED:
        assert init.decode(init.encode(name)) == name
        how = init.get(name)
        again = init.decode(json.loads(json.dumps(init.encode(how))))
        assert again == how
        np.testing.assert_array_equal(values(again, (3, 4)), values(name, (3, 4)))


def test_layers_hand_over_the_right_fans():
    conv = Conv2d(8, (3, 5), groups=2, init="torch_default")
    conv.build((4, 9, 9), dtype="float64")
    assert 0.9 / math.sqrt(30) < np.abs(conv.weight.data).max() <= 1 / math.sqrt(30)
    assert np.abs(conv.bias.data).max() <= 1 / math.sqrt(30)
    assert conv.bias.data.all()
    dense = Dense(50, init=init.VarianceScaling(1.0, "out", "uniform"))
    dense.build((20,), dtype="float64")
    assert 0.95 * math.sqrt(3 / 50) < np.abs(dense.weight.data).max() <= math.sqrt(3 / 50)
    assert not dense.bias.data.any()


def test_bias_has_torch_values_only_beside_torch_weights():
    for how, zero in (("torch_default", False), ("he_normal", True), ("zeros", True)):
        dense = Dense(3, init=how)
        dense.build((4,))
        assert (not dense.bias.data.any()) == zero
    dense = Dense(3, bias_init=init.Constant(0.5))
    dense.build((4,))
    assert (dense.bias.data == 0.5).all()


def test_wrong_initializers_are_refused():
    with pytest.raises(ArgumentError, match=r"one of he_normal, .*zeros, ones; received 'best'"):
        init.get("best")
    with pytest.raises(ArgumentError, match=r"must be an Initializer or one of .*received 0\.1"):
        init.get(0.1)
    with pytest.raises(ArgumentError, match=r'fan "in", "out" or "average".*received fan=\'both\''):
        init.VarianceScaling(1.0, "both")
    with pytest.raises(ArgumentError, match=r"distribution='cauchy'"):
        init.VarianceScaling(1.0, "in", "cauchy")
    with pytest.raises(ArgumentError, match=r"unknown initializer 'Magic'; known are Constant, Normal"):
        init.decode({"init": "Magic"})
    with pytest.raises(ArgumentError, match=r"one of he_normal"):
        init.decode("best")
    with pytest.raises(ArgumentError, match=r"Normal"):
        init.decode({"init": "Normal", "deviation": 3})

    class Mine(init.Initializer):
        pass

    with pytest.raises(ArgumentError, match=r"only initializers of xpcnn\.init can be written"):
        init.encode(Mine())
    with pytest.raises(TypeError, match=r"Mine does not say how to make values"):
        Mine()((1,), 1, 1, generator(0))
