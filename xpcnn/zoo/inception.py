"""GoogLeNet and Inception v3: branches side by side, and classifiers at the side that help in training.

Parameter names and details are torchvision's: every convolution is followed by batch norm with eps 0.001. Its option to
rescale the input is left out: weights that were converted from the authors' want pixels from -1 to 1, which is
mean 0.5 and deviation 0.5.
"""

from __future__ import annotations

from typing import Any

from ..init import Normal
from ..layers import (
    AdaptiveAvgPool2d,
    AuxiliaryHead,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    ReLU,
    Sequential,
)
from .stem import for_cifar

__all__ = ["googlenet", "inception_v3"]

Size = int | tuple[int, int]


def _conv(width: int, kernel: Size, stride: int = 1, padding: Size = 0, std: float = 0.1) -> Sequential:
    """Convolution, batch norm, ReLU."""
    conv = Conv2d(width, kernel, stride, padding, bias=False, init=Normal(std))
    return Sequential(conv=conv, bn=BatchNorm2d(eps=0.001), relu=ReLU())


# --- GoogLeNet --------------------------------------------------------------------------------------------------


def googlenet(classes: int = 1000, stem: str = "imagenet", auxiliary: bool = True, dropout: float = 0.2) -> Sequential:
    """GoogLeNet, or Inception v1, with batch norm: nine inception modules and two side classifiers in training.

    Szegedy et al., "Going Deeper with Convolutions" (2015). As in torchvision, and unlike the paper, the branch of 5x5
    kernels has 3x3 ones.

    Input (3, 224, 224): 6,624,904 parameters and 1,498,376,192 MACs, besides 6,379,984 parameters in the side
    classifiers, whose losses count 0.3 as in the paper. With stem="cifar", (3, 32, 32), the first convolution is 3x3
    with stride 1 and no pooling follows it: the modules work on 16x16, 8x8 and 4x4 pixels.

    Args:
        classes: number of classes K.
        stem: "imagenet" or "cifar".
        auxiliary: whether there are side classifiers.
        dropout: probability in front of the dense layer; in the side classifiers it is 0.7.
    """
    if for_cifar(stem):
        begin: dict[str, Layer] = {"conv1": _conv(64, 3, padding=1, std=0.01)}
    else:
        begin = {"conv1": _conv(64, 7, 2, 3, 0.01), "maxpool1": MaxPool2d(3, 2, ceil_mode=True)}
    aux1, aux2 = ({name: _googlenet_head(classes)} if auxiliary else {} for name in ("aux1", "aux2"))
    return Sequential(
        **begin,
        conv2=_conv(64, 1, std=0.01),
        conv3=_conv(192, 3, padding=1, std=0.01),
        maxpool2=MaxPool2d(3, 2, ceil_mode=True),
        inception3a=_module(64, 96, 128, 16, 32, 32),
        inception3b=_module(128, 128, 192, 32, 96, 64),
        maxpool3=MaxPool2d(3, 2, ceil_mode=True),
        inception4a=_module(192, 96, 208, 16, 48, 64),
        **aux1,
        inception4b=_module(160, 112, 224, 24, 64, 64),
        inception4c=_module(128, 128, 256, 24, 64, 64),
        inception4d=_module(112, 144, 288, 32, 64, 64),
        **aux2,
        inception4e=_module(256, 160, 320, 32, 128, 128),
        maxpool4=MaxPool2d(2, ceil_mode=True),
        inception5a=_module(256, 160, 320, 32, 128, 128),
        inception5b=_module(384, 192, 384, 48, 128, 128),
        avgpool=GlobalAvgPool2d(),
        dropout=Dropout(dropout),
        fc=Dense(classes, init=Normal(0.01)),
    )


def _module(direct: int, before3: int, wide3: int, before5: int, wide5: int, pooled: int) -> Concat:
    """Return the four branches of an inception module, with the columns of the paper's table 1."""
    return Concat(
        branch1=_conv(direct, 1, std=0.01),
        branch2=Sequential(_conv(before3, 1, std=0.01), _conv(wide3, 3, padding=1, std=0.01)),
        branch3=Sequential(_conv(before5, 1, std=0.01), _conv(wide5, 3, padding=1, std=0.01)),
        branch4=Sequential(MaxPool2d(3, 1, 1, ceil_mode=True), _conv(pooled, 1, std=0.01)),
    )


def _googlenet_head(classes: int) -> AuxiliaryHead:
    small = Normal(0.01)
    return AuxiliaryHead(
        Sequential(
            pool=AdaptiveAvgPool2d(4),
            conv=_conv(128, 1, std=0.01),
            flatten=Flatten(),
            fc1=Dense(1024, init=small),
            relu=ReLU(),
            dropout=Dropout(0.7),
            fc2=Dense(classes, init=small),
        )
    )


# --- Inception v3 -----------------------------------------------------------------------------------------------


