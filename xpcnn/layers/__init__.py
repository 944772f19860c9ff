"""Layers: parameters and hyper-parameters around the functions of `xpcnn.functional`."""

from .activation import ELU, GELU, SELU, Clip, LeakyReLU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from .base import Buffer, Builder, Layer, Parameter, Step, batch_last, config, from_config, register
from .containers import AuxiliaryHead, Concat, DenseConcat, Recompute, Residual, Sequential, auxiliaries
from .conv import Conv2d
from .dense import Dense, Dropout, Flatten, Identity, PadChannels
from .norm import BatchNorm1d, BatchNorm2d, LocalResponseNorm
from .pool import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    LpPool2d,
    MaxPool2d,
)

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AuxiliaryHead",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "Builder",
    "Clip",
    "Concat",
    "Conv2d",
    "Dense",
    "DenseConcat",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "Identity",
    "Layer",
    "LeakyReLU",
    "LocalResponseNorm",
    "LogSoftmax",
    "LpPool2d",
    "MaxPool2d",
    "PadChannels",
    "Parameter",
    "ReLU",
    "Recompute",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Step",
    "Tanh",
    "auxiliaries",
    "batch_last",
    "config",
    "from_config",
    "register",
]
