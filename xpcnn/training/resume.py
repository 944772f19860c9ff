"""Checkpoints: everything that the rest of a training depends on, so that interruptions do not change its bits.

The order of the images, augmentation and dropout are functions of the seed and the number of the step, so no random
state needs to be kept but these numbers. A checkpoint is a safetensors file; the JSON in its header (format 1):

    format      1
    kind        "checkpoint", to tell it from a model
    digest      BLAKE2b of `content` and of the arrays
    content     text: the JSON of {identity, environment, state}

Arrays in the state are {"array": name in the file}, dicts {"dict": {...}}. Nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formats
from ..backend import lanes, to_device, to_numpy
from ..data import Dataset
from ..data.datasets import gather
from ..errors import ArgumentError, FileFormatError, StateDictError
from ..files import locked, remove_leftovers
from ..layers import config
from ..version import __version__
from .callbacks import Callback, Progress
from .communicator import Communicator, common
from .inputs import loader_of
from .metrics import Totals

if TYPE_CHECKING:
    from .loop import Fit

__all__ = ["FORMAT", "KIND", "Checkpoints", "Signals", "checkpoints_in", "fingerprint", "identity", "same_on_all_ranks"]

FORMAT = 1
KIND = "checkpoint"
KEPT = 2  # the newest, and the one before in case the newest is damaged
SAMPLES = 64  # images that go into the fingerprint of a data set
SHOWN = 3  # differences that an error lists
NAME = re.compile(r"checkpoint-\d{10,}\.safetensors")

log = logging.getLogger("xpcnn")


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoint files in a folder, oldest first."""
    found = Path(folder)
    return sorted(path for path in found.iterdir() if NAME.fullmatch(path.name)) if found.is_dir() else []


# --- what identifies a training ---------------------------------------------------------------------------------


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Describe a data set: its size, shape and classes, and a digest of all labels and of 64 images spread over it."""
    labels = loader_of(dataset, 1).labels
    digest = hashlib.blake2b(np.ascontiguousarray(labels).tobytes(), digest_size=16)
    for index in np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int):
        image = gather(dataset, np.array([index]))
        digest.update(f"{image.dtype}{image.shape}".encode() + image.tobytes())
    return {
        "images": len(dataset),
        "shape": list(dataset.shape),
        "classes": list(dataset.classes),
        "digest": digest.hexdigest(),
    }


def _keeping(fit: Fit) -> list[Callback]:
    """Return the callbacks that keep a state; the others may come and go between two parts of a training."""
    return [callback for callback in fit.callbacks if type(callback).state_dict is not Callback.state_dict]


def _text(value: Any) -> Any:
    """Describe an object by its repr, without the addresses that differ from process to process."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def identity(fit: Fit, epochs: int, validation: Dataset | None) -> dict[str, Any]:
    """Return, as JSON-able data, what a training depends on and its checkpoint does not hold.

    Callbacks belong to it as far as they keep a state. How many workers and ranks, how often it is saved, what is
    printed and the device do not.
    """
    return {"network": config(fit.net)} | _settings(fit, epochs, validation)


def _settings(fit: Fit, epochs: int, validation: Dataset | None) -> dict[str, Any]:
    """Return all of it but the network."""
    classifier, loader = fit.classifier, fit.loader
    weights = classifier.class_weights
    found = {
        "frozen": [name for name, parameter in fit.net.parameters().items() if not parameter.trainable],
        "dtype": classifier.dtype,
        "optimizer": {name: _text(value) for name, value in fit.optimizer.settings().items()},
        "schedule": _text(fit.schedule),
        "ema": None if fit.ema is None else fit.ema.decay,
        "loss": _text(classifier.loss),
        "class_weights": _text(weights) if weights is None or isinstance(weights, str) else to_numpy(weights).tolist(),
        "label_smoothing": classifier.label_smoothing,
        "mean": classifier.mean,
        "std": classifier.std,
        "seed": fit.seed,
        "epochs": epochs,
        "batch_size": loader.batch_size,
        "shuffle": loader.shuffle,
        "drop_last": loader.drop_last,
        "augment": _text(loader.transform),
        "accumulate": fit.accumulate,
        "micro_batch": fit.micro_batch,
        "recompute": fit.recomputing is not None,
        "data": fingerprint(loader.dataset),
        "validation": None if validation is None else fingerprint(validation),
        "callbacks": [
            {"class": type(callback).__name__} | {name: _text(value) for name, value in callback.settings().items()}
            for callback in _keeping(fit)
        ],
    }
    if classifier.sync_batch_norm:
        found["sync_batch_norm"] = True
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples become lists, as they will be when read
    return plain


