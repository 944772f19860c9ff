"""What only a real GPU can show. `pytest -m gpu` runs these, and they fail where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import assert_close

from xpcnn import SGD, Conv2d, Dense, Flatten, MaxPool2d, ReLU, Sequential, Step, batch_last, softmax_cross_entropy
from xpcnn.backend import Device, memory_info, synchronize
from xpcnn.data import ArrayDataset, Loader

pytestmark = pytest.mark.gpu


def small_net():
    return Sequential(Conv2d(8, 3, padding="same"), ReLU(), MaxPool2d(2), Flatten(), Dense(10))


def train(device, images, labels, steps):
    net, optimizer = small_net(), SGD(0.05, momentum=0.9)
    net.build(images.shape[1:], device=device)
    loader = Loader(ArrayDataset(images, labels), batch_size=32, workers=2, device=device)
    number = 0
    while number < steps:
        for x, t in loader:
            logits, ctx = net.forward(batch_last(x), Step(0, number, need_dx=False))
            _, dlogits = softmax_cross_entropy(logits, t)
            net.backward(dlogits, ctx, need_dx=False)
            optimizer.step(net)
            number += 1
    return net


def test_auto_is_the_gpu():
    assert Device("auto") == "cuda:0"
    assert memory_info("cuda:0").total > 0


def test_training_agrees_with_numpy(rng):
    images = rng.random((320, 1, 20, 20), dtype=np.float32)
    labels = rng.integers(0, 10, 320)
    expected = train("cpu", images, labels, 10).state_dict()
    for name, weights in train("cuda:0", images, labels, 10).state_dict().items():
        assert_close(weights, expected[name], "sum of products")


def test_a_run_repeats_bit_for_bit(rng):
    images = rng.random((320, 1, 20, 20), dtype=np.float32)
    labels = rng.integers(0, 10, 320)
    first, second = (train("cuda:0", images, labels, 20).state_dict() for _ in range(2))
    for name, weights in first.items():
        assert (weights == second[name]).all(), name


def test_memory_comes_back(rng):
    images = rng.random((320, 1, 20, 20), dtype=np.float32)
    labels = rng.integers(0, 10, 320)
    train("cuda:0", images, labels, 10)
    synchronize("cuda:0")
    before = memory_info("cuda:0").used
    train("cuda:0", images, labels, 10)
    synchronize("cuda:0")
    assert memory_info("cuda:0").used <= before
