"""The command line: `xpcnn train | evaluate | predict | convert | summary | gradcheck | crosscheck | ...`.

Exit codes: 0 all is well; 1 it could not be done, or a check failed; 2 the command line is wrong; 130 Ctrl-C;
143 SIGTERM, where a training was saved first.
What goes wrong is one line on stderr; `xpcnn --debug COMMAND ...` shows the traceback.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from . import formats, inspection, optim, zoo
from . import schedule as schedules
from .backend import Device, generator, threads
from .data import DataReport, Dataset, ImageFolder, RandomAffine, Subset, groups_by, open_dataset, split, write_split
from .data import inspect as inspect_data
from .data.datasets import limited
from .errors import ArgumentError, DataError, FileFormatError, MissingExtraError, StateDictError, XpcnnError
from .files import atomic_write, locked, remove_leftovers
from .inspection.doctor import versions
from .layers import Layer
from .table import Table
from .training import Callback, Classifier, CSVLog, EarlyStopping, Fit, History, SaveBest, load, load_pretrained
from .training.inputs import named
from .training.lr_find import lr_find
from .training.resume import checkpoints_in
from .version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="xpcnn",
    help="Train, use and inspect convolutional networks on NumPy and CuPy.",
    epilog="xpcnn COMMAND --help explains a command. Start with: xpcnn train mnist --model lenet --epochs 3",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOrName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help=f"A saved model (.safetensors or .json) or a name: {', '.join(zoo.names())}."),
]
SavedModel = Annotated[Path, typer.Argument(metavar="MODEL", help="A saved model (.safetensors or .json).")]
DataPath = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one sub-folder of images per class, an .npz file, a folder with MNIST (IDX) or CIFAR-10 "
        "(binary) files, or the word [bold]mnist[/bold] for the digits that come with xpcnn.",
    ),
]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda:0, ... or auto: a GPU if there is one.")]
Input = Annotated[
    str | None, typer.Option("--input", metavar="C,H,W", help="Size of the images, instead of the model's own.")
]
Classes = Annotated[int | None, typer.Option(min=1, help="Number of classes, for a model given by name.")]
Stem = Annotated[
    str | None,
    typer.Option(metavar="imagenet|cifar", help="How a network of the zoo begins: for large images or for 32x32."),
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Use N images only, the same share of each class.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images per step.")]
Size = Annotated[
    str | None, typer.Option(metavar="H,W", help="Size images are brought to; by default the model's own.")
]
Mode = Annotated[str | None, typer.Option(metavar="L|RGB", help="Grey or colour; by default what the model expects.")]


class OptimizerName(str, Enum):
    """What `--optimizer` takes."""

    sgd = "sgd"
    adagrad = "adagrad"
    rmsprop = "rmsprop"
    adam = "adam"
    adamw = "adamw"


class Precision(str, Enum):
    """What `--dtype` takes."""

    float32 = "float32"
    float64 = "float64"
    mixed_float16 = "mixed_float16"


class Method(str, Enum):
    """What `--method` takes."""

    gradcam = "gradcam"
    saliency = "saliency"
    occlusion = "occlusion"


class Augment(str, Enum):
    """What `--augment` takes."""

    none = "none"
    light = "light"


# --- how errors and exit codes come about -----------------------------------------------------------------------


ENDED = {130: "interrupted", 143: "terminated"}  # by SIGINT and SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error becomes one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        result = app(arguments, prog_name="xpcnn", standalone_mode=False)
        if result in ENDED:
            return _fail(ENDED[result], result)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if hasattr(error, "format_message"):  # typer's errors about the command line
            if not (message := error.format_message()):  # no command at all: the help has been printed
                return 2
            return _fail(f"{message} (see xpcnn --help)", getattr(error, "exit_code", 2))
        if isinstance(error, ArgumentError):
            return _fail(str(error), 2)
        if isinstance(error, FileNotFoundError) and error.filename:
            return _fail(f"{error.filename} does not exist", 2)
        if isinstance(error, (XpcnnError, OSError)):
            return _fail(str(error), 1)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _fail(f"out of memory ({_one_line(error)}); try a smaller --batch-size", 1)
        if "--debug" in arguments:
            return 1
        return _fail(f"{type(error).__name__}: {_one_line(error)} (a bug; --debug before the command shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(f"xpcnn: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"xpcnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train, use and inspect convolutional networks on NumPy and CuPy."""


