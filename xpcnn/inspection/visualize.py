"""Pictures: filters, feature maps, what speaks for a class, confusions, and the curves of trainings.

They need matplotlib (extra "viz"). Each function returns the figure, which a notebook shows, and writes it to `path`
if one is given (.png, .svg, .pdf ...).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_numpy
from ..errors import ArgumentError, FileFormatError
from ..figures import new_figure, save_figure
from ..layers import Layer
from ..training import Classifier, History, Report
from .attribution import Attribution, activations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "plot_activations",
    "plot_attribution",
    "plot_confusion",
    "plot_curves",
    "plot_filters",
    "plot_runs",
    "read_history",
]

Path = str | os.PathLike[str]
MOST_FILTERS, MOST_CHANNELS = 64, 16
MOST_WRITTEN = 20  # classes up to which a confusion matrix has its numbers written in


def plot_filters(net: Layer, layer: str | None = None, path: Path | None = None, title: str | None = None) -> Figure:
    """Draw the filters of a convolution as small pictures on one common scale.

    Filters over one channel are grey (black is the most negative weight, white the most positive, mid-grey is 0), over
    three they are coloured as RGB; over any other number of channels there is a row for each filter, a picture for each
    of its first channels.

    Args:
        net: a built network.
        layer: path of the convolution in it, such as "0"; the first one if not given.
        path: file to write (.png, .svg, .pdf ...), or None.
        title: above the picture; by default layer, size and range.

    Returns:
        The matplotlib figure.
    """
    figure = new_figure("drawing filters")
    path_in_net, convolution = find_convolution(net, layer)
    weight = to_numpy(convolution.weight.data).astype(np.float64)[:MOST_FILTERS]
    count, channels = weight.shape[:2]
    scale = float(np.abs(weight).max()) or 1.0
    if channels in (1, 3):
        columns = math.ceil(math.sqrt(count * 2)) if count > 4 else count
        pictures = list(weight.transpose(0, 2, 3, 1) if channels == 3 else weight[:, 0])
    else:
        columns = min(channels, MOST_CHANNELS)
        pictures = list(weight[:MOST_CHANNELS, :MOST_CHANNELS].reshape(-1, *weight.shape[2:]))
    rows = math.ceil(len(pictures) / columns)
    figure.set_size_inches(max(0.75 * columns + 0.3, 4.0), 0.75 * rows + 0.8)
    for axes, picture in zip(figure.subplots(rows, columns, squeeze=False).flat, pictures, strict=False):
        if channels == 3:
            axes.imshow(0.5 + 0.5 * picture / scale)
        else:
            axes.imshow(picture, cmap="gray", vmin=-scale, vmax=scale)
        axes.spines[:].set_color("0.8")
    _bare(figure.axes)
    shape = "x".join(map(str, convolution.weight.data.shape))
    name = f"layer {path_in_net}" if path_in_net else "the layer"
    default = f"Filters of {name}, {shape}, from {-scale:.2g} to {scale:.2g}"
    figure.suptitle(title or default, fontsize=10)
    return save_figure(figure, path)


def plot_activations(
    model: Classifier | Layer, x: Any, layer: str, path: Path | None = None, title: str | None = None
) -> Figure:
    """Draw what a layer puts out for one image: the first 64 channels of a feature map, or a bar for each unit.

    Args:
        model: a classifier, or a built network.
        x: one image: a file, or an array as `activations` takes it; of several the first is drawn.
        layer: path of the layer.
        path: file to write, or None.
        title: above the picture; by default layer, size and range.
    """
    figure = new_figure("drawing feature maps")
    found = activations(model, x, layer)[0].astype(np.float64)
    if found.ndim == 3:
        channels = found[:MOST_FILTERS]
        columns = min(len(channels), 8)
        rows = math.ceil(len(channels) / columns)
        figure.set_size_inches(max(1.1 * columns + 0.3, 4.0), 1.1 * rows + 0.8)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, channel in zip(grid.flat, channels, strict=False):
            axes.imshow(channel, cmap="viridis", vmin=found.min(), vmax=max(found.max(), found.min() + 1e-12))
        _bare(figure.axes)
    else:
        figure.set_size_inches(7.0, 2.5)
        axes = figure.subplots()
        axes.bar(np.arange(found.size), found.reshape(-1), width=1.0)
        axes.set(xlabel="unit", ylabel="output")
    shape = "x".join(map(str, found.shape))
    default = f"Output of layer {layer}, {shape}, from {found.min():.2g} to {found.max():.2g}"
    figure.suptitle(title or default, fontsize=10)
    return save_figure(figure, path)


def plot_attribution(
    images: Any, attribution: Attribution, path: Path | None = None, titles: Sequence[str] | None = None
) -> Figure:
    """Draw each image and, beside it, what speaks for its class, laid over the image in grey.

    Args:
        images: (N, C, H, W) with 1 or 3 channels, those that were asked about: uint8, or floats in any scale.
        attribution: what `grad_cam`, `saliency` or `occlusion` returned.
        path: file to write, or None.
        titles: above each image, N of them; nothing by default.

    Raises:
        ArgumentError: if there are not as many images as maps, or they have neither 1 nor 3 channels.
    """
    figure = new_figure("drawing what a network looks at")
    shown = to_numpy(images)
    if shown.ndim != 4 or len(shown) != len(attribution.maps) or shown.shape[1] not in (1, 3):
        raise ArgumentError(
            f"plot_attribution takes {len(attribution.maps)} images (N, C, H, W) of 1 or 3 channels, as many as there "
            f"are maps; received shape {shown.shape}."
        )
    figure.set_size_inches(7.0, 0.4 + 3.0 * len(shown))
    grid = figure.subplots(len(shown), 2, squeeze=False)
    signed = bool((attribution.maps < 0).any())
    for i, (left, right) in enumerate(grid):
        picture, heat = scaled_picture(shown[i]), attribution.maps[i]
        size = {"extent": (0, picture.shape[1], picture.shape[0], 0)}  # a map may be coarser than its image
        left.imshow(picture, cmap="gray", vmin=0, vmax=1, **size)
        grey = picture if picture.ndim == 2 else picture.mean(axis=2)
        right.imshow(0.6 * grey, cmap="gray", vmin=0, vmax=1, **size)  # darker, so that the colours show
        top = float(np.abs(heat).max()) or 1.0
        # where nothing speaks, the image shows through
        drawn = right.imshow(
            heat,
            cmap="coolwarm" if signed else "inferno",
            vmin=-top if signed else 0.0,
            vmax=top,
            alpha=0.85 * np.sqrt(np.abs(heat) / top),
            **size,
        )
        bar = figure.colorbar(drawn, ax=right, fraction=0.046, label=attribution.unit)
        bar.ax.tick_params(labelsize=7)
        if bar.solids is not None:  # the bar shows the colours themselves
            bar.solids.set_alpha(1.0)
        left.set_title("" if titles is None else titles[i], fontsize=9)
        where = f" (layer {attribution.layer})" if attribution.layer else ""
        right.set_title(f"{attribution.method} for {attribution.name(i)}{where}", fontsize=9)
    _bare(list(grid.flat))
    return save_figure(figure, path)


def plot_confusion(report: Report, path: Path | None = None, title: str | None = None) -> Figure:
    """Draw a confusion matrix: rows are the truth and columns the predictions, coloured by the part of their row.

    Args:
        report: what `Classifier.evaluate` returned.
        path: file to write, or None.
        title: above the picture; by default the accuracy.
    """
    figure = new_figure("drawing a confusion matrix")
    counts, classes = report.confusion, report.classes
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3.0 + 0.42 * len(classes), 14.0)
    figure.set_size_inches(side + 0.8, side)
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")  # long names may take their room
    figure.colorbar(drawn, ax=axes, fraction=0.046, label="part of the images of the class")
    if len(classes) <= MOST_WRITTEN:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color="wk"[int(shares[i, j] < 0.5)])
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="prediction", ylabel="truth")
    total = int(counts.sum())
    axes.set_title(title or f"Accuracy {report.accuracy:.4f} on {total:,} images", fontsize=10)
    return save_figure(figure, path)


def plot_runs(runs: Mapping[str, History | Path], path: Path | None = None) -> Figure:
    """Draw loss and accuracy of several trainings against the epoch: a colour for each, training dashed.

    Args:
        runs: by name, what `fit` returned or the history.csv that was written while training.
        path: file to write, or None.

    Raises:
        ArgumentError: if there is no run.
    """
    figure = new_figure("comparing trainings")
    if not runs:
        raise ArgumentError("plot_runs takes at least one training by name; received none.")
    figure.set_size_inches(10.0, 4.2)
    panels = figure.subplots(1, 2)
    for number, history in enumerate(runs.values()):
        found = read_history(history) if isinstance(history, (str, os.PathLike)) else history
        for axes, column in zip(panels, ("loss", "accuracy"), strict=True):
            style = {"color": f"C{number % 10}", "marker": "o", "markersize": 3}
            validated = f"val_{column}" in found
            axes.plot(
                found["epoch"], found[column], "--" if validated else "-", alpha=0.5 if validated else 1.0, **style
            )
            if validated:
                axes.plot(found["epoch"], found[f"val_{column}"], "-", **style)
    for axes, column in zip(panels, ("loss", "accuracy"), strict=True):
        axes.set(xlabel="epoch", ylabel=column)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    handles = [panels[0].plot([], [], color=f"C{i % 10}", label=name)[0] for i, name in enumerate(runs)]
    handles += [panels[0].plot([], [], style, color="0.4", label=label)[0]
                for style, label in (("-", "validation"), ("--", "training"))]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), fontsize=8)
    return save_figure(figure, path)


def plot_curves(history: History | Path, path: Path | None = None) -> Figure:
    """Draw loss and accuracy of a training against the epoch, for training and validation.

    Args:
        history: what `fit` returned, or the history.csv that was written while training.
        path: file to write (.png, .svg, .pdf ...), or None.

    Returns:
        The matplotlib figure.
    """
    if isinstance(history, (str, os.PathLike)):
        history = read_history(history)
    figure: Figure = history.plot(path)
    return figure


def read_history(path: Path) -> History:
    """Read a history.csv.

    Raises:
        FileFormatError: if it is no table of numbers, or holds no epoch.
    """
    history = History()
    with open(path, newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file):
                history.append({name: float(value) for name, value in row.items() if value})
        except (ValueError, TypeError, UnicodeDecodeError):
            name = os.fspath(path)
            raise FileFormatError(f"{name} is not a table of numbers as xpcnn writes it (history.csv).") from None
    if not history.epochs:
        raise FileFormatError(f"{os.fspath(path)} holds no finished epoch, so there is nothing to draw.")
    return history


def find_convolution(net: Layer, wanted: str | None) -> tuple[str, Any]:
    """Return the path and layer of the convolution that is asked for, else of the first."""
    found: list[tuple[str, Any]] = net.leaves() if wanted is None else [(wanted, net[wanted])]
    for path, layer in found:
        weight = getattr(layer, "weight", None)
        if weight is not None and getattr(weight, "data", None) is not None and weight.data.ndim == 4:
            return path, layer
    raise ArgumentError(
        f"filters are drawn of a built convolution; received {wanted or 'a network without one'}. "
        "Call net.build((C, H, W)) first, or name a convolution."
    )


def _bare(grid: Sequence[Any]) -> None:
    """Take away the scales of axes that hold pictures, and the frames of those that hold nothing."""
    for axes in grid:
        axes.set_xticks([], [])
        axes.set_yticks([], [])
        axes.set_frame_on(axes.has_data())


def scaled_picture(image: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) as (H, W) or (H, W, 3) from 0 to 1."""
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))
    scaled: np.ndarray = (image.astype(np.float64) - low) / ((high - low) or 1.0)
    picture: np.ndarray = scaled[0] if len(scaled) == 1 else scaled.transpose(1, 2, 0)
    return picture
