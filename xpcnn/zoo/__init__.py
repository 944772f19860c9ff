"""Networks by name: `zoo.build("lenet", classes=10)`, `zoo.names()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ArgumentError
from ..layers import Layer
from .classic import keras_style, lenet, mri, simple_convnet

__all__ = ["MODELS", "Entry", "build", "entry", "keras_style", "lenet", "mri", "names", "simple_convnet"]


@dataclass(frozen=True)
class Entry:
    """A network of the zoo and what it was made for."""

    make: Callable[..., Layer]
    input_shape: tuple[int, int, int]
    classes: int
    parameters: int

    @property
    def mode(self) -> str:
        """Pillow's name for the images it expects: "L" (grey) or "RGB"."""
        return "L" if self.input_shape[0] == 1 else "RGB"


MODELS = {
    "mri": Entry(mri, (1, 200, 200), 4, 5_125_264),
    "lenet": Entry(lenet, (1, 28, 28), 10, 431_080),
    "simple_convnet": Entry(simple_convnet, (1, 28, 28), 10, 433_890),
    "keras_style": Entry(keras_style, (1, 28, 28), 10, 1_199_882),
}


def names() -> list[str]:
    """Return the names that `build` knows."""
    return list(MODELS)


def entry(name: str) -> Entry:
    """Return a network's entry: its maker, input shape (C, H, W), classes and parameters.

    Raises:
        ArgumentError: for a name that is not in the zoo. Dashes count as underscores.
    """
    found = MODELS.get(name.replace("-", "_").lower())
    if found is None:
        raise ArgumentError(f"there is no network called {name!r}; the zoo has {', '.join(names())}.")
    return found


def build(name: str, classes: int | None = None) -> Layer:
    """Make a network by name, with as many classes as it was made for unless told otherwise.

    Its parameters are made by `net.build(input_shape)`.
    """
    found = entry(name)
    return found.make(classes=found.classes if classes is None else classes)
