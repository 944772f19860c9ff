"""Trainings beside each other: what was set differently, and how they ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, FileFormatError
from ..table import Table
from ..training import History
from ..training.history import better_is_lower
from .visualize import plot_runs, read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Run", "compare"]

FACTS = ("device", "threads", "parameters", "frozen", "training_images", "validation_images")
UNIMPORTANT = ("out", "quiet", "resume", "checkpoint_every")  # settings that do not change what is learned
FIGURES = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Run:
    """One folder that `xpcnn train` has left: every setting, a few facts, and the history."""

    name: str
    settings: dict[str, Any]
    history: History
    stopped: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Several trainings; print it for a table."""

    runs: tuple[Run, ...]

    def differences(self) -> dict[str, list[Any]]:
        """Return the settings that are not the same in all runs: name -> the value in each, None where it is not."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        values = {name: [run.settings.get(name) for run in self.runs] for name in names}
        return {name: found for name, found in values.items() if any(value != found[0] for value in found)}

    def best(self) -> list[dict[str, float]]:
        """Return the epoch with the lowest validation loss (or training loss, without any) of each run."""
        return [run.history.best for run in self.runs]

    def table(self) -> Table:
        """Return a column for each run: settings that differ, then the best epoch; the best figure has a star."""
        table = Table(f"{len(self.runs)} trainings", [("", "<"), *((run.name, ">") for run in self.runs)])
        for name, values in self.differences().items():
            table.add(name, *("-" if value is None else str(value) for value in values))
        best = self.best()
        for name in FIGURES:
            numbers = [row.get(name, float("nan")) for row in best]
            known = [number for number in numbers if number == number]
            if known:
                first = min(known) if better_is_lower(name) else max(known)
                star = "" if name == "epoch" or len(self.runs) == 1 else " *"
                table.add(f"best: {name}", *(_cell(number) + star * (number == first) for number in numbers))
        table.add("epochs", *(run.history.epochs for run in self.runs))
        table.add("seconds", *(f"{sum(run.history['seconds']):.1f}" for run in self.runs))
        if any(run.stopped for run in self.runs):
            table.add("ended", *(run.stopped or "-" for run in self.runs))
        return table

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curves of all runs; see `plot_runs`."""
        return plot_runs({run.name: run.history for run in self.runs}, path)

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


def compare(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Read folders that `xpcnn train` has left; trainings that are still running count too.

    Args:
        folders: with history.csv and run.json in each.

    Raises:
        ArgumentError: if there is no folder, or one is missing or no training's.
        FileFormatError: if a file in it is broken, or no epoch has been finished.
    """
    if not folders:
        raise ArgumentError("compare takes at least one folder of a training; received none.")
    paths = [Path(folder) for folder in folders]
    return Comparison(tuple(_read(path, name) for path, name in zip(paths, _names(paths), strict=True)))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ArgumentError(f"a training is compared with others; received {paths[0]} more than once.")


def _read(folder: Path, name: str) -> Run:
    for file in ("history.csv", "run.json"):
        if not (folder / file).exists():
            raise ArgumentError(f"{folder} is not the folder of a training: it has no {file}. xpcnn train writes one.")
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        facts = {key: found[key] for key in FACTS if key in found}
        settings = {key: value for key, value in found["settings"].items() if key not in UNIMPORTANT}
        stopped = (found.get("result") or {}).get("stopped")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise FileFormatError(f"{folder / 'run.json'} is not what xpcnn train writes.") from None
    # a setting that was left to xpcnn, such as the device, is known as a fact
    return Run(name, settings | facts, read_history(folder / "history.csv"), stopped)


def _cell(number: float) -> str:
    return "-" if number != number else f"{int(number)}" if number == int(number) and number >= 1 else f"{number:.4f}"
