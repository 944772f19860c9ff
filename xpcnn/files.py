"""Writing files so that a crash, a full disk or a kill leaves the previous file whole; and one process to a folder."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import XpcnnError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FolderInUseError", "atomic_write", "locked", "remove_leftovers"]

LOCK = ".lock"


class FolderInUseError(XpcnnError, BlockingIOError):
    """Another training writes into this folder."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success flush it to disk and rename it to `path`.

    On an error inside the block the temporary file is removed and `path` stays as it was; after a power cut `path` is
    the old file or the new one, whole. The suffix is kept, because some writers choose their format by it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=f".tmp{target.suffix}", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp gives 0600; a normal file follows the umask
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):  # a full disk says nothing of a file
            error.filename = os.fspath(target)
        raise


def _sync_folder(folder: Path) -> None:
    """Bring a rename to disk, where the system lets one open folders and the file system takes such a wish."""
    if sys.platform != "win32":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files that a killed `atomic_write` has left: in a folder all, of a file its own.

    Nobody may be writing there.
    """
    target = Path(path)
    whole = target.is_dir()
    folder, stem = (target, ".+") if whole else (target.parent, re.escape(target.stem))
    ours = re.compile(rf"\.{stem}-[a-z0-9_]{{8}}\.tmp(\.[^.]*)?")
    if folder.is_dir():
        for found in folder.iterdir():
            if ours.fullmatch(found.name):
                found.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Have a folder for this process alone; it is made if it is not there.

    The lock is one of the operating system, on the file `.lock`: it ends with the process, however that ends.

    Raises:
        FolderInUseError: if somebody else has it.
    """
    path = Path(folder, LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+")  # noqa: SIM115  (closed below)
        try:
            _lock(file)
            if os.fstat(file.fileno()).st_nlink:  # else its last owner has removed it meanwhile
                break
        except OSError as error:
            file.seek(0)
            owner = file.read(20).strip() if sys.platform != "win32" else ""  # there it cannot be read
            file.close()
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise
            who = f" (process {owner})" if owner else ""
            raise FolderInUseError(
                f"another training{who} is using {os.fspath(folder)}. Wait for its end, or choose another folder."
            ) from None
        file.close()
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        if sys.platform == "win32":  # which does not remove open files
            file.close()
            with suppress(OSError):
                path.unlink()
        else:
            path.unlink(missing_ok=True)
            file.close()


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
