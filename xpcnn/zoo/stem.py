"""Two beginnings: networks made for ImageNet shrink the image early; for CIFAR's 32x32 pixels that is too much."""

from __future__ import annotations

from ..errors import ArgumentError

__all__ = ["for_cifar"]


def for_cifar(stem: str) -> bool:
    """Return whether the stem is "cifar" (small images) and not "imagenet"; refuse anything else."""
    if stem not in ("imagenet", "cifar"):
        raise ArgumentError(f'stem must be "imagenet" or "cifar"; received {stem!r}.')
    return stem == "cifar"
