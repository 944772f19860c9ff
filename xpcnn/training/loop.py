"""The training loop. Nothing in a step waits for the device: sums stay there and are read once an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..backend import Array, to_numpy
from ..data import Loader
from ..layers import Layer, Step, auxiliaries
from ..optim import Optimizer
from .communicator import Communicator, part_of
from .ema import EMA
from .history import History
from .memory import TrainingMemory
from .metrics import Totals, confusion_counts
from .parallel import Exchange
from .precision import LossScale

if TYPE_CHECKING:
    from .callbacks import Callback
    from .classifier import Classifier
    from .resume import Checkpoints, Signals

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
    ranks: Communicator = field(default_factory=Communicator)  # the processes that share each batch
    exchange: Exchange | None = None  # makes the gradients theirs, where there are several
    signals: Signals | None = None  # by which they end together, where there are no checkpoints
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
        if self.exchange is not None:
            return self.exchange.body
        return self.net if self.recomputing is None else self.recomputing

    @property
    def where(self) -> str:
        """How far it has come, for people."""
        return f"epoch {self.epoch}" + (f", batch {self.batch} of {len(self.loader)}" if self.batch else "")

    def part(self, labels: Array, t: Array) -> float | Array:
        """Return the weight of a piece of a batch in the loss of the whole, so that the sum is the batch's own loss."""
        if len(labels) in (0, len(t)):
            return float(len(labels) > 0)
        return len(labels) / len(t) if self.weigh is None else self.weigh(labels) / self.weigh(t)

    def weighed(self, gradient: Array, weight: float | Array) -> Array:
        """Return a gradient of the loss times a weight; in mixed precision times the loss scale, in float16."""
        gradient = _times(gradient, weight).astype(gradient.dtype, copy=False)
        return gradient if self.scale is None else self.scale.apply(gradient, self.x.dtype)

    def call(self, event: str, *args: Any) -> None:
        """Tell every callback; those that print or write live on rank 0 only."""
        for callback in self.callbacks:
            if not (self.ranks.rank and callback.writes):
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
        complete = fit.batch % k == 0 or fit.batch == steps
        add_gradients(fit, images, t, (fit.epoch - 1) * steps + index, share, complete)
        if complete:
            if fit.exchange is not None:
                fit.exchange.finish()
            optimizer.step(net, factor, fit.scale)  # updates, then clears the gradients
            if fit.ema is not None:
                fit.ema.update(net)
        fit.call("on_step_end")
        if fit.checkpoints is not None:
            fit.checkpoints.after_step(fit)
        elif fit.signals is not None:
            fit.signals.after_step(fit)


def add_gradients(fit: Fit, images: Array, t: Array, number: int, share: float, complete: bool = True) -> None:
    """Add the gradients of batch `number` times its share in the update: in one piece, or in micro-batches.

    Args:
        fit: the training.
        images: those of the batch that are this rank's.
        t: labels of the whole batch.
        number: of the batch, over all epochs.
        share: of the batch in its update.
        complete: whether no other batch belongs to that update.
    """
    ranks, exchange = fit.ranks, fit.exchange
    first, last = ranks.share(len(t))
    own, size = t[first:last], fit.micro_batch or len(t)
    most, count = (
        -(-n // (ranks.size * size)) for n in (fit.loader.batch_size, len(t))
    )  # pieces, equally many for all
    losses = []
    for index in range(count):
        start, stop = part_of(len(own), index, count)
        labels = own[start:stop]
        fit.step = Step(fit.seed, (number * ranks.size + ranks.rank) * most + index, need_dx=False)
        if exchange is not None:
            exchange.begin(len(t), index, count, complete)
        if len(labels):
            fit.x = fit.enter(images[start:stop])
            weight = fit.part(labels, t)
            exact = 1.0 if fit.weigh is None else weight * (len(t) / len(labels))  # class weights count in the mean
            forward_backward(fit, labels, weight * share, exact)
            losses.append(_times(fit.batch_loss, fit.part(labels, own)))
        elif exchange is not None and exchange.pads:
            fit.x = fit.enter(fit.net.xp.zeros((1, *images.shape[1:]), images.dtype))
            forward_backward(fit, t[:1], 0.0, None)
    fit.batch_loss = sum(losses[1:], losses[0]) if losses else fit.net.xp.zeros(())


def _times(value: Array, weight: float | Array) -> Array:
    """Multiply, unless by one."""
    return value if isinstance(weight, float) and weight == 1.0 else value * weight


def forward_backward(fit: Fit, t: Array, weight: float | Array, exact: float | Array | None = 1.0) -> None:
    """Add the gradients of `fit.x` times a weight. What forward kept is gone on return, before the next forward.

    The loss times `exact` goes into the totals; None is for images that do not count.
    """
    outputs, ctx = fit.body.forward(fit.x, fit.step or True)
    logits = outputs.astype(fit.net.dtype, copy=False)  # float32 in mixed precision
    fit.batch_loss, dlogits = fit.loss(logits, t)
    if exact is not None:
        fit.totals.add(_times(fit.batch_loss, exact), logits, t)
        fit.call("on_loss")

    for head in auxiliaries(ctx):  # side classifiers learn the same labels
        side: Array = head.logits
        head.gradient = fit.weighed(fit.loss(side.astype(logits.dtype, copy=False), t)[1], weight)
    fit.body.backward(fit.weighed(dlogits, weight), ctx, need_dx=False)


def evaluate_batches(
    net: Layer,
    batches: Iterable[tuple[Array, Array]],
    enter: Callable[[Array], Array],
    loss: Loss,
    ranks: Communicator | None = None,
) -> tuple[float, Array]:
    """Return the mean loss per image and the confusion matrix (K, K), rows = truth; of the images of all `ranks`."""
    totals, confusion = Totals(net.xp), None
    for images, t in batches:
        outputs, _ = net.forward(enter(images), False)
        logits = outputs.astype(net.dtype, copy=False)
        totals.add(loss(logits, t)[0], logits, t)
        counts = confusion_counts(logits, t)
        confusion = counts if confusion is None else confusion + counts
    if ranks is not None and ranks.size > 1:
        totals = ranks.over(totals)
        found = ranks.gather(None if confusion is None else to_numpy(confusion))
        confusion = sum(part for part in found if part is not None)
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
        fit.totals = fit.ranks.over(fit.totals)
        if fit.exchange is not None:
            fit.exchange.level()
            fit.exchange.check(f"epoch {fit.epoch}")
        logs = fit.totals.read()  # the one wait of an epoch
        if fit.validate is not None:
            logs |= fit.validate()
        logs |= {"epoch": fit.epoch, "lr": fit.lr, "seconds": time.perf_counter() - fit.began}
        logs = fit.ranks.broadcast(logs)
        fit.history.append(logs)
        fit.call("on_epoch_end", logs)
        fit.stop = next((reason for reason in fit.ranks.gather(fit.stop) if reason is not None), None)
        fit.batch = 0
        if fit.checkpoints is not None:
            fit.checkpoints.after_epoch(fit)
