"""What happens around the training steps: progress, early stopping, files, and a look-out for NaN."""

# ruff: noqa: D102  (the hooks are described once, in Callback)

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from ..backend import Array, array_module
from ..errors import ArgumentError, XpcnnError
from ..files import remove_leftovers
from ..layers.base import Layer, Step
from .history import better_is_lower
from .loop import Fit
from .sparkline import Trend

__all__ = [
    "CSVLog",
    "Callback",
    "EarlyStopping",
    "LearningRateLog",
    "NonFiniteError",
    "Progress",
    "SaveBest",
    "StopOnNaN",
    "first_nonfinite",
]


class NonFiniteError(XpcnnError, ArithmeticError):
    """Training produced a NaN or an infinity; the message names where it appeared first."""


class Callback:
    """Base class: override what you need. `fit` is the running `Fit`: network, optimizer, history, epoch, batch.

    Reading an array of the device in `on_loss` or `on_step_end` makes a GPU wait: do it every so many steps only.

    In a training of several processes (`fit.ranks`) each has its own; what one does to the training, all must do.
    """

    writes = False  # whether it does nothing but print or write files, which is for rank 0 alone

    def on_fit_begin(self, fit: Fit) -> None:
        """Before the first epoch of a call of fit."""

    def on_epoch_begin(self, fit: Fit) -> None:
        """Before the first batch of an epoch."""

    def on_loss(self, fit: Fit) -> None:
        """After a batch (or micro-batch) has gone forward and before any weight changes.

        `fit.batch_loss` is its loss, on the device.
        """

    def on_step_end(self, fit: Fit) -> None:
        """After a batch has gone backward (and the weights have changed, unless gradients are being accumulated)."""

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        """After an epoch and its validation; `logs` is the row that was added to the history."""

    def on_fit_end(self, fit: Fit) -> None:
        """After the last epoch, also when fit is interrupted or fails."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to know.

        It may hold numbers, text, None, arrays, lists, and dicts with keys of text. A tuple comes back as a list, and
        an array in host memory. A callback that writes none of its own may differ between the parts of a training.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; fit calls it after `on_fit_begin`.

        In a training that is resumed inside an epoch that is after `on_epoch_begin`, which the state has behind it.
        """
        vars(self).update(state)

    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments that a resumed training must have too: all of them, but a path."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if name != "path" and hasattr(self, name)}


class _Monitor(Callback):
    """Keeps the best value so far of one column of the history."""

    def __init__(self, monitor: str, min_delta: float = 0.0) -> None:
        self.monitor = monitor
        self.min_delta = min_delta
        self.best = math.inf if better_is_lower(monitor) else -math.inf

    def reset(self) -> None:
        self.best = math.inf if better_is_lower(self.monitor) else -math.inf

    def on_fit_begin(self, fit: Fit) -> None:
        if self.monitor.startswith("val_") and fit.validate is None:
            raise ArgumentError(
                f'{type(self).__name__} monitors "{self.monitor}", but fit has no validation data. '
                f'Give fit(validation=...), or monitor="{self.monitor[4:]}".'
            )

    def improved(self, logs: dict[str, float]) -> bool:
        """Compare with the best value so far and remember the better one. NaN never improves."""
        if self.monitor not in logs:
            raise ArgumentError(
                f'{type(self).__name__} monitors "{self.monitor}"; an epoch has only: {", ".join(sorted(logs))}.'
            )
        value = logs[self.monitor]
        gain = self.best - value if better_is_lower(self.monitor) else value - self.best
        if gain > self.min_delta:
            self.best = value
            return True
        return False


