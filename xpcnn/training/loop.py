"""The training loop. Nothing in a step waits for the device: sums stay there and are read once an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..backend import Array, spans
from ..data import Loader
from ..layers import Layer, Step, auxiliaries
from ..optim import Optimizer
from .ema import EMA
from .history import History
from .memory import TrainingMemory
from .metrics import Totals, confusion_counts
from .precision import LossScale

if TYPE_CHECKING:
    from .callbacks import Callback
    from .classifier import Classifier
    from .resume import Checkpoints

__all__ = ["Fit", "evaluate_batches", "run", "train_epoch"]

Loss = Callable[[Array, Array], tuple[Array, Array]]


@dataclass
class Fit:
    """One call of `Classifier.fit`: what it works with and how far it has come. Callbacks get it.

    A callback ends the training after the current epoch by setting `stop` to the reason, a sentence for people.
    """

    classifier: Classifier
    net: Layer
    optimizer: Optimizer
    loss: Loss  # (logits (K, N), labels) -> (mean loss, its gradient)
    enter: Callable[[Array], Array]  # images (N, C, H, W) -> network input (C, H, W, N)
    loader: Loader  # gives (images, labels) on the device
    validate: Callable[[], dict[str, float]] | None
    history: History
    callbacks: Sequence[Callback]
    epochs: int  # number of the last epoch; epochs count from 1, over all calls of fit
    seed: int = 0
    accumulate: int = 1
    micro_batch: int | None = None  # most images that go through the network at once; None for all of a batch
    weigh: Callable[[Array], Array | float] | None = None  # what labels count in the mean; None: one each
    recomputing: Layer | None = None  # the layers of `net` in a form that keeps less for backward
    memory: TrainingMemory | None = None  # what all this takes, where a limit was set
    schedule: Any = None
    ema: EMA | None = None
    scale: LossScale | None = None  # of mixed precision
    checkpoints: Checkpoints | None = None
    # how far it has come
    first: int = 1  # number of the first epoch of this call
    epoch: int = 0
    began: float = 0.0  # when the epoch did, by time.perf_counter
    lr: float = 0.0  # of the current update; groups of the optimizer may have others
    batch: int = 0  # number of the current batch in its epoch, from 1; 0 before the first
    totals: Totals = field(init=False)
    x: Array = None  # the current batch, or micro-batch, as the network sees it
    step: Step | None = None
    batch_loss: Array = None  # on the device: reading it waits
    stop: str | None = None

    @property
    def body(self) -> Layer:
        """What goes forward and backward."""
        return self.net if self.recomputing is None else self.recomputing

    @property
    def where(self) -> str:
        """How far it has come, for people."""
        return f"epoch {self.epoch}" + (f", batch {self.batch} of {len(self.loader)}" if self.batch else "")

    def part(self, labels: Array, t: Array) -> float | Array:
        """Return the weight of a micro-batch in the loss of its batch, so that the sum is the batch's own loss."""
        return len(labels) / len(t) if self.weigh is None else self.weigh(labels) / self.weigh(t)

    def weighed(self, gradient: Array, weight: float | Array) -> Array:
        """Return a gradient of the loss times a weight; in mixed precision times the loss scale, in float16."""
        if not (isinstance(weight, float) and weight == 1.0):
            gradient = (gradient * weight).astype(gradient.dtype, copy=False)
        return gradient if self.scale is None else self.scale.apply(gradient, self.x.dtype)

    def call(self, event: str, *args: Any) -> None:
        """Tell every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)

    def factor(self, update: int, updates: int) -> float:
        """Return what the schedule multiplies learning rates with in one of the epoch's updates (counted from 0)."""
        if self.schedule is None:
            return 1.0
        if self.schedule.every == "epoch":
            return float(self.schedule(self.epoch - 1, self.epochs))
        return float(self.schedule((self.epoch - 1) * updates + update, self.epochs * updates))


