"""Data sets in memory, parts of data sets, and their statistics.

Notation: N samples, C channels, H W image height and width, K classes.

A data set is any object with `len(d)`, `d[i] -> (image (C, H, W) uint8 or float32, label int)`, `d.labels` (int64,
(N,)), `d.classes` (list of str) and `d.shape` (C, H, W). A method `take(indices) -> (n, C, H, W)` is optional and makes
batches faster. Pixels are 0..255 as uint8, or floats in whatever scale the network is meant to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .. import backend
from ..errors import ArgumentError, DataError

__all__ = ["ArrayDataset", "Dataset", "Subset", "mean_std", "split"]

MOST_CLASSES = 1_000_000  # where nothing but the labels says how many there are


class Dataset(Protocol):
    """What the loader and the classifier ask of a data set."""

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), each in 0..K-1."""

    @property
    def classes(self) -> list[str]:
        """The K class names."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]: ...


class TakingDataset:
    """Base of the data sets here: a subclass sets labels, classes and shape, and writes `take`."""

    labels: np.ndarray
    classes: list[str]
    shape: tuple[int, int, int]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the images (n, C, H, W) at `indices` (n,) as an array of its own."""
        raise TypeError(f"{type(self).__name__} must define take(indices)")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = int(self.labels[index])
        return self.take(np.array([index]))[0], label

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of shape {self.shape}, {len(self.classes)} classes)"


def gather(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Return the images (n, C, H, W) at `indices`, in one piece where the data set can."""
    take = getattr(dataset, "take", None)
    if take is not None:
        images: np.ndarray = take(indices)
        return images
    return stack([dataset[int(i)][0] for i in indices], indices)


def stack(images: Sequence[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Return images (C, H, W) as one batch (n, C, H, W).

    Raises:
        DataError: if they differ in shape or dtype; names the first sample that does.
    """
    first = images[0]
    for image, index in zip(images, indices, strict=True):
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"all images of a batch must have one shape and dtype: sample {indices[0]} has {first.shape} "
                f"{first.dtype}, sample {index} has {image.shape} {image.dtype}. Crop or resize them to one size."
            )
    return np.stack(images)


def check_labels(labels: Any, count: int, classes: int | None) -> np.ndarray:
    """Return `labels` as int64 (count,) after checking that they are class numbers 0..classes-1.

    This is done once and on the host, because an index out of range goes unnoticed on a GPU.

    Raises:
        DataError: if they are not integers, not one per image, or out of range.
    """
    y = backend.to_numpy(labels)
    if y.ndim == 2 and y.shape[1] > 1:
        raise DataError(
            f"labels must be class numbers of shape (N,); received shape {y.shape}. "
            "If the rows are one-hot, use labels.argmax(axis=1)."
        )
    if y.ndim != 1:
        raise DataError(f"labels must have shape (N,); received shape {y.shape}. Use labels.reshape(-1).")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int(np.argmin(np.isfinite(y)))
        raise DataError(f"labels must be integers; received {y[bad]} at index {bad}. Leave such images out.")
    if not np.issubdtype(y.dtype, np.integer):
        names = y.dtype.kind in "US"
        advice = "np.unique(labels, return_inverse=True)[1]" if names else "labels.astype(int)"
        advice += ", or labels.astype(str) if they are names" if y.dtype == object else ""
        raise DataError(f"labels must be integers; received dtype {y.dtype}. Convert them with {advice}.")
    if len(y) != count:
        raise DataError(f"there must be one label per image: received {count} images and {len(y)} labels.")
    if count == 0:
        raise DataError("a data set needs at least one image; received none.")
    low, high = int(y.min()), int(y.max())
    if classes is None and high >= MOST_CLASSES:
        raise DataError(
            f"labels must be class numbers 0..K-1; received {high} at index {int(np.argmax(y))}. "
            "If they are numbers of something else, use np.unique(labels, return_inverse=True)[1]."
        )
    if low < 0 or (classes is not None and high >= classes):
        wrong, upper = (low, "K-1") if low < 0 else (high, str((classes or 0) - 1))
        raise DataError(f"labels must lie in 0..{upper}; received {wrong} at index {int(np.argmax(y == wrong))}.")
    return y.astype(np.int64)


