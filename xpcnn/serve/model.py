"""A `Classifier` as the server uses it: from the bytes of an image to probabilities, and to where they come from."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..backend import generator
from ..data.images import image_from_bytes
from ..errors import ArgumentError
from ..formats import onnx
from ..inspection import grad_cam
from ..training import Classifier, load

__all__ = ["ServedModel", "open_model"]


def open_model(path: str | os.PathLike[str], device: str = "auto", classes: Sequence[str] | None = None) -> Classifier:
    """Return a classifier from a model that xpcnn saved, or from an ONNX file.

    Args:
        path: .safetensors, .json or .onnx.
        device: where the network goes.
        classes: names for the classes of an .onnx file, which has none; otherwise they are called 0, 1, ...

    Raises:
        ArgumentError: if there is no such file, an .onnx file leaves the size of its images open, or `classes` is
            given for a file that has names.
        FileFormatError: if it cannot be read.
    """
    if not Path(path).exists():
        raise ArgumentError(
            f"{os.fspath(path)} does not exist; expected a model saved by xpcnn (.safetensors or .json), or .onnx."
        )
    if Path(path).suffix.lower() != ".onnx":
        if classes is not None:
            raise ArgumentError("class names are for .onnx files; a saved model has its own.")
        return load(path, device)
    net = onnx.load(path, logits=True)
    if net.input_shape is None:
        raise ArgumentError(
            f"{os.fspath(path)} does not say the size of its images. Make a model of it, with its size: "
            "xpcnn convert FILE.onnx model.safetensors --input C,H,W"
        )
    loss = "mse" if net.gives_probabilities else "softmax_cross_entropy"
    classifier = Classifier(net, None if classes is None else list(classes), loss=loss, device=device)
    classifier.build(net.input_shape)
    return classifier


class ServedModel:
    """A classifier that answers the same about an image whatever else is in the forward pass.

    The last bits of a result depend on how many images go through the network together, and with some numbers on the
    place of the image among them, because BLAS adds in another order. So every pass has the same number of images,
    `width` (zeros fill it up), the largest up to `most` for which all places give the same bits here.

    Args:
        classifier: trained or built; not used by anybody else while it is served.
        name: what it is called, for people.
        most: images in one pass at most.
        most_pixels: pixels of an image file beyond which it is not decoded.

    Raises:
        ArgumentError: if the network takes neither one nor three channels, or answers with NaN.
    """

    def __init__(self, classifier: Classifier, name: str, most: int = 8, most_pixels: int = 50_000_000) -> None:
        shape, classes = classifier._ready()
        if classifier.image is None:
            raise ArgumentError(
                f"{name} takes images of {shape[0]} channels; image files have one (grey) or three (RGB). "
                "Only such models can be served."
            )
        self.classifier, self.name, self.most_pixels = classifier, name, most_pixels
        self.shape, self.classes, self.options = shape, classes, classifier.image
        self.width = self._steady(most)
        self.explains = self._explains()

    def decode(self, content: bytes) -> np.ndarray:
        """Return the pixels (C, H, W), uint8, of an image file, as `Classifier.predict_proba` reads it.

        Raises:
            TooManyPixelsError: if it has more than `most_pixels`.
            DataError: if it is broken or no image.
        """
        size, mode, fit = (self.options[name] for name in ("size", "mode", "fit"))
        return image_from_bytes(content, size, mode, fit, most=self.most_pixels)

    def predict(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return probabilities (n, K) of 1 to `width` images (C, H, W), uint8."""
        batch = np.zeros((self.width, *self.shape), np.uint8)
        batch[: len(images)] = images
        return self.classifier.predict_proba(batch, self.width)[: len(images)]

    def explain(self, pixels: np.ndarray, number: int) -> dict[str, Any]:
        """Return where the network looked for class `number`: Grad-CAM, and the image as the network saw it."""
        found = grad_cam(self.classifier, pixels[None], number)
        evidence = found.maps[0]
        most = float(evidence.max())
        scaled = np.rint(evidence * (255.0 / most if most > 0 else 0.0)).astype(np.uint8)
        return {
            "class": self.classes[number],
            "method": found.method,
            "layer": found.layer,
            "height": pixels.shape[1],
            "width": pixels.shape[2],
            "most": most,
            "map": _png(scaled),
            "image": _png(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)),
        }

    def _steady(self, most: int) -> int:
        """Return the largest of most, most / 2, ..., 1 for which one image gets the same bits in every place."""
        self.width = most
        image = generator(0, "serve").integers(0, 256, self.shape, np.uint8)
        while self.width > 1:
            rows = self.predict([image] * self.width)
            if (rows == rows[0]).all() or not np.isfinite(rows).all():
                break
            self.width //= 2
        if not np.isfinite(self.predict([image])).all():
            raise ArgumentError(f"{self.name} answers with NaN or infinity: it cannot be served. Train it again.")
        return self.width

    def _explains(self) -> bool:
        try:
            self.explain(np.zeros(self.shape, np.uint8), 0)
        except ArgumentError:  # no feature map
            return False
        return True


def _png(pixels: np.ndarray) -> str:
    """Return pixels (H, W) or (H, W, 3), uint8, as a data: URL."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
