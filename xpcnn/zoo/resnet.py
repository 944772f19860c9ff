"""Residual networks: ResNet-18 to ResNet-152 for ImageNet, and the thin ResNet-20 to ResNet-110 for CIFAR.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2016). Weights start by He's rule.
"""

from __future__ import annotations

from ..errors import ArgumentError
from ..init import VarianceScaling
from ..layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dense,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    PadChannels,
    ReLU,
    Residual,
    Sequential,
)
from .stem import for_cifar

__all__ = ["cifar_resnet", "resnet"]

RESNET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(depth: int = 50, classes: int = 1000, stem: str = "imagenet") -> Sequential:
    """ResNet with torchvision's names; 50 layers and more have bottlenecks, whose stride is in the 3x3 convolution.

    Input (3, 224, 224); parameters and MACs:

    ===== ========== ==============
    depth parameters MACs
    ===== ========== ==============
    18    11,689,512  1,814,073,344
    34    21,797,672  3,663,761,408
    50    25,557,032  4,089,184,256
    101   44,549,160  7,801,405,440
    152   60,192,808 11,513,626,624
    ===== ========== ==============

    With stem="cifar", (3, 32, 32): the first convolution is 3x3 with stride 1, and no pooling follows it.

    Args:
        depth: 18, 34, 50, 101 or 152 layers with weights.
        classes: number of classes K.
        stem: "imagenet" or "cifar".
    """
    if depth not in RESNET:
        raise ArgumentError(f"depth of resnet must be one of {', '.join(map(str, RESNET))}; received {depth!r}.")
    block, expansion = (_bottleneck, 4) if depth >= 50 else (_basic, 1)
    small = for_cifar(stem)
    layers: dict[str, Layer] = {"conv1": _conv(64, 3) if small else _conv(64, 7, 2), "bn1": BatchNorm2d()}
    layers |= {"relu": ReLU()} if small else {"relu": ReLU(), "maxpool": MaxPool2d(3, 2, 1)}
    channels = 64
    for stage, count in enumerate(RESNET[depth]):
        width, blocks = 64 << stage, []
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            fits = stride == 1 and channels == width * expansion
            channels = width * expansion
            projection = None if fits else Sequential(_conv(channels, 1, stride), BatchNorm2d())
            blocks.append(Residual(block(width, stride), projection, ReLU()))
        layers[f"layer{stage + 1}"] = Sequential(*blocks)
    return Sequential(**layers, avgpool=GlobalAvgPool2d(), fc=Dense(classes))


def cifar_resnet(depth: int = 20, classes: int = 10, shortcut: str = "A") -> Sequential:
    """The thin ResNet of the paper's experiments with CIFAR-10: (depth - 2) / 6 blocks of 16, 32 and 64 channels each.

    Parameter names are those of the weights that Yerlan Idelbayev published.

    Input (3, 32, 32); parameters with shortcut A, and MACs:

    ===== ========== ===========
    depth parameters MACs
    ===== ========== ===========
    20       269,722  40,551,040
    32       464,154  68,862,592
    44       658,586  97,174,144
    56       853,018 125,485,696
    110    1,727,962 252,887,680
    ===== ========== ===========

    Args:
        depth: 6 n + 2 layers with weights.
        classes: number of classes K.
        shortcut: where the size changes, "A" takes every second pixel and adds channels of zeros on both sides; "B"
            is a 1x1 convolution with batch norm.
    """
    if depth < 8 or depth % 6 != 2:
        raise ArgumentError(f"depth of cifar_resnet must be 6 n + 2, such as 20 or 56; received {depth!r}.")
    if shortcut not in ("A", "B"):
        raise ArgumentError(f'shortcut must be "A" or "B"; received {shortcut!r}.')
    stages: dict[str, Layer] = {}
    for stage, width in enumerate((16, 32, 64)):
        blocks = []
        for i in range((depth - 2) // 6):
            change: Layer | None = None
            if stage > 0 and i == 0:
                zeros = PadChannels(width // 4, width // 4)
                change = Sequential(_conv(width, 1, 2), BatchNorm2d())
                change = Sequential(AvgPool2d(1, 2), zeros) if shortcut == "A" else change
            blocks.append(Residual(_basic(width, 1 if change is None else 2), change, ReLU(), "shortcut"))
        stages[f"layer{stage + 1}"] = Sequential(*blocks)
    return Sequential(
        conv1=_conv(16, 3),
        bn1=BatchNorm2d(),
        relu=ReLU(),
        **stages,
        avgpool=GlobalAvgPool2d(),
        linear=Dense(classes, init="he_normal"),
    )


def _conv(width: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(width, kernel, stride, padding=kernel // 2, bias=False, init=VarianceScaling(2.0, "out"))


def _basic(width: int, stride: int) -> Sequential:
    return Sequential(
        conv1=_conv(width, 3, stride), bn1=BatchNorm2d(), relu=ReLU(), conv2=_conv(width, 3), bn2=BatchNorm2d()
    )


def _bottleneck(width: int, stride: int) -> Sequential:
    return Sequential(
        conv1=_conv(width, 1),
        bn1=BatchNorm2d(),
        relu1=ReLU(),
        conv2=_conv(width, 3, stride),
        bn2=BatchNorm2d(),
        relu2=ReLU(),
        conv3=_conv(4 * width, 1),
        bn3=BatchNorm2d(),
    )
