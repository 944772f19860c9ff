"""One page about a training: HTML that needs no network, with pictures, tables, and words beside every picture."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..backend import Device, to_numpy
from ..data import Dataset, Subset
from ..data.datasets import gather
from ..data.leakage import leak_warning
from ..errors import ArgumentError, MissingExtraError, XpcnnError
from ..figures import new_figure
from ..files import atomic_write
from ..formats import read_weights
from ..layers import Layer, config, from_config
from ..table import quantity
from ..training import Classifier, History, Report, load, load_pretrained
from .attribution import Attribution, activations, grad_cam
from .compare import compare
from .summary import Summary
from .visualize import find_convolution, plot_activations, plot_confusion, plot_filters, scaled_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report"]

MISTAKES, EXAMPLES = 12, 10  # pictures shown
SIDE = 128  # pixels of a picture's longer side, at most: so the page stays below 5 MB
WRITTEN = 20  # classes up to which the confusion matrix is there as a table, and confused pairs that are listed else
MANY = 100  # classes from which confusions are no longer drawn


def report(
    folder: str | os.PathLike[str],
    held_out: Dataset | None = None,
    training: Dataset | None = None,
    path: str | os.PathLike[str] | None = None,
    device: str | Device = "auto",
) -> Path:
    """Write an HTML page about a training that `xpcnn train` has left in a folder.

    The page holds everything it shows, asks nothing of any network and stays below 5 MB. It judges the weights of the
    best epoch (the last, where there is no best.safetensors): curves, learning rate, confusion matrix, accuracy per
    class, the most confident mistakes, Grad-CAM, filters before and after, feature maps, the network's layers with
    their cost, settings, and whether the split leaks.

    Args:
        folder: with run.json, history.csv and best.safetensors or model.safetensors in it.
        held_out: images to judge the network by; the training images if there are none.
        training: the images it was trained on, for their number in each class and to see whether the split leaks.
        path: the file to write; by default report.html in the folder.
        device: where to compute.

    Returns:
        The path of the page.

    Raises:
        ArgumentError: if the folder is no training's, or there are no images at all.
        DataError: if the images are not those of the network.
        FileFormatError: if a file in the folder is broken.
        MissingExtraError: without Jinja2 or matplotlib (extra "report").
    """
    _need_extra()
    folder = Path(folder)
    run = compare([folder]).runs[0]
    model = next((file for name in ("best", "model") if (file := folder / f"{name}.safetensors").exists()), None)
    if model is None:
        raise ArgumentError(f"{folder} has no model yet: best.safetensors is there after the first epoch.")
    judged = training if held_out is None else held_out
    if judged is None:
        raise ArgumentError("a report judges the network by images; give held_out, or training.")
    classifier = load(model, device)
    scores = classifier.evaluate(judged)
    probabilities = classifier.predict_proba(judged)
    shown = _one_of_each_class(judged.labels)
    images = gather(judged, shown)
    try:
        heat, problem = grad_cam(classifier, images), ""
    except ArgumentError as error:  # a network without feature maps
        heat, problem = None, str(error)

    page = {
        "name": run.name,
        "settings": run.settings,
        "facts": _facts(
            run.history, scores, classifier, model.name, "held-out" if held_out is not None else "training"
        ),
        "stopped": run.stopped,
        "charts": [_chart(run.history, column) for column in ("loss", "accuracy", "lr")],
        "history": _history_table(run.history),
        "verdict": _verdict(training, held_out),
        "confusion": _confusion(scores),
        "confusions": _confusion_table(scores),
        "classes": _class_table(scores, training),
        "mistakes": _mistakes(judged, probabilities, scores.classes),
        "wrong": int(scores.confusion.sum() - np.trace(scores.confusion)),
        "examples": _examples(judged, shown, images, probabilities, scores.classes, heat),
        "layer": heat.layer if heat is not None else "",
        "problem": problem,
        "filters": _filters(classifier, run.settings),
        "maps": _maps(classifier, images[:1], heat.layer if heat is not None else None),
        "network": _network_table(summary := classifier.summary()),
        "cost": _cost(summary),
        "setting_table": _settings_table(run.settings, folder),
    }
    target = folder / "report.html" if path is None else Path(path)
    html = _render(page)
    with atomic_write(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def _need_extra() -> None:
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "report", "writing a report")


def _render(page: dict[str, Any]) -> str:
    """Fill the template; whatever is in the page is text, so markup in a class name stays text."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["digest"] = _digest
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(page)


def _digest(text: str) -> str:
    """Return what a Content-Security-Policy calls an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- pictures and tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and the same in words."""

    source: str
    alt: str
    caption: str = ""
    small: bool = False  # shown larger than it is, pixel by pixel


