"""The training loop. Nothing in a step waits for the device: sums stay there and are read once an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..backend import Array
from ..data import Loader
from ..layers import Layer, Step, auxiliaries
from ..optim import EMA, Optimizer
from .history import History
from .metrics import Totals, confusion_counts

if TYPE_CHECKING:
    from .callbacks import Callback
    from .classifier import Classifier

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
    schedule: Any = None
    ema: EMA | None = None
    # how far it has come
    epoch: int = 0
    lr: float = 0.0  # of the current update
    batch: int = 0  # number of the current batch in its epoch, from 1
    totals: Totals = field(init=False)
    x: Array = None  # the current batch as the network sees it
    step: Step | None = None
    batch_loss: Array = None  # on the device: reading it waits
    stop: str | None = None

    def call(self, event: str, *args: Any) -> None:
        """Tell every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)

    def learning_rate(self, update: int, updates: int) -> float:
        """Return the learning rate of one of the epoch's updates (counted from 0)."""
        if self.schedule is None:
            return self.optimizer.lr
        if self.schedule.every == "epoch":
            return self.optimizer.lr * float(self.schedule(self.epoch - 1, self.epochs))
        return self.optimizer.lr * float(self.schedule((self.epoch - 1) * updates + update, self.epochs * updates))


def train_epoch(fit: Fit) -> None:
    """Show every batch to the network once. `accumulate` batches make one update, with the mean of their gradients."""
    net, optimizer, steps, k = fit.net, fit.optimizer, len(fit.loader), fit.accumulate
    fit.totals = Totals(net.xp)
    for index, (images, t) in enumerate(fit.loader.epoch(fit.epoch - 1)):
        fit.batch = index + 1
        fit.lr = fit.learning_rate(update=index // k, updates=-(-steps // k))
        fit.x = fit.enter(images)
        fit.step = Step(fit.seed, (fit.epoch - 1) * steps + index, need_dx=False)

        logits, ctx = net.forward(fit.x, fit.step)
        fit.batch_loss, dlogits = fit.loss(logits, t)
        fit.totals.add(fit.batch_loss, logits, t)
        fit.call("on_loss")

        share = 1.0 / min(k, steps - index // k * k)  # of this batch in its update; the last group may be smaller
        for head in auxiliaries(ctx):  # side classifiers learn the same labels
            head.gradient = fit.loss(head.logits, t)[1] * share
        net.backward(dlogits if share == 1.0 else dlogits * share, ctx, need_dx=False)

        if fit.batch % k == 0 or fit.batch == steps:
            optimizer.step(net, fit.lr)  # updates, then clears the gradients
            if fit.ema is not None:
                fit.ema.update(net)
        fit.call("on_step_end")


def evaluate_batches(
    net: Layer, batches: Iterable[tuple[Array, Array]], enter: Callable[[Array], Array], loss: Loss
) -> tuple[float, Array]:
    """Return the mean loss per image and the confusion matrix (K, K), rows = truth."""
    totals, confusion = Totals(net.xp), None
    for images, t in batches:
        logits, _ = net.forward(enter(images), False)
        totals.add(loss(logits, t)[0], logits, t)
        counts = confusion_counts(logits, t)
        confusion = counts if confusion is None else confusion + counts
    return totals.read()["loss"], confusion


def run(fit: Fit) -> None:
    """Train up to epoch `fit.epochs`, or until a callback stops it; each epoch adds a row to the history."""
    while fit.history.epochs < fit.epochs and fit.stop is None:
        begin = time.perf_counter()
        fit.epoch = fit.history.epochs + 1
        fit.call("on_epoch_begin")
        train_epoch(fit)
        logs = fit.totals.read()  # the one wait of an epoch
        if fit.validate is not None:
            logs |= fit.validate()
        logs |= {"epoch": fit.epoch, "lr": fit.lr, "seconds": time.perf_counter() - begin}
        fit.history.append(logs)
        fit.call("on_epoch_end", logs)
