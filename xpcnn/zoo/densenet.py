"""DenseNet: every layer sees the outputs of all layers before it."""

from __future__ import annotations

from ..errors import ArgumentError
from ..layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dense,
    DenseConcat,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    ReLU,
    Sequential,
)
from .stem import for_cifar

__all__ = ["densenet"]

# depth -> growth (the channels each layer adds), layers in the four blocks
DENSENET = {
    121: (32, (6, 12, 24, 16)),
    161: (48, (6, 12, 36, 24)),
    169: (32, (6, 12, 32, 32)),
    201: (32, (6, 12, 48, 32)),
}


def densenet(depth: int = 121, classes: int = 1000, stem: str = "imagenet") -> Sequential:
    """DenseNet-BC with torchvision's names: bottlenecks of four times the growth, transitions that halve the channels.

    Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks" (2017). Convolutions start by
    He's rule.

    Input (3, 224, 224); parameters and MACs:

    ===== ========== =============
    depth parameters MACs
    ===== ========== =============
    121    7,978,856 2,834,161,664
    161   28,681,000 7,727,907,072
    169   14,149,480 3,359,843,328
    201   20,013,928 4,291,365,888
    ===== ========== =============

    With stem="cifar", (3, 32, 32): the first convolution is 3x3 with stride 1, and no pooling follows it, as in the
    paper's networks for CIFAR.

    Args:
        depth: 121, 161, 169 or 201 layers with weights.
        classes: number of classes K.
        stem: "imagenet" or "cifar".
    """
    if depth not in DENSENET:
        raise ArgumentError(f"depth of densenet must be one of {', '.join(map(str, DENSENET))}; received {depth!r}.")
    growth, blocks = DENSENET[depth]
    channels = 2 * growth
    small = for_cifar(stem)
    features: dict[str, Layer] = {"conv0": _conv(channels, 3) if small else _conv(channels, 7, 2)}
    features |= {"norm0": BatchNorm2d(), "relu0": ReLU()} | ({} if small else {"pool0": MaxPool2d(3, 2, 1)})
    for i, count in enumerate(blocks, 1):
        layers = {f"denselayer{j + 1}": DenseConcat(_bottleneck(growth)) for j in range(count)}
        features[f"denseblock{i}"] = Sequential(**layers)
        channels += count * growth
        if i < len(blocks):
            channels //= 2
            features[f"transition{i}"] = Sequential(
                norm=BatchNorm2d(), relu=ReLU(), conv=_conv(channels, 1), pool=AvgPool2d(2)
            )
    return Sequential(
        features=Sequential(**features, norm5=BatchNorm2d(), relu5=ReLU()),
        avgpool=GlobalAvgPool2d(),
        classifier=Dense(classes, bias_init="zeros"),
    )


def _conv(width: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(width, kernel, stride, padding=kernel // 2, bias=False, init="he_normal")


def _bottleneck(growth: int) -> Sequential:
    return Sequential(
        norm1=BatchNorm2d(),
        relu1=ReLU(),
        conv1=_conv(4 * growth, 1),
        norm2=BatchNorm2d(),
        relu2=ReLU(),
        conv2=_conv(growth, 3),
    )