def train_epoch(fit: Fit, start: int = 0) -> None:
    """Show every batch to the network once, but for the first `start`, which a resumed training has behind it.

    `accumulate` batches make one update, with the mean of their gradients.
    """
    net, optimizer, steps, k = fit.net, fit.optimizer, len(fit.loader), fit.accumulate
    if not start:
        fit.totals = Totals(net.xp)
    for index, (images, t) in enumerate(fit.loader.epoch(fit.epoch - 1, start), start):
        fit.batch = index + 1
        factor = fit.factor(update=index // k, updates=-(-steps // k))
        fit.lr = optimizer.lr * factor
        share = 1.0 / min(k, steps - index // k * k)  # of this batch in its update; the last group may be smaller
        add_gradients(fit, images, t, (fit.epoch - 1) * steps + index, share)
        if fit.batch % k == 0 or fit.batch == steps:
            optimizer.step(net, factor, fit.scale)  # updates, then clears the gradients
            if fit.ema is not None:
                fit.ema.update(net)
        fit.call("on_step_end")
        if fit.checkpoints is not None:
            fit.checkpoints.after_step(fit)


def add_gradients(fit: Fit, images: Array, t: Array, number: int, share: float) -> None:
    """Add the gradients of batch `number` times its share in the update: in one piece, or in micro-batches."""
    size = fit.micro_batch or len(images)
    most = -(-fit.loader.batch_size // size)  # micro-batches in a full batch
    pieces = spans(len(images), -(-len(images) // size))
    losses = []
    for index, (first, last) in enumerate(pieces):
        labels = t[first:last]
        part = 1.0 if len(pieces) == 1 else fit.part(labels, t)
        fit.x = fit.enter(images[first:last])
        fit.step = Step(fit.seed, number * most + index, need_dx=False)
        forward_backward(fit, labels, part * share)
        losses.append(fit.batch_loss if len(pieces) == 1 else fit.batch_loss * part)
    fit.batch_loss = sum(losses[1:], losses[0])


def forward_backward(fit: Fit, t: Array, weight: float | Array) -> None:
    """Add the gradients of `fit.x` times a weight. What forward kept is gone on return, before the next forward."""
    outputs, ctx = fit.body.forward(fit.x, fit.step or True)
    logits = outputs.astype(fit.net.dtype, copy=False)  # float32 in mixed precision
    fit.batch_loss, dlogits = fit.loss(logits, t)
    fit.totals.add(fit.batch_loss, logits, t)
    fit.call("on_loss")

    for head in auxiliaries(ctx):  # side classifiers learn the same labels
        side: Array = head.logits
        head.gradient = fit.weighed(fit.loss(side.astype(logits.dtype, copy=False), t)[1], weight)
    fit.body.backward(fit.weighed(dlogits, weight), ctx, need_dx=False)


def evaluate_batches(
    net: Layer, batches: Iterable[tuple[Array, Array]], enter: Callable[[Array], Array], loss: Loss
) -> tuple[float, Array]:
    """Return the mean loss per image and the confusion matrix (K, K), rows = truth."""
    totals, confusion = Totals(net.xp), None
    for images, t in batches:
        outputs, _ = net.forward(enter(images), False)
        logits = outputs.astype(net.dtype, copy=False)
        totals.add(loss(logits, t)[0], logits, t)
        counts = confusion_counts(logits, t)
        confusion = counts if confusion is None else confusion + counts
    return totals.read()["loss"], confusion


def run(fit: Fit) -> None:
    """Train up to epoch `fit.epochs`, or until a callback stops it; each epoch adds a row to the history."""
    while fit.history.epochs < fit.epochs and (fit.stop is None or fit.batch):
        fit.began = time.perf_counter()
        fit.epoch = fit.history.epochs + 1
        fit.call("on_epoch_begin")
        if fit.batch and fit.checkpoints is not None:  # resumed inside an epoch, whose beginning is in the state
            fit.checkpoints.restore(fit)
        train_epoch(fit, fit.batch)
        logs = fit.totals.read()  # the one wait of an epoch
        if fit.validate is not None:
            logs |= fit.validate()
        logs |= {"epoch": fit.epoch, "lr": fit.lr, "seconds": time.perf_counter() - fit.began}
        fit.history.append(logs)
        fit.call("on_epoch_end", logs)
        fit.batch = 0
        if fit.checkpoints is not None:
            fit.checkpoints.after_epoch(fit)