class EarlyStopping(_Monitor):
    """Stops when a monitored value has not improved for `patience` epochs.

    Args:
        monitor: column of the history; those that end in "accuracy" should rise, all others fall.
        patience: epochs without improvement that are still allowed.
        min_delta: smallest change that counts as an improvement.
        restore_best: when fit ends, for whatever reason, go back to the weights of the best epoch.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0, restore_best: bool = True
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise ArgumentError(
                f"patience must be at least 1 and min_delta at least 0; received {patience} and {min_delta}."
            )
        super().__init__(monitor, min_delta)
        self.patience = patience
        self.restore_best = restore_best
        self.best_epoch = 0
        self.wait = 0
        self.snapshot: dict[str, Any] | None = None

    def on_fit_begin(self, fit: Fit) -> None:
        super().on_fit_begin(fit)
        self.reset()
        self.best_epoch, self.wait, self.snapshot = 0, 0, None

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        if self.improved(logs):
            self.best_epoch, self.wait = fit.epoch, 0
            if self.restore_best:
                self.snapshot = fit.classifier.snapshot()
            return
        self.wait += 1
        if self.wait >= self.patience:
            fit.stop = (
                f"stopped early after epoch {fit.epoch}: {self.monitor} has not improved for {self.patience} "
                f"epoch{'s' * (self.patience > 1)}"
            )

    def on_fit_end(self, fit: Fit) -> None:
        if self.snapshot is not None and self.best_epoch != fit.history.epochs:
            fit.classifier.restore(self.snapshot)
            fit.stop = f"{fit.stop or 'done'}; weights of epoch {self.best_epoch} restored"

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "best_epoch", "wait", "snapshot")}


class SaveBest(_Monitor):
    """Saves the classifier to `path` (.safetensors or .json) whenever the monitored value improves."""

    writes = True

    def __init__(self, path: str | os.PathLike[str], monitor: str = "val_loss") -> None:
        super().__init__(monitor)
        self.path = path

    def on_fit_begin(self, fit: Fit) -> None:
        super().on_fit_begin(fit)
        remove_leftovers(self.path)
        if not fit.history.epochs:  # a new training, not the continuation of one
            self.reset()

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        if self.improved(logs):
            fit.classifier.save(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}


class CSVLog(Callback):
    """Writes the history to a CSV file after every epoch."""

    writes = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def on_fit_begin(self, fit: Fit) -> None:
        remove_leftovers(self.path)

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        fit.history.to_csv(self.path)


class LearningRateLog(Callback):
    """Keeps the learning rate of every step in `rates` (the history has one value an epoch)."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_end(self, fit: Fit) -> None:
        self.rates.append(fit.lr)

    def state_dict(self) -> dict[str, Any]:
        return {"rates": np.array(self.rates)}  # an array: there may be millions

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates = state["rates"].tolist()