def _numbers(text: str, count: int, option: str) -> tuple[int, ...]:
    """Parse "1,200,200" (or 1x200x200); a single number stands for `count` equal ones if count is 2."""
    parts = text.lower().replace("x", ",").split(",")
    if len(parts) == 1 and count == 2:
        parts *= 2
    if len(parts) != count or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        form = "H,W or one number" if count == 2 else "C,H,W"
        raise ArgumentError(
            f"{option} takes {form}, such as {','.join(['1', '28', '28'][-count:])}; received {text!r}."
        )
    return tuple(int(part) for part in parts)


def _print(something: Any) -> None:
    """Print a table or text: fitted to a terminal, at full width in a file or pipe."""
    console = Console()
    if console.is_terminal and hasattr(something, "__rich__"):
        console.print(something)
    else:
        print(something)


def _load(path: str | Path, device: str) -> Classifier:
    """Return a saved model, after checking that there is one: "auto" would first talk about devices."""
    if not Path(path).exists():
        raise ArgumentError(f"{path} does not exist; expected a model saved by xpcnn (.safetensors or .json).")
    return load(path, device)


def _model(
    model: str, classes: int | None, size: str | None, stem: str | None, seed: int
) -> tuple[Layer, tuple[int, ...]]:
    """Return a network, saved or by name, built on the CPU, and its input shape."""
    shape = None if size is None else _numbers(size, 3, "--input")
    net: Layer
    if Path(model).suffix.lower() in (".safetensors", ".json"):
        if classes is not None or stem is not None:
            raise ArgumentError("--classes and --stem are for a model given by name; a saved model has its own.")
        classifier = _load(model, "cpu")
        net, own = classifier.net, classifier.input_shape
    else:
        net, own = zoo.build(model, classes, stem=stem), zoo.entry(model).form(stem).input_shape
    assert own is not None
    net.build(shape or own, seed=seed)
    return net, shape or own


