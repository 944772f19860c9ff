"""AlexNet and VGG: a chain of convolutions, then dense layers that hold most of the parameters.

Parameter names are torchvision's.
"""

from __future__ import annotations

from ..errors import ArgumentError
from ..init import Normal, VarianceScaling
from ..layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2d,
    ReLU,
    Sequential,
)
from .stem import for_cifar

__all__ = ["alexnet", "vgg"]


def alexnet(classes: int = 1000, stem: str = "imagenet", hidden: int | None = None, dropout: float = 0.5) -> Sequential:
    """AlexNet in one column: five convolutions, three dense layers, no response normalisation.

    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012), with the
    widths of Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014).

    Input (3, 224, 224): 61,100,840 parameters, 714,188,480 MACs. With stem="cifar", (3, 32, 32): the first kernel is
    5x5 with stride 1, as in Krizhevsky's own networks for CIFAR-10, and the dense layers see 3x3 maps.

    Args:
        classes: number of classes K.
        stem: "imagenet" or "cifar".
        hidden: width of the dense layers; None means 4096, or 1024 for CIFAR.
        dropout: probability in front of the first two dense layers.
    """
    small = for_cifar(stem)
    hidden = hidden or (1024 if small else 4096)
    first = Conv2d(64, 5, padding=2) if small else Conv2d(64, 11, stride=4, padding=2)
    return Sequential(
        features=Sequential(
            first,
            ReLU(),
            MaxPool2d(3, 2),
            Conv2d(192, 5, padding=2),
            ReLU(),
            MaxPool2d(3, 2),
            Conv2d(384, 3, padding=1),
            ReLU(),
            Conv2d(256, 3, padding=1),
            ReLU(),
            Conv2d(256, 3, padding=1),
            ReLU(),
            MaxPool2d(3, 2),
        ),
        avgpool=AdaptiveAvgPool2d(3 if small else 6),
        flatten=Flatten(),
        classifier=Sequential(
            Dropout(dropout),
            Dense(hidden),
            ReLU(),
            Dropout(dropout),
            Dense(hidden),
            ReLU(),
            Dense(classes),
        ),
    )


# how many convolutions of 64, 128, 256, 512 and 512 kernels, with a pooling after each group
VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    depth: int = 16,
    classes: int = 1000,
    stem: str = "imagenet",
    norm: bool = False,
    hidden: int | None = None,
    dropout: float = 0.5,
) -> Sequential:
    """VGG: nothing but 3x3 convolutions and poolings by two, then three dense layers.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015).

    Input (3, 224, 224); parameters and MACs, to which batch norm adds 5,504 to 11,008 parameters:

    ===== =========== ==============
    depth parameters  MACs
    ===== =========== ==============
    11    132,863,336  7,609,090,048
    13    133,047,848 11,308,466,176
    16    138,357,544 15,470,264,320
    19    143,667,240 19,632,062,464
    ===== =========== ==============

    With stem="cifar", (3, 32, 32), the same convolutions end in 1x1 maps, and the dense layers are 512 wide, as in Liu
    and Deng, "Very deep convolutional neural network based image classification using small training sample size"
    (2015).

    Args:
        depth: 11, 13, 16 or 19 layers with weights.
        classes: number of classes K.
        stem: "imagenet" or "cifar".
        norm: whether batch norm follows every convolution.
        hidden: width of the dense layers; None means 4096, or 512 for CIFAR.
        dropout: probability behind the first two dense layers.
    """
    if depth not in VGG:
        raise ArgumentError(f"depth of vgg must be one of {', '.join(map(str, VGG))}; received {depth!r}.")
    small = for_cifar(stem)
    hidden = hidden or (512 if small else 4096)
    he, narrow = VarianceScaling(2.0, "out"), Normal(0.01)
    features: list[Layer] = []
    for width, count in zip((64, 128, 256, 512, 512), VGG[depth], strict=True):
        for _ in range(count):
            features += [Conv2d(width, 3, padding=1, init=he), *([BatchNorm2d()] if norm else []), ReLU()]
        features.append(MaxPool2d(2))
    return Sequential(
        features=Sequential(*features),
        avgpool=AdaptiveAvgPool2d(1 if small else 7),
        flatten=Flatten(),
        classifier=Sequential(
            Dense(hidden, init=narrow),
            ReLU(),
            Dropout(dropout),
            Dense(hidden, init=narrow),
            ReLU(),
            Dropout(dropout),
            Dense(classes, init=narrow),
        ),
    )
