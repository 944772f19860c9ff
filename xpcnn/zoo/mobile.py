"""Networks for small devices: SqueezeNet and MobileNetV2, with torchvision's names."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..init import Normal, VarianceScaling
from ..layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Clip,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
)
from .stem import for_cifar

__all__ = ["mobilenet_v2", "squeezenet"]

# version -> kernels and kernel size of the first convolution, then the kernels that squeeze; 0 is a pooling
SQUEEZENET = {
    "1.0": (96, 7, (0, 16, 16, 32, 0, 32, 48, 48, 64, 0, 64)),
    "1.1": (64, 3, (0, 16, 16, 0, 32, 32, 0, 48, 48, 64, 64)),
}


def squeezenet(version: str = "1.0", classes: int = 1000, stem: str = "imagenet", dropout: float = 0.5) -> Sequential:
    """SqueezeNet: "fire" modules squeeze the channels by a 1x1 convolution, then expand them by 1x1 and 3x3 ones.

    Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size" (2016); version
    1.1 is the authors' later one. It needs no dense layer: the last convolution has a kernel for each class.

    Input (3, 224, 224): version 1.0 has 1,248,424 parameters and 818,924,576 MACs, 1.1 has 1,235,496 and 349,151,936.
    With stem="cifar", (3, 32, 32), the first convolution is 3x3 with stride 1; the poolings stay, so the last maps are
    4x4.

    Args:
        version: "1.0" or "1.1".
        classes: number of classes K.
        stem: "imagenet" or "cifar".
        dropout: probability in front of the last convolution.
    """
    if version not in SQUEEZENET:
        raise ArgumentError(f'version of squeezenet must be "1.0" or "1.1"; received {version!r}.')
    width, kernel, squeezes = SQUEEZENET[version]
    first: dict[str, Any] = {"kernel_size": kernel, "stride": 2}
    if for_cifar(stem):
        first = {"kernel_size": 3, "padding": 1}
    features: list[Layer] = [Conv2d(width, init="he_uniform", **first), ReLU()]
    features += [MaxPool2d(3, 2, ceil_mode=True) if n == 0 else _fire(n) for n in squeezes]
    return Sequential(
        features=Sequential(*features),
        classifier=Sequential(
            Dropout(dropout), Conv2d(classes, 1, init=Normal(0.01)), ReLU(), AdaptiveAvgPool2d(1), Flatten()
        ),
    )


def _fire(squeeze: int) -> Sequential:
    """Squeeze to so many channels, then expand to eight times as many, half of them by 3x3 kernels."""
    he, wide = "he_uniform", 4 * squeeze
    return Sequential(
        squeeze=Conv2d(squeeze, 1, init=he),
        squeeze_activation=ReLU(),
        _expand=Concat(
            _1x1=Sequential(expand1x1=Conv2d(wide, 1, init=he), expand1x1_activation=ReLU()),
            _3x3=Sequential(expand3x3=Conv2d(wide, 3, padding=1, init=he), expand3x3_activation=ReLU()),
        ),
    )


# expansion, channels, blocks and stride of each stage, from the paper's table 2
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(classes: int = 1000, stem: str = "imagenet", dropout: float = 0.2) -> Sequential:
    """MobileNetV2: residual blocks that widen, convolve each channel by itself, and narrow without an activation.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018).

    Input (3, 224, 224): 3,504,872 parameters, 300,774,272 MACs. With stem="cifar", (3, 32, 32), the first convolution
    and the stage of 24 channels have stride 1, so the last maps are 4x4.

    Args:
        classes: number of classes K.
        stem: "imagenet" or "cifar".
        dropout: probability in front of the dense layer.
    """
    small = for_cifar(stem)
    features: list[Layer] = [Sequential(*_conv_norm(32, 3, 1 if small else 2))]
    channels = 32
    for expansion, width, count, first in STAGES:
        for i in range(count):
            stride = 1 if i > 0 or (small and width == 24) else first
            block = _inverted(channels, width, stride, expansion)
            features.append(Residual(block) if stride == 1 and channels == width else block)
            channels = width
    return Sequential(
        features=Sequential(*features, Sequential(*_conv_norm(1280, 1))),
        avgpool=GlobalAvgPool2d(),
        classifier=Sequential(Dropout(dropout), Dense(classes, init=Normal(0.01))),
    )


def _inverted(channels: int, width: int, stride: int, expansion: int) -> Sequential:
    """Widen by a 1x1 convolution, unless the expansion is 1, then a depthwise 3x3 one, then narrow."""
    inner = channels * expansion
    widen = [] if expansion == 1 else [Sequential(*_conv_norm(inner, 1))]
    depthwise = Sequential(*_conv_norm(inner, 3, stride, groups=inner))
    return Sequential(conv=Sequential(*widen, depthwise, *_conv_norm(width, 1)[:2]))


def _conv_norm(width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Layer]:
    """Convolution, batch norm and ReLU6."""
    he = VarianceScaling(2.0, "out")
    conv = Conv2d(width, kernel, stride, padding=kernel // 2, groups=groups, bias=False, init=he)
    return [conv, BatchNorm2d(), Clip(0.0, 6.0)]
