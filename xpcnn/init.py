"""Initial weights.

An initializer is a small immutable object, called with the shape, the fans and a NumPy generator; it returns float64
values. Layers take one, or its name: `Conv2d(8, 3, init="he_normal")`, `Dense(10, init=Normal(0.01))`.

fan_in is the number of inputs a unit reads (C/G*KH*KW, or D), fan_out the number of units that read one input.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import ArgumentError

__all__ = [
    "Constant",
    "Initializer",
    "Normal",
    "Orthogonal",
    "TruncatedNormal",
    "Uniform",
    "VarianceScaling",
    "get",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "torch_default",
    "xavier_normal",
    "xavier_uniform",
]

Shape = tuple[int, ...]


class Initializer:
    """Base class: subclasses are frozen dataclasses, so that they compare and can be written to a file."""

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        raise TypeError(f"{type(self).__name__} does not say how to make values")


@dataclass(frozen=True)
class Constant(Initializer):
    """One value everywhere."""

    value: float = 0.0

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        return np.full(shape, self.value, np.float64)


@dataclass(frozen=True)
class Normal(Initializer):
    """Gaussian with mean 0."""

    std: float = 0.01

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        return rng.standard_normal(shape) * self.std


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform between -bound and bound."""

    bound: float = 0.05

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        return rng.uniform(-self.bound, self.bound, shape)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Gaussian with mean 0, drawn again where it exceeds `cut` standard deviations."""

    std: float = 0.02
    cut: float = 2.0

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        values = rng.standard_normal(shape)
        while (outside := np.abs(values) > self.cut).any():
            values[outside] = rng.standard_normal(int(outside.sum()))
        return values * self.std


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A matrix (first axis, the rest) with orthonormal rows or columns. Saxe, McClelland and Ganguli (2014)."""

    gain: float = 1.0

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        rows, columns = shape[0], math.prod(shape[1:])
        tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(tall)
        q *= np.sign(np.diagonal(r))  # makes the distribution uniform over orthogonal matrices
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Variance scale / fan, fan being "in", "out" or "average", normal or uniform."""

    scale: float = 1.0
    fan: str = "in"
    distribution: str = "normal"

    def __post_init__(self) -> None:
        if self.fan not in ("in", "out", "average") or self.distribution not in ("normal", "uniform"):
            raise ArgumentError(
                'VarianceScaling expects fan "in", "out" or "average" and distribution "normal" or "uniform"; '
                f"received fan={self.fan!r}, distribution={self.distribution!r}."
            )

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return float64 values of the given shape."""
        fan = {"in": fan_in, "out": fan_out, "average": (fan_in + fan_out) / 2}[self.fan]
        std = math.sqrt(self.scale / fan)
        if self.distribution == "normal":
            return rng.standard_normal(shape) * std
        return rng.uniform(-math.sqrt(3.0) * std, math.sqrt(3.0) * std, shape)


he_normal = VarianceScaling(2.0, "in", "normal")  # He et al., "Delving Deep into Rectifiers" (2015)
he_uniform = VarianceScaling(2.0, "in", "uniform")
xavier_normal = VarianceScaling(1.0, "average", "normal")  # Glorot and Bengio (2010)
xavier_uniform = VarianceScaling(1.0, "average", "uniform")
lecun_normal = VarianceScaling(1.0, "in", "normal")  # LeCun et al., "Efficient BackProp" (1998)
lecun_uniform = VarianceScaling(1.0, "in", "uniform")
torch_default = VarianceScaling(1.0 / 3.0, "in", "uniform")  # uniform within 1 / sqrt(fan_in)

NAMED: dict[str, Initializer] = {
    "he_normal": he_normal,
    "he_uniform": he_uniform,
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "lecun_normal": lecun_normal,
    "lecun_uniform": lecun_uniform,
    "torch_default": torch_default,
    "orthogonal": Orthogonal(),
    "normal": Normal(),
    "truncated_normal": TruncatedNormal(),
    "uniform": Uniform(),
    "zeros": Constant(0.0),
    "ones": Constant(1.0),
}
CLASSES = {c.__name__: c for c in (Constant, Normal, Uniform, TruncatedNormal, Orthogonal, VarianceScaling)}

InitLike: TypeAlias = "str | Initializer"


def get(init: InitLike) -> Initializer:
    """Return the initializer of that name, or the one handed in."""
    if isinstance(init, Initializer):
        return init
    if init not in NAMED:
        raise ArgumentError(f"init must be an Initializer or one of {', '.join(NAMED)}; received {init!r}.")
    return NAMED[init]


def encode(init: InitLike) -> Any:
    """Return JSON-able data for an initializer."""
    if isinstance(init, str):
        return init
    if type(init).__name__ not in CLASSES:
        raise ArgumentError(f"only initializers of xpcnn.init can be written to a file; received {init!r}.")
    return {"init": type(init).__name__, **asdict(init)}  # type: ignore[call-overload]


def decode(data: Any) -> InitLike:
    """Return the initializer that `encode` described."""
    if isinstance(data, str):
        get(data)
        return data
    arguments = dict(data)
    name = arguments.pop("init", None)
    if name not in CLASSES:
        raise ArgumentError(f"unknown initializer {name!r}; known are {', '.join(CLASSES)}.")
    try:
        made: Initializer = CLASSES[name](**arguments)
    except TypeError as error:
        raise ArgumentError(f"initializer {name} does not take these arguments: {error}.") from error
    return made