def inception_v3(
    classes: int = 1000, stem: str = "imagenet", auxiliary: bool = True, dropout: float = 0.5
) -> Sequential:
    """Inception v3: large kernels cut into thin ones, grids made smaller by branches, one side classifier in training.

    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer Vision" (2016).

    Input (3, 299, 299): 27,161,264 parameters, of which 3,326,696 are those of the side classifier, and 5,713,216,096
    MACs without it. Its loss counts 0.4, as in the authors' published code. Smaller images, down to (3, 75, 75), fit
    with auxiliary=False. With stem="cifar", (3, 32, 32), the first five convolutions keep the size, only the first of
    the two poolings stays, and the side classifier pools to 5x5: the modules work on 16x16, 7x7 and 3x3 pixels.

    Args:
        classes: number of classes K.
        stem: "imagenet" or "cifar".
        auxiliary: whether there is a side classifier.
        dropout: probability in front of the dense layer.
    """
    small = for_cifar(stem)
    keep = 1 if small else 0
    head = {"AuxLogits": _inception_head(classes, small)} if auxiliary else {}
    return Sequential(
        Conv2d_1a_3x3=_conv(32, 3, 1 if small else 2, keep),
        Conv2d_2a_3x3=_conv(32, 3, padding=keep),
        Conv2d_2b_3x3=_conv(64, 3, padding=1),
        maxpool1=MaxPool2d(3, 2, keep),
        Conv2d_3b_1x1=_conv(80, 1),
        Conv2d_4a_3x3=_conv(192, 3, padding=keep),
        **({} if small else {"maxpool2": MaxPool2d(3, 2)}),
        Mixed_5b=_grid35(32),
        Mixed_5c=_grid35(64),
        Mixed_5d=_grid35(64),
        Mixed_6a=_to_grid17(),
        Mixed_6b=_grid17(128),
        Mixed_6c=_grid17(160),
        Mixed_6d=_grid17(160),
        Mixed_6e=_grid17(192),
        **head,
        Mixed_7a=_to_grid8(),
        Mixed_7b=_grid8(),
        Mixed_7c=_grid8(),
        avgpool=GlobalAvgPool2d(),
        dropout=Dropout(dropout),
        fc=Dense(classes, init=Normal(0.1)),
    )


TALL: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
FLAT: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}


def _average(width: int) -> Sequential:
    return Sequential(pool=AvgPool2d(3, 1, 1), branch_pool=_conv(width, 1))


def _grid35(pooled: int) -> Concat:
    """Return the paper's figure 5: in one branch a 5x5 kernel has become two of 3x3. Names with "_" add nothing."""
    return Concat(
        branch1x1=_conv(64, 1),
        _5x5=Sequential(branch5x5_1=_conv(48, 1), branch5x5_2=_conv(64, 5, padding=2)),
        _3x3dbl=Sequential(
            branch3x3dbl_1=_conv(64, 1),
            branch3x3dbl_2=_conv(96, 3, padding=1),
            branch3x3dbl_3=_conv(96, 3, padding=1),
        ),
        _pool=_average(pooled),
    )


def _to_grid17() -> Concat:
    return Concat(
        branch3x3=_conv(384, 3, 2),
        _3x3dbl=Sequential(
            branch3x3dbl_1=_conv(64, 1),
            branch3x3dbl_2=_conv(96, 3, padding=1),
            branch3x3dbl_3=_conv(96, 3, 2),
        ),
        pool=MaxPool2d(3, 2),
    )


def _grid17(width: int) -> Concat:
    """Return the paper's figure 6: 7x7 kernels as 1x7 and 7x1."""
    return Concat(
        branch1x1=_conv(192, 1),
        _7x7=Sequential(
            branch7x7_1=_conv(width, 1),
            branch7x7_2=_conv(width, **FLAT),
            branch7x7_3=_conv(192, **TALL),
        ),
        _7x7dbl=Sequential(
            branch7x7dbl_1=_conv(width, 1),
            branch7x7dbl_2=_conv(width, **TALL),
            branch7x7dbl_3=_conv(width, **FLAT),
            branch7x7dbl_4=_conv(width, **TALL),
            branch7x7dbl_5=_conv(192, **FLAT),
        ),
        _pool=_average(192),
    )


def _to_grid8() -> Concat:
    return Concat(
        _3x3=Sequential(branch3x3_1=_conv(192, 1), branch3x3_2=_conv(320, 3, 2)),
        _7x7x3=Sequential(
            branch7x7x3_1=_conv(192, 1),
            branch7x7x3_2=_conv(192, **FLAT),
            branch7x7x3_3=_conv(192, **TALL),
            branch7x7x3_4=_conv(192, 3, 2),
        ),
        pool=MaxPool2d(3, 2),
    )


def _grid8() -> Concat:
    """Return the paper's figure 7: the last 3x3 kernels as 1x3 and 3x1 side by side."""
    return Concat(
        branch1x1=_conv(320, 1),
        _3x3=Sequential(
            branch3x3_1=_conv(384, 1),
            _split=Concat(
                branch3x3_2a=_conv(384, (1, 3), padding=(0, 1)), branch3x3_2b=_conv(384, (3, 1), padding=(1, 0))
            ),
        ),
        _3x3dbl=Sequential(
            branch3x3dbl_1=_conv(448, 1),
            branch3x3dbl_2=_conv(384, 3, padding=1),
            _split=Concat(
                branch3x3dbl_3a=_conv(384, (1, 3), padding=(0, 1)), branch3x3dbl_3b=_conv(384, (3, 1), padding=(1, 0))
            ),
        ),
        _pool=_average(192),
    )


def _inception_head(classes: int, small: bool) -> AuxiliaryHead:
    return AuxiliaryHead(
        Sequential(
            pool=AdaptiveAvgPool2d(5) if small else AvgPool2d(5, 3),
            conv0=_conv(128, 1),
            conv1=_conv(768, 5, std=0.01),
            avgpool=GlobalAvgPool2d(),
            fc=Dense(classes, init=Normal(0.001)),
        ),
        weight=0.4,
    )
