"""Following a training in TensorBoard. `CSVLog` and `Progress`, which need nothing, are in `callbacks`."""

# ruff: noqa: D102  (the hooks are described once, in Callback)

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, MissingExtraError
from .callbacks import Callback
from .loop import Fit

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes event files that `tensorboard --logdir FOLDER` shows. It needs tensorboardX (extra "tensorboard").

    After each epoch: loss/training, accuracy/training, loss/validation, accuracy/validation, learning rate, images a
    second (validation included in the time). Steps are epochs, counted from 1. A training that goes on adds to the
    folder.

    Args:
        folder: where the event files go; one for each training.
        every: write the loss of a batch and the learning rate every so many steps too, as batch/loss and
            batch/learning_rate against the number of the step; each makes a GPU wait. None for never.
    """

    writes = True

    def __init__(self, folder: str | os.PathLike[str], every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ArgumentError(f"every must be at least 1 step, or None; received {every}.")
        self.folder = folder
        self.every = every
        self._writer: Any = None

    def on_fit_begin(self, fit: Fit) -> None:
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ImportError:
            raise MissingExtraError("tensorboardX", "tensorboard", "the TensorBoard callback") from None
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The writer behind SummaryWriter: no queue, no thread, and what is flushed is on the disk. The suffix keeps two
        # trainings that begin in one second from writing one file.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")

    def on_step_end(self, fit: Fit) -> None:
        if self.every and fit.batch % self.every == 0:
            number = (fit.epoch - 1) * len(fit.loader) + fit.batch
            self._write({"batch/loss": float(fit.batch_loss), "batch/learning_rate": fit.lr}, number)

    def on_epoch_end(self, fit: Fit, logs: dict[str, float]) -> None:
        values = {f"{name}/training": logs[name] for name in ("loss", "accuracy")}
        values |= {f"{name}/validation": logs[f"val_{name}"] for name in ("loss", "accuracy") if f"val_{name}" in logs}
        values |= {"learning_rate": logs["lr"], "images_per_second": fit.totals.count / max(logs["seconds"], 1e-9)}
        self._write(values, fit.epoch)
        self._writer.flush()

    def on_fit_end(self, fit: Fit) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, values: dict[str, float], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
