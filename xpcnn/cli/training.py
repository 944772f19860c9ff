"""`xpcnn train` and `xpcnn lr-find`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import formats, inspection, zoo
from .. import schedule as schedules
from ..backend import Device, threads
from ..data import Dataset, RandomAffine
from ..errors import ArgumentError, MissingExtraError, StateDictError, XpcnnError
from ..files import atomic_write, locked, remove_leftovers
from ..inspection.doctor import versions
from ..layers import Layer
from ..training import Callback, Classifier, CSVLog, EarlyStopping, Fit, History, SaveBest, load_pretrained
from ..training import lr_find as find_learning_rate
from ..training.communicator import Communicator, communicator, launched
from ..training.resume import checkpoints_in
from .common import (
    BatchSize,
    DataPath,
    DeviceName,
    Limit,
    Mode,
    OptimizerName,
    Seed,
    Size,
    Stem,
    make_optimizer,
    no_nan,
    open_data,
    pixels_of,
    show,
    training_data,
)

LIGHT = RandomAffine(10, translate=0.06, scale=(0.9, 1.1), shear=8)
GO_ON = "The same command with --resume goes on from there."
RESULTS = ("model.safetensors", "best.safetensors", "history.csv", "curves.png", "filters.png", "run.json")


class Recorder(Callback):
    """Remembers how a training ended."""

    reason: str | None = None
    trained = False  # a training that is finished is not begun again

    def on_fit_begin(self, fit: Fit) -> None:
        """Note that there was something to do."""
        self.trained = True

    def on_fit_end(self, fit: Fit) -> None:
        """Take the reason, if it did not simply run to its end."""
        self.reason = fit.stop

    @property
    def interrupted(self) -> bool:
        """Whether somebody pressed Ctrl-C."""
        return (self.reason or "").startswith("interrupted")


class Precision(str, Enum):
    """What `--dtype` takes."""

    float32 = "float32"
    float64 = "float64"
    mixed_float16 = "mixed_float16"


class Parallel(str, Enum):
    """What `--parallel` takes."""

    auto = "auto"
    mpi = "mpi"
    none = "none"

    def ranks(self) -> Communicator:
        """Return the processes that train together."""
        together = self is Parallel.mpi or (self is Parallel.auto and launched()[1] > 1)
        return communicator("mpi" if together else None)


class Augment(str, Enum):
    """What `--augment` takes."""

    none = "none"
    light = "light"


def train(
    data: DataPath,
    model: Annotated[str, typer.Option(help=f"Which network: {', '.join(zoo.names())}.")] = "lenet",
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the images.")] = 10,
    batch_size: BatchSize = 32,
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default the optimizer's own.")] = None,
    optimizer: Annotated[OptimizerName, typer.Option(help="How weights are updated.")] = OptimizerName.adam,
    momentum: Annotated[float, typer.Option(help="For sgd and rmsprop.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="How strongly weights are pulled to zero.")] = 0.0,
    schedule: Annotated[
        str, typer.Option(help="constant, cosine, exponential:FACTOR (an epoch), step:EPOCHS:FACTOR or onecycle.")
    ] = "constant",
    warmup: Annotated[int, typer.Option(min=0, metavar="EPOCHS", help="Let the learning rate rise for so long.")] = 0,
    stem: Stem = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start from these weights; a head for other classes is left out."),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Do not train these: features, or '*.bias'. Repeat it for more."),
    ] = None,
    lr_group: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=RATE", help="A learning rate of their own: 'features=1e-4'. Repeat it for more."),
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="Part of each label spread over all classes.")] = 0.0,
    ema: Annotated[float | None, typer.Option(metavar="DECAY", help="Use a moving average of the weights.")] = None,
    augment: Annotated[
        Augment, typer.Option(help="light: turn, move, scale and slant the training images a little.")
    ] = Augment.none,
    normalize: Annotated[bool, typer.Option("--normalize", help="Bring pixels to mean 0 and deviation 1.")] = False,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION|DATA",
            help="What to hold out or to judge by; by default the data's own test part, else 0.2. 0 is none.",
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, metavar="EPOCHS", help="Stop when so long nothing gets better.")
    ] = None,
    limit: Limit = None,
    size: Size = None,
    mode: Mode = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images that go through the network at once.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Train within so much memory: 2GiB, 500MB.")
    ] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Of weights and arithmetic; mixed_float16 computes in float16, for GPUs.")
    ] = Precision.float32,
    workers: Annotated[int, typer.Option(min=0, help="Threads that prepare batches ahead.")] = 0,
    seed: Seed = 0,
    device: DeviceName = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default runs/MODEL.")] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(metavar="STEPS|epoch", help="So often write what is needed to go on, to OUT/checkpoints."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder, if there is one.")
    ] = False,
    leak_check: Annotated[
        bool, typer.Option("--leak-check/--no-leak-check", help="Warn if the held-out images look leaked.")
    ] = True,
    parallel: Annotated[
        Parallel, typer.Option(help="mpi: the processes that mpiexec started share each batch; auto: if there are any.")
    ] = Parallel.auto,
    sync_batch_norm: Annotated[
        bool, typer.Option("--sync-batch-norm", help="Batch norm uses the images of all processes.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> int:
    """Train a network and leave everything about it in a folder.

    That is: model.safetensors (the last weights), best.safetensors (those with the lowest validation loss),
    history.csv, curves.png and filters.png (with matplotlib), run.json (every setting, versions, the result).
    Ctrl-C ends the training in good order, with exit code 130.

    With --checkpoint-every or --resume the folder has checkpoints too. However the training ended, the same command
    with --resume goes on from the last one, to the same weights as without the interruption; a finished training is
    left as it is. SIGTERM then ends it in good order as well, with exit code 143.

    mpiexec -n 4 xpcnn train ... lets four processes share the work: --batch-size is that of all together.
    """
    settings = {name: _plain(value) for name, value in locals().items()}
    ranks = parallel.ranks()
    with ranks.guarded(), ExitStack() as stack:
        with ranks.agreed():
            folder = Path("runs") / model if out is None else out
            checkpoints, every = folder / "checkpoints", _every(checkpoint_every)
            if not resume and checkpoints_in(checkpoints):
                raise ArgumentError(
                    f"{folder} holds a training with checkpoints. --resume goes on with it; another --out begins a new "
                    "one."
                )
            say = (lambda text: None) if quiet or ranks.rank else print
            pixels, mode = pixels_of(model, stem, size), mode or zoo.entry(model).mode
            training, held_out = training_data(data, validation, limit, seed, pixels, mode)

            net = zoo.build(model, len(training.classes), stem=stem)
            updates = make_optimizer(optimizer, lr, momentum, weight_decay, lr_group or ())
            classifier = Classifier(
                net,
                classes=training.classes,
                optimizer=updates,
                device=device,
                seed=seed,
                schedule=_schedule(schedule, warmup),
                normalize="data" if normalize else None,
                label_smoothing=label_smoothing,
                ema=ema,
                dtype=dtype.value,
                parallel=ranks,
                sync_batch_norm=sync_batch_norm,
            )
            classifier.build(training.shape, training.classes)
            place = net.device
            started_from = "" if weights is None else _start_from(weights, net)
            for pattern in freeze or ():
                net.freeze(pattern)
            for pattern in updates.groups or ():
                net.matching(pattern)
            frozen = sum(parameter.data.size for parameter in net.parameters().values() if not parameter.trainable)
            parameters = sum(parameter.data.size for parameter in net.parameters().values())
            shape = "x".join(map(str, training.shape))
            held = _counted(held_out) if held_out else "none"
            say(f"{data}: {_counted(training)} of {shape} to train on, {held} held out")
            say(f"{len(training.classes)} classes: {', '.join(training.classes)}")
            batches = -(-len(training) // batch_size)
            still = f", {frozen:,} of them frozen," if frozen else ""
            say(f"{model}: {parameters:,} parameters{still} on {place}; {batches} batches of {batch_size} an epoch")
            if ranks.size > 1:
                say(f"{ranks.size} processes share each batch")
            if started_from:
                say(started_from)

            run: dict[str, Any] = {
                "settings": settings,
                "device": str(place),
                "threads": threads(),
                "ranks": ranks.size,
                "versions": versions(),
                "classes": training.classes,
                "input_shape": list(training.shape),
                "training_images": len(training),
                "validation_images": len(held_out) if held_out else 0,
                "parameters": parameters,
                "frozen": frozen,
                "result": None,
            }
            if not ranks.rank:
                stack.enter_context(locked(folder))
                remove_leftovers(folder)
                if not (resume and (folder / "run.json").exists()):
                    _write_json(folder / "run.json", run)
        monitor = "val_loss" if held_out else "loss"
        recorder = Recorder()
        callbacks = [SaveBest(folder / "best.safetensors", monitor), CSVLog(folder / "history.csv")]
        callbacks += [] if patience is None else [EarlyStopping(monitor, patience, restore_best=False)]
        started = time.perf_counter()
        try:
            classifier.fit(
                training,
                epochs=epochs,
                batch_size=batch_size,
                validation=held_out,
                augment=LIGHT if augment is Augment.light else None,
                callbacks=[*callbacks, recorder],
                micro_batch=micro_batch,
                memory_limit=memory_limit,
                workers=workers,
                verbose=False if quiet else "auto",
                checkpoint=checkpoints if resume or checkpoint_every else None,
                every=every,
                check_leak=leak_check,
            )
        except SystemExit:  # SIGTERM leaves no time for pictures
            say(GO_ON)
            return 143
        except XpcnnError as error:
            if recorder.trained and not ranks.rank:
                _write_json(folder / "run.json", run | {"result": {"error": str(error)}})
            raise
        if ranks.rank:  # the first writes
            return 130 if recorder.interrupted else 0
        if not recorder.trained and _finished(folder):
            say(f"{folder}: nothing was left to do, and nothing was changed")
            return 0
        run["result"] = {"seconds": time.perf_counter() - started, "stopped": recorder.reason}
        for line in _leave_results(folder, classifier, run):
            say(line)
        if recorder.interrupted and (resume or checkpoint_every):
            say(GO_ON)
        return 130 if recorder.interrupted else 0


def _leave_results(folder: Path, classifier: Classifier, run: dict[str, Any]) -> Iterator[str]:
    """Write model, history, pictures and, when all is there, run.json; yield lines about them."""
    history = classifier.history
    classifier.save(folder / "model.safetensors")
    history.to_csv(folder / "history.csv")
    hint = _draw(folder, classifier.net, history)
    run["result"] |= {
        "epochs": history.epochs,
        "best": history.best if history.epochs else None,
        "last": history.row(-1) if history.epochs else None,
    }
    _write_json(folder / "run.json", run)
    if history.epochs:
        yield "best: " + "  ".join(f"{name} {value:.4g}" for name, value in history.best.items() if name != "seconds")
    yield f"{folder}: {', '.join(name for name in RESULTS if (folder / name).exists())}"
    if hint:
        yield hint


def _counted(dataset: Dataset) -> str:
    """Return "1 image", "1,000 images"."""
    return f"{len(dataset):,} image{'s' * (len(dataset) != 1)}"


def _every(text: str | None) -> int | str:
    if text is not None and text.isdecimal() and int(text):
        return int(text)
    if text not in (None, "epoch"):
        raise ArgumentError(f'--checkpoint-every takes a number of steps or the word "epoch"; received {text!r}.')
    return "epoch"


def _finished(folder: Path) -> bool:
    """Say whether a training has left everything in its folder."""
    try:
        result = json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]
        return not (result["stopped"] or "").startswith("interrupted")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def _start_from(weights: Path, net: Layer) -> str:
    """Load weights into a built network; return a line that says so."""
    try:
        left = load_pretrained(net, formats.read_weights(weights))
    except StateDictError as error:
        raise StateDictError(f"{weights}: {error}") from error
    heads = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in left))
    return f"weights from {weights}" + (f"; begun anew for other classes: {heads}" if left else "")


def _schedule(text: str, warmup: int) -> schedules.Schedule:
    name, *numbers = text.split(":")
    kinds: dict[str, Any] = {
        "constant": (schedules.Constant, ()),
        "cosine": (schedules.Cosine, ()),
        "exponential": (schedules.Exponential, (float,)),
        "step": (schedules.StepDecay, (int, float)),
        "onecycle": (schedules.OneCycle, ()),
    }
    try:
        make, types = kinds[name]
        if len(numbers) > len(types):
            raise ValueError
        found: schedules.Schedule = make(*(kind(number) for kind, number in zip(types, numbers, strict=False)))
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, XpcnnError):
            raise
        raise ArgumentError(
            "--schedule takes constant, cosine, exponential:FACTOR, step:EPOCHS:FACTOR or onecycle, "
            f"such as exponential:0.9 or step:10:0.1; received {text!r}."
        ) from None
    if warmup and found.every == "step":
        raise ArgumentError("onecycle has a warm-up of its own; leave --warmup out.")
    return schedules.LinearWarmup(warmup, found) if warmup else found


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(no_nan(content), indent=2) + "\n", encoding="utf-8")


def _draw(folder: Path, net: Layer, history: History) -> str:
    """Draw curves and first filters into the folder; return what to say if that is not possible."""
    try:
        if history.epochs:
            inspection.plot_curves(history, folder / "curves.png")
        inspection.plot_filters(net, path=folder / "filters.png")
    except MissingExtraError as error:
        return f"no pictures: {error}"
    return ""


def lr_find(
    data: DataPath,
    model: Annotated[str, typer.Option(help=f"Which network: {', '.join(zoo.names())}.")] = "lenet",
    batch_size: BatchSize = 32,
    optimizer: Annotated[OptimizerName, typer.Option(help="How weights are updated.")] = OptimizerName.adam,
    momentum: Annotated[float, typer.Option(help="For sgd and rmsprop.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="How strongly weights are pulled to zero.")] = 0.0,
    low: Annotated[float, typer.Option(help="First learning rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="Last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option(min=3, help="How many updates to do.")] = 100,
    stem: Stem = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Bring pixels to mean 0 and deviation 1.")] = False,
    limit: Limit = None,
    size: Size = None,
    mode: Mode = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw loss against rate too; needs matplotlib.")
    ] = None,
) -> None:
    """Train for a few steps with a growing learning rate, and suggest the one at which the loss falls fastest.

    Give the model, optimizer and batch size of the training to come. Nothing is saved but the picture.
    """
    training, _ = open_data(data, pixels_of(model, stem, size), mode or zoo.entry(model).mode, limit=limit)
    classifier = Classifier(
        zoo.build(model, len(training.classes), stem=stem),
        classes=training.classes,
        optimizer=make_optimizer(optimizer, None, momentum, weight_decay),
        device=Device(device),
        seed=seed,
        normalize="data" if normalize else None,
    )
    found = find_learning_rate(classifier, training, low=low, high=high, steps=steps, batch_size=batch_size)
    show(found)
    if out is not None:
        found.plot(out)
        show(f"{out}: loss against learning rate")
