"""Pictures: the filters of a convolution and the curves of a training. They need matplotlib (extra "viz")."""

from __future__ import annotations

import csv
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_numpy
from ..errors import ArgumentError, FileFormatError, MissingExtraError
from ..files import atomic_write
from ..layers import Layer
from ..training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves", "plot_filters"]

Path = str | os.PathLike[str]
MOST_FILTERS, MOST_CHANNELS = 64, 16


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
    figure = _figure("drawing filters")
    path_in_net, convolution = _find(net, layer)
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
    for axes in figure.axes:
        axes.set_xticks([], [])
        axes.set_yticks([], [])
        axes.set_frame_on(axes.has_data())
    shape = "x".join(map(str, convolution.weight.data.shape))
    name = f"layer {path_in_net}" if path_in_net else "the layer"
    default = f"Filters of {name}, {shape}, from {-scale:.2g} to {scale:.2g}"
    figure.suptitle(title or default, fontsize=10)
    return _save(figure, path)


def plot_curves(history: History | Path, path: Path | None = None) -> Figure:
    """Draw loss and accuracy of a training against the epoch, for training and validation.

    Args:
        history: what `fit` returned, or the history.csv that was written while training.
        path: file to write (.png, .svg, .pdf ...), or None.

    Returns:
        The matplotlib figure.
    """
    if isinstance(history, (str, os.PathLike)):
        history = _read_csv(history)
    figure: Figure = history.plot(path)
    return figure


def _read_csv(path: Path) -> History:
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


def _find(net: Layer, wanted: str | None) -> tuple[str, Any]:
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


def _figure(purpose: str) -> Figure:
    """Return an empty figure that needs no display and no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "viz", purpose) from error
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return figure
