"""Image files: one file as an array, and a folder with one sub-folder per class as a data set."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..backend import for_chunks
from ..errors import ArgumentError, DataError
from .datasets import TakingDataset, stratified_order

__all__ = ["ImageFolder", "TooManyPixelsError", "image_from_bytes", "image_from_file"]

CHANNELS = {"L": 1, "RGB": 3}
FITS = ("resize", "pad", "crop")
# Formats that Pillow can only identify, or for which it starts another program.
UNUSABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
DECODING_WORK = 20  # decoding a pixel costs about as much as touching this many array elements


class TooManyPixelsError(DataError):
    """An image with so many pixels that decoding it would take too much memory."""


@lru_cache(maxsize=1)
def _formats() -> tuple[list[str], frozenset[str]]:
    """Return the names and the file suffixes of the formats that Pillow reads here."""
    Image.init()
    names = [name for name in Image.OPEN if name not in UNUSABLE]
    return names, frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be printed and stored, even if its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_size(size: int | Sequence[int] | None, mode: str, fit: str) -> tuple[int, int] | None:
    """Return `size` as (H, W) after checking the three options of image decoding."""
    if mode not in CHANNELS:
        raise ArgumentError(f'mode must be "L" (grey) or "RGB"; received {mode!r}.')
    if fit not in FITS:
        raise ArgumentError(f'fit must be "resize", "pad" or "crop"; received {fit!r}.')
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
        raise ArgumentError(f"size must be a positive int or a pair (height, width); received {size!r}.")
    return pair[0], pair[1]


def image_from_file(
    path: str | os.PathLike[str], size: int | Sequence[int] | None = None, mode: str = "L", fit: str = "resize"
) -> np.ndarray:
    """Read an image file as uint8 (C, H, W).

    Args:
        path: a file in any format Pillow reads; of several frames the first is taken. EXIF orientation is applied.
        size: (height, width) or one number for both; None keeps the size of the file.
        mode: "L" for one grey channel, "RGB" for three. Transparent pixels become white; 16-bit grey is scaled.
        fit: how another shape becomes `size`: "resize" stretches, "pad" keeps the shape and adds black borders,
            "crop" keeps the shape and cuts what sticks out.

    Raises:
        DataError: naming the file, if it is missing, broken or no image, or has so many pixels that it looks like an
            attack (Pillow's `Image.MAX_IMAGE_PIXELS`).
    """
    check_size(size, mode, fit)
    where = printable(path)
    try:
        content = _content(path)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no path at all, such as one with a zero byte
        raise DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    return image_from_bytes(content, size, mode, fit, where)


def image_from_bytes(
    content: bytes,
    size: int | Sequence[int] | None = None,
    mode: str = "L",
    fit: str = "resize",
    where: str = "the image",
    most: int | None = None,
) -> np.ndarray:
    """Read an image as uint8 (C, H, W) from the bytes of a file.

    Args:
        content: what the file holds.
        size, mode, fit: as in `image_from_file`.
        where: what errors call it.
        most: pixels beyond which it is not decoded; by default Pillow's `Image.MAX_IMAGE_PIXELS`.

    Raises:
        TooManyPixelsError: if it has more.
        DataError: if it is broken or no image.
    """
    target = check_size(size, mode, fit)
    limit = Image.MAX_IMAGE_PIXELS if most is None else most
    advice = "If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS." if most is None else "Make it smaller."
    too_large = TooManyPixelsError(f"{where}: has more than {limit} pixels. {advice}")
    try:
        with Image.open(io.BytesIO(content), formats=_formats()[0]) as file:
            if limit and file.width * file.height > limit:
                raise too_large
            if target:
                # A JPEG much larger than needed is decoded at a half, a quarter or an eighth of its size.
                file.draft(None, (max(target), max(target)))
            image = _convert(ImageOps.exif_transpose(file), mode, where)
            if target and image.size != target[::-1]:
                image = _fit(image, target, fit)
            pixels = np.asarray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: is not an image in any format that Pillow reads.") from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise DataError(f"{where}: cannot be decoded ({type(error).__name__}: {error}).") from error
    return pixels[None] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _content(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file: Pillow takes memory for what a header asks for if it reads from the file itself."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(
            f"{printable(path)}: is not a file (but a folder, pipe or device)."
        )  # a pipe would be waited for
    with open(path, "rb") as file:
        return file.read()


def _convert(image: Image.Image, mode: str, where: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to 0..255 instead of scaling them
        deep = np.asarray(image)
        if image.mode == "F" or deep.min() < 0 or deep.max() > 65535:
            raise DataError(
                f"{where}: has {image.mode} pixels in {deep.min():g}..{deep.max():g}; expected 8 or 16 bits. "
                "Convert it to 8 bits first."
            )
        image = Image.fromarray(np.rint(deep / 257.0).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer)
    return image.convert(mode)


def _fit(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    wanted = size[::-1]
    bilinear = Image.Resampling.BILINEAR
    if fit == "pad":
        return ImageOps.pad(image, wanted, bilinear)
    return ImageOps.fit(image, wanted, bilinear) if fit == "crop" else image.resize(wanted, bilinear)


class ImageFolder(TakingDataset):
    """A folder with one sub-folder of images per class.

    Args:
        path: the folder. Classes are its sub-folders in sorted order; images may lie deeper inside them. Hidden files
            and files that do not have the suffix of an image format are left out.
        size: (height, width) of every image, or one number for both.
        mode: "L" (C = 1) or "RGB" (C = 3).
        fit: "resize", "pad" or "crop"; see `image_from_file`.
        on_error: "raise" names a broken file when it is reached; "skip" decodes everything at once, leaves broken
            files out and counts them in `.skipped`.
        classes: use these sub-folders in this order instead.
        limit: use at most this many images, in the class proportions of the whole.
        cache: keep decoded images in memory, if all of them need at most `cache_limit` bytes.
        cache_limit: bytes.

    Images are decoded when they are first asked for, over threads. `files` lists the paths beside `labels`.

    Raises:
        DataError: if the folder, a class or a class's images are missing, or every image of a class is broken.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | Sequence[int],
        mode: str = "L",
        fit: str = "resize",
        on_error: str = "raise",
        classes: Sequence[str] | None = None,
        limit: int | None = None,
        cache: bool = True,
        cache_limit: int = 2 << 30,
    ) -> None:
        checked = check_size(size, mode, fit)
        if checked is None:
            raise ArgumentError("size must be a positive int or a pair (height, width); received None.")
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f'on_error must be "raise" or "skip"; received {on_error!r}.')
        if limit is not None and limit < 1:
            raise ArgumentError(f"limit must be at least 1; received {limit}.")
        self.path = Path(path)
        self.size, self.mode, self.fit = checked, mode, fit
        self.shape = (CHANNELS[mode], *checked)
        self.skipped = 0
        self.classes, self.files, self.labels = _scan(self.path, classes)
        if limit is not None and limit < len(self.files):
            self._keep(np.sort(stratified_order(self.labels, 0)[:limit]))
        size_in_memory = len(self) * int(np.prod(self.shape))
        self._cache = np.empty((len(self), *self.shape), np.uint8) if cache and size_in_memory <= cache_limit else None
        self._ready = np.zeros(len(self), bool)
        if on_error == "skip":
            self._drop_broken()

    def _keep(self, indices: np.ndarray) -> None:
        self.files = [self.files[i] for i in indices]
        self.labels = self.labels[indices]

    def _decode(self, index: int) -> np.ndarray:
        return image_from_file(self.files[index], self.size, self.mode, self.fit)

    def _each(self, count: int, function: Callable[[int], None]) -> None:
        for_chunks(count, count * int(np.prod(self.shape)) * DECODING_WORK, function)

    def _drop_broken(self) -> None:
        good = np.ones(len(self), bool)

        def decode(index: int) -> None:
            try:
                image = self._decode(index)
            except DataError:
                good[index] = False
            else:
                if self._cache is not None:
                    self._cache[index] = image

        self._each(len(self), decode)
        lost = sorted(set(self.labels.tolist()) - set(self.labels[good].tolist()))
        if lost:
            raise DataError(f"{printable(self.path)}: every image of class {self.classes[lost[0]]!r} is broken.")
        self.skipped = int((~good).sum())
        self._keep(np.flatnonzero(good))
        if self._cache is not None and self.skipped:
            self._cache = self._cache[good]
        self._ready = np.full(len(self), self._cache is not None)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the images, uint8 (n, C, H, W), at `indices` (n,) as an array of its own.

        Raises:
            DataError: naming the file, if one is broken.
        """
        cache = self._cache
        if cache is None:
            images = np.empty((len(indices), *self.shape), np.uint8)

            def decode(k: int) -> None:
                images[k] = self._decode(int(indices[k]))

            self._each(len(indices), decode)
            return images
        missing = np.unique(indices[~self._ready[indices]])

        def fill(k: int) -> None:
            cache[missing[k]] = self._decode(int(missing[k]))
            self._ready[missing[k]] = True

        self._each(len(missing), fill)
        found: np.ndarray = cache[indices]
        return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _scan(folder: Path, wanted: Sequence[str] | None) -> tuple[list[str], list[Path], np.ndarray]:
    """Return class names, files and labels."""
    where = printable(folder)
    if not folder.is_dir():
        raise DataError(f"{where}: is not a folder. Expected a folder with one sub-folder of images per class.")
    found = {
        printable(p.name): p for p in sorted(folder.iterdir(), key=printable) if p.is_dir() and not _hidden(p.name)
    }
    names = list(found) if wanted is None else [str(name) for name in wanted]
    if not names:
        raise DataError(f"{where}: has no sub-folders. Expected one sub-folder of images per class.")
    suffixes = _formats()[1]
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if name not in found:
            raise DataError(f"{where}: has no sub-folder for class {name!r}; it has {', '.join(found) or 'none'}.")
        inside = [
            Path(root, file)
            for root, folders, all_files in os.walk(found[name])
            if not any(map(_hidden, Path(root).relative_to(found[name]).parts))
            for file in all_files
            if not _hidden(file) and Path(file).suffix.lower() in suffixes
        ]
        if not inside:
            raise DataError(f"{where}: the sub-folder of class {name!r} has no images. Remove it or add some.")
        files += sorted(inside)
        labels += [label] * len(inside)
    return names, files, np.array(labels, np.int64)