@dataclass
class Grid:
    """A table of (text, value to sort by) cells; numbers stand right."""

    columns: Sequence[str]
    rows: list[list[tuple[str, str]]] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """Add a row of texts, numbers and (text, number) pairs; NaN is a dash."""
        self.rows.append([_cell(cell) for cell in cells])


def _cell(value: Any) -> tuple[str, str]:
    text, number = value if isinstance(value, tuple) else (None, value)
    if isinstance(number, str):
        return number, ""
    if number is None or number != number:
        return "–", "-1"
    return text or (f"{number:,}" if isinstance(number, int) else f"{number:.4g}"), repr(number)


def _percent(part: float) -> str:
    return f"{100 * part:.1f}\N{NO-BREAK SPACE}%"


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _svg(figure: Figure) -> str:
    """Return a figure as SVG on nothing, the same for the same figure; the page turns its colours over in the dark."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called "$x"
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "xpcnn"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _uri(buffer.getvalue(), "svg+xml")


def _png(figure: Figure) -> str:
    """Return a figure of pictures, without its title, as PNG on nothing."""
    figure.suptitle("")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, dpi=80)
    with Image.open(buffer) as picture:
        return _thumbnail(picture.convert("RGBA").quantize(256), None)


def _photo(pixels: np.ndarray, alt: str, caption: str = "") -> Picture:
    """Return pixels (H, W) or (H, W, 3) from 0 to 1 as a picture."""
    picture = Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))
    return Picture(_thumbnail(picture, SIDE), alt, caption, max(picture.size) < 64)


def _thumbnail(picture: Image.Image, side: int | None) -> str:
    if side is not None:
        picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return _uri(buffer.getvalue(), "png")


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) as (H, W) or (H, W, 3) from 0 to 1."""
    return scaled_picture(image if len(image) in (1, 3) else image.mean(axis=0, keepdims=True))


# --- what is on the page ----------------------------------------------------------------------------------------


def _facts(history: History, scores: Report, classifier: Classifier, model: str, kind: str) -> list[tuple[str, str]]:
    counts = list(scores.counts.values())
    seconds = sum(history["seconds"])
    epoch = history.best if model.startswith("best") else history.row(-1)
    minutes = f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.1f} seconds"
    return [
        ("Accuracy", f"{_percent(scores.accuracy)} of {sum(counts):,} {kind} images"),
        ("Always the commonest class", f"{_percent(max(counts) / sum(counts))} would be right"),
        ("Loss", f"{scores.loss:.4g}"),
        ("Judged", f"{model}, epoch {epoch['epoch']:.0f} of {history.epochs}"),
        ("Parameters", f"{sum(p.data.size for p in classifier.net.parameters().values()):,}"),
        ("Time", minutes),
    ]


def _chart(history: History, column: str) -> Picture:
    label = "learning rate" if column == "lr" else column
    figure = new_figure("drawing curves", 4.2, 2.8)
    axes = figure.subplots()
    words = []
    for key, name in ((column, "" if column == "lr" else "training"), (f"val_{column}", "validation")):
        known = [(int(e), v) for e, v in zip(history["epoch"], history.get(key, []), strict=False) if math.isfinite(v)]
        if known:
            axes.plot(*zip(*known, strict=True), label=name, marker="o", markersize=3)
            (first, start), (last, end) = known[0], known[-1]
            values = [value for _, value in known]
            words.append(
                f"{name or label}: {start:.4g} in epoch {first}, {end:.4g} in epoch {last}, lowest {min(values):.4g}, "
                f"highest {max(values):.4g}."
            )
    axes.set(xlabel="epoch", ylabel=label)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    if column == "lr":
        axes.set_ylim(bottom=0)
    else:
        axes.legend()
    return Picture(_svg(figure), f"{label.capitalize()} by epoch. {' '.join(words)}")


def _history_table(history: History) -> Grid:
    grid = Grid(list(history))
    for i in range(history.epochs):
        grid.add(*(int(value) if name == "epoch" else value for name, value in history.row(i).items()))
    return grid


def _verdict(training: Dataset | None, held_out: Dataset | None) -> tuple[bool, str]:
    """Return whether the figures can be believed, as far as the images tell, and why."""
    if held_out is None:
        return False, "Nothing was held out: the figures on this page are of the training images, and flatter."
    if training is None:
        return True, "Not judged: the page was made without the training images."
    warning = leak_warning(training, held_out)
    if warning is not None:
        return False, warning[0].upper() + warning[1:]
    return True, (
        "No sign of a leak: hardly any held-out image has a near-duplicate among the training images. This is a quick "
        "look at a part of them; xpcnn data looks at all."
    )


