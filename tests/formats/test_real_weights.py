"""Weights that others trained, in the formats they published them in: the accuracies are theirs."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import BatchNorm2d, Conv2d, Dense, Flatten, GlobalAvgPool2d, MaxPool2d, ReLU, Residual, Sequential, zoo
from xpcnn.formats import read_weights
from xpcnn.layers import Layer

RESNET20 = ["cifar10_resnet20.safetensors", "resnet20-12fca82f.th", "resnet20_zip_format.pth"]


@pytest.fixture(scope="module")
def cifar(real_data):
    """1,000 test images of CIFAR-10, 100 of each class: (images (N, C, H, W) of 0 to 255, labels)."""
    with np.load(real_data("cifar10_small.npz")) as data:
        return data["x_test"].transpose(0, 3, 1, 2).astype(np.float32), data["y_test"]


def accuracy(net: Layer, images: np.ndarray, labels: np.ndarray) -> float:
    parts = [net(images[i : i + 250]).argmax(axis=1) for i in range(0, len(images), 250)]
    return float((np.concatenate(parts) == labels).mean())


def test_three_files_hold_the_same_weights(real_data):
    first, *others = (read_weights(real_data(name)) for name in RESNET20)
    assert len(first) == 97
    for state in others:
        assert set(state) == set(first)
        for key, array in state.items():
            assert array.dtype == first[key].dtype
            assert array.shape == first[key].shape
            assert array.tobytes() == first[key].tobytes()


@pytest.mark.parametrize("name", RESNET20)
def test_resnet20(real_data, cifar, name):
    """91.73 % of the 10,000 test images, by all three files."""
    net = zoo.build("resnet20")
    net.build((3, 32, 32))
    net.load_state_dict(read_weights(real_data(name)), strip_prefix="module.")
    mean, std = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
    images = (cifar[0] / 255 - mean[:, None, None]) / std[:, None, None]
    assert accuracy(net, images, cifar[1]) == pytest.approx(0.914, abs=0.002)


def test_mnist_cnn(real_data):
    net = Sequential(
        conv_layers=Sequential(*[layer for width in (32, 64, 128) for layer in _block(width)]),
        flatten=Flatten(),
        fc_layers=Sequential(Dense(256), ReLU(), Dense(10)),
    )
    net.build((1, 28, 28))
    net.load_state_dict(read_weights(real_data("mnist_cnn_zip_format.pth")))
    with np.load(real_data("mnist_small.npz")) as data:
        images, labels = (data["x_test"][:, None] / 255 - 0.1307) / 0.3081, data["y_test"]
    assert accuracy(net, images, labels) == pytest.approx(0.986, abs=0.002)


def _block(width: int) -> list[Layer]:
    return [Conv2d(width, 3, padding=1), ReLU(), MaxPool2d(2)]


def test_resnet8_of_keras(real_data, cifar):
    """87.19 % of the 10,000 test images, which go in as 0 to 255."""
    net = Sequential(
        conv2d=Conv2d(16, 3, padding=1),
        batch_normalization=BatchNorm2d(1e-3),
        relu=ReLU(),
        stage1=_residual(16, 1),
        stage2=_residual(32, 2),
        stage3=_residual(64, 2),
        pool=GlobalAvgPool2d(),
        dense=Dense(10),
    )
    net.build((3, 32, 32))
    state = read_weights(real_data("cifar10_resnet8_keras.h5"))
    assert sum(array.size for array in state.values()) == 78_666
    net.load_state_dict({_ours(key): array for key, array in state.items()})
    assert accuracy(net, *cifar) == pytest.approx(0.872, abs=0.002)


def _residual(width: int, stride: int) -> Residual:
    """Two convolutions beside a 1x1 one where the size changes; stride 2 pads right and below, as TensorFlow does."""
    padding = 1 if stride == 1 else (0, 1, 0, 1)
    body = Sequential(
        Conv2d(width, 3, stride, padding),
        BatchNorm2d(1e-3),
        ReLU(),
        Conv2d(width, 3, padding=1),
        BatchNorm2d(1e-3),
    )
    return Residual(body, None if stride == 1 else Conv2d(width, 1, stride), ReLU())


PLACES = {
    "conv2d_1": "stage1.0",
    "conv2d_2": "stage1.3",
    "conv2d_3": "stage2.0",
    "conv2d_4": "stage2.3",
    "conv2d_5": "stage2.downsample",
    "conv2d_6": "stage3.0",
    "conv2d_7": "stage3.3",
    "conv2d_8": "stage3.downsample",
    "batch_normalization_1": "stage1.1",
    "batch_normalization_2": "stage1.4",
    "batch_normalization_3": "stage2.1",
    "batch_normalization_4": "stage2.4",
    "batch_normalization_5": "stage3.1",
    "batch_normalization_6": "stage3.4",
}


def _ours(key: str) -> str:
    layer, _, name = key.partition(".")
    return f"{PLACES.get(layer, layer)}.{name}"
