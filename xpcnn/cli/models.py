"""`xpcnn evaluate`, `predict`, `explain` and `convert`: what is done with a saved model."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .. import formats, inspection
from ..data.datasets import limited
from ..errors import ArgumentError, DataError
from ..table import Table
from ..training.inputs import named
from .common import (
    AsJson,
    BatchSize,
    DataPath,
    DeviceName,
    Input,
    Limit,
    SavedModel,
    numbers,
    open_data,
    saved_model,
    show,
)


class Method(str, Enum):
    """What `--method` takes."""

    gradcam = "gradcam"
    saliency = "saliency"
    occlusion = "occlusion"


def evaluate(
    model: SavedModel,
    data: DataPath,
    batch_size: BatchSize = 64,
    limit: Limit = None,
    device: DeviceName = "auto",
    as_json: AsJson = False,
) -> None:
    """Print loss, accuracy, accuracy per class and the confusion matrix; of data with a test part, for that part."""
    classifier = saved_model(model, device)
    image = classifier.image or {"size": None, "mode": "L", "fit": "resize"}
    first, second = open_data(data, image["size"], image["mode"], image["fit"])
    dataset = limited(second or first, limit)
    if named(dataset.classes) is not None and dataset.classes != classifier.classes_:
        theirs, ours = ", ".join(dataset.classes), ", ".join(classifier.classes_ or [])
        raise DataError(f"{data} has the classes {theirs}, but {model} tells {ours} apart.")
    report = classifier.evaluate(dataset, batch_size=batch_size)
    show(json.dumps(report.to_dict(), indent=2) if as_json else report)


def predict(
    model: SavedModel,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    device: DeviceName = "auto",
    as_json: AsJson = False,
) -> None:
    """Print the class of each image and the probabilities of the classes."""
    classifier = saved_model(model, device)
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
        show(json.dumps(found, indent=2))
        return
    table = Table("", [("image", "<"), ("class", "<"), ("probability", ">"), ("then", "<")])
    for file, row in zip(images, probabilities, strict=True):
        best, *others = np.argsort(-row, kind="stable")[:4]
        then = ", ".join(f"{classes[i]} {row[i]:.4f}" for i in others)
        table.add(file, classes[best], f"{row[best]:.4f}", then)
    show(table)


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
    classifier = saved_model(model, device)
    classes = classifier.classes_ or []
    pixels = inspection.read_images(classifier, image)
    probabilities = classifier.predict_proba(pixels)[0]
    table = Table(str(image), [("class", "<"), ("probability", ">")])
    for i in np.argsort(-probabilities, kind="stable")[:top]:
        table.add(classes[i], f"{probabilities[i]:.4f}")
    show(table)
    if method is Method.gradcam:
        found = inspection.grad_cam(classifier, pixels, wanted, layer)
    else:
        found = (inspection.saliency if method is Method.saliency else inspection.occlusion)(classifier, pixels, wanted)
    path = out or Path(f"{image.stem}-{method.value}.png")
    best = int(probabilities.argmax())
    inspection.plot_attribution(pixels, found, path, [f"{image.name}: {classes[best]} ({probabilities[best]:.4f})"])
    show(f"{path}: {found.method} for {found.name(0)}" + (f", layer {found.layer}" if found.layer else ""))


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
    size = None if input is None else numbers(input, 3, "--input")
    lines = formats.convert(source, target, key, strip_prefix, None if size is None else (size[0], size[1], size[2]))
    show("\n".join(f"{target}: {line}" for line in lines))
