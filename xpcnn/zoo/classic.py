"""Small networks for first steps: an MRI classifier, LeNet, the textbook's SimpleConvNet and the Keras MNIST network.

Each function returns a `Sequential` that ends in class scores (logits): the softmax belongs to the loss while
training and to `predict_proba` afterwards. Input sizes are not built in; the parameter counts given are for the
input each network was made for.
"""

from __future__ import annotations

import math

from ..errors import ArgumentError
from ..init import Normal
from ..layers import Conv2d, Dense, Dropout, Flatten, Layer, LpPool2d, MaxPool2d, ReLU, Sequential

__all__ = ["keras_style", "lenet", "mri", "simple_convnet"]


def mri(classes: int = 4, width: int = 512) -> Sequential:
    """Three small convolutions and a wide dense layer, made to grade Alzheimer's disease from brain MRI.

    Input (1, 200, 200), grey values in [0, 1]: 5,125,264 parameters, almost all in the first dense layer.

    Args:
        classes: number of classes K.
        width: neurons of the hidden dense layer; the slides it comes from say 512 and, once, 1024.
    """
    return Sequential(
        Conv2d(8, 3, padding="same"),
        ReLU(),
        MaxPool2d(2),
        Conv2d(12, 3, padding="same"),
        ReLU(),
        MaxPool2d(2),
        Conv2d(16, 3, padding="same"),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Dense(width),
        ReLU(),
        Dropout(0.25),
        Dense(classes),
    )


def lenet(classes: int = 10, pool: str | float = "max") -> Sequential:
    """LeNet-5's descendant: two large convolutions, each followed by pooling, and two dense layers.

    Input (1, 28, 28), grey values in [0, 1]: 431,080 parameters. The idea is from LeCun, Bottou, Bengio and Haffner,
    "Gradient-based learning applied to document recognition" (1998); the widths are those Caffe made popular, ReLU and
    dropout came with Chainer's version. Weights start by He's rule.

    Args:
        classes: number of classes K.
        pool: "max", or P >= 1 for pooling by the P-norm, (mean of z^P)^(1/P): 1 is average pooling, infinity is max
            pooling.
    """
    return Sequential(
        Conv2d(20, 5, init="he_normal"),
        ReLU(),
        _pooling(pool),
        Conv2d(50, 5, init="he_normal"),
        ReLU(),
        _pooling(pool),
        Flatten(),
        Dense(500, init="he_normal"),
        ReLU(),
        Dropout(0.5),
        Dense(classes, init="he_normal"),
    )


def _pooling(pool: str | float) -> Layer:
    if pool == "max" or pool == math.inf:
        return MaxPool2d(2)
    if isinstance(pool, str) or not pool >= 1:
        raise ArgumentError(f'pool must be "max" or a number P >= 1; received {pool!r}.')
    return LpPool2d(2, p=float(pool), mean=True)


def simple_convnet(classes: int = 10) -> Sequential:
    """One convolution, one pooling, two dense layers: the network of many a first lecture on CNNs.

    Input (1, 28, 28), grey values in [0, 1]: 433,890 parameters. All weights start as N(0, 0.01), as in the textbook
    that introduced it (Koki Saitoh, "Deep Learning from Scratch"), although He's rule would suit the ReLU better.
    """
    small = Normal(0.01)
    return Sequential(
        Conv2d(30, 5, init=small),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Dense(100, init=small),
        ReLU(),
        Dense(classes, init=small),
    )


def keras_style(classes: int = 10) -> Sequential:
    """The MNIST network of Keras' first example: two convolutions, one pooling, dropout twice.

    Input (1, 28, 28), grey values in [0, 1]: 1,199,882 parameters, which start as Keras starts them, by Glorot's rule.
    """
    glorot = "xavier_uniform"
    return Sequential(
        Conv2d(32, 3, init=glorot),
        ReLU(),
        Conv2d(64, 3, init=glorot),
        ReLU(),
        MaxPool2d(2),
        Dropout(0.25),
        Flatten(),
        Dense(128, init=glorot),
        ReLU(),
        Dropout(0.5),
        Dense(classes, init=glorot),
    )
