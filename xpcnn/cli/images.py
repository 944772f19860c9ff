"""`xpcnn data`: images examined before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..data import DataReport, ImageFolder, Subset, groups_by, inspect, split, write_split
from ..errors import ArgumentError, DataError
from .common import AsJson, DataPath, Seed, no_nan, open_data, show


def examine_data(
    data: DataPath,
    against: Annotated[
        str | None, typer.Option(metavar="DATA", help="The held-out data; by default the test part of DATA.")
    ] = None,
    split_off: Annotated[
        float | None, typer.Option("--split", metavar="FRACTION", help="Hold out so much, and write both parts to OUT.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="With --split: what of CLASS/FILE names the source, such as '(patient\\d+)'; its images stay on one "
            "side. Without it clusters of near-duplicates do.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --split: a new folder for train/ and test/.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw pairs that are too much alike: FILE.png.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Examine images before training: counts, sizes, broken files, duplicates, and whether the split leaks.

    Ends with exit code 1 if files are broken, equal images have different classes or a split leaks. --split writes
    OUT/train and OUT/test, which share no source, the list OUT/split.csv, and judges them: ready for xpcnn train OUT.
    """
    if (split_off is None) != (out is None) or (group_by is not None and split_off is None):
        raise ArgumentError("--split FRACTION and --out FOLDER belong together, and --group-by to them.")
    opened, brought = open_data(data, (16, 16), "L")
    if split_off is not None and (brought is not None or not isinstance(opened, ImageFolder)):
        raise ArgumentError(
            f"--split takes a folder with one sub-folder of images per class and no test part; {data} is none. "
            "For arrays there is xpcnn.data.split(dataset, fraction, groups=...)."
        )
    found = inspect(opened, brought if against is None else against)
    lines = []
    if picture is not None:
        lines.append(f"{picture}: {len(found.pairs)} pairs" if found.picture(picture) else "no pairs to draw")
    if split_off is not None and out is not None and isinstance(opened, ImageFolder):
        lines += _write_split(opened, found, split_off, group_by, seed, out)
    if as_json:
        show(json.dumps(no_nan(found.as_dict()), indent=2))
    else:
        show(found)
        for line in lines:
            show(line)
    return 0 if found.ok or split_off is not None else 1


def _write_split(
    folder: ImageFolder, found: DataReport, fraction: float, group_by: str | None, seed: int, out: Path
) -> list[str]:
    """Write a split that keeps groups together; return lines that say how good it is."""
    names = [file.relative_to(folder.path).as_posix() for file in found.files]
    groups = found.clusters.tolist() if group_by is None else groups_by(names, group_by)
    good = set(found.files)
    whole = Subset(folder, [i for i, file in enumerate(folder.files) if file in good])
    train, held_out = split(whole, fraction, seed, groups=groups)
    for label, name in enumerate(folder.classes):
        if not ((train.labels == label).any() and (held_out.labels == label).any()):
            raise DataError(
                f"the images of class {name!r} are of too few groups to be on both sides. Use smaller groups, or leave "
                "the class out."
            )
    chosen = np.isin(np.arange(len(whole)), held_out.indices)
    write_split(out, found.files, names, groups, chosen)
    after = inspect(*(ImageFolder(out / part, 16, classes=folder.classes) for part in ("train", "test")))
    kind = "clusters of near-duplicates" if group_by is None else "groups"
    return [
        f"{out}: {len(train):,} images in train/, {len(held_out):,} in test/, {len(set(groups)):,} {kind}",
        f"{out}: {after.verdict[-1]}",
    ]
