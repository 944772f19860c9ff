"""What the readers of several formats share: one kind of error, and bounds on memory."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import numpy as np

from ..errors import ArgumentError, FileFormatError

__all__ = ["bfloat16_to_float32", "check_plain", "most_bytes", "naming", "stored_zip"]

# What Python's own readers and ours raise when a file is not what it claims to be.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,  # also RecursionError and NotImplementedError
    OverflowError,
    MemoryError,
)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a reader stumbles over into a FileFormatError that begins with the name of the file."""
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{os.fspath(path)} {error}") from None
    except BROKEN as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise FileFormatError(
            f"{os.fspath(path)} is broken or of another format than its name says ({what[:200]}). Copy it again."
        ) from None


def most_bytes(file_size: int) -> int:
    """Return how many bytes of arrays are read from a file.

    Honest ones need no more than two bytes for one (bfloat16 becomes float32), or a little more for tied weights.
    """
    return 4 * file_size + 2**24


def stored_zip(file: IO[bytes], file_size: int) -> zipfile.ZipFile:
    """Open a zip archive of members that are stored as they are; refuse what could be larger than the file."""
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise FileFormatError("is a zip archive with two members of one name.")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise FileFormatError(
                f"is a zip archive in which {member.filename[:80]!r} is compressed; torch and Keras only store."
            )
    if (total := sum(member.file_size for member in members)) > file_size:
        raise FileFormatError(f"is a zip archive of {file_size:,} bytes that claims to hold {total:,} bytes.")
    return archive


def check_plain(tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays of other than real numbers and bools, before a file is begun."""
    for name, array in tensors.items():
        if np.asarray(array).dtype.kind not in "biuf":
            raise ArgumentError(f"{name} has dtype {array.dtype}; this format holds real numbers and bools.")


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Return float32 numbers for the 16 bits of each bfloat16 (uint16): the upper half of the same float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
