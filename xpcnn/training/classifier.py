"""`Classifier`: a network together with everything needed to train it on images and to use it afterwards."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Array, Device, single_threaded_blas, to_device, to_numpy
from ..data import ArrayDataset, Dataset, Subset, mean_std, split
from ..data.leakage import leak_warning
from ..errors import ArgumentError, DataError, ShapeError
from ..functional.activation import softmax_forward
from ..functional.loss import mse_loss, softmax_cross_entropy
from ..layers import Layer
from ..layers.base import Shape
from ..optim import Adam, Optimizer
from .callbacks import Callback, Progress, StopOnNaN
from .communicator import Communicator, communicator
from .ema import EMA
from .history import History
from .inputs import Entrance, as_images, dataset_of, image_options, is_dataset, loader_of, named, numbers, read_files
from .loop import Fit, Loss, evaluate_batches, run
from .memory import Demand, TrainingMemory, bytes_of, choose, queued, recomputing
from .metrics import Report, one_hot
from .parallel import Exchange
from .precision import MIXED, LossScale
from .resume import Checkpoints, Signals, same_on_all_ranks

if TYPE_CHECKING:
    from ..inspection.summary import Summary

__all__ = ["Classifier"]

log = logging.getLogger("xpcnn")

LOSSES = ("softmax_cross_entropy", "mse")
_swapping = threading.RLock()  # while a moving average is in the place of the weights


class Classifier:
    """A network that tells classes of images apart, with scikit-learn's verbs.

    Labels are class numbers 0..K-1 or class names. Names come from `classes`, from string labels or from the data set;
    if there are any, `predict` answers with names, otherwise with numbers. Names that are just the numbers,
    "0", "1", ..., count as none: digits are predicted as ints.

    Args:
        net: the network; its last layer has one output per class and is no softmax. It need not be built.
        classes: class names in the order of the outputs, or how many there are, or None: the data say it.
        optimizer: Adam(1e-3) if not given.
        loss: "softmax_cross_entropy"; "mse" against one-hot labels; or a function (outputs (K, N), labels (N,) or
            (N, K)) -> (mean loss (), its gradient (K, N)).
        device: "cpu", "cuda:0", ... or "auto": a GPU if there is one.
        seed: of the initial weights, the order of the images, the augmentation, the dropout and the validation split.
        schedule: learning-rate schedule of xpcnn.schedule, multiplied with the optimizer's `lr`.
        normalize: None; "data" for the mean and standard deviation per channel of the training images; or (mean, std),
            numbers or one per channel, in the scale that uint8 pixels have after division by 255.
        class_weights: None; "balanced" for N / (K * count of the class); or (K,) numbers. Only in training.
        label_smoothing: part of each label spread over all classes, 0 to 1. Only in training.
        ema: decay of a moving average of the weights, or an xpcnn.EMA; the average is what is evaluated,
            predicted with and saved.
        dtype: of the weights and of all arithmetic; or "mixed_float16" for mixed precision: float32 weights, float16
            arithmetic (see xpcnn.LossScale), which is for GPUs: NumPy computes the same, slowly.
        parallel: "mpi" for a program that mpiexec has started several times: the processes share every batch of `fit`
            (see docs/parallel.md). It needs mpi4py (extra "mpi"); without mpiexec it is one process.
        sync_batch_norm: whether batch norm, in such a training, uses the statistics of the images of all processes; if
            not, each those of its own.

    Attributes:
        net, optimizer, loss, ...: as given.
        classes_: list of K names once known ("0", "1", ... where there are none).
        input_shape: (C, H, W) once known.
        mean, std: the normalisation in use, a tuple of C floats each, or None.
        history: the `History` of all calls of fit.
        memory: the `TrainingMemory` that the last call of fit settled for, None without a memory_limit.
    """

    def __init__(
        self,
        net: Layer,
        classes: int | Sequence[str] | None = None,
        optimizer: Optimizer | None = None,
        loss: str | Loss = "softmax_cross_entropy",
        device: str | Device = "auto",
        seed: int = 0,
        schedule: Any = None,
        normalize: str | tuple[Any, Any] | None = None,
        class_weights: str | Sequence[float] | Array | None = None,
        label_smoothing: float = 0.0,
        ema: float | EMA | None = None,
        dtype: str = "float32",
        parallel: str | Communicator | None = None,
        sync_batch_norm: bool = False,
    ) -> None:
        if not isinstance(net, Layer):
            raise ArgumentError(f"net must be a layer, such as Sequential(...); received {type(net).__name__}.")
        self.net = net
        self.classes = _check_classes(classes)
        self.optimizer = Adam(1e-3) if optimizer is None else optimizer
        self.loss = loss
        self.device = device
        self.seed = seed
        self.schedule = schedule
        self.normalize = normalize
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.ema = EMA(ema) if isinstance(ema, float) else ema
        self.dtype = dtype
        self.parallel = parallel
        self.sync_batch_norm = sync_batch_norm
        self.classes_: list[str] | None = None
        self.input_shape: Shape | None = None
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        self.image: dict[str, Any] | None = None  # how image files are read: size, mode, fit
        self.history = History()
        self.memory: TrainingMemory | None = None
        self.scale = LossScale() if dtype == MIXED else None
        self._check_options()

    @property
    def rank(self) -> int:
        """The number of this process among those that train in parallel; 0 for the first, and for one by itself."""
        return communicator(self.parallel).rank

    def _check_options(self) -> None:
        communicator(self.parallel)
        if not callable(self.loss) and self.loss not in LOSSES:
            raise ArgumentError(
                f"loss must be {' or '.join(map(repr, LOSSES))}, or a function; received {self.loss!r}."
            )
        if self.loss == "softmax_cross_entropy" and self.net.gives_probabilities:
            raise ArgumentError(
                'the network ends with Softmax, but loss="softmax_cross_entropy" applies softmax itself. '
                "Leave the last layer out (an ONNX file: onnx.load(path, logits=True)): predict_proba gives "
                "probabilities all the same."
            )
        if self.loss != "softmax_cross_entropy" and (self.class_weights is not None or self.label_smoothing):
            raise ArgumentError('class_weights and label_smoothing need loss="softmax_cross_entropy".')
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise ArgumentError(
                f'class_weights must be None, "balanced" or K numbers; received {self.class_weights!r}.'
            )
        pair = isinstance(self.normalize, (tuple, list)) and len(self.normalize) == 2
        if not (self.normalize is None or pair or (isinstance(self.normalize, str) and self.normalize == "data")):
            raise ArgumentError(f'normalize must be None, "data" or a pair (mean, std); received {self.normalize!r}.')

    # --- getting ready ------------------------------------------------------------------------------------------

    def build(self, input_shape: Shape, names: Sequence[str] | None = None) -> None:
        """Build the network for images (C, H, W) and settle the classes. `fit` does it by itself.

        Call it to evaluate or predict with a network that has its weights already. Calling it again checks that shape
        and names are the same.

        Args:
            input_shape: (C, H, W).
            names: class names that the data bring, if any.

        Raises:
            ShapeError: if a layer does not fit the shape, or the network has no outputs (K,).
            ArgumentError: if the network does not have one output per class.
            DataError: if the shape or the names are not those of the first time.
        """
        shape = tuple(int(n) for n in input_shape)
        if self.classes_ is None:
            place = communicator(self.parallel).place(self.device)
            kind = "float32" if self.scale is not None else self.dtype
            output = self.net.build(shape, seed=self.seed, dtype=kind, device=place)
            self.net.to(place)
            if self.scale is not None and self.net.dtype != kind:
                raise ArgumentError(
                    f'dtype="{MIXED}" needs a network built in float32; this one is {self.net.dtype}. '
                    'Call net.to(dtype="float32") first.'
                )
            self.classes_ = self._settle_classes(output, names)
            self.input_shape = shape
            self.image = image_options(None, shape)
            if isinstance(self.normalize, (tuple, list)):
                self.mean, self.std = (_per_channel(value, shape[0]) for value in self.normalize)
                if min(self.std) <= 0:
                    raise ArgumentError(f"normalize: every std must be above 0; received {list(self.std)}.")
        elif shape != self.input_shape:
            raise DataError(f"the network takes images of shape {self.input_shape}; received {shape}.")
        known = named(self.classes_)
        if names is not None and known is not None and list(names) != known:
            raise DataError(f"the classes are {known}, in this order; received data with {list(names)}.")

    def _settle_classes(self, output: Shape, names: Sequence[str] | None) -> list[str]:
        if len(output) != 1:
            raise ShapeError(
                f"a classifier's network has one output per class; this one has outputs of shape {output}. "
                "End it with Flatten() and Dense(classes)."
            )
        if isinstance(self.classes, list):
            settled = self.classes
        elif names is not None:
            settled = list(names)
        else:
            settled = numbers(output[0] if self.classes is None else self.classes)
        for count in (len(settled), self.classes):
            if isinstance(count, int) and count != output[0]:
                raise ArgumentError(
                    f"there are {count} classes, but the network has {output[0]} outputs. End it with Dense({count})."
                )
        if len(settled) < 2:
            raise ArgumentError(
                "a classifier needs at least 2 classes; this network has 1 output. End it with Dense(2)."
            )
        return settled

    def _dataset(self, data: Any, y: Any = None) -> Dataset:
        """Return a data set whose shape, classes and labels fit the network, which is built if it is not."""
        known = self.classes_ if self.classes_ is not None else self.classes
        dataset = dataset_of(data, y, known if isinstance(known, list) else None)
        self.build(dataset.shape, named(dataset.classes))
        assert self.classes_ is not None
        highest = int(np.max(dataset.labels))
        if highest >= len(self.classes_):
            raise DataError(
                f"labels must lie in 0..{len(self.classes_) - 1}, as the network has {len(self.classes_)} outputs; "
                f"received {highest}."
            )
        return dataset

    def _ready(self) -> tuple[Shape, list[str]]:
        if self.input_shape is None or self.classes_ is None:
            raise ArgumentError(
                "the classifier has not been trained: call fit(...), or load(...) a saved one. "
                "If the network has its weights already, call build(input_shape)."
            )
        return self.input_shape, self.classes_

    @property
    def _entrance(self) -> Entrance:
        return Entrance(np.dtype("float16") if self.scale is not None else self.net.dtype, self.mean, self.std)

    # --- training -----------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        y: Any = None,
        *,
        epochs: int = 10,
        batch_size: int = 32,
        validation: Any = None,
        shuffle: bool = True,
        augment: Callable[..., Any] | None = None,
        callbacks: Sequence[Callback] = (),
        accumulate: int = 1,
        micro_batch: int | None = None,
        memory_limit: int | str | None = None,
        workers: int = 0,
        verbose: bool | str = "auto",
        drop_last: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | str = "epoch",
        check_leak: bool = True,
    ) -> History:
        """Train the network. Called again it goes on, with the next epoch number.

        Ctrl-C ends it in good order: weights and history stay as far as they have come.

        With `checkpoint` nothing is lost however it ends: the same call, in the same program or another process, goes
        on from the last checkpoint in that folder and ends in the same bits as a training in one go (on the same kind
        of device, with as many threads; wall times aside). What the classifier was before, start weights too, gives way
        to what is in the checkpoint. SIGINT (Ctrl-C) and SIGTERM then finish the step and write a checkpoint, a second
        one breaks the step off; after SIGTERM the program exits with code 143.

        Args:
            data: a data set, a pair (x, y), or images x: (N, C, H, W), or (N, H, W) for one channel; uint8, which is
                divided by 255, or floats, which are taken as they are.
            y: labels of x: class numbers or names (N,), or one-hot or soft labels (N, K).
            epochs: how many more times to go through the data.
            batch_size: images per step, of all processes together.
            validation: data looked at after each epoch: a data set, a pair (x, y), or the fraction of `data` to hold
                out (stratified, chosen by the seed).
            shuffle: a new order every epoch.
            augment: f(image, rng) -> image, or a batch transform; see xpcnn.data.
            callbacks: see xpcnn.training.callbacks. `StopOnNaN` is always on.
            accumulate: batches per update; their gradients are averaged.
            micro_batch: most images that go through the network at once. A batch is cut into such pieces, whose
                gradients add up to those of the whole batch (a loss function of your own must be a mean over images).
                But batch norm sees the statistics of a piece, and dropout draws other masks than for the whole batch.
            memory_limit: bytes, or a text such as "2GiB", that weights, optimizer and a training step may take in all
                (on a GPU, of its memory). Where that is not enough, the batch is cut into micro-batches or activations
                are computed again in backward, which gives the same bits and takes a third longer; what was chosen is
                printed and kept in `memory`. With batch norm that comes before micro-batches below 16 images, else
                after all of them. The data set, and what callbacks keep, come on top.
            workers: threads that prepare batches ahead.
            verbose: "auto" (a progress bar in a terminal, a line an epoch in a log), "bar", "lines", or False.
            drop_last: leave out a last batch that is not full.
            checkpoint: folder for checkpoints, of which the last two are kept. It belongs to this training: to begin
                another one, remove it or name another. The last checkpoint holds the end: the same call then returns at
                once.
            every: write a checkpoint every so many batches, or after each "epoch".
            check_leak: before the first epoch, warn once if the validation data look leaked, by a sample of both sides
                (xpcnn.data.inspect looks at all); it takes a second or two at most and never fails.

        Returns:
            The history of all epochs so far: lists epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds.
            Training loss and accuracy are averages while the weights change, with augmentation and dropout on.

        Raises:
            ArgumentError: if nothing fits into memory_limit; it says how much is needed. If the checkpoint is of a
                training with other settings or data, or a process of a parallel training has others; it names them.
            DataError: for data that cannot be used.
            FileFormatError: if there are checkpoints and none of them can be read. A damaged one is passed over, with
                a warning, for the one before.
            FolderInUseError: if another training uses the folder.
            NonFiniteError: if the loss becomes NaN or infinite.
        """
        ranks = communicator(self.parallel)
        with ranks.guarded(), ranks.agreed():
            limit = None if memory_limit is None else bytes_of(memory_limit)
            least = {
                "epochs": epochs,
                "accumulate": accumulate,
                "micro_batch": 1 if micro_batch is None else micro_batch,
            }
            for name, value in least.items():
                if not isinstance(value, (int, np.integer)) or value < 1:
                    raise ArgumentError(f"{name} must be an int of at least 1; received {value!r}.")
            keeper = None if checkpoint is None else Checkpoints(checkpoint, every)
            train, held_out = self._training_data(data, y, validation)
            if check_leak and not ranks.rank and held_out is not None and not self.history.epochs:
                leak = leak_warning(train, held_out)
                if leak:
                    log.warning("xpcnn: %s", leak)
            loader = loader_of(
                train,
                batch_size,
                shuffle=shuffle,
                seed=self.seed,
                transform=augment,
                workers=workers,
                device=self.net.device,
                drop_last=drop_last,
                share=ranks.share if ranks.size > 1 else None,
            )
            weights = self._resolve_class_weights(train)
        with ranks.guarded():
            body, self.memory = None, None
            if limit is not None:
                demand = Demand(
                    self.net,
                    self._ready()[0],
                    -(-min(batch_size, len(train)) // ranks.size),
                    self.optimizer,
                    self.ema is not None,
                    queued(loader),
                    self._entrance.dtype,
                )
                self.memory, body = self._within(limit, demand, micro_batch, ranks)
                micro_batch = self.memory.micro_batch
            at_once = batch_size if micro_batch is None else min(int(micro_batch), batch_size)
            default = [] if any(isinstance(callback, StopOnNaN) for callback in callbacks) else [StopOnNaN()]
            silent = verbose is False or ranks.rank
            progress = [] if silent else [Progress("auto" if verbose is True else str(verbose))]
            fit = Fit(
                classifier=self,
                net=self.net,
                optimizer=self.optimizer,
                loss=self._loss(weights, self.label_smoothing),
                enter=self._entrance,
                loader=loader,
                validate=None if held_out is None else partial(self._validate, held_out, at_once, ranks),
                history=self.history,
                callbacks=[*default, *callbacks, *progress],
                epochs=self.history.epochs + int(epochs),
                seed=self.seed,
                accumulate=int(accumulate),
                micro_batch=at_once,
                weigh=_weigher(weights),
                recomputing=body if body is not self.net else None,
                memory=self.memory,
                schedule=self.schedule,
                ema=self.ema,
                scale=self.scale,
                checkpoints=keeper,
                ranks=ranks,
                first=self.history.epochs + 1,
            )
            if ranks.size > 1:
                same_on_all_ranks(fit, int(epochs), held_out)
                with ranks.agreed():
                    fit.exchange = Exchange(self.net, fit.body, ranks, self.sync_batch_norm)
                fit.exchange.spread()
            if keeper is None and ranks.size > 1:
                fit.signals = Signals(signal.SIGINT)
                with fit.signals.noted():
                    self._train(fit)
            elif keeper is None:
                self._train(fit)
            else:
                with keeper.opened(fit, int(epochs), held_out):
                    if keeper.finished:
                        fit.stop = f"{keeper.folder} holds this training, finished with epoch {self.history.epochs}"
                        for callback in progress:
                            callback.on_fit_end(fit)
                    else:
                        self._train(fit)
        return self.history

    def _within(
        self, limit: int, demand: Demand, micro_batch: int | None, ranks: Communicator
    ) -> tuple[TrainingMemory, Layer | None]:
        """Return how to train within so much memory, and the network to run: as rank 0 finds it."""
        found: TrainingMemory | None = None
        body: Layer | None = None
        with self._arithmetic():
            with ranks.agreed():
                if not ranks.rank:
                    found, body = choose(demand, limit, micro_batch)
            found = ranks.broadcast(found)
            assert found is not None
            if ranks.rank and found.recompute:
                body = recomputing(self.net, demand.shape, demand.dtype)
        return found, body

    def _train(self, fit: Fit) -> None:
        keeper, done = fit.checkpoints, False
        try:
            with self._arithmetic():
                fit.call("on_fit_begin")
                if keeper is not None:
                    keeper.restore(fit)  # what callbacks have just begun anew
                run(fit)
                done = True
        except KeyboardInterrupt as interrupt:
            fit.ranks.end_all(interrupt)
            fit.stop = f"interrupted in epoch {fit.epoch}; the history has the {self.history.epochs} before it"
            if keeper is not None:
                fit.stop = keeper.farewell(fit)
        finally:
            self.net.flat().grad[...] = 0.0  # of a step that was broken off
            fit.call("on_fit_end")
        if keeper is not None and done:
            keeper.write(fit, finished=True)

    def _training_data(self, data: Any, y: Any, validation: Any) -> tuple[Dataset, Dataset | None]:
        train = self._dataset(data, y)
        held_out: Dataset | None = None
        if isinstance(validation, float):
            train, held_out = split(train, validation, seed=self.seed)
        elif validation is not None:
            held_out = self._dataset(validation)
        if np.min(train.labels) == np.max(train.labels):
            raise DataError(
                f"all {len(train)} training images are of class {int(train.labels[0])}: nothing can be learned from "
                "that. Check the labels, or a limit that cut a sorted data set."
            )
        shape, _ = self._ready()
        self.image = image_options(train, shape)
        if isinstance(self.normalize, str) and self.mean is None:
            mean, std = mean_std(train)
            self.mean = tuple(map(float, mean))
            # A constant channel (but for rounding) is only shifted.
            self.std = tuple(float(s) if s > 1e-7 * abs(m) else 1.0 for m, s in zip(mean, std, strict=True))
        return train, held_out

    def _validate(self, dataset: Dataset, batch_size: int, ranks: Communicator) -> dict[str, float]:
        report = self._evaluate(dataset, batch_size, ranks)
        return {"val_loss": report.loss, "val_accuracy": report.accuracy}

    def _loss(self, class_weights: Array | None = None, label_smoothing: float = 0.0) -> Loss:
        """Return the loss as a function; with weights and smoothing, the one that is minimised."""
        if callable(self.loss):
            return self.loss
        if self.loss == "mse":
            return _one_hot_mse
        return partial(softmax_cross_entropy, class_weights=class_weights, label_smoothing=label_smoothing)

    def _resolve_class_weights(self, train: Dataset) -> Array | None:
        count = len(self._ready()[1])
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, str):
            per_class = np.bincount(train.labels, minlength=count)
            weights = len(train) / (count * np.maximum(per_class, 1))
        else:
            weights = np.asarray(to_numpy(self.class_weights), np.float64)
            if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any():
                raise ArgumentError(
                    f"class_weights must be {count} numbers of at least 0, one per class; received {weights.tolist()}."
                )
        return to_device(weights.astype(np.promote_types(self.net.dtype, np.float32)), self.net.device)

    # --- using --------------------------------------------------------------------------------------------------

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Run a network on its device, with our threads instead of BLAS's; NumPy need not warn of NaN: we look."""
        with self.net.device, single_threaded_blas(), np.errstate(over="ignore", invalid="ignore"):
            yield

    @contextmanager
    def averaged(self) -> Iterator[Layer]:
        """Give the network with the weights to use: the moving average if there is one. One thread at a time then."""
        if self.ema is None:
            yield self.net
            return
        with _swapping, self.ema.swap(self.net):
            yield self.net

    def evaluate(self, data: Any, y: Any = None, batch_size: int = 64) -> Report:
        """Compare predictions with labels.

        Args:
            data, y: as in `fit`.
            batch_size: images at a time.

        Returns:
            A `Report`: .loss (without class weights and label smoothing), .accuracy, .per_class, .confusion;
            print it for a table.
        """
        self._ready()
        return self._evaluate(self._dataset(data, y), batch_size)

    def _evaluate(self, dataset: Dataset, batch_size: int, ranks: Communicator | None = None) -> Report:
        """Evaluate; with `ranks` each of them looks at its share of the data."""
        first, last = (0, len(dataset)) if ranks is None else ranks.share(len(dataset))
        part = dataset if last - first in (0, len(dataset)) else Subset(dataset, np.arange(first, last))
        loader = loader_of(part, batch_size, shuffle=False, device=self.net.device)
        with self._arithmetic(), self.averaged() as net:
            batches = loader if first < last else ()
            loss, confusion = evaluate_batches(net, batches, self._entrance, self._loss(), ranks)
        return Report(loss, confusion, self._ready()[1])

    def score(self, data: Any, y: Any = None, batch_size: int = 64) -> float:
        """Return the accuracy, as scikit-learn's classifiers do."""
        return self.evaluate(data, y, batch_size).accuracy

    def predict_proba(self, x: Any, batch_size: int = 64) -> np.ndarray:
        """Return class probabilities (N, K) in the dtype of the network, in host memory.

        With a loss other than cross-entropy they are the softmax of the outputs too, unless the network ends with
        Softmax.

        Args:
            x: images (N, C, H, W); (N, H, W) for one channel; a single image (C, H, W), answered with N = 1; a data
                set; or the path of an image file or a list of them.
            batch_size: images at a time.
        """
        shape, _ = self._ready()
        if isinstance(x, (str, os.PathLike)):
            x = [x]
        if isinstance(x, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in x):
            x = read_files(x, self.image)
        if not is_dataset(x):
            images = as_images(x, shape)
            x = ArrayDataset(images, np.zeros(len(images), np.int64))
        self.build(x.shape)
        loader = loader_of(x, batch_size, shuffle=False, device=self.net.device)
        results = []
        with self._arithmetic(), self.averaged() as net:
            for images, _ in loader:
                outputs = net.forward(self._entrance(images), False)[0].astype(net.dtype, copy=False)
                results.append(outputs if self.net.gives_probabilities else softmax_forward(outputs))
            probabilities: np.ndarray = to_numpy(net.xp.concatenate(results, axis=1).T)
        return probabilities

    def predict(self, x: Any, batch_size: int = 64) -> np.ndarray:
        """Return the most probable class of each image (N,): its name if the classes have names, else its number.

        Args:
            x: as in `predict_proba`.
            batch_size: images at a time.
        """
        index: np.ndarray = self.predict_proba(x, batch_size).argmax(axis=1)
        names = named(self._ready()[1])
        return index if names is None else np.array(names)[index]

    def for_inference(self) -> Classifier:
        """Return a classifier that only predicts: the same answers, to rounding, in less time.

        Its network is `net.for_inference()`, of the averaged weights if there are any. It can predict, evaluate and be
        saved; `fit` refuses. Make it again after training further.
        """
        self._ready()
        result = copy.copy(self)
        with self.averaged() as net:
            result.net = (net if self.ema is None else copy.deepcopy(net)).for_inference()
        result.ema = None
        return result

    def summary(self, batch_size: int | None = None) -> Summary:
        """Return the table of layers: output shapes, parameters, multiplications and memory. Print it.

        Args:
            batch_size: of the training step whose memory is measured too; None for none.
        """
        from ..inspection.summary import summary  # beside training, not below it

        return summary(self.net, self._ready()[0], batch_size, self.optimizer, self.ema is not None)

    # --- weights ------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, dict[str, Array]]:
        """Return a copy of the weights, and of their moving average if there is one, for `restore`."""
        parts = {"net": self.net.state_dict(), "average": {} if self.ema is None else self.ema.state_dict()}
        return {part: {name: array.copy() for name, array in arrays.items()} for part, arrays in parts.items()}

    def restore(self, snapshot: dict[str, dict[str, Array]]) -> None:
        """Go back to the weights of a `snapshot`."""
        self.net.load_state_dict(snapshot["net"])
        if self.ema is not None and snapshot["average"]:
            self.ema.load_state_dict(snapshot["average"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, *.safetensors or *.json: weights, architecture, classes, normalisation.

        `xpcnn.load` reads it. The optimizer's state is not in it. Of several processes that train in parallel, the
        first writes, and for the others this does nothing.
        """
        from .checkpoint import save  # which makes Classifiers, so it imports this module

        if not self.rank:
            save(self, Path(path))

    def __repr__(self) -> str:
        state = (
            "not trained" if self.classes_ is None else f"{len(self.classes_)} classes, {self.history.epochs} epochs"
        )
        return f"Classifier({type(self.net).__name__}, {state})"


def _check_classes(classes: Any) -> int | list[str] | None:
    if classes is None or (isinstance(classes, (int, np.integer)) and not isinstance(classes, bool)):
        return classes if classes is None else int(classes)
    names = list(classes) if isinstance(classes, (list, tuple, np.ndarray)) else None
    if names is None or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ArgumentError(
            f"classes must be a list of different names (str) or how many there are; received {classes!r}."
        )
    return [str(name) for name in names]


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    numbers = np.asarray(to_numpy(value), np.float64)
    if numbers.shape not in ((), (channels,)) or not np.isfinite(numbers).all():
        raise ArgumentError(
            f"normalize: mean and std must be a number or {channels}, one per channel; received {value!r}."
        )
    return tuple(np.broadcast_to(numbers, channels).tolist())


def _weigher(class_weights: Array | None) -> Callable[[Array], Array | float] | None:
    """Return what labels count in the mean of the loss, where it is not one for each image."""
    if class_weights is None:
        return None

    def weigh(t: Array) -> Array | float:
        if t.ndim == 2:
            return float(len(t))
        total = class_weights[t].sum()
        return total + (total == 0)  # as the loss has it

    return weigh


def _one_hot_mse(outputs: Array, t: Array) -> tuple[Array, Array]:
    """Mean squared error of outputs (K, N) against labels (N,), one-hot, or (N, K)."""
    return mse_loss(outputs, t if t.ndim == 2 else one_hot(t, outputs.shape[0], outputs.dtype).T)