def _confused(scores: Report) -> list[tuple[int, str, str]]:
    """Return (images, truth, prediction) of the most frequent mistakes."""
    wrong = scores.confusion * (1 - np.eye(len(scores.classes), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:WRITTEN]
    pairs = [divmod(int(i), len(scores.classes)) for i in order if wrong.flat[i]]
    return [(int(wrong[i, j]), scores.classes[i], scores.classes[j]) for i, j in pairs]


def _confusion(scores: Report) -> Picture | None:
    if len(scores.classes) > MANY:
        return None
    right, total = int(np.trace(scores.confusion)), int(scores.confusion.sum())
    mistakes = ", ".join(f"{truth} as {other} ({count})" for count, truth, other in _confused(scores)[:5])
    alt = f"Confusion matrix: {right:,} of {total:,} images are predicted right."
    alt += f" Most frequent mistakes: {mistakes}." if mistakes else ""
    figure = plot_confusion(scores, title=" ")
    side = 2.0 + 0.26 * len(scores.classes)
    figure.set_size_inches(side + 0.8, side)  # small, so that its letters are large on a phone
    return Picture(_svg(figure), alt)


def _confusion_table(scores: Report) -> Grid:
    """Return the whole matrix, or the most frequent mistakes where it is large."""
    if len(scores.classes) > WRITTEN:
        grid = Grid(["truth", "prediction", "images"])
        for count, truth, other in _confused(scores):
            grid.add(truth, other, count)
        return grid
    grid = Grid(["truth", *scores.classes])
    for name, row in zip(scores.classes, scores.confusion.tolist(), strict=True):
        grid.add(name, *row)
    return grid


def _class_table(scores: Report, training: Dataset | None) -> Grid:
    grid = Grid(["class", *(["training images"] if training else []), "images", "accuracy", "precision", "F1"])
    trained = [] if training is None else np.bincount(training.labels, minlength=len(scores.classes)).tolist()
    for i, name in enumerate(scores.classes):
        figures = [table[name] for table in (scores.per_class, scores.precision, scores.f1)]
        grid.add(
            name,
            *trained[i : i + 1],
            scores.counts[name],
            *(value if value != value else (_percent(value), value) for value in figures),
        )
    return grid


def _one_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Return the index of the first image of each class, of ten classes at most."""
    first: np.ndarray = np.unique(labels, return_index=True)[1]
    return first[:EXAMPLES]


def _name(dataset: Dataset, index: int) -> str:
    """Return the file name of an image where it has one, else its number."""
    whole: Any = dataset
    while isinstance(whole, Subset):
        whole, index = whole.dataset, int(whole.indices[index])
    listed = getattr(whole, "files", None)
    return f"Image {index}" if listed is None else Path(listed[index]).name


def _mistakes(dataset: Dataset, probabilities: np.ndarray, classes: Sequence[str]) -> list[Picture]:
    """Return the images that the network is most sure about and wrong."""
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != dataset.labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]
    pictures = []
    for index, image in zip(wrong.tolist(), gather(dataset, wrong) if len(wrong) else [], strict=True):
        truth, guess = classes[int(dataset.labels[index])], classes[predicted[index]]
        name = _name(dataset, index)
        caption = f"{truth}, taken for {guess} ({_percent(sure[index])})"
        pictures.append(_photo(_pixels(image), f"{name}: {caption}.", caption))
    return pictures


def _examples(
    dataset: Dataset,
    chosen: np.ndarray,
    images: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    heat: Attribution | None,
) -> list[list[Picture]]:
    """Return for each image the picture and, where there is one, the picture with its heat map over it."""
    pairs = []
    for i, index in enumerate(chosen.tolist()):
        pixels, row = _pixels(images[i]), probabilities[index]
        best, name = int(row.argmax()), _name(dataset, index)
        truth = classes[int(dataset.labels[index])]
        caption = f"{truth}: predicted {classes[best]} ({_percent(row[best])})"
        pair = [_photo(pixels, f"{name}: {caption}.", caption)]
        if heat is not None:
            pair.append(_photo(_overlay(pixels, heat.maps[i]), f"{heat.method} of {name}: {_where(heat.maps[i])}"))
        pairs.append(pair)
    return pairs


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map (H, W) over an image in darkened grey; where nothing speaks the image shows through."""
    import matplotlib

    grey = 0.6 * (pixels if pixels.ndim == 2 else pixels.mean(axis=2))[..., None]
    share = heat / (float(heat.max()) or 1.0)
    opaque = 0.85 * np.sqrt(share)[..., None]
    colours = matplotlib.colormaps["inferno"](share)[..., :3]
    laid: np.ndarray = opaque * colours + (1 - opaque) * grey
    return laid


def _where(heat: np.ndarray) -> str:
    """Say where most of a map (H, W) is."""
    total = float(heat.sum())
    if total <= 0:
        return "nothing speaks for the class."
    thirds = [np.array_split(part, 3, axis=1) for part in np.array_split(heat, 3, axis=0)]
    shares = np.array([[part.sum() / total for part in row] for row in thirds])
    i, j = divmod(int(shares.argmax()), 3)
    row, column = ("top", "middle", "bottom")[i], ("left", "centre", "right")[j]
    return f"most of the evidence, {_percent(shares[i, j])}, lies in the {row} {column} ninth of the image."


def _filters(classifier: Classifier, settings: dict[str, Any]) -> list[Picture]:
    """Return the first convolution's filters before and after; nothing where there is no convolution."""
    try:
        path, _ = find_convolution(classifier.net, None)
    except ArgumentError:
        return []
    initial, start = _initial(classifier, settings)
    pictures = []
    for caption, net in ((start, initial), ("After training", classifier.net)):
        if net is None:
            continue
        weight = _weight(net, path)
        shape = "x".join(map(str, weight.shape))
        alt = f"{caption}: filters of layer {path}, {shape}, weights from {weight.min():.3g} to {weight.max():.3g}"
        if net is classifier.net and initial is not None:
            before = _weight(initial, path)
            moved = np.linalg.norm(weight - before) / (float(np.linalg.norm(before)) or 1.0)
            alt += f"; they have moved by {_percent(moved)} of their length"
        pictures.append(Picture(_png(plot_filters(net, path)), f"{alt}.", f"{caption} (layer {path}, {shape})"))
    return pictures


def _weight(net: Any, path: str) -> np.ndarray:
    weight: np.ndarray = to_numpy(net[path].weight.data).astype(np.float64)
    return weight


def _initial(classifier: Classifier, settings: dict[str, Any]) -> tuple[Layer | None, str]:
    """Build the network again as it was before training: its weights follow from the seed, or were given."""
    net = from_config(config(classifier.net))
    assert classifier.input_shape is not None
    net.build(classifier.input_shape, seed=int(settings.get("seed", 0)))
    given = settings.get("weights")
    if given is None:
        return net, "Before training"
    try:
        load_pretrained(net, read_weights(given))
    except (OSError, XpcnnError):  # the file has gone or changed since
        return None, ""
    return net, f"Before training, from {Path(given).name}"


def _maps(classifier: Classifier, image: np.ndarray, last: str | None) -> list[Picture]:
    """Return the feature maps of the first convolution and of the layer that Grad-CAM looks at."""
    try:
        layers = [find_convolution(classifier.net, None)[0], *([last] if last else [])]
    except ArgumentError:
        return []
    pictures = []
    for layer in dict.fromkeys(layers):
        found = activations(classifier, image, layer)[0]
        active = int((found.max(axis=(1, 2)) > 0).sum())
        shape = "x".join(map(str, found.shape))
        alt = (
            f"Output of layer {layer}, {shape}, from {found.min():.3g} to {found.max():.3g}: {active} of {len(found)} "
            f"channels are above 0 somewhere; strongest is channel {int(found.max(axis=(1, 2)).argmax())}."
        )
        drawn = _png(plot_activations(classifier, image, layer))
        pictures.append(Picture(drawn, alt, f"Layer {layer} ({shape})"))
    return pictures


def _network_table(summary: Summary) -> Grid:
    grid = Grid(["name", "layer", "output", "parameters", "MACs", "kept for backward"])
    for row in summary.rows:
        grid.add(
            row.path,
            row.layer,
            "x".join(map(str, row.output_shape)),
            row.parameters,
            (quantity(row.macs), row.macs),
            (quantity(row.kept, "B"), row.kept),
        )
    return grid


def _cost(summary: Summary) -> str:
    return (
        f"{summary.parameters:,} parameters ({quantity(summary.weights, 'B')}), {quantity(summary.macs)} "
        f"multiply-accumulates an image; training keeps {quantity(summary.kept, 'B')} an image for the backward pass."
    )


def _settings_table(settings: dict[str, Any], folder: Path) -> Grid:
    grid = Grid(["setting", "value"])
    versions = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("versions") or {}
    for name, value in {**settings, **versions}.items():
        grid.add(
            str(name), "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        )
    return grid
