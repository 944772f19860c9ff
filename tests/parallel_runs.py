"""Trainings in several processes for test_parallel.py: mpiexec -n P python parallel_runs.py NAME ARGUMENT ..."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from toys import norm_net, quarters, small_classifier, small_net

from xpcnn import (
    SGD,
    Adam,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    threads,
)
from xpcnn.data import Compose, Mixup, RandomAffine, RandomHorizontalFlip
from xpcnn.schedule import Cosine, OneCycle
from xpcnn.training import Callback, CSVLog, EarlyStopping, SaveBest

DATA = quarters(43)  # in batches of 10 the last has 3 images: of four ranks one has none
TEST = quarters(11, seed=1)
FIFTY = {"epochs": 10, "batch_size": 10, "verbose": False, "check_leak": False}


def deep_net():
    """Batch norm inside of branches, in front of a ReLU, and of features.

    Convolutions before it have no bias: its gradient is rounding error, of which Adam makes steps of full size.
    """

    def conv(channels, size):
        return Conv2d(channels, size, padding=size // 2, bias=False)

    branches = Concat(Sequential(conv(3, 1), BatchNorm2d(), ReLU()), Sequential(conv(2, 3), BatchNorm2d()))
    block = Residual(Sequential(conv(5, 3), BatchNorm2d(), ReLU(), conv(5, 3), BatchNorm2d()), activation=ReLU())
    features = Sequential(conv(4, 3), BatchNorm2d(), ReLU(), MaxPool2d(2), branches, block, AvgPool2d(2))
    return Sequential(features=features, flatten=Flatten(), norm=BatchNorm1d(), head=Dense(3))


def equal(name, parallel, **more):
    """Train as one of several settings that must not depend on the number of ranks; return the classifier."""
    net, given, options = small_net(), {"optimizer": SGD(0.1, momentum=0.9)}, {}
    if name == "weighted":
        given = {
            "optimizer": Adam(1e-2),
            "class_weights": [0.3, 2.0, 1.0],
            "label_smoothing": 0.1,
            "schedule": OneCycle(),
        }
        options = {"augment": Compose([RandomAffine(10), RandomHorizontalFlip()]), "workers": 2, "validation": TEST}
    if name == "mixed labels":
        given |= {"ema": 0.9, "normalize": "data", "class_weights": "balanced"}
        options = {"augment": Mixup(0.2, 3), "accumulate": 2, "micro_batch": 2, "validation": 0.2}
    if name == "synchronised":
        net, given = deep_net(), {"optimizer": Adam(1e-2), "sync_batch_norm": True, "schedule": Cosine()}
        options = {"validation": TEST}
    if name == "synchronised, accumulated":
        net, given, options = deep_net(), {"sync_batch_norm": True}, {"accumulate": 2}
    if name == "frozen":
        net = Sequential(Conv2d(4, 3), BatchNorm2d(), ReLU(), Conv2d(4, 3), BatchNorm2d(), ReLU(), Flatten(), Dense(3))
        given["optimizer"] = SGD(0.1, clip_norm=0.5)
    if name == "few":
        options = {"batch_size": 3, "epochs": 4, "validation": quarters(3, seed=1)}
    clf = small_classifier(net, seed=3, dtype="float64", parallel=parallel, **given)
    if name == "frozen":
        clf.build((1, 8, 8))
        clf.net.freeze("0")
        clf.net.freeze("1")
        clf.net.freeze("4")
    clf.fit(DATA, **FIFTY | options | more)
    return clf


EQUAL = ("plain", "weighted", "mixed labels", "synchronised", "synchronised, accumulated", "frozen", "few")


def write(clf, folder, name):
    """Leave weights and history, from rank 0, and check that `save` and files are its business alone."""
    if not clf.rank:
        arrays = dict(clf.net.state_dict())
        if clf.ema is not None:
            arrays |= clf.ema.state_dict()
        np.savez(Path(folder, f"{name}.npz"), **arrays)
        Path(folder, f"{name}.json").write_text(json.dumps(clf.history))


def all_equal(folder):
    for name in EQUAL:
        write(equal(name, "mpi"), folder, name)


def per_rank(folder):
    """Train with batch norm per rank and dropout, twice; rank 0 leaves what it has."""
    for number in ("first", "second"):
        net = Sequential(Conv2d(4, 3), BatchNorm2d(), ReLU(), Flatten(), Dropout(0.2), Dense(3))
        clf = small_classifier(net, parallel="mpi")
        clf.fit(DATA, epochs=4, batch_size=20, validation=TEST, verbose=False)
        write(clf, folder, number)


class Ends(Callback):
    """Ends a rank at a step, counted over all epochs: by an error or a signal to itself."""

    def __init__(self, step, how, rank):
        self.step, self.how, self.rank = step, how, rank

    def on_step_end(self, fit):
        if (fit.epoch - 1) * len(fit.loader) + fit.batch == self.step and fit.ranks.rank == self.rank:
            if self.how == "error":
                raise RuntimeError("this rank has had enough")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[self.how])


def resumable(folder, how="", step="0", rank="0"):
    """Train with checkpoints and end at a step, or go on from there; leave the result beside them."""
    clf = small_classifier(
        deep_net(), seed=3, dtype="float64", sync_batch_norm=True, optimizer=Adam(1e-2), parallel="mpi"
    )
    callbacks = [EarlyStopping("val_loss", 20), Ends(int(step), how, int(rank))]
    options = FIFTY | {"verbose": "lines", "validation": TEST, "accumulate": 2, "augment": RandomHorizontalFlip()}
    clf.fit(DATA, callbacks=callbacks, checkpoint=Path(folder, "checkpoints"), every=1, **options)
    write(clf, folder, "result")


def stops_early(folder):
    """Stop early, and say on every rank where, and which weights are there."""
    clf = small_classifier(optimizer=SGD(0.0), parallel="mpi")
    callbacks = [
        EarlyStopping("val_accuracy", 2),
        SaveBest(Path(folder, "best.safetensors")),
        CSVLog(Path(folder, "log.csv")),
    ]
    clf.fit(DATA, epochs=9, validation=TEST, verbose=False, callbacks=callbacks)
    Path(folder, f"rank{clf.rank}").write_text(f"{clf.history['epoch']} {clf.history['seconds']}")


def one_has_enough(folder):
    """One rank wants to stop, after the second epoch."""

    class Enough(Callback):
        def on_epoch_end(self, fit, logs):
            if fit.ranks.rank == 1 and fit.epoch == 2:
                fit.stop = "rank 1 has seen enough"

    clf = small_classifier(parallel="mpi")
    clf.fit(DATA, epochs=9, verbose=False, callbacks=[Enough()])
    Path(folder, f"rank{clf.rank}").write_text(str(clf.history["epoch"]))


def wrong(folder, what):
    """Do something that all ranks must refuse, each with the same error; or fail on one alone."""
    clf = small_classifier(parallel="mpi", seed=1 if what == "seed" and os.environ["PMI_RANK"] == "1" else 0)
    rank, options, data = clf.rank, {}, DATA
    if what == "data" and rank == 1:
        data = quarters(44)
    if what == "missing" and rank == 1:
        data = None
    if what == "lock":
        options["checkpoint"] = folder

    class Changes(Callback):
        def on_step_end(self, fit):
            if fit.ranks.rank == 1:
                fit.net["0"].weight.data[0] += 1e-3

    if what == "drift":
        options["callbacks"] = [Changes()]
    clf.fit(data, epochs=2, verbose="lines", **options)


def about(folder):
    """Say how many threads each rank has."""
    clf = small_classifier(parallel="mpi")
    Path(folder, f"rank{clf.rank}").write_text(str(threads()))


def on_device(folder):
    """Train on a (simulated) GPU, by way of host memory."""
    clf = small_classifier(norm_net(), device="cuda:0", parallel="mpi", sync_batch_norm=True)
    clf.fit(DATA, epochs=1, batch_size=20, verbose=False)
    write(clf, folder, "device")


def one_fails(folder, where):
    """A rank raises, while the other is busy for a minute; or all raise."""
    clf = small_classifier(parallel="mpi")

    class Fails(Callback):
        def on_step_end(self, fit):
            if where == "all" or fit.ranks.rank == int(where):
                raise ValueError("a mistake in a callback")
            time.sleep(60)

    if where == "outside of fit":
        if clf.rank:
            raise ValueError("a mistake in the program")
        time.sleep(60)
    clf.fit(DATA, epochs=2, verbose=False, callbacks=[Fails()])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
