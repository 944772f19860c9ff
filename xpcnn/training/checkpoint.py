"""Saving a classifier to one file, and loading it: data in, data out, nothing in a file is ever executed.

The checkpoints of a training that goes on are in `resume`.

The layout of the JSON beside the weights (format 1):

    format          1
    version         version of xpcnn that wrote the file
    architecture    the network as `xpcnn.layers.config` describes it
    input_shape     [C, H, W]
    classes         [name, ...]
    mean, std       [number per channel] or null; pixels of type uint8 are divided by 255 first
    dtype           of the weights
    loss            name of the loss, null for a function of the user's
    image           how image files are read: {size, mode, fit}, or null
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import formats
from ..backend import Device, to_numpy
from ..data.images import check_size
from ..errors import FileFormatError, StateDictError
from ..init import InitLike
from ..layers import Layer
from ..layers.base import Buffer, Builder, Parameter, Shape, config, from_config
from .classifier import LOSSES, Classifier
from .resume import KIND

__all__ = ["FORMAT", "load", "save"]

FORMAT = 1
DTYPES = ("float16", "float32", "float64")


def save(classifier: Classifier, path: str | os.PathLike[str]) -> None:
    """Write a classifier to `path`, *.safetensors or *.json. See `Classifier.save`."""
    from .. import __version__

    shape, classes = classifier._ready()
    meta = {
        "format": FORMAT,
        "version": __version__,
        "architecture": config(classifier.net),
        "input_shape": list(shape),
        "classes": classes,
        "mean": classifier.mean,
        "std": classifier.std,
        "dtype": str(classifier.net.dtype),
        "loss": classifier.loss if isinstance(classifier.loss, str) else None,
        "image": classifier.image,
    }
    with classifier.averaged() as net:
        tensors = {name: to_numpy(array) for name, array in net.state_dict().items()}
        formats.write(path, meta, tensors)


def load(path: str | os.PathLike[str], device: str | Device = "auto") -> Classifier:
    """Read a classifier that `save` wrote.

    Args:
        path: *.safetensors or *.json.
        device: where the network goes.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if the file is broken, not a model, or describes a network that cannot be made.
        StateDictError: if the weights in it do not fit its architecture.
    """
    meta, tensors = formats.read(path)
    try:
        return _restore(meta, tensors, device)
    except StateDictError as error:
        raise StateDictError(f"{os.fspath(path)}: {error}") from error
    except Exception as error:  # whatever a layer stumbles over when its arguments make no sense
        raise FileFormatError(f"{os.fspath(path)} does not hold a usable model: {error}") from error


def _restore(meta: dict[str, Any], tensors: dict[str, np.ndarray], device: str | Device) -> Classifier:
    if meta.get("kind") == KIND:
        raise FileFormatError("it is a checkpoint of a training: give its folder to fit(..., checkpoint=...).")
    version, shape = meta.get("format"), meta.get("input_shape")
    if version != FORMAT:
        raise FileFormatError(f"it has format {version!r}, and this xpcnn reads format {FORMAT}. Update xpcnn.")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise FileFormatError(f"input_shape should be [C, H, W]; it is {shape!r}.")
    if not isinstance(meta.get("classes"), list) or meta.get("dtype") not in DTYPES:
        raise FileFormatError(f"it should have a list of classes, and a dtype of {', '.join(DTYPES)}.")
    net = from_config(meta.get("architecture", {}))
    net.setup(tuple(shape), _FromTensors(0, np.dtype(meta["dtype"]), tensors=tensors))
    if tensors or net.state_dict():
        net.load_state_dict(tensors)
    loss = meta.get("loss")
    if loss not in LOSSES:
        loss = "mse" if net.gives_probabilities else "softmax_cross_entropy"
    mean, std = meta.get("mean"), meta.get("std")
    normalize = None if mean is None and std is None else (mean, std)
    classifier = Classifier(net, meta["classes"], loss=loss, device=device, normalize=normalize, dtype=meta["dtype"])
    classifier.build(tuple(shape))
    classifier.image = _checked_image(meta.get("image"), shape)
    return classifier


def _checked_image(image: Any, shape: list[int]) -> dict[str, Any] | None:
    if image is None:
        return None
    mode = {1: "L", 3: "RGB"}.get(shape[0])
    if not isinstance(image, dict) or image.get("size") != shape[1:] or image.get("mode") != mode:
        raise FileFormatError(f'"image" should give size {shape[1:]} and mode {mode!r}; it is {image!r}.')
    check_size(image["size"], image["mode"], image.get("fit", ""))
    return image


@dataclass(frozen=True)
class _FromTensors(Builder):
    """Makes parameters of the arrays in a file, so an architecture asking for absurd sizes gets no memory for them."""

    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def parameter(
        self, layer: Layer, name: str, shape: Shape, how: InitLike, fan_in: int = 1, fan_out: int = 1
    ) -> None:
        if not isinstance(getattr(layer, name, None), Parameter):
            setattr(layer, name, Parameter(self._tensor(name, shape)))
        super().parameter(layer, name, shape, how, fan_in, fan_out)

    def buffer(self, layer: Layer, name: str, shape: Shape, value: float) -> None:
        if not isinstance(getattr(layer, name, None), Buffer):
            setattr(layer, name, Buffer(self._tensor(name, shape)))
        super().buffer(layer, name, shape, value)

    def _tensor(self, name: str, shape: Shape) -> np.ndarray:
        key = f"{self.path}.{name}" if self.path else name
        found = self.tensors.get(key)
        if found is None or found.shape != shape:
            received = "nothing" if found is None else f"shape {found.shape}"
            raise StateDictError(f"the architecture needs an array {key!r} of shape {shape}; the file has {received}.")
        return np.array(found, dtype=self.dtype, order="C")
