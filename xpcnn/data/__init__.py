"""Data: data sets, image files, transforms and the loader that makes batches of them.

`mnist()` needs nothing but the package; `open_dataset(source)` opens whatever a folder or an .npz file holds.
"""

from __future__ import annotations

from .datasets import ArrayDataset, Dataset, Subset, mean_std, split
from .doctor import DataReport, inspect
from .grouping import groups_by, write_split
from .images import ImageFolder, image_from_file
from .loader import Loader
from .sources import MNIST_SHA256, MNIST_URL, cifar10, from_npz, idx, mnist, open_dataset, read_idx
from .transforms import (
    BrightnessContrast,
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomVerticalFlip,
)

__all__ = [
    "MNIST_SHA256",
    "MNIST_URL",
    "ArrayDataset",
    "BrightnessContrast",
    "Compose",
    "Cutout",
    "DataReport",
    "Dataset",
    "ImageFolder",
    "Loader",
    "Mixup",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomVerticalFlip",
    "Subset",
    "cifar10",
    "from_npz",
    "groups_by",
    "idx",
    "image_from_file",
    "inspect",
    "mean_std",
    "mnist",
    "open_dataset",
    "read_idx",
    "split",
    "write_split",
]
