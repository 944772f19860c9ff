"""`CNNClassifier`: a network as a scikit-learn estimator, for pipelines, searches, calibration and cross-validation.

It needs scikit-learn: pip install "xpcnn[sklearn]". What scikit-learn has no word for (augmentation, validation while
training, checkpoints, callbacks, mixed precision) is in `xpcnn.Classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import formats, zoo
from .backend import Device, to_numpy
from .errors import ArgumentError, DataError, DeviceError, MissingExtraError, ShapeError
from .layers import Dense, Flatten, Layer, ReLU, Sequential, config, from_config
from .layers.base import Shape
from .optim import OPTIMIZERS, Optimizer
from .training import Classifier, load

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("scikit-learn 1.6 or newer", "sklearn", "xpcnn.sklearn") from error

__all__ = ["CNNClassifier"]


class CNNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """A network that tells classes apart, as a scikit-learn estimator.

    X is (N, D), which is images with `image_shape` and plain features without; or images (N, C, H, W), or (N, H, W)
    for one channel. Each way is understood wherever X is given, whichever was given to fit. Numbers count as they are,
    whatever their dtype: nothing is divided by 255, and `normalize="data"` makes their scale unimportant.

    Args:
        net: None for `zoo.keras_style` on images and two dense layers on plain features; a name of the zoo; a function
            classes -> layer, such as `functools.partial(zoo.build, "resnet18", stem="cifar")`; or a layer with one
            output per class, of which a copy is trained, from the weights it has if it is built.
        image_shape: (C, H, W) of the images in the rows of X, or None: X says it, or has features (as D channels of
            one pixel).
        epochs: how often the training goes through the data.
        batch_size: images per step.
        optimizer: "adam", "adamw", "sgd", "rmsprop" or "adagrad"; or a function lr=... -> Optimizer, such as
            `functools.partial(xpcnn.SGD, momentum=0.9)`.
        lr: learning rate.
        normalize: as in `xpcnn.Classifier`: "data" for mean and standard deviation of the training data, (mean, std),
            or None.
        class_weight: None, "balanced", or {label: weight}.
        device: "cpu", "cuda:0", ... or "auto": a GPU if there is one.
        random_state: of the initial weights, the order of the images and dropout: an int for the same result each time.
        verbose: whether to show progress.

    Attributes:
        classes_: the labels (K,), sorted.
        n_features_in_: numbers in an image, C*H*W, or D.
        image_shape_: (C, H, W).
        classifier_: the trained `xpcnn.Classifier`, whose classes are 0..K-1.
        history_: lists by name (epoch, loss, accuracy, lr, seconds), one entry an epoch.

    A pickle, also joblib's, holds the networks as bytes of safetensors files; functions given as `net` or `optimizer`
    are pickled as Python does it, by name. Unpickle only what you trust: a pickle can run anything, whatever it should
    hold. Where the device is not there, the network is loaded to the CPU.
    """

    def __init__(
        self,
        net: str | Layer | Callable[[int], Layer] | None = None,
        *,
        image_shape: tuple[int, int, int] | None = None,
        epochs: int = 20,
        batch_size: int = 32,
        optimizer: str | Callable[..., Optimizer] = "adam",
        lr: float = 1e-3,
        normalize: str | tuple[Any, Any] | None = "data",
        class_weight: str | Mapping[Any, float] | None = None,
        device: str | Device = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.net = net
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.normalize = normalize
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # --- scikit-learn's verbs -----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> CNNClassifier:
        """Train a new network.

        Args:
            X: (N, D), (N, C, H, W) or (N, H, W).
            y: labels (N,) of any kind that can be sorted: strings, integers, booleans.

        Returns:
            The estimator.

        Raises:
            ValueError: for data or arguments that cannot be used: scikit-learn's own, or an error of xpcnn.errors.
        """
        rows, shape = _rows(X, self.image_shape)
        rows, y = validate_data(self, rows, _on_host(y), dtype=np.float32)
        if shape is not None and rows.shape[1] != math.prod(shape):
            raise DataError(f"image_shape {shape} has {math.prod(shape)} numbers; X has {rows.shape[1]} features.")
        check_classification_targets(y)
        classes, numbers = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise DataError("y must have at least 2 classes; received 1 class. Check the labels.")
        weights = self.class_weight
        if weights is not None:
            weights = compute_class_weight(weights, classes=classes, y=y)
        classifier = Classifier(
            self._make_net(len(classes), images=shape is not None),
            classes=len(classes),
            optimizer=self._make_optimizer(),
            device=self.device,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            normalize=self.normalize,
            class_weights=weights,
        )
        images = rows.reshape(-1, *(shape or (rows.shape[1], 1, 1)))
        try:
            history = classifier.fit(
                images, numbers, epochs=self.epochs, batch_size=self.batch_size, verbose=self.verbose
            )
        except ShapeError as error:
            hint = "" if shape is not None else " If the rows of X are images, say so: image_shape=(C, H, W)."
            raise ShapeError(f"{error}{hint}") from error
        self.classes_, self.image_shape_ = classes, images.shape[1:]
        self.classifier_, self.history_ = classifier, dict(history)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities (N, K) of `classes_`, float32."""
        check_is_fitted(self)
        rows, _ = _rows(X, self.image_shape_)
        rows = validate_data(self, rows, dtype=np.float32, reset=False)
        images = rows.reshape(-1, *self.image_shape_)
        return self.classifier_.predict_proba(images, batch_size=self.batch_size)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each row of X (N,)."""
        index = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[index]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # --- what the parameters mean -------------------------------------------------------------------------------

    def _make_net(self, classes: int, images: bool) -> Layer:
        if self.net is None:
            return zoo.keras_style(classes) if images else Sequential(Flatten(), Dense(64), ReLU(), Dense(classes))
        if isinstance(self.net, str):
            return zoo.build(self.net, classes=classes)
        if isinstance(self.net, Layer):
            return deepcopy(self.net)
        net = self.net(classes) if callable(self.net) else self.net
        if not isinstance(net, Layer):
            raise ArgumentError(
                "net must be None, a name of the zoo, a layer, or a function classes -> layer; "
                f"received {self.net!r}{f', which returned {net!r}' if net is not self.net else ''}."
            )
        return net

    def _make_optimizer(self) -> Optimizer:
        make = OPTIMIZERS.get(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        if not callable(make):
            known = ", ".join(f'"{name}"' for name in OPTIMIZERS)
            raise ArgumentError(
                f"optimizer must be {known} or a function lr=... -> Optimizer; received {self.optimizer!r}."
            )
        return make(lr=self.lr)

    # --- pickling -----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__()) | {"device": str(self.device)}
        if isinstance(self.net, Layer):
            state["net"] = _layer_to_bytes(self.net)
        if "classifier_" in state:
            state["classifier_"] = _written(self.classifier_.save)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if isinstance(state["net"], bytes):
            state["net"] = _layer_from_bytes(state["net"])
        if "classifier_" in state:
            try:
                device = Device(state["device"])
            except DeviceError:
                device = Device("cpu")
            state["classifier_"] = _read(state["classifier_"], lambda path: load(path, device))
        super().__setstate__(state)


def _on_host(values: Any) -> Any:
    """Return lists and arrays of any library as NumPy arrays, anything else as it is, for scikit-learn to check."""
    if hasattr(values, "__dlpack_device__") or hasattr(values, "__cuda_array_interface__"):
        return to_numpy(values)
    return np.asarray(values) if isinstance(values, (list, tuple)) else values


def _rows(X: Any, expected: Shape | None) -> tuple[Any, Shape | None]:
    """Return X with one row for each image, and their shape (C, H, W) where X or `expected` says it."""
    X = _on_host(X)
    shape = getattr(X, "shape", ())
    if len(shape) in (3, 4):
        received = (1, *shape[1:]) if len(shape) == 3 else tuple(shape[1:])
        if expected is not None and received != tuple(expected):
            raise DataError(f"the images must have shape {tuple(expected)}; received {received}.")
        return X.reshape(len(X), math.prod(received)), received
    if expected is None:
        return X, None
    if len(expected) != 3 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in expected):
        raise ArgumentError(f"image_shape must be (C, H, W), three ints of at least 1; received {expected!r}.")
    return X, tuple(int(n) for n in expected)


def _written(write: Callable[[Path], None]) -> bytes:
    """Return the bytes of the file that write(path) makes."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        write(path)
        return path.read_bytes()


def _read(data: bytes, read: Callable[[Path], Any]) -> Any:
    """Return what read(path) makes of a file with these bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(data)
        return read(path)


def _layer_to_bytes(net: Layer) -> bytes:
    meta: dict[str, Any] = {"architecture": config(net), "input_shape": net.input_shape}
    tensors = {name: to_numpy(array) for name, array in net.state_dict().items()}
    if net.input_shape is not None:
        meta["dtype"] = str(net.dtype)
        meta["frozen"] = [name for name, parameter in net.parameters().items() if not parameter.trainable]
    return _written(lambda path: formats.write(path, meta, tensors))


def _layer_from_bytes(data: bytes) -> Layer:
    meta, tensors = _read(data, formats.read)
    net = from_config(meta["architecture"])
    if meta["input_shape"] is not None:
        net.build(tuple(meta["input_shape"]), dtype=meta["dtype"])
        net.load_state_dict(tensors)
        for name in meta["frozen"]:
            net.freeze(name)
    return net