def same_on_all_ranks(fit: Fit, epochs: int, validation: Dataset | None) -> None:
    """Raise, on all ranks, if one was started with other data, settings or versions than the others.

    Raises:
        ArgumentError: naming the first such rank and what is different there.
    """
    ranks = fit.ranks
    with ranks.agreed():
        network = {name: [*p.data.shape, str(p.data.dtype)] for name, p in fit.net.parameters().items()}
        versions = {name: value for name, value in _environment(fit).items() if name in ("xpcnn", "numpy")}
        own = {"network": network, "device": fit.net.device.kind, **_settings(fit, epochs, validation), **versions}
        digest = hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=16).hexdigest()
    if len(set(ranks.gather(digest))) == 1:
        return
    first, *others = ranks.gather(own)
    for rank, other in enumerate(others, 1):
        if differences := list(_differences(first, other, "{} is {} on rank 0 and {} on rank " + str(rank))):
            raise common(
                ArgumentError(
                    f"all ranks must have the same data and settings: {_listed(differences)}. "
                    "Give every process the same arguments."
                )
            )


def _listed(differences: list[str]) -> str:
    more = f"; and {len(differences) - SHOWN} more" * (len(differences) > SHOWN)
    return "; ".join(differences[:SHOWN]) + more


def _differences(then: Any, now: Any, words: str = "{} was {} and is now {}", path: str = "") -> Iterator[str]:
    """Name the places where two JSON-able values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key), now.get(key), words, f"{path}.{key}" if path else key)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, words, f"{path}[{index}]")
    elif then != now:
        yield words.format(path, str(then)[:80], str(now)[:80])


# --- what a training has come to --------------------------------------------------------------------------------


def _collected(fit: Fit) -> tuple[Totals | None, Any]:
    """Return the totals of an epoch, and the gradients of an accumulation, in whose middle we are, of all ranks."""
    if fit.exchange is not None:
        fit.exchange.level()
    gradients = None
    if fit.batch % fit.accumulate and fit.batch < len(fit.loader):
        gradients = fit.net.flat().grad
        if fit.ranks.size > 1:
            gradients = gradients.copy()
            fit.ranks.sum(gradients)
    return fit.ranks.over(fit.totals) if fit.batch else None, gradients


def _state(fit: Fit, finished: bool) -> dict[str, Any]:
    totals, gradients = _collected(fit)
    return {
        "finished": finished,
        "stop": fit.stop,
        "first": fit.first,
        "last": fit.epochs,
        "epoch": fit.epoch,
        "batch": fit.batch,
        "seconds": time.perf_counter() - fit.began if fit.batch else 0.0,
        "lr": fit.lr,
        "history": dict(fit.history),
        "totals": totals and {"count": totals.count, "loss": totals.loss, "correct": totals.correct},
        "gradients": gradients,
        "net": fit.net.state_dict(),
        "optimizer": fit.optimizer.state_dict(),
        "optimizer_lr": fit.optimizer.lr,
        "ema": None if fit.ema is None else fit.ema.state_dict(),
        "scale": None if fit.scale is None else fit.scale.state_dict(),
        "callbacks": [callback.state_dict() for callback in _keeping(fit)],
    }


def _restore(fit: Fit, state: Mapping[str, Any]) -> None:
    place, first = fit.net.device, not fit.ranks.rank  # sums of all ranks are taken up by the first
    fit.stop, fit.first, fit.epochs = state["stop"], state["first"], state["last"]
    fit.epoch, fit.batch, fit.lr = state["epoch"], state["batch"], state["lr"]
    fit.began = time.perf_counter() - state["seconds"]
    fit.history.clear()
    fit.history.update({name: list(values) for name, values in state["history"].items()})
    if state["totals"] is not None:
        fit.totals = Totals(fit.net.xp)
    if state["totals"] is not None and first:
        fit.totals = Totals(fit.net.xp, state["totals"]["count"])
        fit.totals.loss = to_device(state["totals"]["loss"].copy(), place)
        fit.totals.correct = to_device(state["totals"]["correct"].copy(), place)
    fit.net.load_state_dict(state["net"])
    fit.net.flat().grad[...] = to_device(state["gradients"], place) if first and state["gradients"] is not None else 0.0
    fit.optimizer.load_state_dict(state["optimizer"])
    fit.optimizer.lr = state["optimizer_lr"]
    if fit.ema is not None:
        fit.ema.load_state_dict(state["ema"])
    if fit.scale is not None:
        fit.scale.load_state_dict(state["scale"], place)
    for callback, own in zip(_keeping(fit), deepcopy(state["callbacks"]), strict=True):  # they may change it
        callback.load_state_dict(own)


def _pack(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """Turn a state into JSON-able data; arrays go into `arrays`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(item, f"{path}/{key}" if path else key, arrays) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(item, f"{path}/{index}", arrays) for index, item in enumerate(value)]
    if hasattr(value, "dtype") and hasattr(value, "shape") and np.dtype(value.dtype).kind in "biuf":
        while path in arrays:  # a key with a slash in it
            path += "+"
        arrays[path] = to_numpy(value)
        return {"array": path}
    raise ArgumentError(
        f"a checkpoint holds numbers, text, None, arrays of numbers, lists, and dicts with keys of text; received "
        f"{type(value).__name__} as {path}. Change what state_dict returns."
    )


