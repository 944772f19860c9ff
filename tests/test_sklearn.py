"""`CNNClassifier` as scikit-learn knows estimators: its own checks, its meta-estimators, and pickles without code."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
import pickletools
import re
import sys
import unittest

import joblib
import numpy as np
import pytest
import safetensors.numpy
from helpers import readonly
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from toys import quarters, small_net

import xpcnn
from xpcnn import SGD, ArgumentError, DataError, Device, MissingExtraError, ShapeError, backend, zoo
from xpcnn.sklearn import CNNClassifier

NAMES = np.array(["north", "east", "south"])


def data(count=60):
    images, labels = quarters(count, dtype="float32")
    return readonly(images), NAMES[labels]


def small(net=small_net, **options):
    return CNNClassifier(net, **{"epochs": 6, "lr": 0.02, "device": "cpu", "random_state": 0} | options)


# --- scikit-learn's own checks ----------------------------------------------------------------------------------

CHECKS = list(estimator_checks_generator(CNNClassifier(device="cpu"), legacy=True))
# What a check may need that is not here. No check is expected to fail.
NOT_HERE = "pandas is not installed|SCIPY_ARRAY_API is not set|CNNClassifier does not have a decision_function"


def name_of(check):
    arguments = "-".join(map(str, check.keywords.values()))
    return check.func.__name__ + (f"-{arguments}" if arguments else "")


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=[name_of(check) for _, check in CHECKS])
def test_checks_of_scikit_learn(estimator, check):
    reason = ""
    try:
        check(estimator)
    except unittest.SkipTest as skipped:
        reason = str(skipped)
    assert re.fullmatch(f"({NOT_HERE}).*|", reason)


def test_there_are_checks_enough():
    names = {check.func.__name__ for _, check in CHECKS}
    assert len(CHECKS) > 40
    assert {"check_classifiers_train", "check_estimators_pickle", "check_class_weight_classifiers"} <= names


# --- data and labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        NAMES.astype(object),
        np.array([30, -7, 11]),
        np.array([2.0, 0.0, 1.0]),
        np.array([True, False, True]),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels_of_any_kind(labels):
    images, numbers = quarters(60)
    y = labels[numbers]
    model = small().fit(images, y)
    np.testing.assert_array_equal(model.classes_, np.unique(labels))
    predicted = model.predict(images)
    assert predicted.dtype == y.dtype
    assert model.score(images, y) == accuracy_score(y, predicted) > 0.9


def test_probabilities_are_in_the_order_of_the_classes():
    images, y = data()
    model = small().fit(images, y)
    proba = model.predict_proba(images)
    assert (proba.shape, proba.dtype) == ((60, 3), np.float32)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-6)
    assert list(model.classes_) == ["east", "north", "south"]
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], model.predict(images))
    np.testing.assert_array_equal(proba, model.classifier_.predict_proba(images))


def test_every_layout_of_images_is_the_same_to_it():
    images, y = data()
    layouts = [images, images[:, 0], images.reshape(60, -1), images.reshape(60, -1).tolist()]
    reference = small().fit(images, y).predict_proba(images)
    for given in layouts:
        model = small(image_shape=(1, 8, 8)).fit(given, y)
        assert (model.n_features_in_, model.image_shape_) == (64, (1, 8, 8))
        for asked in layouts:
            np.testing.assert_array_equal(model.predict_proba(asked), reference)


def test_numbers_count_whatever_their_dtype():
    images, labels = quarters(60)
    model = small().fit(images, labels)
    reference = model.predict_proba(images)
    for dtype in ("int64", "float32", "float64"):
        np.testing.assert_array_equal(model.predict_proba(images.astype(dtype)), reference)
        again = small().fit(images.astype(dtype), labels)
        np.testing.assert_array_equal(again.predict_proba(images), reference)


def test_channels_of_images_and_non_square_ones(rng):
    images = rng.normal(size=(12, 3, 7, 9))
    images[::2] += 1.0
    model = small(zoo.simple_convnet, epochs=1).fit(images, np.arange(12) % 2)
    assert (model.n_features_in_, model.image_shape_) == (189, (3, 7, 9))
    assert model.predict(images[:1]).shape == (1,)


def test_plain_features_are_standardised_one_by_one(rng):
    X = rng.normal(size=(90, 2)) * (1e-3, 1e4) + (5.0, -2e4)
    y = np.where(X[:, 0] > 5.0, "large", "small")
    model = CNNClassifier(epochs=30, lr=0.01, device="cpu", random_state=0).fit(X, y)
    assert model.image_shape_ == (2, 1, 1)
    assert model.score(X, y) > 0.95


def test_class_weights_move_the_predictions(rng):
    X = rng.normal(size=(60, 3))
    y = np.array(["often"] * 50 + ["rarely"] * 10)
    found = {}
    for weight in (None, "balanced", {"often": 1.0, "rarely": 100.0}):
        model = CNNClassifier(class_weight=weight, device="cpu", random_state=0).fit(X, y)
        found[str(weight)] = int((model.predict(X) == "rarely").sum())
    none, balanced, heavy = found.values()
    assert none < balanced < heavy


# --- networks and optimizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [None, "lenet", "simple_convnet", zoo.keras_style, small_net(3)])
def test_networks_of_every_kind(net):
    images, labels = np.zeros((6, 1, 16, 16), np.float32), np.arange(6) % 3
    images[:, 0, 0, 0] = labels
    model = small(net, epochs=1).fit(images, labels)
    expected = zoo.keras_style(3) if net is None else net
    if isinstance(expected, str):
        expected = zoo.build(expected, classes=3)
    expected = expected if isinstance(expected, xpcnn.Layer) else expected(3)
    assert xpcnn.config(model.classifier_.net) == xpcnn.config(expected)


def test_a_layer_is_copied_with_its_weights_and_what_is_frozen():
    images, y = data()
    net = small_net()
    net.build((1, 8, 8), seed=7)
    net.freeze("0.*")
    before = {name: array.copy() for name, array in net.state_dict().items()}
    model = small(net).fit(images, y)
    trained = model.classifier_.net.state_dict()
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
        assert np.array_equal(trained[name], array) == name.startswith("0.")


@pytest.mark.parametrize(
    ("optimizer", "kind"), [("sgd", "SGD"), ("adamw", "AdamW"), (functools.partial(SGD, momentum=0.5), "SGD")]
)
def test_optimizers(optimizer, kind):
    images, y = data(12)
    model = small(optimizer=optimizer, lr=0.03, epochs=1).fit(images, y)
    assert type(model.classifier_.optimizer).__name__ == kind
    assert model.classifier_.optimizer.lr == 0.03


def test_the_random_state_decides():
    images, y = data()
    first, again, other = (small(epochs=1, random_state=s).fit(images, y).predict_proba(images) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_fit_again_begins_anew():
    images, y = data()
    model = small(epochs=2).fit(images[:30, :, :6], y[:30])
    model.fit(images, y)
    np.testing.assert_array_equal(model.predict_proba(images), small(epochs=2).fit(images, y).predict_proba(images))
    assert model.history_["epoch"] == [1, 2]
    assert type(model.history_) is dict


# --- what scikit-learn makes of it ------------------------------------------------------------------------------


def test_pipeline_and_cross_validation():
    images, y = data()
    rows = images.reshape(60, -1)
    pipeline = make_pipeline(StandardScaler(), small(image_shape=(1, 8, 8)))
    scores = cross_val_score(pipeline, rows, y, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.8
    first = clone(pipeline).fit(rows[20:], y[20:])
    assert first.score(rows[:20], y[:20]) > 0.8


def test_cross_validation_of_images():
    assert cross_val_score(small(), *data(), cv=3).min() > 0.8


def test_grid_search_finds_what_learns():
    images, y = data()
    grid = {"lr": [1e-6, 0.02], "net": [small_net, functools.partial(zoo.build, "simple_convnet")]}
    search = GridSearchCV(small(), grid, cv=2).fit(images, y)
    assert search.best_params_["lr"] == 0.02
    assert search.best_score_ > 0.8 > max(search.cv_results_["mean_test_score"][:2])
    assert search.predict(images[:2]).tolist() == y[:2].tolist()


def test_calibration():
    images, y = data()
    calibrated = CalibratedClassifierCV(small(), cv=2).fit(images.reshape(60, 1, 8, 8), y)
    proba = calibrated.predict_proba(images)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-6)
    assert accuracy_score(y, calibrated.predict(images)) > 0.9


# --- pickles ----------------------------------------------------------------------------------------------------


def globals_of(dump):
    """Return the names "module name" that a pickle asks Python for."""
    strings, found = [], set()
    for code, argument, _ in pickletools.genops(dump):
        if code.name == "STACK_GLOBAL":
            found.add(" ".join(strings[-2:]))
        elif code.name == "GLOBAL":
            found.add(argument)
        if "UNICODE" in code.name:
            strings.append(argument)
    return found


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_names_nothing_of_ours_but_the_estimator(protocol):
    images, y = data(12)
    net = small_net()
    net.build((1, 8, 8), seed=7)
    net.freeze("0.weight")
    model = small(net, device=Device("cpu"), epochs=1, class_weight="balanced").fit(images, y)
    dump = pickle.dumps(model, protocol)
    assert {name for name in globals_of(dump) if name.startswith("xpcnn")} == {"xpcnn.sklearn CNNClassifier"}
    again = pickle.loads(dump)
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))
    assert again.history_ == model.history_
    assert [name for name, p in again.net.parameters().items() if not p.trainable] == ["0.weight"]
    refitted = again.fit(images, y)  # from the same start
    np.testing.assert_array_equal(refitted.predict_proba(images), model.predict_proba(images))


def test_the_network_in_a_pickle_is_a_safetensors_file():
    images, y = data(12)
    model = small(small_net(), epochs=1).fit(images, y)
    state = model.__getstate__()
    tensors = safetensors.numpy.load(state["classifier_"])
    for name, array in model.classifier_.net.state_dict().items():
        np.testing.assert_array_equal(tensors[name], array)
    assert safetensors.numpy.load(state["net"]) == {}
    assert isinstance(model.net, xpcnn.Layer)
    assert isinstance(model.classifier_, xpcnn.Classifier)


def test_joblib_copies_and_clones(tmp_path):
    images, y = data(12)
    model = small(small_net(), epochs=1).fit(images, y)
    expected = model.predict_proba(images)
    joblib.dump(model, tmp_path / "model.joblib")
    for again in (joblib.load(tmp_path / "model.joblib"), copy.deepcopy(model), copy.copy(model)):
        np.testing.assert_array_equal(again.predict_proba(images), expected)
        np.testing.assert_array_equal(again.predict(images), model.predict(images))
    fresh = clone(model)
    assert fresh.get_params().keys() == model.get_params().keys()
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    assert xpcnn.config(pickle.loads(pickle.dumps(fresh)).net) == xpcnn.config(model.net)


def test_on_a_device_and_where_it_is_missing(xp, monkeypatch):
    images, y = data(12)
    device = str(xpcnn.device_of(xp.ones(1)))
    model = small(device=device, epochs=1).fit(xp.asarray(images), y)
    expected = model.predict_proba(images)
    assert isinstance(expected, np.ndarray)
    assert model.classifier_.net.device == device
    assert pickle.loads(pickle.dumps(model)).classifier_.net.device == device
    dump = pickle.dumps(model)
    monkeypatch.setattr(backend, "gpu_problem", lambda: "there is none")
    again = pickle.loads(dump)
    assert again.classifier_.net.device == "cpu"
    np.testing.assert_allclose(again.predict_proba(images), expected, rtol=1e-4, atol=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------

IMAGES = np.zeros((6, 1, 8, 8), np.float32)
LABELS = np.arange(6) % 3


@pytest.mark.parametrize(
    ("options", "X", "error", "message"),
    [
        ({"net": "lenett"}, IMAGES, ArgumentError, "there is no network called 'lenett'"),
        ({"net": 3}, IMAGES, ArgumentError, r"net must be None, a name of the zoo, a layer.*; received 3\.$"),
        ({"net": lambda k: k}, IMAGES, ArgumentError, r"classes -> layer; received <function .*, which returned 3\.$"),
        ({"net": small_net(4)}, IMAGES, ArgumentError, r"3 classes, but the network has 4 outputs"),
        (
            {"optimizer": "lion"},
            IMAGES,
            ArgumentError,
            r'"adam", .* or a function lr=... -> Optimizer; received \'lion',
        ),
        ({"epochs": 0}, IMAGES, ArgumentError, "epochs must be an int of at least 1; received 0"),
        (
            {"image_shape": (8, 8)},
            IMAGES[:, 0, 0],
            ArgumentError,
            r"image_shape must be \(C, H, W\).*received \(8, 8\)",
        ),
        (
            {"image_shape": (1, 8, 9)},
            IMAGES.reshape(6, 64),
            DataError,
            r"\(1, 8, 9\) has 72 numbers; X has 64 features",
        ),
        ({"image_shape": (1, 4, 16)}, IMAGES, DataError, r"images must have shape \(1, 4, 16\); received \(1, 8, 8\)"),
        ({}, IMAGES.reshape(6, 64), ShapeError, r"If the rows of X are images, say so: image_shape=\(C, H, W\)"),
        ({}, IMAGES + np.nan, ValueError, "Input X contains NaN"),
        ({}, IMAGES[None], ValueError, "Found array with dim 5"),
    ],
)
def test_what_cannot_be_fitted(options, X, error, message):
    with pytest.raises(error, match=message):
        small(**options).fit(X, LABELS)


def test_one_class_is_not_enough():
    with pytest.raises(DataError, match="at least 2 classes; received 1 class"):
        small().fit(IMAGES, LABELS * 0)


def test_images_of_another_shape_are_refused():
    model = small(epochs=1).fit(IMAGES + LABELS[:, None, None, None], LABELS)
    with pytest.raises(DataError, match=r"the images must have shape \(1, 8, 8\); received \(1, 4, 16\)"):
        model.predict(IMAGES.reshape(6, 1, 4, 16))
    with pytest.raises(ValueError, match="X has 63 features, but CNNClassifier is expecting 64 features"):
        model.predict(IMAGES.reshape(6, 64)[:, 1:])


@pytest.mark.parametrize("missing", ["sklearn.base", "sklearn.utils.validation"])
def test_without_scikit_learn(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "xpcnn.sklearn")
    with pytest.raises(
        MissingExtraError, match=r'xpcnn\.sklearn needs scikit-learn 1\.6.*pip install "xpcnn\[sklearn\]"'
    ):
        importlib.import_module("xpcnn.sklearn")
