"""From what people hand in (arrays, data sets, file names, labels of any kind) to what a network takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array, to_numpy
from ..data import ArrayDataset, Dataset, ImageFolder, Loader, Subset, image_from_file
from ..errors import ArgumentError, DataError
from ..layers.base import Shape, batch_last

__all__ = [
    "Entrance",
    "Labels",
    "as_images",
    "dataset_of",
    "image_options",
    "is_dataset",
    "loader_of",
    "named",
    "numbers",
    "read_files",
    "read_labels",
]


@dataclass(frozen=True)
class Entrance:
    """The one way into a network, for fit, evaluate and predict alike.

    Args:
        dtype: of the network's arithmetic.
        mean, std: one number per channel, or None; the images become (x - mean) / std.
    """

    dtype: Any
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, images: Array) -> Array:
        """Turn images (N, C, H, W) on any device into the input (C, H, W, N) in the dtype of the network.

        uint8 pixels are divided by 255; floats are taken as they are. Then both are normalised.
        """
        x = batch_last(images)
        pixels = x.dtype == np.uint8
        wide = np.promote_types(self.dtype, np.float32)
        x = x.astype(wide, copy=self.mean is not None)  # what follows is done in place
        if pixels:
            x /= 255.0
        for channel, (mean, std) in enumerate(zip(self.mean or (), self.std or (), strict=True)):
            x[channel] -= mean  # Python floats: constant arrays would be a copy to the device in every step
            x[channel] /= std
        return x.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Labels:
    """Labels as given to fit or evaluate: indices (N,) or soft labels (N, K), and class names where there are any."""

    values: np.ndarray
    names: list[str] | None


def numbers(count: int) -> list[str]:
    """Return the names of classes that have none: "0", "1", ..."""
    return [str(i) for i in range(count)]


def named(classes: Sequence[str]) -> list[str] | None:
    """Return the class names, or None if they are just the numbers."""
    return None if list(classes) == numbers(len(classes)) else list(classes)


def read_labels(y: Any, known: Sequence[str] | None) -> Labels:
    """Understand labels: class names, class numbers, one-hot or soft rows.

    Args:
        y: (N,) strings, integers or booleans, (N, 1) integers, or (N, K) rows that are distributions over the classes.
        known: the class names if they are fixed already; otherwise names are sorted and numbered.

    Raises:
        DataError: for anything else, or a name that is not known.
    """
    given, y = y, to_numpy(y)
    if y.ndim == 0:
        raise DataError(f"labels must be an array (N,), one for each image; received {_described(given)}.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype == object and y.ndim == 1 and all(isinstance(label, str) for label in y):
        y = y.astype(str)
    if y.ndim == 1 and y.dtype.kind == "U":
        names = list(known) if known is not None else sorted(set(y.tolist()))
        index = {name: i for i, name in enumerate(names)}
        unknown = sorted(set(y.tolist()) - index.keys())
        if unknown:
            raise DataError(f"label {unknown[0]!r} is not one of the classes: {', '.join(names)}.")
        return Labels(np.array([index[name] for name in y.tolist()], np.int64), names)
    if y.ndim == 2 and y.dtype.kind in "biuf":
        soft = y.astype(np.float32)
        if not (np.isfinite(soft).all() and (soft >= 0).all() and np.allclose(soft.sum(axis=1), 1.0, atol=1e-3)):
            raise DataError(
                f"labels of shape (N, K) must be rows of probabilities that sum to 1; received {y.shape} with other "
                "rows. Class numbers have shape (N,)."
            )
        hard = (soft.max(axis=1) == 1.0).all()
        return Labels(soft.argmax(axis=1) if hard else soft, None if known is None else list(known))
    return Labels(y.astype(np.int64) if y.dtype == bool else y, None if known is None else list(known))


class _SoftDataset(ArrayDataset):
    """Images with soft labels (N, K)."""

    def __init__(self, x: Any, soft: np.ndarray, classes: Sequence[str] | None) -> None:
        super().__init__(x, soft.argmax(axis=1), classes or numbers(soft.shape[1]))
        self.soft_labels = soft


def is_dataset(data: Any) -> bool:
    """Say whether `data` follows the data-set protocol: labels, shape, len and indexing."""
    return all(hasattr(data, name) for name in ("labels", "shape", "__len__", "__getitem__"))


def dataset_of(data: Any, y: Any, known: Sequence[str] | None) -> Dataset:
    """Return a data set for a data set, a pair (x, y), or x with y.

    Args:
        data: a data set, (x, y), or images x: (N, C, H, W), or (N, H, W) for one channel.
        y: the labels, if `data` is x.
        known: the class names if they are fixed already.

    Raises:
        DataError: if labels are missing, or images and labels do not fit.
    """
    if y is None and is_dataset(data):
        if not len(data):
            raise DataError("a data set needs at least one image; received none.")
        dataset: Dataset = data
        return dataset
    if y is None:
        if not isinstance(data, tuple) or len(data) != 2:
            raise DataError(
                f"labels are missing: give images and labels as (x, y), or a data set; received {type(data).__name__}."
            )
        data, y = data
    labels = read_labels(y, known)
    images = as_images(data)
    if images.ndim not in (3, 4):
        raise DataError(f"images must have shape (N, C, H, W) or (N, H, W); received shape {images.shape}.")
    if len(images) != len(labels.values):
        raise DataError(
            f"there must be one label per image: received {len(images)} images and {len(labels.values)} labels."
        )
    if labels.values.ndim == 2 and labels.values.dtype.kind == "f":
        return _SoftDataset(images, labels.values, labels.names)
    return ArrayDataset(images, labels.values, labels.names)


def loader_of(dataset: Dataset, batch_size: int, **options: Any) -> Loader:
    """Return a loader for a data set, also if its labels are soft."""
    loader = Loader(dataset, batch_size, **options)
    soft = _soft_labels(dataset)
    if soft is not None:
        loader.labels = soft
    return loader


def _soft_labels(dataset: Any) -> np.ndarray | None:
    if isinstance(dataset, Subset):
        soft = _soft_labels(dataset.dataset)
        return None if soft is None else soft[dataset.indices]
    return getattr(dataset, "soft_labels", None)


def as_images(x: Any, shape: Shape | None = None) -> np.ndarray:
    """Return images as a host array (N, C, H, W) or (N, H, W), of which `ArrayDataset` checks the rest.

    Args:
        x: array-like on any device.
        shape: (C, H, W) of the network, if known: then a single image (C, H, W) or (H, W) becomes a batch of one.
    """
    try:
        images = to_numpy(x)
    except DataError:  # an array of another library that cannot be shared
        raise
    except ValueError:  # NumPy refuses a list of arrays that differ in shape
        images = np.empty(0, object)
    if images.ndim == 0:
        raise DataError(f"images must be an array (N, C, H, W); received {_described(x)}.")
    if images.dtype.kind not in "biuf":
        raise DataError(
            "images must form one array (N, C, H, W): these differ in shape or are no numbers. Resize them first."
        )
    if shape is not None and (images.shape == shape or (shape[0] == 1 and images.shape == shape[1:])):
        return images.reshape(1, *shape)
    return images


def _described(value: Any) -> str:
    """Say what a value is that NumPy makes no array of, and what to do."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind}. Give its values as arrays"
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return f"a {kind}, which has no length or order. Give list(...) of it"
    return f"{value!r}"[:80]


def image_options(dataset: Any, shape: Shape) -> dict[str, Any] | None:
    """Return how image files become network inputs: size, mode and fit, as `image_from_file` takes them.

    An `ImageFolder` (or a part of one) says it itself; otherwise files are resized to the shape the network was
    trained on, grey for one channel and RGB for three. None for any other number of channels.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ImageFolder):
        return {"size": list(dataset.size), "mode": dataset.mode, "fit": dataset.fit}
    mode = {1: "L", 3: "RGB"}.get(shape[0])
    return None if mode is None else {"size": list(shape[1:]), "mode": mode, "fit": "resize"}


def read_files(paths: Sequence[str | os.PathLike[str]], options: dict[str, Any] | None) -> np.ndarray:
    """Return image files as uint8 (N, C, H, W).

    Raises:
        ArgumentError: if the network does not take grey or RGB images.
        DataError: for an empty list, or naming a file that cannot be read.
    """
    if options is None:
        raise ArgumentError(
            "this network takes neither one nor three channels, so it cannot read image files. Give arrays."
        )
    if not paths:
        raise DataError("predict needs at least one image; received an empty list.")
    return np.stack([image_from_file(path, options["size"], options["mode"], options["fit"]) for path in paths])