class ArrayDataset(TakingDataset):
    """Images and labels in memory.

    Args:
        x: (N, C, H, W), or (N, H, W) for one channel; uint8 in 0..255, or floats, which are kept as float32. An array
            on a GPU is copied to host memory, from where the loader sends batches. Arrays of other libraries (torch,
            JAX) are taken too; uint8 and float32 in host memory are not copied.
        y: integer class numbers (N,).
        classes: the K class names; the numbers 0..max(y) if not given.

    Items are read-only views of `x`.

    Raises:
        DataError: if the images or labels do not fit. Channels-last images are refused rather than guessed.
    """

    def __init__(self, x: Any, y: Any, classes: Sequence[str] | None = None) -> None:
        images = backend.to_numpy(x)
        if images.ndim == 3:
            images = images[:, None]
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise DataError(f"images must have shape (N, C, H, W) or (N, H, W); received shape {np.shape(x)}.")
        _, c, h, w = images.shape
        if w in (1, 3, 4) and c not in (1, 3, 4) and h > w:
            raise DataError(
                f"images must have shape (N, C, H, W); received {images.shape}, which looks like (N, H, W, C). "
                "Use x.transpose(0, 3, 1, 2)."
            )
        if images.dtype != np.uint8:
            if not np.issubdtype(images.dtype, np.floating):
                raise DataError(
                    f"images must be uint8 (0..255) or floats; received dtype {images.dtype}. "
                    "Use x.astype(np.uint8) if the values are 0..255, else x.astype(np.float32)."
                )
            with np.errstate(over="ignore"):
                images = images.astype(np.float32, copy=False)
            if not np.isfinite(images).all():
                bad = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3))))
                raise DataError(
                    f"images must be finite; image {bad} contains NaN or infinity, or a number too large for float32. "
                    "Leave such images out, or use np.nan_to_num(x)."
                )
        self.labels = check_labels(y, len(images), None if classes is None else len(classes))
        names = range(int(self.labels.max()) + 1) if classes is None else classes
        self.classes = [str(name) for name in names]
        self.shape = (c, h, w)
        self.x = images.view()
        self.x.flags.writeable = False

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the images (n, C, H, W) at `indices` (n,) as an array of its own."""
        images: np.ndarray = self.x[indices]
        return images

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.x[index], int(self.labels[index])


class Subset(TakingDataset):
    """Some samples of a data set, by index, in the order given; a sample may occur more than once.

    Raises:
        DataError: if `indices` is empty, not integer or out of range.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int] | np.ndarray) -> None:
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer) or not len(chosen):
            hint = " Use np.flatnonzero(mask)." if chosen.dtype == bool else ""
            raise DataError(
                "indices must be a non-empty list of integers; "
                f"received shape {chosen.shape}, dtype {chosen.dtype}.{hint}"
            )
        if chosen.min() < 0 or chosen.max() >= len(dataset):
            wrong = chosen.min() if chosen.min() < 0 else chosen.max()
            raise DataError(f"indices must lie in 0..{len(dataset) - 1}; received {wrong}.")
        self.dataset = dataset
        self.indices = chosen.astype(np.int64)
        self.labels = np.asarray(dataset.labels)[self.indices]
        self.classes = dataset.classes
        self.shape = dataset.shape

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the images (n, C, H, W) at `indices` (n,) as an array of its own."""
        return gather(self.dataset, self.indices[indices])

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.dataset[int(self.indices[index])]


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of 0..N-1 in which every prefix has about the class proportions of the whole.

    The i-th of the n samples of a class is put at (i + 1/2) / n of the way, so a prefix is never off by more than one
    sample of a class from rounding its share.
    """
    random = backend.generator(seed, "stratified")
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    order: np.ndarray = np.lexsort((random.random(len(labels)), position))
    return order


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """Return the data set, or a part of `limit` samples with the same class proportions."""
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit must be at least 1; received {limit}.")
    if limit is None or limit >= len(dataset):
        return dataset
    chosen = np.sort(stratified_order(dataset.labels, 0)[:limit])
    if type(dataset) is ArrayDataset:
        return ArrayDataset(dataset.x[chosen], dataset.labels[chosen], dataset.classes)
    return Subset(dataset, chosen)


