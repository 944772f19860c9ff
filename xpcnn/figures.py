"""Figures by matplotlib (extra "viz"), made and written in one way: no display, no global state, whole files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import MissingExtraError
from .files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "save_figure"]


def new_figure(purpose: str, width: float = 6.4, height: float = 4.8) -> Figure:
    """Return an empty figure of so many inches.

    Raises:
        MissingExtraError: without matplotlib; it says that this is needed for `purpose`.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "viz", purpose) from error
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: no window
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write the figure to a file (.png, .svg, .pdf ...) unless `path` is None; return it, which a notebook shows."""
    if path is not None:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return figure
