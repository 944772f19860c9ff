"""What commands share: the options they have in common, and what these stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import zoo
from ..data import Dataset, open_dataset, split
from ..errors import ArgumentError
from ..layers import Layer
from ..optim import OPTIMIZERS, Optimizer
from ..training import Classifier, load

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


def numbers(text: str, count: int, option: str) -> tuple[int, ...]:
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


def show(something: Any) -> None:
    """Print a table or text: fitted to a terminal, at full width in a file or pipe."""
    console = Console()
    if console.is_terminal and hasattr(something, "__rich__"):
        console.print(something)
    else:
        print(something)


def saved_model(path: str | Path, device: str) -> Classifier:
    """Return a saved model, after checking that there is one: "auto" would first talk about devices."""
    if not Path(path).exists():
        raise ArgumentError(f"{path} does not exist; expected a model saved by xpcnn (.safetensors or .json).")
    return load(path, device)


def network(
    model: str, classes: int | None, size: str | None, stem: str | None, seed: int
) -> tuple[Layer, tuple[int, ...]]:
    """Return a network, saved or by name, built on the CPU, and its input shape."""
    shape = None if size is None else numbers(size, 3, "--input")
    net: Layer
    if Path(model).suffix.lower() in (".safetensors", ".json"):
        if classes is not None or stem is not None:
            raise ArgumentError("--classes and --stem are for a model given by name; a saved model has its own.")
        classifier = saved_model(model, "cpu")
        net, own = classifier.net, classifier.input_shape
    else:
        net, own = zoo.build(model, classes, stem=stem), zoo.entry(model).form(stem).input_shape
    assert own is not None
    net.build(shape or own, seed=seed)
    return net, shape or own


def pixels_of(model: str, stem: str | None, size: str | None) -> tuple[int, ...]:
    """Return (H, W) of the images: what --size says, else those that the network by this name is for."""
    return zoo.entry(model).form(stem).input_shape[1:] if size is None else numbers(size, 2, "--size")


def open_data(
    data: str, size: tuple[int, ...] | None, mode: str, fit: str = "resize", limit: int | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return (training or only part, test part or None)."""
    if data != "mnist" and not Path(data).exists():
        raise ArgumentError(f'{data} does not exist; expected a folder, an .npz file or the word "mnist".')
    return open_dataset(data, size, mode, fit, limit=limit)


def training_data(
    data: str, validation: str | None, limit: int | None, seed: int, pixels: tuple[int, ...], mode: str
) -> tuple[Dataset, Dataset | None]:
    """Return (training, held out) as `xpcnn train` takes them."""
    training, held_out = open_data(data, pixels, mode, limit=limit)
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
        first, second = open_data(wanted, pixels, mode)
        return training, second or first
    if fraction == 0:
        return training, None
    return split(training, fraction, seed)


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


def make_optimizer(
    name: OptimizerName, lr: float | None, momentum: float, weight_decay: float, lr_groups: Sequence[str] = ()
) -> Optimizer:
    """Return the optimizer that the options ask for."""
    options: dict[str, Any] = {"weight_decay": weight_decay} if weight_decay else {}
    if lr_groups:
        options["groups"] = _groups(lr_groups)
    if lr is not None:
        options["lr"] = lr
    if momentum:
        if name not in (OptimizerName.sgd, OptimizerName.rmsprop):
            raise ArgumentError(f"--momentum is for sgd and rmsprop; {name.value} has its own.")
        options["momentum"] = momentum
    return OPTIMIZERS[name.value](**options)


def no_nan(value: Any) -> Any:
    """Return the same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: no_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