class StopOnNaN(Callback):
    """Ends the training with a `NonFiniteError` that names the first layer with a NaN or an infinity.

    Args:
        every: look at the loss every so many steps, before the weights are touched. None means every step on the CPU;
            on a GPU, where looking waits, at the end of each epoch. By then NaN has spread to every weight, but
            training is repeatable, so a second run with every=1 finds the layer where it begins.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ArgumentError(f"every must be at least 1 step, or None; received {every}.")
        self.every = every

    def on_loss(self, fit: Fit) -> None:
        every = self._interval(fit)
        if every and fit.batch % every == 0 and not math.isfinite(float(fit.batch_loss)):
            self._fail(fit)

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            self._fail(fit)

    def _interval(self, fit: Fit) -> int:
        return self.every or (1 if fit.net.xp is np else 0)

    def _fail(self, fit: Fit) -> None:
        assert fit.step is not None
        exact = self._interval(fit) == 1
        raise NonFiniteError(
            f"the loss became {float(fit.batch_loss)} in epoch {fit.epoch}, {'in' if exact else 'in or before'} "
            f"batch {fit.batch}. What is not finite first: {first_nonfinite(fit.net, fit.x, fit.step)}. "
            + ("" if exact else "To see where it begins, run again with callbacks=[StopOnNaN(every=1)]. ")
            + 'Try a smaller learning rate, gradient clipping, or normalize="data".'
        )


def _finite(array: Array) -> bool:
    return bool(array_module(array).isfinite(array).all())


def first_nonfinite(net: Layer, x: Array, step: Step) -> str:
    """Run one batch (C, H, W, N) again, layer by layer, and say where the first NaN or infinity is.

    Running statistics stay as they are, and dropout draws the masks of `step`.
    """
    from ..inspection.trace import trace  # beside training, not below it: only needed when something went wrong

    if not _finite(x):
        return "the images of this batch are not finite (check the data, the transforms and the normalisation)"
    with trace(net) as visits, np.errstate(all="ignore"):
        net.forward(x, Step(step.seed, step.number, recompute=True))
    for visit in visits:
        where = f'layer "{visit.path}" ({type(visit.layer).__name__})'
        for name, parameter in visit.layer.parameters().items():
            if not _finite(parameter.data):
                return f"the {name} of {where}"
        if not _finite(visit.y):
            return f"the output of {where}"
    return "the loss itself, for every layer is finite on this batch"


class _View(Bar):
    """A progress bar with a line of text below."""

    line = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.line, no_wrap=True, overflow="ellipsis")


class Progress(Callback):
    """One line an epoch, and in a terminal a live view of the current one below them.

    That is a bar, and below it the mean loss and accuracy of the epoch so far, the curve of the loss since fit was
    called, images a second, and the time to the end of the last epoch, unless something stops the training before.

    Args:
        style: "auto" (a bar in a terminal, lines alone in a log), "bar" or "lines".
        console: where to print, a rich Console.
    """

    writes = True

    def __init__(self, style: str = "auto", console: Console | None = None) -> None:
        if style not in ("auto", "bar", "lines"):
            raise ArgumentError(f'progress is "auto", "bar" or "lines"; received {style!r}.')
        self.style = style
        self.console = console or Console()
        self.bar: _View | None = None
        self.trend = Trend()

    def on_fit_begin(self, fit: Fit) -> None:
        self.trend, self.steps, self.began = Trend(), 0, time.monotonic()
        if fit.memory is not None:
            self._print(str(fit.memory))
        if fit.checkpoints is not None and fit.checkpoints.good:
            self._print(f"going on after {fit.where} ({fit.checkpoints.good[-1]})")

    def on_epoch_begin(self, fit: Fit) -> None:
        if self.style == "bar" or (self.style == "auto" and self.console.is_terminal):
            columns = (
                TextColumn("Epoch {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bar = _View(*columns, console=self.console, transient=True)
            name, steps = f"{fit.epoch}/{fit.epochs}", len(fit.loader)
            self.task = self.bar.add_task(name, total=steps, completed=fit.batch)
            self.bar.start()
            self.read = time.monotonic()
            self.counted = fit.totals.count if fit.batch else 0  # a resumed epoch has some behind it
            self.summed = fit.totals.read()["loss"] * self.counted if fit.batch else 0.0

    def on_step_end(self, fit: Fit) -> None:
        if self.bar is None:
            return
        self.bar.advance(self.task)
        self.steps += 1
        now = time.monotonic()
        if now - self.read > 1.0:  # reading the loss makes a GPU wait: once a second costs nothing
            self.bar.line = self._figures(fit, now)
            self.read = time.monotonic()

    def _figures(self, fit: Fit, now: float) -> str:
        """Return mean loss and accuracy of the epoch so far, and what has changed since the last reading."""
        logs, count = fit.totals.read(), fit.totals.count
        total, fresh = logs["loss"] * count, count - self.counted
        self.trend.add((total - self.summed) / max(fresh, 1))
        self.counted, self.summed = count, total
        left = (fit.epochs - fit.epoch + 1) * len(fit.loader) - fit.batch
        ends = timedelta(seconds=round((now - self.began) / self.steps * left))
        parts = [f"loss {logs['loss']:.4f}", f"acc {logs['accuracy']:.4f}"]
        parts += [str(self.trend)] if self.console.encoding.startswith("utf") else []
        return "  ".join([*parts, f"{fresh * fit.ranks.size / (now - self.read):,.0f} images/s", f"{ends} to the end"])

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        self._close()
        parts = [f"Epoch {fit.epoch}/{fit.epochs}", f"{logs['seconds']:.1f}s"]
        parts += [f"loss {logs['loss']:.4f}", f"acc {logs['accuracy']:.4f}"]
        if "val_loss" in logs:
            parts += [f"val_loss {logs['val_loss']:.4f}", f"val_acc {logs['val_accuracy']:.4f}"]
        self._print("  ".join([*parts, f"lr {logs['lr']:.3g}"]))

    def on_fit_end(self, fit: Fit) -> None:
        self._close()
        if fit.stop is not None:
            self._print(fit.stop)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
