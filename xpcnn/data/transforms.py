"""Changes to images: `f(image, rng) -> image` on one (C, H, W) image, uint8 (0..255) or float.

A transform draws only from the generator it is given, never changes its input, and keeps the dtype unless it says
otherwise; results for uint8 are rounded and clipped. New pixels are black (0). A batch transform has `batch = True` and
is `f(images, labels, rng) -> (images, labels)`; the loader calls it after the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ArgumentError, ShapeError

__all__ = [
    "BrightnessContrast",
    "Compose",
    "Cutout",
    "Mixup",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomVerticalFlip",
]

Random = np.random.Generator
Transform = Callable[..., Any]
Range = float | tuple[float, float]


def _check(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
        raise ShapeError(
            f"a transform expects one image (C, H, W) of uint8 or floats; received {image.shape} {image.dtype}."
        )
    return image


def _restore(image: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Bring computed pixels back to the dtype of the image they come from."""
    if dtype == np.uint8:
        image = np.clip(np.rint(image), 0, 255)
    restored: np.ndarray = image.astype(dtype, copy=False)
    return restored


def _unit(image: np.ndarray) -> np.ndarray:
    """Return float32 pixels in the scale the network sees."""
    return image.astype(np.float32) / 255.0 if image.dtype == np.uint8 else image.astype(np.float32)


def _need(condition: bool, name: str, expected: str, received: object) -> None:
    if not condition:
        raise ArgumentError(f"{name} must be {expected}; received {received!r}.")


def _draw(rng: Random, bounds: Any) -> float:
    return float(rng.uniform(bounds[0], bounds[1]))


def _pair(name: str, value: Range, symmetric: bool = True) -> tuple[float, float]:
    """Return (low, high); a number d means (-d, d), or (1 - d, 1 + d) but not below 0."""
    if isinstance(value, (int, float)):
        _need(value >= 0, name, "a number of at least 0 or a pair (low, high)", value)
        return (0.0 - value, 0.0 + value) if symmetric else (max(0.0, 1.0 - value), 1.0 + value)
    _need(len(value) == 2 and value[0] <= value[1], name, "a number of at least 0 or a pair (low, high)", value)
    return float(value[0]), float(value[1])


@dataclass
class Normalize:
    """Subtract the mean and divide by the standard deviation of each channel; gives float32.

    Args:
        mean: a number, or one per channel, in the scale the network sees: uint8 pixels are divided by 255 first.
        std: likewise, above 0. `mean_std(dataset)` gives both.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        self.mean = tuple(float(v) for v in np.atleast_1d(self.mean))
        self.std = tuple(float(v) for v in np.atleast_1d(self.std))
        _need(all(0 < v < math.inf for v in self.std), "std", "finite and above 0", self.std)
        same = len(self.std) in (1, len(self.mean)) or len(self.mean) == 1
        _need(same, "std", f"one number or as many as mean ({len(self.mean)})", self.std)

    def __call__(self, image: np.ndarray, rng: Random | None = None) -> np.ndarray:
        """Return float32 (C, H, W)."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        count = max(mean.size, std.size)
        if count not in (1, _check(image).shape[0]):
            raise ShapeError(f"Normalize has {count} channels; received an image {image.shape}.")
        result: np.ndarray = (_unit(image) - mean[:, None, None]) / std[:, None, None]
        return result


@dataclass
class RandomCrop:
    """Pad with black on all sides, then cut out a random piece.

    Args:
        size: (height, width) of the piece, or one number for both.
        padding: pixels added to each side.
    """

    size: int | tuple[int, int]
    padding: int = 0

    def __post_init__(self) -> None:
        pair = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        ok = len(pair) == 2 and all(isinstance(s, int) and s > 0 for s in pair)
        _need(ok, "size", "a positive int or a pair (height, width)", self.size)
        _need(isinstance(self.padding, int) and self.padding >= 0, "padding", "an int of at least 0", self.padding)

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Return (C, *size)."""
        height, width = np.broadcast_to(self.size, 2).tolist()
        c, h, w = _check(image).shape
        p = self.padding
        if height > h + 2 * p or width > w + 2 * p:
            raise ShapeError(
                f"RandomCrop cannot cut {height}x{width} out of an image {image.shape} padded by {p}. Raise padding."
            )
        padded = np.zeros((c, h + 2 * p, w + 2 * p), image.dtype)
        padded[:, p : p + h, p : p + w] = image
        top, left = rng.integers(h + 2 * p - height + 1), rng.integers(w + 2 * p - width + 1)
        return padded[:, top : top + height, left : left + width]


@dataclass
class _RandomFlip:
    p: float = 0.5

    def __post_init__(self) -> None:
        _need(0 <= self.p <= 1, "p", "a probability", self.p)


@dataclass
class RandomHorizontalFlip(_RandomFlip):
    """Swap left and right with probability `p`."""

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Return the image or its mirror image."""
        return _check(image)[:, :, ::-1] if rng.random() < self.p else image


