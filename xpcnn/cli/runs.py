"""`xpcnn compare` and `xpcnn report`: trainings looked at afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import inspection, zoo
from ..data import Dataset
from ..errors import ArgumentError, FileFormatError
from .common import DeviceName, open_data, pixels_of, show, training_data


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings (runs/...), running ones too.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw their curves too; needs matplotlib.")
    ] = None,
) -> None:
    """Print what trainings have set differently and how well they did, and draw their curves."""
    found = inspection.compare(runs)
    show(found)
    if out is not None:
        found.plot(out)
        show(f"{out}: loss and accuracy")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training (runs/...).")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Judge by these images; by default by those that were held out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="By default RUN/report.html.")] = None,
    device: DeviceName = "auto",
) -> None:
    """Write one HTML page about a training: curves, mistakes, Grad-CAM, filters, costs. It needs no network.

    It holds the curves and the learning rate, the confusion matrix and the accuracy per class, the most confident
    mistakes, what the network looks at, filters before and after, feature maps, layers with their cost, all settings,
    and whether the split leaks. Needs Jinja2 and matplotlib: pip install "xpcnn\\[report]".
    """
    settings = inspection.compare([run]).runs[0].settings
    try:
        pixels = pixels_of(settings["model"], settings["stem"], settings["size"])
        mode = settings["mode"] or zoo.entry(settings["model"]).mode
        source, validation, limit, seed = (settings[name] for name in ("data", "validation", "limit", "seed"))
    except KeyError as error:
        raise FileFormatError(f"{run / 'run.json'} is not what xpcnn train writes: no setting {error}.") from None
    if data is None and source != "mnist" and not Path(source).exists():
        raise ArgumentError(f"{source}, which {run} was trained on, is not there. Name the data: xpcnn report RUN DATA")
    training: Dataset | None
    if data is None:
        training, held_out = training_data(source, validation, limit, seed, pixels, mode)
    else:
        first, second = open_data(data, pixels, mode)
        training, held_out = (first, second) if second else (None, first)
    path = inspection.report(run, held_out, training, out, device)
    show(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