def _random_batch(net: Layer, shape: tuple[int, ...], batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images in [0, 1) and random labels for a network that ends in K scores."""
    rng = generator(seed, "random batch")
    x = rng.random((batch, *shape))
    return x, rng.integers(0, net(x[:1]).shape[1], batch)


def _open(
    data: str, size: tuple[int, ...] | None, mode: str, fit: str = "resize", limit: int | None = None
) -> tuple[Dataset, Dataset | None]:
    if data != "mnist" and not Path(data).exists():
        raise ArgumentError(f'{data} does not exist; expected a folder, an .npz file or the word "mnist".')
    return open_dataset(data, size, mode, fit, limit=limit)


def _images(dataset: Dataset) -> str:
    return f"{len(dataset):,} image{'s' * (len(dataset) != 1)}"


# --- train ------------------------------------------------------------------------------------------------------

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


@app.command()
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> int:
    """Train a network and leave everything about it in a folder.

    That is: model.safetensors (the last weights), best.safetensors (those with the lowest validation loss),
    history.csv, curves.png and filters.png (with matplotlib), run.json (every setting, versions, the result).
    Ctrl-C ends the training in good order, with exit code 130.

    With --checkpoint-every or --resume the folder has checkpoints too. However the training ended, the same command
    with --resume goes on from the last one, to the same weights as without the interruption; a finished training is
    left as it is. SIGTERM then ends it in good order as well, with exit code 143.
    """
    settings = {name: _plain(value) for name, value in locals().items()}
    entry = zoo.entry(model)
    folder = Path("runs") / model if out is None else out
    checkpoints, every = folder / "checkpoints", _every(checkpoint_every)
    if not resume and checkpoints_in(checkpoints):
        raise ArgumentError(
            f"{folder} holds a training with checkpoints. --resume goes on with it; another --out begins a new one."
        )
    say = (lambda text: None) if quiet else print
    pixels = entry.form(stem).input_shape[1:] if size is None else _numbers(size, 2, "--size")
    mode = mode or entry.mode
    training, held_out = _training_data(data, validation, limit, seed, pixels, mode)

    net = zoo.build(model, len(training.classes), stem=stem)
    updates, rate = _optimizer(optimizer, lr, momentum, weight_decay, lr_group or ()), _schedule(schedule, warmup)
    place = Device(device)
    classifier = Classifier(
        net,
        classes=training.classes,
        optimizer=updates,
        device=place,
        seed=seed,
        schedule=rate,
        normalize="data" if normalize else None,
        label_smoothing=label_smoothing,
        ema=ema,
        dtype=dtype.value,
    )
    classifier.build(training.shape, training.classes)
    started_from = "" if weights is None else _start_from(weights, net)
    for pattern in freeze or ():
        net.freeze(pattern)
    for pattern in updates.groups or ():
        net.matching(pattern)
    frozen = sum(parameter.data.size for parameter in net.parameters().values() if not parameter.trainable)
    parameters = sum(parameter.data.size for parameter in net.parameters().values())
    shape = "x".join(map(str, training.shape))
    say(f"{data}: {_images(training)} of {shape} to train on, {_images(held_out) if held_out else 'none'} held out")
    say(f"{len(training.classes)} classes: {', '.join(training.classes)}")
    batches = -(-len(training) // batch_size)
    still = f", {frozen:,} of them frozen," if frozen else ""
    say(f"{model}: {parameters:,} parameters{still} on {place}; {batches} batches of {batch_size} an epoch")
    if started_from:
        say(started_from)

    run: dict[str, Any] = {
        "settings": settings,
        "device": str(place),
        "threads": threads(),
        "versions": versions(),
        "classes": training.classes,
        "input_shape": list(training.shape),
        "training_images": len(training),
        "validation_images": len(held_out) if held_out else 0,
        "parameters": parameters,
        "frozen": frozen,
        "result": None,
    }
    with locked(folder):
        remove_leftovers(folder)
        if not (resume and (folder / "run.json").exists()):
            _write_json(folder / "run.json", run)
        monitor = "val_loss" if held_out else "loss"
        recorder = Recorder()
        callbacks = [SaveBest(folder / "best.safetensors", monitor), CSVLog(folder / "history.csv")]
        callbacks += [] if patience is None else [EarlyStopping(monitor, patience, restore_best=False)]
        started = time.perf_counter()
        try:
            history = classifier.fit(
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
            if recorder.trained:
                _write_json(folder / "run.json", run | {"result": {"error": str(error)}})
            raise
        if not recorder.trained and _finished(folder):
            say(f"{folder}: nothing was left to do, and nothing was changed")
            return 0
        classifier.save(folder / "model.safetensors")
        history.to_csv(folder / "history.csv")
        run["result"] = {
            "seconds": time.perf_counter() - started,
            "epochs": history.epochs,
            "stopped": recorder.reason,
            "best": history.best if history.epochs else None,
            "last": history.row(-1) if history.epochs else None,
        }
        hint = _draw(folder, net, history)
        _write_json(folder / "run.json", run)  # last: it says that all is there
        if history.epochs:
            best = "  ".join(f"{name} {value:.4g}" for name, value in history.best.items() if name != "seconds")
            say(f"best: {best}")
        say(f"{folder}: {', '.join(name for name in RESULTS if (folder / name).exists())}")
        if hint:
            say(hint)
        if recorder.interrupted and (resume or checkpoint_every):
            say(GO_ON)
        return 130 if recorder.interrupted else 0


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


def _training_data(
    data: str, validation: str | None, limit: int | None, seed: int, pixels: tuple[int, ...], mode: str
) -> tuple[Dataset, Dataset | None]:
    """Return (training, held out) as `xpcnn train` takes them."""
    training, held_out = _open(data, pixels, mode, limit=limit)
    if validation is not None or held_out is None:
        return _validation(training, validation or "0.2", seed, pixels, mode)
    return training, held_out


def _validation(
    training: Dataset, wanted: str, seed: int, pixels: tuple[int, ...], mode: str
) -> tuple[Dataset, Dataset | None]:
    """Return (training, held out) for a fraction, 0 or a path."""
    try:
        fraction = float(wanted)
    except ValueError:
        first, second = _open(wanted, pixels, mode)
        return training, second or first
    if fraction == 0:
        return training, None
    return split(training, fraction, seed)


def _start_from(weights: Path, net: Layer) -> str:
    """Load weights into a built network; return a line that says so."""
    try:
        left = load_pretrained(net, formats.read_weights(weights))
    except StateDictError as error:
        raise StateDictError(f"{weights}: {error}") from error
    heads = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in left))
    return f"weights from {weights}" + (f"; begun anew for other classes: {heads}" if left else "")


def _groups(given: Sequence[str]) -> dict[str, dict[str, float]]:
    groups = {}
    for text in given:
        pattern, _, rate = text.rpartition("=")
        try:
            groups[pattern] = {"lr": float(rate)}
        except ValueError:
            pattern = ""
        if not pattern:
            raise ArgumentError(f"--lr-group takes PATTERN=RATE, such as 'features=1e-4'; received {text!r}.")
    return groups


def _optimizer(
    name: OptimizerName, lr: float | None, momentum: float, weight_decay: float, lr_groups: Sequence[str] = ()
) -> optim.Optimizer:
    chosen = {
        OptimizerName.sgd: optim.SGD,
        OptimizerName.adagrad: optim.Adagrad,
        OptimizerName.rmsprop: optim.RMSprop,
        OptimizerName.adam: optim.Adam,
        OptimizerName.adamw: optim.AdamW,
    }[name]
    options: dict[str, Any] = {"weight_decay": weight_decay} if weight_decay else {}
    if lr_groups:
        options["groups"] = _groups(lr_groups)
    if lr is not None:
        options["lr"] = lr
    if momentum:
        if name not in (OptimizerName.sgd, OptimizerName.rmsprop):
            raise ArgumentError(f"--momentum is for sgd and rmsprop; {name.value} has its own.")
        options["momentum"] = momentum
    made: optim.Optimizer = chosen(**options)
    return made


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
        temporary.write_text(json.dumps(_no_nan(content), indent=2) + "\n", encoding="utf-8")


def _no_nan(value: Any) -> Any:
    """Return the same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw(folder: Path, net: Layer, history: History) -> str:
    """Draw curves and first filters into the folder; return what to say if that is not possible."""
    try:
        if history.epochs:
            inspection.plot_curves(history, folder / "curves.png")
        inspection.plot_filters(net, path=folder / "filters.png")
    except MissingExtraError as error:
        return f"no pictures: {error}"
    return ""


@app.command(name="lr-find")
def find_lr(
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
    entry = zoo.entry(model)
    pixels = entry.form(stem).input_shape[1:] if size is None else _numbers(size, 2, "--size")
    training, _ = _open(data, pixels, mode or entry.mode, limit=limit)
    classifier = Classifier(
        zoo.build(model, len(training.classes), stem=stem),
        classes=training.classes,
        optimizer=_optimizer(optimizer, None, momentum, weight_decay),
        device=Device(device),
        seed=seed,
        normalize="data" if normalize else None,
    )
    found = lr_find(classifier, training, low=low, high=high, steps=steps, batch_size=batch_size)
    _print(found)
    if out is not None:
        found.plot(out)
        _print(f"{out}: loss against learning rate")


# --- use --------------------------------------------------------------------------------------------------------


@app.command()
def evaluate(
    model: SavedModel,
    data: DataPath,
    batch_size: BatchSize = 64,
    limit: Limit = None,
    device: DeviceName = "auto",
    as_json: AsJson = False,
) -> None:
    """Print loss, accuracy, accuracy per class and the confusion matrix; of data with a test part, for that part."""
    classifier = _load(model, device)
    image = classifier.image or {"size": None, "mode": "L", "fit": "resize"}
    first, second = _open(data, image["size"], image["mode"], image["fit"])
    dataset = limited(second or first, limit)
    if named(dataset.classes) is not None and dataset.classes != classifier.classes_:
        theirs, ours = ", ".join(dataset.classes), ", ".join(classifier.classes_ or [])
        raise DataError(f"{data} has the classes {theirs}, but {model} tells {ours} apart.")
    report = classifier.evaluate(dataset, batch_size=batch_size)
    _print(json.dumps(report.to_dict(), indent=2) if as_json else report)


@app.command()
def predict(
    model: SavedModel,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    device: DeviceName = "auto",
    as_json: AsJson = False,
) -> None:
    """Print the class of each image and the probabilities of the classes."""
    classifier = _load(model, device)
    classes = classifier.classes_ or []
    probabilities = classifier.predict_proba(images)
    found = [
        {
            "file": file,
            "class": classes[int(row.argmax())],
            "probabilities": dict(zip(classes, row.tolist(), strict=True)),
        }
        for file, row in zip(images, probabilities, strict=True)
    ]
    if as_json:
        _print(json.dumps(found, indent=2))
        return
    table = Table("", [("image", "<"), ("class", "<"), ("probability", ">"), ("then", "<")])
    for file, row in zip(images, probabilities, strict=True):
        best, *others = np.argsort(-row, kind="stable")[:4]
        then = ", ".join(f"{classes[i]} {row[i]:.4f}" for i in others)
        table.add(file, classes[best], f"{row[best]:.4f}", then)
    _print(table)


@app.command()
def explain(
    model: SavedModel,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose output Grad-CAM looks at; by default the last feature map."),
    ] = None,
    wanted: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Explain this class; by default the predicted one.")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="gradcam: what the last feature map says; saliency: which pixels matter to the score; "
            "occlusion: where covering a part costs probability (slow)."
        ),
    ] = Method.gradcam,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to print.")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="By default IMAGE-METHOD.png in the current folder.")
    ] = None,
    device: DeviceName = "auto",
) -> None:
    """Print the most probable classes of an image and draw which parts of it speak for one."""
    if layer is not None and method is not Method.gradcam:
        raise ArgumentError(f"--layer is for --method gradcam; {method.value} looks at the pixels.")
    classifier = _load(model, device)
    classes = classifier.classes_ or []
    pixels = inspection.read_images(classifier, image)
    probabilities = classifier.predict_proba(pixels)[0]
    table = Table(str(image), [("class", "<"), ("probability", ">")])
    for i in np.argsort(-probabilities, kind="stable")[:top]:
        table.add(classes[i], f"{probabilities[i]:.4f}")
    _print(table)
    if method is Method.gradcam:
        found = inspection.grad_cam(classifier, pixels, wanted, layer)
    else:
        found = (inspection.saliency if method is Method.saliency else inspection.occlusion)(classifier, pixels, wanted)
    path = out or Path(f"{image.stem}-{method.value}.png")
    best = int(probabilities.argmax())
    inspection.plot_attribution(pixels, found, path, [f"{image.name}: {classes[best]} ({probabilities[best]:.4f})"])
    _print(f"{path}: {found.method} for {found.name(0)}" + (f", layer {found.layer}" if found.layer else ""))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings (runs/...), running ones too.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw their curves too; needs matplotlib.")
    ] = None,
) -> None:
    """Print what trainings have set differently and how well they did, and draw their curves."""
    found = inspection.compare(runs)
    _print(found)
    if out is not None:
        found.plot(out)
        _print(f"{out}: loss and accuracy")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training (runs/...).")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Judge by these images; by default by those that were held out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="By default RUN/report.html.")] = None,
    device: DeviceName = "auto",
) -> None:
    """Write one HTML page about a training: curves, mistakes, Grad-CAM, filters, costs. It needs no network.

    It holds the curves and the learning rate, the confusion matrix and the accuracy per class, the most confident
    mistakes, what the network looks at, filters before and after, feature maps, layers with their cost, all settings,
    and whether the split leaks. Needs Jinja2 and matplotlib: pip install "xpcnn\\[report]".
    """
    settings = inspection.compare([run]).runs[0].settings
    try:
        form = zoo.entry(settings["model"]).form(settings["stem"])
        pixels = form.input_shape[1:] if settings["size"] is None else _numbers(settings["size"], 2, "--size")
        mode = settings["mode"] or zoo.entry(settings["model"]).mode
        source, validation, limit, seed = (settings[name] for name in ("data", "validation", "limit", "seed"))
    except KeyError as error:
        raise FileFormatError(f"{run / 'run.json'} is not what xpcnn train writes: no setting {error}.") from None
    if data is None and source != "mnist" and not Path(source).exists():
        raise ArgumentError(f"{source}, which {run} was trained on, is not there. Name the data: xpcnn report RUN DATA")
    training: Dataset | None
    if data is None:
        training, held_out = _training_data(source, validation, limit, seed, pixels, mode)
    else:
        first, second = _open(data, pixels, mode)
        training, held_out = (first, second) if second else (None, first)
    path = inspection.report(run, held_out, training, out, device)
    _print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="A model or weights: .safetensors .json .pth .pt .th .bin .h5 .keras .onnx"),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="What to write: .safetensors .json .pth .pt .th .bin .onnx")
    ],
    key: Annotated[
        str | None, typer.Option(help="Which state dict to take of a torch file that has several: 'model'.")
    ] = None,
    strip_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Take this off the front of the names of weights: 'module.'.")
    ] = "",
    input: Input = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
) -> None:
    """Write a model, or weights of torch, Keras or ONNX, in another format. Nothing in a file is executed.

    A model of xpcnn stays one in .safetensors and .json; .onnx needs one. From anything else the weights are taken.
    """
    if target.exists() and not force:
        raise ArgumentError(f"{target} exists; --force replaces it.")
    size = None if input is None else _numbers(input, 3, "--input")
    lines = formats.convert(source, target, key, strip_prefix, None if size is None else (size[0], size[1], size[2]))
    _print("\n".join(f"{target}: {line}" for line in lines))