@dataclass
class RandomVerticalFlip(_RandomFlip):
    """Swap top and bottom with probability `p`."""

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Return the image or its mirror image."""
        return _check(image)[:, ::-1] if rng.random() < self.p else image


@dataclass
class RandomAffine:
    """Rotate, shear, scale and shift about the centre, with bilinear interpolation.

    Args:
        degrees: a number d for an angle in -d..d, or a pair; positive turns counter-clockwise.
        translate: largest shift as a fraction of width and height.
        scale: a pair of factors; above 1 enlarges.
        shear: a number d for an angle in -d..d degrees, or a pair; slants horizontally.
    """

    degrees: Range = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: Range = 0.0

    def __post_init__(self) -> None:
        self.degrees = _pair("degrees", self.degrees)
        self.shear = _pair("shear", self.shear)
        _need(max(map(abs, self.shear)) < 90, "shear", "below 90 degrees", self.shear)
        _need(0 <= self.translate <= 1, "translate", "a fraction between 0 and 1", self.translate)
        ok = len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1]
        _need(ok, "scale", "a pair of factors 0 < low <= high", self.scale)

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Return an image of the same shape."""
        _, h, w = _check(image).shape
        angle = math.radians(_draw(rng, self.degrees))
        shift = (rng.uniform(-self.translate, self.translate) * w, rng.uniform(-self.translate, self.translate) * h)
        scale = _draw(rng, self.scale)
        slant = math.tan(math.radians(_draw(rng, self.shear)))
        # Every output pixel looks up where it came from: the inverse of scale * rotation @ shear (y points down).
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        a, b = cos - slant * sin, -sin - slant * cos
        d, e = sin, cos
        x, y = w / 2 + shift[0], h / 2 + shift[1]
        where = (a, b, w / 2 - a * x - b * y, d, e, h / 2 - d * x - e * y)
        planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in image]
        method, filter_ = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        moved = [np.asarray(plane.transform((w, h), method, where, filter_)) for plane in planes]
        return _restore(np.stack(moved), image.dtype)


class RandomRotation(RandomAffine):
    """Rotate about the centre: a number d for an angle in -d..d degrees, or a pair (low, high)."""

    def __init__(self, degrees: Range) -> None:
        super().__init__(degrees)

    def __repr__(self) -> str:
        return f"RandomRotation(degrees={self.degrees})"


@dataclass
class BrightnessContrast:
    """Multiply brightness and contrast by random factors.

    Args:
        brightness: a number d for a factor in 1-d..1+d (not below 0), or a pair.
        contrast: likewise; contrast is the distance of every pixel from the mean of the image.
    """

    brightness: Range = 0.0
    contrast: Range = 0.0

    def __post_init__(self) -> None:
        self.brightness = _pair("brightness", self.brightness, symmetric=False)
        self.contrast = _pair("contrast", self.contrast, symmetric=False)
        _need(min(*self.brightness, *self.contrast) >= 0, "a factor", "at least 0", (self.brightness, self.contrast))

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Return an image of the same shape."""
        brightness = _draw(rng, self.brightness)
        contrast = _draw(rng, self.contrast)
        bright = _check(image).astype(np.float32) * brightness
        mean = float(bright.mean())
        return _restore(mean + (bright - mean) * contrast, image.dtype)


@dataclass
class Cutout:
    """Black out squares around random pixels; they may stick out of the image (DeVries & Taylor 2017).

    Args:
        size: side of a square in pixels.
        n: how many.
    """

    size: int
    n: int = 1

    def __post_init__(self) -> None:
        _need(isinstance(self.size, int) and self.size > 0, "size", "a positive int", self.size)
        _need(isinstance(self.n, int) and self.n > 0, "n", "a positive int", self.n)

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Return an image of the same shape."""
        _, h, w = _check(image).shape
        result: np.ndarray = image.copy()
        for _ in range(self.n):
            top, left = int(rng.integers(h)) - self.size // 2, int(rng.integers(w)) - self.size // 2
            result[:, max(0, top) : max(0, top + self.size), max(0, left) : max(0, left + self.size)] = 0
        return result


@dataclass
class Mixup:
    """Blend each image, and its label, with another one of the batch (Zhang et al. 2018).

    One weight per batch is drawn from Beta(alpha, alpha).

    Args:
        alpha: above 0; small values blend little.
        classes: K, the number of classes.
    """

    alpha: float
    classes: int

    batch = True

    def __post_init__(self) -> None:
        _need(self.alpha > 0, "alpha", "above 0", self.alpha)
        _need(isinstance(self.classes, int) and self.classes > 0, "classes", "a positive int", self.classes)

    def __call__(self, images: np.ndarray, labels: np.ndarray, rng: Random) -> tuple[np.ndarray, np.ndarray]:
        """Return images (N, C, H, W), uint8 divided by 255, and soft labels (N, K), both float32."""
        if labels.ndim == 1:
            if int(labels.max()) >= self.classes:
                raise ShapeError(f"Mixup has classes={self.classes}; received label {int(labels.max())}.")
            labels = np.eye(self.classes, dtype=np.float32)[labels]
        weight = rng.beta(self.alpha, self.alpha)
        other = rng.permutation(len(images))
        pixels = _unit(images)
        return pixels * weight + pixels[other] * (1 - weight), labels * weight + labels[other] * (1 - weight)


def _is_batch(transform: Transform) -> bool:
    return bool(getattr(transform, "batch", False))


class Compose:
    """One transform after the other; batch transforms come last."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms: list[Transform] = []
        for transform in transforms:
            _need(callable(transform), "a transform", "callable as f(image, rng)", transform)
            self.transforms += transform.transforms if isinstance(transform, Compose) else [transform]
        kinds = [_is_batch(transform) for transform in self.transforms]
        _need(kinds == sorted(kinds), "the order", "transforms of one image first, batch transforms last", self)

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """Apply the transforms of one image; the loader applies those of a batch."""
        for transform in self.transforms:
            if not _is_batch(transform):
                image = transform(image, rng)
        return image

    def __repr__(self) -> str:
        return f"Compose({self.transforms!r})"


def by_kind(transform: Transform | None) -> tuple[list[Transform], list[Transform]]:
    """Return (transforms of one image, batch transforms), in order."""
    every = transform.transforms if isinstance(transform, Compose) else [] if transform is None else [transform]
    return [t for t in every if not _is_batch(t)], [t for t in every if _is_batch(t)]
