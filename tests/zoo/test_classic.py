"""The zoo: names, sizes and structure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpcnn import zoo
from xpcnn.errors import ArgumentError
from xpcnn.layers import LpPool2d, MaxPool2d, config, from_config

CLASSIC = ["mri", "lenet", "simple_convnet", "keras_style"]


@pytest.mark.parametrize("name", CLASSIC)
def test_every_network(name, rng):
    entry = zoo.entry(name)
    net = zoo.build(name)
    assert net.build(entry.input_shape) == (entry.classes,)
    assert sum(parameter.data.size for parameter in net.parameters().values()) == entry.parameters
    shape = (entry.input_shape[0], 32, 32)
    net = zoo.build(name, classes=3)
    assert net.build(shape) == (3,)
    y = net(rng.random((2, *shape), dtype=np.float32))
    assert y.shape == (2, 3)
    assert np.isfinite(y).all()
    assert config(from_config(config(net))) == config(net)


def test_names():
    assert zoo.names()[:4] == CLASSIC
    assert zoo.entry("Keras-Style") is zoo.entry("keras_style")
    assert zoo.entry("mri").mode == "L"
    with pytest.raises(ArgumentError, match="no network called 'resnet'; the zoo has mri, lenet"):
        zoo.build("resnet")


def test_mri_has_a_choice_of_width():
    net = zoo.mri(width=1024)
    net.build((1, 200, 200))
    assert net.parameters()["10.weight"].data.shape == (1024, 10_000)


def test_simple_convnet_starts_small():
    net = zoo.simple_convnet()
    net.build((1, 28, 28))
    for name, parameter in net.parameters().items():
        if name.endswith("bias"):
            assert not parameter.data.any()
        else:
            assert 0.009 < parameter.data.std() < 0.011


@pytest.mark.parametrize(("pool", "kind"), [("max", MaxPool2d), (math.inf, MaxPool2d), (1, LpPool2d), (2.5, LpPool2d)])
def test_lenet_has_a_choice_of_pooling(pool, kind):
    pools = [layer for _, layer in zoo.lenet(pool=pool).leaves() if isinstance(layer, (MaxPool2d, LpPool2d))]
    assert [type(layer) for layer in pools] == [kind, kind]
    if kind is LpPool2d:
        assert all(layer.p == pool and layer.mean for layer in pools)


@pytest.mark.parametrize("pool", ["average", 0.5, math.nan])
def test_lenet_refuses_other_poolings(pool):
    with pytest.raises(ArgumentError, match='pool must be "max" or a number P >= 1; received'):
        zoo.lenet(pool=pool)