# --- inspect ----------------------------------------------------------------------------------------------------


@app.command("data")
def examine_data(
    data: DataPath,
    against: Annotated[
        str | None, typer.Option(metavar="DATA", help="The held-out data; by default the test part of DATA.")
    ] = None,
    split_off: Annotated[
        float | None, typer.Option("--split", metavar="FRACTION", help="Hold out so much, and write both parts to OUT.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="With --split: what of CLASS/FILE names the source, such as '(patient\\d+)'; its images stay on one "
            "side. Without it clusters of near-duplicates do.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --split: a new folder for train/ and test/.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw pairs that are too much alike: FILE.png.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Examine images before training: counts, sizes, broken files, duplicates, and whether the split leaks.

    Ends with exit code 1 if files are broken, equal images have different classes or a split leaks. --split writes
    OUT/train and OUT/test, which share no source, the list OUT/split.csv, and judges them: ready for xpcnn train OUT.
    """
    if (split_off is None) != (out is None) or (group_by is not None and split_off is None):
        raise ArgumentError("--split FRACTION and --out FOLDER belong together, and --group-by to them.")
    if data != "mnist" and not Path(data).exists():
        raise ArgumentError(f'{data} does not exist; expected a folder, an .npz file or the word "mnist".')
    opened, brought = open_dataset(data, 16)
    if split_off is not None and (brought is not None or not isinstance(opened, ImageFolder)):
        raise ArgumentError(
            f"--split takes a folder with one sub-folder of images per class and no test part; {data} is none. "
            "For arrays there is xpcnn.data.split(dataset, fraction, groups=...)."
        )
    found = inspect_data(opened, brought if against is None else against)
    lines = []
    if picture is not None:
        lines.append(f"{picture}: {len(found.pairs)} pairs" if found.picture(picture) else "no pairs to draw")
    if split_off is not None and out is not None and isinstance(opened, ImageFolder):
        lines += _write_split(opened, found, split_off, group_by, seed, out)
    if as_json:
        _print(json.dumps(_no_nan(found.as_dict()), indent=2))
    else:
        _print(found)
        for line in lines:
            _print(line)
    return 0 if found.ok or split_off is not None else 1


def _write_split(
    folder: ImageFolder, found: DataReport, fraction: float, group_by: str | None, seed: int, out: Path
) -> list[str]:
    """Write a split that keeps groups together; return lines that say how good it is."""
    names = [file.relative_to(folder.path).as_posix() for file in found.files]
    groups = found.clusters.tolist() if group_by is None else groups_by(names, group_by)
    good = set(found.files)
    whole = Subset(folder, [i for i, file in enumerate(folder.files) if file in good])
    train, held_out = split(whole, fraction, seed, groups=groups)
    for label, name in enumerate(folder.classes):
        if not ((train.labels == label).any() and (held_out.labels == label).any()):
            raise DataError(
                f"the images of class {name!r} are of too few groups to be on both sides. Use smaller groups, or leave "
                "the class out."
            )
    chosen = np.isin(np.arange(len(whole)), held_out.indices)
    write_split(out, found.files, names, groups, chosen)
    after = inspect_data(*(ImageFolder(out / part, 16, classes=folder.classes) for part in ("train", "test")))
    kind = "clusters of near-duplicates" if group_by is None else "groups"
    return [
        f"{out}: {len(train):,} images in train/, {len(held_out):,} in test/, {len(set(groups)):,} {kind}",
        f"{out}: {after.verdict[-1]}",
    ]


@app.command()
def summary(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 32,
    optimizer: Annotated[OptimizerName, typer.Option(help="Whose memory counts.")] = OptimizerName.adam,
    momentum: Annotated[float, typer.Option(help="For sgd and rmsprop.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Print layers, shapes, parameters, multiplications and the memory that training takes."""
    net, shape = _model(model, classes, input, stem, 0)
    found = inspection.summary(net, shape, batch_size, _optimizer(optimizer, None, momentum, 0.0))
    _print(json.dumps(asdict(found), indent=2) if as_json else found)


@app.command()
def gradcheck(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 2,
    seed: Seed = 0,
) -> int:
    """Compare every gradient with finite differences in float64, on random images.

    Ends with exit code 1 if a gradient is wrong.
    """
    net, shape = _model(model, classes, input, stem, seed)
    report = inspection.gradcheck(net, *_random_batch(net, shape, batch_size, seed), seed=seed)
    _print(report)
    return 0 if report.passed else 1


@app.command()
def crosscheck(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 4,
    device: Annotated[str, typer.Option("--device", help="What to compare with the CPU.")] = "cuda:0",
    seed: Seed = 0,
) -> int:
    """Run a model forward and backward on NumPy and on CuPy and print the largest differences, layer by layer.

    Ends with exit code 1 if something differs by more than rounding, or if there is no GPU.
    """
    Device(device)
    net, shape = _model(model, classes, input, stem, seed)
    report = inspection.crosscheck(net, *_random_batch(net, shape, batch_size, seed), device=device, seed=seed)
    _print(report)
    return 0 if report.passed else 1


@app.command()
def profile(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 32,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to average over.")] = 5,
    device: DeviceName = "auto",
) -> None:
    """Print how long each layer takes in training, forward and backward, with its multiplications and memory."""
    net, shape = _model(model, classes, input, stem, 0)
    _print(inspection.profile(net.to(device), shape, batch_size, steps))


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Parts of workload names.")] = None,
    device: DeviceName = "auto",
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to time each workload.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Time fixed workloads on this machine: training steps and predictions of small and deep networks."""
    found = inspection.bench(names or (), device, seconds)
    _print(json.dumps(asdict(found), indent=2) if as_json else found)


@app.command()
def doctor(as_json: AsJson = False) -> int:
    """Print versions, BLAS, threads and devices, and try a convolution on each device.

    Ends with exit code 1 if something that should work does not.
    """
    found = inspection.doctor()
    _print(json.dumps(found.as_dict(), indent=2) if as_json else found)
    return 0 if found.ok else 1
