"""What a network looks at: the output of any layer, and which pixels spoke for a class.

Three answers to the second question: Grad-CAM asks the last feature map, saliency the gradient of the pixels, and
occlusion covers parts of the image and looks what happens. The network that is asked is a copy of the layers on the
same weights, so that others may use it meanwhile.

Notation: N images, C channels, H W their height and width, K classes, A a feature map (C, H, W, N).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..backend import Array, single_threaded_blas, to_device, to_numpy
from ..data import ArrayDataset
from ..errors import ArgumentError, ShapeError
from ..formats.onnx.graph import Graph, Node
from ..formats.onnx.ops import Op, inner
from ..functional.activation import softmax_forward
from ..layers import Conv2d, Layer, Step, batch_last
from ..layers.containers import as_written
from ..training import Classifier
from ..training.inputs import Entrance, as_images, named, numbers, read_files

__all__ = ["Attribution", "activations", "grad_cam", "occlusion", "read_images", "saliency"]

SHOWN = 40  # layer names that an error lists


@dataclass(frozen=True)
class Attribution:
    """Which pixels spoke for a class, for N images.

    Args:
        method: "Grad-CAM", "saliency" or "occlusion".
        unit: what the numbers are.
        maps: (N, H, W) in host memory: the larger, the more the pixel counts. Only occlusion has negative ones, where
            the class becomes more probable without the pixel.
        classes: (N,) number of the class in question.
        names: the class names, if there are any.
        layer: whose output Grad-CAM looked at.
    """

    method: str
    unit: str
    maps: np.ndarray
    classes: np.ndarray
    names: list[str] | None = None
    layer: str = ""

    def name(self, index: int) -> str:
        """Return the class in question of one image."""
        number = int(self.classes[index])
        return str(number) if self.names is None else self.names[number]


# --- what people call -------------------------------------------------------------------------------------------


def activations(model: Classifier | Layer, x: Any, layer: str) -> np.ndarray:
    """Return what a layer puts out at prediction.

    Args:
        model: a classifier, or a built network.
        x: images as for `Classifier.predict_proba` (arrays or files); for a network its input (N, C, H, W).
        layer: path of a layer in it, container or not ("layer4", "features.0"); in an imported ONNX graph the name of
            a node. Of a layer that is used twice, the last output.

    Returns:
        (N, C, H, W) or (N, D), in host memory.

    Raises:
        ArgumentError: if no layer of that name takes part in prediction.
    """
    with _examined(model, x) as subject:
        tap = _Tap(subject.net, layer)
        subject.net.forward(subject.x, False)
        y = to_numpy(tap.output())
    return np.ascontiguousarray(np.moveaxis(y, -1, 0))


def grad_cam(
    model: Classifier | Layer, x: Any, target: Any = None, layer: str | None = None, resize: bool = True
) -> Attribution:
    """Ask a feature map which places speak for a class: ReLU(sum_c w_c A_c), w_c the mean of d score / d A_c.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (2017). The
    score is the network's output for the class: its logit, unless the network ends with Softmax.

    Args:
        model: a classifier, or a built network.
        x: images as for `Classifier.predict_proba` (arrays or files); for a network its input (N, C, H, W).
        target: the class: number or name, or one for each image; None for the one that is predicted.
        layer: whose output to look at, as in `activations`; by default the last feature map of convolutions: the last
            output that is as high and wide as that of the last convolution, and larger than one pixel.
        resize: bring the map to the size of the images (bilinear); else it has the size of the feature map.

    Raises:
        ArgumentError: if there is no such layer or class, or the layer's output is no feature map.
    """
    with _examined(model, x) as subject:
        tap = _Tap(subject.net, layer)
        chosen, _ = subject.differentiate(target, tap)
        features, gradient = tap.output(), tap.gradient
        if features.ndim != 4 or gradient is None:
            shape = tuple(features.shape[:-1])
            raise ArgumentError(
                f"Grad-CAM looks at a feature map (C, H, W) that the scores depend on; the output of layer "
                f"{tap.name!r} has shape {shape}. Name a convolution, or a block of them."
            )
        weights = gradient.mean(axis=(1, 2), keepdims=True)
        found = to_numpy((weights * features).sum(axis=0))
    maps = np.ascontiguousarray(np.moveaxis(np.maximum(found, 0.0), -1, 0))
    if resize:
        maps = np.stack([_resized(one, subject.x.shape[1:3]) for one in maps])
    return Attribution("Grad-CAM", "evidence", maps, chosen, subject.names, tap.name)


def saliency(model: Classifier | Layer, x: Any, target: Any = None) -> Attribution:
    """Return how much a small change of each pixel changes the score: the largest |d score / d pixel| of its channels.

    Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks" (2014). Pixels are in the scale 0 to 1 where
    the images are uint8, before normalisation.

    Args:
        model, x, target: as in `grad_cam`.
    """
    with _examined(model, x) as subject:
        chosen, dx = subject.differentiate(target)
        for channel, std in enumerate(subject.std or ()):
            dx[channel] /= std
        maps = to_numpy(abs(dx).max(axis=0))
    maps = np.ascontiguousarray(np.moveaxis(maps, -1, 0))
    return Attribution("saliency", "|d score / d pixel|", maps, chosen, subject.names)


def occlusion(
    model: Classifier | Layer,
    x: Any,
    target: Any = None,
    patch: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
) -> Attribution:
    """Cover a square with the mean colour of the image and see by how much the probability of the class falls.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014). A pixel of the map is the mean
    over all squares that cover it.

    Args:
        model, x, target: as in `grad_cam`.
        patch: height and width of the square in pixels; by default a quarter of the shorter side.
        stride: how far it moves; by default half of the square.
        batch_size: covered images that go through the network at once.

    Raises:
        ArgumentError: if the square does not fit into the image, or moves by more than its size.
    """
    with _examined(model, x) as subject:
        height, width, count = subject.x.shape[1:]
        size = max(1, min(height, width) // 4) if patch is None else patch
        step = max(1, size // 2) if stride is None else stride
        if not 1 <= step <= size <= min(height, width) or batch_size < 1:
            raise ArgumentError(
                f"occlusion needs 1 <= stride <= patch <= {min(height, width)}, the shorter side of the images, and a "
                f"batch_size of at least 1; received stride {step}, patch {size}, batch_size {batch_size}."
            )
        before = subject.probabilities(subject.x)
        chosen = subject.classes(target, before)
        places = [(top, left) for top in _starts(height, size, step) for left in _starts(width, size, step)]
        fall, covered = np.zeros((count, height, width)), np.zeros((height, width))
        for top, left in places:
            covered[top : top + size, left : left + size] += 1
        for n in range(count):
            image = subject.x[..., n : n + 1]
            mean = image.mean(axis=(1, 2))
            for first in range(0, len(places), batch_size):
                some = places[first : first + batch_size]
                batch = subject.net.xp.repeat(image, len(some), axis=-1)
                for i, (top, left) in enumerate(some):
                    batch[:, top : top + size, left : left + size, i] = mean[..., None]
                after = subject.probabilities(batch)[:, chosen[n]]
                for (top, left), p in zip(some, after, strict=True):
                    fall[n, top : top + size, left : left + size] += before[n, chosen[n]] - p
    return Attribution("occlusion", "fall of the probability", fall / covered, chosen, subject.names)


def read_images(model: Classifier, x: Any) -> np.ndarray:
    """Return images as `Classifier.predict_proba` takes them (arrays, files) as one array (N, C, H, W)."""
    shape, _ = model._ready()
    if isinstance(x, (str, os.PathLike)):
        x = [x]
    if isinstance(x, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in x):
        x = read_files(x, model.image)
    images = as_images(x, shape)
    dataset = ArrayDataset(images, np.zeros(len(images), np.int64))
    model.build(dataset.shape)
    return dataset.take(np.arange(len(images)))


# --- how it is done ---------------------------------------------------------------------------------------------


@dataclass
class _Subject:
    """A network and images, ready to be looked into."""

    net: Layer  # a copy with nothing to train, so that backward computes dx alone
    x: Array  # (C, H, W, N), on the network's device
    std: tuple[float, ...] | None = None
    names: list[str] | None = None

    def differentiate(self, target: Any, tap: _Tap | None = None) -> tuple[np.ndarray, Array]:
        """Return the classes (N,) and the gradient (C, H, W, N) of their scores by the input."""
        scores, ctx = self.net.forward(self.x, Step(inference=True))
        if tap is not None:
            tap.settle()
        self._check(scores)
        chosen = self.classes(target, to_numpy(scores).T)
        one = np.arange(scores.shape[0])[:, None] == chosen
        return chosen, self.net.backward(to_device(one.astype(scores.dtype), self.net.device), ctx)

    def probabilities(self, x: Array) -> np.ndarray:
        """Return (N, K)."""
        scores, _ = self.net.forward(x, False)
        self._check(scores)
        found: np.ndarray = to_numpy(scores if self.net.gives_probabilities else softmax_forward(scores)).T
        return found

    def classes(self, target: Any, scores: np.ndarray) -> np.ndarray:
        """Return the class of each image (N,): those that are asked for, or those with the highest of scores (N, K)."""
        count, classes = scores.shape
        if target is None:
            best: np.ndarray = scores.argmax(axis=1)
            return best
        given = [target] if isinstance(target, str) or np.ndim(target) == 0 else list(target)
        names = self.names or numbers(classes)
        numbered = [names.index(t) if isinstance(t, str) and t in names else t for t in given]
        if len(numbered) not in (1, count) or not all(
            isinstance(t, (int, np.integer)) and 0 <= t < classes for t in numbered
        ):
            known = f"by name ({', '.join(self.names)}) or " if self.names else ""
            raise ArgumentError(
                f"a class is given {known}by number (0 to {classes - 1}), one for all images or one for each of "
                f"{count}; received {target!r}."
            )
        return np.full(count, numbered, np.int64)

    def _check(self, scores: Array) -> None:
        if scores.ndim != 2:
            raise ShapeError(f"the network should end in K scores; its output has shape {tuple(scores.shape[:-1])}.")


@contextmanager
def _examined(model: Classifier | Layer, x: Any) -> Iterator[_Subject]:
    """Give a copy of the network and the images as it sees them."""
    std, names = None, None
    if isinstance(model, Classifier):
        images, std = read_images(model, x), model.std
        names = named(model._ready()[1])
        with model.averaged() as averaged:
            net = _frozen_copy(averaged, share=model.ema is None)
        inputs = Entrance(net.dtype, model.mean, std)(to_device(images, net.device))
    else:
        net = _frozen_copy(model, share=True)
        inputs = batch_last(to_device(x, net.device)).astype(net.dtype, copy=False)
    token = as_written.set(True)  # each layer is computed by itself, so that it can be looked at
    try:
        with net.device, single_threaded_blas(), np.errstate(over="ignore", invalid="ignore"):
            yield _Subject(net, inputs, std, names)
    finally:
        as_written.reset(token)
        for _, layer in net.walk():  # a watched layer refers to itself, and would keep its memory for a while
            for method in ("forward", "backward"):
                vars(layer).pop(method, None)


def _frozen_copy(net: Layer, share: bool) -> Layer:
    """Return a copy with nothing to train; with `share` on the same weights, which may be large."""
    arrays = {id(entry): copy.copy(entry) for entry in net._state().values()} if share else {}
    twin = copy.deepcopy(net, arrays)
    for parameter in twin.parameters().values():
        parameter.trainable = False
    return twin


class _Tap:
    """Looks at what leaves one layer of a network, and at the gradient that comes back to it.

    Layers report when they are done, so a container after its parts. Without a name it looks at the last feature map
    of convolutions.
    """

    def __init__(self, net: Layer, wanted: str | None) -> None:
        self.wanted = wanted
        self.name = ""
        self.gradient: Array = None
        self._y: Array = None
        self._ctx: Any = None
        self._known: dict[str, None] = {}
        for path, layer in net.walk():
            if path:
                self._watch(path, layer)
            if isinstance(layer, Graph):
                layer.parsed = [_WatchedNode(**vars(node), path=path, tap=self) for node in layer.parsed]

    def _watch(self, path: str, layer: Layer) -> None:
        forward, backward = layer.forward, layer.backward

        def watched_forward(x: Array, train: Any, **options: Any) -> tuple[Array, Any]:
            y, ctx = forward(x, train, **options)
            self.note(path, y, ctx, isinstance(layer, Conv2d))
            return y, ctx

        def watched_backward(dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
            self.note_gradient(path, dy, ctx)
            return backward(dy, ctx, need_dx)

        vars(layer).update(forward=watched_forward, backward=watched_backward)

    def note(self, name: str, y: Array, ctx: Any, convolution: bool) -> None:
        """Take what a layer has put out if it is what is looked for."""
        self._known[name] = None
        if self.wanted is None:
            larger = y.ndim == 4 and y.shape[1] * y.shape[2] > 1
            last = self._y is not None and y.ndim == 4 and y.shape[1:3] == self._y.shape[1:3]
            found = (larger and convolution) or last
        else:
            found = name == self.wanted
        if found:
            self.name, self._y, self._ctx = name, y, ctx

    def note_gradient(self, name: str, dy: Array, ctx: Any) -> None:
        """Take the gradient that comes back to what was taken; the layer may be used elsewhere too."""
        if name == self.wanted and ctx is self._ctx and self.gradient is None:
            self.gradient = dy

    def settle(self) -> None:
        """Stay with what was found: recomputation runs layers again."""
        self.output()
        self.wanted = self.name

    def output(self) -> Array:
        """Return what was looked for, batch-last.

        Raises:
            ArgumentError: if it was not there.
        """
        if self._y is None:
            names = list(self._known)
            listed = ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
            if self.wanted is None:
                raise ArgumentError(
                    "the network has no convolution whose output is larger than one pixel. Name a layer that has a "
                    f"feature map, or use saliency or occlusion; there are: {listed}."
                )
            raise ArgumentError(f"no layer {self.wanted!r} takes part in prediction; there are: {listed}.")
        return self._y


@dataclass(frozen=True)
class _WatchedNode(Node):
    """A node of an imported graph that reports to a tap as layers do."""

    path: str
    tap: _Tap

    @property
    def row(self) -> Op:
        """What computes it, and reports."""
        row = super().row
        backward = row.backward
        name = f"{self.path}.{self.name}" if self.path else self.name

        def watched_forward(call: Any, *inputs: Any) -> tuple[Any, Any]:
            result, kept = row.forward(call, *inputs)
            y = result[0] if isinstance(result, tuple) else result
            if not row.shape_only:
                self.tap.note(name, inner(y), call, self.op == "Conv")
            return result, kept

        def watched_backward(call: Any, needs: Any, kept: Any, *dy: Any) -> Any:
            assert backward is not None
            if dy[0] is not None:
                self.tap.note_gradient(name, inner(dy[0]), call)
            return backward(call, needs, kept, *dy)

        return replace(row, forward=watched_forward, backward=None if backward is None else watched_backward)


def _starts(length: int, size: int, step: int) -> list[int]:
    """Return where squares begin so that they cover the whole length."""
    return [*range(0, length - size, step), length - size]


def _resized(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return a map (H, W) in another size, float32."""
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
