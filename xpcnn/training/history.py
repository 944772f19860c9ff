"""What happened in each epoch."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..figures import new_figure, save_figure
from ..files import atomic_write

__all__ = ["History", "better_is_lower"]

NAN = float("nan")


def better_is_lower(name: str) -> bool:
    """Say which way a monitored value improves: accuracies go up, everything else goes down."""
    return not name.endswith("accuracy")


class History(dict[str, list[float]]):
    """A dict of lists, one entry an epoch: epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds.

    The lists are always equally long: an epoch without a value (no validation that time) has NaN there.
    """

    def __init__(self) -> None:
        super().__init__(epoch=[], loss=[], accuracy=[], lr=[], seconds=[])

    @property
    def epochs(self) -> int:
        """How many epochs have been completed."""
        return len(self["epoch"])

    def append(self, values: Mapping[str, float]) -> None:
        """Add the values of one epoch."""
        done = self.epochs
        for name in [*self, *(name for name in values if name not in self)]:
            self.setdefault(name, [NAN] * done).append(values.get(name, NAN))

    def row(self, index: int) -> dict[str, float]:
        """Return the values of one epoch (0 the first, -1 the last)."""
        return {name: values[index] for name, values in self.items()}

    @property
    def best(self) -> dict[str, float]:
        """The values of the epoch with the lowest val_loss, or the lowest loss without validation."""
        if not self.epochs:
            raise ArgumentError("the history is empty: no epoch has been completed yet.")
        key = "val_loss" if any(value == value for value in self.get("val_loss", [])) else "loss"
        index = min(range(self.epochs), key=lambda i: self[key][i] if self[key][i] == self[key][i] else float("inf"))
        return self.row(index)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line an epoch, with a header; a value that does not exist is an empty cell."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self)
            for values in zip(*self.values(), strict=True):
                writer.writerow(["" if value != value else value for value in values])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw loss and accuracy against the epoch; with `path` save the picture there.

        Returns:
            The matplotlib Figure, which a notebook shows.

        Raises:
            MissingExtraError: without matplotlib.
        """
        figure = new_figure("history.plot()", 9, 3.5)
        for axis, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                if key in self:
                    axis.plot(self["epoch"], self[key], label=label, marker="o", markersize=3)
            axis.set(xlabel="epoch", ylabel=name)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
            axis.legend()
        return save_figure(figure, path)