def _unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if isinstance(value, dict):
        return (
            arrays[value["array"]]
            if "array" in value
            else {key: _unpack(item, arrays) for key, item in value["dict"].items()}
        )
    return value


def _digest(content: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# --- signals ----------------------------------------------------------------------------------------------------


class Signals:
    """Takes note of signals while a training runs, so that it can finish its step; a second one breaks the step off.

    Signals reach the main thread only: in any other one they keep their meaning. A signal to one rank is one to all.
    """

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.received: int | None = None  # by this process

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take note of them inside."""
        main = threading.current_thread() is threading.main_thread()
        taken = [s for s in self.numbers if main and signal.getsignal(s) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, self._note) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        again, self.received = self.received is not None, number
        if again:
            raise KeyboardInterrupt

    def agree(self, ranks: Communicator) -> int | None:
        """Return the signal that any rank has received."""
        return ranks.signal(self.received)

    def after_step(self, fit: Fit) -> None:
        """End the training, where it has no checkpoints, if there was a signal.

        Raises:
            KeyboardInterrupt: on all ranks.
        """
        if self.agree(fit.ranks) is not None:
            if fit.exchange is not None:
                fit.exchange.level()
            raise common(KeyboardInterrupt())


# --- the folder -------------------------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of one training, in a folder that it has for itself.

    Args:
        folder: where they are.
        every: write one every so many batches, or after each "epoch".
    """

    def __init__(self, folder: str | os.PathLike[str], every: int | str = "epoch") -> None:
        if not (every == "epoch" or (isinstance(every, (int, np.integer)) and every >= 1)):
            raise ArgumentError(f'every must be an int of at least 1 (steps), or "epoch"; received {every!r}.')
        self.folder = Path(folder)
        self.every = every
        self.identity: dict[str, Any] = {}
        self.state: dict[str, Any] | None = None  # what was found in the folder, until the training has begun
        self.finished = False  # whether that was the end
        self.good: list[Path] = []  # the files to keep, oldest first
        self.saved = ""  # how far the newest of them goes
        self.signals = Signals(signal.SIGINT, signal.SIGTERM)

    @contextmanager
    def opened(self, fit: Fit, epochs: int, validation: Dataset | None) -> Iterator[None]:
        """Lock the folder, clear it of what a killed process was just writing, and bring `fit` to where it was.

        Inside, SIGINT and SIGTERM let the step at hand be finished. After SIGTERM the program exits. Of several ranks,
        the first has the folder and reads for all.

        Raises:
            ArgumentError: if the newest checkpoint is one of another training.
            FileFormatError: if there are checkpoints, and all of them are damaged.
            FolderInUseError: if another training has the folder.
        """
        ranks = fit.ranks
        with ExitStack() as stack:
            stack.enter_context(self.signals.noted())
            with ranks.agreed():
                self.identity = identity(fit, epochs, validation)
                if not ranks.rank:
                    stack.enter_context(locked(self.folder))
                    remove_leftovers(self.folder)
                    self._find(fit)
            self.state, self.finished, self.good = ranks.broadcast((self.state, self.finished, self.good))
            self.restore(fit)
            yield
        if self.signals.agree(ranks) == signal.SIGTERM:
            if not any(isinstance(callback, Progress) for callback in fit.callbacks):
                log.warning("%s", fit.stop)
            raise common(SystemExit(128 + signal.SIGTERM))

    # --- reading ---

    def _find(self, fit: Fit) -> None:
        """Look for the newest whole checkpoint."""
        paths = checkpoints_in(self.folder)
        for path in reversed(paths):
            try:
                content, arrays = _read(path)
            except FileFormatError as error:
                log.warning("%s Trying the checkpoint before it.", error)
                continue
            self._compare(path, content, fit)
            self.state = state = _unpack(content["state"], arrays)
            self.finished = state["finished"]
            if self.finished and fit.history.epochs not in (state["first"] - 1, 0):
                raise ArgumentError(
                    f"{self.folder} holds a training that is finished; one that begins with epoch "
                    f"{fit.history.epochs + 1} needs another folder."
                )
            self.good = paths[: paths.index(path) + 1][-KEPT:]
            return
        if paths:
            raise FileFormatError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read. Remove them to begin anew."
            )

    def _compare(self, path: Path, content: Mapping[str, Any], fit: Fit) -> None:
        differences = list(_differences(content["identity"], self.identity))
        if differences:
            raise ArgumentError(
                f"{path} is of a training with other settings: {_listed(differences)}. "
                "Give the same settings to go on with it, or another folder to begin anew."
            )
        changed = list(_differences({"ranks": 1} | content["environment"], _environment(fit)))
        if changed:
            log.warning("%s: %s. The last bits may differ from those of a run in one go.", path, "; ".join(changed))

    def restore(self, fit: Fit) -> None:
        """Bring everything to where the checkpoint was written. Nothing happens if there was none."""
        if self.state is None:
            return
        try:
            with fit.net.device:
                _restore(fit, self.state)
            self.saved = fit.where
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StateDictError):
                raise
            raise FileFormatError(f"{self.good[-1]} does not hold what a checkpoint should ({error!r}).") from error

    # --- writing ---

    def farewell(self, fit: Fit) -> str:
        """Say where an interrupted training stands and how to go on."""
        if not self.saved:
            return "interrupted before the first checkpoint: the same call begins anew"
        return f"interrupted; {self.folder} holds all up to {self.saved}, and the same call goes on from there"

    def after_step(self, fit: Fit) -> None:
        """Write a checkpoint if it is time, or if somebody wants to end.

        Raises:
            KeyboardInterrupt: after SIGINT or SIGTERM.
        """
        number = (fit.epoch - 1) * len(fit.loader) + fit.batch
        self._after(fit, self.every != "epoch" and number % int(self.every) == 0)

    def after_epoch(self, fit: Fit) -> None:
        """Do the same, at the end of an epoch."""
        self._after(fit, self.every == "epoch")

    def _after(self, fit: Fit, due: bool) -> None:
        self.state = None
        ended = self.signals.agree(fit.ranks) is not None
        if due or ended:
            self.write(fit)
        if ended:
            raise common(KeyboardInterrupt())

    def write(self, fit: Fit, finished: bool = False) -> None:
        """Write a checkpoint; then remove all but the last two.

        All ranks call it, and the first writes. Weights that are NaN or infinite are not worth keeping: those before
        stay.

        Raises:
            OSError: if it cannot be written, to a full disk for example. Those before stay.
        """
        with fit.net.device:
            arrays: dict[str, np.ndarray] = {}
            found = _state(fit, finished)
            if fit.ranks.rank:
                return
            state = _pack(found, "", arrays)
            weights = [array for name, array in arrays.items() if name.startswith("net/")]
        if not all(np.isfinite(array).all() for array in weights):
            return
        content = json.dumps({"identity": self.identity, "environment": _environment(fit), "state": state})
        meta = {"format": FORMAT, "kind": KIND, "digest": _digest(content, arrays), "content": content}
        number = (fit.epoch - 1) * len(fit.loader) + (fit.batch or len(fit.loader))
        path = self.folder / f"checkpoint-{number:010d}.safetensors"
        formats.write(path, meta, arrays)
        self.saved = fit.where
        self.good = [*(good for good in self.good if good != path), path][-KEPT:]
        for old in checkpoints_in(self.folder):
            if old not in self.good:
                old.unlink(missing_ok=True)


def _environment(fit: Fit) -> dict[str, Any]:
    return {
        "device": str(fit.net.device),
        "lanes": lanes(),  # which decide the bits, however many threads there are
        "ranks": fit.ranks.size,
        "xpcnn": __version__,
        "numpy": np.__version__,
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content and the arrays of a checkpoint.

    Raises:
        FileFormatError: if it is damaged, or none.
    """
    meta, arrays = formats.read(path)
    if meta.get("kind") != KIND or meta.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint of format {FORMAT}.")
    text = str(meta.get("content"))
    if meta.get("digest") != _digest(text, arrays):
        raise FileFormatError(f"{path} is damaged: its digest is not that of its content.")
    content: dict[str, Any] = json.loads(text)
    return content, arrays
