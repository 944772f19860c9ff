"""A learning-rate range test: let the rate grow from step to step and see where the loss falls fastest.

Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError, DataError
from ..figures import new_figure, save_figure
from ..schedule import Schedule
from .callbacks import Callback, NonFiniteError
from .classifier import Classifier
from .history import History
from .loop import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LearningRates", "lr_find"]

DIVERGED = 4.0  # times the lowest smoothed loss: nothing is to be learned from what follows


@dataclass(frozen=True)
class LearningRates:
    """What `lr_find` saw; `print` it for the suggestion.

    Args:
        rates: (S,) learning rate of each step, growing.
        losses: (S,) loss of the batch before the update with that rate.
        smoothed: (S,) exponential moving average of the losses, corrected for its start.
        diverged: whether it ended before its last step because the loss grew too large.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged: bool

    @property
    def lowest(self) -> float:
        """The rate with the lowest smoothed loss: too large for a training, for there the loss no longer falls."""
        return float(self.rates[self.smoothed.argmin()])

    @property
    def suggestion(self) -> float | None:
        """The rate around which the smoothed loss falls fastest, before its lowest point; None if it never falls.

        What counts is the fall over a tenth of the steps; the first tenth, a mean of few batches, is left out.
        """
        reach, first, lowest = max(1, len(self.rates) // 20), len(self.rates) // 10, int(self.smoothed.argmin())
        centres = np.arange(first + reach, lowest + 1 - reach)
        fall = self.smoothed[centres - reach] - self.smoothed[centres + reach]
        return float(self.rates[centres[fall.argmax()]]) if (fall > 0).any() else None

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the losses against the rate, with the suggestion; with `path` save the picture there.

        Raises:
            MissingExtraError: without matplotlib.
        """
        figure = new_figure("drawing the learning rates", 7, 4)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="0.75", linewidth=1, label="loss of the batch")
        axes.plot(self.rates, self.smoothed, color="C0", label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="C1", linestyle="--", label=f"falls fastest: {self.suggestion:.2g}")
        axes.set_ylim(*_limits(self.smoothed))
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend()
        return save_figure(figure, path)

    def __str__(self) -> str:
        tried = f"{len(self.rates)} steps from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        tried += ", where the loss grew too large" if self.diverged else ""
        if self.suggestion is None:
            return f"{tried}: the loss never fell. Check the data, or let it take more steps."
        return (
            f"suggested learning rate: {self.suggestion:.2g}, where the loss falls fastest; stay well below "
            f"{self.lowest:.2g}, where it is lowest\n{tried}"
        )


@dataclass(frozen=True)
class _Sweep(Schedule):
    """Multiplies the rate from `first` to `last` in `steps` equal factors."""

    first: float
    last: float
    steps: int

    def __call__(self, t: int, total: int) -> float:
        return float(self.first * (self.last / self.first) ** (t / (self.steps - 1)))


class _Enough(Exception):
    """Ends the test."""


class _Watch(Callback):
    """Keeps rates and losses; ends the training after so many steps, or when the loss has grown too large."""

    def __init__(self, steps: int, smoothing: float) -> None:
        self.steps = steps
        self.smoothing = smoothing
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged = False
        self._average = 0.0

    def on_step_end(self, fit: Fit) -> None:
        """Read the loss, which waits for a GPU: a test is short."""
        loss = float(fit.batch_loss)
        average = self.smoothing * self._average + (1 - self.smoothing) * loss
        smoothed = average / (1 - self.smoothing ** (len(self.losses) + 1))
        self.diverged = not smoothed <= DIVERGED * min(self.smoothed, default=math.inf)  # NaN has diverged too
        if math.isfinite(smoothed):
            self._average = average
            self.rates.append(fit.lr)
            self.losses.append(loss)
            self.smoothed.append(smoothed)
        if self.diverged or len(self.rates) == self.steps:
            raise _Enough


def lr_find(
    classifier: Classifier,
    data: Any,
    y: Any = None,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    batch_size: int = 32,
    augment: Callable[..., Any] | None = None,
    workers: int = 0,
) -> LearningRates:
    """Train a copy of the classifier for a few steps with a learning rate that grows exponentially.

    The classifier itself stays as it is, to the last bit: weights, running statistics, optimizer, history. The copy has
    its optimizer and loss, but not its schedule. Rates of the optimizer's groups grow in proportion.

    Args:
        classifier: trained or not.
        data, y: as for `Classifier.fit`; they are gone through as often as it takes.
        low, high: first and last learning rate.
        steps: how many updates; it ends earlier when the smoothed loss is 4 times its lowest value.
        smoothing: weight of the past in the moving average of the loss, 0 to below 1.
        batch_size, augment, workers: as for `Classifier.fit`. Use the batch size of the training to come.

    Raises:
        ArgumentError: if low, high, steps or smoothing make no sense, or the optimizer's own rate is 0.
        DataError: if the very first loss is not finite.
    """
    if not 0 < low < high < math.inf or steps < 3 or not 0 <= smoothing < 1:
        raise ArgumentError(
            f"lr_find needs 0 < low < high, at least 3 steps and a smoothing from 0 to below 1; received low {low}, "
            f"high {high}, steps {steps}, smoothing {smoothing}."
        )
    twin = copy.deepcopy(classifier)
    twin.parallel = None  # every rank does all of it, and comes to the same
    rate = twin.optimizer.lr
    if not rate > 0:
        raise ArgumentError("lr_find multiplies the optimizer's learning rate, which is 0: give it another.")
    twin.history, twin.schedule = History(), _Sweep(low / rate, high / rate, steps, every="step")
    watch = _Watch(steps, smoothing)
    try:
        twin.fit(
            data,
            y,
            epochs=steps,
            batch_size=batch_size,
            augment=augment,
            workers=workers,
            callbacks=[watch],
            verbose=False,
        )
    except _Enough:
        pass
    except NonFiniteError:
        watch.diverged = True
    if not watch.losses:
        raise DataError("the loss is not finite from the first step on: check the images and the weights.")
    rates, losses, smoothed = (np.array(values) for values in (watch.rates, watch.losses, watch.smoothed))
    return LearningRates(rates, losses, smoothed, watch.diverged)


def _limits(smoothed: np.ndarray) -> tuple[float, float]:
    """Return a range of the loss in which the fall can be seen, whatever comes after it."""
    low, start = float(smoothed.min()), float(smoothed[0])
    margin = 0.2 * (max(start, low) - low) or 0.1 * abs(low) or 1.0
    return low - margin, max(start, low) + 2 * margin
