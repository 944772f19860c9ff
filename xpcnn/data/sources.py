"""Data sets in well-known files: MNIST (embedded, or as IDX files), CIFAR-10, .npz, and whatever lies in a folder."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import numpy as np

from ..errors import ArgumentError, DataError, FileFormatError, ShapeError
from ..files import atomic_write
from .datasets import ArrayDataset, Dataset, limited
from .images import ImageFolder, printable

__all__ = ["MNIST_SHA256", "MNIST_URL", "cifar10", "from_npz", "idx", "mnist", "open_dataset", "read_idx"]

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
EMBEDDED_MNIST = Path(__file__).with_name("mnist10k.npz")
EMBEDDED_TEST = 1000

IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
DEFLATE_RATIO = 1032  # deflate cannot expand data more than this, so a larger size in a header is a lie
CIFAR_RECORD = 1 + 3 * 32 * 32


def mnist(
    folder: str | os.PathLike[str] | None = None, download: bool = False, url: str = MNIST_URL
) -> tuple[ArrayDataset, ArrayDataset]:
    """Return MNIST (LeCun, Cortes & Burges) as (train, test): grey 28x28 digits, white on black, uint8.

    Without a folder these are the 10,000 digits that come with the package, all of them from MNIST's training set:
    9,000 to train and 1,000 to test. They lie in an order of which every prefix has about the class proportions of the
    whole; the test digits are the last 1,000. Figures on them are not figures on MNIST's own test set.

    Args:
        folder: where the four IDX files are (60,000 and 10,000 digits).
        download: fetch the files that are not in `folder` from `url` first; each must have its SHA-256 in
            `MNIST_SHA256`.
        url: a mirror, ending in a slash.

    Raises:
        DataError: if a download fails or is not what it should be; nothing of it is kept.
    """
    if folder is not None:
        if download:
            _download(Path(folder), url)
        return idx(folder)
    if download:
        raise ArgumentError('a download needs a folder to go to: mnist("folder", download=True).')
    with np.load(EMBEDDED_MNIST, allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    digits = [str(k) for k in range(10)]
    return (
        ArrayDataset(x[:-EMBEDDED_TEST], y[:-EMBEDDED_TEST], digits),
        ArrayDataset(x[-EMBEDDED_TEST:], y[-EMBEDDED_TEST:], digits),
    )


def _download(folder: Path, url: str) -> None:
    for name, expected in MNIST_SHA256.items():
        target = folder / name
        if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == expected:
            continue
        try:
            with urllib.request.urlopen(url + name, timeout=60) as response:
                content = response.read(64 << 20)
        except (OSError, HTTPException) as error:
            raise DataError(
                f"{url + name}: the download failed ({error}). Check the connection, or put the file into "
                f"{printable(folder)} yourself."
            ) from error
        received = hashlib.sha256(content).hexdigest()
        if received != expected:
            raise DataError(
                f"{url + name}: the download has SHA-256 {received}, expected {expected}. Try again or use another url."
            )
        with atomic_write(target) as temporary:
            temporary.write_bytes(content)


# --- IDX --------------------------------------------------------------------------------------------------------


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one IDX file (the format of MNIST), plain or gzip-compressed, as an array in the machine's byte order.

    Raises:
        FileFormatError: naming the file, if it is no IDX file or does not have the length its header says.
        DataError: if there is no such file.
    """
    where = printable(path)
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            available = os.fstat(file.fileno()).st_size * (DEFLATE_RATIO if compressed else 1)
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_DTYPES or not magic[3]:
                raise FileFormatError(
                    f"{where}: is not an IDX file: it begins with {magic.hex() or 'nothing'}, expected 0000, "
                    "a type (08 for bytes) and the number of dimensions."
                )
            dtype = np.dtype(IDX_DTYPES[magic[2]])
            header = file.read(4 * magic[3])
            shape = tuple(np.frombuffer(header[: len(header) // 4 * 4], ">u4").tolist())
            size = dtype.itemsize
            for length in shape:
                size *= length
            content = file.read(size + 1) if len(shape) == magic[3] and size <= available else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileFormatError(f"{where}: is truncated or broken ({error}). Get the file again.") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    if len(content) != size or len(shape) != magic[3]:
        problem = "longer" if len(content) > size else "truncated: shorter"
        raise FileFormatError(
            f"{where}: is {problem} than the {size} bytes of data that its header {shape} says. Get the file again."
        )
    try:
        return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # no elements, but axes that are too long or too many for NumPy
        raise FileFormatError(f"{where}: has a shape {shape} that no array can have ({error}).") from None


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    stem = f"{part}-{kind}"
    for name in (f"{stem}-ubyte", f"{stem}-ubyte.gz", f"{stem.replace('-idx', '.idx')}-ubyte"):
        if (folder / name).is_file():
            return folder / name
    return None


def idx(folder: str | os.PathLike[str], classes: Sequence[str] | None = None) -> tuple[ArrayDataset, ArrayDataset]:
    """Read the four IDX files of MNIST or Fashion-MNIST, plain or .gz, as (train, test).

    Args:
        folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte.
        classes: the class names; "0".."9" if not given.
    """
    parts = []
    for part in ("train", "t10k"):
        arrays = []
        for kind, ndim in (("images-idx3", 3), ("labels-idx1", 1)):
            path = _idx_file(Path(folder), part, kind)
            if path is None:
                raise DataError(f"{printable(folder)}: has no file {part}-{kind}-ubyte or {part}-{kind}-ubyte.gz.")
            array = read_idx(path)
            if array.dtype != np.uint8 or array.ndim != ndim:
                raise FileFormatError(
                    f"{printable(path)}: must hold bytes in {ndim} dimension(s); holds {array.dtype} {array.shape}."
                )
            arrays.append(array)
        parts.append(_named(f"{printable(folder)} ({part})", arrays[0], arrays[1], classes))
    if classes is None:
        _share_classes(parts)
    return parts[0], parts[1]


def _named(where: str, x: np.ndarray, y: np.ndarray, classes: Sequence[str] | None) -> ArrayDataset:
    """Make a data set whose error says where the arrays come from; channels are brought first."""
    few = (1, 3, 4)
    if x.ndim == 4 and x.shape[3] in few and x.shape[1] not in few:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    try:
        return ArrayDataset(x, y, classes)
    except (DataError, ShapeError) as error:
        raise DataError(f"{where}: {error}") from None


def _share_classes(parts: Sequence[ArrayDataset]) -> None:
    """Give unnamed classes to both parts, in case one of them lacks the last class."""
    longest = max((part.classes for part in parts), key=len)
    for part in parts:
        part.classes = list(longest)


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------


def cifar10(folder: str | os.PathLike[str]) -> tuple[ArrayDataset, ArrayDataset]:
    """Read the binary version of CIFAR-10 (Krizhevsky 2009) as (train, test): RGB 32x32, uint8.

    Args:
        folder: holds data_batch_1.bin .. data_batch_5.bin, test_batch.bin and batches.meta.txt, or a folder
            cifar-10-batches-bin that does.

    Raises:
        DataError: if a file is missing. The "python version" is pickled, and pickles are never loaded.
        FileFormatError: if a file is not a whole number of records, or a label is none.
    """
    base = Path(folder)
    if (base / "cifar-10-batches-bin").is_dir():
        base = base / "cifar-10-batches-bin"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    for name in (*names, "test_batch.bin", "batches.meta.txt"):
        if not (base / name).is_file():
            hint = " This looks like the pickled version." if (base / "data_batch_1").exists() else ""
            raise DataError(f"{printable(base)}: has no file {name}.{hint} Get the binary version of CIFAR-10.")
    classes = (base / "batches.meta.txt").read_text("utf-8", "replace").split()
    if len(classes) != 10:
        raise FileFormatError(f"{printable(base / 'batches.meta.txt')}: must name 10 classes; names {len(classes)}.")
    train = np.concatenate([_cifar_records(base / name) for name in names])
    return _cifar_set(base, train, classes), _cifar_set(base, _cifar_records(base / "test_batch.bin"), classes)


def _cifar_records(path: Path) -> np.ndarray:
    records = np.fromfile(path, np.uint8)
    if not records.size or records.size % CIFAR_RECORD:
        raise FileFormatError(
            f"{printable(path)}: must be a whole number of records of {CIFAR_RECORD} bytes; has {records.size} bytes. "
            "Get the file again."
        )
    rows = records.reshape(-1, CIFAR_RECORD)
    if (wrong := np.flatnonzero(rows[:, 0] > 9)).size:
        k = int(wrong[0])
        raise FileFormatError(f"{printable(path)}: labels must lie in 0..9; received {rows[k, 0]} in record {k}.")
    return rows


def _cifar_set(base: Path, records: np.ndarray, classes: list[str]) -> ArrayDataset:
    return _named(printable(base), records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], classes)


# --- npz --------------------------------------------------------------------------------------------------------


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Refuse members that claim a size they cannot have, before NumPy takes memory for them."""
    for member in archive.infolist():
        if member.file_size > DEFLATE_RATIO * member.compress_size:
            raise ValueError(f"{member.filename[:80]} claims {member.file_size:,} bytes")
        with archive.open(member) as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                continue  # no array
            new = file.read(2) != b"\x01\x00"  # later versions only have longer headers
            read = np.lib.format.read_array_header_2_0 if new else np.lib.format.read_array_header_1_0
            shape, _, dtype = read(file)
        if not dtype.itemsize:
            raise ValueError(f"the elements of {member.filename[:80]} have no bytes")  # so there may be any number
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename[:80]} of {member.file_size:,} bytes claims to be {shape} {dtype}")


def from_npz(path: str | os.PathLike[str]) -> tuple[ArrayDataset, ArrayDataset | None]:
    """Read an .npz file as (train, test or None).

    Keys: x_train and y_train, optionally x_test and y_test; or x and y. `classes` (strings) is optional. Arrays are as
    `ArrayDataset` takes them, or (N, H, W, C) with C of 1, 3 or 4. Pickled content is refused.

    Raises:
        FileFormatError: naming the file, if it is no .npz file of plain arrays, or claims to hold more than it can.
        DataError: if there is no such file, or the arrays are no data set.
    """
    where = printable(path)
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it holds a single array without a name")
            _check_sizes(loaded.zip)
            members = {key: loaded[key] for key in loaded}
            arrays = {key: array for key, array in members.items() if isinstance(array, np.ndarray)}
            classes = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # zipfile, zlib and NumPy's reader of headers raise whatever they stumble over
        raise FileFormatError(
            f"{where}: is not a readable .npz file of plain arrays ({str(error)[:200] or type(error).__name__})."
        ) from error
    x, y = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if x not in arrays or y not in arrays:
        keys = ", ".join(sorted(arrays)) or "none"
        raise DataError(f"{where}: needs the arrays x_train and y_train, or x and y; it has {keys}.")
    parts = [_named(f"{where} ({x}, {y})", arrays[x], arrays[y], classes)]
    if "x_test" in arrays and "y_test" in arrays:
        parts.append(_named(f"{where} (x_test, y_test)", arrays["x_test"], arrays["y_test"], classes))
        if parts[1].shape != parts[0].shape:
            raise DataError(f"{where}: x_test has images of shape {parts[1].shape}, x_train of {parts[0].shape}.")
    if classes is None:
        _share_classes(parts)
    return parts[0], parts[1] if len(parts) == 2 else None


# --- anything ---------------------------------------------------------------------------------------------------


def open_dataset(
    source: str | os.PathLike[str],
    size: int | Sequence[int] | None = None,
    mode: str = "L",
    fit: str = "resize",
    on_error: str = "raise",
    limit: int | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Open whatever `source` names, as (train, test or None).

    `source` is the word "mnist" (the embedded digits), an .npz file, a folder with IDX files, a folder with CIFAR-10's
    binary files, or a folder of images with a sub-folder per class, perhaps inside train/ and test/ (or val/).

    Args:
        source: see above.
        size: (height, width), needed for image folders and used for nothing else, as are `mode`, `fit`, `on_error`.
        mode: "L" or "RGB".
        fit: "resize", "pad" or "crop".
        on_error: "raise" or "skip".
        limit: use at most this many training samples, in the class proportions of the whole.

    Raises:
        DataError: if the source is nothing of these.
    """
    train: Dataset
    test: Dataset | None
    path = Path(source)
    if source == "mnist":
        train, test = mnist()
    elif path.is_file() and path.suffix.lower() == ".npz":
        train, test = from_npz(path)
    elif not path.is_dir():
        state = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
        raise DataError(f'{printable(path)}: {state}. Expected a folder, an .npz file or the word "mnist".')
    elif any(_idx_file(path, part, "images-idx3") for part in ("train", "t10k")):
        train, test = idx(path)
    elif any((path / name).exists() for name in ("data_batch_1.bin", "data_batch_1", "cifar-10-batches-bin")):
        train, test = cifar10(path)
    else:
        if size is None:
            raise ArgumentError(f"{printable(path)}: an image folder needs a size, such as size=(28, 28).")
        return _image_folders(path, size, mode, fit, on_error, limit)
    return limited(train, limit), test


def _image_folders(
    path: Path, size: int | Sequence[int], mode: str, fit: str, on_error: str, limit: int | None
) -> tuple[ImageFolder, ImageFolder | None]:
    inner = path / "train"
    if not (inner.is_dir() and any(p.is_dir() for p in inner.iterdir())):
        return ImageFolder(path, size, mode, fit, on_error, limit=limit), None
    train = ImageFolder(inner, size, mode, fit, on_error, limit=limit)
    other = next((path / name for name in ("test", "val", "valid", "validation") if (path / name).is_dir()), None)
    if other is None:
        return train, None
    test = ImageFolder(other, size, mode, fit, on_error)
    if test.classes != train.classes:
        raise DataError(
            f"{printable(other)}: its classes {', '.join(test.classes)} are not those of {printable(inner)}, "
            f"{', '.join(train.classes)}."
        )
    return train, test
