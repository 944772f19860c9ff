"""Groups of images that must stay together, and folders that keep them so."""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ArgumentError, DataError
from .images import printable

__all__ = ["groups_by", "write_split"]


def groups_by(names: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each file: what a regular expression finds in its name.

    Args:
        names: paths of files, with slashes.
        pattern: is searched for in each; its first parenthesis is the group, without one all that it matches:
            r"(patient\\d+)_" gives "patient7" for "sick/patient7_03.png".

    Raises:
        ArgumentError: if the pattern is no regular expression.
        DataError: if it does not match a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ArgumentError(f"the pattern of groups is no regular expression: {error}; received {pattern!r}.") from None
    found = [expression.search(name) for name in names]
    missing = [name for name, match in zip(names, found, strict=True) if match is None]
    if missing:
        raise DataError(
            f"the pattern {pattern!r} finds no group in {len(missing)} of {len(names)} names, such as {missing[0]}. "
            "Every image needs a group."
        )
    return [(match[1] if expression.groups else match[0]) or "" for match in found if match is not None]


def write_split(
    folder: str | os.PathLike[str],
    files: Sequence[Path],
    names: Sequence[str],
    groups: Sequence[object],
    held_out: np.ndarray,
) -> None:
    """Make `folder` with train/ and test/, each with a sub-folder of images per class, as `open_dataset` reads them.

    The images are hard links where the file system has them, so they take no room, and copies elsewhere. split.csv
    lists part, group and name of each. All of it appears at once.

    Args:
        folder: must not exist, or be empty.
        files: the images.
        names: their names: class/name, with slashes.
        groups: their groups.
        held_out: bool (N,): which belong into test/.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(f"{printable(target)} exists and is not empty; name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        parts = ["test" if held else "train" for held in held_out.tolist()]
        for file, name, part in zip(files, names, parts, strict=True):
            place = made / part / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), place)
            except OSError:
                shutil.copy2(file, place)
        with open(made / "split.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as table:
            writer = csv.writer(table)
            writer.writerow(["part", "group", "file"])
            writer.writerows(zip(parts, groups, names, strict=True))
        os.chmod(made, 0o755)
        if target.exists():
            target.rmdir()
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
