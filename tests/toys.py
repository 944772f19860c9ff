"""A small problem that a small network solves in a few epochs: which quarter of the image is bright?"""

from __future__ import annotations

import numpy as np

from xpcnn import BatchNorm2d, Classifier, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Sequential
from xpcnn.optim import SGD

SHAPE = (1, 8, 8)
CLASSES = ["north", "east", "south"]


def quarters(count, seed=0, dtype="uint8", channels=1):
    """Return images (count, channels, 8, 8) and labels 0..2 (count,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.random((count, channels, 8, 8)) * 0.4
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.6
    if dtype == "uint8":
        return np.rint(images * 255).astype(np.uint8), labels
    return images.astype(dtype), labels


def small_net(classes=3, dropout=0.0):
    layers = [Conv2d(4, 3), ReLU(), MaxPool2d(2), Flatten(), Dense(classes)]
    if dropout:
        layers.insert(4, Dropout(dropout))
    return Sequential(*layers)


def norm_net(classes=3):
    return Sequential(Conv2d(4, 3), BatchNorm2d(), ReLU(), Flatten(), Dense(classes))


def small_classifier(net=None, **options):
    return Classifier(small_net() if net is None else net, **{"optimizer": SGD(0.1), "device": "cpu"} | options)


def place(xp):
    return "cpu" if xp is np else "cuda:0"