def split(
    dataset: Dataset,
    fraction: float,
    seed: int = 0,
    stratified: bool = True,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> tuple[Subset, Subset]:
    """Split into (train, held_out), `fraction` of the samples being held out.

    Args:
        dataset: any data set.
        fraction: between 0 and 1; the held-out part has round(fraction * N) samples, or about so many with groups.
        seed: the same seed gives the same split.
        stratified: keep the class proportions in both parts.
        groups: (N,) numbers or names: samples of one group come to the same side. Every class that has two
            groups or more keeps samples on both sides where that can be done.

    Samples of one source (slices of one patient, frames of one film) end up on both sides without `groups`, which
    flatters the held-out result. `inspect` notices that and finds clusters of near-duplicates.

    Raises:
        DataError: if there is not one group for each sample, or only one group.
    """
    count = round(fraction * len(dataset)) if 0 < fraction < 1 else 0
    if not 0 < count < len(dataset):
        raise ArgumentError(
            f"fraction must lie between 0 and 1 and leave both parts at least one of {len(dataset)} samples; "
            f"received {fraction}."
        )
    if groups is not None:
        labels = np.asarray(dataset.labels) if stratified else np.zeros(len(dataset), np.int64)
        held = _held_groups(labels, groups, fraction, seed)
        return Subset(dataset, np.flatnonzero(~held)), Subset(dataset, np.flatnonzero(held))
    if stratified:
        order = stratified_order(dataset.labels, seed)
    else:
        order = backend.generator(seed, "split").permutation(len(dataset))
    return Subset(dataset, np.sort(order[count:])), Subset(dataset, np.sort(order[:count]))


def _held_groups(labels: np.ndarray, groups: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which samples (N,) are held out, bool.

    Groups come in random order, and each is taken if that brings the classes closer to their shares. Those that would
    hold out too many samples in all wait until the others have been asked.
    """
    if len(groups) != len(labels):
        raise DataError(f"there must be one group per sample: received {len(labels)} samples and {len(groups)} groups.")
    numbers: dict[Any, int] = {}
    of = np.array([numbers.setdefault(g, len(numbers)) for g in np.asarray(groups).tolist()])
    if len(numbers) < 2:
        raise DataError("all samples are of one group, which cannot be split.")
    members = np.zeros((len(numbers), int(labels.max()) + 1))
    np.add.at(members, (of, labels), 1)
    total = members.sum(axis=0)
    wanted, scale = fraction * total, np.maximum(total, 1)

    def off(held: np.ndarray) -> float:
        return float((((held - wanted) / scale) ** 2).sum())

    order = backend.generator(seed, "groups").permutation(len(numbers))
    held, taken = np.zeros_like(total), np.zeros(len(numbers), bool)
    for most in (wanted.sum() + 0.5, np.inf):
        for g in order:
            after = held + members[g]
            emptied = (after == total) & (members[g] > 0)
            if not taken[g] and not emptied.any() and after.sum() <= most and off(after) < off(held):
                held, taken[g] = after, True
    for label in np.flatnonzero(total):  # a class of which no group was small enough is tested all the same
        possible = [
            g for g in order if members[g, label] and not ((held + members[g] == total) & (members[g] > 0)).any()
        ]
        if not held[label] and possible:
            best = min(possible, key=lambda g: off(held + members[g]))
            held, taken[best] = held + members[best], True
    if not taken.any():
        taken[min(order, key=lambda g: off(members[g]))] = True
    chosen: np.ndarray = taken[of]
    return chosen


def mean_std(dataset: Dataset, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each channel, float64 (C,) each, in the scale the network sees.

    uint8 pixels are divided by 255 first. `limit` uses that many samples, in the class proportions of the whole.
    Chunks are merged by the pairwise update of Chan, Golub & LeVeque (1979), which does not cancel.
    """
    part = limited(dataset, limit)
    channels, height, width = part.shape
    step = max(1, 2_000_000 // (channels * height * width))
    seen, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    for start in range(0, len(part), step):
        images = gather(part, np.arange(start, min(start + step, len(part))))
        x = images.astype(np.float64) / (255.0 if images.dtype == np.uint8 else 1.0)
        count = len(x) * height * width
        chunk_mean = x.mean(axis=(0, 2, 3))
        delta = chunk_mean - mean
        squares += ((x - chunk_mean[:, None, None]) ** 2).sum(axis=(0, 2, 3))
        squares += delta**2 * (seen * count / (seen + count))
        mean += delta * (count / (seen + count))
        seen += count
    return mean, np.sqrt(squares / seen)
